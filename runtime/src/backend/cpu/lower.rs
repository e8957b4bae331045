//! Expression trees and index maps to programs.
//!
//! Every value is classed while it is lowered: known from the sizes (once a launch), fixed along the inner axis (once a
//! row), a run along it (indices), or different for each element. Equal operations share one register.

use super::program::{Float, Int, Program, Reg, RowOp, STATS, Value, VecOp, Write};
use frit_kernels::dim::{Atom, Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Expr, ExprId, KernelSpec, Literal, Store};
use std::collections::HashMap;

/// What cannot be lowered, for people.
pub type Refused = String;

/// Scalar registers of a kernel, shared by its programs.
pub struct Builder<'a> {
    spec: &'a KernelSpec,
    axes: usize,
    row_int: Vec<bool>,
    row_float: Vec<bool>,
    constants: HashMap<Reg, i64>,
    uniform: Vec<(Reg, RowOp)>,
    known: HashMap<RowOp, Reg>,
    /// Most buffers of floats and of integers that a program uses.
    pub buffers: (usize, usize),
    /// Programs made.
    pub programs: u64,
}

/// What a launch's sizes decide: registers and how they are filled.
#[derive(Debug, Default)]
pub struct Uniform {
    /// Integer registers; axes come first, then the sizes.
    pub ints: usize,
    /// Float registers; statistics come first.
    pub floats: usize,
    /// The first size's register.
    pub first_size: usize,
    /// Index in the table of sizes of each size register.
    pub sizes: Vec<usize>,
    /// Operations in order.
    pub ops: Vec<(Reg, RowOp)>,
}

/// The integer register of an arg-reduction, behind the sizes.
pub fn stat_int(spec: &KernelSpec, axes: usize, k: usize) -> Reg {
    (axes + spec.sizes.len() + k) as Reg
}

impl<'a> Builder<'a> {
    /// For a kernel whose expressions use `axes` axes.
    pub fn new(spec: &'a KernelSpec, axes: usize) -> Self {
        let mut row_int = vec![true; axes];
        row_int.extend(vec![false; spec.sizes.len()]);
        row_int.extend([true; STATS]);
        Builder {
            spec,
            axes,
            row_int,
            row_float: vec![true; STATS],
            constants: HashMap::new(),
            uniform: Vec::new(),
            known: HashMap::new(),
            buffers: (0, 0),
            programs: 0,
        }
    }
    /// The registers, once every program is made.
    pub fn finish(self) -> Result<Uniform, Refused> {
        let (ints, floats) = (self.row_int.len(), self.row_float.len());
        if ints > Reg::MAX as usize || floats > Reg::MAX as usize {
            return Err("too many scalar values".into());
        }
        Ok(Uniform {
            ints,
            floats,
            first_size: self.axes,
            sizes: self.spec.sizes.iter().map(|s| s.index as usize).collect(),
            ops: self.uniform,
        })
    }
    /// The register of an expression of sizes.
    pub fn size(&mut self, d: &Dim) -> Result<Reg, Refused> {
        let mut l = Lower::new(self, None);
        match l.dim(d)? {
            Int::Row(r) if l.row.is_empty() => Ok(r),
            _ => Err(format!("`{d}` is no expression of sizes")),
        }
    }
    /// A program that yields `roots` along axis `inner`.
    pub fn values(&mut self, roots: &[ExprId], inner: Option<usize>) -> Result<Program, Refused> {
        let mut l = Lower::new(self, inner);
        l.exprs(roots)?;
        let outputs = roots.iter().map(|r| l.value(*r)).collect::<Result<_, _>>()?;
        l.finish(outputs, Vec::new())
    }
    /// A program that yields an index along axis `inner`.
    pub fn index(&mut self, d: &Dim, inner: usize) -> Result<Program, Refused> {
        let mut l = Lower::new(self, Some(inner));
        l.exprs(&values_of(d))?;
        let v = Value::I(l.dim(d)?);
        l.finish(vec![v], Vec::new())
    }
    /// A program that does `stores` along axis `inner`.
    pub fn stores(&mut self, stores: &[&Store], inner: Option<usize>) -> Result<Program, Refused> {
        let mut l = Lower::new(self, inner);
        for s in stores {
            l.exprs(&[s.value])?;
            l.exprs(&values_of(&s.index))?;
        }
        let mut writes = Vec::new();
        for s in stores {
            let (value, index) = (l.value(s.value)?, l.dim(&s.index)?);
            writes.push(Write { arg: s.arg.0, index, value });
        }
        l.finish(Vec::new(), writes)
    }
}

fn values_of(d: &Dim) -> Vec<ExprId> {
    let found = d.symbols().into_iter();
    found.filter_map(|s| if let Sym::Value(v) = s { Some(ExprId(v)) } else { None }).collect()
}

struct Lower<'b, 'a> {
    b: &'b mut Builder<'a>,
    inner: Option<u8>,
    row: Vec<(Reg, RowOp)>,
    known: HashMap<RowOp, Reg>,
    each: Vec<(Reg, VecOp)>,
    each_known: HashMap<VecOp, Reg>,
    buffers: (usize, usize),
    done: HashMap<ExprId, Value>,
    dims: HashMap<Dim, Int>,
}

impl<'b, 'a> Lower<'b, 'a> {
    fn new(b: &'b mut Builder<'a>, inner: Option<usize>) -> Self {
        Lower {
            b,
            inner: inner.map(|a| a as u8),
            row: Vec::new(),
            known: HashMap::new(),
            each: Vec::new(),
            each_known: HashMap::new(),
            buffers: (0, 0),
            done: HashMap::new(),
            dims: HashMap::new(),
        }
    }
    fn finish(self, outputs: Vec<Value>, writes: Vec<Write>) -> Result<Program, Refused> {
        if self.each.len() > Reg::MAX as usize {
            return Err("too many operations".into());
        }
        let mut p = Program { row: self.row, each: self.each, outputs, writes };
        let used = allocate(&mut p, self.buffers);
        self.b.buffers = (self.b.buffers.0.max(used.0), self.b.buffers.1.max(used.1));
        self.b.programs += 1;
        Ok(p)
    }
    fn is_row(&self, op: &RowOp) -> bool {
        use RowOp::*;
        let i = |r: &Reg| self.b.row_int.get(*r as usize).copied().unwrap_or(true);
        let f = |r: &Reg| self.b.row_float.get(*r as usize).copied().unwrap_or(true);
        match op {
            Int(_) | Float(_) => false,
            Add(a, b) | Mul(a, b) | Euclid(_, a, b) | Bound(_, a, b) | BinaryI(_, a, b) => i(a) || i(b),
            MulAdd(a, b, c) | SelectI(a, b, c) => i(a) || i(b) || i(c),
            UnaryI(_, a) | ToBool(a) | ToF(a) => i(a),
            CompareF(_, a, b) | BinaryF(_, a, b) => f(a) || f(b),
            SelectF(c, a, b) => i(c) || f(a) || f(b),
            ToI(_, a) | UnaryF(_, a) => f(a),
            LoadI(..) | LoadF(..) => true,
        }
    }
    fn scalar(&mut self, op: RowOp) -> Reg {
        let op = match self.fold(&op) {
            Ok(r) => return r,
            Err(op) => op,
        };
        let row = self.is_row(&op);
        let known = if row { &mut self.known } else { &mut self.b.known };
        if let Some(r) = known.get(&op) {
            return *r;
        }
        let levels = if op.is_float() { &mut self.b.row_float } else { &mut self.b.row_int };
        levels.push(row);
        let r = (levels.len() - 1) as Reg;
        known.insert(op, r);
        if let RowOp::Int(v) = op {
            self.b.constants.insert(r, v);
        }
        if row {
            self.row.push((r, op))
        } else {
            self.b.uniform.push((r, op))
        }
        r
    }
    /// The register that already holds the result, or the operation to do.
    fn fold(&mut self, op: &RowOp) -> Result<Reg, RowOp> {
        let c = |r: &Reg| self.b.constants.get(r).copied();
        Err(match op {
            RowOp::Add(a, b) => match (c(a), c(b)) {
                (Some(0), _) => return Ok(*b),
                (_, Some(0)) => return Ok(*a),
                (Some(x), Some(y)) => RowOp::Int(x.wrapping_add(y)),
                _ => *op,
            },
            RowOp::Mul(a, b) => match (c(a), c(b)) {
                (Some(1), _) => return Ok(*b),
                (_, Some(1)) => return Ok(*a),
                (Some(0), _) | (_, Some(0)) => RowOp::Int(0),
                (Some(x), Some(y)) => RowOp::Int(x.wrapping_mul(y)),
                _ => *op,
            },
            RowOp::MulAdd(a, b, z) => match (c(a), c(b), c(z)) {
                (Some(0), ..) | (_, Some(0), _) => return Ok(*z),
                (Some(1), _, _) => return Ok(self.scalar(RowOp::Add(*b, *z))),
                (_, Some(1), _) => return Ok(self.scalar(RowOp::Add(*a, *z))),
                (_, _, Some(0)) => return Ok(self.scalar(RowOp::Mul(*a, *b))),
                _ => *op,
            },
            _ => *op,
        })
    }
    fn int(&mut self, v: i64) -> Reg {
        self.scalar(RowOp::Int(v))
    }
    fn vector(&mut self, op: VecOp) -> Reg {
        if let Some(r) = self.each_known.get(&op) {
            return *r;
        }
        let n = if op.is_float() { &mut self.buffers.0 } else { &mut self.buffers.1 };
        let r = (*n).min(Reg::MAX as usize) as Reg;
        *n += 1;
        self.each_known.insert(op, r);
        self.each.push((r, op));
        r
    }
    /// `a` as a row value or one for each element.
    fn flat(&mut self, a: Int) -> Int {
        match a {
            Int::Run { base, step } => Int::Each(self.vector(VecOp::Iota(base, step))),
            other => other,
        }
    }
    fn int_op(&mut self, op: VecOp) -> Value {
        Value::I(Int::Each(self.vector(op)))
    }
    fn float_op(&mut self, op: VecOp) -> Value {
        Value::F(Float::Each(self.vector(op)))
    }
    fn row_op(&mut self, op: RowOp) -> Value {
        let r = self.scalar(op);
        if op.is_float() { Value::F(Float::Row(r)) } else { Value::I(Int::Row(r)) }
    }

    fn dim(&mut self, d: &Dim) -> Result<Int, Refused> {
        if let Some(v) = self.dims.get(d) {
            return Ok(*v);
        }
        let mut base = self.int(0);
        let mut step: Option<Reg> = None;
        let mut vectors: Vec<(Reg, Reg)> = Vec::new();
        for (m, c) in d.terms() {
            let mut factor = self.int(c);
            let mut moving: Option<Int> = None;
            for a in m {
                match (self.atom(a)?, moving) {
                    (Int::Row(r), _) => factor = self.scalar(RowOp::Mul(factor, r)),
                    (other, None) => moving = Some(other),
                    (other, Some(v)) => {
                        let (x, y) = (self.flat(v), self.flat(other));
                        moving = Some(Int::Each(self.vector(VecOp::BinaryI(BinaryOp::Mul, x, y))));
                    }
                }
            }
            match moving {
                None => base = self.scalar(RowOp::Add(base, factor)),
                Some(Int::Row(r)) => base = self.scalar(RowOp::MulAdd(r, factor, base)),
                Some(Int::Run { base: b, step: s }) => {
                    base = self.scalar(RowOp::MulAdd(b, factor, base));
                    let s = self.scalar(RowOp::Mul(s, factor));
                    step = Some(match step {
                        Some(t) => self.scalar(RowOp::Add(t, s)),
                        None => s,
                    });
                }
                Some(Int::Each(v)) => vectors.push((v, factor)),
            }
        }
        let rest = match step {
            Some(step) => Int::Run { base, step },
            None => Int::Row(base),
        };
        let out = match vectors.split_first() {
            None => rest,
            Some(_) => {
                let mut sum = self.flat(rest);
                for (v, factor) in vectors {
                    sum = Int::Each(self.vector(VecOp::MulAdd(v, factor, sum)));
                }
                sum
            }
        };
        self.dims.insert(d.clone(), out);
        Ok(out)
    }
    fn atom(&mut self, a: &Atom) -> Result<Int, Refused> {
        Ok(match a {
            Atom::Sym(Sym::Size(n)) => {
                let found = self.b.spec.sizes.iter().position(|s| *s.name == **n);
                Int::Row((self.b.axes + found.ok_or_else(|| format!("the size `{n}` is not declared"))?) as Reg)
            }
            Atom::Sym(Sym::Axis(k)) if Some(*k) == self.inner => Int::Run { base: self.int(0), step: self.int(1) },
            Atom::Sym(Sym::Axis(k)) if (*k as usize) < self.b.axes => Int::Row(Reg::from(*k)),
            Atom::Sym(Sym::Axis(k)) => return Err(format!("there is no axis {k}")),
            Atom::Sym(Sym::Value(v)) => match self.done.get(&ExprId(*v)) {
                Some(Value::I(i)) => *i,
                _ => return Err(format!("the value v{v} is not known here")),
            },
            Atom::Div(x, y) => self.euclid(false, x, y)?,
            Atom::Mod(x, y) => self.euclid(true, x, y)?,
            Atom::Max(x, y) => self.bound(true, x, y)?,
            Atom::Min(x, y) => self.bound(false, x, y)?,
        })
    }
    fn euclid(&mut self, rem: bool, x: &Dim, y: &Dim) -> Result<Int, Refused> {
        Ok(match (self.dim(x)?, self.dim(y)?) {
            (Int::Row(a), Int::Row(b)) => Int::Row(self.scalar(RowOp::Euclid(rem, a, b))),
            (Int::Run { base, step }, Int::Row(by)) => Int::Each(self.vector(VecOp::EuclidRun(rem, base, step, by))),
            (a, b) => {
                let (a, b) = (self.flat(a), self.flat(b));
                Int::Each(self.vector(VecOp::Euclid(rem, a, b)))
            }
        })
    }
    fn bound(&mut self, larger: bool, x: &Dim, y: &Dim) -> Result<Int, Refused> {
        Ok(match (self.dim(x)?, self.dim(y)?) {
            (Int::Row(a), Int::Row(b)) => Int::Row(self.scalar(RowOp::Bound(larger, a, b))),
            (a, b) => {
                let (a, b) = (self.flat(a), self.flat(b));
                let op = if larger { BinaryOp::Max } else { BinaryOp::Min };
                Int::Each(self.vector(VecOp::BinaryI(op, a, b)))
            }
        })
    }

    fn value(&self, e: ExprId) -> Result<Value, Refused> {
        self.done.get(&e).copied().ok_or_else(|| format!("the expression {} is not known here", e.0))
    }
    fn integer(&mut self, e: ExprId) -> Result<Int, Refused> {
        match self.value(e)? {
            Value::I(i) => Ok(self.flat(i)),
            Value::F(_) => Err(format!("the expression {} is no integer", e.0)),
        }
    }
    fn exprs(&mut self, roots: &[ExprId]) -> Result<(), Refused> {
        let spec = self.b.spec;
        for id in spec.exprs.reachable(roots) {
            if !self.done.contains_key(&id) {
                let v = self.expr(spec.exprs.get(id), spec.exprs.scalar(id))?;
                self.done.insert(id, v);
            }
        }
        Ok(())
    }
    fn expr(&mut self, e: &Expr, ty: Scalar) -> Result<Value, Refused> {
        use Float::Row as FR;
        Ok(match e {
            Expr::Const(Literal::F32(bits)) => self.row_op(RowOp::Float(*bits)),
            Expr::Const(Literal::I32(v)) => self.row_op(RowOp::Int(i64::from(*v))),
            Expr::Const(Literal::Bool(v)) => self.row_op(RowOp::Int(i64::from(*v))),
            Expr::Coord(d) => Value::I(self.dim(d)?),
            Expr::Load { arg, index } => {
                let float = self.b.spec.arg(*arg).is_some_and(|a| a.storage.scalar() == Scalar::F32);
                match (self.dim(index)?, float) {
                    (Int::Row(r), true) => self.row_op(RowOp::LoadF(arg.0, r)),
                    (Int::Row(r), false) => self.row_op(RowOp::LoadI(arg.0, r)),
                    (i, true) => self.float_op(VecOp::LoadF(arg.0, i)),
                    (i, false) => self.int_op(VecOp::LoadI(arg.0, i)),
                }
            }
            Expr::Acc(j) => self.float_op(VecOp::Acc(*j)),
            Expr::Stat(k) if ty == Scalar::F32 => Value::F(FR(Reg::from(*k))),
            Expr::Stat(k) => Value::I(Int::Row(stat_int(self.b.spec, self.b.axes, *k as usize))),
            Expr::Unary(op, a) => match self.value(*a)? {
                Value::F(FR(r)) => self.row_op(RowOp::UnaryF(*op, r)),
                Value::F(a) => self.float_op(VecOp::UnaryF(*op, a)),
                Value::I(a) => match self.flat(a) {
                    Int::Row(r) => self.row_op(RowOp::UnaryI(*op, r)),
                    a => self.int_op(VecOp::UnaryI(*op, a)),
                },
            },
            Expr::Binary(op, a, b) => match (self.value(*a)?, self.value(*b)?) {
                (Value::F(FR(a)), Value::F(FR(b))) if op.is_comparison() => self.row_op(RowOp::CompareF(*op, a, b)),
                (Value::F(FR(a)), Value::F(FR(b))) => self.row_op(RowOp::BinaryF(*op, a, b)),
                (Value::F(a), Value::F(b)) if op.is_comparison() => self.int_op(VecOp::CompareF(*op, a, b)),
                (Value::F(a), Value::F(b)) => self.float_op(VecOp::BinaryF(*op, a, b)),
                (Value::I(a), Value::I(b)) => self.binary_i(*op, a, b),
                _ => return Err(format!("{op:?} of mixed types")),
            },
            Expr::Select { cond, t, f } => {
                let c = self.integer(*cond)?;
                match (self.value(*t)?, self.value(*f)?) {
                    (Value::F(t), Value::F(f)) => match (c, t, f) {
                        (Int::Row(c), FR(t), FR(f)) => self.row_op(RowOp::SelectF(c, t, f)),
                        _ => self.float_op(VecOp::SelectF(c, t, f)),
                    },
                    (Value::I(t), Value::I(f)) => match (c, self.flat(t), self.flat(f)) {
                        (Int::Row(c), Int::Row(t), Int::Row(f)) => self.row_op(RowOp::SelectI(c, t, f)),
                        (c, t, f) => self.int_op(VecOp::SelectI(c, t, f)),
                    },
                    _ => return Err("select of mixed types".into()),
                }
            }
            Expr::Cast(to, a) => match (to, self.value(*a)?) {
                (Scalar::F32, Value::F(a)) => Value::F(a),
                (Scalar::F32, Value::I(a)) => match self.flat(a) {
                    Int::Row(r) => self.row_op(RowOp::ToF(r)),
                    a => self.float_op(VecOp::ToF(a)),
                },
                (to, Value::F(FR(r))) => self.row_op(RowOp::ToI(*to == Scalar::Bool, r)),
                (to, Value::F(a)) => self.int_op(VecOp::ToI(*to == Scalar::Bool, a)),
                (Scalar::I32, Value::I(a)) => Value::I(a),
                (Scalar::Bool, Value::I(a)) => match self.flat(a) {
                    Int::Row(r) => self.row_op(RowOp::ToBool(r)),
                    a => self.int_op(VecOp::ToBool(a)),
                },
            },
        })
    }
    fn binary_i(&mut self, op: BinaryOp, a: Int, b: Int) -> Value {
        if let (Int::Row(a), Int::Row(b)) = (a, b) {
            return self.row_op(RowOp::BinaryI(op, a, b));
        }
        let (a, b) = (self.flat(a), self.flat(b));
        self.int_op(VecOp::BinaryI(op, a, b))
    }
}

/// Gives the vector operations of `p` few buffers: one is free again after its last use, but never for the operation
/// that uses it last. Returns how many floats and integers need.
fn allocate(p: &mut Program, named: (usize, usize)) -> (usize, usize) {
    let mut last = (vec![0usize; named.0], vec![0usize; named.1]);
    let pinned = usize::MAX;
    for (at, (_, op)) in p.each.iter_mut().enumerate() {
        operands(op, &mut |float, r| {
            let file = if float { &mut last.0 } else { &mut last.1 };
            if let Some(l) = file.get_mut(*r as usize) {
                *l = at;
            }
        });
    }
    for v in p.outputs.iter_mut() {
        pin(v, &mut last, pinned);
    }
    for w in p.writes.iter_mut() {
        pin(&mut w.value, &mut last, pinned);
        pin(&mut Value::I(w.index), &mut last, pinned);
    }
    let mut place = (vec![0 as Reg; named.0], vec![0 as Reg; named.1]);
    let mut free: (Vec<Reg>, Vec<Reg>) = (Vec::new(), Vec::new());
    let mut used = (0usize, 0usize);
    for (at, (d, op)) in p.each.iter_mut().enumerate() {
        let float = op.is_float();
        let (free_here, used_here, place_here) =
            if float { (&mut free.0, &mut used.0, &mut place.0) } else { (&mut free.1, &mut used.1, &mut place.1) };
        let new = free_here.pop().unwrap_or_else(|| {
            *used_here += 1;
            (*used_here - 1) as Reg
        });
        if let Some(slot) = place_here.get_mut(*d as usize) {
            *slot = new;
        }
        let mut ending: [Option<(bool, Reg)>; 4] = [None; 4];
        operands(op, &mut |float, r| {
            let (ends, to) = if float { (&last.0, &place.0) } else { (&last.1, &place.1) };
            let name = *r as usize;
            *r = to.get(name).copied().unwrap_or(0);
            if ends.get(name) == Some(&at) && !ending.contains(&Some((float, *r))) {
                if let Some(slot) = ending.iter_mut().find(|e| e.is_none()) {
                    *slot = Some((float, *r));
                }
            }
        });
        for (float, r) in ending.into_iter().flatten() {
            if float { free.0.push(r) } else { free.1.push(r) }
        }
        let ends = if float { &last.0 } else { &last.1 };
        if ends.get(*d as usize) == Some(&0) {
            if float { free.0.push(new) } else { free.1.push(new) }
        }
        *d = new;
    }
    let moved = |v: &mut Value| match v {
        Value::F(Float::Each(r)) => *r = place.0.get(*r as usize).copied().unwrap_or(0),
        Value::I(Int::Each(r)) => *r = place.1.get(*r as usize).copied().unwrap_or(0),
        _ => {}
    };
    p.outputs.iter_mut().for_each(moved);
    for w in p.writes.iter_mut() {
        moved(&mut w.value);
        let mut index = Value::I(w.index);
        moved(&mut index);
        if let Value::I(i) = index {
            w.index = i;
        }
    }
    used
}

fn pin(v: &mut Value, last: &mut (Vec<usize>, Vec<usize>), at: usize) {
    let slot = match v {
        Value::F(Float::Each(r)) => last.0.get_mut(*r as usize),
        Value::I(Int::Each(r)) => last.1.get_mut(*r as usize),
        _ => None,
    };
    if let Some(s) = slot {
        *s = at;
    }
}

/// Calls `f` on every buffer that `op` reads: whether it holds floats, and its register.
fn operands(op: &mut VecOp, f: &mut dyn FnMut(bool, &mut Reg)) {
    fn float(a: &mut Float, f: &mut dyn FnMut(bool, &mut Reg)) {
        if let Float::Each(r) = a {
            f(true, r);
        }
    }
    fn int(a: &mut Int, f: &mut dyn FnMut(bool, &mut Reg)) {
        if let Int::Each(r) = a {
            f(false, r);
        }
    }
    match op {
        VecOp::UnaryF(_, a) | VecOp::ToI(_, a) => float(a, f),
        VecOp::BinaryF(_, a, b) | VecOp::CompareF(_, a, b) => {
            float(a, f);
            float(b, f);
        }
        VecOp::SelectF(c, a, b) => {
            int(c, f);
            float(a, f);
            float(b, f);
        }
        VecOp::ToF(a) | VecOp::LoadF(_, a) | VecOp::UnaryI(_, a) | VecOp::ToBool(a) | VecOp::LoadI(_, a) => int(a, f),
        VecOp::BinaryI(_, a, b) | VecOp::Euclid(_, a, b) => {
            int(a, f);
            int(b, f);
        }
        VecOp::SelectI(c, a, b) => {
            int(c, f);
            int(a, f);
            int(b, f);
        }
        VecOp::MulAdd(a, _, c) => {
            f(false, a);
            int(c, f);
        }
        VecOp::Acc(_) | VecOp::Iota(..) | VecOp::EuclidRun(..) => {}
    }
}
