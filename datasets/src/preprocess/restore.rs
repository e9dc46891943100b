//! The way back: class scores on a network's grid to labels or probabilities on the grid of the file. Scores come plane by plane along the
//! plan's first axis and are resampled and decided plane by plane, so that two planes of all classes are held at a time and no volume.

use std::collections::VecDeque;
use std::path::Path;

use ndarray::{s, Array3, ArrayD, ArrayView4, Axis};

use super::resample::{Order, Sampler};
use super::{separate_axis_of, SourceGrid};
use crate::probabilities::Probabilities;
use crate::{Configuration, LabelMap, Result};

/// How scores become labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Scores compete: softmax, and the largest wins, the first of equals.
    Classes,
    /// Scores stand alone: sigmoid, and regions above one half are painted one over the other in this order with these labels.
    Regions(Vec<i16>),
}

/// A prediction on the file's grid.
#[derive(Debug)]
pub struct Restored {
    /// The label of every voxel.
    pub labels: LabelMap,
    /// (K, Z, Y, X), for 2-D files (K, 1, Y, X).
    pub probabilities: Option<Probabilities>,
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

    /// Labels of the mean of several networks' probabilities (K, Z, Y, X) on the file's grid.
    pub fn labels_of_mean(&self, members: &[ArrayView4<f32>]) -> Array3<i16> {
        let Some(first) = members.first() else {
            return Array3::zeros((0, 0, 0));
        };
        let (classes, z, y, x) = first.dim();
        let mut labels = Array3::zeros((z, y, x));
        let mut mean = vec![0f32; classes * y * x];
        let mut values = vec![0; y * x];
        for (k, mut plane) in labels.outer_iter_mut().enumerate() {
            mean.fill(0.0);
            for member in members {
                let of_plane = member.slice(s![.., k, .., ..]);
                mean.iter_mut().zip(&of_plane).for_each(|(m, v)| *m += v);
            }
            let n = members.len() as f32;
            mean.iter_mut().for_each(|m| *m /= n);
            self.decide(&mean, &mut values);
            plane.iter_mut().zip(&values).for_each(|(p, v)| *p = *v);
        }
        labels
    }
}

/// Brings class scores (K, Z, Y, X) on the configuration's grid back to the file's. Large probabilities lie in a file in `folder`.
pub fn restore(
    scores: ArrayView4<f32>,
    source: &SourceGrid,
    configuration: &Configuration,
    decision: &Decision,
    probabilities: Option<&Path>,
) -> Result<Restored> {
    let classes = scores.shape()[0];
    let size = [scores.shape()[1], scores.shape()[2], scores.shape()[3]];
    let column = Column::new(source.clone(), &[(size, configuration)]);
    let folder = probabilities.unwrap_or(Path::new("."));
    let wanted = probabilities.is_some();
    let mut restoring = Restoring::new(vec![column], classes, decision.clone(), folder, wanted)?;
    for plane in scores.axis_iter(Axis(1)) {
        restoring.push((0, 0), plane.iter().copied().collect());
    }
    restoring.finish()
}

/// The way back of several networks' scores to one prediction, as they come.
///
/// With one group of networks their scores decide; the probabilities of several are averaged first, as nnU-Net's ensembles are. Groups whose
/// plans have one order of axes go side by side, plane by plane (a [`Column`]). Columns go one after the other and need the probabilities
/// of the whole file.
pub struct Restoring {
    columns: Vec<Column>,
    classes: usize,
    groups: usize,
    decision: Decision,
    /// (Z, Y, X) in the order of axes of the last column.
    labels: Array3<i16>,
    /// (K, Z, Y, X) of the file, where they are asked for or needed.
    probabilities: Option<Probabilities>,
    wanted: bool,
    sum: Vec<f32>,
    plane: Vec<f32>,
}

/// Groups of networks whose plans have one order of axes.
pub struct Column {
    source: SourceGrid,
    ways: Vec<Way>,
    /// Output planes that are done.
    done: usize,
}

impl Column {
    /// Of the groups' sizes before resampling and their configurations.
    pub fn new(source: SourceGrid, groups: &[([usize; 3], &Configuration)]) -> Self {
        let ways = groups
            .iter()
            .map(|(size, configuration)| Way::new(*size, &source, configuration))
            .collect();
        Self {
            source,
            ways,
            done: 0,
        }
    }

    /// For each output plane and group, how many planes of scores it needs to have seen. Groups are to be fed in this order.
    pub fn schedule(&self) -> Vec<Vec<usize>> {
        let planes = 0..self.source.cropped_size()[0];
        planes
            .map(|k| {
                self.ways
                    .iter()
                    .map(|way| way.axes[0].at(k).1 + 1)
                    .collect()
            })
            .collect()
    }
}

impl Restoring {
    /// For columns that share the file. Probabilities are kept if they are `wanted` or needed, in memory or, if they are large, in a file in
    /// `folder`.
    pub fn new(
        columns: Vec<Column>,
        classes: usize,
        decision: Decision,
        folder: &Path,
        wanted: bool,
    ) -> Result<Self> {
        // the last column decides, so labels are in its order of axes
        let Some(Column { source, .. }) = columns.last() else {
            return Err(crate::DataError::Case {
                case: "image".into(),
                problem: "there is no network to predict it".into(),
            });
        };
        let [z, y, x] = source.transpose_backward.map(|axis| source.size[axis]);
        let probabilities = (wanted || columns.len() > 1)
            .then(|| Probabilities::zeros([classes, z, y, x], folder))
            .transpose()?;
        Ok(Self {
            groups: columns.iter().map(|c| c.ways.len()).sum(),
            labels: Array3::zeros(source.size),
            columns,
            classes,
            decision,
            probabilities,
            wanted,
            sum: Vec::new(),
            plane: Vec::new(),
        })
    }

    /// Takes the next plane (K, Y, X) of scores of a group, by its column and its place there, and does what can be done with it.
    pub fn push(&mut self, (column, group): (usize, usize), plane: Vec<f32>) {
        self.columns[column].ways[group].push(plane);
        loop {
            let it = &self.columns[column];
            let k = it.done;
            if k == it.source.cropped_size()[0] || !it.ways.iter().all(|way| way.has(k)) {
                return;
            }
            self.output(column, k);
            self.columns[column].done += 1;
        }
    }

    fn output(&mut self, column: usize, k: usize) {
        let Column { source, ways, .. } = &mut self.columns[column];
        let size = source.cropped_size();
        let n = size[1] * size[2];
        let single = self.groups == 1;
        self.plane.resize(self.classes * n, 0.0);
        let mut decided = vec![0i16; n];
        if single {
            ways[0].plane(k, &mut self.plane);
            // which class is largest is decided by the scores: probabilities may round to equals
            if self.decision == Decision::Classes {
                self.decision.decide(&self.plane, &mut decided);
            }
            if self.probabilities.is_some() || self.decision != Decision::Classes {
                self.decision.probabilities(&mut self.plane, n);
            }
            if self.decision != Decision::Classes {
                self.decision.decide(&self.plane, &mut decided);
            }
        } else {
            self.sum.clear();
            self.sum.resize(self.classes * n, 0.0);
            for way in ways.iter_mut() {
                way.plane(k, &mut self.plane);
                self.decision.probabilities(&mut self.plane, n);
                self.sum
                    .iter_mut()
                    .zip(&self.plane)
                    .for_each(|(s, p)| *s += p);
            }
            std::mem::swap(&mut self.sum, &mut self.plane);
        }
        let last = column + 1 == self.columns.len();
        let Column { source, .. } = &self.columns[column];
        let [z, y, x] = source.bounds;
        if let Some(store) = &mut self.probabilities {
            let [a, b, c] = inverse(source.transpose_backward);
            let view = store.view_mut().permuted_axes([0, a + 1, b + 1, c + 1]);
            let mut view = view.slice_move(s![.., z[0] + k, y[0]..y[1], x[0]..x[1]]);
            if column > 0 {
                view.iter_mut()
                    .zip(&self.plane)
                    .for_each(|(to, from)| *to += from);
                self.plane
                    .iter_mut()
                    .zip(&view)
                    .for_each(|(to, from)| *to = *from);
            }
            if !single && last {
                let groups = self.groups as f32;
                self.plane.iter_mut().for_each(|v| *v /= groups);
            }
            view.iter_mut()
                .zip(&self.plane)
                .for_each(|(to, from)| *to = *from);
        } else if !single {
            let groups = self.groups as f32;
            self.plane.iter_mut().for_each(|v| *v /= groups);
        }
        if !last {
            return;
        }
        if !single {
            self.decision.decide(&self.plane, &mut decided);
        }
        self.labels
            .slice_mut(s![z[0] + k, y[0]..y[1], x[0]..x[1]])
            .iter_mut()
            .zip(&decided)
            .for_each(|(to, from)| *to = *from);
    }

    /// The prediction on the file's grid, once every plane has been pushed.
    pub fn finish(mut self) -> Result<Restored> {
        let incomplete = |c: &&Column| c.done != c.source.cropped_size()[0];
        if let Some(column) = self.columns.iter().find(incomplete) {
            return Err(crate::DataError::Case {
                case: "image".into(),
                problem: format!(
                    "only {} of {} planes of scores came",
                    column.done,
                    column.source.cropped_size()[0]
                ),
            });
        }
        let Some(Column { source, .. }) = self.columns.pop() else {
            unreachable!("there is a column")
        };
        if let (true, Some(store)) = (self.decision == Decision::Classes, &mut self.probabilities) {
            background_outside(store, &source);
        }
        let [a, b, c] = source.transpose_backward;
        let labels = self.labels.permuted_axes([a, b, c]);
        Ok(Restored {
            labels: source.label_map(labels),
            probabilities: self.probabilities.filter(|_| self.wanted),
        })
    }
}

/// Outside of what cropping kept everything is background.
fn background_outside(store: &mut Probabilities, source: &SourceGrid) {
    let bounds = source.transpose_backward.map(|axis| source.bounds[axis]);
    let mut view = store.view_mut();
    let mut background = view.index_axis_mut(Axis(0), 0);
    for (z, mut plane) in background.outer_iter_mut().enumerate() {
        for (y, mut row) in plane.outer_iter_mut().enumerate() {
            let inside = |axis: usize, at: usize| (bounds[axis][0]..bounds[axis][1]).contains(&at);
            match inside(0, z) && inside(1, y) {
                true => {
                    row.slice_mut(s![..bounds[2][0]]).fill(1.0);
                    row.slice_mut(s![bounds[2][1]..]).fill(1.0);
                }
                false => row.fill(1.0),
            }
        }
    }
}

/// The order of axes that undoes an order of axes.
fn inverse(order: [usize; 3]) -> [usize; 3] {
    let mut inverse = [0; 3];
    for (axis, &from) in order.iter().enumerate() {
        inverse[from] = axis;
    }
    inverse
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

/// The way of one group's scores from the configuration's grid to the cropped file's.
struct Way {
    /// Size of a plane before resampling.
    plane: [usize; 2],
    /// Position of each output index along each axis.
    axes: [Line; 3],
    /// The planes that may still be needed, and the number of the first.
    held: VecDeque<Vec<f32>>,
    first: usize,
}

/// Where output positions lie along one axis.
struct Line {
    sampler: Sampler,
    linear: bool,
}

impl Way {
    fn new(from: [usize; 3], source: &SourceGrid, configuration: &Configuration) -> Self {
        let how = &configuration.resampling_fn_probabilities_kwargs;
        let separate = separate_axis_of(configuration, source.spacing, how);
        let (order, order_z) = how.orders();
        let size = source.cropped_size();
        let axes = std::array::from_fn(|axis| {
            let order = match separate == Some(axis) {
                true => order_z,
                false => order,
            };
            Line {
                sampler: Sampler::new(from[axis], size[axis]),
                // scores are not fitted with splines: their plans say 1
                linear: order != Order::Nearest && from[axis] != size[axis],
            }
        });
        Self {
            plane: [from[1], from[2]],
            axes,
            held: VecDeque::with_capacity(2),
            first: 0,
        }
    }

    fn push(&mut self, plane: Vec<f32>) {
        self.held.push_back(plane);
    }

    /// Whether the planes that output plane `k` is made of are there.
    fn has(&self, k: usize) -> bool {
        self.axes[0].at(k).1 < self.first + self.held.len()
    }

    /// Scores of all classes in output plane `k`, rounded to float32. Planes are asked for in order.
    fn plane(&mut self, k: usize, out: &mut [f32]) {
        let [z, y, x] = &self.axes;
        let (a, b, share) = z.at(k);
        while self.first < a {
            self.held.pop_front();
            self.first += 1;
        }
        let (pair, next) = (&self.held[a - self.first], &self.held[b - self.first]);
        let (ny, nx) = (y.sampler.nearest.len(), x.sampler.nearest.len());
        let [my, mx] = self.plane;
        let mut slice = vec![0f64; my * mx];
        let mut row = vec![0f64; mx];
        let planes = pair.chunks_exact(my * mx).zip(next.chunks_exact(my * mx));
        for ((pair, next), out) in planes.zip(out.chunks_exact_mut(ny * nx)) {
            for ((to, &a), &b) in slice.iter_mut().zip(pair).zip(next) {
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
