//! The constant tensors of a model: where their bytes are, and how weights are made of them.

use super::elem::{Elem, Values, code_name, decode};
use super::external_data::{ExternalFiles, Range, short};
use super::integers::{Integers, Packed};
use super::proto::TensorProto;
use crate::ingest::Limits;
use bytes::Bytes;
use frit_kernels::dtype::Storage;
use frit_plan::{TensorData, TensorSource};
use half::f16;
use indexmap::IndexMap;
use std::sync::{Arc, Mutex};

/// Mask constants and infinities are held to this magnitude, so that sums of two of them stay finite.
pub const LARGEST_CONSTANT: f32 = 1e30;

/// Index of a tensor in its [`Stock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(u32);

/// Where a tensor's bytes are.
#[derive(Clone, Debug)]
enum Place {
    Bytes(Bytes),
    File(Range),
    Values(Arc<Values>),
    Quantised(Dequantize),
}

/// What tensors of equal content have in common: element type, extents, and a hash of the bytes.
pub type Content = (Elem, Vec<u64>, blake3::Hash);

/// A constant tensor.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name in the model.
    pub name: String,
    /// Its element type.
    pub elem: Elem,
    /// Extents, outermost first.
    pub dims: Vec<u64>,
    place: Place,
}

impl Stored {
    /// Number of elements.
    pub fn elems(&self) -> u64 {
        self.dims.iter().product()
    }
    fn bytes(&self) -> Result<Bytes, String> {
        match &self.place {
            Place::Bytes(b) => Ok(b.clone()),
            Place::File(r) => {
                let len = self.elem.size_bytes(self.elems()).ok_or("too many elements")?;
                r.file.read(r.offset, len).map(Bytes::from).map_err(|e| e.to_string())
            }
            Place::Values(_) | Place::Quantised(_) => Err("its elements are held decoded".into()),
        }
    }
    /// Whether reading it costs neither file access nor arithmetic.
    pub fn in_memory(&self) -> bool {
        matches!(self.place, Place::Bytes(_) | Place::Values(_))
    }
}

/// How a stored weight is made of constants.
#[derive(Clone, Debug, PartialEq)]
pub enum Recipe {
    /// The tensor itself.
    Plain(TensorId),
    /// A quantised tensor as blocks of 32 elements along its rows.
    Blocks(TensorId),
    /// The transpose of a quantised matrix of this shape, as blocks.
    TransposedBlocks(TensorId, [u64; 2]),
    /// Integers given here.
    Ints(Vec<i32>),
    /// Floats given here.
    Floats(Vec<f32>),
}

/// A float tensor kept as integers: `(q − zero)·scale`. The element of scale and zero that belongs to an element is
/// found by dividing its coordinate along one axis by `block`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dequantize {
    /// The integers, viewed as `view`.
    pub q: TensorId,
    /// Scales; `None`: 1.
    pub scale: Option<TensorId>,
    /// Zero points; `None`: `default_zero`.
    pub zero: Option<TensorId>,
    /// The zero point where none is stored.
    pub default_zero: f32,
    /// `[outer, extent, inner]`: the axis and what is around it.
    pub view: [u64; 3],
    /// Elements along the axis that share a scale.
    pub block: u64,
    /// How scale and zero lie.
    pub layout: Layout,
    /// The integers (and zero points, where they are integers) lie in bytes, several of this many bits in each, the
    /// lowest first; each of `outer` rows begins on a byte.
    pub packed_bits: Option<u32>,
}

impl Dequantize {
    /// Where the scale and the zero point of element `flat` are.
    pub fn scale_at(&self, flat: u64) -> usize {
        let [_, extent, inner] = self.view.map(|n| n.max(1));
        let block = self.block.max(1);
        let (o, e, i) = (flat / (extent * inner), flat / inner % extent, flat % inner);
        let at = match self.layout {
            Layout::Single => 0,
            Layout::Axis => e / block,
            Layout::Blocks => (o * extent.div_ceil(block) + e / block) * inner + i,
        };
        usize::try_from(at).unwrap_or(usize::MAX)
    }
    /// Integers of `view`, taken out of their bytes where several share one.
    fn unpacked(&self, v: &[i64], view: [u64; 3]) -> Vec<i64> {
        match self.packed_bits {
            Some(bits) => unpacked(v, bits, (view[1] * view[2]) as usize, view[0] as usize),
            None => v.to_vec(),
        }
    }
}

/// How scales and zero points lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One for all elements.
    Single,
    /// `[⌈extent/block⌉]`.
    Axis,
    /// `[outer, ⌈extent/block⌉, inner]`.
    Blocks,
}

/// A weight that kernels can ask for by name.
#[derive(Clone, Debug, PartialEq)]
struct Weight {
    recipe: Recipe,
    storage: Storage,
    shape: Vec<u64>,
}

/// Every constant tensor of a model, and the weights made of them.
#[derive(Debug, Default)]
pub struct Stock {
    tensors: Vec<Stored>,
    weights: Mutex<IndexMap<String, Weight>>,
}

impl Stock {
    /// The content of a tensor whose bytes can be read.
    pub fn content(&self, id: TensorId) -> Option<Content> {
        let tensor = self.get(id)?;
        Some((tensor.elem, tensor.dims.clone(), blake3::hash(&tensor.bytes().ok()?)))
    }
    /// Takes a tensor in after checking that it is whole.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence about it.
    pub fn add(
        &mut self,
        proto: &TensorProto,
        name: &str,
        files: &mut ExternalFiles,
        limits: &Limits,
    ) -> Result<TensorId, String> {
        let elem = Elem::from_code(proto.data_type)
            .ok_or_else(|| format!("holds elements of {}, which are not read", code_name(proto.data_type)))?;
        if proto.dims.len() as u64 > limits.rank {
            return Err(format!("has {} extents, at most {} are read", proto.dims.len(), limits.rank));
        }
        let dims: Vec<u64> = proto
            .dims
            .iter()
            .map(|d| u64::try_from(*d).ok().filter(|d| *d <= limits.dim))
            .collect::<Option<_>>()
            .ok_or_else(|| format!("has the shape {:?}", proto.dims))?;
        let elems = dims.iter().try_fold(1u64, |p, d| p.checked_mul(*d));
        let size = elems.and_then(|n| elem.size_bytes(n));
        let (Some(elems), Some(size)) = (elems, size) else {
            return Err(format!("has the shape {dims:?}, more elements than 64 bits count"));
        };
        let place = if proto.data_location == 1 {
            Place::File(files.locate(&proto.external_data, size)?)
        } else if let Some(raw) = &proto.raw_data {
            if raw.len() as u64 != size {
                return Err(format!("has {} bytes, {elem}{dims:?} asks for {size}", raw.len()));
            }
            Place::Bytes(raw.clone())
        } else if matches!(elem, Elem::Int8 | Elem::Uint8 | Elem::Int4 | Elem::Uint4) {
            let bytes: Vec<u8> = proto.int32_data.iter().map(|x| *x as u8).collect();
            if bytes.len() as u64 != size {
                return Err(format!("has {} elements, its shape {dims:?} asks for {elems}", bytes.len()));
            }
            Place::Bytes(Bytes::from(bytes))
        } else {
            let (values, found) = typed(proto, elem);
            if found != elems {
                return Err(format!("has {found} elements, its shape {dims:?} asks for {elems}"));
            }
            Place::Values(Arc::new(values))
        };
        Ok(self.push(Stored { name: name.to_owned(), elem, dims, place }))
    }
    fn push(&mut self, t: Stored) -> TensorId {
        self.tensors.push(t);
        TensorId(self.tensors.len() as u32 - 1)
    }
    /// A tensor.
    pub fn get(&self, id: TensorId) -> Option<&Stored> {
        self.tensors.get(id.0 as usize)
    }
    /// Registers a weight and gives the name it goes by: `name`, or a variation of it when that names another one.
    pub fn weight(&self, name: &str, recipe: Recipe, storage: Storage, shape: &[u64]) -> String {
        let w = Weight { recipe, storage, shape: shape.to_vec() };
        let mut all = self.weights.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut candidate = if name.is_empty() { "constant".to_owned() } else { name.to_owned() };
        let base = candidate.clone();
        let mut n = 2;
        loop {
            match all.get(&candidate) {
                Some(known) if *known == w => return candidate,
                Some(_) => {
                    candidate = format!("{base}#{n}");
                    n += 1;
                }
                None => {
                    all.insert(candidate.clone(), w);
                    return candidate;
                }
            }
        }
    }

    fn read_weight(&self, w: &Weight) -> Result<Vec<u8>, String> {
        let gone = || "a constant that does not exist".to_owned();
        match &w.recipe {
            Recipe::Ints(v) => Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Recipe::Floats(v) => Ok(v.iter().flat_map(|x| bounded(*x).to_le_bytes()).collect()),
            Recipe::Blocks(id) => self.blocks(*id, &w.shape, false),
            Recipe::TransposedBlocks(id, shape) => self.blocks(*id, shape, true),
            Recipe::Plain(id) => {
                let t = self.get(*id).ok_or_else(gone)?;
                let raw = match (t.elem, w.storage) {
                    (Elem::Float, Storage::F32) | (Elem::Float16, Storage::F16) | (Elem::Bfloat16, Storage::Bf16) => {
                        t.bytes().ok()
                    }
                    _ => None,
                };
                match raw {
                    Some(raw) => Ok(finite_bytes(w.storage, &raw)),
                    None => {
                        widened(&*self.values(*id)?, w.storage).map_err(|e| format!("tensor `{}`: {e}", short(&t.name)))
                    }
                }
            }
        }
    }

    fn dequantized(&self, d: &Dequantize) -> Result<Vec<f32>, String> {
        let (q, zero, scale) = (self.integers(d)?, self.zeros(d)?, self.scales(d)?);
        let count = d.view.iter().product::<u64>();
        let mut out = Vec::new();
        for flat in 0..count {
            let at = d.scale_at(flat);
            let part = |v: &Option<Vec<f32>>, default: f32| match v {
                Some(v) => v.get(at).copied().ok_or("too few scales or zero points"),
                None => Ok(default),
            };
            let v = q.at(flat).ok_or("too few quantised values")? as f32;
            out.push((v - part(&zero, d.default_zero)?) * part(&scale, 1.0)?);
        }
        Ok(out)
    }
    /// How a tensor is quantised, if it is.
    pub fn dequantize(&self, id: TensorId) -> Option<&Dequantize> {
        match &self.get(id)?.place {
            Place::Quantised(d) => Some(d),
            _ => None,
        }
    }
    /// The integers of a quantised tensor, one an element.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub fn integers(&self, d: &Dequantize) -> Result<Integers, String> {
        let t = self.get(d.q).ok_or("a constant that does not exist")?;
        let packed = d.packed_bits.map(|bits| Packed {
            bits,
            per_row: d.view[1].saturating_mul(d.view[2]),
            row_bytes: t.elems() / d.view[0].max(1),
        });
        let bytes = match t.place {
            Place::Bytes(_) | Place::File(_) => Integers::of_bytes(t.bytes()?, t.elem, packed),
            Place::Values(_) | Place::Quantised(_) => None,
        };
        match bytes {
            Some(bytes) => Ok(bytes),
            None if t.elem.is_float() => Err("quantised values that are floats".into()),
            None => Ok(Integers::of_values(self.values(d.q)?, packed)),
        }
    }
    /// Zero points, if they are stored.
    ///
    /// # Errors
    /// As [`Stock::integers`].
    pub fn zeros(&self, d: &Dequantize) -> Result<Option<Vec<f32>>, String> {
        let [outer, extent, inner] = d.view;
        let view = [outer, extent.div_ceil(d.block.max(1)), inner];
        Ok(match d.zero.map(|z| self.values(z)).transpose()?.as_deref() {
            Some(Values::Floats(v)) => Some(v.clone()),
            Some(Values::Ints(v)) => Some(d.unpacked(v, view).into_iter().map(|z| z as f32).collect()),
            None => None,
        })
    }
    /// Scales, if they are stored.
    ///
    /// # Errors
    /// As [`Stock::integers`], and scales that are integers.
    pub fn scales(&self, d: &Dequantize) -> Result<Option<Vec<f32>>, String> {
        match d.scale.map(|s| self.values(s)).transpose()?.as_deref() {
            Some(Values::Floats(v)) => Ok(Some(v.clone())),
            Some(Values::Ints(_)) => Err("scales that are integers".into()),
            None => Ok(None),
        }
    }

    /// The elements of a tensor, read now.
    ///
    /// # Errors
    /// A file that cannot be read any more, quantised values that do not fit their scales.
    pub fn values(&self, id: TensorId) -> Result<Arc<Values>, String> {
        let t = self.get(id).ok_or("a constant that does not exist")?;
        let elems = usize::try_from(t.elems()).map_err(|_| "too many elements".to_owned())?;
        match &t.place {
            Place::Values(v) => Ok(Arc::clone(v)),
            Place::Quantised(d) => Ok(Arc::new(Values::Floats(self.dequantized(d)?))),
            Place::Bytes(_) | Place::File(_) => Ok(Arc::new(decode(t.elem, &t.bytes()?, elems))),
        }
    }
    /// A float tensor that is kept as integers.
    pub fn quantised(&mut self, name: &str, dims: &[u64], d: Dequantize) -> TensorId {
        if let Some(i) =
            self.tensors.iter().position(|t| t.dims == dims && matches!(&t.place, Place::Quantised(k) if *k == d))
        {
            return TensorId(i as u32);
        }
        self.push(Stored { name: name.to_owned(), elem: Elem::Float, dims: dims.to_vec(), place: Place::Quantised(d) })
    }
}

/// `bits`-wide values from bytes, `per_row` from each of `rows` rows, least significant first; rows start on bytes.
fn unpacked(bytes: &[i64], bits: u32, per_row: usize, rows: usize) -> Vec<i64> {
    let row_bytes = bytes.len() / rows.max(1);
    let per_byte = (8 / bits.max(1)) as usize;
    let mask = (1i64 << bits) - 1;
    bytes
        .chunks(row_bytes.max(1))
        .flat_map(|row| {
            let all = row.iter().flat_map(|b| (0..per_byte).map(move |k| (b >> (k as u32 * bits)) & mask));
            all.take(per_row).collect::<Vec<_>>()
        })
        .collect()
}

/// The value, held to the magnitude of the largest constant.
pub fn bounded(x: f32) -> f32 {
    x.clamp(-LARGEST_CONSTANT, LARGEST_CONSTANT)
}

fn words<const N: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    raw.chunks_exact(N).filter_map(|c| c.try_into().ok())
}

fn finite_bytes(storage: Storage, raw: &[u8]) -> Vec<u8> {
    match storage {
        Storage::F32 => words(raw).flat_map(|w| bounded(f32::from_le_bytes(w)).to_le_bytes()).collect(),
        Storage::F16 => words(raw)
            .flat_map(|w| {
                let h = f16::from_le_bytes(w);
                let held = if h.is_sign_negative() { f16::MIN } else { f16::MAX };
                if h.is_infinite() { held } else { h }.to_le_bytes()
            })
            .collect(),
        _ => raw.to_vec(),
    }
}

fn widened(v: &Values, storage: Storage) -> Result<Vec<u8>, String> {
    match (v, storage) {
        (Values::Floats(v), Storage::F32) => Ok(v.iter().flat_map(|x| bounded(*x).to_le_bytes()).collect()),
        (Values::Floats(v), Storage::F16) => Ok(v.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
        (Values::Floats(v), Storage::Bf16) => {
            Ok(v.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect())
        }
        (Values::Ints(v), Storage::I32 | Storage::Bool) => {
            let narrow =
                |x: &i64| narrowed(*x).map(i32::to_le_bytes).ok_or_else(|| format!("{x} does not fit 32 bits"));
            Ok(v.iter().map(narrow).collect::<Result<Vec<_>, _>>()?.concat())
        }
        _ => Err(format!("cannot be kept as {storage}")),
    }
}

/// A 64-bit integer as kernels hold it. The extreme values, which stand for "no bound", become the extreme ones of 32
/// bits; any other value that does not fit is `None`.
pub fn narrowed(x: i64) -> Option<i32> {
    match x {
        x if x >= i64::MAX - 1 => Some(i32::MAX),
        x if x <= i64::MIN + 1 => Some(i32::MIN),
        x => i32::try_from(x).ok(),
    }
}

/// Elements from the typed fields, and how many entries the field has.
fn typed(p: &TensorProto, elem: Elem) -> (Values, u64) {
    let small = |v: &[i32]| -> Vec<u8> { v.iter().flat_map(|x| (*x as u16).to_le_bytes()).collect() };
    match elem {
        Elem::Float => (Values::Floats(p.float_data.clone()), p.float_data.len() as u64),
        Elem::Double => (Values::Floats(p.double_data.iter().map(|x| *x as f32).collect()), p.double_data.len() as u64),
        Elem::Int64 => (Values::Ints(p.int64_data.clone()), p.int64_data.len() as u64),
        Elem::Uint32 | Elem::Uint64 => {
            let v = p.uint64_data.iter().map(|x| i64::try_from(*x).unwrap_or(i64::MAX)).collect();
            (Values::Ints(v), p.uint64_data.len() as u64)
        }
        Elem::Float16 | Elem::Bfloat16 => {
            (decode(elem, &small(&p.int32_data), p.int32_data.len()), p.int32_data.len() as u64)
        }
        Elem::Float8E4M3Fn | Elem::Float8E5M2 => {
            let bytes: Vec<u8> = p.int32_data.iter().map(|x| *x as u8).collect();
            let elems = p.dims.iter().map(|d| usize::try_from(*d).unwrap_or(0)).product();
            (decode(elem, &bytes, elems), bytes.len() as u64)
        }
        _ => (Values::Ints(p.int32_data.iter().map(|x| i64::from(*x)).collect()), p.int32_data.len() as u64),
    }
}

impl TensorSource for Stock {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        let found = {
            let all = self.weights.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            all.get(tensor).cloned()
        };
        let w = found.ok_or_else(|| format!("there is no tensor `{tensor}`"))?;
        let bytes = self.read_weight(&w)?;
        let elems = w.shape.iter().product();
        if w.storage.size_bytes(elems) != Some(bytes.len() as u64) {
            return Err(format!("tensor `{tensor}` has {} bytes, not those of {elems} elements", bytes.len()).into());
        }
        Ok(TensorData { storage: w.storage, shape: w.shape, bytes })
    }
}
