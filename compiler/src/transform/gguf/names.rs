//! Names of tensors in GGUF files, and what a converter did to the elements behind them.

/// What was done to a tensor's elements on the way into a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
    /// Nothing.
    None,
    /// The rows of each head are in another order: the two elements of a rotary pair, half a head apart, lie side by side.
    Pairs,
    /// A gain `w` that stands for `1 + w` is stored as the sum.
    PlusOne,
}

/// The layout of an architecture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    architecture: &'static str,
    /// Parts of a layer: the stem behind the layer's name in a directory, and in the file.
    norms: &'static [[&'static str; 2]],
    pairs: bool,
    plus_one: bool,
}

const MAPS: [[&str; 2]; 9] = [
    ["self_attn.q_proj", "attn_q"],
    ["self_attn.k_proj", "attn_k"],
    ["self_attn.v_proj", "attn_v"],
    ["self_attn.o_proj", "attn_output"],
    ["self_attn.qkv_proj", "attn_qkv"],
    ["mlp.gate_proj", "ffn_gate"],
    ["mlp.up_proj", "ffn_up"],
    ["mlp.gate_up_proj", "ffn_up"],
    ["mlp.down_proj", "ffn_down"],
];
const BEFORE: &[[&str; 2]] = &[["input_layernorm", "attn_norm"], ["post_attention_layernorm", "ffn_norm"]];
const BEFORE_AND_HEADS: &[[&str; 2]] =
    &[BEFORE[0], BEFORE[1], ["self_attn.q_norm", "attn_q_norm"], ["self_attn.k_norm", "attn_k_norm"]];
const AROUND: &[[&str; 2]] = &[
    BEFORE[0],
    ["post_attention_layernorm", "post_attention_norm"],
    ["pre_feedforward_layernorm", "ffn_norm"],
    ["post_feedforward_layernorm", "post_ffw_norm"],
    BEFORE_AND_HEADS[2],
    BEFORE_AND_HEADS[3],
];
const OUTSIDE: [[&str; 2]; 3] =
    [["model.embed_tokens", "token_embd"], ["model.norm", "output_norm"], ["lm_head", "output"]];

const LLAMA: Layout = Layout { architecture: "llama", norms: BEFORE, pairs: true, plus_one: false };
const LAYOUTS: [Layout; 7] = [
    LLAMA,
    Layout { architecture: "qwen2", pairs: false, ..LLAMA },
    Layout { architecture: "qwen3", norms: BEFORE_AND_HEADS, pairs: false, ..LLAMA },
    Layout { architecture: "phi3", pairs: false, ..LLAMA },
    Layout { architecture: "gemma", pairs: false, plus_one: true, ..LLAMA },
    Layout { architecture: "gemma2", norms: AROUND, pairs: false, plus_one: true },
    Layout { architecture: "gemma3", norms: AROUND, pairs: false, plus_one: true },
];

impl Layout {
    /// The layout of an architecture that is transformed.
    pub fn of(architecture: &str) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|l| l.architecture == architecture)
    }

    /// The name of a file's tensor in a directory; `packed` where gate and up are one projection.
    pub fn in_directory(&self, name: &str, packed: bool) -> Option<String> {
        let (name, part) = name.rsplit_once('.')?;
        let Some(rest) = name.strip_prefix("blk.") else {
            return OUTSIDE.iter().find(|[_, file]| *file == name).map(|[dir, _]| format!("{dir}.{part}"));
        };
        let (layer, stem) = rest.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let other = if packed { "mlp.up_proj" } else { "mlp.gate_up_proj" };
        let mut known = self.norms.iter().chain(&MAPS).filter(|[dir, _]| *dir != other);
        known.find(|[_, file]| *file == stem).map(|[dir, _]| format!("model.layers.{layer}.{dir}.{part}"))
    }

    /// The name that a directory's tensor has in a file.
    pub fn in_file(&self, name: &str) -> Option<String> {
        let (name, part) = name.rsplit_once('.')?;
        let Some(rest) = name.strip_prefix("model.layers.") else {
            return OUTSIDE.iter().find(|[dir, _]| *dir == name).map(|[_, file]| format!("{file}.{part}"));
        };
        let (layer, stem) = rest.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let mut known = self.norms.iter().chain(&MAPS);
        known.find(|[dir, _]| *dir == stem).map(|[_, file]| format!("blk.{layer}.{file}.{part}"))
    }

    /// What was done to the elements of a directory's tensor.
    pub fn conversion(&self, name: &str) -> Conversion {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let ends = |with: &str| stem.ends_with(with);
        if self.pairs && (ends("self_attn.q_proj") || ends("self_attn.k_proj")) {
            Conversion::Pairs
        } else if self.plus_one && (stem == "model.norm" || self.norms.iter().any(|[dir, _]| ends(dir))) {
            Conversion::PlusOne
        } else {
            Conversion::None
        }
    }
}

impl Conversion {
    /// The elements as a directory has them, from those of a file. `rows` of a tensor hold heads of `head` rows each; a
    /// gain is of F32.
    pub fn undo(self, bytes: Vec<u8>, rows: usize, head: usize) -> Vec<u8> {
        match self {
            Conversion::None => bytes,
            Conversion::Pairs => by_rows(&bytes, rows, |r| {
                let (at, half) = (r % head, head / 2);
                r - at + 2 * (at % half) + at / half
            }),
            Conversion::PlusOne => gains(&bytes, -1.0),
        }
    }
    /// The elements as a file has them, from those of a directory.
    pub fn redo(self, bytes: Vec<u8>, rows: usize, head: usize) -> Vec<u8> {
        match self {
            Conversion::None => bytes,
            Conversion::Pairs => by_rows(&bytes, rows, |r| {
                let (at, half) = (r % head, head / 2);
                r - at + at % 2 * half + at / 2
            }),
            Conversion::PlusOne => gains(&bytes, 1.0),
        }
    }
}

/// Rows in another order: row `r` is what row `from(r)` was.
fn by_rows(bytes: &[u8], rows: usize, from: impl Fn(usize) -> usize) -> Vec<u8> {
    let row = bytes.len() / rows.max(1);
    (0..rows).flat_map(|r| bytes.get(from(r) * row..(from(r) + 1) * row).unwrap_or_default()).copied().collect()
}

fn gains(bytes: &[u8], plus: f64) -> Vec<u8> {
    let values = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    values.flat_map(|v| ((v + plus) as f32).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for layout in &LAYOUTS {
            for name in ["token_embd.weight", "blk.12.attn_q.weight", "blk.0.ffn_norm.weight", "blk.3.ffn_down.bias"] {
                let there = layout.in_directory(name, false).unwrap();
                assert_eq!(layout.in_file(&there).as_deref(), Some(name), "{there}");
            }
        }
        let phi = Layout::of("phi3").unwrap();
        assert_eq!(phi.in_directory("blk.1.ffn_up.weight", true).unwrap(), "model.layers.1.mlp.gate_up_proj.weight");
        assert_eq!(phi.in_file("model.layers.1.mlp.gate_up_proj.weight").unwrap(), "blk.1.ffn_up.weight");
        assert_eq!(LLAMA.in_directory("blk.x.attn_q.weight", false), None);
        assert_eq!(LLAMA.in_directory("rope_freqs.weight", false), None);
    }

    /// Heads of six rows: `0 3 1 4 2 5` is how pairs lie side by side.
    #[test]
    fn rows_of_pairs_are_parted_and_joined() {
        let file = vec![0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11];
        let dir: Vec<u8> = (0..12).collect();
        assert_eq!(Conversion::Pairs.undo(file.clone(), 12, 6), dir);
        assert_eq!(Conversion::Pairs.redo(dir, 12, 6), file);
    }

    #[test]
    fn gains_lose_one_and_get_it_back() {
        let file: Vec<u8> = [1.5f32, 1.0, 0.25].iter().flat_map(|v| v.to_le_bytes()).collect();
        let dir: Vec<u8> = [0.5f32, 0.0, -0.75].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(Conversion::PlusOne.undo(file.clone(), 3, 0), dir);
        assert_eq!(Conversion::PlusOne.redo(dir, 3, 0), file);
    }
}
