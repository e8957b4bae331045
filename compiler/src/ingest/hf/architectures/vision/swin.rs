//! Swin: attention within windows of a grid of patches, which every second layer moves by half a window; between stages
//! four neighbours become one row.

use super::super::encoders::assemble::{layer_norm, linear};
use super::super::encoders::recipe::labels;
use super::families::Kind;
use super::recipe::{Image, image};
use crate::graph::{ValueId, WeightId};
use crate::ingest::activation::Activation;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    Ffn, Linear, Memory, MultiHead, Norm, Projections, ScoreTerms, Up, embed_patches, per_head,
};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::hf::common_fields::activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp};
use frit_plan::{Task, sizes};
use serde_json::Value;

/// The configuration.
#[derive(Clone, Debug)]
struct Config {
    kind: Kind,
    image: Image,
    stages: Vec<StageConfig>,
    window: u64,
    qkv_bias: bool,
    act: Activation,
    eps: f32,
    labels: u64,
}

/// The sizes of a stage.
#[derive(Clone, Copy, Debug)]
struct StageConfig {
    layers: u64,
    heads: u64,
    width: u64,
    inner: u64,
    grid: [u64; 2],
}

/// The bound tensors.
struct Swin {
    config: Config,
    patches: Linear,
    patch_norm: Norm,
    stages: Vec<Stage>,
    norm: Norm,
    head: Option<Linear>,
}

struct Stage {
    config: StageConfig,
    layers: Vec<Layer>,
    /// To the next stage.
    merging: Option<(Norm, Linear)>,
}

struct Layer {
    attention_norm: Norm,
    attention: MultiHead,
    /// `[classes, heads]`.
    bias: WeightId,
    ffn_norm: Norm,
    ffn: Ffn,
}

/// A list of sizes, each within 1 and `most`.
fn sizes_of(f: &mut Fields<'_>, field: &str, default: &[u64], most: u64) -> Vec<u64> {
    let Some(Value::Array(items)) = f.get(field) else { return default.to_vec() };
    let sizes: Vec<u64> = items.iter().filter_map(Value::as_u64).filter(|n| (1..=most).contains(n)).collect();
    if sizes.len() == items.len() && (1..=16).contains(&sizes.len()) {
        return sizes;
    }
    f.size_gap(field, format!("is no list of 1 to 16 sizes of at most {most}"), "correct it");
    default.to_vec()
}

pub(super) fn read(f: &mut Fields<'_>, kind: Kind) -> Box<dyn Architecture> {
    let limits = f.limits();
    let image = image(f, "", [224, 4]);
    let width = f.size("embed_dim", Some(96));
    let depths = sizes_of(f, "depths", &[2, 2, 6, 2], limits.layers);
    let heads = sizes_of(f, "num_heads", &[3, 6, 12, 24], limits.dim);
    let window = f.size("window_size", Some(7));
    let ratio = f.positive("mlp_ratio", Some(4.0));
    if depths.len() != heads.len() {
        f.size_gap("num_heads", format!("has {} entries for {} stages", heads.len(), depths.len()), "correct it");
    }
    if f.flag("use_absolute_embeddings", false) {
        f.gap("use_absolute_embeddings", "is not supported: its table has a row too many", "use a model without");
    }
    let mut grid = [image.height, image.width].map(|extent| extent.div_ceil(image.patch));
    let mut stages = Vec::new();
    for (i, (layers, heads)) in depths.iter().zip(&heads).enumerate() {
        let width = width.saturating_mul(1 << i.min(16));
        let narrow = grid[0].min(grid[1]);
        if window > narrow {
            let problem = format!("is {window}, more than the {narrow} patches of stage {i}");
            f.size_gap("window_size", problem, "use a model whose windows fit all stages");
        }
        if !width.is_multiple_of(*heads) || width > limits.dim {
            f.size_gap("num_heads", format!("has {heads} heads for the width {width} of stage {i}"), "correct it");
        }
        let inner = ((width as f64 * ratio) as u64).clamp(1, limits.dim);
        stages.push(StageConfig { layers: *layers, heads: *heads, width, inner, grid });
        grid = grid.map(|extent| extent.div_ceil(2));
    }
    Box::new(Config {
        kind,
        image,
        stages,
        window,
        qkv_bias: f.flag("qkv_bias", true),
        act: activation(f, "hidden_act", "gelu"),
        eps: f.positive("layer_norm_eps", Some(1e-5)) as f32,
        labels: if kind == Kind::Model { 0 } else { labels(f) },
    })
}

impl Config {
    fn layer(&self, t: &mut Binder<'_>, s: StageConfig, stem: &str) -> Layer {
        let width: Extent<'_> = (s.width, "embed_dim");
        let inner: Extent<'_> = (s.inner, "mlp_ratio");
        let norm = |t: &mut Binder<'_>, name| layer_norm(t, name, &format!("{stem}{name}"), width, self.eps, true);
        let own = |part: &str| format!("{stem}attention.self.{part}");
        let qkv = ["query", "key", "value"].map(|part| linear(t, part, &own(part), width, width, self.qkv_bias));
        let head_dim = s.width / s.heads.max(1);
        let attention = MultiHead {
            name: "attention",
            heads: s.heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5) as f32,
            qkv: Projections::Separate(qkv),
            rope: None,
            output: linear(t, "output", &format!("{stem}attention.output.dense"), width, width, true),
        };
        let classes = (2 * self.window - 1) * (2 * self.window - 1);
        let table: [Extent<'_>; 2] = [(classes, "pairs of distances"), (s.heads, "num_heads")];
        let bias = t.take(&own("relative_position_bias_table"), &table);
        let up = Up::Plain(linear(t, "up", &format!("{stem}intermediate.dense"), inner, width, true));
        let down = linear(t, "down", &format!("{stem}output.dense"), width, inner, true);
        Layer {
            attention_norm: norm(t, "layernorm_before"),
            attention,
            bias,
            ffn_norm: norm(t, "layernorm_after"),
            ffn: Ffn { name: "ffn", up, act: self.act, down, inner: None, active: None },
        }
    }

    fn stage(&self, t: &mut Binder<'_>, i: usize, s: StageConfig, stem: &str) -> Stage {
        let layers = (0..s.layers).map(|j| self.layer(t, s, &format!("{stem}blocks.{j}."))).collect();
        let merging = (i + 1 < self.stages.len()).then(|| {
            let four: Extent<'_> = (4 * s.width, "4·embed_dim");
            let norm = layer_norm(t, "norm", &format!("{stem}downsample.norm"), four, 1e-5, true);
            let two: Extent<'_> = (2 * s.width, "2·embed_dim");
            (norm, linear(t, "reduction", &format!("{stem}downsample.reduction"), two, four, false))
        });
        Stage { config: s, layers, merging }
    }
}

impl Architecture for Config {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let prefixes = if self.kind == Kind::Model { ["", "swin."] } else { ["swin.", ""] };
        let patches = "embeddings.patch_embeddings.projection";
        let p = t.prefix(&prefixes, &format!("{patches}.weight"));
        let Image { channels, patch, .. } = self.image;
        let width_of = |s: Option<&StageConfig>| s.map_or(1, |s| s.width);
        let width: Extent<'_> = (width_of(self.stages.first()), "embed_dim");
        let side: Extent<'_> = (patch, "patch_size");
        let shape = [width, (channels, "num_channels"), side, side];
        let flat = [width.0, channels * patch * patch];
        let weight = t.take_flat(&format!("{p}{patches}.weight"), &shape, &flat);
        let bias = t.take(&format!("{p}{patches}.bias"), &[width]);
        let patch_norm = layer_norm(t, "norm", &format!("{p}embeddings.norm"), width, 1e-5, true);
        let stages = self.stages.iter().enumerate();
        let stages = stages.map(|(i, s)| self.stage(t, i, *s, &format!("{p}encoder.layers.{i}."))).collect();
        let last: Extent<'_> = (width_of(self.stages.last()), "embed_dim");
        let norm = layer_norm(t, "layernorm", &format!("{p}layernorm"), last, self.eps, true);
        let head = (self.kind != Kind::Model)
            .then(|| linear(t, "classifier", "classifier", (self.labels, "num_labels"), last, true));
        let patches = Linear::new("patches", weight, Some(bias));
        Box::new(Swin { config: self.clone(), patches, patch_norm, stages, norm, head })
    }
    fn ignorable(&self, name: &str) -> bool {
        let unused = self.kind == Kind::Model && name.starts_with("classifier.");
        unused || name.ends_with("relative_position_index") || name.ends_with("embeddings.mask_token")
    }
}

impl Network for Swin {
    fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.info.task = Task::Encoder;
        m.info.layers = u32::try_from(self.stages.iter().map(|s| s.layers.len()).sum::<usize>()).unwrap_or(u32::MAX);
        let window = self.config.window;
        let places = window * window;
        let classes = m.constant_ints("window.classes", &[places, places], &pair_classes(window));
        let moved = |(i, s): (usize, &Stage)| {
            (s.layers.len() > 1 && s.config.moves(window)).then(|| {
                let regions = regions(s.config.padded(window), window);
                m.constant_ints(&format!("stage{i}.regions"), &[regions.len() as u64 / places, places], &regions)
            })
        };
        let regions: Vec<Option<WeightId>> = self.stages.iter().enumerate().map(moved).collect();
        m.graph("forward", |b| self.graph(b, classes, &regions));
    }
}

impl Swin {
    fn graph(&self, b: &mut GraphBuilder<'_>, classes: WeightId, regions: &[Option<WeightId>]) {
        let Image { channels, height, width, patch } = self.config.image;
        let shape = [channels, height, width].map(Dim::from);
        let batch = Dim::size(sizes::BATCH);
        let shape: Vec<Dim> = [batch.clone()].into_iter().chain(shape).collect();
        let pixels = b.input("pixel_values", Scalar::F32, &shape);
        let mut x = b.scope("embeddings", |b| {
            let [down, across] = [height, width].map(|extent| extent.div_ceil(patch) * patch);
            let pixels = padded(b, pixels, 2, down);
            let pixels = padded(b, pixels, 3, across);
            let x = embed_patches(b, pixels, patch, [channels, down, across], &self.patches);
            self.patch_norm.apply(b, x)
        });
        let classes = b.weight(classes);
        for (i, (stage, regions)) in self.stages.iter().zip(regions).enumerate() {
            x = b.scope(&format!("stage.{i}"), |b| stage.apply(b, x, self.config.window, classes, *regions));
        }
        let x = self.norm.apply(b, x);
        if self.head.is_none() {
            b.output("last_hidden_state", x);
        }
        let [count, width] = [1, 2].map(|axis| b.ty(x).shape.get(axis).cloned().unwrap_or_else(Dim::one));
        let rows = count.as_const().unwrap_or(1);
        let sum = b.reduce(ReduceOp::Sum, x, &[1], false);
        let rows = b.f32(rows as f32);
        let mean = b.binary(BinaryOp::Div, sum, rows);
        let mean = b.reshape(mean, &[batch, width]);
        match &self.head {
            Some(head) => {
                let logits = head.apply(b, mean);
                b.output("logits", logits);
            }
            None => b.output("pooler_output", mean),
        }
    }
}

impl StageConfig {
    /// The grid with whole windows.
    fn padded(&self, window: u64) -> [u64; 2] {
        self.grid.map(|extent| extent.next_multiple_of(window.max(1)))
    }
    /// Whether there is more than one window across and down, so that every second layer moves them.
    fn moves(&self, window: u64) -> bool {
        self.grid.iter().all(|extent| *extent > window) && window > 1
    }
}

impl Stage {
    /// `x` is `[B, rows, width]`.
    fn apply(
        &self,
        b: &mut GraphBuilder<'_>,
        mut x: ValueId,
        window: u64,
        classes: ValueId,
        regions: Option<WeightId>,
    ) -> ValueId {
        for (i, layer) in self.layers.iter().enumerate() {
            let moved = regions.filter(|_| i % 2 == 1);
            x = b.scope(&format!("layer.{i}"), |b| layer.apply(b, x, self.config, window, classes, moved));
        }
        let Some((norm, reduction)) = &self.merging else { return x };
        let [down, across] = self.config.grid;
        let mut shape = b.ty(x).shape.to_vec();
        shape.splice(1..2, [down, across].map(Dim::from));
        let x = b.reshape(x, &shape);
        let [down, across] = [down, across].map(|extent| extent.next_multiple_of(2));
        let x = padded(b, x, 1, down);
        let x = padded(b, x, 2, across);
        let batch = shape.first().cloned().unwrap_or_else(Dim::one);
        let width = Dim::from(self.config.width);
        let [down, across, two] = [down / 2, across / 2, 2].map(Dim::from);
        let split = [batch.clone(), down.clone(), two.clone(), across.clone(), two, width.clone()];
        let x = b.reshape(x, &split);
        let x = b.transpose(x, &[0, 1, 3, 4, 2, 5]);
        let x = b.reshape(x, &[batch, down * across, Dim::constant(4) * width]);
        let x = norm.apply(b, x);
        reduction.apply(b, x)
    }
}

impl Layer {
    /// `x` is `[B, rows, width]`; with `regions` `[windows, places]` windows are moved by half of their size, and a patch
    /// sees those of its region only.
    fn apply(
        &self,
        b: &mut GraphBuilder<'_>,
        x: ValueId,
        stage: StageConfig,
        window: u64,
        classes: ValueId,
        regions: Option<WeightId>,
    ) -> ValueId {
        let batch = b.ty(x).shape.first().cloned().unwrap_or_else(Dim::one);
        let [down, across] = stage.grid;
        let whole = stage.padded(window);
        let (windows, places) = (whole.iter().map(|extent| extent / window).product::<u64>(), window * window);
        let [rows_down, rows_across, w, width] =
            [whole[0] / window, whole[1] / window, window, stage.width].map(Dim::from);
        let normed = self.attention_norm.apply(b, x);
        let mut y = b.reshape(normed, &[batch.clone(), Dim::from(down), Dim::from(across), width.clone()]);
        for (axis, extent) in [(1, whole[0]), (2, whole[1])] {
            y = padded(b, y, axis, extent);
            if regions.is_some() {
                y = rolled(b, y, axis, extent, window / 2);
            }
        }
        let grid = [&batch, &rows_down, &w, &rows_across, &w, &width].map(Dim::clone);
        let y = b.reshape(y, &grid);
        let y = b.transpose(y, &[0, 1, 3, 2, 4, 5]);
        let y = b.reshape(y, &[batch.clone() * Dim::from(windows), Dim::from(places), width.clone()]);
        let table = b.weight(self.bias);
        let bias = Some(per_head(b, table, classes));
        let mask = regions.map(|regions| {
            let regions = b.weight(regions);
            let [windows, places] = [windows, places].map(Dim::from);
            let own = b.reshape(regions, &[Dim::one(), windows.clone(), Dim::one(), places.clone(), Dim::one()]);
            let other = b.reshape(regions, &[Dim::one(), windows.clone(), Dim::one(), Dim::one(), places.clone()]);
            let same = b.binary(BinaryOp::Eq, own, other);
            let each = [batch.clone(), windows.clone(), Dim::one(), places.clone(), places.clone()];
            let same = b.broadcast(same, &each);
            b.reshape(same, &[batch.clone() * windows, Dim::one(), places.clone(), places])
        });
        let y = self.attention.apply(b, y, Memory::Own, &ScoreTerms { mask, bias, causal: None }, None);
        let y = b.reshape(y, &[&batch, &rows_down, &rows_across, &w, &w, &width].map(Dim::clone));
        let y = b.transpose(y, &[0, 1, 3, 2, 4, 5]);
        let mut y = b.reshape(y, &[batch.clone(), Dim::from(whole[0]), Dim::from(whole[1]), width.clone()]);
        for (axis, extent, kept) in [(1, whole[0], down), (2, whole[1], across)] {
            if regions.is_some() {
                y = rolled(b, y, axis, extent, extent - window / 2);
            }
            if kept < extent {
                y = b.slice(y, axis, Dim::zero(), Dim::from(kept));
            }
        }
        let y = b.reshape(y, &[batch, Dim::from(down * across), width]);
        let x = b.add(x, y);
        let normed = self.ffn_norm.apply(b, x);
        let fed = self.ffn.apply(b, normed);
        b.add(x, fed)
    }
}

/// Zeros behind `x` along an axis, up to `extent`.
fn padded(b: &mut GraphBuilder<'_>, x: ValueId, axis: usize, extent: u64) -> ValueId {
    let mut shape = b.ty(x).shape.to_vec();
    let Some(own) = shape.get_mut(axis) else { return x };
    let missing = Dim::from(extent) - own.clone();
    if missing.is(0) {
        return x;
    }
    *own = missing;
    let zero = b.f32(0.0);
    let zeros = b.broadcast(zero, &shape);
    b.concat(&[x, zeros], axis)
}

/// The places from `by` on in front of the others, along an axis of `extent`.
fn rolled(b: &mut GraphBuilder<'_>, x: ValueId, axis: usize, extent: u64, by: u64) -> ValueId {
    let front = b.slice(x, axis, Dim::from(by), Dim::from(extent - by));
    let back = b.slice(x, axis, Dim::zero(), Dim::from(by));
    b.concat(&[front, back], axis)
}

/// For each pair of places of a window, the class of their distances down and across.
fn pair_classes(window: u64) -> Vec<i32> {
    let places = window * window;
    let apart = |i: u64, j: u64| i + window - 1 - j;
    let class = |i: u64, j: u64| apart(i / window, j / window) * (2 * window - 1) + apart(i % window, j % window);
    (0..places).flat_map(|i| (0..places).map(move |j| class(i, j) as i32)).collect()
}

/// The regions of the patches of each window of a grid that was moved by half a window: what was moved from one end to
/// the other is apart, across and down.
fn regions([down, across]: [u64; 2], window: u64) -> Vec<i32> {
    let part = |at: u64, extent: u64| match at {
        _ if at < extent - window => 0,
        _ if at < extent - window / 2 => 1,
        _ => 2,
    };
    let mut out = Vec::new();
    for top in (0..down).step_by(window as usize) {
        for left in (0..across).step_by(window as usize) {
            let rows = (top..top + window).flat_map(|y| (left..left + window).map(move |x| (y, x)));
            out.extend(rows.map(|(y, x)| 3 * part(y, down) + part(x, across)));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn moved_windows_hold_patches_of_up_to_four_regions() {
        let regions = regions([4, 6], 2);
        assert_eq!(regions.len(), 24);
        assert_eq!(regions[..4], [0, 0, 0, 0]);
        assert_eq!(regions[8..12], [1, 2, 1, 2], "the right end of the first row of windows");
        assert_eq!(regions[20..], [4, 5, 7, 8], "the last window");
    }

    #[test]
    fn a_place_is_one_class_from_itself_wherever_it_is() {
        let classes = pair_classes(3);
        assert!((0..9).all(|i| classes[i * 10] == 12));
        assert_eq!((classes[8], classes[72]), (0, 24));
    }
}
