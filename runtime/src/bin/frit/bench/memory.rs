//! Kernels that do little work for what they read and write: norms, activations, rotations, look-ups, each as a graph of
//! its own, and the bytes that they cannot help moving.

use anyhow::{Result, bail};
use clap::ValueEnum;
use frit::{LoadedModel, Tensor, model_source};
use frit_compiler::graph::{NormKind, RopeStyle, ValueId};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{ReduceOp, UnaryOp};

use super::Random;

/// Elements of a rotated head.
const HEAD: u64 = 64;
/// Rows of the table that rows are looked up in.
const TABLE: u64 = 8192;

/// A kernel; x, r, g and u are `[rows, width]` of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// `2 x`: the rate that others are measured by.
    Copy,
    /// `x / rms(x) · gain`.
    RmsNorm,
    /// `(x − mean) / deviation · gain + bias`.
    LayerNorm,
    /// Softmax of each row.
    Softmax,
    /// `s = x + r` and `s / rms(s) · gain`, both written.
    ResidualNorm,
    /// `silu(g) · u`.
    Swiglu,
    /// `gelu(x + bias)`.
    BiasGelu,
    /// Heads of 64 elements rotated by position.
    Rope,
    /// Rows of a table of `--storage` by number.
    Embedding,
    /// The place of the largest element of each row.
    Argmax,
}

impl Kernel {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// Bytes of every operand and result, each once.
    pub fn bytes(self, [rows, width]: [u64; 2], storage: &str) -> u64 {
        let all = 4 * rows * width;
        let element = if storage == "f32" { 4 } else { 2 };
        match self {
            Kernel::Copy | Kernel::Softmax => 2 * all,
            Kernel::RmsNorm | Kernel::BiasGelu => 2 * all + 4 * width,
            Kernel::LayerNorm => 2 * all + 8 * width,
            Kernel::ResidualNorm => 4 * all + 4 * width,
            Kernel::Swiglu => 3 * all,
            // two tables of half a head a row, and the positions
            Kernel::Rope => 2 * all + 4 * rows * (HEAD + 1),
            Kernel::Embedding => rows * width * element + all + 4 * rows,
            Kernel::Argmax => all + 4 * rows,
        }
    }

    /// The graph, compiled.
    pub fn compiled(self, [rows, width]: [u64; 2], storage: &str, random: &mut Random) -> Result<LoadedModel> {
        if self == Kernel::Rope && !width.is_multiple_of(HEAD) {
            bail!("heads of {HEAD} elements do not divide a width of {width}\nhint: --width 4096");
        }
        let mut m = ModelBuilder::new(&self.name());
        let mut constant = |m: &mut ModelBuilder, name: &str, shape: &[u64], storage: &str| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.unit()).collect();
            match storage {
                "f16" => m.constant_half(name, Storage::F16, shape, &values),
                "bf16" => m.constant_half(name, Storage::Bf16, shape, &values),
                _ => m.constant(name, shape, &values),
            }
        };
        let held = match self {
            Kernel::RmsNorm | Kernel::ResidualNorm => vec![constant(&mut m, "gain", &[width], "f32")],
            Kernel::LayerNorm => ["gain", "bias"].map(|n| constant(&mut m, n, &[width], "f32")).to_vec(),
            Kernel::BiasGelu => vec![constant(&mut m, "bias", &[width], "f32")],
            Kernel::Rope => ["cos", "sin"].map(|n| constant(&mut m, n, &[rows, HEAD / 2], "f32")).to_vec(),
            Kernel::Embedding => vec![constant(&mut m, "table", &[TABLE, width], storage)],
            _ => Vec::new(),
        };
        m.graph("forward", |b| {
            let held: Vec<ValueId> = held.iter().map(|w| b.weight(*w)).collect();
            self.build(b, &held, width);
        });
        Ok(model_source::compiled(&m.finish()?)?)
    }

    fn build(self, b: &mut GraphBuilder<'_>, held: &[ValueId], width: u64) {
        let rows = Dim::size("N");
        let mut matrix = |name: &str| b.input(name, Scalar::F32, &[rows.clone(), width.into()]);
        match (self, held) {
            (Kernel::Copy, _) => {
                let x = matrix("x");
                let two = b.f32(2.0);
                let y = b.mul(x, two);
                b.output("y", y);
            }
            (Kernel::RmsNorm, [gain, ..]) => {
                let x = matrix("x");
                let y = b.norm(NormKind::Rms, x, 1e-5, Some(*gain), None);
                b.output("y", y);
            }
            (Kernel::LayerNorm, [gain, bias, ..]) => {
                let x = matrix("x");
                let y = b.norm(NormKind::Layer, x, 1e-5, Some(*gain), Some(*bias));
                b.output("y", y);
            }
            (Kernel::Softmax, _) => {
                let x = matrix("x");
                let y = b.softmax(x);
                b.output("y", y);
            }
            (Kernel::ResidualNorm, [gain, ..]) => {
                let (x, r) = (matrix("x"), matrix("r"));
                let s = b.add(x, r);
                let y = b.norm(NormKind::Rms, s, 1e-5, Some(*gain), None);
                b.output("s", s);
                b.output("y", y);
            }
            (Kernel::Swiglu, _) => {
                let (g, u) = (matrix("g"), matrix("u"));
                let g = b.unary(UnaryOp::Silu, g);
                let y = b.mul(g, u);
                b.output("y", y);
            }
            (Kernel::BiasGelu, [bias, ..]) => {
                let x = matrix("x");
                let x = b.add(x, *bias);
                let y = b.unary(UnaryOp::GeluTanh, x);
                b.output("y", y);
            }
            (Kernel::Rope, [cos, sin, ..]) => {
                let heads = [Dim::one(), (width / HEAD).into(), rows.clone(), HEAD.into()];
                let x = b.input("x", Scalar::F32, &heads);
                let at = b.input("positions", Scalar::I32, &[Dim::one(), rows]);
                let y = b.rope(x, *cos, *sin, at, RopeStyle::Half, HEAD);
                b.output("y", y);
            }
            (Kernel::Embedding, [table, ..]) => {
                let ids = b.input("ids", Scalar::I32, &[rows]);
                let y = b.gather(*table, ids);
                b.output("y", y);
            }
            (Kernel::Argmax, _) => {
                let x = matrix("x");
                let y = b.reduce(ReduceOp::ArgMax, x, &[1], false);
                b.output("y", y);
            }
            _ => {}
        }
    }

    /// Random operands.
    pub fn inputs(self, [rows, width]: [u64; 2], random: &mut Random) -> Result<Vec<(String, Tensor)>> {
        let mut floats = |shape: &[u64]| {
            let values = (0..rows * width).map(|_| random.unit()).collect();
            Tensor::f32(shape, values)
        };
        let matrix = [rows, width];
        Ok(match self {
            Kernel::ResidualNorm => vec![("x".to_owned(), floats(&matrix)?), ("r".to_owned(), floats(&matrix)?)],
            Kernel::Swiglu => vec![("g".to_owned(), floats(&matrix)?), ("u".to_owned(), floats(&matrix)?)],
            Kernel::Rope => {
                let places = (0..rows).map(|i| i32::try_from(i).unwrap_or(i32::MAX)).collect();
                let x = floats(&[1, width / HEAD, rows, HEAD])?;
                vec![("x".to_owned(), x), ("positions".to_owned(), Tensor::i32(&[1, rows], places)?)]
            }
            Kernel::Embedding => {
                let ids = (0..rows).map(|_| random.below(TABLE) as i32).collect();
                vec![("ids".to_owned(), Tensor::i32(&[rows], ids)?)]
            }
            _ => vec![("x".to_owned(), floats(&matrix)?)],
        })
    }
}
