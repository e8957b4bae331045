//! Hugging Face directories: configuration, weights, architectures.

pub mod weights;
