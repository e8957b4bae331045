//! Functions that the hardware has only in part: bounded, and accurate to a few units in the last place.

use super::asm::Kind;
use super::writer::Writer;
use crate::emit::polynomials::{ERF_FAR, ERF_NEAR, ERF_SPLIT, TANH_NEAR, number};
use crate::ir::{BinaryOp as B, UnaryOp as U};

fn f(value: f32) -> String {
    format!("0f{:08X}", value.to_bits())
}

/// The bytes of a word, lowest first, as floats: a byte under the exponent of 2²³ is 2²³ more than its value.
pub(super) fn bytes_to_floats(w: &mut Writer<'_>, signed: bool, word: &str, out: &[String]) {
    let (source, bias) = if signed {
        let flipped = w.asm.reg(Kind::Word);
        w.op(format!("xor.b32 {flipped}, {word}, 0x80808080"));
        (flipped, 8_388_736.0)
    } else {
        (word.to_owned(), 8_388_608.0)
    };
    for (i, d) in out.iter().enumerate() {
        let (bits, biased) = (w.asm.reg(Kind::Word), w.asm.reg(Kind::Float));
        w.op(format!("prmt.b32 {bits}, {source}, 0x4B000000, 0x744{i}"));
        w.op(format!("mov.b32 {biased}, {bits}"));
        w.op(format!("sub.rn.f32 {d}, {biased}, {}", f(bias)));
    }
}

impl Writer<'_> {
    fn temp(&mut self) -> String {
        self.asm.reg(Kind::Float)
    }

    /// `((k0 x + k1) x + k2) ...`
    fn horner(&mut self, coefficients: &[&str], x: &str) -> String {
        let mut sum = coefficients.first().map_or_else(|| f(0.0), |k| f(number(k)));
        for k in coefficients.iter().skip(1) {
            let next = self.temp();
            self.op(format!("fma.rn.f32 {next}, {sum}, {x}, {}", f(number(k))));
            sum = next;
        }
        sum
    }

    /// A function of one `f32`.
    pub(super) fn function(&mut self, op: U, x: &str, d: &str) {
        let name = match op {
            U::Neg => "neg.f32",
            U::Abs => "abs.f32",
            U::Exp2 => "ex2.approx.f32",
            U::Log2 => "lg2.approx.f32",
            U::Sqrt => "sqrt.approx.f32",
            U::Rsqrt => "rsqrt.approx.f32",
            U::Rcp => "rcp.approx.f32",
            U::Floor => "cvt.rmi.f32.f32",
            U::Ceil => "cvt.rpi.f32.f32",
            U::Round => "cvt.rni.f32.f32",
            U::Trunc => "cvt.rzi.f32.f32",
            U::Log => {
                let t = self.temp();
                self.op(format!("lg2.approx.f32 {t}, {x}"));
                return self.op(format!("mul.rn.f32 {d}, {t}, {}", f(std::f32::consts::LN_2)));
            }
            U::Exp => return self.exp(x, d),
            U::Tanh => return self.tanh(x, d),
            U::Erf => return self.erf(x, d),
            U::Sin => return self.periodic("sin.approx.f32", x, d),
            U::Cos => return self.periodic("cos.approx.f32", x, d),
            U::Sign => return self.sign(x, d),
            U::Not | U::BitNot | U::Unpack2x16Float | U::Pack2x16Float | U::Pack2xBf16 | U::UnpackU8 | U::UnpackI8 => {
                return;
            }
        };
        self.op(format!("{name} {d}, {x}"));
    }

    /// `e^x = 2^t (1 + r ln 2)` with `t` the rounded product `x log2 e` and `r` its error.
    fn exp(&mut self, x: &str, d: &str) {
        const HIGH: f32 = std::f32::consts::LOG2_E;
        let low = (std::f64::consts::LOG2_E - f64::from(HIGH)) as f32;
        let [t, minus, r1, r2, r3, power] = std::array::from_fn(|_| self.temp());
        self.op(format!("mul.rn.f32 {t}, {x}, {}", f(HIGH)));
        self.op(format!("neg.f32 {minus}, {t}"));
        self.op(format!("fma.rn.f32 {r1}, {x}, {}, {minus}", f(HIGH)));
        self.op(format!("fma.rn.f32 {r2}, {x}, {}, {r1}", f(low)));
        self.op(format!("mul.rn.f32 {r3}, {r2}, {}", f(std::f32::consts::LN_2)));
        self.op(format!("ex2.approx.f32 {power}, {t}"));
        self.op(format!("fma.rn.f32 {d}, {power}, {r3}, {power}"));
    }

    /// A polynomial up to 0.6, `1 - 2 / (1 + e^2|x|)` beyond, where 15 stands for everything larger.
    fn tanh(&mut self, x: &str, d: &str) {
        let [size, bounded, double, power, plus, part, far, signed, square, scaled, near] =
            std::array::from_fn(|_| self.temp());
        let small = self.asm.reg(Kind::Predicate);
        self.op(format!("abs.f32 {size}, {x}"));
        self.op(format!("min.f32 {bounded}, {size}, {}", f(15.0)));
        self.op(format!("add.rn.f32 {double}, {bounded}, {bounded}"));
        self.exp(&double, &power);
        self.op(format!("add.rn.f32 {plus}, {power}, {}", f(1.0)));
        self.op(format!("rcp.approx.f32 {part}, {plus}"));
        self.op(format!("fma.rn.f32 {far}, {part}, {}, {}", f(-2.0), f(1.0)));
        self.op(format!("copysign.f32 {signed}, {x}, {far}"));
        self.op(format!("mul.rn.f32 {square}, {bounded}, {bounded}"));
        let p = self.horner(&TANH_NEAR, &square);
        self.op(format!("mul.rn.f32 {scaled}, {p}, {square}"));
        self.op(format!("fma.rn.f32 {near}, {scaled}, {x}, {x}"));
        self.op(format!("setp.lt.f32 {small}, {size}, {}", f(0.6)));
        self.op(format!("selp.f32 {d}, {near}, {signed}, {small}"));
    }

    /// Two polynomials; the second is in the exponent of `1 - e^p`.
    fn erf(&mut self, x: &str, d: &str) {
        let [size, t, square, near, tail, minus, exponent, power, rest, far] = std::array::from_fn(|_| self.temp());
        let small = self.asm.reg(Kind::Predicate);
        self.op(format!("abs.f32 {size}, {x}"));
        self.op(format!("min.f32 {t}, {size}, {}", f(4.0)));
        self.op(format!("mul.rn.f32 {square}, {t}, {t}"));
        let p = self.horner(&ERF_NEAR, &square);
        self.op(format!("fma.rn.f32 {near}, {p}, {x}, {x}"));
        let q = self.horner(&ERF_FAR, &t);
        self.op(format!("mul.rn.f32 {tail}, {q}, {t}"));
        self.op(format!("neg.f32 {minus}, {t}"));
        self.op(format!("add.rn.f32 {exponent}, {tail}, {minus}"));
        self.exp(&exponent, &power);
        self.op(format!("sub.rn.f32 {rest}, {}, {power}", f(1.0)));
        self.op(format!("copysign.f32 {far}, {x}, {rest}"));
        self.op(format!("setp.le.f32 {small}, {t}, {}", f(number(ERF_SPLIT))));
        self.op(format!("selp.f32 {d}, {near}, {far}, {small}"));
    }

    /// A function of period 2π, of `x - 2π round(x / 2π)` with 2π in three parts.
    fn periodic(&mut self, name: &str, x: &str, d: &str) {
        let tau = std::f64::consts::TAU;
        let high = tau as f32;
        let middle = (tau - f64::from(high)) as f32;
        let low = (tau - f64::from(high) - f64::from(middle)) as f32;
        let [turns, whole, a, b, c] = std::array::from_fn(|_| self.temp());
        self.op(format!("mul.rn.f32 {turns}, {x}, {}", f((1.0 / tau) as f32)));
        self.op(format!("cvt.rni.f32.f32 {whole}, {turns}"));
        self.op(format!("fma.rn.f32 {a}, {whole}, {}, {x}", f(-high)));
        self.op(format!("fma.rn.f32 {b}, {whole}, {}, {a}", f(-middle)));
        self.op(format!("fma.rn.f32 {c}, {whole}, {}, {b}", f(-low)));
        self.op(format!("{name} {d}, {c}"));
    }

    fn sign(&mut self, x: &str, d: &str) {
        let (above, below) = (self.asm.reg(Kind::Predicate), self.asm.reg(Kind::Predicate));
        let positive = self.temp();
        self.op(format!("setp.gt.f32 {above}, {x}, {}", f(0.0)));
        self.op(format!("setp.lt.f32 {below}, {x}, {}", f(0.0)));
        self.op(format!("selp.f32 {positive}, {}, {}, {above}", f(1.0), f(0.0)));
        self.op(format!("selp.f32 {d}, {}, {positive}, {below}", f(-1.0)));
    }

    /// `x / y`, `x - y trunc(x / y)` or `x^y` for `x >= 0`.
    pub(super) fn quotient(&mut self, op: B, x: &str, y: &str, d: &str) {
        match op {
            B::Pow => {
                let (log, product) = (self.temp(), self.temp());
                self.op(format!("lg2.approx.f32 {log}, {x}"));
                self.op(format!("mul.rn.f32 {product}, {log}, {y}"));
                self.op(format!("ex2.approx.f32 {d}, {product}"));
            }
            B::Rem => {
                let [quotient, whole, minus] = std::array::from_fn(|_| self.temp());
                self.op(format!("div.rn.f32 {quotient}, {x}, {y}"));
                self.op(format!("cvt.rzi.f32.f32 {whole}, {quotient}"));
                self.op(format!("neg.f32 {minus}, {whole}"));
                self.op(format!("fma.rn.f32 {d}, {minus}, {y}, {x}"));
            }
            _ => self.op(format!("div.full.f32 {d}, {x}, {y}")),
        }
    }
}
