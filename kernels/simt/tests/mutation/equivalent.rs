//! Mutants that do what the original does, judged by hand.

/// One group of them.
#[derive(Debug)]
pub struct Equivalent {
    /// Template whose kernel it changes.
    pub template: &'static str,
    /// Operator that makes it.
    pub operator: &'static str,
    /// Part of the first line that differs, as `before -> after`.
    pub line: &'static str,
    /// Why nothing changes.
    pub why: &'static str,
}

const fn same(template: &'static str, operator: &'static str, line: &'static str, why: &'static str) -> Equivalent {
    Equivalent { template, operator, line, why }
}

const IDLE: &str = "a workgroup too many reads the first row and stores nothing";
const TIE: &str = "equal places are the same element";
const SURPLUS: &str = "workgroups too many lie past the last row, which every store checks for itself";
const CLAMPED: &str = "rows past the last are the last: the invocation that has it stores its value again";
const ALIGNED: &str = "the index of this part is known modulo four, so the choice between its words is too";
const DRAINED: &str = "behind the loop only copies of zeros are under way, and nothing reads the tiles any more";
const ZEROS: &str = "past the end of k the other side is zero, or nothing is multiplied";
const OVERLAP: &str = "the next array begins earlier, and is used only when this one no longer is";
const FADED: &str = "the first key scales what was before by exp(-1e30 - top), which is 0; without a key 0 is stored";
const SHIFTED: &str = "a softmax does not see what is added to every score";
const NOTHING: &str = "without a key what was gathered is 0, whatever it is multiplied by";

/// All of them.
#[rustfmt::skip]
pub const EQUIVALENT: &[Equivalent] = &[
    same("row", "guard always true", "if (active_) { -> let t_", IDLE),
    same("row", "guard always true", "@!%active bra.uni $join_1; ->", IDLE),
    same("row", "guard off by one", "other < place", TIE),
    same("gemm_registers", "guard always true", "if (group < ", SURPLUS),
    same("gemm_registers", "guard off by one", "if (group < ", SURPLUS),
    same("gemm_registers", "stride off by one", "if (group < ", SURPLUS),
    same("gemm_staged", "guard always true", "if (group < ", SURPLUS),
    same("gemm_staged", "guard off by one", "if (group < ", SURPLUS),
    same("gemm_staged", "stride off by one", "if (group < ", SURPLUS),
    same("gemm_staged", "guard always true", "-> shr.u32 %row_blocks", SURPLUS),
    same("gemm_staged", "guard off by one", "setp.lt.u32 %p1, %group", SURPLUS),
    same("gemm_staged", "stride off by one", "mul.lo.u32 %r8, %r7, 2", SURPLUS),
    same("gemm_matrix", "guard always true", "-> shr.u32 %row_blocks", SURPLUS),
    same("gemm_matrix", "guard off by one", "setp.lt.u32 %p1, %group", SURPLUS),
    same("gemm_matrix", "stride off by one", "mul.lo.u32 %r7, %r6, 2", SURPLUS),
    same("lanes", "guard always true", "if (group < ", SURPLUS),
    same("lanes", "guard off by one", "if (group < ", SURPLUS),
    same("lanes", "stride off by one", "if (group < ", SURPLUS),
    same("gemm_registers", "guard always true", "if (in_rows_", CLAMPED),
    same("gemm_staged", "guard off by one", "in_rows_", CLAMPED),
    same("lanes", "guard always true", "if (first_row + ", CLAMPED),
    same("lanes", "guard off by one", "if (first_row + ", CLAMPED),
    same("attention_lanes", "guard always true", "<= last_row", CLAMPED),
    same("gemm_registers", "guard off by one", "t_19 >= 2u", ALIGNED),
    same("gemm_registers", "choice reversed", "select(quad.x, quad.y, t_16 == 1u)", ALIGNED),
    same("gemm_staged", "guard off by one", "t_36 = select(", ALIGNED),
    same("gemv", "guard off by one", "t_6 = vec4<u32>(select(", ALIGNED),
    same("gemv", "choice reversed", "t_6 = vec4<u32>(select(", ALIGNED),
    same("gemm_matrix", "copy not waited for", "cp.async.wait_group 0", DRAINED),
    same("gemm_matrix", "wait one group short", "cp.async.wait_group 0", DRAINED),
    same("gemm_matrix", "guard off by one", "%in_k_", ZEROS),
    same("gemm_matrix", "workgroup array too short", "add.u32 %sums", OVERLAP),
    same("attention_lanes", "stale accumulator", "var sum: f32", FADED),
    same("attention_tile", "stale accumulator", "var sum: f32", FADED),
    same("attention_tile", "stale accumulator", "var out_", FADED),
    same("attention_warp", "stale accumulator", "mov.f32 %sum", FADED),
    same("attention_warp", "stale accumulator", "mov.f32 %out$", FADED),
    same("attention_lanes", "stale accumulator", "var dot_", SHIFTED),
    same("attention_lanes", "guard off by one", "total > 0.0", NOTHING),
];
