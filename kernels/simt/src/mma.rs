//! Matrix instructions: `ldmatrix` and `mma.sync` of m16n8 tiles, with the fragment layouts of the instruction set.

use crate::access::Places;
use crate::approx::mix;
use crate::halves::to_half;
use crate::machine::{Machine, Warp};
use crate::op::{Addr, Elem, LANES, Mma, MmaElem, Reg, Row, Space};
use crate::report::ViolationKind;
use half::{bf16, f16};

const M: usize = 16;
const N: usize = 8;

impl MmaElem {
    /// Elements in a register.
    pub(crate) fn per_word(self) -> usize {
        match self {
            MmaElem::F16 | MmaElem::Bf16 => 2,
            MmaElem::Tf32 => 1,
            MmaElem::S8 | MmaElem::U8 => 4,
        }
    }
    /// Element `j` of a register.
    pub(crate) fn get(self, word: u32, j: usize) -> f64 {
        match self {
            MmaElem::F16 => f16::from_bits((word >> (16 * j)) as u16).to_f64(),
            MmaElem::Bf16 => bf16::from_bits((word >> (16 * j)) as u16).to_f64(),
            // The low 13 bits of a tf32 operand are ignored.
            MmaElem::Tf32 => f32::from_bits(word & !0x1fff).into(),
            MmaElem::S8 => f64::from((word >> (8 * j)) as u8 as i8),
            MmaElem::U8 => f64::from((word >> (8 * j)) as u8),
        }
    }
    pub(crate) fn is_integer(self) -> bool {
        matches!(self, MmaElem::S8 | MmaElem::U8)
    }
}

impl Machine<'_> {
    /// All lanes must take part in a matrix instruction.
    fn whole_warp(&mut self, w: &Warp, mask: u32) {
        if mask != u32::MAX {
            self.violate(w, !mask, ViolationKind::CollectiveDivergence, None);
        }
    }

    /// Tile `i` of 8 rows of 16 bytes, whose addresses the lanes `8 i .. 8 i + 8` hold, to register `reg + i`.
    pub(crate) fn ldmatrix(
        &mut self,
        w: &mut Warp,
        reg: Reg,
        (addr, long, imm): (Reg, bool, i64),
        tiles: u8,
        transposed: bool,
        mask: u32,
    ) {
        self.whole_warp(w, mask);
        let space = Space::Shared;
        let addr = if long { Addr::Long { base: addr, imm, space } } else { Addr::Short { base: addr, imm, space } };
        let named = if tiles >= 4 { u32::MAX } else { (1 << (8 * tiles)) - 1 };
        let Some(rows) = self.places(w, &addr, named).into_iter().next() else { return };
        for tile in 0..usize::from(tiles) {
            let mut offsets = [0; LANES];
            let mut misaligned = 0;
            for (i, o) in offsets.iter_mut().enumerate() {
                let row = rows.offsets[8 * tile + i / 4];
                misaligned |= u32::from(row % 16 != 0) << (8 * tile + i / 4);
                *o = row + 4 * (i as u64 % 4);
            }
            if misaligned != 0 {
                let lane = misaligned.trailing_zeros() as usize;
                let place = Some((rows.segment, rows.offsets[lane]));
                self.violate(w, misaligned, ViolationKind::Misaligned { align: 16 }, place);
                continue;
            }
            let read = Places { segment: rows.segment, offsets, mask: u32::MAX };
            let mut good = self.permitted(w, &read, 4, 4, false, false);
            // Which lane reads a word is not said, so no lane may count on its own writes.
            let turned = std::array::from_fn(|i| offsets[(i + LANES / 2) % LANES]);
            let again = Places { segment: rows.segment, offsets: turned, mask: good.rotate_right(LANES as u32 / 2) };
            good &= self.permitted(w, &again, 4, 4, false, false).rotate_left(LANES as u32 / 2);
            let whole = Places { segment: rows.segment, offsets, mask: u32::MAX };
            self.count_access(&whole, 4, false);
            let Some(s) = self.memory.segments.get(rows.segment) else { return };
            let mut words: Row = [0; LANES];
            for (i, word) in words.iter_mut().enumerate().filter(|(i, _)| good >> i & 1 == 1) {
                *word = s.get(offsets[i], Elem::B32, 0).0;
            }
            if transposed {
                let half = |row: usize, col: usize| words[4 * row + col / 2] >> (16 * (col % 2)) & 0xffff;
                let mut turned = [0; LANES];
                for (i, t) in turned.iter_mut().enumerate() {
                    let (k, n) = (2 * (i % 4), i / 4);
                    *t = half(k, n) | half(k + 1, n) << 16;
                }
                words = turned;
            }
            w.set(reg + tile as u32, &words, mask);
        }
    }

    /// `D[16, 8] = A[16, k] B[k, 8] + C[16, 8]`. Registers: those of D, A, B, C in this order.
    ///
    /// With `g = lane / 4`, `t = lane % 4` and `e` elements a register, register `r` of A holds row `g + 8 (r % 2)`,
    /// columns `4 e (r / 2) + e t ..`; register `r` of B holds column `g` and rows `4 e r + e t ..`; register `r` of C
    /// and D holds row `g + 8 (r / 2)`, column `2 t + r % 2`, or two columns in one register where they are f16.
    pub(crate) fn mma(&mut self, w: &mut Warp, m: &Mma, mask: u32) {
        self.whole_warp(w, mask);
        let Some(regs) = self.program.lists.get(m.regs as usize) else { return };
        let k = usize::from(m.k);
        let (na, nb) = (2 * k / (4 * m.a.per_word()), k / (4 * m.b.per_word()));
        let nc = if m.half_out { 2 } else { 4 };
        let (Some(d), Some(a)) = (regs.get(..nc), regs.get(nc..nc + na)) else { return };
        let (Some(b), Some(c)) = (regs.get(nc + na..nc + na + nb), regs.get(nc + na + nb..)) else { return };
        let (mut left, mut right) = (vec![[0f64; 64]; M], vec![[0f64; 64]; N]);
        for lane in 0..LANES {
            let (g, t) = (lane / 4, lane % 4);
            let e = m.a.per_word();
            for (r, reg) in a.iter().enumerate() {
                for j in 0..e {
                    left[g + 8 * (r % 2)][4 * e * (r / 2) + e * t + j] = m.a.get(w.row(*reg)[lane], j);
                }
            }
            let e = m.b.per_word();
            for (r, reg) in b.iter().enumerate() {
                for j in 0..e {
                    right[g][4 * e * r + e * t + j] = m.b.get(w.row(*reg)[lane], j);
                }
            }
        }
        let finite = left.iter().chain(&right).all(|r| r.iter().all(|v| v.is_finite()));
        let order = self.mma_order(k);
        let mut out = vec![[0u32; LANES]; nc];
        let mut born = 0;
        for (lane, part) in (0..LANES).flat_map(|lane| (0..4).map(move |part| (lane, part))) {
            let (g, t) = (lane / 4, lane % 4);
            let (row, col) = (&left[g + 8 * (part / 2)], &right[2 * t + part % 2]);
            let (reg, shift) = if m.half_out { (part / 2, 16 * (part % 2)) } else { (part, 0) };
            let start = c.get(reg).map_or(0, |c| w.row(*c)[lane]);
            if m.a.is_integer() {
                let sum: i64 = (0..k).map(|i| (row[i] * col[i]) as i64).sum();
                out[reg][lane] = start.wrapping_add(sum as u32);
                continue;
            }
            let start = match m.half_out {
                true => f16::from_bits((start >> shift) as u16).to_f64(),
                false => f64::from(f32::from_bits(start)),
            };
            let sum = sum_of(&row[..k], &col[..k], start, order.as_deref());
            let (bits, ok) = match m.half_out {
                true => (u32::from(to_half(sum).to_bits()), to_half(sum).is_finite()),
                false => ((sum as f32).to_bits(), (sum as f32).is_finite()),
            };
            out[reg][lane] |= bits << shift;
            born |= u32::from(!ok && finite && start.is_finite()) << lane;
        }
        if born != 0 && self.options.finite {
            self.violate(w, born, ViolationKind::NotFinite, None);
        }
        for (reg, row) in d.iter().zip(&out) {
            w.set(*reg, row, mask);
        }
    }

    pub(crate) fn mma_order(&self, k: usize) -> Option<Vec<usize>> {
        let seed = self.options.permute_mma?;
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by_key(|i| mix(seed, *i as u64));
        Some(order)
    }
}

/// `start + Σ row col`, exact, or cut after each product in an order that is given.
pub(crate) fn sum_of(row: &[f64], col: &[f64], start: f64, order: Option<&[usize]>) -> f64 {
    match order {
        None => row.iter().zip(col).fold(0.0, |s, (x, y)| s + x * y) + start,
        Some(o) => o.iter().fold(start, |s, i| toward_zero(s + row[*i] * col[*i])),
    }
}

/// A sum cut to the precision of f32.
fn toward_zero(x: f64) -> f64 {
    let near = x as f32;
    if f64::from(near).abs() > x.abs() && near.is_finite() {
        return f32::from_bits(near.to_bits() - 1).into();
    }
    near.into()
}
