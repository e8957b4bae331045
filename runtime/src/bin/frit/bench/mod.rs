//! `frit bench`: the same workloads on any backend, on random weights of published shapes or on a model.
//!
//! Decode and prefill are timed by the host's clock, the host's share included. Encoders and products are timed by the
//! device's clock where it has one, else by the host's, which then counts the copies of inputs and outputs as well.

mod memory;
mod shapes;

use crate::model::Progress;
use anyhow::{Result, bail};
use clap::ValueEnum;
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session, Tensor};
use frit_compiler::Compiler;
use frit_compiler::ingest::builder::ModelBuilder;
use frit_kernels::dtype::{Scalar, Storage};
use frit_plan::{InputFill, Task};
use memory::Kernel;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// One token after another, greedy: time of a step.
    Decode,
    /// A prompt to its first token.
    Prefill,
    /// A batch of sequences through an encoder.
    Encoder,
    /// A product of square matrices, one of four in a row with a matrix of `--storage`: as in a model, most left sides are
    /// what a kernel leaves.
    Gemm,
    /// A square matrix of `--storage` times one vector: how fast weights stream.
    Stream,
    /// A kernel that memory bounds, `--kernel`: bytes moved a second, and how many of a plain copy's that is.
    Memory,
}

#[derive(clap::Args)]
pub struct Args {
    /// What is timed.
    #[arg(value_enum)]
    workload: Workload,
    /// A published shape with random weights: smollm2-135m, gpt2, llama-3.2-1b, bert-base [default: smollm2-135m, or
    /// bert-base for encoders].
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
    /// Tokens of a sequence (decode: of the prompt); rows and columns of a matrix product; rows of a kernel.
    #[arg(long)]
    tokens: Option<u64>,
    /// The kernel of `memory`.
    #[arg(long, value_enum, default_value = "rms-norm")]
    kernel: Kernel,
    /// Elements of a row of that kernel.
    #[arg(long, default_value_t = 4096)]
    width: u64,
    /// Tokens that decode goes on with.
    #[arg(long, default_value_t = 128)]
    new_tokens: usize,
    /// What the matrix of a product, or the table of a look-up, is stored as: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = ["f32", "f16", "bf16"])]
    storage: String,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Untimed repetitions before.
    #[arg(long, default_value_t = 1)]
    warmup: u32,
    /// Seed of weights and inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where random weights are kept [default: the folder for temporary files].
    #[arg(long)]
    weights: Option<PathBuf>,
    #[command(flatten)]
    switches: crate::switches::Switches,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    /// Measure whenever a line is read, and answer with a line of JSON: so that others can be measured in turn.
    #[arg(long)]
    on_request: bool,
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
    check_size(a)?;
    // Weights of gigabytes are written for a device that is there.
    let backend = a.backend.open()?;
    let copied = copy_rate(a)?;
    let (name, loaded) = open(a, &progress)?;
    let builder = Session::builder().progress(|s| progress.stage(s));
    let mut session = builder.bind_on(&*backend, Arc::clone(&loaded.plan), &*loaded.weights)?;
    progress.clear();
    let mut random = Random(a.seed);
    if !a.on_request {
        let mut report = measure(a, &name, &mut session, &mut random, a.warmup)?;
        if let (Some(copied), Some(report)) = (copied, report.as_object_mut()) {
            let rate = report.get("bytes_per_second").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
            report.insert("copy_bytes_per_second".into(), copied.into());
            report.insert("of_copy".into(), (rate / copied).into());
        }
        return print(a, &report);
    }
    let mut warmup = a.warmup;
    for line in std::io::stdin().lines() {
        line?;
        println!("{}", measure(a, &name, &mut session, &mut random, warmup)?);
        warmup = 0;
    }
    Ok(())
}

/// Bytes that a matrix or an operand may take.
const MOST_BYTES: u64 = 4 << 30;

/// Refuses operands that no memory holds, before any of it is asked for.
fn check_size(a: &Args) -> Result<()> {
    let elements = match a.workload {
        Workload::Gemm | Workload::Stream => size(a).checked_mul(size(a)),
        Workload::Memory => matrix(a)[0].checked_mul(matrix(a)[1]),
        Workload::Encoder => a.batch.unwrap_or(32).checked_mul(a.tokens.unwrap_or(128)),
        Workload::Decode | Workload::Prefill => a.batch.unwrap_or(1).checked_mul(a.tokens.unwrap_or(512)),
    };
    let wanted = elements.and_then(|n| n.checked_mul(4)).unwrap_or(u64::MAX);
    match wanted > MOST_BYTES || size(a) == 0 {
        true if size(a) == 0 => bail!("--tokens 0 leaves nothing to time"),
        true => {
            Err(frit::Error::Limit { what: "bytes of an operand, by --tokens".into(), wanted, limit: MOST_BYTES }
                .into())
        }
        false => Ok(()),
    }
}

/// Bytes a second of a plain copy of as many bytes as the kernel moves; of one kernel at a time, asked for by hand.
fn copy_rate(a: &Args) -> Result<Option<f64>> {
    if a.workload != Workload::Memory || a.on_request {
        return Ok(None);
    }
    let mut random = Random(a.seed);
    let rows = (a.kernel.bytes(matrix(a), &a.storage) / (8 * a.width)).max(1);
    let how = [rows, a.width];
    let loaded = Kernel::Copy.compiled(how, "f32", &mut random)?;
    let mut session = Session::builder().backend(a.backend).open(&loaded)?;
    let inputs = Kernel::Copy.inputs(how, &mut random)?;
    let mut seconds = Vec::new();
    for round in 0..a.warmup + a.rounds {
        let took = timed(&mut session, &inputs)?;
        if round >= a.warmup {
            seconds.push(took);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::INFINITY);
    Ok(Some(Kernel::Copy.bytes(how, "f32") as f64 / median))
}

/// The report of some repetitions.
fn measure(a: &Args, name: &str, session: &mut Session, random: &mut Random, warmup: u32) -> Result<serde_json::Value> {
    let mut seconds = Vec::new();
    let mut shape = String::new();
    for round in 0..warmup + a.rounds {
        let ((time, parts), what) = match a.workload {
            Workload::Decode => decode(a, session, random)?,
            Workload::Prefill => prefill(a, session, random)?,
            Workload::Encoder | Workload::Gemm | Workload::Stream | Workload::Memory => run(a, session, random)?,
        };
        shape = what;
        if round >= warmup {
            seconds.push(time / parts.max(1) as f64);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds.get(((seconds.len() - 1) as f64 * share).round() as usize).copied().unwrap_or(0.0);
    let (median, p10, p90) = (at(0.5), at(0.1), at(0.9));
    let n = size(a) as f64;
    let element = if a.storage == "f32" { 4.0 } else { 2.0 };
    let flops = (a.workload == Workload::Gemm).then(|| 2.0 * n.powi(3) / median);
    let bytes = match a.workload {
        Workload::Stream => Some(element * n * n),
        Workload::Memory => Some(a.kernel.bytes(matrix(a), &a.storage) as f64),
        _ => None,
    };
    let bytes_per_second = bytes.map(|b| b / median);
    Ok(serde_json::json!({
        "workload": workload(a), "model": name, "shape": shape, "backend": session.backend(),
        "device": session.device(), "median_ms": median * 1e3, "p10_ms": p10 * 1e3, "p90_ms": p90 * 1e3,
        "clock": if session.device_seconds().is_some() { "device" } else { "host" },
        "rounds": seconds.len(), "seed": a.seed, "flops": flops, "bytes": bytes, "bytes_per_second": bytes_per_second,
        "launches": session.plan().programs.first().map(|p| p.steps.len()),
        "memory_bytes": session.memory_bytes(), "counters": session.counters(), "version": env!("CARGO_PKG_VERSION"),
    }))
}

fn print(a: &Args, report: &serde_json::Value) -> Result<()> {
    if a.json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    let text = |key: &str| report.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let number = |key: &str| report.get(key).and_then(serde_json::Value::as_f64);
    let ms = |key: &str| number(key).unwrap_or_default();
    println!("{} {}, {}, on {} ({})", text("workload"), text("model"), text("shape"), text("backend"), text("device"));
    let (median, rounds) = (ms("median_ms"), ms("rounds"));
    println!("median {median:.3} ms, p10 {:.3}, p90 {:.3}, {rounds} rounds", ms("p10_ms"), ms("p90_ms"));
    match (a.workload, number("flops"), number("bytes_per_second")) {
        (Workload::Decode, ..) => println!("{:.1} tokens/s", 1e3 / median),
        (_, Some(f), _) => println!("{:.1} GFLOP/s", f / 1e9),
        (_, _, Some(b)) => {
            let copied = number("copy_bytes_per_second").zip(number("of_copy"));
            let beside = copied.map(|(c, share)| format!(", {:.0} % of a copy's {:.2} GB/s", share * 100.0, c / 1e9));
            let moved = number("bytes").unwrap_or_default();
            println!("{:.1} MB moved, {:.2} GB/s{}", moved / 1e6, b / 1e9, beside.unwrap_or_default());
        }
        _ => {}
    }
    Ok(())
}

fn workload(a: &Args) -> String {
    a.workload.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

/// Rows and columns of a kernel's operands.
fn matrix(a: &Args) -> [u64; 2] {
    [a.tokens.unwrap_or(4096).max(1), a.width.max(1)]
}

fn size(a: &Args) -> u64 {
    a.tokens.unwrap_or(if a.workload == Workload::Stream { 8192 } else { 512 })
}

fn open(a: &Args, progress: &Progress) -> Result<(String, LoadedModel)> {
    match a.workload {
        Workload::Gemm => return Ok((format!("{0}x{0}x{0} {1}", size(a), a.storage), products(a, size(a), IN_A_ROW)?)),
        Workload::Stream => return Ok((format!("{0}x{0} {1}", size(a), a.storage), products(a, 1, 1)?)),
        Workload::Memory => {
            return Ok((a.kernel.name(), a.kernel.compiled(matrix(a), &a.storage, &mut Random(a.seed))?));
        }
        Workload::Decode | Workload::Prefill | Workload::Encoder => {}
    }
    if let Some(path) = &a.model {
        let loaded = a.switches.open(path, progress)?;
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
    Ok((shape.name.into(), a.switches.open(&folder, progress)?))
}

/// Products of a run of [`Workload::Gemm`].
const IN_A_ROW: u64 = 4;

/// `rows` vectors times a square matrix, so many times in a row. Sums stay about as large as what is summed.
fn products(a: &Args, rows: u64, count: u64) -> Result<LoadedModel> {
    let n = size(a);
    let mut random = Random(a.seed);
    let scale = (3.0 / n as f32).sqrt();
    let values: Vec<f32> = (0..n * n).map(|_| scale * random.unit()).collect();
    let mut m = ModelBuilder::new("product");
    let w = match a.storage.as_str() {
        "f16" => m.constant_half("w", Storage::F16, &[n, n], &values),
        "bf16" => m.constant_half("w", Storage::Bf16, &[n, n], &values),
        _ => m.constant("w", &[n, n], &values),
    };
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &[rows.into(), n.into()]);
        let y = (0..count).fold(x, |x, _| g.linear(x, w, None));
        g.output("y", y);
    });
    let model = m.finish()?;
    let plan = Compiler::new(a.switches.options()?).compile(&model)?;
    Ok(LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None })
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
    if a.workload == Workload::Memory {
        let inputs = a.kernel.inputs(matrix(a), random)?;
        return Ok(((timed(session, &inputs)?, 1), matrix(a).map(|n| n.to_string()).join(" x ")));
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
    let seconds = timed(session, &inputs)?;
    let parts = if a.workload == Workload::Gemm { IN_A_ROW } else { 1 };
    let shape = if is_encoder { format!("{batch} x {tokens} tokens") } else { format!("{rows} rows") };
    Ok(((seconds, parts), shape))
}

/// Seconds of a run, by the device's clock where it has one.
fn timed(session: &mut Session, inputs: &[(String, Tensor)]) -> Result<f64> {
    session.time_on_device(true);
    let start = Instant::now();
    session.run(inputs)?;
    Ok(session.device_seconds().unwrap_or(start.elapsed().as_secs_f64()))
}
