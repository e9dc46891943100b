//! Data sets of each folder convention: found, read, split, verified and converted.
#![allow(clippy::unwrap_used)]

mod util;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use image::{GrayImage, Luma, RgbImage};
use ndarray::{ArrayD, IxDyn};
use tempfile::TempDir;
use util::{describe, small_dataset, square};
use vision_mamba_datasets::layout::convert::convert;
use vision_mamba_datasets::layout::problem::{Kind, Severity};
use vision_mamba_datasets::layout::verify::{Report, Verification};
use vision_mamba_datasets::split::Source;
use vision_mamba_datasets::{
    read_image, read_labels, write_image, write_labels, DataError, Dataset, Folds, Geometry, Image,
    LabelMap, Split,
};

fn goldens(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden_pipeline/formats")
        .join(name)
}

fn verified(folder: &Path) -> Report {
    Verification::start(folder).unwrap().run(3, &|_| {})
}

#[track_caller]
fn sound(folder: &Path) -> Report {
    let report = verified(folder);
    assert_eq!(report.count(Severity::Error), 0, "{:#?}", report.problems);
    report
}

fn rgb(path: &Path, shade: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixel = |x: u32, y: u32| image::Rgb([shade, (x * 9) as u8, (y * 7) as u8]);
    RgbImage::from_fn(16, 12, pixel).save(path).unwrap();
}

/// A mask whose columns hold these values in turn.
fn mask(path: &Path, values: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixel = |x: u32, _| Luma([values[x as usize % values.len()]]);
    GrayImage::from_fn(16, 12, pixel).save(path).unwrap();
}

fn isic(root: &Path) {
    for (part, first, count) in [("Training", 0, 4), ("Validation", 10, 2), ("Test", 20, 1)] {
        for number in first..first + count {
            let name = format!("ISIC_{number:07}");
            let images = root.join(format!("ISIC2018_Task1-2_{part}_Input"));
            let masks = root.join(format!("ISIC2018_Task1_{part}_GroundTruth"));
            rgb(&images.join(format!("{name}.jpg")), number as u8);
            mask(&masks.join(format!("{name}_segmentation.png")), &[0, 255]);
        }
        // Published beside the pictures.
        let folder = root.join(format!("ISIC2018_Task1-2_{part}_Input"));
        fs::write(folder.join("ATTRIBUTION.txt"), "by").unwrap();
    }
}

#[test]
fn skin_lesions_with_their_official_split() {
    let folder = tempfile::tempdir().unwrap();
    isic(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.layout, "image and mask pairs");
    assert_eq!(dataset.training_ids().len(), 6);
    assert_eq!(dataset.test_ids(), ["ISIC_0000020"]);
    assert_eq!(dataset.info.channel_names, ["R", "G", "B"]);
    assert_eq!(dataset.info.file_ending, ".jpg");
    let (image, label) = dataset.load_case("ISIC_0000011", Split::Training).unwrap();
    assert_eq!(image.data.shape(), [3, 12, 16]);
    assert_eq!(label.data[[0, 0]], 0);
    assert_eq!(label.data[[5, 1]], 1);
    let folds = Folds::of(&dataset, None).unwrap();
    assert_eq!(folds.source, Source::Official);
    assert_eq!(folds.folds[0].validation, ["ISIC_0000010", "ISIC_0000011"]);
    assert_eq!(folds.folds[0].train.len(), 4);
    // A file of folds takes its place.
    let own = r#"[{"train": ["ISIC_0000010"], "val": ["ISIC_0000000"]}]"#;
    fs::write(folder.path().join("splits_final.json"), own).unwrap();
    let folds = Folds::of(&dataset, None).unwrap();
    assert_eq!(folds.folds[0].train, ["ISIC_0000010"]);
}

#[test]
fn plain_folders_of_pairs_in_their_many_names() {
    for (images, masks, suffix) in [
        ("images", "masks", ""),
        ("Images", "Annotations", "_mask"),
        ("data/img", "data/labels", "_gt"),
        ("train/images", "train/masks", "_seg"),
        ("images/train", "masks/train", ""),
        ("scene", "GroundTruth", ""),
        ("all", "all", "_mask"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for case in 0..3u8 {
            rgb(
                &folder.path().join(images).join(format!("c{case}.png")),
                case,
            );
            let mask_file = folder
                .path()
                .join(masks)
                .join(format!("c{case}{suffix}.png"));
            mask(&mask_file, &[0, 128, 255]);
        }
        let dataset = Dataset::open(folder.path()).unwrap_or_else(|e| panic!("{images}: {e}"));
        assert_eq!(dataset.training_ids(), ["c0", "c1", "c2"], "{images}");
        assert_eq!(dataset.info.labels.len(), 3, "{images}");
        let label = dataset.load_label("c1", Split::Training).unwrap();
        assert_eq!(label.data.as_slice().unwrap()[..3], [0, 1, 2], "{images}");
        assert!(
            dataset.notes[0].contains("0, 128, 255"),
            "{:?}",
            dataset.notes
        );
        sound(folder.path());
    }
}

#[test]
fn faulty_masks_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: String| folder.path().join(name);
    for case in 0..12u8 {
        rgb(&file(format!("images/c{case:02}.png")), case);
        mask(&file(format!("masks/c{case:02}.png")), &[0, 255]);
    }
    // One in twelve may stray, and does not become a class.
    mask(&file("masks/c03.png".into()), &[0, 7, 255]);
    let strays: Vec<_> = sound_but(folder.path());
    assert_eq!(strays, [(Kind::MaskValues, "c03".to_owned())]);
    let error = Dataset::open(folder.path())
        .unwrap()
        .load_label("c03", Split::Training)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("c03.png") && error.contains('7') && error.contains("0, 255"),
        "{error}"
    );
    // A JPEG in place of a mask, colours, none at all, one without image, one image twice.
    fs::remove_file(file("masks/c03.png".into())).unwrap();
    rgb(&file("masks/c03.jpg".into()), 0);
    rgb(&file("masks/c04.png".into()), 0);
    fs::remove_file(file("masks/c05.png".into())).unwrap();
    mask(&file("masks/zz.png".into()), &[0, 255]);
    rgb(&file("images/c06.bmp".into()), 99);
    rgb(&file("images/c07.png".into()), 8);
    let found: BTreeSet<_> = sound_but(folder.path()).into_iter().collect();
    let expected = [
        (Kind::ColourLabel, "c04"),
        (Kind::DuplicateCase, "c06"),
        (Kind::MaskValues, "c03"),
        (Kind::MissingLabel, "c05"),
        (Kind::OrphanLabel, "zz"),
    ];
    let expected = expected.map(|(kind, case)| (kind, case.to_owned()));
    assert_eq!(found, BTreeSet::from(expected));
    let report = verified(folder.path());
    let same = report
        .problems
        .iter()
        .find(|p| p.severity == Severity::Warning);
    let same = same.unwrap();
    assert_eq!(
        (same.kind, same.case.as_deref()),
        (Kind::DuplicateCase, Some("c08"))
    );
    assert!(same.problem.contains("`c07`"), "{}", same.problem);
}

/// The errors of a folder, by kind and case.
fn sound_but(folder: &Path) -> Vec<(Kind, String)> {
    let problems = verified(folder).problems;
    let errors = problems
        .into_iter()
        .filter(|p| p.severity == Severity::Error);
    errors
        .map(|p| (p.kind, p.case.unwrap_or_default()))
        .collect()
}

#[test]
fn only_lossy_masks() {
    let folder = tempfile::tempdir().unwrap();
    for case in 0..2 {
        rgb(&folder.path().join(format!("images/{case}.jpg")), case);
        rgb(&folder.path().join(format!("masks/{case}.jpg")), case);
    }
    let error = Dataset::open(folder.path()).unwrap_err();
    assert!(matches!(error, DataError::MaskValues { .. }), "{error}");
    assert!(error.to_string().contains("JPEG"), "{error}");
}

#[test]
fn a_file_list_in_dataset_json() {
    let folder = tempfile::tempdir().unwrap();
    small_dataset(folder.path(), 3);
    let json = r#"{"channel_names": {"0": "T1"}, "labels": {"background": 0, "square": 1}, "file_ending": ".png", "numTraining": 2,
        "dataset": {"b": {"images": ["imagesTr/case_0_0000.png"], "label": "./labelsTr/case_0.png"},
                    "a": {"images": ["ABSOLUTE/imagesTr/case_2_0000.png"], "label": "labelsTr/case_2.png"}}}"#;
    let here = folder.path().to_string_lossy();
    fs::write(
        folder.path().join("dataset.json"),
        json.replace("ABSOLUTE", &here),
    )
    .unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.training_ids(), ["a", "b"]);
    let (image, _) = dataset.load_case("a", Split::Training).unwrap();
    assert_eq!(image.data[[0, 0, 0]], 42.0);
    sound(folder.path());
    let listed = fs::read_to_string(folder.path().join("dataset.json")).unwrap();
    let gone = listed.replace("case_0_0000", "case_9_0000");
    fs::write(folder.path().join("dataset.json"), gone).unwrap();
    assert_eq!(
        sound_but(folder.path()),
        [(Kind::MissingImage, "b".to_owned())]
    );
    fs::write(
        folder.path().join("dataset.json"),
        listed.replace("\"images\"", "\"image\""),
    )
    .unwrap();
    let error = Dataset::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("`images`") && error.contains("`b`"),
        "{error}"
    );
}

fn decathlon(root: &Path) {
    for sub in ["imagesTr", "labelsTr", "imagesTs"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    let values =
        |n: usize| ArrayD::from_shape_fn(IxDyn(&[2, 4, 6, 5]), |i| (n + i[0] * 10 + i[3]) as f32);
    let mut geometry = Geometry::unit(3);
    geometry.spacing = vec![3.0, 0.5, 0.5];
    for case in 1..=3 {
        let sub = if case < 3 { "imagesTr" } else { "imagesTs" };
        let image = Image {
            data: values(case),
            geometry: geometry.clone(),
        };
        write_image(
            &root.join(format!("{sub}/prostate_{case:02}.nii.gz")),
            &image,
        )
        .unwrap();
        if case < 3 {
            let data = ArrayD::from_shape_fn(IxDyn(&[4, 6, 5]), |i| (i[1] % 3) as i16);
            let label = LabelMap {
                data,
                geometry: geometry.clone(),
            };
            write_labels(
                &root.join(format!("labelsTr/prostate_{case:02}.nii.gz")),
                &label,
            )
            .unwrap();
        }
    }
    // As a Mac's archive leaves it.
    fs::write(root.join("imagesTr/._prostate_01.nii.gz"), "x").unwrap();
    let json = r#"{"name": "PROSTATE", "tensorImageSize": "4D", "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"}, "numTraining": 2, "numTest": 1,
        "training": [{"image": "./imagesTr/prostate_02.nii.gz", "label": "./labelsTr/prostate_02.nii.gz"},
                     {"image": "./imagesTr/prostate_01.nii.gz", "label": "./labelsTr/prostate_01.nii.gz"}],
        "test": ["./imagesTs/prostate_03.nii.gz"]}"#;
    fs::write(root.join("dataset.json"), json).unwrap();
}

#[test]
fn decathlon_tasks() {
    let folder = tempfile::tempdir().unwrap();
    decathlon(folder.path());
    let report = sound(folder.path());
    assert_eq!(report.layout, "Medical Segmentation Decathlon");
    assert_eq!((report.training, report.test), (2, 1));
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.info.channel_names, ["T2", "ADC"]);
    let labels = [("background", 0), ("PZ", 1), ("TZ", 2)].map(|(n, v)| (n.to_owned(), v));
    assert_eq!(dataset.info.labels, labels);
    let (image, label) = dataset.load_case("prostate_02", Split::Training).unwrap();
    assert_eq!(image.data.shape(), [2, 4, 6, 5]);
    assert_eq!(label.data.shape(), [4, 6, 5]);
    assert_eq!(
        dataset.load_image("prostate_03", Split::Test).unwrap().data[[1, 0, 0, 0]],
        13.0
    );

    // Paths that lead out of the folder are not followed, and files that no list names are told.
    let json = folder.path().join("dataset.json");
    let text = fs::read_to_string(&json).unwrap();
    fs::write(
        &json,
        text.replace("./imagesTr/prostate_02", "../imagesTr/prostate_02"),
    )
    .unwrap();
    let report = verified(folder.path());
    let kinds: BTreeSet<Kind> = report.problems.iter().map(|p| p.kind).collect();
    let expected = [
        Kind::DatasetJson,
        Kind::NumTraining,
        Kind::IgnoredFile,
        Kind::OrphanLabel,
    ];
    assert_eq!(kinds, BTreeSet::from(expected), "{:#?}", report.problems);
}

#[test]
fn decathlon_converts_to_one_file_a_channel() {
    let folder = tempfile::tempdir().unwrap();
    decathlon(folder.path());
    let out = tempfile::tempdir().unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    let done = convert(&dataset, out.path(), "Prostate", 2, &|_| {}).unwrap();
    assert_eq!((done.cases, done.made), (3, 8));
    let again = convert(&dataset, out.path(), "Prostate", 2, &|_| {}).unwrap();
    assert_eq!(again.made, 0, "nothing to do twice");
    sound(out.path());
    let converted = Dataset::open(out.path()).unwrap();
    assert_eq!(converted.layout, "nnU-Net v2 raw");
    assert_eq!(converted.info.labels, dataset.info.labels);
    for (id, split) in [
        ("prostate_01", Split::Training),
        ("prostate_03", Split::Test),
    ] {
        let (a, b) = (
            dataset.load_image(id, split).unwrap(),
            converted.load_image(id, split).unwrap(),
        );
        assert_eq!(a.data, b.data);
        assert_eq!(a.geometry.spacing, b.geometry.spacing);
    }
}

/// Hearts of three patients; the slices of the golden files under other names.
fn acdc(root: &Path) {
    fs::create_dir_all(root.join("data/slices")).unwrap();
    let source = goldens("ACDC/data");
    let mut slices: Vec<PathBuf> = fs::read_dir(source.join("slices"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    slices.sort();
    let mut list = String::new();
    for (patient, frame) in [(1, 1), (1, 2), (2, 1)] {
        for number in 1..=2 {
            let name = format!("patient{patient:03}_frame{frame:02}_slice_{number}");
            fs::copy(&slices[0], root.join(format!("data/slices/{name}.h5"))).unwrap();
            list += &format!("{name}\n");
        }
    }
    fs::copy(
        source.join("patient003_frame02.h5"),
        root.join("data/patient003_frame02.h5"),
    )
    .unwrap();
    util::downloads::hdf5(&root.join("data/patient003_frame01.h5"), 1, 4);
    fs::write(root.join("train_slices.list"), list).unwrap();
    fs::write(root.join("val.list"), "patient003_frame01\n").unwrap();
    fs::write(root.join("test.list"), "patient003_frame02\n\n").unwrap();
}

#[test]
fn hearts_train_on_slices_and_validate_on_volumes() {
    let folder = tempfile::tempdir().unwrap();
    acdc(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.layout, "ACDC");
    assert_eq!(dataset.training_ids().len(), 7);
    assert_eq!(dataset.planned_ids().len(), 6);
    assert_eq!(dataset.test_ids(), ["patient003_frame02"]);
    let names: Vec<&str> = dataset.info.labels.iter().map(|l| l.0.as_str()).collect();
    assert_eq!(
        names,
        [
            "background",
            "right ventricle",
            "myocardium",
            "left ventricle"
        ]
    );
    let folds = Folds::of(&dataset, None).unwrap();
    assert_eq!(folds.source, Source::Official);
    assert_eq!(folds.folds[0].validation, ["patient003_frame01"]);
    let (image, label) = dataset
        .load_case("patient003_frame01", Split::Training)
        .unwrap();
    assert_eq!(image.spatial_size(), label.data.shape());
    assert_eq!(label.data.ndim(), 3);
    assert_eq!(
        dataset
            .load_label("patient001_frame02_slice_1", Split::Training)
            .unwrap()
            .data
            .ndim(),
        2
    );
    // The volume to test on is here that to validate on; a list that names it twice is told.
    let report = sound(folder.path());
    assert!(
        report.problems.iter().all(|p| p.severity == Severity::Note),
        "{report:#?}"
    );
    fs::write(
        folder.path().join("val.list"),
        "patient003_frame01\npatient003_frame01\npatient009_frame01\n",
    )
    .unwrap();
    let report = verified(folder.path());
    assert_eq!(report.count(Severity::Warning), 1);
    assert!(sound_but(folder.path()).contains(&(Kind::MissingImage, "patient009_frame01".into())));
}

#[test]
fn hearts_convert_to_volumes() {
    let folder = tempfile::tempdir().unwrap();
    acdc(folder.path());
    let out = tempfile::tempdir().unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    convert(&dataset, out.path(), "ACDC", 2, &|_| {}).unwrap();
    sound(out.path());
    let converted = Dataset::open(out.path()).unwrap();
    assert_eq!(converted.training_ids().len(), 4);
    let folds = Folds::of(&converted, None).unwrap().folds;
    assert_eq!(folds[0].validation, ["patient003_frame01"]);
    assert_eq!(folds[0].train.len(), 3);
    let slice = dataset
        .load_image("patient001_frame02_slice_2", Split::Training)
        .unwrap();
    let volume = converted
        .load_image("patient001_frame02", Split::Training)
        .unwrap();
    assert_eq!(volume.data.shape()[1], 2);
    assert_eq!(volume.data.index_axis(ndarray::Axis(1), 1), slice.data);
}

#[test]
fn organs_without_validation_list_are_split_by_volume() {
    let folder = tempfile::tempdir().unwrap();
    let source = goldens("Synapse");
    for sub in ["train_npz", "test_vol_h5", "lists"] {
        fs::create_dir(folder.path().join(sub)).unwrap();
    }
    let mut list = String::new();
    for case in 5..12 {
        for slice in 0..3 {
            let name = format!("case{case:04}_slice{slice:03}");
            let target = folder.path().join(format!("train_npz/{name}.npz"));
            fs::copy(source.join("train_npz/case0006_slice003.npz"), target).unwrap();
            list += &format!("{name}\n");
        }
    }
    let volume = "test_vol_h5/case0008.npy.h5";
    fs::copy(
        source.join(volume),
        folder.path().join("test_vol_h5/case0022.npy.h5"),
    )
    .unwrap();
    fs::write(folder.path().join("lists/train.txt"), list).unwrap();
    fs::write(folder.path().join("lists/test_vol.txt"), "case0022\n").unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.layout, "Synapse");
    assert_eq!(dataset.info.labels.len(), 9);
    assert_eq!(dataset.info.labels[4].0, "right kidney");
    assert_eq!(
        (dataset.training_ids().len(), dataset.test_ids().len()),
        (21, 1)
    );
    let folds = Folds::of(&dataset, None).unwrap();
    assert_eq!(folds.source, Source::FiveFolds);
    let volumes =
        |ids: &[String]| -> BTreeSet<String> { ids.iter().map(|i| i[..8].to_owned()).collect() };
    for fold in &folds.folds {
        let (train, validation) = (volumes(&fold.train), volumes(&fold.validation));
        assert!(train.is_disjoint(&validation), "{fold:?}");
        assert_eq!(fold.train.len() + fold.validation.len(), 21);
    }
    sound(folder.path());
}

/// A volume with the spacing of its label map, and what else may be wrong with it.
struct Volume {
    size: [usize; 3],
    spacing: f64,
    origin: f64,
    turned: bool,
}

const GOOD: Volume = Volume {
    size: [3, 4, 5],
    spacing: 1.5,
    origin: 7.0,
    turned: false,
};

impl Volume {
    fn geometry(&self) -> Geometry {
        let mut geometry = Geometry::unit(3);
        geometry.spacing = vec![2.0, self.spacing, 1.0];
        geometry.origin = vec![0.0, self.origin, 1.0];
        if self.turned {
            geometry.direction = vec![-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0];
        }
        geometry
    }

    fn image(&self, path: &Path, values: impl Fn(usize) -> f32) {
        let mut at = 0;
        let data = ArrayD::from_shape_fn(
            IxDyn(&[1, self.size[0], self.size[1], self.size[2]]),
            |_| {
                at += 1;
                values(at)
            },
        );
        let geometry = self.geometry();
        write_image(path, &Image { data, geometry }).unwrap();
    }

    fn label(&self, path: &Path, values: impl Fn(usize) -> i16) {
        let mut at = 0;
        let data = ArrayD::from_shape_fn(IxDyn(&self.size), |_| {
            at += 1;
            values(at)
        });
        let geometry = self.geometry();
        write_labels(path, &LabelMap { data, geometry }).unwrap();
    }
}

/// Two channels, three labels, and one sound case.
fn volumes() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for sub in ["imagesTr", "labelsTr"] {
        fs::create_dir(folder.path().join(sub)).unwrap();
    }
    case(folder.path(), "aa");
    folder
}

/// A sound case, different from any other.
fn case(root: &Path, id: &str) {
    let shade = id.bytes().map(u32::from).sum::<u32>() as f32;
    for channel in 0..2 {
        let file = root.join(format!("imagesTr/{id}_{channel:04}.nii.gz"));
        GOOD.image(&file, |i| shade + i as f32 + 100.0 * channel as f32);
    }
    GOOD.label(&root.join(format!("labelsTr/{id}.nii.gz")), |i| {
        (i % 2) as i16
    });
}

fn write_json(root: &Path, cases: usize) {
    let json = format!(
        r#"{{"channel_names": {{"0": "T1", "1": "T2"}}, "labels": {{"background": 0, "a": 1, "b": 2}},
            "numTraining": {cases}, "file_ending": ".nii.gz"}}"#
    );
    fs::write(root.join("dataset.json"), json).unwrap();
}

#[test]
fn every_kind_of_problem_at_once() {
    let folder = volumes();
    let root = folder.path();
    let image = |name: &str| root.join(format!("imagesTr/{name}.nii.gz"));
    let label = |name: &str| root.join(format!("labelsTr/{name}.nii.gz"));
    for id in [
        "nolabel",
        "nochannel",
        "shape",
        "spacing",
        "origin",
        "direction",
        "value",
        "nan",
        "inf",
        "cut",
        "cutlabel",
        "fraction",
        "empty",
        "copy",
        "channel_shape",
        "third",
    ] {
        case(root, id);
    }
    fs::remove_file(label("nolabel")).unwrap();
    fs::remove_file(image("nochannel_0000")).unwrap();
    Volume {
        size: [3, 4, 6],
        ..GOOD
    }
    .label(&label("shape"), |_| 1);
    Volume {
        spacing: 1.6,
        ..GOOD
    }
    .label(&label("spacing"), |_| 1);
    Volume {
        origin: 7.5,
        ..GOOD
    }
    .label(&label("origin"), |_| 1);
    Volume {
        turned: true,
        ..GOOD
    }
    .label(&label("direction"), |_| 1);
    GOOD.label(&label("value"), |i| if i == 9 { 5 } else { 1 });
    GOOD.image(&image("nan_0001"), |i| if i == 3 { f32::NAN } else { 1.0 });
    GOOD.image(
        &image("inf_0000"),
        |i| if i == 3 { f32::INFINITY } else { 1.0 },
    );
    for file in [image("cut_0001"), label("cutlabel")] {
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    }
    GOOD.image(&label("fraction"), |i| if i == 4 { 0.5 } else { 1.0 });
    GOOD.label(&label("empty"), |_| 0);
    for channel in 0..2 {
        let copied = image(&format!("copy_{channel:04}"));
        fs::copy(image(&format!("aa_{channel:04}")), copied).unwrap();
    }
    Volume {
        size: [3, 4, 7],
        ..GOOD
    }
    .image(&image("channel_shape_0001"), |i| i as f32);
    GOOD.image(&image("third_0002"), |i| i as f32);
    GOOD.label(&label("orphan"), |_| 1);
    GOOD.image(&root.join("imagesTr/other_0000.nrrd"), |i| i as f32);
    GOOD.image(&image("nonumber"), |i| i as f32);
    fs::write(
        root.join("splits_final.json"),
        r#"[{"train": ["aa", "stranger"], "val": ["aa"]}]"#,
    )
    .unwrap();
    write_json(root, 99);

    let report = verified(root);
    let found: BTreeSet<(Severity, Kind, String)> = report
        .problems
        .iter()
        .map(|p| (p.severity, p.kind, p.case.clone().unwrap_or_default()))
        .collect();
    use Severity::{Error, Note, Warning};
    let expected = [
        (Error, Kind::MissingLabel, "nolabel"),
        (Error, Kind::MissingChannel, "nochannel"),
        (Error, Kind::ShapeMismatch, "shape"),
        (Error, Kind::SpacingMismatch, "spacing"),
        (Warning, Kind::OriginMismatch, "origin"),
        (Warning, Kind::DirectionMismatch, "direction"),
        (Error, Kind::UnexpectedLabel, "value"),
        (Error, Kind::NotFinite, "nan"),
        (Error, Kind::NotFinite, "inf"),
        (Error, Kind::Unreadable, "cut"),
        (Error, Kind::Unreadable, "cutlabel"),
        (Error, Kind::NonIntegerLabel, "fraction"),
        (Note, Kind::EmptyLabel, "empty"),
        (Warning, Kind::DuplicateCase, "copy"),
        (Error, Kind::ShapeMismatch, "channel_shape"),
        (Error, Kind::ExtraChannel, "third"),
        (Error, Kind::OrphanLabel, "orphan"),
        (Error, Kind::MixedEndings, ""),
        (Error, Kind::IgnoredFile, ""),
        (Error, Kind::NumTraining, ""),
        (Error, Kind::List, ""),
        (Warning, Kind::List, "aa"),
        (Note, Kind::UnusedLabel, ""),
    ];
    for (severity, kind, case) in expected {
        let wanted = (severity, kind, case.to_owned());
        assert!(found.contains(&wanted), "{wanted:?} is not in {found:#?}");
    }
    // Nothing besides, but for the cases that no fold has.
    let expected: BTreeSet<_> = expected.map(|(s, k, c)| (s, k, c.to_owned())).into();
    let besides: Vec<_> = found
        .difference(&expected)
        .filter(|f| !(f.0 == Warning && f.1 == Kind::List))
        .collect();
    assert!(besides.is_empty(), "{besides:?}");
    for problem in &report.problems {
        assert!(
            !problem.problem.is_empty() && !problem.problem.contains('\n'),
            "{problem:?}"
        );
    }
    let value = report
        .problems
        .iter()
        .find(|p| p.kind == Kind::UnexpectedLabel)
        .unwrap();
    assert!(value.problem.contains("5 (1 voxels)"), "{}", value.problem);
    assert_eq!(value.file.as_deref(), Some(label("value").as_path()));
    let channel = report
        .problems
        .iter()
        .find(|p| p.kind == Kind::MissingChannel)
        .unwrap();
    assert_eq!(
        channel.file.as_deref(),
        Some(image("nochannel_0000").as_path())
    );
}

#[test]
fn a_sound_set_has_no_problem_and_flat_images_among_solid_ones_are_told() {
    let folder = volumes();
    case(folder.path(), "bb");
    write_json(folder.path(), 2);
    let report = sound(folder.path());
    assert_eq!(report.problems.len(), 1, "{:#?}", report.problems);
    assert_eq!(report.problems[0].kind, Kind::UnusedLabel);
    for channel in 0..2 {
        let file = folder
            .path()
            .join(format!("imagesTr/cc_{channel:04}.nii.gz"));
        write_labels(&file, &square(8, 9, 3)).unwrap();
    }
    write_labels(&folder.path().join("labelsTr/cc.nii.gz"), &square(8, 9, 1)).unwrap();
    write_json(folder.path(), 3);
    assert_eq!(
        sound_but(folder.path()),
        [(Kind::DimensionMismatch, "cc".to_owned())]
    );
}

#[test]
fn all_faults_of_dataset_json_and_of_the_files_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    small_dataset(folder.path(), 3);
    describe(folder.path(), "{}", r#"{"background": 0, "a": 2}"#, ".svs");
    fs::remove_file(folder.path().join("labelsTr/case_1.png")).unwrap();
    let report = verified(folder.path());
    let faults: Vec<&str> = report
        .problems
        .iter()
        .filter(|p| p.kind == Kind::DatasetJson)
        .map(|p| p.problem.as_str())
        .collect();
    for field in ["channel_names", "labels", "file_ending"] {
        assert!(
            faults.iter().any(|f| f.contains(field)),
            "{field}: {faults:?}"
        );
    }
    assert!(sound_but(folder.path()).contains(&(Kind::MissingLabel, "case_1".into())));
    fs::remove_file(folder.path().join("dataset.json")).unwrap();
    assert!(sound_but(folder.path()).contains(&(Kind::MissingLabel, "case_1".into())));
}

#[test]
fn pictures_convert_with_the_right_labels_and_the_source_stays() {
    let folder = tempfile::tempdir().unwrap();
    isic(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("Dataset018_Skin");
    convert(&dataset, &target, "Skin", 2, &|_| {}).unwrap();
    sound(&target);
    let converted = Dataset::open(&target).unwrap();
    assert_eq!(converted.info.file_ending, ".png");
    let id = "ISIC_0000002";
    assert_eq!(
        dataset.load_case(id, Split::Training).unwrap(),
        converted.load_case(id, Split::Training).unwrap()
    );
    let folds = Folds::of(&converted, None).unwrap().folds;
    assert_eq!(folds[0].validation.len(), 2);
    assert!(target.join("labelsTs/ISIC_0000020.png").is_file());
    // A mask painted anew is written anew, the others are left.
    let original = folder
        .path()
        .join("ISIC2018_Task1_Training_GroundTruth/ISIC_0000002_segmentation.png");
    std::thread::sleep(std::time::Duration::from_millis(20));
    mask(&original, &[255]);
    let again = convert(&dataset, &target, "Skin", 2, &|_| {}).unwrap();
    assert_eq!(again.made, 1);
    let label = read_labels(&target.join(format!("labelsTr/{id}.png"))).unwrap();
    assert!(label.data.iter().all(|v| *v == 1));
    // Into itself, or over another data set, it is not written.
    for place in [folder.path().join("new"), folder.path().to_path_buf()] {
        let error = convert(&dataset, &place, "Skin", 1, &|_| {}).unwrap_err();
        assert!(
            error.to_string().contains("lies in the data set"),
            "{error}"
        );
        assert!(!folder.path().join("new").exists());
    }
    let other = tempfile::tempdir().unwrap();
    small_dataset(other.path(), 2);
    let error = convert(&dataset, other.path(), "Skin", 1, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("case_0_0000.png"), "{error}");
}

#[test]
fn links_in_place_of_copies_and_one_broken_case() {
    let folder = volumes();
    case(folder.path(), "bb");
    write_json(folder.path(), 2);
    let out = tempfile::tempdir().unwrap();
    let convert = || {
        let dataset = Dataset::open(folder.path()).unwrap();
        convert(&dataset, out.path(), "V", 1, &|_| {})
    };
    let lost = folder.path().join("labelsTr/aa.nii.gz");
    let kept = fs::read(&lost).unwrap();
    fs::remove_file(&lost).unwrap();
    let error = convert().unwrap_err().to_string();
    assert!(error.contains("labelsTr/aa.nii.gz"), "{error}");
    assert!(
        out.path().join("labelsTr/bb.nii.gz").is_file(),
        "the rest is done"
    );
    assert!(!out.path().join("dataset.json").exists(), "it comes last");
    fs::write(&lost, kept).unwrap();
    assert_eq!(convert().unwrap().made, 1);
    assert_eq!(convert().unwrap().made, 0);
    sound(out.path());
    let image = "imagesTr/bb_0001.nii.gz";
    assert_eq!(
        read_image(&folder.path().join(image)).unwrap(),
        read_image(&out.path().join(image)).unwrap()
    );
}
