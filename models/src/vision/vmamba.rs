//! VMamba: a hierarchical classifier and backbone of SS2D blocks, 2-D.
//!
//! Paper: Liu et al., *VMamba: Visual State Space Model*, 2024. Reference: MzeroMiko/VMamba at 2ed52ead062a,
//! `classification/models/vmamba.py` (`VSSM`, `Backbone_VSSM`).
//!
//! *Differences from the reference*
//! - Channels last throughout; tensors, names and numbers are the same for its channel-first networks (`ln2d`).
//! - Images of any size: the reference's patch merging fails on odd sides in channel-first networks, and its position embedding on images
//!   of another size; here the one pads and the other is interpolated, as when its weights are loaded.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::norm::{ChannelNorm, NormKind};
use super::patch::{OddSide, PatchMerging};
use super::ss2d::{ForwardType, Layout, Ss2dConfig, SsmInit};
use super::vss::{in_turn, MlpConfig, VssBlock, VssBlockConfig};
use super::VSSM_LINEAR;
use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{resize, reuse, Activation, Conv, ConvOptions, LayerNorm, Linear, Part};
use crate::network::{check_input, Backbone};
use crate::{ModelError, Network, Scope, Stage};

/// Sizes beyond this are typing errors.
const LARGEST: i64 = 1 << 16;

/// How pixels become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchEmbedVersion {
    /// One convolution without overlap.
    V1,
    /// Two overlapping convolutions, a norm and a GELU between them.
    V2,
}

/// How four tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownsampleVersion {
    /// Patch merging.
    V1,
    /// A 2x2 convolution without overlap, and a norm.
    V2,
    /// A 3x3 convolution with overlap, and a norm.
    V3,
    /// Not at all: only for stages of equal widths.
    None,
}

/// Configuration of [`Vmamba`] and [`VmambaBackbone`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmambaConfig {
    /// Channels of the image.
    pub input_channels: i64,
    /// Classes told apart.
    pub num_classes: i64,
    /// Pixels a side of a token of the first stage.
    pub patch_size: i64,
    /// Blocks of each stage.
    pub depths: Vec<i64>,
    /// Channels of each stage.
    pub dims: Vec<i64>,
    /// States per inner channel.
    pub d_state: i64,
    /// Inner channels per channel of SS2D; 0: no SS2D.
    pub ssm_ratio: f64,
    /// Rank of the step-size projection; none: a sixteenth of the channels, rounded up.
    #[serde(default)]
    pub dt_rank: Option<i64>,
    /// Activation inside SS2D.
    pub ssm_act: Activation,
    /// Side of SS2D's depthwise convolution.
    pub d_conv: i64,
    /// Whether it has a bias.
    pub conv_bias: bool,
    /// How the state-space parameters start.
    pub ssm_init: SsmInit,
    /// Dropout behind SS2D.
    pub ssm_drop: f64,
    /// Version of SS2D, in the reference's spelling.
    pub forward_type: String,
    /// Hidden values per channel of the MLP; 0: no MLP.
    pub mlp_ratio: f64,
    /// Activation inside the MLP.
    pub mlp_act: Activation,
    /// Whether the MLP is gated.
    pub gmlp: bool,
    /// Dropout inside the MLP.
    pub mlp_drop: f64,
    /// Largest probability that a branch is skipped in training, reached at the last block.
    pub drop_path_rate: f64,
    /// Whether the patch embedding has norms.
    pub patch_norm: bool,
    /// Kind of the norms.
    pub norm: NormKind,
    /// How stages are joined.
    pub downsample: DownsampleVersion,
    /// How pixels become tokens.
    pub patch_embed: PatchEmbedVersion,
    /// Side of the image that the learned position embedding is made for; none: no embedding.
    #[serde(default)]
    pub pos_embed: Option<i64>,
}

impl VmambaConfig {
    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        let fail = |field: &'static str, message: String| Err(ModelError::config(field, message));
        if self.depths.is_empty() || self.depths.len() != self.dims.len() {
            let message = format!(
                "{:?}, expected one number for each of depths = {:?}",
                self.dims, self.depths
            );
            return fail("dims", message);
        }
        let singles = [
            ("input_channels", self.input_channels),
            ("num_classes", self.num_classes),
            ("patch_size", self.patch_size),
            ("d_state", self.d_state),
        ];
        let lists = (self.depths.iter().map(|d| ("depths", *d)))
            .chain(self.dims.iter().map(|d| ("dims", *d)));
        for (field, size) in singles.into_iter().chain(lists) {
            if !(1..=LARGEST).contains(&size) {
                return fail(field, format!("{size}, expected 1 to {LARGEST}"));
            }
        }
        if self.patch_embed == PatchEmbedVersion::V2
            && (self.patch_size % 2 != 0 || self.dims[0] % 2 != 0)
        {
            let message = format!(
                "{} with {} channels, expected both even for the patch embedding v2, which halves twice",
                self.patch_size, self.dims[0]
            );
            return fail("patch_size", message);
        }
        if self.downsample == DownsampleVersion::None
            && self.dims.iter().any(|d| *d != self.dims[0])
        {
            return fail(
                "downsample",
                format!("none, expected equal dims instead of {:?}", self.dims),
            );
        }
        for (field, ratio) in [("ssm_ratio", self.ssm_ratio), ("mlp_ratio", self.mlp_ratio)] {
            if !(0.0..=64.0).contains(&ratio) {
                return fail(field, format!("{ratio}, expected 0 to 64"));
            }
        }
        for (field, rate) in [
            ("ssm_drop", self.ssm_drop),
            ("mlp_drop", self.mlp_drop),
            ("drop_path_rate", self.drop_path_rate),
        ] {
            if !(0.0..1.0).contains(&rate) {
                return fail(field, format!("{rate}, expected at least 0 and below 1"));
            }
        }
        if let Some(side) = self.pos_embed.filter(|side| *side < self.patch_size) {
            return fail(
                "pos_embed",
                format!(
                    "{side}, expected at least the patch size {}",
                    self.patch_size
                ),
            );
        }
        let form: ForwardType = self.forward_type.parse()?;
        if self.ssm_ratio > 0.0 {
            (self.dims.iter()).try_for_each(|dim| self.ss2d(*dim, form).validate())?;
        }
        Ok(())
    }

    fn ss2d(&self, dim: i64, form: ForwardType) -> Ss2dConfig {
        Ss2dConfig {
            d_state: self.d_state,
            d_conv: self.d_conv,
            expand: self.ssm_ratio,
            dt_rank: self.dt_rank,
            conv_bias: self.conv_bias,
            bias: false,
            dropout: self.ssm_drop,
            act: self.ssm_act,
            init: self.ssm_init,
            form,
            layout: Layout::Vmamba,
            ..Ss2dConfig::new(dim)
        }
    }

    fn block(&self, dim: i64, drop_path: f64, form: ForwardType) -> VssBlockConfig {
        VssBlockConfig {
            dim,
            ssm: (self.ssm_ratio > 0.0).then(|| self.ss2d(dim, form)),
            mlp: (self.mlp_ratio > 0.0).then_some(MlpConfig {
                ratio: self.mlp_ratio,
                act: self.mlp_act,
                gated: self.gmlp,
                dropout: self.mlp_drop,
            }),
            norm: self.norm,
            norm_eps: LayerNorm::EPS,
            post_norm: false,
            drop_path,
            names: ["norm", "op"],
        }
    }

    /// The least side of an image that leaves a token at the last stage.
    fn smallest_side(&self) -> i64 {
        let halvings = self.depths.len() as u32 - 1;
        let coarse = match self.downsample {
            DownsampleVersion::V2 => 1 << halvings,
            _ => 1,
        };
        match self.patch_embed {
            PatchEmbedVersion::V1 => self.patch_size * coarse,
            // each of the two convolutions has stride p / 2, kernel p / 2 + 1 and padding 1
            PatchEmbedVersion::V2 => {
                let stride = self.patch_size / 2;
                let before = |tokens: i64| (tokens - 1) * stride + stride + 1 - 2;
                before(before(coarse).max(1)).max(1)
            }
        }
    }

    fn stage_reduction(&self, stage: usize) -> i64 {
        match self.downsample {
            DownsampleVersion::None => self.patch_size,
            _ => self.patch_size << stage,
        }
    }
}

fn conv(
    scope: &Scope,
    inputs: i64,
    outputs: i64,
    [kernel, stride, padding]: [i64; 3],
) -> Result<Conv, ModelError> {
    let options = ConvOptions {
        kernel: vec![kernel; 2],
        stride: vec![stride; 2],
        padding: vec![padding; 2],
        groups: 1,
        weight: TORCH_WEIGHT,
        bias: Some(Init::torch_bias(inputs * kernel * kernel)),
    };
    Conv::new(scope, inputs, outputs, options)
}

/// A convolution on channels last and a norm behind it.
struct ConvNorm {
    conv: Conv,
    norm: Option<ChannelNorm>,
}

impl ConvNorm {
    /// (B, H, W, C) -> (B, H', W', C')
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let x = (self.conv.forward(&x.permute([0, 3, 1, 2]))).permute([0, 2, 3, 1]);
        match &self.norm {
            Some(norm) => norm.forward(&x, train),
            None => Ok(x),
        }
    }
}

enum Downsample {
    Merging(PatchMerging),
    Conv(ConvNorm),
    None,
}

impl Downsample {
    fn new(scope: &Scope, config: &VmambaConfig, stage: usize) -> Result<Self, ModelError> {
        let (Some(&dim), Some(&out)) = (config.dims.get(stage), config.dims.get(stage + 1)) else {
            return Ok(Downsample::None);
        };
        let at = scope.sub("downsample");
        let shape = match config.downsample {
            DownsampleVersion::None => return Ok(Downsample::None),
            DownsampleVersion::V1 => {
                let merging = PatchMerging::new(&at, dim, out, OddSide::Pad)?;
                return Ok(Downsample::Merging(merging));
            }
            DownsampleVersion::V2 => [2, 2, 0],
            DownsampleVersion::V3 => [3, 2, 1],
        };
        Ok(Downsample::Conv(ConvNorm {
            conv: conv(&at.sub(1), dim, out, shape)?,
            norm: Some(ChannelNorm::new(
                &at.sub(3),
                config.norm,
                out,
                LayerNorm::EPS,
            )?),
        }))
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        match self {
            Downsample::Merging(merging) => Ok(merging.forward(x)),
            Downsample::Conv(conv) => conv.forward(x, train),
            Downsample::None => Ok(x.shallow_clone()),
        }
    }
}

/// Everything but the head.
struct Trunk {
    config: VmambaConfig,
    pos_embed: Option<Tensor>,
    /// One convolution, or two with a GELU between.
    patch_embed: Vec<ConvNorm>,
    stages: Vec<(Vec<Part<VssBlock>>, Downsample)>,
}

impl Trunk {
    fn new(scope: &Scope, config: &VmambaConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let (chans, dim, patch) = (config.input_channels, config.dims[0], config.patch_size);
        let pos_embed = match config.pos_embed {
            Some(side) => {
                let tokens = side / patch;
                let rule = Init::TruncNormal { std: 0.02 };
                Some(scope.undecayed("pos_embed", &[1, dim, tokens, tokens], rule)?)
            }
            None => None,
        };
        let at = scope.sub("patch_embed");
        // places in the reference's `nn.Sequential`, between them permutations
        let piece = |[conv_at, norm_at]: [i64; 2], inputs, outputs, shape| {
            let conv = conv(&at.sub(conv_at), inputs, outputs, shape)?;
            let norm = match config.patch_norm {
                true => Some(ChannelNorm::new(
                    &at.sub(norm_at),
                    config.norm,
                    outputs,
                    LayerNorm::EPS,
                )?),
                false => None,
            };
            Ok::<_, ModelError>(ConvNorm { conv, norm })
        };
        let patch_embed = match config.patch_embed {
            PatchEmbedVersion::V1 => vec![piece([0, 2], chans, dim, [patch, patch, 0])?],
            PatchEmbedVersion::V2 => {
                let shape = [patch / 2 + 1, patch / 2, 1];
                vec![
                    piece([0, 2], chans, dim / 2, shape)?,
                    piece([5, 7], dim / 2, dim, shape)?,
                ]
            }
        };
        let form: ForwardType = config.forward_type.parse()?;
        let blocks: i64 = config.depths.iter().sum();
        let mut done = 0;
        let mut stages = vec![];
        for (stage, depth) in config.depths.iter().enumerate() {
            let at = scope.sub(format!("layers.{stage}"));
            let made = (0..*depth)
                .map(|i| {
                    let drop_path =
                        config.drop_path_rate * (done + i) as f64 / (blocks - 1).max(1) as f64;
                    let block = config.block(config.dims[stage], drop_path, form);
                    VssBlock::new(&at.sub(format!("blocks.{i}")), block).map(Part::new)
                })
                .collect::<Result<Vec<_>, _>>()?;
            done += depth;
            stages.push((made, Downsample::new(&at, config, stage)?));
        }
        Ok(Self {
            config: config.clone(),
            pos_embed,
            patch_embed,
            stages,
        })
    }

    /// The output of every stage before it is reduced, (B, H, W, C).
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        check_input(x, &[self.config.input_channels], &[1, 1])?;
        let (shape, smallest) = (x.size(), self.config.smallest_side());
        if shape[2].min(shape[3]) < smallest {
            let message = format!("expected at least {smallest} pixels a side");
            return Err(ModelError::Input { shape, message });
        }
        let mut x = x.permute([0, 2, 3, 1]);
        for (i, piece) in self.patch_embed.iter().enumerate() {
            if i > 0 {
                x = reuse::activate(Activation::Gelu, x);
            }
            x = piece.forward(&x, train)?;
        }
        if let Some(embed) = &self.pos_embed {
            let (h, w) = (x.size()[1], x.size()[2]);
            let embed = match embed.size()[2..] == [h, w] {
                true => embed.shallow_clone(),
                false => resize::bicubic(embed, (h, w)),
            };
            x += embed.permute([0, 2, 3, 1]);
        }
        let mut outputs = vec![];
        for (blocks, downsample) in &self.stages {
            let y = in_turn(blocks, x, train)?;
            x = downsample.forward(&y, train)?;
            outputs.push(y);
        }
        Ok(outputs)
    }
}

/// The classifier.
pub struct Vmamba {
    trunk: Trunk,
    norm: ChannelNorm,
    head: Linear,
}

impl Vmamba {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: &VmambaConfig) -> Result<Self, ModelError> {
        let trunk = Trunk::new(scope, config)?;
        let last = config.dims[config.dims.len() - 1];
        let at = scope.sub("classifier");
        Ok(Self {
            trunk,
            norm: ChannelNorm::new(&at.sub("norm"), config.norm, last, LayerNorm::EPS)?,
            head: Linear::with_init(
                &at.sub("head"),
                last,
                config.num_classes,
                VSSM_LINEAR,
                Some(Init::Constant(0.0)),
            )?,
        })
    }
}

impl Network for Vmamba {
    /// (B, C, H, W) -> (B, classes)
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let stages = self.trunk.forward(x, train)?;
        let last = &stages[stages.len() - 1];
        let pooled = (self.norm.forward(last, train)?).mean_dim([1, 2].as_slice(), false, None);
        Ok(vec![self.head.forward(&pooled)])
    }

    fn divisor(&self) -> Vec<i64> {
        vec![1, 1]
    }

    fn stages(&self) -> Vec<Stage> {
        let config = &self.trunk.config;
        (config.dims.iter().enumerate())
            .map(|(i, dim)| Stage {
                name: format!("layers.{i}.blocks"),
                channels: *dim,
                reduction: vec![config.stage_reduction(i); 2],
            })
            .collect()
    }
}

/// The backbone of detectors and segmentation networks: the outputs of the stages `out_indices`, each with a norm of its own.
pub struct VmambaBackbone {
    trunk: Trunk,
    norms: Vec<(usize, ChannelNorm)>,
}

impl VmambaBackbone {
    /// Registers the parameters in the reference's order. `num_classes` is not used.
    pub fn new(
        scope: &Scope,
        config: &VmambaConfig,
        out_indices: &[usize],
    ) -> Result<Self, ModelError> {
        let trunk = Trunk::new(scope, config)?;
        let norms = out_indices
            .iter()
            .map(|i| {
                let dim = config.dims.get(*i).ok_or_else(|| {
                    let message = format!("{i}, expected below {}", config.dims.len());
                    ModelError::config("out_indices", message)
                })?;
                let at = scope.sub(format!("outnorm{i}"));
                Ok((
                    *i,
                    ChannelNorm::new(&at, config.norm, *dim, LayerNorm::EPS)?,
                ))
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        Ok(Self { trunk, norms })
    }
}

impl Backbone for VmambaBackbone {
    fn features(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let stages = self.trunk.forward(x, train)?;
        self.norms
            .iter()
            .map(|(i, norm)| Ok(norm.forward(&stages[*i], train)?.permute([0, 3, 1, 2])))
            .collect()
    }

    fn channels(&self) -> Vec<i64> {
        (self.norms.iter())
            .map(|(i, _)| self.trunk.config.dims[*i])
            .collect()
    }

    fn reduction(&self) -> Vec<i64> {
        (self.norms.iter())
            .map(|(i, _)| self.trunk.config.stage_reduction(*i))
            .collect()
    }

    fn divisor(&self) -> i64 {
        1
    }
}
