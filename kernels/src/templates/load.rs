//! Reading arguments in every storage: one element at any place, or a run of consecutive elements at once.

use super::common::KernelCtx;
use super::parts::{Part, Quad};
use crate::dtype::{FP4_CODES, HalfFormat, IQ4_CODES, Storage};
use crate::ir::{self, Type, Val};
use crate::spec::{ArgId, Space};

/// How the buffer of a weight is declared. Whatever the view, the memory is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// `array<f32>` or, for 16-bit and quantised storage, `array<u32>`.
    Scalar,
    /// `array<vec4<f32>>` or `array<vec4<u32>>`: for runs that start on 16 bytes.
    Vec4,
    /// `texture_2d<u32>`; whether runs start on 16 bytes.
    Texels {
        /// They do.
        aligned: bool,
    },
    /// A matrix of which tiles are brought, and nothing else is read.
    Tiles(ir::TileMap),
}

impl View {
    /// The element type of a buffer of that storage.
    pub fn elem(self, s: Storage) -> Type {
        match (s, self) {
            (_, View::Texels { .. } | View::Tiles(_)) => Type::VEC4_U32,
            (Storage::F32, View::Scalar) => Type::F32,
            (Storage::F32, View::Vec4) => Type::VEC4_F32,
            (Storage::I32 | Storage::Bool, _) => Type::I32,
            (_, View::Scalar) => Type::U32,
            (_, View::Vec4) => Type::VEC4_U32,
        }
    }
}

pub(super) const NIBBLES: u32 = 0x0f0f_0f0f;

impl KernelCtx<'_> {
    /// The element at `at`, counted from the start of the argument's buffer: `f32`, `i32`, or `bool` for truth values.
    pub fn element(&self, arg: ArgId, at: Val) -> Val {
        let b = &self.b;
        let (Some(a), Some(buffer)) = (self.arg(arg), self.buffer(arg)) else {
            return self.poison(format!("load from argument {}", arg.0));
        };
        let texels = matches!(self.view(arg), View::Texels { .. });
        match a.storage {
            Storage::F32 if a.is_half(self.caps.tier) => match (self.view(arg), a.rounded) {
                (View::Vec4, Some(HalfFormat::F16)) => self.half(arg, 0, at),
                (View::Vec4, _) => self.bf16(arg, 0, at),
                _ => b.cast(ir::Scalar::F32, b.load(buffer, at)),
            },
            Storage::F32 if texels => b.bitcast(ir::Scalar::F32, self.word(arg, at)),
            Storage::I32 if texels => b.bitcast(ir::Scalar::I32, self.word(arg, at)),
            Storage::Bool if texels => b.ne(self.word(arg, at), 0),
            Storage::F32 if self.view(arg) == View::Vec4 => {
                let v = b.load(buffer, b.shr(at, 2));
                self.pick(v, b.bit_and(at, 3))
            }
            Storage::F32 | Storage::I32 => b.load(buffer, at),
            Storage::Bool => b.ne(b.load(buffer, at), b.i32(0)),
            Storage::F16 => self.half(arg, 0, at),
            Storage::Bf16 => self.bf16(arg, 0, at),
            _ => self.quant(arg, at),
        }
    }
    /// The run of `n` elements from `at` on, `at` being a multiple of `n`, and `n` one of 4, 8, 16, 32, or 64 of
    /// quantised storage, of which what two blocks or groups have in common is read once. `at` counts from the start of
    /// the buffer. Only for what loads as F32.
    pub fn row_chunk(&self, arg: ArgId, at: Val, n: u32) -> Vec<Part> {
        let b = &self.b;
        let (Some(a), Some(buffer)) = (self.arg(arg), self.buffer(arg)) else {
            return Vec::new();
        };
        if n == 64 && a.storage.is_quantised() {
            return self.two_runs(arg, a.storage, at);
        }
        let plain = |quads: Vec<Val>| {
            vec![Part { quads: quads.into_iter().map(Quad::Floats).collect(), scale: None, min: None }]
        };
        match a.storage {
            Storage::F32 if matches!(self.view(arg), View::Texels { .. }) => {
                let words = self.words(arg, at, n);
                let quads = words.chunks_exact(4).map(|w| b.bitcast(ir::Scalar::F32, b.vec4(w[0], w[1], w[2], w[3])));
                plain(quads.collect())
            }
            Storage::F32 if self.view(arg) == View::Vec4 => {
                let first = b.shr(at, 2);
                plain((0..n / 4).map(|i| b.load(buffer, b.add(first, i))).collect())
            }
            Storage::F32 | Storage::F16 | Storage::Bf16 => plain(self.decoded(a.storage, &self.raw(arg, at, n))),
            Storage::I32 | Storage::Bool => {
                b.error(format!("`{}` holds no floats", a.name));
                Vec::new()
            }
            Storage::Q2K => self.q2k(arg, at, n),
            Storage::Q3K => self.q3k(arg, at, n),
            Storage::Q4K => vec![self.q4k(arg, at, n)],
            Storage::Q5K => vec![self.q5k(arg, at, n)],
            Storage::Q6K => self.q6k(arg, at, n),
            Storage::Iq4Xs => vec![self.iq4_xs(arg, at, n)],
            s => vec![self.small_block(arg, s, at, n)],
        }
    }
    /// [`row_chunk`](Self::row_chunk) of 64.
    fn two_runs(&self, arg: ArgId, s: Storage, at: Val) -> Vec<Part> {
        let b = &self.b;
        match s {
            Storage::Q4_0 | Storage::Q4_1 | Storage::Q5_0 | Storage::Q5_1 | Storage::Q8_0 | Storage::Iq4Nl => {
                let at = b.let_("at", at);
                let heads = self.two_heads(arg, s, b.shr(at, 5));
                let part = |(i, head)| {
                    let at = b.add(at, i);
                    self.block_part(arg, s, (at, b.shr(at, 5), b.u32(0)), 32, head)
                };
                [0, 32].into_iter().zip(heads).map(part).collect()
            }
            Storage::Q4K => self.two_q4k(arg, at),
            Storage::Q6K => self.q6k(arg, at, 64),
            _ => [0, 32].into_iter().flat_map(|i| self.row_chunk(arg, b.add(at, i), 32)).collect(),
        }
    }
    /// What lies in memory of a run of plain storage: floats, or words of two elements.
    pub fn raw(&self, arg: ArgId, at: Val, n: u32) -> Vec<Val> {
        let b = &self.b;
        match (self.arg(arg), self.buffer(arg)) {
            (Some(a), Some(buffer)) if a.storage == Storage::F32 => {
                (0..n).map(|i| b.load(buffer, b.add(at, i))).collect()
            }
            _ => self.words(arg, b.shr(at, 1), n / 2),
        }
    }
    /// The elements of what [`raw`](Self::raw) gave, `vec4<f32>` each.
    pub fn decoded(&self, storage: Storage, raw: &[Val]) -> Vec<Val> {
        let b = &self.b;
        match storage {
            Storage::F32 => raw.chunks_exact(4).map(|v| b.vec4(v[0], v[1], v[2], v[3])).collect(),
            Storage::F16 => {
                let pair = |w: &[Val]| {
                    let (p, q) = (b.unpack_2x16_float(w[0]), b.unpack_2x16_float(w[1]));
                    b.vec4(b.lane(p, 0), b.lane(p, 1), b.lane(q, 0), b.lane(q, 1))
                };
                raw.chunks_exact(2).map(pair).collect()
            }
            _ => {
                let pair = |w: &[Val]| b.vec4(b.bf16_low(w[0]), b.bf16_high(w[0]), b.bf16_low(w[1]), b.bf16_high(w[1]));
                raw.chunks_exact(2).map(pair).collect()
            }
        }
    }
    /// The most elements that [`row_chunk`](Self::row_chunk) can give of rows that start on multiples of `row`.
    pub fn chunk_for(&self, row: u64) -> u32 {
        [32u32, 16, 8, 4].into_iter().find(|n| row.is_multiple_of(u64::from(*n))).unwrap_or(1)
    }

    /// Blocks of a weight.
    fn blocks(&self, arg: ArgId, s: Storage) -> u64 {
        let len = self.arg(arg).filter(|a| a.space == Space::Weight).and_then(|a| a.len.as_const());
        match len.and_then(|l| u64::try_from(l).ok()) {
            Some(l) => l / s.block_elems(),
            None => {
                self.b.error("quantised storage of unknown length");
                0
            }
        }
    }
    pub(super) fn plane(&self, arg: ArgId, s: Storage, i: usize) -> u32 {
        let at = s.plane_word(i, self.blocks(arg, s));
        u32::try_from(at).unwrap_or_else(|_| {
            self.b.error("weight beyond 32-bit addresses");
            0
        })
    }
    /// One lane of a `vec4`, by a computed number.
    fn pick(&self, v: Val, lane: Val) -> Val {
        let b = &self.b;
        let v = b.let_("quad", v);
        let low = b.select(b.eq(lane, 1), b.lane(v, 1), b.lane(v, 0));
        let high = b.select(b.eq(lane, 3), b.lane(v, 3), b.lane(v, 2));
        b.select(b.ge(lane, 2), high, low)
    }
    /// One word of a 16-bit or quantised weight.
    pub(super) fn word(&self, arg: ArgId, at: Val) -> Val {
        let b = &self.b;
        let Some(buffer) = self.buffer(arg) else { return b.u32(0) };
        match self.view(arg) {
            View::Scalar => b.load(buffer, at),
            View::Vec4 => self.pick(b.load(buffer, b.shr(at, 2)), b.bit_and(at, 3)),
            View::Tiles(_) => self.poison("a matrix of which tiles are brought is not read"),
            View::Texels { .. } => {
                let at = b.let_("word", at);
                self.pick(b.load(buffer, b.shr(at, 2)), b.bit_and(at, 3))
            }
        }
    }
    /// `n` words from `at` on; with the `Vec4` view and `n` a multiple of 4, `at` is a multiple of 4.
    pub(super) fn words(&self, arg: ArgId, at: Val, n: u32) -> Vec<Val> {
        let b = &self.b;
        let Some(buffer) = self.buffer(arg) else { return vec![b.u32(0); n as usize] };
        if matches!(self.view(arg), View::Vec4 | View::Texels { aligned: true }) && n.is_multiple_of(4) {
            let first = b.let_("first", b.shr(at, 2));
            let quads: Vec<Val> = (0..n / 4).map(|i| b.let_("quad", b.load(buffer, b.add(first, i)))).collect();
            return quads.iter().flat_map(|q| (0..4).map(|l| b.lane(*q, l))).collect();
        }
        (0..n).map(|i| self.word(arg, b.add(at, i))).collect()
    }
    /// Words `at` and `at + 1`, `at` being even.
    fn two_words(&self, arg: ArgId, at: Val) -> (Val, Val) {
        let b = &self.b;
        match (self.view(arg), self.buffer(arg)) {
            (View::Vec4 | View::Texels { .. }, Some(buffer)) => {
                let at = b.let_("word", at);
                let quad = b.let_("quad", b.load(buffer, b.shr(at, 2)));
                let is_high = b.ne(b.bit_and(at, 2), 0);
                let pick = |low, high| b.select(is_high, b.lane(quad, high), b.lane(quad, low));
                (pick(0, 2), pick(1, 3))
            }
            _ => (self.word(arg, at), self.word(arg, b.add(at, 1))),
        }
    }
    /// The f16 at 16-bit unit `at` behind word `plane`.
    pub(super) fn half(&self, arg: ArgId, plane: u32, at: Val) -> Val {
        let b = &self.b;
        let w = self.word(arg, b.add(b.shr(at, 1), plane));
        let shifted = b.shr(w, b.shl(b.bit_and(at, 1), 4));
        b.lane(b.unpack_2x16_float(shifted), 0)
    }
    /// The bf16 at 16-bit unit `at` behind word `plane`.
    fn bf16(&self, arg: ArgId, plane: u32, at: Val) -> Val {
        let b = &self.b;
        let w = self.word(arg, b.add(b.shr(at, 1), plane));
        let bits = b.shl(b.shr(w, b.shl(b.bit_and(at, 1), 4)), 16);
        b.bitcast(ir::Scalar::F32, bits)
    }
    /// Scale and minimum of block `block` in a plane of f16 pairs.
    pub(super) fn pair(&self, arg: ArgId, plane: u32, block: Val) -> (Val, Val) {
        let b = &self.b;
        let p = b.let_("scale_min", b.unpack_2x16_float(self.word(arg, b.add(block, plane))));
        (b.lane(p, 0), b.lane(p, 1))
    }
    /// Scale and minimum of block `block` in a plane of pairs of f32.
    fn wide_pair(&self, arg: ArgId, plane: u32, block: Val) -> (Val, Val) {
        let b = &self.b;
        let at = b.add(b.shl(block, 1), plane);
        let float = |name, at| b.let_(name, b.bitcast(ir::Scalar::F32, self.word(arg, at)));
        (float("scale", at), float("min", b.add(at, 1)))
    }

    /// A run inside a block of 32.
    fn small_block(&self, arg: ArgId, s: Storage, at: Val, n: u32) -> Part {
        let b = &self.b;
        let block = b.shr(at, 5);
        let inside = if n == 32 { b.u32(0) } else { b.bit_and(at, 31) };
        let head = match s {
            Storage::Q4_1 => self.pair(arg, self.plane(arg, s, 1), block),
            Storage::Q5_1 => self.pair(arg, self.plane(arg, s, 2), block),
            Storage::Q4F | Storage::Q8F => self.wide_pair(arg, self.plane(arg, s, 1), block),
            Storage::Fp4 => (b.let_("scale", self.bf16(arg, self.plane(arg, s, 1), block)), b.f32(0.0)),
            _ => self.with_offset(s, self.half(arg, self.plane(arg, s, s.planes().len() - 1), block)),
        };
        self.block_part(arg, s, (at, block, inside), n, head)
    }
    /// Scales and minima of blocks `block` and `block + 1`, `block` being even, of storage with 16-bit scales.
    fn two_heads(&self, arg: ArgId, s: Storage, block: Val) -> [(Val, Val); 2] {
        let b = &self.b;
        let plane = self.plane(arg, s, s.planes().len() - 1);
        if matches!(s, Storage::Q4_1 | Storage::Q5_1) {
            let (first, second) = self.two_words(arg, b.add(block, plane));
            return [first, second].map(|w| {
                let p = b.let_("scale_min", b.unpack_2x16_float(w));
                (b.lane(p, 0), b.lane(p, 1))
            });
        }
        let both = b.let_("scales", b.unpack_2x16_float(self.word(arg, b.add(b.shr(block, 1), plane))));
        [0, 1].map(|i| self.with_offset(s, b.lane(both, i)))
    }
    /// A scale with the minimum that unsigned quants have for it.
    fn with_offset(&self, s: Storage, scale: Val) -> (Val, Val) {
        let b = &self.b;
        let d = b.let_("scale", scale);
        (d, b.mul(d, if s == Storage::Q4_0 { -8.0 } else { -16.0 }))
    }
    /// The run from `at` on: from element `inside` of a block of 32 on, whose scale and minimum are known.
    fn block_part(
        &self,
        arg: ArgId,
        s: Storage,
        (at, block, inside): (Val, Val, Val),
        n: u32,
        (scale, min): (Val, Val),
    ) -> Part {
        let b = &self.b;
        if matches!(s, Storage::Q8_0 | Storage::Q8F) {
            let words = self.words(arg, b.shr(at, 2), n / 4);
            let quads = words.iter().map(|w| Quad::Floats(b.cast(ir::Scalar::F32, b.unpack_i8(*w)))).collect();
            return Part { quads, scale: Some(scale), min: (s == Storage::Q8F).then_some(min) };
        }
        let codes = match s {
            Storage::Iq4Nl => Some(&IQ4_CODES),
            Storage::Fp4 => Some(&FP4_CODES),
            _ => None,
        };
        // Byte i of a block holds elements i and 16 + i.
        let (first, count) = if n == 32 {
            (b.shl(block, 2), 4)
        } else {
            (b.add(b.shl(block, 2), b.bit_and(b.shr(inside, 2), 3)), n / 4)
        };
        let words = self.words(arg, first, count);
        let halves: Vec<Val> = if n == 32 { vec![b.u32(0), b.u32(4)] } else { vec![b.shl(b.shr(inside, 4), 2)] };
        let high = matches!(s, Storage::Q5_0 | Storage::Q5_1)
            .then(|| b.let_("high_bits", self.word(arg, b.add(block, self.plane(arg, s, 1)))));
        let mut quads = Vec::new();
        for shift in &halves {
            for w in &words {
                let mut q = b.bit_and(b.shr(*w, *shift), NIBBLES);
                if let Some(h) = high {
                    let from = b.add(inside, 4 * quads.len() as u32);
                    let four = b.bit_and(b.shr(h, from), 15);
                    // Bit i of the four goes to bit 4 of byte i.
                    let spread = b.bit_and(b.mul(four, 0x0020_4081), 0x0101_0101);
                    q = b.bit_or(q, b.shl(spread, 4));
                }
                quads.push(match codes {
                    Some(codes) => Quad::Floats(self.coded(q, codes)),
                    None => Quad::Bytes(q),
                });
            }
        }
        Part { quads, scale: Some(scale), min: codes.is_none().then_some(min) }
    }
    /// 6-bit scale and minimum of group `j` of a Q4K or Q5K block, as floats; `plane` is where the groups lie.
    pub(super) fn q4k_group(&self, arg: ArgId, plane: u32, block: Val, j: Val) -> (Val, Val) {
        let b = &self.b;
        let first = b.add(b.mul(block, 3), plane);
        self.q4k_scales([0, 1, 2].map(|i| self.word(arg, b.add(first, i))), j)
    }
    /// Scale and minimum `j` of the three words of a block's groups.
    fn q4k_scales(&self, words: [Val; 3], j: Val) -> (Val, Val) {
        let b = &self.b;
        let shift = b.shl(b.bit_and(j, 3), 3);
        let [low, mid, top] = words.map(|w| b.let_("group", b.shr(w, shift)));
        let is_low = b.lt(j, 4);
        let upper = |x: Val| b.bit_and(b.shr(x, 2), 0x30);
        let scale = b.select(is_low, b.bit_and(low, 63), b.bit_or(b.bit_and(top, 15), upper(low)));
        let min = b.select(is_low, b.bit_and(mid, 63), b.bit_or(b.bit_and(b.shr(top, 4), 15), upper(mid)));
        (b.cast(ir::Scalar::F32, scale), b.cast(ir::Scalar::F32, min))
    }
    fn q4k(&self, arg: ArgId, at: Val, n: u32) -> Part {
        let b = &self.b;
        let block = b.shr(at, 8);
        let j = b.let_("j", b.bit_and(b.shr(at, 5), 7));
        let (d, dmin) = self.pair(arg, self.plane(arg, Storage::Q4K, 1), block);
        let (sc, mn) = self.q4k_group(arg, self.plane(arg, Storage::Q4K, 2), block, j);
        let row = b.add(b.shl(block, 5), b.shl(b.shr(j, 1), 3));
        let first = if n == 32 { row } else { b.add(row, b.bit_and(b.shr(at, 2), 7)) };
        let shift = b.shl(b.bit_and(j, 1), 2);
        let words = self.words(arg, first, n / 4);
        let quads = words.iter().map(|w| Quad::Bytes(b.bit_and(b.shr(*w, shift), NIBBLES))).collect();
        Part { quads, scale: Some(b.mul(d, sc)), min: Some(b.neg(b.mul(dmin, mn))) }
    }
    /// Groups 2i and 2i + 1 of a block lie in the low and the high nibbles of the same bytes.
    fn two_q4k(&self, arg: ArgId, at: Val) -> Vec<Part> {
        let b = &self.b;
        let block = b.let_("block", b.shr(at, 8));
        let j = b.let_("j", b.bit_and(b.shr(at, 5), 7));
        let (d, dmin) = self.pair(arg, self.plane(arg, Storage::Q4K, 1), block);
        let words = self.words(arg, b.add(b.shl(block, 5), b.shl(j, 2)), 8);
        let first = b.add(b.mul(block, 3), self.plane(arg, Storage::Q4K, 2));
        let groups = [0, 1, 2].map(|i| b.let_("groups", self.word(arg, b.add(first, i))));
        let part = |i: u32| {
            let (sc, mn) = self.q4k_scales(groups, b.add(j, i));
            let quads = words.iter().map(|w| Quad::Bytes(b.bit_and(b.shr(*w, 4 * i), NIBBLES))).collect();
            Part { quads, scale: Some(b.mul(d, sc)), min: Some(b.neg(b.mul(dmin, mn))) }
        };
        vec![part(0), part(1)]
    }
    fn q6k(&self, arg: ArgId, at: Val, n: u32) -> Vec<Part> {
        let b = &self.b;
        let s = Storage::Q6K;
        let block = b.shr(at, 8);
        let half = b.bit_and(b.shr(at, 7), 1);
        let quarter = b.let_("quarter", b.bit_and(b.shr(at, 5), 3));
        let inside = if n >= 32 { b.u32(0) } else { b.bit_and(b.shr(at, 2), 7) };
        let low_at = b.add(b.add(b.shl(block, 5), b.shl(half, 4)), b.add(b.shl(b.bit_and(quarter, 1), 3), inside));
        let high_at = b.add(b.add(b.shl(block, 4), b.shl(half, 3)), b.add(inside, self.plane(arg, s, 1)));
        let (low_shift, high_shift) = (b.shl(b.shr(quarter, 1), 2), b.shl(quarter, 1));
        // The high bits of all quarters lie in the same bytes.
        let (low, high) = (self.words(arg, low_at, n / 4), self.words(arg, high_at, n.min(32) / 4));
        let quads: Vec<Quad> = (0u32..)
            .zip(low.iter().zip(high.iter().cycle()))
            .map(|(i, (l, h))| {
                let high_shift = if i < 8 { high_shift } else { b.add(high_shift, 2) };
                let l = b.bit_and(b.shr(*l, low_shift), NIBBLES);
                let h = b.bit_and(b.shr(*h, high_shift), 0x0303_0303);
                Quad::Bytes(b.bit_or(l, b.shl(h, 4)))
            })
            .collect();
        let d = b.let_("scale", self.half(arg, self.plane(arg, s, 3), block));
        let group = b.shr(at, 4);
        let scales = b.let_("groups", self.word(arg, b.add(b.shr(group, 2), self.plane(arg, s, 2))));
        let step = quads.len().min(4).max(1);
        let parts = quads.chunks(step).enumerate().map(|(i, q)| {
            let byte = b.add(b.bit_and(group, 3), i as u32);
            let signed = b.bitcast(ir::Scalar::I32, b.shl(b.shr(scales, b.shl(byte, 3)), 24));
            let sc = b.cast(ir::Scalar::F32, b.shr(signed, 24));
            let scale = b.let_("group_scale", b.mul(d, sc));
            Part { quads: q.to_vec(), scale: Some(scale), min: Some(b.mul(scale, -32.0)) }
        });
        parts.collect()
    }
    /// One element of a quantised weight.
    fn quant(&self, arg: ArgId, at: Val) -> Val {
        let b = &self.b;
        let at = b.let_("at", at);
        let parts = self.row_chunk(arg, b.bit_and(at, !3), 4);
        let found = parts.first().and_then(|p| p.quads.first().map(|q| (p, *q)));
        let Some((part, quad)) = found else { return b.f32(0.0) };
        let q = self.pick(self.floats(quad), b.bit_and(at, 3));
        let only = Part { quads: vec![Quad::Floats(q)], scale: part.scale, min: part.min };
        self.values(&[only]).first().copied().unwrap_or_else(|| b.f32(0.0))
    }
}
