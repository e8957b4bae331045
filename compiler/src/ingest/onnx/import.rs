//! From a file's graph to the graph IR, node by node.
//!
//! Every node is imported or its gap is reported; what depends on a node that was not imported is passed over, so that
//! each reason is told once. Functions of the model and branches of `If` are put in place.

use super::context::{Constants, Cx, KNOWN_FLOATS, KNOWN_INTS};
use super::decoder::Role;
use super::dims::Sizes;
use super::elem::{Elem, code_name};
use super::error::{EXPORT, REPAIR, Report, Res, Stop, malformed, unsupported};
use super::external_data::short;
use super::node::Node;
use super::ops;
use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use super::value::{Known, Val};
use crate::ingest::builder::GraphBuilder;
use crate::ingest::error::Gap;
use crate::ingest::{InputElements, InputValue};
use frit_kernels::dim::Dim;
use indexmap::{IndexMap, IndexSet};
use std::collections::HashMap;
use std::rc::Rc;

/// Versions of the standard operators that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;
/// Functions and branches inside one another, at most.
const DEPTH: usize = 32;
/// Dynamic sizes of a model, at most.
const SIZES: usize = 16;

type Scope = HashMap<String, Option<Val>>;

/// The import of one model.
pub struct Importer<'a, 'g, 'm> {
    model: &'a ModelProto,
    /// What operators are imported with.
    pub cx: Cx<'a, 'g, 'm>,
    scopes: Vec<Scope>,
    report: &'g mut Report,
    opsets: Vec<&'a [OperatorSetIdProto]>,
    calls: Vec<Vec<(&'a str, &'a AttributeProto)>>,
    depth: usize,
    nodes_left: u64,
    exhausted: bool,
}

/// The name of an operator for messages.
pub fn op_name(domain: &str, op: &str) -> String {
    match domain {
        "" | "ai.onnx" => short(op),
        d => short(&format!("{d}.{op}")),
    }
}

fn plain_domain(d: &str) -> &str {
    if d == "ai.onnx" { "" } else { d }
}

/// Imports a model's graph into `b`: as the file has it, or as a graph of a decoder.
///
/// # Errors
/// Only [`Stop::Assume`]: everything else is in the report.
pub fn run<'a>(
    model: &'a ModelProto,
    graph: &'a GraphProto,
    b: &mut GraphBuilder<'_>,
    constants: &mut Constants<'a>,
    sizes: &mut Sizes,
    given: &[(String, InputValue)],
    role: Option<Role<'_>>,
    report: &mut Report,
) -> Res<()> {
    declare_all(graph, sizes);
    let bounds = sizes.bounds();
    let nodes_left = constants.limits.onnx_nodes;
    let mut i = Importer {
        model,
        cx: Cx { b, constants, sizes, bounds },
        scopes: vec![Scope::new()],
        report,
        opsets: vec![&model.opset_import],
        calls: Vec::new(),
        depth: 0,
        nodes_left,
        exhausted: false,
    };
    i.survey(graph);
    i.inputs(graph, given, role)?;
    i.body(graph)?;
    match role {
        None => i.outputs(graph)?,
        Some(role) => i.decoder_outputs(role)?,
    }
    for (sum, max) in i.cx.sizes.limits().collect::<Vec<_>>() {
        i.cx.b.limit(sum, max);
    }
    Ok(())
}

/// Declares the sizes of the inputs in their order, so that it does not depend on what is assumed of them.
fn declare_all(graph: &GraphProto, sizes: &mut Sizes) {
    for input in &graph.input {
        let Some(shape) = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).and_then(|t| t.shape.as_ref())
        else {
            continue;
        };
        for (k, d) in shape.dim.iter().enumerate() {
            if d.dim_value.is_none_or(|v| v <= 0) {
                sizes.declare(&size_name(&input.name, k, d.dim_param.as_deref()));
            }
        }
    }
}

pub(super) fn size_name(input: &str, k: usize, param: Option<&str>) -> String {
    match param.map(str::trim) {
        Some(p) if !p.is_empty() && p != "?" => p.to_owned(),
        _ => format!("{input}_dim{k}"),
    }
}

impl<'a> Importer<'a, '_, '_> {
    fn opset(&self, domain: &str) -> Option<i64> {
        let all = self.opsets.last()?;
        all.iter().find(|o| plain_domain(&o.domain) == domain).map(|o| o.version)
    }
    fn function(&self, n: &NodeProto) -> Option<&'a FunctionProto> {
        let same = |f: &&FunctionProto| {
            plain_domain(&f.domain) == plain_domain(&n.domain) && f.name == n.op_type && f.overload == n.overload
        };
        self.model.functions.iter().find(same)
    }

    /// Reports versions, operators and attributes that are not known, wherever they occur and whether or not what
    /// they depend on is supported.
    fn survey(&mut self, graph: &'a GraphProto) {
        match self.opset("") {
            Some(v) if OPSETS.contains(&v) => {}
            None if graph.node.iter().all(|n| !plain_domain(&n.domain).is_empty()) => {}
            found => {
                let found = found.map_or("no version".to_owned(), |v| format!("version {v}"));
                let problem = format!(
                    "is written for {found} of the ONNX operators; {} to {} are read",
                    OPSETS.start(),
                    OPSETS.end()
                );
                self.report.other(Gap::file("the model", problem, "export it for a version in that range"));
            }
        }
        let mut lists: Vec<&'a [NodeProto]> = vec![&graph.node];
        lists.extend(self.model.functions.iter().map(|f| f.node.as_slice()));
        while let Some(nodes) = lists.pop() {
            for n in nodes {
                let domain = plain_domain(&n.domain);
                let name = op_name(domain, &n.op_type);
                for a in &n.attribute {
                    lists.extend(a.g.as_ref().map(|g| g.node.as_slice()));
                }
                if self.function(n).is_some() {
                    continue;
                }
                match ops::find(domain, &n.op_type) {
                    None => self.report.node(&name, node_name(n), "is not supported", EXPORT),
                    Some(_) if name == "Scan" => {
                        self.report.node(&name, node_name(n), "iterates over data, which is not supported", EXPORT);
                    }
                    Some(def) => {
                        for a in n.attribute.iter().filter(|a| !def.attributes.contains(&a.name.as_str())) {
                            let problem = format!("has the attribute `{}`, which is not known", short(&a.name));
                            self.report.node(&name, node_name(n), &problem, EXPORT);
                        }
                    }
                }
            }
        }
    }

    fn inputs(&mut self, graph: &'a GraphProto, given: &[(String, InputValue)], role: Option<Role<'_>>) -> Res<()> {
        let constants: IndexSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let mut names = IndexSet::new();
        for input in graph.input.iter().filter(|i| !constants.contains(i.name.as_str())) {
            let val = match self.input_type(input) {
                Ok(_) if !names.insert(input.name.as_str()) => Err("is declared twice".to_owned()),
                Ok((elem, shape)) if role.is_some() => {
                    self.bound(&shape);
                    match role.map(|r| r.input(&mut self.cx, &input.name, elem, &shape)) {
                        Some(Err(Stop::Gap { problem, .. })) => Err(problem),
                        Some(val) => Ok(val?),
                        None => continue,
                    }
                }
                Ok((elem, shape)) => {
                    self.bound(&shape);
                    let id = self.cx.b.input(&input.name, elem.scalar(), &shape);
                    let mut val = self.cx.val(id, elem);
                    val.known = given.iter().find(|(n, _)| *n == input.name).and_then(|(_, v)| known(v, &val));
                    Ok(val)
                }
                Err(problem) => Err(problem),
            };
            let val = val.map_err(|problem| {
                self.report.other(Gap::file(&format!("input `{}`", short(&input.name)), problem, EXPORT));
            });
            self.bind(&input.name, val.ok());
        }
        let used: IndexSet<String> = self
            .cx
            .b
            .built()
            .inputs
            .iter()
            .flat_map(|i| self.cx.shape(i.value))
            .flat_map(|d| d.symbols().into_iter().map(|s| s.to_string()).collect::<Vec<_>>())
            .collect();
        if used.len() > SIZES {
            let problem = format!("has {} dynamic sizes, at most {SIZES} are possible", used.len());
            self.report.other(Gap::file("the model", problem, "export it with more of its extents fixed"));
        }
        Ok(())
    }
    /// Declares the sizes of a shape with their bounds, before anything is made of that shape.
    fn bound(&mut self, shape: &[Dim]) {
        for s in shape.iter().flat_map(Dim::symbols) {
            let (min, max) = self.cx.sizes.bounds_of(&s.to_string());
            self.cx.b.model().size(&s.to_string(), min, max);
        }
    }
    fn input_type(&mut self, input: &super::proto::ValueInfoProto) -> Result<(Elem, Vec<Dim>), String> {
        let tensor = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).ok_or("is no tensor")?;
        let elem = Elem::from_code(tensor.elem_type)
            .ok_or_else(|| format!("holds {}, which is not read", code_name(tensor.elem_type)))?;
        let shape = tensor.shape.as_ref().ok_or("has no shape; its number of extents must be known")?;
        if shape.dim.len() as u64 > self.cx.constants.limits.rank {
            return Err(format!("has {} extents", shape.dim.len()));
        }
        let limit = self.cx.constants.limits.dim;
        let dims = shape.dim.iter().enumerate().map(|(k, d)| match d.dim_value {
            Some(v) if v > 0 || d.dim_param.is_none() && v == 0 => match u64::try_from(v) {
                Ok(v) if v <= limit => Ok(Dim::from(v)),
                _ => Err(format!("has the extent {v}")),
            },
            _ => Ok(self.cx.sizes.declare(&size_name(&input.name, k, d.dim_param.as_deref()))),
        });
        Ok((elem, dims.collect::<Result<_, String>>()?))
    }

    fn outputs(&mut self, graph: &'a GraphProto) -> Res<()> {
        if graph.output.is_empty() {
            self.report.other(Gap::file("the model", "has no output", REPAIR));
        }
        let mut names = IndexSet::new();
        for output in &graph.output {
            let place = format!("output `{}`", short(&output.name));
            if !names.insert(output.name.as_str()) {
                self.report.other(Gap::file(&place, "is declared twice", REPAIR));
                continue;
            }
            let val = match self.look_up(&output.name) {
                Ok(v) => v,
                Err(Stop::Gap { problem, next }) => {
                    self.report.other(Gap::file(&place, problem, next));
                    continue;
                }
                Err(_) => continue,
            };
            self.cx.b.place(&output.name);
            match self.cx.node(&val) {
                Ok(id) => self.cx.b.output(&output.name, id),
                Err(Stop::Gap { problem, next }) => self.report.other(Gap::file(&place, problem, next)),
                Err(Stop::Poisoned) => {}
                Err(assume) => return Err(assume),
            }
        }
        Ok(())
    }

    fn decoder_outputs(&mut self, role: Role<'_>) -> Res<()> {
        self.cx.b.place("logits");
        let scopes = &self.scopes;
        match role.outputs(&mut self.cx, &|name| look_up(scopes, name)) {
            Err(Stop::Gap { problem, next }) => self.report.other(Gap::file("the decoder", problem, next)),
            Err(Stop::Assume(a)) => return Err(Stop::Assume(a)),
            Err(Stop::Poisoned) | Ok(()) => {}
        }
        Ok(())
    }

    fn bind(&mut self, name: &str, val: Option<Val>) {
        if let (Some(scope), false) = (self.scopes.last_mut(), name.is_empty()) {
            scope.insert(name.to_owned(), val);
        }
    }
    fn look_up(&self, name: &str) -> Res<Val> {
        look_up(&self.scopes, name)
    }

    /// Constants and nodes of a graph, into the innermost scope.
    fn body(&mut self, graph: &'a GraphProto) -> Res<()> {
        for t in &graph.sparse_initializer {
            let name = t.values.as_ref().map_or("", |v| v.name.as_str());
            self.report.other(Gap::tensor(&short(name), "is stored sparsely, which is not read", EXPORT));
            self.bind(name, None);
        }
        for t in &graph.initializer {
            let val = self.cx.constants.id(t, &t.name).and_then(|id| self.cx.constants.val(id));
            let val = val.map_err(|problem| {
                self.report.other(Gap::tensor(
                    &short(&t.name),
                    problem,
                    "make the file again; it is damaged or incomplete",
                ));
            });
            self.bind(&t.name, val.ok());
        }
        self.nodes(&graph.node)
    }

    fn nodes(&mut self, nodes: &'a [NodeProto]) -> Res<()> {
        let (order, cyclic) = in_order(nodes);
        for n in cyclic {
            let name = op_name(plain_domain(&n.domain), &n.op_type);
            self.report.node(&name, node_name(n), "is part of a cycle, or waits for one", REPAIR);
            n.output.iter().for_each(|o| self.bind(o, None));
        }
        for n in order {
            if self.nodes_left == 0 {
                if !std::mem::replace(&mut self.exhausted, true) {
                    let limit = self.cx.constants.limits.onnx_nodes;
                    let problem = format!("has more than {limit} nodes with its functions and branches in place");
                    self.report.other(Gap::file("the model", problem, "raise the limit if you trust the file"));
                }
                return Err(Stop::Poisoned);
            }
            self.nodes_left -= 1;
            match self.node(n) {
                Ok(vals) => {
                    self.extents_exist(&vals)?;
                    let mut vals = vals.into_iter();
                    for o in &n.output {
                        let val = vals.next();
                        if self.scopes.last().is_some_and(|s| s.contains_key(o)) && !o.is_empty() {
                            let name = op_name(plain_domain(&n.domain), &n.op_type);
                            let problem = format!("makes `{}`, which exists already", short(o));
                            self.report.node(&name, node_name(n), &problem, REPAIR);
                        }
                        self.bind(o, val);
                    }
                }
                Err(Stop::Assume(a)) => return Err(Stop::Assume(a)),
                Err(stop) => {
                    if let Stop::Gap { problem, next } = stop {
                        let name = op_name(plain_domain(&n.domain), &n.op_type);
                        self.report.node(&name, node_name(n), &problem, next);
                    }
                    n.output.iter().for_each(|o| self.bind(o, None));
                }
            }
        }
        Ok(())
    }

    /// Sizes for which an extent would be negative are not meant: the model says how small they can be.
    fn extents_exist(&self, vals: &[Val]) -> Res<()> {
        let bounds = &self.cx.bounds;
        for d in vals.iter().flat_map(|v| &v.shape).filter(|d| !bounds.nonneg(d)) {
            if let Some(least) = self.cx.sizes.raised(d, bounds, |b| b.nonneg(d)) {
                return Err(Stop::Assume(least));
            }
        }
        Ok(())
    }

    fn node(&mut self, n: &'a NodeProto) -> Res<Vec<Val>> {
        let domain = plain_domain(&n.domain);
        let mut inputs = Vec::with_capacity(n.input.len());
        for i in &n.input {
            inputs.push(if i.is_empty() { None } else { Some(self.look_up(i)?) });
        }
        let mut attributes = Vec::with_capacity(n.attribute.len());
        for a in &n.attribute {
            match a.ref_attr_name.as_str() {
                "" => attributes.push((a.name.as_str(), a)),
                outer => {
                    let given = self.calls.last().and_then(|c| c.iter().find(|(name, _)| *name == outer));
                    attributes.extend(given.map(|(_, v)| (a.name.as_str(), *v)));
                }
            }
        }
        let opset = self.opset(domain).unwrap_or(1);
        let outputs: Vec<&str> = n.output.iter().map(String::as_str).collect();
        let node = Node { op: &n.op_type, domain, opset, inputs, attributes, outputs };
        self.cx.b.place(node_name(n));
        if let Some(f) = self.function(n) {
            return self.call(f, node);
        }
        if domain.is_empty() && matches!(node.op, "If" | "Loop" | "Scan") {
            return self.control(&node);
        }
        match ops::find(domain, &n.op_type) {
            Some(def) => (def.import)(&mut self.cx, &node),
            None => Err(Stop::Poisoned),
        }
    }

    fn nested<T>(&mut self, run: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        if self.depth >= DEPTH {
            return unsupported(format!("functions or branches are nested deeper than {DEPTH}"));
        }
        self.depth += 1;
        let out = run(self);
        self.depth -= 1;
        out
    }

    /// A function of the model, put in place of its call.
    fn call(&mut self, f: &'a FunctionProto, n: Node<'a>) -> Res<Vec<Val>> {
        self.nested(|i| {
            let mut attributes = n.attributes;
            for d in &f.attribute_proto {
                if !attributes.iter().any(|(name, _)| *name == d.name) {
                    attributes.push((d.name.as_str(), d));
                }
            }
            let mut inputs = n.inputs.into_iter();
            let scope: Scope =
                f.input.iter().filter_map(|name| Some((name.clone(), Some(inputs.next().flatten()?)))).collect();
            let outer = std::mem::replace(&mut i.scopes, vec![scope]);
            i.calls.push(attributes);
            i.opsets.push(if f.opset_import.is_empty() { &i.model.opset_import } else { &f.opset_import });
            let done = i.nodes(&f.node);
            let out = done.and_then(|()| f.output.iter().map(|o| i.look_up(o)).collect());
            i.opsets.pop();
            i.calls.pop();
            i.scopes = outer;
            out
        })
    }

    fn control(&mut self, n: &Node<'a>) -> Res<Vec<Val>> {
        match n.op {
            "If" => {
                let condition = n.input(0)?.known_ints().and_then(|c| c.first()).and_then(Dim::as_const);
                let Some(condition) = condition else {
                    return unsupported("its condition depends on data or on sizes that are not fixed");
                };
                let graph = n.graph(if condition != 0 { "then_branch" } else { "else_branch" })?;
                self.branch(graph, Scope::new())
            }
            "Loop" => self.unroll(n),
            _ => Err(Stop::Poisoned),
        }
    }

    fn branch(&mut self, graph: &'a GraphProto, scope: Scope) -> Res<Vec<Val>> {
        self.nested(|i| {
            i.scopes.push(scope);
            let done = i.body(graph);
            let out = done.and_then(|()| graph.output.iter().map(|o| i.look_up(&o.name)).collect());
            i.scopes.pop();
            out
        })
    }

    /// A loop whose number of trips is a number, put in place trip by trip.
    fn unroll(&mut self, n: &Node<'a>) -> Res<Vec<Val>> {
        const TRIPS: i64 = 64;
        let first = |v: Option<&Val>| v.and_then(Val::known_ints).and_then(|c| c.first().cloned());
        let trips = first(n.optional(0)).and_then(|d| d.as_const());
        let enter = n.optional(1).is_none() || first(n.optional(1)).is_some_and(|d| d.is(1));
        let (Some(trips), true) = (trips, enter) else {
            return unsupported("its number of trips depends on data or on sizes that are not fixed");
        };
        if !(0..=TRIPS).contains(&trips) {
            return unsupported(format!("makes {trips} trips, at most {TRIPS} are put in place"));
        }
        let graph = n.graph("body")?;
        let mut carried: Vec<Val> = Vec::new();
        for i in 2..n.inputs.len() {
            carried.push(n.input(i)?.clone());
        }
        let scans = graph.output.len().saturating_sub(1 + carried.len());
        let mut stacked: Vec<Vec<Val>> = vec![Vec::new(); scans];
        for trip in 0..trips {
            let condition = Val::of(Elem::Bool, Vec::new(), Known::Ints(vec![Dim::one()]));
            let args = [Val::int(Dim::constant(trip)), condition].into_iter().chain(carried.iter().cloned());
            let scope = graph.input.iter().map(|i| i.name.clone()).zip(args.map(Some)).collect();
            let mut out = self.branch(graph, scope)?.into_iter();
            let go_on = out.next().and_then(|c| first(Some(&c))).and_then(|d| d.as_const());
            carried = out.by_ref().take(carried.len()).collect();
            stacked.iter_mut().zip(out).for_each(|(s, v)| s.push(v));
            match go_on {
                Some(0) => break,
                Some(_) => {}
                None => return unsupported("whether it goes on depends on data"),
            }
        }
        for parts in stacked {
            carried.push(ops::stack(&mut self.cx, &parts)?);
        }
        Ok(carried)
    }
}

fn look_up(scopes: &[Scope], name: &str) -> Res<Val> {
    match scopes.iter().rev().find_map(|s| s.get(name)) {
        Some(Some(v)) => Ok(v.clone()),
        Some(None) => Err(Stop::Poisoned),
        None => malformed(format!("reads `{}`, which nothing before it makes", short(name))),
    }
}

/// The elements of an input that are few and of its type.
fn known(given: &InputValue, val: &Val) -> Option<Rc<Known>> {
    let shape: Vec<Dim> = given.shape.iter().map(|d| Dim::from(*d)).collect();
    let known = match (&given.elements, val.elem.is_float()) {
        (InputElements::Floats(v), true) if v.len() as u64 <= KNOWN_FLOATS => Known::Floats(v.clone()),
        (InputElements::Ints(v), false) if v.len() as u64 <= KNOWN_INTS => {
            Known::Ints(v.iter().map(|x| Dim::constant(*x)).collect())
        }
        _ => return None,
    };
    (shape == val.shape).then(|| Rc::new(known))
}

/// The name of a node, or of its first result.
pub fn node_name(n: &NodeProto) -> &str {
    match (n.name.as_str(), n.output.iter().find(|o| !o.is_empty())) {
        ("", Some(o)) => o,
        (name, _) => name,
    }
}

/// Nodes so that each comes after those whose results it reads, and those for which that cannot be.
fn in_order(nodes: &[NodeProto]) -> (Vec<&NodeProto>, Vec<&NodeProto>) {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        n.output.iter().filter(|o| !o.is_empty()).for_each(|o| {
            maker.entry(o.as_str()).or_insert(i);
        });
    }
    let mut waiting = vec![0usize; nodes.len()];
    let mut feeds: IndexMap<usize, Vec<usize>> = IndexMap::new();
    for (i, n) in nodes.iter().enumerate() {
        let needs: IndexSet<usize> = reads(n).into_iter().filter_map(|r| maker.get(r).copied()).collect();
        if let Some(w) = waiting.get_mut(i) {
            *w = needs.len();
        }
        needs.into_iter().for_each(|p| feeds.entry(p).or_default().push(i));
    }
    let mut ready: std::collections::BTreeSet<usize> =
        waiting.iter().enumerate().filter(|(_, w)| **w == 0).map(|(i, _)| i).collect();
    let mut order = Vec::with_capacity(nodes.len());
    let mut done = vec![false; nodes.len()];
    while let Some(i) = ready.pop_first() {
        order.extend(nodes.get(i));
        done.iter_mut().skip(i).take(1).for_each(|d| *d = true);
        for f in feeds.get(&i).into_iter().flatten() {
            if let Some(w) = waiting.get_mut(*f) {
                *w -= 1;
                if *w == 0 {
                    ready.insert(*f);
                }
            }
        }
    }
    let left = nodes.iter().zip(&done).filter(|(_, d)| !**d).map(|(n, _)| n).collect();
    (order, left)
}

/// Names that a node reads, those of its nested graphs included.
fn reads(n: &NodeProto) -> Vec<&str> {
    let mut out: Vec<&str> = Vec::new();
    let mut stack = vec![n];
    while let Some(n) = stack.pop() {
        out.extend(n.input.iter().map(String::as_str));
        for g in n.attribute.iter().filter_map(|a| a.g.as_ref()) {
            stack.extend(&g.node);
            out.extend(g.output.iter().map(|o| o.name.as_str()));
        }
    }
    out
}
