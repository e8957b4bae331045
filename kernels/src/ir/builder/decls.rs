//! Declarations and memory access.

use super::{Builder, IntoVal, Uniforms, Val};
use crate::ir::expr::{ArrayRef, Expr};
use crate::ir::module::{Access, Array, Buffer, Field, UniformBlock};
use crate::ir::stmt::Stmt;
use crate::ir::types::{Scalar, Type};

impl Builder {
    /// Says that at least so many invocations share a multiprocessor: fewer have more registers each.
    pub fn share_multiprocessor(&self, invocations: u32) {
        self.inner.borrow_mut().module.resident = Some(invocations);
    }

    /// Asks an assembler not to unroll loops: what several turns hold at once does not fit the registers.
    pub fn keep_rolled(&self) {
        self.inner.borrow_mut().module.rolled = true;
    }

    /// Declares a read-only storage buffer at the next free binding.
    pub fn input(&self, name: &str, elem: Type) -> ArrayRef {
        let binding = self.take_binding();
        self.buffer_at(name, binding, Access::ReadOnly, elem)
    }

    /// Declares a read-write storage buffer at the next free binding.
    pub fn output(&self, name: &str, elem: Type) -> ArrayRef {
        let binding = self.take_binding();
        self.buffer_at(name, binding, Access::ReadWrite, elem)
    }

    /// Declares a storage buffer at the next free binding.
    pub fn buffer(&self, name: &str, access: Access, elem: Type) -> ArrayRef {
        let binding = self.take_binding();
        self.buffer_at(name, binding, access, elem)
    }

    /// Declares a storage buffer at a given binding.
    pub fn buffer_at(&self, name: &str, binding: u32, access: Access, elem: Type) -> ArrayRef {
        let mut inner = self.inner.borrow_mut();
        inner.next_binding = inner.next_binding.max(binding.saturating_add(1));
        let name = inner.names.unique(name);
        ArrayRef::Buffer(inner.module.buffers.append(Buffer { name, binding, access, elem }))
    }

    /// Declares a uniform block at the next free binding; members are `Scalar::U32`, `I32` or `F32`.
    pub fn uniforms(&self, name: &str, fields: &[(&str, Scalar)]) -> Uniforms {
        let binding = self.take_binding();
        self.uniforms_at(name, binding, fields)
    }

    /// Declares a uniform block at a given binding.
    pub fn uniforms_at(&self, name: &str, binding: u32, fields: &[(&str, Scalar)]) -> Uniforms {
        let mut inner = self.inner.borrow_mut();
        inner.next_binding = inner.next_binding.max(binding.saturating_add(1));
        let name = inner.names.unique(name);
        let fields = fields.iter().map(|(name, scalar)| Field { name: (*name).to_owned(), scalar: *scalar }).collect();
        Uniforms(inner.module.uniforms.append(UniformBlock { name, binding, fields }))
    }

    /// A member of a uniform block.
    #[track_caller]
    pub fn field(&self, block: Uniforms, name: &str) -> Val {
        let found = {
            let inner = self.inner.borrow();
            inner.module.uniforms.get(block.0).and_then(|u| u.fields.iter().position(|f| f.name == name))
        };
        match found {
            Some(field) => self.push(Expr::Uniform { block: block.0, field: field as u32 }),
            None => {
                self.error(format!("no uniform member `{name}`"));
                self.poison()
            }
        }
    }

    /// Declares an array shared by the workgroup.
    pub fn workgroup(&self, name: &str, elem: Type, len: u32) -> ArrayRef {
        let mut inner = self.inner.borrow_mut();
        let name = inner.names.unique(name);
        ArrayRef::Workgroup(inner.module.workgroup.append(Array { name, elem, len }))
    }

    /// Declares an array of each invocation, zero at the start. Index it by constants where speed matters; a Rust `Vec`
    /// of [`Var`](super::Var)s is better still.
    pub fn private(&self, name: &str, elem: Type, len: u32) -> ArrayRef {
        let mut inner = self.inner.borrow_mut();
        let name = inner.names.unique(name);
        ArrayRef::Private(inner.module.private.append(Array { name, elem, len }))
    }

    /// Reads an array element as it is at this point.
    #[track_caller]
    pub fn load(&self, array: ArrayRef, index: impl IntoVal) -> Val {
        let Val(index) = index.into_val(self);
        self.push(Expr::Load { array, index })
    }

    /// Writes an array element.
    #[track_caller]
    pub fn store(&self, array: ArrayRef, index: impl IntoVal, value: impl IntoVal) {
        let (index, value) = (index.into_val(self), value.into_val(self));
        let elem = self.array_elem(array);
        if !self.expect_type("index", index, Type::U32) || !self.expect_type("stored value", value, elem) {
            return;
        }
        self.push_stmt(Stmt::Store { array, index: index.0, value: value.0 });
    }

    /// The element type of an array.
    pub fn elem_type(&self, array: ArrayRef) -> Type {
        self.array_elem(array)
    }

    /// Reports a value that is not of the wanted type.
    #[track_caller]
    pub(super) fn expect_type(&self, what: &str, value: Val, wanted: Type) -> bool {
        match self.type_of(value) {
            Some(ty) if ty == wanted => true,
            Some(ty) => {
                self.error(format!("{what} is {ty}, not {wanted}"));
                false
            }
            None => false,
        }
    }

    fn take_binding(&self) -> u32 {
        self.inner.borrow().next_binding
    }
}
