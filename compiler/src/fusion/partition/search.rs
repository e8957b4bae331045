//! The cheapest division of a small graph into regions: a search over its ideals.
//!
//! An ideal is a set of operations with everything they wait for inside the graph. Regions that run one after the other
//! build up a chain of ideals, so the best chain to each ideal follows from those to smaller ones: with the legal regions
//! priced once, the optimum is a shortest path. A region is worth a look if it is connected and no path leaves it and
//! comes back.

use rustc_hash::FxHashMap;

/// Operations of a problem at most.
pub const LARGEST: usize = 24;
/// Sets of operations that are looked at, and steps between ideals that are taken, at most.
pub const BUDGET: u64 = 20_000;

/// Operations in an order in which each comes after those that it waits for.
pub struct Problem {
    /// What each waits for, directly or not, as bits.
    pub before: Vec<u32>,
    /// What each may share a region with because one reads the other, or both read one value.
    pub beside: Vec<u32>,
}

/// The best division.
#[derive(Clone, Debug, PartialEq)]
pub struct Division {
    /// Regions in launch order, as bits.
    pub regions: Vec<u32>,
    /// Their price together.
    pub price: f64,
    /// Sets and steps that were looked at.
    pub work: u64,
}

impl Problem {
    fn all(&self) -> u32 {
        (1u32 << self.before.len()) - 1
    }
    fn members(set: u32) -> impl Iterator<Item = usize> {
        (0..32).filter(move |i| set >> i & 1 == 1)
    }
    /// Whether no operation outside waits for a member while another member waits for it.
    fn is_convex(&self, set: u32) -> bool {
        let outside = self.all() & !set;
        !Self::members(outside).any(|o| {
            let waits = self.before[o] & set != 0;
            waits && Self::members(set).any(|m| self.before[m] >> o & 1 == 1)
        })
    }
    /// The cheapest division by the price that `price` gives a region, if it may be one; every operation may stand alone.
    /// `None` where the search would take more than [`BUDGET`] or the problem exceeds [`LARGEST`].
    pub fn solve(&self, mut price: impl FnMut(u32) -> Option<f64>) -> Option<Division> {
        let n = self.before.len();
        if n == 0 || n > LARGEST {
            return None;
        }
        let mut work = 0;
        let legal = self.legal(&mut price, &mut work)?;
        // Shortest paths from the empty ideal; ideals grow, so they are met in the order of their size.
        let mut best: FxHashMap<u32, (f64, u32, usize)> = FxHashMap::default();
        best.insert(0, (0.0, 0, usize::MAX));
        let mut layers: Vec<Vec<u32>> = vec![Vec::new(); n + 1];
        layers[0].push(0);
        for size in 0..n {
            let mut ideals = std::mem::take(&mut layers[size]);
            ideals.sort_unstable();
            for ideal in ideals {
                let (so_far, ..) = *best.get(&ideal)?;
                for (r, (set, price)) in legal.iter().enumerate() {
                    work += 1;
                    let next = ideal | set;
                    let ready = Self::members(*set).all(|m| self.before[m] & !next == 0);
                    if set & ideal != 0 || !ready {
                        continue;
                    }
                    let total = so_far + price;
                    let known = best.get(&next).map(|b| b.0);
                    if known.is_none() {
                        layers.get_mut(next.count_ones() as usize)?.push(next);
                    }
                    if known.is_none_or(|k| total < k) {
                        best.insert(next, (total, ideal, r));
                    }
                }
                if work > BUDGET {
                    return None;
                }
            }
        }
        let mut regions = Vec::new();
        let mut at = self.all();
        let (price, ..) = *best.get(&at)?;
        while at != 0 {
            let (_, before, r) = *best.get(&at)?;
            regions.push(legal.get(r)?.0);
            at = before;
        }
        regions.reverse();
        Some(Division { regions, price, work })
    }
    /// Every region that may be, with its price, in the order of their bits.
    fn legal(&self, price: &mut impl FnMut(u32) -> Option<f64>, work: &mut u64) -> Option<Vec<(u32, f64)>> {
        let mut seen: FxHashMap<u32, ()> = FxHashMap::default();
        let mut stack: Vec<u32> = (0..self.before.len()).map(|i| 1u32 << i).collect();
        let mut out = Vec::new();
        while let Some(set) = stack.pop() {
            if seen.insert(set, ()).is_some() {
                continue;
            }
            *work += 1;
            if *work > BUDGET {
                return None;
            }
            if self.is_convex(set)
                && let Some(p) = price(set)
            {
                out.push((set, p));
            }
            let around = Self::members(set).fold(0, |a, m| a | self.beside[m]) & !set;
            stack.extend(Self::members(around).map(|i| set | 1 << i));
        }
        out.sort_unstable_by_key(|(set, _)| *set);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether no operation of `ideal` outside `set` waits for a member of `set`.
    fn is_last(p: &Problem, set: u32, ideal: u32) -> bool {
        !Problem::members(ideal & !set).any(|o| p.before[o] & set != 0)
    }

    /// The cheapest way to put `left` into regions, by trying every set of them as the last one.
    fn brute(p: &Problem, left: u32, price: &impl Fn(u32) -> Option<f64>) -> f64 {
        if left == 0 {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        let mut set = left;
        while set != 0 {
            if is_last(p, set, left)
                && let Some(own) = price(set)
            {
                best = best.min(own + brute(p, left & !set, price));
            }
            set = (set - 1) & left;
        }
        best
    }

    /// A graph of `n` operations, and prices that make some sets of them worth more than their parts.
    fn random(n: usize, seed: u64) -> (Problem, impl Fn(u32) -> Option<f64>) {
        let number = move |i: u64| {
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i.wrapping_mul(0xbf58_476d_1ce4_e5b9));
            x ^= x >> 29;
            x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ x >> 32
        };
        let (mut before, mut beside) = (vec![0u32; n], vec![0u32; n]);
        for i in 0..n {
            for j in 0..i {
                if number((i * n + j) as u64) % 3 == 0 {
                    before[i] |= before[j] | 1 << j;
                    beside[i] |= 1 << j;
                    beside[j] |= 1 << i;
                }
            }
        }
        let all = beside.clone();
        let price = move |set: u32| {
            let connected = {
                let mut part = set & set.wrapping_neg();
                loop {
                    let more = Problem::members(part).fold(part, |a, m| a | all[m]) & set;
                    if more == part {
                        break part == set;
                    }
                    part = more;
                }
            };
            let legal = set.count_ones() == 1 || connected && number(u64::from(set) << 8) % 4 != 0;
            legal.then(|| 1.0 + (number(u64::from(set) << 9) % 16) as f64 / 8.0)
        };
        (Problem { before, beside }, price)
    }

    #[test]
    fn the_search_finds_what_trying_everything_finds() {
        for n in 1..=7 {
            for seed in 0..40 {
                let (p, price) = random(n, seed);
                let convex = |set| if p.is_convex(set) { price(set) } else { None };
                let found = p.solve(convex).unwrap();
                let best = brute(&p, p.all(), &convex);
                assert!((found.price - best).abs() < 1e-9, "{n} {seed}: {} and {best}", found.price);
                assert_eq!(found.regions.iter().fold(0, |a, r| a | r), p.all());
                assert_eq!(found.regions.iter().map(|r| r.count_ones()).sum::<u32>() as usize, n);
                let mut done = 0;
                for r in &found.regions {
                    assert!(Problem::members(*r).all(|m| p.before[m] & !(done | r) == 0), "{n} {seed}");
                    done |= r;
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_is_not_searched() {
        let wide = Problem { before: vec![0; 20], beside: vec![(1 << 20) - 1; 20] };
        assert_eq!(wide.solve(|_| Some(1.0)), None);
        let long = Problem { before: vec![0; 25], beside: vec![0; 25] };
        assert_eq!(long.solve(|_| Some(1.0)), None);
    }
}
