//! Built-in functions on the bytes, halves and bits of a word.

use super::Lower;
use super::place::Value;
use crate::op::{Bin, Op, Reg, Tri, Un};
use naga::MathFunction as F;

impl Lower<'_> {
    /// A function on `a`, with `b` and more operands where it takes them; nothing for functions of other kinds.
    pub(super) fn packing(&mut self, fun: F, a: &[Reg], b: &[Reg], [c, d]: [&[Reg]; 2]) -> Option<Value> {
        Some(match fun {
            F::Unpack4xI8 => Value::Rows(self.unpacked(a, 8, true)),
            F::Unpack4xU8 => Value::Rows(self.unpacked(a, 8, false)),
            F::Unpack4x8snorm => self.normalised(a, 8, true),
            F::Unpack4x8unorm => self.normalised(a, 8, false),
            F::Unpack2x16snorm => self.normalised(a, 16, true),
            F::Unpack2x16unorm => self.normalised(a, 16, false),
            F::Pack4xI8 | F::Pack4xU8 | F::Pack4xI8Clamp | F::Pack4xU8Clamp => self.pack_bytes(fun, a),
            F::Pack4x8snorm => self.quantised(a, 8, true),
            F::Pack4x8unorm => self.quantised(a, 8, false),
            F::Pack2x16snorm => self.quantised(a, 16, true),
            F::Pack2x16unorm => self.quantised(a, 16, false),
            F::InsertBits => {
                let (all, none) = (self.constant(u32::MAX), self.constant(0));
                let (offset, count) = (*c.first()?, *d.first()?);
                let field = self.registers(1);
                self.push(Op::Tri { op: Tri::BfeU, d: field, a: all, b: none, c: count });
                let mask = self.pairs(Bin::Shl, &[field], &[offset]);
                let Value::Rows(rest) = self.each(1, |d, _| Op::Un { op: Un::BitNot, d, a: mask[0] }) else {
                    return None;
                };
                let moved = self.pairs(Bin::Shl, b, &[offset]);
                let (new, old) = (self.pairs(Bin::And, &moved, &mask), self.pairs(Bin::And, a, &rest));
                Value::Rows(self.pairs(Bin::Or, &old, &new))
            }
            _ => return None,
        })
    }

    /// The parts of a word, lowest first.
    fn unpacked(&mut self, a: &[Reg], bits: u32, signed: bool) -> Vec<Reg> {
        let width = self.constant(bits);
        let op = if signed { Tri::BfeS } else { Tri::BfeU };
        let at: Vec<Reg> = (0..32 / bits).map(|i| self.constant(i * bits)).collect();
        let d = self.registers(at.len() as u32);
        for (i, at) in at.into_iter().enumerate() {
            self.push(Op::Tri { op, d: d + i as u32, a: a[0], b: at, c: width });
        }
        (d..d + 32 / bits).collect()
    }

    /// The parts of a word as floats from 0 to 1, or from -1 to 1.
    fn normalised(&mut self, a: &[Reg], bits: u32, signed: bool) -> Value {
        let parts = self.unpacked(a, bits, signed);
        let op = if signed { Un::SignedToF } else { Un::UnsignedToF };
        let d = self.registers(parts.len() as u32);
        for (i, part) in parts.iter().enumerate() {
            self.push(Op::Un { op, d: d + i as u32, a: *part });
        }
        let numbers: Vec<Reg> = (d..d + parts.len() as u32).collect();
        let (most, least) = (self.constant(largest(bits, signed).to_bits()), self.constant((-1f32).to_bits()));
        let shares = self.pairs(Bin::Div, &numbers, &[most]);
        Value::Rows(if signed { self.pairs(Bin::Max, &shares, &[least]) } else { shares })
    }

    /// Floats from 0 to 1, or from -1 to 1, as the parts of a word: the nearest, halves up.
    fn quantised(&mut self, a: &[Reg], bits: u32, signed: bool) -> Value {
        let low = self.constant(if signed { -1f32 } else { 0.0 }.to_bits());
        let (one, half) = (self.constant(1f32.to_bits()), self.constant(0.5f32.to_bits()));
        let most = self.constant(largest(bits, signed).to_bits());
        let bounded = self.pairs(Bin::Max, a, &[low]);
        let bounded = self.pairs(Bin::Min, &bounded, &[one]);
        let scaled = self.pairs(Bin::Mul, &bounded, &[most]);
        let raised = self.pairs(Bin::Add, &scaled, &[half]);
        let d = self.registers(raised.len() as u32);
        for (i, x) in raised.iter().enumerate() {
            self.push(Op::Un { op: Un::FloorS, d: d + i as u32, a: *x });
        }
        let whole: Vec<Reg> = (d..d + raised.len() as u32).collect();
        Value::Rows(vec![self.joined(&whole, bits)])
    }

    /// The lowest bits of each as the parts of a word, lowest first.
    fn joined(&mut self, parts: &[Reg], bits: u32) -> Reg {
        let mask = self.constant((1 << bits) - 1);
        let parts = self.pairs(Bin::And, parts, &[mask]);
        let shifts: Vec<Reg> = (0..32 / bits).map(|i| self.constant(i * bits)).collect();
        let placed = self.pairs(Bin::Shl, &parts, &shifts);
        self.fold(Bin::Or, &placed)
    }

    fn pack_bytes(&mut self, fun: F, a: &[Reg]) -> Value {
        let bounded = match fun {
            F::Pack4xI8Clamp => {
                let (low, high) = (self.constant(-128i32 as u32), self.constant(127));
                let low = self.pairs(Bin::MaxS, a, &[low]);
                self.pairs(Bin::MinS, &low, &[high])
            }
            F::Pack4xU8Clamp => {
                let high = self.constant(255);
                self.pairs(Bin::MinU, a, &[high])
            }
            _ => a.to_vec(),
        };
        Value::Rows(vec![self.joined(&bounded, 8)])
    }
}

/// What stands for 1.
fn largest(bits: u32, signed: bool) -> f32 {
    ((1u32 << (bits - u32::from(signed))) - 1) as f32
}
