//! Text to tokens and back.

use crate::{Error, Result};
use frit_plan::ModelInfo;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    pad: u32,
}

impl Tokenizer {
    /// The tokenizer of a model, if it carries one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it cannot be read.
    pub fn of(model: &ModelInfo) -> Result<Option<Tokenizer>> {
        let Some(text) = &model.tokenizer else { return Ok(None) };
        let mut inner: tokenizers::Tokenizer = text.parse().map_err(fault)?;
        let named = || ["[PAD]", "<pad>"].iter().find_map(|name| inner.token_to_id(name));
        let pad = inner.get_padding().map(|p| p.pad_id).or_else(named).unwrap_or(0);
        inner.with_padding(None);
        Ok(Some(Tokenizer { inner, bos: model.bos, pad }))
    }
    /// The token that fills up shorter texts of a batch.
    pub fn pad(&self) -> u32 {
        self.pad
    }
    /// Cuts texts at `most` tokens, those that the tokenizer adds included.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when not even those that it adds fit.
    pub fn truncate(&mut self, most: usize) -> Result<()> {
        let how = tokenizers::TruncationParams { max_length: most, ..Default::default() };
        self.inner.with_truncation(Some(how)).map(|_| ()).map_err(fault)
    }
    /// Tokens of a text, with what the tokenizer and the model put in front.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.inner.encode(text, true).map_err(fault)?.get_ids().to_vec();
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }
    /// Tokens of a text and nothing in front, for texts that hold their special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_as_written(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.inner.encode(text, false).map_err(fault)?.get_ids().to_vec())
    }
    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(fault)
    }
    /// Decodes tokens as they come.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), said: 0, next: 0 }
    }
}

fn fault(e: tokenizers::Error) -> Error {
    Error::Tokenizer(e.to_string())
}

/// Text that grows token by token. A character made of several tokens is held back until it is whole, and a token's
/// text is cut off behind its predecessors', because many tokenizers write the first word of a text without its space.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    said: usize,
    next: usize,
}

impl TextStream<'_> {
    /// What `id` adds to the text; empty while a character is incomplete.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.advance(false)
    }
    /// What was held back.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn finish(mut self) -> Result<String> {
        self.advance(true)
    }
    fn advance(&mut self, all: bool) -> Result<String> {
        let known = self.tokenizer.decode(self.ids.get(self.said..self.next).unwrap_or_default())?;
        let grown = self.tokenizer.decode(self.ids.get(self.said..).unwrap_or_default())?;
        let whole = all || !grown.ends_with('\u{FFFD}');
        match grown.strip_prefix(known.as_str()) {
            Some(new) if whole && !new.is_empty() => {
                let new = new.to_owned();
                self.said = self.next;
                self.next = self.ids.len();
                Ok(new)
            }
            _ => Ok(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level vocabulary with one token for each byte, and `bos`.
    fn bytes() -> Tokenizer {
        let mut vocab: Vec<(String, u32)> = Vec::new();
        let mut other = 256;
        for b in 0..=255u32 {
            let printable = matches!(b, 33..=126 | 161..=172 | 174..=255);
            let c = if printable { b } else { other };
            other += u32::from(!printable);
            vocab.push((char::from_u32(c).unwrap().to_string(), b));
        }
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 256, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab.into_iter().collect::<std::collections::BTreeMap<_, _>>(), "merges": []}
        });
        Tokenizer { inner: json.to_string().parse().unwrap(), bos: Some(256), pad: 0 }
    }

    #[test]
    fn a_text_survives_and_gets_its_first_token() {
        let t = bytes();
        let ids = t.encode("naïve ☃").unwrap();
        assert_eq!(ids[0], 256);
        assert_eq!(t.decode(&ids).unwrap(), "naïve ☃");
    }
    #[test]
    fn streaming_never_shows_half_a_character() {
        let t = bytes();
        let text = "a ☃ café 👩‍🚀.";
        let mut s = t.stream();
        let mut out = String::new();
        for id in t.encode(text).unwrap() {
            let piece = s.push(id).unwrap();
            assert!(!piece.contains('\u{FFFD}'));
            out += &piece;
        }
        assert_eq!(out + &s.finish().unwrap(), text);
    }
    #[test]
    fn what_is_incomplete_comes_at_the_end() {
        let t = bytes();
        let mut s = t.stream();
        assert_eq!(s.push(0xE2).unwrap(), "");
        assert_eq!(s.finish().unwrap(), "\u{FFFD}");
    }
}
