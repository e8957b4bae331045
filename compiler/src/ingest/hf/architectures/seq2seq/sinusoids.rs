//! Tables of sines and cosines for positions, which files do not hold because they follow from their sizes.

/// `[rows, width]`: sines in the first half of a row, cosines in the second; the angle of pair j is
/// `row · 10000^(−2j/width)`.
pub(super) fn halves(rows: u64, width: u64) -> Vec<f32> {
    let sines = width.div_ceil(2);
    let angle = |row: u64, j: u64| row as f64 / 10_000f64.powf(2.0 * (j / 2) as f64 / width as f64);
    table(rows, width, |row, at| match at < sines {
        true => angle(row, 2 * at).sin(),
        false => angle(row, 2 * (at - sines) + 1).cos(),
    })
}

/// `[rows, width]` as [`halves`], with the angle `row · 10000^(−j/(width/2 − 1))`, and zeros in the row `pad` and in an
/// odd last column.
pub(super) fn spread(rows: u64, width: u64, pad: u64) -> Vec<f32> {
    let half = width / 2;
    let step = -(10_000f64.ln()) / (half.max(2) - 1) as f64;
    let angle = |row: u64, j: u64| row as f64 * (j as f64 * step).exp();
    table(rows, width, |row, at| match () {
        () if row == pad || at >= 2 * half => 0.0,
        () if at < half => angle(row, at).sin(),
        () => angle(row, at - half).cos(),
    })
}

fn table(rows: u64, width: u64, value: impl Fn(u64, u64) -> f64) -> Vec<f32> {
    (0..rows).flat_map(|row| (0..width).map(move |at| (row, at))).map(|(row, at)| value(row, at) as f32).collect()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sines_then_cosines() {
        let t = halves(3, 4);
        assert_eq!(t[..4], [0.0, 0.0, 1.0, 1.0]);
        assert!((t[4] - 1f32.sin()).abs() < 1e-7 && (t[5] - 0.01f32.sin()).abs() < 1e-7);
        assert!((t[10] - 2f32.cos()).abs() < 1e-7 && (t[11] - 0.02f32.cos()).abs() < 1e-7);
        let t = spread(3, 5, 1);
        assert!(t[5..10].iter().all(|v| *v == 0.0) && t[14] == 0.0);
        assert!((t[10] - 2f32.sin()).abs() < 1e-7 && (t[11] - 2e-4f32.sin()).abs() < 1e-7);
    }
}
