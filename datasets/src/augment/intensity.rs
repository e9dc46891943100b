//! Random changes of a patch's values, in place; labels are not touched.
#![allow(clippy::needless_range_loop)] // lanes are counted

use crate::augment::elementary::{between, larger, ln, power, sin_cos_of_turn, smaller};
use crate::augment::filter::{blur, coarsen};
use crate::augment::spatial::turns_in_plane;
use crate::augment::wide::wide;
use crate::augment::Augmentation;
use crate::random::Random;

/// How often a channel takes part in blur and low resolution, given that the patch does.
const CHANNEL_PROBABILITY: f64 = 0.5;
/// The range of all numbers.
const UNBOUNDED: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];

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
        add_noise(image, sigma, random.bits());
    }
    if random.chance(augment.blur.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            if random.chance(CHANNEL_PROBABILITY) {
                let sigmas: Vec<f64> = size
                    .iter()
                    .map(|_| random.within(augment.blur.sigma))
                    .collect();
                blur(channel, size, &sigmas);
            }
        }
    }
    if random.chance(augment.brightness.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            let factor = around_one(augment.brightness.range, random) as f32;
            stretch(channel, factor, 0.0, UNBOUNDED);
        }
    }
    if random.chance(augment.contrast.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            let factor = around_one(augment.contrast.range, random) as f32;
            let about = Moments::of(channel);
            stretch(channel, factor, about.mean * (1.0 - factor), about.range);
        }
    }
    if random.chance(augment.low_resolution.probability) {
        for channel in image.chunks_exact_mut(voxels) {
            if random.chance(CHANNEL_PROBABILITY) {
                let mut scales = vec![random.within(augment.low_resolution.range); size.len()];
                if turns_in_plane(size) {
                    scales[0] = 1.0;
                }
                coarsen(channel, size, &scales);
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

/// A factor that is below 1 as often as above, if the range has both.
fn around_one([low, high]: [f64; 2], random: &mut Random) -> f64 {
    let below = random.chance(0.5);
    match (low < 1.0, high > 1.0) {
        (true, true) if below => random.within([low, 1.0]),
        (true, true) => random.within([1.0, high]),
        _ => random.within([low, high]),
    }
}

/// Mean, standard deviation, lowest and highest value.
#[derive(Debug, Clone, Copy)]
struct Moments {
    mean: f32,
    deviation: f32,
    range: [f32; 2],
}

/// Sums are kept in so many lanes, which fixes their order whatever the processor's width.
const LANES: usize = 128;
/// Values whose sums are kept in float32 before they are added up in float64.
const BLOCK: usize = 64 * LANES;
/// Values that give a first idea of the mean.
const SAMPLES: usize = 64;

impl Moments {
    fn of(values: &[f32]) -> Self {
        let stride = values.len().div_ceil(SAMPLES);
        let sampled = values.iter().step_by(stride).copied();
        let about = sampled.sum::<f32>() / values.len().div_ceil(stride) as f32;
        let (sums, range) = sums_and_range(values, about);
        let (mean, deviation) = sums.mean_and_deviation(values.len(), about);
        Self {
            mean,
            deviation,
            range,
        }
    }
}

/// Sums of differences from a number near the mean, so that the squares do not cancel.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    first: f64,
    squares: f64,
}

impl Sums {
    fn mean_and_deviation(self, count: usize, about: f32) -> (f32, f32) {
        let n = count as f64;
        let mean = self.first / n;
        (
            (f64::from(about) + mean) as f32,
            (self.squares / n - mean * mean).max(0.0).sqrt() as f32,
        )
    }

    /// Adds a block's values, [`BLOCK`] at most.
    #[inline(always)]
    fn add(&mut self, block: &[f32], about: f32) {
        let mut first = [0f32; LANES];
        let mut squares = [0f32; LANES];
        let chunks = block.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                let d = chunk[lane] - about;
                first[lane] += d;
                squares[lane] += d * d;
            }
        }
        for (lane, v) in rest.iter().enumerate() {
            let d = v - about;
            first[lane] += d;
            squares[lane] += d * d;
        }
        for lane in 0..LANES {
            self.first += f64::from(first[lane]);
            self.squares += f64::from(squares[lane]);
        }
    }
}

wide! {
    fn sums_and_range(values: &[f32], about: f32) -> (Sums, [f32; 2]) {
        let mut sums = Sums::default();
        let mut low = [f32::MAX; LANES];
        let mut high = [f32::MIN; LANES];
        for block in values.chunks(BLOCK) {
            sums.add(block, about);
            let chunks = block.chunks_exact(LANES);
            let rest = chunks.remainder();
            for chunk in chunks {
                for lane in 0..LANES {
                    low[lane] = smaller(chunk[lane], low[lane]);
                    high[lane] = larger(chunk[lane], high[lane]);
                }
            }
            for (lane, &v) in rest.iter().enumerate() {
                low[lane] = smaller(v, low[lane]);
                high[lane] = larger(v, high[lane]);
            }
        }
        let range = [
            low.into_iter().fold(f32::MAX, smaller),
            high.into_iter().fold(f32::MIN, larger),
        ];
        (sums, range)
    }

    /// `v * factor + offset`, cut to a range.
    fn stretch(values: &mut [f32], factor: f32, offset: f32, range: [f32; 2]) {
        for v in values {
            *v = between(*v * factor + offset, range[0], range[1]);
        }
    }

    /// Values from `low` to `low + width` raised as fractions of the range; `sign` -1 works on the inverted image. Gives the results' sums.
    fn raise(values: &mut [f32], exponent: f32, sign: f32, low: f32, width: f32, about: f32) -> Sums {
        let scale = 1.0 / width;
        let mut sums = Sums::default();
        for block in values.chunks_mut(BLOCK) {
            for v in &mut *block {
                let fraction = between((sign * *v - low) * scale, 0.0, 1.0);
                *v = sign * (power(fraction, exponent) * width + low);
            }
            sums.add(block, about);
        }
        sums
    }

    /// Adds Gaussian noise made of `key` and a value's place alone.
    fn add_noise(values: &mut [f32], sigma: f32, key: u64) {
        const PAIRS: usize = 8;
        let (key_low, key_high) = (key as u32, (key >> 32) as u32);
        let mut noise = [0f32; 2 * PAIRS];
        for (number, block) in values.chunks_mut(2 * PAIRS).enumerate() {
            for lane in 0..PAIRS {
                let place = (number * PAIRS + lane) as u32;
                let first = mixed(mixed(place ^ key_low).wrapping_add(key_high));
                let second = mixed(first ^ 0x9e37_79b9 ^ key_low);
                // Box-Muller; 24 bits each, the radius' in (0, 1]
                let u = ((first >> 8) + 1) as i32 as f32 * (1.0 / 16_777_216.0);
                let turn = (second >> 8) as i32 as f32 * (1.0 / 16_777_216.0);
                let radius = sigma * larger(-2.0 * ln(u), 0.0).sqrt();
                let (sin, cos) = sin_cos_of_turn(turn);
                noise[lane] = radius * cos;
                noise[PAIRS + lane] = radius * sin;
            }
            for (v, n) in block.iter_mut().zip(&noise) {
                *v += n;
            }
        }
    }
}

/// A permutation of the 32-bit numbers whose output bits depend on all input bits (the constants are C. Wellons' `lowbias32`).
#[inline(always)]
fn mixed(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// `sign` -1 works on the inverted image.
fn gamma(channel: &mut [f32], exponent: f32, sign: f32) {
    const SMALLEST: f32 = 1e-7;
    let before = Moments::of(channel);
    let [low, high] = before.range;
    let width = high - low;
    if width < SMALLEST {
        return;
    }
    let bottom = if sign > 0.0 { low } else { -high };
    let sums = raise(channel, exponent, sign, bottom, width, before.mean);
    let (mean, deviation) = sums.mean_and_deviation(channel.len(), before.mean);
    let factor = before.deviation / deviation.max(SMALLEST);
    let offset = before.mean - mean * factor;
    stretch(channel, factor, offset, UNBOUNDED);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::tests::patch;

    #[test]
    fn gamma_keeps_mean_and_deviation() {
        for sign in [1.0, -1.0] {
            let mut values = patch();
            let before = Moments::of(&values);
            gamma(&mut values, 1.4, sign);
            let after = Moments::of(&values);
            assert!(
                (before.mean - after.mean).abs() < 1e-5
                    && (before.deviation - after.deviation).abs() < 1e-5,
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

    /// Mean, spread, skew, tails and neighbours of a million numbers, each within five standard errors of a normal's.
    #[test]
    fn noise_is_normal_and_white() {
        let n = 1_000_003;
        let mut values = vec![0f32; n];
        add_noise(&mut values, 0.5, 0x1234_5678_9abc_def0);
        let z: Vec<f64> = values.iter().map(|&v| f64::from(v) / 0.5).collect();
        let mean = |f: &dyn Fn(usize) -> f64| (0..n - 16).map(f).sum::<f64>() / (n - 16) as f64;
        let error = 5.0 / (n as f64).sqrt();
        assert!(mean(&|i| z[i]).abs() < error);
        assert!((mean(&|i| z[i].powi(2)) - 1.0).abs() < 1.42 * error);
        assert!(mean(&|i| z[i].powi(3)).abs() < 3.9 * error);
        assert!((mean(&|i| z[i].powi(4)) - 3.0).abs() < 9.8 * error);
        assert!((mean(&|i| f64::from(u8::from(z[i].abs() > 3.0))) - 0.0027).abs() < 0.052 * error);
        for lag in [1, 2, 7, 8, 9, 16] {
            assert!(mean(&|i| z[i] * z[i + lag]).abs() < error, "lag {lag}");
        }
        let mut other = vec![0f32; n];
        add_noise(&mut other, 0.5, 0x1234_5678_9abc_def1);
        assert!(mean(&|i| z[i] * f64::from(other[i]) * 2.0).abs() < error);
    }

    #[test]
    fn moments_of_a_far_off_image() {
        let values: Vec<f32> = (0..1001).map(|i| 10_000.0 + (i % 7) as f32).collect();
        let found = Moments::of(&values);
        assert!(
            (found.mean - 10_003.0).abs() < 1e-3 && (found.deviation - 2.0).abs() < 1e-3,
            "{found:?}"
        );
        assert_eq!(found.range, [10_000.0, 10_006.0]);
    }
}
