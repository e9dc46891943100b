//! NRRD: `.nrrd` with the voxels after the header, `.nhdr` with the voxels in other files. Raw, gzip, ascii and hex are read; gzip is
//! written, as SimpleITK does when asked to compress. One axis besides those of space counts channels.

mod header;

use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;

use crate::io::detached;
use crate::io::element::Element;
use crate::io::source::{count, Packing, Parsed, Source};
use crate::io::stored::{Numbers, Stored};
use crate::io::{atomically, Pixels};
use crate::{DataError, Geometry, Result};
use header::{Encoding, Header, Place};

const FORMAT: &str = "NRRD";

fn open(path: &Path) -> Result<(Source, Header)> {
    let mut source = Source::open(path)?;
    let header = source
        .lines_until(str::is_empty)
        .and_then(|lines| Header::parse(&lines))
        .map_err(|problem| DataError::damaged(path, FORMAT, problem))?;
    Ok((source, header))
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    let (_, header) = open(path)?;
    let axes = (0..header.sizes.len()).rev();
    Ok(axes
        .filter(|axis| Some(*axis) != header.channel_axis)
        .map(|axis| header.sizes[axis])
        .collect())
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
    let (source, header) = open(path)?;
    let numbers = match &header.place {
        Place::Here => voxels(source, &header, 1).map_err(damaged)?,
        Place::Files(names) => detached::read(path, FORMAT, names, |source| {
            voxels(source, &header, names.len())
        })?,
    };
    let shape: Vec<usize> = header.sizes.iter().rev().copied().collect();
    Ok(Stored {
        numbers,
        channel_axis: header.channel_axis.map(|axis| shape.len() - 1 - axis),
        shape,
        geometry: header.geometry,
    })
}

/// The voxels of one of `files` files, which share them equally.
fn voxels(mut source: Source, header: &Header, files: usize) -> Parsed<Numbers> {
    let io = |e: std::io::Error| e.to_string();
    let wrong = "its header declares more voxels than the file can hold";
    let voxels = count(&header.sizes, 1).ok_or(wrong)?;
    if voxels % files.max(1) as u64 != 0 {
        return Err(format!("{voxels} voxels cannot be shared by {files} files"));
    }
    let voxels = voxels / files.max(1) as u64;
    let width = header.element.width() as u64;
    for _ in 0..header.line_skip {
        if source.line()?.is_none() {
            return Err("it ends before its voxels".into());
        }
    }
    let bytes = match header.encoding {
        Encoding::Bytes(packing) => {
            let bytes = voxels.checked_mul(width);
            let skipped = match (header.byte_skip, packing) {
                (-1, Packing::Plain) => {
                    let bytes = bytes.filter(|&n| n <= source.length).ok_or(wrong)?;
                    source.skip(-(bytes as i64)).map_err(io)?;
                    0
                }
                (-1, _) => return Err("byte skip -1 needs the encoding raw".into()),
                // Bytes are skipped in the packed stream.
                (skip, _) => {
                    source.skip(skip).map_err(io)?;
                    0
                }
            };
            source.unpack(packing, skipped, bytes)?
        }
        Encoding::Text => {
            return source.numbers(voxels).map(Numbers::Real);
        }
        Encoding::Hex => {
            if voxels.saturating_mul(width) > source.length {
                return Err(wrong.into());
            }
            hex(source, (voxels * width) as usize)?
        }
    };
    Ok(Numbers::Raw {
        bytes,
        element: header.element,
        big_endian: header.big_endian,
    })
}

fn hex(mut source: Source, count: usize) -> Parsed<Vec<u8>> {
    let digits = source
        .rest()?
        .into_iter()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|b| (b as char).to_digit(16).map(|d| d as u8))
        .collect::<Option<Vec<u8>>>()
        .ok_or("its voxels are not all hexadecimal digits")?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .take(count)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    if bytes.len() < count {
        return Err(format!("it ends after {} of {count} bytes", bytes.len()));
    }
    Ok(bytes)
}

pub(super) fn write(path: &Path, pixels: &Pixels, geometry: &Geometry) -> Result<()> {
    let detached = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("nhdr"));
    let data_file = path.with_extension("raw.gz");
    let name = data_file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let header = head(pixels, geometry, detached.then_some(name.as_str()));
    let bytes = pixels.bytes(false);
    let pack = |out: &mut dyn Write| {
        let mut encoder = GzEncoder::new(out, flate2::Compression::default());
        encoder.write_all(&bytes)?;
        encoder.finish().map(|_| ())
    };
    if !detached {
        return atomically(path, |out| {
            out.write_all(header.as_bytes())?;
            pack(out)
        });
    }
    atomically(&data_file, pack)?;
    atomically(path, |out| out.write_all(header.as_bytes()))
}

/// The header, with its empty line, for voxels in gzip.
fn head(pixels: &Pixels, geometry: &Geometry, data_file: Option<&str>) -> String {
    let element = match pixels.element() {
        Element::U8 => "unsigned char",
        Element::I16 => "short",
        _ => "float",
    };
    let spatial = pixels.spatial_size();
    let dims = spatial.len();
    let many = pixels.channels() > 1;
    let mut sizes: Vec<String> = spatial.iter().rev().map(usize::to_string).collect();
    let vector = |v: &[f64]| {
        let numbers: Vec<String> = v.iter().map(f64::to_string).collect();
        format!("({})", numbers.join(","))
    };
    let mut directions: Vec<String> = geometry.steps().iter().map(|s| vector(s)).collect();
    let mut kinds = vec!["domain"; dims];
    if many {
        sizes.push(pixels.channels().to_string());
        directions.push("none".into());
        kinds.push("list");
    }
    let frame = match dims {
        3 => "space: left-posterior-superior".to_owned(),
        _ => format!("space dimension: {dims}"),
    };
    let mut text = format!(
        "NRRD0005\ntype: {element}\ndimension: {}\n{frame}\nsizes: {}\nspace directions: {}\nkinds: {}\nendian: little\nencoding: gzip\nspace origin: {}\n",
        sizes.len(),
        sizes.join(" "),
        directions.join(" "),
        kinds.join(" "),
        vector(&geometry.origin),
    );
    if let Some(name) = data_file {
        text += &format!("data file: {name}\n");
    }
    text + "\n"
}
