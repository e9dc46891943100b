//! `datasets list` and `datasets show`: the catalogue of benchmark data sets.

use anyhow::Result;
use vision_mamba_datasets::catalog::{entries, find, Entry, Part, Protocol, Score, Task, Verified};

use crate::cli::args::{DatasetsListArgs, DatasetsShowArgs};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;

/// An entry by name, or what could have been meant.
pub fn entry(name: &str) -> Result<&'static Entry> {
    find(name).ok_or_else(|| {
        let near = |e: &&Entry| {
            let given = name.to_lowercase();
            e.name.contains(&given) || given.contains(&e.name) || e.title.to_lowercase().contains(&given)
        };
        let meant: Vec<&str> = entries().iter().filter(near).map(|e| e.name.as_str()).collect();
        let hint = match meant.is_empty() {
            true => String::new(),
            false => format!(" Did you mean {}?", meant.join(" or ")),
        };
        Misuse::error(format!(
            "there is no benchmark data set '{name}'; `vision-mamba datasets list` names them.{hint}"
        ))
    })
}

/// A protocol of an entry by name, the first without one.
pub fn protocol<'a>(entry: &'a Entry, name: Option<&str>) -> Result<&'a Protocol> {
    entry.protocol(name).ok_or_else(|| {
        let names: Vec<&str> = entry.protocols.iter().map(|p| p.name.as_str()).collect();
        Misuse::error(format!(
            "{} has no protocol '{}'; use one of: {}",
            entry.name,
            name.unwrap_or_default(),
            names.join(", ")
        ))
    })
}

/// Prints a line for each data set.
pub fn list(args: &DatasetsListArgs, printer: &Printer) -> Result<()> {
    if args.json {
        printer.data(&serde_json::to_string_pretty(entries())?);
        return Ok(());
    }
    let row = |e: &Entry| {
        [
            e.name.clone(),
            e.modality.clone(),
            e.cases
                .iter()
                .map(|c| format!("{} {}", numbers(&c.numbers), part(c.part)))
                .collect::<Vec<_>>()
                .join(", "),
            e.protocols
                .iter()
                .map(|p| p.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        ]
    };
    for (task, title) in [
        (Task::Segmentation, "segmentation"),
        (Task::Restoration, "restoration"),
    ] {
        let head = [title, "modality", "cases", "protocols"].map(str::to_owned);
        let rows: Vec<[String; 4]> = std::iter::once(head)
            .chain(entries().iter().filter(|e| e.task == task).map(row))
            .collect();
        let width = |column: usize| {
            rows.iter()
                .map(|r| r[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; 4] = std::array::from_fn(width);
        for row in &rows {
            let cells = row.iter().zip(widths).map(|(cell, w)| format!("{cell:w$}"));
            printer.data(cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        printer.data("");
    }
    printer.data("`vision-mamba datasets show NAME` tells where each is obtained, how it lies on disk and what was published.");
    Ok(())
}

/// Prints all about one.
pub fn show(args: &DatasetsShowArgs, printer: &Printer) -> Result<()> {
    let entry = entry(&args.name)?;
    match args.json {
        true => printer.data(&serde_json::to_string_pretty(entry)?),
        false => printer.data(described(entry).trim_end()),
    }
    Ok(())
}

fn numbers(numbers: &[usize]) -> String {
    let all: Vec<String> = numbers.iter().map(usize::to_string).collect();
    all.join("/")
}

fn part(part: Part) -> &'static str {
    match part {
        Part::Training => "training",
        Part::Validation => "validation",
        Part::Test => "test",
    }
}

fn described(entry: &Entry) -> String {
    let mut text = format!(
        "{} ({}): {}, {}\n{}\nlicence: {}\npage: {}\n",
        entry.title,
        entry.name,
        entry.modality,
        match (entry.task, entry.dimensions) {
            (Task::Segmentation, n) => format!("{n}-D segmentation"),
            (Task::Restoration, _) => "restoration of pictures".into(),
        },
        entry.citation,
        entry.licence,
        entry.page
    );
    text += "\nTo obtain and place it:\n";
    for (number, step) in entry.obtain.iter().enumerate() {
        text += &format!("  {}. {step}\n", number + 1);
    }
    text += "\nFolder:\n";
    for line in entry.tree.trim_matches('\n').lines() {
        text += &format!("  {line}\n");
    }
    text += "\nCases:\n";
    for count in &entry.cases {
        text += &format!(
            "  {} {}: {}{}\n",
            numbers(&count.numbers),
            part(count.part),
            count.of,
            if count.public {
                ""
            } else {
                ", reference not public"
            }
        );
    }
    text += &format!("  split: {}\n", entry.split);
    if !entry.labels.is_empty() {
        let named = |l: &vision_mamba_datasets::catalog::Label| match l.stored {
            Some(stored) if stored != i32::from(l.value) => {
                format!("{} {} (stored as {stored})", l.value, l.name)
            }
            _ => format!("{} {}", l.value, l.name),
        };
        let labels: Vec<String> = entry.labels.iter().map(named).collect();
        text += &format!("\nLabels: {}\n", labels.join(", "));
    }
    for region in &entry.regions {
        let values: Vec<String> = region.values.iter().map(i16::to_string).collect();
        text += &format!("Region {}: {}\n", region.name, values.join(", "));
    }
    for caveat in &entry.caveats {
        text += &format!("Note: {caveat}\n");
    }
    for (number, protocol) in entry.protocols.iter().enumerate() {
        let default = if number == 0 {
            " (taken unless another is named)"
        } else {
            ""
        };
        text += &format!("\nProtocol {}{default}\n", protocol.name);
        for (what, words) in [
            ("source", &protocol.source),
            ("preprocessing", &protocol.preprocessing),
            ("resolution", &protocol.resolution),
            ("metric", &protocol.metric),
            ("empty masks", &protocol.empty),
            ("averaged", &protocol.averaged),
        ] {
            text += &format!("  {what}: {words}\n");
        }
        text += &format!("  computed here: {}\n", computed(&protocol.score));
        for caveat in &protocol.caveats {
            text += &format!("  note: {caveat}\n");
        }
        text += &published(protocol);
    }
    text
}

/// How a protocol is computed, as a command.
pub fn computed(score: &Score) -> String {
    match score {
        Score::Classes { convention, .. } => {
            format!("`evaluate segmentation --convention {convention}`")
        }
        Score::Script { script } => format!("`evaluate segmentation --protocol {script}`"),
        Score::Pictures { crop_border: 0 } => "`evaluate restoration`".into(),
        Score::Pictures { crop_border } => {
            format!("`evaluate restoration --crop-border {crop_border}`")
        }
    }
}

/// The table of published rows.
fn published(protocol: &Protocol) -> String {
    if protocol.rows.is_empty() {
        return "  no published number with a verified source\n".into();
    }
    let width = protocol
        .rows
        .iter()
        .map(|r| r.network.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = format!("  {:width$}", "published");
    for column in &protocol.columns {
        text += &format!("  {column:>8}");
    }
    text.push('\n');
    for row in &protocol.rows {
        text += &format!("  {:width$}", row.network);
        for column in &protocol.columns {
            let value = row
                .values
                .get(column)
                .map_or("-".into(), |v| format!("{v:.4}"));
            text += &format!("  {value:>8}");
        }
        let second = match row.verified {
            Verified::Read => "",
            Verified::Second => ", read in another's table",
        };
        text += &format!("  {}{second}", row.source);
        if let Some(caveat) = &row.caveat {
            text += &format!("; {caveat}");
        }
        text.push('\n');
    }
    text
}
