//! Access counters: which elements of its arguments a launch reads and writes. Every access marks the elements it
//! touches; nothing is derived from the kernel's index maps.

use super::launch::Launch;
use super::memory::{Run, View};
use crate::Result;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Distinct elements that one launch touched of each of its kernel's arguments, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaunchAccess {
    /// Index of the program.
    pub program: usize,
    /// Index of the step.
    pub step: usize,
    /// Elements read at least once.
    pub read: Vec<u64>,
    /// Elements written at least once.
    pub written: Vec<u64>,
}

/// One bit for each element of an argument.
#[derive(Debug, Default)]
pub struct Marks(Vec<AtomicU64>);

impl Marks {
    /// Of `len` elements, none touched.
    pub fn new(len: usize) -> Self {
        Marks((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }
    fn set(&self, i: usize) -> bool {
        let word = self.0.get(i / 64);
        word.map(|w| w.fetch_or(1 << (i % 64), Relaxed)).is_some()
    }
    /// Elements touched.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|w| u64::from(w.load(Relaxed).count_ones())).sum()
    }
}

/// A view whose accesses are marked.
#[derive(Debug)]
pub struct Counted<'a> {
    /// What is read or written.
    pub view: View<'a>,
    /// What was touched.
    pub marks: &'a Marks,
}

impl Counted<'_> {
    /// Marks a run; `false` when it leaves the argument.
    pub fn run(&self, run: Run, n: usize) -> bool {
        matches!(self.view, View::Nothing)
            || run.check(n, self.view.len())
                && (0..n).all(|j| self.marks.set(run.start.wrapping_add(run.step.wrapping_mul(j as i64)) as usize))
    }
    /// Marks positions; `false` when one leaves the argument.
    pub fn each(&self, at: &[i32]) -> bool {
        let len = self.view.len();
        matches!(self.view, View::Nothing)
            || at.iter().all(|i| usize::try_from(*i).is_ok_and(|i| i < len && self.marks.set(i)))
    }
}

/// Runs a launch on views that count, and notes what it touched.
pub fn counted(
    launch: &Launch<'_>,
    list: &mut Vec<LaunchAccess>,
    (program, step): (usize, usize),
    run: impl FnOnce(&Launch<'_>) -> Result<()>,
) -> Result<()> {
    let marks = |views: &[View<'_>]| views.iter().map(|v| Marks::new(v.len())).collect::<Vec<_>>();
    let (read, written) = (marks(launch.read), marks(launch.write));
    let counted = |(view, marks)| Counted { view, marks };
    let reads: Vec<Counted<'_>> = launch.read.iter().copied().zip(&read).map(counted).collect();
    let writes: Vec<Counted<'_>> = launch.write.iter().copied().zip(&written).map(counted).collect();
    let reads: Vec<View<'_>> = reads.iter().map(View::Counted).collect();
    let writes: Vec<View<'_>> = writes.iter().map(View::Counted).collect();
    run(&Launch { read: &reads, write: &writes, ..*launch })?;
    let count = |m: &[Marks]| m.iter().map(Marks::count).collect();
    list.push(LaunchAccess { program, step, read: count(&read), written: count(&written) });
    Ok(())
}
