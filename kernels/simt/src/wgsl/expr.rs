//! Expressions to micro-operations.

use super::place::{Place, Root, Value};
use super::{Frame, Lower, Lowered};
use crate::launch::Argument;
use crate::op::{Access, Addr, Bin, Elem, Num, Op, Origin, Reg, Rel, Tri, Un};
use naga::{
    BinaryOperator as B, Expression, Handle, Literal, RelationalFunction, ScalarKind, TypeInner, UnaryOperator,
};

impl<'m> Lower<'m> {
    /// The value of an expression: computed before, or a constant.
    pub(super) fn value(&mut self, f: &mut Frame<'m>, h: Handle<Expression>) -> Lowered<Value> {
        if let Some(v) = f.values.get(&h) {
            return Ok(v.clone());
        }
        let v = self.lower_expr(f, h)?;
        if matches!(f.fun.expressions[h], Expression::Literal(_) | Expression::ZeroValue(_) | Expression::Constant(_)) {
            f.values.insert(h, v.clone());
        }
        Ok(v)
    }
    pub(super) fn rows(&mut self, f: &mut Frame<'m>, h: Handle<Expression>) -> Lowered<Vec<Reg>> {
        match self.value(f, h)? {
            Value::Rows(r) => Ok(r),
            Value::Place(_) => Err(self.unsupported("a pointer used as a value")),
        }
    }
    pub(super) fn row(&mut self, f: &mut Frame<'m>, h: Handle<Expression>) -> Lowered<Reg> {
        let rows = self.rows(f, h)?;
        rows.first().copied().ok_or_else(|| self.unsupported("an empty value"))
    }
    pub(super) fn place(&mut self, f: &mut Frame<'m>, h: Handle<Expression>) -> Lowered<Place> {
        match self.value(f, h)? {
            Value::Place(p) => Ok(p),
            Value::Rows(_) => Err(self.unsupported("a value used as a pointer")),
        }
    }
    fn type_of(&self, f: &Frame<'m>, h: Handle<Expression>) -> TypeInner {
        f.info[h].ty.inner_with(&self.module.types).clone()
    }
    pub(super) fn scalar_kind(&self, f: &Frame<'m>, h: Handle<Expression>) -> Lowered<ScalarKind> {
        match f.info[h].ty.inner_with(&self.module.types) {
            TypeInner::Scalar(s) | TypeInner::Vector { scalar: s, .. } => self.word(*s),
            _ => Err(self.unsupported("arithmetic on this type")),
        }
    }

    /// A constant expression of the module.
    pub(super) fn constant_rows(&mut self, h: Handle<Expression>) -> Lowered<Vec<Reg>> {
        let module = self.module;
        Ok(match &module.global_expressions[h] {
            Expression::Literal(l) => vec![self.literal(l)?],
            Expression::ZeroValue(ty) => vec![self.constant(0); self.flat_len(*ty)? as usize],
            Expression::Constant(c) => self.constant_rows(module.constants[*c].init)?,
            Expression::Compose { components, .. } => {
                let mut rows = Vec::new();
                for c in components {
                    rows.extend(self.constant_rows(*c)?);
                }
                rows
            }
            Expression::Splat { size, value } => {
                let one = self.constant_rows(*value)?;
                one.repeat(*size as usize)
            }
            _ => return Err(self.unsupported("a constant expression of this form")),
        })
    }

    fn literal(&mut self, l: &Literal) -> Lowered<Reg> {
        let bits = match l {
            Literal::F32(v) => v.to_bits(),
            Literal::U32(v) => *v,
            Literal::I32(v) => *v as u32,
            Literal::Bool(v) => u32::from(*v),
            other => return Err(self.unsupported(format!("the literal {other:?}"))),
        };
        Ok(self.constant(bits))
    }

    /// One operation for each component.
    pub(super) fn each(&mut self, n: usize, mut op: impl FnMut(Reg, usize) -> Op) -> Value {
        let d = self.registers(n as u32);
        for i in 0..n {
            self.push(op(d + i as u32, i));
        }
        Value::Rows((d..d + n as u32).collect())
    }

    pub(super) fn lower_expr(&mut self, f: &mut Frame<'m>, h: Handle<Expression>) -> Lowered<Value> {
        let fun = f.fun;
        Ok(match &fun.expressions[h] {
            Expression::Literal(l) => Value::Rows(vec![self.literal(l)?]),
            Expression::Constant(c) => Value::Rows(self.constant_rows(self.module.constants[*c].init)?),
            Expression::ZeroValue(ty) => Value::Rows(vec![self.constant(0); self.flat_len(*ty)? as usize]),
            Expression::Compose { components, .. } => {
                let mut rows = Vec::new();
                for c in components {
                    rows.extend(self.rows(f, *c)?);
                }
                Value::Rows(rows)
            }
            Expression::Splat { size, value } => Value::Rows(self.rows(f, *value)?.repeat(*size as usize)),
            Expression::Swizzle { size, vector, pattern } => {
                let v = self.rows(f, *vector)?;
                let pick = pattern.iter().take(*size as usize).filter_map(|c| v.get(*c as usize).copied());
                Value::Rows(pick.collect())
            }
            Expression::FunctionArgument(i) => match f.arguments.get(*i as usize) {
                Some(v) => v.clone(),
                None => return Err(self.unsupported("a missing argument")),
            },
            Expression::GlobalVariable(g) => match self.globals.get(g) {
                Some(root) => Value::Place(Place { root: *root, offset: 0, dynamic: None }),
                None => return Err(self.unsupported("this global variable")),
            },
            Expression::LocalVariable(l) => match f.locals.get(l) {
                Some(r) => Value::Place(Place { root: Root::Registers(*r), offset: 0, dynamic: None }),
                None => return Err(self.unsupported("this variable")),
            },
            Expression::Load { pointer } => {
                let place = self.place(f, *pointer)?;
                let (ty, atomic) = self.pointee(f, *pointer)?;
                Value::Rows(self.load(&place, &ty, atomic)?)
            }
            Expression::Access { base, index } => {
                let i = self.row(f, *index)?;
                match self.value(f, *base)? {
                    Value::Place(p) => {
                        let (ty, _) = self.pointee(f, *base)?;
                        Value::Place(self.access(p, &ty, i)?)
                    }
                    Value::Rows(rows) => self.pick_part(f, *base, &rows, i)?,
                }
            }
            Expression::AccessIndex { base, index } => match self.value(f, *base)? {
                Value::Place(p) => {
                    let (ty, _) = self.pointee(f, *base)?;
                    Value::Place(self.access_index(p, &ty, *index)?)
                }
                Value::Rows(rows) => {
                    let ty = self.type_of(f, *base);
                    let start = self.flat_offset(&ty, *index)? as usize;
                    let n = self.flat_len_of(&self.type_of(f, h))? as usize;
                    Value::Rows(rows.get(start..start + n).unwrap_or_default().to_vec())
                }
            },
            Expression::Unary { op, expr } => {
                let kind = self.scalar_kind(f, *expr)?;
                let rows = self.rows(f, *expr)?;
                let op = match (op, kind) {
                    (UnaryOperator::Negate, ScalarKind::Float) => Un::Neg,
                    (UnaryOperator::Negate, _) => Un::NegI,
                    (UnaryOperator::LogicalNot, _) => Un::LogicNot,
                    (UnaryOperator::BitwiseNot, _) => Un::BitNot,
                };
                self.each(rows.len(), |d, i| Op::Un { op, d, a: rows[i] })
            }
            Expression::Binary { op, left, right } => self.binary(f, *op, *left, *right)?,
            Expression::Select { condition, accept, reject } => {
                let c = self.rows(f, *condition)?;
                let (a, b) = (self.rows(f, *accept)?, self.rows(f, *reject)?);
                self.each(a.len(), |d, i| Op::Sel { d, c: if c.len() == 1 { c[0] } else { c[i] }, a: a[i], b: b[i] })
            }
            Expression::Relational { fun, argument } => {
                let rows = self.rows(f, *argument)?;
                match fun {
                    RelationalFunction::IsNan => self.each(rows.len(), |d, i| Op::Un { op: Un::IsNan, d, a: rows[i] }),
                    RelationalFunction::IsInf => self.each(rows.len(), |d, i| Op::Un { op: Un::IsInf, d, a: rows[i] }),
                    RelationalFunction::All => Value::Rows(vec![self.fold(Bin::And, &rows)]),
                    RelationalFunction::Any => Value::Rows(vec![self.fold(Bin::Or, &rows)]),
                }
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => self.math(f, *fun, *arg, [*arg1, *arg2, *arg3])?,
            Expression::As { expr, kind, convert } => self.convert(f, *expr, *kind, *convert)?,
            Expression::ArrayLength(array) => {
                let place = self.place(f, *array)?;
                let (ty, _) = self.pointee(f, *array)?;
                let (Root::Segment(segment), TypeInner::Array { stride, .. }) = (place.root, ty) else {
                    return Err(self.unsupported("the length of this expression"));
                };
                self.each(1, |d, _| Op::Length { d, segment, before: place.offset, stride })
            }
            Expression::ImageLoad { image, coordinate, array_index: None, sample: None, level } => {
                self.texel(f, *image, *coordinate, *level)?
            }
            other => {
                let text = format!("{other:?}");
                let name = text.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
                return Err(self.unsupported(format!("the expression {name}")));
            }
        })
    }

    /// All rows joined by one operation, from the left.
    pub(super) fn fold(&mut self, op: Bin, rows: &[Reg]) -> Reg {
        let mut so_far = rows.first().copied().unwrap_or(0);
        for b in rows.iter().skip(1) {
            let d = self.registers(1);
            self.push(Op::Bin { op, d, a: so_far, b: *b });
            so_far = d;
        }
        so_far
    }

    /// Whether a type is a texture that [`texel`](Self::texel) reads: two dimensions, unsigned, one sample or only
    /// read.
    pub(super) fn is_texels(&self, ty: Handle<naga::Type>) -> bool {
        let sampled = naga::ImageClass::Sampled { kind: ScalarKind::Uint, multi: false };
        let stored =
            naga::ImageClass::Storage { format: naga::StorageFormat::Rgba32Uint, access: naga::StorageAccess::LOAD };
        [sampled, stored]
            .into_iter()
            .any(|class| *self.inner(ty) == TypeInner::Image { dim: naga::ImageDimension::D2, arrayed: false, class })
    }

    /// The four words of a texel of level 0. Its column must lie in the row, and the texel in the texture.
    fn texel(
        &mut self,
        f: &mut Frame<'m>,
        image: Handle<Expression>,
        coordinate: Handle<Expression>,
        level: Option<Handle<Expression>>,
    ) -> Lowered<Value> {
        let first = |l: Handle<Expression>| {
            matches!(f.fun.expressions[l], Expression::Literal(Literal::I32(0) | Literal::U32(0)))
        };
        if level.is_some_and(|l| !first(l)) {
            return Err(self.unsupported("a level of a texture but 0"));
        }
        let place = self.place(f, image)?;
        let at = self.rows(f, coordinate)?;
        let (Root::Segment(segment), [x, y]) = (place.root, &at[..]) else {
            return Err(self.unsupported("a texel of this expression"));
        };
        let width = match self.program.segments.get(segment as usize).map(|s| s.origin.clone()) {
            Some(Origin::Argument(n)) => match self.arguments.get(n) {
                Some(Argument::Texture(t)) => t.width,
                _ => return Err(self.unsupported("a texture for which no texture is given")),
            },
            _ => 0,
        };
        let width = self.constant(width);
        let d = self.registers(6);
        self.push(Op::Bound { d, index: *x, len: width });
        self.push(Op::Tri { op: Tri::MadI, d: d + 1, a: *y, b: width, c: d });
        let addr = Addr::In { segment, index: Some(d + 1), scale: 16, imm: 0 };
        let (elem, reg) = (Elem::B32, d + 2);
        self.push(Op::Load(Access { addr, elem, count: 4, reg, align: 16, atomic: false, constant: false }));
        Ok(Value::Rows((d + 2..d + 6).collect()))
    }

    /// Part of a vector or array value, by an index known at run time.
    fn pick_part(&mut self, f: &Frame<'m>, base: Handle<Expression>, rows: &[Reg], index: Reg) -> Lowered<Value> {
        let (part, len) = match self.type_of(f, base) {
            TypeInner::Vector { size, .. } => (1, size as u32),
            TypeInner::Array { base, size, .. } => (self.flat_len(base)?, self.array_len(size)?),
            _ => return Err(self.unsupported("an index into this type")),
        };
        let first = self.registers(rows.len() as u32);
        for (i, a) in rows.iter().enumerate() {
            self.push(Op::Mov { d: first + i as u32, a: *a });
        }
        Ok(self.each(part as usize, |d, i| Op::Pick { d, base: first + i as u32, index, stride: part, len }))
    }

    fn binary(
        &mut self,
        f: &mut Frame<'m>,
        op: B,
        left: Handle<Expression>,
        right: Handle<Expression>,
    ) -> Lowered<Value> {
        let kind = self.scalar_kind(f, left)?;
        let (a, b) = (self.rows(f, left)?, self.rows(f, right)?);
        let n = a.len().max(b.len());
        let at = |rows: &[Reg], i: usize| if rows.len() == 1 { rows[0] } else { rows[i] };
        let (float, signed) = (kind == ScalarKind::Float, kind == ScalarKind::Sint);
        let rel = match op {
            B::Equal => Some(Rel::Eq),
            B::NotEqual => Some(if float { Rel::Neu } else { Rel::Ne }),
            B::Less => Some(Rel::Lt),
            B::LessEqual => Some(Rel::Le),
            B::Greater => Some(Rel::Gt),
            B::GreaterEqual => Some(Rel::Ge),
            _ => None,
        };
        if let Some(rel) = rel {
            let num = if float {
                Num::F
            } else if signed {
                Num::S
            } else {
                Num::U
            };
            return Ok(self.each(n, |d, i| Op::Cmp { rel, num, d, a: at(&a, i), b: at(&b, i) }));
        }
        if self.options.contract && float && matches!(op, B::Add | B::Subtract) {
            if let Some(v) = self.contracted(f, op, left, right)? {
                return Ok(v);
            }
        }
        let mut b = b;
        if matches!(op, B::ShiftLeft | B::ShiftRight) {
            let low = self.constant(31);
            if let Value::Rows(rows) = self.each(b.len(), |d, i| Op::Bin { op: Bin::And, d, a: b[i], b: low }) {
                b = rows;
            }
        }
        let op = match op {
            B::Add if float => Bin::Add,
            B::Add => Bin::AddI,
            B::Subtract if float => Bin::Sub,
            B::Subtract => Bin::SubI,
            B::Multiply if float => Bin::Mul,
            B::Multiply => Bin::MulI,
            B::Divide if float => Bin::Div,
            B::Divide if signed => Bin::DivS,
            B::Divide => Bin::DivU,
            B::Modulo if float => Bin::Rem,
            B::Modulo if signed => Bin::RemS,
            B::Modulo => Bin::RemU,
            B::And | B::LogicalAnd => Bin::And,
            B::ExclusiveOr => Bin::Xor,
            B::InclusiveOr | B::LogicalOr => Bin::Or,
            B::ShiftLeft => Bin::Shl,
            B::ShiftRight if signed => Bin::ShrS,
            _ => Bin::ShrU,
        };
        Ok(self.each(n, |d, i| Op::Bin { op, d, a: at(&a, i), b: at(&b, i) }))
    }

    /// `x * y + z` as one fused operation.
    fn contracted(
        &mut self,
        f: &mut Frame<'m>,
        op: B,
        left: Handle<Expression>,
        right: Handle<Expression>,
    ) -> Lowered<Option<Value>> {
        let factors = |h: Handle<Expression>| match f.fun.expressions[h] {
            Expression::Binary { op: B::Multiply, left, right } => Some((left, right)),
            _ => None,
        };
        let (x, y, other, product_left) = match (factors(left), factors(right)) {
            (Some((x, y)), _) => (x, y, right, true),
            (None, Some((x, y))) => (x, y, left, false),
            _ => return Ok(None),
        };
        let (x, y, z) = (self.rows(f, x)?, self.rows(f, y)?, self.rows(f, other)?);
        let n = x.len().max(y.len()).max(z.len());
        let at = |rows: &[Reg], i: usize| if rows.len() == 1 { rows[0] } else { rows[i] };
        let negated =
            |lower: &mut Self, rows: &[Reg]| match lower.each(rows.len(), |d, i| Op::Un { op: Un::Neg, d, a: rows[i] })
            {
                Value::Rows(r) => r,
                Value::Place(_) => Vec::new(),
            };
        let (x, z) = match (op, product_left) {
            (B::Subtract, true) => (x, negated(self, &z)),
            (B::Subtract, false) => (negated(self, &x), z),
            _ => (x, z),
        };
        Ok(Some(self.each(n, |d, i| Op::Tri { op: Tri::Fma, d, a: at(&x, i), b: at(&y, i), c: at(&z, i) })))
    }

    fn convert(
        &mut self,
        f: &mut Frame<'m>,
        expr: Handle<Expression>,
        to: ScalarKind,
        width: Option<u8>,
    ) -> Lowered<Value> {
        let from = self.scalar_kind(f, expr)?;
        let rows = self.rows(f, expr)?;
        let Some(width) = width else { return Ok(Value::Rows(rows)) };
        self.word(naga::Scalar { kind: to, width })?;
        let op = match (from, to) {
            (ScalarKind::Float, ScalarKind::Sint) => Un::TruncS,
            (ScalarKind::Float, ScalarKind::Uint) => Un::TruncU,
            (ScalarKind::Sint, ScalarKind::Float) => Un::SignedToF,
            (ScalarKind::Uint | ScalarKind::Bool, ScalarKind::Float) => Un::UnsignedToF,
            (ScalarKind::Sint | ScalarKind::Uint, ScalarKind::Bool) => Un::NotZero,
            (ScalarKind::Float, ScalarKind::Bool) => {
                let zero = self.constant(0);
                return Ok(self.each(rows.len(), |d, i| Op::Cmp {
                    rel: Rel::Neu,
                    num: Num::F,
                    d,
                    a: rows[i],
                    b: zero,
                }));
            }
            _ => return Ok(Value::Rows(rows)),
        };
        Ok(self.each(rows.len(), |d, i| Op::Un { op, d, a: rows[i] }))
    }
}
