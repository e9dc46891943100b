//! Root-mean-square normalisation.

use tch::{Kind, Tensor};

use super::reuse;
use crate::init::Init;
use crate::{ModelError, Scope};

/// Divides the last axis by its root mean square: Zhang and Sennrich, *Root Mean Square Layer Normalization*, 2019.
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Over the last `dim` values; weight 1.
    pub fn new(scope: &Scope, dim: i64, eps: f64) -> Result<Self, ModelError> {
        let weight = scope.parameter("weight", &[dim], Init::Constant(1.0))?;
        Ok(Self { weight, eps })
    }

    /// (.., dim) -> (.., dim), computed in float32 or wider.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let wide = match kind {
            Kind::Half | Kind::BFloat16 => x.to_kind(Kind::Float),
            _ => x.shallow_clone(),
        };
        let mean = wide.square().mean_dim([-1].as_slice(), true, None::<Kind>);
        let normed = &wide * (mean + self.eps).rsqrt();
        reuse::multiply(normed, &self.weight).to_kind(kind)
    }
}
