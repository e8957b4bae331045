//! `config.json` as transformers 4.57 understands it: which architecture it is for, and its fields.
//!
//! Every field that changes the computation is read; a value that is not known is a gap with the field's name. What
//! only matters in training (dropout, initialisation) is passed over.

use super::architectures::classes;
use super::fields::Fields;
use super::registry::{Architecture, Class};
use crate::ingest::error::Gap;
use crate::ingest::limits::Limits;
use serde_json::{Map, Value};

/// The file's name.
pub const CONFIG: &str = "config.json";

/// A configuration with everything that is wrong about it.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The configuration, with stand-ins where a gap is; `None` when the architecture is not known.
    pub config: Option<Box<dyn Architecture>>,
    /// The architecture as the file calls it.
    pub architecture: String,
    /// Every fault.
    pub gaps: Vec<Gap>,
    /// Whether all sizes are known, so that tensors can be compared with them.
    pub sizes_known: bool,
}

/// Reads a configuration.
pub(crate) fn read(object: &Map<String, Value>, limits: &Limits) -> Reading {
    let mut fields = Fields::new(CONFIG, object, limits);
    let (architecture, class) = identify(&mut fields);
    let config = class.map(|class| {
        common(&mut fields, class);
        (class.read)(&mut fields)
    });
    let (gaps, sizes_known) = fields.into_gaps();
    Reading { config, architecture, gaps, sizes_known }
}

fn identify(f: &mut Fields<'_>) -> (String, Option<&'static Class>) {
    let model_type = f.text("model_type");
    let class = match f.get("architectures") {
        None => None,
        Some(Value::Array(classes)) => classes.first().and_then(Value::as_str),
        Some(_) => None,
    };
    let known = || classes().map(|c| c.class).collect::<Vec<_>>().join(", ");
    let by_class = class.and_then(|class| classes().find(|c| c.class == class));
    let by_type = model_type.and_then(|model_type| classes().find(|c| c.model_type == model_type));
    let name = class.or(model_type).unwrap_or_default().to_owned();
    let found = match (class, model_type) {
        (None, None) => {
            f.gap(
                "architectures",
                "and `model_type` are missing, so the architecture is not known",
                "download the model's config.json",
            );
            None
        }
        (Some(class), _) if by_class.is_none() => {
            let of_type = model_type.map(|t| format!(" (model_type `{t}`)")).unwrap_or_default();
            f.gap(
                "architectures",
                format!("is `{class}`{of_type}, which is not read"),
                format!("use one of {}", known()),
            );
            None
        }
        (None, Some(model_type)) if by_type.is_none() => {
            f.gap("model_type", format!("is `{model_type}`, which is not read"), format!("use one of {}", known()));
            None
        }
        (Some(class), Some(model_type)) if by_class.is_some_and(|c| c.model_type != model_type) => {
            f.gap(
                "architectures",
                format!("is `{class}`, which contradicts model_type `{model_type}`"),
                "correct one of them",
            );
            None
        }
        _ => by_class.or(by_type),
    };
    (name, found)
}

/// Fields that change the computation of any architecture.
fn common(f: &mut Fields<'_>, class: &Class) {
    let method = f.get("quantization_config").map(|_| f.text("quantization_config.quant_method").unwrap_or("unnamed"));
    if let Some(method) = method.filter(|method| (*method, class.model_type) != ("mxfp4", "gpt_oss")) {
        f.gap(
            "quantization_config",
            format!("asks for the scheme `{method}`, which is not read"),
            "use the unquantised model or a GGUF file",
        );
    }
    for (field, what) in [
        ("is_encoder_decoder", "an encoder and a decoder"),
        ("add_cross_attention", "cross-attention"),
        ("is_decoder", "a decoder made of an encoder"),
    ] {
        let is = f.flag(field, false);
        if is && !(class.encoder_decoder && field == "is_encoder_decoder") {
            f.gap(field, format!("is true, but {what} is not supported here"), "use a model without it");
        }
    }
    let pruned = f.get("pruned_heads").and_then(Value::as_object).is_some_and(|heads| !heads.is_empty());
    if pruned {
        f.gap("pruned_heads", "is not empty, and layers with fewer heads are not supported", "use the unpruned model");
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
