//! What a cache keeps of a token, slot by slot, before anything runs.

use frit_kernels::dim::{Dim, product};
use frit_plan::{Plan, sizes};
use serde::Serialize;

/// A cache slot, and what one token of one sequence takes in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvEntry {
    /// Name of the slot.
    pub name: String,
    /// Bytes of keys.
    pub k: u64,
    /// Bytes of values.
    pub v: u64,
}

/// The slots of a plan in their order. A slot that several layers read is one entry.
pub fn kv_table(plan: &Plan) -> Vec<KvEntry> {
    let one = |name: &str| u64::from(name == sizes::BATCH || name == sizes::CAPACITY);
    let at: Vec<u64> = plan.sizes.iter().map(|s| one(&s.name)).collect();
    let bytes = |shape: &[Dim]| if shape.is_empty() { 0 } else { 4 * plan.eval(&product(shape), &at).unwrap_or(0) };
    let entry =
        |s: &frit_plan::KvSlotDecl| KvEntry { name: s.name.clone(), k: bytes(&s.k_shape), v: bytes(&s.v_shape) };
    plan.kv_slots.iter().map(entry).collect()
}
