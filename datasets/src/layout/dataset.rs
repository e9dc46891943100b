//! A data set of any convention: the files of each case, and what is known about all of them.

use std::path::{Path, PathBuf};

use super::description::DatasetJson;
use super::input::{load_channels, read_channels, InputCase};
use super::masks::StoredLabels;
use super::problem::Problem;
use super::Survey;
use crate::io::spatial_size;
use crate::{DataError, Fold, Image, LabelMap, Result};

/// Which part of a data set a case belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Cases to train and validate on.
    Training,
    /// Cases held back.
    Test,
}

/// The files of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its name, unique in its part of the data set.
    pub id: String,
    /// The image files, by channel; one file may hold several channels.
    pub images: Vec<PathBuf>,
    /// Where its label map lies or would lie. Files of several arrays hold image and label map in one.
    pub label: PathBuf,
    /// What it shares with cases that must not be told apart in cross-validation: the patient. Otherwise its name.
    pub group: String,
    /// The volume it is a slice of, and the slice's number.
    pub slice_of: Option<(String, usize)>,
}

impl Case {
    /// A case of its own.
    pub fn new(id: impl Into<String>, images: Vec<PathBuf>, label: PathBuf) -> Self {
        let id = id.into();
        Self {
            group: id.clone(),
            id,
            images,
            label,
            slice_of: None,
        }
    }
}

/// A data set whose files are known and whose description is valid. Images are read when asked for.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The data set's folder.
    pub root: PathBuf,
    /// The folder convention.
    pub layout: &'static str,
    /// Channels and labels, as `dataset.json` says them or as they follow from the convention.
    pub info: DatasetJson,
    /// What was decided in opening it that a person should know.
    pub notes: Vec<String>,
    /// Sorted by name.
    pub(crate) training: Vec<Case>,
    /// Sorted by name.
    pub(crate) test: Vec<Case>,
    /// The published split into training and validation.
    pub(crate) official: Option<Fold>,
    /// How label maps are stored.
    pub(crate) stored: StoredLabels,
    /// The training cases whose sizes and intensities decide the plan, where they are not all: the slices of a set that validates on volumes.
    pub(crate) planned: Option<Vec<String>>,
    /// A list names the files, so their names mean nothing.
    pub(crate) listed: bool,
    /// Slices train, volumes validate and test, and published lists name some volumes for both: none of that is a mistake.
    pub(crate) of_slices: bool,
}

impl Dataset {
    /// Opens a data set that has at least one training case, of any of the known conventions.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::open_with_problems(root)?.0)
    }

    /// The same with what is amiss with its names and lists and lames single cases; their files are not read.
    pub fn open_with_problems(root: impl AsRef<Path>) -> Result<(Self, Vec<Problem>)> {
        let Survey {
            dataset,
            fatal,
            problems,
        } = super::survey(root.as_ref())?;
        // One at a time is mended best; `verify` lists all.
        match fatal.into_iter().next() {
            Some(error) => Err(error),
            None => Ok((dataset, problems)),
        }
    }

    /// A data set without cases yet.
    pub(super) fn new(root: &Path, info: DatasetJson) -> Self {
        Self {
            root: root.into(),
            layout: "",
            info,
            notes: Vec::new(),
            training: Vec::new(),
            test: Vec::new(),
            official: None,
            stored: StoredLabels::AsWritten,
            planned: None,
            listed: false,
            of_slices: false,
        }
    }

    /// Names of the training cases, sorted; validation cases are among them.
    pub fn training_ids(&self) -> Vec<String> {
        self.ids(Split::Training)
    }

    /// Names of the test cases, sorted; empty when there are none.
    pub fn test_ids(&self) -> Vec<String> {
        self.ids(Split::Test)
    }

    /// Names of the cases of a part, sorted.
    pub fn ids(&self, split: Split) -> Vec<String> {
        self.cases(split).iter().map(|c| c.id.clone()).collect()
    }

    /// Names of the training cases whose sizes and intensities decide the plan, sorted.
    pub fn planned_ids(&self) -> Vec<String> {
        self.planned.clone().unwrap_or_else(|| self.training_ids())
    }

    /// The cases of a part, sorted by name.
    pub fn cases(&self, split: Split) -> &[Case] {
        match split {
            Split::Training => &self.training,
            Split::Test => &self.test,
        }
    }

    /// The published split into training and validation cases, where the data set has one.
    pub fn official_split(&self) -> Option<&Fold> {
        self.official.as_ref()
    }

    /// What in the reading of label maps is not said by their files, for telling whether prepared cases are up to date; empty in most data
    /// sets.
    pub(crate) fn label_reading(&self) -> String {
        self.stored.describe()
    }

    fn case(&self, id: &str, split: Split) -> Result<&Case> {
        let cases = self.cases(split);
        cases
            .binary_search_by(|c| c.id.as_str().cmp(id))
            .map(|i| &cases[i])
            .map_err(|_| DataError::Case {
                case: id.into(),
                problem: format!(
                    "{} has no {} case of this name; check the case's name",
                    self.root.display(),
                    match split {
                        Split::Training => "training",
                        Split::Test => "test",
                    }
                ),
            })
    }

    /// The image files of a case, by channel.
    pub fn image_paths(&self, id: &str, split: Split) -> Result<Vec<PathBuf>> {
        self.case(id, split).map(|c| c.images.clone())
    }

    /// Where the label map of a case lies, whether it exists or not.
    pub fn label_path(&self, id: &str, split: Split) -> Result<PathBuf> {
        self.case(id, split).map(|c| c.label.clone())
    }

    /// Reads an image: all channels there, on one grid, and finite.
    pub fn load_image(&self, id: &str, split: Split) -> Result<Image> {
        let case = self.case(id, split)?.input();
        match self.listed {
            true => read_channels(&case, &self.info.channel_names),
            false => load_channels(&case, &self.info.channel_names),
        }
    }

    /// Reads a label map: on the image's grid, and with no value that the data set does not name.
    pub fn load_label(&self, id: &str, split: Split) -> Result<LabelMap> {
        let case = self.case(id, split)?;
        let image = case.images.first().ok_or_else(|| DataError::Case {
            case: id.into(),
            problem: format!(
                "its image file is missing; add {id}_0000{} or remove the other channels",
                self.info.file_ending
            ),
        })?;
        let path = &case.label;
        let labels = self.stored.read(path)?;
        check_label_values(path, &labels, &self.info.label_values())?;
        let expected = spatial_size(image)?;
        if labels.data.shape() != expected {
            return Err(DataError::SizesDiffer {
                path: path.clone(),
                found: labels.data.shape().to_vec(),
                other: image.clone(),
                expected,
            });
        }
        Ok(labels)
    }

    /// Reads a case with its label map.
    pub fn load_case(&self, id: &str, split: Split) -> Result<(Image, LabelMap)> {
        Ok((self.load_image(id, split)?, self.load_label(id, split)?))
    }
}

impl Case {
    /// What [`load_channels`] reads.
    pub fn input(&self) -> InputCase {
        InputCase {
            id: self.id.clone(),
            paths: self.images.clone(),
        }
    }
}

/// Fails on the first value of a label map that is not allowed.
pub fn check_label_values(path: &Path, labels: &LabelMap, allowed: &[i16]) -> Result<()> {
    // neighbours are alike: most voxels need no more than a look at the one before
    let mut last = allowed.first().copied();
    let unknown = |v: &&i16| match Some(**v) == last {
        true => false,
        false => {
            last = Some(**v);
            !allowed.contains(v)
        }
    };
    let found = match labels.data.as_slice() {
        Some(values) => values.iter().find(unknown),
        None => labels.data.iter().find(unknown),
    };
    match found {
        None => Ok(()),
        Some(&value) => Err(DataError::UnknownLabel {
            path: path.into(),
            value,
            count: labels.data.iter().filter(|&&v| v == value).count(),
            allowed: allowed.to_vec(),
        }),
    }
}
