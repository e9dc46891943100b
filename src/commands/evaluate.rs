//! `evaluate segmentation`: overlap of two folders of label maps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::RgbImage;
use ndarray::{s, Array2, ArrayD, Axis, Ix2};
use vision_mamba_datasets::io::{known_endings, writable_label_endings, Endings};
use vision_mamba_datasets::parallel::for_each_in_order;
use vision_mamba_datasets::preprocess::{label_volume, volume_spacing};
use vision_mamba_datasets::{read_image, read_labels, DatasetJson, LabelMap};

use crate::cli::args::{EvaluateSegmentationArgs, Global, ProtocolChoice};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::{write_atomic, write_json};
use crate::metrics::overlap::{counts, mean, Counts};
use crate::metrics::protocol::{mask_of, Convention, Distances, Tolerances};
use crate::metrics::summary::{key, summarise, voxel_ml, Scored, Summary};
use crate::metrics::surface::boxes;
use crate::report::overlay::{montage, triptych};
use crate::report::save_png;

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
    for note in doubts(args) {
        printer.warning(&note);
    }
    if args.protocol != ProtocolChoice::Classes {
        return super::evaluate_protocol::run(args, global, printer);
    }
    let mut references = label_files(&args.reference)?;
    ensure!(
        !references.is_empty(),
        "{} holds no label maps ({})",
        args.reference.display(),
        writable_label_endings()
    );
    let predictions = Predictions::in_folder(&args.pred)?;
    if args.predicted_only {
        references.retain(|r| predictions.of(r).is_ok());
        ensure!(
            !references.is_empty(),
            "{} holds no prediction of a case in {}",
            args.pred.display(),
            args.reference.display()
        );
    }
    let extra = predictions.without_reference(&references);
    if !extra.is_empty() {
        printer.warning(&format!(
            "{} prediction(s) have no reference and are left out: {}",
            extra.len(),
            some_of(&extra)
        ));
    }
    let threads = super::plan::threads(global);
    let scored = Classes::find(args, &references, threads)?;
    let tolerances = tolerances(&args.tolerance, &scored.classes)?;
    if let Some(out) = &args.overlays {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let mut bar = Progress::new(printer, "evaluating", references.len() as u64);
    let (mut cases, mut failures, mut moved) = (Vec::new(), Vec::new(), Vec::new());
    for_each_in_order(
        &references,
        threads,
        |reference| score(args, &predictions, reference, &scored, &tolerances),
        |_, outcome| {
            match outcome {
                Ok((case, note)) => {
                    cases.push(case);
                    moved.extend(note);
                }
                Err(error) => failures.push(format!("{error:#}")),
            }
            bar.step(String::new);
        },
    );
    bar.finish();
    if !moved.is_empty() {
        printer.warning(&format!(
            "{} prediction(s) lie elsewhere than their references, whose spacing counts: {}",
            moved.len(),
            some_of(&moved)
        ));
    }
    for failure in &failures {
        printer.warning(failure);
    }
    if !cases.is_empty() {
        let tolerances = args.surface.then_some(&tolerances);
        let summary: Summary = summarise(&cases, &scored.classes, args.convention, tolerances);
        // the table is there even where nothing can be written
        printer.data(&summary.table());
        if let Some(path) = &args.json {
            write_json(path, &summary)?;
        }
        if let Some(path) = &args.csv {
            write_atomic(path, summary.csv().as_bytes())?;
        }
        draw_overview(args, &cases, &scored.names())?;
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{} of {} case(s) could not be scored: {first}",
            failures.len(),
            references.len()
        ),
    }
}

/// What looks like a slip in the choice of folders.
fn doubts(args: &EvaluateSegmentationArgs) -> Vec<String> {
    let holds_references = |folder: &Path| {
        let name = folder.file_name().unwrap_or_default();
        ["labelsTr", "labelsTs", "gt_segmentations"]
            .iter()
            .any(|n| name == *n)
    };
    let mut doubts = Vec::new();
    let same = args.pred.canonicalize().ok() == args.reference.canonicalize().ok();
    if same {
        doubts.push(
            "--pred and --ref are the same folder: every case is compared with itself".into(),
        );
    }
    if !same && holds_references(&args.pred) && !holds_references(&args.reference) {
        doubts.push(format!(
            "{} looks like references; are --pred and --ref exchanged?",
            args.pred.display()
        ));
    }
    doubts
}

/// A few of many, for a message.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    match names.len() > SHOWN {
        true => format!("{}, ...", shown.join(", ")),
        false => shown.join(", "),
    }
}

/// The tolerance of each class: one for all, and those of single classes by name or label.
fn tolerances(given: &[String], classes: &[(String, Vec<i16>)]) -> Result<Tolerances> {
    let wrong = |text: &str, why: &str| Misuse::error(format!("--tolerance {text}: {why}"));
    let distance = |text: &str, number: &str| {
        let value = number.trim().parse::<f64>().ok();
        value
            .filter(|v| v.is_finite() && *v >= 0.0)
            .ok_or_else(|| wrong(text, "expected a number of mm, zero or more, or CLASS=MM"))
    };
    let mut all: Vec<(String, f64)> = classes.iter().map(|c| (c.0.clone(), 1.0)).collect();
    for text in given.iter().filter(|t| !t.contains('=')) {
        let value = distance(text, text)?;
        all.iter_mut().for_each(|c| c.1 = value);
    }
    for text in given {
        let Some((class, number)) = text.rsplit_once('=') else {
            continue;
        };
        let value = distance(text, number)?;
        let class = class.trim();
        let at = classes
            .iter()
            .position(|(name, values)| name == class || key(values) == class)
            .ok_or_else(|| {
                let names: Vec<&str> = classes.iter().map(|c| c.0.as_str()).collect();
                wrong(
                    text,
                    &format!("no such class; there are {}", names.join(", ")),
                )
            })?;
        all[at].1 = value;
    }
    Ok(Tolerances { classes: all })
}

/// The predicted label maps of a folder, by case.
pub struct Predictions {
    folder: PathBuf,
    files: BTreeMap<String, Vec<PathBuf>>,
}

impl Predictions {
    /// Lists a folder.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for path in label_files(folder)? {
            if let Some((case, _)) = split_ending(&path) {
                files.entry(case).or_default().push(path);
            }
        }
        Ok(Self {
            folder: folder.into(),
            files,
        })
    }

    /// The prediction of a reference's case: of the same ending, or the only one of another.
    pub fn of(&self, reference: &Path) -> Result<&Path> {
        let (case, ending) = split_ending(reference).context("reference has no known ending")?;
        let found = self.files.get(&case).map_or(&[][..], Vec::as_slice);
        let same = |p: &&PathBuf| split_ending(p).is_some_and(|(_, e)| e == ending);
        match (found.iter().find(same), found) {
            (Some(path), _) | (None, [path]) => Ok(path),
            (None, []) => bail!(
                "{} is missing; predict this case too, or take its reference out",
                self.folder.join(format!("{case}{ending}")).display()
            ),
            (None, [a, b, ..]) => bail!(
                "{} and {} are both predictions of {case}; take one of them out",
                a.display(),
                b.display()
            ),
        }
    }

    /// Names of predictions that no reference is for.
    fn without_reference(&self, references: &[PathBuf]) -> Vec<String> {
        let cases: BTreeSet<String> = references
            .iter()
            .filter_map(|r| Some(split_ending(r)?.0))
            .collect();
        // of the kinds of files that predictions are; pictures drawn beside them are none
        let kinds: BTreeSet<&str> = references
            .iter()
            .filter_map(|r| Some(split_ending(self.of(r).ok()?)?.1))
            .collect();
        let drawn =
            |case: &str| ["overview", "progress"].contains(&case) || case.ends_with("_overlay");
        self.files
            .iter()
            .filter(|(case, _)| !cases.contains(*case) && !drawn(case))
            .filter_map(|(_, files)| {
                let path = files
                    .iter()
                    .find(|p| split_ending(p).is_some_and(|(_, ending)| kinds.contains(ending)))?;
                Some(path.file_name()?.to_string_lossy().into_owned())
            })
            .collect()
    }
}

/// A reference and its prediction, on one grid.
pub fn read_pair(prediction: &Path, reference: &Path) -> Result<(LabelMap, LabelMap)> {
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

/// Spacings that agree to this part are the same: formats round them to float32 or to a few digits.
const SAME_SPACING: f64 = 1e-3;

fn score(
    args: &EvaluateSegmentationArgs,
    predictions: &Predictions,
    reference_path: &Path,
    scored: &Classes,
    tolerances: &Tolerances,
) -> Result<(Scored, Option<String>)> {
    let prediction_path = predictions.of(reference_path)?;
    let (prediction, reference) = read_pair(prediction_path, reference_path)?;
    let (there, here) = (&reference.geometry.spacing, &prediction.geometry.spacing);
    let differs = |(a, b): (&f64, &f64)| (a - b).abs() > SAME_SPACING * a.abs();
    let moved = there.iter().zip(here).any(differs).then(|| {
        let name = reference_path.file_name().unwrap_or_default();
        format!(
            "{} (spacing {here:?}, reference {there:?})",
            name.to_string_lossy()
        )
    });
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
    let what = ClassScoring {
        values: scored.classes.iter().map(|c| c.1.clone()).collect(),
        ignored: scored.ignored,
        convention: args.convention,
        tolerances: args
            .surface
            .then(|| tolerances.classes.iter().map(|c| c.1).collect()),
        voxels: false,
    };
    let voxel_ml = voxel_ml(&reference.geometry.spacing);
    let (counts, distances) = what.of(prediction, reference)?;
    let scored = Scored {
        prediction: prediction_path.display().to_string(),
        reference: reference_path.display().to_string(),
        counts,
        distances,
        voxel_ml,
    };
    Ok((scored, moved))
}

/// How the classes of a case are scored.
pub struct ClassScoring {
    /// Label values of each class or region.
    pub values: Vec<Vec<i16>>,
    /// The label of voxels that are not annotated.
    pub ignored: Option<i16>,
    /// Definitions.
    pub convention: Convention,
    /// Tolerance of each class, where distances are wanted.
    pub tolerances: Option<Vec<f64>>,
    /// Whether distances are in voxels whatever the spacing.
    pub voxels: bool,
}

impl ClassScoring {
    /// Counts of each class, and distances where they are wanted.
    pub fn of(
        &self,
        mut prediction: LabelMap,
        mut reference: LabelMap,
    ) -> Result<(Vec<Counts>, Vec<Distances>)> {
        let counts = counts(
            &prediction.data,
            &reference.data,
            &self.values,
            self.ignored,
        );
        let Some(tolerances) = &self.tolerances else {
            return Ok((counts, Vec::new()));
        };
        if let Some(ignored) = self.ignored {
            // what is not annotated is nothing in either map
            ndarray::Zip::from(&mut prediction.data)
                .and(&mut reference.data)
                .for_each(|p, r| {
                    if *r == ignored {
                        (*p, *r) = (0, 0);
                    }
                });
        }
        let flat = prediction.data.ndim() == 2;
        let [z, y, x] = match self.voxels {
            true => [1.0; 3],
            false => volume_spacing(&reference.geometry),
        };
        // a picture's one slice has no thickness
        let spacing = if flat { [1.0, y, x] } else { [z, y, x] };
        let (predicted, present) = (label_volume(&prediction)?, label_volume(&reference)?);
        let boxes = boxes([predicted, present], &self.values);
        let distances = self
            .values
            .iter()
            .zip(boxes)
            .zip(tolerances)
            .map(|((values, [z, y, x]), tolerance)| {
                // outside a class's box there is background, as there is outside the image
                let kept = s![z[0]..z[1], y[0]..y[1], x[0]..x[1]];
                self.convention.distances(
                    mask_of(predicted.slice(kept), values).view(),
                    mask_of(present.slice(kept), values).view(),
                    spacing,
                    flat,
                    *tolerance,
                )
            })
            .collect();
        Ok((counts, distances))
    }
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
    // images may be of another format than their label maps
    let same = images.join(format!("{id}_0000{ending}"));
    let others = known_endings();
    let mut others = others.iter().map(|e| images.join(format!("{id}_0000{e}")));
    let path = match same.is_file() {
        true => same,
        false => others.find(|p| p.is_file()).unwrap_or(same),
    };
    let image = read_image(&path)?;
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

/// A plane of an array of two axes.
pub fn plane<T>(array: ArrayD<T>) -> Result<Array2<T>> {
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
    fn find(
        args: &EvaluateSegmentationArgs,
        references: &[PathBuf],
        threads: usize,
    ) -> Result<Self> {
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
        for_each_in_order(
            references,
            threads,
            |path| {
                // one that cannot be read is reported where it is scored
                read_labels(path).map_or(BTreeSet::new(), |labels| values_of(&labels))
            },
            |_, found| values.extend(found),
        );
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

/// The values of a label map above 0.
fn values_of(labels: &LabelMap) -> BTreeSet<i16> {
    let mut found = BTreeSet::new();
    let mut last = 0;
    for &value in &labels.data {
        if value != last && value > 0 {
            found.insert(value);
        }
        last = value;
    }
    found
}

/// A label map's case and ending.
pub fn split_ending(path: &Path) -> Option<(String, &'static str)> {
    let name = path.file_name()?.to_str()?;
    let (case, ending) = known_endings().split(name)?;
    Some((case.to_owned(), ending))
}

/// The label maps of a folder, sorted.
pub fn label_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let all: Vec<PathBuf> = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("cannot read {}", folder.display()))?;
    let of = |endings: Endings| {
        let fits = |p: &&PathBuf| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            // hidden files are no cases: copies and leavings of other programs
            p.is_file() && !name.starts_with('.') && endings.split(name).is_some()
        };
        all.iter().filter(fits).cloned().collect::<Vec<_>>()
    };
    // what label maps are written in; arrays and the like, which may be probabilities beside them, only where there is nothing else
    let mut files = of(writable_label_endings());
    if files.is_empty() {
        files = of(known_endings());
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_of_all_and_of_one() {
        let classes = [
            ("liver".to_owned(), vec![1]),
            ("both".to_owned(), vec![1, 2]),
        ];
        let of = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|g| (*g).to_owned()).collect();
            tolerances(&given, &classes).map(|t| t.classes.iter().map(|c| c.1).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]).unwrap(), [1.0, 1.0]);
        assert_eq!(of(&["liver=5", "2"]).unwrap(), [5.0, 2.0]);
        assert_eq!(of(&["(1, 2)=0.5"]).unwrap(), [1.0, 0.5]);
        for wrong in ["-1", "x", "spleen=2", "liver=nan"] {
            assert!(of(&[wrong]).is_err(), "{wrong}");
        }
    }
}
