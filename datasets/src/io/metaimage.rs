//! MetaImage: `.mha` with the voxels after the header, `.mhd` with the voxels in other files. Raw, zlib and text are read; zlib is
//! written, as SimpleITK does when asked to compress.
//!
//! Source: the format's description by its authors at Kitware. The header's frame is left-posterior-superior already; each row of
//! `TransformMatrix` is the direction of an axis, a column of the direction matrix.

use std::io::Write;
use std::path::Path;

use flate2::write::ZlibEncoder;

use crate::io::detached::{self, names};
use crate::io::element::Element;
use crate::io::source::{count, Packing, Parsed, Source};
use crate::io::stored::{Numbers, Stored};
use crate::io::{atomically, Pixels};
use crate::{DataError, Geometry, Result};

const FORMAT: &str = "MetaImage";

/// `MET_LONG` is of four bytes on every machine.
const TYPES: &[(&str, Element)] = &[
    ("MET_CHAR", Element::I8),
    ("MET_UCHAR", Element::U8),
    ("MET_SHORT", Element::I16),
    ("MET_USHORT", Element::U16),
    ("MET_INT", Element::I32),
    ("MET_UINT", Element::U32),
    ("MET_LONG", Element::I32),
    ("MET_ULONG", Element::U32),
    ("MET_LONG_LONG", Element::I64),
    ("MET_ULONG_LONG", Element::U64),
    ("MET_FLOAT", Element::F32),
    ("MET_DOUBLE", Element::F64),
];

/// What is used of a header.
struct Header {
    /// Axes of space, fastest first.
    size: Vec<usize>,
    /// A fourth axis, the slowest.
    volumes: usize,
    /// Numbers kept side by side for each voxel.
    interleaved: usize,
    element: Element,
    big_endian: bool,
    /// `None`: the numbers are written as text.
    packing: Option<Packing>,
    /// Bytes to leave out of a file of voxels; -1: the voxels end the file.
    header_size: i64,
    /// Files of voxels; empty: they follow the header.
    files: Vec<String>,
    geometry: Geometry,
}

/// `Key = Value` lines, keys in lower case.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn get(&self, names: &[&str]) -> Option<&str> {
        let named = |name: &&str| {
            self.0
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        names
            .iter()
            .find_map(named)
            .map(|(_, value)| value.as_str())
    }

    fn numbers<T: std::str::FromStr>(
        &self,
        names: &[&str],
        count: usize,
    ) -> Parsed<Option<Vec<T>>> {
        let Some(value) = self.get(names) else {
            return Ok(None);
        };
        let numbers: Option<Vec<T>> = value.split_whitespace().map(|w| w.parse().ok()).collect();
        numbers
            .filter(|n| n.len() == count)
            .map(Some)
            .ok_or_else(|| format!("{} is `{value}`, expected {count} numbers", names[0]))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Parsed<Option<T>> {
        Ok(self.numbers(&[name], 1)?.and_then(|mut n| n.pop()))
    }

    fn is_true(&self, names: &[&str]) -> bool {
        self.get(names)
            .is_some_and(|v| v.starts_with(['T', 't', '1']))
    }
}

impl Header {
    /// `listed`: the lines behind the header, where it names a list of files.
    fn parse(lines: &[String], listed: &[String]) -> Parsed<Self> {
        let mut fields = Fields(Vec::new());
        for line in lines.iter().filter(|line| !line.trim().is_empty()) {
            let (key, value) = line.split_once(['=', ':']).ok_or_else(|| {
                let start: String = line.chars().take(40).collect();
                format!("the header line {start:?} is not of the form `Key = Value`")
            })?;
            fields.0.push((key.trim().into(), value.trim().into()));
        }
        if let Some(kind) = fields
            .get(&["ObjectType"])
            .filter(|k| !k.eq_ignore_ascii_case("image"))
        {
            return Err(format!("ObjectType is `{kind}`, expected `Image`"));
        }
        let axes: usize = fields.number("NDims")?.ok_or("it has no field `NDims`")?;
        if !(2..=4).contains(&axes) {
            return Err(format!("NDims is {axes}, expected 2 to 4"));
        }
        let mut size: Vec<usize> = fields
            .numbers(&["DimSize"], axes)?
            .ok_or("it has no field `DimSize`")?;
        let interleaved = fields.number("ElementNumberOfChannels")?.unwrap_or(1);
        if size.contains(&0) || interleaved == 0 {
            return Err(format!(
                "it holds no voxel: DimSize is {size:?} of {interleaved} channels"
            ));
        }
        let geometry = geometry(&fields, axes)?;
        let volumes = if axes == 4 {
            size.pop().unwrap_or(1)
        } else {
            1
        };
        let kind = fields
            .get(&["ElementType"])
            .ok_or("it has no field `ElementType`")?;
        let element = TYPES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(kind.trim_end_matches("_ARRAY")))
            .map(|t| t.1)
            .ok_or_else(|| format!("ElementType is `{kind}`, which is none of the number types"))?;
        let packing = match fields.get(&["BinaryData"]) {
            Some(v) if v.starts_with(['F', 'f', '0']) => None,
            _ if fields.is_true(&["CompressedData"]) => Some(Packing::Zlib),
            _ => Some(Packing::Plain),
        };
        let header_size = fields.number("HeaderSize")?.unwrap_or(0);
        if header_size < -1 {
            return Err(format!("HeaderSize is {header_size}, expected -1 or more"));
        }
        let place = fields
            .get(&["ElementDataFile"])
            .ok_or("it has no field `ElementDataFile`")?;
        let files = match place {
            "" => return Err("ElementDataFile names no file".into()),
            "LOCAL" | "Local" | "local" => Vec::new(),
            // The names follow, one a line; `LIST 2D` says that each holds a slice.
            list if list.split_whitespace().next() == Some("LIST") => {
                let listed = listed.iter().map(|line| line.trim());
                let listed: Vec<String> = listed
                    .filter(|line| !line.is_empty())
                    .map(str::to_owned)
                    .collect();
                if listed.is_empty() {
                    return Err("ElementDataFile is LIST, but no file is listed".into());
                }
                listed
            }
            names_ => names(names_)?,
        };
        Ok(Self {
            big_endian: fields.is_true(&["ElementByteOrderMSB", "BinaryDataByteOrderMSB"]),
            size,
            volumes,
            interleaved,
            element,
            packing,
            header_size,
            files,
            geometry,
        })
    }
}

/// Place of the first two or three of `axes` axes.
fn geometry(fields: &Fields, axes: usize) -> Parsed<Geometry> {
    let dims = axes.min(3);
    let spacing: Vec<f64> = fields
        .numbers(&["ElementSpacing", "ElementSize"], axes)?
        .unwrap_or(vec![1.0; axes]);
    let origin: Vec<f64> = fields
        .numbers(&["Offset", "Position", "Origin"], axes)?
        .unwrap_or(vec![0.0; axes]);
    let mut direction = Geometry::unit(dims).direction;
    if let Some(rows) =
        fields.numbers::<f64>(&["TransformMatrix", "Orientation", "Rotation"], axes * axes)?
    {
        for axis in 0..dims {
            for world in 0..dims {
                direction[world * dims + axis] = rows[axis * axes + world];
            }
        }
    }
    Geometry::new(
        spacing[..dims].iter().rev().copied().collect(),
        origin[..dims].to_vec(),
        direction,
    )
}

fn open(path: &Path) -> Result<(Source, Header)> {
    let mut source = Source::open(path)?;
    let is_last = |line: &str| {
        line.split('=')
            .next()
            .is_some_and(|key| key.trim().eq_ignore_ascii_case("ElementDataFile"))
    };
    let header = source
        .lines_until(is_last)
        .and_then(|lines| {
            let has_list = lines
                .last()
                .and_then(|line| line.split_once('='))
                .is_some_and(|(_, value)| value.trim().starts_with("LIST"));
            let listed = match has_list {
                true => source.lines_until(|_| false)?,
                false => Vec::new(),
            };
            Header::parse(&lines, &listed)
        })
        .map_err(|problem| DataError::damaged(path, FORMAT, problem))?;
    Ok((source, header))
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    Ok(open(path)?.1.size.into_iter().rev().collect())
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    let damaged = |problem: &str| DataError::damaged(path, FORMAT, problem);
    let (source, header) = open(path)?;
    let mut shape: Vec<usize> = header.size.iter().rev().copied().collect();
    let channel_axis = match (header.volumes, header.interleaved) {
        (volumes, 1) => {
            shape.insert(0, volumes);
            0
        }
        (1, interleaved) => {
            shape.push(interleaved);
            shape.len() - 1
        }
        _ => return Err(damaged("it has both a fourth axis and several channels")),
    };
    let numbers = if header.files.is_empty() {
        voxels(source, &header, 1).map_err(|problem| damaged(&problem))?
    } else {
        detached::read(path, FORMAT, &header.files, |mut source| {
            if header.header_size > 0 {
                let skipped = source.skip(header.header_size);
                skipped.map_err(|e| e.to_string())?;
            }
            voxels(source, &header, header.files.len())
        })?
    };
    Ok(Stored {
        numbers,
        shape,
        channel_axis: Some(channel_axis),
        geometry: header.geometry,
    })
}

/// The voxels of one of `files` files, which share them equally.
fn voxels(mut source: Source, header: &Header, files: usize) -> Parsed<Numbers> {
    let wrong = "its header declares more voxels than the file can hold";
    let all = count(&header.size, header.interleaved)
        .and_then(|n| n.checked_mul(header.volumes as u64))
        .ok_or(wrong)?;
    let files = files.max(1) as u64;
    if all % files != 0 {
        return Err(format!("{all} voxels cannot be shared by {files} files"));
    }
    let voxels = all / files;
    let bytes = voxels.checked_mul(header.element.width() as u64);
    let Some(packing) = header.packing else {
        return source.numbers(voxels).map(Numbers::Real);
    };
    if header.header_size == -1 {
        let bytes = bytes
            .filter(|&n| n <= source.length && packing == Packing::Plain)
            .ok_or(wrong)?;
        source.skip(-(bytes as i64)).map_err(|e| e.to_string())?;
    }
    let bytes = source.unpack(packing, 0, bytes)?;
    Ok(Numbers::Raw {
        bytes,
        element: header.element,
        big_endian: header.big_endian,
    })
}

pub(super) fn write(path: &Path, pixels: &Pixels, geometry: &Geometry) -> Result<()> {
    let detached = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("mhd"));
    let data_file = path.with_extension("zraw");
    let mut packed = Vec::new();
    {
        let mut encoder = ZlibEncoder::new(&mut packed, flate2::Compression::default());
        encoder
            .write_all(&pixels.interleaved_bytes(false))
            .and_then(|()| encoder.finish().map(|_| ()))
            .map_err(|e| DataError::writing(path, e))?;
    }
    let place = match detached {
        true => data_file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        false => "LOCAL".into(),
    };
    let header = head(pixels, geometry, packed.len(), &place);
    if !detached {
        return atomically(path, |out| {
            out.write_all(header.as_bytes())?;
            out.write_all(&packed)
        });
    }
    atomically(&data_file, |out| out.write_all(&packed))?;
    atomically(path, |out| out.write_all(header.as_bytes()))
}

fn head(pixels: &Pixels, geometry: &Geometry, packed: usize, place: &str) -> String {
    let element = pixels.element();
    let kind = TYPES
        .iter()
        .find(|t| t.1 == element)
        .map_or("MET_FLOAT", |t| t.0);
    let spatial = pixels.spatial_size();
    let dims = spatial.len();
    let list = |numbers: &mut dyn Iterator<Item = String>| numbers.collect::<Vec<_>>().join(" ");
    let rows = (0..dims * dims).map(|i| geometry.direction[(i % dims) * dims + i / dims]);
    let channels = match pixels.channels() {
        1 => String::new(),
        n => format!("ElementNumberOfChannels = {n}\n"),
    };
    format!(
        "ObjectType = Image\nNDims = {dims}\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\nCompressedDataSize = {packed}\nTransformMatrix = {}\nOffset = {}\nCenterOfRotation = {}\nElementSpacing = {}\nDimSize = {}\n{channels}ElementType = {kind}\nElementDataFile = {place}\n",
        list(&mut rows.map(|v| v.to_string())),
        list(&mut geometry.origin.iter().map(f64::to_string)),
        list(&mut (0..dims).map(|_| "0".to_string())),
        list(&mut geometry.spacing.iter().rev().map(f64::to_string)),
        list(&mut spatial.iter().rev().map(usize::to_string)),
    )
}
