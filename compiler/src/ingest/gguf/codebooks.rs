//! Block formats of 256 elements whose values are rows of fixed tables, or three values to a byte, as formats that
//! kernels read: those of one scale for 32 elements as [`Q8F`](frit_kernels::dtype::Storage::Q8F), ternary ones as
//! [`Q2K`](frit_kernels::dtype::Storage::Q2K). Every value is kept as it is.

use super::quant::half;

/// Rows of eight levels of 2 bits.
const IQ1_S: &[u8; 4096] = include_bytes!("grids/iq1_s.bin");
const IQ2_XXS: &[u8; 512] = include_bytes!("grids/iq2_xxs.bin");
/// Rows of four levels of 4 bits.
const IQ3_XXS: &[u8; 512] = include_bytes!("grids/iq3_xxs.bin");
const IQ3_S: &[u8; 1024] = include_bytes!("grids/iq3_s.bin");

/// The levels of row `index` of a table: a 16-bit word of `bits` each.
fn row(table: &[u8], index: usize, bits: usize, levels: &'static [i8]) -> impl Iterator<Item = i8> {
    let word = table.get(2 * index..).and_then(|t| t.first_chunk()).map_or(0, |t| u16::from_le_bytes(*t));
    let code = move |k: usize| usize::from(word >> (bits * k)) & ((1 << bits) - 1);
    (0..16 / bits).map(move |k| levels.get(code(k)).copied().unwrap_or(0))
}

/// Values with their signs: bit k of the signs is set where value k is negative.
fn signed(values: impl Iterator<Item = i8>, signs: u32) -> impl Iterator<Item = u8> {
    values.enumerate().map(move |(k, v)| (if signs >> k & 1 == 1 { -v } else { v }) as u8)
}

/// Seven signs as they are, and an eighth that makes the number of negative values even: four times eight of them.
fn even_signs(word: u32) -> u32 {
    (0..4).fold(0, |all, k| {
        let seven = word >> (7 * k) & 127;
        all | (seven | (seven.count_ones() & 1) << 7) << (8 * k)
    })
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// A block of 32 signed bytes with a 32-bit scale and minimum.
fn block(scale: f32, min: f32, values: impl Iterator<Item = u8>, out: &mut Vec<u8>) {
    out.extend(scale.to_le_bytes());
    out.extend(min.to_le_bytes());
    out.extend(values);
}

/// Eight groups: four indices, then a word of 28 sign bits and a 4-bit scale; `±level·d·(s + ½)/4`.
pub(super) fn iq2_xxs(bytes: &[u8], out: &mut Vec<u8>) {
    let (d, groups) = bytes.split_at(2);
    for group in groups.chunks_exact(8) {
        let (indices, rest) = group.split_at(4);
        let rest = word(rest);
        let values = indices.iter().flat_map(|i| row(IQ2_XXS, usize::from(*i), 2, &[8, 25, 43]));
        let scale = half(d) * (0.5 + (rest >> 28) as f32) * 0.25;
        block(scale, 0.0, signed(values, even_signs(rest)), out);
    }
}

/// Eight indices for each of eight groups, then for each a word of 28 sign bits and a 4-bit scale; `±level·d·(s + ½)/2`.
pub(super) fn iq3_xxs(bytes: &[u8], out: &mut Vec<u8>) {
    let (d, rest) = bytes.split_at(2);
    let (indices, words) = rest.split_at(64);
    for (indices, rest) in indices.chunks_exact(8).zip(words.chunks_exact(4)) {
        let rest = word(rest);
        let level = |i: &u8| row(IQ3_XXS, usize::from(*i), 4, &[4, 12, 20, 28, 36, 44, 52, 62]);
        let scale = half(d) * (0.5 + (rest >> 28) as f32) * 0.5;
        block(scale, 0.0, signed(indices.iter().flat_map(level), even_signs(rest)), out);
    }
}

/// Eight indices for each of eight groups, their ninth bits, 32 signs each, 4-bit scales; `±level·d·(2s + 1)`.
pub(super) fn iq3_s(bytes: &[u8], out: &mut Vec<u8>) {
    let (d, rest) = bytes.split_at(2);
    let (indices, rest) = rest.split_at(64);
    let (ninth, rest) = rest.split_at(8);
    let (signs, scales) = rest.split_at(32);
    let scales = scales.iter().flat_map(|s| [s & 15, s >> 4]);
    let groups = indices.chunks_exact(8).zip(ninth).zip(signs.chunks_exact(4)).zip(scales);
    for (((indices, ninth), signs), scale) in groups {
        let index = |(k, low): (usize, &u8)| usize::from(*low) | usize::from(ninth >> k & 1) << 8;
        let indices = indices.iter().enumerate().map(index);
        let values = indices.flat_map(|i| row(IQ3_S, i, 4, &[1, 3, 5, 7, 9, 11, 13, 15]));
        block(half(d) * f32::from(2 * scale + 1), 0.0, signed(values, word(signs)), out);
    }
}

/// Four indices for each of eight groups; for each a word with three more bits of each index, a 3-bit scale and the sign
/// of what is added to all levels; `(level ± ⅛)·d·(2s + 1)`.
pub(super) fn iq1_s(bytes: &[u8], out: &mut Vec<u8>) {
    let (d, rest) = bytes.split_at(2);
    let (indices, words) = rest.split_at(32);
    for (indices, rest) in indices.chunks_exact(4).zip(words.chunks_exact(2)) {
        let rest = word(rest) as usize;
        let scale = half(d) * (2 * (rest >> 12 & 7) + 1) as f32;
        let added = if rest >> 15 == 1 { -0.125 } else { 0.125 };
        let index = |(k, low): (usize, &u8)| usize::from(*low) | (rest >> (3 * k) & 7) << 8;
        let values = indices.iter().enumerate().map(index).flat_map(|i| row(IQ1_S, i, 2, &[-1, 0, 1]));
        block(scale, scale * added, values.map(|v| v as u8), out);
    }
}

/// 2-bit values and a scale, `(q − 1)·d`: the values lie as in Q2_K.
pub(super) fn tq2_0(bytes: &[u8], out: &mut Vec<u8>) {
    let (quants, d) = bytes.split_at(64);
    ternary(quants, d, out);
}

/// Five values of a byte, and four of each of the last four bytes: value n is the leading digit of `byte·3ⁿ` in base 3,
/// bytes being fractions of 256. `(q − 1)·d`.
pub(super) fn tq1_0(bytes: &[u8], out: &mut Vec<u8>) {
    let (fives, rest) = bytes.split_at(48);
    let (fours, d) = rest.split_at(4);
    let (wide, narrow) = fives.split_at(32);
    let mut quants = [0u8; 64];
    let parts = [(wide, 5), (narrow, 5), (fours, 4)];
    let digits = parts.into_iter().flat_map(|(bytes, digits)| {
        let powers = std::iter::successors(Some(1u8), |p| p.checked_mul(3)).take(digits);
        powers.flat_map(move |p| bytes.iter().map(move |b| ((u16::from(b.wrapping_mul(p)) * 3) >> 8) as u8))
    });
    for (i, digit) in digits.enumerate() {
        let (half, row, at) = (i / 128, i / 32 % 4, i % 32);
        quants.iter_mut().skip(32 * half + at).take(1).for_each(|q| *q |= digit << (2 * row));
    }
    ternary(&quants, d, out);
}

/// A block of Q2_K whose sixteen scales and minima are 1, so that both factors are `d`.
fn ternary(quants: &[u8], d: &[u8], out: &mut Vec<u8>) {
    out.extend([0x11; 16]);
    out.extend(quants);
    out.extend(d);
    out.extend(d);
}
