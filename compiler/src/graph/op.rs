//! The closed set of operations. Fusion adds none: a fused kernel is a region of these.

use super::{KvSlotId, StateId, WeightId, control::Control};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal, ReduceOp, UnaryOp};
use frit_plan::KvPart;

/// A float attribute, compared by its bits.
#[derive(Clone, Copy, Debug)]
pub struct Float(pub f32);

impl PartialEq for Float {
    fn eq(&self, o: &Self) -> bool {
        self.0.to_bits() == o.0.to_bits()
    }
}
impl Eq for Float {}
impl std::hash::Hash for Float {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        self.0.to_bits().hash(h);
    }
}

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `x / √(mean(x²) + ε)`.
    Rms,
    /// `(x − mean) / √(mean((x − mean)²) + ε)`.
    Layer,
}

/// Which elements a rotary embedding pairs inside the first `rotary_dim` elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// d with d + rotary_dim/2.
    Half,
    /// 2d with 2d + 1.
    Interleaved,
}

/// Attributes of scaled dot-product attention.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionAttrs {
    /// Factor on the scores.
    pub scale: Float,
    /// Causal masking: key t is visible to query s iff `t ≤ s + offset`.
    pub causal: Option<Dim>,
    /// Sliding window w: key t is visible to query s iff `t > s + offset − w`.
    pub window: Option<u64>,
    /// Scores become `c·tanh(score/c)`.
    pub softcap: Option<Float>,
    /// A Bool operand follows v: visible where true, broadcastable to `[B, H, S, T]`.
    pub has_mask: bool,
    /// An F32 operand follows (after the mask): added to the scaled scores, broadcastable to `[B, H, S, T]`.
    pub has_bias: bool,
}

/// An operation with one result. Operands are edges; their meaning by port is given here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A tensor from the host. No operands.
    Input(String),
    /// A persistent state as it was when the program began. No operands.
    State(StateId),
    /// A constant tensor. No operands.
    Weight(WeightId),
    /// A scalar. No operands.
    Const(Literal),
    /// I32: the coordinate along `axis` plus `offset`, of the node's shape. No operands.
    Iota {
        /// The axis counted.
        axis: usize,
        /// Added to the coordinate.
        offset: Dim,
    },
    /// f(a).
    Unary(UnaryOp),
    /// f(a, b); shapes broadcast from the right.
    Binary(BinaryOp),
    /// (cond, t, f); shapes broadcast from the right.
    Select,
    /// Value conversion.
    Cast(Scalar),
    /// Same elements in row-major order, other extents.
    Reshape(Vec<Dim>),
    /// Axis k of the result is axis `perm[k]` of the operand.
    Transpose(Vec<usize>),
    /// Axes of extent 1, or missing on the left, repeat.
    Broadcast(Vec<Dim>),
    /// `len` elements of `axis` from `start`.
    Slice {
        /// The axis cut.
        axis: usize,
        /// First element.
        start: Dim,
        /// Number of elements.
        len: Dim,
    },
    /// Operands one behind the other along `axis`.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// (table `[N, …rest]`, indices I32): `[…indices, …rest]`. Indices are clamped to `[0, N)`.
    Gather,
    /// Reduction over `axes` (ascending).
    Reduce {
        /// The function; [`ReduceOp::ArgMax`] takes one axis and gives I32.
        op: ReduceOp,
        /// Reduced axes.
        axes: Vec<usize>,
        /// Keep them with extent 1.
        keep: bool,
    },
    /// (a `[…, M, K]`, b `[…, K, N]`, or `[…, N, K]` when `b_transposed`); leading axes broadcast.
    MatMul {
        /// b is `[…, N, K]`.
        b_transposed: bool,
    },
    /// Softmax over the last axis. Raised.
    Softmax,
    /// (x, gain?, bias?) over the last axis; gain and bias have its extent. Raised.
    Norm {
        /// Which.
        kind: NormKind,
        /// Added to the mean square.
        eps: Float,
        /// Operand 1 is the gain.
        has_gain: bool,
        /// The last operand is the bias.
        has_bias: bool,
    },
    /// (x `[B, H, S, D]`, cos `[T, R/2]`, sin `[T, R/2]`, positions I32 `[B, S]`): rotates the pairs of the first R
    /// elements of each head by the angle of its position; positions are clamped to the table. Raised.
    Rope {
        /// Which elements pair up.
        style: RopeStyle,
        /// R.
        rotary_dim: u64,
    },
    /// (x `[B, H, S, D]`): writes x to the cache slot at positions p..p+S, where p is `past`, and gives the slot's
    /// contents `[B, H, p + S, D]`.
    KvAppend {
        /// The slot.
        slot: KvSlotId,
        /// Keys or values.
        part: KvPart,
        /// Positions in front of x.
        past: Dim,
    },
    /// What an earlier run left in the cache slot, of the node's shape `[B, H, T, D]`. No operands.
    KvLoad {
        /// The slot.
        slot: KvSlotId,
        /// Keys or values.
        part: KvPart,
    },
    /// The slot's contents `[B, H, P + S, D]` as another layer appended them in this run. One operand: that append.
    KvRead {
        /// The slot.
        slot: KvSlotId,
        /// Keys or values.
        part: KvPart,
    },
    /// (q `[B, H, S, D]`, k `[B, G, T, D]`, v `[B, G, T, E]`, mask?, bias?) → `[B, H, S, E]`; query head h reads key
    /// head `h / (H/G)`. A row that sees no key is 0. Raised.
    Attention(AttentionAttrs),
    /// As [`Op::Attention`], with the keys in `parts` parts → `[parts·B, H, S, E + 2]`, the part fastest of axis 0. A row holds
    /// the part's values weighted by `exp(score − m)`, then its largest score m (−1e30 where it shows no key) and the sum of
    /// the weights. Part c has the keys `[first + c·len, first + (c + 1)·len)`, as
    /// [`KeyParts`](frit_kernels::spec::KeyParts) says.
    AttentionParts {
        /// The attention.
        attrs: AttentionAttrs,
        /// How many parts.
        parts: u64,
    },
    /// (x `[parts·B, H, S, E + 2]` as [`Op::AttentionParts`] gives it): the attention `[B, H, S, E]` of all keys.
    MergeParts {
        /// How many parts.
        parts: u64,
    },
    /// A nested graph: loop, predicated region, early exit.
    Control(Box<Control>),
}

impl Op {
    /// Lower-case name used in text forms and reports.
    pub fn name(&self) -> String {
        fn snake(v: impl serde::Serialize) -> String {
            serde_json::to_value(v).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
        }
        match self {
            Op::Input(_) => "input".into(),
            Op::State(_) => "state".into(),
            Op::Weight(_) => "weight".into(),
            Op::Const(_) => "const".into(),
            Op::Iota { .. } => "iota".into(),
            Op::Unary(u) => snake(u),
            Op::Binary(b) => snake(b),
            Op::Select => "select".into(),
            Op::Cast(s) => format!("cast_{s}"),
            Op::Reshape(_) => "reshape".into(),
            Op::Transpose(_) => "transpose".into(),
            Op::Broadcast(_) => "broadcast".into(),
            Op::Slice { .. } => "slice".into(),
            Op::Concat { .. } => "concat".into(),
            Op::Gather => "gather".into(),
            Op::Reduce { op, .. } => format!("reduce_{}", snake(op)),
            Op::MatMul { .. } => "matmul".into(),
            Op::Softmax => "softmax".into(),
            Op::Norm { kind: NormKind::Rms, .. } => "rms_norm".into(),
            Op::Norm { kind: NormKind::Layer, .. } => "layer_norm".into(),
            Op::Rope { .. } => "rope".into(),
            Op::KvAppend { .. } => "kv_append".into(),
            Op::KvLoad { .. } => "kv_load".into(),
            Op::KvRead { .. } => "kv_read".into(),
            Op::Attention(_) => "attention".into(),
            Op::AttentionParts { .. } => "attention_parts".into(),
            Op::MergeParts { .. } => "merge_parts".into(),
            Op::Control(_) => "control".into(),
        }
    }
    /// The attributes of an attention, and in how many parts it takes its keys where it does.
    pub fn attention(&self) -> Option<(&AttentionAttrs, Option<u64>)> {
        match self {
            Op::Attention(attrs) => Some((attrs, None)),
            Op::AttentionParts { attrs, parts } => Some((attrs, Some(*parts))),
            _ => None,
        }
    }
    /// Whether it only names data and computes nothing.
    pub fn is_source(&self) -> bool {
        matches!(self, Op::Input(_) | Op::State(_) | Op::Weight(_) | Op::Const(_) | Op::Iota { .. } | Op::KvLoad { .. })
    }
    /// Whether it only renames elements.
    pub fn is_view(&self) -> bool {
        matches!(self, Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. })
    }
    /// Whether it changes something beside its result.
    pub fn has_effect(&self) -> bool {
        matches!(self, Op::KvAppend { .. } | Op::Control(_))
    }
}
