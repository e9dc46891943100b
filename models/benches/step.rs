//! Seconds of a training step (forward, loss, backward) of the small presets, as the demo uses them.
//!
//! `cargo bench -p vision-mamba-models [-- PRESET KEY=VALUE ...]`; `OMP_NUM_THREADS` sets the threads.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use tch::{Device, Kind, Tensor};
use vision_mamba_models::{build, preset};

const BATCH: i64 = 8;
const ROUNDS: usize = 7;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| !w.starts_with('-'))
        .collect();
    println!(
        "{}; {} threads; batch {BATCH}; least and median of {ROUNDS}",
        vision_mamba_ops::status(),
        tch::get_num_threads()
    );
    let overrides: Vec<(&str, &str)> = words.iter().filter_map(|w| w.split_once('=')).collect();
    let named: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|w| !w.contains('='))
        .collect();
    let names = if named.is_empty() {
        vec!["umamba_bot_small_2d", "mamba_unet_small"]
    } else {
        named
    };
    for name in names {
        let patch: &[i64] = if name.starts_with("umamba") {
            &[80, 128]
        } else {
            &[96, 128]
        };
        let spec = preset(name)
            .unwrap()
            .for_data(1, 6, 2, patch)
            .unwrap()
            .with_overrides(&overrides)
            .unwrap();
        let built = build(&spec, Device::Cpu).unwrap();
        let x = Tensor::randn([BATCH, 1, patch[0], patch[1]], (Kind::Float, Device::Cpu));
        let mut times = vec![];
        let mut forward = vec![];
        for _ in 0..=ROUNDS {
            built.params.zero_grad();
            let start = Instant::now();
            let logits = built.net.forward(&x, true).unwrap();
            forward.push(start.elapsed().as_secs_f64());
            let losses: Vec<Tensor> = logits
                .iter()
                .map(|l| l.square().mean(Kind::Float))
                .collect();
            Tensor::stack(&losses, 0).sum(Kind::Float).backward();
            times.push(start.elapsed().as_secs_f64());
        }
        // the first round fills caches
        let (mut times, mut forward) = (times.split_off(1), forward.split_off(1));
        times.sort_by(f64::total_cmp);
        forward.sort_by(f64::total_cmp);
        println!(
            "{name} {patch:?}: {} parameters, forward {:.3} s ({:.3}), step {:.3} s ({:.3})",
            built.params.num_parameters(),
            forward[0],
            forward[ROUNDS / 2],
            times[0],
            times[ROUNDS / 2]
        );
    }
}
