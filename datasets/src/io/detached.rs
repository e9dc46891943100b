//! Files that a header names besides itself.

use std::path::Path;

use super::source::{Parsed, Source};
use super::stored::Numbers;
use crate::{DataError, Result};

/// The numbers of the files that the header at `path` names, one file after another.
pub(super) fn read(
    path: &Path,
    format: &'static str,
    names: &[String],
    voxels: impl Fn(Source) -> Parsed<Numbers>,
) -> Result<Numbers> {
    let mut all: Option<Numbers> = None;
    for name in names {
        let file = path.with_file_name(name);
        let part = voxels(Source::open(&file)?);
        let part = part.map_err(|problem| DataError::damaged(&file, format, problem))?;
        match &mut all {
            None => all = Some(part),
            Some(all) => all.append(part),
        }
    }
    all.ok_or_else(|| DataError::damaged(path, format, "it names no file of voxels"))
}

/// The files that `volume.raw` names, or `slice%03d.raw 1 40 1`: a pattern with first, last and step.
pub(super) fn names(value: &str) -> Parsed<Vec<String>> {
    const MOST_FILES: usize = 100_000;
    let words: Vec<&str> = value.split_whitespace().collect();
    let pattern = words
        .split_first()
        .filter(|(p, _)| p.contains('%'))
        .and_then(|(pattern, rest)| {
            let numbers = rest
                .iter()
                .map(|w| w.parse::<i64>().ok())
                .collect::<Option<Vec<_>>>()?;
            Some((*pattern, numbers))
        });
    let (pattern, first, last, step) = match &pattern {
        Some((pattern, numbers)) if numbers.len() >= 3 && numbers[2] != 0 => {
            (*pattern, numbers[0], numbers[1], numbers[2])
        }
        _ => return Ok(vec![value.to_owned()]),
    };
    let (before, after) = pattern.split_once('%').unwrap_or((pattern, ""));
    let (width, after) = after
        .split_once('d')
        .ok_or_else(|| format!("`{pattern}` is no pattern of file names"))?;
    let zeros = width.starts_with('0');
    let width = if width.is_empty() {
        Some(0)
    } else {
        width.parse().ok().filter(|w| *w < 32)
    };
    let width: usize = width.ok_or_else(|| format!("`{pattern}` is no pattern of file names"))?;
    let mut names = Vec::new();
    let mut number = first;
    while if step > 0 {
        number <= last
    } else {
        number >= last
    } {
        if names.len() == MOST_FILES {
            return Err(format!("`{value}` names more than {MOST_FILES} files"));
        }
        names.push(match zeros {
            true => format!("{before}{number:0width$}{after}"),
            false => format!("{before}{number:width$}{after}"),
        });
        number = number.saturating_add(step);
    }
    Ok(names)
}
