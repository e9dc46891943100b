//! From a case as it was read to one that patches can be drawn from. Cropping and resampling to a common spacing belong here too once they
//! come.

use ndarray::{ArrayD, ArrayViewMutD};

use crate::{
    Configuration, DataError, Geometry, Image, Intensity, LabelMap, Normalisation, Result,
};

/// A normalised case.
#[derive(Debug, Clone)]
pub struct PreparedCase {
    /// Its name.
    pub id: String,
    /// (C, spatial...), normalised.
    pub image: ArrayD<f32>,
    /// (spatial...).
    pub label: Option<ArrayD<i16>>,
    /// For each class above 0 that occurs: its value, and linear indices of its voxels in the label map, ascending.
    pub foreground: Vec<(i16, Vec<usize>)>,
    /// Where the source lies.
    pub geometry: Geometry,
}

/// Voxels remembered per class; a larger class is thinned evenly.
const MOST_FOREGROUND: usize = 10_000;

/// Normalises a case and notes where its foreground is.
pub fn prepare_case(
    id: &str,
    mut image: Image,
    label: Option<LabelMap>,
    configuration: &Configuration,
) -> Result<PreparedCase> {
    let dims = image.spatial_size().len();
    if dims < configuration.spatial_dims {
        let problem = format!(
            "the image has {dims} axes, but the configuration is {}-D; choose the configuration 2d",
            configuration.spatial_dims
        );
        return Err(DataError::Case {
            case: id.into(),
            problem,
        });
    }
    if let Some(label) = &label {
        if label.data.shape() != image.spatial_size() {
            let problem = format!(
                "its image is of size {:?}, its label map of size {:?}; both must be on one grid",
                image.spatial_size(),
                label.data.shape()
            );
            return Err(DataError::Case {
                case: id.into(),
                problem,
            });
        }
    }
    normalise(&mut image, configuration).map_err(|e| match e {
        DataError::Case { problem, .. } => DataError::Case {
            case: id.into(),
            problem,
        },
        other => other,
    })?;
    // Patches are cut by linear index.
    let image_data = image.data.as_standard_layout().into_owned();
    let label = label.map(|l| l.data.as_standard_layout().into_owned());
    let foreground = label.as_ref().map(foreground_of).unwrap_or_default();
    Ok(PreparedCase {
        id: id.into(),
        image: image_data,
        label,
        foreground,
        geometry: image.geometry,
    })
}

fn foreground_of(label: &ArrayD<i16>) -> Vec<(i16, Vec<usize>)> {
    let mut classes = std::collections::BTreeMap::<i16, Vec<usize>>::new();
    for (index, &value) in label.iter().enumerate().filter(|(_, &v)| v > 0) {
        classes.entry(value).or_default().push(index);
    }
    for voxels in classes.values_mut() {
        let n = voxels.len();
        if n > MOST_FOREGROUND {
            *voxels = (0..MOST_FOREGROUND)
                .map(|k| voxels[k * n / MOST_FOREGROUND])
                .collect();
        }
    }
    classes.into_iter().collect()
}

/// Brings each channel to its range, as the plan says.
pub fn normalise(image: &mut Image, configuration: &Configuration) -> Result<()> {
    let channels = image.channels();
    if configuration.normalisation.len() != channels || configuration.intensity.len() != channels {
        let problem = format!(
            "it has {channels} channels, but the plan is for {}",
            configuration.normalisation.len()
        );
        return Err(DataError::Case {
            case: "image".into(),
            problem,
        });
    }
    for (number, channel) in image.data.outer_iter_mut().enumerate() {
        normalise_channel(
            channel,
            configuration.normalisation[number],
            &configuration.intensity[number],
        )
        .map_err(|problem| DataError::Case {
            case: "image".into(),
            problem: format!("channel {number}: {problem}"),
        })?;
    }
    Ok(())
}

/// Divisors are kept from 0 by this.
const SMALLEST_DIVISOR: f64 = 1e-8;

fn normalise_channel(
    mut values: ArrayViewMutD<f32>,
    how: Normalisation,
    intensity: &Intensity,
) -> std::result::Result<(), String> {
    if values.is_empty() {
        return Err("it has no voxels".into());
    }
    let (low, high) = values
        .iter()
        .fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let mut shift_scale = |shift: f64, divisor: f64| {
        let factor = 1.0 / divisor.max(SMALLEST_DIVISOR);
        values.mapv_inplace(|v| ((f64::from(v) - shift) * factor) as f32);
    };
    match how {
        Normalisation::None => {}
        Normalisation::ZScore => {
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let variance = values
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>()
                / n;
            values.mapv_inplace(|v| {
                ((f64::from(v) - mean) / variance.sqrt().max(SMALLEST_DIVISOR)) as f32
            });
        }
        Normalisation::Ct => {
            let (low, high) = (
                intensity.percentile_00_5 as f32,
                intensity.percentile_99_5 as f32,
            );
            values.mapv_inplace(|v| v.max(low).min(high));
            let (mean, divisor) = (intensity.mean, intensity.std.max(SMALLEST_DIVISOR));
            values.mapv_inplace(|v| ((f64::from(v) - mean) / divisor) as f32);
        }
        Normalisation::RescaleTo01 => shift_scale(low.into(), f64::from(high) - f64::from(low)),
        Normalisation::RgbTo01 => {
            if low < 0.0 || high > 255.0 {
                return Err(format!("values from {low} to {high} are no 8-bit colours (0 to 255); give the channel another name than rgb_to_0_1"));
            }
            shift_scale(0.0, 255.0);
        }
    }
    Ok(())
}
