//! Size expressions as text: printed, read back, and stored in artifacts.

use super::{Atom, Dim, DimError, Sym};
use std::fmt;

impl fmt::Display for Sym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sym::Size(n) => write!(f, "{n}"),
            Sym::Axis(k) => write!(f, "i{k}"),
            Sym::Value(k) => write!(f, "v{k}"),
        }
    }
}
impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(s) => write!(f, "{s}"),
            Atom::Div(a, b) => write!(f, "div({a}, {b})"),
            Atom::Mod(a, b) => write!(f, "mod({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
        }
    }
}
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return write!(f, "0");
        }
        let constant = self.terms.iter().filter(|(m, _)| m.is_empty());
        let symbolic = self.terms.iter().filter(|(m, _)| !m.is_empty());
        for (n, (m, c)) in symbolic.chain(constant).enumerate() {
            let sign = if *c < 0 { "-" } else { "+" };
            match (n, *c < 0) {
                (0, true) => write!(f, "-")?,
                (0, false) => {}
                _ => write!(f, " {sign} ")?,
            }
            let k = c.unsigned_abs();
            if k != 1 || m.is_empty() {
                write!(f, "{k}")?;
            }
            for (i, a) in m.iter().enumerate() {
                if i > 0 || k != 1 {
                    write!(f, "*")?;
                }
                write!(f, "{a}")?;
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for Dim {
    type Err = DimError;
    fn from_str(text: &str) -> Result<Self, DimError> {
        let mut p = Parser { text, at: 0, depth: 0 };
        let d = p.sum()?;
        p.space();
        if p.at < text.len() { Err(p.fault("end of expression expected")) } else { Ok(d) }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn fault(&self, reason: &str) -> DimError {
        DimError::Parse { text: self.text.chars().take(200).collect(), at: self.at, reason: reason.into() }
    }
    fn space(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
    fn eat(&mut self, c: u8) -> bool {
        self.space();
        let hit = self.peek() == Some(c);
        self.at += usize::from(hit);
        hit
    }
    fn sum(&mut self) -> Result<Dim, DimError> {
        self.depth += 1;
        if self.depth > 64 {
            return Err(self.fault("nesting deeper than 64"));
        }
        let mut d = if self.eat(b'-') { Dim::zero() - self.product()? } else { self.product()? };
        loop {
            if self.eat(b'+') {
                d = d + self.product()?;
            } else if self.eat(b'-') {
                d = d - self.product()?;
            } else {
                self.depth -= 1;
                return Ok(d);
            }
        }
    }
    fn product(&mut self) -> Result<Dim, DimError> {
        let mut d = self.factor()?;
        while self.eat(b'*') {
            d = &d * &self.factor()?;
        }
        Ok(d)
    }
    fn word(&mut self, ok: fn(u8) -> bool) -> &str {
        let start = self.at;
        while self.peek().is_some_and(ok) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or("")
    }
    fn factor(&mut self) -> Result<Dim, DimError> {
        self.space();
        match self.peek() {
            Some(b'(') => {
                self.at += 1;
                let d = self.sum()?;
                if self.eat(b')') { Ok(d) } else { Err(self.fault("`)` expected")) }
            }
            Some(b'0'..=b'9') => {
                let digits = self.word(|c| c.is_ascii_digit()).parse::<i64>();
                digits.map(Dim::constant).map_err(|_| self.fault("a number below 2^63 expected"))
            }
            Some(c) if c.is_ascii_alphabetic() || c == b'_' => {
                let name = self.word(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'.').to_owned();
                if matches!(name.as_str(), "div" | "mod" | "max" | "min") && self.eat(b'(') {
                    let a = self.sum()?;
                    if !self.eat(b',') {
                        return Err(self.fault("`,` expected"));
                    }
                    let b = self.sum()?;
                    if !self.eat(b')') {
                        return Err(self.fault("`)` expected"));
                    }
                    return Ok(match name.as_str() {
                        "div" => a.div(&b),
                        "mod" => a.rem(&b),
                        "max" => a.larger(&b),
                        _ => a.smaller(&b),
                    });
                }
                let number = |p: &str| name.strip_prefix(p).and_then(|n| n.parse::<u32>().ok());
                Ok(match (number("i"), number("v")) {
                    (Some(k), _) if k < 256 => Dim::axis(k as usize),
                    (_, Some(k)) => Dim::value(k),
                    _ => Dim::size(&name),
                })
            }
            _ => Err(self.fault("a number, a name or `(` expected")),
        }
    }
}

impl serde::Serialize for Dim {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(v) => s.serialize_i64(v),
            None => s.collect_str(self),
        }
    }
}
impl<'de> serde::Deserialize<'de> for Dim {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Dim;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an integer or a size expression")
            }
            fn visit_i64<E>(self, v: i64) -> Result<Dim, E> {
                Ok(Dim::constant(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Dim, E> {
                Ok(Dim::from(v))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Dim, E> {
                v.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}
