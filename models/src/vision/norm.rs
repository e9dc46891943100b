//! The norms that VMamba can be built with, on channels last.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::layers::{BatchNorm, LayerNorm};
use crate::{ModelError, Scope};

/// Over what a value is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// The channels of its position.
    Layer,
    /// Its channel in the whole batch.
    Batch,
}

/// One of them.
pub enum ChannelNorm {
    /// Layer norm.
    Layer(LayerNorm),
    /// Batch norm.
    Batch(BatchNorm),
}

impl ChannelNorm {
    /// For `dim` channels; `eps` is the layer norm's.
    pub fn new(scope: &Scope, kind: NormKind, dim: i64, eps: f64) -> Result<Self, ModelError> {
        Ok(match kind {
            NormKind::Layer => ChannelNorm::Layer(LayerNorm::new(scope, dim, eps)?),
            NormKind::Batch => ChannelNorm::Batch(BatchNorm::new(scope, dim)?),
        })
    }

    /// (B, H, W, C) -> (B, H, W, C)
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        match self {
            ChannelNorm::Layer(norm) => Ok(norm.forward(x)),
            ChannelNorm::Batch(norm) => {
                let x = norm.forward(&x.permute([0, 3, 1, 2]), train)?;
                Ok(x.permute([0, 2, 3, 1]))
            }
        }
    }
}
