//! Single rules: topology, plans, cropping, normalisation, resampling, windows, schedule, folds.

use std::path::Path;

use ndarray::{Array3, Array4, Axis, Ix3, Ix4};
use serde_json::Value;
use vision_mamba::cli::args::ScheduleChoice;
use vision_mamba::engine::schedule::Schedule;
use vision_mamba::inference::sliding_window::{importance, padding, positions};
use vision_mamba::losses::deep_supervision_weights;
use vision_mamba_datasets::planner::{feature_values, plan, Request, Topology};
use vision_mamba_datasets::preprocess::resample::{separate_axis, Order};
use vision_mamba_datasets::preprocess::{
    crop_to_body, new_size, normalise_channel, resample_image, resample_labels, LabelRule, Regrid,
    Resampling,
};
use vision_mamba_datasets::split::five_folds;
use vision_mamba_datasets::{DatasetJson, Fingerprint, Intensity, Normalisation, Plan, Planner};

use crate::arrays::{compare, Arrays};
use crate::checks::{Checks, Fallible, Worst};
use crate::planning;

/// Resampled values; both sides compute in float64 and store float32.
const RESAMPLED: f64 = 1e-6;
/// Normalised values: the reference's mean and deviation are float32's.
const NORMALISED: f64 = 1e-5;

pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let rules = json(&folder.join("rules.json"))?;
    for (name, rule) in rules.as_object().ok_or("rules.json is no object")? {
        // nnU-Net enlarges a patch before it turns it; here the turned patch is sampled straight from the case, so there is none
        if name == "augmentation_initial_patch" {
            continue;
        }
        checks.run(&format!("rules/{name}"), || self::rule(name, rule));
    }
    planners(folder, checks)?;
    checks.run("feature_map_estimates", || estimates(folder));
    checks.run("crop_to_nonzero", || cropping(folder));
    checks.run("normalization", || normalisation(folder));
    checks.run("gaussian", || gaussian(folder));
    resampling(folder, checks)
}

fn json(path: &Path) -> Fallible<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

fn numbers(value: &Value) -> Fallible<Vec<f64>> {
    Ok(serde_json::from_value(value.clone())?)
}

fn three(value: &Value) -> Fallible<[f64; 3]> {
    Ok(serde_json::from_value(value.clone())?)
}

fn sizes(value: &Value) -> Fallible<Vec<usize>> {
    Ok(serde_json::from_value(value.clone())?)
}

fn rule(name: &str, rows: &Value) -> Fallible<String> {
    let mut worst = Worst::default();
    if name == "crossval_split" {
        let ids: Vec<String> = serde_json::from_value(rows["identifiers"].clone())?;
        let ours = serde_json::to_value(five_folds(&ids)?)?;
        worst.same(name, &ours, &rows["splits"]);
        return worst.verdict();
    }
    for (number, row) in rows.as_array().ok_or("no list")?.iter().enumerate() {
        let at = |key: &str| format!("[{number}].{key}");
        match name {
            "separate_z" => {
                let axis =
                    separate_axis(three(&row["spacing"])?, three(&row["new_spacing"])?, None);
                worst.same(&at("do"), &Value::from(axis.is_some()), &row["do"]);
                worst.same(&at("axis"), &serde_json::to_value(axis)?, &row["axis"]);
            }
            "compute_new_shape" => {
                let shape: [usize; 3] = serde_json::from_value(row["shape"].clone())?;
                let new = new_size(shape, three(&row["spacing"])?, three(&row["new_spacing"])?);
                worst.same(
                    &at("new_shape"),
                    &serde_json::to_value(new)?,
                    &row["new_shape"],
                );
            }
            "pool_and_conv_props" => {
                let t = Topology::new(&numbers(&row["spacing"])?, &numbers(&row["patch_size_in"])?);
                for (key, ours) in [
                    ("num_pool_per_axis", serde_json::to_value(&t.pools)?),
                    ("strides", serde_json::to_value(&t.strides)?),
                    ("kernel_sizes", serde_json::to_value(&t.kernel_sizes)?),
                    ("patch_size_out", serde_json::to_value(&t.patch)?),
                    ("divisible_by", serde_json::to_value(t.divisor())?),
                ] {
                    worst.same(&at(key), &ours, &row[key]);
                }
            }
            "sliding_window_steps" => {
                let (image, tile) = (sizes(&row["image"])?, sizes(&row["tile"])?);
                let step = row["step"].as_f64().ok_or("no step")?;
                let ours: Vec<Vec<i64>> = image
                    .iter()
                    .zip(&tile)
                    .map(|(n, t)| positions(*n as i64, *t as i64, step))
                    .collect();
                worst.same(&at("steps"), &serde_json::to_value(ours)?, &row["steps"]);
            }
            "poly_lr" => {
                let epochs = row["max_steps"].as_u64().ok_or("no max_steps")?;
                let schedule = Schedule {
                    kind: ScheduleChoice::Poly,
                    base_lr: row["initial_lr"].as_f64().ok_or("no initial_lr")?,
                    warmup_epochs: 0.0,
                    epochs,
                    steps_per_epoch: 1,
                    power: row["exponent"].as_f64().ok_or("no exponent")?,
                };
                for (step, theirs) in numbers(&row["lr_at_step"])?.iter().enumerate() {
                    let ours = schedule.lr(step as u64);
                    worst.number(&at(&format!("lr_at_step[{step}]")), ours, *theirs, 1e-12);
                }
            }
            "deep_supervision" => {
                let theirs = numbers(&row["weights"])?;
                let ours = deep_supervision_weights(theirs.len());
                for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                    worst.number(&at(&format!("weights[{i}]")), *ours, *theirs, 1e-12);
                }
            }
            "pad_nd_image" => {
                let (shape, new) = (sizes(&row["shape"])?, sizes(&row["new"])?);
                let spatial = &shape[shape.len() - new.len()..];
                let mut ours: Vec<[usize; 2]> = shape[..shape.len() - new.len()]
                    .iter()
                    .map(|n| [0, *n])
                    .collect();
                for (n, tile) in spatial.iter().zip(&new) {
                    let (before, _) = padding(*n as i64, *tile as i64);
                    ours.push([before as usize, before as usize + n]);
                }
                worst.same(
                    &at("where_the_image_lands"),
                    &serde_json::to_value(ours)?,
                    &row["where_the_image_lands"],
                );
            }
            other => return Err(format!("the rule {other} is not known").into()),
        }
    }
    worst.verdict()
}

fn planners(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let cases = json(&folder.join("planner.json"))?;
    let old = json(&folder.join("planner_umamba.json")).unwrap_or_default();
    for (name, case) in cases.as_object().ok_or("planner.json is no object")? {
        let kinds = [
            ("default", Planner::Default, case.get("default")),
            ("ResEncM", Planner::ResEncM, case.get("ResEncM")),
            ("umamba", Planner::UMamba, old.get(name)),
        ];
        for (kind, planner, theirs) in kinds {
            let Some(theirs) = theirs.filter(|t| !t.is_null()) else {
                continue;
            };
            checks.run(&format!("planner/{name}/{kind}"), || {
                one_plan(case, planner, theirs)
            });
        }
    }
    Ok(())
}

fn one_plan(case: &Value, planner: Planner, theirs: &Value) -> Fallible<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("dataset.json");
    std::fs::write(&file, case["dataset_json"].to_string())?;
    let info = DatasetJson::read(&file)?;
    let fingerprint: Fingerprint = serde_json::from_value(case["fingerprint"].clone())?;
    let ours = plan(&Request {
        dataset_name: "made-up",
        info: &info,
        fingerprint: &fingerprint,
        planner,
        memory_gb: None,
        spacing: None,
    });
    let theirs = match theirs["configurations"]["2d"].get("UNet_class_name") {
        None => theirs.clone(),
        // their older, flat form goes through the reader of plans, which adds what it leaves out
        Some(_) => {
            let mut complete = theirs.clone();
            complete["dataset_name"] = "made-up".into();
            for (name, c) in complete["configurations"]
                .as_object_mut()
                .ok_or("no configurations")?
            {
                if c.get("inherits_from").is_none() {
                    c["data_identifier"] = format!("nnUNetPlans_{name}").into();
                }
            }
            let read =
                Plan::from_json(complete).map_err(|(field, problem)| field + ": " + &problem)?;
            let read = read.to_json();
            serde_json::json!({
                "transpose_forward": read["transpose_forward"],
                "transpose_backward": read["transpose_backward"],
                "configurations": read["configurations"],
            })
        }
    };
    let mut worst = Worst::default();
    let ours_json = ours.to_json();
    let names = |v: &Value| -> Vec<String> {
        let map = v["configurations"].as_object();
        let mut names: Vec<String> = map.map(|m| m.keys().cloned().collect()).unwrap_or_default();
        names.sort();
        names
    };
    worst.same("configurations", &names(&ours_json), &names(&theirs));
    planning::compare(&mut worst, "", &ours_json, &theirs, 1e-12);
    worst.verdict()
}

fn estimates(folder: &Path) -> Fallible<String> {
    let mut worst = Worst::default();
    let rows = json(&folder.join("feature_map_estimates.json"))?;
    for (number, row) in rows.as_array().ok_or("no list")?.iter().enumerate() {
        let strides: Vec<Vec<usize>> = serde_json::from_value(row["strides"].clone())?;
        let ours = feature_values(
            &sizes(&row["patch"])?,
            &strides,
            &sizes(&row["features"])?,
            &vec![2; strides.len()],
            2,
            false,
            row["out"].as_u64().ok_or("no out")? as usize,
        );
        worst.same(&format!("[{number}]"), &Value::from(ours), &row["estimate"]);
    }
    worst.verdict()
}

fn cropping(folder: &Path) -> Fallible<String> {
    let arrays = Arrays::read(&folder.join("crop_to_nonzero.safetensors"))?;
    let mut worst = Worst::default();
    for case in arrays.names().filter_map(|n| n.strip_suffix(".data")) {
        let data: Array4<f32> = arrays.of::<_, Ix4>(&format!("{case}.data"))?;
        let seg: Array4<i16> = arrays.of::<_, Ix4>(&format!("{case}.seg"))?;
        let seg = seg.index_axis_move(Axis(0), 0);
        for (seg, suffix) in [(Some(seg.view()), ""), (None, "_noseg")] {
            let cropped = crop_to_body(data.view(), seg);
            let named = format!("{case}.cropped_seg{suffix}");
            let labels = cropped.seg.insert_axis(Axis(0));
            compare(&mut worst, &named, &labels, arrays.get(&named)?, 0.0);
            let named = format!("{case}.cropped");
            compare(&mut worst, &named, &cropped.data, arrays.get(&named)?, 0.0);
        }
    }
    worst.verdict()
}

fn normalisation(folder: &Path) -> Fallible<String> {
    let arrays = Arrays::read(&folder.join("normalization.safetensors"))?;
    let seg: Array3<i16> = arrays.of::<_, Ix3>("seg")?;
    let told: Value = serde_json::from_str(arrays.metadata("ct_properties")?)?;
    let given = |key: &str| told[key].as_f64().ok_or_else(|| format!("no {key}"));
    let intensity = Intensity {
        max: 0.0,
        mean: given("mean")?,
        median: 0.0,
        min: 0.0,
        percentile_00_5: given("percentile_00_5")?,
        percentile_99_5: given("percentile_99_5")?,
        std: given("std")?,
    };
    let mut worst = Worst::default();
    for (source, result, how, masked) in [
        ("image", "ct", Normalisation::Ct, false),
        ("image", "nonorm", Normalisation::None, false),
        ("image", "rescale01", Normalisation::RescaleTo01, false),
        (
            "constant",
            "rescale01_constant",
            Normalisation::RescaleTo01,
            false,
        ),
        ("rgb", "rgb01", Normalisation::RgbTo01, false),
        ("constant", "zscore_constant", Normalisation::ZScore, false),
        ("image", "zscore_mask", Normalisation::ZScore, true),
        ("image", "zscore_nomask", Normalisation::ZScore, false),
    ] {
        let mut image: Array3<f32> = arrays.of::<_, Ix3>(source)?;
        normalise_channel(
            image.view_mut(),
            how,
            Some(&intensity),
            masked.then(|| seg.view()),
        )?;
        compare(&mut worst, result, &image, arrays.get(result)?, NORMALISED);
    }
    worst.verdict()
}

fn gaussian(folder: &Path) -> Fallible<String> {
    let arrays = Arrays::read(&folder.join("gaussian.safetensors"))?;
    let mut worst = Worst::default();
    for name in arrays.names().filter(|n| n.ends_with(".scale10.f32")) {
        let theirs = arrays.get(name)?;
        let tile: Vec<i64> = theirs.shape().iter().map(|n| *n as i64).collect();
        let map = importance(&tile);
        let ours: Vec<f32> = Vec::try_from(map.flatten(0, -1))?;
        let ours = ndarray::ArrayD::from_shape_vec(theirs.shape(), ours)?;
        compare(&mut worst, name, &ours, theirs, 1e-7);
    }
    worst.verdict()
}

fn resampling(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let arrays = Arrays::read(&folder.join("resampling.safetensors"))?;
    let cases = json(&folder.join("resampling_cases.json"))?;
    for (name, case) in cases.as_object().ok_or("no object")? {
        checks.run(&format!("resampling/{name}"), || {
            one_resampling(&arrays, name, case)
        });
    }
    Ok(())
}

fn one_resampling(arrays: &Arrays, name: &str, case: &Value) -> Fallible<String> {
    let mut worst = Worst::default();
    let (current, new) = (three(&case["spacing"])?, three(&case["new_spacing"])?);
    let size: [usize; 3] = serde_json::from_value(case["new_shape"].clone())?;
    let data: Array4<f32> = arrays.of::<_, Ix4>(&format!("{name}.data"))?;
    let spatial = [data.shape()[1], data.shape()[2], data.shape()[3]];
    worst.same(
        "compute_new_shape",
        &serde_json::to_value(new_size(spatial, current, new))?,
        &case["compute_new_shape"],
    );
    let seg: Array4<i16> = arrays.of::<_, Ix4>(&format!("{name}.seg"))?;
    let seg = seg.index_axis_move(Axis(0), 0);
    let how = |order, order_z, force| Resampling {
        is_seg: false,
        order,
        order_z,
        force_separate_z: force,
    };
    for (key, how) in [
        ("data_o3", how(3, 0, None)),
        ("data_o1", how(1, 0, None)),
        ("data_o3_forced_3d", how(3, 0, Some(false))),
        ("data_o1_oz1", how(1, 1, None)),
    ] {
        let Some(theirs) = arrays.find(&format!("{name}.{key}")) else {
            continue;
        };
        let ours = resample_image(data.clone(), &Regrid::new(size, current, new, &how), &how);
        compare(&mut worst, key, &ours, theirs, RESAMPLED);
    }
    for (key, order, rule) in [
        ("seg_o1", 1, LabelRule::LargestShare),
        ("seg_o0", 0, LabelRule::LargestShare),
        ("seg_o1_legacy", 1, LabelRule::LastHalf),
    ] {
        let Some(theirs) = arrays.find(&format!("{name}.{key}")) else {
            continue;
        };
        let how = how(order, 0, None);
        let to = Regrid::new(size, current, new, &how);
        let ours = resample_labels(seg.clone(), &to, &how, rule).insert_axis(Axis(0));
        if Order::from_number(order) == Some(Order::Nearest) {
            compare(&mut worst, key, &ours, theirs, 0.0);
            continue;
        }
        worst.same(key, &ours.shape(), &theirs.shape());
        let differing = ours
            .iter()
            .zip(theirs)
            .filter(|(a, b)| f64::from(**a) != **b);
        worst.same(
            &format!("{key}: voxels that differ"),
            &differing.count(),
            &0,
        );
    }
    worst.verdict()
}
