//! The chains of convolutions and poolings in a file: stages whose output only the next one reads, with nothing but
//! pointwise functions in between.

use super::{ConvAttributes, OnnxModel, called};
use crate::chain::{Axis, Stage};
use crate::ingest::onnx::proto::NodeProto;
use std::collections::HashMap;

/// Functions of one element, and norms with the statistics given.
const POINTWISE: [&str; 13] = [
    "Relu",
    "LeakyRelu",
    "Clip",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Elu",
    "Selu",
    "Softplus",
    "Gelu",
    "Identity",
    "BatchNormalization",
];

/// The most that an extent, a number of channels or anything of a window may be: what a file states is not trusted.
const MOST: u64 = 1 << 16;

impl OnnxModel {
    /// The chains of the file, each of one stage at least, in the order of their first nodes. What does not take images of
    /// fixed extents is in none.
    pub fn chains(&self) -> Vec<Vec<Stage>> {
        let mut shapes: HashMap<&str, [u64; 3]> = HashMap::new();
        let uses = self.uses();
        for i in self.graph().into_iter().flat_map(|g| &g.input) {
            let dims = i.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).and_then(|t| t.shape.as_ref());
            let dims: Vec<Option<u64>> = dims
                .map(|s| s.dim.iter().map(|d| d.dim_value.and_then(|v| u64::try_from(v).ok())).collect())
                .unwrap_or_default();
            if let [_, Some(c), Some(h), Some(w)] = dims[..]
                && [c, h, w].iter().all(|d| *d <= MOST)
            {
                shapes.insert(&i.name, [c, h, w]);
            }
        }
        let mut chains: Vec<Vec<Stage>> = Vec::new();
        // The chain whose last stage gives a value that one node reads.
        let mut open: HashMap<&str, usize> = HashMap::new();
        for n in self.nodes() {
            let (Some(x), Some(y)) = (n.input.first(), n.output.first()) else { continue };
            let Some(shape) = shapes.get(x.as_str()).copied() else { continue };
            let alone = uses.get(x).copied().unwrap_or(0) == 1;
            let before = open.get(x.as_str()).copied().filter(|_| alone);
            if POINTWISE.contains(&n.op_type.as_str()) {
                shapes.insert(y, shape);
                if let Some(chain) = before {
                    open.insert(y, chain);
                }
                continue;
            }
            let Some(stage) = self.stage(n, shape).filter(|s| !s.places().contains(&0)) else { continue };
            let [rows, columns] = stage.places();
            shapes.insert(y, [stage.channels[1], rows, columns]);
            match before.and_then(|c| chains.get_mut(c).map(|chain| (c, chain))) {
                Some((c, chain)) => {
                    chain.push(stage);
                    open.insert(y, c);
                }
                None => {
                    chains.push(vec![stage]);
                    open.insert(y, chains.len() - 1);
                }
            }
        }
        chains
    }

    fn stage(&self, n: &NodeProto, [channels, height, width]: [u64; 3]) -> Option<Stage> {
        let is_conv = n.op_type == "Conv";
        let kernel: Vec<u64> = if is_conv {
            let w = n.input.get(1)?;
            let dims = &self.graph()?.initializer.iter().find(|t| t.name == *w)?.dims;
            dims.iter().map(|d| u64::try_from(*d).ok()).collect::<Option<_>>()?
        } else if matches!(n.op_type.as_str(), "MaxPool" | "AveragePool") {
            let kernel = &n.attribute.iter().find(|a| a.name == "kernel_shape")?.ints;
            let taps: Vec<u64> = kernel.iter().map(|d| u64::try_from(*d).ok()).collect::<Option<_>>()?;
            [&[channels, 1][..], &taps].concat()
        } else {
            return None;
        };
        let [out, per_group, kh, kw] = kernel[..] else { return None };
        if kernel.iter().any(|d| *d > MOST) {
            return None;
        }
        let a = ConvAttributes::of(n, 2);
        let is_ceiled = n.attribute.iter().any(|a| a.name == "ceil_mode" && a.i != 0);
        if a.is_padded_by_rule || is_ceiled {
            return None;
        }
        let groups = if is_conv { u64::try_from(a.groups).ok()? } else { channels };
        let number = |v: &[i64], i: usize| v.get(i).and_then(|v| u64::try_from(*v).ok()).filter(|v| *v <= MOST);
        let axis = |i: usize, extent: u64, taps: u64| {
            let padding = [number(&a.pads, i)?, number(&a.pads, i + 2)?];
            let (stride, dilation) = (number(&a.strides, i)?, number(&a.dilations, i)?);
            let sound = extent <= MOST && taps > 0 && stride > 0 && dilation > 0;
            sound.then_some(Axis { extent, taps, stride, dilation, padding })
        };
        if groups == 0 || channels % groups != 0 || out % groups != 0 || per_group * groups != channels {
            return None;
        }
        Some(Stage {
            name: called(n),
            channels: [channels, out],
            groups,
            axes: [axis(0, height, kh)?, axis(1, width, kw)?],
            weights: if is_conv { kernel.iter().fold(1, |n: u64, d| n.saturating_mul(*d)) } else { 0 },
        })
    }
}
