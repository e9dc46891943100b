//! The Medical Segmentation Decathlon's layout, which nnU-Net v1 raw data sets share: a `dataset.json` that lists every file.
//!
//! Source: Antonelli et al., Nature Communications 2022, and the `dataset.json` of its tasks. Several modalities are the fourth axis of one NIfTI
//! file. AMOS22 has validation cases too, in imagesVa and labelsVa, and others list theirs as `validation`. nnU-Net v1 kept the lists, but split the modalities in files `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ...: a listed image that is
//! not there is looked for under those names.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::dataset::{Case, Dataset};
use super::description::{Draft, CHANNELS};
use super::files::{commonest_ending, entries, images, name_of, ImageFile};
use super::problem::{Kind, Problem};
use super::Survey;
use crate::{DataError, Fold, Result};

#[derive(Deserialize)]
struct OnDisk {
    #[serde(default)]
    name: Option<String>,
    #[serde(alias = "channel_names")]
    modality: Map<String, Value>,
    labels: Map<String, Value>,
    #[serde(default, rename = "numTraining")]
    num_training: Option<usize>,
    training: Vec<Pair>,
    #[serde(default)]
    validation: Vec<Pair>,
    #[serde(default)]
    test: Vec<Single>,
}

#[derive(Deserialize)]
struct Pair {
    image: String,
    label: String,
}

/// Some tasks list test images as they list training pairs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Single {
    Image(String),
    Pair {
        image: String,
        #[serde(default)]
        label: Option<String>,
    },
}

fn text(root: &Path) -> Option<String> {
    std::fs::read_to_string(root.join("dataset.json")).ok()
}

pub(super) fn recognises(root: &Path) -> bool {
    let json: Option<Map<String, Value>> = text(root).and_then(|t| serde_json::from_str(&t).ok());
    json.is_some_and(|j| {
        j.get("training").is_some_and(Value::is_array) && !j.contains_key("file_ending")
    })
}

pub(super) fn survey(root: &Path) -> Result<Survey> {
    let path = root.join("dataset.json");
    let whole = |e: serde_json::Error| DataError::json(&path, "(whole file)", e.to_string());
    let text = std::fs::read_to_string(&path).map_err(|e| DataError::reading(&path, e))?;
    let raw: OnDisk = serde_json::from_str(&text).map_err(whole)?;
    let mut fatal = Vec::new();
    let mut draft = Draft::new(root, raw.name.filter(|n| !n.is_empty()));
    draft.take(&mut fatal, |d| {
        d.set_channels(&path, CHANNELS, &raw.modality)
    });
    match turned_round(&path, &raw.labels) {
        Ok(labels) => draft.take(&mut fatal, |d| d.set_labels(&path, &labels, None)),
        Err(error) => fatal.push(error),
    }
    let mut survey = Survey {
        dataset: Dataset::new(root, draft.finish()),
        fatal,
        problems: Vec::new(),
    };
    survey.dataset.listed = true;
    let channels = survey.dataset.info.channel_names.len().max(1);
    let mut held: Vec<String> = Vec::new();
    for (list, pairs) in [("training", &raw.training), ("validation", &raw.validation)] {
        for (number, pair) in pairs.iter().enumerate() {
            let field = format!("{list}[{number}]");
            match case(
                root,
                &path,
                &field,
                &pair.image,
                Some(&pair.label),
                channels,
            ) {
                Ok(case) => {
                    if list == "validation" {
                        held.push(case.id.clone());
                    }
                    survey.dataset.training.push(case);
                }
                Err(error) => survey.problems.push(Problem::from_error(&error)),
            }
        }
    }
    if raw.validation.is_empty() {
        let unlisted = validation_folders(root)?;
        held.extend(unlisted.iter().map(|c| c.id.clone()));
        survey.dataset.training.extend(unlisted);
    }
    for (number, single) in raw.test.iter().enumerate() {
        let field = format!("test[{number}]");
        let (image, label) = match single {
            Single::Image(image) => (image, None),
            Single::Pair { image, label } => (image, label.as_deref()),
        };
        match case(root, &path, &field, image, label, channels) {
            Ok(case) => survey.dataset.test.push(case),
            Err(error) => survey.problems.push(Problem::from_error(&error)),
        }
    }
    let listed = survey.dataset.training.len() - held.len();
    match raw.num_training {
        Some(claimed) if claimed != listed => survey.error(
            Kind::NumTraining,
            &path,
            format!("numTraining is {claimed}, but `training` lists {listed} cases"),
            "correct numTraining or the list",
        ),
        _ => {}
    }
    strangers(root, &mut survey)?;
    let dataset = &mut survey.dataset;
    for cases in [&mut dataset.training, &mut dataset.test] {
        cases.sort_by(|a, b| a.id.cmp(&b.id));
        for at in (1..cases.len()).rev() {
            if cases[at].id == cases[at - 1].id {
                let twice = Problem::warning(
                    Kind::DuplicateCase,
                    "dataset.json lists it twice",
                    "remove one of the entries",
                );
                survey.problems.push(twice.at(&path).of(&cases[at].id));
                cases.remove(at);
            }
        }
    }
    if !held.is_empty() {
        held.sort();
        held.dedup();
        let mut train = dataset.training_ids();
        train.retain(|id| held.binary_search(id).is_err());
        dataset.official = Some(Fold {
            train,
            validation: held,
        });
    }
    let files = dataset.training.iter().flat_map(|c| c.images.clone());
    let endings = images(files.collect()).0;
    dataset.info.file_ending =
        commonest_ending(endings.iter().map(|f| f.ending)).unwrap_or_else(|| ".nii.gz".into());
    dataset.info.num_training = dataset.training.len();
    if dataset.training.is_empty() {
        let problem = "it lists no training case with an image";
        survey
            .fatal
            .push(DataError::json(&path, "training", problem));
    }
    Ok(survey)
}

/// Cases in folders for validation that no list names.
fn validation_folders(root: &Path) -> Result<Vec<Case>> {
    let (folder, labels) = (root.join("imagesVa"), root.join("labelsVa"));
    if !folder.is_dir() || !labels.is_dir() {
        return Ok(Vec::new());
    }
    let case = |file: ImageFile| {
        let label = labels.join(name_of(&file.path));
        Case::new(file.stem, vec![file.path], label)
    };
    Ok(images(entries(&folder)?.1)
        .0
        .into_iter()
        .map(case)
        .collect())
}

/// `{"0": "background", "1": "liver"}` as nnU-Net v2 has it, `{"background": 0, "liver": 1}`.
fn turned_round(path: &Path, labels: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut turned = Map::new();
    for (number, name) in labels {
        match (number.parse::<i16>(), name) {
            (Ok(number), Value::String(name)) => {
                // Some tasks call several classes by one name.
                let name = match turned.contains_key(name) {
                    true => format!("{name} {number}"),
                    false => name.clone(),
                };
                turned.insert(name, number.into());
            }
            (Err(_), Value::Number(_)) => {
                turned.insert(number.clone(), name.clone());
            }
            _ => {
                let problem = format!("\"{number}\": {name} is not of the form \"1\": \"liver\"");
                return Err(DataError::json(path, "labels", problem));
            }
        }
    }
    Ok(turned)
}

/// A case of listed files.
fn case(
    root: &Path,
    json: &Path,
    field: &str,
    image: &str,
    label: Option<&str>,
    channels: usize,
) -> Result<Case> {
    let image = inside(root, json, field, image)?;
    let file = images(vec![image.clone()]).0;
    let Some(file) = file.first() else {
        let problem = format!("the ending of `{}` cannot be read", image.display());
        return Err(DataError::json(json, field, problem));
    };
    let numbered = |c: usize| image.with_file_name(format!("{}_{c:04}{}", file.stem, file.ending));
    let files = match image.exists() || !numbered(0).exists() {
        true => vec![image.clone()],
        false => (0..channels).map(numbered).filter(|p| p.exists()).collect(),
    };
    let label = match label {
        Some(label) => inside(root, json, field, label)?,
        None => root.join("labelsTs").join(name_of(&image)),
    };
    Ok(Case::new(&file.stem, files, label))
}

/// A listed path, which lies in the data set's folder.
fn inside(root: &Path, json: &Path, field: &str, listed: &str) -> Result<PathBuf> {
    let path = Path::new(listed);
    let plain = |c: Component| matches!(c, Component::Normal(_) | Component::CurDir);
    match path.components().all(plain) && !listed.is_empty() {
        true => Ok(root.join(path.components().filter(|c| matches!(c, Component::Normal(_))).collect::<PathBuf>())),
        false => Err(DataError::json(
            json,
            field,
            format!("`{listed}` does not lie in the data set's folder; write it as ./imagesTr/CASE.nii.gz"),
        )),
    }
}

/// Files of the usual folders that no list names.
fn strangers(root: &Path, survey: &mut Survey) -> Result<()> {
    let dataset = &survey.dataset;
    let cases = || dataset.training.iter().chain(&dataset.test);
    let listed: std::collections::BTreeSet<PathBuf> = cases()
        .flat_map(|c| c.images.iter().chain([&c.label]))
        .cloned()
        .collect();
    let mut found = Vec::new();
    for (folder, kind, what) in [
        ("imagesTr", Kind::IgnoredFile, "an image"),
        ("imagesTs", Kind::IgnoredFile, "an image"),
        ("imagesVa", Kind::IgnoredFile, "an image"),
        ("labelsTr", Kind::OrphanLabel, "a label map"),
        ("labelsVa", Kind::OrphanLabel, "a label map"),
    ] {
        let folder = root.join(folder);
        if !folder.is_dir() {
            continue;
        }
        for file in images(entries(&folder)?.1).0 {
            if !listed.contains(&file.path) {
                found.push((file.path, kind, what));
            }
        }
    }
    for (path, kind, what) in found {
        let problem = format!("{what} that dataset.json does not list");
        survey.warning(kind, &path, problem, "list it or take it away");
    }
    Ok(())
}
