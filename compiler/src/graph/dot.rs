//! Graphviz pictures of graphs: one cluster for each scope, nodes coloured by region where a map is given.

use super::text;
use super::{Graph, Op, ValueId};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

const COLOURS: [&str; 12] = [
    "#8dd3c7", "#ffffb3", "#bebada", "#fb8072", "#80b1d3", "#fdb462", "#b3de69", "#fccde5", "#d9d9d9", "#bc80bd",
    "#ccebc5", "#ffed6f",
];

/// The graph in the DOT language. Nodes of equal region number have the same colour; nodes of one scope (origin up to
/// the block number, such as `model.layers.3`) share a cluster. Constants are drawn once for each use.
pub fn dot(g: &Graph, regions: Option<&HashMap<ValueId, u32>>) -> String {
    let order = text::full_order(g);
    let number: HashMap<ValueId, usize> = order.iter().enumerate().map(|(i, v)| (*v, i)).collect();
    let mut out =
        String::from("digraph frit {\n  node [shape=box, style=filled, fillcolor=white, fontname=monospace];\n");
    let mut scopes: BTreeMap<String, Vec<ValueId>> = BTreeMap::new();
    for v in &order {
        if !matches!(g.op(*v), Op::Const(_)) {
            scopes.entry(scope(&g.node(*v).origin)).or_default().push(*v);
        }
    }
    for (k, (scope, members)) in scopes.iter().enumerate() {
        let inner = !scope.is_empty();
        if inner {
            let _ = writeln!(out, "  subgraph cluster_{k} {{\n    label=\"{}\";", escaped(scope));
        }
        for v in members {
            let n = g.node(*v);
            let region = regions.and_then(|r| r.get(v));
            let colour = region.map(|r| COLOURS[*r as usize % COLOURS.len()]);
            let fill = colour.map(|c| format!(", fillcolor=\"{c}\"")).unwrap_or_default();
            let tag = region.map(|r| format!("\\nregion {r}")).unwrap_or_default();
            let shape = if n.op.is_source() { ", shape=ellipse" } else { "" };
            let id = number.get(v).copied().unwrap_or(0);
            let label = format!("%{id} {}\\n{}{tag}", escaped(&n.op.name()), escaped(&n.ty.to_string()));
            let pad = if inner { "    " } else { "  " };
            let _ = writeln!(out, "{pad}n{id} [label=\"{label}\"{shape}{fill}];");
        }
        if inner {
            out.push_str("  }\n");
        }
    }
    for v in &order {
        let to = number.get(v).copied().unwrap_or(0);
        let operands = g.operands(*v);
        for (port, o) in operands.iter().enumerate() {
            let from = number.get(o).copied().unwrap_or(0);
            let label = if operands.len() > 1 { format!(" [headlabel=\"{port}\"]") } else { String::new() };
            if let Op::Const(l) = g.op(*o) {
                let _ = writeln!(out, "  c{to}_{port} [label=\"{}\", shape=plaintext];", escaped(&format!("{l:?}")));
                let _ = writeln!(out, "  c{to}_{port} -> n{to}{label};");
            } else {
                let _ = writeln!(out, "  n{from} -> n{to}{label};");
            }
        }
    }
    for (k, o) in g.outputs.iter().enumerate() {
        let from = number.get(&o.value).copied().unwrap_or(0);
        let _ = writeln!(out, "  out{k} [label=\"{}\", shape=ellipse];\n  n{from} -> out{k};", escaped(&o.name));
    }
    out.push_str("}\n");
    out
}

fn scope(origin: &str) -> String {
    let parts: Vec<&str> = origin.split('.').collect();
    let block = parts.iter().position(|p| p.parse::<u32>().is_ok());
    block.and_then(|i| parts.get(..=i)).map(|p| p.join(".")).unwrap_or_default()
}

fn escaped(s: &str) -> String {
    s.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_clusters_and_regions_colours() {
        let text = "graph {\n input \"x\" %0\n %0 = input \"x\" : f32[B]\n %1 = exp %0 : f32[B] // m.layers.0.mlp\n \
                    %2 = neg %1 : f32[B] // m.layers.1.mlp\n output \"y\" %2\n}";
        let g = text::parse(text).unwrap();
        let order = g.order();
        let picture = dot(&g, Some(&HashMap::from([(order[1], 4)])));
        assert!(picture.contains("label=\"m.layers.0\"") && picture.contains("label=\"m.layers.1\""), "{picture}");
        assert!(picture.contains("region 4\", fillcolor=\"#80b1d3\""), "{picture}");
        assert!(picture.contains("n0 -> n1") && picture.contains("n2 -> out0"), "{picture}");
    }
}
