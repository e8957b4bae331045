//! Work of warpgroups: barriers with phases (`mbarrier`), tensor copies and `wgmma`.

use super::access::split;
use super::asm::Kind;
use super::writer::{Writer, Written};
use crate::ir::{ArrayRef, HalfFormat, Place, WarpgroupOp};

/// Bits 16 and up of a matrix descriptor without its address: 1024 bytes between eights of rows, 128-byte swizzle. The
/// first half holds a leading offset that the swizzle makes meaningless.
const DESCRIPTOR: [&str; 2] = ["0x00010000", "0x40000040"];
/// Products along k in a tile of 64 columns, and 16-byte pieces from one to the next.
const STEPS: u32 = 4;
const PIECES: u32 = 2;

impl Writer<'_> {
    pub(super) fn warpgroup(&mut self, op: &WarpgroupOp) -> Written<()> {
        match op {
            WarpgroupOp::Init { barrier, arrivals } => {
                let at = self.at(barrier)?;
                self.op(format!("mbarrier.init.shared::cta.b64 {at}, {arrivals}"));
                self.op("fence.mbarrier_init.release.cluster");
            }
            WarpgroupOp::Arrive { barrier, bytes: 0 } => {
                let at = self.at(barrier)?;
                self.op(format!("mbarrier.arrive.shared::cta.b64 _, {at}"));
            }
            WarpgroupOp::Arrive { barrier, bytes } => {
                let at = self.at(barrier)?;
                self.op(format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, {at}, {bytes}"));
            }
            WarpgroupOp::Await { barrier, parity } => {
                let (at, parity) = (self.at(barrier)?, self.scalar(*parity)?);
                let (over, n) = (self.asm.reg(Kind::Predicate), self.asm.branch());
                self.asm.label(&format!("$await_{n}"));
                self.op(format!("mbarrier.try_wait.parity.shared::cta.b64 {over}, {at}, {parity}"));
                self.op(format!("@!{over} bra $await_{n}"));
            }
            WarpgroupOp::Bring { to, from, corner: [column, row], barrier } => {
                let (to, barrier) = (self.at(to)?, self.at(barrier)?);
                let (column, row) = (self.scalar(*column)?, self.scalar(*row)?);
                let map = self.names.array(ArrayRef::Buffer(*from)).to_owned();
                let copy = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes";
                self.op(format!("{copy} {to}, [%{map}, {{{column}, {row}}}], {barrier}"));
            }
            WarpgroupOp::Publish => self.op("fence.proxy.async.shared::cta"),
            WarpgroupOp::Multiply { sums, a, b, format } => {
                let sums: Vec<String> =
                    sums.iter().flat_map(|s| self.locals[s.index()].clone().unwrap_or_default()).collect();
                let (a, b) = (self.descriptor(a)?, self.descriptor(b)?);
                self.multiply_tiles(&sums, a, b, *format);
            }
            WarpgroupOp::Settle(pending) => self.op(format!("wgmma.wait_group.sync.aligned {pending}")),
        }
        if op.orders_memory() {
            self.known.forget_all();
        }
        Ok(())
    }

    /// The operand that names an element.
    fn at(&mut self, place: &Place) -> Written<String> {
        let (base, offset) = split(self.module, &self.lets, place.index);
        self.place(ArrayRef::Workgroup(place.array), base, offset)
    }

    /// The descriptor of the tile that begins at an element.
    fn descriptor(&mut self, place: &Place) -> Written<String> {
        let array = ArrayRef::Workgroup(place.array);
        let (base, offset) = split(self.module, &self.lets, place.index);
        let size = self.module.elem(array).size_bytes();
        let start = if base.is_empty() { self.names.address(array) } else { self.address(array, base, size)? };
        let (low, whole) = (self.asm.reg(Kind::Word), self.asm.reg(Kind::Address));
        let [first, second] = DESCRIPTOR;
        self.op(format!("shr.u32 {low}, {start}, 4"));
        if offset > 0 {
            self.op(format!("add.u32 {low}, {low}, {}", u64::from(offset) * u64::from(size) / 16));
        }
        self.op(format!("or.b32 {low}, {low}, {first}"));
        self.op(format!("mov.b64 {whole}, {{{low}, {second}}}"));
        Ok(whole)
    }

    fn multiply_tiles(&mut self, sums: &[String], a: String, b: String, format: HalfFormat) {
        let always = self.asm.reg(Kind::Predicate);
        self.op(format!("setp.eq.u32 {always}, 0, 0"));
        self.op("wgmma.fence.sync.aligned");
        let (n, ty, sums) = (sums.len() * 2, format.name(), sums.join(", "));
        let (mut a, mut b) = (a, b);
        for step in 0..STEPS {
            if step > 0 {
                let next: [String; 2] = [self.asm.reg(Kind::Address), self.asm.reg(Kind::Address)];
                for (next, last) in next.iter().zip([&a, &b]) {
                    self.op(format!("add.u64 {next}, {last}, {PIECES}"));
                }
                [a, b] = next;
            }
            let what = format!("wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{ty}.{ty}");
            self.op(format!("{what} {{{sums}}}, {a}, {b}, {always}, 1, 1, 0, 0"));
        }
        self.op("wgmma.commit_group.sync.aligned");
    }
}
