//! What the training loop does not know: what a batch is, what it costs, and how good the network has become.

use std::ops::Range;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use vision_mamba_datasets::Prefetch;
use vision_mamba_models::Built;

use super::optimizer::OptimizerConfig;
use super::profile::Watch;
use super::schedule::Schedule;
use crate::precision::Precision;
use crate::speed::Speed;

/// How a run trains, whatever it trains.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Course {
    /// Seed of initialisation, patches and augmentation.
    pub seed: u64,
    /// Patches a step.
    pub batch_size: usize,
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// Batches whose gradients are averaged before a step.
    pub accumulate: u64,
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
    /// Decay of the moving average of the weights, which is validated and saved; none: the weights themselves are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Epochs between two writings of the latest checkpoint.
    pub save_every: u64,
}

/// What is trained.
pub trait Task {
    /// What worker threads prepare for one step.
    type Batch: Send + 'static;
    /// A batch on the device.
    type Loaded;
    /// What an epoch's validation finds.
    type Scores: Scores;

    /// Batches of a range of numbers; each depends on its number alone.
    fn batches(&self, range: Range<u64>, workers: usize) -> Result<Prefetch<Self::Batch>>;

    /// Moves a batch to the device; what is computed there meanwhile is not waited for.
    fn load(&self, batch: &Self::Batch) -> Result<Self::Loaded>;

    /// The batch through the network, and its loss: a scalar that can be differentiated.
    fn loss(&self, built: &Built, batch: &Self::Loaded, watch: &Watch) -> Result<Tensor>;

    /// The tensors of a batch.
    fn tensors(batch: &Self::Loaded) -> Vec<&Tensor>;

    /// Whether, tensors of the same sizes given, two batches take the same way through network and loss.
    fn alike(_a: &Self::Loaded, _b: &Self::Loaded) -> bool {
        true
    }

    /// Scores the network. `smoothed` is the last epoch's [`Validation::choice`].
    fn validate(&self, built: &Built, smoothed: Option<f64>) -> Result<Validation<Self::Scores>>;

    /// Names of what [`Scores::scalars`] tells apart, such as classes.
    fn parts(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What an epoch's validation found.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation<S> {
    /// Mean loss.
    pub loss: Option<f64>,
    /// The columns of `log.jsonl`.
    pub scores: S,
    /// What the best checkpoint has the most of.
    pub choice: Option<f64>,
}

/// The scores of an epoch: columns of `log.jsonl` by their names, and how they are shown.
pub trait Scores: Clone + Serialize + DeserializeOwned {
    /// Title of their chart.
    const CHART: &'static str;
    /// The chart's curves, one or two.
    const CURVES: &'static [&'static str];
    /// What the main score is called in messages.
    const NAME: &'static str;

    /// Values of the curves; the first is the epoch's main score.
    fn curves(&self) -> Vec<Option<f64>>;

    /// The line of an epoch.
    fn told(&self) -> String;

    /// For TensorBoard: tags and values.
    fn scalars(&self, parts: &[String]) -> Vec<(String, Option<f64>)>;
}

/// A number as messages have it.
pub(super) fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_string(), |v| format!("{v:.decimals$}"))
}
