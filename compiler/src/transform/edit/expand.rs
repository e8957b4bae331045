//! Layers put in between others.

use super::resolved;
use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::family::{Role, Side};
use crate::transform::layer_list::LayerList;
use crate::transform::merge::blend;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// What a new layer is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ExpandInit {
    /// The layer before it, with the last projections of both parts zero: it adds nothing.
    #[default]
    Zeros,
    /// The layer before it.
    Copy,
    /// Spherical interpolation from the layer before it to the one after it.
    Slerp(f64),
    /// Linear interpolation.
    Linear(f64),
}

/// Puts layers in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpandLayers {
    /// A new layer comes behind each of these.
    pub positions: Option<LayerList>,
    /// What new layers are.
    pub init: ExpandInit,
    /// Instead: every layer this many times in a row, with one set of weights.
    pub repeat: Option<usize>,
}

/// Runs some layers in a row several times, with one set of weights and a slot in the cache for each run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopLayers {
    /// Neighbours.
    pub body: LayerList,
    /// How often they run.
    pub trips: usize,
}

impl Transform for LoopLayers {
    fn name(&self) -> &'static str {
        "loop"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (side, body) = resolved(self.name(), c, &self.body)?;
        let (_, count) = c.stack(side)?;
        if self.trips == 0 || body.windows(2).any(|w| w[1] != w[0] + 1) {
            return refuse(self.name(), "the body is not a run of neighbours, or it runs no times");
        }
        let (Some(first), Some(last)) = (body.first().copied(), body.last().copied()) else {
            return refuse(self.name(), "the body is empty");
        };
        let again = (0..self.trips).flat_map(|_| first..=last);
        let order: Vec<usize> = (0..first).chain(again).chain(last + 1..count).collect();
        c.rearrange(self.name(), side, &order, false)?;
        Ok(vec![format!("{} layers run, {count} are stored", order.len())])
    }
}

impl Transform for ExpandLayers {
    fn name(&self) -> &'static str {
        "expand-layers"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (_, count) = c.stack(Side::Only)?;
        let positions = match (&self.positions, self.repeat) {
            (None, Some(n)) if n > 0 => {
                let order: Vec<usize> = (0..count * n).map(|i| i / n).collect();
                c.rearrange(self.name(), Side::Only, &order, false)?;
                return Ok(vec![format!("{} layers run, {count} are stored", order.len())]);
            }
            (Some(list), None) => resolved(self.name(), c, list)?.1,
            _ => return refuse(self.name(), "give either positions or repeat"),
        };
        let order: Vec<usize> =
            (0..count).flat_map(|i| std::iter::repeat_n(i, if positions.contains(&i) { 2 } else { 1 })).collect();
        c.rearrange(self.name(), Side::Only, &order, false)?;
        let new: Vec<usize> = (1..order.len()).filter(|n| order[*n] == order[*n - 1]).collect();
        let (stack, _) = c.stack(Side::Only)?;
        for n in &new {
            match self.init {
                ExpandInit::Copy => {
                    for part in c.layer_parts(stack, *n) {
                        let name = format!("{}{part}", c.layer(stack, *n));
                        let copy = c.values(&name)?;
                        c.put(&name, &copy);
                    }
                }
                ExpandInit::Zeros => {
                    for part in c.layer_parts(stack, *n) {
                        let name = format!("{}{part}", c.layer(stack, *n));
                        let last = [Role::O, Role::Down].iter().filter_map(|r| c.stem(stack, *n, *r));
                        let zero =
                            last.map(|(_, s)| s).any(|s| part.strip_prefix(s).is_some_and(|r| r.starts_with('.')));
                        let values = c.values(&name)?;
                        let values = if zero { Dense::zeros(&values.shape) } else { values };
                        c.put(&name, &values);
                    }
                }
                ExpandInit::Slerp(t) | ExpandInit::Linear(t) => {
                    if *n + 1 >= order.len() {
                        return refuse(self.name(), "behind the last layer there is none to interpolate to");
                    }
                    for part in c.layer_parts(stack, *n) {
                        let name = |i: usize| format!("{}{part}", c.layer(stack, i));
                        if !c.has(&name(n + 1)) {
                            return refuse(self.name(), format!("layer {} has no `{part}`", order[n + 1]));
                        }
                        let (a, b) = (c.values(&name(n - 1))?, c.values(&name(n + 1))?);
                        let mixed = match self.init {
                            ExpandInit::Slerp(_) => blend::slerp(self.name(), &a, &b, t)?,
                            _ => Dense::combine(self.name(), &[(1.0 - t, &a), (t, &b)])?,
                        };
                        c.put(&name(*n), &mixed);
                    }
                }
            }
        }
        Ok(vec![format!("{} layers are new: {} by {}", new.len(), LayerList::of(new), self.init)])
    }
}

impl FromStr for ExpandInit {
    type Err = String;

    fn from_str(text: &str) -> Result<ExpandInit, String> {
        let number = |t: &str| t.parse::<f64>().map_err(|e| format!("`{text}`: {e}"));
        match text.split_once(':') {
            None if text == "zeros" => Ok(ExpandInit::Zeros),
            None if text == "copy" => Ok(ExpandInit::Copy),
            Some(("slerp", t)) => number(t).map(ExpandInit::Slerp),
            Some(("linear", t)) => number(t).map(ExpandInit::Linear),
            _ => Err(format!("`{text}` is none of zeros, copy, slerp:T and linear:T")),
        }
    }
}

impl fmt::Display for ExpandInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExpandInit::Zeros => f.write_str("zeros"),
            ExpandInit::Copy => f.write_str("copy"),
            ExpandInit::Slerp(t) => write!(f, "slerp:{t}"),
            ExpandInit::Linear(t) => write!(f, "linear:{t}"),
        }
    }
}

impl Serialize for ExpandInit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ExpandInit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ExpandInit, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
