//! Decoder layers that are equal, of any number.

use frit_compiler::Model;
use frit_compiler::graph::{AttentionAttrs, Float, NormKind, RopeStyle};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::UnaryOp;
use frit_plan::RopePart;

const HIDDEN: u64 = 576;
const HEADS: (u64, u64, u64) = (9, 3, 64);
const FFN: u64 = 1536;

/// A stack of equal decoder layers in the shape of SmolLM2-135M. Its weights have names and shapes only.
pub fn stack(layers: usize) -> Model {
    let mut m = ModelBuilder::new("stack");
    let (query, key, dim) = HEADS;
    let w = |m: &mut ModelBuilder, l: usize, n: &str, shape: &[u64]| {
        m.stored(&format!("layers.{l}.{n}"), Storage::F32, shape)
    };
    let inv_freq: Vec<f32> = (0..dim / 2).map(|i| 1e5f32.powf(-2.0 * i as f32 / dim as f32)).collect();
    let [cos, sin] = [RopePart::Cos, RopePart::Sin].map(|p| m.rope_table(&inv_freq, 1.0, p));
    let weights: Vec<_> = (0..layers)
        .map(|l| {
            let names = [("norm1", vec![HIDDEN]), ("norm2", vec![HIDDEN])].map(|(n, s)| w(&mut m, l, n, &s));
            let products = [
                ("q", query * dim, HIDDEN),
                ("k", key * dim, HIDDEN),
                ("v", key * dim, HIDDEN),
                ("o", HIDDEN, query * dim),
                ("gate", FFN, HIDDEN),
                ("up", FFN, HIDDEN),
                ("down", HIDDEN, FFN),
            ];
            (names, products.map(|(n, rows, columns)| w(&mut m, l, n, &[rows, columns])))
        })
        .collect();
    m.graph("forward", |g: &mut GraphBuilder<'_>| {
        let (b, s): (Dim, Dim) = ("B".into(), "S".into());
        let mut x = g.input("x", Scalar::F32, &[b.clone(), s.clone(), HIDDEN.into()]);
        let at = g.iota(&[b.clone(), s.clone()], 1, Dim::zero());
        for (l, ([n1, n2], [q, k, v, o, gate, up, down])) in weights.iter().enumerate() {
            x = g.scope(&format!("layers.{l}"), |g| {
                let gain = g.weight(*n1);
                let h = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
                let [q, k, v] = [(q, query), (k, key), (v, key)].map(|(w, heads)| {
                    let y = g.linear(h, *w, None);
                    let y = g.reshape(y, &[b.clone(), s.clone(), heads.into(), dim.into()]);
                    g.transpose(y, &[0, 2, 1, 3])
                });
                let (c, z) = (g.weight(cos), g.weight(sin));
                let [q, k] = [q, k].map(|y| g.rope(y, c, z, at, RopeStyle::Half, dim));
                let attrs = AttentionAttrs {
                    scale: Float(0.125),
                    causal: Some(Dim::zero()),
                    window: None,
                    softcap: None,
                    has_mask: false,
                    has_bias: false,
                };
                let y = g.attention(q, k, v, None, None, attrs);
                let y = g.transpose(y, &[0, 2, 1, 3]);
                let y = g.reshape(y, &[b.clone(), s.clone(), (query * dim).into()]);
                let y = g.linear(y, *o, None);
                let x = g.add(x, y);
                let gain = g.weight(*n2);
                let h = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
                let (gate, up) = (g.linear(h, *gate, None), g.linear(h, *up, None));
                let gate = g.unary(UnaryOp::Silu, gate);
                let h = g.mul(gate, up);
                let y = g.linear(h, *down, None);
                g.add(x, y)
            });
        }
        g.output("y", x);
    });
    m.finish().unwrap()
}
