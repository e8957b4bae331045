//! Values that every reader rounds to 16 bits are kept so on CUDA: not a bit of any result changes, and other targets do not
//! know of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::backend::simt::SimtBackend;
use frit::{BackendChoice, LoadedModel, Session, Tensor};
use frit_compiler::{CompileOptions, Compiler, Model};
use frit_kernels::dtype::HalfFormat;
use frit_kernels::spec::{Alias, AliasKind, ArgId, Space};
use frit_kernels::target::Tier;
use frit_plan::{BufferRef, Program};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// A decoder of two layers with random bf16 weights, of sizes that no tile divides and that warpgroups take.
fn bf16(folder: &Path, hidden: usize, inner: usize) -> Model {
    let vocab = 2 * hidden + 3;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": hidden / 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128,
        "tie_word_embeddings": false, "vocab_size": vocab, "bos_token_id": 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![vocab, hidden]),
        ("lm_head.weight".into(), vec![vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![hidden / 2, hidden]),
            ("self_attn.v_proj", vec![hidden / 2, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut random = support::Random::new(11);
    let (mut header, mut data) = (BTreeMap::new(), Vec::<u8>::new());
    for (name, shape) in shapes {
        let start = data.len();
        let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
        let count = shape.iter().product::<usize>();
        data.extend((0..count).flat_map(|_| half::bf16::from_f32(centre + 0.1 * random.unit()).to_le_bytes()));
        header.insert(name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = serde_json::to_string(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    frit_compiler::ingest::load(folder).unwrap()
}

fn compiled(model: &Model, switch: Option<&str>) -> LoadedModel {
    let mut options = CompileOptions { every_text: true, ..CompileOptions::default() };
    if let Some(s) = switch {
        options.switch_off(s).unwrap();
    }
    let plan = Compiler::new(options).compile(model).unwrap();
    plan.validate().unwrap();
    LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None }
}

/// The values of a program that are kept in 16 bits, by name, with their formats.
fn kept(m: &LoadedModel, program: &str) -> BTreeMap<String, HalfFormat> {
    let p: &Program = m.plan.program(program).unwrap();
    let named = |(v, format): (u32, HalfFormat)| (p.values[v as usize].name.clone(), format);
    m.plan.half_rows(p).into_iter().map(named).collect()
}

/// Numbers that a run leaves on PTX for this compute capability, as bits.
fn on_ptx(m: &LoadedModel, capability: (u32, u32), input: &[(&str, Tensor)]) -> (Vec<Vec<u32>>, Vec<&'static str>) {
    let simt = SimtBackend::new(Tier::Cuda, Some(3)).with_capability(capability);
    let mut s = Session::builder().bind_on(&simt, Arc::clone(&m.plan), &*m.weights).unwrap();
    let out = s.run(input).unwrap();
    let checks = simt.checks().kernels();
    let broken: Vec<_> = checks.iter().flat_map(|k| &k.violations).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let templates = m.plan.kernels.iter().zip(&checks).filter(|(_, c)| c.launches > 0);
    let templates = templates.filter_map(|(k, _)| k.ptx(capability)).map(|v| match v.schedule.template.as_str() {
        "gemm_warpgroup" => "warpgroups",
        _ => "others",
    });
    let templates: BTreeSet<&str> = templates.collect();
    let bits = |t: &Tensor| t.as_f32().unwrap().iter().map(|v| v.to_bits()).collect();
    (out.iter().map(|(_, t)| bits(t)).collect(), templates.into_iter().collect())
}

#[test]
fn results_have_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = BTreeSet::new();
    for (name, model, format) in [
        ("bf16", bf16(folder.path(), 104, 168), HalfFormat::Bf16),
        ("Q8_0", support::load("devset/gguf/llama_Q8_0.gguf"), HalfFormat::Bf16),
        ("F16", support::load("devset/gguf/llama_F16.gguf"), HalfFormat::F16),
    ] {
        let (half, whole) = (compiled(&model, None), compiled(&model, Some("half-rows")));
        assert_eq!(kept(&whole, "forward"), BTreeMap::new(), "{name}");
        let found = kept(&half, "forward");
        // Of each layer what attention leaves and what the activation leaves, at least.
        assert!(found.len() >= 4 && found.values().all(|f| *f == format), "{name}: {found:?}");
        for (batch, tokens) in [(1, 70), (3, 9)] {
            let ids = (0..batch * tokens).map(|i| 3 + i * 17 % 190).collect();
            let input = [("input_ids", Tensor::i32(&[batch as u64, tokens as u64], ids).unwrap())];
            for capability in [(8, 0), (9, 0)] {
                let (got, templates) = on_ptx(&half, capability, &input);
                let (want, _) = on_ptx(&whole, capability, &input);
                assert!(!got.is_empty() && got == want, "{name} on {capability:?}, {batch}x{tokens}");
                seen.extend(templates.into_iter().map(|t| (capability, t)));
            }
            let [got, want] = [&half, &whole].map(|m| support::open(m, BackendChoice::Cpu).run(&input).unwrap());
            assert_eq!(got[0].1.as_f32().unwrap(), want[0].1.as_f32().unwrap(), "{name} on the CPU");
        }
    }
    assert!(seen.contains(&((9, 0), "warpgroups")) && seen.contains(&((8, 0), "others")), "{seen:?}");
}

/// The texts of other targets are those of the plan without, and so are the bytes that a run's values take.
#[test]
fn other_targets_have_the_same_texts() {
    let model = support::load("devset/gguf/llama_Q8_0.gguf");
    let (half, whole) = (compiled(&model, None), compiled(&model, Some("half-rows")));
    let texts = |m: &LoadedModel, tier| -> BTreeSet<String> { m.plan.texts(tier).map(|t| t.1.to_owned()).collect() };
    for tier in [Tier::Cpu, Tier::Gpu] {
        assert_eq!(texts(&half, tier), texts(&whole, tier));
    }
    assert_ne!(texts(&half, Tier::Cuda), texts(&whole, Tier::Cuda));
    for path in ["devset/gguf/llama_Q8_0.gguf", "devset/gguf/llama_F16.gguf", "families/gemma2", "families/whisper"] {
        let model = support::load(path);
        let (half, whole) = (compiled(&model, None), compiled(&model, Some("half-rows")));
        for (a, b) in half.plan.programs.iter().zip(&whole.plan.programs) {
            let sizes: Vec<u64> = half.plan.sizes.iter().map(|s| s.max.unwrap_or(60).clamp(s.min, 60)).collect();
            let [a, b] = [(&half, a), (&whole, b)].map(|(m, p)| m.plan.arena_bytes(p, &sizes).unwrap());
            assert_eq!(a, b, "{path}");
        }
    }
}

/// Neither values that the host sees nor those that anything reads in full are kept so; the switch works by place.
#[test]
fn values_that_are_read_in_full_stay() {
    let folder = tempfile::tempdir().unwrap();
    let model = bf16(folder.path(), 104, 168);
    let half = compiled(&model, None);
    for p in &half.plan.programs {
        let ports: BTreeSet<String> = p
            .inputs
            .iter()
            .chain(&p.outputs)
            .filter_map(|port| match port.buffer {
                BufferRef::Value(v) => Some(p.values[v as usize].name.clone()),
                _ => None,
            })
            .collect();
        assert!(kept(&half, &p.name).keys().all(|name| !ports.contains(name)), "{}", p.name);
    }
    // One row a sequence is multiplied in 32 bits.
    assert_eq!(kept(&half, "decode"), BTreeMap::new());
    let all = kept(&half, "prefill");
    let some = kept(&compiled(&model, Some("half-rows@layers.1")), "prefill");
    assert!(!some.is_empty() && some.len() < all.len(), "{some:?} of {all:?}");
    // A precision that takes both sides apart reads them in full.
    let options = CompileOptions::default();
    let mut exact = options.clone();
    exact.fusion.matmul_precision = frit_kernels::spec::MatmulPrecision::Bf16x3;
    let plan = Compiler::new(exact).compile(&model).unwrap();
    assert!(plan.kernels.iter().all(|k| k.spec.args.iter().all(|a| a.rounded.is_none())));
}

/// A plan for CUDA alone commutes norms through bf16 products: rows go in as they are, in 16 bits, and what warpgroups sum
/// is scaled.
#[test]
fn norms_of_bf16_models_are_commuted_for_cuda() {
    let folder = tempfile::tempdir().unwrap();
    let model = bf16(folder.path(), 328, 648);
    let mut options = CompileOptions { every_text: true, ..CompileOptions::default() };
    options.only_for(&[Tier::Cuda]);
    let plan = Compiler::new(options).compile(&model).unwrap();
    assert!(plan.report.validation.dropped.is_empty(), "{:?}", plan.report.validation.dropped);
    assert!(plan.kernels.iter().all(|k| k.variants.iter().all(|v| v.tier == Tier::Cuda)));
    let own = LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None };
    let gained = |m: &LoadedModel| kept(m, "prefill").into_keys().filter(|n| n.contains("gained")).count();
    let all = compiled(&model, None);
    assert_eq!((gained(&own), gained(&all)), (3, 0), "of four norms but the first, whose rows no product makes");
    let ids = (0..70).map(|i| 3 + i * 17 % 190).collect();
    let input = [("input_ids", Tensor::i32(&[1, 70], ids).unwrap())];
    let want = support::open(&all, BackendChoice::Cpu).run(&input).unwrap();
    let want = want[0].1.as_f32().unwrap();
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for capability in [(8, 0), (9, 0)] {
        let (got, templates) = on_ptx(&own, capability, &input);
        assert_eq!(templates.contains(&"warpgroups"), capability == (9, 0));
        for (g, w) in got[0].iter().zip(want) {
            // Both sides of products are rounded to bf16.
            assert!(
                (f32::from_bits(*g) - w).abs() <= 2.5e-2 * largest,
                "{} for {w} on {capability:?}",
                f32::from_bits(*g)
            );
        }
    }
}

/// Only activations are kept so, and none that share memory.
#[test]
fn specs_that_round_anything_else_are_refused() {
    let m = compiled(&support::load("devset/gguf/llama_Q8_0.gguf"), None);
    let kept = m.plan.kernels.iter().find(|k| k.spec.args.iter().any(|a| a.written && a.rounded.is_some())).unwrap();
    kept.spec.verify().unwrap();
    let mut spec = kept.spec.clone();
    let weight = spec.args.iter_mut().find(|a| a.space == Space::Weight || a.space == Space::Kv(0)).unwrap();
    weight.rounded = Some(HalfFormat::Bf16);
    assert!(spec.verify().unwrap_err().to_string().contains("is said to be rounded to bf16"));
    let mut spec = kept.spec.clone();
    let output = ArgId(spec.args.iter().position(|a| a.written && a.rounded.is_some()).unwrap() as u16);
    let input = ArgId(spec.args.iter().position(|a| !a.written).unwrap() as u16);
    spec.aliases.push(Alias { output, input, kind: AliasKind::SameElement });
    assert!(spec.verify().unwrap_err().to_string().contains("is rounded and shares storage"));
}

/// An artifact whose kernels do not agree on how a value is kept is refused.
#[test]
fn kernels_agree_on_how_a_value_is_kept() {
    let mut m = compiled(&support::load("devset/gguf/llama_Q8_0.gguf"), None);
    let plan = Arc::make_mut(&mut m.plan);
    let writer =
        plan.kernels.iter_mut().find(|k| k.spec.args.iter().any(|a| a.written && a.rounded.is_some())).unwrap();
    writer.spec.args.iter_mut().for_each(|a| a.rounded = None);
    let why = plan.validate().unwrap_err().to_string();
    assert!(why.contains("is rounded to bf16, elsewhere to none"), "{why}");
}
