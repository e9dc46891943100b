//! Activation checkpointing: the same gradients from less memory.

#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};
use vision_mamba_models::{build, preset, Built, NetworkSpec, Task};
use vision_mamba_ops::{recompute, Meter};

/// libtorch has one generator of random numbers for all threads: tests take turns.
static RANDOM: Mutex<()> = Mutex::new(());

/// Loss, gradients, and the bytes that wait for the backward pass.
fn step(built: &Built, x: &Tensor, again: bool) -> (f64, Vec<(String, Tensor)>, f64) {
    for (_, mut tensor) in built.params.trainable() {
        tensor.zero_grad();
    }
    // drop path and dropout draw the same
    tch::manual_seed(3);
    let meter = Meter::start().unwrap();
    let outputs = recompute::with(again, || built.net.forward(x, true)).unwrap();
    let held = meter.cost().held_bytes;
    drop(meter);
    let loss = outputs
        .iter()
        .map(|y| y.square().mean(Kind::Float))
        .reduce(|a, b| a + b)
        .unwrap();
    loss.backward();
    let gradients = built.params.trainable().into_iter();
    let gradients = gradients.map(|(name, tensor)| (name, tensor.grad().copy()));
    (loss.double_value(&[]), gradients.collect(), held)
}

fn network(name: &str, overrides: &[(&str, &str)]) -> NetworkSpec {
    preset(name).unwrap().with_overrides(overrides).unwrap()
}

#[test]
fn gradients_are_the_same_and_less_is_kept() {
    let _turn = RANDOM.lock().unwrap_or_else(PoisonError::into_inner);
    tch::set_num_threads(1);
    let cases = [
        (
            "vmamba_micro",
            vec![("drop_path_rate", "0.3")],
            vec![2, 3, 64, 64],
        ),
        (
            "mamba_unet_tiny",
            vec![("drop_path_rate", "0.3")],
            vec![2, 1, 64, 64],
        ),
        ("umamba_bot_tiny_2d", vec![], vec![2, 1, 64, 64]),
        ("unet_plain_tiny_2d", vec![], vec![2, 1, 64, 64]),
        (
            "vim_nano",
            vec![("drop_path_rate", "0.3")],
            vec![2, 3, 32, 32],
        ),
        ("uvmlite_tiny", vec![], vec![1, 3, 64, 64]),
    ];
    for (name, overrides, shape) in cases {
        // uvmlite's blocks are two convolutions with one map between
        let most_kept = if name.starts_with("uvmlite") {
            0.97
        } else {
            0.8
        };
        let spec = network(name, &overrides);
        let spec = match spec.task() {
            Task::Segmentation => spec.for_data(shape[1], 3, 2, &shape[2..]).unwrap(),
            _ => spec,
        };
        tch::manual_seed(1);
        let built = build(&spec, Device::Cpu).unwrap();
        let x = Tensor::rand(shape.as_slice(), (Kind::Float, Device::Cpu));
        let (loss, kept, before) = step(&built, &x, false);
        let (loss_again, again, after) = step(&built, &x, true);
        assert_eq!(loss.to_bits(), loss_again.to_bits(), "{name}");
        // A map that a skip connection takes too gets its three gradients in another order of addition, which rounds; and the gradient of a bias
        // in front of an instance norm is nothing but rounding. So differences are measured by the network's largest gradient.
        let most = |t: &Tensor| t.abs().max().double_value(&[]);
        let largest = kept.iter().map(|(_, a)| most(a)).fold(0.0, f64::max);
        for ((parameter, a), (_, b)) in kept.iter().zip(&again) {
            assert!(a.defined() && b.defined(), "{name}: {parameter}");
            let gap = most(&(a - b)) / largest;
            assert!(gap <= 1e-5, "{name}: {parameter}: {gap}");
        }
        assert!(
            after < most_kept * before,
            "{name}: {after} bytes kept of {before}"
        );
    }
}

/// Running statistics move once a step, and not again in the backward pass.
#[test]
fn running_statistics_move_once() {
    let _turn = RANDOM.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(1);
    let spec = network("vmamba_micro", &[("norm", "batch")]);
    let built = build(&spec, Device::Cpu).unwrap();
    let x = Tensor::rand([2, 3, 64, 64], (Kind::Float, Device::Cpu));
    step(&built, &x, true);
    let steps: Vec<i64> = (built.params.stored().into_iter())
        .filter(|(name, _)| name.ends_with("num_batches_tracked"))
        .map(|(_, tensor)| tensor.int64_value(&[]))
        .collect();
    assert!(
        !steps.is_empty() && steps.iter().all(|&n| n == 1),
        "{steps:?}"
    );
}
