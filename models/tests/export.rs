//! Exported networks give the network's own output, whatever the batch, and carry their texts.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Device;
use vision_mamba_models::export::export;
use vision_mamba_models::{build, outline, presets, Task};

/// Tests that draw from libtorch's one generator take turns: what they draw would depend on the others' pace.
fn seeded() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn every_small_preset_is_recorded() {
    let _alone = seeded();
    // loads the operators that the traces call
    assert!(vision_mamba_ops::status().is_ready());
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for entry in presets() {
        let spec = entry.spec().unwrap();
        let small = outline(&spec).unwrap().params.num_parameters() < 1_000_000;
        if !small || spec.task() == Task::Classification {
            continue;
        }
        tch::manual_seed(3);
        let built = build(&spec, Device::Cpu).unwrap();
        let size = spec.training_patch().map_or(vec![32], <[i64]>::to_vec);
        let path = folder.path().join("model.pt");
        let texts = BTreeMap::from([("vision_mamba.json".to_string(), entry.name.to_string())]);
        let done =
            export(&built, &size, &texts, &path).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        assert!(done.error <= 1e-5, "{}: {}", entry.name, done.error);
        let mut archive = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
        let name = (archive.file_names())
            .find(|n| n.ends_with("extra/vision_mamba.json"))
            .unwrap()
            .to_string();
        let mut text = String::new();
        archive
            .by_name(&name)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, entry.name);
        // the weights can still be trained
        assert!(built
            .params
            .trainable()
            .iter()
            .all(|(_, t)| t.requires_grad()));
        seen += 1;
    }
    assert!(seen >= 13, "{seen}");
}

/// Sizes that a network was not made for take other ways through it, such as interpolated positions.
#[test]
fn other_sizes_are_recorded_too() {
    let _alone = seeded();
    assert!(vision_mamba_ops::status().is_ready());
    let folder = tempfile::tempdir().unwrap();
    for (name, overrides) in [
        ("vim_unet_tiny", &[][..]),
        ("vim_nano", &[]),
        ("vim_nano", &[("class_token", "double")]),
        ("vim_nano", &[("class_token", "none"), ("rope", "4")]),
        ("vmamba_nano", &[("pos_embed", "32")]),
        ("vmamba_nano", &[("forward_type", "v052dc_noz")]),
        ("vmamba_unet_tiny", &[]),
        ("uvmnet_tiny", &[]),
        (
            "uvmlite_tiny",
            &[("head", "residual"), ("evidence", "dark_channel")],
        ),
        ("uvmlite_tiny", &[("head", "curve"), ("work_size", "16")]),
        (
            "umamba_bot_s4_2d",
            &[
                ("base_features", "4"),
                ("max_features", "8"),
                ("training_patch", "[64,64]"),
            ],
        ),
    ] {
        let spec = vision_mamba_models::preset(name).unwrap();
        let built = build(&spec.with_overrides(overrides).unwrap(), Device::Cpu).unwrap();
        for size in [[64, 64], [64, 96]] {
            let path = folder.path().join("model.pt");
            let done = export(&built, &size, &BTreeMap::new(), &path);
            let error = done
                .unwrap_or_else(|e| panic!("{name} {overrides:?}: {e}"))
                .error;
            assert!(error <= 1e-5, "{name} {overrides:?} {size:?}: {error}");
        }
    }
}
