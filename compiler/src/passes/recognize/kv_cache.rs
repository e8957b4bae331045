//! Key/value caches of graphs that take the past as inputs and give the present as outputs.

use crate::error::{Error, Result};
use crate::graph::patch::{Editor, Log};
use crate::graph::{Graph, GraphError, KvSlot, Op, Tables, ValueId};
use frit_kernels::dim::Dim;
use frit_plan::{KvPart, sizes};

/// A cache slot in place of inputs and outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaisedCache {
    /// The slot's name, which is the name of the keys' input.
    pub slot: String,
    /// Inputs that are gone: past keys, past values.
    pub inputs: [String; 2],
    /// Outputs that are gone: present keys, present values.
    pub outputs: [String; 2],
}

/// Lets the session keep keys and values that the host carried from run to run.
///
/// `present = concat(past, new)`, past an input, present an output   ==   `kv_append(new)`, the host feeding each
/// present back as the next past. Exact under that protocol, which the caller asserts by calling this; it is no pass,
/// since the interface of the graph changes.
///
/// A layer is raised iff an attention reads both presents, each is the concatenation along the tokens of an input
/// `[B, G, P, D]`, P being [`sizes::PAST`] and G and D numbers, used by nothing else, with the new part behind it, and
/// both presents are outputs. Pre: attention is raised. Rule `kv-append`, once for keys and once for values.
///
/// # Errors
/// [`Error::Internal`] when an edit breaks a rule of the graph.
pub fn raise_kv_caches(graph: &mut Graph, tables: &mut Tables, log: &mut Log) -> Result<Vec<RaisedCache>> {
    let mut out = Vec::new();
    for v in graph.order() {
        let Op::Attention(_) = graph.op(v) else { continue };
        let [_, k, value, ..] = graph.operands(v)[..] else { continue };
        let (Some(keys), Some(values)) = (append(graph, k), append(graph, value)) else { continue };
        if k == value || log.fuel.is_spent() {
            continue;
        }
        let (Some(heads), Some(k_dim), Some(v_dim)) =
            (extent(graph, k, 1), extent(graph, k, 3), extent(graph, value, 3))
        else {
            continue;
        };
        let slot = tables.kv_slot(KvSlot { name: keys.input.clone(), heads, k_dim, v_dim });
        for (part, present, a) in [(KvPart::K, k, &keys), (KvPart::V, value, &values)] {
            let mut e = Editor::new(graph, "kv-append", log);
            e.retire(&a.input, &a.output);
            let replaced = e.replace_by(present, Op::KvAppend { slot, part }, &[a.new]);
            replaced.map_err(|f: GraphError| Error::Internal { pass: "kv-append", fault: f.to_string() })?;
        }
        out.push(RaisedCache {
            slot: keys.input.clone(),
            inputs: [keys.input, values.input],
            outputs: [keys.output, values.output],
        });
    }
    Ok(out)
}

struct Append {
    input: String,
    output: String,
    new: ValueId,
}

fn extent(g: &Graph, v: ValueId, axis: usize) -> Option<u64> {
    u64::try_from(g.ty(v).shape.get(axis)?.as_const()?).ok()
}

fn append(g: &Graph, present: ValueId) -> Option<Append> {
    let Op::Concat { axis: 2 } = g.op(present) else { return None };
    let [past, new] = g.operands(present)[..] else { return None };
    let Op::Input(input) = g.op(past) else { return None };
    let mut outputs = g.outputs.iter().filter(|o| o.value == present);
    let (output, None) = (outputs.next()?, outputs.next()) else { return None };
    let fits = g.ty(past).rank() == 4
        && g.ty(past).shape.get(2) == Some(&Dim::size(sizes::PAST))
        && g.users(past).len() == 1
        && !g.is_output(past)
        && past != new
        && output.state.is_none();
    fits.then(|| Append { input: input.clone(), output: output.name.clone(), new })
}
