//! What may be computed where a matmul of many rows reads its left side: nothing but movement of elements, and sums over
//! the taps of a window where few column tiles repeat them.
//!
//! A convolution reads windows that overlap. Written to memory they take a multiple of what they are made of; taken
//! where they are read they cost the arithmetic of addresses, and the product is an implicit one.

use super::Partitioner;
use crate::graph::{Op, ValueId};
use frit_kernels::dim::Dim;
use std::collections::HashSet;

/// How far a region computes a value where it reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Not at all, apart from what is cheaper than a load.
    Never,
    /// As long as elements are only moved.
    Moves,
    /// As long as elements are only moved, or windows summed for few columns: every column tile does it again.
    Movement,
    /// Whatever belongs to the sum over a window.
    Window,
    /// Whatever it is: it is done once.
    Anything,
}

/// Columns of a matmul's tile.
const TILE_COLUMNS: i64 = 64;
/// Column tiles that may sum the same windows.
const TILES: i64 = 2;
/// Operations of a sum over a window at most, a few a tap: every element of a tile is computed by code of its own, and
/// drivers take long to compile it.
const WINDOW_OPERATIONS: usize = 64;

impl Partitioner<'_> {
    /// Whether a region that reads with that reach computes `v` itself.
    pub(super) fn takes(&self, region: usize, reach: Reach, v: ValueId) -> bool {
        match reach {
            Reach::Never => false,
            Reach::Moves => self.moves(v),
            Reach::Movement => self.moves(v) || self.sums_windows_for(region, v),
            Reach::Window => self.moves(v) || is_pointwise(self.graph.op(v)),
            Reach::Anything => true,
        }
    }
    /// How far a region that computes `v` with that reach computes the operands of `v`.
    pub(super) fn beyond(&self, reach: Reach, v: ValueId) -> Reach {
        match reach {
            Reach::Never | Reach::Moves | Reach::Anything => reach,
            Reach::Movement if self.graph.op(v).is_view() => Reach::Movement,
            Reach::Movement | Reach::Window if self.moves(v) => Reach::Moves,
            Reach::Movement | Reach::Window => Reach::Window,
        }
    }
    /// Whether the elements of `v` are those of another value, or one and the same constant.
    pub(super) fn moves(&self, v: ValueId) -> bool {
        let ops = self.graph.operands(v);
        let cheap = |port: usize| ops.get(port).is_some_and(|o| self.is_cheap(*o));
        match self.graph.op(v) {
            op if op.is_view() => true,
            Op::Gather => cheap(1),
            Op::Select => cheap(0) && (cheap(1) || cheap(2)),
            _ => false,
        }
    }
    /// Whether `v` is a pointwise function of the taps of a window, and region `region` has so few column tiles that it
    /// moves fewer bytes by summing them in each than by reading the sums from memory: with t tiles, the value is written
    /// once and read t times, its source read t times instead of once.
    fn sums_windows_for(&self, region: usize, v: ValueId) -> bool {
        let Some(anchor) = self.regions.get(region).and_then(|r| r.anchors().first().copied()) else { return false };
        let columns = self.graph.ty(anchor).last();
        let few = self.bounds.le(&columns, &Dim::constant(TILES * TILE_COLUMNS));
        few && self.allowed("windows", "", v, v).is_ok() && self.is_window_sum(v)
    }
    /// Whether `v` is made by pointwise operations from several elements of one value.
    pub(super) fn is_window_sum(&self, v: ValueId) -> bool {
        let mut seen: HashSet<ValueId> = HashSet::new();
        let mut sources: Vec<ValueId> = Vec::new();
        let mut stack = vec![v];
        let mut sums = false;
        while let Some(v) = stack.pop() {
            if !seen.insert(v) || self.is_cheap(v) {
                continue;
            }
            if seen.len() > WINDOW_OPERATIONS {
                return false;
            }
            match self.graph.op(v) {
                _ if self.moves(v) => match self.moved_from(v) {
                    Some(source) if sources.contains(&source) => sums = true,
                    Some(source) => sources.push(source),
                    None => {}
                },
                op if is_pointwise(op) => stack.extend(self.graph.operands(v)),
                op if op.is_source() => {}
                _ => return false,
            }
        }
        sums
    }
    /// The operand whose elements `v` moves.
    pub(super) fn moved(&self, v: ValueId) -> Option<ValueId> {
        let ops = self.graph.operands(v);
        match self.graph.op(v) {
            Op::Select => ops.into_iter().skip(1).find(|o| !self.is_cheap(*o)),
            _ => ops.first().copied(),
        }
    }
    /// What the elements of `v` are elements of, unless that is a constant.
    fn moved_from(&self, mut v: ValueId) -> Option<ValueId> {
        while self.moves(v) {
            v = self.moved(v)?;
        }
        (!matches!(self.graph.op(v), Op::Weight(_) | Op::Const(_))).then_some(v)
    }
}

fn is_pointwise(op: &Op) -> bool {
    matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_))
}
