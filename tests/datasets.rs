//! `datasets verify`, `datasets convert`, and the other commands on data sets of other layouts and with broken cases.
#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::{Path, PathBuf};

use image::{GrayImage, Luma};
use serde_json::Value;
use util::{png_dataset, run};

/// Pairs of pictures and black and white masks, with a published split.
fn pairs(root: &Path) -> PathBuf {
    let dir = root.join("Polyps");
    for (part, first, count) in [("train", 0u32, 6), ("val", 10, 2), ("test", 20, 1)] {
        for sub in ["images", "masks"] {
            fs::create_dir_all(dir.join(part).join(sub)).unwrap();
        }
        for case in first..first + count {
            let inside = |x: u32, y: u32| x.abs_diff(12 + case % 5) + y.abs_diff(16) < 9;
            let pixel = |x, y| {
                Luma([if inside(x, y) {
                    200
                } else {
                    ((x * 5 + y + case) % 90) as u8
                }])
            };
            let image = GrayImage::from_fn(32, 32, pixel);
            image
                .save(dir.join(format!("{part}/images/p{case:02}.png")))
                .unwrap();
            let mask = GrayImage::from_fn(32, 32, |x, y| Luma([255 * u8::from(inside(x, y))]));
            mask.save(dir.join(format!("{part}/masks/p{case:02}_mask.png")))
                .unwrap();
        }
    }
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn verify_prints_a_table_or_json_and_its_exit_code_tells() {
    let folder = tempfile::tempdir().unwrap();
    let dir = png_dataset(folder.path(), 4);
    let sound = run(&["datasets", "verify", text(&dir)]).expect_success();
    assert!(
        sound
            .stdout
            .contains("nnU-Net v2 raw, 4 training and 2 test cases"),
        "{}",
        sound.stdout
    );
    assert!(
        sound.stdout.contains("0 errors, 0 warnings"),
        "{}",
        sound.stdout
    );

    fs::remove_file(dir.join("labelsTr/disc_001.png")).unwrap();
    fs::write(dir.join("imagesTs/disc_004_0000.png"), "no picture").unwrap();
    let table = run(&["datasets", "verify", text(&dir)])
        .expect_failure(1, &["2 errors", "Dataset900_Discs"]);
    for words in [
        "missing_label",
        "disc_001",
        "labelsTr/disc_001.png",
        "unreadable",
        "imagesTs/disc_004_0000.png",
        "2 errors",
    ] {
        assert!(
            table.stdout.contains(words),
            "{words} is not in\n{}",
            table.stdout
        );
    }
    let report =
        run(&["datasets", "verify", text(&dir), "--json"]).expect_failure(1, &["2 errors"]);
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(
        (&report["layout"], &report["cases"]),
        (&"nnU-Net v2 raw".into(), &6.into())
    );
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{report:#}");
    let missing = problems
        .iter()
        .find(|p| p["kind"] == "missing_label")
        .unwrap();
    assert_eq!(
        (&missing["severity"], &missing["case"]),
        (&"error".into(), &"disc_001".into())
    );
    for field in ["file", "problem", "remedy"] {
        assert!(!missing[field].as_str().unwrap().is_empty(), "{missing:#}");
    }
}

#[test]
fn folders_that_are_no_data_sets() {
    run(&["datasets", "verify", "/nowhere/at/all"])
        .expect_failure(1, &["/nowhere/at/all", "does not exist"]);
    let folder = tempfile::tempdir().unwrap();
    let verify = || run(&["datasets", "verify", text(folder.path()), "--json"]);
    let empty = verify().expect_failure(1, &["is no data set", "imagesTr", "masks"]);
    let report: Value = serde_json::from_str(&empty.stdout).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    GrayImage::new(4, 4)
        .save(folder.path().join("holiday.png"))
        .unwrap();
    verify().expect_failure(1, &["is no data set"]);
    let file = folder.path().join("letter.txt");
    run(&["datasets", "verify", text(&file)]).expect_failure(1, &["letter.txt", "folder"]);
    run(&["plan", text(folder.path())]).expect_failure(1, &["is no data set"]);
    let help = run(&["datasets", "verify", "--help"]).expect_success();
    assert!(
        help.stdout.contains("Medical Segmentation Decathlon"),
        "{}",
        help.stdout
    );
}

#[test]
fn one_broken_case_is_named_and_the_rest_is_planned() {
    let folder = tempfile::tempdir().unwrap();
    let dir = png_dataset(folder.path(), 7);
    fs::write(dir.join("imagesTr/disc_003_0000.png"), "no picture").unwrap();
    let out = folder.path().join("prepared");
    let planned = run(&["plan", text(&dir), "--out", text(&out)]).expect_failure(
        1,
        &[
            "1 of 7 cases",
            "imagesTr/disc_003_0000.png",
            "others are done",
        ],
    );
    assert!(planned.stdout.contains("2d"), "{}", planned.stdout);
    let print = json(&out.join("dataset_fingerprint.json"));
    assert_eq!(print["shapes_after_crop"].as_array().unwrap().len(), 6);
    let prepared = fs::read_dir(out.join("nnUNetPlans_2d")).unwrap().count();
    assert_eq!(prepared, 6);
    // Mended, it is planned whole.
    fs::copy(
        dir.join("imagesTr/disc_002_0000.png"),
        dir.join("imagesTr/disc_003_0000.png"),
    )
    .unwrap();
    run(&["plan", text(&dir), "--out", text(&out)]).expect_success();
    let print = json(&out.join("dataset_fingerprint.json"));
    assert_eq!(print["shapes_after_crop"].as_array().unwrap().len(), 7);
}

#[test]
fn pairs_are_trained_on_as_they_lie_with_their_published_split() {
    let folder = tempfile::tempdir().unwrap();
    let dir = pairs(folder.path());
    let planned = run(&["plan", text(&dir)]).expect_success();
    assert!(
        planned.stderr.contains("published split"),
        "{}",
        planned.stderr
    );
    let splits = json(&dir.join("preprocessed/splits_final.json"));
    assert_eq!(splits[0]["val"], serde_json::json!(["p10", "p11"]));
    let out = folder.path().join("run");
    let trained = run(&[
        "train",
        text(&dir),
        "--model",
        "umamba_bot_tiny_2d",
        "--out",
        text(&out),
        "--epochs",
        "1",
        "--steps-per-epoch",
        "1",
        "--validation-steps",
        "1",
        "--batch-size",
        "2",
        "--patch-size",
        "32x32",
        "--workers",
        "1",
        "--fold",
        "0",
    ])
    .expect_success();
    assert!(
        trained.stderr.contains("6 training and 2 validation"),
        "{}",
        trained.stderr
    );
    assert_eq!(json(&out.join("splits_final.json")), splits);
    assert!(out.join("validation/p10.png").is_file());
    // What training left behind does not change what the folder is.
    run(&["datasets", "verify", text(&dir)]).expect_success();
    run(&[
        "train",
        text(&dir),
        "--model",
        "umamba_bot_tiny_2d",
        "--out",
        text(&folder.path().join("other")),
        "--fold",
        "1",
    ])
    .expect_failure(2, &["only fold 0"]);
}

#[test]
fn convert_makes_a_data_set_that_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let dir = pairs(folder.path());
    let raw = folder.path().join("nnUNet_raw");
    let convert = || {
        run(&[
            "datasets",
            "convert",
            text(&dir),
            "-o",
            text(&raw),
            "--id",
            "7",
            "--name",
            "Polyps",
        ])
    };
    let first = convert().expect_success();
    assert!(
        first.stderr.contains("9 cases, 18 files"),
        "{}",
        first.stderr
    );
    assert!(convert().expect_success().stderr.contains("0 files"));
    let made = raw.join("Dataset007_Polyps");
    run(&["datasets", "verify", text(&made)]).expect_success();
    let info = json(&made.join("dataset.json"));
    assert_eq!(
        (&info["numTraining"], &info["file_ending"]),
        (&8.into(), &".png".into())
    );
    assert_eq!(
        json(&made.join("splits_final.json"))[0]["val"],
        serde_json::json!(["p10", "p11"])
    );
    run(&[
        "datasets",
        "convert",
        text(&dir),
        "-o",
        text(&raw),
        "--id",
        "7",
        "--name",
        "a/b",
    ])
    .expect_failure(2, &["--name"]);
    run(&[
        "datasets",
        "convert",
        text(&dir),
        "-o",
        text(&dir.join("in")),
    ])
    .expect_failure(1, &["lies in the data set"]);
}
