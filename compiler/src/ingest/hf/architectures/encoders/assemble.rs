//! From a [`Recipe`] to bound tensors and a graph.

use super::recipe::{Distances, Names, Output, Pool, Positions, Recipe, Step};
use crate::graph::{RopeStyle, ValueId, WeightId};
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    self, Buckets, Disentangled, Ffn, Linear, MultiHead, Nearby, Norm, Part, Projections, RelativeBias, Rope, Rotary,
    Scene, ScoreTerms, Stack, StackLayer, Up, counted_positions, distance_row,
};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::hf::registry::{Architecture, Network};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{InputFill, Task, sizes};

const HIDDEN: &str = "hidden_size";
const INNER: &str = "intermediate_size";

/// The bound tensors of a text encoder.
struct TextEncoder {
    recipe: Recipe,
    words: WeightId,
    positions: Option<WeightId>,
    types: Option<WeightId>,
    embedding_norm: Option<Norm>,
    projection: Option<Linear>,
    buckets: Option<RelativeBias>,
    distances: Option<(WeightId, Option<Norm>)>,
    stack: Stack,
    outputs: Vec<(Output, Vec<Bound>)>,
    states: bool,
}

/// A bound [`Step`].
enum Bound {
    Linear(Linear),
    Act(crate::ingest::activation::Activation),
    Norm(Norm),
}

/// Binds `weight` and, where there is to be one, `bias`.
pub(crate) fn linear(
    t: &mut Binder<'_>,
    name: &'static str,
    stem: &str,
    out: Extent<'_>,
    from: Extent<'_>,
    bias: bool,
) -> Linear {
    let weight = t.take(&format!("{stem}.weight"), &[out, from]);
    let bias = bias.then(|| t.take(&format!("{stem}.bias"), &[out]));
    Linear::new(name, weight, bias)
}

/// Binds a layer norm. Old files call its gain `gamma` and its bias `beta`.
pub(crate) fn layer_norm(
    t: &mut Binder<'_>,
    name: &'static str,
    stem: &str,
    size: Extent<'_>,
    eps: f32,
    bias: bool,
) -> Norm {
    let mut either = |new: &str, old: &str| {
        let old = format!("{stem}.{old}");
        if t.has(&old) { t.take(&old, &[size]) } else { t.take(&format!("{stem}.{new}"), &[size]) }
    };
    let gain = either("weight", "gamma");
    let bias = bias.then(|| either("bias", "beta"));
    Norm::layer(name, eps, gain, bias)
}

impl Architecture for Recipe {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        Box::new(TextEncoder::bind(self, t))
    }
    fn ignorable(&self, name: &str) -> bool {
        let tied = self.head.outputs.iter().flat_map(|o| &o.steps).any(|s| matches!(s, Step::Tied { .. }));
        let decoder = tied && (name.ends_with("decoder.weight") || name.ends_with("decoder.bias"));
        decoder || name == "lm_head.weight" && tied || self.ignored.iter().any(|part| name.contains(part))
    }
}

impl TextEncoder {
    fn bind(recipe: &Recipe, t: &mut Binder<'_>) -> TextEncoder {
        let r = recipe;
        let n = r.names;
        let p = t.prefix(&r.prefixes, &format!("{}.weight", n.words));
        let embedding: Extent<'_> = (r.embedding, "embedding_size");
        let hidden: Extent<'_> = (r.hidden, HIDDEN);
        let words = t.take(&format!("{p}{}.weight", n.words), &[(r.vocab, "vocab_size"), embedding]);
        let rows = match &r.positions {
            Positions::Learned { rows }
            | Positions::Counted { rows, .. }
            | Positions::CountedAndBuckets { rows, .. } => Some(*rows),
            Positions::Disentangled(d) if d.absolute => Some(r.context),
            Positions::Rotary { .. } | Positions::Disentangled(_) => None,
        };
        let positions = rows
            .map(|rows| t.take(&format!("{p}{}.weight", n.positions), &[(rows, "max_position_embeddings"), embedding]));
        let types =
            r.types.map(|rows| t.take(&format!("{p}{}.weight", n.types), &[(rows, "type_vocab_size"), embedding]));
        let norm_of = |t: &mut Binder<'_>, name, stem: &str, size| layer_norm(t, name, stem, size, r.eps, r.bias);
        let embedding_norm = (!n.embedding_norm.is_empty())
            .then(|| norm_of(t, "LayerNorm", &format!("{p}{}", n.embedding_norm), embedding));
        let projection = (r.always_projected || r.embedding != r.hidden).then(|| {
            let biased = t.has(&format!("{p}{}.bias", n.projection));
            linear(t, "projection", &format!("{p}{}", n.projection), hidden, embedding, biased)
        });
        let buckets = match r.positions {
            Positions::CountedAndBuckets { count, .. } => Some(RelativeBias {
                table: Some(t.take(
                    &format!("{p}encoder.relative_attention_bias.weight"),
                    &[(count, "relative_attention_num_buckets"), (r.heads, "num_attention_heads")],
                )),
                buckets: Buckets { count, max_distance: 128, both_sides: true },
            }),
            _ => None,
        };
        let distances = match &r.positions {
            Positions::Disentangled(d) => {
                let table =
                    t.take(&format!("{p}encoder.rel_embeddings.weight"), &[(2 * d.span, "position_buckets"), hidden]);
                Some((table, d.norm.then(|| norm_of(t, "norm", &format!("{p}encoder.LayerNorm"), hidden))))
            }
            _ => None,
        };
        let groups = t.layers(r.groups, "num_hidden_layers", |i| format!("{p}{}", (n.layer)(i)));
        let groups: Vec<StackLayer> =
            groups.into_iter().map(|i| layer(r, t, &format!("{p}{}", (n.layer)(i)), i)).collect();
        let per_group = (r.layers / r.groups.max(1)).max(1);
        let layers = (0..r.layers).filter_map(|i| groups.get((i / per_group) as usize).cloned()).collect();
        let nearby = r.nearby.map(|form| {
            let stem = format!("{p}encoder.conv");
            let (taps, flat): (Extent<'_>, _) = ((form.taps, "conv_kernel_size"), [r.hidden, r.hidden * form.taps]);
            let weight = t.take_flat(&format!("{stem}.conv.weight"), &[hidden, hidden, taps], &flat);
            let bias = t.take(&format!("{stem}.conv.bias"), &[hidden]);
            let norm = norm_of(t, "LayerNorm", &format!("{stem}.LayerNorm"), hidden);
            Nearby { linear: Linear::new("conv", weight, Some(bias)), taps: form.taps, act: form.act, norm }
        });
        let norm = (!n.final_norm.is_empty()).then(|| norm_of(t, "norm", &format!("{p}{}", n.final_norm), hidden));
        // A file of the encoder alone may carry the class of the model it was cut from.
        let headless = !r.head.states && p == r.prefixes[1] && r.prefixes[0] != r.prefixes[1] && !has_head(r, t);
        let outputs = if headless {
            Vec::new()
        } else {
            let there: Vec<&Output> = r.head.outputs.iter().filter(|o| !lacks_pooler(o, t, p)).collect();
            let bound = |o: &Output| (o.clone(), o.steps.iter().map(|s| step(r, t, words, p, s)).collect());
            there.into_iter().map(bound).collect()
        };
        TextEncoder {
            recipe: r.clone(),
            words,
            positions,
            types,
            embedding_norm,
            projection,
            buckets,
            distances,
            stack: Stack { name: "layer", place: r.place, layers, nearby, norm },
            outputs,
            states: r.head.states || headless,
        }
    }
}

/// Whether the file of an encoder has no pooler, which some are saved without: then there is no such output.
fn lacks_pooler(o: &Output, t: &Binder<'_>, prefix: &str) -> bool {
    let stored = |s: &Step| match s {
        Step::Linear { name, inner: true, .. } => t.has(&format!("{prefix}{name}.weight")),
        _ => true,
    };
    o.name == "pooler_output" && !o.steps.iter().all(stored)
}

/// Whether the file has a tensor of the head.
fn has_head(r: &Recipe, t: &Binder<'_>) -> bool {
    let named = |s: &Step| match s {
        Step::Linear { name, inner: false, .. } | Step::Untied { name, .. } | Step::Norm { name, .. } => {
            t.has(&format!("{name}.weight"))
        }
        Step::Linear { inner: true, .. } => false,
        Step::Tied { bias } => t.has(bias),
        Step::Act(_) => false,
    };
    r.head.outputs.iter().flat_map(|o| &o.steps).any(named)
}

fn step(r: &Recipe, t: &mut Binder<'_>, words: WeightId, prefix: &str, step: &Step) -> Bound {
    let vocab: Extent<'_> = (r.vocab, "vocab_size");
    match step {
        Step::Linear { name, inner, from, to, bias } => {
            let stem = if *inner { format!("{prefix}{name}") } else { name.clone() };
            Bound::Linear(linear(t, "dense", &stem, (*to, "the head"), (*from, HIDDEN), *bias))
        }
        Step::Tied { bias } => Bound::Linear(Linear::new("decoder", words, Some(t.take(bias, &[vocab])))),
        Step::Untied { name, bias } => {
            let weight = t.take(&format!("{name}.weight"), &[vocab, (r.embedding, "embedding_size")]);
            Bound::Linear(Linear::new("decoder", weight, Some(t.take(bias, &[vocab]))))
        }
        Step::Act(act) => Bound::Act(*act),
        Step::Norm { name, size, bias } => Bound::Norm(layer_norm(t, "norm", name, (*size, HIDDEN), r.eps, *bias)),
    }
}

fn layer(r: &Recipe, t: &mut Binder<'_>, stem: &str, i: u64) -> StackLayer {
    let n: Names = r.names;
    let hidden: Extent<'_> = (r.hidden, HIDDEN);
    let inner: Extent<'_> = (r.inner, INNER);
    let head_dim = r.hidden / r.heads.max(1);
    let of = |name: &str| format!("{stem}{name}");
    let qkv = if r.fused {
        let all = linear(t, "qkv", &of(n.q), (3 * r.hidden, "3·hidden_size"), hidden, r.bias);
        Projections::Fused(all)
    } else {
        let parts = [("query", n.q), ("key", n.k), ("value", n.v)];
        Projections::Separate(parts.map(|(name, at)| linear(t, name, &of(at), hidden, hidden, r.bias)))
    };
    let local = r.local.as_ref().is_some_and(|l| !i.is_multiple_of(l.every.max(1)));
    let rope = match &r.positions {
        Positions::Rotary { tables } => Some(usize::from(local && tables.len() > 1)),
        _ => None,
    };
    let terms = match &r.positions {
        Positions::Disentangled(d) => 1 + u64::from(d.content_to_position) + u64::from(d.position_to_content),
        _ => 1,
    };
    let relative = match &r.positions {
        Positions::Disentangled(d) => Some(disentangled(d, t, stem, &qkv, hidden)),
        _ => None,
    };
    let attention = MultiHead {
        name: "attention",
        heads: r.heads,
        head_dim,
        scale: ((head_dim * terms) as f64).powf(-0.5) as f32,
        qkv,
        rope,
        output: linear(t, "output", &of(n.attention_output), hidden, hidden, r.bias),
    };
    let norm = |t: &mut Binder<'_>, name, at: &str| layer_norm(t, name, &of(at), hidden, r.eps, r.bias);
    let attention_norm = (r.first_norm || i > 0).then(|| norm(t, "attention.output.LayerNorm", n.attention_norm));
    let up = if r.fused {
        let gate_up = linear(t, "up", &of(n.up), (2 * r.inner, "2·intermediate_size"), hidden, r.bias);
        Up::Packed { gate_up, inner: r.inner }
    } else {
        Up::Plain(linear(t, "intermediate", &of(n.up), inner, hidden, r.bias))
    };
    let ffn = Ffn {
        name: "ffn",
        up,
        act: r.act,
        down: linear(t, "output", &of(n.down), hidden, inner, r.bias),
        inner: None,
        active: None,
    };
    StackLayer {
        attention: Part { run: attention, norm: attention_norm, gain: None },
        local,
        relative,
        cross: None,
        bias: None,
        ffn: Some(Part::new(ffn, norm(t, "output.LayerNorm", n.ffn_norm))),
    }
}

fn disentangled(d: &Distances, t: &mut Binder<'_>, stem: &str, qkv: &Projections, hidden: Extent<'_>) -> Disentangled {
    let own = |at: usize| match qkv {
        Projections::Separate(parts) => parts.get(at).cloned(),
        Projections::Fused(_) => None,
    };
    let mut of = |wanted: bool, shared: usize, name: &str| match (wanted, d.shared) {
        (false, _) => None,
        (true, true) => own(shared),
        (true, false) => Some(linear(t, "position", &format!("{stem}attention.self.{name}"), hidden, hidden, true)),
    };
    let keys = of(d.content_to_position, 1, "pos_key_proj");
    let queries = of(d.position_to_content, 0, "pos_query_proj");
    Disentangled { keys, queries }
}

impl Network for TextEncoder {
    fn build(&self, m: &mut ModelBuilder) {
        let r = &self.recipe;
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, Some(r.context));
        if matches!(r.positions, Positions::Rotary { .. }) {
            m.size(sizes::CAPACITY, 1, Some(r.context));
        }
        m.info.task = Task::Encoder;
        m.info.layers = u32::try_from(self.stack.layers.len()).unwrap_or(u32::MAX);
        m.info.context = r.context;
        m.info.vocab = r.vocab;
        let rows = match &r.positions {
            Positions::CountedAndBuckets { .. } => {
                self.buckets.as_ref().map(|bias| bias.constant(m, "relative.classes"))
            }
            Positions::Disentangled(d) => {
                let most = i64::try_from(r.context).unwrap_or(i64::MAX).saturating_sub(1);
                let row = |at| distance_row(at, d.span as i64, d.buckets, d.longest) as i32;
                let rows: Vec<i32> = (-most..=most).map(row).collect();
                Some(m.constant_ints("relative.rows", &[rows.len() as u64], &rows))
            }
            _ => None,
        };
        m.graph("forward", |b| self.graph(b, rows));
    }
}

impl TextEncoder {
    fn graph(&self, b: &mut GraphBuilder<'_>, rows: Option<WeightId>) {
        let r = &self.recipe;
        let (batch, tokens) = (Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS));
        let shape = [batch.clone(), tokens.clone()];
        let ids = b.input("input_ids", Scalar::I32, &shape);
        let attended = b.input_or("attention_mask", Scalar::I32, &shape, InputFill::Ones);
        let types = self.types.map(|_| b.input_or("token_type_ids", Scalar::I32, &shape, InputFill::Zeros));
        let visible = b.cast(attended, Scalar::Bool);
        let mask = b.reshape(visible, &[batch.clone(), Dim::one(), Dim::one(), tokens.clone()]);
        let mut scene = Scene { scores: ScoreTerms { mask: Some(mask), ..ScoreTerms::default() }, ..Scene::default() };

        let mut x = b.scope("embeddings", |b| self.embed(b, ids, types));
        if let Positions::Disentangled(_) = &r.positions {
            let seen = b.cast(visible, Scalar::F32);
            let rows_seen = b.reshape(seen, &[batch.clone(), tokens.clone(), Dim::one()]);
            x = b.mul(x, rows_seen);
            scene.seen = Some(rows_seen);
            let seen = b.reshape(seen, &[batch.clone(), Dim::one(), tokens.clone(), Dim::one()]);
            let padding = b.unary(UnaryOp::Not, visible);
            let padding = b.reshape(padding, &[batch.clone(), Dim::one(), tokens.clone(), Dim::one()]);
            scene.scores.mask = Some(b.binary(BinaryOp::Or, mask, padding));
            if let (Some((table, norm)), Some(rows)) = (&self.distances, rows) {
                let i = b.iota(&[tokens.clone(), Dim::one()], 0, Dim::zero());
                let j = b.iota(&[Dim::one(), tokens.clone()], 1, Dim::constant(1 - r.context as i64));
                let place = b.sub(i, j);
                let rows = b.weight(rows);
                let rows = b.gather(rows, place);
                let table = b.weight(*table);
                let table = norm.as_ref().map_or(table, |norm| norm.apply(b, table));
                scene.distances = Some(blocks::Distances { rows, table, seen });
            }
        }
        if let Some(projection) = &self.projection {
            x = projection.apply(b, x);
        }
        if let (Some(bias), Some(classes)) = (&self.buckets, rows) {
            let classes = bias.classes(b, classes, Dim::zero(), tokens.clone(), tokens.clone());
            scene.scores.bias = bias.shared(b, classes);
        }
        if let Some(local) = &r.local {
            let i = b.iota(&[tokens.clone(), Dim::one()], 0, Dim::zero());
            let j = b.iota(&[Dim::one(), tokens.clone()], 1, Dim::zero());
            let distance = b.sub(i, j);
            let distance = b.unary(UnaryOp::Abs, distance);
            let beyond = b.i32(i32::try_from(local.reach + 1).unwrap_or(i32::MAX));
            let near = b.binary(BinaryOp::Lt, distance, beyond);
            scene.near = Some(b.binary(BinaryOp::And, mask, near));
        }
        let rotations: Vec<blocks::Rotation> = match &r.positions {
            Positions::Rotary { tables } => {
                let rope =
                    |f: &crate::ingest::rope::Frequencies| Rope { frequencies: f.clone(), style: RopeStyle::Half };
                tables.iter().map(|f| rope(f).tables(b, &tokens, None)).collect()
            }
            _ => Vec::new(),
        };
        if !rotations.is_empty() {
            let positions = b.iota(&shape, 1, Dim::zero());
            scene.rotary = Some(Rotary { tables: &rotations, positions });
        }
        let x = b.scope("encoder", |b| self.stack.apply(b, &scene, x));
        if self.states {
            b.output("last_hidden_state", x);
        }
        for (output, steps) in &self.outputs {
            let place = if output.name == "pooler_output" { "pooler" } else { output.name };
            let y = b.scope(place, |b| finish(b, output, steps, x, visible));
            b.output(output.name, y);
        }
    }

    fn embed(&self, b: &mut GraphBuilder<'_>, ids: ValueId, types: Option<ValueId>) -> ValueId {
        let tokens = Dim::size(sizes::TOKENS);
        let table = b.weight(self.words);
        let mut x = b.gather(table, ids);
        if let (Some(table), Some(types)) = (self.types, types) {
            let table = b.weight(table);
            let types = b.gather(table, types);
            x = b.add(x, types);
        }
        if let Some(table) = self.positions {
            let table = b.weight(table);
            let rows = match self.recipe.positions {
                Positions::Counted { pad, .. } | Positions::CountedAndBuckets { pad, .. } => {
                    let at = counted_positions(b, ids, pad, Dim::zero());
                    b.gather(table, at)
                }
                _ => b.slice(table, 0, Dim::zero(), tokens),
            };
            x = b.add(x, rows);
        }
        match &self.embedding_norm {
            Some(norm) => norm.apply(b, x),
            None => x,
        }
    }
}

/// The mean `[B, H]` of the rows of `x` `[B, S, H]` that are visible `[B, S]`.
pub(crate) fn visible_mean(b: &mut GraphBuilder<'_>, x: ValueId, visible: ValueId) -> ValueId {
    let weights = b.cast(visible, Scalar::F32);
    let mut shape = b.ty(weights).shape.clone();
    shape.push(Dim::one());
    let weights = b.reshape(weights, &shape);
    let x = b.mul(x, weights);
    let sum = b.reduce(ReduceOp::Sum, x, &[1], false);
    let count = b.reduce(ReduceOp::Sum, weights, &[1], false);
    b.binary(BinaryOp::Div, sum, count)
}

fn finish(b: &mut GraphBuilder<'_>, output: &Output, steps: &[Bound], x: ValueId, visible: ValueId) -> ValueId {
    let shape = b.ty(x).shape.clone();
    let (batch, width) = (shape.first().cloned().unwrap_or_else(Dim::one), b.ty(x).last());
    let mut y = match output.pool {
        Pool::Each => x,
        Pool::First => {
            let first = b.slice(x, 1, Dim::zero(), Dim::one());
            b.reshape(first, &[batch, width])
        }
        Pool::Mean => visible_mean(b, x, visible),
    };
    for step in steps {
        y = match step {
            Bound::Linear(linear) => linear.apply(b, y),
            Bound::Act(act) => act.apply(b, y),
            Bound::Norm(norm) => norm.apply(b, y),
        };
    }
    match output.column {
        Some(column) => {
            let axis = b.ty(y).rank().saturating_sub(1);
            let y = b.slice(y, axis, Dim::from(column), Dim::one());
            let mut shape = b.ty(y).shape.clone();
            shape.pop();
            b.reshape(y, &shape)
        }
        None => y,
    }
}
