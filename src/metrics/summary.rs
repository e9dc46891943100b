//! `summary.json`: nnU-Net's keys (`foreground_mean`, `mean`, `metric_per_case`) and ours (`pooled`, `std`, `interval_95`, `protocol`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bootstrap::interval;
use super::overlap::{mean, Counts};
use super::protocol::{Convention, Distances, Tolerances};

/// The numbers of one class in one case by name, nnU-Net's and ours. One that does not exist is `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Numbers(BTreeMap<String, Option<f64>>);

impl Numbers {
    /// A number by name, where it exists.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied().flatten()
    }

    /// Names of all numbers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn set(&mut self, name: &str, value: Option<f64>) {
        // JSON has no infinity; the protocol says what is missing
        self.0
            .insert(name.to_string(), value.filter(|v| v.is_finite()));
    }

    pub(crate) fn of(
        counts: &Counts,
        distances: Option<&Distances>,
        voxel_ml: Option<f64>,
        convention: Convention,
    ) -> Self {
        let mut numbers = Self::default();
        let (dice, iou) = convention.overlap(counts);
        for (name, value) in [
            ("Dice", dice),
            ("IoU", iou),
            ("TP", Some(counts.tp as f64)),
            ("FP", Some(counts.fp as f64)),
            ("FN", Some(counts.fn_ as f64)),
            ("TN", Some(counts.tn as f64)),
            ("n_pred", Some((counts.tp + counts.fp) as f64)),
            ("n_ref", Some((counts.tp + counts.fn_) as f64)),
            ("precision", counts.precision()),
            ("sensitivity", counts.sensitivity()),
            ("specificity", counts.specificity()),
            ("accuracy", counts.accuracy()),
            ("relative_volume_difference", counts.volume_difference()),
        ] {
            numbers.set(name, value);
        }
        if let Some(ml) = voxel_ml {
            let (predicted, reference) = (counts.tp + counts.fp, counts.tp + counts.fn_);
            let difference = predicted as f64 - reference as f64;
            numbers.set("volume_difference_ml", Some(difference * ml));
        }
        if let Some(d) = distances {
            for (name, value) in [
                ("HD", d.hd),
                ("HD95", d.hd95),
                ("ASSD", d.assd),
                ("NSD", d.nsd),
            ] {
                numbers.set(name, value);
            }
        }
        numbers
    }

    /// Number by number over rows; `None` for a number that `f` gives none for.
    fn fold(rows: &[Self], f: impl Fn(&[Option<f64>]) -> Option<f64>) -> Self {
        let mut folded = Self::default();
        for name in rows.first().map(Self::names).into_iter().flatten() {
            let column: Vec<Option<f64>> = rows.iter().map(|r| r.get(name)).collect();
            folded.set(name, f(&column));
        }
        folded
    }
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseNumbers {
    /// Per class: its label, or its region as `(1, 2)`.
    pub metrics: BTreeMap<String, Numbers>,
    /// The predicted label map.
    pub prediction_file: String,
    /// The reference.
    pub reference_file: String,
}

/// What was scored of one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The predicted label map.
    pub prediction: String,
    /// The reference.
    pub reference: String,
    /// Of each class.
    pub counts: Vec<Counts>,
    /// Of each class, where distances were asked for.
    pub distances: Vec<Distances>,
    /// Volume of a voxel in ml; none of a picture.
    pub voxel_ml: Option<f64>,
}

/// Volume of a voxel in ml, of a spacing in mm; none of a picture.
pub fn voxel_ml(spacing: &[f64]) -> Option<f64> {
    (spacing.len() == 3).then(|| spacing.iter().product::<f64>() / 1000.0)
}

/// A folder of cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean over the foreground classes of their means over cases; `null` where a class has none.
    pub foreground_mean: Numbers,
    /// Per class, the mean over cases.
    pub mean: BTreeMap<String, Numbers>,
    /// Per class, the standard deviation over cases.
    pub std: BTreeMap<String, Numbers>,
    /// Per class and number, where the mean of 95 of 100 resamplings of the cases lies.
    pub interval_95: BTreeMap<String, BTreeMap<String, (f64, f64)>>,
    /// Per class, from counts added over all cases.
    pub pooled: BTreeMap<String, Numbers>,
    /// Mean of the pooled Dice over foreground classes.
    pub pooled_foreground_dice: Option<f64>,
    /// Class names by key.
    pub labels: BTreeMap<String, String>,
    /// Keys in the order of the classes.
    pub order: Vec<String>,
    /// How the numbers are defined, in words.
    pub protocol: String,
    /// Each case.
    pub metric_per_case: Vec<CaseNumbers>,
}

const PROTOCOL: &str = "overlap in voxels of the source grid; Dice = 2TP/(2TP+FP+FN), IoU = TP/(TP+FP+FN); numbers that do not exist are null \
and left out of means; 'mean' averages cases per class, 'foreground_mean' averages classes without background, 'pooled' adds the counts of all cases first";

/// nnU-Net's key of a class: `2`, or `(1, 2)` for a region.
pub fn key(values: &[i16]) -> String {
    match values {
        [one] => one.to_string(),
        several => {
            let list: Vec<String> = several.iter().map(i16::to_string).collect();
            format!("({})", list.join(", "))
        }
    }
}

/// Numbers for which spread and interval are worth saying.
const SPREAD: [&str; 7] = ["Dice", "IoU", "HD", "HD95", "ASSD", "NSD", "sensitivity"];

/// Builds the summary of `cases` for classes by name. `tolerances` are those of the distances, if there are any.
pub fn summarise(
    cases: &[Scored],
    classes: &[(String, Vec<i16>)],
    convention: Convention,
    tolerances: Option<&Tolerances>,
) -> Summary {
    let keys: Vec<String> = classes.iter().map(|c| key(&c.1)).collect();
    let numbers = |case: &Scored, i: usize| {
        let distances = case.distances.get(i);
        Numbers::of(&case.counts[i], distances, case.voxel_ml, convention)
    };
    let metric_per_case: Vec<CaseNumbers> = cases
        .iter()
        .map(|case| CaseNumbers {
            metrics: keys
                .iter()
                .enumerate()
                .map(|(i, key)| (key.clone(), numbers(case, i)))
                .collect(),
            prediction_file: case.prediction.clone(),
            reference_file: case.reference.clone(),
        })
        .collect();
    let (mut means, mut stds, mut pooled) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut intervals = BTreeMap::new();
    for (i, key) in keys.iter().enumerate() {
        let rows: Vec<Numbers> = cases.iter().map(|case| numbers(case, i)).collect();
        means.insert(
            key.clone(),
            Numbers::fold(&rows, |v| mean(v.iter().copied())),
        );
        stds.insert(key.clone(), Numbers::fold(&rows, deviation));
        let sure: BTreeMap<String, (f64, f64)> = SPREAD
            .iter()
            .filter_map(|name| {
                let values: Vec<f64> = rows.iter().filter_map(|r| r.get(name)).collect();
                Some(((*name).to_string(), interval(&values)?))
            })
            .collect();
        intervals.insert(key.clone(), sure);
        let mut sum = Counts::default();
        for case in cases {
            sum.add(&case.counts[i]);
        }
        pooled.insert(
            key.clone(),
            Numbers::of(&sum, None, None, Convention::Nnunet),
        );
    }
    let foreground: Vec<Numbers> = keys.iter().filter_map(|k| means.get(k).cloned()).collect();
    // nnU-Net's plain mean: not there if one class has none
    let strict =
        |v: &[Option<f64>]| mean(v.iter().copied()).filter(|_| v.iter().all(Option::is_some));
    let protocol = format!("{PROTOCOL}; {}", convention.words(tolerances));
    Summary {
        foreground_mean: Numbers::fold(&foreground, strict),
        pooled_foreground_dice: mean(pooled.values().map(|c: &Numbers| c.get("Dice"))),
        mean: means,
        std: stds,
        interval_95: intervals,
        pooled,
        labels: keys
            .iter()
            .zip(classes)
            .map(|(key, (name, _))| (key.clone(), name.clone()))
            .collect(),
        order: keys,
        protocol,
        metric_per_case,
    }
}

/// Sample standard deviation of the values that exist.
fn deviation(values: &[Option<f64>]) -> Option<f64> {
    let present: Vec<f64> = values.iter().copied().flatten().collect();
    let n = present.len() as f64;
    if n < 2.0 {
        return None;
    }
    let mean = present.iter().sum::<f64>() / n;
    Some((present.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

/// A value in a table of commas: quoted where it has to be.
pub fn csv_field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

impl Summary {
    /// A row for every case and class, separated by commas; a number that does not exist is an empty field.
    pub fn csv(&self) -> String {
        let first = self.metric_per_case.first();
        let names: Vec<&str> = first
            .and_then(|case| case.metrics.values().next())
            .into_iter()
            .flat_map(Numbers::names)
            .collect();
        let mut text = format!("case,class,label,{}\n", names.join(","));
        for case in &self.metric_per_case {
            let file = std::path::Path::new(&case.reference_file);
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            for key in &self.order {
                let Some(numbers) = case.metrics.get(key) else {
                    continue;
                };
                let class = self.labels.get(key).unwrap_or(key);
                text += &[&file, class.as_str(), key.as_str()]
                    .map(csv_field)
                    .join(",");
                for name in &names {
                    text.push(',');
                    text += &numbers.get(name).map_or(String::new(), |v| v.to_string());
                }
                text.push('\n');
            }
        }
        text
    }

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
        let distances = ["HD95", "ASSD", "NSD"];
        let with_distances = self.foreground_mean.names().any(|n| n == "HD95");
        let mut text = format!(
            "{:width$}  {:>11}  {:>9}  {:>7}  {:>15}  {:>11}",
            "class", "Dice pooled", "Dice mean", "std", "95% interval", "IoU pooled"
        );
        if with_distances {
            text += &distances.map(|d| format!("  {d:>8}")).concat();
        }
        text.push('\n');
        for key in &self.order {
            let of = |map: &BTreeMap<String, Numbers>, name| map.get(key).and_then(|n| n.get(name));
            let sure = self.interval_95.get(key).and_then(|i| i.get("Dice"));
            let sure = sure.map_or("-".to_string(), |(low, high)| {
                format!("{low:.3}..{high:.3}")
            });
            let name = self.labels.get(key).unwrap_or(key);
            text += &format!(
                "{name:width$}  {:>11}  {:>9}  {:>7}  {sure:>15}  {:>11}",
                show(of(&self.pooled, "Dice")),
                show(of(&self.mean, "Dice")),
                of(&self.std, "Dice").map_or("-".to_string(), |v| format!("{v:.3}")),
                show(of(&self.pooled, "IoU")),
            );
            if with_distances {
                text += &distances
                    .map(|d| format!("  {:>8}", show(of(&self.mean, d))))
                    .concat();
            }
            text.push('\n');
        }
        let pooled_iou = mean(self.pooled.values().map(|c| c.get("IoU")));
        text += &format!(
            "{:width$}  {:>11}  {:>9}  {:>7}  {:>15}  {:>11}",
            "mean",
            show(self.pooled_foreground_dice),
            show(mean(self.mean.values().map(|c| c.get("Dice")))),
            "",
            "",
            show(pooled_iou),
        );
        if with_distances {
            let mean_of = |d| show(mean(self.mean.values().map(|c| c.get(d))));
            text += &distances.map(|d| format!("  {:>8}", mean_of(d))).concat();
        }
        text + &format!(
            "\n{} case(s); {}",
            self.metric_per_case.len(),
            self.protocol
        )
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
        let cases = [a, b, none].map(|c| Scored {
            prediction: "p".into(),
            reference: "r".into(),
            counts: vec![c],
            distances: vec![],
            voxel_ml: Some(0.5),
        });
        let classes = [("x".to_string(), vec![1])];
        let s = summarise(&cases, &classes, Convention::Nnunet, None);
        assert_eq!(s.mean["1"].get("Dice"), Some(0.75));
        assert_eq!(s.pooled["1"].get("Dice"), Some(22.0 / 42.0));
        assert_eq!(s.foreground_mean.get("Dice"), Some(0.75));
        assert_eq!(s.std["1"].get("Dice"), Some(0.125f64.sqrt()));
        assert_eq!(s.metric_per_case[2].metrics["1"].get("Dice"), None);
        assert!(s.table().contains("0.5238"));
        assert_eq!(s.mean["1"].get("volume_difference_ml"), Some(0.0));
        assert!(s.csv().starts_with("case,class,label,Dice,FN,"));
        assert!(s.csv().contains("\nr,x,1,0.5,10,"));
        assert_eq!(csv_field("a,\"b"), "\"a,\"\"b\"");
        assert_eq!((key(&[3]), key(&[1, 2])), ("3".into(), "(1, 2)".into()));
    }
}
