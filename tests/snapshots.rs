//! Goldens of what the compiler makes of three models: the graph it fuses, the regions, kernel IR, WGSL and the plan,
//! for one program of each. Every text of every program is validated by naga and run on the adapter against float64
//! loops; the goldens are among these texts.
//!
//! `INSTA_UPDATE=always cargo test --test snapshots` accepts new ones; `git diff tests/snapshots` shows what changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../kernels/tests/support/mod.rs"]
mod kernel;
mod support;

use frit::LoadedModel;
use frit_compiler::{Model, graph::text, passes};
use frit_kernels::dim::Sym;
use frit_kernels::dtype::Storage;
use frit_kernels::ir;
use frit_kernels::spec::KernelSpec;
use frit_kernels::target::{Architecture, Capabilities, Tier};
use frit_kernels::templates::render;
use frit_plan::{BufferRef, Plan};
use kernel::blocks::{Data, Random};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const TIERS: [Tier; 2] = [Tier::Cpu, Tier::Gpu];

/// Sizes that lie off every tile; a program's own limits come first.
const SIZES: [(&str, i64); 4] = [("B", 2), ("S", 3), ("P", 5), ("T", 11)];

/// The name with `*` for the number of its layer.
fn anonymous(origin: &str) -> String {
    let mut out = String::new();
    for c in origin.chars() {
        match (c.is_ascii_digit(), out.ends_with(['.', '*'])) {
            (true, true) if out.ends_with('*') => {}
            (true, true) => out.push('*'),
            _ => out.push(c),
        }
    }
    out
}

fn regions(plan: &Plan, main: &str) -> String {
    let mut out = String::new();
    for p in &plan.report.phases {
        let _ = writeln!(
            out,
            "{}: {} launches, {} a layer, {} unfused, {} of {} attention blocks",
            p.program,
            p.dispatches,
            p.dispatches_per_layer,
            p.unfused_dispatches,
            p.attention.fused,
            p.attention.blocks
        );
        if p.program != main {
            continue;
        }
        for r in &p.regions {
            let _ = writeln!(out, "  K{:<3} {:9} {} = {}", r.id, r.kind, r.kernel, r.ops.join(" · "));
            let _ = writeln!(
                out,
                "       {} from {}; saves {} B, {} launches; {} bindings",
                r.class,
                r.origins.first().map_or("", String::as_str),
                r.saved_bytes,
                r.saved_launches,
                r.bindings
            );
        }
        let mut refused: BTreeMap<String, u32> = BTreeMap::new();
        for e in &p.refused {
            let line = format!("{} {} -> {}: {}", e.code, anonymous(&e.from), anonymous(&e.to), e.detail);
            *refused.entry(line).or_default() += 1;
        }
        for (line, n) in refused {
            let _ = writeln!(out, "  {n} x {line}");
        }
        let l = &p.ledger;
        let _ = writeln!(out, "  activations {} -> {}", l.activations_unfused, l.activations_fused);
    }
    out
}

fn plan_text(plan: &Plan, main: &str) -> String {
    let mut out = String::new();
    let dims = |shape: &[frit_kernels::dim::Dim]| {
        format!("[{}]", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    };
    for s in &plan.sizes {
        let _ = writeln!(out, "size {} {}..{}", s.name, s.min, s.max.map_or(String::new(), |m| m.to_string()));
    }
    for w in &plan.weights {
        let _ = writeln!(out, "weight {:?} {} {} {}", w.placement, w.storage, dims(&w.shape), w.name);
    }
    for s in &plan.kv_slots {
        let _ = writeln!(out, "slot {} K {} V {}", s.name, dims(&s.k_shape), dims(&s.v_shape));
    }
    for s in &plan.states {
        let _ = writeln!(out, "state {} {} {}", s.name, s.storage, dims(&s.shape));
    }
    for k in plan.kernels() {
        let _ = writeln!(out, "kernel {} ({} bindings)", k.name, k.spec.bindings());
        for v in &k.variants {
            let tile: Vec<String> = v.schedule.tile.iter().map(|(n, x)| format!("{n} {x}")).collect();
            let _ = writeln!(
                out,
                "  {} {} {:?} grid {} | {}",
                v.architecture.map_or(v.tier.name(), Architecture::name),
                v.schedule.template,
                v.schedule.workgroup,
                dims(&v.grid),
                tile.join(", ")
            );
        }
    }
    let operand = |r: &BufferRef| match r {
        BufferRef::Value(i) => format!("v{i}"),
        BufferRef::Weight(i) => format!("w{i}"),
        BufferRef::State(i) => format!("s{i}"),
        BufferRef::Kv { slot, part } => format!("{part:?}{slot}").to_lowercase(),
    };
    for p in &plan.programs {
        let _ = writeln!(out, "program {} fixed {:?} at most {:?}", p.name, p.fixed, p.at_most);
        if p.name != main {
            continue;
        }
        let _ = writeln!(out, "  arena {}  ints {}", dims(&p.arena.sizes), dims(&p.ints.sizes));
        for (i, v) in p.values.iter().enumerate() {
            let _ = writeln!(
                out,
                "  v{i} {} {} slot {} live {}..{}",
                v.storage,
                dims(&v.shape),
                v.slot,
                v.live.0,
                v.live.1
            );
        }
        for s in &p.steps {
            let name = plan.kernels.get(s.kernel as usize).map_or("?", |k| k.name.as_str());
            let args: Vec<String> = s.args.iter().map(operand).collect();
            let _ = writeln!(out, "  {name}({})", args.join(" "));
        }
    }
    out
}

/// Texts of a program's kernels for one tier, one behind the other.
fn texts(plan: &Plan, main: &str, tier: Tier, text: impl Fn(&KernelSpec, &str) -> String) -> String {
    let used: BTreeSet<u32> = plan.program(main).unwrap().steps.iter().map(|s| s.kernel).collect();
    let kernels = plan.kernels().zip(0..).filter(|(_, i)| used.contains(i)).map(|(k, _)| k);
    kernels
        .map(|k| format!("// ==== {}\n{}\n", k.name, text(&k.spec, &k.variant(tier).unwrap().text).trim_end()))
        .collect()
}

fn goldens(folder: &str, model: &Model, plan: &Plan, main: &str, tiers: &[Tier]) {
    let g = model.graph(main).unwrap();
    let mut graph = g.graph.clone();
    passes::run_pipeline(&mut graph, &model.tables, &g.fixed).unwrap();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("snapshots/{folder}"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        insta::assert_snapshot!(format!("graph_{main}"), text::print(&graph));
        insta::assert_snapshot!("regions", regions(plan, main));
        insta::assert_snapshot!("plan", plan_text(plan, main));
        for tier in tiers {
            insta::assert_snapshot!(
                format!("wgsl_{}", tier.name()),
                texts(plan, main, *tier, |_, wgsl| wgsl.to_owned())
            );
        }
        let ir = texts(plan, main, Tier::Gpu, |spec, wgsl| {
            let r = render(spec, &Capabilities::webgpu(Tier::Gpu)).unwrap();
            assert_eq!(r.text, wgsl, "{}: rendering twice gives two texts", spec.name);
            ir::print(&r.module)
        });
        insta::assert_snapshot!("kernel_ir_gpu", ir);
    });
}

/// A launch of a kernel on random data.
fn launch(spec: &KernelSpec, seed: u64) -> kernel::Case {
    let mut random = Random::new(seed);
    let size = |s: &Sym| SIZES.iter().find(|z| z.0 == s.to_string()).map(|z| z.1);
    let data = spec.args.iter().map(|a| {
        let len = usize::try_from(a.len.eval(&size).unwrap()).unwrap();
        match (a.written, a.storage) {
            (_, Storage::I32) => random.ints(len, 7),
            (true, Storage::F32) => Data::F32(vec![0.0; len]),
            // Sums of 32 squares.
            (false, Storage::F32) if a.name.starts_with("row_stats") => match random.stored(Storage::F32, len) {
                Data::F32(v) => Data::F32(v.into_iter().map(|v| 32.0 * v.abs()).collect()),
                other => other,
            },
            (_, storage) => random.stored(storage, len),
        }
    });
    let data = data.collect();
    let mut case = kernel::Case::new(spec.clone(), &SIZES, data);
    case.tolerance = 1e-4;
    case
}

/// Runs every text of a plan on the adapter against loops in float64. How many were run.
fn execute(plan: &Plan) -> usize {
    let mut run = 0;
    for (seed, k) in plan.kernels().enumerate() {
        let case = launch(&k.spec, seed as u64 + 1);
        let want = kernel::eval::evaluate(&case);
        for tier in TIERS {
            let caps = Capabilities::webgpu(tier);
            let r = render(&k.spec, &caps).unwrap();
            assert_eq!(r.text, k.variant(tier).unwrap().text, "{}", k.name);
            kernel::validate(&r, &caps);
            let got = kernel::gpu::run(&case, &r, 1).expect("these tests need a Vulkan, Metal or DirectX 12 adapter");
            for (i, a) in k.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
                for (at, (w, g)) in want[i].iter().zip(&got.args[i]).enumerate() {
                    let close = (w - g).abs() <= case.tolerance * (1.0 + w.abs());
                    assert!(close, "{} {tier:?} `{}` at {at}: {g}, {w} expected\n{}", k.name, a.name, r.text);
                }
            }
            run += 1;
        }
    }
    run
}

fn check(folder: &str, path: &str, main: &str, tiers: &[Tier]) {
    let model = support::load(path);
    let LoadedModel { plan, .. } = support::compile(&model);
    goldens(folder, &model, &plan, main, tiers);
    assert_eq!(execute(&plan), 2 * plan.kernels.len());
}

#[test]
fn lexicon() {
    check("lexicon", "lexicon", "decode", &TIERS);
}

#[test]
fn bert() {
    check("bert", "devset/bert", "forward", &TIERS);
}

#[test]
fn gpt2() {
    check("gpt2", "devset/gpt2", "prefill", &[Tier::Gpu]);
}
