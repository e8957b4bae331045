//! DeBERTa-v2 and v3: attention in which content also addresses relative positions.

use super::recipe::{Distances, Head, Kind, Names, NearbyForm, Pool, Positions, Recipe, Step, labels, like_bert};
use crate::ingest::hf::common_fields::activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use serde_json::Value;

const NAMES: Names = Names {
    projection: "embeddings.embed_proj",
    q: "attention.self.query_proj",
    k: "attention.self.key_proj",
    v: "attention.self.value_proj",
    ..Names::BERT
};

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    let r = like_bert(f);
    let hidden = r.hidden;
    let types = f.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(0);
    let nearby = f.get("conv_kernel_size").is_some_and(|v| v.as_u64() != Some(0)).then(|| convolution(f));
    if f.get("embedding_size").and_then(Value::as_u64).is_some_and(|size| size != hidden) {
        f.gap("embedding_size", format!("differs from the hidden size {hidden}"), "use a model where they agree");
    }
    if f.get("attention_head_size").and_then(Value::as_u64).is_some_and(|size| size * r.heads != hidden) {
        f.gap("attention_head_size", "is set to another size than heads have", "remove it");
    }
    let positions = Positions::Disentangled(distances(f, r.context));
    let pooler_act = activation(f, "pooler_hidden_act", "gelu");
    let pooler_size = f.size("pooler_hidden_size", Some(hidden));
    if pooler_size != hidden {
        f.gap("pooler_hidden_size", format!("is {pooler_size}, not the hidden size {hidden}"), "correct it");
    }
    let legacy = f.flag("legacy", true);
    if !legacy && kind == Kind::MaskedLm {
        f.gap("legacy", "is false; the older head is read", "use a model with legacy heads");
    }
    let head = match kind {
        Kind::Model => Head::states(None),
        Kind::MaskedLm => {
            let bias = "cls.predictions.bias".to_owned();
            let decoder = match tied {
                true => Step::Tied { bias },
                false => Step::Untied { name: "cls.predictions.decoder".into(), bias },
            };
            let dense = Step::linear("cls.predictions.transform.dense", hidden, hidden);
            let norm = Step::norm("cls.predictions.transform.LayerNorm", hidden);
            Head::logits(Pool::Each, vec![dense, Step::Act(r.act), norm, decoder])
        }
        Kind::Sequence => {
            let dense = Step::linear("pooler.dense", hidden, hidden);
            Head::logits(Pool::First, vec![dense, Step::Act(pooler_act), Step::linear("classifier", hidden, classes)])
        }
        Kind::Tokens => Head::logits(Pool::Each, vec![Step::linear("classifier", hidden, classes)]),
        Kind::Answer => Head::answer(vec![Step::linear("qa_outputs", hidden, 2)]),
    };
    let prefixes = if kind == Kind::Model { ["", "deberta."] } else { ["deberta.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["embeddings.position_ids", "cls.", "lm_predictions.", "mask_predictions."],
        _ => &["embeddings.position_ids", "lm_predictions.", "mask_predictions.", "cls.predictions.decoder."],
    };
    let types = (types > 0).then_some(types);
    Box::new(Recipe { prefixes, names: NAMES, types, positions, nearby, head, ignored, ..r })
}

/// The convolution beside the first layer.
fn convolution(f: &mut Fields<'_>) -> NearbyForm {
    let taps = f.size_to("conv_kernel_size", None, 1 << 10);
    if taps.is_multiple_of(2) {
        f.gap("conv_kernel_size", format!("is {taps}; as many tokens before as behind are read"), "use an odd number");
    }
    let groups = f.size("conv_groups", Some(1));
    if groups != 1 {
        f.gap("conv_groups", format!("is {groups}; only 1 is read"), "use another model");
    }
    NearbyForm { taps, act: activation(f, "conv_act", "tanh") }
}

/// How distances are read. What is left out has the value that transformers gives it.
fn distances(f: &mut Fields<'_>, context: u64) -> Distances {
    if !f.flag("relative_attention", false) {
        f.gap("relative_attention", "is false; attention with relative positions is read", "use a model that has them");
    }
    let kinds: Vec<&str> = match f.get("pos_att_type") {
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(kinds)) => kinds.split('|').map(str::trim).collect(),
        _ => Vec::new(),
    };
    for kind in &kinds {
        if !["c2p", "p2c"].contains(kind) {
            f.gap("pos_att_type", format!("holds `{kind}`, which is not known"), "use c2p and p2c");
        }
    }
    let longest = f.get("max_relative_positions").and_then(Value::as_i64).unwrap_or(-1);
    let longest = u64::try_from(longest).ok().filter(|n| *n > 0).unwrap_or(context);
    let buckets =
        f.get("position_buckets").and_then(Value::as_i64).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    if buckets.is_some_and(|n| n < 4 || longest <= n / 2 + 1) {
        f.gap("position_buckets", "leaves no room between near and far distances", "correct it");
    }
    let span = buckets.unwrap_or(longest).min(f.limits().dim / 4).max(2);
    let norm = f.text("norm_rel_ebd").unwrap_or("none").to_lowercase();
    Distances {
        absolute: f.flag("position_biased_input", true),
        span,
        buckets: buckets.is_some(),
        longest,
        shared: f.flag("share_att_key", false),
        content_to_position: kinds.contains(&"c2p"),
        position_to_content: kinds.contains(&"p2c"),
        norm: norm.split('|').any(|part| part.trim() == "layer_norm"),
    }
}
