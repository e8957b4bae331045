//! Weights of a plan: which stored tensors they are made of and in which form kernels read them.

use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Storage, plane_bytes};
use serde::{Deserialize, Serialize};

/// Where a weight is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// A buffer of its own.
    Own,
    /// The model's side buffer of small F32 constants.
    Side,
}

/// A constant tensor as kernels read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightDecl {
    /// Readable name.
    pub name: String,
    /// How elements are stored.
    pub storage: Storage,
    /// Extents; only a rotary table has a symbolic one (the capacity).
    pub shape: Vec<Dim>,
    /// Where it is bound.
    pub placement: Placement,
    /// What it is made of.
    pub source: WeightSource,
}

/// What a weight is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightSource {
    /// Stored tensors, one behind the other along the outermost dimension.
    Parts(Vec<Part>),
    /// A rotary table `[capacity, inv_freq.len()]`: `scale·cos(p·f)` or `scale·sin(p·f)` in F64, rounded once.
    Rope {
        /// Angular frequency of each pair, in radians per position.
        inv_freq: Vec<f32>,
        /// Factor on the table.
        scale: f32,
        /// Cosine or sine.
        part: RopePart,
    },
    /// Values made by the compiler.
    Inline(Vec<f32>),
}

/// Half of a rotary table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopePart {
    /// Cosines.
    Cos,
    /// Sines.
    Sin,
}

/// A stored tensor, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Name of the stored tensor.
    pub tensor: String,
    /// The stored tensor is `[K, N]` and is read as `[N, K]`; plain storage types only.
    pub transpose: bool,
    /// Rows `[first, last)` of the (transposed) tensor; `None`: all.
    pub rows: Option<(u64, u64)>,
}

/// A tensor as stored: bytes in the model file's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorData {
    /// How elements are stored.
    pub storage: Storage,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Where stored tensors are read from: model files or an artifact.
pub trait TensorSource: Send + Sync {
    /// The tensor of that name, read now.
    ///
    /// # Errors
    /// A message that names file and tensor.
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>>;
}

/// Brings blocks as model files store them into the device layout: planes of 32-bit words (see
/// [`frit_kernels::dtype::Plane`]). `bytes` must hold whole blocks; what is left over is dropped.
pub fn repack(storage: Storage, bytes: &[u8]) -> Vec<u32> {
    let block = storage.block_bytes() as usize;
    let blocks = bytes.len() / block;
    let mut out = vec![0u8; storage.device_words(blocks as u64) as usize * 4];
    for (i, (lo, hi)) in plane_bytes(storage).iter().enumerate() {
        let start = storage.plane_word(i, blocks as u64) as usize * 4;
        let plane = out.get_mut(start..).unwrap_or_default();
        for (to, from) in plane.chunks_exact_mut(hi - lo).zip(bytes.chunks_exact(block)) {
            to.copy_from_slice(from.get(*lo..*hi).unwrap_or_default());
        }
    }
    out.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repacked_planes_hold_the_blocks_in_order() {
        let bytes: Vec<u8> = (0..18u8).chain(100..118).collect();
        let w = repack(Storage::Q4_0, &bytes);
        let b: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(b[..16], (2..18).collect::<Vec<u8>>()[..]);
        assert_eq!(b[16..32], (102..118).collect::<Vec<u8>>()[..]);
        assert_eq!(b[32..36], [0, 1, 100, 101]);
        assert_eq!(w.len() as u64, Storage::Q4_0.device_words(2));
    }
    #[test]
    fn a_plane_longer_than_its_blocks_is_not_overrun() {
        let bytes: Vec<u8> = (0..22u8).collect();
        let b: Vec<u8> = repack(Storage::Q5_0, &bytes).iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(b[16..20], [2, 3, 4, 5]);
        assert_eq!(b[32..34], [0, 1]);
    }
}
