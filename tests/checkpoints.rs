//! Checkpoints that Python wrote: taken over with the outputs of the network that they were saved from, or refused.
//!
//! `tests/golden/checkpoints/index.json` says which golden case each file holds; `VISION_MAMBA_GOLDEN` names another folder of the same form.

#![allow(clippy::unwrap_used)]

mod util;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{no_grad, Device, Kind, Tensor};
use util::run;
use vision_mamba_models::weights::{import, read_metadata, read_tensors, save_tensors, Checkpoint};
use vision_mamba_models::{build, preset, Built};

fn root() -> PathBuf {
    match std::env::var_os("VISION_MAMBA_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
    }
}

/// Every file of the index with the case it holds and what is said of it.
fn index() -> Vec<(PathBuf, Option<String>, String)> {
    let folder = root().join("checkpoints");
    let text = std::fs::read_to_string(folder.join("index.json")).unwrap();
    let index: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    index
        .into_iter()
        .filter(|(name, _)| folder.join(name).exists())
        .map(|(name, entry)| {
            (
                folder.join(name),
                entry["case"].as_str().map(str::to_string),
                entry["note"].as_str().unwrap_or_default().to_string(),
            )
        })
        .collect()
}

/// The network of a case, from the preset nearest to it.
fn network(case: &str) -> Option<(Built, BTreeMap<String, Tensor>)> {
    let path = root().join(case);
    let text = std::fs::read_to_string(path.with_extension("json")).unwrap();
    let config: Value = serde_json::from_str::<Value>(&text).unwrap()["config"].clone();
    let text = |key: &str| config[key].to_string();
    let set: Vec<(&str, String)> = match case.split('/').next().unwrap() {
        "vmamba" => vec![
            ("depths", text("depths")),
            ("dims", text("dims")),
            ("num_classes", text("num_classes")),
            ("d_state", text("ssm_d_state")),
            ("ssm_ratio", text("ssm_ratio")),
            ("mlp_ratio", text("mlp_ratio")),
        ],
        "mambaunet" => vec![
            ("input_channels", text("in_chans")),
            ("repeat_single_channel", "false".to_string()),
            ("depths", text("depths")),
            ("embed_dim", text("dims")),
            ("num_classes", text("num_classes")),
            (
                "d_state",
                config["d_state"].as_i64().unwrap_or(16).to_string(),
            ),
        ],
        "vim" => vec![
            ("embed_dim", text("embed_dim")),
            ("depth", text("depth")),
            ("img_size", text("img_size")),
            ("patch_size", text("patch_size")),
            ("stride", text("stride")),
            ("d_state", text("d_state")),
            ("num_classes", text("num_classes")),
        ],
        "umamba" => return None,
        other => panic!("no preset for {other}"),
    };
    let name = match case.split('/').next().unwrap() {
        "vmamba" => "vmamba_nano",
        "mambaunet" => "mamba_unet_tiny",
        _ => "vim_nano",
    };
    let spec = preset(name).unwrap().with_overrides(&set).unwrap();
    let tensors = read_tensors(&path.with_extension("safetensors")).unwrap();
    Some((build(&spec, Device::Cpu).unwrap(), tensors))
}

#[test]
fn every_checkpoint_gives_its_case_or_is_refused() {
    let (mut compared, mut refused) = (0, 0);
    for (file, case, note) in index() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if note.contains("must be refused") {
            let built = build(&preset("vmamba_nano").unwrap(), Device::Cpu).unwrap();
            let result = Checkpoint::open(&file)
                .and_then(|checkpoint| import(&checkpoint, &built, true).map(|_| ()));
            let message = result.unwrap_err().to_string();
            assert!(message.contains(&name), "{name}: {message}");
            if note.contains("naming the tensor") {
                let known = built.params.entries().any(|(n, _, _)| message.contains(n));
                assert!(known, "{name}: {message}");
            }
            refused += 1;
            continue;
        }
        let checkpoint = Checkpoint::open(&file).unwrap_or_else(|e| panic!("{e}"));
        let Some(case) = case else {
            // views, other element types: every tensor can be read
            for (tensor, info) in checkpoint.tensors() {
                assert_eq!(
                    checkpoint.read(tensor).unwrap().size(),
                    info.shape,
                    "{name} {tensor}"
                );
            }
            continue;
        };
        let Some((built, tensors)) = network(&case) else {
            // the harness of the goldens makes this network; its tensors must all be there
            let stored = read_tensors(&root().join(&case).with_extension("safetensors")).unwrap();
            let mut found = 0;
            for (key, value) in &stored {
                let Some(wanted) = key.strip_prefix("param/") else {
                    continue;
                };
                let place = (checkpoint.tensors().keys()).find(|k| {
                    *k == wanted || k.replace("_orig_mod.", "").ends_with(&format!(".{wanted}"))
                });
                let place = place.unwrap_or_else(|| panic!("{name}: no {wanted}"));
                assert!(
                    checkpoint.read(place).unwrap().equal(value),
                    "{name} {wanted}"
                );
                found += 1;
            }
            assert!(found > 50, "{name}");
            compared += 1;
            continue;
        };
        let outcome = import(&checkpoint, &built, false).unwrap_or_else(|e| panic!("{e}"));
        assert!(outcome.is_complete(), "{name}");
        let (x, y) = (&tensors["in/x"], &tensors["out/y"]);
        let ours = no_grad(|| built.net.forward(x, false)).unwrap().remove(0);
        let error = f64::try_from((ours - y).abs().max() / y.abs().max()).unwrap();
        // half precision rounds every weight to eleven bits; a whole network adds that up
        let tolerance = if note.contains("float16") { 2e-2 } else { 1e-4 };
        assert!(error < tolerance, "{name}: {error:e}");
        if note.contains("also at another image size") {
            let larger = built.spec.with_overrides(&[("img_size", "48")]).unwrap();
            let larger = build(&larger, Device::Cpu).unwrap();
            let outcome = import(&checkpoint, &larger, false).unwrap();
            assert!(outcome.adapted[0].starts_with("pos_embed"), "{outcome:?}");
            let y = no_grad(|| {
                larger
                    .net
                    .forward(&x.upsample_bilinear2d([48, 48], false, None, None), false)
            });
            assert!(bool::try_from(y.unwrap()[0].isfinite().all()).unwrap());
        }
        compared += 1;
    }
    assert!(
        compared >= 4 && refused >= 3,
        "{compared} compared, {refused} refused"
    );
}

#[test]
fn views_and_types_come_as_they_were_saved() {
    let file = root().join("checkpoints/views.pth");
    let checkpoint = Checkpoint::open(&file).unwrap();
    let kinds: Vec<Kind> = checkpoint.tensors().values().map(|t| t.kind).collect();
    assert!(
        kinds.contains(&Kind::BFloat16) && kinds.contains(&Kind::Bool),
        "{kinds:?}"
    );
    assert!(
        checkpoint.tensors().values().any(|t| t.shape.is_empty()),
        "no scalar"
    );
    assert!(
        checkpoint.tensors().values().any(|t| t.shape.contains(&0)),
        "nothing empty"
    );
}

#[test]
fn the_command_writes_the_same_bytes_and_names_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let file = root().join("checkpoints/plain.pth").display().to_string();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (first, second) = (path("a.safetensors"), path("b.safetensors"));
    let sizes = ["--set", "depths=[1,1,2,1]", "--set", "dims=[8,12,16,24]"];
    let with = |out: &str, more: &[&str]| {
        let mut all = vec![
            "weights",
            "import",
            &file,
            "--preset",
            "vmamba_nano",
            "-o",
            out,
        ];
        all.extend(more);
        run(&all)
    };
    for out in [&first, &second] {
        with(out, &sizes).expect_success();
    }
    assert_eq!(
        std::fs::read(&first).unwrap(),
        std::fs::read(&second).unwrap()
    );
    let outcome = run(&["weights", "inspect", &first, "--json"]).expect_success();
    let told: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(told["metadata"]["preset"], "vmamba_nano");
    let inspected = run(&["weights", "inspect", &file, "--tensors"]).expect_success();
    assert!(
        inspected.stdout.contains("layers.0.blocks.0.op.A_logs"),
        "{}",
        inspected.stdout
    );

    // taken, another network, no such file: nothing is written
    with(&first, &sizes).expect_failure(2, &["exists already"]);
    let third = path("c.safetensors");
    with(&third, &[]).expect_failure(1, &["plain.pth", "unexpected", "--set"]);
    with(&third, &["--set", "dims"]).expect_failure(2, &["KEY=VALUE"]);
    run(&[
        "weights",
        "import",
        "absent.pth",
        "--preset",
        "vmamba_nano",
        "-o",
        &third,
    ])
    .expect_failure(1, &["absent.pth"]);
    assert!(!Path::new(&third).exists());
    with(&third, &["--partial"]).expect_success();

    // what was imported can be exported, and is not overwritten
    let model = path("model.pt");
    let command = [
        "export",
        "--weights",
        &first,
        "-o",
        &model,
        "--input-size",
        "32x48",
    ];
    let outcome = run(&command).expect_success();
    assert!(
        outcome.stdout.contains("(B, 3, 32, 48)"),
        "{}",
        outcome.stdout
    );
    run(&command).expect_failure(2, &["exists already"]);
    run(&["export", "-o", &path("none.pt")]).expect_failure(2, &["--run RUN_DIR"]);
    run(&["export", "--weights", &file, "-o", &path("none.pt")]).expect_failure(1, &["plain.pth"]);
    assert!(!Path::new(&path("none.pt")).exists());
}

/// Cut anywhere or changed anywhere, a file is read or refused; nothing panics, and no more memory is asked for than the file could fill.
#[test]
fn damaged_files_are_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let built = build(&preset("vmamba_nano").unwrap(), Device::Cpu).unwrap();
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below.max(1)
    };
    let (mut read, mut refused) = (0, 0);
    for name in [
        "plain.pth",
        "legacy.pth",
        "views.pth",
        "nnunet_checkpoint_final.pth",
    ] {
        let whole = std::fs::read(root().join("checkpoints").join(name)).unwrap();
        for round in 0..60 {
            let mut bytes = whole.clone();
            match round % 3 {
                0 => bytes.truncate(random(whole.len())),
                // the pickle and the zip's directories lie at the ends
                1 => {
                    let end = bytes.len() - 1 - random(4000.min(whole.len() - 1));
                    bytes[end] ^= 1 << random(8);
                }
                _ => {
                    let start = random(3000.min(whole.len()));
                    bytes[start] = random(256) as u8;
                }
            }
            let path = dir.path().join("damaged.pth");
            std::fs::write(&path, &bytes).unwrap();
            match Checkpoint::open(&path) {
                Ok(checkpoint) => {
                    for (tensor, info) in checkpoint.tensors() {
                        let size = info.shape.iter().product::<i64>() as usize;
                        assert!(size <= whole.len(), "{name}: {tensor} claims {size} values");
                        let _ = checkpoint.read(tensor);
                    }
                    let _ = import(&checkpoint, &built, true);
                    read += 1;
                }
                Err(e) => {
                    assert!(e.to_string().contains("damaged.pth"), "{e}");
                    refused += 1;
                }
            }
        }
    }
    assert!(read > 0 && refused > 50, "{read} read, {refused} refused");
}

#[test]
fn weights_are_averaged_by_their_shares() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str, values: &[f32], count: i64| {
        let path = dir.path().join(name);
        let tensors = [
            ("weight".to_owned(), Tensor::from_slice(values)),
            ("num_batches_tracked".to_owned(), Tensor::from(count)),
        ];
        let metadata = BTreeMap::from([("preset".to_owned(), "some".to_owned())]);
        save_tensors(&path, &tensors, &metadata).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (a, b) = (
        save("a.safetensors", &[1.0, 2.0], 7),
        save("b.safetensors", &[5.0, -2.0], 9),
    );
    let short = save("c.safetensors", &[1.0], 7);
    let out = dir.path().join("out.safetensors");
    let target = out.to_str().unwrap();
    run(&[
        "weights", "average", &a, &b, "-o", target, "--shares", "3,1",
    ])
    .expect_success();
    let found = read_tensors(&out).unwrap();
    assert_eq!(found["weight"], Tensor::from_slice(&[2.0f32, 1.0]));
    assert_eq!(found["num_batches_tracked"].int64_value(&[]), 7);
    assert_eq!(read_metadata(&out).unwrap()["preset"], "some");

    let again = run(&["weights", "average", &a, &b, "-o", target]);
    assert!(again.code == Some(2) && again.stderr.contains("--force"));
    let wrong = run(&["weights", "average", &a, &short, "-o", target, "--force"]);
    assert!(
        wrong.code == Some(1) && wrong.stderr.contains("'weight' has shape [1]"),
        "{}",
        wrong.stderr
    );
    let shares = run(&[
        "weights", "average", &a, &b, "-o", target, "--force", "--shares", "1",
    ]);
    assert!(shares.code == Some(2) && shares.stderr.contains("1 numbers for 2 files"));
}
