//! Reads the weights of a model as f64 arrays. Block-quantised storage is not read here.

use super::{Array, Env, RefError};
use crate::graph::{WeightData, WeightId};
use crate::model::Model;
use frit_kernels::dtype::Storage;
use frit_plan::RopePart;

/// The weight of that id, its sizes taken from `env`.
///
/// # Errors
/// A weight that does not exist, cannot be read, or is block-quantised.
pub fn weight_array(model: &Model, id: WeightId, sizes: &dyn Fn(&str) -> Option<i64>) -> Result<Array, String> {
    let info = model.tables.weight_info(id).ok_or_else(|| format!("weight {} does not exist", id.0))?;
    let none = |_: WeightId| Err(String::new());
    let mut env = Env::new(&none);
    for s in info.shape.iter().flat_map(|d| d.symbols()) {
        if let Some(v) = sizes(&s.to_string()) {
            env.sizes.insert(s.to_string(), v);
        }
    }
    let shape = env.shape(&info.shape).map_err(|e: RefError| e.to_string())?;
    let data: Vec<f64> = match &info.data {
        WeightData::Inline(v) => v.iter().map(|v| f64::from(*v)).collect(),
        WeightData::Rope { inv_freq, scale, part } => {
            let rows = shape.first().copied().unwrap_or(0);
            let angle = |i: usize| {
                let f = inv_freq.get(i % inv_freq.len().max(1)).copied().unwrap_or(0.0);
                (i / inv_freq.len().max(1)) as f64 * f64::from(f)
            };
            let wave = |a: f64| if *part == RopePart::Cos { a.cos() } else { a.sin() };
            (0..rows * inv_freq.len()).map(|i| f64::from((f64::from(*scale) * wave(angle(i))) as f32)).collect()
        }
        WeightData::Tensor { name, transpose } => {
            let t = model.source.read(name).map_err(|e| e.to_string())?;
            let stored = elements(t.storage, &t.bytes)?;
            match (transpose, t.shape.as_slice()) {
                (false, _) => stored,
                (true, [k, n]) => {
                    let (k, n) = (*k as usize, *n as usize);
                    (0..k * n).map(|i| stored.get(i % k * n + i / k).copied().unwrap_or(0.0)).collect()
                }
                (true, s) => return Err(format!("`{name}` of shape {s:?} cannot be transposed")),
            }
        }
    };
    Array::new(shape, data).map_err(|e| e.to_string())
}

fn elements(storage: Storage, bytes: &[u8]) -> Result<Vec<f64>, String> {
    let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    Ok(match storage {
        Storage::F32 => words().map(|b| f64::from(f32::from_le_bytes(b))).collect(),
        Storage::I32 | Storage::Bool => words().map(|b| f64::from(i32::from_le_bytes(b))).collect(),
        Storage::F16 => halves().map(|h| half::f16::from_bits(h).to_f64()).collect(),
        Storage::Bf16 => halves().map(|h| half::bf16::from_bits(h).to_f64()).collect(),
        other => return Err(format!("a {other} tensor is not read by the reference")),
    })
}
