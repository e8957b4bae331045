//! Which launches belong to which layer: by the paths that name layers, or by attention in launch order where no name does.

use super::report::is_launch;
use super::{Region, RegionAnchor};
use crate::graph::{Graph, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Ends of the numeric parts of an origin such as `encoder.layers.3.mlp`.
fn numbers(origin: &str) -> Vec<usize> {
    let mut at = 0;
    let ends = origin.split(['.', '/']).filter_map(|part| {
        let end = at + part.len();
        at = end + 1;
        part.parse::<u32>().is_ok().then_some(end)
    });
    ends.collect()
}

fn is_inside(origin: &str, layer: &str) -> bool {
    origin.strip_prefix(layer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}

/// The layer of each region, of the regions that have one.
pub fn of_regions(graph: &Graph, regions: &[&Region]) -> Vec<Option<String>> {
    let attention = |r: &&Region| match r.anchor {
        RegionAnchor::Attention(v) => Some(v),
        _ => None,
    };
    let attentions: Vec<&str> = regions.iter().filter_map(attention).map(|v| graph.node(v).origin.as_str()).collect();
    let distinct: BTreeSet<&str> = attentions.iter().copied().collect();
    let layers: BTreeSet<&str> = distinct.iter().copied().filter_map(|o| o.get(..*numbers(o).last()?)).collect();
    // Layers that share their weights share their names.
    let told_apart = distinct.len() == attentions.len() && !layers.is_empty();
    if attentions.len() > 1 && !told_apart {
        return by_attention(graph, regions);
    }
    regions.iter().map(|r| by_name(graph, r, &layers)).collect()
}

/// The layer that the operation is named after around which a region is built.
fn by_name(graph: &Graph, r: &Region, layers: &BTreeSet<&str>) -> Option<String> {
    let anchors = match &r.anchor {
        RegionAnchor::MatMul(g) => g.members.clone(),
        _ => r.anchors(),
    };
    let named = |v: &ValueId| Some(graph.node(*v).origin.as_str()).filter(|o| !o.is_empty());
    let origin = anchors.iter().chain(&r.outputs).chain(&r.members()).find_map(named)?;
    if let Some(layer) = layers.iter().rev().find(|l| is_inside(origin, l)) {
        return Some((*layer).into());
    }
    let first = origin.get(..*numbers(origin).first()?)?;
    // A number around several layers is none of a layer.
    (!layers.iter().any(|l| is_inside(l, first))).then(|| first.into())
}

/// A block of a layer starts with what makes the queries, keys or values of its attention and ends where the next one starts;
/// the last is as long behind its attention as the one in front of it.
fn by_attention(graph: &Graph, regions: &[&Region]) -> Vec<Option<String>> {
    let mut owner: HashMap<ValueId, usize> = HashMap::new();
    for (i, r) in regions.iter().enumerate() {
        r.outputs.iter().for_each(|v| _ = owner.entry(*v).or_insert(i));
    }
    let makers = |v: ValueId| {
        let (mut stack, mut seen, mut found) = (graph.operands(v), HashSet::new(), BTreeSet::new());
        while let Some(o) = stack.pop() {
            match owner.get(&o) {
                Some(i) => _ = found.insert(*i),
                None if !is_launch(graph, o) && seen.insert(o) => stack.extend(graph.operands(o)),
                None => {}
            }
        }
        found
    };
    let anchors: Vec<(usize, BTreeSet<usize>)> = regions
        .iter()
        .enumerate()
        .filter_map(|(i, r)| match r.anchor {
            RegionAnchor::Attention(v) => Some((i, makers(v))),
            _ => None,
        })
        .collect();
    let mut readers: BTreeMap<usize, usize> = BTreeMap::new();
    anchors.iter().flat_map(|a| &a.1).for_each(|m| *readers.entry(*m).or_default() += 1);
    // Such as a mask.
    let is_shared = |i: usize| readers.get(&i).is_some_and(|n| *n > 1);
    let mut starts = Vec::with_capacity(anchors.len());
    let mut after = 0;
    for (at, makers) in &anchors {
        starts.push(makers.range(after..*at).copied().find(|m| !is_shared(*m)).unwrap_or(*at));
        after = at + 1;
    }
    let tail = match (anchors.as_slice(), starts.last()) {
        ([.., before, _], Some(start)) => start - before.0,
        _ => 1,
    };
    let end = anchors.last().map_or(0, |a| a.0 + tail);
    let layer = |i: usize| starts.iter().rposition(|s| *s <= i).filter(|_| i < end && !is_shared(i));
    (0..regions.len()).map(|i| layer(i).map(|l| format!("attention block {l}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_parts_of_a_path() {
        let o = "encoder.layers.12.blocks.3.attn_2/qkv";
        assert_eq!(
            numbers(o).into_iter().map(|e| &o[..e]).collect::<Vec<_>>(),
            ["encoder.layers.12", "encoder.layers.12.blocks.3"]
        );
        assert!(numbers("node_matmul_1").is_empty());
        assert!(is_inside("h.1.mlp", "h.1") && is_inside("h.1", "h.1") && !is_inside("h.12", "h.1"));
    }
}
