//! Reads one line at a time, keeping line and column.

use frit_kernels::dim::{Dim, DimError};

/// A text that is no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {fault}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was expected.
    pub fault: String,
}

/// A place in a line.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str, line: usize) -> Self {
        Cursor { text, at: 0, line }
    }
    pub(super) fn fault(&self, fault: impl Into<String>) -> ParseError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        ParseError { line: self.line, column: before.chars().count() + 1, fault: fault.into() }
    }
    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }
    pub(super) fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }
    pub(super) fn is_done(&mut self) -> bool {
        self.space();
        self.rest().is_empty()
    }
    /// Eats `token` after white space, if it is there.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        self.space();
        let hit = self.rest().starts_with(token);
        self.at += if hit { token.len() } else { 0 };
        hit
    }
    pub(super) fn expect(&mut self, token: &str) -> Result<(), ParseError> {
        if self.eat(token) { Ok(()) } else { Err(self.fault(format!("`{token}` expected"))) }
    }
    /// The longest run of characters that `ok` accepts, after white space.
    pub(super) fn run(&mut self, mut ok: impl FnMut(char) -> bool) -> &'a str {
        self.space();
        let rest = self.rest();
        let len = rest.find(|c| !ok(c)).unwrap_or(rest.len());
        self.at += len;
        rest.get(..len).unwrap_or("")
    }
    pub(super) fn word(&mut self) -> &'a str {
        self.run(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    }
    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T, ParseError> {
        let start = self.clone();
        let digits = self.run(|c| c.is_ascii_digit() || c == '-');
        digits.parse().map_err(|_| start.fault("an integer expected"))
    }
    /// `prefix` followed by a number, such as `@w3`.
    pub(super) fn id(&mut self, prefix: &str) -> Result<u32, ParseError> {
        self.expect(prefix)?;
        self.number()
    }
    /// A finite float, or the bits of any float as `0x…`.
    pub(super) fn float(&mut self) -> Result<f32, ParseError> {
        let start = self.clone();
        if self.eat("0x") {
            let bits = u32::from_str_radix(self.word(), 16);
            return bits.map(f32::from_bits).map_err(|_| start.fault("the bits of a float expected"));
        }
        let t = self.run(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'));
        t.parse().ok().filter(|v: &f32| v.is_finite()).ok_or_else(|| start.fault("a finite float expected"))
    }
    pub(super) fn quoted(&mut self) -> Result<String, ParseError> {
        self.expect("\"")?;
        let mut out = String::new();
        loop {
            let Some(c) = self.rest().chars().next() else { return Err(self.fault("`\"` expected")) };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\\' if self.rest().starts_with("u{") => {
                    let start = self.clone();
                    self.at += 2;
                    let code = u32::from_str_radix(self.word(), 16).ok().and_then(char::from_u32);
                    out.push(code.ok_or_else(|| start.fault("the number of a character expected"))?);
                    self.expect("}")?;
                }
                '\\' => {
                    let Some(c) = self.rest().chars().next() else { return Err(self.fault("a character expected")) };
                    self.at += c.len_utf8();
                    out.push(c);
                }
                c => out.push(c),
            }
        }
    }
    /// A size expression: everything up to a comma or closing bracket outside parentheses.
    pub(super) fn dim(&mut self) -> Result<Dim, ParseError> {
        self.space();
        let (start, rest) = (self.clone(), self.rest());
        let mut depth = 0usize;
        let mut len = rest.len();
        for (i, c) in rest.char_indices() {
            match c {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ',' | ']' | '}' if depth == 0 => {
                    len = i;
                    break;
                }
                _ => {}
            }
        }
        let text = rest.get(..len).unwrap_or("");
        self.at += len;
        text.trim_end().parse().map_err(|e: DimError| {
            let mut place = start;
            let reason = match e {
                DimError::Parse { at, reason, .. } => {
                    place.at += at;
                    reason
                }
                other => other.to_string(),
            };
            place.fault(reason)
        })
    }
    /// `[item, item, …]`.
    pub(super) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        self.expect("[")?;
        let mut out = Vec::new();
        if self.eat("]") {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.eat("]") {
                return Ok(out);
            }
            self.expect(",")?;
        }
    }
}
