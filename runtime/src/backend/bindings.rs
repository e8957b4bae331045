//! The bindings that every generated kernel has.
//!
//! Group 0 holds, numbered from 0: one binding for each distinct space of the kernel's arguments in order of first
//! occurrence, where every [`Space::Weight`] argument counts by itself; then the uniform `record`, the element offset of
//! each argument in its binding; then the uniform `sizes`, the plan's table of sizes.

use crate::{Error, Result};
use frit_kernels::emit::Language;
use frit_kernels::spec::{KernelSpec, Space};
use frit_kernels::target::Tier;
use frit_plan::{Kernel, Variant};

/// Bytes of the table of sizes.
pub(crate) const SIZES_BYTES: u64 = 64;

/// One binding of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A storage buffer: that of this argument.
    Storage { arg: usize, written: bool },
    /// The step's record.
    Record,
    /// The table of sizes.
    Sizes,
}

/// The bindings of a kernel in order.
pub(crate) fn slots(spec: &KernelSpec) -> Vec<Slot> {
    let mut seen: Vec<Space> = Vec::new();
    let mut out = Vec::new();
    for (i, a) in spec.args.iter().enumerate() {
        if a.space != Space::Weight {
            if seen.contains(&a.space) {
                continue;
            }
            seen.push(a.space);
        }
        let written = match a.space {
            Space::Arena | Space::Ints => true,
            Space::Weight | Space::Side => false,
            Space::Kv(_) => spec.args.iter().any(|b| b.space == a.space && b.written),
        };
        out.push(Slot::Storage { arg: i, written });
    }
    out.extend([Slot::Record, Slot::Sizes]);
    out
}

/// The text of a kernel that suits `tier`: every variant in the tier's language is right, one is the faster.
pub(crate) fn variant(kernel: &Kernel, tier: Tier) -> Result<&Variant> {
    let readable = |v: &&Variant| v.tier.language() == tier.language();
    kernel.variant(tier).or(kernel.variants.iter().find(readable)).ok_or_else(|| {
        let (backend, language) = match tier.language() {
            Language::Wgsl => ("wgpu", "WGSL"),
            Language::Ptx => ("cuda", "PTX"),
        };
        Error::Kernel { backend, kernel: kernel.name.clone(), reason: format!("the plan holds no {language} for it") }
    })
}
