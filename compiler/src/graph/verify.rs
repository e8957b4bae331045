//! The invariants of the graph IR, all faults at once.
//!
//! A graph is sound iff operands exist and ports are complete, it has no cycle, every type is the one its operation
//! gives (up to the simplification of extents), inputs and outputs have unique names, every id is of the tables, and no
//! part of a cache slot is written twice.

use super::control::Control;
use super::{Graph, GraphError, Op, Tables, TensorType, ValueId, infer};
use frit_kernels::dim::{Bounds, Dim, Sym};
use frit_plan::KvPart;
use petgraph::Direction;
use std::collections::{HashMap, HashSet};

/// Bounds of the sizes that tables declare.
pub fn size_bounds(tables: &Tables) -> Bounds {
    let mut b = Bounds::new();
    for s in &tables.sizes {
        let int = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
        b.set(Sym::Size(s.name.as_str().into()), int(s.min), s.max.map(|m| Dim::constant(int(m))));
    }
    b
}

/// Whether two types are equal up to the simplification of extents.
pub fn same_type(a: &TensorType, b: &TensorType, bounds: &Bounds) -> bool {
    a.scalar == b.scalar && same_shape(&a.shape, &b.shape, bounds)
}

/// Whether two shapes are equal up to simplification.
pub fn same_shape(a: &[Dim], b: &[Dim], bounds: &Bounds) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| same_dim(x, y, bounds))
}

/// Whether two extents are equal up to simplification.
pub fn same_dim(a: &Dim, b: &Dim, bounds: &Bounds) -> bool {
    a == b || (a.clone() - b.clone()).simplify(bounds).is(0) || a.simplify(bounds) == b.simplify(bounds)
}

/// Checks every invariant; ids and names of sizes only where tables are given.
///
/// # Errors
/// Every broken rule with its node.
pub fn verify(graph: &Graph, tables: Option<&Tables>) -> Result<(), Vec<GraphError>> {
    let bounds = tables.map(size_bounds).unwrap_or_default();
    let mut check = Check { tables, bounds, faults: Vec::new(), written: HashSet::new() };
    check.graph(graph, 0);
    if check.faults.is_empty() { Ok(()) } else { Err(check.faults) }
}

struct Check<'a> {
    tables: Option<&'a Tables>,
    bounds: Bounds,
    faults: Vec<GraphError>,
    written: HashSet<(u32, KvPart)>,
}

impl Check<'_> {
    fn fault(&mut self, g: &Graph, v: ValueId, fault: impl Into<String>) {
        let n = g.node(v);
        self.faults
            .push(GraphError { node: format!("#{} {} ({})", v.index(), n.op.name(), n.origin), fault: fault.into() });
    }
    fn interface(&mut self, place: &str, fault: String) {
        self.faults.push(GraphError { node: place.into(), fault });
    }
    fn graph(&mut self, g: &Graph, depth: usize) {
        if depth > 8 {
            return self.interface("graph", "nested deeper than 8".into());
        }
        if g.outputs.is_empty() {
            self.interface("graph", "it has no output".into());
        }
        let mut names = HashSet::new();
        for i in &g.inputs {
            if !names.insert(i.name.as_str()) {
                self.interface(&i.name, "two inputs of this name".into());
            }
            match g.get(i.value).map(|n| &n.op) {
                Some(Op::Input(name)) if *name == i.name => {}
                _ => self.interface(&i.name, "the declared input is no input node of this name".into()),
            }
        }
        let mut names = HashSet::new();
        for o in &g.outputs {
            if !names.insert(o.name.as_str()) {
                self.interface(&o.name, "two outputs of this name".into());
            }
            match g.get(o.value) {
                None => self.interface(&o.name, "the output does not exist".into()),
                Some(n) => self.state_output(g, o.value, &n.ty, o.state.map(|s| s.0)),
            }
        }
        if let Some(v) = cyclic(g) {
            return self.fault(g, v, "the graph has a cycle through this node");
        }
        let declared: HashSet<ValueId> = g.inputs.iter().map(|i| i.value).collect();
        for v in g.values() {
            self.node(g, v, &declared, depth);
        }
    }
    fn state_output(&mut self, g: &Graph, v: ValueId, ty: &TensorType, state: Option<u32>) {
        let (Some(id), Some(t)) = (state, self.tables) else { return };
        match t.states.get(id as usize) {
            None => self.fault(g, v, format!("state {id} does not exist")),
            Some(s) if s.storage.scalar() != ty.scalar => {
                self.fault(g, v, format!("{ty} cannot be kept in the state `{}`", s.name));
            }
            Some(_) => {}
        }
    }
    fn node(&mut self, g: &Graph, v: ValueId, declared: &HashSet<ValueId>, depth: usize) {
        let (node, ports) = (g.node(v), g.ports(v));
        if ports.iter().enumerate().any(|(i, p)| *p as usize != i) {
            return self.fault(g, v, format!("its operands are at ports {ports:?}"));
        }
        for d in &node.ty.shape {
            if d.symbols().iter().any(|s| !matches!(s, Sym::Size(_))) {
                self.fault(g, v, format!("the extent {d} names something other than sizes"));
            }
            if d.simplify(&self.bounds).as_const().is_some_and(|c| c < 0) {
                self.fault(g, v, format!("the extent {d} is negative"));
            }
        }
        self.ids(g, v, declared);
        if let Op::Control(c) = &node.op {
            self.graph(c.body(), depth + 1);
        }
        if node.op.is_source() && !matches!(node.op, Op::Const(_)) {
            if !ports.is_empty() {
                self.fault(g, v, "a source with operands");
            }
            return;
        }
        let types: Vec<&TensorType> = g.operands(v).into_iter().map(|o| g.ty(o)).collect();
        match infer(&node.op, &types) {
            Ok(ty) if same_type(&ty, &node.ty, &self.bounds) => {}
            Ok(ty) => self.fault(g, v, format!("its type is {}, the operation gives {ty}", node.ty)),
            Err(e) => match self.infer_simplified(&node.op, &types) {
                Some(ty) if same_type(&ty, &node.ty, &self.bounds) => {}
                _ => self.fault(g, v, e),
            },
        }
    }
    fn infer_simplified(&self, op: &Op, types: &[&TensorType]) -> Option<TensorType> {
        let s = |d: &Dim| d.simplify(&self.bounds);
        let simple = |t: &&TensorType| TensorType::new(t.scalar, t.shape.iter().map(s).collect::<Vec<_>>());
        let types: Vec<TensorType> = types.iter().map(simple).collect();
        let mut op = op.clone();
        op.map_dims(&s);
        infer(&op, &types.iter().collect::<Vec<_>>()).ok()
    }
    fn ids(&mut self, g: &Graph, v: ValueId, declared: &HashSet<ValueId>) {
        let node = g.node(v);
        match &node.op {
            Op::Input(_) if !declared.contains(&v) => self.fault(g, v, "an input node that is not declared"),
            Op::Iota { axis, .. } if *axis >= node.ty.rank() || node.ty.scalar != frit_kernels::dtype::Scalar::I32 => {
                self.fault(g, v, format!("iota along axis {axis} of {}", node.ty));
            }
            Op::Attention(a) | Op::AttentionParts { attrs: a, .. } if a.window.is_some() && a.causal.is_none() => {
                self.fault(g, v, "a window without causal masking");
            }
            Op::KvAppend { slot, part, .. } if !self.written.insert((slot.0, *part)) => {
                self.fault(g, v, format!("slot {} is written twice", slot.0));
            }
            Op::KvRead { slot, part } => {
                let from = g.operands(v).first().map(|o| g.op(*o));
                if !matches!(from, Some(Op::KvAppend { slot: s, part: p, .. }) if s == slot && p == part) {
                    self.fault(g, v, "its operand is not the append to the same slot");
                }
            }
            Op::Control(c) => {
                let xs = g.operands(v);
                let flag = xs.last().is_some_and(|x| g.ty(*x).scalar == frit_kernels::dtype::Scalar::Bool);
                if matches!(**c, Control::Predicated { .. } | Control::Exit { .. }) && !flag {
                    self.fault(g, v, "its last operand is no truth value");
                }
                if let Control::Loop { per_trip, .. } = &**c
                    && per_trip.iter().any(|i| *i == 0 || *i >= xs.len())
                {
                    self.fault(g, v, format!("stacked operands {per_trip:?} of {}", xs.len()));
                }
            }
            _ => {}
        }
        let Some(t) = self.tables else { return };
        match &node.op {
            Op::Weight(id) => match t.weight_info(*id) {
                None => self.fault(g, v, format!("weight {} does not exist", id.0)),
                Some(w)
                    if !same_type(&TensorType::new(w.storage.scalar(), w.shape.clone()), &node.ty, &self.bounds) =>
                {
                    let own = TensorType::new(w.storage.scalar(), w.shape.clone());
                    if !self.fixed_like(&own, &node.ty) {
                        self.fault(g, v, format!("its type is {}, the weight has {own}", node.ty));
                    }
                }
                Some(_) => {}
            },
            Op::State(id) if t.states.get(id.0 as usize).is_none() => {
                self.fault(g, v, format!("state {} does not exist", id.0));
            }
            Op::KvAppend { slot, .. } | Op::KvRead { slot, .. } | Op::KvLoad { slot, .. }
                if t.kv_slots.get(slot.0 as usize).is_none() =>
            {
                self.fault(g, v, format!("slot {} does not exist", slot.0));
            }
            _ => {}
        }
    }
    /// Whether `ty` is `own` with some sizes replaced by numbers, as in a specialised graph.
    fn fixed_like(&self, own: &TensorType, ty: &TensorType) -> bool {
        own.scalar == ty.scalar
            && own.rank() == ty.rank()
            && own.shape.iter().zip(&ty.shape).all(|(o, t)| o.as_const().is_none() || same_dim(o, t, &self.bounds))
    }
}

impl Graph {
    /// Ports that have an operand, ascending.
    fn ports(&self, v: ValueId) -> Vec<u8> {
        let mut p: Vec<u8> = self.g.edges_directed(v.0, Direction::Incoming).map(|e| *e.weight()).collect();
        p.sort_unstable();
        p
    }
}

fn cyclic(g: &Graph) -> Option<ValueId> {
    let mut missing: HashMap<ValueId, usize> = g.values().map(|v| (v, g.operands(v).len())).collect();
    let mut ready: Vec<ValueId> = g.values().filter(|v| missing.get(v) == Some(&0)).collect();
    while let Some(v) = ready.pop() {
        missing.remove(&v);
        for u in g.users(v) {
            if let Some(n) = missing.get_mut(&u) {
                *n -= 1;
                if *n == 0 {
                    ready.push(u);
                }
            }
        }
    }
    missing.keys().min().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{GraphOutput, KvSlotId};
    use frit_kernels::dtype::Scalar;
    use frit_kernels::spec::UnaryOp;

    fn text(t: &str) -> Graph {
        super::super::text::parse(t).unwrap()
    }
    fn faults(g: &Graph) -> String {
        let list = verify(g, None).unwrap_err();
        list.iter().map(|e| e.to_string()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_type_that_does_not_follow_is_named() {
        let g = text(
            "graph {\n input \"x\" %0\n %0 = input \"x\" : f32[B, 4]\n %1 = exp %0 : f32[B, 5]\n output \"y\" %1\n}",
        );
        assert!(faults(&g).contains("its type is f32[B, 5], the operation gives f32[B, 4]"), "{}", faults(&g));
    }
    #[test]
    fn a_slot_is_written_once() {
        let g = text(
            "graph {\n input \"x\" %0\n %0 = input \"x\" : f32[B, 2, S, 4]\n \
             %1 = kv_append{slot=@kv0, part=k} %0 : f32[B, 2, P + S, 4]\n \
             %2 = kv_append{slot=@kv0, part=k} %0 : f32[B, 2, P + S, 4]\n %3 = add %1, %2 : f32[B, 2, P + S, 4]\n \
             output \"y\" %3\n}",
        );
        assert!(faults(&g).contains("slot 0 is written twice"));
        assert!(verify(&g, Some(&Tables::default())).unwrap_err().iter().any(|e| e.fault == "slot 0 does not exist"));
    }
    #[test]
    fn names_are_unique_and_inputs_declared() {
        let mut g = Graph::new();
        let x = g.push(Op::Input("x".into()), &[], TensorType::new(Scalar::F32, []), "");
        for _ in 0..2 {
            g.outputs.push(GraphOutput { name: "y".into(), value: x, state: None });
        }
        let f = faults(&g);
        assert!(f.contains("two outputs of this name") && f.contains("not declared"), "{f}");
    }
    #[test]
    fn a_cycle_and_a_missing_port_are_found() {
        let mut g = Graph::new();
        let ty = TensorType::new(Scalar::F32, []);
        let c = g.push(Op::Const(frit_kernels::spec::Literal::f32(1.0)), &[], ty.clone(), "");
        let a = g.push(Op::Unary(UnaryOp::Exp), &[c], ty.clone(), "");
        let b = g.push(Op::Unary(UnaryOp::Exp), &[a], ty.clone(), "");
        g.outputs.push(GraphOutput { name: "y".into(), value: b, state: None });
        assert_eq!(verify(&g, None), Ok(()));
        g.set_operand(a, 0, b);
        assert!(faults(&g).contains("cycle"));
        g.set_operand(a, 0, c);
        g.set_operand(a, 3, c);
        assert!(faults(&g).contains("ports [0, 3]"));
        let _ = KvSlotId(0);
    }
}
