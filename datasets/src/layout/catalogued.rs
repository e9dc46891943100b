//! Benchmark data sets as they are downloaded, by the patterns of the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::dataset::{Case, Dataset};
use super::description::{Draft, CHANNELS};
use super::files::{commonest_ending, images};
use super::masks::StoredLabels;
use super::pattern::{Pattern, Places};
use super::problem::{Kind, Problem};
use super::Survey;
use crate::catalog::{entries, Entry, FileLayout, Part, Task};
use crate::{Fold, Result};

pub(super) const NAME: &str = "benchmark of the catalogue";

/// The entry whose training files, or else test files, lie in a folder.
fn entry_of(root: &Path) -> Option<&'static Entry> {
    let of_part = |training: bool| {
        entries().iter().find(|entry| {
            let mut layouts = entry.layouts.iter();
            entry.task == Task::Segmentation
                && layouts.any(|l| (l.part == Part::Training) == training && lies_in(l, root))
        })
    };
    of_part(true).or_else(|| of_part(false))
}

/// Whether a case of a layout lies in a folder, with its reference where there should be one.
fn lies_in(layout: &FileLayout, root: &Path) -> bool {
    let found = layout.images[0].find(root).unwrap_or_default();
    match &layout.reference {
        _ if found.is_empty() => false,
        None => true,
        Some(reference) => {
            let there = by_places(reference, root).unwrap_or_default();
            let has = |(places, _): &(Places, PathBuf)| there.contains_key(&key(reference, places));
            found.iter().any(has)
        }
    }
}

/// What a pattern's own places stand for, upper and lower case alike.
fn key(pattern: &Pattern, places: &Places) -> Vec<String> {
    let value = |place: &str| Some(places.get(place)?.to_lowercase());
    pattern.places().filter_map(value).collect()
}

/// The files that fit a pattern, by what its places stand for.
fn by_places(pattern: &Pattern, root: &Path) -> Result<BTreeMap<Vec<String>, PathBuf>> {
    // of several the first counts
    let found = pattern.find(root)?.into_iter().rev();
    Ok(found
        .map(|(places, path)| (key(pattern, &places), path))
        .collect())
}

/// The entry that a data set was opened by.
pub(super) fn of(dataset: &Dataset) -> Option<&'static Entry> {
    let layout = |e: &&Entry| !e.layouts.is_empty() && e.title == dataset.layout;
    entries().iter().find(layout).filter(|_| dataset.listed)
}

pub(super) fn recognises(root: &Path) -> bool {
    entry_of(root).is_some()
}

pub(super) fn survey(root: &Path) -> Result<Survey> {
    let entry = entry_of(root).ok_or_else(|| crate::DataError::NoDataset {
        path: root.into(),
        known: NAME.into(),
    })?;
    let mut fatal = Vec::new();
    let mut draft = Draft::new(root, Some(entry.title.clone()));
    let catalogue = PathBuf::from(format!("catalogue entry {}", entry.name));
    draft.take(&mut fatal, |d| {
        d.set_channels(&catalogue, CHANNELS, &channels(entry))
    });
    draft.take(&mut fatal, |d| {
        let order = &entry.regions_class_order;
        let order = (!order.is_empty()).then_some(order.as_slice());
        d.set_labels(&catalogue, &labels(entry), order)
    });
    let mut survey = Survey {
        dataset: Dataset::new(root, draft.finish()),
        fatal,
        problems: Vec::new(),
    };
    survey.dataset.layout = &entry.title;
    survey.dataset.listed = true;
    if entry.labels.iter().any(|l| l.stored.is_some()) {
        let stored = |l: &crate::catalog::Label| (l.stored.unwrap_or(i32::from(l.value)), l.value);
        survey.dataset.stored = StoredLabels::Grey(entry.labels.iter().map(stored).collect());
    }
    let mut validation = Vec::new();
    for layout in &entry.layouts {
        let cases = cases(root, layout, &mut survey)?;
        match layout.part {
            Part::Test => survey.dataset.test.extend(cases),
            Part::Training => survey.dataset.training.extend(cases),
            Part::Validation => {
                validation.extend(cases.iter().map(|c| c.id.clone()));
                survey.dataset.training.extend(cases);
            }
        }
    }
    let Survey {
        dataset,
        problems,
        fatal,
    } = &mut survey;
    for cases in [&mut dataset.training, &mut dataset.test] {
        cases.sort_by(|a, b| a.id.cmp(&b.id));
        for at in (1..cases.len()).rev() {
            if cases[at].id == cases[at - 1].id {
                let other = cases[at - 1].images[0].display();
                let problem = format!("it is there twice: {other} is used");
                let twice = Problem::warning(Kind::DuplicateCase, problem, "take one of them away");
                problems.push(twice.at(&cases[at].images[0]).of(&cases[at].id));
                cases.remove(at);
            }
        }
    }
    if !validation.is_empty() {
        validation.sort();
        let train = dataset.training_ids();
        let train = train
            .into_iter()
            .filter(|id| !validation.contains(id))
            .collect();
        dataset.official = Some(Fold { train, validation });
    }
    let files = dataset.training.iter().flat_map(|c| c.images.clone());
    let endings = images(files.collect()).0;
    dataset.info.file_ending =
        commonest_ending(endings.iter().map(|f| f.ending)).unwrap_or_else(|| ".nii.gz".into());
    dataset.info.num_training = dataset.training.len();
    let word = match dataset.training.is_empty() {
        true => "its test cases alone",
        false => "as downloaded",
    };
    dataset.notes.push(format!(
        "taken for {}, {word} (`datasets show {}`)",
        entry.title, entry.name
    ));
    if dataset.training.is_empty() {
        fatal.push(crate::DataError::Empty {
            folder: root.into(),
            file_ending: dataset.info.file_ending.clone(),
        });
    }
    Ok(survey)
}

/// Every case of a layout; what its files lack becomes a problem when they are read.
fn cases(root: &Path, layout: &FileLayout, survey: &mut Survey) -> Result<Vec<Case>> {
    let others = layout.images[1..].iter().chain(&layout.reference);
    let there: Vec<_> = others.map(|p| by_places(p, root)).collect::<Result<_>>()?;
    let first = layout.images[0].find(root)?;
    // a reference whose image is missing would otherwise go unseen
    if let (Some(reference), Some(found)) = (&layout.reference, there.last()) {
        let known: BTreeSet<_> = first
            .iter()
            .map(|(places, _)| key(reference, places))
            .collect();
        for path in found
            .iter()
            .filter(|(k, _)| !known.contains(*k))
            .map(|f| f.1)
        {
            survey.warning(
                Kind::OrphanLabel,
                path,
                "a label map without image",
                "add the image or take the label map away",
            );
        }
    }
    let case = |(places, path): (Places, PathBuf)| {
        // the file that is there, else what it should be called
        let file = |pattern: &Pattern, there: &BTreeMap<Vec<String>, PathBuf>| {
            let found = there.get(&key(pattern, &places)).cloned();
            found.or_else(|| pattern.fill(root, &places))
        };
        let mut files = vec![path];
        files.extend(
            layout.images[1..]
                .iter()
                .zip(&there)
                .filter_map(|(p, t)| file(p, t)),
        );
        let id = named(layout.case.as_deref(), &places);
        let reference = layout.reference.as_ref().zip(there.last());
        let label = reference.and_then(|(p, t)| file(p, t));
        let label = label.unwrap_or_else(|| root.join("labelsTs").join(format!("{id}.nii.gz")));
        Case {
            group: match &layout.group {
                Some(group) => named(Some(group), &places),
                None => id.clone(),
            },
            ..Case::new(id, files, label)
        }
    };
    Ok(first.into_iter().map(case).collect())
}

/// A name put together of what the open places stand for.
fn named(form: Option<&str>, places: &Places) -> String {
    match form {
        None => places.values().cloned().collect::<Vec<_>>().join("_"),
        Some(form) => places.iter().fold(form.to_owned(), |name, (open, value)| {
            name.replace(&format!("{{{open}}}"), value)
        }),
    }
}

fn channels(entry: &Entry) -> Map<String, Value> {
    let numbered = entry.channels.iter().enumerate();
    numbered
        .map(|(i, n)| (i.to_string(), n.clone().into()))
        .collect()
}

fn labels(entry: &Entry) -> Map<String, Value> {
    match entry.regions.is_empty() {
        true => (entry.labels.iter())
            .map(|l| (l.name.clone(), l.value.into()))
            .collect(),
        false => (entry
            .labels
            .iter()
            .take(1)
            .map(|l| (l.name.clone(), l.value.into())))
        .chain(
            entry
                .regions
                .iter()
                .map(|r| (r.name.clone(), r.values.clone().into())),
        )
        .collect(),
    }
}
