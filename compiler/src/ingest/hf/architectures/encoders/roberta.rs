//! RoBERTa, and XLM-RoBERTa and CamemBERT, which are RoBERTa under other names: BERT whose positions count the tokens
//! that are no padding.

use super::recipe::{Head, Kind, Pool, Positions, Recipe, Step, absolute_positions, labels, like_bert};
use crate::ingest::activation::Activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    absolute_positions(f);
    let types = f.size("type_vocab_size", Some(2));
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    let pad = pad_token(f, 1);
    let r = like_bert(f);
    let (hidden, rows) = (r.hidden, r.context);
    let head = match kind {
        Kind::Model => Head::states(Some(Step::inner("pooler.dense", hidden, hidden))),
        Kind::MaskedLm => masked_lm(hidden, tied, Activation::GeluErf),
        Kind::Sequence => Head::logits(Pool::First, first_token_classifier(hidden, classes)),
        Kind::Tokens => Head::logits(Pool::Each, vec![Step::linear("classifier", hidden, classes)]),
        Kind::Answer => Head::answer(vec![Step::linear("qa_outputs", hidden, 2)]),
    };
    let prefixes = if kind == Kind::Model { ["", "roberta."] } else { ["roberta.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["embeddings.position_ids", "lm_head."],
        _ => &["embeddings.position_ids", "roberta.pooler.", "lm_head.decoder."],
    };
    let context = rows.saturating_sub(pad + 1).max(1);
    let positions = Positions::Counted { rows, pad };
    Box::new(Recipe { prefixes, types: Some(types), head, ignored, context, positions, ..r })
}

/// The token of padding, `pad_token_id`.
pub(super) fn pad_token(f: &mut Fields<'_>, default: u64) -> u64 {
    match f.token_ids("pad_token_id").first() {
        Some(id) => u64::from(*id),
        None => default,
    }
}

/// A dense layer, a norm and the embedding.
pub(super) fn masked_lm(hidden: u64, tied: bool, act: Activation) -> Head {
    let bias = "lm_head.bias".to_owned();
    let decoder = if tied { Step::Tied { bias } } else { Step::Untied { name: "lm_head.decoder".into(), bias } };
    let dense = Step::linear("lm_head.dense", hidden, hidden);
    Head::logits(Pool::Each, vec![dense, Step::Act(act), Step::norm("lm_head.layer_norm", hidden), decoder])
}

/// Classes from the first token, through a layer of its own.
pub(super) fn first_token_classifier(hidden: u64, classes: u64) -> Vec<Step> {
    let dense = Step::linear("classifier.dense", hidden, hidden);
    vec![dense, Step::Act(Activation::Tanh), Step::linear("classifier.out_proj", hidden, classes)]
}
