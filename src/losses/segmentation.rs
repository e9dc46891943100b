//! What segmentation is trained with: cross-entropy and Dice in the forms that published recipes have, over one or several outputs.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use super::soft_dice::{soft_dice, squared_dice, DiceOver};

/// A loss by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LossKind {
    /// nnU-Net's: mean cross-entropy plus soft Dice of the foreground classes
    #[default]
    DiceCe,
    /// nnU-Net's for hard voxels: cross-entropy of the worst tenth plus soft Dice
    DiceTopk,
    /// Mean cross-entropy alone
    Ce,
    /// Mamba-UNet's: half cross-entropy, half squared Dice over the batch, background included
    MambaUnet,
    /// TransUNet's: 0.4 cross-entropy, 0.6 squared Dice
    Transunet,
}

/// How targets are to be read, and what is computed from them.
#[derive(Debug, Clone)]
pub struct SegmentationLoss {
    /// The form.
    pub kind: LossKind,
    /// What nnU-Net's Dice sums run over.
    pub over: DiceOver,
    /// Added to both halves of the Dice quotient, so that an absent class that is not predicted counts as right.
    pub smooth: f64,
    /// Label values of each output channel where classes overlap; empty where they exclude one another.
    pub regions: Vec<Vec<i16>>,
}

impl Default for SegmentationLoss {
    fn default() -> Self {
        Self {
            kind: LossKind::DiceCe,
            over: DiceOver::Batch,
            smooth: 1e-5,
            regions: Vec::new(),
        }
    }
}

/// Labels (B, …; int64) that a loss compares with; below zero nothing is known.
#[derive(Debug)]
pub struct Target {
    /// The labels.
    pub labels: Tensor,
    /// Whether any may be below zero.
    pub partial: bool,
}

impl Target {
    /// Looks whether any is below zero, for which the device is waited for.
    pub fn new(labels: Tensor) -> Self {
        let partial = labels.numel() > 0 && labels.min().int64_value(&[]) < 0;
        Self { labels, partial }
    }
}

/// Labels below zero take no part.
const IGNORED: i64 = -1;
/// Part of the voxels that the hard form of cross-entropy averages.
const HARD: f64 = 0.1;

impl SegmentationLoss {
    /// Loss of `outputs` (finest first, each (B, K, …)) against `target`, weighted by [`deep_supervision_weights`]. Coarser outputs see the
    /// target by nearest neighbour.
    pub fn forward(&self, outputs: &[Tensor], target: &Target) -> Tensor {
        let targets: Vec<Target> = outputs
            .iter()
            .map(|output| Target {
                labels: match &output.size()[2..] {
                    size if target.labels.size()[1..] == *size => target.labels.shallow_clone(),
                    size => resize_nearest(&target.labels, size),
                },
                partial: target.partial,
            })
            .collect();
        self.each(outputs, &targets)
    }

    /// The same with a target for each output.
    pub fn each(&self, outputs: &[Tensor], targets: &[Target]) -> Tensor {
        let weights = deep_supervision_weights(outputs.len());
        let used = weights.iter().zip(outputs.iter().zip(targets));
        used.filter(|(weight, _)| **weight != 0.0)
            .map(|(weight, (output, target))| self.single(output, target) * *weight)
            .reduce(|sum, loss| sum + loss)
            .unwrap_or_else(|| Tensor::zeros([], (Kind::Float, tch::Device::Cpu)))
    }

    /// Loss of one output (B, K, …) against `target`.
    pub fn single(&self, logits: &Tensor, target: &Target) -> Tensor {
        let logits = logits.to_kind(Kind::Float);
        let valid = target
            .partial
            .then(|| target.labels.ge(0).unsqueeze(1).to_kind(Kind::Float));
        let target = &target.labels;
        if !self.regions.is_empty() {
            let target = region_target(target, &self.regions);
            return self.regions(&logits, &target, valid.as_ref());
        }
        let cross_entropy =
            |reduction| logits.cross_entropy_loss::<Tensor>(target, None, reduction, IGNORED, 0.0);
        let ce = |reduction| match (&valid, reduction) {
            // a patch of which nothing is known has no mean cross-entropy; it counts as nothing, as in nnU-Net
            (Some(valid), Reduction::Mean) => {
                cross_entropy(Reduction::Sum) / valid.sum(Kind::Float).clamp_min(1.0)
            }
            (_, reduction) => cross_entropy(reduction),
        };
        let one_hot = || one_hot(target, logits.size()[1]);
        match self.kind {
            LossKind::Ce => ce(Reduction::Mean),
            LossKind::DiceCe => {
                ce(Reduction::Mean) + self.dice(&logits, &one_hot(), valid.as_ref())
            }
            LossKind::DiceTopk => {
                let each = ce(Reduction::None).flatten(0, -1);
                let most = ((each.numel() as f64 * HARD) as i64).max(1);
                let (hardest, _) = each.topk(most, 0, true, false);
                hardest.mean(Kind::Float) + self.dice(&logits, &one_hot(), valid.as_ref())
            }
            LossKind::MambaUnet | LossKind::Transunet => {
                let share = if self.kind == LossKind::MambaUnet {
                    0.5
                } else {
                    0.6
                };
                let mask = |t: Tensor| match &valid {
                    Some(valid) => t * valid,
                    None => t,
                };
                let probabilities = mask(logits.softmax(1, Kind::Float));
                let dice = squared_dice(&probabilities, &mask(one_hot()), None);
                ce(Reduction::Mean) * (1.0 - share) + dice * share
            }
        }
    }

    /// Soft Dice of the foreground classes.
    fn dice(&self, logits: &Tensor, one_hot: &Tensor, valid: Option<&Tensor>) -> Tensor {
        let classes = logits.size()[1];
        if classes < 2 {
            return Tensor::zeros([], (Kind::Float, logits.device()));
        }
        // Background is left out after the softmax.
        let foreground = |t: &Tensor| t.narrow(1, 1, classes - 1);
        let probabilities = logits.softmax(1, Kind::Float);
        soft_dice(
            &foreground(&probabilities),
            &foreground(one_hot),
            valid,
            self.over,
            self.smooth,
        )
    }

    /// Binary cross-entropy plus sigmoid Dice of all channels against `target` (B, K, …) of zeros and ones.
    pub fn regions(&self, logits: &Tensor, target: &Tensor, valid: Option<&Tensor>) -> Tensor {
        let bce = |reduction| {
            logits.binary_cross_entropy_with_logits::<Tensor>(target, None, None, reduction)
        };
        let bce = match valid {
            None => bce(Reduction::Mean),
            // the mean over voxels that count, as nnU-Net has it: the sum over channels too
            Some(valid) => {
                (bce(Reduction::None) * valid).sum(Kind::Float)
                    / valid.sum(Kind::Float).clamp_min(1e-8)
            }
        };
        bce + soft_dice(&logits.sigmoid(), target, valid, self.over, self.smooth)
    }
}

/// One-hot coding with the class axis second, which is where the logits have it; nothing for ignored voxels but class 0.
fn one_hot(target: &Tensor, classes: i64) -> Tensor {
    let index = target.clamp_min(0).unsqueeze(1);
    let mut size = index.size();
    size[1] = classes;
    Tensor::zeros(&size, (Kind::Float, target.device())).scatter_value(1, &index, 1.0)
}

/// Labels (B, …) as one channel of zeros and ones a region.
pub fn region_target(target: &Tensor, regions: &[Vec<i16>]) -> Tensor {
    let channels: Vec<Tensor> = regions
        .iter()
        .map(|values| {
            values
                .iter()
                .map(|v| target.eq(i64::from(*v)))
                .reduce(|a, b| a.logical_or(&b))
                .unwrap_or_else(|| target.zeros_like().to_kind(Kind::Bool))
                .to_kind(Kind::Float)
        })
        .collect();
    Tensor::stack(&channels, 1)
}

/// Labels on a coarser grid: of the position nearest to each centre, as nnU-Net's augmentation has it (PyTorch's `nearest-exact`).
fn resize_nearest(target: &Tensor, size: &[i64]) -> Tensor {
    let image = target.unsqueeze(1).to_kind(Kind::Float);
    let resized = match size.len() {
        2 => image.internal_upsample_nearest_exact2d(size, None::<f64>, None::<f64>),
        _ => image.internal_upsample_nearest_exact3d(size, None::<f64>, None::<f64>, None::<f64>),
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
        let loss = SegmentationLoss::default()
            .single(&logits, &Target::new(target))
            .double_value(&[]);
        let want = 2f64.ln() - (1.0 + 1e-5) / (2.0 + 1e-5);
        assert!((loss - want).abs() < 1e-6, "{loss} against {want}");
    }

    #[test]
    fn ignored_pixels_do_not_count() {
        let logits = Tensor::from_slice(&[0.3f32, -1.0, 2.0, 0.1, 0.5, -0.2]).view([1, 2, 1, 3]);
        let with = Tensor::from_slice(&[0i64, 1, -1]).view([1, 1, 3]);
        let without = Tensor::from_slice(&[0i64, 1]).view([1, 1, 2]);
        let loss = SegmentationLoss::default();
        let a = loss.single(&logits, &Target::new(with)).double_value(&[]);
        let b = loss
            .single(&logits.narrow(3, 0, 2), &Target::new(without))
            .double_value(&[]);
        assert!((a - b).abs() < 1e-6, "{a} against {b}");
    }

    /// A patch without a known voxel gives a finite loss and no gradient that is not finite.
    #[test]
    fn nothing_known_is_no_nan() {
        let target = Target::new(Tensor::from_slice(&[-1i64, -1]).view([1, 1, 2]));
        for kind in [
            LossKind::DiceCe,
            LossKind::DiceTopk,
            LossKind::Ce,
            LossKind::MambaUnet,
        ] {
            let logits = Tensor::from_slice(&[0.3f32, -1.0, 2.0, 0.1])
                .view([1, 2, 1, 2])
                .set_requires_grad(true);
            let loss = SegmentationLoss {
                kind,
                ..Default::default()
            };
            let value = loss.single(&logits, &target);
            assert!(value.double_value(&[]).is_finite(), "{kind:?}");
            value.backward();
            assert!(
                logits.grad().isfinite().all().int64_value(&[]) == 1,
                "{kind:?}"
            );
        }
    }
}
