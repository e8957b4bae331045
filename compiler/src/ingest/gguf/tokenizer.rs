//! The tokenizer that a GGUF file embeds, as the text of a Hugging Face `tokenizer.json`.
//!
//! Two vocabularies are converted: `gpt2` (byte-level BPE with a merge list) and `llama` (SentencePiece BPE with
//! scores, whose merge list follows from the scores). What is not known is a [`Gap`]; a model without a tokenizer can
//! still be run on token ids.

use super::metadata::Metadata;
use super::pretokenizer::{self, PreTokenizer};
use crate::ingest::error::Gap;
use frit_plan::ChatInfo;
use rustc_hash::FxHashMap;
use serde_json::{Map, Value, json};

/// An embedded tokenizer, converted.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    /// The text of a `tokenizer.json`.
    pub json: String,
    /// Entries of the vocabulary.
    pub len: u64,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// The token that fills rows of a batch.
    pub pad: Option<u32>,
    /// Tokens that end generation: `eos`, and the ends of turns that the file names or that are known by their text.
    pub stops: Vec<u32>,
    /// Whether a text is begun with `bos`.
    pub add_bos: bool,
    /// Whether a text is ended with `eos`.
    pub add_eos: bool,
    /// How a conversation is written.
    pub chat: Option<ChatInfo>,
    /// Merges that were left out, since they name parts or results that the vocabulary lacks.
    pub dropped_merges: u64,
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const CONVERT: &str = "convert the model again, or use its Hugging Face directory";

/// Control tokens that end a turn, whatever the file's `eos` is.
const TURN_ENDS: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|eos|>",
];

/// Bytes that may be hashed while merges are derived from scores.
const MERGE_BUDGET: u64 = 1 << 32;

/// Token types of the format.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// A vocabulary as the file has it.
struct Vocabulary<'a> {
    tokens: &'a [String],
    types: Vec<i32>,
    ids: FxHashMap<&'a str, u32>,
}

impl Vocabulary<'_> {
    fn kind(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }
    fn text(&self, id: u32) -> Option<&str> {
        self.tokens.get(usize::try_from(id).ok()?).map(String::as_str)
    }
}

/// Converts the tokenizer of a file; `None` when the file embeds none.
pub fn convert(metadata: &Metadata) -> Result<Option<Tokenizer>, Gap> {
    let Some(model) = metadata.str(MODEL)? else { return Ok(None) };
    let vocabulary = vocabulary(metadata)?;
    let spm = match model {
        "gpt2" => false,
        "llama" => true,
        other => {
            return Err(metadata.gap(MODEL, format!("`{other}` is not converted; `gpt2` and `llama` are"), CONVERT));
        }
    };
    let pre = if spm { None } else { Some(pretokenizer::by_name(metadata.str(PRE)?, metadata)?) };
    let id = |key: &str, default: Option<u32>| token_id(metadata, key, &vocabulary, default);
    let spm_default = |id| spm.then_some(id);
    let (bos, eos) = (id("bos_token_id", spm_default(1))?, id("eos_token_id", spm_default(2))?);
    let (unknown, pad) = (id("unknown_token_id", spm_default(0))?, id("padding_token_id", None)?);
    let begins = spm || pre.is_some_and(|p| p.add_bos);
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(begins) && bos.is_some();
    let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false) && eos.is_some();
    let mut stops: Vec<u32> =
        eos.into_iter().chain(id("eot_token_id", None)?).chain(id("eom_token_id", None)?).collect();
    let ends = TURN_ENDS.iter().filter_map(|text| vocabulary.ids.get(text).copied());
    stops.extend(ends.filter(|id| vocabulary.kind(*id as usize) == CONTROL));
    stops.sort_unstable();
    stops.dedup();

    let (mut root, dropped_merges) = match pre {
        Some(pre) => byte_level(metadata, &vocabulary, pre)?,
        None => (sentence_piece(metadata, &vocabulary, unknown)?, 0),
    };
    root.insert("added_tokens".into(), added_tokens(&vocabulary));
    let ends = (bos.filter(|_| add_bos), eos.filter(|_| add_eos));
    root.insert("post_processor".into(), template(&vocabulary, ends.0, ends.1));
    Ok(Some(Tokenizer {
        json: Value::Object(root).to_string(),
        len: vocabulary.tokens.len() as u64,
        bos,
        eos,
        pad,
        stops,
        add_bos,
        add_eos,
        chat: metadata.str("tokenizer.chat_template")?.map(|template| {
            let text = |id: Option<u32>| id.and_then(|id| vocabulary.tokens.get(id as usize).cloned());
            ChatInfo { template: template.to_owned(), bos: text(bos), eos: text(eos) }
        }),
        dropped_merges,
    }))
}

fn vocabulary(metadata: &Metadata) -> Result<Vocabulary<'_>, Gap> {
    let tokens = metadata.strings(TOKENS)?.ok_or_else(|| metadata.gap(TOKENS, "is missing", CONVERT))?;
    let types = metadata.i32s(TYPES)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        let problem = format!("has {} entries for {} tokens", types.len(), tokens.len());
        return Err(metadata.gap(TYPES, problem, CONVERT));
    }
    let mut ids = FxHashMap::with_capacity_and_hasher(tokens.len(), Default::default());
    for (id, token) in (0u32..).zip(tokens) {
        if let Some(first) = ids.insert(token.as_str(), id) {
            return Err(metadata.gap(TOKENS, format!("`{token}` has the ids {first} and {id}"), CONVERT));
        }
    }
    Ok(Vocabulary { tokens, types, ids })
}

fn token_id(
    metadata: &Metadata,
    key: &str,
    vocabulary: &Vocabulary<'_>,
    default: Option<u32>,
) -> Result<Option<u32>, Gap> {
    let key = format!("tokenizer.ggml.{key}");
    let Some(id) = metadata.u64(&key)? else {
        return Ok(default.filter(|id| (*id as usize) < vocabulary.tokens.len()));
    };
    let known = u32::try_from(id).ok().filter(|_| id < vocabulary.tokens.len() as u64);
    let problem = || format!("is {id}, but there are {} tokens", vocabulary.tokens.len());
    known.map(Some).ok_or_else(|| metadata.gap(&key, problem(), CONVERT))
}

/// The parts of a `tokenizer.json` that both kinds have.
fn root(normalizer: Value, pre_tokenizer: Value, decoder: Value, model: Value) -> Map<String, Value> {
    let mut root = Map::new();
    root.insert("version".into(), json!("1.0"));
    root.insert("truncation".into(), Value::Null);
    root.insert("padding".into(), Value::Null);
    root.insert("added_tokens".into(), Value::Null);
    root.insert("normalizer".into(), normalizer);
    root.insert("pre_tokenizer".into(), pre_tokenizer);
    root.insert("post_processor".into(), Value::Null);
    root.insert("decoder".into(), decoder);
    root.insert("model".into(), model);
    root
}

fn bpe(
    vocabulary: &Vocabulary<'_>,
    merges: Vec<[&str; 2]>,
    unknown: Option<&str>,
    spm: bool,
    ignore_merges: bool,
) -> Value {
    let vocab: Map<String, Value> = (0u32..).zip(vocabulary.tokens).map(|(id, t)| (t.clone(), id.into())).collect();
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": spm, "byte_fallback": spm, "ignore_merges": ignore_merges,
        "vocab": vocab, "merges": merges,
    })
}

fn byte_level(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    pre: PreTokenizer,
) -> Result<(Map<String, Value>, u64), Gap> {
    let listed = metadata.strings(MERGES)?.ok_or_else(|| metadata.gap(MERGES, "is missing", CONVERT))?;
    let mut merges = Vec::with_capacity(listed.len());
    let mut joined = String::new();
    for merge in listed {
        // A merge is written `left right`; the left part has at least one character, which may be a space.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let split = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| first + at);
        let parts = split.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)));
        let Some((left, right)) = parts.filter(|(_, right)| !right.is_empty()) else {
            return Err(metadata.gap(MERGES, format!("`{merge}` is no pair"), CONVERT));
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        if [left, right, &joined].iter().all(|part| vocabulary.ids.contains_key(*part)) {
            merges.push([left, right]);
        }
    }
    let dropped = listed.len() - merges.len();
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let model = bpe(vocabulary, merges, None, false, pre.ignore_merges);
    Ok((root(pre.normalizer(), pre.json(prefix), decoder, model), dropped as u64))
}

fn sentence_piece(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    unknown: Option<u32>,
) -> Result<Map<String, Value>, Gap> {
    let scores = metadata.f32s(SCORES)?.ok_or_else(|| metadata.gap(SCORES, "is missing", CONVERT))?;
    if scores.len() != vocabulary.tokens.len() {
        let problem = format!("has {} entries for {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(metadata.gap(SCORES, problem, CONVERT));
    }
    let merges = merges_of_scores(vocabulary, scores)
        .ok_or_else(|| metadata.gap(TOKENS, "has tokens that are too long", CONVERT))?;
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    let model = bpe(vocabulary, merges, unknown.and_then(|id| vocabulary.text(id)), true, false);
    Ok(root(normalizer, Value::Null, decoder, model))
}

/// The merges that scores imply: every split of a normal token into two normal tokens, best score of the result first.
/// Equal scores keep the order of longer parts first, then of ids. `None` when the tokens are too long for the budget.
fn merges_of_scores<'a>(vocabulary: &Vocabulary<'a>, scores: &[f32]) -> Option<Vec<[&'a str; 2]>> {
    let normal = |text: &str| {
        let id = vocabulary.ids.get(text).copied()?;
        (vocabulary.kind(usize::try_from(id).ok()?) == NORMAL).then_some(id)
    };
    let mut budget = MERGE_BUDGET;
    let mut found = Vec::new();
    for ((id, token), score) in vocabulary.tokens.iter().enumerate().zip(scores) {
        if vocabulary.kind(id) != NORMAL {
            continue;
        }
        let len = token.len() as u64;
        budget = budget.checked_sub(len.checked_mul(len)?)?;
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at_checked(at)?;
            if let (Some(left_id), Some(right_id)) = (normal(left), normal(right)) {
                found.push((*score, left.chars().count(), right.chars().count(), id, left_id, right_id, left, right));
            }
        }
    }
    found.sort_by(|a, b| {
        let best_first = b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2));
        best_first.then_with(|| (a.3, a.4, a.5).cmp(&(b.3, b.4, b.5)))
    });
    Some(found.into_iter().map(|(.., left, right)| [left, right]).collect())
}

/// Tokens that are found in a text before anything else: control and unknown ones, and those the user defined.
fn added_tokens(vocabulary: &Vocabulary<'_>) -> Value {
    let added = vocabulary.tokens.iter().enumerate().filter_map(|(id, content)| {
        let kind = vocabulary.kind(id);
        matches!(kind, UNKNOWN | CONTROL | USER_DEFINED).then(|| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            })
        })
    });
    added.collect()
}

/// The step that puts `bos` before a text and `eos` after it; null when neither is wanted.
fn template(vocabulary: &Vocabulary<'_>, bos: Option<u32>, eos: Option<u32>) -> Value {
    let ends = |id: Option<u32>| id.and_then(|id| Some((id, vocabulary.text(id)?)));
    let (bos, eos) = (ends(bos), ends(eos));
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |(_, text): (u32, &str)| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let around = |sequence: &str| {
        let middle = json!({"Sequence": {"id": sequence, "type_id": 0}});
        bos.map(special).into_iter().chain([middle]).chain(eos.map(special)).collect::<Vec<_>>()
    };
    let tokens: Map<String, Value> = bos
        .into_iter()
        .chain(eos)
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair: Vec<Value> = around("A").into_iter().chain(around("B")).collect();
    json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": tokens})
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
