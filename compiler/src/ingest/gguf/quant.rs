//! The values of stored blocks, as f32. Used to fold constants and by tests; kernels decode blocks themselves.

use frit_kernels::dtype::Storage;
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
            Storage::Q4K => q4_k(block, &mut out),
            Storage::Q6K => q6_k(block, &mut out),
            Storage::I32 | Storage::Bool => return None,
        }
    }
    Some(out)
}

/// The f16 at the start of `bytes`.
fn half(bytes: &[u8]) -> f32 {
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

/// The scale and the minimum of each of eight groups from their 12 bytes. They have 6 bits each: the first four of both
/// lie there directly, the last four split into 4 and 2 bits.
pub(super) fn scales_and_minima(groups: &[u8]) -> impl Iterator<Item = (u8, u8)> {
    let (scales, rest) = groups.split_at(4);
    let (minima, packed) = rest.split_at(4);
    let direct = scales.iter().zip(minima).map(|(s, m)| (s & 63, m & 63));
    let split = packed.iter().zip(scales.iter().zip(minima));
    let split = split.map(|(p, (s, m))| ((p & 15) | (s >> 6) << 4, (p >> 4) | (m >> 6) << 4));
    direct.chain(split)
}

/// Eight groups of 32: two groups share 32 bytes, one in the low nibbles and one in the high.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (head, quants) = block.split_at(16);
    let (factors, groups) = head.split_at(4);
    let (scale, min) = factors.split_at(2);
    let (d, dmin) = (half(scale), half(min));
    let halves = quants.chunks_exact(32).flat_map(|q| [(q, 0), (q, 4)]);
    for ((scale, min), (quants, shift)) in scales_and_minima(groups).zip(halves) {
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        out.extend(quants.iter().map(|q| f32::from((q >> shift) & 15) * d - m));
    }
}

/// Two halves of 128, each of four rows of 32: low bits in nibbles of 64 bytes, high bits in pairs of 32 bytes, one
/// signed scale for each 16 values.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let d = half(scale);
    for ((low, high), scales) in low.chunks_exact(64).zip(high.chunks_exact(32)).zip(scales.chunks_exact(8)) {
        let (first, second) = low.split_at(32);
        let rows = [(first, 0, 0), (second, 0, 2), (first, 4, 4), (second, 4, 6)];
        for ((low, low_shift, high_shift), scales) in rows.into_iter().zip(scales.chunks_exact(2)) {
            let scales = scales.iter().flat_map(|s| std::iter::repeat_n(*s as i8, 16));
            for ((low, high), scale) in low.iter().zip(high).zip(scales) {
                let q = ((low >> low_shift) & 15) | ((high >> high_shift) & 3) << 4;
                out.push(d * f32::from(scale) * (f32::from(q) - 32.0));
            }
        }
    }
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
