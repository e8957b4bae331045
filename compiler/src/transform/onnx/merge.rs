//! Convolutions with nothing in between become one where that is exact (`merge::convs`).

use super::{ConvAttributes, OnnxModel, Tensor, called, ints, wherever};
use crate::ingest::onnx::proto::NodeProto;
use crate::transform::error::Result;
use crate::transform::merge::convs::{Conv, merge_convs};

pub(super) fn apply(m: &mut OnnxModel) -> Result<Vec<String>> {
    wherever(m, "merge-convs", "no two convolutions follow each other with nothing in between", merge)
}

fn is_conv(n: &NodeProto) -> bool {
    n.op_type == "Conv" && n.domain.is_empty()
}

/// The convolution of a node, or why it is none that can be merged.
fn read(m: &OnnxModel, n: &NodeProto) -> Result<Conv, String> {
    let name = called(n);
    let w =
        n.input.get(1).and_then(|w| m.tensor(w)).ok_or(format!("{name}: its weight is no stored tensor of floats"))?;
    let [out, input, kh, kw] = w.dims[..] else {
        return Err(format!(
            "{name}: it is of {} axes, and those of images are merged",
            w.dims.len().saturating_sub(2)
        ));
    };
    let a = ConvAttributes::of(n, 2);
    let even = |v: &[i64]| v.windows(2).all(|p| p[0] == p[1]);
    if a.is_padded_by_rule || !even(&a.pads) || !even(&a.strides) {
        return Err(format!("{name}: padding or stride differ by side"));
    }
    if a.groups != 1 || a.dilations.iter().any(|d| *d != 1) {
        return Err(format!("{name}: it has groups or dilated taps"));
    }
    let size = |v: &[i64]| v.first().and_then(|v| usize::try_from(*v).ok()).unwrap_or(0);
    let bias = match n.input.get(2).filter(|b| !b.is_empty()) {
        Some(b) => m.tensor(b).ok_or(format!("{name}: its bias is no stored tensor of floats"))?.values,
        None => vec![0.0; out],
    };
    if bias.len() != out {
        return Err(format!("{name}: {} biases for {out} channels", bias.len()));
    }
    Ok(Conv {
        out,
        input,
        kernel: [kh, kw],
        weight: w.values,
        bias,
        padding: size(&a.pads),
        stride: size(&a.strides).max(1),
    })
}

/// Merges node `at` into the convolution that it reads.
fn merge(m: &mut OnnxModel, at: usize) -> Option<Result<String, String>> {
    let second = m.nodes().get(at).filter(|n| is_conv(n))?.clone();
    let x = second.input.first()?;
    let before = m.nodes().iter().position(|n| n.output.first() == Some(x))?;
    let first = m.nodes().get(before).filter(|n| is_conv(n))?.clone();
    let names = format!("{} and {}", called(&first), called(&second));
    if m.uses().get(x).copied().unwrap_or(0) > 1 {
        return Some(Err(format!("{names}: others read what is between them")));
    }
    let merged = read(m, &first)
        .and_then(|a| Ok((a, read(m, &second)?)))
        .and_then(|(a, b)| merge_convs(&a, &b).map_err(|e| e.to_string()));
    let c = match merged {
        Ok(c) => c,
        Err(why) => return Some(Err(format!("{names}: {why}"))),
    };
    let (weight, bias) = (m.free_name(&format!("{}.merged", second.input[1])), m.free_name(&format!("{x}.bias")));
    let [kh, kw] = c.kernel;
    m.put(&weight, &Tensor { dims: vec![c.out, c.input, kh, kw], values: c.weight });
    m.put(&bias, &Tensor { dims: vec![c.out], values: c.bias });
    let graph = m.proto.graph.as_mut()?;
    let node = graph.node.get_mut(at)?;
    node.input = vec![first.input.first()?.clone(), weight, bias];
    node.attribute = vec![
        ints("kernel_shape", vec![kh as i64, kw as i64]),
        ints("pads", vec![c.padding as i64; 4]),
        ints("strides", vec![c.stride as i64; 2]),
    ];
    graph.node.remove(before);
    Some(Ok(format!("{names} are one of {kh}×{kw}")))
}
