//! Seconds that reading, preprocessing and storing a case takes, on one thread, and taking the fingerprint of all:
//! `cargo bench -p vision-mamba-datasets --bench preprocess -- RAW_DATASET PLANS.json CONFIGURATION OUT_DIR [ROUNDS]`
//!
//! Prints JSON: the best of the rounds for each case. `scripts/bench-pipeline` runs it beside nnU-Net.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a bench prints

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{json, Map, Value};
use vision_mamba_datasets::cache::Cache;
use vision_mamba_datasets::{Dataset, Fingerprint, Plan};

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let [raw, plans, name, out, rest @ ..] = &args[..] else {
        println!("arguments: RAW_DATASET PLANS.json CONFIGURATION OUT_DIR [ROUNDS]");
        return;
    };
    let rounds: usize = rest.first().map_or(1, |n| n.parse().unwrap());
    let dataset = Dataset::open(raw).unwrap();
    let plan = Plan::read(&PathBuf::from(plans)).unwrap();
    let configuration = plan.configuration(name).unwrap();
    let cache = Cache::new(&PathBuf::from(out), configuration);
    let best = |work: &dyn Fn()| {
        let seconds = (0..rounds).map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        });
        seconds.fold(f64::INFINITY, f64::min)
    };
    let mut cases = Map::new();
    for id in dataset.training_ids() {
        let seconds = best(&|| {
            let _ = std::fs::remove_file(cache.path(&id));
            let ids = [id.clone()];
            let made = cache.fill(&dataset, &ids, &plan, configuration, 1, &|_| {});
            assert_eq!(made.unwrap().made, 1);
        });
        cases.insert(id, Value::from(seconds));
    }
    let fingerprint = best(&|| {
        Fingerprint::take(&dataset, 1, &|_| {}).unwrap();
    });
    println!("{}", json!({"cases": cases, "fingerprint": fingerprint}));
}
