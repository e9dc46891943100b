//! Validation: patches after every epoch, whole images at the end.

use anyhow::{Context, Result};
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_datasets::{draw_batch, Augmentation, DatasetJson, PatchSettings, TrainingCase};
use vision_mamba_models::Built;

use super::batch::TensorBatch;
use super::config::TrainingConfig;
use crate::losses::region_target;
use crate::metrics::overlap::mean;

/// What an epoch's validation found.
#[derive(Debug, Clone, Default)]
pub struct PatchScores {
    /// Mean loss.
    pub loss: Option<f64>,
    /// Mean of the classes' Dice.
    pub dice: Option<f64>,
    /// Dice per foreground class, pooled over all validation patches.
    pub per_class: Vec<Option<f64>>,
}

/// Offset of the seed, so that validation patches are not those of training.
const VALIDATION_STREAM: u64 = 0x7661_6c69_6461_7465;

/// Scores the same patches in every epoch, without augmentation.
pub fn on_patches(
    built: &Built,
    cases: &[TrainingCase],
    config: &TrainingConfig,
    info: &DatasetJson,
    device: Device,
) -> Result<PatchScores> {
    if cases.is_empty() || config.validation_steps == 0 {
        return Ok(PatchScores::default());
    }
    let settings = PatchSettings {
        training_patch: config.training_patch.clone(),
        batch_size: config.batch_size,
        oversample_foreground: config.oversample_foreground,
        augment: Augmentation::none(),
        masked_channels: Vec::new(),
        ignore_label: info.ignore_label,
        seed: config.seed ^ VALIDATION_STREAM,
    };
    settings.validate(cases)?;
    let loss = config.loss(info);
    let mut losses = Vec::new();
    let scored = info.foreground();
    // Rows: true positives, predicted, present; columns: classes or regions.
    let mut counts = Tensor::zeros([3, scored.len() as i64], (Kind::Double, device));
    let values: Vec<Vec<i16>> = scored.into_iter().map(|f| f.1).collect();
    for index in 0..config.validation_steps {
        let batch = TensorBatch::new(&draw_batch(cases, &settings, index), device, config.speed)?;
        no_grad(|| -> Result<()> {
            let net = built.net.as_ref();
            let outputs = config.precision.forward(net, &batch.image, false)?;
            let finest = outputs.first().context("the network gave no output")?;
            losses.push(loss.single(finest, &batch.target).double_value(&[]));
            let predicted = match info.regions.is_empty() {
                true => region_target(&finest.argmax(1, false), &values),
                // a sigmoid above one half
                false => finest.gt(0.0).to_kind(Kind::Float),
            };
            counts += overlap(&predicted, &batch.target.labels, &values);
            Ok(())
        })?;
    }
    let rows: Vec<Vec<f64>> = Vec::try_from(counts.to_device(Device::Cpu))?;
    let per_class: Vec<Option<f64>> = (0..values.len())
        .map(|c| {
            let both = rows[1][c] + rows[2][c];
            (both > 0.0).then(|| 2.0 * rows[0][c] / both)
        })
        .collect();
    Ok(PatchScores {
        loss: mean(losses.into_iter().map(Some)),
        dice: mean(per_class.iter().copied()),
        per_class,
    })
}

/// Counts of predicted classes (B, K, …; zeros and ones) against labels (B, …), where those are known.
fn overlap(predicted: &Tensor, target: &Tensor, values: &[Vec<i16>]) -> Tensor {
    let known = target.ge(0).unsqueeze(1).to_kind(Kind::Float);
    let present = region_target(target, values);
    let mut dims: Vec<i64> = (0..predicted.dim() as i64).collect();
    dims.remove(1);
    let sum = |t: Tensor| (t * &known).sum_dim_intlist(&dims[..], false, Kind::Double);
    Tensor::stack(
        &[
            sum(predicted * &present),
            sum(predicted.shallow_clone()),
            sum(present),
        ],
        0,
    )
}
