//! Expression trees of a kernel: prologues, epilogues and pointwise bodies. An expression is a value without effect;
//! equal expressions share one node.

use crate::dim::{Dim, Sym};
use crate::dtype::Scalar;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Index of an expression in its kernel's [`Exprs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExprId(pub u32);

/// Index of an argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArgId(pub u16);

/// A literal. Floats are kept by their bits, so that literals compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Literal {
    /// A finite float, by its bits.
    F32(u32),
    /// An integer.
    I32(i32),
    /// A truth value.
    Bool(bool),
}

impl Literal {
    /// A float literal.
    pub fn f32(v: f32) -> Self {
        Literal::F32(v.to_bits())
    }
    /// Its type.
    pub fn scalar(self) -> Scalar {
        match self {
            Literal::F32(_) => Scalar::F32,
            Literal::I32(_) => Scalar::I32,
            Literal::Bool(_) => Scalar::Bool,
        }
    }
}

/// Functions of one operand. All are F32 → F32 but `Not` (Bool → Bool) and `Neg`, `Abs` (I32 too).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnaryOp {
    /// −x.
    Neg,
    /// |x|.
    Abs,
    /// eˣ, finite for every finite x (the argument is bounded by 88).
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// 1/√x.
    Rsqrt,
    /// 1/x.
    Recip,
    /// Hyperbolic tangent, exact to ±1 for large |x|.
    Tanh,
    /// Error function, absolute error below 3e-7.
    Erf,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// 1/(1 + e⁻ˣ).
    Sigmoid,
    /// x·sigmoid(x).
    Silu,
    /// x·(1 + erf(x/√2))/2.
    GeluErf,
    /// x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// Largest integer not above x.
    Floor,
    /// Smallest integer not below x.
    Ceil,
    /// Nearest integer, ties to even.
    Round,
    /// −1, 0 or 1.
    Sign,
    /// Logical not.
    Not,
}

/// Functions of two operands of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BinaryOp {
    /// a + b.
    Add,
    /// a − b.
    Sub,
    /// a·b.
    Mul,
    /// a/b; for I32 toward zero.
    Div,
    /// The larger.
    Max,
    /// The smaller.
    Min,
    /// aᵇ for a ≥ 0; for negative a only integral b.
    Pow,
    /// a = b, Bool.
    Eq,
    /// a < b, Bool.
    Lt,
    /// a ≤ b, Bool.
    Le,
    /// Logical and.
    And,
    /// Logical or.
    Or,
}

impl BinaryOp {
    /// Whether the result is a truth value.
    pub const fn is_comparison(self) -> bool {
        matches!(self, BinaryOp::Eq | BinaryOp::Lt | BinaryOp::Le)
    }
}

/// A node of an expression tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expr {
    /// The element of an argument at a linear index; quantised storage is dequantised. [`Sym::Value`] symbols of the
    /// index name I32 expressions of the same kernel, which are in range by construction (clamped where data decide).
    Load {
        /// Which argument.
        arg: ArgId,
        /// Linear element index over axes, sizes and values.
        index: Dim,
    },
    /// A literal.
    Const(Literal),
    /// The I32 value of a size expression over axes, sizes and values.
    Coord(Dim),
    /// f(a).
    Unary(UnaryOp, ExprId),
    /// f(a, b).
    Binary(BinaryOp, ExprId, ExprId),
    /// `t` where `cond`, else `f`.
    Select {
        /// Bool.
        cond: ExprId,
        /// Value where true.
        t: ExprId,
        /// Value where false.
        f: ExprId,
    },
    /// Value conversion; F32 → I32 truncates toward zero, anything → Bool is `≠ 0`.
    Cast(Scalar, ExprId),
    /// The anchor's accumulator at the current coordinate (F32).
    Acc(u8),
    /// The finished row statistic of that number (F32, for arg-reductions I32).
    Stat(u8),
}

/// The expressions of one kernel. Operands come before their users.
#[derive(Clone, Debug, Default)]
pub struct Exprs {
    nodes: Vec<Expr>,
    types: Vec<Scalar>,
    known: HashMap<Expr, ExprId>,
}

impl PartialEq for Exprs {
    fn eq(&self, o: &Self) -> bool {
        self.nodes == o.nodes && self.types == o.types
    }
}

impl Exprs {
    /// Adds `e` of type `ty`, or finds the equal node. The caller states the type of loads and statistics; it is
    /// derived for the rest.
    pub fn add(&mut self, e: Expr, ty: Scalar) -> ExprId {
        if let Some(id) = self.known.get(&e) {
            return *id;
        }
        let id = ExprId(self.nodes.len() as u32);
        self.known.insert(e.clone(), id);
        self.nodes.push(e);
        self.types.push(ty);
        id
    }
    /// A float literal.
    pub fn f32(&mut self, v: f32) -> ExprId {
        self.add(Expr::Const(Literal::f32(v)), Scalar::F32)
    }
    /// An integer literal.
    pub fn i32(&mut self, v: i32) -> ExprId {
        self.add(Expr::Const(Literal::I32(v)), Scalar::I32)
    }
    /// The value of a size expression.
    pub fn coord(&mut self, d: Dim) -> ExprId {
        match d.as_const().and_then(|v| i32::try_from(v).ok()) {
            Some(v) => self.i32(v),
            None => self.add(Expr::Coord(d), Scalar::I32),
        }
    }
    /// f(a).
    pub fn unary(&mut self, op: UnaryOp, a: ExprId) -> ExprId {
        let ty = self.scalar(a);
        self.add(Expr::Unary(op, a), ty)
    }
    /// f(a, b).
    pub fn binary(&mut self, op: BinaryOp, a: ExprId, b: ExprId) -> ExprId {
        let ty = if op.is_comparison() { Scalar::Bool } else { self.scalar(a) };
        self.add(Expr::Binary(op, a, b), ty)
    }
    /// `t` where `cond`, else `f`.
    pub fn select(&mut self, cond: ExprId, t: ExprId, f: ExprId) -> ExprId {
        let ty = self.scalar(t);
        self.add(Expr::Select { cond, t, f }, ty)
    }
    /// Conversion; nothing when the type is right already.
    pub fn cast(&mut self, to: Scalar, a: ExprId) -> ExprId {
        if self.scalar(a) == to { a } else { self.add(Expr::Cast(to, a), to) }
    }
    /// The node of an id; a zero literal for an id of another kernel.
    pub fn get(&self, id: ExprId) -> &Expr {
        const ZERO: &Expr = &Expr::Const(Literal::F32(0));
        self.nodes.get(id.0 as usize).unwrap_or(ZERO)
    }
    /// The type of an expression.
    pub fn scalar(&self, id: ExprId) -> Scalar {
        self.types.get(id.0 as usize).copied().unwrap_or(Scalar::F32)
    }
    /// All nodes in order.
    pub fn iter(&self) -> impl Iterator<Item = (ExprId, &Expr)> {
        self.nodes.iter().enumerate().map(|(i, e)| (ExprId(i as u32), e))
    }
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
    /// The direct operands of `id`: operand expressions, and expressions that its index names.
    pub fn operands(&self, id: ExprId) -> Vec<ExprId> {
        let from_dim = |d: &Dim| {
            let values = d.symbols().into_iter();
            values.filter_map(|s| if let Sym::Value(v) = s { Some(ExprId(v)) } else { None }).collect()
        };
        match self.get(id) {
            Expr::Load { index, .. } => from_dim(index),
            Expr::Coord(d) => from_dim(d),
            Expr::Unary(_, a) | Expr::Cast(_, a) => vec![*a],
            Expr::Binary(_, a, b) => vec![*a, *b],
            Expr::Select { cond, t, f } => vec![*cond, *t, *f],
            Expr::Const(_) | Expr::Acc(_) | Expr::Stat(_) => Vec::new(),
        }
    }
    /// `roots` and everything below them, operands first, each once.
    pub fn reachable(&self, roots: &[ExprId]) -> Vec<ExprId> {
        let mut mark = vec![false; self.nodes.len()];
        let mut stack: Vec<ExprId> = roots.to_vec();
        while let Some(e) = stack.pop() {
            if let Some(m) = mark.get_mut(e.0 as usize)
                && !*m
            {
                *m = true;
                stack.extend(self.operands(e));
            }
        }
        (0..self.nodes.len() as u32).filter(|i| mark.get(*i as usize) == Some(&true)).map(ExprId).collect()
    }
    /// The kernel with some axes replaced inside `root`: copies what depends on them, shares the rest.
    pub fn substitute(&mut self, root: ExprId, f: &dyn Fn(&Sym) -> Option<Dim>) -> ExprId {
        let mut done: HashMap<ExprId, ExprId> = HashMap::new();
        for id in self.reachable(&[root]) {
            let ty = self.scalar(id);
            let at = |m: &HashMap<ExprId, ExprId>, e: ExprId| m.get(&e).copied().unwrap_or(e);
            let dim = |d: &Dim| {
                d.substitute(&|s| match s {
                    Sym::Value(v) => Some(Dim::value(at(&done, ExprId(*v)).0)),
                    other => f(other),
                })
            };
            let new = match self.get(id).clone() {
                Expr::Load { arg, index } => Expr::Load { arg, index: dim(&index) },
                Expr::Coord(d) => {
                    let d = dim(&d);
                    done.insert(id, self.coord(d));
                    continue;
                }
                Expr::Unary(op, a) => Expr::Unary(op, at(&done, a)),
                Expr::Binary(op, a, b) => Expr::Binary(op, at(&done, a), at(&done, b)),
                Expr::Select { cond, t, f } => Expr::Select { cond: at(&done, cond), t: at(&done, t), f: at(&done, f) },
                Expr::Cast(to, a) => Expr::Cast(to, at(&done, a)),
                leaf => leaf,
            };
            let new = self.add(new, ty);
            done.insert(id, new);
        }
        done.get(&root).copied().unwrap_or(root)
    }
}

impl Serialize for Exprs {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.nodes.iter().zip(&self.types))
    }
}
impl<'de> Deserialize<'de> for Exprs {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let pairs: Vec<(Expr, Scalar)> = Vec::deserialize(d)?;
        let mut out = Exprs::default();
        for (i, (e, t)) in pairs.into_iter().enumerate() {
            out.nodes.push(e.clone());
            out.types.push(t);
            let below = out.operands(ExprId(i as u32)).iter().all(|o| (o.0 as usize) < i);
            if !below {
                return Err(serde::de::Error::custom(format!("expression {i} uses one that does not come before it")));
            }
            out.known.insert(e, ExprId(i as u32));
        }
        Ok(out)
    }
}
