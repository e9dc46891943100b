//! What each change of a patch costs, on one thread:
//! `cargo bench -p vision-mamba-datasets --bench patches [-- 512x512:1 ...]` (patch and channels)
//!
//! With `--peer SECONDS 512x512:1 ...` it prints only what `scripts/bench-augment` compares: `ours PATCH:CHANNELS RATE`, patches a second of one
//! thread's processor time. `WORKERS=1,8` adds the rates through the loader with so many workers, in seconds on the wall.
//!
//! A plain binary; it asserts nothing.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a bench prints

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ndarray::{Array3, Array4};
use vision_mamba_datasets::{
    Augmentation, Geometry, PatchSettings, Prefetch, PreparedCase, Sampler, SourceGrid,
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

/// Seconds this process has had of a processor, where the system tells; else those that passed.
fn seconds() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or(passed, |n| n * 1e-9)
}

/// The bench's case for a text like `512x512:1`: a quarter larger than the patch, in memory.
fn setting(text: &str, augment: Augmentation) -> (Arc<Vec<TrainingCase>>, PatchSettings) {
    let (shape, channels) = text.split_once(':').unwrap();
    let patch: Vec<usize> = shape.split('x').map(|n| n.parse().unwrap()).collect();
    let size: Vec<usize> = patch.iter().map(|n| n * 5 / 4).collect();
    let cases = Arc::new(vec![case(&size, channels.parse().unwrap())]);
    let settings = PatchSettings {
        training_patch: patch,
        batch_size: 2,
        oversample_foreground: 0.33,
        augment,
        masked_channels: Vec::new(),
        ignore_label: None,
        seed: 1,
    };
    (cases, settings)
}

/// Default augmentation as nnU-Net's peer does it: patches a second in `budget` seconds.
fn compare(text: &str, budget: f64) {
    let (cases, settings) = setting(text, Augmentation::default());
    let voxels: usize = settings.training_patch.iter().product();
    // enough patches for the rarest change to come up at its rate
    let least = (30_000_000 / voxels as u64).clamp(10, 200);
    let sampler = Sampler::new(cases.clone(), settings.clone()).unwrap();
    let (start, mut index) = (seconds(), 0);
    while seconds() - start < budget || index < least {
        drop(std::hint::black_box(sampler.draw(index)));
        index += 1;
    }
    let rate = 2.0 * index as f64 / (seconds() - start);
    println!("ours {text} {rate:.3}");
    let workers = std::env::var("WORKERS").unwrap_or_default();
    for workers in workers.split(',').filter_map(|n| n.parse().ok()) {
        let batches = ((budget * rate / 2.0) as u64).max(least);
        let all = Prefetch::new(cases.clone(), settings.clone(), 0..batches + 1, workers).unwrap();
        let mut all = all.map(|b| drop(b.unwrap()));
        all.next();
        let start = Instant::now();
        let patches = 2 * all.count();
        let rate = patches as f64 / start.elapsed().as_secs_f64();
        println!("loader{workers} {text} {rate:.3}");
    }
}

/// Nanoseconds a value of the patch when each change is sure to happen, with cutting; the best of several rounds.
fn stages(texts: &[String]) {
    let only = |change: fn(&mut Augmentation)| {
        let mut augment = Augmentation::none();
        change(&mut augment);
        augment
    };
    let sets = [
        ("none", Augmentation::none()),
        ("default", Augmentation::default()),
        ("all, always", always(Augmentation::default())),
        ("rotation", only(|a| a.rotation.probability = 1.0)),
        ("scaling", only(|a| a.scaling.probability = 1.0)),
        ("noise", only(|a| a.noise.probability = 1.0)),
        ("blur", only(|a| a.blur.probability = 1.0)),
        ("brightness", only(|a| a.brightness.probability = 1.0)),
        ("contrast", only(|a| a.contrast.probability = 1.0)),
        (
            "low resolution",
            only(|a| a.low_resolution.probability = 1.0),
        ),
        ("gamma", only(|a| a.gamma.probability = 1.0)),
        ("mirroring", only(|a| a.mirroring = Default::default())),
    ];
    print!("{:<16}", "ns a value");
    texts.iter().for_each(|text| print!(" {text:>14}"));
    println!();
    for (name, augment) in sets {
        print!("{name:<16}");
        for text in texts {
            let (cases, settings) = setting(text, augment.clone());
            let values: usize =
                2 * settings.training_patch.iter().product::<usize>() * cases[0].shape[0];
            let sampler = Sampler::new(cases, settings).unwrap();
            let batches = (20_000_000 / values as u64).max(3);
            let round = |_| {
                let start = seconds();
                for index in 0..batches {
                    drop(std::hint::black_box(sampler.draw(index)));
                }
                seconds() - start
            };
            let fastest = (0..ROUNDS).map(round).fold(f64::MAX, f64::min);
            print!(
                " {:>14.2}",
                1e9 * fastest / (batches * values as u64) as f64
            );
        }
        println!();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    match arguments.as_slice() {
        [peer, budget, texts @ ..] if peer == "--peer" => {
            let budget = budget.parse().unwrap();
            texts.iter().for_each(|text| compare(text, budget));
        }
        [] => stages(&["512x512:1", "512x512:3", "128x128x128:1", "48x192x192:1"].map(Into::into)),
        texts => stages(texts),
    }
}
