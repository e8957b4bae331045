//! Kernels with their data, for whatever can run them.
//!
//! Each function hands its cases to `check`; [`for_each_case!`](crate::for_each_case) makes one test of each function.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod attention;
pub mod chain;
pub mod gemm;
pub mod gemv;
pub mod map;
pub mod row;

/// One test for each function of [`cases`](self), which is given `$check`.
#[macro_export]
macro_rules! for_each_case {
    ($check:expr) => {
        $crate::for_each_case! { $check;
            map: map_of_any_rank, maps_of_few_and_many_weights, map_at_the_edges_of_its_tiles, map_folds_a_large_grid, map_reads_every_storage, every_function_of_one_operand, functions_of_two_operands_in_every_type, pow_of_negative_numbers, map_with_ranges_select_and_several_outputs, map_in_place_with_two_outputs, index_arithmetic_with_floors_and_bounds;
            row: layer_norm_in_two_passes, softmax_in_place, argmax_takes_the_first_of_equals, argmax_of_rows_of_minus_infinity, row_with_gather_and_statistic_of_a_product;
            gemm: every_tail_of_rows_columns_and_sum, weights_of_every_storage, several_accumulators_meet_in_the_epilogue, mixed_storages_and_interleaved_rows, batched_products_of_activations, a_sum_of_symbolic_extent, batches_flatten_into_rows, prologue_epilogue_and_a_residual_in_place, stores_in_ranges_of_columns, rows_named_by_data,
                rows_are_normalised_in_front_of_their_products, statistics_of_a_result_by_tiles, statistics_joined_from_tiles,
                statistics_scale_the_sums, rows_kept_in_16_bits;
            gemv: few_rows_with_every_tail, rows_of_every_storage, a_norm_of_the_rows_in_front, norms_in_front_of_few_and_many_columns, rows_kept_for_several_passes, sides_of_different_storage, statistics_of_few_rows_by_tiles, a_place_of_tiles,
                a_norm_in_front_of_a_norm, norms_of_heads_behind_a_product, gate_and_up_meet_in_one_lane;
            attention: every_length_of_keys, causal_behind_earlier_keys, window_and_soft_cap, tiles_of_queries_and_keys, mask_and_bias, parts_of_every_length,
                parts_behind_padding;
            chain: chains_at_every_tail, chains_of_every_storage;
        }
    };
    ($check:expr; $($module:ident: $($name:ident),*;)*) => {
        $(mod $module {
            $(#[test]
            fn $name() {
                $crate::cases::$module::$name(&$check);
            })*
        })*
    };
}
