//! The residual block around SS2D.

use tch::Tensor;

use super::ss2d::{Ss2d, Ss2dConfig};
use crate::layers::{drop_path, LayerNorm};
use crate::{ModelError, Scope};

/// `x + drop_path(SS2D(norm(x)))`; no MLP.
pub struct VssBlock {
    ln_1: LayerNorm,
    self_attention: Ss2d,
    drop_path: f64,
}

impl VssBlock {
    /// With the given `eps` of its norm and probability of being skipped in training.
    pub fn new(
        scope: &Scope,
        config: Ss2dConfig,
        norm_eps: f64,
        drop_path: f64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            ln_1: LayerNorm::new(&scope.sub("ln_1"), config.d_model, norm_eps)?,
            self_attention: Ss2d::new(&scope.sub("self_attention"), config)?,
            drop_path,
        })
    }

    /// (B, H, W, C) -> (B, H, W, C)
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let branch = self.self_attention.forward(&self.ln_1.forward(x), train)?;
        Ok(x + drop_path(&branch, self.drop_path, train))
    }
}
