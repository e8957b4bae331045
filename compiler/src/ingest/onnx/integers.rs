//! The integers of a quantised constant, read one by one from the bytes that hold them.

use super::elem::{Elem, Values};
use bytes::Bytes;
use std::sync::Arc;

/// The integers of a tensor, or of a byte tensor with several in each byte.
#[derive(Clone, Debug)]
pub struct Integers {
    held: Held,
    packed: Option<Packed>,
}

#[derive(Clone, Debug)]
enum Held {
    /// Elements of 8 or 4 bits as they lie in a file.
    Bytes(Bytes, Elem),
    Values(Arc<Values>),
}

/// Rows of integers narrower than a byte, the lowest bits first; each row begins on a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Bits of an integer: 1, 2, 4 or 8.
    pub bits: u32,
    /// Integers of a row.
    pub per_row: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
}

impl Integers {
    /// Elements that lie in `bytes`; `None` if they are wider than 8 bits or floats.
    pub fn of_bytes(bytes: Bytes, elem: Elem, packed: Option<Packed>) -> Option<Integers> {
        let narrow = matches!(elem, Elem::Int8 | Elem::Uint8 | Elem::Int4 | Elem::Uint4);
        narrow.then_some(Integers { held: Held::Bytes(bytes, elem), packed })
    }
    /// Elements that are decoded.
    pub fn of_values(values: Arc<Values>, packed: Option<Packed>) -> Integers {
        Integers { held: Held::Values(values), packed }
    }

    /// Integer number `i`.
    pub fn at(&self, i: u64) -> Option<i64> {
        let Some(Packed { bits, per_row, row_bytes }) = self.packed else { return self.element(i) };
        let (row, column) = (i.checked_div(per_row)?, i.checked_rem(per_row)?);
        let per_byte = u64::from(8 / bits.max(1)).max(1);
        let byte = self.element(row.checked_mul(row_bytes)?.checked_add(column / per_byte)?)?;
        let shift = u32::try_from(column % per_byte).ok()? * bits;
        Some((byte >> shift) & ((1 << bits) - 1))
    }

    fn element(&self, i: u64) -> Option<i64> {
        let nibble = |bytes: &Bytes| {
            let byte = *bytes.get(usize::try_from(i / 2).ok()?)?;
            Some(if i.is_multiple_of(2) { byte & 15 } else { byte >> 4 })
        };
        match &self.held {
            Held::Bytes(bytes, Elem::Int8) => bytes.get(usize::try_from(i).ok()?).map(|b| i64::from(b.cast_signed())),
            Held::Bytes(bytes, Elem::Int4) => nibble(bytes).map(|n| i64::from(n) - if n > 7 { 16 } else { 0 }),
            Held::Bytes(bytes, Elem::Uint4) => nibble(bytes).map(i64::from),
            Held::Bytes(bytes, _) => bytes.get(usize::try_from(i).ok()?).map(|b| i64::from(*b)),
            Held::Values(values) => match &**values {
                Values::Ints(v) => v.get(usize::try_from(i).ok()?).copied(),
                Values::Floats(_) => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::onnx::elem::decode;

    #[test]
    fn integers_are_those_of_the_decoded_tensor() {
        let raw: Vec<u8> = (0..=255).rev().collect();
        for (elem, count) in [(Elem::Int8, 256), (Elem::Uint8, 256), (Elem::Int4, 512), (Elem::Uint4, 512)] {
            let Values::Ints(want) = decode(elem, &raw, count) else { continue };
            let got = Integers::of_bytes(Bytes::from(raw.clone()), elem, None);
            let got: Option<Vec<i64>> = (0..count as u64).map(|i| got.as_ref()?.at(i)).collect();
            assert_eq!(got, Some(want), "{elem}");
        }
        assert!(Integers::of_bytes(Bytes::new(), Elem::Int16, None).is_none());
    }
    #[test]
    fn rows_of_narrow_integers_begin_on_bytes() {
        let packed = Some(Packed { bits: 4, per_row: 3, row_bytes: 2 });
        let bytes = Integers::of_bytes(Bytes::from_static(&[0x21, 0x03, 0x54, 0x06]), Elem::Uint8, packed);
        let of = |i| bytes.as_ref().and_then(|b| b.at(i));
        assert_eq!([0, 1, 2, 3, 4, 5].map(of), [1, 2, 3, 4, 5, 6].map(Some));
        assert_eq!(of(6), None);
        let values = Arc::new(Values::Ints(vec![0b11_10_01_00, 0b00_00_00_11]));
        let values = Integers::of_values(values, Some(Packed { bits: 2, per_row: 4, row_bytes: 1 }));
        assert_eq!([0, 1, 2, 3, 4].map(|i| values.at(i)), [0, 1, 2, 3, 3].map(Some));
    }
}
