//! Weights at binding time: stored tensors to the form that kernels compute with.

use super::dequant;
use super::memory::Stored;
use crate::backend::weights::{assemble, elements};
use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_plan::{Placement, Plan, TensorSource, WeightDecl};

/// Bytes of a weight as the model file stores it.
pub fn size_bytes(plan: &Plan, w: &WeightDecl, values: &[u64]) -> Result<u64> {
    let elems = elements(w, &|d: &Dim| Ok(plan.eval(d, values)?))?;
    let cause = || format!("{elems} elements fill no whole blocks of {}", w.storage);
    w.storage.size_bytes(elems).ok_or_else(|| Error::Weight { weight: w.name.clone(), cause: cause() })
}

/// Whether a weight's size follows the session's.
pub fn follows_sizes(w: &WeightDecl) -> bool {
    w.shape.iter().any(|d| d.as_const().is_none())
}

/// Reads or computes a weight.
pub fn load(plan: &Plan, w: &WeightDecl, source: &dyn TensorSource, values: &[u64]) -> Result<Stored> {
    let a = assemble(w, source, &|d: &Dim| Ok(plan.eval(d, values)?))?;
    let pair = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
    let quad = |c: &[u8]| i32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    Ok(match a.storage {
        s if s == Storage::F32 || w.placement == Placement::Side => Stored::F32(dequant::to_f32(s, &a.bytes)),
        Storage::F16 | Storage::Bf16 => Stored::Half(a.storage, a.bytes.chunks_exact(2).map(pair).collect()),
        Storage::I32 | Storage::Bool => Stored::I32(a.bytes.chunks_exact(4).map(quad).collect()),
        s => Stored::Blocks(s, a.bytes),
    })
}
