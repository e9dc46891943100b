//! Each kind of bad data: the error's type, and a message of one line that names the file and what to do.
#![allow(clippy::unwrap_used)]

mod util;

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use tempfile::TempDir;
use util::{describe, fixtures, small_dataset, square};
use vision_mamba_datasets::planner::{plan, Request};
use vision_mamba_datasets::{
    images_in, write_labels, DataError, Dataset, Fingerprint, Geometry, LabelMap, Plan, Planner,
    Split,
};

fn dataset() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    small_dataset(folder.path(), 3);
    folder
}

/// The message has each of the words and is one line.
#[track_caller]
fn assert_says(error: &DataError, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

fn opening(folder: &Path) -> DataError {
    Dataset::open(folder).unwrap_err()
}

fn planning(folder: &Path) -> DataError {
    match Fingerprint::take(&Dataset::open(folder).unwrap(), 1, &|_| {}).unwrap_err() {
        // every broken case is in it
        DataError::Several(mut errors) => errors.remove(0),
        one => one,
    }
}

/// A NIfTI file of float32 values, for what `write_labels` cannot make.
fn write_floats(path: &Path, values: &[f32]) {
    let n = values.len();
    let label = LabelMap {
        data: ArrayD::zeros(IxDyn(&[1, n])),
        geometry: Geometry::unit(2),
    };
    write_labels(path, &label).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes.truncate(352);
    bytes[70..74].copy_from_slice(&[16, 0, 32, 0]);
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

/// A data set of one NIfTI case with these values.
fn float_dataset(image: &[f32], label: &[f32]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for sub in ["imagesTr", "labelsTr"] {
        std::fs::create_dir(folder.path().join(sub)).unwrap();
    }
    describe(
        folder.path(),
        r#"{"0": "T1"}"#,
        r#"{"background": 0, "a": 1}"#,
        ".nii",
    );
    write_floats(&folder.path().join("imagesTr/c_0000.nii"), image);
    write_floats(&folder.path().join("labelsTr/c.nii"), label);
    folder
}

#[test]
fn missing_folder() {
    let error = opening(Path::new("/nowhere/Dataset001"));
    assert!(matches!(error, DataError::Missing { .. }));
    assert_says(
        &error,
        &["/nowhere/Dataset001", "does not exist", "dataset.json"],
    );
}

#[test]
fn file_in_place_of_the_folder() {
    let folder = dataset();
    assert_says(
        &opening(&folder.path().join("dataset.json")),
        &["dataset.json", "check that it is a folder"],
    );
}

#[test]
fn missing_dataset_json() {
    let folder = tempfile::tempdir().unwrap();
    assert_says(
        &opening(folder.path()),
        &["is no data set", "dataset.json", "images + masks"],
    );
    std::fs::create_dir(folder.path().join("imagesTr")).unwrap();
    assert_says(
        &opening(folder.path()),
        &["dataset.json", "does not exist", "imagesTr"],
    );
}

#[test]
fn malformed_dataset_json() {
    let folder = dataset();
    std::fs::write(folder.path().join("dataset.json"), "{\"labels\": ").unwrap();
    assert_says(&opening(folder.path()), &["dataset.json", "EOF", "line 1"]);
    std::fs::write(
        folder.path().join("dataset.json"),
        r#"{"labels": {"background": 0, "a": 1}, "file_ending": ".png"}"#,
    )
    .unwrap();
    assert_says(&opening(folder.path()), &["channel_names"]);
}

#[test]
fn impossible_dataset_json() {
    let channels = r#"{"0": "T1"}"#;
    let labels = r#"{"background": 0, "a": 1}"#;
    let cases = [
        (
            channels,
            labels,
            ".svs",
            vec!["`file_ending`", ".svs", ".nii.gz"],
        ),
        (
            channels,
            r#"{"background": 0, "a": 2}"#,
            ".png",
            vec!["`labels`", "[0, 2]", "without gaps"],
        ),
        (
            channels,
            r#"{"background": 0, "whole": [1, 2], "a": 1}"#,
            ".png",
            vec!["`regions_class_order`", "missing", "whole, a"],
        ),
        (
            channels,
            r#"{"background": 0, "a": 1, "ignore": 5}"#,
            ".png",
            vec!["`ignore`", "5", "after the last class, 2"],
        ),
        (
            channels,
            r#"{"background": 0, "a": 1.5}"#,
            ".png",
            vec!["`a`", "1.5", "whole number"],
        ),
        (
            channels,
            r#"{"0": "background", "1": "a"}"#,
            ".png",
            vec!["v1"],
        ),
        (
            channels,
            r#"{"background": 0}"#,
            ".png",
            vec!["at least two"],
        ),
        (
            r#"{"0": "T1", "2": "T2"}"#,
            labels,
            ".png",
            vec!["`channel_names`", "[0, 2]"],
        ),
        (
            r#"{"T1": "0"}"#,
            labels,
            ".png",
            vec!["`channel_names`", "T1"],
        ),
    ];
    for (channels, labels, ending, words) in cases {
        let folder = dataset();
        describe(folder.path(), channels, labels, ending);
        assert_says(&opening(folder.path()), &words);
    }
}

#[test]
fn empty_data_set() {
    let folder = tempfile::tempdir().unwrap();
    describe(
        folder.path(),
        r#"{"0": "T1"}"#,
        r#"{"background": 0, "a": 1}"#,
        ".png",
    );
    assert_says(&opening(folder.path()), &["imagesTr", "does not exist"]);
    std::fs::create_dir(folder.path().join("imagesTr")).unwrap();
    let error = opening(folder.path());
    assert!(matches!(error, DataError::Empty { .. }));
    assert_says(&error, &["imagesTr", "_0000.png"]);
}

#[test]
fn missing_label_map() {
    let folder = dataset();
    std::fs::remove_file(folder.path().join("labelsTr/case_1.png")).unwrap();
    let error = planning(folder.path());
    assert!(matches!(error, DataError::Missing { .. }));
    assert_says(&error, &["labelsTr/case_1.png", "does not exist"]);
}

#[test]
fn image_cut_short() {
    let folder = dataset();
    let path = folder.path().join("imagesTr/case_2_0000.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = planning(folder.path());
    assert!(matches!(error, DataError::Damaged { .. }));
    assert_says(&error, &["case_2_0000.png", "replace the file"]);
}

#[test]
fn text_in_place_of_an_image() {
    let folder = dataset();
    std::fs::write(
        folder.path().join("imagesTr/case_0_0000.png"),
        "not found\n",
    )
    .unwrap();
    assert_says(
        &planning(folder.path()),
        &["case_0_0000.png", "replace the file"],
    );
}

#[test]
fn folder_in_place_of_an_image() {
    let folder = dataset();
    let path = folder.path().join("imagesTr/case_0_0000.png");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_says(
        &planning(folder.path()),
        &["case_0_0000.png", "is a directory"],
    );
}

#[test]
fn image_and_label_of_different_sizes() {
    let folder = dataset();
    write_labels(
        &folder.path().join("labelsTr/case_1.png"),
        &square(12, 11, 1),
    )
    .unwrap();
    let error = planning(folder.path());
    assert!(matches!(error, DataError::SizesDiffer { .. }));
    assert_says(
        &error,
        &[
            "labelsTr/case_1.png",
            "[12, 11]",
            "case_1_0000.png",
            "[12, 10]",
            "same grid",
        ],
    );
}

#[test]
fn channels_of_different_sizes() {
    let folder = dataset();
    describe(
        folder.path(),
        r#"{"0": "T1", "1": "T2"}"#,
        r#"{"background": 0, "a": 1}"#,
        ".png",
    );
    write_labels(
        &folder.path().join("imagesTr/case_0_0001.png"),
        &square(13, 10, 1),
    )
    .unwrap();
    assert_says(
        &planning(folder.path()),
        &["case_0_0001.png", "[13, 10]", "case_0_0000.png", "[12, 10]"],
    );
}

#[test]
fn label_value_that_dataset_json_lacks() {
    let folder = dataset();
    write_labels(
        &folder.path().join("labelsTr/case_1.png"),
        &square(12, 10, 7),
    )
    .unwrap();
    let error = planning(folder.path());
    assert!(matches!(
        error,
        DataError::UnknownLabel {
            value: 7,
            count: 12,
            ..
        }
    ));
    assert_says(
        &error,
        &[
            "labelsTr/case_1.png",
            "label 7 at 12 voxels",
            "[0, 1]",
            "correct the label map",
        ],
    );
}

#[test]
fn missing_channel() {
    let folder = dataset();
    describe(
        folder.path(),
        r#"{"0": "T1", "1": "T2"}"#,
        r#"{"background": 0, "a": 1}"#,
        ".png",
    );
    let error = planning(folder.path());
    assert!(matches!(
        error,
        DataError::MissingChannel { channel: 1, .. }
    ));
    assert_says(
        &error,
        &[
            "case_0",
            "channel 1",
            "`T2`",
            "imagesTr/case_0_0001.png",
            "channel_names",
        ],
    );

    // The first of two.
    for case in 0..3 {
        let image = |c| {
            folder
                .path()
                .join(format!("imagesTr/case_{case}_{c:04}.png"))
        };
        std::fs::rename(image(0), image(1)).unwrap();
    }
    assert_says(
        &planning(folder.path()),
        &["channel 0", "`T1`", "case_0_0000.png"],
    );
}

#[test]
fn more_channels_than_named() {
    let folder = dataset();
    std::fs::copy(
        fixtures().join("formats/rgb8.png"),
        folder.path().join("imagesTr/case_0_0000.png"),
    )
    .unwrap();
    let error = planning(folder.path());
    assert!(matches!(
        error,
        DataError::ChannelCount {
            found: 3,
            expected: 1,
            ..
        }
    ));
    assert_says(&error, &["case_0_0000.png", "3 channels", "channel_names"]);
}

#[test]
fn nan_pixels() {
    let folder = float_dataset(
        &[1.0, f32::NAN, f32::NAN, f32::INFINITY],
        &[0.0, 1.0, 0.0, 0.0],
    );
    let error = planning(folder.path());
    assert!(matches!(
        error,
        DataError::NotFinite {
            nan: 2,
            infinite: 1,
            ..
        }
    ));
    assert_says(&error, &["c_0000.nii", "2 NaN", "replace them"]);
}

#[test]
fn labels_that_are_not_whole_numbers() {
    for (value, text) in [
        (0.5, "0.5"),
        (-1.0, "-1"),
        (f32::NAN, "NaN"),
        (70000.0, "70000"),
    ] {
        let folder = float_dataset(&[1.0, 2.0], &[0.0, value]);
        let error = planning(folder.path());
        assert!(matches!(error, DataError::LabelNotInteger { .. }));
        assert_says(&error, &["labelsTr/c.nii", text, "integer type"]);
    }
    // Whole numbers in a float file are fine.
    let folder = float_dataset(&[1.0, 2.0], &[0.0, 1.0]);
    assert_eq!(
        Dataset::open(folder.path())
            .unwrap()
            .load_label("c", Split::Training)
            .unwrap()
            .data
            .as_slice(),
        Some(&[0, 1][..])
    );
}

#[test]
fn label_map_in_colour() {
    let folder = dataset();
    for name in ["rgb8.png", "palette.png"] {
        std::fs::copy(
            fixtures().join("formats").join(name),
            folder.path().join("labelsTr/case_0.png"),
        )
        .unwrap();
        let error = planning(folder.path());
        assert!(matches!(
            error,
            DataError::LabelInColour { channels: 3, .. }
        ));
        assert_says(
            &error,
            &["labelsTr/case_0.png", "greyscale", "not as colours"],
        );
    }
}

#[test]
fn flat_and_solid_images_in_one_data_set() {
    let folder = float_dataset(&[1.0, 2.0], &[0.0, 1.0]);
    for (path, value) in [("imagesTr/d_0000.nii", 3), ("labelsTr/d.nii", 1)] {
        let data = ArrayD::from_elem(IxDyn(&[2, 2, 2]), value);
        write_labels(
            &folder.path().join(path),
            &LabelMap {
                data,
                geometry: Geometry::unit(3),
            },
        )
        .unwrap();
    }
    assert_says(&planning(folder.path()), &["`d`", "3 axes", "`c`", "2"]);
}

#[test]
fn unknown_case() {
    let folder = dataset();
    let error = Dataset::open(folder.path())
        .unwrap()
        .load_image("case_9", Split::Training)
        .unwrap_err();
    assert_says(
        &error,
        &["`case_9`", "no training case", "check the case's name"],
    );
}

#[test]
fn input_for_prediction() {
    let folder = dataset();
    let images = |path: &Path| images_in(path, ".png", 1);
    assert_says(
        &images(&folder.path().join("nothing")).unwrap_err(),
        &["nothing", "does not exist", ".png"],
    );
    assert_says(
        &images(&folder.path().join("dataset.json")).unwrap_err(),
        &["dataset.json", "`.png`", "convert"],
    );
    let empty = tempfile::tempdir().unwrap();
    assert_says(&images(empty.path()).unwrap_err(), &["holds no image"]);
}

#[test]
fn plans_that_cannot_be() {
    let folder = dataset();
    let path = folder.path().join("plans.json");
    let dataset = Dataset::open(folder.path()).unwrap();
    let fingerprint = Fingerprint::take(&dataset, 1, &|_| {}).unwrap();
    let plan = plan(&Request {
        dataset_name: "test",
        info: &dataset.info,
        fingerprint: &fingerprint,
        planner: Planner::Default,
        memory_gb: None,
        spacing: None,
    });
    plan.write(&path).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    let changes = [
        (
            "\"batch_size\": 2",
            "\"batch_size\": 0",
            vec!["configurations.2d.batch_size"],
        ),
        (
            "\"batch_size\"",
            "\"batchsize\"",
            vec!["missing field `batch_size`"],
        ),
        (
            "\"ZScoreNormalization\"",
            "\"zscore\"",
            vec!["unknown variant `zscore`"],
        ),
        (
            "\"order\": 3",
            "\"order\": 2",
            vec!["configurations.2d.resampling_fn_data_kwargs", "order 2"],
        ),
        (
            "resample_data_or_seg_to_shape",
            "resample_torch",
            vec!["configurations.2d.resampling_fn_data", "resample_torch"],
        ),
        (
            "\"configurations\"",
            "\"configuration\"",
            vec!["configurations", "nnU-Net v2"],
        ),
    ];
    for (from, to, words) in changes {
        assert!(good.contains(from), "{from} is not in {good}");
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let mut all = vec!["plans.json"];
        all.extend(words);
        assert_says(&Plan::read(&path).unwrap_err(), &all);
    }
    assert_says(
        &plan.configuration("3d_fullres").unwrap_err(),
        &["3d_fullres", "the plan has 2d"],
    );
}
