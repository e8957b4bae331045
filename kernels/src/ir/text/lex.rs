//! Text to tokens.

use crate::ir::error::Error;

/// A token of the text form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A bare word, with `.` inside: `global_id.x`.
    Word(String),
    /// A name with its sigil: `%x`, `@x`, `$x.field`.
    Name(char, String),
    /// A number with its suffix: `1.5e3f`, `4u`, `-2i`.
    Number(String),
    /// A quoted string, without the quotes.
    Text(String),
    /// A punctuation mark.
    Mark(char),
}

/// Tokens with their line numbers.
pub(super) fn lex(source: &str) -> Result<Vec<(u32, Token)>, Error> {
    let mut tokens = Vec::new();
    for (row, text) in source.lines().enumerate() {
        let line = u32::try_from(row + 1).unwrap_or(u32::MAX);
        lex_line(text, line, &mut tokens)?;
    }
    Ok(tokens)
}

fn lex_line(text: &str, line: u32, tokens: &mut Vec<(u32, Token)>) -> Result<(), Error> {
    let mut chars = text.chars().peekable();
    let word_char = |c: &char| c.is_ascii_alphanumeric() || *c == '_' || *c == '.';
    let mut rest = String::new();
    while let Some(c) = chars.next() {
        let token = match c {
            ' ' | '\t' => continue,
            '/' if chars.peek() == Some(&'/') => return Ok(()),
            '%' | '@' | '$' => {
                rest.clear();
                while let Some(c) = chars.next_if(word_char) {
                    rest.push(c);
                }
                Token::Name(c, rest.clone())
            }
            '"' => Token::Text(quoted(&mut chars, line)?),
            '-' | '0'..='9' => {
                rest.clear();
                rest.push(c);
                let mut after_e = false;
                while let Some(c) = chars.next_if(|c| word_char(c) || (after_e && *c == '-')) {
                    after_e = c == 'e';
                    rest.push(c);
                }
                Token::Number(rest.clone())
            }
            c if c.is_ascii_alphabetic() => {
                rest.clear();
                rest.push(c);
                while let Some(c) = chars.next_if(word_char) {
                    rest.push(c);
                }
                Token::Word(rest.clone())
            }
            '{' | '}' | '(' | ')' | '[' | ']' | ',' | ':' | '=' | '<' | '>' => Token::Mark(c),
            other => return Err(Error::Parse { line, message: format!("unexpected {other:?}") }),
        };
        tokens.push((line, token));
    }
    Ok(())
}

fn quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, line: u32) -> Result<String, Error> {
    let mut text = String::new();
    loop {
        match chars.next() {
            Some('"') => return Ok(text),
            Some('\\') => match chars.next() {
                Some(c @ ('"' | '\\')) => text.push(c),
                _ => return Err(Error::Parse { line, message: "unknown escape".to_owned() }),
            },
            Some(c) => text.push(c),
            None => return Err(Error::Parse { line, message: "string does not end".to_owned() }),
        }
    }
}
