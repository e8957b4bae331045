//! From text to a kernel's declarations and instructions.

use super::ast::{Instruction, Item, Kernel, Operand, Ty, Variable};
use super::lex::{Token, lex};

/// Line and reason.
pub(super) type Fault = (u32, String);
type Parsed<T> = Result<T, Fault>;

struct Parser<'t> {
    tokens: Vec<(Token<'t>, u32)>,
    at: usize,
}

/// All kernels of a text, with the module's variables in each.
pub(super) fn parse(text: &str) -> Parsed<Vec<Kernel<'_>>> {
    let mut p = Parser { tokens: lex(text)?, at: 0 };
    let (mut kernels, mut shared) = (Vec::new(), Vec::new());
    while let Some(token) = p.peek().cloned() {
        match token {
            Token::Word(".version" | ".target") => p.skip_line(),
            Token::Word(".address_size") => {
                p.next();
                if p.integer()? != 64 {
                    return Err(p.fault("addresses of other than 64 bits"));
                }
            }
            Token::Word(".visible" | ".extern" | ".weak") => p.next(),
            Token::Word(".entry") => kernels.push(p.kernel()?),
            Token::Word(w @ (".shared" | ".global" | ".const")) => shared.push(p.variable(w)?),
            _ => return Err(p.fault("an entry point or a variable expected")),
        }
    }
    for k in &mut kernels {
        let mut body: Vec<Item<'_>> = shared.iter().cloned().map(Item::Variable).collect();
        body.append(&mut k.body);
        k.body = body;
    }
    Ok(kernels)
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<&Token<'t>> {
        self.tokens.get(self.at).map(|t| &t.0)
    }
    fn next(&mut self) {
        self.at += 1;
    }
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.1)
    }
    fn fault(&self, what: impl Into<String>) -> Fault {
        let found = match self.peek() {
            Some(Token::Word(w) | Token::Number(w) | Token::Text(w)) => format!(", found `{w}`"),
            Some(Token::Sign(c)) => format!(", found `{c}`"),
            None => ", found the end".to_owned(),
        };
        (self.line(), what.into() + &found)
    }
    fn skip_line(&mut self) {
        let line = self.line();
        while self.peek().is_some() && self.line() == line {
            self.next();
        }
    }
    fn is(&mut self, c: char) -> bool {
        let yes = self.peek() == Some(&Token::Sign(c));
        if yes {
            self.next();
        }
        yes
    }
    fn sign(&mut self, c: char) -> Parsed<()> {
        if self.is(c) { Ok(()) } else { Err(self.fault(format!("`{c}` expected"))) }
    }
    fn word(&mut self) -> Parsed<&'t str> {
        match self.peek() {
            Some(Token::Word(w)) => {
                let w = *w;
                self.next();
                Ok(w)
            }
            _ => Err(self.fault("a name expected")),
        }
    }
    fn integer(&mut self) -> Parsed<u64> {
        match self.peek() {
            Some(Token::Number(n)) => {
                let v = integer(n);
                let fault = self.fault("an integer expected");
                self.next();
                v.ok_or(fault)
            }
            _ => Err(self.fault("a number expected")),
        }
    }
    fn small(&mut self) -> Parsed<u32> {
        let fault = self.fault("a number below 2^32 expected");
        u32::try_from(self.integer()?).map_err(|_| fault)
    }
    fn ty(&mut self) -> Parsed<Ty> {
        let fault = self.fault("a type expected");
        let w = self.word()?;
        w.strip_prefix('.').and_then(Ty::named).ok_or(fault)
    }

    /// Behind the word that names the space.
    fn variable(&mut self, space: &'t str) -> Parsed<Variable<'t>> {
        let line = self.line();
        self.next();
        let v = self.declarator(space, line)?;
        self.sign(';')?;
        Ok(v)
    }
    fn declarator(&mut self, space: &'t str, line: u32) -> Parsed<Variable<'t>> {
        let mut align = None;
        while let Some(Token::Word(w @ (".align" | ".ptr" | ".global" | ".shared" | ".const"))) = self.peek() {
            let is_align = *w == ".align";
            self.next();
            if is_align {
                align = Some(self.small()?);
            }
        }
        let ty = self.ty()?;
        while let Some(Token::Word(w @ (".align" | ".ptr" | ".global" | ".shared" | ".const"))) = self.peek() {
            let is_align = *w == ".align";
            self.next();
            if is_align {
                self.small()?;
            }
        }
        let name = self.word()?;
        let mut len = 1;
        if self.is('[') {
            len = if self.is(']') { 0 } else { self.small()? };
            if len > 0 {
                self.sign(']')?;
            }
        }
        Ok(Variable { line, space, name, ty, align: align.unwrap_or(ty.bytes()), len })
    }

    fn kernel(&mut self) -> Parsed<Kernel<'t>> {
        self.next();
        let name = self.word()?;
        let mut parameters = Vec::new();
        if self.is('(') && !self.is(')') {
            loop {
                let line = self.line();
                if self.word()? != ".param" {
                    return Err((line, "`.param` expected".to_owned()));
                }
                parameters.push(self.declarator(".param", line)?);
                if self.is(')') {
                    break;
                }
                self.sign(',')?;
            }
        }
        let mut threads = None;
        while self.peek() != Some(&Token::Sign('{')) {
            let directive = self.word()?;
            let mut values = Vec::new();
            while let Some(Token::Number(_)) = self.peek() {
                values.push(self.small()?);
                self.is(',');
            }
            if directive == ".reqntid" {
                let at = |i: usize| values.get(i).copied().unwrap_or(1);
                threads = Some([at(0), at(1), at(2)]);
            }
        }
        self.next();
        let mut body = Vec::new();
        let mut depth = 1;
        while depth > 0 {
            if self.is('}') {
                depth -= 1;
            } else if self.is('{') {
                depth += 1;
            } else {
                self.item(&mut body)?;
            }
        }
        Ok(Kernel { name, parameters, threads, body })
    }

    fn item(&mut self, body: &mut Vec<Item<'t>>) -> Parsed<()> {
        let line = self.line();
        let mut guard = None;
        if self.is('@') {
            let negated = self.is('!');
            guard = Some((self.word()?, negated));
        }
        let word = self.word()?;
        match word {
            ".reg" => {
                let ty = self.ty()?;
                loop {
                    let name = self.word()?;
                    let count = if self.is('<') {
                        let n = self.small()?;
                        self.sign('>')?;
                        Some(n)
                    } else {
                        None
                    };
                    body.push(Item::Registers(ty, name, count));
                    if !self.is(',') {
                        break;
                    }
                }
                self.sign(';')?;
            }
            ".shared" | ".local" => {
                let v = self.declarator(word, line)?;
                self.sign(';')?;
                body.push(Item::Variable(v));
            }
            ".pragma" | ".loc" => {
                while !self.is(';') {
                    if self.peek().is_none() {
                        return Err(self.fault("`;` expected"));
                    }
                    self.next();
                }
            }
            _ if guard.is_none() && self.is(':') => body.push(Item::Label(word)),
            text => {
                let mut operands = Vec::new();
                if !self.is(';') {
                    loop {
                        operands.push(self.operand()?);
                        if self.is(';') {
                            break;
                        }
                        self.sign(',')?;
                    }
                }
                body.push(Item::Instruction(Instruction { line, guard, text, operands }));
            }
        }
        Ok(())
    }

    fn operand(&mut self) -> Parsed<Operand<'t>> {
        if self.is('[') {
            return self.address();
        }
        if self.is('{') {
            let mut parts = Vec::new();
            loop {
                parts.push(self.atom()?);
                if self.is('}') {
                    return Ok(Operand::Vector(parts));
                }
                self.sign(',')?;
            }
        }
        let first = self.atom()?;
        if self.is('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.atom()?)));
        }
        Ok(first)
    }

    /// Behind `[`.
    fn address(&mut self) -> Parsed<Operand<'t>> {
        let base = self.atom()?;
        if self.is(',') {
            self.sign('{')?;
            let mut from = vec![self.atom()?];
            while self.is(',') {
                from.push(self.atom()?);
            }
            self.sign('}')?;
            self.sign(']')?;
            return Ok(Operand::Tile(Box::new(base), from));
        }
        let mut offset = 0i64;
        while !self.is(']') {
            let negative = if self.is('-') {
                true
            } else {
                self.sign('+')?;
                self.is('-')
            };
            let n = i64::from(self.small()?);
            offset = offset.saturating_add(if negative { -n } else { n });
        }
        Ok(Operand::Address(Box::new(base), offset))
    }

    /// A name or a number.
    fn atom(&mut self) -> Parsed<Operand<'t>> {
        if self.is('!') {
            return Ok(Operand::Not(self.word()?));
        }
        let negative = self.is('-');
        match self.peek().cloned() {
            Some(Token::Number(n)) => {
                let value = number(n).ok_or_else(|| self.fault("a number expected"))?;
                self.next();
                Ok(match value {
                    Operand::Int(v) if negative => Operand::Int(v.wrapping_neg()),
                    Operand::Float(v) if negative => Operand::Float(v ^ 0x8000_0000),
                    v => v,
                })
            }
            Some(Token::Word("_")) => {
                self.next();
                Ok(Operand::Sink)
            }
            Some(Token::Word(w)) if !negative => {
                self.next();
                Ok(Operand::Name(w))
            }
            _ => Err(self.fault("an operand expected")),
        }
    }
}

fn integer(n: &str) -> Option<u64> {
    let n = n.strip_suffix('U').unwrap_or(n);
    match n.get(..2) {
        Some("0x" | "0X") => u64::from_str_radix(n.get(2..)?, 16).ok(),
        Some("0b" | "0B") => u64::from_str_radix(n.get(2..)?, 2).ok(),
        _ => n.parse().ok(),
    }
}

fn number<'t>(n: &str) -> Option<Operand<'t>> {
    match n.get(..2) {
        Some("0f" | "0F") => u32::from_str_radix(n.get(2..)?, 16).ok().map(Operand::Float),
        Some("0x" | "0X" | "0b" | "0B") => integer(n).map(Operand::Int),
        _ if n.contains('.') => n.parse::<f32>().ok().map(|v| Operand::Float(v.to_bits())),
        _ => integer(n).map(Operand::Int),
    }
}
