//! Segmentation as the training loop sees it.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};
use vision_mamba_datasets::{Batch, DatasetJson, PatchSettings, Prefetch, TrainingCase};
use vision_mamba_models::Built;

use super::batch::TensorBatch;
use super::config::TrainingConfig;
use super::profile::{Phase, Watch};
use super::task::{shown, Scores, Task, Validation};
use super::validation::on_patches;

/// Patches of labelled images.
pub struct Segmentation<'a> {
    /// How they are drawn and what they cost.
    pub config: &'a TrainingConfig,
    /// The labels.
    pub info: &'a DatasetJson,
    /// Cases trained on.
    pub training: Arc<Vec<TrainingCase>>,
    /// Cases validated on.
    pub validation: &'a [TrainingCase],
    /// Where the network computes.
    pub device: Device,
}

/// Overlap on the validation patches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiceScores {
    /// Dice of the validation patches, pooled per class, averaged over foreground classes.
    pub dice: Option<f64>,
    /// Its exponential average (0.9), which picks the best checkpoint.
    pub dice_ema: Option<f64>,
    /// Per class, in the order of the labels without background.
    pub dice_per_class: Vec<Option<f64>>,
}

impl Task for Segmentation<'_> {
    type Batch = Batch;
    type Loaded = TensorBatch;
    type Scores = DiceScores;

    fn batches(&self, range: Range<u64>, workers: usize) -> Result<Prefetch> {
        let settings = PatchSettings {
            training_patch: self.config.training_patch.clone(),
            batch_size: self.config.batch_size,
            oversample_foreground: self.config.oversample_foreground,
            augment: self.config.augmentation.clone(),
            masked_channels: self.config.masked_channels.clone(),
            ignore_label: self.info.ignore_label,
            seed: self.config.seed,
        };
        Ok(Prefetch::new(
            self.training.clone(),
            settings,
            range,
            workers,
        )?)
    }

    fn load(&self, batch: &Batch) -> Result<TensorBatch> {
        TensorBatch::new(batch, self.device, self.config.speed)
    }

    fn loss(&self, built: &Built, batch: &TensorBatch, watch: &Watch) -> Result<Tensor> {
        let net = built.net.as_ref();
        let outputs = watch.phase(Phase::Forward, || {
            self.config.precision.forward(net, &batch.image, true)
        })?;
        let loss = self.config.loss(self.info);
        Ok(watch.phase(Phase::Loss, || loss.forward(&outputs, &batch.target)))
    }

    fn tensors(batch: &TensorBatch) -> Vec<&Tensor> {
        vec![&batch.image, &batch.target.labels]
    }

    fn alike(a: &TensorBatch, b: &TensorBatch) -> bool {
        a.target.partial == b.target.partial
    }

    fn validate(&self, built: &Built, smoothed: Option<f64>) -> Result<Validation<DiceScores>> {
        let found = on_patches(built, self.validation, self.config, self.info, self.device)?;
        let choice = match found.dice {
            Some(dice) => Some(smoothed.map_or(dice, |ema| 0.9 * ema + 0.1 * dice)),
            None => smoothed,
        };
        Ok(Validation {
            loss: found.loss,
            scores: DiceScores {
                dice: found.dice,
                dice_ema: choice,
                dice_per_class: found.per_class,
            },
            choice,
        })
    }

    fn parts(&self) -> Vec<String> {
        self.info.foreground().into_iter().map(|f| f.0).collect()
    }
}

impl Scores for DiceScores {
    const CHART: &'static str = "validation Dice";
    const CURVES: &'static [&'static str] = &["epoch", "moving average"];
    const NAME: &'static str = "dice";

    fn curves(&self) -> Vec<Option<f64>> {
        vec![self.dice, self.dice_ema]
    }

    fn told(&self) -> String {
        format!(
            "dice {} (smoothed {})",
            shown(self.dice, 4),
            shown(self.dice_ema, 4)
        )
    }

    fn scalars(&self, parts: &[String]) -> Vec<(String, Option<f64>)> {
        let mut scalars = vec![
            ("dice/mean".to_owned(), self.dice),
            ("dice/smoothed".to_owned(), self.dice_ema),
        ];
        for (name, dice) in parts.iter().zip(&self.dice_per_class) {
            scalars.push((format!("dice/{name}"), *dice));
        }
        scalars
    }
}
