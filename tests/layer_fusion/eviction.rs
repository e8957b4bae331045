//! Caches that let go of what no later token sees: anchors and near tokens stay, moved together, and the cache is as small
//! as they are.

use crate::harness::{BACKENDS, cache_bytes, compiled, session, tokens};
use crate::tiny::{Form, Tiny};
use frit::backend::Backend;
use frit::backend::cuda::{CudaBackend, Interpreted};
use frit::backend::simt::SimtBackend;
use frit::{EvictionStats, GenerateOptions, Generation, LoadedModel, Session, kv_table};
use frit_compiler::ingest::policy::{KvKeep, RunPolicy};
use frit_kernels::target::Tier;
use frit_plan::sizes;
use std::ops::ControlFlow;
use std::sync::Arc;

fn kept(anchors: &[u32], window: u64, layer: Option<u32>) -> RunPolicy {
    RunPolicy { kv_keep: Some(KvKeep { anchors: anchors.to_vec(), window, layer }), ..RunPolicy::default() }
}

fn prompts(seed: u64, lengths: &[usize], vocab: usize) -> Vec<Vec<u32>> {
    let one = |(i, n): (usize, &usize)| tokens(seed + i as u64, *n, vocab).into_iter().map(|t| t as u32).collect();
    lengths.iter().enumerate().map(one).collect()
}

fn generate(s: &mut Session, prompts: &[Vec<u32>], new: usize, chunk: u64) -> Generation {
    let how = GenerateOptions { max_new_tokens: new, ignore_eos: true, chunk, ..Default::default() };
    s.generate(prompts, &how, &mut |_| ControlFlow::Continue(())).unwrap_or_else(|e| panic!("{e}"))
}

/// The same model with the mask over a cache that keeps everything.
fn unevicted(m: &LoadedModel) -> LoadedModel {
    let mut plan = (*m.plan).clone();
    assert!(plan.model.retention.take().is_some());
    LoadedModel { plan: Arc::new(plan), ..m.clone() }
}

fn said(g: &Generation) -> Vec<&[u32]> {
    g.rows.iter().map(|r| &r.tokens[..]).collect()
}

/// Rows of unlike length go on for hundreds of tokens in a cache that never holds them all: the tokens are those of an
/// explicit mask over a whole cache, and those of the definition in float64. Anchors of another layer are kept with the rest.
#[test]
fn row_51_what_nobody_sees_leaves_the_cache() {
    let t = Tiny::sized(513, 3, 64, [4, 2, 16], 96, 23);
    let anchors = [1u32, 4];
    for (window, layer) in [(9, None), (2, Some(0))] {
        let m = compiled(&t, kept(&anchors, window, layer));
        let (new, given) = (150, prompts(30, &[170, 97, 11], t.vocab));
        let ids: Vec<i32> = anchors.iter().map(|a| *a as i32).collect();
        let form = Form { keep: Some((ids, window as usize, layer.map(|l| l as usize))), ..Form::default() };
        for backend in BACKENDS {
            let open = |m: &LoadedModel| {
                let builder = Session::builder().backend(backend).reserve(sizes::TOKENS, 32);
                builder.reserve(sizes::CAPACITY, 64).open(m).unwrap()
            };
            let mut small = open(&m);
            let made = generate(&mut small, &given, new, 32);
            let EvictionStats { capacity, columns, evicted, evictions, bytes } = made.stats.eviction.unwrap();
            assert!(evictions > 1 && capacity <= 192, "{capacity} columns, {evictions} evictions");
            assert_eq!(columns + evicted, 170 + new as u64 - 1);
            assert!(columns <= capacity);
            assert_eq!(bytes, cache_bytes(&m.plan, 3, capacity));
            let mut large = open(&unevicted(&m));
            let whole = generate(&mut large, &given, new, 32);
            assert_eq!(whole.stats.eviction, None);
            assert_eq!(said(&made), said(&whole), "{backend:?}, window {window}");
            let [held, before] = [&small, &large].map(|s| s.memory_bytes()[1]);
            assert!(3 * held <= 2 * before, "{held} of {before} bytes");
            // A second text in the same session begins with nothing evicted.
            assert_eq!(said(&generate(&mut small, &given[2..], 40, 32)), [&made.rows[2].tokens[..40]]);
            for (prompt, row) in given.iter().zip(&made.rows) {
                let ids: Vec<i32> = prompt.iter().chain(&row.tokens).map(|t| *t as i32).collect();
                let want = t.run(&form, &ids);
                for (at, token) in row.tokens.iter().enumerate() {
                    let logits = &want.logits[prompt.len() + at - 1];
                    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
                    assert_eq!(*token as usize, best, "{backend:?}: token {at} behind {}", prompt.len());
                }
            }
        }
    }
}

/// Bytes of the cache follow the rate of anchors: what stays of a text is its anchors and a window, and with every token an
/// anchor nothing leaves and the tokens are those of the model as it is (T4).
#[test]
fn row_51_bytes_follow_the_rate_of_anchors() {
    let t = Tiny::sized(514, 2, 32, [2, 1, 16], 48, 16);
    let (new, window, given) = (8, 5, prompts(61, &[400], t.vocab));
    let mut last = 0;
    for count in [0, 1, 4, 8, 16] {
        let anchors: Vec<u32> = (0..count).collect();
        let m = compiled(&t, kept(&anchors, window, None));
        let per_token: u64 = kv_table(&m.plan).iter().map(|s| s.k + s.v).sum();
        assert_eq!(per_token, 2 * 2 * 16 * 4 + 4);
        let builder = Session::builder().backend(frit::BackendChoice::Cpu).reserve(sizes::TOKENS, 16);
        let mut s = builder.reserve(sizes::CAPACITY, 64).open(&m).unwrap();
        let made = generate(&mut s, &given, new, 16);
        let stats = made.stats.eviction.unwrap();
        // Room for the anchors of the prompt, the window in front of a chunk and the chunk, or for some new tokens.
        let in_front = |n: usize| given[0][..n].iter().filter(|t| anchors.contains(t)).count() as u64;
        let near = |n: usize| {
            given[0][n.saturating_sub(window as usize - 1)..n].iter().filter(|t| !anchors.contains(t)).count() as u64
        };
        let left = |n: usize| in_front(n) + near(n);
        let most = (0..25).map(|i| left(16 * i) + 16).max().unwrap().max(left(400) + 32).min(400 + new as u64 - 1);
        assert_eq!(stats.capacity, most.div_ceil(64) * 64, "{count} anchors");
        assert_eq!((stats.bytes, s.memory_bytes()[1]), (per_token * stats.capacity, per_token * stats.capacity));
        assert!(stats.bytes >= last);
        last = stats.bytes;
        if count == 16 {
            assert_eq!((stats.evicted, stats.columns), (0, 400 + new as u64 - 1));
            let whole = compiled(&t, RunPolicy::default());
            let baseline = generate(&mut session(&whole, frit::BackendChoice::Cpu), &given, new, 16);
            assert_eq!(said(&made), said(&baseline));
        }
    }
}

/// A cache that turns out too small, since new tokens are anchors, is laid out again with what it holds.
#[test]
fn row_51_a_cache_of_anchors_grows() {
    let t = Tiny::sized(516, 2, 32, [2, 1, 16], 48, 16);
    let (new, given) = (130, prompts(62, &[20, 3], t.vocab));
    let all = compiled(&t, kept(&(0..16).collect::<Vec<_>>(), 2, None));
    let whole = compiled(&t, RunPolicy::default());
    for backend in BACKENDS {
        let builder = Session::builder().backend(backend).reserve(sizes::TOKENS, 16).reserve(sizes::CAPACITY, 64);
        let made = generate(&mut builder.open(&all).unwrap(), &given, new, 16);
        let stats = made.stats.eviction.unwrap();
        assert_eq!((stats.capacity, stats.columns, stats.evicted), (149, 149, 0));
        assert_eq!(said(&made), said(&generate(&mut session(&whole, backend), &given, new, 16)), "{backend:?}");
    }
}

/// The devices that are executed as text, WGSL and CUDA's own code, give their caches away and take them back.
#[test]
fn row_51_eviction_on_interpreted_devices() {
    let t = Tiny::sized(515, 2, 32, [2, 1, 16], 48, 19);
    let m = compiled(&t, kept(&[3], 4, Some(0)));
    let (given, new) = (prompts(70, &[9, 4], t.vocab), 70);
    let cuda = Interpreted::default();
    let simt = SimtBackend::new(Tier::Gpu, None);
    let on: [&dyn Backend; 2] = [&simt, &CudaBackend::interpreted(&cuda).unwrap()];
    let want = generate(&mut session(&m, frit::BackendChoice::Cpu), &given, new, 8);
    for backend in on {
        let builder = Session::builder().reserve(sizes::TOKENS, 8).reserve(sizes::CAPACITY, 64);
        let mut s = builder.bind_on(backend, Arc::clone(&m.plan), &*m.weights).unwrap();
        let made = generate(&mut s, &given, new, 8);
        assert_eq!(said(&made), said(&want), "{}", backend.name());
        let stats = made.stats.eviction.unwrap();
        assert!(stats.evictions > 0 && stats.capacity < 9 + new as u64, "{stats:?}");
    }
    for k in simt.checks().kernels().into_iter().chain(cuda.checks()) {
        assert!(k.violations.is_empty(), "{}: {:?}", k.name, k.violations);
    }
}
