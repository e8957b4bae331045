//! Attention of one row that takes its keys in parts, a workgroup a part: in how many, and from how many keys on it pays.
//!
//! A workgroup draws a bounded share of a card's bandwidth, and one row makes few of them. The parts are merged by the
//! matmul that reads the attention, in front of its product, so that no launch is added; each of its column tiles merges them
//! again. On software drivers the workgroups wait for cores: parts never pay there.

use super::FusionOptions;
use super::cost::{CACHE_MISSES, pays};
use crate::graph::{Graph, ValueId};
use crate::passes::split_keys::shape;
use frit_kernels::dim::Dim;
use frit_kernels::target::Tier;
use frit_kernels::templates::column_tile;
use frit_plan::{Instead, Rates};

/// Workgroups that fill a graphics card.
const WORKGROUPS: u64 = 128;
/// Most parts: what a merge reads grows with them.
const MOST: u64 = 8;
/// Heads of a group that share a workgroup.
const HEADS: u64 = 8;
/// Bytes a µs that one workgroup draws, at 32 bytes a cycle and 1.5 GHz: a guess, not measured.
const BYTES_PER_US: f64 = 48e3;
/// Operations of a merge for an element and part.
const FLOPS: f64 = 8.0;
/// Keys beyond which nothing is priced.
const LIMIT_KEYS: u64 = 1 << 16;

/// An attention of one row.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads.
    pub heads: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Elements of a key and a value together.
    pub width: u64,
    /// Elements of a value.
    pub value: u64,
}

impl Shape {
    /// In how many parts the keys are taken, by the number of heads alone, so that no sum depends on the batch; `None`
    /// where the heads fill a card.
    pub fn parts(&self) -> Option<u64> {
        let groups = self.kv_heads.max(1) * (self.heads / self.kv_heads.max(1)).div_ceil(HEADS).max(1);
        let parts = WORKGROUPS.div_ceil(groups).min(MOST);
        (parts > 1).then(|| parts.next_power_of_two())
    }
    /// Times on a tier in µs with `keys` keys: in one part, and in several with their merge. Launches are the same.
    pub fn times_us(&self, tier: Tier, keys: u64) -> (f64, f64) {
        let (rates, parts) = (Rates::of(tier), self.parts().unwrap_or(1));
        let key = 4.0 * self.width as f64;
        let bytes = self.kv_heads as f64 * keys as f64 * key;
        let read = |keys: f64| (bytes / rates.bytes_per_us).max(keys * key / BYTES_PER_US);
        let columns = self.heads * self.value;
        let tiles = columns.div_ceil(column_tile(tier, true, 1, false, columns).max(1)) as f64;
        let merged = tiles * (columns * parts) as f64;
        let merge = merged * (12.0 * CACHE_MISSES / rates.bytes_per_us + FLOPS / rates.flops_per_us);
        (read(keys as f64), read(keys as f64 / parts as f64) + merge)
    }
    /// The least number of keys, in steps of 64, from which parts pay on a tier.
    pub fn pays_from(&self, tier: Tier) -> Option<u64> {
        if tier == Tier::Cpu || self.parts().is_none() {
            return None;
        }
        (1..=LIMIT_KEYS / 64).map(|n| 64 * n).find(|keys| {
            let (whole, parts) = self.times_us(tier, *keys);
            pays(whole, parts)
        })
    }
}

/// When a program whose attention takes its keys in parts runs in place of the program `of`, which has `graph`; `None` where
/// no kind of device is served better, or nothing in the graph can be split.
pub fn instead(graph: &Graph, of: &str, options: &FusionOptions) -> Option<Instead> {
    let order = graph.order();
    let found: Vec<(Shape, Dim)> = order.iter().filter_map(|v| shape(graph, *v).zip(keys(graph, *v))).collect();
    // Where some layers have a window, those without one see most.
    let widest = |a: &&(Shape, Dim), b: &&(Shape, Dim)| a.1.as_const().is_some().cmp(&b.1.as_const().is_some());
    let (shape, keys) = found.iter().filter(|f| f.0.parts().is_some()).min_by(widest)?;
    let tiers = options.tiers.iter();
    let from: Vec<(Tier, u64)> =
        tiers.filter_map(|t| Some((*t, options.key_parts_from.or_else(|| shape.pays_from(*t))?))).collect();
    (!from.is_empty()).then(|| Instead { of: of.into(), keys: keys.clone(), from })
}

/// The keys that the last row of an attention sees at most.
fn keys(graph: &Graph, v: ValueId) -> Option<Dim> {
    let (attrs, _) = graph.op(v).attention()?;
    let all = graph.ty(*graph.operands(v).get(1)?).shape.get(2)?.clone();
    Some(attrs.window.map_or(all.clone(), |w| all.smaller(&Dim::from(w))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Shape = Shape { heads: 9, kv_heads: 3, width: 128, value: 64 };

    #[test]
    fn few_heads_make_parts_and_many_fill_the_card() {
        assert_eq!(SMALL.parts(), Some(8));
        assert_eq!(Shape { heads: 32, kv_heads: 32, ..SMALL }.parts(), Some(4));
        assert_eq!(Shape { heads: 128, kv_heads: 128, ..SMALL }.parts(), None);
    }
    #[test]
    fn parts_pay_from_some_number_of_keys_on_and_never_on_cores() {
        for tier in [Tier::Gpu, Tier::Cuda] {
            let from = SMALL.pays_from(tier).unwrap();
            assert!((64..=1024).contains(&from), "{tier:?}: {from}");
            let (whole, parts) = SMALL.times_us(tier, from.saturating_sub(64));
            assert!(!pays(whole, parts));
        }
        assert_eq!(SMALL.pays_from(Tier::Cpu), None);
    }
}
