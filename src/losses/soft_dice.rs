//! Soft Dice, in nnU-Net's and in Mamba-UNet's form.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What the Dice sums run over before the quotient is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiceOver {
    /// The whole batch: steadier for small patches, nnU-Net's choice in 2-D.
    Batch,
    /// Each sample by itself.
    Sample,
}

/// `-mean (2 Σ p y + s) / max(Σ p + Σ y + s, 1e-8)` over classes and, unless sums run over the batch, samples (Isensee et al., Nature Methods
/// 18, 2021; reference `MemoryEfficientSoftDiceLoss`). `probabilities` and `target` are (B, K, …); `valid` (B, 1, …) is 0 where voxels take no
/// part.
pub fn soft_dice(
    probabilities: &Tensor,
    target: &Tensor,
    valid: Option<&Tensor>,
    over: DiceOver,
    smooth: f64,
) -> Tensor {
    let spatial: Vec<i64> = (2..probabilities.dim() as i64).collect();
    let sum = |t: &Tensor| {
        let t = match valid {
            Some(valid) => t * valid,
            None => t.shallow_clone(),
        };
        let per_sample = t.sum_dim_intlist(&spatial[..], false, Kind::Float);
        match over {
            DiceOver::Sample => per_sample,
            DiceOver::Batch => per_sample.sum_dim_intlist(&[0i64][..], false, Kind::Float),
        }
    };
    let shared = sum(&(probabilities * target));
    let all = sum(probabilities) + sum(target);
    -((shared * 2.0 + smooth) / (all + smooth).clamp_min(1e-8)).mean(Kind::Float)
}

/// Smoothing of [`squared_dice`].
const SQUARED_SMOOTH: f64 = 1e-5;

/// `Σ w (1 - (2 Σ p y + s) / (Σ p² + Σ y² + s)) / K` with sums over the whole batch, background included: the Dice loss of the Mamba-UNet and
/// TransUNet lines. `weights` has one number a class.
pub fn squared_dice(probabilities: &Tensor, target: &Tensor, weights: Option<&[f64]>) -> Tensor {
    let mut dims: Vec<i64> = (0..probabilities.dim() as i64).collect();
    dims.remove(1);
    let sum = |t: Tensor| t.sum_dim_intlist(&dims[..], false, Kind::Float);
    let shared = sum(probabilities * target);
    let squares = sum(probabilities.square()) + sum(target.square());
    let loss: Tensor = 1.0 - (shared * 2.0 + SQUARED_SMOOTH) / (squares + SQUARED_SMOOTH);
    match weights {
        Some(weights) => {
            let weights = Tensor::from_slice(weights)
                .to_kind(Kind::Float)
                .to_device(loss.device());
            (loss * weights).mean(Kind::Float)
        }
        None => loss.mean(Kind::Float),
    }
}
