//! Alias contracts: which outputs of a kernel may lie where one of its inputs lies.

use frit_kernels::dim::Dim;
use frit_kernels::spec::{Alias, AliasKind, Anchor, ArgId, Expr, ExprId, KernelSpec, Space, Stat};

/// The pairs of a written and a read argument that may share storage:
///
/// - [`AliasKind::SameElement`]: every load of the input feeds a store to the output at the same index, and no other
///   store; the invocation that reads an element is the one that writes it, afterwards.
/// - [`AliasKind::SameRow`]: row kernels read whole rows for their statistics before they store; each row is read where it
///   is written.
///
/// Both need arguments of equal length in the float arena. What a matmul or attention reads for its accumulators is read
/// by several workgroups and never shared.
pub fn contracts(spec: &KernelSpec) -> Vec<Alias> {
    let mut out = Vec::new();
    let args = || spec.args.iter().enumerate().map(|(i, a)| (ArgId(i as u16), a));
    for (output, o) in args().filter(|(_, a)| a.written && a.space == Space::Arena) {
        for (input, i) in args().filter(|(_, a)| !a.written && a.space == Space::Arena) {
            if o.len == i.len
                && o.storage == i.storage
                && let Some(kind) = contract(spec, output, input)
            {
                out.push(Alias { output, input, kind });
            }
        }
    }
    out
}

fn contract(spec: &KernelSpec, output: ArgId, input: ArgId) -> Option<AliasKind> {
    let mut apart = spec.left.iter().map(|l| l.arg).chain(spec.partials.as_ref().map(|p| p.arg));
    if apart.any(|arg| arg == output) {
        return None;
    }
    let (mut read, mut by_rows) = (false, false);
    let mut places: Vec<&Dim> = Vec::new();
    for s in &spec.stores {
        let own: Vec<&Dim> = loads(spec, &[s.value], input).collect();
        if own.is_empty() {
            continue;
        }
        read = true;
        if s.arg != output || s.per_row || own.iter().any(|index| **index != s.index) {
            return None;
        }
        places.push(&s.index);
    }
    for index in loads(spec, &reduced(spec), input) {
        if !matches!(spec.anchor, Anchor::Row { .. }) || !places.contains(&index) {
            return None;
        }
        by_rows = true;
    }
    read.then_some(if by_rows { AliasKind::SameRow } else { AliasKind::SameElement })
}

fn loads<'s>(spec: &'s KernelSpec, roots: &[ExprId], of: ArgId) -> impl Iterator<Item = &'s Dim> {
    spec.exprs.reachable(roots).into_iter().filter_map(move |e| match spec.exprs.get(e) {
        Expr::Load { arg, index } if *arg == of => Some(index),
        _ => None,
    })
}

/// What is read before any store, by all invocations of a workgroup together.
fn reduced(spec: &KernelSpec) -> Vec<ExprId> {
    let stats = |s: &[Stat]| s.iter().flat_map(|s| [Some(s.value), s.finish]).flatten().collect::<Vec<_>>();
    match &spec.anchor {
        Anchor::Map => Vec::new(),
        Anchor::Row { stats: s } => stats(s),
        Anchor::MatMul { lhs, lhs_stats, rhs, .. } => {
            stats(lhs_stats).into_iter().chain([*lhs]).chain(rhs.iter().copied()).collect()
        }
        Anchor::Chain(c) => {
            stats(&c.lhs_stats).into_iter().chain([c.lhs, c.middle, c.down]).chain(c.up.iter().copied()).collect()
        }
        Anchor::ConvChain(c) => c.roots().to_vec(),
        Anchor::Attention(a) => [a.q, a.k, a.v].into_iter().chain(a.mask).chain(a.bias).collect(),
    }
}
