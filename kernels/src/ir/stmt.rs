//! Statements: all effects and all control flow. There is no early return, no `break` and no `continue`, so control
//! flow joins again after every loop and branch.

use super::arena::Handle;
use super::expr::{ArrayRef, Expr};
use super::module::{Array, Buffer, Local};
use super::warpgroup::WarpgroupOp;
use crate::dtype::HalfFormat;

/// Statements in order of execution.
pub type Block = Vec<Stmt>;

/// What a barrier orders. [`Barrier::Workgroup`] and [`Barrier::Storage`] make the invocations of a workgroup wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Barrier {
    /// Workgroup memory.
    Workgroup,
    /// Storage buffers, within the workgroup.
    Storage,
    /// All memory, within the subgroup alone.
    Subgroup,
    /// The launch before this one, which may still run in front of it. Stands once, not nested; in front of it nothing is
    /// stored, and only buffers that no kernel writes are read.
    Launch,
}

/// Operations across the invocations of a subgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Sum over the subgroup.
    Add,
    /// Largest of the subgroup.
    Max,
    /// Smallest of the subgroup.
    Min,
    /// Value of the lowest active invocation.
    BroadcastFirst,
    /// Value of the invocation of that lane, which is active.
    Broadcast(u32),
    /// Value of the invocation whose lane is this one's xor the mask.
    ShuffleXor(u32),
}

impl Collective {
    /// Name in the text forms.
    pub fn name(self) -> &'static str {
        match self {
            Collective::Add => "subgroup_add",
            Collective::Max => "subgroup_max",
            Collective::Min => "subgroup_min",
            Collective::BroadcastFirst => "subgroup_broadcast_first",
            Collective::Broadcast(_) => "subgroup_broadcast",
            Collective::ShuffleXor(_) => "subgroup_shuffle_xor",
        }
    }
}

/// Work on tiles of 16-bit matrices in workgroup memory, for targets with matrix units. An element of such an array is a
/// `vec4<u32>`: eight neighbours of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TileOp {
    /// Starts copying an element from a read-only buffer, or zeros where `active` does not hold. Others see it behind a
    /// [`TileOp::Wait`] of this invocation and a barrier.
    Copy {
        /// Where it goes.
        to: Handle<Array>,
        /// `u32` index there.
        to_index: Handle<Expr>,
        /// Where it comes from.
        from: Handle<Buffer>,
        /// `u32` index there; in bounds even if not active.
        from_index: Handle<Expr>,
        /// Whether anything is read.
        active: Handle<Expr>,
    },
    /// Makes a group of the copies started since the last one.
    Commit,
    /// Waits until no more than that many groups of this invocation are under way.
    Wait(u32),
    /// Names four 8 × 8 matrices spread over a subgroup of 32. Row r of matrix i is the element that lane `8 i + r`
    /// gives the index of. Part i of the result in lane l holds two neighbours of row `l / 4` of matrix i, from column
    /// `2 (l % 4)` on.
    Load {
        /// The name, a `vec4<u32>`.
        local: Handle<Local>,
        /// The memory.
        array: Handle<Array>,
        /// Index of this lane's element.
        index: Handle<Expr>,
    },
    /// `sum += a bᵀ` with `a` of 16 × 16 and `b` of 8 × 16 in matrices of 8 × 8 spread as [`TileOp::Load`] does. Of the
    /// sum of 16 × 8, lane l holds two neighbours of row `l / 4` from column `2 (l % 4)` on, then those eight rows below.
    Multiply {
        /// A variable of `vec4<f32>`.
        sum: Handle<Local>,
        /// `vec4<u32>`: upper left, lower left, upper right, lower right.
        a: Handle<Expr>,
        /// `vec2<u32>`: left, right.
        b: Handle<Expr>,
        /// Of `a` and `b`.
        format: HalfFormat,
    },
}

impl TileOp {
    /// Expressions it evaluates, in order.
    pub fn exprs(&self) -> Vec<Handle<Expr>> {
        match self {
            TileOp::Copy { to_index, from_index, active, .. } => vec![*to_index, *from_index, *active],
            TileOp::Commit | TileOp::Wait(_) => Vec::new(),
            TileOp::Load { index, .. } => vec![*index],
            TileOp::Multiply { a, b, .. } => vec![*a, *b],
        }
    }

    /// The same operation on other expressions, visited in order, and another local.
    pub fn map<C>(
        &self,
        context: &mut C,
        expr: impl Fn(&mut C, Handle<Expr>) -> Handle<Expr>,
        local: impl Fn(&mut C, Handle<Local>) -> Handle<Local>,
    ) -> TileOp {
        match self {
            TileOp::Copy { to, to_index, from, from_index, active } => {
                let to_index = expr(context, *to_index);
                let from_index = expr(context, *from_index);
                TileOp::Copy { to: *to, to_index, from: *from, from_index, active: expr(context, *active) }
            }
            TileOp::Commit | TileOp::Wait(_) => self.clone(),
            TileOp::Load { local: l, array, index } => {
                let index = expr(context, *index);
                TileOp::Load { local: local(context, *l), array: *array, index }
            }
            TileOp::Multiply { sum, a, b, format } => {
                let a = expr(context, *a);
                let b = expr(context, *b);
                TileOp::Multiply { sum: local(context, *sum), a, b, format: *format }
            }
        }
    }
}

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stmt {
    /// A line of explanation for the reader.
    Comment(String),
    /// Names a value; immutable until the end of the block.
    Let {
        /// The name.
        local: Handle<Local>,
        /// Evaluated here.
        value: Handle<Expr>,
    },
    /// Declares a variable of the invocation.
    Var {
        /// The name.
        local: Handle<Local>,
        /// First value.
        init: Handle<Expr>,
    },
    /// Changes a variable.
    Assign {
        /// The variable.
        local: Handle<Local>,
        /// New value.
        value: Handle<Expr>,
    },
    /// Writes an array element.
    Store {
        /// The memory.
        array: ArrayRef,
        /// `u32` index in elements.
        index: Handle<Expr>,
        /// What is written.
        value: Handle<Expr>,
    },
    /// `for (local = start; local < end; local += step)`.
    For {
        /// Loop variable, `u32` or `i32`, not assignable.
        local: Handle<Local>,
        /// First value.
        start: Handle<Expr>,
        /// Bound, not reached; evaluated before each iteration.
        end: Handle<Expr>,
        /// Increment, positive.
        step: Handle<Expr>,
        /// Asks for the body to be repeated in the text, where the bounds are constants.
        unroll: bool,
        /// What is repeated.
        body: Block,
    },
    /// A branch.
    If {
        /// Truth value.
        cond: Handle<Expr>,
        /// Runs where it holds.
        then: Block,
        /// Runs where it does not.
        otherwise: Block,
    },
    /// All invocations of the workgroup wait here.
    Barrier(Barrier),
    /// Names the result of an operation across the subgroup.
    Collective {
        /// The name.
        local: Handle<Local>,
        /// The operation.
        op: Collective,
        /// This invocation's share.
        value: Handle<Expr>,
    },
    /// Work on tiles of matrices.
    Tile(TileOp),
    /// Work of warpgroups that run apart from each other.
    Warpgroup(WarpgroupOp),
    /// Names a value of workgroup memory that all invocations read at the same index, with a barrier before and after.
    /// The result is uniform.
    UniformLoad {
        /// The name.
        local: Handle<Local>,
        /// A workgroup array.
        array: ArrayRef,
        /// Uniform index.
        index: Handle<Expr>,
    },
}

impl Stmt {
    /// Expressions this statement evaluates itself, in order; not those of nested blocks.
    pub fn exprs(&self) -> Vec<Handle<Expr>> {
        match self {
            Stmt::Comment(_) | Stmt::Barrier(_) => Vec::new(),
            Stmt::Let { value, .. }
            | Stmt::Var { init: value, .. }
            | Stmt::Assign { value, .. }
            | Stmt::Collective { value, .. }
            | Stmt::If { cond: value, .. } => vec![*value],
            Stmt::UniformLoad { index, .. } => vec![*index],
            Stmt::Tile(op) => op.exprs(),
            Stmt::Warpgroup(op) => op.exprs(),
            Stmt::Store { index, value, .. } => vec![*index, *value],
            Stmt::For { start, end, step, .. } => vec![*start, *end, *step],
        }
    }

    /// The local this statement declares.
    pub fn declares(&self) -> Option<Handle<Local>> {
        match self {
            Stmt::Let { local, .. }
            | Stmt::Var { local, .. }
            | Stmt::For { local, .. }
            | Stmt::Collective { local, .. }
            | Stmt::Tile(TileOp::Load { local, .. })
            | Stmt::UniformLoad { local, .. } => Some(*local),
            _ => None,
        }
    }

    /// Nested blocks.
    pub fn blocks(&self) -> Vec<&Block> {
        match self {
            Stmt::For { body, .. } => vec![body],
            Stmt::If { then, otherwise, .. } => vec![then, otherwise],
            _ => Vec::new(),
        }
    }
}
