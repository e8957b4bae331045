//! `frit bench`: the same workloads on any backend, on random weights of published shapes or on a model.

mod shapes;

use crate::model::{self, Progress};
use anyhow::{Result, bail};
use clap::ValueEnum;
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session, Tensor, model_source};
use frit_compiler::ingest::builder::ModelBuilder;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_plan::{InputFill, Task};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// One token after another, greedy: time of a step.
    Decode,
    /// A prompt to its first token.
    Prefill,
    /// A batch of sequences through an encoder.
    Encoder,
    /// A square matrix product of f32.
    Gemm,
    /// A square matrix of f32 times one vector: how fast weights stream.
    Stream,
}

#[derive(clap::Args)]
pub struct Args {
    /// What is timed.
    #[arg(value_enum)]
    workload: Workload,
    /// A published shape with random weights: smollm2-135m, gpt2, llama-3.2-1b, bert-base.
    #[arg(long, conflicts_with = "model")]
    shape: Option<String>,
    /// A model instead of a shape.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Layers of the shape, if not as published.
    #[arg(long)]
    layers: Option<u64>,
    /// auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// Sequences; 32 for encoders unless said.
    #[arg(long)]
    batch: Option<u64>,
    /// Tokens of a sequence (decode: of the prompt); rows and columns of a matrix product.
    #[arg(long)]
    tokens: Option<u64>,
    /// Tokens that decode goes on with.
    #[arg(long, default_value_t = 128)]
    new_tokens: usize,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Untimed repetitions before.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Seed of weights and inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where random weights are kept [default: the folder for temporary files].
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// A reproducible stream of token ids and numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
    fn unit(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// What one repetition took, in seconds, and of how many equal parts it is made.
type Timed = (f64, u64);

pub fn main(a: &Args) -> Result<()> {
    let progress = Progress::new();
    let (name, loaded) = open(a, &progress)?;
    let mut session = Session::builder().backend(a.backend).progress(|s| progress.stage(s)).open(&loaded)?;
    progress.clear();
    let mut random = Random(a.seed);
    let mut seconds = Vec::new();
    let mut shape = String::new();
    for round in 0..a.warmup + a.rounds.max(1) {
        let ((time, parts), what) = match a.workload {
            Workload::Decode => decode(a, &mut session, &mut random)?,
            Workload::Prefill => prefill(a, &mut session, &mut random)?,
            Workload::Encoder | Workload::Gemm | Workload::Stream => run(a, &mut session, &mut random)?,
        };
        shape = what;
        if round >= a.warmup {
            seconds.push(time / parts.max(1) as f64);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds.get(((seconds.len() - 1) as f64 * share).round() as usize).copied().unwrap_or(0.0);
    let (median, p10, p90) = (at(0.5), at(0.1), at(0.9));
    let workload = workload(a);
    let n = size(a) as f64;
    let flops = (a.workload == Workload::Gemm).then(|| 2.0 * n.powi(3) / median);
    let bytes_per_second = (a.workload == Workload::Stream).then(|| 4.0 * n * n / median);
    if a.json {
        let report = serde_json::json!({
            "workload": workload, "model": name, "shape": shape, "backend": session.backend(),
            "device": session.device(), "median_ms": median * 1e3, "p10_ms": p10 * 1e3, "p90_ms": p90 * 1e3,
            "rounds": seconds.len(), "seed": a.seed, "flops": flops, "bytes_per_second": bytes_per_second, "memory_bytes": session.memory_bytes(),
            "counters": session.counters(), "version": env!("CARGO_PKG_VERSION"),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{workload} {name}, {shape}, on {} ({})", session.backend(), session.device());
        println!("median {:.3} ms, p10 {:.3}, p90 {:.3}, {} rounds", median * 1e3, p10 * 1e3, p90 * 1e3, seconds.len());
        match (a.workload, flops) {
            (Workload::Decode, _) => println!("{:.1} tokens/s", 1.0 / median),
            (_, Some(f)) => println!("{:.1} GFLOP/s", f / 1e9),
            _ => bytes_per_second.iter().for_each(|b| println!("{:.2} GB/s", b / 1e9)),
        }
    }
    Ok(())
}

fn workload(a: &Args) -> String {
    a.workload.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

fn size(a: &Args) -> u64 {
    a.tokens.unwrap_or(if a.workload == Workload::Stream { 8192 } else { 512 })
}

fn open(a: &Args, progress: &Progress) -> Result<(String, LoadedModel)> {
    match a.workload {
        Workload::Gemm => return Ok((format!("{0}x{0}x{0} f32", size(a)), product(a, "N".into())?)),
        Workload::Stream => return Ok((format!("{0}x{0} f32", size(a)), product(a, 1.into())?)),
        Workload::Decode | Workload::Prefill | Workload::Encoder => {}
    }
    if let Some(path) = &a.model {
        let loaded = model::open(path, progress)?;
        return Ok((loaded.plan.model.name.clone(), loaded));
    }
    let is_encoder = a.workload == Workload::Encoder;
    let usual = if is_encoder { "bert-base" } else { "smollm2-135m" };
    let shape = shapes::find(a.shape.as_deref().unwrap_or(usual))?;
    if shape.is_decoder == is_encoder {
        bail!(
            "{} is {} decoder: it does not suit {}",
            shape.name,
            if shape.is_decoder { "a" } else { "no" },
            workload(a)
        );
    }
    let below = a.weights.clone().unwrap_or_else(|| std::env::temp_dir().join("frit-bench"));
    let folder = shapes::write(shape, a.layers.unwrap_or(shape.layers), a.seed, &below)?;
    Ok((shape.name.into(), model::open(&folder, progress)?))
}

/// `rows` vectors times a square matrix.
fn product(a: &Args, rows: Dim) -> Result<LoadedModel> {
    let n = size(a);
    let mut random = Random(a.seed);
    let values: Vec<f32> = (0..n * n).map(|_| random.unit()).collect();
    let mut m = ModelBuilder::new("product");
    let w = m.constant("w", &[n, n], &values);
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &[rows.clone(), n.into()]);
        let y = g.linear(x, w, None);
        g.output("y", y);
    });
    let model = m.finish()?;
    Ok(model_source::compiled(&model)?)
}

fn prompts(a: &Args, session: &Session, random: &mut Random, tokens: u64) -> Vec<Vec<u32>> {
    let vocab = session.plan().model.vocab.max(1);
    let row = |random: &mut Random| (0..tokens).map(|_| random.below(vocab) as u32).collect();
    (0..a.batch.unwrap_or(1)).map(|_| row(random)).collect()
}

fn decode(a: &Args, session: &mut Session, random: &mut Random) -> Result<(Timed, String)> {
    let tokens = a.tokens.unwrap_or(32);
    let prompts = prompts(a, session, random, tokens);
    let how = GenerateOptions { max_new_tokens: a.new_tokens.max(2), ignore_eos: true, ..Default::default() };
    let done = session.generate(&prompts, &how, &mut |_| ControlFlow::Continue(()))?;
    let shape = format!("{} x {tokens} + {} tokens", prompts.len(), a.new_tokens.max(2));
    Ok(((done.stats.decode_seconds, done.stats.decode_steps), shape))
}

fn prefill(a: &Args, session: &mut Session, random: &mut Random) -> Result<(Timed, String)> {
    let tokens = a.tokens.unwrap_or(512);
    let prompts = prompts(a, session, random, tokens);
    let how = GenerateOptions { max_new_tokens: 1, ignore_eos: true, chunk: tokens, ..Default::default() };
    let done = session.generate(&prompts, &how, &mut |_| ControlFlow::Continue(()))?;
    Ok(((done.stats.prefill_seconds, 1), format!("{} x {tokens} tokens", prompts.len())))
}

fn run(a: &Args, session: &mut Session, random: &mut Random) -> Result<(Timed, String)> {
    let plan = std::sync::Arc::clone(session.plan());
    let is_encoder = a.workload == Workload::Encoder;
    if is_encoder && plan.model.task == Task::Decoder {
        bail!("{} is a decoder: use decode or prefill", plan.model.name);
    }
    let batch = a.batch.unwrap_or(32);
    let tokens = if is_encoder { a.tokens.unwrap_or(128) } else { size(a) };
    let rows = if a.workload == Workload::Stream { 1 } else { tokens };
    let program = plan.program("forward").or(plan.programs.first());
    let required = program.into_iter().flat_map(|p| &p.inputs).filter(|p| p.fill == InputFill::Required);
    let mut inputs = Vec::new();
    for p in required {
        let tensor = match p.storage.scalar() {
            Scalar::F32 => Tensor::f32(&[rows, tokens], (0..rows * tokens).map(|_| random.unit()).collect())?,
            _ => {
                let ids = (0..batch * tokens).map(|_| random.below(plan.model.vocab) as i32);
                Tensor::i32(&[batch, tokens], ids.collect())?
            }
        };
        inputs.push((p.name.clone(), tensor));
    }
    let start = Instant::now();
    session.run(&inputs)?;
    let shape = if is_encoder { format!("{batch} x {tokens} tokens") } else { format!("{rows} rows") };
    Ok(((start.elapsed().as_secs_f64(), 1), shape))
}
