//! `benchmark`: methods on a data set of the catalogue, scored by its protocol and set beside what was published.
//!
//! What is scored how is said by [`segmentation`] and [`pictures`]; here entrants follow one another and results are put together.

mod pictures;
mod segmentation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{resize, FilterType};
use image::RgbImage;
use vision_mamba_datasets::catalog::{Entry, Protocol, Task};

use super::catalog::{entry, protocol};
use crate::benchmark::members::{entrants, Entrant, Typed};
use crate::benchmark::results::{
    definition, differences, grows_worse, kinds, value, Entered, Published, Results, OVERALL,
};
use crate::benchmark::score::CaseRow;
use crate::cli::args::{BenchmarkArgs, Global};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::engine::run_folder::{write_atomic, write_json};
use crate::inference::pipeline::check_writable;
use crate::report::benchmark::{page, Looked};
use crate::runtime;

/// Widest picture on the page.
const WIDEST: u32 = 900;
const JPEG_QUALITY: u8 = 80;

/// Which cases were scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Test,
    Validation,
}

/// What came of an entrant.
struct Scored {
    rows: Vec<CaseRow>,
    part: Part,
    /// What went wrong with single cases.
    problems: Vec<String>,
    /// The prediction of each case that was scored.
    files: BTreeMap<String, PathBuf>,
}

/// Pictures on the page, with what each shows.
type Shown = Vec<(String, Vec<u8>)>;

/// A data set, ready to be scored on.
trait Scorer {
    /// What is wrong with the data set and keeps cases from being scored.
    fn failures(&self) -> &[String];
    /// What else differs from a complete download.
    fn remarks(&self) -> &[String];
    /// Predicts and scores the cases of an entrant.
    fn score(&self, entrant: &Entrant) -> Result<Scored>;
    /// A case to look at: pictures, each with its words.
    fn show(&self, case: &str, prediction: &Path, part: Part) -> Result<Shown>;
    /// What stands side by side on those pictures.
    fn beside(&self) -> &'static str;
}

/// Predicts, scores and reports. An entrant or a case that fails is named, the rest is done, and the command fails at the end.
pub fn run(args: &BenchmarkArgs, global: &Global, printer: &Printer) -> Result<()> {
    let entry = entry(&args.name)?;
    let protocol = protocol(entry, args.protocol.as_deref())?;
    check(args, entry)?;
    let mut runs = args.runs.clone();
    runs.extend(args.compare.iter().cloned());
    let all = entrants(&Typed {
        task: entry.task,
        runs: &runs,
        methods: &args.methods,
        predictions: &args.predictions,
    })?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => PathBuf::from(format!("benchmark-{}", entry.name)),
    };
    let scorer: Box<dyn Scorer> = match entry.task {
        Task::Segmentation => Box::new(segmentation::Segmentation::open(
            args, global, entry, protocol, &out, printer,
        )?),
        Task::Restoration => Box::new(pictures::Pictures::open(
            args, global, entry, protocol, &out, printer,
        )?),
    };
    check_writable(&out)?;
    runtime::prepare(global.threads, global.device.resolve()?, printer);
    let (mut done, mut files, mut part) = (Vec::new(), Vec::new(), None);
    let mut failed = scorer.failures().len();
    let mut failures = scorer.failures().to_vec();
    let mut lame = Vec::new();
    for (name, entrant) in all {
        let outcome =
            entrant.and_then(|entrant| enter(scorer.as_ref(), &entrant, protocol, printer));
        match outcome {
            Ok((entered, scored)) => {
                failed += scored.problems.len();
                let problems = scored.problems.iter().map(|p| format!("{name}: {p}"));
                failures.extend(problems);
                part = part.or(Some(scored.part));
                done.push(entered);
                files.push(scored.files);
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                failed += 1;
                let text = format!("{name}: {error:#}");
                printer.warning(&text);
                lame.push(text);
            }
        }
    }
    ensure!(
        !done.is_empty(),
        "nothing could be scored: {}",
        lame.join("; ")
    );
    failures.extend(lame);
    failures.extend(scorer.remarks().iter().cloned());
    let part = part.unwrap_or(Part::Validation);
    let mut looked = Vec::new();
    for (which, score, case) in picks(&done[0], protocol) {
        let column = &protocol.columns[0];
        let shown = files[0]
            .get(case)
            .context("its prediction is gone")
            .and_then(|file| scorer.show(case, file, part));
        match shown {
            Ok(slices) => looked.push(Looked {
                title: format!("{which}: {case} of {}, {column} {score:.3}", done[0].name),
                beside: scorer.beside(),
                slices,
            }),
            // the numbers stand without it
            Err(error) => {
                failed += 1;
                let text = format!("{case} cannot be shown: {error:#}");
                printer.warning(&text);
                failures.push(text);
            }
        }
    }
    let results = Results {
        benchmark: entry.name.clone(),
        title: entry.title.clone(),
        protocol: protocol.name.clone(),
        definition: definition(entry, protocol),
        cases: words(&done, part, entry, &args.data),
        columns: protocol.columns.clone(),
        kinds: kinds(&done, &protocol.columns),
        differences: (done.iter().skip(1))
            .flat_map(|other| differences(&done[0], other, &protocol.columns))
            .collect(),
        published: Published::of(protocol),
        caveats: caveats(entry, protocol, part),
        failures,
        entrants: done,
    };
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
            results.failures.first().cloned().unwrap_or_default()
        ),
    }
}

/// What was typed and says nothing to this data set is refused, not passed over.
fn check(args: &BenchmarkArgs, entry: &Entry) -> Result<()> {
    let pictures = [
        ("--method", !args.methods.is_empty()),
        ("--max-memory", args.max_memory.is_some()),
        ("--tile", args.tile.is_some()),
    ];
    let labels = [("--no-mirroring", args.no_mirroring)];
    let (idle, task) = match entry.task {
        Task::Segmentation => (&pictures[..], "segmented"),
        Task::Restoration => (&labels[..], "restored"),
    };
    match idle.iter().find(|(_, typed)| *typed) {
        None => Ok(()),
        Some((option, _)) => Err(Misuse::error(format!(
            "{} is {task}, to which {option} says nothing; leave it out",
            entry.title
        ))),
    }
}

/// One entrant: its numbers, and what they were made from.
fn enter(
    scorer: &dyn Scorer,
    entrant: &Entrant,
    protocol: &Protocol,
    printer: &Printer,
) -> Result<(Entered, Scored)> {
    let mut scored = scorer.score(entrant)?;
    scored.problems = gathered(&scored.problems);
    ensure!(
        !scored.rows.is_empty(),
        "no case could be scored: {}",
        scored.problems.join("; ")
    );
    for problem in &scored.problems {
        printer.warning(&format!("{}: {problem}", entrant.name));
    }
    let entered = Entered::new(
        &entrant.name,
        &entrant.kind,
        entrant.made()?,
        &protocol.columns,
        std::mem::take(&mut scored.rows),
    );
    Ok((entered, scored))
}

/// Problems of cases, `case: problem`, with one line for what befell several, as a network that cannot be read.
fn gathered(problems: &[String]) -> Vec<String> {
    const NAMED: usize = 5;
    let mut by_words: Vec<(&str, Vec<&str>)> = Vec::new();
    for problem in problems {
        let (case, words) = problem.split_once(": ").unwrap_or(("", problem));
        match by_words.iter_mut().find(|(w, _)| *w == words) {
            Some((_, cases)) => cases.push(case),
            None => by_words.push((words, vec![case])),
        }
    }
    let line = |(words, cases): (&str, Vec<&str>)| match cases.len().saturating_sub(NAMED) {
        0 => format!("{}: {words}", cases.join(", ")),
        more => format!("{} and {more} more: {words}", cases[..NAMED].join(", ")),
    };
    by_words.into_iter().map(line).collect()
}

/// Writes the report and the files beside it.
fn write(out: &Path, results: &Results, looked: &[Looked]) -> Result<()> {
    write_json(&out.join("results.json"), results)?;
    write_atomic(&out.join("results.csv"), results.csv().as_bytes())?;
    write_atomic(&out.join("table.tex"), results.latex().as_bytes())?;
    write_atomic(&out.join("report.html"), page(results, looked).as_bytes())
}

fn words(done: &[Entered], part: Part, entry: &Entry, data: &Path) -> String {
    let most = done.iter().map(|e| e.rows.len()).max().unwrap_or(0);
    let part = match part {
        Part::Test => "test",
        Part::Validation => "validation",
    };
    let what = match entry.task {
        Task::Segmentation => "case(s)",
        Task::Restoration => "picture(s)",
    };
    format!("{most} {part} {what} of {}", data.display())
}

fn caveats(entry: &Entry, protocol: &Protocol, part: Part) -> Vec<String> {
    let mut all = Vec::new();
    if part == Part::Validation {
        all.push("scored on validation cases of the training part, not on a test set: rows of test sets do not compare".to_owned());
    }
    all.extend(protocol.caveats.iter().chain(&entry.caveats).cloned());
    all
}

/// The worst, the median and the best case of an entrant by the first column.
fn picks<'a>(entrant: &'a Entered, protocol: &Protocol) -> Vec<(&'static str, f64, &'a str)> {
    let Some(column) = protocol.columns.first() else {
        return Vec::new();
    };
    let mut order: Vec<(f64, &str)> = (entrant.rows.iter())
        .filter_map(|row| Some((value(row, OVERALL, column)?, row.case.as_str())))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    if grows_worse(column) {
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
        .map(|(which, at)| (which, order[at].0, order[at].1))
        .collect()
}

/// A picture no wider than the page.
fn jpeg(picture: &RgbImage) -> Result<Vec<u8>> {
    let wide = picture.width() > WIDEST;
    let height =
        u64::from(picture.height()) * u64::from(WIDEST) / u64::from(picture.width().max(1));
    let height = u32::try_from(height.max(1))?;
    let small = wide.then(|| resize(picture, WIDEST, height, FilterType::Triangle));
    let mut out = Vec::new();
    JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY)
        .encode_image(small.as_ref().unwrap_or(picture))
        .context("cannot encode a picture")?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_befell_several_cases_is_said_once() {
        let same = (1..8).map(|n| format!("c{n}: run/x: cut short"));
        let all: Vec<String> = same.chain(["d: too small".into()]).collect();
        let expected = [
            "c1, c2, c3, c4, c5 and 2 more: run/x: cut short",
            "d: too small",
        ];
        assert_eq!(gathered(&all), expected);
    }
}
