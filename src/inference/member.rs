//! A trained network with what is needed to feed it.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use tch::{Device, Tensor};
use vision_mamba_datasets::{Configuration, DatasetJson, Plan};
use vision_mamba_models::{build, weights, Built};

use super::sliding_window::{Voice, WindowOptions};
use super::volume::PredictOptions;
use crate::cli::args::CheckpointChoice;
use crate::cli::exit::Misuse;
use crate::engine::config::RunConfig;
use crate::engine::run_folder::RunFolder;
use crate::speed::Speed;

/// A network with what is needed to feed it.
pub struct Member {
    /// The run's settings.
    pub config: RunConfig,
    /// The run's decisions about its data set.
    pub plan: Plan,
    /// The data set's channels and labels.
    pub info: DatasetJson,
    /// Axes to mirror along instead of the run's own.
    pub mirror: Option<Vec<usize>>,
    built: Built,
    device: Device,
}

impl Member {
    /// Loads a run's network.
    pub fn load(root: &Path, checkpoint: Option<CheckpointChoice>, device: Device) -> Result<Self> {
        let folder = RunFolder::open(root)?;
        let config: RunConfig = RunFolder::read_json(&folder.config())?;
        let plan = Plan::read(&folder.plans())?;
        let info = DatasetJson::read(&folder.dataset())?;
        let file = folder.pick_checkpoint(checkpoint)?;
        let built = build(&config.network, device)?;
        weights::load_strict(&file, &built.params)?;
        Ok(Self::new(config, plan, info, built, device))
    }

    /// Wraps a network that is in memory already.
    pub fn new(
        config: RunConfig,
        plan: Plan,
        info: DatasetJson,
        built: Built,
        device: Device,
    ) -> Self {
        Self {
            config,
            plan,
            info,
            mirror: None,
            built,
            device,
        }
    }

    /// Gives the network back.
    pub fn into_built(self) -> Built {
        self.built
    }

    /// The configuration the run was trained with.
    pub fn configuration(&self) -> Result<&Configuration> {
        Ok(self.plan.configuration(&self.config.configuration)?)
    }

    /// Size of the window, slowest axis first.
    pub fn tile(&self) -> &[usize] {
        &self.config.training.training_patch
    }

    /// Mirrors along these axes of the window instead of the run's.
    pub fn mirror_along(&mut self, axes: Vec<usize>) -> Result<()> {
        let dims = self.tile().len();
        if let Some(axis) = axes.iter().find(|a| **a >= dims) {
            return Err(Misuse::error(format!(
                "--mirror: there is no axis {axis}, the run's window has the axes 0 to {}",
                dims - 1
            )));
        }
        self.mirror = Some(axes);
        Ok(())
    }

    /// Whether another's preprocessed images are the same.
    pub fn same_grid(&self, other: &Self) -> bool {
        self.config.configuration == other.config.configuration
            && self.plan.transpose_forward == other.plan.transpose_forward
            && self.plan.foreground_intensity_properties_per_channel
                == other.plan.foreground_intensity_properties_per_channel
            && match (self.configuration(), other.configuration()) {
                (Ok(a), Ok(b)) => {
                    a.spacing == b.spacing
                        && a.normalization_schemes == b.normalization_schemes
                        && a.use_mask_for_norm == b.use_mask_for_norm
                        && a.resampling_fn_data_kwargs == b.resampling_fn_data_kwargs
                        && a.resampling_fn_probabilities_kwargs
                            == b.resampling_fn_probabilities_kwargs
                }
                _ => false,
            }
    }

    /// Whether another is a fold of the same network, so that their scores may be averaged as they are.
    pub fn same_network(&self, other: &Self) -> bool {
        self.same_grid(other)
            && self.config.preset == other.config.preset
            && self.config.overrides == other.config.overrides
    }

    /// Puts its kernels in order in memory.
    pub fn arrange(&self, speed: Speed) -> Result<()> {
        speed.arrange(&self.built.params)
    }

    /// How its windows are laid.
    pub fn window(&self, options: &PredictOptions) -> WindowOptions {
        WindowOptions {
            tile: self.tile().iter().map(|&n| n as i64).collect(),
            step: options.tile_step,
            device: self.device,
        }
    }

    /// The network as the sliding window calls it.
    pub fn voice(&self, options: &PredictOptions) -> Voice<'_> {
        let own = &self.config.training.mirror_axes;
        let axes = self.mirror.as_ref().unwrap_or(own);
        let (precision, speed) = (options.precision, options.speed);
        Voice {
            network: Box::new(move |x: &Tensor| {
                let x = speed.image(x.shallow_clone())?;
                let outputs = precision.forward(self.built.net.as_ref(), &x, false)?;
                outputs
                    .into_iter()
                    .next()
                    .context("the network gave no output")
            }),
            mirror_axes: match options.mirroring {
                true => axes.clone(),
                false => Vec::new(),
            },
        }
    }
}

/// The runs that `--run` names: run folders, and those called `fold_*` in a folder that holds them.
pub fn run_folders(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut runs: Vec<PathBuf> = Vec::new();
    for path in given {
        let is_run = |p: &Path| p.join("config.json").is_file();
        let mut folds: Vec<PathBuf> = Vec::new();
        if is_run(path) || !path.is_dir() {
            folds.push(path.clone());
        } else {
            let entries = std::fs::read_dir(path)
                .with_context(|| format!("cannot list {}", path.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
                let fold = entry.file_name().to_string_lossy().starts_with("fold_");
                if fold && is_run(&entry.path()) {
                    folds.push(entry.path());
                }
            }
            folds.sort();
            if folds.is_empty() {
                return Err(Misuse::error(format!(
                    "{} holds no run (no config.json) and no runs called fold_*; give the folder that `train --out` made",
                    path.display()
                )));
            }
        }
        for run in folds {
            if runs.contains(&run) {
                bail!(Misuse::error(format!(
                    "--run {} is given twice",
                    run.display()
                )));
            }
            runs.push(run);
        }
    }
    Ok(runs)
}

/// Fails unless all runs segment the same labels in the same channels.
pub fn check_alike(members: &[Member], runs: &[PathBuf]) -> Result<()> {
    let Some(first) = members.first() else {
        return Err(Misuse::error("no --run was given"));
    };
    for (member, run) in members.iter().zip(runs) {
        if member.info.labels != first.info.labels
            || member.info.regions != first.info.regions
            || member.info.regions_class_order != first.info.regions_class_order
            || member.info.channel_names != first.info.channel_names
        {
            return Err(Misuse::error(format!(
                "{} was trained with other labels or channels than {}; an ensemble needs the same",
                run.display(),
                runs[0].display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_of_folds_stands_for_its_runs() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let run = dir.path().join(name);
            std::fs::create_dir_all(&run).unwrap();
            std::fs::write(run.join("config.json"), "{}").unwrap();
            run
        };
        let (one, zero, other) = (make("all/fold_1"), make("all/fold_0"), make("other"));
        make("all/scratch");
        std::fs::create_dir(dir.path().join("all/fold_7")).unwrap();
        let both = run_folders(&[dir.path().join("all"), other.clone()]).unwrap();
        assert_eq!(both, [zero, one.clone(), other]);
        let twice = run_folders(&[dir.path().join("all"), one]).unwrap_err();
        assert!(twice.to_string().contains("twice"));
        let none = run_folders(&[dir.path().to_path_buf()]).unwrap_err();
        assert!(none.to_string().contains("holds no run"));
    }
}
