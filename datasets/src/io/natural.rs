//! PNG (read and written), JPEG and BMP (read). Grey values stay as stored: 0..=255 or 0..=65535; a one-bit image becomes 0 and 1, a palette
//! image RGB, and alpha is a channel.

use std::io::Read;
use std::path::Path;

use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageReader};
use ndarray::IxDyn;

use crate::io::element::Element;
use crate::io::source::{Source, LARGEST_EXPANSION};
use crate::io::stored::{Numbers, Stored};
use crate::io::{atomically, Pixels};
use crate::{DataError, Geometry, Image, Result};

const FORMAT: &str = "an image";

/// Memory that any file may ask for, however short it is.
const SMALL: u64 = 64 << 20;

type Reader = ImageReader<std::io::BufReader<std::fs::File>>;

/// An opened file, and the most bytes that its pixels may take.
fn open(path: &Path) -> Result<(Reader, u64)> {
    let source = Source::open(path)?;
    let mut reader = ImageReader::new(source.reader)
        .with_guessed_format()
        .map_err(|e| DataError::reading(path, e))?;
    let most_bytes = SMALL.max(source.length.saturating_mul(LARGEST_EXPANSION));
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(most_bytes);
    reader.limits(limits);
    Ok((reader, most_bytes))
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    let (width, height) = open(path)?
        .0
        .into_dimensions()
        .map_err(|e| DataError::damaged(path, FORMAT, e))?;
    Ok(vec![height as usize, width as usize])
}

/// The picture as it is stored, whole.
fn decode(path: &Path) -> Result<DynamicImage> {
    let damaged = |e: image::ImageError| DataError::damaged(path, FORMAT, e);
    let (reader, most_bytes) = open(path)?;
    let is_jpeg = reader.format() == Some(image::ImageFormat::Jpeg);
    if is_jpeg && jpeg_is_cut(&std::fs::read(path).map_err(|e| DataError::reading(path, e))?) {
        return Err(DataError::damaged(
            path,
            FORMAT,
            "the file ends before its picture does",
        ));
    }
    let decoder = reader.into_decoder().map_err(damaged)?;
    if decoder.total_bytes() > most_bytes {
        let (width, height) = decoder.dimensions();
        let problem =
            format!("its header declares {width} x {height} pixels, more than the file can hold");
        return Err(DataError::damaged(path, FORMAT, problem));
    }
    DynamicImage::from_decoder(decoder).map_err(damaged)
}

/// The picture in 8-bit RGB: grey three times, 16 bits rounded, without its alpha.
pub(super) fn read_rgb(path: &Path) -> Result<image::RgbImage> {
    Ok(decode(path)?.into_rgb8())
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    let mut decoded = decode(path)?;
    let colour = decoded.color();
    let channels = usize::from(colour.channel_count());
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let element = match usize::from(colour.bytes_per_pixel()) / channels.max(1) {
        1 => Element::U8,
        2 => Element::U16,
        _ => {
            let problem = format!("unknown pixel type {colour:?}");
            return Err(DataError::damaged(path, FORMAT, problem));
        }
    };
    if is_one_bit(path)? {
        if let DynamicImage::ImageLuma8(grey) = &mut decoded {
            grey.iter_mut().for_each(|v| *v = u8::from(*v > 0));
        }
    }
    Ok(Stored {
        numbers: Numbers::native(decoded.into_bytes(), element),
        shape: vec![height, width, channels],
        channel_axis: Some(2),
        geometry: Geometry::unit(2),
    })
}

/// Whether a JPEG ends before its picture does. The decoder paints what a cut file lacks in grey; a whole file has an end marker after the
/// start of its scan. Other files are never cut in this sense.
pub fn jpeg_is_cut(bytes: &[u8]) -> bool {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return false;
    }
    // Segments are skipped by their length, for a thumbnail among them has an end marker of its own.
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == 0xda {
            return !bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]);
        }
        // Padding before a marker.
        at += if marker == 0xff {
            1
        } else {
            2 + usize::from(u16::from_be_bytes([high, low]))
        };
    }
    true
}

/// Whether a PNG's header says grey of one bit, which the decoder widens to 0 and 255 without a word.
fn is_one_bit(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| DataError::reading(path, e))?;
    file.take(26)
        .read_to_end(&mut start)
        .map_err(|e| DataError::reading(path, e))?;
    // Signature, chunk length and name, width, height; then bit depth and colour type.
    Ok(start.starts_with(b"\x89PNG") && start.get(24..26) == Some(&[1, 0]))
}

/// Writes a picture of one to four channels of whole numbers as PNG, of 8 bit where they fit and 16 otherwise.
pub fn write_picture(path: &Path, image: &Image) -> Result<()> {
    let refused = |what: String| DataError::NotSupported {
        path: path.into(),
        what,
        remedy: "write the image as .nii.gz".into(),
    };
    let &[channels, height, width] = image.data.shape() else {
        return Err(refused(format!(
            "a picture of shape {:?}",
            image.data.shape()
        )));
    };
    let most = image.data.iter().fold(0.0f32, |most, v| most.max(*v));
    let is_pixel = |v: &f32| v.fract() == 0.0 && (0.0..=f32::from(u16::MAX)).contains(v);
    if !image.data.iter().all(is_pixel) {
        return Err(refused(
            "a picture of other than whole numbers from 0 to 65535".into(),
        ));
    }
    let wide = most > 255.0;
    let colour = match (channels, wide) {
        (1, false) => ExtendedColorType::L8,
        (1, true) => ExtendedColorType::L16,
        (2, false) => ExtendedColorType::La8,
        (2, true) => ExtendedColorType::La16,
        (3, false) => ExtendedColorType::Rgb8,
        (3, true) => ExtendedColorType::Rgb16,
        (4, false) => ExtendedColorType::Rgba8,
        (4, true) => ExtendedColorType::Rgba16,
        _ => return Err(refused(format!("a picture of {channels} channels"))),
    };
    // (C, H, W) -> (H, W, C)
    let pixels = image.data.view().permuted_axes(IxDyn(&[1, 2, 0]));
    let bytes: Vec<u8> = match wide {
        true => pixels
            .iter()
            .flat_map(|&v| (v as u16).to_ne_bytes())
            .collect(),
        false => pixels.iter().map(|&v| v as u8).collect(),
    };
    encode(path, &bytes, (width, height), colour)
}

fn encode(
    path: &Path,
    bytes: &[u8],
    (width, height): (usize, usize),
    colour: ExtendedColorType,
) -> Result<()> {
    atomically(path, |out| {
        image::codecs::png::PngEncoder::new(out)
            .write_image(bytes, width as u32, height as u32, colour)
            .map_err(|e| match e {
                image::ImageError::IoError(e) => e,
                other => std::io::Error::other(other),
            })
    })
}

pub(super) fn write_labels(path: &Path, pixels: &Pixels, _: &Geometry) -> Result<()> {
    let &[height, width] = pixels.spatial_size() else {
        return Err(DataError::NotSupported {
            path: path.into(),
            what: format!("a label map of size {:?} in a PNG", pixels.spatial_size()),
            remedy: "write volumes as .nii.gz".into(),
        });
    };
    let colour = match pixels.element() {
        Element::U8 => ExtendedColorType::L8,
        _ => ExtendedColorType::L16,
    };
    let bytes = pixels.bytes(cfg!(target_endian = "big"));
    encode(path, &bytes, (width, height), colour)
}
