//! NIfTI-1, plain or gzip, written from the format's description.
//!
//! Nothing a header says is believed before it is held against the file: sizes are checked against the file's length before memory is asked
//! for, and a gzip stream is inflated no further than the header declares. Gzip is told by content, so a plain file called `.nii.gz` opens.

mod header;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use ndarray::{ArrayD, IxDyn};

pub use header::Header;
use header::{VoxelType, LENGTH, VOXELS_AT};

use crate::io::{atomically, LARGEST_EXPANSION};
use crate::{DataError, Image, LabelMap, Result, SourceHeader};

const FORMAT: &str = "NIfTI-1";

/// An opened file: its header, the stream behind it, and the most bytes that it can hold.
struct Opened {
    header: Header,
    stream: Box<dyn Read>,
    most_bytes: u64,
}

fn open(path: &Path) -> Result<Opened> {
    let io = |e| DataError::reading(path, e);
    let mut file = File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    if about.is_dir() {
        return Err(io(std::io::ErrorKind::IsADirectory.into()));
    }
    let mut magic = [0; 2];
    let gzip = file.read(&mut magic).map_err(io)? == 2 && magic == [0x1f, 0x8b];
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let reader = BufReader::new(file);
    let mut stream: Box<dyn Read> = if gzip {
        Box::new(MultiGzDecoder::new(reader))
    } else {
        Box::new(reader)
    };
    let mut bytes = Vec::with_capacity(LENGTH);
    stream
        .by_ref()
        .take(LENGTH as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| DataError::damaged(path, FORMAT, e))?;
    let header =
        Header::parse(&bytes).map_err(|problem| DataError::damaged(path, FORMAT, problem))?;
    let most_bytes = if gzip {
        about.len().saturating_mul(LARGEST_EXPANSION)
    } else {
        about.len()
    };
    Ok(Opened {
        header,
        stream,
        most_bytes,
    })
}

/// Spatial size; a time axis or several values a voxel are refused.
fn spatial_size(header: &Header, path: &Path) -> Result<Vec<usize>> {
    let size = header.size();
    match size.len() {
        2 | 3 => Ok(size),
        1 => Err(DataError::damaged(
            path,
            FORMAT,
            "it has one axis, expected two or three",
        )),
        _ => Err(DataError::NotSupported {
            path: path.into(),
            what: format!(
                "a NIfTI image with {} axes (size {size:?}, slowest first)",
                size.len()
            ),
            remedy: "save each volume as a file of its own: CASE_0000, CASE_0001, ...".into(),
        }),
    }
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    spatial_size(&open(path)?.header, path)
}

pub(super) fn read(path: &Path) -> Result<Image> {
    let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
    let Opened {
        header,
        mut stream,
        most_bytes,
    } = open(path)?;
    let size = spatial_size(&header, path)?;
    let geometry = header.geometry(size.len()).map_err(damaged)?;
    let (voxel_type, width) = header.voxel_type().map_err(damaged)?;
    let voxels = size.iter().try_fold(1u64, |n, &s| n.checked_mul(s as u64));
    let before = (header.voxels_at() - LENGTH) as u64;
    let declared = voxels.and_then(|n| n.checked_mul(width as u64));
    let declared = declared.filter(|&n| n.saturating_add(before + LENGTH as u64) <= most_bytes).ok_or_else(|| {
        damaged(format!("its header declares {size:?} voxels of {width} bytes (slowest axis first), more than the file can hold"))
    })?;
    let skipped = std::io::copy(&mut stream.by_ref().take(before), &mut std::io::sink())
        .map_err(|e| damaged(e.to_string()))?;
    let mut bytes = Vec::new();
    stream
        .by_ref()
        .take(declared)
        .read_to_end(&mut bytes)
        .map_err(|e| damaged(e.to_string()))?;
    if skipped < before || (bytes.len() as u64) < declared {
        return Err(damaged(format!(
            "it ends after {} of {declared} bytes of voxels",
            bytes.len()
        )));
    }
    // Reaching the end of a gzip stream checks its checksum. What lies behind the voxels is no business of ours, and is not read through.
    std::io::copy(&mut stream.take(1 << 16), &mut std::io::sink())
        .map_err(|e| damaged(e.to_string()))?;

    let mut values = decode(&bytes, voxel_type, header.big_endian());
    if let Some((slope, inter)) = header.scaling() {
        for value in &mut values {
            *value = (f64::from(*value) * slope + inter) as f32;
        }
    }
    let mut shape = vec![1];
    shape.extend_from_slice(&size);
    let data = ArrayD::from_shape_vec(IxDyn(&shape), values).map_err(|e| damaged(e.to_string()))?;
    Ok(Image { data, geometry })
}

fn decode(bytes: &[u8], voxel_type: VoxelType, big_endian: bool) -> Vec<f32> {
    fn each<const N: usize>(
        bytes: &[u8],
        big_endian: bool,
        value: impl Fn([u8; N]) -> f32,
    ) -> Vec<f32> {
        bytes
            .chunks_exact(N)
            .map(|stored| {
                let mut voxel = [0; N];
                voxel.copy_from_slice(stored);
                if big_endian {
                    voxel.reverse();
                }
                value(voxel)
            })
            .collect()
    }
    match voxel_type {
        VoxelType::U8 => each(bytes, false, |[b]: [u8; 1]| f32::from(b)),
        VoxelType::I8 => each(bytes, false, |[b]: [u8; 1]| f32::from(b as i8)),
        VoxelType::I16 => each(bytes, big_endian, |b| f32::from(i16::from_le_bytes(b))),
        VoxelType::U16 => each(bytes, big_endian, |b| f32::from(u16::from_le_bytes(b))),
        VoxelType::I32 => each(bytes, big_endian, |b| i32::from_le_bytes(b) as f32),
        VoxelType::U32 => each(bytes, big_endian, |b| u32::from_le_bytes(b) as f32),
        VoxelType::I64 => each(bytes, big_endian, |b| i64::from_le_bytes(b) as f32),
        VoxelType::U64 => each(bytes, big_endian, |b| u64::from_le_bytes(b) as f32),
        VoxelType::F32 => each(bytes, big_endian, f32::from_le_bytes),
        VoxelType::F64 => each(bytes, big_endian, |b| f64::from_le_bytes(b) as f32),
    }
}

pub(super) fn write_labels(path: &Path, labels: &LabelMap, gzip: bool) -> Result<()> {
    let size = labels.data.shape();
    if !(2..=3).contains(&size.len()) || size.iter().any(|&s| s > i16::MAX as usize) {
        return Err(DataError::NotSupported {
            path: path.into(),
            what: format!("a label map of size {size:?} in NIfTI"),
            remedy: format!("it takes two or three axes of at most {} voxels", i16::MAX),
        });
    }
    let wide = labels.data.iter().any(|&v| v > 255);
    let header = match &labels.geometry.source {
        SourceHeader::Nifti(header) => header.for_labels(size, wide),
        SourceHeader::None => Header::from_geometry(&labels.geometry).for_labels(size, wide),
    };
    let voxels: Vec<u8> = match (wide, header.big_endian()) {
        (false, _) => labels.data.iter().map(|&v| v as u8).collect(),
        (true, false) => labels.data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (true, true) => labels.data.iter().flat_map(|v| v.to_be_bytes()).collect(),
    };
    let write = |out: &mut dyn Write| {
        out.write_all(header.as_bytes())?;
        out.write_all(&[0; VOXELS_AT - LENGTH])?;
        out.write_all(&voxels)
    };
    atomically(path, |out| {
        if !gzip {
            return write(out);
        }
        let mut encoder = GzEncoder::new(out, flate2::Compression::default());
        write(&mut encoder)?;
        encoder.finish().map(|_| ())
    })
}
