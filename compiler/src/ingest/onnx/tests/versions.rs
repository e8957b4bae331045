//! Forms that operators had in older versions, from 7 on, against results worked out by hand.

use super::kit::*;
use crate::ingest::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, attribute_type};
use crate::reference::Array;

fn text(name: &str, v: &str) -> AttributeProto {
    AttributeProto { name: name.into(), s: v.to_owned().into(), r#type: attribute_type::STRING, ..Default::default() }
}
fn scales(v: &[f32]) -> AttributeProto {
    AttributeProto { name: "scales".into(), floats: v.to_vec(), r#type: attribute_type::FLOATS, ..Default::default() }
}

fn written_for(version: i64, shape: &str, constants: Vec<TensorProto>, nodes: Vec<NodeProto>) -> ModelProto {
    let mut m = model(graph(vec![value("x", FLOAT, shape)], constants, nodes, "y"));
    m.opset_import[0].version = version;
    m
}

/// The node `y = …` in that version, on `x`.
fn one(version: i64, shape: &[usize], x: &[f64], call: &str, attributes: Vec<AttributeProto>) -> Array {
    let declared: Vec<String> = shape.iter().map(usize::to_string).collect();
    let m = written_for(version, &declared.join(" "), vec![], vec![node(&format!("y = {call}"), attributes)]);
    run(&m, &[("x", array(shape, x))])
}

const SIX: [f64; 6] = [1., 2., 3., 4., 5., 6.];

#[test]
fn arguments_that_were_attributes() {
    let cut = vec![ints("starts", &[0, -2]), ints("ends", &[1, 1000]), ints("axes", &[0, 1])];
    close(&one(7, &[2, 3], &SIX, "Slice x", cut), &[1, 2], &[2., 3.]);
    let cut = vec![ints("starts", &[1]), ints("ends", &[2])];
    close(&one(9, &[2, 3], &SIX, "Slice x", cut), &[1, 3], &[4., 5., 6.]);
    let pad = vec![ints("pads", &[0, 1, 0, 2]), float("value", 9.0), text("mode", "constant")];
    close(&one(10, &[1, 2], &[1., 2.], "Pad x", pad), &[1, 5], &[9., 1., 2., 9., 9.]);
    let pad = vec![ints("pads", &[2, 1]), text("mode", "reflect")];
    close(&one(7, &[3], &[1., 2., 3.], "Pad x", pad), &[6], &[3., 2., 1., 2., 3., 2.]);
    close(&one(7, &[1, 3, 1], &[1., 2., 3.], "Squeeze x", vec![ints("axes", &[0, 2])]), &[3], &[1., 2., 3.]);
    close(&one(12, &[1, 3], &[1., 2., 3.], "Squeeze x", vec![ints("axes", &[-2])]), &[3], &[1., 2., 3.]);
    close(&one(8, &[3], &[1., 2., 3.], "Unsqueeze x", vec![ints("axes", &[0, 2])]), &[1, 3, 1], &[1., 2., 3.]);
    let sum = vec![ints("axes", &[1]), int("keepdims", 0)];
    close(&one(12, &[2, 3], &SIX, "ReduceSum x", sum), &[2], &[6., 15.]);
    close(&one(7, &[2, 3], &SIX, "ReduceMean x", vec![ints("axes", &[0])]), &[1, 3], &[2.5, 3.5, 4.5]);
    close(&one(7, &[2, 3], &SIX, "ReduceMax x", vec![]), &[1, 1], &[6.]);
    let clip = vec![float("min", 2.5), float("max", 4.0)];
    close(&one(7, &[2, 3], &SIX, "Clip x", clip), &[2, 3], &[2.5, 2.5, 3., 4., 4., 4.]);
    close(&one(7, &[3], &[1., 2., 3.], "Clip x", vec![float("max", 2.0)]), &[3], &[1., 2., 2.]);
    close(&one(7, &[2, 3], &SIX, "TopK x", vec![int("k", 2), int("axis", 1)]), &[2, 2], &[3., 2., 6., 5.]);
}

#[test]
fn splits_by_attribute_and_in_equal_parts() {
    let parts = |attributes| {
        let nodes = vec![node("a b = Split x", attributes), node("y = Concat b a", vec![int("axis", 1)])];
        written_for(7, "1 4", vec![], nodes)
    };
    let x = array(&[1, 4], &[1., 2., 3., 4.]);
    let uneven = parts(vec![int("axis", 1), ints("split", &[1, 3])]);
    close(&run(&uneven, &[("x", x.clone())]), &[1, 4], &[2., 3., 4., 1.]);
    let even = parts(vec![int("axis", 1)]);
    close(&run(&even, &[("x", x)]), &[1, 4], &[3., 4., 1., 2.]);
}

/// Up to version 12 all axes from `axis` on are one row, and `axis` is 1 by default.
#[test]
fn softmax_of_all_axes_behind_one() {
    let x = [0.0, 1.0, 2.0, 3.0, 0.5, 0.25, 0.0, -1.0].map(|v: f64| v.ln_1p().max(-3.0));
    let softmax = |rows: &[f64], len: usize| -> Vec<f64> {
        let row = |r: &[f64]| -> Vec<f64> {
            let sum: f64 = r.iter().map(|v| v.exp()).sum();
            r.iter().map(|v| v.exp() / sum).collect()
        };
        rows.chunks(len).flat_map(row).collect()
    };
    close(&one(7, &[2, 2, 2], &x, "Softmax x", vec![]), &[2, 2, 2], &softmax(&x, 4));
    close(&one(12, &[2, 2, 2], &x, "Softmax x", vec![int("axis", 0)]), &[2, 2, 2], &softmax(&x, 8));
    close(&one(11, &[2, 2, 2], &x, "Softmax x", vec![int("axis", -1)]), &[2, 2, 2], &softmax(&x, 2));
    let logs: Vec<f64> = softmax(&x, 4).iter().map(|p| p.ln()).collect();
    close(&one(7, &[2, 2, 2], &x, "LogSoftmax x", vec![]), &[2, 2, 2], &logs);
    close(&one(13, &[2, 2, 2], &x, "Softmax x", vec![]), &[2, 2, 2], &softmax(&x, 2));
}

#[test]
fn layers_for_training_are_those_for_inference() {
    let constants = vec![
        floats("gain", &[2], &[2.0, 1.0]),
        floats("bias", &[2], &[1.0, 0.0]),
        floats("mean", &[2], &[3.0, 4.0]),
        floats("variance", &[2], &[3.0, 0.0]),
    ];
    let norm = vec![float("epsilon", 1.0), float("momentum", 0.9), int("spatial", 1)];
    let nodes = vec![
        node("n = BatchNormalization x gain bias mean variance", norm),
        node("y mask = Dropout n", vec![float("ratio", 0.5)]),
    ];
    let m = written_for(7, "1 2 2", constants, nodes);
    let x = array(&[1, 2, 2], &[3., 5., 4., 6.]);
    close(&run(&m, &[("x", x)]), &[1, 2, 2], &[1., 3., 0., 2.]);
}

/// Places are multiples of `1/scale`, taken downwards.
#[test]
fn enlarged_by_factors() {
    let x = [1., 2., 3., 4.];
    let wide = [1., 1., 2., 2., 3., 3., 4., 4.];
    close(&one(7, &[1, 1, 2, 2], &x, "Upsample x", vec![scales(&[1., 1., 1., 2.])]), &[1, 1, 2, 4], &wide);
    let by = || vec![floats("by", &[4], &[1., 1., 1., 2.])];
    for (version, op) in [(9, "Upsample"), (10, "Resize")] {
        let m = written_for(version, "1 1 2 2", by(), vec![node(&format!("y = {op} x by"), vec![])]);
        close(&run(&m, &[("x", array(&[1, 1, 2, 2], &x))]), &[1, 1, 2, 4], &wide);
    }
    let linear = vec![node("y = Upsample x by", vec![text("mode", "linear")])];
    let y = run(&written_for(9, "1 1 2 2", by(), linear), &[("x", array(&[1, 1, 2, 2], &x))]);
    close(&y, &[1, 1, 2, 4], &[1., 1.5, 2., 2., 3., 3.5, 4., 4.]);
}

#[test]
fn reshapes_matrices_and_scatters() {
    let m = written_for(7, "2 3", vec![longs("to", &[2], &[0, -1])], vec![node("y = Reshape x to", vec![])]);
    close(&run(&m, &[("x", array(&[2, 3], &SIX))]), &[2, 3], &SIX);
    close(&one(7, &[2, 1, 3], &SIX, "Flatten x", vec![]), &[2, 3], &SIX);
    let constants = vec![floats("w", &[3, 2], &[1., 0., 0., 1., 1., 1.]), floats("c", &[1, 2], &[10., 20.])];
    let product = node("y = Gemm x w c", vec![float("alpha", 2.0), float("beta", 0.5)]);
    let m = written_for(7, "2 3", constants, vec![product]);
    close(&run(&m, &[("x", array(&[2, 3], &SIX))]), &[2, 2], &[13., 20., 25., 32.]);
    let constants = vec![longs("at", &[1, 2], &[1, 3]), floats("new", &[1, 2], &[8., 9.])];
    let m = written_for(9, "1 4", constants, vec![node("y = Scatter x at new", vec![int("axis", 1)])]);
    close(&run(&m, &[("x", array(&[1, 4], &[1., 2., 3., 4.]))]), &[1, 4], &[1., 8., 3., 9.]);
}
