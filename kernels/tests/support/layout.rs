//! Where the arguments of a kernel lie, by the binding convention of generated kernels.

use super::Case;
use super::blocks::{Data, half, words};
use frit_kernels::dim::Sym;
use frit_kernels::dtype::HalfFormat;
use frit_kernels::emit::Language;
use frit_kernels::spec::{Arg, Space};
use frit_kernels::target::Tier;
use frit_kernels::templates::Rendered;

/// Elements between two arguments of one buffer.
pub const GAP: usize = 64;
/// What fills the gaps.
pub const FILL: u32 = 0x4b4b_4b4b;

/// The buffers of one launch.
pub struct Layout {
    /// Storage buffers in order of binding: what they are for, their words, and whether they are bound writable.
    pub spaces: Vec<(Space, Vec<u32>, bool)>,
    /// The buffer of each argument and its first word there.
    pub place: Vec<(usize, usize)>,
    /// The uniform of argument offsets.
    pub record: Vec<u32>,
    /// The uniform of dynamic sizes.
    pub sizes: Vec<u32>,
    /// Workgroups.
    pub grid: Vec<u32>,
}

/// Words as bytes.
pub fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The 16-bit format that an argument of a rendered kernel is kept in, if any.
pub fn kept_as(a: &Arg, r: &Rendered) -> Option<HalfFormat> {
    a.rounded.filter(|_| r.language == Language::Ptx && a.is_half(Tier::Cuda))
}

/// Floats rounded to 16 bits, two a word.
fn halves(data: &Data, format: HalfFormat) -> Vec<u32> {
    let Data::F32(v) = data else { panic!("only floats are kept in 16 bits") };
    let bits = |v: &f32| match format {
        HalfFormat::F16 => half(v.clamp(-65504.0, 65504.0)),
        HalfFormat::Bf16 => (frit_kernels::spec::to_bf16(*v).to_bits() >> 16) as u16,
    };
    let both = |pair: &[f32]| pair.iter().rev().fold(0, |word, v| word << 16 | u32::from(bits(v)));
    v.chunks(2).map(both).collect()
}

impl Layout {
    /// Lays out the arguments of a case, with gaps between those that share a buffer.
    pub fn new(case: &Case, r: &Rendered) -> Layout {
        let spec = &case.spec;
        let mut spaces: Vec<(Space, Vec<u32>, bool)> = Vec::new();
        let mut place: Vec<(usize, usize)> = Vec::new();
        let mut alone: Vec<usize> = Vec::new();
        for (i, a) in spec.args.iter().enumerate() {
            if let Some((_, from)) = case.shared.iter().find(|(o, _)| *o == i) {
                place.push(place[*from]);
                continue;
            }
            if let Some(format) = kept_as(a, r) {
                place.push((spaces.len(), 0));
                spaces.push((a.space, halves(&case.data[i], format), a.written));
                alone.push(spaces.len() - 1);
                continue;
            }
            let content = words(a.storage, &case.data[i]);
            let is_of = |(at, (s, ..)): (usize, &(Space, Vec<u32>, bool))| *s == a.space && !alone.contains(&at);
            let known = spaces.iter().enumerate().position(is_of).filter(|_| a.space != Space::Weight);
            let at = known.unwrap_or_else(|| {
                spaces.push((a.space, Vec::new(), false));
                spaces.len() - 1
            });
            let (space, buffer, written) = &mut spaces[at];
            *written |= a.written || matches!(space, Space::Arena | Space::Ints);
            if *space != Space::Weight {
                let start = buffer.len().next_multiple_of(4) + GAP;
                buffer.resize(start, FILL);
            }
            place.push((at, buffer.len()));
            buffer.extend(content);
            if *space != Space::Weight {
                buffer.resize(buffer.len() + GAP, FILL);
            }
            let padded = buffer.len().next_multiple_of(4);
            buffer.resize(padded, FILL);
        }
        let mut record: Vec<u32> = place
            .iter()
            .zip(&spec.args)
            .map(|((_, o), a)| if a.space == Space::Weight { 0 } else { *o as u32 })
            .collect();
        record.resize(record.len().div_ceil(4).max(1) * 4, 0);
        let mut sizes = vec![0u32; 16];
        for z in &spec.sizes {
            sizes[z.index as usize] = case.sizes.iter().find(|s| s.0 == z.name).unwrap().1 as u32;
        }
        let env = |s: &Sym| match s {
            Sym::Size(n) => case.sizes.iter().find(|z| *z.0 == **n).map(|z| z.1),
            _ => None,
        };
        let grid: Vec<u32> = r.grid.iter().map(|d| u32::try_from(d.eval(&env).unwrap()).unwrap()).collect();
        Layout { spaces, place, record, sizes, grid }
    }
}
