//! nnU-Net's own networks: the plain convolutional U-Net and the one with a residual encoder, 2-D and 3-D in one.
//!
//! Papers: Isensee et al., *nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation*, Nature
//! Methods 2021; Isensee et al., *nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation*, 2024
//! (residual encoders M and L).
//! Reference: MIC-DKFZ/dynamic-network-architectures 0.4.4, `architectures/unet.py` (`PlainConvUNet`, `ResidualEncoderUNet`) and
//! `building_blocks/`; depth and blocks a stage by the planners of MIC-DKFZ/nnUNet at 0e495086eb10.
//!
//! *Differences from the reference*
//! - Instance norm, leaky ReLU, strided convolutions and `BasicBlockD`, as the planners choose them; the library's other norms,
//!   dropout, pooling, `nonlin_first`, bottleneck blocks and a stem of another width do not exist here.
//! - M and L are one network: nnU-Net's planners give them the same blocks, for 8 and 24 GB, which decides on the patch and
//!   with it on the depth.
//! - A list of blocks longer than the depth is cut, as the planners cut theirs.
//! - Kept: every decoder stage has a segmentation layer even without deep supervision.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::layout::{check_axes, check_positive, check_trainable, Layout, Levels, PerStage};
use super::residual::{conv, BlockD, ConvStack, Style, HE};
use crate::layers::{Conv, ConvTranspose, Part};
use crate::network::{check_input, Backbone};
use crate::{Init, ModelError, Network, Scope, Stage};

/// What the encoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderKind {
    /// Convolutions one after the other: `PlainConvUNet`.
    Plain,
    /// A stem of one convolution and residual blocks: `ResidualEncoderUNet`.
    Residual,
}

/// Configuration of [`NnUnet`]. Lists left empty follow from the training patch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NnUnetConfig {
    /// Channels of the image.
    pub input_channels: i64,
    /// Classes, background included.
    pub num_classes: i64,
    /// What the encoder is made of.
    pub encoder: EncoderKind,
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
    /// Convolutions (plain) or blocks (residual) of the encoder stages; of a longer list the first count.
    pub n_conv_per_stage: PerStage,
    /// Convolutions of the decoder stages; of a longer list the first count.
    pub n_conv_per_stage_decoder: PerStage,
    /// Whether the convolutions have a bias.
    pub conv_bias: bool,
    /// Added to the variance of the instance norms.
    pub norm_eps: f64,
    /// Whether the instance norms have weight and bias.
    pub norm_affine: bool,
    /// Slope of the leaky ReLU for negative values.
    pub negative_slope: f64,
    /// Whether every decoder stage gives logits in training.
    pub deep_supervision: bool,
}

/// The lists of a [`NnUnetConfig`], all of them stated.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Features, kernels and strides.
    pub levels: Levels,
    /// Convolutions or blocks per encoder stage.
    pub blocks: Vec<i64>,
    /// Convolutions per decoder stage, coarsest first.
    pub blocks_decoder: Vec<i64>,
}

impl NnUnetConfig {
    fn layout(&self) -> Layout<'_> {
        Layout {
            training_patch: &self.training_patch,
            spacing: self.spacing.as_deref(),
            max_stages: self.max_stages,
            base_features: self.base_features,
            max_features: self.max_features,
            features_per_stage: &self.features_per_stage,
            kernel_sizes: &self.kernel_sizes,
            strides: &self.strides,
        }
    }

    /// Number of spatial axes.
    pub fn spatial_dims(&self) -> usize {
        self.layout().spatial_dims()
    }

    fn style(&self) -> Style {
        Style {
            norm_eps: self.norm_eps,
            norm_affine: self.norm_affine,
            negative_slope: self.negative_slope,
            conv_bias: self.conv_bias,
            zero_last_norm: self.encoder == EncoderKind::Residual,
        }
    }

    /// Fills the open lists and checks that all go together.
    pub fn resolve(&self) -> Result<Resolved, ModelError> {
        let levels = self.layout().resolve()?;
        check_positive([
            ("input_channels", self.input_channels),
            ("num_classes", self.num_classes),
        ])?;
        let n = levels.count();
        let blocks = self
            .n_conv_per_stage
            .resolve_prefix(n, "n_conv_per_stage")?;
        let blocks_decoder = self
            .n_conv_per_stage_decoder
            .resolve_prefix(n - 1, "n_conv_per_stage_decoder")?;
        Ok(Resolved {
            levels,
            blocks,
            blocks_decoder,
        })
    }

    /// Fitted to a data set: channels, classes and training patch, the rest as it is.
    pub fn for_data(
        &self,
        in_channels: i64,
        num_classes: i64,
        training_patch: &[i64],
        spacing: Option<&[f64]>,
    ) -> Result<Self, ModelError> {
        check_axes(self.spatial_dims(), training_patch)?;
        let fitted = Self {
            input_channels: in_channels,
            num_classes,
            training_patch: training_patch.to_vec(),
            spacing: spacing
                .map(<[f64]>::to_vec)
                .or_else(|| self.spacing.clone()),
            ..self.clone()
        };
        fitted.resolve()?.levels.check_full_resolution()?;
        Ok(fitted)
    }
}

/// A stage of the encoder, the first layer with the stride.
enum EncoderStage {
    Plain(ConvStack),
    Residual(Vec<BlockD>),
}

impl EncoderStage {
    fn new(
        scope: &Scope,
        kind: EncoderKind,
        style: &Style,
        (inputs, outputs): (i64, i64),
        (kernel, stride): (&[i64], &[i64]),
        count: i64,
    ) -> Result<Self, ModelError> {
        if kind == EncoderKind::Plain {
            // the stage is a sequential, whose first place pooling would take
            let at = scope.sub(0);
            let stack = ConvStack::new(&at, style, (inputs, outputs), kernel, stride, count)?;
            return Ok(EncoderStage::Plain(stack));
        }
        let ones = vec![1; kernel.len()];
        let block = |i: i64| {
            let (from, stride) = match i {
                0 => (inputs, stride),
                _ => (outputs, ones.as_slice()),
            };
            let at = scope.sub(format!("blocks.{i}"));
            BlockD::new(&at, style, (from, outputs), kernel, stride)
        };
        Ok(EncoderStage::Residual(
            (0..count).map(block).collect::<Result<_, _>>()?,
        ))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            EncoderStage::Plain(stack) => stack.forward(x),
            EncoderStage::Residual(blocks) => blocks
                .iter()
                .fold(x.shallow_clone(), |x, block| block.forward(&x)),
        }
    }
}

/// One step up: enlarge, concatenate with the skip, convolve.
struct Up {
    transpconv: ConvTranspose,
    convs: Part<ConvStack>,
    seg: Conv,
}

/// The encoder of both, which can stand under other decoders too.
pub struct NnUnetEncoder {
    input_channels: i64,
    levels: Levels,
    stem: Option<ConvStack>,
    stages: Vec<Part<EncoderStage>>,
}

impl NnUnetEncoder {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: &NnUnetConfig) -> Result<Self, ModelError> {
        let r = config.resolve()?;
        let (levels, style) = (r.levels, config.style());
        let mut inputs = config.input_channels;
        let mut stem = None;
        if config.encoder == EncoderKind::Residual {
            let at = scope.sub("stem");
            let ones = vec![1; config.spatial_dims()];
            let channels = (inputs, levels.features[0]);
            let made = ConvStack::new(&at, &style, channels, &levels.kernels[0], &ones, 1)?;
            (stem, inputs) = (Some(made), levels.features[0]);
        }
        let mut stages = Vec::with_capacity(levels.count());
        for (s, outputs) in levels.features.iter().enumerate() {
            let stage = EncoderStage::new(
                &scope.sub(format!("stages.{s}")),
                config.encoder,
                &style,
                (inputs, *outputs),
                (&levels.kernels[s], &levels.strides[s]),
                r.blocks[s],
            )?;
            stages.push(Part::new(stage));
            inputs = *outputs;
        }
        Ok(Self {
            input_channels: config.input_channels,
            levels,
            stem,
            stages,
        })
    }

    /// The output of every stage, finest first.
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let mut x = match &self.stem {
            Some(stem) => stem.forward(x),
            None => x.shallow_clone(),
        };
        let mut outputs = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = stage.run(&x, |stage, x| Ok(stage.forward(x)))?;
            outputs.push(x.shallow_clone());
        }
        Ok(outputs)
    }

    /// Input voxels that a feature of each stage covers, per axis.
    fn reductions(&self) -> Vec<Vec<i64>> {
        self.levels.reductions()
    }

    /// An error unless every stage covers as many voxels along each axis, as [`Backbone`] has it.
    pub fn check_isotropic(&self) -> Result<(), ModelError> {
        match self.reductions().iter().find(|r| r.iter().any(|n| *n != r[0])) {
            Some(r) => Err(ModelError::config(
                "training_patch",
                format!("gives a stage that is reduced by {r:?}, expected the same along all axes under this decoder"),
            )),
            None => Ok(()),
        }
    }
}

impl Backbone for NnUnetEncoder {
    fn features(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let divisor = self.reductions().pop().unwrap_or_default();
        check_input(x, &[self.input_channels], &divisor)?;
        if train {
            check_trainable(&x.size(), &divisor)?;
        }
        self.forward(x)
    }

    fn channels(&self) -> Vec<i64> {
        self.levels.features.clone()
    }

    fn reduction(&self) -> Vec<i64> {
        self.reductions().iter().map(|r| r[0]).collect()
    }

    fn divisor(&self) -> i64 {
        self.reduction().pop().unwrap_or(1)
    }
}

/// The network.
pub struct NnUnet {
    config: NnUnetConfig,
    encoder: NnUnetEncoder,
    ups: Vec<Up>,
}

impl NnUnet {
    /// Registers the parameters in the reference's order and under its names, shared ones under both.
    pub fn new(scope: &Scope, config: &NnUnetConfig) -> Result<Self, ModelError> {
        let r = config.resolve()?;
        let levels = &r.levels;
        let (n, features) = (levels.count(), &levels.features);
        let ones = vec![1; config.spatial_dims()];
        let style = config.style();
        let encoder = NnUnetEncoder::new(&scope.sub("encoder"), config)?;

        // the decoder keeps a reference to the encoder
        scope.alias("encoder", "decoder.encoder")?;
        let decoder = scope.sub("decoder");
        let steps = || (0..n - 1).rev().enumerate();
        let mut convs = Vec::with_capacity(n - 1);
        for (step, level) in steps() {
            convs.push(ConvStack::new(
                &decoder.sub(format!("stages.{step}")),
                &style,
                (2 * features[level], features[level]),
                &levels.kernels[level],
                &ones,
                r.blocks_decoder[step],
            )?);
        }
        let mut transpconvs = Vec::with_capacity(n - 1);
        for (step, level) in steps() {
            transpconvs.push(ConvTranspose::new(
                &decoder.sub(format!("transpconvs.{step}")),
                (features[level + 1], features[level]),
                &levels.strides[level + 1],
                HE,
                config.conv_bias.then_some(Init::Constant(0.0)),
            )?);
        }
        let mut ups = Vec::with_capacity(n - 1);
        for ((step, level), (transpconv, convs)) in steps().zip(transpconvs.into_iter().zip(convs))
        {
            let at = decoder.sub(format!("seg_layers.{step}"));
            let seg = conv(&at, features[level], config.num_classes, &ones, &ones, true)?;
            ups.push(Up {
                transpconv,
                convs: Part::new(convs),
                seg,
            });
        }
        Ok(Self {
            config: config.clone(),
            encoder,
            ups,
        })
    }
}

impl Network for NnUnet {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let divisor = self.divisor();
        check_input(x, &[self.config.input_channels], &divisor)?;
        if train {
            check_trainable(&x.size(), &divisor)?;
        }
        let mut skips = self.encoder.forward(x)?;
        let mut x = skips.pop().unwrap_or_else(|| x.shallow_clone());
        let mut logits = vec![];
        for (step, (up, skip)) in self.ups.iter().zip(skips.iter().rev()).enumerate() {
            x = Tensor::cat(&[&up.transpconv.forward(&x), skip], 1);
            x = up.convs.run(&x, |convs, x| Ok(convs.forward(x)))?;
            if self.config.deep_supervision || step + 1 == self.ups.len() {
                logits.push(up.seg.forward(&x));
            }
        }
        logits.reverse();
        Ok(logits)
    }

    fn divisor(&self) -> Vec<i64> {
        self.encoder.reductions().pop().unwrap_or_default()
    }

    fn deep_supervision(&self) -> bool {
        self.config.deep_supervision
    }

    fn stages(&self) -> Vec<Stage> {
        let features = &self.encoder.levels.features;
        let reductions = self.encoder.reductions();
        let n = features.len();
        let stage = |name: String, level: usize| Stage {
            name,
            channels: features[level],
            reduction: reductions[level].clone(),
        };
        let stem = self.encoder.stem.as_ref().map(|_| Stage {
            name: "encoder.stem".into(),
            channels: features[0],
            reduction: vec![1; self.config.spatial_dims()],
        });
        let logits = Stage {
            name: "logits".into(),
            channels: self.config.num_classes,
            ..stage(String::new(), 0)
        };
        stem.into_iter()
            .chain((0..n).map(|s| stage(format!("encoder.stages.{s}"), s)))
            .chain((0..n - 1).map(|s| stage(format!("decoder.stages.{s}"), n - 2 - s)))
            .chain(std::iter::once(logits))
            .collect()
    }
}
