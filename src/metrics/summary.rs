//! `summary.json`: nnU-Net's keys (`foreground_mean`, `mean`, `metric_per_case`) and ours (`pooled`, `protocol`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::overlap::{mean, Counts};

/// The numbers of one class in one case, under nnU-Net's names. A Dice that does not exist is `null`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(non_snake_case, missing_docs)]
pub struct ClassNumbers {
    pub Dice: Option<f64>,
    pub IoU: Option<f64>,
    pub TP: f64,
    pub FP: f64,
    pub FN: f64,
    pub TN: f64,
    pub n_pred: f64,
    pub n_ref: f64,
}

impl From<&Counts> for ClassNumbers {
    fn from(c: &Counts) -> Self {
        Self {
            Dice: c.dice(),
            IoU: c.iou(),
            TP: c.tp as f64,
            FP: c.fp as f64,
            FN: c.fn_ as f64,
            TN: c.tn as f64,
            n_pred: (c.tp + c.fp) as f64,
            n_ref: (c.tp + c.fn_) as f64,
        }
    }
}

impl ClassNumbers {
    fn mean_of(rows: &[Self]) -> Self {
        let average =
            |f: fn(&Self) -> f64| rows.iter().map(f).sum::<f64>() / rows.len().max(1) as f64;
        Self {
            Dice: mean(rows.iter().map(|r| r.Dice)),
            IoU: mean(rows.iter().map(|r| r.IoU)),
            TP: average(|r| r.TP),
            FP: average(|r| r.FP),
            FN: average(|r| r.FN),
            TN: average(|r| r.TN),
            n_pred: average(|r| r.n_pred),
            n_ref: average(|r| r.n_ref),
        }
    }
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseNumbers {
    /// Per label value.
    pub metrics: BTreeMap<String, ClassNumbers>,
    /// The predicted label map.
    pub prediction_file: String,
    /// The reference.
    pub reference_file: String,
}

/// A folder of cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean over the foreground classes of their means over cases.
    pub foreground_mean: ClassNumbers,
    /// Per class, the mean over cases.
    pub mean: BTreeMap<String, ClassNumbers>,
    /// Per class, from counts added over all cases.
    pub pooled: BTreeMap<String, ClassNumbers>,
    /// Mean of the pooled Dice over foreground classes.
    pub pooled_foreground_dice: Option<f64>,
    /// Label names by value.
    pub labels: BTreeMap<String, String>,
    /// How the numbers are defined, in words.
    pub protocol: String,
    /// Each case.
    pub metric_per_case: Vec<CaseNumbers>,
}

const PROTOCOL: &str = "overlap in voxels of the source grid; Dice = 2TP/(2TP+FP+FN), IoU = TP/(TP+FP+FN); a class in neither map \
is left out of a mean; 'mean' averages cases per class, 'foreground_mean' averages classes without background, 'pooled' adds the counts of all cases first";

/// Builds the summary of `cases` (files and one [`Counts`] a label) for the foreground `labels`.
pub fn summarise(cases: &[(String, String, Vec<Counts>)], labels: &[(String, i16)]) -> Summary {
    let key = |value: i16| value.to_string();
    let metric_per_case: Vec<CaseNumbers> = cases
        .iter()
        .map(|(prediction, reference, counts)| CaseNumbers {
            metrics: labels
                .iter()
                .zip(counts)
                .map(|((_, v), c)| (key(*v), c.into()))
                .collect(),
            prediction_file: prediction.clone(),
            reference_file: reference.clone(),
        })
        .collect();
    let (mut means, mut pooled) = (BTreeMap::new(), BTreeMap::new());
    for (i, (_, value)) in labels.iter().enumerate() {
        let rows: Vec<ClassNumbers> = cases
            .iter()
            .map(|(_, _, counts)| (&counts[i]).into())
            .collect();
        means.insert(key(*value), ClassNumbers::mean_of(&rows));
        let mut sum = Counts::default();
        for (_, _, counts) in cases {
            sum.add(&counts[i]);
        }
        pooled.insert(key(*value), (&sum).into());
    }
    let foreground: Vec<ClassNumbers> = means.values().copied().collect();
    Summary {
        foreground_mean: ClassNumbers::mean_of(&foreground),
        pooled_foreground_dice: mean(pooled.values().map(|c: &ClassNumbers| c.Dice)),
        mean: means,
        pooled,
        labels: labels
            .iter()
            .map(|(name, value)| (key(*value), name.clone()))
            .collect(),
        protocol: PROTOCOL.to_string(),
        metric_per_case,
    }
}

impl Summary {
    /// A table a person can read.
    pub fn table(&self) -> String {
        let show = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.4}"));
        let width = self
            .labels
            .values()
            .map(|n| n.chars().count())
            .chain([10])
            .max()
            .unwrap_or(10);
        let mut values: Vec<i64> = self.labels.keys().filter_map(|k| k.parse().ok()).collect();
        values.sort_unstable();
        let mut text = format!(
            "{:width$}  {:>11}  {:>9}  {:>11}\n",
            "class", "Dice pooled", "Dice mean", "IoU pooled"
        );
        for value in values {
            let k = value.to_string();
            let (p, m) = (self.pooled.get(&k), self.mean.get(&k));
            let name = self.labels.get(&k).map_or(k.as_str(), String::as_str);
            text.push_str(&format!(
                "{name:width$}  {:>11}  {:>9}  {:>11}\n",
                show(p.and_then(|p| p.Dice)),
                show(m.and_then(|m| m.Dice)),
                show(p.and_then(|p| p.IoU)),
            ));
        }
        let pooled_iou = mean(self.pooled.values().map(|c| c.IoU));
        text.push_str(&format!(
            "{:width$}  {:>11}  {:>9}  {:>11}\n{} case(s); {}",
            "mean",
            show(self.pooled_foreground_dice),
            show(self.foreground_mean.Dice),
            show(pooled_iou),
            self.metric_per_case.len(),
            self.protocol
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_pools_differ_as_they_should() {
        let a = Counts {
            tp: 1,
            fp: 0,
            fn_: 0,
            tn: 9,
        };
        let b = Counts {
            tp: 10,
            fp: 10,
            fn_: 10,
            tn: 0,
        };
        let none = Counts {
            tp: 0,
            fp: 0,
            fn_: 0,
            tn: 10,
        };
        let cases = [a, b, none].map(|c| ("p".to_string(), "r".to_string(), vec![c]));
        let s = summarise(&cases, &[("x".to_string(), 1)]);
        assert_eq!(s.mean["1"].Dice, Some(0.75));
        assert_eq!(s.pooled["1"].Dice, Some(22.0 / 42.0));
        assert_eq!(s.foreground_mean.Dice, Some(0.75));
        assert_eq!(s.metric_per_case[2].metrics["1"].Dice, None);
        assert!(s.table().contains("0.5238"));
    }
}
