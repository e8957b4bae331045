//! Two tensors in one.

use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};

/// Above this cosine of the angle, interpolation on the sphere is linear.
const PARALLEL: f64 = 0.9995;

/// Spherical interpolation of flattened tensors, from `a` at t = 0 to `b` at t = 1:
/// `sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b` with Ω the angle between them; linear where they are almost parallel.
///
/// # Errors
/// Shapes that differ.
pub fn slerp(step: &str, a: &Dense, b: &Dense, t: f64) -> Result<Dense> {
    if a.shape != b.shape {
        return refuse(step, format!("tensors of shape {:?} and {:?} cannot be merged", a.shape, b.shape));
    }
    let data = slerp_of(&a.data, &b.data, t);
    Ok(Dense { shape: a.shape.clone(), data })
}

/// As [`slerp`], each row for itself.
///
/// # Errors
/// Shapes that differ.
pub fn slerp_rows(step: &str, a: &Dense, b: &Dense, t: f64) -> Result<Dense> {
    if a.shape != b.shape {
        return refuse(step, format!("tensors of shape {:?} and {:?} cannot be merged", a.shape, b.shape));
    }
    let data = (0..a.rows()).flat_map(|i| slerp_of(a.row(i), b.row(i), t)).collect();
    Ok(Dense { shape: a.shape.clone(), data })
}

fn slerp_of(a: &[f64], b: &[f64], t: f64) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    let cos = if lengths > 0.0 { dot(a, b) / lengths } else { 1.0 };
    let (from, to) = if cos.abs() > PARALLEL {
        (1.0 - t, t)
    } else {
        let angle = cos.clamp(-1.0, 1.0).acos();
        (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
    };
    a.iter().zip(b).map(|(x, y)| from * x + to * y).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_ends_and_the_middle_of_a_quarter_turn() {
        let (a, b) = (Dense::vector(vec![2.0, 0.0]), Dense::vector(vec![0.0, 2.0]));
        assert_eq!(slerp("t", &a, &b, 0.0).unwrap(), a);
        let middle = slerp("t", &a, &b, 0.5).unwrap();
        assert!(middle.data.iter().all(|v| (v - 2.0f64.sqrt()).abs() < 1e-15));
        let same = Dense::vector(vec![2.0, 1e-3]);
        assert_eq!(slerp("t", &a, &same, 0.25).unwrap().data, [2.0, 2.5e-4]);
        assert!(slerp("t", &a, &Dense::vector(vec![1.0]), 0.5).is_err());
    }
}
