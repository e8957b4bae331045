//! Buffers of a plan: values, persistent states and cache slots.

use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use serde::{Deserialize, Serialize};

/// An intermediate value of a program. It lives in the float arena when its storage is F32, else in the integer arena.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValueDecl {
    /// Readable name, unique in the program.
    pub name: String,
    /// F32, I32 or Bool.
    pub storage: Storage,
    /// Extents; row-major without gaps.
    pub shape: Vec<Dim>,
    /// Which slot of the program's arena holds it; values with the same slot share memory at different times, or on
    /// purpose by an alias contract.
    pub slot: u32,
    /// First and last step that touches it.
    pub live: (u32, u32),
}

/// The slots of one arena of a program: slot i holds `sizes[i]` elements. Offsets follow from the sizes at binding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotLayout {
    /// Elements of each slot.
    pub sizes: Vec<Dim>,
}

/// A value that outlives a program run and that all programs see at the same place: the key mask, the next tokens.
/// States are I32 or Bool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateDecl {
    /// Stable name.
    pub name: String,
    /// I32 or Bool.
    pub storage: Storage,
    /// Extents.
    pub shape: Vec<Dim>,
}

/// A key/value cache slot. Keys lie as `[batch, kv heads, capacity, head dim]` in F32, values behind them in the same
/// buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvSlotDecl {
    /// Readable name, such as `layer0`.
    pub name: String,
    /// Extents of the key part; empty when the slot keeps no keys.
    pub k_shape: Vec<Dim>,
    /// Extents of the value part; empty when it keeps no values.
    pub v_shape: Vec<Dim>,
}

/// Which part of a cache slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvPart {
    /// Keys.
    K,
    /// Values.
    V,
}

/// What an argument of a launch is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BufferRef {
    /// A value of the program.
    Value(u32),
    /// A weight of the plan.
    Weight(u32),
    /// A state of the plan.
    State(u32),
    /// A part of a cache slot of the plan.
    Kv {
        /// The slot.
        slot: u32,
        /// Keys or values.
        part: KvPart,
    },
}
