//! Networks on a GPU: the CPU's numbers, which the goldens pin down, and the same bits in every run. `cargo test -- --ignored` runs them where there
//! is a GPU; elsewhere they fail when asked for, and are never reported as passed.

#![allow(clippy::unwrap_used)]

use tch::{no_grad, Cuda, Device, Kind, Tensor};
use vision_mamba_models::describe::takeable_size;
use vision_mamba_models::{build, outline, preset, presets, Built};
use vision_mamba_ops::device::{set_deterministic, set_tf32};
use vision_mamba_ops::{cuda_status, open_libtorch_cuda};

const GPU: Device = Device::Cuda(0);

fn need_a_gpu() {
    assert_eq!(open_libtorch_cuda(), Ok(()));
    assert!(Cuda::is_available(), "there is no GPU");
    let _ = Tensor::zeros([1], (Kind::Float, GPU));
    assert!(cuda_status().is_ready(), "{}", cuda_status());
    // As `train` and `predict` have it: libtorch itself lets convolutions round to TF32.
    set_tf32(false).unwrap();
    set_deterministic(true).unwrap();
}

/// The same network on both devices, and an image on the CPU.
fn pair(name: &str) -> (Built, Built, Tensor) {
    let spec = preset(name).unwrap();
    let on = |device| {
        tch::manual_seed(1);
        build(&spec, device).unwrap()
    };
    let (cpu, gpu) = (on(Device::Cpu), on(GPU));
    no_grad(|| {
        for ((_, from), (_, mut to)) in cpu.params.stored().iter().zip(gpu.params.stored()) {
            to.copy_(from);
        }
    });
    let patch = (spec.training_patch()).map_or(vec![64], <[i64]>::to_vec);
    let sides = takeable_size(&cpu, &patch);
    let shape = [&[2, spec.in_channels()], &sides[..]].concat();
    (cpu, gpu, Tensor::randn(&shape, (Kind::Float, Device::Cpu)))
}

fn small() -> impl Iterator<Item = &'static str> {
    (presets().iter().map(|known| known.name)).filter(|name| {
        let spec = preset(name).unwrap();
        outline(&spec).is_ok_and(|built| built.params.num_parameters() < 1_000_000)
    })
}

/// Outputs and the gradients of all parameters.
fn passes(built: &Built, image: &Tensor) -> Vec<Tensor> {
    built.params.zero_grad();
    let outputs = built.net.forward(image, true).unwrap();
    let losses: Vec<Tensor> = (outputs.iter())
        .map(|y| y.square().mean(Kind::Float))
        .collect();
    Tensor::stack(&losses, 0).sum(Kind::Float).backward();
    let gradients = built.params.trainable().into_iter();
    let gradients = gradients.map(|(_, t)| t.grad().copy());
    outputs
        .iter()
        .map(Tensor::detach)
        .chain(gradients)
        .collect()
}

#[test]
#[ignore = "needs a GPU"]
fn networks_agree_with_the_cpu() {
    need_a_gpu();
    let mut apart = Vec::new();
    for name in small() {
        let (cpu, gpu, image) = pair(name);
        let expected = no_grad(|| cpu.net.forward(&image, false)).unwrap();
        let found = no_grad(|| gpu.net.forward(&image.to_device(GPU), false)).unwrap();
        for (a, b) in expected.iter().zip(&found) {
            let scale = a.abs().max().double_value(&[]).max(1e-6);
            let gap = (a - b.to_device(Device::Cpu)).abs().max().double_value(&[]) / scale;
            // float32 sums in another order, through a dozen layers
            if gap.is_nan() || gap > 1e-3 {
                apart.push(format!("{name}: {gap:e} of the largest output"));
            }
        }
    }
    assert!(apart.is_empty(), "{apart:#?}");
}

/// The operators give the same bits, which `bits` of `scripts/gpu-check` asks of them alone; here cuDNN's convolutions must too, as `--deterministic` has it.
#[test]
#[ignore = "needs a GPU"]
fn gradients_are_the_same_bits_in_every_run() {
    need_a_gpu();
    let mut differ = Vec::new();
    for name in [
        "vmamba_nano",
        "vim_nano",
        "mamba_unet_tiny",
        "umamba_bot_tiny_2d",
        "umamba_enc_tiny_2d",
        "uvmlite",
    ] {
        let (_, gpu, image) = pair(name);
        let image = image.to_device(GPU);
        let run = || {
            tch::manual_seed(3);
            passes(&gpu, &image)
        };
        let first = run();
        for again in 0..4 {
            let other = run();
            let which: Vec<usize> = (first.iter().zip(&other).enumerate())
                .filter(|(_, (a, b))| !a.equal(b))
                .map(|(i, _)| i)
                .collect();
            if !which.is_empty() {
                differ.push(format!(
                    "{name}: other bits of {which:?} in run {}",
                    again + 2
                ));
                break;
            }
        }
    }
    assert!(differ.is_empty(), "{differ:#?}");
}

/// Orders are made and kept on the device of the map: one network serves maps of several sizes and shapes in turn.
#[test]
#[ignore = "needs a GPU"]
fn maps_of_several_shapes_in_turn() {
    need_a_gpu();
    for name in ["vmamba_nano", "vim_nano"] {
        let (cpu, gpu, _) = pair(name);
        for (h, w) in [(64, 64), (96, 64), (64, 128), (64, 64)] {
            let image = Tensor::randn([1, 3, h, w], (Kind::Float, Device::Cpu));
            let expected = no_grad(|| cpu.net.forward(&image, false)).unwrap();
            let found = no_grad(|| gpu.net.forward(&image.to_device(GPU), false)).unwrap();
            let found = found[0].to_device(Device::Cpu);
            let scale = expected[0].abs().max().double_value(&[]).max(1e-6);
            let gap = (&expected[0] - found).abs().max().double_value(&[]) / scale;
            assert!(gap <= 1e-3, "{name} {h}x{w}: {gap:e}");
        }
    }
}
