//! Learning rate over the run.

use serde::{Deserialize, Serialize};

use crate::cli::args::ScheduleChoice;

/// A schedule with its length; pure, so that a resumed run needs nothing but the step number.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Shape of the curve.
    pub kind: ScheduleChoice,
    /// The rate after warm-up.
    pub base_lr: f64,
    /// Length of the linear warm-up, in epochs.
    pub warmup_epochs: f64,
    /// Length of the run, in epochs.
    pub epochs: u64,
    /// Steps an epoch.
    pub steps_per_epoch: u64,
    /// Exponent of the polynomial.
    #[serde(default = "poly_power")]
    pub power: f64,
}

/// nnU-Net's exponent.
pub fn poly_power() -> f64 {
    0.9
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0 over the whole run.
    pub fn lr(&self, step: u64) -> f64 {
        let per_epoch = self.steps_per_epoch.max(1) as f64;
        let warmup = self.warmup_epochs * per_epoch;
        let ramp = if (step as f64) < warmup {
            (step as f64 + 1.0) / warmup.max(1.0)
        } else {
            1.0
        };
        let shape = match self.kind {
            ScheduleChoice::Constant => 1.0,
            // nnU-Net steps this once an epoch, not once a step.
            ScheduleChoice::Poly => {
                let epoch = step / self.steps_per_epoch.max(1);
                (1.0 - epoch as f64 / self.epochs as f64)
                    .max(0.0)
                    .powf(self.power)
            }
            ScheduleChoice::Cosine => {
                let total = self.epochs as f64 * per_epoch;
                let done = ((step as f64 - warmup) / (total - warmup).max(1.0)).clamp(0.0, 1.0);
                0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        };
        self.base_lr * ramp.min(1.0) * shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleChoice, warmup_epochs: f64) -> Schedule {
        Schedule {
            kind,
            base_lr: 0.01,
            warmup_epochs,
            epochs: 10,
            steps_per_epoch: 5,
            power: poly_power(),
        }
    }

    #[test]
    fn poly_matches_the_formula() {
        let s = schedule(ScheduleChoice::Poly, 0.0);
        assert_eq!(s.lr(0), 0.01);
        assert_eq!(s.lr(4), 0.01);
        assert!((s.lr(5) - 0.01 * 0.9f64.powf(poly_power())).abs() < 1e-15);
        assert!((s.lr(49) - 0.01 * 0.1f64.powf(poly_power())).abs() < 1e-15);
    }

    #[test]
    fn cosine_warms_up_and_ends_near_zero() {
        let s = schedule(ScheduleChoice::Cosine, 1.0);
        assert!((s.lr(0) - 0.01 / 5.0).abs() < 1e-15);
        assert!((s.lr(5) - 0.01).abs() < 1e-15);
        assert!(s.lr(49) < 1e-4 && s.lr(49) > 0.0);
        assert!((1..45).all(|i| s.lr(i + 5) <= s.lr(i + 4)));
    }
}
