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
