//! How deep a decoder runs: layers left out, exits, parts skipped by token. A policy becomes part of the graph, so that
//! the device decides; it changes no weight.

use serde::{Deserialize, Serialize};

/// What runs of a decoder. The default runs all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunPolicy {
    /// Only the first layers run, so many; norm and head follow at once.
    pub exit_layer: Option<u32>,
    /// Layers that are left out.
    pub skip_layers: Vec<u32>,
    /// Layers whose feed-forward part is left out.
    pub skip_ffns: Vec<u32>,
    /// Of a model with two stacks: only the first layers of the encoder and of the decoder run, so many.
    pub depth: Option<[u32; 2]>,
    /// Tokens leave the stack early where they are certain.
    pub exits: Option<Exits>,
    /// Tokens skip feed-forward parts that change them little.
    pub ffn_skip: Option<FfnSkip>,
    /// What layers that a router sends a token past keep of it.
    pub kv_on_skip: KvOnSkip,
    /// The head reads a weighted sum of the layers' outputs.
    pub layer_mix: Option<LayerMix>,
    /// Pairs of neighbouring layers keep one direction for each of their keys and values.
    pub kv_merge: Option<KvMerge>,
    /// Tokens see anchors and near tokens only.
    pub kv_keep: Option<KvKeep>,
    /// The inner width of feed-forward parts is chosen when the model runs, up to all of it: the first neurons of each layer.
    pub ff_active: bool,
    /// Layers that read keys from above run a prompt several times as a whole, each time with the keys of the time before,
    /// where they run it token by token otherwise.
    pub prefill_passes: Option<PrefillPasses>,
    /// How attention probabilities that several layers use come to them.
    pub probs: Probs,
    /// A prompt runs through every layer with all its tokens, though nothing reads what most of them give behind the
    /// last layer that appends to a cache.
    pub whole_prefill: bool,
}

/// Exits by certainty. A token that has left keeps its row; the layers behind append keys and values made of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exits {
    /// After how many layers a token may leave, ascending.
    pub layers: Vec<u32>,
    /// When it does.
    pub rule: ExitRule,
}

/// When a token leaves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitRule {
    /// The largest probability exceeds this.
    Confidence(f32),
    /// The two largest probabilities differ by more than this.
    Margin(f32),
    /// The most likely token was the same at so many exits in a row, this one included.
    Saturation(u32),
}

/// Greedy skipping of feed-forward parts: once `cos(x, x + ffn(x))` exceeds the threshold, a token skips the parts of the
/// layers that follow, but for cold ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FfnSkip {
    /// Above which cosine a part counts as idle.
    pub threshold: f32,
    /// Layers whose part always runs.
    pub cold: Vec<u32>,
    /// Tokens at the start of a sequence that skip nothing.
    pub warmup: u32,
}

/// What a layer keeps of a token that did not run it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvOnSkip {
    /// Keys and values made of the state that passed.
    #[default]
    Project,
    /// Nothing: other tokens do not see it in that layer.
    Drop,
}

/// `logits = head(Σ wₗ hₗ)`, with `hₗ` what layer l gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMix {
    /// One weight a layer.
    pub weights: Vec<f32>,
    /// Whether each output is normalised by the last norm before it is weighted; else their sum is.
    #[serde(default)]
    pub normed: bool,
}

/// The caches of layers `start` and `start + 1`, `start + 2` and `start + 3`, … are merged: for each token and head the
/// direction that both share, and the length of either. What a run appends is whole within that run. Tokens whose directions
/// are too far apart for one may be retained as they are, as many as there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvMerge {
    /// The first layer that is merged; the middle one unless said.
    #[serde(default)]
    pub start: Option<u32>,
    /// Where between the directions of the first and the second layer the shared one lies, 0 to 1.
    pub t: f32,
    /// Keys, or values, of a head are retained where the angle between both directions exceeds `(1 − γ) π`: none of them at
    /// 0, all above 1.
    #[serde(default)]
    pub gamma: f32,
    /// How many are retained of each sequence, head and part at most; those that come first.
    #[serde(default)]
    pub retain: u32,
}

/// A token sees itself, the tokens less than `window` before it, and anchors. What no token sees any more leaves the cache
/// when its room is used up, unless rotary tables follow from the length of the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvKeep {
    /// Tokens that are anchors, by their number in the vocabulary.
    pub anchors: Vec<u32>,
    /// Tokens that are near, the token itself included.
    pub window: u64,
    /// The layers above this one attend to its keys and values of anchors as well.
    #[serde(default)]
    pub layer: Option<u32>,
}

/// How often a prompt runs. As many passes as it has tokens are exact, and more than that are never run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefillPasses {
    /// At most so many; 0: as many as there are tokens.
    pub most: u32,
    /// No more once keys and values that are read from above change by no more than this part of their largest; 0: all run.
    pub until: f32,
}

/// How probabilities come from the layer that computes them to layers that use them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probs {
    /// Whichever moves fewer bytes.
    #[default]
    Auto,
    /// `[B, H, S, T]` in memory.
    Store,
    /// Computed again from queries and keys.
    Recompute,
}

impl std::str::FromStr for Probs {
    type Err = String;
    fn from_str(s: &str) -> Result<Probs, String> {
        match s {
            "auto" => Ok(Probs::Auto),
            "store" => Ok(Probs::Store),
            "recompute" => Ok(Probs::Recompute),
            _ => Err(format!("`{s}` is none of auto, store and recompute")),
        }
    }
}

impl RunPolicy {
    /// Whether every layer runs for every token.
    pub fn is_whole(&self) -> bool {
        let is_static = self.exit_layer.is_none() && self.skip_layers.is_empty() && self.skip_ffns.is_empty();
        is_static && self.depth.is_none() && self.exits.is_none() && self.ffn_skip.is_none()
    }
}
