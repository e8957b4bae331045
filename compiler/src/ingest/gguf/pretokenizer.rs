//! How byte-level BPE splits a text before it merges, by the name in `tokenizer.ggml.pre`. The patterns are those that
//! the models were published with.

use super::metadata::Metadata;
use crate::ingest::error::Gap;
use serde_json::{Value, json};

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PreTokenizer {
    split: Split,
    /// Whether texts are begun with `bos` when the file does not say.
    pub add_bos: bool,
    /// Whether a word that is a token as a whole is taken without looking at merges.
    pub ignore_merges: bool,
    nfc: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Split {
    /// GPT-2's pattern, built into the byte-level step.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    DigitsGpt2,
    /// These patterns, one after the other.
    Patterns(&'static [&'static str]),
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const DEFAULT: Split = Split::Patterns(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]);
const FALCON: Split = Split::Patterns(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]);

/// The pre-tokenizer of that name; without a name, the one that files had before names were introduced.
pub(super) fn by_name(name: Option<&str>, metadata: &Metadata) -> Result<PreTokenizer, Gap> {
    let plain = |split| PreTokenizer { split, add_bos: false, ignore_merges: false, nfc: false };
    Ok(match name.unwrap_or("default") {
        "default" => plain(DEFAULT),
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "roberta-bpe" | "jina-es" | "jina-de" | "jina-v2-es"
        | "jina-v2-de" | "jina-v2-code" | "gigachat" | "trillion" | "a.x-4.0" | "exaone4" | "mellum" => {
            plain(Split::Gpt2)
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            plain(Split::DigitsGpt2)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2" => {
            PreTokenizer { add_bos: true, ignore_merges: true, ..plain(Split::Patterns(&[LLAMA3])) }
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => plain(Split::Patterns(&[LLAMA3])),
        "qwen2" => PreTokenizer { nfc: true, ..plain(Split::Patterns(&[QWEN2])) },
        "deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan" => plain(Split::Patterns(&[QWEN2])),
        "tekken" => PreTokenizer { add_bos: true, ignore_merges: true, ..plain(Split::Patterns(&[TEKKEN])) },
        "gpt-4o" | "llama4" => plain(Split::Patterns(&[GPT4O])),
        "falcon" => plain(FALCON),
        other => {
            let next = "use the model's Hugging Face directory, or run it on token ids";
            return Err(metadata.gap("tokenizer.ggml.pre", format!("`{other}` is not known"), next));
        }
    })
}

impl PreTokenizer {
    /// The `normalizer` of a `tokenizer.json`.
    pub fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn json(&self, prefix_space: bool) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": use_regex});
        let steps = match self.split {
            Split::Gpt2 => return bytes(true),
            Split::DigitsGpt2 => vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
            Split::Patterns(patterns) => {
                let split =
                    |p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
                patterns.iter().map(split).chain([bytes(false)]).collect()
            }
        };
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
