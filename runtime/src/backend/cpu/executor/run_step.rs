//! One step of a run: whether it runs, its scratch memory, the views of its arguments, the launch.

use super::steps::{Place, Read};
use super::{CpuExecutor, LIMIT_ARGS, keep, zeros};
use crate::Result;
use crate::backend::cpu::count::counted;
use crate::backend::cpu::kernel::refused;
use crate::backend::cpu::launch::Launch;
use crate::backend::cpu::memory::{View, shared};
use std::mem::take;
use std::sync::atomic::AtomicU32;

impl CpuExecutor {
    /// Runs step `at` of a program, unless what it depends on is 0 everywhere.
    pub(super) fn step(&mut self, program: usize, at: usize, sizes: &[u64]) -> Result<()> {
        if !self.is_wanted(program, at, sizes)? {
            return Ok(());
        }
        let left = self.stage(program, at, sizes)?;
        self.counters.dispatches += 1;
        self.take_written(program, at);
        let done = self.launch(program, at, left);
        self.put_written(program, at);
        done
    }

    fn is_wanted(&self, program: usize, at: usize, sizes: &[u64]) -> Result<bool> {
        let Some((buffer, shape)) = &self.steps[program][at].when else { return Ok(true) };
        let told = self.buffers.ints[*buffer].get(..self.elements(shape, sizes)?).unwrap_or_default();
        Ok(told.iter().any(|v| *v != 0))
    }

    /// Computes the step's sizes, checks its buffers against them and copies what it reads from a buffer that it writes.
    /// The elements of the left side that the kernel keeps for all tasks.
    fn stage(&mut self, program: usize, at: usize, sizes: &[u64]) -> Result<usize> {
        let step = &self.steps[program][at];
        let (code, kernel) = (&self.codes[step.kernel], &self.plan.kernels[step.kernel]);
        let s = &mut self.scratch;
        code.size(sizes, &mut s.sizes)?;
        let (task, left) = code.needs(&s.sizes)?;
        let mut made = s.pool.reserve(code.buffers.0, code.buffers.1, task);
        if s.left.len() < left {
            s.left = zeros(left as u64)?;
            made += 1;
        }
        for (k, a) in step.args.iter().enumerate() {
            let len = code.length(k, &s.sizes);
            let have = match a.place {
                Place::Weight(w) => self.weights[w].view().len(),
                Place::Float(b) => self.buffers.floats[b].len(),
                Place::Int(b) => self.buffers.ints[b].len(),
            };
            if len > have {
                let name = kernel.spec.args.get(k).map_or("?", |a| a.name.as_str());
                return Err(refused(&kernel.spec.name, format!("`{name}` has {len} elements, its buffer {have}")));
            }
            match (a.read, a.place) {
                (Read::Copy(n), Place::Float(b)) => {
                    made += keep(&mut s.copies_f, n, have);
                    s.copies_f[n].clear();
                    s.copies_f[n].extend_from_slice(&self.buffers.floats[b][..len]);
                }
                (Read::Copy(n), Place::Int(b)) => {
                    made += keep(&mut s.copies_i, n, have);
                    s.copies_i[n].clear();
                    s.copies_i[n].extend_from_slice(&self.buffers.ints[b][..len]);
                }
                _ => {}
            }
        }
        self.counters.buffers += made;
        Ok(left)
    }

    /// Takes the buffers that the step writes out of the rest, so that both can be borrowed.
    fn take_written(&mut self, program: usize, at: usize) {
        let s = &mut self.scratch;
        s.written_f.clear();
        s.written_i.clear();
        for w in &self.steps[program][at].written {
            match *w {
                Place::Float(b) => s.written_f.push(take(&mut self.buffers.floats[b])),
                Place::Int(b) => s.written_i.push(take(&mut self.buffers.ints[b])),
                Place::Weight(_) => {}
            }
        }
    }

    /// Puts them back.
    fn put_written(&mut self, program: usize, at: usize) {
        let s = &mut self.scratch;
        let (mut f, mut i) = (s.written_f.drain(..), s.written_i.drain(..));
        for w in &self.steps[program][at].written {
            match *w {
                Place::Float(b) => self.buffers.floats[b] = f.next().unwrap_or_default(),
                Place::Int(b) => self.buffers.ints[b] = i.next().unwrap_or_default(),
                Place::Weight(_) => {}
            }
        }
    }

    fn launch(&mut self, program: usize, at: usize, left: usize) -> Result<()> {
        let step = &self.steps[program][at];
        let (code, kernel) = (&self.codes[step.kernel], &self.plan.kernels[step.kernel]);
        let s = &mut self.scratch;
        let mut written: [&[AtomicU32]; LIMIT_ARGS] = [&[]; LIMIT_ARGS];
        let (mut f, mut i) = (s.written_f.iter_mut(), s.written_i.iter_mut());
        for (slot, w) in written.iter_mut().zip(&step.written) {
            let words = match w {
                Place::Float(_) => f.next().map(|v| bytemuck::cast_slice_mut::<f32, u32>(v)),
                Place::Int(_) => i.next().map(|v| bytemuck::cast_slice_mut::<i32, u32>(v)),
                Place::Weight(_) => None,
            };
            *slot = words.map_or(&[], |w| shared(w));
        }
        let none = View::Shared(&[]);
        let (mut read, mut write) = ([none; LIMIT_ARGS], [none; LIMIT_ARGS]);
        for (k, a) in step.args.iter().enumerate() {
            let view = match (a.read, a.place) {
                (Read::Written(n), _) => View::Shared(written[n]),
                (Read::Copy(n), Place::Int(_)) => View::I32(&s.copies_i[n]),
                (Read::Copy(n), _) => View::F32(&s.copies_f[n]),
                (Read::Plain, Place::Weight(w)) => self.weights[w].view(),
                (Read::Plain, Place::Float(b)) => View::F32(&self.buffers.floats[b]),
                (Read::Plain, Place::Int(b)) => View::I32(&self.buffers.ints[b]),
            };
            let len = code.length(k, &s.sizes);
            read[k] = if len == 0 { View::Nothing } else { view.first(len).unwrap_or(none) };
            write[k] = a.write.and_then(|n| View::Shared(written[n]).first(len)).unwrap_or(none);
        }
        let n = step.args.len();
        let launch = Launch {
            ints: &s.sizes.ints,
            floats: &s.sizes.floats,
            read: &read[..n],
            write: &write[..n],
            pool: &s.pool,
        };
        let left = &mut s.left[..left];
        match &mut self.accesses {
            None => code.run(&launch, &s.sizes.extents, left, &kernel.spec),
            Some(list) => counted(&launch, list, (program, at), |l| code.run(l, &s.sizes.extents, left, &kernel.spec)),
        }
    }
}
