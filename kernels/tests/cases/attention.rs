//! Attention with grouped heads over a slot of keys and values.

use super::gemm::filled;
use crate::support::Case;
use crate::support::blocks::{Data, Random};
use crate::support::build::{SpecBuilder, dim};
use frit_kernels::dtype::Scalar;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::{Anchor, Attention, Expr, KernelSpec, KeyParts, Space};

const GROUP: u64 = 2;
const HEADS: u64 = 4;

/// `HEADS` query heads of `head` elements, values of `value` elements; arguments q, k, v, y, then what `change` adds.
/// Queries, keys and values of `head` and `value` elements, for the sequence `batch` says.
fn sides(s: &mut SpecBuilder, batch: &str, head: u64, value: u64) -> Attention {
    let (kv, all) = (HEADS / GROUP, HEADS * head);
    let q = s.arg("q", Space::Arena, Storage::F32, &format!("{all}*B*S"));
    let k = s.arg("k", Space::Kv(0), Storage::F32, &format!("{}*B*T", kv * head));
    let v = s.arg("v", Space::Kv(0), Storage::F32, &format!("{}*B*T", kv * value));
    Attention {
        q: s.load(q, &format!("{all}*S*{batch} + {all}*i2 + {head}*i1 + i4")),
        k: s.load(k, &format!("{}*T*{batch} + {head}*T*div(i1, {GROUP}) + {head}*i5 + i4", kv * head)),
        v: s.load(v, &format!("{}*T*{batch} + {value}*T*div(i1, {GROUP}) + {value}*i5 + i3", kv * value)),
        group: GROUP,
        head_dim: head,
        value_dim: value,
        kv_len: dim("T"),
        causal_offset: None,
        window: None,
        mask: None,
        bias: None,
        scale: 1.0 / (head as f32).sqrt(),
        softcap: None,
        parts: None,
    }
}

fn attention(head: u64, value: u64, change: impl FnOnce(&mut SpecBuilder, &mut Attention)) -> KernelSpec {
    let domain = ["B".to_owned(), HEADS.to_string(), "S".to_owned(), value.to_string()];
    let domain: Vec<&str> = domain.iter().map(String::as_str).collect();
    let mut s = SpecBuilder::new("attention", &domain, &["B", "S", "T", "P"]);
    let mut anchor = sides(&mut s, "i0", head, value);
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{}*B*S", HEADS * value));
    change(&mut s, &mut anchor);
    s.spec.anchor = Anchor::Attention(Box::new(anchor));
    let acc = s.acc(0);
    s.store(y, &format!("{}*S*i0 + {}*i2 + {value}*i1 + i3", HEADS * value, HEADS * value), acc);
    s.done()
}

pub fn every_length_of_keys(check: &dyn Fn(&Case)) {
    for (head, value) in [(4, 4), (20, 12), (8, 70)] {
        let spec = attention(head, value, |_, _| {});
        for (s, t) in [(1, 1), (2, 15), (1, 16), (3, 17), (1, 64), (2, 65), (1, 130)] {
            check(&filled(spec.clone(), &[("B", 2), ("S", s), ("T", t), ("P", 0)], t as u64));
        }
    }
}

pub fn causal_behind_earlier_keys(check: &dyn Fn(&Case)) {
    let spec = attention(8, 8, |_, a| a.causal_offset = Some(dim("P")));
    for (s, past) in [(1, 0), (5, 0), (1, 40), (3, 70)] {
        check(&filled(spec.clone(), &[("B", 1), ("S", s), ("T", s + past), ("P", past)], 3));
    }
}

pub fn window_and_soft_cap(check: &dyn Fn(&Case)) {
    let spec = attention(12, 12, |_, a| {
        (a.causal_offset, a.window, a.softcap) = (Some(dim("P")), Some(6), Some(3.0));
    });
    for (s, past) in [(1, 0), (9, 0), (1, 33), (4, 20)] {
        check(&filled(spec.clone(), &[("B", 2), ("S", s), ("T", s + past), ("P", past)], 4));
    }
}

/// More queries and keys than a tile has, in heads that fill tiles, that do not, and of different widths.
pub fn tiles_of_queries_and_keys(check: &dyn Fn(&Case)) {
    for (head, value) in [(64, 64), (40, 24), (16, 128)] {
        let spec = attention(head, value, |_, a| a.causal_offset = Some(dim("P")));
        check(&filled(spec, &[("B", 1), ("S", 37), ("T", 98), ("P", 61)], head));
    }
    let window = attention(32, 32, |_, a| (a.causal_offset, a.window) = (Some(dim("P")), Some(40)));
    check(&filled(window, &[("B", 2), ("S", 70), ("T", 75), ("P", 5)], 11));
}

/// The last query sees no key at all, and gets zeros.
pub fn mask_and_bias(check: &dyn Fn(&Case)) {
    let spec = attention(8, 8, |s, a| {
        let mask = s.arg("mask", Space::Ints, Storage::Bool, "S*T");
        let bias = s.arg("bias", Space::Arena, Storage::F32, "S*T");
        (a.mask, a.bias) = (Some(s.load(mask, "T*i2 + i5")), Some(s.load(bias, "T*i2 + i5")));
    });
    for (s, t) in [(1, 3), (4, 33), (2, 70)] {
        let mut case = filled(spec.clone(), &[("B", 1), ("S", s), ("T", t), ("P", 0)], 6);
        let seen = (0..s * t).map(|i| i32::from(i / t + 1 < s && Random::new(i as u64 + 1).below(3) > 0));
        case.data[4] = Data::I32(seen.collect());
        check(&case);
    }
}

/// As [`attention`], with the keys in `count` parts: rows of the sums, the largest score and the sum of weights.
fn in_parts(count: u64, head: u64, value: u64, change: impl FnOnce(&mut SpecBuilder, &mut Attention)) -> KernelSpec {
    let domain = [format!("{count}*B"), HEADS.to_string(), "S".to_owned(), value.to_string()];
    let domain: Vec<&str> = domain.iter().map(String::as_str).collect();
    let mut s = SpecBuilder::new("attention_parts", &domain, &["B", "S", "T", "P"]);
    let row = value + 2;
    let mut anchor = sides(&mut s, &format!("div(i0, {count})"), head, value);
    anchor.causal_offset = Some(dim("P"));
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{}*B*S", count * HEADS * row));
    change(&mut s, &mut anchor);
    let (offset, window) = (anchor.causal_offset.clone(), anchor.window);
    anchor.parts = Some(KeyParts::of(count, &dim("S"), &dim("T"), offset.as_ref(), window));
    s.spec.anchor = Anchor::Attention(Box::new(anchor));
    let at = format!("{}*S*i0 + {row}*S*i1 + {row}*i2", HEADS * row);
    let acc = s.acc(0);
    s.store(y, &format!("{at} + i3"), acc);
    for k in 0..2u8 {
        let stat = s.spec.exprs.add(Expr::Stat(k), Scalar::F32);
        s.store(y, &format!("{at} + {}", value + u64::from(k)), stat);
        s.spec.stores.last_mut().unwrap().per_row = true;
    }
    s.done()
}

/// One key, fewer keys than a part has, one part to the last key, several, and windows that begin inside a part.
pub fn parts_of_every_length(check: &dyn Fn(&Case)) {
    for (count, head, value, window) in [(4, 8, 8, None), (3, 20, 12, Some(70)), (8, 4, 70, None)] {
        let spec = in_parts(count, head, value, |_, a| a.window = window);
        for (batch, s, past) in [(1, 1, 0), (2, 1, 20), (1, 1, 63), (1, 1, 64), (2, 3, 254), (1, 1, 400)] {
            check(&filled(spec.clone(), &[("B", batch), ("S", s), ("T", s + past), ("P", past)], past as u64 + 1));
        }
    }
}

/// Left padding: a mask hides the first keys of each sequence, for one of them a whole part; scores are capped and biased.
pub fn parts_behind_padding(check: &dyn Fn(&Case)) {
    let spec = in_parts(2, 8, 8, |s, a| {
        let mask = s.arg("mask", Space::Ints, Storage::Bool, "B*T");
        let bias = s.arg("bias", Space::Arena, Storage::F32, "S*T");
        (a.mask, a.bias) = (Some(s.load(mask, "T*div(i0, 2) + i5")), Some(s.load(bias, "T*i2 + i5")));
        a.softcap = Some(3.0);
    });
    let (batch, t) = (3, 130);
    let mut case = filled(spec, &[("B", batch), ("S", 1), ("T", t), ("P", t - 1)], 9);
    let padding = [0, 70, t];
    case.data[4] = Data::I32((0..batch * t).map(|i| i32::from(i % t >= padding[(i / t) as usize])).collect());
    check(&case);
}
