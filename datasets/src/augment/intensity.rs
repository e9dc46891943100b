//! Random changes of a patch's values, in place; labels are not touched.

use crate::augment::spatial::around_one;
use crate::augment::Augmentation;
use crate::random::Random;

/// How often a channel takes part in blur and low resolution, given that the patch does.
const CHANNEL_PROBABILITY: f64 = 0.5;

/// Applies the settings to (C, size...).
pub(crate) fn change(
    image: &mut [f32],
    size: &[usize],
    augment: &Augmentation,
    random: &mut Random,
) {
    let voxels: usize = size.iter().product();
    if voxels == 0 {
        return;
    }
    if random.chance(augment.noise.probability) {
        let sigma = random.within(augment.noise.sigma) as f32;
        image.iter_mut().for_each(|v| *v += sigma * random.normal());
    }
    if random.chance(augment.blur.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            if random.chance(CHANNEL_PROBABILITY) {
                let sigma = random.within(augment.blur.sigma);
                along_all_axes(channel, size, |n| gaussian_taps(n, sigma));
            }
        }
    }
    if random.chance(augment.brightness.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            let factor = around_one(augment.brightness.range, random) as f32;
            channel.iter_mut().for_each(|v| *v *= factor);
        }
    }
    if random.chance(augment.contrast.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            let factor = around_one(augment.contrast.range, random) as f32;
            let mean = moments(channel).0;
            let (low, high) = range(channel);
            channel
                .iter_mut()
                .for_each(|v| *v = ((*v - mean) * factor + mean).clamp(low, high));
        }
    }
    if random.chance(augment.low_resolution.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            if random.chance(CHANNEL_PROBABILITY) {
                let scale = random.within(augment.low_resolution.range);
                along_all_axes(channel, size, |n| coarse_taps(n, scale));
            }
        }
    }
    for (probability, sign) in [
        (augment.gamma.inverted_probability, -1.0),
        (augment.gamma.probability, 1.0),
    ] {
        if random.chance(probability) {
            for channel in image.chunks_exact_mut(voxels) {
                gamma(
                    channel,
                    around_one(augment.gamma.range, random) as f32,
                    sign,
                );
            }
        }
    }
}

fn moments(values: &[f32]) -> (f32, f32) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>()
        / n;
    (mean as f32, variance.sqrt() as f32)
}

fn range(values: &[f32]) -> (f32, f32) {
    values
        .iter()
        .fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)))
}

/// `sign` -1 works on the inverted image.
fn gamma(channel: &mut [f32], exponent: f32, sign: f32) {
    const SMALLEST: f32 = 1e-7;
    let (mean, deviation) = moments(channel);
    let (low, high) = range(channel);
    let (base, width) = if sign > 0.0 {
        (low, high - low)
    } else {
        (-high, high - low)
    };
    if width < SMALLEST {
        return;
    }
    for v in channel.iter_mut() {
        *v = sign * (((sign * *v - base) / width).clamp(0.0, 1.0).powf(exponent) * width + base);
    }
    let (new_mean, new_deviation) = moments(channel);
    let factor = deviation / new_deviation.max(SMALLEST);
    channel
        .iter_mut()
        .for_each(|v| *v = (*v - new_mean) * factor + mean);
}

/// For each position of a line, which positions it is made from and with what weight.
type Taps = Vec<Vec<(usize, f32)>>;

/// Gaussian weights to three standard deviations, the border value repeated.
fn gaussian_taps(n: usize, sigma: f64) -> Taps {
    let radius = (3.0 * sigma).ceil() as isize;
    let weights: Vec<f64> = (-radius..=radius)
        .map(|d| (-0.5 * (d as f64 / sigma).powi(2)).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    let at = |i: usize, d: isize| (i as isize + d).clamp(0, n as isize - 1) as usize;
    (0..n)
        .map(|i| {
            (-radius..=radius)
                .zip(&weights)
                .map(|(d, w)| (at(i, d), (w / sum) as f32))
                .collect()
        })
        .collect()
}

/// Nearest sampling to `scale * n` positions and linear interpolation back, half-pixel centres both ways.
fn coarse_taps(n: usize, scale: f64) -> Taps {
    let coarse = ((n as f64 * scale).round() as usize).max(1);
    let ratio = n as f64 / coarse as f64;
    let nearest = |k: usize| (((k as f64 + 0.5) * ratio) as usize).min(n - 1);
    let taps = |i: usize| {
        let position = ((i as f64 + 0.5) / ratio - 0.5).clamp(0.0, (coarse - 1) as f64);
        let low = position as usize;
        let fraction = (position - low as f64) as f32;
        vec![
            (nearest(low), 1.0 - fraction),
            (nearest((low + 1).min(coarse - 1)), fraction),
        ]
    };
    (0..n).map(taps).collect()
}

/// A separable linear filter: the taps of each axis in turn.
fn along_all_axes(values: &mut [f32], size: &[usize], taps_for: impl Fn(usize) -> Taps) {
    let mut input = vec![0f32; values.len()];
    for axis in 0..size.len() {
        let (n, inner) = (size[axis], size[axis + 1..].iter().product::<usize>());
        if n < 2 {
            continue;
        }
        let taps = taps_for(n);
        input.copy_from_slice(values);
        for (read, write) in input
            .chunks_exact(n * inner)
            .zip(values.chunks_exact_mut(n * inner))
        {
            for (taps, line) in taps.iter().zip(write.chunks_exact_mut(inner)) {
                if inner == 1 {
                    line[0] = taps.iter().map(|&(from, weight)| weight * read[from]).sum();
                    continue;
                }
                line.fill(0.0);
                for &(from, weight) in taps {
                    for (out, v) in line.iter_mut().zip(&read[from * inner..(from + 1) * inner]) {
                        *out += weight * v;
                    }
                }
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

    #[test]
    fn gamma_keeps_mean_and_deviation() {
        for sign in [1.0, -1.0] {
            let mut values = patch();
            let before = moments(&values);
            gamma(&mut values, 1.4, sign);
            let after = moments(&values);
            assert!(
                (before.0 - after.0).abs() < 1e-5 && (before.1 - after.1).abs() < 1e-5,
                "{before:?} {after:?}"
            );
            assert_ne!(values, patch());
        }
        let mut constant = vec![3.0; 8];
        gamma(&mut constant, 1.4, 1.0);
        assert_eq!(constant, vec![3.0; 8]);
    }

    /// Inverting means: gamma of the negated image, negated.
    #[test]
    fn inverted_gamma_is_gamma_of_the_negative() {
        let mut negated: Vec<f32> = patch().iter().map(|v| -v).collect();
        gamma(&mut negated, 0.8, 1.0);
        let mut inverted = patch();
        gamma(&mut inverted, 0.8, -1.0);
        assert!(inverted
            .iter()
            .zip(&negated)
            .all(|(a, b)| (a + b).abs() < 1e-5));
    }

    #[test]
    fn filters_keep_constants_and_blur_spreads_an_impulse_as_a_gaussian() {
        let size = [5, 7, 9];
        let mut constant = vec![2.0; 5 * 7 * 9];
        along_all_axes(&mut constant, &size, |n| gaussian_taps(n, 0.8));
        along_all_axes(&mut constant, &size, |n| coarse_taps(n, 0.6));
        assert!(constant.iter().all(|v| (v - 2.0f32).abs() < 1e-5));

        let mut impulse = vec![0.0; 15 * 15];
        impulse[7 * 15 + 7] = 1.0;
        along_all_axes(&mut impulse, &[15, 15], |n| gaussian_taps(n, 1.0));
        let centre = impulse[7 * 15 + 7];
        // Ratios of a Gaussian of sigma 1: exp(-1/2) beside, exp(-1) across the corner.
        assert!((impulse[7 * 15 + 8] / centre - (-0.5f32).exp()).abs() < 1e-5);
        assert!((impulse[8 * 15 + 8] / centre - (-1.0f32).exp()).abs() < 1e-5);
    }

    #[test]
    fn full_resolution_changes_nothing_and_half_takes_every_second() {
        let mut values = patch();
        along_all_axes(&mut values, &[6, 8, 10], |n| coarse_taps(n, 1.0));
        assert_eq!(values, patch());
        let taps = coarse_taps(4, 0.5);
        // Coarse samples are positions 1 and 3 (centres 1.0 and 3.0 on the half-pixel grid).
        assert_eq!(taps[0], [(1, 1.0), (3, 0.0)]);
        assert_eq!(taps[1], [(1, 0.75), (3, 0.25)]);
    }
}
