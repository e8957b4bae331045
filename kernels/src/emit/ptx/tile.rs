//! Tiles of 16-bit matrices: asynchronous copies, matrix loads and products.

use super::access::split;
use super::writer::{Value, Writer, Written};
use crate::ir::{ArrayRef, Expr, HalfFormat, Handle, Literal, TileOp};

impl Writer<'_> {
    pub(super) fn tile(&mut self, op: &TileOp) -> Written<()> {
        match op {
            TileOp::Copy { to, to_index, from, from_index, active } => {
                let (to, from) = (ArrayRef::Workgroup(*to), ArrayRef::Buffer(*from));
                let (source, target) = (self.named(from, *from_index)?, self.named(to, *to_index)?);
                let bytes = match self.module.exprs[*active] {
                    Expr::Literal(Literal::Bool(true)) => None,
                    _ => {
                        let p = self.scalar(*active)?;
                        let bytes = self.asm.reg(super::asm::Kind::Word);
                        self.op(format!("selp.b32 {bytes}, 16, 0, {p}"));
                        Some(bytes)
                    }
                };
                let bytes = bytes.map_or_else(String::new, |b| format!(", {b}"));
                self.op(format!("cp.async.cg.shared.global {target}, {source}, 16{bytes}"));
                self.known.forget(to);
            }
            TileOp::Commit => self.op("cp.async.commit_group"),
            TileOp::Wait(pending) => {
                self.op(format!("cp.async.wait_group {pending}"));
                self.known.forget_all();
            }
            TileOp::Load { local, array, index } => {
                let place = self.named(ArrayRef::Workgroup(*array), *index)?;
                let regs = self.declare(*local);
                self.op(format!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{}}}, {place}", regs.join(", ")));
                self.locals[local.index()] = Some(regs);
            }
            TileOp::Multiply { sum, a, b, format } => {
                let (a, b): (Value, Value) = (self.value(*a)?, self.value(*b)?);
                let sum = self.locals[sum.index()].clone().unwrap_or_default().join(", ");
                let ty = match format {
                    HalfFormat::F16 => "f16",
                    HalfFormat::Bf16 => "bf16",
                };
                let (a, b) = (a.join(", "), b.join(", "));
                self.op(format!(
                    "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {{{sum}}}, {{{a}}}, {{{b}}}, {{{sum}}}"
                ));
            }
        }
        Ok(())
    }

    /// The operand that names an element.
    fn named(&mut self, array: ArrayRef, index: Handle<Expr>) -> Written<String> {
        let (base, offset) = split(self.module, &self.lets, index);
        self.place(array, base, offset)
    }
}
