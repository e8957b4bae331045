//! Live registers of a program.

use crate::op::{Op, Program, Reg};

/// Most registers alive behind one instruction, constants not counted: what an allocator would need at least.
pub(crate) fn peak(program: &Program) -> u32 {
    let n = program.code.len();
    let words = (program.registers as usize).div_ceil(64);
    let mut fixed = vec![0u64; words];
    let all = program.constants.iter().map(|c| c.0).chain(program.addresses.iter().flat_map(|a| [a.0, a.0 + 1]));
    for r in all.chain(program.parameters.iter().map(|p| p.0)) {
        mark(&mut fixed, r);
    }
    let starts = leaders(program);
    let block_of = |pc: usize| starts.partition_point(|s| *s <= pc).saturating_sub(1);
    let mut entry: Vec<Vec<u64>> = vec![vec![0; words]; starts.len()];
    let (mut changed, mut most) = (true, 0);
    while changed {
        changed = false;
        for b in (0..starts.len()).rev() {
            let end = starts.get(b + 1).copied().unwrap_or(n);
            let mut live = vec![0u64; words];
            for s in successors(program, end - 1) {
                if s < n {
                    let next = &entry[block_of(s)];
                    live.iter_mut().zip(next).for_each(|(l, n)| *l |= n);
                }
            }
            for pc in (starts[b]..end).rev() {
                let inst = &program.code[pc];
                let kills = inst.guard.is_none() && !matches!(inst.op, Op::Put { .. });
                if kills {
                    program.writes(inst, |r| clear(&mut live, r));
                }
                program.reads(inst, |r| mark(&mut live, r));
                program.accumulates(inst, |r| mark(&mut live, r));
                let count = live.iter().zip(&fixed).map(|(l, f)| (l & !f).count_ones()).sum();
                most = most.max(count);
            }
            if entry[b] != live {
                entry[b] = live;
                changed = true;
            }
        }
    }
    most
}

fn mark(set: &mut [u64], r: Reg) {
    if let Some(w) = set.get_mut(r as usize / 64) {
        *w |= 1 << (r % 64);
    }
}

fn clear(set: &mut [u64], r: Reg) {
    if let Some(w) = set.get_mut(r as usize / 64) {
        *w &= !(1 << (r % 64));
    }
}

fn successors(program: &Program, pc: usize) -> Vec<usize> {
    let inst = &program.code[pc];
    match inst.op {
        Op::Exit if inst.guard.is_none() => Vec::new(),
        Op::Bra { target, cond: None } if inst.guard.is_none() => vec![target as usize],
        Op::Bra { target, .. } => vec![pc + 1, target as usize],
        _ => vec![pc + 1],
    }
}

/// First instructions of basic blocks, ascending.
fn leaders(program: &Program) -> Vec<usize> {
    let n = program.code.len();
    let mut is = vec![false; n + 1];
    is[0] = n > 0;
    for (pc, inst) in program.code.iter().enumerate() {
        if let Op::Bra { target, .. } = inst.op {
            if let Some(t) = is.get_mut(target as usize) {
                *t = true;
            }
            is[pc + 1] = true;
        }
        if inst.op == Op::Exit {
            is[pc + 1] = true;
        }
    }
    (0..n).filter(|i| is[*i]).collect()
}
