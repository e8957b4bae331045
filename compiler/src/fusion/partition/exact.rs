//! The cheapest regions that windows of the graph allow, beside those that the greedy order finds.
//!
//! A window is a norm with the products that read it and what is computed behind them, or any other operations that are
//! joined by edges along which operations may share a kernel at all: none leads into a row reduction or into attention,
//! into a product of many rows only from a norm, and none goes around another anchor. Whether a set of a window's
//! operations is a region, and what it takes, the greedy steps themselves say, run on that set alone, with the statistics of
//! rows that the kernels in front of it write; [`search`](super::search) puts the regions together. Windows that are alike are searched once.

use super::search::{LARGEST, Problem};
use super::{Given, Groups, Partition, Partitioner, is_anchor};
use crate::fusion::anchors::{self, Site};
use crate::fusion::cost::{self, MANY_ROWS};
use crate::fusion::outline::{Shape, shape_of};
use crate::fusion::region::{Region, RegionAnchor};
use crate::fusion::report::is_launch;
use crate::fusion::row_stats::RowStats;
use crate::fusion::traffic;
use crate::graph::patch::{Editor, Log};
use crate::graph::{Graph, Op, TensorType, ValueId};
use frit_kernels::dim::{Dim, Sym};
use frit_plan::{ExactSearch, Rates, sizes};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

/// Regions that a window may be divided into, as sets of its operations, and what they take.
struct Solved {
    regions: Vec<Vec<usize>>,
    /// Of the greedy regions and of these, in µs, on each kind of device.
    greedy: Vec<f64>,
    exact: Vec<f64>,
}

impl Solved {
    /// Whether the regions that were found are worth more than the greedy ones, and cost more on no kind of device.
    fn wins(&self) -> bool {
        let everywhere = self.greedy.iter().zip(&self.exact).all(|(g, e)| *e <= *g + 1e-9);
        everywhere && cost::pays(self.greedy.iter().sum(), self.exact.iter().sum())
    }
}

/// The norm whose statistics the kernel in front of a region forwards to it, and how they are used.
fn forwarded_to(region: &Region) -> Option<(ValueId, (RowStats, bool))> {
    let RegionAnchor::MatMul(g) = &region.anchor else { return None };
    Some((g.norm?, (g.stats?, g.commuted)))
}

/// The sum of times in µs.
fn nanoseconds(us: &[f64]) -> u64 {
    (us.iter().sum::<f64>() * 1e3).round() as u64
}

/// What an operation of a window is and reads, whatever its name.
type Role = (Shape, TensorType, Vec<(Option<usize>, TensorType)>, bool);

/// What sets of operations are priced by.
struct Seen {
    /// The graph at the sizes of the run that is priced: of numbers, a kernel's traffic is counted many times faster.
    sized: Graph,
    given: Given,
}

/// The tile of the statistics that a norm gets from the kernel in front, and whether it is commuted.
type Form = Option<(u64, bool)>;

impl<'a> Partitioner<'a> {
    /// What an exhaustive search of each window finds, and the groups of operations that may share a region where that is
    /// worth more than what `greedy` found. Between windows nothing was searched.
    pub(super) fn exact(&self, greedy: &Partition) -> (ExactSearch, Option<Groups>) {
        let mut report = ExactSearch::default();
        let mut groups = Groups::new();
        let mut known: HashMap<Vec<(Role, Form)>, Option<Solved>> = HashMap::new();
        let given: Given = Rc::new(greedy.regions.iter().filter_map(forwarded_to).collect());
        let seen = Seen { sized: self.sized(), given: given.clone() };
        let form = |v: &ValueId| given.get(v).map(|(stats, commuted)| (stats.tile, *commuted));
        let mut better = false;
        for (number, window) in self.windows().into_iter().enumerate() {
            let roles: Vec<(Role, Form)> = self.roles(&window).into_iter().zip(window.iter().map(form)).collect();
            if !known.contains_key(&roles) {
                let solved = self.search(&window, greedy, &seen, &mut report.work);
                report.windows += 1;
                report.unsearched += u32::from(solved.is_none());
                if let Some(s) = &solved {
                    report.greedy_ns += nanoseconds(&s.greedy);
                    report.exact_ns += nanoseconds(if s.wins() { &s.exact } else { &s.greedy });
                    report.improved += u32::from(s.wins());
                }
                known.insert(roles.clone(), solved);
            }
            let regions: Vec<Vec<usize>> = match known.get(&roles) {
                Some(Some(s)) if s.wins() => {
                    better = true;
                    s.regions.clone()
                }
                _ => self.greedy_sets(&window, greedy),
            };
            for (group, set) in regions.into_iter().enumerate() {
                groups.extend(set.into_iter().map(|i| (window[i], (number, group))));
            }
        }
        (report, better.then_some(groups))
    }
    /// The launches of the graph, by window, in graph order.
    fn windows(&self) -> Vec<Vec<ValueId>> {
        let nodes: Vec<ValueId> = self.order.iter().copied().filter(|v| is_launch(self.graph, *v)).collect();
        let index: HashMap<ValueId, usize> = nodes.iter().enumerate().map(|(i, v)| (*v, i)).collect();
        let mut root: Vec<usize> = (0..nodes.len()).collect();
        fn find(root: &mut [usize], mut i: usize) -> usize {
            while root[i] != i {
                root[i] = root[root[i]];
                i = root[i];
            }
            i
        }
        let anchors: Vec<ValueId> = nodes.iter().copied().filter(|v| is_anchor(self.graph.op(*v))).collect();
        let mut lefts: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (i, v) in nodes.iter().enumerate() {
            let mut joined: Vec<usize> = Vec::new();
            for u in self.producers(*v) {
                if let Some(u) = index.get(&u).filter(|_| self.may_join(u, *v, &anchors)) {
                    joined.push(*u);
                }
            }
            if let (Op::MatMul { .. }, Some(left)) = (self.graph.op(*v), self.graph.operands(*v).first()) {
                joined.extend(lefts.insert(*left, i));
            }
            for u in joined {
                let (a, b) = (find(&mut root, u), find(&mut root, i));
                root[a.max(b)] = a.min(b);
            }
        }
        let mut windows: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
        for (i, v) in nodes.iter().enumerate() {
            let r = find(&mut root, i);
            windows.entry(r).or_default().push(*v);
        }
        windows.into_values().filter(|w| w.len() > 1).collect()
    }
    /// The launches that an operation reads, through views and what is as cheap.
    fn producers(&self, v: ValueId) -> Vec<ValueId> {
        let mut out = Vec::new();
        let mut stack = self.graph.operands(v);
        while let Some(o) = stack.pop() {
            if is_launch(self.graph, o) {
                if !out.contains(&o) {
                    out.push(o);
                }
            } else if !self.graph.op(o).is_source() {
                stack.extend(self.graph.operands(o));
            }
        }
        out.sort();
        out
    }
    /// Whether the two may share a kernel as far as their kinds say, and those of what lies between them.
    fn may_join(&self, u: ValueId, v: ValueId, anchors: &[ValueId]) -> bool {
        if anchors.iter().any(|w| self.depends(*w, u) && self.depends(v, *w)) {
            return false;
        }
        match (self.graph.op(u), self.graph.op(v)) {
            (Op::Norm { .. }, Op::MatMul { .. }) => true,
            (from, Op::MatMul { .. }) => {
                let few = self.at_most_few(&self.rows(v));
                few && !is_anchor(from)
            }
            (_, to) => !is_anchor(to),
        }
    }
    fn roles(&self, window: &[ValueId]) -> Vec<Role> {
        let at = |v: &ValueId| window.iter().position(|w| w == v);
        let role = |v: &ValueId| {
            let (shape, ty) = shape_of(self.graph, self.tables, *v);
            let read = |o: &ValueId| (at(o), self.graph.ty(*o).clone());
            let reads = self.producers(*v).iter().chain(&self.graph.operands(*v)).map(read).collect();
            let leaves = self.graph.is_output(*v) || self.users(*v).iter().any(|u| at(u).is_none());
            (shape, ty, reads, leaves)
        };
        window.iter().map(role).collect()
    }
    /// The operations of a window as `greedy` divides them.
    fn greedy_sets(&self, window: &[ValueId], greedy: &Partition) -> Vec<Vec<usize>> {
        let mut sets: Vec<Vec<usize>> = Vec::new();
        let mut left: Vec<usize> = (0..window.len()).collect();
        for r in &greedy.regions {
            let members: HashSet<ValueId> = r.members().into_iter().collect();
            let (own, rest): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|i| members.contains(&window[*i]));
            left = rest;
            if !own.is_empty() {
                sets.push(own);
            }
        }
        sets.extend(left.into_iter().map(|i| vec![i]));
        sets
    }
    fn search(&self, window: &[ValueId], greedy: &Partition, seen: &Seen, work: &mut u64) -> Option<Solved> {
        if window.len() > LARGEST {
            return None;
        }
        let bits = |hit: &dyn Fn(usize) -> bool| (0..window.len()).filter(|i| hit(*i)).fold(0u32, |m, i| m | 1 << i);
        let before: Vec<u32> = window.iter().map(|v| bits(&|j| self.depends(*v, window[j]))).collect();
        let left = |v: ValueId| match self.graph.op(v) {
            Op::MatMul { .. } => self.graph.operands(v).first().copied(),
            _ => None,
        };
        let reads: Vec<Vec<ValueId>> = window.iter().map(|v| self.producers(*v)).collect();
        let beside = (0..window.len()).map(|i| {
            bits(&|j| {
                let sides = left(window[i]).is_some() && left(window[i]) == left(window[j]);
                i != j && (sides || reads[i].contains(&window[j]) || reads[j].contains(&window[i]))
            })
        });
        let problem = Problem { before, beside: beside.collect() };
        let mut prices: HashMap<u32, Option<Vec<f64>>> = HashMap::new();
        let mut priced = |set: u32| -> Option<Vec<f64>> {
            prices.entry(set).or_insert_with(|| self.priced(window, set, seen)).clone()
        };
        let tiers = self.options.tiers.len();
        let mut total = |sets: &[u32]| -> Option<Vec<f64>> {
            let mut sum = vec![0.0; tiers];
            for set in sets {
                sum.iter_mut().zip(priced(*set)?).for_each(|(s, p)| *s += p);
            }
            Some(sum)
        };
        let own: Vec<u32> =
            self.greedy_sets(window, greedy).iter().map(|s| s.iter().fold(0, |m, i| m | 1 << i)).collect();
        let greedy = total(&own)?;
        let found = problem.solve(|set| total(&[set]).map(|p| p.iter().sum()))?;
        *work += found.work;
        let exact = total(&found.regions)?;
        let members = |set: &u32| (0..window.len()).filter(|i| set >> i & 1 == 1).collect();
        Some(Solved { regions: found.regions.iter().map(members).collect(), greedy, exact })
    }
    /// What the operations of `set` take as one region on each kind of device, in µs, if they are one.
    fn priced(&self, window: &[ValueId], set: u32, seen: &Seen) -> Option<Vec<f64>> {
        let inside: HashSet<ValueId> =
            window.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, v)| *v).collect();
        let products = |v: &&ValueId| matches!(self.graph.op(**v), Op::MatMul { .. });
        let mut lefts = inside.iter().filter(products).filter_map(|v| self.graph.operands(*v).first().copied());
        let first = lefts.next();
        if lefts.any(|l| Some(l) != first) {
            return None;
        }
        let part = self.alone(inside.clone(), seen.given.clone()).divide();
        // What leaves the graph without being a launch by itself has a region of its own, wherever it is looked at.
        let launches =
            |r: &Region| r.members().into_iter().filter(|v| is_launch(self.graph, *v)).collect::<HashSet<_>>();
        let regions: Vec<&Region> = part.regions.iter().filter(|r| !launches(r).is_empty()).collect();
        if regions.is_empty() || regions.iter().any(|r| launches(r) != inside) {
            return None;
        }
        let elsewhere = self.order.iter().copied().filter(|v| is_launch(self.graph, *v) && !inside.contains(v));
        let stored: HashSet<ValueId> = elsewhere.chain(part.stored.iter().copied()).collect();
        let mut sum = vec![0.0; self.options.tiers.len()];
        for region in regions {
            let site = Site { graph: &seen.sized, tables: self.tables, stored: &stored, region };
            let (spec, _) = anchors::build(&site).ok()?;
            let (weights, rest) = traffic::moved(&spec, &self.bounds);
            let (bytes, flops) = (self.number(&(weights + rest))?, self.number(&cost::flops(&spec))?);
            for (s, tier) in sum.iter_mut().zip(&self.options.tiers) {
                *s += Rates::of(*tier).launch_time_us(bytes, flops);
                if let RegionAnchor::MatMul(g) = &region.anchor {
                    *s += self.norm_time(g, *tier);
                }
            }
        }
        Some(sum)
    }
    /// A size of the run that decisions are priced at: one sequence, of as many tokens as there are rows at most, behind as
    /// many as decisions are priced at.
    fn size(&self, s: &Sym) -> Option<i64> {
        let most = |d: &Dim| self.most(d).unwrap_or(MANY_ROWS).min(MANY_ROWS) as i64;
        match s {
            Sym::Size(n) if **n == *sizes::BATCH => Some(1),
            Sym::Size(_) => Some(most(&Dim::sym(s.clone()))),
            _ => None,
        }
    }
    /// A size expression in that run.
    fn number(&self, d: &Dim) -> Option<f64> {
        d.eval(&|s: &Sym| self.size(s)).ok().map(|n| n as f64)
    }
    /// The graph in that run.
    fn sized(&self) -> Graph {
        let (mut graph, mut log) = (self.graph.clone(), Log::default());
        let number = |d: &Dim| d.substitute(&|s| self.size(s).map(Dim::constant));
        Editor::new(&mut graph, "price", &mut log).retype(&mut |op, ty| {
            op.map_dims(&number);
            ty.shape.iter_mut().for_each(|d| *d = number(d));
        });
        graph
    }
}
