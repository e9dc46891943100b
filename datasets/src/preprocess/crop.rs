//! Cropping to what is not zero, as nnU-Net crops.

use ndarray::{s, Array3, Array4, ArrayView3, ArrayView4, Zip};

/// A box of voxels, half open along each axis.
pub type Bounds = [[usize; 2]; 3];

/// The label of voxels outside the body: background there and outside the mask.
pub const OUTSIDE: i16 = -1;

/// Where any channel is not zero, with holes filled. A hole is a connected region (by faces) that does not reach the border of the array;
/// so a single slice, whose pixels all lie at the border, has none.
pub fn body_mask(data: ArrayView4<f32>) -> Array3<bool> {
    let size = (data.shape()[1], data.shape()[2], data.shape()[3]);
    let mut mask = Array3::from_elem(size, false);
    for channel in data.outer_iter() {
        Zip::from(&mut mask)
            .and(&channel)
            .for_each(|m, &v| *m |= v != 0.0);
    }
    fill_holes(&mut mask);
    mask
}

fn fill_holes(mask: &mut Array3<bool>) {
    let (nz, ny, nx) = mask.dim();
    if nz <= 2 || ny <= 2 || nx <= 2 || mask.iter().all(|m| *m) {
        return;
    }
    let plane = ny * nx;
    let Some(body) = mask.as_slice_mut() else {
        return;
    };
    // Zeros reached from the border.
    let mut open = vec![false; body.len()];
    let mut stack = Vec::new();
    for z in 0..nz {
        for y in 0..ny {
            let edge_row = z == 0 || z == nz - 1 || y == 0 || y == ny - 1;
            let step = if edge_row { 1 } else { nx - 1 };
            for x in (0..nx).step_by(step) {
                let at = z * plane + y * nx + x;
                if !body[at] && !open[at] {
                    open[at] = true;
                    stack.push(at);
                }
            }
        }
    }
    while let Some(at) = stack.pop() {
        let (z, y, x) = (at / plane, at / nx % ny, at % nx);
        let neighbours = [
            (z > 0, at.wrapping_sub(plane)),
            (z + 1 < nz, at + plane),
            (y > 0, at.wrapping_sub(nx)),
            (y + 1 < ny, at + nx),
            (x > 0, at.wrapping_sub(1)),
            (x + 1 < nx, at + 1),
        ];
        for (inside, next) in neighbours {
            if inside && !body[next] && !open[next] {
                open[next] = true;
                stack.push(next);
            }
        }
    }
    for (body, open) in body.iter_mut().zip(&open) {
        *body = !open;
    }
}

/// The smallest box around a mask; the whole array if it is empty.
pub fn bounds_of(mask: &Array3<bool>) -> Bounds {
    let size = [mask.dim().0, mask.dim().1, mask.dim().2];
    let mut bounds = size.map(|n| [n, 0]);
    for (z, plane) in mask.outer_iter().enumerate() {
        for (y, row) in plane.outer_iter().enumerate() {
            let Some(first) = row.iter().position(|m| *m) else {
                continue;
            };
            // the row is known to have one
            let last = row.len() - 1 - row.iter().rev().position(|m| *m).unwrap_or(0);
            for (range, [low, high]) in bounds.iter_mut().zip([[z, z], [y, y], [first, last]]) {
                range[0] = range[0].min(low);
                range[1] = range[1].max(high + 1);
            }
        }
    }
    if bounds[0][1] == 0 {
        return size.map(|n| [0, n]);
    }
    bounds
}

/// A case cropped to its body.
pub struct Cropped {
    /// (C, Z, Y, X).
    pub data: Array4<f32>,
    /// Labels, [`OUTSIDE`] where neither label nor body is; without labels 0 in the body.
    pub seg: Array3<i16>,
    /// What was kept.
    pub bounds: Bounds,
}

/// Crops an image, and its label map if it has one.
pub fn crop_to_body(data: ArrayView4<f32>, seg: Option<ArrayView3<i16>>) -> Cropped {
    let mask = body_mask(data);
    let bounds = bounds_of(&mask);
    let [z, y, x] = bounds;
    let kept = s![z[0]..z[1], y[0]..y[1], x[0]..x[1]];
    let mask = mask.slice(kept);
    let mut cropped = match seg {
        Some(seg) => seg.slice(kept).to_owned(),
        None => Array3::zeros(mask.raw_dim()),
    };
    Zip::from(&mut cropped)
        .and(&mask)
        .for_each(|label, inside| {
            if *label == 0 && !inside {
                *label = OUTSIDE;
            }
        });
    Cropped {
        data: data
            .slice(s![.., z[0]..z[1], y[0]..y[1], x[0]..x[1]])
            .to_owned(),
        seg: cropped,
        bounds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_in_volumes_only() {
        let mut volume = Array4::<f32>::zeros((1, 5, 7, 7));
        volume.slice_mut(s![0, 1..4, 1..6, 1..6]).fill(1.0);
        volume[[0, 2, 3, 3]] = 0.0;
        let cropped = crop_to_body(volume.view(), None);
        assert_eq!(cropped.bounds, [[1, 4], [1, 6], [1, 6]]);
        assert!(cropped.seg.iter().all(|&l| l == 0));

        let slice = volume.slice(s![.., 2..3, .., ..]);
        let cropped = crop_to_body(slice, None);
        assert_eq!(cropped.seg[[0, 2, 2]], OUTSIDE);
    }

    #[test]
    fn nothing_but_zeros_is_kept_whole() {
        let cropped = crop_to_body(Array4::zeros((2, 2, 3, 4)).view(), None);
        assert_eq!(cropped.bounds, [[0, 2], [0, 3], [0, 4]]);
        assert!(cropped.seg.iter().all(|&l| l == OUTSIDE));
    }
}
