use super::{phase, plan};
use frit_compiler::CompileOptions;
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::target::Tier;

/// More rows never take less time, and no launch takes less than a launch costs.
#[test]
fn regions_have_a_predicted_time_at_every_size() {
    let plan = plan("devset/gpt2", CompileOptions::default());
    let p = phase(&plan, "decode_wide");
    let count =
        |past: i64| move |d: &Dim| d.eval(&|s: &Sym| Some(if s.to_string() == "B" { 8 } else { past })).unwrap();
    for tier in [Tier::Cpu, Tier::Gpu, Tier::Cuda] {
        let least = frit_plan::Rates::of(tier).launch_us;
        for r in &p.regions {
            let [short, long] = [64, 4096].map(|past| r.predicted_us(tier, &count(past)));
            assert!(least < short && short <= long, "{} {}: {short} {long}", tier.name(), r.kernel);
        }
        let attention = p.regions.iter().find(|r| r.kind == "attention").unwrap();
        assert!(attention.predicted_us(tier, &count(4096)) > attention.predicted_us(tier, &count(64)) * 1.01);
    }
}
