//! Encoders, and encoders with decoders, written down plainly in float64: one loop for each sum, nothing of the compiler.

use crate::checkpoints::values;
use crate::harness::{BACKENDS, session};
use crate::tiny::Tiny;
use frit::{LoadedModel, Tensor};
use frit_compiler::transform::Checkpoint;
use std::collections::BTreeMap;

/// Rows of numbers.
type Rows = Vec<Vec<f64>>;

/// Tensors by name, and the fields that the definitions need.
pub struct Written {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    pub heads: usize,
}

impl Written {
    pub fn of(c: &Checkpoint, heads: usize) -> Written {
        let each = |n: &str| {
            let v = values(c, n);
            (n.to_owned(), (v.shape, v.data))
        };
        Written { tensors: c.names().map(each).collect(), heads }
    }
    pub fn of_tiny(t: &Tiny, heads: usize) -> Written {
        let wide = |(shape, data): &(Vec<u64>, Vec<f32>)| {
            (shape.iter().map(|d| *d as usize).collect(), data.iter().map(|v| f64::from(*v)).collect())
        };
        let stored = t.tensors.iter().map(|(n, v)| (n.clone(), wide(v)));
        let aliases = t.aliases.iter().map(|(n, of)| (n.clone(), wide(&t.tensors[of])));
        Written { tensors: stored.chain(aliases).collect(), heads }
    }
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    fn get(&self, name: &str) -> &(Vec<usize>, Vec<f64>) {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
    fn rows(&self, table: &str, ids: impl Iterator<Item = usize>) -> Rows {
        let (shape, data) = self.get(table);
        ids.map(|i| data[i * shape[1]..][..shape[1]].to_vec()).collect()
    }
    /// `x Wᵀ + b`, b where there is one.
    fn linear(&self, stem: &str, x: &Rows) -> Rows {
        let (shape, w) = self.get(&format!("{stem}.weight"));
        let bias = self.tensors.get(&format!("{stem}.bias")).map(|b| &b.1);
        let one = |x: &Vec<f64>, i: usize| {
            let sum: f64 = (0..shape[1]).map(|j| w[i * shape[1] + j] * x[j]).sum();
            sum + bias.map_or(0.0, |b| b[i])
        };
        x.iter().map(|x| (0..shape[0]).map(|i| one(x, i)).collect()).collect()
    }
    fn layer_norm(&self, stem: &str, x: &Rows) -> Rows {
        let (gain, bias) = (&self.get(&format!("{stem}.weight")).1, &self.get(&format!("{stem}.bias")).1);
        let one = |x: &Vec<f64>| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let deviation = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + 1e-12).sqrt();
            x.iter().zip(gain.iter().zip(bias)).map(|(v, (g, b))| (v - mean) / deviation * g + b).collect()
        };
        x.iter().map(one).collect()
    }
    fn rms_norm(&self, stem: &str, x: &Rows) -> Rows {
        let gain = &self.get(&format!("{stem}.weight")).1;
        let one = |x: &Vec<f64>| {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            x.iter().zip(gain).map(|(v, g)| v / (mean + 1e-6).sqrt() * g).collect()
        };
        x.iter().map(one).collect()
    }
    /// Softmax over `scale q k + bias(head, query, key)`, times values, heads side by side.
    fn attend(&self, [q, k, v]: [&Rows; 3], scale: f64, bias: &dyn Fn(usize, usize, usize) -> f64) -> Rows {
        let dim = q[0].len() / self.heads;
        let one = |i: usize| {
            let mut y = vec![0.0; q[0].len()];
            for h in 0..self.heads {
                let part = |x: &Vec<f64>| x[h * dim..][..dim].to_vec();
                let score = |j: usize| {
                    part(&q[i]).iter().zip(part(&k[j])).map(|(a, b)| a * b).sum::<f64>() * scale + bias(h, i, j)
                };
                let scores: Vec<f64> = (0..k.len()).map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let all: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    (0..dim).for_each(|d| y[h * dim + d] += (s - most).exp() / all * v[j][h * dim + d]);
                }
            }
            y
        };
        (0..q.len()).map(one).collect()
    }

    /// BERT: the states that the last layer gives for a row of tokens.
    pub fn bert(&self, ids: &[i32], layers: usize) -> Rows {
        let mut x = self.embedded(ids);
        for l in 0..layers {
            let at = |n: &str| format!("encoder.layer.{l}.{n}");
            let names = ["attention.self.query", "attention.self.key", "attention.self.value"].map(at);
            x = self.behind(x, &names, &at("attention.output.dense"), &at("attention.output.LayerNorm"));
            let inner = self.linear(&at("intermediate.dense"), &x);
            let inner = each(inner, |v| 0.5 * v * (1.0 + erf(v / 2f64.sqrt())));
            x = self.layer_norm(&at("output.LayerNorm"), &sum(&x, &self.linear(&at("output.dense"), &inner)));
        }
        x
    }
    /// ALBERT: layer l is that of group `l · groups / layers`; the embedding is narrow, its projection has a bias.
    pub fn albert(&self, ids: &[i32], layers: usize, groups: usize) -> Rows {
        let mut x = self.linear("encoder.embedding_hidden_mapping_in", &self.embedded(ids));
        for l in 0..layers {
            let at = |n: &str| format!("encoder.albert_layer_groups.{}.albert_layers.0.{n}", l * groups / layers);
            let names = ["attention.query", "attention.key", "attention.value"].map(at);
            x = self.behind(x, &names, &at("attention.dense"), &at("attention.LayerNorm"));
            let tanh = |v: f64| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
                0.5 * v * (1.0 + inner.tanh())
            };
            let inner = each(self.linear(&at("ffn"), &x), tanh);
            x = self.layer_norm(&at("full_layer_layer_norm"), &sum(&x, &self.linear(&at("ffn_output"), &inner)));
        }
        x
    }
    fn embedded(&self, ids: &[i32]) -> Rows {
        let words = self.rows("embeddings.word_embeddings.weight", ids.iter().map(|i| *i as usize));
        let places = self.rows("embeddings.position_embeddings.weight", 0..ids.len());
        let types = self.rows("embeddings.token_type_embeddings.weight", ids.iter().map(|_| 0));
        self.layer_norm("embeddings.LayerNorm", &sum(&sum(&words, &places), &types))
    }
    /// `norm(x + attention(x))`.
    fn behind(&self, x: Rows, qkv: &[String; 3], output: &str, norm: &str) -> Rows {
        let [q, k, v] = qkv.each_ref().map(|n| self.linear(n, &x));
        let scale = (q[0].len() as f64 / self.heads as f64).powf(-0.5);
        let y = self.attend([&q, &k, &v], scale, &|_, _, _| 0.0);
        self.layer_norm(norm, &sum(&x, &self.linear(output, &y)))
    }

    /// T5 with a tied head: logits of the decoder's tokens. Feed-forward parts are there where their tensors are.
    pub fn t5(&self, ids: &[i32], decoder_ids: &[i32], [encoder, decoder]: [usize; 2]) -> Rows {
        let words = |ids: &[i32]| self.rows("shared.weight", ids.iter().map(|i| *i as usize));
        let (mut memory, mut x) = (words(ids), words(decoder_ids));
        for l in 0..encoder {
            memory = self.t5_attention(&format!("encoder.block.{l}.layer.0"), "SelfAttention", memory, None, true);
            memory = self.t5_feed(&format!("encoder.block.{l}.layer.1"), memory);
        }
        memory = self.rms_norm("encoder.final_layer_norm", &memory);
        for l in 0..decoder {
            let at = |n: usize| format!("decoder.block.{l}.layer.{n}");
            x = self.t5_attention(&at(0), "SelfAttention", x, None, false);
            x = self.t5_attention(&at(1), "EncDecAttention", x, Some(&memory), true);
            x = self.t5_feed(&at(2), x);
        }
        let x = self.rms_norm("decoder.final_layer_norm", &x);
        let scale = (x[0].len() as f64).powf(-0.5);
        let (shape, table) = self.get("shared.weight");
        let logit = |x: &Vec<f64>, t: usize| x.iter().zip(&table[t * shape[1]..]).map(|(a, b)| a * scale * b).sum();
        x.iter().map(|x| (0..shape[0]).map(|t| logit(x, t)).collect()).collect()
    }
    fn t5_attention(&self, stem: &str, name: &str, x: Rows, memory: Option<&Rows>, is_whole: bool) -> Rows {
        let n = self.rms_norm(&format!("{stem}.layer_norm"), &x);
        let of = |p: &str, x: &Rows| self.linear(&format!("{stem}.{name}.{p}"), x);
        let read = memory.unwrap_or(&n);
        let table = stem.split(".block.").next().unwrap();
        let table = format!("{table}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let bias = |h: usize, i: usize, j: usize| match (memory, is_whole) {
            (Some(_), _) => 0.0,
            (None, false) if j > i => f64::NEG_INFINITY,
            _ => self.get(&table).1[bucket(j as i64 - i as i64, is_whole) * self.heads + h],
        };
        let y = self.attend([&of("q", &n), &of("k", read), &of("v", read)], 1.0, &bias);
        sum(&x, &of("o", &y))
    }
    fn t5_feed(&self, stem: &str, x: Rows) -> Rows {
        if !self.has(&format!("{stem}.DenseReluDense.wi.weight")) {
            return x;
        }
        let n = self.rms_norm(&format!("{stem}.layer_norm"), &x);
        let inner = each(self.linear(&format!("{stem}.DenseReluDense.wi"), &n), |v| v.max(0.0));
        sum(&x, &self.linear(&format!("{stem}.DenseReluDense.wo"), &inner))
    }
}

/// The class of a distance: 8 classes, to 20 tokens away; half of them for keys behind the query where it sees those.
fn bucket(distance: i64, both_sides: bool) -> usize {
    let (classes, first) = match both_sides {
        true => (4usize, if distance > 0 { 4 } else { 0 }),
        false => (8, 0),
    };
    let far = if both_sides { distance.unsigned_abs() } else { (-distance).max(0) as u64 } as usize;
    let exact = classes / 2;
    if far < exact {
        return first + far;
    }
    let share = (far as f64 / exact as f64).ln() / (20.0 / exact as f64).ln();
    first + (exact + (share * (classes - exact) as f64) as usize).min(classes - 1)
}

fn each(rows: Rows, f: impl Fn(f64) -> f64) -> Rows {
    rows.into_iter().map(|r| r.into_iter().map(&f).collect()).collect()
}

fn sum(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

/// `2/√π e^{−x²} Σ 2ⁿ x^{2n+1} / (1 · 3 · … · (2n + 1))`, whose terms have one sign.
fn erf(x: f64) -> f64 {
    let (mut term, mut all, mut n) = (x, 0.0, 0.0);
    while f64::abs(term) > 1e-18 {
        all += term;
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * all
}

/// A model's first output on a batch of rows is what a definition gives for each: within `1e-4 · max`, and with the same
/// largest element of every row.
pub fn defined(m: &LoadedModel, inputs: &[(&str, &[Vec<i32>])], want: &[Rows]) {
    let tensor = |rows: &[Vec<i32>]| Tensor::i32(&[rows.len() as u64, rows[0].len() as u64], rows.concat()).unwrap();
    let inputs: Vec<(&str, Tensor)> = inputs.iter().map(|(n, rows)| (*n, tensor(rows))).collect();
    let want: Rows = want.concat();
    let most = want.iter().flatten().fold(0.0f64, |m, v| m.max(v.abs()));
    let largest = |r: &[f64]| (0..r.len()).max_by(|a, b| r[*a].total_cmp(&r[*b]));
    for backend in BACKENDS {
        let out = session(m, backend).run(&inputs).unwrap_or_else(|e| panic!("{e}"));
        let got: Vec<f64> = out[0].1.as_f32().unwrap().iter().map(|v| f64::from(*v)).collect();
        assert_eq!(got.len(), want.len() * want[0].len());
        for (i, (got, want)) in got.chunks(want[0].len()).zip(&want).enumerate() {
            let off = got.iter().zip(want).fold(0.0f64, |m, (g, w)| m.max((g - w).abs()));
            assert!(off <= 1e-4 * most, "{backend:?}: row {i} is off by {off:e} of {most:e}");
            assert_eq!(largest(got), largest(want), "{backend:?}: row {i}");
        }
    }
}

#[test]
fn the_error_function_has_its_known_values() {
    for (x, want) in
        [(0.0, 0.0), (0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (-2.0, -0.995_322_265_018_952_7)]
    {
        assert!((erf(x) - want).abs() < 1e-15, "{x}");
    }
}
