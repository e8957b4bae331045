//! Constant operands of kernels as the plan states them: where their bytes come from, and how they are bound.

use crate::error::{Error, Result};
use crate::fusion::PackedWeight;
use crate::graph::{Tables, WeightData};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_plan::{Part, Placement, WeightDecl, WeightSource};
use std::collections::HashMap;

/// The place of a constant operand among the plan's weights, where it is added on first sight.
pub(super) fn weight(
    weights: &mut Vec<WeightDecl>,
    ids: &mut HashMap<PackedWeight, u32>,
    tables: &Tables,
    w: &PackedWeight,
) -> Result<u32> {
    if let Some(id) = ids.get(w) {
        return Ok(*id);
    }
    let missing = || Error::Internal { pass: "lower", fault: "a weight that does not exist".into() };
    let infos = w.parts.iter().map(|p| tables.weight_info(*p)).collect::<Option<Vec<_>>>().ok_or_else(missing)?;
    let first = infos.first().ok_or_else(missing)?;
    let mut shape = first.shape.clone();
    if let Some(rows) = shape.first_mut() {
        *rows = match w.rows {
            Some((lo, hi)) => Dim::from(hi - lo),
            None => infos.iter().fold(Dim::zero(), |s, i| s + i.shape.first().cloned().unwrap_or_else(Dim::one)),
        };
    }
    let part = |i: &&crate::graph::WeightInfo| match &i.data {
        WeightData::Tensor { name, transpose } => {
            Some(Part { tensor: name.clone(), transpose: *transpose, rows: w.rows })
        }
        _ => None,
    };
    let source = match &first.data {
        WeightData::Tensor { .. } => {
            WeightSource::Parts(infos.iter().map(part).collect::<Option<Vec<_>>>().ok_or_else(missing)?)
        }
        WeightData::Rope { inv_freq, scale, part } => {
            WeightSource::Rope { inv_freq: inv_freq.clone(), scale: *scale, part: *part }
        }
        WeightData::Inline(v) => WeightSource::Inline(v.clone()),
    };
    let names: Vec<&str> = infos.iter().filter_map(|i| i.names.first().map(String::as_str)).collect();
    let id = weights.len() as u32;
    let stem = names.join(" + ");
    let taken = |n: &str| weights.iter().any(|w| w.name == n);
    let mut name = stem.clone();
    let mut count = 1;
    while taken(&name) {
        count += 1;
        name = format!("{stem} ({count})");
    }
    weights.push(WeightDecl {
        name,
        storage: if w.side { Storage::F32 } else { first.storage },
        shape,
        placement: if w.side { Placement::Side } else { Placement::Own },
        source,
    });
    ids.insert(w.clone(), id);
    Ok(id)
}
