//! Everything a user can get wrong: each has its message, and nothing is changed by the attempt.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use vision_mamba_models::weights::{load_strict, read_tensors, save_safetensors, save_tensors};
use vision_mamba_models::{build, preset, Built, ModelError, NetworkSpec};

fn tiny() -> Built {
    build(&preset("umamba_bot_tiny_2d").unwrap(), Device::Cpu).unwrap()
}

fn message<T>(result: Result<T, ModelError>) -> String {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(e) => e.to_string(),
    }
}

fn says<T>(result: Result<T, ModelError>, words: &[&str]) {
    let text = message(result);
    for word in words {
        assert!(text.contains(word), "`{text}` does not say `{word}`");
    }
    assert!(!text.contains('\n'), "`{text}` has several lines");
}

fn overridden(name: &str, key: &str, value: &str) -> Result<NetworkSpec, ModelError> {
    preset(name).unwrap().with_overrides(&[(key, value)])
}

#[test]
fn unknown_preset() {
    says(
        preset("umamba_bot_2"),
        &["umamba_bot_2", "umamba_bot_2d", "models list"],
    );
    says(preset("MambaUnet"), &["mamba_unet"]);
}

#[test]
fn unknown_key_and_value_of_the_wrong_type() {
    says(
        overridden("umamba_bot_2d", "feature_per_stage", "[8]"),
        &["feature_per_stage", "features_per_stage", "strides"],
    );
    says(overridden("mamba_unet", "arch", "\"umamba\""), &["arch"]);
    says(
        overridden("umamba_bot_2d", "features_per_stage", "many"),
        &["features_per_stage", "many"],
    );
    says(
        overridden("mamba_unet", "embed_dim", "1.5"),
        &["embed_dim", "1.5"],
    );
    let unknown = serde_json::from_str::<NetworkSpec>(r#"{"arch": "umambo"}"#)
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("umamba"), "{unknown}");
    let mut spec = serde_json::to_value(preset("mamba_unet").unwrap()).unwrap();
    spec.as_object_mut()
        .unwrap()
        .insert("mlp_ratio".into(), 4.into());
    let unknown = serde_json::from_value::<NetworkSpec>(spec)
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("mlp_ratio"), "{unknown}");
}

#[test]
fn contradictory_sizes() {
    let two = "[[1,1],[2,2]]";
    says(
        overridden("umamba_bot_2d", "strides", two)
            .and_then(|s| s.with_overrides(&[("features_per_stage", "[8]")])),
        &["features_per_stage", "1", "2"],
    );
    says(
        overridden("umamba_bot_2d", "n_conv_per_stage", "[2,2]"),
        &["n_conv_per_stage", "8"],
    );
    says(
        overridden("umamba_bot_2d", "n_conv_per_stage", "0"),
        &["n_conv_per_stage", "at least 1"],
    );
    says(
        overridden("umamba_bot_2d", "kernel_sizes", "[[3,3],[3,2]]"),
        &["kernel_sizes", "odd"],
    );
    says(
        overridden("umamba_bot_2d", "strides", "[[1,1],[2,2,2]]"),
        &["strides", "2 numbers"],
    );
    says(
        overridden("umamba_bot_2d", "features_per_stage", "[1,2,3,4,5,6,7,8,9]"),
        &["features_per_stage", "9", "8"],
    );
    says(
        overridden("umamba_bot_2d", "training_patch", "[6,6]"),
        &["at least 2"],
    );
    says(
        overridden("umamba_bot_2d", "num_classes", "0"),
        &["num_classes", "0"],
    );
    says(
        overridden("unet_plain_2d", "n_conv_per_stage", "[2,2]"),
        &["n_conv_per_stage", "8"],
    );
    says(
        overridden("unet_plain_2d", "encoder", "dense"),
        &["encoder", "dense", "residual"],
    );
    says(
        overridden("umamba_bot_2d", "mixer", "mamba2"),
        &["mixer", "mamba2", "none"],
    );
    says(
        overridden("umamba_enc_tiny_2d", "strides", "[[1,1],[2,2],[16,16]]"),
        &["training_patch", "too small", "stage 2"],
    );
    says(
        overridden("umamba_enc_tiny_2d", "strides", "[[1,1],[2,2]]")
            .and_then(|s| s.with_overrides(&[("training_patch", "[]")])),
        &["training_patch", "expected 2 sizes"],
    );
    says(
        overridden("mamba_unet", "depths", "[2,2,2]"),
        &["depths", "4"],
    );
    says(overridden("mamba_unet", "d_state", "0"), &["d_state", "0"]);
    says(
        overridden("mamba_unet", "drop_path_rate", "1.0"),
        &["drop_path_rate", "below 1"],
    );
    let broken = overridden("umamba_bot_tiny_2d", "d_state", "0")
        .and_then(|s| build(&s, Device::Cpu).map(drop));
    says(broken, &["d_state", "at least 1"]);
}

#[test]
fn data_of_the_wrong_kind() {
    says(
        preset("umamba_bot_2d")
            .unwrap()
            .for_data(1, 2, 3, &[64, 64, 64]),
        &["2 spatial axes", "3-D preset"],
    );
    says(
        preset("mamba_unet")
            .unwrap()
            .for_data(1, 2, 3, &[64, 64, 64]),
        &["2-D"],
    );
    says(
        preset("umamba_bot_2d").unwrap().for_data(1, 2, 2, &[64]),
        &["training_patch"],
    );
}

#[test]
fn inputs_the_network_cannot_take() {
    let forward = |built: &Built, shape: &[i64], train| {
        built
            .net
            .forward(&Tensor::zeros(shape, (Kind::Float, Device::Cpu)), train)
            .map(drop)
    };
    let built = tiny();
    says(
        forward(&built, &[1, 2, 16, 16], false),
        &["2 channels", "expected 1"],
    );
    says(
        forward(&built, &[1, 1, 16, 18], false),
        &["axis 1", "18", "multiple of 4", "20"],
    );
    says(forward(&built, &[1, 1, 16], false), &["4 axes"]);
    says(forward(&built, &[1, 1, 4, 4], true), &["one position"]);
    forward(&built, &[1, 1, 4, 4], false).unwrap();
    let built = build(&preset("umamba_enc_tiny_2d").unwrap(), Device::Cpu).unwrap();
    forward(&built, &[1, 1, 16, 16], false).unwrap();
    for other in [[1, 1, 32, 32], [1, 1, 8, 32]] {
        says(
            forward(&built, &other, false),
            &["stage 2", "tokens are channels", "[16, 16]", "windows"],
        );
    }
    let built = build(&preset("mamba_unet_tiny").unwrap(), Device::Cpu).unwrap();
    says(
        forward(&built, &[1, 3, 40, 64], false),
        &["axis 0", "40", "multiple of 32", "64"],
    );
    says(
        forward(&built, &[1, 2, 64, 64], false),
        &["2 channels", "1 or 3"],
    );
}

/// A folder with one good file, and the network it came from.
fn stored() -> (tempfile::TempDir, PathBuf, Built) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let built = tiny();
    save_safetensors(&path, &built.params, &BTreeMap::new()).unwrap();
    (folder, path, built)
}

/// Loading fails with these words and leaves the network alone.
fn refuses(path: &Path, words: &[&str]) {
    let target = tiny();
    let before: Vec<_> = target
        .params
        .state_dict()
        .into_iter()
        .map(|(_, t)| t.copy())
        .collect();
    let mut words = words.to_vec();
    let shown = path.display().to_string();
    words.push(&shown);
    says(load_strict(path, &target.params), &words);
    for (before, (name, after)) in before.iter().zip(target.params.state_dict()) {
        assert!(
            before.equal(&after),
            "{name} changed although loading failed"
        );
    }
}

#[test]
fn files_that_are_missing_cut_short_or_something_else() {
    let (folder, path, _) = stored();
    refuses(&folder.path().join("absent.safetensors"), &["No such file"]);
    let bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for (length, words) in [
        (0, "0 bytes"),
        (5, "5 bytes"),
        (8 + header / 2, "cut short"),
        (8 + header, "cut short"),
        (bytes.len() - 1, "cut short"),
    ] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        refuses(&path, &[words]);
    }
    std::fs::write(&path, [bytes.as_slice(), &[0]].concat()).unwrap();
    refuses(&path, &["too long"]);
    std::fs::write(&path, b"PK\x03\x04 a zip archive, as torch.save writes it").unwrap();
    refuses(&path, &["no safetensors file"]);
    std::fs::write(
        &path,
        [&20u64.to_le_bytes()[..], b"{\"a\": [1, 2, 3] }    "].concat(),
    )
    .unwrap();
    refuses(&path, &["no safetensors file"]);
    // a header that announces far more than memory holds must not be believed
    let huge = br#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
    std::fs::write(
        &path,
        [&(huge.len() as u64).to_le_bytes()[..], huge].concat(),
    )
    .unwrap();
    refuses(&path, &["cut short", "4000000000"]);
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    refuses(&path, &["no safetensors file"]);
}

#[test]
fn tensors_that_do_not_fit() {
    let (_folder, path, built) = stored();
    let all = || {
        built
            .params
            .state_dict()
            .into_iter()
            .map(|(n, t)| (n, t.detach().copy()))
            .collect::<BTreeMap<_, _>>()
    };
    let write = |tensors: BTreeMap<String, Tensor>| {
        save_tensors(
            &path,
            &tensors.into_iter().collect::<Vec<_>>(),
            &BTreeMap::new(),
        )
        .unwrap();
    };
    let name = "mamba_layer.norm.weight";
    let mut changed = all();
    changed.remove(name);
    write(changed);
    refuses(&path, &["1 missing", name]);

    let mut changed = all();
    changed.insert(
        "stranger".into(),
        Tensor::zeros([1], (Kind::Float, Device::Cpu)),
    );
    write(changed);
    refuses(&path, &["1 unexpected", "stranger"]);

    let mut changed = all();
    changed.insert(name.into(), Tensor::zeros([9], (Kind::Float, Device::Cpu)));
    write(changed);
    refuses(&path, &["1 misshaped", name, "[9]", "[8]"]);

    let mut changed = all();
    changed.insert(name.into(), Tensor::zeros([8], (Kind::Int64, Device::Cpu)));
    write(changed);
    refuses(&path, &["1 misshaped", name, "I64"]);

    let mut changed = all();
    let second = "decoder.encoder.stem.0.conv1.weight";
    changed.insert(second.into(), changed[second].copy() + 1.0);
    write(changed);
    refuses(
        &path,
        &[second, "differs from", "`encoder.stem.0.conv1.weight`"],
    );
}

#[test]
fn second_names_may_be_absent_and_other_float_kinds_are_converted() {
    let (_folder, path, built) = stored();
    let first: Vec<(String, Tensor)> = built
        .params
        .trainable()
        .into_iter()
        .map(|(name, t)| (name, t.detach().to_kind(Kind::Double)))
        .collect();
    save_tensors(&path, &first, &BTreeMap::new()).unwrap();
    assert_eq!(read_tensors(&path).unwrap().len(), first.len());
    let again = tiny();
    load_strict(&path, &again.params).unwrap();
    for ((name, a), (_, b)) in built
        .params
        .state_dict()
        .into_iter()
        .zip(again.params.state_dict())
    {
        assert_eq!(b.kind(), Kind::Float, "{name} took over the file's kind");
        assert!(a.equal(&b), "{name}");
    }
}

#[test]
fn a_failed_write_leaves_the_earlier_file() {
    let (folder, path, built) = stored();
    let before = std::fs::read(&path).unwrap();
    let nowhere = folder.path().join("no/such/folder/weights.safetensors");
    says(
        save_safetensors(&nowhere, &built.params, &BTreeMap::new()),
        &["weights.safetensors", "No such file"],
    );
    // a folder stands where the file should go
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    says(
        save_safetensors(&taken, &built.params, &BTreeMap::new()),
        &["taken"],
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(
        left.len(),
        2,
        "something half written stayed behind: {left:?}"
    );
}
