//! The only editor of a graph. Each edit belongs to a named rule, is counted, costs fuel and keeps types.

use super::control::Control;
use super::verify::same_type;
use super::{Graph, GraphError, Node, Op, TensorType, ValueId};
use crate::numeric::ProofClass;
use frit_kernels::dim::{Bounds, Dim};
use indexmap::IndexMap;
use std::collections::HashSet;

/// How many rewrites may still be applied; for finding the first one that breaks something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Fuel(Option<u64>);

impl Fuel {
    /// As many as there are.
    pub const UNLIMITED: Fuel = Fuel(None);
    /// The first `n`.
    pub fn limited(n: u64) -> Self {
        Fuel(Some(n))
    }
    /// Whether none is left.
    pub fn is_spent(self) -> bool {
        self.0 == Some(0)
    }
    fn take(&mut self) -> bool {
        match &mut self.0 {
            None => true,
            Some(0) => false,
            Some(n) => {
                *n -= 1;
                true
            }
        }
    }
}

/// Which rules were applied how often, in order of first application, and the fuel left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Applications by rule.
    pub rules: IndexMap<&'static str, u64>,
    /// What may still be applied.
    pub fuel: Fuel,
}

impl Log {
    /// An empty log with that much fuel.
    pub fn with_fuel(fuel: Fuel) -> Self {
        Log { rules: IndexMap::new(), fuel }
    }
    /// Applications of one rule.
    pub fn count(&self, rule: &str) -> u64 {
        self.rules.get(rule).copied().unwrap_or(0)
    }
    /// Applications of all rules.
    pub fn total(&self) -> u64 {
        self.rules.values().sum()
    }
    fn spend(&mut self, rule: &'static str) -> bool {
        let taken = self.fuel.take();
        if taken {
            *self.rules.entry(rule).or_default() += 1;
        }
        taken
    }
}

/// Edits a graph in the name of one rule.
pub struct Editor<'a> {
    graph: &'a mut Graph,
    rule: &'static str,
    class: ProofClass,
    log: &'a mut Log,
    bounds: Bounds,
    added: HashSet<ValueId>,
}

impl<'a> Editor<'a> {
    /// An editor for one rewrite.
    pub fn new(graph: &'a mut Graph, rule: &'static str, log: &'a mut Log) -> Self {
        Editor { graph, rule, class: ProofClass::Bit, log, bounds: Bounds::new(), added: HashSet::new() }
    }
    /// Notes the class of the rule on what it makes.
    pub fn of_class(mut self, class: ProofClass) -> Self {
        self.class = class;
        self
    }
    /// Uses what is known of sizes when types are compared.
    pub fn with_bounds(mut self, bounds: &Bounds) -> Self {
        self.bounds = bounds.clone();
        self
    }
    /// The graph as it is now.
    pub fn graph(&self) -> &Graph {
        self.graph
    }
    /// Adds a node and infers its type.
    ///
    /// # Errors
    /// Operands that the operation does not take.
    pub fn add(&mut self, op: Op, inputs: &[ValueId], origin: &str) -> Result<ValueId, GraphError> {
        let v = self.graph.add(op, inputs, origin)?;
        self.added.insert(v);
        Ok(v)
    }
    /// Adds a source of a stated type (iota; weights and states of the tables).
    pub fn add_source(&mut self, op: Op, ty: TensorType, origin: &str) -> ValueId {
        let v = self.graph.push(op, &[], ty, origin);
        self.added.insert(v);
        v
    }
    /// Lets every use of `old`, but for uses by nodes that this editor added, use `new`, and removes what nothing uses
    /// any more. `false` when there is no fuel left; nothing is changed then.
    ///
    /// # Errors
    /// When the types differ.
    pub fn replace(&mut self, old: ValueId, new: ValueId) -> Result<bool, GraphError> {
        let (a, b) = (self.existing(old)?, self.existing(new)?);
        if !same_type(&a.ty, &b.ty, &self.bounds) {
            return Err(self.fault(old, format!("{} is replaced by {}", a.ty, b.ty)));
        }
        if old == new || !self.log.spend(self.rule) {
            self.prune(new);
            return Ok(false);
        }
        if self.added.contains(&new)
            && let Some(ty) = self.graph.get(old).map(|n| n.ty.clone())
            && let Some(n) = self.graph.node_mut(new)
            && !matches!(n.op, Op::Reshape(_) | Op::Broadcast(_))
        {
            n.ty = ty;
        }
        let mut marks = self.existing(old)?.rewrites.clone();
        if self.class > ProofClass::Bit {
            marks.push((self.rule, self.class));
            for v in self.added.clone() {
                self.mark(v, &[(self.rule, self.class)]);
            }
        }
        for user in self.graph.users(old) {
            if self.added.contains(&user) {
                continue;
            }
            for (port, o) in self.graph.operands(user).into_iter().enumerate() {
                if o == old {
                    self.graph.set_operand(user, port, new);
                }
            }
        }
        for o in &mut self.graph.outputs {
            if o.value == old {
                o.value = new;
            }
        }
        marks.extend(self.prune(old));
        self.mark(new, &marks);
        Ok(true)
    }
    fn mark(&mut self, v: ValueId, marks: &[(&'static str, ProofClass)]) {
        let Some(n) = self.graph.node_mut(v).filter(|n| !n.op.is_source()) else { return };
        for m in marks {
            if !n.rewrites.contains(m) {
                n.rewrites.push(*m);
            }
        }
    }
    /// Takes back a node that was added and not used.
    pub fn discard(&mut self, added: ValueId) {
        self.prune(added);
    }
    /// Removes `v` and what only it used, as far as nothing needs them; gives the rewrites that had made them.
    fn prune(&mut self, v: ValueId) -> Vec<(&'static str, ProofClass)> {
        let (mut stack, mut marks) = (vec![v], Vec::new());
        while let Some(v) = stack.pop() {
            let needed = self.graph.get(v).is_none_or(|n| matches!(n.op, Op::KvAppend { .. }))
                || !self.graph.users(v).is_empty()
                || self.graph.is_output(v)
                || self.graph.inputs.iter().any(|i| i.value == v);
            if !needed {
                stack.extend(self.graph.operands(v));
                marks.extend(self.graph.node(v).rewrites.iter().copied());
                self.graph.remove(v);
            }
        }
        marks
    }
    /// Replaces `old` by a new node. `None` when there is no fuel left.
    ///
    /// # Errors
    /// Operands that the operation does not take, or another type.
    pub fn replace_by(&mut self, old: ValueId, op: Op, inputs: &[ValueId]) -> Result<Option<ValueId>, GraphError> {
        if self.log.fuel.is_spent() {
            return Ok(None);
        }
        let origin = self.existing(old)?.origin.clone();
        let new = self.add(op, inputs, &origin)?;
        Ok(self.replace(old, new)?.then_some(new))
    }
    /// Lets one port of a node take another value of the same type.
    ///
    /// # Errors
    /// When the types differ or the port does not exist.
    pub fn set_operand(&mut self, v: ValueId, port: usize, new: ValueId) -> Result<bool, GraphError> {
        let old = self.graph.operands(v).get(port).copied();
        let old = old.ok_or_else(|| self.fault(v, format!("there is no port {port}")))?;
        let (a, b) = (self.existing(old)?, self.existing(new)?);
        if !same_type(&a.ty, &b.ty, &self.bounds) {
            return Err(self.fault(v, format!("{} at port {port} is replaced by {}", a.ty, b.ty)));
        }
        if old == new || !self.log.spend(self.rule) {
            return Ok(false);
        }
        self.graph.set_operand(v, port, new);
        self.prune(old);
        Ok(true)
    }
    /// Changes operation and type of nodes in place, all at once and as one rewrite: for passes that rename sizes.
    pub fn retype(&mut self, f: &mut dyn FnMut(&mut Op, &mut TensorType)) -> bool {
        if !self.log.spend(self.rule) {
            return false;
        }
        let all: Vec<ValueId> = self.graph.values().collect();
        for v in all {
            if let Some(n) = self.graph.node_mut(v) {
                f(&mut n.op, &mut n.ty);
            }
        }
        true
    }
    /// Removes nodes that neither outputs, nor inputs, nor effects depend on; gives their number.
    pub fn erase_dead(&mut self) -> usize {
        if self.log.fuel.is_spent() {
            return 0;
        }
        let live = self.graph.live();
        let dead: Vec<ValueId> = self.graph.values().filter(|v| !live.contains(v)).collect();
        if !dead.is_empty() {
            self.log.spend(self.rule);
        }
        for v in &dead {
            self.graph.remove(*v);
        }
        dead.len()
    }
    fn existing(&self, v: ValueId) -> Result<&Node, GraphError> {
        self.graph.get(v).ok_or_else(|| self.fault(v, "it does not exist".into()))
    }
    fn fault(&self, v: ValueId, fault: String) -> GraphError {
        let n = self.graph.node(v);
        GraphError { node: format!("rule {} at #{} {} ({})", self.rule, v.index(), n.op.name(), n.origin), fault }
    }
}

impl Op {
    /// Replaces every size expression among the attributes of this operation; nested graphs included.
    pub(crate) fn map_dims(&mut self, f: &dyn Fn(&Dim) -> Dim) {
        match self {
            Op::Reshape(s) | Op::Broadcast(s) => s.iter_mut().for_each(|d| *d = f(d)),
            Op::Iota { offset, .. } => *offset = f(offset),
            Op::KvAppend { past, .. } => *past = f(past),
            Op::Slice { start, len, .. } => {
                *start = f(start);
                *len = f(len);
            }
            Op::Attention(a) | Op::AttentionParts { attrs: a, .. } => a.causal = a.causal.as_ref().map(f),
            Op::Control(c) => {
                let body = match &mut **c {
                    Control::Loop { trips, body, .. } => {
                        *trips = f(trips);
                        body
                    }
                    Control::Predicated { body } | Control::Exit { body, .. } => body,
                };
                let g = &mut body.0;
                for v in g.values().collect::<Vec<_>>() {
                    if let Some(n) = g.node_mut(v) {
                        n.op.map_dims(f);
                        n.ty.shape.iter_mut().for_each(|d| *d = f(d));
                    }
                }
            }
            _ => {}
        }
    }
}

impl Graph {
    /// Nodes that outputs, declared inputs or effects depend on.
    pub(crate) fn live(&self) -> HashSet<ValueId> {
        let effects = self.values().filter(|v| matches!(self.op(*v), Op::KvAppend { .. }));
        let mut stack: Vec<ValueId> = effects.chain(self.inputs.iter().map(|i| i.value)).collect();
        stack.extend(self.outputs.iter().map(|o| o.value));
        let mut live = HashSet::new();
        while let Some(v) = stack.pop() {
            if live.insert(v) {
                stack.extend(self.operands(v));
            }
        }
        live
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::{parse, print};
    use super::*;
    use frit_kernels::spec::UnaryOp;

    const CHAIN: &str = "graph {\n input \"x\" %0\n %0 = input \"x\" : f32[B]\n %1 = exp %0 : f32[B]\n \
                         %2 = neg %1 : f32[B]\n output \"y\" %2\n}";

    #[test]
    fn a_wrapping_rewrite_makes_no_cycle() {
        let mut g = parse(CHAIN).unwrap();
        let exp = g.order()[1];
        let mut log = Log::default();
        let mut e = Editor::new(&mut g, "wrap", &mut log);
        let abs = e.add(Op::Unary(UnaryOp::Abs), &[exp], "").unwrap();
        assert!(e.replace(exp, abs).unwrap());
        assert_eq!(super::super::verify::verify(&g, None), Ok(()));
        assert!(print(&g).contains("%2 = abs %1"), "{}", print(&g));
        assert_eq!(log.count("wrap"), 1);
    }
    #[test]
    fn types_are_kept() {
        let mut g = parse(CHAIN).unwrap();
        let order = g.order();
        let mut log = Log::default();
        let mut e = Editor::new(&mut g, "bad", &mut log);
        let r = e.add(Op::Reshape(vec![1.into(), "B".into()]), &[order[1]], "").unwrap();
        let fault = e.replace(order[1], r).unwrap_err();
        assert_eq!(fault.fault, "f32[B] is replaced by f32[1, B]");
    }
    #[test]
    fn fuel_stops_rewrites() {
        let mut g = parse(CHAIN).unwrap();
        let (before, order) = (print(&g), g.order());
        let mut log = Log::with_fuel(Fuel::limited(0));
        let mut e = Editor::new(&mut g, "never", &mut log);
        assert_eq!(e.replace_by(order[2], Op::Unary(UnaryOp::Abs), &[order[1]]).unwrap(), None);
        assert_eq!(print(&g), before);
        assert_eq!(log.total(), 0);
    }
}
