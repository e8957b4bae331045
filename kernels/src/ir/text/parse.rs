//! Text to module. The grammar is checked here; everything else is the verifier's business.

use std::collections::BTreeMap;

use super::lex::{Token, lex};
use super::{builtin_name, builtins};
use crate::dtype::HalfFormat;
use crate::ir::arena::Handle;
use crate::ir::error::Error;
use crate::ir::expr::{ArrayRef, BinaryOp, Expr, Literal, TernaryOp, UnaryOp};
use crate::ir::module::{Access, Array, Buffer, Field, Local, LocalKind, Module, Texture, TileMap, UniformBlock};
use crate::ir::stmt::{Barrier, Block, Collective, Stmt, TileOp};
use crate::ir::types::{Scalar, Type, Width};

/// Blocks and operands may nest this deep.
const MAX_DEPTH: u32 = 200;

/// Reads the text form of a module.
pub fn parse(source: &str) -> Result<Module, Error> {
    let mut parser = Parser {
        tokens: lex(source)?,
        at: 0,
        depth: 0,
        module: Module::default(),
        arrays: BTreeMap::new(),
        uniforms: BTreeMap::new(),
        locals: BTreeMap::new(),
    };
    parser.module()?;
    Ok(parser.module.compact())
}

pub(super) struct Parser {
    tokens: Vec<(u32, Token)>,
    at: usize,
    depth: u32,
    pub(super) module: Module,
    pub(super) arrays: BTreeMap<String, ArrayRef>,
    uniforms: BTreeMap<String, Handle<UniformBlock>>,
    locals: BTreeMap<String, Handle<Local>>,
}

pub(super) type Parsed<T> = Result<T, Error>;

impl Parser {
    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        let line = self.tokens.get(self.at.saturating_sub(1)).map_or(1, |(line, _)| *line);
        Err(Error::Parse { line, message: message.into() })
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn next(&mut self) -> Parsed<Token> {
        match self.tokens.get(self.at) {
            Some((_, token)) => {
                self.at += 1;
                Ok(token.clone())
            }
            None => self.fail("text ends too early"),
        }
    }

    pub(super) fn mark(&mut self, wanted: char) -> Parsed<()> {
        match self.next()? {
            Token::Mark(c) if c == wanted => Ok(()),
            other => self.fail(format!("expected `{wanted}`, found {other:?}")),
        }
    }

    pub(super) fn take_mark(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(&Token::Mark(wanted));
        self.at += usize::from(found);
        found
    }

    pub(super) fn word(&mut self) -> Parsed<String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => self.fail(format!("expected a word, found {other:?}")),
        }
    }

    pub(super) fn keyword(&mut self, wanted: &str) -> Parsed<()> {
        let word = self.word()?;
        if word == wanted { Ok(()) } else { self.fail(format!("expected `{wanted}`, found `{word}`")) }
    }

    fn take_keyword(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if word == wanted);
        self.at += usize::from(found);
        found
    }

    pub(super) fn name(&mut self, sigil: char) -> Parsed<String> {
        match self.next()? {
            Token::Name(c, name) if c == sigil => Ok(name),
            other => self.fail(format!("expected a `{sigil}` name, found {other:?}")),
        }
    }

    fn text(&mut self) -> Parsed<String> {
        match self.next()? {
            Token::Text(text) => Ok(text),
            other => self.fail(format!("expected a string, found {other:?}")),
        }
    }

    fn count(&mut self) -> Parsed<u32> {
        match self.next()? {
            Token::Number(text) => match text.parse() {
                Ok(value) => Ok(value),
                Err(_) => self.fail(format!("`{text}` is no count")),
            },
            other => self.fail(format!("expected a count, found {other:?}")),
        }
    }

    fn scalar(&mut self) -> Parsed<Scalar> {
        let word = self.word()?;
        scalar_named(&word).map_or_else(|| self.fail(format!("`{word}` is no type")), Ok)
    }

    fn ty(&mut self) -> Parsed<Type> {
        let width = match self.peek() {
            Some(Token::Word(word)) if word == "vec2" => Width::Two,
            Some(Token::Word(word)) if word == "vec4" => Width::Four,
            _ => return Ok(Type::new(self.scalar()?, Width::One)),
        };
        self.at += 1;
        self.mark('<')?;
        let scalar = self.scalar()?;
        self.mark('>')?;
        Ok(Type::new(scalar, width))
    }

    fn module(&mut self) -> Parsed<()> {
        self.keyword("kernel")?;
        self.module.name = self.word()?;
        loop {
            match self.word()?.as_str() {
                "doc" => {
                    let text = self.text()?;
                    self.module.doc.push(text);
                }
                "workgroup_size" => self.module.workgroup_size = [self.count()?, self.count()?, self.count()?],
                "buffer" => self.buffer()?,
                "uniform" => self.uniform()?,
                "workgroup" => {
                    let array = self.array()?;
                    let name = array.name.clone();
                    let handle = ArrayRef::Workgroup(self.module.workgroup.append(array));
                    self.add_array(name, handle)?;
                }
                "private" => {
                    let array = self.array()?;
                    let name = array.name.clone();
                    let handle = ArrayRef::Private(self.module.private.append(array));
                    self.add_array(name, handle)?;
                }
                "body" => break,
                other => return self.fail(format!("unknown declaration `{other}`")),
            }
        }
        self.module.body = self.block()?;
        match self.peek() {
            None => Ok(()),
            Some(_) => {
                self.at += 1;
                self.fail("text after the body")
            }
        }
    }

    fn add_array(&mut self, name: String, array: ArrayRef) -> Parsed<()> {
        match self.arrays.insert(name.clone(), array) {
            None => Ok(()),
            Some(_) => self.fail(format!("`@{name}` is declared twice")),
        }
    }

    fn buffer(&mut self) -> Parsed<()> {
        let name = self.name('@')?;
        self.keyword("binding")?;
        let binding = self.count()?;
        let access = match self.word()?.as_str() {
            "read" => Access::ReadOnly,
            "constant" => Access::Constant,
            "read_write" => Access::ReadWrite,
            "texels" => Access::Texels(Texture::Storage),
            "sampled_texels" => Access::Texels(Texture::Sampled),
            "tiles" => {
                self.mark('(')?;
                let columns = u64::from(self.count()?);
                self.mark(',')?;
                let rows = u64::from(self.count()?);
                self.mark(',')?;
                let tile_rows = self.count()?;
                self.mark(')')?;
                Access::Tiles(TileMap { columns, rows, tile_rows })
            }
            other => return self.fail(format!("unknown access `{other}`")),
        };
        let elem = self.ty()?;
        let handle = self.module.buffers.append(Buffer { name: name.clone(), binding, access, elem });
        self.add_array(name, ArrayRef::Buffer(handle))
    }

    fn uniform(&mut self) -> Parsed<()> {
        let name = self.name('$')?;
        self.keyword("binding")?;
        let binding = self.count()?;
        self.mark('{')?;
        let mut fields = Vec::new();
        while !self.take_mark('}') {
            let name = self.word()?;
            self.mark(':')?;
            fields.push(Field { name, scalar: self.scalar()? });
            self.take_mark(',');
        }
        let handle = self.module.uniforms.append(UniformBlock { name: name.clone(), binding, fields });
        match self.uniforms.insert(name.clone(), handle) {
            None => Ok(()),
            Some(_) => self.fail(format!("`${name}` is declared twice")),
        }
    }

    fn array(&mut self) -> Parsed<Array> {
        let name = self.name('@')?;
        let elem = self.ty()?;
        self.mark('[')?;
        let len = self.count()?;
        self.mark(']')?;
        Ok(Array { name, elem, len })
    }

    fn enter(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { self.fail("nested too deeply") } else { Ok(()) }
    }

    fn block(&mut self) -> Parsed<Block> {
        self.enter()?;
        self.mark('{')?;
        let mut block = Block::new();
        while !self.take_mark('}') {
            block.push(self.stmt()?);
        }
        self.depth -= 1;
        Ok(block)
    }

    fn declare(&mut self, kind: LocalKind) -> Parsed<(String, Local)> {
        let name = self.name('%')?;
        self.mark(':')?;
        let ty = self.ty()?;
        self.mark('=')?;
        Ok((name.clone(), Local { name, ty, kind }))
    }

    fn define(&mut self, (name, local): (String, Local)) -> Parsed<Handle<Local>> {
        let handle = self.module.locals.append(local);
        match self.locals.insert(name.clone(), handle) {
            None => Ok(handle),
            Some(_) => self.fail(format!("`%{name}` is defined twice")),
        }
    }

    fn stmt(&mut self) -> Parsed<Stmt> {
        let word = self.word()?;
        match word.as_str() {
            "comment" => Ok(Stmt::Comment(self.text()?)),
            "let" => {
                let local = self.declare(LocalKind::Let)?;
                let value = self.expr()?;
                Ok(Stmt::Let { local: self.define(local)?, value })
            }
            "var" => {
                let local = self.declare(LocalKind::Var)?;
                let init = self.expr()?;
                Ok(Stmt::Var { local: self.define(local)?, init })
            }
            "set" => {
                let local = self.local()?;
                self.mark('=')?;
                Ok(Stmt::Assign { local, value: self.expr()? })
            }
            "store" => {
                let (array, index) = self.element()?;
                self.mark('=')?;
                Ok(Stmt::Store { array, index, value: self.expr()? })
            }
            "barrier" => match self.word()?.as_str() {
                "workgroup" => Ok(Stmt::Barrier(Barrier::Workgroup)),
                "storage" => Ok(Stmt::Barrier(Barrier::Storage)),
                "subgroup" => Ok(Stmt::Barrier(Barrier::Subgroup)),
                "launch" => Ok(Stmt::Barrier(Barrier::Launch)),
                other => self.fail(format!("unknown barrier `{other}`")),
            },
            "collective" => self.collective(),
            "copy" | "commit" | "wait" | "load_matrix" | "multiply" => self.tile(&word),
            "make_barrier" | "arrive" | "await" | "bring" | "publish" | "multiply_tiles" | "settle" => {
                self.warpgroup(&word)
            }
            "uniform_load" => {
                let local = self.declare(LocalKind::Let)?;
                let (array, index) = self.element()?;
                Ok(Stmt::UniformLoad { local: self.define(local)?, array, index })
            }
            "for" => {
                let local = self.declare(LocalKind::Loop)?;
                let start = self.expr()?;
                self.keyword("to")?;
                let end = self.expr()?;
                self.keyword("step")?;
                let step = self.expr()?;
                let unroll = self.take_keyword("unroll");
                let local = self.define(local)?;
                Ok(Stmt::For { local, start, end, step, unroll, body: self.block()? })
            }
            "if" => {
                let cond = self.expr()?;
                let then = self.block()?;
                let otherwise = if self.take_keyword("else") { self.block()? } else { Block::new() };
                Ok(Stmt::If { cond, then, otherwise })
            }
            other => self.fail(format!("unknown statement `{other}`")),
        }
    }

    fn collective(&mut self) -> Parsed<Stmt> {
        let local = self.declare(LocalKind::Let)?;
        let op = self.word()?;
        self.mark('(')?;
        let value = self.expr()?;
        let op = match op.as_str() {
            "subgroup_add" => Collective::Add,
            "subgroup_max" => Collective::Max,
            "subgroup_min" => Collective::Min,
            "subgroup_broadcast_first" => Collective::BroadcastFirst,
            "subgroup_shuffle_xor" | "subgroup_broadcast" => {
                self.mark(',')?;
                let number = self.expr()?;
                match self.module.exprs[number] {
                    Expr::Literal(Literal::U32(mask)) if op == "subgroup_shuffle_xor" => Collective::ShuffleXor(mask),
                    Expr::Literal(Literal::U32(lane)) => Collective::Broadcast(lane),
                    _ => return self.fail("shuffle mask or lane is no u32 constant"),
                }
            }
            other => return self.fail(format!("unknown collective `{other}`")),
        };
        self.mark(')')?;
        Ok(Stmt::Collective { local: self.define(local)?, op, value })
    }

    fn tile(&mut self, word: &str) -> Parsed<Stmt> {
        let op = match word {
            "copy" => {
                let (to, to_index) = self.element()?;
                self.mark('=')?;
                let (from, from_index) = self.element()?;
                self.keyword("where")?;
                let active = self.expr()?;
                let (ArrayRef::Workgroup(to), ArrayRef::Buffer(from)) = (to, from) else {
                    return self.fail("copies go from a buffer to workgroup memory");
                };
                TileOp::Copy { to, to_index, from, from_index, active }
            }
            "commit" => TileOp::Commit,
            "wait" => {
                let pending = self.expr()?;
                match self.module.exprs[pending] {
                    Expr::Literal(Literal::U32(pending)) => TileOp::Wait(pending),
                    _ => return self.fail("number of groups is no u32 constant"),
                }
            }
            "load_matrix" => {
                let local = self.declare(LocalKind::Let)?;
                let (array, index) = self.element()?;
                let ArrayRef::Workgroup(array) = array else {
                    return self.fail("matrices are loaded from workgroup memory");
                };
                TileOp::Load { local: self.define(local)?, array, index }
            }
            _ => {
                let sum = self.local()?;
                self.mark('=')?;
                let format = self.half_format()?;
                self.mark('(')?;
                let a = self.expr()?;
                self.mark(',')?;
                let b = self.expr()?;
                self.mark(')')?;
                TileOp::Multiply { sum, a, b, format }
            }
        };
        Ok(Stmt::Tile(op))
    }

    pub(super) fn half_format(&mut self) -> Parsed<HalfFormat> {
        match self.word()?.as_str() {
            "f16" => Ok(HalfFormat::F16),
            "bf16" => Ok(HalfFormat::Bf16),
            other => self.fail(format!("unknown matrix format `{other}`")),
        }
    }
    pub(super) fn local(&mut self) -> Parsed<Handle<Local>> {
        let name = self.name('%')?;
        match self.locals.get(&name) {
            Some(local) => Ok(*local),
            None => self.fail(format!("`%{name}` is not defined")),
        }
    }

    pub(super) fn element(&mut self) -> Parsed<(ArrayRef, Handle<Expr>)> {
        let name = self.name('@')?;
        let Some(array) = self.arrays.get(&name).copied() else {
            return self.fail(format!("`@{name}` is not declared"));
        };
        self.mark('[')?;
        let index = self.expr()?;
        self.mark(']')?;
        Ok((array, index))
    }

    pub(super) fn expr(&mut self) -> Parsed<Handle<Expr>> {
        self.enter()?;
        let expr = match self.peek() {
            Some(Token::Name('@', _)) => {
                let (array, index) = self.element()?;
                Expr::Load { array, index }
            }
            Some(Token::Name('%', _)) => Expr::Local(self.local()?),
            Some(Token::Name('$', _)) => self.member()?,
            Some(Token::Number(_)) => Expr::Literal(self.number()?),
            _ => {
                let word = self.word()?;
                self.operation(&word)?
            }
        };
        self.depth -= 1;
        Ok(self.module.exprs.append(expr))
    }

    fn member(&mut self) -> Parsed<Expr> {
        let path = self.name('$')?;
        let (name, member) = path.split_once('.').unwrap_or((&path, ""));
        let found = self.uniforms.get(name).and_then(|h| {
            let position = self.module.uniforms[*h].fields.iter().position(|f| f.name == member)?;
            Some(Expr::Uniform { block: *h, field: position as u32 })
        });
        found.map_or_else(|| self.fail(format!("`${path}` is not declared")), Ok)
    }

    fn number(&mut self) -> Parsed<Literal> {
        let Token::Number(text) = self.next()? else { return self.fail("expected a number") };
        let literal = if let Some(bits) = text.strip_suffix("fbits") {
            bits.parse().ok().map(Literal::F32)
        } else if let Some(value) = text.strip_suffix('f') {
            value.parse().ok().map(Literal::f32)
        } else if let Some(value) = text.strip_suffix('u') {
            value.parse().ok().map(Literal::U32)
        } else {
            text.strip_suffix('i').and_then(|value| value.parse().ok().map(Literal::I32))
        };
        literal.map_or_else(|| self.fail(format!("`{text}` is no constant")), Ok)
    }

    fn operation(&mut self, word: &str) -> Parsed<Expr> {
        match word {
            "true" => return Ok(Expr::Literal(Literal::Bool(true))),
            "false" => return Ok(Expr::Literal(Literal::Bool(false))),
            _ => {}
        }
        if let Some(builtin) = builtins().into_iter().find(|b| builtin_name(*b) == word) {
            return Ok(Expr::Builtin(builtin));
        }
        let args = self.arguments()?;
        let made = match args.as_slice() {
            [a] => self.unary(word, *a),
            [a, b] => BinaryOp::ALL.iter().find(|op| op.name() == word).map(|op| Expr::Binary(*op, *a, *b)),
            [a, b, c] => TernaryOp::ALL.iter().find(|op| op.name() == word).map(|op| Expr::Ternary(*op, *a, *b, *c)),
            _ => None,
        };
        match made {
            Some(expr) => Ok(expr),
            None if word == "vec" => Ok(Expr::Compose(args)),
            None => self.fail(format!("no operation `{word}` of {} operands", args.len())),
        }
    }

    fn unary(&self, word: &str, value: Handle<Expr>) -> Option<Expr> {
        if let Some(op) = UnaryOp::ALL.iter().find(|op| op.name() == word) {
            return Some(Expr::Unary(*op, value));
        }
        if let Some(lane) = word.strip_prefix("lane") {
            return lane.parse().ok().map(|lane| Expr::Extract { value, lane });
        }
        if let Some(to) = word.strip_prefix("to_") {
            return scalar_named(to).map(|to| Expr::Cast { to, value });
        }
        if let Some(to) = word.strip_prefix("bits_") {
            return scalar_named(to).map(|to| Expr::Bitcast { to, value });
        }
        match word {
            "splat2" => Some(Expr::Splat { width: Width::Two, value }),
            "splat4" => Some(Expr::Splat { width: Width::Four, value }),
            _ => None,
        }
    }

    fn arguments(&mut self) -> Parsed<Vec<Handle<Expr>>> {
        self.mark('(')?;
        let mut args = vec![self.expr()?];
        while self.take_mark(',') {
            args.push(self.expr()?);
        }
        self.mark(')')?;
        Ok(args)
    }
}

fn scalar_named(name: &str) -> Option<Scalar> {
    [Scalar::F32, Scalar::U32, Scalar::I32, Scalar::Bool, Scalar::F16, Scalar::Bf16]
        .into_iter()
        .find(|s| s.name() == name)
}
