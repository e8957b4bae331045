//! What a verb that compiles may switch off.

use crate::devices::Devices;
use crate::model::{Progress, parse_bytes};
use anyhow::{Context, Result, bail};
use frit::{LoadedModel, Stage, model_source};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::passes::PassManager;
use frit_compiler::{CompileOptions, NumericMode, PeakBudget, SwitchError};
use frit_kernels::spec::MatmulPrecision;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Clone)]
pub struct Switches {
    /// Leave one fusion or rewrite out, by an id of `frit explain --ids`; with ID@TEXT only where the origin contains a
    /// text; with @TEXT every fusion there, as in @layers.3.mlp; with FROM:TO one edge, by parts of names or origins. May be
    /// given several times.
    #[arg(long, value_name = "ID", alias = "no-fuse")]
    disable: Vec<String>,
    /// How far results may differ in their last bits: strict (not at all), default (sums in another order) or fast
    /// (close functions too).
    #[arg(long, value_name = "MODE")]
    numeric: Option<String>,
    /// How exactly matmuls multiply: auto, f32, or both sides as sums of bf16 numbers, bf16x1, bf16x2 or bf16x3.
    #[arg(long, value_name = "PRECISION")]
    matmul_precision: Option<String>,
    /// Compare both sides of every rewrite, and every kernel with its operations, on random operands: on, unless told
    /// otherwise, or off.
    #[arg(long, value_name = "on|off")]
    verify_rewrites: Option<String>,
    /// Evaluations made at most to compare rewrites, and as many for kernels; what they do not suffice for stays open.
    #[arg(long, value_name = "N", default_value_t = CompileOptions::VALIDATION_BUDGET)]
    verify_budget: u64,
    /// Absorb no more than this many operations into regions.
    #[arg(long, value_name = "N")]
    fusion_fuel: Option<u64>,
    /// Compute up to so many convolutions in a row in one kernel wherever they fit, whether that pays or not: 2, or 1 for
    /// none.
    #[arg(long, value_name = "N")]
    fuse_conv_chain: Option<u64>,
    /// Take the keys of attention of one row in parts from this many keys on, on every kind of device.
    #[arg(long, value_name = "KEYS")]
    key_parts_from: Option<u64>,
    /// Leave one pass out. May be given several times.
    #[arg(long, value_name = "PASS")]
    skip_pass: Vec<String>,
    /// Apply no more than this many rewrites.
    #[arg(long, value_name = "N")]
    rewrite_fuel: Option<u64>,
    /// Leave out the kinds of fusion that `frit tune` measured to be slower, from the file that it wrote.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// Do without kinds of fusion while the values of a run take more than so many bytes, as in 64MiB; weights and caches are
    /// not counted.
    #[arg(long, value_name = "SIZE")]
    peak_budget: Option<String>,
    /// Sizes that the budget holds at, as in B=4,S=512; others count at their largest, or at 1 where nothing bounds them.
    #[arg(long, value_name = "NAME=N,…", requires = "peak_budget", value_delimiter = ',')]
    peak_at: Vec<String>,
    /// Layers that repeat: auto (one body is compiled, where there is one), dispatch (the same, and no model without) or
    /// unroll (each layer is compiled by itself). The launches are the same.
    #[arg(long = "loop", value_name = "HOW", default_value = "auto")]
    looping: Looping,
    #[command(flatten)]
    devices: Devices,
    /// An edge for which every condition is answered.
    #[arg(skip)]
    ask: Option<(String, String)>,
}

/// What becomes of layers that repeat.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Looping {
    Auto,
    Dispatch,
    Unroll,
}

/// Sizes by name.
fn sizes(texts: &[String]) -> Result<BTreeMap<String, u64>> {
    let one = |text: &String| {
        let pair = text.split_once('=').and_then(|(n, v)| Some((n.trim().to_owned(), v.trim().parse().ok()?)));
        pair.with_context(|| format!("`{text}` gives no size a number\nhint: --peak-at B=4,S=512"))
    };
    texts.iter().map(one).collect()
}

/// What a budget left out of a plan, a line for each decision.
fn over_budget(plan: &frit_plan::Plan) -> Vec<String> {
    let edges = plan.report.phases.iter().flat_map(|p| p.refused.iter().map(move |e| (&p.program, e)));
    let mut decisions: BTreeMap<&str, (u64, String)> = BTreeMap::new();
    for (program, e) in edges.filter(|(_, e)| e.code == "N-PEAK" || e.detail.contains("N-PEAK")) {
        let first = || (0, format!("such as {} -> {} of {program}", e.from, e.to));
        decisions.entry(&e.detail).or_insert_with(first).0 += 1;
    }
    if decisions.is_empty() {
        return vec!["the budget is kept with every fusion".into()];
    }
    decisions.iter().map(|(detail, (n, such))| format!("N-PEAK  {n} edges are not fused, {such}: {detail}")).collect()
}

fn precisions() -> Vec<&'static str> {
    MatmulPrecision::ALL.iter().map(|p| p.name()).collect()
}

impl Switches {
    fn is_default(&self) -> bool {
        self.disable.is_empty()
            && self.skip_pass.is_empty()
            && self.rewrite_fuel.is_none()
            && self.numeric.is_none()
            && self.matmul_precision.is_none()
            && self.verify_rewrites.is_none()
            && self.verify_budget == CompileOptions::VALIDATION_BUDGET
            && self.fusion_fuel.is_none()
            && self.key_parts_from.is_none()
            && self.fuse_conv_chain.is_none()
            && self.tuning.is_none()
            && self.peak_budget.is_none()
            && self.looping == Looping::Auto
            && self.devices.is_default()
            && self.ask.is_none()
    }
    /// The same, with every condition of an edge answered.
    pub fn asking(self, ask: Option<(String, String)>) -> Self {
        Switches { ask, ..self }
    }
    /// The options they stand for.
    pub fn options(&self) -> Result<CompileOptions> {
        let mut o = CompileOptions { rewrite_fuel: self.rewrite_fuel, ..self.devices.options() };
        o.fusion.fuel = self.fusion_fuel;
        o.fusion.ask.clone_from(&self.ask);
        o.fusion.key_parts_from = self.key_parts_from;
        match self.fuse_conv_chain {
            None => {}
            Some(1) => o.fusion.fuse_conv_chains = false,
            Some(2) => o.fusion.force_conv_chains = true,
            Some(n) => bail!(
                "a kernel holds two convolutions of a chain at most, not {n}\nhint: --fuse-conv-chain 2; frit explain MODEL --objective traffic says what deeper chains would move"
            ),
        }
        if let Some(file) = &self.tuning {
            crate::tune::apply(file, &mut o)?;
        }
        if let Some(budget) = &self.peak_budget {
            o.peak = Some(PeakBudget { bytes: parse_bytes("--peak-budget", budget)?, at: sizes(&self.peak_at)? });
        }
        o.outline = self.looping != Looping::Unroll;
        for id in &self.disable {
            if let Err(e) = o.switch_off(id) {
                let hint = match &e {
                    SwitchError::NoPlace { .. } => {
                        "ID@ORIGIN, @ORIGIN or FROM:TO, each a text, as in @layers.3.mlp".into()
                    }
                    SwitchError::Unknown { .. } => {
                        format!("{}, or a rule that `frit explain --ids` lists", FusionOptions::IDS.join(" | "))
                    }
                };
                bail!("{e}\nhint: --disable {hint}");
            }
        }
        if let Some(mode) = &self.numeric {
            let Some(mode) = NumericMode::of(mode) else {
                bail!("there is no numeric mode `{mode}`\nhint: --numeric strict | default | fast");
            };
            o.fusion.numeric = mode;
        }
        if let Some(name) = &self.matmul_precision {
            let Some(precision) = MatmulPrecision::of(name) else {
                bail!("there is no matmul precision `{name}`\nhint: --matmul-precision {}", precisions().join(" | "));
            };
            if o.fusion.numeric == NumericMode::Strict && matches!(precision.parts(), 1 | 2) {
                bail!("--numeric strict keeps every bit, and --matmul-precision {name} does not");
            }
            o.fusion.matmul_precision = precision;
        }
        o.validate = match self.verify_rewrites.as_deref() {
            None | Some("on") => Some(self.verify_budget),
            Some("off") => None,
            Some(other) => bail!("--verify-rewrites is on or off, not `{other}`"),
        };
        let known: Vec<&str> = PassManager::standard(&[]).passes.iter().map(|p| p.name()).collect();
        for pass in &self.skip_pass {
            if !known.contains(&pass.as_str()) {
                let mut names = known;
                names.sort_unstable();
                names.dedup();
                bail!("there is no pass `{pass}`\nhint: --skip-pass {}", names.join(" | "));
            }
            o.skip_passes.push(pass.clone());
        }
        Ok(o)
    }
    /// Whether a plan does what was asked for; says on standard error what a file left out of it.
    ///
    /// # Errors
    /// A body was demanded and no program has one; the tuning file is of another model.
    pub fn check(&self, plan: &frit_plan::Plan) -> Result<()> {
        if let Some(file) = &self.tuning {
            crate::tune::apply(file, &mut CompileOptions::default())?.check(file, plan)?;
        }
        self.warn(plan);
        if self.peak_budget.is_some() {
            over_budget(plan).iter().for_each(|l| eprintln!("{l}"));
        }
        let has_body = plan.report.phases.iter().any(|p| p.instances > 0);
        if self.looping == Looping::Dispatch && !has_body {
            bail!("no layers of {} repeat so that one body serves them\nhint: --loop auto", plan.model.name);
        }
        Ok(())
    }
    /// Says on standard error which switches found nothing to switch.
    fn warn(&self, plan: &frit_plan::Plan) {
        let phases = || plan.report.phases.iter();
        let names = |text: &str| {
            phases().any(|p| {
                p.regions.iter().any(|r| r.origins.iter().any(|o| o.contains(text)))
                    || p.refused.iter().any(|e| e.from.contains(text) || e.to.contains(text))
            })
        };
        let drawn = |text: &str| phases().any(|p| p.drawing.ops.iter().any(|o| o.op.contains(text)));
        for switch in &self.disable {
            let missed = match (switch.split_once('@'), switch.split_once(':')) {
                (Some((id, text)), _) if !id.contains(':') => Some(text).filter(|text| !names(text)),
                (_, Some((from, to))) => [from, to].into_iter().find(|text| !names(text) && !drawn(text)),
                _ => None,
            };
            if let Some(text) = missed {
                let model = &plan.model.name;
                eprintln!("warning: --disable {switch}: no operation of {model} has an origin with `{text}`");
            }
        }
        if self.fuse_conv_chain == Some(2) && !phases().any(|p| p.regions.iter().any(|r| r.kind == "conv_chain")) {
            eprintln!("warning: --fuse-conv-chain 2: no two convolutions of {} fit one kernel", plan.model.name);
        }
    }
    /// Opens or compiles a model; an artifact is compiled already and takes no switch.
    pub fn open(&self, path: &Path, progress: &Progress) -> Result<LoadedModel> {
        if self.is_default() {
            return crate::model::open(path, progress);
        }
        if model_source::is_artifact(path) {
            bail!("{} is compiled already: switches apply to its model", path.display());
        }
        let loaded = model_source::compile_with(path, self.options()?, &mut |s| match (s, &self.peak_budget) {
            (Stage::Compile, Some(_)) => progress.say("compiling with fewer fusions until the budget is kept"),
            (s, _) => progress.stage(s),
        })?;
        progress.clear();
        self.check(&loaded.plan)?;
        Ok(crate::model::heard(loaded))
    }
}
