//! Distances between the surfaces of two masks, in the unit of the spacing, by the definitions that published numbers follow.
//!
//! * Voxels: the surface is the mask less its erosion; outside the image counts as background. MedPy pools the distances of both directions
//!   before percentile and mean; MONAI takes the larger of two percentiles.
//! * Surface elements: between voxels, weighted by the area that marching cubes gives them (Nikolov et al., arXiv:1809.04430, DeepMind's
//!   `surface-distance`, which U-Mamba's scripts use). In 2-D contour elements weighted by length.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ndarray::{s, Array3, ArrayView3};

use super::distance::DistanceTo;
use super::surfels::{element_weights, neighbourhood_codes, INSIDE};

/// The box of voxels with something in it; none if both masks are empty.
fn bounds(a: ArrayView3<bool>, b: ArrayView3<bool>) -> Option<[[usize; 2]; 3]> {
    let size = [a.dim().0, a.dim().1, a.dim().2];
    let mut bounds = size.map(|n| [n, 0]);
    for mask in [a, b] {
        for (z, plane) in mask.outer_iter().enumerate() {
            for (y, row) in plane.outer_iter().enumerate() {
                let Some(first) = row.iter().position(|m| *m) else {
                    continue;
                };
                // the row is known to have one
                let last = row.len() - 1 - row.iter().rev().position(|m| *m).unwrap_or(0);
                widen(&mut bounds, [[z, z + 1], [y, y + 1], [first, last + 1]]);
            }
        }
    }
    (bounds[0][1] > 0).then_some(bounds)
}

/// How many values from the first on equal it.
fn run(values: &[i16], first: i16) -> usize {
    const BLOCK: usize = 32;
    let mut n = 0;
    for block in values.chunks_exact(BLOCK) {
        // without a branch inside, so that it is done many at a time
        if block.iter().fold(0, |differs, v| differs | (v ^ first)) != 0 {
            break;
        }
        n += BLOCK;
    }
    n + values[n..].iter().take_while(|v| **v == first).count()
}

/// The box of each class, a set of label values, in either of two maps; empty for one that is in neither.
pub fn boxes(maps: [ArrayView3<i16>; 2], classes: &[Vec<i16>]) -> Vec<[[usize; 2]; 3]> {
    let mut by_value: BTreeMap<i16, [[usize; 2]; 3]> = BTreeMap::new();
    for map in &maps {
        for (z, plane) in map.outer_iter().enumerate() {
            for (y, row) in plane.outer_iter().enumerate() {
                let row = row
                    .to_slice()
                    .map_or_else(|| Cow::from(row.to_vec()), Cow::from);
                let mut x = 0;
                while let Some(&value) = row.get(x) {
                    let end = x + run(&row[x..], value);
                    if value != 0 {
                        let found = by_value.entry(value).or_insert([[usize::MAX, 0]; 3]);
                        widen(found, [[z, z + 1], [y, y + 1], [x, end]]);
                    }
                    x = end;
                }
            }
        }
    }
    classes
        .iter()
        .map(|values| {
            let mut all = [[usize::MAX, 0]; 3];
            for found in values.iter().filter_map(|v| by_value.get(v)) {
                widen(&mut all, *found);
            }
            match all[0][1] > 0 {
                true => all,
                false => [[0, 0]; 3],
            }
        })
        .collect()
}

fn widen(all: &mut [[usize; 2]; 3], by: [[usize; 2]; 3]) {
    for (range, [low, high]) in all.iter_mut().zip(by) {
        range[0] = range[0].min(low);
        range[1] = range[1].max(high);
    }
}

/// Which voxels are neighbours when a mask is eroded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connectivity {
    /// Those that share a face: everybody's default.
    Faces,
    /// Those that share an edge too (MedPy's `connectivity = 2`).
    Edges,
}

/// Voxels of a mask that have a neighbour outside it. An axis of one voxel has no neighbours if `flat`.
fn surface(mask: ArrayView3<bool>, connectivity: Connectivity, flat: bool) -> Array3<bool> {
    let size = [mask.dim().0, mask.dim().1, mask.dim().2];
    let most = match connectivity {
        Connectivity::Faces => 1,
        Connectivity::Edges => 2,
    };
    let mut offsets = Vec::new();
    for code in 0..27usize {
        let offset = [code / 9, code / 3 % 3, code % 3].map(|o| o as isize - 1);
        let steps = offset.iter().filter(|o| **o != 0).count();
        let thick = !flat || offset[0] == 0;
        if (1..=most).contains(&steps) && thick {
            offsets.push(offset);
        }
    }
    let mask = mask.as_standard_layout();
    let row = |z: usize, y: usize| mask.slice(s![z, y, ..]).to_slice().map(<[bool]>::to_vec);
    let [nz, ny, nx] = size;
    let mut found = Array3::from_elem(mask.dim(), false);
    let mut inner = vec![true; nx];
    for z in 0..nz {
        for y in 0..ny {
            let Some(own) = row(z, y).filter(|r| r.contains(&true)) else {
                continue;
            };
            inner.fill(true);
            for [dz, dy, dx] in &offsets {
                let place = (z.checked_add_signed(*dz), y.checked_add_signed(*dy));
                let (Some(z), Some(y)) = place else {
                    inner.fill(false);
                    break;
                };
                if z >= nz || y >= ny {
                    inner.fill(false);
                    break;
                }
                let other = mask.slice(s![z, y, ..]);
                let Some(other) = other.as_slice() else {
                    continue;
                };
                // beyond the ends of the row there is background
                match dx {
                    0 => inner.iter_mut().zip(other).for_each(|(i, o)| *i &= o),
                    1 => {
                        inner.iter_mut().zip(&other[1..]).for_each(|(i, o)| *i &= o);
                        inner[nx - 1] = false;
                    }
                    _ => {
                        inner[1..].iter_mut().zip(other).for_each(|(i, o)| *i &= o);
                        inner[0] = false;
                    }
                }
            }
            for ((found, own), inner) in found
                .slice_mut(s![z, y, ..])
                .iter_mut()
                .zip(&own)
                .zip(&inner)
            {
                *found = *own && !inner;
            }
        }
    }
    found
}

/// Distances of the surface of each mask to that of the other, by voxels; both in the order of the voxels.
#[derive(Debug, Clone, PartialEq)]
pub struct VoxelDistances {
    /// From the prediction's surface to the reference's.
    pub to_reference: Vec<f64>,
    /// From the reference's to the prediction's.
    pub to_prediction: Vec<f64>,
}

/// `spacing` in the order of the axes; `flat` for 2-D images, which have one slice.
pub fn voxel_distances(
    prediction: ArrayView3<bool>,
    reference: ArrayView3<bool>,
    spacing: [f64; 3],
    connectivity: Connectivity,
    flat: bool,
) -> VoxelDistances {
    let Some([z, y, x]) = bounds(prediction, reference) else {
        return VoxelDistances {
            to_reference: Vec::new(),
            to_prediction: Vec::new(),
        };
    };
    // beyond the box there is background, as beyond the image
    let kept = s![z[0]..z[1], y[0]..y[1], x[0]..x[1]];
    let of = |mask: ArrayView3<bool>| surface(mask.slice(kept), connectivity, flat);
    let (prediction, reference) = (of(prediction), of(reference));
    let to = |from: &Array3<bool>, to: &Array3<bool>| -> Vec<f64> {
        let distances = DistanceTo::new(to.view(), spacing);
        let on = from.indexed_iter().filter(|(_, s)| **s);
        on.map(|((z, y, x), _)| distances.squared([z, y, x]).sqrt())
            .collect()
    };
    VoxelDistances {
        to_reference: to(&prediction, &reference),
        to_prediction: to(&reference, &prediction),
    }
}

impl VoxelDistances {
    fn pooled(&self) -> Vec<f64> {
        [&self.to_reference[..], &self.to_prediction[..]].concat()
    }

    fn either_empty(&self) -> bool {
        self.to_reference.is_empty() || self.to_prediction.is_empty()
    }

    /// Largest distance (Hausdorff). `None` if a mask is empty.
    pub fn hd(&self) -> Option<f64> {
        self.either().map(|all| all.into_iter().fold(0.0, f64::max))
    }

    /// MedPy's: 95th percentile of both directions together, linear between neighbours.
    pub fn hd95(&self) -> Option<f64> {
        self.either().map(|all| percentile(all, 95.0))
    }

    /// MONAI's: the larger of the directions' 95th percentiles.
    pub fn hd95_directed(&self) -> Option<f64> {
        (!self.either_empty()).then(|| {
            let of = |v: &[f64]| percentile(v.to_vec(), 95.0);
            of(&self.to_reference).max(of(&self.to_prediction))
        })
    }

    /// Mean of both directions together: average symmetric surface distance.
    pub fn assd(&self) -> Option<f64> {
        self.either().map(|all| mean(&all))
    }

    /// Mean from the prediction to the reference.
    pub fn asd(&self) -> Option<f64> {
        (!self.either_empty()).then(|| mean(&self.to_reference))
    }

    /// Mean from the reference to the prediction.
    pub fn asd_back(&self) -> Option<f64> {
        (!self.either_empty()).then(|| mean(&self.to_prediction))
    }

    /// Part of both surfaces' voxels that lie within a tolerance of the other; 0 if one mask is empty, none if both are.
    pub fn nsd(&self, tolerance: f64) -> Option<f64> {
        let all = self.to_reference.len() + self.to_prediction.len();
        let near = |v: &[f64]| v.iter().filter(|d| **d <= tolerance).count();
        let within = near(&self.to_reference) + near(&self.to_prediction);
        (all > 0).then(|| within as f64 / all as f64)
    }

    fn either(&self) -> Option<Vec<f64>> {
        (!self.either_empty()).then(|| self.pooled())
    }
}

/// Distances of surface elements with their areas, ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct ElementDistances {
    /// From the reference's surface to the prediction's: distance and area.
    pub from_reference: Vec<(f64, f64)>,
    /// From the prediction's surface to the reference's.
    pub from_prediction: Vec<(f64, f64)>,
}

/// Surface elements and their distances; those of a mask whose counterpart is empty are infinite.
pub fn element_distances(
    prediction: ArrayView3<bool>,
    reference: ArrayView3<bool>,
    spacing: [f64; 3],
    flat: bool,
) -> ElementDistances {
    let Some([z, y, x]) = bounds(prediction, reference) else {
        return ElementDistances {
            from_reference: Vec::new(),
            from_prediction: Vec::new(),
        };
    };
    let kept = s![z[0]..z[1], y[0]..y[1], x[0]..x[1]];
    let weights = element_weights(spacing, flat);
    let codes = |mask: ArrayView3<bool>| neighbourhood_codes(mask.slice(kept), flat);
    let (prediction, reference) = (codes(prediction), codes(reference));
    let border = |codes: &Array3<u8>| codes.mapv(|c| c != 0 && c != INSIDE[usize::from(flat)]);
    let distances = |from: &Array3<u8>, to: &Array3<u8>| -> Vec<(f64, f64)> {
        let distances = DistanceTo::new(border(to).view(), spacing);
        let full = INSIDE[usize::from(flat)];
        let mut all: Vec<(f64, f64)> = from
            .indexed_iter()
            .filter(|(_, code)| **code != 0 && **code != full)
            .map(|((z, y, x), code)| {
                let distance = distances.squared([z, y, x]).sqrt();
                (distance, weights[usize::from(*code)])
            })
            .collect();
        all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        all
    };
    ElementDistances {
        from_reference: distances(&reference, &prediction),
        from_prediction: distances(&prediction, &reference),
    }
}

impl ElementDistances {
    /// The larger of the directions' distances below which a percentage of the area lies; infinite if a mask is empty.
    pub fn hd(&self, percent: f64) -> f64 {
        robust(&self.from_reference, percent).max(robust(&self.from_prediction, percent))
    }

    /// Part of both surfaces' area within a tolerance of the other: normalised surface Dice. 0 if one mask is empty, none if both are.
    pub fn nsd(&self, tolerance: f64) -> Option<f64> {
        let area = |v: &[(f64, f64)], most: f64| -> f64 {
            // from 0, for the sum of nothing is -0
            let within = v.iter().filter(|e| e.0 <= most);
            within.fold(0.0, |sum, e| sum + e.1)
        };
        let both = |most| area(&self.from_reference, most) + area(&self.from_prediction, most);
        let all = both(f64::INFINITY);
        (all > 0.0).then(|| both(tolerance) / all)
    }

    /// Mean distances weighted by area: from the reference, and from the prediction. NaN without a surface.
    pub fn asd(&self) -> (f64, f64) {
        let mean = |v: &[(f64, f64)]| {
            let area: f64 = v.iter().map(|e| e.1).sum();
            v.iter().map(|e| e.0 * e.1).sum::<f64>() / area
        };
        (mean(&self.from_reference), mean(&self.from_prediction))
    }
}

fn robust(elements: &[(f64, f64)], percent: f64) -> f64 {
    let all: f64 = elements.iter().map(|e| e.1).sum();
    let mut sum = 0.0;
    let reached = elements.iter().find(|(_, area)| {
        sum += area;
        sum / all >= percent / 100.0
    });
    match (reached, elements.last()) {
        (Some((distance, _)), _) => *distance,
        (None, Some((distance, _))) => *distance,
        (None, None) => f64::INFINITY,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Percentile of at least one value, linear between neighbours.
pub fn percentile(mut values: Vec<f64>, percent: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = percent / 100.0 * (values.len() - 1) as f64;
    let (below, share) = (at.floor() as usize, at.fract());
    match values.get(below + 1) {
        Some(above) if share > 0.0 => values[below] + (above - values[below]) * share,
        _ => values[below],
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn far_surfaces_have_an_nsd_of_zero_that_is_not_negative() {
        let mask = |at: usize| Array3::from_shape_fn((1, 1, 20), |(_, _, x)| x == at);
        let (a, b) = (mask(1), mask(15));
        let found = element_distances(a.view(), b.view(), [1.0; 3], false).nsd(1.0);
        assert_eq!(found.map(|v| v.to_string()), Some("0".to_owned()));
    }
}
