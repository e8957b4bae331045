//! Sizes that a graph fixes become numbers.

use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::patch::Editor;
use frit_kernels::dim::{Dim, Sym};

/// Replaces sizes by their values in every type and attribute, nested graphs included.
///
/// `T[…S…] == T[…n…]` where the graph runs with `S = n` only.   class: exact
///
/// Pre: none. Post: no fixed size occurs in the graph. Extents of inputs, weights and states change with it.
///
/// ```text
/// %1 = reshape %0 : f32[B*S, 576]     S := 1     %1 = reshape %0 : f32[B, 576]
/// ```
pub struct Specialize {
    /// Sizes and their values.
    pub fixed: Vec<(String, u64)>,
}

impl Specialize {
    /// Its name.
    pub const NAME: &'static str = "specialize";
}

impl Pass for Specialize {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        let value = |s: &Sym| match s {
            Sym::Size(n) => self.fixed.iter().find(|(f, _)| f.as_str() == &**n).map(|(_, v)| Dim::from(*v)),
            _ => None,
        };
        for (name, v) in &self.fixed {
            let v = i64::try_from(*v).unwrap_or(i64::MAX);
            ctx.bounds.set(Sym::Size(name.as_str().into()), v, Some(Dim::constant(v)));
        }
        let f = |d: &Dim| d.substitute(&value);
        let mentions = |d: &Dim| d.symbols().iter().any(|s| value(s).is_some());
        let mut hit = false;
        for v in graph.values() {
            hit |= graph.ty(v).shape.iter().any(mentions);
            let mut op = graph.op(v).clone();
            let seen = std::cell::Cell::new(false);
            op.map_dims(&|d| {
                seen.set(seen.get() | mentions(d));
                d.clone()
            });
            hit |= seen.get();
        }
        if !hit {
            return Ok(Changed::No);
        }
        let changed = Editor::new(graph, "fix-size", &mut ctx.log).retype(&mut |op, ty| {
            op.map_dims(&f);
            ty.shape.iter_mut().for_each(|d| *d = f(d));
        });
        Ok(Changed::from(changed))
    }
}
