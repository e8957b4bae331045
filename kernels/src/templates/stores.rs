//! Guarded stores of results.

use super::common::{KernelCtx, Scope};
use crate::dtype::{HalfFormat, Scalar};
use crate::ir::{self, Type, Val, Var};
use crate::spec::{ArgId, LeftStore, Store};

impl KernelCtx<'_> {
    /// Emits every store of `stores` at the coordinate of `scope`; the caller guards the bounds of the domain.
    ///
    /// Values are computed before anything is written where arguments may share storage.
    pub fn store_all(&self, scope: &Scope, stores: &[&Store]) {
        let b = &self.b;
        let early = !self.spec.aliases.is_empty() && stores.len() > 1;
        let mut scope = scope.clone();
        let mut pending: Vec<(&Store, Val)> = Vec::new();
        let mut guarded: Vec<(&Store, Var)> = Vec::new();
        let mut late: Vec<&Store> = Vec::new();
        for st in stores.iter().copied() {
            match (&st.when, early) {
                (None, _) => pending.push((st, self.stored(&mut scope, st))),
                (Some(_), false) => late.push(st),
                (Some(_), true) => {
                    let ty = if self.scalar_of(st) == Scalar::F32 { Type::F32 } else { Type::I32 };
                    let v = b.var("kept", ty, b.zero(ty));
                    let cond = self.when(&mut scope, st);
                    b.if_(cond, |b| {
                        let mut inner = scope.clone();
                        b.set(v, self.stored(&mut inner, st));
                    });
                    guarded.push((st, v));
                }
            }
        }
        for (st, v) in pending {
            let at = self.address(&mut scope, st.arg, &st.index);
            self.put(st.arg, at, v);
        }
        for (st, v) in guarded {
            let cond = self.when(&mut scope, st);
            b.if_(cond, |b| {
                let at = self.address(&mut scope.clone(), st.arg, &st.index);
                self.put(st.arg, at, b.get(v));
            });
        }
        for st in late {
            let cond = self.when(&mut scope, st);
            b.if_(cond, |_| {
                let mut inner = scope.clone();
                let v = self.stored(&mut inner, st);
                let at = self.address(&mut inner, st.arg, &st.index);
                self.put(st.arg, at, v);
            });
        }
    }
    /// Writes what is wanted of a matmul's left side at the row and k of `scope`.
    pub fn store_left(&self, scope: &mut Scope) {
        for LeftStore { arg, index, value } in &self.spec.left {
            let v = self.expr(scope, *value);
            let at = self.address(scope, *arg, index);
            self.put(*arg, at, v);
        }
    }
    fn scalar_of(&self, st: &Store) -> Scalar {
        self.arg(st.arg).map_or(Scalar::F32, |a| a.storage.scalar())
    }
    /// The value of a store in the type of its buffer.
    fn stored(&self, scope: &mut Scope, st: &Store) -> Val {
        let v = self.expr(scope, st.value);
        match self.scalar_of(st) {
            Scalar::Bool => self.b.select(v, self.b.i32(1), self.b.i32(0)),
            _ => v,
        }
    }
    /// Writes a value where an argument is kept, rounded as it is kept.
    fn put(&self, arg: ArgId, at: Val, v: Val) {
        let b = &self.b;
        let (Some(array), Some(a)) = (self.buffer(arg), self.arg(arg)) else {
            return b.error(format!("store to argument {}", arg.0));
        };
        let v = match a.rounded.filter(|_| a.is_half(self.caps.tier)) {
            Some(HalfFormat::F16) => b.cast(ir::Scalar::F16, b.clamp(v, -HalfFormat::F16_MAX, HalfFormat::F16_MAX)),
            Some(HalfFormat::Bf16) => b.cast(ir::Scalar::Bf16, v),
            None => v,
        };
        b.store(array, at, v);
    }
    /// The condition of a store; `true` without one.
    pub fn when(&self, scope: &mut Scope, st: &Store) -> Val {
        let b = &self.b;
        let Some(w) = &st.when else { return b.bool(true) };
        let (i, k) = (scope.axis(w.axis as usize), w.axis as usize);
        let i = i.unwrap_or_else(|| self.poison(format!("axis {k} of a range is not bound here")));
        let hi = if self.spec.domain.get(k) == Some(&w.hi) {
            b.bool(true)
        } else {
            let hi = self.dim(scope, &w.hi);
            b.lt(i, hi)
        };
        let lo = self.dim(scope, &w.lo);
        b.and(b.ge(i, lo), hi)
    }
}
