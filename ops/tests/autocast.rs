//! Mixed precision: on where it is asked for, off inside scans and afterwards, and never from stale weights.

#![allow(clippy::unwrap_used)]

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_ops::autocast::{autocast, in_float32, is_active};

fn cpu(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn products_are_in_bfloat16_only_inside() {
    let (x, w) = (cpu(&[3, 8]), cpu(&[4, 8]));
    let product = |x: &Tensor| x.linear(&w, None::<&Tensor>);
    let kinds = autocast(Device::Cpu, || {
        let outer = product(&x);
        let inner = in_float32(&outer, |y| {
            assert!(!is_active());
            (y.kind(), product(&x).kind())
        });
        assert!(is_active());
        (outer.kind(), inner, product(&x).kind())
    })
    .unwrap();
    assert_eq!(
        kinds,
        (Kind::BFloat16, (Kind::Float, Kind::Float), Kind::BFloat16)
    );
    assert!(!is_active());
    assert_eq!(product(&x).kind(), Kind::Float);
    // elsewhere it does nothing, not even to what is in bfloat16
    let low = x.to_kind(Kind::BFloat16);
    assert_eq!(in_float32(&low, Tensor::kind), Kind::BFloat16);
}

#[test]
fn a_panic_switches_it_off() {
    let caught = std::panic::catch_unwind(|| autocast(Device::Cpu, || panic!("on purpose")));
    assert!(caught.is_err() && !is_active());
    let x = cpu(&[2, 2]);
    assert_eq!(x.matmul(&x).kind(), Kind::Float);
}

#[test]
fn other_threads_are_left_alone() {
    autocast(Device::Cpu, || {
        std::thread::spawn(|| {
            let x = cpu(&[2, 2]);
            assert!(!is_active() && x.matmul(&x).kind() == Kind::Float);
        })
        .join()
        .unwrap();
    })
    .unwrap();
}

#[test]
fn a_changed_weight_is_seen_by_the_next_pass() {
    let x = cpu(&[3, 8]);
    let mut w = cpu(&[4, 8]).set_requires_grad(true);
    let pass = |w: &Tensor| autocast(Device::Cpu, || x.linear(w, None::<&Tensor>)).unwrap();
    let before = pass(&w);
    no_grad(|| {
        let _ = w.g_add_scalar_(1.0);
    });
    let after = pass(&w);
    let moved = (after - before).to_kind(Kind::Float);
    let expected = x
        .sum_dim_intlist([1i64].as_slice(), true, Kind::Float)
        .expand([3, 4], false);
    // sums of eight products of numbers with eight bits of mantissa
    assert!((moved - expected).abs().max().double_value(&[]) < 0.2);
}
