//! Class probabilities in nnU-Net's form: an `.npz` with `probabilities`, float32, (C, Z, Y, X) on the image's grid.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use ndarray::{Array4, Ix4, OwnedRepr};
use ndarray_npy::{NpzReader, NpzWriter};

use crate::io::atomically;
use crate::{DataError, Result};

const KEY: &str = "probabilities";

/// Where the probabilities of a label map's case lie: `CASE.npz` beside `CASE.nii.gz`.
pub fn beside(label_map: &Path) -> PathBuf {
    let name = label_map.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    label_map.with_file_name(format!("{stem}.npz"))
}

/// Writes probabilities, compressed, whole or not at all.
pub fn write(path: &Path, values: &Array4<f32>) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| DataError::Case {
        case: path.display().to_string(),
        problem: format!("cannot be put into an npz: {e}"),
    };
    let mut archive = NpzWriter::new_compressed(Cursor::new(Vec::new()));
    archive.add_array(KEY, values).map_err(|e| failed(&e))?;
    let bytes = archive.finish().map_err(|e| failed(&e))?.into_inner();
    atomically(path, |out| out.write_all(&bytes))
}

/// Reads what [`write`] or nnU-Net wrote.
pub fn read(path: &Path) -> Result<Array4<f32>> {
    let file = std::fs::File::open(path).map_err(|e| DataError::reading(path, e))?;
    let damaged =
        |e: &dyn std::fmt::Display| DataError::damaged(path, "probabilities (.npz)", e.to_string());
    let mut archive = NpzReader::new(std::io::BufReader::new(file)).map_err(|e| damaged(&e))?;
    archive
        .by_name::<OwnedRepr<f32>, Ix4>(KEY)
        .map_err(|e| damaged(&e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn there_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = beside(&folder.path().join("case.a.nii.gz"));
        assert!(path.ends_with("case.a.npz"));
        let values = Array4::from_shape_fn((2, 3, 4, 5), |(c, z, y, x)| (c + z * y + x) as f32);
        write(&path, &values).unwrap();
        assert_eq!(read(&path).unwrap(), values);
        std::fs::write(&path, b"no archive").unwrap();
        assert!(read(&path).is_err());
    }
}
