//! Scores against nnU-Net's, MedPy's, MONAI's, DeepMind's, Mamba-UNet's and U-Mamba's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Axis, Ix2};
use serde_json::Value;
use vision_mamba::metrics::instances::{components, numbered};
use vision_mamba::metrics::overlap::counts;
use vision_mamba::metrics::protocol::{
    mamba_unet, mask_of, umamba_abdomen, umamba_cell, umamba_endoscopy, Convention, ABDOMEN,
};
use vision_mamba::metrics::summary::{summarise, Scored};
use vision_mamba::metrics::surface::{element_distances, voxel_distances, Connectivity};
use vision_mamba_datasets::preprocess::{labels_as_volume, volume_spacing};
use vision_mamba_datasets::{read_image, read_labels, DatasetJson};

use crate::arrays::Arrays;
use crate::checks::{Checks, Fallible, Worst};
use crate::planning;

/// Float64 on both sides.
const EXACT: f64 = 1e-9;
/// MONAI computes in float32.
const SINGLE: f64 = 2e-5;
/// Tables rounded to four decimals.
const ROUNDED: f64 = 5.1e-5;

pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let pairs = folder.join("pairs");
    if pairs.is_dir() {
        for file in files(&pairs, ".json")? {
            if let Some(name) = stem(&file, ".json")
                .strip_prefix("summary_")
                .map(str::to_owned)
            {
                checks.run(&format!("nnunet/{name}"), || nnunet(&pairs, &name));
            }
        }
    }
    if folder.join("surface_metrics.json").is_file() {
        let all = json(&folder.join("surface_metrics.json"))?;
        for (case, told) in all["pairs"].as_object().into_iter().flatten() {
            for (label, expected) in told["labels"].as_object().into_iter().flatten() {
                checks.run(&format!("surface/{case}/{label}"), || {
                    let (p, r) = pair(&pairs, case)?;
                    let label: i16 = label.parse()?;
                    let spacing = serde_json::from_value(told["spacing_array_order"].clone())?;
                    let (p, r) = (mask_of(p.view(), &[label]), mask_of(r.view(), &[label]));
                    surfaces(&p, &r, spacing, false, expected)
                });
            }
        }
        let arrays = Arrays::read(&folder.join("primitives.safetensors"))?;
        for (name, expected) in all["primitives"].as_object().into_iter().flatten() {
            checks.run(&format!("primitive/{name}"), || {
                primitive(&arrays, name, expected)
            });
        }
    }
    if folder.join("mamba_unet_val_metric.json").is_file() {
        checks.run("mamba_unet", || mamba(folder));
    }
    for (name, check) in [
        ("umamba_abdomen", abdomen as fn(&Path) -> Fallible<String>),
        ("umamba_endoscopy", endoscopy),
        ("umamba_cell", cell),
    ] {
        if folder.join(name).is_dir() {
            checks.run(name, || check(&folder.join(name)));
        }
    }
    Ok(())
}

/// Files of an ending, sorted.
fn files(folder: &Path, ending: &str) -> Fallible<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stem(path: &Path, ending: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(ending).unwrap_or(&name).to_owned()
}

/// JSON in which bare NaN stands for no number.
fn json(path: &Path) -> Fallible<Value> {
    let text = std::fs::read_to_string(path)?;
    Ok(serde_json::from_str(&text.replace(": NaN", ": null"))?)
}

fn volume(path: &Path) -> Fallible<Array3<i16>> {
    Ok(labels_as_volume(&read_labels(path)?)?)
}

fn pair(pairs: &Path, case: &str) -> Fallible<(Array3<i16>, Array3<i16>)> {
    let file = format!("{case}.nii.gz");
    Ok((
        volume(&pairs.join("pred").join(&file))?,
        volume(&pairs.join("ref").join(&file))?,
    ))
}

/// nnU-Net's summary of the pairs with one of the descriptions beside them.
fn nnunet(pairs: &Path, name: &str) -> Fallible<String> {
    let theirs = json(&pairs.join(format!("summary_{name}.json")))?;
    // the descriptions name no channels that matter here
    let info = DatasetJson::read(&pairs.join(format!("{name}.json")))?;
    let classes = info.foreground();
    let values: Vec<Vec<i16>> = classes.iter().map(|c| c.1.clone()).collect();
    let mut cases = Vec::new();
    for file in files(&pairs.join("ref"), ".nii.gz")? {
        let case = stem(&file, ".nii.gz");
        let (p, r) = pair(pairs, &case)?;
        cases.push(Scored {
            prediction: case.clone(),
            reference: case,
            counts: counts(&p.into_dyn(), &r.into_dyn(), &values, info.ignore_label),
            distances: Vec::new(),
            voxel_ml: None,
        });
    }
    let ours = serde_json::to_value(summarise(&cases, &classes, Convention::Nnunet, None))?;
    let mut worst = Worst::default();
    for key in ["foreground_mean", "mean"] {
        planning::compare(&mut worst, key, &ours[key], &theirs[key], EXACT);
    }
    let file_of = |row: &Value| {
        let path = row["reference_file"].as_str().unwrap_or_default();
        stem(Path::new(path), ".nii.gz")
    };
    let rows = |v: &Value| -> BTreeMap<String, Value> {
        let rows = v["metric_per_case"].as_array().cloned().unwrap_or_default();
        rows.iter()
            .map(|r| (file_of(r), r["metrics"].clone()))
            .collect()
    };
    let (ours, theirs) = (rows(&ours), rows(&theirs));
    worst.same(
        "cases",
        &ours.keys().collect::<Vec<_>>(),
        &theirs.keys().collect(),
    );
    for (case, theirs) in &theirs {
        if let Some(ours) = ours.get(case) {
            planning::compare(&mut worst, case, ours, theirs, EXACT);
        }
    }
    worst.verdict()
}

/// A number, or one of JSON's words for what is none.
fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        // the reference stops
        Some(_) => None,
        None => value.as_f64(),
    }
}

fn surfaces(
    prediction: &Array3<bool>,
    reference: &Array3<bool>,
    spacing: [f64; 3],
    flat: bool,
    expected: &Value,
) -> Fallible<String> {
    let (p, r) = (prediction.view(), reference.view());
    let by_voxels = |connectivity| voxel_distances(p, r, spacing, connectivity, flat);
    let (faces, edges) = (
        by_voxels(Connectivity::Faces),
        by_voxels(Connectivity::Edges),
    );
    let voxels = voxel_distances(p, r, [1.0; 3], Connectivity::Faces, flat);
    let elements = element_distances(p, r, spacing, flat);
    let present = |m: &Array3<bool>| m.iter().any(|v| *v);
    let (predicted, exists) = (present(prediction), present(reference));
    // nothing is left out of a mean here: what a convention leaves out is NaN, what MedPy refuses is checked to be so
    let nan = |v: Option<f64>| v.unwrap_or(f64::NAN);
    let monai = |v: Option<f64>| match (predicted, exists) {
        (true, true) => nan(v),
        (false, false) => f64::NAN,
        _ => f64::INFINITY,
    };
    let mut worst = Worst::default();
    for (key, theirs) in expected.as_object().ok_or("no object")? {
        let tolerance = key
            .split_once('@')
            .map(|(_, t)| t.parse::<f64>())
            .transpose()?;
        let name = key.split('@').next().unwrap_or(key);
        let at = |t: Option<f64>| t.ok_or_else(|| format!("{key} has no tolerance"));
        let medpy = match name {
            "medpy_hd" => Some(faces.hd()),
            "medpy_hd95" => Some(faces.hd95()),
            "medpy_asd" => Some(faces.asd()),
            "medpy_assd" => Some(faces.assd()),
            "medpy_asd_ref_to_pred" => Some(faces.asd_back()),
            "medpy_hd_conn2" => Some(edges.hd()),
            "medpy_hd95_conn2" => Some(edges.hd95()),
            "medpy_asd_conn2" => Some(edges.asd()),
            "medpy_assd_conn2" => Some(edges.assd()),
            "medpy_hd95_voxels" => Some(voxels.hd95()),
            _ => None,
        };
        if let Some(ours) = medpy {
            match (ours, number(theirs)) {
                (Some(ours), Some(theirs)) => worst.number(key, ours, theirs, EXACT),
                (ours, theirs) => worst.same(key, &ours, &theirs),
            }
            continue;
        }
        if name.contains("asd_gt_to_pred") {
            let (forth, back) = elements.asd();
            for (ours, theirs) in [forth, back]
                .iter()
                .zip(theirs.as_array().into_iter().flatten())
            {
                let theirs = number(theirs).ok_or("no number")?;
                worst.number(key, *ours, theirs, EXACT);
            }
            continue;
        }
        let (ours, allowed) = match name {
            "monai_hd" => (monai(faces.hd()), SINGLE),
            // of a single direction there is no percentile to take the larger of
            "monai_hd95" => (nan(faces.hd95_directed()), SINGLE),
            "monai_asd_pred_to_ref" => (monai(faces.asd()), SINGLE),
            "monai_assd" => (monai(faces.assd()), SINGLE),
            "monai_nsd" => (nan(faces.nsd(at(tolerance)?)), SINGLE),
            "monai_nsd_subvoxels" => (nan(elements.nsd(at(tolerance)?)), SINGLE),
            "deepmind_hd100" | "umamba_hd100" => (elements.hd(100.0), EXACT),
            "deepmind_hd95" | "umamba_hd95" => (elements.hd(95.0), EXACT),
            "deepmind_nsd" | "umamba_nsd" => (nan(elements.nsd(at(tolerance)?)), EXACT),
            "medpy_dc"
            | "medpy_jc"
            | "deepmind_dice"
            | "monai_dice"
            | "monai_iou"
            | "monai_dice_ignore_empty_false" => (
                overlap(name, prediction, reference, exists, predicted),
                if name.starts_with("monai") {
                    SINGLE
                } else {
                    EXACT
                },
            ),
            "array" | "label" | "spacing_array_order" | "note" => continue,
            other => return Err(format!("the score {other} is not known").into()),
        };
        worst.number(key, ours, number(theirs).ok_or("no number")?, allowed);
    }
    worst.verdict()
}

fn overlap(
    name: &str,
    prediction: &Array3<bool>,
    reference: &Array3<bool>,
    exists: bool,
    predicted: bool,
) -> f64 {
    let map = |m: &Array3<bool>| m.mapv(i16::from).into_dyn();
    let c = counts(&map(prediction), &map(reference), &[vec![1]], None)[0];
    let neither = !exists && !predicted;
    let value = match name {
        "monai_dice" => Convention::Monai.overlap(&c).0,
        "monai_iou" => Convention::Monai.overlap(&c).1,
        // its way of counting a class that is in neither map
        "monai_dice_ignore_empty_false" if neither => Some(1.0),
        "medpy_dc" => Convention::Medpy.overlap(&c).0,
        "medpy_jc" => Convention::Medpy.overlap(&c).1,
        _ => c.dice(),
    };
    value.unwrap_or(f64::NAN)
}

/// One of the simple shapes, or a label of a picture.
fn primitive(arrays: &Arrays, name: &str, expected: &Value) -> Fallible<String> {
    let label = expected["label"].as_f64().unwrap_or(1.0);
    let array = expected["array"].as_str().unwrap_or(name);
    let array = array.split([':', '@']).next().unwrap_or(array);
    let spacing: Vec<f64> = serde_json::from_value(expected["spacing_array_order"].clone())?;
    let flat = spacing.len() == 2;
    let mask = |suffix: &str| -> Fallible<Array3<bool>> {
        let values = arrays
            .get(&format!("{array}.{suffix}"))?
            .mapv(|v| v == label);
        let values = match flat {
            true => values.insert_axis(Axis(0)),
            false => values,
        };
        Ok(values.into_dimensionality()?)
    };
    let spacing = match spacing[..] {
        [y, x] => [1.0, y, x],
        [z, y, x] => [z, y, x],
        _ => return Err("spacing of neither two nor three axes".into()),
    };
    surfaces(&mask("pred")?, &mask("ref")?, spacing, flat, expected)
}

fn mamba(folder: &Path) -> Fallible<String> {
    let mut worst = Worst::default();
    let all = json(&folder.join("mamba_unet_val_metric.json"))?;
    for (name, theirs) in all.as_object().ok_or("no object")? {
        let (case, label) = name.split_once('.').ok_or("no label")?;
        let label: i16 = label.parse()?;
        let (p, r) = pair(&folder.join("pairs"), case)?;
        let (p, r) = (mask_of(p.view(), &[label]), mask_of(r.view(), &[label]));
        let ours = mamba_unet(p.view(), r.view(), false);
        match (ours, theirs.as_array()) {
            (Some((dice, hd95)), Some(theirs)) => {
                for (ours, theirs) in [dice, hd95].iter().zip(theirs) {
                    worst.number(name, *ours, theirs.as_f64().ok_or("no number")?, EXACT);
                }
            }
            (ours, theirs) => worst.same(name, &ours.is_none(), &theirs.is_none()),
        }
    }
    worst.verdict()
}

/// Names of columns, and rows by the first column.
type Table = (Vec<String>, BTreeMap<String, Vec<String>>);

fn csv(path: &Path) -> Fallible<Table> {
    let text = std::fs::read_to_string(path)?;
    // lists in quotes hold commas of their own
    let split = |line: &str| -> Vec<String> {
        let mut quoted = false;
        let parts = line.split(|c: char| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        parts.map(|p| p.trim().to_owned()).collect()
    };
    let mut lines = text.lines().map(split);
    let columns = lines.next().ok_or("an empty table")?;
    Ok((columns, lines.map(|row| (row[0].clone(), row)).collect()))
}

fn abdomen(folder: &Path) -> Fallible<String> {
    let mut worst = Worst::default();
    let (columns, dice) = csv(&folder.join("DSC.csv"))?;
    let (_, nsd) = csv(&folder.join("NSD.csv"))?;
    let organs: Vec<String> = ABDOMEN.iter().map(|o| format!("{}_DSC", o.0)).collect();
    worst.same("organs", &columns[1..].to_vec(), &organs);
    for (case, row) in &dice {
        let file = |sub: &str| folder.join(sub).join(case);
        let (p, r) = (volume(&file("seg"))?, volume(&file("gt"))?);
        let spacing = volume_spacing(&read_labels(&file("gt"))?.geometry);
        let ours = umamba_abdomen(p.view(), r.view(), spacing);
        for (i, (organ, (d, n))) in organs.iter().zip(ours).enumerate() {
            worst.number(&format!("{case} {organ}"), d, row[i + 1].parse()?, ROUNDED);
            worst.number(
                &format!("{case} {organ} NSD"),
                n,
                nsd[case][i + 1].parse()?,
                ROUNDED,
            );
        }
    }
    worst.verdict()
}

fn endoscopy(folder: &Path) -> Fallible<String> {
    let mut worst = Worst::default();
    let (_, dice) = csv(&folder.join("DSC.csv"))?;
    let (_, nsd) = csv(&folder.join("NSD.csv"))?;
    for (case, row) in &dice {
        let file = |sub: &str| folder.join(sub).join(case);
        let (p, r) = (volume(&file("seg"))?, volume(&file("gt"))?);
        let (d, n) = umamba_endoscopy(p.view(), r.view());
        worst.number(&format!("{case} DSC"), d, row[1].parse()?, ROUNDED);
        worst.number(&format!("{case} NSD"), n, nsd[case][1].parse()?, ROUNDED);
    }
    worst.verdict()
}

fn cell(folder: &Path) -> Fallible<String> {
    let mut worst = Worst::default();
    for table in files(folder, ".csv")? {
        // `without_border_cells-0.5.csv`
        let name = stem(&table, ".csv");
        let threshold: f64 = name.rsplit('-').next().ok_or("no threshold")?.parse()?;
        let border = name.starts_with("with_");
        let (columns, rows) = csv(&table)?;
        for (case, row) in rows {
            let prediction = volume(&folder.join("seg").join(&case))?.index_axis_move(Axis(0), 0);
            let id = stem(Path::new(&case), ".png");
            let reference = read_image(&folder.join("gt").join(format!("{id}_label.tiff")))?;
            let reference = numbered(&reference.data.index_axis_move(Axis(0), 0));
            let reference = reference.ok_or("no plane of numbers")?;
            let s = umamba_cell(&reference, prediction.view(), threshold, border);
            let m = s.matches;
            for (column, theirs) in columns.iter().zip(&row).skip(1) {
                let ours = match column.as_str() {
                    "true_num" => m.reference as f64,
                    "pred_num" => m.predicted as f64,
                    "correct_num(TP)" => m.tp as f64,
                    "missed_num(FN)" => s.fn_ as f64,
                    "wrong_num(FP)" => s.fp as f64,
                    "precision" => m.precision(),
                    "recall" => m.recall(),
                    "dice" => s.dice,
                    "F1" => s.f1,
                    other => return Err(format!("the column {other} is not known").into()),
                };
                let allowed = if column.contains("num") { 0.0 } else { ROUNDED };
                worst.number(
                    &format!("{name} {case} {column}"),
                    ours,
                    theirs.parse()?,
                    allowed,
                );
            }
        }
    }
    let stored = Arrays::read(&folder.join("components.safetensors"))?;
    for name in stored.names() {
        let id = name.split('.').next().unwrap_or(name);
        let prediction = volume(&folder.join("seg").join(format!("{id}.png")))?;
        let prediction = prediction
            .index_axis_move(Axis(0), 0)
            .into_dimensionality::<Ix2>()?;
        let ours = components(prediction.mapv(|v| v == 1).view());
        let theirs = stored.get(name)?;
        // numbers may be given in another order: pairs of numbers must be one to one
        let mut pairs: Vec<(u32, u64)> = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| (*a, *b as u64))
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        let mut firsts: Vec<u32> = pairs.iter().map(|p| p.0).collect();
        let mut seconds: Vec<u64> = pairs.iter().map(|p| p.1).collect();
        firsts.dedup();
        seconds.sort_unstable();
        seconds.dedup();
        worst.same(
            name,
            &(firsts.len(), seconds.len()),
            &(pairs.len(), pairs.len()),
        );
    }
    worst.verdict()
}
