//! ALBERT: a narrow embedding under a projection, and groups of layers that share their weights.

use super::recipe::{Head, Kind, Names, Pool, Recipe, Step, absolute_positions, labels, like_bert};
use crate::ingest::activation::Activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;

const NAMES: Names = Names {
    projection: "encoder.embedding_hidden_mapping_in",
    layer: |i| format!("encoder.albert_layer_groups.{i}.albert_layers.0."),
    q: "attention.query",
    k: "attention.key",
    v: "attention.value",
    attention_output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: "ffn",
    down: "ffn_output",
    ffn_norm: "full_layer_layer_norm",
    ..Names::BERT
};

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    absolute_positions(f);
    let types = f.size("type_vocab_size", Some(2));
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    let embedding = f.size("embedding_size", Some(128));
    let inner_groups = f.size("inner_group_num", Some(1));
    if inner_groups != 1 {
        let problem = format!("is {inner_groups}; groups of one layer are read");
        f.gap("inner_group_num", problem, "use a model with one layer in each group");
    }
    let r = like_bert(f);
    let groups = f.size("num_hidden_groups", Some(1));
    if groups > r.layers || !r.layers.is_multiple_of(groups) {
        let problem = format!("is {groups}, which does not divide num_hidden_layers {}", r.layers);
        f.size_gap("num_hidden_groups", problem, "correct one of them");
    }
    let hidden = r.hidden;
    let pooler = || Step::inner("pooler", hidden, hidden);
    let head = match kind {
        Kind::Model => Head::states(Some(pooler())),
        Kind::MaskedLm => {
            let bias = "predictions.bias".to_owned();
            let decoder = match tied {
                true => Step::Tied { bias },
                false => Step::Untied { name: "predictions.decoder".into(), bias },
            };
            let dense = Step::linear("predictions.dense", hidden, embedding);
            let norm = Step::norm("predictions.LayerNorm", embedding);
            Head::logits(Pool::Each, vec![dense, Step::Act(r.act), norm, decoder])
        }
        Kind::Sequence => {
            let tanh = Step::Act(Activation::Tanh);
            Head::logits(Pool::First, vec![pooler(), tanh, Step::linear("classifier", hidden, classes)])
        }
        Kind::Tokens => Head::logits(Pool::Each, vec![Step::linear("classifier", hidden, classes)]),
        Kind::Answer => Head::answer(vec![Step::linear("qa_outputs", hidden, 2)]),
    };
    let prefixes = if kind == Kind::Model { ["", "albert."] } else { ["albert.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["embeddings.position_ids", "predictions.", "sop_classifier."],
        _ => &["embeddings.position_ids", "albert.pooler.", "sop_classifier.", "predictions.decoder."],
    };
    // The projection is there whatever the widths; where they agree it still is one.
    let recipe = Recipe { prefixes, names: NAMES, types: Some(types), embedding, groups, head, ignored, ..r };
    Box::new(Recipe { always_projected: true, ..recipe })
}
