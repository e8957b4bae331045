//! Statements to micro-operations.

use super::place::{Place, Root, Value};
use super::{Exits, Frame, Lower, Lowered};
use crate::collective::Members;
use crate::op::{Atomic, Elem, Num, Op, Reduce, Reg, Rel, Rmw, Scan, Shuffle};
use naga::diagnostic_filter::{FilterableTriggeringRule, Severity};
use naga::{
    AtomicFunction, Barrier, CollectiveOperation, Expression, GatherMode, Handle, ScalarKind, Statement,
    SubgroupOperation, SwitchValue, TypeInner,
};

impl<'m> Lower<'m> {
    pub(super) fn block(&mut self, f: &mut Frame<'m>, block: &'m naga::Block) -> Lowered<()> {
        for (statement, span) in block.span_iter() {
            self.at(*span);
            self.statement(f, statement)?;
        }
        Ok(())
    }

    fn branch(&mut self, cond: Option<(Reg, bool)>) -> usize {
        self.push(Op::Bra { target: 0, cond })
    }

    fn statement(&mut self, f: &mut Frame<'m>, statement: &'m Statement) -> Lowered<()> {
        if self.program.code.len() > 1 << 20 || self.program.registers > 1 << 18 {
            return Err(self.unsupported("a kernel of more than a million operations"));
        }
        match statement {
            Statement::Emit(range) => {
                for h in range.clone() {
                    let span = f.fun.expressions.get_span(h);
                    self.at(span);
                    let v = self.lower_expr(f, h)?;
                    f.values.insert(h, v);
                }
            }
            Statement::Block(b) => self.block(f, b)?,
            Statement::If { condition, accept, reject } => {
                let c = self.row(f, *condition)?;
                let skip = self.branch(Some((c, true)));
                self.block(f, accept)?;
                if reject.is_empty() {
                    self.land(skip);
                } else {
                    let end = self.branch(None);
                    self.land(skip);
                    self.block(f, reject)?;
                    self.land(end);
                }
            }
            Statement::Switch { selector, cases } => self.switch(f, *selector, cases)?,
            Statement::Loop { body, continuing, break_if } => {
                let head = self.here();
                f.exits.push(Exits { is_loop: true, ..Exits::default() });
                self.block(f, body)?;
                let continues = f.exits.last_mut().map(|e| std::mem::take(&mut e.continues)).unwrap_or_default();
                for c in continues {
                    self.land(c);
                }
                self.block(f, continuing)?;
                let cond = match break_if {
                    Some(c) => Some((self.row(f, *c)?, true)),
                    None => None,
                };
                self.push(Op::Bra { target: head, cond });
                for b in f.exits.pop().unwrap_or_default().breaks {
                    self.land(b);
                }
            }
            Statement::Break => {
                let b = self.branch(None);
                if let Some(e) = f.exits.last_mut() {
                    e.breaks.push(b);
                }
            }
            Statement::Continue => {
                let b = self.branch(None);
                if let Some(e) = f.exits.iter_mut().rev().find(|e| e.is_loop) {
                    e.continues.push(b);
                }
            }
            Statement::Return { value } => {
                if let Some(v) = value {
                    let rows = self.rows(f, *v)?;
                    for (d, a) in f.result.clone().into_iter().zip(rows) {
                        self.push(Op::Mov { d, a });
                    }
                }
                let b = self.branch(None);
                f.returns.push(b);
            }
            Statement::ControlBarrier(b) => self.barrier(*b)?,
            Statement::MemoryBarrier(_) => {
                self.push(Op::Fence);
            }
            Statement::Store { pointer, value } => {
                let rows = self.rows(f, *value)?;
                let place = self.place(f, *pointer)?;
                let (ty, atomic) = self.pointee(f, *pointer)?;
                self.store(&place, &ty, &rows, atomic)?;
            }
            Statement::Atomic { pointer, fun, value, result } => self.atomic(f, *pointer, fun, *value, *result)?,
            Statement::WorkGroupUniformLoad { pointer, result } => {
                let place = self.place(f, *pointer)?;
                let (ty, atomic) = self.pointee(f, *pointer)?;
                self.push(Op::Barrier { id: 0, shared: true, global: false });
                let rows = self.load(&place, &ty, atomic)?;
                self.push(Op::Barrier { id: 0, shared: true, global: false });
                f.values.insert(*result, Value::Rows(rows));
            }
            Statement::Call { function, arguments, result } => {
                let mut values = Vec::new();
                for a in arguments {
                    values.push(self.value(f, *a)?);
                }
                let line = self.line;
                let rows = self.function(&self.module.functions[*function], &self.info[*function], values)?;
                self.line = line;
                if let Some(r) = result {
                    f.values.insert(*r, Value::Rows(rows));
                }
            }
            Statement::SubgroupBallot { result, predicate } => {
                let a = match predicate {
                    Some(p) => self.row(f, *p)?,
                    None => self.constant(1),
                };
                let d = self.registers(1);
                let zero = self.constant(0);
                self.push(self.reduction(f, Reduce::Ballot, Scan::Whole, d, a));
                f.values.insert(*result, Value::Rows(vec![d, zero, zero, zero]));
            }
            Statement::SubgroupCollectiveOperation { op, collective_op, argument, result } => {
                let kind = self.scalar_kind(f, *argument)?;
                let rows = self.rows(f, *argument)?;
                let scan = match collective_op {
                    CollectiveOperation::Reduce => Scan::Whole,
                    CollectiveOperation::InclusiveScan => Scan::UpTo,
                    CollectiveOperation::ExclusiveScan => Scan::Below,
                };
                let op = subgroup_operation(*op, kind);
                let d = self.registers(rows.len() as u32);
                for (i, a) in rows.iter().enumerate() {
                    self.push(self.reduction(f, op, scan, d + i as u32, *a));
                }
                f.values.insert(*result, Value::Rows((d..d + rows.len() as u32).collect()));
            }
            Statement::SubgroupGather { mode, argument, result } => self.gather(f, mode, *argument, *result)?,
            other => {
                let text = format!("{other:?}");
                let name = text.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
                return Err(self.unsupported(format!("the statement {name}")));
            }
        }
        Ok(())
    }

    fn reduction(&self, f: &Frame<'m>, op: Reduce, scan: Scan, d: Reg, a: Reg) -> Op {
        Op::Reduce { op, scan, d, a, width: self.options.subgroup_size as u8, members: self.members(f) }
    }

    /// Subgroup operations take all invocations, unless a filter of the function or of the module lets some stay away.
    fn members(&self, f: &Frame<'m>) -> Members {
        let mut next = f.fun.diagnostic_filter_leaf;
        while let Some(node) = next.map(|h| &self.module.diagnostic_filters[h]) {
            // Naga keeps the names of rules that it does not check itself.
            if node.inner.triggering_rule == FilterableTriggeringRule::Unknown("subgroup_uniformity".into()) {
                let strict = node.inner.new_severity == Severity::Error;
                return if strict { Members::All } else { Members::Present };
            }
            next = node.parent;
        }
        Members::All
    }

    fn barrier(&mut self, b: Barrier) -> Lowered<()> {
        if b.contains(Barrier::SUB_GROUP) {
            self.push(Op::WarpBarrier { members: None });
            return Ok(());
        }
        let (shared, global) = (b.contains(Barrier::WORK_GROUP), b.contains(Barrier::STORAGE));
        self.push(Op::Barrier { id: 0, shared, global });
        Ok(())
    }

    fn switch(
        &mut self,
        f: &mut Frame<'m>,
        selector: Handle<Expression>,
        cases: &'m [naga::SwitchCase],
    ) -> Lowered<()> {
        let s = self.row(f, selector)?;
        let mut entries = Vec::new();
        for c in cases {
            let value = match c.value {
                SwitchValue::I32(v) => v as u32,
                SwitchValue::U32(v) => v,
                SwitchValue::Default => {
                    entries.push(None);
                    continue;
                }
            };
            let (d, b) = (self.registers(1), self.constant(value));
            self.push(Op::Cmp { rel: Rel::Eq, num: Num::U, d, a: s, b });
            entries.push(Some(self.branch(Some((d, false)))));
        }
        let default = self.branch(None);
        f.exits.push(Exits::default());
        for (c, entry) in cases.iter().zip(entries) {
            self.land(entry.unwrap_or(default));
            self.block(f, &c.body)?;
            if !c.fall_through {
                let b = self.branch(None);
                if let Some(e) = f.exits.last_mut() {
                    e.breaks.push(b);
                }
            }
        }
        for b in f.exits.pop().unwrap_or_default().breaks {
            self.land(b);
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        f: &mut Frame<'m>,
        pointer: Handle<Expression>,
        fun: &AtomicFunction,
        value: Handle<Expression>,
        result: Option<Handle<Expression>>,
    ) -> Lowered<()> {
        let Place { root: Root::Segment(segment), .. } = self.place(f, pointer)? else {
            return Err(self.unsupported("an atomic operation on a private variable"));
        };
        let place = self.place(f, pointer)?;
        let signed = self.scalar_kind(f, value)? == ScalarKind::Sint;
        let float = self.scalar_kind(f, value)? == ScalarKind::Float;
        let v = self.row(f, value)?;
        let mut compare = None;
        let op = match fun {
            AtomicFunction::Add if float => Rmw::AddF,
            AtomicFunction::Add => Rmw::AddI,
            AtomicFunction::Subtract => Rmw::SubI,
            AtomicFunction::And => Rmw::And,
            AtomicFunction::ExclusiveOr => Rmw::Xor,
            AtomicFunction::InclusiveOr => Rmw::Or,
            AtomicFunction::Min if signed => Rmw::MinS,
            AtomicFunction::Min => Rmw::MinU,
            AtomicFunction::Max if signed => Rmw::MaxS,
            AtomicFunction::Max => Rmw::MaxU,
            AtomicFunction::Exchange { compare: None } => Rmw::Exchange,
            AtomicFunction::Exchange { compare: Some(c) } => {
                compare = Some(self.row(f, *c)?);
                Rmw::CompareExchange
            }
        };
        let old = self.registers(2);
        let addr = self.address(&place, segment);
        self.push(Op::Atomic(Atomic { op, addr, elem: Elem::B32, old: Some(old), value: v, compare }));
        let mut rows = vec![old];
        if let Some(c) = compare {
            self.push(Op::Cmp { rel: Rel::Eq, num: Num::U, d: old + 1, a: old, b: c });
            rows.push(old + 1);
        }
        if let Some(r) = result {
            f.values.insert(r, Value::Rows(rows));
        }
        Ok(())
    }

    fn gather(
        &mut self,
        f: &mut Frame<'m>,
        mode: &GatherMode,
        argument: Handle<Expression>,
        result: Handle<Expression>,
    ) -> Lowered<()> {
        let rows = self.rows(f, argument)?;
        let (mode, by) = match mode {
            GatherMode::BroadcastFirst => (Shuffle::First, self.constant(0)),
            GatherMode::Broadcast(i) | GatherMode::Shuffle(i) => (Shuffle::Index, self.row(f, *i)?),
            GatherMode::ShuffleDown(i) => (Shuffle::Down, self.row(f, *i)?),
            GatherMode::ShuffleUp(i) => (Shuffle::Up, self.row(f, *i)?),
            GatherMode::ShuffleXor(i) => (Shuffle::Xor, self.row(f, *i)?),
            _ => return Err(self.unsupported("an exchange within a quad")),
        };
        let (width, members) = (self.options.subgroup_size as u8, self.members(f));
        let d = self.registers(rows.len() as u32);
        for (i, a) in rows.iter().enumerate() {
            let (d, a) = (d + i as u32, *a);
            self.push(Op::Shuffle { mode, d, a, b: by, width, clamp: None, valid: None, members });
        }
        f.values.insert(result, Value::Rows((d..d + rows.len() as u32).collect()));
        Ok(())
    }

    /// The type behind a pointer, and whether it is atomic.
    pub(super) fn pointee(&self, f: &Frame<'m>, pointer: Handle<Expression>) -> Lowered<(TypeInner, bool)> {
        let inner = match f.info[pointer].ty.inner_with(&self.module.types) {
            TypeInner::Pointer { base, .. } => self.inner(*base).clone(),
            TypeInner::ValuePointer { size: Some(size), scalar, .. } => {
                TypeInner::Vector { size: *size, scalar: *scalar }
            }
            TypeInner::ValuePointer { size: None, scalar, .. } => TypeInner::Scalar(*scalar),
            _ => return Err(self.unsupported("a store through this expression")),
        };
        let atomic = matches!(inner, TypeInner::Atomic(_));
        Ok((inner, atomic))
    }
}

fn subgroup_operation(op: SubgroupOperation, kind: ScalarKind) -> Reduce {
    let (float, signed) = (kind == ScalarKind::Float, kind == ScalarKind::Sint);
    match op {
        SubgroupOperation::All => Reduce::All,
        SubgroupOperation::Any => Reduce::Any,
        SubgroupOperation::Add if float => Reduce::AddF,
        SubgroupOperation::Add => Reduce::AddI,
        SubgroupOperation::Mul if float => Reduce::MulF,
        SubgroupOperation::Mul => Reduce::MulI,
        SubgroupOperation::Min if float => Reduce::MinF,
        SubgroupOperation::Min if signed => Reduce::MinS,
        SubgroupOperation::Min => Reduce::MinU,
        SubgroupOperation::Max if float => Reduce::MaxF,
        SubgroupOperation::Max if signed => Reduce::MaxS,
        SubgroupOperation::Max => Reduce::MaxU,
        SubgroupOperation::And => Reduce::And,
        SubgroupOperation::Or => Reduce::Or,
        SubgroupOperation::Xor => Reduce::Xor,
    }
}
