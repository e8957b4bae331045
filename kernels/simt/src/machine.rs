//! Runs the grid: workgroups one after the other, warps in turn from barrier to barrier.
//!
//! A warp holds groups of lanes that stand at different places. The group at the lowest place runs; it takes up others
//! when it reaches theirs. Since programs are laid out with the meeting point behind the branches, lanes meet again as
//! early as they can.

use crate::approx::mix;
use crate::async_copy::Copies;
use crate::counters::Counters;
use crate::launch::{Launch, Options, Outcome, TensorMap};
use crate::math::Arith;
use crate::mbarrier::{BarrierOp, Barriers};
use crate::memory::{Memory, base_address};
use crate::op::{LANES, Op, Program, Reg, Row};
use crate::report::{Address, Report, Thread, ViolationKind};
use crate::shadow::Clock;
use crate::warpgroup::Products;
use rustc_hash::FxHashMap;

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It waits at a barrier: number and place.
    Barrier { id: u8, pc: u32, shared: bool, global: bool },
    /// It asked for a phase that has not ended.
    Stalled,
    /// All its lanes have ended.
    Done,
    /// The launch cannot go on.
    Abort,
}

/// One warp.
#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub(crate) regs: Vec<Row>,
    /// Lanes in which each register was written; empty if not tracked.
    pub(crate) defined: Vec<u32>,
    /// Lanes that wait at a later place, the last one being next.
    pub(crate) waiting: Vec<(u32, u32)>,
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    /// Lanes that exist.
    pub(crate) lanes: u32,
    pub(crate) index: u32,
    /// Lanes that waited for the launch before this one; all of them if the kernel does not overlap it.
    pub(crate) waited: u32,
    /// Products of its warpgroup under way.
    pub(crate) products: Products,
    /// Where it last found a phase not ended, and what had changed by then.
    stalled: Option<(u32, u64)>,
    state: Option<Stop>,
}

/// A launch under way.
pub(crate) struct Machine<'p> {
    pub(crate) program: &'p Program,
    pub(crate) memory: Memory,
    pub(crate) clock: Clock,
    pub(crate) report: Report,
    pub(crate) counters: Counters,
    pub(crate) options: Options,
    pub(crate) arith: Arith,
    pub(crate) grid: [u32; 3],
    pub(crate) group: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) spent: u64,
    pub(crate) copies: Copies,
    pub(crate) barriers: Barriers,
    /// Tensor maps by their segment, with the segment of their matrix.
    pub(crate) tensors: FxHashMap<usize, (usize, TensorMap)>,
    shared_segment: Option<u32>,
    local_segment: Option<u32>,
}

impl<'p> Machine<'p> {
    pub(crate) fn new(program: &'p Program, launch: &Launch<'_>, options: &Options) -> Self {
        let place =
            |origin: crate::op::Origin| program.segments.iter().position(|s| s.origin == origin).map(|i| i as u32);
        Machine {
            program,
            memory: Memory::new(program, launch, options.zeroed_workgroup_memory),
            clock: clock(program, options),
            report: Report::new(launch.kernel),
            counters: Counters::default(),
            arith: Arith { ftz: options.flush_denormals, perturb: options.perturb, wgsl: program.wgsl },
            // Segments of time are counted in 32 bits, and each takes an instruction.
            options: Options { budget: options.budget.min(1 << 31), ..options.clone() },
            grid: launch.grid,
            group: [0; 3],
            threads: program.workgroup.iter().product(),
            spent: 0,
            copies: Copies::default(),
            barriers: Barriers::default(),
            tensors: tensors(program, launch),
            shared_segment: place(crate::op::Origin::Workgroup),
            local_segment: place(crate::op::Origin::Local),
        }
    }

    /// The segment of shared (or local) memory that 32-bit offsets mean.
    pub(crate) fn short_segment(&self, space: crate::op::Space) -> Option<u32> {
        if space == crate::op::Space::Local { self.local_segment } else { self.shared_segment }
    }

    /// Runs every workgroup and collects what is left.
    pub(crate) fn run(mut self, launch: &Launch<'_>) -> Outcome {
        let total = self.grid.iter().fold(1u64, |n, g| n.saturating_mul(u64::from(*g)));
        let count = self.threads.div_ceil(LANES as u32);
        let mut warps: Vec<Warp> = (0..count).map(|i| self.fresh_warp(i, launch)).collect();
        let mut completed = true;
        for i in 0..total {
            let i = match self.options.shuffle {
                Some(seed) => permuted(i, total, seed),
                None => i,
            };
            let [x, y, _] = self.grid.map(u64::from);
            self.group = [(i % x) as u32, (i / x % y) as u32, (i / x / y) as u32];
            self.clock.enter_group(self.threads);
            self.memory.segments.iter_mut().for_each(|s| s.watch.reset());
            self.copies.reset(&mut self.memory);
            self.barriers.reset();
            if self.options.zeroed_workgroup_memory {
                self.memory.zero_shared();
            }
            for w in &mut warps {
                self.restart(w);
            }
            if !self.run_group(&mut warps) {
                completed = false;
                break;
            }
        }
        self.counters.live_registers = crate::live::peak(self.program);
        let buffers = (0..launch.arguments.len()).map(|a| {
            let here = |s: &crate::op::Segment| s.origin == crate::op::Origin::Argument(a);
            match (&launch.arguments[a], self.program.segments.iter().position(here)) {
                (crate::Argument::Buffer(_), Some(s)) => self.memory.bytes(s),
                (crate::Argument::Buffer(b), None) => b.bytes.clone(),
                (_, _) => Vec::new(),
            }
        });
        let buffers = buffers.collect();
        Outcome { buffers, counters: self.counters, violations: self.report.violations, completed }
    }

    fn fresh_warp(&self, index: u32, launch: &Launch<'_>) -> Warp {
        let program = self.program;
        let mut regs = vec![[0; LANES]; program.registers as usize];
        let mut set = |r: Reg, v: u32| {
            if let Some(row) = regs.get_mut(r as usize) {
                *row = [v; LANES];
            }
        };
        for (r, v) in &program.constants {
            set(*r, *v);
        }
        for (r, segment) in &program.addresses {
            let address = base_address(*segment as usize);
            set(*r, address as u32);
            set(*r + 1, (address >> 32) as u32);
        }
        for (r, argument, offset) in &program.parameters {
            let bytes = match launch.arguments.get(*argument) {
                Some(crate::Argument::Bytes(b)) => b.as_slice(),
                _ => &[],
            };
            let word = (0..4).map(|i| bytes.get(*offset as usize + i).copied().unwrap_or(0));
            set(*r, word.rev().fold(0, |w, b| w << 8 | u32::from(b)));
        }
        let left = self.threads - index * LANES as u32;
        let lanes = if left >= LANES as u32 { u32::MAX } else { (1 << left) - 1 };
        let mut warp = Warp { regs, lanes, index, ..Warp::default() };
        if program.track_registers {
            warp.defined = vec![0; program.registers as usize];
        }
        warp
    }

    fn restart(&self, w: &mut Warp) {
        w.waiting.clear();
        (w.pc, w.mask, w.state, w.stalled) = (0, w.lanes, None, None);
        w.products = Products::default();
        w.waited = if self.program.overlaps { 0 } else { u32::MAX };
        if self.program.track_registers {
            w.defined.fill(0);
            let p = self.program;
            let fixed = p.constants.iter().map(|c| c.0);
            let fixed = fixed.chain(p.addresses.iter().flat_map(|a| [a.0, a.0 + 1]));
            for r in fixed.chain(p.parameters.iter().map(|p| p.0)) {
                if let Some(d) = w.defined.get_mut(r as usize) {
                    *d = u32::MAX;
                }
            }
        }
    }

    /// Runs one workgroup; false if the launch cannot go on.
    fn run_group(&mut self, warps: &mut [Warp]) -> bool {
        let mut round = 0;
        loop {
            let before = self.barriers.version;
            let mut order: Vec<usize> = (0..warps.len()).collect();
            if let Some(seed) = self.options.shuffle {
                let salt = mix(seed, u64::from(self.clock.now) << 8 | round);
                order.sort_by_key(|i| mix(salt, *i as u64));
            }
            for i in order {
                let Some(w) = warps.get_mut(i).filter(|w| w.state.is_none()) else { continue };
                let stop = self.run_warp(w);
                w.state = Some(stop);
                if stop == Stop::Abort {
                    return false;
                }
            }
            round += 1;
            if let Some(at) = warps.iter().position(|w| w.state == Some(Stop::Stalled)) {
                let version = self.barriers.version;
                if version == before && !self.land() {
                    let stuck = |w: &&Warp| w.state != Some(Stop::Stalled) || w.stalled == Some((w.pc, version));
                    if warps.iter().all(|w| stuck(&w)) {
                        self.violate(&warps[at], warps[at].mask, ViolationKind::Deadlock, None);
                        return false;
                    }
                }
                for w in warps.iter_mut().filter(|w| w.state == Some(Stop::Stalled)) {
                    (w.stalled, w.state) = (Some((w.pc, version)), None);
                }
                continue;
            }
            let Some(first) = warps.iter().find(|w| w.state != Some(Stop::Done)) else {
                self.end_of_flights();
                self.check_warpgroups(warps);
                return true;
            };
            let Some(Stop::Barrier { id, pc, shared, global }) = first.state else { return true };
            let same = |w: &&Warp| match w.state {
                Some(Stop::Barrier { id: i, pc: p, .. }) => i == id && (p == pc || !self.program.one_place_barriers),
                _ => false,
            };
            if let Some(other) = warps.iter().find(|w| !same(w)) {
                let thread = self.thread(other.index * LANES as u32);
                let line = self.program.code.get(pc as usize).map_or(0, |i| i.line);
                self.report.add(ViolationKind::BarrierDivergence, pc, line, thread, None, 1);
                return false;
            }
            self.clock.barrier(shared, global);
            self.counters.barriers += 1;
            warps.iter_mut().for_each(|w| w.state = None);
        }
    }

    /// The thread with that number in the present workgroup.
    pub(crate) fn thread(&self, index: u32) -> Thread {
        let [x, y, _] = self.program.workgroup.map(|n| n.max(1));
        Thread { group: self.group, local: [index % x, index / x % y, index / x / y] }
    }

    /// Reports a violation by the lowest lane of `lanes`.
    pub(crate) fn violate(&mut self, w: &Warp, lanes: u32, kind: ViolationKind, place: Option<(usize, u64)>) {
        let Some(line) = self.program.code.get(w.pc as usize).map(|i| i.line) else { return };
        let thread = self.thread(w.index * LANES as u32 + lanes.trailing_zeros().min(31));
        let address = place.map(|(segment, offset)| {
            let buffer = self.memory.segments.get(segment).map_or_else(String::new, |s| s.name.clone());
            (segment as u32, Address { buffer, offset })
        });
        self.report.add(kind, w.pc, line, thread, address, u64::from(lanes.count_ones().max(1)));
    }

    fn run_warp(&mut self, w: &mut Warp) -> Stop {
        let program = self.program;
        loop {
            if let Some((pc, mask)) = w.waiting.last().copied()
                && w.pc >= pc
            {
                if w.pc == pc {
                    w.mask |= mask;
                    w.waiting.pop();
                } else {
                    w.waiting.pop();
                    park(w, w.pc, w.mask);
                    (w.pc, w.mask) = (pc, mask);
                }
                continue;
            }
            let Some(inst) = program.code.get(w.pc as usize) else {
                if self.next_group(w) {
                    continue;
                }
                return Stop::Done;
            };
            self.spent += 1;
            if self.spent > self.options.budget {
                self.violate(w, w.mask, ViolationKind::Budget, None);
                return Stop::Abort;
            }
            let mut mask = w.mask;
            if let Some((r, negated)) = inst.guard {
                if program.track_registers {
                    self.check_guard(w, r);
                }
                let holds = lanes_of(&w.regs[r as usize]);
                mask &= if negated { !holds } else { holds };
            }
            let (class, active) = (crate::exec::class(&inst.op), u64::from(mask.count_ones()));
            self.counters.warp[class as usize] += 1;
            self.counters.thread[class as usize] += active;
            match inst.op {
                Op::Bra { target, cond } => {
                    let taken = match cond {
                        None => mask,
                        Some((r, negated)) => {
                            self.check_defined(w, inst, mask);
                            let holds = lanes_of(&w.regs[r as usize]);
                            mask & if negated { !holds } else { holds }
                        }
                    };
                    let rest = w.mask & !taken;
                    if taken == 0 {
                        w.pc += 1;
                    } else if rest == 0 {
                        w.pc = target;
                    } else {
                        self.counters.divergences += 1;
                        let (low, high) = ((w.pc + 1, rest), (target, taken));
                        let (low, high) = if low.0 <= high.0 { (low, high) } else { (high, low) };
                        park(w, high.0, high.1);
                        (w.pc, w.mask) = low;
                    }
                }
                Op::Exit => {
                    w.mask &= !mask;
                    if w.mask != 0 {
                        w.pc += 1;
                    } else if !self.next_group(w) {
                        return Stop::Done;
                    }
                }
                Op::Barrier { id, shared, global } => {
                    if mask != w.lanes {
                        let missing = w.lanes & !mask;
                        self.violate(w, missing, ViolationKind::BarrierDivergence, None);
                        return Stop::Abort;
                    }
                    let pc = w.pc;
                    w.pc += 1;
                    return Stop::Barrier { id, pc, shared, global };
                }
                Op::Mbarrier { addr, op } => {
                    self.check_defined(w, inst, mask);
                    let ended = mask == 0 || self.mbarrier(w, &addr, &op, mask);
                    w.pc += 1;
                    if !ended {
                        return Stop::Stalled;
                    }
                }
                _ => {
                    if mask != 0 {
                        if !w.products.busy.is_empty() {
                            self.check_busy(w, inst, mask);
                        }
                        if program.track_registers {
                            self.check_defined(w, inst, mask);
                        }
                        self.execute(w, inst, mask);
                    }
                    w.pc += 1;
                }
            }
        }
    }

    fn next_group(&self, w: &mut Warp) -> bool {
        match w.waiting.pop() {
            Some((pc, mask)) => {
                (w.pc, w.mask) = (pc, mask);
                true
            }
            None => false,
        }
    }

    fn check_guard(&mut self, w: &mut Warp, r: Reg) {
        let mask = w.mask;
        if let Some(missing) = w.defined.get_mut(r as usize).map(|d| mask & !std::mem::replace(d, *d | mask))
            && missing != 0
        {
            self.violate(w, missing, ViolationKind::UninitialisedRegister, None);
        }
    }

    /// Reports reads of registers that were never written, once each.
    fn check_defined(&mut self, w: &mut Warp, inst: &crate::op::Inst, mask: u32) {
        if !self.program.track_registers || matches!(inst.op, Op::Mov { .. }) {
            return;
        }
        // Moves and selections pass on what is not defined; only the choice itself must be.
        if let Op::Sel { c, .. } = inst.op {
            self.check_guard(w, c);
            return;
        }
        let mut missing = 0;
        self.program.reads(inst, |r| {
            if let Some(d) = w.defined.get_mut(r as usize) {
                missing |= mask & !*d;
                *d |= mask;
            }
        });
        if missing != 0 {
            self.violate(w, missing, ViolationKind::UninitialisedRegister, None);
        }
    }
}

/// The clock of a program: how its lanes are ordered in groups, and whether one by one as well.
fn clock(program: &Program, options: &Options) -> Clock {
    let threads: u32 = program.workgroup.iter().product();
    let lanes = if threads < LANES as u32 { (1 << threads) - 1 } else { u32::MAX };
    let names_all = |r: Reg| program.constants.iter().any(|(c, v)| *c == r && v & lanes == lanes);
    let part = |op: &Op| matches!(op, Op::WarpBarrier { members: Some(r) } if !names_all(*r));
    let phase = |op: &Op| matches!(op, Op::Mbarrier { op: BarrierOp::Init { .. }, .. });
    let mut clock = Clock::new(if program.wgsl { options.subgroup_size } else { LANES as u32 });
    clock.has_phases = program.code.iter().any(|i| phase(&i.op));
    clock.has_parts = program.code.iter().any(|i| part(&i.op));
    clock
}

/// The tensor maps of a launch.
fn tensors(program: &Program, launch: &Launch<'_>) -> FxHashMap<usize, (usize, TensorMap)> {
    let place = |a: usize| program.segments.iter().position(|s| s.origin == crate::op::Origin::Argument(a));
    let maps = launch.arguments.iter().enumerate().filter_map(|(i, a)| match a {
        crate::Argument::TensorMap(t) => Some((place(i)?, (place(t.argument)?, t.clone()))),
        _ => None,
    });
    maps.collect()
}

/// Lets lanes wait at a place, with those that already wait there.
fn park(w: &mut Warp, pc: u32, mask: u32) {
    match w.waiting.binary_search_by(|(p, _)| pc.cmp(p)) {
        Ok(i) => w.waiting[i].1 |= mask,
        Err(i) => w.waiting.insert(i, (pc, mask)),
    }
}

/// Lanes whose word is not zero.
#[inline]
pub(crate) fn lanes_of(row: &Row) -> u32 {
    let mut mask = 0;
    for (i, v) in row.iter().enumerate() {
        mask |= u32::from(*v != 0) << i;
    }
    mask
}

/// The `i`-th of `n` in an order drawn from a seed: a Feistel network over the next power of four, with cycle walking.
fn permuted(i: u64, n: u64, seed: u64) -> u64 {
    let bits = (64 - n.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let half = (1u64 << bits) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> bits & half, x & half);
        for round in 0..4u64 {
            (left, right) = (right, left ^ (mix(seed ^ round << 56, right) & half));
        }
        x = left << bits | right;
        if x < n {
            return x;
        }
    }
}
