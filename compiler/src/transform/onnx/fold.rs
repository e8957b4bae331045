//! Batch norms into convolutions: with s = γ/√(σ² + ε), the weight becomes s·W and the bias s·(b − μ) + β, channel by
//! channel, in f64. A weight that other nodes use as well stays, and so does its norm: another use has another norm.

use super::{OnnxModel, Tensor, called, wherever};
use crate::transform::error::Result;

pub(super) fn apply(m: &mut OnnxModel) -> Result<Vec<String>> {
    wherever(m, "fold-batch-norms", "there is no batch norm behind a convolution", fold)
}

/// Folds node `at` if it is a batch norm behind a convolution; why it stays if it does.
fn fold(m: &mut OnnxModel, at: usize) -> Option<Result<String, String>> {
    let norm = m.nodes().get(at).filter(|n| n.op_type == "BatchNormalization" && n.domain.is_empty())?.clone();
    let x = norm.input.first()?;
    let producer = m.nodes().iter().position(|n| n.output.first() == Some(x))?;
    let conv = m.nodes().get(producer).filter(|n| n.op_type == "Conv" && n.domain.is_empty())?.clone();
    let uses = m.uses();
    let used = |name: &str| uses.get(name).copied().unwrap_or(0);
    let name = called(&norm);
    let weight = conv.input.get(1)?;
    if used(x) > 1 {
        return Some(Err(format!("{name}: others read what {} gives", called(&conv))));
    }
    if used(weight) > 1 {
        return Some(Err(format!("{name}: `{weight}` has {} uses, and a norm is of one", used(weight))));
    }
    let training = norm.attribute.iter().any(|a| a.name == "training_mode" && a.i != 0);
    if training || norm.output.iter().skip(1).any(|o| used(o) > 0) {
        return Some(Err(format!("{name}: it is in training mode")));
    }
    let eps = norm.attribute.iter().find(|a| a.name == "epsilon").map_or(1e-5, |a| f64::from(a.f));
    let part = |i: usize| norm.input.get(i).and_then(|n| m.tensor(n));
    let (Some(gain), Some(shift), Some(mean), Some(variance)) = (part(1), part(2), part(3), part(4)) else {
        return Some(Err(format!("{name}: its statistics are no stored floats")));
    };
    let Some(mut w) = m.tensor(weight) else {
        return Some(Err(format!("{name}: `{weight}` is no stored tensor of floats")));
    };
    let bias_name = conv.input.get(2).filter(|b| !b.is_empty());
    let channels = w.dims.first().copied().unwrap_or(0);
    let bias = match bias_name {
        Some(b) => m.tensor(b),
        None => Some(Tensor { dims: vec![channels], values: vec![0.0; channels] }),
    };
    let Some(mut bias) = bias else { return Some(Err(format!("{name}: the bias is no stored tensor of floats"))) };
    let all = [&gain, &shift, &mean, &variance, &bias];
    if channels == 0 || all.iter().any(|t| t.values.len() != channels) {
        return Some(Err(format!("{name}: {channels} channels meet other numbers of them")));
    }
    let scales: Vec<f64> = gain.values.iter().zip(&variance.values).map(|(g, v)| g / (v + eps).sqrt()).collect();
    if scales.iter().any(|s| !s.is_finite()) {
        return Some(Err(format!("{name}: a variance makes its scale infinite")));
    }
    let each = w.values.len() / channels;
    for (row, s) in w.values.chunks_mut(each.max(1)).zip(&scales) {
        row.iter_mut().for_each(|v| *v *= s);
    }
    for (((b, s), m), shift) in bias.values.iter_mut().zip(&scales).zip(&mean.values).zip(&shift.values) {
        *b = s * (*b - m) + shift;
    }
    let to = match bias_name {
        Some(b) if used(b) == 1 => b.clone(),
        _ => m.free_name(&format!("{weight}.bias")),
    };
    m.put(weight, &w);
    m.put(&to, &bias);
    let node = m.node_mut(producer)?;
    node.input.truncate(2);
    node.input.push(to);
    node.output = norm.output.iter().take(1).cloned().collect();
    let graph = m.proto.graph.as_mut()?;
    graph.node.remove(at);
    Some(Ok(format!("{name} is in {}", called(&conv))))
}
