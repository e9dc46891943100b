//! Where a patch comes from: how it is turned, scaled and mirrored, and cutting one that is neither turned nor scaled, for any number of axes `D`.

use std::ops::Range;

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
pub(crate) const OUTSIDE: (f32, i16) = (0.0, -1);

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
        let factor = random.within(augment.scaling.range);
        for (axis, row) in matrix.iter_mut().enumerate() {
            if !(in_plane && axis == 0) {
                row.iter_mut().for_each(|v| *v *= factor);
            }
        }
    }
    Some(matrix)
}

/// Draws the axes that are mirrored.
pub(crate) fn draw_flips<const D: usize>(augment: &Augmentation, random: &mut Random) -> [bool; D] {
    let mut flips = [false; D];
    for &axis in augment.mirroring.axes.iter().filter(|&&a| a < D) {
        flips[axis] ^= random.chance(0.5);
    }
    flips
}

/// The map of a patch that is mirrored afterwards.
pub(crate) fn mirrored<const D: usize>(mut matrix: Matrix<D>, flips: [bool; D]) -> Matrix<D> {
    for row in &mut matrix {
        for (value, flip) in row.iter_mut().zip(flips) {
            if flip {
                *value = -*value;
            }
        }
    }
    matrix
}

pub(crate) fn identity<const D: usize>() -> Matrix<D> {
    let mut matrix = [[0.0; D]; D];
    for (axis, row) in matrix.iter_mut().enumerate() {
        row[axis] = 1.0;
    }
    matrix
}

pub(crate) fn strides<const D: usize>(size: &[usize; D]) -> [usize; D] {
    let mut strides = [1; D];
    for axis in (0..D - 1).rev() {
        strides[axis] = strides[axis + 1] * size[axis + 1];
    }
    strides
}

/// Calls `row(first axes' index, number of the row)` for every row along the last axis.
pub(crate) fn for_rows<const D: usize>(size: &[usize; D], mut row: impl FnMut(&[usize; D], usize)) {
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

/// Copies the box that begins at `start`, which may reach beyond the image, mirrored along the axes of `flips`.
pub(crate) fn cut<const D: usize>(
    source: &Source<D>,
    start: [isize; D],
    flips: [bool; D],
    target: &mut Target<D>,
) {
    let strides = strides(&source.size);
    let size = target.size;
    let (width, last) = (size[D - 1], D - 1);
    let voxels = target.label.len();
    // Columns of the box that the image has, and where they come to lie.
    let from = (-start[last]).clamp(0, width as isize);
    let to = (source.size[last] as isize - start[last]).clamp(from, width as isize);
    let read = (start[last] + from) as usize..(start[last] + to).max(0) as usize;
    let write = match flips[last] {
        true => width - to as usize..width - from as usize,
        false => from as usize..to as usize,
    };
    for_rows(&size, |index, row| {
        let mut at = Some(0);
        for axis in 0..last {
            let along = match flips[axis] {
                true => size[axis] - 1 - index[axis],
                false => index[axis],
            };
            let position = usize::try_from(start[axis] + along as isize).ok();
            let within = position.filter(|&p| p < source.size[axis]);
            at = at.zip(within).map(|(at, p)| at + p * strides[axis]);
        }
        let out = row * width..(row + 1) * width;
        // the place in a channel, if the row has any
        let read = at
            .filter(|_| !write.is_empty())
            .map(|at| at + read.start..at + read.end);
        let images = target.image.chunks_exact_mut(voxels);
        for (channel, image) in source.channels.iter().zip(images) {
            let read = read.clone().map_or(&[][..], |read| &channel[read]);
            copy(
                read,
                &write,
                flips[last],
                &mut image[out.clone()],
                OUTSIDE.0,
            );
        }
        let read = read.map_or(&[][..], |read| &source.label[read]);
        copy(read, &write, flips[last], &mut target.label[out], OUTSIDE.1);
    });
}

/// A row with `from`, unless it is empty, at `place`, and `outside` around it.
fn copy<T: Copy>(from: &[T], place: &Range<usize>, reverse: bool, row: &mut [T], outside: T) {
    if from.is_empty() {
        return row.fill(outside);
    }
    row[..place.start].fill(outside);
    row[place.end..].fill(outside);
    let to = &mut row[place.clone()];
    match reverse {
        true => to
            .iter_mut()
            .zip(from.iter().rev())
            .for_each(|(to, from)| *to = *from),
        false => to.copy_from_slice(from),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
}
