//! CLIP and SigLIP: a tower for pictures and one for texts, and how well each picture fits each text; the tower for
//! pictures by itself (`texts` has the other).

use super::assemble::Vision;
use super::recipe::{Head, Names, Output, Pool, Recipe, Step, image, layers_or};
use super::texts::{TextTower, Texts};
use crate::graph::{Op, ValueId, WeightId};
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::hf::architectures::encoders::recipe::labels;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{Task, sizes};

/// Pictures run together with a batch of texts.
const IMAGES: &str = "I";

/// Members of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Clip,
    Siglip,
}

/// What stands on the tower for pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows, and one for the whole picture.
    Model,
    /// The same, projected to where texts are.
    Projected,
    Labels,
}

/// The configuration of both towers.
#[derive(Clone, Debug)]
struct Config {
    family: Family,
    vision: Recipe,
    texts: Texts,
}

pub(super) fn read(f: &mut Fields<'_>, family: Family) -> Box<dyn Architecture> {
    let projection = match family {
        Family::Clip => f.size("projection_dim", Some(512)),
        Family::Siglip => {
            let hidden = f.size("text_config.hidden_size", Some(768));
            f.size("text_config.projection_size", Some(hidden))
        }
    };
    let texts = Texts::read(f, "text_config.", family, Some(projection));
    let mut vision = tower(f, "vision_config.", family);
    let hidden = vision.layers.hidden;
    if family == Family::Siglip && projection != hidden {
        let problem = format!("is {projection}, but rows of pictures have {hidden}");
        f.size_gap("text_config.projection_size", problem, "correct one of them");
    }
    if !f.flag("vision_config.vision_use_head", true) {
        f.gap("vision_config.vision_use_head", "is false; pictures are pooled by attention", "use a model with it");
    }
    vision.head = Head { states: false, outputs: vec![pooled(family, hidden, Some(projection))] };
    Box::new(Config { family, vision, texts })
}

/// A model of pictures alone.
pub(super) fn pictures(f: &mut Fields<'_>, family: Family, kind: Kind) -> Box<dyn Architecture> {
    let classes = labels(f);
    let vision = tower(f, if kind == Kind::Labels { "vision_config." } else { "" }, family);
    let hidden = vision.layers.hidden;
    let head = match kind {
        Kind::Labels => {
            let steps = vec![Step::classifier("classifier", hidden, classes)];
            Head { states: false, outputs: vec![Output::of("logits", Pool::Patches, steps)] }
        }
        Kind::Projected => {
            let projection = f.size("projection_dim", Some(512));
            Head { states: true, outputs: vec![pooled(family, hidden, Some(projection))] }
        }
        Kind::Model => {
            let has_head = family == Family::Clip || f.flag("vision_use_head", true);
            let outputs = has_head.then(|| pooled(family, hidden, None)).into_iter().collect();
            Head { states: true, outputs }
        }
    };
    let ignored: &[&str] = match (kind, family) {
        (Kind::Labels, Family::Clip) => &["embeddings.position_ids", "vision_model.post_layernorm."],
        (Kind::Labels, Family::Siglip) => &["embeddings.position_ids", "vision_model.head."],
        _ => &["embeddings.position_ids", "text_model.", "text_projection.", "logit_scale", "logit_bias"],
    };
    Box::new(Recipe { head, ignored, ..vision })
}

/// The tower without a head.
fn tower(f: &mut Fields<'_>, prefix: &str, family: Family) -> Recipe {
    let clip = family == Family::Clip;
    let (act, eps) = if clip { ("quick_gelu", 1e-5) } else { ("gelu_pytorch_tanh", 1e-6) };
    let layers = layers_or(f, prefix, act, eps, [768, 12, 3072]);
    let image = image(f, prefix, if clip { [224, 32] } else { [224, 16] });
    let names = match family {
        Family::Clip => Names::CLIP,
        Family::Siglip => Names { first_norm: "", final_norm: "post_layernorm", ..Names::CLIP },
    };
    Recipe {
        prefixes: ["vision_model."; 2],
        names,
        image,
        layers,
        tokens: if clip { &["embeddings.class_embedding"] } else { &[] },
        registers: 0,
        flat: true,
        patch_bias: !clip,
        head: Head::default(),
        ignored: &[],
    }
}

/// One row for a picture; of CLIP also that row projected.
fn pooled(family: Family, hidden: u64, projection: Option<u64>) -> Output {
    if family == Family::Siglip {
        return Output::of("pooler_output", Pool::Rows, vec![Step::Attend { name: "head" }]);
    }
    let norm = Step::Norm { name: "post_layernorm" };
    match projection {
        None => Output::of("pooler_output", Pool::Token(0), vec![norm]),
        Some(to) => {
            let project = Step::Linear { name: "visual_projection", inner: false, from: hidden, to, bias: false };
            Output::of("image_embeds", Pool::Token(0), vec![norm, project])
        }
    }
}

/// The bound tensors.
struct TwoTowers {
    vision: Vision,
    texts: TextTower,
    scale: WeightId,
    bias: Option<WeightId>,
}

impl Architecture for Config {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        let vision = Vision::bind(&self.vision, t);
        let texts = TextTower::bind(&self.texts, t);
        let one: &[Extent<'_>] = if self.family == Family::Clip { &[] } else { &[(1, "1")] };
        Box::new(TwoTowers {
            vision,
            texts,
            scale: t.take_flat("logit_scale", one, &[1]),
            bias: (self.family == Family::Siglip).then(|| t.take_flat("logit_bias", one, &[1])),
        })
    }
    fn ignorable(&self, name: &str) -> bool {
        name.ends_with("embeddings.position_ids")
    }
}

impl Network for TwoTowers {
    fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, Some(self.texts.context()));
        m.size(IMAGES, 1, None);
        m.info.task = Task::Encoder;
        m.info.layers = self.vision.depth();
        m.info.context = self.texts.context();
        m.info.vocab = self.texts.vocab();
        m.graph("forward", |b| {
            let [_, text] = b.scope("text_model", |b| self.texts.apply(b));
            let images = b.scope("vision_model", |b| self.vision.embed(b, Dim::size(IMAGES)));
            let [text, images] = [text, images].map(|x| unit(b, x));
            let logits = b.op(Op::MatMul { b_transposed: true }, &[text, images]);
            let scale = b.weight(self.scale);
            let scale = b.unary(UnaryOp::Exp, scale);
            let mut logits = b.mul(logits, scale);
            if let Some(bias) = self.bias {
                let bias = b.weight(bias);
                logits = b.add(logits, bias);
            }
            let per_image = b.transpose(logits, &[1, 0]);
            for (name, value) in [
                ("logits_per_image", per_image),
                ("logits_per_text", logits),
                ("text_embeds", text),
                ("image_embeds", images),
            ] {
                b.output(name, value);
            }
        });
    }
}

/// Rows at length 1.
fn unit(b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
    let squares = b.mul(x, x);
    let sum = b.reduce(ReduceOp::Sum, squares, &[1], true);
    let length = b.unary(UnaryOp::Sqrt, sum);
    b.binary(BinaryOp::Div, x, length)
}
