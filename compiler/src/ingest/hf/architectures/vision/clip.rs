//! CLIP and SigLIP: a tower for pictures and one for texts, and how well each picture fits each text.

use super::super::encoders::assemble::{layer_norm, linear};
use super::assemble::{Tower, layer};
use super::recipe::{Head, Image, Layers, Names, Recipe, image, layers_or};
use crate::graph::{ValueId, WeightId};
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    Ffn, Linear, Memory, MultiHead, Norm, Place, Projections, Scene, ScoreTerms, Stack, Up, key_mask,
};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{InputFill, Task, sizes};

/// Pictures run together with a batch of texts.
const IMAGES: &str = "I";

/// Members of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Clip,
    Siglip,
}

/// The configuration.
#[derive(Clone, Debug)]
struct Config {
    family: Family,
    vision: Recipe,
    text: Layers,
    vocab: u64,
    context: u64,
    /// The token whose row stands for a text; `None`: the one of the highest number.
    end: Option<u64>,
    projection: u64,
}

pub(super) fn read(f: &mut Fields<'_>, family: Family) -> Box<dyn Architecture> {
    let limits = f.limits();
    let clip = family == Family::Clip;
    let (act, eps) = if clip { ("quick_gelu", 1e-5) } else { ("gelu_pytorch_tanh", 1e-6) };
    let text = layers_or(f, "text_config.", act, eps, if clip { [512, 8, 2048] } else { [768, 12, 3072] });
    let vision = layers_or(f, "vision_config.", act, eps, [768, 12, 3072]);
    let image = image(f, "vision_config.", if clip { [224, 32] } else { [224, 16] });
    let end = f.token_ids("text_config.eos_token_id").first().copied().unwrap_or(49_407);
    let vocab = f.size_to("text_config.vocab_size", Some(if clip { 49_408 } else { 32_000 }), limits.vocabulary);
    let projection = match family {
        Family::Clip => f.size("projection_dim", Some(512)),
        Family::Siglip => f.size("text_config.projection_size", Some(text.hidden)),
    };
    if !clip && projection != vision.hidden {
        let problem = format!("is {projection}, but rows of pictures have {}", vision.hidden);
        f.size_gap("text_config.projection_size", problem, "correct one of them");
    }
    if !f.flag("vision_config.vision_use_head", true) {
        f.gap("vision_config.vision_use_head", "is false; pictures are pooled by attention", "use a model with it");
    }
    let names = match family {
        Family::Clip => Names::CLIP,
        Family::Siglip => Names { first_norm: "", final_norm: "post_layernorm", ..Names::CLIP },
    };
    let vision = Recipe {
        prefixes: ["vision_model."; 2],
        names,
        image,
        layers: vision,
        tokens: if clip { &["embeddings.class_embedding"] } else { &[] },
        flat: true,
        patch_bias: !clip,
        head: Head::default(),
        ignored: &[],
    };
    Box::new(Config {
        family,
        vision,
        text,
        vocab,
        context: f.size("text_config.max_position_embeddings", Some(if clip { 77 } else { 64 })),
        end: (end != 2).then_some(u64::from(end)),
        projection,
    })
}

/// The bound tensors.
struct TwoTowers {
    family: Family,
    vocab: u64,
    context: u64,
    end: Option<u64>,
    tower: Tower,
    pooling: Pooling,
    words: WeightId,
    positions: WeightId,
    text: Stack,
    text_head: Linear,
    scale: WeightId,
    bias: Option<WeightId>,
}

/// From rows of a picture to one.
enum Pooling {
    /// The first, normalised and projected.
    First { norm: Norm, projection: Linear },
    /// Attention of a learned query to all rows, and a feed-forward part.
    Attention { query: WeightId, attention: Box<MultiHead>, norm: Norm, ffn: Box<Ffn> },
}

impl Architecture for Config {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let tower = Tower::bind(&self.vision, t, "vision_model.");
        let pooling = self.pooling(t);
        let (l, hidden): (_, Extent<'_>) = (&self.text, (self.text.hidden, "text_config.hidden_size"));
        let words =
            t.take("text_model.embeddings.token_embedding.weight", &[(self.vocab, "text_config.vocab_size"), hidden]);
        let rows: Extent<'_> = (self.context, "text_config.max_position_embeddings");
        let positions = t.take("text_model.embeddings.position_embedding.weight", &[rows, hidden]);
        let stem = |i: u64| format!("text_model.{}", (Names::CLIP.layer)(i));
        let none = Image { channels: 1, height: 1, width: 1, patch: 1 };
        let bound = t.layers(l.count, "text_config.num_hidden_layers", stem);
        let layers = bound.into_iter().map(|i| layer(l, Names::CLIP, none, t, &stem(i))).collect();
        let norm = Some(layer_norm(t, "final_layer_norm", "text_model.final_layer_norm", hidden, l.eps, true));
        let projection: Extent<'_> = (self.projection, "projection_dim");
        let text_head = match self.family {
            Family::Clip => linear(t, "text_projection", "text_projection", projection, hidden, false),
            Family::Siglip => linear(t, "head", "text_model.head", projection, hidden, true),
        };
        let one: &[Extent<'_>] = if self.family == Family::Clip { &[] } else { &[(1, "1")] };
        Box::new(TwoTowers {
            family: self.family,
            vocab: self.vocab,
            context: self.context,
            end: self.end,
            tower,
            pooling,
            words,
            positions,
            text: Stack { name: "layers", place: Place::Before, layers, norm },
            text_head,
            scale: t.take_flat("logit_scale", one, &[1]),
            bias: (self.family == Family::Siglip).then(|| t.take_flat("logit_bias", one, &[1])),
        })
    }
    fn ignorable(&self, name: &str) -> bool {
        name.ends_with("embeddings.position_ids")
    }
}

impl Config {
    fn pooling(&self, t: &mut Binder<'_>) -> Pooling {
        let l = &self.vision.layers;
        let hidden: Extent<'_> = (l.hidden, "vision_config.hidden_size");
        if self.family == Family::Clip {
            let norm = layer_norm(t, "post_layernorm", "vision_model.post_layernorm", hidden, l.eps, true);
            let projection: Extent<'_> = (self.projection, "projection_dim");
            let projection = linear(t, "visual_projection", "visual_projection", projection, hidden, false);
            return Pooling::First { norm, projection };
        }
        let stem = "vision_model.head";
        let query = t.take_flat(&format!("{stem}.probe"), &[(1, "1"), (1, "1"), hidden], &[l.hidden]);
        let three: Extent<'_> = (3 * l.hidden, "3·hidden_size");
        let weight = t.take(&format!("{stem}.attention.in_proj_weight"), &[three, hidden]);
        let bias = t.take(&format!("{stem}.attention.in_proj_bias"), &[three]);
        let all = Linear::new("in_proj", weight, Some(bias));
        let head_dim = l.hidden / l.heads.max(1);
        let attention = MultiHead {
            name: "attention",
            heads: l.heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5) as f32,
            qkv: Projections::Fused(all),
            rope: None,
            output: linear(t, "out_proj", &format!("{stem}.attention.out_proj"), hidden, hidden, true),
        };
        let norm = layer_norm(t, "layernorm", &format!("{stem}.layernorm"), hidden, l.eps, true);
        let inner: Extent<'_> = (l.inner, "vision_config.intermediate_size");
        let up = Up::Plain(linear(t, "fc1", &format!("{stem}.mlp.fc1"), inner, hidden, true));
        let down = linear(t, "fc2", &format!("{stem}.mlp.fc2"), hidden, inner, true);
        let ffn = Ffn { name: "mlp", up, act: l.act, down };
        Pooling::Attention { query, attention: Box::new(attention), norm, ffn: Box::new(ffn) }
    }
}

impl Network for TwoTowers {
    fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, Some(self.context));
        m.size(IMAGES, 1, None);
        m.info.task = Task::Encoder;
        m.info.layers = self.tower.depth();
        m.info.context = self.context;
        m.info.vocab = self.vocab;
        m.graph("forward", |b| {
            let text = b.scope("text_model", |b| self.text(b));
            let images = b.scope("vision_model", |b| {
                let pixels = self.tower.pixels(b, Dim::size(IMAGES));
                let rows = self.tower.apply(b, pixels, None);
                self.pool(b, rows)
            });
            let [text, images] = [text, images].map(|x| unit(b, x));
            let logits = b.op(crate::graph::Op::MatMul { b_transposed: true }, &[text, images]);
            let scale = b.weight(self.scale);
            let scale = b.unary(UnaryOp::Exp, scale);
            let mut logits = b.mul(logits, scale);
            if let Some(bias) = self.bias {
                let bias = b.weight(bias);
                logits = b.add(logits, bias);
            }
            let per_image = b.transpose(logits, &[1, 0]);
            for (name, value) in [
                ("logits_per_image", per_image),
                ("logits_per_text", logits),
                ("text_embeds", text),
                ("image_embeds", images),
            ] {
                b.output(name, value);
            }
        });
    }
}

impl TwoTowers {
    /// Rows `[B, projection]` of texts.
    fn text(&self, b: &mut GraphBuilder<'_>) -> ValueId {
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
        let causal = (self.family == Family::Clip).then(Dim::zero);
        let scene = Scene { scores: ScoreTerms { mask, bias: None, causal }, ..Scene::default() };
        let x = b.scope("encoder", |b| self.text.apply(b, &scene, x));
        let width = b.ty(x).last();
        let row = match self.family {
            Family::Siglip => {
                let last = b.slice(x, 1, tokens - Dim::one(), Dim::one());
                b.reshape(last, &[batch, width])
            }
            Family::Clip => {
                let marks = match self.end {
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
        self.text_head.apply(b, row)
    }

    /// Rows `[I, projection]` of pictures.
    fn pool(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        let (batch, width) = (b.ty(x).shape.first().cloned().unwrap_or_else(Dim::one), b.ty(x).last());
        match &self.pooling {
            Pooling::First { norm, projection } => {
                let first = b.slice(x, 1, Dim::zero(), Dim::one());
                let first = b.reshape(first, &[batch, width]);
                let first = norm.apply(b, first);
                projection.apply(b, first)
            }
            Pooling::Attention { query, attention, norm, ffn } => {
                let shape = [batch.clone(), Dim::one(), width.clone()];
                let query = b.weight(*query);
                let query = b.broadcast(query, &shape);
                let pooled = attention.apply(b, query, Memory::Other(x), &ScoreTerms::default(), None);
                let normed = norm.apply(b, pooled);
                let fed = ffn.apply(b, normed);
                let y = b.add(pooled, fed);
                b.reshape(y, &[batch, width])
            }
        }
    }
}

/// Rows at length 1.
fn unit(b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
    let squares = b.mul(x, x);
    let sum = b.reduce(ReduceOp::Sum, squares, &[1], true);
    let length = b.unary(UnaryOp::Sqrt, sum);
    b.binary(BinaryOp::Div, x, length)
}
