//! Construction of a [`Module`].
//!
//! Every method takes `&self`, so calls nest: `b.store(out, i, b.mul(b.load(x, i), 2.0))`. A [`Val`] is the value at
//! the moment it was made: where it is used more than once, inside a loop that it was made outside of, or after the
//! memory it was read from has changed, `finish` binds it with a `let` at the place it was made. Templates therefore
//! never think about evaluation order. One rule remains: a value made inside a closure stays inside it.
//!
//! Mistakes are recorded with the caller's line and returned by [`Builder::finish`]; nothing panics.

mod blocks;
mod decls;
mod finish;
mod functions;
mod ops;
mod warpgroup;

use std::cell::RefCell;
use std::panic::Location;

use super::arena::Handle;
use super::error::{BuildError, Error};
use super::expr::{ArrayRef, Expr, Literal};
use super::fold::{self, Folded};
use super::module::{Local, LocalKind, Module, UniformBlock};
use super::names::Names;
use super::stmt::{Block, Stmt};
use super::types::Type;
use super::typing;

/// A value under construction; belongs to the builder that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Val(Handle<Expr>);

/// A variable; usable wherever a value is, meaning its content at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var(Option<Handle<Local>>);

/// A uniform block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uniforms(Handle<UniformBlock>);

/// What builder methods accept as an operand: a [`Val`], a [`Var`], or a plain `f32`, `u32` or `bool`.
pub trait IntoVal: Copy {
    /// The value in that builder.
    fn into_val(self, b: &Builder) -> Val;
}

impl IntoVal for Val {
    fn into_val(self, _: &Builder) -> Val {
        self
    }
}
impl IntoVal for Var {
    #[track_caller]
    fn into_val(self, b: &Builder) -> Val {
        b.get(self)
    }
}
impl IntoVal for f32 {
    #[track_caller]
    fn into_val(self, b: &Builder) -> Val {
        b.f32(self)
    }
}
impl IntoVal for u32 {
    fn into_val(self, b: &Builder) -> Val {
        b.u32(self)
    }
}
impl IntoVal for bool {
    fn into_val(self, b: &Builder) -> Val {
        b.bool(self)
    }
}

/// Builds one kernel. See the module documentation.
pub struct Builder {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    module: Module,
    /// Type of each expression; `None` after a mistake, so that it is reported once.
    types: Vec<Option<Type>>,
    /// For expressions that `finish` may bind: the local it would use.
    candidates: Vec<Option<Handle<Local>>>,
    /// Open blocks, innermost last.
    blocks: Vec<Block>,
    names: Names,
    errors: Vec<BuildError>,
    next_binding: u32,
}

impl Builder {
    /// Starts a kernel with that name and workgroup size.
    pub fn new(name: &str, workgroup_size: [u32; 3]) -> Builder {
        let module = Module { name: name.to_owned(), workgroup_size, ..Module::default() };
        Builder { inner: RefCell::new(Inner { module, blocks: vec![Block::new()], ..Inner::default() }) }
    }

    /// Adds lines to the header comment.
    pub fn doc(&self, text: &str) {
        self.inner.borrow_mut().module.doc.extend(clean_lines(text));
    }

    /// Adds a comment to the body.
    pub fn comment(&self, text: &str) {
        for line in clean_lines(text) {
            self.push_stmt(Stmt::Comment(line));
        }
    }

    /// Records a mistake that a template found itself.
    #[track_caller]
    pub fn error(&self, message: impl Into<String>) {
        let place = Location::caller();
        let error = BuildError { message: message.into(), place: format!("{}:{}", place.file(), place.line()) };
        self.inner.borrow_mut().errors.push(error);
    }

    /// The type of a value, or `None` after a mistake.
    pub fn type_of(&self, value: impl IntoVal) -> Option<Type> {
        let Val(h) = value.into_val(self);
        self.inner.borrow().types.get(h.index()).copied().flatten()
    }

    /// The constant a value is known to be.
    pub fn literal_of(&self, value: impl IntoVal) -> Option<Literal> {
        let Val(h) = value.into_val(self);
        match self.inner.borrow().module.exprs.get(h) {
            Some(Expr::Literal(l)) => Some(*l),
            _ => None,
        }
    }

    /// The `u32` constant a value is known to be.
    pub fn const_u32(&self, value: impl IntoVal) -> Option<u32> {
        match self.literal_of(value) {
            Some(Literal::U32(v)) => Some(v),
            _ => None,
        }
    }

    /// Ends construction: binds shared values, checks nothing beyond construction. Run
    /// [`verify`](crate::ir::verify()) on the result.
    pub fn finish(self) -> Result<Module, Error> {
        self.finish_as(false)
    }

    /// Binds every value where it was made: the meaning that `finish` must keep.
    #[cfg(test)]
    pub(crate) fn finish_with_every_binding(self) -> Result<Module, Error> {
        self.finish_as(true)
    }

    fn finish_as(self, bind_all: bool) -> Result<Module, Error> {
        let mut inner = self.inner.into_inner();
        if inner.errors.is_empty() && inner.types.contains(&None) {
            inner.errors.push(BuildError {
                message: "a value of another builder is used".to_owned(),
                place: "unknown".to_owned(),
            });
        }
        if !inner.errors.is_empty() {
            return Err(Error::Build { kernel: inner.module.name, errors: inner.errors });
        }
        inner.module.body = inner.blocks.pop().unwrap_or_default();
        Ok(finish::bind_shared(inner.module, &inner.candidates, &mut inner.names, bind_all))
    }

    fn push_stmt(&self, stmt: Stmt) {
        if let Some(block) = self.inner.borrow_mut().blocks.last_mut() {
            block.push(stmt);
        }
    }

    /// Adds an expression: checks its type, folds it, and marks the place where it could be bound.
    #[track_caller]
    fn push(&self, expr: Expr) -> Val {
        let checked = {
            let inner = self.inner.borrow();
            let types = &inner.types;
            let known = |h: Handle<Expr>| types.get(h.index()).copied().flatten();
            if expr.operands().iter().any(|h| known(*h).is_none()) {
                Ok(None)
            } else {
                typing::infer(&inner.module, &expr, |h| known(h).unwrap_or(Type::U32)).map(Some)
            }
        };
        let ty = match checked {
            Ok(ty) => ty,
            Err(message) => {
                self.error(message);
                None
            }
        };
        if ty.is_some() {
            let folded = fold::step(&self.inner.borrow().module.exprs, &expr);
            match folded {
                Some(Folded::Same(h)) => return Val(h),
                Some(Folded::New(expr)) => return self.push(expr),
                Some(Folded::Chain(op, a, literal)) => {
                    let Val(c) = self.push(Expr::Literal(literal));
                    return self.push(Expr::Binary(op, a, c));
                }
                None => {}
            }
        }
        self.append(expr, ty)
    }

    fn append(&self, expr: Expr, ty: Option<Type>) -> Val {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let bindable = match &expr {
            Expr::Literal(_) | Expr::Builtin(_) | Expr::Uniform { .. } => false,
            Expr::Local(local) => inner.module.locals[*local].kind == LocalKind::Var,
            _ => true,
        };
        let wish = match &expr {
            Expr::Load { array, .. } => format!("{}_at", inner.module.array_name(*array)),
            Expr::Local(local) => format!("{}_was", inner.module.locals[*local].name),
            _ => "t".to_owned(),
        };
        let h = inner.module.exprs.append(expr);
        inner.types.push(ty);
        let candidate = match ty {
            Some(ty) if bindable => {
                let local = inner.module.locals.append(Local { name: wish, ty, kind: LocalKind::Let });
                if let Some(block) = inner.blocks.last_mut() {
                    block.push(Stmt::Let { local, value: h });
                }
                Some(local)
            }
            _ => None,
        };
        inner.candidates.push(candidate);
        Val(h)
    }

    fn poison(&self) -> Val {
        self.append(Expr::Literal(Literal::U32(0)), None)
    }

    fn new_local(&self, wish: &str, ty: Type, kind: LocalKind) -> Handle<Local> {
        let mut inner = self.inner.borrow_mut();
        let name = inner.names.unique(wish);
        inner.module.locals.append(Local { name, ty, kind })
    }

    fn array_elem(&self, array: ArrayRef) -> Type {
        self.inner.borrow().module.elem(array)
    }
}

fn clean_lines(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| {
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            line.trim_end().to_owned()
        })
        .collect()
}
