//! The layers of a decoder one after the other, and who runs them: all tokens, or those that have not left, that a
//! router sends, that their feed-forward part still changes. Decisions are values of the graph; outputs named
//! [`frit_plan::RAN`] tell them.

use super::decoder::{Decoder, Feed, Layer, Residual, normed};
use super::halting::{self, Halting};
use super::linear::Linear;
use super::shared::Shared;
use super::sharing;
use crate::graph::{KvSlotId, ValueId};
use crate::ingest::builder::GraphBuilder;
use crate::ingest::error::Gap;
use crate::ingest::policy::{ExitRule, Exits, FfnSkip, KvOnSkip, LayerMix, Probs, RunPolicy};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{KvPart, RAN, sizes};
use std::collections::BTreeSet;

/// A decision of a layer about itself, by `g = w · x + b` with x what enters it.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub kind: GateKind,
    /// From the hidden size to 1.
    pub linear: Linear,
}

/// What a gate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateKind {
    /// `(1 − s) x + s layer(x)` with `s = ½ tanh(g) + ½`.
    Mix,
    /// The layer runs for tokens with `sigmoid(g) > ½`; for others x stays, and keys and values are made of it.
    Route,
}

/// What flows through the stack.
struct Flow {
    /// `[B, S, H]`.
    x: ValueId,
    /// Bool `[B, S, 1]`: tokens that have not left.
    running: Option<ValueId>,
    /// Bool `[B, S, 1]`: tokens that skip feed-forward parts.
    skipping: Option<ValueId>,
    /// `Σ wₗ hₗ` so far.
    mixed: Option<ValueId>,
    /// Most likely tokens at the last exit, I32 `[B, S, 1]`, and at how many exits in a row they were it.
    top: Option<(ValueId, ValueId)>,
    /// What entered the stack and what its layers gave, where layers attend to them.
    states: Vec<ValueId>,
    /// Who stops after how many trips.
    halting: Option<Halting>,
}

impl Decoder {
    /// Whether a layer is part of the stack under the policy.
    pub(super) fn runs(&self, layer: usize) -> bool {
        let end = self.policy.exit_layer.map_or(self.layers.len(), |n| n as usize);
        layer < end && !self.policy.skip_layers.iter().any(|s| *s as usize == layer)
    }
    /// Whether a layer keeps nothing of tokens that are sent past it.
    pub(super) fn drops(&self, layer: usize) -> bool {
        let gate = self.layers.get(layer).and_then(|l| l.gate.as_ref()).map(|g| g.kind);
        self.policy.kv_on_skip == KvOnSkip::Drop && self.runs(layer) && gate == Some(GateKind::Route)
    }
    /// Layers of the stack.
    pub(super) fn depth(&self) -> usize {
        (0..self.layers.len()).filter(|i| self.runs(*i)).count()
    }

    /// Takes a policy; what contradicts the model is a gap.
    pub fn set_policy(&mut self, policy: &RunPolicy) -> Vec<Gap> {
        self.policy = policy.clone();
        let mut gaps = Vec::new();
        let mut fault = |field: &str, problem: String| {
            gaps.push(Gap::field("the run policy", field, problem, "ask for something else"));
        };
        let layers = self.layers.len();
        let numbers = |list: &[u32], most: usize| list.iter().copied().find(|l| *l as usize > most);
        if let Some(n) = policy.exit_layer.filter(|n| *n == 0 || *n as usize > layers) {
            fault("exit_layer", format!("is {n}; the model has {layers} layers"));
        }
        if let Some(n) = policy.skip_layers.iter().find(|l| **l as usize >= layers) {
            fault("skip_layers", format!("holds {n}; the model has layers 0 to {}", layers.saturating_sub(1)));
        }
        if policy.depth.is_some() {
            fault("depth", "is for models with two stacks; `exit_layer` is that of a decoder".into());
        }
        for l in &policy.skip_ffns {
            match self.layers.get_mut(*l as usize) {
                Some(layer)
                    if layer.ffn.is_some() && matches!(layer.residual, Residual::Sequential | Residual::Parallel) =>
                {
                    (layer.ffn, layer.ffn_norm, layer.fed_norm) = (None, None, None);
                }
                Some(_) => {
                    fault("skip_ffns", format!("holds {l}, a layer without such a part or with a norm behind it"))
                }
                None => {
                    fault("skip_ffns", format!("holds {l}; the model has layers 0 to {}", layers.saturating_sub(1)))
                }
            }
        }
        match self.ff_width() {
            Some(_) if policy.ff_active => {
                for layer in &mut self.layers {
                    if let Some(Feed::Dense(ffn)) = &mut layer.ffn {
                        ffn.active = Some(Dim::size(sizes::ACTIVE));
                    }
                }
            }
            None if policy.ff_active => {
                fault("ff_active", "needs feed-forward parts of one width, none of low rank and no experts".into());
            }
            _ => {}
        }
        if let Some(passes) = &policy.prefill_passes {
            if !sharing::reads_above(&self.layers) {
                fault("prefill_passes", "repeats prompts, and no layer reads keys or values from above".into());
            }
            if passes.until.is_nan() || passes.until < 0.0 {
                fault("prefill_passes.until", format!("is {}, which is no part of anything", passes.until));
            }
        }
        if self.depth() == 0 {
            fault("skip_layers", "leaves no layer".into());
        }
        if let Some(exits) = &policy.exits {
            let ascending = exits.layers.windows(2).all(|w| matches!(w, [a, b] if a < b));
            if exits.layers.is_empty() || !ascending || exits.layers.first() == Some(&0) {
                fault("exits.layers", "must be ascending numbers of layers, at least 1".into());
            }
            if let Some(n) = numbers(&exits.layers, layers) {
                fault("exits.layers", format!("holds {n}; the model has {layers} layers"));
            }
            if exits.rule == ExitRule::Saturation(0) {
                fault("exits.rule", "asks for 0 exits in a row".into());
            }
        }
        if let Some(skip) = &policy.ffn_skip {
            if let Some(n) = skip.cold.iter().find(|l| **l as usize >= layers) {
                fault("ffn_skip.cold", format!("holds {n}; the model has layers 0 to {}", layers.saturating_sub(1)));
            }
            if self.layers.iter().any(|l| l.residual != Residual::Sequential) {
                fault("ffn_skip", "needs layers whose feed-forward part follows the attention".into());
            }
        }
        if let Some(mix) = &policy.layer_mix
            && (mix.weights.len() != layers || mix.weights.iter().any(|w| !w.is_finite()))
        {
            fault("layer_mix.weights", format!("holds {} numbers; {layers} finite ones are needed", mix.weights.len()));
        }
        if policy.kv_on_skip == KvOnSkip::Drop {
            let of = |l: &Layer| l.attention.as_ref().map(|a| a.sources);
            let alone = |i: usize| {
                let own = self.layers.get(i).and_then(of).is_none_or(|s| s == sharing::Sources::default());
                let mut all = self.layers.iter().filter_map(of);
                own && all.all(|s| [s.keys, s.values, s.probs].into_iter().flatten().all(|source| source != i))
            };
            let routed: Vec<usize> = (0..layers).filter(|i| self.drops(*i)).collect();
            if routed.is_empty() {
                fault("kv_on_skip", "drops what routed layers keep, and no layer has a router".into());
            }
            if policy.kv_keep.is_some() || !routed.iter().all(|i| alone(*i)) {
                fault("kv_on_skip", "drops keys that other layers or anchors need".into());
            }
        }
        for (field, problem) in self.cache_faults(policy) {
            fault(field, problem);
        }
        if self.halt.is_some() && *policy != RunPolicy::default() {
            fault("policy", "would decide about layers that decide by themselves when tokens stop".into());
        }
        for (i, layer) in self.layers.iter().enumerate().filter(|(i, _)| self.runs(*i)) {
            let Some(a) = &layer.attention else { continue };
            let s = a.sources;
            let blend = s.blend.filter(|b| b[1] != 0.0).map(|_| 0);
            let needed = [s.keys, s.values, s.probs, s.output, blend].into_iter().flatten();
            if let Some(from) = needed.into_iter().find(|from| !self.runs(*from)) {
                fault("skip_layers", format!("leaves out layer {from}, whose attention layer {i} reads"));
            }
        }
        gaps
    }

    /// The first layer whose cache is merged with its neighbour's.
    pub(super) fn merged_from(&self) -> Option<usize> {
        self.policy.kv_merge.map(|merge| merge.start.map_or(self.layers.len() / 2, |l| l as usize))
    }

    /// What a policy about caches asks for that the layers do not allow.
    fn cache_faults(&self, policy: &RunPolicy) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let layers = self.layers.len();
        if let Some(merge) = &policy.kv_merge {
            if !(0.0..=1.0).contains(&merge.t) {
                faults.push(("kv_merge.t", format!("is {}, not between 0 and 1", merge.t)));
            }
            if merge.gamma.is_nan() || merge.gamma < 0.0 {
                faults.push(("kv_merge.gamma", format!("is {}, which is no share of half a turn", merge.gamma)));
            }
            if (merge.gamma > 0.0) != (merge.retain > 0) {
                faults.push((
                    "kv_merge.retain",
                    format!("has room for {} with a gamma of {}", merge.retain, merge.gamma),
                ));
            }
            let pairs = sharing::pairs(layers, self.merged_from());
            if pairs.is_empty() {
                faults.push(("kv_merge.start", format!("leaves no two of {layers} layers to be merged")));
            }
            let form = |i: usize| {
                let a = self.layers.get(i).and_then(|l| l.attention.as_ref()).filter(|_| self.runs(i))?;
                let alone = a.sources == sharing::Sources::default();
                alone.then_some((a.kv_heads, a.value_heads(), a.head_dim, a.value_dim))
            };
            let fits = |p: &usize| form(*p).is_some_and(|f| f.0 == f.1 && form(p + 1) == Some(f));
            if let Some(p) = pairs.iter().find(|p| !fits(p)) {
                let problem = format!("merges layers {p} and {}, which do not both have a cache of one form", p + 1);
                faults.push(("kv_merge", problem));
            }
            let read = |l: &Layer| l.attention.as_ref().map(|a| [a.sources.keys, a.sources.values, a.sources.probs]);
            let mut read = self.layers.iter().filter_map(read).flatten().flatten();
            if let Some(l) = read.find(|l| self.merged_from().is_some_and(|from| *l >= from)) {
                faults.push(("kv_merge", format!("merges layer {l}, whose keys or values other layers read")));
            }
        }
        if let Some(keep) = &policy.kv_keep {
            if keep.window == 0 {
                faults.push(("kv_keep.window", "is 0; a token sees itself".into()));
            }
            if let Some(l) = keep.layer.filter(|l| *l as usize >= layers || !self.runs(*l as usize)) {
                faults.push(("kv_keep.layer", format!("is {l}, which does not run")));
            }
            let all: Vec<_> = self.layers.iter().filter_map(|l| l.attention.as_ref()).collect();
            let heads = all.first().map(|a| (a.kv_heads, a.value_heads()));
            let plain = |a: &&super::Attention| {
                let own = a.sources == sharing::Sources::default() && Some((a.kv_heads, a.value_heads())) == heads;
                own && a.window.is_none() && a.sinks.is_none()
            };
            if self.alibi.is_some() || all.len() < layers || !all.iter().all(plain) || policy.kv_merge.is_some() {
                let problem = "needs layers that all attend alike, to keys of their own, without windows or biases";
                faults.push(("kv_keep", problem.into()));
            }
        }
        faults
    }

    /// Layers whose probabilities are kept in memory: those that others use, where that moves fewer bytes than reading
    /// keys and queries again. `queries` is the number of tokens of a run if it is known.
    pub(super) fn kept(&self, queries: Option<u64>) -> BTreeSet<usize> {
        let mut out = BTreeSet::new();
        for (i, layer) in self.layers.iter().enumerate().filter(|(i, _)| self.runs(*i)) {
            let Some(a) = &layer.attention else { continue };
            let users = self.layers.iter().filter_map(|l| l.attention.as_ref());
            let users = users.filter(|u| u.sources.probs == Some(i)).count() as u64;
            // A key costs `H · S` floats written once and read by each, or `G · D` floats read by each.
            let stored = queries.map(|s| a.heads.saturating_mul(s).saturating_mul(1 + users));
            let computed = a.kv_heads.saturating_mul(a.head_dim).saturating_mul(users);
            let keep = match self.policy.probs {
                Probs::Store => true,
                Probs::Recompute => false,
                Probs::Auto => stored.is_some_and(|s| s < computed),
            };
            if users > 0 && keep {
                out.insert(i);
            }
        }
        out
    }

    /// The stack: from rows to what the head's norm reads. `prompt`: only the last token counts, and nobody leaves.
    pub(super) fn stack(
        &self,
        b: &mut GraphBuilder<'_>,
        mut shared: Shared,
        x: ValueId,
        prompt: bool,
    ) -> (ValueId, bool) {
        let mut flow =
            Flow { x, running: None, skipping: None, mixed: None, top: None, states: vec![x], halting: None };
        let cut = sharing::after_producers(&self.layers, |i| self.runs(i));
        let cut = cut.filter(|_| prompt && !self.policy.whole_prefill && self.policy.layer_mix.is_none());
        let exits = self.policy.exits.as_ref().filter(|_| !prompt);
        let mut is_cut = false;
        for (i, layer) in self.layers.iter().enumerate().filter(|(i, _)| self.runs(*i)) {
            if cut == Some(i) {
                let last = shared.tokens.clone() - Dim::one();
                let one = |b: &mut GraphBuilder<'_>, x: ValueId| b.slice(x, 1, last.clone(), Dim::one());
                flow.x = one(b, flow.x);
                flow.skipping = flow.skipping.map(|s| one(b, s));
                flow.states = flow.states.iter().map(|s| one(b, *s)).collect();
                shared = shared.last_token(b);
                is_cut = true;
            }
            if let (Some(halt), Some(unit)) = (&self.halt, &layer.halt) {
                let halting = halting::begin(b, halt, unit, flow.halting, flow.x, i);
                flow.running = halting.running();
                flow.halting = Some(halting);
            }
            flow.x = b.scope(&format!("{}.{i}", self.layers_name), |b| self.one(b, &shared, i, layer, &mut flow));
            let ends = self.halt.is_some_and(|halt| (i + 1).is_multiple_of(halt.body.max(1) as usize));
            if let Some(halting) = flow.halting.filter(|_| ends) {
                let (halting, next) = halting.end(b, flow.x);
                flow.halting = Some(halting);
                flow.x = next;
            }
            if let Some(mix) = &self.policy.layer_mix {
                self.mix(b, mix, i, &mut flow);
            }
            if let Some(exits) = exits {
                self.leave(b, exits, i, &mut flow);
            }
        }
        let stopped = flow.halting.and_then(|h| h.result());
        (flow.mixed.or(stopped).unwrap_or(flow.x), is_cut)
    }

    fn one(&self, b: &mut GraphBuilder<'_>, shared: &Shared, i: usize, layer: &Layer, flow: &mut Flow) -> ValueId {
        let entered = flow.x;
        let x = match layer.step {
            Some(step) => {
                let step = b.weight(step);
                b.add(entered, step)
            }
            None => entered,
        };
        let gate = layer.gate.as_ref().map(|gate| (gate.kind, gate.linear.apply(b, x)));
        let routed = gate.filter(|(kind, _)| *kind == GateKind::Route).map(|(_, g)| {
            let p = b.unary(UnaryOp::Sigmoid, g);
            let half = b.f32(0.5);
            b.binary(BinaryOp::Lt, half, p)
        });
        if let (Some(runs), Some(slot)) = (routed, shared.ran.get(i).copied().flatten()) {
            shared.visible.set(Some(ran_before(b, slot, runs)));
        }
        let y = match &self.policy.ffn_skip {
            Some(skip) if layer.ffn.is_some() => {
                let x = layer.attended(b, shared, i, x);
                self.feed(b, shared, skip, i, layer, x, flow)
            }
            _ => layer.apply(b, shared, i, x),
        };
        shared.visible.set(None);
        let y = match gate {
            Some((GateKind::Mix, g)) => {
                let half = b.f32(0.5);
                let s = b.unary(UnaryOp::Tanh, g);
                let s = b.mul(s, half);
                let s = b.add(s, half);
                let change = b.sub(y, x);
                let change = b.mul(change, s);
                b.add(x, change)
            }
            _ => match routed {
                Some(runs) => {
                    tell(b, &format!("layer.{i}"), runs);
                    b.select(runs, y, x)
                }
                None => y,
            },
        };
        let y = match &layer.layer_attention {
            Some(module) => module.apply(b, shared, &flow.states, y),
            None => y,
        };
        if self.layers.iter().skip(i + 1).any(|l| l.layer_attention.is_some()) {
            flow.states.push(y);
        }
        match flow.running {
            Some(running) => b.select(running, y, entered),
            None => y,
        }
    }

    /// The feed-forward part for the tokens that do not skip it, and who skips the next.
    fn feed(
        &self,
        b: &mut GraphBuilder<'_>,
        shared: &Shared,
        skip: &FfnSkip,
        i: usize,
        layer: &Layer,
        x: ValueId,
        flow: &mut Flow,
    ) -> ValueId {
        let y = layer.fed(b, x);
        if skip.cold.iter().any(|c| *c as usize == i) {
            return y;
        }
        let runs = flow.skipping.map(|skipping| {
            let stays = b.unary(UnaryOp::Not, skipping);
            match shared.positions {
                Some(positions) if skip.warmup > 0 => {
                    let warmup = b.i32(i32::try_from(skip.warmup).unwrap_or(i32::MAX));
                    let early = b.binary(BinaryOp::Lt, positions, warmup);
                    let shape = b.ty(stays).shape.clone();
                    let early = b.reshape(early, &shape);
                    b.binary(BinaryOp::Or, stays, early)
                }
                _ => stays,
            }
        });
        let idle = {
            let mut dot = |a, c| {
                let product = b.mul(a, c);
                b.reduce(ReduceOp::Sum, product, &[2], true)
            };
            let (xy, xx, yy) = (dot(x, y), dot(x, x), dot(y, y));
            let norms = b.mul(xx, yy);
            let norms = b.unary(UnaryOp::Rsqrt, norms);
            let cosine = b.mul(xy, norms);
            let threshold = b.f32(finite(skip.threshold));
            b.binary(BinaryOp::Lt, threshold, cosine)
        };
        match (flow.skipping, runs) {
            (Some(skipping), Some(runs)) => {
                tell(b, &format!("ffn.{i}"), runs);
                let idle = b.binary(BinaryOp::And, runs, idle);
                flow.skipping = Some(b.binary(BinaryOp::Or, skipping, idle));
                b.select(runs, y, x)
            }
            _ => {
                flow.skipping = Some(idle);
                y
            }
        }
    }

    fn mix(&self, b: &mut GraphBuilder<'_>, mix: &LayerMix, i: usize, flow: &mut Flow) {
        let weight = mix.weights.get(i).copied().unwrap_or(0.0);
        if weight == 0.0 {
            return;
        }
        let h = if mix.normed { normed(b, self.norm.as_ref(), flow.x) } else { flow.x };
        let h = match weight {
            1.0 => h,
            w => {
                let w = b.f32(w);
                b.mul(h, w)
            }
        };
        flow.mixed = Some(flow.mixed.map_or(h, |sum| b.add(sum, h)));
    }

    /// Who leaves after layer `i`.
    fn leave(&self, b: &mut GraphBuilder<'_>, exits: &Exits, i: usize, flow: &mut Flow) {
        let after = |l: &u32| (0..self.layers.len()).filter(|k| self.runs(*k)).nth((*l as usize).saturating_sub(1));
        let Some(at) = exits.layers.iter().position(|l| after(l) == Some(i)) else { return };
        let rest: Vec<usize> = (i + 1..self.layers.len()).filter(|k| self.runs(*k)).collect();
        let next = exits.layers.get(at + 1).and_then(after);
        let governed = rest.iter().filter(|k| next.is_none_or(|next| **k <= next)).count();
        let Some(layers) = exits.layers.get(at).filter(|_| governed > 0) else { return };
        b.scope(&format!("exit.{layers}"), |b| {
            let n = normed(b, self.norm.as_ref(), flow.x);
            let logits = self.head.apply(b, n);
            let certain = match exits.rule {
                ExitRule::Confidence(p) => {
                    let best = probability(b, logits, None);
                    exceeds(b, best, p)
                }
                ExitRule::Margin(m) => {
                    let best = probability(b, logits, None);
                    let second = second(b, logits);
                    let second = probability(b, logits, Some(second));
                    let margin = b.sub(best, second);
                    exceeds(b, margin, m)
                }
                ExitRule::Saturation(times) => saturated(b, logits, times, flow),
            };
            let stays = b.unary(UnaryOp::Not, certain);
            let running = match flow.running {
                Some(running) => b.binary(BinaryOp::And, running, stays),
                None => stays,
            };
            tell(b, &format!("exit.{layers}+{governed}"), running);
            flow.running = Some(running);
        });
    }
}

/// Notes which tokens run a layer, `[B, S, 1]`, and says of all so far, `[B, 1, 1, T]`.
fn ran_before(b: &mut GraphBuilder<'_>, slot: KvSlotId, runs: ValueId) -> ValueId {
    let flags = b.cast(runs, Scalar::F32);
    let mut shape = b.ty(flags).shape.clone();
    shape.insert(1, Dim::one());
    let flags = b.reshape(flags, &shape);
    let flags = b.kv_append(slot, KvPart::K, flags);
    let half = b.f32(0.5);
    let flags = b.binary(BinaryOp::Lt, half, flags);
    let mut shape = b.ty(flags).shape.clone();
    shape.swap(2, 3);
    b.reshape(flags, &shape)
}

/// Makes a decision `[B, S, 1]` known.
pub(super) fn tell(b: &mut GraphBuilder<'_>, what: &str, runs: ValueId) {
    let number = b.cast(runs, Scalar::I32);
    let shape: Vec<Dim> = b.ty(number).shape.iter().take(2).cloned().collect();
    let number = b.reshape(number, &shape);
    b.output(&format!("{RAN}{what}"), number);
}

fn finite(v: f32) -> f32 {
    v.clamp(-3.0e38, 3.0e38)
}

fn exceeds(b: &mut GraphBuilder<'_>, v: ValueId, bound: f32) -> ValueId {
    let bound = b.f32(finite(bound));
    b.binary(BinaryOp::Lt, bound, v)
}

/// The probability of the largest logit, or of logits of a given value, `[B, S, 1]`.
fn probability(b: &mut GraphBuilder<'_>, logits: ValueId, of: Option<ValueId>) -> ValueId {
    let most = b.reduce(ReduceOp::Max, logits, &[2], true);
    let below = b.sub(logits, most);
    let below = b.unary(UnaryOp::Exp, below);
    let sum = b.reduce(ReduceOp::Sum, below, &[2], true);
    match of {
        None => b.unary(UnaryOp::Recip, sum),
        Some(of) => {
            let own = b.sub(of, most);
            let own = b.unary(UnaryOp::Exp, own);
            b.binary(BinaryOp::Div, own, sum)
        }
    }
}

/// The largest logit but for that of the most likely token, `[B, S, 1]`.
fn second(b: &mut GraphBuilder<'_>, logits: ValueId) -> ValueId {
    let best = b.reduce(ReduceOp::ArgMax, logits, &[2], true);
    let shape = b.ty(logits).shape.clone();
    let token = b.iota(&shape, 2, Dim::zero());
    let is_best = b.binary(BinaryOp::Eq, token, best);
    let low = b.f32(-1.0e30);
    let others = b.select(is_best, low, logits);
    b.reduce(ReduceOp::Max, others, &[2], true)
}

/// Whether the most likely token was the same `times` exits in a row.
fn saturated(b: &mut GraphBuilder<'_>, logits: ValueId, times: u32, flow: &mut Flow) -> ValueId {
    let best = b.reduce(ReduceOp::ArgMax, logits, &[2], true);
    let one = b.i32(1);
    let shape = b.ty(best).shape.clone();
    let count = match flow.top {
        None => b.broadcast(one, &shape),
        Some((before, count)) => {
            let same = b.binary(BinaryOp::Eq, before, best);
            let more = b.add(count, one);
            b.select(same, more, one)
        }
    };
    flow.top = Some((best, count));
    let wanted = b.i32(i32::try_from(times).unwrap_or(i32::MAX));
    b.binary(BinaryOp::Le, wanted, count)
}
