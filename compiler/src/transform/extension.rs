//! The object `frit` in `config.json`: what a checkpoint has that the fields of its family cannot say.
//!
//! Transforms write it, the readers of models obey it. A field that a reader does not serve is a gap, never passed over:
//! every field changes the computation. Layers are numbered as they are executed, from 0. Weights that several layers
//! share are not part of it; those are aliases of tensors, see [`ALIASES`].

use serde::{Deserialize, Serialize};

/// The key of the object in `config.json`.
pub const KEY: &str = "frit";
/// The key of the metadata of a safetensors file that holds a JSON object `{name: name of the stored tensor}`.
pub const ALIASES: &str = "frit.aliases";
/// Ending of the first factor `[rank, in]` of a linear map's update, after the map's stem: `….q_proj.lora_a.weight`.
pub const LORA_A: &str = "lora_a.weight";
/// Ending of the second factor `[out, rank]`, scale included.
pub const LORA_B: &str = "lora_b.weight";
/// Stem of the one linear map of a layer in [`Extension::linear_layers`], below the layer's own:
/// `model.layers.3.linear.weight`.
pub const LINEAR: &str = "linear";
/// Tensor `[hidden, embedding_rank]` of [`Extension::embedding_rank`].
pub const EMBEDDING_PROJECTION: &str = "frit.embedding_projection.weight";

/// What the fields of the family cannot say. Lists by layer are empty (the ordinary case) or have one entry a layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Extension {
    /// Whose keys and values each layer attends to. A layer has the projection of a part (keys or values) exactly if some
    /// layer, itself or another, names it as the source of that part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kv_map: Vec<KvSource>,
    /// Whose attention probabilities each layer uses; a layer that is not its own source has neither a query nor a key
    /// projection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probs_from: Vec<u32>,
    /// What layers with another source in [`Extension::probs_from`] take from it.
    #[serde(skip_serializing_if = "is_default")]
    pub shared: Shared,
    /// Layers whose values are blended with those of layer 0: `λ₁ Vₙ + λ₂ V₀`, one pair a layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub value_residual: Vec<[f32; 2]>,
    /// Keys each layer sees at most, itself included; `null` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Option<u64>>,
    /// Layers without feed-forward part; its norm is gone too. Of models with two stacks: layers of the decoder.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drop_ffn: Vec<u32>,
    /// Layers of the encoder of two stacks without feed-forward part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drop_encoder_ffn: Vec<u32>,
    /// Layers without attention; its norm is gone too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drop_attention: Vec<u32>,
    /// Layers that are one linear map of the residual stream, `h ← W h + b` (`b` where the tensor exists), and nothing
    /// else: no norm, no attention, no slot in the cache.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub linear_layers: Vec<u32>,
    /// Inner width of each layer's feed-forward part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ff: Vec<u64>,
    /// Heads of each layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Heads>,
    /// Rank, at most, of the updates `W + B A` that linear maps have; those with tensors [`LORA_A`] and [`LORA_B`], whose
    /// shapes say the rank of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<u64>,
    /// Rank, at most, of linear maps that are a product `B A` alone: those with [`LORA_A`] and [`LORA_B`] and no weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<u64>,
    /// Columns of the embedding table, which [`EMBEDDING_PROJECTION`] brings to the hidden size. A tied head applies the
    /// transpose of the projection first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_rank: Option<u64>,
    /// Layers that decide about themselves, by the tensors `gate.weight` `[1, hidden]` and `gate.bias` `[1]` below the
    /// layer's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Gate>,
    /// Whether a vector of its own, the tensor `step` `[hidden]`, is added to what enters each layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub steps: bool,
    /// Whether queries, keys and values have tensors of their own (`q_proj`, `k_proj`, `v_proj` of the attention part) in a
    /// family that packs them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub split_qkv: bool,
    /// Layers behind which every token attends to what entered the stack and what the layers before gave for that token,
    /// by the tensors `layer_attention.{q,k,v,o}_proj.weight` `[hidden, hidden]` below the layer's own, in as many heads as
    /// the model has: `y + O softmax(q K / √d) V` with q of the layer's own result y.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layer_attention: Vec<u32>,
    /// Tokens stop when they are done, by the tensors `halt.weight` `[1, hidden]` and `halt.bias` `[1]` below the first
    /// layer of each trip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halt: Option<Halt>,
    /// Tokens that each layer's cache begins with, whose keys `[tokens, k heads · dim]` and values are the tensors
    /// `prefix_k` and `prefix_v` of the attention part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<u64>,
}

/// Adaptive computation time: before each trip a token adds `p = sigmoid(w · x + b)` to what it has; the trip in which the
/// sum exceeds the threshold is its last and weighs what is left to 1, others weigh p. The result is `w new + (1 − w) old`
/// from 0 on; a token that has stopped keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    /// Layers of a trip.
    pub body: u32,
    /// `1 − ε`.
    pub threshold: f32,
}

/// The gate of a layer: `g = w · x + b`, with x what enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The layer.
    pub layer: u32,
    /// What the gate does.
    pub kind: GateForm,
}

/// What a gate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateForm {
    /// `(1 − s) x + s layer(x)` with `s = ½ tanh(g) + ½`.
    Mix,
    /// The layer runs for tokens with `sigmoid(g) > ½`; for others x stays, and keys and values are made of it.
    Route,
}

/// The layers whose keys and values a layer attends to. A source above the layer itself is read without the current
/// token, whose keys and values it has not computed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvSource {
    /// Source of the keys.
    pub k: u32,
    /// Source of the values.
    pub v: u32,
}

/// What a layer takes from the source of its attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// The probabilities; values are the layer's own.
    #[default]
    Probs,
    /// The output of the attention before its projection; there is no value projection either.
    Output,
}

/// The heads of one layer. Query head `h` uses key head `k_of[h]` and value head `v_of[h]`; an empty map means
/// `h · heads / queries`, the order of grouped queries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    /// Query heads.
    pub q: u64,
    /// Key heads.
    pub k: u64,
    /// Value heads.
    pub v: u64,
    /// Key head of each query head.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub k_of: Vec<u64>,
    /// Value head of each query head.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v_of: Vec<u64>,
}

fn is_default(shared: &Shared) -> bool {
    *shared == Shared::default()
}

impl Extension {
    /// Reads the object out of a configuration; one that is absent is the default.
    ///
    /// # Errors
    /// Fields that are unknown or of the wrong type.
    pub fn of(config: &serde_json::Map<String, serde_json::Value>) -> Result<Extension, serde_json::Error> {
        config.get(KEY).map_or_else(|| Ok(Extension::default()), |object| serde_json::from_value(object.clone()))
    }

    /// What is wrong with it in a model of so many layers: lists of another length, layers that do not exist.
    pub fn faults(&self, layers: usize) -> Vec<String> {
        let mut faults = Vec::new();
        let lists = [
            ("kv_map", self.kv_map.len()),
            ("probs_from", self.probs_from.len()),
            ("value_residual", self.value_residual.len()),
            ("windows", self.windows.len()),
            ("ff", self.ff.len()),
            ("heads", self.heads.len()),
        ];
        for (name, len) in lists.into_iter().filter(|(_, len)| *len != 0 && *len != layers) {
            faults.push(format!("`{KEY}.{name}` has {len} entries for {layers} layers"));
        }
        let sources = self.kv_map.iter().flat_map(|s| [s.k, s.v]).map(|i| ("kv_map", i));
        let numbered = sources
            .chain(self.probs_from.iter().map(|i| ("probs_from", *i)))
            .chain(self.drop_ffn.iter().map(|i| ("drop_ffn", *i)))
            .chain(self.drop_attention.iter().map(|i| ("drop_attention", *i)))
            .chain(self.linear_layers.iter().map(|i| ("linear_layers", *i)))
            .chain(self.layer_attention.iter().map(|i| ("layer_attention", *i)));
        if let Some(h) = self.halt.filter(|h| h.body == 0 || !layers.is_multiple_of(h.body as usize)) {
            faults.push(format!("`{KEY}.halt` has trips of {} layers in a model of {layers}", h.body));
        }
        for (name, i) in numbered.filter(|(_, i)| *i as usize >= layers) {
            faults.push(format!("`{KEY}.{name}` names layer {i}, and there are {layers}"));
        }
        faults
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Extension::default()
    }
}
