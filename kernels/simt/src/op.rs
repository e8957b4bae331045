//! Micro-operations: the common form of both front ends.
//!
//! A register is a row of 32 words, one a lane of a warp; a 64-bit value takes two rows, low words first. A truth value
//! is a row of zeros and ones. Control flow is explicit: a program is a list of instructions with branch targets, laid
//! out so that code in which lanes meet again stands behind the code in which they part.

use crate::collective::Members;
use crate::mbarrier::BarrierOp;
use crate::tensor::TensorCopy;
use crate::warpgroup::Wgmma;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// One register of all lanes.
pub(crate) type Row = [u32; LANES];
/// Number of a register.
pub(crate) type Reg = u32;

/// Operations on one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Un {
    NegI, AbsI, SignI, BitNot, LogicNot, Clz, Ctz, Popc, Brev, FirstHighS, FirstHighU, FirstLow,
    Neg, Abs, Floor, Ceil, RoundEven, Trunc, Fract, Sign, Saturate,
    /// Correctly rounded.
    SqrtExact, RcpExact,
    /// Approximate, with the bounds of the language.
    Sqrt, Rsqrt, Rcp, Exp, Exp2, Log, Log2, Sin, Cos, Tanh,
    /// As accurate as the language leaves open; computed in f64.
    Tan, Asin, Acos, Atan, Sinh, Cosh, Asinh, Acosh, Atanh,
    /// Float to integer, saturating, NaN to 0; the float is rounded as named.
    TruncS, TruncU, NearS, NearU, FloorS, FloorU, CeilS, CeilU,
    SignedToF, UnsignedToF, IsNan, IsInf, NotZero,
    /// Low half of a word from and to f32.
    HalfToF, BfloatToF, FToHalf, FToHalfZero, FToBfloat, FToBfloatZero, FToTf32,
    SignByte, SignHalf,
    NegH2, AbsH2, NegB2, AbsB2, Exp2H2, TanhH2, TanhB2, Exp2B2,
}

/// Operations on two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Bin {
    AddI, SubI, MulI, MulHiS, MulHiU, Mul24S, Mul24U, DivS, DivU, RemS, RemU, MinS, MinU, MaxS, MaxU, And, Or, Xor,
    /// Shift amounts from 32 on leave the sign or nothing.
    Shl, ShrS, ShrU,
    Add, Sub, Mul, Rem, Min, Max, Pow, Atan2, CopySign, Ldexp,
    /// Correctly rounded, and approximate with the bound of the language.
    DivExact, Div,
    /// Two floats to halves of a word: the first operand goes to the low half.
    PackHalf, PackBfloat,
    /// Two halves of a word at once.
    AddH2, SubH2, MulH2, MinH2, MaxH2, AddB2, SubB2, MulB2, MinB2, MaxB2,
}

/// Operations on three rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Tri {
    Fma, FmaH2, FmaB2, MadI, MadHiS, MadHiU, DotS, DotU, DotSU, DotUS,
    /// Byte permutation: two words and the selector.
    Prmt, BfeS, BfeU, FunnelLeft, FunnelRight, SadU,
}

/// Operations on 64-bit values; `b` and `c` may be single rows, as named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Wide {
    Add, Sub, Mul, DivU, RemU, DivS, RemS, And, Or, Xor, MinS, MinU, MaxS, MaxU, Not, Neg,
    /// The amount is a single row.
    Shl, ShrS, ShrU,
    /// Operands are single rows.
    MulS, MulU, FromS, FromU, Pack,
    /// `a * b + c` of single rows `a`, `b` and a pair `c`.
    MadS, MadU,
    /// `a * b + c` of pairs.
    Mad,
}

/// Comparisons. With NaN only the `u` forms hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Rel { Eq, Ne, Lt, Le, Gt, Ge, Equ, Neu, Ltu, Leu, Gtu, Geu, Num, Nan }

/// How a comparison reads its operands; the last two are pairs of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Num {
    F,
    Half,
    Bfloat,
    S,
    U,
    S64,
    U64,
}

/// Values the machine supplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Local(u8),
    Group(u8),
    Global(u8),
    GroupSize(u8),
    Groups(u8),
    LocalIndex,
    Lane,
    Warp,
    Warps,
    /// Lanes of a subgroup; lane in it; number of the subgroup; subgroups of a workgroup.
    SubgroupSize,
    SubgroupLane,
    Subgroup,
    Subgroups,
    LanesBelow,
    LanesUpTo,
    LanesAbove,
    LanesFrom,
    LaneBit,
}

/// Size and sign of a memory element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elem {
    U8,
    S8,
    U16,
    S16,
    B32,
    /// A pair of rows.
    B64,
}

impl Elem {
    /// Size in bytes.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Elem::U8 | Elem::S8 => 1,
            Elem::U16 | Elem::S16 => 2,
            Elem::B32 => 4,
            Elem::B64 => 8,
        }
    }
    /// Registers that hold one.
    pub(crate) fn rows(self) -> u32 {
        if self == Elem::B64 { 2 } else { 1 }
    }
}

/// Which memory an address in a register pair means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
    Local,
    /// Decided by the address.
    Generic,
}

/// The address of an access.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Addr {
    /// `index * scale + imm` in one segment.
    In { segment: u32, index: Option<Reg>, scale: u32, imm: u32 },
    /// A 32-bit offset in shared or local memory.
    Short { base: Reg, imm: i64, space: Space },
    /// A 64-bit address.
    Long { base: Reg, imm: i64, space: Space },
}

/// A load or a store of consecutive elements by every lane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Access {
    pub addr: Addr,
    pub elem: Elem,
    /// Elements.
    pub count: u8,
    /// First register.
    pub reg: Reg,
    /// Required alignment in bytes.
    pub align: u8,
    /// Whether it may meet other atomic accesses.
    pub atomic: bool,
    /// Whether it reads what no thread of the launch may write.
    pub constant: bool,
}

/// Read-modify-write operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Rmw { AddI, SubI, AddF, MinS, MinU, MaxS, MaxU, And, Or, Xor, Exchange, CompareExchange, IncU, DecU }

/// An atomic operation. `old` is absent where the result is not used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Atomic {
    pub op: Rmw,
    pub addr: Addr,
    pub elem: Elem,
    pub old: Option<Reg>,
    pub value: Reg,
    pub compare: Option<Reg>,
}

/// Exchanges between lanes. `width` is the size of the group, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Index,
    Up,
    Down,
    Xor,
    First,
}

/// Reductions over the active lanes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Reduce { AddI, MulI, MinS, MinU, MaxS, MaxU, And, Or, Xor, AddF, MulF, MinF, MaxF, All, Any, Ballot, Uniform }

/// Which part of a group contributes to a lane's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    Whole,
    UpTo,
    Below,
}

/// Element types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaElem {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

/// One `mma.sync`: fragments start at the registers given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mma {
    pub a: MmaElem,
    pub b: MmaElem,
    pub k: u8,
    /// Accumulators are f16 pairs rather than f32 or s32.
    pub half_out: bool,
    /// Registers of the fragments, kept in [`Program::lists`].
    pub regs: u32,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    Mov {
        d: Reg,
        a: Reg,
    },
    Special {
        d: Reg,
        s: Special,
    },
    Un {
        op: Un,
        d: Reg,
        a: Reg,
    },
    Bin {
        op: Bin,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Tri {
        op: Tri,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Wide {
        op: Wide,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Cmp {
        rel: Rel,
        num: Num,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    /// `c != 0 ? a : b`
    Sel {
        d: Reg,
        c: Reg,
        a: Reg,
        b: Reg,
    },
    /// `d = base[index * stride + part]`, a row chosen by each lane; `index < len`.
    Pick {
        d: Reg,
        base: Reg,
        index: Reg,
        stride: u32,
        len: u32,
    },
    /// `base[index * stride] = a`.
    Put {
        base: Reg,
        index: Reg,
        stride: u32,
        len: u32,
        a: Reg,
    },
    /// Reports an index that is not below `len`, and makes it 0.
    Bound {
        d: Reg,
        index: Reg,
        len: Reg,
    },
    /// Length of a segment: `(bytes - before) / stride`.
    Length {
        d: Reg,
        segment: u32,
        before: u32,
        stride: u32,
    },
    Load(Access),
    Store(Access),
    Atomic(Atomic),
    Shuffle {
        mode: Shuffle,
        d: Reg,
        a: Reg,
        b: Reg,
        width: u8,
        clamp: Option<Reg>,
        valid: Option<Reg>,
        members: Members,
    },
    Reduce {
        op: Reduce,
        scan: Scan,
        d: Reg,
        a: Reg,
        width: u8,
        members: Members,
    },
    /// Jumps where `cond` (or its negation) holds.
    Bra {
        target: u32,
        cond: Option<(Reg, bool)>,
    },
    /// All threads of the workgroup meet; which memories are ordered.
    Barrier {
        id: u8,
        shared: bool,
        global: bool,
    },
    /// The lanes of a warp meet, with memory order among them.
    WarpBarrier {
        members: Option<Reg>,
    },
    /// Orders nothing the checks rely on.
    Fence,
    /// Stores of the thread become visible to asynchronous reads of shared memory.
    ProxyFence,
    /// Barriers that the thread initialised become visible to asynchronous copies.
    BarrierFence,
    Exit,
    Ldmatrix {
        reg: Reg,
        addr: Reg,
        long: bool,
        imm: i64,
        tiles: u8,
        transposed: bool,
    },
    Mma(Mma),
    /// Copies `bytes` from global to shared memory; the part from `from` bytes on is zero.
    AsyncCopy {
        to: Addr,
        source: Addr,
        bytes: u8,
        from: Option<Reg>,
    },
    AsyncCommit,
    /// Something done to an `mbarrier`; a test that fails lets other warps run.
    Mbarrier {
        addr: Addr,
        op: BarrierOp,
    },
    TensorCopy(TensorCopy),
    /// Waits for the launch before this one.
    LaunchWait,
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        pending: u32,
    },
    Wgmma(Wgmma),
    /// Waits until at most so many groups are pending; `u32::MAX` waits for copies not in a group as well.
    AsyncWait {
        pending: u32,
    },
}

/// An operation with its place in the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Inst {
    pub op: Op,
    /// Line of the text, from 1.
    pub line: u32,
    /// Lanes that run it: where the row is nonzero, or zero if negated.
    pub guard: Option<(Reg, bool)>,
    /// Denormal operands and results become zero.
    pub ftz: bool,
}

/// Where a segment of memory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The argument of a launch at that position.
    Argument(usize),
    /// Workgroup memory, fresh for each workgroup.
    Workgroup,
    /// Memory of each thread.
    Local,
}

/// A piece of memory a program names.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub name: String,
    pub origin: Origin,
    /// Size in bytes of workgroup memory, and of one thread's local memory.
    pub bytes: u32,
    pub writable: bool,
    /// Byte ranges of workgroup memory that belong to no variable.
    pub holes: Vec<(u32, u32)>,
}

/// A kernel in micro-operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub code: Vec<Inst>,
    pub segments: Vec<Segment>,
    pub registers: u32,
    /// Registers with their value in every lane, set before the first instruction.
    pub constants: Vec<(Reg, u32)>,
    /// Registers that hold the address of a segment, as pairs.
    pub addresses: Vec<(Reg, u32)>,
    /// Registers set from a word of a parameter: (register, argument, byte offset).
    pub parameters: Vec<(Reg, usize, u32)>,
    pub workgroup: [u32; 3],
    /// Register lists of operations with many operands.
    pub lists: Vec<Vec<Reg>>,
    /// Whether a register may be read before it is written, so that this is checked.
    pub track_registers: bool,
    /// Whether every warp must meet a barrier at the same instruction.
    pub one_place_barriers: bool,
    /// Whether it may start while the launch before it runs, and waits for that itself.
    pub overlaps: bool,
    /// Whether approximate functions follow WGSL's bounds rather than PTX's.
    pub wgsl: bool,
}

impl Program {
    /// Calls `f` with every register that an instruction reads.
    pub(crate) fn reads(&self, inst: &Inst, mut f: impl FnMut(Reg)) {
        if let Some((r, _)) = inst.guard {
            f(r);
        }
        let addr = |a: &Addr, f: &mut dyn FnMut(Reg)| match a {
            Addr::In { index, .. } => index.iter().for_each(|r| f(*r)),
            Addr::Short { base, .. } => f(*base),
            Addr::Long { base, .. } => [*base, *base + 1].into_iter().for_each(f),
        };
        match &inst.op {
            Op::Mov { a, .. } | Op::Un { a, .. } => f(*a),
            Op::Bin { a, b, .. } => [*a, *b].into_iter().for_each(f),
            Op::Tri { a, b, c, .. } => [*a, *b, *c].into_iter().for_each(f),
            Op::Wide { op, a, b, c, .. } => {
                let pair = |r: Reg| [r, r + 1];
                match op {
                    Wide::MulS | Wide::MulU | Wide::Pack => [*a, *b].into_iter().for_each(f),
                    Wide::FromS | Wide::FromU => f(*a),
                    Wide::MadS | Wide::MadU => [*a, *b, *c, *c + 1].into_iter().for_each(f),
                    Wide::Not | Wide::Neg => pair(*a).into_iter().for_each(f),
                    Wide::Shl | Wide::ShrS | Wide::ShrU => [*a, *a + 1, *b].into_iter().for_each(f),
                    Wide::Mad => [*a, *b, *c].into_iter().flat_map(pair).for_each(f),
                    _ => [*a, *b].into_iter().flat_map(pair).for_each(f),
                }
            }
            Op::Cmp { num, a, b, .. } => {
                let rows = u32::from(matches!(num, Num::S64 | Num::U64)) + 1;
                (*a..*a + rows).chain(*b..*b + rows).for_each(f);
            }
            Op::Sel { c, a, b, .. } => [*c, *a, *b].into_iter().for_each(f),
            Op::Pick { base, index, stride, len, .. } => {
                f(*index);
                (0..*len).for_each(|i| f(base + i * stride));
            }
            Op::Put { index, a, .. } => [*index, *a].into_iter().for_each(f),
            Op::Bound { index, len, .. } => [*index, *len].into_iter().for_each(f),
            Op::Load(x) => addr(&x.addr, &mut f),
            Op::Store(x) => {
                addr(&x.addr, &mut f);
                (x.reg..x.reg + u32::from(x.count) * x.elem.rows()).for_each(f);
            }
            Op::Atomic(x) => {
                addr(&x.addr, &mut f);
                for r in [Some(x.value), x.compare].into_iter().flatten() {
                    (r..r + x.elem.rows()).for_each(&mut f);
                }
            }
            Op::Shuffle { a, b, clamp, members, .. } => {
                [Some(*a), Some(*b), *clamp, members.named()].into_iter().flatten().for_each(f);
            }
            Op::Reduce { a, members, .. } => [Some(*a), members.named()].into_iter().flatten().for_each(f),
            Op::Bra { cond, .. } => cond.iter().for_each(|c| f(c.0)),
            Op::WarpBarrier { members } => members.iter().for_each(|r| f(*r)),
            Op::Ldmatrix { addr, long, .. } => (*addr..=*addr + u32::from(*long)).for_each(f),
            Op::Mma(m) => {
                let list = self.lists.get(m.regs as usize).map_or(&[] as &[Reg], Vec::as_slice);
                let outputs = if m.half_out { 2 } else { 4 };
                list.iter().skip(outputs).for_each(|r| f(*r));
            }
            Op::AsyncCopy { to, source, from, .. } => {
                addr(to, &mut f);
                addr(source, &mut f);
                from.iter().for_each(|r| f(*r));
            }
            Op::Mbarrier { addr: at, op } => {
                addr(at, &mut f);
                let all = match op {
                    BarrierOp::Init { count } => [Some(*count), None],
                    BarrierOp::Invalidate => [None; 2],
                    BarrierOp::Expect { bytes } => [Some(*bytes), None],
                    BarrierOp::Arrive { count, bytes, .. } => [*count, *bytes],
                    BarrierOp::Test { parity, state, .. } => [*parity, *state],
                };
                all.into_iter().flatten().for_each(f);
            }
            Op::TensorCopy(x) => {
                addr(&x.to, &mut f);
                addr(&x.barrier, &mut f);
                [x.map, x.map + 1, x.from[0], x.from[1]].into_iter().for_each(f);
            }
            Op::Wgmma(x) => [x.a, x.a + 1, x.b, x.b + 1, x.add].into_iter().for_each(f),
            Op::LaunchWait
            | Op::WgmmaFence
            | Op::WgmmaCommit
            | Op::WgmmaWait { .. }
            | Op::Special { .. }
            | Op::Length { .. }
            | Op::Barrier { .. }
            | Op::Fence
            | Op::ProxyFence
            | Op::BarrierFence
            | Op::Exit
            | Op::AsyncCommit
            | Op::AsyncWait { .. } => {}
        }
    }

    /// Calls `f` with every register that an instruction writes.
    pub(crate) fn writes(&self, inst: &Inst, mut f: impl FnMut(Reg)) {
        match &inst.op {
            Op::Mov { d, .. }
            | Op::Special { d, .. }
            | Op::Un { d, .. }
            | Op::Bin { d, .. }
            | Op::Tri { d, .. }
            | Op::Cmp { d, .. }
            | Op::Sel { d, .. }
            | Op::Pick { d, .. }
            | Op::Bound { d, .. }
            | Op::Length { d, .. }
            | Op::Reduce { d, .. } => f(*d),
            Op::Wide { d, .. } => [*d, *d + 1].into_iter().for_each(f),
            Op::Put { base, stride, len, .. } => (0..*len).for_each(|i| f(base + i * stride)),
            Op::Load(x) => (x.reg..x.reg + u32::from(x.count) * x.elem.rows()).for_each(f),
            Op::Atomic(x) => x.old.iter().for_each(|r| (*r..*r + x.elem.rows()).for_each(&mut f)),
            Op::Shuffle { d, valid, .. } => [Some(*d), *valid].into_iter().flatten().for_each(f),
            Op::Ldmatrix { reg, tiles, .. } => (*reg..*reg + u32::from(*tiles)).for_each(f),
            Op::Mma(m) => {
                let list = self.lists.get(m.regs as usize).map_or(&[] as &[Reg], Vec::as_slice);
                let outputs = if m.half_out { 2 } else { 4 };
                list.iter().take(outputs).for_each(|r| f(*r));
            }
            Op::Mbarrier { op: BarrierOp::Test { d, .. }, .. } => f(*d),
            Op::Mbarrier { op: BarrierOp::Arrive { state: Some(d), .. }, .. } => [*d, *d + 1].into_iter().for_each(f),
            _ => {}
        }
    }

    /// Calls `f` with every register that a product of a warpgroup accumulates in, over several instructions.
    pub(crate) fn accumulates(&self, inst: &Inst, f: impl FnMut(Reg)) {
        if let Op::Wgmma(x) = &inst.op {
            self.lists.get(x.regs as usize).into_iter().flatten().copied().for_each(f);
        }
    }
}
