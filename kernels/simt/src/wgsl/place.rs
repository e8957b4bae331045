//! Values and pointers during lowering; loads and stores through pointers.

use super::types::Run;
use super::{Lower, Lowered};
use crate::op::{Access, Addr, Elem, Op, Reg};
use naga::TypeInner;

/// What a pointer starts from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Root {
    /// A segment of memory; offsets are bytes.
    Segment(u32),
    /// Variables in registers; offsets are registers.
    Registers(Reg),
}

/// An index that is known only at run time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dynamic {
    pub(super) index: Reg,
    /// Bytes or registers an element.
    pub(super) stride: u32,
    /// Elements, for variables in registers.
    pub(super) len: u32,
}

/// A pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) root: Root,
    pub(super) offset: u32,
    pub(super) dynamic: Option<Dynamic>,
}

/// The value of an expression.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Its scalars.
    Rows(Vec<Reg>),
    /// A pointer.
    Place(Place),
}

impl Lower<'_> {
    /// The pointer to element `index` of what `place` points to; `base` is the type pointed to.
    pub(super) fn access(&mut self, place: Place, base: &TypeInner, index: Reg) -> Lowered<Place> {
        let (stride, len) = match (place.root, base) {
            (Root::Segment(_), TypeInner::Array { stride, size, .. }) => (*stride, self.array_len(*size).ok()),
            (Root::Registers(_), TypeInner::Array { base, size, .. }) => {
                (self.flat_len(*base)?, Some(self.array_len(*size)?))
            }
            (Root::Segment(_), TypeInner::Vector { size, .. }) => (4, Some(*size as u32)),
            (Root::Registers(_), TypeInner::Vector { size, .. }) => (1, Some(*size as u32)),
            _ => return Err(self.unsupported("an index into this type")),
        };
        let mut next = place;
        let Root::Segment(segment) = place.root else {
            let len = len.unwrap_or(0);
            next.dynamic = Some(match place.dynamic {
                None => Dynamic { index, stride, len },
                Some(outer) => {
                    let index = self.bounded(index, len);
                    let first = self.bounded(outer.index, outer.len);
                    let index = self.combine(first, outer.stride, index, stride);
                    Dynamic { index, stride: 1, len: outer.len * outer.stride }
                }
            });
            return Ok(next);
        };
        // A whole segment is bounded by its own size.
        let bytes = self.program.segments.get(segment as usize).map_or(0, |s| s.bytes);
        let whole = len.is_none_or(|n| place.offset == 0 && n * stride == bytes);
        let index = match len {
            Some(n) if !whole || place.dynamic.is_some() => self.bounded(index, n),
            _ => index,
        };
        next.dynamic = Some(match place.dynamic {
            None => Dynamic { index, stride, len: 0 },
            Some(outer) => {
                let most = self.registers(2);
                self.push(Op::Length { d: most, segment, before: 0, stride: outer.stride });
                self.push(Op::Bound { d: most + 1, index: outer.index, len: most });
                Dynamic { index: self.combine(most + 1, outer.stride, index, stride), stride: 1, len: 0 }
            }
        });
        Ok(next)
    }

    fn bounded(&mut self, index: Reg, len: u32) -> Reg {
        let (d, len) = (self.registers(1), self.constant(len));
        self.push(Op::Bound { d, index, len });
        d
    }

    /// `a * stride_a + b * stride_b`
    fn combine(&mut self, a: Reg, stride_a: u32, b: Reg, stride_b: u32) -> Reg {
        let (sa, sb) = (self.constant(stride_a), self.constant(stride_b));
        let d = self.registers(2);
        self.push(Op::Bin { op: crate::op::Bin::MulI, d, a, b: sa });
        self.push(Op::Tri { op: crate::op::Tri::MadI, d: d + 1, a: b, b: sb, c: d });
        d + 1
    }

    /// The pointer to a member, element or component that is known now.
    pub(super) fn access_index(&self, mut place: Place, base: &TypeInner, index: u32) -> Lowered<Place> {
        place.offset += match (place.root, base) {
            (Root::Segment(_), TypeInner::Array { stride, .. }) => stride * index,
            (Root::Segment(_), TypeInner::Vector { .. }) => 4 * index,
            (Root::Segment(_), TypeInner::Struct { members, .. }) => {
                members.get(index as usize).map_or(0, |m| m.offset)
            }
            (Root::Registers(_), TypeInner::Array { .. } | TypeInner::Vector { .. } | TypeInner::Struct { .. }) => {
                self.flat_offset(base, index)?
            }
            _ => return Err(self.unsupported("a part of this type")),
        };
        Ok(place)
    }

    /// Registers before part `index` of a value.
    pub(super) fn flat_offset(&self, base: &TypeInner, index: u32) -> Lowered<u32> {
        Ok(match base {
            TypeInner::Array { base, .. } => index * self.flat_len(*base)?,
            TypeInner::Struct { members, .. } => {
                let mut n = 0;
                for m in members.iter().take(index as usize) {
                    n += self.flat_len(m.ty)?;
                }
                n
            }
            _ => index,
        })
    }

    pub(super) fn address(&self, place: &Place, segment: u32) -> Addr {
        let (index, scale) = place.dynamic.map_or((None, 0), |d| (Some(d.index), d.stride));
        Addr::In { segment, index, scale, imm: place.offset }
    }

    /// Memory accesses that move a value of a type: first register is filled in by the caller's order.
    fn accesses(&self, place: &Place, segment: u32, ty: &TypeInner, atomic: bool) -> Lowered<Vec<(Run, Access)>> {
        let mut runs = Vec::new();
        self.runs(ty, 0, &mut runs)?;
        let access = |(offset, count): Run| {
            let here = Place { offset: place.offset + offset, ..*place };
            let align = [4, 8, 16, 16][(count as usize - 1).min(3)];
            let addr = self.address(&here, segment);
            (
                (offset, count),
                Access { addr, elem: Elem::B32, count: count as u8, reg: 0, align, atomic, constant: false },
            )
        };
        Ok(runs.into_iter().map(access).collect())
    }

    /// The value behind a pointer.
    pub(super) fn load(&mut self, place: &Place, ty: &TypeInner, atomic: bool) -> Lowered<Vec<Reg>> {
        let n = self.flat_len_of(ty)?;
        let first = self.registers(n);
        match place.root {
            Root::Segment(segment) => {
                let mut reg = first;
                for ((_, count), access) in self.accesses(place, segment, ty, atomic)? {
                    self.push(Op::Load(Access { reg, ..access }));
                    reg += count;
                }
            }
            Root::Registers(base) => {
                for i in 0..n {
                    let from = base + place.offset + i;
                    match place.dynamic {
                        Some(Dynamic { index, stride, len }) => {
                            self.push(Op::Pick { d: first + i, base: from, index, stride, len });
                        }
                        None => {
                            self.push(Op::Mov { d: first + i, a: from });
                        }
                    }
                }
            }
        }
        Ok((first..first + n).collect())
    }

    /// Stores a value behind a pointer.
    pub(super) fn store(&mut self, place: &Place, ty: &TypeInner, value: &[Reg], atomic: bool) -> Lowered<()> {
        match place.root {
            Root::Segment(segment) => {
                let mut next = 0usize;
                for ((_, count), access) in self.accesses(place, segment, ty, atomic)? {
                    let part = value.get(next..next + count as usize).unwrap_or_default().to_vec();
                    next += count as usize;
                    let reg = self.side_by_side(&part);
                    self.push(Op::Store(Access { reg, ..access }));
                }
            }
            Root::Registers(base) => {
                for (i, a) in value.iter().enumerate() {
                    let to = base + place.offset + i as u32;
                    match place.dynamic {
                        Some(Dynamic { index, stride, len }) => {
                            self.push(Op::Put { base: to, index, stride, len, a: *a });
                        }
                        None => {
                            self.push(Op::Mov { d: to, a: *a });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The same values in consecutive registers.
    fn side_by_side(&mut self, rows: &[Reg]) -> Reg {
        let Some(first) = rows.first().copied() else { return 0 };
        if rows.iter().enumerate().all(|(i, r)| *r == first + i as u32) {
            return first;
        }
        let d = self.registers(rows.len() as u32);
        for (i, a) in rows.iter().enumerate() {
            self.push(Op::Mov { d: d + i as u32, a: *a });
        }
        d
    }
}
