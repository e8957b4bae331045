//! Graph to graph. Each pass is named, says what it needs and what it leaves, and edits through
//! [`crate::graph::patch`] alone. Nothing here knows a file format or a target.

pub mod alike;
pub mod approximate;
pub mod canonicalize;
pub mod constant_fold;
pub mod cse;
pub mod dce;
mod pattern;
pub mod recognize;
mod rewrite;
pub mod shape_fold;
pub mod specialize;
pub mod split_keys;
pub mod validate;

use crate::error::{Error, Result};
use crate::graph::patch::{Fuel, Log};
use crate::graph::{Graph, Tables, ValueId, text, verify};
use crate::numeric::{NumericMode, ProofClass};
use frit_kernels::dim::Bounds;
use indexmap::IndexMap;
use std::collections::{BTreeMap, HashSet};
use validate::Validator;

/// Whether a pass changed the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It did.
    Yes,
    /// The graph is as it was.
    No,
}

impl Changed {
    /// `Yes` where `c` holds.
    pub fn from(c: bool) -> Self {
        if c { Changed::Yes } else { Changed::No }
    }
}

/// What a pass works with beside the graph.
pub struct Ctx<'a> {
    /// Weights, cache slots, states, sizes of the model.
    pub tables: &'a Tables,
    /// What is known of sizes.
    pub bounds: Bounds,
    /// Rules applied by the running pass, and the fuel left.
    pub log: Log,
    /// Names of passes whose fixpoint hit its bound.
    pub unfinished: Vec<&'static str>,
    /// Which classes of rules may be applied.
    pub mode: NumericMode,
    /// Checks applications.
    pub validator: Validator,
    /// Names of rules that are switched off.
    pub disabled: Vec<String>,
    /// Places where a rule matched that the mode does not allow.
    pub refused: BTreeMap<(&'static str, ValueId), ProofClass>,
    /// Places where the validator found a rule wrong.
    pub wrong: HashSet<(&'static str, ValueId)>,
    /// Left sides that matched, applied or not.
    pub tried: u64,
}

impl<'a> Ctx<'a> {
    /// A context over tables, with unlimited fuel.
    pub fn new(tables: &'a Tables) -> Self {
        Ctx {
            tables,
            bounds: verify::size_bounds(tables),
            log: Log::default(),
            unfinished: Vec::new(),
            mode: NumericMode::default(),
            validator: Validator::off(),
            disabled: Vec::new(),
            refused: BTreeMap::new(),
            wrong: HashSet::new(),
            tried: 0,
        }
    }
}

/// A step from graph to graph.
pub trait Pass {
    /// Its stable kebab-case name.
    fn name(&self) -> &'static str;
    /// Runs it.
    ///
    /// # Errors
    /// A broken invariant of the compiler.
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed>;
}

/// What one pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassRun {
    /// Its name.
    pub name: &'static str,
    /// Whether it changed the graph.
    pub changed: Changed,
    /// Nodes after it.
    pub nodes: usize,
    /// Applications by rule.
    pub rules: IndexMap<&'static str, u64>,
}

/// What a pipeline did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassLog {
    /// Passes in the order they ran; one that runs again is listed again.
    pub passes: Vec<PassRun>,
    /// Passes whose fixpoint hit its bound.
    pub unfinished: Vec<&'static str>,
    /// Places where a rule matched that the numeric mode does not allow, by rule.
    pub refused: BTreeMap<&'static str, (ProofClass, u64)>,
    /// Left sides that matched, applied or not.
    pub tried: u64,
}

impl PassLog {
    /// Applications of a rule in all passes.
    pub fn count(&self, rule: &str) -> u64 {
        self.passes.iter().filter_map(|p| p.rules.get(rule)).sum()
    }
    /// Applications of all rules.
    pub fn total(&self) -> u64 {
        self.passes.iter().flat_map(|p| p.rules.values()).sum()
    }
}

/// After which passes the text of the graph is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PrintAfter {
    /// None.
    #[default]
    Nothing,
    /// Every one.
    All,
    /// The one of that name.
    Pass(String),
}

/// How a pipeline runs.
pub struct Options<'h> {
    /// Verify the graph after each pass.
    pub verify_each: bool,
    /// Passes left out.
    pub skip: Vec<String>,
    /// The last pass that runs.
    pub stop_after: Option<String>,
    /// How many rewrites are applied at most.
    pub fuel: Fuel,
    /// Which classes of rules may be applied.
    pub mode: NumericMode,
    /// Names of rules that are switched off.
    pub disabled: Vec<String>,
    /// Checks applications; comes back from the run with its counts.
    pub validator: Validator,
    /// After which passes `show` is called.
    pub print_after: PrintAfter,
    /// Takes the name of a pass and the text of the graph after it.
    pub show: Option<&'h mut dyn FnMut(&str, &str)>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            verify_each: cfg!(debug_assertions),
            skip: Vec::new(),
            stop_after: None,
            fuel: Fuel::UNLIMITED,
            mode: NumericMode::default(),
            disabled: Vec::new(),
            validator: Validator::off(),
            print_after: PrintAfter::Nothing,
            show: None,
        }
    }
}

/// A flat list of passes and how they run.
pub struct PassManager<'h> {
    /// The passes in order.
    pub passes: Vec<Box<dyn Pass>>,
    /// How they run.
    pub options: Options<'h>,
}

impl<'h> PassManager<'h> {
    /// The standard list.
    ///
    /// Sizes that are fixed become numbers first, since canonical forms depend on extents; recognition needs canonical
    /// primitives without duplicates; what it leaves is brought into normal form again.
    pub fn standard(fixed: &[(String, u64)]) -> Self {
        let mut passes: Vec<Box<dyn Pass>> = vec![
            Box::new(specialize::Specialize { fixed: fixed.to_vec() }),
            Box::new(dce::Dce),
            Box::new(canonicalize::Canonicalize),
            Box::new(constant_fold::ConstantFold),
            Box::new(shape_fold::ShapeFold),
            Box::new(canonicalize::Canonicalize),
            Box::new(cse::Cse),
        ];
        for r in recognize::RECOGNIZERS {
            passes.push(Box::new(r));
        }
        let rest: [Box<dyn Pass>; 7] = [
            Box::new(approximate::Approximate),
            Box::new(canonicalize::Canonicalize),
            Box::new(constant_fold::ConstantFold),
            Box::new(shape_fold::ShapeFold),
            Box::new(canonicalize::Canonicalize),
            Box::new(cse::Cse),
            Box::new(dce::Dce),
        ];
        passes.extend(rest);
        PassManager { passes, options: Options::default() }
    }
    /// What brings attention into parts of its keys, in a graph that the standard list left.
    pub fn split_keys() -> Self {
        PassManager { passes: vec![Box::new(split_keys::SplitKeys)], options: Options::default() }
    }
    /// Runs the passes.
    ///
    /// # Errors
    /// [`Error::Internal`] with the pass that failed or left a graph that breaks a rule of the IR.
    pub fn run(&mut self, graph: &mut Graph, tables: &Tables) -> Result<PassLog> {
        let mut out = PassLog::default();
        let mut ctx = Ctx::new(tables);
        ctx.log.fuel = self.options.fuel;
        ctx.mode = self.options.mode;
        ctx.disabled.clone_from(&self.options.disabled);
        ctx.validator = std::mem::replace(&mut self.options.validator, Validator::off());
        if self.options.verify_each {
            check("ingest", graph, tables)?;
        }
        for pass in &self.passes {
            let name = pass.name();
            if self.options.skip.iter().any(|s| s == name) {
                continue;
            }
            let changed = pass.run(graph, &mut ctx)?;
            let rules = std::mem::take(&mut ctx.log.rules);
            out.passes.push(PassRun { name, changed, nodes: graph.len(), rules });
            if self.options.verify_each {
                check(name, graph, tables)?;
            }
            let wanted = match &self.options.print_after {
                PrintAfter::Nothing => false,
                PrintAfter::All => true,
                PrintAfter::Pass(p) => p == name,
            };
            if let (true, Some(show)) = (wanted, self.options.show.as_mut()) {
                show(name, &text::print(graph));
            }
            if self.options.stop_after.as_deref() == Some(name) {
                break;
            }
        }
        out.unfinished = ctx.unfinished;
        out.tried = ctx.tried;
        for ((rule, _), class) in ctx.refused {
            out.refused.entry(rule).or_insert((class, 0)).1 += 1;
        }
        self.options.validator = ctx.validator;
        Ok(out)
    }
}

fn check(pass: &'static str, graph: &Graph, tables: &Tables) -> Result<()> {
    verify::verify(graph, Some(tables)).map_err(|faults| {
        let list: Vec<String> = faults.iter().map(|f| f.to_string()).collect();
        Error::Internal { pass, fault: format!("{}\n{}", list.join("\n"), text::print(graph)) }
    })
}

/// Names of the rules that may be switched off: all that are applied by sweeps.
pub fn rule_names() -> Vec<&'static str> {
    let lists = [canonicalize::rules(), constant_fold::RULES.to_vec(), shape_fold::RULES.to_vec()];
    let recognisers = recognize::RECOGNIZERS.iter().flat_map(|r| r.rule_names());
    let mut names: Vec<&'static str> = lists.iter().flatten().map(|r| r.name).chain(recognisers).collect();
    names.extend([approximate::RULES[0].name, split_keys::RULES[0].name]);
    names.sort_unstable();
    names.dedup();
    names
}

/// Runs the standard list on a graph in which `fixed` sizes are replaced by their value.
///
/// # Errors
/// [`Error::Internal`] with the pass that broke a rule of the IR.
pub fn run_pipeline(graph: &mut Graph, tables: &Tables, fixed: &[(String, u64)]) -> Result<PassLog> {
    PassManager::standard(fixed).run(graph, tables)
}
