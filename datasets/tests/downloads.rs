//! Benchmark data sets in the forms that people have them in: nested deeper, spelt otherwise, packed otherwise, and with faults.
#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::Path;

use ndarray::{Array2, ArrayD, IxDyn};
use ndarray_npy::NpzWriter;
use util::downloads::{hdf5, value};
use vision_mamba_datasets::catalog::find;
use vision_mamba_datasets::layout::convert::convert;
use vision_mamba_datasets::layout::problem::{Kind, Severity};
use vision_mamba_datasets::layout::verify::{Report, Verification};
use vision_mamba_datasets::{
    write_image, write_labels, Dataset, Folds, Geometry, Image, LabelMap, Split,
};

/// A volume of 3x6x5 and its label map, both told by `seed`.
fn volume(image: &Path, label: &Path, seed: usize, classes: usize) {
    for path in [image, label] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    let mut geometry = Geometry::unit(3);
    geometry.spacing = vec![5.0, 1.5, 1.5];
    let data = ArrayD::from_shape_fn(IxDyn(&[1, 3, 6, 5]), |i| {
        (seed * 100 + i[1] * 30 + i[2] * 5 + i[3]) as f32
    });
    let whole = Image {
        data,
        geometry: geometry.clone(),
    };
    write_image(image, &whole).unwrap();
    let data = ArrayD::from_shape_fn(IxDyn(&[3, 6, 5]), |i| {
        ((i[0] * 30 + i[1] * 5 + i[2]) % classes) as i16
    });
    write_labels(label, &LabelMap { data, geometry }).unwrap();
}

/// ACDC with two training patients and one to test on; names are changed by `spelt`.
fn acdc(root: &Path, ending: &str, spelt: impl Fn(&str) -> String) {
    for (part, number) in [("training", 1), ("training", 2), ("testing", 101)] {
        for frame in [1, 12] {
            let patient = format!("patient{number:03}");
            let at = |rest: &str| {
                root.join(spelt(&format!(
                    "{part}/{patient}/{patient}_frame{frame:02}{rest}{ending}"
                )))
            };
            volume(&at(""), &at("_gt"), number * 20 + frame, 4);
            fs::write(at("").with_file_name("Info.cfg"), "ED: 1").unwrap();
            volume(
                &at("").with_file_name(format!("{patient}_4d.nii.gz")),
                &at("_gt"),
                number,
                4,
            );
        }
    }
}

fn verified(folder: &Path) -> Report {
    Verification::start(folder).unwrap().run(2, &|_| {})
}

/// Whether a problem of this kind names this file or case.
fn names(report: &Report, kind: Kind, part: &str) -> bool {
    report.problems.iter().any(|p| {
        let file = p.file.as_deref().map(|f| f.display().to_string());
        let all = format!(
            "{} {} {}",
            file.unwrap_or_default(),
            p.case.as_deref().unwrap_or(""),
            p.problem
        );
        p.kind == kind && all.contains(part)
    })
}

/// What becomes of a file's name.
type Spelling<'a> = &'a dyn Fn(&str) -> String;

#[test]
fn hearts_are_found_however_they_are_nested_and_spelt() {
    let plain = |name: &str| name.to_owned();
    let forms: [(&str, &str, Spelling); 7] = [
        ("", ".nii.gz", &plain),
        ("database", ".nii.gz", &plain),
        ("ACDC/database", ".nii.gz", &plain),
        ("a/b/ACDC", ".nii.gz", &plain),
        ("", ".nii", &plain),
        // each part unpacked into a folder of its name
        ("", ".nii.gz", &|name| {
            let part = name.split('/').next().unwrap();
            format!("{part}/{name}")
        }),
        ("Database", ".nii.gz", &|name| {
            name.replace("training/p", "Training/P")
                .replace("testing/", "TESTING/")
        }),
    ];
    for (nested, ending, spelt) in forms {
        let folder = tempfile::tempdir().unwrap();
        acdc(&folder.path().join(nested), ending, spelt);
        fs::create_dir_all(folder.path().join("__MACOSX/training/patient001")).unwrap();
        let report = verified(folder.path());
        assert_eq!(report.layout, "ACDC", "{nested} {ending}");
        assert_eq!((report.training, report.test), (4, 2), "{nested} {ending}");
        assert_eq!(report.count(Severity::Error), 0, "{:#?}", report.problems);
        assert!(
            names(&report, Kind::Incomplete, "patient003"),
            "{report:#?}"
        );
        assert!(
            !names(&report, Kind::Incomplete, "patient002"),
            "{report:#?}"
        );
        let dataset = Dataset::open(folder.path()).unwrap();
        assert_eq!(
            dataset.cases(Split::Test)[1].id.to_lowercase(),
            "patient101_frame12"
        );
        assert!(dataset
            .cases(Split::Training)
            .iter()
            .all(|c| c.label.is_file()));
        let out = tempfile::tempdir().unwrap();
        convert(&dataset, out.path(), "ACDC", 1, &|_| {}).unwrap();
        assert_eq!(
            convert(&dataset, out.path(), "ACDC", 1, &|_| {})
                .unwrap()
                .made,
            0
        );
        assert_eq!(verified(out.path()).count(Severity::Error), 0);
        // both frames of a heart are on one side
        assert_eq!(
            dataset.cases(Split::Training)[0].group.to_lowercase(),
            "patient001"
        );
    }
}

#[test]
fn several_data_sets_in_a_folder_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let plain = |name: &str| name.to_owned();
    for name in ["one", "two"] {
        acdc(&folder.path().join(name), ".nii.gz", plain);
    }
    let error = Dataset::open(folder.path()).unwrap_err().to_string();
    for words in ["several data sets", "one", "two", "give the folder"] {
        assert!(error.contains(words), "{error}");
    }
    // what only looks like one is none
    fs::remove_dir_all(folder.path().join("two")).unwrap();
    fs::create_dir(folder.path().join("run")).unwrap();
    fs::write(folder.path().join("run/dataset.json"), "{").unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.root, folder.path().join("one"));
    assert!(dataset.notes[0].contains("one"), "{:?}", dataset.notes);
}

#[test]
fn missing_double_and_corrupt_hearts_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("ACDC/database");
    acdc(&root, ".nii.gz", |name| name.to_owned());
    let file = |name: &str| root.join("training").join(name);
    fs::remove_file(file("patient001/patient001_frame01_gt.nii.gz")).unwrap();
    fs::remove_file(file("patient001/patient001_frame12.nii.gz")).unwrap();
    let two = "patient002/patient002_frame01";
    // the same name in two formats, and the same heart under two names
    volume(
        &file(&format!("{two}.nii")),
        &file(&format!("{two}_gt.nii")),
        41,
        4,
    );
    fs::create_dir(file("patient077")).unwrap();
    for rest in ["", "_gt"] {
        let copy = file(&format!("patient077/patient077_frame01{rest}.nii.gz"));
        fs::copy(file(&format!("{two}{rest}.nii.gz")), copy).unwrap();
    }
    let cut = file("patient002/patient002_frame12.nii.gz");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let report = verified(folder.path());
    for (kind, part) in [
        (Kind::MissingLabel, "patient001_frame01_gt.nii.gz"),
        (Kind::OrphanLabel, "patient001_frame12_gt.nii.gz"),
        (Kind::DuplicateCase, "patient002_frame01.nii"),
        (Kind::DuplicateCase, "patient077_frame01"),
        (Kind::Unreadable, "patient002_frame12.nii.gz"),
    ] {
        assert!(
            names(&report, kind, part),
            "{kind:?} {part}: {:#?}",
            report.problems
        );
    }
    // the broken ones are named, the others are there
    let dataset = Dataset::open(folder.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = convert(&dataset, out.path(), "ACDC", 1, &|_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("patient001_frame01") && !error.contains("patient077"),
        "{error}"
    );
    assert!(out
        .path()
        .join("imagesTr/patient077_frame01_0000.nii.gz")
        .is_file());
    assert!(!out.path().join("dataset.json").exists());
}

/// Mamba-UNet's form of ACDC: slices of patients 1 to 3, a volume to validate on and two to test on.
fn hearts_in_hdf5(root: &Path) {
    let mut slices = String::new();
    for patient in 1..=3 {
        for slice in 1..=2 {
            let name = format!("patient{patient:03}_frame01_slice_{slice}");
            hdf5(
                &root.join(format!("data/slices/{name}.h5")),
                patient * 10 + slice,
                4,
            );
            slices += &format!("{name}\n");
        }
    }
    for patient in [1, 2, 3, 4, 5, 6] {
        hdf5(
            &root.join(format!("data/patient{patient:03}_frame01.h5")),
            patient,
            4,
        );
    }
    for (list, names) in [
        ("train_slices.list", slices.as_str()),
        (
            "train.list",
            "patient001_frame01\npatient002_frame01\npatient003_frame01\n",
        ),
        ("val.list", "patient004_frame01\n"),
        ("test.list", "patient005_frame01\npatient006_frame01\n"),
    ] {
        fs::write(root.join(list), names).unwrap();
    }
}

#[test]
fn hearts_in_hdf5_with_their_lists() {
    for nested in ["", "ACDC", "Mamba-UNet/data/ACDC"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(nested);
        hearts_in_hdf5(&root);
        let report = verified(folder.path());
        assert_eq!(report.layout, "ACDC");
        assert_eq!((report.training, report.test), (7, 2));
        assert_eq!(report.count(Severity::Error), 0, "{:#?}", report.problems);
        assert_eq!(report.count(Severity::Warning), 0, "{:#?}", report.problems);
        let dataset = Dataset::open(folder.path()).unwrap();
        let fold = &Folds::of(&dataset, None).unwrap().folds[0];
        assert_eq!((fold.train.len(), fold.validation.len()), (6, 1));
        // without a list those volumes test that are neither trained nor validated on
        fs::remove_file(root.join("test.list")).unwrap();
        let dataset = Dataset::open(folder.path()).unwrap();
        assert_eq!(
            dataset.test_ids(),
            ["patient005_frame01", "patient006_frame01"]
        );
    }
    let folder = tempfile::tempdir().unwrap();
    hearts_in_hdf5(folder.path());
    let file = |name: &str| folder.path().join("data").join(name);
    fs::remove_file(file("slices/patient002_frame01_slice_1.h5")).unwrap();
    fs::copy(file("patient005_frame01.h5"), file("patient006_frame01.h5")).unwrap();
    fs::write(file("patient004_frame01.h5"), "no HDF5").unwrap();
    fs::write(
        folder.path().join("test.list"),
        "patient005_frame01\npatient006_frame01\npatient005_frame01\n",
    )
    .unwrap();
    let report = verified(folder.path());
    for (kind, part) in [
        (Kind::MissingImage, "patient002_frame01_slice_1"),
        (Kind::DuplicateCase, "patient006_frame01"),
        (Kind::DuplicateCase, "test.list"),
        (Kind::Unreadable, "patient004_frame01"),
    ] {
        assert!(
            names(&report, kind, part),
            "{kind:?} {part}: {:#?}",
            report.problems
        );
    }
}

/// A slice of 16 x 20 and its label map.
fn npz(path: &Path, seed: usize, classes: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = NpzWriter::new(fs::File::create(path).unwrap());
    let image = Array2::from_shape_fn((16, 20), |(y, x)| value(y * 20 + x, seed));
    let label = Array2::from_shape_fn((16, 20), |(y, x)| ((y * 20 + x) / 30 % classes) as f32);
    file.add_array("image", &image).unwrap();
    file.add_array("label", &label).unwrap();
    file.finish().unwrap();
}

/// TransUNet's form of Synapse.
fn organs(root: &Path, lists: Option<&str>) {
    let (mut slices, mut volumes) = (String::new(), String::new());
    for case in [5, 6, 7, 9, 10] {
        for slice in 0..2 {
            let name = format!("case{case:04}_slice{slice:03}");
            npz(
                &root.join(format!("train_npz/{name}.npz")),
                case * 10 + slice,
                9,
            );
            slices += &format!("{name}\n");
        }
    }
    for case in [1, 2] {
        hdf5(
            &root.join(format!("test_vol_h5/case{case:04}.npy.h5")),
            case,
            9,
        );
        volumes += &format!("case{case:04}\n");
    }
    if let Some(lists) = lists {
        fs::create_dir_all(root.join(lists)).unwrap();
        fs::write(root.join(lists).join("train.txt"), slices).unwrap();
        fs::write(root.join(lists).join("test_vol.txt"), volumes).unwrap();
    }
}

#[test]
fn organs_with_and_without_lists() {
    let forms = [
        ("", Some("lists/lists_Synapse")),
        ("Synapse", Some("lists_Synapse")),
        ("TransUNet/data/Synapse", None),
        ("project/Synapse", Some("lists")),
    ];
    for (nested, lists) in forms {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(nested);
        organs(&root, lists);
        let report = verified(folder.path());
        assert_eq!(report.layout, "Synapse", "{nested}");
        assert_eq!((report.training, report.test), (10, 2), "{nested}");
        assert_eq!(report.count(Severity::Error), 0, "{:#?}", report.problems);
        assert_eq!(report.count(Severity::Warning), 0, "{:#?}", report.problems);
        let of_entry = Verification::start(folder.path()).unwrap();
        let report = of_entry.against(find("synapse").unwrap()).run(1, &|_| {});
        assert!(names(&report, Kind::Incomplete, "case0003"), "{report:#?}");
        let dataset = Dataset::open(folder.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        convert(&dataset, out.path(), "Synapse", 1, &|_| {}).unwrap();
        let converted = Dataset::open(out.path()).unwrap();
        assert_eq!(converted.training_ids().len(), 5);
        let (a, b) = (
            dataset.load_case("case0002", Split::Test).unwrap(),
            converted.load_case("case0002", Split::Test).unwrap(),
        );
        assert_eq!((a.0.data, a.1.data), (b.0.data, b.1.data));
    }
    // Mamba-UNet keeps the slices as it keeps those of hearts
    let folder = tempfile::tempdir().unwrap();
    let name = "case0005_slice000";
    hdf5(&folder.path().join(format!("data/slices/{name}.h5")), 5, 9);
    hdf5(&folder.path().join("data/case0001.h5"), 1, 9);
    fs::write(folder.path().join("train_slices.txt"), name).unwrap();
    fs::write(folder.path().join("val.txt"), "case0001\n").unwrap();
    let report = verified(folder.path());
    assert_eq!(
        (report.layout, report.count(Severity::Error)),
        ("Synapse", 0),
        "{report:#?}"
    );
}

#[test]
fn missing_double_and_corrupt_organs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    organs(folder.path(), Some("lists/lists_Synapse"));
    let at = |name: &str| folder.path().join(name);
    fs::remove_file(at("train_npz/case0006_slice001.npz")).unwrap();
    fs::write(at("train_npz/case0007_slice000.npz"), "PK no archive").unwrap();
    fs::copy(
        at("test_vol_h5/case0001.npy.h5"),
        at("test_vol_h5/case0002.npy.h5"),
    )
    .unwrap();
    let report = verified(folder.path());
    for (kind, part) in [
        (Kind::MissingImage, "case0006_slice001"),
        (Kind::Unreadable, "case0007_slice000"),
        (Kind::DuplicateCase, "case0002"),
    ] {
        assert!(
            names(&report, kind, part),
            "{kind:?} {part}: {:#?}",
            report.problems
        );
    }
}

#[test]
fn abdomens_nested_and_spelt_otherwise() {
    for (nested, training) in [
        ("", "RawData/Training"),
        ("Abdomen", "RawData/Training"),
        ("", "Training"),
        ("data/BTCV", ""),
        ("", "rawdata/training"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(nested).join(training);
        for n in 1..=2 {
            let image = root.join(format!("img/img{n:04}.nii.gz"));
            volume(
                &image,
                &root.join(format!("label/label{n:04}.nii.gz")),
                n,
                14,
            );
        }
        let report = verified(folder.path());
        assert_eq!(report.layout, "BTCV abdomen", "{nested} {training}");
        assert_eq!(
            (report.training, report.count(Severity::Error)),
            (2, 0),
            "{:#?}",
            report.problems
        );
        assert!(names(&report, Kind::Incomplete, "img0003"), "{report:#?}");
    }
}

#[test]
fn validation_cases_of_a_decathlon_task_validate() {
    for listed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("amos22");
        let pair = |part: &str, n: usize| {
            let [image, label] =
                ["images", "labels"].map(|w| format!("{w}{part}/amos_{n:04}.nii.gz"));
            volume(&root.join(&image), &root.join(&label), n, 16);
            format!(r#"{{"image": "./{image}", "label": "./{label}"}}"#)
        };
        let training = [pair("Tr", 1), pair("Tr", 4)].join(", ");
        let validation = [pair("Va", 8), pair("Va", 10)].join(", ");
        let list = match listed {
            true => format!(r#""validation": [{validation}],"#),
            false => String::new(),
        };
        let names: Vec<String> = (0..16).map(|n| format!(r#""{n}": "c{n}""#)).collect();
        let json = format!(
            r#"{{"name": "AMOS", "modality": {{"0": "CT"}}, "labels": {{{}}}, "numTraining": 2,
                "training": [{training}], {list} "test": []}}"#,
            names.join(", ")
        );
        fs::write(root.join("dataset.json"), json).unwrap();
        let of_entry = Verification::start(folder.path()).unwrap();
        let report = of_entry.against(find("amos22").unwrap()).run(1, &|_| {});
        assert_eq!(report.training, 4, "{report:#?}");
        let kinds: Vec<Kind> = report.problems.iter().map(|p| p.kind).collect();
        assert_eq!(
            kinds,
            [Kind::Incomplete, Kind::Incomplete],
            "{:#?}",
            report.problems
        );
        assert!(
            report.problems[1].problem.contains("2 validation cases"),
            "{report:#?}"
        );
        let folds = Folds::of(&Dataset::open(folder.path()).unwrap(), None).unwrap();
        assert_eq!(folds.folds[0].validation, ["amos_0008", "amos_0010"]);
        assert_eq!(folds.folds[0].train, ["amos_0001", "amos_0004"]);
    }
}
