//! The builder binds values where their meaning or cost needs it, and nowhere else.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::interpret::run;
use super::random::random_builder;
use crate::ir::*;

fn body(b: Builder) -> String {
    let module = b.finish().unwrap();
    verify(&module, &super::everything()).unwrap();
    let text = print(&module);
    let (_, body) = text.split_once("body {\n").unwrap();
    body.strip_suffix("}\n").unwrap().to_owned()
}

#[test]
fn single_use_is_printed_in_place() {
    let b = Builder::new("k", [64, 1, 1]);
    let (x, y) = (b.input("x", Type::F32), b.output("y", Type::F32));
    let i = b.let_("i", b.global_x());
    b.store(y, i, b.mul(b.load(x, i), 2.0));
    assert_eq!(body(b), "  let %i: u32 = global_id.x\n  store @y[%i] = mul(@x[%i], 2.0f)\n");
}

#[test]
fn second_use_binds_the_value() {
    let b = Builder::new("k", [64, 1, 1]);
    let (x, y) = (b.input("x", Type::F32), b.output("y", Type::F32));
    let v = b.load(x, 0);
    b.store(y, 0, b.mul(v, v));
    assert_eq!(body(b), "  let %x_at: f32 = @x[0u]\n  store @y[0u] = mul(%x_at, %x_at)\n");
}

#[test]
fn load_before_store_keeps_the_old_value() {
    let b = Builder::new("k", [1, 1, 1]);
    let y = b.output("y", Type::U32);
    let old = b.load(y, 0);
    b.store(y, 0, 7);
    b.store(y, 1, old);
    assert_eq!(body(b), "  let %y_at: u32 = @y[0u]\n  store @y[0u] = 7u\n  store @y[1u] = %y_at\n");
}

#[test]
fn variable_read_before_assignment_keeps_the_old_value() {
    let b = Builder::new("k", [1, 1, 1]);
    let y = b.output("y", Type::U32);
    let v = b.var("v", Type::U32, 1);
    let old = b.get(v);
    b.set(v, 2);
    b.store(y, 0, b.add(old, v));
    assert_eq!(
        body(b),
        "  var %v: u32 = 1u\n  let %v_was: u32 = %v\n  set %v = 2u\n  store @y[0u] = add(%v_was, %v)\n"
    );
}

#[test]
fn work_made_outside_a_loop_stays_outside() {
    let b = Builder::new("k", [1, 1, 1]);
    let (x, y) = (b.input("x", Type::U32), b.output("y", Type::U32));
    let scaled = b.mul(b.load(x, 0), 3);
    b.for_("i", 0, 10, 1, |b, i| b.store(y, i, b.add(scaled, i)));
    assert_eq!(
        body(b),
        "  let %t: u32 = mul(@x[0u], 3u)\n  for %i: u32 = 0u to 10u step 1u {\n    store @y[%i] = add(%t, %i)\n  }\n"
    );
}

#[test]
fn trivial_arithmetic_and_constant_branches_vanish() {
    let b = Builder::new("k", [1, 1, 1]);
    let y = b.output("y", Type::U32);
    let i = b.global_x();
    let same = b.div(b.mul(b.add(i, 0), 1), 1);
    b.if_(b.lt(b.u32(3), 2), |b| b.store(y, 0, 0));
    b.for_("j", 0, 1, 1, |b, j| b.store(y, b.add(same, j), b.rem(i, 1)));
    b.store(y, b.add(b.add(i, 2), 3), b.mul(4, 5));
    assert_eq!(body(b), "  store @y[global_id.x] = 0u\n  store @y[add(global_id.x, 5u)] = 20u\n");
}

#[test]
fn mistakes_are_listed_with_their_place() {
    let b = Builder::new("k", [1, 1, 1]);
    let y = b.output("y", Type::U32);
    let bad = b.add(b.u32(1), 2.0);
    b.store(y, 0, b.mul(bad, 3));
    b.store(y, 0, 1.0);
    let _ = b.f32(f32::NAN);
    let Err(Error::Build { errors, .. }) = b.finish() else { panic!() };
    let messages: Vec<_> = errors.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(messages, ["add of u32 and f32", "stored value is f32, not u32", "constant NaN is not finite"]);
    assert!(errors.iter().all(|e| e.place.contains("tests/builder.rs:")), "{errors:?}");
}

#[test]
fn values_of_another_builder_are_refused() {
    let (b, other) = (Builder::new("k", [1, 1, 1]), Builder::new("other", [1, 1, 1]));
    let y = b.output("y", Type::U32);
    let (foreign, _) = (other.global_x(), other.global_y());
    b.store(y, 0, foreign);
    b.store(y, 0, b.add(other.group_x(), 1));
    assert!(b.finish().is_err());
}

fn outcome(module: &Module) -> BTreeMap<ArrayRef, Vec<u32>> {
    let memory = module.buffers.iter().map(|(h, _)| (ArrayRef::Buffer(h), (0..8).map(|i| i * i + 1).collect()));
    let mut memory = run(module, memory.collect());
    memory.retain(|array, _| matches!(array, ArrayRef::Buffer(_)));
    memory
}

proptest! {
    #[test]
    fn binding_and_passes_keep_the_meaning(bytes in proptest::collection::vec(any::<u8>(), 0..250)) {
        let reference = outcome(&random_builder(&bytes, false).finish_with_every_binding().unwrap());
        let module = random_builder(&bytes, false).finish().unwrap();
        verify(&module, &super::everything()).unwrap();
        prop_assert_eq!(&outcome(&module), &reference, "{}", print(&module));
        for pass in [crate::opt::simplify, crate::opt::unroll] {
            let changed = pass(&module);
            verify(&changed, &super::everything()).unwrap();
            prop_assert_eq!(&outcome(&changed), &reference, "{}", print(&changed));
        }
    }
}
