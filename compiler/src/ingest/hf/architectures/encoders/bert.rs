//! BERT: an encoder with learned positions and layer norms after each part, under a pooler or a masked-token head.

use crate::graph::WeightId;
use crate::ingest::activation::Activation;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{Attention, Ffn, Linear, Norm, Qkv, Shared, Up};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::hf::common_fields::{activation, even_head_dim};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::UnaryOp;
use frit_plan::{InputFill, Task, sizes};

/// The configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BertConfig {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub intermediate_size: u64,
    pub hidden_act: Activation,
    pub max_position_embeddings: u64,
    pub type_vocab_size: u64,
    pub layer_norm_eps: f32,
    pub head: BertHead,
}

/// What stands on top of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BertHead {
    /// The pooler.
    Pooler,
    /// The head that predicts masked tokens, with the embedding's weights if `tied`.
    MaskedLm {
        /// Whether the embedding's weights are used.
        tied: bool,
    },
}

pub(crate) fn read(f: &mut Fields<'_>, masked_lm: bool) -> Box<dyn Architecture> {
    let limits = f.limits();
    let hidden_size = f.size("hidden_size", None);
    let heads = f.size("num_attention_heads", None);
    even_head_dim(f, "num_attention_heads", hidden_size, heads);
    let positions = f.text("position_embedding_type").unwrap_or("absolute");
    if positions != "absolute" {
        f.gap(
            "position_embedding_type",
            format!("is `{positions}`; only `absolute` is read"),
            "use a model with absolute positions",
        );
    }
    let tied = f.flag("tie_word_embeddings", true);
    Box::new(BertConfig {
        vocab_size: f.size_to("vocab_size", None, limits.vocabulary),
        hidden_size,
        num_hidden_layers: f.size_to("num_hidden_layers", None, limits.layers),
        num_attention_heads: heads,
        intermediate_size: f.size("intermediate_size", None),
        hidden_act: activation(f, "hidden_act", "gelu"),
        max_position_embeddings: f.size("max_position_embeddings", Some(512)),
        type_vocab_size: f.size("type_vocab_size", Some(2)),
        layer_norm_eps: f.positive("layer_norm_eps", Some(1e-12)) as f32,
        head: if masked_lm { BertHead::MaskedLm { tied } } else { BertHead::Pooler },
    })
}

impl Architecture for BertConfig {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let order = if self.head == BertHead::Pooler { ["", "bert."] } else { ["bert.", ""] };
        let prefix = t.prefix(&order, "embeddings.word_embeddings.weight");
        Box::new(bind(self, prefix, t))
    }
    fn ignorable(&self, name: &str) -> bool {
        ignorable(self, name)
    }
}

/// The bound tensors of a model.
struct Bert {
    config: BertConfig,
    words: WeightId,
    positions: WeightId,
    types: WeightId,
    norm: Norm,
    layers: Vec<Layer>,
    head: Head,
}

struct Layer {
    attention: Attention,
    attention_norm: Norm,
    ffn: Ffn,
    ffn_norm: Norm,
}

enum Head {
    Pooler(Linear),
    MaskedLm { dense: Linear, norm: Norm, decoder: Linear },
}

/// Tensors that files hold although the model does not read them.
fn ignorable(config: &BertConfig, name: &str) -> bool {
    let masked_lm = matches!(config.head, BertHead::MaskedLm { .. });
    name.ends_with("embeddings.position_ids")
        || (masked_lm && (name.starts_with("bert.pooler.") || name.starts_with("cls.seq_relationship.")))
        || (masked_lm && name == "cls.predictions.decoder.bias")
        || (config.head == BertHead::MaskedLm { tied: true } && name == "cls.predictions.decoder.weight")
        || (!masked_lm && name.starts_with("cls."))
}

/// Binds the tensors of a model, whose names begin with `prefix`; what is wrong is left in the binder.
fn bind(config: &BertConfig, prefix: &str, t: &mut Binder<'_>) -> Bert {
    let hidden: Extent<'_> = (config.hidden_size, "hidden_size");
    let vocab: Extent<'_> = (config.vocab_size, "vocab_size");
    let mut table =
        |name: &str, rows: Extent<'_>| t.take(&format!("{prefix}embeddings.{name}.weight"), &[rows, hidden]);
    let words = table("word_embeddings", vocab);
    let positions = table("position_embeddings", (config.max_position_embeddings, "max_position_embeddings"));
    let types = table("token_type_embeddings", (config.type_vocab_size, "type_vocab_size"));
    let embedding_norm = norm(config, t, "LayerNorm", &format!("{prefix}embeddings.LayerNorm"));
    let layers = t.layers(config.num_hidden_layers, "num_hidden_layers", |i| format!("{prefix}encoder.layer.{i}."));
    let layers = layers.into_iter().map(|i| layer(config, t, &format!("{prefix}encoder.layer.{i}"))).collect();
    let head = match config.head {
        BertHead::Pooler => Head::Pooler(linear(t, "dense", &format!("{prefix}pooler.dense"), hidden, hidden)),
        BertHead::MaskedLm { tied } => {
            let dense = linear(t, "dense", "cls.predictions.transform.dense", hidden, hidden);
            let norm = norm(config, t, "LayerNorm", "cls.predictions.transform.LayerNorm");
            let weight = if tied { words } else { t.take("cls.predictions.decoder.weight", &[vocab, hidden]) };
            let bias = Some(t.take("cls.predictions.bias", &[vocab]));
            Head::MaskedLm { dense, norm, decoder: Linear { name: "decoder", weight, bias } }
        }
    };
    Bert { config: config.clone(), words, positions, types, norm: embedding_norm, layers, head }
}

fn linear(t: &mut Binder<'_>, name: &'static str, stem: &str, out: Extent<'_>, from: Extent<'_>) -> Linear {
    let weight = t.take(&format!("{stem}.weight"), &[out, from]);
    let bias = Some(t.take(&format!("{stem}.bias"), &[out]));
    Linear { name, weight, bias }
}

/// Norms of old files call their gain `gamma` and their bias `beta`.
fn norm(config: &BertConfig, t: &mut Binder<'_>, name: &'static str, stem: &str) -> Norm {
    let size = (config.hidden_size, "hidden_size");
    let mut either = |new: &str, old: &str| {
        let old = format!("{stem}.{old}");
        if t.has(&old) { t.take(&old, &[size]) } else { t.take(&format!("{stem}.{new}"), &[size]) }
    };
    let (gain, bias) = (either("weight", "gamma"), either("bias", "beta"));
    Norm::layer(name, config.layer_norm_eps, gain, Some(bias))
}

fn layer(config: &BertConfig, t: &mut Binder<'_>, stem: &str) -> Layer {
    let hidden = (config.hidden_size, "hidden_size");
    let inner = (config.intermediate_size, "intermediate_size");
    let qkv = ["query", "key", "value"].map(|n| linear(t, n, &format!("{stem}.attention.self.{n}"), hidden, hidden));
    let head_dim = config.hidden_size / config.num_attention_heads;
    Layer {
        attention: Attention {
            name: "attention",
            heads: config.num_attention_heads,
            kv_heads: config.num_attention_heads,
            head_dim,
            value_dim: head_dim,
            scale: (head_dim as f64).powf(-0.5) as f32,
            window: None,
            softcap: None,
            qkv: Qkv::Separate(qkv),
            clip: None,
            qk_norm: None,
            rope: None,
            sinks: None,
            output: linear(t, "output", &format!("{stem}.attention.output.dense"), hidden, hidden),
        },
        attention_norm: norm(config, t, "attention.output.LayerNorm", &format!("{stem}.attention.output.LayerNorm")),
        ffn: Ffn {
            name: "ffn",
            up: Up::Plain(linear(t, "intermediate", &format!("{stem}.intermediate.dense"), inner, hidden)),
            act: config.hidden_act,
            down: linear(t, "output", &format!("{stem}.output.dense"), hidden, inner),
        },
        ffn_norm: norm(config, t, "output.LayerNorm", &format!("{stem}.output.LayerNorm")),
    }
}

impl Network for Bert {
    fn build(&self, m: &mut ModelBuilder) {
        let config = &self.config;
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, Some(config.max_position_embeddings));
        m.info.task = Task::Encoder;
        m.info.layers = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        m.info.context = config.max_position_embeddings;
        m.info.vocab = config.vocab_size;
        m.graph("forward", |b| self.graph(config, b));
    }
}

impl Bert {
    fn graph(&self, config: &BertConfig, b: &mut GraphBuilder<'_>) {
        let (batch, tokens) = (Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS));
        let shape = [batch.clone(), tokens.clone()];
        let ids = b.input("input_ids", Scalar::I32, &shape);
        let attended = b.input_or("attention_mask", Scalar::I32, &shape, InputFill::Ones);
        let types = b.input_or("token_type_ids", Scalar::I32, &shape, InputFill::Zeros);
        let mask = b.cast(attended, Scalar::Bool);
        let mask = b.reshape(mask, &[batch.clone(), Dim::one(), Dim::one(), tokens.clone()]);
        let shared = Shared::encoder(batch.clone(), tokens.clone(), mask);

        let mut x = b.scope("embeddings", |b| {
            let table = b.weight(self.words);
            let words = b.gather(table, ids);
            let table = b.weight(self.types);
            let types = b.gather(table, types);
            let table = b.weight(self.positions);
            let positions = b.slice(table, 0, Dim::zero(), tokens);
            let x = b.add(words, types);
            let x = b.add(x, positions);
            self.norm.apply(b, x)
        });
        for (i, layer) in self.layers.iter().enumerate() {
            x = b.scope(&format!("encoder.layer.{i}"), |b| {
                let attended = layer.attention.apply(b, &shared, i, x);
                let sum = b.add(attended, x);
                let x = layer.attention_norm.apply(b, sum);
                let fed = layer.ffn.apply(b, x);
                let sum = b.add(fed, x);
                layer.ffn_norm.apply(b, sum)
            });
        }
        match &self.head {
            Head::Pooler(dense) => {
                b.output("last_hidden_state", x);
                let pooled = b.scope("pooler", |b| {
                    let first = b.slice(x, 1, Dim::zero(), Dim::one());
                    let first = b.reshape(first, &[batch, Dim::from(config.hidden_size)]);
                    let y = dense.apply(b, first);
                    b.unary(UnaryOp::Tanh, y)
                });
                b.output("pooler_output", pooled);
            }
            Head::MaskedLm { dense, norm, decoder } => {
                let logits = b.scope("cls", |b| {
                    let y = dense.apply(b, x);
                    let y = config.hidden_act.apply(b, y);
                    let y = norm.apply(b, y);
                    decoder.apply(b, y)
                });
                b.output("logits", logits);
            }
        }
    }
}
