//! What launches, bytes and operations cost on a kind of device: the rates from which times are predicted.

use frit_kernels::target::Tier;

/// Rates of a kind of device. They are priors of the compiler, which never looks at a clock; a host that has measured its
/// device may use its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// One launch and the barrier behind it, in µs.
    pub launch_us: f64,
    /// Bytes of memory a µs.
    pub bytes_per_us: f64,
    /// Additions and multiplications in f32 a µs.
    pub flops_per_us: f64,
}

impl Rates {
    /// The priors for a tier. Software drivers: estimates from timings of llvmpipe on two cores that no bench repeats.
    /// Graphics cards: guesses at a middle-sized one, not measured.
    pub const fn of(tier: Tier) -> Rates {
        match tier {
            Tier::Cpu => Rates { launch_us: 28.0, bytes_per_us: 8e3, flops_per_us: 12e3 },
            Tier::Gpu => Rates { launch_us: 10.0, bytes_per_us: 200e3, flops_per_us: 5e6 },
            Tier::Cuda => Rates { launch_us: 3.0, bytes_per_us: 1000e3, flops_per_us: 20e6 },
        }
    }
    /// Predicted time of one launch: the slower of its bytes and its operations, and the launch.
    pub fn launch_time_us(&self, bytes: f64, flops: f64) -> f64 {
        self.launch_us + (bytes / self.bytes_per_us).max(flops / self.flops_per_us)
    }
}
