//! Bytes, fast memory and work of a group of stages that run together.

use super::{ELEMENT_BYTES, Stage, count, needs_of};
use serde::Serialize;
use std::ops::Range;

/// What becomes of intermediate values that two tiles need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// Each tile computes them, and reads what they are made of.
    Recompute,
    /// Tiles run row by row, and the lines that the next one needs stay in fast memory.
    Reuse,
}

/// Stages that run together on tiles of the last one's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Which stages of the chain.
    pub stages: Range<usize>,
    /// Rows and columns of a tile of the last stage's places.
    pub tile: [u64; 2],
    /// What becomes of what tiles have in common.
    pub overlap: Overlap,
}

/// What a group costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Bytes of feature maps read.
    pub read_bytes: u64,
    /// Bytes of feature maps written.
    pub written_bytes: u64,
    /// Bytes of weights, once.
    pub weight_bytes: u64,
    /// Bytes of fast memory: with recomputation the input and the output of a stage that lie there together, at most; with
    /// reuse the lines of every stage's padded input that two rows of windows share.
    pub footprint_bytes: u64,
    /// Multiplications.
    pub work: u64,
}

impl Cost {
    /// Bytes of feature maps.
    pub fn traffic_bytes(&self) -> u64 {
        self.read_bytes.saturating_add(self.written_bytes)
    }
    pub(super) fn plus(self, o: Cost) -> Cost {
        Cost {
            read_bytes: self.read_bytes.saturating_add(o.read_bytes),
            written_bytes: self.written_bytes.saturating_add(o.written_bytes),
            weight_bytes: self.weight_bytes.saturating_add(o.weight_bytes),
            footprint_bytes: self.footprint_bytes.max(o.footprint_bytes),
            work: self.work.saturating_add(o.work),
        }
    }
}

/// Along one axis, for every value of the group: coordinates summed over tiles, of all tiles together, and most of a tile.
struct Along {
    summed: Vec<u64>,
    distinct: Vec<u64>,
    most: Vec<u64>,
}

fn along(chain: &[Stage], axis: usize, tile: u64) -> Along {
    let places = chain.last().map_or(0, |s| s.axes[axis].places());
    let values = chain.len() + 1;
    let mut a = Along { summed: vec![0; values], distinct: vec![0; values], most: vec![0; values] };
    let mut lo = 0;
    while lo < places {
        let hi = (lo + tile.max(1)).min(places);
        for (i, needed) in needs_of(chain, axis, lo..hi).iter().enumerate() {
            let n = count(needed);
            a.summed[i] += n;
            a.most[i] = a.most[i].max(n);
        }
        lo = hi;
    }
    for (n, needed) in a.distinct.iter_mut().zip(needs_of(chain, axis, 0..places)) {
        *n = count(&needed);
    }
    a
}

/// What a group of a chain costs; nothing for a range outside of it.
pub fn cost(chain: &[Stage], group: &Group) -> Cost {
    let Some(stages) = chain.get(group.stages.clone()) else { return Cost::default() };
    let (Some(first), Some(last)) = (stages.first(), stages.last()) else { return Cost::default() };
    let axes = [0, 1].map(|axis| along(stages, axis, group.tile[axis]));
    let computed = |i: usize| match group.overlap {
        Overlap::Recompute => axes[0].summed[i].saturating_mul(axes[1].summed[i]),
        Overlap::Reuse => axes[0].distinct[i] * axes[1].distinct[i],
    };
    // Value i is the input of stage i; its channels are those of that input, the last value's those of the output.
    let channels = |i: usize| stages.get(i).map_or(last.channels[1], |s| s.channels[0]);
    let footprint = match group.overlap {
        Overlap::Recompute => {
            let held = |i: usize| match i {
                0 => 0,
                _ if i == stages.len() => 0,
                _ => channels(i) * axes[0].most[i] * axes[1].most[i],
            };
            (0..stages.len()).map(|i| held(i).saturating_add(held(i + 1))).max().unwrap_or(0)
        }
        Overlap::Reuse => stages.iter().map(lines).fold(0, u64::saturating_add),
    };
    let weights = stages.iter().map(|s| s.weights).fold(0, u64::saturating_add);
    let work = stages.iter().enumerate().map(|(i, s)| s.work().saturating_mul(computed(i + 1)));
    Cost {
        read_bytes: computed(0).saturating_mul(first.channels[0] * ELEMENT_BYTES),
        written_bytes: last.elements()[1] * ELEMENT_BYTES,
        weight_bytes: weights.saturating_mul(ELEMENT_BYTES),
        footprint_bytes: footprint.saturating_mul(ELEMENT_BYTES),
        work: work.fold(0, u64::saturating_add),
    }
}

/// Elements of the lines of a stage's padded input that the windows of two neighbouring rows share.
fn lines(s: &Stage) -> u64 {
    let [rows, columns] = &s.axes;
    let shared = rows.reach().saturating_sub(rows.stride);
    s.channels[0] * shared * (columns.extent + columns.padding[0] + columns.padding[1])
}

/// Bytes of feature maps when every convolution runs by itself and computes so many output channels at a time, reading its
/// input again for each block of them (Zhang et al., "Optimizing FPGA-based accelerator design for deep convolutional
/// neural networks", 2015). Poolings run where the values pass by: a convolution writes its output before pooling, and
/// the next one reads what is left of it.
pub fn blocked_bytes(chain: &[Stage], channels_at_once: u64) -> u64 {
    let each = chain.iter().filter(|s| s.weights > 0).map(|s| {
        let [input, output] = s.elements();
        input * s.channels[1].div_ceil(channels_at_once.max(1)) + output
    });
    each.sum::<u64>() * ELEMENT_BYTES
}
