//! Index maps: how the coordinates of a value follow from those of another through views. All maps are exact and are
//! simplified under the bounds of the axes.

use frit_kernels::dim::{Bounds, Dim, product};

/// Coordinates of one element, one expression an axis.
pub type Coords = Vec<Dim>;

/// Row-major position of an element.
pub fn linear(coords: &[Dim], shape: &[Dim], bounds: &Bounds) -> Dim {
    let mut at = Dim::zero();
    for (c, d) in coords.iter().zip(shape) {
        at = &at * d + c.clone();
    }
    at.simplify(bounds)
}

/// Coordinates of the element at a row-major position.
pub fn delinear(at: &Dim, shape: &[Dim], bounds: &Bounds) -> Coords {
    (0..shape.len())
        .map(|k| {
            let inner = product(shape.iter().skip(k + 1));
            let q = at.div(&inner).simplify(bounds);
            if k == 0 { q } else { q.rem(shape.get(k).unwrap_or(&Dim::one())).simplify(bounds) }
        })
        .collect()
}

/// The same element seen through a reshape from `from` to `to`. Axes that both shapes share on the left are kept.
pub fn reshape(coords: &[Dim], from: &[Dim], to: &[Dim], bounds: &Bounds) -> Coords {
    let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let (Some(f), Some(t), Some(c)) = (from.get(shared..), to.get(shared..), coords.get(shared..)) else {
        return delinear(&linear(coords, from, bounds), to, bounds);
    };
    let tail = delinear(&linear(c, f, bounds), t, bounds);
    coords.iter().take(shared).cloned().chain(tail).collect()
}

/// Coordinates in an operand of shape `from` that broadcasts to a result with these coordinates.
pub fn broadcast(coords: &[Dim], from: &[Dim]) -> Coords {
    let skip = coords.len().saturating_sub(from.len());
    let own = coords.iter().skip(skip);
    own.zip(from).map(|(c, d)| if d.is(1) { Dim::zero() } else { c.clone() }).collect()
}

/// Coordinates in the operand of a transpose: axis `perm[k]` of the operand is axis k of the result.
pub fn transpose_back(coords: &[Dim], perm: &[usize]) -> Coords {
    let mut out = vec![Dim::zero(); perm.len()];
    for (c, p) in coords.iter().zip(perm) {
        if let Some(o) = out.get_mut(*p) {
            *o = c.clone();
        }
    }
    out
}

/// Coordinates in the result of a transpose.
pub fn transpose_forward(coords: &[Dim], perm: &[usize]) -> Coords {
    perm.iter().filter_map(|p| coords.get(*p).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_heads_off_rows_keeps_rows() {
        let shape: Vec<Dim> = vec!["B".into(), "S".into(), 48.into()];
        let heads: Vec<Dim> = vec!["B".into(), "S".into(), 4.into(), 12.into()];
        let mut b = Bounds::new();
        b.axis(0, &(Dim::size("B") * Dim::size("S")));
        b.axis(1, &48.into());
        let rows = delinear(&Dim::axis(0), &shape[..2], &b);
        let coords: Coords = rows.into_iter().chain([Dim::axis(1)]).collect();
        let split = reshape(&coords, &shape, &heads, &b);
        assert_eq!(split[2].to_string(), "div(i1, 12)");
        assert_eq!(linear(&split, &heads, &b).to_string(), "48*i0 + i1");
    }
}
