//! A chain over several devices, each with rows of the output in proportion to its speed.
//!
//! Devices keep the rows of every value that they own. Before each segment of fused stages a device fetches the rows of the
//! segment's input that it needs and does not own; inside the segment it computes what it needs itself, so that nothing
//! is exchanged there (Wang et al., "Model parallelism on IoT edge devices", 2023).

use super::{ELEMENT_BYTES, Stage, check, count, needs_of};
use serde::Serialize;
use std::ops::Range;

/// What one device does in one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The stages.
    pub stages: Range<usize>,
    /// The device.
    pub device: usize,
    /// Rows of the segment's output that it computes and owns.
    pub rows: Range<u64>,
    /// Rows of the segment's input that it needs.
    pub needed: Vec<u64>,
    /// Rows of the segment's input that others send.
    pub received: Vec<u64>,
    /// Bytes of these.
    pub received_bytes: u64,
    /// Multiplications, those that others make as well included.
    pub work: u64,
}

/// `0..n` in parts in proportion to `speeds`, every row in one.
fn cut(n: u64, speeds: &[u64]) -> Vec<Range<u64>> {
    let all: u64 = speeds.iter().sum::<u64>().max(1);
    let mut sum = 0;
    let mut from = 0;
    speeds
        .iter()
        .map(|s| {
            sum += s;
            let to = n * sum / all;
            let part = from..to;
            from = to;
            part
        })
        .collect()
}

/// The shares of devices in segments of `depth` stages. The chain's input is with every device.
///
/// # Errors
/// A chain that is none, no device, no speed, or a depth of 0.
pub fn shares(chain: &[Stage], speeds: &[u64], depth: usize) -> Result<Vec<Share>, String> {
    check(chain)?;
    if speeds.iter().sum::<u64>() == 0 || depth == 0 {
        return Err("devices need a speed, and segments a depth".into());
    }
    let starts = (0..chain.len()).step_by(depth);
    Ok(starts.flat_map(|from| segment(chain, speeds, from..(from + depth).min(chain.len()))).collect())
}

/// The shares of devices in one segment. What is in front of it was cut by the same speeds, so that they follow from the
/// segment alone.
fn segment(chain: &[Stage], speeds: &[u64], stages: Range<usize>) -> Vec<Share> {
    let Some(inside) = chain.get(stages.clone()) else { return Vec::new() };
    let (Some(first), Some(last)) = (inside.first(), inside.last()) else { return Vec::new() };
    let owned = (stages.start > 0).then(|| cut(first.axes[0].extent, speeds));
    let row_bytes = first.channels[0] * first.axes[1].extent * ELEMENT_BYTES;
    let share = |(device, rows): (usize, Range<u64>)| {
        let sets = needs_of(inside, 0, rows.clone());
        let input = sets.first().map_or(&[][..], Vec::as_slice);
        let needed: Vec<u64> = (0u64..).zip(input).filter(|(_, m)| **m).map(|(row, _)| row).collect();
        let own = owned.as_ref().and_then(|o| o.get(device));
        let received: Vec<u64> = match own {
            Some(own) => needed.iter().copied().filter(|r| !own.contains(r)).collect(),
            None => Vec::new(),
        };
        let work = inside.iter().zip(sets.iter().skip(1)).map(|(s, rows)| s.work() * count(rows) * s.places()[1]);
        Share {
            stages: stages.clone(),
            device,
            rows,
            received_bytes: received.len() as u64 * row_bytes,
            needed,
            received,
            work: work.sum(),
        }
    };
    cut(last.places()[0], speeds).into_iter().enumerate().map(share).collect()
}

/// Time of a segment: the slowest device's, of its work at its speed and of what it receives.
fn time(shares: &[Share], speeds: &[u64], time_per_byte: f64) -> f64 {
    let each = shares.iter().filter(|s| s.work > 0).map(|s| {
        let speed = speeds.get(s.device).copied().unwrap_or(0) as f64;
        s.work as f64 / speed + s.received_bytes as f64 * time_per_byte
    });
    each.fold(0.0, f64::max)
}

/// Where segments end so that the whole takes least time, with that time: a unit of work takes a device of speed 1 one unit of
/// time, a byte `time_per_byte`. By dynamic programming over ends.
///
/// # Errors
/// As [`shares`].
pub fn best_segments(chain: &[Stage], speeds: &[u64], time_per_byte: f64) -> Result<(Vec<usize>, f64), String> {
    shares(chain, speeds, 1)?;
    let mut best: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new())];
    for to in 1..=chain.len() {
        let ways = best.iter().enumerate().map(|(from, (before, ends))| {
            let own = time(&segment(chain, speeds, from..to), speeds, time_per_byte);
            (before + own, ends.iter().copied().chain([to]).collect())
        });
        let least = ways.min_by(|a: &(f64, Vec<usize>), b| a.0.total_cmp(&b.0)).unwrap_or_default();
        best.push(least);
    }
    let (time, ends) = best.pop().unwrap_or_default();
    Ok((ends, time))
}
