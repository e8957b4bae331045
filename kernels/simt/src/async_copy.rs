//! Copies from global to shared memory that complete when they are waited for.
//!
//! Until the issuing thread has waited for its group, the destination is *pending*: any access to it is a violation.
//! From then on it counts as written by that thread, so other threads need a barrier.

use crate::machine::{Machine, Warp};
use crate::memory::{Kind, Memory};
use crate::op::{Addr, Elem, LANES, Reg};
use crate::report::ViolationKind;
use std::collections::VecDeque;

/// Copies of one thread.
#[derive(Debug, Default)]
struct Queue {
    open: Vec<(usize, u64)>,
    groups: VecDeque<Vec<(usize, u64)>>,
}

/// Copies of all threads of a workgroup. A destination word is (segment, byte offset).
#[derive(Debug, Default)]
pub(crate) struct Copies {
    threads: Vec<Queue>,
}

impl Copies {
    /// Forgets the copies of the last workgroup.
    pub(crate) fn reset(&mut self, memory: &mut Memory) {
        if self.threads.is_empty() {
            return;
        }
        self.threads.clear();
        memory.segments.iter_mut().for_each(|s| s.pending.clear());
    }
    fn of(&mut self, thread: usize) -> Option<&mut Queue> {
        if self.threads.len() <= thread {
            self.threads.resize_with(thread + 1, Queue::default);
        }
        self.threads.get_mut(thread)
    }
}

impl Machine<'_> {
    pub(crate) fn async_copy(&mut self, w: &Warp, (to, source): (Addr, Addr), bytes: u8, from: Option<Reg>, mask: u32) {
        let size = u32::from(bytes);
        let first = w.index * LANES as u32;
        let kept = from.map_or([size; LANES], |r| *w.row(r));
        let mut content = vec![[0u32; 4]; LANES];
        let mut reads = 0;
        for (i, k) in kept.iter().enumerate() {
            reads |= u32::from(*k > 0) << i;
        }
        for mut p in self.places(w, &source, mask & reads) {
            // Only the bytes that are kept are read.
            for partial in distinct(&kept, p.mask) {
                let lanes = (0..LANES).filter(|i| kept[*i].min(size) == partial).fold(0, |m, i| m | 1 << i);
                let part = crate::access::Places { mask: p.mask & lanes, ..p };
                let good = self.permitted(w, &part, partial.min(size).max(1), size, false, false);
                p.mask &= good | !lanes;
            }
            self.count_access(&p, size, false);
            let Some(s) = self.memory.segments.get(p.segment) else { continue };
            for i in (0..LANES).filter(|i| p.mask >> i & 1 == 1) {
                for (k, word) in content[i].iter_mut().enumerate().take(size as usize / 4) {
                    let left = kept[i].saturating_sub(4 * k as u32);
                    let value = if left == 0 { 0 } else { s.get(p.offsets[i] + 4 * k as u64, Elem::B32, 0).0 };
                    *word = if left >= 4 { value } else { value & ((1u32 << (8 * left)) - 1) };
                }
            }
        }
        for p in self.places(w, &to, mask) {
            let good = self.permitted(w, &p, size, size, true, false);
            self.count_access(&p, size, true);
            for i in (0..LANES).filter(|i| good >> i & 1 == 1) {
                let thread = first + i as u32;
                for k in 0..u64::from(size / 4) {
                    let at = p.offsets[i] + 4 * k;
                    let Some(s) = self.memory.segments.get_mut(p.segment) else { continue };
                    s.set(at, Elem::B32, thread, content[i][k as usize], 0);
                    let place = s.place(at, thread);
                    s.pending.insert(place, thread);
                    if let Some(q) = self.copies.of(thread as usize) {
                        q.open.push((p.segment, at));
                    }
                }
            }
        }
    }

    pub(crate) fn async_commit(&mut self, w: &Warp, mask: u32) {
        for i in (0..LANES).filter(|i| mask >> i & 1 == 1) {
            if let Some(q) = self.copies.of(w.index as usize * LANES + i) {
                let group = std::mem::take(&mut q.open);
                q.groups.push_back(group);
            }
        }
    }

    pub(crate) fn async_wait(&mut self, w: &Warp, pending: u32, mask: u32) {
        for i in (0..LANES).filter(|i| mask >> i & 1 == 1) {
            let thread = w.index as usize * LANES + i;
            let Some(q) = self.copies.of(thread) else { continue };
            let mut landed = Vec::new();
            if pending == u32::MAX {
                landed.append(&mut q.open);
            }
            let stay = if pending == u32::MAX { 0 } else { pending as usize };
            while q.groups.len() > stay {
                landed.extend(q.groups.pop_front().unwrap_or_default());
            }
            for (segment, at) in landed {
                let Some(s) = self.memory.segments.get_mut(segment) else { continue };
                let place = s.place(at, thread as u32);
                s.pending.remove(&place);
                let fault = s.check_write(at, 4, &self.clock, thread as u32, false);
                if self.clock.has_phases && s.kind == Kind::Shared {
                    // What has landed is a store of this thread like any other: products do not see it yet.
                    s.watch.stored((at / 4) as usize, thread as u32);
                }
                if let Some(kind @ ViolationKind::Race { .. }) = fault {
                    self.violate(w, 1 << i, kind, Some((segment, at)));
                }
            }
        }
    }
}

fn distinct(kept: &[u32; LANES], mask: u32) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    for (i, k) in kept.iter().enumerate() {
        if mask >> i & 1 == 1 && *k > 0 && !found.contains(k) {
            found.push(*k);
        }
    }
    found
}
