//! nnU-Net v2's raw layout: `dataset.json`, `imagesTr/CASE_0000.ext`, `labelsTr/CASE.ext`, and the test cases in `imagesTs`, `labelsTs`.

use std::path::{Path, PathBuf};

pub use super::description::DatasetJson;
use super::input::{group, load_channels, InputCase};
use crate::io::{read_labels, spatial_size};
use crate::{DataError, Image, LabelMap, Result};

/// Which part of a data set a case belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// `imagesTr`, `labelsTr`.
    Training,
    /// `imagesTs`, and `labelsTs` where the data set has it.
    Test,
}

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

/// A data set whose files are known and whose `dataset.json` is valid. Images are read when asked for.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The folder with `dataset.json`.
    pub root: PathBuf,
    /// What `dataset.json` says.
    pub info: DatasetJson,
    training: Vec<InputCase>,
    test: Vec<InputCase>,
}

impl Dataset {
    /// Opens a data set that has at least one training case.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let missing = |path: &Path, remedy: &str| DataError::Missing {
            what: "folder",
            path: path.into(),
            remedy: remedy.into(),
        };
        match std::fs::metadata(root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(missing(root, "give the folder that holds dataset.json"))
            }
            Err(e) => return Err(DataError::listing(root, e)),
            Ok(about) if !about.is_dir() => {
                let error = std::io::Error::from(std::io::ErrorKind::NotADirectory);
                return Err(DataError::listing(root, error));
            }
            Ok(_) => {}
        }
        let info = DatasetJson::read(&root.join("dataset.json"))?;
        let cases = |split: Split| -> Result<Option<Vec<InputCase>>> {
            let folder = root.join(split.images());
            if !folder.exists() {
                return Ok(None);
            }
            group(&folder, &info.file_ending, info.channel_names.len(), false).map(Some)
        };
        let folder = root.join(Split::Training.images());
        let training = cases(Split::Training)?
            .ok_or_else(|| missing(&folder, "it holds the training images CASE_0000.ext"))?;
        if training.is_empty() {
            return Err(DataError::Empty {
                folder,
                file_ending: info.file_ending,
            });
        }
        let test = cases(Split::Test)?.unwrap_or_default();
        Ok(Self {
            root: root.into(),
            info,
            training,
            test,
        })
    }

    /// Names of the training cases, sorted.
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

    fn cases(&self, split: Split) -> &[InputCase] {
        match split {
            Split::Training => &self.training,
            Split::Test => &self.test,
        }
    }

    fn case(&self, id: &str, split: Split) -> Result<&InputCase> {
        let cases = self.cases(split);
        cases
            .binary_search_by(|c| c.id.as_str().cmp(id))
            .map(|i| &cases[i])
            .map_err(|_| DataError::Missing {
                what: "image of case",
                path: self
                    .root
                    .join(split.images())
                    .join(format!("{id}_0000{}", self.info.file_ending)),
                remedy: "check the case's name".into(),
            })
    }

    /// The image files of a case, by channel.
    pub fn image_paths(&self, id: &str, split: Split) -> Result<Vec<PathBuf>> {
        self.case(id, split).map(|c| c.paths.clone())
    }

    /// Where the label map of a case lies, whether it exists or not.
    pub fn label_path(&self, id: &str, split: Split) -> PathBuf {
        self.root
            .join(split.labels())
            .join(format!("{id}{}", self.info.file_ending))
    }

    /// Reads an image: all channels there, on one grid, and finite.
    pub fn load_image(&self, id: &str, split: Split) -> Result<Image> {
        load_channels(self.case(id, split)?, &self.info.channel_names)
    }

    /// Reads a label map: on the image's grid, and with no value that `dataset.json` does not name.
    pub fn load_label(&self, id: &str, split: Split) -> Result<LabelMap> {
        let case = self.case(id, split)?;
        let image = case.paths.first().ok_or_else(|| DataError::Case {
            case: id.into(),
            problem: format!(
                "its image file is missing; add {id}_0000{} or remove the other channels",
                self.info.file_ending
            ),
        })?;
        let path = self.label_path(id, split);
        let labels = read_labels(&path)?;
        check_label_values(&path, &labels, &self.info.label_values())?;
        let expected = spatial_size(image)?;
        if labels.data.shape() != expected {
            return Err(DataError::SizesDiffer {
                path,
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

/// Fails on the first value of a label map that is not allowed.
pub fn check_label_values(path: &Path, labels: &LabelMap, allowed: &[i16]) -> Result<()> {
    match labels.data.iter().find(|v| !allowed.contains(v)) {
        None => Ok(()),
        Some(&value) => Err(DataError::UnknownLabel {
            path: path.into(),
            value,
            count: labels.data.iter().filter(|&&v| v == value).count(),
            allowed: allowed.to_vec(),
        }),
    }
}
