//! Pointwise activations that configurations name.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// An activation by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// `x * Phi(x)`, exact.
    Gelu,
    /// `max(x, 0)`
    Relu,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
}

impl Activation {
    /// Of every value.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu("none"),
            Activation::Relu => x.relu(),
            Activation::Sigmoid => x.sigmoid(),
        }
    }
}
