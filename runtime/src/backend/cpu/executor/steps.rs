//! Steps of a program bound to buffers: where each argument lies, and how one that shares its buffer with an output is read.

use super::{CpuExecutor, Stored};
use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::Space;
use frit_plan::{BufferRef, KvPart, Program};

/// Where a buffer of the plan lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Weight(usize),
    Float(usize),
    Int(usize),
}

/// How an argument that shares its buffer with an output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The launch does not write its buffer.
    Plain,
    /// From a copy made before the launch.
    Copy(usize),
    /// Through the written view of that number.
    Written(usize),
}

#[derive(Debug)]
pub(super) struct BoundArg {
    pub(super) place: Place,
    pub(super) read: Read,
    pub(super) write: Option<usize>,
}

#[derive(Debug)]
pub(super) struct BoundStep {
    pub(super) kernel: usize,
    pub(super) args: Vec<BoundArg>,
    pub(super) written: Vec<Place>,
    /// The buffer and the extents of what must not be 0 everywhere for the launch to count.
    pub(super) when: Option<(usize, Vec<Dim>)>,
}

impl CpuExecutor {
    pub(super) fn place(&self, p: &Program, r: BufferRef) -> Option<Place> {
        let plan = &*self.plan;
        Some(match r {
            BufferRef::Weight(w) => Place::Weight(((w as usize) < plan.weights.len()).then_some(w as usize)?),
            BufferRef::State(s) => Place::Int(((s as usize) < plan.states.len()).then_some(s as usize)?),
            BufferRef::Kv { slot, part } => {
                let slot = ((slot as usize) < plan.kv_slots.len()).then_some(slot as usize)?;
                Place::Float(self.slots() + 2 * slot + usize::from(part == KvPart::V))
            }
            BufferRef::Value(v) => {
                let v = p.values.get(v as usize)?;
                let slot = v.slot as usize;
                match v.storage {
                    Storage::F32 => Place::Float((slot < p.arena.sizes.len()).then_some(slot)?),
                    Storage::I32 | Storage::Bool => {
                        Place::Int(plan.states.len() + (slot < p.ints.sizes.len()).then_some(slot)?)
                    }
                    _ => return None,
                }
            }
        })
    }

    pub(super) fn storage(&self, place: Place) -> (Storage, Scalar) {
        let s = match place {
            Place::Weight(w) => self.weights.get(w).map_or(Storage::F32, Stored::storage),
            Place::Float(_) => Storage::F32,
            Place::Int(_) => Storage::I32,
        };
        (s, s.scalar())
    }

    pub(super) fn bind_program(&self, p: usize) -> Result<Vec<BoundStep>> {
        let plan = &*self.plan;
        let program = &plan.programs[p];
        let mut out = Vec::new();
        for step in &program.steps {
            let at =
                |reason: String| Error::Plan(format!("program `{}`, step `{}`: {reason}", program.name, step.label));
            let kernel = step.kernel as usize;
            let (Some(k), Some(code)) = (plan.kernels.get(kernel), self.codes.get(kernel)) else {
                return Err(at(format!("there is no kernel {kernel}")));
            };
            if k.spec.args.len() != step.args.len() {
                return Err(at(format!("{} arguments for {}", step.args.len(), k.spec.args.len())));
            }
            let mut places = Vec::new();
            let mut written: Vec<Place> = Vec::new();
            for (a, r) in k.spec.args.iter().zip(&step.args) {
                let place = self.place(program, *r).ok_or_else(|| at(format!("`{}` has no buffer", a.name)))?;
                let (storage, scalar) = self.storage(place);
                if storage != a.storage && (scalar == Scalar::F32 || a.storage.scalar() == Scalar::F32) {
                    return Err(at(format!("`{}` is {}, its buffer {storage}", a.name, a.storage)));
                }
                if a.written && matches!(place, Place::Weight(_)) {
                    return Err(at(format!("`{}` writes a weight", a.name)));
                }
                if a.written && !written.contains(&place) {
                    written.push(place);
                }
                places.push(place);
            }
            let (mut copies_f, mut copies_i) = (0, 0);
            let all = places.clone();
            let contracted = |n: usize, place: Place| {
                let mut writers =
                    k.spec.args.iter().zip(&all).enumerate().filter(|(_, (a, p))| a.written && **p == place);
                writers.all(|(o, _)| {
                    k.spec.aliases.iter().any(|a| usize::from(a.input.0) == n && usize::from(a.output.0) == o)
                })
            };
            let bound = k.spec.args.iter().zip(places).zip(&code.loads).enumerate().map(|(n, ((a, place), loaded))| {
                let number = written.iter().position(|w| *w == place);
                let read = match (number, place) {
                    (Some(w), _) if !a.written && contracted(n, place) => Read::Written(w),
                    (Some(_), Place::Float(_)) if *loaded && !matches!(a.space, Space::Kv(_)) => {
                        copies_f += 1;
                        Read::Copy(copies_f - 1)
                    }
                    (Some(_), Place::Int(_)) if *loaded => {
                        copies_i += 1;
                        Read::Copy(copies_i - 1)
                    }
                    (Some(n), _) => Read::Written(n),
                    (None, _) => Read::Plain,
                };
                BoundArg { place, read, write: number.filter(|_| a.written) }
            });
            let args = bound.collect();
            let when =
                match step.when.map(|v| (self.place(program, BufferRef::Value(v)), program.values.get(v as usize))) {
                    None => None,
                    Some((Some(Place::Int(b)), Some(v))) => Some((b, v.shape.clone())),
                    Some(_) => return Err(at("depends on a value that is no integer".into())),
                };
            out.push(BoundStep { kernel, args, written, when });
        }
        for port in program.inputs.iter().chain(&program.outputs) {
            let place = self.place(program, port.buffer);
            let fits = place.is_some_and(|p| {
                self.storage(p).1 == port.storage.scalar() || {
                    self.storage(p).1 != Scalar::F32 && port.storage.scalar() != Scalar::F32
                }
            });
            if !fits {
                return Err(Error::Plan(format!(
                    "program `{}`: `{}` has no buffer of its type",
                    program.name, port.name
                )));
            }
        }
        Ok(out)
    }
}
