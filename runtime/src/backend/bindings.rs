//! The bindings that every generated kernel has.
//!
//! Group 0 holds, numbered from 0: one binding for each distinct space of the kernel's arguments in order of first
//! occurrence, where every argument that is bound alone ([`Arg::is_bound_alone`](frit_kernels::spec::Arg::is_bound_alone))
//! counts by itself; then the uniform `record`, the element offset of
//! each argument in its binding; then the uniform `sizes`, the plan's table of sizes.

use crate::{Error, Result};
use frit_kernels::emit::Language;
use frit_kernels::ir::Texture;
use frit_kernels::spec::{KernelSpec, Space};
use frit_kernels::target::{Capabilities, Tier};
use frit_plan::{Kernel, Plan, Variant};

/// Bytes of the table of sizes.
pub(crate) const SIZES_BYTES: u64 = 64;

/// One binding of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A storage buffer: that of this argument.
    Storage { arg: usize, written: bool },
    /// A texture: the weight that is this argument.
    Texels { arg: usize, texture: Texture },
    /// The step's record.
    Record,
    /// The table of sizes.
    Sizes,
}

/// The bindings of a kernel as scheduled for `tier`, in order.
pub(crate) fn slots(spec: &KernelSpec, tier: Tier) -> Vec<Slot> {
    let texture = Capabilities::webgpu(tier).weight_texture(spec);
    let mut seen: Vec<Space> = Vec::new();
    let mut out = Vec::new();
    for (i, a) in spec.args.iter().enumerate() {
        if !a.is_bound_alone(tier) {
            if seen.contains(&a.space) {
                continue;
            }
            seen.push(a.space);
        }
        let written = match a.space {
            Space::Arena if a.is_half(tier) => a.written,
            Space::Arena | Space::Ints => true,
            Space::Weight | Space::Side => false,
            Space::Kv(_) => spec.args.iter().any(|b| b.space == a.space && b.written),
        };
        out.push(match (a.space, texture) {
            (Space::Weight, Some(texture)) => Slot::Texels { arg: i, texture },
            _ => Slot::Storage { arg: i, written },
        });
    }
    out.extend([Slot::Record, Slot::Sizes]);
    out
}

/// The tier whose kernels a device of `tier` runs: its own where the plan has all of them, else that of graphics cards,
/// which every device that reads WGSL runs.
pub(crate) fn tier_of(plan: &Plan, tier: Tier) -> Tier {
    let is_whole = plan.kernels.iter().all(|k| k.variant(tier).is_some());
    if is_whole || tier.language() != Language::Wgsl { tier } else { Tier::Gpu }
}

/// The text of a kernel for `tier`.
pub(crate) fn variant(kernel: &Kernel, tier: Tier) -> Result<&Variant> {
    kernel.variant(tier).ok_or_else(|| {
        let (backend, language) = match tier.language() {
            Language::Wgsl => ("wgpu", "WGSL"),
            Language::Ptx => ("cuda", "PTX"),
        };
        let reason = format!("the plan holds no {language} of tier {} for it", tier.name());
        Error::Kernel { backend, kernel: kernel.name.clone(), reason }
    })
}
