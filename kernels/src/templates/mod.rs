//! Templates: from what a kernel computes to kernel IR and its text.
//!
//! Enters: a verified [`KernelSpec`] and the [`Capabilities`] of a target. Leaves: a [`Rendered`] kernel with its
//! schedule and grid. Which kernels exist, and what is fused into them, is not decided here.
//!
//! | anchor | template |
//! |---|---|
//! | [`Anchor::Map`] | `map` |
//! | [`Anchor::Row`] | `row` |
//! | [`Anchor::MatMul`] | `gemv` where results depend on statistics of columns, else `lanes` on CPU drivers where it covers the kernel, else `gemv` where [`uses_gemv`] says so, else `gemm`, which on GPUs with matrix units is `gemm_warpgroup` or `gemm_matrix` where they cover the kernel |
//! | [`Anchor::Chain`] | `chain` |
//! | [`Anchor::ConvChain`] | `conv_chain` |
//! | [`Anchor::Attention`] | `attention_tile`, on CPU drivers `attention_lanes`, on NVIDIA cards `attention_matrix` for many rows and `attention_warp` for one |
//!
//! Every template binds its buffers through [`KernelCtx`], so that all kernels follow one convention: storage buffers
//! in order of first occurrence of their space in `spec.args`, then the uniform `record` (the element offset of each
//! argument in its binding), then the uniform `sizes` (the table of dynamic sizes).

mod attention;
mod attention_lanes;
mod attention_matrix;
mod attention_tile;
mod attention_warp;
pub mod chain;
mod common;
pub mod conv_chain;
mod fragments;
mod gemm;
mod gemm_matrix;
mod gemm_warpgroup;
mod gemv;
mod gemv_warp;
mod lanes;
mod left_row;
mod load;
mod lower_expr;
mod map;
mod partials;
mod parts;
mod precision;
mod product;
mod reduce;
mod row;
mod stats;
mod stores;
mod super_blocks;
mod warp_row;

pub use common::{KernelCtx, Scope, dispatch};
pub use load::View;
pub use partials::writes_partials;
pub use parts::{Part, Quad};

use crate::dim::{Dim, Sym};
use crate::dtype::{HalfFormat, Storage};
use crate::emit::{Language, ptx};
use crate::ir;
use crate::spec::{Anchor, ArgId, Expr, ExprId, FEW_ROWS, KernelSpec};
use crate::target::{Architecture, Capabilities, Tier};

/// A kernel in the form a target runs.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// Name of the template.
    pub template: &'static str,
    /// Invocations per workgroup dimension.
    pub workgroup: [u32; 3],
    /// Tile sizes and factors by name.
    pub tile: Vec<(String, u32)>,
    /// Workgroups per dimension, over the sizes of a launch.
    pub grid: [Dim; 3],
    /// The kernel.
    pub module: ir::Module,
    /// The language of `text`.
    pub language: Language,
    /// The kernel in the target's language, entry point `main`.
    pub text: String,
    /// Arguments that are bound as tensor maps of these matrices.
    pub matrices: Vec<(ArgId, ir::TileMap)>,
}

impl Rendered {
    /// Workgroup memory that a launch must ask for, in bytes; 0 where the text declares it all.
    pub fn dynamic_shared_bytes(&self) -> u64 {
        match self.language {
            Language::Wgsl => 0,
            Language::Ptx => ptx::dynamic_shared_bytes(&self.module),
        }
    }
}

/// Why a kernel has no rendering.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A kernel that no template covers.
    #[error("kernel `{kernel}`: {reason}")]
    Unsupported {
        /// The kernel's name.
        kernel: String,
        /// What is not covered.
        reason: String,
    },
    /// A workgroup with more invocations than the target has.
    #[error("kernel `{kernel}`: {used} invocations of a workgroup, {limit} allowed")]
    Invocations {
        /// The kernel's name.
        kernel: String,
        /// Those of the template's workgroup.
        used: u64,
        /// Those that the target allows.
        limit: u64,
    },
    /// A template built something invalid.
    #[error(transparent)]
    Ir(#[from] ir::Error),
    /// The text could not be written.
    #[error("kernel `{kernel}`: {reason}")]
    Emit {
        /// The kernel's name.
        kernel: String,
        /// What the emitter said.
        reason: String,
    },
}

impl TemplateError {
    /// A kernel that no template covers.
    pub fn unsupported(spec: &KernelSpec, reason: impl Into<String>) -> Self {
        TemplateError::Unsupported { kernel: spec.name.clone(), reason: reason.into() }
    }
}

/// The options under which kernels are emitted as PTX: the table of sizes lies in device memory, so that a captured launch
/// follows it, and every argument begins at a multiple of four elements of its buffer.
pub fn ptx_options() -> ptx::Options {
    ptx::Options { header: Vec::new(), by_address: vec!["sizes".into()], multiples: vec![("record".into(), 4)] }
}

/// Renders a kernel for a target.
///
/// # Errors
/// [`TemplateError`] for a kernel beyond what the templates cover, or beyond the limits of the target.
pub fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    match &spec.anchor {
        Anchor::Map => map::render(spec, caps),
        Anchor::Row { .. } => row::render(spec, caps),
        Anchor::MatMul { .. } => matmul(spec, caps),
        Anchor::Attention(_) => attention::render(spec, caps),
        Anchor::Chain(c) => chain::render(spec, caps, c),
        Anchor::ConvChain(c) => conv_chain::render(spec, caps, c),
    }
}

/// Why [`render`] has nothing for warpgroups that work apart, of a kernel that runs on GPUs which have them; `None` where
/// it has.
pub fn warpgroup_refusal(spec: &KernelSpec) -> Option<&'static str> {
    match &spec.anchor {
        Anchor::MatMul { .. } if uses_gemv(spec) => Some("there are few rows"),
        Anchor::MatMul { .. } => match product::Problem::new(spec) {
            Ok(problem) => gemm_warpgroup::plan(&problem).err(),
            Err(_) => Some("it is no product of matrices"),
        },
        Anchor::Attention(_) => Some("attention runs on the matrix units of every GPU"),
        _ => Some("it is no product of matrices"),
    }
}

/// The 16-bit format to which a kernel rounds an argument on every NVIDIA GPU, and reads it for nothing else: the left side
/// of a product on matrix units, as it is.
pub fn rounds(spec: &KernelSpec, arg: ArgId) -> Option<HalfFormat> {
    let Anchor::MatMul { lhs, lhs_stats, rhs, .. } = &spec.anchor else { return None };
    let reads = |e: ExprId| matches!(spec.exprs.get(e), Expr::Load { arg: a, .. } if *a == arg);
    if !reads(*lhs) || spec.columns.is_some() || uses_gemv(spec) || !spec.precision.is_auto() {
        return None;
    }
    let stored = spec.stores.iter().map(|s| s.value).chain(spec.left.iter().map(|l| l.value));
    let reduced = lhs_stats.iter().flat_map(|s| [Some(s.value), s.finish]).flatten();
    let partial = spec.partials.iter().map(|p| p.value);
    let others: Vec<ExprId> = stored.chain(reduced).chain(partial).chain(rhs.iter().copied()).collect();
    if spec.exprs.reachable(&others).into_iter().any(reads) {
        return None;
    }
    gemm_matrix::format_of(&product::Problem::new(spec).ok()?)
}

/// Columns from which on products of warpgroups are faster: narrower ones have too few tiles for a large GPU.
const WARPGROUP_COLUMNS: i64 = 641;

/// Whether a text for this target is worth having beside the one for older devices, as measured (`benches/results`):
/// launches overlap where each does little, and warpgroups serve wide products.
pub fn pays(spec: &KernelSpec, caps: &Capabilities) -> bool {
    let columns = || spec.domain.last().and_then(|n| n.as_const());
    match caps.architecture {
        Some(Architecture::Sm90) => does_little(spec),
        Some(Architecture::Sm90a) => columns().is_none_or(|n| n >= WARPGROUP_COLUMNS),
        Some(Architecture::Sm80) | None => true,
    }
}

/// Whether a launch is for one token of each sequence: apart from sequences, its rows are no more than the heads of one.
fn does_little(spec: &KernelSpec) -> bool {
    const HEADS: i64 = 64;
    let is_few = |d: &Dim| d.as_const().map_or(spec.few_rows, |n| n <= HEADS);
    let axes = spec.domain.len().saturating_sub(1);
    match spec.anchor {
        Anchor::Attention(_) => spec.domain.get(2).is_some_and(|rows| rows.is(1)),
        _ => spec.domain.iter().take(axes).all(is_few),
    }
}

fn matmul(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    if spec.columns.is_some() {
        return gemv::render(spec, caps);
    }
    if caps.tier == Tier::Cpu
        && let Some(rendered) = lanes::render(spec, caps)?
    {
        return Ok(rendered);
    }
    if uses_gemv(spec) { gemv::render(spec, caps) } else { gemm::render(spec, caps) }
}

/// Whether a matmul is rendered as matrix-vector products.
///
/// True iff every right side is a load with k-contiguous rows, and the kernel is made for few rows or has a constant number
/// of at most [`FEW_ROWS`].
pub fn uses_gemv(spec: &KernelSpec) -> bool {
    let (Anchor::MatMul { rhs, .. }, Ok(problem)) = (&spec.anchor, product::Problem::new(spec)) else { return false };
    let number = problem.rows().as_const().and_then(|n| u64::try_from(n).ok());
    let few = spec.few_rows || number.is_some_and(|n| n <= FEW_ROWS);
    few && rhs.iter().all(|r| contiguous_rows(spec, *r, spec.k_axis()).is_some())
}

/// Columns of each accumulator that a workgroup computes: what precedes a product is computed again for every such tile.
/// `columns` are those of an accumulator, all of them.
pub fn column_tile(tier: Tier, few_rows: bool, sides: usize, is_quantised: bool, columns: u64) -> u64 {
    let all = u32::try_from(columns).unwrap_or(u32::MAX);
    u64::from(match tier {
        Tier::Cpu => lanes::columns_of_group(few_rows, sides as u32, is_quantised, all),
        Tier::Gpu | Tier::Cuda if few_rows => gemv::COLUMNS,
        Tier::Gpu | Tier::Cuda => gemm::staged_columns(sides),
    })
}

/// The argument and row start of a load whose index is `row + axis`, with `row` free of the axis. Quantised rows must
/// start on a block.
pub(crate) fn contiguous_rows(spec: &KernelSpec, e: ExprId, axis: usize) -> Option<(crate::spec::ArgId, Dim)> {
    let Expr::Load { arg, index } = spec.exprs.get(e) else { return None };
    let (step, row) = index.linear_in(&Sym::Axis(axis as u8))?;
    let named_below = index.symbols().iter().any(|s| match s {
        Sym::Value(v) => depends_on_axis(spec, ExprId(*v), axis),
        _ => false,
    });
    let storage: Storage = spec.arg(*arg)?.storage;
    let aligned = !storage.is_quantised() || multiple_of(&row, storage.block_elems());
    (step.is(1) && !named_below && aligned).then_some((*arg, row))
}

/// Whether every coefficient of `d` is a multiple of `n`.
pub(crate) fn multiple_of(d: &Dim, n: u64) -> bool {
    i64::try_from(n).is_ok_and(|n| n > 0 && d.terms().all(|(_, c)| c % n == 0))
}

/// Whether an expression depends on an axis.
pub(crate) fn depends_on_axis(spec: &KernelSpec, e: ExprId, axis: usize) -> bool {
    let sym = Sym::Axis(axis as u8);
    spec.exprs.reachable(&[e]).into_iter().any(|x| match spec.exprs.get(x) {
        Expr::Load { index, .. } => index.mentions(&sym),
        Expr::Coord(d) => d.mentions(&sym),
        _ => false,
    })
}
