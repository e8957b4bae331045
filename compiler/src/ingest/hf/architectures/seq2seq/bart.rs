//! BART and what was made of it: mBART, Marian, Pegasus, M2M-100, Blenderbot. They differ in where norms stand and in
//! how positions are made.

use super::super::encoders::assemble::{layer_norm, linear};
use super::super::encoders::recipe::labels;
use super::layers::{Side, side, start};
use super::sinusoids;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    Counting, EncoderDecoder, First, Linear, Place, PositionTable, Reading, Source, TokenEmbedding, Top,
};
use crate::ingest::hf::common_fields::activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};

/// Members of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Bart,
    MBart,
    Marian,
    Pegasus,
    M2m100,
    Blenderbot,
    BlenderbotSmall,
}

/// How positions are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Positions {
    /// A learned table whose first rows, so many, are not used.
    Learned(u64),
    /// Sines, then cosines; see [`sinusoids::halves`].
    Halves,
    /// Sines, then cosines, for tokens that are no padding; see [`sinusoids::spread`].
    Spread,
}

/// Classes of models that write nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Sequence,
    Answer,
}

/// A model that writes nothing.
#[derive(Clone, Debug)]
struct ReadingConfig {
    pair: Config,
    kind: Kind,
    first: First,
    /// The token that ends texts.
    end: u32,
    labels: u64,
}

/// The configuration.
#[derive(Clone, Debug)]
struct Config {
    vocab: u64,
    /// The decoder's vocabulary, where it has an embedding of its own.
    own_vocab: Option<u64>,
    width: u64,
    context: u64,
    sides: [Side; 2],
    positions: Positions,
    pad: u64,
    scale: bool,
    /// Whether a norm follows the embedding.
    embedding_norm: bool,
    /// Whether the decoder adds positions behind that norm.
    decoder_positions_last: bool,
    /// Whether logits have a bias.
    logits_bias: bool,
    tied: bool,
    start: Vec<u32>,
}

/// A model that writes.
pub(super) fn read(f: &mut Fields<'_>, family: Family) -> Box<dyn Architecture> {
    Box::new(config(f, family))
}

/// A model that writes nothing: its decoder reads the text once more.
pub(super) fn reading(f: &mut Fields<'_>, family: Family, kind: Kind) -> Box<dyn Architecture> {
    let pair = config(f, family);
    let pad = u32::try_from(pair.pad).unwrap_or(u32::MAX);
    let first = match family {
        Family::MBart => First::Last { pad },
        _ => First::Token(pair.start.first().copied().unwrap_or(2)),
    };
    let end = f.token_ids("eos_token_id").first().copied().unwrap_or(2);
    let labels = if kind == Kind::Answer { 2 } else { labels(f) };
    Box::new(ReadingConfig { pair, kind, first, end, labels })
}

fn config(f: &mut Fields<'_>, family: Family) -> Config {
    use Family::{Bart, Blenderbot, BlenderbotSmall, M2m100, MBart, Marian, Pegasus};
    let limits = f.limits();
    let vocab = f.size_to("vocab_size", None, limits.vocabulary);
    let width = f.size("d_model", Some(1024));
    let act = activation(f, "activation_function", if matches!(family, M2m100) { "relu" } else { "gelu" });
    let place = match family {
        MBart | Pegasus | M2m100 | Blenderbot => Place::Before,
        Bart | Marian | BlenderbotSmall => Place::After,
    };
    let sides = ["encoder", "decoder"].map(|name| {
        let final_norm = place == Place::Before;
        Side { place, final_norm, ..side(f, name, width, act) }
    });
    let own_vocab = match family {
        Marian if !f.flag("share_encoder_decoder_embeddings", true) => {
            Some(f.size_to("decoder_vocab_size", Some(vocab), limits.vocabulary))
        }
        _ => None,
    };
    let scale = f.flag("scale_embedding", matches!(family, M2m100));
    let pad = f.token_ids("pad_token_id").first().copied().unwrap_or(1);
    let default = (family == Bart).then_some(2);
    Config {
        vocab,
        own_vocab,
        width,
        context: f.size("max_position_embeddings", Some(1024)),
        sides,
        positions: match family {
            Bart | MBart => Positions::Learned(2),
            Blenderbot | BlenderbotSmall => Positions::Learned(0),
            Marian | Pegasus => Positions::Halves,
            M2m100 => Positions::Spread,
        },
        pad: u64::from(pad),
        scale,
        embedding_norm: matches!(family, Bart | MBart | BlenderbotSmall),
        decoder_positions_last: family == BlenderbotSmall,
        logits_bias: family != M2m100,
        tied: f.flag("tie_word_embeddings", true),
        start: start(f, default, own_vocab.unwrap_or(vocab)),
    }
}

impl Config {
    fn width(&self) -> Extent<'static> {
        (self.width, "d_model")
    }
    fn embedding(
        &self,
        t: &mut Binder<'_>,
        p: &str,
        words: crate::graph::WeightId,
        side: &'static str,
    ) -> TokenEmbedding {
        let stem = format!("{p}{side}.embed_positions");
        let table = match self.positions {
            Positions::Learned(first) => {
                let rows = (self.context + first, "max_position_embeddings");
                let table = t.take(&format!("{stem}.weight"), &[rows, self.width()]);
                PositionTable { table, count: Counting::From(first) }
            }
            Positions::Halves => {
                let name = format!("{stem}.weight");
                let rows = (self.context, "max_position_embeddings");
                let there = t.take_if_there(&name, &[rows, self.width()]);
                let table = there.unwrap_or_else(|| {
                    t.builder().constant(
                        &name,
                        &[self.context, self.width],
                        &sinusoids::halves(self.context, self.width),
                    )
                });
                PositionTable { table, count: Counting::From(0) }
            }
            Positions::Spread => {
                let rows = self.context + 2;
                let values = sinusoids::spread(rows, self.width, self.pad);
                let table = t.builder().constant(&format!("{stem}.weights"), &[rows, self.width], &values);
                PositionTable { table, count: Counting::Visible { pad: self.pad } }
            }
        };
        let norm = self.embedding_norm.then(|| {
            layer_norm(t, "layernorm_embedding", &format!("{p}{side}.layernorm_embedding"), self.width(), 1e-5, true)
        });
        TokenEmbedding {
            words,
            scale: self.scale.then(|| (self.width as f64).sqrt() as f32),
            positions: Some(table),
            norm,
            positions_after_norm: self.decoder_positions_last && side == "decoder",
        }
    }
}

impl Config {
    /// Binds the encoder and the decoder, whose names begin with `p`, and gives the decoder's embedding too.
    fn pair(&self, t: &mut Binder<'_>, p: &str) -> (EncoderDecoder, crate::graph::WeightId) {
        let vocab: Extent<'_> = (self.vocab, "vocab_size");
        let [source_words, target_words] = match self.own_vocab {
            Some(own) => [
                t.take(&format!("{p}encoder.embed_tokens.weight"), &[vocab, self.width()]),
                t.take(&format!("{p}decoder.embed_tokens.weight"), &[(own, "decoder_vocab_size"), self.width()]),
            ],
            None => [t.take(&format!("{p}shared.weight"), &[vocab, self.width()]); 2],
        };
        let source = self.embedding(t, p, source_words, "encoder");
        let target = self.embedding(t, p, target_words, "decoder");
        let [encoder, decoder] = &self.sides;
        let encoder = encoder.bind(t, &format!("{p}encoder."));
        let decoder = decoder.bind(t, &format!("{p}decoder."));
        // The last row of M2M-100's table is not reached: rows count from behind that of padding.
        let context = match self.positions {
            Positions::Spread => (self.context + 2).saturating_sub(self.pad + 1).max(1),
            _ => self.context,
        };
        let pair = EncoderDecoder {
            source: Source::Tokens { embedding: source, vocab: self.vocab, most: Some(context) },
            encoder,
            encoder_bias: None,
            target,
            decoder,
            decoder_bias: None,
            head_scale: None,
            head: None,
            vocab: self.own_vocab.unwrap_or(self.vocab),
            context: Some(context),
            start: self.start.clone(),
        };
        (pair, target_words)
    }
}

impl Architecture for Config {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let target_vocab: Extent<'_> = match self.own_vocab {
            Some(own) => (own, "decoder_vocab_size"),
            None => (self.vocab, "vocab_size"),
        };
        let (pair, target_words) = self.pair(t, "model.");
        let weight = match self.tied {
            true => target_words,
            false => linear(t, "lm_head", "lm_head", target_vocab, self.width(), false).weight,
        };
        let bias =
            self.logits_bias.then(|| t.take_flat("final_logits_bias", &[(1, "1"), target_vocab], &[target_vocab.0]));
        Box::new(EncoderDecoder { head: Some(Linear::new("lm_head", weight, bias)), ..pair })
    }
    fn ignorable(&self, name: &str) -> bool {
        let tied = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"];
        let computed = self.positions == Positions::Spread && name.ends_with("embed_positions.weights");
        let shared = self.own_vocab.is_some() && name == "model.shared.weight";
        tied.contains(&name) || computed || shared || (self.tied && name == "lm_head.weight")
    }
}

impl Architecture for ReadingConfig {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let prefixes = if self.kind == Kind::Model { ["", "model."] } else { ["model.", ""] };
        let p = t.prefix(&prefixes, "shared.weight");
        let (pair, _) = self.pair.pair(t, p);
        let width = self.pair.width();
        let labels: Extent<'_> = (self.labels, "num_labels");
        let top = match self.kind {
            Kind::Model => Top::States,
            Kind::Sequence => Top::Classes {
                end: self.end,
                dense: linear(t, "dense", "classification_head.dense", width, width, true),
                out: linear(t, "out_proj", "classification_head.out_proj", labels, width, true),
            },
            Kind::Answer => Top::Answer(linear(t, "qa_outputs", "qa_outputs", labels, width, true)),
        };
        Box::new(Reading { pair, first: self.first, top })
    }
    fn ignorable(&self, name: &str) -> bool {
        name.ends_with("embed_tokens.weight") || ["lm_head.weight", "final_logits_bias"].contains(&name)
    }
}
