//! [`KernelSpec`]: the full meaning of one fused kernel, with symbolic shapes and no target in it. Templates turn it
//! into kernel IR, the CPU backend executes it natively, and the artifact carries it.
//!
//! # Iteration
//! A kernel iterates over `domain`; axis k is [`Sym::Axis`](crate::dim::Sym::Axis)`(k)`. What the axes mean depends on
//! the anchor:
//!
//! | anchor | domain | further axes |
//! |---|---|---|
//! | [`Anchor::Map`] | any | – |
//! | [`Anchor::Row`] | rows…, and last the reduced axis | – |
//! | [`Anchor::MatMul`] | batch…, M, N | K is axis `domain.len()` |
//! | [`Anchor::Chain`] | M, N | the inner axis is axis `domain.len()`, K the one behind it |
//! | [`Anchor::ConvChain`] | batch, rows, columns, channels | [`ConvChain`] names them |
//! | [`Anchor::Attention`] | B, H, S, D of the output | head element of q and k is axis 4, key position axis 5 |
//!
//! # Order of evaluation
//! Statistics in order, then accumulators, then every store at every coordinate of the domain (a store whose `per_row`
//! is set: once a row, before no other element of that row). A store reads nothing another store of the same kernel
//! writes, but for arguments named in `aliases`.

mod conv_chain;
mod expr;
mod partials;
mod precision;
mod verify;

pub use conv_chain::{ConvChain, Window};
pub use expr::{ArgId, BinaryOp, Expr, ExprId, Exprs, Literal, UnaryOp};
pub use partials::{FEW_PARTIAL_COLUMNS, MOST_COUNTED, PARTIAL_COLUMNS, PartialKind, Partials};
pub use precision::{MatmulPrecision, split_bf16, to_bf16};
pub use verify::SpecError;

use crate::dim::Dim;
use crate::dtype::{HalfFormat, Storage};
use crate::target::Tier;
use serde::{Deserialize, Serialize};

/// Where an argument lives; decides how targets bind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Float activations: one arena, bound once, read and written.
    Arena,
    /// Integer and truth values (token ids, positions, masks): one arena of their own.
    Ints,
    /// A matrix in a buffer of its own, read only.
    Weight,
    /// Small float constants (gains, biases, rotary tables): one read-only buffer for the model.
    Side,
    /// The key/value cache slot of that local number; a slot's keys and values share one buffer.
    Kv(u8),
}

/// An argument: a tensor seen as a run of elements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arg {
    /// Readable name, unique in the kernel, an identifier.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// How elements lie in memory.
    pub storage: Storage,
    /// Elements it holds.
    pub len: Dim,
    /// Whether the kernel writes it.
    pub written: bool,
    /// The 16-bit format that all who read this value round it to, in this kernel and in others: a target may keep it so,
    /// see [`Arg::is_half`]. Activations only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounded: Option<HalfFormat>,
}

impl Arg {
    /// Whether a device of `tier` keeps the elements in 16 bits, in a binding of their own that begins where the argument
    /// does.
    pub fn is_half(&self, tier: Tier) -> bool {
        tier == Tier::Cuda && self.rounded.is_some()
    }
    /// Whether the argument has a binding of its own on a device of `tier`; others share one with all of their space.
    pub fn is_bound_alone(&self, tier: Tier) -> bool {
        self.space == Space::Weight || self.is_half(tier)
    }
}

/// How rows are reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceOp {
    /// Σ, from 0.
    Sum,
    /// Largest, from −3.0e38.
    Max,
    /// Smallest, from 3.0e38.
    Min,
    /// Π, from 1.
    Prod,
    /// Position of the first largest (I32).
    ArgMax,
}

/// A row statistic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    /// The reduction.
    pub op: ReduceOp,
    /// What is reduced, over row axes and the reduced axis; may use earlier statistics.
    pub value: ExprId,
    /// The finished statistic as an expression of `Stat(self)` (the raw result) and earlier ones; `None`: the raw one.
    pub finish: Option<ExprId>,
}

/// The operation a kernel is built around.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// Pointwise: nothing but the stores.
    Map,
    /// Reductions along the last axis, then stores that may use [`Expr::Stat`].
    Row {
        /// In order; each may use the ones before.
        stats: Vec<Stat>,
    },
    /// `Acc(j)[…, m, n] = Σ_k lhs[…, m, k] · rhs[j][…, n, k]` in F32.
    MatMul {
        /// Extent of the summed axis.
        k: Dim,
        /// Over batch, m and k; may use [`Expr::Stat`] of `lhs_stats`.
        lhs: ExprId,
        /// Statistics of the rows of the left side (a norm as prologue), reduced over k. Stores may use them as well (a norm
        /// that was commuted through the product).
        lhs_stats: Vec<Stat>,
        /// One per accumulator, over batch, n and k.
        rhs: Vec<ExprId>,
    },
    /// Scaled dot-product attention with an online softmax; `Acc(0)[b, h, s, d]`.
    Attention(Box<Attention>),
    /// Two products in a row; `Acc(0)[…, m, n]`.
    Chain(Box<Chain>),
    /// Two convolutions in a row; `Acc(0)[b, r, s, n]`.
    ConvChain(Box<ConvChain>),
}

/// `Acc(0)[…, m, n] = Σ_i middle[…, m, i] · down[n, i]`, the middle being a function of
/// `Acc(j)[…, m, i] = Σ_k lhs[…, m, k] · up[j][i, k]`, in F32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// Extent of the first summed axis.
    pub k: Dim,
    /// Extent of the second one.
    pub inner: Dim,
    /// Over rows and k; may use [`Expr::Stat`] of `lhs_stats`.
    pub lhs: ExprId,
    /// Statistics of the rows of the left side (a norm as prologue), reduced over k.
    pub lhs_stats: Vec<Stat>,
    /// One per accumulator of the first product, over i and k.
    pub up: Vec<ExprId>,
    /// Over rows and i, of the accumulators of the first product.
    pub middle: ExprId,
    /// Over n and i.
    pub down: ExprId,
}

/// The parts of an attention kernel. Axes: 0 batch, 1 query head, 2 query position, 3 element of v, 4 element of q and
/// k, 5 key position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Over axes 0, 1, 2, 4.
    pub q: ExprId,
    /// Over axes 0, 1, 5, 4. Grouped heads are in the index: query head h reads `div(i1, group)`.
    pub k: ExprId,
    /// Over axes 0, 1, 5, 3.
    pub v: ExprId,
    /// Query heads that share a key head.
    pub group: u64,
    /// Elements of a query or key head.
    pub head_dim: u64,
    /// Elements of a value head.
    pub value_dim: u64,
    /// Keys.
    pub kv_len: Dim,
    /// With causal masking: key t is visible to query s iff `t ≤ s + offset`.
    pub causal_offset: Option<Dim>,
    /// With a window w: key t is visible to query s iff `t > s + offset − w` (offset 0 without `causal_offset`).
    pub window: Option<u64>,
    /// Bool over axes 0, 1, 2, 5: visible where true.
    pub mask: Option<ExprId>,
    /// F32 over axes 0, 1, 2, 5: added to the scaled score.
    pub bias: Option<ExprId>,
    /// Factor on the scores.
    pub scale: f32,
    /// Scores become `c·tanh(score/c)`.
    pub softcap: Option<f32>,
    /// The keys are taken in parts. Axis 0 counts batch and part, the part fastest: `Acc(0)` is the sum of the part's values
    /// weighted by `exp(score − Stat(0))`, `Stat(0)` its largest score (−1.0e30 where it shows no key) and `Stat(1)` the sum
    /// of those weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<KeyParts>,
}

/// Which keys belong to which part: part c has the keys `[first + c·len, first + (c + 1)·len)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyParts {
    /// How many.
    pub count: u64,
    /// The first key that any query sees.
    pub first: Dim,
    /// Keys of a part, a multiple of [`KeyParts::STEP`]. The last parts may have none.
    pub len: Dim,
}

impl KeyParts {
    /// Parts have a multiple of so many keys: a block of the schedules.
    pub const STEP: u64 = 64;
    /// The keys that `queries` rows see, in `count` parts of equal length; `offset` and `window` as [`Attention`] has them.
    pub fn of(count: u64, queries: &Dim, keys: &Dim, offset: Option<&Dim>, window: Option<u64>) -> KeyParts {
        let end = offset.map_or_else(|| keys.clone(), |o| keys.smaller(&(queries.clone() + o.clone())));
        let here = offset.cloned().unwrap_or_default() + Dim::one();
        let first = window.map_or_else(Dim::zero, |w| (here - Dim::from(w)).larger(&Dim::zero()));
        let each = (end - first.clone()).ceil_div(&Dim::from(count.max(1)));
        let step = Dim::from(KeyParts::STEP);
        KeyParts { count, len: each.ceil_div(&step) * step, first }
    }
}

/// A write of the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// Which argument.
    pub arg: ArgId,
    /// Linear element index.
    pub index: Dim,
    /// What is written.
    pub value: ExprId,
    /// Only where this axis lies in `[lo, hi)`.
    pub when: Option<AxisRange>,
    /// Row anchors: once a row; neither index nor value depends on the last axis.
    pub per_row: bool,
}

/// A value along the rows of a matmul's left side, written once for every element, over batch, m and k. What is computed
/// in front of the matmul reaches its other readers so: normalised rows, or the sum that is normalised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftStore {
    /// Which argument; nothing in the kernel reads it.
    pub arg: ArgId,
    /// Linear element index, free of the axis n.
    pub index: Dim,
    /// What is written: the left side itself, or what it is made of. May use [`Expr::Stat`] of the left side's statistics.
    pub value: ExprId,
}

/// Statistics of a matmul's result over runs of its columns, each of which one workgroup has whole: what a norm of each head
/// behind a projection needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColumnStats {
    /// Columns of a run. The last axis of the domain has a whole number of runs.
    pub width: u64,
    /// Functions of the accumulators of a column and of the statistics in front. [`Expr::Stat`] counts them behind those of
    /// the left side.
    pub stats: Vec<Stat>,
}

impl ColumnStats {
    /// Most columns of a run.
    pub const WIDEST: u64 = 256;
}

/// A half-open range of an axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AxisRange {
    /// The axis.
    pub axis: u8,
    /// First coordinate.
    pub lo: Dim,
    /// One past the last.
    pub hi: Dim,
}

/// How an output may share storage with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AliasKind {
    /// Each element is read only by the invocation that writes it, before it does.
    SameElement,
    /// One workgroup owns the row, and a barrier lies between its last read and its first write.
    SameRow,
}

/// A permitted sharing of storage; pairs not listed must not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The written argument.
    pub output: ArgId,
    /// The read argument.
    pub input: ArgId,
    /// Under which contract.
    pub kind: AliasKind,
}

/// Most rows that are few: each of them is multiplied with a weight by itself.
pub const FEW_ROWS: u64 = 4;

/// Rows at which a decision is priced, and a product scheduled, where nothing says how many there are.
pub const MANY_ROWS: u64 = 512;

/// A dynamic size a kernel reads, and its place in the session's table of sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeSlot {
    /// The symbol.
    pub name: String,
    /// Its index in the table.
    pub index: u8,
}

/// The full meaning of one fused kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSpec {
    /// Readable name from anchor and operations, without layer numbers; the entry point's name.
    pub name: String,
    /// Extents of the axes.
    pub domain: Vec<Dim>,
    /// The operation it is built around.
    pub anchor: Anchor,
    /// Whether it is scheduled for few rows: a product for about [`FEW_ROWS`], another kernel for those of so many tokens.
    /// Results are right for any number.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub few_rows: bool,
    /// Tensors it reads and writes.
    pub args: Vec<Arg>,
    /// All expressions.
    pub exprs: Exprs,
    /// All writes of results.
    pub stores: Vec<Store>,
    /// Matmuls: what of the left side's making is wanted elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<LeftStore>,
    /// Matmuls: the extent of the axis k while statistics of the left side are reduced, where it is not k: they are joined
    /// from those of tiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_over: Option<Dim>,
    /// Matmuls of few rows: statistics that the results of a run of columns are functions of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<ColumnStats>,
    /// Matmuls: statistics of a result, by tiles of its columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partials: Option<Partials>,
    /// Matmuls: how exactly they multiply.
    #[serde(default, skip_serializing_if = "MatmulPrecision::is_auto")]
    pub precision: MatmulPrecision,
    /// Which outputs may reuse which inputs' storage.
    pub aliases: Vec<Alias>,
    /// Dynamic sizes that occur anywhere in this kernel.
    pub sizes: Vec<SizeSlot>,
}

impl KernelSpec {
    /// The argument of an id.
    pub fn arg(&self, id: ArgId) -> Option<&Arg> {
        self.args.get(id.0 as usize)
    }
    /// Statistics of the rows that the anchor reduces; [`Expr::Stat`] counts those of columns behind them.
    pub fn row_stats(&self) -> &[Stat] {
        match &self.anchor {
            Anchor::Row { stats } => stats,
            Anchor::MatMul { lhs_stats, .. } => lhs_stats,
            Anchor::Chain(c) => &c.lhs_stats,
            Anchor::Map | Anchor::ConvChain(_) | Anchor::Attention(_) => &[],
        }
    }
    /// Statistics of runs of columns.
    pub fn column_stats(&self) -> &[Stat] {
        self.columns.as_ref().map_or(&[], |c| &c.stats)
    }
    /// Whether row statistics are used in what is stored.
    pub fn stores_statistics(&self) -> bool {
        let rows = self.row_stats().len();
        let partial = self.partials.iter().map(|p| p.value);
        let results: Vec<ExprId> = self.stores.iter().map(|s| s.value).chain(partial).collect();
        self.exprs
            .reachable(&results)
            .into_iter()
            .any(|e| matches!(self.exprs.get(e), Expr::Stat(j) if (*j as usize) < rows))
    }
    /// The axis that a matmul, or the first product of a chain, sums over.
    pub fn k_axis(&self) -> usize {
        self.domain.len() + usize::from(matches!(self.anchor, Anchor::Chain(_)))
    }
    /// Storage bindings a target needs: the arenas, the side buffer and each slot count once, each weight once.
    pub fn bindings(&self) -> usize {
        let mut spaces: Vec<Space> = Vec::new();
        for a in &self.args {
            if a.space == Space::Weight || !spaces.contains(&a.space) {
                spaces.push(a.space);
            }
        }
        spaces.len()
    }
    /// Identity of the kernel: a hash of everything it says.
    pub fn hash(&self) -> blake3::Hash {
        blake3::hash(&serde_json::to_vec(self).unwrap_or_default())
    }
    /// Checks types, ids, axes and the statement of sizes.
    ///
    /// # Errors
    /// The first [`SpecError`].
    pub fn verify(&self) -> Result<(), SpecError> {
        verify::verify(self)
    }
}
