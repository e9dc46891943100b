//! Parity of everything around the networks with the established tools: what they read, plan, preprocess, predict and score.
//!
//! `cargo test --release --test pipeline` checks `tests/golden_pipeline/`, or the folder in `VISION_MAMBA_GOLDEN_PIPELINE`,
//! section by section; what lies in a section's folder is discovered, not listed. Words on the command line choose checks by
//! parts of their names (`restoration/`); the last line counts.
//!
//! `tests/golden_pipeline/README.md` describes the folders and where the numbers come from.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[path = "pipeline_harness/arrays.rs"]
mod arrays;
#[path = "pipeline_harness/checks.rs"]
mod checks;
#[path = "pipeline_harness/formats.rs"]
mod formats;
#[path = "pipeline_harness/losses.rs"]
mod losses;
#[path = "pipeline_harness/metrics.rs"]
mod metrics;
#[path = "pipeline_harness/planning.rs"]
mod planning;
#[path = "pipeline_harness/preprocessing.rs"]
mod preprocessing;
#[path = "pipeline_harness/restoration.rs"]
mod restoration;
#[path = "pipeline_harness/results.rs"]
mod results;
#[path = "pipeline_harness/sliding_window.rs"]
mod sliding_window;
#[path = "pipeline_harness/units.rs"]
mod units;

use checks::{Checks, Fallible};

/// Compares everything in one folder.
type Section = fn(&Path, &mut Checks) -> Fallible<()>;

/// Each section is a folder below the root and the function that checks it.
const SECTIONS: &[(&str, Section)] = &[
    ("formats", formats::check),
    ("units", units::check),
    ("nnUNet_preprocessed", preprocessing::check),
    ("sliding_window", sliding_window::check),
    ("losses", losses::check),
    ("metrics", metrics::check),
    ("restoration", restoration::check),
    ("results_layout", results::check),
];

fn main() -> ExitCode {
    if std::env::args().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let root = match std::env::var_os("VISION_MAMBA_GOLDEN_PIPELINE") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_pipeline"),
    };
    println!("sections below {}", root.display());
    let mut checks = Checks::new(words);
    let mut found = 0;
    for (name, section) in SECTIONS {
        let folder = root.join(name);
        if !folder.is_dir() {
            println!("absent  {name}/");
            continue;
        }
        found += 1;
        checks.enter(name);
        if let Err(e) = section(&folder, &mut checks) {
            checks.fault("as a whole", e.to_string());
        }
    }
    if found == 0 {
        checks.fault("", "none of the sections is there".to_string());
    }
    checks.finish()
}
