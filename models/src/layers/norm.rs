//! Normalisation layers.

use tch::{Device, Tensor};

use crate::init::Init;
use crate::{ModelError, Scope};

/// Normalises the last axis.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// PyTorch's default `eps`.
    pub const EPS: f64 = 1e-5;

    /// Over the last `dim` values; weight 1, bias 0.
    pub fn new(scope: &Scope, dim: i64, eps: f64) -> Result<Self, ModelError> {
        let weight = scope.parameter("weight", &[dim], Init::Constant(1.0))?;
        let bias = scope.parameter("bias", &[dim], Init::Constant(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    /// (.., dim) -> (.., dim)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            false,
        )
    }
}

/// Normalises every channel of every sample over its spatial axes; keeps no statistics.
pub struct InstanceNorm {
    affine: Option<(Tensor, Tensor)>,
    eps: f64,
}

impl InstanceNorm {
    /// For `channels` channels; when affine, weight 1 and bias 0.
    pub fn new(scope: &Scope, channels: i64, eps: f64, affine: bool) -> Result<Self, ModelError> {
        Self::with_init(scope, channels, eps, affine.then_some(Init::Constant(1.0)))
    }

    /// With a rule for the weight; no rule, neither weight nor bias.
    pub fn with_init(
        scope: &Scope,
        channels: i64,
        eps: f64,
        weight: Option<Init>,
    ) -> Result<Self, ModelError> {
        let affine = match weight {
            Some(rule) => Some((
                scope.parameter("weight", &[channels], rule)?,
                scope.parameter("bias", &[channels], Init::Constant(0.0))?,
            )),
            None => None,
        };
        Ok(Self { affine, eps })
    }

    /// (B, C, spatial..) -> (B, C, spatial..)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = match &self.affine {
            Some((w, b)) => (Some(w), Some(b)),
            None => (None, None),
        };
        // One group a channel is the same, and on the CPU several times faster than libtorch's instance norm; but not with channels last in
        // memory, where it takes ten to twenty times as long as with each channel's plane in one piece.
        let x = match x.device() {
            Device::Cpu => x.contiguous(),
            _ => x.shallow_clone(),
        };
        x.group_norm(x.size()[1], weight, bias, self.eps, false)
    }
}
