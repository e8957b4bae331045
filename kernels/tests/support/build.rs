//! Short ways to write a kernel specification.

use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{
    Alias, AliasKind, Anchor, Arg, ArgId, AxisRange, BinaryOp, Expr, ExprId, Exprs, KernelSpec, MatmulPrecision,
    SizeSlot, Space, Store, UnaryOp,
};

/// A specification under construction; dims are given as text such as `576*i0 + i1`.
pub struct SpecBuilder {
    /// The specification.
    pub spec: KernelSpec,
}

/// A size expression from text.
pub fn dim(text: &str) -> Dim {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

impl SpecBuilder {
    /// A kernel over a domain, with dynamic sizes in the order given.
    pub fn new(name: &str, domain: &[&str], sizes: &[&str]) -> SpecBuilder {
        let sizes = sizes.iter().enumerate().map(|(i, n)| SizeSlot { name: (*n).into(), index: i as u8 }).collect();
        SpecBuilder {
            spec: KernelSpec {
                name: name.into(),
                domain: domain.iter().map(|d| dim(d)).collect(),
                anchor: Anchor::Map,
                few_rows: false,
                args: Vec::new(),
                exprs: Exprs::default(),
                stores: Vec::new(),
                left: Vec::new(),
                columns: None,
                stats_over: None,
                partials: None,
                precision: MatmulPrecision::Auto,
                aliases: Vec::new(),
                sizes,
            },
        }
    }
    /// Says that every run has few rows.
    pub fn few_rows(mut self) -> Self {
        self.spec.few_rows = true;
        self
    }
    /// An argument that is read.
    pub fn arg(&mut self, name: &str, space: Space, storage: Storage, len: &str) -> ArgId {
        self.spec.args.push(Arg { name: name.into(), space, storage, len: dim(len), written: false, rounded: None });
        ArgId(self.spec.args.len() as u16 - 1)
    }
    /// An argument that is written.
    pub fn out(&mut self, name: &str, space: Space, storage: Storage, len: &str) -> ArgId {
        let id = self.arg(name, space, storage, len);
        self.spec.args[id.0 as usize].written = true;
        id
    }
    /// A load.
    pub fn load(&mut self, arg: ArgId, index: &str) -> ExprId {
        let ty = self.spec.args[arg.0 as usize].storage.scalar();
        self.spec.exprs.add(Expr::Load { arg, index: dim(index) }, ty)
    }
    /// A load at an index with values; `{}` in the text does not exist, so the index is given.
    pub fn load_at(&mut self, arg: ArgId, index: Dim) -> ExprId {
        let ty = self.spec.args[arg.0 as usize].storage.scalar();
        self.spec.exprs.add(Expr::Load { arg, index }, ty)
    }
    /// A float.
    pub fn f(&mut self, v: f32) -> ExprId {
        self.spec.exprs.f32(v)
    }
    /// f(a).
    pub fn un(&mut self, op: UnaryOp, a: ExprId) -> ExprId {
        self.spec.exprs.unary(op, a)
    }
    /// f(a, b).
    pub fn bin(&mut self, op: BinaryOp, a: ExprId, b: ExprId) -> ExprId {
        self.spec.exprs.binary(op, a, b)
    }
    /// Accumulator j.
    pub fn acc(&mut self, j: u8) -> ExprId {
        self.spec.exprs.add(Expr::Acc(j), Scalar::F32)
    }
    /// Statistic j.
    pub fn stat(&mut self, j: u8, ty: Scalar) -> ExprId {
        self.spec.exprs.add(Expr::Stat(j), ty)
    }
    /// A store.
    pub fn store(&mut self, arg: ArgId, index: &str, value: ExprId) -> &mut Store {
        self.spec.stores.push(Store { arg, index: dim(index), value, when: None, per_row: false });
        self.spec.stores.last_mut().unwrap()
    }
    /// A store in a range of an axis.
    pub fn store_when(&mut self, arg: ArgId, index: &str, value: ExprId, axis: u8, lo: &str, hi: &str) {
        self.store(arg, index, value).when = Some(AxisRange { axis, lo: dim(lo), hi: dim(hi) });
    }
    /// Permits shared storage.
    pub fn alias(&mut self, output: ArgId, input: ArgId, kind: AliasKind) {
        self.spec.aliases.push(Alias { output, input, kind });
    }
    /// The specification, checked.
    pub fn done(self) -> KernelSpec {
        self.spec.verify().unwrap_or_else(|e| panic!("{e}"));
        self.spec
    }
}
