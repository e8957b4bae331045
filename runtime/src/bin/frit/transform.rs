//! `frit transform`.

use crate::model::bytes;
use anyhow::{Context, Result, bail};
use frit::calibration::Calibration;
use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, model_source};
use frit_compiler::ingest;
use frit_compiler::transform::onnx::{ONNX_STEPS, OnnxModel};
use frit_compiler::transform::step::STEPS;
use frit_compiler::transform::{Activations, Aid, Checkpoint, Recipe, Report, Step, Tied};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Tokens of a calibration sequence, at most.
const LONGEST: usize = 128;

#[derive(clap::Args)]
#[command(after_help = help())]
pub struct Args {
    /// NAME IN -o OUT and the transform's options, or --recipe FILE IN -o OUT. Also --calib FILE (token ids, text or
    /// .npz), --backend auto|cpu|wgpu, --materialize (tied tensors as copies), --json.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "NAME IN -o OUT")]
    words: Vec<String>,
}

fn help() -> String {
    let width = STEPS.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
    let lines = |steps: &[(&str, &str)]| {
        let lines: Vec<String> = steps.iter().map(|(n, what)| format!("  {n:width$}  {what}")).collect();
        lines.join("\n")
    };
    format!("Transforms of directories and GGUF files:\n{}\nOf ONNX files:\n{}", lines(STEPS), lines(ONNX_STEPS))
}

/// The words, taken apart.
#[derive(Default)]
struct Wanted {
    places: Vec<String>,
    output: Option<PathBuf>,
    recipe: Option<PathBuf>,
    calib: Option<PathBuf>,
    backend: BackendChoice,
    copies: bool,
    json: bool,
    options: Map<String, Value>,
}

fn wanted(words: &[String]) -> Result<Wanted> {
    let mut w = Wanted::default();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--").or((word == "-o").then_some("output")) else {
            w.places.push(word.clone());
            continue;
        };
        let (name, glued) = name.split_once('=').map_or((name, None), |(n, v)| (n, Some(v.to_owned())));
        match name {
            "materialize" => w.copies = true,
            "json" => w.json = true,
            _ => {
                let value = glued.or_else(|| words.next_if(|v| !v.starts_with("--") && *v != "-o").cloned());
                let path = || value.clone().map(PathBuf::from).with_context(|| format!("--{name} names no file"));
                match name {
                    "output" => w.output = Some(path()?),
                    "recipe" => w.recipe = Some(path()?),
                    "calib" => w.calib = Some(path()?),
                    "backend" => w.backend = value.unwrap_or_default().parse()?,
                    _ => {
                        let known = w.options.insert(name.to_owned(), option(value));
                        if known.is_some() {
                            bail!("--{name} is given twice");
                        }
                    }
                }
            }
        }
    }
    Ok(w)
}

/// A word as JSON: a number, a truth value or text; an option without a value is true.
fn option(value: Option<String>) -> Value {
    match value {
        None => Value::Bool(true),
        Some(v) => match serde_json::from_str::<Value>(&v) {
            Ok(n @ (Value::Number(_) | Value::Bool(_))) => n,
            _ => Value::String(v),
        },
    }
}

/// What a transform is for, and which options it has.
fn purpose(name: &str) -> Result<String> {
    match STEPS.iter().chain(ONNX_STEPS).find(|(n, _)| *n == name) {
        Some((_, what)) => Ok(format!("frit transform {name} IN -o OUT\n{what}")),
        None => bail!("there is no transform `{name}`\nhint: frit transform --help lists them"),
    }
}

pub fn main(a: &Args) -> Result<()> {
    let w = wanted(&a.words)?;
    if let (true, [name, ..]) = (w.options.contains_key("help"), w.places.as_slice()) {
        println!("{}", purpose(name)?);
        return Ok(());
    }
    let is_onnx = |p: &str| Path::new(p).extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    if w.places.last().is_some_and(|p| is_onnx(p)) {
        return edit_onnx(&w);
    }
    let (recipe, input) = match (&w.recipe, w.places.as_slice()) {
        (Some(file), [input]) => {
            if let Some(name) = w.options.keys().next() {
                bail!("--{name} is an option of a transform; write it into the recipe");
            }
            let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
            (Recipe::parse(&text).with_context(|| format!("{}", file.display()))?, input)
        }
        (None, [name, input]) => (Recipe { steps: vec![Step::named(name, w.options.clone())?] }, input),
        (None, [name]) => {
            Step::named(name, w.options.clone())?;
            bail!("no model is named\nhint: frit transform {name} IN -o OUT");
        }
        _ => bail!(
            "say what and where\nhint: frit transform NAME IN -o OUT, or frit transform --recipe r.yaml IN -o OUT"
        ),
    };
    let Some(output) = &w.output else { bail!("no place to write to is named\nhint: -o OUT") };
    let kind = output.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if kind == "onnx" {
        bail!(
            "{}: ONNX files are written from ONNX files; name a directory, a .gguf or a .frit file",
            output.display()
        );
    }
    let input = Path::new(input);
    let mut checkpoint = Checkpoint::open(input)?;
    if kind != "gguf" {
        checkpoint.notes().iter().for_each(|note| eprintln!("note: {note}"));
    }
    let calibration = w.calib.as_deref().map(|file| calibration(file, input, w.backend)).transpose()?;
    let aid = Aid { activations: calibration.as_ref().map(|c| c as &dyn Activations) };
    let reports = recipe.apply(&mut checkpoint, &aid)?;
    let tied = if w.copies { Tied::Copies } else { Tied::Once };
    match kind.as_str() {
        "frit" => write_artifact(&checkpoint, output)?,
        "gguf" => checkpoint.save_gguf(output, tied)?,
        _ => checkpoint.save(output, tied)?,
    }
    if w.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        reports.iter().for_each(print);
        println!("{}", output.display());
    }
    Ok(())
}

/// An edit of an ONNX file, which has no roles of tensors.
fn edit_onnx(w: &Wanted) -> Result<()> {
    let names: Vec<&str> = ONNX_STEPS.iter().map(|(n, _)| *n).collect();
    let (input, steps) = match (w.places.as_slice(), &w.recipe) {
        ([name, input], None) => (input, vec![(name.clone(), w.options.clone())]),
        ([input], Some(recipe)) => (input, onnx_steps(recipe)?),
        _ => bail!("say what and where\nhint: frit transform {} IN.onnx -o OUT.onnx", names.join("|")),
    };
    let Some(output) = &w.output else { bail!("no place to write to is named\nhint: -o OUT.onnx") };
    let mut model = OnnxModel::open(Path::new(input))?;
    let before = model.weight_bytes();
    let mut changes = Vec::new();
    for (n, (name, options)) in steps.iter().enumerate() {
        let made = model.apply(name, options).with_context(|| format!("step {} ({name})", n + 1));
        changes.extend(made?.into_iter().map(|line| (name, line)));
    }
    match output.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default().as_str() {
        "onnx" => model.save(output)?,
        "frit" => {
            let dir = tempfile::tempdir()?;
            let at = dir.path().join("model.onnx");
            model.save(&at)?;
            let loaded = model_source::compiled(&ingest::load(&at)?)?;
            frit_plan::format::write(output, &loaded.plan, &*loaded.weights, &mut |_, _| ())?;
        }
        _ => bail!("{}: an ONNX file is edited into a .onnx or a .frit file", output.display()),
    }
    if w.json {
        let lines: Vec<&String> = changes.iter().map(|(_, line)| line).collect();
        let names: Vec<&String> = steps.iter().map(|(name, _)| name).collect();
        let report = serde_json::json!({ "transforms": names, "changes": lines, "before": before, "after": model.weight_bytes() });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        changes.iter().for_each(|(name, line)| println!("{name:16} {line}"));
        println!("{:16} {} stored ({} before)\n{}", "", bytes(model.weight_bytes()), bytes(before), output.display());
    }
    Ok(())
}

/// The steps of a recipe by their names; each finds its own options wrong.
fn onnx_steps(recipe: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    let text = std::fs::read_to_string(recipe).with_context(|| recipe.display().to_string())?;
    let steps: Vec<Map<String, Value>> =
        frit_compiler::transform::recipe::items(&text).with_context(|| recipe.display().to_string())?;
    let named = |mut options: Map<String, Value>| match options.shift_remove("transform") {
        Some(Value::String(name)) => Ok((name, options)),
        _ => bail!("{}: a step has no `transform`", recipe.display()),
    };
    steps.into_iter().map(named).collect()
}

fn print(r: &Report) {
    for line in &r.changes {
        println!("{:16} {line}", r.transform);
    }
    println!(
        "{:16} {} stored ({} before), {} with every name's; {} layers ({} before)",
        "",
        bytes(r.after.unique),
        bytes(r.before.unique),
        bytes(r.after.logical),
        r.layers[1],
        r.layers[0]
    );
}

fn write_artifact(checkpoint: &Checkpoint, output: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let name = output.file_stem().context("the artifact has no name")?;
    let at = dir.path().join(name);
    checkpoint.save(&at, Tied::Once)?;
    let loaded = model_source::compiled(&ingest::load(&at)?)?;
    frit_plan::format::write(output, &loaded.plan, &*loaded.weights, &mut |_, _| ())?;
    Ok(())
}

/// Calibration tokens for the model at `model`, whose tokenizer encodes text.
pub fn calibration(file: &Path, model: &Path, backend: BackendChoice) -> Result<Calibration> {
    let info = ingest::load(model).map(|m| m.info).ok();
    let tokenizer = info.as_ref().map(Tokenizer::of).transpose()?.flatten();
    let encode = tokenizer.map(|t| move |text: &str| t.encode(text));
    let longest = info.map_or(LONGEST, |i| LONGEST.min(i.context as usize));
    let encode: Option<&dyn Fn(&str) -> frit::Result<Vec<u32>>> = encode.as_ref().map(|e| e as _);
    let read = Calibration::read(file, longest, encode)?;
    Ok(Calibration { backend, ..read })
}
