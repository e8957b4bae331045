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

/// Notes gaps where heads of `head_dim` elements cannot be rotated as a whole, or where only a part is to be.
pub(crate) fn whole_rotation(f: &mut Fields<'_>, head_dim: u64) {
    const FIELD: &str = "partial_rotary_factor";
    even_rotation(f, "head_dim", head_dim);
    let part = f.positive(FIELD, Some(1.0));
    if part != 1.0 {
        f.gap(FIELD, format!("is {part}; this architecture rotates whole heads"), "remove it");
    }
}

/// The elements of a head that are rotated, by the share in `field`.
pub(crate) fn rotary_part(f: &mut Fields<'_>, head_dim: u64, field: &str, default: f64) -> u64 {
    let part = f.number(field, Some(default), "a number above 0 and at most 1", |v| v > 0.0 && v <= 1.0);
    let dim = (head_dim as f64 * part) as u64;
    if dim < 2 || !dim.is_multiple_of(2) {
        f.gap(
            field,
            format!("is {part}, which leaves {dim} of {head_dim} elements; rotary positions need an even number"),
            "correct it or the size of a head",
        );
    }
    dim.max(2)
}

/// Notes a gap where a flag has another value than the one that is read, which is its default as well.
pub(crate) fn only(f: &mut Fields<'_>, field: &str, value: bool) {
    if f.flag(field, value) != value {
        f.gap(field, format!("is {}; only {value} is read", !value), "use another model");
    }
}

/// Notes a gap where a text is another than the one that is read, which is its default as well.
pub(crate) fn only_text(f: &mut Fields<'_>, field: &str, value: &str) {
    match f.text(field) {
        Some(other) if other != value => {
            f.gap(field, format!("is `{other}`; only `{value}` is read"), "use another model");
        }
        _ => {}
    }
}

/// A sliding window: `default` where the field is missing, none where it is `null`.
pub(crate) fn window(f: &mut Fields<'_>, field: &str, default: Option<u64>) -> Option<u64> {
    match (f.get(field), default) {
        (Some(_), _) => Some(f.size(field, None)),
        (None, default) => default.filter(|_| !f.present(field)),
    }
}

/// The window of each layer: by `layer_types`, or where that is missing by whether the layer `slides`.
pub(crate) fn layer_windows(
    f: &mut Fields<'_>,
    layers: usize,
    window: Option<u64>,
    slides: impl Fn(usize) -> bool,
) -> Vec<Option<u64>> {
    match f.get("layer_types") {
        Some(types) => layer_types(f, types, layers, window),
        None => (0..layers).map(|i| window.filter(|_| slides(i))).collect(),
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
