//! Work of warpgroups: text form, rules, and which language has it.

use super::broken;
use crate::emit::{ptx, wgsl};
use crate::ir::*;
use crate::target::{Capabilities, Tier};

const HEAD: &str = "kernel k
workgroup_size 256 1 1
buffer @w binding 0 tiles(72, 40, 64) vec4<u32>
buffer @y binding 1 read_write vec4<f32>
workgroup @a vec4<u32>[512]
workgroup @b vec4<u32>[512]
workgroup @full vec2<u32>[2]
";

/// One warpgroup brings a tile and writes another, one multiplies them.
const PRODUCT: &str = "if eq(local_index, 0u) { make_barrier @full[1u] of 129u }
barrier workgroup
let %team: u32 = shr(local_id.x, 7u)
if eq(%team, 0u) {
  if eq(local_index, 0u) {
    arrive @full[1u] with 8192u
    bring @b[0u] = @w from 8u, 3u at @full[1u]
  }
  store @a[local_index] = splat4(0u)
  publish
  arrive @full[1u] with 0u
} else {
  var %sum: vec4<f32> = splat4(0.0f)
  var %next: vec4<f32> = splat4(0.0f)
  await @full[1u] parity 0u
  multiply_tiles %sum, %next = bf16(@a[0u], @b[0u])
  settle 0u
  barrier subgroup
  store @y[local_index] = add(%sum, %next)
}";

fn module(body: &str) -> Module {
    parse(&format!("{HEAD}body {{\n{body}\n}}\n")).unwrap()
}

fn rules(body: &str) -> Vec<Rule> {
    broken(&module(body), &Capabilities::cuda_warpgroups())
}

#[test]
fn the_text_form_reads_back() {
    let module = module(PRODUCT);
    assert_eq!(parse(&print(&module)).unwrap(), module);
    assert_eq!(rules(PRODUCT), []);
}

#[test]
fn only_one_target_has_them() {
    let webgpu = Capabilities { subgroup_size: Some(32), has_matrix: true, ..Capabilities::webgpu(Tier::Gpu) };
    for caps in [webgpu, Capabilities::cuda(), Capabilities::cuda_overlapping()] {
        let Err(Error::Invalid { violations, .. }) = verify(&module(PRODUCT), &caps) else { panic!() };
        assert!(violations.iter().any(|v| v.rule == Rule::Limit && v.message.contains("warpgroups")), "{violations:?}");
    }
    let text = wgsl::emit(&module(PRODUCT), &wgsl::Options::default());
    assert!(matches!(text, Err(wgsl::Error::Unsupported { what: "work of single warps", .. })));
}

#[test]
fn each_rule_is_kept() {
    let sum = "var %s: vec4<f32> = splat4(0.0f)\n";
    for (body, rule) in [
        ("make_barrier @full[2u] of 1u", Rule::Bounds),
        ("make_barrier @full[0u] of 0u", Rule::Constant),
        ("make_barrier @a[0u] of 1u", Rule::Type),
        ("await @full[0u] parity 1i", Rule::Type),
        ("bring @a[0u] = @y from 0u, 0u at @full[0u]", Rule::Access),
        ("publish\nlet %x: vec4<u32> = @w[0u]", Rule::Access),
        ("multiply_tiles %s = f16(@full[0u], @b[0u])", Rule::Type),
        ("if lt(local_index, 64u) { multiply_tiles %s = f16(@a[0u], @b[0u]) }", Rule::Uniformity),
        ("if lt(shr(local_id.x, 6u), 1u) { settle 0u }", Rule::Uniformity),
        ("publish\nif lt(shr(local_id.x, 7u), 1u) { barrier workgroup }", Rule::Uniformity),
    ] {
        assert_eq!(rules(&format!("{sum}{body}")), [rule], "{body}");
    }
    assert_eq!(rules("if lt(shr(local_id.x, 7u), 1u) { settle 0u\nbarrier subgroup }"), []);
}

#[test]
fn ptx_names_the_instructions() {
    let text = ptx::emit(&module(PRODUCT), &ptx::Options::default()).unwrap();
    for line in [
        ".target sm_90a",
        ".param .align 64 .b8 w[128]",
        "mbarrier.init.shared::cta.b64 [%full+8], 129;",
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full+8], 8192;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%b], [%w, {8, 3}], [%full+8];",
        "fence.proxy.async.shared::cta;",
        "mbarrier.arrive.shared::cta.b64 _, [%full+8];",
        "mbarrier.try_wait.parity.shared::cta.b64 %p",
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%sum$x, %sum$y, %sum$z, %sum$w, %next$x",
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 0;",
        "bar.warp.sync 0xffffffff;",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
