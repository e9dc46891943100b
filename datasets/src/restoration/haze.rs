//! Haze drawn on clear pictures by the scattering model I = J t + A (1 - t), t = exp(-beta d) (Koschmieder 1924; McCartney 1976), and what a
//! camera adds to it.

use image::codecs::jpeg::JpegEncoder;
use image::ExtendedColorType;
use serde::{Deserialize, Serialize};

use super::depth::{self, DepthKinds};
use super::{check, check_range, check_share};
use crate::random::Random;
use crate::Result;

/// What is drawn, and how often. Shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HazeSettings {
    /// Share of the crops that stay as they are, so that clear pictures are learned to be left alone.
    pub none: f64,
    /// Optical depth of the farthest, beta times 1.
    pub beta: [f64; 2],
    /// Kinds of depth where none was measured.
    pub depth: DepthKinds,
    /// How often a depth map is taken where there is one.
    pub real_depth: f64,
    /// Brightness of the air light.
    pub air_light: [f64; 2],
    /// How often the air light has a colour.
    pub coloured: f64,
    /// The most that a channel of coloured air light departs from its brightness.
    pub colour: f64,
    /// How often the air light differs from place to place.
    pub uneven: f64,
    /// The most by which uneven air light rises or falls over the picture.
    pub unevenness: f64,
    /// How often the sensor's noise is added.
    pub noise: f64,
    /// Range of its standard deviation.
    pub noise_sigma: [f64; 2],
    /// How often the picture is saved as JPEG on its way.
    pub jpeg: f64,
    /// Range of the quality, 1 to 100.
    pub jpeg_quality: [f64; 2],
}

impl Default for HazeSettings {
    fn default() -> Self {
        Self {
            none: 0.1,
            beta: [0.3, 3.0],
            depth: DepthKinds::default(),
            real_depth: 0.5,
            air_light: [0.7, 1.0],
            coloured: 0.25,
            colour: 0.06,
            uneven: 0.15,
            unevenness: 0.08,
            noise: 0.2,
            noise_sigma: [0.002, 0.02],
            jpeg: 0.2,
            jpeg_quality: [60.0, 98.0],
        }
    }
}

impl HazeSettings {
    /// Every number in its range.
    pub fn validate(&self) -> Result<()> {
        for (field, share) in [
            ("haze.none", self.none),
            ("haze.real_depth", self.real_depth),
            ("haze.coloured", self.coloured),
            ("haze.uneven", self.uneven),
            ("haze.noise", self.noise),
            ("haze.jpeg", self.jpeg),
        ] {
            check_share(field, share)?;
        }
        check_range("haze.beta", self.beta, 0.0, 20.0)?;
        check_range("haze.air_light", self.air_light, 0.0, 1.0)?;
        check_range("haze.noise_sigma", self.noise_sigma, 0.0, 1.0)?;
        check_range("haze.jpeg_quality", self.jpeg_quality, 1.0, 100.0)?;
        for (field, most) in [
            ("haze.colour", self.colour),
            ("haze.unevenness", self.unevenness),
        ] {
            check(
                (0.0..=1.0).contains(&most),
                field,
                most,
                "it has to be from 0 to 1",
            )?;
        }
        self.depth.validate()
    }
}

/// A clear crop.
pub(super) struct Clear<'a> {
    /// (rows, columns).
    pub size: [usize; 2],
    /// Interleaved RGB in [0, 1].
    pub pixels: &'a [f32],
    /// Its measured depth, 0 near and 1 far.
    pub depth: Option<Vec<f32>>,
}

/// The clear crop in haze: interleaved RGB in 256 steps of [0, 1], as a file would hold it.
pub(super) fn draw(settings: &HazeSettings, clear: &Clear, random: &mut Random) -> Vec<f32> {
    if random.chance(settings.none) {
        return clear.pixels.to_vec();
    }
    let size = clear.size;
    let beta = random.within(settings.beta) as f32;
    let measured = match &clear.depth {
        Some(depth) if random.chance(settings.real_depth) => Some(depth.clone()),
        _ => None,
    };
    let depth = measured.unwrap_or_else(|| {
        let grey: Vec<f32> = clear.pixels.chunks_exact(3).map(luma).collect();
        depth::draw(&settings.depth, &grey, size, random)
    });
    let brightness = random.within(settings.air_light);
    let mut air = [brightness as f32; 3];
    if random.chance(settings.coloured) {
        for channel in &mut air {
            let off = random.within([-settings.colour, settings.colour]);
            *channel = (brightness + off).clamp(0.0, 1.0) as f32;
        }
    }
    // a gentle slope or swell of the light over the picture, the same for all channels
    let light = random.chance(settings.uneven).then(|| {
        let cells = 1 + random.below(2);
        let amount = random.within([0.0, 2.0 * settings.unevenness]) as f32;
        let mut map = depth::noise(size, cells, random);
        map.iter_mut().for_each(|v| *v = amount * (*v - 0.5));
        map
    });
    let mut hazy = Vec::with_capacity(clear.pixels.len());
    for (at, pixel) in clear.pixels.chunks_exact(3).enumerate() {
        let t = (-beta * depth[at]).exp();
        let more = light.as_ref().map_or(0.0, |l| l[at]);
        for (value, air) in pixel.iter().zip(air) {
            hazy.push(value * t + (air + more).clamp(0.0, 1.0) * (1.0 - t));
        }
    }
    if random.chance(settings.noise) {
        let sigma = random.within(settings.noise_sigma) as f32;
        hazy.iter_mut().for_each(|v| *v += sigma * random.normal());
    }
    let mut bytes: Vec<u8> = hazy
        .iter()
        .map(|v| (v.clamp(0.0, 1.0) * 255.0).round() as u8)
        .collect();
    if random.chance(settings.jpeg) {
        let quality = random.within(settings.jpeg_quality).round() as u8;
        if let Some(saved) = through_jpeg(&bytes, size, quality) {
            bytes = saved;
        }
    }
    bytes.iter().map(|v| f32::from(*v) / 255.0).collect()
}

fn luma(pixel: &[f32]) -> f32 {
    0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

/// Saved and read again; none for sizes that JPEG does not have.
fn through_jpeg(pixels: &[u8], [h, w]: [usize; 2], quality: u8) -> Option<Vec<u8>> {
    let (width, height) = (u16::try_from(w).ok()?, u16::try_from(h).ok()?);
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality)
        .encode(pixels, width.into(), height.into(), ExtendedColorType::Rgb8)
        .ok()?;
    let read = image::load_from_memory_with_format(&file, image::ImageFormat::Jpeg).ok()?;
    Some(read.to_rgb8().into_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> HazeSettings {
        HazeSettings {
            none: 0.0,
            beta: [1.2, 1.2],
            real_depth: 1.0,
            air_light: [0.9, 0.9],
            coloured: 0.0,
            uneven: 0.0,
            noise: 0.0,
            jpeg: 0.0,
            ..HazeSettings::default()
        }
    }

    fn clear(pixels: &[f32], depth: Option<Vec<f32>>) -> Clear<'_> {
        Clear {
            size: [2, 2],
            pixels,
            depth,
        }
    }

    #[test]
    fn measured_depth_gives_the_model_to_half_a_step() {
        let pixels = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.0];
        let depth = vec![0.0, 0.25, 0.5, 1.0];
        let hazy = draw(
            &plain(),
            &clear(&pixels, Some(depth.clone())),
            &mut Random::new(0, 0, 0),
        );
        for (i, (got, j)) in hazy.iter().zip(pixels).enumerate() {
            let t = (-1.2 * f64::from(depth[i / 3])).exp();
            let expected = f64::from(j) * t + 0.9 * (1.0 - t);
            assert!((f64::from(*got) - expected).abs() < 0.5 / 255.0 + 1e-6);
        }
    }

    #[test]
    fn nothing_is_exactly_nothing() {
        let pixels = [0.123f32; 12];
        let settings = HazeSettings {
            none: 1.0,
            ..HazeSettings::default()
        };
        let same = draw(&settings, &clear(&pixels, None), &mut Random::new(0, 0, 0));
        assert_eq!(same, pixels);
    }

    #[test]
    fn each_part_changes_the_picture_and_no_value_leaves_the_range() {
        let pixels: Vec<f32> = (0..32 * 32 * 3).map(|i| (i % 101) as f32 / 100.0).collect();
        let of = |settings: &HazeSettings| {
            let clear = Clear {
                size: [32, 32],
                pixels: &pixels,
                depth: Some(vec![0.7; 32 * 32]),
            };
            draw(settings, &clear, &mut Random::new(4, 4, 4))
        };
        let base = of(&plain());
        let mut variants = vec![plain(); 4];
        variants[0].coloured = 1.0;
        variants[1].uneven = 1.0;
        variants[2].noise = 1.0;
        variants[3].jpeg = 1.0;
        for (i, settings) in variants.iter().enumerate() {
            let hazy = of(settings);
            assert_ne!(hazy, base, "variant {i}");
            assert!(hazy.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
}
