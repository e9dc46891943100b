//! Golden parity: everything here is compared, value by value and gradient by gradient, with numbers the original
//! implementations gave.
//!
//! `cargo test --release --test golden` walks `tests/golden/`, or the folder in `VISION_MAMBA_GOLDEN`, recursively. A case is
//! `NAME.json` with `NAME.safetensors`, or a listing of a state dict in `NAME.json` alone. Each is built from its JSON, and an
//! unknown model or key fails it. Words on the command line choose cases by parts of their names; the last line counts.
//!
//! `tests/golden/README.md` describes the form of a case and where the numbers come from.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[path = "golden_harness/case.rs"]
mod case;
#[path = "golden_harness/compare.rs"]
mod compare;
#[path = "golden_harness/config.rs"]
mod config;
#[path = "golden_harness/listing.rs"]
mod listing;
#[path = "golden_harness/modules.rs"]
mod modules;
#[path = "golden_harness/nnunet.rs"]
mod nnunet;
#[path = "golden_harness/ops.rs"]
mod ops;
#[path = "golden_harness/s4.rs"]
mod s4;
#[path = "golden_harness/umamba.rs"]
mod umamba;
#[path = "golden_harness/uvmnet.rs"]
mod uvmnet;
#[path = "golden_harness/vim.rs"]
mod vim;
#[path = "golden_harness/vmamba.rs"]
mod vmamba;

use case::{Case, Fallible};
use compare::Report;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    if std::env::args().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    let root = match std::env::var_os("VISION_MAMBA_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
    };
    println!(
        "cases below {}; {}",
        root.display(),
        vision_mamba_ops::status()
    );
    let (mut passed, mut failed) = (0, 0);
    match cases(&root) {
        Ok(all) => {
            let chosen: Vec<_> = all
                .iter()
                .filter(|(name, _)| words.is_empty() || words.iter().any(|w| name.contains(w)))
                .collect();
            if chosen.len() < all.len() {
                println!(
                    "{} of {} cases chosen by {words:?}",
                    chosen.len(),
                    all.len()
                );
            }
            for (name, stem) in chosen {
                match run_safely(stem) {
                    Ok(report) if report.passed() => {
                        passed += 1;
                        println!("ok      {name}: {report}");
                    }
                    Ok(report) => {
                        failed += 1;
                        println!("FAILED  {name}: {report}");
                    }
                    Err(e) => {
                        failed += 1;
                        println!("FAILED  {name}: {e}");
                    }
                }
            }
        }
        Err(e) => {
            failed += 1;
            println!("FAILED  {e}");
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Every case below `root`: its name and its path without extension, in the order of names.
fn cases(root: &Path) -> Fallible<Vec<(String, PathBuf)>> {
    let mut found = vec![];
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                // files of Python's, for `tests/checkpoints.rs`
                if !path.ends_with("checkpoints") {
                    folders.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|e| e == "json" || e == "safetensors")
            {
                found.push(path.with_extension(""));
            }
        }
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(format!("{}: no case in it", root.display()).into());
    }
    let name = |stem: &PathBuf| {
        stem.strip_prefix(root)
            .unwrap_or(stem)
            .display()
            .to_string()
    };
    Ok(found.into_iter().map(|stem| (name(&stem), stem)).collect())
}

/// A tensor operation that panics fails its case, not the run.
fn run_safely(stem: &Path) -> Fallible<Report> {
    std::panic::catch_unwind(|| run(stem)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(format!("panicked: {}", text.lines().next().unwrap_or_default()).into())
    })
}

fn run(stem: &Path) -> Fallible<Report> {
    let (json, tensors) = (
        stem.with_extension("json"),
        stem.with_extension("safetensors"),
    );
    if !json.exists() {
        return Err(format!("{} has no json beside it", tensors.display()).into());
    }
    if !tensors.exists() {
        return listing::run(&json);
    }
    let case = Case::read(&json, &tensors)?;
    let mut report = Report::default();
    match case.model.as_str() {
        "selective_scan_ref (state-spaces/mamba)" => ops::selective_scan(&case, &mut report)?,
        "causal_conv1d_ref" => ops::causal_conv1d(&case, &mut report)?,
        "causal_conv1d_update_ref" => ops::causal_conv1d_update(&case, &mut report)?,
        "interpolate_pos_embed (Vim)" => vim::interpolate(&case, &mut report)?,
        "cross_scan_fn / cross_merge_fn (VMamba, torch path)" => {
            vmamba::cross_scan(&case, &mut report)?
        }
        _ if s4::theory(&case, &mut report)?.is_some() => {}
        _ if s4::kernel_case(&case, &mut report)?.is_some() => {}
        _ => modules::run(&case, &mut report)?,
    }
    Ok(report)
}
