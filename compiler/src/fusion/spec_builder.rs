//! Expressions of a kernel from values of the graph. A value that lies in memory becomes a load; everything else is
//! expanded at the coordinates where it is needed, down to values in memory.

mod finish;

use super::coords::{self, Coords};
use super::row_stats::RowStats;
use crate::graph::{Graph, KvSlotId, Op, RopeStyle, StateId, Tables, ValueId, WeightId};
use frit_kernels::dim::{Bounds, Dim, Sym, product};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{
    Arg, ArgId, BinaryOp, ColumnStats, Expr, ExprId, Exprs, LeftStore, Literal, Partials, Space, UnaryOp,
};
use frit_plan::{KvPart, sizes};
use std::collections::{HashMap, HashSet};

/// A constant operand: one weight, several along the rows, or some rows of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackedWeight {
    /// One behind the other.
    pub parts: Vec<WeightId>,
    /// Rows `[first, last)` of the whole; `None`: all.
    pub rows: Option<(u64, u64)>,
    /// Bound through the side buffer as F32.
    pub side: bool,
}

/// What a kernel argument stands for in the graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A value in memory.
    Value(ValueId),
    /// A constant.
    Weight(PackedWeight),
    /// Statistics of a value's rows.
    RowStats(RowStats),
    /// What a norm normalises, times the norm's gain.
    Gained(ValueId),
    /// A state.
    State(StateId),
    /// A part of a cache slot.
    Kv(KvSlotId, KvPart),
}

/// A fault while expanding a value: the place and what cannot be expressed.
pub type Fault = String;

/// Builds one [`KernelSpec`].
pub struct SpecBuilder<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Its tables.
    pub tables: &'a Tables,
    /// Values that lie in memory when the kernel runs.
    pub stored: &'a HashSet<ValueId>,
    /// What is known of sizes and of this kernel's axes.
    pub bounds: Bounds,
    /// Expressions so far.
    pub exprs: Exprs,
    /// Values with an expression of their own in this kernel, whatever the coordinates (norm prologues).
    pub computed: HashMap<ValueId, ExprId>,
    /// What is written of a matmul's left side.
    pub left: Vec<LeftStore>,
    /// Statistics of a matmul's left side: those of columns are counted behind them.
    pub row_stats: usize,
    /// Statistics of runs of a matmul's columns.
    pub columns: Option<ColumnStats>,
    /// Tiles from which the statistics of a matmul's left side are joined.
    pub stats_over: Option<Dim>,
    /// Statistics of a matmul's result.
    pub partials: Option<Partials>,
    args: Vec<Arg>,
    operands: Vec<Operand>,
    memo: HashMap<(ValueId, Coords), ExprId>,
}

impl<'a> SpecBuilder<'a> {
    /// A builder whose axes run over `domain`.
    pub fn new(graph: &'a Graph, tables: &'a Tables, stored: &'a HashSet<ValueId>, domain: &[Dim]) -> Self {
        let mut bounds = size_bounds(tables);
        for (k, d) in domain.iter().enumerate() {
            bounds.axis(k, d);
        }
        SpecBuilder {
            graph,
            tables,
            stored,
            bounds,
            exprs: Exprs::default(),
            computed: HashMap::new(),
            left: Vec::new(),
            row_stats: 0,
            columns: None,
            stats_over: None,
            partials: None,
            args: Vec::new(),
            operands: Vec::new(),
            memo: HashMap::new(),
        }
    }
    fn name_arg(&self, base: &str) -> String {
        let mut clean = String::with_capacity(base.len());
        for c in base.chars() {
            let c = if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
            if c != '_' || !clean.ends_with('_') {
                clean.push(c);
            }
        }
        while clean.ends_with('_') {
            clean.pop();
        }
        if !clean.starts_with(|c: char| c.is_ascii_alphabetic()) {
            clean.insert(0, 'x');
        }
        let taken = |n: &str| self.args.iter().any(|a| a.name == n);
        if !taken(&clean) {
            return clean;
        }
        (2..).map(|i| format!("{clean}_{i}")).find(|n| !taken(n)).unwrap_or(clean)
    }
    /// The argument for an operand, added on first use.
    pub fn arg(&mut self, operand: Operand) -> ArgId {
        if let Some(i) = self.operands.iter().position(|o| *o == operand) {
            return ArgId(i as u16);
        }
        let storage_of = |s: Scalar| match s {
            Scalar::F32 => Storage::F32,
            Scalar::I32 => Storage::I32,
            Scalar::Bool => Storage::Bool,
        };
        let (base, space, storage, len) = match &operand {
            Operand::Value(v) => {
                let n = self.graph.node(*v);
                let storage = storage_of(n.ty.scalar);
                let space = if storage == Storage::F32 { Space::Arena } else { Space::Ints };
                (value_name(&n.op), space, storage, n.ty.elems())
            }
            Operand::RowStats(s) => ("row_stats".into(), Space::Arena, Storage::F32, s.len(self.graph)),
            Operand::Gained(n) => ("gained".into(), Space::Arena, Storage::F32, self.graph.ty(*n).elems()),
            Operand::State(s) => {
                let info = self.tables.states.get(s.0 as usize);
                let (name, storage, shape) =
                    info.map_or(("state", Storage::I32, &[][..]), |i| (&i.name, i.storage, &i.shape));
                (name.to_owned(), Space::Ints, storage, product(shape))
            }
            Operand::Kv(slot, part) => {
                let local = self.operands.iter().zip(&self.args).find_map(|(o, a)| match (o, a.space) {
                    (Operand::Kv(s, _), Space::Kv(n)) if s == slot => Some(n),
                    _ => None,
                });
                let used = self.args.iter().filter_map(|a| if let Space::Kv(n) = a.space { Some(n + 1) } else { None });
                let n = local.unwrap_or_else(|| used.max().unwrap_or(0));
                let info = self.tables.kv_slots.get(slot.0 as usize);
                let (heads, dim) =
                    info.map_or((0, 0), |i| (i.heads, if *part == KvPart::K { i.k_dim } else { i.v_dim }));
                let room = info.map_or_else(Dim::one, |i| i.len.clone());
                let len = Dim::size(sizes::BATCH) * room * Dim::from(heads * dim);
                let name = if *part == KvPart::K { "cache_k" } else { "cache_v" };
                (name.into(), Space::Kv(n), Storage::F32, len)
            }
            Operand::Weight(w) => {
                let infos: Vec<_> = w.parts.iter().filter_map(|p| self.tables.weight_info(*p)).collect();
                let names: Vec<String> = infos.iter().map(|i| short_name(i.names.first().map_or("w", |n| n))).collect();
                let storage = if w.side { Storage::F32 } else { infos.first().map_or(Storage::F32, |i| i.storage) };
                let mut len = infos.iter().fold(Dim::zero(), |s, i| s + product(&i.shape));
                if let (Some((lo, hi)), Some(i)) = (w.rows, infos.first()) {
                    len = product(i.shape.iter().skip(1)) * Dim::from(hi - lo);
                }
                (names.join("_"), if w.side { Space::Side } else { Space::Weight }, storage, len)
            }
        };
        let name = self.name_arg(&base);
        self.args.push(Arg { name, space, storage, len, written: false, rounded: None });
        self.operands.push(operand);
        ArgId(self.args.len() as u16 - 1)
    }
    /// The argument for an operand that the kernel writes.
    pub fn written(&mut self, operand: Operand) -> ArgId {
        let id = self.arg(operand);
        if let Some(a) = self.args.get_mut(id.0 as usize) {
            a.written = true;
        }
        id
    }
    /// Operands so far, one an argument.
    pub fn operands(&self) -> &[Operand] {
        &self.operands
    }
    fn load(&mut self, operand: Operand, index: Dim) -> ExprId {
        let arg = self.arg(operand);
        let scalar = self.args.get(arg.0 as usize).map_or(Scalar::F32, |a| a.storage.scalar());
        let index = index.simplify(&self.bounds);
        self.exprs.add(Expr::Load { arg, index }, scalar)
    }
    /// A load of an argument.
    pub fn load_arg(&mut self, arg: ArgId, index: Dim) -> ExprId {
        let scalar = self.args.get(arg.0 as usize).map_or(Scalar::F32, |a| a.storage.scalar());
        self.exprs.add(Expr::Load { arg, index: index.simplify(&self.bounds) }, scalar)
    }
    /// How a constant is bound when it is no matmul operand: small float vectors through the side buffer.
    pub fn weight_operand(&self, id: WeightId) -> PackedWeight {
        let side = self.tables.weight_info(id).is_some_and(|w| is_side(&w.shape, w.storage));
        PackedWeight { parts: vec![id], rows: None, side }
    }
    /// The index expression of an integer expression, clamped to `[0, extent)`.
    pub fn clamped(&mut self, e: ExprId, extent: &Dim) -> Dim {
        let zero = self.exprs.i32(0);
        let last = self.exprs.coord(extent.clone() - Dim::one());
        let low = self.exprs.binary(BinaryOp::Max, e, zero);
        let v = self.exprs.binary(BinaryOp::Min, low, last);
        self.bounds.set(Sym::Value(v.0), 0, Some(extent.clone() - Dim::one()));
        Dim::value(v.0)
    }
    /// The element of `v` at `at`.
    ///
    /// # Errors
    /// A value that is neither in memory nor a pointwise function of such values.
    pub fn expr_at(&mut self, v: ValueId, at: &[Dim]) -> Result<ExprId, Fault> {
        if let Some(e) = self.computed.get(&v) {
            return Ok(*e);
        }
        let key = (v, at.to_vec());
        if let Some(e) = self.memo.get(&key) {
            return Ok(*e);
        }
        let e = self.expand(v, at)?;
        self.memo.insert(key, e);
        Ok(e)
    }
    fn expand(&mut self, v: ValueId, at: &[Dim]) -> Result<ExprId, Fault> {
        let node = self.graph.node(v);
        if self.stored.contains(&v) && !matches!(node.op, Op::KvAppend { .. } | Op::KvRead { .. } | Op::KvLoad { .. }) {
            return Ok(self.load(Operand::Value(v), coords::linear(at, &node.ty.shape, &self.bounds)));
        }
        self.compute(v, at)
    }
    /// The element of `v` at `at`, computed even if `v` lies in memory: for the kernel that makes it.
    ///
    /// # Errors
    /// As [`SpecBuilder::expr_at`].
    pub fn compute(&mut self, v: ValueId, at: &[Dim]) -> Result<ExprId, Fault> {
        let graph = self.graph;
        let node = graph.node(v);
        let ops = graph.operands(v);
        let shape_of = |k: usize| ops.get(k).map(|o| graph.ty(*o).shape.clone()).unwrap_or_default();
        let bounds = self.bounds.clone();
        match &node.op {
            Op::Input(_) => Ok(self.load(Operand::Value(v), coords::linear(at, &node.ty.shape, &bounds))),
            Op::State(s) => Ok(self.load(Operand::State(*s), coords::linear(at, &node.ty.shape, &bounds))),
            Op::Weight(w) => {
                let w = self.weight_operand(*w);
                Ok(self.load(Operand::Weight(w), coords::linear(at, &node.ty.shape, &bounds)))
            }
            Op::Const(l) => Ok(self.exprs.add(Expr::Const(*l), l.scalar())),
            Op::Iota { axis, offset } => {
                let c = at.get(*axis).cloned().unwrap_or_default() + offset.clone();
                Ok(self.exprs.coord(c.simplify(&bounds)))
            }
            Op::Unary(u) => {
                let a = self.operand_at(&ops, 0, at)?;
                Ok(self.exprs.unary(*u, a))
            }
            Op::Cast(to) => {
                let a = self.operand_at(&ops, 0, at)?;
                Ok(self.exprs.cast(*to, a))
            }
            Op::Binary(b) => {
                let (x, y) = (self.operand_at(&ops, 0, at)?, self.operand_at(&ops, 1, at)?);
                Ok(self.exprs.binary(*b, x, y))
            }
            Op::Select => {
                let (c, t, f) =
                    (self.operand_at(&ops, 0, at)?, self.operand_at(&ops, 1, at)?, self.operand_at(&ops, 2, at)?);
                Ok(self.exprs.select(c, t, f))
            }
            op if op.is_view() => {
                let (x, back) = self.behind_view(v, at)?;
                self.expr_at(x, &back)
            }
            Op::Concat { axis } => self.concat(&ops, *axis, at),
            Op::Gather => {
                let rank = shape_of(1).len();
                let (ids_at, rest) = at.split_at(rank.min(at.len()));
                let id = self.expr_of(&ops, 1, ids_at)?;
                let rows = shape_of(0).first().cloned().unwrap_or_else(Dim::one);
                let row = self.clamped(id, &rows);
                let c: Coords = std::iter::once(row).chain(rest.iter().cloned()).collect();
                self.expr_of(&ops, 0, &c)
            }
            Op::Rope { style, rotary_dim } => self.rope(&ops, *style, *rotary_dim, at),
            Op::MergeParts { parts } => self.merge_parts(&ops, *parts, at),
            Op::KvAppend { slot, part, .. } | Op::KvRead { slot, part } | Op::KvLoad { slot, part } => {
                let index = self.kv_index(*slot, *part, at, &Dim::zero());
                Ok(self.load(Operand::Kv(*slot, *part), index))
            }
            op => Err(format!("{} ({}) is not in memory", op.name(), node.origin)),
        }
    }
    /// What view `v` shows at `at`, and where.
    ///
    /// # Errors
    /// A value that is no view of another one's elements.
    pub fn behind_view(&self, v: ValueId, at: &[Dim]) -> Result<(ValueId, Coords), Fault> {
        let op = self.graph.op(v);
        let x = self.graph.operands(v).first().copied().ok_or_else(|| format!("{} of nothing", op.name()))?;
        let back = match op {
            Op::Reshape(to) => coords::reshape(at, to, &self.graph.ty(x).shape, &self.bounds),
            Op::Transpose(perm) => coords::transpose_back(at, perm),
            Op::Broadcast(_) => coords::broadcast(at, &self.graph.ty(x).shape),
            Op::Slice { axis, start, .. } => {
                let mut c = at.to_vec();
                if let Some(x) = c.get_mut(*axis) {
                    *x = (x.clone() + start.clone()).simplify(&self.bounds);
                }
                c
            }
            op => return Err(format!("{} is no view", op.name())),
        };
        Ok((x, back))
    }
    fn expr_of(&mut self, ops: &[ValueId], k: usize, at: &[Dim]) -> Result<ExprId, Fault> {
        let v = ops.get(k).copied().ok_or_else(|| format!("operand {k} is missing"))?;
        self.expr_at(v, at)
    }
    fn operand_at(&mut self, ops: &[ValueId], k: usize, at: &[Dim]) -> Result<ExprId, Fault> {
        let v = ops.get(k).copied().ok_or_else(|| format!("operand {k} is missing"))?;
        let c = coords::broadcast(at, &self.graph.ty(v).shape);
        self.expr_at(v, &c)
    }
    /// `Σ_c exp(m_c − m)·x_c / Σ_c exp(m_c − m)·s_c` over the parts c of attention, m being the largest of the m_c; 0 where
    /// no part shows a key.
    fn merge_parts(&mut self, ops: &[ValueId], parts: u64, at: &[Dim]) -> Result<ExprId, Fault> {
        let [batch, head, row, element] = at else { return Err("parts of attention without 4 axes".into()) };
        let width = ops.first().map(|x| self.graph.ty(*x).last() - Dim::constant(2)).unwrap_or_default();
        let mut loaded: [Vec<ExprId>; 3] = Default::default();
        for c in 0..parts {
            let of = (Dim::from(parts) * batch.clone() + Dim::from(c)).simplify(&self.bounds);
            for (list, e) in loaded.iter_mut().zip([element.clone(), width.clone(), width.clone() + Dim::one()]) {
                list.push(self.expr_of(ops, 0, &[of.clone(), head.clone(), row.clone(), e])?);
            }
        }
        let e = &mut self.exprs;
        let [values, tops, sums] = loaded;
        let top = tops.iter().copied().reduce(|a, b| e.binary(BinaryOp::Max, a, b)).ok_or("attention in no parts")?;
        let shares: Vec<ExprId> = tops
            .iter()
            .map(|t| {
                let below = e.binary(BinaryOp::Sub, *t, top);
                e.unary(UnaryOp::Exp, below)
            })
            .collect();
        let mut weighted = |xs: &[ExprId]| {
            let each: Vec<ExprId> = xs.iter().zip(&shares).map(|(x, s)| e.binary(BinaryOp::Mul, *x, *s)).collect();
            each.into_iter().reduce(|a, b| e.binary(BinaryOp::Add, a, b))
        };
        let (value, sum) = weighted(&values).zip(weighted(&sums)).ok_or("attention in no parts")?;
        let (zero, least) = (float(e, 0.0), float(e, 1e-30));
        let seen = e.binary(BinaryOp::Lt, zero, sum);
        let sum = e.binary(BinaryOp::Max, sum, least);
        let share = e.unary(UnaryOp::Recip, sum);
        let value = e.binary(BinaryOp::Mul, value, share);
        Ok(e.select(seen, value, zero))
    }
    /// Linear index into a cache part of `[B, H, room, D]`; `first` is added to the position.
    pub fn kv_index(&self, slot: KvSlotId, part: KvPart, at: &[Dim], first: &Dim) -> Dim {
        let info = self.tables.kv_slots.get(slot.0 as usize);
        let (heads, dim) = info.map_or((1, 1), |i| (i.heads, if part == KvPart::K { i.k_dim } else { i.v_dim }));
        let room = info.map_or_else(Dim::one, |i| i.len.clone());
        let shape = [Dim::size(sizes::BATCH), heads.into(), room, dim.into()];
        let mut c = at.to_vec();
        if let Some(t) = c.get_mut(2) {
            *t = t.clone() + first.clone();
        }
        coords::linear(&c, &shape, &self.bounds)
    }
    fn concat(&mut self, ops: &[ValueId], axis: usize, at: &[Dim]) -> Result<ExprId, Fault> {
        let x = at.get(axis).cloned().unwrap_or_default();
        let mut start = Dim::zero();
        let mut parts: Vec<(Dim, ExprId)> = Vec::new();
        for (k, o) in ops.iter().enumerate() {
            let extent = self.graph.ty(*o).shape.get(axis).cloned().unwrap_or_default();
            let own = (x.clone() - start.clone()).simplify(&self.bounds);
            // An operand may be empty, such as the past of a first run.
            let last = (extent.clone() - Dim::one()).larger(&Dim::zero()).simplify(&self.bounds);
            let own = own.larger(&Dim::zero()).smaller(&last).simplify(&self.bounds);
            let mut c = at.to_vec();
            if let Some(a) = c.get_mut(axis) {
                *a = own;
            }
            let e = self.expr_of(ops, k, &c)?;
            start = start + extent;
            parts.push((start.clone(), e));
        }
        let mut parts = parts.into_iter().rev();
        let (_, mut out) = parts.next().ok_or("a concat of nothing")?;
        let pos = self.exprs.coord(x);
        for (end, e) in parts {
            let end = self.exprs.coord(end);
            let here = self.exprs.binary(BinaryOp::Lt, pos, end);
            out = self.exprs.select(here, e, out);
        }
        Ok(out)
    }
    /// Cosine and sine for the pair `j` of the row `[b, s]`.
    pub fn rope_angle(&mut self, ops: &[ValueId], b: &Dim, s: &Dim, j: &Dim) -> Result<(ExprId, ExprId), Fault> {
        let pos = self.expr_of(ops, 3, &[b.clone(), s.clone()])?;
        let rows = ops.get(1).and_then(|t| self.graph.ty(*t).shape.first().cloned()).unwrap_or_else(Dim::one);
        let p = self.clamped(pos, &rows);
        let at = [p, j.clone()];
        Ok((self.expr_of(ops, 1, &at)?, self.expr_of(ops, 2, &at)?))
    }
    fn rope(&mut self, ops: &[ValueId], style: RopeStyle, rotary: u64, at: &[Dim]) -> Result<ExprId, Fault> {
        let [b, h, s, d] = at else { return Err("rope of a value without 4 axes".into()) };
        let (half, r) = (Dim::from(rotary / 2), Dim::from(rotary));
        let bounds = self.bounds.clone();
        let (partner, j) = match style {
            RopeStyle::Half => ((d.clone() + half.clone()).rem(&r), d.rem(&half)),
            RopeStyle::Interleaved => {
                let two = Dim::constant(2);
                (d.clone() + Dim::one() - &two * &d.rem(&two), d.div(&two).smaller(&(half.clone() - Dim::one())))
            }
        };
        let head = self.graph.ty(ops.first().copied().unwrap_or(ValueId::from_index(0))).last();
        let partner = partner.smaller(&(head.clone() - Dim::one())).simplify(&bounds);
        let (cos, sin) = self.rope_angle(ops, b, s, &j.simplify(&bounds))?;
        let x = self.expr_of(ops, 0, at)?;
        let y = self.expr_of(ops, 0, &[b.clone(), h.clone(), s.clone(), partner])?;
        let negated = self.exprs.unary(UnaryOp::Neg, y);
        let first = match style {
            RopeStyle::Half => {
                let (d, half) = (self.exprs.coord(d.clone()), self.exprs.coord(half));
                self.exprs.binary(BinaryOp::Lt, d, half)
            }
            RopeStyle::Interleaved => {
                let odd = self.exprs.coord(d.rem(&Dim::constant(2)).simplify(&bounds));
                let zero = self.exprs.i32(0);
                self.exprs.binary(BinaryOp::Eq, odd, zero)
            }
        };
        let y = self.exprs.select(first, negated, y);
        let (a, c) = (self.exprs.binary(BinaryOp::Mul, x, cos), self.exprs.binary(BinaryOp::Mul, y, sin));
        let turned = self.exprs.binary(BinaryOp::Add, a, c);
        if head == r {
            return Ok(turned);
        }
        let (d, r) = (self.exprs.coord(d.clone()), self.exprs.coord(r));
        let inside = self.exprs.binary(BinaryOp::Lt, d, r);
        Ok(self.exprs.select(inside, turned, x))
    }
}

/// Bounds of the dynamic sizes.
pub fn size_bounds(tables: &Tables) -> Bounds {
    let mut b = Bounds::new();
    for s in &tables.sizes {
        b.set(Sym::Size(s.name.as_str().into()), s.min as i64, s.max.map(Dim::from));
    }
    b
}

/// Small float tensors travel in the side buffer: vectors, and rotary tables.
pub fn is_side(shape: &[Dim], storage: Storage) -> bool {
    let plain = matches!(storage, Storage::F32 | Storage::F16 | Storage::Bf16);
    let symbolic = shape.iter().any(|d| d.as_const().is_none());
    plain && (symbolic || shape.len() < 2)
}

fn value_name(op: &Op) -> String {
    match op {
        Op::Input(n) => n.clone(),
        op => op.name(),
    }
}

fn short_name(parameter: &str) -> String {
    let generic = |p: &&str| !matches!(*p, "weight" | "bias" | "w" | "b") && p.parse::<u32>().is_err();
    let last = parameter.rsplit('.').find(generic).unwrap_or("w");
    let kind = if parameter.ends_with("bias") { "_bias" } else { "" };
    format!("{last}{kind}")
}

/// A literal for an attribute.
pub fn float(exprs: &mut Exprs, v: f32) -> ExprId {
    exprs.add(Expr::Const(Literal::f32(v)), Scalar::F32)
}
