//! Types as lists of scalars.

use super::{Lower, Lowered};
use naga::{ArraySize, Handle, Scalar, ScalarKind, Type, TypeInner};

/// Scalars that lie side by side in memory: byte offset and number.
pub(super) type Run = (u32, u32);

impl Lower<'_> {
    pub(super) fn inner(&self, ty: Handle<Type>) -> &TypeInner {
        &self.module.types[ty].inner
    }
    /// Refuses scalars that are not one 32-bit word.
    pub(super) fn word(&self, s: Scalar) -> Lowered<ScalarKind> {
        match (s.kind, s.width) {
            (ScalarKind::Bool, _) | (ScalarKind::Float | ScalarKind::Sint | ScalarKind::Uint, 4) => Ok(s.kind),
            (kind, width) => Err(self.unsupported(format!("a scalar {kind:?} of {width} bytes"))),
        }
    }
    pub(super) fn array_len(&self, size: ArraySize) -> Lowered<u32> {
        match size {
            ArraySize::Constant(n) => Ok(n.get()),
            _ => Err(self.unsupported("a value of unknown length")),
        }
    }
    /// Scalars of a value.
    pub(super) fn flat_len(&self, ty: Handle<Type>) -> Lowered<u32> {
        self.flat_len_of(self.inner(ty))
    }
    pub(super) fn flat_len_of(&self, inner: &TypeInner) -> Lowered<u32> {
        Ok(match inner {
            TypeInner::Scalar(s) | TypeInner::Atomic(s) => {
                self.word(*s)?;
                1
            }
            TypeInner::Vector { size, scalar } => {
                self.word(*scalar)?;
                *size as u32
            }
            TypeInner::Array { base, size, .. } => {
                let (n, one) = (self.array_len(*size)?, self.flat_len(*base)?);
                match n.checked_mul(one).filter(|n| *n <= 1 << 14) {
                    Some(n) => n,
                    None => return Err(self.unsupported("a variable of more than 16384 words")),
                }
            }
            TypeInner::Struct { members, .. } => {
                let mut n = 0;
                for m in members {
                    n += self.flat_len(m.ty)?;
                }
                n
            }
            other => return Err(self.unsupported(format!("a value of type {other:?}"))),
        })
    }
    /// Where the scalars of a value lie in memory, relative to its start.
    pub(super) fn runs(&self, inner: &TypeInner, at: u32, out: &mut Vec<Run>) -> Lowered<()> {
        match inner {
            TypeInner::Scalar(s) | TypeInner::Atomic(s) => {
                if self.word(*s)? == ScalarKind::Bool {
                    return Err(self.unsupported("a truth value in memory"));
                }
                out.push((at, 1));
            }
            TypeInner::Vector { size, scalar } => {
                if self.word(*scalar)? == ScalarKind::Bool {
                    return Err(self.unsupported("a truth value in memory"));
                }
                out.push((at, *size as u32));
            }
            TypeInner::Array { base, size, stride } => {
                for i in 0..self.array_len(*size)? {
                    self.runs(self.inner(*base), at + i * stride, out)?;
                }
            }
            TypeInner::Struct { members, .. } => {
                for m in members {
                    self.runs(self.inner(m.ty), at + m.offset, out)?;
                }
            }
            other => return Err(self.unsupported(format!("memory of type {other:?}"))),
        }
        Ok(())
    }
    /// Size in bytes.
    pub(super) fn size_of(&self, ty: Handle<Type>) -> Lowered<u32> {
        let size = self.inner(ty).try_size(self.module.to_ctx());
        size.ok_or_else(|| self.unsupported("a variable of unknown size"))
    }
}
