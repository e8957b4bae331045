//! MPNet: RoBERTa without token types, with a bias by classes of distances on the scores of every layer.

use super::recipe::{Head, Kind, Names, Pool, Positions, Recipe, Step, labels, like_bert};
use super::roberta::{first_token_classifier, masked_lm, pad_token};
use crate::ingest::activation::Activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;

const NAMES: Names = Names {
    q: "attention.attn.q",
    k: "attention.attn.k",
    v: "attention.attn.v",
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..Names::BERT
};

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let tied = f.flag("tie_word_embeddings", true);
    let classes = labels(f);
    // Padding is token 1 whatever the configuration says.
    let pad = 1;
    let given = pad_token(f, pad);
    if given != pad {
        f.gap("pad_token_id", format!("is {given}; positions of this architecture count from 1"), "set it to 1");
    }
    let count = f.size("relative_attention_num_buckets", Some(32));
    // Classes are computed for 32 of them, whatever the table holds.
    if count != 32 {
        f.gap("relative_attention_num_buckets", format!("is {count}; this architecture has 32"), "set it to 32");
    }
    let r = like_bert(f);
    let (hidden, rows) = (r.hidden, r.context);
    let head = match kind {
        Kind::Model => Head::states(Some(Step::inner("pooler.dense", hidden, hidden))),
        Kind::MaskedLm => masked_lm(hidden, tied, Activation::GeluErf),
        Kind::Sequence => Head::logits(Pool::First, first_token_classifier(hidden, classes)),
        Kind::Tokens => Head::logits(Pool::Each, vec![Step::linear("classifier", hidden, classes)]),
        Kind::Answer => Head::answer(vec![Step::linear("qa_outputs", hidden, 2)]),
    };
    let prefixes = if kind == Kind::Model { ["", "mpnet."] } else { ["mpnet.", ""] };
    let ignored: &[&str] = match kind {
        Kind::Model => &["embeddings.position_ids", "lm_head."],
        _ => &["embeddings.position_ids", "mpnet.pooler.", "lm_head.decoder."],
    };
    let context = rows.saturating_sub(pad + 1).max(1);
    let positions = Positions::CountedAndBuckets { rows, pad, count };
    Box::new(Recipe { prefixes, names: NAMES, head, ignored, context, positions, ..r })
}
