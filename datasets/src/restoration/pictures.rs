//! The pictures of pairs: sizes checked beforehand, kept decoded within a limit of memory.

use std::path::Path;
use std::sync::Arc;

use image::{GrayImage, RgbImage};

use super::pairs::Pair;
use crate::io::{read_rgb, spatial_size};
use crate::parallel::for_each_in_order;
use crate::{DataError, Result};

/// A clear picture may be larger than its hazy one by a border of up to so many pixels, which is cut off: RESIDE's indoor sets have 10.
const WIDEST_BORDER: usize = 32;

/// The pictures of a pair, all of one size.
#[derive(Debug)]
pub(super) struct Pictures {
    pub hazy: Option<RgbImage>,
    pub clear: RgbImage,
    pub depth: Option<GrayImage>,
}

impl Pictures {
    fn bytes(&self) -> usize {
        let pixels = self.clear.width() as usize * self.clear.height() as usize;
        pixels * (3 + 3 * usize::from(self.hazy.is_some()) + usize::from(self.depth.is_some()))
    }
}

/// Pairs with as many of their pictures in memory as a limit allows; the others are read whenever they are drawn.
#[derive(Debug)]
pub struct PairedPictures {
    pairs: Vec<Pair>,
    kept: Vec<Option<Arc<Pictures>>>,
}

impl PairedPictures {
    /// Checks the sizes of all files, then reads pictures, in order, until `most_bytes` are filled. Every file that cannot be read and every pair
    /// that does not fit is named.
    pub fn open(pairs: Vec<Pair>, most_bytes: usize, threads: usize) -> Result<Self> {
        super::check(
            !pairs.is_empty(),
            "number of pairs",
            0,
            "at least one is needed",
        )?;
        let mut errors = Vec::new();
        let mut sizes = Vec::with_capacity(pairs.len());
        for_each_in_order(&pairs, threads, sizes_of, |_, found| match found {
            Ok(bytes) => sizes.push(bytes),
            Err(error) => errors.push(error),
        });
        DataError::all(errors)?;
        let mut left = most_bytes;
        let fitting = sizes.iter().take_while(|bytes| {
            let fits = **bytes <= left;
            left = left.saturating_sub(**bytes);
            fits
        });
        let fitting = fitting.count();
        let mut kept: Vec<Option<Arc<Pictures>>> = Vec::with_capacity(pairs.len());
        let mut errors = Vec::new();
        for_each_in_order(&pairs[..fitting], threads, read, |_, read| match read {
            Ok(pictures) => kept.push(Some(Arc::new(pictures))),
            Err(error) => errors.push(error),
        });
        DataError::all(errors)?;
        kept.resize(pairs.len(), None);
        Ok(Self { pairs, kept })
    }

    /// The pairs.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Bytes of the pictures in memory.
    pub fn bytes(&self) -> usize {
        self.kept.iter().flatten().map(|p| p.bytes()).sum()
    }

    pub(super) fn get(&self, index: usize) -> Result<Arc<Pictures>> {
        match &self.kept[index] {
            Some(pictures) => Ok(pictures.clone()),
            None => read(&self.pairs[index]).map(Arc::new),
        }
    }
}

/// Bytes that the pair would take in memory.
fn sizes_of(pair: &Pair) -> Result<usize> {
    let clear = spatial_size(&pair.clear)?;
    let mut planes = 3;
    let mut inner = clear.clone();
    if let Some(hazy) = &pair.hazy {
        inner = spatial_size(hazy)?;
        border(hazy, &inner, &pair.clear, &clear)?;
        planes += 3;
    }
    if let Some(depth) = &pair.depth {
        let size = spatial_size(depth)?;
        if size != clear && size != inner {
            return Err(DataError::SizesDiffer {
                path: depth.clone(),
                found: size,
                other: pair.clear.clone(),
                expected: clear,
            });
        }
        planes += 1;
    }
    Ok(inner.iter().product::<usize>() * planes)
}

/// The clear picture's border (rows, columns) on each side beyond the hazy one.
pub(super) fn border(
    hazy: &Path,
    inner: &[usize],
    clear: &Path,
    outer: &[usize],
) -> Result<[usize; 2]> {
    let beyond = |axis: usize| {
        let more = outer[axis].checked_sub(inner[axis])?;
        (more % 2 == 0 && more / 2 <= WIDEST_BORDER).then_some(more / 2)
    };
    match (beyond(0), beyond(1)) {
        (Some(y), Some(x)) => Ok([y, x]),
        _ => Err(DataError::SizesDiffer {
            path: hazy.into(),
            found: inner.into(),
            other: clear.into(),
            expected: outer.into(),
        }),
    }
}

/// The hazy and the clear picture of a pair, on the hazy one's pixels.
pub fn read_pair(pair: &Pair) -> Result<(RgbImage, RgbImage)> {
    let read = read(pair)?;
    match read.hazy {
        Some(hazy) => Ok((hazy, read.clear)),
        None => Err(DataError::Case {
            case: pair.id.clone(),
            problem: "it has no hazy picture; add it".into(),
        }),
    }
}

fn read(pair: &Pair) -> Result<Pictures> {
    let mut clear = read_rgb(&pair.clear)?;
    let size = |image: &RgbImage| [image.height() as usize, image.width() as usize];
    let outer = size(&clear);
    let hazy = pair.hazy.as_deref().map(read_rgb).transpose()?;
    let depth = match &pair.depth {
        Some(path) => Some(image::DynamicImage::from(read_rgb(path)?).to_luma8()),
        None => None,
    };
    let mut cut = [0, 0];
    let mut inner = outer;
    if let (Some(hazy), Some(path)) = (&hazy, &pair.hazy) {
        inner = size(hazy);
        cut = border(path, &inner, &pair.clear, &outer)?;
    }
    let [y, x] = cut.map(|v| v as u32);
    let (h, w) = (inner[0] as u32, inner[1] as u32);
    if inner != outer {
        clear = image::imageops::crop_imm(&clear, x, y, w, h).to_image();
    }
    let depth = depth.map(|map| match (map.width(), map.height()) == (w, h) {
        true => map,
        false => image::imageops::crop_imm(&map, x, y, w, h).to_image(),
    });
    Ok(Pictures { hazy, clear, depth })
}
