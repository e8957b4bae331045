//! The files beside the weights that say how a model is used: generation settings and tokenizer.

use super::fields::Fields;
use crate::ingest::decoding::GenerationRules;
use crate::ingest::error::{Error, Gap, Result};
use crate::ingest::file::ModelDir;
use crate::ingest::limits::Limits;
use frit_plan::ChatInfo;
use serde_json::{Map, Value};

/// What a host must know to feed a model with text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextSettings {
    /// `tokenizer.json`.
    pub tokenizer: Option<String>,
    /// Tokens that end a generation.
    pub eos: Vec<u32>,
    /// The token put in front of a text, when the tokenizer does not do it by itself.
    pub bos: Option<u32>,
    /// How a conversation is written.
    pub chat: Option<ChatInfo>,
    /// What may be written.
    pub rules: GenerationRules,
}

/// The JSON object in a file of that name; `None` when there is no such file.
pub fn object(dir: &ModelDir, name: &str, limits: &Limits) -> Result<Option<Map<String, Value>>> {
    let Some(text) = dir.text(name, limits.text_bytes)? else { return Ok(None) };
    let blame = |problem: String| Error::Malformed { path: dir.path().join(name), place: "text".into(), problem };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(blame("is not a JSON object".into())),
        Err(e) => Err(blame(format!("is not JSON: {e}"))),
    }
}

/// Reads `generation_config.json`, `tokenizer_config.json`, `tokenizer.json` and the chat template beside `config`.
pub fn read(dir: &ModelDir, config: &Map<String, Value>, limits: &Limits) -> Result<(TextSettings, Vec<Gap>)> {
    let mut gaps = Vec::new();
    let mut ids = |file: &str, object: &Map<String, Value>, field: &str| {
        let mut fields = Fields::new(file, object, limits);
        let ids = fields.token_ids(field);
        gaps.extend(fields.into_gaps().0);
        ids
    };
    let generation = object(dir, "generation_config.json", limits)?.unwrap_or_default();
    let in_generation = ids("generation_config.json", &generation, "eos_token_id");
    let in_config = ids("config.json", config, "eos_token_id");
    let eos = if in_generation.is_empty() { in_config } else { in_generation };
    let bos = ids("config.json", config, "bos_token_id").first().copied();
    let given = if generation.is_empty() { config } else { &generation };
    let rules = rules(given, limits, if generation.is_empty() { "config.json" } else { "generation_config.json" });

    let tokenizer = dir.text("tokenizer.json", limits.text_bytes)?;
    let settings = object(dir, "tokenizer_config.json", limits)?.unwrap_or_default();
    let wanted = settings.get("add_bos_token").and_then(Value::as_bool).unwrap_or(false);
    let bos = bos.filter(|bos| wanted && tokenizer.as_deref().is_some_and(|json| !puts_in_front(json, *bos)));
    let chat = template(dir, &settings, limits)?.map(|template| ChatInfo {
        template,
        bos: token_text(&settings, "bos_token"),
        eos: token_text(&settings, "eos_token"),
    });
    let (rules, faults) = rules;
    gaps.extend(faults);
    Ok((TextSettings { tokenizer, eos, bos, chat, rules }, gaps))
}

/// Tokens that must not be written, and those that a decoder begins with behind its own first token:
/// `forced_bos_token_id`, else those of `forced_decoder_ids`, pairs of a place and a token, as far as they follow each
/// other from place 1 on. The token that a text ends with where it becomes as long as was asked for.
fn rules(object: &Map<String, Value>, limits: &Limits, file: &str) -> (GenerationRules, Vec<Gap>) {
    const FORCED: &str = "forced_decoder_ids";
    let mut f = Fields::new(file, object, limits);
    let suppressed = f.token_ids("suppress_tokens");
    let suppressed_first = f.token_ids("begin_suppress_tokens");
    let mut begin = f.token_ids("forced_bos_token_id");
    if let (Some(value), true) = (f.get(FORCED), begin.is_empty()) {
        let pair = |v: &Value| Some((v.get(0)?.as_u64()?, v.get(1)?.as_u64().and_then(|t| u32::try_from(t).ok())));
        match value.as_array().and_then(|all| all.iter().map(pair).collect::<Option<Vec<_>>>()) {
            Some(pairs) => {
                let follow = (1u64..).zip(pairs).map_while(|(at, (place, token))| token.filter(|_| place == at));
                begin.extend(follow);
            }
            None => f.gap(FORCED, "is no list of pairs of a place and a token", "correct it"),
        }
    }
    let last = f.token_ids("forced_eos_token_id");
    (GenerationRules { suppressed, suppressed_first, begin, last }, f.into_gaps().0)
}

/// The chat template: a file of its own, or a field of the tokenizer's settings, where of several the one named
/// `default` is meant.
fn template(dir: &ModelDir, settings: &Map<String, Value>, limits: &Limits) -> Result<Option<String>> {
    const FIELD: &str = "chat_template";
    if let Some(text) = dir.text("chat_template.jinja", limits.text_bytes)? {
        return Ok(Some(text));
    }
    let own = object(dir, "chat_template.json", limits)?.unwrap_or_default();
    let field = own.get(FIELD).or(settings.get(FIELD));
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
        default.and_then(|t| t.get("template")).and_then(Value::as_str).map(str::to_owned)
    };
    Ok(match field {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => named(list),
        _ => None,
    })
}

/// The text of a special token, which stands alone or in an object.
fn token_text(settings: &Map<String, Value>, field: &str) -> Option<String> {
    let token = settings.get(field)?;
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str)).map(str::to_owned)
}

/// Whether a tokenizer puts the token in front of texts by itself: its template for one text begins with it.
fn puts_in_front(json: &str, bos: u32) -> bool {
    let Ok(tokenizer) = serde_json::from_str::<Value>(json) else { return false };
    let steps = match tokenizer.get("post_processor") {
        Some(step) if step.get("type").and_then(Value::as_str) == Some("Sequence") => {
            step.get("processors").and_then(Value::as_array).cloned().unwrap_or_default()
        }
        Some(step) => vec![step.clone()],
        None => Vec::new(),
    };
    steps.iter().any(|step| {
        let first = step.pointer("/single/0/SpecialToken/id").and_then(Value::as_str);
        let special = first.and_then(|name| step.get("special_tokens")?.get(name));
        special.and_then(|s| s.pointer("/ids/0")).and_then(Value::as_u64) == Some(u64::from(bos))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_generation_are_read() {
        let text = r#"{"suppress_tokens": [1, 2], "begin_suppress_tokens": [220], "forced_decoder_ids": [[1, 50362], [2, null], [3, 9]],
            "forced_eos_token_id": 7}"#;
        let object: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        let (read, gaps) = rules(&object, &Limits::default(), "generation_config.json");
        let want =
            GenerationRules { suppressed: vec![1, 2], suppressed_first: vec![220], begin: vec![50_362], last: vec![7] };
        assert_eq!((read, gaps.len()), (want, 0));
    }

    #[test]
    fn rules_that_are_no_tokens_are_gaps() {
        let text = r#"{"suppress_tokens": "none", "forced_decoder_ids": [1, 2]}"#;
        let object: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        assert_eq!(rules(&object, &Limits::default(), "config.json").1.len(), 2);
    }
}
