//! The reference against sums written out by hand.
#![allow(clippy::unwrap_used)]

use tch::{Kind, Tensor};
use vision_mamba_ops::{reference, Activation, SelectiveScan};

#[test]
fn a_scan_small_enough_to_follow_by_hand() {
    let t = |v: &[f64], shape: &[i64]| Tensor::from_slice(v).reshape(shape);
    let (u, delta) = (t(&[1.0, 2.0], &[1, 1, 2]), t(&[0.5, 0.25], &[1, 1, 2]));
    let (a, b, c) = (
        t(&[-1.0], &[1, 1]),
        t(&[2.0, 3.0], &[1, 1, 2]),
        t(&[1.0, -1.0], &[1, 1, 2]),
    );
    let d = t(&[10.0], &[1]);
    let args = SelectiveScan {
        u: &u,
        delta: &delta,
        a: &a,
        b: &b,
        c: &c,
        d: Some(&d),
        z: None,
        delta_bias: None,
        delta_softplus: false,
    };
    let result = reference::selective_scan(&args).unwrap();
    let h0 = 0.5 * 1.0 * 2.0;
    let h1 = (-0.25f64).exp() * h0 + 0.25 * 2.0 * 3.0;
    let expected = t(&[h0 + 10.0, -h1 + 20.0], &[1, 1, 2]);
    assert!((result.out - expected).abs().max().double_value(&[]) < 1e-14);
    assert!((result.last_state.double_value(&[0, 0, 0]) - h1).abs() < 1e-14);
}

#[test]
fn the_convolution_looks_back_only() {
    let x = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 5.0]).reshape([1, 1, 4]);
    let weight = Tensor::from_slice(&[1.0f32, 10.0, 100.0]).reshape([1, 3]);
    let out = reference::causal_conv1d(&x, &weight, None, Activation::None).unwrap();
    assert_eq!(
        Vec::<f32>::try_from(out.flatten(0, -1)).unwrap(),
        [100.0, 10.0, 1.0, 500.0]
    );
    assert_eq!(out.kind(), Kind::Float);
}
