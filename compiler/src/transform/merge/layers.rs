//! Two layers become one.

use super::blend;
use crate::transform::Transform;
use crate::transform::calibration::{Aid, Metric, Tap};
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Error, Result, refuse, refuse_all};
use crate::transform::family::{Role, Side, Stack};
use crate::transform::linalg;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How two tensors become one. θ_l is that of the layer that stays, θ_m of the one that goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// `α θ_l + (1 − α) θ_m`.
    #[default]
    Linear,
    /// Spherical interpolation of the flattened tensors.
    Slerp,
    /// `(F_l θ_l + F_m θ_m) / (F_l + F_m)`, F the diagonal of the Fisher information from a file.
    Fisher,
    /// `θ_l + C ⊙ θ_m`, C from a file or one number.
    Hadamard,
    /// `W = (G_l + G_m)⁻¹ (G_l W_l + G_m W_m)`, `G = XᵀX` of each map's inputs on calibration tokens.
    Regmean,
}

/// Merges pairs of layers. Linear maps and their biases are merged; norms and all else are those of the layer that stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MergeLayers {
    /// `30:31,28:29`: the layer that stays, and the one that goes into it. In the order written; numbers are the model's.
    #[serde(deserialize_with = "crate::transform::step::text")]
    pub pairs: Option<String>,
    /// Instead: this many merges, each of the least important layer into the one before it, measured anew each time.
    pub auto: Option<usize>,
    /// By which measure.
    pub metric: Option<Metric>,
    /// How.
    pub method: Method,
    /// Of `linear`; ½ if none is given.
    pub alpha: Option<f64>,
    /// Of `slerp`; ½ if none is given.
    pub t: Option<f64>,
    /// `slerp` for each row.
    pub per_row: bool,
    /// Directory of a checkpoint whose tensors are the F of `fisher`.
    pub fisher: Option<PathBuf>,
    /// A number, or the directory of a checkpoint whose tensors (by the names of the layer that stays) are C.
    #[serde(deserialize_with = "crate::transform::step::text")]
    pub coef: Option<String>,
}

impl Transform for MergeLayers {
    fn name(&self) -> &'static str {
        "merge-layers"
    }
    fn apply(&self, c: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>> {
        self.check()?;
        match (&self.pairs, self.auto) {
            (Some(text), None) => {
                let (_, count) = c.stack(Side::Only)?;
                let pairs = self.parse(text, count)?;
                for (l, m) in &pairs {
                    self.merge(c, aid, *l, *m)?;
                }
                let kept: Vec<usize> = (0..count).filter(|i| !pairs.iter().any(|(_, m)| m == i)).collect();
                c.rearrange(self.name(), Side::Only, &kept, false)?;
                Ok(pairs.iter().map(|(l, m)| format!("layer {m} is merged into layer {l}")).collect())
            }
            (None, Some(n)) => {
                let mut lines = Vec::new();
                for _ in 0..n {
                    let (chosen, why) = aid.least(c, 1, self.metric.unwrap_or(Metric::Cosine))?;
                    let Some(m) = chosen.first().copied() else { return refuse(self.name(), "no layer can be chosen") };
                    let l = if m == 0 { 1 } else { m - 1 };
                    self.merge(c, aid, l, m)?;
                    let (_, count) = c.stack(Side::Only)?;
                    let kept: Vec<usize> = (0..count).filter(|i| *i != m).collect();
                    c.rearrange(self.name(), Side::Only, &kept, false)?;
                    lines.push(format!("{why}; layer {m} is merged into layer {l}"));
                }
                Ok(lines)
            }
            _ => refuse(self.name(), "give either pairs or auto"),
        }
    }
}

impl MergeLayers {
    fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut only = |given: bool, option: &str, method: Method| {
            if given && self.method != method {
                problems.push(format!("`{option}` is an option of the method {method:?}, not of {:?}", self.method));
            }
        };
        only(self.alpha.is_some(), "alpha", Method::Linear);
        only(self.t.is_some(), "t", Method::Slerp);
        only(self.per_row, "per-row", Method::Slerp);
        only(self.fisher.is_some(), "fisher", Method::Fisher);
        only(self.coef.is_some(), "coef", Method::Hadamard);
        if self.method == Method::Fisher && self.fisher.is_none() {
            problems.push("fisher needs --fisher DIRECTORY with the diagonals".into());
        }
        if self.method == Method::Hadamard && self.coef.is_none() {
            problems.push("hadamard needs --coef NUMBER or DIRECTORY".into());
        }
        refuse_all("merge-layers", problems)
    }

    fn parse(&self, text: &str, count: usize) -> Result<Vec<(usize, usize)>> {
        let (mut pairs, mut problems) = (Vec::<(usize, usize)>::new(), Vec::new());
        for item in text.split(',') {
            let number = |s: &str| s.trim().parse::<usize>().ok();
            match item.split_once(':').and_then(|(l, m)| Some((number(l)?, number(m)?))) {
                None => problems.push(format!("`{item}` is no pair; write 30:31,28:29")),
                Some((l, m)) => {
                    for i in [l, m].into_iter().filter(|i| *i >= count) {
                        problems.push(format!("layer {i} does not exist; there are {count}"));
                    }
                    if l == m {
                        problems.push(format!("layer {l} cannot be merged with itself"));
                    }
                    for i in [l, m] {
                        if pairs.iter().any(|(_, gone)| *gone == i) {
                            problems.push(format!("layer {i} is merged away before the pair {item}"));
                        }
                    }
                    pairs.push((l, m));
                }
            }
        }
        refuse_all(self.name(), problems)?;
        Ok(pairs)
    }

    fn merge(&self, c: &mut Checkpoint, aid: &Aid<'_>, l: usize, m: usize) -> Result<()> {
        let (stack, _) = c.stack(Side::Only)?;
        if self.method == Method::Regmean {
            return regmean(self.name(), c, aid, stack, l, m);
        }
        let fisher = self.fisher.as_deref().map(Checkpoint::open).transpose()?;
        let number = self.coef.as_deref().and_then(|t| t.parse::<f64>().ok());
        let coef = match (&self.coef, number) {
            (Some(path), None) => Some(Checkpoint::open(path.as_ref())?),
            _ => None,
        };
        let mut problems = Vec::new();
        for (_, stem) in stack.linears {
            for end in ["weight", "bias"] {
                let [to, from] = [l, m].map(|i| format!("{}{stem}.{end}", c.layer(stack, i)));
                match (c.has(&to), c.has(&from)) {
                    (false, false) => continue,
                    (true, true) => {}
                    _ => {
                        problems.push(format!("layers {l} and {m} do not both have `{stem}.{end}`"));
                        continue;
                    }
                }
                let (a, b) = (c.values(&to)?, c.values(&from)?);
                let merged = match self.method {
                    Method::Linear => {
                        let alpha = self.alpha.unwrap_or(0.5);
                        Dense::combine(self.name(), &[(alpha, &a), (1.0 - alpha, &b)])?
                    }
                    Method::Slerp => {
                        let by = if self.per_row { blend::slerp_rows } else { blend::slerp };
                        by(self.name(), &a, &b, self.t.unwrap_or(0.5))?
                    }
                    Method::Fisher => {
                        let f = fisher.as_ref().ok_or_else(|| Error::Calibration("no Fisher information".into()))?;
                        weighted(self.name(), [&a, &b], [&f.values(&to)?, &f.values(&from)?])?
                    }
                    Method::Hadamard => {
                        let by = match (&coef, number) {
                            (Some(file), _) => file.values(&to)?,
                            (None, n) => Dense { data: vec![n.unwrap_or(0.0); b.data.len()], shape: b.shape.clone() },
                        };
                        plus_product(self.name(), &a, &by, &b)?
                    }
                    Method::Regmean => continue,
                };
                c.put(&to, &merged);
            }
        }
        refuse_all(self.name(), problems)
    }
}

/// `ΣFθ / ΣF`, elementwise; the mean where F is 0.
fn weighted(step: &str, theta: [&Dense; 2], fisher: [&Dense; 2]) -> Result<Dense> {
    if [theta[1], fisher[0], fisher[1]].iter().any(|d| d.shape != theta[0].shape) {
        return refuse(step, "tensors and their Fisher information have unlike shapes");
    }
    let data = (0..theta[0].data.len()).map(|i| {
        let (f, g) = (fisher[0].data[i], fisher[1].data[i]);
        let (a, b) = (theta[0].data[i], theta[1].data[i]);
        if f + g == 0.0 { (a + b) / 2.0 } else { (f * a + g * b) / (f + g) }
    });
    Ok(Dense { shape: theta[0].shape.clone(), data: data.collect() })
}

/// `a + c ⊙ b`.
fn plus_product(step: &str, a: &Dense, c: &Dense, b: &Dense) -> Result<Dense> {
    if a.shape != b.shape || c.shape != b.shape {
        return refuse(step, format!("shapes {:?}, {:?} and {:?} differ", a.shape, c.shape, b.shape));
    }
    let data = a.data.iter().zip(&c.data).zip(&b.data).map(|((a, c), b)| a + c * b).collect();
    Ok(Dense { shape: a.shape.clone(), data })
}

fn regmean(step: &str, c: &mut Checkpoint, aid: &Aid<'_>, stack: &Stack, l: usize, m: usize) -> Result<()> {
    let inputs: [fn(usize) -> Tap; 4] = [Tap::AttentionIn, Tap::AttentionInner, Tap::FfnIn, Tap::FfnInner];
    let taps: Vec<Tap> = inputs.iter().flat_map(|tap| [tap(l), tap(m)]).collect();
    let captured = aid.capture(c, &taps)?;
    let of = |role: Role| match role {
        Role::O => 1,
        Role::Gate | Role::Up => 2,
        Role::Down => 3,
        _ => 0,
    };
    for role in [&Role::ATTENTION[..], &Role::FFN].concat() {
        let (Some(mut a), Some(b)) = (c.linear(stack, l, role)?, c.linear(stack, m, role)?) else { continue };
        const RIDGE: f64 = 1e-6;
        let grams = [0, 1].map(|k| linalg::gram(&captured[2 * of(role) + k].values, RIDGE));
        let total = Dense::combine(step, &[(1.0, &grams[0]), (1.0, &grams[1])])?;
        let (wa, wb) = (grams[0].times(&a.weight.transposed()), grams[1].times(&b.weight.transposed()));
        let sum = Dense::combine(step, &[(1.0, &wa), (1.0, &wb)])?;
        let merged = linalg::solve_spd(&total, &sum);
        a.weight = merged
            .ok_or_else(|| {
                Error::Calibration(format!("the inputs of {role:?} do not determine a map; give more tokens"))
            })?
            .transposed();
        if let (Some(x), Some(y)) = (&mut a.bias, &b.bias) {
            x.iter_mut().zip(y).for_each(|(x, y)| *x = (*x + y) / 2.0);
        }
        c.set_linear(step, stack, l, role, &a)?;
    }
    Ok(())
}
