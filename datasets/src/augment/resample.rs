//! Filling a patch through an affine map: images linearly, labels by the greatest linear weight.
//!
//! A row of the patch is aimed once, then filled from each channel and from the label map. Maps that keep slices whole are aimed for one slice.
#![allow(clippy::needless_range_loop)] // axes, corners and lanes are counted

use std::ops::Range;

use crate::augment::elementary::whole_and_rest;
use crate::augment::spatial::{for_rows, strides, Matrix, Source, Target, OUTSIDE};
use crate::augment::wide::wide;

/// Columns whose labels are weighed together.
const LANES: usize = 16;

/// Fills the patch: its voxel at `index` comes from `matrix * (index - middle) + middle + start`, with the middle of the patch.
pub(crate) fn resample<const D: usize>(
    source: &Source<D>,
    start: [isize; D],
    matrix: &Matrix<D>,
    target: &mut Target<D>,
) {
    match keeps_slices(matrix) {
        true => slice_by_slice(source, start, matrix, target),
        false => row_by_row(source, start, matrix, target),
    }
}

fn row_by_row<const D: usize>(
    source: &Source<D>,
    start: [isize; D],
    matrix: &Matrix<D>,
    target: &mut Target<D>,
) {
    let map = Map::new(start, matrix, target.size);
    let (width, voxels) = (target.size[D - 1], target.label.len());
    let mut row = Row::new(&source.size);
    let mut corners = Corners::default();
    for_rows(&target.size.clone(), |index, number| {
        map.aim(index, width, &mut row);
        let place = number * width..(number + 1) * width;
        for (channel, image) in source
            .channels
            .iter()
            .zip(target.image.chunks_exact_mut(voxels))
        {
            row.values(channel, &mut corners, &mut image[place.clone()]);
        }
        row.labels(source.label, &mut corners, &mut target.label[place]);
    });
}

/// Whether a volume's slices along the first axis are neither mixed nor tilted, though their order may be reversed.
fn keeps_slices<const D: usize>(matrix: &Matrix<D>) -> bool {
    D == 3
        && matrix[0][0].abs() == 1.0
        && (1..D).all(|a| matrix[0][a] == 0.0 && matrix[a][0] == 0.0)
}

/// [`resample`] of a volume whose slices are kept whole.
fn slice_by_slice<const D: usize>(
    source: &Source<D>,
    start: [isize; D],
    matrix: &Matrix<D>,
    target: &mut Target<D>,
) {
    let last = |of: [usize; D]| [of[D - 2], of[D - 1]];
    let (size, full) = (last(target.size), last(source.size));
    let (pixels, plane) = (size[0] * size[1], full[0] * full[1]);
    let matrix_in_plane = [D - 2, D - 1].map(|a| [D - 2, D - 1].map(|b| matrix[a][b]));
    let map = Map::new([start[D - 2], start[D - 1]], &matrix_in_plane, size);
    let mut rows = Vec::with_capacity(size[0]);
    for number in 0..size[0] {
        let mut row = Row::new(&full);
        map.aim(&[number, 0], size[1], &mut row);
        rows.push(row);
    }
    let mut corners = Corners::default();
    let (slices, voxels) = (target.size[0], target.label.len());
    for slice in 0..slices {
        let step = match matrix[0][0] < 0.0 {
            true => slices - 1 - slice,
            false => slice,
        };
        let from = start[0] + step as isize;
        let within = (0..source.size[0] as isize).contains(&from);
        let to = slice * pixels..(slice + 1) * pixels;
        let images = target.image.chunks_exact_mut(voxels);
        let labels = &mut target.label[to.clone()];
        if !within {
            images.for_each(|image| image[to.clone()].fill(OUTSIDE.0));
            labels.fill(OUTSIDE.1);
            continue;
        }
        let from = from as usize * plane..(from as usize + 1) * plane;
        for (channel, image) in source.channels.iter().zip(images) {
            let out = image[to.clone()].chunks_exact_mut(size[1]);
            for (row, out) in rows.iter().zip(out) {
                row.values(&channel[from.clone()], &mut corners, out);
            }
        }
        for (row, out) in rows.iter().zip(labels.chunks_exact_mut(size[1])) {
            row.labels(&source.label[from.clone()], &mut corners, out);
        }
    }
}

/// An affine map from indices of the patch to positions in the image.
struct Map<const D: usize> {
    matrix: Matrix<D>,
    /// Where index 0 lies.
    offset: [f64; D],
}

impl<const D: usize> Map<D> {
    fn new(start: [isize; D], matrix: &Matrix<D>, patch: [usize; D]) -> Self {
        let middle = patch.map(|n| (n as f64 - 1.0) / 2.0);
        let offset = std::array::from_fn(|a| {
            let turned: f64 = (0..D).map(|b| matrix[a][b] * middle[b]).sum();
            start[a] as f64 + middle[a] - turned
        });
        Self {
            matrix: *matrix,
            offset,
        }
    }

    /// Aims a row of the patch: that of `index`, whose last entry is 0.
    fn aim(&self, index: &[usize; D], width: usize, row: &mut Row<D>) {
        let origin: [f32; D] = std::array::from_fn(|a| {
            let moved: f64 = (0..D - 1)
                .map(|b| self.matrix[a][b] * index[b] as f64)
                .sum();
            (self.offset[a] + moved) as f32
        });
        let step: [f32; D] = std::array::from_fn(|a| self.matrix[a][D - 1] as f32);
        row.aim(&origin, &step, width);
    }
}

/// Where a column of a row lies along an axis.
#[inline(always)]
fn position(origin: f32, step: f32, column: usize) -> f32 {
    origin + step * column as i32 as f32
}

/// Where the voxels of a row of the patch come from. Their corners are the 2^D voxels around a position; bit `axis` of a corner's number says
/// whether it is the upper one along the axis. A pair of corners are neighbours along the last axis.
struct Row<const D: usize> {
    /// Of the image.
    size: [usize; D],
    strides: [usize; D],
    /// How far a pair is from the first.
    pairs: [usize; 4],
    /// Columns whose corners all lie within the image.
    within: Range<usize>,
    /// Columns at least one of whose corners does.
    touching: Range<usize>,
    /// Whether the row is one of the image's rows, or lies between such, so that only the place along the last axis changes.
    straight: bool,
    /// The first corner of each column within.
    at: Vec<u32>,
    /// How far it lies towards the upper corners.
    fraction: [Vec<f32>; D],
    border: Vec<Border<D>>,
}

/// A column some of whose corners lie beyond the image.
struct Border<const D: usize> {
    column: usize,
    at: [Option<usize>; 8],
    fraction: [f32; D],
}

/// The corners of a row's columns, pair by pair.
#[derive(Default)]
struct Corners {
    values: [Vec<[f32; 2]>; 4],
    /// Between the image's rows.
    line: Vec<f32>,
    /// Two labels in one number, the lower corner's in its lower half.
    labels: [Vec<u32>; 4],
    different: Vec<u32>,
    /// Columns whose corners have different labels.
    mixed: Vec<u32>,
}

impl<const D: usize> Row<D> {
    /// Pairs of corners.
    const PAIRS: usize = 1 << (D - 1);

    fn new(image: &[usize; D]) -> Self {
        let strides = strides(image);
        let pairs = std::array::from_fn(|pair| {
            let upper = (0..D - 1).filter(|axis| pair >> axis & 1 == 1);
            upper.map(|axis| strides[axis]).sum()
        });
        Self {
            size: *image,
            strides,
            pairs,
            within: 0..0,
            touching: 0..0,
            straight: false,
            at: Vec::new(),
            fraction: std::array::from_fn(|_| Vec::new()),
            border: Vec::new(),
        }
    }

    fn aim(&mut self, origin: &[f32; D], step: &[f32; D], width: usize) {
        let size = self.size.map(|n| n as f32);
        self.touching = columns_between(&[-1.0; D], &size, origin, step, width);
        self.within = columns_between(&[0.0; D], &size.map(|n| n - 1.0), origin, step, width);
        // places are kept in 32 bits, positions are split below 4 million; what is larger goes the slow way
        let voxels: usize = self.size.iter().product();
        let large = u32::try_from(voxels).is_err() || self.size.iter().any(|&n| n > 4_000_000);
        if self.within.is_empty() || large {
            self.within = self.touching.start..self.touching.start;
        }
        self.straight = step[..D - 1].iter().all(|&s| s == 0.0);
        let count = self.within.len();
        self.at.resize(count, 0);
        for (axis, fraction) in self.fraction.iter_mut().enumerate() {
            fraction.resize(count, 0.0);
            place(
                &mut self.at,
                fraction,
                axis == 0,
                origin[axis],
                step[axis],
                self.within.start,
                self.strides[axis] as u32,
            );
        }
        self.border.clear();
        let before = self.touching.start..self.within.start;
        for column in before.chain(self.within.end..self.touching.end) {
            self.border.push(self.at_border(origin, step, column));
        }
    }

    fn at_border(&self, origin: &[f32; D], step: &[f32; D], column: usize) -> Border<D> {
        let mut low = [0i64; D];
        let mut fraction = [0f32; D];
        for a in 0..D {
            let p = position(origin[a], step[a], column);
            low[a] = p.floor() as i64;
            fraction[a] = p - p.floor();
        }
        let mut at = [None; 8];
        for (corner, at) in at.iter_mut().enumerate().take(1 << D) {
            let along = |a: usize| {
                let index = usize::try_from(low[a] + (corner >> a & 1) as i64).ok()?;
                (index < self.size[a]).then_some(index * self.strides[a])
            };
            *at = (0..D).try_fold(0, |sum, a| Some(sum + along(a)?));
        }
        Border {
            column,
            at,
            fraction,
        }
    }

    /// Fills the row from a channel.
    fn values(&self, channel: &[f32], corners: &mut Corners, out: &mut [f32]) {
        out[..self.touching.start].fill(OUTSIDE.0);
        out[self.touching.end..].fill(OUTSIDE.0);
        for border in &self.border {
            let value = |corner: usize| border.at[corner].map_or(OUTSIDE.0, |i| channel[i]);
            out[border.column] = blend_one(value, &border.fraction);
        }
        let (Some(&first), Some(&last)) = (self.at.first(), self.at.last()) else {
            return;
        };
        if self.straight {
            // the rows around are blended first, and the columns taken from what that gives
            let begin = first.min(last);
            let line = &mut corners.line;
            line.resize((first.max(last) - begin) as usize + 2, 0.0);
            let rows = self.pairs.map(|pair| &channel[begin as usize + pair..]);
            let fraction = std::array::from_fn(|a| self.fraction[a][0]);
            blend_rows::<D>(&rows, &fraction, line);
            let along = &self.fraction[D - 1];
            return take(line, &self.at, begin, along, &mut out[self.within.clone()]);
        }
        for pair in 0..Self::PAIRS {
            let found = &mut corners.values[pair];
            found.resize(self.at.len(), [0.0; 2]);
            collect_values(&self.at, &channel[self.pairs[pair]..], found);
        }
        blend::<D>(
            &corners.values,
            &self.fraction,
            &mut out[self.within.clone()],
        );
    }

    /// Fills the row from a label map.
    fn labels(&self, label: &[i16], corners: &mut Corners, out: &mut [i16]) {
        out[..self.touching.start].fill(OUTSIDE.1);
        out[self.touching.end..].fill(OUTSIDE.1);
        for border in &self.border {
            let labels = border.at.map(|at| at.map_or(OUTSIDE.1, |i| label[i]));
            out[border.column] = vote(&labels[..1 << D], &border.fraction);
        }
        for pair in 0..Self::PAIRS {
            let found = &mut corners.labels[pair];
            found.resize(self.at.len(), 0);
            collect_labels(&self.at, &label[self.pairs[pair]..], found);
        }
        let out = &mut out[self.within.clone()];
        first_labels::<D>(
            &corners.labels,
            &mut corners.different,
            &mut corners.mixed,
            out,
        );
        weigh::<D>(&corners.mixed, &corners.labels, &self.fraction, out);
    }
}

/// The columns of a row, `width` at most, whose positions are at least `low` and less than `high` along every axis. Positions rise or fall along a
/// row, so when the first and the last column are between, all are.
fn columns_between<const D: usize>(
    low: &[f32; D],
    high: &[f32; D],
    origin: &[f32; D],
    step: &[f32; D],
    width: usize,
) -> Range<usize> {
    let between = |column: usize| {
        (0..D).all(|a| {
            let p = position(origin[a], step[a], column);
            p >= low[a] && p < high[a]
        })
    };
    let (mut from, mut to) = (0.0f64, width as f64);
    for a in 0..D {
        let s = f64::from(step[a]);
        let ends = [low[a], high[a]].map(|end| (f64::from(end) - f64::from(origin[a])) / s);
        if s != 0.0 {
            from = from.max(ends[0].min(ends[1]).floor());
            to = to.min(ends[0].max(ends[1]).ceil() + 1.0);
        }
    }
    let mut columns = from.max(0.0) as usize..to.max(0.0) as usize;
    while !columns.is_empty() && !between(columns.start) {
        columns.start += 1;
    }
    while !columns.is_empty() && !between(columns.end - 1) {
        columns.end -= 1;
    }
    match columns.is_empty() {
        true => 0..0,
        false => columns,
    }
}

/// What lies at a place and after it. The default is never met, but lets loops go without branches.
#[inline(always)]
fn two<T: Copy + Default>(from: &[T], at: u32) -> [T; 2] {
    let at = at as usize;
    from.get(at..at + 2)
        .map_or([T::default(); 2], |two| [two[0], two[1]])
}

/// Linear interpolation between 2^D corners: they are halved axis by axis, the last axis first. Takes pairs of corners.
#[inline(always)]
fn halve<const D: usize>(pair: impl Fn(usize) -> [f32; 2], fraction: [f32; D]) -> f32 {
    let along = |f: f32, [low, high]: [f32; 2]| low + f * (high - low);
    let line = |number: usize| along(fraction[D - 1], pair(number));
    match D {
        2 => along(fraction[0], [line(0), line(1)]),
        _ => {
            let plane = |first: usize| along(fraction[1], [line(first), line(first + 2)]);
            along(fraction[0], [plane(0), plane(1)])
        }
    }
}

fn blend_one<const D: usize>(value: impl Fn(usize) -> f32, fraction: &[f32; D]) -> f32 {
    let pairs = 1 << (D - 1);
    halve(|pair| [value(pair), value(pair + pairs)], *fraction)
}

wide! {
    /// Adds to `at`, or with `first` begins it with, what columns' positions along an axis contribute, and keeps the fractions.
    fn place(at: &mut [u32], fraction: &mut [f32], first: bool, origin: f32, step: f32, start: usize, stride: u32) {
        let columns = start as i32..;
        for ((at, fraction), column) in at.iter_mut().zip(fraction).zip(columns) {
            let (low, rest) = whole_and_rest(origin + step * column as f32);
            *fraction = rest;
            let before = if first { 0 } else { *at };
            *at = before.wrapping_add(low.wrapping_mul(stride));
        }
    }

    fn collect_values(at: &[u32], from: &[f32], found: &mut [[f32; 2]]) {
        for (to, &at) in found.iter_mut().zip(at) {
            *to = two(from, at);
        }
    }

    /// Blends the rows that pairs begin with; the fraction along the last axis does not count.
    fn blend_rows<const D: usize>(rows: &[&[f32]; 4], fraction: &[f32; D], line: &mut [f32]) {
        let n = line.len();
        let rows: [&[f32]; 4] = std::array::from_fn(|p| &rows[p % (1 << (D - 1))][..n]);
        for i in 0..n {
            line[i] = halve(|pair| [rows[pair][i]; 2], *fraction);
        }
    }

    /// Takes columns from a line that begins at the place `begin`.
    fn take(line: &[f32], at: &[u32], begin: u32, fraction: &[f32], out: &mut [f32]) {
        for ((to, &at), &f) in out.iter_mut().zip(at).zip(fraction) {
            let [low, high] = two(line, at.wrapping_sub(begin));
            *to = low + f * (high - low);
        }
    }

    fn collect_labels(at: &[u32], from: &[i16], found: &mut [u32]) {
        for (to, &at) in found.iter_mut().zip(at) {
            let [low, high] = two(from, at).map(|label| u32::from(label as u16));
            *to = low | high << 16;
        }
    }

    fn blend<const D: usize>(corners: &[Vec<[f32; 2]>; 4], fraction: &[Vec<f32>; D], out: &mut [f32]) {
        let n = out.len();
        let pairs: [&[[f32; 2]]; 4] = std::array::from_fn(|p| &corners[p % (1 << (D - 1))][..n]);
        let fraction: [&[f32]; D] = std::array::from_fn(|a| &fraction[a][..n]);
        for i in 0..n {
            out[i] = halve(|pair| pairs[pair][i], std::array::from_fn::<_, D, _>(|a| fraction[a][i]));
        }
    }

    /// The first corner's label, and the columns in which another corner has a different one.
    fn first_labels<const D: usize>(corners: &[Vec<u32>; 4], different: &mut Vec<u32>, mixed: &mut Vec<u32>, out: &mut [i16]) {
        let n = out.len();
        let pairs: [&[u32]; 4] = std::array::from_fn(|p| &corners[p % (1 << (D - 1))][..n]);
        different.resize(n, 0);
        let found = &mut different[..n];
        for i in 0..n {
            let first = pairs[0][i] & 0xffff;
            out[i] = first as u16 as i16;
            found[i] = (first | first << 16) ^ pairs[0][i];
            for pair in 1..1 << (D - 1) {
                found[i] |= pairs[0][i] ^ pairs[pair][i];
            }
        }
        mixed.clear();
        for (number, found) in found.chunks(LANES).enumerate() {
            if found.iter().fold(0, |any, one| any | one) != 0 {
                let columns = (number * LANES) as u32..;
                mixed.extend(columns.zip(found).filter(|(_, f)| **f != 0).map(|(c, _)| c));
            }
        }
    }

    /// The labels of columns with different ones. Where there are two, they are weighed for many columns at a time.
    fn weigh<const D: usize>(columns: &[u32], corners: &[Vec<u32>; 4], fraction: &[Vec<f32>; D], out: &mut [i16]) {
        for columns in columns.chunks(LANES) {
            let mut labels = [[0i32; LANES]; 8];
            let mut upper = [[0f32; LANES]; D];
            for (lane, &column) in columns.iter().enumerate() {
                let i = column as usize;
                for pair in 0..1 << (D - 1) {
                    let both = corners[pair][i];
                    labels[pair][lane] = (both as i16).into();
                    labels[pair | 1 << (D - 1)][lane] = ((both >> 16) as i16).into();
                }
                for a in 0..D {
                    upper[a][lane] = fraction[a][i];
                }
            }
            let mut least = labels[0];
            let mut most = labels[0];
            for corner in 1..1 << D {
                for lane in 0..LANES {
                    least[lane] = least[lane].min(labels[corner][lane]);
                    most[lane] = most[lane].max(labels[corner][lane]);
                }
            }
            let mut sums = [[0f32; LANES]; 2];
            let mut others = [0u32; LANES];
            for corner in 0..1 << D {
                let mut weight = [1f32; LANES];
                for a in 0..D {
                    for lane in 0..LANES {
                        let f = upper[a][lane];
                        weight[lane] *= if corner >> a & 1 == 1 { f } else { 1.0 - f };
                    }
                }
                for lane in 0..LANES {
                    let (w, label) = (weight[lane], labels[corner][lane]);
                    let (is_least, is_most) = (label == least[lane], label == most[lane]);
                    sums[0][lane] += if is_least { w } else { 0.0 };
                    sums[1][lane] += if is_most { w } else { 0.0 };
                    others[lane] |= u32::from(!is_least & !is_most);
                }
            }
            for (lane, &column) in columns.iter().enumerate() {
                let clear = others[lane] == 0 && sums[0][lane] != sums[1][lane];
                out[column as usize] = match clear {
                    true if sums[0][lane] > sums[1][lane] => least[lane] as i16,
                    true => most[lane] as i16,
                    false => vote::<D>(
                        &std::array::from_fn::<i16, 8, _>(|c| labels[c][lane] as i16)[..1 << D],
                        &upper.map(|f| f[lane]),
                    ),
                };
            }
        }
    }
}

/// The label with the greatest sum of weights; of equals that of the nearest corner, else the one met first.
#[cold]
fn vote<const D: usize>(labels: &[i16], fraction: &[f32; D]) -> i16 {
    let mut weights = [1f32; 8];
    for (axis, upper) in fraction.iter().enumerate() {
        for (corner, weight) in weights.iter_mut().enumerate().take(1 << D) {
            *weight *= match corner >> axis & 1 {
                1 => *upper,
                _ => 1.0 - upper,
            };
        }
    }
    let sum = |label: i16| -> f32 {
        let same = labels.iter().zip(&weights).filter(|(l, _)| **l == label);
        same.map(|(_, weight)| weight).sum()
    };
    let nearest = (0..labels.len()).fold(0, |best, corner| match weights[corner] > weights[best] {
        true => corner,
        false => best,
    });
    let mut best = (labels[nearest], sum(labels[nearest]));
    for (i, &label) in labels.iter().enumerate() {
        if !labels[..i].contains(&label) {
            let sum = sum(label);
            if sum > best.1 {
                best = (label, sum);
            }
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::augment::spatial::{cut, draw_matrix, identity, mirrored};
    use crate::augment::Augmentation;
    use crate::random::Random;

    fn filled<const D: usize>(size: [usize; D]) -> (Vec<f32>, Vec<i16>) {
        let n: usize = size.iter().product();
        (
            (0..n).map(|i| (i * 7 % 31) as f32 - 9.0).collect(),
            (0..n).map(|i| (i * 5 % 4) as i16).collect(),
        )
    }

    fn target<const D: usize>(
        size: [usize; D],
        channels: usize,
        fill: impl FnOnce(&mut Target<D>),
    ) -> (Vec<f32>, Vec<i16>) {
        let n: usize = size.iter().product();
        let (mut image, mut label) = (vec![5.0; channels * n], vec![9; n]);
        fill(&mut Target {
            size,
            image: &mut image,
            label: &mut label,
        });
        (image, label)
    }

    /// The identity resampled is the patch cut straight, inside, across the border and beyond it, in two and three dimensions, mirrored or not; and
    /// both are what the image has at each place.
    #[test]
    fn identity_equals_cutting() {
        fn check<const D: usize>(size: [usize; D], patch: [usize; D], starts: &[[isize; D]]) {
            let (image, label) = filled(size);
            let negative: Vec<f32> = image.iter().map(|v| -v).collect();
            let source = Source {
                size,
                channels: vec![&image, &negative],
                label: &label,
            };
            let n: usize = patch.iter().product();
            for (&start, flips) in starts.iter().flat_map(|s| (0..1 << D).map(move |f| (s, f))) {
                let flips: [bool; D] = std::array::from_fn(|a| flips >> a & 1 == 1);
                let found = target(patch, 2, |t| cut(&source, start, flips, t));
                let matrix = mirrored(identity(), flips);
                let whole = target(patch, 2, |t| resample(&source, start, &matrix, t));
                let rows = target(patch, 2, |t| row_by_row(&source, start, &matrix, t));
                assert_eq!(found, whole, "start {start:?} {flips:?}");
                assert_eq!(found, rows, "start {start:?} {flips:?}");
                for i in 0..n {
                    let along = |a: usize| {
                        let at = i / strides(&patch)[a] % patch[a];
                        let at = if flips[a] { patch[a] - 1 - at } else { at };
                        let at = usize::try_from(start[a] + at as isize).ok()?;
                        (at < size[a]).then_some(at * strides(&size)[a])
                    };
                    let at = (0..D).try_fold(0, |sum, a| Some(sum + along(a)?));
                    let want = at.map_or(OUTSIDE, |at| (image[at], label[at]));
                    assert_eq!((found.0[i], found.1[i]), want);
                    assert_eq!(found.0[n + i], -want.0);
                }
            }
        }
        check(
            [9, 11],
            [4, 6],
            &[[0, 0], [3, 2], [-2, 7], [7, -3], [20, 0], [-9, -9]],
        );
        check(
            [5, 6, 7],
            [3, 4, 4],
            &[[0, 0, 0], [2, 2, 3], [-1, 4, -2], [4, -3, 5], [0, 0, 30]],
        );
    }

    /// Turned and scaled patches against the definition in float64, across borders, with two labels and with many. Values differ by float32's
    /// positions (3e-5 of a voxel here, steps of up to 40 between neighbours: 2e-3 found); labels where the two best are nearer than 1e-3.
    #[test]
    fn any_map_is_linear_interpolation_and_the_greatest_weight() {
        fn check<const D: usize>(size: [usize; D], patch: [usize; D], labels: usize) {
            let (image, label) = filled(size);
            let label: Vec<i16> = label.iter().map(|l| l % labels as i16 - 1).collect();
            let source = Source {
                size,
                channels: vec![&image],
                label: &label,
            };
            let mut augment = Augmentation::none();
            augment.scaling.probability = 1.0;
            for number in 0..12 {
                // every other one is scaled only
                augment.rotation.probability = (number % 2) as f64;
                let mut random = Random::new(4, 0, number);
                let matrix = draw_matrix(&augment, &patch, &mut random).unwrap();
                let matrix = mirrored(matrix, std::array::from_fn(|_| random.chance(0.5)));
                let start = size.map(|n| random.below(n) as isize - n as isize / 2);
                let found = target(patch, 1, |t| resample(&source, start, &matrix, t));
                let mut unsure = 0;
                for i in 0..found.1.len() {
                    let centred: [f64; D] = std::array::from_fn(|a| {
                        (i / strides(&patch)[a] % patch[a]) as f64 - (patch[a] as f64 - 1.0) / 2.0
                    });
                    let position: [f64; D] = std::array::from_fn(|a| {
                        let turned: f64 = (0..D).map(|b| matrix[a][b] * centred[b]).sum();
                        turned + (patch[a] as f64 - 1.0) / 2.0 + start[a] as f64
                    });
                    let mut value = 0.0;
                    let mut scores = std::collections::BTreeMap::new();
                    for corner in 0..1 << D {
                        let (mut weight, mut at) = (1.0, Some(0));
                        for a in 0..D {
                            let upper = corner >> a & 1;
                            let f = position[a] - position[a].floor();
                            weight *= if upper == 1 { f } else { 1.0 - f };
                            let index = position[a].floor() as isize + upper as isize;
                            let inside = (0..size[a] as isize).contains(&index);
                            at = at
                                .filter(|_| inside)
                                .map(|at| at + index as usize * strides(&size)[a]);
                        }
                        let (v, l) = at.map_or(OUTSIDE, |at| (image[at], label[at]));
                        value += weight * f64::from(v);
                        *scores.entry(l).or_insert(0.0) += weight;
                    }
                    assert!((f64::from(found.0[i]) - value).abs() < 6e-3, "{i} {value}");
                    let best = scores.values().copied().fold(0.0, f64::max);
                    let near = scores.values().filter(|s| best - **s < 1e-3).count();
                    match near {
                        1 => assert_eq!(scores[&found.1[i]], best, "{i} {scores:?}"),
                        _ => unsure += 1,
                    }
                }
                assert!(unsure * 20 <= found.1.len(), "{unsure}");
            }
        }
        check([40, 37], [33, 41], 2);
        check([40, 37], [33, 41], 4);
        check([20, 25, 23], [16, 19, 21], 2);
        check([20, 25, 23], [16, 19, 21], 4);
        // thick slices
        check([7, 40, 37], [6, 33, 41], 4);
    }

    /// A quarter turn moves every voxel onto a voxel: compare with the transposed and flipped array.
    #[test]
    fn quarter_turn() {
        let size = [5, 5];
        let (image, label) = filled(size);
        let source = Source {
            size,
            channels: vec![&image],
            label: &label,
        };
        let (mut turned, mut labels) = (vec![0.0; 25], vec![0; 25]);
        let matrix = [[0.0, 1.0], [-1.0, 0.0]];
        resample(
            &source,
            [0, 0],
            &matrix,
            &mut Target {
                size,
                image: &mut turned,
                label: &mut labels,
            },
        );
        for row in 0..5 {
            for column in 0..5 {
                let from = column * 5 + (4 - row);
                assert_eq!(turned[row * 5 + column], image[from]);
                assert_eq!(labels[row * 5 + column], label[from]);
            }
        }
    }

    /// Halfway between voxels the value is their mean, and the label that of the heavier corners.
    #[test]
    fn halfway_values() {
        let image = [0.0, 2.0, 4.0, 10.0];
        let source = Source {
            size: [2, 2],
            channels: vec![&image],
            label: &[1, 1, 0, 2],
        };
        let (mut out, mut label) = (vec![0.0], vec![0]);
        // A patch of size 2 scaled to nothing reads the centre; size 1 with start 0 reads the corner.
        let mut target = Target {
            size: [1, 1],
            image: &mut out,
            label: &mut label,
        };
        resample(&source, [0, 0], &identity(), &mut target);
        assert_eq!((out[0], label[0]), (0.0, 1));
        let (mut out, mut label) = (vec![0.0; 4], vec![0; 4]);
        resample(
            &source,
            [0, 0],
            &[[0.0, 0.0], [0.0, 0.0]],
            &mut Target {
                size: [2, 2],
                image: &mut out,
                label: &mut label,
            },
        );
        assert_eq!((out, label), (vec![4.0; 4], vec![1; 4]));
    }
}
