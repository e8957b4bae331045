//! What a kernel spec says, one coordinate at a time in f64.

use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, BinaryOp, Expr, ExprId, KernelSpec, Literal, ReduceOp, Stat, UnaryOp};
use std::collections::HashMap;

/// Elements of an argument; integers and truth values as whole numbers.
pub type Buffer = Vec<f64>;

pub struct Oracle<'a> {
    spec: &'a KernelSpec,
    sizes: HashMap<String, i64>,
    input: Vec<Buffer>,
    axes: Vec<i64>,
    accs: Vec<f64>,
    stats: Vec<f64>,
}

fn erf(x: f64) -> f64 {
    let n = 2000;
    let a = x.abs().min(6.0);
    let h = a / n as f64;
    let f = |t: f64| (-t * t).exp();
    let mid: f64 = (1..n).map(|i| f(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    x.signum() * (f(0.0) + mid + f(a)) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

impl<'a> Oracle<'a> {
    pub fn new(spec: &'a KernelSpec, sizes: &[(&str, u64)], input: Vec<Buffer>) -> Self {
        let sizes = sizes.iter().map(|(n, v)| (n.to_string(), *v as i64)).collect();
        Oracle { spec, sizes, input, axes: vec![0; 9], accs: Vec::new(), stats: vec![0.0; 8] }
    }
    fn dim(&self, d: &Dim) -> i64 {
        let env = |s: &Sym| match s {
            Sym::Size(n) => self.sizes.get(&**n).copied(),
            Sym::Axis(k) => self.axes.get(*k as usize).copied(),
            Sym::Value(v) => Some(self.eval(ExprId(*v)) as i64),
        };
        d.eval(&env).unwrap()
    }
    fn eval(&self, e: ExprId) -> f64 {
        let x = &self.spec.exprs;
        match x.get(e) {
            Expr::Load { arg, index } => self.input[arg.0 as usize][self.dim(index) as usize],
            Expr::Const(Literal::F32(b)) => f32::from_bits(*b) as f64,
            Expr::Const(Literal::I32(v)) => *v as f64,
            Expr::Const(Literal::Bool(v)) => f64::from(*v),
            Expr::Coord(d) => self.dim(d) as f64,
            Expr::Unary(op, a) => unary(*op, self.eval(*a)),
            Expr::Binary(op, a, b) => {
                let v = binary(*op, self.eval(*a), self.eval(*b));
                if *op == BinaryOp::Div && x.scalar(*a) == Scalar::I32 { v.trunc() } else { v }
            }
            Expr::Select { cond, t, f } => self.eval(if self.eval(*cond) != 0.0 { *t } else { *f }),
            Expr::Cast(Scalar::F32, a) => self.eval(*a),
            Expr::Cast(Scalar::I32, a) => self.eval(*a).trunc(),
            Expr::Cast(Scalar::Bool, a) => f64::from(self.eval(*a) != 0.0),
            Expr::Acc(k) => self.accs[*k as usize],
            Expr::Stat(k) => self.stats[*k as usize],
        }
    }
    fn reduce(&mut self, stats: &[Stat], axis: usize, n: i64) {
        for (k, s) in stats.iter().enumerate() {
            let values: Vec<f64> = (0..n)
                .map(|i| {
                    self.axes[axis] = i;
                    self.eval(s.value)
                })
                .collect();
            self.stats[k] = match s.op {
                ReduceOp::Sum => values.iter().sum(),
                ReduceOp::Prod => values.iter().product(),
                ReduceOp::Max => values.iter().copied().fold(-3.0e38, f64::max),
                ReduceOp::Min => values.iter().copied().fold(3.0e38, f64::min),
                ReduceOp::ArgMax => {
                    let mut best = 0;
                    for (i, v) in values.iter().enumerate() {
                        if *v > values[best] {
                            best = i;
                        }
                    }
                    best as f64
                }
            };
            if let Some(f) = s.finish {
                self.stats[k] = self.eval(f);
            }
        }
    }
    /// The arguments after the kernel ran.
    pub fn run(mut self) -> Vec<Buffer> {
        let mut out = self.input.clone();
        let extents: Vec<i64> = self.spec.domain.iter().map(|d| self.dim(d)).collect();
        let total: i64 = extents.iter().product();
        let last = extents.len() - 1;
        for p in 0..total {
            let mut rest = p;
            for (a, e) in extents.iter().enumerate().rev() {
                self.axes[a] = rest % e;
                rest /= e;
            }
            self.anchor(&extents);
            if let Anchor::MatMul { k, .. } = &self.spec.anchor
                && self.axes[last] == 0
            {
                let (k, spec) = (self.dim(k), self.spec);
                for (l, i) in spec.left.iter().flat_map(|l| (0..k).map(move |i| (l, i))) {
                    self.axes[last + 1] = i;
                    out[l.arg.0 as usize][self.dim(&l.index) as usize] = self.eval(l.value);
                }
            }
            for s in &self.spec.stores {
                if s.per_row && self.axes[last] != 0 {
                    continue;
                }
                let inside = s
                    .when
                    .as_ref()
                    .is_none_or(|w| (self.dim(&w.lo)..self.dim(&w.hi)).contains(&self.axes[w.axis as usize]));
                if inside {
                    out[s.arg.0 as usize][self.dim(&s.index) as usize] = self.eval(s.value);
                }
            }
        }
        out
    }
    fn anchor(&mut self, extents: &[i64]) {
        let last = extents.len() - 1;
        let spec = self.spec;
        match &spec.anchor {
            Anchor::Map => {}
            Anchor::Row { stats } => {
                let at = self.axes[last];
                self.reduce(stats, last, extents[last]);
                self.axes[last] = at;
            }
            Anchor::MatMul { k, lhs, lhs_stats, rhs } => {
                let k = self.dim(k);
                self.reduce(lhs_stats, last + 1, k);
                self.accs = vec![0.0; rhs.len()];
                for i in 0..k {
                    self.axes[last + 1] = i;
                    let x = self.eval(*lhs);
                    for (j, r) in rhs.iter().enumerate() {
                        self.accs[j] += x * self.eval(*r);
                    }
                }
            }
            Anchor::Chain(c) => {
                let (k, inner) = (self.dim(&c.k), self.dim(&c.inner));
                self.reduce(&c.lhs_stats, last + 2, k);
                let mut sum = 0.0;
                for i in 0..inner {
                    self.axes[last + 1] = i;
                    self.accs = vec![0.0; c.up.len()];
                    for t in 0..k {
                        self.axes[last + 2] = t;
                        let x = self.eval(c.lhs);
                        for (j, r) in c.up.iter().enumerate() {
                            self.accs[j] += x * self.eval(*r);
                        }
                    }
                    sum += self.eval(c.middle) * self.eval(c.down);
                }
                self.accs = vec![sum];
            }
            Anchor::ConvChain(c) => {
                let k = self.dim(&c.k);
                let [rows, columns] = c.windows;
                let mut sum = 0.0;
                for (u, v) in (0..rows.taps).flat_map(|u| (0..columns.taps).map(move |v| (u, v))) {
                    let (y, x) = (rows.at(self.axes[1] as u64, u), columns.at(self.axes[2] as u64, v));
                    let (Some(y), Some(x)) = (y, x) else { continue };
                    (self.axes[4], self.axes[5]) = (y as i64, x as i64);
                    for channel in 0..c.channels {
                        self.axes[6] = channel as i64;
                        self.axes[8] = (channel * c.taps() + u * columns.taps + v) as i64;
                        let mut acc = 0.0;
                        for t in 0..k {
                            self.axes[7] = t;
                            acc += self.eval(c.lhs) * self.eval(c.up);
                        }
                        self.accs = vec![acc];
                        sum += self.eval(c.middle) * self.eval(c.down);
                    }
                }
                self.accs = vec![sum];
            }
            Anchor::Attention(a) => {
                let keys = self.dim(&a.kv_len);
                let offset = a.causal_offset.as_ref().map_or(0, |d| self.dim(d));
                let s = self.axes[2];
                let mut weights = Vec::new();
                for t in 0..keys {
                    self.axes[5] = t;
                    let mut score = 0.0;
                    for e in 0..a.head_dim as i64 {
                        self.axes[4] = e;
                        score += self.eval(a.q) * self.eval(a.k);
                    }
                    score *= a.scale as f64;
                    if let Some(c) = a.softcap {
                        score = c as f64 * (score / c as f64).tanh();
                    }
                    score += a.bias.map_or(0.0, |b| self.eval(b));
                    let seen = (a.causal_offset.is_none() || t <= s + offset)
                        && a.window.is_none_or(|w| t > s + offset - w as i64)
                        && a.mask.is_none_or(|m| self.eval(m) != 0.0)
                        && a.parts.as_ref().is_none_or(|p| {
                            let from = self.dim(&p.first) + self.axes[0] % p.count as i64 * self.dim(&p.len);
                            (from..from + self.dim(&p.len)).contains(&t)
                        });
                    if seen {
                        weights.push((t, score));
                    }
                }
                let top = weights.iter().map(|w| w.1).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = weights.iter().map(|w| (w.1 - top).exp()).sum();
                self.stats = vec![top.max(-1.0e30), total];
                let total = if a.parts.is_some() { 1.0 } else { total };
                self.accs = vec![0.0];
                for (t, score) in weights {
                    self.axes[5] = t;
                    self.accs[0] += (score - top).exp() / total * self.eval(a.v);
                }
            }
        }
    }
}

fn unary(op: UnaryOp, x: f64) -> f64 {
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
        UnaryOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnaryOp::Silu => x / (1.0 + (-x).exp()),
        UnaryOp::GeluErf => x * (1.0 + erf(x / 2f64.sqrt())) / 2.0,
        UnaryOp::GeluTanh => {
            x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) / 2.0
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
        UnaryOp::Not => f64::from(x == 0.0),
    }
}

fn binary(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Max => a.max(b),
        BinaryOp::Min => a.min(b),
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Eq => f64::from(a == b),
        BinaryOp::Lt => f64::from(a < b),
        BinaryOp::Le => f64::from(a <= b),
        BinaryOp::And => f64::from(a != 0.0 && b != 0.0),
        BinaryOp::Or => f64::from(a != 0.0 || b != 0.0),
    }
}
