//! The way from a softmax down to the product of queries and keys.

use super::Miss;
use super::elem::{Elem, Frame};
use super::mask::{Cond, HIDDEN};
use crate::fusion::coords;
use crate::graph::{Op, ValueId};
use crate::passes::pattern::{binary, constant, first, is_private, is_row_stat, is_single_use};
use crate::passes::rewrite::Site;
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// What lies between the softmax and the product of queries and keys.
#[derive(Clone)]
pub(super) struct Scores {
    /// The product, and its coordinates.
    pub matmul: ValueId,
    pub at: Vec<Dim>,
    /// The factor on what is below.
    pub gain: f64,
    pub softcap: Option<f64>,
    pub visible: Vec<Cond>,
    /// What is added to the scores.
    pub bias: Vec<Added>,
}

/// A value that is added to the scores.
#[derive(Clone)]
pub(super) struct Added {
    pub factor: f64,
    pub value: ValueId,
    /// Its coordinates.
    pub at: Vec<Dim>,
    /// The shape of the scores to which it is added.
    pub shape: Vec<Dim>,
}

/// The scores of one attention.
pub(super) struct Walk<'a> {
    pub s: &'a Site<'a>,
    /// Batch, heads, queries, keys.
    pub frame: Frame<'a>,
}

/// A softmax and what surrounds it.
pub(super) struct Probabilities {
    /// The value whose rows are scores.
    pub scores: ValueId,
    /// A score beside the keys of each row, whose probability is left out.
    pub sink: Option<ValueId>,
    /// Whether nothing else uses them.
    pub private: bool,
}

pub(super) const MOST_STEPS: usize = 24;

/// The softmax above which only views, a guard against rows without keys and the cut of a sink stand.
pub(super) fn probabilities(s: &Site<'_>, p: ValueId) -> Option<Probabilities> {
    let g = s.g;
    let (mut v, mut private, mut keys) = (p, true, None);
    for _ in 0..5 {
        match g.op(v) {
            Op::Softmax => break,
            Op::Reshape(_) => {
                private &= is_single_use(g, v);
                v = first(g, v)?;
            }
            Op::Slice { axis, start, len } if keys.is_none() && *axis + 1 == g.ty(v).rank() && start.is(0) => {
                private &= is_single_use(g, v);
                keys = Some(len.clone());
                v = first(g, v)?;
            }
            Op::Select => {
                let [c, t, f] = g.operands(v)[..] else { return None };
                let guard = binary(g, c, BinaryOp::Eq) == Some((t, t)) && constant(g, f) == Some(0.0);
                if !guard || !matches!(g.op(t), Op::Softmax) {
                    return None;
                }
                let inside = g.users(t).iter().all(|u| *u == c || *u == v) && is_single_use(g, c) && !g.is_output(t);
                private &= inside && is_single_use(g, v);
                let scores = first(g, t).filter(|_| keys.is_none())?;
                return Some(Probabilities { scores, sink: None, private });
            }
            _ => return None,
        }
    }
    let Op::Softmax = g.op(v) else { return None };
    private &= is_single_use(g, v);
    let x = first(g, v)?;
    let Some(keys) = keys else { return Some(Probabilities { scores: x, sink: None, private }) };
    let joined = match binary(g, x, BinaryOp::Sub) {
        Some((j, c)) if is_row_stat(g, c, j) => j,
        _ => x,
    };
    let Op::Concat { axis } = g.op(joined) else { return None };
    let [scores, sink] = g.operands(joined)[..] else { return None };
    let fits = *axis + 1 == g.ty(joined).rank() && g.ty(sink).last().is(1) && s.same(&g.ty(scores).last(), &keys);
    private &= is_private(g, v, &[scores, sink], &[]);
    fits.then_some(Probabilities { scores, sink: Some(sink), private })
}

/// Batch, heads, queries and keys of scores.
pub(super) fn frame_of(s: &Site<'_>, scores: ValueId) -> Option<Vec<Dim>> {
    let g = s.g;
    let mut v = scores;
    for _ in 0..MOST_STEPS {
        if let [b, h, q, k] = g.ty(v).shape.as_slice() {
            return Some(vec![b.clone(), h.clone(), q.clone(), k.clone()]);
        }
        if matches!(g.op(v), Op::MatMul { .. }) {
            break;
        }
        let elems = g.ty(v).elems();
        let spine = g.operands(v).into_iter().find(|o| s.same(&g.ty(*o).elems(), &elems));
        let Some(o) = spine else { break };
        v = o;
    }
    let one = Dim::one;
    match g.ty(scores).shape.as_slice() {
        [q, k] => Some(vec![one(), one(), q.clone(), k.clone()]),
        [n, q, k] => Some(vec![n.clone(), one(), q.clone(), k.clone()]),
        [b, gr, r, q, k] => Some(vec![b.clone(), gr * r, q.clone(), k.clone()]),
        _ => None,
    }
}

impl Walk<'_> {
    /// Whether coordinates end with queries and keys.
    pub fn is_scores(&self, at: &[Dim]) -> bool {
        matches!(at, [lead @ .., q, k] if *q == Dim::axis(2) && *k == Dim::axis(3)
            && lead.iter().all(|d| !d.mentions(&Sym::Axis(2)) && !d.mentions(&Sym::Axis(3))))
    }
    /// Goes down from `v` to the product of queries and keys.
    pub fn down(&self, v: ValueId, st: Scores, depth: usize) -> Result<Scores, Miss> {
        let g = self.s.g;
        if depth > MOST_STEPS || !self.is_scores(&st.at) {
            return Err(Miss::Other);
        }
        if let Op::MatMul { .. } = g.op(v) {
            if !is_single_use(g, v) {
                return Miss::because("the scores are used elsewhere");
            }
            return Ok(Scores { matmul: v, ..st });
        }
        if !is_single_use(g, v) {
            return Miss::because("the scores are used elsewhere");
        }
        let operands = g.operands(v);
        let same = |o: ValueId| g.ty(o).shape == g.ty(v).shape;
        let times = |st: &Scores, c: f64| Scores { gain: st.gain * c, ..st.clone() };
        match (g.op(v), operands.as_slice()) {
            (Op::Reshape(to), [a]) => {
                let at = self.frame.reshape(&st.at, to, &g.ty(*a).shape);
                self.down(*a, Scores { at, ..st }, depth + 1)
            }
            (Op::Binary(BinaryOp::Max), [a, b]) if st.softcap.is_none() && same(*a) => match constant(g, *b) {
                Some(c) if st.gain > 0.0 && c * st.gain <= HIDDEN => self.down(*a, st, depth + 1),
                _ => Miss::because("the scores are bounded from below"),
            },
            (Op::Unary(UnaryOp::Neg), [a]) => self.down(*a, times(&st, -1.0), depth + 1),
            (Op::Binary(BinaryOp::Mul), [a, b]) => match constant(g, *b) {
                Some(c) if same(*a) => self.down(*a, times(&st, c), depth + 1),
                _ => Miss::because("the scores are multiplied by a value"),
            },
            (Op::Binary(BinaryOp::Div), [a, b]) => match constant(g, *b) {
                Some(c) if same(*a) && c != 0.0 => self.down(*a, times(&st, 1.0 / c), depth + 1),
                _ => Miss::because("the scores are divided by a value"),
            },
            (Op::Binary(op @ (BinaryOp::Add | BinaryOp::Sub)), [a, b]) => {
                if st.softcap.is_some() {
                    return Miss::because("a bias inside the soft cap");
                }
                let sign = if *op == BinaryOp::Sub { -1.0 } else { 1.0 };
                let mut miss = Miss::Other;
                for (path, term, down, up) in [(*a, *b, 1.0, sign), (*b, *a, sign, 1.0)] {
                    if !same(path) {
                        continue;
                    }
                    let mut inner = times(&st, down);
                    self.term(st.gain * up, term, v, &mut inner);
                    match self.down(path, inner, depth + 1) {
                        Ok(found) => return Ok(found),
                        Err(m @ Miss::Because(_)) if miss == Miss::Other => miss = m,
                        Err(_) => {}
                    }
                }
                Err(miss)
            }
            (Op::Select, [c, t, f]) => {
                let hidden = |o: ValueId| constant(g, o).is_some_and(|c| c * st.gain <= HIDDEN);
                let (path, keep) = match () {
                    () if hidden(*f) && same(*t) => (*t, true),
                    () if hidden(*t) && same(*f) => (*f, false),
                    () => return Miss::because("the scores are replaced by a number that does not hide them"),
                };
                if st.softcap.is_some() {
                    return Miss::because("a mask inside the soft cap");
                }
                let e = self.frame.elem(*c, &coords::broadcast(&st.at, &g.ty(*c).shape));
                let seen = self.frame.cond(&e);
                let seen = if keep { seen } else { self.frame.not(seen) };
                let mut inner = st;
                inner.visible.push(seen);
                self.down(path, inner, depth + 1)
            }
            (Op::Unary(UnaryOp::Tanh), [a]) => {
                if st.softcap.is_some() || st.gain <= 0.0 {
                    return Miss::because("a soft cap inside another, or below zero");
                }
                self.down(*a, Scores { gain: 1.0, softcap: Some(st.gain), ..st }, depth + 1)
            }
            (op, _) => Miss::because(format!("the scores pass through `{}`", op.name())),
        }
    }
    /// Takes `factor · v`, added in the node `sum`, as masks and biases.
    fn term(&self, factor: f64, v: ValueId, sum: ValueId, st: &mut Scores) {
        let at = &st.at.clone();
        let shape = &self.s.g.ty(sum).shape;
        let mut parts = Vec::new();
        self.flatten(factor, v, at, &mut parts, 0);
        let (mut conds, mut rest) = (Vec::new(), Vec::new());
        let mut shifted = false;
        for (f, o, c) in parts {
            let e = self.frame.elem(o, &c);
            let known = self.frame.visible(&e, f).filter(|c| self.frame.say(c).is_some());
            match known {
                Some(c) => conds.push(c),
                None if self.is_shift(&e) => shifted = true,
                None => rest.push((f, o, c)),
            }
        }
        if conds.is_empty() && !shifted {
            rest = vec![(factor, v, coords::broadcast(at, &self.s.g.ty(v).shape))];
        }
        st.visible.extend(conds);
        let added = |(factor, value, at)| Added { factor, value, at, shape: shape.clone() };
        st.bias.extend(rest.into_iter().map(added));
    }
    /// One finite number everywhere, which no softmax sees.
    fn is_shift(&self, e: &Elem) -> bool {
        matches!(self.frame.cases(e).as_deref(), Some([(_, x)]) if x.is_finite())
    }
    fn flatten(&self, f: f64, v: ValueId, at: &[Dim], out: &mut Vec<(f64, ValueId, Vec<Dim>)>, depth: usize) {
        let own = coords::broadcast(at, &self.s.g.ty(v).shape);
        match (self.s.g.op(v), self.s.g.operands(v).as_slice()) {
            (Op::Binary(op @ (BinaryOp::Add | BinaryOp::Sub)), [a, b]) if depth < 6 => {
                self.flatten(f, *a, &own, out, depth + 1);
                self.flatten(if *op == BinaryOp::Sub { -f } else { f }, *b, &own, out, depth + 1);
            }
            _ => out.push((f, v, own)),
        }
    }
}
