//! The token loop: prompts go through `prefill` in chunks, then `decode` runs once a token.
//!
//! A greedy token is chosen on the device: the program writes it to the state `next_token`, from which the next run
//! reads it, so that only the few bytes of the chosen tokens travel. With sampling the logits of the last position are
//! read, a token is drawn on the host and written to that state.

use crate::binding::{INPUT_IDS, KEY_MASK};
use crate::eviction::{self, Columns, EvictionStats};
use crate::kv_table::kv_table;
use crate::prompt::Batch;
use crate::recompute;
use crate::rows::Rows;
use crate::run_stats::{self, RunStats};
use crate::sampler::{Sampler, Sampling, argmax};
use crate::session::{POS_OFFSET, Session, state, state_len};
use crate::{Error, Result, Tensor};
use frit_plan::{Plan, Program, Task, sizes};
use serde::Serialize;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) const NEXT_TOKEN: &str = "next_token";
const LOGITS: &str = "logits";
/// Capacities are multiples of this, so that prompts of similar length share one layout.
const CAPACITY_STEP: u64 = 64;

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens of each row, at most.
    pub max_new_tokens: usize,
    /// How tokens are drawn; `None`: the most likely one.
    pub sampling: Option<Sampling>,
    /// Tokens that end a row besides the model's own.
    pub stop: Vec<u32>,
    /// Goes on after the model's end-of-text tokens.
    pub ignore_eos: bool,
    /// Prompt tokens of one run.
    pub chunk: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_new_tokens: 64, sampling: None, stop: Vec::new(), ignore_eos: false, chunk: 128 }
    }
}

/// Why a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// It has as many tokens as were asked for.
    Length,
    /// It met an end-of-text or stop token, which is its last one.
    Stop,
    /// The model's context is full.
    ContextFull,
    /// The caller ended it.
    Cancelled,
}

/// A generated row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Completion {
    /// New tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
}

/// A token as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// The row of the batch.
    pub row: usize,
    /// The token.
    pub id: u32,
}

/// What was generated.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    /// One for each prompt.
    pub rows: Vec<Completion>,
    /// The token that fills up rows that ended early.
    pub pad: u32,
    /// Times and counts.
    pub stats: GenerateStats,
}

impl Generation {
    /// All rows at the length of the longest, filled up at the end.
    pub fn padded(&self) -> (Vec<u64>, Vec<i64>) {
        let width = self.rows.iter().map(|r| r.tokens.len()).max().unwrap_or(0);
        let fill = |r: &Completion| {
            let mut row: Vec<i64> = r.tokens.iter().map(|t| i64::from(*t)).collect();
            row.resize(width, i64::from(self.pad));
            row
        };
        (vec![self.rows.len() as u64, width as u64], self.rows.iter().flat_map(fill).collect())
    }
}

/// Times and counts of a generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerateStats {
    /// Tokens of all prompts, without padding.
    pub prompt_tokens: u64,
    /// Seconds of the prompt runs.
    pub prefill_seconds: f64,
    /// Tokens that decode runs gave; each row's first one comes from its prompt run.
    pub decode_tokens: u64,
    /// Decode runs.
    pub decode_steps: u64,
    /// Seconds of the decode runs.
    pub decode_seconds: f64,
    /// Launches of one decode run.
    pub kernels_per_token: u32,
    /// Launches of one decode run if every operation were a kernel of its own.
    pub kernels_per_token_unfused: u32,
    /// Activation bytes that fusion keeps from moving in one decode run, at the last run's sizes.
    pub saved_bytes_per_token: u64,
    /// Bytes that one decode run moves, at the last run's sizes.
    pub bytes_per_token: u64,
    /// What ran of the model, where a policy decides about it.
    pub depth: RunStats,
    /// What became of the cache, where it keeps anchors and near tokens alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eviction: Option<EvictionStats>,
}

impl GenerateStats {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prefill_seconds)
    }
    /// New tokens a second.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode_seconds)
    }
}

fn rate(n: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}

impl Session {
    /// Continues `prompts`, all in one batch. `on_token` gets every token of every row in order and may end it all.
    ///
    /// # Errors
    /// A model that does not generate, a prompt longer than its context, a failed device.
    pub fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let plan = Arc::clone(&self.plan);
        if plan.model.task != Task::Decoder {
            if plan.model.task == Task::EncoderDecoder {
                let reason = "writes from what its encoder reads; use `generate_from`".to_owned();
                return Err(Error::Task { model: plan.model.name.clone(), reason });
            }
            return recompute::generate(self, prompts, options, on_token);
        }
        let sizes = plan.sizes.iter().map(|z| z.min).collect();
        self.write(prompts, options, on_token, sizes, &mut |_, _| Ok(()))
    }

    /// Continues `prompts` under `sizes`; `encode` runs what comes before the prompts, once room is made.
    pub(crate) fn write(
        &mut self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>,
        sizes: Vec<u64>,
        encode: &mut dyn FnMut(&mut Session, &[u64]) -> Result<()>,
    ) -> Result<Generation> {
        let plan = Arc::clone(&self.plan);
        let batch = Batch::new(prompts, plan.model.vocab)?;
        let mut run = Run::new(self, plan, &batch, options, sizes)?;
        encode(self, &run.sizes)?;
        if options.max_new_tokens > 0 {
            self.executor.prepare(run.prefill)?;
            if options.max_new_tokens > 1 {
                self.executor.prepare(run.decode)?;
            }
            run.prefill(self, &batch)?;
            while run.accept(on_token) && run.room() {
                run.decode(self)?;
            }
        }
        let prompt_tokens = prompts.iter().map(|p| p.len() as u64).sum();
        run.finish(prompt_tokens)
    }
}

/// A generation in progress.
struct Run {
    plan: Arc<Plan>,
    prefill: usize,
    decode: usize,
    samplers: Vec<Sampler>,
    /// Tokens chosen last, one a row.
    next: Vec<i32>,
    /// Tokens chosen after these, by steps that ran ahead of the host.
    ahead: VecDeque<Vec<i32>>,
    rows: Rows,
    /// Values of the plan's sizes.
    sizes: Vec<u64>,
    at: Places,
    /// Columns in the cache.
    past: u64,
    /// Positions so far: the columns, and those that have left.
    seen: u64,
    /// Positions at the end, if no row ends early.
    wanted: u64,
    /// What is in the columns, where those that nobody sees may leave.
    columns: Option<Columns>,
    /// What is added to a column to get its position, by row.
    offsets: Vec<i32>,
    stats: GenerateStats,
    prefill_time: Duration,
    decode_time: Duration,
}

/// Places of the decoder's sizes in the table.
struct Places {
    batch: usize,
    tokens: usize,
    past: usize,
    capacity: usize,
    /// Of rotary tables, where they have a size of their own.
    positions: Option<usize>,
}

impl Run {
    fn new(
        session: &mut Session,
        plan: Arc<Plan>,
        batch: &Batch,
        options: &GenerateOptions,
        mut table: Vec<u64>,
    ) -> Result<Run> {
        let size = |n: &str| {
            let reason = || format!("is a decoder without the size {n}");
            plan.size_index(n).ok_or_else(|| Error::Task { model: plan.model.name.clone(), reason: reason() })
        };
        let at = Places {
            batch: size(sizes::BATCH)?,
            tokens: size(sizes::TOKENS)?,
            past: size(sizes::PAST)?,
            capacity: size(sizes::CAPACITY)?,
            positions: plan.size_index(sizes::POSITIONS),
        };
        let find = |n: &str| plan.programs.iter().position(|p| p.name == n);
        let rows = batch.rows() as u64;
        let prefill = find("prefill").ok_or_else(|| session.lacks("prefill"))?;
        let fits = |i: &usize| plan.programs.get(*i).is_some_and(|p| limit_of(&plan, p, sizes::BATCH) >= rows);
        let decode = find("decode")
            .filter(fits)
            .or(find("decode_wide").filter(fits))
            .ok_or_else(|| session.lacks("decode_wide"))?;
        let how = options.sampling.filter(|s| s.temperature > 0.0);
        let samplers =
            how.map(|s| (0..batch.rows()).map(|r| Sampler::new(s, r)).collect()).transpose()?.unwrap_or_default();
        if batch.is_padded() && state(&plan, KEY_MASK).is_none() {
            let reason = "has no key mask: prompts of one batch must have the same length".to_owned();
            return Err(Error::Task { model: plan.model.name.clone(), reason });
        }

        let context = context(&plan);
        let prompt = batch.len() as u64;
        if prompt > context {
            return Err(Error::Limit { what: "tokens of the prompt".into(), wanted: prompt, limit: context });
        }
        let wanted = prompt.saturating_add((options.max_new_tokens as u64).saturating_sub(1));
        let widest = plan.programs.get(prefill).map_or(1, |p| limit_of(&plan, p, sizes::TOKENS));
        let chunk = options.chunk.max(1).min(widest).min(prompt);
        let mut columns = Columns::new(&plan, batch.rows());
        let room = match &mut columns {
            Some(c) => {
                let prompt = (0..batch.len()).map(|at| batch.column(at));
                let [most, end] = c.needed(prompt, usize::try_from(chunk).unwrap_or(usize::MAX)).map(|n| n as u64);
                most.max(end + CAPACITY_STEP / 2).min(wanted)
            }
            None => wanted,
        };
        let stepped = |n: u64| n.div_ceil(CAPACITY_STEP).saturating_mul(CAPACITY_STEP).min(context);
        let capacity = if columns.is_some() { stepped(room) } else { stepped(room).max(prompt) };
        for (i, v) in [(at.batch, rows), (at.tokens, chunk), (at.past, 0), (at.capacity, capacity)] {
            if let Some(slot) = table.get_mut(i) {
                *slot = v;
            }
        }
        if let Some(slot) = at.positions.and_then(|i| table.get_mut(i)) {
            *slot = stepped(wanted);
        }
        session.narrow(&mut table);
        session.grow(&table)?;
        // One capacity for the session's life keeps every offset where it is.
        for i in [at.capacity].into_iter().chain(at.positions) {
            if let (Some(slot), Some(held)) = (table.get_mut(i), session.extent.get(i)) {
                *slot = *held;
            }
        }
        let held = table.get(at.capacity).copied().unwrap_or(capacity);
        let phase = plan.programs.get(decode).and_then(|g| plan.report.phases.iter().find(|p| p.program == g.name));
        let stats = GenerateStats {
            depth: RunStats::new(&plan),
            kernels_per_token: phase.map_or(0, |p| p.dispatches),
            kernels_per_token_unfused: phase.map_or(0, |p| p.unfused_dispatches),
            ..GenerateStats::default()
        };
        let mut run = Run {
            prefill,
            decode,
            samplers,
            next: Vec::new(),
            ahead: VecDeque::new(),
            rows: Rows::new(batch.rows(), &plan, options),
            sizes: table,
            at,
            past: 0,
            seen: 0,
            wanted,
            columns,
            offsets: batch.pos_offset(),
            stats,
            prefill_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            plan,
        };
        run.states(session, batch.key_mask(usize::try_from(held).unwrap_or(usize::MAX)))?;
        Ok(run)
    }

    /// Brings what is visible, and where columns stand, to the device.
    fn states(&mut self, session: &mut Session, key_mask: Vec<i32>) -> Result<()> {
        for (name, data) in [(KEY_MASK, key_mask), (POS_OFFSET, self.offsets.clone())] {
            if let Some(i) = state(&self.plan, name) {
                let want = state_len(&self.plan, i, &self.sizes)?;
                if want != data.len() {
                    return Err(Error::Plan(format!("state `{name}` has {want} elements, not {}", data.len())));
                }
                session.executor.write_state(i, &self.sizes, &data)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, place: usize, v: u64) {
        if let Some(slot) = self.sizes.get_mut(place) {
            *slot = v;
        }
    }

    /// Lets columns that nobody sees leave the cache where `tokens` more do not fit, and lays out a larger one where
    /// what stays leaves little room.
    fn make_room(&mut self, session: &mut Session, tokens: u64, spare: bool) -> Result<()> {
        let capacity = self.sizes.get(self.at.capacity).copied().unwrap_or(0);
        let Some(columns) = self.columns.as_mut().filter(|_| self.past + tokens > capacity) else { return Ok(()) };
        let left = columns.left();
        columns.evict(&left);
        let needed = left.past as u64 + tokens;
        let more = if spare { needed / 4 } else { 0 };
        let most = self.wanted.min(context(&self.plan)).max(needed);
        let room = match (needed + more).min(most) > capacity {
            true => (needed + needed / 2).next_multiple_of(CAPACITY_STEP).min(most),
            false => capacity,
        };
        let gone = i32::try_from(left.gone).unwrap_or(i32::MAX);
        self.offsets.iter_mut().for_each(|offset| *offset += gone);
        let mask = columns.key_mask(usize::try_from(room).unwrap_or(usize::MAX), &self.offsets);
        let before = self.sizes.clone();
        self.set(self.at.past, left.past as u64);
        self.set(self.at.capacity, room);
        let extent = session.larger(&self.sizes)?;
        eviction::move_left(&mut *session.executor, &self.plan, &left, [&before, &self.sizes], extent.as_ref())?;
        let is_new = extent.is_some();
        if let Some(extent) = extent {
            session.extent = extent.0;
        }
        self.past = left.past as u64;
        self.states(session, mask)?;
        match state(&self.plan, NEXT_TOKEN).filter(|_| is_new && !self.next.is_empty()) {
            Some(i) => session.executor.write_state(i, &self.sizes, &self.next),
            None => Ok(()),
        }
    }

    fn prefill(&mut self, session: &mut Session, batch: &Batch) -> Result<()> {
        let start = Instant::now();
        let chunk = self.sizes.get(self.at.tokens).copied().unwrap_or(1).max(1) as usize;
        let mut from = 0;
        while from < batch.len() {
            let to = (from + chunk).min(batch.len());
            let tokens = (to - from) as u64;
            self.make_room(session, tokens, false)?;
            self.set(self.at.tokens, tokens);
            self.set(self.at.past, self.past);
            let ids = batch.columns(from, to)?;
            self.run(session, self.prefill, Some(&ids), to == batch.len())?;
            if let Some(columns) = &mut self.columns {
                (from..to).for_each(|at| columns.push(batch.column(at).into_iter()));
            }
            self.past += tokens;
            from = to;
        }
        self.seen = batch.len() as u64;
        self.prefill_time = start.elapsed();
        Ok(())
    }

    fn decode(&mut self, session: &mut Session) -> Result<()> {
        let start = Instant::now();
        if self.ahead.is_empty() {
            self.make_room(session, 1, true)?;
            self.set(self.at.tokens, 1);
            self.set(self.at.past, self.past);
            self.run_ahead(session)?;
        }
        if let Some(columns) = &mut self.columns {
            columns.push(self.next.iter().map(|t| Some(*t)));
        }
        if let Some(next) = self.ahead.pop_front() {
            self.next = next;
            let going = self.rows.going().iter().filter(|c| **c).count() as u64;
            self.stats.depth.add_whole(&self.plan, going);
        } else {
            let reads_ids =
                self.plan.programs.get(self.decode).is_some_and(|p| p.inputs.iter().any(|i| i.name == INPUT_IDS));
            let ids = Tensor::i32(&[self.rows.len() as u64, 1], self.next.clone())?;
            self.run(session, self.decode, reads_ids.then_some(&ids), true)?;
        }
        self.past += 1;
        self.seen += 1;
        self.stats.decode_steps += 1;
        self.decode_time += start.elapsed();
        Ok(())
    }

    /// Runs several steps at once where the device chooses the tokens and feeds them to itself, and the backend is the
    /// faster for it.
    fn run_ahead(&mut self, session: &mut Session) -> Result<()> {
        let Some(g) = self.plan.programs.get(self.decode) else { return Ok(()) };
        let wanted = g.outputs.iter().position(|p| p.name == NEXT_TOKEN);
        let (Some(wanted), true, true) = (wanted, g.inputs.is_empty(), self.samplers.is_empty()) else { return Ok(()) };
        let capacity = self.sizes.get(self.at.capacity).copied().unwrap_or(0);
        let room = context(&self.plan).saturating_sub(self.seen).min(capacity.saturating_sub(self.past));
        let steps = session.executor.steps_ahead().min(self.rows.left()).min(room);
        if steps < 2 {
            return Ok(());
        }
        let decode = session.fitting(self.decode, &self.sizes)?;
        for t in session.executor.run_ahead(decode, &self.sizes, self.at.past, steps, wanted)? {
            match t.as_i32() {
                Some(tokens) if tokens.len() >= self.rows.len() => {
                    self.ahead.push_back(last_of_each(tokens, self.rows.len(), 1).copied().collect());
                }
                _ => return Err(Error::Device("fewer tokens than rows".into())),
            }
        }
        Ok(())
    }

    /// Runs a program and, if `choose`, chooses the next tokens.
    fn run(&mut self, session: &mut Session, program: usize, ids: Option<&Tensor>, choose: bool) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let program = session.fitting(program, &self.sizes)?;
        let g = plan.programs.get(program).ok_or_else(|| session.lacks("prefill"))?;
        let mut inputs = Vec::with_capacity(g.inputs.len());
        for p in &g.inputs {
            let known = ids.filter(|_| p.name == INPUT_IDS);
            inputs.push(known.ok_or_else(|| Error::Plan(format!("program `{}` wants an input `{}`", g.name, p.name)))?);
        }
        let output = |n: &str| g.outputs.iter().position(|p| p.name == n);
        let on_device = self.samplers.is_empty();
        let read = if on_device { output(NEXT_TOKEN).or(output(LOGITS)) } else { output(LOGITS) };
        let read = read.ok_or_else(|| Error::Plan(format!("program `{}` gives no `{LOGITS}`", g.name)))?;
        let told = run_stats::telling(g);
        let wanted: Vec<usize> = if choose { [read].into_iter().chain(told).collect() } else { Vec::new() };
        let (out, passes) = session.run_passes(program, &self.sizes, &inputs, &wanted)?;
        self.stats.depth.passes = self.stats.depth.passes.max(passes);
        if choose {
            let counts = self.rows.going();
            self.stats.depth.add_whole(&plan, counts.iter().filter(|c| **c).count() as u64);
            let names = wanted.iter().skip(1).filter_map(|i| g.outputs.get(*i)).map(|p| p.name.as_str());
            self.stats.depth.add(names.zip(out.iter().skip(1)), Some(&counts));
        }
        if !choose {
            return Ok(());
        }
        let out = out.first().ok_or_else(|| Error::Device("the program gave no output".into()))?;
        match out.as_i32() {
            Some(tokens) if tokens.len() >= self.rows.len() => {
                self.next = last_of_each(tokens, self.rows.len(), 1).copied().collect()
            }
            Some(_) => return Err(Error::Device("fewer tokens than rows".into())),
            None => {
                self.next = self.draw(out)?;
                if let Some(i) = state(&plan, NEXT_TOKEN) {
                    session.executor.write_state(i, &self.sizes, &self.next)?;
                }
            }
        }
        Ok(())
    }

    /// Draws from the logits of each row's last position.
    fn draw(&mut self, logits: &Tensor) -> Result<Vec<i32>> {
        let width = logits.shape().last().copied().unwrap_or(0) as usize;
        let values = logits.as_f32().unwrap_or_default();
        if width == 0 || values.len() < width * self.rows.len() {
            return Err(Error::Device(format!("logits of shape {:?} for {} rows", logits.shape(), self.rows.len())));
        }
        let count = values.len() / width;
        let positions: Vec<&[f32]> = values.chunks_exact(width).collect();
        let last = positions.chunks_exact(count / self.rows.len()).filter_map(|p| p.last().copied());
        let mut out = Vec::with_capacity(self.rows.len());
        for (row, l) in last.enumerate() {
            let t = match self.samplers.get_mut(row) {
                Some(s) => s.sample(l)?,
                None => argmax(l),
            };
            out.push(t as i32);
        }
        Ok(out)
    }

    /// Hands the chosen tokens on. Whether there is a row to go on with.
    fn accept(&mut self, on_token: &mut dyn FnMut(NewToken) -> ControlFlow<()>) -> bool {
        let taken = self.rows.take(&self.next, on_token);
        if self.stats.decode_steps > 0 {
            self.stats.decode_tokens += taken.tokens;
        }
        taken.go_on
    }

    /// Whether another token fits the context.
    fn room(&mut self) -> bool {
        let fits = self.seen < context(&self.plan);
        if !fits {
            self.rows.end(Finish::ContextFull);
        }
        fits
    }

    fn finish(mut self, prompt_tokens: u64) -> Result<Generation> {
        self.set(self.at.tokens, 1);
        let phase = self.plan.programs.get(self.decode).map(|g| g.name.as_str());
        if let Some(l) = self.plan.report.phases.iter().find(|p| Some(p.program.as_str()) == phase).map(|p| &p.ledger) {
            let bytes = |d| self.plan.eval(d, &self.sizes).unwrap_or(0);
            self.stats.saved_bytes_per_token =
                bytes(&l.activations_unfused).saturating_sub(bytes(&l.activations_fused));
            self.stats.bytes_per_token = bytes(&l.total);
        }
        let each: u64 = kv_table(&self.plan).iter().map(|s| s.k + s.v).sum();
        let [rows, capacity] = [self.at.batch, self.at.capacity].map(|i| self.sizes.get(i).copied().unwrap_or(0));
        self.stats.eviction = self.columns.as_ref().map(|c| EvictionStats {
            capacity,
            columns: self.past,
            bytes: each * rows * capacity,
            ..c.stats
        });
        self.stats.prompt_tokens = prompt_tokens;
        self.stats.prefill_seconds = self.prefill_time.as_secs_f64();
        self.stats.decode_seconds = self.decode_time.as_secs_f64();
        let pad = self.plan.model.eos.first().copied().unwrap_or(0);
        Ok(Generation { rows: self.rows.completions(), pad, stats: self.stats })
    }
}

fn last_of_each<T>(values: &[T], rows: usize, width: usize) -> impl Iterator<Item = &T> {
    let each = (values.len() / rows.max(1)).max(width);
    values.chunks_exact(each).filter_map(|c| c.last())
}

/// Tokens that fit the model: its context, and the largest cache the plan allows.
fn context(plan: &Plan) -> u64 {
    let stated = if plan.model.context > 0 { plan.model.context } else { u64::MAX };
    let cache = plan.sizes.iter().find(|z| z.name == sizes::CAPACITY).and_then(|z| z.max);
    let limits = plan
        .programs
        .iter()
        .filter(|p| p.name != "forward" && !plan.is_bucket(p))
        .flat_map(|p| &p.limits)
        .map(|(_, max)| *max);
    limits.chain(cache).fold(stated, u64::min)
}

/// The largest value of a size in a program.
pub(crate) fn limit_of(plan: &Plan, program: &Program, size: &str) -> u64 {
    let fixed = program.fixed.iter().chain(&program.at_most).filter(|f| f.0 == size).map(|f| f.1);
    let declared = plan.sizes.iter().find(|z| z.name == size).and_then(|z| z.max);
    fixed.chain(declared).min().unwrap_or(u64::MAX)
}
