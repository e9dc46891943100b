//! What a folder holds, by file name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::io::known_endings;
use crate::{DataError, Result};

/// An image file's path, its name without the ending, and the ending as it is usually written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageFile {
    pub path: PathBuf,
    pub stem: String,
    pub ending: &'static str,
}

/// Names that other programs leave in folders: hidden files, the index files of a Mac and the folder that its archives keep them in.
pub(crate) fn is_junk(name: &str) -> bool {
    name.starts_with('.') || ["__MACOSX", "Thumbs.db", "desktop.ini"].contains(&name)
}

/// Entries of a folder: subfolders and files, sorted by name, without hidden ones, which are other programs' business: the index files of a
/// Mac, half-written images.
pub(super) fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(|e| DataError::listing(folder, e))? {
        let path = entry.map_err(|e| DataError::listing(folder, e))?.path();
        if is_junk(&name_of(&path)) {
            continue;
        }
        match path.is_dir() {
            true => folders.push(path),
            false => files.push(path),
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

/// The path below a folder, each part spelt as on disk: where nothing is called exactly so, upper and lower case are alike.
pub(super) fn below(root: &Path, relative: &str) -> PathBuf {
    relative.split('/').fold(root.to_owned(), |folder, name| {
        let exact = folder.join(name);
        if exact.exists() {
            return exact;
        }
        let (folders, files) = entries(&folder).unwrap_or_default();
        let alike = |p: &PathBuf| name_of(p).eq_ignore_ascii_case(name);
        folders
            .into_iter()
            .chain(files)
            .find(alike)
            .unwrap_or(exact)
    })
}

/// The last part of a path, as text.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Files whose ending can be read, and the others.
pub(super) fn images(files: Vec<PathBuf>) -> (Vec<ImageFile>, Vec<PathBuf>) {
    let known = known_endings();
    let (mut images, mut others) = (Vec::new(), Vec::new());
    for path in files {
        match known.split(&name_of(&path)) {
            Some((stem, ending)) if !stem.is_empty() => images.push(ImageFile {
                stem: stem.to_owned(),
                ending,
                path,
            }),
            _ => others.push(path),
        }
    }
    (images, others)
}

/// The ending that most files have; of equally many the first in the alphabet.
pub(super) fn commonest_ending<'a>(endings: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for ending in endings {
        *counts.entry(ending).or_default() += 1;
    }
    let most = *counts.values().max()?;
    let first = counts.into_iter().find(|(_, n)| *n == most)?;
    Some(first.0.to_owned())
}

/// Reads a list of names, one a line; empty lines do not count.
pub(super) fn read_list(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::reading(path, e))?;
    Ok(text
        .lines()
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect())
}
