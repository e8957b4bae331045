//! How alike layers are, and how much each matters.
//!
//! [`metrics`] holds the formulas, over rows of values. Here they are applied to what a model computes for calibration
//! tokens.

pub mod information;
pub mod metrics;

use super::calibration::{Aid, Captured, Metric, Tap};
use super::checkpoint::Checkpoint;
use super::dense::Dense;
use super::error::Result;
use super::family::Side;

/// The importance of each layer by a metric: 0 for a layer that does nothing, or NaN where it cannot be had.
///
/// # Errors
/// As [`Aid::capture`].
pub fn layers(c: &Checkpoint, metric: Metric, aid: &Aid<'_>) -> Result<Vec<f64>> {
    let (_, count) = c.stack(Side::Only)?;
    match metric {
        Metric::MacroInfluence => macro_influence(c, count, aid),
        Metric::JsAttn => js_attention(c, count, aid),
        Metric::AngularKv => angular_kv(c, count, aid),
        _ => {
            let taps: Vec<Tap> = (0..=count).map(Tap::Hidden).collect();
            let states = aid.capture(c, &taps)?;
            Ok((0..count).map(|i| by_states(metric, &states[i].values, &states[i + 1].values)).collect())
        }
    }
}

fn by_states(metric: Metric, x: &Dense, y: &Dense) -> f64 {
    match metric {
        Metric::Cosine => 1.0 - metrics::cosine(x, y),
        Metric::Cka => 1.0 - metrics::cka(x, y),
        Metric::Linearity => 1.0 - metrics::linearity(x, y),
        Metric::Npib => 1.0 - information::npib(x, y, &information::Npib::default()),
        Metric::NormRatio => metrics::norm_ratio(x, y),
        Metric::Pkd => metrics::pkd(x, y),
        Metric::MacroInfluence | Metric::JsAttn | Metric::AngularKv => f64::NAN,
    }
}

/// `1 − cos` of the last hidden state with and without each layer. Layers that others depend on are NaN.
fn macro_influence(c: &Checkpoint, count: usize, aid: &Aid<'_>) -> Result<Vec<f64>> {
    let whole = aid.capture(c, &[Tap::Hidden(count)])?;
    let mut scores = Vec::with_capacity(count);
    for i in 0..count {
        let mut without = c.clone();
        let kept: Vec<usize> = (0..count).filter(|l| *l != i).collect();
        if kept.is_empty() || without.rearrange("macro-influence", Side::Only, &kept, false).is_err() {
            scores.push(f64::NAN);
            continue;
        }
        let less = aid.capture(&without, &[Tap::Hidden(kept.len())])?;
        scores.push(1.0 - metrics::cosine(&whole[0].values, &less[0].values));
    }
    Ok(scores)
}

/// Divergence of each layer's attention from that of the layer before it; NaN for the first.
fn js_attention(c: &Checkpoint, count: usize, aid: &Aid<'_>) -> Result<Vec<f64>> {
    let s = c.sizes()?;
    let taps: Vec<Tap> = (0..count).flat_map(|i| [Tap::Queries(i), Tap::Keys(i)]).collect();
    let all = aid.capture(c, &taps)?;
    let probabilities: Vec<Vec<Dense>> =
        all.chunks(2).map(|qk| attention(&qk[0], &qk[1], s.heads, s.kv_heads)).collect();
    let divergence = |a: &[Dense], b: &[Dense]| {
        let each: Vec<f64> = a.iter().zip(b).map(|(p, q)| metrics::jensen_shannon(p, q)).collect();
        each.iter().sum::<f64>() / each.len().max(1) as f64
    };
    Ok((0..count)
        .map(|i| if i == 0 { f64::NAN } else { divergence(&probabilities[i - 1], &probabilities[i]) })
        .collect())
}

/// Causal attention probabilities, one matrix for each sequence and head, from queries and keys of all heads.
pub fn attention(q: &Captured, k: &Captured, heads: usize, kv_heads: usize) -> Vec<Dense> {
    let d = q.values.cols() / heads.max(1);
    let scale = (d as f64).powf(-0.5);
    let mut out = Vec::new();
    let mut start = 0;
    for len in &q.sequences {
        for h in 0..heads {
            let g = h * kv_heads / heads;
            let mut p = Dense::zeros(&[*len, *len]);
            for i in 0..*len {
                let query = &q.values.row(start + i)[h * d..(h + 1) * d];
                let scores: Vec<f64> = (0..=i)
                    .map(|j| {
                        let key = &k.values.row(start + j)[g * d..(g + 1) * d];
                        scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>()
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                p.row_mut(i).iter_mut().zip(&scores).for_each(|(p, s)| *p = (s - most).exp() / sum);
            }
            out.push(p);
        }
        start += len;
    }
    out
}

/// Mean angle of each layer's keys and values from those of the layer before, over π; NaN for the first.
fn angular_kv(c: &Checkpoint, count: usize, aid: &Aid<'_>) -> Result<Vec<f64>> {
    let taps: Vec<Tap> = (0..count).flat_map(|i| [Tap::Keys(i), Tap::Values(i)]).collect();
    let all = aid.capture(c, &taps)?;
    let angle = |i: usize, part: usize| metrics::angular(&all[2 * (i - 1) + part].values, &all[2 * i + part].values);
    Ok((0..count).map(|i| if i == 0 { f64::NAN } else { (angle(i, 0) + angle(i, 1)) / 2.0 }).collect())
}
