//! Statistics of a matmul's result by tiles of its columns.

use super::launch::Launch;
use super::lower::{Builder, Refused};
use super::memory::Run;
use super::ops::Arg;
use super::program::{ACCS, CHUNK, Env, Fault, Frame, Int, Program, Value};
use frit_kernels::spec::{FEW_PARTIAL_COLUMNS, PARTIAL_COLUMNS, PartialKind, Partials};

/// Columns that whole tiles of any width have; blocks of columns are multiples of it.
pub const TILE: usize = PARTIAL_COLUMNS as usize;
/// Tiles of a chunk at most.
const TILES: usize = CHUNK / FEW_PARTIAL_COLUMNS as usize;

/// Compiled [`Partials`].
#[derive(Debug)]
pub struct PartialsCode {
    value: Program,
    index: Program,
    kind: PartialKind,
    columns: usize,
    arg: u16,
}

impl PartialsCode {
    /// For a matmul whose columns are axis `n_axis`.
    pub fn new(b: &mut Builder<'_>, p: &Partials, n_axis: usize) -> Result<Self, Refused> {
        let (value, index) = (b.values(&[p.value], Some(n_axis))?, b.index(&p.index, n_axis)?);
        Ok(PartialsCode { value, index, kind: p.kind, columns: p.columns as usize, arg: p.arg.0 })
    }
    /// Writes the statistics of columns `[lo, hi)` of the row in the frame; `lo` begins a tile, and the accumulators begin
    /// at `lo`.
    pub fn run(
        &self,
        frame: &mut Frame,
        l: &Launch<'_>,
        lo: usize,
        hi: usize,
        accs: [&[f32]; ACCS],
    ) -> Result<(), Fault> {
        let fault = Fault { arg: self.arg };
        let mut a = lo;
        while a < hi {
            let n = (hi - a).min(CHUNK);
            self.value.begin(frame, l.read)?;
            let env = Env { views: l.read, accs: accs.map(|s| s.get(a - lo..).unwrap_or_default()) };
            self.value.run(frame, &env, a as i64, n)?;
            let mut numbers = [[0f32; 2]; TILES];
            let (each, same);
            let v: &[f32] = match self.value.f32(frame, 0, n) {
                Arg::Each(v) => {
                    each = v;
                    each
                }
                Arg::All(v) => {
                    same = [v; CHUNK];
                    same.get(..n).unwrap_or_default()
                }
            };
            for (i, (to, v)) in numbers.iter_mut().zip(v.chunks(self.columns)).enumerate() {
                *to = statistics(self.kind, v, a + i * self.columns);
            }
            self.index.begin(frame, l.read)?;
            let (first, tiles) = (a / self.columns, n.div_ceil(self.columns));
            for (t, found) in numbers.iter().take(tiles).enumerate() {
                let start = self.at(frame, l, (first + t) as i64)?;
                let view = l.write.get(self.arg as usize).ok_or(fault)?;
                let count = self.kind.numbers() as usize;
                if !view.write(Run { start, step: 1 }, count, |i| found.get(i).map_or(0, |v| v.to_bits())) {
                    return Err(fault);
                }
            }
            a += n;
        }
        Ok(())
    }
    fn at(&self, frame: &mut Frame, l: &Launch<'_>, tile: i64) -> Result<i64, Fault> {
        let of = |r: u16| frame.int.get(r as usize).copied().unwrap_or(-1);
        match self.index.outputs.first() {
            Some(Value::I(Int::Row(r))) => Ok(of(*r)),
            Some(Value::I(Int::Run { base, step })) => Ok(of(*base) + of(*step) * tile),
            _ => {
                self.index.run(frame, &Env::new(l.read), tile, 1)?;
                let mut at = [0];
                self.index.copy_i32(frame, 0, tile, &mut at);
                Ok(i64::from(at[0]))
            }
        }
    }
}

/// The numbers of a tile that begins at column `first`.
fn statistics(kind: PartialKind, v: &[f32], first: usize) -> [f32; 2] {
    let sum = |f: &dyn Fn(f64) -> f64| v.iter().map(|v| f(f64::from(*v))).sum::<f64>();
    match kind {
        PartialKind::Squares => [sum(&|v| v * v) as f32, 0.0],
        PartialKind::Moments => {
            let mean = sum(&|v| v) / v.len().max(1) as f64;
            [mean as f32, sum(&|v| (v - mean) * (v - mean)) as f32]
        }
        PartialKind::Largest => {
            let mut found = [f32::MIN, first as f32];
            for (i, v) in v.iter().enumerate() {
                if *v > found[0] {
                    found = [*v, (first + i) as f32];
                }
            }
            found
        }
    }
}
