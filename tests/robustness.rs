//! Bad input: each kind gives one line that names file and remedy, its exit code, and leaves earlier files whole.

#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::{Path, PathBuf};

use image::{GrayImage, Luma};
use util::{arg, run, Outcome, FEW_STEPS, QUICK};

fn train(dataset: &Path, out: &Path) -> Outcome {
    let mut args = vec!["train", arg(dataset), "--out", arg(out), "--fold", "all"];
    args.extend(QUICK.iter().chain(&FEW_STEPS));
    run(&args)
}

/// A fresh data set, harmed by `harm`, must be refused with `code` and all of `words`.
fn refused(harm: impl FnOnce(&Path), code: i32, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 4);
    harm(&dataset);
    let out = dir.path().join("run");
    train(&dataset, &out).expect_failure(code, words);
    assert!(!out.join("checkpoint_final.safetensors").exists());
}

#[test]
fn missing_data_set() {
    let dir = tempfile::tempdir().unwrap();
    train(&dir.path().join("nowhere"), &dir.path().join("run")).expect_failure(1, &["nowhere"]);
    train(dir.path(), &dir.path().join("run")).expect_failure(1, &["dataset.json"]);
}

#[test]
fn unreadable_or_missing_files() {
    refused(
        |d| fs::write(d.join("imagesTr/disc_001_0000.png"), b"no image").unwrap(),
        1,
        &["disc_001_0000.png"],
    );
    refused(
        |d| fs::remove_file(d.join("labelsTr/disc_002.png")).unwrap(),
        1,
        &["disc_002"],
    );
    refused(
        |d| {
            let path = d.join("imagesTr/disc_000_0000.png");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        },
        1,
        &["disc_000_0000.png"],
    );
    refused(
        |d| fs::write(d.join("dataset.json"), "{ \"labels\": ").unwrap(),
        1,
        &["dataset.json"],
    );
}

#[test]
fn sizes_labels_and_channels() {
    refused(
        |d| {
            GrayImage::new(10, 10)
                .save(d.join("labelsTr/disc_001.png"))
                .unwrap()
        },
        1,
        &["disc_001", "10"],
    );
    refused(
        |d| {
            let mut label = image::open(d.join("labelsTr/disc_003.png"))
                .unwrap()
                .to_luma8();
            label.put_pixel(3, 3, Luma([9]));
            label.save(d.join("labelsTr/disc_003.png")).unwrap();
        },
        1,
        &["disc_003", "9", "dataset.json"],
    );
    refused(
        |d| {
            let json = fs::read_to_string(d.join("dataset.json")).unwrap();
            fs::write(
                d.join("dataset.json"),
                json.replace("\"0\": \"MR\"", "\"0\": \"MR\", \"1\": \"CT\""),
            )
            .unwrap();
        },
        1,
        &["_0001.png"],
    );
    refused(
        |d| {
            fs::remove_dir_all(d.join("imagesTr")).unwrap();
            fs::create_dir(d.join("imagesTr")).unwrap();
        },
        1,
        &["imagesTr"],
    );
}

#[test]
fn nan_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::nifti_dataset(dir.path(), 2);
    let path = dataset.join("imagesTr/box_1_0000.nii");
    let mut bytes = fs::read(&path).unwrap();
    bytes[352 + 400..352 + 404].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&dir.path().join("run")),
        "--model",
        "umamba_bot_tiny_3d",
        "--fold",
        "all",
    ])
    .expect_failure(1, &["box_1_0000.nii", "NaN"]);
}

#[test]
fn unknown_preset_and_contradicting_options() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 4);
    let out = dir.path().join("run");
    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&out),
        "--model",
        "umamba_bot_tny_2d",
    ])
    .expect_failure(2, &["umamba_bot_tny_2d", "umamba_bot_tiny_2d"]);
    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&out),
        "--model",
        "umamba_bot_tiny_2d",
        "--configuration",
        "3d_fullres",
    ])
    .expect_failure(2, &["3d_fullres", "2d"]);
    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&out),
        "--model",
        "umamba_bot_tiny_2d",
        "--patch-size",
        "33x33",
    ])
    .expect_failure(2, &["33", "divisible"]);
    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&out),
        "--model",
        "umamba_bot_tiny_2d",
        "--fold",
        "9",
    ])
    .expect_failure(2, &["fold", "all"]);
    assert!(!out.join("config.json").exists());
}

/// A trained run and its data set, for tests of what comes after training.
fn trained(root: &Path) -> (PathBuf, PathBuf) {
    let dataset = util::png_dataset(root, 4);
    let out = root.join("run");
    train(&dataset, &out).expect_success();
    (dataset, out)
}

#[test]
fn prediction_names_the_bad_case_and_does_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (dataset, out) = trained(dir.path());
    let images = dataset.join("imagesTs");
    fs::write(images.join("broken_0000.png"), b"\x89PNG cut short").unwrap();
    let pred = dir.path().join("pred");
    fs::create_dir(&pred).unwrap();
    fs::write(pred.join("broken.png"), b"earlier").unwrap();
    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(&images),
        "-o",
        arg(&pred),
    ])
    .expect_failure(1, &["1 of 3", "broken"]);
    assert!(pred.join("disc_004.png").is_file() && pred.join("disc_005.png").is_file());
    assert_eq!(fs::read(pred.join("broken.png")).unwrap(), b"earlier");

    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(&dir.path().join("none")),
        "-o",
        arg(&pred),
    ])
    .expect_failure(2, &["none", "no such"]);
    run(&[
        "predict",
        "--run",
        arg(&dataset),
        "-i",
        arg(&images),
        "-o",
        arg(&pred),
    ])
    .expect_failure(2, &["holds no run"]);
    let one = images.join("disc_004_0000.png");
    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(&one),
        "-o",
        arg(&dir.path().join("one.xyz")),
    ])
    .expect_failure(2, &["one.xyz", ".nii.gz"]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(&empty),
        "-o",
        arg(&pred),
    ])
    .expect_failure(1, &["empty"]);
}

#[test]
fn damaged_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (dataset, out) = trained(dir.path());
    let images = dataset.join("imagesTs");
    let pred = dir.path().join("pred");
    let checkpoint = out.join("checkpoint_final.safetensors");
    let bytes = fs::read(&checkpoint).unwrap();
    let predict = || {
        run(&[
            "predict",
            "--run",
            arg(&out),
            "-i",
            arg(&images),
            "-o",
            arg(&pred),
        ])
    };
    for cut in [bytes.len() / 2, 100, 4, 0] {
        fs::write(&checkpoint, &bytes[..cut]).unwrap();
        predict().expect_failure(1, &["checkpoint_final.safetensors"]);
    }
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&checkpoint, &huge).unwrap();
    predict().expect_failure(1, &["checkpoint_final.safetensors"]);
    fs::remove_file(&checkpoint).unwrap();
    predict().expect_success();

    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&out),
        "--resume",
        "--epochs",
        "9",
    ])
    .expect_failure(2, &["--resume", "--epochs"]);
    let state = out.join("training_state.safetensors");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[..bytes.len() / 3]).unwrap();
    run(&["train", arg(&dataset), "--out", arg(&out), "--resume"])
        .expect_failure(1, &["training_state.safetensors"]);
}

#[test]
fn evaluation_names_what_is_missing_or_misshaped() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 4);
    let pred = dir.path().join("pred");
    fs::create_dir(&pred).unwrap();
    fs::copy(
        dataset.join("labelsTr/disc_000.png"),
        pred.join("disc_000.png"),
    )
    .unwrap();
    GrayImage::new(5, 5)
        .save(pred.join("disc_001.png"))
        .unwrap();
    let outcome = run(&[
        "evaluate",
        "segmentation",
        "--pred",
        arg(&pred),
        "--ref",
        arg(&dataset.join("labelsTr")),
    ])
    .expect_failure(1, &["3 of 4"]);
    assert!(
        outcome.stderr.contains("disc_001.png") && outcome.stderr.contains("disc_003.png"),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stdout.contains("1.0000"),
        "the good case is scored: {}",
        outcome.stdout
    );
}

/// A full disk, played by a limit on file size: the run stops with a message and keeps its earlier checkpoint.
#[test]
fn full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (dataset, out) = trained(dir.path());
    let before = fs::read(out.join("checkpoint_final.safetensors")).unwrap();
    let script = "trap '' XFSZ; ulimit -f 2; exec \"$@\"";
    let pred = dir.path().join("run2");
    let program = env!("CARGO_BIN_EXE_vision-mamba");
    let mut args = vec![
        "-c",
        script,
        "sh",
        program,
        "train",
        arg(&dataset),
        "--out",
        arg(&pred),
        "--fold",
        "all",
    ];
    args.extend(QUICK.iter().chain(&FEW_STEPS));
    args.extend(["--threads", "1", "--device", "cpu"]);
    let outcome: Outcome = std::process::Command::new("bash")
        .args(&args)
        .output()
        .unwrap()
        .into();
    outcome.expect_failure(1, &["cannot write", "run2"]);
    let left: Vec<String> = fs::read_dir(&pred)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n.starts_with(".writing") || n.contains("tmp"))
        .collect();
    assert!(left.is_empty(), "temporary files left: {left:?}");

    let resumed = [
        "-c",
        script,
        "sh",
        program,
        "train",
        arg(&dataset),
        "--out",
        arg(&out),
        "--resume",
        "--device",
        "cpu",
    ];
    let outcome: Outcome = std::process::Command::new("bash")
        .args(resumed)
        .output()
        .unwrap()
        .into();
    outcome.expect_failure(1, &["cannot write"]);
    assert_eq!(
        fs::read(out.join("checkpoint_final.safetensors")).unwrap(),
        before
    );
}

/// What a killed program left half-written goes when the next one begins, in every folder that is written to.
#[test]
fn leftovers_of_killed_programs_go() {
    let dir = tempfile::tempdir().unwrap();
    let (dataset, out) = trained(dir.path());
    let (preprocessed, pred) = (dir.path().join("preprocessed"), dir.path().join("pred"));
    let plan = ["plan", arg(&dataset), "--out", arg(&preprocessed)];
    run(&plan).expect_success();
    fs::create_dir(&pred).unwrap();
    let mut entries = fs::read_dir(&preprocessed)
        .unwrap()
        .map(|e| e.unwrap().path());
    let cases = entries.find(|p| p.is_dir()).unwrap();
    let left = [&preprocessed, &cases, &pred, &out].map(|folder| folder.join(".writing-Ab3"));
    for file in &left {
        fs::write(file, b"half").unwrap();
    }
    run(&plan).expect_success();
    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(&dataset.join("imagesTs")),
        "-o",
        arg(&pred),
    ])
    .expect_success();
    run(&["train", arg(&dataset), "--out", arg(&out), "--resume"]).expect_success();
    assert!(left.iter().all(|file| !file.exists()), "{left:?}");
}
