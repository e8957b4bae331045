//! What a host must know of a model to feed it and to read it.

use crate::BufferRef;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use serde::{Deserialize, Serialize};

/// An input or output of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// The name tensors go by.
    pub name: String,
    /// F32, I32 or Bool (files may hold 64-bit integers; they are narrowed with a check).
    pub storage: Storage,
    /// Extents; a bare size symbol is bound from the tensor given.
    pub shape: Vec<Dim>,
    /// The buffer behind it.
    pub buffer: BufferRef,
    /// Inputs: what is written when the host gives nothing.
    pub fill: InputFill,
}

/// The value of an input that the host leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFill {
    /// It must be given.
    Required,
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Tensors in, tensors out.
    Graph,
    /// Encoder.
    Encoder,
    /// Generates tokens.
    Decoder,
    /// Generates tokens from what an encoder reads.
    EncoderDecoder,
}

/// Facts of a model that no kernel holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Display name.
    pub name: String,
    /// Architecture as the source calls it.
    pub architecture: String,
    /// What it does.
    pub task: Task,
    /// Decoder layers or encoder layers.
    pub layers: u32,
    /// Longest context in tokens; 0 when there is none.
    pub context: u64,
    /// Size of the vocabulary; 0 when there is none.
    pub vocab: u64,
    /// Tokens that end a generation.
    pub eos: Vec<u32>,
    /// Token put in front of a text, when the tokenizer does not do it by itself.
    pub bos: Option<u32>,
    /// Size of the vocabulary that an encoder in front of the decoder reads; 0 when there is none.
    #[serde(default)]
    pub source_vocab: u64,
    /// Tokens that a decoder with an encoder begins with.
    #[serde(default)]
    pub start: Vec<u32>,
    /// `tokenizer.json`.
    pub tokenizer: Option<String>,
    /// Why a model that takes the keys and values of earlier tokens runs only as the graph it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_obstacle: Option<String>,
    /// How a conversation is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatInfo>,
    /// What the token loop keeps to.
    #[serde(default, skip_serializing_if = "WritingRules::is_empty")]
    pub rules: WritingRules,
    /// Which tokens a cache has to keep; all of them unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How often a prompt runs whose layers read what layers above them made; once unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passes: Option<Passes>,
}

/// Passes over a prompt, each of which reads what the one before left in the cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Passes {
    /// At most so many; 0: as many as there are tokens, which is exact.
    pub most: u32,
    /// No more once what is read changes by no more than this part of its largest value; 0: all run.
    pub until: f32,
    /// The cache slots that are read from above.
    pub slots: Vec<u32>,
}

/// The tokens of a cache that later tokens see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Tokens that every later token sees, by their number in the vocabulary.
    pub anchors: Vec<u32>,
    /// Others are seen by tokens less than so many behind them.
    pub window: u64,
}

/// What a model's settings say of the tokens that it writes, as far as no program does it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritingRules {
    /// Tokens that are never written. Programs that choose tokens hold them too.
    #[serde(default)]
    pub suppressed: Vec<u32>,
    /// Tokens that are not written first. Programs that choose tokens hold them too.
    #[serde(default)]
    pub suppressed_first: Vec<u32>,
    /// The token that a row ends with where it becomes as long as was asked for; of several the first.
    #[serde(default)]
    pub last: Vec<u32>,
}

impl WritingRules {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == WritingRules::default()
    }
}

/// How a conversation is written for a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatInfo {
    /// A Jinja template of `messages`.
    pub template: String,
    /// The text of the token that begins a text, which templates name `bos_token`.
    pub bos: Option<String>,
    /// The text of the token that ends one, which templates name `eos_token`.
    pub eos: Option<String>,
}
