//! `dehaze`: pictures in and out, the dark channel prior, networks whole and in tiles, folders with broken files, pipes, Ctrl-C.

#![allow(clippy::unwrap_used)]

mod util;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::metadata::Orientation;
use image::{
    DynamicImage, ExtendedColorType, GrayImage, ImageDecoder, ImageEncoder, ImageReader, Rgb,
    RgbImage,
};
use tch::Device;
use util::{arg, program, run, Outcome};
use vision_mamba::metrics::restoration::{psnr, Channels};
use vision_mamba::photo::{self, Format, Photo, Samples};
use vision_mamba_models::{build, preset, weights};

const ENOUGH: u64 = 1 << 30;

fn clear(x: u32, y: u32) -> [u8; 3] {
    match (y < 20, (x / 6 + y / 6) % 2) {
        (true, _) => [225; 3],
        (_, 0) => [10, 70, 20],
        _ => [160, (x % 150) as u8, 15],
    }
}

fn hazy(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb(clear(x, y).map(|v| (f32::from(v) * 0.5 + 225.0 * 0.5) as u8))
    })
}

/// A profile's header, enough to be carried along.
fn profile(space: &[u8; 4]) -> Vec<u8> {
    let mut icc = vec![7; 160];
    icc[16..20].copy_from_slice(space);
    icc
}

/// An EXIF block with this orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x01\0".to_vec();
    block.extend([0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0]);
    block.extend([0; 4]);
    block
}

fn dcp(input: &Path, output: &Path) -> Outcome {
    run(&["dehaze", arg(input), "-o", arg(output), "--method", "dcp"])
}

fn metadata(path: &Path) -> (Option<Vec<u8>>, Option<Vec<u8>>, Orientation) {
    let reader = ImageReader::open(path)
        .unwrap()
        .with_guessed_format()
        .unwrap();
    let mut decoder = reader.into_decoder().unwrap();
    let exif = decoder.exif_metadata().unwrap();
    (
        decoder.icc_profile().unwrap(),
        exif,
        decoder.orientation().unwrap(),
    )
}

/// Weights of a preset with random values.
fn random_weights(folder: &Path, name: &str) -> PathBuf {
    tch::manual_seed(3);
    let spec = preset(name).unwrap();
    let built = build(&spec, Device::Cpu).unwrap();
    let told = BTreeMap::from([
        ("preset".to_string(), name.to_string()),
        ("network".to_string(), serde_json::to_string(&spec).unwrap()),
    ]);
    let path = folder.join(format!("{name}.safetensors"));
    weights::save_safetensors(&path, &built.params, &told).unwrap();
    path
}

#[test]
fn the_dark_channel_prior_makes_a_hazy_picture_clearer() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("a.png"), dir.path().join("b.png"));
    let source = hazy(120, 90);
    source.save(&input).unwrap();
    dcp(&input, &output).expect_success();
    let truth = RgbImage::from_fn(120, 90, |x, y| Rgb(clear(x, y)));
    let found = image::open(&output).unwrap().to_rgb8();
    let before = psnr(&source, &truth, Channels::Rgb, 0).unwrap();
    let after = psnr(&found, &truth, Channels::Rgb, 0).unwrap();
    assert!(after > before + 5.0, "{before} dB to {after} dB");
}

#[test]
fn every_format_depth_and_kind_of_channels_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let rgb = hazy(50, 40);
    let alpha = |i: usize| (i * 13 % 256) as u8;
    for channels in 1..=4usize {
        let mut bytes = Vec::new();
        for (i, pixel) in rgb.pixels().enumerate() {
            match channels {
                1 | 2 => bytes.push(pixel.0[0]),
                _ => bytes.extend(pixel.0),
            }
            if channels % 2 == 0 {
                bytes.push(alpha(i));
            }
        }
        let words = bytes
            .iter()
            .map(|v| u16::from(*v) * 257 + 3 * u16::from(*v % 80))
            .collect::<Vec<u16>>();
        let floats = words
            .iter()
            .map(|v| f32::from(*v) / 65535.0)
            .collect::<Vec<f32>>();
        let picture = |samples| Photo {
            channels,
            samples,
            ..Photo::of_rgb8(rgb.clone())
        };
        for (ending, format, samples) in [
            ("png", Format::Png, Samples::U8(bytes.clone())),
            ("png", Format::Png, Samples::U16(words.clone())),
            ("tif", Format::Tiff, Samples::U8(bytes.clone())),
            ("tiff", Format::Tiff, Samples::U16(words)),
            ("tif", Format::Tiff, Samples::F32(floats)),
            ("webp", Format::WebP, Samples::U8(bytes.clone())),
            ("bmp", Format::Bmp, Samples::U8(bytes)),
        ] {
            let input = dir.path().join(format!("in.{ending}"));
            let output = dir.path().join(format!("out.{ending}"));
            let photo = picture(samples);
            fs::write(&input, photo::encode(&photo, format, 95).unwrap()).unwrap();
            dcp(&input, &output).expect_success();
            let what = format!(
                "{channels} channels in {ending}, {:?}",
                std::mem::discriminant(&photo.samples)
            );
            let read = |p: &Path| photo::read(&fs::read(p).unwrap(), ENOUGH).unwrap();
            let (before, after) = (read(&input), read(&output));
            // BMP has a palette for grey and WebP no grey: both are read as colours.
            if !matches!(format, Format::Bmp | Format::WebP) {
                assert_eq!(after.channels, channels, "{what}");
                assert_eq!(before.samples, photo.samples, "{what}");
            }
            assert_eq!(after.channels, before.channels, "{what}");
            assert_eq!(after.has_alpha(), channels % 2 == 0, "{what}");
            let kind = std::mem::discriminant::<Samples>;
            assert_eq!(kind(&after.samples), kind(&photo.samples), "{what}");
            assert_ne!(after.samples, before.samples, "{what}: nothing was done");
            if let (Samples::U8(a), Samples::U8(b)) = (&before.samples, &after.samples) {
                if before.has_alpha() {
                    let last = |s: &[u8]| {
                        s.iter()
                            .skip(before.channels - 1)
                            .step_by(before.channels)
                            .copied()
                            .collect::<Vec<_>>()
                    };
                    assert_eq!(last(a), last(b), "{what}: alpha");
                }
            }
            if channels < 3 {
                let [r, g, b] = after.rgb(25, 30);
                assert!(r == g && g == b, "{what}");
            }
        }
    }
}

#[test]
fn orientation_is_applied_and_profile_and_exif_are_carried_along() {
    let dir = tempfile::tempdir().unwrap();
    let upright = hazy(60, 40);
    let expected = {
        let path = dir.path().join("upright.png");
        upright.save(&path).unwrap();
        dcp(&path, &dir.path().join("expected.png")).expect_success();
        image::open(dir.path().join("expected.png"))
            .unwrap()
            .to_rgb8()
    };
    for (name, code) in [
        ("a.jpg", 6u8),
        ("a.png", 6),
        ("b.png", 3),
        ("c.png", 5),
        ("a.webp", 8),
    ] {
        let mut stored = DynamicImage::ImageRgb8(upright.clone());
        // What turns the upright picture into the stored one.
        stored.apply_orientation(match code {
            6 => Orientation::Rotate270,
            8 => Orientation::Rotate90,
            other => Orientation::from_exif(other).unwrap(),
        });
        let stored = stored.to_rgb8();
        let mut bytes = Vec::new();
        let write = |encoder: &mut dyn FnMut(&RgbImage)| encoder(&stored);
        match Path::new(name).extension().unwrap().to_str().unwrap() {
            "jpg" => write(&mut |s| {
                let mut e = JpegEncoder::new_with_quality(&mut bytes, 100);
                e.set_icc_profile(profile(b"RGB ")).unwrap();
                e.set_exif_metadata(exif(code)).unwrap();
                e.write_image(s, s.width(), s.height(), ExtendedColorType::Rgb8)
                    .unwrap();
            }),
            "png" => write(&mut |s| {
                let mut e = PngEncoder::new(&mut bytes);
                e.set_icc_profile(profile(b"RGB ")).unwrap();
                e.set_exif_metadata(exif(code)).unwrap();
                e.write_image(s, s.width(), s.height(), ExtendedColorType::Rgb8)
                    .unwrap();
            }),
            _ => write(&mut |s| {
                let mut e = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
                e.set_icc_profile(profile(b"RGB ")).unwrap();
                e.set_exif_metadata(exif(code)).unwrap();
                e.write_image(s, s.width(), s.height(), ExtendedColorType::Rgb8)
                    .unwrap();
            }),
        }
        let (input, output) = (
            dir.path().join(name),
            dir.path().join(format!("out_{name}")),
        );
        fs::write(&input, bytes).unwrap();
        assert_eq!(metadata(&input).2.to_exif(), code, "{name}");
        dcp(&input, &output).expect_success();
        let (icc, block, orientation) = metadata(&output);
        assert_eq!(orientation, Orientation::NoTransforms, "{name}");
        assert_eq!(icc, Some(profile(b"RGB ")), "{name}");
        assert_eq!(block, Some(exif(1)), "{name}");
        let found = image::open(&output).unwrap().to_rgb8();
        assert_eq!(found.dimensions(), (60, 40), "{name}");
        // JPEG loses a little twice
        let least = if name.ends_with("jpg") {
            30.0
        } else {
            f64::INFINITY
        };
        let likeness = psnr(&found, &expected, Channels::Rgb, 0).unwrap();
        assert!(likeness >= least, "{name}: {likeness} dB");
    }
}

#[test]
fn what_a_format_cannot_hold_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("a.png");
    let picture = image::RgbaImage::from_pixel(20, 20, image::Rgba([90, 100, 110, 0]));
    picture.save(&input).unwrap();
    let done = dcp(&input, &dir.path().join("a.jpg")).expect_success();
    assert!(done.stderr.contains("transparency"), "{}", done.stderr);
    let flat = image::open(dir.path().join("a.jpg")).unwrap().to_rgb8();
    assert!(
        flat.pixels().all(|p| p.0.iter().all(|v| *v > 250)),
        "white is behind"
    );
}

#[test]
fn odd_sizes_go_through_the_prior_and_a_network_whole_and_in_tiles() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights(dir.path(), "uvmnet_tiny");
    for (w, h) in [(1, 1), (1, 5000), (17, 23), (5000, 1), (15, 200)] {
        let input = dir.path().join(format!("{w}x{h}.png"));
        hazy(w, h).save(&input).unwrap();
        let output = dir.path().join("out.png");
        let base = ["dehaze", arg(&input), "-o", arg(&output)];
        let network = ["--weights", arg(&weights)];
        for more in [
            vec!["--method", "dcp"],
            network.to_vec(),
            [&network[..], &["--tile", "128"]].concat(),
        ] {
            run(&[&base[..], &more].concat()).expect_success();
            let size = image::open(&output).unwrap().to_rgb8().dimensions();
            assert_eq!(size, (w, h), "{more:?}");
        }
    }
}

#[test]
fn tiles_of_a_network_agree_with_the_whole_and_show_no_seam() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights(dir.path(), "uvmnet_tiny");
    let (input, whole, tiled) = (
        dir.path().join("a.png"),
        dir.path().join("w.png"),
        dir.path().join("t.png"),
    );
    // A flat ramp: any step is the tiles'.
    RgbImage::from_fn(700, 500, |x, y| {
        Rgb([(60 + x / 8) as u8, (90 + y / 8) as u8, 120])
    })
    .save(&input)
    .unwrap();
    let of = |output: &Path, tile: &str| {
        let options = [
            "dehaze",
            arg(&input),
            "-o",
            arg(output),
            "--weights",
            arg(&weights),
            "--tile",
            tile,
            "-v",
        ];
        let done = run(&options).expect_success();
        (image::open(output).unwrap().to_rgb8(), done.stderr)
    };
    let (a, _) = of(&whole, "1024");
    let (b, told) = of(&tiled, "256");
    assert!(told.contains("tiles of 256"), "{told}");
    let step = |p: &RgbImage| {
        let mut most = 0;
        // The network pads with zeros, which shows at the picture's own border in both.
        for y in 32..467 {
            for x in 32..667 {
                for next in [(x + 1, y), (x, y + 1)] {
                    for c in 0..3 {
                        let difference =
                            p.get_pixel(x, y).0[c].abs_diff(p.get_pixel(next.0, next.1).0[c]);
                        most = most.max(difference);
                    }
                }
            }
        }
        most
    };
    assert!(
        step(&b) <= step(&a) + 1,
        "{} in tiles, {} whole",
        step(&b),
        step(&a)
    );
    let likeness = psnr(&a, &b, Channels::Rgb, 32).unwrap();
    assert!(likeness > 30.0, "{likeness} dB");
}

#[test]
fn a_grey_picture_of_16_bits_goes_through_a_network_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights(dir.path(), "uvmnet_tiny");
    let (input, output) = (dir.path().join("a.png"), dir.path().join("b.png"));
    let picture = image::ImageBuffer::<image::Luma<u16>, _>::from_fn(40, 30, |x, y| {
        image::Luma([(x * 1500 + y * 7) as u16])
    });
    picture.save(&input).unwrap();
    run(&[
        "dehaze",
        arg(&input),
        "-o",
        arg(&output),
        "--weights",
        arg(&weights),
    ])
    .expect_success();
    let DynamicImage::ImageLuma16(found) = image::open(&output).unwrap() else {
        panic!("no grey picture of 16 bits");
    };
    assert!(found.pixels().any(|p| p.0[0] % 257 != 0), "8 bits only");
}

#[test]
fn a_folder_is_done_in_its_structure_and_broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("in/out"));
    fs::create_dir_all(input.join("sub/deep")).unwrap();
    hazy(40, 30).save(input.join("a.png")).unwrap();
    hazy(40, 30).save(input.join("sub/b.JPG")).unwrap();
    GrayImage::new(9, 9)
        .save(input.join("sub/deep/c.bmp"))
        .unwrap();
    fs::write(input.join("notes.txt"), "no picture").unwrap();
    fs::write(input.join("text.png"), "no picture either").unwrap();
    fs::write(input.join("empty.webp"), "").unwrap();
    let whole = fs::read(input.join("sub/b.JPG")).unwrap();
    fs::write(input.join("cut.jpg"), &whole[..whole.len() * 2 / 3]).unwrap();
    let png = fs::read(input.join("a.png")).unwrap();
    fs::write(input.join("cut.png"), &png[..png.len() * 2 / 3]).unwrap();
    let done = dcp(&input, &output).expect_failure(1, &["4 of 7"]);
    for name in ["text.png", "empty.webp", "cut.jpg", "cut.png"] {
        let warning = done
            .stderr
            .lines()
            .find(|l| l.starts_with(&format!("warning: {name}: ")));
        assert!(warning.is_some(), "{name} is not named:\n{}", done.stderr);
        assert!(!output.join(name).exists());
    }
    assert!(!done.stderr.contains("notes.txt"));
    for name in ["a.png", "sub/b.JPG", "sub/deep/c.bmp"] {
        assert!(image::open(output.join(name)).is_ok(), "{name}");
    }
    let format = ImageReader::open(output.join("sub/b.JPG"))
        .unwrap()
        .with_guessed_format()
        .unwrap()
        .format();
    assert_eq!(format, Some(image::ImageFormat::Jpeg));
    assert_eq!(files(&output), 3, "something half-written is left");
    // The output lies in the input and is not done again.
    dcp(&input, &output).expect_failure(1, &["4 of 7"]);
    assert_eq!(files(&output), 3);
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries
        .map(|p| if p.is_dir() { files(&p) } else { 1 })
        .sum()
}

#[test]
fn an_output_that_cannot_be_written_is_one_error() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png"] {
        hazy(20, 20).save(dir.path().join(name)).unwrap();
    }
    // Not even root writes here.
    for output in ["/proc", "/proc/none/there"] {
        let done = run(&["dehaze", arg(dir.path()), "-o", output, "--method", "dcp"]);
        let done = done.expect_failure(1, &["output folder", output]);
        assert!(!done.stderr.contains("a.png"), "{}", done.stderr);
    }
    dcp(&dir.path().join("a.png"), Path::new("/proc/x.png"))
        .expect_failure(1, &["output folder", "/proc"]);
}

/// The pictures were trained on, with other haze: this tells that the weights that ship are found and work, not how well.
#[test]
fn with_nothing_but_a_picture_the_weights_that_ship_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new("tests/golden_pipeline/restoration");
    let (cleared, kept) = (dir.path().join("cleared"), dir.path().join("kept"));
    run(&["dehaze", arg(&golden.join("hazy")), "-o", arg(&cleared)]).expect_success();
    run(&["dehaze", arg(&golden.join("clean")), "-o", arg(&kept)]).expect_success();
    let read = |path: PathBuf| image::open(path).unwrap().to_rgb8();
    let mut all_left = Vec::new();
    for name in [
        "astronaut_0.png",
        "immunohistochemistry_4.png",
        "rocket_3.png",
    ] {
        let clean = read(golden.join("clean").join(name));
        let likeness = |path: PathBuf| psnr(&read(path), &clean, Channels::Rgb, 0).unwrap();
        let (before, after) = (
            likeness(golden.join("hazy").join(name)),
            likeness(cleared.join(name)),
        );
        assert!(after > before + 2.0, "{name}: {before} dB, then {after}");
        all_left.push(likeness(kept.join(name)));
    }
    // each against itself; of the rocket the smoke of its start goes
    let left = all_left.iter().sum::<f64>() / 3.0;
    assert!(left > 30.0, "without haze: {all_left:?} dB");
}

/// On a photograph that they were not trained on, in haze of three densities that grows to the top.
#[test]
fn the_weights_that_ship_beat_the_prior() {
    let dir = tempfile::tempdir().unwrap();
    let clear = image::open("tests/photographs/grace_hopper.jpg")
        .unwrap()
        .to_rgb8();
    let height = clear.height() as f32;
    let (mut by_network, mut by_prior) = (0.0, 0.0);
    for (thickness, air) in [(1.05, 0.85), (1.8, 0.95), (2.55, 0.8)] {
        let hazy = RgbImage::from_fn(clear.width(), clear.height(), |x, y| {
            let depth = 1.0 - 0.85 * (y as f32 + 0.5) / height;
            let t = (-thickness * depth).exp();
            let value = |v: u8| f32::from(v) * t + 255.0 * air * (1.0 - t);
            Rgb(clear.get_pixel(x, y).0.map(|v| value(v).round() as u8))
        });
        let [input, network, prior] =
            ["a", "b", "c"].map(|name| dir.path().join(format!("{name}.png")));
        hazy.save(&input).unwrap();
        run(&["dehaze", arg(&input), "-o", arg(&network)]).expect_success();
        dcp(&input, &prior).expect_success();
        let likeness = |path: &Path| {
            let found = image::open(path).unwrap().to_rgb8();
            psnr(&found, &clear, Channels::Rgb, 0).unwrap()
        };
        let (before, after) = (likeness(&input), likeness(&network));
        assert!(after > before + 3.0, "{before} dB, then {after}");
        by_network += after / 3.0;
        by_prior += likeness(&prior) / 3.0;
    }
    assert!(
        by_network > by_prior + 1.0,
        "{by_network} dB, the prior {by_prior}"
    );
}

/// Without haze it stays as it is, to the last pixel, and that is said; `--thin-haze` looks for the rest of it.
#[test]
fn a_picture_without_haze_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("clear.png");
    let clear = image::open("tests/photographs/grace_hopper.jpg").unwrap();
    clear.to_rgb8().save(&input).unwrap();
    let dehaze = |name: &str, more: &[&str]| {
        let output = dir.path().join(name);
        let command = ["dehaze", arg(&input), "-o", arg(&output)];
        let told = run(&[&command, more].concat()).expect_success().stderr;
        (image::open(output).unwrap().to_rgb8(), told)
    };
    let (left, told) = dehaze("left.png", &[]);
    assert!(left == clear.to_rgb8());
    assert!(told.contains("--thin-haze"), "{told}");
    let (changed, told) = dehaze("changed.png", &["--thin-haze"]);
    let likeness = psnr(&changed, &clear.to_rgb8(), Channels::Rgb, 0).unwrap();
    assert!((30.0..100.0).contains(&likeness), "{likeness} dB");
    assert!(!told.contains("--thin-haze"), "{told}");
}

#[test]
fn misuse_is_told_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.png");
    hazy(20, 20).save(&a).unwrap();
    let out = dir.path().join("out.png");
    dcp(&a, &a).expect_failure(2, &["over itself"]);
    dcp(dir.path(), dir.path()).expect_failure(2, &["over itself"]);
    dcp(&a, &dir.path().join("out.gif")).expect_failure(2, &["out.gif", "png"]);
    dcp(&dir.path().join("gone.png"), &out).expect_failure(2, &["gone.png"]);
    dcp(dir.path(), &a).expect_failure(2, &["need a folder"]);
    let both = [
        "dehaze",
        arg(&a),
        "-o",
        arg(&out),
        "--method",
        "dcp",
        "--weights",
        "x.safetensors",
    ];
    run(&both).expect_failure(2, &["--method dcp"]);
    let weights = random_weights(dir.path(), "umamba_bot_tiny_2d");
    let wrong = [
        "dehaze",
        arg(&a),
        "-o",
        arg(&out),
        "--weights",
        arg(&weights),
    ];
    run(&wrong).expect_failure(2, &["segmentation", "restoration"]);
    run(&["dehaze", arg(&a), "-o", arg(&out), "--run", arg(dir.path())])
        .expect_failure(2, &["holds no run"]);
    fs::create_dir(dir.path().join("s")).unwrap();
    fs::copy(&a, dir.path().join("s/a.png")).unwrap();
    let (second, folder) = (dir.path().join("s/a.png"), dir.path().join("both"));
    let twice = [
        "dehaze",
        arg(&a),
        arg(&second),
        "-o",
        arg(&folder),
        "--method",
        "dcp",
    ];
    run(&twice).expect_failure(2, &["both be written"]);
    assert!(!out.exists() && !folder.exists());
}

#[test]
fn a_run_folder_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights(dir.path(), "uvmnet_tiny");
    let folder = dir.path().join("run");
    fs::create_dir(&folder).unwrap();
    fs::copy(&weights, folder.join("checkpoint_best.safetensors")).unwrap();
    let config =
        serde_json::json!({"network": preset("uvmnet_tiny").unwrap(), "of another version": true});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (a, x, y) = (
        dir.path().join("a.png"),
        dir.path().join("x.png"),
        dir.path().join("y.png"),
    );
    hazy(33, 47).save(&a).unwrap();
    run(&["dehaze", arg(&a), "-o", arg(&x), "--run", arg(&folder)]).expect_success();
    run(&["dehaze", arg(&a), "-o", arg(&y), "--weights", arg(&weights)]).expect_success();
    assert_eq!(fs::read(&x).unwrap(), fs::read(&y).unwrap());
}

#[test]
fn little_memory_means_tiles_and_too_little_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights(dir.path(), "uvmnet_tiny");
    let (a, out) = (dir.path().join("a.png"), dir.path().join("o.png"));
    hazy(900, 700).save(&a).unwrap();
    let with = |gb: &str| {
        run(&[
            "dehaze",
            arg(&a),
            "-o",
            arg(&out),
            "--weights",
            arg(&weights),
            "--max-memory",
            gb,
            "-v",
        ])
    };
    assert!(!with("8").expect_success().stderr.contains("tiles of"));
    let told = with("0.08").expect_success().stderr;
    assert!(told.contains("tiles of"), "{told}");
    // the picture alone is more
    hazy(1800, 1400).save(&a).unwrap();
    with("0.01").expect_failure(1, &["--max-memory"]);
}

#[test]
fn existing_pictures_are_kept_on_request_and_replaced_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir_all(&input).unwrap();
    fs::create_dir_all(&output).unwrap();
    for name in ["a.png", "b.png"] {
        hazy(20, 20).save(input.join(name)).unwrap();
    }
    fs::write(output.join("a.png"), "mine").unwrap();
    let with = |more: &[&str]| {
        run(&[
            &["dehaze", arg(&input), "-o", arg(&output), "--method", "dcp"],
            more,
        ]
        .concat())
    };
    let told = with(&["--skip-existing"]).expect_success().stderr;
    assert!(
        told.contains("1 kept") && told.contains("a second"),
        "{told}"
    );
    assert_eq!(fs::read(output.join("a.png")).unwrap(), b"mine");
    assert!(image::open(output.join("b.png")).is_ok());
    with(&[]).expect_success();
    assert!(image::open(output.join("a.png")).is_ok());
}

#[test]
fn pipes_carry_pictures() {
    let mut bytes = Cursor::new(Vec::new());
    hazy(30, 20)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    let through = |more: &[&str]| {
        let mut child = program(&[&["dehaze", "-", "-o", "-", "--method", "dcp"], more].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(bytes.get_ref())
            .unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        done.stdout
    };
    for (more, format) in [
        (&[][..], image::ImageFormat::Png),
        (&["--format", "jpeg"], image::ImageFormat::Jpeg),
    ] {
        let out = through(more);
        assert_eq!(image::guess_format(&out).unwrap(), format);
        let size = image::load_from_memory(&out)
            .unwrap()
            .to_rgb8()
            .dimensions();
        assert_eq!(size, (30, 20));
    }
}

#[test]
fn compared_pictures_stand_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let (a, out) = (dir.path().join("a.png"), dir.path().join("o.png"));
    let source = hazy(50, 20);
    source.save(&a).unwrap();
    run(&[
        "dehaze",
        arg(&a),
        "-o",
        arg(&out),
        "--method",
        "dcp",
        "--compare",
    ])
    .expect_success();
    let found = image::open(&out).unwrap().to_rgb8();
    assert_eq!(found.dimensions(), (101, 20));
    let left = image::imageops::crop_imm(&found, 0, 0, 50, 20).to_image();
    assert_eq!(left, source);
}

#[test]
fn scores_need_a_reference_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (input, gt) = (dir.path().join("hazy"), dir.path().join("gt"));
    fs::create_dir_all(&input).unwrap();
    fs::create_dir_all(&gt).unwrap();
    hazy(40, 40).save(input.join("x_1_0.81234.png")).unwrap();
    RgbImage::from_fn(40, 40, |x, y| Rgb(clear(x, y)))
        .save(gt.join("x.jpg"))
        .unwrap();
    let (out, page) = (dir.path().join("out"), dir.path().join("r.html"));
    let options = [
        "dehaze",
        arg(&input),
        "-o",
        arg(&out),
        "--method",
        "dcp",
        "--report",
        arg(&page),
        "--reference",
        arg(&gt),
    ];
    run(&options).expect_success();
    let text = fs::read_to_string(&page).unwrap();
    assert!(
        text.contains("PSNR after")
            && text.contains("x_1_0.81234.png")
            && text.contains("patch 15")
    );
    hazy(40, 40).save(input.join("y.png")).unwrap();
    run(&options).expect_failure(1, &["y.png", "not scored"]);
    assert!(out.join("y.png").is_file());
}

#[test]
#[cfg(unix)]
fn ctrl_c_in_a_folder_leaves_whole_pictures_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir_all(&input).unwrap();
    let first = input.join("000.png");
    hazy(900, 700).save(&first).unwrap();
    let total = 60;
    for i in 1..total {
        fs::copy(&first, input.join(format!("{i:03}.png"))).unwrap();
    }
    let options = ["dehaze", arg(&input), "-o", arg(&output), "--method", "dcp"];
    let child = program(&options).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !output.join("002.png").exists() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "nothing is written"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let done: Outcome = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, Some(130), "{}", done.stderr);
    assert!(done.stderr.contains("--skip-existing"), "{}", done.stderr);
    let written = files(&output);
    assert!((3..total).contains(&written), "{written}");
    for entry in fs::read_dir(&output).unwrap() {
        let path = entry.unwrap().path();
        let size = image::open(&path).unwrap().to_rgb8().dimensions();
        assert_eq!(size, (900, 700), "{}", path.display());
    }
    run(&[&options[..], &["--skip-existing"]].concat()).expect_success();
    assert_eq!(files(&output), total);
}
