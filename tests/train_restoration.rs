//! Restoration by the engine that trains segmentation: pairs in, run folder out, `dehaze` with it; interrupted and resumed to the same weights.

#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use serde_json::Value;
use util::{arg, program, run, Outcome};

/// Few steps of a tiny network on one thread.
const QUICK: [&str; 14] = [
    "--model",
    "uvmlite_tiny",
    "--epochs",
    "2",
    "--steps-per-epoch",
    "3",
    "--batch-size",
    "2",
    "--patch-size",
    "32x32",
    "--workers",
    "1",
    "--save-every",
    "1",
];

/// A clear picture: dark and coloured, another for each number.
fn clear(number: u32, w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        let wave = |k: u32| ((x * (k + 2) + y * 3 + number * 29) % 97) as u8;
        Rgb([wave(1), 2 * wave(2), wave(number % 5)])
    })
}

/// Half of it, half of a bright air light.
fn hazy(clear: &RgbImage) -> RgbImage {
    let mut hazy = clear.clone();
    for value in hazy.iter_mut() {
        *value = *value / 2 + 115;
    }
    hazy
}

fn save(picture: &RgbImage, path: PathBuf) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture.save(path).unwrap();
}

/// `count` scenes in folders and under names that `hazy_name` and `clear_name` tell.
fn pairs(
    root: &Path,
    count: u32,
    hazy_name: impl Fn(u32) -> String,
    clear_name: impl Fn(u32) -> String,
) -> PathBuf {
    for number in 0..count {
        let picture = clear(number, 60, 44);
        save(&hazy(&picture), root.join(hazy_name(number)));
        save(&picture, root.join(clear_name(number)));
    }
    root.to_path_buf()
}

fn plain(root: &Path, count: u32) -> PathBuf {
    pairs(
        root,
        count,
        |n| format!("hazy/{n:03}.png"),
        |n| format!("clear/{n:03}.png"),
    )
}

fn train(data: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut args = vec!["train", arg(data), "--out", arg(out)];
    // what is said otherwise is not said twice
    let quick = QUICK.chunks(2).filter(|pair| !more.contains(&pair[0]));
    args.extend(quick.flatten());
    args.extend(more);
    run(&args)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn log(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("log.jsonl")).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn from_pairs_to_clear_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let data = plain(&dir.path().join("data"), 6);
    let out = dir.path().join("run");
    let trained =
        train(&data, &out, &["--ema", "0.9", "--validation-share", "0.34"]).expect_success();
    assert!(
        trained.stdout.contains("psnr_rgb") && trained.stdout.contains("mean"),
        "{}",
        trained.stdout
    );
    for file in [
        "config.json",
        "log.jsonl",
        "progress.png",
        "tensorboard",
        "training_state.safetensors",
        "checkpoint_latest.safetensors",
        "checkpoint_best.safetensors",
        "checkpoint_final.safetensors",
        "validation/summary.json",
    ] {
        assert!(out.join(file).exists(), "{file} is missing");
    }
    let rows = log(&out);
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let (psnr, ssim) = (row["psnr"].as_f64().unwrap(), row["ssim"].as_f64().unwrap());
        assert!(psnr > 3.0 && psnr < 60.0 && ssim < 1.0, "{row}");
        assert!(row.get("dice").is_none() && row["val_loss"].as_f64().is_some());
    }
    // the epoch's score is that of the saved pictures
    let config = json(&out.join("config.json"));
    let held = config["validation_ids"].as_array().unwrap().len();
    assert_eq!(
        (held, config["training_ids"].as_array().unwrap().len()),
        (2, 4)
    );
    let summary = json(&out.join("validation/summary.json"));
    let whole = summary["mean"]["psnr_rgb"].as_f64().unwrap();
    assert!((whole - rows[1]["psnr"].as_f64().unwrap()).abs() < 1e-6);
    assert_eq!(
        fs::read_dir(out.join("validation")).unwrap().count(),
        held + 1
    );

    let one = arg(&data.join("hazy/000.png")).to_string();
    let target = dir.path().join("clear.png");
    run(&["dehaze", &one, "-o", arg(&target), "--run", arg(&out)]).expect_success();
    let done = image::open(&target).unwrap();
    assert_eq!((done.width(), done.height()), (60, 44));

    // again, from the weights there are: they fit, and the folder is not overwritten
    train(&data, &out, &[]).expect_failure(2, &["already holds a run", "--resume"]);
    let weights = out.join("checkpoint_best.safetensors");
    let tuned = train(
        &data,
        &dir.path().join("tuned"),
        &["--pretrained", arg(&weights), "--fold", "all"],
    )
    .expect_success();
    assert!(tuned.stderr.contains("starting from"), "{}", tuned.stderr);
    let again = ["train", arg(&data), "--out", arg(&out), "--validate-only"];
    let again = run(&again).expect_success();
    assert_eq!(again.stdout, trained.stdout);
}

#[test]
fn haze_of_one_kind_is_learned() {
    let dir = tempfile::tempdir().unwrap();
    let data = plain(&dir.path().join("data"), 6);
    let out = dir.path().join("run");
    let more = [
        "--steps-per-epoch",
        "60",
        "--lr",
        "0.004",
        "--crops",
        "synthesise=0",
    ];
    train(&data, &out, &more).expect_success();
    let mut nothing = vec![];
    for id in json(&out.join("config.json"))["validation_ids"]
        .as_array()
        .unwrap()
    {
        let name = id.as_str().unwrap().rsplit('/').next().unwrap();
        let read = |f: &str| {
            image::open(data.join(f).join(format!("{name}.png")))
                .unwrap()
                .to_rgb8()
        };
        let (a, b) = (read("hazy"), read("clear"));
        let squares = a
            .iter()
            .zip(b.iter())
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        let mse = squares.sum::<f64>() / a.len() as f64;
        nothing.push(10.0 * (255.0 * 255.0 / mse).log10());
    }
    let nothing = nothing.iter().sum::<f64>() / nothing.len() as f64;
    let reached = log(&out)[1]["psnr"].as_f64().unwrap();
    assert!(
        reached > nothing + 6.0,
        "{reached} dB, {nothing} by doing nothing"
    );
}

#[test]
fn every_layout_and_their_mix_trains() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mix = at("mix");
    for root in [at("reside"), mix.join("reside")] {
        pairs(
            &root,
            3,
            |n| format!("hazy/{n:04}_0.8_0.2.png"),
            |n| format!("clear/{n:04}.png"),
        );
    }
    for root in [at("ohaze"), mix.join("ohaze")] {
        pairs(
            &root,
            3,
            |n| format!("hazy/{n:02}_outdoor_hazy.png"),
            |n| format!("GT/{n:02}_outdoor_GT.png"),
        );
    }
    for root in [at("nh"), mix.join("nh")] {
        pairs(
            &root,
            3,
            |n| format!("{n:02}_hazy.png"),
            |n| format!("{n:02}_GT.png"),
        );
    }
    for root in [at("haze4k"), mix.join("haze4k")] {
        pairs(
            &root,
            3,
            |n| format!("haze/{n}_0.68_1.87.png"),
            |n| format!("gt/{n}.png"),
        );
    }
    let sides = pairs(
        &at("rain"),
        3,
        |n| format!("rain/{n}.png"),
        |n| format!("norain/{n}.png"),
    );
    for n in 0..3 {
        save(&clear(n, 50, 40), at("alone").join(format!("{n}.png")));
        save(
            &clear(n, 50, 40),
            mix.join("photos/clear").join(format!("{n}.png")),
        );
    }
    for (data, pairs, alone) in [
        (at("reside"), 2, 0),
        (at("ohaze"), 2, 0),
        (at("nh"), 2, 0),
        (at("haze4k"), 2, 0),
        (sides, 2, 0),
        (at("alone"), 2, 2),
        (mix, 13, 3),
    ] {
        let out = data.with_extension("run");
        let more = ["--epochs", "1", "--haze", "none=0", "--no-validation"];
        let done = train(&data, &out, &more).expect_success();
        let ids = json(&out.join("config.json"))["training_ids"].clone();
        assert_eq!(ids.as_array().unwrap().len(), pairs, "{}", data.display());
        let config = json(&out.join("config.json"));
        let held = config["validation_ids"].as_array().unwrap().len();
        assert!(held >= 1 && (alone > 0 || held == 1), "{}", data.display());
        assert!(done.stderr.contains("clear alone"), "{}", done.stderr);
    }
}

/// Starts a run, stops it in the middle with `signal`, resumes it, and compares with one that was never stopped.
fn interrupted_equals_uninterrupted(signal: &str, model: &str, more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let data = plain(&dir.path().join("data"), 5);
    for n in 0..2 {
        save(
            &clear(n + 9, 70, 50),
            data.join(format!("photos/clear/p{n}.png")),
        );
    }
    let mut options = vec!["--model", model, "--epochs", "4", "--steps-per-epoch", "8"];
    options.extend(["--batch-size", "2", "--patch-size", "32x32", "--seed", "7"]);
    options.extend(["--workers", "2", "--save-every", "1"]);
    options.extend(more);
    let whole = dir.path().join("whole");
    let mut args = vec!["train", arg(&data), "--out", arg(&whole)];
    args.extend(&options);
    run(&args).expect_success();

    let cut = dir.path().join("cut");
    args[3] = arg(&cut);
    let mut child = program(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now();
    while !cut.join("log.jsonl").exists() {
        assert!(
            patience.elapsed() < Duration::from_secs(120),
            "the run never finished an epoch"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    let killed = std::process::Command::new("kill")
        .args([signal, &id])
        .status()
        .unwrap();
    assert!(killed.success());
    let status = child.wait().unwrap();
    if signal == "-INT" {
        assert_eq!(status.code(), Some(130));
    }
    assert!(
        !cut.join("checkpoint_final.safetensors").exists(),
        "the run was stopped too late to test anything"
    );
    run(&["train", arg(&data), "--out", arg(&cut), "--resume"]).expect_success();
    for file in [
        "checkpoint_final.safetensors",
        "checkpoint_best.safetensors",
    ] {
        let read = |run: &Path| fs::read(run.join(file)).unwrap();
        assert!(read(&whole) == read(&cut), "{file} differs after {signal}");
    }
    let scores = |run: &Path| -> Vec<[Option<f64>; 4]> {
        let rows = log(run);
        let row = |v: &Value| ["train_loss", "val_loss", "psnr", "ssim"].map(|k| v[k].as_f64());
        rows.iter().map(row).collect()
    };
    assert_eq!(scores(&whole), scores(&cut));
}

#[test]
fn ctrl_c_and_resume_give_the_same_weights_averaged_ones_too() {
    interrupted_equals_uninterrupted("-INT", "uvmlite_tiny", &["--ema", "0.9"]);
}

#[test]
fn kill_and_resume_give_the_same_weights_with_batch_norm_and_accumulation() {
    let more = ["--ema", "0.95", "--accumulate", "2", "--pixel-loss", "l1"];
    interrupted_equals_uninterrupted("-KILL", "uvmnet_tiny", &more);
}

/// The average is what is saved, and it is another than the weights.
#[test]
fn the_average_is_saved_and_resumed_from_the_weights() {
    use vision_mamba_models::weights::read_tensors;
    let dir = tempfile::tempdir().unwrap();
    let data = plain(&dir.path().join("data"), 4);
    let (with, without) = (dir.path().join("with"), dir.path().join("without"));
    train(&data, &with, &["--ema", "0.99"]).expect_success();
    train(&data, &without, &[]).expect_success();
    let file = "checkpoint_final.safetensors";
    let name = "head.weight";
    let average = &read_tensors(&with.join(file)).unwrap()[name];
    let state = read_tensors(&with.join("training_state.safetensors")).unwrap();
    assert!(average.equal(&state[&format!("average.{name}")]));
    let weights = &state[&format!("weight.{name}")];
    assert!(!average.equal(weights));
    // averaging changes nothing of what is trained
    assert!(weights.equal(&read_tensors(&without.join(file)).unwrap()[name]));
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let data = plain(&dir.path().join("data"), 3);
    for (more, words) in [
        (&["--haze", "betta=1"][..], &["--haze betta=1", "beta"][..]),
        (&["--haze", "beta=1"], &["--haze beta=1"]),
        (&["--haze", "beta=[3,1]"], &["haze.beta"]),
        (&["--haze", "depth.ground=-1"], &["haze.depth.ground"]),
        (&["--crops", "scale"], &["--crops scale", "KEY=VALUE"]),
        (&["--crops", "crop=[8,8]"], &["--patch-size"]),
        (&["--patch-size", "8x8x8"], &["--patch-size", "axes"]),
        (&["--ema", "1"], &["--ema"]),
        (&["--ssim-loss=-1"], &["--ssim-loss"]),
        (&["--fold", "3"], &["--fold 3", "--validation-share"]),
        (&["--loss", "ce"], &["--loss", "restoration"]),
        (&["--set", "head=magic"], &["head"]),
    ] {
        train(&data, &out, more).expect_failure(2, words);
        assert!(!out.exists(), "{more:?} left a folder");
    }
    let segmentation = ["train", arg(&data), "--out", arg(&out)];
    let segmentation = [
        &segmentation[..],
        &["--model", "unet_plain_tiny_2d", "--ssim-loss", "1"],
    ];
    run(&segmentation.concat()).expect_failure(2, &["--ssim-loss", "segmentation"]);

    fs::remove_file(data.join("clear/001.png")).unwrap();
    train(&data, &out, &[]).expect_failure(1, &["hazy/001.png"]);
    save(&clear(1, 20, 20), data.join("clear/001.png"));
    train(&data, &out, &[]).expect_failure(1, &["001.png"]);
    fs::write(data.join("clear/001.png"), b"no picture").unwrap();
    fs::remove_dir_all(&out).ok();
    train(&data, &out, &[]).expect_failure(1, &["001.png"]);
    train(&dir.path().join("absent"), &out, &[]).expect_failure(1, &["absent"]);

    // a run goes on with what it began with
    let data = plain(&dir.path().join("more"), 3);
    let run_dir = dir.path().join("kept");
    train(&data, &run_dir, &["--fold", "all"]).expect_success();
    for side in ["hazy", "clear"] {
        fs::remove_file(data.join(side).join("002.png")).unwrap();
    }
    let resume = ["train", arg(&data), "--out", arg(&run_dir), "--resume"];
    run(&resume).expect_failure(1, &["002", "started with"]);
}
