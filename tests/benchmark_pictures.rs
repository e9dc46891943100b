//! Benchmarks of restored pictures: RESIDE as downloaded, the dark channel prior, pictures of others, and folders with faults.

#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::Value;
use util::{arg, run, Outcome};

/// A scene, 60 x 48 pixels with a border of `border` that the hazy pictures lack.
fn scene(number: u32, border: u32) -> RgbImage {
    RgbImage::from_fn(60 + 2 * border, 48 + 2 * border, |x, y| {
        let (x, y) = (x + 20 - border, y + 20 - border);
        let dark = (x / (5 + number % 3) + y / 7).is_multiple_of(2);
        match dark {
            // air is as bright as what is seen of it
            _ if y < 32 => Rgb([225; 3]),
            true => Rgb([20, 60 + (number % 50) as u8, 10]),
            false => Rgb([150, (x * 3 % 200) as u8, (y * 4 % 190) as u8]),
        }
    })
}

/// The scene under haze that lets a part `t` of it through.
fn hazy(number: u32, t: f32) -> RgbImage {
    let clear = scene(number, 0);
    RgbImage::from_fn(60, 48, |x, y| {
        let mixed = |v: u8| (f32::from(v) * t + 225.0 * (1.0 - t)) as u8;
        Rgb(clear.get_pixel(x, y).0.map(mixed))
    })
}

/// SOTS as unpacked: both halves side by side, clear indoor pictures with a border, and what a Mac leaves.
fn sots(root: &Path) -> PathBuf {
    let dir = root.join("SOTS");
    for folder in [
        "indoor/hazy",
        "indoor/gt",
        "outdoor/hazy",
        "outdoor/gt",
        "__MACOSX/indoor/hazy",
    ] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    for number in [1400, 1401, 1402] {
        scene(number, 10)
            .save(dir.join(format!("indoor/gt/{number}.png")))
            .unwrap();
        for (haze, t) in [(1, 0.7), (2, 0.4)] {
            let file = dir.join(format!("indoor/hazy/{number}_{haze}.png"));
            hazy(number, t).save(file).unwrap();
        }
    }
    scene(7, 0).save(dir.join("outdoor/gt/0001.png")).unwrap();
    hazy(7, 0.6)
        .save(dir.join("outdoor/hazy/0001_0.8_0.2.jpg"))
        .unwrap();
    fs::write(
        dir.join("__MACOSX/indoor/hazy/._1400_1.png"),
        "resource fork",
    )
    .unwrap();
    fs::write(dir.join("README.txt"), "RESIDE").unwrap();
    dir
}

fn benchmark(name: &str, data: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut args = vec!["benchmark", name, "--data", arg(data), "--out", arg(out)];
    args.extend(more);
    run(&args)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn methods_and_pictures_of_others_are_scored_beside_published_rows() {
    let dir = tempfile::tempdir().unwrap();
    let data = sots(dir.path());
    let verified = run(&[
        "datasets",
        "verify",
        arg(&data),
        "--as",
        "sots-indoor",
        "--json",
    ])
    .expect_success();
    assert_eq!(
        serde_json::from_str::<Value>(&verified.stdout).unwrap()["cases"],
        6
    );

    // another program's pictures: the hazy ones, unchanged
    let pred = dir.path().join("theirs");
    fs::create_dir_all(&pred).unwrap();
    for file in fs::read_dir(data.join("indoor/hazy"))
        .unwrap()
        .map(|f| f.unwrap().path())
    {
        fs::copy(&file, pred.join(file.file_name().unwrap())).unwrap();
    }
    let theirs = format!("theirs={}", arg(&pred));
    let out = dir.path().join("out");
    let both = ["--method", "dcp", "--pred", theirs.as_str()];
    let done = benchmark("sots-indoor", &data, &out, &both).expect_success();
    for words in [
        "> dcp",
        "> theirs",
        "FFA-Net",
        "36.39",
        "Wilcoxon",
        "6 test picture(s)",
    ] {
        assert!(done.stdout.contains(words), "{words}: {}", done.stdout);
    }
    let results = json(&out.join("results.json"));
    let mean = |entrant: usize, column: &str| {
        results["entrants"][entrant]["mean"][column]
            .as_f64()
            .unwrap()
    };
    for (column, sign) in [("PSNR", 1.0), ("CIEDE2000", -1.0)] {
        let (dcp, hazy) = (mean(0, column), mean(1, column));
        assert!(sign * (dcp - hazy) > 0.0, "{column}: {dcp} {hazy}");
    }

    // the same numbers as `evaluate restoration` on the same pictures
    let middle = dir.path().join("middle");
    fs::create_dir_all(&middle).unwrap();
    for number in [1400, 1401, 1402] {
        for haze in [1, 2] {
            scene(number, 0)
                .save(middle.join(format!("{number}_{haze}.png")))
                .unwrap();
        }
    }
    let table = dir.path().join("scores.json");
    run(&[
        "evaluate",
        "restoration",
        "--pred",
        arg(&pred),
        "--ref",
        arg(&middle),
        "--json",
        arg(&table),
    ])
    .expect_success();
    let scores = json(&table);
    for (column, ours) in [
        ("psnr_rgb", "PSNR"),
        ("ssim_rgb", "SSIM"),
        ("ciede2000", "CIEDE2000"),
    ] {
        let expected = scores["mean"][column].as_f64().unwrap();
        assert!((mean(1, ours) - expected).abs() < 1e-9, "{ours}");
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    for words in [
        "worst: 1",
        "median: 1",
        "best: 1",
        "PSNR by case",
        "hazy, restored and clear picture",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert_eq!(
        fs::read_to_string(out.join("results.csv"))
            .unwrap()
            .lines()
            .count(),
        1 + 2 * 6
    );

    // restored pictures are kept, but for the one whose hazy picture is another now
    hazy(1400, 0.5)
        .save(data.join("indoor/hazy/1400_1.png"))
        .unwrap();
    let again = benchmark("sots-indoor", &data, &out, &["--method", "dcp"]).expect_success();
    assert!(
        again.stderr.contains("5 picture(s) of before"),
        "{}",
        again.stderr
    );

    // the weights that ship, and the other half of the download
    let outdoor = benchmark("sots-outdoor", &data, &out, &["--method", "network"]).expect_success();
    assert!(
        outdoor.stdout.contains("1 test picture(s)"),
        "{}",
        outdoor.stdout
    );
}

#[test]
fn a_missing_a_duplicate_and_a_corrupt_picture_are_named_and_the_rest_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let data = sots(dir.path()).join("indoor");
    fs::remove_file(data.join("gt/1401.png")).unwrap();
    fs::copy(data.join("hazy/1400_1.png"), data.join("hazy/1400_9.png")).unwrap();
    fs::write(data.join("hazy/1402_2.png"), "no picture").unwrap();
    let out = dir.path().join("out");
    let done = benchmark("sots-indoor", &data, &out, &["--method", "dcp"]);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    for words in ["1401_1.png", "1400_9", "again", "1402_2.png"] {
        assert!(done.stderr.contains(words), "{words}: {}", done.stderr);
    }
    let results = json(&out.join("results.json"));
    assert_eq!(results["entrants"][0]["rows"].as_array().unwrap().len(), 3);
    assert_eq!(
        results["failures"].as_array().unwrap().len(),
        5,
        "{results}"
    );
    let verified = run(&["datasets", "verify", arg(&data), "--as", "sots-indoor"]);
    assert_eq!(verified.code, Some(1));
    for words in ["unpaired", "duplicate_case", "unreadable"] {
        assert!(
            verified.stdout.contains(words),
            "{words}: {}",
            verified.stdout
        );
    }

    // of another program's pictures: one lacks, one is there twice, one is of another size
    let pred = dir.path().join("pred");
    fs::create_dir_all(&pred).unwrap();
    hazy(1400, 0.9).save(pred.join("1400_1.png")).unwrap();
    hazy(1400, 0.9).save(pred.join("1400_2.png")).unwrap();
    hazy(1400, 0.9).save(pred.join("1400_2.bmp")).unwrap();
    scene(1402, 10).save(pred.join("1402_1.png")).unwrap();
    let theirs = benchmark("sots-indoor", &data, &out, &["--pred", arg(&pred)]);
    assert_eq!(theirs.code, Some(1));
    for words in [
        "1400_2.bmp",
        "take one of them out",
        "without scaling",
        "1402_2.png is missing",
    ] {
        assert!(theirs.stderr.contains(words), "{words}: {}", theirs.stderr);
    }
}

#[test]
fn what_says_nothing_to_pictures_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = sots(dir.path());
    let out = dir.path().join("out");
    benchmark("sots-indoor", &data, &out, &[]).expect_failure(2, &["--method dcp"]);
    benchmark(
        "sots-indoor",
        &data,
        &out,
        &["--method", "dcp", "--no-mirroring"],
    )
    .expect_failure(2, &["--no-mirroring"]);
    benchmark("acdc", &data, &out, &["--method", "dcp"]).expect_failure(2, &["--method"]);
    benchmark(
        "o-haze",
        &dir.path().join("none"),
        &out,
        &["--method", "dcp"],
    )
    .expect_failure(1, &["none"]);
}
