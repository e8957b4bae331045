//! Values of stored elements: blocks to floats.

use super::math::{bf16_to_f32, half_to_f32};
use frit_kernels::dtype::{FP4_CODES, IQ4_CODES, Storage};

#[inline(always)]
fn half_at(b: &[u8], i: usize) -> f32 {
    half_to_f32(u16::from_le_bytes([b[i], b[i + 1]]))
}

#[inline(always)]
fn float_at(b: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

/// Scale and minimum of group `j` in the twelve bytes that hold a Q4K or Q5K block's eight 6-bit pairs.
#[inline(always)]
pub fn q4k_group(groups: &[u8], j: usize) -> (f32, f32) {
    let (s, m) = if j < 4 {
        (groups[j] & 63, groups[j + 4] & 63)
    } else {
        let low = groups[j + 4];
        ((low & 15) | (groups[j - 4] >> 6) << 4, (low >> 4) | (groups[j] >> 6) << 4)
    };
    (s as f32, m as f32)
}

/// The element `i` of a block of 32 5-bit values: quants at `qs`, high bits at `qh`.
#[inline(always)]
fn five_bits(qs: &[u8], qh: u32, i: usize) -> i32 {
    let low = if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 };
    (low as i32) | ((qh >> i & 1) as i32) << 4
}

/// The quants of a 32-element block as small integers, and what turns them into values: `q·d + m`.
#[inline(always)]
pub fn unpack32(s: Storage, b: &[u8], q: &mut [f32; 32]) -> (f32, f32) {
    match s {
        Storage::Q4_0 => {
            let b: &[u8; 18] = fixed(b);
            nibbles(&b[2..], 8, q);
            (half_at(b, 0), 0.0)
        }
        Storage::Q4_1 => {
            let b: &[u8; 20] = fixed(b);
            nibbles(&b[4..], 0, q);
            (half_at(b, 0), half_at(b, 2))
        }
        Storage::Q5_0 => {
            let b: &[u8; 22] = fixed(b);
            let qh = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
            for (i, q) in q.iter_mut().enumerate() {
                *q = (five_bits(&b[6..], qh, i) - 16) as f32;
            }
            (half_at(b, 0), 0.0)
        }
        Storage::Q5_1 => {
            let b: &[u8; 24] = fixed(b);
            let qh = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
            for (i, q) in q.iter_mut().enumerate() {
                *q = five_bits(&b[8..], qh, i) as f32;
            }
            (half_at(b, 0), half_at(b, 2))
        }
        Storage::Iq4Nl => {
            let b: &[u8; 18] = fixed(b);
            coded(&b[2..], &IQ4_CODES, q);
            (half_at(b, 0), 0.0)
        }
        Storage::Fp4 => {
            let b: &[u8; 18] = fixed(b);
            coded(&b[2..], &FP4_CODES, q);
            (bf16_to_f32(u16::from_le_bytes([b[0], b[1]])), 0.0)
        }
        Storage::Q4F => {
            let b: &[u8; 24] = fixed(b);
            nibbles(&b[8..], 0, q);
            (float_at(b, 0), float_at(b, 4))
        }
        Storage::Q8F => {
            let b: &[u8; 40] = fixed(b);
            for i in 0..32 {
                q[i] = b[8 + i] as i8 as i32 as f32;
            }
            (float_at(b, 0), float_at(b, 4))
        }
        _ => {
            let b: &[u8; 34] = fixed(b);
            for i in 0..32 {
                q[i] = b[2 + i] as i8 as i32 as f32;
            }
            (half_at(b, 0), 0.0)
        }
    }
}

/// The low, then the high nibbles of 16 bytes, less `zero`.
#[inline(always)]
fn nibbles(bytes: &[u8], zero: i32, q: &mut [f32; 32]) {
    for i in 0..16 {
        q[i] = ((bytes[i] & 15) as i32 - zero) as f32;
        q[16 + i] = ((bytes[i] >> 4) as i32 - zero) as f32;
    }
}

/// What the low, then the high nibbles of 16 bytes stand for.
#[inline(always)]
fn coded(bytes: &[u8], table: &[i8; 16], q: &mut [f32; 32]) {
    for i in 0..16 {
        q[i] = table[(bytes[i] & 15) as usize] as f32;
        q[16 + i] = table[(bytes[i] >> 4) as usize] as f32;
    }
}

/// Row `j` (of 8, each of 32 elements) of a Q2K block, as values: its halves have minima of their own.
#[inline(always)]
pub fn unpack_q2k(b: &[u8; 84], j: usize, q: &mut [f32; 32]) {
    let quants = &b[16 + j / 4 * 32..][..32];
    let shift = j % 4 * 2;
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for i in 0..32 {
        let s = b[2 * j + i / 16];
        q[i] = ((quants[i] >> shift & 3) as i32 as f32).mul_add(d * (s & 15) as f32, -dmin * (s >> 4) as f32);
    }
}

/// Row `j` (of 8, each of 32 elements) of a Q3K block: `q·d`, one d for each half.
#[inline(always)]
pub fn unpack_q3k(b: &[u8; 110], j: usize, q: &mut [f32; 32]) -> (f32, f32) {
    let quants = &b[32 + j / 4 * 32..][..32];
    let shift = j % 4 * 2;
    for i in 0..32 {
        let v = (quants[i] >> shift & 3) as i32 | ((b[i] >> j & 1) as i32) << 2;
        q[i] = (v - 4) as f32;
    }
    let d = half_at(b, 108);
    let scale = |g: usize| {
        let (low, high) = (b[96 + g % 8] >> (g / 8 * 4) & 15, b[104 + g % 4] >> (g / 4 * 2) & 3);
        d * ((low | high << 4) as f32 - 32.0)
    };
    (scale(2 * j), scale(2 * j + 1))
}

/// Row `j` (of 8, each of 32 elements) of a Q5K block: `q·d + m`.
#[inline(always)]
pub fn unpack_q5k(b: &[u8; 176], j: usize, q: &mut [f32; 32]) -> (f32, f32) {
    let (high, low) = (&b[16..48], &b[48 + j / 2 * 32..][..32]);
    let shift = j % 2 * 4;
    for i in 0..32 {
        q[i] = ((low[i] >> shift & 15) as i32 | ((high[i] >> j & 1) as i32) << 4) as f32;
    }
    let (s, m) = q4k_group(&b[4..16], j);
    (half_at(b, 0) * s, -half_at(b, 2) * m)
}

/// Group `j` (of 8, each of 32 elements) of an IQ4_XS block: `q·d`.
#[inline(always)]
pub fn unpack_iq4_xs(b: &[u8; 136], j: usize, q: &mut [f32; 32]) -> f32 {
    coded(&b[8 + 16 * j..], &IQ4_CODES, q);
    let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * j) & 3;
    let low = b[4 + j / 2] >> (j % 2 * 4) & 15;
    half_at(b, 0) * (f32::from(u16::from(low) | high << 4) - 32.0)
}

/// Sub-block `j` (of 8, each of 32 elements) of a Q4K block: `q·d + m`.
#[inline(always)]
pub fn unpack_q4k(b: &[u8; 144], j: usize, q: &mut [f32; 32]) -> (f32, f32) {
    let qs = &b[16 + j / 2 * 32..16 + j / 2 * 32 + 32];
    let shift = (j % 2) * 4;
    for i in 0..32 {
        q[i] = (qs[i] >> shift & 15) as i32 as f32;
    }
    let (s, m) = q4k_group(&b[4..16], j);
    (half_at(b, 0) * s, -half_at(b, 2) * m)
}

/// Sub-block `j` (of 8, each of 32 elements) of a Q6K block: `q·d`, one d for each half.
#[inline(always)]
pub fn unpack_q6k(b: &[u8; 210], j: usize, q: &mut [f32; 32]) -> (f32, f32) {
    let (half, quarter) = (j / 4, j % 4);
    let ql = &b[half * 64 + (quarter % 2) * 32..][..32];
    let qh = &b[128 + half * 32..][..32];
    let (low, high) = ((quarter / 2) * 4, quarter * 2);
    for i in 0..32 {
        let v = (ql[i] >> low & 15) as i32 | ((qh[i] >> high & 3) as i32) << 4;
        q[i] = (v - 32) as f32;
    }
    let d = half_at(b, 208);
    let sc = |g: usize| b[192 + half * 8 + quarter * 2 + g] as i8 as f32;
    (d * sc(0), d * sc(1))
}

/// `b` as an array; zeros when it is too short.
#[inline(always)]
pub fn fixed<const N: usize>(b: &[u8]) -> &[u8; N] {
    b.first_chunk().unwrap_or(const { &[0; N] })
}

#[inline(always)]
fn block32(s: Storage, b: &[u8], out: &mut [f32; 32]) {
    let (d, m) = unpack32(s, b, out);
    out.iter_mut().for_each(|q| *q = q.mul_add(d, m));
}

/// Elements `[at, at + out.len())` of quantised `bytes`; `false` when they do not lie inside.
pub fn blocks(s: Storage, bytes: &[u8], at: usize, out: &mut [f32]) -> bool {
    struct Go<'a>(Storage, &'a [u8], usize, &'a mut [f32]);
    impl pulp::NullaryFnOnce for Go<'_> {
        type Output = bool;
        #[inline(always)]
        fn call(self) -> bool {
            run(self.0, self.1, self.2, self.3)
        }
    }
    pulp::Arch::new().dispatch(Go(s, bytes, at, out))
}

#[inline(always)]
fn run(s: Storage, bytes: &[u8], at: usize, out: &mut [f32]) -> bool {
    let (elems, size) = (s.block_elems() as usize, s.block_bytes() as usize);
    if at.checked_add(out.len()).is_none_or(|end| end > bytes.len() / size * elems) {
        return false;
    }
    let mut done = 0;
    while done < out.len() {
        let e = at + done;
        let (sub, skip) = (e / 32, e % 32);
        let block = bytes.get(e / elems * size..).unwrap_or_default();
        let mut q = [0f32; 32];
        match s {
            Storage::Q4K => {
                let (d, m) = unpack_q4k(fixed(block), sub % 8, &mut q);
                q.iter_mut().for_each(|q| *q = q.mul_add(d, m));
            }
            Storage::Q5K => {
                let (d, m) = unpack_q5k(fixed(block), sub % 8, &mut q);
                q.iter_mut().for_each(|q| *q = q.mul_add(d, m));
            }
            Storage::Iq4Xs => {
                let d = unpack_iq4_xs(fixed(block), sub % 8, &mut q);
                q.iter_mut().for_each(|q| *q *= d);
            }
            Storage::Q2K => unpack_q2k(fixed(block), sub % 8, &mut q),
            Storage::Q3K | Storage::Q6K => {
                let (d0, d1) = match s {
                    Storage::Q3K => unpack_q3k(fixed(block), sub % 8, &mut q),
                    _ => unpack_q6k(fixed(block), sub % 8, &mut q),
                };
                q[..16].iter_mut().for_each(|q| *q *= d0);
                q[16..].iter_mut().for_each(|q| *q *= d1);
            }
            _ => block32(s, block, &mut q),
        }
        let n = (32 - skip).min(out.len() - done);
        out[done..done + n].copy_from_slice(&q[skip..skip + n]);
        done += n;
    }
    true
}

/// All elements of a tensor stored as `s`, as floats; integers as their values.
pub fn to_f32(s: Storage, bytes: &[u8]) -> Vec<f32> {
    let pair = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
    let quad = |c: &[u8]| [c[0], c[1], c[2], c[3]];
    match s {
        Storage::F32 => bytes.chunks_exact(4).map(|c| f32::from_le_bytes(quad(c))).collect(),
        Storage::I32 | Storage::Bool => bytes.chunks_exact(4).map(|c| i32::from_le_bytes(quad(c)) as f32).collect(),
        Storage::F16 => bytes.chunks_exact(2).map(|c| half_to_f32(pair(c))).collect(),
        Storage::Bf16 => bytes.chunks_exact(2).map(|c| bf16_to_f32(pair(c))).collect(),
        _ => {
            let mut out = vec![0.0; bytes.len() / s.block_bytes() as usize * s.block_elems() as usize];
            blocks(s, bytes, 0, &mut out);
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_reads_as_its_fixture() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quant");
        for s in Storage::ALL {
            let (Ok(bytes), Ok(want)) =
                (std::fs::read(dir.join(format!("{s}.bin"))), std::fs::read(dir.join(format!("{s}.f32"))))
            else {
                assert!(matches!(s, Storage::F32 | Storage::I32 | Storage::Bool), "{s} has no fixture");
                continue;
            };
            let want: Vec<f32> = want.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
            let got = to_f32(s, &bytes);
            assert_eq!(got.len(), want.len(), "{s}");
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= 1e-6 * w.abs().max(1e-3), "{s} element {i}: {g} for {w}");
            }
            if s.is_quantised() {
                let mut part = [0f32; 77];
                assert!(blocks(s, &bytes, 45, &mut part));
                assert_eq!(part[..], got[45..122], "{s}");
                assert!(!blocks(s, &bytes, got.len() - 76, &mut part));
            }
        }
    }
}
