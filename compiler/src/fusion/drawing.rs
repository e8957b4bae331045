//! The operations of a program before fusion, for pictures: those that would be launches and those that are stored, what
//! flows between them through views, and which edges were refused. Layers that are alike are kept once.

use super::Refused;
use crate::graph::{Graph, ValueId};
use frit_plan::{Drawing, DrawnBlock, DrawnEdge, DrawnOp};
use std::collections::{HashMap, HashSet};

/// What a drawing is made of: for each region, in launch order, its layer, its kernel and the operations that it is told
/// by.
pub struct Told<'a> {
    /// The layer, if it belongs to one.
    pub layer: Option<&'a str>,
    /// The name of the kernel.
    pub kernel: &'a str,
    /// Operations, in order.
    pub ops: &'a [ValueId],
}

/// Regions in a row that belong to one layer, or to none.
struct Stretch<'a> {
    layer: Option<&'a str>,
    regions: std::ops::Range<usize>,
    ops: Vec<ValueId>,
}

/// What makes two layers alike: kernels, operations with the regions that compute them, edges inside, and refusals.
#[derive(PartialEq, Eq, Hash)]
struct Likeness {
    kernels: Vec<String>,
    ops: Vec<(String, Vec<usize>)>,
    edges: Vec<(usize, usize, Option<String>)>,
    refused: Vec<(usize, String)>,
}

/// What layers are compared by.
struct Scene<'a> {
    graph: &'a Graph,
    told: &'a [Told<'a>],
    refused: &'a [Refused],
    homes: HashMap<ValueId, Vec<usize>>,
    edges: Vec<Edge>,
    /// The stretch of each operation, and its place there.
    place: HashMap<ValueId, (usize, usize)>,
}

struct Edge {
    from: ValueId,
    to: ValueId,
    flows: bool,
    refused: Option<usize>,
}

/// The drawing of a program; `refused` in the order of its report.
pub fn of(graph: &Graph, told: &[Told<'_>], refused: &[Refused]) -> Drawing {
    let mut homes: HashMap<ValueId, Vec<usize>> = HashMap::new();
    let stretches = stretches(told, &mut homes);
    let edges = edges(graph, &stretches, &homes, refused);
    let place: HashMap<ValueId, (usize, usize)> = stretches
        .iter()
        .enumerate()
        .flat_map(|(s, stretch)| stretch.ops.iter().enumerate().map(move |(i, v)| (*v, (s, i))))
        .collect();
    let scene = Scene { graph, told, refused, homes, edges, place };
    let mut out = Drawing::default();
    let mut known: HashMap<Likeness, usize> = HashMap::new();
    let mut block_of: Vec<usize> = Vec::with_capacity(stretches.len());
    let mut first_op: Vec<usize> = Vec::new();
    for (at, s) in stretches.iter().enumerate() {
        let next = out.blocks.len();
        let block = if s.layer.is_some() { *known.entry(scene.likeness(at, s)).or_insert(next) } else { next };
        block_of.push(block);
        if let Some(b) = out.blocks.get_mut(block) {
            b.layers.extend(s.layer.map(str::to_owned));
            continue;
        }
        let regions = s.regions.clone().map(|r| r as u32).collect();
        out.blocks.push(DrawnBlock { layers: s.layer.map(str::to_owned).into_iter().collect(), regions });
        first_op.push(out.ops.len());
        for v in &s.ops {
            out.ops.push(DrawnOp {
                op: graph.op(*v).name(),
                origin: graph.node(*v).origin.clone(),
                block: block as u32,
                regions: scene.homes.get(v).into_iter().flatten().map(|r| *r as u32).collect(),
                bytes: graph.ty(*v).bytes(),
            });
        }
    }
    let mut drawn: HashMap<(u32, u32), usize> = HashMap::new();
    let index = |v: &ValueId| {
        let (s, i) = scene.place.get(v)?;
        Some((first_op.get(*block_of.get(*s)?)? + i) as u32)
    };
    for e in &scene.edges {
        let (Some(from), Some(to)) = (index(&e.from), index(&e.to)) else { continue };
        let at = *drawn.entry((from, to)).or_insert_with(|| {
            out.edges.push(DrawnEdge { from, to, flows: false, refused: None });
            out.edges.len() - 1
        });
        if let Some(d) = out.edges.get_mut(at) {
            d.flows |= e.flows;
            d.refused = d.refused.or(e.refused.map(|r| r as u32));
        }
    }
    out
}

fn stretches<'a>(told: &[Told<'a>], homes: &mut HashMap<ValueId, Vec<usize>>) -> Vec<Stretch<'a>> {
    let mut out: Vec<Stretch<'a>> = Vec::new();
    for (r, t) in told.iter().enumerate() {
        if out.last().is_none_or(|s| s.layer != t.layer) {
            out.push(Stretch { layer: t.layer, regions: r..r, ops: Vec::new() });
        }
        let Some(s) = out.last_mut() else { continue };
        s.regions.end = r + 1;
        for v in t.ops {
            let home = homes.entry(*v).or_default();
            if home.is_empty() {
                s.ops.push(*v);
            }
            if home.last() != Some(&r) {
                home.push(r);
            }
        }
    }
    out
}

/// The drawn operations whose results `v` is made of by views and integer arithmetic that is not drawn.
fn sources(graph: &Graph, v: ValueId, drawn: &HashMap<ValueId, Vec<usize>>) -> Vec<ValueId> {
    let (mut stack, mut seen, mut found) = (graph.operands(v), HashSet::new(), Vec::new());
    while let Some(o) = stack.pop() {
        if !seen.insert(o) {
            continue;
        }
        match drawn.contains_key(&o) {
            true => found.push(o),
            false => stack.extend(graph.operands(o)),
        }
    }
    found.sort();
    found
}

fn edges(
    graph: &Graph,
    stretches: &[Stretch<'_>],
    homes: &HashMap<ValueId, Vec<usize>>,
    refused: &[Refused],
) -> Vec<Edge> {
    let mut why: HashMap<(ValueId, ValueId), usize> = HashMap::new();
    for (i, r) in refused.iter().enumerate().filter(|(_, r)| homes.contains_key(&r.to)) {
        let from = if homes.contains_key(&r.from) { vec![r.from] } else { sources(graph, r.from, homes) };
        from.into_iter().for_each(|f| _ = why.entry((f, r.to)).or_insert(i));
    }
    let mut out = Vec::new();
    for to in stretches.iter().flat_map(|s| s.ops.iter().copied()) {
        for from in sources(graph, to, homes) {
            out.push(Edge { from, to, flows: true, refused: why.remove(&(from, to)) });
        }
    }
    let mut rest: Vec<((ValueId, ValueId), usize)> = why.into_iter().collect();
    rest.sort();
    out.extend(rest.into_iter().map(|((from, to), r)| Edge { from, to, flows: false, refused: Some(r) }));
    out
}

impl Scene<'_> {
    fn likeness(&self, at: usize, s: &Stretch<'_>) -> Likeness {
        let code = |e: &Edge| e.refused.and_then(|r| self.refused.get(r)).map(|r| format!("{} {}", r.code, r.detail));
        let own = |v: &ValueId| self.place.get(v).filter(|p| p.0 == at).map(|p| p.1);
        let mut inside = Vec::new();
        let mut entering = Vec::new();
        for e in &self.edges {
            match (own(&e.from), own(&e.to)) {
                (Some(f), Some(t)) => inside.push((f, t, code(e))),
                (None, Some(t)) => entering.extend(code(e).map(|c| (t, c))),
                _ => {}
            }
        }
        let home = |v: &ValueId| self.homes.get(v).into_iter().flatten().map(|r| r.wrapping_sub(s.regions.start));
        let kernels = self.told.get(s.regions.clone()).unwrap_or_default().iter().map(|t| t.kernel.to_owned());
        Likeness {
            kernels: kernels.collect(),
            ops: s.ops.iter().map(|v| (self.graph.op(*v).name(), home(v).collect())).collect(),
            edges: inside,
            refused: entering,
        }
    }
}
