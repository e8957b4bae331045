//! ModernBERT: rotary positions, norms before each part, gated feed-forward, and layers that see near tokens only.

use super::recipe::{Head, Kind, Local, Names, Pool, Positions, Recipe, Step, labels, like_bert};
use crate::ingest::blocks::Place;
use crate::ingest::hf::common_fields::{activation, even_rotation};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::most_rotated;
use crate::ingest::rope::{RopeConfig, RopeScaling};

const NAMES: Names = Names {
    words: "embeddings.tok_embeddings",
    positions: "",
    types: "",
    embedding_norm: "embeddings.norm",
    projection: "",
    layer: |i| format!("layers.{i}."),
    q: "attn.Wqkv",
    k: "",
    v: "",
    attention_output: "attn.Wo",
    attention_norm: "attn_norm",
    up: "mlp.Wi",
    down: "mlp.Wo",
    ffn_norm: "mlp_norm",
    final_norm: "final_norm",
};

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    for field in ["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"] {
        if f.flag(field, false) {
            f.gap(field, "is true; projections and norms without bias are read", "use a model without it");
        }
    }
    if !f.flag("decoder_bias", true) {
        f.gap("decoder_bias", "is false; a decoder with a bias is read", "use a model with it");
    }
    if f.get("rope_scaling").is_some() {
        f.gap("rope_scaling", "is set, which is not known for this architecture", "remove it");
    }
    let pool = match f.text("classifier_pooling").unwrap_or("cls") {
        "mean" => Pool::Mean,
        "cls" => Pool::First,
        other => {
            f.gap("classifier_pooling", format!("is `{other}`"), "use cls or mean");
            Pool::First
        }
    };
    let act = activation(f, "hidden_activation", "gelu");
    let classifier_act = activation(f, "classifier_activation", "gelu");
    let global = f.positive("global_rope_theta", Some(160_000.0));
    let local = f.positive_or_none("local_rope_theta");
    let local = if f.present("local_rope_theta") { local.unwrap_or(global) } else { 10_000.0 };
    let every = f.size("global_attn_every_n_layers", Some(3));
    let reach = f.size("local_attention", Some(128)) / 2;
    let eps = f.positive("norm_eps", Some(1e-5)) as f32;
    let context = f.size("max_position_embeddings", Some(8192));
    let r = like_bert(f);
    let (hidden, head_dim) = (r.hidden, r.hidden / r.heads.max(1));
    even_rotation(f, "hidden_size / num_attention_heads", head_dim);
    most_rotated(f, "hidden_size / num_attention_heads", head_dim);
    let rope = |theta| RopeConfig { theta, dim: head_dim, context, scaling: RopeScaling::Default }.frequencies();
    let tables = [global, local].map(rope).to_vec();
    let dense = Step::Linear { name: "head.dense".into(), inner: false, from: hidden, to: hidden, bias: false };
    let norm = Step::Norm { name: "head.norm".into(), size: hidden, bias: false };
    let transform = [dense, Step::Act(classifier_act), norm];
    let on = |last: Step| transform.iter().cloned().chain([last]).collect::<Vec<_>>();
    let head = match kind {
        Kind::Model => Head::states(None),
        Kind::MaskedLm => {
            let bias = "decoder.bias".to_owned();
            let decoder = if tied { Step::Tied { bias } } else { Step::Untied { name: "decoder".into(), bias } };
            Head::logits(Pool::Each, on(decoder))
        }
        Kind::Sequence => Head::logits(pool, on(Step::linear("classifier", hidden, classes))),
        Kind::Tokens => Head::logits(Pool::Each, on(Step::linear("classifier", hidden, classes))),
        Kind::Answer => Head::answer(on(Step::linear("classifier", hidden, classes))),
    };
    let prefixes = if kind == Kind::Model { ["", "model."] } else { ["model.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["head.", "decoder."],
        _ => &[],
    };
    Box::new(Recipe {
        prefixes,
        names: NAMES,
        act,
        eps,
        place: Place::Before,
        context,
        positions: Positions::Rotary { tables },
        bias: false,
        fused: true,
        local: Some(Local { every, reach }),
        first_norm: false,
        head,
        ignored,
        ..r
    })
}
