//! Arithmetic on known elements: shapes, positions, small constants.

use super::context::{Cx, KNOWN_FLOATS, KNOWN_INTS};
use super::value::{Known, Val, broadcast_walk, fixed};
use frit_kernels::dim::{Bounds, Dim};

/// Functions of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    Add,
    Sub,
    Mul,
    Div,
    /// Remainder with the sign of the divisor.
    Mod,
    /// Remainder with the sign of the dividend.
    Fmod,
    Pow,
    Min,
    Max,
    Equal,
    Less,
    LessOrEqual,
    And,
    Or,
    Xor,
}

/// f(a, b) of integers, if it can be told whatever the sizes are.
pub fn ints(f: Fold, a: &Dim, b: &Dim, bounds: &Bounds) -> Option<Dim> {
    let truth = |t: bool| Dim::constant(i64::from(t));
    let both = a.as_const().zip(b.as_const());
    let add = |a: &Dim, b: &Dim| match both {
        Some((x, y)) => x.checked_add(y).map(Dim::constant),
        None => Some(a.clone() + b.clone()),
    };
    Some(match f {
        Fold::Add => add(a, b)?,
        Fold::Sub => match both {
            Some((x, y)) => Dim::constant(x.checked_sub(y)?),
            None => a.clone() - b.clone(),
        },
        Fold::Mul => match both {
            Some((x, y)) => Dim::constant(x.checked_mul(y)?),
            None => a * b,
        },
        Fold::Div => match both {
            Some((x, y)) => Dim::constant(x.checked_div(y)?),
            None if bounds.nonneg(a) && bounds.le(&Dim::one(), b) => a.div(b).simplify(bounds),
            None => return None,
        },
        Fold::Mod => match both {
            Some((x, y)) => {
                Dim::constant(x.checked_rem(y).map(|r| if r != 0 && (r < 0) != (y < 0) { r + y } else { r })?)
            }
            None if bounds.nonneg(a) && bounds.le(&Dim::one(), b) => a.rem(b).simplify(bounds),
            None => return None,
        },
        Fold::Fmod => match both {
            Some((x, y)) => Dim::constant(x.checked_rem(y)?),
            None => return None,
        },
        Fold::Pow => match both {
            Some((x, y)) => Dim::constant(x.checked_pow(u32::try_from(y).ok()?)?),
            None => return None,
        },
        Fold::Min => a.smaller(b).simplify(bounds),
        Fold::Max => a.larger(b).simplify(bounds),
        Fold::Equal => truth(equal(a, b, bounds)?),
        Fold::Less => truth(match (bounds.less(a, b), bounds.le(b, a)) {
            (true, _) => true,
            (_, true) => false,
            _ => return None,
        }),
        Fold::LessOrEqual => truth(match (bounds.le(a, b), bounds.less(b, a)) {
            (true, _) => true,
            (_, true) => false,
            _ => return None,
        }),
        Fold::And | Fold::Or | Fold::Xor => {
            let (x, y) = both?;
            truth(match f {
                Fold::And => x != 0 && y != 0,
                Fold::Or => x != 0 || y != 0,
                _ => (x != 0) != (y != 0),
            })
        }
    })
}

/// Whether two extents are equal, if it can be told whatever the sizes are.
pub fn equal(a: &Dim, b: &Dim, bounds: &Bounds) -> Option<bool> {
    let diff = (a.clone() - b.clone()).simplify(bounds);
    match diff.as_const() {
        Some(d) => Some(d == 0),
        None if bounds.less(a, b) || bounds.less(b, a) => Some(false),
        None => None,
    }
}

/// f(a, b) of floats.
pub fn floats(f: Fold, a: f32, b: f32) -> Option<f32> {
    let y = match f {
        Fold::Add => a + b,
        Fold::Sub => a - b,
        Fold::Mul => a * b,
        Fold::Div => a / b,
        Fold::Pow => a.powf(b),
        Fold::Min => a.min(b),
        Fold::Max => a.max(b),
        Fold::Fmod => a % b,
        _ => return None,
    };
    y.is_finite().then_some(y)
}

/// Applies `f` to the elements of two known values that broadcast together; `None` when one is not known, when they
/// are too many, or when `f` cannot tell.
pub fn zip(cx: &Cx<'_, '_, '_>, a: &Val, b: &Val, f: Fold) -> Option<(Vec<Dim>, Known)> {
    let (ka, kb) = (a.known.as_deref()?, b.known.as_deref()?);
    let shape = cx.broadcast_shape(&[&a.shape, &b.shape]).ok()?;
    let to = fixed(&shape)?;
    let elems = to.iter().try_fold(1u64, |p, d| p.checked_mul(*d as u64))?;
    let few = if matches!(ka, Known::Ints(_)) { KNOWN_INTS } else { KNOWN_FLOATS };
    if elems > few {
        return None;
    }
    let (wa, wb) = (broadcast_walk(&a.fixed_shape()?, &to)?, broadcast_walk(&b.fixed_shape()?, &to)?);
    let known = match (ka, kb) {
        (Known::Ints(x), Known::Ints(y)) => {
            let at = wa.iter().zip(&wb).map(|(i, j)| ints(f, x.get(*i)?, y.get(*j)?, &cx.bounds));
            Known::Ints(at.collect::<Option<_>>()?)
        }
        (Known::Floats(x), Known::Floats(y)) => {
            let pair = |(i, j): (&usize, &usize)| Some((*x.get(*i)?, *y.get(*j)?));
            if matches!(f, Fold::Equal | Fold::Less | Fold::LessOrEqual) {
                let at = wa.iter().zip(&wb).map(|p| {
                    let (a, b) = pair(p)?;
                    let t = match f {
                        Fold::Equal => a == b,
                        Fold::Less => a < b,
                        _ => a <= b,
                    };
                    Some(Dim::constant(i64::from(t)))
                });
                Known::Ints(at.collect::<Option<_>>()?)
            } else {
                let at = wa.iter().zip(&wb).map(|p| pair(p).and_then(|(a, b)| floats(f, a, b)));
                Known::Floats(at.collect::<Option<_>>()?)
            }
        }
        _ => return None,
    };
    Some((shape, known))
}

/// Applies `f` to every known float.
pub fn map_floats(v: &Val, f: impl Fn(f32) -> f32) -> Option<Known> {
    let out: Vec<f32> = v.known_floats()?.iter().map(|x| f(*x)).collect();
    out.iter().all(|x| x.is_finite()).then_some(Known::Floats(out))
}

/// Applies `f` to every known integer.
pub fn map_ints(v: &Val, f: impl Fn(&Dim) -> Option<Dim>) -> Option<Known> {
    v.known_ints()?.iter().map(f).collect::<Option<_>>().map(Known::Ints)
}
