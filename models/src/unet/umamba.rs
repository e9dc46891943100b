//! U-Mamba Bot: a residual U-Net with one Mamba layer in the bottleneck, 2-D and 3-D in one.
//!
//! Paper: Ma, Li and Wang, *U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation*, 2024.
//! Reference: bowang-lab/U-Mamba at 28459e33ca03, `umamba/nnunetv2/nets/UMambaBot_{2d,3d}.py`, initialisation in
//! `umamba/nnunetv2/utilities/network_initialization.py`.
//!
//! *Differences from the reference*
//! - One implementation for both; what differs between the reference's two files, the skip connection at full
//!   resolution, is the field `full_resolution_skip`.
//! - Without a plan the strides and kernels follow from `training_patch` by the rule that makes the plan.
//! - An even kernel size is refused (the reference fails in its forward pass).
//! - Kept: the deeper half of the stages has one block whatever `n_conv_per_stage` says, the Mamba layer has no residual
//!   connection, every decoder stage has a segmentation layer even without deep supervision.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::residual::{conv, Blocks, Style};
use super::topology::Topology;
use crate::layers::{Conv, LayerNorm};
use crate::network::check_input;
use crate::ssm::{Mamba, MambaConfig};
use crate::{ModelError, Network, Scope, Stage};

/// One number for all stages, or one each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerStage {
    /// The same everywhere.
    Same(i64),
    /// Finest stage first in the encoder, coarsest first in the decoder.
    Each(Vec<i64>),
}

impl PerStage {
    fn resolve(&self, stages: usize, field: &'static str) -> Result<Vec<i64>, ModelError> {
        let each = match self {
            PerStage::Same(n) => vec![*n; stages],
            PerStage::Each(each) => each.clone(),
        };
        if each.len() != stages || each.iter().any(|n| *n < 1) {
            let message = format!("{each:?} does not go with {stages} stages, expected {stages} numbers of at least 1");
            return Err(ModelError::config(field, message));
        }
        Ok(each)
    }
}

/// Configuration of [`UMamba`]. Lists left empty follow from the training patch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UMambaConfig {
    /// Channels of the image.
    pub input_channels: i64,
    /// Classes, background included.
    pub num_classes: i64,
    /// Size of the crops it is trained on; gives depth, strides and kernels where they are not stated.
    pub training_patch: Vec<i64>,
    /// Voxel spacing of the crops along the same axes; none: the same along all.
    #[serde(default)]
    pub spacing: Option<Vec<f64>>,
    /// Upper limit to the depth that follows from the training patch.
    #[serde(default)]
    pub max_stages: Option<usize>,
    /// Features of the first stage, doubled from stage to stage.
    pub base_features: i64,
    /// Where the doubling ends.
    pub max_features: i64,
    /// Features of every stage, instead of the two above; also fixes the depth.
    #[serde(default)]
    pub features_per_stage: Vec<i64>,
    /// Kernel of every stage.
    #[serde(default)]
    pub kernel_sizes: Vec<Vec<i64>>,
    /// Stride of every stage.
    #[serde(default)]
    pub strides: Vec<Vec<i64>>,
    /// Blocks of the encoder stages; the deeper half has one whatever this says.
    pub n_conv_per_stage: PerStage,
    /// Blocks of the decoder stages; the finer half has one whatever this says.
    pub n_conv_per_stage_decoder: PerStage,
    /// Whether the convolutions of the second and later blocks of a stage have a bias.
    pub conv_bias: bool,
    /// Added to the variance of the instance norms.
    pub norm_eps: f64,
    /// Whether the instance norms have weight and bias.
    pub norm_affine: bool,
    /// Slope of the leaky ReLU for negative values.
    pub negative_slope: f64,
    /// Whether every decoder stage gives logits in training.
    pub deep_supervision: bool,
    /// Whether the finest decoder stage sees the finest encoder features (3-D) or not (2-D).
    pub full_resolution_skip: bool,
    /// States per channel of the Mamba layer.
    pub d_state: i64,
    /// Width of the Mamba layer's causal convolution.
    pub d_conv: i64,
    /// Inner channels per channel of the Mamba layer.
    pub expand: f64,
}

/// The lists of a [`UMambaConfig`], all of them stated and of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Features per stage.
    pub features: Vec<i64>,
    /// Kernel per stage.
    pub kernels: Vec<Vec<i64>>,
    /// Stride per stage.
    pub strides: Vec<Vec<i64>>,
    /// Blocks per encoder stage.
    pub blocks: Vec<i64>,
    /// Blocks per decoder stage, coarsest first.
    pub blocks_decoder: Vec<i64>,
}

impl UMambaConfig {
    /// Number of spatial axes.
    pub fn spatial_dims(&self) -> usize {
        self.strides
            .first()
            .map_or(self.training_patch.len(), Vec::len)
    }

    /// Fills the open lists and checks that all go together.
    pub fn resolve(&self) -> Result<Resolved, ModelError> {
        let dims = self.spatial_dims();
        let (mut strides, mut kernels) = (self.strides.clone(), self.kernel_sizes.clone());
        if strides.is_empty() {
            let stated = [self.features_per_stage.len(), kernels.len()]
                .into_iter()
                .find(|n| *n > 0);
            let topology = Topology::for_patch(
                &self.training_patch,
                self.spacing.as_deref(),
                stated.or(self.max_stages),
            )?;
            if stated.is_some_and(|n| n > topology.strides.len()) {
                let message = format!(
                    "{} stages need a larger training patch than {:?}, which allows {}; state fewer, or `strides` too",
                    stated.unwrap_or_default(),
                    self.training_patch,
                    topology.strides.len()
                );
                return Err(ModelError::config("features_per_stage", message));
            }
            if kernels.is_empty() {
                kernels = topology.kernel_sizes;
            }
            strides = topology.strides;
        } else if kernels.is_empty() {
            kernels = vec![vec![3; dims]; strides.len()];
        }
        let n = strides.len();
        let features = match self.features_per_stage.is_empty() {
            false => self.features_per_stage.clone(),
            true => (0..n as u32)
                .map(|i| {
                    self.base_features
                        .saturating_mul(2i64.saturating_pow(i))
                        .min(self.max_features)
                })
                .collect(),
        };
        let mut blocks = self.n_conv_per_stage.resolve(n, "n_conv_per_stage")?;
        let mut blocks_decoder = self
            .n_conv_per_stage_decoder
            .resolve(n - 1, "n_conv_per_stage_decoder")?;
        blocks.iter_mut().skip(n.div_ceil(2)).for_each(|b| *b = 1);
        // ceil((n - 1) / 2 + 1/2) = ceil(n / 2)
        blocks_decoder
            .iter_mut()
            .skip(n.div_ceil(2))
            .for_each(|b| *b = 1);
        let resolved = Resolved {
            features,
            kernels,
            strides,
            blocks,
            blocks_decoder,
        };
        self.check(&resolved, dims)?;
        Ok(resolved)
    }

    fn check(&self, r: &Resolved, dims: usize) -> Result<(), ModelError> {
        let n = r.strides.len();
        if n < 2 {
            let message = format!(
                "{n} stage, a U-Net needs at least 2; the training patch must be at least 8 long"
            );
            return Err(ModelError::config("strides", message));
        }
        if !(2..=3).contains(&dims) {
            return Err(ModelError::config(
                "strides",
                format!("{dims} spatial axes, expected 2 or 3"),
            ));
        }
        for (field, length) in [
            ("features_per_stage", r.features.len()),
            ("kernel_sizes", r.kernels.len()),
        ] {
            if length != n {
                return Err(ModelError::config(
                    field,
                    format!("{length} stages, but `strides` has {n}"),
                ));
            }
        }
        for (field, rows) in [("strides", &r.strides), ("kernel_sizes", &r.kernels)] {
            if let Some(row) = rows
                .iter()
                .find(|row| row.len() != dims || row.iter().any(|v| *v < 1))
            {
                return Err(ModelError::config(
                    field,
                    format!("{row:?}, expected {dims} numbers of at least 1"),
                ));
            }
        }
        if let Some(row) = r.kernels.iter().find(|row| row.iter().any(|k| k % 2 == 0)) {
            let message = format!(
                "{row:?}, expected odd sizes, an even one changes the size of the feature map"
            );
            return Err(ModelError::config("kernel_sizes", message));
        }
        let sizes = [
            ("input_channels", self.input_channels),
            ("num_classes", self.num_classes),
        ];
        let features = r.features.iter().map(|f| ("features_per_stage", *f));
        match sizes
            .into_iter()
            .chain(features)
            .find(|(_, size)| *size < 1)
        {
            Some((field, size)) => Err(ModelError::config(
                field,
                format!("{size}, expected at least 1"),
            )),
            None => Ok(()),
        }
    }

    /// Fitted to a data set: channels, classes and training patch, the rest as it is.
    pub fn for_data(
        &self,
        in_channels: i64,
        num_classes: i64,
        training_patch: &[i64],
        spacing: Option<&[f64]>,
    ) -> Result<Self, ModelError> {
        if training_patch.len() != self.spatial_dims() {
            let (has, wants) = (self.spatial_dims(), training_patch.len());
            let message = format!("this network has {has} spatial axes, the data {wants}; choose the {wants}-D preset");
            return Err(ModelError::config("training_patch", message));
        }
        let fitted = Self {
            input_channels: in_channels,
            num_classes,
            training_patch: training_patch.to_vec(),
            spacing: spacing
                .map(<[f64]>::to_vec)
                .or_else(|| self.spacing.clone()),
            ..self.clone()
        };
        let resolved = fitted.resolve()?;
        if resolved.strides[0].iter().any(|s| *s != 1) {
            let message = format!(
                "first stride {:?}, expected 1: logits must be as large as the image",
                resolved.strides[0]
            );
            return Err(ModelError::config("strides", message));
        }
        Ok(fitted)
    }
}

/// Nearest-neighbour enlargement and a 1x1 convolution.
struct Upsample {
    conv: Conv,
    scale: Vec<i64>,
}

impl Upsample {
    fn forward(&self, x: &Tensor) -> Tensor {
        let size: Vec<i64> = x.size()[2..]
            .iter()
            .zip(&self.scale)
            .map(|(side, s)| side * s)
            .collect();
        let x = match size.len() {
            2 => x.upsample_nearest2d(&size, None, None),
            _ => x.upsample_nearest3d(&size, None, None, None),
        };
        self.conv.forward(&x)
    }
}

/// One step up: enlarge, concatenate with the skip where there is one, convolve.
struct Up {
    upsample: Upsample,
    with_skip: bool,
    blocks: Blocks,
    seg: Conv,
}

/// The network.
pub struct UMamba {
    config: UMambaConfig,
    resolved: Resolved,
    stem: Blocks,
    stages: Vec<Blocks>,
    norm: LayerNorm,
    mamba: Mamba,
    ups: Vec<Up>,
}

impl UMamba {
    /// Registers the parameters in the reference's order and under its names, shared ones under both.
    pub fn new(scope: &Scope, config: &UMambaConfig) -> Result<Self, ModelError> {
        let r = config.resolve()?;
        let n = r.strides.len();
        let ones = vec![1; config.spatial_dims()];
        let style = Style {
            norm_eps: config.norm_eps,
            norm_affine: config.norm_affine,
            negative_slope: config.negative_slope,
            conv_bias: config.conv_bias,
        };
        let encoder = scope.sub("encoder");
        let first = r.features[0];
        let stem_channels = (config.input_channels, first);
        let stem = Blocks::new(
            &encoder.sub("stem"),
            &style,
            stem_channels,
            &r.kernels[0],
            &ones,
            r.blocks[0],
        )?;
        let mut stages = Vec::with_capacity(n);
        for s in 0..n {
            let channels = (r.features[s.saturating_sub(1)], r.features[s]);
            let at = encoder.sub(format!("stages.{s}"));
            stages.push(Blocks::new(
                &at,
                &style,
                channels,
                &r.kernels[s],
                &r.strides[s],
                r.blocks[s],
            )?);
        }

        let deepest = r.features[n - 1];
        let layer = scope.sub("mamba_layer");
        let norm = LayerNorm::new(&layer.sub("norm"), deepest, LayerNorm::EPS)?;
        let sizes = MambaConfig {
            d_state: config.d_state,
            d_conv: config.d_conv,
            expand: config.expand,
            ..MambaConfig::new(deepest)
        };
        let mamba = Mamba::new(&layer.sub("mamba"), sizes)?;

        // the decoder keeps a reference to the encoder
        scope.alias("encoder", "decoder.encoder")?;
        let decoder = scope.sub("decoder");
        let with_skip = |step: usize| step + 2 < n || config.full_resolution_skip;
        let mut blocks = Vec::with_capacity(n - 1);
        for (step, level) in (0..n - 1).rev().enumerate() {
            let f = r.features[level];
            let channels = (if with_skip(step) { 2 * f } else { f }, f);
            let at = decoder.sub(format!("stages.{step}"));
            blocks.push(Blocks::new(
                &at,
                &style,
                channels,
                &r.kernels[level],
                &ones,
                r.blocks_decoder[step],
            )?);
        }
        let mut upsamples = Vec::with_capacity(n - 1);
        for (step, level) in (0..n - 1).rev().enumerate() {
            let at = decoder.sub(format!("upsample_layers.{step}.conv"));
            let conv = conv(
                &at,
                r.features[level + 1],
                r.features[level],
                &ones,
                &ones,
                true,
            )?;
            upsamples.push(Upsample {
                conv,
                scale: r.strides[level + 1].clone(),
            });
        }
        let mut ups = Vec::with_capacity(n - 1);
        for (step, (upsample, blocks)) in upsamples.into_iter().zip(blocks).enumerate() {
            let at = decoder.sub(format!("seg_layers.{step}"));
            let seg = conv(
                &at,
                r.features[n - 2 - step],
                config.num_classes,
                &ones,
                &ones,
                true,
            )?;
            ups.push(Up {
                upsample,
                with_skip: with_skip(step),
                blocks,
                seg,
            });
        }
        Ok(Self {
            config: config.clone(),
            resolved: r,
            stem,
            stages,
            norm,
            mamba,
            ups,
        })
    }

    /// Mamba over all positions of the feature map: (B, C, spatial..) -> (B, L, C) -> (B, C, spatial..)
    fn bottleneck(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let tokens = x.flatten(2, -1).transpose(1, 2);
        let mixed = self.mamba.forward(&self.norm.forward(&tokens))?;
        Ok(mixed.transpose(1, 2).reshape(x.size()))
    }

    /// Product of the strides down to each stage.
    fn reductions(&self) -> Vec<Vec<i64>> {
        let start = vec![1; self.config.spatial_dims()];
        let next = |so_far: &mut Vec<i64>, stride: &Vec<i64>| {
            so_far.iter_mut().zip(stride).for_each(|(r, s)| *r *= s);
            Some(so_far.clone())
        };
        self.resolved.strides.iter().scan(start, next).collect()
    }
}

impl Network for UMamba {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let divisor = self.divisor();
        check_input(x, &[self.config.input_channels], &divisor)?;
        if train && x.size()[2..] == divisor[..] {
            let message = "the coarsest feature map has one position, which an instance norm cannot be trained on";
            return Err(ModelError::Input {
                shape: x.size(),
                message: message.into(),
            });
        }
        let mut skips = Vec::with_capacity(self.stages.len());
        let mut x = self.stem.forward(x);
        for stage in &self.stages {
            x = stage.forward(&x);
            skips.push(x.shallow_clone());
        }
        let mut x = self.bottleneck(&x)?;
        skips.pop();
        let mut logits = vec![];
        for (step, up) in self.ups.iter().enumerate() {
            x = up.upsample.forward(&x);
            let skip = skips.pop().filter(|_| up.with_skip);
            if let Some(skip) = skip {
                x = Tensor::cat(&[x, skip], 1);
            }
            x = up.blocks.forward(&x);
            if self.config.deep_supervision || step + 1 == self.ups.len() {
                logits.push(up.seg.forward(&x));
            }
        }
        logits.reverse();
        Ok(logits)
    }

    fn divisor(&self) -> Vec<i64> {
        self.reductions().pop().unwrap_or_default()
    }

    fn deep_supervision(&self) -> bool {
        self.config.deep_supervision
    }

    fn stages(&self) -> Vec<Stage> {
        let (features, reductions) = (&self.resolved.features, self.reductions());
        let n = features.len();
        let stage = |name: String, level: usize| Stage {
            name,
            channels: features[level],
            reduction: reductions[level].clone(),
        };
        let stem = Stage {
            name: "encoder.stem".into(),
            channels: features[0],
            reduction: vec![1; self.config.spatial_dims()],
        };
        let logits = Stage {
            name: "logits".into(),
            channels: self.config.num_classes,
            ..stage(String::new(), 0)
        };
        std::iter::once(stem)
            .chain((0..n).map(|s| stage(format!("encoder.stages.{s}"), s)))
            .chain(std::iter::once(stage("mamba_layer".into(), n - 1)))
            .chain((0..n - 1).map(|s| stage(format!("decoder.stages.{s}"), n - 2 - s)))
            .chain(std::iter::once(logits))
            .collect()
    }
}
