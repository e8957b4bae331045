//! Bounds that hold while an untrusted model is read. They are checked before memory is taken.

/// What a loader accepts at most. The defaults fit every published transformer; a caller may change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a safetensors header.
    pub safetensors_header_bytes: u64,
    /// Bytes of a JSON or text file beside the weights.
    pub text_bytes: u64,
    /// Bytes of a GGUF file before its data: metadata and tensor table.
    pub gguf_header_bytes: u64,
    /// Key-value pairs of a GGUF file.
    pub metadata_pairs: u64,
    /// Tensors of a model.
    pub tensors: u64,
    /// Files that hold a model's tensors.
    pub shards: u64,
    /// Bytes of a name, a metadata key or a token.
    pub name_bytes: u64,
    /// Dimensions of a tensor.
    pub rank: u64,
    /// One dimension of a tensor, and every size in a configuration.
    pub dim: u64,
    /// Transformer layers.
    pub layers: u64,
    /// Entries of a vocabulary.
    pub vocabulary: u64,
    /// Bytes of an ONNX file, without its external data.
    pub onnx_bytes: u64,
    /// Nodes of an ONNX model after its functions and branches are put in place.
    pub onnx_nodes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            safetensors_header_bytes: 100_000_000,
            text_bytes: 256 << 20,
            gguf_header_bytes: 512 << 20,
            metadata_pairs: 100_000,
            tensors: 100_000,
            shards: 10_000,
            name_bytes: 4096,
            rank: 8,
            dim: (1 << 31) - 1,
            layers: 4096,
            vocabulary: 1 << 24,
            onnx_bytes: 1 << 31,
            onnx_nodes: 500_000,
        }
    }
}
