//! nnU-Net's `dataset.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::io::{is_known_ending, known_endings};
use crate::preprocess::Decision;
use crate::{DataError, Result};

/// What `dataset.json` says about a data set. It serialises to a `dataset.json` that nnU-Net reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "OnDisk")]
pub struct DatasetJson {
    /// The name, or that of the folder when the file gives none.
    pub name: String,
    /// Name of each channel; it chooses the normalisation.
    pub channel_names: Vec<String>,
    /// Name and value of each class, by value; the first is the background, 0. With regions: those entries that are one class.
    pub labels: Vec<(String, i16)>,
    /// Classes that overlap, in the file's order, background left out: a name and the label values it joins. Empty where classes exclude one
    /// another.
    pub regions: Vec<(String, Vec<i16>)>,
    /// The label painted for each region, later ones over earlier.
    pub regions_class_order: Vec<i16>,
    /// Voxels of this label are not annotated: no loss, no score.
    pub ignore_label: Option<i16>,
    /// Ending of all images and label maps, e.g. `.nii.gz`.
    pub file_ending: String,
    /// Number of training cases the file claims.
    pub num_training: usize,
}

/// The fields that are written. nnU-Net's files carry many more, which are let pass.
#[derive(Serialize)]
struct OnDisk {
    name: Option<String>,
    channel_names: Map<String, Value>,
    labels: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regions_class_order: Option<Vec<i16>>,
    file_ending: String,
    #[serde(rename = "numTraining")]
    num_training: usize,
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
            regions_class_order: (!json.regions.is_empty()).then_some(json.regions_class_order),
            file_ending: json.file_ending,
            num_training: json.num_training,
        }
    }
}

impl DatasetJson {
    /// Reads and checks a `dataset.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let (info, faults) = Self::read_with_faults(path)?;
        match faults.into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(info),
        }
    }

    /// Reads a `dataset.json` as far as it goes, with all that is wrong with its fields. What is wrong is left empty.
    pub(super) fn read_with_faults(path: &Path) -> Result<(Self, Vec<DataError>)> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing {
                what: "file",
                path: path.into(),
                remedy: "a data set in nnU-Net's layout has it beside imagesTr and labelsTr".into(),
            },
            _ => DataError::reading(path, e),
        })?;
        let raw: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| DataError::json(path, "(whole file)", e.to_string()))?;
        let mut faults = Vec::new();
        let folder = path.parent().unwrap_or(Path::new("."));
        let name: Option<String> = faulty(path, &raw, "name", &mut faults);
        let mut draft = Draft::new(folder, name);
        let names = match raw.contains_key(CHANNELS) {
            true => CHANNELS,
            false => "modality",
        };
        if let Some(channels) = required(path, &raw, names, CHANNELS, &mut faults) {
            draft.take(&mut faults, |d| d.set_channels(path, CHANNELS, &channels));
        }
        let order: Option<Vec<i16>> = faulty(path, &raw, "regions_class_order", &mut faults);
        if let Some(labels) = required(path, &raw, LABELS, LABELS, &mut faults) {
            draft.take(&mut faults, |d| {
                d.set_labels(path, &labels, order.as_deref())
            });
        }
        if let Some(ending) = required(path, &raw, ENDING, ENDING, &mut faults) {
            draft.take(&mut faults, |d| {
                d.info.file_ending = file_ending(path, ending)?;
                Ok(())
            });
        }
        let count: Option<usize> = faulty(path, &raw, "numTraining", &mut faults);
        draft.info.num_training = count.unwrap_or(0);
        Ok((draft.finish(), faults))
    }

    /// The classes as `dataset.json` has them, `{"background": 0, ...}`.
    pub fn labels_as_json(&self) -> Map<String, Value> {
        let mut json: Map<String, Value> = self
            .labels
            .iter()
            .filter(|(name, _)| self.regions.iter().all(|r| r.0 != *name))
            .map(|(name, value)| (name.clone(), (*value).into()))
            .collect();
        for (name, values) in &self.regions {
            let value = match values[..] {
                [one] => one.into(),
                _ => values.clone().into(),
            };
            json.insert(name.clone(), value);
        }
        if let Some(value) = self.ignore_label {
            json.insert(IGNORE.into(), value.into());
        }
        json
    }

    /// The values a label map may hold.
    pub fn label_values(&self) -> Vec<i16> {
        let mut values: Vec<i16> = self.labels.iter().map(|l| l.1).collect();
        values.extend(self.regions.iter().flat_map(|r| &r.1));
        values.extend(self.ignore_label);
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Number of entries of `labels` in the file.
    pub fn label_entries(&self) -> usize {
        self.labels_as_json().len()
    }

    /// Channels of a network's output: one a class with the background, or one a region.
    pub fn outputs(&self) -> usize {
        match self.regions.len() {
            0 => self.labels.len(),
            n => n,
        }
    }

    /// Names and label values of what is segmented: the regions, or the classes but for the background.
    pub fn foreground(&self) -> Vec<(String, Vec<i16>)> {
        if !self.regions.is_empty() {
            return self.regions.clone();
        }
        let classes = self.labels.iter().filter(|l| l.1 != 0);
        classes.map(|(n, v)| (n.clone(), vec![*v])).collect()
    }

    /// Label values of annotated voxels, -1 outside the body among them; none where all voxels are.
    pub fn annotated(&self) -> Option<Vec<i16>> {
        let ignore = self.ignore_label?;
        let annotated = self.label_values().into_iter().filter(|v| *v != ignore);
        Some(std::iter::once(-1).chain(annotated).collect())
    }

    /// How a network's scores become labels.
    pub fn decision(&self) -> Decision {
        match self.regions.is_empty() {
            true => Decision::Classes,
            false => Decision::Regions(self.regions_class_order.clone()),
        }
    }
}

/// A description in the making.
pub(super) struct Draft {
    info: DatasetJson,
}

impl Draft {
    /// Of a data set in a folder, which it is called after if it has no name.
    pub(super) fn new(folder: &Path, name: Option<String>) -> Self {
        let folder_name = || {
            let whole = folder.canonicalize().unwrap_or_else(|_| folder.into());
            let name = whole.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        Self {
            info: DatasetJson {
                name: name.unwrap_or_else(folder_name),
                channel_names: Vec::new(),
                labels: Vec::new(),
                regions: Vec::new(),
                regions_class_order: Vec::new(),
                ignore_label: None,
                file_ending: String::new(),
                num_training: 0,
            },
        }
    }

    /// Fills in a part, or notes what is wrong with it.
    pub(super) fn take(
        &mut self,
        faults: &mut Vec<DataError>,
        fill: impl FnOnce(&mut Self) -> Result<()>,
    ) {
        if let Err(error) = fill(self) {
            faults.push(error);
        }
    }

    /// `{"0": "T1", ...}`
    pub(super) fn set_channels(
        &mut self,
        path: &Path,
        field: &str,
        raw: &Map<String, Value>,
    ) -> Result<()> {
        self.info.channel_names = channels(path, field, raw)?;
        Ok(())
    }

    /// `{"background": 0, ...}` with the labels to paint for regions.
    pub(super) fn set_labels(
        &mut self,
        path: &Path,
        raw: &Map<String, Value>,
        order: Option<&[i16]>,
    ) -> Result<()> {
        let entries = entries(path, raw)?;
        let (regions, regions_class_order) = entries.regions(path, order)?;
        let ignore = entries.ignore;
        self.info.labels = entries.classes(path)?;
        self.info.regions = regions;
        self.info.regions_class_order = regions_class_order;
        self.info.ignore_label = ignore;
        Ok(())
    }

    pub(super) fn finish(self) -> DatasetJson {
        self.info
    }
}

/// A field that may be missing; one of another type is a fault.
fn faulty<T: serde::de::DeserializeOwned>(
    path: &Path,
    raw: &Map<String, Value>,
    field: &str,
    faults: &mut Vec<DataError>,
) -> Option<T> {
    let value = raw.get(field).filter(|v| !v.is_null())?;
    match serde_json::from_value(value.clone()) {
        Ok(value) => Some(value),
        Err(error) => {
            faults.push(DataError::json(path, field, error.to_string()));
            None
        }
    }
}

/// A field that must be there, under the name it goes by in this file.
fn required<T: serde::de::DeserializeOwned>(
    path: &Path,
    raw: &Map<String, Value>,
    found: &str,
    field: &str,
    faults: &mut Vec<DataError>,
) -> Option<T> {
    if raw.get(found).is_none_or(Value::is_null) {
        let example = match field {
            LABELS => r#"{"background": 0, "tumour": 1}"#,
            ENDING => r#"".nii.gz""#,
            _ => r#"{"0": "T1"}"#,
        };
        let problem = format!("is missing; add it, for example as {example}");
        faults.push(DataError::json(path, field, problem));
        return None;
    }
    faulty(path, raw, found, faults)
}

/// The names of fields.
pub(super) const CHANNELS: &str = "channel_names";
const ENDING: &str = "file_ending";

/// The entry of `labels` for voxels that are not annotated.
const IGNORE: &str = "ignore";

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

fn channels(path: &Path, field: &str, raw: &Map<String, Value>) -> Result<Vec<String>> {
    let mut by_number = BTreeMap::new();
    for (number, name) in raw {
        let parsed = number.parse::<usize>().ok().zip(name.as_str());
        let Some((number, name)) = parsed else {
            return Err(DataError::json(
                path,
                field,
                format!("\"{number}\": {name} is not of the form \"0\": \"T1\""),
            ));
        };
        by_number.insert(number, name.to_owned());
    }
    if by_number.is_empty() || by_number.keys().copied().ne(0..by_number.len()) {
        let found: Vec<_> = by_number.keys().collect();
        return Err(DataError::json(
            path,
            field,
            format!("the channels are numbered {found:?}, expected \"0\", \"1\", ... without gaps"),
        ));
    }
    Ok(by_number.into_values().collect())
}

/// The entries of `labels`, `ignore` apart.
struct Entries {
    named: Vec<(String, Vec<i16>)>,
    ignore: Option<i16>,
}

const LABELS: &str = "labels";

fn entries(path: &Path, raw: &Map<String, Value>) -> Result<Entries> {
    let number = |value: &Value| match value {
        // Some converters write "1" for 1.
        Value::String(text) => text.parse().ok(),
        other => other.as_i64().and_then(|v| i16::try_from(v).ok()),
    };
    let mut entries = Entries {
        named: Vec::new(),
        ignore: None,
    };
    for (name, value) in raw {
        if matches!(value, Value::String(_)) && name.parse::<i16>().is_ok() {
            let problem = format!(
                "\"{name}\": {value} is nnU-Net v1's form; turn it round to {value}: {name}"
            );
            return Err(DataError::json(path, LABELS, problem));
        }
        let values: Option<Vec<i16>> = match value {
            Value::Array(region) => region.iter().map(number).collect(),
            single => number(single).map(|v| vec![v]),
        };
        let values = values
            .filter(|v| !v.is_empty() && v.iter().all(|v| *v >= 0))
            .ok_or_else(|| {
                let problem =
                    format!("`{name}` has the value {value}, expected a whole number from 0 or, for a region, a list of them");
                DataError::json(path, LABELS, problem)
            })?;
        match (name.as_str(), &values[..]) {
            (IGNORE, [value]) => entries.ignore = Some(*value),
            (IGNORE, _) => {
                return Err(DataError::json(
                    path,
                    LABELS,
                    "`ignore` has several values, expected one",
                ))
            }
            _ => entries.named.push((name.clone(), values)),
        }
    }
    Ok(entries)
}

impl Entries {
    fn has_regions(&self) -> bool {
        self.named.iter().any(|(_, values)| values.len() > 1)
    }

    /// The entries of a single value, by value; without regions they are all there is and leave no gap.
    fn classes(self, path: &Path) -> Result<Vec<(String, i16)>> {
        let regions = self.has_regions();
        let single = self.named.iter().filter(|(_, values)| values.len() == 1);
        let mut labels: Vec<(String, i16)> = single.map(|(n, v)| (n.clone(), v[0])).collect();
        labels.sort_by_key(|l| l.1);
        let mut values: Vec<i16> = self.named.into_iter().flat_map(|n| n.1).collect();
        values.sort_unstable();
        if regions {
            values.dedup();
        }
        if values.len() < 2 || values.iter().copied().ne(0..values.len() as i16) {
            return Err(DataError::json(path, LABELS, format!("the values are {values:?}, expected 0 (background), 1, 2, ... without gaps, at least two")));
        }
        if self.ignore.is_some_and(|v| v as usize != values.len()) {
            let problem = format!(
                "`ignore` is {}, expected the number after the last class, {}",
                self.ignore.unwrap_or_default(),
                values.len()
            );
            return Err(DataError::json(path, LABELS, problem));
        }
        Ok(labels)
    }

    /// The regions and their labels; none if every entry is one class.
    #[allow(clippy::type_complexity)]
    fn regions(
        &self,
        path: &Path,
        order: Option<&[i16]>,
    ) -> Result<(Vec<(String, Vec<i16>)>, Vec<i16>)> {
        if !self.has_regions() {
            return Ok((Vec::new(), Vec::new()));
        }
        let background = |values: &[i16]| values == [0];
        let regions: Vec<_> = self
            .named
            .iter()
            .filter(|(_, values)| !background(values))
            .cloned()
            .collect();
        let problem = match order {
            Some(order) if order.len() == regions.len() => return Ok((regions, order.to_vec())),
            Some(order) => format!("it has {} entries", order.len()),
            None => "it is missing".into(),
        };
        let expected = format!(
            "{problem}; with regions it lists the label to paint for each of the {} ({}), later ones over earlier",
            regions.len(),
            regions.iter().map(|r| r.0.as_str()).collect::<Vec<_>>().join(", ")
        );
        Err(DataError::json(path, "regions_class_order", expected))
    }
}
