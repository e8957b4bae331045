//! Matrix products: few rows straight on the stored format, many rows through panels of floats.

use super::gemv::{self, Rows, Starts};
use super::launch::{Group, Launch, Task, coordinates, mentions};
use super::lower::{Builder, Refused};
use super::memory::{Run, View};
use super::partials::{PartialsCode, TILE};
use super::program::{ACCS, CHUNK, Env, Fault, Frame, Int, Program, Reg, Value};
use super::row::{self, StatCode};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{Expr, ExprId, KernelSpec, MatmulPrecision, Stat, split_bf16};
use rayon::prelude::*;

/// Rows of the left side below which the stored format is multiplied directly.
const FEW: usize = 8;
/// Floats of a panel of the right side.
const PANEL: usize = 1 << 18;
/// Rows of the left side that share a panel.
const BAND: usize = 512;

/// Contiguous rows of an argument.
#[derive(Debug)]
pub struct RowSource {
    /// The argument.
    pub arg: u16,
    /// How its elements are stored.
    pub storage: Storage,
    starts: Program,
}

/// `expr` as rows along `n_axis` of contiguous elements along `k_axis`, if it is a load of that form.
pub fn row_source(
    b: &mut Builder<'_>,
    spec: &KernelSpec,
    expr: ExprId,
    n_axis: usize,
    k_axis: usize,
) -> Result<Option<RowSource>, Refused> {
    let Expr::Load { arg, index } = spec.exprs.get(expr) else { return Ok(None) };
    let Some(storage) = spec.arg(*arg).map(|a| a.storage).filter(|s| s.scalar() == Scalar::F32) else {
        return Ok(None);
    };
    let k = k_axis as u8;
    let start = match index.linear_in(&Sym::Axis(k)) {
        Some((step, start)) if step.is(1) => start,
        _ => return Ok(None),
    };
    let values: Vec<ExprId> = start
        .symbols()
        .into_iter()
        .filter_map(|s| if let Sym::Value(v) = s { Some(ExprId(v)) } else { None })
        .collect();
    if mentions(&spec.exprs, &values, |a| a == k) {
        return Ok(None);
    }
    Ok(Some(RowSource { arg: arg.0, storage, starts: b.index(&start, n_axis)? }))
}

impl RowSource {
    /// Where rows `[lo, lo + n)` begin, n ≤ [`CHUNK`], at the coordinates in the frame.
    pub fn starts<'b>(
        &self,
        frame: &mut Frame,
        l: &Launch<'_>,
        lo: usize,
        n: usize,
        buffer: &'b mut [i32; CHUNK],
    ) -> Result<Starts<'b>, Fault> {
        let fault = Fault { arg: self.arg };
        self.starts.begin(frame, l.read)?;
        let at = |r: Reg| frame.int[r as usize];
        match self.starts.outputs.first() {
            Some(Value::I(Int::Row(r))) => Ok(Starts::Run(at(*r), 0)),
            Some(Value::I(Int::Run { base, step })) => {
                let (base, step) = (at(*base), at(*step));
                let first = step.checked_mul(lo as i64).and_then(|d| d.checked_add(base)).ok_or(fault)?;
                Ok(Starts::Run(first, step))
            }
            _ => {
                let len = l.read.get(self.arg as usize).map_or(0, View::len);
                if len > i32::MAX as usize {
                    return Err(fault);
                }
                let n = n.min(CHUNK);
                self.starts.run(frame, &Env::new(l.read), lo as i64, n)?;
                let to = buffer.get_mut(..n).unwrap_or_default();
                self.starts.copy_i32(frame, 0, lo as i64, to);
                Ok(Starts::Each(to))
            }
        }
    }
}

#[derive(Debug)]
enum Rhs {
    /// Rows of a stored matrix.
    Rows(RowSource),
    /// Any expression; the flag says that it runs along N instead of K.
    Values(Program, bool),
}

/// A compiled matmul.
#[derive(Debug)]
pub struct MatMul {
    k: Reg,
    lhs: Program,
    stats: Vec<StatCode>,
    /// Extent of the axis k for the statistics.
    over: Reg,
    /// Whether the statistics scale the results.
    scales: bool,
    rhs: Vec<Rhs>,
    precision: MatmulPrecision,
    shared: bool,
    /// Writes the left side, if it is wanted.
    pub left: Vec<Group>,
    /// Writes statistics of the result, if they are wanted.
    partials: Option<PartialsCode>,
    /// Statistics of runs of columns, and the columns of a run.
    runs: Option<(Vec<StatCode>, usize)>,
}

/// How one launch is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    groups: usize,
    rows: usize,
    n: usize,
    few: bool,
    band: usize,
    columns: usize,
}

impl Cut {
    fn bands(&self) -> usize {
        self.rows.div_ceil(self.band.max(1))
    }
    fn blocks(&self) -> usize {
        self.n.div_ceil(self.columns.max(1))
    }
    fn total_rows(&self) -> usize {
        self.groups * self.rows
    }
}

impl MatMul {
    /// Compiles the anchor.
    pub fn new(
        b: &mut Builder<'_>,
        spec: &KernelSpec,
        k: &Dim,
        lhs: ExprId,
        lhs_stats: &[Stat],
        rhs: &[ExprId],
    ) -> Result<Self, Refused> {
        let (nd, axes) = (spec.domain.len(), spec.domain.len() + 1);
        let (n_axis, k_axis) = (nd - 1, nd);
        let one = |b: &mut Builder<'_>, e: ExprId| -> Result<Rhs, Refused> {
            if let Some(rows) = row_source(b, spec, e, n_axis, k_axis)? {
                return Ok(Rhs::Rows(rows));
            }
            let along_n = runs_along(spec, e, n_axis, k_axis);
            Ok(Rhs::Values(b.values(&[e], Some(if along_n { n_axis } else { k_axis }))?, along_n))
        };
        Ok(MatMul {
            k: b.size(k)?,
            over: b.size(spec.stats_over.as_ref().unwrap_or(k))?,
            scales: spec.stores_statistics(),
            partials: spec.partials.as_ref().map(|p| PartialsCode::new(b, p, n_axis)).transpose()?,
            runs: match &spec.columns {
                Some(c) => {
                    let stats = row::stats_from(b, spec, axes, (&c.stats, lhs_stats.len()), n_axis)?;
                    let width = usize::try_from(c.width).ok().filter(|w| (1..=CHUNK).contains(w));
                    Some((stats, width.ok_or_else(|| format!("runs of {} columns", c.width))?))
                }
                None => None,
            },
            lhs: b.values(&[lhs], Some(k_axis))?,
            stats: row::stats(b, spec, axes, lhs_stats, k_axis)?,
            rhs: rhs.iter().map(|e| one(b, *e)).collect::<Result<_, _>>()?,
            precision: spec.precision,
            shared: !mentions(&spec.exprs, rhs, |a| (a as usize) < nd - 1),
            left: Vec::new(),
        })
    }
    fn cut(&self, extents: &[usize], k: usize) -> Cut {
        let (mut groups, mut rows, n) = match extents {
            [batch @ .., m, n] => (batch.iter().product(), *m, *n),
            _ => (0, 0, 0),
        };
        if self.shared {
            (groups, rows) = (1, groups * rows);
        }
        let few = rows < FEW
            && self.precision.parts() == 0
            && self.rhs.iter().all(|r| matches!(r, Rhs::Rows(s) if gemv::serves(s.storage, k)));
        let threads = rayon::current_num_threads();
        let unit = match &self.runs {
            Some((_, width)) => *width,
            None if self.partials.is_some() => TILE,
            None => 16,
        };
        let (band, columns) = if few {
            let most = CHUNK / unit * unit;
            (rows, (n * groups).div_ceil(threads * 8).next_multiple_of(unit).clamp(unit, most))
        } else {
            let columns = (PANEL / k.max(1)).clamp(32, CHUNK) / unit * unit;
            let band = rows.div_ceil(rows.div_ceil(BAND).max(1)).max(1);
            let mut columns = columns.min(n.next_multiple_of(unit)).max(unit);
            while columns > unit.max(64) && groups * rows.div_ceil(band) * n.div_ceil(columns) < threads * 3 {
                columns = (columns / 2).next_multiple_of(unit);
            }
            (band, columns)
        };
        Cut { groups, rows, n, few, band, columns }
    }
    /// How many matrices stand for each side.
    fn parts(&self) -> usize {
        self.precision.parts().max(1)
    }
    /// Floats a task needs, and floats of the left side.
    pub fn needs(&self, l: &[i64], extents: &[usize]) -> (usize, usize) {
        let k = l.get(self.k as usize).copied().and_then(|k| usize::try_from(k).ok()).unwrap_or(0);
        let c = self.cut(extents, k);
        let accs = self.rhs.len() * c.band * c.columns;
        let panel = if c.few { 0 } else { c.columns * k * self.parts() };
        (accs.saturating_add(panel), c.total_rows().saturating_mul(k * self.parts() + k / 32))
    }
    /// Runs the kernel; `left` has room for the left side.
    pub fn run(&self, l: &Launch<'_>, extents: &[usize], groups: &[Group], left: &mut [f32]) -> Result<(), Fault> {
        let k = l.size(self.k);
        let c = self.cut(extents, k);
        let (rows, n) = (c.total_rows(), c.n);
        if rows == 0 || n == 0 {
            return Ok(());
        }
        let (x, sums) = left.split_at_mut((rows * k * self.parts()).min(left.len()));
        self.fill_left(l, extents, k, x.get_mut(..rows * k).unwrap_or_default())?;
        split(x, rows * k, self.precision);
        let runs = k / 32;
        let sums = sums.get_mut(..rows * runs).unwrap_or_default();
        let needs_sums = |r: &Rhs| matches!(r, Rhs::Rows(s) if gemv::needs_sums(s.storage));
        if c.few && runs > 0 && self.rhs.iter().any(needs_sums) {
            for (x, s) in x.chunks_exact(k).zip(sums.chunks_exact_mut(runs)) {
                gemv::sums(x, s);
            }
        }
        let (x, sums) = (&*x, &*sums);
        let (bands, blocks) = (c.bands(), c.blocks());
        let work = (rows * n * self.rhs.len()) as u64 * (k as u64 / 8 + 8);
        l.spread(c.groups * bands * blocks, work, |t, task| {
            let (g, rest) = (t / (bands * blocks), t % (bands * blocks));
            let (block, band) = (rest / bands, rest % bands);
            let first = g * c.rows + band * c.band;
            let count = (c.rows - band * c.band).min(c.band);
            let part = Part {
                l,
                extents,
                groups,
                first,
                count,
                lo: block * c.columns,
                hi: ((block + 1) * c.columns).min(n),
                k,
            };
            let x = |i: usize| x.get((i * rows + first) * k..(i * rows + first + count) * k).unwrap_or_default();
            let sums = sums.get(first * runs..(first + count) * runs).unwrap_or_default();
            if c.few { self.few(&part, task, x(0), sums) } else { self.many(&part, task, x) }
        })
    }
    fn fill_left(&self, l: &Launch<'_>, extents: &[usize], k: usize, x: &mut [f32]) -> Result<(), Fault> {
        if k == 0 {
            return Ok(());
        }
        let over = l.size(self.over);
        let outer = &extents[..extents.len() - 1];
        let row = |row: usize, x: &mut [f32], frame: &mut Frame| {
            coordinates(row, outer, &mut frame.int[..outer.len()]);
            for s in &self.stats {
                s.run(frame, l, over)?;
            }
            self.lhs.begin(frame, l.read)?;
            self.lhs.fill(frame, &Env::new(l.read), 0, x)?;
            l.store(frame, &self.left, extents.len(), 0, k as i64, [&[]; ACCS])
        };
        let cost = k * (self.lhs.each.len() + 2 * self.stats.len() + 1);
        let rows = x.len() / k;
        let per_task = rows.div_ceil(rayon::current_num_threads() * 4).max((1 << 14) / cost.max(1)).max(1);
        if rows <= per_task {
            return l.spread_one(|t| x.chunks_exact_mut(k).enumerate().try_for_each(|(r, x)| row(r, x, &mut t.frame)));
        }
        x.par_chunks_mut(per_task * k).enumerate().try_for_each(|(p, part)| {
            l.spread_one(|t| {
                let each = part.chunks_exact_mut(k).enumerate();
                each.map(|(r, x)| row(p * per_task + r, x, &mut t.frame)).collect()
            })
        })
    }
    fn few(&self, p: &Part<'_>, task: &mut Task, x: &[f32], sums: &[f32]) -> Result<(), Fault> {
        let n = p.hi - p.lo;
        let frame = &mut task.frame;
        let rows = Rows { x, sums, count: p.count, k: p.k };
        for (rhs, acc) in self.rhs.iter().zip(task.work.chunks_exact_mut((p.count * n).max(1))) {
            let Rhs::Rows(source) = rhs else { continue };
            let fault = Fault { arg: source.arg };
            p.place(frame, p.first);
            let mut buffer = [0i32; CHUNK];
            let starts = source.starts(frame, p.l, p.lo, n, &mut buffer)?;
            let view = *p.l.read.get(source.arg as usize).ok_or(fault)?;
            if !matches!(view, View::Shared(_) | View::Counted(_)) {
                if !gemv::products(view, starts, rows, n, acc, n) {
                    return Err(fault);
                }
                continue;
            }
            let mut w = vec![0f32; p.k];
            for j in 0..n {
                let start = starts.at(j).ok_or(fault)? as i64;
                if !view.read_f32(Run { start, step: 1 }, &mut w) {
                    return Err(fault);
                }
                for (r, x) in x.chunks_exact(p.k.max(1)).enumerate() {
                    acc[r * n + j] = gemv::dot(x, &w);
                }
            }
        }
        p.finish(frame, &task.work, self)
    }
    /// `x(i)` is part i of the left side's rows.
    fn many<'x>(&self, p: &Part<'_>, task: &mut Task, x: impl Fn(usize) -> &'x [f32]) -> Result<(), Fault> {
        let (n, k) = (p.hi - p.lo, p.k);
        let frame = &mut task.frame;
        let (accs, panel) = task.work.split_at_mut(self.rhs.len() * p.count * n);
        for (rhs, acc) in self.rhs.iter().zip(accs.chunks_exact_mut((p.count * n).max(1))) {
            p.place(frame, p.first);
            let panels = panel.get_mut(..n * k * self.parts()).unwrap_or_default();
            let panel = panels.get_mut(..n * k).unwrap_or_default();
            let (strides, direct) = match rhs {
                Rhs::Rows(source) => {
                    let mut buffer = [0i32; CHUNK];
                    let starts = source.starts(frame, p.l, p.lo, n, &mut buffer)?;
                    let fault = Fault { arg: source.arg };
                    let view = *p.l.read.get(source.arg as usize).ok_or(fault)?;
                    match (view, starts) {
                        (View::F32(w), Starts::Run(start, step))
                            if start >= 0 && step >= 0 && self.precision.parts() == 0 =>
                        {
                            let w = w.get(start as usize..).ok_or(fault)?;
                            ((step as usize, 1), Some((w, fault)))
                        }
                        _ => {
                            for (j, to) in panel.chunks_exact_mut(k.max(1)).enumerate() {
                                let start = starts.at(j).ok_or(fault)? as i64;
                                if !view.read_f32(Run { start, step: 1 }, to) {
                                    return Err(fault);
                                }
                            }
                            ((k, 1), None)
                        }
                    }
                }
                Rhs::Values(program, along_n) => {
                    let env = Env::new(p.l.read);
                    let (count, len, axis, first) =
                        if *along_n { (k, n, p.extents.len(), 0) } else { (n, k, p.extents.len() - 1, p.lo) };
                    let x0 = if *along_n { p.lo as i64 } else { 0 };
                    for (j, to) in panel.chunks_exact_mut(len.max(1)).take(count).enumerate() {
                        frame.int[axis] = (first + j) as i64;
                        program.begin(frame, p.l.read)?;
                        program.fill(frame, &env, x0, to)?;
                    }
                    (if *along_n { (1, n) } else { (k, 1) }, None)
                }
            };
            let (w, fault) = match direct {
                Some(stored) => stored,
                None => {
                    split(panels, n * k, self.precision);
                    (&*panels, Fault { arg: 0 })
                }
            };
            for (t, (i, j)) in self.precision.terms().iter().enumerate() {
                let w = w.get(j * n * k..).unwrap_or_default();
                if !gemm(p.count, n, k, acc, n, t > 0, (x(*i), k), (w, strides.0, strides.1)) {
                    return Err(fault);
                }
            }
        }
        p.finish(frame, &task.work, self)
    }
}

/// Makes of the matrix in the first `len` floats as many that sum to it as the precision asks for, one behind the other.
fn split(x: &mut [f32], len: usize, precision: MatmulPrecision) {
    let mut rest = x;
    for _ in 0..precision.parts() {
        let (part, behind) = rest.split_at_mut(len.min(rest.len()));
        for (i, v) in part.iter_mut().enumerate() {
            let (nearest, left) = split_bf16(*v);
            *v = nearest;
            if let Some(next) = behind.get_mut(i) {
                *next = left;
            }
        }
        rest = behind;
    }
}

/// A task's rows and columns.
struct Part<'a> {
    l: &'a Launch<'a>,
    extents: &'a [usize],
    groups: &'a [Group],
    first: usize,
    count: usize,
    lo: usize,
    hi: usize,
    k: usize,
}

impl Part<'_> {
    fn place(&self, frame: &mut Frame, row: usize) {
        let outer = &self.extents[..self.extents.len() - 1];
        coordinates(row, outer, &mut frame.int[..outer.len()]);
    }
    fn finish(&self, frame: &mut Frame, accs: &[f32], of: &MatMul) -> Result<(), Fault> {
        let (n, count) = (self.hi - self.lo, of.rhs.len());
        let over = self.l.size(of.over);
        for r in 0..self.count {
            self.place(frame, self.first + r);
            for s in of.stats.iter().filter(|_| of.scales) {
                s.run(frame, self.l, over)?;
            }
            let mut slices: [&[f32]; ACCS] = [&[]; ACCS];
            for (j, s) in slices.iter_mut().take(count).enumerate() {
                *s = accs.get((j * self.count + r) * n..(j * self.count + r + 1) * n).unwrap_or_default();
            }
            let inner = self.extents.len() - 1;
            if let Some(p) = &of.partials {
                p.run(frame, self.l, self.lo, self.hi, slices)?;
            }
            let Some((stats, width)) = &of.runs else {
                self.l.store(frame, self.groups, inner, self.lo as i64, self.hi as i64, slices)?;
                continue;
            };
            for lo in (self.lo..self.hi).step_by(*width) {
                let own = slices.map(|s| s.get(lo - self.lo..).unwrap_or_default());
                for s in stats {
                    s.run_from(frame, self.l, lo, *width, own)?;
                }
                self.l.store(frame, self.groups, inner, lo as i64, (lo + width) as i64, own)?;
            }
        }
        Ok(())
    }
}

fn runs_along(spec: &KernelSpec, e: ExprId, n_axis: usize, k_axis: usize) -> bool {
    let step = |d: &Dim, axis: usize| d.linear_in(&Sym::Axis(axis as u8)).is_some_and(|(c, _)| c.is(1));
    let (mut n, mut k) = (false, false);
    for id in spec.exprs.reachable(&[e]) {
        if let Expr::Load { index, .. } = spec.exprs.get(id) {
            n |= step(index, n_axis);
            k |= step(index, k_axis);
        }
    }
    n && !k
}

/// `to[i, j] = Σ_k a[i, k]·b[j, k]`, added to what is there if `add`; `a` has rows of `lda`, `b` strides along j and k.
/// `false` when a matrix is too short for that.
pub fn gemm(
    m: usize,
    n: usize,
    k: usize,
    to: &mut [f32],
    ldt: usize,
    add: bool,
    (a, lda): (&[f32], usize),
    (b, bj, bk): (&[f32], usize, usize),
) -> bool {
    let span = |x: usize, sx: usize, y: usize, sy: usize| {
        (x.max(1) - 1).checked_mul(sx)?.checked_add((y.max(1) - 1).checked_mul(sy)?)?.checked_add(1)
    };
    let fits = |have: usize, need: Option<usize>| need.is_some_and(|n| n <= have && n <= isize::MAX as usize / 4);
    if m == 0 || n == 0 {
        return true;
    }
    if !fits(to.len(), span(m, ldt, n, 1)) || ldt < n {
        return false;
    }
    if k == 0 {
        if !add {
            to.chunks_mut(ldt).take(m).for_each(|r| r.iter_mut().take(n).for_each(|v| *v = 0.0));
        }
        return true;
    }
    if !fits(a.len(), span(m, lda, k, 1)) || !fits(b.len(), span(n, bj, k, bk)) {
        return false;
    }
    let s = |v: usize| v as isize;
    // SAFETY: the spans of all three matrices were checked against their slices just above, rows of `to` do not
    // overlap because ldt ≥ n, and `to` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.as_mut_ptr(),
            1,
            s(ldt),
            add,
            a.as_ptr(),
            1,
            s(lda),
            b.as_ptr(),
            s(bj),
            s(bk),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    true
}
