//! The text form reads back as what was printed.

use proptest::prelude::*;

use super::random_module;
use crate::ir::*;

proptest! {
    #[test]
    fn text_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..250)) {
        let module = random_module(&bytes, true);
        let text = print(&module);
        let parsed = parse(&text).unwrap();
        prop_assert_eq!(&parsed, &module, "{}", text);
        prop_assert_eq!(print(&parsed), text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9 %@$.:={}()\\[\\]\n\"\\\\-]{0,200}") {
        let _ = parse(&text);
        let _ = parse(&format!("kernel k\nworkgroup_size 1 1 1\nbuffer @a binding 0 read_write u32\nbody {{\n{text}\n}}"));
    }
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn errors_name_the_line() {
    assert_eq!(refusal("kernel k\nbody {\n  set %x = 1u\n}\n"), "line 3: `%x` is not defined");
    assert_eq!(refusal("kernel k\nbody {\n  store @a[0u] = 1u\n}\n"), "line 3: `@a` is not declared");
    assert_eq!(refusal("kernel k\nbody {\n  let %x: u32 = foo(1u)\n}\n"), "line 3: no operation `foo` of 1 operands");
    assert_eq!(refusal("kernel k\n// remark\nwhat\n"), "line 3: unknown declaration `what`");
    assert_eq!(refusal("kernel k\nbody {\n"), "line 2: text ends too early");
    assert_eq!(refusal("kernel k\nbody {\n  let %x: u32 = 1x\n}\n"), "line 3: `1x` is no constant");
    let deep = format!("kernel k\nbody {{\nlet %x: f32 = {}1.0f", "neg(".repeat(100_000));
    assert_eq!(refusal(&deep), "line 3: nested too deeply");
}

#[test]
fn floats_round_trip_to_the_bit() {
    for bits in [0, 0x8000_0000, 1, 0x007f_ffff, 0x7f7f_ffff, 0xff7f_ffff, 0x3dcc_cccd, 0x7f80_0000, 0x7fc0_0001] {
        let mut module = Module { name: "k".to_owned(), workgroup_size: [1, 1, 1], ..Module::default() };
        let value = module.exprs.append(Expr::Literal(Literal::F32(bits)));
        let local = Local { name: "x".to_owned(), ty: Type::F32, kind: LocalKind::Let };
        let local = module.locals.append(local);
        module.body.push(Stmt::Let { local, value });
        assert_eq!(parse(&print(&module)).unwrap(), module);
    }
}

#[test]
fn textures_and_broadcasts_round_trip() {
    let b = Builder::new("k", [8, 1, 1]);
    let w = b.buffer("w", Access::Texels(Texture::Storage), Type::VEC4_U32);
    b.buffer("v", Access::Texels(Texture::Sampled), Type::VEC4_U32);
    let out = b.output("out", Type::U32);
    let own = b.lane(b.load(w, b.local_x()), 0);
    b.store(out, b.local_x(), b.collective("first", Collective::Broadcast(3), own));
    let module = b.finish().unwrap();
    let text = print(&module);
    assert!(
        text.contains("buffer @w binding 0 texels vec4<u32>")
            && text.contains("sampled_texels")
            && text.contains("subgroup_broadcast"),
        "{text}"
    );
    assert_eq!(parse(&text).unwrap(), module);
}
