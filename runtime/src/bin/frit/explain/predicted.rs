//! Predicted times of a program's launches at the sizes at which its report is shown, on each kind of device.

use frit_kernels::dim::Dim;
use frit_kernels::target::Tier;
use frit_plan::{PhaseReport, RegionReport};

const TIERS: [Tier; 3] = [Tier::Cpu, Tier::Gpu, Tier::Cuda];

/// Times in µs, by [`TIERS`].
#[derive(Clone, Copy, Default)]
pub struct Predicted([f64; 3]);

impl Predicted {
    pub fn of(r: &RegionReport, count: &dyn Fn(&Dim) -> i64) -> Self {
        Predicted(TIERS.map(|tier| r.predicted_us(tier, count)))
    }
    /// Of all launches of a program.
    pub fn sum(phase: &PhaseReport, count: &dyn Fn(&Dim) -> i64) -> Self {
        phase.regions.iter().map(|r| Predicted::of(r, count)).fold(Predicted::default(), |sum, p| {
            let mut both = sum.0;
            both.iter_mut().zip(p.0).for_each(|(a, b)| *a += b);
            Predicted(both)
        })
    }
    pub fn json(self) -> serde_json::Value {
        TIERS.iter().zip(self.0).map(|(t, us)| (t.name().to_owned(), serde_json::json!(us))).collect()
    }
}

impl std::fmt::Display for Predicted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let each = TIERS.iter().zip(self.0).map(|(t, us)| format!("{} {us:.1} us", t.name()));
        f.write_str(&each.collect::<Vec<_>>().join(", "))
    }
}
