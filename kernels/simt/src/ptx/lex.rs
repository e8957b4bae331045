//! Words and signs of a PTX text.

/// One word or sign.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'t> {
    /// Identifiers, registers, directives and instruction names with their dots: letters, digits, `_ $ % . :` within.
    Word(&'t str),
    /// A number as written, without sign.
    Number(&'t str),
    Text(&'t str),
    Sign(char),
}

/// Tokens with their lines, from 1.
pub(super) fn lex(text: &str) -> Result<Vec<(Token<'_>, u32)>, (u32, String)> {
    let (mut tokens, mut line, mut at) = (Vec::new(), 1, 0);
    let bytes = text.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.');
    while let Some(b) = bytes.get(at).copied() {
        let rest = text.get(at..).unwrap_or_default();
        match b {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b if b.is_ascii_whitespace() => at += 1,
            b'/' if rest.starts_with("//") => at += rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => {
                let len = rest.find("*/").map(|n| n + 2).ok_or((line, "comment without end".to_owned()))?;
                line += rest.get(..len).unwrap_or_default().matches('\n').count() as u32;
                at += len;
            }
            b'"' => {
                let len = rest.get(1..).and_then(|r| r.find('"')).ok_or((line, "string without end".to_owned()))?;
                tokens.push((Token::Text(rest.get(1..=len).unwrap_or_default()), line));
                at += len + 2;
            }
            b if b.is_ascii_digit() => {
                let len = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'.').count();
                tokens.push((Token::Number(rest.get(..len).unwrap_or_default()), line));
                at += len;
            }
            b if word(b) => {
                let mut len = rest.bytes().take_while(|b| word(*b)).count();
                // `L2::128B`: double colons belong to the word.
                while rest.get(len..).is_some_and(|r| r.starts_with("::")) {
                    len += 2;
                    len += rest.bytes().skip(len).take_while(|b| word(*b)).count();
                }
                tokens.push((Token::Word(rest.get(..len).unwrap_or_default()), line));
                at += len;
            }
            b if b.is_ascii() => {
                tokens.push((Token::Sign(b as char), line));
                at += 1;
            }
            _ => return Err((line, "a character outside ASCII".to_owned())),
        }
    }
    Ok(tokens)
}
