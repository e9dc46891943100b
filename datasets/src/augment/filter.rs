//! Separable filters along the axes of a channel: Gaussian blur, and sampling down and up again.
#![allow(clippy::needless_range_loop)] // taps are counted

use crate::augment::wide::wide;

/// Columns that are filtered together: a strip of them stays in the processor's nearest cache.
const STRIP: usize = 64;
/// Widest Gaussian that has a loop of its own.
const UNROLLED: usize = 7;

/// Gaussian blur of (size...) with one standard deviation an axis, edges mirrored without repeating the border, kernel lengths as
/// batchgeneratorsv2 has them.
pub(crate) fn blur(values: &mut [f32], size: &[usize], sigmas: &[f64]) {
    for (axis, &sigma) in sigmas.iter().enumerate() {
        let kernel = gaussian(sigma);
        if kernel.len() > 1 && size[axis] > 1 {
            along(
                values,
                size,
                axis,
                kernel.len() / 2,
                &mut |strip, out, width| match kernel.len() {
                    3 => convolve::<3>(strip, out, width, &kernel),
                    5 => convolve::<5>(strip, out, width, &kernel),
                    UNROLLED => convolve::<UNROLLED>(strip, out, width, &kernel),
                    _ => convolve_any(strip, out, width, &kernel),
                },
            );
        }
    }
}

/// Nearest sampling to `scales` of the size and linear interpolation back, half-pixel centres both ways.
pub(crate) fn coarsen(values: &mut [f32], size: &[usize], scales: &[f64]) {
    for (axis, &scale) in scales.iter().enumerate() {
        let taps = coarse_taps(size[axis], scale);
        if taps.iter().enumerate().any(|(i, t)| t.from != [i, i]) {
            along(values, size, axis, 0, &mut |strip, out, width| {
                interpolate(strip, out, width, &taps)
            });
        }
    }
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
    from: [usize; 2],
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
        let from = [nearest(low), nearest((low + 1).min(coarse - 1))];
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

/// Makes rows of a strip and its margins: strip, rows to make, columns.
type Filter<'a> = dyn FnMut(&[f32], &mut [f32], usize) + 'a;

/// Gives strips of the array, lines of `n + 2 radius` rows by some columns, and takes back `n` rows. The last axis is handed over one line a
/// strip, transposed by nothing: rows are single values then.
fn along(values: &mut [f32], size: &[usize], axis: usize, radius: usize, filter: &mut Filter) {
    let n = size[axis];
    let inner: usize = size[axis + 1..].iter().product();
    let mut strip = vec![0f32; (n + 2 * radius) * STRIP.min(inner)];
    let mut result = vec![0f32; n * STRIP.min(inner)];
    for block in values.chunks_exact_mut(n * inner) {
        for column in (0..inner).step_by(STRIP) {
            let width = STRIP.min(inner - column);
            let (strip, result) = (
                &mut strip[..(n + 2 * radius) * width],
                &mut result[..n * width],
            );
            for (row, to) in strip.chunks_exact_mut(width).enumerate() {
                let from = mirrored(row as isize - radius as isize, n) * inner + column;
                to.copy_from_slice(&block[from..from + width]);
            }
            filter(strip, result, width);
            for (row, from) in result.chunks_exact(width).enumerate() {
                block[row * inner + column..][..width].copy_from_slice(from);
            }
        }
    }
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
    /// `out[i] = sum of kernel[k] strip[i + k]`, rows of `width` values.
    fn convolve<const K: usize>(strip: &[f32], out: &mut [f32], width: usize, kernel: &[f32]) {
        let weights: [f32; K] = std::array::from_fn(|k| kernel[k]);
        let count = out.len();
        let rows: [&[f32]; K] = std::array::from_fn(|k| &strip[k * width..][..count]);
        for (i, to) in out.iter_mut().enumerate() {
            let mut sum = 0.0;
            for k in 0..K {
                sum += weights[k] * rows[k][i];
            }
            *to = sum;
        }
    }

    fn convolve_any(strip: &[f32], out: &mut [f32], width: usize, kernel: &[f32]) {
        out.fill(0.0);
        for (k, weight) in kernel.iter().enumerate() {
            for (to, from) in out.iter_mut().zip(&strip[k * width..]) {
                *to += weight * from;
            }
        }
    }

    fn interpolate(strip: &[f32], out: &mut [f32], width: usize, taps: &[Tap]) {
        if width == 1 {
            for (to, tap) in out.iter_mut().zip(taps) {
                let first = strip[tap.from[0]];
                *to = first + tap.second * (strip[tap.from[1]] - first);
            }
            return;
        }
        for (to, tap) in out.chunks_exact_mut(width).zip(taps) {
            let [first, second] = tap.from.map(|row| &strip[row * width..][..width]);
            for ((to, a), b) in to.iter_mut().zip(first).zip(second) {
                *to = a + tap.second * (b - a);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch() -> Vec<f32> {
        (0..6 * 8 * 10)
            .map(|i| ((i * 37 % 101) as f32 / 25.0) - 2.0)
            .collect()
    }

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
