//! The run folder: names, and writing so that a crash or a full disk never harms what is there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use vision_mamba_datasets::atomically;
use vision_mamba_datasets::io::sweep;
use vision_mamba_models::NetworkSpec;

use super::task::Scores;
use crate::cli::args::CheckpointChoice;
use crate::cli::exit::Misuse;

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

/// One line of `log.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochLog<S> {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// Mean training loss over the steps taken.
    pub train_loss: Option<f64>,
    /// Mean validation loss.
    pub val_loss: Option<f64>,
    /// What the task's validation found.
    #[serde(flatten)]
    pub scores: S,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Steps skipped because loss or gradient was not finite, over the whole run.
    pub skipped_steps: u64,
    /// Wall-clock seconds, validation included.
    pub seconds: f64,
    /// Training patches a second.
    pub images_per_second: f64,
}

impl RunFolder {
    /// Makes a new run folder; refuses one that already holds a run.
    pub fn create(root: &Path) -> Result<Self> {
        let folder = Self {
            root: root.to_path_buf(),
        };
        if folder.config().exists() {
            return Err(Misuse::error(format!(
                "{} already holds a run; choose another --out, or go on with it by --resume",
                root.display()
            )));
        }
        if root.exists() && !root.is_dir() {
            return Err(Misuse::error(format!(
                "--out {}: is a file, not a folder",
                root.display()
            )));
        }
        fs::create_dir_all(root)
            .with_context(|| format!("cannot make the run folder {}", root.display()))?;
        Ok(folder)
    }

    /// The names in a folder, whatever it holds.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// Opens a folder that holds a run.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = Self {
            root: root.to_path_buf(),
        };
        if !folder.config().is_file() {
            return Err(Misuse::error(format!(
                "{} holds no run (no config.json); give the folder that `train --out` made",
                root.display()
            )));
        }
        Ok(folder)
    }

    /// Removes what a killed run left half-written.
    pub fn sweep(&self) -> Result<()> {
        for folder in [self.root.clone(), self.validation()] {
            sweep(&folder)?;
        }
        Ok(())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.json`.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.json")
    }

    /// `plans.json`.
    pub fn plans(&self) -> PathBuf {
        self.root.join("plans.json")
    }

    /// `dataset.json`.
    pub fn dataset(&self) -> PathBuf {
        self.root.join("dataset.json")
    }

    /// `training_state.safetensors`.
    pub fn state(&self) -> PathBuf {
        self.root.join("training_state.safetensors")
    }

    /// `profile.json`.
    pub fn profile(&self) -> PathBuf {
        self.root.join("profile.json")
    }

    /// `progress.png`.
    pub fn progress(&self) -> PathBuf {
        self.root.join("progress.png")
    }

    /// `validation/`.
    pub fn validation(&self) -> PathBuf {
        self.root.join("validation")
    }

    /// `log.jsonl`.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    /// `tensorboard/`.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// A checkpoint's file.
    pub fn checkpoint(&self, which: CheckpointChoice) -> PathBuf {
        let name = match which {
            CheckpointChoice::Final => "final",
            CheckpointChoice::Best => "best",
            CheckpointChoice::Latest => "latest",
        };
        self.root.join(format!("checkpoint_{name}.safetensors"))
    }

    /// The asked-for checkpoint, or the best one there is: final, else best, else latest.
    pub fn pick_checkpoint(&self, which: Option<CheckpointChoice>) -> Result<PathBuf> {
        use CheckpointChoice::{Best, Final, Latest};
        let candidates = which.map_or_else(|| vec![Final, Best, Latest], |w| vec![w]);
        for candidate in &candidates {
            let path = self.checkpoint(*candidate);
            if path.is_file() {
                return Ok(path);
            }
        }
        let first = self.checkpoint(candidates[0]);
        bail!(
            "{} is missing; train the run first, or choose another --checkpoint",
            first.display()
        )
    }

    /// Reads one of the folder's JSON files.
    pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged or of another version", path.display()))
    }

    /// The network of `config.json`, whatever else that holds.
    pub fn network(&self) -> Result<NetworkSpec> {
        let path = self.config();
        let config: serde_json::Value = Self::read_json(&path)?;
        let network = config.get("network").cloned().unwrap_or_default();
        serde_json::from_value(network)
            .with_context(|| format!("{}: its `network` cannot be read", path.display()))
    }

    /// The log's lines; a last line cut by a crash is dropped.
    pub fn read_log<S: Scores>(&self) -> Result<Vec<EpochLog<S>>> {
        let path = self.log();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<String> = BufReader::new(file)
            .lines()
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut rows = Vec::with_capacity(lines.len());
        for (i, line) in lines.iter().enumerate() {
            match serde_json::from_str(line) {
                Ok(row) => rows.push(row),
                Err(_) if i + 1 == lines.len() => break,
                Err(error) => bail!("{} line {}: {error}", path.display(), i + 1),
            }
        }
        Ok(rows)
    }

    /// Writes the whole log anew. A run has at most a few thousand epochs, so this costs nothing and keeps the file
    /// whole whatever happens.
    pub fn write_log<S: Scores>(&self, rows: &[EpochLog<S>]) -> Result<()> {
        let mut text = String::new();
        for row in rows {
            text.push_str(&serde_json::to_string(row)?);
            text.push('\n');
        }
        write_atomic(&self.log(), text.as_bytes())
    }
}

/// Writes `bytes` to a temporary file beside `path` and renames it into place.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(atomically(path, |file| file.write_all(bytes))?)
}

/// Writes `value` as indented JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write_atomic(path, text.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::segmentation::DiceScores;

    #[test]
    fn a_taken_folder_is_refused_and_an_empty_one_is_not_a_run() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunFolder::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("holds no run"));
        let folder = RunFolder::create(dir.path()).unwrap();
        write_atomic(&folder.config(), b"{}").unwrap();
        assert!(RunFolder::create(dir.path())
            .unwrap_err()
            .to_string()
            .contains("--resume"));
        assert!(RunFolder::open(dir.path()).is_ok());
    }

    #[test]
    fn a_cut_last_line_of_the_log_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(dir.path()).unwrap();
        let row = EpochLog {
            epoch: 0,
            train_loss: Some(0.5),
            val_loss: None,
            scores: DiceScores {
                dice_per_class: vec![None],
                ..DiceScores::default()
            },
            lr: 0.01,
            skipped_steps: 0,
            seconds: 1.0,
            images_per_second: 3.0,
        };
        folder.write_log(std::slice::from_ref(&row)).unwrap();
        let mut text = fs::read_to_string(folder.log()).unwrap();
        text.push_str("{\"epoch\": 1, \"tra");
        fs::write(folder.log(), text).unwrap();
        assert_eq!(folder.read_log().unwrap(), vec![row]);
    }

    #[test]
    fn leftovers_of_a_killed_run_are_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(dir.path()).unwrap();
        write_atomic(&folder.config(), b"{}").unwrap();
        fs::write(dir.path().join(".writing-Ab3"), b"half").unwrap();
        folder.sweep().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failing_to_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"old").unwrap();
        let missing = dir.path().join("no/such/folder/a.json");
        assert!(write_atomic(&missing, b"new").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
