//! Other functions that are close and cost less; only the numeric mode `fast` allows them.

use super::rewrite::{New, Rule, Site, sweep};
use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::graph::{Graph, Op, ValueId};
use crate::passes::pattern::first;
use frit_kernels::spec::UnaryOp;

/// Takes the form of GELU that has a hyperbolic tangent in place of the one with the error function.
///
/// `gelu_erf(x) ≈ gelu_tanh(x)`, off by less than 5e-4   class: approximate
///
/// Pre: activations are raised. Post, in mode `fast`: no `gelu_erf` is left.
pub struct Approximate;

impl Approximate {
    /// Its name.
    pub const NAME: &'static str = "approximate";
}

pub(super) const RULES: &[Rule] = &[Rule::approx("gelu-erf-as-tanh", gelu)];

impl Pass for Approximate {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        sweep(Self::NAME, graph, ctx, RULES)
    }
}

fn gelu(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Unary(UnaryOp::GeluErf) = s.g.op(v) else { return None };
    Some(New::unary(UnaryOp::GeluTanh, New::Use(first(s.g, v)?)))
}
