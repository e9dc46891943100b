//! Benchmarks of the catalogue: folders as downloaded, protocols, published rows, differences, and predictions that are kept.

#![allow(clippy::unwrap_used)]

#[path = "../datasets/tests/util/downloads.rs"]
mod downloads;
mod util;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use serde_json::Value;
use util::{arg, run, Outcome, FEW_STEPS, QUICK};
use vision_mamba_datasets::{write_image, write_labels, Geometry, Image, LabelMap, SourceHeader};

const SIZE: [usize; 3] = [4, 40, 36];

fn geometry() -> Geometry {
    Geometry {
        spacing: vec![10.0, 1.5, 1.5],
        origin: vec![0.0; 3],
        direction: vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        source: SourceHeader::None,
    }
}

/// Three nested discs, whose outermost is `grown` wider.
fn heart(seed: usize, grown: f64) -> LabelMap {
    let data = ArrayD::from_shape_fn(IxDyn(&SIZE), |at| {
        let (y, x) = (at[1] as f64 - 18.0 - (seed % 3) as f64, at[2] as f64 - 18.0);
        let far = (y * y + x * x).sqrt();
        match far {
            f if f < 4.0 => 3,
            f if f < 8.0 => 2,
            f if f < 12.0 + grown => 1,
            _ => 0,
        }
    });
    LabelMap {
        data,
        geometry: geometry(),
    }
}

fn image(labels: &LabelMap, seed: u32) -> Image {
    let mut number = seed;
    let data = labels.data.mapv(|v| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(v) * 50.0 + (number >> 24) as f32 / 16.0
    });
    Image {
        data: data.insert_axis(ndarray::Axis(0)),
        geometry: geometry(),
    }
}

/// ACDC as downloaded, with `patients` of its training patients and three of its test patients.
fn acdc(root: &Path, patients: usize) -> PathBuf {
    let dir = root.join("ACDC");
    for (part, first, last) in [("training", 1, patients), ("testing", 101, 103)] {
        for number in first..=last {
            let patient = format!("patient{number:03}");
            let folder = dir.join(part).join(&patient);
            fs::create_dir_all(&folder).unwrap();
            for frame in ["01", "12"] {
                let seed = (2 * number) as u32 + u32::from(frame == "12");
                let labels = heart(number, 0.0);
                let name = |rest: &str| folder.join(format!("{patient}_frame{frame}{rest}.nii.gz"));
                write_image(&name(""), &image(&labels, seed)).unwrap();
                write_labels(&name("_gt"), &labels).unwrap();
            }
            fs::write(folder.join("Info.cfg"), "Group: NOR\n").unwrap();
        }
    }
    dir
}

/// Predictions of the test patients, their outermost disc `grown` wider by the case.
fn predictions(root: &Path, name: &str, grown: &dyn Fn(usize) -> f64) -> PathBuf {
    let dir = root.join(name);
    fs::create_dir_all(&dir).unwrap();
    for number in 101..=103 {
        for frame in ["01", "12"] {
            let file = dir.join(format!("patient{number}_frame{frame}.nii.gz"));
            write_labels(&file, &heart(number, grown(number))).unwrap();
        }
    }
    dir
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn benchmark(data: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut args = vec!["benchmark", "acdc", "--data", arg(data), "--out", arg(out)];
    args.extend(more);
    run(&args)
}

#[test]
fn the_catalogue_is_listed_and_shown() {
    let list = run(&["datasets", "list"]).expect_success().stdout;
    for name in ["acdc", "synapse", "kits23", "o-haze", "msd-09-spleen"] {
        assert!(list.contains(name), "{list}");
    }
    let shown = run(&["datasets", "show", "acdc"]).expect_success().stdout;
    for words in [
        "humanheart-project",
        "CC BY-NC-SA",
        "frame01_gt.nii.gz",
        "U-Mamba Bot",
        "0.9179",
        "Protocol mamba-unet",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let all: Value =
        serde_json::from_str(&run(&["datasets", "list", "--json"]).expect_success().stdout)
            .unwrap();
    assert!(all.as_array().unwrap().len() >= 20);
    run(&["datasets", "show", "acdcc"])
        .expect_failure(2, &["acdcc", "datasets list", "Did you mean acdc"]);
}

#[test]
fn a_download_is_compared_with_a_complete_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = acdc(dir.path(), 4);
    let report = |more: &[&str]| {
        let mut args = vec!["datasets", "verify", arg(&data), "--json"];
        args.extend(more);
        run(&args)
    };
    let found: Value = serde_json::from_str(&report(&[]).expect_success().stdout).unwrap();
    assert_eq!(found["layout"], "ACDC");
    assert_eq!(
        (found["training"].as_u64(), found["test"].as_u64()),
        (Some(8), Some(6))
    );
    let incomplete: Vec<&Value> = (found["problems"].as_array().unwrap().iter())
        .filter(|p| p["kind"] == "incomplete")
        .collect();
    assert_eq!(incomplete.len(), 2, "{found}");
    let words = incomplete[0]["problem"].as_str().unwrap();
    assert!(
        words.contains("8 training cases") && words.contains("patient005"),
        "{words}"
    );
    // a missing, a corrupt and an additional file are each named
    fs::remove_file(data.join("training/patient001/patient001_frame01_gt.nii.gz")).unwrap();
    fs::write(
        data.join("training/patient002/patient002_frame12.nii.gz"),
        "no image",
    )
    .unwrap();
    fs::copy(
        data.join("training/patient003/patient003_frame01_gt.nii.gz"),
        data.join("training/patient003/patient003_frame09_gt.nii.gz"),
    )
    .unwrap();
    let broken = report(&[]);
    let found: Value = serde_json::from_str(&broken.stdout).unwrap();
    assert_eq!(broken.code, Some(1));
    let kinds: Vec<String> = (found["problems"].as_array().unwrap().iter())
        .map(|p| {
            format!(
                "{} {}",
                p["kind"].as_str().unwrap(),
                p["file"].as_str().unwrap_or("")
            )
        })
        .collect();
    for (kind, file) in [
        ("missing_label", "patient001_frame01_gt"),
        ("unreadable", "patient002_frame12.nii.gz"),
        ("orphan_label", "patient003_frame09_gt"),
    ] {
        assert!(
            kinds
                .iter()
                .any(|k| k.starts_with(kind) && k.contains(file)),
            "{kind}: {kinds:?}"
        );
    }
    // another data set than the one named
    let other = report(&["--as", "synapse"]);
    assert!(other.stdout.contains("other_dataset"), "{}", other.stdout);
}

#[test]
fn pictures_in_pairs_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("SOTS/indoor");
    for (folder, names) in [
        ("hazy", vec!["1400_1.png", "1400_2.png", "1401_1.png"]),
        ("gt", vec!["1400.png", "1402.png"]),
    ] {
        fs::create_dir_all(root.join(folder)).unwrap();
        for name in names {
            image::RgbImage::new(40, 30)
                .save(root.join(folder).join(name))
                .unwrap();
        }
    }
    let found = run(&[
        "datasets",
        "verify",
        arg(&root),
        "--as",
        "sots-indoor",
        "--json",
    ])
    .expect_success();
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found["cases"], 2);
    let of = |kind: &str| {
        let all = found["problems"].as_array().unwrap();
        all.iter().filter(|p| p["kind"] == kind).count()
    };
    assert_eq!((of("unpaired"), of("incomplete")), (2, 1), "{found}");
    image::RgbImage::new(41, 30)
        .save(root.join("hazy/1400_2.png"))
        .unwrap();
    let wrong = run(&["datasets", "verify", arg(&root)]);
    assert_eq!(wrong.code, Some(1));
    assert!(
        wrong.stdout.contains("shape_mismatch") && wrong.stdout.contains("1400_2"),
        "{}",
        wrong.stdout
    );
}

#[test]
fn predictions_of_others_are_scored_beside_published_rows() {
    let dir = tempfile::tempdir().unwrap();
    let data = acdc(dir.path(), 2);
    let exact = predictions(dir.path(), "exact", &|_| 0.0);
    let wide = predictions(dir.path(), "wide", &|n| 0.6 + 0.4 * (n - 100) as f64);
    let out = dir.path().join("out");
    let (one, two) = (
        format!("ours={}", arg(&exact)),
        format!("theirs={}", arg(&wide)),
    );
    let done = benchmark(&data, &out, &["--pred", &one, "--pred", &two]).expect_success();
    for words in [
        "> ours",
        "> theirs",
        "U-Mamba Bot",
        "0.9179",
        "Wilcoxon",
        "6 test case(s)",
        "cross-validation",
    ] {
        assert!(done.stdout.contains(words), "{words}: {}", done.stdout);
    }
    let results = json(&out.join("results.json"));
    let mean = |entrant: usize| {
        results["entrants"][entrant]["mean"]["Dice"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(mean(0), 1.0);
    // only the outermost class differs: by hand, from the counts of a case
    let dice = |number: usize| {
        let (a, b) = (
            heart(number, 0.0).data,
            heart(number, 0.6 + 0.4 * (number - 100) as f64).data,
        );
        let both = a
            .iter()
            .zip(&b)
            .filter(|(x, y)| **x == 1 && **y == 1)
            .count();
        let count = |m: &ArrayD<i16>| m.iter().filter(|v| **v == 1).count();
        2.0 * both as f64 / (count(&a) + count(&b)) as f64
    };
    let expected = ((101..=103).map(dice).sum::<f64>() / 3.0 + 2.0) / 3.0;
    assert!((mean(1) - expected).abs() < 1e-12, "{} {expected}", mean(1));
    let overall = &results["differences"][0];
    assert_eq!(overall["class"], "all classes");
    assert!((overall["found"]["mean"].as_f64().unwrap() - (1.0 - expected)).abs() < 1e-12);
    // six cases, all of one sign: p = 2 / 2^6
    assert_eq!(overall["found"]["wilcoxon_p"].as_f64(), Some(0.03125));
    let csv = fs::read_to_string(out.join("results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 2 * 6 * 3);
    let tex = fs::read_to_string(out.join("table.tex")).unwrap();
    assert!(tex.contains("\\textbf{ours}") && tex.contains("\\bottomrule"));
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(
        page.contains("<svg")
            && page.contains("type=\"range\"")
            && page.contains("worst: patient10")
    );
    assert!(page.len() < 20_000_000 && !page.contains("src=\"http"));

    // the other protocol, in voxels
    let voxels = dir.path().join("voxels");
    benchmark(
        &data,
        &voxels,
        &["--pred", &two, "--protocol", "mamba-unet"],
    )
    .expect_success();
    let results = json(&voxels.join("results.json"));
    assert_eq!(results["columns"], serde_json::json!(["Dice", "HD95"]));
    let far = results["entrants"][0]["classes"][0][1]["HD95"]
        .as_f64()
        .unwrap();
    assert!(far > 0.5 && far < 4.0, "{far} voxels");

    // a missing prediction and one that is cut short are named, the rest is done
    fs::remove_file(exact.join("patient101_frame01.nii.gz")).unwrap();
    fs::write(exact.join("patient102_frame12.nii.gz"), "cut").unwrap();
    let failed = benchmark(&data, &out, &["--pred", &one]);
    assert_eq!(failed.code, Some(1));
    assert!(
        failed.stderr.contains("patient101_frame01")
            && failed.stderr.contains("patient102_frame12"),
        "{}",
        failed.stderr
    );
    assert_eq!(
        json(&out.join("results.json"))["entrants"][0]["rows"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
    // and so is a whole entrant that is not there
    let gone = benchmark(
        &data,
        &out,
        &["--pred", &two, "--pred", "none=/no/such/folder"],
    );
    assert_eq!(gone.code, Some(1));
    assert!(
        gone.stdout.contains("> theirs") && gone.stderr.contains("no such folder"),
        "{}",
        gone.stderr
    );
}

#[test]
fn runs_are_predicted_once_and_seeds_have_a_spread() {
    let dir = tempfile::tempdir().unwrap();
    let data = acdc(dir.path(), 5);
    let train = |name: &str, seed: &str| {
        let out = dir.path().join(name);
        let mut args = vec![
            "train",
            arg(&data),
            "--out",
            arg(&out),
            "--seed",
            seed,
            "--no-validation",
        ];
        args.extend(QUICK);
        args.extend(FEW_STEPS);
        run(&args).expect_success();
        out
    };
    let (a, b) = (train("seed_1", "1"), train("seed_2", "2"));
    let out = dir.path().join("out");
    let both = ["--run", arg(&a), "--compare", arg(&b), "--no-mirroring"];
    let first = benchmark(&data, &out, &both).expect_success();
    assert!(
        !first.stderr.contains("prediction(s) of before"),
        "{}",
        first.stderr
    );
    let results = json(&out.join("results.json"));
    assert_eq!(results["kinds"][0]["entrants"], 2);
    let spread = &results["kinds"][0]["spread"]["Dice"];
    let means: Vec<f64> = (0..2)
        .map(|i| results["entrants"][i]["mean"]["Dice"].as_f64().unwrap())
        .collect();
    assert!((spread[0].as_f64().unwrap() - (means[0] + means[1]) / 2.0).abs() < 1e-12);
    let stamp = |run: &str| -> BTreeMap<PathBuf, std::time::SystemTime> {
        fs::read_dir(out.join("predictions").join(run))
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name().to_string_lossy().ends_with(".nii.gz"))
            .map(|e| (e.path(), e.metadata().unwrap().modified().unwrap()))
            .collect()
    };
    let before = (stamp("seed_1"), stamp("seed_2"));
    assert_eq!(before.0.len(), 6);
    let again = benchmark(&data, &out, &both).expect_success();
    assert!(
        again.stderr.contains("6 prediction(s) of before"),
        "{}",
        again.stderr
    );
    assert_eq!((stamp("seed_1"), stamp("seed_2")), before);
    // another image, another prediction; other settings, all of them
    let changed = data.join("testing/patient101/patient101_frame01.nii.gz");
    write_image(&changed, &image(&heart(102, 1.0), 9)).unwrap();
    let third = benchmark(&data, &out, &both).expect_success();
    assert!(
        third.stderr.contains("5 prediction(s) of before"),
        "{}",
        third.stderr
    );
    let mirrored = benchmark(&data, &out, &both[..2]).expect_success();
    assert!(
        !mirrored.stderr.contains("prediction(s) of before"),
        "{}",
        mirrored.stderr
    );
    // the cases that the run held out
    let held = benchmark(
        &data,
        &out,
        &["--run", arg(&a), "--cases", "validation", "--no-mirroring"],
    )
    .expect_success();
    assert!(
        held.stdout.contains("validation case(s)") && held.stdout.contains("not on a test set"),
        "{}",
        held.stdout
    );
    // labels of another data set
    let other = benchmark(&data, &out, &["--run", arg(&dir.path().join("none"))]);
    assert_eq!(other.code, Some(1));
}

#[test]
fn volumes_in_hdf5_are_predicted_and_scored() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data/Synapse");
    let mut slices = String::new();
    for case in [5, 6, 7, 9, 10] {
        let name = format!("case{case:04}_slice000");
        downloads::hdf5(&data.join(format!("data/slices/{name}.h5")), case, 9);
        slices += &format!("{name}\n");
    }
    fs::write(data.join("train_slices.txt"), slices).unwrap();
    for case in 1..=3 {
        let file = data.join(format!("test_vol_h5/case{case:04}.npy.h5"));
        downloads::hdf5(&file, case, 9);
    }
    // what scripts for this data set write: a case's name and `_pred`, numbers with a point
    let theirs = dir.path().join("theirs");
    fs::create_dir_all(&theirs).unwrap();
    for case in 1..=3 {
        let file = data.join(format!("test_vol_h5/case{case:04}.npy.h5"));
        let mut image = vision_mamba_datasets::read_image(&file).unwrap();
        let labels = vision_mamba_datasets::read_labels(&file).unwrap();
        image.data = labels.data.mapv(f32::from).insert_axis(ndarray::Axis(0));
        write_image(&theirs.join(format!("case{case:04}_pred.nii.gz")), &image).unwrap();
    }
    let run_folder = dir.path().join("run");
    let mut args = vec![
        "train",
        arg(&data),
        "--out",
        arg(&run_folder),
        "--no-validation",
    ];
    args.extend(QUICK);
    args.extend(FEW_STEPS);
    run(&args).expect_success();
    // a file and a folder
    let pred = dir.path().join("pred");
    let volumes = data.join("test_vol_h5");
    for (input, out) in [
        (
            volumes.join("case0002.npy.h5"),
            dir.path().join("one.nii.gz"),
        ),
        (volumes.clone(), pred.clone()),
    ] {
        let typed = [
            "predict",
            "--run",
            arg(&run_folder),
            "-i",
            arg(&input),
            "-o",
            arg(&out),
        ];
        run(&typed).expect_success();
    }
    let one = vision_mamba_datasets::read_labels(&dir.path().join("one.nii.gz")).unwrap();
    let two = vision_mamba_datasets::read_labels(&pred.join("case0002.nii.gz")).unwrap();
    assert_eq!(one.data, two.data);
    let out = dir.path().join("out");
    let (one, two) = (
        format!("theirs={}", arg(&theirs)),
        format!("pred={}", arg(&pred)),
    );
    let typed = [
        "benchmark",
        "synapse",
        "--data",
        arg(dir.path()),
        "--out",
        arg(&out),
        "--run",
        arg(&run_folder),
        "--pred",
        &two,
        "--pred",
        &one,
    ];
    let done = run(&typed).expect_success();
    assert!(done.stdout.contains("VM-UNet"), "{}", done.stdout);
    let results = json(&out.join("results.json"));
    let mean = |at: usize, column: &str| results["entrants"][at]["mean"][column].clone();
    assert_eq!(mean(0, "Dice"), mean(1, "Dice"));
    assert_eq!((mean(2, "Dice"), mean(2, "HD95")), (1.0.into(), 0.0.into()));
}
