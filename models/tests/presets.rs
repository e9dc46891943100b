//! Walks the preset table: every entry builds, runs forwards and backwards, is saved and comes back bitwise.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::unet::mixed::BackboneSpec;
use vision_mamba_models::weights::{load_strict, read_metadata, save_safetensors};
use vision_mamba_models::{
    build, describe, outline, preset, presets, Built, EntryKind, NetworkSpec, Task,
};
use vision_mamba_ops::autocast::autocast;

/// The preset with its big numbers made small; every kind of layer stays.
fn stand_in(spec: &NetworkSpec) -> NetworkSpec {
    let overrides: &[(&str, &str)] = match spec {
        NetworkSpec::Umamba(c) if c.spatial_dims() == 3 => &[
            ("training_patch", "[16,16,16]"),
            ("base_features", "4"),
            ("max_features", "8"),
        ],
        // as many features as positions at the coarsest stage: with a mixer in the encoder its tokens are channels
        NetworkSpec::Umamba(_) => &[
            ("training_patch", "[32,32]"),
            ("base_features", "4"),
            ("max_features", "16"),
        ],
        NetworkSpec::Nnunet(c) if c.spatial_dims() == 3 => &[
            ("training_patch", "[16,16,16]"),
            ("base_features", "4"),
            ("max_features", "8"),
        ],
        NetworkSpec::Nnunet(_) => &[
            ("training_patch", "[32,32]"),
            ("base_features", "4"),
            ("max_features", "8"),
        ],
        NetworkSpec::MambaUnet(_) => &[
            ("embed_dim", "8"),
            ("depths", "[1,1,1,1]"),
            ("d_state", "4"),
        ],
        NetworkSpec::Uvmnet(_) => &[("base_channels", "4"), ("ub_size", "8")],
        // smaller than the input, so that maps are enlarged
        NetworkSpec::Uvmlite(_) => &[("base_channels", "4"), ("work_size", "16")],
        // the tiny twins are in the table too
        NetworkSpec::Mixed(c) => match c.backbone {
            BackboneSpec::Vim(_) => &[("backbone", "vim_nano")],
            BackboneSpec::Vmamba(_) => &[("backbone", "vmamba_nano")],
            BackboneSpec::Nnunet(_) => &[("backbone", "unet_resenc_tiny_2d")],
        },
        NetworkSpec::Vim(_) => &[
            ("img_size", "32"),
            ("depth", "2"),
            ("embed_dim", "12"),
            ("num_classes", "5"),
        ],
        NetworkSpec::Vmamba(_) => &[
            ("depths", "[1,1,1,1]"),
            ("dims", "[4,6,8,10]"),
            ("num_classes", "5"),
        ],
    };
    spec.with_overrides(overrides).unwrap()
}

/// Tests that draw from libtorch's one generator take turns: what they draw would depend on the others' pace.
fn seeded() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn input(built: &Built) -> Tensor {
    // what can be halved to nothing has a smallest size of its own
    let smallest = match built.spec.task() {
        Task::Restoration | Task::Classification => 32,
        _ => 1,
    };
    let sides = built
        .net
        .divisor()
        .into_iter()
        .map(|by| smallest.max(by * 2));
    // some networks take the size of their training patch only
    let sides: Vec<i64> = match &built.spec {
        NetworkSpec::Umamba(c) => c.training_patch.clone(),
        _ => sides.collect(),
    };
    let shape: Vec<i64> = [2, built.spec.in_channels()]
        .into_iter()
        .chain(sides)
        .collect();
    Tensor::randn(&shape, (Kind::Float, Device::Cpu))
}

#[test]
fn every_preset_trains_saves_and_comes_back() {
    let _alone = seeded();
    let folder = tempfile::tempdir().unwrap();
    for entry in presets() {
        tch::manual_seed(7);
        let name = entry.name;
        let built = build(&stand_in(&entry.spec().unwrap()), Device::Cpu).unwrap();
        let x = input(&built);
        let logits = built.net.forward(&x, true).unwrap();
        assert_eq!(logits.len() > 1, built.net.deep_supervision(), "{name}");
        let spatial = match built.spec.task() {
            Task::Classification => &[],
            _ => &x.size()[2..],
        };
        assert_eq!(
            &logits[0].size()[2..],
            spatial,
            "{name}: logits as large as the image"
        );
        for (finer, coarser) in logits.iter().zip(&logits[1..]) {
            assert!(finer.size()[2] > coarser.size()[2], "{name}: finest first");
        }
        assert!(
            logits
                .iter()
                .all(|l| l.size()[1] == built.spec.num_classes()),
            "{name}"
        );
        let losses: Vec<Tensor> = logits
            .iter()
            .map(|l| l.square().mean(Kind::Float))
            .collect();
        Tensor::stack(&losses, 0).sum(Kind::Float).backward();
        for (parameter, tensor) in built.params.trainable() {
            assert!(
                tensor.grad().defined(),
                "{name}: {parameter} has no gradient"
            );
            assert!(
                tensor.grad().isfinite().all().int64_value(&[]) == 1,
                "{name}: {parameter}"
            );
        }

        let path = folder.path().join(format!("{name}.safetensors"));
        let text = BTreeMap::from([("preset".to_string(), name.to_string())]);
        save_safetensors(&path, &built.params, &text).unwrap();
        assert_eq!(read_metadata(&path).unwrap(), text);
        tch::manual_seed(8);
        let again = build(&built.spec, Device::Cpu).unwrap();
        load_strict(&path, &again.params).unwrap();
        for ((a, ta), (b, tb)) in built
            .params
            .state_dict()
            .into_iter()
            .zip(again.params.state_dict())
        {
            assert_eq!(a, b);
            assert!(ta.equal(&tb), "{name}: {a} came back changed");
        }
        let (before, after) = no_grad(|| {
            (
                built.net.forward(&x, false).unwrap(),
                again.net.forward(&x, false).unwrap(),
            )
        });
        assert!(
            before.iter().zip(&after).all(|(a, b)| a.equal(b)),
            "{name}: logits differ after loading"
        );
    }
}

/// Training's forward and backward pass in bfloat16: near float32's outputs, gradients in float32 and finite, also on an image that nobody has
/// normalised.
#[test]
fn every_preset_trains_in_bfloat16() {
    let _alone = seeded();
    let far = |a: &Tensor, b: &Tensor| {
        let scale = b.square().mean(Kind::Float).sqrt().double_value(&[]);
        (a - b).square().mean(Kind::Float).sqrt().double_value(&[]) / scale.max(1e-6)
    };
    for entry in presets() {
        tch::manual_seed(7);
        let name = entry.name;
        let built = build(&stand_in(&entry.spec().unwrap()), Device::Cpu).unwrap();
        let x = input(&built);
        let mixed = |x: &Tensor, train| {
            autocast(Device::Cpu, || built.net.forward(x, train))
                .unwrap()
                .unwrap()
        };
        let (plain, other) = no_grad(|| (built.net.forward(&x, false).unwrap(), mixed(&x, false)));
        for (a, b) in other.iter().zip(&plain) {
            let off = far(&a.to_kind(Kind::Float), b);
            // a restoration network may begin as what leaves its picture alone
            let begins_alone = built.spec.task() == Task::Restoration;
            assert!(off > 0.0 || begins_alone, "{name}: nothing is in bfloat16");
            // at most 0.18 was measured: random weights, and norms over as few as eight values in these small stand-ins
            assert!(off < 0.3, "{name}: off by {off} of the logits' size");
        }
        for scale in [1.0, 1e4] {
            built
                .params
                .trainable()
                .into_iter()
                .for_each(|(_, mut t)| t.zero_grad());
            let losses: Vec<Tensor> = mixed(&(&x * scale), true)
                .iter()
                .map(|l| {
                    l.to_kind(Kind::Float)
                        .softmax(1, Kind::Float)
                        .square()
                        .mean(Kind::Float)
                })
                .collect();
            Tensor::stack(&losses, 0).sum(Kind::Float).backward();
            for (parameter, tensor) in built.params.trainable() {
                let grad = tensor.grad();
                assert_eq!(grad.kind(), Kind::Float, "{name}: {parameter}");
                let finite = grad.isfinite().all().int64_value(&[]) == 1;
                assert!(finite, "{name}: {parameter} at scale {scale}");
            }
        }
    }
}

#[test]
fn a_spec_survives_json() {
    for entry in presets() {
        let spec = entry.spec().unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            serde_json::from_str::<NetworkSpec>(&text).unwrap(),
            spec,
            "{}",
            entry.name
        );
        assert_eq!(preset(entry.name).unwrap(), spec);
    }
}

#[test]
fn names_of_presets_and_parameters_are_unique() {
    let _alone = seeded();
    let mut names: Vec<_> = presets().iter().map(|p| p.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), presets().len());
    for entry in presets() {
        let built = build(&stand_in(&entry.spec().unwrap()), Device::Cpu).unwrap();
        assert!(
            built
                .params
                .entries()
                .all(|(name, _, _)| !name.contains("__")),
            "{}",
            entry.name
        );
        for (name, tensor, kind) in built.params.entries() {
            if let EntryKind::Alias(of) = kind {
                let first = built.params.get(of).unwrap();
                assert_eq!(
                    first.data_ptr(),
                    tensor.data_ptr(),
                    "{name} shares no storage with {of}"
                );
            }
        }
    }
}

#[test]
fn fitting_to_data_changes_what_depends_on_data() {
    let _alone = seeded();
    let spec = preset("umamba_bot_2d")
        .unwrap()
        .for_data(2, 5, 2, &[80, 128])
        .unwrap();
    let built = build(
        &spec
            .with_overrides(&[("base_features", "4"), ("max_features", "8")])
            .unwrap(),
        Device::Cpu,
    )
    .unwrap();
    assert_eq!(built.net.divisor(), [16, 16]);
    let logits = no_grad(|| {
        built.net.forward(
            &Tensor::zeros([1, 2, 80, 128], (Kind::Float, Device::Cpu)),
            false,
        )
    })
    .unwrap();
    assert_eq!(logits[0].size(), [1, 5, 80, 128]);

    let one = preset("mamba_unet_tiny")
        .unwrap()
        .for_data(1, 3, 2, &[64, 96])
        .unwrap();
    let built = build(&one, Device::Cpu).unwrap();
    assert_eq!(
        built
            .params
            .get("mamba_unet.patch_embed.proj.weight")
            .unwrap()
            .size(),
        [8, 3, 4, 4]
    );
    let five = preset("mamba_unet_tiny")
        .unwrap()
        .for_data(5, 3, 2, &[64, 96])
        .unwrap();
    let built = build(&five, Device::Cpu).unwrap();
    assert_eq!(
        built
            .params
            .get("mamba_unet.patch_embed.proj.weight")
            .unwrap()
            .size(),
        [8, 5, 4, 4]
    );
}

#[test]
fn a_repeated_channel_gives_the_logits_of_three_equal_ones() {
    let _alone = seeded();
    tch::manual_seed(3);
    let built = build(&preset("mamba_unet_tiny").unwrap(), Device::Cpu).unwrap();
    let x = Tensor::randn([1, 1, 32, 64], (Kind::Float, Device::Cpu));
    let (one, three) = no_grad(|| {
        (
            built.net.forward(&x, false).unwrap(),
            built.net.forward(&x.repeat([1, 3, 1, 1]), false).unwrap(),
        )
    });
    assert!(one[0].equal(&three[0]));
}

#[test]
fn a_description_follows_the_data() {
    let _alone = seeded();
    let built = build(&preset("umamba_bot_tiny_2d").unwrap(), Device::Cpu).unwrap();
    let told = describe(&built, &[14, 16]);
    assert_eq!(told.parameters, built.params.num_parameters());
    assert_eq!(told.stages.first().unwrap().shape, [4, 16, 16]);
    assert_eq!(told.stages.last().unwrap().shape, [3, 16, 16]);
    assert!(told
        .stages
        .iter()
        .any(|s| s.name == "mamba_layer" && s.shape == [8, 4, 4]));
    let alias = told
        .state_dict
        .iter()
        .find(|e| e.name == "decoder.encoder.stem.0.conv1.weight")
        .unwrap();
    assert_eq!(
        alias.alias_of.as_deref(),
        Some("encoder.stem.0.conv1.weight")
    );
    assert_eq!(alias.dtype, "float32");
}

#[test]
fn an_outline_is_described_as_the_network_is() {
    let _alone = seeded();
    for entry in presets() {
        let spec = stand_in(&entry.spec().unwrap());
        let built = build(&spec, Device::Cpu).unwrap();
        let (told, drawn) = (
            describe(&built, &[64]),
            describe(&outline(&spec).unwrap(), &[64]),
        );
        assert_eq!(told, drawn, "{}", entry.name);
    }
}
