//! Data sets of slices to train on and volumes to validate and test on, named in lists. Each file holds image and label map.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::dataset::{Case, Dataset};
use super::description::DatasetJson;
use super::files::{below, entries, images, name_of, read_list};
use super::problem::{Kind, Problem};
use super::Survey;
use crate::{DataError, Fold, Result};

/// Where files of a kind may lie.
pub(super) struct Place {
    pub folder: &'static str,
    pub ending: &'static str,
}

/// What tells one such data set from another. Of alternatives the first that exists counts.
pub(super) struct Convention {
    pub name: &'static str,
    pub holds: &'static str,
    /// Any of these makes a folder one of this convention.
    pub signs: &'static [&'static str],
    /// The data set's name.
    pub title: &'static str,
    pub channel: &'static str,
    /// Names of the labels from 1.
    pub classes: &'static [&'static str],
    pub train_lists: &'static [&'static str],
    pub validation_lists: &'static [&'static str],
    pub test_lists: &'static [&'static str],
    pub slices: &'static [Place],
    pub volumes: &'static [Place],
    /// Stands between a volume's name and a slice's number.
    pub slice_mark: &'static str,
    /// Stands after a patient's name in a volume's.
    pub volume_mark: Option<&'static str>,
}

impl Convention {
    pub(super) fn recognises(&self, root: &Path) -> bool {
        self.signs.iter().any(|sign| below(root, sign).exists())
    }

    pub(super) fn survey(&self, root: &Path) -> Result<Survey> {
        let mut survey = Survey {
            dataset: Dataset::new(root, self.info()),
            fatal: Vec::new(),
            problems: Vec::new(),
        };
        let (train_list, slices) = self.slices(root, &mut survey)?;
        let validation = self.listed(root, self.validation_lists, &mut survey)?;
        let test = self.listed(root, self.test_lists, &mut survey)?;
        let validation = self.volumes(root, validation);
        let mut test = self.volumes(root, test);
        if test.is_empty() {
            test = self.unlisted_volumes(root, &validation, &slices)?;
        }
        if slices.is_empty() {
            let folders: Vec<_> = self.slices.iter().map(|p| p.folder).collect();
            survey.fatal.push(DataError::Missing {
                what: "list of training slices",
                path: root.join(self.train_lists[0]),
                remedy: format!(
                    "it names the files of {}, one a line without ending",
                    folders.join(" or ")
                ),
            });
        }
        let ids = |cases: &[Case]| -> Vec<String> { cases.iter().map(|c| c.id.clone()).collect() };
        let dataset = &mut survey.dataset;
        if let Some(slice) = slices.first().and_then(|c| c.images.first()) {
            let ending = images(vec![slice.clone()]).0;
            dataset.info.file_ending = ending.first().map_or("", |f| f.ending).into();
        }
        if !validation.is_empty() {
            dataset.planned = Some(ids(&slices));
            dataset.official = Some(Fold {
                train: ids(&slices),
                validation: ids(&validation),
            });
        } else {
            dataset.notes.push(format!(
                "{} names no validation cases: folds are made of whole volumes, so that slices of one are never on both sides",
                train_list.map_or_else(|| self.title.to_owned(), |l| l.display().to_string())
            ));
        }
        dataset.notes.push(format!(
            "the files of {} have no spacing: voxels count as 1 x 1 x 1, and distances are in voxels",
            self.title
        ));
        dataset.training = slices;
        dataset.training.extend(validation);
        dataset.test = test;
        dataset.of_slices = true;
        for cases in [&mut dataset.training, &mut dataset.test] {
            cases.sort_by(|a, b| a.id.cmp(&b.id));
        }
        dataset.info.num_training = dataset.training.len();
        Ok(survey)
    }

    fn info(&self) -> DatasetJson {
        let classes = ["background"].iter().chain(self.classes).zip(0..);
        DatasetJson {
            name: self.title.into(),
            channel_names: vec![self.channel.into()],
            labels: classes.map(|(n, v)| ((*n).to_owned(), v)).collect(),
            regions: Vec::new(),
            regions_class_order: Vec::new(),
            ignore_label: None,
            file_ending: self.slices[0].ending.into(),
            num_training: 0,
        }
    }

    /// The names in the first of these lists that exists; a name twice is a problem.
    fn listed(&self, root: &Path, lists: &[&str], survey: &mut Survey) -> Result<Vec<String>> {
        match lists.iter().map(|l| below(root, l)).find(|l| l.is_file()) {
            None => Ok(Vec::new()),
            Some(list) => once(&list, read_list(&list)?, survey),
        }
    }

    /// The training slices and the list that names them; without a list all there are.
    fn slices(&self, root: &Path, survey: &mut Survey) -> Result<(Option<PathBuf>, Vec<Case>)> {
        let list = self.train_lists.iter().map(|l| below(root, l));
        let list = list.into_iter().find(|l| l.is_file());
        let names = match &list {
            Some(list) => once(list, read_list(list)?, survey)?,
            None => {
                let place = |p: &Place| (below(root, p.folder), p.ending);
                let mut places = self.slices.iter().map(place);
                match places.find(|(folder, _)| folder.is_dir()) {
                    Some((folder, ending)) => with_ending(&folder, ending)?,
                    None => Vec::new(),
                }
            }
        };
        let case = |name: &String| {
            let file = find(root, self.slices, name);
            let cut = name.rsplit_once(self.slice_mark);
            let volume = cut.map_or(name.as_str(), |c| c.0);
            let number = cut.and_then(|c| c.1.parse().ok());
            Case {
                group: self.patient(volume),
                slice_of: number.map(|n| (volume.to_owned(), n)),
                ..Case::new(name, vec![file.clone()], file)
            }
        };
        let cases = names.iter().map(case).collect();
        Ok((list, cases))
    }

    fn volumes(&self, root: &Path, names: Vec<String>) -> Vec<Case> {
        let case = |name: String| {
            let file = find(root, self.volumes, &name);
            Case {
                group: self.patient(&name),
                ..Case::new(name, vec![file.clone()], file)
            }
        };
        names.into_iter().map(case).collect()
    }

    /// The volumes of a set without a list of test cases that are neither validated nor trained on.
    fn unlisted_volumes(
        &self,
        root: &Path,
        validation: &[Case],
        slices: &[Case],
    ) -> Result<Vec<Case>> {
        let place = |p: &Place| (below(root, p.folder), p.ending);
        let mut places = self.volumes.iter().map(place);
        let Some((folder, ending)) = places.find(|(folder, _)| folder.is_dir()) else {
            return Ok(Vec::new());
        };
        let trained: BTreeSet<&str> = slices
            .iter()
            .filter_map(|c| Some(c.slice_of.as_ref()?.0.as_str()))
            .chain(validation.iter().map(|c| c.id.as_str()))
            .collect();
        let mut names = with_ending(&folder, ending)?;
        names.retain(|name| !trained.contains(name.as_str()));
        Ok(self.volumes(root, names))
    }

    fn patient(&self, volume: &str) -> String {
        let cut = self.volume_mark.and_then(|mark| volume.split_once(mark));
        cut.map_or(volume, |c| c.0).to_owned()
    }
}

/// Names without the endings that some lists give them, each once.
fn once(list: &Path, names: Vec<String>, survey: &mut Survey) -> Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    for name in names {
        let stem = [".npy.h5", ".npz", ".h5"]
            .iter()
            .find_map(|e| name.strip_suffix(e));
        let name = stem.unwrap_or(&name).to_owned();
        // A list comes from elsewhere: it names files of this folder only.
        if name.contains(['/', '\\']) || name.contains("..") {
            let problem = format!("`{name}` is no name of a file");
            return Err(DataError::json(list, "(whole file)", problem));
        }
        if !seen.insert(name.clone()) {
            let problem = format!("it names `{name}` twice");
            survey.problems.push(
                Problem::warning(Kind::DuplicateCase, problem, "remove one of the lines")
                    .at(list)
                    .of(&name),
            );
        }
    }
    Ok(seen.into_iter().collect())
}

/// Names of a folder's files of an ending.
fn with_ending(folder: &Path, ending: &str) -> Result<Vec<String>> {
    let (_, files) = entries(folder)?;
    let names = files.iter().map(|f| name_of(f));
    Ok(names
        .filter_map(|n| n.strip_suffix(ending).map(str::to_owned))
        .collect())
}

/// The file of a name, or where it would first be looked for.
fn find(root: &Path, places: &[Place], name: &str) -> PathBuf {
    let file = |p: &Place| below(root, p.folder).join(format!("{name}{}", p.ending));
    let mut files = places.iter().map(file);
    files
        .clone()
        .find(|f| f.is_file())
        .or_else(|| files.next())
        .unwrap_or_default()
}
