//! SGD with Nesterov momentum and AdamW, with a state that can be written and read back.
//!
//! `tch`'s own optimisers cannot save their moments, so a run resumed with them takes other steps than one that was
//! never stopped. The updates are PyTorch's (`torch.optim.SGD`, `torch.optim.AdamW`), done by the native library in one call; without it by
//! plain tensor operations, which say what is meant.

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::ParamStore;
use vision_mamba_ops::update::{self, Entry, Rule, Taken, Update};

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
    /// Steps taken, on the parameters' device.
    steps: Tensor,
}

impl Optimizer {
    /// An optimiser over `parameters`, which keep their order.
    pub fn new(config: OptimizerConfig, parameters: Vec<Trained>) -> Self {
        let device = parameters
            .first()
            .map_or(Device::Cpu, |p| p.tensor.device());
        let slots = parameters
            .into_iter()
            .map(|trained| Slot {
                decays: config.kind == OptimizerChoice::Sgd || trained.decays,
                name: trained.name,
                parameter: trained.tensor,
                first: None,
                second: None,
            })
            .collect();
        Self {
            config,
            slots,
            steps: Tensor::zeros([], (Kind::Float, device)),
        }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) -> Result<()> {
        if vision_mamba_ops::native::is_ready() {
            update::forget_gradients(self.slots.iter().map(|slot| &slot.parameter))?;
        } else {
            for slot in &mut self.slots {
                slot.parameter.zero_grad();
            }
        }
        Ok(())
    }

    /// Makes all gradients zero where they are.
    pub fn clear_gradients(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.zero_grad();
        }
    }

    /// Clips the gradients and moves the weights with learning rate `lr`; where a gradient or `loss` is not finite, nothing moves. The native
    /// library does it without waiting for the device.
    pub fn step(&mut self, lr: f64, loss: Option<&Tensor>) -> Result<Taken> {
        let adamw = self.config.kind == OptimizerChoice::Adamw;
        let mut active = Vec::new();
        for slot in &mut self.slots {
            let gradient = slot.parameter.grad();
            if gradient.defined() {
                slot.begin(adamw);
                active.push((slot, gradient));
            }
        }
        if active.is_empty() {
            let taken = loss.map_or_else(|| Tensor::from(true), Tensor::isfinite);
            let norm = Tensor::from(0f64);
            return Ok(Taken { taken, norm });
        }
        if !vision_mamba_ops::native::is_ready() {
            return Ok(plain_step(&self.config, lr, &mut self.steps, loss, active));
        }
        let rule = match self.config.kind {
            OptimizerChoice::Sgd => Rule::Sgd {
                momentum: self.config.momentum,
            },
            OptimizerChoice::Adamw => Rule::Adamw {
                betas: self.config.betas,
                eps: self.config.eps,
            },
        };
        let update = Update {
            rule,
            lr,
            weight_decay: self.config.weight_decay,
            clip: self.config.grad_clip,
            steps: &self.steps,
            loss,
        };
        let mut entries = Vec::with_capacity(active.len());
        for (slot, gradient) in &active {
            let Some(first) = &slot.first else { continue };
            entries.push(Entry {
                parameter: &slot.parameter,
                gradient: gradient.shallow_clone(),
                first,
                second: slot.second.as_ref(),
                decays: slot.decays,
            });
        }
        Ok(update::step(&update, &entries)?)
    }

    /// Number of steps taken; waits for the device.
    pub fn updates(&self) -> i64 {
        self.steps.double_value(&[]) as i64
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
        let _ = no_grad(|| self.steps.fill_(updates as f64));
        for slot in &mut self.slots {
            for (kind, moment) in [("first", &mut slot.first), ("second", &mut slot.second)] {
                let name = format!("optimizer.{kind}.{}", slot.name);
                *moment = match state.get(&name) {
                    Some(saved) if saved.size() == slot.parameter.size() => {
                        // in the parameter's order in memory
                        let mut own = no_grad(|| slot.parameter.zeros_like());
                        own.copy_(saved);
                        Some(own)
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

/// A step by plain tensor operations, each of which the device is asked for.
fn plain_step(
    config: &OptimizerConfig,
    lr: f64,
    steps: &mut Tensor,
    loss: Option<&Tensor>,
    active: Vec<(&mut Slot, Tensor)>,
) -> Taken {
    let squares: Vec<Tensor> = active
        .iter()
        .map(|(_, grad)| no_grad(|| grad.norm().to_kind(Kind::Double).square()))
        .collect();
    let norm = Tensor::stack(&squares, 0).sum(Kind::Double).sqrt();
    let length = norm.double_value(&[]);
    let finite = length.is_finite() && loss.is_none_or(|loss| loss.double_value(&[]).is_finite());
    let taken = Tensor::from(finite).to_device(steps.device());
    if !finite {
        return Taken { taken, norm };
    }
    let excess = ((length + 1e-6) / config.grad_clip).max(1.0);
    no_grad(|| {
        let _ = steps.g_add_scalar_(1.0);
        let updates = steps.double_value(&[]) as i32;
        for (slot, grad) in active {
            let grad = grad / excess;
            match config.kind {
                OptimizerChoice::Sgd => slot.sgd(grad, lr, config),
                OptimizerChoice::Adamw => slot.adamw(&grad, lr, config, updates),
            }
        }
    });
    Taken { taken, norm }
}

impl Slot {
    /// Moments before the first step.
    fn begin(&mut self, adamw: bool) {
        let zeros = || no_grad(|| self.parameter.zeros_like());
        if self.first.is_none() {
            self.first = Some(zeros());
        }
        if adamw && self.second.is_none() {
            self.second = Some(zeros());
        }
    }

    fn sgd(&mut self, grad: Tensor, lr: f64, config: &OptimizerConfig) {
        let Some(buffer) = &mut self.first else {
            return;
        };
        let mut grad = grad;
        if config.weight_decay != 0.0 {
            grad += &self.parameter * config.weight_decay;
        }
        let _ = buffer.g_mul_scalar_(config.momentum);
        let _ = buffer.g_add_(&grad);
        // Nesterov: look ahead along the momentum.
        let update = grad + &*buffer * config.momentum;
        let _ = self.parameter.g_sub_(&(update * lr));
    }

    fn adamw(&mut self, grad: &Tensor, lr: f64, config: &OptimizerConfig, updates: i32) {
        let (Some(first), Some(second)) = (&mut self.first, &mut self.second) else {
            return;
        };
        let (beta1, beta2) = config.betas;
        if self.decays && config.weight_decay != 0.0 {
            let _ = self.parameter.g_mul_scalar_(1.0 - lr * config.weight_decay);
        }
        let _ = first.g_mul_scalar_(beta1);
        let _ = first.g_add_(&(grad * (1.0 - beta1)));
        let _ = second.g_mul_scalar_(beta2);
        let _ = second.g_add_(&(grad.square() * (1.0 - beta2)));
        let correction1 = 1.0 - beta1.powi(updates);
        let correction2 = 1.0 - beta2.powi(updates);
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

    /// The norm of the gradient, where the step was taken.
    fn quadratic_step(optimizer: &mut Optimizer, p: &Tensor, lr: f64) -> Option<f64> {
        optimizer.zero_grad().unwrap();
        (p * p).sum(Kind::Double).backward();
        taken(&optimizer.step(lr, None).unwrap())
    }

    fn taken(step: &Taken) -> Option<f64> {
        let moved = step.taken.int64_value(&[]) == 1;
        moved.then(|| step.norm.double_value(&[]))
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
        let norm = quadratic_step(&mut o, &p, 1.0).unwrap();
        assert!((norm - 20f64.sqrt()).abs() < 1e-12, "norm {norm}");
        let moved = (p.double_value(&[0, 0]) - 1.0).hypot(p.double_value(&[0, 1]) + 2.0);
        assert!((moved - 1.0).abs() < 1e-5, "moved {moved}");

        let before = p.copy();
        o.zero_grad().unwrap();
        (&p * f64::NAN).sum(Kind::Double).backward();
        assert_eq!(taken(&o.step(1.0, None).unwrap()), None);
        assert_eq!(p, before);
        // nor does it move when only the loss is not finite
        o.zero_grad().unwrap();
        (&p * &p).sum(Kind::Double).backward();
        let loss = Tensor::from(f32::INFINITY);
        assert_eq!(taken(&o.step(1.0, Some(&loss)).unwrap()), None);
        assert_eq!((p.copy(), o.updates()), (before, 1));

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

    /// The native library's step against the plain one, over steps of which one has no finite gradient.
    #[test]
    fn fused_and_plain_steps_agree() {
        for kind in [OptimizerChoice::Sgd, OptimizerChoice::Adamw] {
            let mut config = config(kind);
            config.grad_clip = 1.5;
            let start = Tensor::from_slice(&[0.3f32, -2.0, 1.5, 0.7, 0.0, -0.1]).view([2, 3]);
            let weights = || start.copy().set_requires_grad(true);
            let (fused, plain) = (weights(), weights());
            let mut a = Optimizer::new(config.clone(), one(&fused));
            let mut b = Optimizer::new(config.clone(), one(&plain));
            for step in 0..5 {
                let scale = if step == 2 {
                    f64::NAN
                } else {
                    1.0 + step as f64
                };
                for p in [&fused, &plain] {
                    (p * p * p * scale).sum(Kind::Float).backward();
                }
                a.step(0.01, None).unwrap();
                let slot = &mut b.slots[0];
                slot.begin(kind == OptimizerChoice::Adamw);
                let active = vec![(slot, plain.grad())];
                plain_step(&config, 0.01, &mut b.steps, None, active);
                a.zero_grad().unwrap();
                b.zero_grad().unwrap();
            }
            assert_eq!((a.updates(), b.updates()), (4, 4));
            let gap = (&fused - &plain).abs().max().double_value(&[]);
            assert!(gap < 1e-6, "{kind:?}: {gap}");
            assert!((&fused - &start).abs().max().double_value(&[]) > 1e-3);
        }
    }
}
