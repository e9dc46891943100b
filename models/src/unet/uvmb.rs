//! The UVM block of UVM-Net: attention of one Mamba on what a second and a third make of positions and channels.
//!
//! Paper, reference and differences: see [`uvmnet`](super::uvmnet).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{Conv, ConvOptions, LayerNorm};
use crate::ssm::{Mamba, MambaConfig};
use crate::{ModelError, Scope};

/// Hidden channels of the convolutions before the sequence models.
const HIDDEN: i64 = 16;

/// How a feature map (B, C, H, W) becomes tokens (B, H W, C) and a map again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// The memory is read as if it had the other shape, so that a token mixes channels and positions: upstream.
    Reinterpret,
    /// The axes change places: a token is a pixel with its channels, in row-major order.
    Permute,
}

/// Over what the attention adds up to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// The samples of the batch: upstream, and identically 1 for a single image.
    Batch,
    /// The channels of a token.
    Channels,
}

/// Configuration of [`Uvmb`].
#[derive(Debug, Clone, PartialEq)]
pub struct UvmbConfig {
    /// Channels.
    pub channels: i64,
    /// Tokens.
    pub tokens: Tokens,
    /// Axis of the softmax.
    pub attention: Attention,
    /// What the third Mamba sees of the positions.
    pub positions: Positions,
}

/// The features of a token of the third Mamba, whose tokens are the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// All positions of a map of exactly so many.
    All(i64),
    /// The means over a grid of so many rows and columns, for maps of any size.
    Pooled(i64),
}

/// The block, (B, C, H, W) -> (B, C, H, W).
pub struct Uvmb {
    config: UvmbConfig,
    convb: [Conv; 2],
    model1: Mamba,
    model2: Mamba,
    model3: Mamba,
    smooth: Conv,
    ln: LayerNorm,
}

/// A 3x3 convolution that keeps the size, with PyTorch's initialisation.
pub(super) fn conv3(
    scope: &Scope,
    inputs: i64,
    outputs: i64,
    bias: bool,
) -> Result<Conv, ModelError> {
    let options = ConvOptions {
        kernel: vec![3; 2],
        stride: vec![1; 2],
        padding: vec![1; 2],
        groups: 1,
        weight: TORCH_WEIGHT,
        bias: bias.then(|| Init::torch_bias(9 * inputs)),
    };
    Conv::new(scope, inputs, outputs, options)
}

/// Bilinear resizing with the corners of both maps on each other; the same size is left as it is.
pub(super) fn resize(x: &Tensor, size: [i64; 2]) -> Result<Tensor, ModelError> {
    if x.size()[2..] == size {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_upsample_bilinear2d(size, true, None::<f64>, None::<f64>)?)
}

impl Uvmb {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: UvmbConfig) -> Result<Self, ModelError> {
        let c = config.channels;
        let positions = match config.positions {
            Positions::All(n) => n,
            Positions::Pooled(side) => side * side,
        };
        let convb = scope.sub("convb");
        Ok(Self {
            convb: [
                conv3(&convb.sub(0), c, HIDDEN, true)?,
                conv3(&convb.sub(2), HIDDEN, c, true)?,
            ],
            model1: Mamba::new(&scope.sub("model1"), MambaConfig::new(c))?,
            model2: Mamba::new(&scope.sub("model2"), MambaConfig::new(c))?,
            model3: Mamba::new(&scope.sub("model3"), MambaConfig::new(positions))?,
            smooth: conv3(&scope.sub("smooth"), c, c, true)?,
            ln: LayerNorm::new(&scope.sub("ln"), c, LayerNorm::EPS)?,
            config,
        })
    }

    /// (B, C, H, W) -> (B, C, H, W)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        // the batch is left open, for traces
        let (_, c, h, w) = x.size4()?;
        if let Positions::All(n) = self.config.positions {
            if h * w != n {
                let message = format!("{} positions, expected {n}", h * w);
                let shape = x.size();
                return Err(ModelError::Input { shape, message });
            }
        }
        let x = x + self.convb[1].forward(&self.convb[0].forward(x).relu());
        let x = self.ln.forward(&match self.config.tokens {
            Tokens::Reinterpret => x.reshape([-1, h * w, c]),
            Tokens::Permute => x.flatten(2, 3).transpose(1, 2),
        });
        // (B, L, C) -> (B, C, L)
        let y = self.model1.forward(&x)?.transpose(1, 2);
        let z = match self.config.positions {
            Positions::All(_) => self.model3.forward(&y)?,
            Positions::Pooled(side) => {
                let grid = y
                    .reshape([-1, c, h, w])
                    .f_adaptive_avg_pool2d([side, side])?;
                let grid = self.model3.forward(&grid.flatten(2, 3))?;
                resize(&grid.reshape([-1, c, side, side]), [h, w])?.flatten(2, 3)
            }
        };
        let axis = match self.config.attention {
            Attention::Batch => 0,
            Attention::Channels => 2,
        };
        let attention = self.model2.forward(&x)?.softmax(axis, None::<Kind>);
        let y = attention * z.transpose(1, 2);
        let y = match self.config.tokens {
            Tokens::Reinterpret => y.reshape([-1, c, h, w]),
            Tokens::Permute => y.transpose(1, 2).reshape([-1, c, h, w]),
        };
        Ok(self.smooth.forward(&y))
    }
}

/// As many channels out as in, or out of a single one.
pub(super) fn check_channels(inputs: i64, outputs: i64, why: &str) -> Result<(), ModelError> {
    if inputs == outputs || inputs == 1 {
        return Ok(());
    }
    let message = format!("{outputs}, expected {inputs}: {why}");
    Err(ModelError::config("output_channels", message))
}

/// A patch with two axes.
pub(super) fn check_flat(network: &str, training_patch: &[i64]) -> Result<(), ModelError> {
    if training_patch.len() == 2 {
        return Ok(());
    }
    let message = format!(
        "{training_patch:?} has {} axes, but {network} is 2-D",
        training_patch.len()
    );
    Err(ModelError::config("training_patch", message))
}
