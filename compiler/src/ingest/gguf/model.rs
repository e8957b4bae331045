//! The architectures that GGUF files hold, over the shared blocks: llama, qwen2, qwen3.
//!
//! Files of architecture `llama` hold queries and keys with their rows in another order than Hugging Face files, so
//! that rotary pairs lie side by side; the graph says so, and the weights stay as stored.

use super::metadata::Metadata;
use super::reader::GgufFile;
use super::tensors::READ_TYPES;
use super::tokenizer;
use crate::graph::RopeStyle;
use crate::ingest::activation::Activation;
use crate::ingest::bind::{Binder, Extent, Stored};
use crate::ingest::blocks::{
    Attention, Decoder, Embedding, Feed, Ffn, Head, Layer, Linear, Norm, QkNorm, Qkv, Residual, Rope, Up,
};
use crate::ingest::builder::ModelBuilder;
use crate::ingest::error::{Error, Gap, Result};
use crate::ingest::limits::Limits;
use crate::ingest::rope::{RopeConfig, RopeScaling};
use crate::ingest::{LoadOptions, limit_context};
use crate::model::Model;
use frit_kernels::dtype::Storage;
use frit_plan::{TensorData, TensorSource};
use indexmap::IndexMap;
use std::path::Path;
use std::sync::Arc;

/// What distinguishes the architectures.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    style: RopeStyle,
    qk_norm: bool,
    /// Whether q, k and v have biases: always, or only where the file has them.
    qkv_bias: bool,
}

const KINDS: [Kind; 3] = [
    Kind { name: "llama", style: RopeStyle::Interleaved, qk_norm: false, qkv_bias: false },
    Kind { name: "qwen2", style: RopeStyle::Half, qk_norm: false, qkv_bias: true },
    Kind { name: "qwen3", style: RopeStyle::Half, qk_norm: true, qkv_bias: false },
];

const ARCHITECTURE: &str = "general.architecture";

/// Keys of an architecture that are understood, without its prefix. Any other may change the computation.
const KEYS: [&str; 24] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.causal",
    "attention.sliding_window",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
];

/// The sizes and settings of a file.
#[derive(Clone, Debug)]
struct Config {
    kind: Kind,
    context: u64,
    hidden: u64,
    inner: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    eps: f32,
    rope: RopeConfig,
}

/// Loads a GGUF file.
///
/// # Errors
/// A malformed file, and the list of everything that is not supported.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Model> {
    let file = GgufFile::open(path, &options.limits)?;
    let unsupported = |gaps: Vec<Gap>| Error::Unsupported { path: path.to_owned(), gaps };
    let kind = kind(file.metadata()).map_err(|gap| unsupported(vec![gap]))?;
    let mut keys = Keys {
        metadata: file.metadata(),
        prefix: kind.name,
        limits: &options.limits,
        gaps: Vec::new(),
        sizes_known: true,
    };
    let mut config = config(&mut keys, kind);
    let Keys { mut gaps, sizes_known, .. } = keys;
    if !sizes_known {
        return Err(unsupported(gaps));
    }
    if let Some(divisors) = divisors(&file, &config, &mut gaps)? {
        config.rope.scaling = RopeScaling::Divisors(divisors);
    }

    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = file.metadata().str("general.name").ok().flatten().map_or(stem, str::to_owned);
    let stock: IndexMap<String, Stored> = file
        .tensors()
        .map(|t| {
            let storage = Some(t.storage).filter(|s| !matches!(s, Storage::I32 | Storage::Bool));
            (
                t.name.clone(),
                Stored { storage, kind: t.storage.name().to_uppercase(), shape: t.shape.clone(), stored_as: None },
            )
        })
        .collect();
    let mut m = ModelBuilder::new(&name);
    m.info.architecture = kind.name.into();
    let mut binder = Binder::new(&mut m, &stock, READ_TYPES);
    let mut decoder = bind(&config, &mut binder, &options.limits);
    gaps.extend(binder.finish(|name| name == "rope_freqs.weight"));
    if !gaps.is_empty() {
        return Err(unsupported(gaps));
    }
    limit_context(&mut decoder.context, options, path)?;
    decoder.build(&mut m);
    // A model runs on token ids even where its tokenizer is not understood.
    match tokenizer::convert(file.metadata()) {
        Ok(Some(t)) => (m.info.eos, m.info.tokenizer, m.info.chat) = (t.stops, Some(t.json), t.chat),
        _ => {
            let eos = file.metadata().u64("tokenizer.ggml.eos_token_id").ok().flatten();
            m.info.eos = eos.and_then(|id| u32::try_from(id).ok()).into_iter().collect();
        }
    }
    m.source(Arc::new(file));
    m.finish().map_err(|e| Error::Internal { path: path.to_owned(), problem: e.to_string() })
}

fn kind(metadata: &Metadata) -> Result<Kind, Gap> {
    let known = || KINDS.map(|k| k.name).join(", ");
    let Some(name) = metadata.str(ARCHITECTURE)? else {
        return Err(metadata.gap(ARCHITECTURE, "is missing", "convert the model again"));
    };
    let kind = KINDS.into_iter().find(|k| k.name == name);
    kind.ok_or_else(|| {
        metadata.gap(ARCHITECTURE, format!("is `{name}`, which is not read"), format!("use one of {}", known()))
    })
}

/// Reads the keys of an architecture and collects what is wrong with them.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
    limits: &'a Limits,
    gaps: Vec<Gap>,
    sizes_known: bool,
}

impl Keys<'_> {
    const CONVERT: &'static str = "convert the model again";

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
    fn gap(&mut self, name: &str, problem: impl Into<String>, next: &str) {
        let gap = self.metadata.gap(&self.key(name), problem, next);
        self.gaps.push(gap);
    }
    fn read<T>(&mut self, read: Result<Option<T>, Gap>) -> Option<T> {
        read.unwrap_or_else(|gap| {
            self.gaps.push(gap);
            None
        })
    }
    /// A size from 1 to `most`; `default` when the key is missing.
    fn size(&mut self, name: &str, default: Option<u64>, most: u64) -> u64 {
        let key = self.key(name);
        let size = match self.metadata.u64(&key) {
            Ok(Some(size)) if (1..=most).contains(&size) => Some(size),
            Ok(Some(size)) => {
                self.gap(name, format!("is {size} and not a number from 1 to {most}"), Self::CONVERT);
                None
            }
            Ok(None) if default.is_some() => default,
            Ok(None) => {
                self.gap(name, "is missing", Self::CONVERT);
                None
            }
            Err(gap) => {
                self.gaps.push(gap);
                None
            }
        };
        self.sizes_known &= size.is_some();
        size.unwrap_or(1)
    }
    /// A number that is positive as f32; `default` when the key is missing.
    fn positive(&mut self, name: &str, default: Option<f64>) -> f64 {
        let key = self.key(name);
        let read = self.metadata.f64(&key);
        let faults = self.gaps.len();
        match self.read(read) {
            Some(v) if v as f32 > 0.0 && (v as f32).is_finite() => v,
            Some(v) => {
                self.gap(name, format!("is {v} and not a positive number"), Self::CONVERT);
                1.0
            }
            None if self.gaps.len() > faults => 1.0,
            None => default.unwrap_or_else(|| {
                self.gap(name, "is missing", Self::CONVERT);
                1.0
            }),
        }
    }
    fn u64(&mut self, name: &str) -> Option<u64> {
        let read = self.metadata.u64(&self.key(name));
        self.read(read)
    }
}

fn config(k: &mut Keys<'_>, kind: Kind) -> Config {
    let dim = k.limits.dim;
    let context = k.size("context_length", None, dim);
    let hidden = k.size("embedding_length", None, dim);
    let heads = k.size("attention.head_count", None, dim);
    let kv_heads = k.size("attention.head_count_kv", Some(heads), dim);
    if k.sizes_known && !heads.is_multiple_of(kv_heads) {
        k.gap(
            "attention.head_count_kv",
            format!("is {kv_heads}, which does not divide the {heads} heads"),
            Keys::CONVERT,
        );
    }
    let even = if hidden.is_multiple_of(heads) { Some(hidden / heads) } else { None };
    if k.sizes_known && even.is_none() && k.metadata.get(&k.key("attention.key_length")).is_none() {
        k.gap(
            "attention.head_count",
            format!("is {heads}, which does not divide embedding_length {hidden}"),
            Keys::CONVERT,
        );
        k.sizes_known = false;
    }
    let head_dim = k.size("attention.key_length", Some(even.unwrap_or(1)), dim);
    let value_dim = k.size("attention.value_length", Some(even.unwrap_or(1)), dim);
    if k.sizes_known && value_dim != head_dim {
        k.gap(
            "attention.value_length",
            format!("is {value_dim}, but key_length is {head_dim}; they must be equal"),
            Keys::CONVERT,
        );
    }
    let rotary = k.size("rope.dimension_count", Some(head_dim), dim);
    if k.sizes_known && (!rotary.is_multiple_of(2) || rotary > head_dim) {
        k.gap("rope.dimension_count", format!("is {rotary}; it must be even and at most {head_dim}"), Keys::CONVERT);
    }
    refusals(k, context);
    Config {
        kind,
        context,
        hidden,
        inner: k.size("feed_forward_length", None, dim),
        layers: k.size("block_count", None, k.limits.layers),
        heads,
        kv_heads,
        head_dim,
        eps: k.positive("attention.layer_norm_rms_epsilon", None) as f32,
        rope: rope(k, rotary, context),
    }
}

/// Keys whose values change the computation in ways that are not supported, and keys that are not known.
fn refusals(k: &mut Keys<'_>, context: u64) {
    if k.u64("expert_count").is_some_and(|n| n > 0) {
        k.gap("expert_count", "is not 0, and mixtures of experts are not supported", "use a dense model");
    }
    let read = k.metadata.bool(&k.key("attention.causal"));
    if k.read(read) == Some(false) {
        k.gap("attention.causal", "is false, and encoders of this architecture are not supported", "use a decoder");
    }
    if k.u64("attention.sliding_window").is_some_and(|w| w != 0 && w < context) {
        k.gap(
            "attention.sliding_window",
            "is set, and it is not known which layers it is for",
            "use the Hugging Face directory",
        );
    }
    let unknown: Vec<String> = k
        .metadata
        .iter()
        .filter_map(|(key, _)| key.strip_prefix(k.prefix)?.strip_prefix('.'))
        .filter(|key| !KEYS.contains(key) && !key.starts_with("rope.scaling.yarn_"))
        .map(str::to_owned)
        .collect();
    for key in unknown {
        k.gap(&key, "is not known and may change the computation", "use the Hugging Face directory of the model");
    }
}

fn rope(k: &mut Keys<'_>, dim: u64, context: u64) -> RopeConfig {
    let theta = k.positive("rope.freq_base", Some(10_000.0));
    if theta <= 1.0 {
        k.gap("rope.freq_base", format!("is {theta}; it must be above 1"), Keys::CONVERT);
    }
    let read = k.metadata.str(&k.key("rope.scaling.type"));
    let faults = k.gaps.len();
    let kind = k.read(read).map(str::to_owned);
    let linear = k.positive("rope.scale_linear", Some(1.0));
    let factor = k.positive("rope.scaling.factor", Some(linear));
    let original_context = k.size("rope.scaling.original_context_length", Some(context), k.limits.dim);
    let attn_factor = k.positive("rope.scaling.attn_factor", Some(1.0));
    let yarn_keys: Vec<String> =
        k.metadata.iter().map(|(key, _)| key.to_owned()).filter(|key| key.contains(".rope.scaling.yarn_")).collect();
    let scaling = match kind.as_deref() {
        None if k.gaps.len() > faults => RopeScaling::Default,
        None | Some("none") if factor == 1.0 => RopeScaling::Default,
        Some("none") => RopeScaling::Default,
        None | Some("linear") => RopeScaling::Linear { factor },
        Some("yarn") => {
            let (mut fast, mut slow) = (32.0, 1.0);
            for key in yarn_keys {
                match key.rsplit('.').next() {
                    Some("yarn_beta_fast") => fast = k.positive("rope.scaling.yarn_beta_fast", None),
                    Some("yarn_beta_slow") => slow = k.positive("rope.scaling.yarn_beta_slow", None),
                    _ => k.gaps.push(k.metadata.gap(
                        &key,
                        "is not known and may change the computation",
                        "use the Hugging Face directory",
                    )),
                }
            }
            let magnitude = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            RopeScaling::Yarn {
                factor,
                attention_factor: Some(attn_factor * magnitude),
                beta_fast: fast,
                beta_slow: slow,
                mscale: None,
                mscale_all_dim: None,
                original_context,
                truncate: true,
            }
        }
        Some(other) => {
            k.gap("rope.scaling.type", format!("is `{other}`, which is not known"), "use none, linear or yarn");
            RopeScaling::Default
        }
    };
    RopeConfig { theta, dim, context, scaling }
}

/// The divisors of rotary frequencies that files with Llama 3's scaling hold as a tensor.
fn divisors(file: &GgufFile, config: &Config, gaps: &mut Vec<Gap>) -> Result<Option<Vec<f32>>> {
    const NAME: &str = "rope_freqs.weight";
    let Some(info) = file.get(NAME) else { return Ok(None) };
    let pairs = config.rope.dim / 2;
    if info.shape != [pairs] || info.storage != Storage::F32 {
        let problem = format!(
            "is {} of {:?}; {pairs} of F32 are expected, half of rope.dimension_count",
            info.storage, info.shape
        );
        gaps.push(Gap::tensor(NAME, problem, "convert the model again"));
        return Ok(None);
    }
    let values = file.bytes(NAME)?.and_then(|bytes| super::quant::dequantize(Storage::F32, &bytes)).unwrap_or_default();
    if config.rope.scaling != RopeScaling::Default || values.iter().any(|v| !(*v > 0.0 && v.is_finite())) {
        gaps.push(Gap::tensor(
            NAME,
            "is not positive throughout, or comes with another rope scaling",
            "convert the model again",
        ));
        return Ok(None);
    }
    Ok(Some(values))
}

fn bind(config: &Config, t: &mut Binder<'_>, limits: &Limits) -> Decoder {
    let hidden: Extent<'_> = (config.hidden, "embedding_length");
    let rows = t.shape("token_embd.weight").and_then(|s| s.first().copied());
    let vocab: Extent<'_> = (rows.unwrap_or(1).min(limits.vocabulary), "rows of token_embd.weight");
    let embedding = t.take("token_embd.weight", &[vocab, hidden]);
    let layers = t.layers(config.layers, "block_count", |i| format!("blk.{i}."));
    let layers = layers.into_iter().map(|i| layer(config, t, i)).collect();
    let norm = norm(config, t, "norm", "output_norm.weight", hidden);
    let head = t.take_if_there("output.weight", &[vocab, hidden]).unwrap_or(embedding);
    Decoder {
        vocab: vocab.0,
        context: config.context,
        embedding: Embedding::plain(embedding),
        ropes: vec![Rope { frequencies: config.rope.frequencies(), style: config.kind.style }],
        alibi: None,
        layers_name: "layers",
        layers,
        norm: Some(norm),
        head: Head::plain(Linear { name: "lm_head", weight: head, bias: None }),
    }
}

fn norm(config: &Config, t: &mut Binder<'_>, name: &'static str, tensor: &str, size: Extent<'_>) -> Norm {
    Norm::rms(name, config.eps, t.take(tensor, &[size]))
}

fn layer(config: &Config, t: &mut Binder<'_>, i: u64) -> Layer {
    let at = |part: &str| format!("blk.{i}.{part}.weight");
    let hidden = (config.hidden, "embedding_length");
    let inner = (config.inner, "feed_forward_length");
    let queries = (config.heads * config.head_dim, "attention.head_count × key_length");
    let keys = (config.kv_heads * config.head_dim, "attention.head_count_kv × key_length");
    let mut linear = |name: &'static str, part: &str, out: Extent<'_>, from: Extent<'_>, bias: bool| {
        let weight = t.take(&at(part), &[out, from]);
        let bias_name = format!("blk.{i}.{part}.bias");
        let bias = if bias { Some(t.take(&bias_name, &[out])) } else { t.take_if_there(&bias_name, &[out]) };
        Linear { name, weight, bias }
    };
    let qkv = [("q_proj", "attn_q", queries), ("k_proj", "attn_k", keys), ("v_proj", "attn_v", keys)]
        .map(|(name, part, out)| linear(name, part, out, hidden, config.kind.qkv_bias));
    let output = linear("o_proj", "attn_output", hidden, queries, false);
    let gate = linear("gate_proj", "ffn_gate", inner, hidden, false);
    let up = linear("up_proj", "ffn_up", inner, hidden, false);
    let down = linear("down_proj", "ffn_down", hidden, inner, false);
    let per_head = (config.head_dim, "attention.key_length");
    let qk_norm = config.kind.qk_norm.then(|| {
        QkNorm::Heads(
            [("q_norm", "attn_q_norm"), ("k_norm", "attn_k_norm")]
                .map(|(name, part)| norm(config, t, name, &at(part), per_head)),
        )
    });
    Layer {
        attention_norm: Some(norm(config, t, "input_layernorm", &at("attn_norm"), hidden)),
        attention: Attention {
            name: "self_attn",
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            value_dim: config.head_dim,
            scale: (config.head_dim as f64).powf(-0.5) as f32,
            window: None,
            softcap: None,
            qkv: Qkv::Separate(qkv),
            clip: None,
            qk_norm,
            rope: Some(0),
            sinks: None,
            output,
        },
        attended_norm: None,
        ffn_norm: Some(norm(config, t, "post_attention_layernorm", &at("ffn_norm"), hidden)),
        ffn: Feed::Dense(Ffn { name: "mlp", up: Up::Gated { gate, up }, act: Activation::Silu, down }),
        fed_norm: None,
        residual: Residual::Sequential,
        residual_scale: None,
    }
}

impl TensorSource for GgufFile {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        let missing = || format!("there is no tensor `{tensor}`");
        let info = self.get(tensor).ok_or_else(missing)?;
        let bytes = self.bytes(tensor)?.ok_or_else(missing)?;
        let bytes = match info.packed {
            None => bytes,
            Some(packed) => {
                let values = packed.expand(&bytes).ok_or_else(|| format!("tensor `{tensor}` ends within a block"))?;
                values.into_iter().flat_map(f32::to_le_bytes).collect()
            }
        };
        Ok(TensorData { storage: info.storage, shape: info.shape.clone(), bytes })
    }
}
