//! Elements that each chip sends or receives in a feed-forward layer of a large transformer, by how it is partitioned
//! (Pope et al., "Efficiently scaling transformer inference", 2022, §3.2 and appendix A).
//!
//! E is the width of the residual stream, F that of the feed-forward part, B·L the tokens, n the chips. Factors (n − 1)/n
//! are taken as 1, as the paper does.

/// One axis of the mesh splits F; a gather before and a scattered reduction behind carry all activations: `2·B·L·E`,
/// whatever n is.
pub fn weight_stationary_1d(tokens: f64, e: f64) -> f64 {
    2.0 * tokens * e
}

/// X chips split E and n/X split F: `2·B·L·(E/X + F·X/n)`, with the X that makes it least, and that X: `√(n·E/F)`, which for
/// F = 4E is √n/2 and gives `8·B·L·E/√n`.
pub fn weight_stationary_2d(tokens: f64, e: f64, f: f64, n: f64) -> (f64, f64) {
    let x = (n * e / f).sqrt();
    (2.0 * tokens * (e / x + f * x / n), x)
}

/// Weights are gathered over N of the n chips and activations are split over them: `2·E·F·N/n + 2·B·L·E/N`, with the N that
/// makes it least, and that N: `√(B·L·n/F)`, which gives `4·E·√(B·L·F/n)`.
pub fn weight_gathered(tokens: f64, e: f64, f: f64, n: f64) -> (f64, f64) {
    let over = (tokens * n / f).sqrt();
    (2.0 * e * f * over / n + 2.0 * tokens * e / over, over)
}
