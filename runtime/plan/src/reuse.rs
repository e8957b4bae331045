//! Which values are written over an input of their step, and which of the conditions forbids it elsewhere.

use crate::{BufferRef, Plan, Program};
use frit_kernels::dim::product;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::{Arg, ArgId, Space};
use serde::Serialize;

/// The code under which a reuse of storage is refused.
pub const ALIAS: &str = "L16-ALIAS";

/// A condition for writing a value over an input, by its number. The sixth, that both are one binding, always holds: a
/// kernel binds the arena once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AliasPoint {
    /// 1: the step is the last one that needs the input.
    LastUse,
    /// 2: the input does not leave the program.
    Kept,
    /// 3: by the kernel's contract every element is read where and before it is written.
    Contract,
    /// 4: no other result of the step lies there.
    Others,
    /// 5: both have equally many elements.
    Extent,
}

impl AliasPoint {
    /// Its number.
    pub const fn number(self) -> u8 {
        match self {
            AliasPoint::LastUse => 1,
            AliasPoint::Kept => 2,
            AliasPoint::Contract => 3,
            AliasPoint::Others => 4,
            AliasPoint::Extent => 5,
        }
    }
    /// What does not hold, of this input.
    pub fn failed(self, input: &str) -> String {
        match self {
            AliasPoint::LastUse => format!("{input} is needed by a later step"),
            AliasPoint::Kept => format!("{input} leaves the program"),
            AliasPoint::Contract => {
                format!("the kernel may read an element of {input} after it writes that of the result")
            }
            AliasPoint::Others => format!("another result of the step lies where {input} lies"),
            AliasPoint::Extent => format!("{input} has another number of elements"),
        }
    }
}

/// A value that a step makes beside one that it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// The step.
    pub step: u32,
    /// The value written, of the program's values.
    pub output: u32,
    /// The value read.
    pub input: u32,
    /// Whether the one lies where the other lies.
    pub taken: bool,
    /// Conditions that do not hold; none where the reuse is taken, or is of no use.
    pub failed: Vec<AliasPoint>,
}

impl Plan {
    /// Every reuse of an input's storage for a result that is possible in the program's float arena, in the order of steps.
    pub fn reuses(&self, program: &Program) -> Vec<Reuse> {
        let mut out = Vec::new();
        for (at, step) in program.steps.iter().enumerate() {
            let Some(kernel) = self.kernels.get(step.kernel as usize) else { continue };
            let bound = |written: bool| {
                let args = kernel.spec.args.iter().zip(&step.args).enumerate();
                args.filter_map(move |(i, (a, b))| Some((ArgId(i as u16), value(a, b, written)?))).collect::<Vec<_>>()
            };
            let outputs = bound(true);
            for (input_arg, input) in bound(false) {
                for (output_arg, output) in &outputs {
                    let permitted = kernel.spec.aliases.iter().any(|a| (a.output, a.input) == (*output_arg, input_arg));
                    let others = outputs.iter().map(|o| o.1).filter(|o| o != output);
                    if input != *output {
                        out.extend(program.reuse(at as u32, [*output, input], permitted, others.collect()));
                    }
                }
            }
        }
        out
    }
}

/// The float value that an argument is bound to.
fn value(arg: &Arg, bound: &BufferRef, written: bool) -> Option<u32> {
    match bound {
        BufferRef::Value(v) if arg.written == written && arg.space == Space::Arena => Some(*v),
        _ => None,
    }
}

impl Program {
    fn reuse(&self, step: u32, [output, input]: [u32; 2], permitted: bool, others: Vec<u32>) -> Option<Reuse> {
        let get = |v: u32| self.values.get(v as usize).filter(|d| d.storage == Storage::F32);
        let (o, i) = (get(output)?, get(input)?);
        let leaves = self.outputs.iter().any(|p| p.buffer == BufferRef::Value(input));
        let there = |v: &u32| get(*v).is_some_and(|d| d.slot == i.slot && d.live.0 == step);
        let points = [
            (AliasPoint::LastUse, i.live.1 == step),
            (AliasPoint::Kept, !leaves),
            (AliasPoint::Contract, permitted),
            (AliasPoint::Others, !others.iter().any(there)),
            (AliasPoint::Extent, product(&o.shape) == product(&i.shape)),
        ];
        let failed = points.into_iter().filter(|(_, holds)| !holds).map(|(p, _)| p).collect();
        Some(Reuse { step, output, input, taken: o.slot == i.slot && o.live.0 == step, failed })
    }
}
