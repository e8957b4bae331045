//! What every decoder shares whatever it was read from: the states that the token loop sets, what is visible, where
//! tokens stand, and the choice of the next one.

use super::builder::{GraphBuilder, ModelBuilder};
use crate::graph::{StateId, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, ReduceOp};
use frit_plan::{WritingRules, sizes};

/// A way to run a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Tokens from the host; logits at every position.
    Forward,
    /// Tokens from the host; logits at the last position, and the token that follows.
    Prefill,
    /// As prefill, for the token that was chosen last.
    Decode,
}

/// What a model's settings say of the tokens that it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationRules {
    /// Tokens that are never chosen.
    pub suppressed: Vec<u32>,
    /// Tokens that are not chosen first.
    pub suppressed_first: Vec<u32>,
    /// What the decoder of an encoder-decoder begins with, behind its own first token.
    pub begin: Vec<u32>,
    /// What a text ends with that becomes as long as was asked for.
    pub last: Vec<u32>,
}

/// What is added to the logit of a suppressed token: lower than any other, and finite, as kernels need it.
const SUPPRESSED: f32 = -1e30;

impl GenerationRules {
    /// Whether a token that follows a run of that phase may be any.
    fn is_free(&self, phase: Phase) -> bool {
        self.suppressed.is_empty() && (phase == Phase::Decode || self.suppressed_first.is_empty())
    }
    /// What the token loop has to keep to.
    pub fn for_host(&self) -> WritingRules {
        let GenerationRules { suppressed, suppressed_first, last, .. } = self.clone();
        WritingRules { suppressed, suppressed_first, last }
    }
    /// What is added to the logits behind a run of that phase. Tokens beyond the vocabulary are passed over.
    fn offsets(&self, phase: Phase, vocab: u64) -> Vec<f32> {
        let mut out = vec![0.0; usize::try_from(vocab).unwrap_or(0)];
        let first = self.suppressed_first.iter().filter(|_| phase != Phase::Decode);
        for token in self.suppressed.iter().chain(first) {
            if let Some(offset) = out.get_mut(*token as usize) {
                *offset = SUPPRESSED;
            }
        }
        out
    }
}

/// Declares the sizes of a decoder that takes up to `tokens` at once; its cache holds `context` tokens at most.
pub fn declare_sizes(m: &mut ModelBuilder, tokens: Option<u64>, context: u64) {
    m.size(sizes::BATCH, 1, None);
    m.size(sizes::TOKENS, 1, tokens);
    m.size(sizes::PAST, 0, None);
    m.size(sizes::CAPACITY, 1, Some(context));
}

/// `[B, S]` I32: the tokens of this run.
pub fn tokens(b: &mut GraphBuilder<'_>, phase: Phase, input: &str) -> ValueId {
    let shape = [Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS)];
    match phase {
        Phase::Forward | Phase::Prefill => b.input(input, Scalar::I32, &shape),
        Phase::Decode => {
            let state = next_token(b.model());
            let token = b.state(state);
            let [_, tokens] = shape;
            b.slice(token, 1, Dim::zero(), tokens)
        }
    }
}

/// The token that was chosen last, a state `[B, 1]`.
fn next_token(m: &mut ModelBuilder) -> StateId {
    m.state("next_token", Storage::I32, &[Dim::size(sizes::BATCH), Dim::one()])
}

/// `[B, P + S]` Bool: which keys are tokens and not padding.
pub fn visible(b: &mut GraphBuilder<'_>) -> ValueId {
    let shape = [Dim::size(sizes::BATCH), Dim::size(sizes::CAPACITY)];
    let state = b.model().state("key_mask", Storage::Bool, &shape);
    let mask = b.state(state);
    b.slice(mask, 1, Dim::zero(), Dim::size(sizes::PAST) + Dim::size(sizes::TOKENS))
}

/// `[B, S]` I32: the positions of this run's tokens, counted from the first token of a row that is no padding.
pub fn positions(b: &mut GraphBuilder<'_>) -> ValueId {
    counted(b, Dim::size(sizes::PAST), Dim::size(sizes::TOKENS))
}

/// `[B, P + S]` I32: the positions of all keys, counted as [`positions`] are.
pub fn key_positions(b: &mut GraphBuilder<'_>) -> ValueId {
    counted(b, Dim::zero(), Dim::size(sizes::PAST) + Dim::size(sizes::TOKENS))
}

/// `[B, count]` I32: the positions of tokens from column `first` on.
fn counted(b: &mut GraphBuilder<'_>, first: Dim, count: Dim) -> ValueId {
    let batch = Dim::size(sizes::BATCH);
    let state = b.model().state("pos_offset", Storage::I32, std::slice::from_ref(&batch));
    let at = b.iota(&[batch.clone(), count], 1, first);
    let offset = b.state(state);
    let offset = b.reshape(offset, &[batch, Dim::one()]);
    let at = b.add(at, offset);
    let zero = b.i32(0);
    b.binary(BinaryOp::Max, at, zero)
}

/// Ends a run: `logits` are `[B, 1, V]` F32, those of the last token; the most likely token is the next one. Suppressed
/// tokens are not: those of the first token behind a run of prompt tokens, which every row of a prompt ends with.
pub fn choose(b: &mut GraphBuilder<'_>, phase: Phase, logits: ValueId, vocab: u64) {
    let mut logits = b.reshape(logits, &[Dim::size(sizes::BATCH), Dim::from(vocab)]);
    if !b.model().rules.is_free(phase) {
        let name = if phase == Phase::Decode { "suppressed" } else { "suppressed_first" };
        let offsets = b.model().rules.offsets(phase, vocab);
        let offsets = b.model().constant_once(name, &[vocab], &offsets);
        let offsets = b.weight(offsets);
        logits = b.add(logits, offsets);
    }
    let token = b.reduce(ReduceOp::ArgMax, logits, &[1], true);
    let state = next_token(b.model());
    b.output("logits", logits);
    b.output_to("next_token", token, Some(state));
}
