//! Where results lie: `nnUNet_results/Dataset/Trainer__Plans__configuration/fold_K/checkpoint_*.pth`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::exit::Misuse;

/// What stands between the parts of a trained configuration's name.
const JOINT: &str = "__";
/// What the name of a fold's folder begins with.
const FOLD: &str = "fold_";
/// Folders below the one given that are looked into: data set and configuration.
const DEEPEST: usize = 2;

/// A configuration trained by a trainer, with its folds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// Its folder, which holds `plans.json` and `dataset.json`.
    pub folder: PathBuf,
    /// The folder below the one that was given, or its own name.
    pub name: PathBuf,
    /// Folders of the folds, in order.
    pub folds: Vec<PathBuf>,
}

/// Names in `Trainer__Plans__configuration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The trainer's class.
    pub trainer: String,
    /// The plans' name.
    pub plans: String,
    /// The configuration.
    pub configuration: String,
}

impl Trained {
    /// The parts of the folder's name, where it has not been renamed.
    pub fn parts(&self) -> Option<Parts> {
        let name = self.folder.file_name()?.to_str()?;
        match name.split(JOINT).collect::<Vec<_>>()[..] {
            [trainer, plans, configuration] => Some(Parts {
                trainer: trainer.to_owned(),
                plans: plans.to_owned(),
                configuration: configuration.to_owned(),
            }),
            _ => None,
        }
    }
}

/// All there is at or below a fold, a configuration, a data set, or the results of all data sets.
pub fn find(given: &Path) -> Result<Vec<Trained>> {
    let path = std::fs::canonicalize(given)
        .with_context(|| format!("{}: no such folder", given.display()))?;
    if is_fold(&path) {
        let folder = path.parent().unwrap_or(&path).to_path_buf();
        let name = PathBuf::from(folder.file_name().unwrap_or_default());
        return Ok(vec![Trained {
            folder,
            name,
            folds: vec![path],
        }]);
    }
    let mut found = Vec::new();
    let own = PathBuf::from(path.file_name().unwrap_or_default());
    collect(&path, own, 0, &mut found)?;
    if found.is_empty() {
        return Err(Misuse::error(format!(
            "{}: no trained folds in it; give a folder of nnUNet_results: a data set's, or its Trainer__Plans__configuration with fold_0 in it",
            given.display()
        )));
    }
    Ok(found)
}

fn collect(folder: &Path, name: PathBuf, depth: usize, found: &mut Vec<Trained>) -> Result<()> {
    let inside = folders(folder)?;
    let folds: Vec<PathBuf> = inside.iter().filter(|f| is_fold(f)).cloned().collect();
    if !folds.is_empty() {
        found.push(Trained {
            folder: folder.to_path_buf(),
            name,
            folds,
        });
        return Ok(());
    }
    for next in inside.iter().filter(|_| depth < DEEPEST) {
        let last = next.file_name().unwrap_or_default();
        let name = match depth {
            0 => PathBuf::from(last),
            _ => name.join(last),
        };
        collect(next, name, depth + 1, found)?;
    }
    Ok(())
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut inside = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot read {}", folder.display()))?
            .path();
        if path.is_dir() {
            inside.push(path);
        }
    }
    inside.sort();
    Ok(inside)
}

fn is_fold(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(FOLD)
        .is_some_and(|rest| rest == "all" || rest.parse::<u32>().is_ok())
}

/// The fold's name as `--fold` takes it.
pub fn fold_name(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(FOLD).unwrap_or(&name).to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn any_level_of_the_results_can_be_given() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("results");
        for fold in [
            "Dataset1_A/T__P__2d/fold_0",
            "Dataset1_A/T__P__2d/fold_1",
            "Dataset1_A/T__P__2d/crossval_results_folds_0_1",
            "Dataset1_A/T__P__3d_fullres/fold_all",
            "Dataset2_B/T__P__2d/fold_0",
        ] {
            std::fs::create_dir_all(root.join(fold)).unwrap();
        }
        let names = |path: &str| -> Vec<(String, usize)> {
            let found = find(&root.join(path)).unwrap();
            let told = |t: &Trained| (t.name.display().to_string(), t.folds.len());
            found.iter().map(told).collect()
        };
        let two = [
            ("T__P__2d".to_owned(), 2),
            ("T__P__3d_fullres".to_owned(), 1),
        ];
        assert_eq!(names("Dataset1_A"), two);
        assert_eq!(names("Dataset1_A/T__P__2d"), two[..1]);
        assert_eq!(
            names("Dataset1_A/T__P__2d/fold_1"),
            [("T__P__2d".to_owned(), 1)]
        );
        assert_eq!(names("").len(), 3);
        assert_eq!(names("")[2].0, "Dataset2_B/T__P__2d");
        let parts = find(&root.join("Dataset2_B")).unwrap()[0].parts().unwrap();
        assert_eq!(parts.configuration, "2d");
        let nothing = find(&root.join("Dataset1_A/T__P__2d/crossval_results_folds_0_1"));
        assert!(nothing.unwrap_err().to_string().contains("nnUNet_results"));
    }
}
