//! The decisions about a data set, as a file (`plans.json`) that a person can read and edit.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::io::atomically;
use crate::layout::nnunet::Split;
use crate::{DataError, Dataset, Image, LabelMap, Result};

/// Longest side of a patch by number of dimensions: what a CPU or a small GPU trains on. Planning to a memory size widens this.
const LARGEST_PATCH: [(usize, usize); 2] = [(2, 512), (3, 128)];
/// A batch has about this many voxels, between 2 and 12 samples.
const BATCH_VOXELS: usize = 512 * 512;

/// What `plans.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the data set.
    pub dataset_name: String,
    /// Ending of its images.
    pub file_ending: String,
    /// Name of each channel.
    pub channel_names: Vec<String>,
    /// Name and value of each class, by value.
    pub labels: Vec<(String, i16)>,
    /// Ways to train: `2d`, and for volumes `3d_fullres`.
    pub configurations: BTreeMap<String, Configuration>,
    /// What a person should know about the data set.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One way to train on a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// 2 or 3. With 2, volumes are trained and predicted slice by slice along axis 0.
    pub spatial_dims: usize,
    /// Size of a patch before it is fitted to a network, see [`Configuration::training_patch_for`].
    pub training_patch: Vec<usize>,
    /// Patches in a batch.
    pub batch_size: usize,
    /// How each channel is normalised.
    pub normalisation: Vec<Normalisation>,
    /// Median spacing of the training cases, one per spatial axis of the configuration. Images are used on their own grid.
    pub spacing: Vec<f64>,
    /// Foreground intensities of each channel.
    pub intensity: Vec<Intensity>,
}

impl Configuration {
    /// The patch rounded up to multiples of what a network needs. One divisor serves all axes.
    pub fn training_patch_for(&self, divisor: &[usize]) -> Vec<usize> {
        let divisor_of = |axis: usize| {
            divisor
                .get(axis)
                .or(divisor.last())
                .copied()
                .unwrap_or(1)
                .max(1)
        };
        self.training_patch
            .iter()
            .enumerate()
            .map(|(axis, size)| size.next_multiple_of(divisor_of(axis)))
            .collect()
    }
}

/// How a channel's values are brought to a common range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// Subtract the image's mean, divide by its standard deviation.
    ZScore,
    /// Clip to the data set's percentiles, then its mean and standard deviation: for absolute units.
    Ct,
    /// The image's minimum becomes 0, its maximum 1.
    RescaleTo01,
    /// Divide by 255.
    RgbTo01,
    /// As it is.
    None,
}

impl Normalisation {
    /// nnU-Net's rule: a few names have a meaning, all others get the z-score.
    pub fn for_channel(name: &str) -> Self {
        match name.to_lowercase().as_str() {
            "ct" => Self::Ct,
            "nonorm" => Self::None,
            "rescale_to_0_1" => Self::RescaleTo01,
            "rgb_to_0_1" => Self::RgbTo01,
            _ => Self::ZScore,
        }
    }
}

/// Intensities of a channel where the label is not background, each training case counting equally.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intensity {
    /// Mean.
    pub mean: f64,
    /// Population standard deviation.
    pub std: f64,
    /// Half a percent lies below.
    pub percentile_00_5: f64,
    /// Half lies below.
    pub median: f64,
    /// Half a percent lies above.
    pub percentile_99_5: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Plan {
    /// Reads every training case, checking it on the way, and decides. `progress` hears of cases done and their total.
    pub fn make(dataset: &Dataset, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let ids = dataset.training_ids();
        let mut survey = Survey::new(dataset.info.channel_names.len());
        for (done, id) in ids.iter().enumerate() {
            progress(done, ids.len());
            let (image, label) = dataset.load_case(id, Split::Training)?;
            survey.add(id, &image, &label)?;
        }
        progress(ids.len(), ids.len());

        let info = &dataset.info;
        let mut notes = survey.notes();
        if info.num_training != ids.len() {
            notes.push(format!("dataset.json says numTraining {}, but imagesTr holds {} cases; all of them are used", info.num_training, ids.len()));
        }
        let size = survey.median_size();
        let spacing: Vec<f64> = (0..size.len())
            .map(|axis| median(survey.spacings.iter().map(|s| s[axis]).collect()))
            .collect();
        let normalisation: Vec<_> = info
            .channel_names
            .iter()
            .map(|n| Normalisation::for_channel(n))
            .collect();
        let intensity = survey.intensities(&normalisation)?;
        let configuration = |dims: usize| {
            let skipped = size.len() - dims;
            let largest = LARGEST_PATCH
                .iter()
                .find(|l| l.0 == dims)
                .map_or(usize::MAX, |l| l.1);
            let training_patch: Vec<usize> =
                size[skipped..].iter().map(|&s| s.min(largest)).collect();
            let voxels: usize = training_patch.iter().product();
            Configuration {
                spatial_dims: dims,
                batch_size: (BATCH_VOXELS / voxels.max(1)).clamp(2, 12),
                training_patch,
                normalisation: normalisation.clone(),
                spacing: spacing[skipped..].to_vec(),
                intensity: intensity.clone(),
            }
        };
        let mut configurations = BTreeMap::from([("2d".to_owned(), configuration(2))]);
        // A volume of one slice is a picture.
        if size.len() == 3 && size[0] > 1 {
            configurations.insert("3d_fullres".into(), configuration(3));
        }
        Ok(Self {
            dataset_name: info.name.clone(),
            file_ending: info.file_ending.clone(),
            channel_names: info.channel_names.clone(),
            labels: info.labels.clone(),
            configurations,
            notes,
        })
    }

    /// Reads a `plans.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| DataError::reading(path, e))?;
        let plan: Self = serde_json::from_str(&text)
            .map_err(|e| DataError::json(path, "(whole file)", e.to_string()))?;
        for (name, configuration) in &plan.configurations {
            plan.check(configuration).map_err(|(field, problem)| {
                DataError::json(path, &format!("configurations.{name}.{field}"), problem)
            })?;
        }
        Ok(plan)
    }

    fn check(
        &self,
        configuration: &Configuration,
    ) -> std::result::Result<(), (&'static str, String)> {
        let (dims, channels) = (configuration.spatial_dims, self.channel_names.len());
        let want =
            |ok: bool, field, problem: String| if ok { Ok(()) } else { Err((field, problem)) };
        want(
            (2..=3).contains(&dims),
            "spatial_dims",
            format!("{dims} is neither 2 nor 3"),
        )?;
        let patch = &configuration.training_patch;
        want(
            patch.len() == dims && patch.iter().all(|&s| s > 0),
            "training_patch",
            format!("{patch:?} does not have {dims} sizes above 0"),
        )?;
        want(
            configuration.batch_size > 0,
            "batch_size",
            "0 is too small, the least is 1".into(),
        )?;
        want(
            configuration.spacing.len() == dims,
            "spacing",
            format!("{:?} does not have {dims} entries", configuration.spacing),
        )?;
        let (n, i) = (
            configuration.normalisation.len(),
            configuration.intensity.len(),
        );
        want(
            n == channels,
            "normalisation",
            format!("{n} entries for {channels} channels"),
        )?;
        want(
            i == channels,
            "intensity",
            format!("{i} entries for {channels} channels"),
        )
    }

    /// Writes a `plans.json`, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomically(path, |out| Ok(serde_json::to_writer_pretty(out, self)?))
    }

    /// A configuration by name.
    pub fn configuration(&self, name: &str) -> Result<&Configuration> {
        self.configurations.get(name).ok_or_else(|| {
            let known: Vec<_> = self.configurations.keys().map(String::as_str).collect();
            DataError::Setting {
                field: "configuration".into(),
                found: name.into(),
                expected: format!("the plan has {}", known.join(", ")),
            }
        })
    }
}

/// What is remembered of the cases read.
struct Survey {
    sizes: Vec<Vec<usize>>,
    spacings: Vec<Vec<f64>>,
    /// First case, to name it when another differs in kind.
    first: String,
    without_foreground: Vec<String>,
    channels: Vec<ChannelSurvey>,
}

/// Foreground values of one channel: moments and order statistics of each case.
#[derive(Default)]
struct ChannelSurvey {
    moments: Vec<(f64, f64)>,
    /// Value and weight; the weights of a case sum to 1.
    values: Vec<(f32, f64)>,
}

/// Order statistics kept of a case; more foreground than this is thinned evenly by rank.
const MOST_VALUES: usize = 1 << 14;

impl Survey {
    fn new(channels: usize) -> Self {
        let channels = (0..channels).map(|_| ChannelSurvey::default()).collect();
        Self {
            sizes: vec![],
            spacings: vec![],
            first: String::new(),
            without_foreground: vec![],
            channels,
        }
    }

    fn add(&mut self, id: &str, image: &Image, label: &LabelMap) -> Result<()> {
        let size = image.spatial_size().to_vec();
        if let Some(first) = self.sizes.first() {
            if first.len() != size.len() {
                let problem = format!(
                    "it has {} axes, but case `{}` has {}; a data set is 2-D or 3-D throughout",
                    size.len(),
                    self.first,
                    first.len()
                );
                return Err(DataError::Case {
                    case: id.into(),
                    problem,
                });
            }
        } else {
            self.first = id.into();
        }
        self.sizes.push(size);
        self.spacings.push(image.geometry.spacing.clone());
        for (channel, survey) in image.data.outer_iter().zip(&mut self.channels) {
            let mut values: Vec<f32> = channel
                .iter()
                .zip(&label.data)
                .filter(|(_, &l)| l > 0)
                .map(|(&v, _)| v)
                .collect();
            survey.add(&mut values);
        }
        if label.data.iter().all(|&l| l == 0) {
            self.without_foreground.push(id.into());
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for axis in 0..self.spacings[0].len() {
            let (low, high) = self
                .spacings
                .iter()
                .map(|s| s[axis])
                .fold((f64::MAX, 0f64), |(l, h), s| (l.min(s), h.max(s)));
            if high > 1.01 * low {
                notes.push(format!(
                    "spacing along axis {axis} runs from {low} to {high} between cases; images are not resampled to one spacing, so the network sees different scales"
                ));
            }
        }
        if !self.without_foreground.is_empty() {
            notes.push(format!(
                "{} training cases have no foreground: {}",
                self.without_foreground.len(),
                self.without_foreground.join(", ")
            ));
        }
        notes
    }

    fn median_size(&self) -> Vec<usize> {
        (0..self.sizes[0].len())
            .map(|axis| {
                median(self.sizes.iter().map(|s| s[axis] as f64).collect()).round() as usize
            })
            .collect()
    }

    fn intensities(&mut self, normalisation: &[Normalisation]) -> Result<Vec<Intensity>> {
        let without = Intensity {
            mean: 0.0,
            std: 1.0,
            percentile_00_5: 0.0,
            median: 0.0,
            percentile_99_5: 0.0,
            min: 0.0,
            max: 0.0,
        };
        let all = self.channels.iter_mut().zip(normalisation).enumerate().map(|(number, (channel, normalisation))| match channel.intensity() {
            Some(intensity) => Ok(intensity),
            None if *normalisation == Normalisation::Ct => Err(DataError::Case {
                case: "(all)".into(),
                problem: format!("channel {number} is a CT, which is normalised by its foreground, but no label map has foreground"),
            }),
            None => Ok(without),
        });
        all.collect()
    }
}

impl ChannelSurvey {
    fn add(&mut self, values: &mut [f32]) {
        if values.is_empty() {
            return;
        }
        let n = values.len();
        let moment = |power: i32| {
            values
                .iter()
                .map(|&v| f64::from(v).powi(power))
                .sum::<f64>()
                / n as f64
        };
        self.moments.push((moment(1), moment(2)));
        values.sort_by(f32::total_cmp);
        let kept = n.min(MOST_VALUES);
        // Both ends are kept, so that minimum and maximum are exact.
        let rank = |i: usize| {
            if kept == n {
                i
            } else {
                i * (n - 1) / (kept - 1)
            }
        };
        self.values
            .extend((0..kept).map(|i| (values[rank(i)], 1.0 / kept as f64)));
    }

    fn intensity(&mut self) -> Option<Intensity> {
        self.values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (first, last) = (self.values.first()?.0, self.values.last()?.0);
        let cases = self.moments.len() as f64;
        let mean = self.moments.iter().map(|m| m.0).sum::<f64>() / cases;
        let second = self.moments.iter().map(|m| m.1).sum::<f64>() / cases;
        // Inverse of the distribution function: the limit of drawing equally many values from each case.
        let percentile = |fraction: f64| {
            let mut sum = 0.0;
            let reached = self.values.iter().find(|(_, weight)| {
                sum += weight / cases;
                sum >= fraction * (1.0 - 1e-12)
            });
            f64::from(reached.map_or(last, |v| v.0))
        };
        Some(Intensity {
            mean,
            std: (second - mean * mean).max(0.0).sqrt(),
            percentile_00_5: percentile(0.005),
            median: percentile(0.5),
            percentile_99_5: percentile(0.995),
            min: first.into(),
            max: last.into(),
        })
    }
}

/// Of at least one number.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        0.5 * (values[middle - 1] + values[middle])
    }
}
