//! A model without kernels, and a backend that computes it on the host: the next token depends on every visible token
//! and its position, so that a wrong mask, position, chunk or order shows.

use crate::backend::{Backend, Counters, Executor, Extent, Progress};
use crate::{GenerateOptions, Generation, NewToken, Result, Session, Tensor};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_plan::*;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

pub(crate) const VOCAB: u64 = 97;

fn dims(text: &str) -> Vec<Dim> {
    text.split_whitespace().map(|t| t.parse().unwrap()).collect()
}

fn port(name: &str, storage: Storage, shape: &str, buffer: BufferRef) -> Port {
    Port { name: name.into(), storage, shape: dims(shape), buffer, fill: InputFill::Required }
}

fn program(name: &str, tokens: &str, logits: &str) -> Program {
    let value = |name: &str, storage, shape: &str| ValueDecl {
        name: name.into(),
        storage,
        shape: dims(shape),
        slot: 0,
        live: (0, 0),
    };
    let product = |shape: &str| frit_kernels::dim::product(&dims(shape));
    Program {
        name: name.into(),
        fixed: vec![],
        at_most: vec![],
        limits: Vec::new(),
        instead: None,
        inputs: vec![port("input_ids", Storage::I32, tokens, BufferRef::Value(0))],
        outputs: vec![port("logits", Storage::F32, logits, BufferRef::Value(1))],
        values: vec![value("ids", Storage::I32, tokens), value("logits", Storage::F32, logits)],
        arena: SlotLayout { sizes: vec![product(logits)] },
        ints: SlotLayout { sizes: vec![product(tokens)] },
        steps: vec![],
    }
}

/// A decoder with room for `context` tokens.
pub(crate) fn decoder(context: u64, eos: &[u32]) -> Plan {
    let next = port("next_token", Storage::I32, "B 1", BufferRef::State(2));
    let mut prefill = program("prefill", "B S", "B 1 97");
    prefill.outputs.push(next.clone());
    let mut decode = program("decode", "B 1", "B 1 97");
    decode.inputs.clear();
    decode.outputs.push(next.clone());
    decode.fixed = vec![("S".into(), 1)];
    decode.at_most = vec![("B".into(), 2)];
    let mut wide = program("decode_wide", "B 1", "B 1 97");
    wide.fixed = vec![("S".into(), 1)];
    wide.outputs.push(next);
    let state = |name: &str, storage, shape: &str| StateDecl { name: name.into(), storage, shape: dims(shape) };
    let phase = PhaseReport {
        program: "decode".into(),
        dispatches: 7,
        unfused_dispatches: 30,
        ledger: Ledger {
            weights: Dim::from(1000u64),
            activations_unfused: "B*P + 500".parse().unwrap(),
            activations_fused: "B*P".parse().unwrap(),
            total: "B*P + 1000".parse().unwrap(),
        },
        ..PhaseReport::default()
    };
    let size = |name: &str, min, max| SizeDecl { name: name.into(), min, max };
    Plan {
        version: PLAN_VERSION,
        compiler: "test".into(),
        model: ModelInfo {
            name: "counting".into(),
            architecture: "test".into(),
            task: Task::Decoder,
            layers: 1,
            context,
            vocab: VOCAB,
            eos: eos.to_vec(),
            bos: None,
            source_vocab: 0,
            start: Vec::new(),
            tokenizer: None,
            cache_obstacle: None,
            retention: None,
            passes: None,
            rules: Default::default(),
            chat: None,
        },
        sizes: vec![
            size("B", 1, None),
            size("S", 1, Some(context)),
            size("P", 0, Some(context)),
            size("T", 1, Some(context)),
        ],
        weights: vec![],
        kv_slots: vec![],
        states: vec![
            state("key_mask", Storage::Bool, "B T"),
            state("pos_offset", Storage::I32, "B"),
            state("next_token", Storage::I32, "B 1"),
        ],
        kernels: vec![],
        programs: vec![program("forward", "B S", "B S 97"), prefill, decode, wide],
        report: FusionReport { phases: vec![phase], ..FusionReport::default() },
    }
}

/// What the device has been asked to do.
#[derive(Default)]
pub(crate) struct Log {
    pub runs: Vec<(String, Vec<u64>)>,
    pub state_writes: usize,
    pub resizes: usize,
}

#[derive(Clone, Default)]
pub(crate) struct Host(pub Arc<Mutex<Log>>);

struct Machine {
    plan: Arc<Plan>,
    extent: Vec<u64>,
    cache: HashMap<(u64, u64), (i64, i64)>,
    states: HashMap<usize, Vec<i32>>,
    log: Arc<Mutex<Log>>,
}

impl Backend for Host {
    fn name(&self) -> &'static str {
        "host"
    }
    fn device(&self) -> String {
        "test".into()
    }
    fn is_hardware(&self) -> bool {
        false
    }
    fn bind(
        &self,
        plan: Arc<Plan>,
        _: &dyn TensorSource,
        extent: &Extent,
        _: Progress<'_>,
    ) -> Result<Box<dyn Executor>> {
        let (cache, states) = (HashMap::new(), HashMap::new());
        Ok(Box::new(Machine { plan, extent: extent.0.clone(), cache, states, log: self.0.clone() }))
    }
}

/// The token that follows visible tokens at their positions.
fn next(visible: impl Iterator<Item = (i64, i64)>) -> i64 {
    visible.map(|(t, p)| (t + 3) * (p + 1)).sum::<i64>() % VOCAB as i64
}

impl Executor for Machine {
    fn prepare(&mut self, program: usize) -> Result<()> {
        assert!(program < self.plan.programs.len(), "program {program}");
        Ok(())
    }
    fn resize(&mut self, extent: &Extent) -> Result<()> {
        self.extent = extent.0.clone();
        self.cache.clear();
        self.log.lock().unwrap().resizes += 1;
        Ok(())
    }
    fn write_state(&mut self, state: usize, sizes: &[u64], data: &[i32]) -> Result<()> {
        let want: u64 = self.plan.states[state].shape.iter().map(|d| self.plan.eval(d, sizes).unwrap()).product();
        assert_eq!(want, data.len() as u64, "state {state}");
        self.states.insert(state, data.to_vec());
        self.log.lock().unwrap().state_writes += 1;
        Ok(())
    }
    fn run(&mut self, program: usize, sizes: &[u64], inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>> {
        assert!(sizes.iter().zip(&self.extent).all(|(s, e)| s <= e), "{sizes:?} beyond {:?}", self.extent);
        let g = self.plan.programs[program].clone();
        self.log.lock().unwrap().runs.push((g.name.clone(), sizes.to_vec()));
        let &[b, s, p, t] = sizes else { unreachable!() };
        let ids = match inputs {
            [ids] => ids.as_i32().unwrap().to_vec(),
            _ => self.states[&2].clone(),
        };
        let (mask, offset) = (&self.states[&0], &self.states[&1]);
        let mut out = Vec::new();
        for row in 0..b {
            for i in 0..s {
                let pos = (i64::try_from(p + i).unwrap() + i64::from(offset[row as usize])).max(0);
                self.cache.insert((row, p + i), (i64::from(ids[(row * s + i) as usize]), pos));
                let seen = (0..=p + i).filter(|k| mask[(row * t + k) as usize] != 0);
                out.push(next(seen.map(|k| self.cache[&(row, k)])));
            }
        }
        let every = g.name == "forward";
        let chosen: Vec<i64> = if every { out } else { out.chunks(s as usize).map(|c| *c.last().unwrap()).collect() };
        if !every {
            self.states.insert(2, chosen.iter().map(|t| *t as i32).collect());
        }
        let tensor = |i: &usize| match g.outputs[*i].name.as_str() {
            "logits" => {
                let n = if every { s } else { 1 };
                let v = chosen.iter().flat_map(|t| (0..VOCAB as i64).map(move |k| if k == *t { 9.0 } else { 0.0 }));
                Tensor::f32(&[b, n, VOCAB], v.collect()).unwrap()
            }
            _ => Tensor::i32(&[b, 1], chosen.iter().map(|t| *t as i32).collect()).unwrap(),
        };
        Ok(wanted.iter().map(tensor).collect())
    }
    fn counters(&self) -> Counters {
        Counters::default()
    }
    fn memory_bytes(&self) -> [u64; 3] {
        [0; 3]
    }
}

pub(crate) struct NoTensors;

impl TensorSource for NoTensors {
    fn read(&self, tensor: &str) -> std::result::Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        Err(tensor.to_owned().into())
    }
}

pub(crate) fn session(plan: Plan) -> (Session, Arc<Mutex<Log>>) {
    let host = Host::default();
    let s = Session::builder().bind_on(&host, Arc::new(plan), &NoTensors).unwrap();
    (s, host.0)
}

/// What the model says after `prompt`, computed token by token without any batch.
fn expected(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut all: Vec<i64> = prompt.iter().map(|t| i64::from(*t)).collect();
    for _ in 0..n {
        all.push(next(all.iter().enumerate().map(|(p, t)| (*t, p as i64))));
    }
    all[prompt.len()..].iter().map(|t| *t as u32).collect()
}

fn generate(s: &mut Session, prompts: &[Vec<u32>], o: &GenerateOptions) -> Generation {
    s.generate(prompts, o, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn tokens(g: &Generation) -> Vec<Vec<u32>> {
    g.rows.iter().map(|r| r.tokens.clone()).collect()
}

mod generation {
    use super::*;
    use crate::{Finish, Sampling};

    fn prompts() -> Vec<Vec<u32>> {
        vec![(1..=23).collect(), vec![5], (40..50).collect()]
    }
    fn options(n: usize, chunk: u64) -> GenerateOptions {
        GenerateOptions { max_new_tokens: n, chunk, ..GenerateOptions::default() }
    }

    #[test]
    fn a_padded_batch_says_what_each_prompt_says_alone() {
        for chunk in [1, 4, 8, 23, 100] {
            let (mut s, log) = session(decoder(200, &[]));
            let g = generate(&mut s, &prompts(), &options(9, chunk));
            let want: Vec<Vec<u32>> = prompts().iter().map(|p| expected(p, 9)).collect();
            assert_eq!(tokens(&g), want, "chunk {chunk}");
            let log = log.lock().unwrap();
            assert_eq!(log.runs.iter().filter(|r| r.0 == "prefill").count() as u64, 23u64.div_ceil(chunk));
            assert_eq!(log.runs.iter().filter(|r| r.0 == "decode_wide").count(), 8);
            assert_eq!(g.stats.prompt_tokens, 34);
            assert_eq!(g.stats.decode_tokens, 24);
        }
    }
    #[test]
    fn a_greedy_decode_uploads_nothing() {
        let (mut s, log) = session(decoder(200, &[]));
        let g = generate(&mut s, &[vec![3, 4]], &options(6, 64));
        assert_eq!(tokens(&g), [expected(&[3, 4], 6)]);
        let log = log.lock().unwrap();
        assert_eq!(log.state_writes, 2, "key mask and positions, once");
        assert_eq!(log.runs.iter().filter(|r| r.0 == "decode").count(), 5);
        assert_eq!(
            (g.stats.kernels_per_token, g.stats.kernels_per_token_unfused, g.stats.saved_bytes_per_token),
            (7, 30, 500)
        );
    }
    #[test]
    fn the_capacity_stays_the_same_through_a_generation() {
        let (mut s, log) = session(decoder(500, &[]));
        generate(&mut s, &prompts(), &options(300, 8));
        let log = log.lock().unwrap();
        assert_eq!(log.resizes, 1);
        assert!(log.runs.iter().all(|r| r.1[3] == log.runs[0].1[3]));
    }
    #[test]
    fn sampling_with_one_choice_is_greedy() {
        let (mut s, _) = session(decoder(200, &[]));
        let sampling = Some(Sampling { temperature: 1.0, top_k: Some(1), top_p: None, seed: 1 });
        let g = generate(&mut s, &prompts(), &GenerateOptions { sampling, ..options(5, 8) });
        assert_eq!(tokens(&g), prompts().iter().map(|p| expected(p, 5)).collect::<Vec<_>>());
        let g = generate(&mut s, &[vec![9]], &GenerateOptions { sampling, ..options(5, 8) });
        assert_eq!(tokens(&g), [expected(&[9], 5)], "through the narrow program");
    }
    #[test]
    fn an_end_token_ends_its_row_only() {
        let long = expected(&[5], 12);
        let stop = long[3];
        let first = long.iter().position(|t| *t == stop).unwrap();
        let (mut s, _) = session(decoder(200, &[stop]));
        let other: Vec<u32> = (1..90).map(|t| vec![t, t]).find(|p| !expected(p, 12).contains(&stop)).unwrap();
        let g = generate(&mut s, &[vec![5], other.clone()], &options(12, 8));
        assert_eq!(g.rows[0].tokens, long[..=first]);
        assert_eq!((g.rows[0].finish, g.rows[1].finish), (Finish::Stop, Finish::Length));
        assert_eq!(g.rows[1].tokens, expected(&other, 12));
        let (shape, flat) = g.padded();
        assert_eq!(shape, [2, 12]);
        assert!(flat[first + 1..12].iter().all(|t| *t == i64::from(stop)));
        let g = generate(&mut s, &[vec![5]], &GenerateOptions { ignore_eos: true, ..options(12, 8) });
        assert_eq!(tokens(&g), [long]);
    }
    #[test]
    fn a_full_context_ends_the_rows() {
        let (mut s, log) = session(decoder(10, &[]));
        let g = generate(&mut s, &[(1..8).collect()], &options(50, 4));
        assert_eq!((g.rows[0].tokens.len(), g.rows[0].finish), (4, Finish::ContextFull));
        assert_eq!(g.rows[0].tokens, expected(&(1..8).collect::<Vec<_>>(), 4));
        assert!(log.lock().unwrap().runs.iter().all(|r| r.1[1] + r.1[2] <= 10));
        let e = s.generate(&[(1..12).collect()], &options(1, 4), &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(e.to_string().contains("exceeds the limit of 10"), "{e}");
    }
    #[test]
    fn the_caller_can_end_it() {
        let (mut s, _) = session(decoder(200, &[]));
        let mut seen = Vec::new();
        let g = s.generate(&[vec![5], vec![6]], &options(50, 4), &mut |t: NewToken| {
            seen.push(t);
            if seen.len() == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let g = g.unwrap();
        assert_eq!(g.rows[0].finish, Finish::Cancelled);
        assert_eq!((g.rows[0].tokens.len(), g.rows[1].tokens.len()), (3, 2));
        assert_eq!(seen[1], NewToken { row: 1, id: g.rows[1].tokens[0] });
    }
    #[test]
    fn nothing_asked_for_is_nothing_done() {
        let (mut s, log) = session(decoder(200, &[]));
        let g = generate(&mut s, &[vec![5]], &options(0, 4));
        assert_eq!(tokens(&g), [vec![0u32; 0]]);
        assert!(log.lock().unwrap().runs.is_empty());
    }
}

mod running {
    use super::*;

    #[test]
    fn a_decoder_runs_without_history() {
        let (mut s, log) = session(decoder(200, &[]));
        let ids = Tensor::i32(&[2, 3], vec![1, 2, 3, 4, 5, 6]).unwrap();
        let out = s.run(&[("input_ids", ids.clone())]).unwrap();
        assert_eq!(out[0].0, "logits");
        assert_eq!(out[0].1.shape(), [2, 3, VOCAB]);
        assert_eq!(log.lock().unwrap().runs[0].1, [2, 3, 0, 3]);
        let mask = Tensor::i32(&[2, 3], vec![0, 1, 1, 1, 1, 1]).unwrap();
        let masked = s.run(&[("input_ids", ids), ("attention_mask", mask)]).unwrap();
        let row = |o: &[(String, Tensor)], r: usize| o[0].1.as_f32().unwrap()[r * 3 * 97..(r + 1) * 3 * 97].to_vec();
        assert_ne!(row(&out, 0), row(&masked, 0));
        assert_eq!(row(&out, 1), row(&masked, 1));
    }
    #[test]
    fn every_fault_of_the_inputs_is_named() {
        let (mut s, _) = session(decoder(200, &[]));
        let ids = Tensor::i32(&[2, 3], vec![1, 2, 3, 4, 5, 6]).unwrap();
        let mask = Tensor::i32(&[3, 3], vec![1; 9]).unwrap();
        let e = s.run(&[("input_ids", ids), ("attention_mask", mask.clone()), ("colour", mask.clone())]).unwrap_err();
        let e = e.to_string();
        assert!(e.contains("size B is 2 by extent 0 of `input_ids`, but 3 by extent 0 of `attention_mask`"), "{e}");
        assert!(e.contains("`colour` is no input of this model; its inputs are input_ids, attention_mask"), "{e}");
        let e = s.run(&[("attention_mask", mask)]).unwrap_err().to_string();
        assert!(e.contains("`input_ids` is missing: i32 of shape [B, S]"), "{e}");
        let flat = Tensor::i32(&[3], vec![1, 2, 300]).unwrap();
        let e = s.run(&[("input_ids", flat)]).unwrap_err().to_string();
        assert!(e.contains("shape [B, S] expected, [3] found"), "{e}");
        let far = Tensor::i32(&[1, 1], vec![97]).unwrap();
        let e = s.run(&[("input_ids", far)]).unwrap_err().to_string();
        assert!(e.contains("token 97 is not in the vocabulary of 97"), "{e}");
        let float = Tensor::f32(&[1, 1], vec![1.0]).unwrap();
        let e = s.run(&[("input_ids", float)]).unwrap_err().to_string();
        assert!(e.contains("i32 expected, floats found"), "{e}");
        let long = Tensor::i32(&[1, 201], vec![1; 201]).unwrap();
        let e = s.run(&[("input_ids", long)]).unwrap_err().to_string();
        assert!(e.contains("size S is 201, at most 200 is possible"), "{e}");
    }
    #[test]
    fn a_larger_run_grows_the_session_once() {
        let (mut s, log) = session(decoder(500, &[]));
        for n in [100u64, 300, 200] {
            let ids = Tensor::i32(&[1, n], vec![1; n as usize]).unwrap();
            s.run(&[("input_ids", ids)]).unwrap();
        }
        assert_eq!(log.lock().unwrap().resizes, 1);
    }
}
