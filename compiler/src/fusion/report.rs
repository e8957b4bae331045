//! Fills the fusion report: what each region saves, what was refused and why, and the ledger of bytes.

use super::cost;
use super::drawing::{self, Told};
use super::layers;
use super::partition::is_anchor;
use super::spec_builder::size_bounds;
use super::traffic::{self, visible_keys};
use super::{MatMulGroup, Refusal, Refused, Region, RegionAnchor, RowStats};
use crate::graph::{Graph, Op, Tables, ValueId};
use crate::numeric::ProofClass;
use crate::passes::recognize::{LeftAttention, left_attention, missed};
use frit_kernels::dim::{Bounds, Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::KernelSpec;
use frit_plan::{
    AppliedRewrite, AttentionCount, Condition, LayerCount, Ledger, PhaseReport, RefusedEdge, RegionReport,
};
use std::collections::{BTreeSet, HashMap, HashSet};

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
    let mut leaves: Vec<Leaf> = Vec::new();
    for (port, o) in ops.iter().enumerate() {
        let first = leaves.len();
        operand_leaves(graph, *o, None, &mut leaves);
        if let (Some((a, _)), 1 | 2, [q, k, ..]) = (graph.op(v).attention(), port, ops.as_slice()) {
            let queries = graph.ty(*q).shape.get(2).cloned().unwrap_or_else(Dim::one);
            let keys = graph.ty(*k).shape.get(2).cloned().unwrap_or_else(Dim::one);
            let (lo, hi) = visible_keys(&queries, &keys, a.causal.as_ref(), a.window, bounds);
            let shape = graph.ty(*o).shape.iter().enumerate();
            let seen: Vec<Dim> = shape.map(|(i, d)| if i == 2 { hi.clone() - lo.clone() } else { d.clone() }).collect();
            leaves.iter_mut().skip(first).take(1).for_each(|l| l.bytes = product(&seen) * Dim::constant(4));
        }
    }
    leaves.sort();
    leaves.dedup();
    let whole: HashSet<ValueId> = leaves.iter().filter(|l| l.at.is_empty()).map(|l| l.value).collect();
    leaves.retain(|l| l.at.is_empty() || !whole.contains(&l.value));
    let result = match graph.op(v) {
        Op::KvAppend { .. } => ops.first().map_or_else(Dim::zero, |o| graph.ty(*o).bytes()),
        _ => graph.ty(v).bytes(),
    };
    leaves.into_iter().fold(result, |s, l| s + l.bytes)
}

/// What an operand reads of a value in memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Leaf {
    value: ValueId,
    /// Axes and starts of the slices on the way; none: the whole.
    at: Vec<(usize, Dim)>,
    bytes: Dim,
}

/// The values in memory that an operand is made of; `part` holds the slices that views pick, and the bytes of the last one.
fn operand_leaves(graph: &Graph, o: ValueId, part: Option<(&[(usize, Dim)], &Dim)>, out: &mut Vec<Leaf>) {
    let op = graph.op(o);
    let stored = matches!(op, Op::Input(_) | Op::State(_) | Op::KvLoad { .. }) || is_launch(graph, o);
    let below = |part, out: &mut Vec<Leaf>| {
        graph.operands(o).into_iter().for_each(|x| operand_leaves(graph, x, part, out));
    };
    match op {
        Op::Weight(_) | Op::Const(_) | Op::Iota { .. } => {}
        _ if stored => {
            let (at, bytes) = part.map_or_else(|| (Vec::new(), graph.ty(o).bytes()), |p| (p.0.to_vec(), p.1.clone()));
            out.push(Leaf { value: o, at, bytes });
        }
        Op::Slice { axis, start, .. } => {
            let own = graph.ty(o).bytes();
            let (outer, bytes) = part.unwrap_or((&[], &own));
            let at = [outer, &[(*axis, start.clone())]].concat();
            below(Some((&at, bytes)), out);
        }
        Op::Reshape(_) | Op::Transpose(_) => below(part, out),
        _ => below(None, out),
    }
}

pub(super) fn describe(graph: &Graph, v: ValueId) -> String {
    let n = graph.node(v);
    if n.origin.is_empty() { n.op.name() } else { format!("{} ({})", n.op.name(), n.origin) }
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

/// What a kernel that makes rows hands over to region `r`, which computes the reduction `v` of them.
fn handed_over(r: &Region, v: ValueId) -> Option<&'static str> {
    match &r.anchor {
        RegionAnchor::Row(a) if *a == v && r.tiles.is_some() => {
            Some("the largest of each tile is written, and read instead of the row")
        }
        RegionAnchor::MatMul(g) if g.norm == Some(v) && g.stats.is_some() => {
            Some("the statistics of each tile are written, and read instead of the row")
        }
        _ => None,
    }
}

/// The edge that keeps attention from being one kernel.
fn used_probabilities(graph: &Graph) -> impl Fn(&LeftAttention) -> Refused {
    move |l: &LeftAttention| {
        let ty = graph.ty(l.probabilities);
        let detail = format!("{ty} is read elsewhere or leaves the graph, {} B", ty.bytes());
        Refused { from: l.probabilities, to: l.product, code: Refusal::Probs, detail }
    }
}

/// What keeps operations from being the one that they look like.
fn misshapen(graph: &Graph) -> impl Fn((ValueId, String)) -> Refused {
    move |(v, condition)| {
        let operands = graph.operands(v);
        let made = operands.iter().find(|o| !graph.op(**o).is_source()).or(operands.first());
        let detail = format!("{}: {condition}", graph.ty(v));
        Refused { from: made.copied().unwrap_or(v), to: v, code: Refusal::Shape, detail }
    }
}

/// Of `stored`, what a region writes, or its `members` read through nothing but views and integer arithmetic.
fn touches(graph: &Graph, r: &Region, members: &[ValueId], stored: &HashSet<ValueId>) -> BTreeSet<ValueId> {
    let mut found: BTreeSet<ValueId> = r.outputs.iter().copied().filter(|v| stored.contains(v)).collect();
    let mut seen: HashSet<ValueId> = HashSet::new();
    let mut stack: Vec<ValueId> = members.iter().flat_map(|v| graph.operands(*v)).collect();
    while let Some(o) = stack.pop() {
        if stored.contains(&o) {
            found.insert(o);
        } else if !is_launch(graph, o) && seen.insert(o) {
            stack.extend(graph.operands(o));
        }
    }
    found
}

/// Rewrites that change numbers and made operations of a region.
fn rewrites(graph: &Graph, r: &Region) -> Vec<AppliedRewrite> {
    let members = r.members();
    let marks = members.iter().flat_map(|v| &graph.node(*v).rewrites);
    let applied = marks.map(|(rule, class)| AppliedRewrite { rule: (*rule).into(), class: class.name().into() });
    applied.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The report of one program. `asked` answers for every condition of an edge, of edges that someone asked about.
pub fn phase(
    program: &str,
    graph: &Graph,
    tables: &Tables,
    refused: &[Refused],
    specs: &[(&Region, &KernelSpec, &str)],
    asked: &dyn Fn(&Refused) -> Vec<Condition>,
) -> PhaseReport {
    let bounds = &size_bounds(tables);
    let order = graph.order();
    let launches: Vec<ValueId> = order.iter().copied().filter(|v| is_launch(graph, *v)).collect();
    let left = left_attention(graph, tables);
    let blocks = left.len() as u32 + order.iter().filter(|v| graph.op(**v).attention().is_some()).count() as u32;
    let fused = specs.iter().filter(|(r, ..)| matches!(r.anchor, RegionAnchor::Attention(_))).count() as u32;
    let outputs = specs.iter().flat_map(|(r, ..)| &r.outputs).copied();
    let stored: HashSet<ValueId> = outputs.filter(|v| !is_launch(graph, *v)).collect();
    let mut regions = Vec::new();
    let mut told_of: Vec<Vec<ValueId>> = Vec::with_capacity(specs.len());
    let layers = layers::of_regions(graph, &specs.iter().map(|s| s.0).collect::<Vec<_>>());
    let (mut weights, mut activations) = (Dim::zero(), Dim::zero());
    let mut counted: HashSet<ValueId> = HashSet::new();
    let mut moved: HashMap<&str, (Dim, Dim)> = HashMap::new();
    let mut joined: HashSet<RowStats> = HashSet::new();
    for (id, (r, spec, kernel)) in specs.iter().enumerate() {
        let members = in_order(graph, r.members().into_iter().filter(|v| is_launch(graph, *v)).collect());
        let new: Vec<ValueId> = members.iter().copied().filter(|v| counted.insert(*v)).collect();
        let before = new.iter().fold(Dim::zero(), |s, v| s + alone(graph, *v, bounds));
        let (w, a) = moved.entry(kernel).or_insert_with(|| traffic::moved(spec, bounds)).clone();
        // Views that are stored, and integer arithmetic, are no launches of the unfused graph.
        let told = if members.is_empty() { in_order(graph, r.members()) } else { members.clone() };
        let is_copy = told.iter().all(|v| graph.op(*v).is_view());
        let mut origins: Vec<String> =
            told.iter().map(|v| graph.node(*v).origin.clone()).filter(|o| !o.is_empty()).collect();
        origins.sort();
        origins.dedup();
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
            kind: match (members.is_empty(), is_copy) {
                (true, true) => "copy",
                (true, false) => "index",
                _ => r.kind(),
            }
            .into(),
            kernel: (*kernel).into(),
            ops: told.iter().map(|v| graph.op(*v).name()).collect(),
            origins,
            copies: touches(graph, r, &told, &stored).into_iter().map(|v| describe(graph, v)).collect(),
            saved_bytes: before - a.clone() + written - owed,
            saved_launches: new.len() as i32 - 1,
            bindings: spec.bindings() as u32,
            class: class.name().into(),
            rewrites: rewrites(graph, r),
            weight_bytes: w.clone(),
            activation_bytes: a.clone(),
            flops: cost::flops(spec),
            norm: norm_form(r).unwrap_or_default().into(),
        });
        told_of.push(told);
        weights = weights + w;
        activations = activations + a;
    }
    let refused: Vec<Refused> = refused
        .iter()
        .cloned()
        .chain(left.iter().filter(|l| l.probabilities_used).map(used_probabilities(graph)))
        .chain(missed(graph, tables).into_iter().map(misshapen(graph)))
        .collect();
    let told: Vec<Told<'_>> = specs
        .iter()
        .zip(&told_of)
        .zip(&layers)
        .map(|(((_, _, kernel), ops), layer)| Told { layer: layer.as_deref(), kernel, ops })
        .collect();
    let drawing = drawing::of(graph, &told, &refused);
    let refused = refused.into_iter().map(|r| {
        let handed = specs.iter().find_map(|(region, ..)| handed_over(region, r.to));
        RefusedEdge {
            from: describe(graph, r.from),
            to: describe(graph, r.to),
            code: r.code.code().into(),
            remedy: r.code.remedy_of(graph.op(r.from), graph.op(r.to), &r.detail).into(),
            conditions: asked(&r),
            detail: match handed.filter(|_| r.code == Refusal::RowTile) {
                Some(done) => format!("{}; done instead: {done}", r.detail),
                None => r.detail,
            },
        }
    });
    let mut per_layer: Vec<LayerCount> = Vec::new();
    for layer in layers.iter().flatten() {
        match per_layer.iter_mut().find(|l| l.layer == *layer) {
            Some(l) => l.dispatches += 1,
            None => per_layer.push(LayerCount { layer: layer.clone(), dispatches: 1 }),
        }
    }
    PhaseReport {
        program: program.into(),
        dispatches: specs.len() as u32,
        dispatches_per_layer: per_layer.iter().map(|l| l.dispatches).max().unwrap_or(0),
        outside_layers: layers.iter().filter(|l| l.is_none()).count() as u32,
        layers: per_layer,
        unfused_dispatches: launches.len() as u32,
        instances: 0,
        work: 0,
        exact: frit_plan::ExactSearch::default(),
        in_place: Vec::new(),
        attention: AttentionCount { blocks, fused },
        regions,
        refused: refused.collect(),
        crossovers: Vec::new(),
        drawing,
        ledger: Ledger {
            activations_unfused: launches.iter().fold(Dim::zero(), |s, v| s + alone(graph, *v, bounds)),
            activations_fused: activations.clone(),
            total: weights.clone() + activations,
            weights,
        },
    }
}
