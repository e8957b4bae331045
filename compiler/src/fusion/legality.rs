//! The closed set of reasons for which two operations do not share a kernel. Codes are stable; tests and reports cite
//! them.
//!
//! Conditions that cannot fail have no code; [`NEVER`] says why. An edge names one code, but for two: a reuse of storage
//! is refused in the report of memory ([`Refusal::Alias`]), and a target with fewer invocations than a kernel has is an
//! error of compiling ([`Refusal::Threads`]) where no fusion is at fault.

use crate::graph::Op;
use std::fmt;

/// Said where a condition decides whether a launch is needed.
pub(super) const LEFT_OUT: &str = "the launch is left out where the condition is false";

/// Conditions of legality that cannot fail, and why.
pub const NEVER: [(&str, &str); 2] = [
    (
        "L6-ROW",
        "one team of invocations owns a reduced row whatever its length: a row that exceeds its registers is read again for each \
         statistic",
    ),
    (
        "L15-UNIFORM",
        "templates put barriers outside of masks, and the verifier of kernels refuses one that does not as an internal error",
    ),
];

/// Why an edge was not fused. The number orders the conditions: the first failure is the headline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// A path leaves the region and comes back.
    Cycle,
    /// A type that the target cannot compute with.
    Dtype,
    /// The consumer's read map does not meet the producer's write map within one invocation.
    Map,
    /// Attention has no output for its probabilities.
    Probs,
    /// The producer would be computed again for several consumers at too high a price.
    Dup,
    /// A row reduction behind a matmul whose tiles do not own whole rows.
    RowTile,
    /// A norm in front of a matmul that could be commuted through it, at too high a price.
    Commute,
    /// A norm in front of a matmul with many rows: recomputing its statistics in every column tile costs more than it
    /// saves.
    Recompute,
    /// A norm in front of a matmul whose statistics could come from the kernel that makes the rows, at too high a price.
    Stat,
    /// More storage bindings than the target has.
    Bind,
    /// More workgroup memory than the target has.
    Smem,
    /// More invocations of a workgroup than the target has.
    Threads,
    /// Grid or binding limits.
    Dispatch,
    /// More values at once than an invocation has registers for.
    Registers,
    /// A dependency across the grid.
    Grid,
    /// A value may not be written over an input.
    Alias,
    /// The order of effects.
    Effect,
    /// The rewrite's proof class exceeds the numeric mode.
    Mode,
    /// It looks like an operation that kernels know, but for its shapes or attributes.
    Shape,
    /// Switched off by the user.
    User,
    /// Legal, but it saves too little.
    Profit,
    /// One kernel would have too few workgroups to fill the device.
    Workgroups,
    /// Two products in a row that do not fit a workgroup or take longer as one kernel.
    Chain,
    /// Two convolutions in a row whose tiles and their borders do not fit a workgroup or take longer as one kernel.
    Halo,
    /// The peak of memory would rise above the budget.
    Peak,
    /// The fused kernels were measured and are slower.
    Measured,
    /// The fused kernel differs from its operations on random operands.
    Mismatch,
}

impl Refusal {
    /// Every code, in the order of the conditions.
    pub const ALL: [Refusal; 27] = [
        Refusal::Cycle,
        Refusal::Dtype,
        Refusal::Map,
        Refusal::Probs,
        Refusal::Dup,
        Refusal::RowTile,
        Refusal::Commute,
        Refusal::Recompute,
        Refusal::Stat,
        Refusal::Bind,
        Refusal::Smem,
        Refusal::Threads,
        Refusal::Dispatch,
        Refusal::Registers,
        Refusal::Grid,
        Refusal::Alias,
        Refusal::Effect,
        Refusal::Mode,
        Refusal::Shape,
        Refusal::User,
        Refusal::Profit,
        Refusal::Workgroups,
        Refusal::Chain,
        Refusal::Halo,
        Refusal::Peak,
        Refusal::Measured,
        Refusal::Mismatch,
    ];
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
            Refusal::RowTile => "L7-ROWTILE",
            Refusal::Commute => "L8-COMMUTE",
            Refusal::Recompute => "L8-RECOMPUTE",
            Refusal::Stat => "L8-STAT",
            Refusal::Bind => "L9-BIND",
            Refusal::Smem => "L10-SMEM",
            Refusal::Threads => "L11-THREADS",
            Refusal::Dispatch => "L12-DISPATCH",
            Refusal::Registers => "L13-REG",
            Refusal::Grid => "L14-GRID",
            Refusal::Alias => frit_plan::ALIAS,
            Refusal::Effect => "L17-EFFECT",
            Refusal::Mode => "L18-MODE",
            Refusal::Shape => "L19-SHAPE",
            Refusal::User => "L20-USER",
            Refusal::Profit => "N-PROFIT",
            Refusal::Workgroups => "N-PAR",
            Refusal::Chain => "N-CHAIN",
            Refusal::Halo => "N-HALO",
            Refusal::Peak => "N-PEAK",
            Refusal::Measured => "N-MEASURED",
            Refusal::Mismatch => "V-MISMATCH",
        }
    }
    /// What has to hold for two operations to share a kernel; the code is given where it does not.
    pub const fn condition(self) -> &'static str {
        match self {
            Refusal::Cycle => "no path leads from the region through an operation outside back into it",
            Refusal::Dtype => "the target computes with both types, and what is packed together is stored alike",
            Refusal::Map => "the invocation that reads an element is the one that computes it",
            Refusal::Probs => "only the product with the values reads the probabilities of attention",
            Refusal::Dup => "one region reads the value, or it costs less to compute again than to store",
            Refusal::RowTile => "one workgroup owns the whole row that is reduced",
            Refusal::Commute => {
                "scaling the sums by statistics of the kernel that makes the rows takes less time than a kernel of its own"
            }
            Refusal::Recompute => {
                "computing the statistics in every column tile takes less time than a kernel of their own"
            }
            Refusal::Stat => {
                "normalising in every column tile, with statistics of the kernel that makes the rows, takes less time than a \
                 kernel of their own"
            }
            Refusal::Bind => "the region binds no more storage buffers than the target has",
            Refusal::Smem => "the rows and the sums of both products fit the memory of a workgroup",
            Refusal::Threads => "a workgroup has no more invocations than the target allows",
            Refusal::Dispatch => "what is packed together fits one binding",
            Refusal::Registers => "an invocation holds no more values at once than four in five of its registers",
            Refusal::Grid => "the consumer needs nothing that other workgroups of the same kernel compute",
            Refusal::Alias => {
                "the input dies there and does not leave the program, each element is read before it is written, nothing else lies \
                 there, and both are equally large"
            }
            Refusal::Effect => "what is written to a cache is read in the order of the graph",
            Refusal::Mode => "the proof class of the rewrite is allowed by the numeric mode",
            Refusal::Shape => "the operations that look like one that kernels know have its shapes and attributes",
            Refusal::User => "neither the fusion nor the operation is switched off, and there is fuel",
            Refusal::Profit => "one kernel takes less time than two",
            Refusal::Workgroups => "one kernel has enough workgroups to take less time than two",
            Refusal::Chain => "the second product alone reads the first, and one kernel takes less time than two",
            Refusal::Halo => {
                "a workgroup holds a tile between two convolutions with its border, and one kernel takes less time than two"
            }
            Refusal::Peak => "the program's memory keeps within the budget that was asked for",
            Refusal::Measured => "no measurement that the compiler was given found the plan faster without",
            Refusal::Mismatch => "the fused kernel gives what its operations give on random operands",
        }
    }
    /// The smallest change that would allow the fusion of an edge, if it is another than in general.
    pub fn remedy_of(self, from: &Op, to: &Op, detail: &str) -> &'static str {
        match (self, from, to) {
            (Refusal::RowTile, _, Op::Norm { .. }) if detail.contains("tile of columns") => {
                "norm two heads or more rather than the row, in a run of few rows"
            }
            (Refusal::RowTile, ..) if detail.contains("does not reduce") => "nothing: a kernel reduces rows once",
            (Refusal::RowTile, ..) if detail.contains("of attention") => {
                "nothing: attention owns no rows of its result"
            }
            (Refusal::RowTile, ..) if detail.contains("no matrix") => "a matrix of weights as the right side",
            (Refusal::RowTile, ..) if detail.contains("as well") => "narrower heads, of one width",
            (Refusal::Profit, ..) if detail == LEFT_OUT => "nothing: one kernel could not be left out",
            (Refusal::Profit, ..) if detail.starts_with("the cheapest regions") => {
                "nothing: apart they take less time by the model of costs"
            }
            (Refusal::Profit, _, Op::MatMul { .. }) => {
                "nothing: no kernel computes a product behind a reduction or attention"
            }
            (Refusal::Dup, ..) if detail.starts_with("every column tile") => {
                "fewer columns in the consumer: one tile of them"
            }
            (Refusal::Dup, ..) if detail.starts_with("computed in another") => {
                "nothing: it is part of another region already"
            }
            (Refusal::Chain, ..) if detail.contains("leaves the graph") => "leave it out of the outputs",
            (Refusal::Chain, ..) if detail.contains("as well") => "let nothing but the product behind read it",
            (Refusal::Chain, ..) if detail.contains("in f32 alone") => "products in the usual precision",
            (Refusal::Chain, ..) if detail.contains("element by element") => "move it in front of the first product",
            (Refusal::Chain, ..) if detail.starts_with("statistics of rows") => "switch stat-forward off",
            (Refusal::Chain, ..) if detail.starts_with("a chain would read") => {
                "weights of constant widths as right sides"
            }
            (Refusal::Chain, ..) if detail.contains("width that is not known") => "constant widths",
            _ => self.remedy(),
        }
    }
    /// The smallest change that would allow the fusion, in general terms.
    pub const fn remedy(self) -> &'static str {
        match self {
            Refusal::Cycle => "remove the path through the operation outside",
            Refusal::Dtype => "use a type the target computes with",
            Refusal::Map => "make both operations walk the same tile: equal extents, or a view between them",
            Refusal::Probs => "leave the probabilities out of the outputs",
            Refusal::Dup => "let one region read the value",
            Refusal::RowTile => "nothing: tiles of columns own no rows, whatever their width",
            Refusal::Commute => "run with fewer rows, or with fewer columns behind the norm",
            Refusal::Recompute => "run with fewer rows, or with fewer columns behind the norm",
            Refusal::Stat => "run with fewer rows, or with fewer columns behind the norm",
            Refusal::Bind => "read fewer matrices at once, or raise the target's limit of storage buffers",
            Refusal::Smem => "narrower products",
            Refusal::Threads => "a target that allows more invocations",
            Refusal::Dispatch => "split the tensor along its rows",
            Refusal::Registers => "let fewer values wait for a later reader",
            Refusal::Grid => "nothing: what other workgroups make needs a launch in between",
            Refusal::Alias => "nothing: the result takes storage of its own",
            Refusal::Effect => "keep the order of cache writes and reads",
            Refusal::Mode => "allow the numeric mode that covers this rewrite",
            Refusal::Shape => "write the operation with the shapes and attributes that the condition names",
            Refusal::User => "switch the fusion on again",
            Refusal::Mismatch => "none: report the model, this is a fault of the compiler",
            Refusal::Peak => "a larger budget, or fewer rows",
            Refusal::Measured => "measure on another device, or compile without the measurements",
            Refusal::Workgroups => "more rows: each workgroup of a chain owns a few of them",
            Refusal::Chain => "narrower products, or fewer rows",
            Refusal::Halo => "fewer channels, smaller windows or fewer places",
            Refusal::Profit => "larger extents: at these it saves less than a launch",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
