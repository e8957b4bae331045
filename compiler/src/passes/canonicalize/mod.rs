//! One form for each thing that can be spelled in several ways.

mod arith;
mod matmul;
mod rows;
mod views;

use super::rewrite::{Rule, sweep};
use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::graph::Graph;

/// Brings views, arithmetic with constants and matmuls into normal form.
///
/// Pre: types are inferred. Post, unless the context says that the bound was hit: views are composed and none is
/// without effect; broadcasts that elementwise functions do by themselves are gone; a constant stands on the right of a
/// commutative function; rows are cut in front of the product or norm that makes them; `x − c` is `x + (−c)`; squares,
/// roots and reciprocals are spelled `mul`, `sqrt`, `rsqrt`, `recip`; no matmul reads a transpose of its last two axes. Rules name their equations.
///
/// ```text
/// %2 = transpose{perm=[0, 2, 3, 1]} %1
/// %3 = matmul %0, %2               ==>   %2 = transpose{perm=[0, 2, 1, 3]} %1
///                                        %3 = matmul.bt %0, %2
/// ```
pub struct Canonicalize;

impl Canonicalize {
    /// Its name.
    pub const NAME: &'static str = "canonicalize";
}

pub(super) fn rules() -> Vec<Rule> {
    [views::RULES, arith::RULES, matmul::RULES, rows::RULES].concat()
}

impl Pass for Canonicalize {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        sweep(Self::NAME, graph, ctx, &rules())
    }
}
