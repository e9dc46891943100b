//! nnU-Net v2's raw layout: `dataset.json`, `imagesTr/CASE_0000.ext`, `labelsTr/CASE.ext`, and the test cases in `imagesTs`, `labelsTs`; or a
//! `dataset.json` that lists the files of each training case under `dataset`.
//!
//! Source: `documentation/dataset_format.md` and `utilities/utils.py` of nnU-Net v2.8.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::dataset::{Case, Dataset, Split};
use super::description::{DatasetJson, Draft};
use super::files::{commonest_ending, entries, images, name_of};
use super::input::{group, split_channel, strip_ending};
use super::problem::{Kind, Problem};
use super::Survey;
use crate::{DataError, Result};

impl Split {
    fn images(self) -> &'static str {
        match self {
            Self::Training => "imagesTr",
            Self::Test => "imagesTs",
        }
    }

    fn labels(self) -> &'static str {
        match self {
            Self::Training => "labelsTr",
            Self::Test => "labelsTs",
        }
    }
}

/// An entry of `dataset`.
#[derive(Deserialize)]
struct Listed {
    images: Vec<String>,
    label: String,
}

pub(super) fn recognises(root: &Path) -> bool {
    root.join("dataset.json").exists() || root.join("imagesTr").is_dir()
}

pub(super) fn survey(root: &Path) -> Result<Survey> {
    let path = root.join("dataset.json");
    let (mut info, fatal) = DatasetJson::read_with_faults(&path)
        .unwrap_or_else(|error| (Draft::new(root, None).finish(), vec![error]));
    let folder = root.join(Split::Training.images());
    stand_in(&mut info, &folder);
    let mut survey = Survey {
        dataset: Dataset::new(root, info),
        fatal,
        problems: Vec::new(),
    };
    let raw: Map<String, Value> = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    match raw.get("dataset").filter(|v| !v.is_null()) {
        Some(list) => listed(root, &path, list, &mut survey),
        None if !folder.exists() => survey.fatal.push(DataError::Missing {
            what: "folder",
            path: folder,
            remedy: "it holds the training images CASE_0000.ext".into(),
        }),
        None => {
            survey.dataset.training = cases(root, Split::Training, &mut survey)?;
            if survey.dataset.training.is_empty() {
                survey.fatal.push(DataError::Empty {
                    folder,
                    file_ending: survey.dataset.info.file_ending.clone(),
                });
            }
        }
    }
    if root.join(Split::Test.images()).exists() {
        survey.dataset.test = cases(root, Split::Test, &mut survey)?;
    }
    if survey.fatal.is_empty() {
        count(&path, raw.contains_key("numTraining"), &mut survey);
    }
    Ok(survey)
}

/// Without a usable `dataset.json` the files tell what it would have said, so that they can be looked at all the same. Labels stay unknown.
fn stand_in(info: &mut DatasetJson, folder: &Path) {
    let Ok((_, files)) = entries(folder) else {
        return;
    };
    let files = images(files).0;
    if info.file_ending.is_empty() {
        info.file_ending =
            commonest_ending(files.iter().map(|f| f.ending)).unwrap_or_else(|| ".nii.gz".into());
    }
    if info.channel_names.is_empty() {
        let numbers = files.iter().filter_map(|f| split_channel(&f.stem).1);
        let last = numbers.max().unwrap_or(0).min(99);
        info.channel_names = (0..=last).map(|c| format!("channel {c}")).collect();
    }
}

fn count(path: &Path, claimed: bool, survey: &mut Survey) {
    let found = survey.dataset.training.len();
    let said = survey.dataset.info.num_training;
    if !claimed {
        survey.error(
            Kind::DatasetJson,
            path,
            "`numTraining` is missing, which nnU-Net insists on",
            &format!("add \"numTraining\": {found}"),
        );
    } else if said != found {
        survey.error(
            Kind::NumTraining,
            path,
            format!("numTraining is {said}, but there are {found} training cases"),
            &format!("add the cases that lack, or write \"numTraining\": {found}"),
        );
    }
}

/// The cases of `dataset`, paths from the data set's folder on or absolute.
fn listed(root: &Path, json: &Path, list: &Value, survey: &mut Survey) {
    let fault = |problem: String| DataError::json(json, "dataset", problem);
    let Some(list) = list.as_object().filter(|l| !l.is_empty()) else {
        survey.fatal.push(fault(
            "is no list of cases; write {\"CASE\": {\"images\": [...], \"label\": ...}, ...} or leave it out".into(),
        ));
        return;
    };
    survey.dataset.listed = true;
    for (id, entry) in list {
        // A name becomes part of file names.
        if id.is_empty() || id.contains(['/', '\\']) || id.starts_with('.') {
            let problem = format!("`{id}` cannot be a case's name; leave / and leading dots out");
            survey.fatal.push(fault(problem));
            continue;
        }
        match Listed::deserialize(entry) {
            Ok(entry) => {
                let files = entry.images.iter().map(|p| root.join(p)).collect();
                let label = root.join(&entry.label);
                survey.dataset.training.push(Case::new(id, files, label));
            }
            Err(error) => survey.fatal.push(fault(format!(
                "`{id}`: {error}; write {{\"images\": [...], \"label\": ...}}"
            ))),
        }
    }
    survey.dataset.training.sort_by(|a, b| a.id.cmp(&b.id));
}

/// The cases of a part, and what in its folders belongs to none.
fn cases(root: &Path, split: Split, survey: &mut Survey) -> Result<Vec<Case>> {
    let info = &survey.dataset.info;
    let ending = info.file_ending.clone();
    let (folder, labels) = (root.join(split.images()), root.join(split.labels()));
    let label = |id: &str| labels.join(format!("{id}{ending}"));
    let cases: Vec<Case> = group(&folder, &ending, info.channel_names.len(), false)?
        .into_iter()
        .map(|case| Case::new(&case.id, case.paths, label(&case.id)))
        .collect();
    for file in images(entries(&folder)?.1).0 {
        match strip_ending(&name_of(&file.path), &ending) {
            None => other_ending(&file.path, file.ending, &ending, survey),
            Some(stem) if split_channel(stem).1.is_none() => survey.error(
                Kind::IgnoredFile,
                &file.path,
                "its name has no channel number, so it is passed over",
                &format!("call it {stem}_0000{ending}"),
            ),
            Some(_) => {}
        }
    }
    if !labels.is_dir() {
        return Ok(cases);
    }
    let ids: BTreeSet<&str> = cases.iter().map(|c| c.id.as_str()).collect();
    for file in images(entries(&labels)?.1).0 {
        match strip_ending(&name_of(&file.path), &ending) {
            None => other_ending(&file.path, file.ending, &ending, survey),
            Some(stem) if !ids.contains(stem) => survey.problems.push(
                Problem::error(
                    Kind::OrphanLabel,
                    format!(
                        "there is no image {stem}_0000{ending} in {}",
                        split.images()
                    ),
                    "add the image or take the label map away",
                )
                .at(&file.path)
                .of(stem),
            ),
            Some(_) => {}
        }
    }
    Ok(cases)
}

fn other_ending(path: &Path, found: &str, expected: &str, survey: &mut Survey) {
    survey.error(
        Kind::MixedEndings,
        path,
        format!("it ends in {found}, but file_ending is {expected}: it is passed over"),
        &format!("convert it to {expected} or take it away"),
    );
}
