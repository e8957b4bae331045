//! Layer fusion: one test for each row of the literature and each topic, named after it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod albert;
mod analysis;
mod caches;
mod checkpoints;
mod conv_chains;
mod convolutions;
mod cost_model;
mod depth;
mod edits;
mod encoder_decoders;
mod eviction;
mod gguf_files;
mod graphs;
mod harness;
mod identities;
mod kv_slots;
mod merging;
mod onnx_edits;
#[path = "../support/onnx_file.rs"]
mod onnx_file;
mod packed;
mod precision;
mod probabilities;
#[path = "../../kernels/tests/support/ptxas.rs"]
mod ptxas;
mod reads;
mod recipes;
mod sharding;
mod sharing;
mod stacks;
mod table;
mod tiny;
mod tying;
mod widths;
