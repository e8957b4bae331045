//! Layers under the names that BART's relatives share.

use super::super::encoders::assemble::{layer_norm, linear};
use crate::ingest::activation::Activation;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{Ffn, MultiHead, Part, Place, Projections, Stack, StackLayer, Up};
use crate::ingest::hf::fields::Fields;

/// The sizes of one side.
#[derive(Clone, Debug)]
pub(super) struct Side {
    /// `encoder` or `decoder`.
    pub name: &'static str,
    pub layers: u64,
    pub heads: u64,
    pub inner: u64,
    pub width: u64,
    pub act: Activation,
    pub place: Place,
    /// Whether a norm stands behind the last layer.
    pub final_norm: bool,
    /// Whether the projection of keys has a bias.
    pub key_bias: bool,
}

/// Reads the sizes of a side.
pub(super) fn side(f: &mut Fields<'_>, name: &'static str, width: u64, act: Activation) -> Side {
    let limits = f.limits();
    let heads_field = format!("{name}_attention_heads");
    let heads = f.size(&heads_field, Some(16));
    if !width.is_multiple_of(heads) {
        f.size_gap(&heads_field, format!("is {heads}, which does not divide d_model {width}"), "correct one of them");
    }
    Side {
        name,
        layers: f.size_to(&format!("{name}_layers"), Some(12), limits.layers),
        heads,
        inner: f.size(&format!("{name}_ffn_dim"), Some(4096)),
        width,
        act,
        place: Place::After,
        final_norm: false,
        key_bias: true,
    }
}

impl Side {
    /// Binds the layers, whose names begin with `prefix`.
    pub fn bind(&self, t: &mut Binder<'_>, prefix: &str) -> Stack {
        let field = format!("{}_layers", self.name);
        let bound = t.layers(self.layers, &field, |i| format!("{prefix}layers.{i}."));
        let layers = bound.into_iter().map(|i| self.layer(t, &format!("{prefix}layers.{i}."))).collect();
        let width = self.width();
        let norm =
            self.final_norm.then(|| layer_norm(t, "layer_norm", &format!("{prefix}layer_norm"), width, 1e-5, true));
        Stack { name: "layers", place: self.place, layers, nearby: None, norm }
    }
    fn width(&self) -> Extent<'static> {
        (self.width, "d_model")
    }
    fn layer(&self, t: &mut Binder<'_>, stem: &str) -> StackLayer {
        let inner: Extent<'_> = (self.inner, "ffn_dim");
        let attention = |t: &mut Binder<'_>, name| Part::new(self.attention(t, stem, name), self.norm(t, stem, name));
        let own = attention(t, "self_attn");
        let cross = (self.name == "decoder").then(|| attention(t, "encoder_attn"));
        let up = linear(t, "fc1", &format!("{stem}fc1"), inner, self.width(), true);
        let down = linear(t, "fc2", &format!("{stem}fc2"), self.width(), inner, true);
        let ffn = Ffn { name: "ffn", up: Up::Plain(up), act: self.act, down, inner: None, active: None };
        let norm = layer_norm(t, "final_layer_norm", &format!("{stem}final_layer_norm"), self.width(), 1e-5, true);
        StackLayer { cross, ffn: Some(Part::new(ffn, norm)), ..StackLayer::plain(own) }
    }
    fn norm(&self, t: &mut Binder<'_>, stem: &str, name: &'static str) -> crate::ingest::blocks::Norm {
        layer_norm(t, "norm", &format!("{stem}{name}_layer_norm"), self.width(), 1e-5, true)
    }
    fn attention(&self, t: &mut Binder<'_>, stem: &str, name: &'static str) -> MultiHead {
        let mut part = |part: &'static str, bias: bool| {
            linear(t, part, &format!("{stem}{name}.{part}"), self.width(), self.width(), bias)
        };
        let head_dim = self.width / self.heads.max(1);
        MultiHead {
            name,
            heads: self.heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5) as f32,
            qkv: Projections::Separate([part("q_proj", true), part("k_proj", self.key_bias), part("v_proj", true)]),
            rope: None,
            output: part("out_proj", true),
        }
    }
}

/// The token that a decoder begins with: `decoder_start_token_id`, else `bos_token_id`. Without either the model runs,
/// but writes nothing by itself.
pub(super) fn start(f: &mut Fields<'_>, default: Option<u32>, vocab: u64) -> Vec<u32> {
    let field = if f.present("decoder_start_token_id") { "decoder_start_token_id" } else { "bos_token_id" };
    let start = f.token_ids(field).first().copied().or(default);
    if let Some(token) = start.filter(|token| u64::from(*token) >= vocab) {
        f.gap(field, format!("is {token}, beyond the vocabulary of {vocab}"), "correct it");
    }
    start.into_iter().collect()
}
