//! A model bound to a device.

use crate::backend::{Backend, Counters, Executor, Extent};
use crate::binding::{self, Bound, KEY_MASK};
use crate::model_source::{self, LoadedModel, Stage};
use crate::run_stats::RunStats;
use crate::{BackendChoice, Error, Result, Tensor};
use frit_plan::{InputFill, Plan, Port, Program, RAN, Task, TensorSource, sizes};
use std::path::Path;
use std::sync::Arc;

/// The state that shifts the positions of a row's tokens, because it is padded on the left.
pub(crate) const POS_OFFSET: &str = "pos_offset";

/// How a session is made.
pub struct SessionBuilder<'p> {
    choice: BackendChoice,
    reserve: Vec<(String, u64)>,
    progress: Box<dyn FnMut(Stage) + 'p>,
}

impl<'p> SessionBuilder<'p> {
    /// The backend; [`BackendChoice::Auto`] unless said.
    pub fn backend(mut self, choice: BackendChoice) -> Self {
        self.choice = choice;
        self
    }
    /// Lays buffers out for this value of a size (see [`frit_plan::sizes`]) from the start. A session grows by itself;
    /// reserving spares the second layout.
    pub fn reserve(mut self, size: &str, value: u64) -> Self {
        self.reserve.push((size.into(), value));
        self
    }
    /// Told what is being done.
    pub fn progress(mut self, told: impl FnMut(Stage) + 'p) -> Self {
        self.progress = Box::new(told);
        self
    }
    /// Opens a model and binds it.
    ///
    /// # Errors
    /// A model that cannot be read or compiled, a device that cannot run it.
    pub fn load(mut self, path: &Path) -> Result<Session> {
        let model = model_source::open(path, &mut self.progress)?;
        self.open(&model)
    }
    /// Binds a model that is open already.
    ///
    /// # Errors
    /// A device that cannot run it.
    pub fn open(self, model: &LoadedModel) -> Result<Session> {
        self.bind(Arc::clone(&model.plan), &*model.weights)
    }
    /// Binds a plan.
    ///
    /// # Errors
    /// A plan that contradicts itself, a device that cannot run it.
    pub fn bind(self, plan: Arc<Plan>, weights: &dyn TensorSource) -> Result<Session> {
        let backend = self.choice.open()?;
        self.bind_on(&*backend, plan, weights)
    }
    /// Binds a plan on a backend of the host's own.
    ///
    /// # Errors
    /// As [`SessionBuilder::bind`].
    pub fn bind_on(mut self, backend: &dyn Backend, plan: Arc<Plan>, weights: &dyn TensorSource) -> Result<Session> {
        plan.validate().map_err(|e| Error::Plan(e.to_string()))?;
        let extent = first_extent(&plan, &self.reserve)?;
        check_memory(&plan, &extent)?;
        let told = &mut self.progress;
        let mut bytes = |done, all| told(Stage::Weights(done, all));
        let executor = backend.bind(Arc::clone(&plan), weights, &Extent(extent.clone()), &mut bytes)?;
        let stats = RunStats::new(&plan);
        let (backend, device) = (backend.name(), backend.device());
        Ok(Session {
            plan,
            executor,
            extent,
            stats,
            backend,
            device,
            passes: 1,
            ff_active: None,
            takes_buckets: true,
            always_in_parts: false,
        })
    }
}

/// The first layout: what is reserved, else one sequence of moderate length.
fn first_extent(plan: &Plan, reserve: &[(String, u64)]) -> Result<Vec<u64>> {
    const MODERATE: u64 = 128;
    for (n, _) in reserve {
        if plan.size_index(n).is_none() {
            return Err(Error::Option { option: format!("size {n}"), reason: "the model has no such size".into() });
        }
    }
    let mut out = Vec::with_capacity(plan.sizes.len());
    for z in &plan.sizes {
        let wanted = reserve.iter().find(|r| r.0 == z.name).map(|r| r.1);
        let usual = match z.name.as_str() {
            sizes::TOKENS | sizes::CAPACITY | sizes::PAST | sizes::POSITIONS => MODERATE,
            sizes::ACTIVE => z.max.unwrap_or(1),
            _ => 1,
        };
        let limit = z.max.unwrap_or(u64::MAX);
        match wanted {
            Some(wanted) if wanted > limit => {
                return Err(Error::Limit { what: format!("size {}", z.name), wanted, limit });
            }
            _ => out.push(wanted.unwrap_or(usual).max(z.min).min(limit)),
        }
    }
    settle(plan, &mut out);
    Ok(out)
}

/// A cache has room for the tokens of a run, and the past for as many as the cache.
fn settle(plan: &Plan, extent: &mut [u64]) {
    let at = |n| plan.size_index(n);
    let (Some(s), Some(p), Some(t)) = (at(sizes::TOKENS), at(sizes::PAST), at(sizes::CAPACITY)) else { return };
    let tokens = extent.get(s).copied().unwrap_or(0);
    let Some(cap) = extent.get_mut(t) else { return };
    *cap = (*cap).max(tokens);
    let cap = *cap;
    if let Some(past) = extent.get_mut(p) {
        *past = cap;
    }
}

/// The arenas of an extent have a size that can be asked for, and every value lies inside its slot.
fn check_memory(plan: &Plan, extent: &[u64]) -> Result<()> {
    const LIMIT: u64 = 1 << 40;
    let mut total = 0u64;
    let mut add = |elems: u64| {
        total = total.saturating_add(elems.saturating_mul(4));
        if total > LIMIT {
            return Err(Error::Limit { what: "bytes of the model's buffers".into(), wanted: total, limit: LIMIT });
        }
        Ok(())
    };
    let product = |shape: &[frit_kernels::dim::Dim]| plan.eval(&frit_kernels::dim::product(shape), extent);
    for s in &plan.kv_slots {
        add(product(&s.k_shape)?)?;
        add(product(&s.v_shape)?)?;
    }
    for s in &plan.states {
        add(product(&s.shape)?)?;
    }
    for g in &plan.programs {
        let mut at = extent.to_vec();
        let caps = g.fixed.iter().chain(&g.at_most);
        for (i, v) in caps.filter_map(|(n, v)| Some((plan.size_index(n)?, *v))) {
            if let Some(slot) = at.get_mut(i) {
                *slot = if g.fixed.iter().any(|f| plan.size_index(&f.0) == Some(i)) { v } else { (*slot).min(v) };
            }
        }
        for d in g.arena.sizes.iter().chain(&g.ints.sizes) {
            add(plan.eval(d, &at)?)?;
        }
        for v in &g.values {
            let slots = if v.storage == frit_kernels::dtype::Storage::F32 { &g.arena } else { &g.ints };
            let slot = slots.sizes.get(v.slot as usize).map(|d| plan.eval(d, &at)).transpose()?.unwrap_or(0);
            let need = plan.eval(&frit_kernels::dim::product(&v.shape), &at)?;
            if need > slot {
                return Err(Error::Plan(format!("value `{}` needs {need} elements of a slot of {slot}", v.name)));
            }
        }
    }
    Ok(())
}

/// A model bound to a device: tensors in and out by name; decoders also [generate](Session::generate).
pub struct Session {
    pub(crate) plan: Arc<Plan>,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) extent: Vec<u64>,
    pub(crate) stats: RunStats,
    backend: &'static str,
    device: String,
    /// Passes of the last run.
    passes: u64,
    /// Inner values of feed-forward parts that are computed, where a run chooses; all of them unless said.
    ff_active: Option<u64>,
    /// Whether programs for few rows are run where the rows are few.
    pub(crate) takes_buckets: bool,
    /// Attention takes its keys in parts wherever a program does so, whatever the device and however few they are.
    pub(crate) always_in_parts: bool,
}

impl Session {
    /// A session to be configured.
    pub fn builder<'p>() -> SessionBuilder<'p> {
        SessionBuilder { choice: BackendChoice::Auto, reserve: Vec::new(), progress: Box::new(|_| {}) }
    }
    /// Opens a model on the best backend.
    ///
    /// # Errors
    /// As [`SessionBuilder::load`].
    pub fn load(path: impl AsRef<Path>) -> Result<Session> {
        Session::builder().load(path.as_ref())
    }
    /// The compiled model.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }
    /// `cpu`, `wgpu`.
    pub fn backend(&self) -> &'static str {
        self.backend
    }
    /// The device, for people.
    pub fn device(&self) -> &str {
        &self.device
    }
    /// What has been created and moved so far.
    pub fn counters(&self) -> Counters {
        self.executor.counters()
    }
    /// The kind of device.
    pub fn tier(&self) -> frit_kernels::target::Tier {
        self.executor.tier()
    }
    /// Computes the first `width` inner values of every feed-forward part from now on, with the weights as they are: for
    /// models that were compiled for widths chosen at run time.
    ///
    /// # Errors
    /// A model without such a choice, a width that it does not have.
    pub fn set_ff_active(&mut self, width: u64) -> Result<()> {
        let option = || format!("ff_active {width}");
        let reason = "the model was not compiled for widths chosen at run time".to_owned();
        let size = self.plan.sizes.iter().find(|z| z.name == sizes::ACTIVE);
        let size = size.ok_or_else(|| Error::Option { option: option(), reason })?;
        let most = size.max.unwrap_or(u64::MAX);
        if !(size.min..=most).contains(&width) {
            return Err(Error::Option { option: option(), reason: format!("the widths are 1 to {most}") });
        }
        self.ff_active = Some(width);
        Ok(())
    }
    /// Sets the chosen width in a table of sizes.
    pub(crate) fn narrow(&self, values: &mut [u64]) {
        let Some(i) = self.plan.size_index(sizes::ACTIVE) else { return };
        let most = self.plan.sizes.get(i).and_then(|z| z.max).unwrap_or(1);
        if let Some(slot) = values.get_mut(i) {
            *slot = self.ff_active.unwrap_or(most);
        }
    }
    /// Asks for the time of runs by the device's own clock, where it has one.
    pub fn time_on_device(&mut self, wanted: bool) {
        self.executor.time_on_device(wanted);
    }
    /// Seconds that the kernels of the last [`Session::run`] took by the device's clock; none where that was not asked
    /// for, or there is no such clock.
    pub fn device_seconds(&self) -> Option<f64> {
        self.executor.device_seconds()
    }
    /// What the last [`Session::run`] or [`Session::generate`] executed, where a policy decides about it.
    pub fn stats(&self) -> &RunStats {
        &self.stats
    }
    /// Bytes held on the device: weights, cache, arenas.
    pub fn memory_bytes(&self) -> [u64; 3] {
        self.executor.memory_bytes()
    }

    /// Runs the model on tensors by name and returns all its outputs.
    ///
    /// A decoder is run on `input_ids` without a history, with `attention_mask` telling which tokens others see;
    /// positions count from the start of the row whatever the mask says. Of a model with an encoder and a decoder the
    /// encoder alone is run when the decoder's tokens are not given.
    ///
    /// # Errors
    /// [`Error::Inputs`] with everything that is wrong with the inputs; failures of the device.
    pub fn run<N: AsRef<str>>(&mut self, inputs: &[(N, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let plan = Arc::clone(&self.plan);
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_ref(), t)).collect();
        let find = |name: &str| plan.programs.iter().position(|p| p.name == name);
        let complete = |i: &usize| {
            let needed = plan.programs.get(*i).into_iter().flat_map(|p| &p.inputs);
            needed.filter(|p| p.fill == InputFill::Required).all(|p| given.iter().any(|(n, _)| *n == p.name))
        };
        let only = plan.programs.iter().filter(|p| !plan.is_bucket(p)).count() == 1;
        let forward = find("forward").or(only.then_some(0));
        let encode = find("encode").filter(complete);
        let index = forward.filter(complete).or(encode).or(forward).ok_or_else(|| self.lacks("forward"))?;
        let program = plan.programs.get(index).ok_or_else(|| self.lacks("forward"))?;
        let Bound { mut sizes, inputs, key_mask } = binding::bind(&plan, program, &given)?;
        self.narrow(&mut sizes);
        self.grow(&sizes)?;
        if plan.model.task == Task::Decoder {
            self.forget(&sizes, key_mask)?;
        }
        let outputs = self.outputs(index, &sizes, &inputs)?;
        self.stats = RunStats { passes: self.passes, ..RunStats::new(&plan) };
        let named: Vec<(String, Tensor)> = program.outputs.iter().map(|p| p.name.clone()).zip(outputs).collect();
        self.stats.add(named.iter().map(|(n, t)| (n.as_str(), t)), None);
        let size = |n: &str| plan.size_index(n).and_then(|i| sizes.get(i).copied());
        let [rows, tokens] = [size(frit_plan::sizes::BATCH), size(frit_plan::sizes::TOKENS)];
        self.stats.add_whole(&plan, rows.zip(tokens).map_or(0, |(b, s)| b.saturating_mul(s)));
        Ok(named.into_iter().filter(|(n, _)| !n.starts_with(RAN)).collect())
    }

    /// All outputs of a program. One that takes a token at a time, as decoders do whose layers read what layers above
    /// them made of the token before, runs once for each; outputs with an extent of tokens are put together.
    fn outputs(&mut self, index: usize, sizes: &[u64], inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let plan = Arc::clone(&self.plan);
        let index = self.fitting(index, sizes)?;
        let program = plan.programs.get(index).ok_or_else(|| self.lacks("forward"))?;
        let wanted: Vec<usize> = (0..program.outputs.len()).collect();
        let at = |n: &str| plan.size_index(n);
        let steps = binding::steps(&plan, sizes);
        let (Some(tokens), Some(past), true) = (at(sizes::TOKENS), at(sizes::PAST), steps > 1) else {
            let (out, passes) = self.run_passes(index, sizes, &inputs.iter().collect::<Vec<_>>(), &wanted)?;
            self.passes = passes;
            return Ok(out);
        };
        let mut parts: Vec<Vec<Tensor>> = vec![Vec::new(); wanted.len()];
        for step in 0..steps {
            let mut now = sizes.to_vec();
            for (i, v) in [(tokens, 1), (past, step)] {
                if let Some(slot) = now.get_mut(i) {
                    *slot = v;
                }
            }
            let cut =
                |(p, t): (&Port, &Tensor)| binding::along_tokens(p).map_or(Ok(t.clone()), |k| t.slice(k, step, 1));
            let own: Vec<Tensor> = program.inputs.iter().zip(inputs).map(cut).collect::<Result<_>>()?;
            let made = self.executor.run(index, &now, &own.iter().collect::<Vec<_>>(), &wanted)?;
            parts.iter_mut().zip(made).for_each(|(all, t)| all.push(t));
        }
        let join = |(p, mut parts): (&Port, Vec<Tensor>)| match (binding::along_tokens(p), parts.pop()) {
            (Some(k), Some(last)) => {
                parts.push(last);
                Tensor::concat(&parts, k)
            }
            (None, Some(last)) => Ok(last),
            (_, None) => Err(Error::Device("the program gave no output".into())),
        };
        program.outputs.iter().zip(parts).map(join).collect()
    }

    /// The program to run in place of program `index` for these sizes. All that may take its place are made ready at once.
    pub(crate) fn fitting(&mut self, index: usize, sizes: &[u64]) -> Result<usize> {
        if !self.takes_buckets {
            return Ok(index);
        }
        let plan = Arc::clone(&self.plan);
        let tier = self.executor.tier();
        let serves = |i: &usize| {
            let instead = plan.programs.get(*i).and_then(|p| p.instead.as_ref());
            instead.is_none_or(|x| x.from(tier).is_some())
        };
        for bucket in plan.buckets(index).filter(serves) {
            self.executor.prepare(bucket)?;
        }
        let of = plan.programs.get(index).map(|p| p.name.as_str());
        let in_parts = |p: &Program| p.instead.as_ref().is_some_and(|x| Some(x.of.as_str()) == of);
        match plan.programs.iter().position(in_parts).filter(|_| self.always_in_parts) {
            Some(i) => Ok(i),
            None => Ok(plan.fitting(index, sizes, tier)),
        }
    }

    /// Sets a decoder's states for a run without history.
    fn forget(&mut self, values: &[u64], key_mask: Option<Vec<i32>>) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        if let Some(i) = state(&plan, KEY_MASK) {
            let len = state_len(&plan, i, values)?;
            let mask = key_mask.unwrap_or_else(|| vec![1; len]);
            self.executor.write_state(i, values, &mask)?;
        }
        if let Some(i) = state(&plan, POS_OFFSET) {
            let len = state_len(&plan, i, values)?;
            self.executor.write_state(i, values, &vec![0; len])?;
        }
        Ok(())
    }

    /// Makes room for `values`; the cache is lost when there was not enough.
    pub(crate) fn grow(&mut self, values: &[u64]) -> Result<()> {
        if let Some(extent) = self.larger(values)? {
            self.executor.resize(&extent)?;
            self.extent = extent.0;
        }
        Ok(())
    }
    /// The layout that `values` need, where the present one is too small.
    pub(crate) fn larger(&self, values: &[u64]) -> Result<Option<Extent>> {
        if values.iter().zip(&self.extent).all(|(v, e)| v <= e) {
            return Ok(None);
        }
        let mut extent: Vec<u64> = values.iter().zip(&self.extent).map(|(v, e)| *v.max(e)).collect();
        settle(&self.plan, &mut extent);
        check_memory(&self.plan, &extent)?;
        Ok(Some(Extent(extent)))
    }

    pub(crate) fn lacks(&self, program: &str) -> Error {
        let reason = format!("has no program `{program}`, only {}", names(&self.plan.programs));
        Error::Task { model: self.plan.model.name.clone(), reason }
    }
}

pub(crate) fn state(plan: &Plan, name: &str) -> Option<usize> {
    plan.states.iter().position(|s| s.name == name)
}

/// Elements of a state under given sizes.
pub(crate) fn state_len(plan: &Plan, state: usize, values: &[u64]) -> Result<usize> {
    let shape = plan.states.get(state).map(|s| s.shape.as_slice()).unwrap_or_default();
    let len = plan.eval(&frit_kernels::dim::product(shape), values)?;
    usize::try_from(len).map_err(|_| Error::Limit {
        what: "elements of a state".into(),
        wanted: len,
        limit: usize::MAX as u64,
    })
}

fn names(programs: &[Program]) -> String {
    let all: Vec<&str> = programs.iter().map(|p| p.name.as_str()).collect();
    all.join(", ")
}
