use super::*;
use frit_kernels::spec::{ArgId, Attention, KeyParts};

struct Shape {
    b: u64,
    h: u64,
    group: u64,
    s: u64,
    t: u64,
    hd: u64,
    vd: u64,
}

/// q `[B, S, H, hd]`, k and v `[B, H/group, T, ·]`, output `[B, S, H, vd]`.
fn attention(p: &Shape, change: impl Fn(&mut Case, &mut Attention)) -> Case {
    let mut r = Random(p.s * 7 + p.t);
    let kv = p.h / p.group;
    let sizes = [("B", p.b), ("H", p.h), ("G", p.group), ("S", p.s), ("T", p.t), ("E", p.hd), ("V", p.vd)];
    let mut c = Case::new(&["B", "H", "S", "V"], &sizes);
    let q = c.arg(Given::Floats(r.floats((p.b * p.h * p.s * p.hd) as usize)));
    let k = c.arg(Given::Floats(r.floats((p.b * kv * p.t * p.hd) as usize)));
    let v = c.arg(Given::Floats(r.floats((p.b * kv * p.t * p.vd) as usize)));
    let out = c.arg(Given::Out((p.b * p.h * p.s * p.vd) as usize));
    let g = p.group;
    let mut a = Attention {
        q: c.load(q, "i0*S*H*E + i2*H*E + i1*E + i4"),
        k: c.load(k, &format!("i0*{kv}*T*E + div(i1, {g})*T*E + i5*E + i4")),
        v: c.load(v, &format!("i0*{kv}*T*V + div(i1, {g})*T*V + i5*V + i3")),
        group: g,
        head_dim: p.hd,
        value_dim: p.vd,
        kv_len: d("T"),
        causal_offset: None,
        window: None,
        mask: None,
        bias: None,
        scale: 0.7,
        softcap: None,
        parts: None,
    };
    change(&mut c, &mut a);
    c.spec.anchor = Anchor::Attention(Box::new(a));
    let acc = c.acc(0);
    let two = c.f(2.0);
    let y = c.bin(BinaryOp::Mul, acc, two);
    c.store(out, "i0*S*H*V + i2*H*V + i1*V + i3", y);
    c
}

const SHAPES: [Shape; 8] = [
    Shape { b: 1, h: 1, group: 1, s: 1, t: 1, hd: 1, vd: 1 },
    Shape { b: 2, h: 4, group: 2, s: 1, t: 33, hd: 16, vd: 16 },
    Shape { b: 1, h: 6, group: 3, s: 7, t: 7, hd: 33, vd: 7 },
    Shape { b: 1, h: 9, group: 9, s: 1, t: 257, hd: 12, vd: 12 },
    Shape { b: 3, h: 2, group: 1, s: 3, t: 40, hd: 8, vd: 24 },
    Shape { b: 1, h: 2, group: 2, s: 70, t: 70, hd: 16, vd: 16 },
    Shape { b: 1, h: 1, group: 1, s: 9, t: 300, hd: 7, vd: 5 },
    Shape { b: 1, h: 2, group: 1, s: 66, t: 520, hd: 4, vd: 4 },
];

#[test]
fn heads_groups_and_odd_sizes_attend() {
    for p in &SHAPES {
        attention(p, |_, _| {}).check(2e-5);
    }
}

#[test]
fn causal_offsets_and_windows_hide_keys() {
    for p in &SHAPES {
        let past = p.t as i64 - p.s as i64;
        for window in [None, Some(1), Some(5), Some(300)] {
            attention(p, |_, a| {
                a.causal_offset = Some(Dim::constant(past));
                a.window = window;
            })
            .check(2e-5);
        }
        attention(p, |_, a| a.causal_offset = Some(Dim::constant(-2))).check(2e-5);
        attention(p, |_, a| a.window = Some(3)).check(2e-5);
    }
}

#[test]
fn masks_biases_and_softcaps_apply_and_a_masked_row_is_zero() {
    for p in &SHAPES {
        let make = |mask: bool, bias: bool, softcap: Option<f32>| {
            attention(p, |c, a| {
                let mut r = Random(p.t);
                if mask {
                    let seen = (0..p.b * p.s * p.t).map(|i| i32::from(i / p.t != 0 && r.next() % 3 != 0)).collect();
                    let m = c.arg(Given::Ints(seen));
                    let m = c.load(m, "i0*S*T + i2*T + i5");
                    a.mask = Some(c.spec.exprs.cast(Scalar::Bool, m));
                }
                if bias {
                    let m = c.arg(Given::Floats(r.floats((p.h * p.s * p.t) as usize)));
                    a.bias = Some(c.load(m, "i1*S*T + i2*T + i5"));
                    a.causal_offset = Some(d("T - S"));
                }
                a.softcap = softcap;
            })
        };
        make(true, false, None).check(2e-5);
        make(true, true, None).check(2e-5);
        make(false, true, Some(0.9)).check(2e-5);
        make(true, true, Some(30.0)).check(2e-5);
    }
}

#[test]
fn keys_and_values_may_be_expressions() {
    for p in &SHAPES {
        attention(p, |c, a| {
            let (kv, g) = (p.h / p.group, p.group);
            let t = c.arg(Given::Floats(Random(3).floats((p.b * kv * p.t * p.hd) as usize)));
            let t = c.load(t, &format!("i0*{kv}*E*T + div(i1, {g})*E*T + i4*T + i5"));
            a.k = c.bin(BinaryOp::Add, a.k, t);
            a.v = c.un(UnaryOp::Tanh, a.v);
            let q = c.f(0.5);
            a.q = c.bin(BinaryOp::Sub, a.q, q);
            a.causal_offset = Some(d("T - S"));
        })
        .check(2e-5);
    }
}

#[test]
fn heads_that_break_their_group_are_computed_one_by_one() {
    let p = Shape { b: 1, h: 4, group: 1, s: 5, t: 9, hd: 8, vd: 8 };
    attention(&p, |_, a| a.group = 4).check(2e-5);
}

/// Lengths of 1, of less than a part, of one part and of several, with windows that begin inside one.
#[test]
fn keys_in_parts_give_sums_and_what_they_are_to_be_divided_by() {
    for p in &SHAPES {
        for (window, count) in [(None, 1), (None, 3), (Some(5), 2), (Some(100), 4)] {
            let mut c = attention(p, |c, a| {
                let (kv, g) = (p.h / p.group, p.group);
                let past = Some(Dim::constant(p.t as i64 - p.s as i64)).filter(|_| p.t >= p.s);
                (a.causal_offset, a.window) = (past, window);
                a.q = c.load(ArgId(0), &format!("div(i0, {count})*S*H*E + i2*H*E + i1*E + i4"));
                a.k = c.load(ArgId(1), &format!("div(i0, {count})*{kv}*T*E + div(i1, {g})*T*E + i5*E + i4"));
                a.v = c.load(ArgId(2), &format!("div(i0, {count})*{kv}*T*V + div(i1, {g})*T*V + i5*V + i3"));
                a.parts = Some(KeyParts::of(count, &d("S"), &d("T"), a.causal_offset.as_ref(), window));
            });
            c.spec.domain[0] = d("B") * Dim::from(count);
            c.spec.stores.clear();
            let rows = (p.b * count * p.h * p.s) as usize;
            let out = c.arg(Given::Out(rows * (p.vd as usize + 2)));
            let acc = c.acc(0);
            c.store(out, "i0*H*S*(V + 2) + i1*S*(V + 2) + i2*(V + 2) + i3", acc);
            for k in 0..2u8 {
                let stat = c.spec.exprs.add(Expr::Stat(k), Scalar::F32);
                c.store(out, &format!("i0*H*S*(V + 2) + i1*S*(V + 2) + i2*(V + 2) + V + {k}"), stat);
                if let Some(s) = c.spec.stores.last_mut() {
                    s.per_row = true;
                }
            }
            c.check(2e-5);
        }
    }
}
