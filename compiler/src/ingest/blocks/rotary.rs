//! Rotary positions: tables of cosines and sines, fixed or dependent on the length of the sequence.

use crate::graph::{RopeStyle, ValueId, WeightId};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::rope::{Beyond, Frequencies};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, UnaryOp};
use frit_plan::RopePart;

/// Rotary positions.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    pub frequencies: Frequencies,
    pub style: RopeStyle,
}

/// The rotary tables of one graph.
#[derive(Clone, Copy)]
pub(crate) struct Rotation {
    cos: Table,
    sin: Table,
    style: RopeStyle,
    rotary_dim: u64,
}

#[derive(Clone, Copy)]
enum Table {
    Fixed(WeightId),
    /// Depends on the length of the sequence.
    Computed(ValueId),
}

impl Rotation {
    /// Rotates the heads of `x` `[B, h, S, D]`, whose tokens are at `positions` `[B, S]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId, positions: ValueId) -> ValueId {
        let [cos, sin] = [self.cos, self.sin].map(|table| match table {
            Table::Fixed(weight) => b.weight(weight),
            Table::Computed(value) => value,
        });
        b.rope(x, cos, sin, positions, self.style, self.rotary_dim)
    }
}

impl Rope {
    /// The constants of [`Beyond::Growing`]: frequencies and exponents. `number` tells ropes of one model apart.
    pub(super) fn constants(&self, m: &mut ModelBuilder, number: usize) -> Option<[WeightId; 2]> {
        let Some(Beyond::Growing { exponents, .. }) = &self.frequencies.beyond else { return None };
        let shape = [1, exponents.len() as u64];
        let rope = if number == 0 { "rope".to_owned() } else { format!("rope{number}") };
        let inv_freq = m.constant(&format!("{rope}.inv_freq"), &shape, &self.frequencies.inv_freq);
        Some([inv_freq, m.constant(&format!("{rope}.exponents"), &shape, exponents)])
    }

    /// The tables for sequences of `len` tokens, those in the cache included.
    pub(crate) fn tables(&self, b: &mut GraphBuilder<'_>, len: &Dim, growing: Option<[WeightId; 2]>) -> Rotation {
        let Frequencies { inv_freq, scale, beyond } = &self.frequencies;
        let rotary_dim = inv_freq.len() as u64 * 2;
        let [cos, sin] = match beyond {
            None => {
                [RopePart::Cos, RopePart::Sin].map(|part| Table::Fixed(b.model().rope_table(inv_freq, *scale, part)))
            }
            Some(beyond) => b.scope("rope", |b| match beyond {
                Beyond::Other { after, inv_freq: other } => {
                    let longer = is_longer(b, len, *after);
                    [RopePart::Cos, RopePart::Sin].map(|part| {
                        let [longer_table, table] = [other, inv_freq].map(|inv_freq| {
                            let table = b.model().rope_table(inv_freq, *scale, part);
                            let table = b.weight(table);
                            b.slice(table, 0, Dim::zero(), len.clone())
                        });
                        Table::Computed(b.select(longer, longer_table, table))
                    })
                }
                Beyond::Growing { after, factor, .. } => growing_tables(b, len, growing, *after, *factor),
            }),
        };
        Rotation { cos, sin, style: self.style, rotary_dim }
    }
}

/// The length as an I32 scalar.
fn length(b: &mut GraphBuilder<'_>, len: &Dim) -> ValueId {
    let len = b.iota(&[Dim::one()], 0, len.clone());
    b.reshape(len, &[])
}

fn is_longer(b: &mut GraphBuilder<'_>, len: &Dim, after: u64) -> ValueId {
    let len = length(b, len);
    let after = b.i32(i32::try_from(after).unwrap_or(i32::MAX));
    b.binary(BinaryOp::Lt, after, len)
}

/// Tables whose frequencies fall as the sequence grows, see [`Beyond::Growing`]. Angles are brought into one turn before
/// their cosine is taken.
fn growing_tables(
    b: &mut GraphBuilder<'_>,
    len: &Dim,
    constants: Option<[WeightId; 2]>,
    after: u64,
    factor: f32,
) -> [Table; 2] {
    let [inv_freq, exponents] = constants.unwrap_or([WeightId(u32::MAX); 2]).map(|id| b.weight(id));
    let tokens = length(b, len);
    let tokens = b.cast(tokens, Scalar::F32);
    let least = b.f32(after as f32);
    let tokens = b.binary(BinaryOp::Max, tokens, least);
    let slope = b.f32(factor / after as f32);
    let growth = b.mul(tokens, slope);
    let past = b.f32(factor - 1.0);
    let growth = b.sub(growth, past);
    let change = b.binary(BinaryOp::Pow, growth, exponents);
    let inv_freq = b.mul(inv_freq, change);

    let positions = b.iota(&[len.clone(), Dim::one()], 0, Dim::zero());
    let positions = b.cast(positions, Scalar::F32);
    let angle = b.mul(positions, inv_freq);
    let turn = b.f32(std::f32::consts::TAU);
    let turns = b.binary(BinaryOp::Div, angle, turn);
    let whole = b.unary(UnaryOp::Floor, turns);
    let whole = b.mul(whole, turn);
    let angle = b.sub(angle, whole);
    [UnaryOp::Cos, UnaryOp::Sin].map(|wave| Table::Computed(b.unary(wave, angle)))
}
