//! Vectors for texts: an encoder's rows, pooled and normalised as a sentence-transformers directory declares.

use crate::tokenizer::Tokenizer;
use crate::{Error, Result, Session, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The output of an encoder that is pooled.
const STATES: &str = "last_hidden_state";

/// How the rows of a text become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The first token's.
    Cls,
    /// The largest value of each column.
    Max,
    /// The mean.
    Mean,
    /// The sum over the root of the number of tokens.
    MeanSqrt,
    /// The mean with weights 1, 2, 3 and so on.
    Weighted,
    /// The last token's.
    Last,
}

impl std::str::FromStr for Pool {
    type Err = String;
    fn from_str(s: &str) -> std::result::Result<Pool, String> {
        Ok(match s {
            "cls" => Pool::Cls,
            "max" => Pool::Max,
            "mean" => Pool::Mean,
            "mean_sqrt" => Pool::MeanSqrt,
            "weighted" => Pool::Weighted,
            "last" => Pool::Last,
            _ => return Err("use cls, max, mean, mean_sqrt, weighted or last".into()),
        })
    }
}

/// What a model's directory declares about its vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// One behind the other in the vector.
    pub pools: Vec<Pool>,
    /// Whether vectors have length 1.
    pub normalize: bool,
    /// Tokens of a text at most.
    pub max_tokens: Option<usize>,
}

impl Pooling {
    /// What the directory declares in `modules.json` and the folders it names; the mean where it declares nothing.
    ///
    /// # Errors
    /// A file that cannot be read, or a step between rows and vectors that is not known.
    pub fn of_dir(dir: &Path) -> Result<Pooling> {
        let mut found = Pooling { pools: vec![Pool::Mean], normalize: false, max_tokens: None };
        if let Some(settings) = json(&dir.join("sentence_bert_config.json"))? {
            found.max_tokens =
                settings.get("max_seq_length").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        }
        let modules = json(&dir.join("modules.json"))?;
        let Some(modules) = modules.as_ref().and_then(Value::as_array) else {
            if let Some(config) = json(&dir.join("1_Pooling/config.json"))? {
                found.pools = pools(&config, &dir.join("1_Pooling/config.json"))?;
            }
            return Ok(found);
        };
        for module in modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            match text("type").rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => found.normalize = true,
                "Pooling" => {
                    let file = inside(dir, text("path"))?.join("config.json");
                    let config =
                        json(&file)?.ok_or_else(|| fault(&file, "does not exist, but modules.json names it"))?;
                    found.pools = pools(&config, &file)?;
                }
                other => {
                    let reason = format!(
                        "names the module `{other}`, which is not known; Transformer, Pooling and Normalize are"
                    );
                    return Err(fault(&dir.join("modules.json"), &reason));
                }
            }
        }
        Ok(found)
    }

    /// The vector of the rows `states` `[tokens, width]` of one text.
    pub fn pool(&self, states: &[f32], width: usize) -> Vec<f32> {
        let rows: Vec<&[f32]> = states.chunks_exact(width.max(1)).collect();
        let count = rows.len().max(1) as f64;
        let column = |weight: &dyn Fn(usize) -> f64| -> Vec<f32> {
            let sum = |c: usize| -> f64 {
                rows.iter().enumerate().map(|(i, r)| weight(i) * f64::from(r.get(c).copied().unwrap_or(0.0))).sum()
            };
            (0..width).map(|c| sum(c) as f32).collect()
        };
        let row = |r: Option<&&[f32]>| r.map_or_else(|| vec![0.0; width], |r| r.to_vec());
        let mut out = Vec::with_capacity(self.pools.len() * width);
        for pool in &self.pools {
            out.extend(match pool {
                Pool::Cls => row(rows.first()),
                Pool::Last => row(rows.last()),
                Pool::Mean => column(&|_| 1.0 / count),
                Pool::MeanSqrt => column(&|_| 1.0 / count.sqrt()),
                Pool::Weighted => column(&|i| (i + 1) as f64 * 2.0 / (count * (count + 1.0))),
                Pool::Max => {
                    let most = |c: usize| rows.iter().filter_map(|r| r.get(c).copied()).fold(f32::MIN, f32::max);
                    (0..width).map(most).collect()
                }
            });
        }
        if self.normalize {
            let length = out.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
            out.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
        out
    }
}

/// The folder of that name in `dir`, and nowhere else.
fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    match plain {
        true => Ok(dir.join(name)),
        false => Err(fault(&dir.join("modules.json"), &format!("names the folder `{name}`, which is not inside it"))),
    }
}

fn fault(path: &Path, problem: &str) -> Error {
    Error::Option { option: path.display().to_string(), reason: problem.into() }
}

fn json(path: &Path) -> Result<Option<Value>> {
    const LIMIT: u64 = 1 << 20;
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
    };
    if meta.len() > LIMIT {
        return Err(fault(path, &format!("has {} bytes, above the limit of {LIMIT}", meta.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map(Some).map_err(|e| fault(path, &format!("is not JSON: {e}")))
}

fn pools(config: &Value, file: &Path) -> Result<Vec<Pool>> {
    const MODES: [(&str, Pool); 6] = [
        ("pooling_mode_cls_token", Pool::Cls),
        ("pooling_mode_max_tokens", Pool::Max),
        ("pooling_mode_mean_tokens", Pool::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", Pool::MeanSqrt),
        ("pooling_mode_weightedmean_tokens", Pool::Weighted),
        ("pooling_mode_lasttoken", Pool::Last),
    ];
    let on = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let known = |key: &String| MODES.iter().any(|(mode, _)| mode == key);
    let entries = config.as_object().into_iter().flatten();
    if let Some((key, _)) = entries.filter(|(k, _)| k.starts_with("pooling_mode") && !known(k)).find(|(k, _)| on(k)) {
        return Err(fault(file, &format!("sets `{key}`, which is not known")));
    }
    let pools: Vec<Pool> = MODES.iter().filter(|(key, _)| on(key)).map(|(_, pool)| *pool).collect();
    if pools.is_empty() {
        return Err(fault(file, "chooses no way of pooling"));
    }
    Ok(pools)
}

/// Texts as one padded batch: `input_ids` and `attention_mask`, `[texts, tokens]`.
///
/// # Errors
/// A text that cannot be tokenised, or that has no tokens.
pub fn batch(tokenizer: &Tokenizer, texts: &[&str]) -> Result<Vec<(String, Tensor)>> {
    let rows = texts.iter().map(|text| tokenizer.encode(text)).collect::<Result<Vec<_>>>()?;
    let empty: Vec<String> = rows
        .iter()
        .enumerate()
        .filter(|(_, r)| r.is_empty())
        .map(|(i, _)| format!("  text {i} has no tokens"))
        .collect();
    if !empty.is_empty() {
        return Err(Error::Inputs(empty));
    }
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let pad = tokenizer.pad() as i32;
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in &rows {
        ids.extend(row.iter().map(|id| *id as i32).chain(std::iter::repeat_n(pad, width - row.len())));
        mask.extend((0..width).map(|i| i32::from(i < row.len())));
    }
    let shape = [rows.len() as u64, width as u64];
    Ok(vec![("input_ids".into(), Tensor::i32(&shape, ids)?), ("attention_mask".into(), Tensor::i32(&shape, mask)?)])
}

impl Session {
    /// One vector for each text, `per_run` texts together.
    ///
    /// # Errors
    /// A model without `last_hidden_state`, texts that cannot be tokenised, a failed device.
    pub fn embed(
        &mut self,
        tokenizer: &Tokenizer,
        pooling: &Pooling,
        texts: &[&str],
        per_run: usize,
    ) -> Result<Vec<Vec<f32>>> {
        let mut out = Vec::with_capacity(texts.len());
        for some in texts.chunks(per_run.max(1)) {
            let inputs = batch(tokenizer, some)?;
            let lengths: Vec<usize> = match inputs.get(1).and_then(|(_, m)| m.as_i32().map(|v| (m, v))) {
                Some((m, mask)) => {
                    let width = m.shape().last().copied().unwrap_or(1).max(1) as usize;
                    mask.chunks_exact(width).map(|row| row.iter().filter(|v| **v != 0).count()).collect()
                }
                None => Vec::new(),
            };
            let outputs = self.run(&inputs)?;
            let states = outputs.iter().find(|(n, t)| n == STATES && t.shape().len() == 3).map(|(_, t)| t);
            let states = states.ok_or_else(|| Error::Task {
                model: self.plan.model.name.clone(),
                reason: format!("gives no `{STATES}` to make vectors of"),
            })?;
            let width = states.shape().last().copied().unwrap_or(1) as usize;
            let all = states.as_f32().unwrap_or_default();
            let per_text = all.len() / some.len().max(1);
            for (text, length) in all.chunks_exact(per_text.max(1)).zip(lengths) {
                out.push(pooling.pool(text.get(..length * width).unwrap_or(text), width));
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_pooling_is_its_formula() {
        let rows = [1.0, 4.0, 3.0, -2.0];
        let of = |pool, normalize| Pooling { pools: vec![pool], normalize, max_tokens: None }.pool(&rows, 2);
        assert_eq!(of(Pool::Cls, false), [1.0, 4.0]);
        assert_eq!(of(Pool::Last, false), [3.0, -2.0]);
        assert_eq!(of(Pool::Max, false), [3.0, 4.0]);
        assert_eq!(of(Pool::Mean, false), [2.0, 1.0]);
        assert!((of(Pool::MeanSqrt, false)[0] - 4.0 / 2f32.sqrt()).abs() < 1e-6);
        assert!((of(Pool::Weighted, false)[0] - 7.0 / 3.0).abs() < 1e-6);
        assert!((of(Pool::Last, true)[0] - 3.0 / 13f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn a_directory_says_how_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(Pooling::of_dir(dir.path()).unwrap().pools, [Pool::Mean]);
        write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true, "pooling_mode_lasttoken": true}"#);
        assert_eq!(Pooling::of_dir(dir.path()).unwrap().pools, [Pool::Cls, Pool::Last]);
        write(
            "modules.json",
            r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
                {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
                {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]"#,
        );
        write("sentence_bert_config.json", r#"{"max_seq_length": 128}"#);
        let found = Pooling::of_dir(dir.path()).unwrap();
        assert!(found.normalize && found.max_tokens == Some(128));
        write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": false}"#);
        assert!(Pooling::of_dir(dir.path()).unwrap_err().to_string().contains("no way of pooling"));
        write("modules.json", r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#);
        assert!(Pooling::of_dir(dir.path()).unwrap_err().to_string().contains("Dense"));
        write("modules.json", r#"[{"type": "sentence_transformers.models.Pooling", "path": "../x"}]"#);
        assert!(Pooling::of_dir(dir.path()).unwrap_err().to_string().contains("not inside"));
    }
}
