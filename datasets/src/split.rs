//! Cross-validation: nnU-Net's five folds, so that scores can be compared fold by fold.

use std::path::{Path, PathBuf};

use rand_mt::Mt;
use serde::{Deserialize, Serialize};

use crate::layout::problem::{Kind, Problem};
use crate::layout::Case;
use crate::{DataError, Dataset, Result, Split};

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

/// The file of folds beside a data set or its preprocessed cases, as nnU-Net names it.
pub const FILE: &str = "splits_final.json";

/// Where folds come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A `splits_final.json`.
    File(PathBuf),
    /// The split that the data set was published with.
    Official,
    /// nnU-Net's five folds of the sorted names.
    FiveFolds,
}

/// The folds of a data set and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folds {
    /// Fold 0, 1, ...
    pub folds: Vec<Fold>,
    /// Their origin.
    pub source: Source,
}

impl Folds {
    /// Those of the data set's own `splits_final.json`, of the one in a folder of preprocessed cases, of the published split, or nnU-Net's five:
    /// the first that there is.
    pub fn of(dataset: &Dataset, preprocessed: Option<&Path>) -> Result<Self> {
        let files = [Some(dataset.root.as_path()), preprocessed];
        let file = files
            .into_iter()
            .flatten()
            .map(|folder| folder.join(FILE))
            .find(|file| file.exists());
        if let Some(file) = file {
            return Ok(Self {
                folds: read_splits(&file, &dataset.training_ids())?,
                source: Source::File(file),
            });
        }
        if let Some(official) = dataset.official_split() {
            let mut fold = official.clone();
            fold.train.sort();
            fold.validation.sort();
            return Ok(Self {
                folds: vec![fold],
                source: Source::Official,
            });
        }
        Ok(Self {
            folds: grouped_folds(dataset.cases(Split::Training))?,
            source: Source::FiveFolds,
        })
    }

    /// A fold by number, or all cases.
    pub fn choose(&self, choice: FoldChoice, ids: &[String]) -> Result<Fold> {
        let FoldChoice::Number(number) = choice else {
            return Ok(all(ids));
        };
        self.folds.get(number).cloned().ok_or_else(|| {
            let only = match (self.folds.len(), &self.source) {
                (1, Source::Official) => {
                    "there are only fold 0, the published split, and `all`; write a splits_final.json for others".to_owned()
                }
                (1, _) => "there are only fold 0 and `all`".to_owned(),
                (count, _) => format!("there are only the folds 0 to {} and `all`", count - 1),
            };
            setting(number, only)
        })
    }

    /// What a person should know about them; nothing of nnU-Net's own.
    pub fn message(&self) -> Option<String> {
        match &self.source {
            Source::File(file) => Some(format!("folds of {}", file.display())),
            Source::Official => Some(format!(
                "fold 0 is the published split: {} training and {} validation cases",
                self.folds[0].train.len(),
                self.folds[0].validation.len()
            )),
            Source::FiveFolds => None,
        }
    }

    /// Writes them as nnU-Net does.
    pub fn write(&self, file: &Path) -> Result<()> {
        crate::atomically(file, |out| {
            Ok(serde_json::to_writer_pretty(out, &self.folds)?)
        })
    }
}

/// Every case trains and validates.
fn all(ids: &[String]) -> Fold {
    Fold {
        train: ids.to_vec(),
        validation: ids.to_vec(),
    }
}

/// The fold of a data set: see [`Folds::of`].
pub fn fold(dataset: &Dataset, choice: FoldChoice) -> Result<Fold> {
    let ids = dataset.training_ids();
    match choice {
        FoldChoice::All => Ok(all(&ids)),
        FoldChoice::Number(_) => Folds::of(dataset, None)?.choose(choice, &ids),
    }
}

fn read_splits(path: &Path, ids: &[String]) -> Result<Vec<Fold>> {
    let (folds, faults) = read_with_faults(path, ids)?;
    // The first says enough here; `datasets verify` lists all.
    match faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(folds),
    }
}

/// All that is wrong with a file of folds.
pub(crate) fn faults(path: &Path, ids: &[String]) -> Vec<Problem> {
    let (folds, faults) = match read_with_faults(path, ids) {
        Ok(read) => read,
        Err(error) => return vec![Problem::from_error(&error)],
    };
    let mut problems: Vec<Problem> = faults.iter().map(Problem::from_error).collect();
    for (number, fold) in folds.iter().enumerate() {
        for id in fold.train.iter().filter(|id| fold.validation.contains(id)) {
            let problem = format!("fold {number} trains and validates on it");
            let remedy = "take it out of one of the lists";
            problems.push(
                Problem::warning(Kind::List, problem, remedy)
                    .at(path)
                    .of(id),
            );
        }
    }
    let nowhere = ids.iter().filter(|id| {
        folds
            .iter()
            .all(|f| !f.train.contains(id) && !f.validation.contains(id))
    });
    for id in nowhere {
        let remedy = "add it to a fold, or remove the file to get folds made";
        problems.push(
            Problem::warning(Kind::List, "it is in no fold", remedy)
                .at(path)
                .of(id),
        );
    }
    problems
}

fn read_with_faults(path: &Path, ids: &[String]) -> Result<(Vec<Fold>, Vec<DataError>)> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::reading(path, e))?;
    let mut folds: Vec<Fold> = serde_json::from_str(&text)
        .map_err(|e| DataError::json(path, "(whole file)", e.to_string()))?;
    let mut faults = Vec::new();
    if folds.is_empty() {
        faults.push(DataError::json(
            path,
            "(whole file)",
            "it lists no fold; remove the file to get five folds made",
        ));
    }
    for (number, fold) in folds.iter_mut().enumerate() {
        for (field, names) in [("train", &mut fold.train), ("val", &mut fold.validation)] {
            names.sort();
            for stranger in names.iter().filter(|n| ids.binary_search(n).is_err()) {
                let problem = format!("fold {number} lists `{stranger}`, which is no training case with an image; correct or remove the file");
                faults.push(DataError::json(path, field, problem));
            }
        }
        if fold.train.is_empty() {
            faults.push(DataError::json(
                path,
                "train",
                format!("fold {number} has no training case; correct or remove the file"),
            ));
        }
    }
    Ok((folds, faults))
}

/// nnU-Net's five folds of groups that stay together: whole patients, where cases are slices. Mostly each case is a group of its own.
fn grouped_folds(cases: &[Case]) -> Result<Vec<Fold>> {
    let mut groups: Vec<String> = cases.iter().map(|c| c.group.clone()).collect();
    groups.sort();
    groups.dedup();
    let expand = |names: &[String]| -> Vec<String> {
        let inside = cases
            .iter()
            .filter(|c| names.binary_search(&c.group).is_ok());
        inside.map(|c| c.id.clone()).collect()
    };
    let folds = five_folds(&groups)?;
    let expanded = folds.iter().map(|fold| Fold {
        train: expand(&fold.train),
        validation: expand(&fold.validation),
    });
    Ok(expanded.collect())
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
