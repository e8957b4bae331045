//! Slopes of the bias on scores that falls with distance (ALiBi).

/// `2^(−8i/n)` for n heads; where n is no power of 2, those of the next lower one, then every second of the next higher.
pub(crate) fn bloom_slopes(heads: u64) -> Vec<f32> {
    let lower = 1u64 << heads.max(1).ilog2();
    let slope = |of: u64, i: u64| (2f64).powf(-8.0 * i as f64 / of as f64) as f32;
    let more = (0..heads.saturating_sub(lower)).map(|i| slope(2 * lower, 2 * i + 1));
    (1..=lower).map(|i| slope(lower, i)).chain(more).collect()
}

/// Those of the next power of 2, every second of them first.
pub(crate) fn mpt_slopes(heads: u64) -> Vec<f32> {
    let upper = heads.next_power_of_two();
    let slope = |i: u64| (2f64).powf(-8.0 * i as f64 / upper as f64) as f32;
    match upper == heads {
        true => (1..=heads).map(slope).collect(),
        false => (1..=upper / 2)
            .map(|i| 2 * i)
            .chain((0..upper / 2).map(|i| 2 * i + 1))
            .map(slope)
            .take(heads as usize)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{bloom_slopes, mpt_slopes};

    #[test]
    fn slopes_of_a_power_of_two_halve_evenly_and_others_come_from_its_neighbours() {
        assert_eq!(bloom_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(bloom_slopes(4), mpt_slopes(4));
        assert_eq!(bloom_slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(mpt_slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(bloom_slopes(1), mpt_slopes(1));
    }
}
