//! A graph under construction, each of its values computed for two bindings of its free extents, in float64 and with
//! every value rounded to F32.

use crate::array::Nd;
use crate::attributes::Attributes;
use crate::onnx_file::{Attribute, Element, OnnxFile};
use crate::support::Random;
use crate::{elementwise, movement, sums};

/// The operator set that graphs are written for.
pub const OPSET: i64 = 23;
/// Elements that a value may have, and magnitude of floats and of integers.
const ELEMENTS: usize = 3000;
const LARGEST: [f64; 2] = [40.0, 1e6];
/// How far rounding may carry a value, of its largest magnitude or 1: what is worse conditioned is not taken.
const ROUNDING: f64 = 2e-5;

/// A value for one binding.
#[derive(Clone, Debug)]
pub struct Computed {
    pub exact: Nd,
    rounded: Nd,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// An input with its extents: numbers, or the name of a free one.
    Input(Vec<String>),
    Constant,
    Node,
}

/// A value of the graph.
#[derive(Clone, Debug)]
pub struct Value {
    pub name: String,
    pub origin: Origin,
    pub at: [Computed; 2],
    pub is_used: bool,
}

impl Value {
    pub fn kind(&self) -> Element {
        self.at[0].exact.kind
    }
    pub fn rank(&self) -> usize {
        self.at[0].exact.rank()
    }
    /// The extent of an axis, where all bindings agree on it.
    pub fn fixed(&self, axis: usize) -> Option<usize> {
        let [a, b] = self.shapes();
        (a[axis] == b[axis]).then_some(a[axis])
    }
    pub fn shapes(&self) -> [&[usize]; 2] {
        [&self.at[0].exact.shape, &self.at[1].exact.shape]
    }
    pub fn is_fixed(&self) -> bool {
        let [a, b] = self.shapes();
        a == b
    }
}

/// A call of an operator on values by number.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: &'static str,
    pub attributes: Attributes,
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<usize>,
}

/// A graph, its values and the random numbers that it is made of.
pub struct Graph {
    pub values: Vec<Value>,
    pub nodes: Vec<Node>,
    pub random: Random,
}

fn apply(op: &'static str, a: &Attributes, x: &[Option<&Nd>]) -> Option<Vec<Nd>> {
    movement::apply(op, a, x)
        .or_else(|| sums::apply(op, a, x).or_else(|| elementwise::apply(op, a, x)).map(|v| vec![v]))
}

/// Whether a value is small, finite and well conditioned.
fn is_tame(v: &Computed) -> bool {
    let limit = LARGEST[usize::from(v.exact.kind != Element::Float)];
    let largest = v.exact.data.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let apart = v.exact.data.iter().zip(&v.rounded.data).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    v.exact.data.iter().all(|v| v.is_finite())
        && (1..=ELEMENTS).contains(&v.exact.data.len())
        && largest <= limit
        && v.exact.shape == v.rounded.shape
        && apart <= ROUNDING * largest.max(1.0)
}

impl Graph {
    pub fn new(seed: u64) -> Graph {
        Graph { values: Vec::new(), nodes: Vec::new(), random: Random::new(seed) }
    }
    /// A number from 0 to `n` − 1.
    pub fn below(&mut self, n: usize) -> usize {
        self.random.below(n.max(1) as u64) as usize
    }
    /// One of several.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
    fn value(&mut self, prefix: &str, origin: Origin, at: [Nd; 2]) -> usize {
        let name = format!("{prefix}{}", self.values.len());
        let at = at.map(|v| Computed { rounded: v.clone(), exact: v });
        self.values.push(Value { name, origin, at, is_used: false });
        self.values.len() - 1
    }
    fn drawn(&mut self, kind: Element, shape: &[usize]) -> Nd {
        let random = &mut self.random;
        Nd::build(kind, shape, |_| match kind {
            Element::Float => f64::from(2.0 * random.unit()),
            Element::Int64 => random.below(11) as f64 - 5.0,
            Element::Bool => random.below(2) as f64,
        })
    }
    /// An input. An extent is a number, or the name of a free extent with what the bindings give it.
    pub fn input(&mut self, kind: Element, dims: &[(String, [usize; 2])]) -> usize {
        let shape = |b: usize| dims.iter().map(|d| d.1[b]).collect::<Vec<_>>();
        let at = [self.drawn(kind, &shape(0)), self.drawn(kind, &shape(1))];
        self.value("in", Origin::Input(dims.iter().map(|d| d.0.clone()).collect()), at)
    }
    fn constant(&mut self, v: Nd) -> usize {
        self.value("c", Origin::Constant, [v.clone(), v])
    }
    /// A constant of random floats.
    pub fn weight(&mut self, shape: &[usize]) -> usize {
        let v = self.drawn(Element::Float, shape);
        let scale = 0.5 + f64::from(self.random.unit()) * 0.3;
        let data = v.data.iter().map(|v| f64::from((v * scale) as f32)).collect();
        self.constant(Nd::new(Element::Float, shape, data))
    }
    /// A constant of floats between two bounds.
    pub fn weight_between(&mut self, shape: &[usize], low: f32, high: f32) -> usize {
        let random = &mut self.random;
        let v = Nd::build(Element::Float, shape, |_| f64::from(low + (high - low) * (random.unit() + 1.0) / 2.0));
        self.constant(v.rounded())
    }
    /// A constant list of integers.
    pub fn list(&mut self, v: &[i64]) -> usize {
        self.constant(Nd::new(Element::Int64, &[v.len()], v.iter().map(|v| *v as f64).collect()))
    }
    /// A constant of integers.
    pub fn whole(&mut self, shape: &[usize], v: &[i64]) -> usize {
        self.constant(Nd::new(Element::Int64, shape, v.iter().map(|v| *v as f64).collect()))
    }
    /// A constant float without axes.
    pub fn number(&mut self, v: f32) -> usize {
        self.constant(Nd::new(Element::Float, &[], vec![f64::from(v)]))
    }
    /// Adds a call if its values are defined for both bindings and tame.
    pub fn call(
        &mut self,
        op: &'static str,
        attributes: &[(&'static str, Attribute)],
        inputs: &[Option<usize>],
    ) -> Option<Vec<usize>> {
        let attributes = Attributes(attributes.to_vec());
        let mut at: Vec<Vec<Computed>> = Vec::new();
        for binding in 0..2 {
            let operands = |pick: fn(&Computed) -> &Nd| -> Option<Vec<Nd>> {
                let all: Vec<Option<&Nd>> =
                    inputs.iter().map(|i| i.map(|i| pick(&self.values[i].at[binding]))).collect();
                apply(op, &attributes, &all)
            };
            let (exact, rounded) = (operands(|c| &c.exact)?, operands(|c| &c.rounded)?);
            at.push(
                exact.into_iter().zip(rounded).map(|(exact, r)| Computed { exact, rounded: r.rounded() }).collect(),
            );
        }
        let (second, first) = (at.pop()?, at.pop()?);
        let is_sound = |(a, b): (&Computed, &Computed)| is_tame(a) && is_tame(b) && a.exact.rank() == b.exact.rank();
        if first.len() != second.len() || !first.iter().zip(&second).all(is_sound) {
            return None;
        }
        let outputs: Vec<usize> = (first.into_iter().zip(second))
            .map(|(a, b)| {
                let name = format!("v{}", self.values.len());
                self.values.push(Value { name, origin: Origin::Node, at: [a, b], is_used: false });
                self.values.len() - 1
            })
            .collect();
        inputs.iter().flatten().for_each(|i| self.values[*i].is_used = true);
        self.nodes.push(Node { op, attributes, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Some(outputs)
    }
    /// [`Graph::call`] of an operator with one result and no operand left out.
    pub fn one_of(&mut self, op: &'static str, a: &[(&'static str, Attribute)], inputs: &[usize]) -> Option<usize> {
        let inputs: Vec<Option<usize>> = inputs.iter().copied().map(Some).collect();
        Some(self.call(op, a, &inputs)?[0])
    }

    /// What the graph gives to its caller: every value of a node that no other reads, and those in `also`.
    pub fn outputs(&self, also: impl Fn(usize) -> bool) -> Vec<usize> {
        let is_output = |i: &usize| self.values[*i].origin == Origin::Node && (!self.values[*i].is_used || also(*i));
        (0..self.values.len()).filter(is_output).collect()
    }
    /// The graph as a file.
    pub fn file(&self, outputs: &[usize]) -> OnnxFile {
        let mut file = OnnxFile::of_opset(OPSET);
        for v in self.values.iter() {
            let data = &v.at[0].exact;
            match &v.origin {
                Origin::Input(dims) => {
                    file.input_of(&v.name, v.kind(), &dims.iter().map(String::as_str).collect::<Vec<_>>());
                }
                Origin::Constant if v.kind() == Element::Float => {
                    file.weight(&v.name, &data.shape, &data.data.iter().map(|v| *v as f32).collect::<Vec<_>>());
                }
                Origin::Constant => file.ints(&v.name, &data.shape, &data.ints()),
                Origin::Node => {}
            }
        }
        for n in &self.nodes {
            let name = |i: &Option<usize>| i.map_or("", |i| self.values[i].name.as_str());
            let inputs: Vec<&str> = n.inputs.iter().map(name).collect();
            let results: Vec<&str> = n.outputs.iter().map(|i| self.values[*i].name.as_str()).collect();
            file.node_of_several(n.op, &inputs, &results, &n.attributes.0);
        }
        for o in outputs {
            let v = &self.values[*o];
            let dims: Vec<String> =
                (0..v.rank()).map(|a| v.fixed(a).map_or(format!("{}_{a}", v.name), |n| n.to_string())).collect();
            file.output_of(&v.name, v.kind(), &dims.iter().map(String::as_str).collect::<Vec<_>>());
        }
        file
    }
    /// The calls that values come from, a line each.
    pub fn history(&self, of: &[usize]) -> String {
        let mut wanted: Vec<bool> = (0..self.values.len()).map(|i| of.contains(&i)).collect();
        let mut lines = Vec::new();
        for n in self.nodes.iter().rev() {
            if !n.outputs.iter().any(|o| wanted[*o]) {
                continue;
            }
            n.inputs.iter().flatten().for_each(|i| wanted[*i] = true);
            let text = |i: &usize| format!("{}{:?}", self.values[*i].name, self.values[*i].shapes()[0]);
            let operand = |i: &Option<usize>| i.as_ref().map_or("_".to_owned(), text);
            let (outs, ins): (Vec<String>, Vec<String>) =
                (n.outputs.iter().map(text).collect(), n.inputs.iter().map(operand).collect());
            lines.push(format!("{} = {}({}) {:?}", outs.join(", "), n.op, ins.join(", "), n.attributes.0));
        }
        lines.reverse();
        lines.join("\n")
    }
}
