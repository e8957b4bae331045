//! The texts of CLIP and SigLIP: learned positions, norms before each part, one row for a whole text.

use super::super::encoders::assemble::{layer_norm, linear};
use super::assemble::layer;
use super::clip::Family;
use super::recipe::{Image, Layers, Names, layers_or};
use crate::graph::{ValueId, WeightId};
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{Linear, Place, Scene, ScoreTerms, Stack, key_mask};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp};
use frit_plan::{InputFill, Task, sizes};

/// The configuration.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    family: Family,
    layers: Layers,
    vocab: u64,
    context: u64,
    /// The token whose row stands for a text; `None`: the one of the highest number.
    end: Option<u64>,
    /// To this size the row of a text is projected.
    pub projection: Option<u64>,
}

/// The bound tensors.
pub(super) struct TextTower {
    texts: Texts,
    words: WeightId,
    positions: WeightId,
    stack: Stack,
    head: Option<Linear>,
}

/// A model of texts alone.
pub(super) fn read(f: &mut Fields<'_>, family: Family, projected: bool) -> Box<dyn Architecture> {
    let size = match (family, projected) {
        (_, false) => None,
        (Family::Clip, true) => Some(f.size("projection_dim", Some(512))),
        (Family::Siglip, true) => {
            let hidden = f.size("hidden_size", Some(768));
            Some(f.size("projection_size", Some(hidden)))
        }
    };
    Box::new(Texts::read(f, "", family, size))
}

impl Texts {
    /// Reads the fields whose names begin with `prefix`.
    pub fn read(f: &mut Fields<'_>, prefix: &str, family: Family, projection: Option<u64>) -> Texts {
        let clip = family == Family::Clip;
        let (act, eps) = if clip { ("quick_gelu", 1e-5) } else { ("gelu_pytorch_tanh", 1e-6) };
        let layers = layers_or(f, prefix, act, eps, if clip { [512, 8, 2048] } else { [768, 12, 3072] });
        let end = f.token_ids(&format!("{prefix}eos_token_id")).first().copied().unwrap_or(49_407);
        let vocabulary = f.limits().vocabulary;
        let vocab = f.size_to(&format!("{prefix}vocab_size"), Some(if clip { 49_408 } else { 32_000 }), vocabulary);
        let context = f.size(&format!("{prefix}max_position_embeddings"), Some(if clip { 77 } else { 64 }));
        Texts { family, layers, vocab, context, end: (end != 2).then_some(u64::from(end)), projection }
    }
}

impl Architecture for Texts {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        Box::new(TextTower::bind(self, t))
    }
    fn ignorable(&self, name: &str) -> bool {
        let other = ["vision_model.", "visual_projection.", "logit_scale", "logit_bias"];
        name.ends_with("embeddings.position_ids") || other.iter().any(|start| name.starts_with(start))
    }
}

impl TextTower {
    /// Binds the tensors of the tower and its head.
    pub fn bind(texts: &Texts, t: &mut Binder<'_>) -> TextTower {
        let l = &texts.layers;
        let hidden: Extent<'_> = (l.hidden, "hidden_size of texts");
        let embedding = "text_model.embeddings";
        let words = t.take(&format!("{embedding}.token_embedding.weight"), &[(texts.vocab, "vocab_size"), hidden]);
        let rows: Extent<'_> = (texts.context, "max_position_embeddings");
        let positions = t.take(&format!("{embedding}.position_embedding.weight"), &[rows, hidden]);
        let stem = |i: u64| format!("text_model.{}", (Names::CLIP.layer)(i));
        let none = Image { channels: 1, height: 1, width: 1, patch: 1 };
        let bound = t.layers(l.count, "num_hidden_layers", stem);
        let layers = bound.into_iter().map(|i| layer(l, Names::CLIP, none, t, &stem(i))).collect();
        let norm = Some(layer_norm(t, "final_layer_norm", "text_model.final_layer_norm", hidden, l.eps, true));
        let head = texts.projection.map(|size| match texts.family {
            Family::Clip => linear(t, "text_projection", "text_projection", (size, "projection_dim"), hidden, false),
            Family::Siglip => linear(t, "head", "text_model.head", (size, "projection_size"), hidden, true),
        });
        let stack = Stack { name: "layers", place: Place::Before, layers, nearby: None, norm };
        TextTower { texts: texts.clone(), words, positions, stack, head }
    }

    /// The longest text.
    pub fn context(&self) -> u64 {
        self.texts.context
    }
    /// Tokens.
    pub fn vocab(&self) -> u64 {
        self.texts.vocab
    }

    /// Declares texts and gives their rows `[B, S, H]` and one row for each, `[B, projection]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>) -> [ValueId; 2] {
        let (batch, tokens) = (Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS));
        let shape = [batch.clone(), tokens.clone()];
        let ids = b.input("input_ids", Scalar::I32, &shape);
        let attended = b.input_or("attention_mask", Scalar::I32, &shape, InputFill::Ones);
        let visible = b.cast(attended, Scalar::Bool);
        let mask = Some(key_mask(b, visible));
        let table = b.weight(self.words);
        let words = b.gather(table, ids);
        let table = b.weight(self.positions);
        let positions = b.slice(table, 0, Dim::zero(), tokens.clone());
        let x = b.add(words, positions);
        let causal = (self.texts.family == Family::Clip).then(Dim::zero);
        let scene = Scene { scores: ScoreTerms { mask, bias: None, causal }, ..Scene::default() };
        let x = b.scope("encoder", |b| self.stack.apply(b, &scene, x));
        let width = b.ty(x).last();
        let row = match self.texts.family {
            Family::Siglip => {
                let last = b.slice(x, 1, tokens - Dim::one(), Dim::one());
                b.reshape(last, &[batch, width])
            }
            Family::Clip => {
                let marks = match self.texts.end {
                    Some(end) => {
                        let end = b.i32(i32::try_from(end).unwrap_or(i32::MAX));
                        b.binary(BinaryOp::Eq, ids, end)
                    }
                    None => ids,
                };
                let marks = b.cast(marks, Scalar::F32);
                let at = b.reduce(ReduceOp::ArgMax, marks, &[1], false);
                let row = b.iota(std::slice::from_ref(&batch), 0, Dim::zero());
                let len = b.iota(&[Dim::one()], 0, tokens.clone());
                let row = b.mul(row, len);
                let at = b.add(row, at);
                let rows = b.reshape(x, &[batch * tokens, width]);
                b.gather(rows, at)
            }
        };
        [x, self.head.as_ref().map_or(row, |head| head.apply(b, row))]
    }
}

impl Network for TextTower {
    fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, Some(self.context()));
        m.info.task = Task::Encoder;
        m.info.layers = u32::try_from(self.stack.layers.len()).unwrap_or(u32::MAX);
        m.info.context = self.context();
        m.info.vocab = self.vocab();
        let projected = self.texts.family == Family::Clip && self.head.is_some();
        m.graph("forward", |b| {
            let [states, row] = self.apply(b);
            b.output("last_hidden_state", states);
            b.output(if projected { "text_embeds" } else { "pooler_output" }, row);
        });
    }
}
