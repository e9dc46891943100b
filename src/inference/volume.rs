//! One image through one or several trained networks, back to a label map on the image's own grid.

use std::path::Path;

use anyhow::Result;
use vision_mamba_datasets::{Image, Restored};

use super::ensemble::Ensemble;
pub use super::member::Member;
use super::sliding_window::OnWindow;
use crate::precision::Precision;
use crate::speed::Speed;

/// Options of a prediction.
#[derive(Debug, Clone)]
pub struct PredictOptions {
    /// Distance of neighbouring windows as a part of the tile, in (0, 1].
    pub tile_step: f64,
    /// Average over the mirrored axes of each member.
    pub mirroring: bool,
    /// Keep the probabilities.
    pub probabilities: bool,
    /// The number format of forward passes.
    pub precision: Precision,
    /// How fast they compute; the members' kernels are in order for it.
    pub speed: Speed,
}

/// The prediction of an image by one network or an ensemble.
pub fn segment(
    members: &[Member],
    image: &Image,
    options: &PredictOptions,
    on_window: &mut OnWindow,
) -> Result<Restored> {
    segment_with(members, image, options, &std::env::temp_dir(), on_window)
}

/// The same, where probabilities too large for memory lie in a file in `folder`.
pub fn segment_with(
    members: &[Member],
    image: &Image,
    options: &PredictOptions,
    folder: &Path,
    on_window: &mut OnWindow,
) -> Result<Restored> {
    let ensemble = Ensemble::new(members)?;
    let case = ensemble.recipe().prepare("image", image)?;
    let (mut restoring, schedule) = ensemble.restoring(&case, folder, options.probabilities)?;
    ensemble.predict(
        case,
        &schedule,
        options,
        on_window,
        &mut |address, plane| {
            restoring.push(address, plane);
            Ok(())
        },
    )?;
    Ok(restoring.finish()?)
}
