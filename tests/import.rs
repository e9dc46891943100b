//! Results of nnU-Net and U-Mamba become runs that predict the reference's label maps.
//!
//! `tests/results/README.md` says where the files come from; data sets, trainers and folds are discovered, not listed.

#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{json, Value};
use tch::{no_grad, Device};
use util::run;
use vision_mamba_datasets::read_labels;
use vision_mamba_models::weights::{load_strict, read_tensors};
use vision_mamba_models::{build, NetworkSpec};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A copy of a folder that tests may spoil.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(&from, &to).unwrap()),
        }
    }
}

const ENSEMBLE: &str = "Dataset722_SynthRGB/nnUNetTrainer_5epochs__nnUNetPlans__2d";

/// The results of two folds, in a folder of their own.
fn two_folds(dir: &Path) -> PathBuf {
    let folder = dir.join(ENSEMBLE);
    copy(&tests().join("results").join(ENSEMBLE), &folder);
    folder
}

#[test]
fn the_printed_command_predicts_the_references_label_maps() {
    let root = tests().join("results");
    let dir = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for dataset in names(&root).iter().filter(|n| n.starts_with("Dataset")) {
        let images = tests()
            .join("golden_pipeline/nnUNet_raw")
            .join(dataset)
            .join("imagesTs");
        let runs = dir.path().join(dataset);
        let told = run(&[
            "weights",
            "import",
            text(&root.join(dataset)),
            "-o",
            text(&runs),
        ])
        .expect_success()
        .stdout;
        let commands: Vec<&str> = told.lines().filter(|l| l.contains(" predict ")).collect();
        let expected = root.join("expected").join(dataset);
        assert_eq!(commands.len(), names(&expected).len(), "{told}");
        for (command, name) in commands.iter().zip(names(&expected)) {
            assert!(command.contains(&name), "{command}");
            for mode in names(&expected.join(&name)) {
                let out = runs.join("out").join(&name).join(&mode);
                let mut args: Vec<&str> = command
                    .split(' ')
                    .skip(1)
                    .map(|word| match word {
                        "IMAGES" => text(&images),
                        "PREDICTIONS" => text(&out),
                        word => word,
                    })
                    .collect();
                if mode == "plain" {
                    args.push("--no-mirroring");
                }
                run(&args).expect_success();
                for file in names(&expected.join(&name).join(&mode)) {
                    let reference = read_labels(&expected.join(&name).join(&mode).join(&file));
                    let ours = read_labels(&out.join(&file)).unwrap();
                    let same = reference.unwrap().data == ours.data;
                    assert!(same, "{name} {mode} {file}: another label map");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 0, "nothing was compared");
}

/// A plans file in the flat form of nnU-Net 2.1.1, for a golden case of U-Mamba.
fn flat_plans(config: &Value) -> Value {
    let features = config["features_per_stage"].as_array().unwrap();
    json!({
        "dataset_name": "Dataset001_Small", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0], "original_median_shape_after_transp": [1, 16, 24],
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "foreground_intensity_properties_by_modality": {},
        "configurations": {"2d": {
            "data_identifier": "nnUNetPlans_2d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
            "patch_size": config["size"], "median_image_size_in_voxels": config["size"], "spacing": [1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"], "use_mask_for_norm": [false, false],
            "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": features[0], "unet_max_num_features": features.last(),
            "n_conv_per_stage_encoder": config["n_conv_per_stage"], "n_conv_per_stage_decoder": config["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [3, 3], "pool_op_kernel_sizes": config["strides"], "conv_kernel_sizes": config["kernel_sizes"],
            "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": false, "order": 3, "order_z": 0, "force_separate_z": null},
            "resampling_fn_seg_kwargs": {"is_seg": true, "order": 1, "order_z": 0, "force_separate_z": null},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {"is_seg": false, "order": 1, "order_z": 0, "force_separate_z": null},
            "batch_dice": true
        }}
    })
}

#[test]
fn a_checkpoint_of_umamba_gives_the_references_logits() {
    let golden = tests().join("golden");
    let case = golden.join("umamba/bot2d_ds");
    let told = fs::read_to_string(case.with_extension("json")).unwrap();
    let mut config = serde_json::from_str::<Value>(&told).unwrap()["config"].take();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("nnUNetTrainerUMambaBot__nnUNetPlans__2d");
    fs::create_dir_all(folder.join("fold_0")).unwrap();
    fs::copy(
        golden.join("checkpoints/nnunet_checkpoint_final.pth"),
        folder.join("fold_0/checkpoint_final.pth"),
    )
    .unwrap();
    let dataset = json!({
        "channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
        "numTraining": 1, "file_ending": ".nii.gz"
    });
    fs::write(folder.join("dataset.json"), dataset.to_string()).unwrap();
    // the flat form has features that double; the golden case's do not, so it is stated in the present form
    let features = config["features_per_stage"].clone();
    let mut plans = flat_plans(&config);
    let modern = vision_mamba_datasets::Plan::from_json(plans.clone()).unwrap();
    assert_eq!(
        modern.configurations["2d"]
            .architecture
            .arch_kwargs
            .features_per_stage,
        [6, 12, 16, 16]
    );
    plans["configurations"]["2d"] = modern.to_json()["configurations"]["2d"].take();
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] = features;
    fs::write(folder.join("plans.json"), plans.to_string()).unwrap();

    let runs = dir.path().join("runs");
    run(&["weights", "import", text(&folder), "-o", text(&runs)]).expect_success();
    let made = runs.join("nnUNetTrainerUMambaBot__nnUNetPlans__2d/fold_0");
    let told = fs::read_to_string(made.join("config.json")).unwrap();
    config = serde_json::from_str(&told).unwrap();
    assert_eq!(config["training"]["mirror_axes"], json!([0, 1]));
    let spec: NetworkSpec = serde_json::from_value(config["network"].take()).unwrap();
    let built = build(&spec, Device::Cpu).unwrap();
    load_strict(&made.join("checkpoint_final.safetensors"), &built.params).unwrap();
    let golden = read_tensors(&case.with_extension("safetensors")).unwrap();
    let input = golden
        .iter()
        .find(|(name, _)| name.starts_with("in/"))
        .unwrap()
        .1;
    let logits = no_grad(|| built.net.forward(input, true).unwrap());
    let (ours, reference) = (&logits[0], &golden["out/y0"]);
    let error = (ours - reference).abs().max() / reference.abs().max();
    // whole networks in float32: the golden files' own tolerance
    assert!(error.double_value(&[]) < 1e-4, "{error:?}");
}

#[test]
fn what_is_there_is_kept_until_its_source_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, runs) = (two_folds(dir.path()), dir.path().join("runs"));
    let args = ["weights", "import", text(&folder), "-o", text(&runs)];
    let up_to_date = |args: &[&str]| {
        run(args)
            .expect_success()
            .stdout
            .matches("up to date")
            .count()
    };
    assert_eq!(up_to_date(&args), 0);
    assert_eq!(up_to_date(&args), 2);
    let weights = folder.join("fold_0/checkpoint_final.pth");
    fs::copy(&weights, folder.join("fold_0/checkpoint_best.pth")).unwrap();
    assert_eq!(up_to_date(&args), 1);
    let run_of = runs.join("nnUNetTrainer_5epochs__nnUNetPlans__2d/fold_0");
    assert!(run_of.join("checkpoint_best.safetensors").is_file());
    let forced = [
        "weights",
        "import",
        text(&folder),
        "-o",
        text(&runs),
        "--force",
    ];
    assert_eq!(up_to_date(&forced), 0);
    // another results folder does not take its place unasked
    let other = dir.path().join("other");
    copy(&folder, &other.join(ENSEMBLE));
    run(&[
        "weights",
        "import",
        text(&other),
        "-o",
        text(&dir.path().join("more")),
    ])
    .expect_success();
    let other = other.join(ENSEMBLE);
    let onto = ["weights", "import", text(&other), "-o", text(&runs)];
    run(&onto).expect_failure(1, &["2 of 2", "--force"]);
}

#[test]
fn a_broken_fold_is_named_and_the_rest_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, runs) = (two_folds(dir.path()), dir.path().join("runs"));
    let weights = folder.join("fold_0/checkpoint_final.pth");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let args = ["weights", "import", text(&folder), "-o", text(&runs)];
    let told = run(&args).expect_failure(1, &["1 of 2", "fold_0"]);
    assert!(told.stdout.contains("fold_1: 2d by"), "{}", told.stdout);
    let made = runs.join("nnUNetTrainer_5epochs__nnUNetPlans__2d");
    assert!(made.join("fold_1/config.json").is_file() && !made.join("fold_0").exists());
    fs::remove_file(&weights).unwrap();
    run(&args).expect_failure(1, &["fold_0", "none of checkpoint_final.pth"]);
    let foreign = tests().join("results/other/segresnet.pth");
    fs::copy(foreign, &weights).unwrap();
    run(&args).expect_failure(1, &["SegResNet", "does not exist here"]);
    assert!(!made.join("fold_0").exists());
}

#[test]
fn an_imported_run_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = two_folds(dir.path());
    let runs = dir.path().join("runs");
    run(&["weights", "import", text(&folder), "-o", text(&runs)]).expect_success();
    let made = runs.join("nnUNetTrainer_5epochs__nnUNetPlans__2d/fold_0");
    let dataset = tests().join("golden_pipeline/nnUNet_raw/Dataset722_SynthRGB");
    let before = names(&made);
    run(&["train", text(&dataset), "--out", text(&made), "--resume"])
        .expect_failure(2, &["was imported", "--pretrained", "checkpoint_final"]);
    assert_eq!(names(&made), before);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = two_folds(dir.path());
    let runs = dir.path().join("runs");
    let args = ["weights", "import", text(&folder), "-o", text(&runs)];
    let plans = folder.join("plans.json");
    let good = fs::read_to_string(&plans).unwrap();
    let change = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        fs::write(&plans, good.replace(from, to)).unwrap();
    };
    change("Dataset722_SynthRGB", "Dataset999_Other");
    run(&args).expect_failure(1, &["2 of 2", "dataset_name", "Dataset999_Other"]);
    change("unet.PlainConvUNet", "unet.ResidualEncoderUNet");
    run(&args).expect_failure(1, &["not those of nnUNetTrainer_5epochs"]);
    change("PlainConvUNet", "SomethingElse");
    run(&args).expect_failure(1, &["plans.json", "SomethingElse"]);
    change("LeakyReLU", "Mish");
    run(&args).expect_failure(1, &["nonlin"]);
    fs::remove_file(&plans).unwrap();
    run(&args).expect_failure(1, &["plans.json is missing"]);
    fs::write(&plans, &good).unwrap();
    fs::remove_file(folder.join("dataset.json")).unwrap();
    run(&args).expect_failure(1, &["dataset.json is missing"]);
    assert!(!runs.exists(), "something was written");

    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let out = text(&runs);
    run(&["weights", "import", text(&empty), "-o", out]).expect_failure(2, &["nnUNet_results"]);
    let file = folder.join("fold_0/checkpoint_final.pth");
    run(&["weights", "import", text(&file), "-o", out]).expect_failure(2, &["--preset"]);
    let with_preset = [
        "weights",
        "import",
        text(&folder),
        "-o",
        out,
        "--preset",
        "unet_plain_2d",
    ];
    run(&with_preset).expect_failure(2, &["--preset", "folder"]);
}
