//! Folder conventions: where the images and label maps of a data set lie. One module a convention, told apart by what lies in the folder.
//!
//! A convention's `survey` looks at names, lists and headers and fills in a [`Dataset`]; images are read when asked for. What it finds amiss on
//! the way does not stop it: [`Dataset::open`] makes an error of what nothing can be done with, [`verify`] reports all of it.

mod acdc;
mod catalogued;
pub mod convert;
mod dataset;
mod decathlon;
mod description;
pub(crate) mod files;
pub mod input;
mod masks;
mod nnunet;
mod pairs;
pub mod pattern;
pub mod problem;
mod slices;
mod synapse;
pub mod verify;

use std::path::{Path, PathBuf};

pub use dataset::{check_label_values, Case, Dataset, Split};
pub use description::DatasetJson;

use crate::{DataError, Result};
use problem::{Kind, Problem};

/// A folder convention.
struct Layout {
    /// What it is called in messages.
    name: &'static str,
    /// What a folder of it holds, for the message about a folder that is of none.
    holds: &'static str,
    /// Whether a folder looks like it.
    recognises: fn(&Path) -> bool,
    /// Finds the cases.
    survey: fn(&Path) -> Result<Survey>,
}

/// The first that recognises a folder takes it.
const LAYOUTS: &[Layout] = &[
    Layout {
        name: "Medical Segmentation Decathlon",
        holds: "dataset.json with the lists `training` and `test`",
        recognises: decathlon::recognises,
        survey: decathlon::survey,
    },
    Layout {
        name: "nnU-Net v2 raw",
        holds: "dataset.json, imagesTr, labelsTr",
        recognises: nnunet::recognises,
        survey: nnunet::survey,
    },
    // Mamba-UNet keeps slices of both in data/slices, but Synapse's list has a name of its own.
    Layout {
        name: synapse::CONVENTION.name,
        holds: synapse::CONVENTION.holds,
        recognises: |root| synapse::CONVENTION.recognises(root),
        survey: |root| synapse::CONVENTION.survey(root),
    },
    Layout {
        name: acdc::CONVENTION.name,
        holds: acdc::CONVENTION.holds,
        recognises: |root| acdc::CONVENTION.recognises(root),
        survey: |root| acdc::CONVENTION.survey(root),
    },
    Layout {
        name: catalogued::NAME,
        holds: "what `datasets show NAME` draws for a data set of `datasets list`",
        recognises: catalogued::recognises,
        survey: catalogued::survey,
    },
];

/// Folders without a description: taken for a data set where nothing in them is one of the [`LAYOUTS`].
const PAIRS: Layout = Layout {
    name: "image and mask pairs",
    holds: "images and masks in two folders (images + masks, X_Training_Input + X_Training_GroundTruth), or side by side as a.png + a_mask.png",
    recognises: pairs::recognises,
    survey: pairs::survey,
};

/// Folders within folders that are looked into; archives unpacked into folders of their own have two.
const DEEPEST: usize = 3;
/// Folders looked into on a level: beyond it they are cases.
const MOST_FOLDERS: usize = 64;

/// A data set and all that is amiss with its names and lists.
#[derive(Debug)]
struct Survey {
    dataset: Dataset,
    /// With these no work can be done on the data set; without `dataset.json` to go by, `info` is a guess.
    fatal: Vec<DataError>,
    /// These lame a case or none.
    problems: Vec<Problem>,
}

impl Survey {
    fn error(&mut self, kind: Kind, file: &Path, problem: impl Into<String>, remedy: &str) {
        self.problems
            .push(Problem::error(kind, problem, remedy).at(file));
    }

    fn warning(&mut self, kind: Kind, file: &Path, problem: impl Into<String>, remedy: &str) {
        self.problems
            .push(Problem::warning(kind, problem, remedy).at(file));
    }
}

/// Finds out the convention of a folder and its cases.
fn survey(root: &Path) -> Result<Survey> {
    let missing = || DataError::Missing {
        what: "folder",
        path: root.into(),
        remedy: "give the folder of a data set, for example the one that holds dataset.json".into(),
    };
    match std::fs::metadata(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        Err(e) => return Err(DataError::listing(root, e)),
        Ok(about) if !about.is_dir() => {
            let error = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(DataError::listing(root, error));
        }
        Ok(_) => {}
    }
    std::fs::read_dir(root).map_err(|e| DataError::listing(root, e))?;
    let mut survey = found(root)?;
    let own = &mut survey.dataset;
    if own.root != root {
        let at = own.root.display();
        own.notes.insert(0, format!("the data set is in {at}"));
    }
    Ok(survey)
}

fn unknown(root: &Path) -> DataError {
    let all = LAYOUTS.iter().chain([&PAIRS]);
    let known: Vec<String> = all.map(|l| format!("{} ({})", l.name, l.holds)).collect();
    DataError::NoDataset {
        path: root.into(),
        known: known.join("; "),
    }
}

/// The data set in a folder, or in the nearest of the folders in it.
fn found(root: &Path) -> Result<Survey> {
    let mut level = vec![root.to_owned()];
    let mut levels = Vec::new();
    let mut broken = None;
    for depth in 0..=DEEPEST {
        let mut sound = Vec::new();
        for folder in &level {
            let Some(layout) = LAYOUTS.iter().find(|l| (l.recognises)(folder)) else {
                continue;
            };
            let survey = layout.survey(folder);
            if depth == 0 {
                return survey;
            }
            // a run's folder or prepared cases, which have a dataset.json of their own, only look like a data set
            match survey {
                Ok(survey) if survey.fatal.is_empty() => sound.push(survey),
                other => broken = broken.or(Some(other)),
            }
        }
        if let Some(survey) = only(root, sound)? {
            return Ok(survey);
        }
        let below = |folder: &PathBuf| files::entries(folder).unwrap_or_default().0;
        let next: Vec<PathBuf> = level.iter().flat_map(below).collect();
        let many = next.len() > MOST_FOLDERS;
        levels.push(std::mem::replace(&mut level, next));
        if many {
            break;
        }
    }
    for level in levels {
        let pairs = level.iter().filter(|folder| (PAIRS.recognises)(folder));
        let all: Vec<Survey> = pairs.map(|f| PAIRS.survey(f)).collect::<Result<_>>()?;
        if let Some(survey) = only(root, all)? {
            return Ok(survey);
        }
    }
    broken.unwrap_or_else(|| Err(unknown(root)))
}

impl Layout {
    fn survey(&self, folder: &Path) -> Result<Survey> {
        let mut survey = (self.survey)(folder)?;
        if survey.dataset.layout.is_empty() {
            survey.dataset.layout = self.name;
        }
        Ok(survey)
    }
}

/// The only one of them.
fn only(root: &Path, mut all: Vec<Survey>) -> Result<Option<Survey>> {
    if all.len() < 2 {
        return Ok(all.pop());
    }
    let folders: Vec<String> = (all.iter())
        .map(|s| s.dataset.root.display().to_string())
        .collect();
    Err(DataError::SeveralDatasets {
        path: root.into(),
        found: folders.join(", "),
    })
}
