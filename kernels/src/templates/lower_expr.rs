//! Expressions of a kernel to kernel IR: each shared node once, at the place where it is first needed.

use super::common::{Held, KernelCtx, Scope};
use crate::dtype::Scalar;
use crate::ir::{self, Val};
use crate::spec::{BinaryOp, Expr, ExprId, Literal, UnaryOp};

impl KernelCtx<'_> {
    /// The value of an expression where `scope` stands: F32 as `f32`, I32 as `i32`, Bool as `bool`.
    pub fn expr(&self, scope: &mut Scope, e: ExprId) -> Val {
        if let Some(v) = scope.exprs.get(&e) {
            return *v;
        }
        let v = match self.held(scope, e) {
            Some((held, i)) => {
                let turn = scope.turn.unwrap_or_else(|| self.b.shr(i, held.step.trailing_zeros()));
                self.b.load(held.values, turn)
            }
            None => self.node(scope, e),
        };
        scope.exprs.insert(e, v);
        v
    }
    /// The array that holds the values of an expression, and the place along its axis.
    fn held(&self, scope: &Scope, e: ExprId) -> Option<(Held, Val)> {
        let held = scope.held.iter().find(|h| h.expr == e)?;
        Some((*held, scope.axis(held.axis)?))
    }
    /// A statistic of the row where `scope` stands, from workgroup memory.
    pub(super) fn kept_stat(&self, scope: &Scope, j: usize) -> Option<Val> {
        let (kept, b) = (self.kept.borrow(), &self.b);
        let kept = kept.as_ref()?;
        let array = kept.arrays.get(j).copied()?;
        let mut row: Option<Val> = None;
        for axis in kept.axes.clone() {
            let at = scope.axis(axis)?;
            row = Some(match row {
                Some(outer) => b.add(b.mul(outer, self.extent(self.spec.domain.get(axis)?)), at),
                None => at,
            });
        }
        Some(b.let_("stat", b.load(array, b.sub(row?, kept.first))))
    }
    fn node(&self, scope: &mut Scope, e: ExprId) -> Val {
        let b = &self.b;
        match self.spec.exprs.get(e) {
            Expr::Load { arg, index } => {
                let at = self.address(scope, *arg, index);
                let v = self.element(*arg, at);
                match self.arg(*arg) {
                    Some(a) if self.users(e) > 1 => b.let_(&a.name, v),
                    _ => v,
                }
            }
            Expr::Const(Literal::F32(bits)) => b.f32(f32::from_bits(*bits)),
            Expr::Const(Literal::I32(v)) => b.i32(*v),
            Expr::Const(Literal::Bool(v)) => b.bool(*v),
            Expr::Coord(d) => {
                let v = self.dim(scope, d);
                b.cast(ir::Scalar::I32, v)
            }
            Expr::Unary(op, a) => {
                let x = self.expr(scope, *a);
                self.unary(*op, x)
            }
            Expr::Binary(op, x, y) => {
                let (p, q) = (self.expr(scope, *x), self.expr(scope, *y));
                self.binary(*op, p, q, self.spec.exprs.scalar(*x), self.spec.exprs.get(*y))
            }
            Expr::Select { cond, t, f } => {
                let c = self.expr(scope, *cond);
                let (t, f) = (self.expr(scope, *t), self.expr(scope, *f));
                b.select(c, t, f)
            }
            Expr::Cast(to, a) => {
                let x = self.expr(scope, *a);
                self.convert(x, self.spec.exprs.scalar(*a), *to)
            }
            Expr::Acc(j) => match scope.acc(*j as usize) {
                Some(v) => v,
                None => self.poison(format!("accumulator {j} is not bound here")),
            },
            Expr::Stat(j) => match scope.stat(*j as usize).or_else(|| self.kept_stat(scope, *j as usize)) {
                Some(v) => v,
                None => self.poison(format!("statistic {j} is not bound here")),
            },
        }
    }
    /// As [`KernelCtx::hoist`], and loads here what is named once in the kernel but used in every turn of the inner loop.
    pub(super) fn load_here(&self, scope: &mut Scope, roots: &[ExprId]) {
        for e in self.spec.exprs.reachable(roots) {
            if let Expr::Load { arg, .. } = self.spec.exprs.get(e)
                && self.is_bound(scope, e)
            {
                let value = self.expr(scope, e);
                let name = self.arg(*arg).map_or("here", |a| a.name.as_str());
                scope.exprs.insert(e, self.b.let_(name, value));
            }
        }
        self.hoist(scope, roots);
    }
    /// Value conversion between the types of expressions.
    pub fn convert(&self, x: Val, from: Scalar, to: Scalar) -> Val {
        let b = &self.b;
        match (from, to) {
            (Scalar::F32, Scalar::Bool) => b.ne(x, 0.0),
            (Scalar::I32, Scalar::Bool) => b.ne(x, b.i32(0)),
            (Scalar::Bool, Scalar::F32) => b.select(x, 1.0, 0.0),
            (Scalar::Bool, Scalar::I32) => b.select(x, b.i32(1), b.i32(0)),
            (Scalar::F32, Scalar::I32) => b.cast(ir::Scalar::I32, x),
            (Scalar::I32, Scalar::F32) => b.cast(ir::Scalar::F32, x),
            _ => x,
        }
    }
    fn unary(&self, op: UnaryOp, x: Val) -> Val {
        let b = &self.b;
        match op {
            UnaryOp::Neg => b.neg(x),
            UnaryOp::Abs => b.abs(x),
            UnaryOp::Exp => b.exp(x),
            UnaryOp::Log => b.log(x),
            UnaryOp::Sqrt => b.sqrt(x),
            UnaryOp::Rsqrt => b.rsqrt(x),
            UnaryOp::Recip => b.rcp(x),
            UnaryOp::Tanh => b.tanh(x),
            UnaryOp::Erf => b.erf(x),
            UnaryOp::Sin => b.sin(x),
            UnaryOp::Cos => b.cos(x),
            UnaryOp::Sigmoid => b.sigmoid(x),
            UnaryOp::Silu => b.silu(x),
            UnaryOp::GeluErf => b.gelu_erf(x),
            UnaryOp::GeluTanh => b.gelu_tanh(x),
            UnaryOp::Relu => b.relu(x),
            UnaryOp::Floor => b.floor(x),
            UnaryOp::Ceil => b.ceil(x),
            UnaryOp::Round => b.round(x),
            UnaryOp::Sign => b.sign(x),
            UnaryOp::Not => b.not(x),
        }
    }
    fn binary(&self, op: BinaryOp, x: Val, y: Val, ty: Scalar, right: &Expr) -> Val {
        let b = &self.b;
        match op {
            BinaryOp::Add => b.add(x, y),
            BinaryOp::Sub => b.sub(x, y),
            BinaryOp::Mul => b.mul(x, y),
            BinaryOp::Div => b.div(x, y),
            BinaryOp::Max => b.max(x, y),
            BinaryOp::Min => b.min(x, y),
            BinaryOp::Eq if ty == Scalar::Bool => b.not(b.ne(x, y)),
            BinaryOp::Eq => b.eq(x, y),
            BinaryOp::Lt => b.lt(x, y),
            BinaryOp::Le => b.le(x, y),
            BinaryOp::And => b.and(x, y),
            BinaryOp::Or => b.or(x, y),
            BinaryOp::Pow => {
                let exponent = match right {
                    Expr::Const(Literal::F32(bits)) => Some(f32::from_bits(*bits)),
                    _ => None,
                };
                self.pow(x, y, exponent)
            }
        }
    }
    /// `xʸ` for `x ≥ 0`, and for negative `x` with integral `y`; `constant` is `y` where it is known.
    fn pow(&self, x: Val, y: Val, constant: Option<f32>) -> Val {
        let b = &self.b;
        match constant {
            Some(0.0) => return b.f32(1.0),
            Some(1.0) => return x,
            Some(2.0) => return b.mul(x, x),
            Some(3.0) => return b.mul(b.mul(x, x), x),
            Some(4.0) => {
                let square = b.mul(x, x);
                return b.mul(square, square);
            }
            Some(0.5) => return b.sqrt(x),
            Some(-0.5) => return b.rsqrt(x),
            Some(-1.0) => return b.rcp(x),
            _ => {}
        }
        let magnitude = b.pow(b.max(b.abs(x), 1.0e-37), y);
        let at_zero = b.select(b.eq(y, 0.0), 1.0, 0.0);
        let magnitude = b.select(b.eq(x, 0.0), at_zero, magnitude);
        let half = b.mul(y, 0.5);
        let is_odd = b.ne(b.floor(half), half);
        b.select(b.and(b.lt(x, 0.0), is_odd), b.neg(magnitude), magnitude)
    }
}
