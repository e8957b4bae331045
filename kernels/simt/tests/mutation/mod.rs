//! Bugs planted in kernel IR. Each operator breaks one thing at one site; sites are counted in the order of the text for
//! statements and in the order of the arena for expressions.

pub mod equivalent;
pub mod overlaps;
pub mod rings;
pub mod subjects;

use frit_kernels::ir::{
    ArrayRef, BinaryOp, Block, Collective, Expr, HalfFormat, Handle, Literal, Module, Stmt, TernaryOp, TileOp, UnaryOp,
};

/// A kind of bug.
pub struct Operator {
    /// Its name.
    pub name: &'static str,
    /// Plants it at a site; `false` when there are fewer sites.
    pub plant: fn(&mut Module, usize) -> bool,
}

/// Every kind.
pub const OPERATORS: &[Operator] = &[
    Operator { name: "barrier dropped", plant: drop_barrier },
    Operator { name: "copy not waited for", plant: drop_wait },
    Operator { name: "wait one group short", plant: weaken_wait },
    Operator { name: "guard always true", plant: drop_guard },
    Operator { name: "guard off by one", plant: loosen_guard },
    Operator { name: "loop one step short", plant: shorten_loop },
    Operator { name: "stride off by one", plant: wrong_stride },
    Operator { name: "load one further", plant: shift_load },
    Operator { name: "store one further", plant: shift_store },
    Operator { name: "store dropped", plant: drop_store },
    Operator { name: "stale accumulator", plant: stale_accumulator },
    Operator { name: "update dropped", plant: drop_assignment },
    Operator { name: "fragment registers swapped", plant: swap_fragment },
    Operator { name: "matrix rows mixed up", plant: shift_tile_load },
    Operator { name: "half format mistaken", plant: wrong_format },
    Operator { name: "shuffle among the wrong lanes", plant: wrong_shuffle },
    Operator { name: "workgroup array too short", plant: shorten_array },
    Operator { name: "sum and difference mixed up", plant: swap_sum },
    Operator { name: "largest and smallest mixed up", plant: swap_extremes },
    Operator { name: "choice reversed", plant: swap_select },
    Operator { name: "root not taken", plant: drop_root },
];

/// Edits the statement at a site among those that `pick` takes.
fn statement(
    block: &mut Block,
    site: &mut usize,
    pick: &dyn Fn(&Stmt) -> bool,
    edit: &mut dyn FnMut(&mut Block, usize),
) -> bool {
    for i in 0..block.len() {
        if pick(&block[i]) {
            if *site == 0 {
                edit(block, i);
                return true;
            }
            *site -= 1;
        }
        let found = match &mut block[i] {
            Stmt::For { body, .. } => statement(body, site, pick, edit),
            Stmt::If { then, otherwise, .. } => {
                statement(then, site, pick, edit) || statement(otherwise, site, pick, edit)
            }
            _ => false,
        };
        if found {
            return true;
        }
    }
    false
}

fn edited(m: &mut Module, mut site: usize, pick: &dyn Fn(&Stmt) -> bool, edit: &mut dyn FnMut(&mut Stmt)) -> bool {
    statement(&mut m.body, &mut site, pick, &mut |b, i| edit(&mut b[i]))
}

fn removed(m: &mut Module, mut site: usize, pick: &dyn Fn(&Stmt) -> bool) -> bool {
    statement(&mut m.body, &mut site, pick, &mut |b, i| drop(b.remove(i)))
}

/// Replaces the expression at a site among those that `pick` takes.
fn replaced(m: &mut Module, site: usize, new: &dyn Fn(&mut Module, Handle<Expr>) -> Option<Expr>) -> bool {
    let all: Vec<Handle<Expr>> = m.exprs.iter().map(|(h, _)| h).collect();
    let mut left = site;
    for h in all {
        if let Some(e) = new(m, h) {
            if left == 0 {
                m.exprs[h] = e;
                return true;
            }
            left -= 1;
        }
    }
    false
}

fn literal(m: &mut Module, l: Literal) -> Handle<Expr> {
    m.exprs.append(Expr::Literal(l))
}

fn one_more(m: &mut Module, h: Handle<Expr>) -> Handle<Expr> {
    let one = literal(m, Literal::U32(1));
    m.exprs.append(Expr::Binary(BinaryOp::Add, h, one))
}

fn drop_barrier(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Barrier(_)))
}

fn drop_wait(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Tile(TileOp::Wait(_))))
}

fn weaken_wait(m: &mut Module, site: usize) -> bool {
    edited(m, site, &|s| matches!(s, Stmt::Tile(TileOp::Wait(_))), &mut |s| {
        if let Stmt::Tile(TileOp::Wait(n)) = s {
            *n += 1;
        }
    })
}

fn drop_guard(m: &mut Module, site: usize) -> bool {
    let yes = literal(m, Literal::Bool(true));
    edited(m, site, &|s| matches!(s, Stmt::If { .. }), &mut |s| {
        if let Stmt::If { cond, .. } = s {
            *cond = yes;
        }
    })
}

fn loosen_guard(m: &mut Module, site: usize) -> bool {
    replaced(m, site, &|m, h| match m.exprs[h] {
        Expr::Binary(BinaryOp::Lt, a, b) => Some(Expr::Binary(BinaryOp::Le, a, b)),
        Expr::Binary(BinaryOp::Le, a, b) => Some(Expr::Binary(BinaryOp::Lt, a, b)),
        Expr::Binary(BinaryOp::Ge, a, b) => Some(Expr::Binary(BinaryOp::Gt, a, b)),
        Expr::Binary(BinaryOp::Gt, a, b) => Some(Expr::Binary(BinaryOp::Ge, a, b)),
        _ => None,
    })
}

/// The first step of a loop is left out.
fn shorten_loop(m: &mut Module, site: usize) -> bool {
    let pick = |s: &Stmt| matches!(s, Stmt::For { .. });
    let (mut left, mut at) = (site, None);
    statement(&mut m.body, &mut left, &pick, &mut |b, i| {
        if let Stmt::For { start, step, .. } = &b[i] {
            at = Some((*start, *step));
        }
    });
    let Some((first, by)) = at else { return false };
    let later = m.exprs.append(Expr::Binary(BinaryOp::Add, first, by));
    edited(m, site, &pick, &mut |s| {
        if let Stmt::For { start, .. } = s {
            *start = later;
        }
    })
}

/// A product of an index with a constant takes the next constant.
fn wrong_stride(m: &mut Module, site: usize) -> bool {
    replaced(m, site, &|m, h| {
        let Expr::Binary(BinaryOp::Mul, a, b) = m.exprs[h] else { return None };
        let next = |h: Handle<Expr>| match m.exprs[h] {
            Expr::Literal(Literal::U32(v)) if v > 1 => Some(Literal::U32(v + 1)),
            Expr::Literal(Literal::I32(v)) if v > 1 => Some(Literal::I32(v + 1)),
            _ => None,
        };
        let l = next(b)?;
        let b = literal(m, l);
        Some(Expr::Binary(BinaryOp::Mul, a, b))
    })
}

fn shift_load(m: &mut Module, site: usize) -> bool {
    replaced(m, site, &|m, h| {
        let Expr::Load { array, index } = m.exprs[h] else { return None };
        if let ArrayRef::Private(_) = array {
            return None;
        }
        let index = one_more(m, index);
        Some(Expr::Load { array, index })
    })
}

fn shift_store(m: &mut Module, site: usize) -> bool {
    let pick = |s: &Stmt| matches!(s, Stmt::Store { array: ArrayRef::Buffer(_) | ArrayRef::Workgroup(_), .. });
    let mut left = site;
    let mut at = None;
    statement(&mut m.body, &mut left, &pick, &mut |b, i| {
        if let Stmt::Store { index, .. } = &b[i] {
            at = Some(*index);
        }
    });
    let Some(at) = at else { return false };
    let further = one_more(m, at);
    edited(m, site, &pick, &mut |s| {
        if let Stmt::Store { index, .. } = s {
            *index = further;
        }
    })
}

fn drop_store(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Store { .. }))
}

/// A float variable starts at one where it should at zero.
fn stale_accumulator(m: &mut Module, site: usize) -> bool {
    let zero = |h: Handle<Expr>, m: &Module| match &m.exprs[h] {
        Expr::Literal(Literal::F32(0)) => true,
        Expr::Splat { value, .. } => m.exprs[*value] == Expr::Literal(Literal::F32(0)),
        _ => false,
    };
    let one = literal(m, Literal::f32(1.0));
    let starts: Vec<Handle<Expr>> = m.exprs.iter().map(|(h, _)| h).filter(|h| zero(*h, m)).collect();
    let of = |h: Handle<Expr>, m: &mut Module| match m.exprs[h] {
        Expr::Splat { width, .. } => m.exprs.append(Expr::Splat { width, value: one }),
        _ => one,
    };
    let ones: Vec<(Handle<Expr>, Handle<Expr>)> = starts.into_iter().map(|h| (h, of(h, m))).collect();
    let known = ones.clone();
    let pick = move |s: &Stmt| matches!(s, Stmt::Var { init, .. } if known.iter().any(|(z, _)| z == init));
    edited(m, site, &pick, &mut |s| {
        if let Stmt::Var { init, .. } = s {
            *init = ones.iter().find(|(z, _)| z == init).map_or(*init, |(_, o)| *o);
        }
    })
}

fn drop_assignment(m: &mut Module, site: usize) -> bool {
    removed(m, site, &|s| matches!(s, Stmt::Assign { .. }))
}

/// The two registers of the right fragment, or the middle ones of the left.
fn swap_fragment(m: &mut Module, site: usize) -> bool {
    let mut operands: Vec<Handle<Expr>> = Vec::new();
    fn collect(block: &Block, out: &mut Vec<Handle<Expr>>) {
        for s in block {
            if let Stmt::Tile(TileOp::Multiply { a, b, .. }) = s {
                out.extend([*a, *b]);
            }
            s.blocks().into_iter().for_each(|b| collect(b, out));
        }
    }
    collect(&m.body, &mut operands);
    let Some(h) = operands.get(site).copied() else { return false };
    let unsigned = |m: &mut Module, lane| m.exprs.append(Expr::Extract { value: h, lane });
    let swapped = match m.exprs[h].clone() {
        Expr::Compose(mut parts) => {
            let (i, j) = if parts.len() == 4 { (1, 2) } else { (0, 1) };
            parts.swap(i, j);
            m.exprs.append(Expr::Compose(parts))
        }
        _ => {
            let parts = [0, 2, 1, 3].map(|lane| unsigned(m, lane)).to_vec();
            m.exprs.append(Expr::Compose(parts))
        }
    };
    let mut left = site;
    fn set(block: &mut Block, left: &mut usize, to: Handle<Expr>) -> bool {
        for s in block {
            let done = match s {
                Stmt::Tile(TileOp::Multiply { a, b, .. }) => {
                    let place = match *left {
                        0 => Some(a),
                        1 => Some(b),
                        _ => None,
                    };
                    match place {
                        Some(p) => {
                            *p = to;
                            true
                        }
                        None => {
                            *left -= 2;
                            false
                        }
                    }
                }
                Stmt::For { body, .. } => set(body, left, to),
                Stmt::If { then, otherwise, .. } => set(then, left, to) || set(otherwise, left, to),
                _ => false,
            };
            if done {
                return true;
            }
        }
        false
    }
    set(&mut m.body, &mut left, swapped)
}

fn shift_tile_load(m: &mut Module, site: usize) -> bool {
    let pick = |s: &Stmt| matches!(s, Stmt::Tile(TileOp::Load { .. }));
    let (mut left, mut at) = (site, None);
    statement(&mut m.body, &mut left, &pick, &mut |b, i| {
        if let Stmt::Tile(TileOp::Load { index, .. }) = &b[i] {
            at = Some(*index);
        }
    });
    let Some(at) = at else { return false };
    let one = literal(m, Literal::U32(1));
    let other = m.exprs.append(Expr::Binary(BinaryOp::BitXor, at, one));
    edited(m, site, &pick, &mut |s| {
        if let Stmt::Tile(TileOp::Load { index, .. }) = s {
            *index = other;
        }
    })
}

fn wrong_format(m: &mut Module, site: usize) -> bool {
    edited(m, site, &|s| matches!(s, Stmt::Tile(TileOp::Multiply { .. })), &mut |s| {
        if let Stmt::Tile(TileOp::Multiply { format, .. }) = s {
            *format = match format {
                HalfFormat::F16 => HalfFormat::Bf16,
                HalfFormat::Bf16 => HalfFormat::F16,
            };
        }
    })
}

fn wrong_shuffle(m: &mut Module, site: usize) -> bool {
    edited(m, site, &|s| matches!(s, Stmt::Collective { .. }), &mut |s| {
        if let Stmt::Collective { op, .. } = s {
            *op = match *op {
                Collective::ShuffleXor(mask) => Collective::ShuffleXor(if mask == 1 { 2 } else { mask / 2 }),
                Collective::Add => Collective::Max,
                Collective::Max => Collective::Min,
                Collective::Min => Collective::Max,
                Collective::BroadcastFirst => Collective::ShuffleXor(1),
                Collective::Broadcast(lane) => Collective::Broadcast(lane ^ 1),
            };
        }
    })
}

fn shorten_array(m: &mut Module, site: usize) -> bool {
    let Some(h) = m.workgroup.iter().map(|(h, _)| h).nth(site) else { return false };
    let len = m.workgroup[h].len;
    m.workgroup[h].len = len - (len / 8).max(1);
    len > 1
}

fn swap_sum(m: &mut Module, site: usize) -> bool {
    replaced(m, site, &|m, h| match m.exprs[h] {
        Expr::Binary(BinaryOp::Sub, a, b) => Some(Expr::Binary(BinaryOp::Add, a, b)),
        Expr::Ternary(TernaryOp::Fma, a, b, _) => Some(Expr::Binary(BinaryOp::Mul, a, b)),
        _ => None,
    })
}

fn swap_extremes(m: &mut Module, site: usize) -> bool {
    replaced(m, site, &|m, h| match m.exprs[h] {
        Expr::Binary(BinaryOp::Max, a, b) => Some(Expr::Binary(BinaryOp::Min, a, b)),
        Expr::Binary(BinaryOp::Min, a, b) => Some(Expr::Binary(BinaryOp::Max, a, b)),
        _ => None,
    })
}

fn swap_select(m: &mut Module, site: usize) -> bool {
    replaced(m, site, &|m, h| match m.exprs[h] {
        Expr::Ternary(TernaryOp::Select, c, a, b) => Some(Expr::Ternary(TernaryOp::Select, c, b, a)),
        _ => None,
    })
}

fn drop_root(m: &mut Module, site: usize) -> bool {
    replaced(m, site, &|m, h| match m.exprs[h] {
        Expr::Unary(UnaryOp::Rsqrt, a) => Some(Expr::Unary(UnaryOp::Rcp, a)),
        Expr::Unary(UnaryOp::Exp, a) => Some(Expr::Unary(UnaryOp::Abs, a)),
        Expr::Unary(UnaryOp::Exp2, a) => Some(Expr::Unary(UnaryOp::Abs, a)),
        _ => None,
    })
}
