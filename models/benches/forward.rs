//! Seconds and memory of a prediction, beside the time that its matrix products and convolutions alone take in the same run.
//!
//! `cargo bench -p vision-mamba-models --bench forward [-- PRESET ... SIZE KEY=VALUE ...]`; without words, every preset made for tests,
//! at its own patch or 64 along each axis. `OMP_NUM_THREADS=1` gives the table for one thread.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::describe::takeable_size;
use vision_mamba_models::{build, preset, presets, NetworkSpec};
use vision_mamba_ops::Meter;

const ROUNDS: usize = 9;
const SIDE: i64 = 64;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| !w.starts_with('-'))
        .collect();
    let overrides: Vec<(&str, &str)> = words.iter().filter_map(|w| w.split_once('=')).collect();
    let size: Option<Vec<i64>> = words
        .iter()
        .find_map(|w| w.split('x').map(|n| n.parse().ok()).collect());
    let named: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|w| presets().iter().any(|p| p.name == *w))
        .collect();
    let names = match named.is_empty() {
        true => (presets().iter().map(|p| p.name))
            .filter(|n| n.contains("tiny") && n.contains('_') || n.contains("nano"))
            .filter(|n| preset(n).is_ok_and(|spec| small(&spec)))
            .collect(),
        false => named,
    };
    println!(
        "{}; {} threads; batch 1; least of {ROUNDS}\n",
        vision_mamba_ops::status(),
        tch::get_num_threads()
    );
    println!(
        "| preset | image | forward ms | products ms | scans ms | forward / products | peak MiB |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for name in names {
        let spec = preset(name).unwrap().with_overrides(&overrides).unwrap();
        let size = (size.clone())
            .or_else(|| spec.training_patch().map(<[i64]>::to_vec))
            .unwrap_or_else(|| vec![SIDE]);
        measure(name, &spec, &size);
    }
}

/// Made for tests, not an official size that happens to be called tiny.
fn small(spec: &NetworkSpec) -> bool {
    vision_mamba_models::outline(spec).is_ok_and(|built| built.params.num_parameters() < 1_000_000)
}

fn measure(name: &str, spec: &NetworkSpec, size: &[i64]) {
    tch::manual_seed(1);
    let built = build(spec, Device::Cpu).unwrap();
    let size = takeable_size(&built, size);
    let shape: Vec<i64> = [1, spec.in_channels()]
        .into_iter()
        .chain(size.iter().copied())
        .collect();
    let image = Tensor::randn(&shape, (Kind::Float, Device::Cpu));
    let forward = || no_grad(|| built.net.forward(&image, false).unwrap());
    forward();
    let [mut whole, mut products, mut scans] = [f64::INFINITY; 3];
    let mut peak = 0.0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        forward();
        whole = whole.min(start.elapsed().as_secs_f64());
        let meter = Meter::start().unwrap();
        forward();
        let cost = meter.cost();
        products = products.min(cost.product_seconds);
        scans = scans.min(cost.scan_seconds);
        peak = cost.peak_bytes;
    }
    let sides: Vec<String> = size.iter().map(i64::to_string).collect();
    println!(
        "| {name} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} |",
        sides.join("x"),
        1e3 * whole,
        1e3 * products,
        1e3 * scans,
        whole / products,
        peak / f64::from(1 << 20),
    );
}
