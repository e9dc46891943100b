//! `evaluate segmentation` from the outside: which files it pairs, what it says about those that do not fit, and what it writes.

#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use util::{arg, run, Outcome};
use vision_mamba_datasets::{write_labels, Geometry, LabelMap};

fn write(path: &Path, spacing: f64, data: ArrayD<i16>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut geometry = Geometry::unit(3);
    geometry.spacing = vec![spacing; 3];
    write_labels(path, &LabelMap { data, geometry }).unwrap();
}

/// A box of label 1 below one of label 2.
fn map(path: &Path, spacing: f64, shift: usize) {
    let data = ArrayD::from_shape_fn(IxDyn(&[4, 8, 8]), |at| {
        let inside = (2..6).contains(&at[1]) && (2 + shift..6 + shift).contains(&at[2]);
        i16::from(inside) * if at[0] < 2 { 1 } else { 2 }
    });
    write(path, spacing, data);
}

fn evaluate(pred: &Path, reference: &Path, more: &[&str]) -> Outcome {
    let folders = ["--pred", arg(pred), "--ref", arg(reference)];
    run(&[&["evaluate", "segmentation"], &folders[..], more].concat())
}

#[test]
fn other_formats_pair_by_case_and_the_rest_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (pred, reference) = (dir.path().join("pred"), dir.path().join("ref"));
    map(&reference.join("a.nrrd"), 2.0, 0);
    map(&reference.join("b.nrrd"), 2.0, 0);
    map(&reference.join("broken.nrrd"), 2.0, 0);
    map(&reference.join("missing.nrrd"), 2.0, 0);
    map(&pred.join("a.nii.gz"), 2.0, 1);
    map(&pred.join("b.mha"), 3.0, 0);
    map(&pred.join("extra.mha"), 2.0, 0);
    fs::write(pred.join("broken.nii.gz"), b"no image").unwrap();
    let (json, csv) = (dir.path().join("out.json"), dir.path().join("out.csv"));
    let options = ["--surface", "--tolerance", "1", "--tolerance", "2=2.5"];
    let files = ["--json", arg(&json), "--csv", arg(&csv)];
    let outcome = evaluate(&pred, &reference, &[&options[..], &files].concat())
        .expect_failure(1, &["2 of 4"]);
    for word in [
        "broken.nii.gz",
        "missing.nrrd",
        "extra.mha",
        "b.nrrd (spacing [3.0",
    ] {
        assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
    }
    let summary = util::json(&json);
    let case = &summary["metric_per_case"][0]["metrics"];
    assert_eq!(case["1"]["Dice"], 0.75);
    assert_eq!(case["1"]["volume_difference_ml"], 0.0);
    // a shift of one voxel of 2 mm: beyond 1 mm, within 2.5
    assert_eq!(case["1"]["HD"], 2.0);
    assert!(case["1"]["NSD"].as_f64().unwrap() < 1.0);
    assert_eq!(case["2"]["NSD"], 1.0);
    let protocol = summary["protocol"].as_str().unwrap();
    assert!(
        protocol.contains("convention nnunet") && protocol.contains("label 2 2.5"),
        "{protocol}"
    );
    let rows = fs::read_to_string(&csv).unwrap();
    assert_eq!(rows.lines().count(), 1 + 2 * 2);
    assert!(rows.contains("\na.nrrd,label 1,1,0.5,0.75,"), "{rows}");
    // and without the cases that lack
    fs::remove_file(pred.join("broken.nii.gz")).unwrap();
    let outcome = evaluate(&pred, &reference, &["--predicted-only"]).expect_success();
    assert!(outcome.stdout.contains("2 case(s)"), "{}", outcome.stdout);
}

#[test]
fn exchanged_folders_unknown_classes_and_unwritable_files() {
    let dir = tempfile::tempdir().unwrap();
    let (pred, reference) = (dir.path().join("labelsTr"), dir.path().join("out"));
    map(&pred.join("a.nii.gz"), 1.0, 0);
    map(&reference.join("a.nii.gz"), 1.0, 1);
    let with = |more: &[&str]| evaluate(&pred, &reference, more);
    let told = with(&[]).expect_success().stderr;
    assert!(told.contains("exchanged"), "{told}");
    with(&["--surface", "--tolerance", "spleen=2"]).expect_failure(2, &["spleen", "label 1"]);
    let outcome = with(&["--json", arg(&dir.path().join("no/such/folder.json"))])
        .expect_failure(1, &["folder.json"]);
    assert!(
        outcome.stdout.contains("label 1"),
        "the table is printed all the same: {}",
        outcome.stdout
    );
}

/// Each convention's rule for a class in neither map, and in a single one.
#[test]
fn empty_masks_count_as_the_convention_says() {
    let dir = tempfile::tempdir().unwrap();
    let (pred, reference) = (dir.path().join("pred"), dir.path().join("ref"));
    // 1 in both, 2 predicted only, 3 missed, 4 in neither
    for (folder, labels) in [(&pred, [0, 1, 2, 0]), (&reference, [0, 1, 0, 3])] {
        let data = ArrayD::from_shape_vec(IxDyn(&[1, 2, 2]), labels.to_vec()).unwrap();
        write(&folder.join("a.nii.gz"), 1.0, data);
    }
    fs::write(
        dir.path().join("dataset.json"),
        r#"{"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}, "numTraining": 1, "file_ending": ".nii.gz"}"#,
    )
    .unwrap();
    for (convention, dice) in [
        ("nnunet", [Some(1.0), Some(0.0), Some(0.0), None]),
        ("medpy", [Some(1.0), Some(0.0), Some(0.0), None]),
        ("monai", [Some(1.0), None, Some(0.0), None]),
        ("deepmind", [Some(1.0), Some(0.0), Some(0.0), None]),
        ("umamba", [Some(1.0), Some(0.0), Some(0.0), Some(1.0)]),
    ] {
        let json = dir.path().join("out.json");
        let options = ["--convention", convention, "--json", arg(&json)];
        evaluate(&pred, &reference, &options).expect_success();
        let summary = util::json(&json);
        for (label, dice) in ["1", "2", "3", "4"].iter().zip(dice) {
            let found = summary["metric_per_case"][0]["metrics"][label]["Dice"].as_f64();
            assert_eq!(found, dice, "{convention} {label}");
        }
        assert!(summary["protocol"].as_str().unwrap().contains(convention));
    }
}
