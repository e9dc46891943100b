//! `benchmark`: methods on a data set of the catalogue, scored by its protocol and set beside what was published.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{resize, FilterType};
use image::RgbImage;
use ndarray::Axis;
use tch::Device;
use vision_mamba_datasets::catalog::{Entry, Protocol, Task as Purpose};
use vision_mamba_datasets::parallel::for_each_in_order;
use vision_mamba_datasets::{read_labels, Dataset, Split};

use super::catalog::{entry, protocol};
use super::evaluate::Predictions;
use crate::benchmark::members::{entrants, Entrant, Run, Source};
use crate::benchmark::predictions::{Kept, Predictor, Settings, Task};
use crate::benchmark::results::{
    definition, differences, kinds, value, Entered, Published, Results, OVERALL,
};
use crate::benchmark::score::{CaseRow, Scoring};
use crate::cli::args::{BenchmarkArgs, CasesChoice, Global};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::{write_atomic, write_json};
use crate::inference::pipeline::check_writable;
use crate::inference::volume::PredictOptions;
use crate::report::benchmark::{page, Looked};
use crate::report::overlay::triptych;
use crate::runtime::{self, StopFlag};

/// Slices of a case on the page.
const MOST_SLICES: usize = 24;
/// Widest picture on the page.
const WIDEST: u32 = 900;
const JPEG_QUALITY: u8 = 80;

/// Predicts, scores and reports. An entrant or a case that fails is named, the rest is done, and the command fails at the end.
pub fn run(args: &BenchmarkArgs, global: &Global, printer: &Printer) -> Result<()> {
    let entry = entry(&args.name)?;
    let protocol = protocol(entry, args.protocol.as_deref())?;
    if entry.task != Purpose::Segmentation {
        return Err(Misuse::error(format!(
            "{} is scored on pictures, which benchmark cannot do yet; use {} on the folders of restored and clear pictures",
            entry.title,
            super::catalog::computed(&protocol.score)
        )));
    }
    let dataset = super::datasets::open(&args.data, printer)?;
    let mut failures = compare_with_catalogue(&dataset, entry, printer)?;
    let mut runs = args.runs.clone();
    runs.extend(args.compare.iter().cloned());
    let all = entrants(&runs, &args.predictions)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => PathBuf::from(format!("benchmark-{}", entry.name)),
    };
    check_writable(&out)?;
    let device = global.device.resolve()?;
    runtime::prepare(global.threads, device, printer);
    let work = Work {
        dataset: &dataset,
        scoring: Scoring::of(entry, protocol, dataset.info.ignore_label)?,
        choice: args.cases,
        out: &out,
        settings: Settings {
            checkpoint: args.checkpoint,
            options: PredictOptions {
                tile_step: 0.5,
                mirroring: !args.no_mirroring,
                probabilities: false,
                precision: args.precision,
            },
        },
        device,
        threads: super::plan::threads(global),
        stop: StopFlag::listen("window", printer)?,
        printer,
    };
    let (mut done, mut split, mut failed) = (Vec::new(), None, 0);
    for (name, entrant) in all {
        let outcome = entrant.and_then(|entrant| work.enter(&entrant, &protocol.columns));
        match outcome {
            Ok((entered, of, problems)) => {
                failed += problems.len();
                failures.extend(problems.into_iter().map(|p| format!("{name}: {p}")));
                split = split.or(Some(of));
                done.push(entered);
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                failed += 1;
                let text = format!("{name}: {error:#}");
                printer.warning(&text);
                failures.push(text);
            }
        }
    }
    ensure!(
        !done.is_empty(),
        "nothing could be scored: {}",
        failures.join("; ")
    );
    let results = Results {
        benchmark: entry.name.clone(),
        title: entry.title.clone(),
        protocol: protocol.name.clone(),
        definition: definition(entry, protocol),
        cases: work.words(&done, split),
        columns: protocol.columns.clone(),
        kinds: kinds(&done, &protocol.columns),
        differences: (done.iter().skip(1))
            .flat_map(|other| differences(&done[0], other, &protocol.columns))
            .collect(),
        published: Published::of(protocol),
        caveats: caveats(entry, protocol, split),
        failures,
        entrants: done,
    };
    let looked = work.look(&results.entrants[0], split, protocol)?;
    write(&out, &results, &looked)?;
    printer.data(&results.text());
    printer.message(&format!(
        "{}: report.html, results.json, results.csv, table.tex, predictions/",
        out.display()
    ));
    match failed {
        0 => Ok(()),
        n => bail!(
            "{n} case(s) or entrant(s) failed: {}",
            results.failures.last().cloned().unwrap_or_default()
        ),
    }
}

/// Writes the report and the files beside it.
pub fn write(out: &Path, results: &Results, looked: &[Looked]) -> Result<()> {
    write_json(&out.join("results.json"), results)?;
    write_atomic(&out.join("results.csv"), results.csv().as_bytes())?;
    write_atomic(&out.join("table.tex"), results.latex().as_bytes())?;
    write_atomic(&out.join("report.html"), page(results, looked).as_bytes())
}

/// What differs from a complete download, from names and headers alone.
fn compare_with_catalogue(
    dataset: &Dataset,
    entry: &Entry,
    printer: &Printer,
) -> Result<Vec<String>> {
    let found = vision_mamba_datasets::layout::verify::compared(dataset, entry);
    let other = vision_mamba_datasets::layout::problem::Kind::OtherDataset;
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

fn caveats(entry: &Entry, protocol: &Protocol, split: Option<Part>) -> Vec<String> {
    let mut all = Vec::new();
    if split != Some(Part::Test) {
        all.push("scored on validation cases of the training part, not on a test set: rows of test sets do not compare".to_owned());
    }
    all.extend(protocol.caveats.iter().chain(&entry.caveats).cloned());
    all
}

/// Which cases were scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Test,
    Validation,
}

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

/// What all entrants share.
struct Work<'a> {
    dataset: &'a Dataset,
    scoring: Scoring,
    choice: CasesChoice,
    out: &'a Path,
    settings: Settings,
    device: Device,
    threads: usize,
    stop: StopFlag,
    printer: &'a Printer,
}

impl Work<'_> {
    /// Predicts and scores the cases of an entrant; with what went wrong.
    fn enter(&self, entrant: &Entrant, columns: &[String]) -> Result<(Entered, Part, Vec<String>)> {
        self.fits(entrant)?;
        let (part, tasks) = self.tasks(entrant)?;
        let (files, mut problems) = match &entrant.source {
            Source::Files(folder) => self.found(folder, &tasks, part)?,
            Source::Runs(runs) => self.predicted(&entrant.name, runs, &tasks, part)?,
        };
        let mut bar = Progress::new(self.printer, "scoring", files.len() as u64);
        let mut rows: Vec<CaseRow> = Vec::new();
        for_each_in_order(
            &files,
            self.threads,
            |(id, file)| {
                let reference = self.dataset.label_path(id, part.split())?;
                self.scoring.case(id, file, &reference, || {
                    Ok(self.dataset.load_label(id, part.split())?)
                })
            },
            |(id, _), outcome| {
                match outcome {
                    Ok(row) => rows.push(row),
                    Err(error) => problems.push(format!("{id}: {error:#}")),
                }
                bar.step(String::new);
            },
        );
        bar.finish();
        for problem in &problems {
            self.printer
                .warning(&format!("{}: {problem}", entrant.name));
        }
        ensure!(
            !rows.is_empty(),
            "no case could be scored: {}",
            problems.join("; ")
        );
        let made = self.made(entrant)?;
        let entered = Entered::new(&entrant.name, &entrant.kind, made, columns, rows);
        Ok((entered, part, problems))
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
        let data = self.dataset;
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
            let like = folder.join(format!("{}{}", task.id, self.dataset.info.file_ending));
            match files.of(&like) {
                Ok(path) => found.push((task.id.clone(), path.to_path_buf())),
                Err(error) if part == Part::Test => problems.push(format!("{error:#}")),
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
                self.dataset,
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

    /// How an entrant was made.
    fn made(&self, entrant: &Entrant) -> Result<Vec<String>> {
        Ok(match &entrant.source {
            Source::Files(folder) => vec![format!("predictions in {}", folder.display())],
            Source::Runs(runs) => {
                let mut lines = Vec::new();
                for run in runs {
                    lines.push(format!("run {}", run.folder.display()));
                    lines.push(serde_json::to_string_pretty(&run.config)?);
                }
                lines
            }
        })
    }

    fn words(&self, done: &[Entered], split: Option<Part>) -> String {
        let most = done.iter().map(|e| e.rows.len()).max().unwrap_or(0);
        let part = match split {
            Some(Part::Test) => "test",
            _ => "validation",
        };
        format!("{most} {part} case(s) of {}", self.dataset.root.display())
    }

    /// The worst, the median and the best case of an entrant, to look through.
    fn look(
        &self,
        entrant: &Entered,
        split: Option<Part>,
        protocol: &Protocol,
    ) -> Result<Vec<Looked>> {
        let split = split.unwrap_or(Part::Validation).split();
        let Some(column) = protocol.columns.first() else {
            return Ok(Vec::new());
        };
        let mut order: Vec<(f64, &CaseRow)> = (entrant.rows.iter())
            .filter_map(|row| Some((value(row, OVERALL, column)?, row)))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        if ["HD", "HD95", "ASSD"].contains(&column.as_str()) {
            order.reverse();
        }
        let picks = match order.len() {
            0 => Vec::new(),
            1 => vec![("only", 0)],
            2 => vec![("worst", 0), ("best", 1)],
            n => vec![("worst", 0), ("median", n / 2), ("best", n - 1)],
        };
        picks
            .into_iter()
            .map(|(which, at)| {
                let (score, row) = order[at];
                let title = format!(
                    "{which}: {} of {}, {column} {score:.3}",
                    row.case, entrant.name
                );
                let prediction = self.prediction_of(entrant, &row.case)?;
                Ok(Looked {
                    title,
                    slices: self.slices(&row.case, &prediction, split)?,
                })
            })
            .collect()
    }

    fn prediction_of(&self, entrant: &Entered, case: &str) -> Result<PathBuf> {
        let own = self.out.join("predictions").join(&entrant.name);
        let folder = match entrant
            .made
            .first()
            .and_then(|m| m.strip_prefix("predictions in "))
        {
            Some(folder) => PathBuf::from(folder),
            None => own,
        };
        let like = folder.join(format!("{case}{}", self.dataset.info.file_ending));
        Ok(Predictions::in_folder(&folder)?.of(&like)?.to_path_buf())
    }

    /// Slices of a case, from where there is something to see.
    fn slices(&self, id: &str, prediction: &Path, split: Split) -> Result<Vec<(String, Vec<u8>)>> {
        let image = self.dataset.load_image(id, split)?;
        let found = read_labels(prediction)?;
        let expected = self.dataset.load_label(id, split)?;
        let names: Vec<(i16, String)> = (self.dataset.info.labels.iter())
            .map(|(name, value)| (*value, name.clone()))
            .collect();
        let image = image.data.index_axis_move(Axis(0), 0);
        let planes = |a: ndarray::ArrayD<f32>| super::evaluate::plane(a);
        if image.ndim() == 2 {
            let picture = triptych(
                &planes(image)?,
                Some(&super::evaluate::plane(expected.data)?),
                &super::evaluate::plane(found.data)?,
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
                    Some(&super::evaluate::plane(
                        expected.data.index_axis(Axis(0), i).to_owned(),
                    )?),
                    &super::evaluate::plane(found.data.index_axis(Axis(0), i).to_owned())?,
                    &names,
                    &format!("{id}, slice {i}"),
                );
                Ok((format!("slice {i} of {total}"), jpeg(&picture)?))
            })
            .collect()
    }
}

/// A picture no wider than the page.
pub fn jpeg(picture: &RgbImage) -> Result<Vec<u8>> {
    let wide = picture.width() > WIDEST;
    let height = picture.height() * WIDEST / picture.width().max(1);
    let small = wide.then(|| resize(picture, WIDEST, height.max(1), FilterType::Triangle));
    let mut out = Vec::new();
    JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY)
        .encode_image(small.as_ref().unwrap_or(picture))
        .context("cannot encode a picture")?;
    Ok(out)
}
