//! Class probabilities on the grid of a file: an array (C, Z, Y, X) of float32 that may be larger than memory, and nnU-Net's form of it, an `.npz`
//! with `probabilities`.

use std::cell::RefCell;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ndarray::{Array4, ArrayView4, ArrayViewMut4, Ix4, OwnedRepr};
use ndarray_npy::NpzReader;
use zip::write::FileOptions;

use crate::io::atomically;
use crate::{DataError, Result};

const KEY: &str = "probabilities";

/// Arrays above this size lie in a temporary file.
const IN_MEMORY: usize = 1 << 30;

/// Probabilities (C, Z, Y, X); for a 2-D file (C, 1, Y, X). Large ones lie in a temporary file without a name, mapped into memory, which the
/// system writes out and reads back as memory is needed.
pub struct Probabilities {
    shape: [usize; 4],
    store: Store,
}

enum Store {
    Memory(Vec<f32>),
    File(memmap2::MmapMut),
}

impl std::fmt::Debug for Probabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Probabilities of shape {:?}", self.shape)
    }
}

impl Probabilities {
    /// All zero. A large array goes to a temporary file in `folder`.
    pub fn zeros(shape: [usize; 4], folder: &Path) -> Result<Self> {
        Self::zeros_above(shape, folder, IN_MEMORY)
    }

    fn zeros_above(shape: [usize; 4], folder: &Path, in_memory: usize) -> Result<Self> {
        let n: usize = shape.iter().product();
        let store = match n * size_of::<f32>() <= in_memory {
            true => Store::Memory(vec![0.0; n]),
            false => Store::File(
                map(n * size_of::<f32>(), folder).map_err(|e| DataError::writing(folder, e))?,
            ),
        };
        Ok(Self { shape, store })
    }

    fn values(&self) -> &[f32] {
        match &self.store {
            Store::Memory(values) => values,
            Store::File(bytes) => bytemuck::cast_slice(bytes),
        }
    }

    /// Number of classes and size of the grid.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The array.
    pub fn view(&self) -> ArrayView4<'_, f32> {
        // the list is as long as the shape says
        ArrayView4::from_shape(self.shape, self.values()).unwrap_or_else(|_| unreachable!())
    }

    /// The array, to be changed.
    pub fn view_mut(&mut self) -> ArrayViewMut4<'_, f32> {
        let values: &mut [f32] = match &mut self.store {
            Store::Memory(values) => values,
            Store::File(bytes) => bytemuck::cast_slice_mut(bytes),
        };
        ArrayViewMut4::from_shape(self.shape, values).unwrap_or_else(|_| unreachable!())
    }
}

/// A file of zeros without a name. The zeros are written, not left as a hole, so that a full disk is an error here and not a signal later.
#[allow(unsafe_code)]
fn map(bytes: usize, folder: &Path) -> std::io::Result<memmap2::MmapMut> {
    let mut file = tempfile::tempfile_in(folder)?;
    let copied = std::io::copy(&mut std::io::repeat(0).take(bytes as u64), &mut file)?;
    debug_assert_eq!(copied, bytes as u64);
    // SAFETY: the file has no name, so nobody else can change or shorten it.
    unsafe { memmap2::MmapMut::map_mut(&file) }
}

/// Where the probabilities of a label map's case lie: `CASE.npz` beside `CASE.nii.gz`.
pub fn beside(label_map: &Path) -> PathBuf {
    let name = label_map.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    label_map.with_file_name(format!("{stem}.npz"))
}

/// From here on an archive's entry needs the 64-bit form of its sizes.
const LARGE: u64 = 0xC000_0000;

/// Writes probabilities, compressed, whole or not at all. What is compressed waits in a temporary file beside it, not in memory.
pub fn write(path: &Path, probabilities: &Probabilities) -> Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let failed = |e: std::io::Error| DataError::writing(path, e);
    let pack = || -> std::io::Result<std::fs::File> {
        let values = probabilities.values();
        let large = size_of_val(values) as u64 > LARGE;
        let options = FileOptions::default().large_file(large);
        let trouble = Rc::new(RefCell::new(None));
        let mut archive = zip::ZipWriter::new(Patient {
            file: tempfile::tempfile_in(folder)?,
            trouble: trouble.clone(),
        });
        archive.start_file(format!("{KEY}.npy"), options)?;
        archive.write_all(&header(probabilities.shape))?;
        // little-endian whatever the machine
        let mut bytes = Vec::new();
        for part in values.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|v| v.to_le_bytes()));
            archive.write_all(&bytes)?;
            trouble.take().map_or(Ok(()), Err)?;
        }
        let Patient { mut file, .. } = archive.finish()?;
        trouble.take().map_or(Ok(()), Err)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    };
    let mut packed = pack().map_err(failed)?;
    atomically(path, |out| std::io::copy(&mut packed, out).map(|_| ()))
}

/// A file that takes everything and keeps its first trouble for later: the archive's writer, which finishes its archive when it is dropped,
/// would print one.
struct Patient {
    file: std::fs::File,
    trouble: Rc<RefCell<Option<std::io::Error>>>,
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.trouble.borrow().is_none() {
            if let Err(error) = self.file.write_all(bytes) {
                self.trouble.replace(Some(error));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Patient {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

/// The head of an `.npy` file, version 1.0: padded with spaces so that the values begin at a multiple of 64.
fn header([c, z, y, x]: [usize; 4]) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({c}, {z}, {y}, {x}), }}");
    let fixed = 10;
    while (fixed + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Reads what [`write`] or nnU-Net wrote, into memory.
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
    fn there_and_back_from_memory_and_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = beside(&folder.path().join("case.a.nii.gz"));
        assert!(path.ends_with("case.a.npz"));
        let values = Array4::from_shape_fn((2, 3, 4, 5), |(c, z, y, x)| (c + z * y + x) as f32);
        for in_memory in [0, IN_MEMORY] {
            let mut ours =
                Probabilities::zeros_above([2, 3, 4, 5], folder.path(), in_memory).unwrap();
            assert!(ours.view().iter().all(|v| *v == 0.0));
            ours.view_mut().assign(&values);
            assert_eq!(ours.view(), values);
            write(&path, &ours).unwrap();
            assert_eq!(read(&path).unwrap(), values);
        }
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "no temporary file is left");
        std::fs::write(&path, b"no archive").unwrap();
        assert!(read(&path).is_err());
        let nowhere = folder.path().join("no/such");
        assert!(Probabilities::zeros_above([2, 3, 4, 5], &nowhere, 0).is_err());
    }
}
