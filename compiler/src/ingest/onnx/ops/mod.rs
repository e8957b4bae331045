//! The operators: one table, and one file for each kind of them.
//!
//! An axis taken from a model goes through [`super::node::axis`] before it indexes extents.
#![allow(
    clippy::indexing_slicing,
    reason = "axes are checked where they are read, numbers of axes where they are named"
)]

mod activation;
mod attention;
mod contrib;
mod conv;
mod einsum;
mod elementwise;
mod index;
mod linear;
mod norm;
mod pad;
mod qlinear;
mod quant;
mod reduce;
mod resize;
mod rotary;
mod scatter;
mod shape;
mod slice;
mod top;

use super::context::Cx;
use super::error::Res;
use super::node::Node;
use super::value::Val;
pub use shape::stack;

/// Imports a call.
pub type Import = fn(&mut Cx<'_, '_, '_>, &Node<'_>) -> Res<Vec<Val>>;

/// An operator that is imported.
pub struct OpDef {
    /// Its domain, empty for the standard one.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Attributes that are read, or that have no influence on results.
    pub attributes: &'static [&'static str],
    /// How.
    pub import: Import,
}

const STANDARD: &str = "";
const MICROSOFT: &str = "com.microsoft";

const fn op(name: &'static str, attributes: &'static [&'static str], import: Import) -> OpDef {
    OpDef { domain: STANDARD, name, attributes, import }
}
const fn ms(name: &'static str, attributes: &'static [&'static str], import: Import) -> OpDef {
    OpDef { domain: MICROSOFT, name, attributes, import }
}

const CONV: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
const QCONV: &[&str] = &["auto_pad", "channels_last", "dilations", "group", "kernel_shape", "pads", "strides"];
const QPOOL: &[&str] =
    &["auto_pad", "ceil_mode", "channels_last", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"];
const RESIZE: &[&str] = &[
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
    "scales",
];
const POOL: &[&str] =
    &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "storage_order", "strides"];
const REDUCE: &[&str] = &["axes", "keepdims", "noop_with_empty_axes"];
const ARG: &[&str] = &["axis", "keepdims", "select_last_index"];

/// Every operator that is imported.
pub static OPS: &[OpDef] = &[
    op("Abs", &[], elementwise::unary),
    op("Acosh", &[], activation::composed),
    op("Add", &[], elementwise::binary),
    op("And", &[], elementwise::binary),
    op("ArgMax", ARG, reduce::arg),
    op("ArgMin", ARG, reduce::arg),
    op("Asinh", &[], activation::composed),
    op("Atanh", &[], activation::composed),
    op(
        "Attention",
        &[
            "is_causal",
            "kv_num_heads",
            "left_window_size",
            "q_num_heads",
            "qk_matmul_output_mode",
            "right_window_size",
            "scale",
            "softcap",
            "softmax_precision",
        ],
        attention::standard,
    ),
    op("AveragePool", POOL, conv::pool),
    op("BatchNormalization", &["epsilon", "momentum", "spatial", "training_mode"], norm::batch),
    op("Cast", &["round_mode", "saturate", "to"], elementwise::cast),
    op("CastLike", &["round_mode", "saturate"], elementwise::cast),
    op("Ceil", &[], elementwise::unary),
    op("Celu", &["alpha"], activation::composed),
    op("Clip", &["max", "min"], elementwise::clip),
    op("Concat", &["axis"], shape::concat),
    op(
        "Constant",
        &[
            "sparse_value",
            "value",
            "value_float",
            "value_floats",
            "value_int",
            "value_ints",
            "value_string",
            "value_strings",
        ],
        shape::constant,
    ),
    op("ConstantOfShape", &["value"], shape::constant_of_shape),
    op("Conv", CONV, conv::conv),
    op("ConvInteger", CONV, qlinear::convolution_of_integers),
    op("Cos", &[], elementwise::unary),
    op("Cosh", &[], activation::composed),
    op("CumSum", &["exclusive", "reverse"], reduce::cumulative_sum),
    op("DepthToSpace", &["blocksize", "mode"], shape::depth_to_space),
    op("DequantizeLinear", &["axis", "block_size", "output_dtype"], quant::dequantize),
    op("Div", &[], elementwise::binary),
    op("Dropout", &["ratio", "seed"], elementwise::identity),
    op("DynamicQuantizeLinear", &[], quant::dynamic_quantize),
    op("Einsum", &["equation"], einsum::einsum),
    op("Elu", &["alpha"], activation::composed),
    op("Equal", &[], elementwise::binary),
    op("Erf", &[], elementwise::unary),
    op("Exp", &[], elementwise::unary),
    op("Expand", &[], shape::expand),
    op("EyeLike", &["dtype", "k"], index::eye_like),
    op("Flatten", &["axis"], shape::flatten),
    op("Floor", &[], elementwise::unary),
    op("Gather", &["axis"], index::gather),
    op("GatherElements", &["axis"], index::gather_elements),
    op("GatherND", &["batch_dims"], index::gather_nd),
    op("Gelu", &["approximate"], activation::gelu),
    op("Gemm", &["alpha", "beta", "broadcast", "transA", "transB"], linear::gemm),
    op("GlobalAveragePool", &[], conv::global_pool),
    op("GlobalMaxPool", &[], conv::global_pool),
    op("Greater", &[], elementwise::binary),
    op("GreaterOrEqual", &[], elementwise::binary),
    op("GroupNormalization", &["epsilon", "num_groups", "stash_type"], norm::group),
    op("HardSigmoid", &["alpha", "beta"], activation::composed),
    op("HardSwish", &[], activation::composed),
    op("Identity", &[], elementwise::identity),
    op("If", &["else_branch", "then_branch"], elementwise::identity),
    op("InstanceNormalization", &["epsilon"], norm::instance),
    op("IsNaN", &[], elementwise::is_nan),
    op("LayerNormalization", &["axis", "epsilon", "stash_type"], norm::layer),
    op("LeakyRelu", &["alpha"], activation::composed),
    op("Less", &[], elementwise::binary),
    op("LessOrEqual", &[], elementwise::binary),
    op("Log", &[], elementwise::unary),
    op("LogSoftmax", &["axis"], reduce::softmax),
    op("Loop", &["body"], elementwise::identity),
    op("LpNormalization", &["axis", "p"], norm::lp),
    op("MatMul", &[], linear::matmul),
    op("MatMulInteger", &[], quant::matmul_integer),
    op("Max", &[], elementwise::variadic),
    op("MaxPool", POOL, conv::pool),
    op("Mean", &[], elementwise::variadic),
    op("Min", &[], elementwise::variadic),
    op("Mish", &[], activation::composed),
    op("Mod", &["fmod"], elementwise::modulo),
    op("Mul", &[], elementwise::binary),
    op("Neg", &[], elementwise::unary),
    op("Not", &[], elementwise::unary),
    op("OneHot", &["axis"], index::one_hot),
    op("Or", &[], elementwise::binary),
    op("PRelu", &[], activation::composed),
    op("Pad", &["mode", "pads", "value"], pad::pad),
    op("Pow", &[], elementwise::power),
    op("QLinearConv", CONV, qlinear::convolution),
    op("QLinearMatMul", &[], quant::qlinear_matmul),
    op("QuantizeLinear", &["axis", "block_size", "output_dtype", "precision", "saturate"], quant::quantize),
    op("RMSNormalization", &["axis", "epsilon", "stash_type"], norm::rms),
    op("Range", &["stash_type"], shape::range),
    op("Reciprocal", &[], elementwise::unary),
    op("ReduceL1", REDUCE, reduce::reduce),
    op("ReduceL2", REDUCE, reduce::reduce),
    op("ReduceLogSum", REDUCE, reduce::reduce),
    op("ReduceLogSumExp", REDUCE, reduce::reduce),
    op("ReduceMax", REDUCE, reduce::reduce),
    op("ReduceMean", REDUCE, reduce::reduce),
    op("ReduceMin", REDUCE, reduce::reduce),
    op("ReduceProd", REDUCE, reduce::reduce),
    op("ReduceSum", REDUCE, reduce::reduce),
    op("ReduceSumSquare", REDUCE, reduce::reduce),
    op("Relu", &[], elementwise::unary),
    op("Reshape", &["allowzero", "shape"], shape::reshape),
    op("Resize", RESIZE, resize::resize),
    op("RotaryEmbedding", &["interleaved", "num_heads", "rotary_embedding_dim"], rotary::standard),
    op("Round", &[], elementwise::unary),
    op("Scan", &["body"], elementwise::identity),
    op("Scatter", &["axis"], scatter::scatter_elements),
    op("ScatterND", &["reduction"], scatter::scatter_nd),
    op("ScatterElements", &["axis", "reduction"], scatter::scatter_elements),
    op("Selu", &["alpha", "gamma"], activation::composed),
    op("Shape", &["end", "start"], shape::shape),
    op("Shrink", &["bias", "lambd"], activation::composed),
    op("Sigmoid", &[], elementwise::unary),
    op("Sign", &[], elementwise::unary),
    op("Sin", &[], elementwise::unary),
    op("Sinh", &[], activation::composed),
    op("Size", &[], shape::size),
    op("Slice", &["axes", "ends", "starts"], slice::slice),
    op("Softmax", &["axis"], reduce::softmax),
    op("Softplus", &[], activation::composed),
    op("Softsign", &[], activation::composed),
    op("SpaceToDepth", &["blocksize"], shape::space_to_depth),
    op("Split", &["axis", "num_outputs", "split"], slice::split),
    op("Sqrt", &[], elementwise::unary),
    op("Squeeze", &["axes"], shape::squeeze),
    op("Sub", &[], elementwise::binary),
    op("Sum", &[], elementwise::variadic),
    op("Swish", &["alpha"], activation::composed),
    op("Tan", &[], activation::composed),
    op("Tanh", &[], elementwise::unary),
    op("TensorScatter", &["axis", "mode"], scatter::tensor_scatter),
    op("ThresholdedRelu", &["alpha"], activation::composed),
    op("Tile", &[], shape::tile),
    op("TopK", &["axis", "k", "largest", "sorted"], top::top_k),
    op("Transpose", &["perm"], shape::transpose),
    op("Trilu", &["upper"], index::trilu),
    op("Upsample", RESIZE, resize::resize),
    op("Unsqueeze", &["axes"], shape::unsqueeze),
    op("Where", &[], elementwise::select),
    op("Xor", &[], elementwise::binary),
    // Exporters and optimisers put these into the standard domain as well.
    op("SimplifiedLayerNormalization", &["axis", "epsilon", "stash_type"], norm::rms),
    ms(
        "Attention",
        &[
            "do_rotary",
            "mask_filter_value",
            "num_heads",
            "past_present_share_buffer",
            "qkv_hidden_sizes",
            "rotary_embedding_dim",
            "scale",
            "unidirectional",
        ],
        contrib::attention,
    ),
    ms("BiasAdd", &[], contrib::bias_add),
    ms("BiasGelu", &[], activation::gelu),
    ms("BiasSplitGelu", &[], activation::bias_split_gelu),
    ms("DequantizeLinear", &["axis", "block_size", "output_dtype"], quant::dequantize),
    ms("DynamicQuantizeMatMul", &[], quant::dynamic_quantize_matmul),
    ms("EmbedLayerNormalization", &["epsilon", "mask_index_type"], contrib::embed_layer_norm),
    ms("FastGelu", &[], activation::gelu),
    ms(
        "FusedGemm",
        &["activation", "activation_alpha", "activation_beta", "activation_gamma", "alpha", "beta", "transA", "transB"],
        linear::gemm,
    ),
    ms("FusedMatMul", &["alpha", "transA", "transB", "transBatchA", "transBatchB"], linear::fused_matmul),
    ms("GatherBlockQuantized", &["bits", "block_size", "gather_axis", "quantize_axis"], qlinear::gather_blocks),
    ms("Gelu", &["approximate"], activation::gelu),
    ms(
        "GroupQueryAttention",
        &[
            "do_rotary",
            "is_past_bsnh",
            "k_quant_type",
            "kv_cache_bit_width",
            "kv_num_heads",
            "local_window_size",
            "num_heads",
            "qk_output",
            "rotary_interleaved",
            "scale",
            "smooth_softmax",
            "softcap",
            "v_quant_type",
        ],
        contrib::group_query_attention,
    ),
    ms("MatMulInteger", &[], quant::matmul_integer),
    ms("MatMulIntegerToFloat", &[], quant::matmul_integer_to_float),
    ms("MatMulNBits", &["K", "N", "accuracy_level", "bits", "block_size"], quant::matmul_nbits),
    ms(
        "MultiHeadAttention",
        &["mask_filter_value", "num_heads", "scale", "unidirectional"],
        contrib::multi_head_attention,
    ),
    ms("QLinearAdd", &[], qlinear::binary),
    ms("QLinearAveragePool", QPOOL, qlinear::unary),
    ms("QLinearConcat", &["axis"], qlinear::concat),
    ms("QLinearConv", QCONV, qlinear::convolution),
    ms("QLinearGlobalAveragePool", &["channels_last"], qlinear::unary),
    ms("QLinearLeakyRelu", &["alpha"], qlinear::unary),
    ms("QLinearMatMul", &[], quant::qlinear_matmul),
    ms("QLinearMul", &[], qlinear::binary),
    ms("QLinearSigmoid", &[], qlinear::unary),
    ms("QLinearSoftmax", &["axis", "opset"], qlinear::unary),
    ms("QuantizeLinear", &["axis", "block_size", "output_dtype", "saturate"], quant::quantize),
    ms("QuickGelu", &["alpha"], activation::composed),
    ms(
        "RotaryEmbedding",
        &["interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim", "scale"],
        rotary::contrib,
    ),
    ms("SimplifiedLayerNormalization", &["axis", "epsilon", "stash_type"], norm::rms),
    ms("SkipLayerNormalization", &["epsilon"], norm::skip),
    ms("SkipSimplifiedLayerNormalization", &["epsilon"], norm::skip),
];

/// The operator of that name.
pub fn find(domain: &str, name: &str) -> Option<&'static OpDef> {
    OPS.iter().find(|o| o.domain == domain && o.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_is_listed_once() {
        for (i, o) in OPS.iter().enumerate() {
            assert!(OPS.iter().skip(i + 1).all(|p| (p.domain, p.name) != (o.domain, o.name)), "{}", o.name);
        }
    }
}
