//! Cutting a patch out of an image, straight or through an affine map, for any number of axes `D`.

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
    pub label: &'a mut [i64],
}

/// Value of image and label beyond the image.
const OUTSIDE: (f32, i64) = (0.0, 0);

/// `matrix * (index - centre of the patch) + centre in the image` is where a patch voxel comes from.
pub(crate) type Matrix<const D: usize> = [[f64; D]; D];

/// Draws rotation and scaling; none when the lot falls on neither.
pub(crate) fn draw_matrix<const D: usize>(
    augment: &Augmentation,
    patch: &[usize; D],
    random: &mut Random,
) -> Option<Matrix<D>> {
    // Few thick slices: nnU-Net turns and scales within the slice only.
    let in_plane = D == 3 && patch.iter().max().is_some_and(|&m| m > 3 * patch[0]);
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
            _ => &[(1, 2), (0, 2), (0, 1)],
        };
        let most = if planes.len() == 1 {
            rotation.max_degrees_2d
        } else {
            rotation.max_degrees_3d
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
        for (out, &label) in target.label[write].iter_mut().zip(&source.label[read]) {
            *out = label.into();
        }
    });
}

/// Fills the patch through an affine map about its centre: images linearly, labels by the greatest linear weight.
pub(crate) fn resample<const D: usize>(
    source: &Source<D>,
    start: [isize; D],
    matrix: &Matrix<D>,
    target: &mut Target<D>,
) {
    let strides = strides(&source.size);
    let corners = 1usize << D;
    let mut offsets = [0usize; 8];
    for (corner, offset) in offsets.iter_mut().enumerate().take(corners) {
        *offset = (0..D)
            .filter(|axis| corner >> axis & 1 == 1)
            .map(|axis| strides[axis])
            .sum();
    }
    let middle: [f64; D] = std::array::from_fn(|a| (target.size[a] as f64 - 1.0) / 2.0);
    let width = target.size[D - 1];
    let voxels = target.label.len();
    let step: [f32; D] = std::array::from_fn(|a| matrix[a][D - 1] as f32);

    for_rows(&target.size, |index, row| {
        let origin: [f32; D] = std::array::from_fn(|a| {
            let from_rows: f64 = (0..D - 1)
                .map(|b| matrix[a][b] * (index[b] as f64 - middle[b]))
                .sum();
            (start[a] as f64 + middle[a] + from_rows - matrix[a][D - 1] * middle[D - 1]) as f32
        });
        for column in 0..width {
            let out = row * width + column;
            let mut low = [0i32; D];
            let mut fraction = [0f32; D];
            let (mut inside, mut touching) = (true, true);
            let mut at = 0isize;
            for axis in 0..D {
                let position = origin[axis] + step[axis] * column as f32;
                // `floor` without a call into the C library, which the portable instruction set would need.
                let truncated = position as i32;
                low[axis] = truncated - i32::from(truncated as f32 > position);
                fraction[axis] = position - low[axis] as f32;
                let size = source.size[axis] as i32;
                inside &= low[axis] >= 0 && low[axis] + 1 < size;
                touching &= low[axis] >= -1 && low[axis] < size;
                at += low[axis] as isize * strides[axis] as isize;
            }
            if inside {
                let place = |corner: usize| at as usize + offsets[corner];
                for (c, channel) in source.channels.iter().enumerate() {
                    target.image[c * voxels + out] =
                        blend(|corner| channel[place(corner)], &fraction);
                }
                target.label[out] =
                    heaviest(|corner| source.label[place(corner)].into(), &fraction);
            } else if touching {
                // Bit `axis` of a corner's number says whether it is the upper one along the axis.
                let place = |corner: usize| {
                    let there = (0..D).all(|axis| {
                        (0..source.size[axis] as i32)
                            .contains(&(low[axis] + (corner >> axis & 1) as i32))
                    });
                    there.then(|| (at + offsets[corner] as isize) as usize)
                };
                for (c, channel) in source.channels.iter().enumerate() {
                    let value = |corner| place(corner).map_or(OUTSIDE.0, |i| channel[i]);
                    target.image[c * voxels + out] = blend(value, &fraction);
                }
                let label = |corner| place(corner).map_or(OUTSIDE.1, |i| source.label[i].into());
                target.label[out] = heaviest(label, &fraction);
            } else {
                for c in 0..source.channels.len() {
                    target.image[c * voxels + out] = OUTSIDE.0;
                }
                target.label[out] = OUTSIDE.1;
            }
        }
    });
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
#[inline(always)]
fn heaviest<const D: usize>(label: impl Fn(usize) -> i64, fraction: &[f32; D]) -> i64 {
    let mut labels = [0i64; 8];
    let mut same = true;
    for (corner, slot) in labels.iter_mut().enumerate().take(1 << D) {
        *slot = label(corner);
    }
    for corner in 1..1 << D {
        same &= labels[corner] == labels[0];
    }
    if same {
        return labels[0];
    }
    vote(&labels[..1 << D], fraction)
}

fn vote<const D: usize>(labels: &[i64], fraction: &[f32; D]) -> i64 {
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
                assert_eq!(labels[row * 5 + column], i64::from(label[from]));
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
