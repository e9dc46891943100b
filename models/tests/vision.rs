//! VMamba and Vim on images that their references refuse.

#![allow(clippy::unwrap_used)]

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::vision::{VimBackbone, VimBackboneConfig, VmambaBackbone};
use vision_mamba_models::{build, preset, Backbone, NetworkSpec, Scope};

fn image(h: i64, w: i64) -> Tensor {
    Tensor::randn([1, 3, h, w], (Kind::Float, Device::Cpu))
}

#[test]
fn classifiers_take_any_size_and_name_the_smallest() {
    for (name, overrides, smallest) in [
        ("vmamba_nano", &[][..], 1),
        (
            "vmamba_nano",
            &[
                ("patch_embed", "v1"),
                ("downsample", "v1"),
                ("forward_type", "v0"),
            ],
            4,
        ),
        (
            "vmamba_nano",
            &[("patch_embed", "v1"), ("downsample", "v2")],
            32,
        ),
        ("vmamba_nano", &[("pos_embed", "64")], 1),
        ("vim_nano", &[], 8),
        ("vim_nano", &[("class_token", "double")], 8),
        ("vim_nano", &[("class_token", "none"), ("rope", "4")], 8),
    ] {
        let spec = preset(name).unwrap().with_overrides(overrides).unwrap();
        let net = build(&spec, Device::Cpu).unwrap().net;
        for (h, w) in [(64, 64), (33, 47), (smallest, 57), (smallest, smallest)] {
            // with rotations the first of an odd number of tokens counts as class token
            if overrides.iter().any(|(key, _)| *key == "rope") && (h / 8) * (w / 8) % 2 == 1 {
                continue;
            }
            let logits = no_grad(|| net.forward(&image(h, w), false)).unwrap();
            assert_eq!(logits[0].size(), [1, 5], "{name} {overrides:?} {h}x{w}");
            assert!(bool::try_from(logits[0].isfinite().all()).unwrap());
        }
        if smallest == 1 {
            continue;
        }
        let error = net
            .forward(&image(smallest - 1, 64), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected at least"),
            "{name} {overrides:?}: {error}"
        );
    }
}

#[test]
fn backbones_give_what_they_announce() {
    let check = |net: &dyn Backbone, name: &str| {
        let side = net.divisor().max(32) * 2;
        let features = no_grad(|| net.features(&image(side, side * 2), false)).unwrap();
        assert_eq!(features.len(), net.channels().len(), "{name}");
        for ((feature, channels), by) in features.iter().zip(net.channels()).zip(net.reduction()) {
            assert_eq!(
                feature.size(),
                [1, channels, side / by, side * 2 / by],
                "{name}"
            );
        }
    };
    let NetworkSpec::Vmamba(vmamba) = preset("vmamba_nano").unwrap() else {
        panic!("no VMamba")
    };
    let (net, _) =
        Scope::build(Device::Cpu, |s| VmambaBackbone::new(s, &vmamba, &[0, 2, 3])).unwrap();
    check(&net, "vmamba");
    let NetworkSpec::Vim(mut vim) = preset("vim_nano").unwrap() else {
        panic!("no Vim")
    };
    vim.depth = 4;
    let (net, _) = Scope::build(Device::Cpu, |s| {
        VimBackbone::new(s, &vim, &VimBackboneConfig::new(&vim))
    })
    .unwrap();
    check(&net, "vim");
}

#[test]
fn every_backbone_goes_under_every_decoder() {
    for backbone in [
        "vmamba_nano",
        "vim_nano",
        "unet_resenc_tiny_2d",
        "unet_plain_tiny_2d",
    ] {
        for decoder in ["unet", "mamba_unet"] {
            let overrides = [("deep_supervision", "false"), ("decoder", decoder)];
            let mut spec = preset("vmamba_unet_tiny")
                .unwrap()
                .with_overrides(&overrides)
                .unwrap();
            // nnU-Net's networks are made for one channel
            if backbone.starts_with("unet") {
                let NetworkSpec::Mixed(mixed) = &mut spec else {
                    panic!("not mixed")
                };
                mixed.repeat_single_channel = false;
                mixed.input_channels = 1;
                let fitted = preset(backbone)
                    .unwrap()
                    .for_data(1, 2, 2, &[64, 64])
                    .unwrap();
                let NetworkSpec::Nnunet(encoder) = fitted else {
                    panic!("no encoder")
                };
                mixed.backbone = vision_mamba_models::unet::mixed::BackboneSpec::Nnunet(encoder);
            } else {
                spec = spec.with_overrides(&[("backbone", backbone)]).unwrap();
            }
            let spec = spec.for_data(1, 5, 2, &[64, 128]).unwrap();
            let built = build(&spec, Device::Cpu).unwrap();
            let side = built.net.divisor()[0].max(16) * 2;
            let x = Tensor::randn([2, 1, side, 2 * side], (Kind::Float, Device::Cpu));
            let logits = built.net.forward(&x, true).unwrap();
            assert_eq!(
                logits[0].size(),
                [2, 5, side, 2 * side],
                "{backbone} {decoder}"
            );
            logits[0].square().mean(Kind::Float).backward();
            let silent: Vec<String> = (built.params.trainable().into_iter())
                .filter(|(_, t)| !t.grad().defined())
                .map(|(name, _)| name)
                .collect();
            assert!(silent.is_empty(), "{backbone} {decoder}: {silent:?}");
        }
    }
}
