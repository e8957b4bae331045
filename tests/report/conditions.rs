use super::{phase, plan};
use frit_compiler::CompileOptions;
use frit_compiler::fusion::Refusal;
use frit_plan::{RefusedEdge, Verdict};

fn asked(model: &str, edge: (&str, &str), off: &[&str]) -> Vec<RefusedEdge> {
    let mut options = CompileOptions::default();
    options.fusion.ask = Some((edge.0.into(), edge.1.into()));
    off.iter().for_each(|o| options.switch_off(o).unwrap());
    let plan = plan(model, options);
    let name = if plan.program("forward").is_some() { "forward" } else { "decode" };
    phase(&plan, name).refused.clone()
}

fn verdict(e: &RefusedEdge, code: Refusal) -> Verdict {
    e.conditions.iter().find(|c| c.code == code.code()).unwrap().verdict
}

/// Every condition is answered in the order of the codes; the headline is one that fails, with its operands.
#[test]
fn every_condition_of_an_edge_is_answered() {
    let refused = asked("devset/bert", ("add (encoder.layer", "layer_norm"), &[]);
    let meant = |e: &&RefusedEdge| e.from.contains("add (encoder.layer") && e.to.contains("layer_norm");
    assert!(refused.iter().any(|e| meant(&e)));
    for e in refused.iter().filter(meant) {
        let codes: Vec<&str> = e.conditions.iter().map(|c| c.code.as_str()).collect();
        assert_eq!(codes, Refusal::ALL.map(|c| c.code()));
        let headline = e.conditions.iter().find(|c| c.code == e.code).unwrap();
        assert_eq!((headline.verdict, &headline.detail), (Verdict::Fails, &e.detail));
        assert_eq!(e.code, "L7-ROWTILE");
        for code in [Refusal::Cycle, Refusal::Dtype, Refusal::Bind, Refusal::User, Refusal::Mode, Refusal::Grid] {
            assert_eq!(verdict(e, code), Verdict::Holds, "{code} of {} -> {}", e.from, e.to);
        }
        assert_eq!(verdict(e, Refusal::Mismatch), Verdict::NotAsked);
        assert!(e.conditions.iter().all(|c| !c.detail.is_empty()));
    }
    assert!(refused.iter().filter(|e| !meant(e)).all(|e| e.conditions.is_empty()));
}

/// A switch fails beside what would refuse the edge without it.
#[test]
fn an_edge_that_is_switched_off_tells_what_else_fails() {
    let refused = asked("devset/bert", ("add", "layer_norm"), &["add (encoder.layer.0):layer_norm"]);
    let e = refused.iter().find(|e| e.from.contains("add (encoder.layer.0)") && !e.conditions.is_empty()).unwrap();
    assert_eq!(verdict(e, Refusal::User), Verdict::Fails);
    assert_eq!(verdict(e, Refusal::RowTile), Verdict::Fails);
}

/// Attention reads what other workgroups make, out of a slot that holds more than they do.
#[test]
fn several_conditions_fail_at_once() {
    let refused = asked("devset/gpt2", ("kv_append", "attention"), &[]);
    let e = refused.iter().find(|e| !e.conditions.is_empty()).unwrap();
    assert_eq!(e.code, "L14-GRID");
    assert_eq!([verdict(e, Refusal::Grid), verdict(e, Refusal::Effect)], [Verdict::Fails; 2]);
}
