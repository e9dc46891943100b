//! [`Photo`] -> bytes of a file.

use std::io::Cursor;

use image::codecs::{bmp::BmpEncoder, jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};
use tiff::encoder::colortype::{ColorType, Gray16, Gray32Float, Gray8, RGB32Float, RGB16, RGB8};
use tiff::encoder::{Compression, TiffEncoder, TiffValue};
use tiff::tags::{ExtraSamples, Tag};

use super::{Format, Photo, PhotoError, Sample, Samples};

/// Bytes an EXIF block may have in a JPEG: a segment less its length and the words `Exif`.
const LARGEST_JPEG_EXIF: usize = 65535 - 2 - 6;

/// What the format cannot hold of the picture.
pub fn losses(photo: &Photo, format: Format) -> Vec<&'static str> {
    let mut lost = Vec::new();
    let deep = !matches!(photo.samples, Samples::U8(_));
    match format {
        Format::Jpeg | Format::WebP | Format::Bmp if deep => lost.push("more than 8 bits"),
        Format::Png if matches!(photo.samples, Samples::F32(_)) => {
            lost.push("floats (16 bits are written)")
        }
        _ => {}
    }
    if format == Format::Jpeg && photo.has_alpha() {
        lost.push("transparency (white is put behind)");
    }
    if format == Format::Bmp && photo.icc.is_some() {
        lost.push("a colour profile");
    }
    if matches!(format, Format::Bmp | Format::Tiff) && photo.exif.is_some() {
        lost.push("EXIF");
    }
    lost
}

/// The file's bytes. `quality` (1 to 100) is JPEG's; the other formats keep every value.
pub fn encode(photo: &Photo, format: Format, quality: u8) -> Result<Vec<u8>, PhotoError> {
    let most = match format {
        Format::Jpeg => 65535,
        Format::WebP => 16383,
        Format::Png | Format::Tiff | Format::Bmp => i32::MAX as usize,
    };
    if photo.width.max(photo.height) > most {
        return Err(PhotoError::Side {
            width: photo.width,
            height: photo.height,
            format: format.name(),
            most,
        });
    }
    let failed = |reason: String| PhotoError::Encode {
        format: format.name(),
        reason,
    };
    let mut out = Cursor::new(Vec::new());
    if format == Format::Tiff {
        encode_tiff(photo, &mut out).map_err(|e| failed(e.to_string()))?;
        return Ok(out.into_inner());
    }
    let (bytes, colour) = interleaved(photo, format);
    let (width, height) = (photo.width as u32, photo.height as u32);
    let done = match format {
        Format::Jpeg => {
            let exif = photo.exif.as_ref();
            let encoder = JpegEncoder::new_with_quality(&mut out, quality);
            let fits = |e: &&Vec<u8>| e.len() <= LARGEST_JPEG_EXIF;
            dress(encoder, photo.icc.as_ref(), exif.filter(fits))
                .write_image(&bytes, width, height, colour)
        }
        Format::Png => dress(
            PngEncoder::new(&mut out),
            photo.icc.as_ref(),
            photo.exif.as_ref(),
        )
        .write_image(&bytes, width, height, colour),
        Format::WebP => dress(
            WebPEncoder::new_lossless(&mut out),
            photo.icc.as_ref(),
            photo.exif.as_ref(),
        )
        .write_image(&bytes, width, height, colour),
        Format::Bmp | Format::Tiff => {
            BmpEncoder::new(&mut out).write_image(&bytes, width, height, colour)
        }
    };
    done.map_err(|e| failed(e.to_string()))?;
    Ok(out.into_inner())
}

/// What the picture carries is given to an encoder that takes it.
fn dress<E: ImageEncoder>(mut encoder: E, icc: Option<&Vec<u8>>, exif: Option<&Vec<u8>>) -> E {
    // An encoder that refuses has been named by `losses`.
    if let Some(icc) = icc {
        let _ = encoder.set_icc_profile(icc.clone());
    }
    if let Some(exif) = exif {
        let _ = encoder.set_exif_metadata(exif.clone());
    }
    encoder
}

/// Samples in native byte order, as the format takes them.
fn interleaved(photo: &Photo, format: Format) -> (Vec<u8>, ExtendedColorType) {
    use ExtendedColorType::*;
    let deep = format == Format::Png && !matches!(photo.samples, Samples::U8(_));
    if deep {
        let words: Vec<u16> = match &photo.samples {
            Samples::U16(s) => s.clone(),
            Samples::F32(s) => s.iter().map(|v| u16::of(*v)).collect(),
            Samples::U8(s) => s.iter().map(|v| u16::of(v.value())).collect(),
        };
        let colour = [L16, La16, Rgb16, Rgba16][photo.channels - 1];
        return (
            words.into_iter().flat_map(u16::to_ne_bytes).collect(),
            colour,
        );
    }
    let bytes: Vec<u8> = match &photo.samples {
        Samples::U8(s) => s.clone(),
        Samples::U16(s) => s.iter().map(|v| u8::of(v.value())).collect(),
        Samples::F32(s) => s.iter().map(|v| u8::of(*v)).collect(),
    };
    match (format, photo.channels) {
        (Format::Jpeg, 2 | 4) => {
            let colours = photo.channels - 1;
            let mut flat = Vec::with_capacity(bytes.len() / photo.channels * colours);
            for pixel in bytes.chunks_exact(photo.channels) {
                let alpha = u32::from(pixel[colours]);
                let over = |v: &u8| (u32::from(*v) * alpha + 255 * (255 - alpha) + 127) / 255;
                flat.extend(pixel[..colours].iter().map(|v| over(v) as u8));
            }
            (flat, if colours == 1 { L8 } else { Rgb8 })
        }
        // BMP knows grey without alpha and RGB with it.
        (Format::Bmp, 2) => {
            let rgba = bytes.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]);
            (rgba.collect(), Rgba8)
        }
        (_, channels) => (bytes, [L8, La8, Rgb8, Rgba8][channels - 1]),
    }
}

fn encode_tiff(photo: &Photo, out: &mut Cursor<Vec<u8>>) -> tiff::TiffResult<()> {
    match (&photo.samples, photo.is_grey()) {
        (Samples::U8(s), true) => tiff_of::<Gray8>(photo, s, out),
        (Samples::U8(s), false) => tiff_of::<RGB8>(photo, s, out),
        (Samples::U16(s), true) => tiff_of::<Gray16>(photo, s, out),
        (Samples::U16(s), false) => tiff_of::<RGB16>(photo, s, out),
        (Samples::F32(s), true) => tiff_of::<Gray32Float>(photo, s, out),
        (Samples::F32(s), false) => tiff_of::<RGB32Float>(photo, s, out),
    }
}

fn tiff_of<C: ColorType>(
    photo: &Photo,
    samples: &[C::Inner],
    out: &mut Cursor<Vec<u8>>,
) -> tiff::TiffResult<()>
where
    [C::Inner]: TiffValue,
{
    let mut encoder = TiffEncoder::new(out)?.with_compression(Compression::Deflate(
        tiff::encoder::compression::DeflateLevel::Balanced,
    ));
    let mut image = encoder.new_image::<C>(photo.width as u32, photo.height as u32)?;
    if let Some(icc) = &photo.icc {
        image.encoder().write_tag(Tag::IccProfile, icc.as_slice())?;
    }
    if photo.has_alpha() {
        image.extra_samples(&[ExtraSamples::UnassociatedAlpha])?;
    }
    image.write_data(samples)
}
