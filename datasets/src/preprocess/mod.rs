//! From a case as it was read to one that patches can be drawn from and networks run on, and back: transpose, crop to the body, normalise,
//! resample (nnU-Net v2's order). Everything is a volume (C, Z, Y, X) here; a 2-D image is one of a single, very thick slice.

pub mod crop;
pub mod normalise;
pub mod resample;
mod restore;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis, Ix3, Ix4};

use crate::{Configuration, DataError, Geometry, Image, LabelMap, Plan, Result};
pub use crop::{crop_to_body, Bounds};
pub use normalise::{normalise_channel, Intensity, Normalisation};
pub use resample::{new_size, resample_image, resample_labels, LabelRule, Regrid, Resampling};
pub use restore::{restore, Column, Decision, Restored, Restoring};

/// Spacing across the one slice of a picture without geometry.
pub const PICTURE_THICKNESS: f64 = 999.0;

/// A preprocessed case; both arrays in standard layout.
#[derive(Debug, Clone)]
pub struct PreparedCase {
    /// Its name.
    pub id: String,
    /// (C, Z, Y, X), normalised, on the configuration's grid.
    pub image: Array4<f32>,
    /// (Z, Y, X); negative outside the body. Zeros without a label map.
    pub seg: Array3<i16>,
    /// Whether it has a label map.
    pub labelled: bool,
    /// The way back.
    pub source: SourceGrid,
}

/// What leads back from a preprocessed case to the grid it was read on. Axes are in the plan's order unless said.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceGrid {
    /// Spacing before resampling.
    pub spacing: [f64; 3],
    /// Size before cropping.
    pub size: [usize; 3],
    /// What cropping kept.
    pub bounds: Bounds,
    /// Axis of the plan's order that each axis of the file is.
    pub transpose_backward: [usize; 3],
    /// Axes the file has: 2 or 3.
    pub spatial_dims: usize,
    /// Where the file lies.
    pub geometry: Geometry,
}

impl SourceGrid {
    /// Size after cropping.
    pub fn cropped_size(&self) -> [usize; 3] {
        self.bounds.map(|[from, to]| to - from)
    }
}

/// Voxels remembered per class: at least so many, and at least one in a hundred.
const MOST_FOREGROUND: usize = 10_000;
const LEAST_COVERAGE: f64 = 0.01;

/// An image as a volume with its spacing; 2-D images get a slice axis in front.
pub fn as_volume(image: &Image) -> Result<(ArrayView4<'_, f32>, [f64; 3])> {
    let data = match image.spatial_size().len() {
        2 => image.data.view().insert_axis(Axis(1)),
        _ => image.data.view(),
    };
    let dims = data.ndim() - 1;
    let data = data
        .into_dimensionality::<Ix4>()
        .map_err(|_| DataError::Case {
            case: "image".into(),
            problem: format!("it has {dims} axes, but only 2-D and 3-D images are handled"),
        })?;
    Ok((data, volume_spacing(&image.geometry)))
}

/// Spacing of a geometry as a volume, positive.
pub fn volume_spacing(geometry: &Geometry) -> [f64; 3] {
    let spacing = geometry.spacing.iter().map(|s| s.abs());
    match spacing.clone().collect::<Vec<_>>()[..] {
        [y, x] => {
            let largest = y.max(x);
            [PICTURE_THICKNESS * largest, y, x]
        }
        [z, y, x] => [z, y, x],
        _ => [1.0; 3],
    }
}

/// A label map as a volume.
pub fn labels_as_volume(labels: &LabelMap) -> Result<Array3<i16>> {
    label_volume(labels).map(|view| view.to_owned())
}

/// The same without a copy.
pub fn label_volume(labels: &LabelMap) -> Result<ArrayView3<'_, i16>> {
    let data = match labels.data.ndim() {
        2 => labels.data.view().insert_axis(Axis(0)),
        _ => labels.data.view(),
    };
    data.into_dimensionality::<Ix3>()
        .map_err(|_| DataError::Case {
            case: "label map".into(),
            problem: "only 2-D and 3-D label maps are handled".into(),
        })
}

/// Preprocesses a case for a configuration of a plan.
pub fn prepare_case(
    id: &str,
    image: &Image,
    label: Option<&LabelMap>,
    plan: &Plan,
    configuration: &Configuration,
) -> Result<PreparedCase> {
    prepare_with(id, image, label, plan, configuration, LabelRule::default())
}

/// The same with a choice of how label maps are resampled.
pub fn prepare_with(
    id: &str,
    image: &Image,
    label: Option<&LabelMap>,
    plan: &Plan,
    configuration: &Configuration,
    rule: LabelRule,
) -> Result<PreparedCase> {
    let fail = |problem: String| DataError::Case {
        case: id.into(),
        problem,
    };
    let dims = image.spatial_size().len();
    if dims < configuration.spatial_dims() {
        return Err(fail(format!(
            "the image has {dims} axes, but the configuration is {}-D; choose the configuration 2d",
            configuration.spatial_dims()
        )));
    }
    if let Some(label) = label.filter(|l| l.data.shape() != image.spatial_size()) {
        return Err(fail(format!(
            "its image is of size {:?}, its label map of size {:?}; both must be on one grid",
            image.spatial_size(),
            label.data.shape()
        )));
    }
    let channels = configuration.normalization_schemes.len();
    if image.channels() != channels {
        return Err(fail(format!(
            "it has {} channels, but the plan is for {channels}",
            image.channels()
        )));
    }

    let (data, spacing) = as_volume(image)?;
    let [a, b, c] = plan.transpose_forward;
    let data = data.permuted_axes([0, a + 1, b + 1, c + 1]);
    let spacing = [spacing[a], spacing[b], spacing[c]];
    let seg = label
        .map(label_volume)
        .transpose()?
        .map(|l| l.permuted_axes([a, b, c]));
    let size = [data.shape()[1], data.shape()[2], data.shape()[3]];
    let crop::Cropped {
        mut data,
        seg,
        bounds,
    } = crop_to_body(data.view(), seg);
    normalise(&mut data, &seg, plan, configuration).map_err(fail)?;

    let target = configuration.target_spacing(spacing);
    let cropped = bounds.map(|[from, to]| to - from);
    let to = new_size(cropped, spacing, target);
    if to.contains(&0) {
        return Err(fail(format!(
            "resampled from spacing {spacing:?} to {target:?} nothing would be left of its size {cropped:?}; check the spacing in the file"
        )));
    }
    let regrid = |how: &Resampling| Regrid::new(to, spacing, target, how);
    let (for_data, for_seg) = (
        &configuration.resampling_fn_data_kwargs,
        &configuration.resampling_fn_seg_kwargs,
    );
    let image_out = resample_image(data, &regrid(for_data), for_data);
    let seg = resample_labels(seg, &regrid(for_seg), for_seg, rule);
    Ok(PreparedCase {
        id: id.into(),
        image: image_out.as_standard_layout().into_owned(),
        seg: seg.as_standard_layout().into_owned(),
        labelled: label.is_some(),
        source: SourceGrid {
            spacing,
            size,
            bounds,
            transpose_backward: plan.transpose_backward,
            spatial_dims: dims,
            geometry: image.geometry.clone(),
        },
    })
}

/// Normalises every channel of a cropped case.
pub fn normalise(
    data: &mut Array4<f32>,
    seg: &Array3<i16>,
    plan: &Plan,
    configuration: &Configuration,
) -> std::result::Result<(), String> {
    for (number, channel) in data.outer_iter_mut().enumerate() {
        let masked = configuration.use_mask_for_norm.get(number) == Some(&true);
        normalise_channel(
            channel,
            configuration.normalization_schemes[number],
            plan.intensity(number),
            masked.then(|| seg.view()),
        )
        .map_err(|problem| format!("channel {number}: {problem}"))?;
    }
    Ok(())
}

impl PreparedCase {
    /// Where each class or region is, as ascending linear indices in `seg`: every voxel of a small one, evenly thinned otherwise, nothing for
    /// one that does not occur.
    pub fn locations(&self, classes: &[Vec<i16>]) -> Vec<Vec<u64>> {
        let top = classes.iter().flatten().copied().max().unwrap_or(0);
        // for each label value (shifted by one, for those outside): the classes it belongs to
        let mut members = vec![Vec::new(); top.max(0) as usize + 2];
        for (number, values) in classes.iter().enumerate() {
            for value in values.iter().filter(|v| **v >= -1) {
                members[(value + 1) as usize].push(number);
            }
        }
        let mut found = vec![Vec::new(); classes.len()];
        for (index, &value) in self.seg.iter().enumerate() {
            if let Some(numbers) = members.get((value.max(-1) + 1) as usize) {
                for &number in numbers {
                    found[number].push(index as u64);
                }
            }
        }
        let thinned = found.into_iter().map(|voxels| {
            let n = voxels.len();
            let kept = locations_kept(n);
            match kept == n {
                true => voxels,
                false => (0..kept).map(|k| voxels[k * n / kept]).collect(),
            }
        });
        thinned.collect()
    }
}

/// The axis across thick slices on the way back from a configuration's grid.
fn separate_axis_of(
    configuration: &Configuration,
    original: [f64; 3],
    how: &Resampling,
) -> Option<usize> {
    let current = configuration.target_spacing(original);
    resample::separate_axis(current, original, how.force_separate_z)
}

/// How many locations of a class of `n` voxels are remembered.
pub fn locations_kept(n: usize) -> usize {
    n.min(MOST_FOREGROUND.max((n as f64 * LEAST_COVERAGE).ceil() as usize))
}
