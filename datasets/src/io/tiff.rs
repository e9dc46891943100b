//! TIFF and BigTIFF: a page is a picture, several pages of one size are a volume. Values stay as stored; colours are channels, a palette's
//! indices are the values. Deflate, LZW, PackBits and JPEG are read, deflate is written.
//!
//! Source: the format's specification, revision 6; decoding is the crate `tiff`'s. A TIFF has no spacing in three axes: nnU-Net keeps it
//! in a file `CASE.json` beside, `{"spacing": [z, y, x]}`, which is read and written here.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::encoder::{colortype, Compression, TiffEncoder};
use tiff::tags::{PhotometricInterpretation, Tag};
use tiff::ColorType;

use crate::io::element::Element;
use crate::io::source::{Parsed, Source};
use crate::io::stored::{Numbers, Stored};
use crate::io::{atomically, Pixels};
use crate::{DataError, Geometry, Result};

const FORMAT: &str = "TIFF";

/// Memory that any file may ask for, however short it is.
const SMALL: u64 = 16 << 20;
/// LZW expands a constant image by up to about 2700.
const LARGEST_EXPANSION: u64 = 3000;

/// The file with the spacing.
#[derive(Serialize, Deserialize)]
struct Beside {
    spacing: Vec<f64>,
}

/// Pages of one size; those that are smaller copies of others are left out.
struct Pages {
    decoder: Decoder<std::io::BufReader<std::fs::File>>,
    /// Width, height and channels of the first.
    first: Option<(u32, u32, ColorType)>,
    most_bytes: u64,
}

impl Pages {
    fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        let most_bytes = SMALL.max(source.length.saturating_mul(LARGEST_EXPANSION));
        let mut limits = Limits::default();
        limits.decoding_buffer_size = usize::try_from(most_bytes).unwrap_or(usize::MAX);
        limits.intermediate_buffer_size = limits.decoding_buffer_size;
        limits.ifd_value_size = usize::try_from(source.length).unwrap_or(usize::MAX);
        let decoder = Decoder::new(source.reader)
            .map_err(|e| DataError::damaged(path, FORMAT, e))?
            .with_limits(limits);
        Ok(Self {
            decoder,
            first: None,
            most_bytes,
        })
    }

    /// Whether the page is a picture of its own, of the size of those before.
    fn counts(&mut self) -> Parsed<bool> {
        const REDUCED: u32 = 1;
        let kind = self.decoder.find_tag(Tag::NewSubfileType);
        let kind = kind.map_err(|e| e.to_string())?;
        if kind
            .and_then(|v| v.into_u32().ok())
            .is_some_and(|v| v & REDUCED != 0)
        {
            return Ok(false);
        }
        let (width, height) = self.decoder.dimensions().map_err(|e| e.to_string())?;
        let colour = self.decoder.colortype().map_err(|e| e.to_string())?;
        let found = (width, height, colour);
        let first = *self.first.get_or_insert(found);
        if found != first {
            return Err(format!(
                "its pages differ: {} x {} of {:?} and {width} x {height} of {colour:?}",
                first.0, first.1, first.2
            ));
        }
        Ok(true)
    }

    /// Goes to the next page, if there is one.
    fn advance(&mut self) -> Parsed<bool> {
        if !self.decoder.more_images() {
            return Ok(false);
        }
        self.decoder.next_image().map_err(|e| e.to_string())?;
        Ok(true)
    }

    /// Size in array order.
    fn size(&self, count: usize) -> Vec<usize> {
        let (width, height, _) = self.first.unwrap_or((0, 0, ColorType::Gray(8)));
        let plane = [height as usize, width as usize];
        match count {
            1 => plane.to_vec(),
            _ => vec![count, plane[0], plane[1]],
        }
    }
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    let mut pages = Pages::open(path)?;
    let mut count = || -> Parsed<usize> {
        let mut count = usize::from(pages.counts()?);
        while pages.advance()? {
            count += usize::from(pages.counts()?);
        }
        Ok(count)
    };
    let count = count().map_err(|e| DataError::damaged(path, FORMAT, e))?;
    Ok(pages.size(count))
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
    let mut pages = Pages::open(path)?;
    let mut numbers: Option<Numbers> = None;
    let (mut samples, mut planar) = (1, false);
    let (mut count, mut bytes) = (0, 0u64);
    loop {
        if pages.counts().map_err(damaged)? {
            let page = page(&mut pages.decoder).map_err(damaged)?;
            bytes += 4 * page.pixels as u64;
            if bytes > pages.most_bytes.saturating_mul(4) {
                return Err(damaged(
                    "its pages hold more pixels than the file can".into(),
                ));
            }
            if count > 0 && page.planar != planar {
                return Err(damaged(
                    "some of its pages keep colours side by side, others plane by plane".into(),
                ));
            }
            (samples, planar) = (page.samples, page.planar);
            count += 1;
            match &mut numbers {
                None => numbers = Some(page.numbers),
                Some(all) => all.append(page.numbers),
            }
        }
        if !pages.advance().map_err(damaged)? {
            break;
        }
    }
    let size = pages.size(count);
    let (mut shape, beyond) = (size.clone(), size.len() - 2);
    let channel_axis = if planar { beyond } else { size.len() };
    shape.insert(channel_axis, samples);
    Ok(Stored {
        numbers: numbers.ok_or_else(|| damaged("it holds no picture".into()))?,
        shape,
        channel_axis: Some(channel_axis),
        geometry: geometry(path, size.len())?,
    })
}

/// The pixels of a page.
struct Page {
    numbers: Numbers,
    /// How many of them.
    pixels: usize,
    /// Numbers of a pixel.
    samples: usize,
    /// Whether each of those has a plane of its own; otherwise they lie side by side.
    planar: bool,
}

/// The page that the decoder is at.
fn page(decoder: &mut Decoder<std::io::BufReader<std::fs::File>>) -> Parsed<Page> {
    let told = |e: tiff::TiffError| e.to_string();
    let (width, height) = decoder.dimensions().map_err(told)?;
    let colour = decoder.colortype().map_err(told)?;
    let inverted = decoder
        .find_tag(Tag::PhotometricInterpretation)
        .map_err(told)?
        .and_then(|v| v.into_u16().ok())
        == Some(PhotometricInterpretation::WhiteIsZero.to_u16());
    let mut pixels = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut pixels).map_err(told)?;
    if pixels.as_buffer(0).as_bytes().len() < layout.complete_len {
        return Err("its pixels are more than the file can hold".into());
    }
    let (width, height) = (width as usize, height as usize);
    let samples = usize::from(colour.num_samples());
    let element = match &pixels {
        DecodingResult::U8(_) => Element::U8,
        DecodingResult::I8(_) => Element::I8,
        DecodingResult::U16(_) => Element::U16,
        DecodingResult::I16(_) => Element::I16,
        DecodingResult::U32(_) => Element::U32,
        DecodingResult::I32(_) => Element::I32,
        DecodingResult::U64(_) => Element::U64,
        DecodingResult::I64(_) => Element::I64,
        DecodingResult::F16(_) => Element::F16,
        DecodingResult::F32(_) => Element::F32,
        DecodingResult::F64(_) => Element::F64,
    };
    let bytes = match pixels {
        DecodingResult::U8(bytes) if colour.bit_depth() < 8 => unpacked(
            &bytes,
            colour.bit_depth(),
            width * samples / layout.planes.max(1),
        )?,
        DecodingResult::U8(bytes) => bytes,
        mut wider => wider.as_buffer(0).as_bytes().to_vec(),
    };
    let pixels = bytes.len() / element.width();
    let mut numbers = Numbers::native(bytes, element);
    if inverted {
        let mut values = numbers.real();
        uninvert(&mut values, colour.bit_depth(), layout.sample_format);
        numbers = Numbers::Real(values);
    }
    if samples == 0 || pixels != width * height * samples {
        return Err(format!(
            "it has {pixels} numbers for {width} x {height} pixels of {samples}"
        ));
    }
    Ok(Page {
        numbers,
        pixels,
        samples,
        planar: layout.planes > 1,
    })
}

/// Numbers of less than a byte, rows beginning on whole bytes.
fn unpacked(bytes: &[u8], bits: u8, row: usize) -> Parsed<Vec<u8>> {
    if !matches!(bits, 1 | 2 | 4) {
        return Err(format!("its numbers are of {bits} bits"));
    }
    let per_byte = 8 / usize::from(bits);
    let mask = (1u8 << bits) - 1;
    let rows = bytes.chunks(row.div_ceil(per_byte).max(1));
    Ok(rows
        .flat_map(|bytes| {
            (0..row).filter_map(move |i| {
                let shift = 8 - bits - bits * (i % per_byte) as u8;
                Some(bytes.get(i / per_byte)? >> shift & mask)
            })
        })
        .collect())
}

/// The decoder turns grey round where white is zero; the stored number is what other readers give.
fn uninvert(values: &mut [f32], bits: u8, format: tiff::tags::SampleFormat) {
    let top = match format {
        tiff::tags::SampleFormat::IEEEFP => 1.0,
        _ => 2f64.powi(bits.into()) - 1.0,
    };
    for value in values {
        *value = (top - f64::from(*value)) as f32;
    }
}

/// The files that may hold the spacing: for an image without its channel number, for a label map with the whole name.
fn beside(path: &Path) -> Vec<PathBuf> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let number = stem
        .rsplit_once('_')
        .filter(|(id, n)| !id.is_empty() && n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit()));
    let names = [number.map(|(id, _)| id.to_owned()), Some(stem.into_owned())];
    names
        .into_iter()
        .flatten()
        .map(|name| path.with_file_name(format!("{name}.json")))
        .collect()
}

fn geometry(path: &Path, dims: usize) -> Result<Geometry> {
    let Some(file) = beside(path).into_iter().find(|file| file.is_file()) else {
        return Ok(Geometry::unit(dims));
    };
    let text = std::fs::read_to_string(&file).map_err(|e| DataError::reading(&file, e))?;
    // A file of another purpose has no such field.
    let wrong = |problem: String| DataError::json(&file, "spacing", problem);
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) else {
        return Err(DataError::json(&file, "(whole file)", "it is no JSON"));
    };
    let Some(field) = value.get("spacing") else {
        return Ok(Geometry::unit(dims));
    };
    let spacing: Vec<f64> = serde_json::from_value(field.clone())
        .map_err(|e| wrong(format!("{e}; expected {dims} numbers, slowest axis first")))?;
    if spacing.len() < dims {
        return Err(wrong(format!(
            "it has {} numbers, expected {dims}, slowest axis first",
            spacing.len()
        )));
    }
    // nnU-Net gives a picture a first axis of one slice.
    let spacing = spacing[spacing.len() - dims..].to_vec();
    let unit = Geometry::unit(dims);
    Geometry::new(spacing, unit.origin, unit.direction).map_err(wrong)
}

pub(super) fn write(path: &Path, pixels: &Pixels, geometry: &Geometry) -> Result<()> {
    let size = pixels.spatial_size();
    let (plane, unlike) = (&size[size.len() - 2..], pixels.channels() != 1);
    let sides = (u32::try_from(plane[1]), u32::try_from(plane[0]));
    let (Ok(width), Ok(height), false) = (sides.0, sides.1, unlike) else {
        return Err(DataError::NotSupported {
            path: path.into(),
            what: format!("{} channels of size {size:?} in a TIFF", pixels.channels()),
            remedy: "write it as .nii.gz".into(),
        });
    };
    let encoded = encode(pixels, width, height).map_err(|e| {
        let error = std::io::Error::other(e);
        DataError::writing(path, error)
    })?;
    if geometry.spacing.iter().any(|s| *s != 1.0) || size.len() == 3 {
        let file = path.with_extension("json");
        let text = serde_json::to_string(&Beside {
            spacing: geometry.spacing.clone(),
        })
        .map_err(|e| DataError::writing(&file, e.into()))?;
        atomically(&file, |out| out.write_all(text.as_bytes()))?;
    }
    atomically(path, |out| out.write_all(&encoded))
}

fn encode(pixels: &Pixels, width: u32, height: u32) -> tiff::TiffResult<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    let plane = width as usize * height as usize;
    let bytes = pixels.bytes(false);
    {
        let mut encoder =
            TiffEncoder::new(&mut file)?.with_compression(Compression::Deflate(Default::default()));
        for page in bytes.chunks(plane * pixels.element().width()) {
            match pixels.element() {
                Element::U8 => encoder.write_image::<colortype::Gray8>(width, height, page)?,
                Element::I16 => {
                    let page: Vec<u16> = page
                        .chunks_exact(2)
                        .map(|b| u16::from_le_bytes([b[0], b[1]]))
                        .collect();
                    encoder.write_image::<colortype::Gray16>(width, height, &page)?;
                }
                _ => {
                    let page: Vec<f32> = page
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                        .collect();
                    encoder.write_image::<colortype::Gray32Float>(width, height, &page)?;
                }
            }
        }
    }
    Ok(file.into_inner())
}
