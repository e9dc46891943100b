//! Measures of restored pictures beyond the numbers that `tests/pipeline.rs` compares, and `evaluate restoration`.

#![allow(clippy::unwrap_used)]

mod util;

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::Value;
use util::run;
use vision_mamba::metrics::restoration::{ciede2000, haze_density, psnr, ssim, Channels, Window};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_pipeline/restoration")
}

fn values() -> Value {
    serde_json::from_str(&std::fs::read_to_string(data().join("values.json")).unwrap()).unwrap()
}

fn picture(kind: &str, name: &str) -> RgbImage {
    let path = data().join(kind).join(format!("{name}.png"));
    image::open(path).unwrap().to_rgb8()
}

/// Float64 on both sides.
const EXACT: f64 = 1e-9;

#[test]
fn equal_pictures_and_those_off_by_one() {
    let expected = &values()["_degenerate"];
    let grey = |v| RgbImage::from_pixel(32, 32, Rgb([v; 3]));
    let clean = picture("clean", "rocket_3");
    assert_eq!(psnr(&clean, &clean, Channels::Rgb, 0), Ok(f64::INFINITY));
    let same = ssim(&clean, &clean, Channels::Rgb, Window::Gaussian, 0).unwrap();
    assert!((same - 1.0).abs() < EXACT);
    assert_eq!(ciede2000(&clean, &clean, 0), Ok(0.0));
    let off = psnr(&grey(100), &grey(101), Channels::Rgb, 0).unwrap();
    assert!((off - expected["constant_off_by_one_psnr"].as_f64().unwrap()).abs() < EXACT);
}

#[test]
fn a_cropped_border_is_a_cropped_picture() {
    let (a, b) = (picture("hazy", "rocket_3"), picture("clean", "rocket_3"));
    let crop =
        |x: &RgbImage| image::imageops::crop_imm(x, 4, 4, x.width() - 8, x.height() - 8).to_image();
    let (ca, cb) = (crop(&a), crop(&b));
    for channels in [Channels::Rgb, Channels::YStudio] {
        let whole = psnr(&a, &b, channels, 0);
        let inner = psnr(&a, &b, channels, 4);
        assert_eq!(inner, psnr(&ca, &cb, channels, 0));
        assert_ne!(inner, whole);
    }
    let window = Window::Uniform(7);
    assert_eq!(
        ssim(&a, &b, Channels::Rgb, window, 4),
        ssim(&ca, &cb, Channels::Rgb, window, 0)
    );
    assert_eq!(ciede2000(&a, &b, 4), ciede2000(&ca, &cb, 0));
}

#[test]
fn haze_lifts_the_dark_channel_and_lowers_contrast() {
    for name in ["astronaut_0", "rocket_3", "immunohistochemistry_4"] {
        let measure = |kind| haze_density(&picture(kind, name)).unwrap();
        let (clean, hazy, restored) = (measure("clean"), measure("hazy"), measure("restored"));
        assert!(hazy.dark_channel > clean.dark_channel + 0.1, "{name}");
        assert!(hazy.rms_contrast < clean.rms_contrast, "{name}");
        assert!(
            (restored.dark_channel - clean.dark_channel).abs() < 0.1,
            "{name}"
        );
    }
}

#[test]
fn the_command_prints_conventions_and_writes_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("scores.json");
    let path = |kind: &str| data().join(kind).display().to_string();
    let (pred, reference, json) = (path("restored"), path("clean"), json.display().to_string());
    let command = [
        "evaluate",
        "restoration",
        "--pred",
        &pred,
        "--ref",
        &reference,
        "--json",
        &json,
    ];
    let out = run(&command).expect_success();
    for text in [
        "studio range",
        "Gaussian 11x11",
        "rocket_3",
        "mean",
        "37.4470",
    ] {
        assert!(
            out.stdout.contains(text),
            "{text} is not in:\n{}",
            out.stdout
        );
    }
    let scores: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let expected = values();
    let pictures = scores["pictures"].as_object().unwrap();
    let mut sum = 0.0;
    for (name, found) in pictures {
        let found = found["psnr_rgb"].as_f64().unwrap();
        let reference = &expected[name]["restored"]["psnr_data_range_255"];
        assert!((found - reference.as_f64().unwrap()).abs() < EXACT);
        sum += found;
    }
    let mean = scores["mean"]["psnr_rgb"].as_f64().unwrap();
    assert!((mean - sum / pictures.len() as f64).abs() < EXACT);
    let named = scores["conventions"].as_object().unwrap();
    assert!(scores["mean"]
        .as_object()
        .unwrap()
        .keys()
        .all(|k| named.contains_key(k)));
}

#[test]
fn missing_misnamed_and_misshaped_pictures_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (pred, reference) = (dir.path().join("pred"), dir.path().join("ref"));
    for folder in [&pred, &reference] {
        std::fs::create_dir(folder).unwrap();
    }
    let save =
        |folder: &Path, name: &str, side| RgbImage::new(side, 20).save(folder.join(name)).unwrap();
    let arguments = |json: &str| {
        let text = |p: &Path| p.display().to_string();
        let all = [
            "evaluate",
            "restoration",
            "--pred",
            &text(&pred),
            "--ref",
            &text(&reference),
            "--json",
            json,
        ];
        all.map(str::to_string)
    };
    let json = dir.path().join("scores.json").display().to_string();
    let fail = |code, words: &[&str]| {
        let all = arguments(&json);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        run(&all).expect_failure(code, words)
    };
    fail(1, &["holds no pictures"]);
    save(&reference, "a.png", 20);
    fail(1, &["a is missing", "pred"]);
    save(&pred, "a.bmp", 20);
    save(&reference, "b.png", 20);
    save(&pred, "b.png", 21);
    fail(1, &["b.png", "size 21x20", "20x20"]);
    save(&pred, "b.png", 20);
    save(&pred, "c.png", 20);
    fail(1, &["c.png has no reference"]);
    std::fs::write(pred.join("c.png"), b"no picture").unwrap();
    save(&reference, "c.png", 20);
    fail(1, &["cannot read", "c.png"]);
    image::ImageBuffer::<Rgb<u16>, _>::from_pixel(20, 20, Rgb([9u16; 3]))
        .save(pred.join("c.png"))
        .unwrap();
    fail(1, &["c.png", "8 bits"]);
    save(&pred, "c.png", 20);
    let all = arguments(&json);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    run(&all).expect_success();
    let scores: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(scores["mean"]["psnr_rgb"], "Infinity");
    run(&[
        "evaluate",
        "restoration",
        "--pred",
        "nowhere",
        "--ref",
        "nowhere",
    ])
    .expect_failure(2, &["--pred nowhere"]);
}
