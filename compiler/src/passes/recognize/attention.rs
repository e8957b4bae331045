//! Attention from two matmuls around a softmax.

use super::elem::{Elem, Frame};
use super::mask::{self, Cond, HIDDEN};
use super::{Found, Miss};
use crate::fusion::coords;
use crate::graph::verify::same_type;
use crate::graph::{AttentionAttrs, Float, Graph, Op, ValueId};
use crate::passes::pattern::{binary, constant, either, first, is_single_use, unary};
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// ```text
/// attention   softmax(mask(cap(scale · q·kᵀ) + bias)) · v == attention(q, k, v, mask, bias)
/// ```
/// where the scale may stand on q, on k, on both or on the scores; the mask may be a selection of scores or an added
/// number that is 0 or at most −9.9·10³; keys and values may be repeated for groups of query heads; heads may be an axis
/// of their own, two, or merged with the batch. Of the mask, `t ≤ s + offset` becomes causal masking, `t > s + offset −
/// w` beside it a window, what always holds vanishes, and the rest stays a Bool operand. Reassociates; the same
/// function wherever a row sees a key. A row that sees none is 0; with masks that are added to it, such a row was an
/// average of values that depended on the number added.
pub(super) const RULES: &[Rule] = &[Rule { name: "attention", apply: |s, v| attention(s, v).ok() }];

/// What lies between the softmax and the product of queries and keys.
#[derive(Clone)]
struct Scores {
    /// The product, and its coordinates.
    matmul: ValueId,
    at: Vec<Dim>,
    /// The factor on what is below.
    gain: f64,
    softcap: Option<f64>,
    visible: Vec<Cond>,
    /// Factor, value and its coordinates.
    bias: Vec<(f64, ValueId, Vec<Dim>)>,
}

struct Walk<'a> {
    s: &'a Site<'a>,
    frame: Frame<'a>,
}

const MOST_STEPS: usize = 24;

fn attention(s: &Site<'_>, v: ValueId) -> Found {
    let g = s.g;
    let Op::MatMul { b_transposed } = g.op(v) else { return Err(Miss::Other) };
    let [p, values] = g.operands(v)[..] else { return Err(Miss::Other) };
    let (softmax, private) = probabilities(s, p).ok_or(Miss::Other)?;
    let x = first(g, softmax).ok_or(Miss::Other)?;
    let extents = frame_of(s, softmax).ok_or(Miss::Other)?;
    let walk = Walk { s, frame: Frame::new(s, &extents, &[]) };
    let at = |o: ValueId| walk.frame.reshape(&walk.frame.axes(), &extents, &g.ty(o).shape);
    let start = Scores { matmul: x, at: at(x), gain: 1.0, softcap: None, visible: Vec::new(), bias: Vec::new() };
    let scores = walk.down(x, start, 0)?;
    if !private {
        return Miss::because("the probabilities are used elsewhere");
    }
    let at = at(p);
    if !walk.is_scores(&at) || g.ty(v).rank() != g.ty(p).rank() {
        return Miss::because("the product with the values is not over the keys");
    }
    walk.raise(v, &scores, values, *b_transposed, &at)
}

/// The softmax above which only views and a guard against rows without keys stand, and whether nothing else uses it.
fn probabilities(s: &Site<'_>, p: ValueId) -> Option<(ValueId, bool)> {
    let g = s.g;
    let (mut v, mut private) = (p, true);
    for _ in 0..4 {
        match g.op(v) {
            Op::Softmax => return Some((v, private && is_single_use(g, v))),
            Op::Reshape(_) => {
                private &= is_single_use(g, v);
                v = first(g, v)?;
            }
            Op::Select => {
                let [c, t, f] = g.operands(v)[..] else { return None };
                let guard = binary(g, c, BinaryOp::Eq) == Some((t, t)) && constant(g, f) == Some(0.0);
                if !guard || !matches!(g.op(t), Op::Softmax) {
                    return None;
                }
                let inside = g.users(t).iter().all(|u| *u == c || *u == v) && is_single_use(g, c) && !g.is_output(t);
                return Some((t, private && inside && is_single_use(g, v)));
            }
            _ => return None,
        }
    }
    None
}

/// Batch, heads, queries and keys of the scores around a softmax.
fn frame_of(s: &Site<'_>, softmax: ValueId) -> Option<Vec<Dim>> {
    let g = s.g;
    let mut v = softmax;
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
    match g.ty(softmax).shape.as_slice() {
        [q, k] => Some(vec![one(), one(), q.clone(), k.clone()]),
        [n, q, k] => Some(vec![n.clone(), one(), q.clone(), k.clone()]),
        [b, gr, r, q, k] => Some(vec![b.clone(), gr * r, q.clone(), k.clone()]),
        _ => None,
    }
}

impl Walk<'_> {
    fn is_scores(&self, at: &[Dim]) -> bool {
        matches!(at, [lead @ .., q, k] if *q == Dim::axis(2) && *k == Dim::axis(3)
            && lead.iter().all(|d| !d.mentions(&Sym::Axis(2)) && !d.mentions(&Sym::Axis(3))))
    }
    /// Goes down from `v` to the product of queries and keys.
    fn down(&self, v: ValueId, st: Scores, depth: usize) -> Result<Scores, Miss> {
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
                    self.term(st.gain * up, term, &st.at, &mut inner);
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
    /// Takes `factor · v` as masks and biases.
    fn term(&self, factor: f64, v: ValueId, at: &[Dim], st: &mut Scores) {
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
        st.bias.extend(rest);
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
    fn raise(&self, v: ValueId, scores: &Scores, values: ValueId, v_transposed: bool, p_at: &[Dim]) -> Found {
        let g = self.s.g;
        let [q, k] = g.operands(scores.matmul)[..] else { return Err(Miss::Other) };
        let Op::MatMul { b_transposed } = g.op(scores.matmul) else { return Err(Miss::Other) };
        let lead = |at: &[Dim], o: ValueId, tail: [Dim; 2]| -> Vec<Dim> {
            let rank = g.ty(o).rank();
            let outer = coords::broadcast(&at[..at.len() - 2], &g.ty(o).shape[..rank.saturating_sub(2)]);
            [outer, tail.to_vec()].concat()
        };
        let tail = |swapped: bool| if swapped { [Dim::axis(3), Dim::axis(2)] } else { [Dim::axis(2), Dim::axis(3)] };
        let [batch, heads, queries, keys] = self.frame.extents.as_slice() else { return Err(Miss::Other) };
        let dim = g.ty(q).last();
        let width = g.ty(v).last();
        let wanted = |h: &Dim, t: &Dim, d: &Dim| vec![batch.clone(), h.clone(), t.clone(), d.clone()];
        let q_frame = Frame::new(self.s, &wanted(heads, queries, &dim), &[]);
        let (q_scale, q_new) = queries_of(g, &q_frame, q, lead(&scores.at, q, tail(false)), scores.matmul)
            .ok_or_else(|| Miss::Because("the queries are no view by head".into()))?;
        let k_at = lead(&scores.at, k, tail(!b_transposed));
        let v_at = lead(p_at, values, tail(v_transposed));
        let of_k = self.sources(k, k_at, &dim);
        let of_v = self.sources(values, v_at, &width);
        let groups = of_k.iter().map(|c| c.groups).filter(|n| of_v.iter().any(|c| c.groups == *n)).min();
        let groups = groups.ok_or_else(|| Miss::Because("keys and values are no views by group of heads".into()))?;
        let pick = |list: &[Source], d: &Dim| -> Option<(f64, New)> {
            let scale = list.iter().rev().find(|c| c.groups == groups)?.scale;
            let c = list.iter().find(|c| c.groups == groups && c.scale == scale)?;
            let shape = wanted(&Dim::from(groups), keys, d);
            let view = Frame::new(self.s, &shape, &[]).view(c.value, &c.at)?;
            Some((scale, New::Make(Op::Broadcast(shape), vec![view])))
        };
        let (Some((k_scale, k_new)), Some((1.0, v_new))) = (pick(&of_k, &dim), pick(&of_v, &width)) else {
            return Miss::because("keys and values are no views by group of heads");
        };
        let scale = scores.gain * q_scale * k_scale * scores.softcap.unwrap_or(1.0);
        let masks = self.split(mask::all(scores.visible.clone()))?;
        let mut inputs = vec![New::Make(Op::Broadcast(wanted(heads, queries, &dim)), vec![q_new]), k_new, v_new];
        let has_mask = !masks.rest.is_empty();
        if has_mask {
            let said = self.frame.say(&mask::all(masks.rest));
            inputs.push(said.ok_or_else(|| Miss::Because("the mask is no view by query and key".into()))?);
        }
        let mut bias: Option<New> = None;
        for (f, o, at) in &scores.bias {
            let view = self.frame.view(*o, at);
            let mut b = view.ok_or_else(|| Miss::Because("the bias is no view by query and key".into()))?;
            if *f != 1.0 {
                b = New::binary(BinaryOp::Mul, b, New::f32(*f as f32));
            }
            bias = Some(match bias {
                Some(sum) => New::binary(BinaryOp::Add, sum, b),
                None => b,
            });
        }
        let attrs = AttentionAttrs {
            scale: Float(scale as f32),
            causal: masks.causal,
            window: masks.window,
            softcap: scores.softcap.map(|c| Float(c as f32)),
            has_mask,
            has_bias: bias.is_some(),
        };
        inputs.extend(bias);
        let y = New::Make(Op::Attention(attrs), inputs);
        let y = New::Make(Op::Reshape(g.ty(v).shape.clone()), vec![y]);
        match y.ty(g) {
            Ok(ty) if same_type(&ty, g.ty(v), self.s.bounds) => Ok(y),
            Ok(ty) => Miss::because(format!("the result would be {ty}")),
            Err(fault) => Miss::because(fault),
        }
    }
    /// Places below `v` from which keys or values can be read with fewer heads.
    fn sources(&self, v: ValueId, at: Vec<Dim>, dim: &Dim) -> Vec<Source> {
        let [batch, heads, _, keys] = self.frame.extents.as_slice() else { return Vec::new() };
        let Some(h) = heads.as_const().filter(|h| *h > 0 && *h <= 4096) else { return Vec::new() };
        let frame = Frame::new(self.s, &[batch.clone(), heads.clone(), keys.clone(), dim.clone()], &[]);
        let (mut v, mut at, mut scale, mut out) = (v, at, 1.0, Vec::new());
        for _ in 0..MOST_STEPS {
            for repeat in (1..=h).rev().filter(|r| h % r == 0) {
                let groups = (h / repeat) as u64;
                let Some(at) = at.iter().map(|d| grouped(d, repeat, groups)).collect::<Option<Vec<_>>>() else {
                    continue;
                };
                let shape = [batch.clone(), Dim::from(groups), keys.clone(), dim.clone()];
                if Frame::new(self.s, &shape, &[]).view(v, &at).is_some() {
                    out.push(Source { groups, scale, value: v, at });
                }
                break;
            }
            match step(self.s.g, &frame, v, &at) {
                Some((c, o, inner)) => (scale, v, at) = (scale * c, o, inner),
                None => break,
            }
        }
        out
    }
    fn split(&self, visible: Cond) -> Result<Masks, Miss> {
        let list = match visible {
            Cond::Known(true) => Vec::new(),
            Cond::Known(false) => return Miss::because("the mask hides every key"),
            Cond::All(list) => list,
            one => vec![one],
        };
        let line = |c: &Cond, key: i64| {
            let Cond::NonNegative(d) = c else { return None };
            let (t, rest) = d.linear_in(&Sym::Axis(3))?;
            let (s, rest) = rest.linear_in(&Sym::Axis(2))?;
            let free = rest.symbols().iter().all(|s| matches!(s, Sym::Size(_)));
            (t.is(key) && s.is(-key) && free).then_some(rest)
        };
        let mut out = Masks::default();
        let (offsets, others): (Vec<_>, Vec<_>) = list.into_iter().partition(|c| line(c, -1).is_some());
        for c in offsets {
            let new = line(&c, -1).unwrap_or_default();
            match out.causal.take() {
                Some(old) if self.frame.bounds.le(&new, &old) => out.causal = Some(new),
                Some(old) => {
                    if !self.frame.bounds.le(&old, &new) {
                        out.rest.push(c);
                    }
                    out.causal = Some(old);
                }
                None => out.causal = Some(new),
            }
        }
        for c in others {
            let width = line(&c, 1).zip(out.causal.clone()).map(|(r, o)| r + o + Dim::one());
            match width.and_then(|w| u64::try_from(w.simplify(&self.frame.bounds).as_const()?).ok()) {
                Some(w) if w > 0 => out.window = Some(out.window.map_or(w, |old| old.min(w))),
                _ => out.rest.push(c),
            }
        }
        Ok(out)
    }
}

/// Where keys or values can be read.
struct Source {
    groups: u64,
    /// The factor on what was left behind.
    scale: f64,
    value: ValueId,
    /// Coordinates, axis 1 being the group.
    at: Vec<Dim>,
}

#[derive(Default)]
struct Masks {
    causal: Option<Dim>,
    window: Option<u64>,
    rest: Vec<Cond>,
}

/// A coordinate that depends on the head by its group alone, as one that depends on the group.
fn grouped(d: &Dim, repeat: i64, groups: u64) -> Option<Dim> {
    let head = Dim::axis(1);
    let group = head.div(&Dim::constant(repeat));
    let merged = &Dim::axis(0) * &Dim::from(groups);
    match () {
        () if !d.mentions(&Sym::Axis(1)) => Some(d.clone()),
        () if repeat == 1 => Some(d.clone()),
        () if *d == group => Some(head),
        () if *d == merged.clone() + group => Some(merged + head),
        () => None,
    }
}

/// One step below `v` through a view or a factor.
fn step(g: &Graph, frame: &Frame<'_>, v: ValueId, at: &[Dim]) -> Option<(f64, ValueId, Vec<Dim>)> {
    if let Some((x, inner)) = frame.through(v, at) {
        return Some((1.0, x, inner));
    }
    let same = |x: ValueId| g.ty(x).shape == g.ty(v).shape;
    if let Some(x) = unary(g, v, UnaryOp::Neg) {
        return Some((-1.0, x, at.to_vec()));
    }
    if let Some((x, c)) = binary(g, v, BinaryOp::Div).and_then(|(x, c)| Some((x, constant(g, c)?))) {
        return (same(x) && c != 0.0).then(|| (1.0 / c, x, at.to_vec()));
    }
    let mul = either(binary(g, v, BinaryOp::Mul)?);
    let (x, c) = mul.into_iter().find_map(|(x, c)| Some((x, constant(g, c)?)))?;
    same(x).then(|| (c, x, at.to_vec()))
}

/// The queries by head, and the factor on them. Factors on `v` or below views of it are taken off where what is left is
/// still a view by head.
fn queries_of(g: &Graph, frame: &Frame<'_>, v: ValueId, at: Vec<Dim>, matmul: ValueId) -> Option<(f64, New)> {
    let mut best = frame.view(v, &at).map(|new| (1.0, new));
    let (mut scale, mut x, mut here) = (1.0, v, at);
    for _ in 0..MOST_STEPS {
        let Some((c, inner, coords)) = step(g, frame, x, &here) else { break };
        (scale, x, here) = (scale * c, inner, coords);
        if best.as_ref().is_none_or(|b| b.0 != scale)
            && let Some(new) = frame.view(x, &here)
        {
            best = Some((scale, new));
        }
    }
    let lead = |o: ValueId| g.ty(o).shape.split_last_chunk::<2>().map(|(lead, _)| lead.to_vec());
    let whole = lead(v) == lead(matmul);
    best.or_else(|| whole.then(|| (1.0, New::make(Op::Reshape(frame.extents.clone()), &[v]))))
}

/// Why a product of probabilities and values is no attention.
pub(super) fn doubt(s: &Site<'_>, v: ValueId) -> Option<String> {
    Miss::reason(attention(s, v))
}
