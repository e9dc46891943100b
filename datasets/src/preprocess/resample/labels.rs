//! Label maps on another grid: each class's share of a position decides.

use ndarray::Array3;

use super::{Order, Regrid, Resampling, Sampler};

/// Who wins a position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LabelRule {
    /// The class of the largest share; of equals the nearest grid point's class, or else the smallest (batchgenerators from 0.25.5 on).
    #[default]
    LargestShare,
    /// The largest class with a share of at least one half, or 0 where none has it (batchgenerators before 0.25.5).
    LastHalf,
}

/// Resamples a label map (Z, Y, X).
pub fn resample_labels(
    labels: Array3<i16>,
    to: &Regrid,
    how: &Resampling,
    rule: LabelRule,
) -> Array3<i16> {
    if labels.shape() == to.size {
        return labels;
    }
    let (order, _) = how.orders();
    let size = [labels.shape()[0], labels.shape()[1], labels.shape()[2]];
    // across thick slices, and everywhere for order 0, the nearest counts alone
    let samplers: [Sampler; 3] = std::array::from_fn(|a| {
        let picks = order == Order::Nearest || to.separate == Some(a);
        match picks {
            true => Sampler::picking(size[a], to.size[a]),
            false => Sampler::new(size[a], to.size[a]),
        }
    });
    by_share(&labels, &samplers, to.size, rule)
}

fn by_share(
    labels: &Array3<i16>,
    [z, y, x]: &[Sampler; 3],
    size: [usize; 3],
    rule: LabelRule,
) -> Array3<i16> {
    let (_, ny, nx) = labels.dim();
    let labels = labels.as_standard_layout();
    let mut out = Array3::zeros(size);
    let mut shares: Vec<(i16, f64)> = Vec::with_capacity(8);
    let Some(values) = labels.as_slice() else {
        return out;
    };
    for (k, mut plane) in out.outer_iter_mut().enumerate() {
        let ((z0, z1), zs) = (z.neighbours[k], z.share[k]);
        let z_weights = [1.0 - zs, zs];
        for (j, mut row) in plane.outer_iter_mut().enumerate() {
            let ((y0, y1), ys) = (y.neighbours[j], y.share[j]);
            let y_weights = [1.0 - ys, ys];
            let rows: [&[i16]; 4] = std::array::from_fn(|n| {
                &values[([z0, z1][n / 2] * ny + [y0, y1][n % 2]) * nx..][..nx]
            });
            let alike = rows[1..].iter().all(|r| *r == rows[0]);
            if alike && rows[0].iter().all(|v| *v == rows[0][0]) {
                row.fill(rows[0][0]);
                continue;
            }
            let weights: [f64; 4] = std::array::from_fn(|n| z_weights[n / 2] * y_weights[n % 2]);
            for (i, out) in row.iter_mut().enumerate() {
                let ((x0, x1), xs) = (x.neighbours[i], x.share[i]);
                let first = rows[0][x0];
                if rows.iter().all(|r| r[x0] == first && r[x1] == first) {
                    *out = first;
                    continue;
                }
                shares.clear();
                for (row, weight) in rows.iter().zip(&weights) {
                    for (value, weight) in [(row[x0], weight * (1.0 - xs)), (row[x1], weight * xs)]
                    {
                        match shares.iter_mut().find(|s| s.0 == value) {
                            Some(share) => share.1 += weight,
                            None => shares.push((value, weight)),
                        }
                    }
                }
                *out = match rule {
                    LabelRule::LargestShare => {
                        largest(&shares, labels[[z.nearest[k], y.nearest[j], x.nearest[i]]])
                    }
                    LabelRule::LastHalf => shares
                        .iter()
                        .filter(|s| s.1 >= 0.5)
                        .map(|s| s.0)
                        .max()
                        .unwrap_or(0),
                };
            }
        }
    }
    out
}

fn largest(shares: &[(i16, f64)], nearest: i16) -> i16 {
    let top = shares.iter().map(|s| s.1).fold(f64::MIN, f64::max);
    let winners = shares.iter().filter(|s| s.1 == top).map(|s| s.0);
    if winners.clone().any(|w| w == nearest) {
        return nearest;
    }
    winners.min().unwrap_or(nearest)
}
