//! What makes computing faster without making it something else: order in memory, TF32, cuDNN's choice of algorithm.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Tensor};
use vision_mamba_models::ParamStore;
use vision_mamba_ops::device;

/// Order of the axes in memory. Values do not depend on it, but for rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryFormat {
    /// Each channel's plane after the other
    #[default]
    ChannelsFirst,
    /// All channels of a pixel together, as tensor cores and oneDNN's convolutions have it
    ChannelsLast,
}

/// Options that only change how fast a network computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Order of images, features and kernels in memory
    #[arg(
        long,
        value_enum,
        default_value = "channels-first",
        value_name = "ORDER"
    )]
    pub memory_format: MemoryFormat,
    /// Let a GPU round the factors of float32 products and convolutions to TF32's 10 bits of mantissa: several times faster, less exact
    #[arg(long)]
    pub tf32: bool,
    /// Let cuDNN try its algorithms and keep the fastest for each shape: faster, but not the same bits in every run
    #[arg(long)]
    pub cudnn_benchmark: bool,
    /// Let cuDNN and libtorch take only algorithms that give the same bits in every run on a GPU, and warn where they have none: slower. (On a CPU, and of our own operators, they always are the same)
    #[arg(long, conflicts_with = "cudnn_benchmark")]
    #[serde(default)]
    pub deterministic: bool,
}

const NEEDS_LIBRARY: &str =
    "needs the native operators; `vision-mamba info` tells why they are not in use";

impl Speed {
    /// Whether nothing was asked for.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// Sets the switches of the process.
    pub fn prepare(self, device: Device) -> Result<()> {
        if matches!(device, Device::Cuda(_)) {
            Cuda::cudnn_set_benchmark(self.cudnn_benchmark);
            if vision_mamba_ops::native::is_ready() {
                device::set_tf32(self.tf32)?;
                device::set_deterministic(self.deterministic)?;
            } else if self.tf32 {
                anyhow::bail!("--tf32 {NEEDS_LIBRARY}");
            } else if self.deterministic {
                anyhow::bail!("--deterministic {NEEDS_LIBRARY}");
            }
        }
        Ok(())
    }

    /// Puts a network's kernels in order. Whatever shares them sees it.
    pub fn arrange(self, params: &ParamStore) -> Result<()> {
        if self.memory_format == MemoryFormat::ChannelsLast {
            for (_, mut tensor) in params.stored() {
                let arranged = tch::no_grad(|| device::channels_last(&tensor.detach()))
                    .with_context(|| format!("--memory-format channels-last {NEEDS_LIBRARY}"))?;
                tensor.set_data(&arranged);
            }
        }
        Ok(())
    }

    /// An image (B, C, …) in order.
    pub fn image(self, image: Tensor) -> Result<Tensor> {
        match self.memory_format {
            MemoryFormat::ChannelsFirst => Ok(image),
            MemoryFormat::ChannelsLast => Ok(device::channels_last(&image)?),
        }
    }
}
