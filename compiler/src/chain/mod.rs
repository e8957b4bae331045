//! Chains of convolutions and poolings: what neighbours move, keep and compute when they run together, tile by tile.
//!
//! A tile of the last stage's output fixes which places of every stage in front of it are needed: places `p` read the
//! inputs `p·s + t·d − pad` for every tap t (Alwani et al., "Fused-layer CNN accelerators", MICRO 2016; Waeijen et al.,
//! "ConvFusion", 2021). Axes are independent of each other, so that needs are kept as one set of coordinates an axis, and
//! every count below is exact: strides larger than the kernel, dilation and borders included.
//!
//! Bytes are those of feature maps in F32 that cross the border of fast memory; weights are counted apart, once.

mod cost;
mod devices;
mod search;

pub use cost::{Cost, Group, Overlap, blocked_bytes, cost};
pub use devices::{Share, best_segments, shares};
pub use search::{Objective, Plan, search};

use serde::Serialize;
use std::ops::Range;

/// Bytes of an element.
pub const ELEMENT_BYTES: u64 = 4;

/// One axis of a stage's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Axis {
    /// Extent of the input.
    pub extent: u64,
    /// Taps of a window.
    pub taps: u64,
    /// Inputs from one place to the next.
    pub stride: u64,
    /// Inputs from one tap to the next.
    pub dilation: u64,
    /// Zeros in front of the input and behind it.
    pub padding: [u64; 2],
}

impl Axis {
    /// Inputs from the first tap of a window to its last.
    pub fn reach(&self) -> u64 {
        (self.taps.max(1) - 1) * self.dilation + 1
    }
    /// Places of the output.
    pub fn places(&self) -> u64 {
        let padded = self.extent + self.padding[0] + self.padding[1];
        padded.checked_sub(self.reach()).map_or(0, |room| room / self.stride.max(1) + 1)
    }
    /// Which inputs the marked places read.
    pub fn needs(&self, places: &[bool]) -> Vec<bool> {
        let mut needed = vec![false; self.extent as usize];
        for p in places.iter().enumerate().filter(|(_, marked)| **marked).map(|(p, _)| p as u64) {
            for t in 0..self.taps {
                let at = (p * self.stride + t * self.dilation).checked_sub(self.padding[0]);
                if let Some(n) = at.and_then(|at| needed.get_mut(at as usize)) {
                    *n = true;
                }
            }
        }
        needed
    }
}

/// A convolution, or a pooling: a convolution without weights in as many groups as channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Its name in reports.
    pub name: String,
    /// Channels of the input and of the output.
    pub channels: [u64; 2],
    /// Groups of channels that do not meet.
    pub groups: u64,
    /// Rows and columns.
    pub axes: [Axis; 2],
    /// Elements of its weights.
    pub weights: u64,
}

impl Stage {
    /// A square convolution with the same padding on all sides.
    pub fn conv(name: &str, channels: [u64; 2], extent: u64, taps: u64, stride: u64, padding: u64) -> Stage {
        let axis = Axis { extent, taps, stride, dilation: 1, padding: [padding; 2] };
        let weights = channels[0] * channels[1] * taps * taps;
        Stage { name: name.into(), channels, groups: 1, axes: [axis; 2], weights }
    }
    /// A square pooling without padding.
    pub fn pool(name: &str, channels: u64, extent: u64, taps: u64, stride: u64) -> Stage {
        let axis = Axis { extent, taps, stride, dilation: 1, padding: [0; 2] };
        Stage { name: name.into(), channels: [channels; 2], groups: channels, axes: [axis; 2], weights: 0 }
    }
    /// Places of the output, by axis.
    pub fn places(&self) -> [u64; 2] {
        self.axes.map(|a| a.places())
    }
    /// Multiplications, or comparisons, of one place of all output channels.
    pub fn work(&self) -> u64 {
        let taps = self.axes[0].taps * self.axes[1].taps;
        (self.channels[1] * (self.channels[0] / self.groups.max(1))).saturating_mul(taps)
    }
    /// Elements of the input and of the output.
    pub fn elements(&self) -> [u64; 2] {
        let [rows, columns] = self.places();
        let input = self.channels[0] * self.axes[0].extent * self.axes[1].extent;
        [input, self.channels[1] * rows * columns]
    }
}

/// Whether each stage's output is the next one's input; the first place where it is not, as a sentence.
///
/// # Errors
/// That sentence.
pub fn check(chain: &[Stage]) -> Result<(), String> {
    for s in chain {
        let zero = s.axes.iter().any(|a| a.taps == 0 || a.stride == 0 || a.dilation == 0);
        if zero || s.groups == 0 || s.places().contains(&0) {
            return Err(format!("{} has no places", s.name));
        }
        if s.channels.iter().any(|c| c % s.groups != 0) {
            return Err(format!("{} has {:?} channels in {} groups", s.name, s.channels, s.groups));
        }
    }
    for pair in chain.windows(2) {
        let [a, b] = pair else { continue };
        let (out, into) = ((a.channels[1], a.places()), (b.channels[0], b.axes.map(|x| x.extent)));
        if out != into {
            return Err(format!("{} gives {out:?} and {} takes {into:?}", a.name, b.name));
        }
    }
    Ok(())
}

/// For one axis and one tile of the last stage's places: the coordinates needed of the input of each stage of the chain,
/// and last those of the output.
pub(crate) fn needs_of(chain: &[Stage], axis: usize, tile: Range<u64>) -> Vec<Vec<bool>> {
    let places = chain.last().map_or(0, |s| s.axes[axis].places());
    let mut marked: Vec<bool> = (0..places).map(|p| tile.contains(&p)).collect();
    let mut all = Vec::with_capacity(chain.len() + 1);
    for s in chain.iter().rev() {
        let needed = s.axes[axis].needs(&marked);
        all.push(std::mem::replace(&mut marked, needed));
    }
    all.push(marked);
    all.reverse();
    all
}

pub(crate) fn count(marked: &[bool]) -> u64 {
    marked.iter().filter(|m| **m).count() as u64
}
