//! The closed set of reasons for which two operations do not share a kernel. Codes are stable; tests and reports cite
//! them.

use std::fmt;

/// Why an edge was not fused. The number orders the conditions: the first failure is the headline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// A path leaves the region and comes back.
    Cycle,
    /// A type that the target cannot compute with.
    Dtype,
    /// The consumer's read map does not meet the producer's write map within one invocation.
    Map,
    /// Attention probabilities are used outside.
    Probs,
    /// The producer would be computed again for several consumers at too high a price.
    Dup,
    /// A reduced row does not fit one workgroup.
    Row,
    /// A row reduction behind a matmul whose tiles do not own whole rows.
    RowTile,
    /// A norm in front of a matmul with many rows: recomputing its statistics in every column tile costs more than it
    /// saves.
    Recompute,
    /// More storage bindings than the target has.
    Bind,
    /// Grid or binding limits.
    Dispatch,
    /// A dependency across the grid.
    Grid,
    /// The order of effects.
    Effect,
    /// The rewrite's proof class exceeds the numeric mode.
    Mode,
    /// Attribute or shape preconditions.
    Shape,
    /// Switched off by the user.
    User,
    /// Legal, but it saves too little.
    Profit,
    /// Legal, but too few workgroups would be left to fill the device.
    Parallelism,
}

impl Refusal {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Refusal::Cycle => "L1-CYCLE",
            Refusal::Dtype => "L2-DTYPE",
            Refusal::Map => "L3-MAP",
            Refusal::Probs => "L4-PROBS",
            Refusal::Dup => "L5-DUP",
            Refusal::Row => "L6-ROW",
            Refusal::RowTile => "L7-ROWTILE",
            Refusal::Recompute => "L8-RECOMPUTE",
            Refusal::Bind => "L9-BIND",
            Refusal::Dispatch => "L12-DISPATCH",
            Refusal::Grid => "L14-GRID",
            Refusal::Effect => "L17-EFFECT",
            Refusal::Mode => "L18-MODE",
            Refusal::Shape => "L19-SHAPE",
            Refusal::User => "L20-USER",
            Refusal::Profit => "N-PROFIT",
            Refusal::Parallelism => "N-PAR",
        }
    }
    /// The smallest change that would allow the fusion, in general terms.
    pub const fn remedy(self) -> &'static str {
        match self {
            Refusal::Cycle => "remove the path through the operation outside",
            Refusal::Dtype => "use a type the target computes with",
            Refusal::Map => "make both operations walk the same tile: equal extents, or a view between them",
            Refusal::Probs => "drop the output that keeps the probabilities alive",
            Refusal::Dup => "let one consumer remain, or accept the copy as a value of its own",
            Refusal::Row => "shorten the row, or split the reduction",
            Refusal::RowTile => "let one workgroup own whole rows: fewer columns than a tile",
            Refusal::Recompute => "run with at most 4 rows, or forward the statistic from the producer",
            Refusal::Bind => "pack small operands, or raise the target's limit of storage buffers",
            Refusal::Dispatch => "split the tensor along its rows",
            Refusal::Grid => "two kernels: a grid-wide dependency needs a launch between them",
            Refusal::Effect => "keep the order of cache writes and reads",
            Refusal::Mode => "allow the numeric mode that covers this rewrite",
            Refusal::Shape => "meet the shape the rule asks for",
            Refusal::User => "switch the fusion on again",
            Refusal::Profit => "larger extents: at these it saves less than a launch",
            Refusal::Parallelism => "more rows: one workgroup a row would leave the device idle",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
