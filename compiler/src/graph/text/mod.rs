//! The text form of a graph, `.fir`: prints, and parses back to the same graph.
//!
//! ```text
//! graph {
//!   input "input_ids" %0
//!   %0 = input "input_ids" : i32[B, S]
//!   %1 = weight @w0 : f32[49152, 576]  // model.embed_tokens
//!   %2 = gather %1, %0 : f32[B, S, 576]
//!   %3 = slice{axis=1, start=S - 1, len=1} %2 : f32[B, 1, 576]
//!   output "hidden" %3
//! }
//! ```
//!
//! A node is `%value = operation{attributes} operands : type`. What follows `//` behind a node is its origin. A nested
//! graph follows the line of its node. Values are numbered in [`Graph::order`]; inputs and effects that no output
//! depends on come last.

mod lex;
mod parse;
mod print;

pub use lex::ParseError;
pub use parse::parse;
pub use print::print;

use super::{Graph, Op, ValueId};
use std::collections::HashSet;

/// All nodes but dead ones, operands first: [`Graph::order`], then unused inputs and effects.
pub(super) fn full_order(g: &Graph) -> Vec<ValueId> {
    let mut out = g.order();
    let mut done: HashSet<ValueId> = out.iter().copied().collect();
    let effects = g.values().filter(|v| matches!(g.op(*v), Op::KvAppend { .. }));
    for root in g.inputs.iter().map(|i| i.value).chain(effects.collect::<Vec<_>>()) {
        let mut stack = vec![(root, 0usize)];
        while let Some((v, port)) = stack.pop() {
            if done.contains(&v) || g.get(v).is_none() {
                continue;
            }
            match g.operands(v).get(port) {
                Some(o) => stack.extend([(v, port + 1), (*o, 0)]),
                None => {
                    done.insert(v);
                    out.push(v);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
