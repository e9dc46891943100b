//! How close a restored picture is to its reference: PSNR, SSIM and CIEDE2000, each by a named convention, and what a
//! picture tells about its haze without a reference.
//!
//! All work on 8-bit RGB over [0, 255] in float64. Values of one picture by two conventions differ by decibels, so a
//! number without its convention says nothing: [`Channels`] and [`Window`] name them.

use image::RgbImage;

/// Largest value of a channel.
const RANGE: f64 = 255.0;

/// Why two pictures cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// Different sizes.
    #[error("size {0}x{1}, its reference has {2}x{3}")]
    Size(u32, u32, u32, u32),
    /// Fewer pixels a side than the window, or none.
    #[error("size {0}x{1} without its border, expected at least {2}x{2}")]
    Small(u32, u32, u32),
}

/// On which values a measure is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Red, green and blue; SSIM is the mean of three.
    Rgb,
    /// Luma of ITU-R BT.601 in studio range, 16 to 235, not rounded: BasicSR's `bgr2ycbcr` on floats.
    YStudio,
    /// The same, rounded to whole numbers, halves to the even one as NumPy does.
    YStudioRounded,
    /// Luma over 0 to 255, rounded to whole numbers: OpenCV's grey.
    YFull,
}

/// Over what SSIM compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// Square of this odd side, equal weights, sample covariance: scikit-image's default with 7.
    Uniform(usize),
    /// Gaussian of deviation 1.5 on 11 x 11, population covariance: Wang et al. 2004; scikit-image with `gaussian_weights`
    /// and `use_sample_covariance=False`.
    Gaussian,
    /// As [`Gaussian`](Self::Gaussian) with sample covariance.
    GaussianSample,
    /// As [`Gaussian`](Self::Gaussian) on the picture in a frame of zeros, all positions: the helper of UVM-Net.
    GaussianZeroPadded,
}

impl Window {
    /// Weights along an axis.
    fn kernel(self) -> Vec<f64> {
        match self {
            Window::Uniform(side) => vec![1.0 / side as f64; side],
            _ => {
                let weights = (-5..=5).map(|d| (-0.5 * (f64::from(d) / 1.5).powi(2)).exp());
                let weights: Vec<f64> = weights.collect();
                let sum: f64 = weights.iter().sum();
                weights.into_iter().map(|w| w / sum).collect()
            }
        }
    }

    /// What makes a population covariance the chosen one.
    fn covariance_factor(self, side: usize) -> f64 {
        let n = (side * side) as f64;
        match self {
            Window::Uniform(_) | Window::GaussianSample => n / (n - 1.0),
            _ => 1.0,
        }
    }
}

/// One channel, row by row.
#[derive(Clone)]
struct Plane {
    values: Vec<f64>,
    width: usize,
    height: usize,
}

impl Plane {
    fn zip(&self, other: &Plane, f: impl Fn(f64, f64) -> f64) -> Plane {
        let pairs = self.values.iter().zip(&other.values);
        Plane {
            values: pairs.map(|(a, b)| f(*a, *b)).collect(),
            ..*self
        }
    }

    /// In a frame of zeros.
    fn framed(&self, by: usize) -> Plane {
        let (width, height) = (self.width + 2 * by, self.height + 2 * by);
        let mut values = vec![0.0; width * height];
        for (y, row) in self.values.chunks(self.width.max(1)).enumerate() {
            let at = (y + by) * width + by;
            values[at..at + self.width].copy_from_slice(row);
        }
        Plane {
            values,
            width,
            height,
        }
    }

    /// The same weights along rows and columns, where the whole window lies inside.
    fn filtered(&self, kernel: &[f64]) -> Plane {
        let (width, height) = (
            self.width - kernel.len() + 1,
            self.height - kernel.len() + 1,
        );
        let rows = self.values.chunks(self.width).flat_map(|row| {
            row.windows(kernel.len())
                .map(|w| w.iter().zip(kernel).map(|(v, k)| v * k).sum())
        });
        let rows: Vec<f64> = rows.collect();
        let mut values = vec![0.0; width * height];
        for (y, out) in values.chunks_mut(width).enumerate() {
            for (k, weight) in kernel.iter().enumerate() {
                let row = &rows[(y + k) * width..(y + k + 1) * width];
                out.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
            }
        }
        Plane {
            values,
            width,
            height,
        }
    }
}

/// The planes a measure is taken on, without `crop` pixels on each side.
fn planes(image: &RgbImage, channels: Channels, crop: u32) -> Vec<Plane> {
    let (w, h) = image.dimensions();
    let (width, height) = (w.saturating_sub(2 * crop), h.saturating_sub(2 * crop));
    let plane = |value: &dyn Fn([f64; 3]) -> f64| {
        let mut values = Vec::with_capacity((width * height) as usize);
        for y in 0..height {
            for x in 0..width {
                let pixel = image.get_pixel(x + crop, y + crop).0;
                values.push(value(pixel.map(f64::from)));
            }
        }
        Plane {
            values,
            width: width as usize,
            height: height as usize,
        }
    };
    let studio = |[r, g, b]: [f64; 3]| 16.0 + (65.481 * r + 128.553 * g + 24.966 * b) / RANGE;
    match channels {
        Channels::Rgb => (0..3).map(|c| plane(&|p| p[c])).collect(),
        Channels::YStudio => vec![plane(&studio)],
        Channels::YStudioRounded => vec![plane(&|p| studio(p).round_ties_even())],
        // OpenCV's fixed-point weights, in 2^-14
        Channels::YFull => vec![plane(&|[r, g, b]| {
            ((4899.0 * r + 9617.0 * g + 1868.0 * b + 8192.0) / 16384.0).floor()
        })],
    }
}

fn pairs(
    image: &RgbImage,
    reference: &RgbImage,
    channels: Channels,
    crop: u32,
    smallest: usize,
) -> Result<Vec<(Plane, Plane)>, MetricError> {
    let ((w, h), (rw, rh)) = (image.dimensions(), reference.dimensions());
    if (w, h) != (rw, rh) {
        return Err(MetricError::Size(w, h, rw, rh));
    }
    let inner = |side: u32| i64::from(side) - 2 * i64::from(crop);
    if inner(w.min(h)) < smallest as i64 {
        let shown = |side| u32::try_from(inner(side)).unwrap_or(0);
        return Err(MetricError::Small(shown(w), shown(h), smallest as u32));
    }
    let (a, b) = (
        planes(image, channels, crop),
        planes(reference, channels, crop),
    );
    Ok(a.into_iter().zip(b).collect())
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// Peak signal-to-noise ratio in decibels, `10 log10(255^2 / MSE)` over all pixels and channels; infinite for equal
/// pictures. `crop` pixels on each side do not count.
pub fn psnr(
    image: &RgbImage,
    reference: &RgbImage,
    channels: Channels,
    crop: u32,
) -> Result<f64, MetricError> {
    let pairs = pairs(image, reference, channels, crop, 1)?;
    let mse = mean(pairs.iter().map(|(a, b)| {
        let squares = a.zip(b, |a, b| (a - b) * (a - b));
        mean(squares.values.into_iter())
    }));
    Ok(10.0 * (RANGE * RANGE / mse).log10())
}

/// Structural similarity (Wang et al. 2004) with `C1 = (0.01 * 255)^2` and `C2 = (0.03 * 255)^2`: the mean over all
/// positions of the window inside the picture, then over the channels. At most 1. `crop` pixels on each side do not count.
pub fn ssim(
    image: &RgbImage,
    reference: &RgbImage,
    channels: Channels,
    window: Window,
    crop: u32,
) -> Result<f64, MetricError> {
    let kernel = window.kernel();
    let padded = window == Window::GaussianZeroPadded;
    let smallest = if padded { 1 } else { kernel.len() };
    let pairs = pairs(image, reference, channels, crop, smallest)?;
    let (c1, c2) = ((0.01 * RANGE).powi(2), (0.03 * RANGE).powi(2));
    let factor = window.covariance_factor(kernel.len());
    Ok(mean(pairs.into_iter().map(|(a, b)| {
        let (a, b) = match padded {
            true => (a.framed(kernel.len() / 2), b.framed(kernel.len() / 2)),
            false => (a, b),
        };
        let moment = |p: &Plane, q: &Plane| p.zip(q, |x, y| x * y).filtered(&kernel).values;
        let (ma, mb) = (a.filtered(&kernel).values, b.filtered(&kernel).values);
        let (aa, bb, ab) = (moment(&a, &a), moment(&b, &b), moment(&a, &b));
        mean((0..ma.len()).map(|i| {
            let (x, y) = (ma[i], mb[i]);
            let (vx, vy) = (factor * (aa[i] - x * x), factor * (bb[i] - y * y));
            let covariance = factor * (ab[i] - x * y);
            (2.0 * x * y + c1) * (2.0 * covariance + c2) / ((x * x + y * y + c1) * (vx + vy + c2))
        }))
    })))
}

/// CIE L*a*b* of an sRGB pixel for the white D65.
pub fn srgb_to_lab(pixel: [u8; 3]) -> [f64; 3] {
    let [r, g, b] = pixel.map(|v| {
        let v = f64::from(v) / RANGE;
        match v <= 0.04045 {
            true => v / 12.92,
            false => ((v + 0.055) / 1.055).powf(2.4),
        }
    });
    let xyz = [
        (0.412453 * r + 0.357580 * g + 0.180423 * b) / 0.95047,
        0.212671 * r + 0.715160 * g + 0.072169 * b,
        (0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.08883,
    ];
    let [x, y, z] = xyz.map(|t| match t > 0.008856 {
        true => t.cbrt(),
        false => 7.787 * t + 16.0 / 116.0,
    });
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

/// Colour difference of two L*a*b* values, all weights 1: Sharma, Wu and Dalal 2005.
pub fn delta_e_2000([l1, a1, b1]: [f64; 3], [l2, a2, b2]: [f64; 3]) -> f64 {
    let pow7 = |c: f64| (c.powi(7) / (c.powi(7) + 25f64.powi(7))).sqrt();
    let g = 0.5 * (1.0 - pow7((a1.hypot(b1) + a2.hypot(b2)) / 2.0));
    let (a1, a2) = (a1 * (1.0 + g), a2 * (1.0 + g));
    let (c1, c2) = (a1.hypot(b1), a2.hypot(b2));
    let hue = |a: f64, b: f64| b.atan2(a).to_degrees().rem_euclid(360.0);
    let (h1, h2) = (hue(a1, b1), hue(a2, b2));
    let grey = c1 * c2 == 0.0;
    let turn = match h2 - h1 {
        _ if grey => 0.0,
        d if d > 180.0 => d - 360.0,
        d if d < -180.0 => d + 360.0,
        d => d,
    };
    let dh = 2.0 * (c1 * c2).sqrt() * (turn / 2.0).to_radians().sin();
    let h = match h1 + h2 {
        sum if grey => sum,
        sum if (h1 - h2).abs() <= 180.0 => sum / 2.0,
        sum if sum < 360.0 => (sum + 360.0) / 2.0,
        sum => (sum - 360.0) / 2.0,
    };
    let (l, c) = ((l1 + l2) / 2.0, (c1 + c2) / 2.0);
    let cosine = |degrees: f64| degrees.to_radians().cos();
    let t = 1.0 - 0.17 * cosine(h - 30.0) + 0.24 * cosine(2.0 * h) + 0.32 * cosine(3.0 * h + 6.0)
        - 0.20 * cosine(4.0 * h - 63.0);
    let away = (l - 50.0).powi(2);
    let (sl, sc, sh) = (
        1.0 + 0.015 * away / (20.0 + away).sqrt(),
        1.0 + 0.045 * c,
        1.0 + 0.015 * c * t,
    );
    let rotation = 60.0 * (-((h - 275.0) / 25.0).powi(2)).exp();
    let rt = -2.0 * pow7(c) * rotation.to_radians().sin();
    let (dl, dc, dh) = ((l2 - l1) / sl, (c2 - c1) / sc, dh / sh);
    (dl * dl + dc * dc + dh * dh + rt * dc * dh).max(0.0).sqrt()
}

/// Mean CIEDE2000 over the pixels; 0 for equal pictures. `crop` pixels on each side do not count.
pub fn ciede2000(image: &RgbImage, reference: &RgbImage, crop: u32) -> Result<f64, MetricError> {
    let pairs = pairs(image, reference, Channels::Rgb, crop, 1)?;
    let lab = |pick: &dyn Fn(&(Plane, Plane)) -> &Plane, i: usize| {
        let value = |c: usize| pick(&pairs[c]).values[i] as u8;
        srgb_to_lab([value(0), value(1), value(2)])
    };
    let n = pairs[0].0.values.len();
    Ok(mean((0..n).map(|i| {
        delta_e_2000(lab(&|p| &p.0, i), lab(&|p| &p.1, i))
    })))
}

/// What a picture tells about its haze without a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HazeDensity {
    /// Mean of the dark channel (the smallest value of any channel within 15 x 15 pixels; He, Sun and Tang 2009), 0 to 1.
    /// Clear outdoor pictures are near 0, haze lifts it.
    pub dark_channel: f64,
    /// Standard deviation of the full-range luma, 0 to 0.5. Haze lowers it.
    pub rms_contrast: f64,
}

/// Half a side of the dark channel's window.
const DARK_RADIUS: usize = 7;

/// Measures the haze of one picture; none for a picture without pixels.
pub fn haze_density(image: &RgbImage) -> Option<HazeDensity> {
    let luma = planes(image, Channels::YFull, 0).pop()?;
    if luma.values.is_empty() {
        return None;
    }
    let centre = mean(luma.values.iter().copied());
    let variance = mean(luma.values.iter().map(|v| (v - centre).powi(2)));
    let dark = dark_channel(image, DARK_RADIUS);
    Some(HazeDensity {
        dark_channel: mean(dark.iter().map(|v| f64::from(*v))) / RANGE,
        rms_contrast: variance.sqrt() / RANGE,
    })
}

/// The smallest value of any channel within `radius` pixels along both axes, row by row; the window ends at the border.
pub fn dark_channel(image: &RgbImage, radius: usize) -> Vec<u8> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let least: Vec<u8> = image
        .pixels()
        .map(|p| p.0.into_iter().min().unwrap_or(0))
        .collect();
    let around = |at: usize, n: usize| at.saturating_sub(radius)..(at + radius + 1).min(n);
    let smallest = |values: &mut dyn Iterator<Item = u8>| values.min().unwrap_or(0);
    let mut rows = Vec::with_capacity(least.len());
    for row in least.chunks(width.max(1)) {
        rows.extend((0..width).map(|x| smallest(&mut row[around(x, width)].iter().copied())));
    }
    let mut dark = Vec::with_capacity(least.len());
    for y in 0..height {
        for x in 0..width {
            dark.push(smallest(
                &mut around(y, height).map(|y| rows[y * width + x]),
            ));
        }
    }
    dark
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of Sharma, Wu and Dalal 2005, table 1.
    #[test]
    fn published_colour_differences() {
        let pairs = [
            ([50.0, 2.6772, -79.7751], [50.0, 0.0, -82.7485], 2.0425),
            ([50.0, -1.0, 2.0], [50.0, 0.0, 0.0], 2.3669),
            ([50.0, 2.49, -0.001], [50.0, -2.49, 0.0009], 7.1792),
            ([50.0, 2.49, -0.001], [50.0, -2.49, 0.0011], 7.2195),
            ([50.0, 2.5, 0.0], [73.0, 25.0, -18.0], 27.1492),
            ([50.0, 2.5, 0.0], [50.0, 3.2592, 0.3350], 1.0),
            (
                [60.2574, -34.0099, 36.2677],
                [60.4626, -34.1751, 39.4387],
                1.2644,
            ),
            (
                [2.0776, 0.0795, -1.1350],
                [0.9033, -0.0636, -0.5514],
                0.9082,
            ),
        ];
        for (a, b, expected) in pairs {
            for found in [delta_e_2000(a, b), delta_e_2000(b, a)] {
                assert!((found - expected).abs() < 1e-4, "{a:?} {b:?}: {found}");
            }
        }
    }

    #[test]
    fn white_black_and_red_in_lab() {
        let near = |pixel, expected: [f64; 3]| {
            let found = srgb_to_lab(pixel);
            let close = |(a, b): (f64, &f64)| (a - b).abs() < 0.02;
            assert!(found.into_iter().zip(&expected).all(close), "{found:?}");
        };
        near([255, 255, 255], [100.0, 0.0, 0.0]);
        near([0, 0, 0], [0.0, 0.0, 0.0]);
        near([255, 0, 0], [53.24, 80.09, 67.20]);
    }

    #[test]
    fn the_window_of_the_dark_channel_ends_at_the_border() {
        let mut image = RgbImage::from_pixel(5, 4, image::Rgb([200, 100, 150]));
        image.put_pixel(0, 0, image::Rgb([9, 250, 250]));
        let dark = dark_channel(&image, 1);
        let expected = |x: usize, y: usize| if x < 2 && y < 2 { 9 } else { 100 };
        assert!(
            (0..20).all(|i| dark[i] == expected(i % 5, i / 5)),
            "{dark:?}"
        );
    }

    #[test]
    fn sizes_are_checked() {
        let (a, b) = (RgbImage::new(8, 9), RgbImage::new(8, 8));
        assert_eq!(
            psnr(&a, &b, Channels::Rgb, 0),
            Err(MetricError::Size(8, 9, 8, 8))
        );
        let small = ssim(&b, &b, Channels::Rgb, Window::Gaussian, 0);
        assert_eq!(small, Err(MetricError::Small(8, 8, 11)));
        assert_eq!(
            psnr(&b, &b, Channels::Rgb, 4),
            Err(MetricError::Small(0, 0, 1))
        );
        assert_eq!(psnr(&b, &b, Channels::Rgb, 3), Ok(f64::INFINITY));
        assert_eq!(haze_density(&RgbImage::new(0, 3)), None);
    }
}
