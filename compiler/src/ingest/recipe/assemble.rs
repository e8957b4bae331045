//! From a recipe and the tensors of a file to blocks.

use super::extend::{self, LayerSizes};
use super::{FfnForm, LayerForm, NormForm, QkPlace, QkvForm, Recipe};
use crate::graph::WeightId;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{
    Attention, Decoder, Embedding, Factor, Feed, Ffn, Gate, Head, Latent, Layer, LayerAttention, Linear, Norm,
    Positions, QkNorm, Qkv, Rope, Up,
};
use crate::ingest::error::Gap;
use crate::transform::extension::{EMBEDDING_PROJECTION, Extension, LINEAR, LORA_A, LORA_B};

impl Recipe {
    /// Takes what the object `frit` of a configuration says; what is wrong with it is a gap.
    pub fn extend(&mut self, mut extension: Extension) -> Vec<Gap> {
        if extension.kv_map.is_empty() {
            extension.kv_map = std::mem::take(&mut self.extension.kv_map);
        }
        if extension.split_qkv {
            self.qkv = QkvForm::Separate;
        }
        let gaps = extend::check(&extension, self);
        for (layer, window) in self.layers.iter_mut().zip(&extension.windows) {
            layer.window = *window;
        }
        self.extension = extension;
        gaps
    }
    /// Whether a tensor that no place asked for may be there.
    pub fn ignorable(&self, name: &str) -> bool {
        let head = name.strip_prefix(self.names.head).is_some_and(|rest| rest == ".weight");
        (self.head.tied && head)
            || name.ends_with(".rotary_emb.inv_freq")
            || self.ignorable.iter().any(|end| name.ends_with(end))
    }
}

/// Names and extents while a model is bound.
pub(super) struct Site<'r, 'b, 't> {
    pub recipe: &'r Recipe,
    pub t: &'b mut Binder<'t>,
    prefix: &'static str,
    pub hidden: Extent<'r>,
}

/// Binds the tensors of a model; what is wrong is left in the binder.
pub(crate) fn decoder(recipe: &Recipe, t: &mut Binder<'_>) -> Decoder {
    let Recipe { sizes, names, .. } = recipe;
    let prefix = t.prefix(names.prefixes, &format!("{}.weight", names.embedding));
    let hidden = (sizes.hidden, names.fields.hidden);
    let mut site = Site { recipe, t, prefix, hidden };
    let (embedding, table) = site.embedding();
    let stem = |i: u64| format!("{prefix}{}.{i}", names.layers);
    let bound = site.t.layers(sizes.layers, names.fields.layers, |i| format!("{}.", stem(i)));
    let layers = bound.into_iter().zip(&recipe.layers).map(|(i, form)| site.layer(form, i, &stem(i))).collect();
    let norm = match recipe.head.bare {
        true => None,
        false => Some(site.norm(names.norm, &format!("{prefix}{}", names.norm), recipe.norm)),
    };
    let head = site.head(table);
    let ropes = recipe.ropes.iter().map(|rope| Rope { frequencies: rope.frequencies(), style: recipe.style });
    let longest = recipe.ropes.iter().map(|rope| rope.longest()).min();
    Decoder {
        vocab: sizes.vocab,
        context: longest.unwrap_or(sizes.context),
        embedding,
        ropes: ropes.collect(),
        alibi: recipe.alibi.clone(),
        layers_name: if names.layers == "blk" { "layers" } else { names.layers },
        layers,
        norm,
        head,
        halt: recipe.extension.halt,
        policy: Default::default(),
    }
}

/// What a part is called in the graph.
pub(super) fn shown(name: &'static str, unnamed: &'static str) -> &'static str {
    if name.is_empty() { unnamed } else { name }
}

/// A part inside of what stands at `stem`; an empty name is the same place.
pub(super) fn inside(stem: &str, part: &str) -> String {
    if part.is_empty() { stem.to_owned() } else { format!("{stem}.{part}") }
}

impl<'r> Site<'r, '_, '_> {
    pub fn linear(&mut self, name: &'static str, stem: &str, out: Extent<'_>, from: Extent<'_>, bias: bool) -> Linear {
        let Extension { lora, low_rank, .. } = self.recipe.extension;
        let (weight, first, second) =
            (format!("{stem}.weight"), format!("{stem}.{LORA_A}"), format!("{stem}.{LORA_B}"));
        let bias = |t: &mut Binder<'_>| bias.then(|| t.take(&format!("{stem}.bias"), &[out]));
        let rank = self.t.shape(&first).and_then(|s| s.first().copied());
        let factors = |t: &mut Binder<'_>, most: Extent<'_>| {
            let rank = (rank.unwrap_or(most.0).min(most.0), most.1);
            [t.take(&first, &[rank, from]), t.take(&second, &[out, rank])]
        };
        let has_factors = rank.is_some();
        if let Some(rank) = low_rank.filter(|_| has_factors && !self.t.has(&weight)) {
            let [a, b] = factors(self.t, (rank, "frit.low_rank"));
            return Linear { name, weight: a, bias: bias(self.t), factor: Factor::Second(b) };
        }
        let weight = match self.recipe.transposed {
            true => self.t.take_transposed(&weight, from, out),
            false => self.t.take(&weight, &[out, from]),
        };
        let factor = match lora.filter(|_| has_factors) {
            Some(rank) => {
                let [a, b] = factors(self.t, (rank, "frit.lora"));
                Factor::Update { a, b }
            }
            None => Factor::None,
        };
        Linear { name, weight, bias: bias(self.t), factor }
    }

    pub fn norm_of(&mut self, name: &'static str, stem: &str, form: NormForm, shape: &[Extent<'_>]) -> Norm {
        let gain = form.gain.then(|| self.t.take(&format!("{stem}.weight"), shape));
        let bias = form.bias.then(|| self.t.take(&format!("{stem}.bias"), shape));
        Norm { name, kind: form.kind, eps: form.eps, gain, one_plus: form.one_plus, bias }
    }

    fn norm(&mut self, name: &'static str, stem: &str, form: NormForm) -> Norm {
        self.norm_of(name, stem, form, &[self.hidden])
    }

    fn embedding(&mut self) -> (Embedding, WeightId) {
        let Recipe { sizes, names, embedding: form, norm, .. } = self.recipe;
        let prefix = self.prefix;
        let rank = self.recipe.extension.embedding_rank.map(|rank| (rank, "frit.embedding_rank"));
        let width = rank.or(form.width.map(|width| (width, "word_embed_proj_dim"))).unwrap_or(self.hidden);
        let table = self.t.take(&format!("{prefix}{}.weight", names.embedding), &[(sizes.vocab, "vocab_size"), width]);
        let positions = form.positions.map(|p| {
            let rows = (p.rows + p.offset, names.fields.context);
            let table = self.t.take(&format!("{prefix}{}.weight", names.positions), &[rows, self.hidden]);
            Positions { table, offset: p.offset, masked: p.masked }
        });
        let [name, _] = names.project;
        let project = match rank {
            Some(rank) => Some(Linear::new(name, self.t.take(EMBEDDING_PROJECTION, &[self.hidden, rank]), None)),
            None => form.width.map(|_| self.linear(name, &format!("{prefix}{name}"), self.hidden, width, false)),
        };
        let name = names.embedding_norm;
        let norm = form.norm.then(|| self.norm(name, &format!("{prefix}{name}"), *norm));
        (Embedding { table, positions, scale: form.scale, project, norm }, table)
    }

    fn head(&mut self, table: WeightId) -> Head {
        let Recipe { sizes, names, head: form, embedding, .. } = self.recipe;
        let vocab = (sizes.vocab, "vocab_size");
        let width = embedding.width.map_or(self.hidden, |width| (width, "word_embed_proj_dim"));
        let weight = if form.tied { table } else { self.t.take(&format!("{}.weight", names.head), &[vocab, width]) };
        let bias = self.recipe.biases.head.then(|| self.t.take(&format!("{}.bias", names.head), &[vocab]));
        let [_, name] = names.project;
        let rank = self.recipe.extension.embedding_rank.filter(|_| form.tied);
        let project = match rank.map(|rank| (rank, "frit.embedding_rank")) {
            Some(rank) => {
                Some(Linear::new(name, self.t.take_transposed(EMBEDDING_PROJECTION, self.hidden, rank), None))
            }
            None => {
                embedding.width.map(|_| self.linear(name, &format!("{}{name}", self.prefix), width, self.hidden, false))
            }
        };
        let linear = Linear::new("lm_head", weight, bias);
        Head { project, linear, scale: form.scale, softcap: form.softcap }
    }

    fn layer(&mut self, form: &LayerForm, i: u64, stem: &str) -> Layer {
        let recipe = self.recipe;
        let (names, extension) = (&recipe.names, &recipe.extension);
        let i = u32::try_from(i).unwrap_or(u32::MAX);
        let is_linear = extension.linear_layers.contains(&i);
        let attends = !is_linear && !extension.drop_attention.contains(&i);
        let feeds = !is_linear && !extension.drop_ffn.contains(&i);
        let sizes = extend::sizes(recipe, i);
        let mut norm = |there: bool, name: Option<&'static str>| {
            name.filter(|_| there).map(|name| self.norm(name, &format!("{stem}.{name}"), recipe.norm))
        };
        let attention_norm = norm(attends, names.attention_norm);
        let attended_norm = norm(attends, names.attended_norm);
        let ffn_norm = norm(feeds, names.ffn_norm);
        let fed_norm = norm(feeds, names.fed_norm);
        let inner = (sizes.inner, names.fields.inner);
        let (hidden, one) = (self.hidden, (1, "1"));
        Layer {
            attention_norm,
            attention: attends.then(|| self.attention(form, i, sizes, &inside(stem, names.attention))),
            attended_norm,
            ffn_norm,
            ffn: feeds.then(|| match recipe.mixture.filter(|_| form.mixed) {
                Some(mixture) => Feed::Mixture(Box::new(self.mixture(&mixture, &inside(stem, mixture.name)))),
                None => {
                    let parts = [names.gate, names.up, names.down];
                    Feed::Dense(self.ffn(shown(names.ffn, "mlp"), &inside(stem, names.ffn), parts, inner))
                }
            }),
            fed_norm,
            residual: recipe.residual,
            residual_scale: recipe.residual_scale,
            linear: is_linear.then(|| {
                let stem = format!("{stem}.{LINEAR}");
                let weight = self.t.take(&format!("{stem}.weight"), &[hidden, hidden]);
                Linear::new(LINEAR, weight, self.t.take_if_there(&format!("{stem}.bias"), &[hidden]))
            }),
            step: extension.steps.then(|| self.t.take(&format!("{stem}.step"), &[hidden])),
            gate: extend::gate(extension, i).map(|kind| {
                let weight = self.t.take(&format!("{stem}.gate.weight"), &[one, hidden]);
                let bias = self.t.take_if_there(&format!("{stem}.gate.bias"), &[one]);
                Gate { kind, linear: Linear::new("gate", weight, bias) }
            }),
            layer_attention: extension.layer_attention.contains(&i).then(|| {
                let mut map = |name: &'static str| {
                    let weight = self.t.take(&format!("{stem}.layer_attention.{name}.weight"), &[hidden, hidden]);
                    Linear::new(name, weight, None)
                };
                let maps = [map("q_proj"), map("k_proj"), map("v_proj"), map("o_proj")];
                LayerAttention { heads: recipe.sizes.heads, head_dim: hidden.0 / recipe.sizes.heads.max(1), maps }
            }),
            halt: extension.halt.filter(|h| h.body > 0 && i.is_multiple_of(h.body)).map(|_| {
                let weight = self.t.take(&format!("{stem}.halt.weight"), &[one, hidden]);
                Linear::new("halt", weight, Some(self.t.take(&format!("{stem}.halt.bias"), &[one])))
            }),
        }
    }

    fn attention(&mut self, form: &LayerForm, i: u32, own: LayerSizes, stem: &str) -> Attention {
        let Recipe { sizes, names, biases, extension, .. } = self.recipe;
        let hidden = self.hidden;
        let mut sources = extend::sources(extension, i);
        let [own_k, own_v] = sources.own();
        let queries = (own.heads * sizes.head_dim, "num_attention_heads × head_dim");
        let keys = (own.kv_heads * sizes.head_dim, "num_key_value_heads × head_dim");
        let value_dim = self.recipe.latent.map_or(sizes.head_dim, |latent| latent.value);
        let values = (own.value_heads * sizes.head_dim, "num_key_value_heads × head_dim");
        let attended = (own.heads * value_dim, "num_attention_heads × head_dim");
        let qkv = match (self.recipe.latent, self.recipe.qkv) {
            (Some(latent), _) => Qkv::Latent(Box::new(self.latent(&latent, stem))),
            (None, QkvForm::Separate) => {
                let [q, k, v] = names.qkv;
                let mut one = |name: &'static str, out: Extent<'_>| {
                    self.linear(name, &format!("{stem}.{name}"), out, hidden, biases.qkv)
                };
                match (sources.own_queries(), own_k, own_v) {
                    (true, true, true) => Qkv::Separate([one(q, queries), one(k, keys), one(v, values)]),
                    (has_q, has_k, has_v) => Qkv::Some([
                        has_q.then(|| one(q, queries)),
                        has_k.then(|| one(k, keys)),
                        has_v.then(|| one(v, values)),
                    ]),
                }
            }
            (None, QkvForm::Packed(packing)) => {
                let all = (queries.0 + 2 * keys.0, "(num_attention_heads + 2 × num_key_value_heads) × head_dim");
                let name = names.packed_qkv;
                Qkv::Fused(self.linear(name, &format!("{stem}.{name}"), all, hidden, biases.qkv), packing)
            }
        };
        let output = self.linear(names.output, &format!("{stem}.{}", names.output), hidden, attended, biases.output);
        // Where a layer lacks queries or keys it lacks their norm too; the other one stands in and is not applied.
        let qk_norm = self.recipe.qk_norm.filter(|_| sources.own_queries() || own_k).map(|(place, norm)| {
            let [q, k] = names.qk_norm;
            let head = (sizes.head_dim, "head_dim");
            let (of_q, of_k) = ((q, own.heads, queries), (k, own.kv_heads, keys));
            let heads = [if sources.own_queries() { of_q } else { of_k }, if own_k { of_k } else { of_q }];
            let norms = heads.map(|(name, heads, whole)| {
                let stem = format!("{stem}.{name}");
                match place {
                    QkPlace::Heads | QkPlace::RotatedHeads => self.norm_of(name, &stem, norm, &[head]),
                    QkPlace::EachHead => self.norm_of(name, &stem, norm, &[(heads, "number of heads"), head]),
                    QkPlace::ListedHeads => {
                        let gain = |i: u64| format!("{stem}.norms.{i}.weight");
                        let gain = self.t.take_stacked(&format!("{stem}.norms.*.weight"), heads, gain, &[head]);
                        let NormForm { kind, eps, one_plus, .. } = norm;
                        Norm { name, kind, eps, gain: Some(gain), one_plus, bias: None }
                    }
                    QkPlace::Whole => self.norm_of(name, &stem, norm, &[whole]),
                }
            });
            match place {
                QkPlace::Heads | QkPlace::EachHead | QkPlace::ListedHeads => QkNorm::Heads(norms),
                QkPlace::RotatedHeads => QkNorm::RotatedHeads(norms),
                QkPlace::Whole => QkNorm::Whole(norms),
            }
        });
        let (kv_heads, head_dim, value_dim) = match self.recipe.latent {
            Some(latent) => {
                sources.lacks = [false, true];
                (1, Latent::row(latent.kv_rank, latent.rotated), latent.kv_rank)
            }
            None => (own.kv_heads, sizes.head_dim, value_dim),
        };
        Attention {
            name: shown(names.attention, "self_attn"),
            heads: own.heads,
            kv_heads,
            head_dim,
            value_dim,
            scale: form.scale,
            window: form.window,
            softcap: self.recipe.softcap,
            qkv,
            clip: self.recipe.clip,
            qk_norm,
            rope: form.rope,
            sinks: self
                .recipe
                .sinks
                .then(|| self.t.take(&format!("{stem}.{}", names.sinks), &[(sizes.heads, "number of heads")])),
            output,
            sources,
            maps: extend::maps(extension, i),
        }
    }

    /// The feed-forward part at `stem`, of this inner size.
    pub(super) fn ffn(
        &mut self,
        name: &'static str,
        stem: &str,
        [gate, up_name, down]: [&'static str; 3],
        inner: Extent<'_>,
    ) -> Ffn {
        let recipe = self.recipe;
        let Recipe { names, biases, .. } = recipe;
        let hidden = self.hidden;
        let mut linear =
            |name: &'static str, out, from| self.linear(name, &format!("{stem}.{name}"), out, from, biases.ffn);
        let up = match recipe.ffn {
            FfnForm::Plain => Up::Plain(linear(up_name, inner, hidden)),
            FfnForm::Gated => Up::Gated { gate: linear(gate, inner, hidden), up: linear(up_name, inner, hidden) },
            FfnForm::Packed => {
                let both = (2 * inner.0, "2 × intermediate_size");
                Up::Packed { gate_up: linear(names.packed_up, both, hidden), inner: inner.0 }
            }
        };
        let down = linear(down, hidden, inner);
        Ffn { name, up, act: recipe.act, down, inner: Some(inner.0), active: None }
    }
}
