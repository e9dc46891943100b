//! Soft Dice plus cross-entropy, as nnU-Net trains with (Isensee et al., Nature Methods 18, 2021, "Methods"):
//! `mean CE - mean over foreground classes of (2 Σ p y + s) / (Σ p + Σ y + s)` with smoothing `s`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

/// What the Dice sums run over before the quotient is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiceOver {
    /// The whole batch: steadier for small patches, nnU-Net's choice in 2-D.
    Batch,
    /// Each sample by itself.
    Sample,
}

/// The loss of one or several outputs.
#[derive(Debug, Clone)]
pub struct DiceCrossEntropy {
    /// What the Dice sums run over.
    pub over: DiceOver,
    /// Added to both halves of the quotient, so that an absent class that is not predicted counts as right.
    pub smooth: f64,
}

impl Default for DiceCrossEntropy {
    fn default() -> Self {
        Self {
            over: DiceOver::Batch,
            smooth: 1e-5,
        }
    }
}

/// Labels below zero are outside the image and take no part.
const IGNORED: i64 = -1;

impl DiceCrossEntropy {
    /// Loss of `outputs` (finest first, each (B, K, …)) against `target` (B, …; int64, negative = ignored), weighted by
    /// [`deep_supervision_weights`]. Coarser outputs see the target by nearest neighbour.
    pub fn forward(&self, outputs: &[Tensor], target: &Tensor) -> Tensor {
        let mut total: Option<Tensor> = None;
        for (output, weight) in outputs.iter().zip(deep_supervision_weights(outputs.len())) {
            if weight == 0.0 {
                continue;
            }
            let size = &output.size()[2..];
            let loss = if target.size()[1..] == *size {
                self.single(output, target)
            } else {
                self.single(output, &resize_nearest(target, size))
            } * weight;
            total = Some(match total {
                Some(sum) => sum + loss,
                None => loss,
            });
        }
        total.unwrap_or_else(|| Tensor::zeros([], (Kind::Float, target.device())))
    }

    /// Loss of one output (B, K, …) against `target` (B, …).
    pub fn single(&self, logits: &Tensor, target: &Tensor) -> Tensor {
        let classes = logits.size()[1];
        let logits = logits.to_kind(Kind::Float);
        let cross_entropy =
            logits.cross_entropy_loss::<Tensor>(target, None, Reduction::Mean, IGNORED, 0.0);
        if classes < 2 {
            return cross_entropy;
        }
        let valid = target.ge(0).unsqueeze(1).to_kind(Kind::Float);
        let one_hot = target.clamp_min(0).one_hot_channels(classes) * &valid;
        let probabilities = logits.softmax(1, Kind::Float) * &valid;
        // Background is left out after the softmax.
        let foreground = |t: &Tensor| t.narrow(1, 1, classes - 1);
        let (probabilities, one_hot) = (foreground(&probabilities), foreground(&one_hot));
        let spatial: Vec<i64> = (2..logits.dim() as i64).collect();
        let sum = |t: Tensor| {
            let per_sample = t.sum_dim_intlist(&spatial[..], false, Kind::Float);
            match self.over {
                DiceOver::Sample => per_sample,
                DiceOver::Batch => per_sample.sum_dim_intlist(&[0i64][..], false, Kind::Float),
            }
        };
        let shared = sum(&probabilities * &one_hot);
        let all = sum(probabilities.shallow_clone()) + sum(one_hot);
        let dice = (shared * 2.0 + self.smooth) / (all + self.smooth).clamp_min(1e-8);
        cross_entropy - dice.mean(Kind::Float)
    }
}

/// One-hot coding with the class axis second, which is where the logits have it.
trait OneHotChannels {
    fn one_hot_channels(&self, classes: i64) -> Tensor;
}

impl OneHotChannels for Tensor {
    fn one_hot_channels(&self, classes: i64) -> Tensor {
        let index = self.unsqueeze(1);
        let mut size = index.size();
        size[1] = classes;
        Tensor::zeros(&size, (Kind::Float, self.device())).scatter_value(1, &index, 1.0)
    }
}

fn resize_nearest(target: &Tensor, size: &[i64]) -> Tensor {
    let image = target.unsqueeze(1).to_kind(Kind::Float);
    let resized = match size.len() {
        2 => image.upsample_nearest2d(size, None::<f64>, None::<f64>),
        _ => image.upsample_nearest3d(size, None::<f64>, None::<f64>, None::<f64>),
    };
    resized.squeeze_dim(1).to_kind(Kind::Int64)
}

/// nnU-Net's weights: 1, 1/2, 1/4, …, the coarsest set to zero, summing to one. A single output has weight one.
pub fn deep_supervision_weights(outputs: usize) -> Vec<f64> {
    if outputs <= 1 {
        return vec![1.0; outputs];
    }
    let mut weights: Vec<f64> = (0..outputs).map(|i| 0.5f64.powi(i as i32)).collect();
    weights[outputs - 1] = 0.0;
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_rule() {
        assert_eq!(deep_supervision_weights(1), vec![1.0]);
        let w = deep_supervision_weights(4);
        let sum = 1.0 + 0.5 + 0.25;
        for (got, want) in w.iter().zip([1.0 / sum, 0.5 / sum, 0.25 / sum, 0.0]) {
            assert!((got - want).abs() < 1e-12);
        }
    }

    #[test]
    fn hand_computed_case() {
        // Two pixels, two classes, logits zero: p = 1/2 everywhere, CE = ln 2, Dice = (2*0.5 + s) / (1 + 1 + s).
        let logits = Tensor::zeros([1, 2, 1, 2], (Kind::Float, tch::Device::Cpu));
        let target = Tensor::from_slice(&[0i64, 1]).view([1, 1, 2]);
        let loss = DiceCrossEntropy::default()
            .single(&logits, &target)
            .double_value(&[]);
        let want = 2f64.ln() - (1.0 + 1e-5) / (2.0 + 1e-5);
        assert!((loss - want).abs() < 1e-6, "{loss} against {want}");
    }

    #[test]
    fn ignored_pixels_do_not_count() {
        let logits = Tensor::from_slice(&[0.3f32, -1.0, 2.0, 0.1, 0.5, -0.2]).view([1, 2, 1, 3]);
        let with = Tensor::from_slice(&[0i64, 1, -1]).view([1, 1, 3]);
        let without = Tensor::from_slice(&[0i64, 1]).view([1, 1, 2]);
        let loss = DiceCrossEntropy::default();
        let a = loss.single(&logits, &with).double_value(&[]);
        let b = loss
            .single(&logits.narrow(3, 0, 2), &without)
            .double_value(&[]);
        assert!((a - b).abs() < 1e-6, "{a} against {b}");
    }
}
