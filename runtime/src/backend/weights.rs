//! Weights as backends take them: stored tensors cut, transposed, converted and joined to what a [`WeightDecl`] says.
//!
//! In goes a declaration and a source of stored tensors; out come the elements in the block layout of model files. Where
//! they are put, and in which device layout, is each backend's business.

use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_plan::{Part, RopePart, TensorData, TensorSource, WeightDecl, WeightSource};
use half::{bf16, f16};

/// A weight put together from its source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assembled {
    /// The declared storage type.
    pub storage: Storage,
    /// Extents.
    pub shape: Vec<u64>,
    /// Elements in the block layout of model files, row-major.
    pub bytes: Vec<u8>,
}

impl Assembled {
    /// The elements as floats; `None` for quantised blocks.
    #[cfg(any(test, feature = "cuda", feature = "wgpu", feature = "verify"))]
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        decode(self.storage, &self.bytes)
    }
}

/// Elements of a declared weight under `eval`.
///
/// # Errors
/// A shape without a value, or one that overflows.
pub(crate) fn elements(decl: &WeightDecl, eval: &dyn Fn(&Dim) -> Result<u64>) -> Result<u64> {
    Ok(extents(decl, eval)?.1)
}

/// Reads and joins what `decl` is made of. `eval` gives the value of a symbolic extent.
///
/// # Errors
/// [`Error::Weight`] for a stored tensor that cannot be read or does not match the declaration.
pub(crate) fn assemble(
    decl: &WeightDecl,
    source: &dyn TensorSource,
    eval: &dyn Fn(&Dim) -> Result<u64>,
) -> Result<Assembled> {
    let fail = |cause: String| Error::Weight { weight: decl.name.clone(), cause };
    let (shape, elems) = extents(decl, eval)?;
    let want = decl
        .storage
        .size_bytes(elems)
        .ok_or_else(|| fail(format!("{elems} elements do not fill whole blocks of {}", decl.storage)))?;
    let bytes = match &decl.source {
        WeightSource::Parts(parts) => {
            let mut out = Vec::new();
            for p in parts {
                let piece = part(decl, p, source).map_err(fail)?;
                if out.is_empty() {
                    out = piece;
                    out.reserve_exact((want as usize).saturating_sub(out.len()));
                } else {
                    out.extend_from_slice(&piece);
                }
            }
            out
        }
        WeightSource::Inline(v) => encode(decl.storage, v).map_err(fail)?,
        WeightSource::Rope { inv_freq, scale, part } => {
            let rows = shape.first().copied().unwrap_or(0);
            encode(decl.storage, &rope(rows, inv_freq, *scale, *part)).map_err(fail)?
        }
    };
    if bytes.len() as u64 != want {
        return Err(fail(format!(
            "{shape:?} of {} takes {want} bytes, its source holds {}",
            decl.storage,
            bytes.len()
        )));
    }
    Ok(Assembled { storage: decl.storage, shape, bytes })
}

fn extents(decl: &WeightDecl, eval: &dyn Fn(&Dim) -> Result<u64>) -> Result<(Vec<u64>, u64)> {
    let shape = decl.shape.iter().map(eval).collect::<Result<Vec<u64>>>()?;
    let elems = shape.iter().try_fold(1u64, |p, d| p.checked_mul(*d)).ok_or_else(|| Error::Weight {
        weight: decl.name.clone(),
        cause: format!("{shape:?} has more than 2^64 elements"),
    })?;
    Ok((shape, elems))
}

/// `scale·cos(p·f)` or `scale·sin(p·f)` for the positions `0..rows`, in F64, rounded once.
fn rope(rows: u64, inv_freq: &[f32], scale: f32, part: RopePart) -> Vec<f32> {
    (0..rows)
        .flat_map(|p| {
            inv_freq.iter().map(move |f| {
                let angle = p as f64 * f64::from(*f);
                let v = match part {
                    RopePart::Cos => angle.cos(),
                    RopePart::Sin => angle.sin(),
                };
                (f64::from(scale) * v) as f32
            })
        })
        .collect()
}

fn part(decl: &WeightDecl, part: &Part, source: &dyn TensorSource) -> std::result::Result<Vec<u8>, String> {
    let t = source.read(&part.tensor).map_err(|e| e.to_string())?;
    let elems = t.shape.iter().try_fold(1u64, |p, d| p.checked_mul(*d));
    let want = elems.and_then(|n| t.storage.size_bytes(n));
    if want != Some(t.bytes.len() as u64) {
        return Err(format!(
            "tensor `{}`: {:?} of {} does not match its {} bytes",
            part.tensor,
            t.shape,
            t.storage,
            t.bytes.len()
        ));
    }
    let t = if part.transpose { transposed(&part.tensor, t)? } else { t };
    let t = match part.rows {
        Some((first, last)) => rows(&part.tensor, t, first, last)?,
        None => t,
    };
    if t.storage == decl.storage {
        return Ok(t.bytes);
    }
    let plain = decode(t.storage, &t.bytes).filter(|_| !decl.storage.is_quantised());
    match plain {
        Some(v) => encode(decl.storage, &v),
        None => Err(format!("tensor `{}` is stored as {}, the plan wants {}", part.tensor, t.storage, decl.storage)),
    }
}

fn transposed(name: &str, t: TensorData) -> std::result::Result<TensorData, String> {
    let [k, n] = t.shape[..] else {
        return Err(format!("tensor `{name}`: {:?} has no transpose, it is no matrix", t.shape));
    };
    if t.storage.is_quantised() {
        return Err(format!("tensor `{name}`: blocks of {} cannot be transposed", t.storage));
    }
    let (k, n, e) = (k as usize, n as usize, t.storage.block_bytes() as usize);
    let bytes = match e {
        2 => transpose_elems::<2>(&t.bytes, k, n),
        _ => transpose_elems::<4>(&t.bytes, k, n),
    };
    Ok(TensorData { storage: t.storage, shape: vec![n as u64, k as u64], bytes })
}

/// `[k, n]` to `[n, k]` in tiles, so that both sides stay in cache.
fn transpose_elems<const E: usize>(from: &[u8], k: usize, n: usize) -> Vec<u8> {
    const TILE: usize = 32;
    let mut out = vec![0u8; from.len()];
    for i0 in (0..k).step_by(TILE) {
        for j0 in (0..n).step_by(TILE) {
            for j in j0..n.min(j0 + TILE) {
                for i in i0..k.min(i0 + TILE) {
                    let (to, at) = ((j * k + i) * E, (i * n + j) * E);
                    out[to..to + E].copy_from_slice(&from[at..at + E]);
                }
            }
        }
    }
    out
}

fn rows(name: &str, t: TensorData, first: u64, last: u64) -> std::result::Result<TensorData, String> {
    let have = t.shape.first().copied().unwrap_or(0);
    if first > last || last > have {
        return Err(format!("tensor `{name}`: rows {first}..{last} of {have}"));
    }
    let inner: u64 = t.shape.iter().skip(1).product();
    let at = |row: u64| t.storage.size_bytes(row * inner).map(|b| b as usize);
    let (Some(lo), Some(hi)) = (at(first), at(last)) else {
        return Err(format!("tensor `{name}`: rows {first}..{last} cut blocks of {}", t.storage));
    };
    let mut bytes = t.bytes;
    bytes.truncate(hi);
    bytes.drain(..lo);
    let shape = std::iter::once(last - first).chain(t.shape.iter().skip(1).copied()).collect();
    Ok(TensorData { storage: t.storage, shape, bytes })
}

fn decode(storage: Storage, bytes: &[u8]) -> Option<Vec<f32>> {
    let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match storage {
        Storage::F32 => Some(words().map(f32::from_le_bytes).collect()),
        Storage::F16 => Some(halves().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        Storage::Bf16 => Some(halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        Storage::I32 | Storage::Bool => Some(words().map(|b| i32::from_le_bytes(b) as f32).collect()),
        _ => None,
    }
}

fn encode(storage: Storage, v: &[f32]) -> std::result::Result<Vec<u8>, String> {
    match storage {
        Storage::F32 => Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Storage::F16 => Ok(v.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
        Storage::Bf16 => Ok(v.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()),
        Storage::I32 | Storage::Bool => match v.iter().find(|x| (**x as i32) as f32 != **x) {
            Some(x) => Err(format!("{x} is no {storage}")),
            None => Ok(v.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect()),
        },
        _ => Err(format!("floats cannot be stored as {storage}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frit_plan::Placement;
    use std::collections::HashMap;

    struct Tensors(HashMap<&'static str, TensorData>);
    impl TensorSource for Tensors {
        fn read(&self, tensor: &str) -> std::result::Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
            self.0.get(tensor).cloned().ok_or_else(|| format!("model.bin: no tensor `{tensor}`").into())
        }
    }

    fn f32s(shape: &[u64], v: &[f32]) -> TensorData {
        TensorData { storage: Storage::F32, shape: shape.to_vec(), bytes: encode(Storage::F32, v).unwrap() }
    }
    fn decl(storage: Storage, shape: &[u64], source: WeightSource) -> WeightDecl {
        let shape = shape.iter().map(|d| Dim::from(*d)).collect();
        WeightDecl { name: "w".into(), storage, shape, placement: Placement::Own, source }
    }
    fn p(tensor: &str, transpose: bool, rows: Option<(u64, u64)>) -> Part {
        Part { tensor: tensor.into(), transpose, rows }
    }
    fn make(d: &WeightDecl, tensors: &[(&'static str, TensorData)]) -> Result<Assembled> {
        let source = Tensors(tensors.iter().cloned().collect());
        assemble(d, &source, &|d| Ok(d.eval(&|_| Some(3))? as u64))
    }

    #[test]
    fn parts_join_along_rows_after_transpose_and_cut() {
        let a = f32s(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        let b = f32s(&[1, 2], &[8., 9.]);
        let d = decl(Storage::F32, &[3, 2], WeightSource::Parts(vec![p("a", true, Some((1, 3))), p("b", false, None)]));
        let got = make(&d, &[("a", a), ("b", b)]).unwrap();
        assert_eq!(got.to_f32().unwrap(), [1., 4., 2., 5., 8., 9.]);
        assert_eq!(got.shape, [3, 2]);
    }
    #[test]
    fn a_transpose_larger_than_a_tile_keeps_every_element() {
        let (k, n) = (70, 45);
        let v: Vec<f32> = (0..k * n).map(|i| i as f32).collect();
        let d = decl(Storage::F16, &[n, k], WeightSource::Parts(vec![p("a", true, None)]));
        let half: Vec<f32> = v.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        let t = TensorData { storage: Storage::F16, shape: vec![k, n], bytes: encode(Storage::F16, &v).unwrap() };
        let got = make(&d, &[("a", t)]).unwrap().to_f32().unwrap();
        for i in 0..k as usize {
            for j in 0..n as usize {
                assert_eq!(got[j * k as usize + i], half[i * n as usize + j]);
            }
        }
    }
    #[test]
    fn rows_of_quantised_tensors_are_whole_blocks() {
        let bytes: Vec<u8> = (0..36).collect();
        let t = TensorData { storage: Storage::Q4_0, shape: vec![2, 32], bytes: bytes.clone() };
        let d = decl(Storage::Q4_0, &[1, 32], WeightSource::Parts(vec![p("q", false, Some((1, 2)))]));
        assert_eq!(make(&d, &[("q", t.clone())]).unwrap().bytes, bytes[18..]);
        let d = decl(Storage::Q4_0, &[32, 2], WeightSource::Parts(vec![p("q", true, None)]));
        assert!(make(&d, &[("q", t)]).unwrap_err().to_string().contains("cannot be transposed"));
    }
    #[test]
    fn stored_halves_convert_to_floats() {
        let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let t = TensorData { storage: Storage::Bf16, shape: vec![2], bytes };
        let d = decl(Storage::F32, &[2], WeightSource::Parts(vec![p("g", false, None)]));
        assert_eq!(make(&d, &[("g", t)]).unwrap().to_f32().unwrap(), [1.5, -2.0]);
    }
    #[test]
    fn rotary_tables_follow_the_capacity() {
        let source = WeightSource::Rope { inv_freq: vec![1.0, 0.5], scale: 2.0, part: RopePart::Sin };
        let mut d = decl(Storage::F32, &[], source);
        d.shape = vec![Dim::size("T"), Dim::constant(2)];
        let got = make(&d, &[]).unwrap().to_f32().unwrap();
        let want: Vec<f32> = (0..3)
            .flat_map(|p| [(2.0 * f64::from(p).sin()) as f32, (2.0 * (f64::from(p) * 0.5).sin()) as f32])
            .collect();
        assert_eq!(got, want);
    }
    #[test]
    fn mismatches_name_the_weight_and_the_tensor() {
        let d = decl(Storage::F32, &[2], WeightSource::Parts(vec![p("gone", false, None)]));
        let e = make(&d, &[]).unwrap_err().to_string();
        assert!(e.contains("`w`") && e.contains("`gone`"), "{e}");
        let d = decl(Storage::F32, &[2], WeightSource::Inline(vec![1.0]));
        assert!(make(&d, &[]).unwrap_err().to_string().contains("8 bytes"));
        let q = TensorData { storage: Storage::Q8_0, shape: vec![32], bytes: vec![0; 34] };
        let d = decl(Storage::F32, &[32], WeightSource::Parts(vec![p("q", false, None)]));
        assert!(make(&d, &[("q", q)]).unwrap_err().to_string().contains("stored as q8_0"));
    }
}
