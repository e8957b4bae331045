//! Quantised weights are decoded where they are read, unless that is switched off: then by a kernel of their own in front
//! of each product, with the same results.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::{BackendChoice, LoadedModel, Tensor};
use frit_compiler::{CompileOptions, Compiler, Model};
use frit_plan::PhaseReport;
use std::sync::Arc;

const FORMATS: [&str; 3] = ["Q4_0", "Q8_0", "F16"];

fn without(model: &Model, switch: Option<&str>) -> LoadedModel {
    let mut options = CompileOptions::default();
    if let Some(s) = switch {
        options.switch_off(s).unwrap();
    }
    let plan = Compiler::new(options).compile(model).unwrap();
    plan.validate().unwrap();
    assert!(plan.report.validation.dropped.is_empty(), "{:?}", plan.report.validation.dropped);
    LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None }
}

fn decode(m: &LoadedModel) -> &PhaseReport {
    m.plan.report.phases.iter().find(|p| p.program == "decode").unwrap()
}

/// Kernels that decode a weight, by the origins of their products.
fn decoders(p: &PhaseReport) -> Vec<&str> {
    let alone = |r: &&frit_plan::RegionReport| r.ops == ["cast_f32"];
    p.regions.iter().filter(alone).map(|r| r.origins[0].as_str()).collect()
}

fn quantised(model: &Model) -> usize {
    model.tables.weights.iter().filter(|w| w.storage.is_quantised()).count()
}

#[test]
fn weights_decoded_apart_give_the_same_logits() {
    for format in FORMATS {
        let model = support::load(&format!("devset/gguf/llama_{format}.gguf"));
        let (fused, apart) = (without(&model, None), without(&model, Some("dequant")));
        assert_eq!(decoders(decode(&fused)), [""; 0], "{format}");
        let decoded = decoders(decode(&apart)).len();
        assert!(decoded <= quantised(&model) && (decoded > 10) == (format != "F16"), "{format}: {decoded}");
        for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
            for (batch, tokens) in [(1u64, 1u64), (2, 7)] {
                let ids = (0..batch * tokens).map(|i| (3 + i * 17 % 190) as i32).collect();
                let input = [("input_ids", Tensor::i32(&[batch, tokens], ids).unwrap())];
                let [want, got] = [&fused, &apart].map(|m| support::open(m, backend).run(&input).unwrap());
                assert!(!want.is_empty() && want.len() == got.len(), "{format} on {backend:?}");
                for ((name, want), (_, got)) in want.iter().zip(&got) {
                    let d = support::distance(name, got, &support::array(want));
                    assert!(d <= 1e-5, "{format} on {backend:?}, {batch}x{tokens}: {name} is {d:e} off");
                }
            }
        }
    }
}

/// Each product has a launch in front that writes its weight, whose bytes are taken while it runs alone.
#[test]
fn a_decoded_weight_lies_in_memory_for_its_product_alone() {
    let model = support::load("lexicon/lexicon-q8_0.gguf");
    let (fused, apart) = (without(&model, None), without(&model, Some("dequant")));
    let refused: Vec<_> = decode(&apart).refused.iter().filter(|e| e.from.starts_with("cast_f32")).collect();
    assert!(!refused.is_empty());
    for e in refused {
        assert_eq!((e.code.as_str(), e.detail.as_str()), ("L20-USER", "decoding in products is switched off"));
    }
    let peak = |m: &LoadedModel| {
        let at: Vec<u64> = m.plan.sizes.iter().map(|s| s.min.max(1)).collect();
        let program = m.plan.program("decode").unwrap();
        m.plan.arena_bytes(program, &at).unwrap()
    };
    let elements = |w: &frit_compiler::graph::WeightInfo| -> u64 {
        w.shape.iter().filter_map(|d| u64::try_from(d.as_const()?).ok()).product()
    };
    let mut sizes: Vec<u64> = model.tables.weights.iter().filter(|w| w.storage.is_quantised()).map(elements).collect();
    sizes.sort_unstable();
    // The weight of the logits has a slot, and those of layers have another.
    let [.., layers, logits] = sizes[..] else { panic!("{sizes:?}") };
    let (with, without) = (peak(&fused), peak(&apart));
    assert!(without >= 4 * logits && without <= 4 * (logits + layers) + with, "{without} of {sizes:?} and {with}");
}

#[test]
fn weights_are_decoded_apart_at_one_place() {
    let model = support::load("lexicon/lexicon-q8_0.gguf");
    let apart = without(&model, Some("dequant@layers.3.mlp"));
    let found = decoders(decode(&apart));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|o| o.contains("layers.3.mlp")), "{found:?}");
    let edge = decode(&apart).refused.iter().find(|e| e.from.starts_with("cast_f32")).unwrap();
    assert_eq!(edge.detail, "decoding in products is switched off at layers.3.mlp");
    let launches = |m: &LoadedModel| decode(m).dispatches;
    assert!(launches(&apart) >= launches(&without(&model, None)) + 3);
}
