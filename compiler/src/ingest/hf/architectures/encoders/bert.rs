//! BERT: learned positions, token types, a norm after each part.

use super::recipe::{Head, Kind, Output, Pool, Recipe, Step, absolute_positions, labels, like_bert};
use crate::ingest::activation::Activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    Box::new(recipe(f, kind))
}

/// Hidden words, and whether the second text follows the first.
pub(super) fn pretraining(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let mut r = recipe(f, Kind::MaskedLm);
    let hidden = r.hidden;
    for output in &mut r.head.outputs {
        output.name = "prediction_logits";
    }
    let steps = vec![
        Step::inner("pooler.dense", hidden, hidden),
        Step::Act(Activation::Tanh),
        Step::linear("cls.seq_relationship", hidden, 2),
    ];
    r.head.outputs.push(Output::of("seq_relationship_logits", Pool::First, steps));
    Box::new(r)
}

fn recipe(f: &mut Fields<'_>, kind: Kind) -> Recipe {
    absolute_positions(f);
    let types = f.size("type_vocab_size", Some(2));
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    let r = like_bert(f);
    let hidden = r.hidden;
    let pooler = || Step::inner("pooler.dense", hidden, hidden);
    let head = match kind {
        Kind::Model => Head::states(Some(pooler())),
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
            let tanh = Step::Act(Activation::Tanh);
            Head::logits(Pool::First, vec![pooler(), tanh, Step::linear("classifier", hidden, classes)])
        }
        Kind::Tokens => Head::logits(Pool::Each, vec![Step::linear("classifier", hidden, classes)]),
        Kind::Answer => Head::answer(vec![Step::linear("qa_outputs", hidden, 2)]),
    };
    let prefixes = if kind == Kind::Model { ["", "bert."] } else { ["bert.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["embeddings.position_ids", "cls."],
        Kind::MaskedLm => {
            &["embeddings.position_ids", "bert.pooler.", "cls.seq_relationship.", "cls.predictions.decoder.bias"]
        }
        _ => &["embeddings.position_ids", "bert.pooler."],
    };
    Recipe { prefixes, types: Some(types), head, ignored, ..r }
}
