//! Values that every reader rounds to 16 bits, and that a device may therefore keep so: `half-rows`.
//!
//! Matrix units multiply 16-bit numbers. Where all that read a value are products that round it for them and use it for
//! nothing else, the kernel that makes it may round it as well: not a bit of any result changes, half the bytes move, and
//! the product copies its left side as it lies.

use super::Held;
use crate::fusion::FusionOptions;
use crate::fusion::outline::Built;
use crate::graph::Graph;
use frit_kernels::dtype::HalfFormat;
use frit_kernels::spec::{ArgId, KernelSpec};
use frit_kernels::templates;
use std::collections::{HashMap, HashSet};

/// Says so in the kernels that write and read such values; those that differ by it alone become several. Values that enter
/// or leave the program stay as they are, and no other value shares their memory by an alias contract.
pub(super) fn mark(
    graph: &Graph,
    built: &mut [Built],
    specs: &[KernelSpec],
    options: &FusionOptions,
) -> Vec<KernelSpec> {
    let formats = formats(graph, built, specs, options);
    let mut out: Vec<KernelSpec> = Vec::with_capacity(specs.len());
    let mut known: HashMap<(u32, Vec<Option<HalfFormat>>), u32> = HashMap::new();
    for b in built {
        let of = |o| Held::of(o).and_then(|held| formats.get(&held)).copied();
        let kept: Vec<Option<HalfFormat>> = b.operands.iter().map(of).collect();
        let Some(spec) = specs.get(b.kernel as usize) else { continue };
        b.kernel = *known.entry((b.kernel, kept)).or_insert_with_key(|(_, kept)| {
            let mut spec = spec.clone();
            for (a, format) in spec.args.iter_mut().zip(kept) {
                a.rounded = *format;
            }
            let is_half = |id: ArgId| kept.get(id.0 as usize).copied().flatten().is_some();
            spec.aliases.retain(|a| !is_half(a.output) && !is_half(a.input));
            out.push(spec);
            out.len() as u32 - 1
        });
    }
    out
}

/// The formats by value.
fn formats(graph: &Graph, built: &[Built], specs: &[KernelSpec], options: &FusionOptions) -> HashMap<Held, HalfFormat> {
    let ports = graph.inputs.iter().map(|i| i.value).chain(graph.outputs.iter().map(|o| o.value));
    let mut refused: HashSet<Held> = ports.map(Held::Value).collect();
    let mut formats: HashMap<Held, HalfFormat> = HashMap::new();
    let mut written: HashSet<Held> = HashSet::new();
    let mut rounding: HashMap<u32, Vec<Option<HalfFormat>>> = HashMap::new();
    for b in built {
        let Some(spec) = specs.get(b.kernel as usize) else { continue };
        let rounds = rounding
            .entry(b.kernel)
            .or_insert_with(|| (0..spec.args.len() as u16).map(|i| templates::rounds(spec, ArgId(i))).collect());
        for ((o, a), rounds) in b.operands.iter().zip(&spec.args).zip(rounds) {
            let Some(held) = Held::of(o) else { continue };
            if a.written {
                written.insert(held);
                continue;
            }
            match (*rounds, formats.get(&held)) {
                (Some(format), None) => {
                    formats.insert(held, format);
                }
                (Some(format), Some(other)) if format == *other => {}
                _ => {
                    refused.insert(held);
                }
            }
        }
    }
    let is_off = |held: &Held| {
        let (Held::Value(v) | Held::Gained(v)) = held else { return true };
        !options.half_rows || options.place_off("half-rows", &graph.node(*v).origin).is_some()
    };
    formats.retain(|held, _| written.contains(held) && !refused.contains(held) && !is_off(held));
    formats
}
