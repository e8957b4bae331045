//! Coefficients of functions that the languages lack, highest power first. They are kept as text, so that every emitter
//! rounds the same numbers.

/// Coefficients of `(erf(x) - x) / x` in `x^2`, for `|x|` up to 0.928.
pub(super) const ERF_NEAR: [&str; 6] =
    ["-5.96761703e-4", "4.99119423e-3", "-2.67681349e-2", "1.12819925e-1", "-3.76125336e-1", "1.28379166e-1"];

/// Coefficients of `(log(1 - erf(t)) + t) / t` in `t`, for `t` from 0.928 to 4.
pub(super) const ERF_FAR: [&str; 7] = [
    "-1.72853470e-5",
    "3.83197126e-4",
    "-3.88396438e-3",
    "2.42546219e-2",
    "-1.06777877e-1",
    "-6.34846687e-1",
    "-1.28717512e-1",
];

/// Where the two polynomials of erf meet.
pub(super) const ERF_SPLIT: &str = "0.927734375";

/// Coefficients of `(tanh(x) - x) / x^3` in `x^2`, for `|x|` up to 0.6.
pub(super) const TANH_NEAR: [&str; 5] =
    ["-6.26911972e-3", "2.11109590e-2", "-5.38739488e-2", "1.33329154e-1", "-3.33333303e-1"];

/// The number that a coefficient stands for.
pub(super) fn number(text: &str) -> f32 {
    text.parse().unwrap_or(f32::NAN)
}
