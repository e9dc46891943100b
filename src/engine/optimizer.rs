//! SGD with Nesterov momentum and AdamW, with a state that can be written and read back.
//!
//! `tch`'s own optimisers cannot save their moments, so a run resumed with them takes other steps than one that was
//! never stopped. The updates are PyTorch's (`torch.optim.SGD`, `torch.optim.AdamW`).

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};
use tch::{no_grad, Kind, Tensor};
use vision_mamba_models::ParamStore;

use crate::cli::args::OptimizerChoice;

/// Which optimiser, and its constants.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The rule.
    pub kind: OptimizerChoice,
    /// Weight decay. AdamW applies it to matrices and kernels only (see [`trained`]), SGD to everything, as nnU-Net does.
    pub weight_decay: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Decay of AdamW's first and second moment.
    pub betas: (f64, f64),
    /// Added to AdamW's denominator.
    pub eps: f64,
    /// Largest norm of all gradients together.
    pub grad_clip: f64,
}

/// A parameter as the optimiser sees it.
pub struct Trained {
    /// Its state-dict name.
    pub name: String,
    /// The tensor, sharing storage with the network's.
    pub tensor: Tensor,
    /// Whether AdamW's weight decay acts on it.
    pub decays: bool,
}

/// A network's parameters. AdamW's decay leaves alone what the network marks (`A_log` and `D` of state-space layers, as
/// Mamba's authors do) and all vectors (biases, norms).
pub fn trained(params: &ParamStore) -> Vec<Trained> {
    params
        .trainable()
        .into_iter()
        .map(|(name, tensor)| Trained {
            decays: tensor.dim() >= 2 && params.takes_weight_decay(&name),
            name,
            tensor,
        })
        .collect()
}

struct Slot {
    name: String,
    parameter: Tensor,
    decays: bool,
    first: Option<Tensor>,
    second: Option<Tensor>,
}

/// The optimiser of one network.
pub struct Optimizer {
    config: OptimizerConfig,
    slots: Vec<Slot>,
    updates: i64,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Weights moved; the norm of the gradient before clipping.
    Taken {
        /// Norm before clipping.
        grad_norm: f64,
    },
    /// The gradient was not finite: nothing moved.
    Skipped,
}

impl Optimizer {
    /// An optimiser over `parameters`, which keep their order.
    pub fn new(config: OptimizerConfig, parameters: Vec<Trained>) -> Self {
        let slots = parameters
            .into_iter()
            .map(
                |Trained {
                     name,
                     tensor,
                     decays,
                 }| Slot {
                    decays: config.kind == OptimizerChoice::Sgd || decays,
                    name,
                    parameter: tensor,
                    first: None,
                    second: None,
                },
            )
            .collect();
        Self {
            config,
            slots,
            updates: 0,
        }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.zero_grad();
        }
    }

    /// Clips the gradients, moves the weights with learning rate `lr`, or skips when a gradient is not finite.
    pub fn step(&mut self, lr: f64) -> Step {
        let norm = self.grad_norm();
        if !norm.is_finite() {
            return Step::Skipped;
        }
        let scale = if norm > self.config.grad_clip {
            self.config.grad_clip / (norm + 1e-6)
        } else {
            1.0
        };
        self.updates += 1;
        let (config, updates) = (&self.config, self.updates);
        no_grad(|| {
            for slot in &mut self.slots {
                let grad = slot.parameter.grad();
                if !grad.defined() {
                    continue;
                }
                let grad = if scale == 1.0 { grad } else { grad * scale };
                match config.kind {
                    OptimizerChoice::Sgd => slot.sgd(grad, lr, config),
                    OptimizerChoice::Adamw => slot.adamw(&grad, lr, config, updates),
                }
            }
        });
        Step::Taken { grad_norm: norm }
    }

    fn grad_norm(&self) -> f64 {
        let squares: Vec<Tensor> = self
            .slots
            .iter()
            .map(|slot| slot.parameter.grad())
            .filter(Tensor::defined)
            .map(|grad| no_grad(|| grad.norm().to_kind(Kind::Double).square()))
            .collect();
        if squares.is_empty() {
            return 0.0;
        }
        Tensor::stack(&squares, 0)
            .sum(Kind::Double)
            .sqrt()
            .double_value(&[])
    }

    /// Number of updates taken.
    pub fn updates(&self) -> i64 {
        self.updates
    }

    /// The moments under `optimizer.first.NAME` and `optimizer.second.NAME`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        for slot in &self.slots {
            for (kind, moment) in [("first", &slot.first), ("second", &slot.second)] {
                if let Some(moment) = moment {
                    state.insert(
                        format!("optimizer.{kind}.{}", slot.name),
                        moment.shallow_clone(),
                    );
                }
            }
        }
        state
    }

    /// Takes back what [`Self::state`] gave, after `updates` updates.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, updates: i64) -> Result<()> {
        self.updates = updates;
        for slot in &mut self.slots {
            for (kind, moment) in [("first", &mut slot.first), ("second", &mut slot.second)] {
                let name = format!("optimizer.{kind}.{}", slot.name);
                *moment = match state.get(&name) {
                    Some(saved) if saved.size() == slot.parameter.size() => {
                        Some(saved.to_device(slot.parameter.device()).copy())
                    }
                    Some(saved) => bail!(
                        "'{name}' has shape {:?} but the parameter has {:?}",
                        saved.size(),
                        slot.parameter.size()
                    ),
                    None => None,
                };
            }
        }
        Ok(())
    }
}

impl Slot {
    fn sgd(&mut self, grad: Tensor, lr: f64, config: &OptimizerConfig) {
        let mut grad = grad;
        if config.weight_decay != 0.0 {
            grad += &self.parameter * config.weight_decay;
        }
        let buffer = match &mut self.first {
            Some(buffer) => {
                let _ = buffer.g_mul_scalar_(config.momentum);
                let _ = buffer.g_add_(&grad);
                buffer.shallow_clone()
            }
            None => self.first.insert(grad.copy()).shallow_clone(),
        };
        // Nesterov: look ahead along the momentum.
        let update = grad + buffer * config.momentum;
        let _ = self.parameter.g_sub_(&(update * lr));
    }

    fn adamw(&mut self, grad: &Tensor, lr: f64, config: &OptimizerConfig, updates: i64) {
        let (beta1, beta2) = config.betas;
        if self.decays && config.weight_decay != 0.0 {
            let _ = self.parameter.g_mul_scalar_(1.0 - lr * config.weight_decay);
        }
        let first = self
            .first
            .get_or_insert_with(|| self.parameter.zeros_like());
        let _ = first.g_mul_scalar_(beta1);
        let _ = first.g_add_(&(grad * (1.0 - beta1)));
        let second = self
            .second
            .get_or_insert_with(|| self.parameter.zeros_like());
        let _ = second.g_mul_scalar_(beta2);
        let _ = second.g_add_(&(grad.square() * (1.0 - beta2)));
        let correction1 = 1.0 - beta1.powi(updates as i32);
        let correction2 = 1.0 - beta2.powi(updates as i32);
        let denominator = second.sqrt() / correction2.sqrt() + config.eps;
        let _ = self
            .parameter
            .g_sub_(&(&*first / denominator * (lr / correction1)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::Device;

    use super::*;

    fn config(kind: OptimizerChoice) -> OptimizerConfig {
        OptimizerConfig {
            kind,
            weight_decay: 0.1,
            momentum: 0.9,
            betas: (0.9, 0.999),
            eps: 1e-8,
            grad_clip: 1e9,
        }
    }

    fn parameter() -> Tensor {
        Tensor::from_slice(&[1.0f64, -2.0])
            .view([1, 2])
            .set_requires_grad(true)
    }

    fn one(p: &Tensor) -> Vec<Trained> {
        vec![Trained {
            name: "w".into(),
            tensor: p.shallow_clone(),
            decays: true,
        }]
    }

    fn quadratic_step(optimizer: &mut Optimizer, p: &Tensor, lr: f64) -> Step {
        optimizer.zero_grad();
        (p * p).sum(Kind::Double).backward();
        optimizer.step(lr)
    }

    #[test]
    fn sgd_takes_pytorchs_steps() {
        let p = parameter();
        let mut o = Optimizer::new(config(OptimizerChoice::Sgd), one(&p));
        let (mut x, mut b) = (1.0f64, 0.0f64);
        for step in 0..3 {
            quadratic_step(&mut o, &p, 0.1);
            let g = 2.0 * x + 0.1 * x;
            b = if step == 0 { g } else { 0.9 * b + g };
            x -= 0.1 * (g + 0.9 * b);
        }
        assert!((p.double_value(&[0, 0]) - x).abs() < 1e-12);
    }

    #[test]
    fn adamw_takes_pytorchs_steps() {
        let p = parameter();
        let mut o = Optimizer::new(config(OptimizerChoice::Adamw), one(&p));
        let (mut x, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
        for step in 1..=3 {
            quadratic_step(&mut o, &p, 0.1);
            let g = 2.0 * x;
            x *= 1.0 - 0.1 * 0.1;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (c1, c2) = (1.0 - 0.9f64.powi(step), 1.0 - 0.999f64.powi(step));
            x -= 0.1 / c1 * m / ((v / c2).sqrt() + 1e-8);
        }
        assert!((p.double_value(&[0, 0]) - x).abs() < 1e-12);
    }

    #[test]
    fn clips_skips_and_restores() {
        let p = parameter();
        let mut clipped = config(OptimizerChoice::Sgd);
        clipped.grad_clip = 1.0;
        clipped.weight_decay = 0.0;
        clipped.momentum = 0.0;
        let mut o = Optimizer::new(clipped, one(&p));
        let taken = quadratic_step(&mut o, &p, 1.0);
        assert_eq!(
            taken,
            Step::Taken {
                grad_norm: 20f64.sqrt()
            }
        );
        let moved = (p.double_value(&[0, 0]) - 1.0).hypot(p.double_value(&[0, 1]) + 2.0);
        assert!((moved - 1.0).abs() < 1e-5, "moved {moved}");

        let before = p.copy();
        o.zero_grad();
        (&p * f64::NAN).sum(Kind::Double).backward();
        assert_eq!(o.step(1.0), Step::Skipped);
        assert_eq!(p, before);

        let q = parameter();
        let mut other = Optimizer::new(config(OptimizerChoice::Adamw), one(&q));
        quadratic_step(&mut other, &q, 0.1);
        let saved: BTreeMap<_, _> = other
            .state()
            .into_iter()
            .map(|(k, t)| (k, t.copy()))
            .collect();
        let weights = q.copy();
        quadratic_step(&mut other, &q, 0.1);

        let r = weights
            .to_device(Device::Cpu)
            .detach()
            .set_requires_grad(true);
        let mut resumed = Optimizer::new(config(OptimizerChoice::Adamw), one(&r));
        resumed.restore(&saved, 1).unwrap();
        quadratic_step(&mut resumed, &r, 0.1);
        assert_eq!(q, r);
    }
}
