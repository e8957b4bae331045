//! Which layer's keys and values each layer attends to, in the forms of published models, and what a cache then holds.

use crate::transform::extension::KvSource;
use std::collections::BTreeSet;

/// Source of each layer, with whether it sees a sliding window only.
pub type KvMap = Vec<(usize, bool)>;

/// `K_l = K_{l − (l mod s)}`: every s-th layer has keys and values for the s − 1 behind it.
pub fn cla(layers: usize, s: usize) -> Result<KvMap, String> {
    if s == 0 || s > layers {
        return Err(format!("cla:{s} does not fit {layers} layers"));
    }
    Ok((0..layers).map(|l| (l - l % s, false)).collect())
}

/// The last `shared` layers use the keys and values of the last layer of their type in front of them.
pub fn tail<T: PartialEq>(types: &[T], shared: usize) -> Result<KvMap, String> {
    let own = types.len().checked_sub(shared).filter(|n| *n > 0);
    let own = own.ok_or_else(|| format!("{shared} of {} layers cannot share", types.len()))?;
    (0..types.len())
        .map(|l| {
            if l < own {
                return Ok((l, false));
            }
            let source = (0..own).rev().find(|i| types[*i] == types[l]);
            source.map(|i| (i, false)).ok_or_else(|| format!("no layer of the type of layer {l} is in front of it"))
        })
        .collect()
}

/// Keys and values exist in `m` layers, `0` and `⌊(i + 1)·L/m⌋`; each layer uses the nearest at or before it.
pub fn kv_layers(layers: usize, m: usize) -> Result<KvMap, String> {
    if m == 0 || m > layers {
        return Err(format!("{m} layers with keys and values of {layers}"));
    }
    let producers: Vec<usize> = (0..m).map(|i| i * layers / m).collect();
    Ok((0..layers).map(|l| (producers.iter().rev().find(|p| **p <= l).copied().unwrap_or(0), false)).collect())
}

/// Layers joined by `_`, each with the layer whose keys and values it uses and `s` for a sliding window: `0_20_20s_21`.
/// An ellipsis repeats the entry before it as often as it takes: `0_20_…_21`.
pub fn parse(text: &str, layers: usize) -> Result<KvMap, String> {
    let items: Vec<&str> = text.split('_').collect();
    let dots = |t: &str| matches!(t, "…" | "...");
    if items.iter().filter(|t| dots(t)).count() > 1 {
        return Err(format!("`{text}` has more than one ellipsis"));
    }
    let named = items.iter().filter(|t| !dots(t)).count();
    let mut map: KvMap = Vec::new();
    for item in &items {
        if dots(item) {
            let last = *map.last().ok_or_else(|| format!("`{text}` begins with an ellipsis"))?;
            let more = layers.checked_sub(named).ok_or_else(|| format!("`{text}` names {named} layers of {layers}"))?;
            map.extend(std::iter::repeat_n(last, more));
            continue;
        }
        let (number, window) = item.strip_suffix('s').map_or((*item, false), |n| (n, true));
        let source = number.parse::<usize>().map_err(|_| format!("`{item}` in `{text}` is no layer"))?;
        if source >= layers {
            return Err(format!("`{item}` in `{text}`: there are {layers} layers"));
        }
        map.push((source, window));
    }
    if map.len() != layers {
        return Err(format!("`{text}` names {} layers; the model has {layers}", map.len()));
    }
    Ok(map)
}

/// Distinct slots of keys and of values that a map needs.
pub fn slots(map: &[KvSource]) -> [usize; 2] {
    let k: BTreeSet<u32> = map.iter().map(|s| s.k).collect();
    let v: BTreeSet<u32> = map.iter().map(|s| s.v).collect();
    [k.len(), v.len()]
}

/// Bytes of a cache: over distinct slots, `batch · tokens · heads · dim · element`, keys and values apart.
pub fn slot_bytes(map: &[KvSource], heads: u64, dim: u64, batch: u64, tokens: u64, element: u64) -> u64 {
    slots(map).iter().map(|n| *n as u64 * batch * tokens * heads * dim * element).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sources(map: &KvMap) -> Vec<usize> {
        map.iter().map(|(l, _)| *l).collect()
    }

    #[test]
    fn maps_are_read_as_written() {
        assert_eq!(parse("1_2s_0", 3).unwrap(), [(1, false), (2, true), (0, false)]);
        assert_eq!(sources(&parse("0_3_…_3_4", 5).unwrap()), [0, 3, 3, 3, 4]);
        assert_eq!(sources(&parse("0_3_..._4", 6).unwrap()), [0, 3, 3, 3, 3, 4]);
        for wrong in ["", "0_1", "0_1_3", "0__1", "x_0_0", "0_…_1_…", "…_0_1", "-1_0_0"] {
            assert!(parse(wrong, 3).is_err(), "{wrong}");
        }
    }

    #[test]
    fn kv_layers_are_spread_from_the_first() {
        assert_eq!(sources(&kv_layers(6, 2).unwrap()), [0, 0, 0, 3, 3, 3]);
        assert_eq!(sources(&kv_layers(5, 2).unwrap()), [0, 0, 2, 2, 2]);
        assert_eq!(sources(&cla(5, 2).unwrap()), [0, 0, 2, 2, 4]);
        assert_eq!(sources(&tail(&["w", "f", "w", "w", "f"], 2).unwrap()), [0, 1, 2, 2, 1]);
        assert!(tail(&["w", "f"], 1).is_err());
        assert!(kv_layers(4, 5).is_err() && cla(4, 0).is_err());
    }
}
