//! One set of weights for several layers, or for one part of them.

use super::pattern::Pattern;
use super::private::Private;
use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Error, Result, refuse, refuse_all};
use crate::transform::extension::{LORA_A, LORA_B};
use crate::transform::family::{Role, Side, Stack};
use crate::transform::layer_list::LayerList;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// What the shared tensor of a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// That of the group's first layer.
    #[default]
    First,
    /// That of the layer in the middle.
    Middle,
    /// That of the last.
    Last,
    /// The mean over the group.
    Mean,
    /// That of the layer of this number.
    Copy(usize),
}

/// Lets whole layers share their weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareLayers {
    /// Which layers share.
    pub pattern: Pattern,
    /// What the shared tensors are.
    #[serde(default)]
    pub init: Init,
    /// What stays private.
    #[serde(default)]
    pub private: Private,
    /// Of a model with two stacks, which one.
    #[serde(default)]
    pub stack: Option<StackName>,
}

/// Lets the feed-forward parts of layers share their weights. Norms stay private.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShareFfn {
    /// One group.
    pub layers: Option<LayerList>,
    /// Several groups.
    #[serde(alias = "groups")]
    pub pattern: Option<Pattern>,
    /// What the shared tensors are.
    pub init: Init,
    /// What stays private besides norms.
    pub private: Private,
}

/// Lets the attention parts of layers share their weights. Norms stay private.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShareAttn {
    /// One group.
    pub layers: Option<LayerList>,
    /// Several groups.
    #[serde(alias = "groups")]
    pub pattern: Option<Pattern>,
    /// What the shared tensors are.
    pub init: Init,
    /// What stays private besides norms.
    pub private: Private,
}

/// One of two stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StackName {
    /// The encoder.
    Enc,
    /// The decoder.
    Dec,
}

impl StackName {
    /// The side it names; without a name the only stack.
    pub fn side(name: Option<StackName>) -> Side {
        match name {
            None => Side::Only,
            Some(StackName::Enc) => Side::Encoder,
            Some(StackName::Dec) => Side::Decoder,
        }
    }
}

/// The parts of a layer that are shared.
struct Scope<'a> {
    roles: &'a [Role],
    /// Everything in the layer, whatever it is.
    whole: bool,
}

impl Transform for ShareLayers {
    fn name(&self) -> &'static str {
        "share-layers"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let side = StackName::side(self.stack);
        let (_, count) = c.stack(side)?;
        let groups = self.pattern.groups(count).map_err(|e| refused(self.name(), e))?;
        let roles: Vec<Role> = [&Role::ATTENTION[..], &Role::CROSS, &Role::FFN].concat();
        share(self.name(), c, side, &groups, &Scope { roles: &roles, whole: true }, self.init, self.private)
    }
}

impl Transform for ShareFfn {
    fn name(&self) -> &'static str {
        "share-ffn"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (side, groups) = groups(self.name(), c, self.layers.as_ref(), self.pattern.as_ref())?;
        let private = Private { norms: true, ..self.private };
        share(self.name(), c, side, &groups, &Scope { roles: &Role::FFN, whole: false }, self.init, private)
    }
}

impl Transform for ShareAttn {
    fn name(&self) -> &'static str {
        "share-attn"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (side, groups) = groups(self.name(), c, self.layers.as_ref(), self.pattern.as_ref())?;
        let private = Private { norms: true, ..self.private };
        share(self.name(), c, side, &groups, &Scope { roles: &Role::ATTENTION, whole: false }, self.init, private)
    }
}

fn refused(step: &str, problem: String) -> Error {
    Error::Refused { step: step.into(), problems: vec![problem] }
}

fn groups(
    step: &str,
    c: &Checkpoint,
    layers: Option<&LayerList>,
    pattern: Option<&Pattern>,
) -> Result<(Side, Vec<Vec<usize>>)> {
    match (layers, pattern) {
        (Some(_), Some(_)) => refuse(step, "give either layers or a pattern"),
        (None, pattern) => {
            let (_, count) = c.stack(Side::Only)?;
            let groups = pattern.unwrap_or(&Pattern::All).groups(count).map_err(|e| refused(step, e))?;
            Ok((Side::Only, groups))
        }
        (Some(list), None) => {
            let side = list.side().map_err(|e| refused(step, e))?.unwrap_or(Side::Only);
            let (_, count) = c.stack(side)?;
            let group = list.resolve(count).map_err(|e| refused(step, e))?;
            Ok((side, if group.len() > 1 { vec![group] } else { Vec::new() }))
        }
    }
}

fn share(
    step: &str,
    c: &mut Checkpoint,
    side: Side,
    groups: &[Vec<usize>],
    scope: &Scope<'_>,
    init: Init,
    private: Private,
) -> Result<Vec<String>> {
    let (stack, _) = c.stack(side)?;
    if let Some((group, i)) = groups.iter().find_map(|g| match init {
        Init::Copy(i) if !g.contains(&i) => Some((g, i)),
        _ => None,
    }) {
        return refuse(step, format!("copy:{i} is in no group: layers {group:?} do not contain it"));
    }
    let mut lines = Vec::new();
    for group in groups {
        let parts = common_parts(step, c, stack, group, scope, private)?;
        for part in &parts {
            let name = |i: usize| format!("{}{part}", c.layer(stack, i));
            let names: Vec<String> = group.iter().map(|i| name(*i)).collect();
            let of = match init {
                Init::First => names[0].clone(),
                Init::Middle => names[(group.len() - 1) / 2].clone(),
                Init::Last => names[group.len() - 1].clone(),
                Init::Copy(i) => name(i),
                Init::Mean => {
                    if names.iter().any(|n| c.buffer(n) != c.buffer(&names[0])) {
                        let all: Vec<Dense> = names.iter().map(|n| c.values(n)).collect::<Result<_>>()?;
                        let weight = 1.0 / all.len() as f64;
                        let terms: Vec<(f64, &Dense)> = all.iter().map(|m| (weight, m)).collect();
                        c.put(&names[0], &Dense::combine(step, &terms)?);
                    }
                    names[0].clone()
                }
            };
            for n in &names {
                c.alias(n, &of)?;
            }
        }
        lines.push(format!("layers {} share {} tensors", LayerList::of(group.iter().copied()), parts.len()));
        private.add(step, c, side, group, scope.roles)?;
    }
    Ok(lines)
}

/// Tensors that the layers of a group are to share: the same in each, or it is refused.
fn common_parts(
    step: &str,
    c: &Checkpoint,
    stack: &Stack,
    group: &[usize],
    scope: &Scope<'_>,
    private: Private,
) -> Result<Vec<String>> {
    let stems: Vec<&str> = stack
        .linears
        .iter()
        .filter(|(packing, _)| packing.roles().iter().all(|r| scope.roles.contains(r)))
        .map(|(_, stem)| *stem)
        .collect();
    let shared = |part: &String| {
        let of_linear = stems.iter().any(|s| part.strip_prefix(s).is_some_and(|rest| rest.starts_with('.')));
        let stays = c.family().at_position.iter().any(|p| part.starts_with(p));
        let own = (private.norms && Checkpoint::is_norm(stack, part))
            || (private.bias && of_linear && part.ends_with(".bias"))
            || part.ends_with(LORA_A)
            || part.ends_with(LORA_B);
        (of_linear || scope.whole) && !stays && !own
    };
    let parts = |i: usize| c.layer_parts(stack, i).into_iter().filter(shared).collect::<Vec<String>>();
    let first = parts(group[0]);
    let mut problems = Vec::new();
    for i in &group[1..] {
        let other = parts(*i);
        for part in first.iter().filter(|p| !other.contains(p)) {
            problems.push(format!("layer {i} has no `{part}`, which layer {} has", group[0]));
        }
        for part in other.iter().filter(|p| !first.contains(p)) {
            problems.push(format!("layer {} has no `{part}`, which layer {i} has", group[0]));
        }
        for part in &first {
            let shape = |i: usize| c.shape(&format!("{}{part}", c.layer(stack, i)));
            if let (Some(a), Some(b)) = (shape(group[0]), shape(*i)) {
                if a != b {
                    problems.push(format!("`{part}` is {a:?} in layer {} and {b:?} in layer {i}", group[0]));
                }
            }
        }
    }
    refuse_all(step, problems)?;
    Ok(first)
}

impl FromStr for Init {
    type Err = String;

    fn from_str(text: &str) -> Result<Init, String> {
        match text.split_once(':') {
            None if text == "first" => Ok(Init::First),
            None if text == "middle" => Ok(Init::Middle),
            None if text == "last" => Ok(Init::Last),
            None if text == "mean" => Ok(Init::Mean),
            Some(("copy", i)) => i.parse().map(Init::Copy).map_err(|e| format!("`{text}`: {e}")),
            _ => Err(format!("`{text}` is none of first, middle, last, mean and copy:LAYER")),
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Init::First => f.write_str("first"),
            Init::Middle => f.write_str("middle"),
            Init::Last => f.write_str("last"),
            Init::Mean => f.write_str("mean"),
            Init::Copy(i) => write!(f, "copy:{i}"),
        }
    }
}

impl Serialize for Init {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Init {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Init, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
