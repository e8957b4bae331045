//! Models with an encoder and a decoder.

mod bart;
mod layers;
mod sinusoids;
mod t5;
mod whisper;

use super::super::registry::{Class, Network};
use crate::ingest::blocks::{EncoderDecoder, Reading, TokenEncoder};
use crate::ingest::builder::ModelBuilder;
use crate::ingest::error::Gap;
use crate::ingest::policy::RunPolicy;
use bart::{Family, Kind};

/// Class, `model_type` and reader.
pub(super) const CLASSES: &[Class] = &[
    both("T5ForConditionalGeneration", "t5", |f| t5::read(f, t5::Family::T5)),
    both("MT5ForConditionalGeneration", "mt5", |f| t5::read(f, t5::Family::T5)),
    both("UMT5ForConditionalGeneration", "umt5", |f| t5::read(f, t5::Family::Umt5)),
    both("T5EncoderModel", "t5", |f| t5::encoder(f, t5::Family::T5)),
    both("MT5EncoderModel", "mt5", |f| t5::encoder(f, t5::Family::T5)),
    both("UMT5EncoderModel", "umt5", |f| t5::encoder(f, t5::Family::Umt5)),
    both("BartForConditionalGeneration", "bart", |f| bart::read(f, Family::Bart)),
    both("MBartForConditionalGeneration", "mbart", |f| bart::read(f, Family::MBart)),
    both("BartModel", "bart", |f| bart::reading(f, Family::Bart, Kind::Model)),
    both("BartForSequenceClassification", "bart", |f| bart::reading(f, Family::Bart, Kind::Sequence)),
    both("BartForQuestionAnswering", "bart", |f| bart::reading(f, Family::Bart, Kind::Answer)),
    both("MBartModel", "mbart", |f| bart::reading(f, Family::MBart, Kind::Model)),
    both("MBartForSequenceClassification", "mbart", |f| bart::reading(f, Family::MBart, Kind::Sequence)),
    both("MBartForQuestionAnswering", "mbart", |f| bart::reading(f, Family::MBart, Kind::Answer)),
    both("MarianMTModel", "marian", |f| bart::read(f, Family::Marian)),
    both("PegasusForConditionalGeneration", "pegasus", |f| bart::read(f, Family::Pegasus)),
    both("M2M100ForConditionalGeneration", "m2m_100", |f| bart::read(f, Family::M2m100)),
    both("BlenderbotForConditionalGeneration", "blenderbot", |f| bart::read(f, Family::Blenderbot)),
    both("BlenderbotSmallForConditionalGeneration", "blenderbot-small", |f| bart::read(f, Family::BlenderbotSmall)),
    both("WhisperForConditionalGeneration", "whisper", whisper::read),
];

const fn both(class: &'static str, model_type: &'static str, read: super::super::registry::Reader) -> Class {
    Class { class, model_type, read, encoder_decoder: true }
}

impl Network for TokenEncoder {
    fn build(&self, m: &mut ModelBuilder) {
        TokenEncoder::build(self, m);
    }
}

impl Network for Reading {
    fn build(&self, m: &mut ModelBuilder) {
        Reading::build(self, m);
    }
    fn context(&mut self) -> Option<&mut u64> {
        self.pair.context.as_mut()
    }
}

impl Network for EncoderDecoder {
    fn build(&self, m: &mut ModelBuilder) {
        EncoderDecoder::build(self, m);
    }
    fn set_policy(&mut self, policy: &RunPolicy) -> Vec<Gap> {
        EncoderDecoder::set_policy(self, policy)
    }
    fn context(&mut self) -> Option<&mut u64> {
        self.context.as_mut()
    }
}
