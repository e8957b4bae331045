//! Weights in the device layout, still on the host: what a matrix's buffer and the side buffer hold.

use super::Extent;
use super::layout::Layout;
use super::weights::assemble;
use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_plan::{Placement, Plan, TensorData, TensorSource, WeightDecl, repack};

/// The bytes of a matrix's own buffer, whole words.
///
/// # Errors
/// A stored tensor that cannot be read or does not match the declaration.
pub(crate) fn own(plan: &Plan, w: &WeightDecl, source: &dyn TensorSource, extent: &Extent) -> Result<Vec<u8>> {
    let a = assemble(w, source, &|d: &Dim| Ok(plan.eval(d, &extent.0)?))?;
    if let [_] = a.storage.planes() {
        let mut raw = a.bytes;
        raw.resize(raw.len().next_multiple_of(4), 0);
        return Ok(raw);
    }
    let words = repack(a.storage, &a.bytes);
    drop(a.bytes);
    Ok(bytemuck::cast_slice(&words).to_vec())
}

/// The side constants from element `from` on.
///
/// # Errors
/// As [`own`], and blocks that cannot lie among floats.
pub(crate) fn side(
    plan: &Plan,
    layout: &Layout,
    from: u64,
    source: &dyn TensorSource,
    extent: &Extent,
) -> Result<Vec<f32>> {
    let mut all = vec![0f32; (layout.side_elems - from) as usize];
    for (w, at) in plan.weights.iter().zip(&layout.side) {
        if w.placement != Placement::Side || at.offset < from {
            continue;
        }
        let a = assemble(w, source, &|d: &Dim| Ok(plan.eval(d, &extent.0)?))?;
        let v = a.to_f32().ok_or_else(|| Error::Weight {
            weight: w.name.clone(),
            cause: format!("blocks of {} cannot lie among the side constants", a.storage),
        })?;
        let lo = (at.offset - from) as usize;
        match all.get_mut(lo..lo + v.len()) {
            Some(to) => to.copy_from_slice(&v),
            None => return Err(Error::Plan(format!("weight `{}` lies outside the side buffer", w.name))),
        }
    }
    Ok(all)
}

/// What a resize reads from: it makes rotary tables and needs no tensor.
pub(crate) struct NoTensors;
impl TensorSource for NoTensors {
    fn read(&self, tensor: &str) -> std::result::Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("tensor `{tensor}` is not kept in memory").into())
    }
}
