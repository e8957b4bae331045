//! Fields that several architectures have, and what follows from them.

use super::fields::Fields;
use crate::ingest::activation::Activation;
use serde_json::Value;

/// A function by its name in transformers.
pub(crate) fn activation(f: &mut Fields<'_>, field: &str, default: &str) -> Activation {
    let name = f.text(field).unwrap_or(default);
    Activation::of_hf(name).unwrap_or_else(|| {
        f.gap(field, format!("is `{name}`, which is not known"), format!("use one of {}", Activation::HF_NAMES));
        Activation::Identity
    })
}

/// The elements of a head where the heads share the hidden size evenly.
pub(crate) fn even_head_dim(f: &mut Fields<'_>, field: &str, hidden: u64, heads: u64) -> u64 {
    if !hidden.is_multiple_of(heads) {
        f.size_gap(field, format!("is {heads}, which does not divide the hidden size {hidden}"), "correct one of them");
    }
    (hidden / heads).max(1)
}

/// Notes a gap where `dim` elements, the value of `field`, cannot be rotated in pairs.
pub(crate) fn even_rotation(f: &mut Fields<'_>, field: &str, dim: u64) {
    if !dim.is_multiple_of(2) {
        f.gap(field, format!("is {dim}; rotary positions need an even one"), "correct it");
    }
}

/// A field that has a second name in transformers' attribute map. Both may be there if they agree.
pub(crate) fn renamed(f: &mut Fields<'_>, field: &str, other: &str, default: Option<u64>, most: u64) -> u64 {
    match (f.get(field), f.get(other)) {
        (Some(a), Some(b)) if a != b => {
            f.size_gap(field, format!("is {a}, but {other} is {b}"), "remove one of them");
            1
        }
        (None, Some(_)) => f.size_to(other, None, most),
        _ => f.size_to(field, default, most),
    }
}

/// The window of each layer by the list `layer_types`; `window` is that of `sliding_attention`.
pub(crate) fn layer_types(f: &mut Fields<'_>, types: &Value, layers: usize, window: Option<u64>) -> Vec<Option<u64>> {
    const FIELD: &str = "layer_types";
    let Some(types) = types.as_array() else {
        f.gap(FIELD, "is no list", "correct it");
        return vec![None; layers];
    };
    if types.len() != layers {
        f.gap(FIELD, format!("has {} entries for {layers} layers", types.len()), "correct it or num_hidden_layers");
    }
    let mut windows = Vec::with_capacity(layers);
    for kind in types.iter().take(layers) {
        windows.push(match kind.as_str() {
            Some("full_attention") => None,
            Some("sliding_attention") if window.is_some() => window,
            Some("sliding_attention") => {
                f.gap(
                    FIELD,
                    "has a `sliding_attention`, but no window is set",
                    "set use_sliding_window and sliding_window",
                );
                None
            }
            _ => {
                f.gap(FIELD, format!("has {kind}, which is not known"), "use full_attention or sliding_attention");
                None
            }
        });
    }
    windows.resize(layers, None);
    windows
}
