//! The decoders that GGUF files hold, as recipes: the same switches as for Hugging Face files, with the format's names.
//!
//! What a converter did to the weights is the format's side of a family: rows of queries and keys in another order, so
//! that rotary pairs lie side by side; gains with 1 added; packed projections sorted into queries, keys and values.

use super::keys::Keys;
use super::mixtures::{self, mixed, mixture};
use super::reader::GgufFile;
use crate::graph::RopeStyle;
use crate::ingest::activation::Activation;
use crate::ingest::blocks::{Alibi, Packing, Residual};
use crate::ingest::error::Gap;
use crate::ingest::recipe::{
    Biases, COMMON_NAMES, EmbeddingForm, FfnForm, HeadForm, Names, NormForm, PositionForm, QkPlace, QkvForm, Recipe,
    SizeFields, Sizes, alibi,
};
use crate::ingest::rope::{RopeConfig, RopeScaling};

/// An architecture of the format.
pub(super) struct Family {
    /// Its name, as `general.architecture` holds it.
    pub name: &'static str,
    /// Keys that it has beside those of every architecture, without its prefix.
    pub keys: &'static [&'static str],
    /// Reads its keys; what is wrong is left in them.
    pub read: fn(&mut Keys<'_>, &GgufFile) -> Recipe,
}

const fn family(
    name: &'static str,
    keys: &'static [&'static str],
    read: fn(&mut Keys<'_>, &GgufFile) -> Recipe,
) -> Family {
    Family { name, keys, read }
}

const CAPS: &[&str] = &["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window_pattern"];
const FACTORS: &[&str] = &["embedding_scale", "residual_scale", "logit_scale", "attention.scale"];
/// Every architecture that is read.
pub(super) const FAMILIES: &[Family] = &[
    family("llama", &[], llama),
    family("qwen2", &[], qwen2),
    family("qwen3", &[], qwen3),
    family("arcee", &[], arcee),
    family("bloom", &[], bloom),
    family("cohere2", &["logit_scale"], cohere2),
    family("command-r", &["logit_scale"], command_r),
    family("deepseek2", mixtures::DEEPSEEK, mixtures::deepseek2),
    family("ernie4_5", &[], ernie),
    family("exaone4", &[], exaone4),
    family("falcon", &[], falcon),
    family("gemma", &[], gemma),
    family("gemma2", CAPS, gemma2),
    family("gemma3", CAPS, gemma3),
    family("glm4", &[], glm4),
    family("gpt2", &[], gpt2),
    family("gptneox", &["use_parallel_residual"], gptneox),
    family("gpt-oss", mixtures::EXPERTS, mixtures::gpt_oss),
    family("granite", FACTORS, granite),
    family("granitemoe", FACTORS, granite),
    family("hunyuan-dense", &[], hunyuan),
    family("mpt", &["attention.max_alibi_bias", "attention.clamp_kqv"], mpt),
    family("nemotron", &[], nemotron),
    family("olmo", &["attention.clamp_kqv"], olmo),
    family("olmo2", &[], olmo2),
    family("olmoe", mixtures::EXPERTS, mixtures::olmoe),
    family("phi2", &[], phi2),
    family("phi3", &[], phi3),
    family("qwen2moe", mixtures::EXPERTS, mixtures::qwen2moe),
    family("qwen3moe", mixtures::EXPERTS, mixtures::qwen3moe),
    family("seed_oss", &[], seed_oss),
    family("smollm3", &[], smollm3),
    family("stablelm", &["use_parallel_residual"], stablelm),
    family("starcoder", &[], starcoder),
    family("starcoder2", &[], starcoder2),
];

/// The format's names.
pub(super) const NAMES: Names = Names {
    fields: SizeFields {
        hidden: "embedding_length",
        inner: "feed_forward_length",
        layers: "block_count",
        heads: "attention.head_count",
        kv_heads: "attention.head_count_kv",
        context: "context_length",
    },
    prefixes: &[""],
    embedding: "token_embd",
    embedding_norm: "token_embd_norm",
    positions: "position_embd",
    layers: "blk",
    attention: "",
    qkv: ["attn_q", "attn_k", "attn_v"],
    packed_qkv: "attn_qkv",
    qk_norm: ["attn_q_norm", "attn_k_norm"],
    sinks: "attn_sinks.weight",
    output: "attn_output",
    ffn: "",
    gate: "ffn_gate",
    up: "ffn_up",
    packed_up: "ffn_up",
    down: "ffn_down",
    attention_norm: Some("attn_norm"),
    ffn_norm: Some("ffn_norm"),
    norm: "output_norm",
    head: "output",
    ..COMMON_NAMES
};

/// Norms on what a part gives, and none before it.
const NORMED_BEHIND: Names = Names {
    attention_norm: None,
    attended_norm: Some("post_attention_norm"),
    ffn_norm: None,
    fed_norm: Some("post_ffw_norm"),
    ..NAMES
};

/// Norms on both sides of each part.
const NORMED_AROUND: Names =
    Names { attended_norm: Some("post_attention_norm"), fed_norm: Some("post_ffw_norm"), ..NAMES };

fn base(k: &mut Keys<'_>, file: &GgufFile, norm: NormForm, act: Activation, rotary: bool) -> Recipe {
    let sizes = k.sizes(file);
    let rope = rotary.then(|| k.rope(sizes, file));
    let has = |part: &str| file.get(&format!("blk.0.{part}.bias")).is_some();
    let biases = Biases {
        qkv: has("attn_q") || has("attn_qkv"),
        output: has("attn_output"),
        ffn: has("ffn_up") && has("ffn_down"),
        head: file.get("output.bias").is_some(),
    };
    let depth = if sizes.layers <= k.limits.layers { sizes.layers as usize } else { 0 };
    Recipe {
        names: NAMES,
        biases,
        head: HeadForm { tied: file.get("output.weight").is_none(), ..HeadForm::default() },
        ignorable: &["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"],
        ..Recipe::new(sizes, depth, norm, act, rope)
    }
}

pub(super) fn rms(k: &mut Keys<'_>) -> NormForm {
    NormForm::rms(k.positive("attention.layer_norm_rms_epsilon", None))
}

fn layer_norm(k: &mut Keys<'_>) -> NormForm {
    NormForm::layer(k.positive("attention.layer_norm_epsilon", None))
}

/// RMS norms, a gated feed-forward with SiLU.
pub(super) fn plain(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let norm = rms(k);
    base(k, file, norm, Activation::Silu, true)
}

/// Layer norms, a plain feed-forward.
fn old(k: &mut Keys<'_>, file: &GgufFile, act: Activation, rotary: bool) -> Recipe {
    let norm = layer_norm(k);
    Recipe { ffn: FfnForm::Plain, ..base(k, file, norm, act, rotary) }
}

pub(super) fn interleaved(recipe: Recipe) -> Recipe {
    Recipe { style: RopeStyle::Interleaved, ..recipe }
}

fn llama(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = interleaved(plain(k, file));
    k.no_window(&recipe);
    let mixture = mixture(k, "feed_forward_length", true);
    mixed(recipe, mixture)
}

fn qwen2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    k.no_window(&recipe);
    Recipe { biases: Biases { qkv: true, ..recipe.biases }, ..recipe }
}

pub(super) fn qwen3(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    k.no_window(&recipe);
    Recipe { qk_norm: Some((QkPlace::Heads, recipe.norm)), ..recipe }
}

fn arcee(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = interleaved(plain(k, file));
    Recipe { ffn: FfnForm::Plain, act: Activation::Relu2, ..recipe }
}

fn ernie(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    interleaved(plain(k, file))
}

fn hunyuan(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    Recipe { qk_norm: Some((QkPlace::RotatedHeads, recipe.norm)), ..recipe }
}

fn seed_oss(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    Recipe { names: Names { ffn_norm: Some("post_attention_norm"), ..NAMES }, ..recipe }
}

/// Every fourth layer rotates no heads.
fn smollm3(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let mut recipe = interleaved(plain(k, file));
    for (_, layer) in recipe.layers.iter_mut().enumerate().filter(|(i, _)| (i + 1).is_multiple_of(4)) {
        layer.rope = None;
    }
    recipe
}

fn granite(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = interleaved(plain(k, file));
    let mut factor = |name: &str, default: f64| k.positive(name, Some(default));
    let (embedding, residual, logits) =
        (factor("embedding_scale", 1.0), factor("residual_scale", 1.0), factor("logit_scale", 1.0));
    let scores = factor("attention.scale", f64::from(recipe.sizes.scale()));
    let mixture = mixture(k, "feed_forward_length", true);
    let recipe = Recipe {
        embedding: EmbeddingForm { scale: Some(embedding as f32), ..recipe.embedding },
        residual_scale: Some(residual as f32),
        head: HeadForm { scale: Some((1.0 / logits) as f32), ..recipe.head },
        ..recipe.scale(scores)
    };
    mixed(recipe, mixture)
}

fn gemma(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let norm = rms(k);
    let recipe = base(k, file, norm, Activation::GeluTanh, true);
    let scale = (recipe.sizes.hidden as f64).sqrt() as f32;
    Recipe { embedding: EmbeddingForm { scale: Some(scale), ..recipe.embedding }, ..recipe }
}

/// The factor on scores: by the size of a head, but for the model of `large` layers by the share of the hidden size.
fn gemma_scale(sizes: Sizes, large: u64) -> f64 {
    let by = if sizes.layers == large { sizes.hidden / sizes.heads.max(1) } else { sizes.head_dim };
    (by as f64).powf(-0.5)
}

fn gemma2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = gemma(k, file);
    let windows = k.windows(&recipe, Some(4096), |i| i % 2 == 0);
    let scale = gemma_scale(recipe.sizes, 46);
    Recipe {
        names: NORMED_AROUND,
        softcap: Some(k.positive("attn_logit_softcapping", Some(50.0)) as f32),
        head: HeadForm { softcap: Some(k.positive("final_logit_softcapping", Some(30.0)) as f32), ..recipe.head },
        ..recipe.windows(windows).scale(scale)
    }
}

fn gemma3(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = gemma(k, file);
    let windows = k.windows(&recipe, Some(1024), |i| !(i + 1).is_multiple_of(6));
    let scale = gemma_scale(recipe.sizes, 62);
    let softcap = k.positive_or_none("final_logit_softcapping").map(|cap| cap as f32);
    let local = recipe.ropes.first().map(|rope| RopeConfig {
        theta: 1e4,
        scaling: RopeScaling::Default,
        context: rope.longest(),
        ..rope.clone()
    });
    let mut recipe = Recipe {
        names: NORMED_AROUND,
        qk_norm: Some((QkPlace::Heads, recipe.norm)),
        head: HeadForm { softcap, ..recipe.head },
        ..recipe.windows(windows).scale(scale)
    };
    recipe.ropes.extend(local);
    for layer in recipe.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        layer.rope = Some(1);
    }
    recipe
}

fn phi2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = old(k, file, Activation::GeluTanh, true);
    let packed = file.get("blk.0.attn_qkv.weight").is_some();
    Recipe {
        names: Names { ffn_norm: None, ..NAMES },
        qkv: if packed { QkvForm::Packed(Packing::Parts) } else { QkvForm::Separate },
        residual: Residual::Parallel,
        ..recipe
    }
}

fn phi3(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    k.no_window(&recipe);
    let packed = file.get("blk.0.attn_qkv.weight").is_some();
    Recipe {
        qkv: if packed { QkvForm::Packed(Packing::Parts) } else { QkvForm::Separate },
        ffn: FfnForm::Packed,
        ..recipe
    }
}

fn glm4(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = interleaved(plain(k, file));
    Recipe { names: NORMED_AROUND, ffn: FfnForm::Packed, ..recipe }
}

fn positions(recipe: Recipe) -> Recipe {
    let positions = Some(PositionForm { rows: recipe.sizes.context, offset: 0, masked: false });
    Recipe {
        embedding: EmbeddingForm { positions, ..recipe.embedding },
        qkv: QkvForm::Packed(Packing::Parts),
        ..recipe
    }
}

fn gpt2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    positions(old(k, file, Activation::GeluTanh, false))
}

fn starcoder(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    positions(old(k, file, Activation::GeluTanh, false))
}

fn starcoder2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = old(k, file, Activation::GeluTanh, true);
    k.no_window(&recipe);
    recipe
}

fn falcon(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = old(k, file, Activation::GeluErf, true);
    let two = file.get("blk.0.attn_norm_2.weight").is_some();
    let (attention_norm, ffn_norm) = if two { ("attn_norm_2", Some("attn_norm")) } else { ("attn_norm", None) };
    Recipe {
        names: Names { attention_norm: Some(attention_norm), ffn_norm, ..NAMES },
        qkv: QkvForm::Packed(Packing::Parts),
        residual: Residual::Parallel,
        ..recipe
    }
}

/// Slopes for a number of heads that comes from a file.
fn slopes(k: &mut Keys<'_>, heads: u64, of: fn(u64) -> Vec<f32>) -> Vec<f32> {
    const MOST: u64 = 1 << 16;
    if heads > MOST {
        k.gap("attention.head_count", format!("is {heads}, more than {MOST}"), "use another model");
        k.sizes_known = false;
    }
    of(heads.min(MOST))
}

fn bloom(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = old(k, file, Activation::GeluTanh, false);
    Recipe {
        embedding: EmbeddingForm { norm: true, ..recipe.embedding },
        alibi: Some(Alibi::Exact(slopes(k, recipe.sizes.heads, alibi::bloom_slopes))),
        qkv: QkvForm::Packed(Packing::Parts),
        ..recipe
    }
}

fn mpt(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = old(k, file, Activation::GeluErf, false);
    let most = k.positive("attention.max_alibi_bias", Some(8.0));
    if most != 8.0 {
        k.gap("attention.max_alibi_bias", format!("is {most}; only 8 is read"), "use another model");
    }
    let clip = k.positive_or_none("attention.clamp_kqv").map(|clip| clip as f32);
    Recipe {
        norm: NormForm { bias: file.get("output_norm.bias").is_some(), ..recipe.norm },
        alibi: Some(Alibi::Exact(slopes(k, recipe.sizes.heads, alibi::mpt_slopes))),
        qkv: QkvForm::Packed(Packing::Parts),
        clip,
        ..recipe
    }
}

fn gptneox(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = old(k, file, Activation::GeluErf, true);
    let parallel = k.flag("use_parallel_residual", true);
    Recipe {
        qkv: QkvForm::Packed(Packing::Parts),
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        ..recipe
    }
}

fn nemotron(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    old(k, file, Activation::Relu2, true)
}

fn stablelm(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let norm = layer_norm(k);
    let recipe = base(k, file, norm, Activation::Silu, true);
    let parallel = file.get("blk.0.ffn_norm.weight").is_none();
    let each = NormForm { bias: false, ..norm };
    let qk_norm = file.get("blk.0.attn_q_norm.weight").is_some().then_some((QkPlace::EachHead, each));
    // The key says what the tensors say.
    k.flag("use_parallel_residual", true);
    match parallel {
        false => Recipe { qk_norm, ..recipe },
        true => Recipe { names: Names { ffn_norm: None, ..NAMES }, residual: Residual::Parallel, qk_norm, ..recipe },
    }
}

fn cohere(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let norm = NormForm { bias: false, ..layer_norm(k) };
    let recipe = interleaved(base(k, file, norm, Activation::Silu, true));
    let scale = k.positive("logit_scale", None) as f32;
    Recipe {
        names: Names { ffn_norm: None, ..NAMES },
        residual: Residual::Parallel,
        head: HeadForm { scale: Some(scale), ..recipe.head },
        ..recipe
    }
}

fn command_r(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = cohere(k, file);
    let qk_norm = file.get("blk.0.attn_q_norm.weight").is_some().then_some((QkPlace::EachHead, recipe.norm));
    Recipe { qk_norm, ..recipe }
}

fn cohere2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = cohere(k, file);
    let windows = k.windows(&recipe, None, |i| !(i + 1).is_multiple_of(4));
    let mut recipe = recipe.windows(windows);
    for layer in &mut recipe.layers {
        layer.rope = layer.rope.filter(|_| layer.window.is_some());
    }
    recipe
}

fn exaone4(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    let some = k.u64("attention.sliding_window").is_some_and(|w| w > 0);
    let windows = match some {
        true => k.windows(&recipe, None, |i| !(i + 1).is_multiple_of(4)),
        false => vec![None; recipe.layers.len()],
    };
    let mut recipe =
        Recipe { names: NORMED_BEHIND, qk_norm: Some((QkPlace::Heads, recipe.norm)), ..recipe }.windows(windows);
    for layer in &mut recipe.layers {
        layer.rope = layer.rope.filter(|_| !some || layer.window.is_some());
    }
    recipe
}

fn olmo(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let norm = NormForm { gain: false, bias: false, ..layer_norm(k) };
    let recipe = interleaved(base(k, file, norm, Activation::Silu, true));
    Recipe { clip: k.positive_or_none("attention.clamp_kqv").map(|clip| clip as f32), ..recipe }
}

fn olmo2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    k.no_window(&recipe);
    Recipe { names: NORMED_BEHIND, qk_norm: Some((QkPlace::Whole, recipe.norm)), ..recipe }
}

/// The family of a file.
pub(super) fn of(file: &GgufFile) -> Result<&'static Family, Gap> {
    const ARCHITECTURE: &str = "general.architecture";
    let metadata = file.metadata();
    let Some(name) = metadata.str(ARCHITECTURE)? else {
        return Err(metadata.gap(ARCHITECTURE, "is missing", "convert the model again"));
    };
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| {
        let known = FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ");
        metadata.gap(ARCHITECTURE, format!("is `{name}`, which is not read"), format!("use one of {known}"))
    })
}
