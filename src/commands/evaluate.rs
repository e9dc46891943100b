//! `evaluate segmentation`: overlap of two folders of label maps.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::RgbImage;
use ndarray::{Array2, ArrayD, Axis, Ix2};
use vision_mamba_datasets::parallel::for_each_in_order;
use vision_mamba_datasets::preprocess::{labels_as_volume, volume_spacing};
use vision_mamba_datasets::{read_image, read_labels, DatasetJson, LabelMap};

use crate::cli::args::{EvaluateSegmentationArgs, Global, ProtocolChoice};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::write_json;
use crate::metrics::overlap::{counts, mean, Counts};
use crate::metrics::protocol::mask_of;
use crate::metrics::summary::{summarise, Scored, Summary};
use crate::report::overlay::{montage, triptych};
use crate::report::save_png;

/// Endings of label maps, longest first so that `.nii.gz` is not read as `.gz`.
const ENDINGS: [&str; 9] = [
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".tiff", ".tif", ".png",
];

/// Scores a folder and prints, writes and draws what was asked for.
pub fn segmentation(
    args: &EvaluateSegmentationArgs,
    global: &Global,
    printer: &Printer,
) -> Result<()> {
    for (option, folder) in [("--pred", &args.pred), ("--ref", &args.reference)] {
        if !folder.is_dir() {
            return Err(Misuse::error(format!(
                "{option} {}: no such folder",
                folder.display()
            )));
        }
    }
    if !(args.tolerance.is_finite() && args.tolerance >= 0.0) {
        return Err(Misuse::error("--tolerance: must be zero or more"));
    }
    if args.protocol != ProtocolChoice::Classes {
        return super::evaluate_protocol::run(args, printer);
    }
    let references = label_files(&args.reference)?;
    ensure!(
        !references.is_empty(),
        "{} holds no label maps ({})",
        args.reference.display(),
        ENDINGS.join(", ")
    );
    let scored = Classes::find(args, &references)?;
    if let Some(out) = &args.overlays {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let mut bar = Progress::new(printer, "evaluating", references.len() as u64);
    let (mut cases, mut failures) = (Vec::new(), Vec::new());
    for_each_in_order(
        &references,
        super::plan::threads(global),
        |reference| score(args, reference, &scored),
        |_, outcome| {
            match outcome {
                Ok(case) => cases.push(case),
                Err(error) => failures.push(format!("{error:#}")),
            }
            bar.step(String::new);
        },
    );
    bar.finish();
    if !cases.is_empty() {
        let tolerance = args.surface.then_some(args.tolerance);
        let summary: Summary = summarise(&cases, &scored.classes, args.convention, tolerance);
        if let Some(path) = &args.json {
            write_json(path, &summary)?;
        }
        draw_overview(args, &cases, &scored.names())?;
        printer.data(&summary.table());
    }
    match failures.len() {
        0 => Ok(()),
        n => {
            for failure in &failures {
                printer.warning(failure);
            }
            bail!(
                "{n} of {} case(s) could not be scored: {}",
                references.len(),
                failures[0]
            )
        }
    }
}

/// A reference and its prediction, on one grid.
pub fn read_pair(prediction: &Path, reference: &Path) -> Result<(LabelMap, LabelMap)> {
    ensure!(
        prediction.is_file(),
        "{} is missing; predict this case too, or take its reference out",
        prediction.display()
    );
    let (found, expected) = (read_labels(prediction)?, read_labels(reference)?);
    ensure!(
        expected.data.shape() == found.data.shape(),
        "{} has size {:?}, its reference {} has {:?}; predict on the image this reference belongs to",
        prediction.display(),
        found.data.shape(),
        reference.display(),
        expected.data.shape()
    );
    Ok((found, expected))
}

fn score(
    args: &EvaluateSegmentationArgs,
    reference_path: &Path,
    scored: &Classes,
) -> Result<Scored> {
    let name = reference_path
        .file_name()
        .context("reference has no name")?;
    let prediction_path = args.pred.join(name);
    let (prediction, reference) = read_pair(&prediction_path, reference_path)?;
    if let (Some(images), Some(out)) = (&args.images, &args.overlays) {
        let (id, picture) = draw(
            images,
            reference_path,
            &reference.data,
            &prediction.data,
            &scored.names(),
        )?;
        save_png(&out.join(format!("{id}.png")), &picture)?;
    }
    let values: Vec<Vec<i16>> = scored.classes.iter().map(|c| c.1.clone()).collect();
    let counts = counts(&prediction.data, &reference.data, &values, scored.ignored);
    let distances = match args.surface {
        false => Vec::new(),
        true => {
            let mut predicted = labels_as_volume(&prediction)?;
            let mut present = labels_as_volume(&reference)?;
            if let Some(ignored) = scored.ignored {
                // what is not annotated is nothing in either map
                ndarray::Zip::from(&mut predicted)
                    .and(&mut present)
                    .for_each(|p, r| {
                        if *r == ignored {
                            (*p, *r) = (0, 0);
                        }
                    });
            }
            let flat = prediction.data.ndim() == 2;
            let spacing = match flat {
                // the one slice has no thickness
                true => {
                    let [_, y, x] = volume_spacing(&reference.geometry);
                    [1.0, y, x]
                }
                false => volume_spacing(&reference.geometry),
            };
            values
                .iter()
                .map(|values| {
                    args.convention.distances(
                        mask_of(predicted.view(), values).view(),
                        mask_of(present.view(), values).view(),
                        spacing,
                        flat,
                        args.tolerance,
                    )
                })
                .collect()
        }
    };
    Ok(Scored {
        prediction: prediction_path.display().to_string(),
        reference: reference_path.display().to_string(),
        counts,
        distances,
    })
}

/// A case's name and its side-by-side picture.
fn draw(
    images: &Path,
    reference_path: &Path,
    reference: &ArrayD<i16>,
    prediction: &ArrayD<i16>,
    labels: &[(String, i16)],
) -> Result<(String, RgbImage)> {
    let (id, ending) = split_ending(reference_path).context("reference has no known ending")?;
    let image = read_image(&images.join(format!("{id}_0000{ending}")))?;
    let picture = overlay_of(&image.data, Some(reference), prediction, labels, &id)?;
    Ok((id, picture))
}

/// The worst, the median and the best case below each other, in `overview.png`.
fn draw_overview(
    args: &EvaluateSegmentationArgs,
    cases: &[Scored],
    labels: &[(String, i16)],
) -> Result<()> {
    let (Some(images), Some(out)) = (&args.images, &args.overlays) else {
        return Ok(());
    };
    let dice = |case: &Scored| mean(case.counts.iter().map(Counts::dice)).unwrap_or(1.0);
    let mut order: Vec<&Scored> = cases.iter().collect();
    order.sort_by(|a, b| dice(a).total_cmp(&dice(b)));
    let mut picks = vec![0, order.len() / 2, order.len().saturating_sub(1)];
    picks.dedup();
    let pictures = picks
        .into_iter()
        .filter_map(|i| order.get(i))
        .map(|case| {
            let reference = Path::new(&case.reference);
            let maps = (
                read_labels(reference)?,
                read_labels(Path::new(&case.prediction))?,
            );
            Ok(draw(images, reference, &maps.0.data, &maps.1.data, labels)?.1)
        })
        .collect::<Result<Vec<_>>>()?;
    save_png(&out.join("overview.png"), &montage(&pictures, 1))?;
    Ok(())
}

/// The side-by-side picture of a case; of a volume, the slice (along the first axis) with most foreground.
pub fn overlay_of(
    image: &ArrayD<f32>,
    reference: Option<&ArrayD<i16>>,
    prediction: &ArrayD<i16>,
    labels: &[(String, i16)],
    title: &str,
) -> Result<RgbImage> {
    let names: Vec<(i16, String)> = labels
        .iter()
        .map(|(name, value)| (*value, name.clone()))
        .collect();
    let first = image.index_axis(Axis(0), 0).to_owned();
    if prediction.ndim() == 2 {
        let reference = reference.map(|r| plane(r.clone())).transpose()?;
        return Ok(triptych(
            &plane(first)?,
            reference.as_ref(),
            &plane(prediction.clone())?,
            &names,
            title,
        ));
    }
    let guide = reference.unwrap_or(prediction);
    let slice = guide
        .axis_iter(Axis(0))
        .enumerate()
        .max_by_key(|(_, s)| s.iter().filter(|&&v| v > 0).count())
        .map_or(0, |(i, _)| i);
    let reference = reference
        .map(|r| plane(r.index_axis(Axis(0), slice).to_owned()))
        .transpose()?;
    let picture = triptych(
        &plane(first.index_axis(Axis(0), slice).to_owned())?,
        reference.as_ref(),
        &plane(prediction.index_axis(Axis(0), slice).to_owned())?,
        &names,
        &format!("{title}, slice {slice}"),
    );
    Ok(picture)
}

fn plane<T>(array: ArrayD<T>) -> Result<Array2<T>> {
    let shape = array.shape().to_vec();
    array
        .into_dimensionality::<Ix2>()
        .with_context(|| format!("expected a plane, found shape {shape:?}"))
}

/// What is scored.
struct Classes {
    /// Name and label values of each class or region.
    classes: Vec<(String, Vec<i16>)>,
    /// The label of voxels that are not annotated.
    ignored: Option<i16>,
}

impl Classes {
    /// From dataset.json where one is found, else from the values in the references.
    fn find(args: &EvaluateSegmentationArgs, references: &[PathBuf]) -> Result<Self> {
        let candidates = match &args.dataset_json {
            Some(path) => vec![path.clone()],
            None => [args.reference.as_path(), args.pred.as_path()]
                .into_iter()
                .flat_map(|d| [Some(d), d.parent()])
                .flatten()
                .map(|d| d.join("dataset.json"))
                .filter(|p| p.is_file())
                .collect(),
        };
        if let Some(path) = candidates.first() {
            let info = DatasetJson::read(path)?;
            return Ok(Self {
                classes: info.foreground(),
                ignored: info.ignore_label,
            });
        }
        let mut values = BTreeSet::new();
        for path in references {
            values.extend(read_labels(path)?.data.iter().copied().filter(|&v| v > 0));
        }
        Ok(Self {
            classes: values
                .into_iter()
                .map(|v| (format!("label {v}"), vec![v]))
                .collect(),
            ignored: None,
        })
    }

    /// Names of single labels, for pictures.
    fn names(&self) -> Vec<(String, i16)> {
        let of = |(name, values): &(String, Vec<i16>)| {
            values
                .iter()
                .map(|v| (name.clone(), *v))
                .collect::<Vec<_>>()
        };
        // of overlapping regions the last, which is the innermost by custom
        let mut names: Vec<(String, i16)> = self.classes.iter().rev().flat_map(of).collect();
        names.sort_by_key(|n| n.1);
        names.dedup_by_key(|n| n.1);
        names
    }
}

/// A label map's case and ending.
pub fn split_ending(path: &Path) -> Option<(String, &'static str)> {
    let name = path.file_name()?.to_str()?;
    ENDINGS
        .iter()
        .find_map(|&e| name.strip_suffix(e).map(|id| (id.to_string(), e)))
}

/// The label maps of a folder, sorted.
pub fn label_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("cannot read {}", folder.display()))?
        .into_iter()
        .filter(|p| p.is_file() && split_ending(p).is_some())
        .collect();
    files.sort();
    Ok(files)
}
