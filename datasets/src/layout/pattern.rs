//! Paths with open places: `training/{patient}/{patient}_frame{#frame}.nii.gz`.
//!
//! `{name}` stands for one or more characters other than `/`, `{#name}` for digits; a name that comes again stands for the same text. Upper and
//! lower case are alike. Downloads differ from one another in two more ways that make no difference: a folder may hold one of its own name, as
//! archives do that are unpacked into a folder, and a file may have another ending of its kind, as `.nii` for `.nii.gz`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{below, entries, name_of};
use crate::Result;

/// What the open places stand for.
pub type Places = BTreeMap<String, String>;

/// A path with open places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    /// Folder by folder.
    parts: Vec<Vec<Piece>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Open { name: String, digits: bool },
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let parts: std::result::Result<Vec<_>, String> = text.split('/').map(pieces).collect();
        Ok(Self {
            parts: parts?,
            text,
        })
    }
}

/// The pieces of one folder's or file's name.
fn pieces(text: &str) -> std::result::Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = (after.split_once('}'))
            .ok_or_else(|| format!("`{text}`: a brace is opened and not closed"))?;
        if !before.is_empty() {
            pieces.push(Piece::Text(before.into()));
        }
        let digits = name.starts_with('#');
        let name = name.trim_start_matches('#').to_owned();
        if name.is_empty() {
            return Err(format!("`{text}`: an open place has no name"));
        }
        pieces.push(Piece::Open { name, digits });
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    match pieces.is_empty() || text == "." || text == ".." {
        true => Err(format!(
            "`{text}` is no name of a file below the data set's folder"
        )),
        false => Ok(pieces),
    }
}

/// Whether a name fits, and what its open places then stand for, in addition to what is known.
fn fit(pieces: &[Piece], name: &str, known: &Places) -> Option<Places> {
    match pieces.split_first() {
        None => name.is_empty().then(|| known.clone()),
        Some((Piece::Text(text), rest)) => fit(rest, after(name, text)?, known),
        Some((Piece::Open { name: open, digits }, rest)) => match known.get(open) {
            Some(value) => fit(rest, after(name, value)?, known),
            // the shortest that leaves a fitting rest
            None => name
                .char_indices()
                .take_while(|(_, c)| !digits || c.is_ascii_digit())
                .map(|(at, c)| at + c.len_utf8())
                .find_map(|end| {
                    let mut known = known.clone();
                    known.insert(open.clone(), name[..end].to_owned());
                    fit(rest, &name[end..], &known)
                }),
        },
    }
}

/// What follows a beginning, upper and lower case alike.
fn after<'a>(name: &'a str, beginning: &str) -> Option<&'a str> {
    let (own, rest) = name.split_at_checked(beginning.len())?;
    own.eq_ignore_ascii_case(beginning).then_some(rest)
}

/// Endings of one kind.
const KINDS: [&[&str]; 2] = [
    &[".nii.gz", ".nii"],
    &[".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"],
];

/// The last part of a path as it is, then with the other endings of its kind.
fn with_endings(pieces: &[Piece]) -> Vec<Vec<Piece>> {
    let mut all = vec![pieces.to_vec()];
    let Some((Piece::Text(text), before)) = pieces.split_last() else {
        return all;
    };
    let ending = |e: &&&str| text.ends_with(**e);
    let kind = KINDS
        .iter()
        .find_map(|kind| Some((kind, kind.iter().find(ending)?)));
    if let Some((kind, own)) = kind {
        let stem = &text[..text.len() - own.len()];
        for other in kind.iter().filter(|e| *e != own) {
            let last = Piece::Text(format!("{stem}{other}"));
            all.push(before.iter().cloned().chain([last]).collect());
        }
    }
    all
}

impl Pattern {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Every file below `root` that fits, with what its open places stand for, in the order of the paths.
    pub fn find(&self, root: &Path) -> Result<Vec<(Places, PathBuf)>> {
        let Some((file, folders)) = self.parts.split_last() else {
            return Ok(Vec::new());
        };
        let mut found = vec![(Places::new(), root.to_owned())];
        for pieces in folders {
            let mut next = Vec::new();
            for (known, folder) in found {
                let fitting = match &pieces[..] {
                    [Piece::Text(name)] => vec![(known, below(&folder, name))],
                    _ => fitting(pieces, entries(&folder)?.0, &known),
                };
                for (known, path) in fitting.into_iter().filter(|f| f.1.is_dir()) {
                    let again = below(&path, &name_of(&path));
                    if again.is_dir() {
                        next.push((known.clone(), again));
                    }
                    next.push((known, path));
                }
            }
            found = next;
        }
        let mut files = Vec::new();
        for (known, folder) in found {
            let there = entries(&folder)?.1;
            for pieces in with_endings(file) {
                files.extend(fitting(&pieces, there.clone(), &known));
            }
        }
        files.sort_by(|a, b| a.1.cmp(&b.1));
        Ok(files)
    }

    /// The path below `root` with its places filled; nothing where one of them is not known.
    pub fn fill(&self, root: &Path, places: &Places) -> Option<PathBuf> {
        self.parts.iter().try_fold(root.to_owned(), |path, pieces| {
            Some(path.join(filled(pieces, places)?))
        })
    }

    /// Names of the open places.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flatten().filter_map(|piece| match piece {
            Piece::Open { name, .. } => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }
}

/// The paths whose names fit, with what open places then stand for.
fn fitting(pieces: &[Piece], paths: Vec<PathBuf>, known: &Places) -> Vec<(Places, PathBuf)> {
    let fits = |path: PathBuf| Some((fit(pieces, &name_of(&path), known)?, path));
    paths.into_iter().filter_map(fits).collect()
}

fn filled(pieces: &[Piece], places: &Places) -> Option<String> {
    pieces
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Open { name, .. } => places.get(name).map(String::as_str),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn files_are_found_by_pattern() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "training/p1/p1_frame01.nii.gz",
            "training/p1/p1_frame01_gt.nii.gz",
            "training/p1/p1_4d.nii.gz",
            "training/p2/p2_frame12.nii.gz",
            "training/p2/p1_frame12.nii.gz",
            "training/stray_frame01.nii.gz",
        ] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let images = pattern("training/{patient}/{patient}_frame{#frame}.nii.gz");
        let found = images.find(dir.path()).unwrap();
        let names: Vec<String> = found.iter().map(|f| name_of(&f.1)).collect();
        assert_eq!(names, ["p1_frame01.nii.gz", "p2_frame12.nii.gz"]);
        let labels = pattern("training/{patient}/{patient}_frame{#frame}_gt.nii.gz");
        let label = labels.fill(dir.path(), &found[0].0).unwrap();
        assert_eq!(label, dir.path().join("training/p1/p1_frame01_gt.nii.gz"));
        assert_eq!(images.places().count(), 3);
        assert_eq!(pattern("{other}").fill(dir.path(), &found[0].0), None);
        assert!(pattern("none/{x}").find(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn the_shortest_fitting_text_is_taken() {
        let part = |text: &str| pieces(text).unwrap();
        let places = |text: &str, name: &str| fit(&part(text), name, &Places::new());
        let both = places("{a}_{b}.png", "x_y_z.png").unwrap();
        assert_eq!((both["a"].as_str(), both["b"].as_str()), ("x", "y_z"));
        assert!(places("{#a}.png", "1b.png").is_none());
        assert!(places("{a}{a}", "abab").is_some() && places("{a}-{a}", "a-b").is_none());
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "a/../b", "a//b", "{", "{}", "a{b", "{#}"] {
            assert!(Pattern::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
