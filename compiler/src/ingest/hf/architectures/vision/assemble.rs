//! From a [`Recipe`] to bound tensors and a graph.

use super::super::encoders::assemble::{layer_norm, linear};
use super::recipe::{Image, Layers, Names, Output, Pool, Recipe, Relative, Step};
use crate::graph::{ValueId, WeightId};
use crate::ingest::activation::Activation;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    Ffn, Linear, Memory, MultiHead, Norm, Part, Place, Projections, Scene, ScoreTerms, Stack, StackLayer, Up,
    embed_patches, per_head,
};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::hf::registry::{Architecture, Network};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp};
use frit_plan::{Task, sizes};

const HIDDEN: &str = "hidden_size";

/// The bound tensors of the layers between a picture and its rows.
pub(super) struct Tower {
    image: Image,
    hidden: u64,
    patches: Linear,
    tokens: Vec<WeightId>,
    registers: Option<WeightId>,
    positions: Option<WeightId>,
    first_norm: Option<Norm>,
    stack: Stack,
    /// The table of all layers, where they share one.
    relative: Option<WeightId>,
    has_relative: bool,
}

/// A vision transformer with its head.
pub(super) struct Vision {
    tower: Tower,
    states: bool,
    outputs: Vec<(&'static str, Vec<(Pool, Vec<Bound>)>)>,
}

enum Bound {
    Linear(Linear),
    Act(Activation),
    Norm(Norm),
    Attend(Box<Probe>),
}

/// From all rows to one: attention of a learned query, and a feed-forward part.
struct Probe {
    query: WeightId,
    attention: MultiHead,
    norm: Norm,
    ffn: Ffn,
}

impl Architecture for Recipe {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        Box::new(Vision::bind(self, t))
    }
    fn ignorable(&self, name: &str) -> bool {
        self.ignored.iter().any(|part| name.contains(part))
    }
}

fn step(r: &Recipe, t: &mut Binder<'_>, prefix: &str, step: &Step) -> Bound {
    let hidden: Extent<'_> = (r.layers.hidden, HIDDEN);
    match step {
        Step::Linear { name, inner, from, to, bias } => {
            let stem = if *inner { format!("{prefix}{name}") } else { (*name).to_owned() };
            Bound::Linear(linear(t, "dense", &stem, (*to, "the head"), (*from, HIDDEN), *bias))
        }
        Step::Act(act) => Bound::Act(*act),
        Step::Norm { name } => {
            Bound::Norm(layer_norm(t, "norm", &format!("{prefix}{name}"), hidden, r.layers.eps, true))
        }
        Step::Attend { name } => Bound::Attend(Box::new(Probe::bind(&r.layers, t, &format!("{prefix}{name}")))),
    }
}

impl Tower {
    /// Binds the tensors whose names begin with `p`.
    pub fn bind(r: &Recipe, t: &mut Binder<'_>, p: &str) -> Tower {
        let (n, l, image) = (r.names, &r.layers, r.image);
        let hidden: Extent<'_> = (l.hidden, HIDDEN);
        let patch: Extent<'_> = (image.patch, "patch_size");
        let shape = [hidden, (image.channels, "num_channels"), patch, patch];
        let flat = [l.hidden, image.channels * image.patch * image.patch];
        let weight = t.take_flat(&format!("{p}{}.weight", n.patches), &shape, &flat);
        let bias = r.patch_bias.then(|| t.take(&format!("{p}{}.bias", n.patches), &[hidden]));
        let one: Extent<'_> = (1, "1");
        let tokens = r.tokens.iter().map(|name| {
            let shape: &[Extent<'_>] = if r.flat { &[hidden] } else { &[one, one, hidden] };
            t.take_flat(&format!("{p}{name}"), shape, &[l.hidden])
        });
        let tokens: Vec<WeightId> = tokens.collect();
        let registers = (r.registers > 0).then(|| {
            let shape = [one, (r.registers, "num_register_tokens"), hidden];
            t.take_flat(&format!("{p}embeddings.register_tokens"), &shape, &[1, r.registers, l.hidden])
        });
        let rows = image.patches() + tokens.len() as u64;
        let positions = (!n.positions.is_empty()).then(|| {
            let rows: Extent<'_> = (rows, "patches and tokens");
            let shape: &[Extent<'_>] = if r.flat { &[rows, hidden] } else { &[one, rows, hidden] };
            t.take_flat(&format!("{p}{}", n.positions), shape, &[rows.0, l.hidden])
        });
        let norm = |t: &mut Binder<'_>, name: &'static str, at: &str| {
            (!at.is_empty()).then(|| layer_norm(t, name, &format!("{p}{at}"), hidden, l.eps, true))
        };
        let first_norm = norm(t, "first_norm", n.first_norm);
        let bound = t.layers(l.count, "num_hidden_layers", |i| format!("{p}{}", (n.layer)(i)));
        let layers = bound.into_iter().map(|i| layer(l, n, image, t, &format!("{p}{}", (n.layer)(i)))).collect();
        let norm = norm(t, "norm", n.final_norm);
        let relative = (l.relative == Some(Relative::Shared)).then(|| {
            relative_table(l, image, t, &format!("{p}encoder.relative_position_bias.relative_position_bias_table"))
        });
        Tower {
            image,
            hidden: l.hidden,
            patches: Linear::new("patches", weight, bias),
            tokens,
            registers,
            positions,
            first_norm,
            stack: Stack { name: "layer", place: Place::Before, layers, nearby: None, norm },
            relative,
            has_relative: l.relative.is_some(),
        }
    }

    /// The classes of pairs of patches, for a bias by their distances.
    pub fn classes(&self, m: &mut ModelBuilder) -> Option<WeightId> {
        self.has_relative.then(|| {
            let classes = pair_classes(self.image.grid());
            let rows = self.image.patches() + 1;
            m.constant_ints("relative.classes", &[rows, rows], &classes)
        })
    }

    /// Layers.
    pub fn depth(&self) -> u32 {
        u32::try_from(self.stack.layers.len()).unwrap_or(u32::MAX)
    }

    /// Rows `[B, tokens + patches, H]` of pictures `[B, C, h, w]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, pixels: ValueId, classes: Option<WeightId>) -> ValueId {
        let batch = b.ty(pixels).shape.first().cloned().unwrap_or_else(Dim::one);
        let x = b.scope("embeddings", |b| {
            let Image { channels, height, width, patch } = self.image;
            let patches = embed_patches(b, pixels, patch, [channels, height, width], &self.patches);
            let shape = [batch, Dim::one(), Dim::from(self.hidden)];
            let mut parts: Vec<ValueId> = Vec::new();
            for token in &self.tokens {
                let token = b.weight(*token);
                let token = b.reshape(token, &[Dim::one(), Dim::one(), Dim::from(self.hidden)]);
                parts.push(b.broadcast(token, &shape));
            }
            parts.push(patches);
            let x = if parts.len() > 1 { b.concat(&parts, 1) } else { patches };
            let x = match self.positions {
                Some(table) => {
                    let table = b.weight(table);
                    b.add(x, table)
                }
                None => x,
            };
            let x = self.registers.map_or(x, |registers| self.registered(b, x, registers));
            self.first_norm.as_ref().map_or(x, |norm| norm.apply(b, x))
        });
        let classes = classes.map(|classes| b.weight(classes));
        let bias = self.relative.zip(classes).map(|(table, classes)| {
            let table = b.weight(table);
            per_head(b, table, classes)
        });
        let scene = Scene { scores: ScoreTerms { bias, ..ScoreTerms::default() }, classes, ..Scene::default() };
        b.scope("encoder", |b| self.stack.apply(b, &scene, x))
    }

    /// With learned rows between the tokens and the patches.
    fn registered(&self, b: &mut GraphBuilder<'_>, x: ValueId, registers: WeightId) -> ValueId {
        let batch = b.ty(x).shape.first().cloned().unwrap_or_else(Dim::one);
        let registers = b.weight(registers);
        let mut shape = b.ty(registers).shape.to_vec();
        if let Some(first) = shape.first_mut() {
            *first = batch;
        }
        let registers = b.broadcast(registers, &shape);
        let tokens = Dim::from(self.tokens.len());
        let front = b.slice(x, 1, Dim::zero(), tokens.clone());
        let patches = b.slice(x, 1, tokens, Dim::from(self.image.patches()));
        b.concat(&[front, registers, patches], 1)
    }
    /// Rows in front of the patches.
    fn leading(&self, b: &GraphBuilder<'_>, x: ValueId) -> Dim {
        let rows = b.ty(x).shape.get(1).cloned().unwrap_or_else(Dim::one);
        rows - Dim::from(self.image.patches())
    }

    /// Declares the input of pictures.
    pub fn pixels(&self, b: &mut GraphBuilder<'_>, batch: Dim) -> ValueId {
        let Image { channels, height, width, .. } = self.image;
        let [channels, height, width] = [channels, height, width].map(Dim::from);
        b.input("pixel_values", Scalar::F32, &[batch, channels, height, width])
    }
}

fn relative_table(l: &Layers, image: Image, t: &mut Binder<'_>, name: &str) -> WeightId {
    let [down, across] = image.grid();
    let classes = (2 * down - 1) * (2 * across - 1) + 3;
    t.take(name, &[(classes, "pairs of distances"), (l.heads, "num_attention_heads")])
}

/// For each pair of rows, the first of which is a token, the class of their distances down and across. The last three
/// classes are: from the token, to the token, and the token itself.
fn pair_classes([down, across]: [u64; 2]) -> Vec<i32> {
    let pairs = (2 * down - 1) * (2 * across - 1);
    let rows = down * across + 1;
    let class = |i: u64, j: u64| match (i.checked_sub(1), j.checked_sub(1)) {
        (None, None) => pairs + 2,
        (None, Some(_)) => pairs,
        (Some(_), None) => pairs + 1,
        (Some(i), Some(j)) => {
            let apart = |i: u64, j: u64, extent: u64| i + extent - 1 - j;
            apart(i / across, j / across, down) * (2 * across - 1) + apart(i % across, j % across, across)
        }
    };
    (0..rows).flat_map(|i| (0..rows).map(move |j| class(i, j) as i32)).collect()
}

impl Layers {
    /// Attention over the sizes of these layers.
    fn attention(&self, qkv: Projections, output: Linear) -> MultiHead {
        let head_dim = self.hidden / self.heads.max(1);
        let scale = (head_dim as f64).powf(-0.5) as f32;
        MultiHead { name: "attention", heads: self.heads, head_dim, scale, qkv, rope: None, output }
    }
}

pub(super) fn layer(l: &Layers, n: Names, image: Image, t: &mut Binder<'_>, stem: &str) -> StackLayer {
    let hidden: Extent<'_> = (l.hidden, HIDDEN);
    let inner: Extent<'_> = (l.inner, "intermediate_size");
    let of = |name: &str| format!("{stem}{name}");
    let [q, k, v] = l.qkv_bias;
    let parts = [("query", n.q, q), ("key", n.k, k), ("value", n.v, v)];
    let qkv = Projections::Separate(parts.map(|(name, at, bias)| linear(t, name, &of(at), hidden, hidden, bias)));
    let output = linear(t, "output", &of(n.attention_output), hidden, hidden, true);
    let attention = l.attention(qkv, output);
    let up = match l.gated {
        true => {
            let gate_up = linear(t, "up", &of(n.up), (2 * l.inner, "2·inner"), hidden, true);
            Up::Packed { gate_up, inner: l.inner }
        }
        false => Up::Plain(linear(t, "up", &of(n.up), inner, hidden, true)),
    };
    let ffn = Ffn {
        name: "ffn",
        up,
        act: l.act,
        down: linear(t, "down", &of(n.down), hidden, inner, true),
        inner: None,
        active: None,
    };
    let norm = |t: &mut Binder<'_>, at: &str| Some(layer_norm(t, "norm", &of(at), hidden, l.eps, true));
    let gain = |t: &mut Binder<'_>, at: &str| (!at.is_empty()).then(|| t.take(&of(at), &[hidden]));
    let [first, second] = n.gains;
    let attention = Part { run: attention, norm: norm(t, n.attention_norm), gain: gain(t, first) };
    let ffn = Part { run: ffn, norm: norm(t, n.ffn_norm), gain: gain(t, second) };
    let bias = (l.relative == Some(Relative::Own)).then(|| {
        relative_table(l, image, t, &of("attention.attention.relative_position_bias.relative_position_bias_table"))
    });
    StackLayer { bias, ffn: Some(ffn), ..StackLayer::plain(attention) }
}

impl Network for Vision {
    fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.info.task = Task::Encoder;
        m.info.layers = self.tower.depth();
        let classes = self.tower.classes(m);
        m.graph("forward", |b| {
            let pixels = self.tower.pixels(b, Dim::size(sizes::BATCH));
            let x = self.tower.apply(b, pixels, classes);
            if self.states {
                b.output("last_hidden_state", x);
            }
            for (name, parts) in &self.outputs {
                let y = b.scope(name, |b| self.output(b, parts, x));
                b.output(name, y);
            }
        });
    }
}

impl Vision {
    /// Binds the tower and its head.
    pub fn bind(r: &Recipe, t: &mut Binder<'_>) -> Vision {
        let p = t.prefix(&r.prefixes, &format!("{}.weight", r.names.patches));
        let tower = Tower::bind(r, t, p);
        let bound = |t: &mut Binder<'_>, o: &Output| {
            let parts = o.parts.iter().map(|(pool, steps)| (*pool, steps.iter().map(|s| step(r, t, p, s)).collect()));
            (o.name, parts.collect())
        };
        // Some files of an encoder are saved without a pooler: then there is no such output.
        let stored = |t: &Binder<'_>, s: &Step| match s {
            Step::Linear { name, inner: true, .. } => t.has(&format!("{p}{name}.weight")),
            _ => true,
        };
        let lacks = |t: &Binder<'_>, o: &Output| {
            o.name == "pooler_output" && !o.parts.iter().flat_map(|(_, steps)| steps).all(|s| stored(t, s))
        };
        let there: Vec<&Output> = r.head.outputs.iter().filter(|o| !lacks(t, o)).collect();
        let outputs = there.into_iter().map(|o| bound(t, o)).collect();
        Vision { tower, states: r.head.states, outputs }
    }
    /// Layers.
    pub fn depth(&self) -> u32 {
        self.tower.depth()
    }
    /// Declares pictures, `batch` of them, and gives the one output of a head that has one.
    pub fn embed(&self, b: &mut GraphBuilder<'_>, batch: Dim) -> ValueId {
        let pixels = self.tower.pixels(b, batch);
        let x = self.tower.apply(b, pixels, None);
        match self.outputs.as_slice() {
            [(_, parts)] => self.output(b, parts, x),
            _ => x,
        }
    }

    fn output(&self, b: &mut GraphBuilder<'_>, parts: &[(Pool, Vec<Bound>)], x: ValueId) -> ValueId {
        let mut sum: Option<ValueId> = None;
        for (pool, steps) in parts {
            let mut y = self.pool(b, *pool, x);
            for step in steps {
                y = match step {
                    Bound::Linear(linear) => linear.apply(b, y),
                    Bound::Act(act) => act.apply(b, y),
                    Bound::Norm(norm) => norm.apply(b, y),
                    Bound::Attend(probe) => probe.apply(b, y),
                };
            }
            sum = Some(sum.map_or(y, |sum| b.add(sum, y)));
        }
        let sum = sum.unwrap_or(x);
        if parts.len() < 2 {
            return sum;
        }
        let count = b.f32(parts.len() as f32);
        b.binary(BinaryOp::Div, sum, count)
    }

    fn pool(&self, b: &mut GraphBuilder<'_>, pool: Pool, x: ValueId) -> ValueId {
        let (batch, width) = (b.ty(x).shape.first().cloned().unwrap_or_else(Dim::one), b.ty(x).last());
        let token = |b: &mut GraphBuilder<'_>, at: u64| {
            let row = b.slice(x, 1, Dim::from(at), Dim::one());
            b.reshape(row, &[batch.clone(), width.clone()])
        };
        let patches = |b: &mut GraphBuilder<'_>| {
            let count = Dim::from(self.tower.image.patches());
            let first = self.tower.leading(b, x);
            let rows = b.slice(x, 1, first, count);
            let sum = b.reduce(ReduceOp::Sum, rows, &[1], false);
            let count = b.f32(self.tower.image.patches() as f32);
            b.binary(BinaryOp::Div, sum, count)
        };
        match pool {
            Pool::Token(at) => token(b, at),
            Pool::Rows => x,
            Pool::Patches => patches(b),
            Pool::TokenAndPatches => {
                let both = [token(b, 0), patches(b)];
                b.concat(&both, 1)
            }
        }
    }
}

impl Probe {
    fn bind(l: &Layers, t: &mut Binder<'_>, stem: &str) -> Probe {
        let hidden: Extent<'_> = (l.hidden, HIDDEN);
        let query = t.take_flat(&format!("{stem}.probe"), &[(1, "1"), (1, "1"), hidden], &[l.hidden]);
        let three: Extent<'_> = (3 * l.hidden, "3·hidden_size");
        let weight = t.take(&format!("{stem}.attention.in_proj_weight"), &[three, hidden]);
        let bias = t.take(&format!("{stem}.attention.in_proj_bias"), &[three]);
        let qkv = Projections::Fused(Linear::new("in_proj", weight, Some(bias)));
        let output = linear(t, "out_proj", &format!("{stem}.attention.out_proj"), hidden, hidden, true);
        let attention = l.attention(qkv, output);
        let norm = layer_norm(t, "layernorm", &format!("{stem}.layernorm"), hidden, l.eps, true);
        let inner: Extent<'_> = (l.inner, "intermediate_size");
        let up = Up::Plain(linear(t, "fc1", &format!("{stem}.mlp.fc1"), inner, hidden, true));
        let down = linear(t, "fc2", &format!("{stem}.mlp.fc2"), hidden, inner, true);
        Probe { query, attention, norm, ffn: Ffn { name: "mlp", up, act: l.act, down, inner: None, active: None } }
    }

    /// Rows `[B, T, H]` to `[B, H]`.
    fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        let (batch, width) = (b.ty(x).shape.first().cloned().unwrap_or_else(Dim::one), b.ty(x).last());
        let query = b.weight(self.query);
        let query = b.broadcast(query, &[batch.clone(), Dim::one(), width.clone()]);
        let pooled = self.attention.apply(b, query, Memory::Other(x), &ScoreTerms::default(), None);
        let normed = self.norm.apply(b, pooled);
        let fed = self.ffn.apply(b, normed);
        let y = b.add(pooled, fed);
        b.reshape(y, &[batch, width])
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_patches_are_classed_by_both_distances() {
        let classes = pair_classes([2, 3]);
        let at = |i: usize, j: usize| classes[i * 7 + j];
        assert_eq!((at(0, 0), at(0, 3), at(3, 0)), (17, 15, 16));
        assert_eq!(at(1, 1), at(6, 6));
        assert_eq!(at(1, 2), at(5, 6));
        assert_eq!((at(1, 6), at(6, 1)), (0, 14));
    }
}
