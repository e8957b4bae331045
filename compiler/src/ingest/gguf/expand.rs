//! Block formats that no kernel decodes: their tensors become F32 when they are read.

use super::quant::scales_and_minima;
use half::f16;

/// A block format that is expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the format's names")]
pub enum Packed {
    Q2K,
    Q3K,
    Q5K,
    Q8K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// Values of the 4-bit codes of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of the 4-bit floats of MXFP4: a sign, two bits of exponent, one of mantissa.
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl Packed {
    /// Elements and bytes of a block.
    pub const fn block(self) -> (u64, u64) {
        match self {
            Packed::Q2K => (256, 84),
            Packed::Q3K => (256, 110),
            Packed::Q5K => (256, 176),
            Packed::Q8K => (256, 292),
            Packed::Iq4Nl => (32, 18),
            Packed::Iq4Xs => (256, 136),
            Packed::Mxfp4 => (32, 17),
        }
    }

    /// The values of `bytes`, which hold whole blocks; `None` when they do not.
    pub fn expand(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let (elems, size) = self.block();
        let (elems, size) = (usize::try_from(elems).ok()?, usize::try_from(size).ok()?);
        if !bytes.len().is_multiple_of(size) {
            return None;
        }
        let mut out = Vec::with_capacity((bytes.len() / size).checked_mul(elems)?);
        for block in bytes.chunks_exact(size) {
            match self {
                Packed::Q2K => q2_k(block, &mut out),
                Packed::Q3K => q3_k(block, &mut out),
                Packed::Q5K => q5_k(block, &mut out),
                Packed::Q8K => q8_k(block, &mut out),
                Packed::Iq4Nl => iq4_nl(block, &mut out),
                Packed::Iq4Xs => iq4_xs(block, &mut out),
                Packed::Mxfp4 => mxfp4(block, &mut out),
            }
        }
        Some(out)
    }
}

fn half(bytes: &[u8]) -> f32 {
    match bytes {
        [low, high, ..] => f16::from_le_bytes([*low, *high]).to_f32(),
        _ => 0.0,
    }
}

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
fn q2_k(block: &[u8], out: &mut Vec<f32>) {
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
fn q3_k(block: &[u8], out: &mut Vec<f32>) {
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

/// As Q4_K, with a fifth bit of each value: bit g of byte `at` is for value `at` of group g of 32.
fn q5_k(block: &[u8], out: &mut Vec<f32>) {
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

/// A float and 256 signed bytes; sums of sixteen follow, which only products of blocks use.
fn q8_k(block: &[u8], out: &mut Vec<f32>) {
    let (scale, rest) = block.split_at(4);
    let d = scale.try_into().map_or(0.0, f32::from_le_bytes);
    out.extend(rest.iter().take(256).map(|q| d * f32::from(*q as i8)));
}

/// Low nibbles, then high ones, through a table.
fn coded(quants: &[u8], table: &[i8; 16], d: f32, out: &mut Vec<f32>) {
    let codes = quants.iter().map(|q| q & 15).chain(quants.iter().map(|q| q >> 4));
    out.extend(codes.map(|code| d * f32::from(table.get(usize::from(code)).copied().unwrap_or(0))));
}

fn iq4_nl(block: &[u8], out: &mut Vec<f32>) {
    let (scale, quants) = block.split_at(2);
    coded(quants, &IQ4, half(scale), out);
}

/// Eight groups with 6-bit scales, less 32: low nibbles in four bytes, the other two bits in a 16-bit word.
fn iq4_xs(block: &[u8], out: &mut Vec<f32>) {
    let (head, quants) = block.split_at(8);
    let (scale, rest) = head.split_at(2);
    let (high, low) = rest.split_at(2);
    let d = half(scale);
    let high = high.try_into().map_or(0, u16::from_le_bytes);
    let low = low.iter().flat_map(|s| [s & 15, s >> 4]);
    for ((group, low), quants) in low.enumerate().zip(quants.chunks_exact(16)) {
        let scale = i16::from(low) + ((high >> (2 * group)) & 3) as i16 * 16;
        coded(quants, &IQ4, d * f32::from(scale - 32), out);
    }
}

/// A power of two, `2^(e − 127)`, and 4-bit floats.
fn mxfp4(block: &[u8], out: &mut Vec<f32>) {
    let (exponent, quants) = block.split_at(1);
    let e = exponent.first().copied().unwrap_or(0);
    coded(quants, &FP4, (f32::from(e) - 128.0).exp2(), out);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn blocks_have_the_values_of_the_fixtures() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quant");
        let formats = [
            (Packed::Q2K, "q2_k"),
            (Packed::Q3K, "q3_k"),
            (Packed::Q5K, "q5_k"),
            (Packed::Q8K, "q8_k"),
            (Packed::Iq4Nl, "iq4_nl"),
            (Packed::Iq4Xs, "iq4_xs"),
            (Packed::Mxfp4, "mxfp4"),
        ];
        for (packed, stem) in formats {
            let blocks = std::fs::read(dir.join(format!("{stem}.bin"))).unwrap();
            let want = std::fs::read(dir.join(format!("{stem}.f32"))).unwrap();
            let want: Vec<f32> = want.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let got = packed.expand(&blocks).unwrap();
            assert_eq!(got.len(), want.len(), "{stem}");
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= w.abs() * 1e-6 + 1e-30, "{stem} value {i}: {g} and not {w}");
            }
        }
    }

    #[test]
    fn a_broken_block_has_no_values() {
        assert_eq!(Packed::Q5K.expand(&[0; 175]), None);
        assert_eq!(Packed::Iq4Nl.expand(&[]), Some(Vec::new()));
    }
}
