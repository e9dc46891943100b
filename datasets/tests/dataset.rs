//! Whole data sets: finding cases, dataset.json, the plan, normalisation and folds, against what nnU-Net and scikit-learn give.
#![allow(clippy::unwrap_used)]

mod util;

use std::cell::RefCell;
use std::path::Path;

use serde_json::Value;
use util::{describe, fixtures, small_dataset, square, tensors};
use vision_mamba_datasets::split::five_folds;
use vision_mamba_datasets::{
    fold, images_in, normalise, prepare_case, write_labels, Dataset, DatasetJson, FoldChoice,
    Geometry, Image, Intensity, Normalisation, Plan, Split,
};

fn raw(name: &str) -> Dataset {
    Dataset::open(fixtures().join("raw").join(name)).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn volumes_with_two_channels() {
    let dataset = raw("Dataset721_SynthAniso");
    assert_eq!(dataset.info.channel_names, ["CT", "T1"]);
    let labels = [
        ("background", 0),
        ("organ", 1),
        ("vessel", 2),
        ("lesion", 3),
    ]
    .map(|(n, v)| (n.to_owned(), v));
    assert_eq!(dataset.info.labels, labels);
    assert_eq!(
        dataset.training_ids(),
        (0..6).map(|i| format!("case_{i:03}")).collect::<Vec<_>>()
    );
    assert!(dataset.test_ids().is_empty());
    let id = &dataset.training_ids()[2];
    assert_eq!(dataset.image_paths(id, Split::Training).unwrap().len(), 2);
    let (image, label) = dataset.load_case(id, Split::Training).unwrap();
    assert_eq!(image.channels(), 2);
    assert_eq!(image.spatial_size(), label.data.shape());
}

#[test]
fn rgb_images_are_three_channels_of_one_file() {
    let dataset = raw("Dataset722_SynthRGB");
    assert_eq!(
        (dataset.training_ids().len(), dataset.test_ids().len()),
        (8, 2)
    );
    let (image, label) = dataset.load_case("img_003", Split::Training).unwrap();
    assert_eq!(image.channels(), 3);
    assert_eq!(image.spatial_size(), label.data.shape());
    let test = images_in(&dataset.root.join("imagesTs"), ".png", 3).unwrap();
    assert_eq!(
        test.iter().map(|c| c.id.clone()).collect::<Vec<_>>(),
        dataset.test_ids()
    );
}

#[test]
fn dataset_json_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let info = raw("Dataset721_SynthAniso").info;
    let path = folder.path().join("dataset.json");
    std::fs::write(&path, serde_json::to_string(&info).unwrap()).unwrap();
    assert_eq!(DatasetJson::read(&path).unwrap(), info);
    assert_eq!(json(&path)["labels"]["lesion"], 3);
    assert_eq!(json(&path)["channel_names"]["1"], "T1");
}

/// Files, folders, and names that only look like channel numbers.
#[test]
fn cases_to_predict() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "a_0000.png",
        "b.png",
        "trip_2021.png",
        "ab_0000.png",
        "._c_0000.png",
        "notes.txt",
    ] {
        write_labels(&folder.path().join("x.png"), &square(12, 10, 1)).unwrap();
        std::fs::rename(folder.path().join("x.png"), folder.path().join(name)).unwrap();
    }
    let ids = |path: &Path, channels| -> Vec<(String, usize)> {
        images_in(path, ".png", channels)
            .unwrap()
            .into_iter()
            .map(|c| (c.id, c.paths.len()))
            .collect()
    };
    let one = |id: &str| (id.to_owned(), 1);
    assert_eq!(
        ids(folder.path(), 1),
        [one("a"), one("ab"), one("b"), one("trip_2021")]
    );
    assert_eq!(
        ids(&folder.path().join("trip_2021.png"), 1),
        [one("trip_2021")]
    );
    assert_eq!(ids(&folder.path().join("b.png"), 1), [one("b")]);
    std::fs::rename(
        folder.path().join("b.png"),
        folder.path().join("a_0001.png"),
    )
    .unwrap();
    assert_eq!(
        ids(&folder.path().join("a_0001.png"), 2),
        [("a".to_owned(), 2)]
    );
}

/// Foreground statistics, which nnU-Net estimates by sampling, in their limit.
#[test]
fn the_plan_has_nnunets_intensities() {
    for name in ["Dataset721_SynthAniso", "Dataset722_SynthRGB"] {
        let dataset = raw(name);
        let plan = Plan::make(&dataset, &|_, _| {}).unwrap();
        let expected = json(&dataset.root.join("foreground_intensity_limit.json"));
        let found = &plan.configuration("2d").unwrap().intensity;
        assert_eq!(found.len(), dataset.info.channel_names.len());
        for (channel, found) in found.iter().enumerate() {
            let found = serde_json::to_value(found).unwrap();
            for field in [
                "mean",
                "std",
                "percentile_00_5",
                "median",
                "percentile_99_5",
                "min",
                "max",
            ] {
                let (f, e) = (
                    found[field].as_f64().unwrap(),
                    expected["channels"][channel.to_string()][field]
                        .as_f64()
                        .unwrap(),
                );
                assert!(
                    (f - e).abs() <= 1e-9 * e.abs().max(1.0),
                    "{name} channel {channel} {field}: {f} is not {e}"
                );
            }
        }
    }
}

#[test]
fn what_a_plan_decides() {
    let dataset = raw("Dataset721_SynthAniso");
    let calls = RefCell::new(Vec::new());
    let plan = Plan::make(&dataset, &|done, total| {
        calls.borrow_mut().push((done, total))
    })
    .unwrap();
    assert_eq!(
        calls.into_inner(),
        (0..=6).map(|d| (d, 6)).collect::<Vec<_>>()
    );
    assert_eq!(
        plan.configurations.keys().collect::<Vec<_>>(),
        ["2d", "3d_fullres"]
    );
    let (flat, solid) = (
        plan.configuration("2d").unwrap(),
        plan.configuration("3d_fullres").unwrap(),
    );
    assert_eq!((flat.spatial_dims, solid.spatial_dims), (2, 3));
    assert_eq!(solid.training_patch[1..], flat.training_patch);
    assert_eq!(solid.spacing[1..], flat.spacing);
    assert_eq!(
        flat.normalisation,
        [Normalisation::Ct, Normalisation::ZScore]
    );
    assert!(
        plan.notes
            .iter()
            .any(|n| n.contains("spacing along axis 0")),
        "{:?}",
        plan.notes
    );
    let fitted = flat.training_patch_for(&[16, 32]);
    assert!(
        fitted[0] % 16 == 0
            && fitted[1] % 32 == 0
            && fitted
                .iter()
                .zip(&flat.training_patch)
                .all(|(f, p)| f >= p && f - p < 32)
    );
    assert_eq!(solid.training_patch_for(&[1]), solid.training_patch);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plans.json");
    plan.write(&path).unwrap();
    assert_eq!(Plan::read(&path).unwrap(), plan);

    let rgb = Plan::make(&raw("Dataset722_SynthRGB"), &|_, _| {}).unwrap();
    assert_eq!(rgb.configurations.len(), 1);
    assert_eq!(rgb.notes, Vec::<String>::new());
    assert_eq!(
        rgb.configurations["2d"].normalisation,
        [Normalisation::RgbTo01; 3]
    );
}

#[test]
fn a_plan_says_what_is_odd() {
    let folder = tempfile::tempdir().unwrap();
    small_dataset(folder.path(), 2);
    write_labels(
        &folder.path().join("labelsTr/case_1.png"),
        &square(12, 10, 0),
    )
    .unwrap();
    let notes = Plan::make(&Dataset::open(folder.path()).unwrap(), &|_, _| {})
        .unwrap()
        .notes
        .join("\n");
    assert!(
        notes.contains("numTraining 3")
            && notes.contains("1 training cases have no foreground: case_1"),
        "{notes}"
    );

    // A CT is normalised by its foreground, so some there must be.
    describe(
        folder.path(),
        r#"{"0": "CT"}"#,
        r#"{"background": 0, "a": 1}"#,
        ".png",
    );
    write_labels(
        &folder.path().join("labelsTr/case_0.png"),
        &square(12, 10, 0),
    )
    .unwrap();
    let error = Plan::make(&Dataset::open(folder.path()).unwrap(), &|_, _| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("no label map has foreground"), "{error}");
}

/// The golden's volume under each scheme; the CT statistics are those that the golden was made with.
#[test]
fn normalisation_is_nnunets() {
    let golden = tensors(&fixtures().join("normalization.safetensors"));
    let tensor = |name: &str| golden.iter().find(|t| t.0 == name).unwrap().1.clone();
    // `ct_properties` in the golden's metadata.
    let ct = Intensity {
        mean: 51.25,
        std: 180.5,
        percentile_00_5: -412.0,
        median: 0.0,
        percentile_99_5: 733.5,
        min: 0.0,
        max: 0.0,
    };
    let cases = [
        ("image", "zscore_nomask", Normalisation::ZScore),
        ("image", "ct", Normalisation::Ct),
        ("image", "nonorm", Normalisation::None),
        ("image", "rescale01", Normalisation::RescaleTo01),
        ("rgb", "rgb01", Normalisation::RgbTo01),
        ("constant", "zscore_constant", Normalisation::ZScore),
        ("constant", "rescale01_constant", Normalisation::RescaleTo01),
    ];
    let plan = Plan::make(&raw("Dataset722_SynthRGB"), &|_, _| {}).unwrap();
    for (input, output, how) in cases {
        let mut configuration = plan.configuration("2d").unwrap().clone();
        configuration.normalisation = vec![how];
        configuration.intensity = vec![ct];
        let input = tensor(input)
            .mapv(|v| v as f32)
            .insert_axis(ndarray::Axis(0));
        let mut image = Image {
            geometry: Geometry::unit(input.ndim() - 1),
            data: input,
        };
        normalise(&mut image, &configuration).unwrap();
        let expected = tensor(output);
        for (found, expected) in image.data.iter().zip(&expected) {
            // float32 sums in the peer; README of the goldens suggests 1e-5.
            assert!(
                (f64::from(*found) - expected).abs() < 1e-5,
                "{output}: {found} is not {expected}"
            );
        }
    }
}

#[test]
fn colours_out_of_range_are_refused() {
    let plan = Plan::make(&raw("Dataset722_SynthRGB"), &|_, _| {}).unwrap();
    let data = ndarray::ArrayD::from_elem(ndarray::IxDyn(&[3, 4, 4]), 300.0);
    let image = Image {
        data,
        geometry: Geometry::unit(2),
    };
    let error = prepare_case("loud", image, None, plan.configuration("2d").unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`loud`") && error.contains("300") && error.contains("rgb_to_0_1"),
        "{error}"
    );
}

#[test]
fn prepared_cases_know_their_foreground() {
    let dataset = raw("Dataset721_SynthAniso");
    let plan = Plan::make(&dataset, &|_, _| {}).unwrap();
    let (image, label) = dataset.load_case("case_004", Split::Training).unwrap();
    let values = label.data.clone();
    let case = prepare_case(
        "case_004",
        image,
        Some(label),
        plan.configuration("3d_fullres").unwrap(),
    )
    .unwrap();
    // This case lacks class 3.
    assert_eq!(
        case.foreground.iter().map(|f| f.0).collect::<Vec<_>>(),
        [1, 2]
    );
    let flat: Vec<i16> = values.iter().copied().collect();
    for (class, voxels) in &case.foreground {
        assert!(
            voxels.iter().all(|&v| flat[v] == *class) && voxels.windows(2).all(|w| w[0] < w[1])
        );
        assert_eq!(voxels.len(), flat.iter().filter(|l| *l == class).count());
    }
    // A picture for a volume's network is refused.
    let flat = Image {
        data: ndarray::ArrayD::zeros(ndarray::IxDyn(&[2, 4, 4])),
        geometry: Geometry::unit(2),
    };
    let error = prepare_case("p", flat, None, plan.configuration("3d_fullres").unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("choose the configuration 2d"), "{error}");
}

#[test]
fn folds_are_scikit_learns() {
    let golden = json(&fixtures().join("crossval_split.json"));
    let strings = |v: &Value| -> Vec<String> {
        v.as_array()
            .unwrap()
            .iter()
            .map(|s| s.as_str().unwrap().into())
            .collect()
    };
    let mut ids = strings(&golden["identifiers"]);
    ids.reverse();
    let folds = five_folds(&ids).unwrap();
    let expected = golden["splits"].as_array().unwrap();
    assert_eq!((folds.len(), expected.len()), (5, 5));
    for (fold, expected) in folds.iter().zip(expected) {
        assert_eq!(fold.train, strings(&expected["train"]));
        assert_eq!(fold.validation, strings(&expected["val"]));
    }
}

#[test]
fn choosing_a_fold() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(String::from).to_vec();
    let of = |choice: &str| fold(folder.path(), &ids, choice.parse::<FoldChoice>()?);
    let all = of("all").unwrap();
    assert_eq!((all.train, all.validation), (ids.clone(), ids.clone()));
    assert_eq!(of("4").unwrap().validation.len(), 1);
    assert!(of("5").unwrap_err().to_string().contains("folds 0 to 4"));
    assert!(of("first").unwrap_err().to_string().contains("`all`"));
    let few = fold(folder.path(), &ids[..3], FoldChoice::Number(0))
        .unwrap_err()
        .to_string();
    assert!(
        few.contains("3 cases") && few.contains("splits_final.json"),
        "{few}"
    );

    let splits = folder.path().join("splits_final.json");
    std::fs::write(&splits, r#"[{"train": ["b", "a"], "val": ["f"]}]"#).unwrap();
    let own = of("0").unwrap();
    assert_eq!(
        (own.train, own.validation),
        (vec!["a".to_owned(), "b".to_owned()], vec!["f".to_owned()])
    );
    assert!(of("1").unwrap_err().to_string().contains("folds 0 to 0"));
    std::fs::write(&splits, r#"[{"train": ["a", "z"], "val": ["f"]}]"#).unwrap();
    let stranger = of("0").unwrap_err().to_string();
    assert!(
        stranger.contains("splits_final.json") && stranger.contains("`z`"),
        "{stranger}"
    );
}
