//! Exponential moving average of the weights: steadier than the weights themselves, which follow every batch.

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use tch::{no_grad, Tensor};
use vision_mamba_models::ParamStore;

/// The average of a network's trained tensors.
pub struct Average {
    decay: f64,
    slots: Vec<Slot>,
}

struct Slot {
    name: String,
    /// Shares its storage with the network's.
    weight: Tensor,
    mean: Tensor,
}

impl Average {
    /// An average that begins with the weights as they are.
    pub fn new(decay: f64, params: &ParamStore) -> Self {
        let slots = params.trainable().into_iter().map(|(name, weight)| Slot {
            name,
            mean: no_grad(|| weight.detach().copy()),
            weight,
        });
        Self {
            decay,
            slots: slots.collect(),
        }
    }

    /// Takes in the weights after step number `step`, counted from 1. The first steps weigh more, so that the average does not hang on to
    /// where training began (as TensorFlow's `num_updates` has it).
    pub fn update(&mut self, step: u64) -> Result<()> {
        let n = step as f64;
        let weight = 1.0 - self.decay.min((1.0 + n) / (10.0 + n));
        if vision_mamba_ops::native::is_ready() {
            let slots = self.slots.iter();
            let pairs: Vec<_> = slots.map(|slot| (&slot.mean, &slot.weight)).collect();
            return Ok(vision_mamba_ops::update::average(&pairs, weight)?);
        }
        no_grad(|| {
            for slot in &mut self.slots {
                let _ = slot.mean.g_add_(&((&slot.weight - &slot.mean) * weight));
            }
        });
        Ok(())
    }

    /// Exchanges weights and average.
    pub fn swap(&mut self) {
        no_grad(|| {
            for slot in &mut self.slots {
                let weight = slot.weight.copy();
                slot.weight.copy_(&slot.mean);
                slot.mean = weight;
            }
        });
    }

    /// The averages under `average.NAME`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        self.slots
            .iter()
            .map(|slot| (key(&slot.name), slot.mean.shallow_clone()))
            .collect()
    }

    /// Takes back what [`Self::state`] gave.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        for slot in &mut self.slots {
            let name = key(&slot.name);
            match state.get(&name) {
                Some(saved) if saved.size() == slot.mean.size() => {
                    no_grad(|| slot.mean.copy_(saved));
                }
                Some(saved) => bail!(
                    "'{name}' has shape {:?} but the weight has {:?}",
                    saved.size(),
                    slot.mean.size()
                ),
                None => bail!("the average '{name}' is missing"),
            }
        }
        Ok(())
    }
}

fn key(name: &str) -> String {
    format!("average.{name}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::{Device, Kind};
    use vision_mamba_models::{build, preset};

    use super::*;

    fn first(params: &ParamStore) -> Tensor {
        params.trainable().remove(0).1
    }

    fn gap(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().to_kind(Kind::Double).double_value(&[])
    }

    #[test]
    fn it_follows_the_formula_is_exchanged_and_comes_back() {
        let built = build(&preset("uvmlite_tiny").unwrap(), Device::Cpu).unwrap();
        let params = &built.params;
        let before = first(params).detach().copy();
        let mut average = Average::new(0.9, params);
        no_grad(|| {
            for (_, mut weight) in params.trainable() {
                let _ = weight.g_add_scalar_(1.0);
            }
        });
        // update 1: decay 2/11 and not 0.9
        average.update(1).unwrap();
        let moved = first(params).detach().copy();
        average.swap();
        assert!(gap(first(params).as_ref(), &(&before + 9.0 / 11.0)) < 1e-6);
        average.swap();
        assert_eq!(gap(&first(params), &moved), 0.0);

        let state = average.state();
        let mut other = Average::new(0.9, params);
        other.restore(&state).unwrap();
        let (name, saved) = state.iter().next().unwrap();
        assert!(other.state()[name].equal(saved));
        let error = other.restore(&BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("average."), "{error}");
    }
}
