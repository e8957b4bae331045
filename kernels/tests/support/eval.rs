//! The meaning of a kernel specification, by naive loops in f64.

use super::Case;
use super::blocks::elements;
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{
    Anchor, Attention, BinaryOp, Expr, ExprId, KernelSpec, Literal, PartialKind, ReduceOp, Stat, UnaryOp,
};

/// One coordinate with what is known there.
#[derive(Clone, Default)]
pub struct Point {
    /// Axes.
    pub axes: Vec<i64>,
    /// Accumulators.
    pub accs: Vec<f64>,
    /// Statistics.
    pub stats: Vec<f64>,
    /// At the first column of a matmul's row, the elements of its left side.
    pub left: i64,
}

/// A specification with the numbers of its arguments.
pub struct Eval<'a> {
    spec: &'a KernelSpec,
    sizes: &'a [(String, i64)],
    args: Vec<Vec<f64>>,
    round: fn(f64) -> f64,
}

/// The content of every argument after the kernel.
pub fn evaluate(case: &Case) -> Vec<Vec<f64>> {
    evaluate_rounded(case, |v| v)
}

/// The nearest bf16.
pub fn to_bf16(v: f64) -> f64 {
    let bits = (v as f32).to_bits();
    f64::from(f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
}

/// The nearest f16.
pub fn to_f16(v: f64) -> f64 {
    let step = 2f64.powi((v.abs().max(2f64.powi(-14)).log2().floor() as i32) - 10);
    (v / step).round_ties_even() * step
}

/// As [`evaluate`], with both sides of every product of a matmul rounded.
pub fn evaluate_rounded(case: &Case, round: fn(f64) -> f64) -> Vec<Vec<f64>> {
    let spec = &case.spec;
    let args: Vec<Vec<f64>> = spec.args.iter().zip(&case.data).map(|(a, d)| elements(a.storage, d)).collect();
    let mut out = args.clone();
    for (o, i) in &case.shared {
        out[*o] = args[*i].clone();
    }
    let e = Eval { spec, sizes: &case.sizes, args, round };
    for (a, v) in spec.args.iter().zip(&e.args) {
        assert_eq!(e.dim(&a.len, &Point::default()), v.len() as i64, "length of `{}`", a.name);
    }
    let extents: Vec<i64> = spec.domain.iter().map(|d| e.dim(d, &Point::default())).collect();
    let mut row: Vec<f64> = Vec::new();
    e.run(&extents, &mut |p| {
        for l in &spec.left {
            let mut at = p.clone();
            for i in 0..p.left {
                at.axes.resize(extents.len() + 1, 0);
                at.axes[extents.len()] = i;
                out[l.arg.0 as usize][usize::try_from(e.dim(&l.index, &at)).expect("store below 0")] =
                    e.value(l.value, &at);
            }
        }
        if let Some(s) = &spec.partials {
            let (n, width) = (extents.len() - 1, i64::from(s.columns));
            row.push(e.value(s.value, p));
            let (at, end) = (p.axes[n], p.axes[n] + 1 == extents[n]);
            if end || (at + 1) % width == 0 {
                let count = row.len() as f64;
                let mean = row.iter().sum::<f64>() / count;
                let numbers = match s.kind {
                    PartialKind::Squares => vec![row.iter().map(|v| v * v).sum()],
                    PartialKind::Moments => vec![mean, row.iter().map(|v| (v - mean).powi(2)).sum()],
                    PartialKind::Largest => {
                        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let place = row.iter().position(|v| *v == largest).unwrap();
                        vec![largest, ((at / width) * width) as f64 + place as f64]
                    }
                };
                let mut tile = p.clone();
                tile.axes[n] = at / width;
                let first = usize::try_from(e.dim(&s.index, &tile)).expect("store below 0");
                out[s.arg.0 as usize][first..first + numbers.len()].copy_from_slice(&numbers);
                row.clear();
            }
        }
        for st in &spec.stores {
            let last = p.axes.last().copied().unwrap_or(0);
            let inside = st.when.as_ref().is_none_or(|w| {
                let i = p.axes[w.axis as usize];
                i >= e.dim(&w.lo, p) && i < e.dim(&w.hi, p)
            });
            if inside && !(st.per_row && last != 0) {
                let at = e.dim(&st.index, p);
                let v = e.value(st.value, p);
                out[st.arg.0 as usize][usize::try_from(at).expect("store below 0")] = v;
            }
        }
    });
    out
}

fn coordinates(extents: &[i64], f: &mut dyn FnMut(&[i64])) {
    let mut at = vec![0; extents.len()];
    if extents.contains(&0) {
        return;
    }
    loop {
        f(&at);
        let Some(k) = (0..extents.len()).rev().find(|k| at[*k] + 1 < extents[*k]) else { return };
        at[k] += 1;
        at[k + 1..].fill(0);
    }
}

impl Eval<'_> {
    fn run(&self, extents: &[i64], f: &mut dyn FnMut(&Point)) {
        let n = extents.len();
        match &self.spec.anchor {
            Anchor::Map => coordinates(extents, &mut |a| f(&Point { axes: a.to_vec(), ..Point::default() })),
            Anchor::Row { stats } => coordinates(&extents[..n - 1], &mut |row| {
                let mut p = Point { axes: row.to_vec(), ..Point::default() };
                p.axes.push(0);
                p.stats = self.stats(stats, &p, n - 1, extents[n - 1]);
                for i in 0..extents[n - 1] {
                    p.axes[n - 1] = i;
                    f(&p);
                }
            }),
            Anchor::MatMul { k, lhs, lhs_stats, rhs } => {
                let (k, round) = (self.dim(k, &Point::default()), self.round);
                coordinates(&extents[..n - 1], &mut |row| {
                    let mut p = Point { axes: row.to_vec(), ..Point::default() };
                    p.axes.extend([0, 0]);
                    let over = self.spec.stats_over.as_ref().map_or(k, |d| self.dim(d, &Point::default()));
                    p.stats = self.stats(lhs_stats, &p, n, over);
                    let at = |p: &mut Point, i: i64, e: ExprId| {
                        p.axes[n] = i;
                        self.value(e, p)
                    };
                    let left: Vec<f64> = (0..k).map(|i| at(&mut p, i, *lhs)).collect();
                    p.left = k;
                    let mut row: Vec<Vec<f64>> = Vec::new();
                    for c in 0..extents[n - 1] {
                        p.axes[n - 1] = c;
                        let mut sum =
                            |e: &ExprId| (0..k).map(|i| round(left[i as usize]) * round(at(&mut p, i, *e))).sum();
                        row.push(rhs.iter().map(&mut sum).collect());
                    }
                    let of_rows = p.stats.clone();
                    let mut run = of_rows.clone();
                    for (c, accs) in row.iter().enumerate() {
                        if let Some(columns) = &self.spec.columns
                            && (c as u64).is_multiple_of(columns.width)
                        {
                            run =
                                self.column_stats(&columns.stats, of_rows.clone(), &row[c..][..columns.width as usize]);
                        }
                        p.axes[n - 1] = c as i64;
                        let (axes, left) = (p.axes[..n].to_vec(), std::mem::take(&mut p.left));
                        f(&Point { axes, accs: accs.clone(), stats: run.clone(), left });
                    }
                });
            }
            Anchor::Chain(c) => {
                let (k, inner) = (self.dim(&c.k, &Point::default()), self.dim(&c.inner, &Point::default()));
                coordinates(&extents[..n - 1], &mut |row| {
                    let mut p = Point { axes: row.to_vec(), ..Point::default() };
                    p.axes.extend([0, 0, 0]);
                    p.stats = self.stats(&c.lhs_stats, &p, n + 1, k);
                    let left: Vec<f64> = (0..k)
                        .map(|t| {
                            p.axes[n + 1] = t;
                            self.value(c.lhs, &p)
                        })
                        .collect();
                    let middle: Vec<f64> = (0..inner)
                        .map(|i| {
                            p.axes[n] = i;
                            let mut sum = |e: &ExprId| {
                                (0..k)
                                    .map(|t| {
                                        p.axes[n + 1] = t;
                                        left[t as usize] * self.value(*e, &p)
                                    })
                                    .sum()
                            };
                            let accs = c.up.iter().map(&mut sum).collect();
                            self.value(c.middle, &Point { accs, ..p.clone() })
                        })
                        .collect();
                    for column in 0..extents[n - 1] {
                        p.axes[n - 1] = column;
                        let product = |i: i64| {
                            let mut at = p.clone();
                            at.axes[n] = i;
                            middle[i as usize] * self.value(c.down, &at)
                        };
                        let acc = (0..inner).map(product).sum();
                        f(&Point { axes: p.axes[..n].to_vec(), accs: vec![acc], ..Point::default() });
                    }
                });
            }
            Anchor::ConvChain(c) => coordinates(extents, &mut |place| {
                let mut p = Point { axes: place.to_vec(), ..Point::default() };
                p.axes.resize(9, 0);
                let k = self.dim(&c.k, &Point::default());
                let [rows, columns] = c.windows;
                let mut sum = 0.0;
                for (u, v) in (0..rows.taps).flat_map(|u| (0..columns.taps).map(move |v| (u, v))) {
                    let (y, x) = (rows.at(place[1] as u64, u), columns.at(place[2] as u64, v));
                    let (Some(y), Some(x)) = (y, x) else { continue };
                    (p.axes[4], p.axes[5]) = (y as i64, x as i64);
                    for channel in 0..c.channels {
                        p.axes[6] = channel as i64;
                        p.axes[8] = (channel * c.taps() + u * columns.taps + v) as i64;
                        let product = |t: i64| {
                            let mut at = p.clone();
                            at.axes[7] = t;
                            self.value(c.lhs, &at) * self.value(c.up, &at)
                        };
                        let accs = vec![(0..k).map(product).sum()];
                        sum += self.value(c.middle, &Point { accs, ..p.clone() }) * self.value(c.down, &p);
                    }
                }
                f(&Point { axes: place.to_vec(), accs: vec![sum], ..Point::default() });
            }),
            Anchor::Attention(a) => self.attention(a, extents, f),
        }
    }
    /// `done` and the statistics behind them, over columns with these accumulators.
    fn column_stats(&self, stats: &[Stat], done: Vec<f64>, columns: &[Vec<f64>]) -> Vec<f64> {
        let mut p = Point { stats: done, ..Point::default() };
        for st in stats {
            let of = |accs: &Vec<f64>| self.value(st.value, &Point { accs: accs.clone(), ..p.clone() });
            let values = columns.iter().map(of);
            let raw = match st.op {
                ReduceOp::Sum => values.sum(),
                ReduceOp::Prod => values.product(),
                ReduceOp::Max => values.fold(-3.0e38, f64::max),
                ReduceOp::Min => values.fold(3.0e38, f64::min),
                ReduceOp::ArgMax => unreachable!("no arg-reduction of columns"),
            };
            p.stats.push(raw);
            if let Some(e) = st.finish {
                let v = self.value(e, &p);
                *p.stats.last_mut().unwrap() = v;
            }
        }
        p.stats
    }
    fn stats(&self, stats: &[Stat], row: &Point, axis: usize, extent: i64) -> Vec<f64> {
        let mut p = row.clone();
        p.axes.resize(axis + 1, 0);
        for st in stats {
            let values: Vec<f64> = (0..extent)
                .map(|i| {
                    p.axes[axis] = i;
                    self.value(st.value, &p)
                })
                .collect();
            let raw = match st.op {
                ReduceOp::Sum => values.iter().sum(),
                ReduceOp::Prod => values.iter().product(),
                ReduceOp::Max => values.iter().copied().fold(-3.0e38, f64::max),
                ReduceOp::Min => values.iter().copied().fold(3.0e38, f64::min),
                ReduceOp::ArgMax => {
                    let best = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    values.iter().position(|v| *v == best).unwrap_or(0) as f64
                }
            };
            p.stats.push(raw);
            if let Some(e) = st.finish {
                let v = self.value(e, &p);
                *p.stats.last_mut().unwrap() = v;
            }
        }
        p.stats
    }
    fn attention(&self, a: &Attention, extents: &[i64], f: &mut dyn FnMut(&Point)) {
        let keys = self.dim(&a.kv_len, &Point::default());
        coordinates(&extents[..3], &mut |row| {
            let mut p = Point { axes: row.to_vec(), ..Point::default() };
            p.axes.resize(6, 0);
            let offset = a.causal_offset.as_ref().map(|d| self.dim(d, &p));
            let mut scores = Vec::new();
            for t in 0..keys {
                p.axes[5] = t;
                let dot: f64 = (0..a.head_dim as i64)
                    .map(|d| {
                        p.axes[4] = d;
                        self.value(a.q, &p) * self.value(a.k, &p)
                    })
                    .sum();
                let mut s = dot * f64::from(a.scale);
                if let Some(c) = a.softcap {
                    s = f64::from(c) * (s / f64::from(c)).tanh();
                }
                if let Some(e) = a.bias {
                    s += self.value(e, &p);
                }
                let query = p.axes[2] + offset.unwrap_or(0);
                let seen = offset.is_none_or(|_| t <= query)
                    && a.window.is_none_or(|w| t > query - w as i64)
                    && a.mask.is_none_or(|m| self.value(m, &p) != 0.0)
                    && a.parts.as_ref().is_none_or(|parts| {
                        let len = self.dim(&parts.len, &p);
                        let first = self.dim(&parts.first, &p) + p.axes[0] % parts.count as i64 * len;
                        (first..first + len).contains(&t)
                    });
                scores.push(seen.then_some(s));
            }
            let top = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| s.map_or(0.0, |s| (s - top).exp())).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..extents[3] {
                p.axes[3] = d;
                let mut acc = 0.0;
                for (t, w) in weights.iter().enumerate().filter(|(_, w)| **w != 0.0) {
                    p.axes[5] = t as i64;
                    acc += w * self.value(a.v, &p);
                }
                let (acc, stats) = match &a.parts {
                    Some(_) => (acc, vec![top.max(-1.0e30), total]),
                    None => (if total > 0.0 { acc / total } else { 0.0 }, Vec::new()),
                };
                f(&Point { axes: p.axes[..4].to_vec(), accs: vec![acc], stats, ..Point::default() });
            }
        });
    }

    /// The value of a size expression.
    pub fn dim(&self, d: &Dim, p: &Point) -> i64 {
        let env = |s: &Sym| match s {
            Sym::Size(n) => self.sizes.iter().find(|z| *z.0 == **n).map(|z| z.1),
            Sym::Axis(k) => p.axes.get(*k as usize).copied(),
            Sym::Value(v) => Some(self.value(ExprId(*v), p) as i64),
        };
        d.eval(&env).unwrap_or_else(|e| panic!("{e}"))
    }
    /// The value of an expression.
    pub fn value(&self, e: ExprId, p: &Point) -> f64 {
        let x = &self.spec.exprs;
        let truth = |b: bool| f64::from(u8::from(b));
        match x.get(e) {
            Expr::Load { arg, index } => {
                let (i, a) = (self.dim(index, p), &self.spec.args[arg.0 as usize]);
                let found = usize::try_from(i).ok().and_then(|i| self.args[arg.0 as usize].get(i));
                *found.unwrap_or_else(|| panic!("`{}` read at {i} = {index}, {:?}", a.name, p.axes))
            }
            Expr::Const(Literal::F32(b)) => f64::from(f32::from_bits(*b)),
            Expr::Const(Literal::I32(v)) => f64::from(*v),
            Expr::Const(Literal::Bool(v)) => truth(*v),
            Expr::Coord(d) => self.dim(d, p) as f64,
            Expr::Unary(op, a) => unary(*op, self.value(*a, p)),
            Expr::Binary(op, a, b) => {
                let int = x.scalar(*a) == Scalar::I32;
                let (a, b) = (self.value(*a, p), self.value(*b, p));
                match op {
                    BinaryOp::Add => a + b,
                    BinaryOp::Sub => a - b,
                    BinaryOp::Mul => a * b,
                    BinaryOp::Div if int => (a / b).trunc(),
                    BinaryOp::Div => a / b,
                    BinaryOp::Max => a.max(b),
                    BinaryOp::Min => a.min(b),
                    BinaryOp::Pow => a.powf(b),
                    BinaryOp::Eq => truth(a == b),
                    BinaryOp::Lt => truth(a < b),
                    BinaryOp::Le => truth(a <= b),
                    BinaryOp::And => truth(a != 0.0 && b != 0.0),
                    BinaryOp::Or => truth(a != 0.0 || b != 0.0),
                }
            }
            Expr::Select { cond, t, f } => self.value(if self.value(*cond, p) != 0.0 { *t } else { *f }, p),
            Expr::Cast(Scalar::F32, a) => self.value(*a, p),
            Expr::Cast(Scalar::I32, a) => self.value(*a, p).trunc(),
            Expr::Cast(Scalar::Bool, a) => truth(self.value(*a, p) != 0.0),
            Expr::Acc(j) => p.accs[*j as usize],
            Expr::Stat(j) => p.stats[*j as usize],
        }
    }
}

fn unary(op: UnaryOp, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Exp => x.min(88.0).exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Recip => 1.0 / x,
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Erf => erf(x),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Sigmoid => sigmoid(x),
        UnaryOp::Silu => x * sigmoid(x),
        UnaryOp::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        UnaryOp::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        UnaryOp::Relu => x.max(0.0),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Sign => {
            if x == 0.0 {
                0.0
            } else {
                x.signum()
            }
        }
        UnaryOp::Not => f64::from(u8::from(x == 0.0)),
    }
}

/// Error function: its Taylor series, and from 3 on, where the series cancels, the continued fraction of the rest.
fn erf(x: f64) -> f64 {
    if x.abs() > 3.0 {
        let (x, sign) = (x.abs(), x.signum());
        let tail = (1..=80).rev().fold(0.0, |t, n| 0.5 * f64::from(n) / (x + t));
        return sign * (1.0 - (-x * x).exp() / std::f64::consts::PI.sqrt() / (x + tail));
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
