//! What a text encoder is made of, as data: a family fills this in from its configuration, and [`super::assemble`]
//! binds and builds it.

use crate::ingest::activation::Activation;
use crate::ingest::blocks::Place;
use crate::ingest::hf::common_fields::{activation, even_head_dim};
use crate::ingest::hf::fields::Fields;
use crate::ingest::rope::Frequencies;
use serde_json::Value;

/// A text encoder.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// What the names of the encoder's tensors begin with: under a head, and alone.
    pub prefixes: [&'static str; 2],
    pub names: Names,
    pub vocab: u64,
    /// Width of the embedding; where it is not the hidden size, a projection follows.
    pub embedding: u64,
    /// Whether a projection follows even where the widths agree.
    pub always_projected: bool,
    pub hidden: u64,
    pub inner: u64,
    pub layers: u64,
    /// Layers that share one set of weights form a group; [`Names::layer`] gets the number of the group.
    pub groups: u64,
    pub heads: u64,
    pub act: Activation,
    pub eps: f32,
    pub place: Place,
    /// The most tokens of a text.
    pub context: u64,
    pub positions: Positions,
    /// Rows of the table of token types.
    pub types: Option<u64>,
    /// Whether projections and norms of layers have a bias.
    pub bias: bool,
    /// One projection for queries, keys and values; a gated feed-forward with gate and up in one.
    pub fused: bool,
    /// Layers whose attention sees near keys only, and how far.
    pub local: Option<Local>,
    /// A convolution beside the first layer.
    pub nearby: Option<NearbyForm>,
    /// Whether the norm in front of the first layer's attention is left out.
    pub first_norm: bool,
    pub head: Head,
    /// Tensors that nothing reads, by a part of their name.
    pub ignored: &'static [&'static str],
}

/// A convolution along the tokens, see [`crate::ingest::blocks::Nearby`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct NearbyForm {
    pub taps: u64,
    pub act: Activation,
}

/// Layers with a window.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// Every n-th layer, from the first on, sees all keys.
    pub every: u64,
    /// Keys at most so far away are seen.
    pub reach: u64,
}

/// How positions enter.
#[derive(Clone, Debug)]
pub(crate) enum Positions {
    /// A learned table `[rows, embedding]` from the first row on.
    Learned { rows: u64 },
    /// A learned table in which padding, the token `pad`, has the row `pad`, and other tokens count from there.
    Counted { rows: u64, pad: u64 },
    /// [`Positions::Counted`] and a bias on the scores by classes of distances.
    CountedAndBuckets { rows: u64, pad: u64, count: u64 },
    /// Rotation, with one table for all layers or a second one for the local ones.
    Rotary { tables: Vec<Frequencies> },
    /// Content addresses distances.
    Disentangled(Distances),
}

/// Relative positions that content addresses, see [`crate::ingest::blocks::Disentangled`].
#[derive(Clone, Debug)]
pub(crate) struct Distances {
    /// Learned absolute positions beside them.
    pub absolute: bool,
    /// Classes on each side.
    pub span: u64,
    /// Whether far distances share classes.
    pub buckets: bool,
    /// The distance of the last class.
    pub longest: u64,
    /// Whether the layers' own projections are used for distances.
    pub shared: bool,
    pub content_to_position: bool,
    pub position_to_content: bool,
    /// Whether the table of distances is normalised.
    pub norm: bool,
}

/// Names of tensors, without `.weight` and `.bias`. Empty: there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub words: &'static str,
    pub positions: &'static str,
    pub types: &'static str,
    pub embedding_norm: &'static str,
    pub projection: &'static str,
    /// From the number of a layer to what its names begin with.
    pub layer: fn(u64) -> String,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub ffn_norm: &'static str,
    pub final_norm: &'static str,
}

impl Names {
    /// The names of BERT, which most encoders kept.
    pub const BERT: Names = Names {
        words: "embeddings.word_embeddings",
        positions: "embeddings.position_embeddings",
        types: "embeddings.token_type_embeddings",
        embedding_norm: "embeddings.LayerNorm",
        projection: "embeddings_project",
        layer: |i| format!("encoder.layer.{i}."),
        q: "attention.self.query",
        k: "attention.self.key",
        v: "attention.self.value",
        attention_output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        ffn_norm: "output.LayerNorm",
        final_norm: "",
    };
}

/// What stands on top.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// Whether the rows themselves are an output, `last_hidden_state`.
    pub states: bool,
    pub outputs: Vec<Output>,
}

/// An output computed from the rows.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub name: &'static str,
    pub pool: Pool,
    pub steps: Vec<Step>,
    /// The one column that is meant.
    pub column: Option<u64>,
}

/// Which rows an output is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Each.
    Each,
    /// The first of each text.
    First,
    /// The mean over the visible tokens.
    Mean,
}

/// A step from rows to an output.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// `inner`: its name begins as those of the encoder do. All other names are whole.
    Linear {
        name: String,
        inner: bool,
        from: u64,
        to: u64,
        bias: bool,
    },
    /// The transposed embedding, with a bias of that name.
    Tied {
        bias: String,
    },
    /// A table of its own in place of the embedding, with a bias of that name.
    Untied {
        name: String,
        bias: String,
    },
    Act(Activation),
    Norm {
        name: String,
        size: u64,
        bias: bool,
    },
}

impl Step {
    /// A projection with a bias.
    pub fn linear(name: impl Into<String>, from: u64, to: u64) -> Step {
        Step::Linear { name: name.into(), inner: false, from, to, bias: true }
    }
    /// A projection with a bias that belongs to the encoder.
    pub fn inner(name: impl Into<String>, from: u64, to: u64) -> Step {
        Step::Linear { name: name.into(), inner: true, from, to, bias: true }
    }
    /// A norm with a bias.
    pub fn norm(name: impl Into<String>, size: u64) -> Step {
        Step::Norm { name: name.into(), size, bias: true }
    }
}

impl Output {
    /// All columns of what `steps` make of the rows of `pool`.
    pub fn of(name: &'static str, pool: Pool, steps: Vec<Step>) -> Output {
        Output { name, pool, steps, column: None }
    }
}

impl Head {
    /// The rows, and what the pooler makes of the first one, where the model has such a projection.
    pub fn states(pooler: Option<Step>) -> Head {
        let steps = |dense| vec![dense, Step::Act(Activation::Tanh)];
        let pooled = pooler.map(|dense| Output::of("pooler_output", Pool::First, steps(dense)));
        Head { states: true, outputs: pooled.into_iter().collect() }
    }
    /// One output from `pool`.
    pub fn logits(pool: Pool, steps: Vec<Step>) -> Head {
        Head { states: false, outputs: vec![Output::of("logits", pool, steps)] }
    }
    /// The two ends of an answer.
    pub fn answer(steps: Vec<Step>) -> Head {
        let end = |name, column| Output { name, pool: Pool::Each, steps: steps.clone(), column: Some(column) };
        Head { states: false, outputs: vec![end("start_logits", 0), end("end_logits", 1)] }
    }
}

/// What a class puts on top of its encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    MaskedLm,
    Sequence,
    Tokens,
    Answer,
}

/// The number of classes of a classifier: as many as have a label.
pub(crate) fn labels(f: &mut Fields<'_>) -> u64 {
    let most = f.limits().vocabulary;
    match f.get("id2label").and_then(Value::as_object) {
        Some(labels) => (labels.len() as u64).clamp(1, most),
        None => f.size_to("num_labels", Some(2), most),
    }
}

/// A recipe with the fields that BERT's relatives share; a family changes what is different.
pub(crate) fn like_bert(f: &mut Fields<'_>) -> Recipe {
    let act = activation(f, "hidden_act", "gelu");
    let names = ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"];
    like_bert_named(f, names, act)
}

/// As [`like_bert`], with these names for the hidden size, the heads, the layers and the inner size.
pub(crate) fn like_bert_named(f: &mut Fields<'_>, [size, heads, layers, inner]: [&str; 4], act: Activation) -> Recipe {
    let limits = f.limits();
    let hidden = f.size(size, Some(768));
    let heads_field = heads;
    let heads = f.size(heads, Some(12));
    even_head_dim(f, heads_field, hidden, heads);
    let layers = f.size_to(layers, Some(12), limits.layers);
    let context = f.size("max_position_embeddings", Some(512));
    Recipe {
        prefixes: ["", ""],
        names: Names::BERT,
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        embedding: hidden,
        always_projected: false,
        hidden,
        inner: f.size(inner, Some(3072)),
        layers,
        groups: layers,
        heads,
        act,
        eps: f.positive("layer_norm_eps", Some(1e-12)) as f32,
        place: Place::After,
        context,
        positions: Positions::Learned { rows: context },
        types: None,
        bias: true,
        fused: false,
        local: None,
        nearby: None,
        first_norm: true,
        head: Head::default(),
        ignored: &["embeddings.position_ids"],
    }
}

/// Refuses positions other than learned ones.
pub(crate) fn absolute_positions(f: &mut Fields<'_>) {
    let kind = f.text("position_embedding_type").unwrap_or("absolute");
    if kind != "absolute" {
        let problem = format!("is `{kind}`; only `absolute` is read");
        f.gap("position_embedding_type", problem, "use a model with absolute positions");
    }
}
