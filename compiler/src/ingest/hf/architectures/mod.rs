//! The architectures: which tensor goes where, over the shared blocks.

pub(super) mod bert;
pub(super) mod gpt2;
pub(super) mod llama;
