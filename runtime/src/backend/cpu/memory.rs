//! What kernels read and write: views of weights, arenas and cache for the time of one launch.
//!
//! A buffer that a launch writes is seen by all its tasks as atomic words. Relaxed loads and stores of a word cost what
//! plain ones do, an input that shares the output's storage reads through the same view, and a plan whose tasks write
//! the same element twice is wrong but harmless.

use super::count::Counted;
use super::dequant;
use super::math::{bf16_to_f32, half_to_f32};
use frit_kernels::dtype::Storage;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Constant data in the form it is computed with.
#[derive(Debug)]
pub enum Stored {
    /// Floats.
    F32(Vec<f32>),
    /// Integers and truth values.
    I32(Vec<i32>),
    /// Halves or bfloats, by their bits.
    Half(Storage, Vec<u16>),
    /// Blocks as model files store them.
    Blocks(Storage, Vec<u8>),
}

impl Stored {
    /// Bytes held.
    pub fn size_bytes(&self) -> u64 {
        (match self {
            Stored::F32(v) => v.len() * 4,
            Stored::I32(v) => v.len() * 4,
            Stored::Half(_, v) => v.len() * 2,
            Stored::Blocks(_, v) => v.len(),
        }) as u64
    }
    /// How the elements are stored.
    pub fn storage(&self) -> Storage {
        match self {
            Stored::F32(_) => Storage::F32,
            Stored::I32(_) => Storage::I32,
            Stored::Half(s, _) | Stored::Blocks(s, _) => *s,
        }
    }
    /// The view of it.
    pub fn view(&self) -> View<'_> {
        match self {
            Stored::F32(v) => View::F32(v),
            Stored::I32(v) => View::I32(v),
            Stored::Half(s, v) => View::Half(*s == Storage::Bf16, v),
            Stored::Blocks(s, v) => View::Blocks(*s, v),
        }
    }
}

/// One argument of a launch.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Floats that nobody writes.
    F32(&'a [f32]),
    /// Integers that nobody writes.
    I32(&'a [i32]),
    /// Words that this launch writes; floats or integers by their bits.
    Shared(&'a [AtomicU32]),
    /// Halves, or bfloats where the flag is set.
    Half(bool, &'a [u16]),
    /// Quantised blocks.
    Blocks(Storage, &'a [u8]),
    /// An argument without elements. It reads as zeros, since a select may look at the branch that it does not take.
    Nothing,
    /// Another view, whose accesses are counted.
    Counted(&'a Counted<'a>),
}

/// A buffer as words that several tasks may write.
pub fn shared(words: &mut [u32]) -> &[AtomicU32] {
    let words: *const [u32] = words;
    // SAFETY: AtomicU32 has the size and alignment of u32, and the exclusive borrow keeps every other access away for
    // the lifetime of the result.
    unsafe { &*(words as *const [AtomicU32]) }
}

/// Where the elements of a run lie: `start + j·step`.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Of the first element.
    pub start: i64,
    /// From one to the next.
    pub step: i64,
}

impl Run {
    /// The first position and whether all `n` elements lie inside `len`.
    #[inline(always)]
    pub(super) fn check(self, n: usize, len: usize) -> bool {
        let last = (n as i64 - 1).max(0).checked_mul(self.step).and_then(|d| self.start.checked_add(d));
        last.is_some_and(|l| self.start.min(l) >= 0 && (self.start.max(l) as u64) < len as u64) || n == 0
    }
    #[inline(always)]
    fn copy<T, U>(self, from: &[T], to: &mut [U], f: impl Fn(&T) -> U) -> bool {
        if !self.check(to.len(), from.len()) {
            return false;
        }
        if to.is_empty() {
            return true;
        }
        match self.step {
            1 => {
                let from = &from[self.start as usize..][..to.len()];
                to.iter_mut().zip(from).for_each(|(t, v)| *t = f(v));
            }
            0 => {
                let v = &from[self.start as usize];
                to.iter_mut().for_each(|t| *t = f(v));
            }
            _ => {
                let mut at = self.start;
                for t in to {
                    *t = f(&from[at as usize]);
                    at = at.wrapping_add(self.step);
                }
            }
        }
        true
    }
}

fn zeros<T: Default>(to: &mut [T]) -> bool {
    to.fill_with(T::default);
    true
}

#[inline(always)]
fn gather<T, U>(from: &[T], at: &[i32], to: &mut [U], f: impl Fn(&T) -> U) -> bool {
    let lo = at.iter().fold(i32::MAX, |m, i| m.min(*i));
    let hi = at.iter().fold(i32::MIN, |m, i| m.max(*i));
    if !at.is_empty() && (lo < 0 || hi as u64 >= from.len() as u64) {
        return false;
    }
    to.iter_mut().zip(at).for_each(|(t, i)| *t = f(&from[*i as usize]));
    true
}

impl<'a> View<'a> {
    /// Elements it holds.
    pub fn len(&self) -> usize {
        match self {
            View::F32(v) => v.len(),
            View::I32(v) => v.len(),
            View::Shared(v) => v.len(),
            View::Half(_, v) => v.len(),
            View::Nothing => 0,
            View::Blocks(s, v) => v.len() / s.block_bytes() as usize * s.block_elems() as usize,
            View::Counted(c) => c.view.len(),
        }
    }
    /// Its first `n` elements; `None` when it has fewer.
    pub fn first(self, n: usize) -> Option<View<'a>> {
        Some(match self {
            View::F32(v) => View::F32(v.get(..n)?),
            View::I32(v) => View::I32(v.get(..n)?),
            View::Shared(v) => View::Shared(v.get(..n)?),
            View::Half(b, v) => View::Half(b, v.get(..n)?),
            View::Nothing => return (n == 0).then_some(self),
            View::Blocks(..) | View::Counted(_) => return (n <= self.len()).then_some(self),
        })
    }
    /// Reads a run of floats; `false` when it leaves the argument.
    #[inline(always)]
    pub fn read_f32(&self, run: Run, to: &mut [f32]) -> bool {
        match self {
            View::F32(v) => run.copy(v, to, |x| *x),
            View::Shared(v) => run.copy(v, to, |x| f32::from_bits(x.load(Relaxed))),
            View::Half(false, v) => run.copy(v, to, |x| half_to_f32(*x)),
            View::Half(true, v) => run.copy(v, to, |x| bf16_to_f32(*x)),
            View::I32(v) => run.copy(v, to, |x| *x as f32),
            View::Nothing => zeros(to),
            View::Counted(c) => c.run(run, to.len()) && c.view.read_f32(run, to),
            View::Blocks(s, v) => {
                if !run.check(to.len(), self.len()) {
                    return false;
                }
                if run.step == 1 {
                    return dequant::blocks(*s, v, run.start as usize, to);
                }
                let mut at = run.start;
                for t in to {
                    dequant::blocks(*s, v, at as usize, std::slice::from_mut(t));
                    at = at.wrapping_add(run.step);
                }
                true
            }
        }
    }
    /// Reads floats at positions; `false` when one leaves the argument.
    #[inline(always)]
    pub fn gather_f32(&self, at: &[i32], to: &mut [f32]) -> bool {
        match self {
            View::F32(v) => gather(v, at, to, |x| *x),
            View::Shared(v) => gather(v, at, to, |x| f32::from_bits(x.load(Relaxed))),
            View::Half(false, v) => gather(v, at, to, |x| half_to_f32(*x)),
            View::Half(true, v) => gather(v, at, to, |x| bf16_to_f32(*x)),
            View::I32(v) => gather(v, at, to, |x| *x as f32),
            View::Nothing => zeros(to),
            View::Counted(c) => c.each(at) && c.view.gather_f32(at, to),
            View::Blocks(s, v) => to
                .iter_mut()
                .zip(at)
                .all(|(t, i)| usize::try_from(*i).is_ok_and(|i| dequant::blocks(*s, v, i, std::slice::from_mut(t)))),
        }
    }
    /// Reads a run of integers; `false` when it leaves the argument.
    #[inline(always)]
    pub fn read_i32(&self, run: Run, to: &mut [i32]) -> bool {
        match self {
            View::I32(v) => run.copy(v, to, |x| *x),
            View::Shared(v) => run.copy(v, to, |x| x.load(Relaxed) as i32),
            View::Nothing => zeros(to),
            View::Counted(c) => c.run(run, to.len()) && c.view.read_i32(run, to),
            _ => false,
        }
    }
    /// Reads integers at positions; `false` when one leaves the argument.
    #[inline(always)]
    pub fn gather_i32(&self, at: &[i32], to: &mut [i32]) -> bool {
        match self {
            View::I32(v) => gather(v, at, to, |x| *x),
            View::Shared(v) => gather(v, at, to, |x| x.load(Relaxed) as i32),
            View::Nothing => zeros(to),
            View::Counted(c) => c.each(at) && c.view.gather_i32(at, to),
            _ => false,
        }
    }
    /// Writes `n` words to a run; `false` when it leaves the argument or the argument is not written.
    #[inline(always)]
    pub fn write(&self, run: Run, n: usize, word: impl Fn(usize) -> u32) -> bool {
        let to = match self {
            View::Shared(to) => to,
            View::Counted(c) => return c.run(run, n) && c.view.write(run, n, word),
            _ => return false,
        };
        if !run.check(n, to.len()) {
            return false;
        }
        if run.step == 1 && n > 0 {
            let to = &to[run.start as usize..][..n];
            to.iter().enumerate().for_each(|(j, t)| t.store(word(j), Relaxed));
        } else {
            let mut at = run.start;
            for j in 0..n {
                to[at as usize].store(word(j), Relaxed);
                at = at.wrapping_add(run.step);
            }
        }
        true
    }
    /// Writes words to positions; `false` when one leaves the argument or the argument is not written.
    #[inline(always)]
    pub fn scatter(&self, at: &[i32], word: impl Fn(usize) -> u32) -> bool {
        let to = match self {
            View::Shared(to) => to,
            View::Counted(c) => return c.each(at) && c.view.scatter(at, word),
            _ => return false,
        };
        at.iter().enumerate().all(|(j, i)| {
            let slot = usize::try_from(*i).ok().and_then(|i| to.get(i));
            slot.map(|t| t.store(word(j), Relaxed)).is_some()
        })
    }
}
