//! Statistics of a matmul's result by tiles of its columns, for the kernel behind it: the row need not be read again to find
//! its mean square, its mean and variance, or its largest element.

use super::{ArgId, ExprId};
use crate::dim::Dim;
use serde::{Deserialize, Serialize};

/// Columns of a tile of many rows, on every target: a subgroup of matrix units finishes that many, and other tiles are
/// multiples of it.
pub const PARTIAL_COLUMNS: u32 = 32;
/// Columns of a tile of few rows, on every target: a workgroup of matrix-vector products finishes that many.
pub const FEW_PARTIAL_COLUMNS: u32 = 8;
/// Columns up to which a float counts them.
pub const MOST_COUNTED: i64 = 1 << 24;

/// What is known of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartialKind {
    /// Σ v².
    Squares,
    /// The mean m, and behind it Σ (v − m)²: what tiles are joined from without cancellation (Chan, Golub and LeVeque,
    /// 1979).
    Moments,
    /// The largest element, and behind it the number of its column as a float: the first of equal ones.
    Largest,
}

impl PartialKind {
    /// Numbers of a tile.
    pub const fn numbers(self) -> u32 {
        match self {
            PartialKind::Squares => 1,
            PartialKind::Moments | PartialKind::Largest => 2,
        }
    }
}

/// Statistics that a matmul writes beside its result, for every row and every tile of columns; the last tile may have fewer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partials {
    /// What they are of: the value of a store without a range.
    pub value: ExprId,
    /// Which.
    pub kind: PartialKind,
    /// Columns of a tile: [`PARTIAL_COLUMNS`], or [`FEW_PARTIAL_COLUMNS`] where there are few rows.
    pub columns: u32,
    /// Where they go; nothing in the kernel reads it.
    pub arg: ArgId,
    /// Linear index of a tile's first number. The axis n is the number of the tile here.
    pub index: Dim,
}
