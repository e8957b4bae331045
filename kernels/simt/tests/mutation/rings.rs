//! Bugs planted in rings between warpgroups: each breaks one step at one site.

use super::{Operator, edited, removed};
use frit_kernels::ir::{Barrier, BinaryOp, Expr, Literal, Module, Stmt, WarpgroupOp as W};

/// Every kind.
pub const OPERATORS: &[Operator] = &[
    Operator { name: "arrival dropped", plant: drop_arrival },
    Operator { name: "phase not awaited", plant: drop_await },
    Operator { name: "other phase awaited", plant: other_parity },
    Operator { name: "arrival too few", plant: fewer_arrivals },
    Operator { name: "stores not published", plant: drop_publish },
    Operator { name: "product not waited for", plant: late_settle },
    Operator { name: "tile of another column", plant: |m, site| shift_corner(m, site, 0, 8) },
    Operator { name: "tile of another row", plant: |m, site| shift_corner(m, site, 1, 1) },
    Operator { name: "fewer bytes announced", plant: fewer_bytes },
    Operator { name: "barrier of a subgroup dropped", plant: drop_subgroup_barrier },
    Operator { name: "sums in another order", plant: swap_sums },
];

fn drop_arrival(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Arrive { .. })))
}

fn drop_await(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Await { .. })))
}

fn other_parity(m: &mut Module, site: usize) -> bool {
    let one = m.exprs.append(Expr::Literal(Literal::U32(1)));
    let mut at = None;
    let found = edited(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Await { .. })), &mut |s| {
        if let Stmt::Warpgroup(W::Await { parity, .. }) = s {
            at = Some(*parity);
        }
    });
    let Some(parity) = at else { return found };
    let other = m.exprs.append(Expr::Binary(BinaryOp::BitXor, parity, one));
    edited(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Await { .. })), &mut |s| {
        if let Stmt::Warpgroup(W::Await { parity, .. }) = s {
            *parity = other;
        }
    })
}

fn fewer_arrivals(m: &mut Module, site: usize) -> bool {
    edited(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Init { .. })), &mut |s| {
        if let Stmt::Warpgroup(W::Init { arrivals, .. }) = s {
            *arrivals -= 1;
        }
    })
}

fn drop_publish(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Publish)))
}

fn late_settle(m: &mut Module, site: usize) -> bool {
    edited(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Settle(_))), &mut |s| {
        if let Stmt::Warpgroup(W::Settle(pending)) = s {
            *pending += 1;
        }
    })
}

fn shift_corner(m: &mut Module, site: usize, axis: usize, by: u32) -> bool {
    let pick = |s: &Stmt| matches!(s, Stmt::Warpgroup(W::Bring { .. }));
    let mut at = None;
    edited(m, site, &pick, &mut |s| {
        if let Stmt::Warpgroup(W::Bring { corner, .. }) = s {
            at = Some(corner[axis]);
        }
    });
    let Some(before) = at else { return false };
    let by = m.exprs.append(Expr::Literal(Literal::U32(by)));
    let moved = m.exprs.append(Expr::Binary(BinaryOp::Add, before, by));
    edited(m, site, &pick, &mut |s| {
        if let Stmt::Warpgroup(W::Bring { corner, .. }) = s {
            corner[axis] = moved;
        }
    })
}

fn fewer_bytes(m: &mut Module, site: usize) -> bool {
    edited(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Arrive { bytes: 1.., .. })), &mut |s| {
        if let Stmt::Warpgroup(W::Arrive { bytes, .. }) = s {
            *bytes -= 128;
        }
    })
}

fn drop_subgroup_barrier(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Barrier(Barrier::Subgroup)))
}

fn swap_sums(m: &mut Module, site: usize) -> bool {
    edited(m, site, &|s| matches!(s, Stmt::Warpgroup(W::Multiply { .. })), &mut |s| {
        if let Stmt::Warpgroup(W::Multiply { sums, .. }) = s {
            sums.swap(0, 1);
        }
    })
}
