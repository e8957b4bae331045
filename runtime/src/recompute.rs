//! Generation with a graph that keeps no cache, such as an export without past: every step runs all tokens again, so that
//! n tokens cost n² / 2.

use crate::binding::INPUT_IDS;
use crate::generate::{Finish, GenerateOptions, GenerateStats, Generation, NewToken, limit_of};
use crate::prompt::Batch;
use crate::rows::Rows;
use crate::run_stats::RunStats;
use crate::sampler::{Sampler, argmax};
use crate::session::Session;
use crate::{Error, Result, Tensor};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_plan::{Plan, Program, Task, WritingRules};
use std::ops::ControlFlow;
use std::time::Instant;

const MASK: &str = "attention_mask";
const POSITIONS: &str = "position_ids";
const LOGITS: &str = "logits";

/// Continues `prompts` by running the model's graph on all tokens so far.
///
/// # Errors
/// A graph that gives no logits for tokens; what [`Session::run`] refuses.
pub(crate) fn generate(
    session: &mut Session,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>,
) -> Result<Generation> {
    let plan = session.plan.clone();
    let program = forward(&plan)?;
    let batch = Batch::new(prompts, plan.model.vocab)?;
    let has = |name: &str| program.inputs.iter().any(|p| p.name == name);
    if batch.is_padded() && !has(MASK) {
        let reason = "has no attention mask: prompts of one batch must have the same length".to_owned();
        return Err(Error::Task { model: plan.model.name.clone(), reason });
    }
    let mut samplers = match options.sampling.filter(|s| s.temperature > 0.0) {
        Some(s) => (0..batch.rows()).map(|r| Sampler::new(s, r)).collect::<Result<Vec<_>>>()?,
        None => Vec::new(),
    };
    let mut rows = Rows::new(batch.rows(), &plan, options);
    let mut ids = Ids::of(&batch)?;
    let context = context(&plan, program);
    if ids.len > context {
        let [wanted, limit] = [ids.len, context].map(|n| n as u64);
        return Err(Error::Limit { what: "tokens of the prompt".into(), wanted, limit });
    }
    let phase = plan.report.phases.iter().find(|p| p.program == program.name);
    let mut stats = GenerateStats {
        prompt_tokens: prompts.iter().map(|p| p.len() as u64).sum(),
        kernels_per_token: phase.map_or(0, |p| p.dispatches),
        kernels_per_token_unfused: phase.map_or(0, |p| p.unfused_dispatches),
        depth: RunStats::new(&plan),
        ..GenerateStats::default()
    };
    for step in 0..options.max_new_tokens {
        if ids.len > context {
            rows.end(Finish::ContextFull);
            break;
        }
        let start = Instant::now();
        let mut inputs = vec![(INPUT_IDS, ids.tokens()?)];
        if has(MASK) {
            inputs.push((MASK, ids.mask()?));
        }
        if has(POSITIONS) {
            inputs.push((POSITIONS, ids.positions()?));
        }
        let outputs = session.run(&inputs)?;
        let logits = outputs.iter().find(|(n, _)| n == LOGITS).map(|(_, t)| t);
        let next = choose(logits, ids.rows.len(), &mut samplers, &suppressed(&plan.model.rules, step == 0))?;
        let seconds = start.elapsed().as_secs_f64();
        let going = rows.going().iter().filter(|g| **g).count() as u64;
        stats.depth.add_whole(&plan, going);
        let taken = rows.take(&next, on_token);
        if step == 0 {
            stats.prefill_seconds = seconds;
        } else {
            stats.decode_steps += 1;
            stats.decode_tokens += taken.tokens;
            stats.decode_seconds += seconds;
        }
        if !taken.go_on {
            break;
        }
        ids.push(&next);
    }
    Ok(Generation { rows: rows.completions(), pad: plan.model.eos.first().copied().unwrap_or(0), stats })
}

/// Whether a model writes tokens.
///
/// # Errors
/// [`Error::Task`] with what it does instead.
pub fn check_generates(plan: &Plan) -> Result<()> {
    match plan.model.task {
        Task::Decoder | Task::EncoderDecoder => Ok(()),
        _ => forward(plan).map(|_| ()),
    }
}

fn forward(plan: &Plan) -> Result<&Program> {
    let refuse = |reason: String| Err(Error::Task { model: plan.model.name.clone(), reason });
    if let Some(obstacle) = &plan.model.cache_obstacle {
        return refuse(format!("does not generate text, since its cache cannot be kept: {obstacle}; use `run`"));
    }
    let program = plan.programs.iter().find(|p| p.name == "forward");
    let known = [INPUT_IDS, MASK, POSITIONS];
    match program {
        Some(p)
            if p.inputs.iter().any(|i| i.name == INPUT_IDS)
                && p.inputs.iter().all(|i| known.contains(&i.name.as_str()))
                && p.outputs.iter().any(|o| o.name == LOGITS && o.shape.len() == 3 && o.storage == Storage::F32) =>
        {
            Ok(p)
        }
        _ => refuse("does not generate text; use `run`".into()),
    }
}

/// Tokens that fit the model: its context, and the bounds of the extent of `input_ids`.
fn context(plan: &Plan, program: &Program) -> usize {
    let stated = if plan.model.context > 0 { plan.model.context } else { u64::MAX };
    let extent = program.inputs.iter().find(|p| p.name == INPUT_IDS).and_then(|p| p.shape.get(1));
    let bound = extent.map_or(u64::MAX, |d| {
        let named = plan.sizes.iter().find(|s| *d == Dim::size(&s.name));
        named.map(|s| limit_of(plan, program, &s.name)).or(d.as_const().map(|n| n as u64)).unwrap_or(u64::MAX)
    });
    usize::try_from(stated.min(bound)).unwrap_or(usize::MAX)
}

/// All tokens so far, padded on the left.
struct Ids {
    rows: Vec<Vec<i32>>,
    pads: Vec<i32>,
    len: usize,
}

impl Ids {
    fn of(batch: &Batch) -> Result<Ids> {
        let all = batch.columns(0, batch.len())?;
        let rows = all.as_i32().unwrap_or_default().chunks(batch.len().max(1)).map(<[i32]>::to_vec).collect();
        Ok(Ids { rows, pads: batch.pos_offset().iter().map(|o| -o).collect(), len: batch.len() })
    }
    fn push(&mut self, next: &[i32]) {
        self.rows.iter_mut().zip(next).for_each(|(r, t)| r.push(*t));
        self.len += 1;
    }
    fn tensor(&self, of: impl Fn(i32, i32) -> i32) -> Result<Tensor> {
        let each = |pad: &i32| {
            let pad = *pad;
            (0..self.len as i32).map(move |t| (t, pad))
        };
        let values = self.pads.iter().flat_map(each).map(|(t, pad)| of(t, pad)).collect();
        Tensor::i32(&[self.rows.len() as u64, self.len as u64], values)
    }
    fn tokens(&self) -> Result<Tensor> {
        Tensor::i32(&[self.rows.len() as u64, self.len as u64], self.rows.iter().flatten().copied().collect())
    }
    fn mask(&self) -> Result<Tensor> {
        self.tensor(|t, pad| i32::from(t >= pad))
    }
    fn positions(&self) -> Result<Tensor> {
        self.tensor(|t, pad| (t - pad).max(0))
    }
}

/// Tokens that must not come next.
fn suppressed(rules: &WritingRules, is_first: bool) -> Vec<u32> {
    let first = rules.suppressed_first.iter().filter(|_| is_first);
    rules.suppressed.iter().chain(first).copied().collect()
}

/// The next token of each row from logits `[rows, tokens, vocabulary]`, none of those in `never`.
fn choose(logits: Option<&Tensor>, rows: usize, samplers: &mut [Sampler], never: &[u32]) -> Result<Vec<i32>> {
    let Some((values, &[found, tokens, vocab])) = logits.and_then(|t| Some((t.as_f32()?, t.shape()))) else {
        return Err(Error::Device("the model gave no logits".into()));
    };
    if found as usize != rows || tokens == 0 || vocab == 0 {
        return Err(Error::Device(format!("logits of shape [{found}, {tokens}, {vocab}] for {rows} rows")));
    }
    let mut next = Vec::with_capacity(rows);
    for (row, all) in values.chunks_exact((tokens * vocab) as usize).enumerate() {
        let last = all.chunks_exact(vocab as usize).next_back().unwrap_or_default();
        let mut allowed = last.to_vec();
        for token in never {
            if let Some(logit) = allowed.get_mut(*token as usize) {
                *logit = f32::MIN;
            }
        }
        let token = match samplers.get_mut(row) {
            Some(s) => s.sample(&allowed)?,
            None => argmax(&allowed),
        };
        next.push(token as i32);
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressed_tokens_are_not_chosen() {
        let rules = WritingRules { suppressed: vec![1], suppressed_first: vec![3, 99], last: Vec::new() };
        let logits = Tensor::f32(&[2, 1, 4], vec![0.5, 3.0, 1.0, 2.0, 0.0, 1.0, -1.0, 4.0]).unwrap();
        let next = |is_first| choose(Some(&logits), 2, &mut [], &suppressed(&rules, is_first)).unwrap();
        assert_eq!((next(true), next(false)), (vec![2, 0], vec![3, 3]));
        assert_eq!(choose(Some(&logits), 2, &mut [], &[]).unwrap(), [1, 3]);
    }
}
