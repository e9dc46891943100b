//! One DICOM file: what its header says about pixels and place, and its frames.

use std::io::Read;
use std::path::Path;

use flate2::read::DeflateDecoder;

use super::parse::{Elements, Encoding, Parser, Value};
use super::pixels::Layout;
use crate::io::source::{Parsed, Source, LARGEST_EXPANSION};
use crate::{DataError, Result};

pub(super) const FORMAT: &str = "DICOM";

/// How the pixels are packed, by the name of the transfer syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Runs,
    Jpeg,
    JpegLs,
    Jpeg2000,
}

const IMPLICIT: Encoding = Encoding {
    explicit: false,
    big_endian: false,
};
const EXPLICIT: Encoding = Encoding {
    explicit: true,
    big_endian: false,
};
const BIG_ENDIAN: Encoding = Encoding {
    explicit: true,
    big_endian: true,
};
const DEFLATED: &str = "1.2.840.10008.1.2.1.99";

/// Transfer syntaxes that are read.
const SYNTAXES: &[(&str, Encoding, Packing)] = &[
    ("1.2.840.10008.1.2", IMPLICIT, Packing::Plain),
    ("1.2.840.10008.1.2.1", EXPLICIT, Packing::Plain),
    (DEFLATED, EXPLICIT, Packing::Plain),
    ("1.2.840.10008.1.2.2", BIG_ENDIAN, Packing::Plain),
    ("1.2.840.10008.1.2.5", EXPLICIT, Packing::Runs),
    // JPEG: baseline, extended, lossless, lossless of first order.
    ("1.2.840.10008.1.2.4.50", EXPLICIT, Packing::Jpeg),
    ("1.2.840.10008.1.2.4.51", EXPLICIT, Packing::Jpeg),
    ("1.2.840.10008.1.2.4.57", EXPLICIT, Packing::Jpeg),
    ("1.2.840.10008.1.2.4.70", EXPLICIT, Packing::Jpeg),
    // JPEG-LS without and with a tolerance, JPEG 2000 without and with loss.
    ("1.2.840.10008.1.2.4.80", EXPLICIT, Packing::JpegLs),
    ("1.2.840.10008.1.2.4.81", EXPLICIT, Packing::JpegLs),
    ("1.2.840.10008.1.2.4.90", EXPLICIT, Packing::Jpeg2000),
    ("1.2.840.10008.1.2.4.91", EXPLICIT, Packing::Jpeg2000),
];

/// A file with its bytes.
pub(super) struct DicomFile {
    bytes: Vec<u8>,
    elements: Elements,
    encoding: Encoding,
    packing: Packing,
    /// The colour space by name.
    colour: String,
    pub(super) layout: Layout,
    pub(super) frames: usize,
    /// Names the series.
    pub(super) series: String,
    /// What a person calls it.
    pub(super) description: String,
    pub(super) number: i64,
}

/// Where a frame lies.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Place {
    /// Position of the first pixel.
    pub(super) position: Option<[f64; 3]>,
    /// Directions of increasing column and row number.
    pub(super) axes: Option<[[f64; 3]; 2]>,
    /// Distance of rows and of columns.
    pub(super) spacing: Option<[f64; 2]>,
    /// Distance to the next slice, as the header claims.
    pub(super) between: Option<f64>,
    pub(super) slope: f64,
    pub(super) intercept: f64,
}

impl DicomFile {
    /// `None` for a file that is no DICOM image at all.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
        let mut source = Source::open(path)?;
        let bytes = source.rest().map_err(damaged)?;
        let Some(start) = start(&bytes) else {
            return Ok(None);
        };
        let mut parser = Parser::new(&bytes, start, EXPLICIT);
        let meta = parser.meta().map_err(damaged)?;
        let at = parser.position();
        let syntax = match text(&bytes, &meta, 0x0002_0010) {
            Some(syntax) => syntax,
            // Without a header of the file: its elements name their kinds, or do not.
            None => match bytes.get(at + 4..at + 6) {
                Some(kind) if kind.iter().all(u8::is_ascii_uppercase) => SYNTAXES[1].0.to_owned(),
                _ => SYNTAXES[0].0.to_owned(),
            },
        };
        if syntax.len() > 64 || !syntax.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(damaged(format!(
                "its transfer syntax is {syntax:?}, which is no name of one"
            )));
        }
        let known = SYNTAXES.iter().find(|s| s.0 == syntax);
        let &(_, encoding, packing) = known.ok_or_else(|| DataError::NotSupported {
            path: path.into(),
            what: format!("the DICOM transfer syntax {syntax}"),
            remedy: "save the series without compression (for example with `gdcmconv --raw`)"
                .into(),
        })?;
        let (bytes, at) = match syntax == DEFLATED {
            true => (inflated(&bytes[at..]).map_err(damaged)?, 0),
            false => (bytes, at),
        };
        let elements = Parser::new(&bytes, at, encoding).all().map_err(damaged)?;
        if !elements.contains_key(&0x7fe0_0010) {
            return Ok(None);
        }
        let number = |tag| number(&bytes, &elements, tag, encoding);
        let layout = layout(number).map_err(damaged)?;
        let mut colour = text(&bytes, &elements, 0x0028_0004).unwrap_or_default();
        colour = colour.chars().take(16).collect();
        let plain = matches!(colour.as_str(), "MONOCHROME1" | "MONOCHROME2" | "RGB" | "");
        // The decoders turn these into RGB.
        let decoded = match packing {
            Packing::Jpeg => colour.starts_with("YBR"),
            Packing::Jpeg2000 => matches!(colour.as_str(), "YBR_RCT" | "YBR_ICT"),
            _ => false,
        };
        if !plain && !decoded {
            return Err(DataError::NotSupported {
                path: path.into(),
                what: format!("the DICOM colour space {colour:?}"),
                remedy: "save the picture in RGB".into(),
            });
        }
        let frames = text(&bytes, &elements, 0x0028_0008)
            .and_then(|t| t.parse().ok())
            .unwrap_or(1);
        // Neither kind of name may be longer than 64 letters.
        let name = |tag| -> String {
            let text = text(&bytes, &elements, tag).unwrap_or_default();
            text.chars().take(64).collect()
        };
        let file = Self {
            frames,
            layout,
            colour,
            series: name(0x0020_000e),
            description: name(0x0008_103e),
            number: text(&bytes, &elements, 0x0020_0013)
                .and_then(|t| t.parse().ok())
                .unwrap_or(0),
            encoding,
            packing,
            elements,
            bytes,
        };
        let held = file.bytes.len() as u64 * LARGEST_EXPANSION;
        let declared = file.layout.frame().and_then(|f| f.checked_mul(frames));
        if frames == 0 || declared.is_none_or(|d| d as u64 > held) {
            return Err(damaged(format!("its header declares {frames} frames of {} x {} pixels, more than the file can hold", file.layout.rows, file.layout.columns)));
        }
        Ok(Some(file))
    }

    /// Where a frame lies, by the groups of its own, those of all frames, or the file as a whole.
    pub(super) fn place(&self, frame: usize) -> Place {
        let group = |tag: u32, index: usize| match self.elements.get(&tag) {
            Some(Value::Sequence(items)) => items.get(index),
            _ => None,
        };
        let groups = [group(0x5200_9230, frame), group(0x5200_9229, 0)];
        let numbers = |sequence: u32, tag: u32| -> Option<Vec<f64>> {
            let inner = groups
                .iter()
                .flatten()
                .find_map(|g| match g.get(&sequence) {
                    Some(Value::Sequence(items)) => {
                        items.first().and_then(|i| decimals(&self.bytes, i, tag))
                    }
                    _ => None,
                });
            inner.or_else(|| decimals(&self.bytes, &self.elements, tag))
        };
        let pair = |v: Vec<f64>| <[f64; 2]>::try_from(v).ok();
        let one = |v: Vec<f64>| v.first().copied();
        const MEASURES: u32 = 0x0028_9110;
        const VALUES: u32 = 0x0028_9145;
        Place {
            position: numbers(0x0020_9113, 0x0020_0032).and_then(|v| v.try_into().ok()),
            axes: numbers(0x0020_9116, 0x0020_0037).and_then(|v| match v[..] {
                [a, b, c, d, e, f] => Some([[a, b, c], [d, e, f]]),
                _ => None,
            }),
            spacing: numbers(MEASURES, 0x0028_0030)
                .or_else(|| decimals(&self.bytes, &self.elements, 0x0018_1164))
                .and_then(pair),
            between: numbers(MEASURES, 0x0018_0088)
                .or_else(|| numbers(MEASURES, 0x0018_0050))
                .and_then(one),
            slope: numbers(VALUES, 0x0028_1053).and_then(one).unwrap_or(1.0),
            intercept: numbers(VALUES, 0x0028_1052).and_then(one).unwrap_or(0.0),
        }
    }

    /// The rescaled numbers (C, H, W) of a frame.
    pub(super) fn frame(&self, frame: usize) -> Parsed<Vec<f32>> {
        let Place {
            slope, intercept, ..
        } = self.place(frame);
        let size = self.layout.frame().ok_or("its frame is too large")?;
        let pixels = self.elements.get(&0x7fe0_0010);
        let mut values = match (pixels, self.packing) {
            (Some(Value::Bytes(range)), _) => {
                let start = frame.checked_mul(size).map(|s| s + range.start);
                let bytes = start
                    .and_then(|s| self.bytes[..range.end].get(s..s.checked_add(size)?))
                    .ok_or_else(|| format!("it ends before the pixels of frame {frame}"))?;
                self.layout
                    .numbers(bytes, self.encoding.big_endian, self.layout.planar)
            }
            (Some(Value::Fragments(fragments)), packing) if packing != Packing::Plain => {
                let packed = self.packed(fragments, frame)?;
                let layout = &self.layout;
                match packing {
                    Packing::Runs => layout.numbers(&layout.unpack_runs(&packed)?, false, true),
                    Packing::JpegLs => {
                        layout.numbers(&layout.unpack_jpegls(&packed)?, false, false)
                    }
                    Packing::Jpeg2000 => {
                        layout.numbers(&layout.unpack_jpeg2000(&packed)?, false, false)
                    }
                    _ => {
                        let bytes = layout.unpack_jpeg(&packed, self.colour == "RGB")?;
                        layout.numbers(&bytes, cfg!(target_endian = "big"), false)
                    }
                }
            }
            _ => return Err("its pixels are not packed as the transfer syntax says".into()),
        };
        if (slope, intercept) != (1.0, 0.0) {
            for value in &mut values {
                *value = (f64::from(*value) * slope + intercept) as f32;
            }
        }
        Ok(values)
    }

    /// The packed bytes of a frame: a fragment each, all fragments of a single frame, or by the table of offsets.
    fn packed(&self, fragments: &[std::ops::Range<usize>], frame: usize) -> Parsed<Vec<u8>> {
        let (table, pieces) = fragments
            .split_first()
            .ok_or("its pixels have no fragments")?;
        let join = |pieces: &[std::ops::Range<usize>]| -> Vec<u8> {
            pieces
                .iter()
                .flat_map(|p| &self.bytes[p.clone()])
                .copied()
                .collect()
        };
        if self.frames == 1 {
            return Ok(join(pieces));
        }
        if pieces.len() == self.frames {
            return Ok(join(&pieces[frame..=frame]));
        }
        let offsets: Vec<usize> = self.bytes[table.clone()]
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
            .collect();
        // Offsets count from the first item's header, which is of eight bytes.
        let first = pieces.first().map_or(0, |p| p.start);
        let at = |frame: usize| offsets.get(frame).map(|o| o + first);
        let begin = at(frame).ok_or("its table of offsets lacks a frame")?;
        let end = at(frame + 1).unwrap_or(usize::MAX);
        let own: Vec<_> = pieces
            .iter()
            .filter(|p| (begin..end).contains(&p.start))
            .cloned()
            .collect();
        Ok(join(&own))
    }
}

/// Where the elements begin: after the signature, or at once in files without one.
fn start(bytes: &[u8]) -> Option<usize> {
    if bytes.get(128..132) == Some(b"DICM") {
        return Some(132);
    }
    // A group 0008 or 0002 at the beginning, with a short element.
    match bytes.get(..8)? {
        [2 | 8, 0, _, 0, a, b, ..] if a.is_ascii_uppercase() && b.is_ascii_uppercase() => Some(0),
        [8, 0, _, 0, _, _, 0, 0] => Some(0),
        _ => None,
    }
}

fn inflated(bytes: &[u8]) -> Parsed<Vec<u8>> {
    let mut inflated = Vec::new();
    let most = (bytes.len() as u64).saturating_mul(LARGEST_EXPANSION);
    let read = DeflateDecoder::new(bytes)
        .take(most)
        .read_to_end(&mut inflated);
    read.map_err(|e| e.to_string())?;
    Ok(inflated)
}

fn bytes_of<'a>(bytes: &'a [u8], elements: &Elements, tag: u32) -> Option<&'a [u8]> {
    match elements.get(&tag) {
        Some(Value::Bytes(range)) => bytes.get(range.clone()),
        _ => None,
    }
}

fn text(bytes: &[u8], elements: &Elements, tag: u32) -> Option<String> {
    const LONGEST: usize = 1024;
    let value = bytes_of(bytes, elements, tag)?;
    let value = String::from_utf8_lossy(&value[..value.len().min(LONGEST)]);
    let value = value.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!value.is_empty()).then(|| value.to_owned())
}

/// Decimal numbers between backslashes.
fn decimals(bytes: &[u8], elements: &Elements, tag: u32) -> Option<Vec<f64>> {
    let text = text(bytes, elements, tag)?;
    let numbers = text
        .split('\\')
        .map(|n| n.trim().parse::<f64>().ok().filter(|n| n.is_finite()));
    numbers.collect()
}

fn number(bytes: &[u8], elements: &Elements, tag: u32, encoding: Encoding) -> Option<u16> {
    let value = bytes_of(bytes, elements, tag)?;
    let value = [*value.first()?, *value.get(1)?];
    Some(match encoding.big_endian {
        true => u16::from_be_bytes(value),
        false => u16::from_le_bytes(value),
    })
}

fn layout(number: impl Fn(u32) -> Option<u16>) -> Parsed<Layout> {
    let needed =
        |tag: u32, name: &str| number(tag).ok_or_else(|| format!("it does not say its {name}"));
    let bits_allocated = needed(0x0028_0100, "bits allocated")?;
    let bits_stored = number(0x0028_0101).unwrap_or(bits_allocated);
    let layout = Layout {
        rows: needed(0x0028_0010, "rows")?.into(),
        columns: needed(0x0028_0011, "columns")?.into(),
        samples: number(0x0028_0002).unwrap_or(1).into(),
        planar: number(0x0028_0006) == Some(1),
        bits_allocated,
        bits_stored,
        high_bit: number(0x0028_0102).unwrap_or(bits_stored.saturating_sub(1)),
        signed: number(0x0028_0103) == Some(1),
    };
    let bits = (1..=bits_allocated).contains(&bits_stored)
        && layout.high_bit < bits_allocated
        && layout.high_bit + 1 >= bits_stored;
    if !matches!(bits_allocated, 8 | 16 | 32) || !bits {
        return Err(format!(
            "its pixels are of {bits_stored} bits up to bit {} of {bits_allocated}",
            layout.high_bit
        ));
    }
    if layout.rows == 0 || layout.columns == 0 || !matches!(layout.samples, 1 | 3 | 4) {
        return Err(format!(
            "its pixels are {} x {} of {} samples",
            layout.rows, layout.columns, layout.samples
        ));
    }
    Ok(layout)
}
