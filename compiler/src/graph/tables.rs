//! Tables of a model that its graphs refer to: weights, cache slots, states. Weight identity is not the parameter name:
//! many names may stand for one buffer, and cache slots belong to executions, never to weights.

use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_plan::{RopePart, SizeDecl};
use std::collections::HashMap;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
    };
}
id!(
    /// Index of a weight in [`Tables::weights`].
    WeightId
);
id!(
    /// Index of a cache slot in [`Tables::kv_slots`].
    KvSlotId
);
id!(
    /// Index of a state in [`Tables::states`].
    StateId
);

/// Where a weight's elements come from.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightData {
    /// A stored tensor.
    Tensor {
        /// Its name in the source.
        name: String,
        /// It is stored as `[K, N]` and used as `[N, K]`.
        transpose: bool,
    },
    /// A rotary table, see [`frit_plan::WeightSource::Rope`].
    Rope {
        /// Radians per position of each pair.
        inv_freq: Vec<f32>,
        /// Factor on the table.
        scale: f32,
        /// Cosine or sine.
        part: RopePart,
    },
    /// Values known to the compiler.
    Inline(Vec<f32>),
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightInfo {
    /// Parameter names that share this buffer; the first is the display name.
    pub names: Vec<String>,
    /// How elements are stored.
    pub storage: Storage,
    /// Extents as used (after a transpose).
    pub shape: Vec<Dim>,
    /// Where elements come from.
    pub data: WeightData,
}

/// A key/value cache slot.
#[derive(Clone, Debug, PartialEq)]
pub struct KvSlot {
    /// Display name, such as `layer0`.
    pub name: String,
    /// Heads.
    pub heads: u64,
    /// Elements of a key head; 0 when the slot keeps no keys.
    pub k_dim: u64,
    /// Elements of a value head; 0 when the slot keeps no values.
    pub v_dim: u64,
    /// Positions it has room for.
    pub len: Dim,
}

/// A persistent integer state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateInfo {
    /// Stable name.
    pub name: String,
    /// I32 or Bool.
    pub storage: Storage,
    /// Extents.
    pub shape: Vec<Dim>,
}

/// What the graphs of one model share.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Constant tensors.
    pub weights: Vec<WeightInfo>,
    /// Cache slots.
    pub kv_slots: Vec<KvSlot>,
    /// States.
    pub states: Vec<StateInfo>,
    /// Dynamic sizes; the index is the index kernels use.
    pub sizes: Vec<SizeDecl>,
    by_tensor: HashMap<(String, bool), WeightId>,
}

impl Tables {
    /// Adds a weight; a tensor used before (under any parameter name, in the same orientation) keeps its id.
    pub fn weight(&mut self, info: WeightInfo) -> WeightId {
        if let WeightData::Tensor { name, transpose } = &info.data {
            if let Some(id) = self.by_tensor.get(&(name.clone(), *transpose)) {
                if let Some(known) = self.weights.get_mut(id.0 as usize) {
                    for n in info.names {
                        if !known.names.contains(&n) {
                            known.names.push(n);
                        }
                    }
                }
                return *id;
            }
            self.by_tensor.insert((name.clone(), *transpose), WeightId(self.weights.len() as u32));
        }
        self.weights.push(info);
        WeightId(self.weights.len() as u32 - 1)
    }
    /// Adds a cache slot.
    pub fn kv_slot(&mut self, slot: KvSlot) -> KvSlotId {
        self.kv_slots.push(slot);
        KvSlotId(self.kv_slots.len() as u32 - 1)
    }
    /// The state of that name, added if new.
    pub fn state(&mut self, info: StateInfo) -> StateId {
        let at = self.states.iter().position(|s| s.name == info.name).unwrap_or_else(|| {
            self.states.push(info);
            self.states.len() - 1
        });
        StateId(at as u32)
    }
    /// Declares a dynamic size, unless it is known.
    pub fn size(&mut self, name: &str, min: u64, max: Option<u64>) {
        if !self.sizes.iter().any(|s| s.name == name) {
            self.sizes.push(SizeDecl { name: name.into(), min, max });
        }
    }
    /// A weight.
    pub fn weight_info(&self, id: WeightId) -> Option<&WeightInfo> {
        self.weights.get(id.0 as usize)
    }
}
