//! Paths with open places: `training/{patient}/{patient}_frame{#frame}.nii.gz`.
//!
//! `{name}` stands for one or more characters other than `/`, `{#name}` for digits; a name that comes again stands for the same text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{entries, name_of};
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
        Some((Piece::Text(text), rest)) => fit(rest, name.strip_prefix(text.as_str())?, known),
        Some((Piece::Open { name: open, digits }, rest)) => match known.get(open) {
            Some(value) => fit(rest, name.strip_prefix(value.as_str())?, known),
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

impl Pattern {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Every file below `root` that fits, with what its open places stand for, in the order of the paths.
    pub fn find(&self, root: &Path) -> Result<Vec<(Places, PathBuf)>> {
        let mut found = vec![(Places::new(), root.to_owned())];
        for (depth, pieces) in self.parts.iter().enumerate() {
            let last = depth + 1 == self.parts.len();
            let mut next = Vec::new();
            for (known, folder) in found {
                if let [Piece::Text(name)] = &pieces[..] {
                    let path = folder.join(name);
                    if (last && path.is_file()) || (!last && path.is_dir()) {
                        next.push((known, path));
                    }
                    continue;
                }
                let (folders, files) = entries(&folder)?;
                for path in if last { files } else { folders } {
                    if let Some(places) = fit(pieces, &name_of(&path), &known) {
                        next.push((places, path));
                    }
                }
            }
            found = next;
        }
        Ok(found)
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
