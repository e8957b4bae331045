//! Quantised weights: how they are kept, and that products with them are right.

use super::kit::*;
use crate::ingest::onnx::proto::*;
use frit_kernels::dtype::Storage;

const K: usize = 64;
/// So many that the elements are not followed one by one.
const N: usize = 40;

fn signed(name: &str, dims: &[i64], v: &[u8]) -> TensorProto {
    TensorProto { data_type: 3, ..bytes(name, dims, v) }
}

fn scales() -> Vec<f32> {
    (0..N).map(|n| (n % 7 + 1) as f32 / 10.0).collect()
}

fn zeros() -> Vec<f32> {
    (0..N).map(|n| (n * 13 % 200) as f32).collect()
}

fn quant(i: usize) -> u8 {
    (i * 37 % 251) as u8
}

fn left() -> Vec<f64> {
    (0..2 * K).map(|i| (i % 7) as f64 / 4.0 - 0.5).collect()
}

/// The product of [`left`] and what `w` says of row k and column n, and the storage of the matrix.
fn check(initializers: Vec<TensorProto>, nodes: Vec<NodeProto>, w: impl Fn(usize, usize) -> f64) -> Storage {
    let m = load(&model(graph(vec![value("x", FLOAT, "m 64")], initializers, nodes, "y"))).unwrap();
    let x = left();
    let got = run_model(&m, &[("x", array(&[2, K], &x))]).remove(0).1;
    let at = |r: usize, n: usize| (0..K).map(|k| x[r * K + k] * w(k, n)).sum::<f64>();
    let want: Vec<f64> = (0..2).flat_map(|r| (0..N).map(move |n| (r, n))).map(|(r, n)| at(r, n)).collect();
    assert_eq!(got.shape, [2, N]);
    for (g, w) in got.data.iter().zip(&want) {
        assert!((g - w).abs() <= 1e-5 * (1.0 + w.abs()), "{g}, {w} expected");
    }
    let matrix = m.tables.weights.iter().max_by_key(|w| w.shape.iter().filter_map(|d| d.as_const()).product::<i64>());
    matrix.unwrap().storage
}

fn matrix() -> Vec<u8> {
    (0..K * N).map(quant).collect()
}

#[test]
fn a_scale_for_each_column_is_kept_with_its_column() {
    let scales = scales();
    let stored = check(
        vec![signed("q", &[64, 40], &matrix()), floats("s", &[40], &scales)],
        vec![node("w = DequantizeLinear q s", vec![int("axis", 1)]), node("y = MatMul x w", vec![])],
        |k, n| f64::from(quant(k * N + n) as i8) * f64::from(scales[n]),
    );
    assert_eq!(stored, Storage::Q8F);
}

#[test]
fn scales_that_are_halves_without_zero_points_take_less() {
    let stored = check(
        vec![bytes("q", &[64, 40], &matrix()), floats("s", &[], &[0.25]), bytes("z", &[], &[128])],
        vec![node("w = DequantizeLinear q s z", vec![]), node("y = MatMul x w", vec![])],
        |k, n| (f64::from(quant(k * N + n)) - 128.0) * 0.25,
    );
    assert_eq!(stored, Storage::Q8_0);
}

#[test]
fn a_cast_a_difference_and_a_product_are_a_dequantisation() {
    let scales = scales();
    let stored = check(
        vec![bytes("q", &[64, 40], &matrix()), floats("z", &[40], &zeros()), floats("s", &[1, 40], &scales)],
        vec![
            node("f = Cast q", vec![int("to", i64::from(FLOAT))]),
            node("d = Sub f z", vec![]),
            node("w = Mul d s", vec![]),
            node("y = MatMul x w", vec![]),
        ],
        |k, n| (f64::from(quant(k * N + n)) - f64::from(zeros()[n])) * f64::from(scales[n]),
    );
    assert_eq!(stored, Storage::Q8F);
}

#[test]
fn rows_of_a_transposed_product_are_kept_as_they_lie() {
    let scales = scales();
    let stored = check(
        vec![signed("q", &[40, 64], &matrix()), floats("s", &[40], &scales)],
        vec![node("w = DequantizeLinear q s", vec![int("axis", 0)]), node("y = Gemm x w", vec![int("transB", 1)])],
        |k, n| f64::from(quant(n * K + k) as i8) * f64::from(scales[n]),
    );
    assert_eq!(stored, Storage::Q8F);
}

/// 4-bit weights in two blocks of 32 a row; what is stored for three kinds of scales and zero points.
#[test]
fn blocks_of_4_bits_stay_blocks_of_4_bits() {
    let packed: Vec<u8> = (0..N * K / 2).map(quant).collect();
    let attributes = || vec![int("K", 64), int("N", 40), int("bits", 4), int("block_size", 32)];
    let nibble = |k: usize, n: usize| f64::from(packed[n * 32 + k / 2] >> (k % 2 * 4) & 15);
    let with = |odd: f32| -> Vec<f32> { (1..=2 * N).map(|i| i as f32 / 8.0 + odd).collect() };
    let zeros: Vec<u8> = (0..N).map(|n| (n * 53 + 0x73) as u8).collect();
    for (odd, zeroed, storage) in [
        (0.0, false, Storage::Q4_0),
        (0.0, true, Storage::Q4_1),
        (0.01, true, Storage::Q4F),
        (0.01, false, Storage::Q4F),
    ] {
        let s = with(odd);
        let zero = |k: usize, n: usize| {
            if zeroed { f64::from(zeros[n] >> (k / 32 * 4) & 15) } else { 8.0 }
        };
        let call = if zeroed { "y = com.microsoft:MatMulNBits x q s z" } else { "y = com.microsoft:MatMulNBits x q s" };
        let stored = check(
            vec![bytes("q", &[40, 2, 16], &packed), floats("s", &[80], &s), bytes("z", &[40], &zeros)],
            vec![node(call, attributes())],
            |k, n| (nibble(k, n) - zero(k, n)) * f64::from(s[n * 2 + k / 32]),
        );
        assert_eq!(stored, storage, "{odd} {zeroed}");
    }
}

#[test]
fn scales_of_fewer_than_32_elements_make_floats() {
    let scales: Vec<f32> = (0..4 * N).map(|i| 0.1 + i as f32).collect();
    let stored = check(
        vec![signed("q", &[64, 40], &matrix()), floats("s", &[4, 40], &scales)],
        vec![
            node("w = DequantizeLinear q s", vec![int("axis", 0), int("block_size", 16)]),
            node("y = MatMul x w", vec![]),
        ],
        |k, n| f64::from(quant(k * N + n) as i8) * f64::from(scales[k / 16 * N + n]),
    );
    assert_eq!(stored, Storage::F32);
}

/// Quantises by scale and zero point, held to a byte.
fn to_byte(v: f64, scale: f64, zero: f64) -> f64 {
    ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0)
}

fn byte_model(initializers: Vec<TensorProto>, nodes: Vec<NodeProto>, shape: &str) -> ModelProto {
    model(graph(vec![value("x", 2, shape)], initializers, nodes, "y"))
}

fn com(text: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    let (out, call) = text.split_once(" = ").unwrap();
    node(&format!("{out} = com.microsoft:{call}"), attributes)
}

#[test]
fn operators_on_quantised_values_are_their_float_forms() {
    let scale = |name: &str, v: f32| floats(name, &[], &[v]);
    let constants = vec![
        scale("s", 0.5),
        bytes("z", &[], &[10]),
        scale("t", 0.25),
        bytes("u", &[], &[3]),
        bytes("b", &[4], &[0, 9, 100, 255]),
    ];
    let x = [0.0, 7.0, 10.0, 200.0];
    let real = |q: f64| (q - 10.0) * 0.5;
    let other = [0.0, 9.0, 100.0, 255.0].map(|q: f64| (q - 3.0) * 0.25);
    let run_one = |text: &str, attributes| {
        run(&byte_model(constants.clone(), vec![com(text, attributes)], "4"), &[("x", array(&[4], &x))])
    };
    let want = |f: &dyn Fn(usize) -> f64| (0..4).map(|i| to_byte(f(i), 0.25, 3.0)).collect::<Vec<f64>>();
    close(&run_one("y = QLinearAdd x s z b t u t u", vec![]), &[4], &want(&|i| real(x[i]) + other[i]));
    close(&run_one("y = QLinearMul x s z b t u t u", vec![]), &[4], &want(&|i| real(x[i]) * other[i]));
    let sigmoid = want(&|i| 1.0 / (1.0 + (-real(x[i])).exp()));
    close(&run_one("y = QLinearSigmoid x s z t u", vec![]), &[4], &sigmoid);
    let leaky = want(&|i| if real(x[i]) < 0.0 { 0.5 * real(x[i]) } else { real(x[i]) });
    close(&run_one("y = QLinearLeakyRelu x s z t u", vec![float("alpha", 0.5)]), &[4], &leaky);
    let joined: Vec<f64> = want(&|i| real(x[i])).into_iter().chain([0.0, 9.0, 100.0, 255.0]).collect();
    close(&run_one("y = QLinearConcat t u x s z b t u", vec![int("axis", 0)]), &[8], &joined);
}

#[test]
fn convolutions_of_bytes_pad_with_their_zero_point() {
    let constants = vec![
        floats("s", &[], &[0.5]),
        bytes("z", &[], &[2]),
        bytes("w", &[2, 1, 3], &[5, 6, 9, 5, 1, 5]),
        floats("r", &[2], &[0.25, 0.5]),
        bytes("v", &[2], &[5, 5]),
        floats("t", &[], &[0.125]),
        bytes("u", &[], &[100]),
        TensorProto { data_type: 6, ..longs("c", &[2], &[]) },
    ];
    let mut constants = constants;
    if let Some(bias) = constants.last_mut() {
        bias.int64_data.clear();
        bias.int32_data = vec![8, -4];
    }
    let call = node("y = QLinearConv x s z w r v t u c", vec![ints("pads", &[1, 1])]);
    let x = [4.0, 0.0, 7.0, 2.0];
    let got = run(&byte_model(constants.clone(), vec![call], "1 1 4"), &[("x", array(&[1, 1, 4], &x))]);
    let real = |i: i64| if (0..4).contains(&i) { (x[i as usize] - 2.0) * 0.5 } else { 0.0 };
    let taps = [[0.0, 1.0, 4.0], [0.0, -4.0, 0.0]];
    let want: Vec<f64> = (0..8)
        .map(|k| {
            let (channel, at) = (k / 4, (k % 4) as i64);
            let (scale, bias) = ([0.25, 0.5][channel], [8.0, -4.0][channel]);
            let sum: f64 = (0..3).map(|j| real(at + j as i64 - 1) * taps[channel][j] * scale).sum();
            to_byte(sum + bias * 0.5 * scale, 0.125, 100.0)
        })
        .collect();
    close(&got, &[1, 2, 4], &want);
    let call = node("y = ConvInteger x w z", vec![ints("pads", &[1, 1])]);
    let got = run(&byte_model(constants, vec![call], "1 1 4"), &[("x", array(&[1, 1, 4], &x))]);
    let own = |i: i64| if (0..4).contains(&i) { x[i as usize] - 2.0 } else { 0.0 };
    let w = [[5.0, 6.0, 9.0], [5.0, 1.0, 5.0]];
    let sum = |c: usize, at: i64| (0..3).map(|j| own(at + j as i64 - 1) * w[c][j]).sum::<f64>();
    let want: Vec<f64> = (0..8).map(|k| sum(k / 4, (k % 4) as i64)).collect();
    close(&got, &[1, 2, 4], &want);
}

/// Rows of a table of 4-bit integers, in blocks of 16 along a row, each with a scale and a zero point.
#[test]
fn rows_of_a_quantised_table_are_gathered() {
    let packed: Vec<u8> = (0..48u8).map(|i| i.wrapping_mul(37).wrapping_add(11)).collect();
    let (scale, zero) = ([0.5, 0.25, 2.0, 1.0, 0.125, 4.0], [3u8, 8, 0, 15, 7, 1]);
    let narrow = |name: &str, dims: &[i64], v: &[u8]| TensorProto { data_type: 21, ..bytes(name, dims, v) };
    let constants = vec![
        narrow("q", &[3, 32], &packed),
        floats("s", &[3, 2], &scale.map(|v| v as f32)),
        narrow("z", &[3, 2], &[0, 1, 2].map(|i| zero[2 * i] | zero[2 * i + 1] << 4)),
    ];
    let call = com("y = GatherBlockQuantized q x s z", vec![int("block_size", 16)]);
    let m = model(graph(vec![value("x", 7, "2")], constants, vec![call], "y"));
    let want: Vec<f64> = [2usize, 0]
        .into_iter()
        .flat_map(|row| (0..32).map(move |i| (row, i)))
        .map(|(row, i)| {
            let (at, block) = (row * 32 + i, row * 2 + i / 16);
            let q = packed[at / 2] >> (at % 2 * 4) & 15;
            (f64::from(q) - f64::from(zero[block])) * scale[block]
        })
        .collect();
    close(&run(&m, &[("x", array(&[2], &[2.0, 0.0]))]), &[2, 32], &want);
}
