//! Runs checkpoints on calibration tokens, with values inside the model as outputs: what transforms and metrics look at.

use crate::{BackendChoice, Error, LoadedModel, Result, Session, Tensor, model_source};
use frit_compiler::ingest;
use frit_compiler::transform::capture;
use frit_compiler::transform::dense::Dense;
use frit_compiler::transform::{Activations, Captured, Checkpoint, Tap, Tied};
use std::path::Path;

/// Sequences of tokens, and where models run.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// Token ids.
    pub sequences: Vec<Vec<u32>>,
    /// The backend.
    pub backend: BackendChoice,
}

impl Calibration {
    /// Sequences from a file: an `.npz` with `input_ids` `[N, T]`; lines of numbers, which are token ids; or text, of which
    /// each line is a sequence, encoded with `encode`. Sequences longer than `longest` are cut into pieces.
    ///
    /// # Errors
    /// A file that cannot be read, holds nothing, or is text although there is no tokenizer.
    pub fn read(path: &Path, longest: usize, encode: Option<&dyn Fn(&str) -> Result<Vec<u32>>>) -> Result<Calibration> {
        let wrong =
            |reason: &str| Error::Option { option: format!("--calib {}", path.display()), reason: reason.into() };
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        if path.extension().is_some_and(|e| e == "npz") {
            let arrays = crate::npz::read(path)?;
            let ids = arrays.iter().find(|(n, _)| n == "input_ids").or(arrays.first());
            let (ids, width) = ids
                .and_then(|(_, t)| Some((t.as_i32()?, *t.shape().last()? as usize)))
                .ok_or_else(|| wrong("holds no array of token ids"))?;
            sequences.extend(ids.chunks(width.max(1)).map(|row| row.iter().map(|id| (*id).max(0) as u32).collect()));
        } else {
            let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
            let numbers: Option<Vec<Vec<u32>>> =
                text.lines().map(|l| l.split_whitespace().map(|t| t.parse().ok()).collect()).collect();
            match (numbers, encode) {
                (Some(ids), _) => sequences = ids,
                (None, Some(encode)) => {
                    for line in text.lines() {
                        sequences.push(encode(line)?);
                    }
                }
                (None, None) => return Err(wrong("is text, and the model has no tokenizer; give token ids")),
            }
        }
        sequences = sequences.iter().flat_map(|s| s.chunks(longest.max(1)).map(<[u32]>::to_vec)).collect();
        sequences.retain(|s| !s.is_empty());
        if sequences.is_empty() {
            return Err(wrong("holds no tokens"));
        }
        Ok(Calibration { sequences, backend: BackendChoice::Auto })
    }

    /// Outputs of the program of all positions, by name: one row a token, over all sequences.
    ///
    /// # Errors
    /// A model that cannot be run on these tokens.
    pub fn run(&self, model: &LoadedModel, names: &[String]) -> Result<Vec<Captured>> {
        let mut session = Session::builder().backend(self.backend).open(model)?;
        let mut rows: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
        let mut widths = vec![0usize; names.len()];
        for ids in &self.sequences {
            let input = Tensor::i32(&[1, ids.len() as u64], ids.iter().map(|id| *id as i32).collect())?;
            let outputs = session.run(&[("input_ids", input)])?;
            for (n, name) in names.iter().enumerate() {
                let found = outputs.iter().find(|(o, _)| o == name).and_then(|(_, t)| Some((t.as_f32()?, t.shape())));
                let (values, shape) = found.ok_or_else(|| Error::Option {
                    option: "--calib".into(),
                    reason: format!("the model has no output `{name}` of floats"),
                })?;
                widths[n] = values.len() / ids.len();
                let in_order = match shape {
                    [_, h, s, d] => heads_beside(values, [*h as usize, *s as usize, *d as usize]),
                    _ => values.to_vec(),
                };
                rows[n].extend(in_order.into_iter().map(f64::from));
            }
        }
        let sequences: Vec<usize> = self.sequences.iter().map(Vec::len).collect();
        let captured = rows.into_iter().zip(widths).map(|(data, width)| Captured {
            values: Dense::matrix(data.len() / width.max(1), width, data),
            sequences: sequences.clone(),
        });
        Ok(captured.collect())
    }

    fn capture_in(&self, c: &Checkpoint, taps: &[Tap]) -> std::result::Result<Vec<Captured>, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let at = dir.path().join("model");
        c.save(&at, Tied::Once).map_err(|e| e.to_string())?;
        let mut model = ingest::load(&at).map_err(|e| e.to_string())?;
        let names = capture::mark(&mut model, c, taps)?;
        let loaded = model_source::compiled(&model).map_err(|e| e.to_string())?;
        self.run(&loaded, &names).map_err(|e| e.to_string())
    }
}

impl Activations for Calibration {
    fn capture(&self, checkpoint: &Checkpoint, taps: &[Tap]) -> std::result::Result<Vec<Captured>, String> {
        self.capture_in(checkpoint, taps)
    }
}

/// `[H, S, D]` to `[S, H·D]`.
fn heads_beside(values: &[f32], [h, s, d]: [usize; 3]) -> Vec<f32> {
    let at = |i: usize| (i % (h * d) / d * s + i / (h * d)) * d + i % d;
    (0..h * s * d).map(|i| values[at(i)]).collect()
}
