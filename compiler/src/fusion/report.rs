//! Fills the fusion report: what each region saves, what was refused and why, and the ledger of bytes.

use super::partition::is_anchor;
use super::{Refused, Region, RegionAnchor};
use crate::graph::{Graph, Op, ValueId};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, KernelSpec, Space};
use frit_plan::{AttentionCount, Ledger, PhaseReport, RefusedEdge, RegionReport};
use std::collections::{BTreeMap, HashSet};

/// Whether the operation would be a kernel if nothing were fused: views, sources and integer arithmetic would not.
pub fn is_launch(graph: &Graph, v: ValueId) -> bool {
    let op = graph.op(v);
    let small = graph.ty(v).scalar != Scalar::F32 && !is_anchor(op);
    !op.is_source() && !op.is_view() && !small
}

/// Bytes an operation moves by itself: every operand once, the result once. Weights are counted apart.
fn alone(graph: &Graph, v: ValueId) -> Dim {
    let ops = graph.operands(v);
    let reads = ops.iter().filter(|o| !matches!(graph.op(**o), Op::Weight(_) | Op::Const(_)));
    let result = match graph.op(v) {
        Op::KvAppend { .. } => ops.first().map_or_else(Dim::zero, |o| graph.ty(*o).bytes()),
        _ => graph.ty(v).bytes(),
    };
    reads.fold(result, |s, o| s + graph.ty(*o).bytes())
}

/// Weight bytes a kernel reads; a gather reads the rows it takes.
pub fn weight_bytes(spec: &KernelSpec) -> Dim {
    let args = spec.args.iter().filter(|a| a.space == Space::Weight);
    args.fold(Dim::zero(), |s, a| {
        let elems = match spec.anchor {
            Anchor::MatMul { .. } => a.len.clone(),
            _ => a.len.smaller(&product(&spec.domain)),
        };
        s + (elems * Dim::from(a.storage.block_bytes())).div(&Dim::from(a.storage.block_elems()))
    })
}

/// Activation and cache bytes a kernel reads and writes, each argument once.
pub fn activation_bytes(spec: &KernelSpec) -> Dim {
    let four = Dim::constant(4);
    let mut sum = Dim::zero();
    for (i, a) in spec.args.iter().enumerate() {
        let stores = spec.stores.iter().filter(|s| s.arg.0 as usize == i).count();
        match (a.space, &spec.anchor) {
            (Space::Weight | Space::Side, _) => {}
            (Space::Kv(_), Anchor::Attention(at)) => {
                let heads = spec.domain.get(1).cloned().unwrap_or_default().div(&Dim::from(at.group));
                let batch = spec.domain.first().cloned().unwrap_or_default();
                let dim = if a.name.starts_with("cache_k") { at.head_dim } else { at.value_dim };
                sum = sum + &(&(&batch * &heads) * &at.kv_len) * &(Dim::from(dim) * four.clone());
            }
            (Space::Kv(_), _) => {
                let mut one = Dim::zero();
                for s in spec.stores.iter().filter(|s| s.arg.0 as usize == i) {
                    let mut elems = product(&spec.domain);
                    if let Some(w) = &s.when {
                        let width = spec.domain.get(w.axis as usize).cloned().unwrap_or_else(Dim::one);
                        elems = &elems.div(&width) * &(w.hi.clone() - w.lo.clone());
                    }
                    one = one + elems;
                }
                sum = sum + one * four.clone();
            }
            _ => {
                let read = !a.written
                    || spec
                        .exprs
                        .iter()
                        .any(|(_, e)| matches!(e, frit_kernels::spec::Expr::Load { arg, .. } if arg.0 as usize == i));
                let left = spec.left.as_ref().is_some_and(|l| l.arg.0 as usize == i);
                let times = u64::from(read) + u64::from(stores > 0 || left);
                sum = sum + a.len.clone() * Dim::from(times) * four.clone();
            }
        }
    }
    sum
}

fn describe(graph: &Graph, v: ValueId) -> String {
    let n = graph.node(v);
    if n.origin.is_empty() { n.op.name() } else { format!("{} ({})", n.op.name(), n.origin) }
}

/// The layer number in an origin such as `layers.3.mlp`, `h.3.attn` or `encoder.layer.3`.
pub fn layer_of(origin: &str) -> Option<u32> {
    origin.split(['.', '/']).find_map(|p| p.parse().ok())
}

/// The report of one program.
pub fn phase(program: &str, graph: &Graph, refused: &[Refused], specs: &[(&Region, &KernelSpec, &str)]) -> PhaseReport {
    let order = graph.order();
    let launches: Vec<ValueId> = order.iter().copied().filter(|v| is_launch(graph, *v)).collect();
    let blocks = order.iter().filter(|v| matches!(graph.op(**v), Op::Attention(_))).count() as u32;
    let fused = specs.iter().filter(|(r, ..)| matches!(r.anchor, RegionAnchor::Attention(_))).count() as u32;
    let mut regions = Vec::new();
    let mut per_layer: BTreeMap<u32, u32> = BTreeMap::new();
    let (mut weights, mut activations) = (Dim::zero(), Dim::zero());
    let mut counted: HashSet<ValueId> = HashSet::new();
    for (id, (r, spec, kernel)) in specs.iter().enumerate() {
        let members: Vec<ValueId> = r.members().into_iter().filter(|v| is_launch(graph, *v)).collect();
        let before = members.iter().filter(|v| counted.insert(**v)).fold(Dim::zero(), |s, v| s + alone(graph, *v));
        let (w, a) = (weight_bytes(spec), activation_bytes(spec));
        let mut origins: Vec<String> =
            members.iter().map(|v| graph.node(*v).origin.clone()).filter(|o| !o.is_empty()).collect();
        origins.sort();
        origins.dedup();
        if let Some(l) = origins.iter().find_map(|o| layer_of(o)) {
            *per_layer.entry(l).or_default() += 1;
        }
        let reassociates = matches!(&r.anchor, RegionAnchor::Attention(_))
            || matches!(&r.anchor, RegionAnchor::MatMul(g) if g.norm.is_some());
        regions.push(RegionReport {
            id: id as u32,
            kind: r.kind().into(),
            kernel: (*kernel).into(),
            ops: members.iter().map(|v| graph.op(*v).name()).collect(),
            origins,
            saved_bytes: before - a.clone(),
            saved_launches: (members.len() as u32).saturating_sub(1),
            bindings: spec.bindings() as u32,
            class: if reassociates { "REASSOC" } else { "BIT" }.into(),
            weight_bytes: w.clone(),
            activation_bytes: a.clone(),
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
        attention: AttentionCount { blocks, fused },
        regions,
        refused: refused.collect(),
        ledger: Ledger {
            activations_unfused: launches.iter().fold(Dim::zero(), |s, v| s + alone(graph, *v)),
            activations_fused: activations.clone(),
            total: weights.clone() + activations,
            weights,
        },
    }
}
