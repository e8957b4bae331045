use super::super::kv_cache::{RaisedCache, raise_kv_caches};
use super::kit::Kit;
use crate::graph::patch::{Fuel, Log};
use crate::graph::{ValueId, verify};
use crate::passes::PassManager;

fn layer(k: &mut Kit, past: &str, order: bool, out: bool) {
    let q = k.x("q", "B, 4, S, 6");
    let [key, value]: [ValueId; 2] = ["key", "value"].map(|part| {
        let p = k.x(&format!("past.{part}"), &format!("B, 2, {past}, 6"));
        let n = k.x(&format!("new.{part}"), "B, 2, S, 6");
        let all = if order { k.concat(&[p, n], 2) } else { k.concat(&[n, p], 2) };
        if out {
            k.out(&format!("present.{part}"), all);
        }
        let t = format!("{past} + S");
        let x = k.reshape(all, &format!("B, 2, 1, {t}, 6"));
        let x = k.expand(x, &format!("B, 2, 2, {t}, 6"));
        k.reshape(x, &format!("B, 4, {t}, 6"))
    });
    let t = k.transpose(key, &[0, 1, 3, 2]);
    let s = k.matmul(q, t);
    let p = k.softmax(s);
    let y = k.matmul(p, value);
    k.out("y", y);
    PassManager::standard(&[]).run(&mut k.g, &k.tables).unwrap();
}

fn raise(k: &mut Kit, log: &mut Log) -> Vec<RaisedCache> {
    raise_kv_caches(&mut k.g, &mut k.tables, log).unwrap()
}

#[test]
fn past_and_present_become_a_slot() {
    let mut k = Kit::new();
    layer(&mut k, "P", true, true);
    let mut log = Log::default();
    let raised = raise(&mut k, &mut log);
    let want = RaisedCache {
        slot: "past.key".into(),
        inputs: ["past.key".into(), "past.value".into()],
        outputs: ["present.key".into(), "present.value".into()],
    };
    assert_eq!(raised, [want]);
    assert_eq!(log.count("kv-append"), 2);
    assert_eq!(k.tables.kv_slots.len(), 1);
    assert_eq!((k.tables.kv_slots[0].heads, k.tables.kv_slots[0].k_dim), (2, 6));
    assert_eq!(verify::verify(&k.g, Some(&k.tables)), Ok(()));
    let text = k.text();
    assert!(text.contains("kv_append{slot=@kv0, part=k}") && text.contains("kv_append{slot=@kv0, part=v}"), "{text}");
    assert!(!text.contains("past") && !text.contains("present"), "{text}");
    assert_eq!(raise(&mut k, &mut log), []);
}

#[test]
fn the_slot_holds_what_the_inputs_held() {
    use crate::graph::KvSlotId;
    use crate::reference::{Array, Env, evaluate};
    use frit_plan::KvPart;
    let mut k = Kit::new();
    layer(&mut k, "P", true, true);
    let fill = |n: usize, seed: usize| (0..n).map(|i| ((i * 37 + seed * 11) % 23) as f64 / 23.0 - 0.5).collect();
    let none = |_| Err(String::new());
    let mut env = Env::new(&none);
    env.sizes = [("B", 2), ("S", 5), ("P", 3)].map(|(n, v)| (n.to_owned(), v)).into();
    let array = |shape: [usize; 4], seed| Array::new(shape, fill(shape.iter().product(), seed)).unwrap();
    env.inputs.insert("q".into(), array([2, 4, 5, 6], 1));
    for (seed, part) in ["key", "value"].iter().enumerate() {
        env.inputs.insert(format!("new.{part}"), array([2, 2, 5, 6], seed + 2));
        env.inputs.insert(format!("past.{part}"), array([2, 2, 3, 6], seed + 4));
    }
    let before = evaluate(&k.g, &env).unwrap();
    raise(&mut k, &mut Log::default());
    for (seed, part) in [KvPart::K, KvPart::V].into_iter().enumerate() {
        env.past.insert((KvSlotId(0), part), array([2, 2, 3, 6], seed + 4));
    }
    let after = evaluate(&k.g, &env).unwrap();
    let y = before.iter().find(|(n, _)| n == "y").unwrap();
    assert_eq!(after, [y.clone()]);
}

#[test]
fn near_misses() {
    for (past, order, out) in [("N", true, true), ("P", false, true), ("P", true, false)] {
        let mut k = Kit::new();
        layer(&mut k, past, order, out);
        let before = k.text();
        let mut log = Log::default();
        assert_eq!(raise(&mut k, &mut log), [], "{past} {order} {out}");
        assert_eq!((k.text(), log.total()), (before, 0));
    }
}

#[test]
fn fuel_is_respected() {
    let mut k = Kit::new();
    layer(&mut k, "P", true, true);
    assert_eq!(raise(&mut k, &mut Log::with_fuel(Fuel::limited(0))), []);
}
