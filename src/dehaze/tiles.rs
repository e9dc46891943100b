//! A picture in overlapping tiles, put together without a seam.
//!
//! Neighbouring tiles share `overlap` pixels. The outer quarters of that strip, where a tile lacks its surroundings, count nothing; between
//! them one tile fades into the other, and the weights add up to one.
//!
//! A network that judges a picture as a whole (its air light, its tone) judges every tile anew. Such tiles are *anchored*: the whole picture,
//! reduced to the size of a tile, goes through the network first, and every tile is brought to it by a gain and an offset that change
//! smoothly. Clear and hazy colours are linked by such a line, J = (I - A) / t + A, so what is corrected is just the estimate of air light
//! and haze, and detail stays the tile's own.

use anyhow::Result;

use super::filters::{mean, Between, Plane};
use crate::photo::Photo;

/// Three planes of a width and height -> as many.
pub type Restore<'a> = &'a dyn Fn(&[f32], usize, usize) -> Result<Vec<f32>>;

/// How a picture is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Longest side of a tile.
    pub tile: usize,
    /// Pixels that neighbours share.
    pub overlap: usize,
    /// Whether tiles are brought to the result of the whole.
    pub anchored: bool,
}

/// The least tile: twice the overlap that goes with it.
pub const SMALLEST_TILE: usize = 64;
/// Pixels that neighbours share where the tile has room: the reach of a U-Net with four halvings is about 100 pixels.
const OVERLAP: usize = 256;

impl Tiling {
    /// Tiles of this side.
    pub fn of_side(tile: usize, anchored: bool) -> Self {
        let tile = tile.max(SMALLEST_TILE);
        Self {
            tile,
            overlap: Self::overlap_of(tile),
            anchored,
        }
    }

    /// The overlap that goes with a tile.
    pub fn overlap_of(tile: usize) -> usize {
        OVERLAP.min(tile.max(SMALLEST_TILE) / 3)
    }

    /// Distance from which surroundings count nothing any more in any tile.
    pub fn margin(&self) -> usize {
        self.overlap / 4
    }
}

/// A tile along an axis, and how it fades into its neighbours.
#[derive(Debug, Clone, PartialEq)]
struct Span {
    start: usize,
    length: usize,
    /// Weight of each pixel.
    weights: Vec<f32>,
}

/// Tiles of equal length, evenly spread, none longer than `tile`.
fn spans(size: usize, tile: usize, overlap: usize) -> Vec<Span> {
    if size <= tile {
        return vec![Span {
            start: 0,
            length: size,
            weights: vec![1.0; size],
        }];
    }
    let count = (size - overlap).div_ceil(tile - overlap);
    let length = (size + (count - 1) * overlap).div_ceil(count).min(tile);
    let start = |k: usize| k * (size - length) / (count - 1);
    // From 0 to 1 across the middle half of the strip that tile k shares with the one before.
    let rise = |k: usize, x: usize| -> f32 {
        let (from, to) = (start(k) as f32, (start(k - 1) + length) as f32);
        let middle = 0.5 * (from + to);
        let fade = (0.5 * overlap as f32).max(1.0);
        let t = ((x as f32 + 0.5 - middle) / fade + 0.5).clamp(0.0, 1.0);
        t * t * (3.0 - 2.0 * t)
    };
    (0..count)
        .map(|k| {
            let weight = |x: usize| {
                let before = if k > 0 { rise(k, x) } else { 1.0 };
                let after = if k + 1 < count { rise(k + 1, x) } else { 0.0 };
                before - after
            };
            Span {
                start: start(k),
                length,
                weights: (start(k)..start(k) + length).map(weight).collect(),
            }
        })
        .collect()
}

/// The whole picture through the network, at once.
pub fn whole(photo: &Photo, restore: Restore) -> Result<Photo> {
    let (width, height) = (photo.width, photo.height);
    let planes = restore(&photo.planes(0, 0, width, height), width, height)?;
    let mut out = photo.clone();
    put(&mut out, 0, &planes, height);
    Ok(out)
}

/// Rows of planes into the picture from row `y`; the planes have at least so many rows.
fn put(out: &mut Photo, y: usize, planes: &[f32], rows: usize) {
    let (width, size) = (out.width, planes.len() / 3);
    let mut colours = vec![[0.0; 3]; width];
    for row in 0..rows {
        for (x, rgb) in colours.iter_mut().enumerate() {
            *rgb = [0, 1, 2].map(|c| planes[c * size + row * width + x]);
        }
        out.put_rows(y + row, &colours);
    }
}

/// The number of tiles.
pub fn count(photo: &Photo, tiling: Tiling) -> usize {
    spans(photo.width, tiling.tile, tiling.overlap).len()
        * spans(photo.height, tiling.tile, tiling.overlap).len()
}

/// The picture tile by tile. `on_tile` is called before each and may end the work. Memory beyond the picture and its result: the tile's, and
/// a band of the result as high as a tile.
pub fn tiled(
    photo: &Photo,
    tiling: Tiling,
    restore: Restore,
    on_tile: &mut dyn FnMut() -> Result<()>,
) -> Result<Photo> {
    let columns = spans(photo.width, tiling.tile, tiling.overlap);
    let rows = spans(photo.height, tiling.tile, tiling.overlap);
    let anchor = match tiling.anchored && columns.len() * rows.len() > 1 {
        true => {
            on_tile()?;
            Some(Anchor::new(photo, tiling.tile, restore)?)
        }
        false => None,
    };
    let mut out = photo.clone();
    let (width, high) = (photo.width, rows[0].length);
    let plane = width * high;
    let mut band = vec![0.0f32; 3 * plane];
    for (k, row) in rows.iter().enumerate() {
        for column in &columns {
            on_tile()?;
            let (w, h) = (column.length, row.length);
            let hazy = photo.planes(column.start, row.start, w, h);
            let mut tile = restore(&hazy, w, h)?;
            drop(hazy);
            if let Some(anchor) = &anchor {
                anchor.correct(&mut tile, column.start, row.start, w, h);
            }
            for c in 0..3 {
                for y in 0..h {
                    let from = &tile[c * w * h + y * w..][..w];
                    let to = &mut band[c * plane + y * width + column.start..][..w];
                    for ((to, from), weight) in to.iter_mut().zip(from).zip(&column.weights) {
                        *to += row.weights[y] * weight * from;
                    }
                }
            }
        }
        // Rows above the next tiles are done; the others move up.
        let next = rows.get(k + 1).map_or(photo.height, |r| r.start);
        let done = next - row.start;
        put(&mut out, row.start, &band, done);
        for c in 0..3 {
            let plane = &mut band[c * plane..(c + 1) * plane];
            plane.copy_within(done * width.., 0);
            plane[(high - done) * width..].fill(0.0);
        }
    }
    Ok(out)
}

/// The result of the whole picture, reduced.
struct Anchor {
    planes: [Plane; 3],
    /// Pixels of the picture.
    size: (usize, usize),
}

/// Part of the tile over which gain and offset are averaged, to each side.
const SMOOTH: f64 = 1.0 / 6.0;
/// Variance below which an area has no contrast to find a gain from: that of a step of 8 levels of 255.
const NO_CONTRAST: f32 = 1e-3;
/// Gains stay in a range in which they cannot do harm.
const GAINS: (f32, f32) = (0.5, 2.0);

impl Anchor {
    fn new(photo: &Photo, longest: usize, restore: Restore) -> Result<Self> {
        let side = photo.width.max(photo.height);
        let part = |n: usize| ((n * longest + side / 2) / side).max(1);
        let (width, height) = (part(photo.width), part(photo.height));
        let planes = restore(&photo.reduced(width, height), width, height)?;
        let size = width * height;
        let plane = |c: usize| Plane {
            width,
            height,
            values: planes[c * size..(c + 1) * size].to_vec(),
        };
        Ok(Self {
            planes: [plane(0), plane(1), plane(2)],
            size: (photo.width, photo.height),
        })
    }

    /// Brings a tile to the whole: with R what lacks, R = a T + b is fitted around every pixel of the reduced tile T, a shrinking to nothing
    /// where T has no contrast; a and b are averaged, enlarged, and a T + b is added to the tile.
    fn correct(&self, tile: &mut [f32], x: usize, y: usize, w: usize, h: usize) {
        let [first, ..] = &self.planes;
        let scale = first.width as f64 / self.size.0 as f64;
        let reduced = |n: usize| ((n as f64 * scale).round() as usize).max(1);
        let (gw, gh) = (reduced(w), reduced(h));
        // Where the reduced tile's pixels lie on the reduced picture.
        let places = |start: usize, n: usize, g: usize, whole: usize, on: usize| -> Vec<Between> {
            let place = |i: usize| {
                let at = start as f64 + (i as f64 + 0.5) * n as f64 / g as f64;
                Between::of(at * on as f64 / whole as f64, on)
            };
            (0..g).map(place).collect()
        };
        let xs = places(x, w, gw, self.size.0, first.width);
        let ys = places(y, h, gh, self.size.1, first.height);
        let radius = ((gw.max(gh) as f64 * SMOOTH).round() as usize).max(1);
        let (columns, lines) = (Between::resized(gw, w), Between::resized(gh, h));
        for (values, anchor) in tile.chunks_exact_mut(w * h).zip(&self.planes) {
            let small = shrink(values, w, h, gw, gh);
            let mut lacks = small.clone();
            for (row, y) in lacks.values.chunks_exact_mut(gw).zip(&ys) {
                for (v, x) in row.iter_mut().zip(&xs) {
                    *v = anchor.at(*x, *y) - *v;
                }
            }
            let (gain, offset) = line(&small, &lacks, radius);
            for (row, y) in values.chunks_exact_mut(w).zip(&lines) {
                for (v, x) in row.iter_mut().zip(&columns) {
                    *v += gain.at(*x, *y) * *v + offset.at(*x, *y);
                }
            }
        }
    }
}

/// Smooth a and b with `lacks` = a `small` + b.
fn line(small: &Plane, lacks: &Plane, radius: usize) -> (Plane, Plane) {
    let m = mean(small, radius);
    let n = mean(lacks, radius);
    let variance = mean(&small.zip(small, |a, b| a * b), radius).zip(&m, |s, m| s - m * m);
    let products = mean(&small.zip(lacks, |a, b| a * b), radius);
    let covariance = products.zip(&m.zip(&n, |a, b| a * b), |p, mn| p - mn);
    let (least, most) = (GAINS.0 - 1.0, GAINS.1 - 1.0);
    let gain = covariance.zip(&variance, |c, v| {
        (c / (v.max(0.0) + NO_CONTRAST)).clamp(least, most)
    });
    let offset = n.zip(&gain.zip(&m, |a, m| a * m), |n, am| n - am);
    (mean(&gain, radius), mean(&offset, radius))
}

/// Every pixel the mean of those it covers at least in part.
fn shrink(values: &[f32], w: usize, h: usize, gw: usize, gh: usize) -> Plane {
    let span = |i: usize, n: usize, of: usize| i * of / n..((i + 1) * of).div_ceil(n);
    let mut out = Vec::with_capacity(gw * gh);
    for y in 0..gh {
        let lines = span(y, gh, h);
        for x in 0..gw {
            let columns = span(x, gw, w);
            let sum: f64 = (lines.clone())
                .flat_map(|line| &values[line * w..][columns.clone()])
                .map(|v| f64::from(*v))
                .sum();
            out.push((sum / (lines.len() * columns.len()) as f64) as f32);
        }
    }
    Plane {
        width: gw,
        height: gh,
        values: out,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::photo::Samples;

    fn photo(width: usize, height: usize, colour: impl Fn(usize, usize) -> [f32; 3]) -> Photo {
        let samples = (0..width * height).flat_map(|i| colour(i % width, i / width));
        Photo {
            width,
            height,
            samples: Samples::F32(samples.collect()),
            ..Photo::of_rgb8(image::RgbImage::new(1, 1))
        }
    }

    fn textured(width: usize, height: usize) -> Photo {
        photo(width, height, |x, y| {
            let (x, y) = (x as f32, y as f32);
            [0.31, 0.17, 0.05]
                .map(|f| 0.5 + 0.2 * (x * f).sin() * (y * 0.7 * f).cos() + 0.1 * (y * 0.01).sin())
        })
    }

    fn largest_difference(a: &Photo, b: &Photo) -> f32 {
        let both = (0..a.height).flat_map(|y| a.rows(y, 1).into_iter().zip(b.rows(y, 1)));
        both.flat_map(|(a, b)| [0, 1, 2].map(|c| (a[c] - b[c]).abs()))
            .fold(0.0, f32::max)
    }

    #[test]
    fn weights_add_up_to_one_and_tiles_stay_below_their_size() {
        for tile in [64, 100, 257] {
            let overlap = Tiling::overlap_of(tile);
            for size in (1..900).step_by(13) {
                let mut sums = vec![0.0f32; size];
                for span in spans(size, tile, overlap) {
                    assert!(span.length <= tile);
                    for (i, w) in span.weights.iter().enumerate() {
                        assert!((0.0..=1.0).contains(w), "{w}");
                        sums[span.start + i] += w;
                    }
                }
                // float32
                assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-6), "{size} {tile}");
            }
        }
    }

    /// A network that sees `reach` pixels around: the mean of 2 reach + 1 columns and rows. Its surroundings end at the tile.
    fn blur(reach: usize) -> impl Fn(&[f32], usize, usize) -> Result<Vec<f32>> {
        move |planes, width, height| {
            let channel = |values: &[f32]| {
                let plane = Plane {
                    width,
                    height,
                    values: values.to_vec(),
                };
                mean(&plane, reach).values
            };
            Ok(planes
                .chunks_exact(width * height)
                .flat_map(channel)
                .collect())
        }
    }

    #[test]
    fn tiles_of_a_network_with_a_limited_reach_are_the_whole() {
        for (w, h) in [(300, 200), (517, 90), (64, 1000), (1, 700), (129, 129)] {
            let picture = textured(w, h);
            let tiling = Tiling::of_side(128, false);
            let restore = blur(tiling.margin());
            let expected = whole(&picture, &restore).unwrap();
            let found = tiled(&picture, tiling, &restore, &mut || Ok(())).unwrap();
            // float32 means
            let difference = largest_difference(&expected, &found);
            assert!(difference < 1e-6, "{w}x{h}: {difference}");
        }
    }

    /// A network that stretches what it sees to its own mean and contrast: the worst case for tiles.
    fn stretch(planes: &[f32], width: usize, height: usize) -> Result<Vec<f32>> {
        let size = width * height;
        let channel = |v: &[f32]| {
            let mean = v.iter().sum::<f32>() / size as f32;
            let deviation =
                (v.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / size as f32).sqrt();
            v.iter()
                .map(|v| 0.5 + 0.15 * (v - mean) / (deviation + 0.02))
                .collect::<Vec<_>>()
        };
        Ok(planes.chunks_exact(size).flat_map(channel).collect())
    }

    #[test]
    fn anchored_tiles_agree_with_the_whole_where_free_ones_do_not() {
        let picture = photo(640, 480, |x, y| {
            let (x, y) = (x as f32, y as f32);
            let value = 0.3 + 0.0007 * x + 0.05 * (x * 0.2).sin() * (y * 0.3).cos() + 0.0002 * y;
            [value, 0.8 * value, 1.0 - value]
        });
        let expected = whole(&picture, &stretch).unwrap();
        let of = |anchored| {
            let tiling = Tiling::of_side(192, anchored);
            largest_difference(
                &expected,
                &tiled(&picture, tiling, &stretch, &mut || Ok(())).unwrap(),
            )
        };
        let (free, anchored) = (of(false), of(true));
        assert!(free > 0.2, "{free}");
        assert!(anchored < 0.05, "{anchored}");
    }

    /// The largest step between neighbours beyond that of the whole, anywhere: a seam would be one.
    #[test]
    fn no_seam_even_where_tiles_disagree() {
        let flat = photo(500, 400, |x, _| [0.4 + 0.0002 * x as f32; 3]);
        for anchored in [false, true] {
            let tiling = Tiling::of_side(128, anchored);
            let out = tiled(&flat, tiling, &stretch, &mut || Ok(())).unwrap();
            let source = |x: usize, y: usize| out.rgb(x, y)[0];
            let mut step = 0.0f32;
            for y in 0..399 {
                for x in 0..499 {
                    step = step.max((source(x, y) - source(x + 1, y)).abs());
                    step = step.max((source(x, y) - source(x, y + 1)).abs());
                }
            }
            // Two levels of 8 bits. A hard edge between these tiles is 0.1.
            assert!(
                step < 2.0 / 255.0 + if anchored { 0.0 } else { 0.01 },
                "{anchored} {step}"
            );
        }
    }

    #[test]
    fn work_can_be_ended_between_tiles() {
        let mut seen = 0;
        let done = tiled(
            &textured(300, 300),
            Tiling::of_side(128, true),
            &blur(1),
            &mut || {
                seen += 1;
                anyhow::ensure!(seen < 4, "enough");
                Ok(())
            },
        );
        assert!(done.is_err());
        assert_eq!(seen, 4);
    }
}
