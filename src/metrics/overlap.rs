//! Overlap of two label maps: counts per class, Dice and IoU.

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
    // One pass over the voxels into a table of pairs of values, then sums per class.
    let top = classes.iter().flatten().copied().max().unwrap_or(0).max(0) as usize;
    let bins = top + 2;
    let bin = |value: i16| {
        if value >= 0 && value as usize <= top {
            value as usize
        } else {
            top + 1
        }
    };
    let mut pairs = vec![0u64; bins * bins];
    let mut voxels = 0u64;
    let mut count = |p: i16, r: i16, n: u64| {
        if r >= 0 && Some(r) != ignored {
            voxels += n;
            pairs[bin(p) * bins + bin(r)] += n;
        }
    };
    match (prediction.as_slice(), reference.as_slice()) {
        (Some(mut p), Some(mut r)) => {
            // runs of one pair of values are counted at once
            while let (Some(&first), Some(&other)) = (p.first(), r.first()) {
                let run = run(p, first).min(run(r, other));
                count(first, other, run as u64);
                (p, r) = (&p[run..], &r[run..]);
            }
        }
        _ => prediction
            .iter()
            .zip(reference)
            .for_each(|(p, r)| count(*p, *r, 1)),
    }
    let n = bins;
    classes
        .iter()
        .map(|values| {
            let member: Vec<bool> = (0..n)
                .map(|v| values.contains(&(v as i16)) && v <= top)
                .collect();
            let mut counts = Counts::default();
            for (p, row) in pairs.chunks_exact(n).enumerate() {
                for (r, &count) in row.iter().enumerate() {
                    match (member[p], member[r]) {
                        (true, true) => counts.tp += count,
                        (true, false) => counts.fp += count,
                        (false, true) => counts.fn_ += count,
                        (false, false) => {}
                    }
                }
            }
            counts.tn = voxels - counts.tp - counts.fp - counts.fn_;
            counts
        })
        .collect()
}

/// How many values from the first on equal it.
pub fn run(values: &[i16], first: i16) -> usize {
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

    #[test]
    fn a_missed_class_is_zero_and_an_absent_one_is_left_out() {
        let c = counts(&map(&[0, 0]), &map(&[1, 0]), &[vec![1]], None);
        assert_eq!(c[0].dice(), Some(0.0));
        assert_eq!(mean([Some(1.0), None, Some(0.0)]), Some(0.5));
        assert_eq!(mean([None]), None);
    }
}
