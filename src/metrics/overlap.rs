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

    /// Adds the counts of another case.
    pub fn add(&mut self, other: &Self) {
        self.tp += other.tp;
        self.fp += other.fp;
        self.fn_ += other.fn_;
        self.tn += other.tn;
    }
}

/// Counts of each of `labels` over two maps of equal shape. Voxels whose reference is negative are left out.
pub fn counts(prediction: &ArrayD<i16>, reference: &ArrayD<i16>, labels: &[i16]) -> Vec<Counts> {
    // One pass over the voxels into a table by value, then sums per label.
    let top = labels.iter().copied().max().unwrap_or(0).max(0) as usize;
    let bin = |value: i16| {
        if value >= 0 && value as usize <= top {
            value as usize
        } else {
            top + 1
        }
    };
    let (mut both, mut predicted, mut present) = (
        vec![0u64; top + 2],
        vec![0u64; top + 2],
        vec![0u64; top + 2],
    );
    let mut voxels = 0u64;
    for (&p, &r) in prediction.iter().zip(reference.iter()) {
        if r < 0 {
            continue;
        }
        voxels += 1;
        predicted[bin(p)] += 1;
        present[bin(r)] += 1;
        if p == r {
            both[bin(p)] += 1;
        }
    }
    labels
        .iter()
        .map(|&label| {
            let i = bin(label);
            let (tp, fp, fn_) = (both[i], predicted[i] - both[i], present[i] - both[i]);
            Counts {
                tp,
                fp,
                fn_,
                tn: voxels - tp - fp - fn_,
            }
        })
        .collect()
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
            &[1, 2, 3],
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
    }

    #[test]
    fn a_missed_class_is_zero_and_an_absent_one_is_left_out() {
        let c = counts(&map(&[0, 0]), &map(&[1, 0]), &[1]);
        assert_eq!(c[0].dice(), Some(0.0));
        assert_eq!(mean([Some(1.0), None, Some(0.0)]), Some(0.5));
        assert_eq!(mean([None]), None);
    }
}
