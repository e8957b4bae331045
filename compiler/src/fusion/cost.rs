//! What a decision costs in time, on each kind of device that a plan is for.

use frit_kernels::dim::{Dim, product};
pub use frit_kernels::spec::MANY_ROWS;
use frit_kernels::spec::{Anchor, KernelSpec};
use frit_kernels::target::Tier;
use frit_plan::Rates;

/// Share of what is read again, one tile after the other, that the caches do not hold.
pub const CACHE_MISSES: f64 = 0.02;
/// Operations that the statistics of an element cost in every further tile, at the rate of the product itself, and those
/// of normalising it with them: estimates from timings of llvmpipe that no bench repeats.
const FLOPS_OF_STATISTICS: f64 = 1.0;
const FLOPS_OF_USE: f64 = 0.5;
/// Operations that scaling a sum costs, at that rate: one multiplication, where normalising with a gain is two.
const FLOPS_OF_SCALE: f64 = 0.25;

/// Operations that an element of a left side costs in every column tile of matrix units where it is normalised there, at the
/// rate of all other units, rather than copied in 16 bits: 13 instructions of two, as the interpreter counts them for tiles of
/// 64 columns (29 an element with a norm, 16 of kept rows: `kernels/simt/tests/counters.rs`).
const FLOPS_OF_REGISTERS: f64 = 26.0;

/// A norm in front of a product: computed by a kernel of its own, or in every column tile.
#[derive(Clone, Copy, Debug)]
pub struct NormChoice {
    /// Rows of the run that is priced.
    pub rows: u64,
    /// Elements of a row.
    pub width: u64,
    /// Whether something else reads the normalised rows, so that they are stored in any case.
    pub kept: bool,
    /// Whether rows that are stored for the product are kept in 16 bits, and copied into its tiles.
    pub copied: bool,
}

/// How the statistics of a norm reach the product behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormForm {
    /// Every column tile reads the rows for them.
    Recompute,
    /// The kernel that makes the rows writes that many numbers for each, which every column tile joins.
    Forward(u64),
    /// The same, but that they scale the sums of the rows' products.
    Commute {
        /// Numbers of a row's statistics.
        numbers: u64,
        /// Whether the kernel that makes the rows writes them times a gain as well.
        gained: bool,
        /// Sums of a row.
        sums: u64,
    },
}

impl NormChoice {
    /// Times on a tier in µs: of a kernel of its own, and of `tiles` column tiles that normalise.
    pub fn times_us(&self, tier: Tier, tiles: u64, form: NormForm) -> (f64, f64) {
        let rates = Rates::of(tier);
        let elems = self.rows as f64 * self.width as f64;
        let stored = if self.copied { 2.0 } else { 4.0 };
        let own = rates.launch_us + (4.0 + if self.kept { 0.0 } else { stored }) * elems / rates.bytes_per_us;
        let again = tiles.saturating_sub(1) as f64;
        let missed = 4.0 * CACHE_MISSES / rates.bytes_per_us;
        let each = |count: f64, flops: f64| count * flops / rates.flops_per_us;
        let statistics = |numbers: u64| {
            let numbers = self.rows as f64 * numbers as f64;
            let written = 2.0 * 4.0 * numbers / rates.bytes_per_us + each(elems, FLOPS_OF_STATISTICS);
            written + again * (numbers * missed + each(numbers, FLOPS_OF_STATISTICS))
        };
        let registers = if self.copied { tiles as f64 * each(elems, FLOPS_OF_REGISTERS) } else { 0.0 };
        let inside = match form {
            NormForm::Recompute => {
                registers + again * (elems * missed + each(elems, FLOPS_OF_STATISTICS + FLOPS_OF_USE))
            }
            NormForm::Forward(numbers) => registers + statistics(numbers) + again * each(elems, FLOPS_OF_USE),
            NormForm::Commute { numbers, gained, sums } => {
                let gain = if gained { stored * elems / rates.bytes_per_us } else { 0.0 };
                statistics(numbers) + gain + each(self.rows as f64 * sums as f64, FLOPS_OF_SCALE)
            }
        };
        (own, inside)
    }
}

/// Whether something that takes `inside` µs instead of `own` is worth it: it saves more than half a µs and than 1 %.
pub fn pays(own: f64, inside: f64) -> bool {
    own - inside > (own / 100.0).max(0.5)
}

/// Additions and multiplications of a kernel's products, those of attention included; causal attention sees half of the
/// keys or more, which is not told apart.
pub fn flops(spec: &KernelSpec) -> Dim {
    let two = Dim::constant(2);
    match &spec.anchor {
        Anchor::MatMul { k, rhs, .. } => product(&spec.domain) * k.clone() * two * Dim::from(rhs.len()),
        Anchor::Chain(c) => {
            let rows = product(spec.domain.iter().take(spec.domain.len().saturating_sub(1)));
            let columns = spec.domain.last().cloned().unwrap_or_default();
            rows * c.inner.clone() * two * (c.k.clone() * Dim::from(c.up.len()) + columns)
        }
        Anchor::ConvChain(c) => {
            let [rows, columns] = c.windows.map(|w| w.reached(0, w.places)).map(|(lo, hi)| Dim::from(hi - lo));
            let batch = spec.domain.first().cloned().unwrap_or_else(Dim::one);
            let first = batch * rows * columns * Dim::from(c.channels) * c.k.clone();
            (first + product(&spec.domain) * Dim::from(c.depth())) * two
        }
        Anchor::Attention(a) => {
            let parts = Dim::from(a.parts.as_ref().map_or(1, |p| p.count.max(1)));
            let queries = product(spec.domain.iter().take(3)).div(&parts);
            queries * a.kv_len.clone() * two * Dim::from(a.head_dim + a.value_dim)
        }
        Anchor::Map | Anchor::Row { .. } => Dim::zero(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_pay_with_any_tile_and_many_with_few() {
        let choice = |rows| NormChoice { rows, width: 576, kept: false, copied: false };
        let pays_on = |rows, tier, tiles| {
            let (own, inside) = choice(rows).times_us(tier, tiles, NormForm::Recompute);
            pays(own, inside)
        };
        for tier in [Tier::Cpu, Tier::Gpu, Tier::Cuda] {
            assert!(pays_on(8, tier, 24), "{tier:?}");
            assert!(pays_on(512, tier, 2), "{tier:?}");
        }
        assert!(!pays_on(512, Tier::Cpu, 24));
        assert!(pays_on(512, Tier::Gpu, 24));
        assert!(!pays_on(512, Tier::Gpu, 1000));
    }

    /// Scaled sums cost no more with more tiles, but their statistics do.
    #[test]
    fn commuting_is_for_wide_products_of_wide_rows() {
        let choice = NormChoice { rows: 512, width: 576, kept: false, copied: false };
        let commute = NormForm::Commute { numbers: 18, gained: true, sums: 3072 };
        let (own, scaled) = choice.times_us(Tier::Cpu, 48, commute);
        let (_, normalised) = choice.times_us(Tier::Cpu, 48, NormForm::Forward(18));
        assert!(pays(own, scaled) && !pays(own, normalised), "{own} {scaled} {normalised}");
        let narrow = NormChoice { width: 48, ..choice };
        let (own, scaled) = narrow.times_us(Tier::Cpu, 103, NormForm::Commute { numbers: 2, gained: true, sums: 6600 });
        assert!(!pays(own, scaled), "{own} {scaled}");
        let bare = NormForm::Commute { numbers: 18, gained: false, sums: 3072 };
        assert!(choice.times_us(Tier::Cpu, 48, bare).1 < choice.times_us(Tier::Cpu, 48, commute).1);
    }

    #[test]
    fn stored_rows_save_less() {
        let times = |kept| {
            NormChoice { rows: 512, width: 576, kept, copied: false }.times_us(Tier::Gpu, 9, NormForm::Recompute)
        };
        let ((stored, a), (dropped, b)) = (times(true), times(false));
        assert!(stored < dropped);
        assert_eq!(a, b);
    }

    /// Where nothing else is written for, rows that are copied pay for what writes them.
    #[test]
    fn copied_rows_are_commuted() {
        let commute = NormForm::Commute { numbers: 18, gained: true, sums: 960 };
        for (copied, wins) in [(false, false), (true, true)] {
            let choice = NormChoice { rows: 512, width: 576, kept: false, copied };
            let [(_, commuted), (_, forwarded)] =
                [commute, NormForm::Forward(18)].map(|f| choice.times_us(Tier::Cuda, 15, f));
            assert_eq!(pays(forwarded, commuted), wins, "{forwarded} {commuted}");
        }
    }
}
