//! Patches a second on one thread and through the loader:
//! `cargo bench -p vision-mamba-datasets --bench patches`
//!
//! With `--peer 512x512:1 ...` (patch and channels) it prints only what `scripts/bench-augment` compares: `ours PATCH:CHANNELS RATE` on one thread.
//! `WORKERS=N` adds the rate through the loader with N workers.
//!
//! A plain binary; it asserts nothing. Each figure is the best of several rounds.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a bench prints

use std::sync::Arc;
use std::time::Instant;

use ndarray::{Array3, Array4};
use vision_mamba_datasets::{
    draw_batch, Augmentation, Geometry, PatchSettings, Prefetch, PreparedCase, SourceGrid,
    TrainingCase,
};

const ROUNDS: usize = 3;

fn case(size: &[usize], channels: usize) -> TrainingCase {
    let size = match *size {
        [y, x] => [1, y, x],
        [z, y, x] => [z, y, x],
        _ => panic!("{size:?}"),
    };
    let n: usize = size.iter().product();
    let values = (0..n * channels)
        .map(|i| (i % n * 7919 % 1009) as f32 / 500.0 - 1.0)
        .collect();
    // Blocks of 20 voxels a side: organs rather than noise.
    let seg = Array3::from_shape_fn(size, |(z, y, x)| ((z / 20 + y / 20 + x / 20) % 3) as i16);
    let case = PreparedCase {
        id: "bench".into(),
        image: Array4::from_shape_vec((channels, size[0], size[1], size[2]), values).unwrap(),
        seg,
        labelled: true,
        source: SourceGrid {
            spacing: [1.0; 3],
            size,
            bounds: size.map(|n| [0, n]),
            transpose_backward: [0, 1, 2],
            spatial_dims: 3,
            geometry: Geometry::unit(3),
        },
    };
    TrainingCase::new(case, &[vec![1], vec![2]], None)
}

fn always(mut augment: Augmentation) -> Augmentation {
    augment.rotation.probability = 1.0;
    augment.scaling.probability = 1.0;
    augment.noise.probability = 1.0;
    augment.blur.probability = 1.0;
    augment.brightness.probability = 1.0;
    augment.contrast.probability = 1.0;
    augment.low_resolution.probability = 1.0;
    augment.gamma.probability = 1.0;
    augment.gamma.inverted_probability = 1.0;
    augment
}

fn best(patches: u64, mut round: impl FnMut()) -> f64 {
    let seconds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        round();
        start.elapsed().as_secs_f64()
    });
    patches as f64 / seconds.fold(f64::MAX, f64::min)
}

/// Default augmentation of patches like `512x512:1`, as nnU-Net's peer does them: cases in memory, a quarter larger than the patch.
fn compare(texts: &[String], workers: usize) {
    for text in texts {
        let (shape, channels) = text.split_once(':').unwrap();
        let patch: Vec<usize> = shape.split('x').map(|n| n.parse().unwrap()).collect();
        let size: Vec<usize> = patch.iter().map(|n| n * 5 / 4).collect();
        let voxels: usize = patch.iter().product();
        let cases = Arc::new(vec![case(&size, channels.parse().unwrap())]);
        let settings = PatchSettings {
            training_patch: patch,
            batch_size: 2,
            oversample_foreground: 0.33,
            augment: Augmentation::default(),
            masked_channels: Vec::new(),
            ignore_label: None,
            seed: 1,
        };
        // enough patches for the rarest change to come up at its rate
        let batches = (60_000_000 / voxels as u64).clamp(20, 400);
        let one = || {
            (0..batches)
                .for_each(|index| drop(std::hint::black_box(draw_batch(&cases, &settings, index))))
        };
        println!("ours {text} {:.3}", best(2 * batches, one));
        if workers > 0 {
            let all = || {
                Prefetch::new(cases.clone(), settings.clone(), 0..batches, workers)
                    .unwrap()
                    .for_each(|b| drop(b.unwrap()))
            };
            println!("loader{workers} {text} {:.3}", best(2 * batches, all));
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if arguments.first().is_some_and(|a| a == "--peer") {
        let workers = std::env::var("WORKERS").map_or(0, |n| n.parse().unwrap());
        compare(&arguments[1..], workers);
        return;
    }
    println!(
        "{:<12} {:<22} {:>12} {:>10}",
        "patch", "augmentation", "patches/s", "ms each"
    );
    for (size, patch, batches) in [
        (vec![160, 180], vec![128, 128], 40u64),
        (vec![80, 90, 100], vec![64, 64, 64], 3),
    ] {
        let cases = Arc::new(vec![case(&size, 1)]);
        let only = |change: fn(&mut Augmentation)| {
            let mut augment = Augmentation::none();
            change(&mut augment);
            augment
        };
        let sets = [
            ("none", Augmentation::none(), 0),
            ("default", Augmentation::default(), 0),
            ("all, always", always(Augmentation::default()), 0),
            ("rotation", only(|a| a.rotation.probability = 1.0), 0),
            ("noise", only(|a| a.noise.probability = 1.0), 0),
            ("blur", only(|a| a.blur.probability = 1.0), 0),
            ("brightness", only(|a| a.brightness.probability = 1.0), 0),
            ("contrast", only(|a| a.contrast.probability = 1.0), 0),
            (
                "low resolution",
                only(|a| a.low_resolution.probability = 1.0),
                0,
            ),
            ("gamma", only(|a| a.gamma.probability = 1.0), 0),
            ("mirroring", only(|a| a.mirroring = Default::default()), 0),
            ("default, 2 workers", Augmentation::default(), 2),
        ];
        for (name, augment, workers) in sets {
            let settings = PatchSettings {
                training_patch: patch.clone(),
                batch_size: 8,
                oversample_foreground: 0.33,
                augment,
                masked_channels: Vec::new(),
                ignore_label: None,
                seed: 1,
            };
            let rate = best(8 * batches, || match workers {
                0 => (0..batches).for_each(|index| {
                    drop(std::hint::black_box(draw_batch(&cases, &settings, index)))
                }),
                _ => Prefetch::new(cases.clone(), settings.clone(), 0..batches, workers)
                    .unwrap()
                    .for_each(|b| drop(b.unwrap())),
            });
            println!(
                "{:<12} {name:<22} {rate:>12.0} {:>10.3}",
                format!("{patch:?}"),
                1e3 / rate
            );
        }
    }
}
