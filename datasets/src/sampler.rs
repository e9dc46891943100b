//! Training patches: which case, which place, how changed. A batch is a pure function of the cases, the settings and its number.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::augment::resample::resample;
use crate::augment::spatial::{cut, draw_flips, draw_matrix, mirrored, Source, Target};
use crate::augment::{intensity, Augmentation};
use crate::random::Random;
use crate::recycled::{Pool, Recycled};
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
    /// Channels that are 0 outside the body again after their values were changed: those normalised within it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked_channels: Vec<usize>,
    /// Voxels of this label take no part: they become -1. Those outside the body become background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_label: Option<i16>,
    /// Seed of everything random.
    pub seed: u64,
}

/// A preprocessed case as patches are drawn from it: in memory, or mapped from a file.
pub struct TrainingCase {
    /// Its name.
    pub id: String,
    /// (C, Z, Y, X).
    pub shape: [usize; 4],
    values: Values,
    /// For each class or region that occurs: where, as linear indices in a channel.
    foreground: Vec<Vec<u64>>,
    /// Where the label is known; empty where that is everywhere.
    annotated: Vec<u64>,
}

enum Values {
    Owned(Vec<f32>, Vec<i16>),
    /// Ranges of bytes, aligned for their type.
    Mapped(memmap2::Mmap, Range<usize>, Range<usize>),
}

impl std::fmt::Debug for TrainingCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrainingCase {} {:?}", self.id, self.shape)
    }
}

impl TrainingCase {
    /// A case in memory. `classes` are those that patches are centred on, each a list of label values; `annotated` the labels that are known,
    /// where some are not.
    pub fn new(case: PreparedCase, classes: &[Vec<i16>], annotated: Option<&[i16]>) -> Self {
        let mut foreground = case.locations(classes);
        foreground.retain(|voxels| !voxels.is_empty());
        let annotated = annotated.map_or_else(Vec::new, |labels| {
            case.locations(&[labels.to_vec()]).remove(0)
        });
        let (c, z, y, x) = case.image.dim();
        Self {
            id: case.id,
            shape: [c, z, y, x],
            values: Values::Owned(
                case.image.as_standard_layout().iter().copied().collect(),
                case.seg.as_standard_layout().iter().copied().collect(),
            ),
            foreground,
            annotated,
        }
    }

    /// A case in a file, at ranges of its bytes.
    pub(crate) fn mapped(
        id: &str,
        shape: [usize; 4],
        file: memmap2::Mmap,
        image: Range<usize>,
        seg: Range<usize>,
        mut foreground: Vec<Vec<u64>>,
        annotated: Vec<u64>,
    ) -> std::result::Result<Self, String> {
        let fits = |range: &Range<usize>, size: usize, count: usize| {
            file.get(range.clone()).is_some_and(|bytes| {
                bytes.len() == size * count && (bytes.as_ptr() as usize).is_multiple_of(size)
            })
        };
        let voxels = shape[1..].iter().product::<usize>();
        if !fits(&image, 4, voxels * shape[0]) || !fits(&seg, 2, voxels) {
            return Err("its tensors are cut short or not aligned".into());
        }
        foreground.retain(|voxels| !voxels.is_empty());
        Ok(Self {
            id: id.into(),
            shape,
            values: Values::Mapped(file, image, seg),
            foreground,
            annotated,
        })
    }

    fn image(&self) -> &[f32] {
        match &self.values {
            Values::Owned(image, _) => image,
            Values::Mapped(file, image, _) => bytemuck::cast_slice(&file[image.clone()]),
        }
    }

    fn seg(&self) -> &[i16] {
        match &self.values {
            Values::Owned(_, seg) => seg,
            Values::Mapped(file, _, seg) => bytemuck::cast_slice(&file[seg.clone()]),
        }
    }
}

impl PatchSettings {
    /// Checks the settings alone and against the cases.
    pub fn validate(&self, cases: &[TrainingCase]) -> Result<()> {
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
        let channels = cases[0].shape[0];
        for case in cases {
            let problem = match case.shape {
                shape if shape.contains(&0) => format!("its size {shape:?} is empty"),
                [found, ..] if found != channels => {
                    format!("it has {found} channels, others have {channels}")
                }
                _ => continue,
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
    pub image: Recycled<f32>,
    /// (B, patch...); 0 beyond the image and outside the body, -1 where the label is not known.
    pub label: Recycled<i16>,
    /// The shape of `image`.
    pub shape: Vec<usize>,
    /// The case of each patch.
    pub ids: Vec<String>,
}

/// Draws batches, one in the memory of another that was dropped.
pub struct Sampler {
    cases: Arc<Vec<TrainingCase>>,
    settings: PatchSettings,
    memory: Memory,
}

#[derive(Default)]
struct Memory {
    images: Pool<f32>,
    labels: Pool<i16>,
}

impl Sampler {
    /// From cases that fit the settings.
    pub fn new(cases: Arc<Vec<TrainingCase>>, settings: PatchSettings) -> Result<Self> {
        settings.validate(&cases)?;
        Ok(Self {
            cases,
            settings,
            memory: Memory::default(),
        })
    }

    /// Draws batch number `index`, as [`draw_batch`] does.
    pub fn draw(&self, index: u64) -> Batch {
        draw_in(&self.cases, &self.settings, index, &self.memory)
    }
}

/// Draws batch number `index`. The result depends on nothing but the arguments: neither on threads nor on other batches.
///
/// # Panics
/// When [`PatchSettings::validate`] would have failed.
pub fn draw_batch(cases: &[TrainingCase], settings: &PatchSettings, index: u64) -> Batch {
    draw_in(cases, settings, index, &Memory::default())
}

fn draw_in(cases: &[TrainingCase], settings: &PatchSettings, index: u64, memory: &Memory) -> Batch {
    match *settings.training_patch.as_slice() {
        [h, w] => draw(cases, settings, index, [h, w], memory),
        [d, h, w] => draw(cases, settings, index, [d, h, w], memory),
        _ => panic!(
            "training_patch has {} axes, validate() allows two or three",
            settings.training_patch.len()
        ),
    }
}

fn draw<const D: usize>(
    cases: &[TrainingCase],
    settings: &PatchSettings,
    index: u64,
    patch: [usize; D],
    memory: &Memory,
) -> Batch {
    let voxels: usize = patch.iter().product();
    let channels = cases[0].shape[0];
    let mut shape = vec![settings.batch_size, channels];
    shape.extend(patch);
    // every value is written below
    let mut image = memory.images.take(settings.batch_size * channels * voxels);
    let mut label = memory.labels.take(settings.batch_size * voxels);
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
            settings,
            &mut target,
            &mut random,
        );
        // no label is -2
        let ignored = settings.ignore_label.unwrap_or(-2);
        for value in &mut *target.label {
            *value = match *value == ignored {
                true => -1,
                false => (*value).max(0),
            };
        }
    }
    Batch {
        image,
        label,
        shape,
        ids,
    }
}

fn draw_patch<const D: usize>(
    case: &TrainingCase,
    force: bool,
    settings: &PatchSettings,
    target: &mut Target<D>,
    random: &mut Random,
) {
    let augment = &settings.augment;
    let full = &case.shape[1..];
    let skipped = full.len() - D;
    let size: [usize; D] = std::array::from_fn(|a| full[skipped + a]);
    let plane: usize = size.iter().product();
    let slices: usize = full[..skipped].iter().product();

    let centre = match force {
        true => foreground_voxel(case, random),
        // where labels are missing, every patch shows one that is not
        false => one_of(&case.annotated, random),
    };
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

    let (all_values, all_labels) = (case.image(), case.seg());
    let source = Source {
        size,
        channels: all_values
            .chunks_exact(slices * plane)
            .map(|channel| &channel[slice * plane..][..plane])
            .collect(),
        label: &all_labels[slice * plane..][..plane],
    };
    let matrix = draw_matrix(augment, &target.size, random);
    // nnU-Net mirrors last; what follows treats both directions alike, so that mirroring may come first, where it costs nothing
    let flips = draw_flips(augment, random);
    match matrix {
        Some(matrix) => resample(&source, start, &mirrored(matrix, flips), target),
        None => cut(&source, start, flips, target),
    }
    intensity::change(target.image, &target.size, augment, random);
    let voxels = target.label.len();
    for &channel in &settings.masked_channels {
        let values = target.image.chunks_exact_mut(voxels).nth(channel);
        for (value, &label) in values.into_iter().flatten().zip(&*target.label) {
            if label < 0 {
                *value = 0.0;
            }
        }
    }
}

/// A voxel of a class chosen evenly among those present; of any known label in a case without foreground.
fn foreground_voxel(case: &TrainingCase, random: &mut Random) -> Option<usize> {
    if case.foreground.is_empty() {
        return one_of(&case.annotated, random);
    }
    let class = random.below(case.foreground.len());
    one_of(&case.foreground[class], random)
}

fn one_of(voxels: &[u64], random: &mut Random) -> Option<usize> {
    (!voxels.is_empty()).then(|| voxels[random.below(voxels.len())] as usize)
}

/// Where the patch begins: around a voxel if one is given, and then beyond the image's far end if it lies there, as nnU-Net has it; otherwise
/// anywhere within the image. A larger patch lies centred, or further on around the voxel.
fn start_along(size: usize, patch: usize, around: Option<usize>, random: &mut Random) -> isize {
    let least = match size <= patch {
        true => -(((patch - size) / 2) as isize),
        false => 0,
    };
    match around {
        Some(voxel) => (voxel as isize - (patch / 2) as isize).max(least),
        None if size <= patch => least,
        None => random.below(size - patch + 1) as isize,
    }
}
