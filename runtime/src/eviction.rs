//! Caches that keep anchors and near tokens alone. When the room of a cache is used up, the columns that no later token
//! sees leave it: what stays moves to the end of a shorter past, so that near tokens are as far from the next one as they
//! were, and what is added to a column to get its position grows by as much as the past became shorter. Anchors are seen
//! from everywhere, wherever they lie. Keys are stored rotated, so that nothing else changes.

use crate::backend::{Executor, Extent};
use crate::{Error, Result};
use frit_kernels::dim::product;
use frit_plan::{KvPart, Plan, Retention};
use serde::Serialize;
use std::collections::HashSet;
use std::sync::Arc;

/// What became of a cache that keeps anchors and near tokens alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EvictionStats {
    /// Columns that the cache has room for.
    pub capacity: u64,
    /// Columns in use at the end, of the longest row.
    pub columns: u64,
    /// Columns that have left.
    pub evicted: u64,
    /// How often columns left.
    pub evictions: u64,
    /// Bytes of the cache at that capacity.
    pub bytes: u64,
}

/// A column of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Padding,
    Token,
    Anchor,
}

/// The columns in use of every row.
pub(crate) struct Columns {
    anchors: HashSet<i32>,
    window: usize,
    rows: Vec<Vec<Column>>,
    pub stats: EvictionStats,
}

/// What an eviction leaves.
pub(crate) struct Left {
    /// Columns of the past.
    pub past: usize,
    /// By how many columns the past became shorter.
    pub gone: usize,
    /// Columns of each row that stay, in order.
    kept: Vec<Vec<usize>>,
}

impl Columns {
    /// The columns of a batch before it runs; nothing for a plan that keeps every token.
    pub fn new(plan: &Plan, rows: usize) -> Option<Columns> {
        let Retention { anchors, window } = plan.model.retention.as_ref()?;
        let anchors = anchors.iter().filter_map(|a| i32::try_from(*a).ok()).collect();
        let window = usize::try_from(*window).unwrap_or(usize::MAX);
        Some(Columns { anchors, window, rows: vec![Vec::new(); rows], stats: EvictionStats::default() })
    }
    /// Appends a column: the token of each row, or none where it is padding.
    pub fn push(&mut self, tokens: impl Iterator<Item = Option<i32>>) {
        for (row, token) in self.rows.iter_mut().zip(tokens) {
            row.push(match token {
                None => Column::Padding,
                Some(t) if self.anchors.contains(&t) => Column::Anchor,
                Some(_) => Column::Token,
            });
        }
    }
    /// What stays when the next token comes: anchors, and tokens less than the window before it.
    pub fn left(&self) -> Left {
        let past = self.past();
        let stays = |(at, c): &(usize, &Column)| match c {
            Column::Padding => false,
            Column::Anchor => true,
            Column::Token => past - at < self.window,
        };
        let of_row = |row: &Vec<Column>| row.iter().enumerate().filter(stays).map(|(at, _)| at).collect::<Vec<_>>();
        let kept: Vec<Vec<usize>> = self.rows.iter().map(of_row).collect();
        let longest = kept.iter().map(Vec::len).max().unwrap_or(0);
        Left { past: longest, gone: past - longest, kept }
    }
    /// Forgets the columns that are not left.
    pub fn evict(&mut self, left: &Left) {
        for (row, kept) in self.rows.iter_mut().zip(&left.kept) {
            let mut after = vec![Column::Padding; left.past - kept.len()];
            after.extend(kept.iter().filter_map(|at| row.get(*at)));
            *row = after;
        }
        self.stats.evicted += left.gone as u64;
        self.stats.evictions += u64::from(left.gone > 0);
    }
    /// The most columns that chunks of so many tokens need when what nobody sees leaves before each of them, and the
    /// columns that are left behind the last one. `tokens` are columns as [`Columns::push`] takes them.
    pub fn needed<'t>(&mut self, tokens: impl Iterator<Item = Vec<Option<i32>>> + 't, chunk: usize) -> [usize; 2] {
        let mut most = 0;
        for (i, column) in tokens.enumerate() {
            if i % chunk.max(1) == 0 {
                let left = self.left();
                self.evict(&left);
            }
            self.push(column.into_iter());
            most = most.max(self.past());
        }
        let end = self.left().past;
        self.rows.iter_mut().for_each(Vec::clear);
        self.stats = EvictionStats::default();
        [most, end]
    }
    /// Columns of the past.
    fn past(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }
    /// Which of `capacity` columns each row sees: all but its padding, which may go on behind the columns in use. `offsets`
    /// is what is added to a column of each row to get its position.
    pub fn key_mask(&self, capacity: usize, offsets: &[i32]) -> Vec<i32> {
        let seen = |(at, row, offset): (usize, &Vec<Column>, i32)| match row.get(at) {
            Some(c) => i32::from(*c != Column::Padding),
            None => i32::from(at as i64 + i64::from(offset) >= 0),
        };
        let rows = self.rows.iter().zip(offsets);
        rows.flat_map(|(row, offset)| (0..capacity).map(move |at| seen((at, row, *offset)))).collect()
    }
}

/// Moves what is left of every slot, and lays the buffers out for `extent` where that is another one. `sizes` before and
/// after differ in the capacity at most.
///
/// # Errors
/// A device that fails, or whose cache cannot be read.
pub(crate) fn move_left(
    executor: &mut dyn Executor,
    plan: &Arc<Plan>,
    left: &Left,
    [before, after]: [&[u64]; 2],
    extent: Option<&Extent>,
) -> Result<()> {
    let mut moved = Vec::new();
    let mut parts = Vec::new();
    for (i, slot) in plan.kv_slots.iter().enumerate() {
        for (part, shape) in [(KvPart::K, &slot.k_shape), (KvPart::V, &slot.v_shape)] {
            if shape.is_empty() {
                continue;
            }
            let dims =
                |sizes: &[u64]| shape.iter().map(|d| Ok(plan.eval(d, sizes)? as usize)).collect::<Result<Vec<_>>>();
            let old = executor.read_kv(i, part, before)?;
            let new = compacted(&old, &dims(before)?, &dims(after)?, left);
            let new = new.ok_or_else(|| Error::Plan(format!("cache slot `{}` is {}", slot.name, product(shape))))?;
            parts.push((i, part));
            moved.push(new);
            if extent.is_none() {
                let (Some((i, part)), Some(new)) = (parts.pop(), moved.pop()) else { continue };
                executor.write_kv(i, part, after, &new)?;
            }
        }
    }
    if let Some(extent) = extent {
        executor.resize(extent)?;
        for ((i, part), new) in parts.into_iter().zip(moved) {
            executor.write_kv(i, part, after, &new)?;
        }
    }
    Ok(())
}

/// Columns of a part `[B, G, T, D]` that are left, at the end of the past of another one; zeros elsewhere.
fn compacted(old: &[f32], before: &[usize], after: &[usize], left: &Left) -> Option<Vec<f32>> {
    let (&[rows, heads, room, width], &[_, _, new_room, _]) = (before, after) else { return None };
    let mut new = vec![0.0; rows * heads * new_room * width];
    for (b, kept) in left.kept.iter().enumerate().take(rows) {
        let first = left.past - kept.len();
        for head in b * heads..(b + 1) * heads {
            for (to, from) in kept.iter().enumerate() {
                let from = (head * room + from) * width;
                let to = (head * new_room + first + to) * width;
                new.get_mut(to..to + width)?.copy_from_slice(old.get(from..from + width)?);
            }
        }
    }
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model;

    fn columns(rows: &[&[i32]]) -> Columns {
        let mut plan = test_model::decoder(32, &[4]);
        plan.model.retention = Some(Retention { anchors: vec![1, 4], window: 3 });
        let mut c = Columns::new(&plan, rows.len()).unwrap();
        for at in 0..rows[0].len() {
            c.push(rows.iter().map(|r| (r[at] >= 0).then_some(r[at])));
        }
        c
    }

    #[test]
    fn anchors_and_near_tokens_stay_in_order_at_the_end() {
        let mut c = columns(&[&[-1, -1, 1, 7, 7, 7], &[1, 2, 4, 9, 1, 8]]);
        let left = c.left();
        assert_eq!((left.past, left.gone), (4, 2));
        assert_eq!(left.kept, [vec![2, 4, 5], vec![0, 2, 4, 5]]);
        let old: Vec<f32> = (0..2 * 8).map(|v| v as f32).collect();
        let new = compacted(&old, &[2, 1, 8, 1], &[2, 1, 5, 1], &left).unwrap();
        assert_eq!(new, [0.0, 2.0, 4.0, 5.0, 0.0, 8.0, 10.0, 12.0, 13.0, 0.0]);
        c.evict(&left);
        assert_eq!(c.key_mask(5, &[0, 2]), [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        // A row that has not begun.
        assert_eq!(c.key_mask(7, &[-5, 0])[..7], [0, 1, 1, 1, 0, 1, 1]);
        assert_eq!((c.past(), c.stats.evicted, c.stats.evictions), (4, 2, 1));
        // Near tokens are as near as they were.
        c.push([Some(9), Some(9)].into_iter());
        assert_eq!(c.left().kept, [vec![1, 3, 4], vec![0, 1, 2, 3, 4]]);
    }

    #[test]
    fn room_for_a_prompt_is_counted_chunk_by_chunk() {
        let row = [1, 7, 7, 7, 7, 4, 7, 7, 7, 7];
        let mut c = columns(&[&[]]);
        let tokens = || row.iter().map(|t| vec![Some(*t)]);
        assert_eq!(c.needed(tokens(), 1), [5, 4]);
        assert_eq!(c.needed(tokens(), 4), [3 + 4, 4]);
        assert_eq!(c.needed(tokens(), 99), [10, 4]);
        assert_eq!((c.past(), c.stats), (0, EvictionStats::default()));
    }
}
