//! Predictions write results over inputs that nobody needs. While gradients are wanted nothing is overwritten: both ways give the same bits.

#![allow(clippy::unwrap_used)]

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::describe::takeable_size;
use vision_mamba_models::{build, outline, preset, presets};

#[test]
fn predictions_are_the_same_with_and_without_gradients() {
    tch::set_num_threads(1);
    let mut seen = 0;
    for known in presets() {
        let spec = preset(known.name).unwrap();
        if outline(&spec).unwrap().params.num_parameters() > 1_000_000 {
            continue;
        }
        tch::manual_seed(1);
        let built = build(&spec, Device::Cpu).unwrap();
        let patch = (spec.training_patch()).map_or(vec![64], <[i64]>::to_vec);
        let sides = takeable_size(&built, &patch);
        let shape = [&[2, spec.in_channels()], &sides[..]].concat();
        let image = Tensor::randn(&shape, (Kind::Float, Device::Cpu));
        let kept = image.copy();
        let beside = built.net.forward(&image, false).unwrap();
        let over = no_grad(|| built.net.forward(&image, false)).unwrap();
        assert!(image.equal(&kept), "{}: the image itself", known.name);
        for (a, b) in beside.iter().zip(&over) {
            let gap = (a - b).abs().max().double_value(&[]);
            assert!(a.equal(b), "{}: {gap}", known.name);
        }
        seen += 1;
    }
    assert!(seen > 10, "{seen} presets");
}
