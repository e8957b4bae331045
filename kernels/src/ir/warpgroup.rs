//! Work of warpgroups that run apart from each other, for targets that have it: barriers with phases, copies of tiles of
//! a matrix, and products that read workgroup memory by themselves.

use super::arena::Handle;
use super::expr::Expr;
use super::module::{Array, Buffer, Local};
use crate::dtype::HalfFormat;

/// Invocations of a warpgroup.
pub const WARPGROUP: u32 = 128;
/// Columns of a tile of 16-bit elements.
pub const TILE_COLUMNS: u32 = 64;

/// An element of an array in workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The array.
    pub array: Handle<Array>,
    /// `u32` index.
    pub index: Handle<Expr>,
}

/// A step of a ring between warpgroups.
///
/// A barrier with phases is an element of type `vec2<u32>`. Its phase ends when the arrivals it was made with and all
/// bytes announced to it are in; then the next one begins. Phases count from 0. What an invocation did before it arrived
/// is seen by those who awaited the end of that phase.
///
/// A tile is an array of `vec4<u32>`, eight neighbours of a row each: element c of the eight of row r lies at
/// `8 r + (c ^ r % 8)` from its start, a multiple of 64 elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WarpgroupOp {
    /// Makes a barrier, which others know behind a barrier of the workgroup.
    Init {
        /// The barrier.
        barrier: Place,
        /// Arrivals of a phase.
        arrivals: u32,
    },
    /// Arrives, having announced that many bytes.
    Arrive {
        /// The barrier.
        barrier: Place,
        /// What copies are going to bring; 0 announces nothing.
        bytes: u32,
    },
    /// Waits until the phase of a parity has ended, the present or the one before.
    Await {
        /// The barrier.
        barrier: Place,
        /// `u32`, of which the lowest bit counts.
        parity: Handle<Expr>,
    },
    /// Starts to bring a tile of [`Access::Tiles`](super::Access::Tiles), whose bytes are counted by a barrier; zeros
    /// where it lies beyond the matrix.
    Bring {
        /// Start of the tile.
        to: Place,
        /// The matrix.
        from: Handle<Buffer>,
        /// `u32` column of its first element, a multiple of 8, and `u32` row.
        corner: [Handle<Expr>; 2],
        /// The barrier.
        barrier: Place,
    },
    /// Makes what this invocation has stored in workgroup memory visible to products, for whom comes behind it.
    Publish,
    /// Starts `sums += a bᵀ` of a warpgroup, with a tile `a` of 64 rows and a tile `b` of eight rows a sum. Each sum is
    /// 8 columns wide: lane l of warp w has two neighbours of row `16 w + l / 4` from column `2 (l % 4)` on, then those
    /// eight rows below. Sums must not be touched, nor tiles written, until [`WarpgroupOp::Settle`].
    Multiply {
        /// Variables of `vec4<f32>`.
        sums: Vec<Handle<Local>>,
        /// Start of the left tile.
        a: Place,
        /// Start of the right tile.
        b: Place,
        /// Of both.
        format: HalfFormat,
    },
    /// Waits until no more than that many products of this warpgroup are under way.
    Settle(u32),
}

impl WarpgroupOp {
    /// Expressions it evaluates, in order.
    pub fn exprs(&self) -> Vec<Handle<Expr>> {
        match self {
            WarpgroupOp::Init { barrier, .. } | WarpgroupOp::Arrive { barrier, .. } => vec![barrier.index],
            WarpgroupOp::Await { barrier, parity } => vec![barrier.index, *parity],
            WarpgroupOp::Bring { to, corner: [column, row], barrier, .. } => {
                vec![to.index, *column, *row, barrier.index]
            }
            WarpgroupOp::Multiply { a, b, .. } => vec![a.index, b.index],
            WarpgroupOp::Publish | WarpgroupOp::Settle(_) => Vec::new(),
        }
    }

    /// Places of workgroup memory it names.
    pub fn places(&self) -> Vec<Place> {
        match self {
            WarpgroupOp::Init { barrier, .. }
            | WarpgroupOp::Arrive { barrier, .. }
            | WarpgroupOp::Await { barrier, .. } => vec![*barrier],
            WarpgroupOp::Bring { to, barrier, .. } => vec![*to, *barrier],
            WarpgroupOp::Multiply { a, b, .. } => vec![*a, *b],
            WarpgroupOp::Publish | WarpgroupOp::Settle(_) => Vec::new(),
        }
    }

    /// Variables it changes.
    pub fn sums(&self) -> &[Handle<Local>] {
        match self {
            WarpgroupOp::Multiply { sums, .. } => sums,
            _ => &[],
        }
    }

    /// Whether memory may not be read across it.
    pub fn orders_memory(&self) -> bool {
        !matches!(self, WarpgroupOp::Multiply { .. } | WarpgroupOp::Settle(_))
    }

    /// The same operation on other expressions, visited in order, and other locals.
    pub fn map<C>(
        &self,
        context: &mut C,
        expr: impl Fn(&mut C, Handle<Expr>) -> Handle<Expr>,
        local: impl Fn(&mut C, Handle<Local>) -> Handle<Local>,
    ) -> WarpgroupOp {
        let place = |c: &mut C, p: &Place| Place { array: p.array, index: expr(c, p.index) };
        match self {
            WarpgroupOp::Init { barrier, arrivals } => {
                WarpgroupOp::Init { barrier: place(context, barrier), arrivals: *arrivals }
            }
            WarpgroupOp::Arrive { barrier, bytes } => {
                WarpgroupOp::Arrive { barrier: place(context, barrier), bytes: *bytes }
            }
            WarpgroupOp::Await { barrier, parity } => {
                let barrier = place(context, barrier);
                WarpgroupOp::Await { barrier, parity: expr(context, *parity) }
            }
            WarpgroupOp::Bring { to, from, corner: [column, row], barrier } => {
                let to = place(context, to);
                let corner = [expr(context, *column), expr(context, *row)];
                WarpgroupOp::Bring { to, from: *from, corner, barrier: place(context, barrier) }
            }
            WarpgroupOp::Multiply { sums, a, b, format } => {
                let (a, b) = (place(context, a), place(context, b));
                let sums = sums.iter().map(|s| local(context, *s)).collect();
                WarpgroupOp::Multiply { sums, a, b, format: *format }
            }
            WarpgroupOp::Publish | WarpgroupOp::Settle(_) => self.clone(),
        }
    }
}
