//! `evaluate segmentation --protocol …`: tables as published scripts make them, and objects counted one by one.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use ndarray::{Axis, Ix2};
use serde_json::{json, Map, Value};
use vision_mamba_datasets::parallel::for_each_in_order;
use vision_mamba_datasets::preprocess::{labels_as_volume, volume_spacing};
use vision_mamba_datasets::{read_image, read_labels, LabelMap};

use super::evaluate::{label_files, read_pair, split_ending, Predictions};
use crate::cli::args::{EvaluateSegmentationArgs, Global, ProtocolChoice};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::{write_atomic, write_json};
use crate::metrics::bootstrap::interval;
use crate::metrics::instances::{match_objects, numbered, Objects};
use crate::metrics::overlap::mean;
use crate::metrics::protocol::{
    mamba_unet, mask_of, umamba_abdomen, umamba_cell, umamba_endoscopy, ABDOMEN,
};
use crate::metrics::summary::csv_field;

/// Columns of a case: names and numbers; one that does not exist is left out of means.
pub type Row = Vec<(String, Option<f64>)>;

/// A column's name, its mean, and where that lies nineteen times out of twenty.
type Column = (String, Option<f64>, Option<(f64, f64)>);

/// Scores every case, prints the table and writes it.
pub fn run(args: &EvaluateSegmentationArgs, global: &Global, printer: &Printer) -> Result<()> {
    if !(args.iou > 0.0 && args.iou <= 1.0) {
        return Err(Misuse::error("--iou: must be above 0 and at most 1"));
    }
    // U-Mamba's scripts go by the predictions, the others by the references
    let by_prediction = args.protocol == ProtocolChoice::UmambaCell;
    let folder = if by_prediction {
        &args.pred
    } else {
        &args.reference
    };
    let mut files = label_files(folder)?;
    let predictions = Predictions::in_folder(&args.pred)?;
    if args.predicted_only && !by_prediction {
        files.retain(|r| predictions.of(r).is_ok());
    }
    ensure!(
        !files.is_empty(),
        "{} holds no label maps",
        folder.display()
    );
    let mut bar = Progress::new(printer, "evaluating", files.len() as u64);
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for_each_in_order(
        &files,
        super::plan::threads(global),
        |file| score(args, &predictions, file),
        |file, outcome| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            match outcome {
                Ok(row) => rows.push((name.into_owned(), row)),
                Err(error) => failures.push(format!("{error:#}")),
            }
            bar.step(String::new);
        },
    );
    bar.finish();
    for failure in &failures {
        printer.warning(failure);
    }
    if !rows.is_empty() {
        printer.data(&table(&rows, args));
        if let Some(path) = &args.json {
            write_json(path, &as_json(&rows, args))?;
        }
        if let Some(path) = &args.csv {
            write_atomic(path, as_csv(&rows).as_bytes())?;
        }
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{} of {} case(s) could not be scored: {first}",
            failures.len(),
            files.len()
        ),
    }
}

fn score(args: &EvaluateSegmentationArgs, predictions: &Predictions, file: &Path) -> Result<Row> {
    if args.protocol == ProtocolChoice::UmambaCell {
        let (id, _) = split_ending(file).context("prediction has no known ending")?;
        let reference = instance_file(&args.reference, &id)?;
        return of_objects(args.protocol, file, &reference, args.iou, args.border_cells);
    }
    let prediction = predictions.of(file)?;
    if args.protocol == ProtocolChoice::Instances {
        return of_objects(args.protocol, prediction, file, args.iou, args.border_cells);
    }
    let (prediction, reference) = read_pair(prediction, file)?;
    of_labels(args.protocol, &prediction, &reference)
}

fn named(name: &str, value: f64) -> (String, Option<f64>) {
    (name.to_string(), Some(value).filter(|v| v.is_finite()))
}

/// A row of a script that compares label maps.
pub fn of_labels(
    protocol: ProtocolChoice,
    prediction: &LabelMap,
    reference: &LabelMap,
) -> Result<Row> {
    let spacing = volume_spacing(&reference.geometry);
    let flat = prediction.data.ndim() == 2;
    let (p, r) = (labels_as_volume(prediction)?, labels_as_volume(reference)?);
    match protocol {
        ProtocolChoice::UmambaAbdomen => {
            let scores = umamba_abdomen(p.view(), r.view(), spacing);
            Ok(ABDOMEN
                .iter()
                .zip(scores)
                .flat_map(|((organ, _), (dice, nsd))| {
                    [
                        named(&format!("{organ}_DSC"), dice),
                        named(&format!("{organ}_NSD"), nsd),
                    ]
                })
                .collect())
        }
        ProtocolChoice::UmambaEndoscopy => {
            let (dice, nsd) = umamba_endoscopy(p.view(), r.view());
            Ok(vec![named("DSC", dice), named("NSD", nsd)])
        }
        ProtocolChoice::MambaUnet => {
            let top = p.iter().chain(&r).copied().max().unwrap_or(0);
            Ok((1..=top)
                .flat_map(|label| {
                    let scores = mamba_unet(
                        mask_of(p.view(), &[label]).view(),
                        mask_of(r.view(), &[label]).view(),
                        flat,
                    );
                    let (dice, hd95) = scores.map_or((None, None), |(d, h)| (Some(d), Some(h)));
                    [
                        (format!("Dice {label}"), dice),
                        (format!("HD95 {label}"), hd95),
                    ]
                })
                .collect())
        }
        ProtocolChoice::Classes | ProtocolChoice::Instances | ProtocolChoice::UmambaCell => {
            bail!("not a script that compares label maps")
        }
    }
}

/// A row of a script that counts objects, whose references hold object numbers.
pub fn of_objects(
    protocol: ProtocolChoice,
    prediction: &Path,
    reference: &Path,
    iou: f64,
    border_cells: bool,
) -> Result<Row> {
    let reference = objects(reference)?;
    let agree = |size: (usize, usize)| {
        ensure!(
            size == reference.dim(),
            "{} is of size {size:?}, its reference of {:?}",
            prediction.display(),
            reference.dim()
        );
        Ok(())
    };
    if protocol == ProtocolChoice::Instances {
        let predicted = objects(prediction)?;
        agree(predicted.dim())?;
        let m = match_objects(&reference, &predicted, iou);
        return Ok(vec![
            named("reference", m.reference as f64),
            named("predicted", m.predicted as f64),
            named("TP", m.tp as f64),
            named("precision", m.precision()),
            named("recall", m.recall()),
            ("F1".into(), m.f1()),
            ("AP".into(), m.ap()),
            ("PQ".into(), m.pq()),
        ]);
    }
    let predicted = plane(&read_labels(prediction)?, prediction)?;
    agree(predicted.dim())?;
    let scores = umamba_cell(&reference, predicted.view(), iou, border_cells);
    let m = scores.matches;
    Ok(vec![
        named("true_num", m.reference as f64),
        named("pred_num", m.predicted as f64),
        named("correct_num(TP)", m.tp as f64),
        named("missed_num(FN)", scores.fn_ as f64),
        named("wrong_num(FP)", scores.fp as f64),
        named("precision", m.precision()),
        named("recall", m.recall()),
        named("dice", scores.dice),
        named("F1", scores.f1),
    ])
}

/// `CASE_label.tiff`, or the like.
fn instance_file(folder: &Path, id: &str) -> Result<PathBuf> {
    let names = [
        "_label.tiff",
        "_label.tif",
        "_label.png",
        ".tiff",
        ".tif",
        ".png",
    ];
    names
        .iter()
        .map(|ending| folder.join(format!("{id}{ending}")))
        .find(|path| path.is_file())
        .with_context(|| format!("{}/{id}_label.tiff is missing", folder.display()))
}

fn objects(path: &Path) -> Result<Objects> {
    let image = read_image(path)?;
    ensure!(
        image.channels() == 1,
        "{} has {} channels; object numbers need one",
        path.display(),
        image.channels()
    );
    let data = image.data.index_axis_move(Axis(0), 0);
    numbered(&data).with_context(|| {
        format!(
            "{} is no plane of object numbers (whole numbers from 0)",
            path.display()
        )
    })
}

fn plane(labels: &LabelMap, path: &Path) -> Result<ndarray::Array2<i16>> {
    let volume = labels_as_volume(labels)?;
    ensure!(
        volume.dim().0 == 1,
        "{} is a volume; cells are counted in pictures",
        path.display()
    );
    Ok(volume
        .index_axis_move(Axis(0), 0)
        .into_dimensionality::<Ix2>()?)
}

/// Over the cases that have it, each column.
fn means(rows: &[(String, Row)]) -> Vec<Column> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in rows.iter().flat_map(|r| &r.1) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
        .into_iter()
        .map(|name| {
            let column: Vec<f64> = rows
                .iter()
                .flat_map(|r| &r.1)
                .filter(|(n, _)| *n == name)
                .filter_map(|(_, v)| *v)
                .collect();
            (
                name,
                mean(column.iter().map(|v| Some(*v))),
                interval(&column),
            )
        })
        .collect()
}

fn words(args: &EvaluateSegmentationArgs) -> String {
    match args.protocol {
        ProtocolChoice::Classes => String::new(),
        ProtocolChoice::Instances => format!("objects match from IoU {} on, each once; images without objects have no F1, AP, PQ", args.iou),
        ProtocolChoice::UmambaAbdomen => "U-Mamba's abdomen scripts: NSD with a tolerance for each organ; aorta, IVC and esophagus between the reference's first and last slice, the last left out; 1 if an organ is in neither map".into(),
        ProtocolChoice::UmambaEndoscopy => "U-Mamba's endoscopy scripts: mean over the labels in either picture; NSD within 2 pixels".into(),
        ProtocolChoice::UmambaCell => format!("U-Mamba's cell script: 8-connected components of class 1, IoU from {}, objects at the border {}; without any prediction misses are not counted", args.iou, if args.border_cells { "counted" } else { "left out" }),
        ProtocolChoice::MambaUnet => "Mamba-UNet's validation: HD95 in voxels; 0 and 0 where nothing is predicted; left out where the reference alone is empty (the script stops there)".into(),
    }
}

fn table(rows: &[(String, Row)], args: &EvaluateSegmentationArgs) -> String {
    let means = means(rows);
    let width = means.iter().map(|m| m.0.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>9}  {:>17}\n", "", "mean", "95% interval");
    for (name, mean, sure) in means {
        let mean = mean.map_or("-".to_string(), |v| format!("{v:.4}"));
        let sure = sure.map_or("-".to_string(), |(l, h)| format!("{l:.4}..{h:.4}"));
        text += &format!("{name:width$}  {mean:>9}  {sure:>17}\n");
    }
    text + &format!("{} case(s); {}", rows.len(), words(args))
}

fn as_csv(rows: &[(String, Row)]) -> String {
    let names: Vec<String> = means(rows).into_iter().map(|m| m.0).collect();
    let fields: Vec<String> = names.iter().map(|n| csv_field(n)).collect();
    let mut text = format!("case,{}\n", fields.join(","));
    for (case, row) in rows {
        text += &csv_field(case);
        for name in &names {
            let value = row.iter().find(|(n, _)| n == name).and_then(|r| r.1);
            text.push(',');
            text += &value.map_or(String::new(), |v| v.to_string());
        }
        text.push('\n');
    }
    text
}

fn as_json(rows: &[(String, Row)], args: &EvaluateSegmentationArgs) -> Value {
    let row = |row: &Row| -> Value {
        let map: Map<String, Value> = row.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
        Value::Object(map)
    };
    let means: Map<String, Value> = means(rows)
        .into_iter()
        .map(|(name, mean, sure)| (name, json!({"mean": mean, "interval_95": sure})))
        .collect();
    json!({
        "protocol": words(args),
        "mean": means,
        "metric_per_case": rows
            .iter()
            .map(|(name, numbers)| json!({"file": name, "metrics": row(numbers)}))
            .collect::<Vec<_>>(),
    })
}
