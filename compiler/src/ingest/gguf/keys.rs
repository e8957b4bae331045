//! The keys of an architecture, read one by one: what is wrong with them is collected.

use super::metadata::Metadata;
use super::reader::GgufFile;
use crate::ingest::error::Gap;
use crate::ingest::limits::Limits;
use crate::ingest::recipe::{Recipe, Sizes};
use crate::ingest::rope::{MOST_ROTATED, RopeConfig, RopeScaling};
use frit_kernels::dtype::Storage;

/// Keys of an architecture that are understood, without its prefix. Any other may change the computation.
const KEYS: &[&str] = &[
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

/// Reads the keys of an architecture and collects what is wrong with them.
pub(super) struct Keys<'a> {
    pub metadata: &'a Metadata,
    pub prefix: &'static str,
    pub limits: &'a Limits,
    pub gaps: Vec<Gap>,
    pub sizes_known: bool,
}

impl Keys<'_> {
    const CONVERT: &'static str = "convert the model again";

    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
    pub fn gap(&mut self, name: &str, problem: impl Into<String>, next: &str) {
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
    pub fn size(&mut self, name: &str, default: Option<u64>, most: u64) -> u64 {
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
    pub fn positive(&mut self, name: &str, default: Option<f64>) -> f64 {
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
    pub fn u64(&mut self, name: &str) -> Option<u64> {
        let read = self.metadata.u64(&self.key(name));
        self.read(read)
    }
    /// A number that is positive as f32, or nothing.
    pub fn positive_or_none(&mut self, name: &str) -> Option<f64> {
        let there = self.metadata.get(&self.key(name)).is_some();
        there.then(|| self.positive(name, None))
    }
    /// A truth value.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        let read = self.metadata.bool(&self.key(name));
        self.read(read).unwrap_or(default)
    }

    /// The sizes of a decoder; the vocabulary is that of the embedding.
    pub fn sizes(&mut self, file: &GgufFile) -> Sizes {
        let dim = self.limits.dim;
        let context = self.size("context_length", None, dim);
        let hidden = self.size("embedding_length", None, dim);
        let heads = self.size("attention.head_count", None, dim);
        let kv_heads = self.size("attention.head_count_kv", Some(heads), dim);
        if self.sizes_known && !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide the {heads} heads");
            self.gap("attention.head_count_kv", problem, Self::CONVERT);
        }
        let even = if hidden.is_multiple_of(heads) { Some(hidden / heads) } else { None };
        if self.sizes_known && even.is_none() && self.metadata.get(&self.key("attention.key_length")).is_none() {
            let problem = format!("is {heads}, which does not divide embedding_length {hidden}");
            self.gap("attention.head_count", problem, Self::CONVERT);
            self.sizes_known = false;
        }
        let head_dim = self.size("attention.key_length", Some(even.unwrap_or(1)), dim);
        let value_dim = self.size("attention.value_length", Some(even.unwrap_or(1)), dim);
        if self.sizes_known && value_dim != head_dim {
            let problem = format!("is {value_dim}, but key_length is {head_dim}; they must be equal");
            self.gap("attention.value_length", problem, Self::CONVERT);
        }
        self.sizes_of(file, [context, hidden, heads, kv_heads, head_dim])
    }

    /// The sizes of a decoder whose heads are known.
    pub fn sizes_of(&mut self, file: &GgufFile, [context, hidden, heads, kv_heads, head_dim]: [u64; 5]) -> Sizes {
        let rows = file.get("token_embd.weight").and_then(|t| t.shape.first().copied());
        Sizes {
            vocab: rows.unwrap_or(1).min(self.limits.vocabulary),
            hidden,
            inner: self.size("feed_forward_length", None, self.limits.dim),
            layers: self.size("block_count", None, self.limits.layers),
            heads,
            kv_heads,
            head_dim,
            context,
        }
    }

    /// The window of each layer: that of the file, in layers that slide.
    pub fn windows(
        &mut self,
        recipe: &Recipe,
        default: Option<u64>,
        slides: impl Fn(usize) -> bool,
    ) -> Vec<Option<u64>> {
        let window = self.size("attention.sliding_window", default, self.limits.dim);
        (0..recipe.layers.len()).map(|i| slides(i).then_some(window)).collect()
    }

    /// Notes a gap where a window is set that some layers might have.
    pub fn no_window(&mut self, recipe: &Recipe) {
        if self.u64("attention.sliding_window").is_some_and(|w| w != 0 && w < recipe.sizes.context) {
            let problem = "is set, and it is not known which layers it is for";
            self.gap("attention.sliding_window", problem, "use the Hugging Face directory");
        }
    }

    /// Notes gaps at keys that are not known, or whose values change the computation in ways that are not supported.
    pub fn refuse_others(&mut self, own: &[&str]) {
        let read = self.metadata.bool(&self.key("attention.causal"));
        if self.read(read) == Some(false) {
            let problem = "is false, and encoders of this architecture are not supported";
            self.gap("attention.causal", problem, "use a decoder");
        }
        let unknown: Vec<String> = self
            .metadata
            .iter()
            .filter_map(|(key, _)| key.strip_prefix(self.prefix)?.strip_prefix('.'))
            .filter(|key| !KEYS.contains(key) && !own.contains(key) && !key.starts_with("rope.scaling.yarn_"))
            .map(str::to_owned)
            .collect();
        for key in unknown {
            self.gap(
                &key,
                "is not known and may change the computation",
                "use the Hugging Face directory of the model",
            );
        }
    }

    /// Rotary positions.
    pub fn rope(&mut self, sizes: Sizes, file: &GgufFile) -> RopeConfig {
        let (head_dim, context) = (sizes.head_dim, sizes.context);
        let dim = self.size("rope.dimension_count", Some(head_dim), self.limits.dim);
        if self.sizes_known && (!dim.is_multiple_of(2) || dim > head_dim) {
            let problem = format!("is {dim}; it must be even and at most {head_dim}");
            self.gap("rope.dimension_count", problem, Self::CONVERT);
        }
        if dim > MOST_ROTATED {
            self.gap("rope.dimension_count", format!("is {dim}; the most is {MOST_ROTATED}"), Self::CONVERT);
        }
        let k = self;
        let theta = k.positive("rope.freq_base", Some(10_000.0));
        if theta <= 1.0 {
            k.gap("rope.freq_base", format!("is {theta}; it must be above 1"), Self::CONVERT);
        }
        let read = k.metadata.str(&k.key("rope.scaling.type"));
        let faults = k.gaps.len();
        let kind = k.read(read).map(str::to_owned);
        let linear = k.positive("rope.scale_linear", Some(1.0));
        let factor = k.positive("rope.scaling.factor", Some(linear));
        let original_context = k.size("rope.scaling.original_context_length", Some(context), k.limits.dim);
        let attn_factor = k.positive("rope.scaling.attn_factor", Some(1.0));
        let yarn_keys: Vec<String> = k
            .metadata
            .iter()
            .map(|(key, _)| key.to_owned())
            .filter(|key| key.contains(".rope.scaling.yarn_"))
            .filter(|key| k.prefix != "deepseek2" || !key.ends_with(".yarn_log_multiplier"))
            .collect();
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
            Some("longrope") => {
                let [short, long] =
                    ["short", "long"].map(|which| k.factors(file, &format!("rope_factors_{which}.weight"), dim));
                if short.is_none() || long.is_none() {
                    k.gap(
                        "rope.scaling.type",
                        "is `longrope`, but the tensors rope_factors_* are missing",
                        Self::CONVERT,
                    );
                }
                RopeScaling::LongRope {
                    short: short.unwrap_or_default(),
                    long: long.unwrap_or_default(),
                    factor: None,
                    attention_factor: Some(attn_factor),
                    original_context: Some(original_context),
                }
            }
            Some(other) => {
                k.gap(
                    "rope.scaling.type",
                    format!("is `{other}`, which is not known"),
                    "use none, linear, yarn or longrope",
                );
                RopeScaling::Default
            }
        };
        let scaling = match k.factors(file, "rope_freqs.weight", dim) {
            Some(divisors) if scaling == RopeScaling::Default => RopeScaling::Divisors(divisors),
            Some(_) => {
                let next = "convert the model again";
                k.gaps.push(Gap::tensor("rope_freqs.weight", "comes with another rope scaling", next));
                scaling
            }
            None => scaling,
        };
        RopeConfig { theta, dim, context, scaling }
    }

    /// A tensor with a positive number for each rotary pair.
    fn factors(&mut self, file: &GgufFile, name: &str, dim: u64) -> Option<Vec<f32>> {
        let info = file.get(name)?;
        let pairs = dim / 2;
        if info.shape != [pairs] || info.storage != Storage::F32 {
            let problem = format!(
                "is {} of {:?}; {pairs} of F32 are expected, half of rope.dimension_count",
                info.storage, info.shape
            );
            self.gaps.push(Gap::tensor(name, problem, Self::CONVERT));
            return None;
        }
        let bytes = file.bytes(name).ok().flatten()?;
        let values = super::quant::dequantize(Storage::F32, &bytes)?;
        if values.iter().any(|v| !(*v > 0.0 && v.is_finite())) {
            self.gaps.push(Gap::tensor(name, "is not positive throughout", Self::CONVERT));
            return None;
        }
        Some(values)
    }
}
