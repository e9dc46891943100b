//! Where the corrected UVM-Net differs from the published one: each difference, in both.

#![allow(clippy::unwrap_used)]

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::{build, describe, outline, preset, Built, ModelError, NetworkSpec};

fn tiny(overrides: &[(&str, &str)]) -> Built {
    tch::manual_seed(5);
    let spec = preset("uvmnet_tiny").unwrap();
    build(&spec.with_overrides(overrides).unwrap(), Device::Cpu).unwrap()
}

fn upstream() -> Built {
    let small = &[("base_channels", "4"), ("ub_size", "8")];
    tch::manual_seed(5);
    let spec = preset("uvmnet_upstream").unwrap();
    build(&spec.with_overrides(small).unwrap(), Device::Cpu).unwrap()
}

fn image(batch: i64, h: i64, w: i64) -> Tensor {
    tch::manual_seed(6);
    Tensor::rand([batch, 3, h, w], (Kind::Float, Device::Cpu))
}

fn run(net: &Built, x: &Tensor) -> Tensor {
    no_grad(|| net.net.forward(x, false).unwrap().remove(0))
}

/// Largest difference between the first sample alone and in a batch.
fn batch_effect(net: &Built) -> f64 {
    let x = image(3, 32, 48);
    let (alone, together) = (run(net, &x.narrow(0, 0, 1)), run(net, &x));
    (alone - together.narrow(0, 0, 1))
        .abs()
        .max()
        .double_value(&[])
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let effect = batch_effect(&tiny(&[]));
    assert!(effect < 1e-6, "{effect}");
    let effect = batch_effect(&upstream());
    assert!(
        effect > 1e-6,
        "the published softmax mixes samples, found {effect}"
    );
}

#[test]
fn a_single_image_has_attention() {
    for (net, expected) in [(tiny(&[]), true), (upstream(), false)] {
        let x = image(1, 32, 32);
        let y = net.net.forward(&x, false).unwrap().remove(0);
        y.square().mean(Kind::Float).backward();
        let name = "up4.conv.ub.model2.out_proj.weight";
        let grad = net
            .params
            .get(name)
            .unwrap()
            .grad()
            .abs()
            .max()
            .double_value(&[]);
        assert_eq!(grad > 0.0, expected, "{grad}");
    }
}

#[test]
fn any_size_from_sixteen_pixels_gives_its_own() {
    let net = tiny(&[]);
    let transposed = tiny(&[("bilinear", "false")]);
    for (h, w) in [(16, 16), (17, 31), (37, 26), (20, 83), (64, 40)] {
        let x = image(1, h, w);
        for net in [&net, &transposed, &upstream()] {
            let y = run(net, &x);
            assert_eq!(y.size(), x.size());
            assert_eq!(y.isfinite().all().int64_value(&[]), 1);
        }
    }
    let small = no_grad(|| net.net.forward(&image(1, 15, 40), false));
    assert!(
        matches!(small, Err(ModelError::Input { message, .. }) if message.contains("at least 16"))
    );
    let grey = no_grad(|| net.net.forward(&image(1, 32, 32).narrow(1, 0, 1), false));
    assert!(matches!(grey, Err(ModelError::Input { .. })));
}

#[test]
fn the_corrected_network_stays_below_the_papers_size() {
    let parameters = |name: &str| {
        let spec = preset(name).unwrap();
        describe(&outline(&spec).unwrap(), &[]).parameters
    };
    let corrected = parameters("uvmnet");
    assert!((10_000_000..19_250_000).contains(&corrected), "{corrected}");
    assert_eq!(parameters("uvmnet_upstream"), 1_003_940_200);
}

/// LayerNorm takes away what all values of a token have in common: with permuted tokens a shift of a pixel's channels.
#[test]
fn a_permuted_token_is_a_pixel() {
    use vision_mamba_models::unet::uvmb::{Attention, Positions, Tokens, Uvmb, UvmbConfig};
    use vision_mamba_models::Scope;
    for (tokens, expected) in [(Tokens::Permute, true), (Tokens::Reinterpret, false)] {
        tch::manual_seed(9);
        let config = UvmbConfig {
            channels: 6,
            tokens,
            attention: Attention::Channels,
            positions: Positions::All(20),
        };
        let (net, params) = Scope::build(Device::Cpu, |s| Uvmb::new(s, config)).unwrap();
        // without the convolutions, which come before the tokens
        for name in ["convb.2.weight", "convb.2.bias"] {
            let _ = no_grad(|| params.get(name).unwrap().shallow_clone().zero_());
        }
        let x = Tensor::randn([1, 6, 4, 5], (Kind::Float, Device::Cpu));
        let shift = Tensor::randn([1, 1, 4, 5], (Kind::Float, Device::Cpu));
        let (a, b) = no_grad(|| {
            (
                net.forward(&x).unwrap(),
                net.forward(&(&x + shift)).unwrap(),
            )
        });
        assert_eq!(a.allclose(&b, 1e-4, 1e-6, false), expected, "{tokens:?}");
    }
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let spec = preset("uvmnet_tiny").unwrap();
    for (pairs, field) in [
        (&[("channel_grid", "null")][..], "channel_grid"),
        (&[("tokens", "reinterpret")], "tokens"),
        (&[("output_channels", "2")], "output_channels"),
        (&[("ub_size", "0")], "ub_size"),
        (&[("base_channels", "9223372036854775807")], "base_channels"),
    ] {
        match spec.with_overrides(pairs) {
            Err(ModelError::Config { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{pairs:?}: {other:?}"),
        }
    }
    assert!(matches!(
        spec.with_overrides(&[("attention", "pixels")]),
        Err(ModelError::BadValue { .. })
    ));
    assert!(spec.for_data(3, 3, 3, &[32, 32, 32]).is_err());
    let grey: NetworkSpec = spec.for_data(1, 3, 2, &[32, 32]).unwrap();
    assert_eq!((grey.in_channels(), grey.num_classes()), (1, 3));
}
