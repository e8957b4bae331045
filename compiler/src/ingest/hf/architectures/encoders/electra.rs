//! ELECTRA: BERT with an embedding of its own width and no pooler.

use super::recipe::{Head, Kind, Output, Pool, Recipe, Step, absolute_positions, labels, like_bert};
use crate::ingest::activation::Activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    Box::new(recipe(f, kind))
}

/// Whether each token was put in place of another: one logit a token.
pub(super) fn discriminator(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let r = recipe(f, Kind::Tokens);
    let steps = vec![
        Step::linear("discriminator_predictions.dense", r.hidden, r.hidden),
        Step::Act(r.act),
        Step::linear("discriminator_predictions.dense_prediction", r.hidden, 1),
    ];
    let output = Output { column: Some(0), ..Output::of("logits", Pool::Each, steps) };
    Box::new(Recipe { head: Head { states: false, outputs: vec![output] }, ..r })
}

fn recipe(f: &mut Fields<'_>, kind: Kind) -> Recipe {
    absolute_positions(f);
    let types = f.size("type_vocab_size", Some(2));
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    let embedding = f.size("embedding_size", Some(128));
    let r = like_bert(f);
    let hidden = r.hidden;
    let gelu = Step::Act(Activation::GeluErf);
    let head = match kind {
        Kind::Model => Head::states(None),
        Kind::MaskedLm => {
            let bias = "generator_lm_head.bias".to_owned();
            let decoder = match tied {
                true => Step::Tied { bias },
                false => Step::Untied { name: "generator_lm_head".into(), bias },
            };
            let dense = Step::linear("generator_predictions.dense", hidden, embedding);
            let norm = Step::norm("generator_predictions.LayerNorm", embedding);
            Head::logits(Pool::Each, vec![dense, gelu, norm, decoder])
        }
        Kind::Sequence => {
            let dense = Step::linear("classifier.dense", hidden, hidden);
            Head::logits(Pool::First, vec![dense, gelu, Step::linear("classifier.out_proj", hidden, classes)])
        }
        Kind::Tokens => Head::logits(Pool::Each, vec![Step::linear("classifier", hidden, classes)]),
        Kind::Answer => Head::answer(vec![Step::linear("qa_outputs", hidden, 2)]),
    };
    let prefixes = if kind == Kind::Model { ["", "electra."] } else { ["electra.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["embeddings.position_ids", "discriminator_predictions.", "generator_"],
        _ => &["embeddings.position_ids", "generator_lm_head.weight"],
    };
    Recipe { prefixes, types: Some(types), embedding, head, ignored, ..r }
}
