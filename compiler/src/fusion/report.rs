//! Fills the fusion report: what each region saves, what was refused and why, and the ledger of bytes.

use super::cost;
use super::partition::is_anchor;
use super::traffic::{self, visible_keys};
use super::{MatMulGroup, Refused, Region, RegionAnchor, RowStats};
use crate::graph::{Graph, Op, ValueId};
use crate::numeric::ProofClass;
use frit_kernels::dim::{Bounds, Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::KernelSpec;
use frit_plan::{AttentionCount, Ledger, PhaseReport, RefusedEdge, RegionReport};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Whether the operation would be a kernel if nothing were fused: views, sources and integer arithmetic would not.
pub fn is_launch(graph: &Graph, v: ValueId) -> bool {
    let op = graph.op(v);
    let small = graph.ty(v).scalar != Scalar::F32 && !is_anchor(op);
    !op.is_source() && !op.is_view() && !small
}

/// Bytes an operation moves by itself: every operand once, the result once. Weights are counted apart. What is read
/// through views and integer arithmetic, which no kernel of their own computes, are the values below these.
fn alone(graph: &Graph, v: ValueId, bounds: &Bounds) -> Dim {
    let ops = graph.operands(v);
    let mut leaves: Vec<(ValueId, Dim)> = Vec::new();
    for (port, o) in ops.iter().enumerate() {
        let first = leaves.len();
        operand_leaves(graph, *o, None, &mut leaves);
        if let (Some((a, _)), 1 | 2, [q, k, ..]) = (graph.op(v).attention(), port, ops.as_slice()) {
            let queries = graph.ty(*q).shape.get(2).cloned().unwrap_or_else(Dim::one);
            let keys = graph.ty(*k).shape.get(2).cloned().unwrap_or_else(Dim::one);
            let (lo, hi) = visible_keys(&queries, &keys, a.causal.as_ref(), a.window, bounds);
            let shape = graph.ty(*o).shape.iter().enumerate();
            let seen: Vec<Dim> = shape.map(|(i, d)| if i == 2 { hi.clone() - lo.clone() } else { d.clone() }).collect();
            leaves.iter_mut().skip(first).take(1).for_each(|l| l.1 = product(&seen) * Dim::constant(4));
        }
    }
    leaves.sort();
    leaves.dedup();
    let result = match graph.op(v) {
        Op::KvAppend { .. } => ops.first().map_or_else(Dim::zero, |o| graph.ty(*o).bytes()),
        _ => graph.ty(v).bytes(),
    };
    leaves.into_iter().fold(result, |s, (_, bytes)| s + bytes)
}

/// The values in memory that an operand is made of, with the bytes read of each; `slice` holds the bytes of the part
/// that a view picks.
fn operand_leaves(graph: &Graph, o: ValueId, slice: Option<Dim>, out: &mut Vec<(ValueId, Dim)>) {
    let op = graph.op(o);
    match op {
        Op::Weight(_) | Op::Const(_) | Op::Iota { .. } => {}
        Op::Input(_) | Op::State(_) => out.push((o, slice.unwrap_or_else(|| graph.ty(o).bytes()))),
        _ if is_launch(graph, o) => out.push((o, slice.unwrap_or_else(|| graph.ty(o).bytes()))),
        _ => {
            let part = match op {
                Op::Slice { .. } => Some(graph.ty(o).bytes()),
                Op::Reshape(_) | Op::Transpose(_) => slice,
                _ => None,
            };
            graph.operands(o).into_iter().for_each(|x| operand_leaves(graph, x, part.clone(), out));
        }
    }
}

fn describe(graph: &Graph, v: ValueId) -> String {
    let n = graph.node(v);
    if n.origin.is_empty() { n.op.name() } else { format!("{} ({})", n.op.name(), n.origin) }
}

/// The layer number in an origin such as `layers.3.mlp`, `h.3.attn` or `encoder.layer.3`.
pub fn layer_of(origin: &str) -> Option<u32> {
    origin.split(['.', '/']).find_map(|p| p.parse().ok())
}

/// How a region computes the norm in front of its product.
fn norm_form(r: &Region) -> Option<&'static str> {
    let RegionAnchor::MatMul(g) = &r.anchor else { return None };
    g.norm.map(|_| match (g.commuted, g.stats) {
        (true, _) => "commuted",
        (false, Some(_)) => "forwarded",
        (false, None) => "recomputed",
    })
}

/// The norm whose rows the kernel in front writes times their gain for this group.
fn gained_by(graph: &Graph, g: &MatMulGroup) -> Option<ValueId> {
    let has_gain = |n: &ValueId| matches!(graph.op(*n), Op::Norm { has_gain: true, .. });
    g.norm.filter(|_| g.commuted).filter(has_gain)
}

/// Operations of a region, each behind those that it reads, otherwise as they were built.
fn in_order(graph: &Graph, members: Vec<ValueId>) -> Vec<ValueId> {
    let mut left = members;
    let mut out = Vec::with_capacity(left.len());
    // Whether `v` reads one of `left`, through views at most.
    let waits = |v: ValueId, left: &[ValueId]| {
        let (mut stack, mut seen) = (graph.operands(v), HashSet::new());
        while let Some(o) = stack.pop() {
            if left.contains(&o) {
                return true;
            }
            if !is_launch(graph, o) && seen.insert(o) {
                stack.extend(graph.operands(o));
            }
        }
        false
    };
    while !left.is_empty() {
        let next = left.iter().position(|v| !waits(*v, &left)).unwrap_or(0);
        out.push(left.remove(next));
    }
    out
}

/// The report of one program.
pub fn phase(
    program: &str,
    graph: &Graph,
    bounds: &Bounds,
    refused: &[Refused],
    specs: &[(&Region, &KernelSpec, &str)],
) -> PhaseReport {
    let order = graph.order();
    let launches: Vec<ValueId> = order.iter().copied().filter(|v| is_launch(graph, *v)).collect();
    let blocks = order.iter().filter(|v| graph.op(**v).attention().is_some()).count() as u32;
    let fused = specs.iter().filter(|(r, ..)| matches!(r.anchor, RegionAnchor::Attention(_))).count() as u32;
    let mut regions = Vec::new();
    let mut per_layer: BTreeMap<u32, u32> = BTreeMap::new();
    let (mut weights, mut activations) = (Dim::zero(), Dim::zero());
    let mut counted: HashSet<ValueId> = HashSet::new();
    let mut moved: HashMap<&str, (Dim, Dim)> = HashMap::new();
    let mut joined: HashSet<RowStats> = HashSet::new();
    for (id, (r, spec, kernel)) in specs.iter().enumerate() {
        let members = in_order(graph, r.members().into_iter().filter(|v| is_launch(graph, *v)).collect());
        let before =
            members.iter().filter(|v| counted.insert(**v)).fold(Dim::zero(), |s, v| s + alone(graph, *v, bounds));
        let (w, a) = moved.entry(kernel).or_insert_with(|| traffic::moved(spec, bounds)).clone();
        let mut origins: Vec<String> =
            members.iter().map(|v| graph.node(*v).origin.clone()).filter(|o| !o.is_empty()).collect();
        origins.sort();
        origins.dedup();
        if let Some(l) = origins.iter().find_map(|o| layer_of(o)) {
            *per_layer.entry(l).or_default() += 1;
        }
        // Forwarded statistics, and rows times a gain, are what the operation behind costs, not what makes its rows.
        let gained = |n: &ValueId| graph.ty(*n).bytes();
        let written = r.forwards.map_or_else(Dim::zero, |s| s.len(graph) * Dim::constant(4));
        let written = r.gained.iter().fold(written, |sum, n| sum + gained(n));
        let owed = match &r.anchor {
            RegionAnchor::MatMul(g) => g.stats,
            _ => r.tiles,
        };
        let owed = owed.filter(|s| joined.insert(*s));
        let owed = owed.map_or_else(Dim::zero, |s| s.len(graph) * Dim::constant(4));
        let owed = match &r.anchor {
            RegionAnchor::MatMul(g) => owed + gained_by(graph, g).map_or_else(Dim::zero, |n| gained(&n)),
            _ => owed,
        };
        let class = match &r.anchor {
            RegionAnchor::MatMul(g) if g.norm.is_some() || spec.columns.is_some() => ProofClass::Reassoc,
            RegionAnchor::Chain(_) | RegionAnchor::ConvChain(_) => ProofClass::Reassoc,
            _ if members.iter().any(|v| matches!(graph.op(*v), Op::MergeParts { .. })) => ProofClass::Reassoc,
            _ => ProofClass::Bit,
        };
        regions.push(RegionReport {
            id: id as u32,
            kind: r.kind().into(),
            kernel: (*kernel).into(),
            ops: members.iter().map(|v| graph.op(*v).name()).collect(),
            origins,
            saved_bytes: before - a.clone() + written - owed,
            saved_launches: (members.len() as u32).saturating_sub(1),
            bindings: spec.bindings() as u32,
            class: class.name().into(),
            weight_bytes: w.clone(),
            activation_bytes: a.clone(),
            flops: cost::flops(spec),
            norm: norm_form(r).unwrap_or_default().into(),
        });
        weights = weights + w;
        activations = activations + a;
    }
    let refused = refused.iter().map(|r: &Refused| RefusedEdge {
        from: describe(graph, r.from),
        to: describe(graph, r.to),
        code: r.code.code().into(),
        detail: r.detail.clone(),
        remedy: r.code.remedy().into(),
    });
    let layers: Vec<u32> = per_layer.values().copied().collect();
    PhaseReport {
        program: program.into(),
        dispatches: specs.len() as u32,
        dispatches_per_layer: layers.get(layers.len() / 2).copied().unwrap_or(0),
        unfused_dispatches: launches.len() as u32,
        instances: 0,
        work: 0,
        exact: frit_plan::ExactSearch::default(),
        in_place: Vec::new(),
        attention: AttentionCount { blocks, fused },
        regions,
        refused: refused.collect(),
        ledger: Ledger {
            activations_unfused: launches.iter().fold(Dim::zero(), |s, v| s + alone(graph, *v, bounds)),
            activations_fused: activations.clone(),
            total: weights.clone() + activations,
            weights,
        },
    }
}
