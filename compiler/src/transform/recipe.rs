//! Transforms one after the other.

use super::calibration::Aid;
use super::checkpoint::{Bytes, Checkpoint};
use super::error::{Error, Result};
use super::family::Side;
use super::step::Step;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A list of transforms. In YAML or JSON each item is an object with `transform` and its options:
///
/// ```yaml
/// - {transform: prune-layers, layers: "21-28"}
/// - {transform: share-layers, pattern: "cycle:4", private: norms}
/// ```
///
/// Layers are numbered as they are when a step begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recipe {
    /// The steps.
    pub steps: Vec<Step>,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub transform: String,
    /// What it did, one line each.
    pub changes: Vec<String>,
    /// Bytes of tensors before.
    pub before: Bytes,
    /// Bytes of tensors after.
    pub after: Bytes,
    /// Layers that run before and after; those of a decoder where there are two stacks.
    pub layers: [usize; 2],
}

/// The steps of a text in YAML, of which JSON is a part, as objects.
///
/// # Errors
/// Text that is not well formed, and no list of objects.
pub fn items(text: &str) -> Result<Vec<Map<String, Value>>> {
    serde_norway::from_str(text).map_err(|e| Error::Recipe { at: String::new(), problem: e.to_string() })
}

impl Recipe {
    /// Reads a recipe in YAML, of which JSON is a part.
    ///
    /// # Errors
    /// Text that is not well formed, and the first step that is not understood, by its number.
    pub fn parse(text: &str) -> Result<Recipe> {
        let wrong = |problem: String| Error::Recipe { at: String::new(), problem };
        let value: Value = serde_norway::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let Value::Array(items) = value else { return Err(wrong("is no list of steps".into())) };
        let mut steps = Vec::new();
        for (n, item) in items.into_iter().enumerate() {
            let at = |name: &str| format!(" step {}{name}", n + 1);
            let Value::Object(mut options) = item else {
                return Err(Error::Recipe { at: at(""), problem: "is no object with `transform`".into() });
            };
            let Some(Value::String(name)) = options.shift_remove("transform") else {
                return Err(Error::Recipe { at: at(""), problem: "has no `transform`".into() });
            };
            steps.push(Step::named(&name, options).map_err(|e| match e {
                Error::Recipe { problem, .. } => Error::Recipe { at: at(&format!(" ({name})")), problem },
                other => other,
            })?);
        }
        if steps.is_empty() {
            return Err(wrong("has no steps".into()));
        }
        Ok(Recipe { steps })
    }

    /// Applies every step. After an error the checkpoint is as before.
    ///
    /// # Errors
    /// The first step that is refused.
    pub fn apply(&self, checkpoint: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<Report>> {
        let mut edited = checkpoint.clone();
        let mut reports = Vec::new();
        let layers = |c: &Checkpoint| c.stack(Side::Decoder).map_or(0, |(_, n)| n);
        let alone = self.steps.len() == 1;
        for (n, step) in self.steps.iter().enumerate() {
            let (before, had) = (edited.bytes(), layers(&edited));
            let changes = step.apply(&mut edited, aid).map_err(|e| match e {
                Error::Refused { step, problems } if !alone => {
                    Error::Refused { step: format!("step {} ({step})", n + 1), problems }
                }
                other => other,
            })?;
            let (transform, after) = (step.name().to_owned(), edited.bytes());
            reports.push(Report { transform, changes, before, after, layers: [had, layers(&edited)] });
        }
        *checkpoint = edited;
        Ok(reports)
    }
}
