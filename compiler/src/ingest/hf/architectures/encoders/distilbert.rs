//! DistilBERT: BERT without token types and pooler, under other names.

use super::recipe::{Head, Kind, Names, Pool, Recipe, Step, labels, like_bert_named};
use crate::ingest::activation::Activation;
use crate::ingest::hf::common_fields::activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;

const NAMES: Names = Names {
    layer: |i| format!("transformer.layer.{i}."),
    q: "attention.q_lin",
    k: "attention.k_lin",
    v: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    ffn_norm: "output_layer_norm",
    ..Names::BERT
};

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    let act = activation(f, "activation", "gelu");
    let r = like_bert_named(f, ["dim", "n_heads", "n_layers", "hidden_dim"], act);
    let hidden = r.hidden;
    let head = match kind {
        Kind::Model => Head::states(None),
        Kind::MaskedLm => {
            let bias = "vocab_projector.bias".to_owned();
            let projector = match tied {
                true => Step::Tied { bias },
                false => Step::Untied { name: "vocab_projector".into(), bias },
            };
            let dense = Step::linear("vocab_transform", hidden, hidden);
            Head::logits(Pool::Each, vec![dense, Step::Act(act), Step::norm("vocab_layer_norm", hidden), projector])
        }
        Kind::Sequence => {
            let dense = Step::linear("pre_classifier", hidden, hidden);
            let relu = Step::Act(Activation::Relu);
            Head::logits(Pool::First, vec![dense, relu, Step::linear("classifier", hidden, classes)])
        }
        Kind::Tokens => Head::logits(Pool::Each, vec![Step::linear("classifier", hidden, classes)]),
        Kind::Answer => Head::answer(vec![Step::linear("qa_outputs", hidden, 2)]),
    };
    let prefixes = if kind == Kind::Model { ["", "distilbert."] } else { ["distilbert.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["embeddings.position_ids", "vocab_"],
        _ => &["embeddings.position_ids", "vocab_projector.weight"],
    };
    Box::new(Recipe { prefixes, names: NAMES, head, ignored, ..r })
}
