//! Inputs and outputs of a run.

use super::CpuExecutor;
use super::steps::Place;
use crate::backend::cpu::memory::{Run, View};
use crate::tensor::Data;
use crate::{Error, Result, Tensor};
use frit_plan::{Port, Program};

impl CpuExecutor {
    pub(super) fn check_run(&self, program: usize, sizes: &[u64], inputs: usize, wanted: &[usize]) -> Result<()> {
        let p = self.plan.programs.get(program).ok_or_else(|| Error::Plan(format!("there is no program {program}")))?;
        if sizes.len() != self.plan.sizes.len() {
            return Err(Error::Plan(format!("{} sizes for {}", sizes.len(), self.plan.sizes.len())));
        }
        for ((s, v), limit) in self.plan.sizes.iter().zip(sizes).zip(self.largest(p)) {
            let fixed = p.fixed.iter().any(|(n, _)| *n == s.name);
            if *v > limit || (fixed && *v != limit) {
                let what = format!("the size {} of program `{}`", s.name, p.name);
                return Err(Error::Limit { what, wanted: *v, limit });
            }
        }
        if inputs != p.inputs.len() {
            return Err(Error::Inputs(vec![format!("{inputs} inputs for {}", p.inputs.len())]));
        }
        match wanted.iter().find(|w| **w >= p.outputs.len()) {
            Some(w) => Err(Error::Plan(format!("program `{}` has no output {w}", p.name))),
            None => Ok(()),
        }
    }

    pub(super) fn write_input(&mut self, port: &Port, program: &Program, sizes: &[u64], t: &Tensor) -> Result<()> {
        let len = self.elements(&port.shape, sizes)?;
        let wrong = |found: String| Error::Shape {
            what: format!("input `{}`", port.name),
            expected: format!("{len} elements of {}", port.storage),
            found,
        };
        let no_buffer = || Error::Plan(format!("`{}` has no buffer for {len} elements", port.name));
        let place = self.place(program, port.buffer).ok_or_else(no_buffer)?;
        match (place, t.data()) {
            (Place::Float(b), Data::F32(v)) if v.len() == len => {
                let to = self.buffers.floats[b].get_mut(..len).ok_or_else(no_buffer)?;
                to.copy_from_slice(v);
            }
            (Place::Int(b), Data::I32(v)) if v.len() == len => {
                let to = self.buffers.ints[b].get_mut(..len).ok_or_else(no_buffer)?;
                to.copy_from_slice(v);
            }
            (_, Data::F32(v)) => return Err(wrong(format!("{} floats", v.len()))),
            (_, Data::I32(v)) => return Err(wrong(format!("{} integers", v.len()))),
        }
        self.counters.writes += 1;
        Ok(())
    }

    pub(super) fn read_output(&mut self, port: &Port, program: &Program, sizes: &[u64]) -> Result<Tensor> {
        let len = self.elements(&port.shape, sizes)?;
        let shape = port.shape.iter().map(|d| self.plan.eval(d, sizes)).collect::<std::result::Result<_, _>>()?;
        let missing = || Error::Plan(format!("the output `{}` has no buffer of {len} elements", port.name));
        let data = match self.place(program, port.buffer).ok_or_else(missing)? {
            Place::Float(b) => Data::F32(self.buffers.floats[b].get(..len).ok_or_else(missing)?.to_vec()),
            Place::Int(b) => Data::I32(self.buffers.ints[b].get(..len).ok_or_else(missing)?.to_vec()),
            Place::Weight(w) => {
                let view = self.weights[w].view().first(len).ok_or_else(missing)?;
                if let View::I32(v) = view {
                    Data::I32(v.to_vec())
                } else {
                    let mut v = vec![0.0; len];
                    view.read_f32(Run { start: 0, step: 1 }, &mut v);
                    Data::F32(v)
                }
            }
        };
        self.counters.read_bytes += len as u64 * 4;
        Tensor::new(shape, data)
    }
}
