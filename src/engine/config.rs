//! `config.json`: everything needed to repeat a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vision_mamba_datasets::{Augmentation, DatasetJson};
use vision_mamba_models::NetworkSpec;

use super::optimizer::OptimizerConfig;
use super::schedule::Schedule;
use super::task::Course;
use crate::losses::{DiceOver, LossKind, SegmentationLoss};
use crate::precision::Precision;
use crate::speed::Speed;

/// A run: what is trained on what, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Versions the run was started with.
    pub versions: BTreeMap<String, String>,
    /// The preset's name.
    pub preset: String,
    /// Overrides of the preset, as typed.
    pub overrides: Vec<(String, String)>,
    /// The network with all data-dependent sizes filled in; prediction builds this.
    pub network: NetworkSpec,
    /// Weights that training starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// The data set's folder, made absolute.
    pub dataset: String,
    /// Where the preprocessed cases lie.
    #[serde(default)]
    pub preprocessed: String,
    /// A configuration of the plan: `2d`, `3d_fullres`, …
    pub configuration: String,
    /// The held-out fold, or `all`.
    pub fold: String,
    /// Identifiers trained on.
    pub training_ids: Vec<String>,
    /// Identifiers validated on.
    pub validation_ids: Vec<String>,
    /// Whether no whole images are validated after training.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_validation: bool,
    /// Training.
    pub training: TrainingConfig,
}

/// How a run trains.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Seed of initialisation, patches and augmentation.
    pub seed: u64,
    /// Training patch, slowest axis first.
    pub training_patch: Vec<usize>,
    /// Patches a step.
    pub batch_size: usize,
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The loss.
    #[serde(default)]
    pub loss: LossKind,
    /// What the Dice sums run over.
    pub dice: DiceOver,
    /// Batches whose gradients are averaged before a step.
    #[serde(default = "one")]
    pub accumulate: u64,
    /// Part of a batch forced to contain foreground.
    pub oversample_foreground: f64,
    /// The number format of forward passes.
    #[serde(default)]
    pub precision: Precision,
    /// How fast it computes.
    #[serde(default, skip_serializing_if = "Speed::is_usual")]
    pub speed: Speed,
    /// Whether the insides of blocks are computed again in the backward pass instead of being kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkpoint_activations: bool,
    /// Whether a GPU's steps are recorded as a CUDA graph and played.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cuda_graph: bool,
    /// What happens to patches.
    pub augmentation: Augmentation,
    /// Channels that augmentation leaves 0 outside the body: those the plan normalises within it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked_channels: Vec<usize>,
    /// Axes averaged over in prediction.
    pub mirror_axes: Vec<usize>,
    /// Batches of validation patches an epoch.
    pub validation_steps: u64,
    /// Decay of the moving average of the weights, which is validated and saved; none: the weights themselves are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Epochs between two writings of the latest checkpoint.
    pub save_every: u64,
}

fn one() -> u64 {
    1
}

impl TrainingConfig {
    /// What of it the training loop needs.
    pub fn course(&self) -> Course {
        Course {
            seed: self.seed,
            batch_size: self.batch_size,
            schedule: self.schedule.clone(),
            optimizer: self.optimizer.clone(),
            accumulate: self.accumulate,
            precision: self.precision,
            speed: self.speed,
            checkpoint_activations: self.checkpoint_activations,
            cuda_graph: self.cuda_graph,
            ema: self.ema,
            save_every: self.save_every,
        }
    }

    /// The loss for a data set's labels.
    pub fn loss(&self, info: &DatasetJson) -> SegmentationLoss {
        SegmentationLoss {
            kind: self.loss,
            over: self.dice,
            regions: info.regions.iter().map(|r| r.1.clone()).collect(),
            ..Default::default()
        }
    }
}
