//! Reading and writing image files, one module a format, chosen by the file's ending.

mod natural;
pub mod nifti;

use std::io::Write;
use std::path::Path;

use ndarray::{ArrayD, Axis};

use crate::{DataError, Image, LabelMap, Result};

/// A format this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Png,
    /// Read through the `image` crate, never written.
    OtherNatural,
    Nifti {
        gzip: bool,
    },
}

/// The endings of [`Format`], the longest that fits wins.
const ENDINGS: &[(&str, Format)] = &[
    (".nii.gz", Format::Nifti { gzip: true }),
    (".nii", Format::Nifti { gzip: false }),
    (".png", Format::Png),
    (".jpg", Format::OtherNatural),
    (".jpeg", Format::OtherNatural),
    (".bmp", Format::OtherNatural),
];

fn format_of(path: &Path) -> Result<Format> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    ENDINGS
        .iter()
        .find(|(ending, _)| name.ends_with(ending))
        .map(|&(_, format)| format)
        .ok_or_else(|| DataError::NotSupported {
            path: path.into(),
            what: "this file ending".into(),
            remedy: format!("the known ones are {}", known_endings()),
        })
}

/// The endings that can be read, for messages.
pub(crate) fn known_endings() -> String {
    ENDINGS
        .iter()
        .map(|(ending, _)| *ending)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether a file ending such as `.nii.gz` can be read.
pub(crate) fn is_known_ending(ending: &str) -> bool {
    ENDINGS
        .iter()
        .any(|(known, _)| *known == ending.to_lowercase())
}

/// Reads an image, channels first.
pub fn read_image(path: &Path) -> Result<Image> {
    match format_of(path)? {
        Format::Png | Format::OtherNatural => natural::read(path),
        Format::Nifti { .. } => nifti::read(path),
    }
}

/// Size of an image without its channels, in array order, from the header alone.
pub fn spatial_size(path: &Path) -> Result<Vec<usize>> {
    match format_of(path)? {
        Format::Png | Format::OtherNatural => natural::size(path),
        Format::Nifti { .. } => nifti::size(path),
    }
}

/// Reads a label map: one channel of whole numbers.
pub fn read_labels(path: &Path) -> Result<LabelMap> {
    let Image { data, geometry } = read_image(path)?;
    let channels = data.shape()[0];
    if channels != 1 {
        return Err(DataError::LabelInColour {
            path: path.into(),
            channels,
        });
    }
    let is_label = |v: f32| v.fract() == 0.0 && (0.0..=f32::from(i16::MAX)).contains(&v);
    if let Some(&value) = data.iter().find(|&&v| !is_label(v)) {
        return Err(DataError::LabelNotInteger {
            path: path.into(),
            value,
        });
    }
    let data: ArrayD<i16> = data.index_axis_move(Axis(0), 0).mapv(|v| v as i16);
    Ok(LabelMap { data, geometry })
}

/// Writes a label map on the grid of its geometry, whole or not at all (see [`atomically`]). `.png`, `.nii` and `.nii.gz` can be written.
pub fn write_labels(path: &Path, labels: &LabelMap) -> Result<()> {
    if let Some(&value) = labels.data.iter().find(|&&v| v < 0) {
        return Err(DataError::LabelNotInteger {
            path: path.into(),
            value: f32::from(value),
        });
    }
    match format_of(path)? {
        Format::Png => natural::write_labels(path, labels),
        Format::Nifti { gzip } => nifti::write_labels(path, labels, gzip),
        Format::OtherNatural => Err(DataError::NotSupported {
            path: path.into(),
            what: "writing label maps in this format".into(),
            remedy: "use .png, .nii or .nii.gz".into(),
        }),
    }
}

/// Writes a file through a temporary one in the same folder, which takes the file's name once it is whole and on the disk. When anything
/// fails, an earlier file of that name stays as it was and the temporary is removed.
pub fn atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let attempt = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".writing-");
        #[cfg(unix)]
        {
            // The usual permissions (less the umask) in place of a temporary's private ones.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = builder
            .tempfile_in(folder)
            .map_err(without_temporary_name)?;
        {
            let mut buffered = std::io::BufWriter::new(file.as_file_mut());
            write(&mut buffered)?;
            buffered.flush()?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    attempt().map_err(|e| DataError::writing(path, e))
}

/// `tempfile` adds the name of its file to an error, which says nothing to the reader.
fn without_temporary_name(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    let (message, _) = text.split_once(" at path ").unwrap_or((&text, ""));
    std::io::Error::new(error.kind(), message)
}

/// Deflate cannot expand by more than about 1032: a header that declares more than this many bytes for each byte in the file lies.
const LARGEST_EXPANSION: u64 = 1040;
