//! Every kernel of the models in `fixtures/`, executed as text under all checks, against the CPU backend.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::verify::{VerifyOptions, verify};
use frit_compiler::CompileOptions;
use frit_kernels::target::{Architecture, Tier};

fn check(model: &str, options: VerifyOptions) {
    let loaded = support::compile(&support::load(model));
    for (tier, capability) in [(Tier::Cpu, (8, 0)), (Tier::Gpu, (8, 0)), (Tier::Cuda, (8, 0)), (Tier::Cuda, (9, 0))] {
        let options = VerifyOptions { capability, ..options };
        let found = verify(&loaded, tier, &options).unwrap_or_else(|e| panic!("{model} {}: {e}", tier.name()));
        let broken: Vec<_> = found.kernels.iter().flat_map(|k| &k.violations).collect();
        assert!(
            found.passed(),
            "{model} {}: {broken:#?} {:?} {:?} {:?}",
            found.tier,
            found.not_launched,
            found.outputs,
            found.same_tokens
        );
        assert!(found.kernels.iter().all(|k| k.instructions > 0 && k.sectors > 0 && k.live_registers > 0));
        assert!(found.proved.len() >= 7 && found.proved.iter().any(|p| p.contains("nothing wrote")));
    }
}

#[test]
fn decoders() {
    check("devset/llama_gqa", VerifyOptions { batch: 2, tokens: 9, ..Default::default() });
    check("devset/gpt2", VerifyOptions { tokens: 1, ..Default::default() });
    check("devset/qwen2", VerifyOptions { batch: 3, tokens: 17, shuffle: Some(7), ..Default::default() });
}

/// One sequence of one token: programs for more rows and for more sequences than that are run by themselves.
#[test]
fn kernels_of_programs_that_no_run_takes_are_launched() {
    check("devset/llama_gqa", VerifyOptions { tokens: 1, new_tokens: 0, ..Default::default() });
    let mut loaded = support::compile(&support::load("devset/llama_gqa"));
    let plan = std::sync::Arc::make_mut(&mut loaded.plan);
    let mut spare = plan.kernels[0].clone();
    spare.name = "spare".into();
    plan.kernels.push(spare);
    let found = verify(&loaded, Tier::Cuda, &VerifyOptions { tokens: 2, ..Default::default() }).unwrap();
    assert!(!found.passed() && found.violations() == 0);
    assert_eq!(found.not_launched, ["spare"]);
}

/// The model in `fixtures/` that is large enough for a decode step of many sequences to have kernels of its own.
#[test]
fn the_lexicon() {
    let targets = vec![frit_kernels::target::Capabilities::cuda()];
    let loaded = support::compile_with(&support::load("lexicon"), Default::default(), targets);
    let options = VerifyOptions { tokens: 2, new_tokens: 1, ..Default::default() };
    let found = verify(&loaded, Tier::Cuda, &options).unwrap();
    assert!(found.passed(), "{:?} {:?}", found.not_launched, found.outputs);
}

/// What a device may do otherwise changes nothing that counts.
#[test]
fn devices_unlike_this_one() {
    for model in ["devset/llama_gqa", "devset/bert"] {
        check(model, VerifyOptions { batch: 2, tokens: 5, adversarial: Some(11), ..Default::default() });
    }
}

#[test]
fn an_encoder() {
    check("devset/bert", VerifyOptions { batch: 3, tokens: 11, ..Default::default() });
}

/// Families of the dev set that have no checkpoint of their own in `fixtures/devset`.
#[test]
fn other_families() {
    for model in ["albert", "gemma2", "t5", "vit", "whisper"] {
        let model = &format!("families/{model}");
        check(model, VerifyOptions { batch: 2, tokens: 5, new_tokens: 2, ..Default::default() });
    }
}

/// Exports of both exporters: one program each, every size of which takes the value of `tokens`.
#[test]
fn onnx_exports() {
    for model in ["llama_gqa", "llama_gqa_past", "bert", "bert_ts", "gemma2_ts", "gpt2", "gpt2_past"] {
        let model = &format!("onnx/{model}.onnx");
        check(model, VerifyOptions { batch: 2, tokens: 5, new_tokens: 0, ..Default::default() });
    }
}

/// Matrix units round both sides of a product to bf16, by up to 2⁻⁹ each; nine products lie behind one another from the
/// ids to the logits of two layers, so that independent errors add up to √18 · 2⁻⁹ = 8e-3. The other targets do not round.
#[test]
fn quantised_weights() {
    for model in ["devset/gguf/llama_Q8_0.gguf", "devset/gguf/llama_Q4_0.gguf", "devset/gguf/llama_F16.gguf"] {
        let targets = CompileOptions::default().targets;
        let loaded = support::compile_with(&support::load(model), Default::default(), targets);
        let warpgroups =
            |k: &frit_plan::Kernel| k.ptx((9, 0)).and_then(|v| v.architecture) == Some(Architecture::Sm90a);
        let some = loaded.plan.kernels.iter().any(warpgroups);
        assert_eq!(some, model.contains("F16"), "weights of 16 bits have kernels of warpgroups");
        for (tier, major, tolerance) in
            [(Tier::Cpu, 8, 1e-4), (Tier::Gpu, 8, 1e-4), (Tier::Cuda, 8, 1e-2), (Tier::Cuda, 9, 1e-2)]
        {
            let capability = (major, 0);
            let options = VerifyOptions {
                tokens: 8,
                tolerance: Some(tolerance),
                new_tokens: 0,
                capability,
                ..Default::default()
            };
            let found = verify(&loaded, tier, &options).unwrap();
            assert!(found.passed(), "{model} {} {capability:?}: {:?}", found.tier, found.outputs);
        }
    }
}

/// A kernel whose text was altered is found out.
#[test]
fn a_fault_in_a_text_is_found() {
    let mut loaded = support::compile(&support::load("devset/bert"));
    let plan = std::sync::Arc::make_mut(&mut loaded.plan);
    let mut altered = 0;
    for v in plan.kernels.iter_mut().filter(|k| k.name.contains("attention")).flat_map(|k| &mut k.variants) {
        altered += v.text.matches("workgroupBarrier();").count();
        v.text = v.text.replace("workgroupBarrier();", "");
    }
    assert!(altered > 0);
    let found = verify(&loaded, Tier::Gpu, &VerifyOptions::default()).unwrap();
    assert!(!found.passed());
    let broken: Vec<_> = found.kernels.iter().flat_map(|k| &k.violations).collect();
    assert!(broken.iter().any(|v| v.contains("race")), "{broken:?}");
}
