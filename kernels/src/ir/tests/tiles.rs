//! Tiles of matrices: text form, rules, and which language has them.

use super::{broken, everything};
use crate::emit::{ptx, wgsl};
use crate::ir::*;
use crate::target::{Capabilities, Tier};

const HEAD: &str = "kernel k
workgroup_size 32 1 1
buffer @w binding 0 read vec4<u32>
buffer @y binding 1 read_write vec4<f32>
buffer @z binding 2 read_write vec4<u32>
workgroup @tile vec4<u32>[64]
workgroup @words u32[64]
";

/// Copies 32 elements, loads them as two matrices, and adds a product.
const PRODUCT: &str = "var %sum: vec4<f32> = splat4(0.0f)
copy @tile[local_index] = @w[add(local_index, 4u)] where lt(local_index, 20u)
commit
wait 0u
barrier workgroup
load_matrix %a: vec4<u32> = @tile[add(local_index, 32u)]
multiply %sum = bf16(%a, vec(lane0(%a), lane2(%a)))
store @y[local_index] = %sum";

fn module(body: &str) -> Module {
    parse(&format!("{HEAD}body {{\n{body}\n}}\n")).unwrap()
}

fn rules(body: &str) -> Vec<Rule> {
    broken(&module(body), &everything())
}

#[test]
fn the_text_form_reads_back() {
    let module = module(PRODUCT);
    assert_eq!(parse(&print(&module)).unwrap(), module);
    assert_eq!(rules(PRODUCT), []);
}

#[test]
fn only_targets_with_matrix_units_have_them() {
    let base = Capabilities { subgroup_size: Some(32), ..Capabilities::webgpu(Tier::Gpu) };
    let Err(Error::Invalid { violations, .. }) = verify(&module(PRODUCT), &base) else { panic!() };
    assert_eq!(violations.iter().map(|v| v.rule).collect::<Vec<_>>(), [Rule::Limit]);
    let text = wgsl::emit(&module(PRODUCT), &wgsl::Options::default());
    assert!(matches!(text, Err(wgsl::Error::Unsupported { what: "tiles of matrices", .. })));
    let packed = module("store @words[0u] = pack_2x_bf16(vec(1.0f, 2.0f))");
    let text = wgsl::emit(&packed, &wgsl::Options::default());
    assert!(matches!(text, Err(wgsl::Error::Unsupported { what: "conversion to bf16", .. })));
}

#[test]
fn each_rule_is_kept() {
    for (body, rule) in [
        ("if lt(local_index, 9u) { load_matrix %a: vec4<u32> = @tile[0u] }", Rule::Uniformity),
        ("load_matrix %a: vec4<u32> = @tile[64u]", Rule::Bounds),
        ("load_matrix %a: vec4<u32> = @words[0u]", Rule::Type),
        ("load_matrix %a: vec4<f32> = @tile[0u]", Rule::Type),
        ("copy @words[0u] = @w[0u] where true", Rule::Type),
        ("copy @tile[64u] = @w[0u] where true", Rule::Bounds),
        ("copy @tile[0u] = @z[0u] where true", Rule::Access),
        ("copy @tile[0u] = @w[0u] where 1u", Rule::Type),
        ("let %s: vec4<f32> = splat4(0.0f)\nmultiply %s = f16(splat4(0u), vec(0u, 0u))", Rule::Access),
        ("var %s: vec4<f32> = splat4(0.0f)\nmultiply %s = f16(splat4(0u), splat4(0u))", Rule::Type),
        ("var %s: f32 = 0.0f\nmultiply %s = f16(splat4(0u), vec(0u, 0u))", Rule::Type),
        (
            "var %s: vec4<f32> = splat4(0.0f)\nif lt(local_index, 9u) { multiply %s = f16(splat4(0u), vec(0u, 0u)) }",
            Rule::Uniformity,
        ),
    ] {
        assert_eq!(rules(body), [rule], "{body}");
    }
    assert!(parse(&format!("{HEAD}body {{ copy @w[0u] = @tile[0u] where true }}")).is_err());
    assert!(parse(&format!("{HEAD}body {{ load_matrix %a: vec4<u32> = @w[0u] }}")).is_err());
}

#[test]
fn ptx_names_the_instructions() {
    let text = ptx::emit(&module(PRODUCT), &ptx::Options::default()).unwrap();
    for line in [
        "selp.b32 %r3, 16, 0, %p1;",
        "cp.async.cg.shared.global [%r2], [%rd4+64], 16, %r3;",
        "cp.async.commit_group;",
        "cp.async.wait_group 0;",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%a$x, %a$y, %a$z, %a$w}, [%r2+512];",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%sum$x, %sum$y, %sum$z, %sum$w}, \
         {%a$x, %a$y, %a$z, %a$w}, {%a$x, %a$z}, {%sum$x, %sum$y, %sum$z, %sum$w};",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn the_builder_reports_misuse() {
    let b = Builder::new("k", [32, 1, 1]);
    let (w, tile) = (b.input("w", Type::VEC4_U32), b.workgroup("tile", Type::VEC4_U32, 64));
    b.copy_async(w, 0, tile, 0, true);
    b.copy_async(tile, 0, w, 0, 1);
    let a = b.load_matrix("a", w, 0);
    let sum = b.var("sum", Type::VEC4_F32, 0.0);
    b.multiply_to(sum, HalfFormat::F16, b.zero(Type::VEC4_U32), b.u32(0));
    let _ = a;
    let Err(Error::Build { errors, .. }) = b.finish() else { panic!() };
    assert_eq!(errors.len(), 4, "{errors:?}");
}
