//! Shape arithmetic leaves nothing to be computed at run time, and names of sizes are unified.

use super::kit::*;
use crate::graph::Op;

/// The usual chain: the batch and length of an input by Shape, Gather and Concat, a reshape to heads, and back.
#[test]
fn shape_arithmetic_folds_to_symbolic_extents() {
    let g = graph(
        vec![value("x", FLOAT, "batch seq 6")],
        vec![longs("zero", &[], &[0]), longs("one", &[], &[1]), longs("axis", &[1], &[0])],
        vec![
            node("s = Shape x", vec![]),
            node("b = Gather s zero", vec![int("axis", 0)]),
            node("t = Gather s one", vec![int("axis", 0)]),
            node("b1 = Unsqueeze b axis", vec![]),
            node("t1 = Unsqueeze t axis", vec![]),
            node("h = Constant", vec![ints("value_ints", &[2, 3])]),
            node("to = Concat b1 t1 h", vec![int("axis", 0)]),
            node("y = Reshape x to", vec![]),
            node("z = Transpose y", vec![ints("perm", &[0, 2, 1, 3])]),
        ],
        "z",
    );
    let m = load(&model(g)).unwrap();
    let graph = &m.graph("forward").unwrap().graph;
    let ops: Vec<&Op> = graph.order().into_iter().map(|v| graph.op(v)).collect();
    assert!(matches!(ops[..], [Op::Input(_), Op::Reshape(_), Op::Transpose(_)]), "{ops:?}");
    let x: Vec<f64> = (0..12).map(f64::from).collect();
    let z = run_model(&m, &[("x", array(&[1, 2, 6], &x))]).remove(0).1;
    close(&z, &[1, 2, 2, 3], &[0., 1., 2., 6., 7., 8., 3., 4., 5., 9., 10., 11.]);
}

/// Two names for one extent, met in an addition, become one size, bound by the first input.
#[test]
fn equal_extents_with_unlike_names_are_unified() {
    let g = graph(
        vec![value("a", FLOAT, "s10 s21"), value("b", FLOAT, "s86 s12")],
        vec![],
        vec![node("y = Add a b", vec![])],
        "y",
    );
    let m = load(&model(g)).unwrap();
    let names: Vec<&str> = m.tables.sizes.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["s10", "s21"]);
}

/// A table sliced to the length of the input bounds that length by its own.
#[test]
fn a_table_bounds_the_size_that_cuts_it() {
    let g = graph(
        vec![value("x", FLOAT, "n 2")],
        vec![floats("table", &[3, 2], &[1., 2., 3., 4., 5., 6.]), longs("zero", &[1], &[0])],
        vec![
            node("n = Shape x", vec![int("start", 0), int("end", 1)]),
            node("rows = Slice table zero n zero", vec![]),
            node("y = Add x rows", vec![]),
        ],
        "y",
    );
    let m = load(&model(g)).unwrap();
    assert_eq!((m.tables.sizes[0].name.as_str(), m.tables.sizes[0].max), ("n_n", Some(3)));
    let y = run_model(&m, &[("x", array(&[2, 2], &[0.; 4]))]).remove(0).1;
    close(&y, &[2, 2], &[1., 2., 3., 4.]);
}

/// The mask code of the dynamo exporter: a gather at counted positions is the mask itself, and its sizes are those of
/// the ids.
#[test]
fn a_gather_at_counted_positions_is_a_view() {
    let g = graph(
        vec![value("ids", INT64, "s10 s21"), value("mask", INT64, "s86 s12")],
        vec![
            longs("zero", &[], &[0]),
            longs("one", &[], &[1]),
            longs("column", &[2], &[-1, 1]),
            longs("last", &[1], &[-1]),
        ],
        vec![
            node("s = Shape ids", vec![]),
            node("b = Gather s zero", vec![]),
            node("t = Gather s one", vec![]),
            node("rows = Range zero b one", vec![]),
            node("tokens = Range zero t one", vec![]),
            node("rows1 = Reshape rows column", vec![]),
            node("both = Max rows1 tokens", vec![]),
            node("shape = Shape both", vec![]),
            node("r = Expand rows1 shape", vec![]),
            node("r1 = Unsqueeze r last", vec![]),
            node("c = Expand tokens shape", vec![]),
            node("c1 = Unsqueeze c last", vec![]),
            node("at = Concat r1 c1", vec![int("axis", -1)]),
            node("y = GatherND mask at", vec![]),
        ],
        "y",
    );
    let m = load(&model(g)).unwrap();
    let graph = &m.graph("forward").unwrap().graph;
    assert!(graph.order().into_iter().all(|v| !matches!(graph.op(v), Op::Gather)));
    assert_eq!(m.tables.sizes.len(), 2);
    let mask = array(&[2, 2], &[1., 0., 1., 1.]);
    let y = run_model(&m, &[("ids", array(&[2, 2], &[0.; 4])), ("mask", mask.clone())]).remove(0).1;
    assert_eq!(y, mask);
}

/// ScatterND over a box is a selection, over everything the update itself.
#[test]
fn a_scatter_at_counted_positions_is_a_selection() {
    let g = graph(
        vec![value("x", FLOAT, "n 4"), value("u", FLOAT, "n 2")],
        vec![
            longs("zero", &[], &[0]),
            longs("one", &[], &[1]),
            longs("cols", &[1, 2], &[1, 2]),
            longs("column", &[2], &[-1, 1]),
            longs("last", &[1], &[-1]),
            longs("axis", &[1], &[0]),
        ],
        vec![
            node("s = Shape u", vec![]),
            node("n = Gather s zero", vec![]),
            node("rows = Range zero n one", vec![]),
            node("rows1 = Reshape rows column", vec![]),
            node("r = Expand rows1 s", vec![]),
            node("r1 = Unsqueeze r last", vec![]),
            node("c = Expand cols s", vec![]),
            node("c1 = Unsqueeze c last", vec![]),
            node("at = Concat r1 c1", vec![int("axis", -1)]),
            node("y = ScatterND x at u", vec![]),
        ],
        "y",
    );
    let x: Vec<f64> = (0..8).map(f64::from).collect();
    let y = run(&model(g), &[("x", array(&[2, 4], &x)), ("u", array(&[2, 2], &[10., 11., 12., 13.]))]);
    close(&y, &[2, 4], &[0., 10., 11., 3., 4., 12., 13., 7.]);
}

/// A branch is taken by a condition on extents, a loop with a number of trips is put in place.
#[test]
fn foldable_control_flow_is_put_in_place() {
    let branch = |op: &str| graph(vec![], vec![], vec![node(&format!("r = {op} x"), vec![])], "r");
    let body = graph(
        vec![value("i", INT64, ""), value("go", BOOL, ""), value("acc", FLOAT, "3")],
        vec![],
        vec![node("next = Add acc x", vec![]), node("on = Identity go", vec![]), node("row = Identity next", vec![])],
        "on next row",
    );
    let g = graph(
        vec![value("x", FLOAT, "3")],
        vec![longs("two", &[], &[2]), longs("three", &[], &[3])],
        vec![
            node("n = Size x", vec![]),
            node("is = Equal n three", vec![]),
            node(
                "y = If is",
                vec![graph_attribute("then_branch", branch("Neg")), graph_attribute("else_branch", branch("Abs"))],
            ),
            node("sum rows = Loop two _ y", vec![graph_attribute("body", body)]),
        ],
        "sum rows",
    );
    let m = load(&model(g)).unwrap();
    let out = run_model(&m, &[("x", array(&[3], &[1., 2., 3.]))]);
    close(&out[0].1, &[3], &[1., 2., 3.]);
    close(&out[1].1, &[2, 3], &[0., 0., 0., 1., 2., 3.]);
}

/// A function of the model is put in place, its attributes taken from the call.
#[test]
fn functions_are_put_in_place() {
    let mut leaky = node("r = LeakyRelu a", vec![]);
    leaky.attribute.push(AttributeProto { name: "alpha".into(), ref_attr_name: "slope".into(), ..float("", 0.0) });
    let f = FunctionProto {
        name: "Twice".into(),
        domain: "local".into(),
        input: vec!["p".into()],
        output: vec!["r".into()],
        node: vec![node("a = Add p p", vec![]), leaky],
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 18 }],
        ..Default::default()
    };
    let call = node("y = local:Twice x", vec![float("slope", 0.5)]);
    let mut m = model(graph(vec![value("x", FLOAT, "2")], vec![], vec![call], "y"));
    m.functions.push(f);
    close(&run(&m, &[("x", array(&[2], &[-1., 3.]))]), &[2], &[-1., 6.]);
}

use crate::ingest::onnx::proto::{AttributeProto, FunctionProto, OperatorSetIdProto};
