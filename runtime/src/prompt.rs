//! Prompts of different lengths as one batch: every row is compacted to its visible tokens and padded on the left, so
//! that all rows end at the same place.

use crate::{Error, Result, Tensor};

/// Rows of equal length with their padding in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    rows: Vec<Vec<i32>>,
    pads: Vec<usize>,
    len: usize,
}

impl Batch {
    /// # Errors
    /// A row without tokens, or with one that is not in the vocabulary (0: unknown).
    pub fn new(prompts: &[Vec<u32>], vocab: u64) -> Result<Batch> {
        let mut faults = Vec::new();
        if prompts.is_empty() {
            faults.push("  there is no prompt".to_owned());
        }
        for (i, p) in prompts.iter().enumerate() {
            if p.is_empty() {
                faults.push(format!("  prompt {i} has no tokens"));
            }
            if let Some(t) = p.iter().find(|t| (vocab > 0 && u64::from(**t) >= vocab) || i32::try_from(**t).is_err()) {
                faults.push(format!("  prompt {i}: token {t} is not in the vocabulary of {vocab}"));
            }
        }
        if !faults.is_empty() {
            return Err(Error::Inputs(faults));
        }
        let len = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let pads: Vec<usize> = prompts.iter().map(|p| len - p.len()).collect();
        let rows = prompts.iter().zip(&pads).map(|(p, pad)| {
            let mut row = vec![0; *pad];
            row.extend(p.iter().map(|t| *t as i32));
            row
        });
        Ok(Batch { rows: rows.collect(), pads, len })
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }
    /// Tokens of a row, padding included.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether some row is padded.
    pub fn is_padded(&self) -> bool {
        self.pads.iter().any(|p| *p > 0)
    }
    /// Columns `[from, to)` as a tensor `[rows, to − from]`.
    pub fn columns(&self, from: usize, to: usize) -> Result<Tensor> {
        let data = self.rows.iter().flat_map(|r| r.get(from..to).unwrap_or_default().iter().copied()).collect();
        Tensor::i32(&[self.rows.len() as u64, (to - from) as u64], data)
    }
    /// The token of each row in one column, none where it is padding.
    pub fn column(&self, at: usize) -> Vec<Option<i32>> {
        let of_row = |(row, pad): (&Vec<i32>, &usize)| row.get(at).copied().filter(|_| at >= *pad);
        self.rows.iter().zip(&self.pads).map(of_row).collect()
    }
    /// Which of `capacity` key positions each row sees: all but its padding.
    pub fn key_mask(&self, capacity: usize) -> Vec<i32> {
        self.pads.iter().flat_map(|p| (0..capacity).map(move |t| i32::from(t >= *p))).collect()
    }
    /// What is added to a token's place to get its position.
    pub fn pos_offset(&self) -> Vec<i32> {
        self.pads.iter().map(|p| -(*p as i32)).collect()
    }
}

/// The visible tokens of each row of `input_ids`, given where `attention_mask` is not 0 (everywhere without one).
///
/// # Errors
/// Tensors that are not `[rows, tokens]` of integers, or of different shapes.
pub fn visible_tokens(ids: &Tensor, mask: Option<&Tensor>) -> Result<Vec<Vec<u32>>> {
    let shape = |what: &str, found: &Tensor, expected: String| Error::Shape {
        what: what.into(),
        expected,
        found: format!("{} of shape {:?}", if found.as_i32().is_some() { "integers" } else { "f32" }, found.shape()),
    };
    let (&[rows, tokens], Some(v)) = (ids.shape(), ids.as_i32()) else {
        return Err(shape("input_ids", ids, "integers of shape [rows, tokens]".into()));
    };
    let seen = match mask {
        None => None,
        Some(m) if m.shape() == ids.shape() => match m.as_i32() {
            Some(m) => Some(m),
            None => return Err(shape("attention_mask", m, "integers or truth values".into())),
        },
        Some(m) => return Err(shape("attention_mask", m, format!("the shape of input_ids {:?}", ids.shape()))),
    };
    let token = |t: i32| u32::try_from(t).map_err(|_| Error::Inputs(vec![format!("  `input_ids`: {t} is no token")]));
    let width = tokens as usize;
    let mut out = Vec::with_capacity(rows as usize);
    for r in 0..rows as usize {
        let at = r * width..(r + 1) * width;
        let row = v.get(at.clone()).unwrap_or_default();
        out.push(match seen.and_then(|m| m.get(at)) {
            Some(m) => row.iter().zip(m).filter(|(_, m)| **m != 0).map(|(t, _)| token(*t)).collect::<Result<_>>()?,
            None => row.iter().map(|t| token(*t)).collect::<Result<_>>()?,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_mask_is_compacted() {
        let ids = Tensor::i32(&[3, 4], vec![9, 9, 1, 2, 3, 4, 9, 9, 5, 9, 6, 9]).unwrap();
        let mask = Tensor::i32(&[3, 4], vec![0, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 0]).unwrap();
        let rows = visible_tokens(&ids, Some(&mask)).unwrap();
        assert_eq!(rows, [[1, 2], [3, 4], [5, 6]]);
        assert_eq!(visible_tokens(&ids, None).unwrap()[0], [9, 9, 1, 2]);
    }
    #[test]
    fn rows_end_together_and_hide_their_padding() {
        let b = Batch::new(&[vec![1, 2, 3], vec![7]], 10).unwrap();
        assert_eq!(b.columns(0, 3).unwrap().as_i32().unwrap(), [1, 2, 3, 0, 0, 7]);
        assert_eq!(b.columns(1, 3).unwrap().shape(), [2, 2]);
        assert_eq!(b.key_mask(4), [1, 1, 1, 1, 0, 0, 1, 1]);
        assert_eq!(b.pos_offset(), [0, -2]);
    }
    #[test]
    fn empty_rows_and_unknown_tokens_are_all_named() {
        let e = Batch::new(&[vec![], vec![3], vec![12]], 10).unwrap_err().to_string();
        assert!(e.contains("prompt 0 has no tokens") && e.contains("prompt 2: token 12"), "{e}");
        assert!(Batch::new(&[], 10).is_err());
    }
    #[test]
    fn shapes_must_agree() {
        let ids = Tensor::i32(&[1, 2], vec![1, 2]).unwrap();
        let mask = Tensor::i32(&[1, 3], vec![1; 3]).unwrap();
        assert!(visible_tokens(&ids, Some(&mask)).is_err());
        assert!(visible_tokens(&Tensor::i32(&[2], vec![1, 2]).unwrap(), None).is_err());
    }
}
