//! Largest components: everything but the largest connected part of a class, a region or all foreground becomes background, where that helped in
//! cross-validation. The rule is nnU-Net's (`postprocessing/remove_connected_components.py`): voxels that touch by a corner are connected,
//! and of equally large components all stay.

use ndarray::{ArrayD, ArrayView3, Axis};
use serde::{Deserialize, Serialize};

use crate::metrics::overlap::{counts, mean, Counts};

/// What is done to label maps, in this order: of the voxels of these labels only the largest component stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postprocessing {
    /// Sets of labels.
    pub keep_largest: Vec<Vec<i16>>,
}

impl Postprocessing {
    /// Applies every step to a label map of two or three axes.
    pub fn apply(&self, labels: &mut ArrayD<i16>) {
        for step in &self.keep_largest {
            keep_largest(labels, step);
        }
    }
}

/// Sets voxels of `values` outside of their largest component to background.
pub fn keep_largest(labels: &mut ArrayD<i16>, values: &[i16]) {
    let rows = rows_of(labels, values);
    let components = Components::of(&rows);
    let Some(largest) = components.sizes.iter().copied().max() else {
        return;
    };
    let x_axis = labels.ndim() - 1;
    let width = labels.shape()[x_axis].max(1);
    let row_of = |n: usize| n..n + 1;
    let small = rows
        .runs
        .iter()
        .enumerate()
        .filter(|(run, _)| components.sizes[components.of_run[*run]] < largest);
    if let Some(all) = labels.as_slice_mut() {
        for (_, run) in small {
            let start = run.row * width;
            all[start + run.from..start + run.to].fill(0);
        }
        return;
    }
    let mut lanes: Vec<_> = labels.lanes_mut(Axis(x_axis)).into_iter().collect();
    for (_, run) in small {
        for lane in &mut lanes[row_of(run.row)] {
            lane.slice_mut(ndarray::s![run.from..run.to]).fill(0);
        }
    }
}

/// Voxels that follow one another along the fastest axis.
struct Run {
    row: usize,
    from: usize,
    to: usize,
}

/// The runs of a set of labels, and where those of each row begin.
struct Rows {
    runs: Vec<Run>,
    /// One more than there are rows.
    starts: Vec<usize>,
    /// Rows of a plane.
    height: usize,
}

fn rows_of(labels: &ArrayD<i16>, values: &[i16]) -> Rows {
    let volume: ArrayView3<i16> = {
        let mut view = labels.view();
        while view.ndim() < 3 {
            view = view.insert_axis(Axis(0));
        }
        match view.into_dimensionality() {
            Ok(view) => view,
            Err(_) => unreachable!("label maps have two or three axes"),
        }
    };
    let mut rows = Rows {
        runs: Vec::new(),
        starts: vec![0],
        height: volume.dim().1,
    };
    for (row, lane) in volume.rows().into_iter().enumerate() {
        let mut from = None;
        for (x, value) in lane.iter().enumerate() {
            match (values.contains(value), from) {
                (true, None) => from = Some(x),
                (false, Some(start)) => {
                    rows.runs.push(Run {
                        row,
                        from: start,
                        to: x,
                    });
                    from = None;
                }
                _ => {}
            }
        }
        if let Some(from) = from {
            let to = lane.len();
            rows.runs.push(Run { row, from, to });
        }
        rows.starts.push(rows.runs.len());
    }
    rows
}

struct Components {
    /// The component of each run.
    of_run: Vec<usize>,
    /// Voxels of each component; 0 for numbers that are none.
    sizes: Vec<usize>,
}

impl Components {
    /// Joins runs of neighbouring rows that touch, corners included.
    fn of(rows: &Rows) -> Self {
        let mut parent: Vec<usize> = (0..rows.runs.len()).collect();
        fn root(parent: &mut [usize], mut run: usize) -> usize {
            while parent[run] != run {
                parent[run] = parent[parent[run]];
                run = parent[run];
            }
            run
        }
        let count = rows.starts.len() - 1;
        let height = rows.height.max(1);
        for row in 0..count {
            let (z, y) = (row / height, row % height);
            let before = |dz: usize, dy: isize| {
                let y = y.checked_add_signed(dy).filter(|y| *y < height)?;
                Some(z.checked_sub(dz)? * height + y)
            };
            let neighbours = [before(0, -1), before(1, -1), before(1, 0), before(1, 1)];
            for other in neighbours.into_iter().flatten() {
                let (mut a, end_a) = (rows.starts[row], rows.starts[row + 1]);
                let (mut b, end_b) = (rows.starts[other], rows.starts[other + 1]);
                while a < end_a && b < end_b {
                    let (one, two) = (&rows.runs[a], &rows.runs[b]);
                    if one.from <= two.to && two.from <= one.to {
                        let (one, two) = (root(&mut parent, a), root(&mut parent, b));
                        parent[one.max(two)] = one.min(two);
                    }
                    match one.to < two.to {
                        true => a += 1,
                        false => b += 1,
                    }
                }
            }
        }
        let of_run: Vec<usize> = (0..rows.runs.len())
            .map(|run| root(&mut parent, run))
            .collect();
        let mut sizes = vec![0; rows.runs.len()];
        for (run, &component) in rows.runs.iter().zip(&of_run) {
            sizes[component] += run.to - run.from;
        }
        Self { of_run, sizes }
    }
}

/// A label map in few bytes: values and how often each follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    shape: Vec<usize>,
    runs: Vec<(i16, u32)>,
}

impl Packed {
    /// Packs a label map.
    pub fn new(labels: &ArrayD<i16>) -> Self {
        let mut runs: Vec<(i16, u32)> = Vec::new();
        for &value in labels {
            match runs.last_mut() {
                Some((last, n)) if *last == value && *n < u32::MAX => *n += 1,
                _ => runs.push((value, 1)),
            }
        }
        runs.shrink_to_fit();
        Self {
            shape: labels.shape().to_vec(),
            runs,
        }
    }

    /// Its size as (Z, Y, X).
    pub fn spatial(&self) -> Vec<usize> {
        let missing = 3usize.saturating_sub(self.shape.len());
        [vec![1; missing], self.shape.clone()].concat()
    }

    /// The label map.
    pub fn unpack(&self) -> ArrayD<i16> {
        let mut values = Vec::with_capacity(self.shape.iter().product());
        for &(value, n) in &self.runs {
            values.resize(values.len() + n as usize, value);
        }
        match ArrayD::from_shape_vec(self.shape.clone(), values) {
            Ok(labels) => labels,
            Err(_) => unreachable!("as many values as were packed"),
        }
    }
}

/// What is scored: classes or regions, and the label that is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scoring {
    /// Label values of each class or region, in the order they are gone through.
    pub classes: Vec<Vec<i16>>,
    /// All labels but the background and the ignored one.
    pub foreground: Vec<i16>,
    /// The label of voxels that are not annotated.
    pub ignored: Option<i16>,
}

/// Dice over cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiceScores {
    /// Mean over classes of their means over cases; none where a class has none.
    pub mean: Option<f64>,
    /// Of each class the mean over the cases that have it in prediction or reference.
    pub per_class: Vec<Option<f64>>,
}

impl DiceScores {
    /// From the counts of each case and class.
    pub fn of(cases: &[Vec<Counts>], classes: usize) -> Self {
        let per_class: Vec<Option<f64>> = (0..classes)
            .map(|class| mean(cases.iter().map(|case| case[class].dice())))
            .collect();
        let all: Option<Vec<f64>> = per_class.iter().copied().collect();
        Self {
            mean: all.map(|all| all.iter().sum::<f64>() / all.len() as f64),
            per_class,
        }
    }
}

/// Predictions and references of a cross-validation, packed.
pub struct Cases {
    /// Prediction and reference of each case.
    pub pairs: Vec<(Packed, Packed)>,
    /// What is scored.
    pub scoring: Scoring,
    /// Threads to score with.
    pub threads: usize,
}

impl Cases {
    /// Scores after postprocessing.
    pub fn scores(&self, post: &Postprocessing) -> DiceScores {
        let mut counted = Vec::with_capacity(self.pairs.len());
        vision_mamba_datasets::parallel::for_each_in_order(
            &self.pairs,
            self.threads,
            |(prediction, reference)| {
                let mut prediction = prediction.unpack();
                post.apply(&mut prediction);
                let Scoring {
                    classes, ignored, ..
                } = &self.scoring;
                counts(&prediction, &reference.unpack(), classes, *ignored)
            },
            |_, counts| counted.push(counts),
        );
        DiceScores::of(&counted, self.scoring.classes.len())
    }
}

/// Learns the postprocessing, by nnU-Net's rule (`determine_postprocessing`): first the largest component of all foreground, kept if the mean
/// Dice rises and that of no class falls; then, if there are several, each class or region in order on top of what is kept so far, if its
/// own Dice rises. Returns it with the scores before and after.
pub fn learn(cases: &Cases) -> (Postprocessing, DiceScores, DiceScores) {
    let before = cases.scores(&Postprocessing::default());
    let mut kept = Postprocessing::default();
    let mut scores = before.clone();
    let with = |kept: &Postprocessing, step: &[i16]| {
        let mut tried = kept.clone();
        tried.keep_largest.push(step.to_vec());
        let scores = cases.scores(&tried);
        (tried, scores)
    };
    let above = |a: Option<f64>, b: Option<f64>| matches!((a, b), (Some(a), Some(b)) if a > b);
    let (tried, new) = with(&kept, &cases.scoring.foreground);
    let falls = |(new, old): (&Option<f64>, &Option<f64>)| above(*old, *new);
    if above(new.mean, scores.mean) && !new.per_class.iter().zip(&scores.per_class).any(falls) {
        (kept, scores) = (tried, new);
    }
    if cases.scoring.classes.len() > 1 {
        for (number, class) in cases.scoring.classes.iter().enumerate() {
            let (tried, new) = with(&kept, class);
            if above(new.per_class[number], scores.per_class[number]) {
                (kept, scores) = (tried, new);
            }
        }
    }
    (kept, before, scores)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ndarray::Array3;

    use super::*;

    /// Components by flooding, voxel by voxel.
    fn flooded(labels: &ArrayD<i16>, values: &[i16]) -> ArrayD<i16> {
        let volume = labels
            .clone()
            .into_dimensionality::<ndarray::Ix3>()
            .unwrap();
        let mut number = Array3::<usize>::zeros(volume.raw_dim());
        let mut sizes = vec![0];
        let (nz, ny, nx) = volume.dim();
        for start in ndarray::indices(volume.raw_dim()) {
            if number[start] != 0 || !values.contains(&volume[start]) {
                continue;
            }
            sizes.push(0);
            let mut stack = vec![start];
            number[start] = sizes.len() - 1;
            while let Some((z, y, x)) = stack.pop() {
                *sizes.last_mut().unwrap() += 1;
                for k in z.saturating_sub(1)..(z + 2).min(nz) {
                    for j in y.saturating_sub(1)..(y + 2).min(ny) {
                        for i in x.saturating_sub(1)..(x + 2).min(nx) {
                            if number[(k, j, i)] == 0 && values.contains(&volume[(k, j, i)]) {
                                number[(k, j, i)] = sizes.len() - 1;
                                stack.push((k, j, i));
                            }
                        }
                    }
                }
            }
        }
        let largest = *sizes.iter().max().unwrap();
        let mut out = volume.clone();
        for (at, value) in out.indexed_iter_mut() {
            if number[at] > 0 && sizes[number[at]] < largest {
                *value = 0;
            }
        }
        out.into_dyn()
    }

    fn noise(size: [usize; 3], seed: u64, share: u64) -> ArrayD<i16> {
        let mut state = seed;
        Array3::from_shape_simple_fn(size, || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            match (state >> 33) % 100 {
                v if v < share => 1 + ((state >> 41) % 2) as i16,
                _ => 0,
            }
        })
        .into_dyn()
    }

    #[test]
    fn runs_give_the_components_that_flooding_gives() {
        for (size, share) in [
            ([5, 6, 7], 12),
            ([7, 9, 11], 8),
            ([1, 20, 20], 25),
            ([20, 1, 20], 25),
            ([9, 8, 1], 25),
            ([4, 4, 4], 0),
            ([4, 4, 4], 100),
        ] {
            for seed in 0..20 {
                let labels = noise(size, seed, share);
                for values in [&[1][..], &[2], &[1, 2]] {
                    let mut ours = labels.clone();
                    keep_largest(&mut ours, values);
                    assert_eq!(ours, flooded(&labels, values), "{size:?} {seed} {values:?}");
                    let mut turned = labels.t().to_owned();
                    turned = turned.reversed_axes();
                    keep_largest(&mut turned, values);
                    assert_eq!(turned, ours);
                }
            }
        }
    }

    #[test]
    fn of_equally_large_components_all_stay_and_corners_connect() {
        let plane = |values: &[i16]| ArrayD::from_shape_vec(vec![3, 5], values.to_vec()).unwrap();
        let mut labels = plane(&[1, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 2]);
        let before = labels.clone();
        keep_largest(&mut labels, &[1]);
        assert_eq!(labels, before);
        keep_largest(&mut labels, &[1, 2]);
        assert_eq!(
            labels,
            plane(&[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2])
        );
    }

    #[test]
    fn packing_loses_nothing() {
        for share in [0, 30, 100] {
            let labels = noise([4, 5, 6], 3, share);
            assert_eq!(Packed::new(&labels).unpack(), labels);
        }
    }

    fn line(values: &[i16]) -> Packed {
        Packed::new(&ArrayD::from_shape_vec(vec![1, values.len()], values.to_vec()).unwrap())
    }

    fn cases(pairs: Vec<(Packed, Packed)>) -> Cases {
        Cases {
            pairs,
            scoring: Scoring {
                classes: vec![vec![1], vec![2]],
                foreground: vec![1, 2],
                ignored: None,
            },
            threads: 2,
        }
    }

    #[test]
    fn a_step_that_helps_is_kept_and_one_that_harms_a_class_is_not() {
        // a stray voxel of class 1; class 2 lies in two parts in the reference too
        let all = cases(vec![(
            line(&[1, 1, 1, 0, 1, 0, 2, 2, 0, 2]),
            line(&[1, 1, 1, 0, 0, 0, 2, 2, 0, 2]),
        )]);
        let (post, before, after) = learn(&all);
        assert_eq!(post.keep_largest, [vec![1]]);
        assert!(after.mean > before.mean);
        assert_eq!(after.per_class, [Some(1.0), Some(1.0)]);
        // everything belongs together: all foreground goes first and leaves nothing to the classes
        let all = cases(vec![(
            line(&[1, 1, 2, 2, 0, 1, 0, 2]),
            line(&[1, 1, 2, 2, 0, 0, 0, 0]),
        )]);
        assert_eq!(learn(&all).0.keep_largest, [vec![1, 2]]);
        // a class that is nowhere leaves no mean to improve, but the other may
        let all = cases(vec![(line(&[1, 1, 0, 1]), line(&[1, 1, 0, 0]))]);
        let (post, before, _) = learn(&all);
        assert_eq!(before.mean, None);
        assert_eq!(post.keep_largest, [vec![1]]);
    }
}
