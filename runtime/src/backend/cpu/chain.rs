//! Two products in a row: bands of rows, and slices of the values between the products.

use super::launch::{Group, Launch, Task, coordinates};
use super::lower::{Builder, Refused};
use super::matmul::{RowSource, gemm, row_source};
use super::memory::Run;
use super::program::{ACCS, CHUNK, Env, Fault, Program, Reg};
use super::row::{self, StatCode};
use frit_kernels::spec::{self, KernelSpec};

/// Rows of a band.
const BAND: usize = 16;
/// Middle values of a row at once.
const SLICE: usize = 256;

/// A compiled chain.
#[derive(Debug)]
pub struct Chain {
    k: Reg,
    inner: Reg,
    lhs: Program,
    stats: Vec<StatCode>,
    up: Vec<RowSource>,
    middle: Program,
    down: RowSource,
}

impl Chain {
    /// Compiles the anchor.
    pub fn new(b: &mut Builder<'_>, spec: &KernelSpec, c: &spec::Chain) -> Result<Self, Refused> {
        let n_axis = spec.domain.len().saturating_sub(1);
        let (inner_axis, k_axis) = (n_axis + 1, n_axis + 2);
        let none = || Refused::from("a chain whose right sides are no rows");
        let mut up = Vec::new();
        for e in &c.up {
            up.push(row_source(b, spec, *e, inner_axis, k_axis)?.ok_or_else(none)?);
        }
        Ok(Chain {
            k: b.size(&c.k)?,
            inner: b.size(&c.inner)?,
            lhs: b.values(&[c.lhs], Some(k_axis))?,
            stats: row::stats(b, spec, k_axis + 1, &c.lhs_stats, k_axis)?,
            up,
            middle: b.values(&[c.middle], Some(inner_axis))?,
            down: row_source(b, spec, c.down, n_axis, inner_axis)?.ok_or_else(none)?,
        })
    }
    /// Floats a task needs.
    pub fn needs(&self, ints: &[i64], extents: &[usize]) -> usize {
        let k = ints.get(self.k as usize).copied().and_then(|k| usize::try_from(k).ok()).unwrap_or(0);
        let n = extents.last().copied().unwrap_or(0);
        let row = k.saturating_add(n).saturating_add(SLICE * (self.up.len() + 1));
        row.saturating_mul(BAND).saturating_add(k.max(n).saturating_mul(SLICE))
    }
    /// Runs the kernel.
    pub fn run(&self, l: &Launch<'_>, extents: &[usize], groups: &[Group]) -> Result<(), Fault> {
        let [outer @ .., n] = extents else { return Ok(()) };
        let (rows, k, inner) = (outer.iter().product::<usize>(), l.size(self.k), l.size(self.inner));
        if rows == 0 || *n == 0 {
            return Ok(());
        }
        let work = rows as u64 * inner as u64 * ((self.up.len() * k + n) as u64 / 8 + 8);
        l.spread(rows.div_ceil(BAND), work, |t, task| {
            let first = t * BAND;
            let band = Band { outer, n: *n, k, inner, first, count: (rows - first).min(BAND) };
            self.band(l, groups, &band, task)
        })
    }
    fn band(&self, l: &Launch<'_>, groups: &[Group], p: &Band<'_>, task: &mut Task) -> Result<(), Fault> {
        let (frame, count) = (&mut task.frame, p.count);
        let (x, rest) = task.work.split_at_mut(count * p.k);
        let (accs, rest) = rest.split_at_mut(self.up.len() * count * SLICE);
        let (middle, rest) = rest.split_at_mut(count * SLICE);
        let (out, panel) = rest.split_at_mut(count * p.n);
        let place = |frame: &mut super::program::Frame, r: usize| {
            coordinates(p.first + r, p.outer, &mut frame.int[..p.outer.len()]);
        };
        if p.k > 0 {
            for (r, x) in x.chunks_exact_mut(p.k).enumerate() {
                place(frame, r);
                for s in &self.stats {
                    s.run(frame, l, p.k)?;
                }
                self.lhs.begin(frame, l.read)?;
                self.lhs.fill(frame, &Env::new(l.read), 0, x)?;
            }
        }
        out.fill(0.0);
        place(frame, 0);
        for i0 in (0..p.inner).step_by(SLICE) {
            let m = (p.inner - i0).min(SLICE);
            for (source, acc) in self.up.iter().zip(accs.chunks_exact_mut(count * SLICE)) {
                rows(source, frame, l, (i0, m), (0, p.k), panel)?;
                if !gemm(count, m, p.k, acc, SLICE, false, (x, p.k), (panel, p.k, 1)) {
                    return Err(Fault { arg: source.arg });
                }
            }
            for (r, middle) in middle.chunks_exact_mut(SLICE).enumerate() {
                place(frame, r);
                let mut slices: [&[f32]; ACCS] = [&[]; ACCS];
                for (slot, acc) in slices.iter_mut().zip(accs.chunks_exact(count * SLICE)) {
                    *slot = acc.get(r * SLICE..r * SLICE + m).unwrap_or_default();
                }
                self.middle.begin(frame, l.read)?;
                for at in (0..m).step_by(CHUNK) {
                    let len = (m - at).min(CHUNK);
                    let env = Env { views: l.read, accs: slices.map(|s| s.get(at..).unwrap_or_default()) };
                    self.middle.run(frame, &env, (i0 + at) as i64, len)?;
                    self.middle.copy_f32(frame, 0, middle.get_mut(at..at + len).unwrap_or_default());
                }
            }
            place(frame, 0);
            rows(&self.down, frame, l, (0, p.n), (i0, m), panel)?;
            if !gemm(count, p.n, m, out, p.n, true, (middle, SLICE), (panel, m, 1)) {
                return Err(Fault { arg: self.down.arg });
            }
        }
        for (r, out) in out.chunks_exact(p.n).enumerate() {
            place(frame, r);
            let mut accs: [&[f32]; ACCS] = [&[]; ACCS];
            accs[0] = out;
            l.store(frame, groups, p.outer.len(), 0, p.n as i64, accs)?;
        }
        Ok(())
    }
}

/// Elements `[from, from + len)` of rows `[lo, lo + count)`, one row behind the other.
pub(super) fn rows(
    source: &RowSource,
    frame: &mut super::program::Frame,
    l: &Launch<'_>,
    (lo, count): (usize, usize),
    (from, len): (usize, usize),
    to: &mut [f32],
) -> Result<(), Fault> {
    let fault = Fault { arg: source.arg };
    let view = *l.read.get(source.arg as usize).ok_or(fault)?;
    let mut buffer = [0i32; CHUNK];
    for block in (0..count).step_by(CHUNK) {
        let n = (count - block).min(CHUNK);
        let starts = source.starts(frame, l, lo + block, n, &mut buffer)?;
        for j in 0..n {
            let start = starts.at(j).and_then(|s| s.checked_add(from)).ok_or(fault)?;
            let row = to.get_mut((block + j) * len..(block + j + 1) * len).ok_or(fault)?;
            if !view.read_f32(Run { start: start as i64, step: 1 }, row) {
                return Err(fault);
            }
        }
    }
    Ok(())
}

/// Rows of one task.
struct Band<'a> {
    outer: &'a [usize],
    n: usize,
    k: usize,
    inner: usize,
    first: usize,
    count: usize,
}
