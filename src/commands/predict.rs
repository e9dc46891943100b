//! `predict`: label maps for a file or a folder, by one run or an ensemble.

use std::path::{Path, PathBuf};

use anyhow::{bail, Result};

use super::find_best::Best;
use crate::cli::args::{CheckpointChoice, Global, PredictArgs};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::{write_json, RunFolder};
use crate::inference::ensemble::Ensemble;
use crate::inference::input;
use crate::inference::member::{check_alike, run_folders, Member};
use crate::inference::pipeline::{check_writable, Pipeline, Work};
use crate::inference::postprocess::Postprocessing;
use crate::inference::volume::PredictOptions;
use crate::runtime::{self, StopFlag};

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
    let Chosen {
        runs,
        checkpoint,
        post,
    } = choose(args)?;
    let device = global.device.resolve()?;
    runtime::prepare(global.threads, device, printer);
    args.speed.prepare(device)?;
    // what can be wrong with the files is found before the networks are loaded
    let first = RunFolder::open(&runs[0])?;
    let info = vision_mamba_datasets::DatasetJson::read(&first.dataset())?;
    let inputs = input::find(&args.input, &info.file_ending, info.channel_names.len())?;
    let to_file = inputs.single && !args.output.is_dir() && !names_folder(args);
    if to_file {
        input::check_label_file(&args.output)?;
    }
    let folder = match to_file {
        true => parent(&args.output),
        false => args.output.clone(),
    };
    check_writable(&folder)?;

    let mut members = runs
        .iter()
        .map(|run| Member::load(run, checkpoint, device))
        .collect::<Result<Vec<_>>>()?;
    check_alike(&members, &runs)?;
    if let Some(axes) = &args.mirror {
        for member in &mut members {
            member.mirror_along(axes.clone())?;
        }
    }
    let all: Vec<Work> = inputs
        .cases
        .into_iter()
        .map(|case| Work {
            target: match to_file {
                true => args.output.clone(),
                false => folder.join(format!("{}{}", case.id, inputs.label_ending)),
            },
            case,
        })
        .collect();
    let total = all.len();
    let work: Vec<Work> = all
        .into_iter()
        .filter(|w| !(args.skip_existing && w.target.is_file()))
        .collect();

    let stop = StopFlag::listen("window", printer)?;
    let options = PredictOptions {
        tile_step: args.tile_step,
        mirroring: !args.no_mirroring,
        probabilities: args.save_probabilities,
        precision: args.precision,
        speed: args.speed,
    };
    for member in &members {
        member.arrange(args.speed)?;
    }
    let ensemble = Ensemble::new(&members)?;
    let pipeline = Pipeline {
        ensemble: &ensemble,
        channels: info.channel_names.clone(),
        options: &options,
        post: &post,
        folder: &folder,
        stop: &stop,
        on_case: &|id, bytes| {
            printer.detail(&format!(
                "{id}: about {:.1} GB beside the networks and the next case",
                bytes as f64 / 1e9
            ));
        },
    };
    let mut bar = Progress::new(printer, "predicting", total as u64);
    bar.start_at((total - work.len()) as u64);
    let mut failures = Vec::new();
    let mut report = |work: &Work, outcome: &Result<()>| {
        if let Err(error) = outcome {
            let text = format!("{}: {error:#}", work.case.id);
            if total > 1 {
                bar.line(&format!("warning: {text}"));
            }
            failures.push(text);
        }
        bar.step(|| work.case.id.clone());
    };
    let outcome = match args.one_by_one {
        false => pipeline.run(&work, &mut report),
        true => work
            .chunks(1)
            .try_for_each(|one| pipeline.run(one, &mut report)),
    };
    bar.finish();
    if let Err(error) = outcome {
        if error.is::<Interrupted>() {
            printer.message("stopped; run the same command with --skip-existing to do the rest");
        }
        return Err(error);
    }
    if !to_file {
        let info: serde_json::Value = RunFolder::read_json(&first.dataset())?;
        write_json(&folder.join("dataset.json"), &info)?;
    }
    if let Some(first) = failures.first() {
        bail!("{} of {total} case(s) failed: {first}", failures.len());
    }
    printer.message(&format!(
        "{total} label map(s) written to {}",
        args.output.display()
    ));
    Ok(())
}

/// Which runs predict, and what becomes of their label maps.
struct Chosen {
    runs: Vec<PathBuf>,
    checkpoint: Option<CheckpointChoice>,
    post: Postprocessing,
}

fn choose(args: &PredictArgs) -> Result<Chosen> {
    if let Some(file) = &args.best {
        let best = Best::read(file)?;
        return Ok(Chosen {
            runs: best.runs(file),
            checkpoint: best.checkpoint,
            post: best.postprocessing,
        });
    }
    let runs = run_folders(&args.runs)?;
    if runs.is_empty() {
        return Err(Misuse::error("no --run was given"));
    }
    let post = match &args.postprocess {
        Some(file) => Best::read(file)?.postprocessing,
        None => Postprocessing::default(),
    };
    Ok(Chosen {
        runs,
        checkpoint: args.checkpoint,
        post,
    })
}

/// Whether the output of a folder that is one case (a DICOM series) is a folder too: it has no ending of a label map.
fn names_folder(args: &PredictArgs) -> bool {
    args.input.is_dir() && input::check_label_file(&args.output).is_err()
}

fn parent(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_path_buf()
}
