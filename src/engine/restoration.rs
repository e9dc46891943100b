//! Restoration as the training loop sees it: pictures in pairs, the loss between them, PSNR and SSIM.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tch::{no_grad, Device, Tensor};
use vision_mamba_datasets::restoration::pictures::PairedPictures;
use vision_mamba_datasets::restoration::sampler::{
    draw_whole, prefetch_crops, CropSettings, RestorationBatch,
};
use vision_mamba_datasets::Prefetch;
use vision_mamba_models::{Built, NetworkSpec};
use vision_mamba_ops::device::upload;

use super::profile::{Phase, Watch};
use super::task::{shown, Course, Scores, Task, Validation};
use crate::dehaze::network::restore;
use crate::losses::image::ImageLoss;
use crate::metrics::overlap::mean;
use crate::metrics::restoration::{psnr, ssim, Channels, Window};
use crate::speed::Speed;

/// Longest side of the pictures that are scored after each epoch; of larger ones the middle is. The validation at the end knows no such limit.
const LONGEST_VALIDATED: u32 = 1024;
/// SSIM's window must fit.
const LEAST_FOR_SSIM: u32 = 11;
/// A PSNR beyond this is that of equal pictures, and would be infinite.
const MOST_PSNR: f64 = 100.0;

/// A run: what is trained on what, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorationConfig {
    /// Versions the run was started with.
    pub versions: BTreeMap<String, String>,
    /// The preset's name.
    pub preset: String,
    /// Overrides of the preset, as typed.
    pub overrides: Vec<(String, String)>,
    /// The network; dehazing builds this.
    pub network: NetworkSpec,
    /// Weights that training starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<String>,
    /// The folder of pictures, made absolute.
    pub dataset: String,
    /// Pairs trained on.
    pub training_ids: Vec<String>,
    /// Pairs validated on, no scene of which is trained on.
    pub validation_ids: Vec<String>,
    /// Pictures scored after each epoch.
    pub validation_pictures: usize,
    /// Crops and the haze drawn on them.
    pub crops: CropSettings,
    /// The loss.
    pub loss: ImageLoss,
    /// Whether no pictures are validated after training.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_validation: bool,
    /// How the loop runs.
    pub training: Course,
}

impl RestorationConfig {
    /// The crops with what the run says about them.
    pub fn crops(&self) -> CropSettings {
        CropSettings {
            batch_size: self.training.batch_size,
            seed: self.training.seed,
            ..self.crops.clone()
        }
    }
}

/// Damaged pictures and whole ones.
pub struct Restoration<'a> {
    /// How they are drawn and compared.
    pub config: &'a RestorationConfig,
    /// Pairs trained on.
    pub training: Arc<PairedPictures>,
    /// Pairs validated on; none: nothing is validated.
    pub validation: Option<&'a PairedPictures>,
    /// Where the network computes.
    pub device: Device,
}

/// Likeness of the restored validation pictures to the clear ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageScores {
    /// Mean PSNR in dB, RGB of 8 bits, which picks the best checkpoint.
    pub psnr: Option<f64>,
    /// Mean SSIM, RGB of 8 bits, Gaussian window.
    pub ssim: Option<f64>,
}

/// Damaged and whole pictures, (B, 3, rows, columns) in [0, 1].
fn tensors(batch: &RestorationBatch, device: Device, speed: Speed) -> Result<[Tensor; 2]> {
    let shape = batch.shape.map(|n| n as i64);
    let tensor = |values: &[f32]| -> Result<Tensor> {
        let host = Tensor::f_from_slice(values)?.f_view(shape)?;
        speed.image(upload(&host, device)?)
    };
    Ok([tensor(&batch.hazy)?, tensor(&batch.clear)?])
}

impl Task for Restoration<'_> {
    type Batch = RestorationBatch;
    type Loaded = [Tensor; 2];
    type Scores = ImageScores;

    fn batches(&self, range: Range<u64>, workers: usize) -> Result<Prefetch<RestorationBatch>> {
        let crops = self.config.crops();
        Ok(prefetch_crops(
            self.training.clone(),
            crops,
            range,
            workers,
        )?)
    }

    fn load(&self, batch: &RestorationBatch) -> Result<[Tensor; 2]> {
        tensors(batch, self.device, self.config.training.speed)
    }

    fn loss(&self, built: &Built, batch: &[Tensor; 2], watch: &Watch) -> Result<Tensor> {
        let [hazy, clear] = batch;
        let net = built.net.as_ref();
        let outputs = watch.phase(Phase::Forward, || {
            self.config.training.precision.forward(net, hazy, true)
        })?;
        let restored = outputs.first().context("the network gave no output")?;
        Ok(watch.phase(Phase::Loss, || self.config.loss.forward(restored, clear)))
    }

    fn tensors(batch: &[Tensor; 2]) -> Vec<&Tensor> {
        batch.iter().collect()
    }

    fn validate(&self, built: &Built, _smoothed: Option<f64>) -> Result<Validation<ImageScores>> {
        let mut found = Validation {
            loss: None,
            scores: ImageScores::default(),
            choice: None,
        };
        let Some(pictures) = self.validation else {
            return Ok(found);
        };
        let crops = self.config.crops();
        let (all, most) = (pictures.pairs().len(), self.config.validation_pictures);
        let (mut losses, mut psnrs, mut ssims) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..all.min(most) {
            // spread over all of them, the same in every epoch
            let batch = draw_whole(pictures, &crops, n * all / all.min(most), LONGEST_VALIDATED)?;
            let [hazy, clear] = tensors(&batch, self.device, self.config.training.speed)?;
            let restored = no_grad(|| restore(built, &hazy))?;
            let loss = no_grad(|| self.config.loss.forward(&restored, &clear));
            losses.push(Some(loss.double_value(&[])));
            let (restored, clear) = (picture(&restored)?, picture(&clear)?);
            psnrs.push(Some(
                psnr(&restored, &clear, Channels::Rgb, 0)?.min(MOST_PSNR),
            ));
            if clear.width().min(clear.height()) >= LEAST_FOR_SSIM {
                let value = ssim(&restored, &clear, Channels::Rgb, Window::Gaussian, 0)?;
                ssims.push(Some(value));
            }
        }
        found.loss = mean(losses);
        found.scores.psnr = mean(psnrs);
        found.scores.ssim = mean(ssims);
        found.choice = found.scores.psnr;
        Ok(found)
    }
}

/// (1, 3, rows, columns) in [0, 1] -> 8 bits.
fn picture(planes: &Tensor) -> Result<RgbImage> {
    let (_, _, h, w) = planes.size4()?;
    let pixels = (planes.clamp(0.0, 1.0) * 255.0)
        .round()
        .f_permute([0, 2, 3, 1])?
        .f_to_kind(tch::Kind::Uint8)?
        .f_to_device(Device::Cpu)?
        .f_contiguous()?
        .f_view([-1])?;
    RgbImage::from_raw(w as u32, h as u32, Vec::<u8>::try_from(pixels)?)
        .context("the network's picture has another size than its input")
}

impl Scores for ImageScores {
    const CHART: &'static str = "validation PSNR, dB";
    const CURVES: &'static [&'static str] = &["epoch"];
    const NAME: &'static str = "psnr";

    fn curves(&self) -> Vec<Option<f64>> {
        vec![self.psnr]
    }

    fn told(&self) -> String {
        format!("psnr {} ssim {}", shown(self.psnr, 3), shown(self.ssim, 4))
    }

    fn scalars(&self, _parts: &[String]) -> Vec<(String, Option<f64>)> {
        vec![
            ("psnr/mean".to_owned(), self.psnr),
            ("ssim/mean".to_owned(), self.ssim),
        ]
    }
}
