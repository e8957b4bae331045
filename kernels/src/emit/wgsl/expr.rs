//! Expressions as text, with parentheses only where the grammar or the meaning needs them.

use super::names::{self, Names};
use super::{Error, Options};
use crate::ir::{
    Access, ArrayRef, BinaryOp as B, Builtin, Expr, Handle, Literal, Module, Scalar, TEXELS_PER_ROW, TernaryOp,
    Texture, Type, UnaryOp as U,
};

/// How tightly a piece of text binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Primary,
    Unary,
    Mul,
    Add,
    Shift,
    Compare,
    And,
    Or,
    Bits(B),
}

struct Text {
    text: String,
    level: Level,
}

impl Text {
    fn primary(text: String) -> Text {
        Text { text, level: Level::Primary }
    }

    fn within(self, allowed: &[Level]) -> String {
        if self.level == Level::Primary || allowed.contains(&self.level) {
            self.text
        } else {
            format!("({})", self.text)
        }
    }
}

/// Writes expressions of one module.
pub(super) struct ExprWriter<'m> {
    pub(super) module: &'m Module,
    pub(super) names: &'m Names,
    pub(super) options: &'m Options,
    pub(super) types: &'m [Option<Type>],
}

type Written<T> = Result<T, Error>;

impl ExprWriter<'_> {
    /// The whole expression, without outer parentheses.
    pub(super) fn write(&self, h: Handle<Expr>) -> Written<String> {
        Ok(self.text(h)?.text)
    }

    /// The expression as one side of a comparison.
    pub(super) fn write_comparand(&self, h: Handle<Expr>) -> Written<String> {
        Ok(self.text(h)?.within(&[Level::Unary, Level::Mul, Level::Add, Level::Shift]))
    }

    pub(super) fn ty(&self, h: Handle<Expr>) -> Written<Type> {
        let ty = self.types.get(h.index()).copied().flatten();
        ty.ok_or_else(|| Error::Untyped { kernel: self.module.name.clone() })
    }

    fn text(&self, h: Handle<Expr>) -> Written<Text> {
        let module = self.module;
        Ok(match &module.exprs[h] {
            Expr::Literal(l) => self.literal(*l)?,
            Expr::Builtin(b) => Text::primary(builtin(*b)),
            Expr::Uniform { block, field } => {
                let member = module.uniforms[*block].fields.get(*field as usize);
                let member = member.map_or_else(String::new, |f| names::member(&f.name));
                Text::primary(format!("{}.{member}", self.names.uniform(*block)))
            }
            Expr::Local(local) => Text::primary(self.names.local(*local).to_owned()),
            Expr::Load { array: ArrayRef::Buffer(h), index }
                if let Access::Texels(texture) = module.buffers[*h].access =>
            {
                let level = match texture {
                    Texture::Storage => "",
                    Texture::Sampled => ", 0",
                };
                let (name, at) = (self.names.array(ArrayRef::Buffer(*h)), self.text(*index)?.within(&[]));
                let (low, shift) = (TEXELS_PER_ROW - 1, TEXELS_PER_ROW.trailing_zeros());
                Text::primary(format!("textureLoad({name}, vec2<u32>({at} & {low}u, {at} >> {shift}u){level})"))
            }
            Expr::Load { array, index } => {
                Text::primary(format!("{}[{}]", self.names.array(*array), self.write(*index)?))
            }
            Expr::Compose(parts) => self.call(&self.ty(h)?.to_string(), parts)?,
            Expr::Splat { value, .. } => self.call(&self.ty(h)?.to_string(), &[*value])?,
            Expr::Extract { value, lane } => {
                let value = self.text(*value)?.within(&[]);
                let lane = ["x", "y", "z", "w"].get(usize::from(*lane)).copied().unwrap_or("w");
                Text::primary(format!("{value}.{lane}"))
            }
            Expr::Cast { value, .. } => self.call(&self.ty(h)?.to_string(), &[*value])?,
            Expr::Bitcast { value, .. } => {
                if let Expr::Literal(_) = module.exprs[*value] {
                    return self.no_value("bitcast", &[*value]);
                }
                self.call(&format!("bitcast<{}>", self.ty(h)?), &[*value])?
            }
            Expr::Unary(op, value) => self.unary(*op, *value)?,
            Expr::Binary(op, a, b) => self.binary(*op, *a, *b)?,
            Expr::Ternary(op, a, b, c) => match op {
                TernaryOp::Fma => self.call("fma", &[*a, *b, *c])?,
                TernaryOp::Clamp => self.call("clamp", &[*a, *b, *c])?,
                TernaryOp::Select => self.call("select", &[*c, *b, *a])?,
            },
        })
    }

    /// A call. A comparison is bracketed unless it comes last, since `f(a < b, c > d)` would read as a template list.
    fn call(&self, name: &str, args: &[Handle<Expr>]) -> Written<Text> {
        let last = args.len().saturating_sub(1);
        let mut texts = Vec::with_capacity(args.len());
        for (i, arg) in args.iter().enumerate() {
            let text = self.text(*arg)?;
            texts.push(if i < last && text.level == Level::Compare { text.within(&[]) } else { text.text });
        }
        Ok(Text::primary(format!("{name}({})", texts.join(", "))))
    }

    fn no_value<T>(&self, name: &str, args: &[Handle<Expr>]) -> Written<T> {
        let text = self.call(name, args)?.text;
        Err(Error::Constant { kernel: self.module.name.clone(), text })
    }

    fn literal(&self, l: Literal) -> Written<Text> {
        let text = match l {
            Literal::F32(bits) => {
                let v = f32::from_bits(bits);
                if !v.is_finite() {
                    return Err(Error::Constant { kernel: self.module.name.clone(), text: v.to_string() });
                }
                format!("{v:?}")
            }
            Literal::U32(v) => format!("{v}u"),
            Literal::I32(i32::MIN) => format!("i32({})", i32::MIN),
            Literal::I32(v) => format!("{v}i"),
            Literal::Bool(v) => v.to_string(),
        };
        let level = if text.starts_with('-') { Level::Unary } else { Level::Primary };
        Ok(Text { text, level })
    }

    fn unary(&self, op: U, value: Handle<Expr>) -> Written<Text> {
        if let Expr::Literal(Literal::F32(bits)) = self.module.exprs[value] {
            let v = f32::from_bits(bits);
            let finite = match op {
                U::Exp => v.exp(),
                U::Exp2 => v.exp2(),
                U::Log | U::Log2 => v.ln(),
                U::Sqrt => v.sqrt(),
                U::Rsqrt => 1.0 / v.sqrt(),
                U::Rcp => 1.0 / v,
                _ => 0.0,
            };
            if !finite.is_finite() {
                return self.no_value(op.name(), &[value]);
            }
        }
        let name = match op {
            U::Neg => return self.prefix("-", value),
            U::Not => return self.prefix("!", value),
            U::BitNot => return self.prefix("~", value),
            U::Rcp => {
                let text = format!("1.0 / {}", self.text(value)?.within(&[Level::Unary]));
                return Ok(Text { text, level: Level::Mul });
            }
            U::Tanh => return self.tanh(value),
            U::UnpackU8 | U::UnpackI8 => return self.unpack(op, value),
            U::Erf => return self.call(&format!("erf_{}", self.ty(value)?.lanes()), &[value]),
            U::Pack2xBf16 => {
                let kernel = self.module.name.clone();
                return Err(Error::Unsupported { kernel, what: "conversion to bf16" });
            }
            U::Rsqrt => "inverseSqrt",
            U::Unpack2x16Float => "unpack2x16float",
            U::Pack2x16Float => "pack2x16float",
            U::Abs
            | U::Exp
            | U::Exp2
            | U::Log
            | U::Log2
            | U::Sqrt
            | U::Sin
            | U::Cos
            | U::Floor
            | U::Ceil
            | U::Round
            | U::Trunc
            | U::Sign => op.name(),
        };
        self.call(name, &[value])
    }

    fn prefix(&self, sign: &str, value: Handle<Expr>) -> Written<Text> {
        let text = format!("{sign}{}", self.text(value)?.within(&[]));
        Ok(Text { text, level: Level::Unary })
    }

    /// Drivers compute `tanh` from exponentials that overflow, so the argument is bounded where the result is 1 anyway.
    fn tanh(&self, value: Handle<Expr>) -> Written<Text> {
        if let Expr::Ternary(TernaryOp::Clamp, ..) = self.module.exprs[value] {
            return self.call("tanh", &[value]);
        }
        let ty = self.ty(value)?;
        let bound = |text: &str| if ty.is_scalar() { text.to_owned() } else { format!("{ty}({text})") };
        let text = format!("tanh(clamp({}, {}, {}))", self.write(value)?, bound("-15.0"), bound("15.0"));
        Ok(Text::primary(text))
    }

    fn unpack(&self, op: U, value: Handle<Expr>) -> Written<Text> {
        let signed = op == U::UnpackI8;
        if let Expr::Literal(Literal::U32(word)) = self.module.exprs[value] {
            let bytes = word.to_le_bytes();
            let parts = bytes.map(|byte| if signed { format!("{}i", byte as i8) } else { format!("{byte}u") });
            let ty = if signed { Type::VEC4_I32 } else { Type::VEC4_U32 };
            return Ok(Text::primary(format!("{ty}({})", parts.join(", "))));
        }
        if self.options.packed_4x8 {
            return self.call(if signed { "unpack4xI8" } else { "unpack4xU8" }, &[value]);
        }
        let word = self.write(value)?;
        Ok(if signed {
            let text =
                format!("bitcast<vec4<i32>>(vec4<u32>({word}) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u)");
            Text { text, level: Level::Shift }
        } else {
            let text = format!("(vec4<u32>({word}) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u)");
            Text { text, level: Level::Bits(B::BitAnd) }
        })
    }

    fn binary(&self, op: B, a: Handle<Expr>, b: Handle<Expr>) -> Written<Text> {
        use Level::{Add, And, Bits, Compare, Mul, Or, Primary, Shift, Unary};
        let constants = matches!((&self.module.exprs[a], &self.module.exprs[b]), (Expr::Literal(_), Expr::Literal(_)));
        if constants && matches!(op, B::Add | B::Sub | B::Mul | B::Div | B::Rem | B::Shl | B::Shr) {
            return self.no_value(op.name(), &[a, b]);
        }
        let (sign, level, left, right): (&str, Level, &[Level], &[Level]) = match op {
            B::Add => ("+", Add, &[Unary, Mul, Add], &[Unary, Mul]),
            B::Sub => ("-", Add, &[Unary, Mul, Add], &[Unary, Mul]),
            B::Mul => ("*", Mul, &[Unary, Mul], &[Unary]),
            B::Div => ("/", Mul, &[Unary, Mul], &[Unary]),
            B::Rem => ("%", Mul, &[Unary, Mul], &[Unary]),
            B::Lt => ("<", Compare, &[Unary, Mul, Add], &[Unary, Mul, Add]),
            B::Le => ("<=", Compare, &[Unary, Mul, Add], &[Unary, Mul, Add]),
            B::Gt => (">", Compare, &[Unary, Mul, Add], &[Unary, Mul, Add]),
            B::Ge => (">=", Compare, &[Unary, Mul, Add], &[Unary, Mul, Add]),
            B::Eq => ("==", Compare, &[Unary, Mul, Add], &[Unary, Mul, Add]),
            B::Ne => ("!=", Compare, &[Unary, Mul, Add], &[Unary, Mul, Add]),
            B::And => ("&&", And, &[Unary, Mul, Add, Compare, And], &[Unary, Mul, Add, Compare]),
            B::Or => ("||", Or, &[Unary, Mul, Add, Compare, Or], &[Unary, Mul, Add, Compare]),
            B::BitAnd => ("&", Bits(op), &[Unary, Bits(B::BitAnd)], &[Unary]),
            B::BitOr => ("|", Bits(op), &[Unary, Bits(B::BitOr)], &[Unary]),
            B::BitXor => ("^", Bits(op), &[Unary, Bits(B::BitXor)], &[Unary]),
            B::Shl => ("<<", Shift, &[Unary], &[Unary]),
            B::Shr => (">>", Shift, &[Unary], &[Unary]),
            B::Min | B::Max | B::Pow | B::Dot => return self.call(op.name(), &[a, b]),
            B::DotI8 | B::DotU8 => return self.dot_bytes(op, a, b),
        };
        debug_assert!(level != Primary);
        let (x, y) = match op {
            B::Add | B::Sub | B::Mul | B::Div | B::Rem => self.mixed(a, b),
            _ => (a, b),
        };
        let hex = matches!(op, B::BitAnd | B::BitOr | B::BitXor);
        let x = self.operand(x, hex)?.within(left);
        let y = self.operand(y, hex)?.within(right);
        Ok(Text { text: format!("{x} {sign} {y}"), level })
    }

    /// Arithmetic of a vector and a spread scalar takes the scalar as it is.
    fn mixed(&self, a: Handle<Expr>, b: Handle<Expr>) -> (Handle<Expr>, Handle<Expr>) {
        match (&self.module.exprs[a], &self.module.exprs[b]) {
            (Expr::Splat { .. }, Expr::Splat { .. }) => (a, b),
            (Expr::Splat { value, .. }, _) => (*value, b),
            (_, Expr::Splat { value, .. }) => (a, *value),
            _ => (a, b),
        }
    }

    fn operand(&self, h: Handle<Expr>, hex: bool) -> Written<Text> {
        match self.module.exprs[h] {
            Expr::Literal(Literal::U32(v)) if hex && v > 255 => Ok(Text::primary(format!("{v:#x}u"))),
            _ => self.text(h),
        }
    }

    fn dot_bytes(&self, op: B, a: Handle<Expr>, b: Handle<Expr>) -> Written<Text> {
        let (packed, unpack) = match op {
            B::DotI8 => ("dot4I8Packed", U::UnpackI8),
            _ => ("dot4U8Packed", U::UnpackU8),
        };
        if self.options.packed_4x8 {
            return self.call(packed, &[a, b]);
        }
        let (a, b) = (self.unpack(unpack, a)?.text, self.unpack(unpack, b)?.text);
        Ok(Text::primary(format!("dot({a}, {b})")))
    }
}

fn builtin(b: Builtin) -> String {
    match b {
        Builtin::WorkgroupId(axis) => format!("group_id.{}", axis.name()),
        Builtin::LocalId(axis) => format!("local_id.{}", axis.name()),
        Builtin::GlobalId(axis) => format!("global_id.{}", axis.name()),
        Builtin::NumWorkgroups(axis) => format!("num_groups.{}", axis.name()),
        Builtin::LocalIndex => "local_index".to_owned(),
        Builtin::SubgroupLane => "subgroup_lane".to_owned(),
        Builtin::SubgroupSize => "subgroup_width".to_owned(),
    }
}

/// The `f32` type with that many lanes.
pub(super) fn float_type(lanes: u32) -> String {
    match lanes {
        1 => Scalar::F32.name().to_owned(),
        n => format!("vec{n}<f32>"),
    }
}
