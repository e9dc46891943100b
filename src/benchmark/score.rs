//! The numbers of one case under a protocol of the catalogue.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vision_mamba_datasets::catalog::{Entry, Protocol, Score};
use vision_mamba_datasets::{read_labels, LabelMap};

use crate::cli::args::ProtocolChoice;
use crate::commands::evaluate::ClassScoring;
use crate::commands::evaluate_protocol::{of_labels, of_objects};
use crate::metrics::protocol::Convention;
use crate::metrics::summary::{voxel_ml, Numbers};

/// Of one class in one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassRow {
    /// The class.
    pub class: String,
    /// Size in the reference: ml of a volume, pixels of a picture.
    pub size: Option<f64>,
    /// By the names of the protocol's columns; what does not exist is null.
    pub numbers: BTreeMap<String, Option<f64>>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseRow {
    /// Its name.
    pub case: String,
    /// Its classes, in the order of the data set.
    pub classes: Vec<ClassRow>,
}

/// The class of scripts that tell none apart.
const ALL: &str = "all";
/// Overlap from which objects match in U-Mamba's cell script.
const CELL_IOU: f64 = 0.5;

/// How to score, read from the catalogue once.
pub enum Scoring {
    /// Each class by itself.
    Classes {
        /// Their names.
        names: Vec<String>,
        /// How.
        how: ClassScoring,
        /// The columns.
        columns: Vec<String>,
    },
    /// As a script does.
    Script {
        /// Which.
        script: ProtocolChoice,
        /// Names of labels, for scripts that number them.
        labels: BTreeMap<i16, String>,
        /// The columns.
        columns: Vec<String>,
    },
}

impl Scoring {
    /// What a protocol asks for.
    pub fn of(entry: &Entry, protocol: &Protocol, ignored: Option<i16>) -> Result<Self> {
        let columns = protocol.columns.clone();
        match &protocol.score {
            Score::Pictures { .. } => bail!("{} is scored on pictures", entry.title),
            Score::Script { script } => {
                let choice = ProtocolChoice::from_str(script, false);
                let script = choice.map_err(|_| anyhow::anyhow!("no script '{script}'"))?;
                let labels = entry
                    .labels
                    .iter()
                    .map(|l| (l.value, l.name.clone()))
                    .collect();
                Ok(Self::Script {
                    script,
                    labels,
                    columns,
                })
            }
            Score::Classes {
                convention,
                voxels,
                tolerance,
                classes,
            } => {
                let convention = Convention::from_str(convention, false)
                    .map_err(|_| anyhow::anyhow!("no convention '{convention}'"))?;
                let all: Vec<(String, Vec<i16>)> = match entry.regions.is_empty() {
                    true => entry
                        .labels
                        .iter()
                        .skip(1)
                        .map(|l| (l.name.clone(), vec![l.value]))
                        .collect(),
                    false => entry
                        .regions
                        .iter()
                        .map(|r| (r.name.clone(), r.values.clone()))
                        .collect(),
                };
                let kept = all
                    .into_iter()
                    .filter(|(name, _)| classes.is_empty() || classes.contains(name));
                let (names, values): (Vec<String>, Vec<Vec<i16>>) = kept.unzip();
                let far = ["HD", "HD95", "ASSD", "NSD"];
                let distances = columns.iter().any(|c| far.contains(&c.as_str()));
                let default = tolerance.get("default").copied().unwrap_or(1.0);
                let of_class = |name: &String| tolerance.get(name).copied().unwrap_or(default);
                let tolerances = distances.then(|| names.iter().map(of_class).collect());
                let how = ClassScoring {
                    values,
                    ignored,
                    convention,
                    tolerances,
                    voxels: *voxels,
                };
                Ok(Self::Classes {
                    names,
                    how,
                    columns,
                })
            }
        }
    }

    /// The numbers of a case.
    pub fn case(
        &self,
        id: &str,
        prediction: &Path,
        reference_file: &Path,
        reference: impl FnOnce() -> Result<LabelMap>,
    ) -> Result<CaseRow> {
        let read = || -> Result<(LabelMap, LabelMap)> {
            let (found, expected) = (read_labels(prediction)?, reference()?);
            ensure!(
                found.data.shape() == expected.data.shape(),
                "{} has size {:?}, the reference of {id} {:?}; predict on the image this reference belongs to",
                prediction.display(),
                found.data.shape(),
                expected.data.shape()
            );
            Ok((found, expected))
        };
        let classes = match self {
            Self::Classes {
                names,
                how,
                columns,
            } => {
                let (found, expected) = read()?;
                let ml = voxel_ml(&expected.geometry.spacing);
                let (counts, distances) = how.of(found, expected)?;
                let row = |(i, name): (usize, &String)| {
                    let numbers = Numbers::of(&counts[i], distances.get(i), ml, how.convention);
                    let voxels = (counts[i].tp + counts[i].fn_) as f64;
                    ClassRow {
                        class: name.clone(),
                        size: Some(voxels * ml.unwrap_or(1.0)),
                        numbers: columns
                            .iter()
                            .map(|c| (c.clone(), numbers.get(c)))
                            .collect(),
                    }
                };
                names.iter().enumerate().map(row).collect()
            }
            Self::Script {
                script,
                labels,
                columns,
            } => {
                let cells = matches!(
                    script,
                    ProtocolChoice::UmambaCell | ProtocolChoice::Instances
                );
                let row = match cells {
                    true => of_objects(*script, prediction, reference_file, CELL_IOU, false)?,
                    false => {
                        let (found, expected) = read()?;
                        of_labels(*script, &found, &expected)?
                    }
                };
                by_class(row, labels, columns)
            }
        };
        Ok(CaseRow {
            case: id.into(),
            classes,
        })
    }
}

/// `liver_DSC` and `Dice 3` as the column of a class; U-Mamba's DSC is Dice.
fn by_class(
    row: Vec<(String, Option<f64>)>,
    labels: &BTreeMap<i16, String>,
    columns: &[String],
) -> Vec<ClassRow> {
    let mut classes: Vec<ClassRow> = Vec::new();
    for (name, value) in row {
        let numbered = || {
            let (metric, label) = name.rsplit_once(' ')?;
            let label: i16 = label.parse().ok()?;
            let class = labels.get(&label).cloned();
            Some((
                class.unwrap_or_else(|| format!("label {label}")),
                metric.to_owned(),
            ))
        };
        let organ = || {
            name.rsplit_once('_')
                .map(|(c, m)| (c.to_owned(), m.to_owned()))
        };
        let (class, metric) = numbered()
            .or_else(organ)
            .unwrap_or((ALL.to_owned(), name.clone()));
        let metric = match metric.as_str() {
            "DSC" | "dice" => "Dice".to_owned(),
            "recall" => "sensitivity".to_owned(),
            _ => metric,
        };
        if !columns.contains(&metric) {
            continue;
        }
        let place = classes.iter().position(|c| c.class == class);
        let place = place.unwrap_or_else(|| {
            let numbers = columns.iter().map(|c| (c.clone(), None)).collect();
            classes.push(ClassRow {
                class,
                size: None,
                numbers,
            });
            classes.len() - 1
        });
        classes[place].numbers.insert(metric, value);
    }
    classes
}

/// The name of a file without its ending.
pub fn stem(path: &Path) -> Result<String> {
    let (stem, _) = crate::commands::evaluate::split_ending(path).context("no known ending")?;
    Ok(stem)
}
