//! Attention of one row with its keys in parts.

use super::rewrite::{New, Rule, Site, sweep};
use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::fusion::key_parts::Shape;
use crate::graph::{Graph, Op, ValueId};

/// Takes the keys of attention in parts and merges them: workgroups for a graphics card where one row makes few.
///
/// `softmax(s)·V = Σ_c exp(m_c − m)·(Σ_{t in c} exp(s_t − m_c)·V_t) / Σ_c exp(m_c − m)·(Σ_{t in c} exp(s_t − m_c))`, m being the
/// largest of the largest scores m_c of the parts c   class: reassociates a sum
///
/// Pre: attention is raised. Post: attention of one row and few heads is `merge_parts(attention_parts(…))`.
pub struct SplitKeys;

impl SplitKeys {
    /// Its name.
    pub const NAME: &'static str = "split-keys";
}

pub(super) const RULES: &[Rule] = &[Rule::reassoc("split-keys", split)];

impl Pass for SplitKeys {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        sweep(Self::NAME, graph, ctx, RULES)
    }
}

/// The sizes of an attention of one row whose heads do not fill a graphics card.
pub fn shape(graph: &Graph, v: ValueId) -> Option<Shape> {
    let ops = graph.operands(v);
    let (Op::Attention(_), [q, k, value, ..]) = (graph.op(v), ops.as_slice()) else { return None };
    let size = |v: ValueId, axis: usize| u64::try_from(graph.ty(v).shape.get(axis)?.as_const()?).ok();
    if size(*q, 2) != Some(1) {
        return None;
    }
    let value_dim = size(*value, 3)?;
    Some(Shape { heads: size(*q, 1)?, kv_heads: size(*k, 1)?, width: size(*k, 3)? + value_dim, value: value_dim })
}

fn split(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Attention(attrs) = s.g.op(v) else { return None };
    let parts = shape(s.g, v)?.parts()?;
    let split = New::make(Op::AttentionParts { attrs: attrs.clone(), parts }, &s.g.operands(v));
    Some(New::Make(Op::MergeParts { parts }, vec![split]))
}
