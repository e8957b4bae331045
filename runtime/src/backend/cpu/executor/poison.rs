//! A mode for tests in which memory that holds no value holds nonsense.

use super::CpuExecutor;
use frit_kernels::dtype::Storage;
use frit_plan::BufferRef;

/// A float that no kernel computes: a NaN with a mark.
const FLOAT: f32 = f32::from_bits(0x7fc0_dead);
/// An integer far outside every table.
const INT: i32 = i32::MIN / 3;

impl CpuExecutor {
    /// From now on fills arena slots with nonsense wherever no value is alive in them: before a run, and after each step
    /// the slots whose values are dead. A plan that reads a value after its life gives other results then.
    pub fn poison_dead_values(&mut self) {
        self.poisons = true;
    }
    /// Fills slots that hold no value after step `at` (`None`: before the run).
    pub(super) fn poison(&mut self, program: usize, at: Option<usize>) {
        if !self.poisons {
            return;
        }
        let p = &self.plan.programs[program];
        let alive = |float: bool, slot: usize| {
            let here = p.values.iter().filter(|v| (v.storage == Storage::F32) == float && v.slot as usize == slot);
            let Some(at) = at else { return false };
            here.into_iter().any(|v| (v.live.0 as usize) <= at && at < v.live.1 as usize)
                || (at + 1 == p.steps.len()
                    && p.outputs.iter().any(|o| match o.buffer {
                        BufferRef::Value(i) => p
                            .values
                            .get(i as usize)
                            .is_some_and(|v| (v.storage == Storage::F32) == float && v.slot as usize == slot),
                        _ => false,
                    }))
        };
        for slot in 0..p.arena.sizes.len() {
            if !alive(true, slot) {
                self.buffers.floats[slot].fill(FLOAT);
            }
        }
        let states = self.plan.states.len();
        for slot in 0..p.ints.sizes.len() {
            if !alive(false, slot) {
                self.buffers.ints[states + slot].fill(INT);
            }
        }
    }
}
