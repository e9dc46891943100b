//! One case through one or several trained networks, back to a label map on the case's own grid.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use ndarray::ArrayD;
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_datasets::{normalise, Configuration, Image, LabelMap, Plan};
use vision_mamba_models::{build, weights, Built};

use super::sliding_window::{predict, WindowOptions};
use crate::cli::args::CheckpointChoice;
use crate::engine::config::RunConfig;
use crate::engine::run_folder::RunFolder;

/// A network with what is needed to feed it.
pub struct Member {
    /// The run's settings.
    pub config: RunConfig,
    /// The run's decisions about its data set.
    pub plan: Plan,
    built: Built,
    device: Device,
}

/// Options of a prediction.
#[derive(Debug, Clone)]
pub struct PredictOptions {
    /// Distance of neighbouring windows as a part of the tile, in (0, 1].
    pub tile_step: f64,
    /// Average over the run's mirrored axes.
    pub mirroring: bool,
}

impl Member {
    /// Loads a run's network.
    pub fn load(root: &Path, checkpoint: Option<CheckpointChoice>, device: Device) -> Result<Self> {
        let folder = RunFolder::open(root)?;
        let config: RunConfig = RunFolder::read_json(&folder.config())?;
        let plan = Plan::read(&folder.plans())?;
        let file = folder.pick_checkpoint(checkpoint)?;
        let built = build(&config.network, device)?;
        weights::load_strict(&file, &built.params)?;
        Ok(Self {
            config,
            plan,
            built,
            device,
        })
    }

    /// Wraps a network that is in memory already.
    pub fn new(config: RunConfig, plan: Plan, built: Built, device: Device) -> Self {
        Self {
            config,
            plan,
            built,
            device,
        }
    }

    /// Gives the network back.
    pub fn into_built(self) -> Built {
        self.built
    }

    /// The configuration the run was trained with.
    pub fn configuration(&self) -> Result<&Configuration> {
        Ok(self.plan.configuration(&self.config.configuration)?)
    }

    /// Class scores (K, spatial…) of a raw image, as logits, on the CPU.
    pub fn logits(
        &self,
        image: &Image,
        options: &PredictOptions,
        on_window: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let configuration = self.configuration()?;
        let mut image = image.clone();
        let channels = image.data.shape().first().copied().unwrap_or(0);
        ensure!(
            channels == self.plan.channel_names.len(),
            "the image has {channels} channel(s), the run was trained with {} ({})",
            self.plan.channel_names.len(),
            self.plan.channel_names.join(", ")
        );
        normalise(&mut image, configuration)?;
        let tensor = tensor_of(&image.data)?;
        let window = WindowOptions {
            tile: self
                .config
                .training
                .training_patch
                .iter()
                .map(|&n| n as i64)
                .collect(),
            step: options.tile_step,
            mirror_axes: if options.mirroring {
                self.config.training.mirror_axes.clone()
            } else {
                Vec::new()
            },
            device: self.device,
        };
        let network = |x: &Tensor| -> Result<Tensor> {
            let outputs = self.built.net.forward(x, false)?;
            outputs
                .into_iter()
                .next()
                .context("the network gave no output")
        };
        let spatial = tensor.dim() - 1;
        match (window.tile.len(), spatial) {
            (t, s) if t == s => predict(&tensor, &window, &network, on_window),
            // A 2-D network sees a volume slice by slice.
            (2, 3) => {
                let slices: Vec<Tensor> = (0..tensor.size()[1])
                    .map(|z| predict(&tensor.select(1, z), &window, &network, on_window))
                    .collect::<Result<_>>()?;
                ensure!(!slices.is_empty(), "the volume has no slices");
                Ok(Tensor::stack(&slices, 1))
            }
            (t, s) => bail!("the image has {s} spatial axes, but the run predicts in {t}-D"),
        }
    }
}

/// The label map of an image: the most probable class, with the mean probability over an ensemble.
pub fn segment(
    members: &[Member],
    image: &Image,
    options: &PredictOptions,
    on_window: &mut dyn FnMut() -> Result<()>,
) -> Result<LabelMap> {
    let mut sum: Option<Tensor> = None;
    for member in members {
        let logits = member.logits(image, options, on_window)?;
        // One network needs no softmax: it does not change which class is largest.
        let scores = if members.len() > 1 {
            no_grad(|| logits.softmax(0, Kind::Float))
        } else {
            logits
        };
        sum = Some(match sum {
            Some(sum) => sum + scores,
            None => scores,
        });
    }
    let scores = sum.context("no run was given")?;
    ensure!(
        scores.isfinite().all().int64_value(&[]) == 1,
        "the network's output is not finite; the run's weights are unusable"
    );
    let classes = scores.argmax(0, false).to_kind(Kind::Int16).contiguous();
    let shape: Vec<usize> = classes.size().iter().map(|&n| n as usize).collect();
    let values: Vec<i16> = Vec::try_from(classes.flatten(0, -1))?;
    Ok(LabelMap {
        data: ArrayD::from_shape_vec(shape, values)?,
        geometry: image.geometry.clone(),
    })
}

fn tensor_of(array: &ArrayD<f32>) -> Result<Tensor> {
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    let standard = array.as_standard_layout();
    let values = standard
        .as_slice()
        .context("image array is not contiguous")?;
    Ok(Tensor::f_from_slice(values)?.f_view(&shape[..])?)
}
