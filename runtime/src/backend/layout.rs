//! Where everything lies on the device for a given extent: slots of the arenas, states, cache slots, side constants,
//! and the records that tell kernels. Nothing here touches a device.

use super::{Extent, weights};
use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::Space;
use frit_plan::{BufferRef, KvPart, Placement, Plan, Program, SlotLayout, Step, WeightDecl};

/// Slots, states and side constants begin on multiples of this many elements.
const ALIGN_ELEMS: u64 = 64;
/// Bytes between the records of two steps: the alignment that every device allows.
pub(crate) const RECORD_ALIGN: u64 = 256;

/// A buffer of the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Home {
    Arena,
    Ints,
    Side,
    Kv(u32),
    Own(u32),
}

/// A run of elements in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub home: Home,
    /// First element.
    pub offset: u64,
    /// Elements there is room for.
    pub room: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub offset: u64,
    pub len: u64,
}

/// Consecutive aligned runs.
#[derive(Debug, Default)]
struct Stack {
    end: u64,
}
impl Stack {
    fn push(&mut self, len: u64) -> Result<Run> {
        let offset = self.end;
        let next = len.checked_next_multiple_of(ALIGN_ELEMS).and_then(|l| offset.checked_add(l));
        self.end = next.ok_or_else(|| Error::Plan(format!("{len} elements overflow the address space")))?;
        Ok(Run { offset, len })
    }
}

#[derive(Debug)]
struct ProgramLayout {
    arena: Vec<Run>,
    ints: Vec<Run>,
}

/// Everything's place.
#[derive(Debug)]
pub(crate) struct Layout {
    pub arena_elems: u64,
    pub ints_elems: u64,
    states: Vec<Run>,
    /// Keys and values of each cache slot.
    kv: Vec<(Run, Run)>,
    /// Side constants by weight; others are empty.
    pub side: Vec<Run>,
    pub side_elems: u64,
    /// The head of the side buffer that no extent changes.
    pub side_fixed_elems: u64,
    /// Bytes of each weight with a buffer of its own, else 0.
    pub own_bytes: Vec<u64>,
    programs: Vec<ProgramLayout>,
}

/// Whether an extent changes this weight.
pub(crate) fn is_symbolic(w: &WeightDecl) -> bool {
    w.shape.iter().any(|d| d.as_const().is_none())
}

/// Elements of a shape.
pub(crate) fn elements(plan: &Plan, shape: &[Dim], sizes: &[u64]) -> Result<u64> {
    let mut n = 1u64;
    for d in shape {
        let v = plan.eval(d, sizes)?;
        n = n.checked_mul(v).ok_or_else(|| Error::Plan(format!("{n}·{v} elements overflow the address space")))?;
    }
    Ok(n)
}

/// The largest sizes of a program under an extent.
pub(crate) fn largest(plan: &Plan, program: &Program, extent: &Extent) -> Vec<u64> {
    let named = |list: &[(String, u64)], name: &str| list.iter().filter(|(n, _)| n == name).map(|(_, v)| *v).min();
    let clip = |(decl, v): (&frit_plan::SizeDecl, &u64)| {
        let v = named(&program.fixed, &decl.name).map_or(*v, |f| f.min(*v));
        named(&program.at_most, &decl.name).map_or(v, |m| m.min(v))
    };
    plan.sizes.iter().zip(&extent.0).map(clip).collect()
}

impl Layout {
    /// Lays out `plan` for `extent`.
    pub fn new(plan: &Plan, extent: &Extent) -> Result<Layout> {
        if extent.0.len() != plan.sizes.len() || plan.sizes.len() > 16 {
            let expected = format!("{} sizes, at most 16", plan.sizes.len());
            return Err(Error::Shape { what: "extent".into(), expected, found: extent.0.len().to_string() });
        }
        let eval = |d: &Dim| -> Result<u64> { Ok(plan.eval(d, &extent.0)?) };
        let elems = |shape: &[Dim]| elements(plan, shape, &extent.0);

        let mut ints = Stack::default();
        let mut states = Vec::new();
        for s in &plan.states {
            states.push(ints.push(elems(&s.shape)?)?);
        }
        let mut kv = Vec::new();
        for s in &plan.kv_slots {
            let mut slot = Stack::default();
            let mut part = |shape: &[Dim]| slot.push(if shape.is_empty() { 0 } else { elems(shape)? });
            kv.push((part(&s.k_shape)?, part(&s.v_shape)?));
        }

        let mut side = vec![Run::default(); plan.weights.len()];
        let mut own_bytes = vec![0; plan.weights.len()];
        let mut stack = Stack::default();
        let mut side_fixed_elems = 0;
        for symbolic in [false, true] {
            for (i, w) in plan.weights.iter().enumerate().filter(|(_, w)| is_symbolic(w) == symbolic) {
                let n = weights::elements(w, &eval)?;
                match (w.placement, side.get_mut(i), own_bytes.get_mut(i)) {
                    (Placement::Side, Some(at), _) => *at = stack.push(n)?,
                    (Placement::Own, _, Some(bytes)) => *bytes = device_bytes(w, n)?,
                    _ => {}
                }
            }
            if !symbolic {
                side_fixed_elems = stack.end;
            }
        }

        let (mut arena_elems, mut ints_elems) = (0, ints.end);
        let mut programs = Vec::new();
        for p in &plan.programs {
            let sizes = largest(plan, p, extent);
            let lay = |slots: &SlotLayout, from: u64| -> Result<(Vec<Run>, u64)> {
                let mut stack = Stack { end: from };
                let runs = slots.sizes.iter().map(|d| stack.push(plan.eval(d, &sizes)?)).collect::<Result<_>>()?;
                Ok((runs, stack.end))
            };
            let (arena, end) = lay(&p.arena, 0)?;
            arena_elems = end.max(arena_elems);
            let (in_ints, end) = lay(&p.ints, ints.end)?;
            ints_elems = end.max(ints_elems);
            programs.push(ProgramLayout { arena, ints: in_ints });
        }
        Ok(Layout {
            arena_elems,
            ints_elems,
            states,
            kv,
            side,
            side_elems: stack.end,
            side_fixed_elems,
            own_bytes,
            programs,
        })
    }
    /// Elements of a cache slot's buffer.
    pub fn kv_elems(&self, slot: usize) -> u64 {
        self.kv.get(slot).map_or(0, |(_, v)| v.offset + v.len.next_multiple_of(ALIGN_ELEMS))
    }
    /// The place of a part of a cache slot under `sizes`.
    pub fn cache(&self, plan: &Plan, slot: usize, part: KvPart, sizes: &[u64]) -> Result<Place> {
        let len = super::kv_len(plan, slot, part, sizes)?;
        let run = self.kv.get(slot).map(|(k, v)| if part == KvPart::K { k } else { v }).filter(|run| len <= run.len);
        let run = run.ok_or_else(|| Error::Plan(format!("cache slot {slot} has no room for {len} elements")))?;
        Ok(Place { home: Home::Kv(slot as u32), offset: run.offset, room: len })
    }
    /// [`Layout::cache`] for `data`.
    pub fn cache_for(&self, plan: &Plan, slot: usize, part: KvPart, sizes: &[u64], data: &[f32]) -> Result<Place> {
        let place = self.cache(plan, slot, part, sizes)?;
        match place.room == data.len() as u64 {
            true => Ok(place),
            false => Err(Error::Shape {
                what: format!("cache slot {slot}"),
                expected: format!("{} elements", place.room),
                found: format!("{} elements", data.len()),
            }),
        }
    }
    /// Bytes of weights, cache, arenas.
    pub fn bytes(&self) -> [u64; 3] {
        let cache = (0..self.kv.len()).map(|i| self.kv_elems(i)).fold(0, u64::saturating_add);
        let own = self.own_bytes.iter().copied().fold(0, u64::saturating_add);
        [
            own.saturating_add(self.side_elems.saturating_mul(4)),
            cache.saturating_mul(4),
            self.arena_elems.saturating_add(self.ints_elems).saturating_mul(4),
        ]
    }
    /// The place of a state.
    pub fn state(&self, i: usize) -> Option<Place> {
        self.states.get(i).map(|r| Place { home: Home::Ints, offset: r.offset, room: r.len })
    }
    /// The place of a buffer of program `at`.
    pub fn place(&self, plan: &Plan, at: usize, buffer: BufferRef) -> Result<Place> {
        let unknown = || Error::Plan(format!("no such buffer: {buffer:?}"));
        let (home, run) = match buffer {
            BufferRef::Value(v) => {
                let program = plan.programs.get(at).ok_or_else(unknown)?;
                let lay = self.programs.get(at).ok_or_else(unknown)?;
                let value = program.values.get(v as usize).ok_or_else(unknown)?;
                match value.storage {
                    Storage::F32 => (Home::Arena, lay.arena.get(value.slot as usize)),
                    Storage::I32 | Storage::Bool => (Home::Ints, lay.ints.get(value.slot as usize)),
                    s => return Err(Error::Plan(format!("value `{}` is {s}", value.name))),
                }
            }
            BufferRef::State(s) => (Home::Ints, self.states.get(s as usize)),
            BufferRef::Kv { slot, part } => {
                let both = self.kv.get(slot as usize);
                (Home::Kv(slot), both.map(|(k, v)| if part == KvPart::K { k } else { v }))
            }
            BufferRef::Weight(w) => {
                let decl = plan.weights.get(w as usize).ok_or_else(unknown)?;
                match decl.placement {
                    Placement::Side => (Home::Side, self.side.get(w as usize)),
                    Placement::Own => return Ok(Place { home: Home::Own(w), offset: 0, room: u64::MAX }),
                }
            }
        };
        let run = run.ok_or_else(unknown)?;
        Ok(Place { home, offset: run.offset, room: run.len })
    }
    /// The places of a step's arguments, each checked against the space its kernel expects.
    pub fn places(&self, plan: &Plan, at: usize, step: &Step) -> Result<Vec<Place>> {
        let spec = &plan.kernels.get(step.kernel as usize).ok_or_else(|| no_kernel(step))?.spec;
        if spec.args.len() != step.args.len() {
            let (have, want) = (step.args.len(), spec.args.len());
            return Err(Error::Plan(format!(
                "step `{}` binds {have} arguments, `{}` has {want}",
                step.label, spec.name
            )));
        }
        let mut slots: Vec<(u8, u32)> = Vec::new();
        let mut out = Vec::new();
        for (arg, b) in spec.args.iter().zip(&step.args) {
            let place = self.place(plan, at, *b)?;
            let right = match (arg.space, place.home) {
                (Space::Arena, Home::Arena) | (Space::Ints, Home::Ints) | (Space::Side, Home::Side) => true,
                (Space::Weight, Home::Own(_)) => true,
                (Space::Kv(n), Home::Kv(slot)) => match slots.iter().find(|(m, _)| *m == n) {
                    Some((_, known)) => *known == slot,
                    None => {
                        slots.push((n, slot));
                        true
                    }
                },
                _ => false,
            };
            if !right {
                let (step, arg) = (&step.label, &arg.name);
                return Err(Error::Plan(format!("step `{step}`: argument `{arg}` cannot be bound to {b:?}")));
            }
            out.push(place);
        }
        Ok(out)
    }
}

pub(crate) fn no_kernel(step: &Step) -> Error {
    Error::Plan(format!("step `{}` launches kernel {}, which does not exist", step.label, step.kernel))
}

fn device_bytes(w: &WeightDecl, elems: u64) -> Result<u64> {
    let whole = w.storage.size_bytes(elems).map(|_| elems / w.storage.block_elems());
    whole.map(|blocks| w.storage.device_words(blocks) * 4).ok_or_else(|| Error::Weight {
        weight: w.name.clone(),
        cause: format!("{elems} elements do not fill whole blocks of {}", w.storage),
    })
}

/// The record of a step: the element offset of each argument, in groups of four words.
pub(crate) fn record(places: &[Place]) -> Result<Vec<u32>> {
    let mut out = Vec::new();
    for p in places {
        let too_far = |_| Error::Limit { what: "element offset".into(), wanted: p.offset, limit: u64::from(u32::MAX) };
        out.push(u32::try_from(p.offset).map_err(too_far)?);
    }
    out.resize(out.len().next_multiple_of(4).max(4), 0);
    Ok(out)
}
