//! How deep a verb runs a model: exits, skips, weighted layers.

use crate::model::Progress;
use anyhow::{Context, Result, bail};
use frit::{LoadedModel, Session, model_source};
use frit_compiler::CompileOptions;
use frit_compiler::ingest::LoadOptions;
use frit_compiler::ingest::policy::{
    ExitRule, Exits, FfnSkip, KvKeep, KvMerge, KvOnSkip, LayerMix, PrefillPasses, Probs, RunPolicy,
};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Run policy (decoders; changes what is computed)")]
pub struct Policy {
    /// Run only this many layers.
    #[arg(long, value_name = "N")]
    exit_layer: Option<u32>,
    /// Leave layers out: `3,7` or `4-6`, counted from 0.
    #[arg(long, value_name = "LAYERS")]
    skip_layers: Option<String>,
    /// Of a model with an encoder and a decoder, run only so many layers of either: `6,2`.
    #[arg(long, value_name = "ENCODER,DECODER")]
    depth: Option<String>,
    /// Let a token leave at an exit where its most likely successor has at least this probability.
    #[arg(long, value_name = "P", requires = "exit_layers", conflicts_with_all = ["exit_margin", "exit_saturation"])]
    exit_confidence: Option<f32>,
    /// Let a token leave where the two most likely successors differ by more than this.
    #[arg(long, value_name = "P", requires = "exit_layers", conflicts_with = "exit_saturation")]
    exit_margin: Option<f32>,
    /// Let a token leave where the most likely successor was the same at so many exits in a row.
    #[arg(long, value_name = "TIMES", requires = "exit_layers")]
    exit_saturation: Option<u32>,
    /// After how many layers a token may leave: `8,12,16`.
    #[arg(long, value_name = "LAYERS")]
    exit_layers: Option<String>,
    /// Skip feed-forward parts of tokens that they change little: `threshold=0.95,cold=0-3,cold=28-31,warmup=8`; or those of
    /// listed layers, of every token: `layers=2,layers=5-7`.
    #[arg(long, value_name = "SETTINGS")]
    ffn_skip: Option<String>,
    /// What layers keep of a token that has left, or that a router sends past them; `propagate` or `project`: keys and values
    /// made of its state; `drop`: routed layers keep nothing, so that nobody sees it there.
    #[arg(long, value_name = "RULE", default_value = "propagate", value_parser = ["propagate", "project", "drop"])]
    kv_on_skip: String,
    /// Give the head a weighted sum of the layers' outputs: a JSON file `{"weights": [..], "normed": false}`, or the
    /// weights separated by commas.
    #[arg(long, value_name = "FILE|WEIGHTS")]
    layer_mix: Option<String>,
    /// Let pairs of layers share the directions of their keys and values: `minicache:start=15,t=0.6`; from the middle layer
    /// on unless said.
    #[arg(long, value_name = "SETTINGS")]
    kv_merge: Option<String>,
    /// See anchor tokens and near tokens only: `anchors:13,198,window:64`, anchors by their numbers in the vocabulary.
    #[arg(long, value_name = "SETTINGS")]
    kv_keep: Option<String>,
    /// Let the layers above this one attend to its anchors too: `src=4`.
    #[arg(long, value_name = "src=N", requires = "kv_keep")]
    layer_anchor: Option<String>,
    /// Compute only the first neurons of every feed-forward part, so many; the width is a size of the compiled model.
    #[arg(long, value_name = "N")]
    ff_active: Option<u64>,
    /// Run prompts of layers that read keys from above several times as a whole and not token by token: `9`, or
    /// `until:1e-5` until nothing changes by more than that part.
    #[arg(long, value_name = "N|until:E")]
    prefill_passes: Option<String>,
    /// Attention probabilities that several layers use: auto, store or recompute.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    probs: Probs,
    /// Run every token of a prompt through every layer, though only the last one counts behind the last cache.
    #[arg(long)]
    whole_prefill: bool,
}

impl Policy {
    /// The policy that the options ask for.
    pub fn policy(&self) -> Result<RunPolicy> {
        let list = |o: &Option<String>| o.as_deref().map(numbers).transpose();
        let rule = match (self.exit_confidence, self.exit_margin, self.exit_saturation) {
            (Some(p), _, _) => Some(ExitRule::Confidence(p)),
            (_, Some(m), _) => Some(ExitRule::Margin(m)),
            (_, _, Some(k)) => Some(ExitRule::Saturation(k)),
            _ => None,
        };
        let exits = match (list(&self.exit_layers)?, rule) {
            (Some(layers), Some(rule)) => Some(Exits { layers, rule }),
            (Some(_), None) => bail!(
                "--exit-layers says where tokens may leave, not when\nhint: --exit-confidence 0.9, --exit-margin 0.5 or --exit-saturation 2"
            ),
            (None, _) => None,
        };
        let (ffn_skip, skip_ffns) = self.ffn_skip.as_deref().map_or_else(|| Ok((None, Vec::new())), ffn_skip)?;
        Ok(RunPolicy {
            exit_layer: self.exit_layer,
            skip_layers: list(&self.skip_layers)?.unwrap_or_default(),
            skip_ffns,
            depth: self.depth.as_deref().map(depth).transpose()?,
            exits,
            ffn_skip,
            kv_on_skip: if self.kv_on_skip == "drop" { KvOnSkip::Drop } else { KvOnSkip::Project },
            layer_mix: self.layer_mix.as_deref().map(layer_mix).transpose()?,
            kv_merge: self.kv_merge.as_deref().map(kv_merge).transpose()?,
            kv_keep: self.kv_keep.as_deref().map(|text| kv_keep(text, self.layer_anchor.as_deref())).transpose()?,
            ff_active: self.ff_active.is_some(),
            prefill_passes: self.prefill_passes.as_deref().map(prefill_passes).transpose()?,
            probs: self.probs,
            whole_prefill: self.whole_prefill,
        })
    }
    /// Tells a session what of the policy it chooses when it runs.
    pub fn steer(&self, session: &mut Session) -> Result<()> {
        Ok(self.ff_active.map_or(Ok(()), |width| session.set_ff_active(width))?)
    }
    /// Compiles the model for the policy; `None` when there is none.
    pub fn open(&self, path: &Path, options: CompileOptions, progress: &Progress) -> Result<Option<LoadedModel>> {
        let policy = self.policy()?;
        if policy == RunPolicy::default() {
            return Ok(None);
        }
        if model_source::is_artifact(path) {
            bail!(
                "{} is compiled already: a run policy is compiled in\nhint: frit compile MODEL -o x.frit with the policy",
                path.display()
            );
        }
        let load = LoadOptions { policy, ..LoadOptions::default() };
        let loaded = model_source::compile_as(path, &load, options, &mut |s| progress.stage(s))?;
        Ok(Some(crate::model::heard(loaded)))
    }
}

fn numbers(text: &str) -> Result<Vec<u32>> {
    let one = |t: &str| t.trim().parse::<u32>().with_context(|| format!("`{t}` in `{text}` is no number of a layer"));
    let mut out = Vec::new();
    for item in text.split(',') {
        match item.split_once('-') {
            Some((from, to)) => out.extend(one(from)?..=one(to)?),
            None => out.push(one(item)?),
        }
    }
    Ok(out)
}

fn depth(text: &str) -> Result<[u32; 2]> {
    match numbers(text)?[..] {
        [encoder, decoder] => Ok([encoder, decoder]),
        _ => bail!(
            "--depth `{text}` is not two numbers\nhint: --depth 6,2 for six layers of the encoder and two of the decoder"
        ),
    }
}

/// By threshold where one is given, and the layers whose part nobody runs.
fn ffn_skip(text: &str) -> Result<(Option<FfnSkip>, Vec<u32>)> {
    let mut skip = FfnSkip { threshold: f32::NAN, cold: Vec::new(), warmup: 0 };
    let mut layers = Vec::new();
    for setting in text.split(',') {
        let (key, value) = setting.split_once('=').with_context(|| format!("`{setting}` is no `key=value`"))?;
        match key.trim() {
            "threshold" => skip.threshold = value.parse().with_context(|| format!("threshold `{value}`"))?,
            "cold" => skip.cold.extend(numbers(value)?),
            "warmup" => skip.warmup = value.parse().with_context(|| format!("warmup `{value}`"))?,
            "layers" => layers.extend(numbers(value)?),
            other => bail!("--ffn-skip has no setting `{other}`\nhint: threshold, cold, warmup, layers"),
        }
    }
    if skip.threshold.is_nan() {
        let alone = skip.cold.is_empty() && skip.warmup == 0;
        if layers.is_empty() || !alone {
            bail!(
                "--ffn-skip has no threshold\nhint: --ffn-skip threshold=0.95,cold=0-3,warmup=8, or layers=2,layers=5-7"
            );
        }
        return Ok((None, layers));
    }
    Ok((Some(skip), layers))
}

fn prefill_passes(text: &str) -> Result<PrefillPasses> {
    let hint = || format!("--prefill-passes `{text}` is no number\nhint: --prefill-passes 9 or until:1e-5");
    Ok(match text.strip_prefix("until:") {
        Some(until) => PrefillPasses { most: 0, until: until.parse().with_context(hint)? },
        None => PrefillPasses { most: text.parse().with_context(hint)?, until: 0.0 },
    })
}

/// Rows for tokens that `gamma` retains, unless said.
const RETAINED: u32 = 64;

fn kv_merge(text: &str) -> Result<KvMerge> {
    let (method, settings) = text.split_once(':').unwrap_or((text, ""));
    if method != "minicache" {
        bail!("--kv-merge has no method `{method}`\nhint: --kv-merge minicache:start=15,t=0.6");
    }
    let mut merge = KvMerge { start: None, t: 0.6, gamma: 0.0, retain: 0 };
    for setting in settings.split(',').filter(|s| !s.is_empty()) {
        let (key, value) = setting.split_once('=').with_context(|| format!("`{setting}` is no `key=value`"))?;
        match key.trim() {
            "start" => merge.start = Some(value.parse().with_context(|| format!("start `{value}`"))?),
            "t" => merge.t = value.parse().with_context(|| format!("t `{value}`"))?,
            "gamma" => merge.gamma = value.parse().with_context(|| format!("gamma `{value}`"))?,
            "retain" => merge.retain = value.parse().with_context(|| format!("retain `{value}`"))?,
            other => bail!("--kv-merge minicache has no setting `{other}`\nhint: start, t, gamma, retain"),
        }
    }
    if merge.gamma > 0.0 && merge.retain == 0 {
        merge.retain = RETAINED;
    }
    Ok(merge)
}

fn kv_keep(text: &str, layer: Option<&str>) -> Result<KvKeep> {
    let hint = "hint: --kv-keep anchors:13,198,window:64";
    let mut keep = KvKeep { anchors: Vec::new(), window: 0, layer: None };
    for item in text.split(',') {
        if let Some(width) = item.strip_prefix("window:") {
            keep.window = width.parse().with_context(|| format!("window `{width}`\n{hint}"))?;
            continue;
        }
        let id = item.strip_prefix("anchors:").unwrap_or(item);
        keep.anchors.push(id.parse().with_context(|| format!("`{item}` in `{text}` is no token\n{hint}"))?);
    }
    keep.layer = layer
        .map(|l| {
            l.strip_prefix("src=").unwrap_or(l).parse().with_context(|| format!("--layer-anchor `{l}` is no layer"))
        })
        .transpose()?;
    Ok(keep)
}

fn layer_mix(text: &str) -> Result<LayerMix> {
    let file = PathBuf::from(text);
    if file.is_file() {
        let read = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        return serde_json::from_str(&read).with_context(|| file.display().to_string());
    }
    let weights: std::result::Result<Vec<f32>, _> = text.split(',').map(|w| w.trim().parse()).collect();
    Ok(LayerMix { weights: weights.with_context(|| format!("`{text}` is neither a file nor weights"))?, normed: false })
}
