//! `frit compile --bisect`: which rewrite or fusion makes a command fail.

use crate::model::Progress;
use crate::policy::Policy;
use anyhow::{Context, Result, bail};
use frit::{LoadedModel, model_source};
use frit_compiler::CompileOptions;
use frit_compiler::fusion::FusionOptions;
use frit_plan::Plan;
use std::path::Path;
use std::process::Command;

/// Absorptions of one program that are searched at most.
const MOST_FUEL: u64 = 1 << 20;
/// What a refusal says that fuel alone stands in the way of.
const SPENT: &str = "the fusion fuel is spent";

/// What is searched, and the options of the user, which every plan has but for what is tried.
pub struct Search<'a> {
    pub model: &'a Path,
    pub policy: &'a Policy,
    pub options: CompileOptions,
    /// In it `{}`, and the variable FRIT_MODEL, stand for the artifact.
    pub command: &'a str,
    pub progress: &'a Progress,
}

impl Search<'_> {
    fn compile(&self, options: CompileOptions) -> Result<LoadedModel> {
        match self.policy.open(self.model, options.clone(), self.progress)? {
            Some(loaded) => Ok(loaded),
            None => Ok(model_source::compile_with(self.model, options, &mut |s| self.progress.stage(s))?),
        }
    }
    /// Whether the command accepts the model compiled with these options.
    fn accepts(&self, options: CompileOptions) -> Result<bool> {
        let loaded = self.compile(options)?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("model.frit");
        frit_plan::format::write(&file, &loaded.plan, &*loaded.weights, &mut |_, _| {})?;
        let line = self.command.replace("{}", &file.to_string_lossy());
        let done = Command::new("sh").arg("-c").arg(&line).env("FRIT_MODEL", &file).status();
        Ok(done.with_context(|| format!("`{line}` could not be started"))?.success())
    }
    /// The user's options, changed; without the budget that they may set, which would choose fusions by itself.
    fn with(&self, change: impl FnOnce(&mut CompileOptions)) -> CompileOptions {
        let mut o = CompileOptions { peak: None, ..self.options.clone() };
        change(&mut o);
        o
    }
    fn say(&self, what: &str) {
        self.progress.clear();
        println!("{what}");
    }

    /// Searches for what makes the command fail.
    pub fn run(&self) -> Result<()> {
        // With decoded weights in memory a model may not fit its device: that says nothing of the fusions.
        let unfused = |ids: &[&str]| {
            let mut o = self.with(|_| ());
            for id in ids {
                o.fusion.switch_off(id);
            }
            o
        };
        let decoding: Vec<&str> = FusionOptions::IDS.into_iter().filter(|id| *id != "dequant").collect();
        if self.accepts(self.options.clone())? {
            self.say("the command succeeds with everything fused: nothing to search for");
            return Ok(());
        }
        let no_rewrites = |o: &mut CompileOptions| o.rewrite_fuel = Some(0);
        let mut apart = None;
        for ids in [&FusionOptions::IDS[..], &decoding] {
            let mut bare = unfused(ids);
            no_rewrites(&mut bare);
            if self.accepts(bare)? {
                apart = Some(unfused(ids));
                break;
            }
        }
        let Some(apart) = apart else { bail!("the command fails without any rewrite or fusion as well") };
        let usual = self.with(|_| ());
        for id in FusionOptions::IDS {
            let other = self.with(|o| _ = o.fusion.switch_off(id));
            if other != usual && self.accepts(other)? {
                self.say(&format!("the fusion `{id}` makes the command fail; `--disable {id}` leaves it out"));
                return Ok(());
            }
        }
        if self.accepts(self.with(no_rewrites))? {
            return self.rewrites(&usual);
        }
        if self.accepts(self.with(|o| o.fusion.fuel = Some(0)))? {
            return self.absorptions();
        }
        if !self.accepts(apart.clone())? {
            return self.rewrites(&apart);
        }
        self.say("no single kind of fusion, no absorption and no rewrite alone makes the command fail");
        Ok(())
    }

    /// The first rewrite with which the command fails; it succeeds without any.
    fn rewrites(&self, base: &CompileOptions) -> Result<()> {
        let at = |n: u64| CompileOptions { rewrite_fuel: Some(n), ..base.clone() };
        let applied = |n: u64| -> Result<_> { Ok(self.compile(at(n))?.plan.report.rewrites.clone()) };
        let total: u64 = applied(base.rewrite_fuel.unwrap_or(u64::MAX))?.values().sum();
        let (good, bad) = self.between(total, &at)?;
        let (before, after) = (applied(good)?, applied(bad)?);
        let rule = after.iter().find(|(r, n)| before.get(*r).copied().unwrap_or(0) < **n);
        self.say(&format!(
            "rewrite {bad} of {total}, an application of `{}`, makes the command fail; --rewrite-fuel {good} stops before it",
            rule.map_or("?", |(r, _)| r.as_str())
        ));
        Ok(())
    }

    /// The first absorption of an operation with which the command fails; it succeeds without any. Every layer is fused
    /// by itself, so that each absorption counts once, and the greedy regions stand.
    fn absorptions(&self) -> Result<()> {
        let at = |n: u64| {
            self.with(|o| {
                o.outline = false;
                o.fusion.fuel = Some(n);
            })
        };
        let plan = |n: u64| -> Result<_> { Ok(self.compile(at(n))?.plan) };
        let mut total = 1;
        let most = self.options.fusion.fuel.unwrap_or(MOST_FUEL);
        while total < most && !stopped(&*plan(total)?).is_empty() {
            total = (2 * total).min(most);
        }
        if self.accepts(at(total))? {
            let whole = self.accepts(self.with(|o| o.outline = false))?;
            self.say(match whole {
                true => "the command fails where layers that repeat are fused once; `--loop unroll` fuses each by itself",
                false => "the command fails with the regions that the search of windows finds, and with none that are made one by one",
            });
            return Ok(());
        }
        let (good, bad) = self.between(total, &at)?;
        let (before, after) = (stopped(&*plan(good)?), stopped(&*plan(bad)?));
        self.say(&format!(
            "absorption {bad} makes the command fail; --fusion-fuel {good} --loop unroll stops before it in every program"
        ));
        let mut told = "";
        for [program, from, to] in before.iter().filter(|e| !after.contains(e)) {
            if told != program {
                println!("  {program}: {from} -> {to}");
            }
            told = program;
        }
        Ok(())
    }

    /// The last number that the command accepts and the first that it does not, of `0..=total`.
    fn between(&self, total: u64, at: &dyn Fn(u64) -> CompileOptions) -> Result<(u64, u64)> {
        let (mut good, mut bad) = (0, total);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if self.accepts(at(middle))? { good = middle } else { bad = middle }
        }
        Ok((good, bad))
    }
}

/// Program, producer and consumer of the edges that fuel alone keeps apart.
fn stopped(plan: &Plan) -> Vec<[String; 3]> {
    let phases = plan.report.phases.iter();
    let edges = phases.flat_map(|p| p.refused.iter().map(move |e| (p, e)));
    edges.filter(|(_, e)| e.detail == SPENT).map(|(p, e)| [p.program.clone(), e.from.clone(), e.to.clone()]).collect()
}
