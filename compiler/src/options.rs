//! How a model is compiled: what fusion and rewriting may do, and for which devices texts are made.

use crate::fusion::FusionOptions;
use crate::passes;
use frit_kernels::spec::KernelSpec;
use frit_kernels::target::{Capabilities, Tier};
use std::collections::BTreeMap;

/// How to compile.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileOptions {
    /// What fusion may do.
    pub fusion: FusionOptions,
    /// Kernel texts are made for these; the CPU backend needs none.
    pub targets: Vec<Capabilities>,
    /// Make every text that a kernel can have, also where another one for the same device was measured to be faster.
    pub every_text: bool,
    /// Fuse equal layers once; the plan is the same without, only later.
    pub outline: bool,
    /// Passes left out, by name.
    pub skip_passes: Vec<String>,
    /// How many rewrites are applied at most, over all programs in their order.
    pub rewrite_fuel: Option<u64>,
    /// Rules left out, by name.
    pub disabled_rules: Vec<String>,
    /// Check every rewrite and every kernel on random operands, with at most this many evaluations of an element or an
    /// expression for each of the two. Work is limited and not time, so that a model has one plan on every machine.
    pub validate: Option<u64>,
    /// Write values over inputs that die where alias contracts allow it.
    pub in_place: bool,
    /// Do without kinds of fusion that would take memory beyond a budget.
    pub peak: Option<PeakBudget>,
    /// For tests of validation: damages kernels as they are built.
    #[doc(hidden)]
    pub plant: Plant,
}

/// The memory that the values of a run may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeakBudget {
    /// Bytes of the program that takes most; weights and caches are not among them.
    pub bytes: u64,
    /// Sizes by name; one that is not named counts at its largest, or at 1 where nothing bounds it.
    pub at: BTreeMap<String, u64>,
}

/// A fault to plant in kernels; equal to any other.
#[doc(hidden)]
#[derive(Clone, Copy, Default)]
pub struct Plant(pub Option<fn(&mut KernelSpec)>);

impl PartialEq for Plant {
    fn eq(&self, _: &Plant) -> bool {
        true
    }
}

impl std::fmt::Debug for Plant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plant({})", self.0.is_some())
    }
}

impl CompileOptions {
    /// Evaluations that validation makes at most, unless told otherwise: enough for all of SmolLM2-135M.
    pub const VALIDATION_BUDGET: u64 = 4_000_000;
    /// Names of everything that [`CompileOptions::disable`] switches off: kinds of fusion and rules of rewrites.
    pub fn ids() -> Vec<&'static str> {
        FusionOptions::IDS.into_iter().chain(passes::rule_names()).collect()
    }
    /// Switches one fusion or one rule off; `false` for a name that is not in [`CompileOptions::ids`].
    pub fn disable(&mut self, id: &str) -> bool {
        let rule = passes::rule_names().contains(&id);
        if rule {
            self.disabled_rules.push(id.into());
        }
        rule || self.fusion.switch_off(id)
    }
    /// Switches something off by its text: `ID`, `ID@ORIGIN` where the origin contains a text, `@ORIGIN` for every fusion
    /// there (all but `dequant`), or `FROM:TO` for one edge.
    ///
    /// # Errors
    /// [`SwitchError`] for an id that does not exist, and for a place without a text.
    pub fn switch_off(&mut self, text: &str) -> Result<(), SwitchError> {
        let place = || SwitchError::NoPlace { text: text.into() };
        match (text.split_once('@'), text.split_once(':')) {
            (Some((id, origin)), _) if !id.contains(':') => {
                if origin.is_empty() {
                    return Err(place());
                }
                if id.is_empty() {
                    self.fusion.no_fuse.push(origin.into());
                } else if FusionOptions::IDS.contains(&id) {
                    self.fusion.off_at.push((id.into(), origin.into()));
                } else if passes::rule_names().contains(&id) {
                    self.disabled_rules.push(text.into());
                } else {
                    return Err(SwitchError::unknown(id));
                }
            }
            (_, Some((from, to))) => {
                if from.is_empty() || to.is_empty() {
                    return Err(place());
                }
                self.fusion.off_edges.push((from.into(), to.into()));
            }
            _ if self.disable(text) => {}
            _ => return Err(SwitchError::unknown(text)),
        }
        Ok(())
    }
}

/// Why nothing is switched off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// No fusion and no rule has this name.
    #[error("there is no fusion `{id}`{}", .near.first().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    Unknown {
        /// What was asked for.
        id: String,
        /// Names that are close to it, the closest first.
        near: Vec<&'static str>,
    },
    /// A place or an edge that names nothing.
    #[error("`{text}` names no place")]
    NoPlace {
        /// What was asked for.
        text: String,
    },
}

impl SwitchError {
    fn unknown(id: &str) -> Self {
        let mut near: Vec<(usize, &'static str)> = CompileOptions::ids()
            .into_iter()
            .map(|name| (distance(id, name), name))
            .filter(|(d, name)| *d <= 2.max(name.len() / 4))
            .collect();
        near.sort_unstable();
        SwitchError::Unknown { id: id.into(), near: near.into_iter().map(|(_, name)| name).collect() }
    }
}

/// Letters to insert, drop or exchange to make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (above, y) in row.iter_mut().skip(1).zip(&b) {
            let best = (corner + usize::from(x != *y)).min(left + 1).min(*above + 1);
            corner = std::mem::replace(above, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

impl CompileOptions {
    /// Prices decisions for, and writes kernels for, these kinds of devices alone.
    pub fn only_for(&mut self, tiers: &[Tier]) {
        self.fusion.tiers.retain(|t| tiers.contains(t));
        self.targets.retain(|c| tiers.contains(&c.tier));
    }
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            fusion: FusionOptions::default(),
            targets: vec![
                Capabilities::webgpu(Tier::Cpu),
                Capabilities::webgpu(Tier::Gpu),
                Capabilities::cuda(),
                Capabilities::cuda_overlapping(),
                Capabilities::cuda_warpgroups(),
            ],
            every_text: false,
            outline: true,
            skip_passes: Vec::new(),
            rewrite_fuel: None,
            disabled_rules: Vec::new(),
            validate: Some(CompileOptions::VALIDATION_BUDGET),
            in_place: true,
            peak: None,
            plant: Plant::default(),
        }
    }
}
