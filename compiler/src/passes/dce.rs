//! Dead code.

use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::patch::Editor;

/// Removes nodes that no output, declared input or cache write depends on.
///
/// Pre: none. Post: every node is an input, a cache write, or needed by an output or a cache write. A write to a cache
/// slot is an effect and stays even when its result is unused: a later run reads it.
pub struct Dce;

impl Dce {
    /// Its name.
    pub const NAME: &'static str = "dce";
}

impl Pass for Dce {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        Ok(Changed::from(Editor::new(graph, "dead", &mut ctx.log).erase_dead() > 0))
    }
}
