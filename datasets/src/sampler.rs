//! Training patches: which case, which place, how changed. A batch is a pure function of the cases, the settings and its number.

use serde::{Deserialize, Serialize};

use crate::augment::spatial::{cut, draw_matrix, flip, resample, Source, Target};
use crate::augment::{intensity, Augmentation};
use crate::random::Random;
use crate::{DataError, PreparedCase, Result};

/// How patches are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchSettings {
    /// Size of a patch; two axes on volumes means slices along axis 0.
    pub training_patch: Vec<usize>,
    /// Patches in a batch.
    pub batch_size: usize,
    /// Share of the batch, its last patches, that is sure to show foreground. nnU-Net has 0.33.
    pub oversample_foreground: f64,
    /// Random changes.
    pub augment: Augmentation,
    /// Seed of everything random.
    pub seed: u64,
}

impl PatchSettings {
    /// Checks the settings alone and against the cases.
    pub fn validate(&self, cases: &[PreparedCase]) -> Result<()> {
        let fail = |field: &str, found: String, expected: &str| {
            Err(DataError::Setting {
                field: field.into(),
                found,
                expected: expected.into(),
            })
        };
        let patch = &self.training_patch;
        if !(2..=3).contains(&patch.len()) || patch.contains(&0) {
            return fail(
                "training_patch",
                format!("{patch:?}"),
                "it has to have two or three sizes above 0",
            );
        }
        if self.batch_size == 0 {
            return fail("batch_size", "0".into(), "it has to be at least 1");
        }
        if !(0.0..=1.0).contains(&self.oversample_foreground) {
            return fail(
                "oversample_foreground",
                self.oversample_foreground.to_string(),
                "it has to be from 0 to 1",
            );
        }
        self.augment.validate()?;
        if cases.is_empty() {
            return fail(
                "number of training cases",
                "0".into(),
                "at least one is needed",
            );
        }
        let channels = cases[0].image.shape()[0];
        for case in cases {
            let problem = match &case.label {
                None => "it has no label map, which training needs".into(),
                Some(label) if label.ndim() < patch.len() => format!(
                    "it has {} axes, but the patch {patch:?} has more",
                    label.ndim()
                ),
                Some(label) if label.ndim() > 3 || label.is_empty() => format!(
                    "its size {:?} is not that of an image or volume",
                    label.shape()
                ),
                Some(_) if case.image.shape()[0] != channels => format!(
                    "it has {} channels, others have {channels}",
                    case.image.shape()[0]
                ),
                Some(_) => continue,
            };
            return Err(DataError::Case {
                case: case.id.clone(),
                problem,
            });
        }
        Ok(())
    }

    /// Whether a patch of a batch is sure to show foreground.
    fn forces_foreground(&self, sample: usize) -> bool {
        let free = (self.batch_size as f64 * (1.0 - self.oversample_foreground)).round_ties_even();
        sample as f64 >= free
    }
}

/// Patches with their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// (B, C, patch...).
    pub image: Vec<f32>,
    /// (B, patch...); 0 beyond the image.
    pub label: Vec<i64>,
    /// The shape of `image`.
    pub shape: Vec<usize>,
    /// The case of each patch.
    pub ids: Vec<String>,
}

/// Draws batch number `index`. The result depends on nothing but the arguments: neither on threads nor on other batches.
///
/// # Panics
/// When [`PatchSettings::validate`] would have failed, or a case was not made by [`crate::prepare_case`].
pub fn draw_batch(cases: &[PreparedCase], settings: &PatchSettings, index: u64) -> Batch {
    match *settings.training_patch.as_slice() {
        [h, w] => draw(cases, settings, index, [h, w]),
        [d, h, w] => draw(cases, settings, index, [d, h, w]),
        _ => panic!(
            "training_patch has {} axes, validate() allows two or three",
            settings.training_patch.len()
        ),
    }
}

fn draw<const D: usize>(
    cases: &[PreparedCase],
    settings: &PatchSettings,
    index: u64,
    patch: [usize; D],
) -> Batch {
    let voxels: usize = patch.iter().product();
    let channels = cases[0].image.shape()[0];
    let mut shape = vec![settings.batch_size, channels];
    shape.extend(patch);
    let mut image = vec![0f32; settings.batch_size * channels * voxels];
    let mut label = vec![0i64; settings.batch_size * voxels];
    let mut ids = Vec::with_capacity(settings.batch_size);
    for (sample, (image, label)) in image
        .chunks_exact_mut(channels * voxels)
        .zip(label.chunks_exact_mut(voxels))
        .enumerate()
    {
        let mut random = Random::new(settings.seed, index, sample as u64);
        let case = &cases[random.below(cases.len())];
        ids.push(case.id.clone());
        let mut target = Target {
            size: patch,
            image,
            label,
        };
        draw_patch(
            case,
            settings.forces_foreground(sample),
            &settings.augment,
            &mut target,
            &mut random,
        );
    }
    Batch {
        image,
        label,
        shape,
        ids,
    }
}

fn draw_patch<const D: usize>(
    case: &PreparedCase,
    force: bool,
    augment: &Augmentation,
    target: &mut Target<D>,
    random: &mut Random,
) {
    const LAYOUT: &str = "prepare_case lays arrays out in standard order";
    let label = case.label.as_ref().expect("validate() asks for label maps");
    let full: Vec<usize> = label.shape().to_vec();
    let skipped = full.len() - D;
    let size: [usize; D] = std::array::from_fn(|a| full[skipped + a]);
    let plane: usize = size.iter().product();
    let slices: usize = full[..skipped].iter().product();

    let centre = force.then(|| foreground_voxel(case, random)).flatten();
    let slice = centre.map_or_else(|| random.below(slices), |voxel| voxel / plane);
    let inside: Option<[usize; D]> = centre.map(|voxel| {
        let mut rest = voxel % plane;
        let mut index = [0; D];
        for axis in (0..D).rev() {
            index[axis] = rest % size[axis];
            rest /= size[axis];
        }
        index
    });
    let start = std::array::from_fn(|axis| {
        start_along(
            size[axis],
            target.size[axis],
            inside.map(|i| i[axis]),
            random,
        )
    });

    let all_values = case.image.as_slice().expect(LAYOUT);
    let all_labels = label.as_slice().expect(LAYOUT);
    let source = Source {
        size,
        channels: all_values
            .chunks_exact(slices * plane)
            .map(|channel| &channel[slice * plane..][..plane])
            .collect(),
        label: &all_labels[slice * plane..][..plane],
    };
    match draw_matrix(augment, &target.size, random) {
        Some(matrix) => resample(&source, start, &matrix, target),
        None => cut(&source, start, target),
    }
    intensity::change(target.image, &target.size, augment, random);
    for &axis in augment.mirroring.axes.iter().filter(|&&a| a < D) {
        if random.chance(0.5) {
            // The channels come before the patch's axes and are not moved.
            flip(target.image, &target.size, axis);
            flip(target.label, &target.size, axis);
        }
    }
}

/// A voxel of a class chosen evenly among those present; none in a case without foreground.
fn foreground_voxel(case: &PreparedCase, random: &mut Random) -> Option<usize> {
    if case.foreground.is_empty() {
        return None;
    }
    let (_, voxels) = &case.foreground[random.below(case.foreground.len())];
    Some(voxels[random.below(voxels.len())])
}

/// Where the patch begins: within the image if it fits, around a voxel if one is given, otherwise anywhere; a larger patch lies centred.
fn start_along(size: usize, patch: usize, around: Option<usize>, random: &mut Random) -> isize {
    if size <= patch {
        return -(((patch - size) / 2) as isize);
    }
    match around {
        Some(voxel) => voxel.saturating_sub(patch / 2).min(size - patch) as isize,
        None => random.below(size - patch + 1) as isize,
    }
}
