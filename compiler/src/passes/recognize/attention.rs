//! Attention from two matmuls around a softmax.

use super::elem::Frame;
use super::mask::{self, Cond};
use super::scores::{Added, MOST_STEPS, Scores, Walk, frame_of, probabilities};
use super::{Found, Miss};
use crate::fusion::coords;
use crate::graph::verify::same_type;
use crate::graph::{AttentionAttrs, Float, Graph, Op, ValueId, broadcast_shapes};
use crate::passes::pattern::{binary, constant, either, unary};
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::spec::{BinaryOp, Literal, UnaryOp};

/// ```text
/// attention   softmax(mask(cap(scale · q·kᵀ) + bias)) · v == attention(q, k, v, mask, bias)
/// ```
/// where the scale may stand on q, on k, on both or on the scores; the mask may be a selection of scores or an added
/// number that is 0 or at most −9.9·10³; keys and values may be repeated for groups of query heads; heads may be an axis
/// of their own, two, or merged with the batch; rows may have a sink, one more score whose probability is left out. Of
/// the mask, `t ≤ s + offset` becomes causal masking, `t > s + offset −
/// w` beside it a window, what always holds vanishes, and the rest stays a Bool operand. Reassociates; the same
/// function wherever a row sees a key. A row that sees none is 0; with masks that are added to it, such a row was an
/// average of values that depended on the number added.
pub(super) const RULES: &[Rule] = &[Rule::reassoc("attention", |s, v| attention(s, v).ok())];

fn attention(s: &Site<'_>, v: ValueId) -> Found {
    let g = s.g;
    let Op::MatMul { b_transposed } = g.op(v) else { return Err(Miss::Other) };
    let [p, values] = g.operands(v)[..] else { return Err(Miss::Other) };
    let p_of = probabilities(s, p).ok_or(Miss::Other)?;
    let x = p_of.scores;
    let extents = frame_of(s, x).ok_or(Miss::Other)?;
    let walk = Walk { s, frame: Frame::new(s, &extents, &[]) };
    let at = |o: ValueId| walk.frame.reshape(&walk.frame.axes(), &extents, &g.ty(o).shape);
    let start = Scores { matmul: x, at: at(x), gain: 1.0, softcap: None, visible: Vec::new(), bias: Vec::new() };
    let scores = walk.down(x, start, 0)?;
    if !p_of.private {
        return Miss::because(USED_ELSEWHERE);
    }
    let at = at(p);
    if !walk.is_scores(&at) || g.ty(v).rank() != g.ty(p).rank() {
        return Miss::because("the product with the values is not over the keys");
    }
    walk.raise(v, &scores, p_of.sink, values, *b_transposed, &at)
}

impl Walk<'_> {
    fn raise(
        &self,
        v: ValueId,
        scores: &Scores,
        sink: Option<ValueId>,
        values: ValueId,
        v_transposed: bool,
        p_at: &[Dim],
    ) -> Found {
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
        let (dim, width) = (g.ty(q).last(), g.ty(v).last());
        let wanted = |h: &Dim, t: &Dim, d: &Dim| vec![batch.clone(), h.clone(), t.clone(), d.clone()];
        let q_frame = Frame::new(self.s, &wanted(heads, queries, &dim), &[]);
        let (q_scale, q_new) = queries_of(g, &q_frame, q, lead(&scores.at, q, tail(false)), scores.matmul)
            .ok_or_else(|| Miss::Because("the queries are no view by head".into()))?;
        let of_k = self.sources(k, lead(&scores.at, k, tail(!b_transposed)), &dim);
        let mut of_v = self.sources(values, lead(p_at, values, tail(v_transposed)), &width);
        of_v.retain(|c| c.scale == 1.0);
        let groups = of_k.iter().map(|c| c.groups).filter(|n| of_v.iter().any(|c| c.groups == *n)).min();
        let groups = groups.ok_or_else(|| Miss::Because("keys and values are no views by group of heads".into()))?;
        let pick = |list: &[Source], d: &Dim| -> Option<(f64, New)> {
            let scale = list.iter().rev().find(|c| c.groups == groups)?.scale;
            let c = list.iter().find(|c| c.groups == groups && c.scale == scale)?;
            let shape = wanted(&Dim::from(groups), keys, d);
            let view = Frame::new(self.s, &shape, &[]).view(c.value, &c.at)?;
            Some((scale, New::Make(Op::Broadcast(shape), vec![view])))
        };
        let (Some((k_scale, k_new)), Some((_, v_new))) = (pick(&of_k, &dim), pick(&of_v, &width)) else {
            return Miss::because("keys and values are no views by group of heads");
        };
        let masks = self.split(mask::all(scores.visible.clone()), sink.is_none())?;
        let mask = if masks.rest.is_empty() {
            None
        } else {
            let said = self.frame.say(&mask::all(masks.rest));
            Some(said.ok_or_else(|| Miss::Because("the mask is no view by query and key".into()))?)
        };
        let scale = scores.gain * q_scale * k_scale * scores.softcap.unwrap_or(1.0);
        let mut parts = Parts {
            q: New::Make(Op::Broadcast(wanted(heads, queries, &dim)), vec![q_new]),
            k: k_new,
            v: v_new,
            mask,
            bias: self.bias(&scores.bias)?,
            causal: masks.causal,
        };
        if let Some(sink) = sink {
            parts = self.with_sink(parts, sink)?;
        }
        let attrs = AttentionAttrs {
            scale: Float(scale as f32),
            causal: parts.causal,
            window: masks.window,
            softcap: scores.softcap.map(|c| Float(c as f32)),
            has_mask: parts.mask.is_some(),
            has_bias: parts.bias.is_some(),
        };
        let inputs = [Some(parts.q), Some(parts.k), Some(parts.v), parts.mask, parts.bias].into_iter().flatten();
        let y = New::Make(Op::Attention(attrs), inputs.collect());
        let y = New::Make(Op::Reshape(g.ty(v).shape.clone()), vec![y]);
        match y.ty(g) {
            Ok(ty) if same_type(&ty, g.ty(v), self.s.bounds) => Ok(y),
            Ok(ty) => Miss::because(format!("the result would be {ty}")),
            Err(fault) => Miss::because(fault),
        }
    }
    /// The sum of what is added to the scores.
    fn bias(&self, added: &[Added]) -> Result<Option<New>, Miss> {
        let mut sum: Option<New> = None;
        for a in added {
            let view = self.frame.view(a.value, &a.at).or_else(|| self.spread(a));
            let mut b = view.ok_or_else(|| Miss::Because("the bias is no view by query and key".into()))?;
            if a.factor != 1.0 {
                b = New::binary(BinaryOp::Mul, b, New::f32(a.factor as f32));
            }
            sum = Some(match sum {
                Some(sum) => New::binary(BinaryOp::Add, sum, b),
                None => b,
            });
        }
        Ok(sum)
    }
    /// A bias that is added in another shape of the scores, such as one that splits the batch into images and windows:
    /// repeated along each group of axes on which it depends, in the frame's shape.
    fn spread(&self, a: &Added) -> Option<New> {
        let own = &self.s.g.ty(a.value).shape;
        let missing = a.shape.len().checked_sub(own.len())?;
        let depends = |i: usize| i >= missing && !own.get(i - missing).is_some_and(|d| d.is(1));
        let (mut there, mut here) = (Vec::new(), Vec::new());
        for (from, to) in self.frame.groups(&self.frame.extents, &a.shape) {
            let full = to.clone().any(depends);
            let extent = |d: &Dim| if full { d.clone() } else { Dim::one() };
            there.extend(a.shape.get(to)?.iter().map(extent));
            here.extend(self.frame.extents.get(from)?.iter().map(extent));
        }
        let repeated = New::make(Op::Broadcast(there), &[a.value]);
        Some(New::Make(Op::Reshape(here), vec![repeated]))
    }
    /// Lets the sink be a key of its own in front of the others: zeros, so that its score is the bias, with a value of
    /// zeros.
    ///
    /// `softmax(s ⊕ c)[..T] · v == softmax((c ⊕ s)) · (0 ⊕ v)`
    fn with_sink(&self, p: Parts, sink: ValueId) -> Result<Parts, Miss> {
        let g = self.s.g;
        let no = |why: &str| Miss::Because(why.into());
        let fits = |n: &New| n.ty(g).map_err(Miss::Because);
        let behind = |axis: usize, first: New, rest: New| -> Result<New, Miss> {
            let mut shape = fits(&rest)?.shape;
            *shape.get_mut(axis).ok_or(Miss::Other)? = Dim::one();
            let first = New::Make(Op::Broadcast(shape), vec![first]);
            Ok(New::Make(Op::Concat { axis }, vec![first, rest]))
        };
        let keys = self.frame.extents.get(3).cloned().unwrap_or_default();
        let wide = |n: New, lead: &[Dim]| -> New {
            let shape = lead.iter().cloned().chain([keys.clone()]).collect();
            New::Make(Op::Broadcast(shape), vec![n])
        };
        let shape = &g.ty(sink).shape;
        let mut at = self.frame.reshape(&self.frame.axes()[..3], &self.frame.extents[..3], &shape[..shape.len() - 1]);
        at.push(Dim::zero());
        let score = self.frame.build(&self.frame.elem(sink, &at)).ok_or_else(|| no("the sink is no view by head"))?;
        let own = fits(&score)?.shape;
        let lead = match &p.bias {
            Some(b) => broadcast_shapes(&own, &fits(b)?.shape).ok_or_else(|| no("the sink does not fit the bias"))?,
            None => own,
        };
        let lead = lead.get(..3).ok_or_else(|| no("the sink is no view by head"))?;
        let bias = wide(p.bias.unwrap_or_else(|| New::f32(0.0)), lead);
        let mask = match p.mask {
            Some(m) => {
                let shape = fits(&m)?.shape;
                let m = wide(m, shape.get(..3).ok_or_else(|| no("the mask is no view by query and key"))?);
                let seen = New::Make(Op::Const(Literal::Bool(true)), Vec::new());
                Some(behind(3, seen, m)?)
            }
            None => None,
        };
        let causal = p.causal.map(|c| c + Dim::one());
        if causal.as_ref().is_some_and(|c| !self.frame.bounds.nonneg(c)) {
            return Err(no("the first query may not see the sink"));
        }
        Ok(Parts {
            q: p.q,
            k: behind(2, New::f32(0.0), p.k)?,
            v: behind(2, New::f32(0.0), p.v)?,
            mask,
            bias: Some(behind(3, score, bias)?),
            causal,
        })
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
    /// Causal masking, a window if one is wanted, and the rest.
    fn split(&self, visible: Cond, windowed: bool) -> Result<Masks, Miss> {
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
            let width = line(&c, 1).zip(out.causal.clone()).filter(|_| windowed).map(|(r, o)| r + o + Dim::one());
            match width.and_then(|w| u64::try_from(w.simplify(&self.frame.bounds).as_const()?).ok()) {
                Some(w) if w > 0 => out.window = Some(out.window.map_or(w, |old| old.min(w))),
                _ => out.rest.push(c),
            }
        }
        Ok(out)
    }
}

/// Operands of the attention.
struct Parts {
    q: New,
    k: New,
    v: New,
    mask: Option<New>,
    bias: Option<New>,
    causal: Option<Dim>,
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

/// The condition that does not hold at a product of probabilities and values that is no attention; `Some(None)`: all hold, and
/// the rule was not applied.
pub(super) fn left(s: &Site<'_>, v: ValueId) -> Option<Option<String>> {
    match attention(s, v) {
        Err(Miss::Other) => None,
        Err(Miss::Because(why)) => Some(Some(why)),
        Ok(_) => Some(None),
    }
}

/// Said where more than the values meets the probabilities.
pub(super) const USED_ELSEWHERE: &str = "the probabilities are used elsewhere";
