//! Barriers in shared memory (`mbarrier`): a phase ends when all arrivals and all announced bytes are in.
//!
//! A tile that a tensor copy brings lands as late as it can: only when no warp goes on without it. Until a thread has
//! seen the phase of its barrier end, the tile is pending. What a thread did before it arrived, and its warp before their
//! last barrier, is ordered before what those do who saw the phase end.

use crate::access::Places;
use crate::approx::mix;
use crate::machine::{Machine, Warp};
use crate::memory::Kind;
use crate::op::{Addr, LANES, Reg, Row};
use crate::report::ViolationKind;
use crate::shadow::{ASYNC, join};
use rustc_hash::FxHashMap;

/// What is done to a barrier, or asked of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum BarrierOp {
    /// Sets the arrivals of a phase.
    Init { count: Reg },
    /// Ends its use.
    Invalidate,
    /// Announces bytes.
    Expect { bytes: Reg },
    /// Arrives so many times, having announced bytes; the state names the phase.
    Arrive { count: Option<Reg>, bytes: Option<Reg>, state: Option<Reg> },
    /// Whether the phase of that parity, or of that state, has ended.
    Test { d: Reg, parity: Option<Reg>, state: Option<Reg> },
}

/// One barrier.
#[derive(Debug, Default)]
struct Barrier {
    count: u32,
    missing: u32,
    bytes: i64,
    /// The thread that initialised it and has not fenced since.
    unfenced: Option<u32>,
    phase: u32,
    /// What those who arrived in this phase had seen, by thread.
    gathered: Vec<u32>,
    /// The same for all phases that ended.
    ended: Vec<u32>,
    /// Bytes that landed: in this phase, and in ended ones that nobody saw yet.
    landed: Vec<(usize, u64)>,
    unseen: Vec<(usize, u64)>,
}

/// A tile on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) segment: usize,
    /// Words by their offset.
    pub(crate) words: Vec<(u64, u32)>,
    /// The barrier's offset in shared memory.
    pub(crate) barrier: u64,
    /// Where it was issued.
    pub(crate) pc: u32,
    pub(crate) thread: u32,
}

/// The barriers of a workgroup.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    all: FxHashMap<u64, Barrier>,
    flights: Vec<Flight>,
    /// Changes so far.
    pub(crate) version: u64,
}

impl Barriers {
    /// What a thread initialised is seen by asynchronous copies.
    pub(crate) fn publish(&mut self, thread: u32) {
        self.all.values_mut().filter(|b| b.unfenced == Some(thread)).for_each(|b| b.unfenced = None);
    }
}

impl Barrier {
    /// Ends the phase if nothing is missing.
    fn settle(&mut self) {
        if self.missing == 0 && self.bytes == 0 {
            self.phase = self.phase.wrapping_add(1);
            self.missing = self.count;
            join(&mut self.ended, &self.gathered);
            self.gathered.clear();
            self.unseen.append(&mut self.landed);
        }
    }
}

impl Barriers {
    pub(crate) fn launch(&mut self, flight: Flight) {
        self.flights.push(flight);
        self.version += 1;
    }
    pub(crate) fn reset(&mut self) {
        *self = Barriers::default();
    }
}

const BYTES: i64 = (1 << 20) - 1;

impl Machine<'_> {
    /// Offsets of barriers that lanes name, and the lanes; others are reported.
    fn barriers_at(&mut self, w: &Warp, addr: &Addr, mask: u32, made: bool) -> Vec<(usize, u64)> {
        let mut found = Vec::new();
        for p in self.places(w, addr, mask) {
            if self.memory.segments.get(p.segment).map(|s| s.kind) != Some(Kind::Shared) {
                self.violate(w, p.mask, ViolationKind::WildAddress, None);
                continue;
            }
            // Making one is a write; whatever else is done to it passes as an atomic read.
            let good = self.permitted(w, &p, 8, 8, made, !made);
            found.extend((0..LANES).filter(|i| good >> i & 1 == 1).map(|i| (i, p.offsets[i])));
        }
        found
    }

    /// What lies before an arrival of a thread: what it has seen, what its warp did before their last barrier, and what it
    /// did itself.
    fn gather(&mut self, into: &mut Vec<u32>, thread: u32) {
        let warp = thread / LANES as u32;
        self.clock.now += 1;
        join(into, self.clock.view(thread));
        let met = self.clock.warps.get(warp as usize).copied().unwrap_or(0);
        let lanes = (warp as usize * LANES, warp as usize * LANES + LANES);
        if into.len() < lanes.1 {
            into.resize(lanes.1, 0);
        }
        for (t, seen) in into.iter_mut().enumerate().take(lanes.1).skip(lanes.0) {
            *seen = (*seen).max(if t == thread as usize { self.clock.now } else { met });
        }
    }

    /// Runs an operation; false if it asked for a phase that has not ended.
    pub(crate) fn mbarrier(&mut self, w: &mut Warp, addr: &Addr, op: &BarrierOp, mask: u32) -> bool {
        let first = w.index * LANES as u32;
        let mut ended = true;
        let mut out: Row = [0; LANES];
        for (lane, at) in self.barriers_at(w, addr, mask, matches!(op, BarrierOp::Init { .. })) {
            let thread = first + lane as u32;
            let of = |r: Reg| w.row(r)[lane];
            if let BarrierOp::Init { count } = op {
                let count = of(*count);
                if count == 0 || count >= 1 << 20 {
                    self.violate(w, 1 << lane, ViolationKind::Mbarrier("counts from 1 to 2^20 - 1"), None);
                }
                self.barriers
                    .all
                    .insert(at, Barrier { count, missing: count, unfenced: Some(thread), ..Barrier::default() });
                self.barriers.version += 1;
                continue;
            }
            let Some(b) = self.barriers.all.get_mut(&at) else {
                self.violate(w, 1 << lane, ViolationKind::Mbarrier("was not initialised"), None);
                continue;
            };
            let mut fault = None;
            match *op {
                BarrierOp::Init { .. } => {}
                BarrierOp::Invalidate => {
                    self.barriers.all.remove(&at);
                }
                BarrierOp::Expect { bytes } => b.bytes += i64::from(of(bytes)),
                BarrierOp::Arrive { count, bytes, .. } => {
                    out[lane] = b.phase;
                    b.bytes += bytes.map_or(0, |r| i64::from(of(r)));
                    let count = count.map_or(1, of);
                    if b.bytes > BYTES {
                        fault = Some("expects more bytes than it can count");
                    } else if count > b.missing {
                        fault = Some("has more arrivals than it counts");
                    }
                    let mut gathered = std::mem::take(&mut b.gathered);
                    self.gather(&mut gathered, thread);
                    let Some(b) = self.barriers.all.get_mut(&at) else { continue };
                    b.gathered = gathered;
                    b.missing = b.missing.saturating_sub(count);
                    b.settle();
                    self.barriers.version += 1;
                }
                BarrierOp::Test { parity, state, .. } => {
                    let over = match (parity, state) {
                        (Some(p), _) => b.phase & 1 != of(p) & 1,
                        (None, Some(s)) => b.phase != of(s),
                        (None, None) => true,
                    };
                    ended &= over;
                    out[lane] = u32::from(over);
                    if over {
                        if !b.unseen.is_empty() {
                            self.clock.now += 1;
                            for (segment, at) in b.unseen.drain(..) {
                                if let Some(s) = self.memory.segments.get_mut(segment) {
                                    s.arrived(at, &self.clock);
                                }
                            }
                            self.clock.now += 1;
                            join(&mut b.ended, &at_thread(ASYNC, self.clock.now));
                        }
                        self.clock.see(thread, &b.ended);
                    }
                }
            }
            if let Some(what) = fault {
                self.violate(w, 1 << lane, ViolationKind::Mbarrier(what), None);
            }
        }
        match *op {
            BarrierOp::Arrive { state: Some(d), .. } => {
                w.set(d, &out, mask);
                w.set(d + 1, &[0; LANES], mask);
            }
            BarrierOp::Test { d, .. } => w.set(d, &out, mask),
            _ => {}
        }
        ended
    }

    /// The offset of the one barrier that the lanes' copies complete on.
    pub(crate) fn barrier_of_copy(&mut self, w: &Warp, addr: &Addr, lane: usize) -> Option<u64> {
        let (_, at) = self.barriers_at(w, addr, 1 << lane, false).into_iter().next()?;
        let fault = match self.barriers.all.get(&at) {
            None => Some("was not initialised"),
            Some(b) => b.unfenced.map(|_| "lacks a fence between its initialisation and a copy"),
        };
        if let Some(what) = fault {
            self.violate(w, 1 << lane, ViolationKind::Mbarrier(what), None);
        }
        if !self.barriers.all.contains_key(&at) {
            return None;
        }
        Some(at)
    }

    /// Lets one tile land; false if none is on its way.
    pub(crate) fn land(&mut self) -> bool {
        let all = &mut self.barriers.flights;
        if all.is_empty() {
            return false;
        }
        let which = self.options.shuffle.map_or(0, |seed| mix(seed, u64::from(self.clock.now)) as usize % all.len());
        let flight = all.remove(which);
        self.barriers.version += 1;
        if let Some(s) = self.memory.segments.get_mut(flight.segment) {
            for (at, word) in &flight.words {
                s.set(*at, crate::op::Elem::B32, 0, *word, 0);
            }
        }
        if let Some(b) = self.barriers.all.get_mut(&flight.barrier) {
            b.bytes -= 4 * flight.words.len() as i64;
            b.landed.extend(flight.words.iter().map(|(at, _)| (flight.segment, *at)));
            b.settle();
        }
        true
    }

    /// At the end of a workgroup nothing may be on its way.
    pub(crate) fn end_of_flights(&mut self) {
        for f in std::mem::take(&mut self.barriers.flights) {
            let line = self.program.code.get(f.pc as usize).map_or(0, |i| i.line);
            let thread = self.thread(f.thread);
            self.report.add(ViolationKind::PendingCopy, f.pc, line, thread, None, 1);
        }
    }
}

fn at_thread(thread: u32, now: u32) -> Vec<u32> {
    let mut seen = vec![0; thread as usize + 1];
    if let Some(last) = seen.last_mut() {
        *last = now;
    }
    seen
}

/// Where a copy goes, for one lane.
pub(crate) fn one_lane(p: &Places, lane: usize) -> Option<(usize, u64)> {
    (p.mask >> lane & 1 == 1).then(|| (p.segment, p.offsets[lane]))
}
