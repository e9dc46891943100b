//! Files of named arrays without geometry, of which one is the image and one the label map.

use std::path::Path;

use super::stored::{Numbers, Stored};
use crate::{DataError, Geometry, Result};

/// What an array in a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Image,
    Labels,
}

impl Role {
    /// The names an array of this role goes by.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Image => &["image", "data"],
            Self::Labels => &["label", "seg"],
        }
    }
}

/// (H, W) and (Z, Y, X) are of one channel, (C, Z, Y, X) of several.
pub(super) fn stored(
    path: &Path,
    format: &'static str,
    numbers: Numbers,
    shape: Vec<usize>,
) -> Result<Stored> {
    let channel_axis = (shape.len() >= 4).then_some(0);
    let dims = shape.len() - usize::from(channel_axis.is_some());
    if !(2..=3).contains(&dims) || shape.contains(&0) {
        let problem = format!("its array has the shape {shape:?}, expected two to four axes");
        return Err(DataError::damaged(path, format, problem));
    }
    Ok(Stored {
        numbers,
        shape,
        channel_axis,
        geometry: Geometry::unit(dims),
    })
}
