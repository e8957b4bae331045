//! Models over devices, simulated in one process.

use crate::harness::BACKENDS;
use crate::support::{self, Random};
use frit::Tensor;
use frit_compiler::graph::Op;
use frit_compiler::shard::{
    Collective, Sharded, tensor_parallel, weight_gathered, weight_stationary_1d, weight_stationary_2d,
};

fn exchanged(s: &Sharded, graph: &str) -> Vec<(Collective, String)> {
    let at = s.model.graphs.iter().position(|g| g.name == graph).unwrap();
    s.exchanges[at].iter().map(|e| (e.collective, e.origin.clone())).collect()
}

/// Each device's products together are the model's: logits of 2 and 4 devices against float64 of the unsharded graph, and
/// against the unsharded plan, on both backends.
#[test]
fn row_18_shards_equal_the_whole() {
    for name in ["devset/llama_gqa", "devset/bert"] {
        let model = support::load(name);
        let ids = Tensor::i32(&[2, 9], Random::new(18).ints(&[2, 9], 90).as_i32().unwrap().to_vec()).unwrap();
        let inputs = [("input_ids".to_owned(), ids)];
        let graph = &model.graphs.iter().find(|g| g.name == "forward" || g.name == "prefill").unwrap().name;
        let want = support::oracle(&model, graph, &[("B", 2), ("S", 9), ("P", 0), ("T", 9)], &inputs);
        let whole = support::compile(&model);
        for devices in [2, 4] {
            let sharded = tensor_parallel(&model, devices).unwrap();
            // Every product that can be is split: a feed-forward part is one gather less than its products.
            let found = exchanged(&sharded, graph);
            let sums = found.iter().filter(|(c, _)| *c == Collective::AllReduce).count();
            assert!(sums >= 2, "{name}: {found:?}");
            let loaded = support::compile(&sharded.model);
            for backend in BACKENDS {
                let got = support::open(&loaded, backend).run(&inputs).unwrap();
                let plain = support::open(&whole, backend).run(&inputs).unwrap();
                let off = support::distance(name, &got[0].1, &want[0].1);
                assert!(off <= 1e-4, "{name} on {devices} devices, {backend:?}: {off:e}");
                let off = support::distance(name, &got[0].1, &support::array(&plain[0].1));
                assert!(off <= 1e-4, "{name} on {devices} devices against one, {backend:?}: {off:e}");
            }
        }
    }
}

/// T4: one device is the model itself, node by node, and exchanges nothing; extents that do not divide stay whole.
#[test]
fn row_18_one_device_changes_nothing() {
    let model = support::load("devset/llama_gqa");
    let one = tensor_parallel(&model, 1).unwrap();
    assert!(one.exchanges.iter().all(Vec::is_empty));
    for (a, b) in model.graphs.iter().zip(&one.model.graphs) {
        let ops = |g: &frit_compiler::graph::Graph| g.order().into_iter().map(|v| g.op(v).clone()).collect::<Vec<Op>>();
        assert_eq!(ops(&a.graph), ops(&b.graph));
    }
    assert!(tensor_parallel(&model, 0).is_err());
    // No extent of the model divides by 1009.
    let many = tensor_parallel(&model, 1009).unwrap();
    assert!(many.exchanges.iter().all(Vec::is_empty));
}

/// Bytes of an exchange by counting what a ring sends, and the volumes of the paper's layouts.
#[test]
fn row_18_communication_is_what_the_formulas_say() {
    let model = support::load("devset/llama_gqa");
    for devices in [2u64, 4] {
        let sharded = tensor_parallel(&model, devices).unwrap();
        for (g, exchanges) in sharded.model.graphs.iter().zip(&sharded.exchanges) {
            for e in exchanges {
                let size = |s: &frit_kernels::dim::Sym| match s.to_string().as_str() {
                    "B" => Some(2),
                    "S" => Some(5),
                    _ => Some(1),
                };
                let elements = e.elements.eval(&size).unwrap() as u64;
                // A ring: in each of n − 1 steps every device passes one of n slices on; a sum goes around twice.
                let (mut sent, slice) = (0, elements / devices);
                let rounds = if e.collective == Collective::AllReduce { 2 } else { 1 };
                for _ in 0..rounds * (devices - 1) {
                    sent += slice;
                }
                assert_eq!(e.sent_elements(devices).eval(&size).unwrap() as u64, sent, "{} {}", g.name, e.origin);
            }
        }
    }
    // The closed forms of the paper at F = 4E, and that no other split of the mesh sends less.
    let (tokens, e, n) = (512.0f64, 18432.0f64, 64.0f64);
    let f = 4.0 * e;
    assert_eq!(weight_stationary_1d(tokens, e), 2.0 * tokens * e);
    let (least, x) = weight_stationary_2d(tokens, e, f, n);
    assert!((least / (8.0 * tokens * e / n.sqrt()) - 1.0).abs() < 1e-12 && (x - n.sqrt() / 2.0).abs() < 1e-9);
    for x in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0] {
        assert!(2.0 * tokens * (e / x + f * x / n) >= least * (1.0 - 1e-12));
    }
    let tokens = 2048.0f64 * 512.0;
    let (least, over) = weight_gathered(tokens, e, f, n);
    assert!((least / (4.0 * e * (tokens * f / n).sqrt()) - 1.0).abs() < 1e-12);
    for other in [1.0, 4.0, 16.0, 64.0, over / 2.0, over * 2.0] {
        assert!(2.0 * e * f * other / n + 2.0 * tokens * e / other >= least * (1.0 - 1e-12));
    }
}
