//! Two convolutions in a row.

use super::ExprId;
use crate::dim::Dim;
use serde::{Deserialize, Serialize};

/// `Acc(0)[b, r, s, n] = Σ_c Σ_t middle[b, y, x, c] · down[n, c·T + t]` over channels c and the T taps t = (u, v) of a window,
/// with `y = r·stride + u·dilation − before` along rows and x likewise along columns; the middle counts as 0 where y or x is
/// outside its extents, and is a function of `Acc(0)[b, y, x, c] = Σ_k lhs[b, y, x, k] · up[c, k]`, in F32.
///
/// Axes: 0 batch, 1 row and 2 column of the result, 3 its channel n; 4 row y and 5 column x of the middle, 6 its channel c,
/// 7 the first summed axis k, 8 the second one, `c·T + t` with `t = u·V + v` for V taps along columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvChain {
    /// Windows of the second convolution along rows and columns.
    pub windows: [Window; 2],
    /// Channels of the middle.
    pub channels: u64,
    /// Extent of the first summed axis.
    pub k: Dim,
    /// Over axes 0, 4, 5 and 7.
    pub lhs: ExprId,
    /// Over axes 6 and 7.
    pub up: ExprId,
    /// Over axes 0, 4, 5 and 6, of the accumulator of the first convolution.
    pub middle: ExprId,
    /// Over axes 3 and 8.
    pub down: ExprId,
}

/// Windows along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Elements of what the windows go over.
    pub extent: u64,
    /// Windows.
    pub places: u64,
    /// Elements that a window takes.
    pub taps: u64,
    /// From one window to the next.
    pub stride: u64,
    /// From one tap to the next.
    pub dilation: u64,
    /// Elements of the first window that lie in front of the first element.
    pub before: u64,
}

impl Window {
    /// The element that tap `tap` of window `place` takes; `None` outside.
    pub fn at(&self, place: u64, tap: u64) -> Option<u64> {
        (place * self.stride + tap * self.dilation).checked_sub(self.before).filter(|e| *e < self.extent)
    }
    /// Elements from the first tap of the first of `places` neighbouring windows to the last tap of the last one.
    pub fn halo(&self, places: u64) -> u64 {
        places.max(1).saturating_sub(1) * self.stride + self.taps.max(1).saturating_sub(1) * self.dilation + 1
    }
    /// The range of elements from the first to the last one that windows `[first, first + count)` reach.
    pub fn reached(&self, first: u64, count: u64) -> (u64, u64) {
        let from = first * self.stride;
        let to = (from + self.halo(count)).saturating_sub(self.before).min(self.extent);
        (from.saturating_sub(self.before).min(to), to)
    }
}

impl ConvChain {
    /// Taps of a window.
    pub fn taps(&self) -> u64 {
        self.windows[0].taps * self.windows[1].taps
    }
    /// Extent of the second summed axis.
    pub fn depth(&self) -> u64 {
        self.channels * self.taps()
    }
    /// First element and extent of the axes 4 to 8, the middle's as far as windows reach them.
    pub fn axes(&self) -> [(u64, Dim); 5] {
        let [rows, columns] = self.windows.map(|w| w.reached(0, w.places));
        let range = |(lo, hi): (u64, u64)| (lo, Dim::from(hi - lo));
        let depth = Dim::from(self.depth());
        [range(rows), range(columns), (0, Dim::from(self.channels)), (0, self.k.clone()), (0, depth)]
    }
    /// Every expression of the anchor.
    pub fn roots(&self) -> [ExprId; 4] {
        [self.lhs, self.up, self.middle, self.down]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_taps() {
        for stride in 1..4 {
            for dilation in 1..3 {
                for before in 0..3 {
                    let w = Window { extent: 11, places: 4, taps: 3, stride, dilation, before };
                    for (first, count) in [(0, 4), (1, 2), (3, 1)] {
                        let taken = (first..first + count).flat_map(|p| (0..3).filter_map(move |t| w.at(p, t)));
                        let found: Vec<u64> = taken.collect();
                        let (lo, hi) = w.reached(first, count);
                        if let (Some(a), Some(b)) = (found.iter().min(), found.iter().max()) {
                            assert!(lo <= *a && *b < hi, "{w:?}: {found:?} in {lo}..{hi}");
                        }
                        assert!(hi <= w.extent && hi - lo <= w.halo(count), "{w:?}");
                    }
                }
            }
        }
    }
}
