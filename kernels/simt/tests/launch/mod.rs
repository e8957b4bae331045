//! Cases of kernel tests as launches.
#![allow(dead_code)]

use crate::support::Case;
use crate::support::blocks::{Data, unhalf, words};
use crate::support::eval::{evaluate, evaluate_rounded, to_bf16, to_f16};
use crate::support::layout::{Layout, bytes, kept_as};
use frit_kernels::dtype::{HalfFormat, Scalar, Storage};
use frit_kernels::emit;
use frit_kernels::ir::{Access, TEXELS_PER_ROW, TILE_COLUMNS, TileMap};
use frit_kernels::spec::Space;
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::Rendered;
use frit_simt::{
    Argument, Buffer, Error, Language, Launch, Options, Outcome, Region, TensorMap, Texture, run as execute,
};

/// The targets whose kernels are executed here.
pub fn targets() -> Vec<Capabilities> {
    vec![Capabilities::webgpu(Tier::Cpu), Capabilities::webgpu(Tier::Gpu), Capabilities::cuda()]
}

/// What a kernel should leave in each argument, and how far that may be off: matrix units round their operands, and a value on
/// the edge between two roundings may go either way; what is kept in 16 bits is rounded at last.
pub fn expected(case: &Case, r: &Rendered) -> (Vec<Vec<f64>>, Vec<f64>) {
    let (want, tolerance) = match rounding(case, r) {
        Some(round) => (evaluate_rounded(case, round), case.tolerance.max(2e-3)),
        None => (evaluate(case), case.tolerance),
    };
    let last = |a| match kept_as(a, r) {
        Some(HalfFormat::F16) => 2f64.powi(-11),
        Some(HalfFormat::Bf16) => 2f64.powi(-8),
        None => 0.0,
    };
    let tolerances = case.spec.args.iter().map(|a| tolerance + last(a)).collect();
    (want, tolerances)
}

/// Runs a case; the outcome, and the numbers of every written argument.
pub fn run(case: &Case, r: &Rendered, options: &Options) -> (Outcome, Vec<Vec<f64>>) {
    try_run(case, r, options).unwrap_or_else(|e| panic!("{e}\n{}", r.text))
}

/// As [`run`]; an error for a text that cannot be run at all.
pub fn try_run(case: &Case, r: &Rendered, options: &Options) -> Result<(Outcome, Vec<Vec<f64>>), Error> {
    let layout = Layout::new(case, r);
    let spec = &case.spec;
    let mut arguments: Vec<Argument> = layout
        .spaces
        .iter()
        .enumerate()
        .map(|(b, (space, content, written))| {
            let mut regions: Vec<Region> = Vec::new();
            for (i, a) in spec.args.iter().enumerate().filter(|(i, _)| layout.place[*i].0 == b) {
                let start = 4 * layout.place[i].1 as u64;
                let end = start + 4 * words(a.storage, &case.data[i]).len() as u64;
                match regions.iter_mut().find(|r| r.start == start) {
                    Some(r) => {
                        r.writable |= a.written;
                        r.initialised |= !a.written;
                    }
                    None => regions.push(Region { start, end, initialised: !a.written, writable: a.written }),
                }
            }
            let kept = spec.args.iter().zip(&layout.place).find(|(a, at)| at.0 == b && kept_as(a, r).is_some());
            if let Some((a, _)) = kept {
                return Argument::Buffer(Buffer {
                    name: a.name.clone(),
                    bytes: bytes(content),
                    initialised: !a.written,
                    writable: a.written,
                    regions: Vec::new(),
                });
            }
            if *space == Space::Weight {
                regions.clear();
            }
            if r.module.buffers.values().any(|t| t.binding == b as u32 && matches!(t.access, Access::Texels(_))) {
                return Argument::Texture(Texture {
                    name: format!("{space:?}"),
                    width: TEXELS_PER_ROW,
                    bytes: bytes(content),
                });
            }
            Argument::Buffer(Buffer {
                name: format!("{space:?}"),
                bytes: bytes(content),
                initialised: true,
                // Other kernels write it, whether this one does or not; regions say what this one may.
                writable: *written || *space != Space::Weight,
                regions,
            })
        })
        .collect();
    arguments.push(Argument::Bytes(bytes(&layout.record)));
    let language = match r.language {
        emit::Language::Wgsl => Language::Wgsl,
        emit::Language::Ptx => Language::Ptx,
    };
    arguments.push(match language {
        Language::Wgsl => Argument::Bytes(bytes(&layout.sizes)),
        // A step's end moves on the sizes; no kernel of a plan writes them.
        Language::Ptx => {
            let bytes = bytes(&layout.sizes);
            let all = Region { start: 0, end: bytes.len() as u64, initialised: true, writable: false };
            let regions = vec![all];
            Argument::Buffer(Buffer { regions, ..Buffer::inout("sizes", bytes) })
        }
    });
    for (b, map) in maps(r) {
        let argument = arguments.len();
        let map = TensorMap::of_halves(argument, [map.columns, map.rows], [TILE_COLUMNS, map.tile_rows]);
        let map = Argument::TensorMap(map);
        let matrix = std::mem::replace(&mut arguments[b], map);
        arguments.push(matrix);
    }
    let launch = Launch {
        kernel: &spec.name,
        text: &r.text,
        language,
        entry: Some("main"),
        workgroup: r.workgroup,
        grid: [layout.grid[0], layout.grid[1], layout.grid[2]],
        arguments,
        dynamic_shared_bytes: u32::try_from(emit::ptx::dynamic_shared_bytes(&r.module)).unwrap(),
    };
    let outcome = execute(&launch, options)?;
    let numbers = spec.args.iter().zip(&layout.place).zip(&case.data).map(|((a, (at, start)), d)| {
        let len = match d {
            Data::F32(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::Bytes(_) => 0,
        };
        if let Some(format) = kept_as(a, r) {
            let halves = outcome.buffers[*at].chunks_exact(2).take(if a.written { len } else { 0 });
            let bits = halves.map(|c| u16::from_le_bytes([c[0], c[1]]));
            return bits
                .map(|h| match format {
                    HalfFormat::F16 => unhalf(h),
                    HalfFormat::Bf16 => f64::from(f32::from_bits(u32::from(h) << 16)),
                })
                .collect();
        }
        let found = outcome.buffers[*at].chunks_exact(4).skip(*start).take(if a.written { len } else { 0 });
        let word = found.map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        word.map(|w| match a.storage.scalar() {
            Scalar::F32 => f64::from(f32::from_bits(w)),
            _ => f64::from(w as i32),
        })
        .collect()
    });
    let numbers = numbers.collect();
    Ok((outcome, numbers))
}

/// The matrices of which a kernel brings tiles, by binding.
fn maps(r: &Rendered) -> Vec<(usize, TileMap)> {
    let map = |b: &frit_kernels::ir::Buffer| match b.access {
        Access::Tiles(map) => Some((b.binding as usize, map)),
        _ => None,
    };
    r.module.buffers.values().filter_map(map).collect()
}

/// What matrix units round their operands to.
pub fn rounding(case: &Case, r: &Rendered) -> Option<fn(f64) -> f64> {
    let halves = case.spec.args.iter().any(|a| a.space == Space::Weight && a.storage == Storage::F16);
    match r.template {
        "gemm_matrix" | "gemm_warpgroup" if halves => Some(to_f16),
        "gemm_matrix" | "gemm_warpgroup" => Some(to_bf16),
        _ => None,
    }
}

/// Fails on any violation.
pub fn clean(outcome: &Outcome, r: &Rendered) {
    let all: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
    assert!(all.is_empty(), "{}\n{}", all.join("\n"), numbered(&r.text));
}

/// A text with line numbers.
pub fn numbered(text: &str) -> String {
    text.lines().enumerate().map(|(i, l)| format!("{:>4} {l}\n", i + 1)).collect()
}
