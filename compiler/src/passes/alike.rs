//! A number for what is computed at places of a graph, the same wherever the same is computed: translation validation
//! checks each once. Weights and cache slots count by where they occur, so that equal layers are alike.

use crate::graph::{Graph, KvSlotId, Op, Tables, ValueId, WeightData, WeightId};
use frit_plan::KvPart;
use rustc_hash::{FxHashMap, FxHasher};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

/// Whether what a value is computed from belongs to the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// It does.
    Follow,
    /// It does not, nor which value it is.
    Stop,
    /// It does not, and the value itself belongs to it.
    Name,
}

/// The number of one thing that is checked.
pub struct Alike<'a> {
    graph: &'a Graph,
    tables: &'a Tables,
    hasher: FxHasher,
    values: FxHashMap<ValueId, usize>,
    weights: FxHashMap<WeightId, usize>,
    slots: FxHashMap<KvSlotId, usize>,
}

impl<'a> Alike<'a> {
    /// Begins with `tag`, which tells kinds of things apart.
    pub fn new(graph: &'a Graph, tables: &'a Tables, tag: impl Hash) -> Self {
        let mut hasher = FxHasher::default();
        tag.hash(&mut hasher);
        Alike {
            graph,
            tables,
            hasher,
            values: FxHashMap::default(),
            weights: FxHashMap::default(),
            slots: FxHashMap::default(),
        }
    }
    /// Adds something that is the same wherever it occurs.
    pub fn add(&mut self, what: impl Hash) {
        what.hash(&mut self.hasher);
    }
    /// Adds a weight: the order in which it was met, and its values where they are part of the graph.
    pub fn weight(&mut self, w: WeightId) {
        let known = self.tables.weight_info(w).is_some_and(|i| matches!(i.data, WeightData::Inline(_)));
        let next = self.weights.len();
        (known.then_some(w.0), *self.weights.entry(w).or_insert(next)).hash(&mut self.hasher);
    }
    /// Adds a part of a cache slot.
    pub fn slot(&mut self, slot: KvSlotId, part: KvPart) {
        let next = self.slots.len();
        let info = self.tables.kv_slots.get(slot.0 as usize).map(|i| (i.heads, i.k_dim, i.v_dim, &i.len));
        (*self.slots.entry(slot).or_insert(next), part, info).hash(&mut self.hasher);
    }
    /// Adds a value and what it is computed from, as far as `depth` of a value and its distance says.
    pub fn value(&mut self, root: ValueId, depth: &dyn Fn(ValueId, usize) -> Depth) {
        let mut queue = VecDeque::new();
        if self.met(root) {
            queue.push_back((root, 0));
        }
        while let Some((v, d)) = queue.pop_front() {
            let (graph, here) = (self.graph, depth(v, d));
            let node = graph.node(v);
            node.ty.hash(&mut self.hasher);
            match (&node.op, here) {
                (Op::Weight(w), _) => self.weight(*w),
                (op, _) if op.is_source() && !matches!(op, Op::KvLoad { .. }) => op.hash(&mut self.hasher),
                (_, Depth::Stop) => {}
                (_, Depth::Name) => v.hash(&mut self.hasher),
                (op, Depth::Follow) => self.operation(op),
            }
            if here == Depth::Follow {
                for o in graph.operands(v) {
                    if self.met(o) {
                        queue.push_back((o, d + 1));
                    }
                }
            }
        }
    }
    /// Adds the number of a value; whether it is met for the first time.
    fn met(&mut self, v: ValueId) -> bool {
        let next = self.values.len();
        let n = *self.values.entry(v).or_insert(next);
        n.hash(&mut self.hasher);
        n == next
    }
    fn operation(&mut self, op: &Op) {
        match op {
            Op::KvAppend { slot, part, past } => {
                (0u8, past).hash(&mut self.hasher);
                self.slot(*slot, *part);
            }
            Op::KvRead { slot, part } => {
                1u8.hash(&mut self.hasher);
                self.slot(*slot, *part);
            }
            Op::KvLoad { slot, part } => {
                2u8.hash(&mut self.hasher);
                self.slot(*slot, *part);
            }
            op => op.hash(&mut self.hasher),
        }
    }
    /// The number.
    pub fn finish(&self) -> u64 {
        self.hasher.finish()
    }
}
