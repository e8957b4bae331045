//! T5 and mT5, and UMT5, whose layers have relative positions of their own.

use super::super::encoders::assemble::linear;
use super::layers::start;
use crate::ingest::activation::Activation;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    Buckets, EncoderDecoder, Ffn, Linear, MultiHead, Norm, Part, Place, Projections, RelativeBias, Source, Stack,
    StackLayer, TokenEmbedding, TokenEncoder, Up,
};
use crate::ingest::error::Gap;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};
use crate::transform::extension::Extension;

/// Members of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    T5,
    Umt5,
}

/// The configuration.
#[derive(Clone, Debug)]
struct Config {
    family: Family,
    vocab: u64,
    width: u64,
    head_dim: u64,
    heads: u64,
    inner: u64,
    encoder_layers: u64,
    decoder_layers: u64,
    buckets: u64,
    max_distance: u64,
    eps: f32,
    act: Activation,
    gated: bool,
    tied: bool,
    start: Vec<u32>,
    /// Layers of the encoder, of the decoder, without feed-forward part.
    dropped: [Vec<u32>; 2],
}

pub(super) fn read(f: &mut Fields<'_>, family: Family) -> Box<dyn Architecture> {
    Box::new(config(f, family))
}

/// The encoder by itself.
pub(super) fn encoder(f: &mut Fields<'_>, family: Family) -> Box<dyn Architecture> {
    Box::new(EncoderConfig(config(f, family)))
}

/// The configuration of an encoder by itself.
#[derive(Clone, Debug)]
struct EncoderConfig(Config);

fn config(f: &mut Fields<'_>, family: Family) -> Config {
    let limits = f.limits();
    let vocab = f.size_to("vocab_size", None, limits.vocabulary);
    let encoder_layers = f.size_to("num_layers", Some(6), limits.layers);
    let default = if family == Family::Umt5 { "gated-gelu" } else { "relu" };
    let kind = f.text("feed_forward_proj").unwrap_or(default);
    let (gated, name) = match kind.split_once('-') {
        Some(("gated", "gelu")) => (true, "gelu_new"),
        Some(("gated", name)) => (true, name),
        _ => (false, kind),
    };
    let act = Activation::of_hf(name).unwrap_or_else(|| {
        f.gap("feed_forward_proj", format!("is `{kind}`, which is not known"), "use relu or gated-gelu");
        Activation::Identity
    });
    let config = Config {
        family,
        vocab,
        width: f.size("d_model", Some(512)),
        head_dim: f.size("d_kv", Some(64)),
        heads: f.size("num_heads", Some(8)),
        inner: f.size("d_ff", Some(2048)),
        encoder_layers,
        decoder_layers: f.size_to("num_decoder_layers", Some(encoder_layers), limits.layers),
        buckets: f.size("relative_attention_num_buckets", Some(32)),
        max_distance: f.size_to("relative_attention_max_distance", Some(128), 1 << 20),
        eps: f.positive("layer_norm_epsilon", Some(1e-6)) as f32,
        act,
        gated,
        tied: f.flag("tie_word_embeddings", true),
        start: start(f, Some(0), vocab),
        dropped: Default::default(),
    };
    if !config.bias(None, true).buckets.is_sound() {
        let problem = format!("is {}, too near for {} classes", config.max_distance, config.buckets);
        f.gap("relative_attention_max_distance", problem, "correct one of them");
    }
    config
}

impl Config {
    fn bias(&self, table: Option<crate::graph::WeightId>, both_sides: bool) -> RelativeBias {
        RelativeBias { table, buckets: Buckets { count: self.buckets, max_distance: self.max_distance, both_sides } }
    }
    fn width(&self) -> Extent<'static> {
        (self.width, "d_model")
    }
    fn norm(&self, t: &mut Binder<'_>, name: &'static str, stem: &str) -> Norm {
        Norm::rms(name, self.eps, t.take(&format!("{stem}.weight"), &[self.width()]))
    }
    fn attention(&self, t: &mut Binder<'_>, name: &'static str, stem: &str) -> Part<MultiHead> {
        let inner: Extent<'_> = (self.heads * self.head_dim, "num_heads · d_kv");
        let mut part =
            |part: &'static str| linear(t, part, &format!("{stem}.{name}.{part}"), inner, self.width(), false);
        let qkv = Projections::Separate([part("q"), part("k"), part("v")]);
        let output = linear(t, "o", &format!("{stem}.{name}.o"), self.width(), inner, false);
        let (heads, head_dim) = (self.heads, self.head_dim);
        let run = MultiHead { name, heads, head_dim, scale: 1.0, qkv, rope: None, output };
        Part::new(run, self.norm(t, "layer_norm", &format!("{stem}.layer_norm")))
    }
    fn ffn(&self, t: &mut Binder<'_>, stem: &str) -> Part<Ffn> {
        let inner: Extent<'_> = (self.inner, "d_ff");
        let mut up =
            |name: &'static str| linear(t, name, &format!("{stem}.DenseReluDense.{name}"), inner, self.width(), false);
        let up = match self.gated {
            true => Up::Gated { gate: up("wi_0"), up: up("wi_1") },
            false => Up::Plain(up("wi")),
        };
        let down = linear(t, "wo", &format!("{stem}.DenseReluDense.wo"), self.width(), inner, false);
        let run = Ffn { name: "DenseReluDense", up, act: self.act, down, inner: None, active: None };
        Part::new(run, self.norm(t, "layer_norm", &format!("{stem}.layer_norm")))
    }
    /// A side's layers, and the relative positions that they share.
    fn side(&self, t: &mut Binder<'_>, side: &'static str, count: u64) -> (Stack, RelativeBias) {
        let is_decoder = side == "decoder";
        let field = if is_decoder { "num_decoder_layers" } else { "num_layers" };
        let [encoder, decoder] = &self.dropped;
        let dropped = if is_decoder { decoder } else { encoder };
        let table = |t: &mut Binder<'_>, i: u64| {
            let name = format!("{side}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight");
            t.take(&name, &[(self.buckets, "relative_attention_num_buckets"), (self.heads, "num_heads")])
        };
        let own = self.family == Family::Umt5;
        let bound = t.layers(count, field, |i| format!("{side}.block.{i}."));
        let mut layers = Vec::with_capacity(bound.len());
        for i in bound {
            let stem = format!("{side}.block.{i}.layer");
            let attention = self.attention(t, "SelfAttention", &format!("{stem}.0"));
            let cross = is_decoder.then(|| self.attention(t, "EncDecAttention", &format!("{stem}.1")));
            let feeds = !dropped.iter().any(|l| u64::from(*l) == i);
            let ffn = feeds.then(|| self.ffn(t, &format!("{stem}.{}", if is_decoder { 2 } else { 1 })));
            let bias = own.then(|| table(t, i));
            layers.push(StackLayer { cross, bias, ffn, ..StackLayer::plain(attention) });
        }
        let norm = Some(self.norm(t, "final_layer_norm", &format!("{side}.final_layer_norm")));
        let shared = (!own).then(|| table(t, 0));
        (Stack { name: "block", place: Place::Before, layers, nearby: None, norm }, self.bias(shared, !is_decoder))
    }
}

impl Architecture for EncoderConfig {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let EncoderConfig(config) = self;
        let vocab: Extent<'_> = (config.vocab, "vocab_size");
        // Files hold the table under either name, or under both.
        let name = if t.has("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
        let words = t.take(name, &[vocab, config.width()]);
        let (encoder, bias) = config.side(t, "encoder", config.encoder_layers);
        let embedding = TokenEmbedding { words, scale: None, positions: None, norm: None, positions_after_norm: false };
        Box::new(TokenEncoder { embedding, vocab: config.vocab, encoder, bias })
    }
    fn ignorable(&self, name: &str) -> bool {
        name == "encoder.embed_tokens.weight" || name.starts_with("decoder.") || name == "lm_head.weight"
    }
}

impl Architecture for Config {
    fn extend(&mut self, extension: Extension) -> Vec<Gap> {
        let Extension { drop_ffn, drop_encoder_ffn, .. } = extension.clone();
        self.dropped = [drop_encoder_ffn.clone(), drop_ffn.clone()];
        let mut gaps = Vec::new();
        if extension != (Extension { drop_ffn, drop_encoder_ffn, ..Extension::default() }) {
            let problem =
                "holds more than `drop_ffn` and `drop_encoder_ffn`, which alone are served for this architecture";
            gaps.push(Gap::field("config.json", "frit", problem, "remove the rest"));
        }
        let sides = [("drop_encoder_ffn", self.encoder_layers), ("drop_ffn", self.decoder_layers)];
        for ((field, layers), dropped) in sides.into_iter().zip(&self.dropped) {
            if let Some(l) = dropped.iter().find(|l| u64::from(**l) >= layers) {
                let problem = format!("names layer {l}, and there are {layers}");
                gaps.push(Gap::field("config.json", &format!("frit.{field}"), problem, "correct it"));
            }
        }
        gaps
    }
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let words = t.take("shared.weight", &[(self.vocab, "vocab_size"), self.width()]);
        let (encoder, encoder_bias) = self.side(t, "encoder", self.encoder_layers);
        let (decoder, decoder_bias) = self.side(t, "decoder", self.decoder_layers);
        let head = match self.tied {
            true => Linear::new("lm_head", words, None),
            false => linear(t, "lm_head", "lm_head", (self.vocab, "vocab_size"), self.width(), false),
        };
        let embedding = TokenEmbedding { words, scale: None, positions: None, norm: None, positions_after_norm: false };
        Box::new(EncoderDecoder {
            source: Source::Tokens { embedding: embedding.clone(), vocab: self.vocab, most: None },
            encoder,
            encoder_bias: Some(encoder_bias),
            target: embedding,
            decoder,
            decoder_bias: Some(decoder_bias),
            head_scale: self.tied.then(|| (self.width as f64).powf(-0.5) as f32),
            head: Some(head),
            vocab: self.vocab,
            context: None,
            start: self.start.clone(),
        })
    }
    fn ignorable(&self, name: &str) -> bool {
        let embedding = name == "encoder.embed_tokens.weight" || name == "decoder.embed_tokens.weight";
        let cross = name.starts_with("decoder.") && name.contains("EncDecAttention.relative_attention_bias");
        embedding || cross || (self.tied && name == "lm_head.weight")
    }
}
