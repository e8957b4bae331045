//! Two convolutions in a row: bands of rows of the result, each with the values between that its windows reach.

use super::chain::rows;
use super::launch::{Group, Launch, Task};
use super::lower::{Builder, Refused};
use super::matmul::{RowSource, gemm, row_source};
use super::program::{ACCS, CHUNK, Env, Fault, Program, Reg};
use frit_kernels::spec::{self, KernelSpec, Window};

/// Rows of places in a band.
const BAND: usize = 8;
/// Axes of an image and of the channels of the result; of rows, columns and channels between; of the sums.
const IMAGE: usize = 0;
const COLUMN: usize = 3;
const MIDDLE: [usize; 3] = [4, 5, 6];
const SUMMED: [usize; 2] = [7, 8];

/// Two compiled convolutions.
#[derive(Debug)]
pub struct ConvChain {
    windows: [Window; 2],
    channels: usize,
    depth: usize,
    k: Reg,
    lhs: Program,
    up: RowSource,
    middle: Program,
    down: RowSource,
}

impl ConvChain {
    /// Axes that its expressions use.
    pub const AXES: usize = 9;
    /// Compiles the anchor.
    pub fn new(b: &mut Builder<'_>, spec: &KernelSpec, c: &spec::ConvChain) -> Result<Self, Refused> {
        let none = || Refused::from("convolutions in a row whose weights are no rows");
        let size = |n: u64| usize::try_from(n).map_err(|_| Refused::from("convolutions too large"));
        Ok(ConvChain {
            windows: c.windows,
            channels: size(c.channels)?,
            depth: size(c.depth())?,
            k: b.size(&c.k)?,
            lhs: b.values(&[c.lhs], Some(SUMMED[0]))?,
            up: row_source(b, spec, c.up, MIDDLE[2], SUMMED[0])?.ok_or_else(none)?,
            middle: b.values(&[c.middle], Some(MIDDLE[2]))?,
            down: row_source(b, spec, c.down, COLUMN, SUMMED[1])?.ok_or_else(none)?,
        })
    }
    /// Most rows between that a band reaches, columns between that all windows reach, and the first of those.
    fn reach(&self) -> (usize, usize, usize) {
        let [rows, columns] = self.windows;
        let height = rows.halo(rows.places.min(BAND as u64)).min(rows.extent);
        let (lo, hi) = columns.reached(0, columns.places);
        (height as usize, (hi - lo) as usize, lo as usize)
    }
    /// Floats a task needs.
    pub fn needs(&self, ints: &[i64], extents: &[usize]) -> usize {
        let k = ints.get(self.k as usize).copied().and_then(|k| usize::try_from(k).ok()).unwrap_or(0);
        let (_, columns, n) = result(extents);
        let (height, width, _) = self.reach();
        let between = height.saturating_mul(width).saturating_mul(k.saturating_add(2 * self.channels));
        let places = columns.saturating_mul(self.depth.saturating_add(n));
        let panel = self.channels.saturating_mul(k).max(n.saturating_mul(self.depth));
        between.saturating_add(places).saturating_add(panel)
    }
    /// Runs the kernel.
    pub fn run(&self, l: &Launch<'_>, extents: &[usize], groups: &[Group]) -> Result<(), Fault> {
        let (height, columns, n) = result(extents);
        let images = extents.first().copied().unwrap_or(0);
        if images * height * columns * n == 0 {
            return Ok(());
        }
        let bands = height.div_ceil(BAND);
        let (rows, width, _) = self.reach();
        let first = (bands * rows * width * self.channels) as u64 * (l.size(self.k) as u64 / 8 + 8);
        let second = (height * columns * n) as u64 * (self.depth as u64 / 8 + 8);
        l.spread(images * bands, images as u64 * (first + second), |t, task| {
            let top = t % bands * BAND;
            let band = Band { image: t / bands, top, bottom: (top + BAND).min(height), columns, n };
            self.band(l, groups, &band, task)
        })
    }
    fn band(&self, l: &Launch<'_>, groups: &[Group], p: &Band, task: &mut Task) -> Result<(), Fault> {
        let (frame, k, c) = (&mut task.frame, l.size(self.k), self.channels);
        let (y0, y1) = self.windows[0].reached(p.top as u64, (p.bottom - p.top) as u64);
        let (y0, y1) = (y0 as usize, y1 as usize);
        let (_, width, x0) = self.reach();
        let count = (y1 - y0) * width;
        let (x, rest) = task.work.split_at_mut(count * k);
        let (acc, rest) = rest.split_at_mut(count * c);
        let (middle, rest) = rest.split_at_mut(count * c);
        let (taken, rest) = rest.split_at_mut(p.columns * self.depth);
        let (out, panel) = rest.split_at_mut(p.columns * p.n);
        frame.int[IMAGE] = p.image as i64;
        let place = |frame: &mut super::program::Frame, i: usize| {
            frame.int[MIDDLE[0]] = (y0 + i / width) as i64;
            frame.int[MIDDLE[1]] = (x0 + i % width) as i64;
        };
        if k > 0 {
            for (i, x) in x.chunks_exact_mut(k).enumerate() {
                place(frame, i);
                self.lhs.begin(frame, l.read)?;
                self.lhs.fill(frame, &Env::new(l.read), 0, x)?;
            }
        }
        rows(&self.up, frame, l, (0, c), (0, k), panel)?;
        if !gemm(count, c, k, acc, c, false, (x, k), (panel, k, 1)) {
            return Err(Fault { arg: self.up.arg });
        }
        for (i, (acc, middle)) in acc.chunks_exact(c).zip(middle.chunks_exact_mut(c)).enumerate() {
            place(frame, i);
            self.middle.begin(frame, l.read)?;
            for (j, (acc, to)) in acc.chunks(CHUNK).zip(middle.chunks_mut(CHUNK)).enumerate() {
                let mut accs: [&[f32]; ACCS] = [&[]; ACCS];
                accs[0] = acc;
                self.middle.run(frame, &Env { views: l.read, accs }, (j * CHUNK) as i64, to.len())?;
                self.middle.copy_f32(frame, 0, to);
            }
        }
        rows(&self.down, frame, l, (0, p.n), (0, self.depth), panel)?;
        for r in p.top..p.bottom {
            self.take(r, (y0, x0, width), middle, taken);
            if !gemm(p.columns, p.n, self.depth, out, p.n, false, (taken, self.depth), (panel, self.depth, 1)) {
                return Err(Fault { arg: self.down.arg });
            }
            frame.int[1] = r as i64;
            for (s, out) in out.chunks_exact(p.n).enumerate() {
                frame.int[2] = s as i64;
                let mut accs: [&[f32]; ACCS] = [&[]; ACCS];
                accs[0] = out;
                l.store(frame, groups, COLUMN, 0, p.n as i64, accs)?;
            }
        }
        Ok(())
    }
    /// The windows of row `r`, one a place, channel by channel and tap by tap; `(y0, x0)` is the first value between, of
    /// rows of `width`.
    fn take(&self, r: usize, (y0, x0, width): (usize, usize, usize), middle: &[f32], taken: &mut [f32]) {
        let [rows, columns] = self.windows;
        let taps = (rows.taps * columns.taps) as usize;
        taken.fill(0.0);
        for (s, window) in taken.chunks_exact_mut(self.depth).enumerate() {
            for (u, v) in (0..rows.taps).flat_map(|u| (0..columns.taps).map(move |v| (u, v))) {
                let (Some(y), Some(x)) = (rows.at(r as u64, u), columns.at(s as u64, v)) else { continue };
                let at = ((y as usize - y0) * width + x as usize - x0) * self.channels;
                let tap = (u * columns.taps + v) as usize;
                let values = middle.get(at..at + self.channels).unwrap_or_default();
                window.iter_mut().skip(tap).step_by(taps).zip(values).for_each(|(to, value)| *to = *value);
            }
        }
    }
}

/// Rows, columns and channels of the result.
fn result(extents: &[usize]) -> (usize, usize, usize) {
    match extents {
        [_, rows, columns, n] => (*rows, *columns, *n),
        _ => (0, 0, 0),
    }
}

/// Rows of one task.
struct Band {
    image: usize,
    top: usize,
    bottom: usize,
    columns: usize,
    n: usize,
}
