//! Memory after fusion: which values share a slot of an arena, from their live ranges. Sizes stay symbolic; offsets
//! follow when a session binds them.

mod alias;

pub use alias::contracts;

use frit_kernels::dim::{Bounds, Dim};
use frit_plan::SlotLayout;

/// A value to be placed: its size and the steps that touch it.
#[derive(Clone, Debug)]
pub struct Lifetime {
    /// Elements.
    pub size: Dim,
    /// First and last step, inclusive.
    pub live: (u32, u32),
    /// Values whose storage it may take while the step that makes it reads them, by the alias contract of its kernel.
    pub over: Vec<usize>,
}

/// Gives every value a slot so that values alive at the same step never share one, but for values written over an
/// input of equal size that dies there. Such an input's slot is taken first, then a free slot of the same size, then one
/// whose size compares; a slot grows to the larger of its values. Where nothing written over an input makes a smaller
/// arena, nothing is.
pub fn assign(values: &[Lifetime], bounds: &Bounds) -> (Vec<u32>, SlotLayout) {
    let shared = place(values, bounds, true);
    if values.iter().all(|v| v.over.is_empty()) {
        return shared;
    }
    let apart = place(values, bounds, false);
    let total = |layout: &SlotLayout| layout.sizes.iter().cloned().fold(Dim::zero(), |sum, size| sum + size);
    let (with, without) = (total(&shared.1), total(&apart.1));
    if with != without && bounds.le(&without, &with) { apart } else { shared }
}

fn place(values: &[Lifetime], bounds: &Bounds, in_place: bool) -> (Vec<u32>, SlotLayout) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|i| (values[*i].live.0, *i));
    let mut slots: Vec<(Dim, u32)> = Vec::new();
    let mut of = vec![0u32; values.len()];
    let mut placed = vec![false; values.len()];
    let mut taken: std::collections::HashSet<(usize, u32)> = std::collections::HashSet::new();
    for i in order {
        let v = &values[i];
        let dies_here = |o: &usize| {
            let other = values.get(*o)?;
            let slot = of[*o] as usize;
            let held = slots.get(slot).is_some_and(|s| s.1 == other.live.1);
            (*o != i && placed[*o] && held && other.live.1 == v.live.0 && other.size == v.size).then_some(slot)
        };
        let over = v.over.iter().filter(|_| in_place).find_map(dies_here).filter(|k| !taken.contains(&(*k, v.live.0)));
        placed[i] = true;
        if let Some(k) = over {
            taken.insert((k, v.live.0));
            slots[k].1 = v.live.1;
            of[i] = k as u32;
            continue;
        }
        let free = |s: &(Dim, u32)| s.1 < v.live.0;
        let same = slots.iter().position(|s| free(s) && s.0 == v.size);
        let larger = || slots.iter().position(|s| free(s) && bounds.le(&v.size, &s.0));
        let smaller = || slots.iter().position(|s| free(s) && bounds.le(&s.0, &v.size));
        match same.or_else(larger).or_else(smaller) {
            Some(k) => {
                if bounds.le(&slots[k].0, &v.size) {
                    slots[k].0 = v.size.clone();
                }
                slots[k].1 = v.live.1;
                of[i] = k as u32;
            }
            None => {
                of[i] = slots.len() as u32;
                slots.push((v.size.clone(), v.live.1));
            }
        }
    }
    (of, SlotLayout { sizes: slots.into_iter().map(|s| s.0).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(size: &str, a: u32, b: u32) -> Lifetime {
        Lifetime { size: size.parse().unwrap(), live: (a, b), over: Vec::new() }
    }

    #[test]
    fn values_alive_together_never_share() {
        let values = [v("B*64", 0, 2), v("B*64", 1, 3), v("B*64", 3, 4), v("B*64", 4, 5), v("B*256", 5, 6)];
        let (of, layout) = assign(&values, &Bounds::new());
        for (i, a) in values.iter().enumerate() {
            for (j, b) in values.iter().enumerate().skip(i + 1) {
                let overlap = a.live.0 <= b.live.1 && b.live.0 <= a.live.1;
                assert!(!overlap || of[i] != of[j], "{i} and {j}");
            }
        }
        assert_eq!(layout.sizes.len(), 2);
        assert!(layout.sizes.contains(&"256*B".parse().unwrap()));
    }
    #[test]
    fn a_value_takes_the_place_of_an_input_that_dies_and_is_as_large() {
        let mut values = [v("B*64", 0, 1), v("B*64", 0, 2), v("B*64", 1, 3), v("B*32", 2, 3)];
        values[2].over = vec![0, 1];
        values[3].over = vec![1];
        let (of, layout) = assign(&values, &Bounds::new());
        assert_eq!((of[2], layout.sizes.len()), (of[0], 3));
        assert_ne!(of[3], of[1], "they differ in size");
        values[2].over = vec![1];
        assert_ne!(assign(&values, &Bounds::new()).0[2], of[1], "it is read again later");
    }
    #[test]
    fn sizes_that_do_not_compare_keep_apart() {
        let (of, _) = assign(&[v("B*64", 0, 1), v("S*3", 2, 3)], &Bounds::new());
        assert_ne!(of[0], of[1]);
    }
}
