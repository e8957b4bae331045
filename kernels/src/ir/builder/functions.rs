//! Functions made of primitive operations. Each stays finite for arguments up to 1e4 in magnitude.

use super::{Builder, IntoVal, Val};
use crate::ir::types::Scalar;

impl Builder {
    /// `e^min(x, 88)`
    #[track_caller]
    pub fn exp(&self, x: impl IntoVal) -> Val {
        self.exp_unchecked(self.min(x, 88.0))
    }

    /// `2^min(x, 127)`
    #[track_caller]
    pub fn exp2(&self, x: impl IntoVal) -> Val {
        self.exp2_unchecked(self.min(x, 127.0))
    }

    /// `1 / (1 + e^-x)`
    #[track_caller]
    pub fn sigmoid(&self, x: impl IntoVal) -> Val {
        let bounded = self.min(self.neg(x), 80.0);
        self.rcp(self.add(1.0, self.exp_unchecked(bounded)))
    }

    /// `x * sigmoid(x)`
    #[track_caller]
    pub fn silu(&self, x: impl IntoVal) -> Val {
        let bounded = self.min(self.neg(x), 80.0);
        self.div(x, self.add(1.0, self.exp_unchecked(bounded)))
    }

    /// `x * sigmoid(1.702 x)`
    #[track_caller]
    pub fn quick_gelu(&self, x: impl IntoVal) -> Val {
        self.mul(x, self.sigmoid(self.mul(x, 1.702)))
    }

    /// `x / 2 * (1 + erf(x / sqrt 2))`
    #[track_caller]
    pub fn gelu_erf(&self, x: impl IntoVal) -> Val {
        let erf = self.erf(self.mul(x, std::f32::consts::FRAC_1_SQRT_2));
        self.mul(self.mul(x, 0.5), self.add(1.0, erf))
    }

    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`
    #[track_caller]
    pub fn gelu_tanh(&self, x: impl IntoVal) -> Val {
        let x = x.into_val(self);
        let cubic = self.fma(self.mul(x, x), 0.044_715, 1.0);
        let inner = self.mul(self.mul(x, 0.797_884_6), cubic);
        self.mul(self.mul(x, 0.5), self.add(1.0, self.tanh(inner)))
    }

    /// `max(x, 0)`
    #[track_caller]
    pub fn relu(&self, x: impl IntoVal) -> Val {
        self.max(x, 0.0)
    }

    /// `log(1 + e^x)` as `max(x, 0) + log(1 + e^-|x|)`
    #[track_caller]
    pub fn softplus(&self, x: impl IntoVal) -> Val {
        let tail = self.log(self.add(1.0, self.exp_unchecked(self.neg(self.abs(x)))));
        self.add(self.max(x, 0.0), tail)
    }

    /// `cap * tanh(x / cap)`
    #[track_caller]
    pub fn soft_cap(&self, x: impl IntoVal, cap: f32) -> Val {
        self.mul(self.tanh(self.mul(x, 1.0 / cap)), cap)
    }

    /// The bf16 in the low half of a `u32`, as `f32`.
    #[track_caller]
    pub fn bf16_low(&self, word: impl IntoVal) -> Val {
        self.bitcast(Scalar::F32, self.shl(word, 16))
    }

    /// The bf16 in the high half of a `u32`, as `f32`.
    #[track_caller]
    pub fn bf16_high(&self, word: impl IntoVal) -> Val {
        self.bitcast(Scalar::F32, self.bit_and(word, 0xffff_0000))
    }

    /// Sum of the lanes.
    #[track_caller]
    pub fn sum_lanes(&self, x: impl IntoVal) -> Val {
        self.reduce_lanes(x, |b, p, q| b.add(p, q))
    }

    /// Largest lane.
    #[track_caller]
    pub fn max_lanes(&self, x: impl IntoVal) -> Val {
        self.reduce_lanes(x, |b, p, q| b.max(p, q))
    }

    /// `(l0 op l1) op (l2 op l3)`
    fn reduce_lanes(&self, x: impl IntoVal, op: impl Fn(&Builder, Val, Val) -> Val) -> Val {
        let x = x.into_val(self);
        match self.lanes_of(x) {
            2 => op(self, self.lane(x, 0), self.lane(x, 1)),
            4 => {
                let low = op(self, self.lane(x, 0), self.lane(x, 1));
                let high = op(self, self.lane(x, 2), self.lane(x, 3));
                op(self, low, high)
            }
            _ => x,
        }
    }

    /// `ceil(x / by)` for `u32`, `by` positive.
    #[track_caller]
    pub fn div_ceil(&self, x: impl IntoVal, by: u32) -> Val {
        if by == 0 {
            self.error("division by zero");
            return self.poison();
        }
        self.div(self.add(x, by - 1), by)
    }
}
