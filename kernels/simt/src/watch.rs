//! What is known of each word where threads are ordered one by one, by `mbarrier`s or by barriers of some lanes of a warp,
//! beyond its shadow: every access since the last write; and stores that asynchronous reads do not see yet.

use crate::report::ViolationKind;
use crate::shadow::Order;
use rustc_hash::FxHashMap;

/// The last access of a kind by one thread to bytes of a word.
#[derive(Debug)]
struct Touch {
    thread: u32,
    /// Segment of time.
    at: u32,
    /// Bit mask.
    bytes: u8,
    write: bool,
    atomic: bool,
}

/// Words of one segment.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Accesses to a word from its last write that was not atomic on.
    touches: FxHashMap<usize, Vec<Touch>>,
    /// The thread that stored a word last, and the segment of time of its proxy fence behind that.
    stored: FxHashMap<usize, (u32, Option<u32>)>,
    /// Words behind a thread's last proxy fence.
    unfenced: FxHashMap<u32, Vec<usize>>,
}

impl Watch {
    /// An access to bytes of a word, and its race with an earlier one.
    pub(crate) fn touch(
        &mut self,
        (word, bytes): (usize, u8),
        o: &Order<'_>,
        write: bool,
        atomic: bool,
    ) -> Option<ViolationKind> {
        let all = self.touches.entry(word).or_default();
        let meets = |t: &Touch| t.bytes & bytes != 0 && (t.write || write) && !(t.atomic && atomic);
        let race = all.iter().find(|t| meets(t) && !o.behind(t.at, t.thread));
        let race = race.map(|t| ViolationKind::Race { other: Some(t.thread), write_write: t.write && write });
        if write && !atomic {
            // What comes behind this write comes behind all that this write does.
            all.retain_mut(|t| {
                t.bytes &= !bytes;
                t.bytes != 0
            });
            self.stored.remove(&word);
        }
        let same = |t: &&mut Touch| (t.thread, t.bytes, t.write, t.atomic) == (o.thread, bytes, write, atomic);
        match all.iter_mut().find(same) {
            Some(t) => t.at = o.now,
            None => all.push(Touch { thread: o.thread, at: o.now, bytes, write, atomic }),
        }
        race
    }
    /// A copy under way writes a word: its order is the copy's.
    pub(crate) fn leave(&mut self, word: usize) {
        self.touches.remove(&word);
        self.stored.remove(&word);
    }
    /// An instruction of a thread stored a word.
    pub(crate) fn stored(&mut self, word: usize, thread: u32) {
        self.stored.insert(word, (thread, None));
        self.unfenced.entry(thread).or_default().push(word);
    }
    /// `fence.proxy.async` of a thread in segment `now` of time.
    pub(crate) fn publish(&mut self, thread: u32, now: u32) {
        for word in self.unfenced.remove(&thread).unwrap_or_default() {
            if let Some((by, fenced @ None)) = self.stored.get_mut(&word)
                && *by == thread
            {
                *fenced = Some(now);
            }
        }
    }
    /// Whether an asynchronous read misses the last store to a word: no proxy fence of the thread that stored it comes
    /// before the read for certain.
    pub(crate) fn is_unseen(&self, word: usize, read: &Order<'_>) -> bool {
        let missed = |(thread, fenced): &(u32, Option<u32>)| fenced.is_none_or(|at| !read.behind(at, *thread));
        self.stored.get(&word).is_some_and(missed)
    }
    /// The workgroup ends.
    pub(crate) fn reset(&mut self) {
        self.touches.clear();
        self.stored.clear();
        self.unfenced.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approx::mix;
    use crate::shadow::Clock;
    use rustc_hash::FxHashSet;

    /// An access as a naive model keeps it, with its number.
    struct Access {
        number: u64,
        thread: u32,
        bytes: u8,
        write: bool,
        atomic: bool,
    }

    fn races(a: &Access, b: &Access) -> bool {
        a.thread != b.thread && a.bytes & b.bytes != 0 && (a.write || b.write) && !(a.atomic && b.atomic)
    }

    /// Threads of two warps, some of which meet now and then: up to the first race on a word, it finds exactly what all
    /// pairs of accesses tell of which neither is known to the other.
    #[test]
    fn the_first_race_is_found_whoever_met() {
        const THREADS: [u32; 5] = [0, 1, 2, 3, 32];
        let (mut racing, mut sound) = (0, 0);
        for seed in 0..40_000u64 {
            let mut clock = Clock::new(32);
            clock.enter_group(64);
            let mut watch = Watch::default();
            let mut known: FxHashMap<u32, FxHashSet<u64>> = FxHashMap::default();
            let mut all: Vec<Access> = Vec::new();
            let mut raced = false;
            for number in 0..16 {
                let r = mix(seed, number);
                let kind = r % 8;
                if kind < 4 {
                    let part: Vec<u32> = THREADS[..4].iter().copied().filter(|t| r >> (8 + t) & 1 == 1).collect();
                    let met: Vec<u32> = match kind {
                        0 => THREADS.to_vec(),
                        1 => THREADS[..4].to_vec(),
                        _ => part,
                    };
                    match kind {
                        0 => clock.barrier(true, true),
                        1 => clock.meet(&Vec::from_iter(0..32), true),
                        _ => clock.meet(&met, false),
                    }
                    let union = met.iter().filter_map(|t| known.get(t)).flatten().copied().collect::<FxHashSet<u64>>();
                    met.iter().for_each(|t| drop(known.insert(*t, union.clone())));
                    continue;
                }
                let thread = THREADS[(r >> 8) as usize % 5];
                let bytes = [15, 3, 12, 4][(r >> 16) as usize % 4];
                let new = Access { number, thread, bytes, write: r >> 24 & 3 == 0, atomic: r >> 32 & 3 == 0 };
                let own = known.entry(thread).or_default();
                let want = all.iter().any(|a| !own.contains(&a.number) && races(a, &new));
                let got = watch.touch((5, bytes), &clock.order(thread, true), new.write, new.atomic);
                assert_eq!(got.is_some(), want, "{seed} {number} {got:?}");
                own.insert(number);
                if want {
                    raced = true;
                    break;
                }
                all.push(new);
            }
            if raced { racing += 1 } else { sound += 1 }
        }
        assert!(racing > 5_000 && sound > 5_000, "{racing} {sound}");
    }
}
