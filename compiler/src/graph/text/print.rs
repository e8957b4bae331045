//! Graph to text.

use super::full_order;
use crate::graph::control::Control;
use crate::graph::{AttentionAttrs, Graph, NormKind, Op, RopeStyle, TensorType, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::spec::Literal;
use frit_plan::{InputFill, KvPart, sizes};
use std::collections::HashMap;
use std::fmt::Write;

/// The graph as text.
pub fn print(g: &Graph) -> String {
    let mut out = String::new();
    graph(g, 0, &mut out);
    out
}

fn graph(g: &Graph, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    let order = full_order(g);
    let number: HashMap<ValueId, usize> = order.iter().enumerate().map(|(i, v)| (*v, i)).collect();
    let name = |v: ValueId| number.get(&v).map_or("%?".to_owned(), |n| format!("%{n}"));
    let _ = writeln!(out, "{pad}graph {{");
    for i in &g.inputs {
        let fill = match i.fill {
            InputFill::Required => "",
            InputFill::Zeros => " fill zeros",
            InputFill::Ones => " fill ones",
        };
        let _ = writeln!(out, "{pad}  input {} {}{fill}", quoted(&i.name), name(i.value));
    }
    for v in &order {
        let node = g.node(*v);
        let _ = write!(out, "{pad}  {} = {}", name(*v), operation(&node.op, &node.ty));
        for (k, o) in g.operands(*v).into_iter().enumerate() {
            let _ = write!(out, "{}{}", if k == 0 { " " } else { ", " }, name(o));
        }
        let _ = write!(out, " : {}", node.ty);
        if !node.origin.is_empty() {
            let _ = write!(out, "  // {}", origin(&node.origin));
        }
        out.push('\n');
        if let Op::Control(c) = &node.op {
            graph(c.body(), indent + 4, out);
        }
    }
    for o in &g.outputs {
        let _ = write!(out, "{pad}  output {} {}", quoted(&o.name), name(o.value));
        if let Some(s) = o.state {
            let _ = write!(out, " state @s{}", s.0);
        }
        out.push('\n');
    }
    let _ = writeln!(out, "{pad}}}");
}

fn origin(s: &str) -> String {
    s.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list<T: std::fmt::Display>(v: &[T]) -> String {
    format!("[{}]", v.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
}

fn float(bits: u32) -> String {
    let v = f32::from_bits(bits);
    if v.is_finite() { format!("{v:?}") } else { format!("0x{bits:08x}") }
}

/// The operation with its attributes, `name{key=value, flag}`, or with its only operand-like attribute behind it.
fn operation(op: &Op, ty: &TensorType) -> String {
    let part = |p: &KvPart| if *p == KvPart::K { "k" } else { "v" };
    let target = |name: &str, shape: &[Dim]| {
        if *shape == *ty.shape { name.to_owned() } else { format!("{name}{{shape={}}}", list(shape)) }
    };
    match op {
        Op::Input(name) => format!("input {}", quoted(name)),
        Op::State(id) => format!("state @s{}", id.0),
        Op::Weight(id) => format!("weight @w{}", id.0),
        Op::Const(Literal::F32(bits)) => format!("const {}", float(*bits)),
        Op::Const(Literal::I32(v)) => format!("const {v}"),
        Op::Const(Literal::Bool(b)) => format!("const {b}"),
        Op::Iota { axis, offset } if offset.is(0) => format!("iota{{axis={axis}}}"),
        Op::Iota { axis, offset } => format!("iota{{axis={axis}, offset={offset}}}"),
        Op::Reshape(shape) => target("reshape", shape),
        Op::Broadcast(shape) => target("broadcast", shape),
        Op::Transpose(perm) => format!("transpose{{perm={}}}", list(perm)),
        Op::Slice { axis, start, len } => format!("slice{{axis={axis}, start={start}, len={len}}}"),
        Op::Concat { axis } => format!("concat{{axis={axis}}}"),
        Op::Reduce { axes, keep, .. } => {
            format!("{}{{axes={}{}}}", op.name(), list(axes), if *keep { ", keep" } else { "" })
        }
        Op::MatMul { b_transposed: true } => "matmul.bt".into(),
        Op::Norm { eps, has_gain, has_bias, kind: NormKind::Rms | NormKind::Layer } => {
            let flags = [(*has_gain, ", gain"), (*has_bias, ", bias")];
            let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, f)| *f).collect();
            format!("{}{{eps={}{flags}}}", op.name(), float(eps.0.to_bits()))
        }
        Op::Rope { style, rotary_dim } => {
            let style = if *style == RopeStyle::Half { "half" } else { "interleaved" };
            format!("rope{{style={style}, rotary_dim={rotary_dim}}}")
        }
        Op::KvAppend { slot, part: p, past } if *past != Dim::size(sizes::PAST) => {
            format!("{}{{slot=@kv{}, part={}, past={past}}}", op.name(), slot.0, part(p))
        }
        Op::KvAppend { slot, part: p, .. } | Op::KvRead { slot, part: p } | Op::KvLoad { slot, part: p } => {
            format!("{}{{slot=@kv{}, part={}}}", op.name(), slot.0, part(p))
        }
        Op::Attention(a) => format!("attention{{{}}}", attention(a)),
        Op::AttentionParts { attrs, parts } => format!("attention_parts{{parts={parts}, {}}}", attention(attrs)),
        Op::MergeParts { parts } => format!("merge_parts{{parts={parts}}}"),
        Op::Control(c) => match &**c {
            Control::Loop { trips, per_trip, .. } if per_trip.is_empty() => format!("loop{{trips={trips}}}"),
            Control::Loop { trips, per_trip, .. } => format!("loop{{trips={trips}, per_trip={}}}", list(per_trip)),
            Control::Predicated { .. } => "predicated".into(),
            Control::Exit { after_layer, .. } => format!("exit{{after_layer={after_layer}}}"),
        },
        other => other.name(),
    }
}

fn attention(a: &AttentionAttrs) -> String {
    let mut s = format!("scale={}", float(a.scale.0.to_bits()));
    if let Some(d) = &a.causal {
        let _ = write!(s, ", causal={d}");
    }
    if let Some(w) = a.window {
        let _ = write!(s, ", window={w}");
    }
    if let Some(c) = a.softcap {
        let _ = write!(s, ", softcap={}", float(c.0.to_bits()));
    }
    s.push_str(if a.has_mask { ", mask" } else { "" });
    s.push_str(if a.has_bias { ", bias" } else { "" });
    s
}
