//! Cutting a patch out of an image, straight or through an affine map, for any number of axes `D`.
#![allow(clippy::needless_range_loop)] // axes, corners and lanes are counted

use crate::augment::wide::wide;
use crate::augment::Augmentation;
use crate::random::Random;

/// An image's channels and label map, contiguous, in array order.
pub(crate) struct Source<'a, const D: usize> {
    pub size: [usize; D],
    pub channels: Vec<&'a [f32]>,
    pub label: &'a [i16],
}

/// The patch to fill, (C, patch...) and (patch...).
pub(crate) struct Target<'a, const D: usize> {
    pub size: [usize; D],
    pub image: &'a mut [f32],
    pub label: &'a mut [i16],
}

/// Value of image and label beyond the image; the label is that outside the body.
const OUTSIDE: (f32, i16) = (0.0, -1);

/// A plane longer than this many times its width is turned a little only.
const ELONGATED: f64 = 1.5;
/// A volume's patch longer than this many times its first axis has few, thick slices.
const THICK: f64 = 3.0;

/// Whether a patch of few thick slices: nnU-Net turns and scales those within the slice, and keeps their number.
pub(crate) fn turns_in_plane(patch: &[usize]) -> bool {
    let longest = patch.iter().max().copied().unwrap_or(0);
    patch.len() == 3 && longest as f64 / patch[0] as f64 > THICK
}

/// `matrix * (index - centre of the patch) + centre in the image` is where a patch voxel comes from.
pub(crate) type Matrix<const D: usize> = [[f64; D]; D];

/// Draws rotation and scaling; none when the lot falls on neither.
pub(crate) fn draw_matrix<const D: usize>(
    augment: &Augmentation,
    patch: &[usize; D],
    random: &mut Random,
) -> Option<Matrix<D>> {
    let in_plane = turns_in_plane(patch);
    let rotation = &augment.rotation;
    let rotate = random.chance(rotation.probability);
    let scale = random.chance(augment.scaling.probability);
    if !rotate && !scale {
        return None;
    }
    let mut matrix = identity::<D>();
    if rotate {
        let planes: &[(usize, usize)] = match (D, in_plane) {
            (2, _) => &[(0, 1)],
            (_, true) => &[(1, 2)],
            // the turn about the first axis comes first of the three
            _ => &[(0, 1), (0, 2), (1, 2)],
        };
        let [shortest, longest] =
            [patch.iter().min(), patch.iter().max()].map(|n| n.copied().unwrap_or(1) as f64);
        let most = match planes.len() {
            1 if D == 2 && longest / shortest > ELONGATED => rotation.max_degrees_elongated,
            1 => rotation.max_degrees_2d,
            _ => rotation.max_degrees_3d,
        };
        for &(a, b) in planes {
            let (sin, cos) = random.within([-most, most]).to_radians().sin_cos();
            // The rotation's columns a and b times the matrix so far.
            for row in &mut matrix {
                (row[a], row[b]) = (row[a] * cos + row[b] * sin, row[b] * cos - row[a] * sin);
            }
        }
    }
    if scale {
        let factor = around_one(augment.scaling.range, random);
        for (axis, row) in matrix.iter_mut().enumerate() {
            if !(in_plane && axis == 0) {
                row.iter_mut().for_each(|v| *v *= factor);
            }
        }
    }
    Some(matrix)
}

/// A factor that is below 1 as often as above, if the range has both.
pub(crate) fn around_one([low, high]: [f64; 2], random: &mut Random) -> f64 {
    let below = random.chance(0.5);
    match (low < 1.0, high > 1.0) {
        (true, true) if below => random.within([low, 1.0]),
        (true, true) => random.within([1.0, high]),
        _ => random.within([low, high]),
    }
}

fn identity<const D: usize>() -> Matrix<D> {
    let mut matrix = [[0.0; D]; D];
    for (axis, row) in matrix.iter_mut().enumerate() {
        row[axis] = 1.0;
    }
    matrix
}

fn strides<const D: usize>(size: &[usize; D]) -> [usize; D] {
    let mut strides = [1; D];
    for axis in (0..D - 1).rev() {
        strides[axis] = strides[axis + 1] * size[axis + 1];
    }
    strides
}

/// Calls `row(first axes' index, number of the row)` for every row along the last axis.
fn for_rows<const D: usize>(size: &[usize; D], mut row: impl FnMut(&[usize; D], usize)) {
    let mut index = [0; D];
    let rows: usize = size[..D - 1].iter().product();
    for number in 0..rows {
        row(&index, number);
        for axis in (0..D - 1).rev() {
            index[axis] += 1;
            if index[axis] < size[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// Copies the box that begins at `start`, which may reach beyond the image.
pub(crate) fn cut<const D: usize>(source: &Source<D>, start: [isize; D], target: &mut Target<D>) {
    target.image.fill(OUTSIDE.0);
    target.label.fill(OUTSIDE.1);
    let strides = strides(&source.size);
    let (width, last) = (target.size[D - 1], D - 1);
    let voxels = target.label.len();
    // Columns of the patch that the image has.
    let from = (-start[last]).clamp(0, width as isize);
    let to = (source.size[last] as isize - start[last]).clamp(from, width as isize);
    let (from, to) = (from as usize, to as usize);
    for_rows(&target.size, |index, row| {
        let mut at = 0;
        for axis in 0..last {
            let position = start[axis] + index[axis] as isize;
            if position < 0 || position >= source.size[axis] as isize {
                return;
            }
            at += position as usize * strides[axis];
        }
        if from == to {
            return;
        }
        let read = at + (start[last] + from as isize) as usize;
        let read = read..read + (to - from);
        let write = row * width + from..row * width + to;
        for (c, channel) in source.channels.iter().enumerate() {
            target.image[c * voxels..][write.clone()].copy_from_slice(&channel[read.clone()]);
        }
        target.label[write].copy_from_slice(&source.label[read]);
    });
}

/// Columns that are interpolated together.
const LANES: usize = 16;

/// Fills the patch through an affine map about its centre: images linearly, labels by the greatest linear weight.
pub(crate) fn resample<const D: usize>(
    source: &Source<D>,
    start: [isize; D],
    matrix: &Matrix<D>,
    target: &mut Target<D>,
) {
    let middle: [f64; D] = std::array::from_fn(|a| (target.size[a] as f64 - 1.0) / 2.0);
    let step: [f32; D] = std::array::from_fn(|a| matrix[a][D - 1] as f32);
    let size = target.size;
    for_rows(&size, |index, row| {
        let origin: [f32; D] = std::array::from_fn(|a| {
            let from_rows: f64 = (0..D - 1)
                .map(|b| matrix[a][b] * (index[b] as f64 - middle[b]))
                .sum();
            (start[a] as f64 + middle[a] + from_rows - matrix[a][D - 1] * middle[D - 1]) as f32
        });
        resample_row(source, &origin, &step, row, target);
    });
}

/// Where column `column` of a row lies along an axis.
#[inline(always)]
fn position(origin: f32, step: f32, column: usize) -> f32 {
    origin + step * column as f32
}

/// The columns of a row, `width` at most, whose corners all lie within the image. Positions rise or fall along a row, so when the first and the
/// last column are within, all are.
fn columns_within<const D: usize>(
    size: &[usize; D],
    origin: &[f32; D],
    step: &[f32; D],
    width: usize,
) -> std::ops::Range<usize> {
    let within = |column: usize| {
        (0..D).all(|a| {
            let p = position(origin[a], step[a], column);
            p >= 0.0 && p < size[a] as f32 - 1.0
        })
    };
    let (mut from, mut to) = (0.0f64, width as f64);
    for a in 0..D {
        let (o, s, last) = (
            f64::from(origin[a]),
            f64::from(step[a]),
            size[a] as f64 - 1.0,
        );
        let ends = [-o / s, (last - o) / s];
        if s != 0.0 {
            from = from.max(ends[0].min(ends[1]).floor());
            to = to.min(ends[0].max(ends[1]).ceil() + 1.0);
        }
    }
    let mut columns = from.max(0.0) as usize..to.max(0.0) as usize;
    while !columns.is_empty() && !within(columns.start) {
        columns.start += 1;
    }
    while !columns.is_empty() && !within(columns.end - 1) {
        columns.end -= 1;
    }
    columns
}

wide! {
    fn resample_row<const D: usize>(source: &Source<D>, origin: &[f32; D], step: &[f32; D], row: usize, target: &mut Target<D>) {
        let width = target.size[D - 1];
        let within = columns_within(&source.size, origin, step, width);
        for column in (0..width).filter(|c| !within.contains(c)) {
            across_border(source, origin, step, column, row * width + column, target);
        }
        let mut first = within.start;
        while first < within.end {
            let count = LANES.min(within.end - first);
            within_image(source, origin, step, first, count, row * width + first, target);
            first += count;
        }
    }
}

/// `count` columns from `first` on, all of whose corners lie within the image.
#[inline(always)]
fn within_image<const D: usize>(
    source: &Source<D>,
    origin: &[f32; D],
    step: &[f32; D],
    first: usize,
    count: usize,
    out: usize,
    target: &mut Target<D>,
) {
    let strides = strides(&source.size);
    let pairs = 1usize << (D - 1);
    // a pair of corners are neighbours along the last axis
    let offsets: [usize; 4] = std::array::from_fn(|pair| {
        (0..D - 1)
            .filter(|axis| pair >> axis & 1 == 1)
            .map(|axis| strides[axis])
            .sum()
    });
    let mut fraction = [[0f32; LANES]; D];
    let mut low = [[0i32; LANES]; D];
    for a in 0..D {
        for lane in 0..LANES {
            let p = origin[a] + step[a] * (first + lane) as i32 as f32;
            low[a][lane] = p as i32;
            fraction[a][lane] = p - low[a][lane] as f32;
        }
    }
    let mut at = [0usize; LANES];
    for lane in 0..count {
        at[lane] = (0..D).map(|a| low[a][lane] as usize * strides[a]).sum();
    }
    let voxels = target.label.len();
    let mut values = [[0f32; LANES]; 8];
    for (c, channel) in source.channels.iter().enumerate() {
        for lane in 0..count {
            for pair in 0..pairs {
                let both = &channel[at[lane] + offsets[pair]..][..2];
                values[pair][lane] = both[0];
                values[pair + pairs][lane] = both[1];
            }
        }
        for axis in (0..D).rev() {
            for corner in 0..1usize << axis {
                for lane in 0..LANES {
                    let lower = values[corner][lane];
                    values[corner][lane] =
                        lower + fraction[axis][lane] * (values[corner | 1 << axis][lane] - lower);
                }
            }
        }
        target.image[c * voxels + out..][..count].copy_from_slice(&values[0][..count]);
    }
    for lane in 0..count {
        let mut labels = [0i16; 8];
        let mut different = 0;
        for pair in 0..pairs {
            let both = &source.label[at[lane] + offsets[pair]..][..2];
            labels[pair] = both[0];
            labels[pair + pairs] = both[1];
            different |= (both[0] ^ labels[0]) | (both[1] ^ labels[0]);
        }
        target.label[out + lane] = match different {
            0 => labels[0],
            _ => vote(
                &labels[..1 << D],
                &std::array::from_fn::<f32, D, _>(|a| fraction[a][lane]),
            ),
        };
    }
}

/// A column some of whose corners may lie beyond the image.
fn across_border<const D: usize>(
    source: &Source<D>,
    origin: &[f32; D],
    step: &[f32; D],
    column: usize,
    out: usize,
    target: &mut Target<D>,
) {
    let strides = strides(&source.size);
    let voxels = target.label.len();
    let mut low = [0i64; D];
    let mut fraction = [0f32; D];
    for a in 0..D {
        let p = position(origin[a], step[a], column);
        low[a] = p.floor() as i64;
        fraction[a] = p - p.floor();
    }
    let touching = (0..D).all(|a| low[a] >= -1 && low[a] < source.size[a] as i64);
    if !touching {
        for c in 0..source.channels.len() {
            target.image[c * voxels + out] = OUTSIDE.0;
        }
        target.label[out] = OUTSIDE.1;
        return;
    }
    // Bit `axis` of a corner's number says whether it is the upper one along the axis.
    let place = |corner: usize| {
        let mut at = 0;
        for a in 0..D {
            let index = low[a] + (corner >> a & 1) as i64;
            if !(0..source.size[a] as i64).contains(&index) {
                return None;
            }
            at += index as usize * strides[a];
        }
        Some(at)
    };
    for (c, channel) in source.channels.iter().enumerate() {
        let value = |corner| place(corner).map_or(OUTSIDE.0, |i| channel[i]);
        target.image[c * voxels + out] = blend(value, &fraction);
    }
    let mut labels = [0i16; 8];
    for (corner, label) in labels.iter_mut().enumerate().take(1 << D) {
        *label = place(corner).map_or(OUTSIDE.1, |i| source.label[i]);
    }
    target.label[out] = vote(&labels[..1 << D], &fraction);
}

/// Linear interpolation between the 2^D corners: they are halved axis by axis, the highest bit first.
#[inline(always)]
fn blend<const D: usize>(value: impl Fn(usize) -> f32, fraction: &[f32; D]) -> f32 {
    let mut values = [0f32; 8];
    for (corner, slot) in values.iter_mut().enumerate().take(1 << D) {
        *slot = value(corner);
    }
    for axis in (0..D).rev() {
        for corner in 0..1 << axis {
            values[corner] += fraction[axis] * (values[corner | 1 << axis] - values[corner]);
        }
    }
    values[0]
}

/// The label with the greatest sum of weights; of equals the one met first.
#[cold]
fn vote<const D: usize>(labels: &[i16], fraction: &[f32; D]) -> i16 {
    let mut weights = [1f32; 8];
    for (axis, upper) in fraction.iter().enumerate() {
        for (corner, weight) in weights.iter_mut().enumerate().take(1 << D) {
            *weight *= if corner >> axis & 1 == 1 {
                *upper
            } else {
                1.0 - upper
            };
        }
    }
    // A label met again is summed over fewer corners than at first, so it cannot win anew.
    let mut best = (labels[0], f32::MIN);
    for (i, &label) in labels.iter().enumerate() {
        let same = |&j: &usize| labels[j] == label;
        let sum: f32 = (i..labels.len()).filter(same).map(|j| weights[j]).sum();
        if sum > best.1 {
            best = (label, sum);
        }
    }
    best.0
}

/// Reverses one axis of a contiguous array.
pub(crate) fn flip<T>(values: &mut [T], size: &[usize], axis: usize) {
    let inner: usize = size[axis + 1..].iter().product();
    let n = size[axis];
    for block in values.chunks_exact_mut((n * inner).max(1)) {
        for i in 0..n / 2 {
            let (head, tail) = block.split_at_mut((n - 1 - i) * inner);
            head[i * inner..(i + 1) * inner].swap_with_slice(&mut tail[..inner]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn filled<const D: usize>(size: [usize; D]) -> (Vec<f32>, Vec<i16>) {
        let n: usize = size.iter().product();
        (
            (0..n).map(|i| (i * 7 % 31) as f32 - 9.0).collect(),
            (0..n).map(|i| (i * 5 % 4) as i16).collect(),
        )
    }

    /// The identity resampled is the patch cut straight, inside, across the border and beyond it, in two and three dimensions.
    #[test]
    fn identity_equals_cutting() {
        fn check<const D: usize>(size: [usize; D], patch: [usize; D], starts: &[[isize; D]]) {
            let (image, label) = filled(size);
            let source = Source {
                size,
                channels: vec![&image, &image],
                label: &label,
            };
            let n: usize = patch.iter().product();
            for &start in starts {
                let mut results = Vec::new();
                for straight in [true, false] {
                    let (mut image, mut label) = (vec![5.0; 2 * n], vec![9; n]);
                    let mut target = Target {
                        size: patch,
                        image: &mut image,
                        label: &mut label,
                    };
                    match straight {
                        true => cut(&source, start, &mut target),
                        false => resample(&source, start, &identity(), &mut target),
                    }
                    results.push((image, label));
                }
                assert_eq!(results[0], results[1], "start {start:?}");
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

    #[test]
    fn rotations_are_rotations() {
        let augment = Augmentation {
            scaling: crate::augment::Scaling {
                probability: 0.0,
                ..Default::default()
            },
            ..Default::default()
        };
        let mut turned = 0;
        for sample in 0..200 {
            let mut random = Random::new(3, 0, sample);
            let Some(m) = draw_matrix(&augment, &[32, 32, 32], &mut random) else {
                continue;
            };
            turned += 1;
            for a in 0..3 {
                for b in 0..3 {
                    let dot: f64 = (0..3).map(|k| m[a][k] * m[b][k]).sum();
                    assert!((dot - f64::from(u8::from(a == b))).abs() < 1e-12);
                }
            }
        }
        assert!(
            (20..70).contains(&turned),
            "{turned} of 200 turned at probability 0.2"
        );
        // Thick slices stay whole.
        let always = crate::augment::Rotation {
            probability: 1.0,
            ..Default::default()
        };
        let augment = Augmentation {
            rotation: always,
            ..Default::default()
        };
        let m = draw_matrix(&augment, &[8, 64, 64], &mut Random::new(1, 1, 1)).unwrap();
        assert_eq!((m[0], m[1][0], m[2][0]), ([1.0, 0.0, 0.0], 0.0, 0.0));
    }

    /// nnU-Net turns pictures by up to 180 degrees, those longer than 1.5 times their width by up to 15.
    #[test]
    fn elongated_pictures_turn_little() {
        let mut augment = Augmentation::none();
        augment.rotation.probability = 1.0;
        let widest = |patch: [usize; 2]| {
            let angle = |sample| {
                let m = draw_matrix(&augment, &patch, &mut Random::new(5, 0, sample)).unwrap();
                m[0][1].atan2(m[0][0]).to_degrees().abs()
            };
            (0..400).map(angle).fold(0.0, f64::max)
        };
        assert!((14.0..=15.0).contains(&widest([64, 97])));
        assert!((175.0..=180.0).contains(&widest([64, 96])));
    }

    #[test]
    fn flips() {
        let mut values: Vec<u8> = (0..12).collect();
        flip(&mut values, &[2, 3, 2], 1);
        assert_eq!(values, [4, 5, 2, 3, 0, 1, 10, 11, 8, 9, 6, 7]);
        flip(&mut values, &[2, 3, 2], 1);
        flip(&mut values, &[2, 3, 2], 2);
        assert_eq!(values, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]);
    }
}
