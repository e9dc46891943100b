//! `datasets verify` and `datasets convert`, and the opening of data sets for the other commands.

use std::path::Path;
use std::sync::Mutex;

use anyhow::{bail, Result};
use vision_mamba_datasets::catalog::Task;
use vision_mamba_datasets::layout::convert::convert as write_converted;
use vision_mamba_datasets::layout::problem::{Problem, Severity};
use vision_mamba_datasets::layout::verify::{Report, Verification};
use vision_mamba_datasets::restoration::verify::Verification as Pictures;
use vision_mamba_datasets::Dataset;

use super::catalog;
use super::plan::threads;
use crate::cli::args::{DatasetsConvertArgs, DatasetsVerifyArgs, Global};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;

/// Opens a data set and says what was decided about it.
pub fn open(folder: &Path, printer: &Printer) -> Result<Dataset> {
    Ok(open_with_problems(folder, printer)?.0)
}

/// The same with what is amiss with its names and lists.
pub fn open_with_problems(folder: &Path, printer: &Printer) -> Result<(Dataset, Vec<Problem>)> {
    let (dataset, problems) = Dataset::open_with_problems(folder)?;
    printer.detail(&format!("{}: {}", folder.display(), dataset.layout));
    for note in &dataset.notes {
        printer.message(&format!("note: {note}"));
    }
    Ok((dataset, problems))
}

/// Reads all files and lists all problems.
pub fn verify(args: &DatasetsVerifyArgs, global: &Global, printer: &Printer) -> Result<()> {
    let entry = args.benchmark.as_deref().map(catalog::entry).transpose()?;
    let pictures = match entry.map(|e| e.task) {
        Some(Task::Segmentation) => None,
        _ => Pictures::start(&args.dataset).ok(),
    };
    let report = match (Verification::start(&args.dataset), pictures) {
        // pictures in pairs are asked for by name, or recognised where no label maps are
        (outcome, Some(pictures))
            if entry.is_some()
                || pictures.speaks_of_haze(&args.dataset)
                || (outcome.is_err() && pictures.has_pairs()) =>
        {
            let pictures = match entry {
                Some(entry) => pictures.against(&args.dataset, entry)?,
                None => pictures,
            };
            with_bar(printer, "verifying", pictures.cases(), |progress| {
                pictures.run(&args.dataset, threads(global), progress)
            })
        }
        (Ok(found), _) => {
            let found = entry.into_iter().fold(found, Verification::against);
            with_bar(printer, "verifying", found.cases(), |progress| {
                found.run(threads(global), progress)
            })
        }
        (Err(error), _) => {
            if args.json {
                printer.data(&serde_json::to_string_pretty(&unknown(args, &error))?);
            }
            return Err(error.into());
        }
    };
    match args.json {
        true => printer.data(&serde_json::to_string_pretty(&report)?),
        false => printer.data(&table(&report)),
    }
    match report.count(Severity::Error) {
        0 => Ok(()),
        1 => bail!("1 error in {}", args.dataset.display()),
        n => bail!("{n} errors in {}", args.dataset.display()),
    }
}

/// The report on a folder that is no data set.
fn unknown(args: &DatasetsVerifyArgs, error: &vision_mamba_datasets::DataError) -> Report {
    Report {
        dataset: args.dataset.clone(),
        layout: "unknown",
        cases: 0,
        training: 0,
        test: 0,
        problems: vec![Problem::from_error(error)],
        notes: Vec::new(),
    }
}

/// Runs work on many cases under a progress bar.
fn with_bar<R>(
    printer: &Printer,
    what: &'static str,
    cases: usize,
    work: impl FnOnce(&(dyn Fn(&str) + Sync)) -> R,
) -> R {
    let bar = Mutex::new(Progress::new(printer, what, cases as u64));
    let result = work(&|id: &str| {
        if let Ok(mut bar) = bar.lock() {
            bar.step(|| id.to_owned());
        }
    });
    if let Ok(bar) = bar.lock() {
        bar.finish();
    }
    result
}

/// A head, two lines a problem, and a count.
fn table(report: &Report) -> String {
    let mut text = format!(
        "{}: {}, {} training and {} test cases",
        report.dataset.display(),
        report.layout,
        report.training,
        report.test
    );
    for note in &report.notes {
        text += &format!("\n  {note}");
    }
    let row = |p: &Problem| {
        let file = p.file.as_deref().map(|f| {
            let below = f.strip_prefix(&report.dataset).unwrap_or(f);
            below.display().to_string()
        });
        [
            name(&p.severity),
            name(&p.kind),
            p.case.clone().unwrap_or_else(|| "-".into()),
            file.unwrap_or_else(|| "-".into()),
        ]
    };
    let rows: Vec<[String; 4]> = report.problems.iter().map(row).collect();
    if !rows.is_empty() {
        let head = ["severity", "kind", "case", "file"].map(str::to_owned);
        let width = |column: usize| {
            let cells = rows
                .iter()
                .chain([&head])
                .map(|r| r[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: [usize; 4] = std::array::from_fn(width);
        let line = |cells: &[String; 4]| {
            let padded = cells.iter().zip(widths).map(|(c, w)| format!("{c:<w$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        text += &format!("\n\n{}", line(&head));
        for (problem, cells) in report.problems.iter().zip(&rows) {
            text += &format!("\n{}\n    {}", line(cells), problem.problem);
            if !problem.remedy.is_empty() {
                text += &format!("; {}", problem.remedy);
            }
        }
        text.push('\n');
    }
    let counted = |n: usize, what: &str| match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    let counts: Vec<String> = [Severity::Error, Severity::Warning, Severity::Note]
        .iter()
        .map(|s| counted(report.count(*s), &name(s)))
        .collect();
    text + "\n" + &counts.join(", ")
}

/// The name that JSON has.
fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// Writes a data set as nnU-Net v2 raw.
pub fn convert(args: &DatasetsConvertArgs, global: &Global, printer: &Printer) -> Result<()> {
    let dataset = open(&args.dataset, printer)?;
    let given = args
        .name
        .clone()
        .unwrap_or_else(|| plain(&dataset.info.name));
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if args.name.is_some() && (given.is_empty() || !given.chars().all(fits)) {
        return Err(Misuse::error(format!(
            "--name {given}: use letters, digits, _ and - only, for it becomes a folder's name"
        )));
    }
    let (out, name) = match args.id {
        Some(id) => {
            let name = format!("Dataset{id:03}_{given}");
            (args.output.join(&name), name)
        }
        None => (args.output.clone(), given),
    };
    let cases = dataset.training_ids().len() + dataset.test_ids().len();
    let done = with_bar(printer, "converting", cases, |progress| {
        write_converted(&dataset, &out, &name, threads(global), progress)
    })?;
    printer.message(&format!(
        "{}: {} cases, {} files linked or written",
        out.display(),
        done.cases,
        done.made
    ));
    Ok(())
}

/// `Task04_Hippocampus` as `Hippocampus`, without what no folder of nnU-Net's can have in its name.
fn plain(name: &str) -> String {
    let number = |rest: &str| {
        let (digits, rest) = rest.split_once('_')?;
        let number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
        (number && !rest.is_empty()).then(|| rest.to_owned())
    };
    let prefixes = ["Dataset", "Task"];
    let found = prefixes
        .iter()
        .find_map(|prefix| number(name.strip_prefix(prefix)?));
    let text = found.unwrap_or_else(|| name.to_owned());
    let kept = |c: char| match c.is_ascii_alphanumeric() || "_-.".contains(c) {
        true => c,
        false => '_',
    };
    text.chars().map(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_other_collections_are_left_out_of_names() {
        assert_eq!(plain("Dataset721_SynthAniso"), "SynthAniso");
        assert_eq!(plain("Task04_Hippocampus"), "Hippocampus");
        assert_eq!(plain("Datasets of mine"), "Datasets_of_mine");
    }
}
