//! Names as PTX spells them: those of the module, moved aside where the language reserves them.
//!
//! A buffer, uniform block or workgroup array is a symbol of its own name; the register that holds its address, and
//! every local, is its name behind a `%`. The lanes of a vector are told apart by `$x` to `$w`.

use std::collections::BTreeSet;

use crate::ir::{Array, ArrayRef, Handle, Local, Module, Type, UniformBlock};

/// Instruction words, which are no symbols, and special registers, which are no register names.
const RESERVED: &str = "
abs activemask add addc alloca and applypriority atom bar barrier bfe bfi bfind bmsk bra brev brkpt brx call clz cnot
copysign cos createpolicy cvt cvta discard div dp2a dp4a elect ex2 exit fence fma fns getctarank griddepcontrol isspacep
istypep ld ldmatrix ldu lg2 lop3 mad mad24 madc mapa match max mbarrier membar min mma mov movmatrix mul mul24
multimem nanosleep neg not or pmevent popc prefetch prefetchu prmt rcp red redux rem ret rsqrt sad selp set setmaxnreg
setp shf shfl shl shr sin slct sqrt st stackrestore stacksave stmatrix sub subc suld suq sured sust szext tanh tcgen05
testp tex tld4 trap txq vabsdiff vadd vmad vmax vmin vote vset vshl vshr vsub wgmma wmma xor
align branchtargets callprototype calltargets common const extern file func global loc local minnctapersm maxnctapersm
maxnreg maxntid param pragma reg reqntid section shared sreg target version visible weak
main workgroup_memory WARP_SZ
tid ntid laneid warpid nwarpid ctaid nctaid smid nsmid gridid clusterid nclusterid cluster_ctaid cluster_nctaid
cluster_ctarank cluster_nctarank clock clock64 clock_hi globaltimer globaltimer_lo globaltimer_hi total_smem_size
aggr_smem_size dynamic_smem_size current_graph_exec
";

/// The spelling of each name of a module.
pub(super) struct Names {
    locals: Vec<String>,
    buffers: Vec<String>,
    workgroup: Vec<String>,
    private: Vec<String>,
    uniforms: Vec<String>,
    fields: Vec<Vec<String>>,
}

impl Names {
    pub(super) fn of(module: &Module) -> Names {
        let mut used: BTreeSet<String> = RESERVED.split_whitespace().map(str::to_owned).collect();
        let mut pick = |name: &str| {
            let mut name = name.to_owned();
            while is_temporary(&name) || !used.insert(name.clone()) {
                name.push_str(if name.ends_with('_') { "x" } else { "_" });
            }
            name
        };
        Names {
            buffers: module.buffers.values().map(|b| pick(&b.name)).collect(),
            uniforms: module.uniforms.values().map(|u| pick(&u.name)).collect(),
            workgroup: module.workgroup.values().map(|a| pick(&a.name)).collect(),
            private: module.private.values().map(|a| pick(&a.name)).collect(),
            fields: module.uniforms.values().map(|u| u.fields.iter().map(|f| pick(&f.name)).collect()).collect(),
            locals: module.locals.values().map(|l| pick(&l.name)).collect(),
        }
    }

    /// The symbol of an array in memory.
    pub(super) fn array(&self, array: ArrayRef) -> &str {
        match array {
            ArrayRef::Buffer(h) => &self.buffers[h.index()],
            ArrayRef::Workgroup(h) => &self.workgroup[h.index()],
            ArrayRef::Private(h) => &self.private[h.index()],
        }
    }

    /// The register that holds the address of an array.
    pub(super) fn address(&self, array: ArrayRef) -> String {
        format!("%{}", self.array(array))
    }

    /// The symbol of a uniform block.
    pub(super) fn uniform(&self, block: Handle<UniformBlock>) -> &str {
        &self.uniforms[block.index()]
    }

    /// The register of a member of a uniform block.
    pub(super) fn field(&self, block: Handle<UniformBlock>, field: u32) -> Option<String> {
        self.fields[block.index()].get(field as usize).map(|n| format!("%{n}"))
    }

    /// The bare name of a local, for labels.
    pub(super) fn bare(&self, local: Handle<Local>) -> &str {
        &self.locals[local.index()]
    }

    /// The registers of a local of that type.
    pub(super) fn local(&self, local: Handle<Local>, ty: Type) -> Vec<String> {
        lanes(&self.locals[local.index()], ty)
    }

    /// The registers of an element of a private array.
    pub(super) fn element(&self, array: Handle<Array>, ty: Type, at: u32) -> Vec<String> {
        lanes(&format!("{}${at}", self.private[array.index()]), ty)
    }
}

fn lanes(name: &str, ty: Type) -> Vec<String> {
    match ty.lanes() {
        1 => vec![format!("%{name}")],
        n => ["x", "y", "z", "w"].iter().take(n as usize).map(|lane| format!("%{name}${lane}")).collect(),
    }
}

/// Whether a name has the form of a numbered register.
fn is_temporary(name: &str) -> bool {
    let digits = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let letters = &name[..name.len() - digits.len()];
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && ["p", "h", "f", "r", "rd"].contains(&letters)
}
