//! `frit tune`: a model is run with and without each kind of fusion, in turns; what makes it slower is written down, for
//! `--tuning` to leave out.

use crate::at::At;
use crate::explain::measure::inputs;
use crate::model::{self, Progress};
use anyhow::{Context, Result, bail};
use frit::backend::{Backend, Executor, Extent};
use frit::{BackendChoice, LoadedModel, Tensor, model_source};
use frit_compiler::CompileOptions;
use frit_compiler::fusion::{FusionOptions, Overruled};
use frit_plan::format::FormatError;
use frit_plan::{Kernel, Plan};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The format of the file.
const FORMAT: &str = "frit-tuning-1";
/// A round runs each of two plans for at least this long.
const ROUND: Duration = Duration::from_millis(60);
/// Fewer thousandths than these are not told from chance.
const LEAST_PERMILLE: f64 = 30.0;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a .gguf or an .onnx file [default: fixtures/lexicon]
    model: Option<PathBuf>,
    /// The file to write; it is for --tuning.
    #[arg(short, long)]
    output: PathBuf,
    /// forward, prefill, decode or another program [default: decode, or forward for encoders]
    #[arg(long)]
    phase: Option<String>,
    /// Where to measure: auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: String,
    #[command(flatten)]
    at: At,
    /// Turns of each pair of plans.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Print the file's content.
    #[arg(long)]
    json: bool,
}

/// What a kind of fusion was measured to do.
#[derive(Serialize, Deserialize)]
struct Tried {
    id: String,
    /// Microseconds of a run, the median over all rounds.
    with_us: f64,
    without_us: f64,
    /// How much longer a run takes with it, in thousandths; the median of the rounds' ratios.
    slower_permille: f64,
    overruled: bool,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Tuning {
    format: String,
    model: String,
    program: String,
    device: String,
    sizes: Vec<(String, u64)>,
    /// Kinds of fusion that change the plan.
    tried: Vec<Tried>,
}

/// Where kinds of fusion were measured that are left out.
pub struct Applied {
    model: String,
    device: String,
    left_out: Vec<String>,
}

impl Applied {
    /// Says what is left out of a plan.
    ///
    /// # Errors
    /// The file is of another model.
    pub fn check(&self, file: &Path, plan: &Plan) -> Result<()> {
        let (file, name) = (file.display(), &plan.model.name);
        if self.model != *name {
            bail!("{file}: was measured on the model `{}`, not on `{name}`\nhint: frit tune again", self.model);
        }
        match self.left_out.is_empty() {
            true => eprintln!("{file}: leaves nothing out"),
            false => eprintln!("{file}: leaves out {}, slower on {}", self.left_out.join(", "), self.device),
        }
        let backend = self.device.split(' ').next().unwrap_or_default();
        match backend.parse::<BackendChoice>().and_then(BackendChoice::open) {
            Ok(b) if described(&*b) == self.device => {}
            Ok(b) => eprintln!("warning: {file}: was measured on {}; here is {}", self.device, described(&*b)),
            Err(e) => eprintln!("warning: {file}: was measured on {}; here: {e}", self.device),
        }
        Ok(())
    }
}

fn described(backend: &dyn Backend) -> String {
    format!("{} ({})", backend.name(), backend.device())
}

/// Leaves out what a file says is slower.
///
/// # Errors
/// A file that cannot be read, is of another format, or names a fusion that there is not.
pub fn apply(file: &Path, options: &mut CompileOptions) -> Result<Applied> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let tuning: Tuning = serde_json::from_str(&text)
        .with_context(|| format!("{}: is no tuning file\nhint: frit tune MODEL -o {0}", file.display()))?;
    if tuning.format != FORMAT {
        bail!("{}: is `{}`, `{FORMAT}` is read\nhint: frit tune again", file.display(), tuning.format);
    }
    for t in tuning.tried.iter().filter(|t| t.overruled) {
        let slower_permille = t.slower_permille.round().clamp(0.0, 1e9) as u32;
        if !options.fusion.overrule(&t.id, Overruled::Measured { slower_permille, device: tuning.device.clone() }) {
            bail!("{}: there is no fusion `{}`\nhint: frit explain --ids lists them", file.display(), t.id);
        }
    }
    let left_out = tuning.tried.iter().filter(|t| t.overruled).map(|t| t.id.clone()).collect();
    Ok(Applied { model: tuning.model, device: tuning.device, left_out })
}

/// A plan that is bound to a device.
struct Bound {
    executor: Box<dyn Executor>,
    program: usize,
    at: Vec<u64>,
    inputs: Vec<Tensor>,
}

impl Bound {
    fn new(a: &Args, model: &LoadedModel, program: &str, backend: &dyn Backend) -> Result<Bound> {
        let plan = &model.plan;
        let at = a.at.values(plan, program)?;
        let program = plan.programs.iter().position(|p| p.name == program).context("a phase without a program")?;
        let mut executor = backend.bind(plan.clone(), &*model.weights, &Extent(at.clone()), &mut |_, _| {})?;
        let inputs = inputs(&mut *executor, plan, program, &at)?;
        let mut bound = Bound { executor, program, at, inputs };
        bound.run(1)?;
        Ok(bound)
    }
    /// Seconds of one of `runs` runs.
    fn run(&mut self, runs: u32) -> Result<f64> {
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let start = Instant::now();
        for _ in 0..runs {
            self.executor.run(self.program, &self.at, &inputs, &[0])?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(runs))
    }
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(0.0)
}

/// Runs two plans in turns: the medians of both, of the rounds' ratios, and whether nearly all rounds agree on who is faster.
fn compare(with: &mut Bound, without: &mut Bound, rounds: usize) -> Result<(f64, f64, f64, bool)> {
    let once = with.run(1)?.max(1e-7);
    let runs = (ROUND.as_secs_f64() / once).ceil().clamp(1.0, 1e4) as u32;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..rounds.max(1) {
        // Who begins changes, so that warming up favours neither.
        let first = round % 2 == 0;
        if first {
            a.push(with.run(runs)?);
        }
        b.push(without.run(runs)?);
        if !first {
            a.push(with.run(runs)?);
        }
    }
    let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
    let slower = ratios.iter().filter(|r| **r > 1.0).count();
    let agrees = slower * 5 >= ratios.len() * 4;
    Ok((median(a), median(b), (median(ratios) - 1.0) * 1e3, agrees))
}

/// Whether a program launches the same kernels in two plans, on a device that keeps values in 16 bits or on another.
fn same(a: &Plan, b: &Plan, program: &str, keeps_halves: bool) -> bool {
    let spec = |k: &Kernel| {
        let mut spec = k.spec.clone();
        if !keeps_halves {
            spec.args.iter_mut().for_each(|a| a.rounded = None);
            spec.aliases.clear();
        }
        spec
    };
    let launched = |plan: &Plan| {
        let steps = plan.program(program).map(|p| p.steps.clone()).unwrap_or_default();
        steps.iter().map(|s| plan.kernels.get(s.kernel as usize).map(spec)).collect::<Vec<_>>()
    };
    launched(a) == launched(b)
}

pub fn main(a: &Args) -> Result<()> {
    let path = model::path(a.model.as_deref())?;
    if model_source::is_artifact(&path) {
        bail!("{} is compiled already: its model is what can be tuned", path.display());
    }
    let progress = Progress::new();
    let compile = |options| model_source::compile_with(&path, options, &mut |s| progress.stage(s));
    let usual = compile(CompileOptions::default())?;
    let wanted = a.phase.clone();
    let wanted =
        wanted.unwrap_or_else(|| if usual.plan.program("decode").is_some() { "decode" } else { "forward" }.into());
    if usual.plan.program(&wanted).is_none() {
        let have: Vec<&str> = usual.plan.programs.iter().map(|p| p.name.as_str()).collect();
        bail!("{} has no phase `{wanted}`\nhint: --phase {}", path.display(), have.join(" | "));
    }
    let backend = a.backend.parse::<BackendChoice>()?.open()?;
    let keeps_halves = backend.name() == "cuda";
    let mut with = Bound::new(a, &usual, &wanted, &*backend)?;
    let mut tried = Vec::new();
    for id in FusionOptions::IDS {
        let mut options = CompileOptions::default();
        options.fusion.switch_off(id);
        let other = compile(options)?;
        if same(&other.plan, &usual.plan, &wanted, keeps_halves) || other.plan.program(&wanted).is_none() {
            continue;
        }
        let mut without = match Bound::new(a, &other, &wanted, &*backend) {
            Ok(bound) => bound,
            Err(e) if matches!(e.downcast_ref(), Some(frit::Error::Limit { .. })) => {
                progress.clear();
                eprintln!("{id:14} is kept: without it the program does not fit the device ({e:#})");
                continue;
            }
            Err(e) => return Err(e),
        };
        let (with_s, without_s, slower_permille, agrees) = compare(&mut with, &mut without, a.rounds)?;
        let mut overruled = agrees && slower_permille > LEAST_PERMILLE;
        if overruled {
            // What another turn of measuring does not confirm was chance.
            let (_, _, again, agrees) = compare(&mut with, &mut without, a.rounds)?;
            overruled = agrees && again > LEAST_PERMILLE;
        }
        progress.clear();
        let [with_us, without_us] = [with_s * 1e6, without_s * 1e6];
        if !a.json {
            let verdict = if overruled { "left out" } else { "kept" };
            println!(
                "{id:14} with {with_us:10.1} us, without {without_us:10.1} us  {:+6.1} %  {verdict}",
                slower_permille / 10.0
            );
        }
        tried.push(Tried { id: id.into(), with_us, without_us, slower_permille, overruled });
    }
    keep_what_helps_together(a, &mut tried, (&mut with, &wanted), &*backend, &compile)?;
    let sizes = usual.plan.sizes.iter().map(|s| s.name.clone()).zip(with.at.iter().copied()).collect();
    let device = described(&*backend);
    let tuning =
        Tuning { format: FORMAT.into(), model: usual.plan.model.name.clone(), program: wanted, device, sizes, tried };
    let text = serde_json::to_string_pretty(&tuning)?;
    frit_plan::format::replace_file(&a.output, |w| {
        w.write_all(text.as_bytes()).map_err(|source| FormatError::Io { path: a.output.clone(), source })
    })?;
    progress.clear();
    if a.json {
        println!("{text}");
    } else {
        let out: Vec<&str> = tuning.tried.iter().filter(|t| t.overruled).map(|t| t.id.as_str()).collect();
        let what = if out.is_empty() { "nothing is left out".into() } else { format!("left out: {}", out.join(", ")) };
        println!(
            "{what}; {} written\nfrit compile {} --tuning {} -o x.frit",
            a.output.display(),
            path.display(),
            a.output.display()
        );
    }
    Ok(())
}

/// Kinds of fusion that are slower one by one need not be so together: without all of them the model is run again, and only
/// the worst stays out where that is no gain.
fn keep_what_helps_together(
    a: &Args,
    tried: &mut [Tried],
    (with, program): (&mut Bound, &str),
    backend: &dyn Backend,
    compile: &dyn Fn(CompileOptions) -> frit::Result<LoadedModel>,
) -> Result<()> {
    let worst = tried.iter().filter(|t| t.overruled).max_by(|x, y| x.slower_permille.total_cmp(&y.slower_permille));
    let Some((worst, alone)) = worst.map(|t| (t.id.clone(), t.slower_permille)) else { return Ok(()) };
    if tried.iter().filter(|t| t.overruled).count() < 2 {
        return Ok(());
    }
    let mut options = CompileOptions::default();
    for t in tried.iter().filter(|t| t.overruled) {
        options.fusion.switch_off(&t.id);
    }
    let mut without = Bound::new(a, &compile(options)?, program, backend)?;
    let (_, _, together, agrees) = compare(with, &mut without, a.rounds)?;
    if !agrees || together < alone {
        tried.iter_mut().filter(|t| t.id != worst).for_each(|t| t.overruled = false);
    }
    Ok(())
}
