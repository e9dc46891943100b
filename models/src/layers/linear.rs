//! Affine map of the last axis.

use tch::Tensor;

use crate::init::{Init, TORCH_WEIGHT};
use crate::{ModelError, Scope};

/// `y = x W^T + b` on the last axis; `weight` is (out, in).
pub struct Linear {
    /// (out, in).
    pub weight: Tensor,
    /// (out), when there is one.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Initialised as `nn.Linear` is.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64, bias: bool) -> Result<Self, ModelError> {
        Self::with_init(
            scope,
            inputs,
            outputs,
            TORCH_WEIGHT,
            bias.then(|| Init::torch_bias(inputs)),
        )
    }

    /// With rules of its own; no rule for the bias, no bias.
    pub fn with_init(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self, ModelError> {
        let weight = scope.parameter("weight", &[outputs, inputs], weight)?;
        let bias = bias
            .map(|rule| scope.parameter("bias", &[outputs], rule))
            .transpose()?;
        Ok(Self { weight, bias })
    }

    /// (.., in) -> (.., out)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}
