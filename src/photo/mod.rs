//! Photographs: read from JPEG, PNG, TIFF, WebP and BMP, upright, with what a picture carries beside its colours, and written again.
//!
//! Samples keep their depth (8 or 16 bits, or float32 from TIFF), their number of channels (grey or RGB, with or without alpha), the ICC
//! profile and the EXIF block. Algorithms see colours as float32 in [0, 1], encoded as the file has them (usually sRGB), grey repeated to
//! three channels.

mod exif;
mod read;
mod write;

pub use read::read;
pub use write::{encode, losses};

use image::RgbImage;

/// A file format that can be read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// TIFF.
    Tiff,
    /// WebP, written without loss.
    WebP,
    /// BMP.
    Bmp,
}

/// Endings, and the format each stands for.
const ENDINGS: [(&str, Format); 7] = [
    ("jpg", Format::Jpeg),
    ("jpeg", Format::Jpeg),
    ("png", Format::Png),
    ("tif", Format::Tiff),
    ("tiff", Format::Tiff),
    ("webp", Format::WebP),
    ("bmp", Format::Bmp),
];

impl Format {
    /// What an ending, such as `JPG`, stands for.
    pub fn of_ending(ending: &str) -> Option<Self> {
        let ending = ending.to_lowercase();
        ENDINGS.iter().find(|e| e.0 == ending).map(|e| e.1)
    }

    /// What the ending of a file's name stands for.
    pub fn of_path(path: &std::path::Path) -> Option<Self> {
        Self::of_ending(&path.extension()?.to_string_lossy())
    }

    /// All endings, for messages.
    pub fn endings() -> String {
        ENDINGS.map(|e| e.0).join(", ")
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Tiff => "TIFF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
        }
    }
}

/// Why a picture cannot be read or written. The caller adds its name.
#[derive(Debug, thiserror::Error)]
pub enum PhotoError {
    /// The first bytes are those of no format read here.
    #[error(
        "is no picture: its content is not JPEG, PNG, TIFF, WebP or BMP, whatever its name says"
    )]
    NoPicture,
    /// It ends too early.
    #[error("is cut: the file ends before its picture does; copy it again")]
    Cut,
    /// The decoder gave up.
    #[error("is damaged or of an unusual kind: {0}")]
    Damaged(String),
    /// Its header asks for more memory than there is.
    #[error("declares {width} x {height} pixels, {needed} MiB decoded, which is beyond the memory allowed; raise --max-memory")]
    Large {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Mebibytes.
        needed: u64,
    },
    /// Float samples that are no colours.
    #[error(
        "holds float values from {least} to {most}, expected finite ones from 0 to 1; scale them"
    )]
    Values {
        /// The smallest.
        least: f32,
        /// The largest.
        most: f32,
    },
    /// The picture does not fit the format.
    #[error("{width} x {height} pixels do not fit a {format} file, at most {most} a side; write another format")]
    Side {
        /// Pixels.
        width: usize,
        /// Pixels.
        height: usize,
        /// The format.
        format: &'static str,
        /// Its largest side.
        most: usize,
    },
    /// The encoder gave up.
    #[error("cannot be encoded as {format}: {reason}")]
    Encode {
        /// The format.
        format: &'static str,
        /// The encoder's words.
        reason: String,
    },
}

/// Interleaved samples, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Samples {
    /// 8 bits.
    U8(Vec<u8>),
    /// 16 bits.
    U16(Vec<u16>),
    /// float32, colours in [0, 1].
    F32(Vec<f32>),
}

/// A sample as a colour value in [0, 1].
trait Sample: Copy {
    fn value(self) -> f32;
    fn of(value: f32) -> Self;
}

impl Sample for u8 {
    fn value(self) -> f32 {
        f32::from(self) / 255.0
    }
    fn of(value: f32) -> Self {
        (value * 255.0).round() as u8
    }
}

impl Sample for u16 {
    fn value(self) -> f32 {
        f32::from(self) / 65535.0
    }
    fn of(value: f32) -> Self {
        (value * 65535.0).round() as u16
    }
}

impl Sample for f32 {
    fn value(self) -> f32 {
        self
    }
    fn of(value: f32) -> Self {
        value.clamp(0.0, 1.0)
    }
}

/// Runs `$body` with `$s` bound to the samples of whatever depth.
macro_rules! with_samples {
    ($samples:expr, $s:ident => $body:expr) => {
        match $samples {
            Samples::U8($s) => $body,
            Samples::U16($s) => $body,
            Samples::F32($s) => $body,
        }
    };
}

/// An upright picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Photo {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
    pub channels: usize,
    /// `height * width * channels` of them.
    pub samples: Samples,
    /// ICC profile, one that goes with the channels.
    pub icc: Option<Vec<u8>>,
    /// EXIF block, made true for upright pixels.
    pub exif: Option<Vec<u8>>,
    /// What it was read from.
    pub format: Format,
}

/// Weights of red, green and blue in luma (ITU-R BT.601).
pub const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

impl Photo {
    /// An opaque RGB picture of 8 bits with nothing beside its colours.
    pub fn of_rgb8(image: RgbImage) -> Self {
        Self {
            width: image.width() as usize,
            height: image.height() as usize,
            channels: 3,
            samples: Samples::U8(image.into_raw()),
            icc: None,
            exif: None,
            format: Format::Png,
        }
    }

    /// Whether there is no colour.
    pub fn is_grey(&self) -> bool {
        self.channels < 3
    }

    /// Whether the last channel is alpha.
    pub fn has_alpha(&self) -> bool {
        self.channels.is_multiple_of(2)
    }

    /// Bytes of the samples.
    pub fn bytes(&self) -> usize {
        with_samples!(&self.samples, s => std::mem::size_of_val(s.as_slice()))
    }

    /// The colour of a pixel, grey three times.
    pub fn rgb(&self, x: usize, y: usize) -> [f32; 3] {
        let at = (y * self.width + x) * self.channels;
        let step = usize::from(!self.is_grey());
        with_samples!(&self.samples, s => [0, 1, 2].map(|c| s[at + c * step].value()))
    }

    /// Colours of `rows` whole rows from `y`, pixel by pixel.
    pub fn rows(&self, y: usize, rows: usize) -> Vec<[f32; 3]> {
        fn gather<T: Sample>(samples: &[T], channels: usize) -> Vec<[f32; 3]> {
            let colour = |p: &[T]| match channels {
                1 | 2 => [p[0].value(); 3],
                _ => [p[0].value(), p[1].value(), p[2].value()],
            };
            samples.chunks_exact(channels).map(colour).collect()
        }
        let line = self.width * self.channels;
        with_samples!(&self.samples, s => gather(&s[y * line..(y + rows) * line], self.channels))
    }

    /// Colours of a window as three planes, one after the other.
    pub fn planes(&self, x: usize, y: usize, width: usize, height: usize) -> Vec<f32> {
        let size = width * height;
        let mut planes = vec![0.0; 3 * size];
        for row in 0..height {
            for column in 0..width {
                let rgb = self.rgb(x + column, y + row);
                for (c, value) in rgb.into_iter().enumerate() {
                    planes[c * size + row * width + column] = value;
                }
            }
        }
        planes
    }

    /// Replaces the colours of whole rows from `y`; a grey picture gets the luma. Values outside [0, 1] are brought to its ends. Alpha stays.
    pub fn put_rows(&mut self, y: usize, colours: &[[f32; 3]]) {
        fn scatter<T: Sample>(samples: &mut [T], channels: usize, colours: &[[f32; 3]]) {
            for (pixel, rgb) in samples.chunks_exact_mut(channels).zip(colours) {
                if channels < 3 {
                    let luma: f32 = rgb.iter().zip(LUMA).map(|(v, w)| v * w).sum();
                    pixel[0] = T::of(luma);
                } else {
                    for (sample, value) in pixel.iter_mut().zip(rgb) {
                        *sample = T::of(*value);
                    }
                }
            }
        }
        let (start, channels) = (y * self.width * self.channels, self.channels);
        let end = start + colours.len() * channels;
        with_samples!(&mut self.samples, s => scatter(&mut s[start..end], channels, colours));
    }

    /// As 8-bit RGB without alpha, reduced so that no side is longer than `longest`; each pixel is the mean of what it covers.
    pub fn thumbnail(&self, longest: usize) -> RgbImage {
        let side = self.width.max(self.height);
        if side <= longest {
            let mut out = RgbImage::new(self.width as u32, self.height as u32);
            for y in 0..self.height {
                for (x, rgb) in self.rows(y, 1).into_iter().enumerate() {
                    out.put_pixel(x as u32, y as u32, image::Rgb(rgb.map(u8::of)));
                }
            }
            return out;
        }
        let part = |n: usize| ((n * longest + side / 2) / side).max(1);
        let (width, height) = (part(self.width), part(self.height));
        let planes = self.reduced(width, height);
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = y as usize * width + x as usize;
            image::Rgb([0, 1, 2].map(|c| u8::of(planes[c * width * height + at])))
        })
    }

    /// Three planes of a smaller size, every pixel the mean of those it covers at least in part. The picture's own size is the picture.
    pub fn reduced(&self, width: usize, height: usize) -> Vec<f32> {
        let size = width * height;
        let mut planes = vec![0.0; 3 * size];
        let span = |i: usize, n: usize, of: usize| i * of / n..((i + 1) * of).div_ceil(n);
        let mut sums = vec![[0.0f64; 3]; width];
        for y in 0..height {
            sums.fill([0.0; 3]);
            let lines = span(y, height, self.height);
            for line in lines.clone() {
                let row = self.rows(line, 1);
                for (x, sum) in sums.iter_mut().enumerate() {
                    for rgb in &row[span(x, width, self.width)] {
                        (0..3).for_each(|c| sum[c] += f64::from(rgb[c]));
                    }
                }
            }
            for (x, sum) in sums.iter().enumerate() {
                let n = (lines.len() * span(x, width, self.width).len()) as f64;
                (0..3).for_each(|c| planes[c * size + y * width + x] = (sum[c] / n) as f32);
            }
        }
        planes
    }

    /// This picture and another of its size beside each other, with a gap, as this one's kind.
    pub fn beside(&self, other: &Self) -> Self {
        fn join<T: Sample>(a: &[T], b: &[T], line: usize, gap: usize) -> Vec<T> {
            let mut out = Vec::with_capacity(a.len() + b.len());
            for (left, right) in a.chunks_exact(line).zip(b.chunks_exact(line)) {
                out.extend_from_slice(left);
                out.extend(std::iter::repeat_n(T::of(1.0), gap));
                out.extend_from_slice(right);
            }
            out
        }
        let gap = (self.width / 100).clamp(1, 64);
        let (line, filler) = (self.width * self.channels, gap * self.channels);
        let samples = match (&self.samples, &other.samples) {
            (Samples::U8(a), Samples::U8(b)) => Samples::U8(join(a, b, line, filler)),
            (Samples::U16(a), Samples::U16(b)) => Samples::U16(join(a, b, line, filler)),
            (Samples::F32(a), Samples::F32(b)) => Samples::F32(join(a, b, line, filler)),
            // Both come from one file.
            (a, _) => a.clone(),
        };
        Self {
            width: 2 * self.width + gap,
            samples,
            icc: self.icc.clone(),
            exif: None,
            ..*self
        }
    }
}
