//! Names as WGSL spells them: those of the module, moved aside where the language reserves them.

use std::collections::BTreeSet;

use crate::ir::{ArrayRef, Handle, Local, Module, UniformBlock};

/// Keywords, reserved words, and predeclared names that the emitter uses.
const RESERVED: &str = "
alias break case const const_assert continue continuing default diagnostic discard else enable false fn for if let loop
override requires return struct switch true var while
NULL Self abstract active alignas alignof as asm asm_fragment async attribute auto await become binding_array cast catch
class co_await co_return co_yield coherent column_major common compile compile_fragment concept const_cast consteval
constexpr constinit crate debugger decltype delete demote demote_to_helper do dynamic_cast enum explicit export extends
extern external fallthrough filter final finally friend from fxgroup get goto groupshared highp impl implements import
inline instanceof interface layout lowp macro macro_rules match mediump meta mod module move mut mutable namespace new nil
noexcept noinline nointerpolation noperspective null nullptr of operator package packoffset partial pass patch
pixelfragment precise precision premerge priv protected pub public readonly ref regardless register reinterpret_cast
require resource restrict self set shared sizeof smooth snorm static static_assert static_cast std subroutine super target
template this thread_local throw trait try type typedef typeid typename typeof union unless unorm unsafe unsized use using
varying virtual volatile wgsl where with writeonly yield
array atomic bool f16 f32 i32 mat2x2 mat3x3 mat4x4 ptr sampler texture_1d texture_2d u32 vec2 vec3 vec4
abs all any bitcast ceil clamp cos dot dot4I8Packed dot4U8Packed exp exp2 floor fma inverseSqrt log log2 max min
pack2x16float pow round select sign sin sqrt storageBarrier textureLoad subgroupAdd subgroupBroadcast subgroupBroadcastFirst subgroupMax subgroupMin
subgroupShuffleXor tanh trunc unpack2x16float unpack4xI8 unpack4xU8 workgroupBarrier workgroupUniformLoad
main group_id local_id global_id local_index num_groups subgroup_lane subgroup_width erf_1 erf_2 erf_4
";

/// The spelling of each name of a module.
pub(super) struct Names {
    locals: Vec<String>,
    buffers: Vec<String>,
    workgroup: Vec<String>,
    private: Vec<String>,
    uniforms: Vec<String>,
    structs: Vec<String>,
}

impl Names {
    pub(super) fn of(module: &Module) -> Names {
        let mut used: BTreeSet<String> = RESERVED.split_whitespace().map(str::to_owned).collect();
        let mut pick = |name: &str| {
            let mut name = name.to_owned();
            while !used.insert(name.clone()) {
                name.push_str(if name.ends_with('_') { "x" } else { "_" });
            }
            name
        };
        Names {
            buffers: module.buffers.values().map(|b| pick(&b.name)).collect(),
            uniforms: module.uniforms.values().map(|u| pick(&u.name)).collect(),
            workgroup: module.workgroup.values().map(|a| pick(&a.name)).collect(),
            private: module.private.values().map(|a| pick(&a.name)).collect(),
            locals: module.locals.values().map(|l| pick(&l.name)).collect(),
            structs: module.uniforms.values().map(|u| pick(&camel_case(&u.name))).collect(),
        }
    }

    pub(super) fn array(&self, array: ArrayRef) -> &str {
        match array {
            ArrayRef::Buffer(h) => &self.buffers[h.index()],
            ArrayRef::Workgroup(h) => &self.workgroup[h.index()],
            ArrayRef::Private(h) => &self.private[h.index()],
        }
    }

    pub(super) fn local(&self, local: Handle<Local>) -> &str {
        &self.locals[local.index()]
    }

    pub(super) fn uniform(&self, block: Handle<UniformBlock>) -> &str {
        &self.uniforms[block.index()]
    }

    pub(super) fn struct_of(&self, block: Handle<UniformBlock>) -> &str {
        &self.structs[block.index()]
    }
}

/// A member name; members have a namespace of their own, so only reserved words move aside.
pub(super) fn member(name: &str) -> String {
    if RESERVED.split_whitespace().any(|word| word == name) { format!("{name}_") } else { name.to_owned() }
}

fn camel_case(name: &str) -> String {
    name.split('_')
        .map(|part| {
            let mut chars = part.chars();
            chars.next().map_or_else(String::new, |c| c.to_ascii_uppercase().to_string() + chars.as_str())
        })
        .collect()
}
