//! Validation: patches after every epoch, whole images at the end.

use anyhow::{Context, Result};
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_datasets::{draw_batch, Augmentation, PatchSettings, PreparedCase};
use vision_mamba_models::Built;

use super::batch::TensorBatch;
use super::config::TrainingConfig;
use crate::losses::DiceCrossEntropy;
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
    cases: &[PreparedCase],
    config: &TrainingConfig,
    classes: usize,
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
        seed: config.seed ^ VALIDATION_STREAM,
    };
    settings.validate(cases)?;
    let loss = DiceCrossEntropy {
        over: config.dice,
        ..Default::default()
    };
    let mut losses = Vec::new();
    // Rows: true positives, predicted, present; columns: classes.
    let mut counts = Tensor::zeros([3, classes as i64], (Kind::Double, device));
    for index in 0..config.validation_steps {
        let batch = TensorBatch::new(&draw_batch(cases, &settings, index), device)?;
        no_grad(|| -> Result<()> {
            let outputs = built.net.forward(&batch.image, false)?;
            let finest = outputs.first().context("the network gave no output")?;
            losses.push(loss.single(finest, &batch.label).double_value(&[]));
            counts += overlap(&finest.argmax(1, false), &batch.label, classes as i64);
            Ok(())
        })?;
    }
    let rows: Vec<Vec<f64>> = Vec::try_from(counts.to_device(Device::Cpu))?;
    let per_class: Vec<Option<f64>> = (1..classes)
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

fn overlap(prediction: &Tensor, target: &Tensor, classes: i64) -> Tensor {
    let valid = target.ge(0);
    let prediction = prediction.masked_select(&valid);
    let target = target.masked_select(&valid);
    let histogram = |t: &Tensor| t.bincount::<Tensor>(None, classes).to_kind(Kind::Double);
    let hits = target.masked_select(&prediction.eq_tensor(&target));
    Tensor::stack(
        &[histogram(&hits), histogram(&prediction), histogram(&target)],
        0,
    )
}
