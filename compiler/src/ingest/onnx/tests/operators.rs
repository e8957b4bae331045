//! Operators against results worked out by hand.

use super::kit::*;

fn one(
    inputs: Vec<crate::ingest::onnx::proto::ValueInfoProto>,
    nodes: Vec<crate::ingest::onnx::proto::NodeProto>,
) -> crate::ingest::onnx::proto::ModelProto {
    model(graph(inputs, vec![], nodes, "y"))
}

#[test]
fn running_sums_are_products_with_a_triangle() {
    let m = one(
        vec![value("x", INT64, "b n")],
        vec![node("axis = Constant", vec![int("value_int", 1)]), node("y = CumSum x axis", vec![int("exclusive", 1)])],
    );
    let y = run(&m, &[("x", array(&[2, 3], &[1., 1., 0., 1., 1., 1.]))]);
    close(&y, &[2, 3], &[0., 1., 2., 0., 1., 2.]);
}

#[test]
fn slices_step_and_run_backwards() {
    let m = one(
        vec![value("x", FLOAT, "n")],
        vec![
            node("start = Constant", vec![ints("value_ints", &[-1])]),
            node("end = Constant", vec![ints("value_ints", &[i64::MIN + 1])]),
            node("axis = Constant", vec![ints("value_ints", &[0])]),
            node("step = Constant", vec![ints("value_ints", &[-2])]),
            node("y = Slice x start end axis step", vec![]),
        ],
    );
    close(&run(&m, &[("x", array(&[5], &[0., 1., 2., 3., 4.]))]), &[3], &[4., 2., 0.]);
    close(&run(&m, &[("x", array(&[4], &[0., 1., 2., 3.]))]), &[2], &[3., 1.]);
}

/// [1, 2, 3, 4] padded by one, windows of 3, stride 2.
#[test]
fn convolutions_are_products_with_windows() {
    let g = graph(
        vec![value("x", FLOAT, "b 1 n")],
        vec![floats("w", &[1, 1, 3], &[1., 10., 100.]), floats("bias", &[1], &[0.5])],
        vec![node("y = Conv x w bias", vec![ints("pads", &[1, 1]), ints("strides", &[2])])],
        "y",
    );
    let y = run(&model(g), &[("x", array(&[1, 1, 4], &[1., 2., 3., 4.]))]);
    close(&y, &[1, 1, 2], &[210.5, 432.5]);
}

#[test]
fn einsum_multiplies_and_sums() {
    let equation = crate::ingest::onnx::proto::AttributeProto {
        name: "equation".into(),
        s: "bij,jk->bk".into(),
        r#type: 3,
        ..Default::default()
    };
    let m =
        one(vec![value("a", FLOAT, "b i 2"), value("c", FLOAT, "2 k")], vec![node("y = Einsum a c", vec![equation])]);
    let y = run(&m, &[("a", array(&[1, 2, 2], &[1., 2., 3., 4.])), ("c", array(&[2, 2], &[1., 0., 0., 1.]))]);
    close(&y, &[1, 2], &[4., 6.]);
}

/// Two rows of 3 values, two bits… four bits a value, blocks of 2: (q − z)·s.
#[test]
fn packed_weights_are_unpacked_by_row() {
    let g = graph(
        vec![value("x", FLOAT, "m 3")],
        vec![
            bytes("w", &[2, 2, 1], &[0x21, 0x03, 0xf0, 0x08]),
            floats("s", &[4], &[1., 2., 0.5, 4.]),
            bytes("z", &[2, 1], &[0x01, 0x80]),
        ],
        vec![node(
            "y = com.microsoft:MatMulNBits x w s z",
            vec![int("K", 3), int("N", 2), int("bits", 4), int("block_size", 2)],
        )],
        "y",
    );
    // Row 0: (1−1)·1, (2−1)·1, (3−0)·2. Row 1: (0−0)·½, (15−0)·½, (8−8)·4.
    let y = run(&model(g), &[("x", array(&[1, 3], &[1., 1., 1.]))]);
    close(&y, &[1, 2], &[7., 7.5]);
}

#[test]
fn stored_integers_are_dequantised_by_channel() {
    let g = graph(
        vec![value("x", FLOAT, "m 2")],
        vec![bytes("w", &[2, 2], &[1, 2, 3, 4]), floats("s", &[2], &[1., 10.]), bytes("z", &[2], &[1, 0])],
        vec![node("d = DequantizeLinear w s z", vec![int("axis", 1)]), node("y = MatMul x d", vec![])],
        "y",
    );
    close(&run(&model(g), &[("x", array(&[1, 2], &[1., 1.]))]), &[1, 2], &[2., 60.]);
}

#[test]
fn the_largest_come_in_order_and_ties_by_index() {
    let m = one(
        vec![value("x", FLOAT, "b 4")],
        vec![
            node("k = Constant", vec![ints("value_ints", &[3])]),
            node("v i = TopK x k", vec![]),
            node("f = Cast i", vec![int("to", 1)]),
            node("y = Concat v f", vec![int("axis", 0)]),
        ],
    );
    close(&run(&m, &[("x", array(&[1, 4], &[3., 1., 3., 2.]))]), &[2, 3], &[3., 3., 2., 0., 2., 3.]);
}

/// An infinite mask constant is held to a size that sums of two survive.
#[test]
fn infinite_constants_are_bounded() {
    let g = graph(
        vec![value("x", FLOAT, "2 2"), value("seen", BOOL, "2 2")],
        vec![floats("low", &[], &[f32::NEG_INFINITY]), floats("zero", &[], &[0.])],
        vec![
            node("m = Where seen zero low", vec![]),
            node("two = Add m m", vec![]),
            node("s = Add x two", vec![]),
            node("y = Softmax s", vec![]),
        ],
        "y",
    );
    let seen = array(&[2, 2], &[1., 0., 0., 0.]);
    let y = run(&model(g), &[("x", array(&[2, 2], &[0.; 4])), ("seen", seen)]);
    close(&y, &[2, 2], &[1., 0., 0.5, 0.5]);
}

/// With a past of two keys, one of them hidden by the length of its row.
#[test]
fn grouped_attention_joins_its_past() {
    let attributes = vec![int("num_heads", 2), int("kv_num_heads", 1), float("scale", 1.0)];
    let g = graph(
        vec![
            value("q", FLOAT, "b s 4"),
            value("k", FLOAT, "b s 2"),
            value("v", FLOAT, "b s 2"),
            value("past_k", FLOAT, "b 1 past 2"),
            value("past_v", FLOAT, "b 1 past 2"),
            value("last", 6, "b"),
        ],
        vec![],
        vec![node("y pk pv = com.microsoft:GroupQueryAttention q k v past_k past_v last", attributes)],
        "y pk pv",
    );
    let m = load(&model(g)).unwrap();
    let zeros = |s: &[usize]| array(s, &vec![0.; s.iter().product()]);
    let out = run_model(
        &m,
        &[
            ("q", zeros(&[1, 1, 4])),
            ("k", zeros(&[1, 1, 2])),
            ("v", array(&[1, 1, 2], &[5., 7.])),
            ("past_k", zeros(&[1, 1, 2, 2])),
            ("past_v", array(&[1, 1, 2, 2], &[1., 2., 3., 4.])),
            ("last", array(&[1], &[1.])),
        ],
    );
    close(&out[0].1, &[1, 1, 4], &[2., 3., 2., 3.]);
    close(&out[2].1, &[1, 1, 3, 2], &[1., 2., 3., 4., 5., 7.]);
}
