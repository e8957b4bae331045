//! Products of few rows with a stored matrix: dot products straight on the stored format.
//!
//! A row of the matrix is unpacked once for up to four rows of the left side. The order of summation is the same for
//! every number of rows: it depends on the length alone.

use super::dequant::{fixed, unpack_iq4_xs, unpack_q2k, unpack_q3k, unpack_q4k, unpack_q5k, unpack_q6k, unpack32};
use super::math::{bf16_to_f32, half_to_f32};
use super::memory::View;
use frit_kernels::dtype::Storage;

/// The left side: few dense rows, and the sums of their runs of 32 elements.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// `count` rows of `k` elements.
    pub x: &'a [f32],
    /// `count` rows of `k / 32` sums; may be empty when no storage with minima is multiplied.
    pub sums: &'a [f32],
    /// Rows.
    pub count: usize,
    /// Length of a row.
    pub k: usize,
}

/// Where the rows of the matrix begin, in elements.
#[derive(Clone, Copy)]
pub enum Starts<'a> {
    /// `start + j·step`.
    Run(i64, i64),
    /// One each.
    Each(&'a [i32]),
}

impl Starts<'_> {
    /// Of row `j`.
    #[inline(always)]
    pub fn at(&self, j: usize) -> Option<usize> {
        let v = match self {
            Starts::Run(start, step) => step.checked_mul(j as i64)?.checked_add(*start)?,
            Starts::Each(v) => i64::from(*v.get(j)?),
        };
        usize::try_from(v).ok()
    }
}

/// Whether rows of `k` elements of `storage` can be multiplied as they are stored.
pub fn serves(storage: Storage, k: usize) -> bool {
    storage.scalar() == frit_kernels::dtype::Scalar::F32 && k as u64 % storage.block_elems() == 0
}

/// Whether products with `storage` need [`Rows::sums`].
pub fn needs_sums(storage: Storage) -> bool {
    matches!(storage, Storage::Q4_1 | Storage::Q5_1 | Storage::Q4K | Storage::Q5K | Storage::Q4F | Storage::Q8F)
}

/// Sums of runs of 32 elements.
pub fn sums(x: &[f32], to: &mut [f32]) {
    for (t, c) in to.iter_mut().zip(x.chunks_exact(32)) {
        *t = super::ops::sum(c);
    }
}

/// `out[r·stride + j] = Σ_k x[r, k] · w[start(j) + k]` for j < n; `false` when a row leaves the matrix.
pub fn products(w: View<'_>, starts: Starts<'_>, rows: Rows<'_>, n: usize, out: &mut [f32], stride: usize) -> bool {
    struct Go<'a>(View<'a>, Starts<'a>, Rows<'a>, usize, &'a mut [f32], usize);
    impl pulp::NullaryFnOnce for Go<'_> {
        type Output = bool;
        #[inline(always)]
        fn call(self) -> bool {
            let Go(w, starts, rows, n, out, stride) = self;
            let mut to = Out { out, stride };
            match w {
                View::F32(w) => plain(w, starts, rows, n, &mut to, |v: f32| v),
                View::Half(false, w) => plain(w, starts, rows, n, &mut to, half_to_f32),
                View::Half(true, w) => plain(w, starts, rows, n, &mut to, bf16_to_f32),
                View::Blocks(Storage::Q4_0, w) => blocks::<Q4_0>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q4_1, w) => blocks::<Q4_1>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q5_0, w) => blocks::<Q5_0>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q5_1, w) => blocks::<Q5_1>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q8_0, w) => blocks::<Q8_0>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q4K, w) => blocks::<Q4K>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q2K, w) => blocks::<Q2K>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q3K, w) => blocks::<Q3K>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q5K, w) => blocks::<Q5K>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Iq4Xs, w) => blocks::<Iq4Xs>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Iq4Nl, w) => blocks::<Iq4Nl>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Fp4, w) => blocks::<Fp4>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q4F, w) => blocks::<Q4F>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q8F, w) => blocks::<Q8F>(w, starts, rows, n, &mut to),
                View::Blocks(Storage::Q6K, w) => blocks::<Q6K>(w, starts, rows, n, &mut to),
                _ => false,
            }
        }
    }
    if out.len() < (rows.count.max(1) - 1) * stride + n || rows.x.len() < rows.count * rows.k {
        return false;
    }
    pulp::Arch::new().dispatch(Go(w, starts, rows, n, out, stride))
}

/// `Σ a·b` over the shorter length, as [`products`] sums.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let [v] = plain_dot(&a[..n], [&b[..n]], |v: f32| v);
    v
}

#[inline(always)]
fn tree<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut width = N;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// Where products go: row r, column j at `r·stride + j`.
struct Out<'a> {
    out: &'a mut [f32],
    stride: usize,
}

impl Out<'_> {
    #[inline(always)]
    fn put<const R: usize>(&mut self, r: usize, j: usize, v: [f32; R]) {
        for (i, v) in v.into_iter().enumerate() {
            self.out[(r + i) * self.stride + j] = v;
        }
    }
}

#[inline(always)]
fn pick<const R: usize>(x: &[f32], first: usize, k: usize) -> [&[f32]; R] {
    std::array::from_fn(|r| x.get((first + r) * k..(first + r + 1) * k).unwrap_or_default())
}

// The kernels below are always inlined into the one function that runs with the vector instructions; a closure around
// them would be compiled without.
#[inline(always)]
fn plain<T: Copy>(
    w: &[T],
    starts: Starts<'_>,
    rows: Rows<'_>,
    n: usize,
    to: &mut Out<'_>,
    value: impl Fn(T) -> f32 + Copy,
) -> bool {
    for j in 0..n {
        let Some(w) = starts.at(j).and_then(|s| w.get(s..s.checked_add(rows.k)?)) else { return false };
        let mut r = 0;
        while rows.count - r >= 4 {
            to.put(r, j, plain_dot::<T, 4>(w, pick(rows.x, r, rows.k), value));
            r += 4;
        }
        if rows.count - r >= 2 {
            to.put(r, j, plain_dot::<T, 2>(w, pick(rows.x, r, rows.k), value));
            r += 2;
        }
        if rows.count > r {
            to.put(r, j, plain_dot::<T, 1>(w, pick(rows.x, r, rows.k), value));
        }
    }
    true
}

#[inline(always)]
fn plain_dot<T: Copy, const R: usize>(w: &[T], x: [&[f32]; R], value: impl Fn(T) -> f32 + Copy) -> [f32; R] {
    const L: usize = 16;
    let mut acc = [[0f32; L]; R];
    let whole = w.len() / L;
    for c in 0..whole {
        let wc = &w[c * L..c * L + L];
        let mut values = [0f32; L];
        for i in 0..L {
            values[i] = value(wc[i]);
        }
        for r in 0..R {
            let xc = &x[r][c * L..c * L + L];
            for i in 0..L {
                acc[r][i] = values[i].mul_add(xc[i], acc[r][i]);
            }
        }
    }
    for (i, w) in w[whole * L..].iter().enumerate() {
        for r in 0..R {
            acc[r][i] = value(*w).mul_add(x[r][whole * L + i], acc[r][i]);
        }
    }
    acc.map(tree)
}

/// How a storage's runs of 32 elements unpack.
trait Block {
    /// Bytes of a stored block.
    const BYTES: usize;
    /// Runs of 32 in a stored block.
    const RUNS: usize;
    /// Whether a minimum is added.
    const MIN: bool;
    /// Whether the two halves of a run have factors of their own.
    const HALVES: bool;
    /// The integers of run `j`, the factors of its halves, the minimum.
    fn unpack(b: &[u8], j: usize, q: &mut [f32; 32]) -> (f32, f32, f32);
}

macro_rules! simple {
    ($name:ident, $storage:expr, $min:expr) => {
        #[allow(non_camel_case_types)]
        struct $name;
        impl Block for $name {
            const BYTES: usize = $storage.block_bytes() as usize;
            const RUNS: usize = 1;
            const MIN: bool = $min;
            const HALVES: bool = false;
            #[inline(always)]
            fn unpack(b: &[u8], _: usize, q: &mut [f32; 32]) -> (f32, f32, f32) {
                let (d, m) = unpack32($storage, b, q);
                (d, d, m)
            }
        }
    };
}
simple!(Q4_0, Storage::Q4_0, false);
simple!(Q4_1, Storage::Q4_1, true);
simple!(Q5_0, Storage::Q5_0, false);
simple!(Q5_1, Storage::Q5_1, true);
simple!(Q8_0, Storage::Q8_0, false);
simple!(Iq4Nl, Storage::Iq4Nl, false);
simple!(Fp4, Storage::Fp4, false);
simple!(Q4F, Storage::Q4F, true);
simple!(Q8F, Storage::Q8F, true);

macro_rules! of_256 {
    ($name:ident, minima: $min:expr, halves: $halves:expr, |$b:ident, $j:ident, $q:ident| $unpack:expr) => {
        struct $name;
        impl Block for $name {
            const BYTES: usize = Storage::$name.block_bytes() as usize;
            const RUNS: usize = 8;
            const MIN: bool = $min;
            const HALVES: bool = $halves;
            #[inline(always)]
            fn unpack($b: &[u8], $j: usize, $q: &mut [f32; 32]) -> (f32, f32, f32) {
                $unpack
            }
        }
    };
}
of_256!(Q2K, minima: false, halves: false, |b, j, q| {
    unpack_q2k(fixed(b), j, q);
    (1.0, 1.0, 0.0)
});
of_256!(Q3K, minima: false, halves: true, |b, j, q| {
    let (d0, d1) = unpack_q3k(fixed(b), j, q);
    (d0, d1, 0.0)
});
of_256!(Q4K, minima: true, halves: false, |b, j, q| {
    let (d, m) = unpack_q4k(fixed(b), j, q);
    (d, d, m)
});
of_256!(Q5K, minima: true, halves: false, |b, j, q| {
    let (d, m) = unpack_q5k(fixed(b), j, q);
    (d, d, m)
});
of_256!(Q6K, minima: false, halves: true, |b, j, q| {
    let (d0, d1) = unpack_q6k(fixed(b), j, q);
    (d0, d1, 0.0)
});
of_256!(Iq4Xs, minima: false, halves: false, |b, j, q| {
    let d = unpack_iq4_xs(fixed(b), j, q);
    (d, d, 0.0)
});

#[inline(always)]
fn blocks<B: Block>(w: &[u8], starts: Starts<'_>, rows: Rows<'_>, n: usize, to: &mut Out<'_>) -> bool {
    let elems = B::RUNS * 32;
    let (k, runs) = (rows.k, rows.k / 32);
    if k % elems != 0 || (B::MIN && rows.sums.len() < rows.count * runs) {
        return false;
    }
    let size = k / elems * B::BYTES;
    for j in 0..n {
        let row = starts.at(j).filter(|s| s % elems == 0).map(|s| s / elems);
        let row = row.and_then(|b| b.checked_mul(B::BYTES)).and_then(|s| w.get(s..s.checked_add(size)?));
        let Some(w) = row else { return false };
        let mut r = 0;
        while rows.count - r >= 4 {
            to.put(r, j, block_dot::<B, 4>(w, pick(rows.x, r, k), pick(rows.sums, r, runs)));
            r += 4;
        }
        if rows.count - r >= 2 {
            to.put(r, j, block_dot::<B, 2>(w, pick(rows.x, r, k), pick(rows.sums, r, runs)));
            r += 2;
        }
        if rows.count > r {
            to.put(r, j, block_dot::<B, 1>(w, pick(rows.x, r, k), pick(rows.sums, r, runs)));
        }
    }
    true
}

#[inline(always)]
fn block_dot<B: Block, const R: usize>(w: &[u8], x: [&[f32]; R], sums: [&[f32]; R]) -> [f32; R] {
    let mut acc = [[0f32; 8]; R];
    let mut min = [0f32; R];
    for (b, block) in w.chunks_exact(B::BYTES).enumerate() {
        for j in 0..B::RUNS {
            let run = b * B::RUNS + j;
            let mut q = [0f32; 32];
            let (d0, d1, m) = B::unpack(block, j, &mut q);
            for r in 0..R {
                let x: &[f32; 32] = x[r][run * 32..].first_chunk().unwrap_or(const { &[0.0; 32] });
                let (mut a, mut b) = ([0f32; 8], [0f32; 8]);
                for i in 0..8 {
                    a[i] = q[8 + i].mul_add(x[8 + i], q[i] * x[i]);
                    b[i] = q[24 + i].mul_add(x[24 + i], q[16 + i] * x[16 + i]);
                }
                if B::HALVES {
                    for i in 0..8 {
                        acc[r][i] = d0.mul_add(a[i], acc[r][i]);
                        acc[r][i] = d1.mul_add(b[i], acc[r][i]);
                    }
                } else {
                    for i in 0..8 {
                        acc[r][i] = d0.mul_add(a[i] + b[i], acc[r][i]);
                    }
                }
                if B::MIN {
                    min[r] = sums[r][run].mul_add(m, min[r]);
                }
            }
        }
    }
    std::array::from_fn(|r| tree(acc[r]) + min[r])
}
