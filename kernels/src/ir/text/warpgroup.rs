//! Work of warpgroups: text to statements.

use super::parse::{Parsed, Parser};
use crate::ir::expr::{ArrayRef, Expr, Literal};
use crate::ir::stmt::Stmt;
use crate::ir::warpgroup::{Place, WarpgroupOp};

impl Parser {
    /// The statement that a word begins.
    pub(super) fn warpgroup(&mut self, word: &str) -> Parsed<Stmt> {
        let op = match word {
            "make_barrier" => {
                let barrier = self.place()?;
                self.keyword("of")?;
                WarpgroupOp::Init { barrier, arrivals: self.constant()? }
            }
            "arrive" => {
                let barrier = self.place()?;
                self.keyword("with")?;
                WarpgroupOp::Arrive { barrier, bytes: self.constant()? }
            }
            "await" => {
                let barrier = self.place()?;
                self.keyword("parity")?;
                WarpgroupOp::Await { barrier, parity: self.expr()? }
            }
            "bring" => {
                let to = self.place()?;
                self.mark('=')?;
                let name = self.name('@')?;
                let Some(ArrayRef::Buffer(from)) = self.arrays.get(&name).copied() else {
                    return self.fail(format!("`@{name}` is no buffer"));
                };
                self.keyword("from")?;
                let column = self.expr()?;
                self.mark(',')?;
                let row = self.expr()?;
                self.keyword("at")?;
                WarpgroupOp::Bring { to, from, corner: [column, row], barrier: self.place()? }
            }
            "publish" => WarpgroupOp::Publish,
            "settle" => WarpgroupOp::Settle(self.constant()?),
            _ => {
                let mut sums = vec![self.local()?];
                while self.take_mark(',') {
                    sums.push(self.local()?);
                }
                self.mark('=')?;
                let format = self.half_format()?;
                self.mark('(')?;
                let a = self.place()?;
                self.mark(',')?;
                let b = self.place()?;
                self.mark(')')?;
                WarpgroupOp::Multiply { sums, a, b, format }
            }
        };
        Ok(Stmt::Warpgroup(op))
    }

    fn place(&mut self) -> Parsed<Place> {
        match self.element()? {
            (ArrayRef::Workgroup(array), index) => Ok(Place { array, index }),
            _ => self.fail("an element of workgroup memory expected"),
        }
    }

    fn constant(&mut self) -> Parsed<u32> {
        let e = self.expr()?;
        match self.module.exprs[e] {
            Expr::Literal(Literal::U32(v)) => Ok(v),
            _ => self.fail("a u32 constant expected"),
        }
    }
}
