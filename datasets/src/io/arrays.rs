//! Files of named arrays without geometry, of which one is the image and one the label map.

use std::path::Path;

use ndarray::{ArrayD, Axis};

use crate::{DataError, Geometry, Image, Result};

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
pub(super) fn image(path: &Path, format: &'static str, mut array: ArrayD<f32>) -> Result<Image> {
    if array.ndim() < 4 {
        array.insert_axis_inplace(Axis(0));
    }
    let dims = array.ndim() - 1;
    if !(2..=3).contains(&dims) || array.is_empty() {
        let problem = format!(
            "its array has the shape {:?}, expected two to four axes",
            array.shape()
        );
        return Err(DataError::damaged(path, format, problem));
    }
    Ok(Image {
        data: array,
        geometry: Geometry::unit(dims),
    })
}
