//! Block formats that kernels do not read as they lie in files, and the formats of the same values that they become.

use super::codebooks::{iq1_s, iq2_xxs, iq3_s, iq3_xxs, tq1_0, tq2_0};
use frit_kernels::dtype::Storage;

/// A block format that is repacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// A 32-bit scale and 256 signed bytes; sums of sixteen follow, which only products of blocks use.
    Q8K,
    /// An exponent and 32 4-bit floats.
    Mxfp4,
    /// Rows of eight of three levels, a scale and an offset for 32.
    Iq1S,
    /// Rows of eight of three levels, signs, a scale for 32.
    Iq2Xxs,
    /// Rows of four of eight levels, signs, a scale for 32.
    Iq3Xxs,
    /// The same with larger tables.
    Iq3S,
    /// Values −1, 0 and 1, five to a byte, and a scale for 256.
    Tq1_0,
    /// Values −1, 0 and 1, four to a byte, and a scale for 256.
    Tq2_0,
}

impl Packed {
    /// Elements and bytes of a block.
    pub const fn block(self) -> (u64, u64) {
        match self {
            Packed::Q8K => (256, 292),
            Packed::Mxfp4 => (32, 17),
            Packed::Iq1S => (256, 50),
            Packed::Iq2Xxs => (256, 66),
            Packed::Iq3Xxs => (256, 98),
            Packed::Iq3S => (256, 110),
            Packed::Tq1_0 => (256, 54),
            Packed::Tq2_0 => (256, 66),
        }
    }

    /// What it becomes.
    pub const fn storage(self) -> Storage {
        match self {
            Packed::Q8K | Packed::Iq1S | Packed::Iq2Xxs | Packed::Iq3Xxs | Packed::Iq3S => Storage::Q8F,
            Packed::Mxfp4 => Storage::Fp4,
            Packed::Tq1_0 | Packed::Tq2_0 => Storage::Q2K,
        }
    }

    /// The same values as blocks of [`Packed::storage`]; `None` when `bytes` do not hold whole blocks.
    pub fn repack(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (elems, size) = self.block();
        let made = elems / self.storage().block_elems() * self.storage().block_bytes();
        let (size, made) = (usize::try_from(size).ok()?, usize::try_from(made).ok()?);
        if !bytes.len().is_multiple_of(size) {
            return None;
        }
        let mut out = Vec::with_capacity(bytes.len() / size * made);
        for block in bytes.chunks_exact(size) {
            match self {
                Packed::Q8K => q8_k(block, &mut out),
                Packed::Mxfp4 => mxfp4(block, &mut out),
                Packed::Iq1S => iq1_s(block, &mut out),
                Packed::Iq2Xxs => iq2_xxs(block, &mut out),
                Packed::Iq3Xxs => iq3_xxs(block, &mut out),
                Packed::Iq3S => iq3_s(block, &mut out),
                Packed::Tq1_0 => tq1_0(block, &mut out),
                Packed::Tq2_0 => tq2_0(block, &mut out),
            }
        }
        Some(out)
    }
}

/// Eight blocks of the one scale.
fn q8_k(block: &[u8], out: &mut Vec<u8>) {
    let (scale, rest) = block.split_at(4);
    for quants in rest.chunks_exact(32).take(8) {
        out.extend(scale);
        out.extend(0f32.to_le_bytes());
        out.extend(quants);
    }
}

/// The scale of the codes, `2^(e − 128)`, as bf16: its exponent field, or below the normal numbers its fraction.
fn mxfp4(block: &[u8], out: &mut Vec<u8>) {
    let (exponent, quants) = block.split_at(1);
    let scale = match exponent.first().copied().unwrap_or(0) {
        0 => 1 << 5,
        1 => 1 << 6,
        e => u16::from(e - 1) << 7,
    };
    out.extend(scale.to_le_bytes());
    out.extend(quants);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::quant::dequantize;
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn repacked_blocks_have_the_values_of_the_fixtures() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quant");
        let kinds = [
            (Packed::Q8K, "q8_k"),
            (Packed::Mxfp4, "mxfp4"),
            (Packed::Iq1S, "iq1_s"),
            (Packed::Iq2Xxs, "iq2_xxs"),
            (Packed::Iq3Xxs, "iq3_xxs"),
            (Packed::Iq3S, "iq3_s"),
            (Packed::Tq1_0, "tq1_0"),
            (Packed::Tq2_0, "tq2_0"),
        ];
        for (packed, stem) in kinds {
            let blocks = std::fs::read(dir.join(format!("{stem}.bin"))).unwrap();
            let want = dequantize(Storage::F32, &std::fs::read(dir.join(format!("{stem}.f32"))).unwrap()).unwrap();
            let got = dequantize(packed.storage(), &packed.repack(&blocks).unwrap()).unwrap();
            assert_eq!(got, want, "{stem}");
        }
    }

    #[test]
    fn every_exponent_is_kept() {
        for e in 0..=255u8 {
            let mut block = vec![e];
            block.extend([0x11; 16]);
            let got = dequantize(Storage::Fp4, &Packed::Mxfp4.repack(&block).unwrap()).unwrap();
            assert_eq!(got.first().map(|v| f64::from(*v)), Some((f64::from(e) - 128.0).exp2()), "{e}");
        }
    }

    #[test]
    fn a_broken_block_is_not_repacked() {
        assert_eq!(Packed::Q8K.repack(&[0; 291]), None);
        assert_eq!(Packed::Mxfp4.repack(&[]), Some(Vec::new()));
    }
}
