//! Folders of images and masks without any description, in the ways they are commonly published:
//!
//! - two folders, told apart by their names: `images` and `masks` (or `labels`, `annotations`, `GroundTruth`, ...); ISIC's
//!   `ISIC2018_Task1-2_Training_Input` and `ISIC2018_Task1_Training_GroundTruth`;
//! - the same for `train`, `val` and `test`, above or below those two or in their names: the official split;
//! - side by side in one folder, `a.png` and `a_mask.png`.
//!
//! A mask has its image's name, or that with `_mask`, `_segmentation` and the like. What its grey values mean follows from all masks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::dataset::{Case, Dataset};
use super::description::Draft;
use super::files::{commonest_ending, entries, images, ImageFile};
use super::masks::classes_of;
use super::problem::{Kind, Problem};
use super::Survey;
use crate::io::read_image;
use crate::{DataError, Fold, Result};

const MASK_WORDS: &[&str] = &[
    "mask",
    "masks",
    "label",
    "labels",
    "lab",
    "annotation",
    "annotations",
    "gt",
    "gts",
    "groundtruth",
    "groundtruths",
    "truth",
    "truths",
    "segmentation",
    "segmentations",
    "seg",
    "segs",
    "target",
    "targets",
];
const IMAGE_WORDS: &[&str] = &[
    "image",
    "images",
    "img",
    "imgs",
    "im",
    "input",
    "inputs",
    "original",
    "originals",
    "photo",
    "photos",
    "picture",
    "pictures",
    "scan",
    "scans",
];

/// A part of the official split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Training,
    Validation,
    Test,
}

const PARTS: &[(Part, &[&str])] = &[
    (Part::Training, &["train", "training", "tr"]),
    (Part::Validation, &["val", "valid", "validation", "dev"]),
    (Part::Test, &["test", "testing", "ts"]),
];

/// Folders of a part.
#[derive(Debug, Default)]
struct Folders {
    images: Vec<PathBuf>,
    masks: Vec<PathBuf>,
    /// Neither by name.
    unnamed: Vec<PathBuf>,
}

/// `ISIC2018_Training_GroundTruth` as isic2018, training, ground, truth.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        let begins = !c.is_alphanumeric() || before.is_lowercase() && c.is_uppercase();
        if begins {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_alphanumeric()) {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|w| !w.is_empty());
    words
}

fn any(words: &[String], known: &[&str]) -> bool {
    words.iter().any(|w| known.contains(&w.as_str()))
}

/// The folders that may hold images, at most two levels deep, by part.
fn folders(root: &Path) -> Result<BTreeMap<Part, Folders>> {
    let mut all = vec![root.to_path_buf()];
    for folder in entries(root)?.0 {
        // Folders that may not be listed hold nothing of ours.
        let below = entries(&folder).map(|e| e.0).unwrap_or_default();
        all.push(folder);
        all.extend(below);
    }
    let mut parts: BTreeMap<Part, Folders> = BTreeMap::new();
    for folder in all {
        let below = folder.strip_prefix(root).unwrap_or(&folder);
        // The deepest name that says something counts.
        let names: Vec<Vec<String>> = below
            .components()
            .rev()
            .map(|c| words(&c.as_os_str().to_string_lossy()))
            .collect();
        let part = names.iter().find_map(|name| {
            let part = PARTS.iter().find(|(_, known)| any(name, known));
            part.map(|p| p.0)
        });
        let role = names.iter().find_map(|name| {
            let mask = any(name, MASK_WORDS);
            (mask || any(name, IMAGE_WORDS)).then_some(mask)
        });
        let holds_images = || {
            !images(entries(&folder).map(|e| e.1).unwrap_or_default())
                .0
                .is_empty()
        };
        // `masks/train` and `masks/test` are no masks of their own.
        let has_folders = || !entries(&folder).map(|e| e.0).unwrap_or_default().is_empty();
        let found = parts.entry(part.unwrap_or(Part::Training)).or_default();
        match role {
            Some(true) if holds_images() || !has_folders() => found.masks.push(folder),
            Some(false) if holds_images() => found.images.push(folder),
            None if holds_images() => found.unnamed.push(folder),
            _ => {}
        }
    }
    parts.retain(|_, f| f.images.len() + f.masks.len() + f.unnamed.len() > 0);
    Ok(parts)
}

pub(super) fn recognises(root: &Path) -> bool {
    let Ok(parts) = folders(root) else {
        return false;
    };
    parts.values().any(|part| {
        let some = part.images.len() + part.unnamed.len() > 0;
        let beside = || part.unnamed.iter().any(|f| side_by_side(f));
        !part.masks.is_empty() && some || beside()
    })
}

/// Whether a folder holds a mask beside its image.
fn side_by_side(folder: &Path) -> bool {
    let files = images(entries(folder).map(|e| e.1).unwrap_or_default()).0;
    let (masks, images): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| is_mask(&f.stem));
    let keys: BTreeSet<String> = images
        .iter()
        .map(|f| image_key(&f.stem).to_owned())
        .collect();
    masks.iter().any(|m| keys.contains(mask_key(&m.stem)))
}

/// A name without a last or first word that is one of those known.
fn without<'a>(stem: &'a str, known: &[&str]) -> &'a str {
    let fits = |word: &str| known.contains(&word.to_lowercase().as_str());
    const BETWEEN: [char; 4] = ['_', '-', ' ', '.'];
    match stem.rsplit_once(BETWEEN) {
        Some((rest, word)) if fits(word) && !rest.is_empty() => return rest,
        _ => {}
    }
    match stem.split_once(BETWEEN) {
        Some((word, rest)) if fits(word) && !rest.is_empty() => rest,
        _ => stem,
    }
}

fn mask_key(stem: &str) -> &str {
    without(stem, MASK_WORDS)
}

fn image_key(stem: &str) -> &str {
    without(stem, IMAGE_WORDS)
}

fn is_mask(stem: &str) -> bool {
    mask_key(stem) != stem
}

/// Images and masks of a part.
struct Content {
    images: Vec<ImageFile>,
    masks: Vec<ImageFile>,
    /// Where a mask that lacks would lie.
    mask_folder: Option<PathBuf>,
}

fn content(part: &Folders) -> Result<Content> {
    let files = |folders: &[PathBuf]| -> Result<Vec<ImageFile>> {
        let mut all = Vec::new();
        for folder in folders {
            all.extend(images(entries(folder)?.1).0);
        }
        Ok(all)
    };
    let ambiguous = |folders: &[PathBuf], what: &str| {
        let names: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
        DataError::Case {
            case: "(all)".into(),
            problem: format!(
                "any of the folders {} may hold the {what}; take the others away",
                names.join(", ")
            ),
        }
    };
    if part.masks.len() > 1 {
        return Err(ambiguous(&part.masks, "masks"));
    }
    let mask_folder = part.masks.first().cloned();
    let candidates = match part.images.is_empty() {
        true => &part.unnamed,
        false => &part.images,
    };
    if mask_folder.is_none() {
        // Side by side, or images alone.
        let (masks, images) = files(candidates)?
            .into_iter()
            .partition(|f| is_mask(&f.stem));
        return Ok(Content {
            images,
            masks,
            mask_folder: candidates.first().cloned(),
        });
    }
    if candidates.len() > 1 {
        return Err(ambiguous(candidates, "images"));
    }
    Ok(Content {
        images: files(candidates)?,
        masks: files(&part.masks)?,
        mask_folder,
    })
}

/// Each image with its mask, by name.
fn cases(content: Content, problems: &mut Vec<Problem>) -> Vec<Case> {
    let Content {
        images,
        masks,
        mask_folder,
    } = content;
    let mut by_name: BTreeMap<String, (ImageFile, Option<PathBuf>)> = BTreeMap::new();
    let mut other_names: BTreeMap<String, String> = BTreeMap::new();
    for file in images {
        let id = file.stem.clone();
        if let Some((first, _)) = by_name.get(&id) {
            let twice = Problem::error(
                Kind::DuplicateCase,
                format!("{} is an image of the same name", first.path.display()),
                "keep one of them",
            );
            problems.push(twice.at(&file.path).of(&id));
            continue;
        }
        other_names.insert(image_key(&id).to_owned(), id.clone());
        by_name.insert(id, (file, None));
    }
    let ending = commonest_ending(masks.iter().map(|f| f.ending));
    // What masks of this data set add to their image's name.
    let mut addition = String::new();
    for mask in masks {
        let key = mask_key(&mask.stem).to_owned();
        let candidates = [&mask.stem, &key];
        let id = candidates
            .iter()
            .find(|c| by_name.contains_key(**c))
            .map(|c| (*c).clone())
            .or_else(|| candidates.iter().find_map(|c| other_names.get(*c).cloned()));
        let Some((id, (_, found))) = id.and_then(|id| by_name.get_mut(&id).map(|e| (id, e))) else {
            let orphan = Problem::error(
                Kind::OrphanLabel,
                format!("there is no image called {key}"),
                "add the image or take the mask away",
            );
            problems.push(orphan.at(&mask.path).of(&key));
            continue;
        };
        if let Some(first) = found {
            let twice = Problem::error(
                Kind::DuplicateCase,
                format!("{} is a mask of the same image", first.display()),
                "keep one of them, or join them",
            );
            problems.push(twice.at(&mask.path).of(&id));
            continue;
        }
        if let Some(rest) = mask.stem.strip_prefix(&id) {
            addition = rest.to_owned();
        }
        *found = Some(mask.path);
    }
    let ending = ending.unwrap_or_else(|| ".png".into());
    let folder = mask_folder.unwrap_or_default();
    let cases = by_name.into_iter().map(|(id, (image, mask))| {
        let label = mask.unwrap_or_else(|| folder.join(format!("{id}{addition}{ending}")));
        Case::new(id, vec![image.path], label)
    });
    cases.collect()
}

/// Images looked at to know the number of channels.
const LOOKED_AT: usize = 9;

/// Names of the channels that most images have.
fn channels(cases: &[Case]) -> Vec<String> {
    let step = cases.len().div_ceil(LOOKED_AT).max(1);
    let mut counts: BTreeMap<(usize, bool), usize> = BTreeMap::new();
    for case in cases.iter().step_by(step) {
        let Some(Ok(image)) = case.images.first().map(|p| read_image(p)) else {
            continue;
        };
        let natural = image.spatial_size().len() == 2;
        *counts.entry((image.channels(), natural)).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, n)| *n).map(|c| c.0);
    let names: &[&str] = match most {
        Some((2, true)) => &["grey", "alpha"],
        Some((3, true)) => &["R", "G", "B"],
        Some((4, true)) => &["R", "G", "B", "alpha"],
        Some((n, _)) if n > 1 => return (0..n).map(|c| format!("channel {c}")).collect(),
        Some((_, true)) => &["grey"],
        _ => &["image"],
    };
    names.iter().map(|n| (*n).to_owned()).collect()
}

pub(super) fn survey(root: &Path) -> Result<Survey> {
    let mut survey = Survey {
        dataset: Dataset::new(root, Draft::new(root, None).finish()),
        fatal: Vec::new(),
        problems: Vec::new(),
    };
    let mut of_part: BTreeMap<Part, Vec<Case>> = BTreeMap::new();
    let mut labelled = BTreeSet::new();
    for (part, found) in folders(root)? {
        let content = content(&found)?;
        if !content.masks.is_empty() || !found.masks.is_empty() {
            labelled.insert(part);
        }
        of_part.insert(part, cases(content, &mut survey.problems));
    }
    let mut take = |part: Part| of_part.remove(&part).unwrap_or_default();
    let (mut training, mut validation, mut test) = (
        take(Part::Training),
        take(Part::Validation),
        take(Part::Test),
    );
    let dataset = &mut survey.dataset;
    if !labelled.contains(&Part::Validation) && !validation.is_empty() {
        dataset
            .notes
            .push("the validation images have no masks; they count as test images".into());
        test.append(&mut validation);
    }
    if training.is_empty() {
        survey.fatal.push(DataError::NoDataset {
            path: root.into(),
            known: "training images with masks".into(),
        });
        return Ok(survey);
    }
    let names: BTreeSet<String> = training.iter().map(|c| c.id.clone()).collect();
    if validation.iter().any(|c| names.contains(&c.id)) {
        for case in &mut validation {
            case.id = format!("val_{}", case.id);
            case.group = case.id.clone();
        }
        dataset.notes.push(
            "training and validation images share names; the latter are called val_NAME".into(),
        );
    }
    if !validation.is_empty() {
        let ids = |cases: &[Case]| -> Vec<String> { cases.iter().map(|c| c.id.clone()).collect() };
        dataset.official = Some(Fold {
            train: ids(&training),
            validation: ids(&validation),
        });
    }
    training.append(&mut validation);
    training.sort_by(|a, b| a.id.cmp(&b.id));
    test.sort_by(|a, b| a.id.cmp(&b.id));
    dataset.info.channel_names = channels(&training);
    dataset.info.num_training = training.len();
    let files = images(training.iter().flat_map(|c| c.images.clone()).collect()).0;
    let endings: BTreeSet<&str> = files.iter().map(|f| f.ending).collect();
    dataset.info.file_ending =
        commonest_ending(files.iter().map(|f| f.ending)).unwrap_or_else(|| ".png".into());
    let several = (endings.len() > 1).then(|| {
        let list: Vec<&str> = endings.into_iter().collect();
        Problem::note(
            Kind::MixedEndings,
            format!("the images are of several formats: {}", list.join(", ")),
            "nothing need be done; `datasets convert` makes them one",
        )
    });
    survey.problems.extend(several);
    let labelled = training.iter().chain(&test).map(|c| c.label.clone());
    let masks: Vec<PathBuf> = labelled.filter(|p| p.is_file()).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    dataset.training = training;
    dataset.test = test;
    match classes_of(&masks, threads) {
        Ok(classes) => {
            dataset.info.labels = classes.labels;
            dataset.info.ignore_label = classes.ignore;
            dataset.stored = classes.stored;
            dataset.notes.extend(classes.note);
        }
        Err(error) => survey.fatal.push(error),
    }
    Ok(survey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(
            words("ISIC2018_Task1-2_Training_GroundTruth"),
            ["isic2018", "task1", "2", "training", "ground", "truth"]
        );
        assert_eq!(words("imagesTr"), ["images", "tr"]);
        assert_eq!(mask_key("ISIC_0000000_segmentation"), "ISIC_0000000");
        assert_eq!(mask_key("mask_7"), "7");
        assert_eq!(mask_key("case_12"), "case_12");
        assert_eq!(image_key("brain1_image"), "brain1");
    }
}
