//! HDF5 with data sets `image` and `label`, as Mamba-UNet's line keeps the ACDC slices and volumes and TransUNet's the Synapse volumes.
//!
//! Read by the crate `hdf5-reader`: Rust throughout, so that nothing has to be installed, and made for damaged files (bounds, cycles and
//! depth are checked, memory is limited on request). The others want the C library or write more than they read.

use std::path::Path;
use std::sync::Arc;

use hdf5_reader::{Dataset, Datatype, Hdf5File, OpenOptions};

use crate::io::arrays::{self, Role};
use crate::io::element::Element;
use crate::io::source::{Parsed, Source, LARGEST_EXPANSION};
use crate::io::stored::{Numbers, Stored};
use crate::{DataError, Result};

const FORMAT: &str = "HDF5";

/// Memory that any file may ask for, however short it is.
const SMALL: u64 = 16 << 20;

/// The first data set of these names.
fn open(path: &Path, names: &[&str]) -> Result<Dataset> {
    let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
    let mut source = Source::open(path)?;
    let most = SMALL.max(source.length.saturating_mul(LARGEST_EXPANSION));
    let bytes = source.rest().map_err(damaged)?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let options = OpenOptions::default()
        .with_max_read_bytes(most)
        .with_max_chunk_bytes(most.min(hdf5_reader::HDF5_MAX_CHUNK_BYTES))
        .with_max_object_header_bytes(bytes.len());
    let file = Hdf5File::from_shared_bytes_with_options(Arc::from(bytes), options)
        .map_err(|e| damaged(e.to_string()))?;
    let mut problem = String::new();
    for name in names {
        match file.dataset(name) {
            Ok(dataset) => return Ok(dataset),
            Err(e) => problem = e.to_string(),
        }
    }
    Err(damaged(format!(
        "it has no data set {} ({problem})",
        names.join(" or ")
    )))
}

/// Any kind of real number.
fn values(dataset: &Dataset) -> Parsed<Numbers> {
    fn all<T: hdf5_reader::H5Type + bytemuck::Pod>(
        dataset: &Dataset,
        element: Element,
    ) -> Parsed<Numbers> {
        let array = dataset.read_array::<T>().map_err(|e| e.to_string())?;
        let values: Vec<T> = array.into_iter().collect();
        let bytes = bytemuck::try_cast_vec(values)
            .unwrap_or_else(|(_, values)| bytemuck::cast_slice(&values).to_vec());
        Ok(Numbers::native(bytes, element))
    }
    match dataset.dtype() {
        Datatype::FloatingPoint { size: 4, .. } => all::<f32>(dataset, Element::F32),
        Datatype::FloatingPoint { size: 8, .. } => all::<f64>(dataset, Element::F64),
        Datatype::FixedPoint { size, signed, .. } => match (size, signed) {
            (1, false) => all::<u8>(dataset, Element::U8),
            (1, true) => all::<i8>(dataset, Element::I8),
            (2, false) => all::<u16>(dataset, Element::U16),
            (2, true) => all::<i16>(dataset, Element::I16),
            (4, false) => all::<u32>(dataset, Element::U32),
            (4, true) => all::<i32>(dataset, Element::I32),
            (8, false) => all::<u64>(dataset, Element::U64),
            (8, true) => all::<i64>(dataset, Element::I64),
            _ => Err(format!("its integers are of {size} bytes, expected 1 to 8")),
        },
        other => Err(format!(
            "its numbers are of type {other:?}, expected integers or float32 or float64"
        )),
    }
}

fn load(path: &Path, role: Role) -> Result<Stored> {
    let dataset = open(path, role.names())?;
    let numbers = values(&dataset).map_err(|e| DataError::damaged(path, FORMAT, e))?;
    arrays::stored(path, FORMAT, numbers, shape(&dataset))
}

fn shape(dataset: &Dataset) -> Vec<usize> {
    dataset.shape().iter().map(|&s| s as usize).collect()
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    load(path, Role::Image)
}

pub(super) fn read_labels(path: &Path) -> Result<Stored> {
    load(path, Role::Labels)
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    let dataset = open(path, Role::Image.names())?;
    let shape = shape(&dataset);
    Ok(match shape.len() {
        4.. => shape[1..].to_vec(),
        _ => shape,
    })
}
