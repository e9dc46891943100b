//! Batch normalisation with running statistics.

use tch::{no_grad, Tensor};
use vision_mamba_ops::recompute::is_again;

use crate::init::Init;
use crate::{ModelError, Scope};

/// Normalises every channel over batch and space: with the statistics of the batch in training, else with the running
/// ones. Entries in PyTorch's order: `weight`, `bias`, `running_mean`, `running_var`, `num_batches_tracked`.
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
}

impl BatchNorm {
    /// PyTorch's default `eps`.
    pub const EPS: f64 = 1e-5;
    /// PyTorch's default share of the newest batch in the running statistics.
    pub const MOMENTUM: f64 = 0.1;

    /// For `channels` channels; weight 1, bias 0, running mean 0 and variance 1.
    pub fn new(scope: &Scope, channels: i64) -> Result<Self, ModelError> {
        let c = [channels];
        Ok(Self {
            weight: scope.parameter("weight", &c, Init::Constant(1.0))?,
            bias: scope.parameter("bias", &c, Init::Constant(0.0))?,
            running_mean: scope.buffer("running_mean", &c, Init::Constant(0.0))?,
            running_var: scope.buffer("running_var", &c, Init::Constant(1.0))?,
            num_batches_tracked: scope.counter("num_batches_tracked")?,
        })
    }

    /// (B, C, spatial..) -> (B, C, spatial..); in training the running statistics move. One value a channel has no
    /// variance to train on: an error, as in PyTorch.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let shape = x.size();
        if train && shape.iter().product::<i64>() == shape[1] {
            return Err(ModelError::Input {
                shape,
                message: "batch norm in training needs more than one value a channel: a larger \
                          batch or image"
                    .into(),
            });
        }
        // what is computed again has moved them already
        let moves = train && !is_again();
        if moves {
            let _ = no_grad(|| self.num_batches_tracked.shallow_clone().f_add_scalar_(1))?;
        }
        Ok(x.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            if moves { Self::MOMENTUM } else { 0.0 },
            Self::EPS,
            false,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn running_statistics_move_in_training_only() {
        tch::manual_seed(1);
        let (norm, params) = Scope::build(Device::Cpu, |s| BatchNorm::new(s, 2)).unwrap();
        let x = Tensor::randn([3, 2, 4, 5], (Kind::Float, Device::Cpu)) * 2.0 + 1.0;
        let y = norm.forward(&x, false).unwrap();
        assert!(y.allclose(&x, 1e-4, 1e-4, false));
        assert_eq!(norm.num_batches_tracked.int64_value(&[]), 0);

        let y = norm.forward(&x, true).unwrap();
        assert!(y.mean(Kind::Float).double_value(&[]).abs() < 1e-6);
        assert_eq!(norm.num_batches_tracked.int64_value(&[]), 1);
        let axes = [0i64, 2, 3];
        let mean = x.mean_dim(axes.as_slice(), false, Kind::Float) * 0.1;
        let var = x.var_dim(axes.as_slice(), true, false) * 0.1 + 0.9;
        let stored = |name| params.get(name).unwrap();
        assert!(stored("running_mean").allclose(&mean, 1e-6, 1e-6, false));
        assert!(stored("running_var").allclose(&var, 1e-6, 1e-6, false));
        assert_eq!(stored("num_batches_tracked").kind(), Kind::Int64);
        assert_eq!(params.num_parameters(), 4);
    }

    #[test]
    fn a_single_value_cannot_be_trained_on() {
        let (norm, _) = Scope::build(Device::Cpu, |s| BatchNorm::new(s, 2)).unwrap();
        let x = Tensor::zeros([1, 2, 1, 1], (Kind::Float, Device::Cpu));
        assert!(norm.forward(&x, false).is_ok());
        assert!(matches!(
            norm.forward(&x, true),
            Err(ModelError::Input { .. })
        ));
    }
}
