//! What is known of each word of workgroup memory where `mbarrier`s are in use, beyond its shadow: every reader since the
//! last write, since phases order threads one by one, and stores that asynchronous reads do not see yet.

use crate::shadow::Order;
use rustc_hash::FxHashMap;

/// Words of one segment.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Threads that read a word since it was written, and when they did last.
    readers: FxHashMap<usize, Vec<(u32, u32)>>,
    /// The thread whose store to a word lies behind its last proxy fence.
    unseen: FxHashMap<usize, u32>,
    /// The same by thread.
    stores: FxHashMap<u32, Vec<usize>>,
}

impl Watch {
    /// A read of a word in segment `now` of time.
    pub(crate) fn read(&mut self, word: usize, thread: u32, now: u32) {
        let all = self.readers.entry(word).or_default();
        match all.iter_mut().find(|(t, _)| *t == thread) {
            Some((_, at)) => *at = now,
            None => all.push((thread, now)),
        }
    }
    /// The reader of a word that a write does not lie behind.
    pub(crate) fn reader_in_front(&self, word: usize, write: &Order<'_>) -> Option<u32> {
        let all = self.readers.get(&word)?;
        all.iter().find(|(thread, at)| !write.behind(*at, *thread)).map(|(thread, _)| *thread)
    }
    /// A word was written.
    pub(crate) fn written(&mut self, word: usize) {
        self.readers.remove(&word);
        self.unseen.remove(&word);
    }
    /// An instruction of a thread stored a word.
    pub(crate) fn stored(&mut self, word: usize, thread: u32) {
        if self.unseen.insert(word, thread) != Some(thread) {
            self.stores.entry(thread).or_default().push(word);
        }
    }
    /// `fence.proxy.async` of a thread.
    pub(crate) fn publish(&mut self, thread: u32) {
        for word in self.stores.remove(&thread).unwrap_or_default() {
            if self.unseen.get(&word) == Some(&thread) {
                self.unseen.remove(&word);
            }
        }
    }
    /// Whether asynchronous reads miss the last store to a word.
    pub(crate) fn is_unseen(&self, word: usize) -> bool {
        self.unseen.contains_key(&word)
    }
    /// The workgroup ends.
    pub(crate) fn reset(&mut self) {
        self.readers.clear();
        self.unseen.clear();
        self.stores.clear();
    }
}
