//! Feed-forward parts as wide as a run says, over one set of weights.

use crate::harness::{BACKENDS, compiled, refused, session, tokens, verified};
use crate::tiny::Tiny;
use frit::{GenerateOptions, Tensor};
use frit_compiler::ingest::policy::RunPolicy;
use serde_json::json;
use std::ops::ControlFlow;

fn nested() -> RunPolicy {
    RunPolicy { ff_active: true, ..RunPolicy::default() }
}

/// The model whose feed-forward parts have the first `width` neurons alone.
fn cut(t: &Tiny, width: usize) -> Tiny {
    let mut out = Tiny { ff: width, ..t.clone() };
    for l in 0..t.layers {
        for part in ["mlp.gate_proj.weight", "mlp.up_proj.weight"] {
            let (shape, w) = out.tensors.get_mut(&Tiny::name(l, part)).unwrap();
            shape[0] = width as u64;
            w.truncate(width * t.hidden);
        }
        let (shape, w) = out.tensors.get_mut(&Tiny::name(l, "mlp.down_proj.weight")).unwrap();
        shape[1] = width as u64;
        *w = w.chunks(t.ff).flat_map(|row| row[..width].to_vec()).collect();
    }
    out
}

/// One compiled model serves every width: the bits of the model that was cut to it, for prompts and for new tokens, and at its
/// own width those of the model that knows no other.
#[test]
fn row_34_flextron_widths_are_chosen_at_run_time() {
    let t = Tiny::sized(341, 2, 64, [4, 2, 16], 128, 97);
    let m = compiled(&t, nested());
    let rows = [tokens(7, 13, t.vocab), tokens(8, 13, t.vocab)];
    let input = Tensor::i32(&[2, 13], rows.concat()).unwrap();
    let prompts: Vec<Vec<u32>> = rows.iter().map(|r| r.iter().map(|t| *t as u32).collect()).collect();
    let how = GenerateOptions { max_new_tokens: 6, ignore_eos: true, ..Default::default() };
    let widths = [128usize, 80, 37, 1];
    let cuts: Vec<_> = widths.iter().map(|w| compiled(&cut(&t, *w), RunPolicy::default())).collect();
    for backend in BACKENDS {
        let mut any = session(&m, backend);
        let held = any.memory_bytes()[0];
        for (width, alone) in widths.iter().zip(&cuts) {
            any.set_ff_active(*width as u64).unwrap();
            let mut alone = session(alone, backend);
            let [a, b] = [&mut any, &mut alone].map(|s| {
                let logits = s.run(&[("input_ids", input.clone())]).unwrap().remove(0).1;
                (logits, s.generate(&prompts, &how, &mut |_| ControlFlow::Continue(())).unwrap().rows)
            });
            assert_eq!(a, b, "{backend:?} {width}");
        }
        assert_eq!(any.memory_bytes()[0], held);
        assert!(any.set_ff_active(129).unwrap_err().to_string().contains("1 to 128"));
        let said = session(&cuts[0], backend).set_ff_active(5).unwrap_err().to_string();
        assert!(said.contains("not compiled for widths"), "{said}");
    }
    verified(&compiled(&Tiny::sized(342, 2, 32, [2, 1, 16], 48, 19), nested()));
    let (mut uneven, narrow) = (t.clone(), cut(&t, 96));
    uneven.frit["ff"] = json!([128, 96]);
    for part in ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"] {
        uneven.tensors.insert(Tiny::name(1, part), narrow.tensors[&Tiny::name(1, part)].clone());
    }
    assert!(refused(&uneven, nested()).contains("feed-forward parts of one width"));
}
