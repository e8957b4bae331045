//! Weights of 4-bit floats as transformers stores them: a tensor `X` `[…, 32·G]` is `X_blocks`, U8 `[…, G, 16]` with two
//! elements in each byte, the first of them in the lower half, and `X_scales`, U8 `[…, G]`, an exponent for 32 elements.

use super::weights::Weights;
use crate::ingest::bind::Stored;
use crate::ingest::error::Result;
use crate::ingest::gguf::repack::Packed;
use frit_kernels::dtype::Storage;
use frit_plan::TensorData;
use indexmap::IndexMap;

const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";
/// Elements and bytes of a block.
const BLOCK: (u64, usize) = (32, 16);

/// Makes one tensor of each pair; what does not fit together stays as it is.
pub(super) fn join(stock: &mut IndexMap<String, Stored>) {
    let is_bytes = |t: &Stored| t.kind == "U8";
    let stems: Vec<String> = stock
        .iter()
        .filter(|(_, t)| is_bytes(t))
        .filter_map(|(name, _)| name.strip_suffix(BLOCKS).map(str::to_owned))
        .collect();
    for stem in stems {
        let [blocks, scales] = [BLOCKS, SCALES].map(|end| format!("{stem}{end}"));
        let shape = stock.get(&blocks).zip(stock.get(&scales).filter(|t| is_bytes(t))).and_then(|(b, s)| whole(b, s));
        if let Some(shape) = shape.filter(|_| !stock.contains_key(&stem)) {
            stock.shift_remove(&blocks);
            stock.shift_remove(&scales);
            let stored = Stored { storage: Some(Storage::Fp4), kind: "MXFP4".into(), shape, stored_as: None };
            stock.insert(stem, stored);
        }
    }
}

/// The shape of what blocks and scales make together.
fn whole(blocks: &Stored, scales: &Stored) -> Option<Vec<u64>> {
    let (bytes, lead) = blocks.shape.split_last()?;
    if *bytes != BLOCK.1 as u64 || lead != scales.shape {
        return None;
    }
    let (groups, outer) = lead.split_last()?;
    Some(outer.iter().copied().chain([groups.checked_mul(BLOCK.0)?]).collect())
}

/// The tensor of that name, if the file holds its parts.
///
/// # Errors
/// A file that cannot be read any more.
pub(super) fn read(weights: &Weights, name: &str) -> Result<Option<TensorData>> {
    let [blocks, scales] = [BLOCKS, SCALES].map(|end| format!("{name}{end}"));
    let Some(info) = weights.get(&blocks) else { return Ok(None) };
    let (Some(quants), Some(exponents)) = (weights.bytes(&blocks)?, weights.bytes(&scales)?) else { return Ok(None) };
    let mut packed = Vec::with_capacity(quants.len() + exponents.len());
    for (quants, exponent) in quants.chunks_exact(BLOCK.1).zip(&exponents) {
        packed.push(*exponent);
        packed.extend(halves_apart(quants));
    }
    let shape = info.shape.split_last().and_then(|(_, lead)| {
        let (groups, outer) = lead.split_last()?;
        Some(outer.iter().copied().chain([groups.checked_mul(BLOCK.0)?]).collect())
    });
    Ok(Packed::Mxfp4.repack(&packed).zip(shape).map(|(bytes, shape)| TensorData {
        storage: Storage::Fp4,
        shape,
        bytes,
    }))
}

/// From elements 2i and 2i + 1 in byte i to elements i and i + 16.
fn halves_apart(quants: &[u8]) -> Vec<u8> {
    let element =
        |i: usize| quants.get(i / 2).map_or(0, |byte| if i.is_multiple_of(2) { byte & 15 } else { byte >> 4 });
    (0..BLOCK.1).map(|i| element(i) | (element(i + BLOCK.1) << 4)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(kind: &str, shape: &[u64]) -> Stored {
        Stored { storage: None, kind: kind.into(), shape: shape.to_vec(), stored_as: None }
    }

    #[test]
    fn pairs_that_fit_become_one_tensor_and_others_stay() {
        let mut stock: IndexMap<String, Stored> = [
            ("a_blocks", stored("U8", &[2, 5, 3, 16])),
            ("a_scales", stored("U8", &[2, 5, 3])),
            ("b_blocks", stored("U8", &[5, 3, 16])),
            ("b_scales", stored("U8", &[5, 2])),
            ("c_blocks", stored("F32", &[3, 16])),
        ]
        .map(|(name, t)| (name.to_owned(), t))
        .into();
        join(&mut stock);
        assert_eq!(stock.get("a").map(|t| (t.storage, t.shape.clone())), Some((Some(Storage::Fp4), vec![2, 5, 96])));
        let mut rest: Vec<&str> = stock.keys().map(String::as_str).collect();
        rest.sort_unstable();
        assert_eq!(rest, ["a", "b_blocks", "b_scales", "c_blocks"]);
    }

    #[test]
    fn elements_keep_their_order() {
        let quants: Vec<u8> = (0..16).map(|i| ((2 * i) % 16) | (((2 * i + 1) % 16) << 4)).collect();
        let apart = halves_apart(&quants);
        let low: Vec<u8> = apart.iter().map(|b| b & 15).collect();
        let high: Vec<u8> = apart.iter().map(|b| b >> 4).collect();
        assert_eq!(low, (0..16).collect::<Vec<u8>>());
        assert_eq!(high, low);
    }
}
