//! Whisper: an encoder over spectra, with two convolutions in front, and a decoder of text.

use super::layers::{Side, side, start};
use crate::ingest::activation::Activation;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    Conv1d, Counting, EncoderDecoder, Linear, Place, PositionTable, SignalStem, Source, TokenEmbedding,
};
use crate::ingest::hf::common_fields::activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};

/// The configuration.
#[derive(Clone, Debug)]
struct Config {
    vocab: u64,
    width: u64,
    features: u64,
    places: u64,
    context: u64,
    sides: [Side; 2],
    scale: bool,
    tied: bool,
    start: Vec<u32>,
}

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let limits = f.limits();
    let width = f.size("d_model", Some(384));
    let act = activation(f, "activation_function", "gelu");
    let sides = ["encoder", "decoder"].map(|name| Side {
        place: Place::Before,
        final_norm: true,
        key_bias: false,
        ..side(f, name, width, act)
    });
    let vocab = f.size_to("vocab_size", None, limits.vocabulary);
    Box::new(Config {
        vocab,
        width,
        features: f.size("num_mel_bins", Some(80)),
        places: f.size_to("max_source_positions", Some(1500), 1 << 20),
        context: f.size("max_target_positions", Some(448)),
        sides,
        scale: f.flag("scale_embedding", false),
        tied: f.flag("tie_word_embeddings", true),
        start: start(f, Some(50_257), vocab),
    })
}

impl Config {
    fn width(&self) -> Extent<'static> {
        (self.width, "d_model")
    }
    fn conv(&self, t: &mut Binder<'_>, name: &'static str, channels: Extent<'_>, stride: u64) -> Conv1d {
        const TAPS: u64 = 3;
        let stem = format!("model.encoder.{name}");
        let shape = [self.width(), channels, (TAPS, "3")];
        let weight = t.take_flat(&format!("{stem}.weight"), &shape, &[self.width, channels.0 * TAPS]);
        let bias = Some(t.take(&format!("{stem}.bias"), &[self.width()]));
        Conv1d { linear: Linear::new(name, weight, bias), taps: TAPS, stride, padding: 1 }
    }
}

impl Architecture for Config {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let places: Extent<'_> = (self.places, "max_source_positions");
        let stem = SignalStem {
            features: self.features,
            frames: 2 * self.places,
            convs: [self.conv(t, "conv1", (self.features, "num_mel_bins"), 1), self.conv(t, "conv2", self.width(), 2)],
            act: Activation::GeluErf,
            positions: t.take("model.encoder.embed_positions.weight", &[places, self.width()]),
        };
        let vocab: Extent<'_> = (self.vocab, "vocab_size");
        let words = t.take("model.decoder.embed_tokens.weight", &[vocab, self.width()]);
        let rows: Extent<'_> = (self.context, "max_target_positions");
        let table = t.take("model.decoder.embed_positions.weight", &[rows, self.width()]);
        let [encoder, decoder] = &self.sides;
        let (encoder, decoder) = (encoder.bind(t, "model.encoder."), decoder.bind(t, "model.decoder."));
        let weight = match self.tied {
            true => words,
            false => t.take("proj_out.weight", &[vocab, self.width()]),
        };
        Box::new(EncoderDecoder {
            source: Source::Signal(stem),
            encoder,
            encoder_bias: None,
            target: TokenEmbedding {
                words,
                scale: self.scale.then(|| (self.width as f64).sqrt() as f32),
                positions: Some(PositionTable { table, count: Counting::From(0) }),
                norm: None,
                positions_after_norm: false,
            },
            decoder,
            decoder_bias: None,
            head_scale: None,
            head: Some(Linear::new("proj_out", weight, None)),
            vocab: self.vocab,
            context: Some(self.context),
            start: self.start.clone(),
        })
    }
    fn ignorable(&self, name: &str) -> bool {
        self.tied && name == "proj_out.weight"
    }
}
