use super::{is_extra, phase, plan};
use frit_compiler::CompileOptions;
use std::collections::BTreeSet;

/// Layers that are alike are drawn once, and with their number the drawing holds every operation.
#[test]
fn equal_layers_are_drawn_once_and_nothing_is_missing() {
    for model in ["lexicon", "devset/gpt2", "devset/bert"] {
        let plan = plan(model, CompileOptions::default());
        for p in &plan.report.phases {
            let d = &p.drawing;
            let layers: usize = d.blocks.iter().map(|b| b.layers.len()).sum();
            assert_eq!(layers, p.layers.len(), "{model} {}", p.program);
            let times = |block: u32| d.blocks[block as usize].layers.len().max(1) as u32;
            let launches = d.ops.iter().filter(|o| !is_extra(&p.regions[o.regions[0] as usize]));
            let drawn: u32 = launches.map(|o| times(o.block)).sum();
            assert_eq!(drawn, p.unfused_dispatches, "{model} {}", p.program);
        }
    }
    let plan = plan("lexicon", CompileOptions::default());
    let d = &phase(&plan, "decode").drawing;
    assert!(d.blocks.iter().any(|b| b.layers.len() >= 4), "{:?}", d.blocks);
    assert!(d.ops.len() < 60, "{} operations are drawn of 112", d.ops.len());
}

/// An operation is in the region that says so, and an edge leads from what makes a value to what reads it.
#[test]
fn operations_are_drawn_in_their_regions() {
    let plan = plan("devset/gpt2", CompileOptions::default());
    let p = phase(&plan, "forward");
    let d = &p.drawing;
    for o in &d.ops {
        for r in &o.regions {
            assert!(p.regions[*r as usize].ops.contains(&o.op), "{o:?}");
        }
    }
    let ends = |op: &str, to: &str| {
        let find = |e: &&frit_plan::DrawnEdge| d.ops[e.from as usize].op == op && d.ops[e.to as usize].op == to;
        d.edges.iter().filter(find).collect::<Vec<_>>()
    };
    let fused = ends("add", "gelu_tanh");
    assert!(!fused.is_empty());
    assert!(fused.iter().all(|e| e.flows && e.refused.is_none()));
    let read = ends("kv_append", "attention");
    let codes: BTreeSet<&str> =
        read.iter().filter_map(|e| e.refused).map(|r| p.refused[r as usize].code.as_str()).collect();
    assert_eq!(codes, BTreeSet::from(["L14-GRID"]), "{read:?}");
}

/// What is stored for the drawing grows with kinds of layers, not with layers.
#[test]
fn the_drawing_of_a_deep_model_is_small() {
    let plan = plan("lexicon", CompileOptions::default());
    let p = phase(&plan, "decode");
    let [drawn, whole] = [serde_json::to_string(&p.drawing).unwrap().len(), serde_json::to_string(p).unwrap().len()];
    assert!(4 * drawn < whole, "{drawn} of {whole} bytes");
}
