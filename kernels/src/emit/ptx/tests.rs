//! The text reads well, every register and label of it is declared, and `ptxas` accepts it where `FRIT_PTXAS` names one.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::process::Command;

use proptest::prelude::*;

use super::{Error, Options, Parameter, dynamic_shared_bytes, emit, parameters};
use crate::ir::tests::random_module;
use crate::ir::*;

fn options() -> Options {
    Options { by_address: vec!["sizes".into()], multiples: vec![("record".into(), 4)], ..Options::default() }
}

/// The text, after a look at its names and, with `FRIT_PTXAS`, the verdict of the assembler.
fn checked(module: &Module) -> String {
    let text = emit(module, &options()).unwrap();
    let words = |line: &str| -> Vec<String> {
        let is_word = |c: char| !(c.is_ascii_alphanumeric() || "_$%".contains(c));
        line.split("//").next().unwrap().split(is_word).filter(|w| !w.is_empty()).map(str::to_owned).collect()
    };
    let body = text.split_once("\n{\n").unwrap().1;
    let mut declared = BTreeSet::from(["%tid", "%ctaid", "%nctaid", "%laneid"].map(str::to_owned));
    for line in body.lines().filter(|l| l.trim_start().starts_with(".reg")) {
        match line.split_once('<') {
            Some((head, count)) => {
                let prefix = words(head).pop().unwrap();
                let count: u32 = count.split('>').next().unwrap().parse().unwrap();
                declared.extend((0..count).map(|i| format!("{prefix}{i}")));
            }
            None => declared.extend(words(line).into_iter().filter(|w| w.starts_with('%'))),
        }
    }
    let labels: BTreeSet<&str> = body.lines().filter_map(|l| l.trim().strip_suffix(':')).collect();
    for line in body.lines().filter(|l| !l.trim_start().starts_with(".reg")) {
        for word in words(line) {
            let known = match word.chars().next() {
                Some('%') => declared.contains(&word),
                Some('$') => labels.contains(word.as_str()),
                _ => true,
            };
            assert!(known, "{word} in `{line}`\n{text}");
        }
    }
    assemble(&text);
    text
}

fn assemble(text: &str) {
    let Some(ptxas) = std::env::var_os("FRIT_PTXAS") else { return };
    let name = format!("frit-{}-{:?}.ptx", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    let output = Command::new(ptxas).args(["-arch=sm_80", "-o", "/dev/null"]).arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
}

fn one(make: impl FnOnce(&Builder, ArrayRef)) -> String {
    let b = Builder::new("k", [64, 1, 1]);
    let out = b.output("out", Type::F32);
    make(&b, out);
    let text = checked(&b.finish().unwrap());
    let (_, body) = text.split_once("%out, %rd1;\n").unwrap();
    let lines = body.lines().map(|l| l.strip_prefix("    ").unwrap_or(l)).take_while(|l| *l != "ret;");
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_kernel_reads_from_top_to_bottom() {
    let b = Builder::new("scale", [64, 1, 1]);
    b.doc("y[n] = x[n] f");
    let x = b.input("x", Type::F32);
    let y = b.output("ld", Type::F32);
    let p = b.uniforms("record", &[("n", Scalar::U32), ("f", Scalar::F32)]);
    let sizes = b.uniforms("sizes", &[("m", Scalar::U32)]);
    let i = b.let_("i", b.global_x());
    b.for_("k", i, b.field(p, "n"), b.field(sizes, "m"), |b, k| b.store(y, k, b.mul(b.load(x, k), b.field(p, "f"))));
    let options = Options { header: vec!["about".into()], ..options() };
    let text = emit(&b.finish().unwrap(), &options).unwrap();
    assemble(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn neighbours_are_read_at_once_where_they_are_aligned() {
    let text = one(|b, out| {
        let x = b.input("x", Type::F32);
        let i = b.let_("i", b.mul(b.global_x(), 4));
        let at = |k: u32| b.load(x, b.add(i, k));
        b.store(out, i, b.dot(b.vec4(at(0), at(1), at(2), at(3)), b.vec4(at(5), at(4), at(7), at(9))));
    });
    assert!(text.contains("ld.global.nc.v4.f32 {%f1, %f2, %f3, %f4}, [%rd3];"), "{text}");
    assert!(text.contains("ld.global.nc.v2.f32"), "{text}");
    let text = one(|b, out| {
        let x = b.input("x", Type::F32);
        let i = b.global_x();
        b.store(out, i, b.add(b.load(x, b.add(i, 4)), b.load(x, b.add(i, 5))));
    });
    assert!(!text.contains(".v2"), "{text}");
}

#[test]
fn a_store_ends_what_is_known_of_its_buffer() {
    let text = one(|b, out| {
        let (p, q) = (b.let_("p", b.load(out, 0)), b.let_("q", b.load(out, 1)));
        b.store(out, 1, b.add(p, q));
        b.store(out, 0, b.load(out, 1));
    });
    let loads = text.lines().filter(|l| l.starts_with("ld.global")).count();
    assert_eq!(loads, 2, "{text}");
}

#[test]
fn variables_may_swap_their_lanes() {
    let text = one(|b, out| {
        let v = b.var("v", Type::VEC2_F32, b.vec2(b.load(out, 0), b.load(out, 2)));
        b.set(v, b.vec2(b.lane(v, 1), b.lane(v, 0)));
        b.store(out, 0, b.lane(v, 0));
    });
    assert!(text.contains("mov.f32 %f3, %v$y;\nmov.f32 %f4, %v$x;\nmov.f32 %v$x, %f3;"), "{text}");
}

#[test]
fn subgroups_are_warps() {
    let build = |width: u32| {
        let b = Builder::new("k", [width, 1, 1]);
        let out = b.output("out", Type::F32);
        let sum = b.collective("sum", Collective::Add, b.load(out, b.global_x()));
        b.store(out, b.global_x(), sum);
        b.finish().unwrap()
    };
    let text = checked(&build(64));
    assert_eq!(text.matches("shfl.sync.bfly.b32").count(), 5);
    assert!(matches!(emit(&build(16), &options()), Err(Error::PartialWarp { invocations: 16, .. })));
}

#[test]
fn large_workgroup_memory_is_asked_for_at_launch() {
    let b = Builder::new("k", [64, 1, 1]);
    let out = b.output("out", Type::F32);
    let (p, q) = (b.workgroup("p", Type::F32, 9000), b.workgroup("q", Type::VEC4_F32, 1000));
    b.store(p, b.local_x(), 1.0);
    b.store(q, b.local_x(), b.zero(Type::VEC4_F32));
    b.barrier();
    b.store(out, 0, b.add(b.load(p, 7), b.lane(b.load(q, 3), 2)));
    let module = b.finish().unwrap();
    assert_eq!(dynamic_shared_bytes(&module), 52000);
    let text = checked(&module);
    assert!(text.contains("add.u32 %q, %q, 36000;"), "{text}");
}

#[test]
fn parameters_follow_the_bindings() {
    let b = Builder::new("k", [64, 1, 1]);
    let (x, y) = (b.input("x", Type::F32), b.output("y", Type::F32));
    let p = b.uniforms("record", &[("n", Scalar::U32); 5]);
    let q = b.uniforms("sizes", &[("m", Scalar::U32)]);
    b.store(y, b.add(b.field(p, "n"), b.field(q, "m")), b.load(x, 0));
    let found = parameters(&b.finish().unwrap(), &options());
    let address = |binding, name: &str, written| Parameter::Address { binding, name: name.into(), written };
    let block = Parameter::Block { binding: 2, name: "record".into(), size_bytes: 32 };
    assert_eq!(found, [address(0, "x", false), address(1, "y", true), block, address(3, "sizes", false)]);
}

proptest! {
    #[test]
    fn every_kernel_has_a_form(bytes in proptest::collection::vec(any::<u8>(), 0..250)) {
        let module = random_module(&bytes, true);
        match emit(&module, &options()) {
            Ok(_) => { checked(&module); }
            Err(e) => prop_assert!(matches!(e, Error::Constant { .. }), "{}", e),
        }
    }
}
