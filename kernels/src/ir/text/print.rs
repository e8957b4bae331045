//! Module to text.

use std::fmt::Write;

use super::builtin_name;
use crate::ir::arena::Handle;
use crate::ir::expr::{ArrayRef, Expr, Literal};
use crate::ir::module::{Access, Array, Local, Module, Texture};
use crate::ir::stmt::{Barrier, Block, Collective, Stmt, TileOp};
use crate::ir::warpgroup::{Place, WarpgroupOp};

/// The text form of a module.
pub fn print(module: &Module) -> String {
    let mut out = String::new();
    line(&mut out, 0, &format!("kernel {}", module.name));
    for doc in &module.doc {
        line(&mut out, 0, &format!("doc {}", quote(doc)));
    }
    let [x, y, z] = module.workgroup_size;
    line(&mut out, 0, &format!("workgroup_size {x} {y} {z}"));
    for b in module.buffers.values() {
        let access = match b.access {
            Access::ReadOnly => "read".to_owned(),
            Access::Constant => "constant".to_owned(),
            Access::ReadWrite => "read_write".to_owned(),
            Access::Texels(Texture::Storage) => "texels".to_owned(),
            Access::Texels(Texture::Sampled) => "sampled_texels".to_owned(),
            Access::Tiles(t) => format!("tiles({}, {}, {})", t.columns, t.rows, t.tile_rows),
        };
        line(&mut out, 0, &format!("buffer @{} binding {} {access} {}", b.name, b.binding, b.elem));
    }
    for u in module.uniforms.values() {
        let fields: Vec<String> = u.fields.iter().map(|f| format!("{}: {}", f.name, f.scalar.name())).collect();
        line(&mut out, 0, &format!("uniform ${} binding {} {{ {} }}", u.name, u.binding, fields.join(", ")));
    }
    let array = |a: &Array| format!("@{} {}[{}]", a.name, a.elem, a.len);
    for a in module.workgroup.values() {
        line(&mut out, 0, &format!("workgroup {}", array(a)));
    }
    for a in module.private.values() {
        line(&mut out, 0, &format!("private {}", array(a)));
    }
    line(&mut out, 0, "body {");
    block(&mut out, module, &module.body, 1);
    line(&mut out, 0, "}");
    out
}

fn line(out: &mut String, depth: usize, text: &str) {
    let _ = writeln!(out, "{:width$}{text}", "", width = depth * 2);
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn block(out: &mut String, module: &Module, stmts: &Block, depth: usize) {
    for stmt in stmts {
        self::stmt(out, module, stmt, depth);
    }
}

fn stmt(out: &mut String, module: &Module, stmt: &Stmt, depth: usize) {
    let e = |h: Handle<Expr>| expr(module, h);
    let declare = |h: Handle<Local>| format!("%{}: {}", module.locals[h].name, module.locals[h].ty);
    let text = match stmt {
        Stmt::Comment(text) => format!("comment {}", quote(text)),
        Stmt::Let { local, value } => format!("let {} = {}", declare(*local), e(*value)),
        Stmt::Var { local, init } => format!("var {} = {}", declare(*local), e(*init)),
        Stmt::Assign { local, value } => format!("set %{} = {}", module.locals[*local].name, e(*value)),
        Stmt::Store { array, index, value } => format!("store {} = {}", element(module, *array, *index), e(*value)),
        Stmt::Barrier(Barrier::Workgroup) => "barrier workgroup".to_owned(),
        Stmt::Barrier(Barrier::Storage) => "barrier storage".to_owned(),
        Stmt::Barrier(Barrier::Subgroup) => "barrier subgroup".to_owned(),
        Stmt::Barrier(Barrier::Launch) => "barrier launch".to_owned(),
        Stmt::Collective { local, op, value } => {
            let mask = match op {
                Collective::ShuffleXor(n) | Collective::Broadcast(n) => format!(", {n}u"),
                _ => String::new(),
            };
            format!("collective {} = {}({}{mask})", declare(*local), op.name(), e(*value))
        }
        Stmt::Tile(op) => tile(module, op),
        Stmt::Warpgroup(op) => warpgroup(module, op),
        Stmt::UniformLoad { local, array, index } => {
            format!("uniform_load {} = {}", declare(*local), element(module, *array, *index))
        }
        Stmt::For { local, start, end, step, unroll, body } => {
            let hint = if *unroll { " unroll" } else { "" };
            let head = format!("for {} = {} to {} step {}{hint} {{", declare(*local), e(*start), e(*end), e(*step));
            line(out, depth, &head);
            block(out, module, body, depth + 1);
            "}".to_owned()
        }
        Stmt::If { cond, then, otherwise } => {
            line(out, depth, &format!("if {} {{", e(*cond)));
            block(out, module, then, depth + 1);
            if !otherwise.is_empty() {
                line(out, depth, "} else {");
                block(out, module, otherwise, depth + 1);
            }
            "}".to_owned()
        }
    };
    line(out, depth, &text);
}

fn tile(module: &Module, op: &TileOp) -> String {
    let e = |h: Handle<Expr>| expr(module, h);
    match op {
        TileOp::Copy { to, to_index, from, from_index, active } => {
            let to = element(module, ArrayRef::Workgroup(*to), *to_index);
            let from = element(module, ArrayRef::Buffer(*from), *from_index);
            format!("copy {to} = {from} where {}", e(*active))
        }
        TileOp::Commit => "commit".to_owned(),
        TileOp::Wait(pending) => format!("wait {pending}u"),
        TileOp::Load { local, array, index } => {
            let Local { name, ty, .. } = &module.locals[*local];
            format!("load_matrix %{name}: {ty} = {}", element(module, ArrayRef::Workgroup(*array), *index))
        }
        TileOp::Multiply { sum, a, b, format } => {
            format!("multiply %{} = {}({}, {})", module.locals[*sum].name, format.name(), e(*a), e(*b))
        }
    }
}

fn warpgroup(module: &Module, op: &WarpgroupOp) -> String {
    let e = |h: Handle<Expr>| expr(module, h);
    let at = |p: &Place| element(module, ArrayRef::Workgroup(p.array), p.index);
    match op {
        WarpgroupOp::Init { barrier, arrivals } => format!("make_barrier {} of {arrivals}u", at(barrier)),
        WarpgroupOp::Arrive { barrier, bytes } => format!("arrive {} with {bytes}u", at(barrier)),
        WarpgroupOp::Await { barrier, parity } => format!("await {} parity {}", at(barrier), e(*parity)),
        WarpgroupOp::Bring { to, from, corner: [column, row], barrier } => {
            let matrix = module.array_name(ArrayRef::Buffer(*from));
            format!("bring {} = @{matrix} from {}, {} at {}", at(to), e(*column), e(*row), at(barrier))
        }
        WarpgroupOp::Publish => "publish".to_owned(),
        WarpgroupOp::Multiply { sums, a, b, format } => {
            let sums: Vec<String> = sums.iter().map(|s| format!("%{}", module.locals[*s].name)).collect();
            format!("multiply_tiles {} = {}({}, {})", sums.join(", "), format.name(), at(a), at(b))
        }
        WarpgroupOp::Settle(pending) => format!("settle {pending}u"),
    }
}

fn element(module: &Module, array: ArrayRef, index: Handle<Expr>) -> String {
    format!("@{}[{}]", module.array_name(array), expr(module, index))
}

fn expr(module: &Module, h: Handle<Expr>) -> String {
    let e = |h: &Handle<Expr>| expr(module, *h);
    match &module.exprs[h] {
        Expr::Literal(l) => literal(*l),
        Expr::Builtin(b) => builtin_name(*b),
        Expr::Uniform { block, field } => {
            let block = &module.uniforms[*block];
            let field = block.fields.get(*field as usize).map_or("", |f| f.name.as_str());
            format!("${}.{field}", block.name)
        }
        Expr::Local(local) => format!("%{}", module.locals[*local].name),
        Expr::Load { array, index } => element(module, *array, *index),
        Expr::Compose(parts) => format!("vec({})", parts.iter().map(e).collect::<Vec<_>>().join(", ")),
        Expr::Splat { width, value } => format!("splat{}({})", width.lanes(), e(value)),
        Expr::Extract { value, lane } => format!("lane{lane}({})", e(value)),
        Expr::Unary(op, a) => format!("{}({})", op.name(), e(a)),
        Expr::Binary(op, a, b) => format!("{}({}, {})", op.name(), e(a), e(b)),
        Expr::Ternary(op, a, b, c) => format!("{}({}, {}, {})", op.name(), e(a), e(b), e(c)),
        Expr::Cast { to, value } => format!("to_{}({})", to.name(), e(value)),
        Expr::Bitcast { to, value } => format!("bits_{}({})", to.name(), e(value)),
    }
}

fn literal(l: Literal) -> String {
    match l {
        Literal::F32(bits) => {
            let v = f32::from_bits(bits);
            if v.is_finite() { format!("{v:?}f") } else { format!("{bits}fbits") }
        }
        Literal::U32(v) => format!("{v}u"),
        Literal::I32(v) => format!("{v}i"),
        Literal::Bool(v) => v.to_string(),
    }
}
