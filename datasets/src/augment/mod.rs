//! Random changes to training patches: settings here, the spatial ones in `spatial` and `resample`, those of values in `intensity`.
//!
//! The default is nnU-Net's set and order: rotation and scaling in one resampling, noise, blur, brightness, contrast, low resolution, gamma
//! of the inverted and of the plain image, mirroring.

mod elementary;
mod filter;
pub(crate) mod intensity;
pub(crate) mod resample;
pub(crate) mod spatial;
mod wide;

use serde::{Deserialize, Serialize};

use crate::{DataError, Result};

/// What is done to a patch, and how often. A probability of 0 switches a part off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// Turning.
    pub rotation: Rotation,
    /// Magnifying and shrinking.
    pub scaling: Scaling,
    /// Flipping.
    pub mirroring: Mirroring,
    /// Additive Gaussian noise.
    pub noise: Noise,
    /// Gaussian blur.
    pub blur: Blur,
    /// Multiplication of all values.
    pub brightness: Brightness,
    /// Stretching around the mean.
    pub contrast: Contrast,
    /// Sampling down and up again.
    pub low_resolution: LowResolution,
    /// A power of the values.
    pub gamma: Gamma,
}

macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

settings! {
    /// Rotation about the patch's centre by angles drawn evenly from both directions.
    Rotation {
        /// How often.
        probability: f64 = 0.2,
        /// Largest angle in the plane, in degrees; also for volumes with few, thick slices.
        max_degrees_2d: f64 = 180.0,
        /// Largest angle of a picture's patch longer than one and a half times its width.
        max_degrees_elongated: f64 = 15.0,
        /// Largest angle about each axis of a volume.
        max_degrees_3d: f64 = 30.0,
    }
}
settings! {
    /// Scaling about the patch's centre.
    Scaling {
        /// How often.
        probability: f64 = 0.2,
        /// Factor of the region that fills the patch: below 1 magnifies.
        range: [f64; 2] = [0.7, 1.4],
    }
}
settings! {
    /// Flips along each axis, each with probability one half.
    Mirroring {
        /// Spatial axes of the patch that may be flipped; those a patch does not have are passed over.
        axes: Vec<usize> = vec![0, 1, 2],
    }
}
settings! {
    /// Gaussian noise on normalised values.
    Noise {
        /// How often.
        probability: f64 = 0.1,
        /// Range of its standard deviation.
        sigma: [f64; 2] = [0.0, 0.1],
    }
}
settings! {
    /// Gaussian blur; each channel is taken with probability one half and has a deviation of its own along each axis.
    Blur {
        /// How often.
        probability: f64 = 0.2,
        /// Range of the standard deviation in voxels.
        sigma: [f64; 2] = [0.5, 1.0],
    }
}
settings! {
    /// Each channel is multiplied by a factor.
    Brightness {
        /// How often.
        probability: f64 = 0.15,
        /// Range of the factor.
        range: [f64; 2] = [0.75, 1.25],
    }
}
settings! {
    /// Each channel is stretched around its mean and cut to its former range.
    Contrast {
        /// How often.
        probability: f64 = 0.15,
        /// Range of the factor.
        range: [f64; 2] = [0.75, 1.25],
    }
}
settings! {
    /// Nearest sampling to a coarser grid and linear back; each channel is taken with probability one half.
    LowResolution {
        /// How often.
        probability: f64 = 0.25,
        /// Range of the coarser grid's size, relative.
        range: [f64; 2] = [0.5, 1.0],
    }
}
settings! {
    /// Power of each channel's values brought to 0..1; mean and deviation are put back afterwards.
    Gamma {
        /// How often.
        probability: f64 = 0.3,
        /// How often of the inverted image, independently.
        inverted_probability: f64 = 0.1,
        /// Range of the exponent.
        range: [f64; 2] = [0.7, 1.5],
    }
}

impl Augmentation {
    /// Nothing is changed.
    pub fn none() -> Self {
        let mut none = Self::default();
        none.rotation.probability = 0.0;
        none.scaling.probability = 0.0;
        none.mirroring.axes.clear();
        none.noise.probability = 0.0;
        none.blur.probability = 0.0;
        none.brightness.probability = 0.0;
        none.contrast.probability = 0.0;
        none.low_resolution.probability = 0.0;
        none.gamma.probability = 0.0;
        none.gamma.inverted_probability = 0.0;
        none
    }

    /// Every number in its range.
    pub fn validate(&self) -> Result<()> {
        let probabilities = [
            ("rotation.probability", self.rotation.probability),
            ("scaling.probability", self.scaling.probability),
            ("noise.probability", self.noise.probability),
            ("blur.probability", self.blur.probability),
            ("brightness.probability", self.brightness.probability),
            ("contrast.probability", self.contrast.probability),
            (
                "low_resolution.probability",
                self.low_resolution.probability,
            ),
            ("gamma.probability", self.gamma.probability),
            (
                "gamma.inverted_probability",
                self.gamma.inverted_probability,
            ),
        ];
        for (field, value) in probabilities {
            check(
                (0.0..=1.0).contains(&value),
                field,
                value,
                "a probability is from 0 to 1",
            )?;
        }
        for (field, value) in [
            ("max_degrees_2d", self.rotation.max_degrees_2d),
            ("max_degrees_elongated", self.rotation.max_degrees_elongated),
            ("max_degrees_3d", self.rotation.max_degrees_3d),
        ] {
            check(
                (0.0..=180.0).contains(&value),
                &format!("rotation.{field}"),
                value,
                "an angle is from 0 to 180 degrees",
            )?;
        }
        let ranges = [
            ("scaling.range", self.scaling.range, 0.1, 10.0),
            ("noise.sigma", self.noise.sigma, 0.0, 100.0),
            ("blur.sigma", self.blur.sigma, 0.01, 20.0),
            ("brightness.range", self.brightness.range, 0.0, 100.0),
            ("contrast.range", self.contrast.range, 0.0, 100.0),
            ("low_resolution.range", self.low_resolution.range, 0.01, 1.0),
            ("gamma.range", self.gamma.range, 0.01, 100.0),
        ];
        for (field, range, least, most) in ranges {
            let ordered = least <= range[0] && range[0] <= range[1] && range[1] <= most;
            check(
                ordered,
                field,
                format!("{range:?}"),
                &format!("it has to be [low, high] with {least} <= low <= high <= {most}"),
            )?;
        }
        let axes = &self.mirroring.axes;
        check(
            axes.iter().all(|&a| a < 3),
            "mirroring.axes",
            format!("{axes:?}"),
            "axes are 0, 1 and 2",
        )
    }
}

fn check(ok: bool, field: &str, found: impl ToString, expected: &str) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(DataError::Setting {
        field: format!("augment.{field}"),
        found: found.to_string(),
        expected: expected.into(),
    })
}

#[cfg(test)]
mod tests {
    /// Values of a patch of 6 x 8 x 10 voxels.
    pub(super) fn patch() -> Vec<f32> {
        (0..6 * 8 * 10)
            .map(|i| ((i * 37 % 101) as f32 / 25.0) - 2.0)
            .collect()
    }
}
