//! Root package of the workspace: owns `tests/` and `benches/`, exports nothing.
