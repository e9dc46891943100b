//! Any data set as an nnU-Net v2 raw one. Files that are right as they are become links; the source is never touched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ndarray::{stack, ArrayD, Axis};

use super::dataset::{Case, Dataset, Split};
use super::description::DatasetJson;
use super::files::{images, name_of};
use crate::io::{atomically, write_image, write_labels, write_picture};
use crate::parallel::for_each_in_order;
use crate::split::{Folds, Source, FILE};
use crate::{DataError, Fold, Geometry, Image, LabelMap, Result};

/// Formats that nnU-Net v2.8 reads and that label maps can be written in.
const ENDINGS: &[&str] = &[".nii.gz", ".nrrd", ".mha", ".png", ".tif", ".tiff"];
const PICTURES: &[&str] = &[".png", ".jpg", ".jpeg", ".bmp"];
const PICTURE: &str = ".png";
const VOLUME: &str = ".nii.gz";

/// A case of the new data set: one of the old, or a stack of slices.
struct Target {
    id: String,
    /// Slices in order, or the one case.
    from: Vec<Case>,
    split: Split,
}

/// What [`convert`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Converted {
    /// Cases in the new data set.
    pub cases: usize,
    /// Files linked or written now; the others were there.
    pub made: usize,
}

/// Writes `dataset` into the folder `out` as an nnU-Net v2 raw data set called `name`. Slices of a volume are stacked in order. Files that are up
/// to date are left alone, so that it can be called again. Every broken case is named in the error after the others are done;
/// `dataset.json` and the published split come last, and only when all is well.
pub fn convert(
    dataset: &Dataset,
    out: &Path,
    name: &str,
    threads: usize,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Converted> {
    let targets = targets(dataset);
    refuse_strangers(dataset, out, &targets)?;
    for folder in ["imagesTr", "labelsTr", "imagesTs", "labelsTs"] {
        let wanted = match folder.ends_with("Tr") {
            true => true,
            false => !dataset.test.is_empty(),
        };
        if wanted {
            let folder = out.join(folder);
            std::fs::create_dir_all(&folder).map_err(|e| DataError::writing(&folder, e))?;
        }
    }
    let info = DatasetJson {
        name: name.into(),
        file_ending: ending(dataset, &targets).into(),
        num_training: targets
            .iter()
            .filter(|t| t.split == Split::Training)
            .count(),
        ..dataset.info.clone()
    };
    let json = out.join("dataset.json");
    // Another list of labels means other label maps: those there are out of date.
    let relabel = DatasetJson::read(&json).is_ok_and(|old| old.labels != info.labels);
    let work = Work {
        dataset,
        out,
        ending: &info.file_ending,
        relabel,
    };
    let mut converted = Converted {
        cases: targets.len(),
        made: 0,
    };
    let mut failures = Vec::new();
    for_each_in_order(
        &targets,
        threads,
        |target| work.case(target),
        |target, outcome| {
            match outcome {
                Ok(made) => converted.made += made,
                Err(error) => failures.push(error),
            }
            progress(&target.id);
        },
    );
    DataError::all(failures)?;
    if let Some(folds) = folds(dataset, &targets)? {
        folds.write(&out.join(FILE))?;
    }
    atomically(&json, |file| Ok(serde_json::to_writer_pretty(file, &info)?))?;
    Ok(converted)
}

/// Slices of one volume become a case; every other case stays one.
fn targets(dataset: &Dataset) -> Vec<Target> {
    let mut targets = Vec::new();
    for split in [Split::Training, Split::Test] {
        let mut volumes: BTreeMap<&str, Vec<(usize, &Case)>> = BTreeMap::new();
        for case in dataset.cases(split) {
            let (volume, number) = match &case.slice_of {
                Some((volume, number)) => (volume.as_str(), *number),
                None => (case.id.as_str(), 0),
            };
            volumes.entry(volume).or_default().push((number, case));
        }
        targets.extend(volumes.into_iter().map(|(id, mut slices)| {
            slices.sort_by_key(|s| s.0);
            Target {
                id: id.to_owned(),
                from: slices.into_iter().map(|s| s.1.clone()).collect(),
                split,
            }
        }));
    }
    targets
}

/// The ending that fits all: that of the source where nnU-Net reads it, PNG for pictures, NIfTI for the rest.
fn ending(dataset: &Dataset, targets: &[Target]) -> &'static str {
    let stacked = targets
        .iter()
        .any(|t| t.from.iter().any(|c| c.slice_of.is_some()));
    let cases = dataset.training.iter().chain(&dataset.test);
    let files = images(cases.flat_map(|c| c.images.clone()).collect()).0;
    let found: BTreeSet<&'static str> = files.iter().map(|f| f.ending).collect();
    let one = found.first().copied().filter(|_| found.len() == 1);
    match one.and_then(|ending| ENDINGS.iter().find(|e| **e == ending)) {
        Some(ending) if !stacked => ending,
        _ if !stacked && found.iter().all(|e| PICTURES.contains(e)) => PICTURE,
        _ => VOLUME,
    }
}

/// A folder with other cases is not written over.
fn refuse_strangers(dataset: &Dataset, out: &Path, targets: &[Target]) -> Result<()> {
    let refused = |remedy: &str| DataError::Setting {
        field: "the output folder".into(),
        found: out.display().to_string(),
        expected: remedy.into(),
    };
    let whole = |path: &Path| -> Option<PathBuf> {
        // The folder may not exist yet; one above it does.
        let existing = path
            .ancestors()
            .find(|p| !p.as_os_str().is_empty() && p.exists());
        let existing = existing.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        existing.canonicalize().ok()
    };
    let (source, target) = (dataset.root.canonicalize().ok(), whole(out));
    if let (Some(source), Some(target)) = (source, target) {
        if target.starts_with(&source) {
            return Err(refused(
                "it lies in the data set itself; choose one elsewhere",
            ));
        }
    }
    let ids: BTreeSet<(bool, &str)> = targets
        .iter()
        .map(|t| (t.split == Split::Training, t.id.as_str()))
        .collect();
    for (training, folder) in [(true, "imagesTr"), (false, "imagesTs")] {
        let folder = out.join(folder);
        if !folder.is_dir() {
            continue;
        }
        for file in images(super::files::entries(&folder)?.1).0 {
            let id = super::input::split_channel(&file.stem).0;
            if !ids.contains(&(training, id)) {
                return Err(refused(&format!(
                    "it holds {}, which is no case of this data set; choose an empty folder",
                    file.path.display()
                )));
            }
        }
    }
    Ok(())
}

/// The folds that come with the data set, by the names of the new cases.
fn folds(dataset: &Dataset, targets: &[Target]) -> Result<Option<Folds>> {
    let folds = match Folds::of(dataset, None) {
        Ok(folds) if folds.source == Source::FiveFolds => return Ok(None),
        // Too few cases for five folds is no reason not to convert them.
        Err(DataError::Setting { .. }) => return Ok(None),
        other => other?,
    };
    let mut new_names: BTreeMap<&str, &str> = BTreeMap::new();
    for target in targets.iter().filter(|t| t.split == Split::Training) {
        for case in &target.from {
            new_names.insert(&case.id, &target.id);
        }
    }
    let rename = |ids: &[String]| -> Vec<String> {
        let names = ids.iter().filter_map(|id| new_names.get(id.as_str()));
        let names: BTreeSet<&str> = names.copied().collect();
        names.into_iter().map(str::to_owned).collect()
    };
    let renamed = folds.folds.iter().map(|fold| Fold {
        train: rename(&fold.train),
        validation: rename(&fold.validation),
    });
    Ok(Some(Folds {
        folds: renamed.collect(),
        source: folds.source,
    }))
}

struct Work<'a> {
    dataset: &'a Dataset,
    out: &'a Path,
    ending: &'a str,
    relabel: bool,
}

impl Work<'_> {
    /// Files made.
    fn case(&self, target: &Target) -> Result<usize> {
        let (images, labels) = match target.split {
            Split::Training => ("imagesTr", "labelsTr"),
            Split::Test => ("imagesTs", "labelsTs"),
        };
        let mut made = self.images(target, &self.out.join(images))?;
        let labelled =
            target.split == Split::Training || target.from.iter().all(|c| c.label.is_file());
        if labelled {
            let path = self
                .out
                .join(labels)
                .join(format!("{}{}", target.id, self.ending));
            made += self.label(target, &path)?;
        }
        Ok(made)
    }

    fn images(&self, target: &Target, folder: &Path) -> Result<usize> {
        let file =
            |channel: usize| folder.join(format!("{}_{channel:04}{}", target.id, self.ending));
        let names = &self.dataset.info.channel_names;
        let only = match &target.from[..] {
            [case] if case.slice_of.is_none() => Some(case),
            _ => None,
        };
        // One file a channel, or a picture of all channels, which nnU-Net reads as such.
        if let Some(case) = only {
            let right = case
                .images
                .iter()
                .all(|p| name_of(p).ends_with(self.ending));
            let split = case.images.len() == names.len() || PICTURES.contains(&self.ending);
            if right && split {
                let mut made = 0;
                for (channel, path) in case.images.iter().enumerate() {
                    made += usize::from(link(path, &file(channel))?);
                }
                return Ok(made);
            }
        }
        let picture = self.ending == PICTURE;
        let files: Vec<PathBuf> = match picture {
            true => vec![file(0)],
            false => (0..names.len()).map(file).collect(),
        };
        let sources: Vec<&Path> = target
            .from
            .iter()
            .flat_map(|c| c.images.iter().map(PathBuf::as_path))
            .collect();
        if files.iter().all(|f| is_newer(f, &sources)) {
            return Ok(0);
        }
        let image = self.whole_image(target)?;
        if picture {
            write_picture(&files[0], &image)?;
            return Ok(1);
        }
        for (channel, path) in files.iter().enumerate() {
            let data = image.data.index_axis(Axis(0), channel).insert_axis(Axis(0));
            let one = Image {
                data: data.to_owned(),
                geometry: image.geometry.clone(),
            };
            write_image(path, &one)?;
        }
        Ok(files.len())
    }

    fn label(&self, target: &Target, path: &Path) -> Result<usize> {
        if let [case] = &target.from[..] {
            let own = !case.images.contains(&case.label) && case.slice_of.is_none();
            let right = name_of(&case.label).ends_with(self.ending);
            if own && right && self.dataset.stored.is_identity() {
                if !case.label.exists() {
                    return Err(missing(case));
                }
                return link(&case.label, path).map(usize::from);
            }
        }
        let sources: Vec<&Path> = target.from.iter().map(|c| c.label.as_path()).collect();
        if !self.relabel && is_newer(path, &sources) {
            return Ok(0);
        }
        let labels = self.whole_label(target)?;
        write_labels(path, &labels)?;
        Ok(1)
    }

    fn whole_image(&self, target: &Target) -> Result<Image> {
        let read = |case: &Case| self.dataset.load_image(&case.id, target.split);
        let parts = target.from.iter().map(read).collect::<Result<Vec<_>>>()?;
        let stacked = target.from.iter().any(|c| c.slice_of.is_some());
        if !stacked {
            return parts.into_iter().next().ok_or_else(|| empty(target));
        }
        let arrays: Vec<ArrayD<f32>> = parts.into_iter().map(|p| p.data).collect();
        let data = stacked_slices(target, &arrays, 1)?;
        Ok(Image {
            geometry: Geometry::unit(3),
            data,
        })
    }

    fn whole_label(&self, target: &Target) -> Result<LabelMap> {
        let read = |case: &Case| self.dataset.load_label(&case.id, target.split);
        let parts = target.from.iter().map(read).collect::<Result<Vec<_>>>()?;
        let stacked = target.from.iter().any(|c| c.slice_of.is_some());
        if !stacked {
            return parts.into_iter().next().ok_or_else(|| empty(target));
        }
        let arrays: Vec<ArrayD<i16>> = parts.into_iter().map(|p| p.data).collect();
        let data = stacked_slices(target, &arrays, 0)?;
        Ok(LabelMap {
            geometry: Geometry::unit(3),
            data,
        })
    }
}

fn missing(case: &Case) -> DataError {
    DataError::Missing {
        what: "label map",
        path: case.label.clone(),
        remedy: "add it or take the case away; `vision-mamba datasets verify` lists all that lacks"
            .into(),
    }
}

fn empty(target: &Target) -> DataError {
    DataError::Case {
        case: target.id.clone(),
        problem: "it has no image".into(),
    }
}

fn stacked_slices<T: Clone>(
    target: &Target,
    slices: &[ArrayD<T>],
    axis: usize,
) -> Result<ArrayD<T>> {
    let views: Vec<_> = slices.iter().map(|s| s.view()).collect();
    stack(Axis(axis), &views).map_err(|_| {
        let sizes: BTreeSet<&[usize]> = slices.iter().map(ArrayD::shape).collect();
        DataError::Case {
            case: target.id.clone(),
            problem: format!("its slices cannot be stacked: they are of the sizes {sizes:?}"),
        }
    })
}

/// Whether a file is there and not older than any it is made from.
fn is_newer(path: &Path, sources: &[&Path]) -> bool {
    let changed = |p: &Path| -> Option<SystemTime> { std::fs::metadata(p).ok()?.modified().ok() };
    let Some(made) = changed(path) else {
        return false;
    };
    sources
        .iter()
        .all(|s| changed(s).is_some_and(|t| t <= made))
}

/// Makes `path` another name of `source`, by a hard link where both lie on one disk, otherwise by a symbolic link; tells whether it had to.
fn link(source: &Path, path: &Path) -> Result<bool> {
    let same = |a: &Path, b: &Path| -> bool {
        let (a, b) = (std::fs::canonicalize(a), std::fs::canonicalize(b));
        matches!((a, b), (Ok(a), Ok(b)) if a == b || same_file(&a, &b))
    };
    let source = std::fs::canonicalize(source).map_err(|e| DataError::reading(source, e))?;
    if path.symlink_metadata().is_ok() {
        if same(&source, path) {
            return Ok(false);
        }
        std::fs::remove_file(path).map_err(|e| DataError::writing(path, e))?;
    }
    std::fs::hard_link(&source, path)
        .or_else(|_| symbolic(&source, path))
        .map_err(|e| DataError::writing(path, e))?;
    Ok(true)
}

#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let about = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    about(a).is_some() && about(a) == about(b)
}

#[cfg(unix)]
fn symbolic(source: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(source, path)
}

#[cfg(not(unix))]
fn same_file(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(not(unix))]
fn symbolic(source: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::copy(source, path).map(|_| ())
}
