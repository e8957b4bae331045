//! Two convolutions in a row. A workgroup owns a tile of places and a block of channels of the result. Slice by slice of the
//! channels between, it computes the values between that its windows reach, their border included, into its memory, an
//! invocation a few channels of an element, and adds their products to sums in registers, an invocation a place and a few
//! channels of the result. Neighbouring tiles compute the border between them twice; nothing between the convolutions
//! leaves a workgroup. Both sums run in the order of their axes.

use super::common::{KernelCtx, Scope, dispatch};
use super::{Rendered, TemplateError, View};
use crate::dim::Dim;
use crate::ir::{Type, Val, Var};
use crate::spec::{ConvChain, KernelSpec, Store, Window};
use crate::target::Capabilities;

/// Places of a tile, and invocations that share their channels.
const PLACES: u64 = 64;
/// Most channels of the result that an invocation adds up.
const COLUMNS: u64 = 16;
/// Most sets of invocations, each with its own channels.
const TEAMS: u64 = 4;
/// Most channels between that an invocation computes at once.
const CHANNELS: u64 = 8;

/// How one kernel is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Rows and columns of places in a tile.
    pub places: [u64; 2],
    /// Tiles along rows and columns.
    pub count: [u64; 2],
    /// Rows and columns of values between that a tile holds.
    pub halo: [u64; 2],
    /// Blocks of channels of the result; each computes the values between again.
    pub blocks: u64,
    /// Sets of invocations.
    teams: u64,
    /// Channels of the result of an invocation.
    columns: u64,
    /// Channels between of an invocation.
    each: u64,
}

impl Tiles {
    /// The tiles for those windows, channels between and `n` channels of the result that compute the fewest values twice
    /// and keep their border in `workgroup_bytes` of memory; `None` where none does.
    pub fn of(windows: &[Window; 2], channels: u64, n: u64, workgroup_bytes: u64) -> Option<Tiles> {
        let columns = n.div_ceil(n.div_ceil(COLUMNS).max(1)).max(1);
        let teams = n.div_ceil(columns).clamp(1, TEAMS);
        let cut = |rows: u64| {
            let places = [rows, PLACES / rows];
            let count = [0, 1].map(|a| windows[a].places.div_ceil(places[a]));
            let halo = [0, 1].map(|a| windows[a].halo(places[a]));
            let held = teams.checked_mul(halo[0])?.checked_mul(halo[1])?.checked_mul(4)?;
            let each = [8, 4, 2, 1].into_iter().find(|c| held * c <= workgroup_bytes)?;
            let each = each.min(CHANNELS).min(channels.div_ceil(teams)).max(1);
            Some(Tiles { places, count, halo, blocks: n.div_ceil(teams * columns).max(1), teams, columns, each })
        };
        let computed = |t: &Tiles| t.count[0] * t.count[1] * t.halo[0] * t.halo[1];
        [8, 4, 2, 1, 16, 32, 64].into_iter().filter_map(cut).min_by_key(computed)
    }
    /// How many values between all tiles compute, of each channel.
    pub fn computed(&self) -> u64 {
        self.blocks * self.count[0] * self.count[1] * self.halo[0] * self.halo[1]
    }
    /// Invocations of a workgroup.
    pub fn invocations(&self) -> u32 {
        (PLACES * self.teams.min(TEAMS)) as u32
    }
    /// Workgroups an image.
    pub fn groups(&self) -> u64 {
        self.blocks * self.count[0] * self.count[1]
    }
}

/// What the kernel's loops run over, in 32 bits.
struct Extents {
    places: [u32; 2],
    count: [u32; 2],
    halo: [u32; 2],
    between: [u32; 2],
    taps: [u32; 2],
    step: [u32; 2],
    tap_step: [u32; 2],
    before: [u32; 2],
    channels: u32,
    n: u32,
}

fn narrow(spec: &KernelSpec, c: &ConvChain, t: &Tiles) -> Option<Extents> {
    let one = |v: u64| u32::try_from(v).ok().filter(|v| *v < 1 << 31);
    let both = |f: &dyn Fn(usize) -> u64| Some([one(f(0))?, one(f(1))?]);
    let w = &c.windows;
    Some(Extents {
        places: both(&|a| t.places[a])?,
        count: both(&|a| t.count[a])?,
        halo: both(&|a| t.halo[a])?,
        between: both(&|a| w[a].extent)?,
        taps: both(&|a| w[a].taps)?,
        step: both(&|a| w[a].stride)?,
        tap_step: both(&|a| w[a].dilation)?,
        before: both(&|a| w[a].before)?,
        channels: one(c.channels)?,
        n: one(spec.domain.get(3)?.as_const().and_then(|n| u64::try_from(n).ok())?)?,
    })
}

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities, c: &ConvChain) -> Result<Rendered, TemplateError> {
    let columns = spec.domain.get(3).and_then(Dim::as_const).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let Some(n) = columns else {
        return Err(TemplateError::unsupported(spec, "convolutions whose channels are not known"));
    };
    let tiles = Tiles::of(&c.windows, c.channels, n, u64::from(caps.limit_workgroup_bytes));
    let cut = tiles.and_then(|t| narrow(spec, c, &t).map(|e| (t, e)));
    let Some((t, e)) = cut else {
        return Err(TemplateError::unsupported(spec, "windows whose border does not fit a workgroup"));
    };
    let (teams, own, each) = (t.teams as u32, t.columns as u32, t.each as u32);
    let (area, slice) = (e.halo[0] * e.halo[1], teams * each);
    let batch = spec.domain.first().cloned().unwrap_or_else(Dim::one);
    let groups = batch * Dim::from(t.groups());
    let lanes = PLACES as u32;
    let ctx = KernelCtx::new(spec, caps, [lanes * teams, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    b.keep_rolled();
    let middle = b.workgroup("middle", Type::F32, slice * area);
    let me = b.let_("me", b.bit_and(b.local_x(), lanes - 1));
    let team = b.let_("team", b.shr(b.local_x(), lanes.trailing_zeros()));
    let group = b.let_("group", ctx.group(&groups));
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let divide = |name: &str, left: Val, by: u32| {
            let q = b.let_(name, b.div(left, by));
            (q, b.let_("rest", b.sub(left, b.mul(q, by))))
        };
        let (rest, block) = divide("tiles", group, t.blocks as u32);
        let (rest, tile_column) = divide("tile_rows", rest, e.count[1]);
        let (image, tile_row) = divide("image", rest, e.count[0]);
        let image = Scope::new().with(0, image);
        // The first place of the tile, and the first value between, which may lie in front of the first.
        let corner = [0, 1].map(|a| b.let_("corner", b.mul([tile_row, tile_column][a], e.places[a])));
        let origin = [0, 1].map(|a| b.let_("origin", b.sub(b.mul(corner[a], e.step[a]), e.before[a])));
        let zero = |name: &str| b.var(name, Type::F32, 0.0);
        let sums: Vec<Var> = (0..own).map(|_| zero("sum")).collect();
        let first = b.let_("first_column", b.mul(b.add(b.mul(block, teams), team), own));
        let column = |j: u32| b.let_("n", b.add(first, j));
        let columns: Vec<Val> = (0..own).map(column).collect();
        let safe: Vec<Val> = columns.iter().map(|n| b.let_("n_safe", b.min(*n, e.n - 1))).collect();
        let place = [b.let_("row", b.div(me, e.places[1])), b.let_("column", b.rem(me, e.places[1]))];
        let start = {
            let [row, column] = [0, 1].map(|a| b.mul(place[a], e.step[a]));
            b.let_("window", b.add(b.mul(row, e.halo[1]), column))
        };
        b.for_("c0", 0, e.channels, slice, |b, c0| {
            let mine = b.let_("mine", b.add(c0, b.mul(team, each)));
            let channel: Vec<Val> = (0..each).map(|j| b.let_("c", b.min(b.add(mine, j), e.channels - 1))).collect();
            b.for_("at", me, area, lanes, |b, at| {
                let y = b.let_("y", b.add(origin[0], b.div(at, e.halo[1])));
                let x = b.let_("x", b.add(origin[1], b.rem(at, e.halo[1])));
                let inside = b.let_("inside", b.and(b.lt(y, e.between[0]), b.lt(x, e.between[1])));
                // What lies outside is computed for an element inside and thrown away.
                let safe = |v: Val, extent: u32| b.let_("safe", b.select(b.lt(v, extent), v, 0));
                let mut here = image.with(4, safe(y, e.between[0])).with(5, safe(x, e.between[1]));
                ctx.hoist(&mut here, &[c.lhs]);
                let mut rights: Vec<Scope> = channel.iter().map(|c| Scope::new().with(6, *c)).collect();
                rights.iter_mut().for_each(|s| ctx.hoist(s, &[c.up]));
                let accs: Vec<Var> = (0..each).map(|_| zero("acc")).collect();
                b.for_("k", 0, ctx.extent(&c.k), 1, |b, k| {
                    let value = b.let_("value", ctx.expr(&mut here.with(7, k), c.lhs));
                    for (acc, right) in accs.iter().zip(&rights) {
                        b.fma_to(*acc, value, ctx.expr(&mut right.with(7, k), c.up));
                    }
                });
                for (j, (acc, channel)) in (0u32..).zip(accs.iter().zip(&channel)) {
                    let mut here = here.with(6, *channel).with_accs(vec![b.get(*acc)]);
                    let value = ctx.expr(&mut here, c.middle);
                    let to = b.add(b.mul(b.add(b.mul(team, each), j), area), at);
                    b.store(middle, to, b.select(inside, value, 0.0));
                }
            });
            b.barrier();
            let held = b.let_("held", b.min(b.u32(slice), b.sub(b.u32(e.channels), c0)));
            b.for_("j", 0, held, 1, |b, j| {
                let depth = b.let_("depth", b.mul(b.add(c0, j), e.taps[0] * e.taps[1]));
                let window = b.let_("from", b.add(b.mul(j, area), start));
                let mut rights: Vec<Scope> = safe.iter().map(|n| Scope::new().with(3, *n)).collect();
                rights.iter_mut().for_each(|s| ctx.hoist(s, &[c.down]));
                b.for_("u", 0, e.taps[0], 1, |b, u| {
                    let row = b.let_("from", b.add(window, b.mul(u, e.tap_step[0] * e.halo[1])));
                    let depth = b.let_("depth", b.add(depth, b.mul(u, e.taps[1])));
                    b.for_("v", 0, e.taps[1], 1, |b, v| {
                        let value = b.let_("value", b.load(middle, b.add(row, b.mul(v, e.tap_step[1]))));
                        let depth = b.let_("depth", b.add(depth, v));
                        for (sum, right) in sums.iter().zip(&rights) {
                            b.fma_to(*sum, value, ctx.expr(&mut right.with(8, depth), c.down));
                        }
                    });
                });
            });
            b.barrier();
        });
        let places = [0, 1].map(|a| b.let_("place", b.add(corner[a], place[a])));
        let extents = [0, 1].map(|a| ctx.extent(spec.domain.get(a + 1).unwrap_or(&Dim::one())));
        let inside = b.and(b.lt(places[0], extents[0]), b.lt(places[1], extents[1]));
        b.if_(inside, |b| {
            let here = image.with(1, places[0]).with(2, places[1]);
            let stores: Vec<&Store> = spec.stores.iter().collect();
            for (n, sum) in columns.iter().zip(&sums) {
                b.if_(b.lt(*n, e.n), |b| {
                    ctx.store_all(&here.with(3, *n).with_accs(vec![b.get(*sum)]), &stores);
                });
            }
        });
    });
    let tile = [
        ("rows", e.places[0]),
        ("columns", e.places[1]),
        ("channels", own * teams),
        ("between", slice),
        ("halo", area),
    ];
    ctx.finish("conv_chain", &tile, dispatch(&groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_follow_the_shape_of_the_places() {
        let axis = |extent, places| Window { extent, places, taps: 3, stride: 1, dilation: 1, before: 1 };
        let square = Tiles::of(&[axis(56, 56), axis(56, 56)], 64, 64, 16 << 10).unwrap();
        assert_eq!((square.places, square.count, square.halo, square.blocks), ([8, 8], [7, 7], [10, 10], 1));
        assert_eq!(square.computed(), 49 * 100);
        let flat = Window { extent: 1, places: 1, taps: 1, stride: 1, dilation: 1, before: 0 };
        let line = Tiles::of(&[flat, axis(640, 640)], 8, 100, 16 << 10).unwrap();
        assert_eq!((line.places, line.halo, line.blocks), ([1, 64], [1, 66], 2));
        let wide = Window { taps: 200, ..axis(1000, 801) };
        assert_eq!(Tiles::of(&[wide, wide], 8, 8, 16 << 10), None);
    }
}
