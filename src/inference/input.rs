//! What `predict -i` may be: an image, a folder of images, a DICOM series or a folder of them, a data set.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vision_mamba_datasets::io::{is_dicom_series, known_endings, writable_label_endings};
use vision_mamba_datasets::{images_in, Dataset, InputCase, Split};

use crate::cli::exit::Misuse;

/// Endings of pictures without geometry, whose label maps are pictures too.
const PICTURES: [&str; 3] = [".jpg", ".jpeg", ".bmp"];

/// The ending of label maps for images of an ending: the same where that can be written, PNG for pictures, else compressed NIfTI.
pub fn label_ending(ending: &str) -> &'static str {
    let can_hold = |e: &&&str| e.eq_ignore_ascii_case(ending);
    match writable_label_endings().iter().find(can_hold) {
        Some(same) => same,
        None if PICTURES.iter().any(|e| e.eq_ignore_ascii_case(ending)) => ".png",
        None => ".nii.gz",
    }
}

/// The ending of a file for a label map, or what to do about its lack.
pub fn check_label_file(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let endings = writable_label_endings();
    match endings.split(&name) {
        Some(_) => Ok(()),
        None => Err(Misuse::error(format!(
            "-o {}: the ending must be one of {endings}",
            path.display()
        ))),
    }
}

/// Cases to predict.
pub struct Inputs {
    /// By name.
    pub cases: Vec<InputCase>,
    /// Ending of their label maps.
    pub label_ending: &'static str,
    /// Whether one case was named, so that the output may be a file.
    pub single: bool,
}

/// Finds the cases of an input for networks trained on images of an ending.
pub fn find(input: &Path, trained_on: &str, channels: usize) -> Result<Inputs> {
    if !input.exists() {
        return Err(Misuse::error(format!(
            "-i {}: no such file or folder",
            input.display()
        )));
    }
    if input.is_file() {
        let name = input.file_name().unwrap_or_default().to_string_lossy();
        let ending = match known_endings().split(&name) {
            // in upper case it is known too, but files are found by the ending as it is written
            Some((stem, _)) => name[stem.len()..].to_owned(),
            None => trained_on.to_owned(),
        };
        return Ok(Inputs {
            cases: images_in(input, &ending, channels)?,
            label_ending: label_ending(&ending),
            single: true,
        });
    }
    let folder = match input.join("dataset.json").is_file() && input.join("imagesTs").is_dir() {
        true => input.join("imagesTs"),
        false => input.to_path_buf(),
    };
    let about = About::of(&folder)?;
    if about.endings.contains(trained_on) {
        return Ok(Inputs {
            cases: images_in(&folder, trained_on, channels)?,
            label_ending: label_ending(trained_on),
            single: false,
        });
    }
    if is_dicom_series(&folder) {
        let path = std::fs::canonicalize(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        return Ok(Inputs {
            cases: vec![InputCase {
                id: name_of(&path),
                paths: vec![folder],
            }],
            label_ending: label_ending(".dcm"),
            single: true,
        });
    }
    let endings: Vec<&String> = about.endings.iter().collect();
    match endings[..] {
        [ending] => Ok(Inputs {
            cases: images_in(&folder, ending, channels)?,
            label_ending: label_ending(ending),
            single: false,
        }),
        [] if !about.series.is_empty() => Ok(Inputs {
            cases: series(about.series),
            label_ending: label_ending(".dcm"),
            single: false,
        }),
        // the folder of a data set whose images lie deeper: its test cases
        [] => match test_cases(&folder) {
            Some(inputs) => Ok(inputs),
            // says what is looked for
            None => Ok(Inputs {
                cases: images_in(&folder, trained_on, channels)?,
                label_ending: label_ending(trained_on),
                single: false,
            }),
        },
        _ => Err(Misuse::error(format!(
            "-i {}: it holds files of several formats ({}) and none called *{trained_on}, which the run was trained on; put the images of \
             one format into a folder of their own",
            folder.display(),
            about.endings.iter().cloned().collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The test cases of a folder that is a data set of a known layout and has some; files are found by their names, not read.
fn test_cases(folder: &Path) -> Option<Inputs> {
    let dataset = Dataset::open(folder).ok()?;
    let cases: Vec<InputCase> = dataset
        .cases(Split::Test)
        .iter()
        .map(|case| case.input())
        .collect();
    let first = name_of(cases.first()?.paths.first()?);
    let (_, ending) = known_endings().split(&first)?;
    Some(Inputs {
        cases,
        label_ending: label_ending(ending),
        single: false,
    })
}

/// What a folder holds.
struct About {
    /// Endings of image files, as they are written.
    endings: BTreeSet<String>,
    /// Folders that are DICOM series, sorted.
    series: Vec<PathBuf>,
}

impl About {
    fn of(folder: &Path) -> Result<Self> {
        let known = known_endings();
        let mut about = Self {
            endings: BTreeSet::new(),
            series: Vec::new(),
        };
        let failed = || format!("cannot list {}", folder.display());
        for entry in std::fs::read_dir(folder).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            let name = name_of(&path);
            if name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                if is_dicom_series(&path) {
                    about.series.push(path);
                }
            } else if let Some((stem, _)) = known.split(&name) {
                about.endings.insert(name[stem.len()..].to_owned());
            }
        }
        about.series.sort();
        Ok(about)
    }
}

/// A case a series; `NAME_0000`, `NAME_0001`, … are the channels of one.
fn series(folders: Vec<PathBuf>) -> Vec<InputCase> {
    let mut cases: Vec<InputCase> = Vec::new();
    for path in folders {
        let name = name_of(&path);
        let numbered = name.rsplit_once('_').filter(|(id, n)| {
            !id.is_empty() && n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit())
        });
        let id = numbered.map_or(name.as_str(), |(id, _)| id);
        match cases
            .last_mut()
            .filter(|c| c.id == id && numbered.is_some())
        {
            Some(case) => case.paths.push(path),
            None => cases.push(InputCase {
                id: id.to_owned(),
                paths: vec![path],
            }),
        }
    }
    cases
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        dir
    }

    fn ids(inputs: &Inputs) -> Vec<&str> {
        inputs.cases.iter().map(|c| c.id.as_str()).collect()
    }

    #[test]
    fn label_maps_keep_the_format_where_it_can_hold_them() {
        for (image, label) in [
            (".nii", ".nii"),
            (".nrrd", ".nrrd"),
            (".mha", ".mha"),
            (".tif", ".tif"),
            (".png", ".png"),
            (".jpg", ".png"),
            (".dcm", ".nii.gz"),
            (".h5", ".nii.gz"),
        ] {
            assert_eq!(label_ending(image), label);
        }
    }

    #[test]
    fn the_runs_ending_goes_first_and_another_is_taken_where_it_is_the_only_one() {
        let own = folder(&["a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nrrd"]);
        let found = find(own.path(), ".nii.gz", 1).unwrap();
        assert_eq!(
            (ids(&found), found.label_ending),
            (vec!["a", "b"], ".nii.gz")
        );
        let other = folder(&["a_0000.nrrd", "a_0001.nrrd", "notes.txt", ".hidden.mha"]);
        let found = find(other.path(), ".nii.gz", 2).unwrap();
        assert_eq!((ids(&found), found.label_ending), (vec!["a"], ".nrrd"));
        assert_eq!(found.cases[0].paths.len(), 2);
        let mixed = folder(&["a_0000.nrrd", "b_0000.mha"]);
        let error = find(mixed.path(), ".nii.gz", 1).err().unwrap().to_string();
        assert!(error.contains(".mha, .nrrd"), "{error}");
        let found = find(&mixed.path().join("b_0000.mha"), ".nii.gz", 1).unwrap();
        assert_eq!(
            (ids(&found), found.label_ending, found.single),
            (vec!["b"], ".mha", true)
        );
        let nothing = folder(&[]);
        assert!(find(nothing.path(), ".nii.gz", 1).is_err());
    }

    #[test]
    fn a_data_set_stands_for_its_test_images() {
        let dir = folder(&["dataset.json"]);
        std::fs::create_dir(dir.path().join("imagesTs")).unwrap();
        std::fs::write(dir.path().join("imagesTs/x_0000.png"), b"").unwrap();
        assert_eq!(ids(&find(dir.path(), ".png", 1).unwrap()), ["x"]);
    }

    #[test]
    fn volumes_of_a_layout_with_deeper_folders_are_its_test_cases() {
        let dir = folder(&[]);
        for name in [
            "train_npz/case0005_slice000.npz",
            "test_vol_h5/case0001.npy.h5",
            "test_vol_h5/case0002.npy.h5",
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        for input in [dir.path().to_path_buf(), dir.path().join("test_vol_h5")] {
            let found = find(&input, ".npz", 1).unwrap();
            assert_eq!(
                (ids(&found), found.label_ending),
                (vec!["case0001", "case0002"], ".nii.gz")
            );
        }
        let one = dir.path().join("test_vol_h5/case0002.npy.h5");
        assert_eq!(ids(&find(&one, ".npz", 1).unwrap()), ["case0002"]);
    }

    #[test]
    fn numbered_series_are_channels() {
        let paths = ["p1_0000", "p1_0001", "p2_0000", "p2_0001", "plain"];
        let cases = series(paths.iter().map(PathBuf::from).collect());
        let summary: Vec<_> = cases
            .iter()
            .map(|c| (c.id.as_str(), c.paths.len()))
            .collect();
        assert_eq!(summary, [("p1", 2), ("p2", 2), ("plain", 1)]);
    }
}
