//! NumPy's arrays: `.npy`, and `.npz` archives with members `image` and `label`, as TransUNet keeps the Synapse slices.
//!
//! Source: NEP 1, the format's description. The header is parsed here: the crate for it builds a tree of whatever literal stands there, as
//! deep as the file likes, and asks for as much memory as the shape says.

use std::io::{Cursor, Read};
use std::path::Path;

use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use zip::ZipArchive;

use crate::io::arrays::{self, Role};
use crate::io::element::{decode, Element};
use crate::io::source::{count, exactly, Parsed, Source, LARGEST_EXPANSION};
use crate::io::stored::{Numbers, Stored};
use crate::{DataError, Result};

const FORMAT: &str = "NumPy";

/// The longest header that NumPy itself accepts is 10000 bytes.
const LONGEST_HEADER: usize = 10_000;

/// What the header says.
struct Header {
    element: Element,
    big_endian: bool,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    fn read(stream: &mut dyn Read) -> Parsed<Self> {
        let mut bytes = |count: usize| -> Parsed<Vec<u8>> {
            let mut bytes = Vec::new();
            let read = Read::take(&mut *stream, count as u64).read_to_end(&mut bytes);
            match read.map_err(|e| e.to_string())? {
                n if n == count => Ok(bytes),
                _ => Err("it ends inside the header".into()),
            }
        };
        let start = bytes(8)?;
        if !start.starts_with(b"\x93NUMPY") {
            return Err("it does not begin with NumPy's signature".into());
        }
        let length = match start[6] {
            1 => {
                let b = bytes(2)?;
                u16::from_le_bytes([b[0], b[1]]) as usize
            }
            2 | 3 => {
                let b = bytes(4)?;
                u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize
            }
            version => return Err(format!("its version is {version}, expected 1 to 3")),
        };
        if length > LONGEST_HEADER {
            return Err(format!(
                "its header is of {length} bytes, more than {LONGEST_HEADER}"
            ));
        }
        Self::parse(&String::from_utf8_lossy(&bytes(length)?))
    }

    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (56, 55), }`
    fn parse(text: &str) -> Parsed<Self> {
        let field = |name: &str| -> Parsed<&str> {
            let quoted = [format!("'{name}'"), format!("\"{name}\"")];
            let after = quoted.iter().find_map(|q| text.split_once(q.as_str()));
            let value = after.and_then(|(_, rest)| rest.trim_start().strip_prefix(':'));
            value
                .map(str::trim_start)
                .ok_or_else(|| format!("its header has no field `{name}`"))
        };
        let descr = field("descr")?;
        let kind = descr
            .strip_prefix(['\'', '"'])
            .and_then(|d| d.split(['\'', '"']).next());
        let kind = kind.ok_or("its voxels are records of several fields")?;
        let (big_endian, code) = match kind.split_at_checked(1) {
            Some((">", code)) => (true, code),
            Some(("<" | "|" | "=", code)) => (false, code),
            _ => (false, kind),
        };
        let element = match code {
            "b1" | "u1" => Element::U8,
            "i1" => Element::I8,
            "u2" => Element::U16,
            "i2" => Element::I16,
            "u4" => Element::U32,
            "i4" => Element::I32,
            "u8" => Element::U64,
            "i8" => Element::I64,
            "f2" => Element::F16,
            "f4" => Element::F32,
            "f8" => Element::F64,
            _ => {
                return Err(format!(
                    "its voxels are of type `{kind}`, expected real numbers"
                ))
            }
        };
        let shape = field("shape")?;
        let inside = shape
            .strip_prefix('(')
            .and_then(|s| s.split_once(')'))
            .ok_or("its shape is no tuple")?;
        let shape = inside
            .0
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|s| s.trim_end_matches('L').parse().ok())
            .collect::<Option<Vec<usize>>>()
            .ok_or_else(|| format!("its shape is ({})", inside.0))?;
        Ok(Self {
            element,
            big_endian,
            fortran_order: field("fortran_order")?.starts_with("True"),
            shape,
        })
    }
}

/// Numbers, last axis fastest, and shape of an array out of a stream that holds at most `most` bytes.
fn array(stream: &mut dyn Read, most: u64) -> Parsed<(Numbers, Vec<usize>)> {
    let header = Header::read(stream)?;
    let bytes = count(&header.shape, header.element.width())
        .filter(|n| *n <= most)
        .ok_or_else(|| {
            format!(
                "its header declares the shape {:?}, more than the file can hold",
                header.shape
            )
        })?;
    let bytes = exactly(stream, 0, bytes)?;
    if !header.fortran_order {
        let numbers = Numbers::Raw {
            bytes,
            element: header.element,
            big_endian: header.big_endian,
        };
        return Ok((numbers, header.shape));
    }
    let values = decode(&bytes, header.element, header.big_endian, None);
    let array = ArrayD::from_shape_vec(IxDyn(&header.shape).f(), values);
    let array = array.map_err(|e| e.to_string())?;
    Ok((Numbers::Real(array.iter().copied().collect()), header.shape))
}

fn open(path: &Path, names: &[&str]) -> Result<(Numbers, Vec<usize>)> {
    let mut source = Source::open(path)?;
    let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
    let length = source.length;
    if !path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("npz"))
    {
        return array(&mut source.reader, length).map_err(damaged);
    }
    // Out of memory: the end of the archive is looked for byte by byte from behind, which in a file is two system calls each.
    let bytes = Cursor::new(source.rest().map_err(damaged)?);
    let mut archive = ZipArchive::new(bytes).map_err(|e| damaged(e.to_string()))?;
    let member = names
        .iter()
        .map(|n| format!("{n}.npy"))
        .find(|n| archive.file_names().any(|f| f == n));
    let Some(member) = member else {
        let mut found: Vec<&str> = archive.file_names().take(20).collect();
        found.sort_unstable();
        return Err(damaged(format!(
            "it holds {found:?}, expected a member {}",
            names.join(" or ")
        )));
    };
    let mut file = archive
        .by_name(&member)
        .map_err(|e| damaged(e.to_string()))?;
    array(&mut file, length.saturating_mul(LARGEST_EXPANSION))
        .map_err(|e| damaged(format!("{member}: {e}")))
}

fn load(path: &Path, role: Role) -> Result<Stored> {
    let (numbers, shape) = open(path, role.names())?;
    arrays::stored(path, FORMAT, numbers, shape)
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    load(path, Role::Image)
}

pub(super) fn read_labels(path: &Path) -> Result<Stored> {
    load(path, Role::Labels)
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    let Stored {
        mut shape,
        channel_axis,
        ..
    } = read(path)?;
    channel_axis.map(|axis| shape.remove(axis));
    Ok(shape)
}
