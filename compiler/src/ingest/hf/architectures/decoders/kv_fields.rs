//! Fields of published configurations by which layers attend to the keys and values of others.

use crate::ingest::hf::fields::Fields;
use crate::transform::extension::KvSource;
use crate::transform::slots::maps::{self, KvMap};
use serde_json::Value;

/// What a configuration says about caches.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct KvFields {
    /// Source of each layer; empty where each is its own.
    pub map: Vec<KvSource>,
    /// Sliding windows by layer, where the map says so.
    pub windows: Vec<Option<u64>>,
}

/// Reads `use_cla` and `cla_share_factor`, `num_key_value_layers`, `num_kv_shared_layers`, or a map as `layer_types`
/// (`0_20_…_20_21`). What is wrong is a gap.
pub(super) fn read(f: &mut Fields<'_>, layers: usize) -> KvFields {
    let (field, map) = if f.flag("use_cla", false) {
        let factor = f.size("cla_share_factor", Some(1));
        ("cla_share_factor", maps::cla(layers, usize::try_from(factor).unwrap_or(usize::MAX)))
    } else if let Some(m) = f.get("num_key_value_layers").and_then(Value::as_u64) {
        ("num_key_value_layers", maps::kv_layers(layers, usize::try_from(m).unwrap_or(usize::MAX)))
    } else if let Some(text) = f.get("layer_types").and_then(Value::as_str) {
        ("layer_types", maps::parse(text, layers))
    } else if let Some(n) = f.get("num_kv_shared_layers").and_then(Value::as_u64).filter(|n| *n > 0) {
        let types: Vec<&Value> = f.get("layer_types").and_then(Value::as_array).into_iter().flatten().collect();
        let types = if types.is_empty() { vec![&Value::Null; layers] } else { types };
        ("num_kv_shared_layers", maps::tail(&types, usize::try_from(n).unwrap_or(usize::MAX)))
    } else {
        return KvFields::default();
    };
    match map {
        Ok(map) if map.len() == layers => KvFields { windows: windows(f, &map), map: map.iter().map(source).collect() },
        Ok(map) => {
            f.gap(field, format!("describes {} layers; the model has {layers}", map.len()), "correct it");
            KvFields::default()
        }
        Err(problem) => {
            f.gap(field, problem, "correct it");
            KvFields::default()
        }
    }
}

fn source((layer, _): &(usize, bool)) -> KvSource {
    let layer = u32::try_from(*layer).unwrap_or(u32::MAX);
    KvSource { k: layer, v: layer }
}

fn windows(f: &mut Fields<'_>, map: &KvMap) -> Vec<Option<u64>> {
    if !map.iter().any(|(_, slides)| *slides) {
        return Vec::new();
    }
    let window = f.size("sliding_window", None);
    map.iter().map(|(_, slides)| slides.then_some(window)).collect()
}
