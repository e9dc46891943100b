//! Surface elements between voxels: which of the 256 neighbourhoods of 2x2x2 voxels has how much surface in it.
//!
//! The facets are those of marching cubes with vertices in the middle of edges (Lorensen and Cline, SIGGRAPH 1987), in the triangulation that
//! published normalised surface Dice rests on. Neighbourhoods that a turn, a mirror or an exchange of inside and outside carries into each
//! other have the same facets; so thirteen are stated, and the rest follows.

use ndarray::{s, Array3, ArrayView3};

/// The code of a neighbourhood that lies wholly inside: of volumes, of pictures.
pub const INSIDE: [u8; 2] = [255, 15];

/// Neighbourhoods (bit 7 is the corner at the lower end of all axes, bit 0 that at the upper end) with their facets: the sizes of the
/// components of each facet's area vector, in eighths of a face.
const FACETS: [(u8, &[[u8; 3]]); 13] = [
    (1, &[[1, 1, 1]]),
    (3, &[[2, 2, 0], [2, 2, 0]]),
    (6, &[[1, 1, 1], [1, 1, 1]]),
    (7, &[[1, 1, 1], [2, 2, 2], [4, 0, 0]]),
    (15, &[[4, 0, 0], [4, 0, 0]]),
    (22, &[[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    (23, &[[1, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2]]),
    (24, &[[1, 1, 1], [1, 1, 1]]),
    (25, &[[0, 2, 2], [0, 2, 2], [1, 1, 1]]),
    (27, &[[0, 2, 2], [1, 1, 1], [2, 0, 2], [3, 3, 3]]),
    (30, &[[1, 1, 1], [1, 1, 1], [2, 2, 2], [4, 0, 0]]),
    (60, &[[2, 2, 0], [2, 2, 0], [2, 2, 0], [2, 2, 0]]),
    (105, &[[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]),
];

/// Orders of three axes.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// The corner of a bit along each axis: 0 at the lower end, 1 at the upper.
fn corner(bit: usize) -> [usize; 3] {
    let place = 7 - bit;
    [place >> 2 & 1, place >> 1 & 1, place & 1]
}

fn bit([z, y, x]: [usize; 3]) -> usize {
    7 - (z << 2 | y << 1 | x)
}

/// A neighbourhood with its axes in another order and some of them turned round.
fn moved(code: u8, order: [usize; 3], turned: usize) -> u8 {
    (0..8)
        .filter(|b| code >> b & 1 == 1)
        .map(|b| {
            let from = corner(b);
            let to = std::array::from_fn(|axis| from[order[axis]] ^ (turned >> axis & 1));
            1 << bit(to)
        })
        .sum()
}

/// Area of the surface in each neighbourhood, by code, for voxels of a spacing. With `flat`, lengths of contours in neighbourhoods of 2x2
/// pixels (codes 0 to 15) along the last two axes.
pub fn element_weights(spacing: [f64; 3], flat: bool) -> Vec<f64> {
    let [z, y, x] = spacing;
    if flat {
        let diagonal = 0.5 * (y * y + x * x).sqrt();
        return (0..16u8)
            .map(|code| match code {
                0 | 15 => 0.0,
                // side by side in a row, in a column
                0b0011 | 0b1100 => x,
                0b0101 | 0b1010 => y,
                0b0110 | 0b1001 => 2.0 * diagonal,
                _ => diagonal,
            })
            .collect();
    }
    let faces = [y * x, z * x, z * y];
    let mut weights = vec![0.0; 256];
    for (code, facets) in FACETS {
        for order in ORDERS {
            let area: f64 = facets
                .iter()
                .map(|facet| {
                    let parts = (0..3).map(|a| f64::from(facet[order[a]]) / 8.0 * faces[a]);
                    parts.map(|p| p * p).sum::<f64>().sqrt()
                })
                .sum();
            for turned in 0..8 {
                let code = moved(code, order, turned);
                weights[usize::from(code)] = area;
                weights[usize::from(!code)] = area;
            }
        }
    }
    weights
}

/// The code of the neighbourhood at every corner of the voxels, one more along each axis than there are voxels; background beyond them.
pub fn neighbourhood_codes(mask: ArrayView3<bool>, flat: bool) -> Array3<u8> {
    let (nz, ny, nx) = mask.dim();
    let mut codes = Array3::zeros((nz + usize::from(!flat), ny + 1, nx + 1));
    let mask = mask.as_standard_layout();
    // each voxel is in the neighbourhood of its eight corners, and at the opposite place in each; rows of background are passed over
    for (z, plane) in mask.outer_iter().enumerate() {
        for (y, row) in plane.outer_iter().enumerate() {
            let Some(row) = row.to_slice().filter(|r| r.contains(&true)) else {
                continue;
            };
            for (dz, dy, dx) in (0..8).map(|c| (c >> 2, c >> 1 & 1, c & 1)) {
                let place = match (flat, dz) {
                    (true, 0) => 3 - ((1 - dy) << 1 | (1 - dx)),
                    (true, _) => continue,
                    _ => bit([1 - dz, 1 - dy, 1 - dx]),
                };
                let codes = codes.slice_mut(s![z + dz, y + dy, dx..dx + nx]);
                let Some(codes) = codes.into_slice() else {
                    continue;
                };
                for (code, set) in codes.iter_mut().zip(row) {
                    *code |= u8::from(*set) << place;
                }
            }
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_neighbourhood_has_its_area() {
        let weights = element_weights([1.0, 1.0, 1.0], false);
        let without = weights.iter().enumerate().filter(|(_, w)| **w == 0.0);
        assert_eq!(without.map(|(c, _)| c).collect::<Vec<_>>(), [0, 255]);
        // a corner cut off: an equilateral triangle with sides of half a face's diagonal
        assert!((weights[128] - 3f64.sqrt() / 8.0).abs() < 1e-15);
        // half inside: the face between
        assert_eq!(weights[0b1111_0000], 1.0);
        let thick = element_weights([3.0, 1.0, 1.0], false);
        assert_eq!(thick[0b1111_0000], 1.0);
        assert_eq!(thick[0b1100_1100], 3.0);
    }

    #[test]
    fn a_box_has_about_its_surface() {
        let mask = Array3::from_elem((6, 5, 4), true);
        let weights = element_weights([2.0, 1.0, 1.0], false);
        let codes = neighbourhood_codes(mask.view(), false);
        let area: f64 = codes.iter().map(|c| weights[usize::from(*c)]).sum();
        let full = 2.0 * (12.0 * 5.0 + 12.0 * 4.0 + 5.0 * 4.0);
        assert!(area < full && area > 0.85 * full, "{area} of {full}");
    }
}
