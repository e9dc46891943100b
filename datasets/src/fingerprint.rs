//! What a data set looks like, in nnU-Net's `dataset_fingerprint.json`: sizes after cropping, spacings, foreground intensities.

use std::path::Path;

use indexmap::IndexMap;
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use crate::io::atomically;
use crate::parallel::for_each_in_order;
use crate::preprocess::{as_volume, crop_to_body, label_volume, Intensity, Normalisation};
use crate::{DataError, Dataset, Result, Split};

/// Sizes, spacings and intensities of the training cases, in the axes of the files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Intensities where the label is above 0, by channel number.
    #[serde(default)]
    pub foreground_intensity_properties_per_channel: IndexMap<String, Intensity>,
    /// Median over cases of the share of voxels that cropping keeps.
    pub median_relative_size_after_cropping: f64,
    /// Size of each case after cropping.
    pub shapes_after_crop: Vec<[usize; 3]>,
    /// Spacing of each case.
    pub spacings: Vec<[f64; 3]>,
    /// What a person should know about the data set; not part of the file.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// Order statistics remembered of all cases together.
const MOST_VALUES: usize = 1 << 24;
/// And of one case at least.
const LEAST_VALUES: usize = 1 << 14;

impl Fingerprint {
    /// Reads every training case on `threads` threads. `progress` hears of each case done. All broken cases are reported, not the first alone.
    pub fn take(
        dataset: &Dataset,
        threads: usize,
        progress: &(dyn Fn(&str) + Sync),
    ) -> Result<Self> {
        let (print, failures) = Self::of_usable(dataset, threads, progress)?;
        DataError::all(failures)?;
        Ok(print)
    }

    /// The same of the cases that can be used, with what is wrong with the others. An error where none can.
    pub fn of_usable(
        dataset: &Dataset,
        threads: usize,
        progress: &(dyn Fn(&str) + Sync),
    ) -> Result<(Self, Vec<DataError>)> {
        let ids = dataset.planned_ids();
        let kept = (MOST_VALUES / ids.len().max(1)).max(LEAST_VALUES);
        let mut survey = Survey::default();
        let mut failures = Vec::new();
        let mut first: Option<(String, usize)> = None;
        for_each_in_order(
            &ids,
            threads,
            |id| look_at(dataset, id, kept),
            |id, seen| {
                progress(id);
                let seen = seen.and_then(|seen| {
                    let (other, dims) = first.get_or_insert_with(|| (id.clone(), seen.dims));
                    match *dims == seen.dims {
                        true => Ok(seen),
                        false => Err(DataError::Case {
                            case: id.clone(),
                            problem: format!(
                                "it has {} axes, but case `{other}` has {dims}; a data set is 2-D or 3-D throughout",
                                seen.dims
                            ),
                        }),
                    }
                });
                match seen {
                    Ok(seen) => survey.add(id, seen),
                    Err(error) => failures.push(error),
                }
            },
        );
        if survey.sizes.is_empty() {
            DataError::all(std::mem::take(&mut failures))?;
        }
        let without = std::mem::take(&mut survey.without_foreground);
        let mut print = survey.finish();
        let info = &dataset.info;
        for (number, name) in info.channel_names.iter().enumerate() {
            let absolute = Normalisation::for_channel(name, true) == Normalisation::Ct;
            let known = &print.foreground_intensity_properties_per_channel;
            if absolute && !known.contains_key(&number.to_string()) {
                return Err(DataError::Case {
                    case: "(all)".into(),
                    problem: format!("channel {number} is a CT, which is normalised by its foreground, but no label map has foreground"),
                });
            }
        }
        let cases = dataset.cases(Split::Training).len();
        if info.num_training != cases {
            print.notes.push(format!(
                "dataset.json says numTraining {}, but there are {cases} training cases; all of them are used",
                info.num_training,
            ));
        }
        if !without.is_empty() {
            print.notes.push(format!(
                "{} training cases have no foreground: {}",
                without.len(),
                without.join(", ")
            ));
        }
        Ok((print, failures))
    }

    /// Reads a `dataset_fingerprint.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| DataError::reading(path, e))?;
        serde_json::from_str(&text)
            .map_err(|e| DataError::json(path, "(whole file)", e.to_string()))
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomically(path, |out| Ok(serde_json::to_writer_pretty(out, self)?))
    }
}

/// What is remembered of a case.
struct Seen {
    /// Axes of the file: 2 or 3.
    dims: usize,
    size: [usize; 3],
    spacing: [f64; 3],
    relative_size: f64,
    channels: Vec<Option<Values>>,
}

/// Foreground values of one channel of a case: moments and order statistics.
struct Values {
    moments: (f64, f64),
    sorted: Vec<f32>,
}

fn look_at(dataset: &Dataset, id: &str, kept: usize) -> Result<Seen> {
    let (image, label) = dataset.load_case(id, Split::Training)?;
    let dims = image.spatial_size().len();
    let (data, spacing) = as_volume(&image)?;
    let before: usize = data.shape()[1..].iter().product();
    let label = label_volume(&label)?;
    let cropped = crop_to_body(data, Some(label));
    let size = cropped.bounds.map(|[from, to]| to - from);
    Ok(Seen {
        dims,
        size,
        spacing,
        relative_size: size.iter().product::<usize>() as f64 / before as f64,
        channels: cropped
            .data
            .outer_iter()
            .map(|channel| values_of(channel, &cropped.seg, kept))
            .collect(),
    })
}

fn values_of(channel: ndarray::ArrayView3<f32>, seg: &Array3<i16>, kept: usize) -> Option<Values> {
    let mut values: Vec<f32> = channel
        .iter()
        .zip(seg)
        .filter(|(_, &l)| l > 0)
        .map(|(&v, _)| v)
        .collect();
    let n = values.len();
    if n == 0 {
        return None;
    }
    let mean = |f: fn(f64) -> f64| values.iter().map(|&v| f(v.into())).sum::<f64>() / n as f64;
    let moments = (mean(|v| v), mean(|v| v * v));
    values.sort_unstable_by(f32::total_cmp);
    if n > kept {
        // Both ends are kept, so that minimum and maximum are exact.
        values = (0..kept)
            .map(|i| values[i * (n - 1) / (kept - 1)])
            .collect();
    }
    Some(Values {
        moments,
        sorted: values,
    })
}

#[derive(Default)]
struct Survey {
    sizes: Vec<[usize; 3]>,
    spacings: Vec<[f64; 3]>,
    relative_sizes: Vec<f64>,
    channels: Vec<Channel>,
    without_foreground: Vec<String>,
}

/// Of all cases: moments, and values with weights that sum to 1 for each case.
#[derive(Default)]
struct Channel {
    moments: Vec<(f64, f64)>,
    values: Vec<(f32, f64)>,
}

impl Survey {
    fn add(&mut self, id: &str, seen: Seen) {
        if seen.channels.iter().all(Option::is_none) {
            self.without_foreground.push(id.to_owned());
        }
        self.sizes.push(seen.size);
        self.spacings.push(seen.spacing);
        self.relative_sizes.push(seen.relative_size);
        self.channels.resize_with(
            seen.channels.len().max(self.channels.len()),
            Channel::default,
        );
        for (channel, values) in self.channels.iter_mut().zip(seen.channels) {
            if let Some(Values { moments, sorted }) = values {
                let weight = 1.0 / sorted.len() as f64;
                channel.moments.push(moments);
                channel.values.extend(sorted.iter().map(|&v| (v, weight)));
            }
        }
    }

    fn finish(self) -> Fingerprint {
        let intensities = self.channels.into_iter().enumerate();
        Fingerprint {
            notes: Vec::new(),
            foreground_intensity_properties_per_channel: intensities
                .filter_map(|(number, channel)| Some((number.to_string(), channel.intensity()?)))
                .collect(),
            median_relative_size_after_cropping: median(self.relative_sizes),
            shapes_after_crop: self.sizes,
            spacings: self.spacings,
        }
    }
}

impl Channel {
    /// The limit of drawing equally many values from every case, which is what nnU-Net estimates by drawing.
    fn intensity(mut self) -> Option<Intensity> {
        self.values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (first, last) = (self.values.first()?.0, self.values.last()?.0);
        let cases = self.moments.len() as f64;
        let mean = self.moments.iter().map(|m| m.0).sum::<f64>() / cases;
        let second = self.moments.iter().map(|m| m.1).sum::<f64>() / cases;
        let percentile = |fraction: f64| {
            let mut sum = 0.0;
            let reached = self.values.iter().find(|(_, weight)| {
                sum += weight / cases;
                sum >= fraction * (1.0 - 1e-9)
            });
            f64::from(reached.map_or(last, |v| v.0))
        };
        Some(Intensity {
            max: last.into(),
            mean,
            median: percentile(0.5),
            min: first.into(),
            percentile_00_5: percentile(0.005),
            percentile_99_5: percentile(0.995),
            std: (second - mean * mean).max(0.0).sqrt(),
        })
    }
}

/// Median of at least one number, the mean of the middle two of an even count.
pub(crate) fn median(values: Vec<f64>) -> f64 {
    percentile(values, 50.0)
}

/// Percentile of at least one number, linear between neighbours.
pub(crate) fn percentile(mut values: Vec<f64>, percent: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = percent / 100.0 * (values.len() - 1) as f64;
    let (below, share) = (at.floor() as usize, at.fract());
    match values.get(below + 1) {
        Some(above) if share > 0.0 => values[below] + (above - values[below]) * share,
        _ => values[below],
    }
}
