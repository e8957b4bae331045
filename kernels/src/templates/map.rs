//! Pointwise kernels: one coordinate of the domain after the other, each on its own.
//!
//! Where the last axis is long and its extent known, a workgroup takes part of one row, so that what depends on the row
//! alone is computed once. Otherwise every invocation takes one element by its running number.

use super::common::{GROUPS, KernelCtx, Scope, dispatch};
use super::{Rendered, TemplateError, View};
use crate::dim::{Dim, product};
use crate::spec::{ExprId, KernelSpec, Store};
use crate::target::{Capabilities, Tier};

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    match spec.domain.last().and_then(Dim::as_const).and_then(|n| u32::try_from(n).ok()) {
        Some(n) if n >= 128 => in_rows(spec, caps, n),
        _ => by_number(spec, caps),
    }
}

/// Invocations of a workgroup, and how many of its elements an invocation takes, for rows of `n` elements.
fn shape(n: u32, caps: &Capabilities) -> (u32, u32) {
    let (width, most) = match caps.tier {
        Tier::Cpu => (8, 16),
        Tier::Gpu | Tier::Cuda => (n.next_power_of_two().clamp(64, 256), 4),
    };
    let blocks = |per: u32| n.div_ceil(width * per);
    let best = (1..=most).min_by_key(|per| (blocks(*per) * width * per, blocks(*per)));
    (width, best.unwrap_or(1))
}

fn in_rows(spec: &KernelSpec, caps: &Capabilities, n: u32) -> Result<Rendered, TemplateError> {
    let (width, per) = shape(n, caps);
    let ctx = KernelCtx::new(spec, caps, [width, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let last = spec.domain.len() - 1;
    let row_axes = spec.domain.get(..last).unwrap_or_default();
    let blocks = n.div_ceil(width * per);
    let groups = product(row_axes) * Dim::constant(i64::from(blocks));
    let group = b.let_("group", ctx.group(&groups));
    let in_grid = is_folded(&groups).then(|| b.lt(group, ctx.extent(&groups)));
    let row = b.div(group, blocks);
    let block = b.sub(group, b.mul(row, blocks));
    b.if_(in_grid.unwrap_or_else(|| b.bool(true)), |b| {
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, row_axes, b.let_("row", row));
        let values: Vec<ExprId> = spec.stores.iter().map(|s| s.value).collect();
        ctx.hoist(&mut scope, &values);
        for st in &spec.stores {
            ctx.hoist_index(&mut scope, Some(st.arg), &st.index);
        }
        let first = b.let_("first", b.add(b.mul(block, width * per), b.local_x()));
        let stores: Vec<&Store> = spec.stores.iter().collect();
        let exact = n.is_multiple_of(width * per);
        b.for_("step", 0, width * per, width, |b, step| {
            let i = b.let_(&format!("i{last}"), b.add(first, step));
            let inside = if exact { b.bool(true) } else { b.lt(i, n) };
            b.if_(inside, |_| ctx.store_all(&scope.with(last, i), &stores));
        });
    });
    ctx.finish("map", &[("width", width), ("per_invocation", per)], dispatch(&groups))
}

fn by_number(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    let width = match caps.tier {
        Tier::Cpu => 64,
        Tier::Gpu | Tier::Cuda => 256,
    };
    let ctx = KernelCtx::new(spec, caps, [width, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let total = product(&spec.domain);
    let groups = total.ceil_div(&Dim::constant(i64::from(width)));
    let number = b.let_("number", b.add(b.mul(ctx.group(&groups), width), b.local_x()));
    b.if_(b.lt(number, ctx.extent(&total)), |_| {
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, &spec.domain, number);
        let stores: Vec<&Store> = spec.stores.iter().collect();
        ctx.store_all(&scope, &stores);
    });
    ctx.finish("map", &[("width", width), ("per_invocation", 1)], dispatch(&groups))
}

/// Whether a grid of that many workgroups may start more than there are.
pub(super) fn is_folded(groups: &Dim) -> bool {
    groups.as_const().is_none_or(|g| g > GROUPS)
}
