//! Arithmetic on constants.

use super::pattern::{first, literal};
use super::rewrite::{New, Rule, Site, sweep};
use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::graph::{Graph, Op, ValueId, WeightData};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal, UnaryOp};

/// Computes scalars of constants, and reads constants out of weights that hold one value.
///
/// `f(c, d) == e` for numbers c, d, e   class: exact (e is rounded once to f32)
///
/// Results are scalars, so no fold makes a graph larger; a result that is not finite is not folded. Pre: canonical.
/// Post: no function of scalar constants is left.
pub struct ConstantFold;

impl ConstantFold {
    /// Its name.
    pub const NAME: &'static str = "constant-fold";
}

pub(super) const RULES: &[Rule] = &[
    Rule::round("fold-unary", fold_unary),
    Rule::exact("fold-binary", fold_binary),
    Rule::exact("fold-cast", fold_cast),
    Rule::exact("uniform-weight", uniform_weight),
    Rule::exact("view-of-scalar", view_of_scalar),
    Rule::exact("unit-iota", unit_iota),
];

impl Pass for ConstantFold {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        sweep(Self::NAME, graph, ctx, RULES)
    }
}

fn scalar(s: &Site<'_>, v: ValueId) -> Option<Literal> {
    if let Op::Const(l) = s.g.op(v) { Some(*l) } else { None }
}

fn number(l: Literal) -> f64 {
    match l {
        Literal::F32(b) => f64::from(f32::from_bits(b)),
        Literal::I32(v) => f64::from(v),
        Literal::Bool(b) => f64::from(u8::from(b)),
    }
}

fn constant(to: Scalar, x: f64) -> Option<New> {
    let l = match to {
        Scalar::F32 => Literal::f32(Some(x as f32).filter(|v| v.is_finite())?),
        Scalar::I32 => Literal::I32(i32::try_from(x as i64).ok().filter(|v| f64::from(*v) == x)?),
        Scalar::Bool => Literal::Bool(x != 0.0),
    };
    Some(New::Make(Op::Const(l), Vec::new()))
}

fn fold_unary(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Unary(op) = s.g.op(v) else { return None };
    let l = scalar(s, first(s.g, v)?)?;
    let x = number(l);
    let y = match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Exp => x.min(88.0).exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Recip => 1.0 / x,
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnaryOp::Silu => x / (1.0 + (-x).exp()),
        UnaryOp::Relu => x.max(0.0),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Not => f64::from(u8::from(x == 0.0)),
        UnaryOp::Sign if x == 0.0 => 0.0,
        UnaryOp::Sign => x.signum(),
        UnaryOp::Erf | UnaryOp::GeluErf | UnaryOp::GeluTanh => return None,
    };
    constant(l.scalar(), y)
}

fn fold_binary(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Binary(op) = s.g.op(v) else { return None };
    let [a, b] = s.g.operands(v)[..] else { return None };
    let (la, lb) = (scalar(s, a)?, scalar(s, b)?);
    let (x, y) = (number(la), number(lb));
    let truth = |b: bool| f64::from(u8::from(b));
    let z = match op {
        BinaryOp::Add => x + y,
        BinaryOp::Sub => x - y,
        BinaryOp::Mul => x * y,
        BinaryOp::Div if y == 0.0 => return None,
        BinaryOp::Div if la.scalar() == Scalar::I32 => (x / y).trunc(),
        BinaryOp::Div => x / y,
        BinaryOp::Max => x.max(y),
        BinaryOp::Min => x.min(y),
        BinaryOp::Pow => x.powf(y),
        BinaryOp::Eq => truth(x == y),
        BinaryOp::Lt => truth(x < y),
        BinaryOp::Le => truth(x <= y),
        BinaryOp::And => truth(x != 0.0 && y != 0.0),
        BinaryOp::Or => truth(x != 0.0 || y != 0.0),
    };
    constant(s.g.ty(v).scalar, z)
}

fn fold_cast(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Cast(to) = s.g.op(v) else { return None };
    let x = number(scalar(s, first(s.g, v)?)?);
    constant(*to, if *to == Scalar::I32 { x.trunc() } else { x })
}

/// A weight known to the compiler, all of whose elements are equal, is that element, broadcast.
fn uniform_weight(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Weight(id) = s.g.op(v) else { return None };
    let info = s.tables.weight_info(*id)?;
    let WeightData::Inline(values) = &info.data else { return None };
    let (x, rest) = values.split_first()?;
    if s.g.ty(v).scalar != Scalar::F32 || rest.iter().any(|y| y.to_bits() != x.to_bits()) || !x.is_finite() {
        return None;
    }
    let shape = &s.g.ty(v).shape;
    Some(if shape.is_empty() { New::f32(*x) } else { New::Make(Op::Broadcast(shape.clone()), vec![New::f32(*x)]) })
}

/// Every view of one repeated element is a broadcast of it.
fn view_of_scalar(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    let view = matches!(s.g.op(v), Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. });
    let l = literal(s.g, x).filter(|_| view)?;
    let c = New::Make(Op::Const(l), Vec::new());
    let shape = &s.g.ty(v).shape;
    Some(if shape.is_empty() { c } else { New::Make(Op::Broadcast(shape.clone()), vec![c]) })
}

/// Counting along an axis of extent 1 gives the offset.
fn unit_iota(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Iota { axis, offset } = s.g.op(v) else { return None };
    let shape = &s.g.ty(v).shape;
    let value = i32::try_from(offset.as_const()?).ok()?;
    let c = New::Make(Op::Const(Literal::I32(value)), Vec::new());
    shape.get(*axis)?.is(1).then(|| New::Make(Op::Broadcast(shape.clone()), vec![c]))
}
