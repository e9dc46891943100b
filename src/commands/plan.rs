//! `plan`: what a data set looks like, the decisions that follow, and its cases preprocessed.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use vision_mamba_datasets::cache::Cache;
use vision_mamba_datasets::io::sweep;
use vision_mamba_datasets::planner::{plan, Request};
use vision_mamba_datasets::split::{self, Folds, Source};
use vision_mamba_datasets::{Configuration, DataError, Dataset, Fingerprint, Plan, Planner};

use crate::cli::args::{Global, PlanArgs};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::write_json;

/// The folder of preprocessed data below a data set, unless told otherwise.
const FOLDER: &str = "preprocessed";
/// Configurations that need predictions of another one.
const CASCADE: &str = "3d_cascade_fullres";

/// Where a data set's plan and preprocessed cases lie by default.
pub fn default_folder(dataset: &Path) -> PathBuf {
    dataset.join(FOLDER)
}

/// The plan in a folder of preprocessed data.
pub fn plans_file(folder: &Path) -> PathBuf {
    folder.join("plans.json")
}

/// Fingerprint, plan and preprocessed cases, each made only where it is missing or out of date.
pub fn run(args: &PlanArgs, global: &Global, printer: &Printer) -> Result<()> {
    if args.memory.is_some_and(|gb| !(gb.is_finite() && gb > 0.0)) {
        return Err(Misuse::error("--memory: must be a positive number of GB"));
    }
    let dataset = super::datasets::open(&args.dataset, printer)?;
    let folder = args
        .out
        .clone()
        .unwrap_or_else(|| default_folder(&args.dataset));
    make_folder(&folder)?;
    let mut broken = Broken::default();
    let plan = match &args.plans {
        Some(file) => Plan::read(file)?,
        None => decide(&dataset, args, global, printer, &mut broken)?,
    };
    plan.write(&plans_file(&folder))?;
    write_json(&folder.join("dataset.json"), &dataset.info)?;
    let ids = dataset.training_ids();
    write_folds(&dataset, &folder, printer)?;
    match args.json {
        true => printer.data(&serde_json::to_string_pretty(&plan)?),
        false => printer.data(&table(&plan)),
    }
    if args.no_preprocess {
        return broken.outcome(&dataset);
    }
    let wanted = |name: &String| match args.configuration.is_empty() {
        true => name != CASCADE,
        false => args.configuration.contains(name),
    };
    if let Some(unknown) = args
        .configuration
        .iter()
        .find(|name| !plan.configurations.contains_key(*name))
    {
        plan.configuration(unknown)?;
    }
    for (name, configuration) in plan.configurations.iter().filter(|(n, _)| wanted(n)) {
        let filled = fill(
            &folder,
            &dataset,
            &ids,
            &plan,
            (name, configuration),
            threads(global),
            printer,
        );
        match filled.map_err(|e| e.downcast::<DataError>()) {
            Ok(_) => {}
            Err(Ok(error)) if error.cannot_write() => return Err(error.into()),
            Err(Ok(error)) => broken.add(error),
            Err(Err(other)) => return Err(other),
        }
    }
    broken.outcome(&dataset)?;
    printer.message(&format!(
        "{} (train with --preprocessed {0} if it is not the data set's own)",
        folder.display()
    ));
    Ok(())
}

/// What is wrong with cases, each said once however many steps it fails.
#[derive(Default)]
struct Broken(Vec<String>);

impl Broken {
    fn add(&mut self, error: DataError) {
        match error {
            DataError::Several(errors) => errors.into_iter().for_each(|e| self.add(e)),
            error => {
                let text = error.to_string();
                if !self.0.contains(&text) {
                    self.0.push(text);
                }
            }
        }
    }

    /// The others are done; the broken ones are the command's failure.
    fn outcome(&self, dataset: &Dataset) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        bail!(
            "{} of {} cases cannot be used, the others are done: {}",
            self.0.len(),
            dataset.training_ids().len(),
            self.0.join("; ")
        )
    }
}

/// Writes the folds beside the preprocessed cases, as nnU-Net does, unless they are there.
fn write_folds(dataset: &Dataset, folder: &Path, printer: &Printer) -> Result<()> {
    let folds = match Folds::of(dataset, Some(folder)) {
        Ok(folds) => folds,
        // Too few cases for five folds: `--fold all` is left.
        Err(DataError::Setting { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if let Some(message) = folds.message() {
        printer.message(&message);
    }
    let file = folder.join(split::FILE);
    if folds.source != Source::File(file.clone()) {
        folds.write(&file)?;
    }
    Ok(())
}

fn decide(
    dataset: &Dataset,
    args: &PlanArgs,
    global: &Global,
    printer: &Printer,
    broken: &mut Broken,
) -> Result<Plan> {
    let folder = args
        .out
        .clone()
        .unwrap_or_else(|| default_folder(&args.dataset));
    let spacing = match args.spacing.as_deref() {
        None => None,
        Some(text) => Some(parse_spacing(text)?),
    };
    let (fingerprint, failures) = usable(dataset, threads(global), printer)?;
    failures.into_iter().for_each(|e| broken.add(e));
    fingerprint.write(&folder.join("dataset_fingerprint.json"))?;
    Ok(from_fingerprint(
        dataset,
        &fingerprint,
        args.planner.planner(),
        args.memory,
        spacing,
    ))
}

fn parse_spacing(text: &str) -> Result<[f64; 3]> {
    let values: Vec<f64> = text
        .split(['x', ','])
        .filter_map(|part| part.trim().parse().ok())
        .filter(|v: &f64| v.is_finite() && *v > 0.0)
        .collect();
    values.try_into().map_err(|_| {
        Misuse::error(format!(
            "--spacing {text}: expected three positive numbers in the order of the file's array (slowest axis first), as 3x0.8x0.8"
        ))
    })
}

/// Reads all training cases, with a progress bar.
pub fn fingerprint(dataset: &Dataset, threads: usize, printer: &Printer) -> Result<Fingerprint> {
    let (found, failures) = usable(dataset, threads, printer)?;
    match failures.len() {
        0 => Ok(found),
        _ => Err(DataError::Several(failures).into()),
    }
}

/// The same of the cases that can be used, with what is wrong with the others.
fn usable(
    dataset: &Dataset,
    threads: usize,
    printer: &Printer,
) -> Result<(Fingerprint, Vec<DataError>)> {
    let bar = Progress::new(
        printer,
        "reading training cases",
        dataset.planned_ids().len() as u64,
    );
    let bar = std::sync::Mutex::new(bar);
    let step = |id: &str| {
        if let Ok(mut bar) = bar.lock() {
            bar.step(|| id.to_owned());
        }
    };
    let found = Fingerprint::of_usable(dataset, threads, &step);
    if let Ok(bar) = bar.lock() {
        bar.finish();
    }
    let (found, failures) = found?;
    for note in &found.notes {
        printer.warning(note);
    }
    Ok((found, failures))
}

/// The plan that follows from a fingerprint.
pub fn from_fingerprint(
    dataset: &Dataset,
    fingerprint: &Fingerprint,
    planner: Planner,
    memory_gb: Option<f64>,
    spacing: Option<[f64; 3]>,
) -> Plan {
    let name = dataset.root.canonicalize().ok();
    let name = name.as_deref().and_then(Path::file_name).map_or_else(
        || dataset.info.name.clone(),
        |n| n.to_string_lossy().into_owned(),
    );
    plan(&Request {
        dataset_name: &name,
        info: &dataset.info,
        fingerprint,
        planner,
        memory_gb,
        spacing,
    })
}

/// Preprocesses what is not there or has changed, with a progress bar.
pub fn fill(
    folder: &Path,
    dataset: &Dataset,
    ids: &[String],
    plan: &Plan,
    (name, configuration): (&str, &Configuration),
    threads: usize,
    printer: &Printer,
) -> Result<Cache> {
    let cache = Cache::new(folder, configuration);
    let bar = Progress::new(printer, "preprocessing", ids.len() as u64);
    let bar = std::sync::Mutex::new(bar);
    let step = |id: &str| {
        if let Ok(mut bar) = bar.lock() {
            bar.step(|| id.to_owned());
        }
    };
    let made = cache.fill(dataset, ids, plan, configuration, threads, &step);
    if let Ok(bar) = bar.lock() {
        bar.finish();
    }
    let made = made?;
    printer.detail(&format!(
        "{name}: {} case(s) preprocessed, {} up to date",
        made.made, made.kept
    ));
    Ok(cache)
}

/// Threads for reading and preprocessing: one case in memory each.
pub fn threads(global: &Global) -> usize {
    global.threads.map_or_else(
        || {
            std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(8)
        },
        |n| n as usize,
    )
}

/// Makes the folder of preprocessed data, or clears it of what a killed run left half-written.
pub fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| {
        format!(
            "cannot make {}; choose a folder that can be written to with --out",
            folder.display()
        )
    })?;
    Ok(sweep(folder)?)
}

/// The decisions, one line a configuration.
fn table(plan: &Plan) -> String {
    let mut text = format!(
        "{} ({}), axes in the order {:?}\n{:<20} {:>14} {:>6} {:>22} {:>26} {:>7}",
        plan.dataset_name,
        plan.experiment_planner_used,
        plan.transpose_forward,
        "configuration",
        "patch",
        "batch",
        "spacing",
        "median size",
        "stages"
    );
    let list = |values: &[f64]| {
        let short = values
            .iter()
            .map(|v| format!("{}", (v * 1e4).round() / 1e4));
        short.collect::<Vec<_>>().join(" x ")
    };
    for (name, c) in &plan.configurations {
        let patch: Vec<f64> = c.patch_size.iter().map(|n| *n as f64).collect();
        text += &format!(
            "\n{name:<20} {:>14} {:>6} {:>22} {:>26} {:>7}",
            list(&patch).replace(' ', ""),
            c.batch_size,
            list(&c.spacing),
            list(&c.median_image_size_in_voxels),
            c.architecture.arch_kwargs.n_stages
        );
    }
    text
}
