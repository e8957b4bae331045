//! Statistics of rows that the kernel which makes them writes beside them, by tiles of columns, and that the product behind
//! a norm joins: neither reads the row once more.

use super::coords;
use super::spec_builder::SpecBuilder;
use crate::graph::{Graph, NormKind, ValueId};
use frit_kernels::dim::{Bounds, Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{ArgId, BinaryOp, ExprId, PartialKind, ReduceOp, Stat};

/// The statistics of a value's rows: `[rows, tiles, numbers]` in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowStats {
    /// The value.
    pub of: ValueId,
    /// What is known of a tile.
    pub kind: PartialKind,
    /// Columns of a tile; the last may have fewer.
    pub tile: u64,
}

/// The statistics that a norm needs.
pub fn kind_of(norm: NormKind) -> PartialKind {
    match norm {
        NormKind::Rms => PartialKind::Squares,
        NormKind::Layer => PartialKind::Moments,
    }
}

impl RowStats {
    /// Elements of a row of the value; 0 where that is not known.
    pub fn width(&self, graph: &Graph) -> u64 {
        graph.ty(self.of).last().as_const().and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }
    /// Tiles of a row.
    pub fn tiles(&self, graph: &Graph) -> u64 {
        self.width(graph).div_ceil(self.tile.max(1))
    }
    /// Numbers of a tile.
    pub fn numbers(&self) -> u64 {
        u64::from(self.kind.numbers())
    }
    /// The rows' extents.
    pub fn lead<'g>(&self, graph: &'g Graph) -> &'g [Dim] {
        let shape = &graph.ty(self.of).shape;
        shape.get(..shape.len().saturating_sub(1)).unwrap_or_default()
    }
    /// Numbers in all.
    pub fn len(&self, graph: &Graph) -> Dim {
        product(self.lead(graph)) * Dim::from(self.tiles(graph) * self.numbers())
    }
    /// Where the numbers of a tile of the row at `row` begin.
    pub fn index(&self, graph: &Graph, row: &[Dim], tile: &Dim, bounds: &Bounds) -> Dim {
        let row = coords::linear(row, self.lead(graph), bounds);
        ((row * Dim::from(self.tiles(graph)) + tile.clone()) * Dim::from(self.numbers())).simplify(bounds)
    }
    /// The statistics of whole rows, in the order of [`super::anchors`]' norms but for `eps` and the root: each with what
    /// it is divided by to be a mean. `tile` is the axis that counts tiles.
    pub fn joined(&self, b: &mut SpecBuilder<'_>, arg: ArgId, row: &[Dim], tile: &Dim) -> Vec<Stat> {
        let (graph, bounds) = (b.graph, b.bounds.clone());
        let at = self.index(graph, row, tile, &bounds);
        let first = b.load_arg(arg, at.clone());
        if self.kind == PartialKind::Squares {
            return vec![Stat { op: ReduceOp::Sum, value: first, finish: None }];
        }
        let rest = b.load_arg(arg, at + Dim::one());
        let count = self.count(b, tile);
        let e = &mut b.exprs;
        let weighted = e.binary(BinaryOp::Mul, first, count);
        let mean = e.add(frit_kernels::spec::Expr::Stat(0), Scalar::F32);
        let apart = e.binary(BinaryOp::Sub, first, mean);
        let square = e.binary(BinaryOp::Mul, apart, apart);
        let between = e.binary(BinaryOp::Mul, square, count);
        let all = e.binary(BinaryOp::Add, rest, between);
        vec![
            Stat { op: ReduceOp::Sum, value: weighted, finish: None },
            Stat { op: ReduceOp::Sum, value: all, finish: None },
        ]
    }
    /// Elements of a tile.
    fn count(&self, b: &mut SpecBuilder<'_>, tile: &Dim) -> ExprId {
        let width = self.width(b.graph);
        if width.is_multiple_of(self.tile.max(1)) {
            return b.exprs.f32(self.tile as f32);
        }
        let step = Dim::from(self.tile);
        let count = step.smaller(&(Dim::from(width) - &step * tile)).simplify(&b.bounds);
        let count = b.exprs.coord(count);
        b.exprs.cast(Scalar::F32, count)
    }
}
