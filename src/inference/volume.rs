//! One case through one or several trained networks, back to a label map on the case's own grid.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use ndarray::{Array4, ArrayView4};
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_datasets::{
    prepare_case, restore, Configuration, DatasetJson, Image, Plan, Restored, SourceGrid,
};
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
    /// The data set's channels and labels.
    pub info: DatasetJson,
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
    /// Keep the probabilities.
    pub probabilities: bool,
}

impl Member {
    /// Loads a run's network.
    pub fn load(root: &Path, checkpoint: Option<CheckpointChoice>, device: Device) -> Result<Self> {
        let folder = RunFolder::open(root)?;
        let config: RunConfig = RunFolder::read_json(&folder.config())?;
        let plan = Plan::read(&folder.plans())?;
        let info = DatasetJson::read(&folder.dataset())?;
        let file = folder.pick_checkpoint(checkpoint)?;
        let built = build(&config.network, device)?;
        weights::load_strict(&file, &built.params)?;
        Ok(Self {
            config,
            plan,
            info,
            built,
            device,
        })
    }

    /// Wraps a network that is in memory already.
    pub fn new(
        config: RunConfig,
        plan: Plan,
        info: DatasetJson,
        built: Built,
        device: Device,
    ) -> Self {
        Self {
            config,
            plan,
            info,
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

    /// Whether another's scores are of the same grid and classes, so that they may be averaged as they are.
    fn agrees_with(&self, other: &Self) -> bool {
        self.info.labels == other.info.labels
            && self.info.regions == other.info.regions
            && self.config.configuration == other.config.configuration
            && self.plan.transpose_forward == other.plan.transpose_forward
            && self.plan.foreground_intensity_properties_per_channel
                == other.plan.foreground_intensity_properties_per_channel
            && match (self.configuration(), other.configuration()) {
                (Ok(a), Ok(b)) => {
                    a.spacing == b.spacing
                        && a.normalization_schemes == b.normalization_schemes
                        && a.use_mask_for_norm == b.use_mask_for_norm
                }
                _ => false,
            }
    }

    /// Class scores (K, Z, Y, X) of a preprocessed image (C, Z, Y, X), as logits in float32 on the CPU.
    pub fn logits(
        &self,
        image: &Tensor,
        options: &PredictOptions,
        on_window: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
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
        scores(image, &window, &network, on_window)
    }
}

/// Scores (K, Z, Y, X) of a preprocessed image (C, Z, Y, X) by a network of three axes, or of two, slice by slice.
pub fn scores(
    image: &Tensor,
    window: &WindowOptions,
    network: &dyn Fn(&Tensor) -> Result<Tensor>,
    on_window: &mut dyn FnMut() -> Result<()>,
) -> Result<Tensor> {
    match window.tile.len() {
        3 => predict(image, window, network, on_window),
        2 => {
            let mut all: Option<Tensor> = None;
            for z in 0..image.size()[1] {
                let slice = predict(&image.select(1, z), window, network, on_window)?;
                let all = all.get_or_insert_with(|| {
                    let size = slice.size();
                    let full = [size[0], image.size()[1], size[1], size[2]];
                    Tensor::zeros(full, (Kind::Float, Device::Cpu))
                });
                no_grad(|| all.select(1, z).copy_(&slice));
            }
            all.context("the volume has no slices")
        }
        n => bail!("the run's patch has {n} axes, expected 2 or 3"),
    }
}

/// The prediction of an image by one network or an ensemble. Networks trained on the same grid (the folds of a configuration) are averaged in
/// their scores, others in their probabilities on the file's grid, as nnU-Net does.
pub fn segment(
    members: &[Member],
    image: &Image,
    options: &PredictOptions,
    on_window: &mut dyn FnMut() -> Result<()>,
) -> Result<Restored> {
    let mut groups: Vec<Vec<&Member>> = Vec::new();
    for member in members {
        match groups.iter_mut().find(|g| g[0].agrees_with(member)) {
            Some(group) => group.push(member),
            None => groups.push(vec![member]),
        }
    }
    let single = groups.len() == 1;
    let mut sum: Option<(Array4<f32>, SourceGrid)> = None;
    for group in &groups {
        let first = group[0];
        let configuration = first.configuration()?;
        let case = prepare_case("image", image, None, &first.plan, configuration)?;
        let tensor = tensor_of(&case.image)?;
        drop(case.image);
        let mut total: Option<Tensor> = None;
        for member in group {
            let logits = member.logits(&tensor, options, on_window)?;
            total = Some(match total {
                Some(sum) => sum + logits,
                None => logits,
            });
        }
        let total = total.context("no run was given")?;
        let logits = match group.len() {
            1 => total,
            n => total / n as f64,
        };
        ensure!(
            logits.isfinite().all().int64_value(&[]) == 1,
            "the network's output is not finite; the run's weights are unusable"
        );
        drop(tensor);
        let restored = with_array(&logits, |scores| {
            let decision = first.info.decision();
            let probabilities = options.probabilities || !single;
            restore(
                scores,
                &case.source,
                configuration,
                &decision,
                probabilities,
            )
        })?;
        if single {
            return Ok(restored);
        }
        let probabilities = restored.probabilities.context("no probabilities")?;
        sum = Some(match sum {
            Some((sum, source)) => (sum + probabilities, source),
            None => (probabilities, case.source),
        });
    }
    let (mut mean, source) = sum.context("no run was given")?;
    let n = groups.len() as f32;
    mean.mapv_inplace(|v| v / n);
    let labels = members[0].info.decision().labels_of(mean.view());
    Ok(Restored {
        labels: source.label_map(labels),
        probabilities: options.probabilities.then_some(mean),
    })
}

/// An array as a tensor that owns its values.
pub fn tensor_of(array: &Array4<f32>) -> Result<Tensor> {
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    let standard = array.as_standard_layout();
    let values = standard
        .as_slice()
        .context("image array is not contiguous")?;
    Ok(Tensor::f_from_slice(values)?.f_view(&shape[..])?)
}

/// Hands a tensor (K, Z, Y, X) of float32 on the CPU to a function as an array, without a copy.
#[allow(unsafe_code)]
fn with_array<R>(tensor: &Tensor, f: impl FnOnce(ArrayView4<f32>) -> R) -> Result<R> {
    let tensor = tensor
        .f_to_kind(Kind::Float)?
        .f_to_device(Device::Cpu)?
        .f_contiguous()?;
    let size: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    let [k, z, y, x] = size[..] else {
        bail!("the scores are of shape {size:?}, expected four axes");
    };
    // SAFETY: the tensor is contiguous, of float32, on the CPU, of just so many values, and outlives the slice.
    let values =
        unsafe { std::slice::from_raw_parts(tensor.data_ptr() as *const f32, k * z * y * x) };
    Ok(f(ArrayView4::from_shape((k, z, y, x), values)?))
}
