//! Translation validation: a rewrite is applied only where both of its sides have the same value.
//!
//! A rule's left side and its new right side are evaluated in f64, element by element, on random operands and small sizes.
//! The computation begins some operations below the place, with random values; an equality that holds for these holds
//! for what the graph computes there. Where it does not hold, the computation begins further down, since a rule may rely
//! on more of the graph, until nothing but inputs and weights is random.
//!
//! Random floats are multiples of 1/8 up to 1, so that sums and products of them are exact in f64: an identity of rings
//! must hold to the last bit, for one in which division or another function occurs a relative difference of
//! [`TOLERANCE`] is allowed. Places that look alike are checked once. Rows of an attention that see no key are left out:
//! the operation defines them as 0, the softmax that it is raised from as a mean.

use super::alike::{Alike, Depth};
use crate::graph::{Graph, Op, Tables, ValueId, WeightData};
use crate::reference::{Elements, hashed};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::sizes;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};

/// Relative difference allowed where functions are involved that round: constants of models are rounded to f32.
pub const TOLERANCE: f64 = 1e-5;
/// Evaluations spent on one place at most.
const EACH: u64 = 400_000;
/// Elements compared of a value.
const SAMPLES: usize = 8;
/// How far below a place its computation begins, in turn.
const REACHES: [usize; 4] = [4, 9, DEEPEST, usize::MAX];
/// How deep places have to look alike to be checked once.
const DEEPEST: usize = 24;

/// What came of checking a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both sides have the same elements.
    Equal,
    /// They differ.
    Differs,
    /// Not decided: too much work, or no finite element.
    Open,
}

/// Checks rewrites, within a budget of evaluations.
#[derive(Clone, Debug)]
pub struct Validator {
    on: bool,
    left: u64,
    known: FxHashMap<u64, Verdict>,
    /// Applications by verdict: equal, different, open.
    pub counts: [u64; 3],
    /// Rules that were dropped, with the places.
    pub dropped: Vec<(&'static str, String)>,
}

impl Validator {
    /// One that checks nothing.
    pub fn off() -> Self {
        Validator { on: false, left: 0, known: FxHashMap::default(), counts: [0; 3], dropped: Vec::new() }
    }
    /// One that makes up to `evaluations`, over everything it checks.
    pub fn new(evaluations: u64) -> Self {
        Validator { on: true, left: evaluations, ..Validator::off() }
    }
    /// Evaluations not made yet.
    pub fn left(&self) -> u64 {
        self.left
    }
    /// Whether `new` may replace `old` in the name of `rule`.
    pub fn admits(&mut self, graph: &Graph, tables: &Tables, rule: &'static str, old: ValueId, new: ValueId) -> bool {
        if !self.on || old == new {
            return true;
        }
        let alike = key(graph, tables, rule, [old, new], false);
        let exact = || key(graph, tables, rule, [old, new], true);
        let verdict = match self.known.get(&alike).or_else(|| self.known.get(&exact())) {
            Some(v) => *v,
            None => {
                let (v, reach) = self.check(graph, tables, old, new);
                self.known.insert(if reach <= DEEPEST { alike } else { exact() }, v);
                v
            }
        };
        self.counts[match verdict {
            Verdict::Equal => 0,
            Verdict::Differs => 1,
            Verdict::Open => 2,
        }] += 1;
        if verdict == Verdict::Differs {
            let node = graph.node(old);
            self.dropped.push((rule, format!("{} ({})", node.op.name(), node.origin)));
        }
        verdict != Verdict::Differs
    }
    /// The verdict, and how far below the place the computation began that gave it.
    fn check(&mut self, graph: &Graph, tables: &Tables, old: ValueId, new: ValueId) -> (Verdict, usize) {
        let sizes = small_sizes(tables);
        for reach in REACHES {
            let cone = Cone::of(graph, old, reach);
            let mut all_equal = true;
            let mut compared = 0;
            for positive in [false, true] {
                if self.left == 0 {
                    return (Verdict::Open, reach);
                }
                let given = |v: ValueId, i: usize| cone.given(graph, tables, v, i, positive);
                let limit = EACH.min(self.left);
                let mut e = Elements::new(graph, &sizes, &given, limit);
                let exact = cone.is_ring(graph) && Cone::of(graph, new, reach).is_ring(graph);
                let found = compare(&mut e, old, new, if exact { 0.0 } else { TOLERANCE });
                self.left = self.left.saturating_sub(limit - e.left);
                match found {
                    Some((equal, n)) => {
                        all_equal &= equal;
                        compared += n;
                    }
                    None => return (Verdict::Open, reach),
                }
            }
            if all_equal {
                return (if compared > 0 { Verdict::Equal } else { Verdict::Open }, reach);
            }
            if cone.is_whole {
                return (Verdict::Differs, reach);
            }
        }
        (Verdict::Differs, usize::MAX)
    }
}

/// Whether sampled elements agree, and how many of them are finite; `None` where they cannot be computed.
fn compare(e: &mut Elements<'_>, old: ValueId, new: ValueId, tolerance: f64) -> Option<(bool, usize)> {
    let n: usize = e.shape(old).ok()?.iter().product();
    let m: usize = e.shape(new).ok()?.iter().product();
    if n != m {
        return Some((false, 0));
    }
    let picks = (0..SAMPLES.min(n)).map(|k| match k {
        0 => 0,
        1 => n - 1,
        k => (hashed(k as u64, n) % n as u64) as usize,
    });
    let (mut equal, mut finite) = (true, 0);
    for i in picks {
        let a = e.at(old, i).ok()?;
        e.met_empty_row = false;
        let b = e.at(new, i).ok()?;
        if e.met_empty_row {
            continue;
        }
        let far = (a - b).abs() > tolerance * a.abs().max(1.0);
        equal &= a == b || (a.is_nan() && b.is_nan()) || !(far || a.is_nan() || b.is_nan());
        finite += usize::from(a.is_finite() && b.is_finite());
    }
    Some((equal, finite))
}

/// Small values of all sizes, different from each other, that keep what is known of them: `P + S ≤ T`.
pub fn small_sizes(tables: &Tables) -> BTreeMap<String, i64> {
    let value = |(i, s): (usize, &frit_plan::SizeDecl)| {
        let v = match s.name.as_str() {
            sizes::BATCH => 2,
            sizes::TOKENS => 3,
            sizes::PAST => 4,
            sizes::CAPACITY | sizes::POSITIONS => 9,
            _ => 2 + i as u64,
        };
        (s.name.clone(), v.max(s.min).min(s.max.unwrap_or(u64::MAX)) as i64)
    };
    tables.sizes.iter().enumerate().map(value).collect()
}

/// What a place is computed from, down to some distance.
struct Cone {
    /// Distance of each value in it.
    distance: FxHashMap<ValueId, usize>,
    reach: usize,
    is_whole: bool,
}

impl Cone {
    fn of(graph: &Graph, root: ValueId, reach: usize) -> Cone {
        let mut distance: FxHashMap<ValueId, usize> = FxHashMap::default();
        let mut queue = VecDeque::from([root]);
        distance.insert(root, 0);
        let mut is_whole = true;
        while let Some(v) = queue.pop_front() {
            let d = distance.get(&v).copied().unwrap_or(0);
            if d >= reach {
                is_whole &= graph.operands(v).is_empty();
                continue;
            }
            for o in graph.operands(v) {
                if let std::collections::hash_map::Entry::Vacant(slot) = distance.entry(o) {
                    slot.insert(d + 1);
                    queue.push_back(o);
                }
            }
        }
        Cone { distance, reach, is_whole }
    }
    /// The element of a value that is not computed; `None` for one that is.
    fn given(&self, graph: &Graph, tables: &Tables, v: ValueId, i: usize, positive: bool) -> Option<f64> {
        let (op, ty) = (graph.op(v), graph.ty(v));
        let id = match op {
            Op::Const(_) | Op::Iota { .. } => return None,
            Op::Weight(w) => {
                if let Some(WeightData::Inline(values)) = tables.weight_info(*w).map(|i| &i.data) {
                    return values.get(i).map(|v| f64::from(*v));
                }
                u64::from(w.0) | 1 << 40
            }
            Op::State(s) => u64::from(s.0) | 2 << 40,
            Op::KvAppend { slot, part, .. } | Op::KvRead { slot, part } | Op::KvLoad { slot, part } => {
                u64::from(slot.0) << 1 | u64::from(*part == frit_plan::KvPart::V) | 3 << 40
            }
            Op::Input(_) | Op::Control(_) => v.index() as u64 | 4 << 40,
            _ if self.distance.get(&v).is_some_and(|d| *d >= self.reach) => v.index() as u64 | 4 << 40,
            _ => return None,
        };
        Some(random(id, i, ty.scalar, positive))
    }
    /// Whether nothing but sums, products and choices is computed.
    fn is_ring(&self, graph: &Graph) -> bool {
        self.distance.iter().filter(|(_, d)| **d < self.reach).all(|(v, _)| match graph.op(*v) {
            Op::Unary(u) => matches!(u, UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Relu | UnaryOp::Not),
            Op::Binary(b) => !matches!(b, BinaryOp::Div | BinaryOp::Pow),
            Op::Reduce { op, .. } => !matches!(op, ReduceOp::Prod),
            Op::Softmax | Op::Norm { .. } | Op::Rope { .. } | Op::Const(_) => false,
            Op::Attention(_) | Op::AttentionParts { .. } | Op::MergeParts { .. } => false,
            _ => true,
        })
    }
}

/// A reproducible element: floats are odd multiples of 1/8 up to 1, integers below 5, three of four truth values true.
pub fn random(id: u64, i: usize, scalar: Scalar, positive: bool) -> f64 {
    let h = hashed(id ^ (u64::from(positive) << 60), i);
    match scalar {
        Scalar::F32 => {
            let odd = (h % 4 * 2 + 1) as f64 / 8.0;
            if positive || h & 64 == 0 { odd } else { -odd }
        }
        Scalar::I32 => (h % 5) as f64,
        Scalar::Bool => f64::from(u8::from(!h.is_multiple_of(4))),
    }
}

/// A number for `rule` with its old side and its new one, the same for places that look alike down to [`DEEPEST`]
/// operations; that of a place alone where `named`.
fn key(graph: &Graph, tables: &Tables, rule: &str, [old, new]: [ValueId; 2], named: bool) -> u64 {
    let cut = |d: usize, name: bool| match (d < DEEPEST, name) {
        (true, _) => Depth::Follow,
        (false, true) => Depth::Name,
        (false, false) => Depth::Stop,
    };
    let mut alike = Alike::new(graph, tables, (rule, named));
    if named {
        alike.add((old, new));
    }
    alike.value(old, &|_, d| cut(d, named));
    alike.value(new, &|_, d| cut(d, true));
    alike.finish()
}

#[cfg(test)]
mod tests {
    use super::super::rewrite::{New, Rule, Site, sweep};
    use super::super::{Ctx, PassManager};
    use super::*;
    use crate::graph::text::{parse, print};

    const NORM: &str = "graph {\n input \"x\" %0\n %0 = input \"x\" : f32[B, 700]\n %1 = exp %0 : f32[B, 700]\n \
                        %2 = softmax %1 : f32[B, 700]\n %3 = neg %2 : f32[B, 700]\n output \"y\" %3\n}";

    fn tables() -> Tables {
        let mut tables = Tables::default();
        tables.size("B", 1, None);
        tables
    }

    /// `exp(x) == x`, and `softmax(x) == x / max(x)`-like mistakes: wrong on all but few operands.
    fn drops_exp(s: &Site<'_>, v: ValueId) -> Option<New> {
        let x = s.g.operands(v).first().copied()?;
        matches!(s.g.op(v), Op::Unary(UnaryOp::Exp)).then_some(New::Use(x))
    }
    fn softmax_is_sigmoid(s: &Site<'_>, v: ValueId) -> Option<New> {
        let x = s.g.operands(v).first().copied()?;
        matches!(s.g.op(v), Op::Softmax).then(|| New::unary(UnaryOp::Sigmoid, New::Use(x)))
    }
    fn doubles_negation(s: &Site<'_>, v: ValueId) -> Option<New> {
        let x = s.g.operands(v).first().copied()?;
        let inner = matches!(s.g.op(x), Op::Unary(UnaryOp::Neg));
        (!inner && matches!(s.g.op(v), Op::Unary(UnaryOp::Neg)))
            .then(|| New::binary(BinaryOp::Sub, New::f32(0.0), New::Use(x)))
    }

    #[test]
    fn a_wrong_rule_is_dropped_and_named() {
        for (rule, text) in
            [(Rule::exact("drops-exp", drops_exp), "exp"), (Rule::exact("soft", softmax_is_sigmoid), "softmax")]
        {
            let mut g = parse(NORM).unwrap();
            let tables = tables();
            let before = print(&g);
            let mut ctx = Ctx::new(&tables);
            ctx.validator = Validator::new(1 << 24);
            sweep("test", &mut g, &mut ctx, &[rule]).unwrap();
            assert_eq!(print(&g), before);
            assert_eq!(ctx.validator.dropped, [(rule.name, format!("{text} ()"))]);
            let mut off = Ctx::new(&tables);
            sweep("test", &mut g, &mut off, &[rule]).unwrap();
            assert_ne!(print(&g), before, "without validation it is applied");
        }
    }
    #[test]
    fn a_right_rule_is_applied() {
        let mut g = parse(NORM).unwrap();
        let tables = tables();
        let mut ctx = Ctx::new(&tables);
        ctx.validator = Validator::new(1 << 24);
        sweep("test", &mut g, &mut ctx, &[Rule::exact("negation", doubles_negation)]).unwrap();
        assert_eq!(ctx.validator.counts, [1, 0, 0]);
        assert!(print(&g).contains("sub"), "{}", print(&g));
    }
    #[test]
    fn without_budget_a_rule_is_applied_and_counted_as_open() {
        let mut g = parse(NORM).unwrap();
        let tables = tables();
        let mut ctx = Ctx::new(&tables);
        ctx.validator = Validator::new(0);
        sweep("test", &mut g, &mut ctx, &[Rule::exact("negation", doubles_negation)]).unwrap();
        assert_eq!(ctx.validator.counts, [0, 0, 1]);
    }
    /// A mode refuses what it does not allow, and says how often.
    #[test]
    fn strict_applies_exact_rules_alone() {
        let text = "graph {\n input \"x\" %0\n %0 = input \"x\" : f32[B, 7]\n %1 = sigmoid %0 : f32[B, 7]\n \
                    %2 = mul %0, %1 : f32[B, 7]\n %3 = neg %2 : f32[B, 7]\n %4 = neg %3 : f32[B, 7]\n output \"y\" %4\n}";
        let mut modes = Vec::new();
        for mode in [crate::NumericMode::Strict, crate::NumericMode::Default] {
            let mut g = parse(text).unwrap();
            let mut passes = PassManager::standard(&[]);
            passes.options.mode = mode;
            let log = passes.run(&mut g, &Tables::default()).unwrap();
            modes.push((print(&g).contains("silu"), print(&g).contains("neg"), log.refused.get("silu").map(|r| r.1)));
        }
        assert_eq!(modes, [(false, false, Some(1)), (true, false, None)]);
    }
}
