//! Bytes of a file -> [`Photo`].

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use tiff::decoder::DecodingResult;
use tiff::ColorType as TiffColour;
use vision_mamba_datasets::io::jpeg_is_cut;

use super::{exif, Format, Photo, PhotoError, Samples};

/// Float values beyond this are not colours with some overshoot but another scale.
const LARGEST_OVERSHOOT: f32 = 2.0;

/// Reads a picture of any format, turned upright. Nothing beyond `most_bytes` is allocated for its pixels.
pub fn read(bytes: &[u8], most_bytes: u64) -> Result<Photo, PhotoError> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|e| PhotoError::Damaged(e.to_string()))?;
    let format = match reader.format() {
        Some(ImageFormat::Jpeg) => Format::Jpeg,
        Some(ImageFormat::Png) => Format::Png,
        Some(ImageFormat::Tiff) => Format::Tiff,
        Some(ImageFormat::WebP) => Format::WebP,
        Some(ImageFormat::Bmp) => Format::Bmp,
        _ => return Err(PhotoError::NoPicture),
    };
    if jpeg_is_cut(bytes) {
        return Err(PhotoError::Cut);
    }
    if format == Format::Tiff {
        if let Some((photo, orientation)) = read_grey_tiff(bytes, most_bytes)? {
            return finish(photo, orientation);
        }
    }
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(most_bytes);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > most_bytes {
        return Err(PhotoError::Large {
            width,
            height,
            needed: decoder.total_bytes() >> 20,
        });
    }
    // A broken block beside the pixels is no reason to lose them.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let icc = decoder.icc_profile().ok().flatten();
    let exif = decoder.exif_metadata().ok().flatten();
    let decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let channels = usize::from(decoded.color().channel_count());
    let samples = match decoded {
        DynamicImage::ImageLuma8(b) => Samples::U8(b.into_raw()),
        DynamicImage::ImageLumaA8(b) => Samples::U8(b.into_raw()),
        DynamicImage::ImageRgb8(b) => Samples::U8(b.into_raw()),
        DynamicImage::ImageRgba8(b) => Samples::U8(b.into_raw()),
        DynamicImage::ImageLuma16(b) => Samples::U16(b.into_raw()),
        DynamicImage::ImageLumaA16(b) => Samples::U16(b.into_raw()),
        DynamicImage::ImageRgb16(b) => Samples::U16(b.into_raw()),
        DynamicImage::ImageRgba16(b) => Samples::U16(b.into_raw()),
        DynamicImage::ImageRgb32F(b) => Samples::F32(b.into_raw()),
        DynamicImage::ImageRgba32F(b) => Samples::F32(b.into_raw()),
        other => {
            return Err(PhotoError::Damaged(format!(
                "pixels of type {:?}",
                other.color()
            )))
        }
    };
    let photo = Photo {
        width: width as usize,
        height: height as usize,
        channels,
        samples,
        icc,
        exif,
        format,
    };
    finish(photo, orientation)
}

/// What an error of the decoder says, as one printable line.
fn damaged(error: image::ImageError) -> PhotoError {
    if let image::ImageError::IoError(e) = &error {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            return PhotoError::Cut;
        }
    }
    let text = error.to_string();
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    PhotoError::Damaged(text.chars().map(printable).take(300).collect())
}

/// Grey float and grey with alpha, the kinds of TIFF that `image` does not read. None: another kind.
fn read_grey_tiff(
    bytes: &[u8],
    most_bytes: u64,
) -> Result<Option<(Photo, Orientation)>, PhotoError> {
    let damaged = |e: tiff::TiffError| PhotoError::Damaged(e.to_string());
    let mut limits = tiff::decoder::Limits::default();
    limits.decoding_buffer_size = usize::try_from(most_bytes).unwrap_or(usize::MAX);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    let decoder = tiff::decoder::Decoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut decoder = decoder.with_limits(limits);
    let channels = match decoder.colortype() {
        Ok(TiffColour::Gray(32)) => 1,
        Ok(TiffColour::Multiband { num_samples: 2, .. }) => 2,
        _ => return Ok(None),
    };
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    let needed = u64::from(width) * u64::from(height) * 4 * channels as u64;
    if needed > most_bytes {
        return Err(PhotoError::Large {
            width,
            height,
            needed: needed >> 20,
        });
    }
    let orientation = decoder.find_tag(tiff::tags::Tag::Orientation).ok();
    let orientation = orientation.flatten().and_then(|v| v.into_u16().ok());
    let orientation = orientation.and_then(|o| Orientation::from_exif(o.min(255) as u8));
    let icc = decoder.get_tag_u8_vec(tiff::tags::Tag::IccProfile).ok();
    let samples = match decoder.read_image().map_err(damaged)? {
        DecodingResult::U8(s) => Samples::U8(s),
        DecodingResult::U16(s) => Samples::U16(s),
        DecodingResult::F32(s) => Samples::F32(s),
        _ => return Ok(None),
    };
    let photo = Photo {
        width: width as usize,
        height: height as usize,
        channels,
        samples,
        icc,
        exif: None,
        format: Format::Tiff,
    };
    Ok(Some((
        photo,
        orientation.unwrap_or(Orientation::NoTransforms),
    )))
}

fn finish(photo: Photo, orientation: Orientation) -> Result<Photo, PhotoError> {
    if photo.width == 0 || photo.height == 0 {
        return Err(PhotoError::Damaged("it has no pixels".into()));
    }
    let mut photo = turned(photo, orientation);
    if let Some(exif) = &mut photo.exif {
        exif::upright(exif, photo.width as u32, photo.height as u32);
    }
    photo.icc = photo.icc.take().filter(|icc| fits(icc, photo.is_grey()));
    if let Samples::F32(values) = &mut photo.samples {
        let limits = (f32::INFINITY, f32::NEG_INFINITY);
        let (least, most) = values
            .iter()
            .fold(limits, |(a, b), v| (a.min(*v), b.max(*v)));
        let sound = values.iter().all(|v| v.is_finite());
        if !sound || least < 1.0 - LARGEST_OVERSHOOT || most > LARGEST_OVERSHOOT {
            return Err(PhotoError::Values { least, most });
        }
        values.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
    }
    Ok(photo)
}

/// Whether a profile describes such channels: that of a CMYK file does not describe the RGB it was decoded to. The colour space stands at
/// byte 16 of the header (ICC.1:2022, 7.2.6).
fn fits(icc: &[u8], grey: bool) -> bool {
    icc.get(16..20) == Some(if grey { b"GRAY" } else { b"RGB " })
}

/// The picture with its pixels moved to where the orientation shows them.
fn turned(mut photo: Photo, orientation: Orientation) -> Photo {
    use Orientation::*;
    let (w, h, c) = (photo.width, photo.height, photo.channels);
    // where the pixel of column x and row y of the upright picture comes from
    let from: fn(usize, usize, usize, usize) -> (usize, usize) = match orientation {
        NoTransforms => return photo,
        FlipHorizontal => |x, y, w, _| (w - 1 - x, y),
        FlipVertical => |x, y, _, h| (x, h - 1 - y),
        Rotate180 => |x, y, w, h| (w - 1 - x, h - 1 - y),
        Rotate90 => |x, y, _, h| (y, h - 1 - x),
        Rotate270 => |x, y, w, _| (w - 1 - y, x),
        Rotate90FlipH => |x, y, _, _| (y, x),
        Rotate270FlipH => |x, y, w, h| (w - 1 - y, h - 1 - x),
    };
    let sideways = matches!(
        orientation,
        Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH
    );
    let (width, height) = if sideways { (h, w) } else { (w, h) };
    macro_rules! move_all {
        ($samples:expr) => {{
            let mut out = Vec::with_capacity($samples.len());
            for y in 0..height {
                for x in 0..width {
                    let (sx, sy) = from(x, y, w, h);
                    let at = (sy * w + sx) * c;
                    out.extend_from_slice(&$samples[at..at + c]);
                }
            }
            out
        }};
    }
    photo.samples = match &photo.samples {
        Samples::U8(s) => Samples::U8(move_all!(s)),
        Samples::U16(s) => Samples::U16(move_all!(s)),
        Samples::F32(s) => Samples::F32(move_all!(s)),
    };
    Photo {
        width,
        height,
        ..photo
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn turning_agrees_with_the_image_library() {
        let image = image::RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 7]));
        for code in 1..=8 {
            let orientation = Orientation::from_exif(code).unwrap();
            let mut expected = DynamicImage::ImageRgb8(image.clone());
            expected.apply_orientation(orientation);
            let found = turned(Photo::of_rgb8(image.clone()), orientation);
            assert_eq!(
                (found.width as u32, found.height as u32),
                (expected.width(), expected.height())
            );
            assert_eq!(
                found.samples,
                Samples::U8(expected.into_rgb8().into_raw()),
                "{code}"
            );
        }
    }

    #[test]
    fn a_profile_must_go_with_the_channels() {
        let mut icc = vec![0; 128];
        icc[16..20].copy_from_slice(b"CMYK");
        assert!(!fits(&icc, false) && !fits(&icc, true));
        icc[16..20].copy_from_slice(b"RGB ");
        assert!(fits(&icc, false) && !fits(&icc, true));
        assert!(!fits(&[], false));
    }
}
