//! Pictures of a run: curves of its progress and overlays of its label maps; and pages on restored photographs.
//!
//! Everything here takes plain arrays and gives an [`image::RgbImage`] or a text; [`save_png`] is the only function that touches a file. Text is
//! drawn with a font compiled into the binary, so the pictures are the same on every machine.

pub mod benchmark;
pub mod columns;
pub mod html;
pub mod overlay;
mod palette;
pub mod plots;
mod text;

use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use vision_mamba_datasets::{atomically, DataError};

/// What can go wrong between numbers and a picture on the disk.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The plotting library refused; it says why.
    #[error("cannot draw the {what}: {reason}")]
    Draw {
        /// Which picture or part of it.
        what: String,
        /// The plotting library's words.
        reason: String,
    },
    /// The file could not be written; names the file and the remedy.
    #[error(transparent)]
    Write(#[from] DataError),
}

/// Writes `picture` to `path` as PNG. The file appears under its name only when it is whole; an earlier one stays until then.
pub fn save_png(path: &Path, picture: &RgbImage) -> Result<(), ReportError> {
    atomically(path, |file| {
        PngEncoder::new_with_quality(file, CompressionType::Default, FilterType::Adaptive)
            .write_image(
                picture.as_raw(),
                picture.width(),
                picture.height(),
                ExtendedColorType::Rgb8,
            )
            .map_err(|error| match error {
                image::ImageError::IoError(error) => error,
                other => std::io::Error::other(other),
            })
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_picture_is_read_back_as_it_was_and_replaces_the_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        std::fs::write(&path, "an earlier file").unwrap();
        let picture = RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8 * 30, y as u8 * 40, 9]));
        save_png(&path, &picture).unwrap();
        assert_eq!(image::open(&path).unwrap().to_rgb8(), picture);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }

    #[test]
    fn a_folder_that_does_not_exist_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone").join("picture.png");
        let message = save_png(&path, &RgbImage::new(1, 1))
            .unwrap_err()
            .to_string();
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
}
