//! From named tensors to a program's sizes and inputs. Everything wrong with what a host gives is found at once.

use crate::tensor::Data;
use crate::{Error, Result, Tensor};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_plan::{BufferRef, InputFill, Plan, Port, Program, Task, sizes};

/// The state that tells which key positions are visible.
pub(crate) const KEY_MASK: &str = "key_mask";
/// The input of decoders and encoders that holds tokens.
pub(crate) const INPUT_IDS: &str = "input_ids";
/// The input of a decoder behind an encoder that holds tokens.
const DECODER_INPUT_IDS: &str = "decoder_input_ids";
/// The input that tells tokens from padding; decoders keep it in [`KEY_MASK`].
pub(crate) const ATTENTION_MASK: &str = "attention_mask";

/// A program's sizes and inputs.
#[derive(Debug, PartialEq)]
pub(crate) struct Bound {
    /// Values of [`Plan::sizes`].
    pub sizes: Vec<u64>,
    /// Input i of the program, of its type.
    pub inputs: Vec<Tensor>,
    /// What was given for the attention mask of a decoder that keeps it as a state.
    pub key_mask: Option<Vec<i32>>,
}

pub(crate) fn bind(plan: &Plan, program: &Program, given: &[(&str, &Tensor)]) -> Result<Bound> {
    let mut b = Binder { plan, program, faults: Vec::new(), table: vec![None; plan.sizes.len()], from: Vec::new() };
    let out = b.all(given);
    match out {
        Some(bound) if b.faults.is_empty() => Ok(bound),
        _ => Err(Error::Inputs(b.faults)),
    }
}

/// How many runs a decoder's tokens take: one, or one a token where the plan takes no more at once.
pub(crate) fn steps(plan: &Plan, values: &[u64]) -> u64 {
    match (plan.model.task, plan.size_index(sizes::TOKENS)) {
        (Task::Decoder, Some(i)) if takes_one(plan) => values.get(i).copied().unwrap_or(1),
        _ => 1,
    }
}

/// Whether a decoder takes one token of each sequence at a time.
fn takes_one(plan: &Plan) -> bool {
    let tokens = plan.sizes.iter().find(|z| z.name == sizes::TOKENS);
    plan.model.task == Task::Decoder && tokens.is_some_and(|z| z.max == Some(1))
}

/// The axis of a port that runs over tokens.
pub(crate) fn along_tokens(p: &Port) -> Option<usize> {
    p.shape.iter().position(|d| d.as_size() == Some(sizes::TOKENS))
}

struct Binder<'a> {
    plan: &'a Plan,
    program: &'a Program,
    faults: Vec<String>,
    table: Vec<Option<u64>>,
    from: Vec<(usize, String)>,
}

impl<'a> Binder<'a> {
    fn fault(&mut self, text: String) {
        self.faults.push(format!("  {text}"));
    }

    fn all(&mut self, given: &[(&str, &Tensor)]) -> Option<Bound> {
        for (n, v) in &self.program.fixed {
            if let Some(i) = self.plan.size_index(n) {
                self.set(i, *v, &format!("program `{}`", self.program.name));
            }
        }
        let masked = self.mask_port();
        let mask_shape = masked.as_ref().map(|p| p.shape.clone());
        let find = |p: &Port| given.iter().find(|(n, _)| *n == p.name).map(|(_, t)| *t);
        let ports: Vec<&Port> = self.program.inputs.iter().chain(&masked).collect();
        self.names(given, &ports);
        for p in &ports {
            if let Some(t) = find(p) {
                self.shape(p, t);
            }
        }
        self.defaults();
        let sizes: Option<Vec<u64>> = self.table.iter().copied().collect();
        for i in 0..self.table.len() {
            if self.table.get(i) == Some(&None)
                && let Some(z) = self.plan.sizes.get(i)
            {
                self.fault(format!("size {} does not follow from the inputs given", z.name));
            }
        }
        let sizes = sizes?;
        self.ranges(&sizes);
        if !self.faults.is_empty() {
            return None;
        }
        for p in &ports {
            if let Some(t) = find(p) {
                self.extents(p, t, &sizes);
            }
        }
        let mut inputs = Vec::with_capacity(self.program.inputs.len());
        for p in &self.program.inputs {
            let t = match find(p) {
                Some(t) => convert(t, p.storage),
                None => self.filled(p, &sizes),
            };
            match t {
                Ok(t) => {
                    self.tokens(p, &t);
                    inputs.push(t);
                }
                Err(e) => self.fault(format!("`{}`: {e}", p.name)),
            }
        }
        let key_mask = match masked.as_ref().and_then(|p| find(p).map(|t| convert(t, p.storage))) {
            Some(Ok(t)) => t.as_i32().map(<[i32]>::to_vec),
            Some(Err(e)) => {
                self.fault(format!("`{ATTENTION_MASK}`: {e}"));
                None
            }
            None => None,
        };
        debug_assert!(key_mask.is_none() || mask_shape.is_some());
        Some(Bound { sizes, inputs, key_mask })
    }

    /// The port that stands for a decoder's key mask, which is a state and no input.
    fn mask_port(&self) -> Option<Port> {
        let ids = self.program.inputs.iter().find(|p| p.name == INPUT_IDS)?;
        let own = self.program.inputs.iter().any(|p| p.name == ATTENTION_MASK);
        let state = self.plan.states.iter().position(|s| s.name == KEY_MASK)?;
        (!own && self.plan.model.task == Task::Decoder).then(|| Port {
            name: ATTENTION_MASK.into(),
            storage: Storage::Bool,
            shape: ids.shape.clone(),
            buffer: BufferRef::State(state as u32),
            fill: InputFill::Ones,
        })
    }

    fn names(&mut self, given: &[(&str, &Tensor)], ports: &[&Port]) {
        for (i, (n, _)) in given.iter().enumerate() {
            if !ports.iter().any(|p| p.name == *n) {
                let known: Vec<&str> = ports.iter().map(|p| p.name.as_str()).collect();
                self.fault(format!("`{n}` is no input of this model; its inputs are {}", known.join(", ")));
            }
            if given.iter().take(i).any(|(m, _)| m == n) {
                self.fault(format!("`{n}` is given twice"));
            }
        }
        for p in ports {
            if p.fill == InputFill::Required && !given.iter().any(|(n, _)| *n == p.name) {
                self.fault(format!("`{}` is missing: {} of shape {}", p.name, p.storage, shape_text(&p.shape)));
            }
        }
    }

    fn shape(&mut self, p: &Port, t: &Tensor) {
        if p.shape.len() != t.shape().len() {
            self.fault(format!("`{}`: shape {} expected, {:?} found", p.name, shape_text(&p.shape), t.shape()));
            return;
        }
        for (k, (d, n)) in p.shape.iter().zip(t.shape()).enumerate() {
            if let Some(i) = d.as_size().and_then(|s| self.plan.size_index(s)) {
                self.set(i, *n, &format!("extent {k} of `{}`", p.name));
            }
        }
    }

    fn set(&mut self, i: usize, v: u64, by: &str) {
        let name = self.plan.sizes.get(i).map_or("", |z| z.name.as_str());
        match self.table.get(i).copied().flatten() {
            Some(old) if old != v => {
                let first = self.from.iter().find(|f| f.0 == i).map_or("", |f| f.1.as_str());
                let text = format!("size {name} is {old} by {first}, but {v} by {by}");
                self.fault(text);
            }
            Some(_) => {}
            None => {
                if let Some(slot) = self.table.get_mut(i) {
                    *slot = Some(v);
                }
                self.from.push((i, by.to_owned()));
            }
        }
    }

    /// A decoder that runs without a history has no past, and needs room for what it is given. Of a decoder with an
    /// encoder, each program takes some of the sizes only.
    fn defaults(&mut self) {
        if self.plan.model.task == Task::Graph {
            return;
        }
        if self.plan.model.task == Task::EncoderDecoder {
            for (slot, size) in self.table.iter_mut().zip(&self.plan.sizes) {
                let own = |p: &Port| p.shape.iter().any(|d| d.as_size() == Some(&size.name));
                if size.name != sizes::CAPACITY && !self.program.inputs.iter().any(own) {
                    slot.get_or_insert(size.min);
                }
            }
        }
        let at = |n: &str| self.plan.size_index(n);
        let (past, cap) = (at(sizes::PAST), at(sizes::CAPACITY));
        let tokens = at(sizes::TOKENS).and_then(|i| self.table.get(i).copied().flatten());
        if let Some(Some(slot)) = past.map(|i| self.table.get_mut(i)) {
            slot.get_or_insert(0);
        }
        for room in [cap, at(sizes::POSITIONS)] {
            if let (Some(Some(slot)), Some(s)) = (room.map(|i| self.table.get_mut(i)), tokens) {
                slot.get_or_insert(s);
            }
        }
        let active = self.plan.sizes.iter().position(|z| z.name == sizes::ACTIVE);
        if let Some((slot, z)) = active.and_then(|i| self.table.get_mut(i).zip(self.plan.sizes.get(i))) {
            slot.get_or_insert(z.max.unwrap_or(z.min));
        }
        // A graph with sizes of its own, such as an export that takes the past from the host, mentions none of these.
        let own = [sizes::BATCH, sizes::TOKENS, sizes::CAPACITY];
        for i in own.iter().filter_map(|n| at(n)) {
            let name = self.plan.sizes.get(i).map(|z| z.name.as_str());
            let symbols = self.program.inputs.iter().flat_map(|p| &p.shape).flat_map(Dim::symbols);
            let mentioned = symbols.map(|s| s.to_string()).any(|s| Some(s.as_str()) == name);
            if let (false, Some(slot)) = (mentioned, self.table.get_mut(i)) {
                slot.get_or_insert(1);
            }
        }
    }

    fn ranges(&mut self, values: &[u64]) {
        for (z, v) in self.plan.sizes.iter().zip(values) {
            let past = z.name == sizes::PAST && *v == 0;
            let stepped = z.name == sizes::TOKENS && takes_one(self.plan);
            let bound = self.program.at_most.iter().find(|a| a.0 == z.name).map(|a| a.1).into_iter().chain(z.max).min();
            if *v < z.min && !past {
                self.fault(format!("size {} is {v}, at least {} is needed", z.name, z.min));
            }
            if let Some(m) = bound.filter(|m| v > m && !stepped) {
                self.fault(format!("size {} is {v}, at most {m} is possible", z.name));
            }
        }
        for (sum, max) in &self.program.limits {
            match self.plan.eval(sum, values) {
                Ok(v) if v <= *max => {}
                Ok(v) => self.fault(format!("{sum} is {v}, at most {max} is possible")),
                Err(e) => self.fault(format!("{sum}: {e}")),
            }
        }
    }

    fn extents(&mut self, p: &Port, t: &Tensor, values: &[u64]) {
        for (k, (d, n)) in p.shape.iter().zip(t.shape()).enumerate() {
            if d.as_size().is_some() {
                continue;
            }
            match self.plan.eval(d, values) {
                Ok(v) if v == *n => {}
                Ok(v) => self.fault(format!("`{}`: extent {k} is {d} = {v}, {n} found", p.name)),
                Err(e) => self.fault(format!("`{}`: {e}", p.name)),
            }
        }
    }

    fn filled(&self, p: &Port, values: &[u64]) -> std::result::Result<Tensor, String> {
        let shape: Vec<u64> = p
            .shape
            .iter()
            .map(|d| self.plan.eval(d, values))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| e.to_string())?;
        let len = shape.iter().try_fold(1u64, |a, d| a.checked_mul(*d)).and_then(|n| usize::try_from(n).ok());
        let len = len.ok_or("too many elements")?;
        let one = p.fill == InputFill::Ones;
        let data = match p.storage.scalar() {
            Scalar::F32 => Data::F32(vec![if one { 1.0 } else { 0.0 }; len]),
            _ => Data::I32(vec![i32::from(one); len]),
        };
        Tensor::new(shape, data).map_err(|e| e.to_string())
    }

    /// Token ids lie in the vocabulary.
    fn tokens(&mut self, p: &Port, t: &Tensor) {
        let vocab = self.plan.model.vocab;
        let pair = self.plan.model.task == Task::EncoderDecoder;
        let vocab = if pair && p.name == INPUT_IDS { self.plan.model.source_vocab } else { vocab };
        let names_tokens = p.name == INPUT_IDS || p.name == DECODER_INPUT_IDS;
        let (true, Some(ids)) = (names_tokens && vocab > 0, t.as_i32()) else { return };
        let outside = |v: &&i32| u64::try_from(**v).map_or(true, |v| v >= vocab);
        if let Some(v) = ids.iter().find(outside) {
            self.fault(format!("`{}`: token {v} is not in the vocabulary of {vocab}", p.name));
        }
    }
}

/// A tensor as a port takes it: numbers may become floats, and anything but 0 is true.
fn convert(t: &Tensor, to: Storage) -> std::result::Result<Tensor, String> {
    let data = match (t.data(), to) {
        (Data::F32(v), Storage::F32) => Data::F32(v.clone()),
        (Data::I32(v), Storage::F32) => Data::F32(v.iter().map(|x| *x as f32).collect()),
        (Data::I32(v), Storage::I32) => Data::I32(v.clone()),
        (Data::I32(v), Storage::Bool) => Data::I32(v.iter().map(|x| i32::from(*x != 0)).collect()),
        (Data::F32(v), Storage::Bool) => Data::I32(v.iter().map(|x| i32::from(*x != 0.0)).collect()),
        (Data::F32(_), other) => return Err(format!("{other} expected, floats found")),
        (Data::I32(_), other) => return Err(format!("{other} expected, integers found")),
    };
    Tensor::new(t.shape().to_vec(), data).map_err(|e| e.to_string())
}

pub(crate) fn shape_text(shape: &[Dim]) -> String {
    let parts: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", parts.join(", "))
}
