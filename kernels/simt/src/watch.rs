//! What is known of each word of workgroup memory where `mbarrier`s are in use, beyond its shadow: every reader since the
//! last write, since phases order threads one by one, and stores that asynchronous reads do not see yet.

use crate::shadow::Order;
use rustc_hash::FxHashMap;

/// Words of one segment.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Threads that read a word since it was written, and when they did last.
    readers: FxHashMap<usize, Vec<(u32, u32)>>,
    /// The thread that stored a word last, and the segment of time of its proxy fence behind that.
    stored: FxHashMap<usize, (u32, Option<u32>)>,
    /// Words behind a thread's last proxy fence.
    unfenced: FxHashMap<u32, Vec<usize>>,
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
        self.readers.clear();
        self.stored.clear();
        self.unfenced.clear();
    }
}
