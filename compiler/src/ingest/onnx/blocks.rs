//! Quantised constants as blocks that kernels decode.
//!
//! `(q − zero)·scale` is `q·d + m` with `d = scale` and `m = −zero·scale`. Where every run of 32 elements of a row that
//! kernels read shares a scale and a zero point, the tensor is kept in blocks of 32 with `d` and `m` each: as f16 where
//! that loses nothing, else as f32. A tensor of any other form becomes F32.

use super::elem::Elem;
use super::stock::{Dequantize, Layout, Stock, TensorId};
use frit_kernels::dtype::Storage;
use half::f16;

/// Elements of a block.
const RUN: u64 = 32;

impl Dequantize {
    /// Whether the runs of 32 along rows of `shape` share a scale; `transposed`: the rows are the columns of `shape`,
    /// which has two extents.
    fn has_runs(&self, shape: &[u64], transposed: bool) -> bool {
        let [outer, extent, inner] = self.view;
        let whole = self.block.is_multiple_of(RUN);
        let row = match (transposed, shape) {
            (true, [k, _]) | (false, [.., k]) => *k,
            _ => return false,
        };
        if !row.is_multiple_of(RUN) {
            return false;
        }
        match (self.layout, transposed, shape) {
            (Layout::Single, ..) => true,
            (Layout::Axis, false, _) if inner > 1 => inner.is_multiple_of(RUN),
            (_, false, _) => inner == 1 && whole && extent.is_multiple_of(RUN),
            (Layout::Axis, true, [k, n]) if [outer, extent, inner] == [*k, *n, 1] => true,
            (_, true, [k, n]) => [outer, extent, inner] == [1, *k, *n] && whole,
            _ => false,
        }
    }
}

/// What a tensor becomes in blocks.
struct Blocks {
    storage: Storage,
    /// Added to the integers, and so to zero points, for the storage's range.
    shift: i64,
}

/// `d` and `m`.
fn factors(scale: f32, zero: f32) -> (f32, f32) {
    (scale, if zero == 0.0 { 0.0 } else { -zero * scale })
}

fn is_half(v: f32) -> bool {
    v.is_finite() && f16::from_f32(v).to_f32() == v
}

impl Stock {
    /// The storage that keeps a quantised tensor of `shape` as blocks; `None` when it is no such tensor.
    pub fn block_storage(&self, id: TensorId, shape: &[u64], transposed: bool) -> Option<Storage> {
        let d = self.dequantize(id)?;
        d.has_runs(shape, transposed).then(|| self.layout_of(d).map(|b| b.storage))?
    }

    fn layout_of(&self, d: &Dequantize) -> Option<Blocks> {
        let few = d.packed_bits.is_some_and(|b| b <= 4);
        let (few, shift) = match (self.get(d.q)?.elem, d.packed_bits) {
            (Elem::Uint8, Some(_)) if few => (true, 0),
            (Elem::Uint8, Some(8) | None) => (false, -128),
            (Elem::Int8, None) => (false, 0),
            (Elem::Uint4, None) => (true, 0),
            (Elem::Int4, None) => (true, 8),
            _ => return None,
        };
        let (scales, zeros) = (self.scales(d).ok()?, self.zeros(d).ok()?);
        let (scales, zeros) = (scales.unwrap_or_else(|| vec![1.0]), zeros.unwrap_or_else(|| vec![d.default_zero]));
        if scales.iter().chain(&zeros).any(|v| !v.is_finite()) {
            return None;
        }
        let count = scales.len().max(zeros.len());
        let at = |v: &[f32], i: usize| if v.len() == 1 { v.first().copied() } else { v.get(i).copied() };
        let pairs: Vec<(f32, f32)> =
            (0..count).map(|i| Some((at(&scales, i)?, at(&zeros, i)? + shift as f32))).collect::<Option<_>>()?;
        let halves = pairs.iter().all(|(s, _)| is_half(*s));
        let centre = if few { 8.0 } else { 0.0 };
        let centred = pairs.iter().all(|(_, z)| *z == centre);
        let storage = match (few, halves, centred) {
            (true, true, true) => Storage::Q4_0,
            (true, true, _) if pairs.iter().all(|(s, z)| is_half(factors(*s, *z).1)) => Storage::Q4_1,
            (true, ..) => Storage::Q4F,
            (false, true, true) => Storage::Q8_0,
            (false, ..) => Storage::Q8F,
        };
        Some(Blocks { storage, shift })
    }

    /// The blocks of a tensor for which [`Stock::block_storage`] names a storage.
    ///
    /// # Errors
    /// A file that cannot be read any more, too few values or scales.
    pub fn blocks(&self, id: TensorId, shape: &[u64], transposed: bool) -> Result<Vec<u8>, String> {
        let gone = || "a constant that does not exist".to_owned();
        let d = self.dequantize(id).ok_or_else(gone)?;
        let Blocks { storage, shift } = self.layout_of(d).ok_or_else(gone)?;
        let (scales, zeros) = (self.scales(d)?, self.zeros(d)?);
        let q = self.integers(d)?;
        let count = shape.iter().product::<u64>();
        let (rows, row, row_step, step) = match (transposed, shape) {
            (true, [k, n]) => (*n, *k, 1, *n),
            (_, [.., k]) => (count / (*k).max(1), *k, *k, 1),
            _ => return Err(gone()),
        };
        let mut out = Vec::with_capacity(storage.size_bytes(count).and_then(|n| usize::try_from(n).ok()).unwrap_or(0));
        for r in 0..rows {
            for run in 0..row / RUN {
                let first = r * row_step + run * RUN * step;
                let at = d.scale_at(first);
                let part = |v: &Option<Vec<f32>>, default: f32| match v {
                    Some(v) => v.get(at).copied().ok_or("too few scales or zero points"),
                    None => Ok(default),
                };
                let zero = part(&zeros, d.default_zero)? + shift as f32;
                let mut quants = [0u8; RUN as usize];
                for (i, quant) in (0..RUN).zip(&mut quants) {
                    let v = q.at(first + i * step).ok_or("too few quantised values")? + shift;
                    *quant = v as u8;
                }
                write(storage, factors(part(&scales, 1.0)?, zero), &quants, &mut out);
            }
        }
        Ok(out)
    }
}

fn write(storage: Storage, (d, m): (f32, f32), quants: &[u8; RUN as usize], out: &mut Vec<u8>) {
    let half = |v: f32| f16::from_f32(v).to_le_bytes();
    match storage {
        Storage::Q4_0 | Storage::Q8_0 => out.extend(half(d)),
        Storage::Q4_1 => out.extend([half(d), half(m)].concat()),
        _ => out.extend([d.to_le_bytes(), m.to_le_bytes()].concat()),
    }
    match storage {
        Storage::Q8_0 | Storage::Q8F => out.extend(quants),
        _ => {
            let (low, high) = quants.split_at(16);
            out.extend(low.iter().zip(high).map(|(l, h)| l & 15 | h << 4));
        }
    }
}
