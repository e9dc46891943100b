//! The way back: class scores on a network's grid to labels or probabilities on the grid of the file. Scores are resampled plane by plane, so
//! that no more than one plane of all classes is held at the finer size.

use ndarray::{s, Array3, Array4, ArrayD, ArrayView4, Axis};

use super::resample::{Order, Sampler};
use super::{separate_axis_of, SourceGrid};
use crate::{Configuration, LabelMap};

/// How scores become labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Scores compete: softmax, and the largest wins, the first of equals.
    Classes,
    /// Scores stand alone: sigmoid, and regions above one half are painted one over the other in this order with these labels.
    Regions(Vec<i16>),
}

/// A prediction on the file's grid.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The label of every voxel.
    pub labels: LabelMap,
    /// (K, Z, Y, X), for 2-D files (K, 1, Y, X).
    pub probabilities: Option<Array4<f32>>,
}

impl Decision {
    /// Labels of one plane from the values of all classes, `(K, n)`.
    fn decide(&self, scores: &[f32], labels: &mut [i16]) {
        let n = labels.len();
        match self {
            Self::Classes => {
                let mut best = scores[..n].to_vec();
                labels.fill(0);
                for (class, values) in scores.chunks_exact(n).enumerate().skip(1) {
                    for ((best, label), &value) in best.iter_mut().zip(&mut *labels).zip(values) {
                        if value > *best {
                            (*best, *label) = (value, class as i16);
                        }
                    }
                }
            }
            Self::Regions(order) => {
                labels.fill(0);
                for (values, &region) in scores.chunks_exact(n).zip(order) {
                    for (label, &value) in labels.iter_mut().zip(values) {
                        if value > 0.5 {
                            *label = region;
                        }
                    }
                }
            }
        }
    }

    /// Scores to probabilities, in place.
    fn probabilities(&self, scores: &mut [f32], n: usize) {
        match self {
            Self::Classes => {
                for i in 0..n {
                    let column = |c: usize| c * n + i;
                    let classes = scores.len() / n;
                    let top = (0..classes).fold(f32::MIN, |m, c| m.max(scores[column(c)]));
                    let mut sum = 0.0;
                    for c in 0..classes {
                        let value = (scores[column(c)] - top).exp();
                        scores[column(c)] = value;
                        sum += value;
                    }
                    for c in 0..classes {
                        scores[column(c)] /= sum;
                    }
                }
            }
            Self::Regions(_) => {
                for value in scores {
                    *value = 1.0 / (1.0 + (-*value).exp());
                }
            }
        }
    }

    /// Labels of probabilities (K, Z, Y, X) on the file's grid.
    pub fn labels_of(&self, probabilities: ArrayView4<f32>) -> Array3<i16> {
        let (_, z, y, x) = probabilities.dim();
        let mut labels = Array3::zeros((z, y, x));
        for (k, mut plane) in labels.outer_iter_mut().enumerate() {
            let scores: Vec<f32> = probabilities
                .slice(s![.., k, .., ..])
                .iter()
                .copied()
                .collect();
            let mut values = vec![0; y * x];
            self.decide(&scores, &mut values);
            plane.iter_mut().zip(values).for_each(|(p, v)| *p = v);
        }
        labels
    }
}

/// Brings class scores (K, Z, Y, X) on the configuration's grid back to the file's.
pub fn restore(
    scores: ArrayView4<f32>,
    source: &SourceGrid,
    configuration: &Configuration,
    decision: &Decision,
    with_probabilities: bool,
) -> Restored {
    let way = Way::new(scores, source, configuration);
    let size = source.cropped_size();
    let n = size[1] * size[2];
    let classes = scores.shape()[0];
    let mut labels = Array3::<i16>::zeros(source.size);
    let mut probabilities = with_probabilities.then(|| {
        let [z, y, x] = source.size;
        let mut all = Array4::<f32>::zeros((classes, z, y, x));
        if *decision == Decision::Classes {
            all.index_axis_mut(Axis(0), 0).fill(1.0);
        }
        all
    });
    let [z, y, x] = source.bounds;
    let mut plane = vec![0f32; classes * n];
    let mut decided = vec![0i16; n];
    for k in 0..size[0] {
        way.plane(k, &mut plane);
        if with_probabilities || matches!(decision, Decision::Regions(_)) {
            // which class is largest is decided by the scores: probabilities may round to equals
            if *decision == Decision::Classes {
                decision.decide(&plane, &mut decided);
            }
            decision.probabilities(&mut plane, n);
            if *decision != Decision::Classes {
                decision.decide(&plane, &mut decided);
            }
        } else {
            decision.decide(&plane, &mut decided);
        }
        labels
            .slice_mut(s![z[0] + k, y[0]..y[1], x[0]..x[1]])
            .iter_mut()
            .zip(&decided)
            .for_each(|(to, from)| *to = *from);
        if let Some(all) = &mut probabilities {
            all.slice_mut(s![.., z[0] + k, y[0]..y[1], x[0]..x[1]])
                .iter_mut()
                .zip(&plane)
                .for_each(|(to, from)| *to = *from);
        }
    }
    let [a, b, c] = source.transpose_backward;
    let labels = labels.permuted_axes([a, b, c]);
    Restored {
        labels: source.label_map(labels),
        probabilities: probabilities
            .map(|p| p.permuted_axes([0, a + 1, b + 1, c + 1]))
            .map(|p| p.as_standard_layout().into_owned()),
    }
}

impl SourceGrid {
    /// A volume of labels in the file's axes as the file's own form.
    pub fn label_map(&self, labels: Array3<i16>) -> LabelMap {
        let labels = labels.as_standard_layout().into_owned();
        let data: ArrayD<i16> = match self.spatial_dims {
            2 => labels.index_axis_move(Axis(0), 0).into_dyn(),
            _ => labels.into_dyn(),
        };
        LabelMap {
            data,
            geometry: self.geometry.clone(),
        }
    }
}

/// Planes of scores at the size before resampling.
struct Way<'a> {
    scores: ArrayView4<'a, f32>,
    /// Position of each output index along each axis.
    axes: [Line; 3],
}

/// Where output positions lie along one axis.
struct Line {
    sampler: Sampler,
    linear: bool,
}

impl<'a> Way<'a> {
    fn new(
        scores: ArrayView4<'a, f32>,
        source: &SourceGrid,
        configuration: &Configuration,
    ) -> Self {
        let how = &configuration.resampling_fn_probabilities_kwargs;
        let separate = separate_axis_of(configuration, source.spacing, how);
        let (order, order_z) = how.orders();
        let size = source.cropped_size();
        let axes = std::array::from_fn(|axis| {
            let n_in = scores.shape()[axis + 1];
            let order = match separate == Some(axis) {
                true => order_z,
                false => order,
            };
            Line {
                sampler: Sampler::new(n_in, size[axis]),
                // scores are not fitted with splines: their plans say 1
                linear: order != Order::Nearest && n_in != size[axis],
            }
        });
        Self { scores, axes }
    }

    /// Scores of all classes in output plane `k`, rounded to float32.
    fn plane(&self, k: usize, out: &mut [f32]) {
        let [z, y, x] = &self.axes;
        let (ny, nx) = (y.sampler.nearest.len(), x.sampler.nearest.len());
        let (my, mx) = (self.scores.shape()[2], self.scores.shape()[3]);
        let mut slice = vec![0f64; my * mx];
        let mut row = vec![0f64; mx];
        for (scores, out) in self.scores.outer_iter().zip(out.chunks_exact_mut(ny * nx)) {
            let (a, b, share) = z.at(k);
            let pair = scores.index_axis(Axis(0), a);
            let next = scores.index_axis(Axis(0), b);
            for ((to, &a), &b) in slice.iter_mut().zip(&pair).zip(&next) {
                *to = mix(a.into(), b.into(), share);
            }
            for (j, out) in out.chunks_exact_mut(nx).enumerate() {
                let (a, b, share) = y.at(j);
                let (above, below) = (&slice[a * mx..][..mx], &slice[b * mx..][..mx]);
                for ((to, &a), &b) in row.iter_mut().zip(above).zip(below) {
                    *to = mix(a, b, share);
                }
                for (i, out) in out.iter_mut().enumerate() {
                    let (a, b, share) = x.at(i);
                    *out = mix(row[a], row[b], share) as f32;
                }
            }
        }
    }
}

fn mix(a: f64, b: f64, share: f64) -> f64 {
    match share == 0.0 {
        true => a,
        false => a * (1.0 - share) + b * share,
    }
}

impl Line {
    fn at(&self, i: usize) -> (usize, usize, f64) {
        match self.linear {
            true => {
                let (a, b) = self.sampler.neighbours[i];
                (a, b, self.sampler.share[i])
            }
            false => {
                let nearest = self.sampler.nearest[i];
                (nearest, nearest, 0.0)
            }
        }
    }
}
