//! A module: one compute entry point with everything it touches.

use indexmap::IndexMap;

use super::arena::{Arena, Handle};
use super::expr::{ArrayRef, Expr};
use super::stmt::{Block, Stmt};
use super::types::{Scalar, Type};

/// How a kernel uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Not written by this kernel; loads at uniform indices are uniform.
    ReadOnly,
    /// Written by no kernel at all: weights.
    Constant,
    /// Read and written.
    ReadWrite,
    /// Never written, and bound as a two-dimensional texture of `vec4<u32>`, [`TEXELS_PER_ROW`] elements a row; what
    /// lies beyond the last element reads as anything.
    Texels(Texture),
    /// Never written, and reached by copies of tiles alone.
    Tiles(TileMap),
}

/// How a texture is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Texture {
    /// As a storage texture that is only read: a place, its bounds and four loads.
    Storage,
    /// As a sampled texture, of which software drivers look the level up for each lane.
    Sampled,
}

/// A matrix of 16-bit elements in a buffer, row by row from its start, and the tiles that copies bring of it, each of
/// [`TILE_COLUMNS`](super::TILE_COLUMNS) columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileMap {
    /// Elements of a row, a multiple of 8.
    pub columns: u64,
    /// Rows.
    pub rows: u64,
    /// Rows of a tile, up to 256.
    pub tile_rows: u32,
}

/// Elements in a row of a texture.
pub const TEXELS_PER_ROW: u32 = 1024;

/// A storage buffer or texture: a bound array whose length is known at launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Name in the text.
    pub name: String,
    /// Binding number in group 0.
    pub binding: u32,
    /// Read-only or not.
    pub access: Access,
    /// Element type.
    pub elem: Type,
}

/// A member of a uniform block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in the text.
    pub name: String,
    /// `U32`, `I32` or `F32`.
    pub scalar: Scalar,
}

/// Scalars constant over one dispatch: member `i` is at byte `4 * i`, the size is a multiple of 16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniformBlock {
    /// Name in the text.
    pub name: String,
    /// Binding number in group 0.
    pub binding: u32,
    /// Members in order.
    pub fields: Vec<Field>,
}

impl UniformBlock {
    /// Bytes of the block, padded to whole `vec4` slots.
    pub fn size_bytes(&self) -> u32 {
        (self.fields.len() as u32).div_ceil(4).max(1) * 16
    }
}

/// An array of constant length in workgroup or private memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Name in the text.
    pub name: String,
    /// Element type.
    pub elem: Type,
    /// Number of elements.
    pub len: u32,
}

/// What a local name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalKind {
    /// An immutable value.
    Let,
    /// A variable.
    Var,
    /// A loop variable.
    Loop,
}

/// A name inside the body; names are unique in the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Name in the text.
    pub name: String,
    /// Type of the value.
    pub ty: Type,
    /// What it stands for.
    pub kind: LocalKind,
}

/// One compute kernel.
///
/// `exprs` holds each distinct expression once, operands before users, in order of first use; two modules that mean the
/// same text are therefore equal. [`Module::compact`] restores this form after an edit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Kernel name; names the file and the report line.
    pub name: String,
    /// Lines of the header comment.
    pub doc: Vec<String>,
    /// Invocations per workgroup along each axis.
    pub workgroup_size: [u32; 3],
    /// Invocations that share a multiprocessor at least, so that each may have so many registers; the emitter's choice
    /// unless said.
    pub resident: Option<u32>,
    /// Whether an assembler that unrolls loops by itself is asked not to.
    pub rolled: bool,
    /// Bound storage buffers.
    pub buffers: Arena<Buffer>,
    /// Bound uniform blocks.
    pub uniforms: Arena<UniformBlock>,
    /// Arrays in workgroup memory.
    pub workgroup: Arena<Array>,
    /// Arrays of each invocation, zero at the start.
    pub private: Arena<Array>,
    /// Names declared in the body.
    pub locals: Arena<Local>,
    /// All expressions.
    pub exprs: Arena<Expr>,
    /// What runs.
    pub body: Block,
}

impl Module {
    /// Element type of an array.
    pub fn elem(&self, array: ArrayRef) -> Type {
        match array {
            ArrayRef::Buffer(h) => self.buffers[h].elem,
            ArrayRef::Workgroup(h) => self.workgroup[h].elem,
            ArrayRef::Private(h) => self.private[h].elem,
        }
    }

    /// Name of an array.
    pub fn array_name(&self, array: ArrayRef) -> &str {
        match array {
            ArrayRef::Buffer(h) => &self.buffers[h].name,
            ArrayRef::Workgroup(h) => &self.workgroup[h].name,
            ArrayRef::Private(h) => &self.private[h].name,
        }
    }

    /// Bytes of workgroup memory, each array rounded up to 16.
    pub fn workgroup_bytes(&self) -> u64 {
        self.workgroup.values().map(|a| (u64::from(a.len) * u64::from(a.elem.size_bytes())).next_multiple_of(16)).sum()
    }

    /// Invocations per workgroup.
    pub fn invocations(&self) -> u64 {
        self.workgroup_size.iter().map(|n| u64::from(*n)).product()
    }

    /// Rebuilds the arenas of locals and expressions: drops what no statement uses, keeps equal expressions once, and
    /// orders both by first use.
    pub fn compact(self) -> Module {
        let mut interner = Interner {
            from: &self,
            locals: Arena::new(),
            local_map: vec![None; self.locals.len()],
            exprs: Arena::new(),
            expr_map: vec![None; self.exprs.len()],
            known: IndexMap::new(),
        };
        let body = interner.block(&self.body);
        let Interner { locals, exprs, .. } = interner;
        Module { locals, exprs, body, ..self }
    }
}

struct Interner<'m> {
    from: &'m Module,
    locals: Arena<Local>,
    local_map: Vec<Option<Handle<Local>>>,
    exprs: Arena<Expr>,
    expr_map: Vec<Option<Handle<Expr>>>,
    known: IndexMap<Expr, Handle<Expr>>,
}

impl Interner<'_> {
    fn local(&mut self, h: Handle<Local>) -> Handle<Local> {
        if let Some(new) = self.local_map[h.index()] {
            return new;
        }
        let new = self.locals.append(self.from.locals[h].clone());
        self.local_map[h.index()] = Some(new);
        new
    }

    fn expr(&mut self, h: Handle<Expr>) -> Handle<Expr> {
        if let Some(new) = self.expr_map[h.index()] {
            return new;
        }
        let from = self.from;
        let expr = match &from.exprs[h] {
            Expr::Local(local) => Expr::Local(self.local(*local)),
            other => other.map_operands(|operand| self.expr(operand)),
        };
        let new = match self.known.get(&expr) {
            Some(known) => *known,
            None => {
                let new = self.exprs.append(expr.clone());
                self.known.insert(expr, new);
                new
            }
        };
        self.expr_map[h.index()] = Some(new);
        new
    }

    fn block(&mut self, block: &Block) -> Block {
        block.iter().map(|stmt| self.stmt(stmt)).collect()
    }

    fn stmt(&mut self, stmt: &Stmt) -> Stmt {
        match stmt {
            Stmt::Comment(text) => Stmt::Comment(text.clone()),
            Stmt::Barrier(kind) => Stmt::Barrier(*kind),
            Stmt::Let { local, value } => {
                let value = self.expr(*value);
                Stmt::Let { local: self.local(*local), value }
            }
            Stmt::Var { local, init } => {
                let init = self.expr(*init);
                Stmt::Var { local: self.local(*local), init }
            }
            Stmt::Assign { local, value } => {
                let value = self.expr(*value);
                Stmt::Assign { local: self.local(*local), value }
            }
            Stmt::Store { array, index, value } => {
                let index = self.expr(*index);
                Stmt::Store { array: *array, index, value: self.expr(*value) }
            }
            Stmt::For { local, start, end, step, unroll, body } => {
                let start = self.expr(*start);
                let end = self.expr(*end);
                let step = self.expr(*step);
                let local = self.local(*local);
                let body = self.block(body);
                Stmt::For { local, start, end, step, unroll: *unroll, body }
            }
            Stmt::If { cond, then, otherwise } => {
                let cond = self.expr(*cond);
                let then = self.block(then);
                Stmt::If { cond, then, otherwise: self.block(otherwise) }
            }
            Stmt::Collective { local, op, value } => {
                let value = self.expr(*value);
                Stmt::Collective { local: self.local(*local), op: *op, value }
            }
            Stmt::Tile(op) => Stmt::Tile(op.map(self, |s, e| s.expr(e), |s, l| s.local(l))),
            Stmt::Warpgroup(op) => Stmt::Warpgroup(op.map(self, |s, e| s.expr(e), |s, l| s.local(l))),
            Stmt::UniformLoad { local, array, index } => {
                let index = self.expr(*index);
                Stmt::UniformLoad { local: self.local(*local), array: *array, index }
            }
        }
    }
}
