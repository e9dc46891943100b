//! Prediction as a person asks for it: many cases at once, one of them broken; ensembles and probabilities; other formats; the choice of the
//! best network and its postprocessing.

#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::Path;

use ndarray::{Array3, Array4, Axis};
use serde_json::Value;
use util::{arg, run, Outcome, FEW_STEPS, QUICK};
use vision_mamba_datasets::{
    probabilities, read_image, read_labels, restore, write_image, write_labels, Column, Decision,
    Geometry, Plan, Restoring, SourceGrid,
};

/// Runs of two folds in a folder.
fn two_folds(dataset: &Path, runs: &Path, options: &[&str]) {
    for fold in ["0", "1"] {
        let out = runs.join(format!("fold_{fold}"));
        let args = ["train", arg(dataset), "--out", arg(&out), "--fold", fold];
        run(&[&args[..], options].concat()).expect_success();
    }
}

fn predict(runs: &[&Path], input: &Path, output: &Path, more: &[&str]) -> Outcome {
    let mut args = vec!["predict", "-i", arg(input), "-o", arg(output)];
    for one in runs {
        args.extend(["--run", arg(one)]);
    }
    args.extend(more);
    run(&args)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn many_cases_ensembles_formats_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let (dataset, runs) = (util::png_dataset(dir.path(), 6), dir.path().join("runs"));
    two_folds(&dataset, &runs, &[&QUICK[..], &FEW_STEPS].concat());
    let (zero, one) = (runs.join("fold_0"), runs.join("fold_1"));
    let images = dataset.join("imagesTs");
    let out = |name: &str| dir.path().join(name);

    // A broken case between good ones: named, the others as if it were not there, side by side or one by one.
    let mixed = out("mixed");
    fs::create_dir(&mixed).unwrap();
    for name in names(&images) {
        fs::copy(images.join(&name), mixed.join(&name)).unwrap();
    }
    fs::write(mixed.join("disc_006a_0000.png"), b"\x89PNG cut short").unwrap();
    for more in [&[][..], &["--one-by-one"]] {
        let pred = out(&format!("pred{}", more.len()));
        let outcome = predict(&[&zero], &mixed, &pred, more);
        assert!(
            outcome.stderr.contains("warning: disc_006a"),
            "{}",
            outcome.stderr
        );
        outcome.expect_failure(1, &["1 of 3", "disc_006a"]);
        assert_eq!(
            names(&pred),
            ["dataset.json", "disc_006.png", "disc_007.png"]
        );
    }
    let same = |a: &Path, b: &Path| fs::read(a).unwrap() == fs::read(b).unwrap();
    for name in ["disc_006.png", "disc_007.png"] {
        assert!(same(&out("pred0").join(name), &out("pred1").join(name)));
    }

    // A folder of folds and the data set's folder say the same as the runs and imagesTs.
    let both = out("both");
    predict(&[&zero, &one], &images, &both, &["--save-probabilities"]).expect_success();
    let folder = out("folder");
    predict(&[&runs], &dataset, &folder, &["--save-probabilities"]).expect_success();
    for id in ["disc_006", "disc_007"] {
        let values = probabilities::read(&both.join(format!("{id}.npz"))).unwrap();
        let label = read_labels(&both.join(format!("{id}.png"))).unwrap();
        assert_eq!(values.dim(), (3, 1, 38, 44));
        assert_eq!(
            values,
            probabilities::read(&folder.join(format!("{id}.npz"))).unwrap()
        );
        for (values, label) in values
            .index_axis(Axis(1), 0)
            .lanes(Axis(0))
            .into_iter()
            .zip(&label.data)
        {
            assert!((values.sum() - 1.0).abs() < 1e-5);
            assert!(values.iter().all(|v| *v <= values[*label as usize]));
        }
    }

    // Mirroring along all of a network's axes is what it was trained with.
    let axes = out("axes");
    predict(&[&zero], &images, &axes, &["--mirror", "0,1"]).expect_success();
    assert!(same(
        &axes.join("disc_006.png"),
        &out("pred0").join("disc_006.png")
    ));
    predict(&[&zero], &images, &axes, &["--mirror", "2"])
        .expect_failure(2, &["--mirror", "axis 2"]);

    // Another format than the run's, where it is the only one; its geometry is kept.
    let nrrd = out("nrrd");
    fs::create_dir(&nrrd).unwrap();
    let mut image = read_image(&images.join("disc_006_0000.png")).unwrap();
    image.geometry =
        Geometry::new(vec![0.5, 0.25], vec![3.0, 4.0], vec![0.0, 1.0, -1.0, 0.0]).unwrap();
    write_image(&nrrd.join("disc_0000.nrrd"), &image).unwrap();
    let pred = out("nrrd_pred");
    predict(&[&zero], &nrrd, &pred, &[]).expect_success();
    let label = read_labels(&pred.join("disc.nrrd")).unwrap();
    assert_eq!(label.geometry.spacing, [0.5, 0.25]);
    assert_eq!(label.geometry.direction, [0.0, 1.0, -1.0, 0.0]);
    assert_eq!(
        label.data.len(),
        read_labels(&out("pred0").join("disc_006.png"))
            .unwrap()
            .data
            .len()
    );

    // An output that cannot be written to is one error, before anything is predicted.
    fs::write(out("file"), b"").unwrap();
    predict(&[&zero], &images, &out("file").join("x"), &[]).expect_failure(1, &["file"]);

    best(&dataset, &runs, dir.path());
}

/// `find-best` on the same runs, with label maps put in the place of what they predicted.
fn best(dataset: &Path, runs: &Path, root: &Path) {
    let mut held_out = Vec::new();
    for fold in ["fold_0", "fold_1"] {
        let validation = runs.join(fold).join("validation");
        let config = util::json(&runs.join(fold).join("config.json"));
        for id in config["validation_ids"].as_array().unwrap() {
            let id = id.as_str().unwrap();
            let mut label = read_labels(&dataset.join(format!("labelsTr/{id}.png"))).unwrap();
            // a stray piece of the disc in a corner that the disc leaves free
            for at in [[37, 43], [37, 42]] {
                label.data[at] = 1;
            }
            write_labels(&validation.join(format!("{id}.png")), &label).unwrap();
            held_out.push(validation.join(format!("{id}.png")));
        }
    }
    let other = root.join("enc");
    let options = "--model umamba_enc_tiny_2d --epochs 1 --batch-size 2 --validation-steps 1 --patch-size 32x32 --steps-per-epoch 1";
    two_folds(dataset, &other, &options.split(' ').collect::<Vec<_>>());
    let find_best = |second: &Path, more: &[&str]| {
        let runs = ["--run", arg(runs), "--run", arg(second), "--out", arg(root)];
        run(&[&["find-best"], &runs[..], more].concat())
    };
    let json = |more: &[&str]| -> Value {
        let told = find_best(&other, &[&["--json"], more].concat()).expect_success();
        serde_json::from_str(&told.stdout).unwrap()
    };
    let found = json(&[]);
    assert_eq!(found["best"], "umamba_bot_tiny_2d/2d");
    assert_eq!(found["cases"], held_out.len());
    assert_eq!(found["candidates"].as_array().unwrap().len(), 2);
    assert_eq!(
        found["members"],
        serde_json::json!(["runs/fold_0", "runs/fold_1"])
    );
    // the foreground as a whole helps already, and leaves nothing to the classes
    assert_eq!(
        found["postprocessing"]["keep_largest"],
        serde_json::json!([[1, 2]])
    );
    assert_eq!(found["dice_postprocessed"]["mean"], 1.0);
    let written = fs::read_to_string(root.join("best.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), found);

    // A case without a label map is predicted again; pairs come after the networks.
    fs::remove_file(&held_out[0]).unwrap();
    let paired = json(&["--ensembles"]);
    let names: Vec<&str> = paired["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "umamba_bot_tiny_2d/2d",
            "umamba_enc_tiny_2d/2d",
            "umamba_bot_tiny_2d/2d + umamba_enc_tiny_2d/2d"
        ]
    );

    // predict does as best.json says: the ensemble of its folds, then the largest component
    fs::write(root.join("best.json"), written).unwrap();
    let images = dataset.join("imagesTs");
    let (plain, chosen) = (root.join("plain"), root.join("chosen"));
    predict(&[runs], &images, &plain, &[]).expect_success();
    let file = root.join("best.json");
    predict(&[], &images, &chosen, &["--best", arg(&file)]).expect_success();
    for id in ["disc_006.png", "disc_007.png"] {
        let mut expected = read_labels(&plain.join(id)).unwrap().data;
        vision_mamba::inference::postprocess::keep_largest(&mut expected, &[1, 2]);
        assert_eq!(read_labels(&chosen.join(id)).unwrap().data, expected);
    }

    // what cannot be compared is refused by name
    let fewer = other.join("fold_0");
    find_best(&fewer, &[]).expect_failure(2, &["held out by a fold of umamba_bot_tiny_2d"]);
    let broken = root.join("broken.json");
    fs::write(&broken, b"{}").unwrap();
    predict(&[], &images, &chosen, &["--best", arg(&broken)]).expect_failure(1, &["broken.json"]);
}

/// A plan with a configuration `test` of this spacing and order of axes.
fn plan(forward: [usize; 3], spacing: [f64; 3]) -> Plan {
    let text =
        include_str!("golden_pipeline/nnUNet_preprocessed/Dataset721_SynthAniso/nnUNetPlans.json");
    let mut json: Value = serde_json::from_str(text).unwrap();
    let mut back = [0; 3];
    for (axis, from) in forward.iter().enumerate() {
        back[*from] = axis;
    }
    json["transpose_forward"] = serde_json::json!(forward);
    json["transpose_backward"] = serde_json::json!(back);
    json["configurations"]["3d_fullres"]["spacing"] = serde_json::json!(spacing);
    Plan::from_json(json).unwrap()
}

/// Ensembles over grids and orders of axes, plane by plane, against the mean of whole restored volumes.
#[test]
fn columns_and_groups_give_the_mean_of_whole_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let size = [9, 11, 7];
    let file = [4.0, 0.9, 0.8];
    let box_ = [[1, 8], [0, 11], [2, 6]];
    let scores = |shape: [usize; 3], seed: f32| {
        Array4::from_shape_fn((3, shape[0], shape[1], shape[2]), |(c, z, y, x)| {
            ((c * 131 + z * 17 + y * 5 + x) as f32 * 0.61 + seed).sin() * 3.0
        })
    };
    // order of axes, spacing of the network (plan's order): separate slices, three axes, other orders
    let kinds = [
        ([0, 1, 2], [4.0, 1.0, 1.0]),
        ([0, 1, 2], [2.0, 1.5, 1.2]),
        ([1, 0, 2], [1.0, 2.0, 0.8]),
        ([2, 1, 0], [1.0, 0.7, 3.0]),
    ];
    for chosen in [
        &[0][..],
        &[1],
        &[2],
        &[0, 1],
        &[0, 2],
        &[0, 1, 2, 3],
        &[3, 2, 0],
    ] {
        for regions in [false, true] {
            let decision = match regions {
                false => Decision::Classes,
                true => Decision::Regions(vec![1, 2, 3]),
            };
            #[allow(clippy::type_complexity)]
            let mut columns: Vec<([usize; 3], SourceGrid, Vec<(Plan, Array4<f32>)>)> = Vec::new();
            let mut whole = Vec::new();
            for &kind in chosen {
                let (forward, spacing) = kinds[kind];
                let plan = plan(forward, spacing);
                let turn = |v: [f64; 3]| forward.map(|a| v[a]);
                let source = SourceGrid {
                    spacing: turn(file),
                    size: forward.map(|a| size[a]),
                    bounds: forward.map(|a| box_[a]),
                    transpose_backward: plan.transpose_backward,
                    spatial_dims: 3,
                    geometry: Geometry::new(
                        file.to_vec(),
                        vec![0.0; 3],
                        Geometry::unit(3).direction,
                    )
                    .unwrap(),
                };
                let cropped = source.cropped_size();
                let shape = std::array::from_fn(|a| {
                    ((cropped[a] as f64 * source.spacing[a] / spacing[a]).round() as usize).max(1)
                });
                let values = scores(shape, kind as f32);
                let configuration = plan.configuration("3d_fullres").unwrap();
                let one = restore(
                    values.view(),
                    &source,
                    configuration,
                    &decision,
                    Some(dir.path()),
                )
                .unwrap();
                whole.push((one.labels, one.probabilities.unwrap()));
                match columns.iter_mut().find(|c| c.0 == forward) {
                    Some(column) => column.2.push((plan, values)),
                    None => columns.push((forward, source, vec![(plan, values)])),
                }
            }
            let made: Vec<Column> = columns
                .iter()
                .map(|(_, source, groups)| {
                    let ways: Vec<_> = groups
                        .iter()
                        .map(|(plan, v)| {
                            let shape = [v.shape()[1], v.shape()[2], v.shape()[3]];
                            (shape, plan.configuration("3d_fullres").unwrap())
                        })
                        .collect();
                    Column::new(source.clone(), &ways)
                })
                .collect();
            let schedules: Vec<_> = made.iter().map(Column::schedule).collect();
            for wanted in [false, true] {
                let rebuilt = columns
                    .iter()
                    .map(|(_, source, groups)| {
                        let ways: Vec<_> = groups
                            .iter()
                            .map(|(plan, v)| {
                                let shape = [v.shape()[1], v.shape()[2], v.shape()[3]];
                                (shape, plan.configuration("3d_fullres").unwrap())
                            })
                            .collect();
                        Column::new(source.clone(), &ways)
                    })
                    .collect();
                let mut restoring =
                    Restoring::new(rebuilt, 3, decision.clone(), dir.path(), wanted).unwrap();
                for (column, schedule) in schedules.iter().enumerate() {
                    let groups = &columns[column].2;
                    let mut given = vec![0; groups.len()];
                    for needed in schedule {
                        for (group, (_, values)) in groups.iter().enumerate() {
                            while given[group] < needed[group] {
                                let plane = values.index_axis(Axis(1), given[group]);
                                restoring.push((column, group), plane.iter().copied().collect());
                                given[group] += 1;
                            }
                        }
                    }
                }
                let restored = restoring.finish().unwrap();
                let views: Vec<_> = whole.iter().map(|w| w.1.view()).collect();
                let labels: Array3<i16> = match whole.len() {
                    1 => whole[0].0.data.clone().into_dimensionality().unwrap(),
                    _ => decision.labels_of_mean(&views),
                };
                assert_eq!(restored.labels.data.shape(), size);
                let n = whole.len() as f32;
                let mut mean = Array4::<f32>::zeros(views[0].raw_dim());
                for view in &views {
                    mean += view;
                }
                mean /= n;
                // sums in another order may round to another winner where two probabilities are next to equal
                let differ = restored
                    .labels
                    .data
                    .iter()
                    .zip(&labels)
                    .filter(|(a, b)| a != b)
                    .count();
                assert!(
                    differ <= usize::from(chosen.len() > 2),
                    "{chosen:?} {regions}: {differ}"
                );
                assert_eq!(restored.probabilities.is_some(), wanted);
                if let Some(values) = restored.probabilities {
                    for (a, b) in values.view().iter().zip(&mean) {
                        assert!((a - b).abs() < 1e-6, "{chosen:?} {regions}: {a} {b}");
                    }
                }
            }
        }
    }
    let incomplete = {
        let plan = plan([0, 1, 2], [1.0; 3]);
        let source = SourceGrid {
            spacing: [1.0; 3],
            size: [2, 2, 2],
            bounds: [[0, 2]; 3],
            transpose_backward: [0, 1, 2],
            spatial_dims: 3,
            geometry: Geometry::unit(3),
        };
        let column = Column::new(
            source,
            &[([2, 2, 2], plan.configuration("3d_fullres").unwrap())],
        );
        Restoring::new(vec![column], 3, Decision::Classes, dir.path(), false).unwrap()
    };
    assert!(incomplete.finish().is_err());
}
