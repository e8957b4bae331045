//! The text of a kernel's body while it grows, and the registers it uses.

use std::fmt::Write;

use crate::ir::Scalar;

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Predicate,
    Half,
    Word,
    Float,
    Address,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Predicate, Kind::Half, Kind::Word, Kind::Float, Kind::Address];

    pub(super) fn of(scalar: Scalar) -> Kind {
        match scalar {
            Scalar::Bool => Kind::Predicate,
            Scalar::F16 | Scalar::Bf16 => Kind::Half,
            Scalar::U32 | Scalar::I32 => Kind::Word,
            Scalar::F32 => Kind::Float,
        }
    }

    /// Type of the register's declaration, and of a copy of it.
    pub(super) fn ty(self) -> &'static str {
        match self {
            Kind::Predicate => "pred",
            Kind::Half => "b16",
            Kind::Word => "b32",
            Kind::Float => "f32",
            Kind::Address => "b64",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Kind::Predicate => "p",
            Kind::Half => "h",
            Kind::Word => "r",
            Kind::Float => "f",
            Kind::Address => "rd",
        }
    }
}

/// The body under construction.
#[derive(Default)]
pub(super) struct Asm {
    text: String,
    /// Nesting of the lines to come.
    pub(super) depth: usize,
    counts: [u32; 5],
    named: Vec<(Kind, String)>,
    labels: u32,
}

/// Columns of a declaration line.
const WIDTH: usize = 120;

impl Asm {
    /// A new numbered register.
    pub(super) fn reg(&mut self, kind: Kind) -> String {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        format!("%{}{count}", kind.prefix())
    }

    /// Declares a register of that name.
    pub(super) fn declare(&mut self, kind: Kind, name: &str) {
        self.named.push((kind, name.to_owned()));
    }

    /// One instruction.
    pub(super) fn op(&mut self, text: &str) {
        self.line(&format!("{text};"));
    }

    /// One line at the present nesting.
    pub(super) fn line(&mut self, text: &str) {
        let width = (self.depth + 1) * 4;
        let _ = writeln!(self.text, "{:width$}{text}", "");
    }

    /// A label, one step further out than the instructions it marks.
    pub(super) fn label(&mut self, name: &str) {
        let width = self.depth * 4;
        let _ = writeln!(self.text, "{:width$}{name}:", "");
    }

    /// The number of the next branch.
    pub(super) fn branch(&mut self) -> u32 {
        self.labels += 1;
        self.labels
    }

    /// Declarations of all registers, then the body.
    pub(super) fn finish(self) -> String {
        let mut out = String::new();
        for kind in Kind::ALL {
            let count = self.counts[kind as usize];
            if count > 0 {
                let _ = writeln!(out, "    .reg .{} %{}<{}>;", kind.ty(), kind.prefix(), count + 1);
            }
            let mut line = String::new();
            for (_, name) in self.named.iter().filter(|(k, _)| *k == kind) {
                if !line.is_empty() && line.len() + name.len() + 3 > WIDTH {
                    let _ = writeln!(out, "{line};");
                    line.clear();
                }
                if line.is_empty() {
                    line = format!("    .reg .{} {name}", kind.ty());
                } else {
                    let _ = write!(line, ", {name}");
                }
            }
            if !line.is_empty() {
                let _ = writeln!(out, "{line};");
            }
        }
        out.push('\n');
        out.push_str(&self.text);
        out
    }
}
