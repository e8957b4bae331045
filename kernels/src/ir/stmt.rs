//! Statements: all effects and all control flow. There is no early return, no `break` and no `continue`, so control
//! flow joins again after every loop and branch.

use super::arena::Handle;
use super::expr::{ArrayRef, Expr};
use super::module::Local;

/// Statements in order of execution.
pub type Block = Vec<Stmt>;

/// Which memory a barrier orders. Both make the invocations of a workgroup wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Barrier {
    /// Workgroup memory.
    Workgroup,
    /// Storage buffers, within the workgroup.
    Storage,
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
            Collective::ShuffleXor(_) => "subgroup_shuffle_xor",
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
