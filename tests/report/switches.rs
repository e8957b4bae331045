use super::{is_extra, phase, plan};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::{CompileOptions, SwitchError};
use frit_plan::Plan;

fn without(switch: &str) -> Plan {
    let mut options = CompileOptions::default();
    options.switch_off(switch).unwrap();
    plan("lexicon", options)
}

/// Launches of layer 3, and of each other layer, where those are all alike.
fn launches(plan: &Plan) -> (u32, u32) {
    let layers = &phase(plan, "decode").layers;
    let (own, rest): (Vec<_>, Vec<_>) = layers.iter().partition(|l| l.layer.ends_with("layers.3"));
    assert!(rest.iter().all(|l| l.dispatches == rest[0].dispatches), "{layers:?}");
    (own[0].dispatches, rest[0].dispatches)
}

#[test]
fn a_fusion_is_switched_off_at_one_place() {
    let (own, rest) = launches(&without("epilogue@layers.3.mlp"));
    assert_eq!(rest, 5);
    assert!(own > rest, "{own}");
    let (own, rest) = launches(&without("norm@layers.3.self_attn"));
    assert_eq!(rest, 5);
    assert!(own > rest, "{own}");
    let everywhere = launches(&without("epilogue@layers."));
    assert!(everywhere.0 == everywhere.1 && everywhere.1 > 5, "{everywhere:?}");
}

#[test]
fn one_edge_is_switched_off_and_says_so() {
    let plan = without("layers.3.mlp.gate_proj:silu");
    let off = |e: &&frit_plan::RefusedEdge| e.code == "L20-USER";
    let p = phase(&plan, "decode");
    let told: Vec<_> = p.refused.iter().filter(off).collect();
    assert!(!told.is_empty(), "{:?}", p.drawing.ops);
    for e in &told {
        assert_eq!(e.detail, "the edge is switched off");
        assert!(e.from.contains("layers.3.mlp.gate_proj") && e.to.contains("silu"), "{e:?}");
    }
    let together = |r: &&frit_plan::RegionReport| {
        r.origins.iter().any(|o| o.contains("layers.3.mlp.gate_proj")) && r.ops.iter().any(|o| o == "silu")
    };
    assert_eq!(p.regions.iter().find(together), None);
}

#[test]
fn a_rule_is_switched_off_at_one_place() {
    let mut options = CompileOptions::default();
    options.switch_off("split-keys@layers.3").unwrap();
    assert_eq!(options.disabled_rules, ["split-keys@layers.3"]);
    let applied = |o: CompileOptions| plan("lexicon", o).report.rewrites.get("split-keys").copied().unwrap_or(0);
    let (all, but_one) = (applied(CompileOptions::default()), applied(options));
    assert!(all > 0 && but_one < all && but_one > 0, "{all} {but_one}");
}

#[test]
fn what_does_not_exist_is_refused_with_what_is_near() {
    let refused = |text: &str| CompileOptions::default().switch_off(text).unwrap_err();
    assert_eq!(refused("epilog"), SwitchError::Unknown { id: "epilog".into(), near: vec!["epilogue"] });
    assert_eq!(refused("norm-pair@layers.3").to_string(), "there is no fusion `norm-pair`; did you mean `norm-pairs`?");
    assert_eq!(refused("quantum-tunnelling").to_string(), "there is no fusion `quantum-tunnelling`");
    for text in ["@", "epilogue@", "matmul:", ":add"] {
        assert_eq!(refused(text), SwitchError::NoPlace { text: text.into() });
    }
}

/// Without fuel every operation is a launch. With the switches off there is one more: the view of the logits that nothing
/// but the host reads is an epilogue, and absorbing a view takes no fuel.
#[test]
fn the_unfused_plan_has_a_copy_that_the_plan_without_fuel_has_not() {
    let with = |fusion: FusionOptions| plan("lexicon", CompileOptions { fusion, ..CompileOptions::default() });
    let (unfused, dry) =
        (with(FusionOptions::unfused()), with(FusionOptions { fuel: Some(0), ..FusionOptions::default() }));
    let [a, b] = [&unfused, &dry].map(|p| phase(p, "decode"));
    assert_eq!(a.unfused_dispatches, b.unfused_dispatches);
    assert_eq!(b.dispatches, b.unfused_dispatches);
    let copies: Vec<_> = a.regions.iter().filter(|r| is_extra(r)).collect();
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert_eq!((a.dispatches, copies[0].ops.as_slice()), (a.unfused_dispatches + 1, ["reshape".to_owned()].as_slice()));
}

/// The angles of an exporter's decoder are one launch with its embedding, unless that is switched off there.
#[test]
fn values_beside_each_other_stay_apart_at_one_place() {
    let launches = |switch: Option<&str>| {
        let mut options = CompileOptions::default();
        if let Some(s) = switch {
            options.switch_off(s).unwrap();
        }
        phase(&plan("onnx/llama_gqa_past.onnx", options), "decode").dispatches
    };
    assert_eq!(launches(None), 13);
    assert_eq!(launches(Some("sibling-maps@layers.0/self_attn")), 16);
    assert_eq!(launches(Some("sibling-maps@layers.1/")), 13);
}
