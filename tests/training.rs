//! The whole way: data set in, run folder, predictions and scores out; interrupted and resumed to the same weights.

#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use util::{arg, program, run, Outcome, FEW_STEPS, QUICK};

fn train(dataset: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut args = vec!["train", arg(dataset), "--out", arg(out)];
    args.extend(QUICK);
    args.extend(more);
    run(&args)
}

#[test]
fn png_data_set_from_training_to_scores() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 10);
    let out = dir.path().join("run");
    let trained = train(&dataset, &out, &FEW_STEPS).expect_success();
    assert!(trained.stdout.contains("Dice pooled"), "{}", trained.stdout);
    for file in [
        "config.json",
        "plans.json",
        "dataset.json",
        "log.jsonl",
        "progress.png",
        "training_state.safetensors",
        "checkpoint_latest.safetensors",
        "checkpoint_best.safetensors",
        "checkpoint_final.safetensors",
        "validation/summary.json",
    ] {
        assert!(out.join(file).is_file(), "{file} is missing");
    }
    assert_eq!(
        fs::read_to_string(out.join("log.jsonl"))
            .unwrap()
            .lines()
            .count(),
        2
    );
    let overlays = fs::read_dir(out.join("validation")).unwrap().filter(|e| {
        e.as_ref()
            .is_ok_and(|e| e.file_name().to_string_lossy().ends_with("_overlay.png"))
    });
    assert_eq!(overlays.count(), 2, "two of ten cases are in fold 0");

    let pred = dir.path().join("pred");
    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(&dataset.join("imagesTs")),
        "-o",
        arg(&pred),
    ])
    .expect_success();
    let label = image::open(pred.join("disc_010.png")).unwrap();
    assert_eq!((label.width(), label.height()), (44, 38));

    let json = dir.path().join("scores.json");
    let scored = run(&[
        "evaluate",
        "segmentation",
        "--pred",
        arg(&pred),
        "--ref",
        arg(&dataset.join("labelsTs")),
        "--json",
        arg(&json),
    ])
    .expect_success();
    assert!(
        scored.stdout.contains("disc") && scored.stdout.contains("core"),
        "{}",
        scored.stdout
    );
    let scores: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(scores["metric_per_case"].as_array().map(Vec::len), Some(2));

    // An ensemble of a run with a copy of it predicts what the run alone predicts.
    let (twice, copy) = (dir.path().join("twice"), dir.path().join("copy"));
    fs::create_dir(&copy).unwrap();
    for file in [
        "config.json",
        "plans.json",
        "dataset.json",
        "checkpoint_final.safetensors",
    ] {
        fs::copy(out.join(file), copy.join(file)).unwrap();
    }
    run(&[
        "predict",
        "--run",
        arg(&out),
        "--run",
        arg(&copy),
        "-i",
        arg(&dataset.join("imagesTs")),
        "-o",
        arg(&twice),
    ])
    .expect_success();
    assert_eq!(
        fs::read(pred.join("disc_011.png")).unwrap(),
        fs::read(twice.join("disc_011.png")).unwrap()
    );

    // A run is never overwritten.
    let before = fs::read(out.join("checkpoint_final.safetensors")).unwrap();
    train(&dataset, &out, &FEW_STEPS).expect_failure(2, &["already holds a run", "--resume"]);
    assert_eq!(
        fs::read(out.join("checkpoint_final.safetensors")).unwrap(),
        before
    );
}

/// Training learns: on an easy task the Dice of whole validation images is high after some dozens of steps.
#[test]
fn an_easy_task_is_learned() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 10);
    let out = dir.path().join("run");
    train(
        &dataset,
        &out,
        &[
            "--steps-per-epoch",
            "200",
            "--optimizer",
            "adamw",
            "--lr",
            "0.003",
        ],
    )
    .expect_success();
    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("validation/summary.json")).unwrap())
            .unwrap();
    let dice = summary["pooled_foreground_dice"].as_f64().unwrap();
    assert!(dice > 0.8, "pooled Dice {dice}");
}

/// In bfloat16 the same easy task is learned as well, and a prediction differs from float32's in few pixels.
#[test]
fn an_easy_task_is_learned_in_bfloat16() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 10);
    let out = dir.path().join("run");
    let more = [
        "--steps-per-epoch",
        "200",
        "--optimizer",
        "adamw",
        "--lr",
        "0.003",
        "--precision",
        "bfloat16",
    ];
    train(&dataset, &out, &more).expect_success();
    let read = |file: &str| fs::read_to_string(out.join(file)).unwrap();
    let config: serde_json::Value = serde_json::from_str(&read("config.json")).unwrap();
    assert_eq!(config["training"]["precision"], "bfloat16");
    let summary: serde_json::Value =
        serde_json::from_str(&read("validation/summary.json")).unwrap();
    let dice = summary["pooled_foreground_dice"].as_f64().unwrap();
    assert!(dice > 0.8, "pooled Dice {dice}");
    let pixels = |precision: &str| {
        let to = dir.path().join(precision);
        let input = dataset.join("imagesTs");
        let paths = ["-i", arg(&input), "-o", arg(&to)];
        let mut args = vec!["predict", "--run", arg(&out), "--precision", precision];
        args.extend(paths);
        run(&args).expect_success();
        image::open(to.join("disc_010.png"))
            .unwrap()
            .to_luma8()
            .into_raw()
    };
    let (low, full) = (pixels("bfloat16"), pixels("float32"));
    let differing = low.iter().zip(&full).filter(|(a, b)| a != b).count();
    assert!(differing * 50 < full.len(), "{differing} of {}", full.len());
}

fn final_weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoint_final.safetensors")).unwrap()
}

/// Starts a run, stops it in the middle with `signal`, resumes it, and compares with one that was never stopped.
fn interrupted_equals_uninterrupted(signal: &str, model: &str, patch: &str) {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 10);
    let options = [
        "--model",
        model,
        "--epochs",
        "4",
        "--steps-per-epoch",
        "8",
        "--batch-size",
        "2",
        "--validation-steps",
        "1",
        "--save-every",
        "1",
        "--patch-size",
        patch,
        "--seed",
        "7",
        "--workers",
        "2",
    ];
    let whole = dir.path().join("whole");
    let mut args = vec!["train", arg(&dataset), "--out", arg(&whole)];
    args.extend(options);
    run(&args).expect_success();

    let cut = dir.path().join("cut");
    args[3] = arg(&cut);
    let mut child = program(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Once the first epoch is in the log there is a state to go on from, and the run is not near its end.
    let patience = Instant::now();
    while !cut.join("log.jsonl").exists() {
        assert!(
            patience.elapsed() < Duration::from_secs(120),
            "the run never finished an epoch"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    let killed = std::process::Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let output: Outcome = child.wait_with_output_of().into();
    if signal == "-INT" {
        assert_eq!(output.code, Some(130), "{}", output.stderr);
        assert!(output.stderr.contains("--resume"), "{}", output.stderr);
        assert!(cut.join("checkpoint_latest.safetensors").is_file());
    }
    assert!(
        !cut.join("checkpoint_final.safetensors").exists(),
        "the run was stopped too late to test anything"
    );
    run(&["train", arg(&dataset), "--out", arg(&cut), "--resume"]).expect_success();
    assert!(
        final_weights(&whole) == final_weights(&cut),
        "weights differ after {signal}"
    );
    let rows = |run: &Path| -> Vec<(u64, Option<f64>)> {
        fs::read_to_string(run.join("log.jsonl"))
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
            .map(|v| (v["epoch"].as_u64().unwrap(), v["train_loss"].as_f64()))
            .collect()
    };
    assert_eq!(rows(&whole), rows(&cut));
}

trait WaitWithOutput {
    fn wait_with_output_of(&mut self) -> std::process::Output;
}

impl WaitWithOutput for std::process::Child {
    fn wait_with_output_of(&mut self) -> std::process::Output {
        use std::io::Read;
        let mut stderr = Vec::new();
        if let Some(mut pipe) = self.stderr.take() {
            pipe.read_to_end(&mut stderr).unwrap();
        }
        std::process::Output {
            status: self.wait().unwrap(),
            stdout: Vec::new(),
            stderr,
        }
    }
}

#[test]
fn ctrl_c_and_resume_give_bitwise_the_same_weights() {
    interrupted_equals_uninterrupted("-INT", "umamba_bot_tiny_2d", "32x32");
}

/// The destructors of libtorch, run while its threads compute, ended this in a segmentation fault.
/// What the graph itself does is seen on a GPU, by `scripts/gpu-check`.
#[test]
fn a_cuda_graph_is_for_gpus_and_steps_of_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 6);
    let out = dir.path().join("run");
    let told = train(&dataset, &out, &FEW_STEPS[..]).expect_success();
    assert!(!told.stderr.contains("--cuda-graph"), "{}", told.stderr);
    let plain = final_weights(&out);
    let out = dir.path().join("asked");
    let more = [&FEW_STEPS[..], &["--cuda-graph"]].concat();
    let told = train(&dataset, &out, &more).expect_success();
    let said = "--cuda-graph is for steps of one batch on a GPU";
    assert!(told.stderr.contains(said), "{}", told.stderr);
    assert!(final_weights(&out) == plain, "other weights");
    for (option, value) in [("--accumulate", "2"), ("--profile", "5")] {
        let told = train(&dataset, &out, &["--cuda-graph", option, value]);
        assert_eq!(told.code, Some(2), "{}", told.stderr);
        assert!(told.stderr.contains(option), "{}", told.stderr);
    }
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 4);
    let out = dir.path().join("run");
    let mut args = vec!["train", arg(&dataset), "--out", arg(&out), "--fold", "all"];
    // steps so long that the first signal is not obeyed before the second comes
    let long = "--model umamba_bot_small_2d --epochs 9 --batch-size 24 --patch-size 192x192";
    args.extend(long.split(' '));
    let mut child = program(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let patience = Instant::now();
    while !out.join("config.json").exists() {
        assert!(patience.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(5));
    }
    // into the first steps
    std::thread::sleep(Duration::from_millis(1500));
    for _ in 0..2 {
        let killed = std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        std::thread::sleep(Duration::from_millis(50));
    }
    let output: Outcome = child.wait_with_output_of().into();
    assert_eq!(output.code, Some(130), "{}", output.stderr);
    let said = (
        output.stderr.contains("once more"),
        output.stderr.contains("--resume"),
    );
    assert_eq!(said, (true, false), "{}", output.stderr);
}

#[test]
fn a_run_in_a_relative_folder_leaves_no_preprocessed_cases() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 10);
    let mut args = vec!["train", arg(&dataset), "--out", "run", "--no-validation"];
    args.extend(util::QUICK.iter().chain(&util::FEW_STEPS));
    let outcome: Outcome = program(&args)
        .current_dir(dir.path())
        .output()
        .unwrap()
        .into();
    let outcome = outcome.expect_success();
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
    assert!(!dir.path().join("run/preprocessed").exists());
    assert!(dir.path().join("run/splits_final.json").is_file());

    // Going on keeps to what the run was started with.
    program(&["train", arg(&dataset), "--out", "run", "--resume"])
        .current_dir(dir.path())
        .output()
        .map(Outcome::from)
        .unwrap()
        .expect_success();
    assert!(!dir.path().join("run/validation").exists());
}

#[test]
fn kill_and_resume_give_bitwise_the_same_weights_with_drop_path() {
    interrupted_equals_uninterrupted("-KILL", "mamba_unet_tiny", "32x32");
}

#[test]
fn oblique_volumes_keep_their_geometry() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::nifti_dataset(dir.path(), 5);
    let out = dir.path().join("run");
    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&out),
        "--model",
        "umamba_bot_tiny_3d",
        "--epochs",
        "1",
        "--steps-per-epoch",
        "2",
        "--batch-size",
        "2",
        "--validation-steps",
        "1",
        "--fold",
        "all",
    ])
    .expect_success();
    let target = dir.path().join("seg.nii");
    let input = dataset.join("imagesTs/box_5_0000.nii");
    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(&input),
        "-o",
        arg(&target),
    ])
    .expect_success();
    let (source, written) = (fs::read(&input).unwrap(), fs::read(&target).unwrap());
    assert_eq!(written[40..56], source[40..56], "dim");
    assert_eq!(written[76..108], source[76..108], "pixdim with qfac");
    assert_eq!(written[252..328], source[252..328], "qform and sform");
    assert_eq!(written.len(), 352 + 18 * 17 * 9, "one byte a voxel");

    // A 2-D network sees the same volume slice by slice.
    let flat = dir.path().join("flat");
    run(&[
        "train",
        arg(&dataset),
        "--out",
        arg(&flat),
        "--model",
        "umamba_bot_tiny_2d",
        "--epochs",
        "1",
        "--steps-per-epoch",
        "2",
        "--batch-size",
        "2",
        "--validation-steps",
        "1",
        "--fold",
        "all",
    ])
    .expect_success();
    run(&[
        "predict",
        "--run",
        arg(&flat),
        "-i",
        arg(&input),
        "-o",
        arg(&target),
    ])
    .expect_success();
    assert_eq!(
        fs::read(&target).unwrap()[280..328],
        source[280..328],
        "sform"
    );
}

#[test]
fn a_diverging_run_ends_with_advice_and_counts_its_steps() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 6);
    let out = dir.path().join("run");
    train(
        &dataset,
        &out,
        &[
            "--steps-per-epoch",
            "200",
            "--lr",
            "1e30",
            "--grad-clip",
            "1e30",
        ],
    )
    .expect_failure(1, &["diverged", "--lr"]);
}

#[test]
fn several_channels_are_trained_and_predicted_on() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = util::png_dataset(dir.path(), 4);
    for part in ["imagesTr", "imagesTs"] {
        for entry in fs::read_dir(dataset.join(part)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, arg(&path).replace("_0000", "_0001")).unwrap();
        }
    }
    let json = fs::read_to_string(dataset.join("dataset.json")).unwrap();
    let json = json.replace("\"0\": \"MR\"", "\"0\": \"MR\", \"1\": \"noNorm\"");
    fs::write(dataset.join("dataset.json"), json).unwrap();
    for model in ["umamba_bot_tiny_2d", "mamba_unet_tiny"] {
        let out = dir.path().join(model);
        run(&[
            "train",
            arg(&dataset),
            "--out",
            arg(&out),
            "--model",
            model,
            "--fold",
            "all",
            "--epochs",
            "1",
            "--steps-per-epoch",
            "2",
            "--batch-size",
            "2",
            "--validation-steps",
            "1",
        ])
        .expect_success();
        let config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["training"]["batch_size"], 2);
        let pred = dir.path().join(format!("{model}-pred"));
        run(&[
            "predict",
            "--run",
            arg(&out),
            "-i",
            arg(&dataset.join("imagesTs")),
            "-o",
            arg(&pred),
        ])
        .expect_success();
        assert!(pred.join("disc_004.png").is_file());
        // One channel alone is refused, by name.
        let lone = dir.path().join(format!("{model}-lone"));
        fs::create_dir(&lone).unwrap();
        fs::copy(
            dataset.join("imagesTs/disc_004_0000.png"),
            lone.join("disc_004_0000.png"),
        )
        .unwrap();
        run(&[
            "predict",
            "--run",
            arg(&out),
            "-i",
            arg(&lone),
            "-o",
            arg(&pred),
        ])
        .expect_failure(1, &["disc_004_0001.png"]);
    }
}

/// Trains for two steps and predicts one image.
fn short_run(dir: &Path, dataset: &Path, input: &Path, model: &str, more: &[&str]) {
    let out = dir.join(model);
    let mut args = vec!["train", arg(dataset), "--out", arg(&out), "--model", model];
    args.extend(["--fold", "all", "--epochs", "1", "--steps-per-epoch", "2"]);
    args.extend(["--batch-size", "2", "--validation-steps", "1"]);
    args.extend(more);
    run(&args).expect_success();
    let target = dir.join(format!("{model}-pred"));
    run(&[
        "predict",
        "--run",
        arg(&out),
        "-i",
        arg(input),
        "-o",
        arg(&target),
    ])
    .expect_success();
}

#[test]
fn convolutional_and_encoder_mamba_networks_train_and_predict() {
    let dir = tempfile::tempdir().unwrap();
    let flat = util::png_dataset(dir.path(), 4);
    let images = flat.join("imagesTs");
    for model in ["unet_plain_tiny_2d", "unet_resenc_tiny_2d"] {
        short_run(dir.path(), &flat, &images, model, &[]);
    }
    // 32 x 32 leaves 4 x 4 positions at 16 features, so tokens are channels and the images are seen in windows
    let patch = &["--patch-size", "32x32"];
    short_run(dir.path(), &flat, &images, "umamba_enc_tiny_2d", patch);
    let config = fs::read_to_string(dir.path().join("umamba_enc_tiny_2d/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let network = &config["network"];
    assert_eq!(
        network["training_patch"],
        serde_json::json!([32, 32]),
        "{network}"
    );

    let volumes = util::nifti_dataset(dir.path(), 4);
    let images = volumes.join("imagesTs");
    for model in [
        "umamba_enc_tiny_3d",
        "unet_plain_tiny_3d",
        "unet_resenc_tiny_3d",
    ] {
        short_run(dir.path(), &volumes, &images, model, &[]);
    }
}

#[test]
fn backbones_of_classifiers_start_segmentation_networks() {
    use vision_mamba_models::{build, preset, weights::save_safetensors};
    let dir = tempfile::tempdir().unwrap();
    let flat = util::png_dataset(dir.path(), 4);
    let images = flat.join("imagesTs");
    let write = |name: &str, overrides: &[(&str, &str)]| {
        let spec = preset(name).unwrap().with_overrides(overrides).unwrap();
        let built = build(&spec, tch::Device::Cpu).unwrap();
        let path = dir
            .path()
            .join(format!("{name}{}.safetensors", overrides.len()));
        save_safetensors(&path, &built.params, &Default::default()).unwrap();
        path
    };
    for (model, weights) in [
        ("vmamba_unet_tiny", write("vmamba_nano", &[])),
        ("vmamba_mamba_unet_tiny", write("vmamba_nano", &[])),
        ("vim_unet_tiny", write("vim_nano", &[])),
        (
            "mamba_unet_tiny",
            write(
                "vmambav0_tiny",
                &[
                    ("depths", "[1,1,1,1]"),
                    ("dims", "[8,16,32,64]"),
                    ("d_state", "4"),
                    ("num_classes", "5"),
                ],
            ),
        ),
    ] {
        let more = ["--pretrained", arg(&weights)];
        short_run(dir.path(), &flat, &images, model, &more);
    }
    // a trained run goes out as it was trained: at its patch, with labels and normalisation
    let model = dir.path().join("vim.pt");
    let trained = dir.path().join("vim_unet_tiny");
    let done = run(&["export", "--run", arg(&trained), "-o", arg(&model)]).expect_success();
    assert!(done.stdout.contains("any B"), "{}", done.stdout);
    let bytes = fs::read(&model).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("\"labels\"") && text.contains("\"mirror_axes\""));

    let other = write("unet_plain_tiny_2d", &[]);
    let out = dir.path().join("wrong");
    let refused = |file: &Path, words: &[&str], code| {
        let more = [
            "--model",
            "vim_unet_tiny",
            "--pretrained",
            arg(file),
            "--epochs",
            "1",
        ];
        let mut args = vec!["train", arg(&flat), "--out", arg(&out), "--fold", "all"];
        args.extend(more);
        run(&args).expect_failure(code, words);
    };
    refused(&other, &["--pretrained", "another network's"], 2);
    refused(&dir.path().join("absent.pth"), &["absent.pth"], 1);
}

#[test]
fn vmamba_weights_begin_both_ways_of_mamba_unet() {
    use vision_mamba_models::weights::{import, save_safetensors, Checkpoint};
    use vision_mamba_models::{build, preset};
    let dir = tempfile::tempdir().unwrap();
    let sizes = [
        ("depths", "[1,1,1,1]"),
        ("dims", "[8,16,32,64]"),
        ("d_state", "4"),
        ("num_classes", "5"),
    ];
    let vmamba = preset("vmambav0_tiny")
        .unwrap()
        .with_overrides(&sizes)
        .unwrap();
    let vmamba = build(&vmamba, tch::Device::Cpu).unwrap();
    let path = dir.path().join("vmamba.safetensors");
    save_safetensors(&path, &vmamba.params, &Default::default()).unwrap();
    let net = build(&preset("mamba_unet_tiny").unwrap(), tch::Device::Cpu).unwrap();
    let outcome = import(&Checkpoint::open(&path).unwrap(), &net, true).unwrap();
    let weight = |name: &str| net.params.get(&format!("mamba_unet.{name}")).unwrap();
    let theirs = |name: &str| vmamba.params.get(name).unwrap();
    for (ours, of) in [
        (
            "layers.1.blocks.0.self_attention.A_logs",
            "layers.1.blocks.0.op.A_logs",
        ),
        (
            "layers_up.2.blocks.0.self_attention.A_logs",
            "layers.1.blocks.0.op.A_logs",
        ),
        (
            "layers_up.3.blocks.0.ln_1.weight",
            "layers.0.blocks.0.norm.weight",
        ),
        (
            "layers.0.downsample.reduction.weight",
            "layers.0.downsample.reduction.weight",
        ),
        ("patch_embed.proj.weight", "patch_embed.0.weight"),
    ] {
        assert!(weight(ours).equal(theirs(of)), "{ours}: {outcome:?}");
    }
}
