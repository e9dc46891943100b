//! HDF5 with data sets `image` and `label`, as Mamba-UNet's line keeps the ACDC slices and volumes and TransUNet's the Synapse volumes.
//!
//! Read by the crate `hdf5-reader`: Rust throughout, so that nothing has to be installed, and made for damaged files (bounds, cycles and
//! depth are checked, memory is limited on request). The others want the C library or write more than they read.

use std::path::Path;
use std::sync::Arc;

use hdf5_reader::{Dataset, Datatype, Hdf5File, OpenOptions};
use ndarray::ArrayD;

use crate::io::arrays::{self, Role};
use crate::io::source::{Parsed, Source, LARGEST_EXPANSION};
use crate::{DataError, Image, Result};

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

/// Any kind of real number as float32.
fn values(dataset: &Dataset) -> Parsed<ArrayD<f32>> {
    fn all<T: hdf5_reader::H5Type + Copy>(
        dataset: &Dataset,
        value: impl Fn(T) -> f32,
    ) -> Parsed<ArrayD<f32>> {
        dataset
            .read_array::<T>()
            .map(|a| a.mapv(value))
            .map_err(|e| e.to_string())
    }
    match dataset.dtype() {
        Datatype::FloatingPoint { size: 4, .. } => {
            dataset.read_array::<f32>().map_err(|e| e.to_string())
        }
        Datatype::FloatingPoint { size: 8, .. } => all(dataset, |v: f64| v as f32),
        Datatype::FixedPoint {
            size: 1,
            signed: false,
            ..
        } => all(dataset, |v: u8| v.into()),
        Datatype::FixedPoint {
            size: 1,
            signed: true,
            ..
        } => all(dataset, |v: i8| v.into()),
        Datatype::FixedPoint {
            size: 2,
            signed: false,
            ..
        } => all(dataset, |v: u16| v.into()),
        Datatype::FixedPoint {
            size: 2,
            signed: true,
            ..
        } => all(dataset, |v: i16| v.into()),
        Datatype::FixedPoint {
            size: 4,
            signed: false,
            ..
        } => all(dataset, |v: u32| v as f32),
        Datatype::FixedPoint {
            size: 4,
            signed: true,
            ..
        } => all(dataset, |v: i32| v as f32),
        Datatype::FixedPoint {
            size: 8,
            signed: false,
            ..
        } => all(dataset, |v: u64| v as f32),
        Datatype::FixedPoint {
            size: 8,
            signed: true,
            ..
        } => all(dataset, |v: i64| v as f32),
        other => Err(format!(
            "its numbers are of type {other:?}, expected integers or float32 or float64"
        )),
    }
}

fn load(path: &Path, role: Role) -> Result<ArrayD<f32>> {
    let dataset = open(path, role.names())?;
    values(&dataset).map_err(|e| DataError::damaged(path, FORMAT, e))
}

pub(super) fn read(path: &Path) -> Result<Image> {
    arrays::image(path, FORMAT, load(path, Role::Image)?)
}

pub(super) fn read_labels(path: &Path) -> Result<Image> {
    arrays::image(path, FORMAT, load(path, Role::Labels)?)
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    let dataset = open(path, Role::Image.names())?;
    let shape: Vec<usize> = dataset.shape().iter().map(|&s| s as usize).collect();
    Ok(match shape.len() {
        4.. => shape[1..].to_vec(),
        _ => shape,
    })
}
