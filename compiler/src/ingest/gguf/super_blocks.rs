//! The values of blocks of 256 elements.

use super::quant::{coded, half};
use frit_kernels::dtype::IQ4_CODES;

/// The 2-bit values of a 256-block in order: two halves of 32 bytes, each byte holding four values 32 apart. With each
/// value come the index of its byte in its half and its row of 32.
fn crumbs(quants: &[u8]) -> impl Iterator<Item = (u8, usize, usize)> {
    quants.chunks_exact(32).enumerate().flat_map(|(half, bytes)| {
        (0..4).flat_map(move |row| {
            bytes.iter().enumerate().map(move |(at, byte)| ((byte >> (2 * row)) & 3, at, 4 * half + row))
        })
    })
}

/// Scales and minima of 16 values in nibbles, 2-bit values, a factor for each of the two: `q·d·s − dmin·m`.
pub(super) fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, rest) = block.split_at(16);
    let (quants, factors) = rest.split_at(64);
    let (scale, min) = factors.split_at(2);
    let (d, dmin) = (half(scale), half(min));
    let groups = scales.iter().flat_map(|s| std::iter::repeat_n(*s, 16));
    out.extend(
        crumbs(quants).zip(groups).map(|((q, ..), s)| d * f32::from(s & 15) * f32::from(q) - dmin * f32::from(s >> 4)),
    );
}

/// Bit r of byte `at` of the mask: whether value `at` of row r stays as it is; else 4 is taken from it. Sixteen 6-bit
/// scales, less 32: low nibbles in eight bytes, the other two bits in four.
pub(super) fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (mask, rest) = block.split_at(32);
    let (quants, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(12);
    let (low, high) = scales.split_at(8);
    let d = half(scale);
    let nibbles = low.iter().map(|s| s & 15).chain(low.iter().map(|s| s >> 4));
    let pairs = (0..4).flat_map(|row| high.iter().map(move |s| (s >> (2 * row)) & 3));
    let scales = nibbles.zip(pairs).flat_map(|(low, high)| std::iter::repeat_n(low | high << 4, 16));
    for ((q, at, row), scale) in crumbs(quants).zip(scales) {
        let stays = mask.get(at).is_some_and(|byte| byte >> row & 1 == 1);
        let q = f32::from(q) - if stays { 0.0 } else { 4.0 };
        out.push(d * (f32::from(scale) - 32.0) * q);
    }
}

/// The scale and the minimum of each of eight groups from their 12 bytes. They have 6 bits each: the first four of both
/// lie there directly, the last four split into 4 and 2 bits.
fn scales_and_minima(groups: &[u8]) -> impl Iterator<Item = (u8, u8)> {
    let (scales, rest) = groups.split_at(4);
    let (minima, packed) = rest.split_at(4);
    let direct = scales.iter().zip(minima).map(|(s, m)| (s & 63, m & 63));
    let split = packed.iter().zip(scales.iter().zip(minima));
    let split = split.map(|(p, (s, m))| ((p & 15) | (s >> 6) << 4, (p >> 4) | (m >> 6) << 4));
    direct.chain(split)
}

/// Eight groups of 32: two groups share 32 bytes, one in the low nibbles and one in the high.
pub(super) fn q4_k(block: &[u8], out: &mut Vec<f32>) {
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

/// As Q4_K, with a fifth bit of each value: bit g of byte `at` is for value `at` of group g of 32.
pub(super) fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    let (head, rest) = block.split_at(16);
    let (fifth, quants) = rest.split_at(32);
    let (factors, groups) = head.split_at(4);
    let (scale, min) = factors.split_at(2);
    let (d, dmin) = (half(scale), half(min));
    let halves = quants.chunks_exact(32).flat_map(|q| [(q, 0), (q, 4)]);
    for (group, ((scale, min), (quants, shift))) in scales_and_minima(groups).zip(halves).enumerate() {
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        out.extend(quants.iter().zip(fifth).map(|(q, bit)| {
            let q = (q >> shift) & 15 | (bit >> group & 1) << 4;
            d * f32::from(q) - m
        }));
    }
}

/// Two halves of 128, each of four rows of 32: low bits in nibbles of 64 bytes, high bits in pairs of 32 bytes, one
/// signed scale for each 16 values.
pub(super) fn q6_k(block: &[u8], out: &mut Vec<f32>) {
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

/// Eight groups with 6-bit scales, less 32: low nibbles in four bytes, the other two bits in a 16-bit word.
pub(super) fn iq4_xs(block: &[u8], out: &mut Vec<f32>) {
    let (head, quants) = block.split_at(8);
    let (scale, rest) = head.split_at(2);
    let (high, low) = rest.split_at(2);
    let d = half(scale);
    let high = high.try_into().map_or(0, u16::from_le_bytes);
    let low = low.iter().flat_map(|s| [s & 15, s >> 4]);
    for ((group, low), quants) in low.enumerate().zip(quants.chunks_exact(16)) {
        let scale = i16::from(low) + ((high >> (2 * group)) & 3) as i16 * 16;
        coded(quants, &IQ4_CODES, d * f32::from(scale - 32), out);
    }
}
