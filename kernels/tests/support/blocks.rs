//! Contents of arguments: as model files store them, as numbers, and as words of the device layout.

use frit_kernels::dtype::{FP4_CODES, IQ4_CODES, Storage, plane_bytes};

/// What an argument holds.
#[derive(Clone, Debug)]
pub enum Data {
    /// Floats.
    F32(Vec<f32>),
    /// Integers, or truth values as 0 and 1.
    I32(Vec<i32>),
    /// 16-bit and quantised storage as in model files.
    Bytes(Vec<u8>),
}

/// A reproducible stream of numbers.
pub struct Random(u64);

impl Random {
    /// A stream.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u32
    }
    /// Uniform in −1 … 1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
    /// Uniform in 0 … n − 1.
    pub fn below(&mut self, n: u32) -> u32 {
        self.bits() % n
    }
    /// Floats in −1 … 1.
    pub fn floats(&mut self, n: usize) -> Data {
        Data::F32((0..n).map(|_| self.unit()).collect())
    }
    /// Integers below `n`.
    pub fn ints(&mut self, len: usize, n: u32) -> Data {
        Data::I32((0..len).map(|_| self.below(n) as i32).collect())
    }
    /// `len` elements of any storage, of magnitude about 1 at most.
    pub fn stored(&mut self, s: Storage, len: usize) -> Data {
        match s {
            Storage::F32 => self.floats(len),
            Storage::I32 => self.ints(len, 1000),
            Storage::Bool => self.ints(len, 2),
            Storage::F16 => Data::Bytes((0..len).flat_map(|_| half(self.unit()).to_le_bytes()).collect()),
            Storage::Bf16 => {
                Data::Bytes((0..len).flat_map(|_| ((self.unit().to_bits() >> 16) as u16).to_le_bytes()).collect())
            }
            _ => {
                let blocks = len / s.block_elems() as usize;
                assert_eq!(blocks * s.block_elems() as usize, len, "whole blocks");
                Data::Bytes((0..blocks).flat_map(|_| self.block(s)).collect())
            }
        }
    }
    fn wide(&mut self, most: [f32; 2]) -> [u8; 8] {
        let [d, m] = most.map(|most| (self.unit() * most).to_le_bytes());
        [d[0], d[1], d[2], d[3], m[0], m[1], m[2], m[3]]
    }
    fn block(&mut self, s: Storage) -> Vec<u8> {
        let mut b: Vec<u8> = (0..s.block_bytes()).map(|_| self.bits() as u8).collect();
        let scales: &[(usize, f32)] = match s {
            Storage::Q4_0 => &[(0, 0.12)],
            Storage::Q4_1 => &[(0, 0.12), (2, 0.9)],
            Storage::Q5_0 => &[(0, 0.06)],
            Storage::Q5_1 => &[(0, 0.06), (2, 0.9)],
            Storage::Q8_0 => &[(0, 0.008)],
            Storage::Q2K => &[(80, 0.02), (82, 0.05)],
            Storage::Q3K => &[(108, 0.008)],
            Storage::Q4K => &[(0, 0.002), (2, 0.015)],
            Storage::Q5K => &[(0, 0.001), (2, 0.015)],
            Storage::Q6K => &[(208, 0.0003)],
            Storage::Iq4Nl => &[(0, 0.008)],
            Storage::Iq4Xs => &[(0, 0.0003)],
            _ => &[],
        };
        for (at, most) in scales {
            let h = half(self.unit() * most).to_le_bytes();
            b[*at..at + 2].copy_from_slice(&h);
        }
        match s {
            Storage::Fp4 => b[..2].copy_from_slice(&((self.unit() * 0.08).to_bits().to_le_bytes()[2..])),
            Storage::Q4F => b[..8].copy_from_slice(&self.wide([0.12, 0.9])),
            Storage::Q8F => b[..8].copy_from_slice(&self.wide([0.006, 0.2])),
            _ => {}
        }
        b
    }
}

/// The nearest f16, for magnitudes below 65504.
pub fn half(v: f32) -> u16 {
    let bits = v.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let a = v.abs();
    if a < 6.103_515_6e-5 {
        return sign | (a * 16_777_216.0).round() as u16;
    }
    let rounded = (bits & 0x7fff_ffff) + 0x1000;
    sign | ((rounded >> 13) - (112 << 10)) as u16
}

/// The value of an f16.
pub fn unhalf(h: u16) -> f64 {
    let sign = if h & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (e, m) = (i32::from(h >> 10 & 31), f64::from(h & 1023));
    if e == 0 { sign * m * 2f64.powi(-24) } else { sign * (1.0 + m / 1024.0) * 2f64.powi(e - 15) }
}

/// The numbers of an argument.
pub fn elements(s: Storage, d: &Data) -> Vec<f64> {
    match d {
        Data::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Data::I32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Data::Bytes(b) => b.chunks_exact(s.block_bytes() as usize).flat_map(|b| unpack(s, b)).collect(),
    }
}

fn unpack(s: Storage, b: &[u8]) -> Vec<f64> {
    let h = |at: usize| unhalf(u16::from_le_bytes([b[at], b[at + 1]]));
    let nibble = |base: usize, i: usize| {
        let v = if i < 16 { b[base + i] & 15 } else { b[base + i - 16] >> 4 };
        f64::from(v)
    };
    let float = |at: usize| f64::from(f32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]));
    let group = |g: &[u8], j: usize| {
        if j < 4 {
            (g[j] & 63, g[j + 4] & 63)
        } else {
            ((g[j + 4] & 15) | (g[j - 4] >> 6) << 4, (g[j + 4] >> 4) | (g[j] >> 6) << 4)
        }
    };
    let five = |base: usize, high: usize, i: usize| nibble(base, i) + 16.0 * f64::from(b[high + i / 8] >> (i % 8) & 1);
    match s {
        Storage::F16 => vec![h(0)],
        Storage::Bf16 => vec![f64::from(f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))],
        Storage::Q4_0 => (0..32).map(|i| (nibble(2, i) - 8.0) * h(0)).collect(),
        Storage::Q4_1 => (0..32).map(|i| nibble(4, i) * h(0) + h(2)).collect(),
        Storage::Q5_0 => (0..32).map(|i| (five(6, 2, i) - 16.0) * h(0)).collect(),
        Storage::Q5_1 => (0..32).map(|i| five(8, 4, i) * h(0) + h(2)).collect(),
        Storage::Q8_0 => (0..32).map(|i| f64::from(b[2 + i] as i8) * h(0)).collect(),
        Storage::Iq4Nl => (0..32).map(|i| f64::from(IQ4_CODES[nibble(2, i) as usize]) * h(0)).collect(),
        Storage::Fp4 => {
            let d = f64::from(f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
            (0..32).map(|i| f64::from(FP4_CODES[nibble(2, i) as usize]) * d).collect()
        }
        Storage::Q4F => (0..32).map(|i| nibble(8, i) * float(0) + float(4)).collect(),
        Storage::Q8F => (0..32).map(|i| f64::from(b[8 + i] as i8) * float(0) + float(4)).collect(),
        Storage::Q2K => (0..256)
            .map(|i| {
                let q = b[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
                let s = b[i / 16];
                h(80) * f64::from(s & 15) * f64::from(q) - h(82) * f64::from(s >> 4)
            })
            .collect(),
        Storage::Q3K => (0..256)
            .map(|i| {
                let low = b[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
                let high = b[i % 32] >> (i / 32) & 1;
                let g = i / 16;
                let sc = b[96 + g % 8] >> (g / 8 * 4) & 15 | (b[104 + g % 4] >> (g / 4 * 2) & 3) << 4;
                h(108) * (f64::from(sc) - 32.0) * (f64::from(low | high << 2) - 4.0)
            })
            .collect(),
        Storage::Iq4Xs => (0..256)
            .map(|i| {
                let (g, l) = (i / 32, i % 32);
                let low = b[4 + g / 2] >> (g % 2 * 4) & 15;
                let sc = u16::from(low) | (u16::from_le_bytes([b[2], b[3]]) >> (2 * g) & 3) << 4;
                h(0) * (f64::from(sc) - 32.0) * f64::from(IQ4_CODES[nibble(8 + 16 * g, l) as usize])
            })
            .collect(),
        Storage::Q5K => (0..256)
            .map(|i| {
                let (j, g) = (i / 32, &b[4..16]);
                let (sc, mn) = group(g, j);
                let byte = b[48 + j / 2 * 32 + i % 32];
                let q = if j % 2 == 0 { byte & 15 } else { byte >> 4 } | (b[16 + i % 32] >> j & 1) << 4;
                h(0) * f64::from(sc) * f64::from(q) - h(2) * f64::from(mn)
            })
            .collect(),
        Storage::Q4K => (0..256)
            .map(|i| {
                let (j, g) = (i / 32, &b[4..16]);
                let (sc, mn) = group(g, j);
                let byte = b[16 + j / 2 * 32 + i % 32];
                let q = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
                h(0) * f64::from(sc) * f64::from(q) - h(2) * f64::from(mn)
            })
            .collect(),
        Storage::Q6K => (0..256)
            .map(|i| {
                let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
                let low = b[half * 64 + quarter % 2 * 32 + l];
                let low = if quarter < 2 { low & 15 } else { low >> 4 };
                let high = b[128 + half * 32 + l] >> (2 * quarter) & 3;
                let sc = f64::from(b[192 + i / 16] as i8);
                h(208) * sc * (f64::from(low | high << 4) - 32.0)
            })
            .collect(),
        _ => panic!("{s} has no bytes"),
    }
}

/// The words of an argument in the device layout.
pub fn words(s: Storage, d: &Data) -> Vec<u32> {
    let b = match d {
        Data::F32(v) => return v.iter().map(|x| x.to_bits()).collect(),
        Data::I32(v) => return v.iter().map(|x| *x as u32).collect(),
        Data::Bytes(b) => b,
    };
    let size = s.block_bytes() as usize;
    let blocks = b.len() / size;
    let mut out = vec![0u8; 4 * s.device_words(blocks as u64) as usize];
    for (i, (from, to)) in plane_bytes(s).iter().enumerate() {
        let start = 4 * s.plane_word(i, blocks as u64) as usize;
        let len = to - from;
        for k in 0..blocks {
            out[start + k * len..start + (k + 1) * len].copy_from_slice(&b[k * size + from..k * size + to]);
        }
    }
    out.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

/// Numbers, or bytes of packed storage.
pub fn len(d: &Data) -> usize {
    match d {
        Data::F32(v) => v.len(),
        Data::I32(v) => v.len(),
        Data::Bytes(b) => b.len(),
    }
}
