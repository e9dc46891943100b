//! The feed-forward branch of VMamba's blocks, on the last axis.

use tch::Tensor;

use super::VSSM_LINEAR;
use crate::init::Init;
use crate::layers::{reuse, Activation, Linear};
use crate::{ModelError, Scope};

/// Two linear layers and an activation between them; gated, half of the first one's result is multiplied with the activated other half.
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    act: Activation,
    gated: bool,
    dropout: f64,
}

impl Mlp {
    /// From `dim` values to `hidden` and back.
    pub fn new(
        scope: &Scope,
        dim: i64,
        hidden: i64,
        act: Activation,
        gated: bool,
        dropout: f64,
    ) -> Result<Self, ModelError> {
        let linear = |name, inputs, outputs| {
            let bias = Some(Init::Constant(0.0));
            Linear::with_init(&scope.sub(name), inputs, outputs, VSSM_LINEAR, bias)
        };
        Ok(Self {
            fc1: linear("fc1", dim, if gated { 2 * hidden } else { hidden })?,
            fc2: linear("fc2", hidden, dim)?,
            act,
            gated,
            dropout,
        })
    }

    /// (.., dim) -> (.., dim)
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let drop = |x: Tensor| match train && self.dropout > 0.0 {
            true => x.dropout(self.dropout, true),
            false => x,
        };
        let hidden = self.fc1.forward(x);
        let hidden = if self.gated {
            let halves = hidden.chunk(2, -1);
            &halves[0] * self.act.apply(&halves[1])
        } else {
            drop(reuse::activate(self.act, hidden))
        };
        drop(self.fc2.forward(&hidden))
    }
}
