//! Data sets of label maps: predicted, or found predicted, and scored by class or by a script.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Result};
use ndarray::Axis;
use tch::Device;
use vision_mamba_datasets::catalog::{Entry, Protocol};
use vision_mamba_datasets::layout::problem::Kind;
use vision_mamba_datasets::layout::verify::compared;
use vision_mamba_datasets::parallel::for_each_in_order;
use vision_mamba_datasets::{read_labels, Dataset, Split};

use super::{jpeg, Part, Scored, Scorer, Shown};
use crate::benchmark::members::{Entrant, Run, Source};
use crate::benchmark::predictions::{file_into, Kept, Predictor, Settings, Task};
use crate::benchmark::score::{CaseRow, Scoring};
use crate::cli::args::{BenchmarkArgs, CasesChoice, Global};
use crate::cli::exit::Interrupted;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::commands::evaluate::{plane, Predictions};
use crate::inference::volume::PredictOptions;
use crate::report::overlay::triptych;
use crate::runtime::StopFlag;
use crate::speed::Speed;

/// Slices of a case on the page.
const MOST_SLICES: usize = 24;

impl Part {
    fn split(self) -> Split {
        match self {
            Part::Test => Split::Test,
            Part::Validation => Split::Training,
        }
    }
}

/// The label maps of cases by name, and what went wrong with others.
type Found = (Vec<(String, PathBuf)>, Vec<String>);

/// A data set of images and label maps.
pub(super) struct Segmentation<'a> {
    dataset: Dataset,
    /// What keeps cases from being scored.
    failures: Vec<String>,
    /// What else differs from a complete download.
    remarks: Vec<String>,
    scoring: Scoring,
    choice: CasesChoice,
    out: PathBuf,
    settings: Settings,
    device: Device,
    threads: usize,
    stop: StopFlag,
    printer: &'a Printer,
}

impl<'a> Segmentation<'a> {
    pub(super) fn open(
        args: &BenchmarkArgs,
        global: &Global,
        entry: &'static Entry,
        protocol: &Protocol,
        out: &Path,
        printer: &'a Printer,
    ) -> Result<Self> {
        let (dataset, problems) =
            crate::commands::datasets::open_with_problems(&args.data, printer)?;
        let mut failures = Vec::new();
        for problem in problems {
            let cases = [Kind::OrphanLabel, Kind::DuplicateCase, Kind::MissingImage];
            if cases.contains(&problem.kind) {
                let at = problem.file.as_deref().map(|p| p.display().to_string());
                let of = problem.case.clone().or(at).unwrap_or_default();
                failures.push(format!("{of}: {}; {}", problem.problem, problem.remedy));
            }
        }
        // where some test cases have a reference, the others should have one
        let labels: Vec<(String, PathBuf)> = (dataset.test_ids().into_iter())
            .filter_map(|id| Some((id.clone(), dataset.label_path(&id, Split::Test).ok()?)))
            .collect();
        if labels.iter().any(|(_, path)| path.is_file()) {
            let missing = labels.iter().filter(|(_, path)| !path.is_file());
            failures.extend(missing.map(|(id, path)| {
                format!("{id}: its reference {} is missing; add it", path.display())
            }));
        }
        for failure in &failures {
            printer.warning(failure);
        }
        Ok(Self {
            remarks: compare_with_catalogue(&dataset, entry, printer)?,
            scoring: Scoring::of(entry, protocol, dataset.info.ignore_label)?,
            failures,
            choice: args.cases,
            out: out.into(),
            settings: Settings {
                checkpoint: args.checkpoint,
                options: PredictOptions {
                    tile_step: 0.5,
                    mirroring: !args.no_mirroring,
                    probabilities: false,
                    precision: args.precision,
                    speed: Speed::default(),
                },
            },
            device: global.device.resolve()?,
            threads: crate::commands::plan::threads(global),
            stop: StopFlag::listen("window", printer)?,
            printer,
            dataset,
        })
    }

    /// Whether runs were trained for this data set's labels and channels.
    fn fits(&self, entrant: &Entrant) -> Result<()> {
        let info = &self.dataset.info;
        for run in entrant.runs() {
            let (own, data) = (run.info.label_values(), info.label_values());
            ensure!(
                own == data,
                "{} was trained on the labels {own:?}, the data set has {data:?}",
                run.folder.display()
            );
            ensure!(
                run.info.channel_names.len() == info.channel_names.len(),
                "{} takes {} channels, the data set has {}",
                run.folder.display(),
                run.info.channel_names.len(),
                info.channel_names.len()
            );
        }
        Ok(())
    }

    /// The cases to score: the test set where it has references, else those that runs held out.
    fn tasks(&self, entrant: &Entrant) -> Result<(Part, Vec<Task>)> {
        let data = &self.dataset;
        let has_label = |id: &String, split| data.label_path(id, split).is_ok_and(|p| p.is_file());
        let runs = entrant.runs();
        let every: Vec<usize> = (0..runs.len()).collect();
        let test: Vec<Task> = (data.test_ids().into_iter())
            .filter(|id| has_label(id, Split::Test))
            .map(|id| Task {
                id,
                runs: every.clone(),
            })
            .collect();
        if self.choice == CasesChoice::Test
            || (self.choice == CasesChoice::Auto && !test.is_empty())
        {
            ensure!(
                !test.is_empty(),
                "{} has no test case with a reference; use --cases validation",
                data.root.display()
            );
            return Ok((Part::Test, test));
        }
        let held = |run: &Run, id: &String| {
            run.config.validation_ids.contains(id) && !run.config.training_ids.contains(id)
        };
        let mut tasks: Vec<Task> = Vec::new();
        for id in data.training_ids() {
            let by: Vec<usize> = match runs.is_empty() {
                // files are of the cases that they are of
                true => Vec::new(),
                false => every
                    .iter()
                    .copied()
                    .filter(|&i| held(&runs[i], &id))
                    .collect(),
            };
            if runs.is_empty() || !by.is_empty() {
                tasks.push(Task { id, runs: by });
            }
        }
        ensure!(
            !tasks.is_empty(),
            "its runs held out no case of {} (trained on `--fold all`, or on another data set): scores on training cases say nothing",
            data.root.display()
        );
        Ok((Part::Validation, tasks))
    }

    /// Predictions that another program made. Of test cases all must be there, of validation cases those that are there count.
    fn found(&self, folder: &Path, tasks: &[Task], part: Part) -> Result<Found> {
        let files = Predictions::in_folder(folder)?;
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for task in tasks {
            let like = |id: &str| folder.join(format!("{id}{}", self.dataset.info.file_ending));
            // TransUNet's and Mamba-UNet's scripts write CASE_pred.nii.gz
            let named = files.of(&like(&format!("{}_pred", task.id)));
            match files
                .of(&like(&task.id))
                .or_else(|error| named.or(Err(error)))
            {
                Ok(path) => found.push((task.id.clone(), path.to_path_buf())),
                Err(error) if part == Part::Test => {
                    problems.push(format!("{}: {error:#}", task.id))
                }
                Err(_) => {}
            }
        }
        ensure!(
            !found.is_empty(),
            "{} holds no prediction of a case",
            folder.display()
        );
        Ok((found, problems))
    }

    fn predicted(&self, name: &str, runs: &[Run], tasks: &[Task], part: Part) -> Result<Found> {
        let mut kept = Kept::open(&self.out.join("predictions").join(name))?;
        let mut predictor = Predictor::new(runs, &self.settings, self.device)?;
        let (mut files, mut problems, mut reused) = (Vec::new(), Vec::new(), 0);
        let mut bar = Progress::new(self.printer, "predicting", tasks.len() as u64);
        // cases of the same runs follow one another, so that networks are loaded once
        let mut order: Vec<&Task> = tasks.iter().collect();
        order.sort_by(|a, b| a.runs.cmp(&b.runs));
        for task in order {
            let outcome = predictor.predict(
                task,
                &self.dataset,
                part.split(),
                &mut kept,
                &mut || match self.stop.is_set() {
                    true => Err(Interrupted.into()),
                    false => Ok(()),
                },
            );
            match outcome {
                Ok((file, was_there)) => {
                    reused += usize::from(was_there);
                    files.push((task.id.clone(), file));
                }
                Err(error) if error.is::<Interrupted>() => {
                    bar.finish();
                    self.printer
                        .message("stopped; the same command goes on from here");
                    return Err(error);
                }
                Err(error) => problems.push(format!("{}: {error:#}", task.id)),
            }
            bar.step(|| format!("{name} {}", task.id));
        }
        bar.finish();
        if reused > 0 {
            self.printer.message(&format!("{name}: {reused} prediction(s) of before are used, nothing they follow from has changed"));
        }
        files.sort();
        Ok((files, problems))
    }

    /// Cases whose image is another's file again are left out and named.
    fn once(&self, tasks: Vec<Task>, part: Part) -> Result<(Vec<Task>, Vec<String>)> {
        let mut seen: HashMap<u64, String> = HashMap::new();
        let (mut kept, mut twice) = (Vec::new(), Vec::new());
        for task in tasks {
            let mut hasher = DefaultHasher::new();
            let paths = self.dataset.image_paths(&task.id, part.split())?;
            // what cannot be read is named when its turn comes
            if paths.iter().any(|p| file_into(p, &mut hasher).is_err()) {
                kept.push(task);
                continue;
            }
            match seen.get(&hasher.finish()) {
                Some(first) => twice.push(format!(
                    "{}: its image is that of {first} again and is left out; keep one of them",
                    task.id
                )),
                None => {
                    seen.insert(hasher.finish(), task.id.clone());
                    kept.push(task);
                }
            }
        }
        Ok((kept, twice))
    }

    /// Slices of a case, from where there is something to see.
    fn slices(&self, id: &str, prediction: &Path, split: Split) -> Result<Shown> {
        let image = self.dataset.load_image(id, split)?;
        let found = read_labels(prediction)?;
        let expected = self.dataset.load_label(id, split)?;
        let names: Vec<(i16, String)> = (self.dataset.info.labels.iter())
            .map(|(name, value)| (*value, name.clone()))
            .collect();
        let image = image.data.index_axis_move(Axis(0), 0);
        let planes = |a: ndarray::ArrayD<f32>| plane(a);
        if image.ndim() == 2 {
            let picture = triptych(
                &planes(image)?,
                Some(&plane(expected.data)?),
                &plane(found.data)?,
                &names,
                id,
            );
            return Ok(vec![(id.to_owned(), jpeg(&picture)?)]);
        }
        let total = image.shape()[0];
        let any = |i: usize| {
            let some = |a: &ndarray::ArrayD<i16>| a.index_axis(Axis(0), i).iter().any(|v| *v > 0);
            some(&expected.data) || some(&found.data)
        };
        let first = (0..total).find(|i| any(*i)).unwrap_or(0);
        let last = (0..total).rev().find(|i| any(*i)).unwrap_or(total - 1);
        let count = (last - first + 1).min(MOST_SLICES);
        (0..count)
            .map(|n| {
                let i = first + (last - first) * n / (count - 1).max(1);
                let picture = triptych(
                    &planes(image.index_axis(Axis(0), i).to_owned())?,
                    Some(&plane(expected.data.index_axis(Axis(0), i).to_owned())?),
                    &plane(found.data.index_axis(Axis(0), i).to_owned())?,
                    &names,
                    &format!("{id}, slice {i}"),
                );
                Ok((format!("slice {i} of {total}"), jpeg(&picture)?))
            })
            .collect()
    }
}

impl Scorer for Segmentation<'_> {
    fn failures(&self) -> &[String] {
        &self.failures
    }

    fn remarks(&self) -> &[String] {
        &self.remarks
    }

    fn score(&self, entrant: &Entrant) -> Result<Scored> {
        self.fits(entrant)?;
        let (part, tasks) = self.tasks(entrant)?;
        let (tasks, twice) = self.once(tasks, part)?;
        let (files, mut problems) = match &entrant.source {
            Source::Files(folder) => self.found(folder, &tasks, part)?,
            Source::Runs(runs) => self.predicted(&entrant.name, runs, &tasks, part)?,
            Source::Restorer(..) | Source::Method(_) => bail!("it makes no label maps"),
        };
        problems.extend(twice);
        let mut bar = Progress::new(self.printer, "scoring", files.len() as u64);
        let (mut rows, mut broken): (Vec<CaseRow>, Vec<_>) = (Vec::new(), Vec::new());
        for_each_in_order(
            &files,
            self.threads,
            |(id, file)| {
                if self.stop.is_set() {
                    return Err(Interrupted.into());
                }
                let reference = self.dataset.label_path(id, part.split())?;
                self.scoring.case(id, file, &reference, || {
                    Ok(self.dataset.load_label(id, part.split())?)
                })
            },
            |(id, _), outcome| {
                match outcome {
                    Ok(row) => rows.push(row),
                    Err(error) => broken.push((id.clone(), error)),
                }
                bar.step(String::new);
            },
        );
        bar.finish();
        let mut files: BTreeMap<String, PathBuf> = files.into_iter().collect();
        for (id, error) in broken {
            if error.is::<Interrupted>() {
                return Err(error);
            }
            files.remove(&id);
            problems.push(format!("{id}: {error:#}"));
        }
        Ok(Scored {
            rows,
            part,
            problems,
            files,
        })
    }

    fn show(&self, case: &str, prediction: &Path, part: Part) -> Result<Shown> {
        self.slices(case, prediction, part.split())
    }

    fn beside(&self) -> &'static str {
        "image, reference and prediction"
    }
}

/// What differs from a complete download, from names and headers alone.
fn compare_with_catalogue(
    dataset: &Dataset,
    entry: &Entry,
    printer: &Printer,
) -> Result<Vec<String>> {
    let found = compared(dataset, entry);
    let other = Kind::OtherDataset;
    for problem in &found {
        printer.warning(&format!("{}; {}", problem.problem, problem.remedy));
    }
    if let Some(problem) = found.iter().find(|p| p.kind == other) {
        bail!(
            "{} is not {}: {}; {}",
            dataset.root.display(),
            entry.title,
            problem.problem,
            problem.remedy
        );
    }
    Ok(found.into_iter().map(|p| p.problem).collect())
}
