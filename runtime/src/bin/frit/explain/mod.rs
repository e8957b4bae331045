//! `frit explain`.

#[cfg(feature = "compiler")]
mod chains;
mod edge;
mod html;
pub(crate) mod measure;
mod predicted;

use crate::at::At;
use crate::model::{self, Progress, bytes};
use anyhow::{Context, Result, bail};
use frit_kernels::dim::Dim;
use frit_plan::format::FormatError;
use frit_plan::{ExactSearch, PhaseReport, Plan};
use measure::Measured;
use predicted::Predicted;
use std::io::Write;
use std::path::{Path, PathBuf};

/// How a lock file begins.
const LOCK: &str = "fusion.lock 1 ";

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, an .onnx, a .gguf or a .frit file [default: fixtures/lexicon]
    model: Option<PathBuf>,
    /// forward, prefill, decode, decode_wide or another program [default: decode, or forward for encoders]
    #[arg(long)]
    phase: Option<String>,
    #[command(flatten)]
    at: At,
    /// Show every region and edge, not one layer.
    #[arg(long)]
    all: bool,
    /// Every condition of fusing two operations, each given by a part of its name or origin: which hold, which fail, which
    /// only the kernel could answer that another one rules out.
    #[arg(long, value_name = "FROM:TO")]
    edge: Option<String>,
    /// Say which recognisers found what looks like their operation and raised none; fails if there is one.
    #[cfg(feature = "compiler")]
    #[arg(long)]
    lint: bool,
    /// List what --disable switches off: kinds of fusion, then rules of rewrites.
    #[cfg(feature = "compiler")]
    #[arg(long)]
    ids: bool,
    /// List every code of a refusal with the condition that failed and its remedy; with --edge nothing more than that does.
    #[cfg(feature = "compiler")]
    #[arg(long)]
    all_codes: bool,
    /// Compare the fusions with this file and fail on a difference; write it if it does not exist.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Write the file of --lock anew.
    #[arg(long, requires = "lock")]
    update: bool,
    /// Run the phase and print each kernel's time beside what is predicted; for the cpu nothing is.
    #[arg(long)]
    measure: bool,
    /// With --measure: auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "cpu", requires = "measure")]
    backend: String,
    /// Write the report as a page with pictures.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    chains: chains::Wanted,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    switches: crate::switches::Switches,
}

/// Writes the report as a page.
fn page(a: &Args, plan: &Plan, file: &Path, measured: Option<&Measured>) -> Result<()> {
    let page = html::page(plan, &|program, d| signed(plan, &a.at.values_or_usual(plan, program), d), measured);
    frit_plan::format::replace_file(file, |w| {
        w.write_all(page.as_bytes()).map_err(|source| FormatError::Io { path: file.to_owned(), source })
    })?;
    eprintln!("{} written", file.display());
    Ok(())
}

/// The report of a program with times: predicted ones at the sizes that are shown, and those that were measured.
fn timed(a: &Args, plan: &Plan, p: &PhaseReport, measured: Option<&Measured>) -> serde_json::Value {
    let at = a.at.values_or_usual(plan, &p.program);
    let count = |d: &Dim| signed(plan, &at, d);
    let mut report = serde_json::json!(p);
    report["at"] = plan.sizes.iter().zip(&at).map(|(s, n)| (s.name.clone(), serde_json::json!(n))).collect();
    report["predicted_us"] = Predicted::sum(p, &count).json();
    if let Some(us) = measured.and_then(|m| m.sum(&p.program)) {
        report["measured_us"] = us.into();
    }
    for (i, r) in p.regions.iter().enumerate() {
        report["regions"][i]["predicted_us"] = Predicted::of(r, &count).json();
        if let Some(us) = measured.and_then(|m| m.of(&p.program, i)) {
            report["regions"][i]["measured_us"] = us.into();
        }
    }
    report
}

fn json(a: &Args, plan: &Plan, measured: Option<&Measured>) -> serde_json::Value {
    let find = |n: &str| plan.report.phases.iter().find(|p| p.program == n);
    let main = find("decode").or_else(|| plan.report.phases.first());
    let prefill = find("prefill").or_else(|| find("forward"));
    let phases: Vec<_> = plan.report.phases.iter().map(|p| timed(a, plan, p, measured)).collect();
    let timed = main.and_then(|m| phases.iter().find(|p| p["program"] == m.program));
    serde_json::json!({
        "model": plan.model.name,
        "dispatches": {
            "prefill": prefill.map(|p| p.dispatches),
            "decode": find("decode").map(|p| p.dispatches),
            "decode_per_layer": find("decode").map(|p| p.dispatches_per_layer),
        },
        "unfused_dispatches": main.map(|p| p.unfused_dispatches),
        "attention": main.map(|p| p.attention),
        "regions": timed.map(|p| &p["regions"]),
        "refused": main.map(|p| &p.refused),
        "ledger": main.map(|p| &p.ledger),
        "memory": main.and_then(|p| {
            let [arena_bytes, value_bytes, peak_bytes] = memory(plan, &p.program, &a.at.values_or_usual(plan, &p.program))?;
            Some(serde_json::json!({
                "arena_bytes": arena_bytes, "value_bytes": value_bytes, "peak_bytes": peak_bytes,
                "in_place": p.in_place.len(),
                "half_rows": plan.program(&p.program).map(|program| in_16_bits(plan, program)),
                "refused": plan.program(&p.program).map(|program| kept_apart(plan, program)),
            }))
        }),
        "numeric": plan.report.numeric,
        "refused_rewrites": plan.report.refused_rewrites,
        "validation": plan.report.validation,
        "phases": phases,
    })
}

/// Names of the values that CUDA keeps in 16 bits, with their formats.
fn in_16_bits(plan: &Plan, program: &frit_plan::Program) -> Vec<(String, String)> {
    let named = |(v, format): (u32, frit_kernels::dtype::HalfFormat)| {
        Some((program.values.get(v as usize)?.name.clone(), format.name().to_owned()))
    };
    plan.half_rows(program).into_iter().filter_map(named).collect()
}

/// Results that a kernel could write over an input, and do not lie there: each with the conditions that do not hold.
fn kept_apart(plan: &Plan, program: &frit_plan::Program) -> Vec<serde_json::Value> {
    let name = |v: u32| program.values.get(v as usize).map(|d| d.name.as_str()).unwrap_or_default();
    let refused = plan.reuses(program).into_iter().filter(|r| !r.taken && !r.failed.is_empty());
    let said = refused.map(|r| {
        let points: Vec<u8> = r.failed.iter().map(|p| p.number()).collect();
        let why: Vec<String> = r.failed.iter().map(|p| p.failed(name(r.input))).collect();
        serde_json::json!({
            "code": frit_plan::ALIAS, "step": r.step, "output": name(r.output), "input": name(r.input), "points": points,
            "detail": why.join("; "),
        })
    });
    said.collect()
}

/// Lists what can be switched off and what a refusal may say, as far as it is asked for.
#[cfg(feature = "compiler")]
fn list(a: &Args) -> Result<()> {
    let rules = frit_compiler::passes::rule_names();
    let kind = |id: &str| if rules.contains(&id) { "rewrite" } else { "fusion" };
    let ids = if a.ids { frit_compiler::CompileOptions::ids() } else { Vec::new() };
    let codes = if a.all_codes { frit_compiler::fusion::Refusal::ALL.to_vec() } else { Vec::new() };
    if a.json {
        let mut report = serde_json::Map::new();
        if a.ids {
            let ids: Vec<_> = ids.iter().map(|id| serde_json::json!({ "id": id, "kind": kind(id) })).collect();
            report.insert("ids".into(), ids.into());
        }
        if a.all_codes {
            let code = |c: &frit_compiler::fusion::Refusal| serde_json::json!({ "code": c.code(), "condition": c.condition(), "remedy": c.remedy() });
            report.insert("codes".into(), codes.iter().map(code).collect());
            let never = frit_compiler::fusion::legality::NEVER.iter();
            let never = never.map(|(code, why)| serde_json::json!({ "code": code, "why": why }));
            report.insert("cannot_fail".into(), never.collect());
        }
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    for id in ids {
        println!("{:8} {id}", kind(id));
    }
    for c in codes {
        println!("{:14} holds if   {}\n{:14} remedy     {}", c.code(), c.condition(), "", c.remedy());
    }
    for (code, why) in frit_compiler::fusion::legality::NEVER.iter().filter(|_| a.all_codes) {
        println!("{code:14} always     {why}");
    }
    Ok(())
}

/// Compares a plan with a lock file.
fn lock(a: &Args, plan: &Plan, file: &Path) -> Result<()> {
    let text = plan.lock();
    let old = match file.exists() {
        true => std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?,
        false => String::new(),
    };
    if !old.is_empty() && !old.starts_with(LOCK) {
        bail!("{}: is no lock of fusions: its first line does not begin with `{LOCK}`", file.display());
    }
    if a.update || !file.exists() {
        frit_plan::format::replace_file(file, |w| {
            w.write_all(text.as_bytes()).map_err(|source| FormatError::Io { path: file.to_owned(), source })
        })?;
        if a.json {
            println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "file": file, "written": true }))?);
        }
        eprintln!("{} written", file.display());
        return Ok(());
    }
    let changes = frit_plan::lock_changes(&old, &text);
    if a.json {
        let report = serde_json::json!({ "file": file, "written": false, "changes": changes });
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    if changes.is_empty() {
        if !a.json {
            println!("{} holds", file.display());
        }
        return Ok(());
    }
    changes.iter().filter(|_| !a.json).for_each(|l| println!("{l}"));
    bail!("the fusions differ from {} in {} lines\nhint: --update accepts them", file.display(), changes.len());
}

pub fn main(a: &Args) -> Result<()> {
    #[cfg(feature = "compiler")]
    if a.ids || a.all_codes && a.edge.is_none() {
        return list(a);
    }
    let path = model::path(a.model.as_deref())?;
    #[cfg(feature = "compiler")]
    if a.chains.run(&path, a.json)? {
        return Ok(());
    }
    let progress = Progress::new();
    #[cfg(feature = "compiler")]
    let loaded = {
        let asked = a.edge.as_deref().filter(|_| !frit::model_source::is_artifact(&path));
        let ask = asked.and_then(|e| e.split_once(':')).map(|(from, to)| (from.into(), to.into()));
        a.switches.clone().asking(ask).open(&path, &progress)?
    };
    #[cfg(not(feature = "compiler"))]
    let loaded = model::open(&path, &progress)?;
    progress.clear();
    let plan = &loaded.plan;
    #[cfg(feature = "compiler")]
    if a.lint {
        return lint(a, &path);
    }
    if let Some(file) = &a.lock {
        return lock(a, plan, file);
    }
    if let Some(file) = a.html.as_ref().filter(|_| !a.measure) {
        return page(a, plan, file, None);
    }
    if a.json && !a.measure && a.edge.is_none() {
        println!("{}", serde_json::to_string_pretty(&json(a, plan, None))?);
        return Ok(());
    }
    let wanted =
        a.phase.clone().unwrap_or_else(|| if plan.program("decode").is_some() { "decode" } else { "forward" }.into());
    let Some(phase) = plan.report.phases.iter().find(|p| p.program == wanted) else {
        let have: Vec<&str> = plan.report.phases.iter().map(|p| p.program.as_str()).collect();
        bail!("{} has no phase `{wanted}`\nhint: --phase {}", path.display(), have.join(" | "));
    };
    let at = a.at.values(plan, &phase.program)?;
    if a.measure {
        let measured = measure::run(&loaded, phase, a.backend.parse()?, &at)?;
        if let Some(file) = &a.html {
            return page(a, plan, file, Some(&measured));
        }
        if a.json {
            let mut report = json(a, plan, Some(&measured));
            report["measured"] = measured.json(phase);
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            measured.print(plan, phase);
        }
        return Ok(());
    }
    match &a.edge {
        Some(edge) => edge::print(edge, phase, a.json),
        None => {
            print(a, plan, phase, &at);
            Ok(())
        }
    }
}

/// A rewrite that the numeric mode or a switch stopped.
#[cfg(feature = "compiler")]
#[derive(serde::Serialize)]
struct Stopped {
    rule: String,
    by: String,
    /// Where it would have been applied; unknown where the rule is off.
    places: Option<u64>,
}

#[cfg(feature = "compiler")]
fn lint(a: &Args, path: &Path) -> Result<()> {
    use frit_compiler::passes::{PassManager, recognize};
    let options = a.switches.options()?;
    let off = |list: &[String], by: &str| {
        list.iter().map(|rule| Stopped { rule: rule.clone(), by: by.into(), places: None }).collect::<Vec<_>>()
    };
    let mut stopped = off(&options.disabled_rules, "--disable");
    stopped.extend(off(&options.skip_passes, "--skip-pass"));
    let model = frit_compiler::ingest::load(path)?;
    let mut silent = Vec::new();
    let mut found = Vec::new();
    let mut fuel = options.rewrite_fuel;
    for g in &model.graphs {
        let mut graph = g.graph.clone();
        let mut manager = PassManager::standard(&g.fixed);
        manager.options.skip.clone_from(&options.skip_passes);
        manager.options.disabled.clone_from(&options.disabled_rules);
        manager.options.mode = options.fusion.numeric;
        if let Some(left) = fuel {
            manager.options.fuel = frit_compiler::graph::patch::Fuel::limited(left);
        }
        let log = manager.run(&mut graph, &model.tables)?;
        fuel = fuel.map(|f| f.saturating_sub(log.total()));
        for (rule, (class, n)) in &log.refused {
            let by = format!("--numeric {}, the rule is {}", options.fusion.numeric.name(), class.name());
            match stopped.iter_mut().find(|s| s.rule == *rule && s.by == by) {
                Some(s) => s.places = s.places.map(|p| p + n),
                None => stopped.push(Stopped { rule: (*rule).into(), by, places: Some(*n) }),
            }
        }
        for f in recognize::lint(&graph, &model.tables) {
            let rule = f.recognizer.trim_start_matches("recognize-");
            let wanted = stopped.iter().any(|s| s.places.is_none() && (s.rule == f.recognizer || s.rule == rule));
            if f.raised == 0 && !wanted && options.rewrite_fuel.is_none() {
                silent.push(f.recognizer);
            }
            found.push((g.name.clone(), f));
        }
    }
    if a.json {
        let list: Vec<_> = found
            .iter()
            .map(|(program, f)| {
                serde_json::json!({
                    "program": program, "recognizer": f.recognizer, "raised": f.raised, "missed": f.missed,
                    "origin": f.origin, "condition": f.condition,
                })
            })
            .collect();
        let report = serde_json::json!({ "findings": list, "stopped": stopped });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if found.is_empty() {
        let which = if stopped.is_empty() { "every recogniser" } else { "every recogniser that the switches leave" };
        println!("{which} raised whatever looks like its operation");
    }
    for (program, f) in found.iter().filter(|_| !a.json) {
        println!(
            "{program}: {} raised {} and left {}; the first at {}: {}",
            f.recognizer, f.raised, f.missed, f.origin, f.condition
        );
    }
    for s in stopped.iter().filter(|_| !a.json) {
        let places = s.places.map_or_else(String::new, |n| format!(" at {n} places"));
        println!("{} is stopped{places} by {}", s.rule, s.by);
    }
    if silent.is_empty() { Ok(()) } else { bail!("raised nothing: {}", silent.join(", ")) }
}

/// Bytes of a program's arenas, of all the values that live in them, and of those alive at once at most.
fn memory(plan: &Plan, program: &str, at: &[u64]) -> Option<[u64; 3]> {
    let p = plan.program(program)?;
    let elems = |d: &Dim| u64::try_from(signed(plan, at, d)).unwrap_or(0);
    let arena = plan.arena_bytes(p, at).ok()?;
    let sum: u64 = p.values.iter().map(|v| elems(&frit_kernels::dim::product(&v.shape))).sum();
    let steps = p.steps.len().max(1) as u32;
    let alive = |t: u32| p.values.iter().filter(move |v| v.live.0 <= t && t <= v.live.1);
    let at_once = |t: u32| alive(t).map(|v| elems(&frit_kernels::dim::product(&v.shape))).sum::<u64>();
    let peak = (0..steps).map(at_once).max().unwrap_or(0);
    Some([arena, 4 * sum, 4 * peak])
}

/// The value of a count at the sizes `at`; savings may be negative.
fn signed(plan: &Plan, at: &[u64], d: &Dim) -> i64 {
    let find = |s: &frit_kernels::dim::Sym| {
        let i = plan.sizes.iter().position(|z| z.name == s.to_string())?;
        i64::try_from(*at.get(i)?).ok()
    };
    d.eval(&find).unwrap_or(0)
}

fn layer_of(origins: &[String]) -> Option<u32> {
    origins.iter().flat_map(|o| o.split('.')).find_map(|p| p.parse().ok())
}

/// What is launched for fewer rows, where that differs.
fn print_buckets(plan: &Plan, phase: &PhaseReport) {
    let Some(at) = plan.programs.iter().position(|p| p.name == phase.program) else { return };
    let buckets: Vec<usize> = plan.buckets(at).collect();
    for i in &buckets {
        let (Some(p), Some(r)) = (plan.programs.get(*i), plan.report.phases.get(*i)) else { continue };
        let runs = match &p.instead {
            Some(i) => {
                let from = i.from.iter().map(|(tier, keys)| format!("{} {keys}", tier.name()));
                format!("keys in parts, from so many on: {}", from.collect::<Vec<_>>().join(", "))
            }
            None => format!("at most {} rows", p.limits.last().map_or(0, |l| l.1)),
        };
        println!("{runs}: {} kernels, {} in each layer  (--phase {})", r.dispatches, r.dispatches_per_layer, p.name);
    }
    if !buckets.is_empty() {
        println!();
    }
}

/// The greedy regions against the best ones that an exhaustive search of the graph's windows finds.
fn print_search(e: &ExactSearch) {
    if e.windows == 0 {
        return;
    }
    let found = match (e.taken, e.windows - e.unsearched) {
        (true, n) => {
            format!("{} of {n} windows have cheaper regions than the greedy ones, which are taken", e.improved)
        }
        (false, n) => format!("no regions of {n} windows are cheaper than the greedy ones"),
    };
    let large = match e.unsearched {
        0 => String::new(),
        n => format!("; {n} windows are not searched, too large or without a price"),
    };
    println!(
        "exact partition: {found}: {:.1} us, greedily {:.1} us{large}\n",
        e.exact_ns as f64 / 1e3,
        e.greedy_ns as f64 / 1e3
    );
}

/// Launches of the layers.
fn in_layers(phase: &PhaseReport) -> String {
    let most = phase.dispatches_per_layer;
    let differ = phase.layers.iter().any(|l| l.dispatches != most);
    match phase.layers.len() {
        0 => String::new(),
        n => format!(", {}{most} in each of {n} layers", if differ { "at most " } else { "" }),
    }
}

fn print(a: &Args, plan: &Plan, phase: &PhaseReport, at: &[u64]) {
    let named: Vec<String> = plan.sizes.iter().zip(at).map(|(s, v)| format!("{} = {v}", s.name)).collect();
    let count = |d: &Dim| html::size(signed(plan, at, d));
    println!("{}  {}  at {}", plan.model.name, phase.program, named.join(", "));
    println!(
        "{} kernels, {} if nothing were fused{}; attention blocks fused: {} of {}\n",
        phase.dispatches,
        phase.unfused_dispatches,
        in_layers(phase),
        phase.attention.fused,
        phase.attention.blocks
    );
    print_buckets(plan, phase);
    phase.crossovers.iter().for_each(|c| println!("{}", edge::crossover(c)));
    if !phase.crossovers.is_empty() {
        println!();
    }
    print_search(&phase.exact);
    let middle = (plan.model.layers / 2).min(plan.model.layers.saturating_sub(1));
    let shown = |origins: &[String]| a.all || layer_of(origins).is_none_or(|l| l == middle);
    println!("fused");
    for r in phase.regions.iter().filter(|r| shown(&r.origins)) {
        println!(
            " K{:<3} {:9} {:44} saves {:>9} and {} launches   weights {:>9}   bindings {}   {}",
            r.id,
            r.kind,
            r.ops.join(" · "),
            count(&r.saved_bytes),
            r.saved_launches,
            count(&r.weight_bytes),
            r.bindings,
            r.class
        );
        if !r.rewrites.is_empty() {
            let each = r.rewrites.iter().map(|w| format!("{} {}", w.rule, w.class));
            println!("      rewritten by {}", each.collect::<Vec<_>>().join(", "));
        }
        println!("      predicted {}", Predicted::of(r, &|d| signed(plan, at, d)));
        if let Some(o) = r.origins.first() {
            let more = if r.origins.len() > 1 { format!(" and {} more", r.origins.len() - 1) } else { String::new() };
            println!("      from {o}{more}");
        }
    }
    println!("\nnot fused");
    for e in
        phase.refused.iter().filter(|e| shown(&[e.from.clone(), e.to.clone()].map(|s| s.replace(['(', ')', ' '], "."))))
    {
        println!(" {:14} {} -> {}\n                {}; to allow it: {}", e.code, e.from, e.to, e.detail, e.remedy);
    }
    let l = &phase.ledger;
    println!(
        "\nledger   weights {} | activations {} -> {} | together {}",
        count(&l.weights),
        count(&l.activations_unfused),
        count(&l.activations_fused),
        count(&l.total)
    );
    println!("time     predicted {}", Predicted::sum(phase, &|d| signed(plan, at, d)));
    if let Some([arena, sum, peak]) = memory(plan, &phase.program, at) {
        let ratio = sum as f64 / arena.max(1) as f64;
        println!(
            "memory   {} for values of {} together, {} of them alive at once; each byte used {ratio:.1} times",
            bytes(arena),
            bytes(sum),
            bytes(peak)
        );
    }
    if !phase.in_place.is_empty() {
        println!("         {} values are written over an input that dies", phase.in_place.len());
    }
    let halves = plan.program(&phase.program).map(|p| in_16_bits(plan, p)).unwrap_or_default();
    if !halves.is_empty() {
        println!("         {} values are kept in 16 bits on CUDA: all who read them round them so", halves.len());
    }
    for (rule, (class, n)) in &plan.report.refused_rewrites {
        println!(
            "L18-MODE rewrite {rule} is {class} and not applied at {n} places; the mode is {}",
            plan.report.numeric
        );
    }
    let v = &plan.report.validation;
    if v.on {
        let [[a, b, c], [d, e, f]] = [v.rewrites, v.kernels];
        println!("checked  rewrites: {a} equal, {b} wrong, {c} open; kernels: {d} equal, {e} wrong, {f} open");
    }
    v.dropped.iter().for_each(|d| println!("dropped  {d}"));
    if !a.all {
        println!("(layer {middle} stands for all layers; --all shows each)");
    }
}
