//! Cache slots that two neighbouring layers share: for each token and head one direction of the keys, one of the values,
//! and the lengths that either layer's had (MiniCache, arXiv 2405.14366).

use super::attention::Attention;
use super::retained::{self, Retained};
use crate::graph::{KvSlotId, ValueId};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::policy::KvMerge;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::KvPart;

/// The slots of a pair of layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merged {
    /// Directions: `[B, G, C, D]` of keys and of values.
    directions: KvSlotId,
    /// Lengths of keys, of values: `[B, G, C, 1]` of the first layer as keys, of the second as values.
    lengths: [KvSlotId; 2],
    /// Whether the layer is the second of its pair.
    pub is_second: bool,
    heads: u64,
    dims: [u64; 2],
    retained: Option<Retained>,
}

/// Directions closer than this are joined by a straight line: an arc between them has no plane.
const PARALLEL: f32 = 0.9995;

/// `arccos x = √(1 − x) · Σ cᵢ xⁱ` for x from 0 to 1, within 1e-7 (Abramowitz and Stegun, 4.4.46).
const ARCCOS: [f32; 8] = [
    std::f32::consts::FRAC_PI_2,
    -0.214_598_8,
    0.088_978_99,
    -0.050_174_305,
    0.030_891_88,
    -0.017_088_126,
    0.006_670_09,
    -0.001_262_491_1,
];

impl Merged {
    /// Declares the slots of layers `first` and `first + 1`; the attention is that of either. The first layer's side.
    pub fn declare(m: &mut ModelBuilder, first: usize, a: &Attention, merge: &KvMerge) -> Merged {
        let name = |what: &str| format!("layers{first}+{}.{what}", first + 1);
        let mut slot = |what, k, v| m.kv_slot(&name(what), a.kv_heads, k, v);
        Merged {
            directions: slot("directions", a.head_dim, a.value_dim),
            lengths: [slot("lengths.k", 1, 1), slot("lengths.v", 1, 1)],
            is_second: false,
            heads: a.kv_heads,
            dims: [a.head_dim, a.value_dim],
            retained: Retained::declare(m, first, merge, a.kv_heads, [a.head_dim, a.value_dim]),
        }
    }
    /// The side of the second layer.
    pub fn second(self) -> Merged {
        Merged { is_second: true, ..self }
    }

    /// Keys or values `[B, G, P + S, D]`: those before this run as the slot gives them back, those of this run as they
    /// are.
    pub fn whole(&self, b: &mut GraphBuilder<'_>, part: KvPart, new: ValueId) -> ValueId {
        let [k, v] = self.lengths;
        let (lengths, dim) = if part == KvPart::K { (k, self.dims[0]) } else { (v, self.dims[1]) };
        let side = if self.is_second { KvPart::V } else { KvPart::K };
        let direction = b.kv_past(self.directions, part, self.heads, dim);
        let length = b.kv_past(lengths, side, self.heads, 1);
        let past = b.mul(direction, length);
        let past = self.retained.map_or(past, |r| r.restore(b, part, self.is_second, past));
        b.concat(&[past, new], 2)
    }

    /// Appends what both layers have for this run's tokens, `[B, G, S, D]` each; `mask` is that of the keys,
    /// `[B, 1, 1, P + S]`. Gives which tokens are retained, F32 `[B, G, S, 1]`, where some may be.
    pub fn append(
        &self,
        b: &mut GraphBuilder<'_>,
        part: KvPart,
        merge: &KvMerge,
        mask: Option<ValueId>,
        both: [ValueId; 2],
    ) -> Option<ValueId> {
        let tiny = b.f32(1e-30);
        let sides = both.map(|x| {
            let square = b.mul(x, x);
            let square = b.reduce(ReduceOp::Sum, square, &[3], true);
            let square = b.binary(BinaryOp::Max, square, tiny);
            let (length, inverse) = (b.unary(UnaryOp::Sqrt, square), b.unary(UnaryOp::Rsqrt, square));
            (b.mul(x, inverse), length)
        });
        let [(u, u_length), (v, v_length)] = sides;
        let (direction, angle) = between(b, u, v, merge.t);
        b.kv_append(self.directions, part, direction);
        let slot = if part == KvPart::K { self.lengths[0] } else { self.lengths[1] };
        b.kv_append(slot, KvPart::K, u_length);
        b.kv_append(slot, KvPart::V, v_length);
        let (retained, mask) = (self.retained?, mask?);
        let present = retained::present(b, mask);
        Some(retained.keep(b, part, merge.gamma, [angle, present], both))
    }
}

/// The point at `t` on the arc from direction `u` to `v`, `(sin((1 − t) Ω) u + sin(t Ω) v) / sin Ω`, and Ω.
fn between(b: &mut GraphBuilder<'_>, u: ValueId, v: ValueId, t: f32) -> (ValueId, ValueId) {
    let product = b.mul(u, v);
    let cosine = b.reduce(ReduceOp::Sum, product, &[3], true);
    let [low, high] = [-1.0, 1.0].map(|bound| b.f32(bound));
    let cosine = b.binary(BinaryOp::Max, cosine, low);
    let cosine = b.binary(BinaryOp::Min, cosine, high);
    let near = b.unary(UnaryOp::Abs, cosine);
    let bound = b.f32(PARALLEL);
    let is_parallel = b.binary(BinaryOp::Lt, bound, near);
    let angle = arccos(b, cosine, near);
    // Where the sine vanishes the straight line is taken.
    let sine = b.unary(UnaryOp::Sin, angle);
    let least = b.f32(1e-3);
    let sine = b.binary(BinaryOp::Max, sine, least);
    let weights = [1.0 - t, t].map(|share| {
        let share = b.f32(share);
        let part = b.mul(angle, share);
        let part = b.unary(UnaryOp::Sin, part);
        let part = b.binary(BinaryOp::Div, part, sine);
        b.select(is_parallel, share, part)
    });
    let [u, v] = [b.mul(u, weights[0]), b.mul(v, weights[1])];
    (b.add(u, v), angle)
}

/// `arccos x`; `size` is |x|. Below 0 it is `π − arccos |x|`.
fn arccos(b: &mut GraphBuilder<'_>, x: ValueId, size: ValueId) -> ValueId {
    let mut sum: Option<ValueId> = None;
    for c in ARCCOS.iter().rev() {
        let c = b.f32(*c);
        sum = Some(match sum {
            None => c,
            Some(s) => {
                let s = b.mul(s, size);
                b.add(s, c)
            }
        });
    }
    let one = b.f32(1.0);
    let rest = b.sub(one, size);
    let root = b.unary(UnaryOp::Sqrt, rest);
    let positive = sum.map_or(root, |s| b.mul(root, s));
    let pi = b.f32(std::f32::consts::PI);
    let negative = b.sub(pi, positive);
    let zero = b.f32(0.0);
    let is_below = b.binary(BinaryOp::Lt, x, zero);
    b.select(is_below, negative, positive)
}
