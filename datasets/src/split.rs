//! Cross-validation: nnU-Net's five folds, so that scores can be compared fold by fold.

use std::path::Path;

use rand_mt::Mt;
use serde::{Deserialize, Serialize};

use crate::{DataError, Result};

/// Which cases train and which validate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    /// Names of the training cases, sorted.
    pub train: Vec<String>,
    /// Names of the validation cases, sorted.
    #[serde(rename = "val")]
    pub validation: Vec<String>,
}

/// A fold by number, or everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoldChoice {
    /// Train on all cases; they validate too, so the validation score says nothing about new cases.
    All,
    /// Fold 0, 1, ...
    Number(usize),
}

impl std::str::FromStr for FoldChoice {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all" => Ok(Self::All),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| setting(text, "it has to be a number from 0 or `all`".into())),
        }
    }
}

fn setting(found: impl ToString, expected: String) -> DataError {
    DataError::Setting {
        field: "fold".into(),
        found: found.to_string(),
        expected,
    }
}

const FOLDS: usize = 5;
const SEED: u32 = 12345;

/// The fold of a data set in `root`: out of its `splits_final.json` if it has one, otherwise nnU-Net's five folds of the sorted names.
pub fn fold(root: &Path, ids: &[String], choice: FoldChoice) -> Result<Fold> {
    let FoldChoice::Number(number) = choice else {
        return Ok(Fold {
            train: ids.to_vec(),
            validation: ids.to_vec(),
        });
    };
    let folds = folds(root, ids)?;
    let count = folds.len();
    folds.into_iter().nth(number).ok_or_else(|| {
        setting(
            number,
            format!("there are only the folds 0 to {} and `all`", count - 1),
        )
    })
}

/// The folds of a data set in `root`: those of its `splits_final.json`, or nnU-Net's five of the sorted names.
pub fn folds(root: &Path, ids: &[String]) -> Result<Vec<Fold>> {
    let path = root.join("splits_final.json");
    match path.exists() {
        true => read_splits(&path, ids),
        false => five_folds(ids),
    }
}

fn read_splits(path: &Path, ids: &[String]) -> Result<Vec<Fold>> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::reading(path, e))?;
    let mut folds: Vec<Fold> = serde_json::from_str(&text)
        .map_err(|e| DataError::json(path, "(whole file)", e.to_string()))?;
    if folds.is_empty() {
        return Err(DataError::json(
            path,
            "(whole file)",
            "it lists no fold; remove the file to get five folds made",
        ));
    }
    for (number, fold) in folds.iter_mut().enumerate() {
        for (field, names) in [("train", &mut fold.train), ("val", &mut fold.validation)] {
            names.sort();
            if let Some(stranger) = names.iter().find(|n| !ids.contains(n)) {
                let problem = format!("fold {number} lists `{stranger}`, which has no image in imagesTr; correct or remove the file");
                return Err(DataError::json(path, field, problem));
            }
        }
        if fold.train.is_empty() {
            return Err(DataError::json(
                path,
                "train",
                format!("fold {number} has no training case; correct or remove the file"),
            ));
        }
    }
    Ok(folds)
}

/// Five folds as scikit-learn's shuffled `KFold` with numpy's `RandomState(12345)` makes them, which is what nnU-Net does.
pub fn five_folds(ids: &[String]) -> Result<Vec<Fold>> {
    if ids.len() < FOLDS {
        return Err(setting("a number", format!("{} cases cannot be split in {FOLDS}; choose fold `all` or write a splits_final.json", ids.len())));
    }
    let mut ids = ids.to_vec();
    ids.sort();
    let order = numpy_shuffle(ids.len(), SEED);
    let mut start = 0;
    let folds = (0..FOLDS).map(|k| {
        let size = ids.len() / FOLDS + usize::from(k < ids.len() % FOLDS);
        let held_out = &order[start..start + size];
        start += size;
        let part = |in_validation: bool| {
            ids.iter()
                .enumerate()
                .filter(|(i, _)| held_out.contains(i) == in_validation)
                .map(|(_, id)| id.clone())
                .collect()
        };
        Fold {
            train: part(false),
            validation: part(true),
        }
    });
    Ok(folds.collect())
}

/// `numpy.random.RandomState(seed).shuffle(arange(n))`: Fisher-Yates from the end, each index by masking and rejection.
fn numpy_shuffle(n: usize, seed: u32) -> Vec<usize> {
    let mut generator = Mt::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        let mask = (last as u32)
            .checked_next_power_of_two()
            .map_or(
                u32::MAX,
                |p| if p as usize == last { 2 * p - 1 } else { p - 1 },
            );
        let chosen = loop {
            let draw = (generator.next_u32() & mask) as usize;
            if draw <= last {
                break draw;
            }
        };
        order.swap(last, chosen);
    }
    order
}
