//! Text to graph. Types are taken as written; [`crate::graph::verify`] checks them.

use super::lex::{Cursor, ParseError};
use crate::graph::control::{BodyGraph, Control};
use crate::graph::{
    AttentionAttrs, Float, Graph, GraphInput, GraphOutput, KvSlotId, NormKind, Op, RopeStyle, StateId, TensorType,
    ValueId, WeightId,
};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal, ReduceOp, UnaryOp};
use frit_plan::{InputFill, KvPart, sizes};
use std::collections::HashMap;

const MAX_DEPTH: usize = 8;

/// Reads the text form.
///
/// # Errors
/// The first place that is no graph.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut lines = Lines { all: text.lines().enumerate().collect(), next: 0 };
    let g = graph(&mut lines, 0)?;
    match lines.take() {
        Some(c) => Err(c.fault("nothing expected behind the graph")),
        None => Ok(g),
    }
}

struct Lines<'a> {
    all: Vec<(usize, &'a str)>,
    next: usize,
}

impl<'a> Lines<'a> {
    /// The next line that holds something other than a comment.
    fn take(&mut self) -> Option<Cursor<'a>> {
        loop {
            let (n, text) = self.all.get(self.next)?;
            self.next += 1;
            let t = text.trim_start();
            if !t.is_empty() && !t.starts_with("//") {
                let mut c = Cursor::new(text.trim_end(), n + 1);
                c.space();
                return Some(c);
            }
        }
    }
    fn end(&self) -> ParseError {
        ParseError { line: self.all.len() + 1, column: 1, fault: "`}` expected".into() }
    }
}

fn graph(lines: &mut Lines<'_>, depth: usize) -> Result<Graph, ParseError> {
    let mut c = lines.take().ok_or_else(|| lines.end())?;
    if depth > MAX_DEPTH {
        return Err(c.fault(format!("graphs nested deeper than {MAX_DEPTH}")));
    }
    c.expect("graph")?;
    c.expect("{")?;
    end(&mut c)?;
    let mut g = Graph::new();
    let mut names: HashMap<String, ValueId> = HashMap::new();
    let mut inputs = Vec::new();
    loop {
        let mut c = lines.take().ok_or_else(|| lines.end())?;
        if c.eat("}") {
            end(&mut c)?;
            break;
        }
        if c.rest().starts_with('%') {
            node(&mut g, &mut names, &mut c, lines, depth)?;
        } else if c.eat("input") {
            let name = c.quoted()?;
            c.space();
            let (place, value) = (c.clone(), value_name(&mut c)?);
            let fill = match () {
                () if !c.eat("fill") => InputFill::Required,
                () if c.eat("zeros") => InputFill::Zeros,
                () if c.eat("ones") => InputFill::Ones,
                () => return Err(c.fault("`zeros` or `ones` expected")),
            };
            end(&mut c)?;
            inputs.push((name, value, fill, place));
        } else if c.eat("output") {
            let name = c.quoted()?;
            let value = operand(&names, &mut c)?;
            let state = c.eat("state").then(|| c.id("@s")).transpose()?.map(StateId);
            end(&mut c)?;
            g.outputs.push(GraphOutput { name, value, state });
        } else {
            return Err(c.fault("`%`, `input`, `output` or `}` expected"));
        }
    }
    for (name, value, fill, place) in inputs {
        let known = names.get(&value).copied();
        let value = known.ok_or_else(|| place.fault(format!("%{value} is not defined in this graph")))?;
        g.inputs.push(GraphInput { name, value, fill });
    }
    Ok(g)
}

fn end(c: &mut Cursor<'_>) -> Result<(), ParseError> {
    if c.is_done() || c.rest().starts_with("//") { Ok(()) } else { Err(c.fault("end of line expected")) }
}

fn value_name(c: &mut Cursor<'_>) -> Result<String, ParseError> {
    c.expect("%")?;
    match c.word() {
        "" => Err(c.fault("the name of a value expected")),
        w => Ok(w.to_owned()),
    }
}

fn operand(names: &HashMap<String, ValueId>, c: &mut Cursor<'_>) -> Result<ValueId, ParseError> {
    c.space();
    let place = c.clone();
    let name = value_name(c)?;
    names.get(&name).copied().ok_or_else(|| place.fault(format!("%{name} is not defined above")))
}

fn node(
    g: &mut Graph,
    names: &mut HashMap<String, ValueId>,
    c: &mut Cursor<'_>,
    lines: &mut Lines<'_>,
    depth: usize,
) -> Result<(), ParseError> {
    let place = c.clone();
    let name = value_name(c)?;
    c.expect("=")?;
    c.space();
    let head = c.clone();
    let mut raw = Raw { word: c.word().to_owned(), head, attrs: Vec::new(), subject: None };
    if c.eat("{") && !c.eat("}") {
        loop {
            c.space();
            let at = c.clone();
            let key = c.word().to_owned();
            let value = if c.eat("=") {
                let v = c.clone();
                skip_value(c);
                Some(v)
            } else {
                None
            };
            raw.attrs.push((key, value, at));
            if c.eat("}") {
                break;
            }
            c.expect(",")?;
        }
    }
    if matches!(raw.word.as_str(), "input" | "state" | "weight" | "const") {
        c.space();
        raw.subject = Some(c.clone());
        if raw.word == "input" {
            c.quoted()?;
        } else {
            c.run(|ch| ch != ' ' && ch != ':');
        }
    }
    let mut operands = Vec::new();
    while !c.eat(":") {
        if !operands.is_empty() {
            c.expect(",")?;
        }
        operands.push(operand(names, c)?);
    }
    let ty = tensor_type(c)?;
    c.space();
    let origin = c.rest().strip_prefix("//").map(|o| o.trim().to_owned());
    if origin.is_none() {
        end(c)?;
    }
    if operands.len() > 255 {
        return Err(place.fault("more than 255 operands"));
    }
    let op = raw.op(&ty, lines, depth)?;
    let v = g.push(op, &operands, ty, &origin.unwrap_or_default());
    if names.insert(name.clone(), v).is_some() {
        return Err(place.fault(format!("%{name} is defined twice")));
    }
    Ok(())
}

fn skip_value(c: &mut Cursor<'_>) {
    let mut depth = 0usize;
    let rest = c.rest();
    let len = rest.char_indices().find(|(_, ch)| {
        match ch {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && matches!(ch, ',' | '}')
    });
    let stop = len.map_or(rest.len(), |(i, _)| i);
    let mut at = 0;
    c.run(|ch| {
        let go = at < stop;
        at += ch.len_utf8();
        go
    });
}

fn tensor_type(c: &mut Cursor<'_>) -> Result<TensorType, ParseError> {
    c.space();
    let place = c.clone();
    let scalar = match c.word() {
        "f32" => Scalar::F32,
        "i32" => Scalar::I32,
        "bool" => Scalar::Bool,
        _ => return Err(place.fault("`f32`, `i32` or `bool` expected")),
    };
    Ok(TensorType::new(scalar, c.list(Cursor::dim)?))
}

/// An operation as written: its name, its attributes and what stands behind it.
struct Raw<'a> {
    word: String,
    head: Cursor<'a>,
    attrs: Vec<(String, Option<Cursor<'a>>, Cursor<'a>)>,
    subject: Option<Cursor<'a>>,
}

impl<'a> Raw<'a> {
    /// The place of an attribute's value; it counts as read.
    fn value(&mut self, key: &str) -> Option<Cursor<'a>> {
        let i = self.attrs.iter().position(|a| a.0 == key && a.1.is_some())?;
        self.attrs.remove(i).1
    }
    fn flag(&mut self, key: &str) -> bool {
        let i = self.attrs.iter().position(|a| a.0 == key && a.1.is_none());
        i.map(|i| self.attrs.remove(i)).is_some()
    }
    fn optional<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<T, ParseError>,
    ) -> Result<Option<T>, ParseError> {
        let Some(mut c) = self.value(key) else { return Ok(None) };
        let v = read(&mut c)?;
        c.space();
        if c.rest().starts_with([',', '}']) { Ok(Some(v)) } else { Err(c.fault("`,` or `}` expected")) }
    }
    fn required<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<T, ParseError>,
    ) -> Result<T, ParseError> {
        let place = self.head.clone();
        self.optional(key, read)?.ok_or_else(|| place.fault(format!("the attribute `{key}` expected")))
    }
    fn subject(&mut self) -> Result<Cursor<'a>, ParseError> {
        self.subject.take().ok_or_else(|| self.head.fault("something expected behind the operation"))
    }
    fn op(mut self, ty: &TensorType, lines: &mut Lines<'_>, depth: usize) -> Result<Op, ParseError> {
        let word = self.word.clone();
        let op = self.known(&word, ty, lines, depth)?;
        match self.attrs.first() {
            Some((key, _, at)) => Err(at.fault(format!("`{word}` has no attribute `{key}`, or not of this form"))),
            None => Ok(op),
        }
    }
    fn known(&mut self, word: &str, ty: &TensorType, lines: &mut Lines<'_>, depth: usize) -> Result<Op, ParseError> {
        let usizes = |c: &mut Cursor<'a>| c.list(Cursor::number::<usize>);
        let dims = |c: &mut Cursor<'a>| c.list(Cursor::dim);
        Ok(match word {
            "input" => Op::Input(self.subject()?.quoted()?),
            "state" => Op::State(StateId(self.subject()?.id("@s")?)),
            "weight" => Op::Weight(WeightId(self.subject()?.id("@w")?)),
            "const" => Op::Const(literal(self.subject()?, ty.scalar)?),
            "iota" => Op::Iota {
                axis: self.required("axis", Cursor::number)?,
                offset: self.optional("offset", Cursor::dim)?.unwrap_or_else(Dim::zero),
            },
            "select" => Op::Select,
            "cast_f32" => Op::Cast(Scalar::F32),
            "cast_i32" => Op::Cast(Scalar::I32),
            "cast_bool" => Op::Cast(Scalar::Bool),
            "reshape" => Op::Reshape(self.optional("shape", dims)?.unwrap_or_else(|| ty.shape.clone())),
            "broadcast" => Op::Broadcast(self.optional("shape", dims)?.unwrap_or_else(|| ty.shape.clone())),
            "transpose" => Op::Transpose(self.required("perm", usizes)?),
            "slice" => Op::Slice {
                axis: self.required("axis", Cursor::number)?,
                start: self.required("start", Cursor::dim)?,
                len: self.required("len", Cursor::dim)?,
            },
            "concat" => Op::Concat { axis: self.required("axis", Cursor::number)? },
            "gather" => Op::Gather,
            "matmul" => Op::MatMul { b_transposed: false },
            "matmul.bt" => Op::MatMul { b_transposed: true },
            "softmax" => Op::Softmax,
            "rms_norm" | "layer_norm" => Op::Norm {
                kind: if word == "rms_norm" { NormKind::Rms } else { NormKind::Layer },
                eps: Float(self.required("eps", Cursor::float)?),
                has_gain: self.flag("gain"),
                has_bias: self.flag("bias"),
            },
            "rope" => Op::Rope {
                style: self.required("style", |c| match c.word() {
                    "half" => Ok(RopeStyle::Half),
                    "interleaved" => Ok(RopeStyle::Interleaved),
                    _ => Err(c.fault("`half` or `interleaved` expected")),
                })?,
                rotary_dim: self.required("rotary_dim", Cursor::number)?,
            },
            "kv_append" | "kv_read" | "kv_load" => {
                let slot = KvSlotId(self.required("slot", |c| c.id("@kv"))?);
                let part = self.required("part", |c| match c.word() {
                    "k" => Ok(KvPart::K),
                    "v" => Ok(KvPart::V),
                    _ => Err(c.fault("`k` or `v` expected")),
                })?;
                let past = self.optional("past", Cursor::dim)?.unwrap_or_else(|| Dim::size(sizes::PAST));
                match word {
                    "kv_append" => Op::KvAppend { slot, part, past },
                    "kv_load" => Op::KvLoad { slot, part },
                    _ => Op::KvRead { slot, part },
                }
            }
            "attention" => Op::Attention(self.attention()?),
            "attention_parts" => {
                let parts = self.required("parts", Cursor::number)?;
                Op::AttentionParts { attrs: self.attention()?, parts }
            }
            "merge_parts" => Op::MergeParts { parts: self.required("parts", Cursor::number)? },
            "loop" => Op::Control(Box::new(Control::Loop {
                trips: self.required("trips", Cursor::dim)?,
                per_trip: self.optional("per_trip", usizes)?.unwrap_or_default(),
                body: Box::new(BodyGraph(graph(lines, depth + 1)?)),
            })),
            "predicated" => {
                let body = Box::new(BodyGraph(graph(lines, depth + 1)?));
                Op::Control(Box::new(Control::Predicated { body }))
            }
            "exit" => {
                let after_layer = self.required("after_layer", Cursor::number)?;
                let body = Box::new(BodyGraph(graph(lines, depth + 1)?));
                Op::Control(Box::new(Control::Exit { after_layer, body }))
            }
            _ => {
                if let Some(op) = word.strip_prefix("reduce_").and_then(from_name::<ReduceOp>) {
                    return Ok(Op::Reduce { op, axes: self.required("axes", usizes)?, keep: self.flag("keep") });
                }
                if let Some(op) = from_name::<UnaryOp>(word) {
                    return Ok(Op::Unary(op));
                }
                if let Some(op) = from_name::<BinaryOp>(word) {
                    return Ok(Op::Binary(op));
                }
                return Err(self.head.fault(format!("there is no operation `{word}`")));
            }
        })
    }
    fn attention(&mut self) -> Result<AttentionAttrs, ParseError> {
        Ok(AttentionAttrs {
            scale: Float(self.required("scale", Cursor::float)?),
            causal: self.optional("causal", Cursor::dim)?,
            window: self.optional("window", Cursor::number)?,
            softcap: self.optional("softcap", Cursor::float)?.map(Float),
            has_mask: self.flag("mask"),
            has_bias: self.flag("bias"),
        })
    }
}

/// The variant of an enum that serialises to `name`.
fn from_name<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

fn literal(mut c: Cursor<'_>, scalar: Scalar) -> Result<Literal, ParseError> {
    match scalar {
        Scalar::F32 => c.float().map(Literal::f32),
        Scalar::I32 => c.number().map(Literal::I32),
        Scalar::Bool if c.eat("true") => Ok(Literal::Bool(true)),
        Scalar::Bool if c.eat("false") => Ok(Literal::Bool(false)),
        Scalar::Bool => Err(c.fault("`true` or `false` expected")),
    }
}
