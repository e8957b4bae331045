//! Ties beyond the layers of one stack: embeddings, encoder with decoder, equal contents; and the way back.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Error, Result, refuse};
use crate::transform::family::{NormRole, Role, Side};
use crate::transform::layer_list::LayerList;
use crate::transform::linear::Linear;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Lets the head use the embedding's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TieEmbeddings {
    /// The mean of both instead of the embedding.
    pub mean: bool,
}

/// Lets decoder layer l use the weights of encoder layer l.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TieEncoderDecoder {
    /// Attention to the encoder uses the weights of self-attention too.
    pub cross: bool,
}

/// Gives every name a buffer of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Untie {}

/// Lets tensors of equal content share one buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DedupeWeights {}

/// Replaces the feed-forward parts of layers by one that is the sum of them all: gates and ups below each other, downs
/// side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct WidenFfn {
    /// The group; all layers if none are named.
    pub layers: Option<LayerList>,
    /// Instead of other layers' neurons add zeros up to this width, in each layer for itself.
    pub pad_to: Option<usize>,
}

const TIE: &str = "tie_word_embeddings";

impl Transform for TieEmbeddings {
    fn name(&self) -> &'static str {
        "tie-embeddings"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (Some(table), Some(head)) = (c.embedding(), c.family().head) else {
            return refuse(self.name(), "the model has no embedding table or no head");
        };
        if !c.has(head) {
            c.set(TIE, true);
            return Ok(vec!["the head used the embedding's table already".into()]);
        }
        let shapes = [c.shape(&table).map(<[u64]>::to_vec), c.shape(head).map(<[u64]>::to_vec)];
        if shapes[0] != shapes[1] {
            return refuse(self.name(), format!("the embedding is {:?} and the head {:?}", shapes[0], shapes[1]));
        }
        if self.mean {
            let (a, b) = (c.values(&table)?, c.values(head)?);
            c.put(&table, &Dense::combine(self.name(), &[(0.5, &a), (0.5, &b)])?);
        }
        c.remove(head);
        c.set(TIE, true);
        Ok(vec![format!("`{head}` is `{table}`")])
    }
}

impl Transform for TieEncoderDecoder {
    fn name(&self) -> &'static str {
        "tie-encoder-decoder"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        if c.family().stacks.len() != 2 {
            return refuse(self.name(), format!("a `{}` model has one stack", c.family().name));
        }
        let ((enc, n), (dec, m)) = (c.stack(Side::Encoder)?, c.stack(Side::Decoder)?);
        if n != m {
            return refuse(self.name(), format!("the encoder has {n} layers and the decoder {m}"));
        }
        let mut tied = 0;
        let mut tie = |c: &mut Checkpoint, to: String, from: String| -> Result<()> {
            for end in ["weight", "bias"] {
                let (to, from) = (format!("{to}.{end}"), format!("{from}.{end}"));
                if c.has(&to) && c.has(&from) {
                    if c.shape(&to) != c.shape(&from) {
                        return refuse("tie-encoder-decoder", format!("`{to}` and `{from}` have different shapes"));
                    }
                    c.alias(&to, &from)?;
                    tied += 1;
                }
            }
            Ok(())
        };
        let cross =
            [(Role::CrossQ, Role::Q), (Role::CrossK, Role::K), (Role::CrossV, Role::V), (Role::CrossO, Role::O)];
        for i in 0..n {
            let (to, from) = (c.layer(dec, i), c.layer(enc, i));
            let own = [&Role::ATTENTION[..], &Role::FFN].concat().into_iter().map(|r| (r, r));
            for (role, of) in own.chain(cross.into_iter().filter(|_| self.cross)) {
                if let (Some((_, a)), Some((_, b))) = (c.stem(dec, i, role), c.stem(enc, i, of)) {
                    tie(c, format!("{to}{a}"), format!("{from}{b}"))?;
                }
            }
            for role in [NormRole::Attention, NormRole::Ffn] {
                if let (Some(a), Some(b)) = (Checkpoint::norm_stem(dec, role), Checkpoint::norm_stem(enc, role)) {
                    tie(c, format!("{to}{a}"), format!("{from}{b}"))?;
                }
            }
        }
        Ok(vec![format!("{tied} tensors of the decoder are the encoder's")])
    }
}

impl Transform for Untie {
    fn name(&self) -> &'static str {
        "untie"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let mut lines = vec![format!("{} tensors have a buffer of their own again", c.untie()?)];
        let tied = c.config.get(TIE).and_then(Value::as_bool).unwrap_or(c.family().name == "gpt2");
        if let (true, Some(table), Some(head)) = (tied, c.embedding(), c.family().head) {
            if c.family().name != "bert" && !c.has(head) {
                let copy = c.values(&table)?;
                c.put(head, &copy);
                c.set(TIE, false);
                lines.push(format!("`{head}` is a copy of `{table}`"));
            }
        }
        Ok(lines)
    }
}

impl Transform for DedupeWeights {
    fn name(&self) -> &'static str {
        "dedupe-weights"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        Ok(vec![format!("{} tensors have the content of another", c.dedupe()?)])
    }
}

impl Transform for WidenFfn {
    fn name(&self) -> &'static str {
        "widen-ffn"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let refused = |e: String| Error::Refused { step: self.name().into(), problems: vec![e] };
        let list = self.layers.clone().unwrap_or(LayerList::all());
        let side = list.side().map_err(refused)?.unwrap_or(Side::Only);
        let (stack, count) = c.stack(side)?;
        let group = list.resolve(count).map_err(refused)?;
        let mut widths = c.ff_widths(side)?;
        let mut parts: Vec<Vec<(Role, Linear)>> = Vec::new();
        for i in &group {
            let mut of_layer = Vec::new();
            for role in Role::FFN {
                if let Some(l) = c.linear(stack, *i, role)? {
                    of_layer.push((role, l));
                }
            }
            parts.push(of_layer);
        }
        if parts.iter().any(|p| p.len() != parts[0].len() || p.is_empty()) {
            return refuse(self.name(), "the layers have unlike feed-forward parts");
        }
        let total: usize = group.iter().map(|i| widths[*i]).sum();
        for (n, i) in group.iter().enumerate() {
            let wide: Vec<(Role, Linear)> = match self.pad_to {
                Some(to) if to < widths[*i] => {
                    return refuse(self.name(), format!("layer {i} is {} wide already", widths[*i]));
                }
                Some(to) => parts[n].iter().map(|(r, l)| (*r, padded(*r, l, to))).collect(),
                None if n > 0 => Vec::new(),
                None => (0..parts[0].len())
                    .map(|k| {
                        let all: Vec<&Linear> = parts.iter().map(|p| &p[k].1).collect();
                        (parts[0][k].0, summed(parts[0][k].0, &all))
                    })
                    .collect(),
            };
            let refs: Vec<(Role, &Linear)> = wide.iter().map(|(r, l)| (*r, l)).collect();
            c.set_linears(self.name(), stack, *i, &refs)?;
            if self.pad_to.is_none() && n > 0 {
                for (role, _) in &parts[0] {
                    let stem = c.stem(stack, *i, *role).map(|(_, s)| s).unwrap_or_default();
                    let (to, from) = (c.layer(stack, *i), c.layer(stack, group[0]));
                    for end in
                        ["weight", "bias"].iter().filter(|e| c.has(&format!("{from}{stem}.{e}"))).collect::<Vec<_>>()
                    {
                        c.alias(&format!("{to}{stem}.{end}"), &format!("{from}{stem}.{end}"))?;
                    }
                }
            }
            widths[*i] = self.pad_to.unwrap_or(total);
        }
        c.set_ff_widths(&widths)?;
        Ok(vec![format!("layers {list} have feed-forward parts of width {}", self.pad_to.unwrap_or(total))])
    }
}

/// The map of a feed-forward part whose neurons are those of all: rows below each other, or for `down` columns side by
/// side with biases added.
fn summed(role: Role, all: &[&Linear]) -> Linear {
    if role != Role::Down {
        let cols = all[0].weight.cols();
        let data: Vec<f64> = all.iter().flat_map(|l| &l.weight.data).copied().collect();
        let bias: Option<Vec<Vec<f64>>> = all.iter().map(|l| l.bias.clone()).collect();
        return Linear { weight: Dense::matrix(data.len() / cols, cols, data), bias: bias.map(|b| b.concat()) };
    }
    let rows = all[0].weight.rows();
    let data: Vec<f64> = (0..rows).flat_map(|r| all.iter().flat_map(move |l| l.weight.row(r))).copied().collect();
    let bias = all.iter().map(|l| l.bias.as_ref()).collect::<Option<Vec<_>>>();
    let bias = bias.map(|b| (0..rows).map(|r| b.iter().map(|b| b[r]).sum()).collect());
    Linear { weight: Dense::matrix(rows, data.len() / rows, data), bias }
}

fn padded(role: Role, l: &Linear, to: usize) -> Linear {
    let none = if role == Role::Down {
        Linear {
            weight: Dense::zeros(&[l.weight.rows(), to - l.weight.cols()]),
            bias: l.bias.as_ref().map(|b| vec![0.0; b.len()]),
        }
    } else {
        let rows = to - l.weight.rows();
        Linear { weight: Dense::zeros(&[rows, l.weight.cols()]), bias: l.bias.as_ref().map(|_| vec![0.0; rows]) }
    };
    summed(role, &[l, &none])
}
