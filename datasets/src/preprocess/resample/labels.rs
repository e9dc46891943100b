//! Label maps on another grid: each class's share of a position decides.

use ndarray::{Array3, ArrayView3, Axis};

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
    // The axis across thick slices is picked from afterwards.
    let within: [usize; 3] = std::array::from_fn(|a| match to.separate {
        Some(axis) if axis == a => size[a],
        _ => to.size[a],
    });
    let samplers: [Sampler; 3] = std::array::from_fn(|a| Sampler::new(size[a], within[a]));
    let resized = match order {
        Order::Nearest => pick(labels.view(), &samplers),
        _ => by_share(labels.view(), &samplers, within, rule),
    };
    match to.separate {
        Some(axis) if size[axis] != to.size[axis] => {
            let nearest = Sampler::new(size[axis], to.size[axis]).nearest;
            resized.select(Axis(axis), &nearest)
        }
        _ => resized,
    }
}

fn pick(labels: ArrayView3<i16>, samplers: &[Sampler; 3]) -> Array3<i16> {
    let mut picked = labels.to_owned();
    for (axis, sampler) in samplers.iter().enumerate() {
        if sampler.nearest.len() != picked.shape()[axis] {
            picked = picked.select(Axis(axis), &sampler.nearest);
        }
    }
    picked
}

fn by_share(
    labels: ArrayView3<i16>,
    [z, y, x]: &[Sampler; 3],
    size: [usize; 3],
    rule: LabelRule,
) -> Array3<i16> {
    let mut out = Array3::zeros(size);
    let mut shares: Vec<(i16, f64)> = Vec::with_capacity(8);
    for (k, mut plane) in out.outer_iter_mut().enumerate() {
        let ((z0, z1), zs) = (z.neighbours[k], z.share[k]);
        let slices = [
            labels.index_axis(Axis(0), z0),
            labels.index_axis(Axis(0), z1),
        ];
        let z_weights = [1.0 - zs, zs];
        for (j, mut row) in plane.outer_iter_mut().enumerate() {
            let ((y0, y1), ys) = (y.neighbours[j], y.share[j]);
            let y_weights = [1.0 - ys, ys];
            let rows: [_; 4] =
                std::array::from_fn(|n| slices[n / 2].index_axis_move(Axis(0), [y0, y1][n % 2]));
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
