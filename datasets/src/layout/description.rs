//! nnU-Net's `dataset.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::io::{is_known_ending, known_endings};
use crate::{DataError, Result};

/// What `dataset.json` says about a data set. It serialises to a `dataset.json` that nnU-Net reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "OnDisk")]
pub struct DatasetJson {
    /// The name, or that of the folder when the file gives none.
    pub name: String,
    /// Name of each channel; it chooses the normalisation.
    pub channel_names: Vec<String>,
    /// Name and value of each class, by value; the first is the background, 0.
    pub labels: Vec<(String, i16)>,
    /// Ending of all images and label maps, e.g. `.nii.gz`.
    pub file_ending: String,
    /// Number of training cases the file claims.
    pub num_training: usize,
}

/// The fields of the file that are used. nnU-Net's files carry many more, which are let pass.
#[derive(Serialize, Deserialize)]
struct OnDisk {
    #[serde(default)]
    name: Option<String>,
    #[serde(alias = "modality")]
    channel_names: Map<String, Value>,
    labels: Map<String, Value>,
    file_ending: String,
    #[serde(rename = "numTraining", default)]
    num_training: usize,
    #[serde(default, skip_serializing)]
    dataset: Option<Value>,
}

impl From<DatasetJson> for OnDisk {
    fn from(json: DatasetJson) -> Self {
        let labels = json.labels_as_json();
        Self {
            name: Some(json.name),
            channel_names: json
                .channel_names
                .into_iter()
                .enumerate()
                .map(|(i, n)| (i.to_string(), n.into()))
                .collect(),
            labels,
            file_ending: json.file_ending,
            num_training: json.num_training,
            dataset: None,
        }
    }
}

impl DatasetJson {
    /// Reads and checks a `dataset.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing {
                what: "file",
                path: path.into(),
                remedy: "a data set in nnU-Net's layout has it beside imagesTr and labelsTr".into(),
            },
            _ => DataError::reading(path, e),
        })?;
        let raw: OnDisk = serde_json::from_str(&text)
            .map_err(|e| DataError::json(path, "(whole file)", e.to_string()))?;
        if raw.dataset.is_some() {
            return Err(DataError::json(path, "dataset", "a list of explicit file names is not supported yet; put the files in imagesTr and labelsTr"));
        }
        let folder_name = || {
            path.parent()
                .and_then(Path::file_name)
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        Ok(Self {
            channel_names: channels(path, &raw.channel_names)?,
            labels: labels(path, &raw.labels)?,
            file_ending: file_ending(path, raw.file_ending)?,
            num_training: raw.num_training,
            name: raw.name.unwrap_or_else(folder_name),
        })
    }

    /// The classes as `dataset.json` has them, `{"background": 0, ...}`.
    pub fn labels_as_json(&self) -> Map<String, Value> {
        self.labels
            .iter()
            .map(|(name, value)| (name.clone(), (*value).into()))
            .collect()
    }

    /// The values a label map may hold.
    pub fn label_values(&self) -> Vec<i16> {
        self.labels.iter().map(|l| l.1).collect()
    }
}

fn file_ending(path: &Path, ending: String) -> Result<String> {
    if is_known_ending(&ending) {
        return Ok(ending);
    }
    Err(DataError::json(
        path,
        "file_ending",
        format!(
            "`{ending}` cannot be read; convert the images to one of {}",
            known_endings()
        ),
    ))
}

fn channels(path: &Path, raw: &Map<String, Value>) -> Result<Vec<String>> {
    const FIELD: &str = "channel_names";
    let mut by_number = BTreeMap::new();
    for (number, name) in raw {
        let parsed = number.parse::<usize>().ok().zip(name.as_str());
        let Some((number, name)) = parsed else {
            return Err(DataError::json(
                path,
                FIELD,
                format!("\"{number}\": {name} is not of the form \"0\": \"T1\""),
            ));
        };
        by_number.insert(number, name.to_owned());
    }
    if by_number.is_empty() || by_number.keys().copied().ne(0..by_number.len()) {
        let found: Vec<_> = by_number.keys().collect();
        return Err(DataError::json(
            path,
            FIELD,
            format!("the channels are numbered {found:?}, expected \"0\", \"1\", ... without gaps"),
        ));
    }
    Ok(by_number.into_values().collect())
}

fn labels(path: &Path, raw: &Map<String, Value>) -> Result<Vec<(String, i16)>> {
    const FIELD: &str = "labels";
    let mut labels = Vec::new();
    for (name, value) in raw {
        if name == "ignore" {
            return Err(DataError::json(
                path,
                FIELD,
                "the `ignore` label is not supported yet; remove it or give those voxels a class",
            ));
        }
        let value = match value {
            Value::Array(_) => {
                let problem = format!("`{name}` is a region ({value}); regions are not supported yet, give each class one number");
                return Err(DataError::json(path, FIELD, problem));
            }
            Value::String(_) if name.parse::<i16>().is_ok() => {
                return Err(DataError::json(
                    path,
                    FIELD,
                    format!(
                    "\"{name}\": {value} is nnU-Net v1's form; turn it round to {value}: {name}"
                ),
                ))
            }
            // Some converters write "1" for 1.
            Value::String(text) => text.parse().ok(),
            other => other.as_i64().and_then(|v| i16::try_from(v).ok()),
        };
        let value = value.ok_or_else(|| {
            DataError::json(
                path,
                FIELD,
                format!(
                    "`{name}` has the value {}, expected a whole number",
                    raw[name]
                ),
            )
        })?;
        labels.push((name.clone(), value));
    }
    labels.sort_by_key(|l| l.1);
    let values: Vec<i16> = labels.iter().map(|l| l.1).collect();
    if values.len() < 2 || values.iter().copied().ne(0..values.len() as i16) {
        return Err(DataError::json(path, FIELD, format!("the values are {values:?}, expected 0 (background), 1, 2, ... without gaps, at least two")));
    }
    Ok(labels)
}
