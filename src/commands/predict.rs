//! `predict`: label maps for a file or a folder, by one run or an ensemble.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use vision_mamba_datasets::{images_in, load_channels, probabilities, write_labels, InputCase};

use super::train::label_ending;
use crate::cli::args::{Global, PredictArgs};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::{write_json, RunFolder};
use crate::inference::volume::{segment, Member, PredictOptions};
use crate::runtime::{self, StopFlag};

/// Formats that label maps can be written in.
const LABEL_ENDINGS: [&str; 3] = [".png", ".nii", ".nii.gz"];

/// Predicts every case; a case that fails is named, the rest is done, and the command fails at the end.
pub fn run(args: &PredictArgs, global: &Global, printer: &Printer) -> Result<()> {
    if !(args.tile_step > 0.0 && args.tile_step <= 1.0) {
        return Err(Misuse::error(format!(
            "--tile-step {}: must be above 0 and at most 1",
            args.tile_step
        )));
    }
    if !args.input.exists() {
        return Err(Misuse::error(format!(
            "-i {}: no such file or folder",
            args.input.display()
        )));
    }
    let device = global.device.resolve()?;
    runtime::prepare(global.threads, printer);
    let members = args
        .runs
        .iter()
        .map(|run| Member::load(run, args.checkpoint, device))
        .collect::<Result<Vec<_>>>()?;
    let first = members.first().context("no --run was given")?;
    for (member, run) in members.iter().zip(&args.runs) {
        if member.info.labels != first.info.labels
            || member.info.regions != first.info.regions
            || member.info.channel_names != first.info.channel_names
        {
            return Err(Misuse::error(format!(
                "{} was trained with other labels or channels than {}; an ensemble needs the same",
                run.display(),
                args.runs[0].display()
            )));
        }
    }
    let cases = images_in(
        &args.input,
        &first.info.file_ending,
        first.info.channel_names.len(),
    )?;
    let single_file = args.input.is_file();
    if single_file && !args.output.is_dir() {
        let name = args.output.to_string_lossy();
        if !LABEL_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            return Err(Misuse::error(format!(
                "-o {name}: label maps are written as {}; give a file with one of these endings or a folder",
                LABEL_ENDINGS.join(", ")
            )));
        }
    }
    let targets: Vec<PathBuf> = cases
        .iter()
        .map(|case| target(args, single_file, &case.id, &first.info.file_ending))
        .collect();
    let folder = if single_file && !args.output.is_dir() {
        args.output.parent()
    } else {
        Some(args.output.as_path())
    };
    if let Some(folder) = folder.filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the output folder {}", folder.display()))?;
    }

    let stop = StopFlag::listen("case", printer)?;
    let options = PredictOptions {
        tile_step: args.tile_step,
        mirroring: !args.no_mirroring,
        probabilities: args.save_probabilities,
    };
    let mut bar = Progress::new(printer, "predicting", cases.len() as u64);
    let mut failures = Vec::new();
    for (case, target) in cases.iter().zip(&targets) {
        if !(args.skip_existing && target.is_file()) {
            let outcome = predict_case(case, target, &members, &options, &stop);
            match outcome {
                Ok(()) => {}
                Err(error) if error.is::<Interrupted>() => {
                    bar.finish();
                    printer.message(
                        "stopped; run the same command with --skip-existing to do the rest",
                    );
                    return Err(error);
                }
                Err(error) => {
                    let text = format!("{}: {error:#}", case.id);
                    if cases.len() > 1 {
                        bar.line(&format!("warning: {text}"));
                    }
                    failures.push(text);
                }
            }
        }
        bar.step(|| case.id.clone());
    }
    bar.finish();
    if !single_file || args.output.is_dir() {
        let run = RunFolder::open(&args.runs[0])?;
        if run.dataset().is_file() {
            let info: serde_json::Value = RunFolder::read_json(&run.dataset())?;
            write_json(&args.output.join("dataset.json"), &info)?;
        }
    }
    if let Some(first) = failures.first() {
        bail!(
            "{} of {} case(s) failed: {first}",
            failures.len(),
            cases.len()
        );
    }
    printer.message(&format!(
        "{} label map(s) written to {}",
        cases.len(),
        args.output.display()
    ));
    Ok(())
}

fn predict_case(
    case: &InputCase,
    target: &Path,
    members: &[Member],
    options: &PredictOptions,
    stop: &StopFlag,
) -> Result<()> {
    let image = load_channels(case, channel_names(members))?;
    let prediction = segment(members, &image, options, &mut || match stop.is_set() {
        true => Err(Interrupted.into()),
        false => Ok(()),
    })?;
    if let Some(values) = &prediction.probabilities {
        probabilities::write(&probabilities::beside(target), values)?;
    }
    write_labels(target, &prediction.labels)?;
    Ok(())
}

fn channel_names(members: &[Member]) -> &[String] {
    members.first().map_or(&[], |m| &m.info.channel_names)
}

fn target(args: &PredictArgs, single_file: bool, id: &str, ending: &str) -> PathBuf {
    if single_file && !args.output.is_dir() {
        args.output.clone()
    } else {
        args.output.join(format!("{id}{}", label_ending(ending)))
    }
}
