//! Executes one operation for the active lanes of a warp.

use crate::counters::Class;
use crate::machine::{Machine, Warp};
use crate::math::{self, Result as Form};
use crate::op::{Bin, Inst, LANES, Op, Reg, Row, Special, Un};
use crate::report::ViolationKind;

/// The class an operation counts in.
pub(crate) fn class(op: &Op) -> Class {
    match op {
        Op::Mov { .. } | Op::Special { .. } | Op::Sel { .. } | Op::Pick { .. } | Op::Put { .. } | Op::Length { .. } => {
            Class::Move
        }
        Op::Un { op, .. } => match op {
            Un::NegI | Un::AbsI | Un::SignI | Un::BitNot | Un::LogicNot | Un::NotZero => Class::Integer,
            Un::Clz | Un::Ctz | Un::Popc | Un::Brev | Un::FirstHighS | Un::FirstHighU | Un::FirstLow => Class::Integer,
            Un::Neg | Un::Abs | Un::Floor | Un::Ceil | Un::RoundEven | Un::Trunc | Un::Fract | Un::Sign => Class::Float,
            Un::Saturate | Un::IsNan | Un::IsInf | Un::NegH2 | Un::AbsH2 | Un::NegB2 | Un::AbsB2 => Class::Float,
            Un::TruncS | Un::TruncU | Un::NearS | Un::NearU | Un::FloorS | Un::FloorU | Un::CeilS | Un::CeilU => {
                Class::Convert
            }
            Un::SignedToF | Un::UnsignedToF | Un::HalfToF | Un::BfloatToF | Un::FToHalf | Un::FToHalfZero => {
                Class::Convert
            }
            Un::FToBfloat | Un::FToBfloatZero | Un::FToTf32 | Un::SignByte | Un::SignHalf => Class::Convert,
            _ => Class::Function,
        },
        Op::Bin { op, .. } => match op {
            Bin::PackHalf | Bin::PackBfloat => Class::Convert,
            Bin::Pow | Bin::Atan2 | Bin::Div | Bin::DivExact | Bin::Rem => Class::Function,
            Bin::CopySign | Bin::Ldexp => Class::Float,
            _ if math::bin_form(*op).0 != Form::Other => Class::Float,
            _ => Class::Integer,
        },
        Op::Tri { op, .. } if math::tri_form(*op) != Form::Other => Class::Float,
        Op::Tri { .. } | Op::Wide { .. } | Op::Cmp { .. } | Op::Bound { .. } => Class::Integer,
        Op::Load(_) => Class::Load,
        Op::Store(_) => Class::Store,
        Op::Atomic(_) => Class::Atomic,
        Op::Shuffle { .. } | Op::Reduce { .. } => Class::Collective,
        Op::Bra { .. } | Op::Exit => Class::Branch,
        Op::Barrier { .. }
        | Op::WarpBarrier { .. }
        | Op::Fence
        | Op::ProxyFence
        | Op::BarrierFence
        | Op::LaunchWait => Class::Barrier,
        Op::Ldmatrix { .. } | Op::Mma(_) | Op::Wgmma(_) => Class::Matrix,
        Op::AsyncCopy { .. } | Op::AsyncCommit | Op::AsyncWait { .. } => Class::Async,
        Op::Mbarrier { .. } | Op::TensorCopy(_) => Class::Async,
        Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait { .. } => Class::Async,
    }
}

impl Warp {
    /// A register.
    #[inline]
    pub(crate) fn row(&self, r: Reg) -> &Row {
        &self.regs[r as usize]
    }
    /// Changes a register in the lanes of `mask`.
    #[inline]
    pub(crate) fn set(&mut self, d: Reg, value: &Row, mask: u32) {
        let row = &mut self.regs[d as usize];
        if mask == u32::MAX {
            *row = *value;
        } else {
            for i in 0..LANES {
                let keep = (mask >> i & 1).wrapping_sub(1);
                row[i] = row[i] & keep | value[i] & !keep;
            }
        }
        if let Some(w) = self.defined.get_mut(d as usize) {
            *w |= mask;
        }
    }
}

/// Lanes in which `d` is infinite or NaN.
fn infinite(form: Form, d: &Row) -> u32 {
    let mut bad = 0;
    if form == Form::F {
        let mut any = 0;
        for v in d {
            any |= u32::from(v & 0x7f80_0000 == 0x7f80_0000);
        }
        if any == 0 {
            return 0;
        }
    }
    for (i, v) in d.iter().enumerate() {
        bad |= u32::from(!form.finite(*v)) << i;
    }
    bad
}

impl Machine<'_> {
    /// Runs `inst` in the lanes of `mask`, which is not empty.
    pub(crate) fn execute(&mut self, w: &mut Warp, inst: &Inst, mask: u32) {
        let mut arith = self.arith;
        arith.ftz |= inst.ftz;
        match inst.op {
            Op::Mov { d, a } => {
                let value = *w.row(a);
                self.pass_defined(w, d, &[a], mask);
                w.set_value(d, &value, mask);
            }
            Op::Special { d, s } => {
                let value = self.special(w, s);
                w.set(d, &value, mask);
            }
            Op::Un { op, d, a } => {
                let value = arith.un(op, w.row(a));
                let (out, inp) = math::un_form(op);
                if out != Form::Other {
                    self.check_finite(w, out, &value, inp, &[a], mask);
                }
                w.set(d, &value, mask);
            }
            Op::Bin { op, d, a, b } => {
                if matches!(op, Bin::DivS | Bin::DivU | Bin::RemS | Bin::RemU) {
                    self.check_division(w, op, a, b, mask);
                }
                let value = arith.bin(op, w.row(a), w.row(b));
                let (out, inp) = math::bin_form(op);
                if out != Form::Other {
                    let operands = [a, b];
                    let count = if op == Bin::Ldexp { 1 } else { 2 };
                    self.check_finite(w, out, &value, inp, &operands[..count], mask);
                }
                w.set(d, &value, mask);
            }
            Op::Tri { op, d, a, b, c } => {
                let value = arith.tri(op, w.row(a), w.row(b), w.row(c));
                let form = math::tri_form(op);
                if form != Form::Other {
                    self.check_finite(w, form, &value, form, &[a, b, c], mask);
                }
                w.set(d, &value, mask);
            }
            Op::Wide { op, d, a, b, c } => {
                let pair = |r: Reg| (w.row(r), w.regs.get(r as usize + 1).unwrap_or(w.row(r)));
                let (low, high) = math::wide_op(op, pair(a), pair(b), pair(c));
                w.set(d, &low, mask);
                w.set(d + 1, &high, mask);
            }
            Op::Cmp { rel, num, d, a, b } => {
                let pair = |r: Reg| (w.row(r), w.regs.get(r as usize + 1).unwrap_or(w.row(r)));
                let value = math::compare(rel, num, arith.ftz, pair(a), pair(b));
                w.set(d, &value, mask);
            }
            Op::Sel { d, c, a, b } => {
                let (c, a_row, b_row) = (*w.row(c), *w.row(a), *w.row(b));
                let mut value = [0; LANES];
                for i in 0..LANES {
                    value[i] = if c[i] != 0 { a_row[i] } else { b_row[i] };
                }
                if !w.defined.is_empty() {
                    let taken = crate::machine::lanes_of(&c);
                    let known = w.defined[a as usize] & taken | w.defined[b as usize] & !taken;
                    w.defined[d as usize] = w.defined[d as usize] & !mask | known & mask;
                }
                w.set_value(d, &value, mask);
            }
            Op::Pick { d, base, index, stride, len } => self.pick(w, (d, base, index, stride, len), mask),
            Op::Put { base, index, stride, len, a } => self.put(w, (base, index, stride, len, a), mask),
            Op::Bound { d, index, len } => {
                let (mut value, len) = (*w.row(index), *w.row(len));
                let mut bad = 0;
                for i in 0..LANES {
                    if value[i] >= len[i] {
                        bad |= 1 << i & mask;
                    }
                }
                if bad != 0 {
                    let lane = bad.trailing_zeros() as usize;
                    let kind = ViolationKind::IndexOutOfBounds { index: value[lane], len: len[lane] };
                    self.violate(w, bad, kind, None);
                    for (i, v) in value.iter_mut().enumerate() {
                        *v = if bad >> i & 1 == 1 { 0 } else { *v };
                    }
                }
                w.set(d, &value, mask);
            }
            Op::Length { d, segment, before, stride } => {
                let bytes = self.memory.segments.get(segment as usize).map_or(0, |s| s.bytes);
                let n = bytes.saturating_sub(u64::from(before)) / u64::from(stride.max(1));
                w.set(d, &[u32::try_from(n).unwrap_or(u32::MAX); LANES], mask);
            }
            Op::Load(x) => self.load(w, &x, mask),
            Op::Store(x) => self.store(w, &x, mask),
            Op::Atomic(x) => self.atomic(w, &x, mask),
            Op::Shuffle { mode, d, a, b, width, clamp, valid, members } => {
                self.shuffle(w, mode, (d, a, b), width, (clamp, valid, members), mask);
            }
            Op::Reduce { op, scan, d, a, width, members } => self.reduce(w, op, scan, (d, a), width, members, mask),
            Op::WarpBarrier { members } => self.warp_barrier(w, members, mask),
            Op::Ldmatrix { reg, addr, long, imm, tiles, transposed } => {
                self.ldmatrix(w, reg, (addr, long, imm), tiles, transposed, mask);
            }
            Op::Mma(m) => self.mma(w, &m, mask),
            Op::AsyncCopy { to, source, bytes, from } => self.async_copy(w, (to, source), bytes, from, mask),
            Op::AsyncCommit => self.async_commit(w, mask),
            Op::AsyncWait { pending } => self.async_wait(w, pending, mask),
            Op::ProxyFence => {
                let (first, now) = (w.index * LANES as u32, self.clock.now);
                for lane in (0..LANES as u32).filter(|i| mask >> i & 1 == 1) {
                    self.memory.segments.iter_mut().for_each(|s| s.watch.publish(first + lane, now));
                    self.barriers.publish(first + lane);
                }
            }
            Op::BarrierFence => {
                let first = w.index * LANES as u32;
                for lane in (0..LANES as u32).filter(|i| mask >> i & 1 == 1) {
                    self.barriers.publish(first + lane);
                }
            }
            Op::TensorCopy(x) => self.tensor_copy(w, &x, mask),
            Op::LaunchWait => w.waited |= mask,
            Op::WgmmaFence => self.wgmma_fence(w),
            Op::WgmmaCommit => self.wgmma_commit(w),
            Op::WgmmaWait { pending } => self.wgmma_wait(w, pending),
            Op::Wgmma(x) => self.wgmma(w, &x, mask),
            Op::Mbarrier { .. } | Op::Fence | Op::Bra { .. } | Op::Barrier { .. } | Op::Exit => {}
        }
    }

    fn pass_defined(&self, w: &mut Warp, d: Reg, from: &[Reg], mask: u32) {
        if w.defined.is_empty() {
            return;
        }
        let known = from.iter().fold(u32::MAX, |k, r| k & w.defined[*r as usize]);
        w.defined[d as usize] = w.defined[d as usize] & !mask | known & mask;
    }

    #[inline]
    fn check_finite(&mut self, w: &Warp, out: Form, value: &Row, inp: Form, operands: &[Reg], mask: u32) {
        if !self.options.finite {
            return;
        }
        let mut bad = infinite(out, value) & mask;
        if bad == 0 {
            return;
        }
        for r in operands {
            bad &= !infinite(inp, w.row(*r));
        }
        if bad != 0 {
            self.violate(w, bad, ViolationKind::NotFinite, None);
        }
    }

    fn check_division(&mut self, w: &Warp, op: Bin, a: Reg, b: Reg, mask: u32) {
        let (a, b) = (w.row(a), w.row(b));
        let mut bad = 0;
        for i in 0..LANES {
            let overflow = matches!(op, Bin::DivS | Bin::RemS) && a[i] == 1 << 31 && b[i] == u32::MAX;
            bad |= u32::from(b[i] == 0 || overflow) << i;
        }
        if bad & mask != 0 {
            self.violate(w, bad & mask, ViolationKind::IntegerDivision, None);
        }
    }

    fn pick(&mut self, w: &mut Warp, (d, base, index, stride, len): (Reg, Reg, Reg, u32, u32), mask: u32) {
        let index = *w.row(index);
        let (mut value, mut bad) = ([0; LANES], 0);
        for i in 0..LANES {
            if index[i] < len {
                value[i] = w.row(base + index[i] * stride)[i];
            } else {
                bad |= 1 << i & mask;
            }
        }
        self.bad_index(w, &index, len, bad);
        w.set(d, &value, mask);
    }

    fn put(&mut self, w: &mut Warp, (base, index, stride, len, a): (Reg, Reg, u32, u32, Reg), mask: u32) {
        let (index, value) = (*w.row(index), *w.row(a));
        let mut bad = 0;
        for i in (0..LANES).filter(|i| mask >> i & 1 == 1) {
            if index[i] < len {
                w.regs[(base + index[i] * stride) as usize][i] = value[i];
            } else {
                bad |= 1 << i;
            }
        }
        self.bad_index(w, &index, len, bad);
    }

    fn bad_index(&mut self, w: &Warp, index: &Row, len: u32, bad: u32) {
        if bad != 0 {
            let index = index[bad.trailing_zeros() as usize];
            self.violate(w, bad, ViolationKind::IndexOutOfBounds { index, len }, None);
        }
    }

    fn special(&self, w: &Warp, s: Special) -> Row {
        let first = w.index * LANES as u32;
        let size = self.options.subgroup_size;
        let [sx, sy, sz] = self.program.workgroup;
        let axis = |v: [u32; 3], k: u8| v[usize::from(k).min(2)];
        let mut row = [0; LANES];
        for (i, v) in row.iter_mut().enumerate() {
            let lane = i as u32;
            let t = first + lane;
            let local = [t % sx, t / sx % sy, t / sx / sy];
            *v = match s {
                Special::Local(k) => axis(local, k),
                Special::Group(k) => axis(self.group, k),
                Special::Global(k) => axis(self.group, k).wrapping_mul(axis([sx, sy, sz], k)) + axis(local, k),
                Special::GroupSize(k) => axis([sx, sy, sz], k),
                Special::Groups(k) => axis(self.grid, k),
                Special::LocalIndex => t,
                Special::Lane => lane,
                Special::Warp => w.index,
                Special::Warps => self.threads.div_ceil(LANES as u32),
                Special::SubgroupSize => size,
                Special::SubgroupLane => t % size,
                Special::Subgroup => t / size,
                Special::Subgroups => self.threads.div_ceil(size),
                Special::LaneBit => 1 << lane,
                Special::LanesBelow => (1 << lane) - 1,
                Special::LanesUpTo => u32::MAX >> (31 - lane),
                Special::LanesFrom => u32::MAX << lane,
                Special::LanesAbove => (u32::MAX << lane) & !(1 << lane),
            };
        }
        row
    }
}

impl Warp {
    /// Changes a register without touching what is known of it.
    #[inline]
    pub(crate) fn set_value(&mut self, d: Reg, value: &Row, mask: u32) {
        let known = self.defined.get(d as usize).copied();
        self.set(d, value, mask);
        if let (Some(k), Some(w)) = (known, self.defined.get_mut(d as usize)) {
            *w = k;
        }
    }
}
