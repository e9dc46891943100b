//! Crops for restoration: which pair, which place, how large, and which haze. A batch is a pure function of pictures, settings and its number.

use std::ops::Range;
use std::sync::Arc;

use image::imageops::{crop_imm, flip_horizontal_in_place, flip_vertical_in_place, FilterType};
use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use super::haze::{self, HazeSettings};
use super::pictures::{PairedPictures, Pictures};
use super::{check, check_range, check_share};
use crate::random::Random;
use crate::{Prefetch, Result};

/// Makes the haze of validation another one than that of training.
const VALIDATION_STREAM: u64 = 0x6861_7a65_5f76_616c;

/// How crops are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CropSettings {
    /// Rows and columns.
    pub crop: [usize; 2],
    /// Crops in a batch. Not written, as `seed`: the run that the settings belong to says both.
    #[serde(skip)]
    pub batch_size: usize,
    /// Range of the side of the region that is shrunk (above 1) or enlarged (below) to the crop, in crops; no larger than the picture.
    pub scale: [f64; 2],
    /// How often the region is as large as the picture allows.
    pub whole: f64,
    /// How often a crop is mirrored left to right.
    pub flip_horizontal: f64,
    /// How often it is turned upside down.
    pub flip_vertical: f64,
    /// How often haze is drawn on the clear picture though a hazy one is there.
    pub synthesise: f64,
    /// The haze that is drawn.
    pub haze: HazeSettings,
    /// Range of an exponent of the clear picture's values before haze is drawn.
    pub gamma: [f64; 2],
    /// Range of a factor of each of its channels.
    pub gain: [f64; 2],
    /// How often the clear picture is made pale before haze is drawn: a veil of its own, the same everywhere, which is no haze and stays.
    pub pale: f64,
    /// Range of the part of the contrast that a pale picture keeps.
    pub pale_contrast: [f64; 2],
    /// Range of the brightness that its contrast shrinks towards.
    pub pale_level: [f64; 2],
    /// Seed of everything random.
    #[serde(skip)]
    pub seed: u64,
}

impl Default for CropSettings {
    fn default() -> Self {
        Self {
            crop: [128, 128],
            batch_size: 8,
            scale: [0.6, 3.0],
            whole: 0.4,
            flip_horizontal: 0.5,
            flip_vertical: 0.0,
            synthesise: 0.8,
            haze: HazeSettings::default(),
            gamma: [0.8, 1.3],
            gain: [0.85, 1.1],
            pale: 0.0,
            pale_contrast: [0.4, 0.9],
            pale_level: [0.4, 1.0],
            seed: 0,
        }
    }
}

impl CropSettings {
    /// Every number in its range.
    pub fn validate(&self) -> Result<()> {
        check(
            self.crop.iter().all(|s| (1..=4096).contains(s)),
            "crop",
            format!("{:?}", self.crop),
            "its sides are from 1 to 4096",
        )?;
        check(
            (1..=4096).contains(&self.batch_size),
            "batch_size",
            self.batch_size,
            "it has to be from 1 to 4096",
        )?;
        check_range("scale", self.scale, 0.1, 100.0)?;
        for (field, share) in [
            ("whole", self.whole),
            ("flip_horizontal", self.flip_horizontal),
            ("flip_vertical", self.flip_vertical),
            ("synthesise", self.synthesise),
            ("pale", self.pale),
        ] {
            check_share(field, share)?;
        }
        check_range("gamma", self.gamma, 0.1, 10.0)?;
        check_range("gain", self.gain, 0.0, 10.0)?;
        check_range("pale_contrast", self.pale_contrast, 0.0, 1.0)?;
        check_range("pale_level", self.pale_level, 0.0, 1.0)?;
        self.haze.validate()
    }
}

/// Crops in pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct RestorationBatch {
    /// (B, 3, rows, columns) in [0, 1].
    pub hazy: Vec<f32>,
    /// The same without haze.
    pub clear: Vec<f32>,
    /// The shape of both.
    pub shape: [usize; 4],
    /// The pair of each crop.
    pub ids: Vec<String>,
}

/// Draws batch number `index`; depends on nothing but the arguments. Fails only when a picture that is not kept in memory cannot be read any more.
///
/// # Panics
/// When [`CropSettings::validate`] would have failed.
pub fn draw_crops(
    pictures: &PairedPictures,
    settings: &CropSettings,
    index: u64,
) -> Result<RestorationBatch> {
    let [h, w] = settings.crop;
    let each = 3 * h * w;
    let mut batch = RestorationBatch {
        hazy: Vec::with_capacity(settings.batch_size * each),
        clear: Vec::with_capacity(settings.batch_size * each),
        shape: [settings.batch_size, 3, h, w],
        ids: Vec::with_capacity(settings.batch_size),
    };
    for sample in 0..settings.batch_size {
        let mut random = Random::new(settings.seed, index, sample as u64);
        let chosen = random.below(pictures.pairs().len());
        batch.ids.push(pictures.pairs()[chosen].id.clone());
        let (hazy, clear) = draw(&*pictures.get(chosen)?, settings, &mut random);
        to_planes(&hazy, &mut batch.hazy);
        to_planes(&clear, &mut batch.clear);
    }
    Ok(batch)
}

/// Pair number `index` as a batch of one, for validation: the same at every call. Of a picture with a side beyond `longest` the middle is taken.
/// Haze is drawn where no hazy picture is there.
pub fn draw_whole(
    pictures: &PairedPictures,
    settings: &CropSettings,
    index: usize,
    longest: u32,
) -> Result<RestorationBatch> {
    let pictures_of = pictures.get(index)?;
    let (rows, columns) = (pictures_of.clear.height(), pictures_of.clear.width());
    let (h, w) = (rows.min(longest), columns.min(longest));
    let region = Region {
        at: [(columns - w) / 2, (rows - h) / 2, w, h],
        size: [w, h],
        flips: [false; 2],
    };
    let size = [h as usize, w as usize];
    let clear = unit(&region.rgb(&pictures_of.clear));
    let hazy = match &pictures_of.hazy {
        Some(hazy) => unit(&region.rgb(hazy)),
        None => {
            let depth = pictures_of.depth.as_ref().map(|d| unit(&region.grey(d)));
            let crop = haze::Clear {
                size,
                pixels: &clear,
                depth,
            };
            let always = HazeSettings {
                none: 0.0,
                ..settings.haze.clone()
            };
            let seed = settings.seed ^ VALIDATION_STREAM;
            haze::draw(&always, &crop, &mut Random::new(seed, index as u64, 0))
        }
    };
    let mut batch = RestorationBatch {
        hazy: Vec::with_capacity(hazy.len()),
        clear: Vec::with_capacity(hazy.len()),
        shape: [1, 3, size[0], size[1]],
        ids: vec![pictures.pairs()[index].id.clone()],
    };
    to_planes(&hazy, &mut batch.hazy);
    to_planes(&clear, &mut batch.clear);
    Ok(batch)
}

/// (rows, columns, 3) -> (3, rows, columns)
fn to_planes(pixels: &[f32], to: &mut Vec<f32>) {
    for channel in 0..3 {
        to.extend(pixels.iter().skip(channel).step_by(3));
    }
}

/// Batches made ahead of time on worker threads, in order.
pub fn prefetch_crops(
    pictures: Arc<PairedPictures>,
    settings: CropSettings,
    batches: Range<u64>,
    workers: usize,
) -> Result<Prefetch<RestorationBatch>> {
    settings.validate()?;
    Prefetch::with_maker(batches, workers, move |index| {
        draw_crops(&pictures, &settings, index)
    })
}

/// Hazy and clear, interleaved.
fn draw(pictures: &Pictures, settings: &CropSettings, random: &mut Random) -> (Vec<f32>, Vec<f32>) {
    let [h, w] = settings.crop;
    let (rows, columns) = (pictures.clear.height(), pictures.clear.width());
    let largest = (f64::from(rows) / h as f64).min(f64::from(columns) / w as f64);
    let scale = match random.chance(settings.whole) {
        true => largest,
        false => {
            let [low, high] = settings.scale.map(f64::ln);
            random.within([low, high]).exp().min(largest)
        }
    };
    let side = |crop: usize, most: u32| ((crop as f64 * scale).round() as u32).clamp(1, most);
    let (rh, rw) = (side(h, rows), side(w, columns));
    let y = random.below((rows - rh) as usize + 1) as u32;
    let x = random.below((columns - rw) as usize + 1) as u32;
    let flips = [
        random.chance(settings.flip_horizontal),
        random.chance(settings.flip_vertical),
    ];
    let region = Region {
        at: [x, y, rw, rh],
        size: [w as u32, h as u32],
        flips,
    };
    let mut clear = unit(&region.rgb(&pictures.clear));
    match &pictures.hazy {
        Some(hazy) if !random.chance(settings.synthesise) => (unit(&region.rgb(hazy)), clear),
        _ => {
            let gamma = random.within(settings.gamma) as f32;
            let gains: [f32; 3] = std::array::from_fn(|_| random.within(settings.gain) as f32);
            for pixel in clear.chunks_exact_mut(3) {
                for (value, gain) in pixel.iter_mut().zip(gains) {
                    *value = (value.powf(gamma) * gain).min(1.0);
                }
            }
            // nothing is drawn for what never happens, so that the option leaves the crops of other runs as they were
            if settings.pale > 0.0 && random.chance(settings.pale) {
                let contrast = random.within(settings.pale_contrast) as f32;
                let level = random.within(settings.pale_level) as f32;
                for value in &mut clear {
                    *value = level + contrast * (*value - level);
                }
            }
            let depth = pictures.depth.as_ref().map(|d| unit(&region.grey(d)));
            let crop = haze::Clear {
                size: settings.crop,
                pixels: &clear,
                depth,
            };
            (haze::draw(&settings.haze, &crop, random), clear)
        }
    }
}

/// A rectangle of a picture, and what becomes of it.
struct Region {
    /// Left, top, width, height.
    at: [u32; 4],
    /// Width and height of the crop.
    size: [u32; 2],
    /// Left to right, upside down.
    flips: [bool; 2],
}

macro_rules! cut {
    ($region:expr, $picture:expr) => {{
        let [x, y, w, h] = $region.at;
        let mut cut = crop_imm($picture, x, y, w, h).to_image();
        if [w, h] != $region.size {
            let [w, h] = $region.size;
            // averages over what a pixel covers when it shrinks
            cut = image::imageops::resize(&cut, w, h, FilterType::Triangle);
        }
        if $region.flips[0] {
            flip_horizontal_in_place(&mut cut);
        }
        if $region.flips[1] {
            flip_vertical_in_place(&mut cut);
        }
        cut
    }};
}

impl Region {
    fn rgb(&self, picture: &RgbImage) -> RgbImage {
        cut!(self, picture)
    }

    fn grey(&self, picture: &GrayImage) -> GrayImage {
        cut!(self, picture)
    }
}

fn unit(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().map(|v| f32::from(*v) / 255.0).collect()
}
