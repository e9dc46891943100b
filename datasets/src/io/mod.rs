//! Reading and writing image files, one module a format, chosen by the file's ending.

mod arrays;
mod atomic;
mod detached;
mod dicom;
mod element;
mod hdf5;
mod metaimage;
mod natural;
pub mod nifti;
mod npy;
mod nrrd;
mod pixels;
mod source;
mod stored;
mod tiff;

use std::path::Path;

use crate::{DataError, Geometry, Image, LabelMap, Result};
pub use atomic::{atomically, sweep, try_to_write};
pub use natural::{jpeg_is_cut, write_picture};
use pixels::Pixels;
use stored::{NoLabels, Stored};

/// A format: the endings of its files and what can be done with them.
struct Format {
    /// The longest that fits a name wins, so `.nii.gz` comes before anything called `.gz`.
    endings: &'static [&'static str],
    read: Reader,
    /// The same for label maps: files that hold both choose another array.
    read_labels: Reader,
    /// Size without channels, from the header alone.
    size: fn(&Path) -> Result<Vec<usize>>,
    write_labels: Option<Writer>,
    /// Float32 of any number of channels.
    write_values: Option<Writer>,
}

type Reader = fn(&Path) -> Result<Stored>;
type Writer = fn(&Path, &Pixels, &Geometry) -> Result<()>;

const FORMATS: &[Format] = &[
    Format {
        endings: &[".nii.gz", ".nii"],
        read: nifti::read,
        read_labels: nifti::read,
        size: nifti::size,
        write_labels: Some(nifti::write),
        write_values: Some(nifti::write),
    },
    Format {
        endings: &[".hdr", ".img", ".hdr.gz", ".img.gz"],
        read: nifti::read,
        read_labels: nifti::read,
        size: nifti::size,
        write_labels: None,
        write_values: None,
    },
    Format {
        endings: &[".nrrd", ".nhdr"],
        read: nrrd::read,
        read_labels: nrrd::read,
        size: nrrd::size,
        write_labels: Some(nrrd::write),
        write_values: Some(nrrd::write),
    },
    Format {
        endings: &[".mha", ".mhd"],
        read: metaimage::read,
        read_labels: metaimage::read,
        size: metaimage::size,
        write_labels: Some(metaimage::write),
        write_values: Some(metaimage::write),
    },
    Format {
        endings: &[".png"],
        read: natural::read,
        read_labels: natural::read,
        size: natural::size,
        write_labels: Some(natural::write_labels),
        write_values: None,
    },
    Format {
        endings: &[".tif", ".tiff"],
        read: tiff::read,
        read_labels: tiff::read,
        size: tiff::size,
        write_labels: Some(tiff::write),
        write_values: Some(tiff::write),
    },
    Format {
        // TransUNet calls the HDF5 file of a volume CASE.npy.h5
        endings: &[".npy.h5", ".h5", ".hdf5"],
        read: hdf5::read,
        read_labels: hdf5::read_labels,
        size: hdf5::size,
        write_labels: None,
        write_values: None,
    },
    Format {
        endings: &[".npz", ".npy"],
        read: npy::read,
        read_labels: npy::read_labels,
        size: npy::size,
        write_labels: None,
        write_values: None,
    },
    Format {
        endings: &[".dcm"],
        read: dicom::read,
        read_labels: dicom::read,
        size: dicom::size,
        write_labels: None,
        write_values: None,
    },
    Format {
        endings: &[".jpg", ".jpeg", ".bmp"],
        read: natural::read,
        read_labels: natural::read,
        size: natural::size,
        write_labels: None,
        write_values: None,
    },
];

fn format_of(path: &Path) -> Result<&'static Format> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of = |name: &str| {
        let (_, ending) = known_endings().split(name)?;
        FORMATS.iter().find(|f| f.endings.contains(&ending))
    };
    // A folder without an ending is a series of slices.
    of(&name)
        .or_else(|| of(".dcm").filter(|_| path.is_dir()))
        .ok_or_else(|| DataError::NotSupported {
            path: path.into(),
            what: "this file ending".into(),
            remedy: format!("the known ones are {}", known_endings()),
        })
}

/// Endings of file names such as `.nii.gz`: a slice of them, and their list in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endings(Vec<&'static str>);

impl Endings {
    fn of_formats(holds: impl Fn(&Format) -> bool) -> Self {
        let formats = FORMATS.iter().filter(|f| holds(f));
        Self(formats.flat_map(|f| f.endings).copied().collect())
    }

    /// A file name without its ending, and the ending as it is listed here; upper and lower case are the same. `None` for another ending.
    pub fn split<'a>(&self, name: &'a str) -> Option<(&'a str, &'static str)> {
        let splits = self.0.iter().filter_map(|ending| {
            let at = name.len().checked_sub(ending.len())?;
            let fits = name.get(at..)?.eq_ignore_ascii_case(ending);
            fits.then(|| (&name[..at], *ending))
        });
        // The longest that fits.
        splits.min_by_key(|(stem, _)| stem.len())
    }
}

impl std::ops::Deref for Endings {
    type Target = [&'static str];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl std::fmt::Display for Endings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// The endings of files that can be read.
pub fn known_endings() -> Endings {
    Endings::of_formats(|_| true)
}

/// The endings of files that label maps can be written in.
pub fn writable_label_endings() -> Endings {
    Endings::of_formats(|f| f.write_labels.is_some())
}

/// The endings of files that images of real values can be written in.
pub fn writable_image_endings() -> Endings {
    Endings::of_formats(|f| f.write_values.is_some())
}

/// Whether a file ending such as `.nii.gz` can be read.
pub(crate) fn is_known_ending(ending: &str) -> bool {
    FORMATS
        .iter()
        .any(|f| f.endings.contains(&ending.to_lowercase().as_str()))
}

/// Whether a folder holds a DICOM series, which [`read_image`] reads as one volume.
pub fn is_dicom_series(folder: &Path) -> bool {
    dicom::is_series(folder)
}

/// Reads an image, channels first. A folder is read as a DICOM series.
pub fn read_image(path: &Path) -> Result<Image> {
    image_of(path, (format_of(path)?.read)(path)?)
}

fn image_of(path: &Path, stored: Stored) -> Result<Image> {
    let misshapen = |problem| DataError::damaged(path, "an image", problem);
    stored.image().map_err(misshapen)
}

/// Size of an image without its channels, in array order, from the header alone.
pub fn spatial_size(path: &Path) -> Result<Vec<usize>> {
    (format_of(path)?.size)(path)
}

/// Reads the numbers of a label map, whether they are class numbers or not.
pub fn read_label_values(path: &Path) -> Result<Image> {
    image_of(path, (format_of(path)?.read_labels)(path)?)
}

/// Reads a PNG, JPEG or BMP picture as 8-bit RGB: grey three times, 16 bits rounded, without its alpha.
pub fn read_rgb(path: &Path) -> Result<image::RgbImage> {
    natural::read_rgb(path)
}

/// Reads a label map: one channel of whole numbers.
pub fn read_labels(path: &Path) -> Result<LabelMap> {
    let stored = (format_of(path)?.read_labels)(path)?;
    stored.labels().map_err(|why| match why {
        NoLabels::Channels(channels) => DataError::LabelInColour {
            path: path.into(),
            channels,
        },
        NoLabels::Value(value) => DataError::LabelNotInteger {
            path: path.into(),
            value,
        },
        NoLabels::Shape(problem) => DataError::damaged(path, "an image", problem),
    })
}

/// Writes a label map on the grid of its geometry, whole or not at all (see [`atomically`]), in any format that can hold one. The source
/// may be of another format than the file.
pub fn write_labels(path: &Path, labels: &LabelMap) -> Result<()> {
    if let Some(&value) = labels.data.iter().find(|&&v| v < 0) {
        return Err(DataError::LabelNotInteger {
            path: path.into(),
            value: f32::from(value),
        });
    }
    let Some(write) = format_of(path)?.write_labels else {
        return Err(DataError::NotSupported {
            path: path.into(),
            what: "writing label maps in this format".into(),
            remedy: format!("use {}", writable_label_endings()),
        });
    };
    write_checked(
        path,
        write,
        &Pixels::Labels(labels.data.view()),
        &labels.geometry,
    )
}

/// Writes an image of float32 values, such as probabilities, on the grid of its geometry, whole or not at all. Channels are kept: as the
/// fourth axis of a NIfTI file, as a list in NRRD, side by side in MetaImage.
pub fn write_image(path: &Path, image: &Image) -> Result<()> {
    let Some(write) = format_of(path)?.write_values else {
        return Err(DataError::NotSupported {
            path: path.into(),
            what: "writing images of real values in this format".into(),
            remedy: format!("use {}", writable_image_endings()),
        });
    };
    write_checked(
        path,
        write,
        &Pixels::Values(image.data.view()),
        &image.geometry,
    )
}

fn write_checked(path: &Path, write: Writer, pixels: &Pixels, geometry: &Geometry) -> Result<()> {
    let size = pixels.spatial_size();
    let dims = size.len();
    let agrees = geometry.spacing.len() == dims
        && geometry.origin.len() == dims
        && geometry.direction.len() == dims * dims;
    if !agrees || !(2..=3).contains(&dims) || pixels.channels() == 0 || size.contains(&0) {
        return Err(DataError::NotSupported {
            path: path.into(),
            what: format!(
                "an array of size {size:?} with a geometry of {} axes",
                geometry.spacing.len()
            ),
            remedy: "give two or three axes of space and the geometry of as many".into(),
        });
    }
    write(path, pixels, geometry)
}
