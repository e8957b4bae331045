//! What steps may ask of a running model: values inside it, for calibration tokens.

use super::analyze;
use super::checkpoint::Checkpoint;
use super::dense::Dense;
use super::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A place in a decoder or encoder whose values are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tap {
    /// The residual stream in front of a layer; with the number of layers as index, behind the last.
    Hidden(usize),
    /// What the projections of attention read.
    AttentionIn(usize),
    /// What the output projection of attention reads: all heads side by side.
    AttentionInner(usize),
    /// What attention adds to the stream.
    AttentionOut(usize),
    /// What the projections of the feed-forward part read.
    FfnIn(usize),
    /// What its last projection reads.
    FfnInner(usize),
    /// What the feed-forward part adds to the stream.
    FfnOut(usize),
    /// Queries of all heads, rotated.
    Queries(usize),
    /// Keys of all heads, rotated.
    Keys(usize),
    /// Values of all heads.
    Values(usize),
    /// Logits.
    Logits,
}

/// Values at a place: one row a token, sequence after sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Captured {
    /// `[tokens, width]`.
    pub values: Dense,
    /// Lengths of the sequences.
    pub sequences: Vec<usize>,
}

/// Runs a checkpoint on calibration tokens.
pub trait Activations {
    /// Values at these places, in their order.
    ///
    /// # Errors
    /// A model that cannot be run, or that has no such place.
    fn capture(&self, checkpoint: &Checkpoint, taps: &[Tap]) -> Result<Vec<Captured>, String>;
}

/// What steps may use besides the checkpoint.
#[derive(Clone, Copy, Default)]
pub struct Aid<'a> {
    /// Runs checkpoints, where calibration tokens were given.
    pub activations: Option<&'a dyn Activations>,
}

/// How layers are compared or ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Block influence, `1 − cos(x_in, x_out)` averaged over tokens: low for layers that change little.
    Cosine,
    /// `1 −` linear CKA of input and output.
    Cka,
    /// `1 −` how well the best linear map explains the layer.
    Linearity,
    /// `1 −` normalised pairwise information of input and output.
    Npib,
    /// `1 − cos` of the model's last hidden state with and without the layer.
    MacroInfluence,
    /// Jensen-Shannon divergence of a layer's attention from that of the layer before it.
    JsAttn,
    /// Angle between a layer's keys and values and those of the layer before it, over π.
    AngularKv,
    /// `‖x_out − x_in‖ / ‖x_in‖` averaged over tokens.
    NormRatio,
    /// Squared distance of the normalised states in front of and behind a layer.
    Pkd,
}

impl Aid<'_> {
    /// Values at these places.
    ///
    /// # Errors
    /// No calibration tokens, or a model that cannot be run.
    pub fn capture(&self, checkpoint: &Checkpoint, taps: &[Tap]) -> Result<Vec<Captured>> {
        let runner = self.activations.ok_or_else(|| {
            Error::Calibration("this step looks at activations; give --calib TOKENS (or text, with a tokenizer)".into())
        })?;
        runner.capture(checkpoint, taps).map_err(Error::Calibration)
    }

    /// The importance of each layer by a metric: low for layers that matter little.
    ///
    /// # Errors
    /// As [`Aid::capture`].
    pub fn importance(&self, checkpoint: &Checkpoint, metric: Metric) -> Result<Vec<f64>> {
        analyze::layers(checkpoint, metric, self)
    }

    /// The `n` least important layers in ascending order, with a line that says why.
    ///
    /// # Errors
    /// As [`Aid::importance`], and more layers asked for than there are.
    pub fn least(&self, checkpoint: &Checkpoint, n: usize, metric: Metric) -> Result<(Vec<usize>, String)> {
        let scores = self.importance(checkpoint, metric)?;
        if n >= scores.len() {
            return Err(Error::Refused {
                step: "--auto".into(),
                problems: vec![format!("{n} layers are asked for, and the model has {}", scores.len())],
            });
        }
        let mut order: Vec<usize> = (0..scores.len()).filter(|i| !scores[*i].is_nan()).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
        order.truncate(n);
        order.sort_unstable();
        let shown: Vec<String> = order.iter().map(|i| format!("{i} ({:.4})", scores[*i])).collect();
        Ok((order, format!("chose layers {} by {}", shown.join(", "), metric.name())))
    }
}

impl Metric {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Cosine => "cosine",
            Metric::Cka => "cka",
            Metric::Linearity => "linearity",
            Metric::Npib => "npib",
            Metric::MacroInfluence => "macro-influence",
            Metric::JsAttn => "js-attn",
            Metric::AngularKv => "angular-kv",
            Metric::NormRatio => "norm-ratio",
            Metric::Pkd => "pkd",
        }
    }
}
