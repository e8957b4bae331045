//! NVIDIA's assemblers, of two major versions, take every CUDA text of whole plans without spills: the forms that a corpus
//! of single kernels does not have, such as chains, experts, merged parts of attention, and products of a stated precision.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../kernels/tests/support/ptxas.rs"]
mod ptxas;
#[path = "support/mod.rs"]
mod support;

use frit_compiler::CompileOptions;
use frit_compiler::fusion::FusionOptions;
use frit_kernels::spec::MatmulPrecision;
use frit_kernels::target::{Architecture, Capabilities, Tier};
use ptxas::Ptxas;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// The dev models, one of each storage, and the families whose kernels differ most from theirs.
const MODELS: [&str; 20] = [
    "devset/gpt2",
    "devset/llama_gqa",
    "devset/bert",
    "devset/gguf/llama_F16.gguf",
    "devset/gguf/llama_Q4_0.gguf",
    "devset/gguf/llama_Q8_0.gguf",
    "onnx/gpt2_past.onnx",
    "lexicon",
    "families/albert",
    "families/bart",
    "families/clip",
    "families/deberta_conv",
    "families/deberta_v2",
    "families/deepseek_v2_lite",
    "families/electra_replaced",
    "families/gemma3",
    "families/gpt_oss",
    "families/mixtral",
    "families/qwen3",
    "families/whisper",
];

/// GPUs that a text is assembled for beside the one that it is written for.
fn others(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Sm80 => &["sm_120"],
        Architecture::Sm90 => &["sm_100"],
        Architecture::Sm90a => &[],
    }
}

/// Texts by what they are, each once, with a model and a kernel that they come from.
type Texts = BTreeMap<String, (Architecture, String)>;

fn texts(path: &str, fusion: FusionOptions, into: &mut Texts) {
    let targets = vec![Capabilities::cuda(), Capabilities::cuda_overlapping(), Capabilities::cuda_warpgroups()];
    let options = CompileOptions { fusion, targets, ..CompileOptions::default() };
    let plan = frit_compiler::Compiler::new(options).compile(&support::load(path)).unwrap_or_else(|e| panic!("{e}"));
    for kernel in &plan.kernels {
        for variant in kernel.variants.iter().filter(|v| v.tier == Tier::Cuda) {
            let body = variant.text.lines().filter(|l| !l.starts_with("//")).collect::<Vec<_>>().join("\n");
            let of = format!("{path}: {}, {}", kernel.name, variant.schedule.template);
            into.entry(body).or_insert((variant.architecture.expect("PTX is written for one"), of));
        }
    }
}

#[test]
fn every_text_of_a_plan_assembles_without_spills() {
    let mut all = Texts::new();
    for path in MODELS {
        texts(path, FusionOptions::default(), &mut all);
    }
    for path in ["devset/llama_gqa", "devset/gguf/llama_Q4_0.gguf"] {
        for precision in [MatmulPrecision::Bf16x1, MatmulPrecision::Bf16x2, MatmulPrecision::Bf16x3] {
            texts(path, FusionOptions { matmul_precision: precision, ..FusionOptions::default() }, &mut all);
        }
    }
    // For CUDA alone norms are commuted where others keep them.
    for path in ["lexicon/lexicon-q8_0.gguf", "devset/gguf/llama_F16.gguf", "families/gemma2"] {
        texts(path, FusionOptions { tiers: vec![Tier::Cuda], ..FusionOptions::default() }, &mut all);
    }
    let step = include_str!("../runtime/src/backend/cuda/advance.ptx").to_owned();
    all.insert(step, (Architecture::Sm80, "the end of a step".into()));
    assert!(all.len() > 500, "{} texts", all.len());
    let (newer, older) = (Ptxas::find(), Ptxas::find_older());
    let waiting = Mutex::new(all.iter());
    let wrong: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((text, (architecture, of))) = waiting.lock().unwrap().next() else { break };
                    let own = architecture.name();
                    let mut uses = vec![(&newer, own), (&older, own)];
                    uses.extend(others(*architecture).iter().map(|gpu| (&newer, *gpu)));
                    for (tool, gpu) in uses {
                        if let Err(why) = tool.try_assemble(text, gpu) {
                            wrong.lock().unwrap().push(format!("{of}, for {gpu}: {why}"));
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}
