//! Row statistics: a team of invocations reduces one row, and every one of them learns the results.

use super::common::{KernelCtx, Scope};
use crate::ir::{ArrayRef, Builder, Collective, Type, Val, Var};
use crate::spec::{Expr, ExprId, ReduceOp, Stat};
use crate::target::Tier;

/// The invocations that share a row. `lanes` is a power of two; the teams of a workgroup lie one after the other.
pub(super) struct Team {
    /// Invocations of a team.
    pub lanes: u32,
    /// Teams of a workgroup.
    pub teams: u32,
    /// Number of this invocation in its team.
    pub lane: Val,
    /// Number of the team in the workgroup.
    pub team: Val,
    /// Whether the team has a row; all its invocations agree.
    pub active: Val,
    /// Elements of a row, from its start, of which an invocation asks for [`AHEAD`] before it takes the first: a multiple
    /// of that and of `lanes`.
    pub ahead: u32,
}

/// Elements that an invocation asks for at once.
pub(super) const AHEAD: u32 = 8;

/// Stands for the place where no element was larger than the least: then it is the first.
const NOWHERE: i32 = i32::MAX;

struct Slot<'s> {
    stat: &'s Stat,
    value: Var,
    place: Option<Var>,
    values: Option<ArrayRef>,
    places: Option<ArrayRef>,
}

impl KernelCtx<'_> {
    /// Adds the finished statistics to `scope`, in which the row axes are bound; `axis` runs over `extent`.
    ///
    /// Statistics that need no other one are reduced in one pass. The order of a sum depends on `extent` and
    /// `team.lanes` only. Contains barriers: call it in uniform control flow, with a uniform `extent`. Statistics that are
    /// joined from those of tiles run over the tiles instead.
    pub(super) fn row_stats(&self, scope: &mut Scope, stats: &[Stat], axis: usize, extent: Val, team: &Team) {
        let extent = self.spec.stats_over.as_ref().map_or(extent, |tiles| self.extent(tiles));
        let mut done = 0;
        while done < stats.len() {
            let more = stats.iter().skip(done).take_while(|s| self.uses_stats_below(s.value, done)).count().max(1);
            let Some(pass) = stats.get(done..done + more) else { return };
            self.pass(scope, pass, &|row, i| row.with(axis, i), extent, team);
            done += more;
        }
    }
    /// Adds statistics of `extent` columns to `scope`; `at` gives the scope of a column, with its accumulators. Contains
    /// barriers: call it in uniform control flow.
    pub(super) fn column_stats(
        &self,
        scope: &mut Scope,
        stats: &[Stat],
        at: &dyn Fn(&Scope, Val) -> Scope,
        extent: Val,
        team: &Team,
    ) {
        for s in stats {
            self.pass(scope, std::slice::from_ref(s), at, extent, team);
        }
    }
    /// Walks `start, start + lanes, …` below `extent`; `body` has the place and, where all lanes walk as many turns, the
    /// number of the turn. Software drivers unroll such a loop, since its end does not depend on the lane.
    pub(super) fn in_turns(
        &self,
        (start, lane): (Val, Val),
        extent: Val,
        lanes: u32,
        body: impl FnOnce(&Builder, Val, Option<Val>),
    ) {
        let b = &self.b;
        let even = b.const_u32(extent).is_some_and(|n| n.is_multiple_of(lanes));
        if self.caps.tier == Tier::Cpu && lanes > 1 && even && start == lane {
            let shift = lanes.trailing_zeros();
            return b.for_("from", 0, extent, lanes, |b, from| {
                let i = b.let_("i", b.add(from, lane));
                body(b, i, Some(b.shr(from, shift)));
            });
        }
        b.for_("i", start, extent, lanes, |b, i| body(b, i, None));
    }
    fn uses_stats_below(&self, e: ExprId, limit: usize) -> bool {
        self.spec.exprs.reachable(&[e]).into_iter().all(|x| match self.spec.exprs.get(x) {
            Expr::Stat(j) => (*j as usize) < limit,
            _ => true,
        })
    }
    fn pass(&self, scope: &mut Scope, stats: &[Stat], at: &dyn Fn(&Scope, Val) -> Scope, extent: Val, team: &Team) {
        let b = &self.b;
        // One place an invocation, or one a subgroup.
        let places = self.subgroup().map_or(team.lanes, |size| team.lanes / size);
        let shared = |name: &str, ty: Type| (places > 1).then(|| b.workgroup(name, ty, places * team.teams));
        let slots: Vec<Slot> = stats
            .iter()
            .map(|stat| {
                let (first, arg) = (initial(stat.op), stat.op == ReduceOp::ArgMax);
                Slot {
                    stat,
                    value: b.var("reduced", Type::F32, first),
                    place: arg.then(|| b.var("place", Type::I32, b.i32(NOWHERE))),
                    values: shared("partial", Type::F32),
                    places: if arg { shared("partial_place", Type::I32) } else { None },
                }
            })
            .collect();
        b.if_(team.active, |b| {
            let mut row = scope.clone();
            let values: Vec<ExprId> = stats.iter().map(|s| s.value).collect();
            self.hoist(&mut row, &values);
            let value = |s: &Slot, i: Val, turn: Option<Val>| {
                let mut here = at(&row, i);
                here.turn = turn;
                let v = self.expr(&mut here, s.stat.value);
                (v, s.place.map(|p| (p, b.cast(crate::ir::Scalar::I32, i))))
            };
            // of tiles there are few
            let ahead = if self.spec.stats_over.is_some() { 0 } else { team.ahead };
            if ahead > 0 {
                b.for_("i", team.lane, b.add(b.u32(ahead), team.lane), team.lanes * AHEAD, |b, i| {
                    let places: Vec<Val> = (0..AHEAD).map(|u| b.let_("at", b.add(i, u * team.lanes))).collect();
                    for s in &slots {
                        let values: Vec<_> = places.iter().map(|i| value(s, *i, None)).collect();
                        let values: Vec<_> = values.into_iter().map(|(v, place)| (b.let_("value", v), place)).collect();
                        values.into_iter().for_each(|(v, place)| fold(b, s, v, place));
                    }
                });
            }
            let start = if ahead > 0 { b.add(b.u32(ahead), team.lane) } else { team.lane };
            self.in_turns((start, team.lane), extent, team.lanes, |b, i, turn| {
                for s in &slots {
                    let (v, place) = value(s, i, turn);
                    fold(b, s, v, place);
                }
            });
        });
        match self.subgroup() {
            Some(size) => self.exchange(&slots, team, size),
            None => self.tree(&slots, team),
        }
        for s in &slots {
            let own = |array: Option<ArrayRef>, var: Var| match array {
                Some(a) if !self.shuffles() => b.load(a, b.mul(team.team, team.lanes)),
                _ => b.get(var),
            };
            let raw = match s.place {
                Some(place) => {
                    let place = b.let_("place", own(s.places, place));
                    b.select(b.eq(place, b.i32(NOWHERE)), b.i32(0), place)
                }
                None => own(s.values, s.value),
            };
            let finished = self.finished(scope, s.stat, raw);
            scope.push_stat(finished);
        }
    }
    /// What a statistic is once its row is reduced to `raw`.
    pub(super) fn finished(&self, scope: &Scope, stat: &Stat, raw: Val) -> Val {
        let raw = self.b.let_("stat", raw);
        let Some(e) = stat.finish else { return raw };
        let mut here = scope.clone();
        here.push_stat(raw);
        self.b.let_("stat", self.expr(&mut here, e))
    }
    /// Joins the partial results of a team, which every one of its invocations then holds: those of each subgroup by
    /// shuffles, then those of the subgroups in order.
    fn exchange(&self, slots: &[Slot], team: &Team, size: u32) {
        let b = &self.b;
        let mut mask = team.lanes.min(size) / 2;
        while mask > 0 {
            for s in slots {
                let from = |var: Var| b.collective("other", Collective::ShuffleXor(mask), b.get(var));
                let place = s.place.map(|p| (p, from(p)));
                fold(b, s, from(s.value), place);
            }
            mask /= 2;
        }
        let warps = team.lanes / size;
        if warps <= 1 {
            return;
        }
        let first = b.let_("first", b.mul(team.team, warps));
        b.if_(b.eq(b.bit_and(team.lane, size - 1), 0), |b| {
            let own = b.add(first, b.shr(team.lane, size.trailing_zeros()));
            for s in slots {
                if let Some(a) = s.values {
                    b.store(a, own, s.value);
                }
                if let (Some(a), Some(p)) = (s.places, s.place) {
                    b.store(a, own, p);
                }
            }
        });
        b.barrier();
        for s in slots {
            let Some(values) = s.values else { continue };
            b.set(s.value, b.load(values, first));
            if let (Some(a), Some(p)) = (s.places, s.place) {
                b.set(p, b.load(a, first));
            }
            for i in 1..warps {
                let at = b.add(first, i);
                let place = s.place.zip(s.places).map(|(p, a)| (p, b.load(a, at)));
                fold(b, s, b.load(values, at), place);
            }
        }
    }
    /// Joins the partial results of a team; the first lane's place holds the result behind the last barrier.
    fn tree(&self, slots: &[Slot], team: &Team) {
        let b = &self.b;
        if team.lanes == 1 {
            return;
        }
        let own = b.let_("slot", b.add(b.mul(team.team, team.lanes), team.lane));
        let keep = |s: &Slot| {
            if let Some(a) = s.values {
                b.store(a, own, s.value);
            }
            if let (Some(a), Some(p)) = (s.places, s.place) {
                b.store(a, own, p);
            }
        };
        slots.iter().for_each(keep);
        b.barrier();
        let mut stride = team.lanes / 2;
        while stride > 0 {
            b.if_(b.lt(team.lane, stride), |b| {
                let other = b.add(own, stride);
                for s in slots {
                    if let Some(a) = s.values {
                        let place = s.place.zip(s.places).map(|(p, a)| (p, b.load(a, other)));
                        fold(b, s, b.load(a, other), place);
                    }
                    keep(s);
                }
            });
            b.barrier();
            stride /= 2;
        }
    }
}

/// What a reduction of nothing is.
pub(super) fn initial(op: ReduceOp) -> f32 {
    match op {
        ReduceOp::Sum => 0.0,
        ReduceOp::Prod => 1.0,
        ReduceOp::Max => -3.0e38,
        ReduceOp::Min => 3.0e38,
        ReduceOp::ArgMax => f32::MIN,
    }
}

/// Takes one more value into a reduction. Of equal largest values the one at the smaller place stays.
fn fold(b: &Builder, s: &Slot, v: Val, place: Option<(Var, Val)>) {
    match (s.stat.op, place) {
        (ReduceOp::ArgMax, Some((var, at))) => take_larger(b, (s.value, var), (v, at)),
        (op, _) => b.set(s.value, combine(b, op, b.get(s.value), v)),
    }
}

/// Takes one more value at its place into the largest so far and its place, the smallest among those of equal ones.
pub(super) fn take_larger(b: &Builder, (largest, place): (Var, Var), (v, at): (Val, Val)) {
    let so_far = b.get(largest);
    let earlier = b.and(b.eq(v, so_far), b.lt(at, place));
    let better = b.or(b.gt(v, so_far), earlier);
    b.set(place, b.select(better, at, place));
    b.set(largest, b.max(so_far, v));
}

/// Two values of a reduction as one; of an arg-reduction, the value without its place.
pub(super) fn combine(b: &Builder, op: ReduceOp, x: Val, y: Val) -> Val {
    match op {
        ReduceOp::Sum => b.add(x, y),
        ReduceOp::Prod => b.mul(x, y),
        ReduceOp::Max | ReduceOp::ArgMax => b.max(x, y),
        ReduceOp::Min => b.min(x, y),
    }
}
