//! Any backbone under any decoder: VMamba, Vim or nnU-Net's encoders below a U-Net's or Mamba-UNet's way up, 2-D.
//!
//! No publication's network: it is there so that designs can be compared, and so that published weights of a backbone, whose names are kept
//! below `backbone.`, can begin a segmentation network.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::nnunet::{NnUnetConfig, NnUnetEncoder};
use super::residual::{conv, ConvStack, Style, HE};
use crate::init::Init;
use crate::layers::{Conv, ConvTranspose, LayerNorm, Linear, Part};
use crate::network::{check_input, Backbone};
use crate::vision::patch::PatchExpand;
use crate::vision::vim::LastLayer;
use crate::vision::{
    in_turn, Ss2dConfig, VimBackbone, VimBackboneConfig, VimConfig, VmambaBackbone, VmambaConfig,
    VssBlock, VssBlockConfig, VSSM_LINEAR,
};
use crate::{ModelError, Network, Scope, Stage};

/// Channels that a single one is repeated to.
const REPEATED: i64 = 3;
/// Convolutions, or blocks, of each decoder stage.
const DEPTH: i64 = 2;
/// Fewest features between the finest features and the image.
const FEWEST: i64 = 16;

/// What makes the features; the key `arch` names the variant, as in a preset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "snake_case", deny_unknown_fields)]
pub enum BackboneSpec {
    /// VMamba.
    Vmamba(VmambaConfig),
    /// Vim, its one size of features brought to four.
    Vim(VimConfig),
    /// The encoder of nnU-Net's plain or residual U-Net.
    Nnunet(NnUnetConfig),
}

impl BackboneSpec {
    fn input_channels(&self) -> i64 {
        match self {
            BackboneSpec::Vmamba(c) => c.input_channels,
            BackboneSpec::Vim(c) => c.input_channels,
            BackboneSpec::Nnunet(c) => c.input_channels,
        }
    }

    fn set_input_channels(&mut self, channels: i64) {
        match self {
            BackboneSpec::Vmamba(c) => c.input_channels = channels,
            BackboneSpec::Vim(c) => c.input_channels = channels,
            BackboneSpec::Nnunet(c) => c.input_channels = channels,
        }
    }

    fn build(&self, scope: &Scope) -> Result<Box<dyn Backbone>, ModelError> {
        Ok(match self {
            BackboneSpec::Vmamba(c) => {
                let all: Vec<usize> = (0..c.depths.len()).collect();
                Box::new(VmambaBackbone::new(scope, c, &all)?)
            }
            BackboneSpec::Vim(c) => {
                // the residual stream, normalised at its end: what the classifier reads, and every weight has its use
                let features = VimBackboneConfig {
                    residual_features: true,
                    last_layer: LastLayer::AddNorm,
                    ..VimBackboneConfig::new(c)
                };
                Box::new(VimBackbone::new(scope, c, &features)?)
            }
            BackboneSpec::Nnunet(c) => {
                let encoder = NnUnetEncoder::new(scope, c)?;
                encoder.check_isotropic()?;
                Box::new(encoder)
            }
        })
    }
}

/// The way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoderKind {
    /// Transposed convolution, skip connection, convolutions: nnU-Net's.
    Unet,
    /// Patch expansion, skip connection, VSS blocks: Mamba-UNet's.
    MambaUnet,
}

/// Configuration of [`Mixed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixedConfig {
    /// Channels of the image.
    pub input_channels: i64,
    /// Classes, background included.
    pub num_classes: i64,
    /// Whether an image with one channel is repeated to three, so that weights for colour images fit.
    pub repeat_single_channel: bool,
    /// What makes the features; in a preset or on the command line also the name of its preset.
    pub backbone: BackboneSpec,
    /// The way up.
    pub decoder: DecoderKind,
    /// Whether every decoder stage gives logits in training; only the U-Net's decoder can.
    pub deep_supervision: bool,
}

impl MixedConfig {
    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        match &self.backbone {
            BackboneSpec::Vmamba(c) => c.validate()?,
            BackboneSpec::Vim(c) => c.validate()?,
            BackboneSpec::Nnunet(c) => {
                if c.spatial_dims() != 2 {
                    let message = "3-D, expected a 2-D backbone";
                    return Err(ModelError::config("backbone", message));
                }
                c.resolve()?;
            }
        }
        if self.num_classes < 1 {
            let message = format!("{}, expected at least 1", self.num_classes);
            return Err(ModelError::config("num_classes", message));
        }
        let takes = self.backbone.input_channels();
        if self.input_channels != takes && !(self.repeats() && self.input_channels == 1) {
            let message = format!("{}, but the backbone takes {takes}", self.input_channels);
            return Err(ModelError::config("input_channels", message));
        }
        if self.deep_supervision && self.decoder == DecoderKind::MambaUnet {
            let message = "true, expected false: Mamba-UNet's decoder gives logits at the end only";
            return Err(ModelError::config("deep_supervision", message));
        }
        Ok(())
    }

    /// Whether a single channel is repeated to what the backbone takes.
    fn repeats(&self) -> bool {
        self.repeat_single_channel && self.backbone.input_channels() == REPEATED
    }

    /// Fitted to a data set: channels and classes. Channels that are neither one to be repeated nor the backbone's change its first layer.
    pub fn for_data(
        &self,
        in_channels: i64,
        num_classes: i64,
        training_patch: &[i64],
    ) -> Result<Self, ModelError> {
        if training_patch.len() != 2 {
            let message = format!(
                "{training_patch:?} has {} axes, but this network is 2-D",
                training_patch.len()
            );
            return Err(ModelError::config("training_patch", message));
        }
        let mut fitted = Self {
            input_channels: in_channels,
            num_classes,
            ..self.clone()
        };
        if !(in_channels == 1 && fitted.repeats()) {
            fitted.backbone.set_input_channels(in_channels);
        }
        Ok(fitted)
    }
}

/// One step up of a U-Net: enlarge, concatenate with the skip where there is one, convolve.
struct ConvUp {
    transpconv: ConvTranspose,
    convs: ConvStack,
    seg: Option<Conv>,
}

/// One step up of Mamba-UNet.
struct VssUp {
    expand: PatchExpand,
    concat: Linear,
    blocks: Vec<Part<VssBlock>>,
}

enum Decoder {
    Unet(Vec<ConvUp>),
    MambaUnet {
        norm: LayerNorm,
        ups: Vec<VssUp>,
        norm_up: LayerNorm,
        up: PatchExpand,
        output: Conv,
    },
}

/// Channels and reduction of every decoder stage, coarsest first; behind the finest feature the image is reached by halves.
fn decoder_stages(channels: &[i64], reduction: &[i64]) -> Vec<(i64, i64)> {
    let mut stages: Vec<(i64, i64)> = channels
        .iter()
        .copied()
        .zip(reduction.iter().copied())
        .collect();
    stages.reverse();
    while let Some(&(width, by)) = stages.last() {
        if by == 1 {
            break;
        }
        let next = if by % 2 == 0 { by / 2 } else { 1 };
        stages.push(((width / 2).max(FEWEST.min(width)), next));
    }
    stages
}

impl Decoder {
    fn unet(
        scope: &Scope,
        config: &MixedConfig,
        channels: &[i64],
        reduction: &[i64],
    ) -> Result<Self, ModelError> {
        let style = Style {
            norm_eps: 1e-5,
            norm_affine: true,
            negative_slope: 0.01,
            conv_bias: true,
            zero_last_norm: false,
        };
        let stages = decoder_stages(channels, reduction);
        let mut ups = vec![];
        for (i, pair) in stages.windows(2).enumerate() {
            let ((from, coarse), (to, fine)) = (pair[0], pair[1]);
            let with_skip = i + 1 < channels.len();
            let at = scope.sub(format!("stages.{i}"));
            let bias = Some(Init::Constant(0.0));
            let transpconv = ConvTranspose::new(
                &at.sub("transpconv"),
                (from, to),
                &[coarse / fine; 2],
                HE,
                bias,
            )?;
            let inputs = if with_skip { 2 * to } else { to };
            let convs = ConvStack::new(
                &at.sub("convs"),
                &style,
                (inputs, to),
                &[3, 3],
                &[1, 1],
                DEPTH,
            )?;
            let wanted = config.deep_supervision || i + 2 == stages.len();
            let seg = match wanted {
                true => Some(conv(
                    &at.sub("seg"),
                    to,
                    config.num_classes,
                    &[1, 1],
                    &[1, 1],
                    true,
                )?),
                false => None,
            };
            ups.push(ConvUp {
                transpconv,
                convs,
                seg,
            });
        }
        Ok(Decoder::Unet(ups))
    }

    fn mamba_unet(
        scope: &Scope,
        config: &MixedConfig,
        channels: &[i64],
        reduction: &[i64],
    ) -> Result<Self, ModelError> {
        let last = channels.len() - 1;
        let norm = LayerNorm::new(&scope.sub("norm"), channels[last], LayerNorm::EPS)?;
        let mut ups = vec![];
        for (i, level) in (0..last).rev().enumerate() {
            let (dim, scale) = (channels[level], reduction[level + 1] / reduction[level]);
            let at = scope.sub(format!("layers_up.{i}"));
            ups.push(VssUp {
                expand: PatchExpand::to(&at.sub("upsample"), channels[level + 1], dim, scale)?,
                concat: Linear::with_init(
                    &at.sub("concat"),
                    2 * dim,
                    dim,
                    VSSM_LINEAR,
                    Some(Init::Constant(0.0)),
                )?,
                blocks: (0..DEPTH)
                    .map(|k| {
                        let block =
                            VssBlockConfig::mamba_unet(Ss2dConfig::new(dim), LayerNorm::EPS, 0.0);
                        VssBlock::new(&at.sub(format!("blocks.{k}")), block).map(Part::new)
                    })
                    .collect::<Result<_, _>>()?,
            });
        }
        Ok(Decoder::MambaUnet {
            norm,
            ups,
            norm_up: LayerNorm::new(&scope.sub("norm_up"), channels[0], LayerNorm::EPS)?,
            up: PatchExpand::last(&scope.sub("up"), channels[0], reduction[0])?,
            output: conv(
                &scope.sub("output"),
                channels[0],
                config.num_classes,
                &[1, 1],
                &[1, 1],
                true,
            )?,
        })
    }

    /// Logits, finest first, from features, finest first.
    fn forward(&self, features: &[Tensor], train: bool) -> Result<Vec<Tensor>, ModelError> {
        let mut skips = features.iter().rev();
        let mut x = match skips.next() {
            Some(coarsest) => coarsest.shallow_clone(),
            None => return Ok(vec![]),
        };
        match self {
            Decoder::Unet(ups) => {
                let mut logits = vec![];
                for up in ups {
                    x = up.transpconv.forward(&x);
                    if let Some(skip) = skips.next() {
                        x = Tensor::cat(&[&x, skip], 1);
                    }
                    x = up.convs.forward(&x);
                    logits.extend(up.seg.as_ref().map(|seg| seg.forward(&x)));
                }
                logits.reverse();
                Ok(logits)
            }
            Decoder::MambaUnet {
                norm,
                ups,
                norm_up,
                up,
                output,
            } => {
                x = norm.forward(&x.permute([0, 2, 3, 1]));
                for (step, skip) in ups.iter().zip(skips) {
                    x = step.expand.forward(&x);
                    let both = Tensor::cat(&[&x, &skip.permute([0, 2, 3, 1])], -1);
                    x = in_turn(&step.blocks, step.concat.forward(&both), train)?;
                }
                Ok(vec![up.forward_through(&norm_up.forward(&x), output)])
            }
        }
    }
}

/// The network.
pub struct Mixed {
    config: MixedConfig,
    backbone: Box<dyn Backbone>,
    decoder: Decoder,
}

impl Mixed {
    /// Registers `backbone`, under its published names, then `decoder`.
    pub fn new(scope: &Scope, config: &MixedConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let backbone = config.backbone.build(&scope.sub("backbone"))?;
        let (channels, reduction) = (backbone.channels(), backbone.reduction());
        if reduction.windows(2).any(|pair| pair[1] % pair[0] != 0) {
            let message = format!(
                "its features are reduced by {reduction:?}, expected each to divide the next"
            );
            return Err(ModelError::config("backbone", message));
        }
        let at = scope.sub("decoder");
        let decoder = match config.decoder {
            DecoderKind::Unet => Decoder::unet(&at, config, &channels, &reduction)?,
            DecoderKind::MambaUnet => Decoder::mamba_unet(&at, config, &channels, &reduction)?,
        };
        Ok(Self {
            config: config.clone(),
            backbone,
            decoder,
        })
    }
}

impl Network for Mixed {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let takes = self.config.backbone.input_channels();
        let repeats = self.config.repeats();
        let channels: &[i64] = if repeats { &[1, REPEATED] } else { &[takes] };
        check_input(x, channels, &self.divisor())?;
        let x = match x.size()[1] {
            1 if repeats => x.repeat([1, REPEATED, 1, 1]),
            _ => x.shallow_clone(),
        };
        self.decoder
            .forward(&self.backbone.features(&x, train)?, train)
    }

    fn divisor(&self) -> Vec<i64> {
        let coarsest = self.backbone.reduction().into_iter().max().unwrap_or(1);
        vec![coarsest.max(self.backbone.divisor()); 2]
    }

    fn deep_supervision(&self) -> bool {
        self.config.deep_supervision
    }

    fn stages(&self) -> Vec<Stage> {
        let (channels, reduction) = (self.backbone.channels(), self.backbone.reduction());
        let stage = |name: String, channels: i64, by: i64| Stage {
            name,
            channels,
            reduction: vec![by; 2],
        };
        let down = (channels.iter().zip(&reduction).enumerate())
            .map(|(i, (c, by))| stage(format!("backbone.{i}"), *c, *by));
        let stages = match self.config.decoder {
            DecoderKind::Unet => decoder_stages(&channels, &reduction),
            DecoderKind::MambaUnet => channels
                .iter()
                .copied()
                .zip(reduction.iter().copied())
                .rev()
                .collect(),
        };
        let up = (stages.iter().skip(1).enumerate())
            .map(|(i, (c, by))| stage(format!("decoder.{i}"), *c, *by));
        let logits = stage("logits".to_string(), self.config.num_classes, 1);
        down.chain(up).chain([logits]).collect()
    }
}
