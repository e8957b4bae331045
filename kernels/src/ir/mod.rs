//! Kernel IR: one compute kernel, independent of the language it is emitted in.
//!
//! A [`Module`] holds declarations (buffers, uniform blocks, workgroup and private arrays) and a body of statements.
//! Expressions have no effects and are evaluated where the statement that uses them stands; statements hold all effects
//! and all control flow. There is no early return: a guard encloses the work, never the barrier.
//!
//! Enters: calls on a [`Builder`], or `.kir` text. Leaves: a `Module` that [`verify`](verify::verify) accepts. Not its
//! business: what a kernel computes, how it is scheduled, and how a target spells it.

pub mod arena;
pub mod builder;
pub mod error;
pub mod expr;
pub(crate) mod fold;
pub mod module;
pub(crate) mod names;
pub mod stmt;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;
pub mod types;
pub(crate) mod typing;
pub mod uniformity;
pub mod verify;
mod verify_warpgroup;
pub mod warpgroup;

pub use crate::dtype::HalfFormat;
pub use arena::{Arena, Handle};
pub use builder::{Builder, IntoVal, Uniforms, Val, Var};
pub use error::{BuildError, Error, Rule, Violation};
pub use expr::{ArrayRef, Axis, BinaryOp, Builtin, Expr, Literal, TernaryOp, UnaryOp};
pub use module::{
    Access, Array, Buffer, Field, Local, LocalKind, Module, TEXELS_PER_ROW, Texture, TileMap, UniformBlock,
};
pub use stmt::{Barrier, Block, Collective, Stmt, TileOp};
pub use text::{parse, print};
pub use types::{Scalar, Type, Width};
pub use verify::verify;
pub use warpgroup::{Place, TILE_COLUMNS, WARPGROUP, WarpgroupOp};
