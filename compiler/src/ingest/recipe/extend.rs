//! What a checkpoint says in the object `frit` of its configuration, checked and read by layer.

use super::{QkvForm, Recipe};
use crate::ingest::blocks::{GateKind, HeadMaps, Residual, Sources};
use crate::ingest::error::Gap;
use crate::transform::extension::{Extension, GateForm, KvSource, Shared};

/// The sizes of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerSizes {
    pub heads: u64,
    pub kv_heads: u64,
    pub value_heads: u64,
    pub inner: u64,
}

/// What is wrong with an extension for this decoder, all of it.
pub(super) fn check(e: &Extension, recipe: &Recipe) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let layers = recipe.sizes.layers;
    let mut fault = |field: &str, problem: String| {
        gaps.push(Gap::field("config.json", &format!("frit.{field}"), problem, "correct it"));
    };
    for problem in e.faults(usize::try_from(layers).unwrap_or(usize::MAX)) {
        fault("layers", problem);
    }
    let gated: Vec<u32> = e.gates.iter().map(|g| g.layer).collect();
    if let Some(l) = gated.iter().find(|l| u64::from(**l) >= layers) {
        fault("gates", format!("names layer {l}; the model has layers 0 to {}", layers.saturating_sub(1)));
    }
    let idle = |l: u32| e.linear_layers.contains(&l) || e.drop_attention.contains(&l);
    let at = |list: &[u32], l: u32| list.get(l as usize).copied().unwrap_or(l);
    for (l, s) in (0u32..).zip(&e.kv_map).filter(|(l, _)| !idle(*l)) {
        for (part, source) in [("keys", s.k), ("values", s.v)] {
            if source != l && idle(source) {
                fault("kv_map", format!("gives layer {l} the {part} of layer {source}, which has no attention"));
            }
        }
        if s.k != l && at(&e.probs_from, l) != l {
            fault("kv_map", format!("gives layer {l} other keys, though it uses the probabilities of another layer"));
        }
    }
    for (l, source) in (0u32..).zip(&e.probs_from).filter(|(l, s)| **s != *l && !idle(*l)) {
        if *source > l || at(&e.probs_from, *source) != *source || idle(*source) {
            let why = "which is no layer below it that computes its own";
            fault("probs_from", format!("gives layer {l} the probabilities of layer {source}, {why}"));
        }
    }
    for (l, h) in (0u32..).zip(&e.heads) {
        let maps = [("k_of", &h.k_of, h.k), ("v_of", &h.v_of, h.v)];
        for (field, map, most) in maps {
            let fits = map.is_empty() && most > 0 && h.q.is_multiple_of(most)
                || map.len() as u64 == h.q && map.iter().all(|m| *m < most);
            if !fits {
                fault("heads", format!("has no {field} for the {} query heads of layer {l}", h.q));
            }
        }
    }
    if recipe.alibi.is_some() && e.heads.iter().any(|h| h.q != recipe.sizes.heads) {
        fault("heads", "has other query heads than the model, whose slopes are one for each".into());
    }
    let separate = recipe.qkv == QkvForm::Separate && recipe.latent.is_none();
    if !separate && (!e.kv_map.is_empty() || !e.probs_from.is_empty() || !e.heads.is_empty()) {
        fault("kv_map", "shares parts of a projection that this family stores as one tensor".into());
    }
    if recipe.residual != Residual::Sequential && !e.drop_attention.is_empty() {
        fault("drop_attention", "needs layers whose parts follow each other".into());
    }
    if !e.value_residual.is_empty() && (idle(0) || e.kv_map.first().is_some_and(|s| s.v != 0)) {
        fault("value_residual", "needs the values of layer 0, which takes others".into());
    }
    if !e.value_residual.is_empty() && recipe.latent.is_some() {
        fault("value_residual", "needs values, and this family keeps the rows that they are made of".into());
    }
    if !e.layer_attention.is_empty() && !recipe.sizes.hidden.is_multiple_of(recipe.sizes.heads.max(1)) {
        fault("layer_attention", "needs a hidden size that the heads divide".into());
    }
    if e.prefix.is_some() {
        fault("prefix", "is not served: caches begin empty".into());
    }
    gaps
}

/// Where the attention of a layer takes its parts.
pub(super) fn sources(e: &Extension, layer: u32) -> Sources {
    let other = |source: u32| (source != layer).then_some(source as usize);
    let kv = e.kv_map.get(layer as usize);
    let taken = e.probs_from.get(layer as usize).and_then(|s| other(*s));
    let (probs, output) = match e.shared {
        Shared::Probs => (taken, None),
        Shared::Output => (None, taken),
    };
    let values = kv.and_then(|s| other(s.v)).filter(|_| output.is_none());
    let unread = |part: fn(&KvSource) -> u32| !e.kv_map.is_empty() && !e.kv_map.iter().any(|s| part(s) == layer);
    let lacks = [taken.is_some() || unread(|s| s.k), output.is_some() || unread(|s| s.v)];
    Sources {
        lacks,
        keys: kv.and_then(|s| other(s.k)).filter(|_| taken.is_none()),
        values,
        probs,
        output,
        blend: e.value_residual.get(layer as usize).copied().filter(|_| layer > 0 && !lacks[1]),
    }
}

/// How the query heads of a layer find keys and values.
pub(super) fn maps(e: &Extension, layer: u32) -> HeadMaps {
    e.heads.get(layer as usize).map_or_else(HeadMaps::default, |h| HeadMaps {
        value_heads: Some(h.v),
        k_of: h.k_of.clone(),
        v_of: h.v_of.clone(),
    })
}

/// The sizes of a layer.
pub(super) fn sizes(recipe: &Recipe, layer: u32) -> LayerSizes {
    let (s, e) = (&recipe.sizes, &recipe.extension);
    let heads = e.heads.get(layer as usize);
    LayerSizes {
        heads: heads.map_or(s.heads, |h| h.q),
        kv_heads: heads.map_or(s.kv_heads, |h| h.k),
        value_heads: heads.map_or(s.kv_heads, |h| h.v),
        inner: e.ff.get(layer as usize).copied().unwrap_or(s.inner),
    }
}

/// The gate of a layer.
pub(super) fn gate(e: &Extension, layer: u32) -> Option<GateKind> {
    e.gates.iter().find(|g| g.layer == layer).map(|g| match g.kind {
        GateForm::Mix => GateKind::Mix,
        GateForm::Route => GateKind::Route,
    })
}
