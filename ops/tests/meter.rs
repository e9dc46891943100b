//! The meter counts what is computed, exactly, and lets go of the thread again.

#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};
use vision_mamba_ops::{selective_scan, Meter, SelectiveScan};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

#[test]
fn products_scans_and_memory_are_counted() {
    let (x, w) = (Tensor::ones([5, 7], F32), Tensor::ones([3, 7], F32));
    let (image, kernel) = (
        Tensor::ones([2, 4, 9, 11], F32),
        Tensor::ones([6, 2, 3, 3], F32),
    );
    let up = Tensor::ones([4, 5, 2, 2], F32);
    let meter = Meter::start().unwrap();
    assert!(Meter::start().is_err(), "one meter a thread");
    let y = x.linear(&w, None::<&Tensor>);
    assert_eq!(meter.cost().product_multiply_adds, 5.0 * 7.0 * 3.0);
    assert!(meter.cost().held_bytes >= 5.0 * 3.0 * 4.0);
    drop(y);
    assert_eq!(meter.cost().held_bytes, 0.0);
    drop(meter);

    let meter = Meter::start().unwrap();
    let _ = image.conv2d(&kernel, None::<&Tensor>, [2, 1], [1, 1], [1, 1], 2);
    // 5 x 11 outputs of 6 channels in 2 images, 2 x 3 x 3 products each
    assert_eq!(
        meter.cost().product_multiply_adds,
        (2 * 6 * 5 * 11 * 2 * 9) as f64
    );
    let before = meter.cost().product_multiply_adds;
    let _ = image.conv_transpose2d(&up, None::<&Tensor>, [2, 2], [0, 0], [0, 0], 1, [1, 1]);
    assert_eq!(
        meter.cost().product_multiply_adds - before,
        (2 * 4 * 9 * 11 * 5 * 4) as f64
    );
    drop(meter);

    let u = Tensor::ones([2, 8, 10], F32);
    let (a, b) = (-Tensor::ones([8, 4], F32), Tensor::ones([2, 4, 10], F32));
    let meter = Meter::start().unwrap();
    let out = selective_scan(&SelectiveScan {
        u: &u,
        delta: &u,
        a: &a,
        b: &b,
        c: &b,
        d: None,
        z: None,
        delta_bias: None,
        delta_softplus: false,
    });
    assert!(out.is_ok());
    let cost = meter.cost();
    assert_eq!(cost.scan_multiply_adds, 9.0 * (2 * 8 * 10 * 4) as f64);
    assert!(cost.scan_seconds > 0.0 && cost.peak_bytes >= cost.held_bytes);
}
