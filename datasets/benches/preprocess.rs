//! Processor seconds that reading, preprocessing and storing a case takes, on one thread, and taking the fingerprint of all (Linux):
//! `cargo bench -p vision-mamba-datasets --bench preprocess -- RAW_DATASET PLANS.json CONFIGURATION OUT_DIR [ROUNDS]`
//!
//! Prints JSON: for each case the mean of so many rounds, or of more until a second is full. `scripts/bench-pipeline` runs it beside nnU-Net.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a bench prints

use std::path::PathBuf;

use serde_json::{json, Map, Value};
use vision_mamba_datasets::cache::Cache;
use vision_mamba_datasets::{Dataset, Fingerprint, Plan};

/// What all threads of this process have used: other work on the machine does not count.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // user and system, in hundredths of a second
    fields[11..13]
        .iter()
        .map(|f| f.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

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
    let mean = |work: &dyn Fn()| {
        let (start, mut done) = (processor_seconds(), 0);
        while done < rounds || (processor_seconds() - start < 1.0 && rounds > 1) {
            work();
            done += 1;
        }
        (processor_seconds() - start) / done as f64
    };
    let mut cases = Map::new();
    for id in dataset.training_ids() {
        let seconds = mean(&|| {
            let _ = std::fs::remove_file(cache.path(&id));
            let ids = [id.clone()];
            let made = cache.fill(&dataset, &ids, &plan, configuration, 1, &|_| {});
            assert_eq!(made.unwrap().made, 1);
        });
        cases.insert(id, Value::from(seconds));
    }
    let fingerprint = mean(&|| {
        Fingerprint::take(&dataset, 1, &|_| {}).unwrap();
    });
    println!("{}", json!({"cases": cases, "fingerprint": fingerprint}));
}
