//! Expression programs: what a kernel's expression trees become.
//!
//! A [`Program`] evaluates expressions along one axis, its inner one, in chunks. What does not depend on that axis is
//! computed once a row ([`Program::begin`]) into scalar registers; the rest is a list of vector operations over register
//! buffers of [`CHUNK`] elements. What depends on sizes alone is computed once a launch.

use super::memory::{Run, View};
use super::ops::{self, Arg};
use frit_kernels::spec::{BinaryOp, UnaryOp};
use std::mem::take;

/// Elements of a register buffer.
pub const CHUNK: usize = 512;
/// Accumulators a kernel may have.
pub const ACCS: usize = 4;
/// Statistics a kernel may have.
pub const STATS: usize = 8;

/// A register.
pub type Reg = u16;

/// A float operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// One for the row.
    Row(Reg),
    /// One for each element.
    Each(Reg),
}

/// An integer or truth operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Int {
    /// One for the row.
    Row(Reg),
    /// `base + step·x` at coordinate x of the inner axis, both of the row.
    Run {
        /// At coordinate 0.
        base: Reg,
        /// From one coordinate to the next.
        step: Reg,
    },
    /// One for each element.
    Each(Reg),
}

/// A value of either type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A float.
    F(Float),
    /// An integer or a truth value.
    I(Int),
}

/// An operation on scalar registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOp {
    /// A number.
    Int(i64),
    /// a + b.
    Add(Reg, Reg),
    /// a·b + c.
    MulAdd(Reg, Reg, Reg),
    /// a·b.
    Mul(Reg, Reg),
    /// floor(a/b), or the remainder.
    Euclid(bool, Reg, Reg),
    /// The larger, or the smaller.
    Bound(bool, Reg, Reg),
    /// An I32 function.
    UnaryI(UnaryOp, Reg),
    /// An I32 function.
    BinaryI(BinaryOp, Reg, Reg),
    /// A comparison of floats.
    CompareF(BinaryOp, Reg, Reg),
    /// A choice of integers.
    SelectI(Reg, Reg, Reg),
    /// A float as integer, or as truth value.
    ToI(bool, Reg),
    /// An integer as truth value.
    ToBool(Reg),
    /// An integer of an argument.
    LoadI(u16, Reg),
    /// A float literal, by its bits.
    Float(u32),
    /// A float function.
    UnaryF(UnaryOp, Reg),
    /// A float function.
    BinaryF(BinaryOp, Reg, Reg),
    /// A choice of floats.
    SelectF(Reg, Reg, Reg),
    /// An integer as float.
    ToF(Reg),
    /// A float of an argument.
    LoadF(u16, Reg),
}

impl RowOp {
    /// Whether the result is a float.
    pub fn is_float(&self) -> bool {
        use RowOp::*;
        matches!(self, Float(_) | UnaryF(..) | BinaryF(..) | SelectF(..) | ToF(_) | LoadF(..))
    }
}

/// An operation on register buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VecOp {
    /// A float function.
    UnaryF(UnaryOp, Float),
    /// A float function.
    BinaryF(BinaryOp, Float, Float),
    /// A choice of floats.
    SelectF(Int, Float, Float),
    /// Integers as floats.
    ToF(Int),
    /// Floats of an argument.
    LoadF(u16, Int),
    /// An accumulator.
    Acc(u8),
    /// An I32 function.
    UnaryI(UnaryOp, Int),
    /// An I32 function.
    BinaryI(BinaryOp, Int, Int),
    /// A comparison of floats.
    CompareF(BinaryOp, Float, Float),
    /// A choice of integers.
    SelectI(Int, Int, Int),
    /// Floats as integers, or as truth values.
    ToI(bool, Float),
    /// Integers as truth values.
    ToBool(Int),
    /// Integers of an argument.
    LoadI(u16, Int),
    /// A run, written out: base and step.
    Iota(Reg, Reg),
    /// floor(a/b) of a run by a row value, or the remainder: base, step, divisor.
    EuclidRun(bool, Reg, Reg, Reg),
    /// floor(a/b), or the remainder.
    Euclid(bool, Int, Int),
    /// a·b + c, where a is each and b of the row.
    MulAdd(Reg, Reg, Int),
}

impl VecOp {
    /// Whether the result is a float.
    pub fn is_float(&self) -> bool {
        use VecOp::*;
        matches!(self, UnaryF(..) | BinaryF(..) | SelectF(..) | ToF(_) | LoadF(..) | Acc(_))
    }
}

/// A write at the end of a program.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// The argument.
    pub arg: u16,
    /// Where.
    pub index: Int,
    /// What.
    pub value: Value,
}

/// Expressions along one axis.
#[derive(Debug, Default)]
pub struct Program {
    /// Once a row: destination and operation.
    pub row: Vec<(Reg, RowOp)>,
    /// Once a chunk: destination and operation.
    pub each: Vec<(Reg, VecOp)>,
    /// The values asked for.
    pub outputs: Vec<Value>,
    /// The writes asked for.
    pub writes: Vec<Write>,
}

/// Registers of one task.
#[derive(Debug, Default)]
pub struct Frame {
    /// Integers of the row: axes first.
    pub int: Vec<i64>,
    /// Floats of the row: statistics first.
    pub float: Vec<f32>,
    each_f: Vec<Vec<f32>>,
    each_i: Vec<Vec<i32>>,
}

impl Frame {
    /// Makes room for programs that need that many buffers; says how many were made.
    pub fn reserve(&mut self, floats: usize, ints: usize) -> u64 {
        let made = floats.saturating_sub(self.each_f.len()) + ints.saturating_sub(self.each_i.len());
        self.each_f.resize_with(floats.max(self.each_f.len()), || vec![0.0; CHUNK]);
        self.each_i.resize_with(ints.max(self.each_i.len()), || vec![0; CHUNK]);
        made as u64
    }
    /// Starts a launch: the scalar registers as the launch's sizes left them.
    pub fn start(&mut self, ints: &[i64], floats: &[f32]) {
        self.int.clear();
        self.int.extend_from_slice(ints);
        self.float.clear();
        self.float.extend_from_slice(floats);
    }
    #[inline(always)]
    fn f(&self, a: Float, n: usize) -> Arg<'_, f32> {
        match a {
            Float::Row(r) => Arg::All(self.float[r as usize]),
            Float::Each(r) => Arg::Each(&self.each_f[r as usize][..n]),
        }
    }
    #[inline(always)]
    fn i(&self, a: Int, n: usize) -> Arg<'_, i32> {
        match a {
            Int::Row(r) => Arg::All(self.int[r as usize] as i32),
            Int::Run { base, .. } => Arg::All(self.int[base as usize] as i32),
            Int::Each(r) => Arg::Each(&self.each_i[r as usize][..n]),
        }
    }
    #[inline(always)]
    fn run(&self, base: Reg, step: Reg, x0: i64) -> Run {
        let step = self.int[step as usize];
        Run { start: self.int[base as usize].wrapping_add(step.wrapping_mul(x0)), step }
    }
}

/// An index left its argument.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The argument.
    pub arg: u16,
}

/// What a program reads besides its registers.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The kernel's arguments.
    pub views: &'a [View<'a>],
    /// The accumulators of the chunk.
    pub accs: [&'a [f32]; ACCS],
}

impl<'a> Env<'a> {
    /// Arguments and no accumulator.
    pub fn new(views: &'a [View<'a>]) -> Self {
        Env { views, accs: [&[]; ACCS] }
    }
}

fn row_op(op: RowOp, int: &[i64], float: &[f32], views: &[View<'_>]) -> Result<(i64, f32), Fault> {
    let i = |r: Reg| int[r as usize];
    let i32_of = |r: Reg| int[r as usize] as i32;
    let f = |r: Reg| float[r as usize];
    let int_of = |v: i32| (i64::from(v), 0.0);
    let (mut oi, mut of) = ([0i32], [0f32]);
    Ok(match op {
        RowOp::Int(v) => (v, 0.0),
        RowOp::Add(a, b) => (i(a).wrapping_add(i(b)), 0.0),
        RowOp::MulAdd(a, b, c) => (i(a).wrapping_mul(i(b)).wrapping_add(i(c)), 0.0),
        RowOp::Mul(a, b) => (i(a).wrapping_mul(i(b)), 0.0),
        RowOp::Euclid(_, _, b) if i(b) == 0 => (0, 0.0),
        RowOp::Euclid(false, a, b) => (i(a).wrapping_div_euclid(i(b)), 0.0),
        RowOp::Euclid(true, a, b) => (i(a).wrapping_rem_euclid(i(b)), 0.0),
        RowOp::Bound(true, a, b) => (i(a).max(i(b)), 0.0),
        RowOp::Bound(false, a, b) => (i(a).min(i(b)), 0.0),
        RowOp::UnaryI(op, a) => {
            ops::unary_i(op, Arg::All(i32_of(a)), &mut oi);
            int_of(oi[0])
        }
        RowOp::BinaryI(op, a, b) => {
            ops::binary_i(op, Arg::All(i32_of(a)), Arg::All(i32_of(b)), &mut oi);
            int_of(oi[0])
        }
        RowOp::CompareF(op, a, b) => {
            ops::compare_f(op, Arg::All(f(a)), Arg::All(f(b)), &mut oi);
            int_of(oi[0])
        }
        RowOp::SelectI(c, t, e) => (if i(c) != 0 { i(t) } else { i(e) }, 0.0),
        RowOp::ToI(truth, a) => {
            ops::to_i32(truth, Arg::All(f(a)), &mut oi);
            int_of(oi[0])
        }
        RowOp::ToBool(a) => (i64::from(i(a) != 0), 0.0),
        RowOp::LoadI(arg, at) => {
            let read = views.get(arg as usize).is_some_and(|v| v.read_i32(Run { start: i(at), step: 0 }, &mut oi));
            if !read {
                return Err(Fault { arg });
            }
            int_of(oi[0])
        }
        RowOp::Float(bits) => (0, f32::from_bits(bits)),
        RowOp::UnaryF(op, a) => {
            ops::unary_f(op, Arg::All(f(a)), &mut of);
            (0, of[0])
        }
        RowOp::BinaryF(op, a, b) => {
            ops::binary_f(op, Arg::All(f(a)), Arg::All(f(b)), &mut of);
            (0, of[0])
        }
        RowOp::SelectF(c, t, e) => (0, if i(c) != 0 { f(t) } else { f(e) }),
        RowOp::ToF(a) => (0, i32_of(a) as f32),
        RowOp::LoadF(arg, at) => {
            let read = views.get(arg as usize).is_some_and(|v| v.read_f32(Run { start: i(at), step: 0 }, &mut of));
            if !read {
                return Err(Fault { arg });
            }
            (0, of[0])
        }
    })
}

/// Runs scalar operations.
pub fn rows(list: &[(Reg, RowOp)], int: &mut [i64], float: &mut [f32], views: &[View<'_>]) -> Result<(), Fault> {
    for (d, op) in list {
        let (i, f) = row_op(*op, int, float, views)?;
        if op.is_float() {
            float[*d as usize] = f;
        } else {
            int[*d as usize] = i;
        }
    }
    Ok(())
}

impl Program {
    /// Starts a row: the axes in [`Frame::int`] hold its coordinates.
    pub fn begin(&self, frame: &mut Frame, views: &[View<'_>]) -> Result<(), Fault> {
        rows(&self.row, &mut frame.int, &mut frame.float, views)
    }
    /// Evaluates coordinates `[x0, x0 + n)` of the inner axis, n ≤ [`CHUNK`].
    pub fn run(&self, frame: &mut Frame, env: &Env<'_>, x0: i64, n: usize) -> Result<(), Fault> {
        struct Go<'a, 'b>(&'a Program, &'a mut Frame, &'a Env<'b>, i64, usize);
        impl pulp::NullaryFnOnce for Go<'_, '_> {
            type Output = Result<(), Fault>;
            #[inline(always)]
            fn call(self) -> Self::Output {
                let Go(p, frame, env, x0, n) = self;
                p.each.iter().try_for_each(|(d, op)| each(*d, *op, frame, env, x0, n.min(CHUNK)))
            }
        }
        if self.each.is_empty() { Ok(()) } else { pulp::Arch::new().dispatch(Go(self, frame, env, x0, n)) }
    }
    /// Copies output `k` of the chunk.
    pub fn copy_f32(&self, frame: &Frame, k: usize, to: &mut [f32]) {
        match self.outputs.get(k) {
            Some(Value::F(a)) => match frame.f(*a, to.len()) {
                Arg::Each(v) => to.copy_from_slice(v),
                Arg::All(v) => to.fill(v),
            },
            _ => to.fill(0.0),
        }
    }
    /// Output `k` of the chunk.
    pub fn f32<'f>(&self, frame: &'f Frame, k: usize, n: usize) -> Arg<'f, f32> {
        match self.outputs.get(k) {
            Some(Value::F(a)) => frame.f(*a, n),
            _ => Arg::All(0.0),
        }
    }
    /// Integer output `k` of the chunk beginning at `x0`.
    pub fn copy_i32(&self, frame: &Frame, k: usize, x0: i64, to: &mut [i32]) {
        match self.outputs.get(k) {
            Some(Value::I(Int::Run { base, step })) => {
                let run = frame.run(*base, *step, x0);
                ops::iota(run.start, run.step, to);
            }
            Some(Value::I(a)) => match frame.i(*a, to.len()) {
                Arg::Each(v) => to.copy_from_slice(v),
                Arg::All(v) => to.fill(v),
            },
            _ => to.fill(0),
        }
    }
    /// Evaluates `[x0, x0 + to.len())` of output 0 into `to`.
    pub fn fill(&self, frame: &mut Frame, env: &Env<'_>, x0: i64, to: &mut [f32]) -> Result<(), Fault> {
        if let ([(d, VecOp::LoadF(arg, Int::Run { base, step }))], [Value::F(Float::Each(r))]) =
            (self.each.as_slice(), self.outputs.as_slice())
            && d == r
        {
            let run = frame.run(*base, *step, x0);
            let read = env.views.get(*arg as usize).is_some_and(|v| v.read_f32(run, to));
            return if read { Ok(()) } else { Err(Fault { arg: *arg }) };
        }
        for (c, part) in to.chunks_mut(CHUNK).enumerate() {
            self.run(frame, env, x0 + (c * CHUNK) as i64, part.len())?;
            self.copy_f32(frame, 0, part);
        }
        Ok(())
    }
    /// Does the writes of the chunk `[x0, x0 + n)`.
    pub fn store(&self, frame: &Frame, views: &[View<'_>], x0: i64, n: usize) -> Result<(), Fault> {
        for w in &self.writes {
            let fault = Fault { arg: w.arg };
            let view = views.get(w.arg as usize).ok_or(fault)?;
            let ok = match w.value {
                Value::F(a) => match frame.f(a, n) {
                    Arg::Each(v) => put(w.index, frame, view, x0, n, |j| v[j].to_bits()),
                    Arg::All(v) => put(w.index, frame, view, x0, n, |_| v.to_bits()),
                },
                Value::I(Int::Run { base, step }) => {
                    let r = frame.run(base, step, x0);
                    let word = |j: usize| r.start.wrapping_add(r.step.wrapping_mul(j as i64)) as u32;
                    put(w.index, frame, view, x0, n, word)
                }
                Value::I(a) => match frame.i(a, n) {
                    Arg::Each(v) => put(w.index, frame, view, x0, n, |j| v[j] as u32),
                    Arg::All(v) => put(w.index, frame, view, x0, n, |_| v as u32),
                },
            };
            if !ok {
                return Err(fault);
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn put(index: Int, frame: &Frame, view: &View<'_>, x0: i64, n: usize, word: impl Fn(usize) -> u32) -> bool {
    match index {
        Int::Row(r) => view.write(Run { start: frame.int[r as usize], step: 0 }, n, word),
        Int::Run { base, step } => view.write(frame.run(base, step, x0), n, word),
        Int::Each(r) => view.len() <= i32::MAX as usize && view.scatter(&frame.each_i[r as usize][..n], word),
    }
}

#[inline(always)]
fn each(d: Reg, op: VecOp, fr: &mut Frame, env: &Env<'_>, x0: i64, n: usize) -> Result<(), Fault> {
    let d = d as usize;
    if op.is_float() {
        let mut out = take(&mut fr.each_f[d]);
        let done = float_op(op, fr, env, x0, &mut out[..n]);
        fr.each_f[d] = out;
        done
    } else {
        let mut out = take(&mut fr.each_i[d]);
        let done = int_op(op, fr, env, x0, &mut out[..n]);
        fr.each_i[d] = out;
        done
    }
}

#[inline(always)]
fn float_op(op: VecOp, fr: &Frame, env: &Env<'_>, x0: i64, d: &mut [f32]) -> Result<(), Fault> {
    let n = d.len();
    match op {
        VecOp::UnaryF(op, a) => ops::unary_f(op, fr.f(a, n), d),
        VecOp::BinaryF(op, a, b) => ops::binary_f(op, fr.f(a, n), fr.f(b, n), d),
        VecOp::SelectF(c, t, f) => ops::select(fr.i(c, n), fr.f(t, n), fr.f(f, n), d),
        VecOp::ToF(a) => ops::to_f32(fr.i(a, n), d),
        VecOp::Acc(j) => match env.accs.get(j as usize).and_then(|a| a.get(..n)) {
            Some(a) => d.copy_from_slice(a),
            None => d.fill(0.0),
        },
        VecOp::LoadF(arg, at) => {
            let read = env.views.get(arg as usize).is_some_and(|v| match at {
                Int::Row(r) => v.read_f32(Run { start: fr.int[r as usize], step: 0 }, d),
                Int::Run { base, step } => v.read_f32(fr.run(base, step, x0), d),
                Int::Each(r) => v.len() <= i32::MAX as usize && v.gather_f32(&fr.each_i[r as usize][..n], d),
            });
            return if read { Ok(()) } else { Err(Fault { arg }) };
        }
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn int_op(op: VecOp, fr: &Frame, env: &Env<'_>, x0: i64, d: &mut [i32]) -> Result<(), Fault> {
    let n = d.len();
    match op {
        VecOp::UnaryI(op, a) => ops::unary_i(op, fr.i(a, n), d),
        VecOp::BinaryI(op, a, b) => ops::binary_i(op, fr.i(a, n), fr.i(b, n), d),
        VecOp::CompareF(op, a, b) => ops::compare_f(op, fr.f(a, n), fr.f(b, n), d),
        VecOp::SelectI(c, t, f) => ops::select(fr.i(c, n), fr.i(t, n), fr.i(f, n), d),
        VecOp::ToI(truth, a) => ops::to_i32(truth, fr.f(a, n), d),
        VecOp::ToBool(a) => ops::to_bool(fr.i(a, n), d),
        VecOp::Iota(base, step) => {
            let r = fr.run(base, step, x0);
            ops::iota(r.start, r.step, d);
        }
        VecOp::EuclidRun(rem, base, step, by) => {
            let r = fr.run(base, step, x0);
            ops::euclid_run(rem, r.start, r.step, fr.int[by as usize], d);
        }
        VecOp::Euclid(rem, a, b) => ops::euclid(rem, fr.i(a, n), fr.i(b, n), d),
        VecOp::MulAdd(a, b, c) => {
            ops::mul_add_i(&fr.each_i[a as usize][..n], fr.int[b as usize] as i32, fr.i(c, n), d);
        }
        VecOp::LoadI(arg, at) => {
            let read = env.views.get(arg as usize).is_some_and(|v| match at {
                Int::Row(r) => v.read_i32(Run { start: fr.int[r as usize], step: 0 }, d),
                Int::Run { base, step } => v.read_i32(fr.run(base, step, x0), d),
                Int::Each(r) => v.len() <= i32::MAX as usize && v.gather_i32(&fr.each_i[r as usize][..n], d),
            });
            return if read { Ok(()) } else { Err(Fault { arg }) };
        }
        _ => {}
    }
    Ok(())
}
