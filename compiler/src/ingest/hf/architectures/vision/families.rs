//! ViT, DeiT, DINOv2 and BEiT.

use super::recipe::{Head, Names, Output, Pool, Recipe, Relative, Step, image, layers};
use crate::ingest::activation::Activation;
use crate::ingest::hf::architectures::encoders::recipe::labels;
use crate::ingest::hf::common_fields::activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;

/// What a class puts on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Image,
    /// Two classifiers, one of them for the distillation token.
    Teacher,
}

fn prefixes(kind: Kind, under: [&'static str; 2]) -> [&'static str; 2] {
    let [prefix, alone] = under;
    if kind == Kind::Model { [alone, prefix] } else { [prefix, alone] }
}

/// A dense layer over the first token.
fn pooled(f: &mut Fields<'_>, hidden: u64) -> Output {
    let act = activation(f, "pooler_act", "tanh");
    let size = f.size("pooler_output_size", Some(hidden));
    let dense = Step::Linear { name: "pooler.dense", inner: true, from: hidden, to: size, bias: true };
    Output::of("pooler_output", Pool::Token(0), vec![dense, Step::Act(act)])
}

pub(super) fn vit(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let classes = labels(f);
    let image = image(f, "", [224, 16]);
    let mut layers = layers(f, "", "gelu", 1e-12);
    layers.qkv_bias = [f.flag("qkv_bias", true); 3];
    let hidden = layers.hidden;
    let head = match kind {
        Kind::Model => Head { states: true, outputs: vec![pooled(f, hidden)] },
        _ => {
            let steps = vec![Step::classifier("classifier", hidden, classes)];
            Head { states: false, outputs: vec![Output::of("logits", Pool::Token(0), steps)] }
        }
    };
    Box::new(Recipe {
        prefixes: prefixes(kind, ["vit.", ""]),
        names: Names::VIT,
        image,
        layers,
        tokens: &["embeddings.cls_token"],
        registers: 0,
        flat: false,
        patch_bias: true,
        head,
        ignored: if kind == Kind::Model { &["classifier.", "embeddings.mask_token"] } else { &["vit.pooler."] },
    })
}

pub(super) fn deit(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let classes = labels(f);
    let image = image(f, "", [224, 16]);
    let mut layers = layers(f, "", "gelu", 1e-12);
    layers.qkv_bias = [f.flag("qkv_bias", true); 3];
    let hidden = layers.hidden;
    let head = match kind {
        Kind::Model => Head { states: true, outputs: vec![pooled(f, hidden)] },
        Kind::Image => {
            let steps = vec![Step::classifier("classifier", hidden, classes)];
            Head { states: false, outputs: vec![Output::of("logits", Pool::Token(0), steps)] }
        }
        Kind::Teacher => {
            let first = (Pool::Token(0), vec![Step::classifier("cls_classifier", hidden, classes)]);
            let second = (Pool::Token(1), vec![Step::classifier("distillation_classifier", hidden, classes)]);
            let alone = |name, part: &(Pool, Vec<Step>)| Output { name, parts: vec![part.clone()] };
            let outputs = vec![
                alone("cls_logits", &first),
                alone("distillation_logits", &second),
                Output { name: "logits", parts: vec![first, second] },
            ];
            Head { states: false, outputs }
        }
    };
    Box::new(Recipe {
        prefixes: prefixes(kind, ["deit.", ""]),
        names: Names::VIT,
        image,
        layers,
        tokens: &["embeddings.cls_token", "embeddings.distillation_token"],
        registers: 0,
        flat: false,
        patch_bias: true,
        head,
        ignored: match kind {
            Kind::Model => &["classifier.", "embeddings.mask_token"],
            _ => &["deit.pooler.", "embeddings.mask_token"],
        },
    })
}

pub(super) fn dinov2(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    dino(f, kind, 14, ["dinov2.", ""], 0)
}

pub(super) fn dinov2_with_registers(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let registers = f.size("num_register_tokens", Some(4));
    dino(f, kind, 16, ["dinov2_with_registers.", ""], registers)
}

fn dino(f: &mut Fields<'_>, kind: Kind, patch: u64, under: [&'static str; 2], registers: u64) -> Box<dyn Architecture> {
    let classes = labels(f);
    let image = image(f, "", [224, patch]);
    let mut layers = layers(f, "", "gelu", 1e-6);
    layers.qkv_bias = [f.flag("qkv_bias", true); 3];
    let hidden = layers.hidden;
    let ratio = f.size("mlp_ratio", Some(4));
    layers.inner = hidden.saturating_mul(ratio).min(f.limits().dim);
    layers.gated = f.flag("use_swiglu_ffn", false);
    if layers.gated {
        layers.inner = (layers.inner * 2 / 3).div_ceil(8) * 8;
        layers.act = Activation::Silu;
    }
    let names = Names {
        attention_norm: "norm1",
        up: if layers.gated { "mlp.weights_in" } else { "mlp.fc1" },
        down: if layers.gated { "mlp.weights_out" } else { "mlp.fc2" },
        ffn_norm: "norm2",
        gains: ["layer_scale1.lambda1", "layer_scale2.lambda1"],
        ..Names::VIT
    };
    let head = match kind {
        Kind::Model => Head { states: true, outputs: vec![Output::of("pooler_output", Pool::Token(0), Vec::new())] },
        _ => {
            let steps = vec![Step::classifier("classifier", 2 * hidden, classes)];
            Head { states: false, outputs: vec![Output::of("logits", Pool::TokenAndPatches, steps)] }
        }
    };
    Box::new(Recipe {
        prefixes: prefixes(kind, under),
        names,
        image,
        layers,
        tokens: &["embeddings.cls_token"],
        registers,
        flat: false,
        patch_bias: true,
        head,
        ignored: if kind == Kind::Model { &["classifier.", "mask_token"] } else { &["mask_token"] },
    })
}

pub(super) fn beit(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let classes = labels(f);
    let image = image(f, "", [224, 16]);
    let mut layers = layers(f, "", "gelu", 1e-12);
    layers.qkv_bias = [true, false, true];
    let hidden = layers.hidden;
    layers.relative =
        match (f.flag("use_relative_position_bias", false), f.flag("use_shared_relative_position_bias", false)) {
            (false, false) => None,
            (true, false) => Some(Relative::Own),
            (false, true) => Some(Relative::Shared),
            (true, true) => {
                f.gap("use_shared_relative_position_bias", "is true beside the layers' own", "set one of them");
                None
            }
        };
    let scaled = f.number("layer_scale_init_value", Some(0.1), "a number", |_| true) > 0.0;
    let mean = f.flag("use_mean_pooling", true);
    let names = Names {
        positions: if f.flag("use_absolute_position_embeddings", false) { Names::VIT.positions } else { "" },
        gains: if scaled { ["lambda_1", "lambda_2"] } else { ["", ""] },
        final_norm: if mean { "" } else { Names::VIT.final_norm },
        ..Names::VIT
    };
    let (pool, mut steps) = match mean {
        true => (Pool::Patches, vec![Step::Norm { name: "pooler.layernorm" }]),
        false => (Pool::Token(0), Vec::new()),
    };
    let head = match kind {
        Kind::Model => Head { states: true, outputs: vec![Output::of("pooler_output", pool, steps)] },
        _ => {
            steps.push(Step::classifier("classifier", hidden, classes));
            Head { states: false, outputs: vec![Output::of("logits", pool, steps)] }
        }
    };
    Box::new(Recipe {
        prefixes: prefixes(kind, ["beit.", ""]),
        names,
        image,
        layers,
        tokens: &["embeddings.cls_token"],
        registers: 0,
        flat: false,
        patch_bias: true,
        head,
        ignored: match kind {
            Kind::Model => &["classifier.", "mask_token", "relative_position_index", "lm_head."],
            _ => &["mask_token", "relative_position_index"],
        },
    })
}
