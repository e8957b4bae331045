//! A small Llama made of random numbers under a fixed seed, and what it computes, written down plainly in float64: one
//! token after the other, one loop for each sum. Nothing here knows the compiler.

use crate::support::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use tempfile::TempDir;

/// A checkpoint in Hugging Face form.
#[derive(Clone)]
pub struct Tiny {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ff: usize,
    pub vocab: usize,
    pub tensors: BTreeMap<String, (Vec<u64>, Vec<f32>)>,
    /// The object `frit` of the configuration.
    pub frit: Value,
    /// Further fields of the configuration.
    pub config: Vec<(&'static str, Value)>,
    /// Names that stand for other tensors.
    pub aliases: BTreeMap<String, String>,
}

impl Hash for Tiny {
    fn hash<H: Hasher>(&self, of: &mut H) {
        [self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.ff, self.vocab].hash(of);
        for (name, (shape, values)) in &self.tensors {
            (name, shape).hash(of);
            values.iter().for_each(|v| v.to_bits().hash(of));
        }
        format!("{} {:?} {:?}", self.frit, self.config, self.aliases).hash(of);
    }
}

impl Tiny {
    /// 6 layers of 64, 4 heads over 2 key heads, 128 inner, 97 tokens.
    pub fn llama(seed: u64) -> Tiny {
        Tiny::sized(seed, 6, 64, [4, 2, 16], 128, 97)
    }
    /// A llama of other sizes; `heads` are query heads, key heads, and elements of each.
    pub fn sized(seed: u64, layers: usize, hidden: usize, heads: [usize; 3], ff: usize, vocab: usize) -> Tiny {
        let [heads, kv_heads, head_dim] = heads;
        let mut t = Tiny {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            ff,
            vocab,
            tensors: BTreeMap::new(),
            frit: json!({}),
            config: Vec::new(),
            aliases: BTreeMap::new(),
        };
        let mut r = Random::new(seed);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        t.random(&mut r, "model.embed_tokens.weight", &[vocab, hidden], 1.0);
        for i in 0..layers {
            let at = |n: &str| format!("model.layers.{i}.{n}.weight");
            t.gain(&mut r, &at("input_layernorm"));
            t.gain(&mut r, &at("post_attention_layernorm"));
            let wide = 1.7 / (hidden as f32).sqrt();
            t.random(&mut r, &at("self_attn.q_proj"), &[q, hidden], 2.0 * wide);
            t.random(&mut r, &at("self_attn.k_proj"), &[kv, hidden], 2.0 * wide);
            t.random(&mut r, &at("self_attn.v_proj"), &[kv, hidden], wide);
            t.random(&mut r, &at("self_attn.o_proj"), &[hidden, q], 1.7 / (q as f32).sqrt());
            t.random(&mut r, &at("mlp.gate_proj"), &[ff, hidden], wide);
            t.random(&mut r, &at("mlp.up_proj"), &[ff, hidden], wide);
            t.random(&mut r, &at("mlp.down_proj"), &[hidden, ff], 1.7 / (ff as f32).sqrt());
        }
        t.gain(&mut r, "model.norm.weight");
        t.random(&mut r, "lm_head.weight", &[vocab, hidden], 1.7 / (hidden as f32).sqrt());
        t
    }
    /// Adds a tensor of numbers in −`scale` … `scale`.
    pub fn random(&mut self, r: &mut Random, name: &str, shape: &[usize], scale: f32) {
        let n: usize = shape.iter().product();
        let shape = shape.iter().map(|d| *d as u64).collect();
        self.tensors.insert(name.into(), (shape, r.floats(n as u64, scale)));
    }
    fn gain(&mut self, r: &mut Random, name: &str) {
        let values = r.floats(self.hidden as u64, 0.2).into_iter().map(|v| 1.0 + v).collect();
        self.tensors.insert(name.into(), (vec![self.hidden as u64], values));
    }
    /// Name of a layer's tensor.
    pub fn name(layer: usize, part: &str) -> String {
        format!("model.layers.{layer}.{part}")
    }
    /// Removes tensors of a layer.
    pub fn without(&mut self, layer: usize, parts: &[&str]) {
        for p in parts {
            assert!(self.tensors.remove(&Tiny::name(layer, p)).is_some(), "layer {layer} has no {p}");
        }
    }
    /// The model whose layer i is layer `order[i]` of this one.
    pub fn reordered(&self, order: &[usize]) -> Tiny {
        let mut out = self.clone();
        out.layers = order.len();
        out.tensors.retain(|n, _| !n.starts_with("model.layers."));
        for (to, from) in order.iter().enumerate() {
            let prefix = format!("model.layers.{from}.");
            for (n, t) in self.tensors.iter().filter(|(n, _)| n.starts_with(&prefix)) {
                out.tensors.insert(format!("model.layers.{to}.{}", &n[prefix.len()..]), t.clone());
            }
        }
        out
    }
    /// The same, each tensor that several layers have stored once.
    pub fn tied(&self, order: &[usize]) -> Tiny {
        let mut out = self.reordered(order);
        for to in 0..order.len() {
            let first = order.iter().position(|o| *o == order[to]).unwrap();
            let prefix = format!("model.layers.{to}.");
            let own: Vec<String> = out.tensors.keys().filter(|n| n.starts_with(&prefix)).cloned().collect();
            for name in own.into_iter().filter(|_| first != to) {
                out.tensors.remove(&name);
                out.aliases.insert(name.clone(), format!("model.layers.{first}.{}", &name[prefix.len()..]));
            }
        }
        out
    }
    /// Sets whose keys and values each layer reads, and removes the projections that nobody reads.
    pub fn share_kv(&mut self, k: &[usize], v: &[usize]) {
        self.frit["kv_map"] = k.iter().zip(v).map(|(k, v)| json!({ "k": k, "v": v })).collect();
        for i in 0..self.layers {
            for (source, part) in [(k, "self_attn.k_proj.weight"), (v, "self_attn.v_proj.weight")] {
                if !source.contains(&i) {
                    self.without(i, &[part]);
                }
            }
        }
    }
    /// Writes the directory.
    pub fn save(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.ff, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        });
        if self.frit != json!({}) {
            config["frit"] = self.frit.clone();
        }
        for (k, v) in &self.config {
            config[*k] = v.clone();
        }
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (shape, values)) in &self.tensors {
            let from = data.len();
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, data.len()] });
            header.insert(name.clone(), entry);
        }
        if !self.aliases.is_empty() {
            let aliases = serde_json::to_string(&self.aliases).unwrap();
            header.insert("__metadata__".into(), json!({ "frit.aliases": aliases }));
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        dir
    }
}

/// What a layer does besides, or otherwise.
#[derive(Clone, Default)]
pub struct Form {
    /// Layers that read the keys, the values of another: by layer.
    pub keys: BTreeMap<usize, usize>,
    pub values: BTreeMap<usize, usize>,
    /// Layers that use the probabilities of another.
    pub probs: BTreeMap<usize, usize>,
    /// Layers that use the attention output of another.
    pub outputs: BTreeMap<usize, usize>,
    /// `λ₁ V + λ₂ V₀`.
    pub blend: Option<[f64; 2]>,
    /// Key and value head of each query head.
    pub head_maps: BTreeMap<usize, (Vec<usize>, Vec<usize>)>,
    /// Layers with a gate `s = ½ tanh(w·x + b) + ½` between input and output.
    pub mixes: Vec<usize>,
    /// Layers with a router `sigmoid(w·x + b) > ½`.
    pub routes: Vec<usize>,
    /// Whether tokens that were sent past a layer are not seen there.
    pub drops: bool,
    /// Vectors added to what enters a layer.
    pub steps: bool,
    /// `(after how many layers, threshold)` on the largest probability.
    pub exits: Vec<(usize, f64)>,
    /// Tokens of a prompt, which nobody leaves early.
    pub prompt: usize,
    /// Threshold, cold layers, warmup of greedy skipping of feed-forward parts.
    pub ffn_skip: Option<(f64, Vec<usize>, usize)>,
    /// Weights of the layers' outputs, and whether each is normalised first.
    pub mix: Option<(Vec<f64>, bool)>,
    /// Updates `B A` of projections.
    pub lora: bool,
    /// Tokens of a prompt that run at once; 0: a whole sequence does.
    pub chunk: usize,
    /// The first layer of merged caches, and where between both directions the shared one lies.
    pub merge: Option<(usize, f64)>,
    /// Of merged caches, how far apart directions may be, as a share of half a turn from the other side, and how many tokens
    /// farther apart a head retains.
    pub retain: Option<(f64, usize)>,
    /// Tokens that are anchors, the width of the window, and the layer whose anchors those above it see as well.
    pub keep: Option<(Vec<i32>, usize, Option<usize>)>,
    /// Layers behind which a token attends to its states so far.
    pub layer_attention: Vec<usize>,
    /// Layers of a trip, and the threshold behind which a token stops.
    pub halt: Option<(usize, f64)>,
}

/// What came of a run.
#[derive(Default)]
pub struct Outcome {
    /// Logits of each token.
    pub logits: Vec<Vec<f64>>,
    /// Layers run by each token.
    pub layers_run: Vec<usize>,
    /// Feed-forward parts run by each token, of those that may be skipped.
    pub ffn_run: Vec<usize>,
    /// Trips of each token.
    pub trips: Vec<usize>,
    /// What the weights of each token's trips add up to.
    pub weights: Vec<f64>,
    /// How far every decision was from its threshold, at least.
    pub margin: f64,
}

/// A run in progress.
struct Run<'t> {
    t: &'t Tiny,
    form: &'t Form,
    ids: &'t [i32],
    k: Vec<Vec<Vec<f64>>>,
    v: Vec<Vec<Vec<f64>>>,
    /// Which tokens ran a layer.
    ran: Vec<Vec<bool>>,
}

impl Tiny {
    fn get(&self, name: &str) -> &(Vec<u64>, Vec<f32>) {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
    fn matvec(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, w) = self.get(name);
        let (n, k) = (shape[0] as usize, shape[1] as usize);
        assert_eq!(k, x.len(), "{name}");
        (0..n).map(|i| (0..k).map(|j| f64::from(w[i * k + j]) * x[j]).sum()).collect()
    }
    fn linear(&self, stem: &str, x: &[f64], lora: bool) -> Vec<f64> {
        let mut y = self.matvec(&format!("{stem}.weight"), x);
        if lora && self.tensors.contains_key(&format!("{stem}.lora_a.weight")) {
            let inner = self.matvec(&format!("{stem}.lora_a.weight"), x);
            let update = self.matvec(&format!("{stem}.lora_b.weight"), &inner);
            y.iter_mut().zip(update).for_each(|(y, u)| *y += u);
        }
        y
    }
    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let gain = &self.get(name).1;
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + 1e-6).sqrt();
        x.iter().zip(gain).map(|(v, g)| v * r * f64::from(*g)).collect()
    }
    fn rotate(&self, x: &mut [f64], position: usize) {
        let half = self.head_dim / 2;
        for head in x.chunks_mut(self.head_dim) {
            for j in 0..half {
                let angle = position as f64 * 10000f64.powf(-2.0 * j as f64 / self.head_dim as f64);
                let (a, b) = (head[j], head[j + half]);
                head[j] = a * angle.cos() - b * angle.sin();
                head[j + half] = a * angle.sin() + b * angle.cos();
            }
        }
    }
    fn head(&self, x: &[f64]) -> Vec<f64> {
        self.matvec("lm_head.weight", &self.norm("model.norm.weight", x))
    }

    /// Runs a sequence, one token after the other.
    pub fn run(&self, form: &Form, ids: &[i32]) -> Outcome {
        let none = vec![vec![Vec::new(); ids.len()]; self.layers];
        let ran = vec![vec![true; ids.len()]; self.layers];
        let mut run = Run { t: self, form, ids, k: none.clone(), v: none, ran };
        let mut out = Outcome { margin: f64::INFINITY, ..Outcome::default() };
        for (at, id) in ids.iter().enumerate() {
            run.token(at, *id, &mut out);
        }
        out
    }
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The point at `t` on the arc between two directions; on the line where they are nearly parallel.
fn arc(a: &[f64], b: &[f64], t: f64) -> Vec<f64> {
    let cos = dot(a, b).clamp(-1.0, 1.0);
    let (wa, wb) = match cos.abs() > 0.9995 {
        true => (1.0 - t, t),
        false => (((1.0 - t) * cos.acos()).sin() / cos.acos().sin(), (t * cos.acos()).sin() / cos.acos().sin()),
    };
    a.iter().zip(b).map(|(a, b)| wa * a + wb * b).collect()
}

impl Run<'_> {
    /// Whether two tokens pass in one run.
    fn together(&self, s: usize, at: usize) -> bool {
        let Form { prompt, chunk, .. } = *self.form;
        chunk == 0 || s == at || (s < prompt && at < prompt && s / chunk == at / chunk)
    }
    /// What token `at` reads of the keys or values that layer `l` has for token `s`.
    fn cached(&self, part: &[Vec<Vec<f64>>], l: usize, s: usize, at: usize) -> Vec<f64> {
        let Some((start, t)) = self.form.merge.filter(|m| l >= m.0) else { return part[l][s].clone() };
        let first = l - (l - start) % 2;
        if self.together(s, at) || first + 1 >= self.t.layers {
            return part[l][s].clone();
        }
        let d = self.t.head_dim;
        let length = |x: &[f64]| dot(x, x).sqrt();
        let unit = |x: &[f64]| x.iter().map(|v| v / length(x)).collect::<Vec<f64>>();
        let one = |head: usize| {
            let own = &part[l][s][head * d..][..d];
            let sides = |s: usize| [first, first + 1].map(|l| unit(&part[l][s][head * d..][..d]));
            let far = |s: usize, gamma: f64| {
                let [a, b] = sides(s);
                dot(&a, &b).clamp(-1.0, 1.0).acos() > (1.0 - gamma) * std::f64::consts::PI
            };
            let is_retained = self
                .form
                .retain
                .is_some_and(|(gamma, room)| far(s, gamma) && (0..=s).filter(|s| far(*s, gamma)).count() <= room);
            if is_retained {
                return own.to_vec();
            }
            let [a, b] = sides(s);
            arc(&a, &b, t).into_iter().map(|e| e * length(own)).collect()
        };
        (0..part[l][s].len() / d).flat_map(one).collect()
    }
    /// Layers and tokens whose keys and values token `at` sees in layer `l`, which reads those of `ks` and `vs`.
    fn visible(&self, l: usize, ks: usize, vs: usize, at: usize) -> Vec<(usize, usize, usize)> {
        let seen = if ks > l || vs > l { at } else { at + 1 };
        let own = (0..seen).filter(|s| !self.form.drops || *s == at || self.ran[l][*s]).map(|s| (ks, vs, s));
        let Some((anchors, window, other)) = &self.form.keep else { return own.collect() };
        let is_anchor = |s: &usize| anchors.contains(&self.ids[*s]);
        let kept = own.filter(|(.., s)| at - s < *window || is_anchor(s));
        let more =
            other.filter(|o| *o < l).into_iter().flat_map(|o| (0..=at).filter(is_anchor).map(move |s| (o, o, s)));
        kept.chain(more).collect()
    }
    /// `y + O softmax(q K / √d) V` along the states of a token.
    fn along_layers(&self, l: usize, states: &[Vec<f64>], y: &[f64]) -> Vec<f64> {
        let t = self.t;
        let map = |p: &str, x: &[f64]| t.matvec(&Tiny::name(l, &format!("layer_attention.{p}.weight")), x);
        let (q, d) = (map("q_proj", y), t.hidden / t.heads);
        let (k, v): (Vec<_>, Vec<_>) = states.iter().map(|h| (map("k_proj", h), map("v_proj", h))).unzip();
        let mut seen = vec![0.0; t.hidden];
        for head in 0..t.heads {
            let at = |x: &[f64]| x[head * d..][..d].to_vec();
            let probs = softmax(&k.iter().map(|k| dot(&at(&q), &at(k)) / (d as f64).sqrt()).collect::<Vec<_>>());
            for (p, v) in probs.iter().zip(&v) {
                (0..d).for_each(|e| seen[head * d + e] += p * v[head * d + e]);
            }
        }
        y.iter().zip(map("o_proj", &seen)).map(|(y, o)| y + o).collect()
    }
    fn token(&mut self, at: usize, id: i32, out: &mut Outcome) {
        let (t, form) = (self.t, self.form);
        let (h, d) = (t.hidden, t.head_dim);
        let mut x: Vec<f64> =
            t.get("model.embed_tokens.weight").1[id as usize * h..][..h].iter().map(|v| f64::from(*v)).collect();
        let (mut made_q, mut made_p, mut made_y) =
            (vec![Vec::new(); t.layers], vec![Vec::new(); t.layers], vec![Vec::new(); t.layers]);
        let mut first_v: Vec<f64> = Vec::new();
        let (mut left, mut skipping) = (false, false);
        let (mut layers_run, mut ffn_run) = (0, 0);
        let mut mixed = vec![0.0; h];
        let mut states = vec![x.clone()];
        // Weight so far, whether the token has stopped, its result, and what the trip under way weighs.
        let (mut halted_sum, mut stopped, mut result, mut weight, mut trips) = (0.0, false, vec![0.0; h], 0.0, 0);
        for l in 0..t.layers {
            let name = |p: &str| Tiny::name(l, p);
            if let Some((_, threshold)) = form.halt.filter(|halt| l % halt.0 == 0) {
                left = stopped;
                if !stopped {
                    let g = t.matvec(&name("halt.weight"), &x)[0] + f64::from(t.get(&name("halt.bias")).1[0]);
                    let p = 1.0 / (1.0 + (-g).exp());
                    out.margin = out.margin.min((halted_sum + p - threshold).abs());
                    stopped = halted_sum + p > threshold;
                    weight = if stopped { 1.0 - halted_sum } else { p };
                    halted_sum += weight;
                    trips += 1;
                }
            }
            let entered = x.clone();
            if form.steps {
                x.iter_mut().zip(&t.get(&name("step")).1).for_each(|(x, s)| *x += f64::from(*s));
            }
            let came = x.clone();
            let gate =
                || dot(&t.matvec(&name("gate.weight"), &came), &[1.0]) + f64::from(t.get(&name("gate.bias")).1[0]);
            let mut runs = !left;
            if form.routes.contains(&l) {
                let p = 1.0 / (1.0 + (-gate()).exp());
                out.margin = out.margin.min((p - 0.5).abs());
                runs &= p > 0.5;
                self.ran[l][at] = p > 0.5;
            }
            // attention
            let n = t.norm(&name("input_layernorm.weight"), &x);
            let proj = |p: &str| t.linear(&name(&format!("self_attn.{p}")), &n, form.lora);
            let has = |p: &str| {
                let n = name(&format!("self_attn.{p}.weight"));
                t.tensors.contains_key(&n) || t.aliases.contains_key(&n)
            };
            if has("k_proj") {
                let mut k = proj("k_proj");
                t.rotate(&mut k, at);
                self.k[l][at] = k;
            }
            if has("v_proj") {
                let mut v = proj("v_proj");
                if let (Some([own, first]), true) = (form.blend, l > 0) {
                    v.iter_mut().zip(&first_v).for_each(|(v, f)| *v = own * *v + first * f);
                }
                if l == 0 {
                    first_v = v.clone();
                }
                self.v[l][at] = v;
            }
            let (ks, vs) = (*form.keys.get(&l).unwrap_or(&l), *form.values.get(&l).unwrap_or(&l));
            let seen = self.visible(l, ks, vs, at);
            let y = if let Some(s) = form.outputs.get(&l) {
                made_y[*s].clone()
            } else {
                let kv_heads = |c: &[Vec<f64>]| c.first().map_or(1, |c| c.len() / d);
                let probs: Vec<Vec<f64>> = if let Some(s) = form.probs.get(&l) {
                    made_p[*s].clone()
                } else {
                    let mut q = proj("q_proj");
                    t.rotate(&mut q, at);
                    made_q[l] = q.clone();
                    let groups = kv_heads(&self.k[ks]);
                    let keys: Vec<Vec<f64>> = seen.iter().map(|(k, _, s)| self.cached(&self.k, *k, *s, at)).collect();
                    let one = |head: usize| {
                        let g = form.head_maps.get(&l).map_or(head * groups / t.heads, |m| m.0[head]);
                        let score = |k: &Vec<f64>| dot(&q[head * d..][..d], &k[g * d..][..d]) / (d as f64).sqrt();
                        softmax(&keys.iter().map(score).collect::<Vec<f64>>())
                    };
                    (0..t.heads).map(one).collect()
                };
                let groups = kv_heads(&self.v[vs]);
                let values: Vec<Vec<f64>> = seen.iter().map(|(_, v, s)| self.cached(&self.v, *v, *s, at)).collect();
                let mut y = vec![0.0; t.heads * d];
                for head in 0..t.heads {
                    let g = form.head_maps.get(&l).map_or(head * groups / t.heads, |m| m.1[head]);
                    for (v, p) in values.iter().zip(&probs[head]) {
                        (0..d).for_each(|e| y[head * d + e] += p * v[g * d + e]);
                    }
                }
                made_p[l] = probs;
                y
            };
            made_y[l] = y.clone();
            let o = t.linear(&name("self_attn.o_proj"), &y, form.lora);
            let mut z: Vec<f64> = x.iter().zip(o).map(|(x, o)| x + o).collect();
            // feed-forward
            if t.tensors.contains_key(&name("mlp.up_proj.weight"))
                || t.aliases.contains_key(&name("mlp.up_proj.weight"))
            {
                let n = t.norm(&name("post_attention_layernorm.weight"), &z);
                let up = t.linear(&name("mlp.up_proj"), &n, form.lora);
                let gate = t.linear(&name("mlp.gate_proj"), &n, form.lora);
                let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let down = t.linear(&name("mlp.down_proj"), &inner, form.lora);
                let fed: Vec<f64> = z.iter().zip(down).map(|(z, d)| z + d).collect();
                let cos = dot(&z, &fed) / (dot(&z, &z) * dot(&fed, &fed)).sqrt();
                match &form.ffn_skip {
                    Some((threshold, cold, warmup)) if !cold.contains(&l) => {
                        let ran = !skipping || at < *warmup;
                        if ran {
                            out.margin = out.margin.min((cos - threshold).abs());
                            z = fed;
                            skipping |= cos > *threshold;
                        }
                        ffn_run += usize::from(ran);
                    }
                    _ => z = fed,
                }
            }
            if form.mixes.contains(&l) {
                let s = 0.5 * gate().tanh() + 0.5;
                z = came.iter().zip(z).map(|(x, z)| (1.0 - s) * x + s * z).collect();
            }
            if form.layer_attention.contains(&l) {
                z = self.along_layers(l, &states, &z);
            }
            states.push(z.clone());
            layers_run += usize::from(runs);
            if runs {
                x = z;
            } else if left {
                x = entered;
            } else {
                x = came;
            }
            if form.halt.is_some_and(|(body, _)| (l + 1) % body == 0) && !left {
                result = x.iter().zip(&result).map(|(x, r)| weight * x + (1.0 - weight) * r).collect();
                if stopped || l + 1 == t.layers {
                    x = result.clone();
                }
            }
            if let Some((weights, normed)) = &form.mix {
                let h = if *normed { t.norm("model.norm.weight", &x) } else { x.clone() };
                mixed.iter_mut().zip(h).for_each(|(m, h)| *m += weights[l] * h);
            }
            if let Some((_, threshold)) =
                form.exits.iter().find(|(after, _)| *after == l + 1).filter(|_| l + 1 < t.layers && at >= form.prompt)
            {
                let p = softmax(&t.head(&x)).into_iter().fold(0.0, f64::max);
                if !left {
                    out.margin = out.margin.min((p - threshold).abs());
                }
                left |= p > *threshold;
            }
        }
        out.logits.push(match &form.mix {
            None => t.head(&x),
            Some((_, true)) => t.matvec("lm_head.weight", &mixed),
            Some((_, false)) => t.head(&mixed),
        });
        out.layers_run.push(layers_run);
        out.ffn_run.push(ffn_run);
        out.trips.push(trips);
        out.weights.push(halted_sum);
    }
}
