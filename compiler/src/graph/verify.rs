//! The invariants of the graph IR.
