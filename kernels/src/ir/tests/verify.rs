//! One refusal per rule.

use super::{broken, everything};
use crate::ir::*;
use crate::target::{Capabilities, Tier};

const HEAD: &str = "kernel k
workgroup_size 64 1 1
buffer @x binding 0 read u32
buffer @y binding 1 read_write u32
uniform $p binding 2 { n: u32, scale: f32 }
workgroup @tile u32[64]
private @own u32[4]
";

fn check(body: &str) -> Vec<Rule> {
    let module = parse(&format!("{HEAD}body {{\n{body}\n}}\n")).unwrap();
    match verify(&module, &everything()) {
        Ok(()) => Vec::new(),
        Err(Error::Invalid { violations, .. }) => violations.iter().map(|v| v.rule).collect(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn uniform_barriers_pass() {
    for body in [
        "barrier workgroup",
        "if lt(workgroup_id.x, $p.n) { barrier workgroup }",
        "for %i: u32 = 0u to $p.n step 16u { barrier workgroup }",
        "let %n: u32 = @x[workgroup_id.x]\nfor %i: u32 = 0u to %n step 1u { barrier storage }",
        "uniform_load %n: u32 = @tile[0u]\nif lt(%n, 4u) { barrier workgroup }",
        "var %v: u32 = 0u\nfor %i: u32 = 0u to 4u step 1u { set %v = add(%v, %i) }\nif lt(%v, 9u) { barrier workgroup }",
        "if lt(local_index, 4u) { store @y[0u] = 1u }\nbarrier workgroup",
        "store @own[1u] = $p.n\nif lt(@own[1u], 4u) { barrier workgroup }",
    ] {
        assert_eq!(check(body), [], "{body}");
    }
}

#[test]
fn divergent_barriers_are_refused() {
    for body in [
        "if lt(local_index, 32u) { barrier workgroup }",
        "if lt(workgroup_id.x, 1u) { if lt(local_id.x, 1u) { } else { barrier storage } }",
        "for %i: u32 = local_id.x to 64u step 1u { barrier workgroup }",
        "for %i: u32 = 0u to @y[0u] step 1u { barrier workgroup }",
        "for %i: u32 = 0u to @tile[0u] step 1u { barrier workgroup }",
        "let %n: u32 = @x[local_id.x]\nif eq(%n, 0u) { barrier workgroup }",
        "var %v: u32 = 0u\nif lt(local_index, 1u) { set %v = 1u }\nif eq(%v, 1u) { barrier workgroup }",
        "var %v: u32 = 0u\nfor %i: u32 = 0u to 2u step 1u { if eq(%v, 1u) { barrier workgroup } set %v = local_index }",
        "store @own[1u] = local_index\nif eq(@own[0u], 1u) { barrier workgroup }",
        "if lt(local_index, 1u) { collective %s: u32 = subgroup_add(1u) }",
        "if lt(local_index, 1u) { uniform_load %s: u32 = @tile[0u] }",
        "uniform_load %s: u32 = @tile[local_index]",
        "collective %s: u32 = subgroup_max($p.n)\nif eq(%s, 1u) { barrier workgroup }",
    ] {
        assert_eq!(check(body), [Rule::Uniformity], "{body}");
    }
}

#[test]
fn names_stay_in_their_scope() {
    assert_eq!(check("if true { let %a: u32 = 1u }\nstore @y[0u] = %a"), [Rule::Scope]);
    assert_eq!(check("for %i: u32 = 0u to 4u step 1u { }\nstore @y[0u] = %i"), [Rule::Scope]);
    assert_eq!(check("if true { var %a: u32 = 1u }\nset %a = 2u"), [Rule::Scope]);
}

#[test]
fn types_agree() {
    assert_eq!(check("store @y[0u] = 1.0f"), [Rule::Type]);
    assert_eq!(check("store @y[0i] = 1u"), [Rule::Type]);
    assert_eq!(check("let %a: f32 = 1u"), [Rule::Type]);
    assert_eq!(check("let %a: u32 = add(1u, 1.0f)"), [Rule::Type]);
    assert_eq!(check("if 1u { }"), [Rule::Type]);
    assert_eq!(check("let %a: f32 = lane2(vec(1.0f, 2.0f))"), [Rule::Type]);
    assert_eq!(check("for %i: u32 = 0u to 4i step 1u { }"), [Rule::Type]);
}

#[test]
fn memory_is_written_where_it_may_be() {
    assert_eq!(check("store @x[0u] = 1u"), [Rule::Access]);
    assert_eq!(check("let %a: u32 = 1u\nset %a = 2u"), [Rule::Access]);
    assert_eq!(check("for %i: u32 = 0u to 4u step 1u { set %i = 0u }"), [Rule::Access]);
    assert_eq!(check("uniform_load %a: u32 = @y[0u]"), [Rule::Access]);
}

#[test]
fn loops_advance_and_constants_have_values() {
    assert_eq!(check("for %i: u32 = 0u to 4u step 0u { }"), [Rule::LoopStep]);
    assert_eq!(check("for %i: u32 = 0u to 4u step $p.n { }"), [Rule::LoopStep]);
    assert_eq!(check("for %i: u32 = 0u to 4u step mul(num_workgroups.x, 64u) { }"), []);
    assert_eq!(check("let %a: u32 = div($p.n, 0u)"), [Rule::Constant]);
    assert_eq!(check("let %a: u32 = shl($p.n, 32u)"), [Rule::Constant]);
    assert_eq!(check("let %a: f32 = 2139095040fbits"), [Rule::Constant]);
}

#[test]
fn constant_indices_stay_inside() {
    assert_eq!(check("store @own[3u] = @tile[63u]"), []);
    assert_eq!(check("store @own[4u] = 1u"), [Rule::Bounds]);
    assert_eq!(check("store @y[0u] = @tile[64u]"), [Rule::Bounds]);
}

#[test]
fn only_what_no_kernel_writes_is_read_before_the_launch_in_front_has_ended() {
    let check = |body: &str| {
        let head = HEAD.replace("uniform $p", "buffer @w binding 3 constant u32\nuniform $p");
        broken(&parse(&format!("{head}body {{ {body} }}")).unwrap(), &everything())
    };
    let store = "store @y[local_id.x] = %v";
    assert_eq!(check(&format!("let %v: u32 = @w[local_id.x]\nbarrier launch\n{store}")), []);
    assert_eq!(check(&format!("barrier launch\nlet %v: u32 = add(@x[local_id.x], @y[local_id.x])\n{store}")), []);
    for body in [
        // Another kernel may write what this one only reads.
        format!("let %v: u32 = @x[local_id.x]\nbarrier launch\n{store}"),
        format!("let %v: u32 = @w[@x[0u]]\nbarrier launch\n{store}"),
        format!("let %v: u32 = @y[0u]\nbarrier launch\n{store}"),
        format!("let %v: u32 = @w[0u]\n{store}\nbarrier launch"),
        format!("barrier launch\nlet %v: u32 = @w[0u]\n{store}\nbarrier launch"),
        format!("let %v: u32 = @w[0u]\nif lt(%v, $p.n) {{ barrier launch }}\n{store}"),
    ] {
        assert_eq!(check(&body), [Rule::Uniformity], "{body}");
    }
}

#[test]
fn kernels_fit_the_target() {
    let base = Capabilities::webgpu(Tier::Gpu);
    let refused = |text: &str| match verify(&parse(text).unwrap(), &base) {
        Err(Error::Invalid { violations, .. }) => violations.iter().map(|v| v.rule).collect(),
        _ => Vec::new(),
    };
    let nine: String = (0..9).map(|i| format!("buffer @b{i} binding {i} read u32\n")).collect();
    assert_eq!(refused(&format!("kernel k\nworkgroup_size 1 1 1\n{nine}body {{ }}")), [Rule::Limit]);
    assert_eq!(refused("kernel k\nworkgroup_size 32 16 1\nbody { }"), [Rule::Limit]);
    assert_eq!(refused("kernel k\nworkgroup_size 1 1 1\nworkgroup @t f32[4097]\nbody { }"), [Rule::Limit]);
    assert_eq!(refused("kernel k\nworkgroup_size 1 1 1\nworkgroup @t f32[4096]\nbody { }"), []);
    assert_eq!(refused("kernel k\nworkgroup_size 1 1 1\nbuffer @h binding 0 read f16\nbody { }"), [Rule::Limit]);
    let subgroup = "kernel k\nworkgroup_size 1 1 1\nbody { collective %s: u32 = subgroup_add(1u) }";
    assert_eq!(refused(subgroup), [Rule::Limit]);
    assert_eq!(
        refused("kernel k\nworkgroup_size 1 1 1\nbuffer @a binding 0 read u32\nbuffer @b binding 0 read u32\nbody { }"),
        [Rule::Name]
    );
}

#[test]
fn textures_hold_words_in_fours_and_are_never_written() {
    let check = |elem: &str, body: &str| {
        let head = format!("kernel k\nworkgroup_size 8 1 1\nbuffer @w binding 0 texels {elem}\n");
        match verify(&parse(&format!("{head}body {{ {body} }}")).unwrap(), &everything()) {
            Ok(()) => Vec::new(),
            Err(Error::Invalid { violations, .. }) => violations.iter().map(|v| v.rule).collect(),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(check("vec4<u32>", "let %a: vec4<u32> = @w[0u]"), []);
    assert_eq!(check("f32", ""), [Rule::Type]);
    assert_eq!(check("vec4<u32>", "store @w[0u] = vec(1u, 1u, 1u, 1u)"), [Rule::Access]);
}

/// The upper halves of floats lie in memory, and nothing is computed of them.
#[test]
fn bf16_is_for_memory() {
    let module = |body: &str| {
        let head =
            "kernel k\nworkgroup_size 32 1 1\nbuffer @h binding 0 read_write bf16\nbuffer @y binding 1 read_write f32";
        parse(&format!("{head}\nbody {{\n{body}\n}}\n"))
    };
    let moved = module("store @y[0u] = to_f32(@h[1u])\nstore @h[0u] = to_bf16(@y[1u])\nstore @h[2u] = @h[3u]").unwrap();
    assert_eq!(parse(&print(&moved)).unwrap(), moved);
    verify(&moved, &Capabilities::cuda()).unwrap();
    let text = crate::emit::ptx::emit(&moved, &crate::templates::ptx_options()).unwrap();
    for line in ["cvt.rn.bf16.f32 ", "st.global.b16 ", "shl.b32 ", "ld.global.b16 "] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    for tier in [Tier::Cpu, Tier::Gpu] {
        assert_eq!(broken(&moved, &Capabilities::webgpu(tier)), [Rule::Limit]);
    }
    for body in [
        "store @h[0u] = add(@h[0u], @h[1u])",
        "store @y[0u] = to_f32(to_u32(@h[0u]))",
        "store @h[0u] = to_bf16(1u)",
        "if eq(@h[0u], @h[1u]) { }",
    ] {
        assert!(broken(&module(body).unwrap(), &Capabilities::cuda()).contains(&Rule::Type), "{body}");
    }
}
