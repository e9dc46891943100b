//! Resizing of slices as the ACDC and Synapse pipelines do it, for images and label maps alike: SciPy's `ndimage.zoom`, whose first and last
//! samples fall on the first and last of the source (nnU-Net's resampling aligns the edges of the voxels instead).
//!
//! What lies beyond the last sample is 0. For some pairs of lengths the last position rounds to a little beyond it, and the whole last row or
//! column becomes 0: that is SciPy's result, and what networks of that line were trained on, so it is kept.

use ndarray::{Array1, ArrayD, ArrayView1, Axis};

use crate::{DataError, Result};

/// Order of the spline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoomOrder {
    /// The nearest sample; half-way the later one.
    Nearest,
    /// Cubic B-spline through the samples, continued by reflection.
    Cubic,
}

/// An array resized to `size`, sums in float64.
///
/// # Errors
/// When `size` has another number of axes than the array, or either has an axis of length 0.
pub fn zoom(array: &ArrayD<f32>, size: &[usize], order: ZoomOrder) -> Result<ArrayD<f32>> {
    if size.len() != array.ndim() || size.contains(&0) || array.is_empty() {
        return Err(DataError::Setting {
            field: "size".into(),
            found: format!("{size:?} for an array of size {:?}", array.shape()),
            expected: "it has to name a length above 0 for every axis".into(),
        });
    }
    let mut values = array.mapv(f64::from);
    for (axis, &length) in size.iter().enumerate() {
        let taps = taps(values.shape()[axis], length, order);
        let mut shape = values.shape().to_vec();
        shape[axis] = length;
        let mut resized = ArrayD::zeros(shape);
        for (source, mut target) in values
            .lanes(Axis(axis))
            .into_iter()
            .zip(resized.lanes_mut(Axis(axis)))
        {
            let samples = match order {
                ZoomOrder::Nearest => source.to_owned(),
                ZoomOrder::Cubic => coefficients(source),
            };
            for (value, taps) in target.iter_mut().zip(&taps) {
                *value = taps
                    .iter()
                    .map(|&(index, weight)| weight * samples[index])
                    .sum();
            }
        }
        values = resized;
    }
    Ok(values.mapv(|v| v as f32))
}

/// For each position of the result the samples that make it, and their weights; none beyond the last sample.
fn taps(from: usize, to: usize, order: ZoomOrder) -> Vec<Vec<(usize, f64)>> {
    let last = (from - 1) as f64;
    // With this order of operations the last position rounds as SciPy's does.
    let step = match to {
        1 => 1.0,
        _ => last / (to - 1) as f64,
    };
    let reflected = |index: i64| {
        let period = (2 * (from as i64 - 1)).max(1);
        let index = index.rem_euclid(period);
        if from == 1 {
            0
        } else {
            index.min(period - index) as usize
        }
    };
    let at = |position: usize| {
        let x = position as f64 * step;
        if x > last {
            return Vec::new();
        }
        match order {
            ZoomOrder::Nearest => vec![((x + 0.5).floor() as usize, 1.0)],
            ZoomOrder::Cubic => {
                let (first, t) = (x.floor() as i64 - 1, x.fract());
                let u = 1.0 - t;
                let weights = [
                    u * u * u / 6.0,
                    (t * t * (t - 2.0) * 3.0 + 4.0) / 6.0,
                    (u * u * (u - 2.0) * 3.0 + 4.0) / 6.0,
                    t * t * t / 6.0,
                ];
                (first..).map(reflected).zip(weights).collect()
            }
        }
    };
    (0..to).map(at).collect()
}

/// Coefficients of the cubic B-spline through samples that are reflected at both ends (Unser, 1993: recursive filtering both ways).
fn coefficients(samples: ArrayView1<f64>) -> Array1<f64> {
    let n = samples.len();
    let mut c = samples.to_owned();
    if n == 1 {
        return c;
    }
    let pole = 3f64.sqrt() - 2.0;
    c *= (1.0 - pole) * (1.0 - 1.0 / pole);
    // The sum over all reflections in closed form.
    let far = pole.powi(n as i32 - 1);
    let mut power = pole;
    let mut first = c[0] + far * c[n - 1];
    for i in 1..n - 1 {
        first += power * (c[i] + far * c[n - 1 - i]);
        power *= pole;
    }
    c[0] = first / (1.0 - far * far);
    for i in 1..n {
        c[i] += pole * c[i - 1];
    }
    c[n - 1] = pole / (pole * pole - 1.0) * (c[n - 1] + pole * c[n - 2]);
    for i in (0..n - 1).rev() {
        c[i] = pole * (c[i + 1] - c[i]);
    }
    c
}
