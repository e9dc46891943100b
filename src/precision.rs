//! The number format that networks compute in.

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use vision_mamba_models::Network;
use vision_mamba_ops::autocast::autocast;

use crate::runtime::cuda_capability;

/// What `--precision` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16 on GPUs that have it (Ampere and later), else float32
    Auto,
    /// Everything in float32
    #[default]
    Float32,
    /// Matrix products and convolutions in bfloat16; scans, norms, losses and weights stay in float32
    Bfloat16,
}

/// From this compute capability on, tensor cores know bfloat16.
const AMPERE: i32 = 8;

impl Precision {
    /// Whether matrix products and convolutions are in bfloat16 on `device`.
    pub fn is_mixed(self, device: Device) -> bool {
        match (self, device) {
            (Self::Auto, Device::Cuda(index)) => {
                cuda_capability(index).is_some_and(|(major, _)| major >= AMPERE)
            }
            (Self::Auto | Self::Float32, _) => false,
            (Self::Bfloat16, _) => true,
        }
    }

    /// The format on `device`, for messages.
    pub fn name_on(self, device: Device) -> &'static str {
        match self.is_mixed(device) {
            true => "bfloat16",
            false => "float32",
        }
    }

    /// Runs a network; its outputs, finest first, are float32 whatever it computed in.
    pub fn forward(self, network: &dyn Network, x: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        if !self.is_mixed(x.device()) {
            return Ok(network.forward(x, train)?);
        }
        let outputs = autocast(x.device(), || network.forward(x, train)).context(
            "--precision bfloat16 needs the native operators; use --precision float32",
        )??;
        Ok(outputs.iter().map(|y| y.to_kind(Kind::Float)).collect())
    }
}
