//! [`Plan`] and [`Program`].

use crate::{
    BufferRef, FusionReport, Kernel, KvSlotDecl, ModelInfo, Port, SlotLayout, StateDecl, ValueDecl, WeightDecl,
};
use frit_kernels::dim::{Dim, DimError, Sym};
use frit_kernels::dtype::HalfFormat;
use frit_kernels::target::Tier;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the plan's types; another number is refused on load.
pub const PLAN_VERSION: u32 = 6;

/// Names of the sizes that decoders and encoders use.
pub mod sizes {
    /// Sequences run together.
    pub const BATCH: &str = "B";
    /// Tokens of each sequence in this run.
    pub const TOKENS: &str = "S";
    /// Tokens already in the cache.
    pub const PAST: &str = "P";
    /// Tokens the cache has room for.
    pub const CAPACITY: &str = "T";
    /// Positions that rotary tables reach, where a cache has room for fewer tokens than there are positions.
    pub const POSITIONS: &str = "N";
    /// Inner values of feed-forward parts that are computed, where a run chooses.
    pub const ACTIVE: &str = "F";
    /// Tokens of each sequence that an encoder reads.
    pub const SOURCE: &str = "X";
}

/// Outputs whose name begins so tell which part of a layer ran, for every token: I32 `[B, S]`, 1 or 0. What follows is
/// the part and the layer, such as `ffn.3`, `layer.7` or `exit.8`. They steer [`Step::when`] and are no results.
pub const RAN: &str = "ran:";

/// A dynamic size. Its position in [`Plan::sizes`] is its index in the table that kernels read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeDecl {
    /// The symbol.
    pub name: String,
    /// Smallest value.
    pub min: u64,
    /// Largest value, where one is known.
    pub max: Option<u64>,
}

/// A compiled model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Version of the compiler that made it.
    pub compiler: String,
    /// Facts about the model.
    pub model: ModelInfo,
    /// Dynamic sizes, at most 16.
    pub sizes: Vec<SizeDecl>,
    /// Constant tensors in the form kernels read.
    pub weights: Vec<WeightDecl>,
    /// Cache slots.
    pub kv_slots: Vec<KvSlotDecl>,
    /// Values that outlive a run.
    pub states: Vec<StateDecl>,
    /// Kernels, each once.
    pub kernels: Vec<Kernel>,
    /// Ways to run the model.
    pub programs: Vec<Program>,
    /// What was fused and why.
    pub report: FusionReport,
}

/// A straight list of launches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// `forward` (all outputs), `prefill` (last position), `decode` (one token a sequence, few sequences),
    /// `decode_wide` (one token, any number of sequences), `encode` (the encoder, which leaves its keys and values).
    /// `NAME@N` does what `NAME` does, for at most N rows, and `NAME+parts` with the keys of attention in parts
    /// ([`Plan::fitting`]).
    pub name: String,
    /// Sizes this program fixes, such as S = 1.
    pub fixed: Vec<(String, u64)>,
    /// Sizes this program bounds from above, such as B ≤ 4.
    pub at_most: Vec<(String, u64)>,
    /// Sums of sizes this program bounds from above, such as P + S ≤ 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<(Dim, u64)>,
    /// The program does what another one does, and better in some runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<Instead>,
    /// What goes in.
    pub inputs: Vec<Port>,
    /// What comes out.
    pub outputs: Vec<Port>,
    /// Intermediate values.
    pub values: Vec<ValueDecl>,
    /// Slots of the float arena.
    pub arena: SlotLayout,
    /// Slots of the integer arena (behind the states).
    pub ints: SlotLayout,
    /// Launches in order.
    pub steps: Vec<Step>,
}

/// Which runs take a program instead of another one. It is right for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instead {
    /// The other program.
    pub of: String,
    /// Keys that a row of queries sees at most.
    pub keys: Dim,
    /// On which devices, and from how many keys on.
    pub from: Vec<(Tier, u64)>,
}

impl Instead {
    /// From how many keys on a device of this tier takes the program.
    pub fn from(&self, tier: Tier) -> Option<u64> {
        self.from.iter().find(|(t, _)| *t == tier).map(|(_, keys)| *keys)
    }
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index of the kernel.
    pub kernel: u32,
    /// What each argument of the kernel's spec is bound to, in order.
    pub args: Vec<BufferRef>,
    /// Where it comes from, for people.
    pub label: String,
    /// The launch may be left out when every element of this integer value of the program is 0: nothing then reads
    /// what it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<u32>,
}

impl Plan {
    /// The program of that name.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|p| p.name == name)
    }
    /// All kernels in stable order: what each computes, how it is scheduled, and its text for each tier.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }
    /// Name and text of every kernel for a tier, in stable order: what a test of a model's kernels compares with its
    /// snapshots. Names, order and texts depend on the model and the compiler's version alone.
    pub fn texts(&self, tier: Tier) -> impl Iterator<Item = (&str, &str)> {
        self.kernels.iter().filter_map(move |k| Some((k.name.as_str(), k.variant(tier)?.text.as_str())))
    }
    /// The name of the program that does what `program` does for at most `rows` rows.
    pub fn bucket_name(program: &str, rows: u64) -> String {
        format!("{program}@{rows}")
    }
    /// The programs that do what the one of index `program` does, for fewer rows or with keys in parts.
    pub fn buckets(&self, program: usize) -> impl Iterator<Item = usize> {
        let prefix = self.programs.get(program).map(|p| Plan::bucket_name(&p.name, 0));
        let name = self.programs.get(program).map(|p| p.name.as_str());
        let is_bucket = move |p: &Program| {
            if p.instead.as_ref().is_some_and(|i| Some(i.of.as_str()) == name) {
                return true;
            }
            let stem = prefix.as_deref().and_then(|x| x.strip_suffix('0'));
            let rest = stem.and_then(|stem| p.name.strip_prefix(stem));
            rest.is_some_and(|r| r.parse::<u64>().is_ok())
        };
        self.programs.iter().enumerate().filter(move |(_, p)| is_bucket(p)).map(|(i, _)| i)
    }
    /// Whether a program serves some runs in place of another one.
    pub fn is_bucket(&self, program: &Program) -> bool {
        if program.instead.is_some() {
            return true;
        }
        let of = program.name.rsplit_once('@').filter(|(_, rows)| rows.parse::<u64>().is_ok());
        of.is_some_and(|(name, _)| self.program(name).is_some())
    }
    /// The program to run in place of the one of index `program` on a device of `tier` when the sizes are `values`: the
    /// one for fewest rows whose limits hold, or the one that takes so many keys in parts.
    pub fn fitting(&self, program: usize, values: &[u64], tier: Tier) -> usize {
        let get = |i: &usize| self.programs.get(*i);
        let holds = |i: &usize| {
            let limits = get(i).map(|p| p.limits.as_slice()).unwrap_or_default();
            limits.iter().all(|(sum, most)| self.eval(sum, values).is_ok_and(|v| v <= *most))
        };
        let pays = |i: &usize| {
            let instead = get(i).and_then(|p| p.instead.as_ref());
            instead.is_some_and(|x| {
                x.from(tier).is_some_and(|from| self.eval(&x.keys, values).is_ok_and(|keys| keys >= from))
            })
        };
        let least = |i: &usize| get(i).and_then(|p| p.limits.last()).map(|l| l.1);
        let (in_parts, fewer): (Vec<usize>, Vec<usize>) =
            self.buckets(program).partition(|i| get(i).is_some_and(|p| p.instead.is_some()));
        let fitting = fewer.into_iter().filter(holds).min_by_key(least).unwrap_or(program);
        let own = in_parts.into_iter().find(|i| fitting == program && pays(i));
        own.unwrap_or(fitting)
    }
    /// Bytes of the memory that a program's values live in, when the sizes of [`Plan::sizes`] have `values` but for those
    /// that the program fixes.
    ///
    /// # Errors
    /// [`DimError`] for an overflow.
    pub fn arena_bytes(&self, program: &Program, values: &[u64]) -> Result<u64, DimError> {
        let fixed = |name: &str| program.fixed.iter().find(|f| f.0 == name).map(|f| f.1);
        let at: Vec<u64> = self.sizes.iter().zip(values).map(|(s, v)| fixed(&s.name).unwrap_or(*v)).collect();
        let slots = program.arena.sizes.iter().chain(&program.ints.sizes);
        slots.map(|d| Ok(self.eval(d, &at)?.saturating_mul(4))).sum()
    }
    /// Values of a program that CUDA keeps in 16 bits, since all who read them round them to that format: their indices, in
    /// order.
    pub fn half_rows(&self, program: &Program) -> Vec<(u32, HalfFormat)> {
        let kernel = |s: &Step| self.kernels.get(s.kernel as usize).map(|k| k.spec.args.as_slice()).unwrap_or_default();
        let args = program.steps.iter().flat_map(|s| kernel(s).iter().zip(&s.args));
        let kept = args.filter_map(|(a, r)| match r {
            BufferRef::Value(v) => Some((*v, a.rounded?)),
            _ => None,
        });
        kept.collect::<BTreeMap<u32, HalfFormat>>().into_iter().collect()
    }
    /// The value of a size expression when the sizes of [`Plan::sizes`] have `values`.
    ///
    /// # Errors
    /// [`DimError`] for an unknown size or an overflow.
    pub fn eval(&self, d: &Dim, values: &[u64]) -> Result<u64, DimError> {
        let find = |s: &Sym| match s {
            Sym::Size(n) => {
                let i = self.sizes.iter().position(|z| *z.name == **n)?;
                values.get(i).and_then(|v| i64::try_from(*v).ok())
            }
            _ => None,
        };
        let v = d.eval(&find)?;
        u64::try_from(v).map_err(|_| DimError::Overflow(format!("{d} = {v}, a negative size")))
    }
}
