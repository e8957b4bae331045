//! Prompts of models whose layers read keys and values from above: the whole prompt runs again and again, each time with
//! what the layers above made the time before. A token sees those before it alone, so that after n passes the first n
//! tokens are exact, and as many passes as there are tokens are what token by token gives.

use crate::session::Session;
use crate::{Result, Tensor};
use frit_plan::{KvPart, sizes};
use std::sync::Arc;

/// Slots of the cache that are read from above, and which rows of them a run makes.
struct Above {
    slots: Vec<(usize, KvPart)>,
    past: usize,
    tokens: usize,
}

impl Session {
    /// Runs a program as [`crate::backend::Executor::run`], as often as its layers need it; gives the outputs of the last
    /// pass, and how many there were.
    pub(crate) fn run_passes(
        &mut self,
        program: usize,
        values: &[u64],
        inputs: &[&Tensor],
        wanted: &[usize],
    ) -> Result<(Vec<Tensor>, u64)> {
        let plan = Arc::clone(&self.plan);
        let value = |name: &str| plan.size_index(name).and_then(|i| values.get(i)).copied().unwrap_or(0);
        let (past, tokens) = (value(sizes::PAST), value(sizes::TOKENS));
        let Some(passes) = plan.model.passes.as_ref().filter(|_| tokens > 1) else {
            return Ok((self.executor.run(program, values, inputs, wanted)?, 1));
        };
        let parts = |slot: &u32| {
            let decl = plan.kv_slots.get(*slot as usize);
            let shapes = decl.map_or([true; 2], |d| [d.k_shape.is_empty(), d.v_shape.is_empty()]);
            let both = [KvPart::K, KvPart::V].into_iter().zip(shapes);
            both.filter(|(_, is_empty)| !is_empty).map(|(part, _)| (*slot as usize, part)).collect::<Vec<_>>()
        };
        let slots = passes.slots.iter().flat_map(parts).collect();
        let above = Above { slots, past: past as usize, tokens: tokens as usize };
        let mut before = self.begin(&above, values)?;
        let most = if passes.most == 0 { tokens } else { tokens.min(u64::from(passes.most)) };
        let mut pass = 1;
        loop {
            let out = self.executor.run(program, values, inputs, wanted)?;
            if pass >= most {
                return Ok((out, pass));
            }
            if passes.until > 0.0 {
                let now = self.rows_above(&above, values)?;
                let pairs = before.iter().flatten().zip(now.iter().flatten());
                let change = pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
                let largest = now.iter().flatten().fold(0.0f32, |most, v| most.max(v.abs()));
                if change <= passes.until * largest {
                    return Ok((out, pass));
                }
                before = now;
            }
            pass += 1;
        }
    }

    /// Rows that a run makes start as zeros, so that what few passes give depends on the prompt alone.
    fn begin(&mut self, above: &Above, values: &[u64]) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::new();
        for (slot, part) in &above.slots {
            let mut held = self.executor.read_kv(*slot, *part, values)?;
            let mut count = 0;
            self.each_row(above, (*slot, *part), values, &mut held, &mut |row| {
                row.fill(0.0);
                count += row.len();
            })?;
            self.executor.write_kv(*slot, *part, values, &held)?;
            rows.push(vec![0.0; count]);
        }
        Ok(rows)
    }
    /// The rows that the run makes, of each slot.
    fn rows_above(&mut self, above: &Above, values: &[u64]) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::new();
        for (slot, part) in &above.slots {
            let mut held = self.executor.read_kv(*slot, *part, values)?;
            let mut now = Vec::new();
            self.each_row(above, (*slot, *part), values, &mut held, &mut |row| now.extend_from_slice(row))?;
            rows.push(now);
        }
        Ok(rows)
    }
    /// Walks over the rows `[past, past + tokens)` of every sequence and head.
    fn each_row(
        &self,
        above: &Above,
        (slot, part): (usize, KvPart),
        values: &[u64],
        held: &mut [f32],
        of_row: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()> {
        let decl = self.plan.kv_slots.get(slot);
        let shape = decl.map(|d| if part == KvPart::K { &d.k_shape[..] } else { &d.v_shape[..] }).unwrap_or_default();
        let extents = shape.iter().map(|d| Ok(self.plan.eval(d, values)? as usize)).collect::<Result<Vec<_>>>()?;
        let &[_, _, room, width] = &extents[..] else { return Ok(()) };
        for head in held.chunks_exact_mut((room * width).max(1)) {
            let rows = head.chunks_exact_mut(width.max(1)).skip(above.past).take(above.tokens);
            rows.for_each(&mut *of_row);
        }
        Ok(())
    }
}
