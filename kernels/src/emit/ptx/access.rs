//! Reading and writing memory: addresses with constant parts as offsets, neighbouring loads joined to vectors, and what
//! is known to lie in registers already.

use std::collections::{BTreeMap, BTreeSet};

use super::asm::Kind;
use super::declare::in_registers;
use super::writer::{Overlap, Value, Writer, Written, displaced, mem_type};
use crate::ir::{Access, ArrayRef, BinaryOp, Block, Expr, Handle, Literal, Module, Stmt, TileOp};

/// Terms of an index.
type Base = Vec<Handle<Expr>>;

/// Constant parts of an index beyond this stay in the index.
const FAR: u32 = 1 << 20;

/// Values that lie in registers.
pub(super) struct Known {
    /// What holds until a block ends, for each open block.
    scopes: Vec<Scope>,
    /// Values that hold until the statement ends.
    statement: BTreeMap<Handle<Expr>, Value>,
}

#[derive(Default)]
struct Scope {
    values: BTreeMap<Handle<Expr>, Value>,
    addresses: BTreeMap<(ArrayRef, Base), String>,
    /// Loads ahead of their statement, valid until the memory is written.
    ahead: BTreeMap<Handle<Expr>, (ArrayRef, Value)>,
}

impl Known {
    /// Nothing is known yet; the kernel's body is the open block.
    pub(super) fn new() -> Known {
        Known { scopes: vec![Scope::default()], statement: BTreeMap::new() }
    }

    pub(super) fn get(&self, h: Handle<Expr>) -> Option<&Value> {
        self.statement.get(&h).or_else(|| {
            self.scopes.iter().rev().find_map(|s| s.values.get(&h).or_else(|| s.ahead.get(&h).map(|(_, v)| v)))
        })
    }

    /// A value that holds until the block ends if it is `pure`, else until the statement ends.
    pub(super) fn remember(&mut self, h: Handle<Expr>, value: &[String], pure: bool) {
        let map = match self.scopes.last_mut() {
            Some(scope) if pure => &mut scope.values,
            _ => &mut self.statement,
        };
        map.insert(h, value.to_vec());
    }

    fn load_ahead(&mut self, h: Handle<Expr>, array: ArrayRef, value: Value) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.ahead.insert(h, (array, value));
        }
    }

    pub(super) fn next_statement(&mut self) {
        self.statement.clear();
    }

    pub(super) fn open(&mut self) {
        self.scopes.push(Scope::default());
    }

    pub(super) fn close(&mut self) {
        self.scopes.pop();
    }

    pub(super) fn forget(&mut self, array: ArrayRef) {
        self.scopes.iter_mut().for_each(|s| s.ahead.retain(|_, (a, _)| *a != array));
    }

    /// Other invocations may have written anything.
    pub(super) fn forget_all(&mut self) {
        self.scopes.iter_mut().for_each(|s| s.ahead.clear());
    }

    /// Drops what a block, about to run or just run, may change.
    pub(super) fn forget_written_in(&mut self, block: &Block) {
        let effects = Effects::of(block);
        if effects.barrier {
            self.forget_all();
        }
        effects.written.iter().for_each(|a| self.forget(*a));
    }
}

/// What statements do to memory.
#[derive(Default)]
struct Effects {
    written: BTreeSet<ArrayRef>,
    barrier: bool,
}

impl Effects {
    fn of(block: &Block) -> Effects {
        let mut effects = Effects::default();
        block.iter().for_each(|s| effects.add(s));
        effects
    }

    fn add(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Store { array, .. } => {
                self.written.insert(*array);
            }
            Stmt::Tile(TileOp::Copy { to, .. }) => {
                self.written.insert(ArrayRef::Workgroup(*to));
            }
            Stmt::Warpgroup(op) => self.barrier |= op.orders_memory(),
            Stmt::Barrier(_) | Stmt::UniformLoad { .. } | Stmt::Tile(TileOp::Wait(_)) => self.barrier = true,
            _ => {}
        }
        for inner in stmt.blocks() {
            inner.iter().for_each(|s| self.add(s));
        }
    }

    fn touches(&self, array: ArrayRef) -> bool {
        self.barrier || self.written.contains(&array)
    }
}

/// A load of a 4-byte element from a buffer, by its distance from a base.
#[derive(Clone, Copy)]
struct Occurrence {
    at: usize,
    offset: u32,
    expr: Handle<Expr>,
}

/// The loads of a block's own statements, by array and base of the index.
pub(super) struct BlockLoads {
    loads: BTreeMap<(ArrayRef, Base), Vec<Occurrence>>,
    effects: Vec<Effects>,
}

impl BlockLoads {
    pub(super) fn of(module: &Module, lets: &[Option<Handle<Expr>>], block: &Block) -> BlockLoads {
        let mut loads: BTreeMap<_, Vec<Occurrence>> = BTreeMap::new();
        let mut effects = Vec::with_capacity(block.len());
        for (at, stmt) in block.iter().enumerate() {
            let mut own = Effects::default();
            own.add(stmt);
            effects.push(own);
            let mut seen = BTreeSet::new();
            let mut open = match stmt {
                Stmt::For { start, .. } => vec![*start],
                _ => stmt.exprs(),
            };
            while let Some(h) = open.pop() {
                if !seen.insert(h) {
                    continue;
                }
                if let Expr::Load { array, index } = &module.exprs[h]
                    && joins(module, *array)
                {
                    let (base, offset) = split(module, lets, *index);
                    loads.entry((*array, base)).or_default().push(Occurrence { at, offset, expr: h });
                }
                open.extend(module.exprs[h].operands());
            }
        }
        loads.retain(|_, l| l.len() > 1);
        BlockLoads { loads, effects }
    }

    /// The last statement from `at` on that sees the same content of an array.
    fn horizon(&self, module: &Module, array: ArrayRef, at: usize) -> usize {
        if is_constant(module, array) {
            return usize::MAX;
        }
        (at..self.effects.len()).find(|i| self.effects[*i].touches(array)).unwrap_or(usize::MAX)
    }
}

fn is_constant(module: &Module, array: ArrayRef) -> bool {
    matches!(array, ArrayRef::Buffer(h) if module.buffers[h].access != Access::ReadWrite)
}

/// Whether neighbouring loads from an array may be joined.
fn joins(module: &Module, array: ArrayRef) -> bool {
    let elem = module.elem(array);
    matches!(array, ArrayRef::Buffer(_)) && elem.is_scalar() && elem.size_bytes() == 4
}

/// The definitions of names as expressions.
pub(super) fn definitions(module: &Module) -> Vec<Option<Handle<Expr>>> {
    let mut found = vec![None; module.locals.len()];
    let mut blocks = vec![&module.body];
    while let Some(block) = blocks.pop() {
        for stmt in block {
            if let Stmt::Let { local, value } = stmt {
                found[local.index()] = Some(*value);
            }
            blocks.extend(stmt.blocks());
        }
    }
    found
}

/// An index as a sum of terms, in order of their handles, and a constant.
pub(super) fn split(module: &Module, lets: &[Option<Handle<Expr>>], index: Handle<Expr>) -> (Base, u32) {
    let mut terms = Base::new();
    let mut constant = 0u32;
    let mut open = vec![index];
    while let Some(h) = open.pop() {
        match &module.exprs[h] {
            Expr::Literal(Literal::U32(c)) => constant = constant.wrapping_add(*c),
            Expr::Binary(BinaryOp::Add, x, y) => open.extend([*x, *y]),
            Expr::Local(local) => match lets[local.index()].map(|d| (d, &module.exprs[d])) {
                // A name of a displaced value is that value, displaced.
                Some((d, Expr::Binary(BinaryOp::Add, _, c))) if matches!(module.exprs[*c], Expr::Literal(_)) => {
                    open.push(d);
                }
                _ => terms.push(h),
            },
            _ => terms.push(h),
        }
    }
    terms.sort_unstable();
    if constant < FAR { (terms, constant) } else { (vec![index], 0) }
}

impl Writer<'_> {
    /// The value of a load, in registers of the emitter's choice.
    pub(super) fn load(&mut self, h: Handle<Expr>, array: ArrayRef, index: Handle<Expr>) -> Written<Value> {
        if let Some(element) = self.private_element(array, index) {
            return Ok(element);
        }
        if let Some(value) = self.joined(h, array, index)? {
            return Ok(value);
        }
        let regs = self.fresh(self.module.elem(array));
        self.load_into(array, index, &regs)?;
        Ok(regs)
    }

    /// The registers of an element of a private array.
    pub(super) fn private_element(&self, array: ArrayRef, index: Handle<Expr>) -> Option<Value> {
        let ArrayRef::Private(a) = array else { return None };
        match self.module.exprs[index] {
            Expr::Literal(Literal::U32(at)) if in_registers(self.module, a) => {
                Some(self.names.element(a, self.module.elem(array), at))
            }
            _ => None,
        }
    }

    /// The loads that one access to an aligned pair or four would serve, this one among them.
    pub(super) fn neighbours(
        &self,
        h: Handle<Expr>,
        array: ArrayRef,
        index: Handle<Expr>,
    ) -> Option<Vec<Handle<Expr>>> {
        if !joins(self.module, array) {
            return None;
        }
        let (base, offset) = split(self.module, &self.lets, index);
        let aligned = base.iter().map(|b| self.multiples.get(*b)).min().unwrap_or(u32::MAX);
        let block = self.loads.last()?;
        let stable = self.is_stable(&base);
        let all = block.loads.get(&(array, base))?;
        let last = if stable { block.horizon(self.module, array, self.at) } else { self.at };
        let find = |o: u32| all.iter().find(|l| l.offset == o && l.at >= self.at && l.at <= last).map(|l| l.expr);
        if find(offset) != Some(h) {
            return None;
        }
        let run = |n: u32| -> Option<Vec<Handle<Expr>>> {
            let first = offset - offset % n;
            (aligned >= n).then(|| (first..first + n).map(find).collect::<Option<Vec<_>>>()).flatten()
        };
        run(4).or_else(|| run(2))
    }

    /// Whether a base means the same in every statement of a block.
    fn is_stable(&self, base: &[Handle<Expr>]) -> bool {
        base.iter().all(|b| self.pure[b.index()])
    }

    /// A load together with its neighbours.
    fn joined(&mut self, h: Handle<Expr>, array: ArrayRef, index: Handle<Expr>) -> Written<Option<Value>> {
        let Some(members) = self.neighbours(h, array, index) else { return Ok(None) };
        let (base, offset) = split(self.module, &self.lets, index);
        let lanes = members.len() as u32;
        let scalar = self.module.elem(array).scalar;
        let regs: Value = (0..lanes).map(|_| self.asm.reg(Kind::of(scalar))).collect();
        let stable = self.is_stable(&base);
        let place = self.place(array, base, offset - offset % lanes)?;
        let from = self.source(array);
        self.op(format!("ld.{from}.v{lanes}.{} {{{}}}, {place}", mem_type(scalar), regs.join(", ")));
        for (member, reg) in members.iter().zip(&regs) {
            let pure = self.pure[member.index()];
            if pure || !stable {
                self.known.remember(*member, std::slice::from_ref(reg), pure);
            } else {
                self.known.load_ahead(*member, array, vec![reg.clone()]);
            }
        }
        Ok(members.iter().position(|m| *m == h).and_then(|i| regs.get(i)).map(|reg| vec![reg.clone()]))
    }

    /// Loads an element into given registers.
    pub(super) fn load_into(&mut self, array: ArrayRef, index: Handle<Expr>, regs: &[String]) -> Written<()> {
        let elem = self.module.elem(array);
        let (base, offset) = split(self.module, &self.lets, index);
        let place = self.place(array, base, offset)?;
        let from = self.source(array);
        match elem.lanes() {
            1 => self.op(format!("ld.{from}.{} {}, {place}", mem_type(elem.scalar), regs.join(", "))),
            n => self.op(format!("ld.{from}.v{n}.{} {{{}}}, {place}", mem_type(elem.scalar), regs.join(", "))),
        }
        Ok(())
    }

    pub(super) fn store(&mut self, array: ArrayRef, index: Handle<Expr>, value: Handle<Expr>) -> Written<()> {
        let elem = self.module.elem(array);
        if let Some(regs) = self.private_element(array, index) {
            return self.assign(&regs, value, true);
        }
        let v = self.value(value)?;
        let (base, offset) = split(self.module, &self.lets, index);
        let place = self.place(array, base, offset)?;
        let to = match array {
            ArrayRef::Buffer(_) => "global",
            ArrayRef::Workgroup(_) => "shared",
            ArrayRef::Private(_) => "local",
        };
        match elem.lanes() {
            1 => self.op(format!("st.{to}.{} {place}, {}", mem_type(elem.scalar), v.join(", "))),
            n => self.op(format!("st.{to}.v{n}.{} {place}, {{{}}}", mem_type(elem.scalar), v.join(", "))),
        }
        self.known.forget(array);
        Ok(())
    }

    fn source(&self, array: ArrayRef) -> &'static str {
        match array {
            // The assembler moves other loads behind the wait.
            ArrayRef::Buffer(_) if self.overlap == Overlap::Early => "relaxed.gpu.global.L1::no_allocate",
            ArrayRef::Buffer(_) if self.overlap == Overlap::None && is_constant(self.module, array) => "global.nc",
            ArrayRef::Buffer(_) => "global",
            ArrayRef::Workgroup(_) => "shared",
            ArrayRef::Private(_) => "local",
        }
    }

    /// The operand that names an element: base, and a constant number of elements.
    pub(super) fn place(&mut self, array: ArrayRef, base: Base, offset: u32) -> Written<String> {
        let size = self.module.elem(array).size_bytes();
        let address = if base.is_empty() { self.names.address(array) } else { self.address(array, base, size)? };
        Ok(displaced(&address, u64::from(offset) * u64::from(size)))
    }

    pub(super) fn address(&mut self, array: ArrayRef, base: Base, size: u32) -> Written<String> {
        let key = (array, base);
        if let Some(address) = self.known.scopes.iter().rev().find_map(|s| s.addresses.get(&key)) {
            return Ok(address.clone());
        }
        let mut index: Option<String> = None;
        for term in &key.1 {
            let term = self.scalar(*term)?;
            index = Some(match index {
                Some(sum) => {
                    let r = self.asm.reg(Kind::Word);
                    self.op(format!("add.u32 {r}, {sum}, {term}"));
                    r
                }
                None => term,
            });
        }
        let index = index.unwrap_or_else(|| "0".to_owned());
        let start = self.names.address(array);
        let (kind, multiply) = match array {
            ArrayRef::Buffer(_) => (Kind::Address, "mad.wide.s32"),
            _ => (Kind::Word, "mad.lo.u32"),
        };
        let address = self.asm.reg(kind);
        self.op(format!("{multiply} {address}, {index}, {size}, {start}"));
        if self.is_stable(&key.1)
            && let Some(scope) = self.known.scopes.last_mut()
        {
            scope.addresses.insert(key, address.clone());
        }
        Ok(address)
    }
}
