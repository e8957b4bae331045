//! Decoders whose cache is part of their interface: `past_key_values.0.key`, … come in and `present.0.key`, … go out.
//!
//! Such a model is also imported as a decoder of our own: the past is a cache slot, `concat(past, new)` appends to it,
//! mask and positions follow from the states of the token loop. That equals the model's own computation under the
//! protocol of its interface, by which the host feeds each present back as the next past.

use super::context::Cx;
use super::dims::Sizes;
use super::elem::Elem;
use super::error::{Res, unsupported};
use super::external_data::short;
use super::proto::{DimensionProto, GraphProto, ValueInfoProto};
use super::value::{Data, Known, Val};
use crate::graph::{KvSlotId, Op};
use crate::ingest::builder::ModelBuilder;
use crate::ingest::decoding::{self, Phase};
use frit_kernels::dim::Dim;
use frit_plan::{KvPart, sizes};
use indexmap::IndexMap;

/// Something for the keys and for the values.
#[derive(Clone, Debug, Default, PartialEq)]
struct Both<T> {
    keys: T,
    values: T,
}

impl<T> Both<T> {
    fn part(&mut self, part: KvPart) -> &mut T {
        match part {
            KvPart::K => &mut self.keys,
            KvPart::V => &mut self.values,
        }
    }
    fn iter(&self) -> impl Iterator<Item = (KvPart, &T)> {
        [(KvPart::K, &self.keys), (KvPart::V, &self.values)].into_iter()
    }
}

/// The cache of one layer: names of its inputs and outputs, heads, their widths.
#[derive(Clone, Debug, Default, PartialEq)]
struct Layer {
    past: Both<Option<String>>,
    present: Both<Option<String>>,
    heads: u64,
    dims: Both<u64>,
}

/// The interface of a decoder with a cache.
#[derive(Clone, Debug)]
pub struct Interface {
    layers: Vec<Layer>,
    sizes: Sizes,
}

/// A graph of the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Role<'a> {
    /// Its inputs and outputs.
    pub interface: &'a Interface,
    /// The slots, one for each layer.
    pub slots: &'a [KvSlotId],
    /// Where tokens come from.
    pub phase: Phase,
}

const IDS: &str = "input_ids";
const MASK: &str = "attention_mask";
const POSITIONS: &str = "position_ids";
const PLACES: &str = "cache_position";
const BRANCH: &str = "use_cache_branch";
const LOGITS: &str = "logits";

/// Whether the graph takes keys and values of earlier tokens, and how.
///
/// # Errors
/// Why the cache of a model that has one cannot be kept by the token loop.
pub fn interface(graph: &GraphProto) -> Result<Option<Interface>, String> {
    let constants: Vec<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|i| !constants.contains(&i.name.as_str())).collect();
    if !inputs.iter().any(|i| cache_part(&i.name, "past").is_some()) {
        return Ok(None);
    }
    let mut sizes = Sizes::decoder();
    let mut layers: IndexMap<u64, Layer> = IndexMap::new();
    let (batch, tokens) = (Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS));
    let past = Dim::size(sizes::PAST);
    let keys = past.clone() + tokens.clone();
    for i in &inputs {
        let wants: Vec<Dim> = match i.name.as_str() {
            IDS | POSITIONS => vec![batch.clone(), tokens.clone()],
            MASK => vec![batch.clone(), keys.clone()],
            PLACES => vec![tokens.clone()],
            BRANCH => continue,
            name => {
                let Some((layer, part)) = cache_part(name, "past") else {
                    return Err(format!("it has the input `{}`, which the token loop does not know", short(name)));
                };
                let fixed = |k: usize| extents(i).get(k).and_then(|d| d.dim_value).and_then(|v| u64::try_from(v).ok());
                let (4, Some(heads), Some(dim)) = (extents(i).len(), fixed(1), fixed(3)) else {
                    return Err(format!(
                        "`{}` is not [batch, heads, past, width] with fixed heads and width",
                        short(name)
                    ));
                };
                let at = layers.entry(layer).or_default();
                *at.past.part(part) = Some(name.to_owned());
                *at.dims.part(part) = dim;
                if at.heads != 0 && at.heads != heads {
                    return Err(format!("keys and values of layer {layer} have {} and {heads} heads", at.heads));
                }
                at.heads = heads;
                vec![batch.clone(), Dim::from(heads), past.clone(), Dim::from(dim)]
            }
        };
        name_extents(&mut sizes, i, &wants)?;
    }
    for o in &graph.output {
        match cache_part(&o.name, "present") {
            Some((layer, part)) => match layers.get_mut(&layer) {
                Some(at) => *at.present.part(part) = Some(o.name.clone()),
                None => return Err(format!("`{}` has no past", short(&o.name))),
            },
            None if o.name == LOGITS => {}
            None => return Err(format!("it has the output `{}`, which the token loop does not know", short(&o.name))),
        }
    }
    let whole = |l: &Layer| l.past.iter().chain(l.present.iter()).all(|(_, name)| name.is_some());
    match layers.iter().find(|(_, l)| !whole(l)) {
        Some((i, _)) => Err(format!("layer {i} lacks a past or present of keys or values")),
        None if !inputs.iter().any(|i| i.name == IDS) => Err(format!("it has no input `{IDS}`")),
        None if !graph.output.iter().any(|o| o.name == LOGITS) => Err(format!("it has no output `{LOGITS}`")),
        None => {
            layers.sort_keys();
            Ok(Some(Interface { layers: layers.into_values().collect(), sizes }))
        }
    }
}

fn extents(v: &ValueInfoProto) -> &[DimensionProto] {
    let tensor = v.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    tensor.and_then(|t| t.shape.as_ref()).map_or(&[], |s| &s.dim)
}

/// The layer and part of a cache's name such as `past_key_values.3.value` or `present_3_key`.
fn cache_part(name: &str, word: &str) -> Option<(u64, KvPart)> {
    let rest = name.strip_prefix(word)?;
    let rest = ["_key_values", "_key_value"].iter().find_map(|w| rest.strip_prefix(w)).unwrap_or(rest);
    let part = match (rest.contains("key"), rest.contains("value")) {
        (true, false) => KvPart::K,
        (false, true) => KvPart::V,
        _ => return None,
    };
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    let (layer, None) = (numbers.next()?, numbers.next()) else { return None };
    Some((layer.parse().ok()?, part))
}

fn name_extents(sizes: &mut Sizes, input: &ValueInfoProto, wants: &[Dim]) -> Result<(), String> {
    let found = extents(input);
    if found.len() != wants.len() {
        return Err(format!("`{}` has {} axes, not {}", short(&input.name), found.len(), wants.len()));
    }
    for (k, (d, want)) in found.iter().zip(wants).enumerate() {
        let fits = match d.dim_value.filter(|v| *v > 0) {
            Some(v) => want.as_const() == Some(v),
            None => sizes.name(&super::import::size_name(&input.name, k, d.dim_param.as_deref()), want),
        };
        if !fits {
            let found = d.dim_value.map_or_else(|| d.dim_param.clone().unwrap_or_default(), |v| v.to_string());
            return Err(format!(
                "extent {k} of `{}` is {}, where {want} is expected",
                short(&input.name),
                short(&found)
            ));
        }
    }
    Ok(())
}

impl Interface {
    /// What the names of the file's extents stand for.
    pub fn sizes(&self) -> Sizes {
        self.sizes.clone()
    }
    /// Declares a slot for each layer.
    pub fn slots(&self, m: &mut ModelBuilder) -> Vec<KvSlotId> {
        let slot = |(i, l): (usize, &Layer)| m.kv_slot(&format!("layer{i}"), l.heads, l.dims.keys, l.dims.values);
        self.layers.iter().enumerate().map(slot).collect()
    }
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }
}

impl Role<'_> {
    /// What stands for an input of the file.
    pub fn input(&self, cx: &mut Cx<'_, '_, '_>, name: &str, elem: Elem, shape: &[Dim]) -> Res<Val> {
        let id = match name {
            IDS => decoding::tokens(cx.b, self.phase, IDS),
            MASK => decoding::visible(cx.b),
            POSITIONS => decoding::positions(cx.b),
            PLACES => cx.iota(shape, 0, Dim::size(sizes::PAST)),
            BRANCH => {
                let count = shape.iter().filter_map(Dim::as_const).product::<i64>();
                let known = Known::Ints(vec![Dim::one(); usize::try_from(count).unwrap_or(1)]);
                return Ok(Val::of(elem, shape.to_vec(), known));
            }
            _ => {
                let Some((slot, part)) = self.slot_of(name) else { return unsupported("is no input of a decoder") };
                return Ok(Val { elem, shape: shape.to_vec(), data: Data::Past(slot, part), known: None });
            }
        };
        let id = cx.cast(id, elem.scalar())?;
        Ok(cx.val(id, elem))
    }

    fn slot_of(&self, past: &str) -> Option<(KvSlotId, KvPart)> {
        self.interface.layers.iter().zip(self.slots).find_map(|(layer, slot)| {
            let (part, _) = layer.past.iter().find(|(_, name)| name.as_deref() == Some(past))?;
            Some((*slot, part))
        })
    }

    /// Takes the outputs of the file: presents have to be what the slots hold; the logits choose the next token.
    pub fn outputs(&self, cx: &mut Cx<'_, '_, '_>, look_up: &dyn Fn(&str) -> Res<Val>) -> Res<()> {
        for (layer, slot) in self.interface.layers.iter().zip(self.slots) {
            for (part, name) in layer.present.iter() {
                let Some(name) = name else { continue };
                let val = look_up(name)?;
                let is_append = match val.data {
                    Data::Node(id) => {
                        matches!(cx.b.built().op(id), Op::KvAppend { slot: s, part: p, .. } if s == slot && *p == part)
                    }
                    _ => false,
                };
                if !is_append {
                    return unsupported(format!("`{}` is not its past with new tokens behind it", short(name)));
                }
            }
        }
        let logits = look_up(LOGITS)?;
        let (tokens, vocab) = match logits.shape.as_slice() {
            [_, tokens, vocab] => (tokens.clone(), vocab.as_const().and_then(|v| u64::try_from(v).ok())),
            _ => (Dim::zero(), None),
        };
        let Some(vocab) = vocab else {
            return unsupported(format!("`{LOGITS}` is not [batch, tokens, vocabulary]"));
        };
        let id = cx.node(&logits)?;
        let last = match tokens {
            t if t.is(1) => id,
            t => cx.slice(id, 1, &(t - Dim::one()), &Dim::one())?,
        };
        decoding::choose(cx.b, self.phase, last, vocab);
        cx.b.model().info.vocab = vocab;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_caches_are_read() {
        let past = |n| cache_part(n, "past");
        assert_eq!(past("past_key_values.3.value"), Some((3, KvPart::V)));
        assert_eq!(past("past_key_values.12.key"), Some((12, KvPart::K)));
        assert_eq!(past("past_key_0"), Some((0, KvPart::K)));
        assert_eq!(past("past_0_value"), Some((0, KvPart::V)));
        assert_eq!(past("past_0"), None);
        assert_eq!(past("past_key_values.0.1.key"), None);
        assert_eq!(past("input_ids"), None);
        assert_eq!(cache_part("present.1.key", "present"), Some((1, KvPart::K)));
        assert_eq!(cache_part("present_key_values.1.value", "present"), Some((1, KvPart::V)));
    }
}
