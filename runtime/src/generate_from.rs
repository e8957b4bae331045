//! Generation by a decoder that attends to an encoder: the encoder runs once, leaves its keys and values in cache slots,
//! and the token loop of [`crate::generate`] goes on from there.

use crate::binding::{self, ATTENTION_MASK, Bound};
use crate::generate::{GenerateOptions, Generation, NewToken};
use crate::session::{Session, state};
use crate::{Error, Result, Tensor};
use frit_plan::{Task, sizes};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The state that tells which positions of the encoder are visible.
const SOURCE_MASK: &str = "source_mask";

impl Session {
    /// Writes what the model makes of `source`, the encoder's inputs by name. Each row of `prompts` is what the decoder
    /// has said already; without prompts it begins with the model's own first tokens.
    ///
    /// # Errors
    /// A model without encoder, inputs that do not fit, prompts that are not as many as rows of the source.
    pub fn generate_from<N: AsRef<str>>(
        &mut self,
        source: &[(N, Tensor)],
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let plan = Arc::clone(&self.plan);
        let fault = |reason: String| Error::Task { model: plan.model.name.clone(), reason };
        if plan.model.task != Task::EncoderDecoder {
            return Err(fault("has no encoder to generate from; use `generate`".into()));
        }
        let index = plan.programs.iter().position(|p| p.name == "encode").ok_or_else(|| self.lacks("encode"))?;
        let program = plan.programs.get(index).ok_or_else(|| self.lacks("encode"))?;
        let given: Vec<(&str, &Tensor)> = source.iter().map(|(n, t)| (n.as_ref(), t)).collect();
        let Bound { sizes, inputs, .. } = binding::bind(&plan, program, &given)?;
        let rows = plan.size_index(sizes::BATCH).and_then(|i| sizes.get(i).copied()).unwrap_or(1);
        if prompts.is_empty() && plan.model.start.is_empty() {
            return Err(fault("names no token that its decoder begins with; give one".into()));
        }
        let own = vec![plan.model.start.clone(); usize::try_from(rows).unwrap_or(usize::MAX)];
        let prompts = if prompts.is_empty() { &own } else { prompts };
        if prompts.len() as u64 != rows {
            return Err(Error::Inputs(vec![format!("  {} prompts for {rows} rows of the source", prompts.len())]));
        }
        let mask = program.inputs.iter().zip(&inputs).find(|(p, _)| p.name == ATTENTION_MASK);
        let mask: Option<Vec<i32>> =
            mask.and_then(|(_, t)| t.as_i32()).map(|m| m.iter().map(|v| i32::from(*v != 0)).collect());
        self.write(prompts, options, on_token, sizes, &mut |session, sizes| {
            if let (Some(i), Some(mask)) = (state(&session.plan, SOURCE_MASK), &mask) {
                session.executor.write_state(i, sizes, mask)?;
            }
            let index = session.fitting(index, sizes)?;
            session.executor.prepare(index)?;
            let inputs: Vec<&Tensor> = inputs.iter().collect();
            session.executor.run(index, sizes, &inputs, &[]).map(drop)
        })
    }
}
