//! The values of stored blocks, as f32. Used to fold constants and by tests; kernels decode blocks themselves.

use super::super_blocks::{iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k};
use frit_kernels::dtype::{FP4_CODES, IQ4_CODES, Storage};
use half::{bf16, f16};

/// The values of `bytes`, which hold whole blocks of `storage`; `None` when they do not, or for integer storage.
///
/// The arithmetic is the formats' own, in f32: one product for symmetric blocks, a product and a sum for the others.
pub fn dequantize(storage: Storage, bytes: &[u8]) -> Option<Vec<f32>> {
    let block_bytes = usize::try_from(storage.block_bytes()).ok()?;
    if !bytes.len().is_multiple_of(block_bytes) {
        return None;
    }
    let blocks = bytes.chunks_exact(block_bytes);
    let mut out = Vec::with_capacity(blocks.len().checked_mul(usize::try_from(storage.block_elems()).ok()?)?);
    for block in blocks {
        match storage {
            Storage::F32 => out.push(f32::from_le_bytes(block.try_into().ok()?)),
            Storage::F16 => out.push(half(block)),
            Storage::Bf16 => out.push(bf16::from_le_bytes(block.try_into().ok()?).to_f32()),
            Storage::Q4_0 => q4_0(block, &mut out),
            Storage::Q4_1 => q4_1(block, &mut out),
            Storage::Q5_0 => q5_0(block, &mut out),
            Storage::Q5_1 => q5_1(block, &mut out),
            Storage::Q8_0 => q8_0(block, &mut out),
            Storage::Q2K => q2_k(block, &mut out),
            Storage::Q3K => q3_k(block, &mut out),
            Storage::Q4K => q4_k(block, &mut out),
            Storage::Q5K => q5_k(block, &mut out),
            Storage::Q6K => q6_k(block, &mut out),
            Storage::Iq4Nl => iq4_nl(block, &mut out),
            Storage::Iq4Xs => iq4_xs(block, &mut out),
            Storage::Fp4 => fp4(block, &mut out),
            Storage::Q4F => q4_f(block, &mut out),
            Storage::Q8F => q8_f(block, &mut out),
            Storage::I32 | Storage::Bool => return None,
        }
    }
    Some(out)
}

/// The f16 at the start of `bytes`.
pub(super) fn half(bytes: &[u8]) -> f32 {
    match bytes {
        [low, high, ..] => f16::from_le_bytes([*low, *high]).to_f32(),
        _ => 0.0,
    }
}

/// The low nibbles of `bytes`, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

/// 5-bit values: nibbles with one more bit each from a 32-bit word.
fn five_bits(high: &[u8], low: &[u8]) -> impl Iterator<Item = u8> {
    let high = high.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    nibbles(low).enumerate().map(move |(i, q)| q | (((high >> i) & 1) as u8) << 4)
}

fn q4_0(block: &[u8], out: &mut Vec<f32>) {
    let (scale, quants) = block.split_at(2);
    let d = half(scale);
    out.extend(nibbles(quants).map(|q| (f32::from(q) - 8.0) * d));
}

fn q4_1(block: &[u8], out: &mut Vec<f32>) {
    let (head, quants) = block.split_at(4);
    let (scale, min) = head.split_at(2);
    let (d, m) = (half(scale), half(min));
    out.extend(nibbles(quants).map(|q| f32::from(q) * d + m));
}

fn q5_0(block: &[u8], out: &mut Vec<f32>) {
    let (scale, rest) = block.split_at(2);
    let (high, low) = rest.split_at(4);
    let d = half(scale);
    out.extend(five_bits(high, low).map(|q| (f32::from(q) - 16.0) * d));
}

fn q5_1(block: &[u8], out: &mut Vec<f32>) {
    let (head, rest) = block.split_at(4);
    let (scale, min) = head.split_at(2);
    let (high, low) = rest.split_at(4);
    let (d, m) = (half(scale), half(min));
    out.extend(five_bits(high, low).map(|q| f32::from(q) * d + m));
}

fn q8_0(block: &[u8], out: &mut Vec<f32>) {
    let (scale, quants) = block.split_at(2);
    let d = half(scale);
    out.extend(quants.iter().map(|q| f32::from(*q as i8) * d));
}

/// Low nibbles, then high ones, through a table.
pub(super) fn coded(quants: &[u8], table: &[i8; 16], d: f32, out: &mut Vec<f32>) {
    out.extend(nibbles(quants).map(|code| d * f32::from(table.get(usize::from(code)).copied().unwrap_or(0))));
}

fn iq4_nl(block: &[u8], out: &mut Vec<f32>) {
    let (scale, quants) = block.split_at(2);
    coded(quants, &IQ4_CODES, half(scale), out);
}

fn fp4(block: &[u8], out: &mut Vec<f32>) {
    let (scale, quants) = block.split_at(2);
    coded(quants, &FP4_CODES, scale.try_into().map_or(0.0, |s| bf16::from_le_bytes(s).to_f32()), out);
}

/// Scale and minimum at the start of a block, and what follows.
fn wide(block: &[u8]) -> (f32, f32, &[u8]) {
    let (head, quants) = block.split_at(8);
    let (scale, min) = head.split_at(4);
    let float = |b: &[u8]| b.try_into().map_or(0.0, f32::from_le_bytes);
    (float(scale), float(min), quants)
}

fn q4_f(block: &[u8], out: &mut Vec<f32>) {
    let (d, m, quants) = wide(block);
    out.extend(nibbles(quants).map(|q| f32::from(q).mul_add(d, m)));
}

fn q8_f(block: &[u8], out: &mut Vec<f32>) {
    let (d, m, quants) = wide(block);
    out.extend(quants.iter().map(|q| f32::from(*q as i8).mul_add(d, m)));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn blocks_have_the_values_of_the_fixtures() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quant");
        for storage in Storage::ALL {
            let stem = storage.name();
            let Ok(blocks) = std::fs::read(dir.join(format!("{stem}.bin"))) else {
                assert!(matches!(storage, Storage::F32 | Storage::I32 | Storage::Bool), "no fixture of {storage}");
                continue;
            };
            let want = std::fs::read(dir.join(format!("{stem}.f32"))).unwrap();
            let want = dequantize(Storage::F32, &want).unwrap();
            let got = dequantize(storage, &blocks).unwrap();
            assert_eq!(got.len(), want.len(), "{storage}");
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let close = g == w || (g - w).abs() <= w.abs() * 1e-6 || (g.is_nan() && w.is_nan());
                assert!(close, "{storage} value {i}: {g} and not {w}");
            }
        }
    }

    #[test]
    fn a_broken_block_has_no_values() {
        assert_eq!(dequantize(Storage::Q8_0, &[0; 35]), None);
        assert_eq!(dequantize(Storage::I32, &[0; 4]), None);
        assert_eq!(dequantize(Storage::Q6K, &[]), Some(Vec::new()));
    }
}
