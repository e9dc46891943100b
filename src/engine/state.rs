//! `training_state.safetensors`: weights, optimiser moments and counters in one file, so that what a resumed run
//! starts from was written by one rename and always belongs together.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{bail, Context, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use vision_mamba_models::{EntryKind, ParamStore};

use super::optimizer::Optimizer;
use super::run_folder::write_atomic;

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
    /// Exponential average of the validation Dice.
    pub dice_ema: Option<f64>,
    /// Its highest value.
    pub best_ema: Option<f64>,
}

/// Every tensor of the network once, under its first name.
fn stored(params: &ParamStore) -> Vec<(String, Tensor)> {
    params
        .entries()
        .filter(|(_, _, kind)| !matches!(kind, EntryKind::Alias(_)))
        .map(|(name, tensor, _)| (name.to_string(), tensor.shallow_clone()))
        .collect()
}

const PROGRESS_KEY: &str = "progress";

/// Writes the state.
pub fn save(
    path: &Path,
    progress: &Progress,
    params: &ParamStore,
    optimizer: &Optimizer,
) -> Result<()> {
    let mut tensors = optimizer.state();
    for (name, tensor) in stored(params) {
        tensors.insert(format!("weight.{name}"), tensor);
    }
    let arrays: Vec<(String, Vec<u8>, Vec<usize>, Dtype)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (dtype, bytes) = bytes_of(tensor).with_context(|| format!("tensor '{name}'"))?;
            Ok((
                name.clone(),
                bytes,
                tensor.size().iter().map(|&n| n as usize).collect(),
                dtype,
            ))
        })
        .collect::<Result<_>>()?;
    let views = arrays
        .iter()
        .map(|(name, bytes, shape, dtype)| {
            Ok((
                name.as_str(),
                TensorView::new(*dtype, shape.clone(), bytes)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([(PROGRESS_KEY.to_string(), serde_json::to_string(progress)?)]);
    let file = safetensors::serialize(views, Some(metadata))?;
    write_atomic(path, &file)
}

/// Reads the state into the network and the optimiser.
pub fn load(path: &Path, params: &ParamStore, optimizer: &mut Optimizer) -> Result<Progress> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let damaged = || {
        format!(
            "{} is damaged; start the run anew in another folder",
            path.display()
        )
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).with_context(damaged)?;
    let file = SafeTensors::deserialize(&bytes).with_context(damaged)?;
    let progress = header
        .metadata()
        .as_ref()
        .and_then(|m| m.get(PROGRESS_KEY))
        .with_context(damaged)?;
    let progress: Progress = serde_json::from_str(progress).with_context(damaged)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let size: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let kind = kind_of(view.dtype()).with_context(damaged)?;
        tensors.insert(name, Tensor::f_from_data_size(view.data(), &size, kind)?);
    }
    for (name, mut tensor) in stored(params) {
        match tensors.get(&format!("weight.{name}")) {
            Some(saved) if saved.size() == tensor.size() => tch::no_grad(|| tensor.copy_(saved)),
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
    Ok(progress)
}

fn bytes_of(tensor: &Tensor) -> Result<(Dtype, Vec<u8>)> {
    let (dtype, width) = match tensor.kind() {
        Kind::Float => (Dtype::F32, 4),
        Kind::Double => (Dtype::F64, 8),
        Kind::Int64 => (Dtype::I64, 8),
        kind => bail!("cannot be stored: kind {kind:?}"),
    };
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let mut bytes = vec![0u8; tensor.numel() * width];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok((dtype, bytes))
}

fn kind_of(dtype: Dtype) -> Result<Kind> {
    match dtype {
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F64 => Ok(Kind::Double),
        Dtype::I64 => Ok(Kind::Int64),
        dtype => bail!("unexpected type {dtype:?}"),
    }
}
