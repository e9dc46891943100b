//! NIfTI-1 and NIfTI-2, plain or gzip, written from the format's description.
//!
//! Gzip is told by content, so a plain file called `.nii.gz` opens. One axis beyond the third counts channels. A pair of a header `.hdr` and
//! voxels `.img` is read by the name of either; it is never written.

mod header;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

pub use header::Header;

use crate::io::element::decode;
use crate::io::source::{count, exactly, Source, LARGEST_EXPANSION};
use crate::io::stored::{Numbers, Stored};
use crate::io::{atomically, Endings, Pixels};
use crate::{DataError, Geometry, Result, SourceHeader};

const FORMAT: &str = "NIfTI";

/// An opened file, or pair of files.
struct Opened {
    header: Header,
    /// Where the voxels are, after `before` other bytes.
    stream: Box<dyn Read>,
    before: u64,
    /// Most bytes that voxels can take.
    most_bytes: u64,
}

/// Header and voxels of a pair, by the name of either; `None` for a single file.
fn pair(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let endings = Endings::of_formats(|f| f.endings.contains(&".hdr"));
    let name = path.file_name()?.to_str()?;
    let (stem, ending) = endings.split(name)?;
    let other = |kind: &str| {
        if ending.starts_with(kind) {
            return path.to_path_buf();
        }
        let (plain, packed) = (format!("{stem}{kind}"), format!("{stem}{kind}.gz"));
        let packed = path.with_file_name(packed);
        match packed.is_file() {
            true => packed,
            false => path.with_file_name(plain),
        }
    };
    Some((other(".hdr"), other(".img")))
}

/// The bytes of a file, unpacked, and how many there can be.
fn stream(path: &Path) -> Result<(Box<dyn Read>, u64)> {
    let mut source = Source::open(path)?;
    let gzip = source.is_gzip().map_err(|e| DataError::reading(path, e))?;
    let length = source.length;
    Ok(match gzip {
        true => (
            Box::new(MultiGzDecoder::new(source.reader)),
            length.saturating_mul(LARGEST_EXPANSION),
        ),
        false => (Box::new(source.reader), length),
    })
}

fn open(path: &Path) -> Result<Opened> {
    let pair = pair(path);
    let header_path = pair.as_ref().map_or(path, |(header, _)| header);
    let (mut opened, most_bytes) = stream(header_path)?;
    let damaged = |problem: String| DataError::damaged(header_path, FORMAT, problem);
    let mut bytes = Vec::new();
    let mut more = |count: usize, bytes: &mut Vec<u8>| {
        let read = opened.by_ref().take(count as u64).read_to_end(bytes);
        read.map_err(|e| damaged(e.to_string()))
    };
    more(4, &mut bytes)?;
    let (length, _) = Header::length(&bytes).map_err(damaged)?;
    more(length - bytes.len(), &mut bytes)?;
    let header = Header::parse(&bytes, pair.is_some()).map_err(damaged)?;
    let voxels_at = header.voxels_at() as u64;
    let (stream, before, most_bytes) = match &pair {
        Some((_, voxels)) => {
            let (stream, most_bytes) = stream(voxels)?;
            (stream, voxels_at, most_bytes)
        }
        None => (opened, voxels_at - length as u64, most_bytes),
    };
    Ok(Opened {
        header,
        stream,
        before,
        most_bytes: most_bytes.saturating_sub(voxels_at),
    })
}

/// Number of channels in axes of their own, and size in space.
fn axes(header: &Header, path: &Path) -> Result<(usize, Vec<usize>)> {
    let size = header.size();
    if size.len() < 2 {
        let problem = "it has one axis, expected two or three";
        return Err(DataError::damaged(path, FORMAT, problem));
    }
    let (beyond, space) = size.split_at(size.len().saturating_sub(3));
    let long: Vec<usize> = beyond.iter().copied().filter(|&s| s > 1).collect();
    match long[..] {
        [] => Ok((1, space.to_vec())),
        [channels] => Ok((channels, space.to_vec())),
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
    Ok(axes(&open(path)?.header, path)?.1)
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
    let Opened {
        header,
        stream,
        before,
        most_bytes,
    } = open(path)?;
    let (channels, space) = axes(&header, path)?;
    let geometry = header.geometry(space.len()).map_err(damaged)?;
    let (element, interleaved) = header.voxel_type().map_err(damaged)?;
    let width = element.width() * interleaved;
    let declared = count(&space, width)
        .and_then(|n| n.checked_mul(channels as u64))
        .filter(|&n| n <= most_bytes)
        .ok_or_else(|| {
            damaged(format!("its header declares {channels} x {space:?} voxels of {width} bytes (slowest axis first), more than the file can hold"))
        })?;
    let bytes = exactly(stream, before, declared).map_err(damaged)?;
    let big_endian = header.big_endian();
    let numbers = match header.scaling() {
        None => Numbers::Raw {
            bytes,
            element,
            big_endian,
        },
        scaling => Numbers::Real(decode(&bytes, element, big_endian, scaling)),
    };
    let mut shape = space;
    let channel_axis = match (channels, interleaved) {
        (_, 1) => {
            shape.insert(0, channels);
            0
        }
        // The numbers of a coloured voxel lie side by side.
        (1, _) => {
            shape.push(interleaved);
            shape.len() - 1
        }
        _ => return Err(damaged("it has several volumes of coloured voxels".into())),
    };
    Ok(Stored {
        numbers,
        shape,
        channel_axis: Some(channel_axis),
        geometry,
    })
}

pub(super) fn write(path: &Path, pixels: &Pixels, geometry: &Geometry) -> Result<()> {
    let gzip = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    let space = pixels.spatial_size();
    let mut size = space.to_vec();
    if pixels.channels() > 1 {
        // Channels are the fourth axis, also of a picture.
        while size.len() < 3 {
            size.insert(0, 1);
        }
        size.insert(0, pixels.channels());
    }
    let made = || Header::from_geometry(geometry, &size);
    let header = match &geometry.source {
        // A header that tells of another grid has stayed behind when the geometry was changed.
        SourceHeader::Nifti(header)
            if header.holds(&size) && header.geometry(space.len()).as_ref() == Ok(geometry) =>
        {
            header.as_ref().clone()
        }
        _ => made(),
    };
    let header = header.with_voxels(&size, pixels.element());
    let voxels = pixels.bytes(header.big_endian());
    let write = |out: &mut dyn Write| {
        out.write_all(header.as_bytes())?;
        out.write_all(&vec![0; header.begin() - header.as_bytes().len()])?;
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
