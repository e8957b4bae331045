//! Memory in segments, each with its shadow.

use crate::launch::{Argument, Launch};
use crate::op::{Elem, Origin, Program};
use crate::report::ViolationKind;
use crate::shadow::{ASYNC, Cell, Clock, Order};
use crate::watch::Watch;
use rustc_hash::FxHashMap;

/// Bits of an address below the number of its buffer.
pub(crate) const OFFSET_BITS: u32 = 40;

/// Which kind of memory a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Global,
    Shared,
    Local,
}

/// One buffer, workgroup variable, or the local memory of all threads of a workgroup.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) words: Vec<u32>,
    /// Size in bytes; of one thread for local memory.
    pub(crate) bytes: u64,
    pub(crate) writable: bool,
    /// Empty where nothing has to be watched.
    shadow: Vec<Cell>,
    /// Cells of single bytes, for words accessed in parts.
    parts: FxHashMap<usize, [Cell; 4]>,
    /// Destinations of copies under way, with the issuing thread.
    pub(crate) pending: FxHashMap<usize, u32>,
    /// Where threads are ordered one by one.
    pub(crate) watch: Watch,
}

/// All memory of a launch.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) segments: Vec<Segment>,
    numbers: FxHashMap<u64, usize>,
}

/// The number of a segment in addresses. Numbers are far apart, so that adding 2⁴⁰ once does not lead to a neighbour.
fn number(segment: usize) -> u64 {
    (segment as u64 + 1) * 40_503 % (1 << 23)
}

/// The 64-bit address of a segment's first byte.
pub(crate) fn base_address(segment: usize) -> u64 {
    number(segment) << OFFSET_BITS
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    let whole = bytes.chunks_exact(4);
    let rest = whole.remainder();
    let mut words: Vec<u32> = whole.map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u32::from(*b))).collect();
    if !rest.is_empty() {
        words.push(rest.iter().rev().fold(0, |w, b| w << 8 | u32::from(*b)));
    }
    words
}

impl Memory {
    /// Memory of a launch; the arguments were checked against the program.
    pub(crate) fn new(program: &Program, launch: &Launch<'_>, zeroed: bool) -> Memory {
        let threads = program.workgroup.iter().map(|n| *n as usize).product::<usize>().next_multiple_of(32);
        let mut memory = Memory::default();
        for (i, s) in program.segments.iter().enumerate() {
            memory.numbers.insert(number(i), i);
            let fresh = |kind, words: usize, initialised| Segment {
                name: s.name.clone(),
                kind,
                words: vec![0; words],
                bytes: u64::from(s.bytes),
                writable: true,
                shadow: vec![Cell::new(initialised, true, true); words],
                parts: FxHashMap::default(),
                pending: FxHashMap::default(),
                watch: Watch::default(),
            };
            memory.segments.push(match s.origin {
                Origin::Argument(a) => argument(launch.arguments.get(a), s.writable),
                Origin::Workgroup => {
                    let mut shared = fresh(Kind::Shared, (s.bytes as usize).div_ceil(4), zeroed);
                    shared.forbid(&s.holes);
                    shared
                }
                Origin::Local => fresh(Kind::Local, (s.bytes as usize).div_ceil(4) * threads, false),
            });
        }
        memory
    }
    /// The segment of a 64-bit address.
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        self.numbers.get(&(address >> OFFSET_BITS)).copied()
    }
    /// Forgets what a workgroup left in zeroed workgroup memory.
    pub(crate) fn zero_shared(&mut self) {
        for s in self.segments.iter_mut().filter(|s| s.kind == Kind::Shared) {
            s.words.fill(0);
            s.shadow.iter_mut().for_each(Cell::zero);
            s.parts.clear();
        }
    }
    /// Content of a segment.
    pub(crate) fn bytes(&self, segment: usize) -> Vec<u8> {
        let Some(s) = self.segments.get(segment) else { return Vec::new() };
        let mut bytes: Vec<u8> = s.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.truncate(usize::try_from(s.bytes).unwrap_or(usize::MAX));
        bytes
    }
}

fn argument(a: Option<&Argument>, writable: bool) -> Segment {
    let (name, bytes, initialised, allowed, regions) = match a {
        Some(Argument::Buffer(b)) => {
            (b.name.clone(), b.bytes.as_slice(), b.initialised, b.writable, b.regions.as_slice())
        }
        Some(Argument::Texture(t)) => (t.name.clone(), t.bytes.as_slice(), true, false, &[] as &[_]),
        Some(Argument::Bytes(b)) => ("uniform".to_owned(), b.as_slice(), true, false, &[] as &[_]),
        Some(Argument::TensorMap(_)) | None => (String::new(), &[] as &[u8], true, false, &[] as &[_]),
    };
    let words = words_of(bytes);
    let writable = writable && allowed;
    let mut shadow = Vec::new();
    if !regions.is_empty() {
        shadow = vec![Cell::new(false, false, false); words.len()];
        for r in regions {
            let end = usize::try_from(r.end.div_ceil(4)).unwrap_or(usize::MAX).min(words.len());
            let start = usize::try_from(r.start / 4).unwrap_or(usize::MAX).min(end);
            if let Some(cells) = shadow.get_mut(start..end) {
                cells.fill(Cell::new(r.initialised, true, r.writable && writable));
            }
        }
    } else if writable || !initialised {
        shadow = vec![Cell::new(initialised, true, writable); words.len()];
    }
    Segment {
        name,
        kind: Kind::Global,
        bytes: bytes.len() as u64,
        words,
        writable,
        shadow,
        parts: FxHashMap::default(),
        pending: FxHashMap::default(),
        watch: Watch::default(),
    }
}

impl Segment {
    fn forbid(&mut self, holes: &[(u32, u32)]) {
        for (start, end) in holes {
            if let Some(cells) = self.shadow.get_mut(start.div_ceil(4) as usize..*end as usize / 4) {
                cells.fill(Cell::new(false, false, false));
            }
        }
    }
    /// Checks a read of `size` aligned bytes at `offset`.
    #[inline]
    pub(crate) fn check_read(
        &mut self,
        offset: u64,
        size: u32,
        clock: &Clock,
        thread: u32,
        atomic: bool,
    ) -> Option<ViolationKind> {
        if offset.checked_add(u64::from(size)).is_none_or(|end| end > self.bytes) {
            return Some(ViolationKind::ReadOutOfBounds);
        }
        if self.shadow.is_empty() {
            return None;
        }
        let order = clock.order(thread, self.kind != Kind::Global);
        let fault = self.check(offset, size, thread, |c| c.read(&order, atomic));
        if self.is_watched(clock) { self.watched(fault, (offset, size), &order, false, atomic) } else { fault }
    }
    fn is_watched(&self, clock: &Clock) -> bool {
        match self.kind {
            Kind::Shared => clock.has_phases || clock.has_parts,
            Kind::Global => clock.has_parts,
            Kind::Local => false,
        }
    }
    /// A fault of the shadow's, but the races with threads of the workgroup that the watch finds.
    fn watched(
        &mut self,
        fault: Option<ViolationKind>,
        (offset, size): (u64, u32),
        order: &Order<'_>,
        write: bool,
        atomic: bool,
    ) -> Option<ViolationKind> {
        let mut race = None;
        for word in (offset / 4)..(offset + u64::from(size)).div_ceil(4) {
            let bytes = if size >= 4 { 15 } else { ((1 << size) - 1) << (offset % 4) };
            race = race.or(self.watch.touch((word as usize, bytes), order, write, atomic));
        }
        match fault {
            None | Some(ViolationKind::Race { other: Some(_), .. }) => race,
            other => other,
        }
    }
    /// A read that was checked takes the bytes for constant.
    pub(crate) fn read_as_constant(&mut self, offset: u64, size: u32, thread: u32) -> Option<ViolationKind> {
        if self.shadow.is_empty() { None } else { self.check(offset, size, thread, Cell::read_as_constant) }
    }
    /// Checks a write of `size` aligned bytes at `offset`.
    #[inline]
    pub(crate) fn check_write(
        &mut self,
        offset: u64,
        size: u32,
        clock: &Clock,
        thread: u32,
        atomic: bool,
    ) -> Option<ViolationKind> {
        if !self.writable || offset.checked_add(u64::from(size)).is_none_or(|end| end > self.bytes) {
            return Some(ViolationKind::WriteOutOfBounds);
        }
        let order = clock.order(thread, self.kind != Kind::Global);
        let fault = self.check(offset, size, thread, |c| c.write(&order, atomic));
        if self.is_watched(clock) { self.watched(fault, (offset, size), &order, true, atomic) } else { fault }
    }
    #[inline]
    fn check(
        &mut self,
        offset: u64,
        size: u32,
        thread: u32,
        mut f: impl FnMut(&mut Cell) -> Option<ViolationKind>,
    ) -> Option<ViolationKind> {
        let first = self.place(offset, thread);
        let mut fault = None;
        for word in first..first + size.div_ceil(4) as usize {
            let Some(cell) = self.shadow.get_mut(word) else { continue };
            if !self.pending.is_empty() && self.pending.contains_key(&word) {
                return Some(ViolationKind::PendingCopy);
            }
            if size >= 4 && !cell.is_split() {
                fault = fault.or(f(cell));
                continue;
            }
            if !cell.is_split() {
                self.parts.insert(word, [*cell; 4]);
                cell.split();
            }
            let (from, len) = if size >= 4 { (0, 4) } else { ((offset % 4) as usize, size as usize) };
            if let Some(parts) = self.parts.get_mut(&word) {
                for c in parts.iter_mut().skip(from).take(len) {
                    fault = fault.or(f(c));
                }
            }
        }
        match fault {
            Some(ViolationKind::Race { other: Some(ASYNC), .. }) => Some(ViolationKind::PendingCopy),
            other => other,
        }
    }
    /// A copy is to write the word at `offset`.
    pub(crate) fn await_copy(&mut self, offset: u64, thread: u32) {
        let place = self.place(offset, thread);
        self.pending.insert(place, thread);
        self.watch.leave(place);
    }
    /// A tensor copy wrote the word at `offset`, and someone knows.
    pub(crate) fn arrived(&mut self, offset: u64, clock: &Clock) {
        let place = self.place(offset, ASYNC);
        self.pending.remove(&place);
        if let Some(cell) = self.shadow.get_mut(place) {
            let _ = cell.write(&clock.order(ASYNC, true), false);
        }
    }
    /// The word that holds a byte.
    #[inline]
    pub(crate) fn place(&self, offset: u64, thread: u32) -> usize {
        let own = if self.kind == Kind::Local { thread as usize * (self.bytes as usize).div_ceil(4) } else { 0 };
        own + (offset / 4) as usize
    }
    /// The element at `offset`, which was checked; low word and high word.
    #[inline]
    pub(crate) fn get(&self, offset: u64, elem: Elem, thread: u32) -> (u32, u32) {
        let at = self.place(offset, thread);
        let word = self.words.get(at).copied().unwrap_or(0);
        let part = word >> (8 * (offset % 4) as u32);
        match elem {
            Elem::B32 => (word, 0),
            Elem::B64 => (word, self.words.get(at + 1).copied().unwrap_or(0)),
            Elem::U8 => (part & 0xff, 0),
            Elem::S8 => (part as u8 as i8 as i32 as u32, 0),
            Elem::U16 => (part & 0xffff, 0),
            Elem::S16 => (part as u16 as i16 as i32 as u32, 0),
        }
    }
    /// Stores an element at `offset`, which was checked.
    #[inline]
    pub(crate) fn set(&mut self, offset: u64, elem: Elem, thread: u32, low: u32, high: u32) {
        let at = self.place(offset, thread);
        if elem == Elem::B64
            && let Some(w) = self.words.get_mut(at + 1)
        {
            *w = high;
        }
        let Some(word) = self.words.get_mut(at) else { return };
        let shift = 8 * (offset % 4) as u32;
        let mask = match elem {
            Elem::B32 | Elem::B64 => u32::MAX,
            Elem::U8 | Elem::S8 => 0xff << shift,
            Elem::U16 | Elem::S16 => 0xffff << shift,
        };
        let value = if mask == u32::MAX { low } else { low << shift };
        *word = *word & !mask | value & mask;
    }
}
