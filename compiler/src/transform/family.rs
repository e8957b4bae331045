//! Which tensor plays which role, by family of architectures: one table, the only place that knows names.

use serde_json::{Map, Value};

/// A stack of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The layers of a model with one stack.
    Only,
    /// The encoder of two.
    Encoder,
    /// The decoder of two.
    Decoder,
}

/// What a linear map does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the variants are names")]
pub enum Role {
    Q,
    K,
    V,
    O,
    CrossQ,
    CrossK,
    CrossV,
    CrossO,
    Gate,
    Up,
    Down,
}

impl Role {
    /// Self-attention.
    pub const ATTENTION: [Role; 4] = [Role::Q, Role::K, Role::V, Role::O];
    /// Attention to another stack.
    pub const CROSS: [Role; 4] = [Role::CrossQ, Role::CrossK, Role::CrossV, Role::CrossO];
    /// The feed-forward part.
    pub const FFN: [Role; 3] = [Role::Gate, Role::Up, Role::Down];
}

/// How one tensor holds the rows of several roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// One role.
    Single(Role),
    /// Queries, keys and values, one after the other.
    Qkv,
    /// Queries, keys and values of each head side by side: `[heads, 3, head_dim]`.
    QkvByHead,
    /// Gate and up, one after the other.
    GateUp,
}

impl Packing {
    /// The roles in the tensor, in order.
    pub fn roles(&self) -> &[Role] {
        match self {
            Packing::Single(role) => std::slice::from_ref(role),
            Packing::Qkv | Packing::QkvByHead => &[Role::Q, Role::K, Role::V],
            Packing::GateUp => &[Role::Gate, Role::Up],
        }
    }
}

/// What a norm is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormRole {
    /// The input of attention, or in post-norm families the sum after it.
    Attention,
    /// The input of attention to the other stack.
    Cross,
    /// The input of the feed-forward part, or the sum after it.
    Ffn,
    /// A part's output before it is added.
    Output,
    /// Queries or keys, per head.
    Head,
}

/// A stack's tensors. Names follow `layer`, in which `{}` is the number.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    /// Which stack.
    pub side: Side,
    /// Beginning of the names of a layer's tensors.
    pub layer: &'static str,
    /// Field with the number of layers.
    pub count: &'static str,
    /// Linear maps: stems of `.weight` and `.bias`. A role that stands twice has the name that the file has; behind a packed
    /// tensor stand the names that its parts get when they are taken apart.
    pub linears: &'static [(Packing, &'static str)],
    /// Norms: stems.
    pub norms: &'static [(NormRole, &'static str)],
}

/// Fields of sizes.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are the sizes")]
pub struct SizeFields {
    pub hidden: &'static str,
    pub ff: &'static str,
    pub heads: &'static str,
    pub kv_heads: Option<&'static str>,
    pub head_dim: Option<&'static str>,
}

/// A family of architectures.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// A name for messages.
    pub name: &'static str,
    /// Values of `model_type`.
    pub model_types: &'static [&'static str],
    /// What names may begin with in front of what this table has; the first that fits the file.
    pub prefixes: &'static [&'static str],
    /// The stacks.
    pub stacks: &'static [Stack],
    /// Token embeddings; the first is the one the head may be tied to.
    pub embeddings: &'static [&'static str],
    /// The head, without prefix.
    pub head: Option<&'static str>,
    /// The last norm: a stem.
    pub final_norm: Option<&'static str>,
    /// Fields.
    pub sizes: SizeFields,
    /// Weights are stored `[in, out]`.
    pub transposed: bool,
    /// Norms are at the input of each part.
    pub pre_norm: bool,
    /// Norms have no mean and no bias.
    pub rms: bool,
    /// Queries and keys are rotated.
    pub rotary: bool,
    /// Scores fall with the distance by a slope for each head, which the number of heads decides.
    pub alibi: bool,
    /// Beginnings of tensors (after a layer's own) that stay at their position when layers move.
    pub at_position: &'static [&'static str],
    /// Fields that say whether the linear maps of attention and of the feed-forward part have a bias.
    pub bias_fields: Option<[&'static str; 2]>,
}

use NormRole as N;
use Packing::{GateUp, Qkv, QkvByHead, Single};

const NAMED: SizeFields = SizeFields {
    hidden: "hidden_size",
    ff: "intermediate_size",
    heads: "num_attention_heads",
    kv_heads: Some("num_key_value_heads"),
    head_dim: Some("head_dim"),
};

const NAMED_MHA: SizeFields = SizeFields { kv_heads: None, head_dim: None, ..NAMED };

const LLAMA: Family = Family {
    name: "llama",
    model_types: &["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"],
    prefixes: &["model."],
    stacks: &[Stack {
        side: Side::Only,
        layer: "layers.{}.",
        count: "num_hidden_layers",
        linears: &[
            (Single(Role::Q), "self_attn.q_proj"),
            (Single(Role::K), "self_attn.k_proj"),
            (Single(Role::V), "self_attn.v_proj"),
            (Single(Role::O), "self_attn.o_proj"),
            (Single(Role::Gate), "mlp.gate_proj"),
            (Single(Role::Up), "mlp.up_proj"),
            (Single(Role::Down), "mlp.down_proj"),
        ],
        norms: &[
            (N::Attention, "input_layernorm"),
            (N::Ffn, "post_attention_layernorm"),
            (N::Output, "pre_feedforward_layernorm"),
            (N::Output, "post_feedforward_layernorm"),
            (N::Head, "self_attn.q_norm"),
            (N::Head, "self_attn.k_norm"),
        ],
    }],
    embeddings: &["embed_tokens.weight"],
    head: Some("lm_head.weight"),
    final_norm: Some("norm"),
    sizes: NAMED,
    transposed: false,
    pre_norm: true,
    rms: true,
    rotary: true,
    alibi: false,
    at_position: &[],
    bias_fields: Some(["attention_bias", "mlp_bias"]),
};

const PHI3: Family = Family {
    name: "phi3",
    model_types: &["phi3"],
    stacks: &[Stack {
        side: Side::Only,
        layer: "layers.{}.",
        count: "num_hidden_layers",
        linears: &[
            (Qkv, "self_attn.qkv_proj"),
            (Single(Role::Q), "self_attn.q_proj"),
            (Single(Role::K), "self_attn.k_proj"),
            (Single(Role::V), "self_attn.v_proj"),
            (Single(Role::O), "self_attn.o_proj"),
            (GateUp, "mlp.gate_up_proj"),
            (Single(Role::Down), "mlp.down_proj"),
        ],
        norms: &[(N::Attention, "input_layernorm"), (N::Ffn, "post_attention_layernorm")],
    }],
    bias_fields: None,
    ..LLAMA
};

const GPT2: Family = Family {
    name: "gpt2",
    model_types: &["gpt2"],
    prefixes: &["transformer.", ""],
    stacks: &[Stack {
        side: Side::Only,
        layer: "h.{}.",
        count: "n_layer",
        linears: &[
            (Qkv, "attn.c_attn"),
            (Single(Role::Q), "attn.q_proj"),
            (Single(Role::K), "attn.k_proj"),
            (Single(Role::V), "attn.v_proj"),
            (Single(Role::O), "attn.c_proj"),
            (Single(Role::Up), "mlp.c_fc"),
            (Single(Role::Down), "mlp.c_proj"),
        ],
        norms: &[(N::Attention, "ln_1"), (N::Ffn, "ln_2")],
    }],
    embeddings: &["wte.weight"],
    head: Some("lm_head.weight"),
    final_norm: Some("ln_f"),
    sizes: SizeFields { hidden: "n_embd", ff: "n_inner", heads: "n_head", kv_heads: None, head_dim: None },
    transposed: true,
    pre_norm: true,
    rms: false,
    rotary: false,
    alibi: false,
    at_position: &[],
    bias_fields: None,
};

const NEOX: Family = Family {
    name: "gpt_neox",
    model_types: &["gpt_neox"],
    prefixes: &["gpt_neox."],
    stacks: &[Stack {
        side: Side::Only,
        layer: "layers.{}.",
        count: "num_hidden_layers",
        linears: &[
            (QkvByHead, "attention.query_key_value"),
            (Single(Role::Q), "attention.q_proj"),
            (Single(Role::K), "attention.k_proj"),
            (Single(Role::V), "attention.v_proj"),
            (Single(Role::O), "attention.dense"),
            (Single(Role::Up), "mlp.dense_h_to_4h"),
            (Single(Role::Down), "mlp.dense_4h_to_h"),
        ],
        norms: &[(N::Attention, "input_layernorm"), (N::Ffn, "post_attention_layernorm")],
    }],
    embeddings: &["embed_in.weight"],
    head: Some("embed_out.weight"),
    final_norm: Some("final_layer_norm"),
    sizes: NAMED_MHA,
    transposed: false,
    rotary: true,
    ..GPT2
};

const BLOOM: Family = Family {
    name: "bloom",
    model_types: &["bloom"],
    stacks: &[Stack {
        side: Side::Only,
        layer: "h.{}.",
        count: "n_layer",
        linears: &[
            (QkvByHead, "self_attention.query_key_value"),
            (Single(Role::Q), "self_attention.q_proj"),
            (Single(Role::K), "self_attention.k_proj"),
            (Single(Role::V), "self_attention.v_proj"),
            (Single(Role::O), "self_attention.dense"),
            (Single(Role::Up), "mlp.dense_h_to_4h"),
            (Single(Role::Down), "mlp.dense_4h_to_h"),
        ],
        norms: &[(N::Attention, "input_layernorm"), (N::Ffn, "post_attention_layernorm")],
    }],
    embeddings: &["word_embeddings.weight"],
    sizes: SizeFields { hidden: "hidden_size", ff: "n_inner", heads: "n_head", kv_heads: None, head_dim: None },
    transposed: false,
    alibi: true,
    ..GPT2
};

const BERT: Family = Family {
    name: "bert",
    model_types: &["bert", "roberta", "xlm-roberta", "electra"],
    prefixes: &["bert.", "roberta.", "electra.", ""],
    stacks: &[Stack {
        side: Side::Only,
        layer: "encoder.layer.{}.",
        count: "num_hidden_layers",
        linears: &[
            (Single(Role::Q), "attention.self.query"),
            (Single(Role::K), "attention.self.key"),
            (Single(Role::V), "attention.self.value"),
            (Single(Role::O), "attention.output.dense"),
            (Single(Role::Up), "intermediate.dense"),
            (Single(Role::Down), "output.dense"),
        ],
        norms: &[(N::Attention, "attention.output.LayerNorm"), (N::Ffn, "output.LayerNorm")],
    }],
    embeddings: &["embeddings.word_embeddings.weight"],
    head: Some("cls.predictions.decoder.weight"),
    final_norm: None,
    sizes: NAMED_MHA,
    transposed: false,
    pre_norm: false,
    rms: false,
    rotary: false,
    alibi: false,
    at_position: &[],
    bias_fields: None,
};

const T5_SELF: [(Packing, &str); 4] = [
    (Single(Role::Q), "layer.0.SelfAttention.q"),
    (Single(Role::K), "layer.0.SelfAttention.k"),
    (Single(Role::V), "layer.0.SelfAttention.v"),
    (Single(Role::O), "layer.0.SelfAttention.o"),
];

const T5: Family = Family {
    name: "t5",
    model_types: &["t5", "mt5"],
    prefixes: &[""],
    stacks: &[
        Stack {
            side: Side::Encoder,
            layer: "encoder.block.{}.",
            count: "num_layers",
            linears: &[
                T5_SELF[0],
                T5_SELF[1],
                T5_SELF[2],
                T5_SELF[3],
                (Single(Role::Up), "layer.1.DenseReluDense.wi"),
                (Single(Role::Gate), "layer.1.DenseReluDense.wi_0"),
                (Single(Role::Up), "layer.1.DenseReluDense.wi_1"),
                (Single(Role::Down), "layer.1.DenseReluDense.wo"),
            ],
            norms: &[(N::Attention, "layer.0.layer_norm"), (N::Ffn, "layer.1.layer_norm")],
        },
        Stack {
            side: Side::Decoder,
            layer: "decoder.block.{}.",
            count: "num_decoder_layers",
            linears: &[
                T5_SELF[0],
                T5_SELF[1],
                T5_SELF[2],
                T5_SELF[3],
                (Single(Role::CrossQ), "layer.1.EncDecAttention.q"),
                (Single(Role::CrossK), "layer.1.EncDecAttention.k"),
                (Single(Role::CrossV), "layer.1.EncDecAttention.v"),
                (Single(Role::CrossO), "layer.1.EncDecAttention.o"),
                (Single(Role::Up), "layer.2.DenseReluDense.wi"),
                (Single(Role::Gate), "layer.2.DenseReluDense.wi_0"),
                (Single(Role::Up), "layer.2.DenseReluDense.wi_1"),
                (Single(Role::Down), "layer.2.DenseReluDense.wo"),
            ],
            norms: &[
                (N::Attention, "layer.0.layer_norm"),
                (N::Cross, "layer.1.layer_norm"),
                (N::Ffn, "layer.2.layer_norm"),
            ],
        },
    ],
    embeddings: &["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
    head: Some("lm_head.weight"),
    final_norm: None,
    sizes: SizeFields { hidden: "d_model", ff: "d_ff", heads: "num_heads", kv_heads: None, head_dim: Some("d_kv") },
    transposed: false,
    pre_norm: true,
    rms: true,
    rotary: false,
    alibi: false,
    at_position: &["layer.0.SelfAttention.relative_attention_bias."],
    bias_fields: None,
};

const BART_SELF: [(Packing, &str); 6] = [
    (Single(Role::Q), "self_attn.q_proj"),
    (Single(Role::K), "self_attn.k_proj"),
    (Single(Role::V), "self_attn.v_proj"),
    (Single(Role::O), "self_attn.out_proj"),
    (Single(Role::Up), "fc1"),
    (Single(Role::Down), "fc2"),
];

const BART: Family = Family {
    name: "bart",
    model_types: &["bart", "mbart", "marian", "pegasus"],
    prefixes: &["model.", ""],
    stacks: &[
        Stack {
            side: Side::Encoder,
            layer: "encoder.layers.{}.",
            count: "encoder_layers",
            linears: &BART_SELF,
            norms: &[(N::Attention, "self_attn_layer_norm"), (N::Ffn, "final_layer_norm")],
        },
        Stack {
            side: Side::Decoder,
            layer: "decoder.layers.{}.",
            count: "decoder_layers",
            linears: &[
                BART_SELF[0],
                BART_SELF[1],
                BART_SELF[2],
                BART_SELF[3],
                (Single(Role::CrossQ), "encoder_attn.q_proj"),
                (Single(Role::CrossK), "encoder_attn.k_proj"),
                (Single(Role::CrossV), "encoder_attn.v_proj"),
                (Single(Role::CrossO), "encoder_attn.out_proj"),
                BART_SELF[4],
                BART_SELF[5],
            ],
            norms: &[
                (N::Attention, "self_attn_layer_norm"),
                (N::Cross, "encoder_attn_layer_norm"),
                (N::Ffn, "final_layer_norm"),
            ],
        },
    ],
    embeddings: &["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
    head: Some("lm_head.weight"),
    final_norm: None,
    sizes: SizeFields {
        hidden: "d_model",
        ff: "encoder_ffn_dim",
        heads: "encoder_attention_heads",
        kv_heads: None,
        head_dim: None,
    },
    transposed: false,
    pre_norm: false,
    rms: false,
    rotary: false,
    alibi: false,
    at_position: &[],
    bias_fields: None,
};

/// Every family.
pub static FAMILIES: [Family; 8] = [LLAMA, PHI3, GPT2, NEOX, BLOOM, BERT, T5, BART];

impl Family {
    /// The family of a configuration.
    pub fn of(config: &Map<String, Value>) -> Option<&'static Family> {
        let kind = config.get("model_type").and_then(Value::as_str)?;
        FAMILIES.iter().find(|f| f.model_types.contains(&kind))
    }
    /// The stack of that side; a family with one stack has it on every side.
    pub fn stack(&self, side: Side) -> Option<&'static Stack> {
        match self.stacks {
            [only] => Some(only),
            stacks => stacks.iter().find(|s| s.side == side),
        }
    }
}
