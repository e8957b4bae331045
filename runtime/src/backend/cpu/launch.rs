//! One launch of a kernel: its arguments, its registers, and tasks over threads.

use super::memory::View;
use super::program::{Env, Fault, Frame, Program, Reg};
use frit_kernels::dim::Sym;
use frit_kernels::spec::{Expr, ExprId, Exprs};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Work below which a launch stays on one thread, in element operations.
pub const SMALL: u64 = 1 << 15;

/// What one task of a launch computes in.
#[derive(Debug, Default)]
pub struct Task {
    /// Registers.
    pub frame: Frame,
    /// Floats, as many as the launch asked for.
    pub work: Vec<f32>,
}

/// The tasks' memory: one [`Task`] for each thread, made before the first launch.
#[derive(Debug, Default)]
pub struct Pool {
    tasks: Mutex<Vec<Task>>,
    need: (usize, usize, usize),
}

impl Pool {
    /// Makes every task large enough: buffers of floats and integers, floats of work. Returns how many buffers it made.
    pub fn reserve(&mut self, floats: usize, ints: usize, work: usize) -> u64 {
        self.need = (self.need.0.max(floats), self.need.1.max(ints), self.need.2.max(work));
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        let count = (rayon::current_num_threads() + 1).max(tasks.len());
        tasks.resize_with(count, Task::default);
        tasks.iter_mut().map(|t| fit(t, self.need)).sum()
    }
    fn with<R>(&self, f: impl FnOnce(&mut Task) -> R) -> R {
        let lock = || self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut task = lock().pop().unwrap_or_default();
        fit(&mut task, self.need);
        let out = f(&mut task);
        lock().push(task);
        out
    }
}

fn fit(t: &mut Task, need: (usize, usize, usize)) -> u64 {
    let grows = t.work.len() < need.2;
    if grows {
        t.work.resize(need.2, 0.0);
    }
    t.frame.reserve(need.0, need.1) + u64::from(grows)
}

/// A launch in progress.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// Integer registers as the sizes left them.
    pub ints: &'a [i64],
    /// Float registers as the sizes left them.
    pub floats: &'a [f32],
    /// Arguments, as they are read.
    pub read: &'a [View<'a>],
    /// Arguments, as they are written.
    pub write: &'a [View<'a>],
    /// Memory of the tasks.
    pub pool: &'a Pool,
}

impl Launch<'_> {
    /// The value of a size register, at least 0.
    pub fn size(&self, r: Reg) -> usize {
        usize::try_from(self.ints.get(r as usize).copied().unwrap_or(0)).unwrap_or(0)
    }
    /// Runs `f` for every task; `work` is the element operations of all of them together.
    pub fn spread(
        &self,
        tasks: usize,
        work: u64,
        f: impl Fn(usize, &mut Task) -> Result<(), Fault> + Sync,
    ) -> Result<(), Fault> {
        let ready = |t: &mut Task| t.frame.start(self.ints, self.floats);
        if tasks <= 1 || work < SMALL {
            return self.pool.with(|t| {
                ready(t);
                (0..tasks).try_for_each(|i| f(i, t))
            });
        }
        (0..tasks).into_par_iter().with_max_len(1).try_for_each(|i| {
            self.pool.with(|t| {
                ready(t);
                f(i, t)
            })
        })
    }
    /// Runs `f` with a task's memory, on this thread.
    pub fn spread_one<R>(&self, f: impl FnOnce(&mut Task) -> R) -> R {
        self.pool.with(|t| {
            t.frame.start(self.ints, self.floats);
            f(t)
        })
    }
    /// Runs the groups at one row for coordinates `[lo, hi)` of their inner axis. The accumulators begin at `lo`.
    pub fn store(
        &self,
        frame: &mut Frame,
        groups: &[Group],
        inner: usize,
        lo: i64,
        hi: i64,
        accs: [&[f32]; super::program::ACCS],
    ) -> Result<(), Fault> {
        for g in groups {
            let (mut a, mut b) = (lo, hi);
            if let Some((axis, from, to)) = g.when {
                let (from, to) = (frame.int[from as usize], frame.int[to as usize]);
                if axis == inner {
                    (a, b) = (a.max(from), b.min(to));
                } else {
                    let at = frame.int.get(axis).copied().unwrap_or(0);
                    if at < from || at >= to {
                        continue;
                    }
                }
            }
            if g.per_row {
                if lo == 0 {
                    g.program.begin(frame, self.read)?;
                    g.program.store(frame, self.write, 0, 1)?;
                }
                continue;
            }
            if a >= b {
                continue;
            }
            g.program.begin(frame, self.read)?;
            while a < b {
                let n = ((b - a) as usize).min(super::program::CHUNK);
                let skip = (a - lo) as usize;
                let env = Env { views: self.read, accs: accs.map(|s| s.get(skip..).unwrap_or_default()) };
                g.program.run(frame, &env, a, n)?;
                g.program.store(frame, self.write, a, n)?;
                a += n as i64;
            }
        }
        Ok(())
    }
}

/// Stores with one range.
#[derive(Debug)]
pub struct Group {
    /// Axis and the registers of its bounds.
    pub when: Option<(usize, Reg, Reg)>,
    /// Once a row.
    pub per_row: bool,
    /// The stores.
    pub program: Program,
}

/// Writes the coordinates of position `at` in row-major order over `extents` to `axes`.
#[inline]
pub fn coordinates(mut at: usize, extents: &[usize], axes: &mut [i64]) {
    for (a, e) in axes.iter_mut().zip(extents).rev() {
        let e = (*e).max(1);
        *a = (at % e) as i64;
        at /= e;
    }
}

/// Whether anything below `roots` names one of the axes.
pub fn mentions(exprs: &Exprs, roots: &[ExprId], axis: impl Fn(u8) -> bool) -> bool {
    exprs.reachable(roots).into_iter().any(|e| match exprs.get(e) {
        Expr::Load { index: d, .. } | Expr::Coord(d) => {
            d.symbols().iter().any(|s| matches!(s, Sym::Axis(k) if axis(*k)))
        }
        _ => false,
    })
}
