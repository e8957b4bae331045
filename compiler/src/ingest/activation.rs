//! Activation functions by the names that configurations use.

use super::builder::GraphBuilder;
use crate::graph::ValueId;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// The function between the projections of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x.
    Identity,
    /// x·sigmoid(x).
    Silu,
    /// x·Φ(x).
    GeluErf,
    /// The approximation of [`Activation::GeluErf`] by tanh.
    GeluTanh,
    /// x·sigmoid(1.702·x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    Relu2,
    /// min(max(x, 0), 6).
    Relu6,
    /// tanh(x).
    Tanh,
    /// 1/(1 + e⁻ˣ).
    Sigmoid,
}

impl Activation {
    /// The names that [`Activation::of_hf`] knows, for messages.
    pub const HF_NAMES: &str =
        "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, relu2, relu6, tanh, sigmoid and linear";

    /// The function of that name in transformers.
    pub fn of_hf(name: &str) -> Option<Activation> {
        Some(match name {
            "linear" => Activation::Identity,
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::GeluErf,
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Activation::GeluTanh
            }
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "relu2" => Activation::Relu2,
            "relu6" => Activation::Relu6,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            _ => return None,
        })
    }

    /// The function's value at `x`.
    pub fn apply(self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        match self {
            Activation::Identity => x,
            Activation::Silu => b.unary(UnaryOp::Silu, x),
            Activation::GeluErf => b.unary(UnaryOp::GeluErf, x),
            Activation::GeluTanh => b.unary(UnaryOp::GeluTanh, x),
            Activation::Relu => b.unary(UnaryOp::Relu, x),
            Activation::Tanh => b.unary(UnaryOp::Tanh, x),
            Activation::Sigmoid => b.unary(UnaryOp::Sigmoid, x),
            Activation::QuickGelu => {
                let slope = b.f32(1.702);
                let scaled = b.mul(x, slope);
                let gate = b.unary(UnaryOp::Sigmoid, scaled);
                b.mul(x, gate)
            }
            Activation::Relu2 => {
                let positive = b.unary(UnaryOp::Relu, x);
                b.mul(positive, positive)
            }
            Activation::Relu6 => {
                let positive = b.unary(UnaryOp::Relu, x);
                let six = b.f32(6.0);
                b.binary(BinaryOp::Min, positive, six)
            }
        }
    }
}
