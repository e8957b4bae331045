//! Layers that are fused once and stretched give the plan that fusing every layer gives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use frit_compiler::fusion::outline::Outline;
use frit_compiler::ingest;
use frit_compiler::{CompileOptions, Compiler, Model};
use frit_plan::Plan;
use std::path::Path;

fn lexicon(file: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/lexicon").join(file);
    ingest::load(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn compile(model: &Model, outline: bool) -> Plan {
    let options = CompileOptions { outline, targets: Vec::new(), ..CompileOptions::default() };
    Compiler::new(options).compile(model).unwrap()
}

#[test]
fn a_stretched_plan_is_the_plan_of_all_layers() {
    for file in ["", "lexicon-q8_0.gguf"] {
        let model = lexicon(file);
        let (mut short, long) = (compile(&model, true), compile(&model, false));
        for (a, b) in short.programs.iter().zip(&long.programs) {
            assert_eq!(a, b, "program {}", a.name);
        }
        for (a, b) in short.report.phases.iter_mut().zip(&long.report.phases) {
            assert!(a.instances >= 1, "{}: no layer was stretched", a.program);
            a.instances = 0;
            assert!(a.work <= b.work, "{}: {} decisions, {} without", a.program, a.work, b.work);
            a.work = b.work;
            assert_eq!(a, b, "report of {}", a.program);
        }
        assert!(short == long);
    }
}

#[test]
fn the_repeated_block_of_a_decoder_is_its_layer() {
    let model = lexicon("");
    for g in &model.graphs {
        let mut graph = g.graph.clone();
        frit_compiler::passes::run_pipeline(&mut graph, &model.tables, &g.fixed).unwrap();
        let outline = Outline::find(&graph, &model.tables).unwrap_or_else(|| panic!("{} has no outline", g.name));
        let layers = outline.count;
        assert!((5..=6).contains(&layers), "{}: {layers} blocks", g.name);
        let short = outline.shrink(&graph).unwrap();
        assert!(short.len() < graph.len());
        frit_compiler::graph::verify::verify(&short, Some(&model.tables)).unwrap();
    }
}
