//! Pointwise and row kernels, and row statistics.

use super::launch::{Group, Launch, coordinates};
use super::lower::{Builder, Refused, stat_int};
use super::ops::{self, Arg};
use super::program::{ACCS, CHUNK, Env, Fault, Float, Frame, Program, Reg, Value};
use frit_kernels::spec::{KernelSpec, ReduceOp, Stat};

/// A row statistic.
#[derive(Debug)]
pub struct StatCode {
    op: ReduceOp,
    value: Program,
    finish: Option<Program>,
    number: usize,
    integer: Reg,
}

/// Statistics along axis `inner`.
pub fn stats(
    b: &mut Builder<'_>,
    spec: &KernelSpec,
    axes: usize,
    list: &[Stat],
    inner: usize,
) -> Result<Vec<StatCode>, Refused> {
    stats_from(b, spec, axes, (list, 0), inner)
}

/// The same, of statistics that are counted from `first` on.
pub fn stats_from(
    b: &mut Builder<'_>,
    spec: &KernelSpec,
    axes: usize,
    (list, first): (&[Stat], usize),
    inner: usize,
) -> Result<Vec<StatCode>, Refused> {
    let mut out = Vec::new();
    for (number, s) in list.iter().enumerate().map(|(i, s)| (first + i, s)) {
        let value = b.values(&[s.value], Some(inner))?;
        let finish = s.finish.map(|f| b.values(&[f], None)).transpose()?;
        out.push(StatCode { op: s.op, value, finish, number, integer: stat_int(spec, axes, number) });
    }
    Ok(out)
}

struct Reduce<'a>(ReduceOp, &'a [f32], f32);
impl pulp::NullaryFnOnce for Reduce<'_> {
    type Output = f32;
    #[inline(always)]
    fn call(self) -> f32 {
        let Reduce(op, v, from) = self;
        match op {
            ReduceOp::Sum => ops::sum(v),
            ReduceOp::Prod => ops::product(v),
            ReduceOp::Min => ops::min(v, from),
            ReduceOp::Max | ReduceOp::ArgMax => ops::max(v, from),
        }
    }
}

impl StatCode {
    /// Reduces the row whose coordinates are set, `n` elements long, and leaves the result in the frame.
    pub fn run(&self, frame: &mut Frame, launch: &Launch<'_>, n: usize) -> Result<(), Fault> {
        self.run_from(frame, launch, 0, n, [&[]; ACCS])
    }
    /// Reduces `n` elements from `first` on, at which the accumulators begin.
    pub fn run_from(
        &self,
        frame: &mut Frame,
        launch: &Launch<'_>,
        first: usize,
        n: usize,
        accs: [&[f32]; ACCS],
    ) -> Result<(), Fault> {
        self.value.begin(frame, launch.read)?;
        let arch = pulp::Arch::new();
        let (mut sum, mut product, mut best, mut at) = (0f64, 1f64, f32::NAN, 0i64);
        let from = if self.op == ReduceOp::Min { 3.0e38 } else { -3.0e38 };
        let mut extreme = from;
        let mut x0 = 0;
        while x0 < n {
            let len = (n - x0).min(CHUNK);
            let env = Env { views: launch.read, accs: accs.map(|s| s.get(x0..).unwrap_or_default()) };
            self.value.run(frame, &env, (first + x0) as i64, len)?;
            let one;
            let v: &[f32] = match self.value.f32(frame, 0, len) {
                Arg::Each(v) => v,
                Arg::All(v) => {
                    one = [v; CHUNK];
                    one.get(..len).unwrap_or_default()
                }
            };
            let r = arch.dispatch(Reduce(self.op, v, extreme));
            match self.op {
                ReduceOp::Sum => sum += f64::from(r),
                ReduceOp::Prod => product *= f64::from(r),
                ReduceOp::Max | ReduceOp::Min => extreme = r,
                ReduceOp::ArgMax => {
                    if x0 == 0 || r > best {
                        let found = v.iter().position(|v| *v == r);
                        if x0 == 0 || found.is_some() {
                            (best, at) = (r, x0 as i64 + found.unwrap_or(0) as i64);
                        }
                    }
                }
            }
            x0 += len;
        }
        let raw = match self.op {
            ReduceOp::Sum => sum as f32,
            ReduceOp::Prod => product as f32,
            _ => extreme,
        };
        if self.op == ReduceOp::ArgMax {
            frame.int[self.integer as usize] = at;
            return Ok(());
        }
        frame.float[self.number] = raw;
        if let Some(f) = &self.finish {
            f.begin(frame, launch.read)?;
            if let Some(Value::F(Float::Row(r))) = f.outputs.first() {
                frame.float[self.number] = frame.float[*r as usize];
            }
        }
        Ok(())
    }
}

/// Where a map or row kernel iterates.
pub struct Domain<'a> {
    /// Extents of the axes.
    pub extents: &'a [usize],
    /// The axis along which programs run.
    pub inner: usize,
}

/// Runs a pointwise kernel.
pub fn map(l: &Launch<'_>, d: Domain<'_>, groups: &[Group]) -> Result<(), Fault> {
    let n = d.extents.get(d.inner).copied().unwrap_or(1);
    let mut outer = [1usize; 256];
    let outer = &mut outer[..d.extents.len()];
    outer.copy_from_slice(d.extents);
    if let Some(e) = outer.get_mut(d.inner) {
        *e = 1;
    }
    let rows: usize = outer.iter().product();
    if rows == 0 || n == 0 {
        return Ok(());
    }
    let cost: usize = groups.iter().map(|g| g.program.each.len() + 2).sum();
    let overhead: usize = groups.iter().map(|g| g.program.row.len() * 8 + 64).sum();
    let total = rows as u64 * (n * cost + overhead) as u64;
    let threads = rayon::current_num_threads();
    let piece = (rows * n / (threads * 8)).clamp(2 * CHUNK, 64 * CHUNK).next_multiple_of(CHUNK);
    let pieces = n.div_ceil(piece);
    let units = rows * pieces;
    let per_task = units.div_ceil(threads * 8).max((SPLIT / (piece.min(n) * cost + overhead)).max(1));
    l.spread(units.div_ceil(per_task), total, |t, task| {
        for u in t * per_task..((t + 1) * per_task).min(units) {
            let (row, part) = (u / pieces, u % pieces);
            coordinates(row, outer, &mut task.frame.int[..outer.len()]);
            let (lo, hi) = (part * piece, ((part + 1) * piece).min(n));
            l.store(&mut task.frame, groups, d.inner, lo as i64, hi as i64, [&[]; ACCS])?;
        }
        Ok(())
    })
}

/// Element operations worth a task of their own.
const SPLIT: usize = 1 << 14;

/// Runs a row kernel: statistics, then stores.
pub fn rows(l: &Launch<'_>, extents: &[usize], stats: &[StatCode], groups: &[Group]) -> Result<(), Fault> {
    let Some((n, outer)) = extents.split_last() else { return Ok(()) };
    let rows: usize = outer.iter().product();
    let cost: usize = groups.iter().map(|g| g.program.each.len() + 2).sum::<usize>()
        + stats.iter().map(|s| s.value.each.len() + 2).sum::<usize>();
    let row_cost = n * cost + 100;
    let per_task = rows.div_ceil(rayon::current_num_threads() * 8).max(SPLIT / row_cost).max(1);
    l.spread(rows.div_ceil(per_task), (rows * row_cost) as u64, |t, task| {
        for row in t * per_task..((t + 1) * per_task).min(rows) {
            coordinates(row, outer, &mut task.frame.int[..outer.len()]);
            for s in stats {
                s.run(&mut task.frame, l, *n)?;
            }
            l.store(&mut task.frame, groups, outer.len(), 0, *n as i64, [&[]; ACCS])?;
        }
        Ok(())
    })
}
