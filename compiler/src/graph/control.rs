//! Nested graphs: loops over layers, predicated rows, early exits. Not to be confused with fusion's regions.

use super::Graph;
use frit_kernels::dim::Dim;

/// A nested graph and how it runs. Operands of the control node are bound to the body's inputs in order; its result is
/// the body's first output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// The body runs `trips` times; its first output becomes its first input of the next trip, all other inputs stay,
    /// but for those in `per_trip`.
    Loop {
        /// How often.
        trips: Dim,
        /// Body inputs (by index) that are stacks `[trips, …]`, of which each trip sees its own entry.
        per_trip: Vec<usize>,
        /// What runs.
        body: Box<BodyGraph>,
    },
    /// The body runs for the rows whose entry of its last input (Bool) is true; other rows keep the first input.
    Predicated {
        /// What runs.
        body: Box<BodyGraph>,
    },
    /// Rows whose entry of the last input (Bool) is true leave the stack here with the first input as their result.
    Exit {
        /// The layer behind which the exit lies.
        after_layer: u32,
        /// What the others go on with.
        body: Box<BodyGraph>,
    },
}

/// A graph nested in a node, compared by its text.
#[derive(Clone, Debug)]
pub struct BodyGraph(pub Graph);

impl BodyGraph {
    fn key(&self) -> String {
        super::text::print(&self.0)
    }
}
impl PartialEq for BodyGraph {
    fn eq(&self, o: &Self) -> bool {
        self.key() == o.key()
    }
}
impl Eq for BodyGraph {}
impl std::hash::Hash for BodyGraph {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        self.key().hash(h);
    }
}

impl Control {
    /// The nested graph.
    pub fn body(&self) -> &Graph {
        match self {
            Control::Loop { body, .. } | Control::Predicated { body } | Control::Exit { body, .. } => &body.0,
        }
    }
}
