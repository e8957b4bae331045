//! Kernels of every template, storage, prologue and epilogue, in the sizes of a small decoder or in small odd ones.

use super::build::{SpecBuilder, dim};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{
    AliasKind, Anchor, Attention, BinaryOp as B, Chain, Expr, ExprId, KernelSpec, KeyParts, LeftStore, ReduceOp, Space,
    Stat, Store, UnaryOp as U,
};

/// Sizes of the kernels.
#[derive(Clone, Copy)]
pub struct Shapes {
    /// Elements of a token, a multiple of every block.
    pub width: u64,
    /// Columns of a projection.
    pub columns: u64,
    /// Query heads of a key head.
    pub group: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head: u64,
    /// Keys that a slot has room for.
    pub capacity: u64,
}

/// Those of a decoder of some hundred million parameters.
pub const DECODER: Shapes = Shapes { width: 768, columns: 1536, group: 3, kv_heads: 4, head: 64, capacity: 2048 };
/// Small ones that no tile divides.
pub const ODD: Shapes = Shapes { width: 256, columns: 77, group: 2, kv_heads: 2, head: 20, capacity: 50 };

/// Storage types of floats.
pub fn floats() -> impl Iterator<Item = Storage> {
    Storage::ALL.into_iter().filter(|s| s.scalar() == Scalar::F32)
}

/// What a matmul computes before and after its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `x Wᵀ`
    Plain,
    /// `gelu(x Wᵀ + b)`
    BiasGelu,
    /// `r + silu(x) Wᵀ`, in place.
    Residual,
    /// `silu(x Wᵀ) (x Vᵀ)`
    Gated,
    /// `rms_norm(x) Wᵀ`
    Normed,
    /// As `Normed`, and the normed rows are kept.
    NormedKept,
    /// Queries, and rotated keys into a slot.
    RotaryKv,
    /// `x Wᵀ`, both rows kept in 16 bits.
    Kept,
    /// `r · x Wᵀ`, a root of sums of tiles for each row, and `x` kept in 16 bits.
    Commuted,
}

/// Every form of rows in 32 bits.
pub const FORMS: [Form; 7] =
    [Form::Plain, Form::BiasGelu, Form::Residual, Form::Gated, Form::Normed, Form::NormedKept, Form::RotaryKv];

/// All kernels with their names.
pub fn all(z: &Shapes) -> Vec<KernelSpec> {
    let mut specs = vec![add_scaled(z), swiglu(z), every_function(z), transpose(z)];
    specs.extend(Storage::ALL.map(|s| gather(z, s)));
    specs.extend([norm(z, false), norm(z, true), residual_norm(z), softmax(z), argmax(z)]);
    for rows in ["1", "S"] {
        for storage in floats() {
            specs.push(matmul(z, rows, storage, Form::Plain));
        }
        for form in FORMS {
            if form != Form::Plain {
                specs.push(matmul(z, rows, Storage::Bf16, form));
            }
        }
        specs.push(matmul(z, rows, Storage::Q4_0, Form::Gated));
    }
    for (storage, form) in [
        (Storage::Bf16, Form::Kept),
        (Storage::F16, Form::Kept),
        (Storage::Q6K, Form::Kept),
        (Storage::Bf16, Form::Commuted),
    ] {
        specs.push(matmul(z, "S", storage, form));
    }
    for storage in [Storage::F16, Storage::Bf16, Storage::Q6K] {
        let mut spec = matmul(&Shapes { columns: 4 * z.columns, ..*z }, "S", storage, Form::Residual);
        spec.name = format!("gemm_{storage}_wide");
        specs.push(spec);
    }
    // Warpgroups take them in blocks of 256 columns.
    for form in [Form::Kept, Form::Commuted, Form::Gated, Form::Normed, Form::RotaryKv] {
        let heads = if form == Form::RotaryKv { 8448 / z.head * 2 } else { z.kv_heads };
        let shapes = Shapes { columns: 8448, kv_heads: heads, ..*z };
        let mut spec = matmul(&shapes, "S", Storage::Bf16, form);
        spec.name.push_str("_wider");
        specs.push(spec);
    }
    specs.extend([scores(z), values(z)]);
    for rows in ["1", "S"] {
        specs.push(attention(
            z,
            rows,
            &format!("attention_{}", if rows == "1" { "decode" } else { "prefill" }),
            |_, _| {},
        ));
    }
    specs.push(attention(z, "S", "attention_window_softcap", |_, a| (a.window, a.softcap) = (Some(16), Some(30.0))));
    specs.push(attention(z, "S", "attention_mask_bias", |s, a| {
        let mask = s.arg("mask", Space::Ints, Storage::Bool, "B*T");
        let bias = s.arg("bias", Space::Arena, Storage::F32, "S*T");
        (a.mask, a.bias) = (Some(s.load(mask, "T*i0 + i5")), Some(s.load(bias, "T*i2 + i5")));
        a.causal_offset = None;
    }));
    specs.push(attention_parts(z, 4));
    specs.extend([Storage::F32, Storage::Bf16].map(chain));
    specs
}

fn text(template: &str, parts: &[(&str, u64)]) -> String {
    parts.iter().fold(template.to_owned(), |t, (name, n)| t.replace(name, &n.to_string()))
}

fn add_scaled(z: &Shapes) -> KernelSpec {
    let at = text("WW*i0 + i1", &[("WW", z.width)]);
    let mut s = SpecBuilder::new("add_scaled", &["S", &z.width.to_string()], &["S"]);
    let len = text("WW*S", &[("WW", z.width)]);
    let (x, y) = (s.arg("x", Space::Arena, Storage::F32, &len), s.arg("y", Space::Arena, Storage::F32, &len));
    let out = s.out("out", Space::Arena, Storage::F32, &len);
    let (x, y, half) = (s.load(x, &at), s.load(y, &at), s.f(0.5));
    let y = s.bin(B::Mul, y, half);
    let v = s.bin(B::Add, x, y);
    s.store(out, &at, v);
    s.done()
}

fn swiglu(z: &Shapes) -> KernelSpec {
    let mut s = SpecBuilder::new("swiglu", &["B", "S", &z.columns.to_string()], &["B", "S"]);
    let of = |t: &str| text(t, &[("NN", z.columns)]);
    let x = s.arg("x", Space::Arena, Storage::F32, &of("2*NN*B*S"));
    let out = s.out("out", Space::Arena, Storage::F32, &of("NN*B*S"));
    let (gate, up) = (s.load(x, &of("2*NN*S*i0 + 2*NN*i1 + i2")), s.load(x, &of("2*NN*S*i0 + 2*NN*i1 + NN + i2")));
    let gate = s.un(U::Silu, gate);
    let v = s.bin(B::Mul, gate, up);
    s.store(out, &of("NN*S*i0 + NN*i1 + i2"), v);
    s.done()
}

/// Every function of one operand on one element, and the powers.
fn every_function(z: &Shapes) -> KernelSpec {
    let mut s = SpecBuilder::new("every_function", &["S", &z.columns.to_string()], &["S"]);
    let of = |t: &str| text(t, &[("NN", z.columns)]);
    let x = s.arg("x", Space::Arena, Storage::F32, &of("NN*S"));
    let out = s.out("out", Space::Arena, Storage::F32, &of("NN*S"));
    let x = s.load(x, &of("NN*i0 + i1"));
    let square = s.bin(B::Mul, x, x);
    let one = s.f(1.0);
    let positive = s.bin(B::Add, square, one);
    let mut sum = s.f(0.0);
    for op in [U::Log, U::Sqrt, U::Rsqrt, U::Recip] {
        let v = s.un(op, positive);
        sum = s.bin(B::Add, sum, v);
    }
    let bounded = [U::Neg, U::Abs, U::Exp, U::Tanh, U::Erf, U::Sin, U::Cos, U::Sigmoid];
    for op in bounded.into_iter().chain([U::Silu, U::GeluErf, U::GeluTanh, U::Relu, U::Floor, U::Ceil, U::Sign]) {
        let v = s.un(op, x);
        sum = s.bin(B::Add, sum, v);
    }
    let exponent = s.f(1.7);
    let power = s.bin(B::Pow, positive, exponent);
    sum = s.bin(B::Add, sum, power);
    s.store(out, &of("NN*i0 + i1"), sum);
    s.done()
}

fn transpose(z: &Shapes) -> KernelSpec {
    let mut s = SpecBuilder::new("transpose", &["B", "5", "S", "3"], &["B", "S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "15*B*S");
    let out = s.out("out", Space::Arena, Storage::F32, "15*B*S");
    let _ = z;
    let v = s.load(x, "15*S*i0 + 15*i2 + 3*i1 + i3");
    s.store(out, "15*S*i0 + 3*S*i1 + 3*i2 + i3", v);
    s.done()
}

fn gather(z: &Shapes, storage: Storage) -> KernelSpec {
    let mut s = SpecBuilder::new(&format!("gather_{storage}"), &["S", &z.width.to_string()], &["S"]);
    let of = |t: &str| text(t, &[("WW", z.width)]);
    let ids = s.arg("ids", Space::Ints, Storage::I32, "S");
    let table = s.arg("table", Space::Weight, storage, &of("9*WW"));
    let id = s.load(ids, "i0");
    let v = s.load_at(table, dim(&of(&format!("WW*v{} + i1", id.0))));
    let out = match storage.scalar() {
        Scalar::F32 => s.out("out", Space::Arena, Storage::F32, &of("WW*S")),
        _ => s.out("out", Space::Ints, storage, &of("WW*S")),
    };
    s.store(out, &of("WW*i0 + i1"), v);
    s.done()
}

/// The mean of squares, as a statistic of rows of `x` along `axis`, and its finish `1 / sqrt(mean + eps)`.
fn mean_square(s: &mut SpecBuilder, x: ExprId, width: u64, stat: u8) -> Stat {
    let value = s.bin(B::Mul, x, x);
    let (raw, share, eps) = (s.stat(stat, Scalar::F32), s.f(1.0 / width as f32), s.f(1e-5));
    let mean = s.bin(B::Mul, raw, share);
    let mean = s.bin(B::Add, mean, eps);
    Stat { op: ReduceOp::Sum, value, finish: Some(s.un(U::Rsqrt, mean)) }
}

fn norm(z: &Shapes, centred: bool) -> KernelSpec {
    let name = if centred { "layer_norm" } else { "rms_norm" };
    let mut s = SpecBuilder::new(name, &["S", &z.width.to_string()], &["S"]);
    let of = |t: &str| text(t, &[("WW", z.width)]);
    let x = s.arg("x", Space::Arena, Storage::F32, &of("WW*S"));
    let gain = s.arg("gain", Space::Side, Storage::F32, &of("WW"));
    let out = s.out("out", Space::Arena, Storage::F32, &of("WW*S"));
    let mut v = s.load(x, &of("WW*i0 + i1"));
    let mut stats = Vec::new();
    if centred {
        let (raw, share) = (s.stat(0, Scalar::F32), s.f(1.0 / z.width as f32));
        let mean = s.bin(B::Mul, raw, share);
        stats.push(Stat { op: ReduceOp::Sum, value: v, finish: Some(mean) });
        v = s.bin(B::Sub, v, raw);
    }
    let square = mean_square(&mut s, v, z.width, u8::from(centred));
    stats.push(square);
    let (scale, gain) = (s.stat(u8::from(centred), Scalar::F32), s.load(gain, "i1"));
    let v = s.bin(B::Mul, v, scale);
    let v = s.bin(B::Mul, v, gain);
    s.spec.anchor = Anchor::Row { stats };
    s.store(out, &of("WW*i0 + i1"), v);
    s.done()
}

/// The sum of two rows, kept, and its norm.
fn residual_norm(z: &Shapes) -> KernelSpec {
    let mut s = SpecBuilder::new("residual_norm", &["S", &z.width.to_string()], &["S"]);
    let of = |t: &str| text(t, &[("WW", z.width)]);
    let at = of("WW*i0 + i1");
    let (x, y) =
        (s.arg("x", Space::Arena, Storage::F32, &of("WW*S")), s.arg("y", Space::Arena, Storage::F32, &of("WW*S")));
    let sum = s.out("sum", Space::Arena, Storage::F32, &of("WW*S"));
    let out = s.out("out", Space::Arena, Storage::F32, &of("WW*S"));
    let (x, y) = (s.load(x, &at), s.load(y, &at));
    let v = s.bin(B::Add, x, y);
    let stats = vec![mean_square(&mut s, v, z.width, 0)];
    s.spec.anchor = Anchor::Row { stats };
    s.store(sum, &at, v);
    let scale = s.stat(0, Scalar::F32);
    let v = s.bin(B::Mul, v, scale);
    s.store(out, &at, v);
    s.done()
}

fn softmax(z: &Shapes) -> KernelSpec {
    let _ = z;
    let mut s = SpecBuilder::new("softmax", &["B", "S", "T"], &["B", "S", "T"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "B*S*T");
    let out = s.out("out", Space::Arena, Storage::F32, "B*S*T");
    let at = "S*T*i0 + T*i1 + i2";
    let v = s.load(x, at);
    let (max, sum) = (s.stat(0, Scalar::F32), s.stat(1, Scalar::F32));
    let v0 = s.bin(B::Sub, v, max);
    let e = s.un(U::Exp, v0);
    s.spec.anchor = Anchor::Row {
        stats: vec![
            Stat { op: ReduceOp::Max, value: v, finish: None },
            Stat { op: ReduceOp::Sum, value: e, finish: None },
        ],
    };
    let p = s.bin(B::Div, e, sum);
    s.store(out, at, p);
    s.done()
}

fn argmax(z: &Shapes) -> KernelSpec {
    let mut s = SpecBuilder::new("argmax", &["S", &z.columns.to_string()], &["S"]);
    let of = |t: &str| text(t, &[("NN", z.columns)]);
    let x = s.arg("x", Space::Arena, Storage::F32, &of("NN*S"));
    let id = s.out("id", Space::Ints, Storage::I32, "S");
    let v = s.load(x, &of("NN*i0 + i1"));
    s.spec.anchor = Anchor::Row { stats: vec![Stat { op: ReduceOp::ArgMax, value: v, finish: None }] };
    let place = s.stat(0, Scalar::I32);
    s.store(id, "i0", place).per_row = true;
    s.done()
}

/// A projection of `rows` tokens.
pub fn matmul(z: &Shapes, rows: &str, storage: Storage, form: Form) -> KernelSpec {
    let kind = format!("{form:?}").to_lowercase();
    let name = format!("{}_{storage}_{kind}", if rows == "1" { "gemv" } else { "gemm" });
    let columns = if form == Form::RotaryKv { z.kv_heads * z.head / 2 } else { z.columns };
    let of = |t: &str| text(t, &[("WW", z.width), ("NN", columns)]).replace("ROWS", rows);
    let sizes: &[&str] = match (rows, form) {
        ("1", Form::RotaryKv) => &["P"],
        ("1", _) => &[],
        (_, Form::RotaryKv) => &["S", "P"],
        _ => &["S"],
    };
    let mut s = SpecBuilder::new(&name, &[rows, &columns.to_string()], sizes);
    let x = s.arg("x", Space::Arena, Storage::F32, &of("WW*ROWS"));
    let pairs = form == Form::RotaryKv;
    let w = s.arg("w", Space::Weight, storage, &of(if pairs { "2*NN*WW" } else { "NN*WW" }));
    let mut lhs = s.load(x, &of("WW*i0 + i2"));
    let mut lhs_stats = Vec::new();
    if form == Form::Residual {
        lhs = s.un(U::Silu, lhs);
    }
    if matches!(form, Form::Normed | Form::NormedKept) {
        lhs_stats.push(mean_square(&mut s, lhs, z.width, 0));
        let gain = s.arg("gain", Space::Side, Storage::F32, &of("WW"));
        let (scale, gain) = (s.stat(0, Scalar::F32), s.load(gain, "i2"));
        lhs = s.bin(B::Mul, lhs, scale);
        lhs = s.bin(B::Mul, lhs, gain);
    }
    if form == Form::Commuted {
        let t = s.arg("t", Space::Arena, Storage::F32, "5*ROWS".replace("ROWS", rows).as_str());
        let part = s.load(t, "5*i0 + i2");
        lhs_stats.push(mean_square(&mut s, part, z.width, 0));
        s.spec.stats_over = Some(Dim::from(5u64));
    }
    let mut rhs = vec![s.load(w, &of(if pairs { "2*WW*i1 + i2" } else { "WW*i1 + i2" }))];
    if pairs {
        rhs.push(s.load(w, &of("2*WW*i1 + WW + i2")));
    }
    if form == Form::Gated {
        let v = s.arg("v", Space::Weight, storage, &of("NN*WW"));
        rhs.push(s.load(v, &of("WW*i1 + i2")));
    }
    s.spec.anchor = Anchor::MatMul { k: dim(&of("WW")), lhs, lhs_stats, rhs };
    let at = of("NN*i0 + i1");
    let acc = s.acc(0);
    if pairs {
        rotary(&mut s, z, rows, acc);
        return s.done();
    }
    let value = match form {
        Form::BiasGelu => {
            let bias = s.arg("bias", Space::Side, Storage::F32, &of("NN"));
            let bias = s.load(bias, "i1");
            let v = s.bin(B::Add, acc, bias);
            s.un(U::GeluTanh, v)
        }
        Form::Residual => {
            let r = s.arg("r", Space::Arena, Storage::F32, &of("NN*ROWS"));
            let before = s.load(r, &at);
            s.bin(B::Add, acc, before)
        }
        Form::Gated => {
            let (gate, up) = (s.un(U::Silu, acc), s.acc(1));
            s.bin(B::Mul, gate, up)
        }
        Form::Commuted => {
            let scale = s.stat(0, Scalar::F32);
            s.bin(B::Mul, acc, scale)
        }
        _ => acc,
    };
    if form == Form::NormedKept {
        let kept = s.out("kept", Space::Arena, Storage::F32, &of("WW*ROWS"));
        let Anchor::MatMul { lhs, .. } = s.spec.anchor else { unreachable!("a product") };
        s.spec.left = vec![LeftStore { arg: kept, index: dim(&of("WW*i0 + i2")), value: lhs }];
    }
    let out = s.out("out", Space::Arena, Storage::F32, &of("NN*ROWS"));
    if form == Form::Residual {
        let r = frit_kernels::spec::ArgId(out.0 - 1);
        s.alias(out, r, AliasKind::SameElement);
    }
    s.store(out, &at, value);
    let kept_args: &[_] = match form {
        Form::Kept => &[x, out],
        Form::Commuted => &[x],
        _ => &[],
    };
    for id in kept_args {
        s.spec.args[id.0 as usize].rounded = storage.matrix_format();
    }
    s.done()
}

/// Pairs of columns turned by the angle of their token, written to a slot behind `P` tokens.
fn rotary(s: &mut SpecBuilder, z: &Shapes, rows: &str, first: ExprId) {
    let half = z.head / 2;
    let of = |t: &str| text(t, &[("HH", half), ("DD", z.head), ("CC", z.capacity)]).replace("ROWS", rows);
    let table = of("HH*CC");
    let (cos, sin) = (s.arg("cos", Space::Side, Storage::F32, &table), s.arg("sin", Space::Side, Storage::F32, &table));
    let keys = s.out(
        "keys",
        Space::Kv(0),
        Storage::F32,
        &text("KK*DD*CC", &[("KK", z.kv_heads), ("DD", z.head), ("CC", z.capacity)]),
    );
    let at = of("HH*i0 + HH*P + mod(i1, HH)");
    let (cos, sin, second) = (s.load(cos, &at), s.load(sin, &at), s.acc(1));
    let part = |s: &mut SpecBuilder, op, p, q| {
        let (p, q) = (s.bin(B::Mul, first, p), s.bin(B::Mul, second, q));
        s.bin(op, p, q)
    };
    let turned = [part(s, B::Sub, cos, sin), part(s, B::Add, sin, cos)];
    for (i, v) in turned.into_iter().enumerate() {
        let index = of("DD*CC*div(i1, HH) + DD*i0 + DD*P + mod(i1, HH)");
        s.store(keys, &format!("{index} + {}", i as u64 * half), v);
    }
}

/// `x + silu(x Uᵀ) Dᵀ`, narrow enough that a workgroup holds whole rows.
fn chain(storage: Storage) -> KernelSpec {
    let (width, inner) = (72u64, 104u64);
    let mut s = SpecBuilder::new(&format!("chain_{storage}"), &["S", &width.to_string()], &["S"]);
    let of = |t: &str| text(t, &[("WW", width), ("II", inner)]);
    let x = s.arg("x", Space::Arena, Storage::F32, &of("WW*S"));
    let up = s.arg("up", Space::Weight, storage, &(inner * width).to_string());
    let down = s.arg("down", Space::Weight, storage, &(inner * width).to_string());
    let out = s.out("out", Space::Arena, Storage::F32, &of("WW*S"));
    let lhs = s.load(x, &of("WW*i0 + i3"));
    let (up, down) = (s.load(up, &of("WW*i2 + i3")), s.load(down, &of("II*i1 + i2")));
    let acc = s.acc(0);
    let middle = s.un(U::Silu, acc);
    let before = s.load(x, &of("WW*i0 + i1"));
    let value = s.bin(B::Add, acc, before);
    s.store(out, &of("WW*i0 + i1"), value);
    s.spec.anchor = Anchor::Chain(Box::new(Chain {
        k: Dim::from(width),
        inner: Dim::from(inner),
        lhs,
        lhs_stats: Vec::new(),
        up: vec![up],
        middle,
        down,
    }));
    s.done()
}

/// Scores of all queries and keys, both contiguous along k.
fn scores(z: &Shapes) -> KernelSpec {
    let heads = z.group * z.kv_heads;
    let of =
        |t: &str| text(t, &[("DD", z.head), ("GG", z.group), ("KK", z.kv_heads), ("HH", heads), ("CC", z.capacity)]);
    let mut s = SpecBuilder::new("scores", &[&of("HH"), "S", "T"], &["S", "T"]);
    let q = s.arg("q", Space::Arena, Storage::F32, &of("HH*DD*S"));
    let k = s.arg("k", Space::Kv(0), Storage::F32, &of("KK*DD*CC"));
    let out = s.out("out", Space::Arena, Storage::F32, &of("HH*S*T"));
    let (lhs, rhs) = (s.load(q, &of("HH*DD*i1 + DD*i0 + i3")), s.load(k, &of("DD*CC*div(i0, GG) + DD*i2 + i3")));
    s.spec.anchor = Anchor::MatMul { k: dim(&of("DD")), lhs, lhs_stats: Vec::new(), rhs: vec![rhs] };
    let acc = s.acc(0);
    s.store(out, "S*T*i0 + T*i1 + i2", acc);
    s.done()
}

/// Values weighted by probabilities: k is the number of keys, the right side is contiguous along n.
fn values(z: &Shapes) -> KernelSpec {
    let heads = z.group * z.kv_heads;
    let of =
        |t: &str| text(t, &[("DD", z.head), ("GG", z.group), ("KK", z.kv_heads), ("HH", heads), ("CC", z.capacity)]);
    let mut s = SpecBuilder::new("values", &[&of("HH"), "S", &of("DD")], &["S", "T"]);
    let p = s.arg("p", Space::Arena, Storage::F32, &of("HH*S*T"));
    let v = s.arg("v", Space::Kv(0), Storage::F32, &of("KK*DD*CC"));
    let out = s.out("out", Space::Arena, Storage::F32, &of("HH*DD*S"));
    let (lhs, rhs) = (s.load(p, "S*T*i0 + T*i1 + i3"), s.load(v, &of("DD*CC*div(i0, GG) + DD*i3 + i2")));
    s.spec.anchor = Anchor::MatMul { k: Dim::size("T"), lhs, lhs_stats: Vec::new(), rhs: vec![rhs] };
    let acc = s.acc(0);
    s.store(out, &of("HH*DD*i1 + DD*i0 + i2"), acc);
    s.done()
}

/// Grouped attention of one row over a slot of `T` keys, taken in `count` parts.
fn attention_parts(z: &Shapes, count: u64) -> KernelSpec {
    let mut spec = attention(z, "1", "attention_parts", |_, a| {
        a.parts = Some(KeyParts::of(count, &Dim::one(), &a.kv_len, a.causal_offset.as_ref(), None));
    });
    let batch = Dim::axis(0).div(&Dim::from(count));
    let in_batch = |s: &Sym| (*s == Sym::Axis(0)).then(|| batch.clone());
    if let Anchor::Attention(a) = &mut spec.anchor {
        for e in [&mut a.q, &mut a.k, &mut a.v] {
            *e = spec.exprs.substitute(*e, &in_batch);
        }
    }
    spec.domain[0] = Dim::from(count) * Dim::size("B");
    let (heads, row) = (z.group * z.kv_heads, z.head + 2);
    let at = dim(&text("HH*RR*i0 + RR*i1", &[("HH", heads), ("RR", row)]));
    let out = spec.stores[0].arg;
    spec.args[out.0 as usize].len = Dim::from(count * heads * row) * Dim::size("B");
    spec.stores[0].index = at.clone() + Dim::axis(3);
    for k in 0..2u8 {
        let value = spec.exprs.add(Expr::Stat(k), Scalar::F32);
        let index = at.clone() + Dim::from(z.head + u64::from(k));
        spec.stores.push(Store { arg: out, index, value, when: None, per_row: true });
    }
    spec
}

/// Grouped attention over a slot of `T` keys.
fn attention(z: &Shapes, rows: &str, name: &str, change: impl FnOnce(&mut SpecBuilder, &mut Attention)) -> KernelSpec {
    let heads = z.group * z.kv_heads;
    let of = |t: &str| {
        let parts = [("DD", z.head), ("GG", z.group), ("KK", z.kv_heads), ("HH", heads), ("CC", z.capacity)];
        text(t, &parts).replace("ROWS", rows)
    };
    let domain = ["B".to_owned(), of("HH"), rows.to_owned(), of("DD")];
    let domain: Vec<&str> = domain.iter().map(String::as_str).collect();
    let sizes: &[&str] = if rows == "1" { &["B", "T"] } else { &["B", "S", "T"] };
    let mut s = SpecBuilder::new(name, &domain, sizes);
    let q = s.arg("q", Space::Arena, Storage::F32, &of("HH*DD*ROWS*B"));
    let k = s.arg("k", Space::Kv(0), Storage::F32, &of("KK*DD*CC*B"));
    let v = s.arg("v", Space::Kv(0), Storage::F32, &of("KK*DD*CC*B"));
    let out = s.out("out", Space::Arena, Storage::F32, &of("HH*DD*ROWS*B"));
    let q = s.load(q, &of("HH*DD*ROWS*i0 + HH*DD*i2 + DD*i1 + i4"));
    let k = s.load(k, &of("KK*DD*CC*i0 + DD*CC*div(i1, GG) + DD*i5 + i4"));
    let v = s.load(v, &of("KK*DD*CC*i0 + DD*CC*div(i1, GG) + DD*i5 + i3"));
    let result = s.spec.exprs.add(Expr::Acc(0), Scalar::F32);
    s.store(out, &of("HH*DD*ROWS*i0 + HH*DD*i2 + DD*i1 + i3"), result);
    let mut anchor = Attention {
        q,
        k,
        v,
        group: z.group,
        head_dim: z.head,
        value_dim: z.head,
        kv_len: Dim::size("T"),
        causal_offset: Some(dim(&of("T - ROWS"))),
        window: None,
        mask: None,
        bias: None,
        scale: 1.0 / (z.head as f32).sqrt(),
        softcap: None,
        parts: None,
    };
    change(&mut s, &mut anchor);
    s.spec.anchor = Anchor::Attention(Box::new(anchor));
    s.done()
}
