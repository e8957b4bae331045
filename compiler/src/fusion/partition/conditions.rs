//! Every condition of one refused edge, asked once a graph is divided: of the kernel that would hold the region of the
//! producer and the consumer, or both regions where the consumer is an anchor.
//!
//! A refusal ends with the first condition that fails. What can be asked without a kernel that another condition rules
//! out is asked here; the rest is said not to be asked, with the reason.

use super::{Partitioner, is_anchor};
use crate::fusion::Refused;
use crate::fusion::legality::{LEFT_OUT, Refusal};
use crate::fusion::region::{Region, RegionAnchor};
use crate::fusion::report::describe;
use crate::graph::{Op, ValueId};
use crate::numeric::ProofClass;
use crate::passes::recognize::{left_attention, missed};
use frit_plan::{Condition, Verdict};
use std::collections::BTreeSet;

type Answer = (Verdict, String);

fn holds(detail: impl Into<String>) -> Answer {
    (Verdict::Holds, detail.into())
}

fn fails(detail: impl Into<String>) -> Answer {
    (Verdict::Fails, detail.into())
}

fn not_asked(why: impl Into<String>) -> Answer {
    (Verdict::NotAsked, why.into())
}

/// A refused edge among finished regions.
struct Between {
    from: ValueId,
    to: ValueId,
    /// The region that computes `from`.
    maker: Option<usize>,
    /// What one kernel would compute.
    together: BTreeSet<ValueId>,
    /// The kinds of fusion that would make it, by their names in the options.
    kinds: Vec<&'static str>,
}

impl Partitioner<'_> {
    pub(in crate::fusion) fn conditions(mut self, regions: Vec<Region>, edge: &Refused) -> Vec<Condition> {
        for (id, r) in regions.iter().enumerate() {
            let own = r.anchors().into_iter().chain(r.epilogue.iter().copied());
            own.for_each(|v| _ = self.owner.entry(v).or_insert(id));
        }
        self.regions = regions;
        let between = self.between(edge);
        let ask = |code: &Refusal| {
            let (verdict, detail) =
                if *code == edge.code { fails(edge.detail.clone()) } else { self.answer(*code, &between) };
            Condition { code: code.code().into(), verdict, detail }
        };
        Refusal::ALL.iter().map(ask).collect()
    }
    fn between(&self, edge: &Refused) -> Between {
        let (from, to) = (edge.from, edge.to);
        let holding = |v: ValueId| {
            let owned = self.owner.get(&v).copied();
            owned.or_else(|| self.regions.iter().position(|r| r.prologue.contains(&v)))
        };
        let maker = holding(self.behind_views(from)).or_else(|| holding(from));
        let whole = |id: Option<usize>| id.and_then(|id| self.regions.get(id)).map(Region::members).unwrap_or_default();
        let mut together: BTreeSet<ValueId> = whole(maker).into_iter().chain([from, to]).collect();
        if is_anchor(self.graph.op(to)) {
            together.extend(whole(holding(to)));
        }
        let kinds = self.kinds(from, to, maker);
        Between { from, to, maker, together, kinds }
    }
    fn kinds(&self, from: ValueId, to: ValueId, maker: Option<usize>) -> Vec<&'static str> {
        let (a, b) = (self.graph.op(self.behind_views(from)), self.graph.op(to));
        let anchor = maker.and_then(|id| self.regions.get(id)).map(|r| &r.anchor);
        match (a, b) {
            (Op::MatMul { .. }, Op::MatMul { .. }) if !self.depends(to, from) => vec!["siblings"],
            (Op::Norm { .. }, Op::MatMul { .. }) => vec!["norm"],
            (Op::Norm { .. }, Op::Norm { .. }) => vec!["norm-pairs"],
            (_, Op::Norm { .. }) if matches!(anchor, Some(RegionAnchor::MatMul(_))) => vec!["epilogue", "head-norms"],
            (_, Op::MatMul { .. }) if matches!(anchor, Some(RegionAnchor::MatMul(_))) => vec!["chain", "conv-chain"],
            (_, Op::Reduce { .. }) if matches!(anchor, Some(RegionAnchor::MatMul(_))) => {
                vec!["epilogue", "argmax-tiles"]
            }
            (_, Op::Rope { .. }) => vec!["epilogue", "rope"],
            _ if matches!(anchor, Some(RegionAnchor::Map)) && !self.depends(to, from) => vec!["sibling-maps"],
            _ if matches!(anchor, Some(RegionAnchor::Map) | None) => vec!["prologue"],
            _ => vec!["epilogue"],
        }
    }
    /// The value that a chain of views shows.
    pub(super) fn behind_views(&self, mut v: ValueId) -> ValueId {
        while self.graph.op(v).is_view() {
            match self.graph.operands(v).first() {
                Some(o) => v = *o,
                None => break,
            }
        }
        v
    }
    fn answer(&self, code: Refusal, e: &Between) -> Answer {
        let g = self.graph;
        let (from, to) = (g.op(self.behind_views(e.from)), g.op(e.to));
        let products = matches!((from, to), (Op::MatMul { .. }, Op::MatMul { .. }));
        let siblings = e.kinds.contains(&"siblings");
        match code {
            Refusal::Cycle => self.path_outside(e),
            Refusal::Dtype => self.same_storage(e, siblings),
            Refusal::Map => self.maps(e),
            Refusal::Probs => match left_attention(g, self.tables).iter().find(|l| l.probabilities == e.from) {
                Some(l) if l.probabilities_used => fails(format!("{} is read elsewhere", describe(g, e.from))),
                _ => holds("no probabilities of attention that something else reads"),
            },
            Refusal::Dup => self.read_by_regions(e),
            Refusal::RowTile => self.rows_owned(e),
            Refusal::Commute | Refusal::Recompute | Refusal::Stat => match (from, to) {
                (Op::Norm { .. }, Op::MatMul { .. }) => {
                    not_asked("the forms of a norm in a product are priced where no other condition fails")
                }
                _ => holds("no norm in front of a product"),
            },
            Refusal::Bind => self.buffers_together(e),
            Refusal::Smem => match products && !siblings {
                true => not_asked("the tiles of two products in a row are laid out where they are chained"),
                false => holds("the tiles of one anchor, which are fixed"),
            },
            Refusal::Threads => match products && !siblings {
                true => not_asked("the workgroups of two products in a row are laid out where they are chained"),
                false => not_asked("a template that exceeds the target is an error of compiling"),
            },
            Refusal::Registers => self.values_held(e),
            Refusal::Alias => not_asked("of storage and not of kernels: the report of memory answers it"),
            Refusal::Shape => match missed(g, self.tables).into_iter().find(|(v, _)| *v == e.to) {
                Some((_, condition)) => fails(condition),
                None => holds("it resembles no operation that kernels know"),
            },
            Refusal::Dispatch => self.one_binding(e, siblings),
            Refusal::Grid => self.other_workgroups(e),
            Refusal::Effect => self.effects(e),
            Refusal::Mode => {
                let class = match e.kinds.first() {
                    Some(&("norm" | "norm-pairs" | "chain")) => ProofClass::Reassoc,
                    _ if e.kinds.contains(&"head-norms") => ProofClass::Reassoc,
                    _ => ProofClass::Bit,
                };
                let said = format!("{} in the mode {}", class.name(), self.options.numeric.name());
                if self.options.numeric.allows(class) { holds(said) } else { fails(said) }
            }
            Refusal::User => self.switched_on(e),
            Refusal::Profit => self.pays_by_bytes(e),
            Refusal::Workgroups | Refusal::Chain | Refusal::Halo => match products && !siblings {
                true => not_asked("a chain is priced where no other condition fails"),
                false => holds("not two products in a row"),
            },
            Refusal::Peak | Refusal::Measured => self.not_overruled(code, e),
            Refusal::Mismatch => not_asked("there is no kernel of both to compare with its operations"),
        }
    }
    /// Whether an operation outside depends on one inside and leads back.
    fn path_outside(&self, e: &Between) -> Answer {
        let outside = |v: &&ValueId| !e.together.contains(v) && !self.graph.op(**v).is_source();
        let between = |w: &&ValueId| {
            e.together.iter().any(|m| self.depends(**w, *m)) && e.together.iter().any(|m| self.depends(*m, **w))
        };
        match self.order.iter().filter(outside).find(between) {
            Some(w) => fails(format!("{} lies on a path out of the kernel and back", describe(self.graph, *w))),
            None => holds("no path leaves and comes back"),
        }
    }
    fn same_storage(&self, e: &Between, siblings: bool) -> Answer {
        let stored = |v| self.rhs_weight(v).and_then(|w| self.tables.weight_info(w)).map(|i| i.storage);
        match (stored(e.from), stored(e.to)) {
            (Some(a), Some(b)) if siblings && a != b => fails(format!("stored as {a} and {b}")),
            _ => holds(format!("{} and {}", self.graph.ty(e.from), self.graph.ty(e.to))),
        }
    }
    fn maps(&self, e: &Between) -> Answer {
        let g = self.graph;
        let reads = g.operands(e.to).contains(&e.from);
        match g.op(e.to) {
            _ if !reads => not_asked("the two do not follow each other directly"),
            Op::Unary(_) | Op::Cast(_) => holds("each result reads the element in its place"),
            Op::Binary(_) | Op::Select if g.ty(e.to).shape == g.ty(e.from).shape => {
                holds("each result reads the element in its place")
            }
            op if is_anchor(op) => not_asked("a reduction reads rows: see L7-ROWTILE and L14-GRID"),
            _ => not_asked("it depends on the tile of a kernel that another condition rules out"),
        }
    }
    fn read_by_regions(&self, e: &Between) -> Answer {
        let mut readers: BTreeSet<usize> = BTreeSet::new();
        let mut stack: Vec<ValueId> = self.users(e.from).to_vec();
        while let Some(u) = stack.pop() {
            let held = self.regions.iter().enumerate().filter(|(_, r)| r.members().contains(&u));
            readers.extend(held.map(|(id, _)| id));
            if self.graph.op(u).is_view() {
                stack.extend(self.users(u).iter().copied());
            }
        }
        let n = readers.iter().filter(|r| Some(**r) != e.maker).count();
        match n {
            0 | 1 => holds("one region reads it"),
            n if self.owner.contains_key(&self.behind_views(e.from)) => {
                holds(format!("{n} regions read it, and it is stored for them"))
            }
            n => fails(format!("{n} regions read it")),
        }
    }
    fn rows_owned(&self, e: &Between) -> Answer {
        let reduces = matches!(self.graph.op(e.to), Op::Norm { .. } | Op::Softmax | Op::Reduce { .. });
        let is_norm = matches!(self.graph.op(e.to), Op::Norm { .. });
        match e.maker.and_then(|id| self.regions.get(id).map(|r| (id, &r.anchor))) {
            _ if !reduces => holds("no rows are reduced behind it"),
            _ if e.kinds.contains(&"norm-pairs") => {
                not_asked("both norms are computed in the product behind them, which owns their rows")
            }
            Some((_, RegionAnchor::MatMul(g))) if is_norm => match self.head_columns(&g.members, e.from, e.to) {
                Err((Refusal::RowTile, why)) => fails(why),
                Err(_) => holds("a workgroup owns whole heads"),
                Ok(columns) => holds(format!("a workgroup owns heads of {columns}")),
            },
            None | Some((_, RegionAnchor::Map)) => holds("what is computed where it is read owns no rows"),
            Some((id, _)) => fails(self.not_whole(id, e.to)),
        }
    }
    fn buffers_together(&self, e: &Between) -> Answer {
        let anchor = e.maker.and_then(|id| self.regions.get(id)).map(|r| &r.anchor);
        let mut packed: Vec<ValueId> = match anchor {
            Some(RegionAnchor::MatMul(g)) => g.members.clone(),
            _ => Vec::new(),
        };
        if matches!(self.graph.op(e.to), Op::MatMul { .. }) && packed.is_empty() {
            packed.push(e.to);
        }
        let (n, matrices) = self.buffers(&packed, e.together.iter().copied());
        let said =
            format!("{n} of {} storage buffers, {matrices} of them matrices of weights", self.options.limit_bindings);
        if n <= self.options.limit_bindings { holds(said) } else { fails(said) }
    }
    fn values_held(&self, e: &Between) -> Answer {
        match e.maker {
            Some(id) if !is_anchor(self.graph.op(e.to)) => match self.holds(id, e.to) {
                Ok(()) => holds("what an invocation of the kernel holds at once fits its registers"),
                Err((_, detail)) => fails(detail),
            },
            _ => not_asked("it depends on the tile of a kernel that another condition rules out"),
        }
    }
    fn one_binding(&self, e: &Between, siblings: bool) -> Answer {
        if !siblings {
            return holds("no weights are packed together");
        }
        let bytes = |v| {
            let w = self.rhs_weight(v).and_then(|w| self.tables.weight_info(w))?;
            let elems = frit_kernels::dim::product(&w.shape).as_const()?;
            w.storage.size_bytes(u64::try_from(elems).ok()?)
        };
        let total: u64 = [e.from, e.to].into_iter().filter_map(bytes).sum();
        let said = format!("{total} bytes packed, {} a binding", self.options.limit_binding_bytes);
        if total <= self.options.limit_binding_bytes { holds(said) } else { fails(said) }
    }
    fn other_workgroups(&self, e: &Between) -> Answer {
        let computed = e.maker.and_then(|id| self.regions.get(id)).is_some_and(|r| r.anchor != RegionAnchor::Map);
        match self.graph.op(e.to) {
            Op::Attention(_) | Op::AttentionParts { .. } if computed => fails(self.read_by_attention(e.from, e.to)),
            Op::MatMul { .. } if computed && !e.kinds.contains(&"siblings") => {
                not_asked("whether a workgroup makes the rows that it multiplies is a question of chains")
            }
            _ => holds("it reads nothing that another workgroup makes"),
        }
    }
    fn effects(&self, e: &Between) -> Answer {
        let is_attention = e.maker.and_then(|id| self.regions.get(id));
        let is_attention = is_attention.is_some_and(|r| matches!(r.anchor, RegionAnchor::Attention(_)));
        match (self.graph.op(self.behind_views(e.from)), self.graph.op(e.to)) {
            (Op::KvAppend { .. }, _) => fails("the slot holds positions of earlier runs as well"),
            (_, Op::KvAppend { .. }) if is_attention => fails("a cache write behind the attention that reads it"),
            (_, Op::KvAppend { .. }) => holds("the cache is written behind what it stores"),
            _ => holds("no cache is written on this edge"),
        }
    }
    fn switched_on(&self, e: &Between) -> Answer {
        if let Err((Refusal::User, detail)) = self.permitted(e.from, e.to) {
            return fails(detail);
        }
        for kind in &e.kinds {
            match self.allowed(kind, "it is switched off", e.from, e.to) {
                Err((Refusal::User, said)) => return fails(format!("{kind}: {said}")),
                _ => continue,
            }
        }
        match self.options.fuel {
            Some(n) => not_asked(format!("the fuel of {n} absorptions may be spent before")),
            None => holds(format!("{} is on", e.kinds.join(", "))),
        }
    }
    fn pays_by_bytes(&self, e: &Between) -> Answer {
        if self.guarded.contains(&e.to) {
            return fails(LEFT_OUT);
        }
        if is_anchor(self.graph.op(e.to)) {
            return not_asked("the price is that of a kernel which another condition rules out");
        }
        holds(format!("one launch less, and up to {} bytes read less", self.graph.ty(e.from).bytes()))
    }
    fn not_overruled(&self, code: Refusal, e: &Between) -> Answer {
        let against = |kind: &&&str| self.options.overruled.get(**kind).is_some_and(|o| o.code() == code);
        match e.kinds.iter().find(against).and_then(|kind| self.options.overruled.get(*kind)) {
            Some(why) => fails(why.to_string()),
            None => holds(match code {
                Refusal::Peak => "no budget of memory decided against it",
                _ => "no measurement decided against it",
            }),
        }
    }
}
