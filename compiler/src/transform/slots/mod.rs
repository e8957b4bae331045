//! Keys, values and attention that layers take from others.

pub mod maps;
mod share_attention;
mod share_kv;
mod value_residual;

pub use maps::slot_bytes;
pub use share_attention::ShareAttention;
pub use share_kv::{KvInit, ShareKv};
pub use value_residual::ValueResidual;
