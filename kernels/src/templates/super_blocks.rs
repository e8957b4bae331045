//! Decoding blocks of 256 elements other than those of Q4K and Q6K, and 4-bit codes that stand for values of a table.
//!
//! Elements lie in rows of 32: those of a row at consecutive bytes, several rows in the bits of the same bytes.

use super::common::KernelCtx;
use super::load::NIBBLES;
use super::parts::{Part, Quad};
use crate::dtype::{IQ4_CODES, Storage};
use crate::ir::{self, Val};
use crate::spec::ArgId;

const PAIRS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// Where a run lies in its block of 256.
struct Place {
    block: Val,
    /// Its row of 32, 0 to 7.
    row: Val,
    /// The first of its words within the row.
    word: Val,
}

impl KernelCtx<'_> {
    fn place(&self, at: Val, n: u32) -> Place {
        let b = &self.b;
        let row = b.let_("row", b.bit_and(b.shr(at, 5), 7));
        Place { block: b.shr(at, 8), row, word: if n == 32 { b.u32(0) } else { b.bit_and(b.shr(at, 2), 7) } }
    }
    /// Words of 2-bit elements, not shifted yet: 64 bytes a block, rows 0 to 3 in the first 32.
    fn crumbs(&self, arg: ArgId, p: &Place, n: u32) -> Vec<Val> {
        let b = &self.b;
        let first = b.add(b.add(b.shl(p.block, 4), b.shl(b.shr(p.row, 2), 3)), p.word);
        self.words(arg, first, n / 4)
    }
    /// Byte `j` of 16 that lie in four words from `first` on.
    fn byte_of(&self, arg: ArgId, first: Val, j: Val) -> Val {
        let b = &self.b;
        let word = self.word(arg, b.add(first, b.shr(j, 2)));
        b.bit_and(b.shr(word, b.shl(b.bit_and(j, 3), 3)), 0xff)
    }
    /// The run in parts of up to 16 elements, which share a scale: what `group` gives for the number of 16 in the block.
    fn sixteens(&self, at: Val, quads: &[Quad], group: impl Fn(Val) -> (Val, Val)) -> Vec<Part> {
        let b = &self.b;
        let first = b.bit_and(b.shr(at, 4), 15);
        let parts = quads.chunks(quads.len().clamp(1, 4)).enumerate().map(|(i, q)| {
            let (scale, min) = group(b.let_("group", b.add(first, i as u32)));
            Part { quads: q.to_vec(), scale: Some(scale), min: Some(min) }
        });
        parts.collect()
    }

    pub(super) fn q2k(&self, arg: ArgId, at: Val, n: u32) -> Vec<Part> {
        let (b, s) = (&self.b, Storage::Q2K);
        let p = self.place(at, n);
        let shift = b.shl(b.bit_and(p.row, 3), 1);
        let words = self.crumbs(arg, &p, n);
        let quads: Vec<Quad> = words.iter().map(|w| Quad::Bytes(b.bit_and(b.shr(*w, shift), PAIRS))).collect();
        let (d, dmin) = self.pair(arg, self.plane(arg, s, 1), p.block);
        let groups = b.add(b.shl(p.block, 2), self.plane(arg, s, 2));
        self.sixteens(at, &quads, |j| {
            let byte = b.let_("scales", self.byte_of(arg, groups, j));
            let float = |v: Val| b.cast(ir::Scalar::F32, v);
            let min = b.neg(b.mul(dmin, float(b.shr(byte, 4))));
            (b.let_("group_scale", b.mul(d, float(b.bit_and(byte, 15)))), b.let_("group_min", min))
        })
    }

    pub(super) fn q3k(&self, arg: ArgId, at: Val, n: u32) -> Vec<Part> {
        let (b, s) = (&self.b, Storage::Q3K);
        let p = self.place(at, n);
        let shift = b.shl(b.bit_and(p.row, 3), 1);
        let low = self.crumbs(arg, &p, n);
        let high_at = b.add(b.add(b.shl(p.block, 3), p.word), self.plane(arg, s, 1));
        let high = self.words(arg, high_at, n / 4);
        let quant = |(l, h): (&Val, &Val)| {
            let third = b.bit_and(b.shr(*h, p.row), BITS);
            Quad::Bytes(b.bit_or(b.bit_and(b.shr(*l, shift), PAIRS), b.shl(third, 2)))
        };
        let quads: Vec<Quad> = low.iter().zip(&high).map(quant).collect();
        let d = b.let_("scale", self.half(arg, self.plane(arg, s, 3), p.block));
        let groups = b.add(b.mul(p.block, 3), self.plane(arg, s, 2));
        self.sixteens(at, &quads, |j| {
            // Scale j: its low four bits are a nibble of byte j mod 8, the other two lie in byte 8 + j mod 4.
            let byte = b.shl(b.bit_and(j, 3), 3);
            let nibble = b.add(byte, b.shl(b.shr(j, 3), 2));
            let low = self.word(arg, b.add(groups, b.bit_and(b.shr(j, 2), 1)));
            let top = self.word(arg, b.add(groups, 2));
            let two = b.bit_and(b.shr(top, b.add(byte, b.shl(b.shr(j, 2), 1))), 3);
            let six = b.bit_or(b.bit_and(b.shr(low, nibble), 15), b.shl(two, 4));
            let scale = b.let_("group_scale", b.mul(d, b.sub(b.cast(ir::Scalar::F32, six), 32.0)));
            (scale, b.mul(scale, -4.0))
        })
    }

    pub(super) fn q5k(&self, arg: ArgId, at: Val, n: u32) -> Part {
        let (b, s) = (&self.b, Storage::Q5K);
        let p = self.place(at, n);
        let low_at = b.add(b.add(b.shl(p.block, 5), b.shl(b.shr(p.row, 1), 3)), p.word);
        let high_at = b.add(b.add(b.shl(p.block, 3), p.word), self.plane(arg, s, 1));
        let (low, high) = (self.words(arg, low_at, n / 4), self.words(arg, high_at, n / 4));
        let shift = b.shl(b.bit_and(p.row, 1), 2);
        let quant = |(l, h): (&Val, &Val)| {
            let fifth = b.bit_and(b.shr(*h, p.row), BITS);
            Quad::Bytes(b.bit_or(b.bit_and(b.shr(*l, shift), NIBBLES), b.shl(fifth, 4)))
        };
        let quads = low.iter().zip(&high).map(quant).collect();
        let (d, dmin) = self.pair(arg, self.plane(arg, s, 2), p.block);
        let (sc, mn) = self.q4k_group(arg, self.plane(arg, s, 3), p.block, p.row);
        Part { quads, scale: Some(b.mul(d, sc)), min: Some(b.neg(b.mul(dmin, mn))) }
    }

    pub(super) fn iq4_xs(&self, arg: ArgId, at: Val, n: u32) -> Part {
        let (b, s) = (&self.b, Storage::Iq4Xs);
        let p = self.place(at, n);
        // Group g has 16 bytes: elements i and 16 + i of it in byte i.
        let bytes = b.add(b.shl(p.block, 5), b.shl(p.row, 2));
        let quads = if n == 32 {
            let words = self.words(arg, bytes, 4);
            let halves = [0u32, 4].into_iter().flat_map(|shift| words.iter().map(move |w| (*w, shift)));
            halves.map(|(w, shift)| Quad::Floats(self.coded(b.bit_and(b.shr(w, shift), NIBBLES), &IQ4_CODES))).collect()
        } else {
            let words = self.words(arg, b.add(bytes, b.bit_and(p.word, 3)), n / 4);
            let shift = b.shl(b.shr(p.word, 2), 2);
            words.iter().map(|w| Quad::Floats(self.coded(b.bit_and(b.shr(*w, shift), NIBBLES), &IQ4_CODES))).collect()
        };
        let head = b.let_("head", self.word(arg, b.add(p.block, self.plane(arg, s, 1))));
        let low = self.word(arg, b.add(p.block, self.plane(arg, s, 2)));
        let low = b.bit_and(b.shr(low, b.shl(p.row, 2)), 15);
        let high = b.bit_and(b.shr(head, b.add(b.shl(p.row, 1), 16)), 3);
        let six = b.cast(ir::Scalar::F32, b.bit_or(low, b.shl(high, 4)));
        let d = b.lane(b.unpack_2x16_float(head), 0);
        Part { quads, scale: Some(b.let_("group_scale", b.mul(d, b.sub(six, 32.0)))), min: None }
    }

    /// What four 4-bit codes, one in each byte, stand for, as floats: the table lies in four words, each code picks a
    /// byte of one of them.
    pub(super) fn coded(&self, codes: Val, table: &[i8; 16]) -> Val {
        let b = &self.b;
        let word = |i: usize| {
            let bytes = table.iter().skip(4 * i).take(4).rev();
            b.splat(4, bytes.fold(0u32, |w, v| w << 8 | u32::from(v.cast_unsigned())))
        };
        let codes = b.let_("codes", b.unpack_u8(codes));
        let odd = b.ne(b.bit_and(codes, 4), 0);
        let (low, high) = (b.select(odd, word(1), word(0)), b.select(odd, word(3), word(2)));
        let picked = b.select(b.ge(codes, 8), high, low);
        let shift = b.sub(24, b.shl(b.bit_and(codes, 3), 3));
        let byte = b.shr(b.bitcast(ir::Scalar::I32, b.shl(picked, shift)), 24);
        b.cast(ir::Scalar::F32, byte)
    }
}
