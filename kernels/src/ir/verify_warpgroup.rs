//! Rules of the work of warpgroups.

use super::error::Rule;
use super::expr::ArrayRef;
use super::module::{Access, Local, LocalKind};
use super::types::Type;
use super::verify::Verifier;
use super::warpgroup::{Place, TILE_COLUMNS, WarpgroupOp};

impl Verifier<'_> {
    pub(super) fn warpgroup(&mut self, op: &WarpgroupOp) {
        let module = self.module;
        for e in op.exprs() {
            self.expect(e, Type::U32, "work of a warpgroup");
        }
        match op {
            WarpgroupOp::Init { barrier, arrivals } => {
                self.named(barrier, Type::VEC2_U32, "barrier with phases");
                if *arrivals == 0 {
                    self.fault(Rule::Constant, "barrier without arrivals");
                }
            }
            WarpgroupOp::Arrive { barrier, .. } | WarpgroupOp::Await { barrier, .. } => {
                self.named(barrier, Type::VEC2_U32, "barrier with phases");
            }
            WarpgroupOp::Bring { to, from, barrier, .. } => {
                self.named(to, Type::VEC4_U32, "tile");
                self.named(barrier, Type::VEC2_U32, "barrier with phases");
                if !matches!(module.buffers[*from].access, Access::Tiles(_)) {
                    self.fault(Rule::Access, format!("tile of `{}`, which has none", module.buffers[*from].name));
                }
            }
            WarpgroupOp::Publish => {}
            WarpgroupOp::Settle(_) => self.jointly("wait for products"),
            WarpgroupOp::Multiply { sums, a, b, .. } => {
                self.jointly("product of a warpgroup");
                self.named(a, Type::VEC4_U32, "tile");
                self.named(b, Type::VEC4_U32, "tile");
                if sums.is_empty() || sums.len() > 32 {
                    self.fault(Rule::Limit, format!("{} sums of a product, 1 to 32 allowed", sums.len()));
                }
                for sum in sums {
                    let Local { name, ty, kind } = &module.locals[*sum];
                    if *kind != LocalKind::Var || !self.is_in_scope(*sum) || *ty != Type::VEC4_F32 {
                        self.fault(
                            Rule::Access,
                            format!("product into `{name}`, which is no variable of vec4<f32> here"),
                        );
                    }
                }
            }
        }
    }

    fn named(&mut self, place: &Place, elem: Type, what: &str) {
        let array = &self.module.workgroup[place.array];
        if array.elem != elem {
            self.fault(Rule::Type, format!("{what} in `{}` of {}", array.name, array.elem));
        }
        self.in_bounds(ArrayRef::Workgroup(place.array), place.index);
    }

    /// Matrices that are brought in tiles have whole pieces of 16 bytes, and are not read otherwise.
    pub(super) fn tile_maps(&mut self) {
        let module = self.module;
        for buffer in module.buffers.values() {
            let Access::Tiles(map) = buffer.access else { continue };
            let pieces = map.columns > 0 && map.columns.is_multiple_of(8) && map.rows > 0;
            if !pieces || !(1..=256).contains(&map.tile_rows) || buffer.elem != Type::VEC4_U32 {
                let (columns, rows, tile) = (map.columns, map.rows, map.tile_rows);
                let shape = format!("{columns} columns, {rows} rows, tiles of {tile} by {TILE_COLUMNS}");
                self.fault(Rule::Type, format!("`{}` as a matrix of {shape}", buffer.name));
            }
        }
    }
}
