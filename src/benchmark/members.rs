//! What a benchmark compares: runs of ours, folders of runs, methods without runs, and predictions made elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{bail, Result};
use vision_mamba_datasets::catalog::Task;
use vision_mamba_datasets::DatasetJson;

use crate::cli::args::DehazeMethod;
use crate::cli::exit::Misuse;
use crate::engine::config::RunConfig;
use crate::engine::restoration::RestorationConfig;
use crate::engine::run_folder::RunFolder;
use crate::inference::member::run_folders;

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Entrant {
    /// What it is called, unique among all.
    pub name: String,
    /// Runs that differ in their seeds and folds alone share it: their spread is told.
    pub kind: String,
    /// Where its predictions come from.
    pub source: Source,
}

/// Where predictions come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Runs that segment: one, or the folds of one network.
    Runs(Vec<Run>),
    /// A run that restores pictures.
    Restorer(PathBuf, Box<RestorationConfig>),
    /// A way of dehazing that needs no run.
    Method(DehazeMethod),
    /// Files that another program made.
    Files(PathBuf),
}

/// A run folder and its settings.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its folder.
    pub folder: PathBuf,
    /// Its settings.
    pub config: RunConfig,
    /// The labels and channels it was trained on.
    pub info: DatasetJson,
}

impl Entrant {
    /// The runs behind it.
    pub fn runs(&self) -> &[Run] {
        match &self.source {
            Source::Runs(runs) => runs,
            _ => &[],
        }
    }

    /// How it was made, in words.
    pub fn made(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        match &self.source {
            Source::Files(folder) => lines.push(format!("predictions in {}", folder.display())),
            Source::Method(method) => lines.push(method.told().into()),
            Source::Restorer(folder, config) => {
                lines.push(format!("run {}", folder.display()));
                lines.push(serde_json::to_string_pretty(config)?);
            }
            Source::Runs(runs) => {
                for run in runs {
                    lines.push(format!("run {}", run.folder.display()));
                    lines.push(serde_json::to_string_pretty(&run.config)?);
                }
            }
        }
        Ok(lines)
    }
}

/// What was typed to say who enters.
pub struct Typed<'a> {
    /// What the data set is for.
    pub task: Task,
    /// `--run` and `--compare`.
    pub runs: &'a [PathBuf],
    /// `--method`
    pub methods: &'a [DehazeMethod],
    /// `--pred`
    pub predictions: &'a [String],
}

/// Who enters. What is wrong with one is told when its turn comes, so that the others are done.
pub fn entrants(typed: &Typed) -> Result<Vec<(String, Result<Entrant>)>> {
    let mut all: Vec<(String, Result<Entrant>)> = Vec::new();
    for path in typed.runs {
        let entrant = match typed.task {
            Task::Segmentation => of_runs(path),
            Task::Restoration => of_restorer(path),
        };
        all.push((short(path), entrant));
    }
    for method in typed.methods {
        let name = method.name().to_owned();
        let entrant = Entrant {
            name: name.clone(),
            kind: name.clone(),
            source: Source::Method(*method),
        };
        all.push((name, Ok(entrant)));
    }
    for text in typed.predictions {
        let (name, folder) = match text.split_once('=') {
            Some((name, folder)) => (name.to_owned(), PathBuf::from(folder)),
            None => (short(Path::new(text)), PathBuf::from(text)),
        };
        let made = match folder.is_dir() {
            true => Ok(Entrant {
                name: name.clone(),
                kind: name.clone(),
                source: Source::Files(folder),
            }),
            false => Err(Misuse::error(format!(
                "--pred {}: no such folder",
                folder.display()
            ))),
        };
        all.push((name, made));
    }
    if all.is_empty() {
        return Err(Misuse::error(match typed.task {
            Task::Segmentation => "give a --run, or a folder of predictions as --pred NAME=DIR",
            Task::Restoration => {
                "give a --run, a folder of restored pictures as --pred NAME=DIR, or --method dcp"
            }
        }));
    }
    // names are those of folders, made unique by a number
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (name, entrant) in &mut all {
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        if *times > 1 {
            *name = format!("{name}-{times}");
        }
        if let Ok(entrant) = entrant {
            entrant.name.clone_from(name);
        }
    }
    Ok(all)
}

fn short(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let part = |p: Option<&std::ffi::OsStr>| p.map(|n| n.to_string_lossy().into_owned());
    let own = part(whole.file_name()).unwrap_or_else(|| "run".into());
    match part(whole.parent().and_then(Path::file_name)) {
        // fold_0 alone says little
        Some(above) if own.starts_with("fold_") => format!("{above}-{own}"),
        _ => own,
    }
}

fn of_runs(path: &Path) -> Result<Entrant> {
    let folders = run_folders(std::slice::from_ref(&path.to_path_buf()))?;
    let runs = folders
        .into_iter()
        .map(|folder| {
            let opened = RunFolder::open(&folder)?;
            Ok(Run {
                config: RunFolder::read_json(&opened.config())?,
                info: DatasetJson::read(&opened.dataset())?,
                folder,
            })
        })
        .collect::<Result<Vec<Run>>>()?;
    let first = &runs[0].config;
    Ok(Entrant {
        name: String::new(),
        kind: format!(
            "{} {}{}",
            first.preset,
            first.configuration,
            changes(&first.overrides)
        ),
        source: Source::Runs(runs),
    })
}

fn of_restorer(path: &Path) -> Result<Entrant> {
    let folder = RunFolder::open(path)?;
    let task = folder.network()?.task();
    if task != vision_mamba_models::Task::Restoration {
        bail!(
            "{} is a run for {task}, but this data set is scored on restored pictures",
            path.display()
        );
    }
    let config: RestorationConfig = RunFolder::read_json(&folder.config())?;
    Ok(Entrant {
        name: String::new(),
        kind: format!("{}{}", config.preset, changes(&config.overrides)),
        source: Source::Restorer(path.into(), Box::new(config)),
    })
}

/// What was set beside the preset.
fn changes(overrides: &[(String, String)]) -> String {
    let each = overrides.iter().map(|(k, v)| format!(" {k}={v}"));
    each.collect()
}
