//! What must hold of a [`KernelSpec`] before anything is made of it. An artifact's kernels are checked again on load.

use super::{
    Anchor, ArgId, BinaryOp, ColumnStats, Expr, ExprId, FEW_PARTIAL_COLUMNS, KernelSpec, MOST_COUNTED, PARTIAL_COLUMNS,
    PartialKind, ReduceOp, Space, Stat, UnaryOp,
};
use crate::dim::{Dim, Sym};
use crate::dtype::{Scalar, Storage};

/// A broken rule of a [`KernelSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}`: {fault}")]
pub struct SpecError {
    /// The kernel's name.
    pub kernel: String,
    /// What is wrong.
    pub fault: String,
}

struct Check<'a> {
    spec: &'a KernelSpec,
}

pub(super) fn verify(spec: &KernelSpec) -> Result<(), SpecError> {
    let c = Check { spec };
    c.all().map_err(|fault| SpecError { kernel: spec.name.clone(), fault })
}

fn ensure(ok: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(fault()) }
}

impl Check<'_> {
    fn all(&self) -> Result<(), String> {
        let s = self.spec;
        let identifier = |n: &str| {
            n.chars().enumerate().all(|(i, c)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit()))
                && !n.is_empty()
        };
        ensure(identifier(&s.name), || "the kernel's name is no identifier".into())?;
        for (i, a) in s.args.iter().enumerate() {
            ensure(identifier(&a.name), || format!("argument {i} has the name `{}`", a.name))?;
            ensure(s.args.iter().filter(|b| b.name == a.name).count() == 1, || {
                format!("two arguments are named `{}`", a.name)
            })?;
            self.dim(&a.len, 0)?;
            if let Some(format) = a.rounded {
                ensure(a.space == Space::Arena && a.storage == Storage::F32, || {
                    let (name, storage, format) = (&a.name, a.storage, format.name());
                    format!("`{name}` of {storage} in {:?} is said to be rounded to {format}", a.space)
                })?;
                let id = ArgId(i as u16);
                let shares = s.aliases.iter().any(|al| al.output == id || al.input == id);
                let read = s.exprs.iter().any(|(_, e)| matches!(e, Expr::Load { arg, .. } if *arg == id));
                ensure(!(shares || a.written && read), || format!("`{}` is rounded and shares storage", a.name))?;
            }
        }
        for d in &s.domain {
            self.dim(d, 0)?;
        }
        let (axes, accs) = match &s.anchor {
            Anchor::Map => (s.domain.len(), 0),
            Anchor::Row { .. } => {
                ensure(!s.domain.is_empty(), || "a row kernel needs a reduced axis".into())?;
                (s.domain.len(), 0)
            }
            Anchor::MatMul { rhs, .. } => {
                ensure(s.domain.len() >= 2, || "a matmul needs the axes M and N".into())?;
                ensure((1..=4).contains(&rhs.len()), || "a matmul has 1 to 4 accumulators".into())?;
                (s.domain.len() + 1, rhs.len())
            }
            Anchor::Chain(c) => {
                ensure(s.domain.len() >= 2, || "a chain needs the axes M and N".into())?;
                ensure((1..=4).contains(&c.up.len()), || "a chain has 1 to 4 accumulators".into())?;
                (s.domain.len() + 2, c.up.len())
            }
            Anchor::ConvChain(_) => {
                ensure(s.domain.len() == 4, || "convolutions in a row iterate over 4 axes".into())?;
                (9, 1)
            }
            Anchor::Attention(_) => {
                ensure(s.domain.len() == 4, || "attention iterates over 4 axes".into())?;
                (6, 1)
            }
        };
        for (id, e) in s.exprs.iter() {
            self.expr(id, e, axes, accs)?;
        }
        match &s.anchor {
            Anchor::Map => {}
            Anchor::Row { stats } => self.stats(stats, 0)?,
            Anchor::MatMul { k, lhs, lhs_stats, rhs } => {
                self.dim(k, 0)?;
                self.stats(lhs_stats, 0)?;
                for e in rhs.iter().chain([lhs]) {
                    self.typed(*e, Scalar::F32, "operand of a matmul")?;
                }
            }
            Anchor::Chain(c) => {
                self.dim(&c.k, 0)?;
                self.dim(&c.inner, 0)?;
                self.stats(&c.lhs_stats, 0)?;
                for e in c.up.iter().chain([&c.lhs, &c.middle, &c.down]) {
                    self.typed(*e, Scalar::F32, "operand of a chain")?;
                }
            }
            Anchor::ConvChain(c) => {
                self.dim(&c.k, 0)?;
                for e in c.roots() {
                    self.typed(e, Scalar::F32, "operand of convolutions in a row")?;
                }
                for (w, places) in c.windows.iter().zip(s.domain.iter().skip(1)) {
                    let some =
                        [w.extent, w.places, w.taps, w.stride, w.dilation].iter().all(|n| (1..=1 << 30).contains(n));
                    ensure(some && w.before <= 1 << 30, || format!("windows of {w:?}"))?;
                    ensure(*places == Dim::from(w.places), || format!("{} windows along {places}", w.places))?;
                }
                let depth = c.windows.iter().try_fold(c.channels, |n, w| n.checked_mul(w.taps));
                ensure(depth.is_some_and(|n| (1..=1 << 31).contains(&n)), || format!("sums of {depth:?} products"))?;
            }
            Anchor::Attention(a) => {
                for e in [a.q, a.k, a.v].into_iter().chain(a.bias) {
                    self.typed(e, Scalar::F32, "operand of attention")?;
                }
                if let Some(m) = a.mask {
                    self.typed(m, Scalar::Bool, "attention mask")?;
                }
                ensure(a.group > 0 && a.head_dim > 0 && a.value_dim > 0, || "attention with an empty head".into())?;
                self.dim(&a.kv_len, 0)?;
                if let Some(p) = &a.parts {
                    ensure(p.count > 0, || "attention in no parts".into())?;
                    self.dim(&p.first, 0)?;
                    self.dim(&p.len, 0)?;
                }
            }
        }
        ensure(!s.stores.is_empty(), || "no store".into())?;
        for st in &s.stores {
            let a = s.arg(st.arg).ok_or_else(|| format!("store to argument {}", st.arg.0))?;
            ensure(a.written, || format!("store to `{}`, which is not declared written", a.name))?;
            self.typed(st.value, a.storage.scalar(), &format!("store to `{}`", a.name))?;
            let own = s.domain.len() - usize::from(st.per_row && !s.domain.is_empty());
            self.dim(&st.index, own)?;
            if let Some(w) = &st.when {
                ensure((w.axis as usize) < s.domain.len(), || format!("range of axis {}", w.axis))?;
                self.dim(&w.lo, 0)?;
                self.dim(&w.hi, 0)?;
            }
        }
        for l in &s.left {
            ensure(matches!(s.anchor, Anchor::MatMul { .. }), || "a left side without a matmul".into())?;
            let a = s.arg(l.arg).ok_or_else(|| format!("store to argument {}", l.arg.0))?;
            ensure(a.written && a.storage.scalar() == Scalar::F32, || format!("the left side goes to `{}`", a.name))?;
            self.typed(l.value, Scalar::F32, &format!("store of the left side to `{}`", a.name))?;
            self.dim(&l.index, axes)?;
            let n = s.domain.len().saturating_sub(1);
            ensure(!l.index.mentions(&Sym::Axis(n as u8)), || "the left side is written by column".into())?;
            let read = s.exprs.iter().any(|(_, e)| matches!(e, Expr::Load { arg, .. } if *arg == l.arg));
            ensure(!read, || format!("`{}` is read and written as the left side", a.name))?;
        }
        if let Some(c) = &s.columns {
            self.columns(c)?;
        }
        if let Some(over) = &s.stats_over {
            ensure(matches!(s.anchor, Anchor::MatMul { .. }), || "statistics of a left side without a matmul".into())?;
            self.dim(over, 0)?;
        }
        if let Some(p) = &s.partials {
            ensure(matches!(s.anchor, Anchor::MatMul { .. }), || "statistics of tiles without a matmul".into())?;
            let a = s.arg(p.arg).ok_or_else(|| format!("store to argument {}", p.arg.0))?;
            ensure(a.written && a.storage.scalar() == Scalar::F32, || format!("statistics go to `{}`", a.name))?;
            self.dim(&p.index, s.domain.len())?;
            let widths = [PARTIAL_COLUMNS, FEW_PARTIAL_COLUMNS];
            ensure(widths.contains(&p.columns), || format!("tiles of {} columns", p.columns))?;
            let counted = s.domain.last().and_then(|n| n.as_const()).is_some_and(|n| n <= MOST_COUNTED);
            ensure(p.kind != PartialKind::Largest || counted, || "columns that a float does not count".into())?;
            let whole = s.stores.iter().any(|st| st.value == p.value && st.when.is_none());
            ensure(whole, || "statistics of tiles of what no store writes in every column".into())?;
            let read = s.exprs.iter().any(|(_, e)| matches!(e, Expr::Load { arg, .. } if *arg == p.arg));
            ensure(!read, || format!("`{}` is read and written as statistics", a.name))?;
        }
        ensure(s.precision.is_auto() || matches!(s.anchor, Anchor::MatMul { .. }), || {
            "a precision of products without a matmul".into()
        })?;
        for al in &s.aliases {
            let (o, i) = (s.arg(al.output), s.arg(al.input));
            ensure(o.is_some_and(|a| a.written) && i.is_some(), || "alias of unknown arguments".into())?;
        }
        Ok(())
    }
    /// Columns are reduced in a workgroup's own memory: their statistics read nothing else.
    fn columns(&self, c: &ColumnStats) -> Result<(), String> {
        let s = self.spec;
        ensure(matches!(s.anchor, Anchor::MatMul { .. }), || "statistics of columns without a matmul".into())?;
        ensure(s.partials.is_none(), || "statistics of columns beside those of tiles".into())?;
        let whole = s.domain.last().and_then(|n| n.as_const()).is_some_and(|n| n % c.width.max(1) as i64 == 0);
        ensure((1..=ColumnStats::WIDEST).contains(&c.width) && whole, || format!("runs of {} columns", c.width))?;
        self.stats(&c.stats, s.row_stats().len())?;
        for st in &c.stats {
            ensure(st.op != ReduceOp::ArgMax, || "an arg-reduction of columns".into())?;
            let roots: Vec<ExprId> = [Some(st.value), st.finish].into_iter().flatten().collect();
            let read = |e: &ExprId| matches!(s.exprs.get(*e), Expr::Load { .. } | Expr::Coord(_));
            ensure(!s.exprs.reachable(&roots).iter().any(read), || "a statistic of columns reads memory".into())?;
        }
        Ok(())
    }
    /// Statistics that are counted from `first` on.
    fn stats(&self, stats: &[Stat], first: usize) -> Result<(), String> {
        ensure(first + stats.len() <= 8, || "more than 8 statistics".into())?;
        for (i, st) in stats.iter().enumerate().map(|(i, st)| (first + i, st)) {
            self.typed(st.value, Scalar::F32, "reduced value")?;
            if let Some(f) = st.finish {
                self.typed(f, Scalar::F32, "finished statistic")?;
                ensure(st.op != ReduceOp::ArgMax, || "an arg-reduction cannot be finished".into())?;
            }
            for (root, limit) in [(Some(st.value), i), (st.finish, i + 1)] {
                for e in root.iter().flat_map(|r| self.spec.exprs.reachable(&[*r])) {
                    if let Expr::Stat(k) = self.spec.exprs.get(e) {
                        ensure((*k as usize) < limit, || format!("statistic {i} uses statistic {k}"))?;
                    }
                }
            }
        }
        Ok(())
    }
    fn typed(&self, e: ExprId, ty: Scalar, what: &str) -> Result<(), String> {
        ensure((e.0 as usize) < self.spec.exprs.len(), || format!("{what}: expression {} does not exist", e.0))?;
        let found = self.spec.exprs.scalar(e);
        ensure(found == ty, || format!("{what}: {ty} expected, {found} found"))
    }
    fn dim(&self, d: &Dim, axes: usize) -> Result<(), String> {
        let mut fault = None;
        d.visit(&mut |s| match s {
            Sym::Size(n) if !self.spec.sizes.iter().any(|z| *z.name == **n) => {
                fault = Some(format!("the size `{n}` is not declared"));
            }
            Sym::Axis(k) if (*k as usize) >= axes => fault = Some(format!("axis {k} in `{d}`")),
            Sym::Value(v) if self.spec.exprs.scalar(ExprId(*v)) != Scalar::I32 => {
                fault = Some(format!("the value {v} in `{d}` is no integer"));
            }
            _ => {}
        });
        fault.map_or(Ok(()), Err)
    }
    fn expr(&self, id: ExprId, e: &Expr, axes: usize, accs: usize) -> Result<(), String> {
        let x = &self.spec.exprs;
        let found = x.scalar(id);
        let at = |fault: &str| format!("expression {}: {fault}", id.0);
        for o in x.operands(id) {
            ensure(o.0 < id.0, || at("uses a later expression"))?;
        }
        let want = match e {
            Expr::Load { arg, index } => {
                self.dim(index, axes)?;
                let a = self.spec.arg(*arg).ok_or_else(|| at(&format!("argument {} does not exist", arg.0)))?;
                a.storage.scalar()
            }
            Expr::Const(super::Literal::F32(b)) => {
                ensure(f32::from_bits(*b).is_finite(), || at("an infinite literal"))?;
                Scalar::F32
            }
            Expr::Const(l) => l.scalar(),
            Expr::Coord(d) => {
                self.dim(d, axes)?;
                Scalar::I32
            }
            Expr::Unary(op, a) => {
                let t = x.scalar(*a);
                let ok = match op {
                    UnaryOp::Not => t == Scalar::Bool,
                    UnaryOp::Neg | UnaryOp::Abs => t != Scalar::Bool,
                    _ => t == Scalar::F32,
                };
                ensure(ok, || at(&format!("{op:?} of {t}")))?;
                t
            }
            Expr::Binary(op, a, b) => {
                let (t, u) = (x.scalar(*a), x.scalar(*b));
                let logical = matches!(op, BinaryOp::And | BinaryOp::Or);
                let ok = t == u && (logical == (t == Scalar::Bool) || *op == BinaryOp::Eq);
                ensure(ok && (*op != BinaryOp::Pow || t == Scalar::F32), || at(&format!("{op:?} of {t} and {u}")))?;
                if op.is_comparison() { Scalar::Bool } else { t }
            }
            Expr::Select { cond, t, f } => {
                ensure(x.scalar(*cond) == Scalar::Bool && x.scalar(*t) == x.scalar(*f), || {
                    at("select of mixed types")
                })?;
                x.scalar(*t)
            }
            Expr::Cast(to, _) => *to,
            Expr::Acc(k) => {
                ensure((*k as usize) < accs, || at(&format!("accumulator {k}")))?;
                Scalar::F32
            }
            Expr::Stat(k) => {
                if let Anchor::Attention(a) = &self.spec.anchor {
                    ensure(a.parts.is_some() && *k < 2, || at(&format!("statistic {k}")))?;
                    return ensure(found == Scalar::F32, || at("a statistic of scores is a float"));
                }
                let mut stats = self.spec.row_stats().iter().chain(self.spec.column_stats());
                let st = stats.nth(*k as usize).ok_or_else(|| at(&format!("statistic {k}")))?;
                if st.op == ReduceOp::ArgMax { Scalar::I32 } else { Scalar::F32 }
            }
        };
        ensure(want == found, || at(&format!("{want} expected, {found} declared")))
    }
}
