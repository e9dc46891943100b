//! Whole data sets: finding cases, dataset.json, the plan, normalisation and folds, against what nnU-Net and scikit-learn give.
#![allow(clippy::unwrap_used)]

mod util;

use std::path::Path;

use serde_json::Value;
use util::{describe, fixtures, small_dataset, square};
use vision_mamba_datasets::cache::{Cache, Made};
use vision_mamba_datasets::planner::{plan, Request};
use vision_mamba_datasets::split::five_folds;
use vision_mamba_datasets::{
    draw_batch, fold, images_in, prepare_case, write_labels, Augmentation, Dataset, DatasetJson,
    Decision, Fingerprint, FoldChoice, Folds, Geometry, Image, PatchSettings, Plan, Planner, Split,
    TrainingCase,
};

fn raw(name: &str) -> Dataset {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden_pipeline");
    Dataset::open(goldens.join("nnUNet_raw").join(name)).unwrap()
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
    assert_eq!(dataset.test_ids(), ["case_006", "case_007"]);
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

fn planned(dataset: &Dataset) -> Plan {
    let fingerprint = Fingerprint::take(dataset, 2, &|_| {}).unwrap();
    plan(&Request {
        dataset_name: "test",
        info: &dataset.info,
        fingerprint: &fingerprint,
        planner: Planner::Default,
        memory_gb: None,
        spacing: None,
    })
}

#[test]
fn a_plan_is_kept_by_writing_and_reading() {
    let plan = planned(&raw("Dataset721_SynthAniso"));
    let (flat, solid) = (
        plan.configuration("2d").unwrap(),
        plan.configuration("3d_fullres").unwrap(),
    );
    assert_eq!((flat.spatial_dims(), solid.spatial_dims()), (2, 3));
    let fitted = flat.training_patch_for(&[16, 32]);
    let fits = |(f, p): (&usize, &usize)| f >= p && f - p < 32;
    assert!(fitted[0] % 16 == 0 && fitted[1] % 32 == 0);
    assert!(fitted.iter().zip(&flat.patch_size).all(fits));
    assert_eq!(solid.training_patch_for(&[1]), solid.patch_size);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plans.json");
    plan.write(&path).unwrap();
    assert_eq!(Plan::read(&path).unwrap(), plan);
    assert_eq!(planned(&raw("Dataset722_SynthRGB")).configurations.len(), 1);
}

/// More memory, larger patches; another spacing, another grid.
#[test]
fn a_plan_follows_what_is_asked() {
    let dataset = raw("Dataset721_SynthAniso");
    let fingerprint = Fingerprint::take(&dataset, 2, &|_| {}).unwrap();
    let ask = |planner, memory_gb, spacing| {
        let request = Request {
            dataset_name: "test",
            info: &dataset.info,
            fingerprint: &fingerprint,
            planner,
            memory_gb,
            spacing,
        };
        plan(&request)
    };
    let finer = ask(Planner::Default, None, Some([1.0, 0.4, 0.4]));
    assert_eq!(finer.configurations["3d_fullres"].spacing, [1.0, 0.4, 0.4]);
    let little = ask(Planner::Default, Some(0.05), Some([1.0, 0.4, 0.4]));
    let voxels = |p: &Plan| -> usize { p.configurations["3d_fullres"].patch_size.iter().product() };
    assert!(voxels(&little) < voxels(&finer));
    let residual = ask(Planner::ResEncL, None, None);
    assert_eq!(residual.plans_name, "nnUNetResEncUNetLPlans");
    let unet = &residual.configurations["2d"].architecture;
    assert!(unet.network_class_name.ends_with("ResidualEncoderUNet"));
    assert_eq!(
        unet.arch_kwargs.n_blocks_per_stage.as_ref().unwrap()[..3],
        [1, 3, 4]
    );
}

#[test]
fn a_fingerprint_says_what_is_odd() {
    let folder = tempfile::tempdir().unwrap();
    small_dataset(folder.path(), 2);
    let blank = |case: &str| {
        let path = folder.path().join(format!("labelsTr/{case}.png"));
        write_labels(&path, &square(12, 10, 0)).unwrap();
    };
    let take = || Fingerprint::take(&Dataset::open(folder.path()).unwrap(), 1, &|_| {});
    blank("case_1");
    let notes = take().unwrap().notes.join("\n");
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
    blank("case_0");
    let error = take().unwrap_err().to_string();
    assert!(error.contains("no label map has foreground"), "{error}");
}

#[test]
fn colours_out_of_range_are_refused() {
    let plan = planned(&raw("Dataset722_SynthRGB"));
    let data = ndarray::ArrayD::from_elem(ndarray::IxDyn(&[3, 4, 4]), 300.0);
    let image = Image {
        data,
        geometry: Geometry::unit(2),
    };
    let error = prepare_case("loud", &image, None, &plan, &plan.configurations["2d"])
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
    let plan = planned(&dataset);
    let (image, label) = dataset.load_case("case_004", Split::Training).unwrap();
    let configuration = plan.configuration("3d_fullres").unwrap();
    let case = prepare_case("case_004", &image, Some(&label), &plan, configuration).unwrap();
    let located = case.locations(&[vec![1], vec![2], vec![3], vec![1, 2]]);
    let flat: Vec<i16> = case.seg.iter().copied().collect();
    for (class, voxels) in (1..).zip(&located[..3]) {
        assert!(voxels.iter().all(|&v| flat[v as usize] == class));
        assert!(voxels.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(voxels.len(), flat.iter().filter(|l| **l == class).count());
    }
    // This case lacks class 3.
    assert!(located[2].is_empty());
    assert_eq!(located[3].len(), located[0].len() + located[1].len());
    // A picture for a volume's network is refused.
    let flat = Image {
        data: ndarray::ArrayD::zeros(ndarray::IxDyn(&[2, 4, 4])),
        geometry: Geometry::unit(2),
    };
    let error = prepare_case("p", &flat, None, &plan, configuration)
        .unwrap_err()
        .to_string();
    assert!(error.contains("choose the configuration 2d"), "{error}");
}

/// Preprocessed cases on the disk: made once, made again when an input changes, the same patches from there as from memory.
#[test]
fn a_cache_is_filled_once_and_notices_changes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    small_dataset(&root, 3);
    let dataset = Dataset::open(&root).unwrap();
    let plan = planned(&dataset);
    let configuration = &plan.configurations["2d"];
    let cache = Cache::new(&folder.path().join("preprocessed"), configuration);
    let ids = dataset.training_ids();
    let fill = || cache.fill(&dataset, &ids, &plan, configuration, 2, &|_| {});
    assert_eq!(fill().unwrap(), Made { made: 3, kept: 0 });
    assert_eq!(fill().unwrap(), Made { made: 0, kept: 3 });
    write_labels(&root.join("labelsTr/case_1.png"), &square(12, 10, 1)).unwrap();
    assert_eq!(fill().unwrap(), Made { made: 1, kept: 2 });
    std::fs::write(cache.path("case_2"), b"cut short").unwrap();
    assert_eq!(fill().unwrap(), Made { made: 1, kept: 2 });

    let settings = PatchSettings {
        training_patch: vec![8, 8],
        batch_size: 4,
        oversample_foreground: 0.5,
        augment: Augmentation::default(),
        masked_channels: Vec::new(),
        ignore_label: None,
        seed: 3,
    };
    let stored = cache.open(&ids).unwrap();
    let fresh: Vec<TrainingCase> = ids
        .iter()
        .map(|id| {
            let (image, label) = dataset.load_case(id, Split::Training).unwrap();
            let case = prepare_case(id, &image, Some(&label), &plan, configuration).unwrap();
            TrainingCase::new(case, &[vec![1]], None)
        })
        .collect();
    for index in 0..5 {
        assert_eq!(
            draw_batch(&stored, &settings, index),
            draw_batch(&fresh, &settings, index)
        );
    }

    // All broken cases are named, and the others are done.
    for case in ["case_0", "case_2"] {
        std::fs::write(root.join(format!("imagesTr/{case}_0000.png")), b"x").unwrap();
    }
    std::fs::remove_file(cache.path("case_1")).unwrap();
    let error = fill().unwrap_err().to_string();
    assert!(
        error.contains("case_0") && error.contains("case_2"),
        "{error}"
    );
    assert!(cache.path("case_1").is_file());
}

/// Where labels are missing, patches show what is annotated, and the rest is marked.
#[test]
fn ignored_voxels_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    small_dataset(folder.path(), 1);
    describe(
        folder.path(),
        r#"{"0": "T1"}"#,
        r#"{"background": 0, "square": 1, "ignore": 2}"#,
        ".png",
    );
    write_labels(
        &folder.path().join("labelsTr/case_0.png"),
        &square(12, 10, 2),
    )
    .unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.info.ignore_label, Some(2));
    assert_eq!(dataset.info.annotated(), Some(vec![-1, 0, 1]));
    let plan = planned(&dataset);
    let (image, label) = dataset.load_case("case_0", Split::Training).unwrap();
    let configuration = &plan.configurations["2d"];
    let case = prepare_case("case_0", &image, Some(&label), &plan, configuration).unwrap();
    let case = TrainingCase::new(case, &[vec![1]], dataset.info.annotated().as_deref());
    let settings = PatchSettings {
        training_patch: vec![12, 10],
        batch_size: 1,
        oversample_foreground: 0.0,
        augment: Augmentation::none(),
        masked_channels: Vec::new(),
        ignore_label: dataset.info.ignore_label,
        seed: 3,
    };
    let batch = draw_batch(&[case], &settings, 0);
    let expected: Vec<i16> = label
        .data
        .iter()
        .map(|l| if *l == 2 { -1 } else { *l })
        .collect();
    // the patch lies around a voxel whose label is known, and so a little to one side
    let first = |labels: &[i16]| labels.iter().position(|&l| l == -1).unwrap();
    let moved = first(&expected) - first(&batch.label);
    let (shown, beyond) = batch.label.split_at(expected.len() - moved);
    assert_eq!(shown, &expected[moved..]);
    assert!(moved < 10 && beyond.iter().all(|&l| l == 0));
}

#[test]
fn regions_are_read_and_painted_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    small_dataset(folder.path(), 1);
    let write = |text: &str| {
        let path = folder.path().join("dataset.json");
        std::fs::write(&path, text).unwrap();
        DatasetJson::read(&path)
    };
    let info = write(
        r#"{"channel_names": {"0": "T1"}, "numTraining": 1, "file_ending": ".png", "regions_class_order": [2, 1],
            "labels": {"background": 0, "whole": [1, 2], "core": 1}}"#,
    )
    .unwrap();
    assert_eq!(info.outputs(), 2);
    assert_eq!(info.label_values(), [0, 1, 2]);
    assert_eq!(info.foreground()[0], ("whole".to_owned(), vec![1, 2]));
    assert_eq!(info.decision(), Decision::Regions(vec![2, 1]));
    let again = serde_json::to_string(&info).unwrap();
    assert_eq!(write(&again).unwrap(), info);

    // (K, Z, Y, X): both regions, the outer alone, neither
    let probabilities =
        ndarray::Array4::from_shape_vec((2, 1, 1, 3), vec![0.9, 0.8, 0.2, 0.7, 0.1, 0.3]).unwrap();
    let labels = info.decision().labels_of_mean(&[probabilities.view()]);
    assert_eq!(labels.iter().copied().collect::<Vec<_>>(), [1, 2, 0]);

    let error = write(
        r#"{"channel_names": {"0": "T1"}, "numTraining": 1, "file_ending": ".png",
            "labels": {"background": 0, "whole": [1, 2], "core": 1}}"#,
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("regions_class_order") && error.contains("whole, core"),
        "{error}"
    );
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
    small_dataset(folder.path(), 6);
    let dataset = Dataset::open(folder.path()).unwrap();
    let ids = dataset.training_ids();
    let of = |choice: &str| fold(&dataset, choice.parse::<FoldChoice>()?);
    let all = of("all").unwrap();
    assert_eq!((&all.train, &all.validation), (&ids, &ids));
    assert_eq!(of("4").unwrap().validation.len(), 1);
    assert!(of("5").unwrap_err().to_string().contains("folds 0 to 4"));
    assert!(of("first").unwrap_err().to_string().contains("`all`"));
    let few = tempfile::tempdir().unwrap();
    small_dataset(few.path(), 3);
    let few = fold(&Dataset::open(few.path()).unwrap(), FoldChoice::Number(0))
        .unwrap_err()
        .to_string();
    assert!(
        few.contains("3 cases") && few.contains("splits_final.json"),
        "{few}"
    );

    // Those beside the preprocessed cases count until the data set has its own.
    let preprocessed = tempfile::tempdir().unwrap();
    let write = |folder: &Path, text: &str| {
        std::fs::write(folder.join("splits_final.json"), text).unwrap();
    };
    write(
        preprocessed.path(),
        r#"[{"train": ["case_2"], "val": ["case_3"]}]"#,
    );
    let prepared = || {
        Folds::of(&dataset, Some(preprocessed.path()))
            .unwrap()
            .folds
    };
    assert_eq!(prepared()[0].train, ["case_2"]);
    write(
        folder.path(),
        r#"[{"train": ["case_1", "case_0"], "val": ["case_5"]}]"#,
    );
    assert_eq!(prepared()[0].train, ["case_0", "case_1"]);
    let own = of("0").unwrap();
    assert_eq!(own.train, ["case_0", "case_1"]);
    assert_eq!(own.validation, ["case_5"]);
    assert!(of("1").unwrap_err().to_string().contains("only fold 0"));
    write(
        folder.path(),
        r#"[{"train": ["case_0", "z"], "val": ["case_5"]}]"#,
    );
    let stranger = of("0").unwrap_err().to_string();
    assert!(
        stranger.contains("splits_final.json") && stranger.contains("`z`"),
        "{stranger}"
    );
}
