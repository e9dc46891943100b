//! Bringing each channel to a common range.

use ndarray::{ArrayView3, ArrayViewMut3, Zip};
use serde::{Deserialize, Serialize};

/// How a channel's values are brought to a common range; named as nnU-Net's classes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Normalisation {
    /// Subtract the image's mean, divide by its standard deviation.
    #[serde(rename = "ZScoreNormalization")]
    ZScore,
    /// Clip to the data set's percentiles, then its mean and standard deviation: for absolute units.
    #[serde(rename = "CTNormalization")]
    Ct,
    /// The image's minimum becomes 0, its maximum 1.
    #[serde(rename = "RescaleTo01Normalization")]
    RescaleTo01,
    /// Divide by 255.
    #[serde(rename = "RGBTo01Normalization")]
    RgbTo01,
    /// As it is.
    #[serde(rename = "NoNormalization")]
    None,
}

impl Normalisation {
    /// nnU-Net's rule: a few names have a meaning, all others get the z-score. U-Mamba's copy knows them in one spelling only.
    pub fn for_channel(name: &str, any_case: bool) -> Self {
        const NAMES: [(&str, Normalisation); 4] = [
            ("CT", Normalisation::Ct),
            ("noNorm", Normalisation::None),
            ("rescale_to_0_1", Normalisation::RescaleTo01),
            ("rgb_to_0_1", Normalisation::RgbTo01),
        ];
        let is = |known: &str| match any_case {
            true => known.eq_ignore_ascii_case(name),
            false => known == name,
        };
        let known = NAMES.iter().find(|(known, _)| is(known));
        known.map_or(Self::ZScore, |(_, how)| *how)
    }

    /// Whether statistics over the body alone make sense: values outside it are left at 0.
    pub fn may_use_mask(self) -> bool {
        self == Self::ZScore
    }
}

/// Intensities of a channel where the label is not background, each training case counting equally.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Intensity {
    /// Largest value.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Half lies below.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Half a percent lies below.
    pub percentile_00_5: f64,
    /// Half a percent lies above.
    pub percentile_99_5: f64,
    /// Population standard deviation.
    pub std: f64,
}

/// Divisors are kept from 0 by this.
const SMALLEST_DIVISOR: f64 = 1e-8;

/// Normalises one channel in place. `inside` restricts the z-score to voxels whose label is not negative. Errors name the remedy.
pub fn normalise_channel(
    mut values: ArrayViewMut3<f32>,
    how: Normalisation,
    intensity: Option<&Intensity>,
    inside: Option<ArrayView3<i16>>,
) -> Result<(), String> {
    if values.is_empty() {
        return Err("it has no voxels".into());
    }
    match how {
        Normalisation::None => {}
        Normalisation::ZScore => z_score(values, inside),
        Normalisation::Ct => {
            let intensity = intensity.ok_or(
                "the plan has no foreground intensities for it, which a CT is normalised by; plan the data set anew",
            )?;
            let (low, high) = (
                intensity.percentile_00_5 as f32,
                intensity.percentile_99_5 as f32,
            );
            let (mean, divisor) = (intensity.mean, intensity.std.max(SMALLEST_DIVISOR));
            values.mapv_inplace(|v| ((f64::from(v.max(low).min(high)) - mean) / divisor) as f32);
        }
        Normalisation::RescaleTo01 => {
            let (low, high) = range(&values);
            let divisor = (f64::from(high) - f64::from(low)).max(SMALLEST_DIVISOR);
            values.mapv_inplace(|v| ((f64::from(v) - f64::from(low)) / divisor) as f32);
        }
        Normalisation::RgbTo01 => {
            let (low, high) = range(&values);
            if low < 0.0 || high > 255.0 {
                return Err(format!("values from {low} to {high} are no 8-bit colours (0 to 255); give the channel another name than rgb_to_0_1"));
            }
            values.mapv_inplace(|v| (f64::from(v) / 255.0) as f32);
        }
    }
    Ok(())
}

fn range(values: &ArrayViewMut3<f32>) -> (f32, f32) {
    values
        .iter()
        .fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)))
}

fn z_score(mut values: ArrayViewMut3<f32>, inside: Option<ArrayView3<i16>>) {
    let (mut n, mut sum) = (0u64, 0.0);
    let counts = |label: Option<&i16>| label.is_none_or(|l| *l >= 0);
    let each = |f: &mut dyn FnMut(f64)| match &inside {
        None => values.iter().for_each(|&v| f(v.into())),
        Some(inside) => Zip::from(&values).and(inside).for_each(|&v, l| {
            if counts(Some(l)) {
                f(v.into());
            }
        }),
    };
    each(&mut |v| {
        n += 1;
        sum += v;
    });
    if n == 0 {
        return;
    }
    let mean = sum / n as f64;
    let mut squares = 0.0;
    each(&mut |v| squares += (v - mean) * (v - mean));
    let divisor = (squares / n as f64).sqrt().max(SMALLEST_DIVISOR);
    let scaled = |v: f32| ((f64::from(v) - mean) / divisor) as f32;
    match inside {
        None => values.mapv_inplace(scaled),
        Some(inside) => Zip::from(&mut values).and(&inside).for_each(|v, l| {
            if counts(Some(l)) {
                *v = scaled(*v);
            }
        }),
    }
}
