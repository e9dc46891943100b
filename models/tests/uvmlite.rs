//! UVM-lite: what each head does to a picture, any size, and pictures that are looked at in reduced form.

#![allow(clippy::unwrap_used)]

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::{build, outline, preset, Built, ModelError};

const HEADS: [&str; 3] = ["residual", "scattering", "curve"];

fn tiny(overrides: &[(&str, &str)]) -> Built {
    tch::manual_seed(5);
    let spec = preset("uvmlite_tiny").unwrap();
    build(&spec.with_overrides(overrides).unwrap(), Device::Cpu).unwrap()
}

/// With maps that are not all 0.
fn woken(overrides: &[(&str, &str)]) -> Built {
    let net = tiny(overrides);
    no_grad(|| {
        let _ = net
            .params
            .get("head.weight")
            .unwrap()
            .shallow_clone()
            .normal_(0.0, 0.2);
    });
    net
}

fn image(h: i64, w: i64) -> Tensor {
    tch::manual_seed(6);
    Tensor::rand([1, 3, h, w], (Kind::Float, Device::Cpu))
}

fn run(net: &Built, x: &Tensor) -> Tensor {
    no_grad(|| net.net.forward(x, false).unwrap().remove(0))
}

fn apart(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

fn set(net: &Built, name: &str, values: &[f32]) {
    no_grad(|| {
        let mut t = net.params.get(name).unwrap().shallow_clone();
        t.copy_(&Tensor::from_slice(values).reshape(t.size()));
    });
}

#[test]
fn each_head_starts_with_the_picture() {
    let x = image(20, 31);
    for head in HEADS {
        assert!(run(&tiny(&[("head", head)]), &x).equal(&x), "{head}");
    }
}

/// Also on a picture beyond `work_size`: what is the same everywhere stays so when it is enlarged.
#[test]
fn known_maps_give_the_formulas() {
    for (h, w) in [(8, 8), (90, 140)] {
        formulas(&image(h, w));
    }
}

fn formulas(x: &Tensor) {
    // the bias of the head is the map everywhere: four positions of each pixel shuffle
    let net = tiny(&[("head", "residual")]);
    set(&net, "head.bias", &[0.25; 12]);
    assert!(apart(&run(&net, x), &(x + 0.25)) < 1e-5);

    let net = tiny(&[("head", "curve")]);
    set(&net, "head.bias", &[-0.5; 48]);
    let a = (-0.5f64).tanh();
    let curved = (0..4).fold(x.shallow_clone(), |y, _| &y + a * &y * (1.0 - &y));
    assert!(apart(&run(&net, x), &curved) < 1e-5);

    // t = 1 / (1 + sinh 0.5), A from a pooled branch that gives its bias alone
    let net = tiny(&[("head", "scattering")]);
    set(&net, "head.bias", &[0.5; 4]);
    let (wide, high) = (net.params.get("pooled.fc2.bias").unwrap().size()[0], 2.0f32);
    set(
        &net,
        "pooled.fc2.weight",
        &vec![0.0; (wide * (wide - 3)) as usize],
    );
    let mut bias = vec![0.0; wide as usize - 3];
    bias.extend([high; 3]);
    set(&net, "pooled.fc2.bias", &bias);
    let air = 1.0 / (1.0 + (-f64::from(high) - 1.7).exp());
    let t = 1.0 / (1.0 + 0.5f64.sinh());
    let hazy = x * t + air * (1.0 - t);
    assert!(apart(&run(&net, &hazy), x) < 1e-5);

    // however much the network asks for, the contrast grows 21 times at most (1 + sinh 3.7)
    set(&net, "head.bias", &[100.0; 4]);
    let most = run(&net, &(x * 0.0 + 1.0));
    assert!(apart(&most, &(x * 0.0 + 1.0 + 3.7f64.sinh() * (1.0 - air))) < 1e-4);
}

/// An optical depth of ln(1 + sinh m) everywhere, left alone, cleared in part and wholly; in training always wholly.
#[test]
fn thin_haze_is_left_alone() {
    let net = tiny(&[("head", "scattering"), ("thin_haze", "[0.3,0.5]")]);
    no_grad(|| {
        for name in ["pooled.fc2.weight", "pooled.fc2.bias"] {
            let _ = net.params.get(name).unwrap().shallow_clone().zero_();
        }
    });
    let air = 1.0 / (1.0 + (-1.7f64).exp());
    for (h, w) in [(16, 24), (90, 140)] {
        let x = image(h, w);
        for (map, share) in [(0.2f32, Some(0.0)), (0.5, None), (1.0, Some(1.0))] {
            set(&net, "head.bias", &[map; 4]);
            let gain = f64::from(map).sinh();
            let t = (gain.ln_1p() - 0.3) / 0.2;
            let share = share.unwrap_or(t * t * (3.0 - 2.0 * t));
            let cleared = |share: f64| &x + share * gain * (&x - air);
            let err = apart(&run(&net, &x), &cleared(share));
            assert!(err < 1e-5, "{map}: {err}");
            let trained = no_grad(|| net.net.forward(&x, true).unwrap().remove(0));
            let err = apart(&trained, &cleared(1.0));
            assert!(err < 1e-5, "{map} in training: {err}");
        }
    }
    for wrong in [
        [("head", "scattering"), ("thin_haze", "[0.5,0.3]")],
        [("head", "curve"), ("thin_haze", "[0.3,0.5]")],
    ] {
        let spec = preset("uvmlite_tiny").unwrap();
        let error = spec.with_overrides(&wrong).unwrap_err().to_string();
        assert!(error.contains("thin_haze"), "{error}");
    }
}

#[test]
fn any_size_looked_at_whole_or_reduced() {
    let with_evidence = [("head", "scattering"), ("evidence", "dark_channel")];
    let mut nets = HEADS.map(|head| vec![("head", head)]).to_vec();
    nets.push(with_evidence.to_vec());
    for overrides in nets {
        let (net, head) = (woken(&overrides), overrides[0].1);
        for (h, w) in [(1, 1), (1, 300), (17, 23), (64, 64), (65, 40), (150, 200)] {
            let y = run(&net, &image(h, w));
            assert_eq!(y.size(), [1, 3, h, w], "{head}");
            assert!(y.isfinite().all().int64_value(&[]) == 1, "{head} {h}x{w}");
        }
    }
}

#[test]
fn the_whole_picture_decides_on_every_pixel() {
    let net = woken(&[("head", "scattering")]);
    let x = image(64, 64);
    let far = x.copy();
    let _ = far.narrow(2, 56, 8).narrow(3, 56, 8).fill_(1.0);
    let corner = |t: &Tensor| t.narrow(2, 0, 4).narrow(3, 0, 4);
    assert!(apart(&corner(&run(&net, &x)), &corner(&run(&net, &far))) > 0.0);
}

#[test]
fn small_enough_to_ship() {
    let net = outline(&preset("uvmlite").unwrap()).unwrap();
    let parameters = net.params.num_parameters();
    // float32 in 10 MB
    assert!(parameters * 4 < 10_000_000, "{parameters}");
}

#[test]
fn what_cannot_be_is_refused() {
    let spec = preset("uvmlite").unwrap();
    for (key, value) in [
        ("base_channels", "0"),
        ("work_size", "8"),
        ("channel_grid", "0"),
        ("output_channels", "1"),
        ("head", "magic"),
        ("evidence", "magic"),
    ] {
        let error = spec.with_overrides(&[(key, value)]).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
    let net = tiny(&[]);
    let none = Tensor::zeros([1, 3, 0, 5], (Kind::Float, Device::Cpu));
    for bad in [
        Tensor::zeros([1, 4, 8, 8], (Kind::Float, Device::Cpu)),
        none,
    ] {
        let result = net.net.forward(&bad, false);
        assert!(matches!(result, Err(ModelError::Input { .. })));
    }
}

/// A checkpoint of a network that saw less starts one that sees more, which does the same until it is trained.
#[test]
fn a_first_layer_that_sees_more_starts_with_zeros() {
    use vision_mamba_models::weights::{import, save_safetensors, Checkpoint};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("narrow.safetensors");
    let narrow = woken(&[("evidence", "none")]);
    save_safetensors(&path, &narrow.params, &Default::default()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let wide = tiny(&[("evidence", "dark_channel")]);
    let before = wide.params.get("stem.weight").unwrap().copy();
    // as the weights of that very network they are refused, and nothing is changed
    let refused = import(&checkpoint, &wide, false).unwrap_err().to_string();
    assert!(refused.contains("stem.weight"), "{refused}");
    assert!(wide.params.get("stem.weight").unwrap().equal(&before));

    let outcome = import(&checkpoint, &wide, true).unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!(outcome.adapted.len(), 1);
    assert!(
        outcome.adapted[0].contains("stem.weight") && outcome.adapted[0].contains("zeros"),
        "{outcome:?}"
    );
    let stem = wide.params.get("stem.weight").unwrap();
    assert_eq!(stem.narrow(1, 12, 24).abs().max().double_value(&[]), 0.0);
    let x = image(20, 31);
    let off = apart(&run(&wide, &x), &run(&narrow, &x));
    assert!(off < 1e-5, "{off}");
    // the other way there is no telling which channels are which
    save_safetensors(&path, &wide.params, &Default::default()).unwrap();
    let outcome = import(&Checkpoint::open(&path).unwrap(), &narrow, true).unwrap();
    assert_eq!(outcome.misshaped.len(), 1, "{outcome:?}");
}
