//! Overlap of two label maps: counts per class, Dice and IoU.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

/// Counts of one class: true and false positives and negatives, in voxels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Predicted and there.
    pub tp: u64,
    /// Predicted and not there.
    pub fp: u64,
    /// There and not predicted.
    pub fn_: u64,
    /// Neither.
    pub tn: u64,
}

impl Counts {
    /// 2 TP / (2 TP + FP + FN), in [0, 1], 1 is best; `None` when the class is in neither map (nnU-Net's rule: such a
    /// case does not enter the mean).
    pub fn dice(&self) -> Option<f64> {
        let all = 2 * self.tp + self.fp + self.fn_;
        (all > 0).then(|| 2.0 * self.tp as f64 / all as f64)
    }

    /// TP / (TP + FP + FN), in [0, 1]; `None` when the class is in neither map.
    pub fn iou(&self) -> Option<f64> {
        let all = self.tp + self.fp + self.fn_;
        (all > 0).then(|| self.tp as f64 / all as f64)
    }

    /// TP / (TP + FP): which part of the prediction is right; `None` without a prediction.
    pub fn precision(&self) -> Option<f64> {
        share(self.tp, self.tp + self.fp)
    }

    /// TP / (TP + FN): which part of the reference is found; `None` without a reference.
    pub fn sensitivity(&self) -> Option<f64> {
        share(self.tp, self.tp + self.fn_)
    }

    /// TN / (TN + FP); `None` where the reference is everywhere.
    pub fn specificity(&self) -> Option<f64> {
        share(self.tn, self.tn + self.fp)
    }

    /// (TP + TN) / all voxels.
    pub fn accuracy(&self) -> Option<f64> {
        share(self.tp + self.tn, self.tp + self.tn + self.fp + self.fn_)
    }

    /// (predicted - reference) / reference: relative volume difference; `None` without a reference.
    pub fn volume_difference(&self) -> Option<f64> {
        let reference = (self.tp + self.fn_) as f64;
        (reference > 0.0).then(|| ((self.tp + self.fp) as f64 - reference) / reference)
    }

    /// Adds the counts of another case.
    pub fn add(&mut self, other: &Self) {
        self.tp += other.tp;
        self.fp += other.fp;
        self.fn_ += other.fn_;
        self.tn += other.tn;
    }
}

fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

/// Counts of each class, a set of label values, over two maps of equal shape. Voxels whose reference is negative or the ignored label are left
/// out.
pub fn counts(
    prediction: &ArrayD<i16>,
    reference: &ArrayD<i16>,
    classes: &[Vec<i16>],
    ignored: Option<i16>,
) -> Vec<Counts> {
    let mut pairs = Pairs::new(classes, ignored);
    match (prediction.as_slice(), reference.as_slice()) {
        (Some(p), Some(r)) => p
            .chunks(BLOCK)
            .zip(r.chunks(BLOCK))
            .for_each(|(p, r)| pairs.count_block(p, r)),
        _ => prediction
            .iter()
            .zip(reference)
            .for_each(|(p, r)| pairs.count(*p, *r, 1)),
    }
    pairs.of_classes(classes)
}

/// Voxels that are looked at together: most blocks of a label map are of one pair of values. Of longer ones too many hold an edge.
const BLOCK: usize = 16;

/// How often each pair of a predicted and a true value occurs: one pass over the voxels, whatever the number of classes.
struct Pairs {
    /// The values of the classes, sorted. The place of a value here is its column in the table; one more column is for all other values
    /// and one for what is left out.
    values: Vec<i16>,
    /// The column of each value, which is read as `u16`.
    predicted: Vec<u16>,
    present: Vec<u16>,
    table: Table,
}

enum Table {
    /// All pairs, row by row.
    Dense(Vec<u64>),
    /// Those that occur, where all would be too many.
    Sparse(BTreeMap<(u16, u16), u64>),
}

impl Pairs {
    /// The most columns of a dense table, which is then of 8 MB.
    const MOST_DENSE: usize = 1024;

    fn new(classes: &[Vec<i16>], ignored: Option<i16>) -> Self {
        let values: BTreeSet<i16> = classes.iter().flatten().copied().collect();
        let values: Vec<i16> = values.into_iter().filter(|v| *v >= 0).collect();
        let mut predicted = vec![values.len() as u16; 1 << 16];
        for (column, value) in values.iter().enumerate() {
            predicted[usize::from(*value as u16)] = column as u16;
        }
        let mut present = predicted.clone();
        let left_out = values.len() as u16 + 1;
        present[usize::from(i16::MIN as u16)..].fill(left_out);
        if let Some(ignored) = ignored {
            present[usize::from(ignored as u16)] = left_out;
        }
        let columns = values.len() + 2;
        Self {
            values,
            predicted,
            present,
            table: match columns <= Self::MOST_DENSE {
                true => Table::Dense(vec![0; columns * columns]),
                false => Table::Sparse(BTreeMap::new()),
            },
        }
    }

    fn count(&mut self, prediction: i16, reference: i16, voxels: u64) {
        let p = self.predicted[usize::from(prediction as u16)];
        let r = self.present[usize::from(reference as u16)];
        match &mut self.table {
            Table::Dense(all) => {
                all[usize::from(p) * (self.values.len() + 2) + usize::from(r)] += voxels;
            }
            Table::Sparse(some) => *some.entry((p, r)).or_default() += voxels,
        }
    }

    fn count_block(&mut self, prediction: &[i16], reference: &[i16]) {
        let (Some(&first), Some(&other)) = (prediction.first(), reference.first()) else {
            return;
        };
        // without a branch inside, so that it is done many at a time
        let differ = prediction
            .iter()
            .zip(reference)
            .fold(0, |differ, (p, r)| differ | (p ^ first) | (r ^ other));
        if differ == 0 {
            return self.count(first, other, prediction.len() as u64);
        }
        for (p, r) in prediction.iter().zip(reference) {
            self.count(*p, *r, 1);
        }
    }

    fn of_classes(&self, classes: &[Vec<i16>]) -> Vec<Counts> {
        let columns = self.values.len() + 2;
        let left_out = columns - 1;
        // the classes that hold the value of a column
        let holders: Vec<Vec<usize>> = (0..columns)
            .map(|column| {
                let value = self.values.get(column);
                let holds = |c: &usize| value.is_some_and(|v| classes[*c].contains(v));
                (0..classes.len()).filter(holds).collect()
            })
            .collect();
        let mut counts = vec![Counts::default(); classes.len()];
        let mut voxels = 0;
        let mut add = |p: usize, r: usize, n: u64| {
            if r == left_out {
                return;
            }
            voxels += n;
            for &class in &holders[p] {
                match holders[r].contains(&class) {
                    true => counts[class].tp += n,
                    false => counts[class].fp += n,
                }
            }
            for &class in holders[r].iter().filter(|c| !holders[p].contains(c)) {
                counts[class].fn_ += n;
            }
        };
        match &self.table {
            Table::Dense(all) => all
                .iter()
                .enumerate()
                .filter(|(_, n)| **n > 0)
                .for_each(|(at, n)| add(at / columns, at % columns, *n)),
            Table::Sparse(some) => some
                .iter()
                .for_each(|((p, r), n)| add((*p).into(), (*r).into(), *n)),
        }
        for count in &mut counts {
            count.tn = voxels - count.tp - count.fp - count.fn_;
        }
        counts
    }
}

/// Mean of the values that exist.
pub fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, n) = values
        .into_iter()
        .flatten()
        .fold((0.0, 0u64), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(values: &[i16]) -> ArrayD<i16> {
        ArrayD::from_shape_vec(vec![values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn hand_counted() {
        let c = counts(
            &map(&[0, 1, 1, 2, 2, 0]),
            &map(&[0, 1, 2, 2, 0, -1]),
            &[vec![1], vec![2], vec![3]],
            None,
        );
        assert_eq!(
            c[0],
            Counts {
                tp: 1,
                fp: 1,
                fn_: 0,
                tn: 3
            }
        );
        assert_eq!(
            c[1],
            Counts {
                tp: 1,
                fp: 1,
                fn_: 1,
                tn: 2
            }
        );
        assert_eq!(
            c[2],
            Counts {
                tp: 0,
                fp: 0,
                fn_: 0,
                tn: 5
            }
        );
        assert_eq!(c[0].dice(), Some(2.0 / 3.0));
        assert_eq!(c[1].iou(), Some(1.0 / 3.0));
        assert_eq!(c[2].dice(), None);
        assert_eq!(c[0].precision(), Some(0.5));
        assert_eq!(c[0].sensitivity(), Some(1.0));
        assert_eq!(c[0].specificity(), Some(0.75));
        assert_eq!(c[0].accuracy(), Some(0.8));
        assert_eq!(
            (c[0].volume_difference(), c[2].volume_difference()),
            (Some(1.0), None)
        );
    }

    #[test]
    fn regions_join_classes_and_ignored_voxels_are_left_out() {
        let (p, r) = (map(&[1, 2, 0, 3, 0]), map(&[2, 2, 1, 3, 0]));
        let c = counts(&p, &r, &[vec![1, 2], vec![2]], Some(3));
        assert_eq!((c[0].tp, c[0].fp, c[0].fn_, c[0].tn), (2, 0, 1, 1));
        assert_eq!((c[1].tp, c[1].fp, c[1].fn_, c[1].tn), (1, 0, 1, 2));
    }

    /// Voxel by voxel and class by class.
    fn counted_plainly(p: &[i16], r: &[i16], classes: &[Vec<i16>], ignored: i16) -> Vec<Counts> {
        let of = |values: &Vec<i16>| {
            let mut c = Counts::default();
            for (p, r) in p.iter().zip(r).filter(|(_, r)| **r >= 0 && **r != ignored) {
                match (values.contains(p), values.contains(r)) {
                    (true, true) => c.tp += 1,
                    (true, false) => c.fp += 1,
                    (false, true) => c.fn_ += 1,
                    (false, false) => c.tn += 1,
                }
            }
            c
        };
        classes.iter().map(of).collect()
    }

    #[test]
    fn blocks_few_and_many_classes_are_counted_as_voxels_are() {
        let mut state = 1u32;
        let mut random = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % n
        };
        // runs longer and shorter than a block, of values with and without a class
        let mut of = |top: u32| {
            let mut values = Vec::new();
            while values.len() < 20_000 {
                let value = random(top + 2) as i16 - 1;
                let run = if random(4) == 0 { 300 } else { 5 };
                values.extend(vec![value; 1 + random(run) as usize]);
            }
            values.truncate(20_000);
            values
        };
        for (top, step) in [(4, 1), (3000, 2)] {
            let (mut p, r) = (of(top), of(top));
            p[..5000].copy_from_slice(&r[..5000]);
            let mut classes: Vec<Vec<i16>> =
                (1..top as i16).step_by(step).map(|v| vec![v]).collect();
            classes.push(vec![1, 2, 3]);
            classes.push(vec![i16::MAX]);
            let expected = counted_plainly(&p, &r, &classes, 2);
            assert!(expected.iter().any(|c| c.tp > 0) && expected.iter().any(|c| c.fn_ > 0));
            assert_eq!(counts(&map(&p), &map(&r), &classes, Some(2)), expected);
        }
    }

    #[test]
    fn a_missed_class_is_zero_and_an_absent_one_is_left_out() {
        let c = counts(&map(&[0, 0]), &map(&[1, 0]), &[vec![1]], None);
        assert_eq!(c[0].dice(), Some(0.0));
        assert_eq!(mean([Some(1.0), None, Some(0.0)]), Some(0.5));
        assert_eq!(mean([None]), None);
    }
}
