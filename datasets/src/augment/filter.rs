//! Separable filters along the axes of a channel: Gaussian blur, and sampling down and up again.

use crate::augment::wide::wide;

/// Columns that are filtered together: a strip of them stays in the processor's nearest cache.
const STRIP: usize = 64;
/// Widest Gaussian that has a loop of its own.
const UNROLLED: usize = 7;

/// Gaussian blur of (size...) with one standard deviation an axis, edges mirrored without repeating the border, kernel lengths as
/// batchgeneratorsv2 has them.
pub(crate) fn blur(values: &mut [f32], size: &[usize], sigmas: &[f64]) {
    let kernels: Vec<Vec<f32>> = sigmas.iter().map(|&sigma| gaussian(sigma)).collect();
    let radii: Vec<Option<usize>> = kernels
        .iter()
        .zip(size)
        .map(|(kernel, &n)| (kernel.len() > 1 && n > 1).then_some(kernel.len() / 2))
        .collect();
    along(
        values,
        size,
        &radii,
        &mut |axis, strip, rows| match kernels[axis].as_slice() {
            kernel @ &[_, _, _] => convolve::<3>(strip, rows, kernel),
            kernel @ &[_, _, _, _, _] => convolve::<5>(strip, rows, kernel),
            kernel if kernel.len() == UNROLLED => convolve::<UNROLLED>(strip, rows, kernel),
            kernel => convolve_any(strip, rows, kernel),
        },
    );
}

/// Nearest sampling to `scales` of the size and linear interpolation back, half-pixel centres both ways.
pub(crate) fn coarsen(values: &mut [f32], size: &[usize], scales: &[f64]) {
    let taps: Vec<Vec<Tap>> = scales
        .iter()
        .zip(size)
        .map(|(&scale, &n)| coarse_taps(n, scale))
        .collect();
    let changes = |taps: &[Tap]| taps.iter().zip(0..).any(|(t, i)| t.from != [i, i]);
    let radii: Vec<Option<usize>> = taps.iter().map(|t| changes(t).then_some(0)).collect();
    along(values, size, &radii, &mut |axis, strip, rows| {
        interpolate(strip, rows, &taps[axis])
    });
}

/// Gaussian weights. Their number is the odd one nearest to six standard deviations and a half.
fn gaussian(sigma: f64) -> Vec<f32> {
    let wanted = 6.0 * sigma + 0.5;
    let rounded = wanted.round_ties_even();
    let length = match rounded as usize % 2 == 1 {
        true => rounded,
        false if wanted >= rounded => rounded + 1.0,
        false => rounded - 1.0,
    };
    let half = (length as usize / 2) as isize;
    let weights: Vec<f64> = (-half..=half)
        .map(|d| (-0.5 * (d as f64 / sigma).powi(2)).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / sum) as f32).collect()
}

/// Which two positions a position is made from, and how much of the second.
#[derive(Clone, Copy)]
struct Tap {
    from: [u32; 2],
    second: f32,
}

fn coarse_taps(n: usize, scale: f64) -> Vec<Tap> {
    let coarse = ((n as f64 * scale).round_ties_even() as usize).max(1);
    let ratio = n as f64 / coarse as f64;
    let nearest = |k: usize| (((k as f64 + 0.5) * ratio) as usize).min(n - 1);
    let tap = |i: usize| {
        let position = ((i as f64 + 0.5) / ratio - 0.5).clamp(0.0, (coarse - 1) as f64);
        let low = position as usize;
        let second = (position - low as f64) as f32;
        let from = [low, (low + 1).min(coarse - 1)].map(|k| nearest(k) as u32);
        match second == 0.0 {
            true => Tap {
                from: [from[0]; 2],
                second,
            },
            false => Tap { from, second },
        }
    };
    (0..n).map(tap).collect()
}

/// Rows of values that are next to one another, `pitch` values from one row to the next.
struct Rows<'a> {
    values: &'a mut [f32],
    width: usize,
    pitch: usize,
}

impl Rows<'_> {
    #[inline(always)]
    fn iter(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let width = self.width;
        self.values
            .chunks_mut(self.pitch)
            .map(move |row| &mut row[..width])
    }
}

/// Makes rows out of a strip, which holds the former rows and their margins without gaps; told the axis.
type Filter<'a> = dyn FnMut(usize, &[f32], Rows) + 'a;

/// Filters an array along its first axis in strips of columns, then its parts along the others. `radii` says for each axis how many rows beyond
/// the array a filter needs, or that it has nothing to do.
fn along(values: &mut [f32], size: &[usize], radii: &[Option<usize>], filter: &mut Filter) {
    // axes are numbered from the first of all
    fn part(
        values: &mut [f32],
        size: &[usize],
        radii: &[Option<usize>],
        axis: usize,
        strip: &mut Vec<f32>,
        filter: &mut Filter,
    ) {
        let (n, inner) = (size[axis], size[axis + 1..].iter().product::<usize>());
        if let Some(radius) = radii[axis] {
            for column in (0..inner).step_by(STRIP) {
                let width = STRIP.min(inner - column);
                strip.clear();
                if inner == 1 {
                    strip.extend(
                        (0..radius).map(|i| values[mirrored(i as isize - radius as isize, n)]),
                    );
                    strip.extend_from_slice(values);
                    strip.extend((n..n + radius).map(|i| values[mirrored(i as isize, n)]));
                } else {
                    for row in 0..n + 2 * radius {
                        let from = mirrored(row as isize - radius as isize, n) * inner + column;
                        strip.extend_from_slice(&values[from..from + width]);
                    }
                }
                let rows = Rows {
                    values: &mut values[column..],
                    width,
                    pitch: inner,
                };
                filter(axis, strip, rows);
            }
        }
        if radii[axis + 1..].iter().any(Option::is_some) {
            for block in values.chunks_exact_mut(inner) {
                part(block, size, radii, axis + 1, strip, filter);
            }
        }
    }
    part(values, size, radii, 0, &mut Vec::new(), filter);
}

/// The position within `0..n` that mirroring at the first and last one leads to.
fn mirrored(mut i: isize, n: usize) -> usize {
    let last = n as isize - 1;
    while i < 0 || i > last {
        i = if i < 0 { -i } else { 2 * last - i };
    }
    i as usize
}

wide! {
    /// `out[i] = sum of kernel[k] strip[i + k]`, in rows.
    fn convolve<const K: usize>(strip: &[f32], out: Rows, kernel: &[f32]) {
        let weights: [f32; K] = std::array::from_fn(|k| kernel[k]);
        let mut out = out;
        if out.pitch == 1 {
            // rows of single values are one row, that of the next column being further on
            return weighted(strip, out.values, 1, &weights);
        }
        let width = out.width;
        for (row, to) in out.iter().enumerate() {
            weighted(&strip[row * width..], to, width, &weights);
        }
    }

    fn convolve_any(strip: &[f32], out: Rows, kernel: &[f32]) {
        let mut out = out;
        let width = out.width;
        for (row, to) in out.iter().enumerate() {
            to.fill(0.0);
            for (k, weight) in kernel.iter().enumerate() {
                for (to, from) in to.iter_mut().zip(&strip[(row + k) * width..]) {
                    *to += weight * from;
                }
            }
        }
    }

    fn interpolate(strip: &[f32], out: Rows, taps: &[Tap]) {
        let mut out = out;
        if out.pitch == 1 {
            // the default is never met, but lets the loop go without branches
            let value = |i: u32| strip.get(i as usize).copied().unwrap_or_default();
            for (to, tap) in out.values.iter_mut().zip(taps) {
                let [a, b] = tap.from.map(value);
                *to = a + tap.second * (b - a);
            }
            return;
        }
        let width = out.width;
        for (to, tap) in out.iter().zip(taps) {
            let [first, second] = tap.from.map(|row| &strip[row as usize * width..][..width]);
            for ((to, a), b) in to.iter_mut().zip(first).zip(second) {
                *to = a + tap.second * (b - a);
            }
        }
    }
}

/// Sums of weighted values that lie `apart`.
#[inline(always)]
fn weighted<const K: usize>(from: &[f32], to: &mut [f32], apart: usize, weights: &[f32; K]) {
    let count = to.len();
    let shifted: [&[f32]; K] = std::array::from_fn(|k| &from[k * apart..][..count]);
    for (i, to) in to.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (weight, from) in weights.iter().zip(&shifted) {
            sum += weight * from[i];
        }
        *to = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::tests::patch;

    /// Against batchgeneratorsv2's `_compute_kernel_size` with `truncate=6`.
    #[test]
    fn kernel_lengths() {
        for (sigma, length) in [
            (0.5, 3),
            (0.59, 5),
            (0.7, 5),
            (0.75, 5),
            (0.8, 5),
            (0.92, 7),
            (1.0, 7),
            (2.0, 13),
        ] {
            assert_eq!(gaussian(sigma).len(), length, "{sigma}");
        }
    }

    #[test]
    fn filters_keep_constants_and_blur_spreads_an_impulse_as_a_gaussian() {
        let size = [5, 7, 9];
        let mut constant = vec![2.0; 5 * 7 * 9];
        blur(&mut constant, &size, &[0.8, 0.5, 2.0]);
        coarsen(&mut constant, &size, &[0.6, 0.7, 0.8]);
        assert!(constant.iter().all(|v| (v - 2.0f32).abs() < 1e-5));

        let mut impulse = vec![0.0; 15 * 15];
        impulse[7 * 15 + 7] = 1.0;
        blur(&mut impulse, &[15, 15], &[1.0, 0.9]);
        let centre = impulse[7 * 15 + 7];
        assert!((impulse[8 * 15 + 7] / centre - (-0.5f32).exp()).abs() < 1e-5);
        assert!((impulse[7 * 15 + 8] / centre - (-0.5f32 / 0.81).exp()).abs() < 1e-5);
    }

    /// Every strip, also the last narrow one, and lines shorter than the kernel, against the sums written out.
    #[test]
    fn blur_equals_its_definition() {
        for size in [[3, 70, 5], [2, 9, 130], [4, 2, 3]] {
            let n: usize = size.iter().product();
            let original: Vec<f32> = (0..n).map(|i| (i * 31 % 17) as f32).collect();
            for axis in 0..3 {
                let mut sigmas = [0.05; 3];
                sigmas[axis] = 1.0;
                let mut got = original.clone();
                blur(&mut got, &size, &sigmas);
                let kernel = gaussian(1.0);
                let stride: usize = size[axis + 1..].iter().product();
                for (i, value) in got.iter().enumerate() {
                    let at = i / stride % size[axis];
                    let want: f32 = (0..7)
                        .map(|k| {
                            let from = mirrored(at as isize + k as isize - 3, size[axis]);
                            kernel[k] * original[i - at * stride + from * stride]
                        })
                        .sum();
                    assert!(
                        (value - want).abs() < 1e-4,
                        "{size:?} {axis} {i}: {value} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn full_resolution_changes_nothing_and_half_takes_every_second() {
        let mut values = patch();
        coarsen(&mut values, &[6, 8, 10], &[1.0; 3]);
        assert_eq!(values, patch());
        let mut line = vec![5.0, 1.0, 7.0, 2.0];
        coarsen(&mut line, &[4], &[0.5]);
        // Coarse samples are positions 1 and 3 (centres 1.0 and 3.0 on the half-pixel grid).
        assert_eq!(line, [1.0, 1.25, 1.75, 2.0]);
    }
}
