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
    /// Whether it takes more than two sites of a kind in a kernel to meet one.
    pub is_deep: bool,
}

const fn same(template: &'static str, operator: &'static str, line: &'static str, why: &'static str) -> Equivalent {
    Equivalent { template, operator, line, why, is_deep: false }
}

const fn deep(template: &'static str, operator: &'static str, line: &'static str, why: &'static str) -> Equivalent {
    Equivalent { template, operator, line, why, is_deep: true }
}

const IDLE: &str = "a workgroup too many reads the first row and stores nothing";
const TIE: &str = "equal places are the same element";
const SURPLUS: &str = "workgroups too many lie past the last row, which every store checks for itself";
const CLAMPED: &str = "rows past the last are the last: the invocation that has it stores its value again";
const ALIGNED: &str = "the index of this part is known modulo four, so the choice between its words is too";
const EDGE: &str =
    "the columns (or elements) of an invocation are known modulo four; the first past the last is another one";
const FIRST: &str = "a workgroup that is not too many has its first row";
const DRAINED: &str = "behind the loop only copies of zeros are under way, and nothing reads the tiles any more";
const ZEROS: &str = "past the end of k the other side is zero, or nothing is multiplied";
const OVERLAP: &str = "the next array begins earlier, and is used only when this one no longer is";
const FADED: &str = "the first key scales what was before by exp(-1e30 - top), which is 0; without a key 0 is stored";
const SHIFTED: &str = "a softmax does not see what is added to every score, nor does a cap far above";
const ALIKE: &str = "all queries of a workgroup see the same keys, or the last of them sees the farthest";
const BOUND: &str = "at the bound the difference is 0 as well";
const DEAD: &str = "what is kept of the last comparison is the place alone";
const FRESH: &str = "nothing has read this array yet";
const OWN: &str = "the invocation reads what it wrote itself";
const APART: &str = "areas lie one pair further apart, and what is used of the last one still fits";
const PAST: &str = "in front of the end of k both are the last unit, and past it nothing is copied";
const SINGLE: &str = "there is one row, whose number is 0";
const PADDED: &str = "past the end of a head the other side is zero";
const UNSTORED: &str = "elements past the end of a head are stored nowhere";
const ADDED: &str = "what is added is 0";
const PAIRS: &str = "columns come in pairs: the second of one has an odd number, and what it is compared with is even";
const ELSEWHERE: &str = "another part of the block has the first column past the last";
const BEYOND: &str = "blocks too many lie past the last column: their tiles are zeros, and nothing is stored";
const UNITS: &str = "copies begin at multiples of eight elements: less than eight more is the same place";
const STANDS: &str = "the barrier behind the last stage, which was let go of, stands in front of it";
const NOTHING: &str = "without a key what was gathered is 0, whatever it is multiplied by";
const UNREAD: &str = "a middle value past the last is never read";
const WIDE: &str = "there are more columns than invocations: each has its first one";
const BEGINNING: &str = "the place begins as that of the first element, which is compared with nothing";
const UNSET: &str = "elements that no column sets are left out, or their row is";
const WHOLE: &str = "tiles begin at multiples of their width, which the number of columns is not";
const ENDS: &str = "a tile ends behind its third column, or the row goes on behind its eighth";
const FINAL: &str = "nothing comes behind this barrier";
const SOLE: &str = "the first invocation alone uses it, and has the first column";
const INSIDE: &str = "one column further is in the same tile, and on the same side of the last column";
const LATER: &str = "the invocation's store for the range that is right comes later, and is what stays";

/// All of them.
#[rustfmt::skip]
pub const EQUIVALENT: &[Equivalent] = &[
    same("row", "guard always true", "if (active_) { -> let t_", IDLE),
    same("row", "guard always true", "@!%active bra.uni $join_", IDLE),
    same("row", "guard off by one", "< place)); ->", TIE),
    deep("row", "guard off by one", "%place; -> setp.le.s32", TIE),
    deep("row", "update dropped", "ld.shared.f32 %reduced, [%partial];", OWN),
    deep("row", "update dropped", "reduced = max(reduced, other_5); ->", DEAD),
    deep("row", "largest and smallest mixed up", "reduced = max(reduced, other_5); ->", DEAD),
    deep("row", "largest and smallest mixed up", "reduced = max(reduced, partial_at_7); ->", DEAD),
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
    deep("lanes", "guard always true", "if (first_row < ", FIRST),
    deep("lanes", "guard off by one", "if (first_row < ", FIRST),
    same("gemm_registers", "guard always true", "if (in_rows", CLAMPED),
    deep("gemm_registers", "guard off by one", "let in_rows", CLAMPED),
    same("gemm_staged", "guard off by one", "in_rows", CLAMPED),
    same("lanes", "guard always true", "if (first_row + ", CLAMPED),
    same("lanes", "guard off by one", "if (first_row + ", CLAMPED),
    same("attention_lanes", "guard always true", "<= last_row", CLAMPED),
    same("attention_lanes", "guard always true", "<= 0u) {", CLAMPED),
    same("attention_lanes", "largest and smallest mixed up", "let s = min(i", SINGLE),
    deep("attention_tile", "guard always true", "<= last_row", CLAMPED),
    same("gemm_registers", "guard off by one", ">= 2u)", ALIGNED),
    same("gemm_registers", "choice reversed", "select(select(quad", ALIGNED),
    same("gemm_staged", "guard off by one", ">= 2u); ->", ALIGNED),
    same("gemv", "guard off by one", "t_6 = vec4<u32>(select(", ALIGNED),
    same("gemv", "choice reversed", "t_6 = vec4<u32>(select(", ALIGNED),
    deep("gemm_staged", "guard off by one", "if (column", EDGE),
    deep("gemm_staged", "guard off by one", ", %column", EDGE),
    deep("gemv_warp", "guard off by one", ", 32; -> setp.lt.u32", PAIRS),
    deep("attention_warp", "guard off by one", ", 20; -> setp.le.u32", EDGE),
    same("gemm_matrix", "copy not waited for", "cp.async.wait_group 0", DRAINED),
    same("gemm_matrix", "wait one group short", "cp.async.wait_group 0", DRAINED),
    same("gemm_matrix", "guard off by one", "%in_k", ZEROS),
    deep("gemm_staged", "guard off by one", ", at < ", ZEROS),
    deep("gemm_staged", "guard off by one", ", at_1 < ", ZEROS),
    deep("gemm_staged", "guard off by one", ", %at, 37; ->", ZEROS),
    deep("gemm_staged", "guard off by one", ", %at_1, 37; ->", ZEROS),
    deep("gemm_matrix", "largest and smallest mixed up", "min.u32 %unit_at_1", PAST),
    same("gemm_matrix", "workgroup array too short", "add.u32 %sums", OVERLAP),
    deep("gemm_matrix", "stride off by one", "mul.lo.u32 %mine", APART),
    deep("gemm_matrix", "barrier dropped", "-> mad.lo.u32 %r", FRESH),
    deep("gemv", "barrier dropped", "-> if (lane == 0u", OWN),
    same("attention_lanes", "stale accumulator", "var sum", FADED),
    same("attention_tile", "stale accumulator", "var sum", FADED),
    same("attention_tile", "stale accumulator", "var out", FADED),
    same("attention_warp", "stale accumulator", "mov.f32 %sum", FADED),
    same("attention_warp", "stale accumulator", "mov.f32 %out$", FADED),
    same("attention_matrix", "stale accumulator", "mov.f32 %sum", FADED),
    same("attention_matrix", "stale accumulator", "mov.f32 %out", FADED),
    same("attention_matrix", "guard off by one", ", 20; -> setp.le.u32", PADDED),
    deep("attention_matrix", "guard off by one", "%total", NOTHING),
    deep("attention_matrix", "guard off by one", ", 203; -> setp.ge.u32", BOUND),
    deep("attention_matrix", "store one further", "+96], ", UNSTORED),
    deep("attention_matrix", "store dropped", "%column, 24; ->", UNSTORED),
    deep("attention_matrix", "update dropped", "mul.rn.f32 %out_3$x", UNSTORED),
    deep("attention_matrix", "sum and difference mixed up", "%rest_27, %rest_25", PADDED),
    deep("attention_matrix", "sum and difference mixed up", "%rest_26, %rest_24", PADDED),
    deep("attention_matrix", "choice reversed", "selp.f32 %f48, %f47", PADDED),
    deep("attention_lanes", "stride off by one", "s * 80u); -> ", SINGLE),
    deep("attention_lanes", "stride off by one", "s_1 * 80u", SINGLE),
    deep("attention_tile", "stride off by one", "min(lane / 64u, 0u) * 64u", SINGLE),
    deep("attention_tile", "largest and smallest mixed up", "min(lane / 64u, 0u)", SINGLE),
    deep("attention_tile", "barrier dropped", "-> let from_", OWN),
    deep("attention_warp", "sum and difference mixed up", "%share, 0f00000000; -> mul.rn.f32", ADDED),
    same("attention_lanes", "stale accumulator", "var dot_", SHIFTED),
    deep("attention_tile", "stale accumulator", "var dot_", SHIFTED),
    same("attention_lanes", "guard off by one", "> 0.0); -> ", NOTHING),
    deep("attention_tile", "guard off by one", "> 0.0); -> let share", NOTHING),
    deep("attention_lanes", "guard off by one", "select(0u, t_", BOUND),
    deep("attention_tile", "guard off by one", "select(0u, t_", BOUND),
    deep("attention_lanes", "largest and smallest mixed up", "let end_key", ALIKE),
    deep("attention_tile", "largest and smallest mixed up", "let end_key", ALIKE),
    same("gemm_warpgroup", "guard off by one", ", 328; -> setp.le.u32", ZEROS),
    deep("gemm_warpgroup", "stride off by one", ", 8; -> mul.lo.u32 %unit_k_", UNITS),
    deep("gemm_warpgroup", "guard off by one", "%column_1, 200; -> setp.le.u32", ELSEWHERE),
    same("gemm_warpgroup", "stride off by one", "mul.lo.u32 %groups, %r7, 2; -> mul.lo.u32 %groups, %r7, 3;", BEYOND),
    deep("gemm_warpgroup", "barrier dropped", "bar.warp.sync 0xffffffff; -> mad.lo.u32", STANDS),
    same("chain", "guard always true", "if (group < ", SURPLUS),
    same("chain", "guard off by one", "if (group < ", SURPLUS),
    same("chain", "guard always true", "-> mul.lo.u32 %first_row, %group", SURPLUS),
    same("chain", "guard off by one", "setp.lt.u32 %p1, %group", SURPLUS),
    deep("chain", "guard always true", "if (first_row < rows) { -> let row_", FIRST),
    deep("chain", "guard off by one", "if (first_row < rows) { -> if (first_row <= rows", FIRST),
    deep("chain", "guard always true", "%first_row, %size_S; -> min.u32 %row_", FIRST),
    deep("chain", "guard off by one", "%first_row, %size_S; -> setp.le.u32", FIRST),
    same("chain", "guard always true", "if (first_row + ", CLAMPED),
    same("chain", "guard off by one", "if (first_row + ", CLAMPED),
    same("chain", "guard always true", ", %size_S; -> min.u32 %row_", CLAMPED),
    same("chain", "guard off by one", ", %size_S; -> setp.le.u32", CLAMPED),
    deep("chain", "guard always true", "if (me < ", WIDE),
    deep("chain", "guard off by one", "if (me <= ", WIDE),
    deep("chain", "guard always true", "; -> setp.lt.u32 %p11, %first_row", WIDE),
    deep("chain", "guard always true", "; -> setp.lt.u32 %p17, %first_row", WIDE),
    deep("chain", "guard off by one", "-> setp.le.u32 %p11, %r1, 75", WIDE),
    deep("chain", "guard off by one", "-> setp.le.u32 %p17, %r1, 72", WIDE),
    same("chain", "guard off by one", ", i_1 <= 70u)", UNREAD),
    deep("chain", "guard off by one", "-> setp.le.u32 %p7, %i_1, 70", UNREAD),
    deep("chain", "guard off by one", ", i <= 136u)", UNREAD),
    deep("chain", "guard off by one", "-> setp.le.u32 %p5, %i, 136", UNREAD),
    deep("chain", "guard off by one", "quad.w, t_3 == 3u), t_3 > 2u)", ALIGNED),
    deep("chain", "guard off by one", "quad_4.w, t_9 == 3u), t_9 > 2u)", ALIGNED),
    deep("chain", "guard off by one", "quad_1.w, t_4 == 3u), t_4 > 2u)", ALIGNED),
    deep("chain", "guard off by one", "quad_3.w, t_8 == 3u), t_8 > 2u)", ALIGNED),
    deep("chain", "guard off by one", "quad_4.w, t_20 == 3u), t_20 > 2u)", ALIGNED),
    deep("chain", "guard off by one", "quad_8.w, t_29 == 3u), t_29 > 2u)", ALIGNED),
    same("chain", "choice reversed", "quad.w, quad.z, t_3 == 3u", ALIGNED),
    deep("chain", "choice reversed", "quad_1.w, quad_1.z, t_4 == 3u", ALIGNED),
    deep("chain", "choice reversed", "quad_4.w, quad_4.z, t_9 == 3u", ALIGNED),
    deep("chain", "choice reversed", "quad_5.w, quad_5.z, t_10 == 3u", ALIGNED),
    same("chain", "choice reversed", "quad_6.y, quad_6.x, t_11 == 1u", ALIGNED),
    deep("chain", "choice reversed", "quad_7.y, quad_7.x, t_12 == 1u", ALIGNED),
    same("chain", "choice reversed", "quad.w, quad.z, t_2 == 3u", ALIGNED),
    deep("chain", "choice reversed", "quad_2.y, quad_2.x, t_6 == 1u", ALIGNED),
    deep("attention_lanes", "largest and smallest mixed up", "let first_key = min(start, start_1)", ALIKE),
    same("lanes", "guard off by one", " <= place)", TIE),
    same("gemv", "guard off by one", " <= place)", TIE),
    deep("gemv_warp", "guard off by one", ", %place; -> setp.le.f32", TIE),
    deep("lanes", "guard off by one", "t_4 >= largest", BEGINNING),
    deep("lanes", "update dropped", "let t_5 = f32(t_3); -> largest = max(largest, t_4)", BEGINNING),
    deep("lanes", "choice reversed", "-> place = select(t_5, place, t_4 >", BEGINNING),
    deep("gemv", "choice reversed", "-> place = select(t_6, place, t_5 >", BEGINNING),
    deep("gemv_warp", "choice reversed", "-> selp.f32 %place, %place, %t_16, ", BEGINNING),
    deep("lanes", "guard off by one", "(first_row <= sizes.size_B && ", FIRST),
    deep("lanes", "sum and difference mixed up", "-> let row = min(first_row, sizes.size_B + 1u)", FIRST),
    deep("lanes", "loop one step short", "i < 2u; i += 1u) { -> kept[1u] = 0.0", UNSET),
    deep("lanes", "loop one step short", "i < 32u; i += 1u) { -> for (var i = 1u", UNSET),
    deep("lanes", "store dropped", "kept[i] = 0.0; -> }", UNSET),
    same("gemm_staged", "stale accumulator", "-> var kept_", UNSET),
    deep("gemm_matrix", "stale accumulator", "-> mov.f32 %kept", UNSET),
    deep("gemv", "barrier dropped", "workgroupBarrier(); -> }", FINAL),
    same("gemv_warp", "barrier dropped", "bar.sync 0; -> $join_1:", FINAL),
    deep("gemv", "guard off by one", " 0u < last)", ENDS),
    deep("gemv", "guard off by one", " 1u < last)", ENDS),
    deep("gemv", "guard off by one", " 6u < last)", ENDS),
    deep("gemv", "guard off by one", " 7u < last)", ENDS),
    same("gemv_warp", "guard off by one", ", 3, %last; -> setp.lt.u32", ENDS),
    deep("gemv_warp", "guard off by one", ", 7, %last; -> setp.lt.u32", ENDS),
    deep("gemv_warp", "guard off by one", "%start, 75; -> setp.le.u32", WHOLE),
    same("gemv_warp", "sum and difference mixed up", "-> mad.lo.u32 %start, %r6, 2, %n", SOLE),
    same("lanes", "guard off by one", "first_column + 8u + lane <= 70u", ELSEWHERE),
    deep("lanes", "guard off by one", "first_column + 16u + lane <= 70u", ELSEWHERE),
    deep("lanes", "guard off by one", "first_column + 24u + lane <= 70u", ELSEWHERE),
    deep("lanes", "guard off by one", "&& first_column <= 70u", WHOLE),
    deep("gemm_staged", "guard off by one", "&& first <= 70u", WHOLE),
    deep("gemm_matrix", "guard off by one", ", %t_25, 70; -> setp.le.u32", WHOLE),
    deep("gemm_staged", "guard off by one", "kept_1, first_column + local_id.x * 4u + 1u <= 70u)", EDGE),
    deep("gemm_staged", "stride off by one", "-> let first = first_column + own * 33u", INSIDE),
    deep("gemm_matrix", "largest and smallest mixed up", "min.u32 %unit_at_8, ", PAST),
    deep("gemv", "guard always true", "if (t_12 < 480u) { -> arena[record.y_at", LATER),
    deep("gemv", "guard always true", "%t_8, 480; -> mul.rn.f32 %f68, %sum_3, %stat_3", LATER),
    deep("gemv", "guard off by one", "if (t_12 <= 480u)", LATER),
    deep("gemv", "guard off by one", "t_12 <= 960u)", LATER),
    deep("gemv", "guard off by one", "t_8 <= 960u)", LATER),
    deep("gemv", "guard off by one", "-> setp.le.u32 %p24, %t_8, 480", LATER),
    deep("gemv", "guard off by one", "-> setp.le.u32 %p26, %t_8, 960", LATER),
    deep("gemv", "guard off by one", "quad.w, t_3 == 3u), t_3 > 2u)", ALIGNED),
    deep("gemv", "guard off by one", "quad_3.w, t_6 == 3u), t_6 > 2u)", ALIGNED),
    same("gemv", "choice reversed", "quad.w, quad.z, t_3 == 3u", ALIGNED),
    deep("gemv", "choice reversed", "quad_1.w, quad_1.z, t_4 == 3u", ALIGNED),
    deep("gemv", "choice reversed", "quad_2.y, quad_2.x, t_5 == 1u", ALIGNED),
    deep("gemv", "choice reversed", "quad_3.y, quad_3.x, t_6 == 1u", ALIGNED),
];
