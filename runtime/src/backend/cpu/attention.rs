//! Attention: blocks of query rows against blocks of keys, with a running softmax.

use super::gemv::{self, Rows, Starts};
use super::launch::{Group, Launch, Task};
use super::lower::{Builder, Refused};
use super::math::{exp, tanh};
use super::matmul::{RowSource, gemm, row_source};
use super::memory::View;
use super::ops;
use super::program::{ACCS, CHUNK, Env, Fault, Frame, Program, Reg};
use frit_kernels::dim::{Bounds, Dim, Sym};
use frit_kernels::spec::{self, Expr, ExprId, KernelSpec};

/// Keys of a block.
const KEYS: usize = 256;
/// Query rows of a block.
const QUERIES: usize = 64;
/// Query rows from which products go through the matrix kernel.
const MANY: usize = 8;
/// The largest score of a part that shows no key.
const NO_SCORE: f32 = -1.0e30;
/// Longest head.
const LIMIT_HEAD: u64 = 1 << 16;

const HEAD_AXIS: usize = 1;
const QUERY_AXIS: usize = 2;
const VALUE_AXIS: usize = 3;
const ELEMENT_AXIS: usize = 4;
const KEY_AXIS: usize = 5;

/// Keys or values: rows along the key axis.
#[derive(Debug)]
struct Side {
    program: Program,
    rows: Option<RowSource>,
    len: usize,
}

/// A compiled attention kernel.
#[derive(Debug)]
pub struct Attention {
    q: Program,
    k: Side,
    v: Side,
    mask: Option<Program>,
    bias: Option<Program>,
    kv_len: Reg,
    offset: Option<Reg>,
    window: Option<i64>,
    scale: f32,
    softcap: Option<f32>,
    group: usize,
    parts: Option<Parts>,
}

/// Keys in parts: how many, the first key and the keys of a part.
#[derive(Clone, Copy, Debug)]
struct Parts {
    count: u64,
    first: Reg,
    len: Reg,
}

impl Attention {
    /// Compiles the anchor.
    pub fn new(b: &mut Builder<'_>, spec: &KernelSpec, a: &spec::Attention) -> Result<Self, Refused> {
        if a.head_dim > LIMIT_HEAD || a.value_dim > LIMIT_HEAD || a.group > LIMIT_HEAD {
            return Err(format!("heads of {} and {} elements in groups of {}", a.head_dim, a.value_dim, a.group));
        }
        let mut side = |e: ExprId, axis: usize, len: u64| -> Result<Side, Refused> {
            Ok(Side {
                program: b.values(&[e], Some(axis))?,
                rows: row_source(b, spec, e, KEY_AXIS, axis)?,
                len: len as usize,
            })
        };
        let (k, v) = (side(a.k, ELEMENT_AXIS, a.head_dim)?, side(a.v, VALUE_AXIS, a.value_dim)?);
        let shares = grouped(spec, &[a.k, a.v], a.group);
        Ok(Attention {
            q: b.values(&[a.q], Some(ELEMENT_AXIS))?,
            k,
            v,
            mask: a.mask.map(|m| b.values(&[m], Some(KEY_AXIS))).transpose()?,
            bias: a.bias.map(|m| b.values(&[m], Some(KEY_AXIS))).transpose()?,
            kv_len: b.size(&a.kv_len)?,
            offset: a.causal_offset.as_ref().map(|d| b.size(d)).transpose()?,
            window: a.window.map(|w| i64::try_from(w).unwrap_or(i64::MAX)),
            scale: a.scale,
            softcap: a.softcap,
            group: if shares { a.group as usize } else { 1 },
            parts: match &a.parts {
                Some(p) => Some(Parts { count: p.count, first: b.size(&p.first)?, len: b.size(&p.len)? }),
                None => None,
            },
        })
    }
    /// Floats a task needs.
    pub fn needs(&self) -> usize {
        let rows = QUERIES.max(self.group);
        rows * (self.k.len + self.v.len + KEYS + 2) + KEYS * (self.k.len + self.v.len)
    }
    /// Runs the kernel.
    pub fn run(&self, l: &Launch<'_>, extents: &[usize], groups: &[Group]) -> Result<(), Fault> {
        let &[batch, heads, queries, _] = extents else { return Ok(()) };
        if batch * heads * queries == 0 {
            return Ok(());
        }
        let keys = l.size(self.kv_len);
        let threads = rayon::current_num_threads();
        let mut share = if heads % self.group == 0 { self.group } else { 1 };
        let block = |share: usize| (QUERIES / share).max(1).min(queries);
        let tasks = |share: usize| batch * (heads / share) * queries.div_ceil(block(share));
        if share > 1 && tasks(share) < threads {
            share = 1;
        }
        let block = block(share);
        let blocks = queries.div_ceil(block);
        let work = (batch * heads * queries) as u64 * (keys as u64 + 8) * ((self.k.len + self.v.len) as u64 / 8 + 4);
        l.spread(tasks(share), work, |t, task| {
            let (rest, part) = (t / blocks, blocks - 1 - t % blocks);
            let (b, h) = (rest / (heads / share), rest % (heads / share) * share);
            let s0 = part * block;
            let tile = Tile { b, h, share, s0, count: (queries - s0).min(block), keys };
            self.tile(l, groups, &tile, task)
        })
    }
    fn visible(&self, frame: &Frame, s: usize, keys: usize) -> (usize, usize) {
        let offset = self.offset.map_or(0, |r| frame.int[r as usize]);
        let at = (s as i64).saturating_add(offset);
        let hi = if self.offset.is_some() { at.saturating_add(1).clamp(0, keys as i64) } else { keys as i64 };
        let lo = self.window.map_or(0, |w| at.saturating_sub(w).saturating_add(1).clamp(0, keys as i64));
        let Some(p) = self.parts else { return (lo as usize, hi as usize) };
        let (first, len) = (frame.int[p.first as usize], frame.int[p.len as usize]);
        let part = frame.int[0].rem_euclid(p.count.clamp(1, i64::MAX as u64) as i64);
        let from = first.saturating_add(part.saturating_mul(len));
        (lo.max(from) as usize, hi.min(from.saturating_add(len)).max(0) as usize)
    }
    fn tile(&self, l: &Launch<'_>, groups: &[Group], t: &Tile, task: &mut Task) -> Result<(), Fault> {
        let (hd, vd, rows) = (self.k.len, self.v.len, t.share * t.count);
        let frame = &mut task.frame;
        let (q, rest) = task.work.split_at_mut(rows * hd);
        let (out, rest) = rest.split_at_mut(rows * vd);
        let (scores, rest) = rest.split_at_mut(rows * KEYS);
        let (top, rest) = rest.split_at_mut(rows);
        let (sum, rest) = rest.split_at_mut(rows);
        let (k_copy, v_copy) = rest.split_at_mut(KEYS * hd);
        let v_copy = v_copy.get_mut(..KEYS * vd).unwrap_or_default();
        out.fill(0.0);
        top.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        let (mut lo, mut hi) = (t.keys, 0);
        for (r, q) in q.chunks_exact_mut(hd).enumerate() {
            t.place(frame, r);
            self.q.begin(frame, l.read)?;
            self.q.fill(frame, &Env::new(l.read), 0, q)?;
            q.iter_mut().for_each(|v| *v *= self.scale);
            let (a, b) = self.visible(frame, t.query(r), t.keys);
            if a < b {
                (lo, hi) = (lo.min(a), hi.max(b));
            }
        }
        let mut t0 = lo;
        while t0 < hi {
            let n = (hi - t0).min(KEYS - t0 % KEYS);
            t.place(frame, 0);
            let mut buffer = [0i32; CHUNK];
            let (k, k_start, k_step) = self.k.rows(frame, l, t0, n, k_copy, &mut buffer)?;
            let fault = Fault { arg: self.k.rows.as_ref().map_or(0, |r| r.arg) };
            let ok = if rows < MANY {
                let left = Rows { x: q, sums: &[], count: rows, k: hd };
                gemv::products(View::F32(k), Starts::Run(k_start as i64, k_step as i64), left, n, scores, KEYS)
            } else {
                k.get(k_start..).is_some_and(|k| gemm(rows, n, hd, scores, KEYS, false, (q, hd), (k, k_step, 1)))
            };
            if !ok {
                return Err(fault);
            }
            for r in 0..rows {
                let s = &mut scores[r * KEYS..][..n];
                let (a, b) = self.visible(frame, t.query(r), t.keys);
                let (a, b) = (a.max(t0) - t0, b.min(t0 + n).max(t0) - t0);
                if a >= b {
                    s.fill(0.0);
                    continue;
                }
                let (mut extra, mut seen) = ([0f32; KEYS], [1i32; KEYS]);
                let (extra, seen) = (&mut extra[..b - a], &mut seen[..b - a]);
                t.place(frame, r);
                let env = Env::new(l.read);
                if let Some(p) = &self.bias {
                    p.begin(frame, l.read)?;
                    p.fill(frame, &env, (t0 + a) as i64, extra)?;
                }
                if let Some(p) = &self.mask {
                    p.begin(frame, l.read)?;
                    p.run(frame, &env, (t0 + a) as i64, b - a)?;
                    p.copy_i32(frame, 0, (t0 + a) as i64, seen);
                }
                s[..a].fill(0.0);
                s[b..].fill(0.0);
                pulp::Arch::new().dispatch(Soften {
                    scores: &mut s[a..b],
                    bias: self.bias.is_some().then_some(extra),
                    mask: self.mask.is_some().then_some(seen),
                    softcap: self.softcap,
                    top: &mut top[r],
                    sum: &mut sum[r],
                    out: &mut out[r * vd..][..vd],
                });
            }
            t.place(frame, 0);
            let (v, v_start, v_step) = self.v.rows(frame, l, t0, n, v_copy, &mut buffer)?;
            let fault = Fault { arg: self.v.rows.as_ref().map_or(0, |r| r.arg) };
            let v = v.get(v_start..).ok_or(fault)?;
            let ok = if rows < MANY {
                let mut each = scores.chunks_exact(KEYS).zip(out.chunks_exact_mut(vd));
                each.all(|(s, o)| pulp::Arch::new().dispatch(Weigh { p: &s[..n], v, step: v_step, out: o }))
            } else {
                gemm(rows, vd, n, out, vd, true, (scores, KEYS), (v, 1, v_step))
            };
            if !ok {
                return Err(fault);
            }
            t0 += n;
        }
        for (r, o) in out.chunks_exact_mut(vd).enumerate() {
            t.place(frame, r);
            if self.parts.is_some() {
                frame.float[0] = top[r].max(NO_SCORE);
                frame.float[1] = sum[r];
            } else {
                let scale = if sum[r] > 0.0 { 1.0 / sum[r] } else { 0.0 };
                o.iter_mut().for_each(|v| *v *= scale);
            }
            let mut accs: [&[f32]; ACCS] = [&[]; ACCS];
            accs[0] = o;
            l.store(frame, groups, VALUE_AXIS, 0, vd as i64, accs)?;
        }
        Ok(())
    }
}

impl Side {
    /// Rows `[t0, t0 + n)` at the frame's batch and head: the floats, where the first begins, the step between them.
    fn rows<'a>(
        &self,
        frame: &mut Frame,
        l: &Launch<'a>,
        t0: usize,
        n: usize,
        copy: &'a mut [f32],
        buffer: &mut [i32; CHUNK],
    ) -> Result<(&'a [f32], usize, usize), Fault> {
        if let Some(source) = &self.rows
            && let Some(View::F32(w)) = l.read.get(source.arg as usize)
            && let Starts::Run(start, step) = source.starts(frame, l, t0, n, buffer)?
            && let (Ok(start), Ok(step)) = (usize::try_from(start), usize::try_from(step))
        {
            return Ok((w, start, step));
        }
        for (j, to) in copy.chunks_exact_mut(self.len).take(n).enumerate() {
            frame.int[KEY_AXIS] = (t0 + j) as i64;
            self.program.begin(frame, l.read)?;
            self.program.fill(frame, &Env::new(l.read), 0, to)?;
        }
        Ok((copy, 0, self.len))
    }
}

/// Some heads of a group and some queries.
struct Tile {
    b: usize,
    h: usize,
    share: usize,
    s0: usize,
    count: usize,
    keys: usize,
}

impl Tile {
    fn query(&self, r: usize) -> usize {
        self.s0 + r % self.count
    }
    fn place(&self, frame: &mut Frame, r: usize) {
        frame.int[0] = self.b as i64;
        frame.int[HEAD_AXIS] = (self.h + r / self.count) as i64;
        frame.int[QUERY_AXIS] = self.query(r) as i64;
    }
}

/// Adds a block of scores to a row's running softmax: they become weights, and what was summed so far is rescaled.
struct Soften<'a> {
    scores: &'a mut [f32],
    bias: Option<&'a mut [f32]>,
    mask: Option<&'a mut [i32]>,
    softcap: Option<f32>,
    top: &'a mut f32,
    sum: &'a mut f32,
    out: &'a mut [f32],
}

impl pulp::NullaryFnOnce for Soften<'_> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let s = self.scores;
        if let Some(c) = self.softcap {
            s.iter_mut().for_each(|v| *v = c * tanh(*v / c));
        }
        if let Some(bias) = self.bias {
            s.iter_mut().zip(bias).for_each(|(v, b)| *v += *b);
        }
        if let Some(mask) = self.mask {
            s.iter_mut().zip(mask).for_each(|(v, m)| *v = if *m != 0 { *v } else { f32::NEG_INFINITY });
        }
        let top = ops::max(s, *self.top);
        if top == f32::NEG_INFINITY {
            s.fill(0.0);
            return;
        }
        s.iter_mut().for_each(|v| *v = exp(*v - top));
        let keep = exp(*self.top - top);
        *self.sum = self.sum.mul_add(keep, ops::sum(s));
        *self.top = top;
        if keep != 1.0 {
            self.out.iter_mut().for_each(|v| *v *= keep);
        }
    }
}

/// `out[d] += Σ_t p[t]·v[t·step + d]`; `false` when a row leaves `v`.
struct Weigh<'a> {
    p: &'a [f32],
    v: &'a [f32],
    step: usize,
    out: &'a mut [f32],
}

impl pulp::NullaryFnOnce for Weigh<'_> {
    type Output = bool;
    #[inline(always)]
    fn call(self) -> bool {
        let len = self.out.len();
        let row = |t: usize| {
            let at = t.checked_mul(self.step)?;
            self.v.get(at..at.checked_add(len)?)
        };
        let quads = self.p.chunks_exact(4);
        let rest = quads.remainder();
        let first = self.p.len() - rest.len();
        for (c, p) in quads.enumerate() {
            let t = c * 4;
            let (Some(a), Some(b), Some(e), Some(f)) = (row(t), row(t + 1), row(t + 2), row(t + 3)) else {
                return false;
            };
            for ((((o, a), b), e), f) in self.out.iter_mut().zip(a).zip(b).zip(e).zip(f) {
                let low = p[1].mul_add(*b, p[0] * *a);
                let high = p[3].mul_add(*f, p[2] * *e);
                *o += low + high;
            }
        }
        for (j, p) in rest.iter().enumerate() {
            let Some(a) = row(first + j) else { return false };
            self.out.iter_mut().zip(a).for_each(|(o, a)| *o = p.mul_add(*a, *o));
        }
        true
    }
}

/// Whether keys and values are the same for all heads of a group.
fn grouped(spec: &KernelSpec, roots: &[ExprId], group: u64) -> bool {
    if group <= 1 {
        return true;
    }
    let (outer, inner) = (Sym::Axis(254), Sym::Axis(255));
    let mut bounds = Bounds::new();
    bounds.axis(255, &Dim::from(group));
    let head = Dim::sym(outer) * Dim::from(group) + Dim::sym(inner.clone());
    let same = |d: &Dim| {
        let d = d.substitute(&|s| (*s == Sym::Axis(HEAD_AXIS as u8)).then(|| head.clone()));
        !d.simplify(&bounds).mentions(&inner)
    };
    spec.exprs.reachable(roots).into_iter().all(|e| match spec.exprs.get(e) {
        Expr::Load { index: d, .. } | Expr::Coord(d) => same(d),
        _ => true,
    })
}
