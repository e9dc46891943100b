//! `training_state.safetensors`: weights, optimiser moments and counters in one file, so that what a resumed run
//! starts from was written by one rename and always belongs together.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use vision_mamba_models::weights::{read_metadata, read_tensors, save_tensors};
use vision_mamba_models::ParamStore;

use super::average::Average;
use super::optimizer::Optimizer;

/// Where a run stands. Random numbers need no entry: every step seeds its own from the run's seed and its number.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps done over the whole run.
    pub step: u64,
    /// Updates the optimiser has taken (steps less skipped ones).
    pub updates: i64,
    /// Steps skipped because loss or gradient was not finite.
    pub skipped: u64,
    /// Sum of the losses of the unfinished epoch.
    pub loss_sum: f64,
    /// Number of losses in it.
    pub loss_count: u64,
    /// Seconds spent in the unfinished epoch.
    pub seconds: f64,
    /// What the best checkpoint is chosen by, of the last epoch.
    #[serde(rename = "dice_ema")]
    pub choice: Option<f64>,
    /// Its highest value.
    #[serde(rename = "best_ema")]
    pub best: Option<f64>,
}

const PROGRESS_KEY: &str = "progress";

/// Writes the state.
pub fn save(
    path: &Path,
    progress: &Progress,
    params: &ParamStore,
    optimizer: &Optimizer,
    average: Option<&Average>,
) -> Result<()> {
    let weights = params
        .stored()
        .into_iter()
        .map(|(name, tensor)| (format!("weight.{name}"), tensor));
    let tensors: Vec<(String, Tensor)> = weights
        .chain(optimizer.state())
        .chain(average.map(Average::state).unwrap_or_default())
        .collect();
    let metadata = BTreeMap::from([(PROGRESS_KEY.to_string(), serde_json::to_string(progress)?)]);
    save_tensors(path, &tensors, &metadata).context("cannot write the state of training")
}

/// Reads the state into the network, the optimiser and the average.
pub fn load(
    path: &Path,
    params: &ParamStore,
    optimizer: &mut Optimizer,
    average: Option<&mut Average>,
) -> Result<Progress> {
    let damaged = || {
        format!(
            "{} is not a whole training state; start the run anew in another folder",
            path.display()
        )
    };
    let tensors = read_tensors(path).with_context(damaged)?;
    let metadata = read_metadata(path).with_context(damaged)?;
    let progress = metadata.get(PROGRESS_KEY).with_context(damaged)?;
    let progress: Progress = serde_json::from_str(progress).with_context(damaged)?;
    for (name, mut tensor) in params.stored() {
        match tensors.get(&format!("weight.{name}")) {
            Some(saved) if saved.size() == tensor.size() => {
                tch::no_grad(|| tensor.copy_(saved));
            }
            Some(saved) => bail!(
                "{}: '{name}' has shape {:?}, the network has {:?}",
                path.display(),
                saved.size(),
                tensor.size()
            ),
            None => bail!("{} lacks '{name}'", path.display()),
        }
    }
    optimizer.restore(&tensors, progress.updates)?;
    if let Some(average) = average {
        average.restore(&tensors).with_context(damaged)?;
    }
    Ok(progress)
}
