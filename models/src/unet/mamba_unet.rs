//! Mamba-UNet: a U-shaped network of visual state space blocks, 2-D.
//!
//! Paper: Wang, Zheng, Zhang, Cui and Li, *Mamba-UNet: UNet-Like Pure Visual Mamba for Medical Image Segmentation*, 2024.
//! Reference: ziyangwang007/Mamba-UNet at dfe92ba37889, `code/networks/{mamba_sys,vision_mamba}.py`.
//!
//! *Differences from the reference*
//! - `embed_dim` is obeyed; the reference swallows it and always has 96 features. The levels have 1, 2, 4 and 8 times as many.
//! - An image of one channel is repeated to three as the reference's wrapper does, unless `repeat_single_channel` is off. Other
//!   numbers of channels get a patch embedding of their own, which published weights do not fit.
//! - Sides that are no multiple of 32 are an error with the size to pad to (the reference fails at the concatenation).
//! - `drop_rate` does not exist (the reference swallows it); `dropout` is its `attn_drop_rate`.
//! - Kept: there are exactly four levels, the skips are the inputs of the encoder levels, blocks have no MLP.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::init::TORCH_WEIGHT;
use crate::layers::{Conv, ConvOptions, LayerNorm, Linear, Part};
use crate::network::check_input;
use crate::vision::patch::{OddSide, PatchEmbed, PatchExpand, PatchMerging};
use crate::vision::{in_turn, Ss2dConfig, VssBlock, VssBlockConfig, VSSM_LINEAR};
use crate::{Init, ModelError, Network, Scope, Stage};

/// Levels of the network; the reference's skip connections are written for this number.
const LEVELS: usize = 4;
/// The last expansion, whatever the patch.
const LAST_SCALE: i64 = 4;
/// What the wrapper makes of a single channel.
const REPEATED: i64 = 3;

/// Configuration of [`MambaUnet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MambaUnetConfig {
    /// Channels of the image.
    pub input_channels: i64,
    /// Whether an image of one channel is repeated to three.
    pub repeat_single_channel: bool,
    /// Classes, background included.
    pub num_classes: i64,
    /// Pixels per token and axis.
    pub patch_size: i64,
    /// Blocks of each of the four levels, finest first, the same in encoder and decoder.
    pub depths: Vec<i64>,
    /// Features of the finest level.
    pub embed_dim: i64,
    /// States per inner channel; none: a sixth of `embed_dim`, rounded up.
    #[serde(default)]
    pub d_state: Option<i64>,
    /// Probability of skipping the deepest block in training; rises linearly from 0 at the first.
    pub drop_path_rate: f64,
    /// Probability of dropping a value at the end of each SS2D in training.
    pub dropout: f64,
    /// Whether the patch embedding ends with a norm.
    pub patch_norm: bool,
}

impl MambaUnetConfig {
    /// Channels of the patch embedding.
    pub fn in_chans(&self) -> i64 {
        match self.input_channels {
            1 if self.repeat_single_channel => REPEATED,
            n => n,
        }
    }

    /// Features of a level, finest first.
    pub fn dim(&self, level: usize) -> i64 {
        self.embed_dim << level
    }

    /// States per inner channel.
    pub fn d_state(&self) -> i64 {
        self.d_state.unwrap_or((self.embed_dim + 5) / 6)
    }

    /// Probability of skipping block `block` of level `level`.
    fn drop_path(&self, level: usize, block: i64) -> f64 {
        let before: i64 = self.depths[..level].iter().sum();
        let last: i64 = self.depths.iter().sum::<i64>() - 1;
        self.drop_path_rate * (before + block) as f64 / last.max(1) as f64
    }

    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        if self.depths.len() != LEVELS || self.depths.iter().any(|d| *d < 1) {
            let message = format!("{:?}, expected {LEVELS} numbers of at least 1", self.depths);
            return Err(ModelError::config("depths", message));
        }
        let sizes = [
            ("input_channels", self.input_channels),
            ("num_classes", self.num_classes),
            ("patch_size", self.patch_size),
            ("embed_dim", self.embed_dim),
            ("d_state", self.d_state()),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| *size < 1) {
            return Err(ModelError::config(
                field,
                format!("{size}, expected at least 1"),
            ));
        }
        for (field, rate) in [
            ("drop_path_rate", self.drop_path_rate),
            ("dropout", self.dropout),
        ] {
            if !(0.0..1.0).contains(&rate) {
                return Err(ModelError::config(
                    field,
                    format!("{rate}, expected at least 0 and below 1"),
                ));
            }
        }
        Ok(())
    }

    /// Fitted to a data set: channels and classes. The patch decides nothing here; the caller rounds it to the divisor.
    pub fn for_data(
        &self,
        in_channels: i64,
        num_classes: i64,
        training_patch: &[i64],
    ) -> Result<Self, ModelError> {
        if training_patch.len() != 2 {
            let message = format!(
                "{training_patch:?} has {} axes, but Mamba-UNet is 2-D",
                training_patch.len()
            );
            return Err(ModelError::config("training_patch", message));
        }
        if self.patch_size != LAST_SCALE {
            let message = format!(
                "{}, expected 4: the last expansion is by 4",
                self.patch_size
            );
            return Err(ModelError::config("patch_size", message));
        }
        Ok(Self {
            input_channels: in_channels,
            num_classes,
            ..self.clone()
        })
    }
}

/// A level: blocks of one resolution.
struct Level {
    blocks: Vec<Part<VssBlock>>,
}

impl Level {
    fn new(scope: &Scope, config: &MambaUnetConfig, level: usize) -> Result<Self, ModelError> {
        let block = |i: i64| {
            let sizes = Ss2dConfig {
                d_state: config.d_state(),
                dropout: config.dropout,
                ..Ss2dConfig::new(config.dim(level))
            };
            let config =
                VssBlockConfig::mamba_unet(sizes, LayerNorm::EPS, config.drop_path(level, i));
            VssBlock::new(&scope.sub(format!("blocks.{i}")), config).map(Part::new)
        };
        Ok(Self {
            blocks: (0..config.depths[level])
                .map(block)
                .collect::<Result<_, _>>()?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        in_turn(&self.blocks, x.shallow_clone(), train)
    }
}

/// A level of the decoder with its skip connection: concatenate, halve the channels, blocks, enlarge.
struct Up {
    concat: Linear,
    level: Level,
    upsample: Option<PatchExpand>,
}

/// The network without the wrapper, (B, C, H, W) -> (B, classes, 4 H / patch, 4 W / patch): upstream's `VSSM`.
pub struct Vssm {
    patch_embed: PatchEmbed,
    down: Vec<(Level, Option<PatchMerging>)>,
    norm: LayerNorm,
    first_up: PatchExpand,
    ups: Vec<Up>,
    norm_up: LayerNorm,
    up: PatchExpand,
    output: Conv,
}

impl Vssm {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: &MambaUnetConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let c = config;
        let at = scope.sub("patch_embed");
        let patch_embed =
            PatchEmbed::new(&at, c.patch_size, c.in_chans(), c.embed_dim, c.patch_norm)?;
        let mut down = Vec::with_capacity(LEVELS);
        for level in 0..LEVELS {
            let at = scope.sub(format!("layers.{level}"));
            let blocks = Level::new(&at, c, level)?;
            let merge = match level + 1 < LEVELS {
                true => Some(PatchMerging::new(
                    &at.sub("downsample"),
                    c.dim(level),
                    2 * c.dim(level),
                    OddSide::Crop,
                )?),
                false => None,
            };
            down.push((blocks, merge));
        }
        let first_up = PatchExpand::new(&scope.sub("layers_up.0"), c.dim(LEVELS - 1), 2)?;
        let mut levels = Vec::with_capacity(LEVELS - 1);
        for step in 1..LEVELS {
            let level = LEVELS - 1 - step;
            let at = scope.sub(format!("layers_up.{step}"));
            let blocks = Level::new(&at, c, level)?;
            let upsample = match level > 0 {
                true => Some(PatchExpand::new(&at.sub("upsample"), c.dim(level), 2)?),
                false => None,
            };
            levels.push((level, blocks, upsample));
        }
        let mut ups = Vec::with_capacity(LEVELS - 1);
        for (i, (n, level, upsample)) in levels.into_iter().enumerate() {
            let at = scope.sub(format!("concat_back_dim.{}", i + 1));
            let concat = Linear::with_init(
                &at,
                2 * c.dim(n),
                c.dim(n),
                VSSM_LINEAR,
                Some(Init::Constant(0.0)),
            )?;
            ups.push(Up {
                concat,
                level,
                upsample,
            });
        }
        let norm = LayerNorm::new(&scope.sub("norm"), c.dim(LEVELS - 1), LayerNorm::EPS)?;
        let norm_up = LayerNorm::new(&scope.sub("norm_up"), c.embed_dim, LayerNorm::EPS)?;
        let up = PatchExpand::last(&scope.sub("up"), c.embed_dim, LAST_SCALE)?;
        let output = ConvOptions {
            kernel: vec![1; 2],
            stride: vec![1; 2],
            padding: vec![0; 2],
            groups: 1,
            weight: TORCH_WEIGHT,
            bias: None,
        };
        let output = Conv::new(&scope.sub("output"), c.embed_dim, c.num_classes, output)?;
        Ok(Self {
            patch_embed,
            down,
            norm,
            first_up,
            ups,
            norm_up,
            up,
            output,
        })
    }

    /// Logits; the image already has the channels of the patch embedding.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let mut x = self.patch_embed.forward(x);
        let mut skips = Vec::with_capacity(LEVELS);
        for (level, merge) in &self.down {
            skips.push(x.shallow_clone());
            x = level.forward(&x, train)?;
            if let Some(merge) = merge {
                x = merge.forward(&x);
            }
        }
        let mut x = self.first_up.forward(&self.norm.forward(&x));
        // the deepest level's input is no skip
        for (up, skip) in self.ups.iter().zip(skips.iter().rev().skip(1)) {
            x = up.concat.forward(&Tensor::cat(&[&x, skip], -1));
            x = up.level.forward(&x, train)?;
            if let Some(upsample) = &up.upsample {
                x = upsample.forward(&x);
            }
        }
        Ok((self.up).forward_through(&self.norm_up.forward(&x), &self.output))
    }
}

/// The network under its published names, which all begin with `mamba_unet.`.
pub struct MambaUnet {
    config: MambaUnetConfig,
    mamba_unet: Vssm,
}

impl MambaUnet {
    /// Registers the parameters below `mamba_unet`.
    pub fn new(scope: &Scope, config: &MambaUnetConfig) -> Result<Self, ModelError> {
        Ok(Self {
            config: config.clone(),
            mamba_unet: Vssm::new(&scope.sub("mamba_unet"), config)?,
        })
    }
}

impl Network for MambaUnet {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let in_chans = self.config.in_chans();
        let repeats = self.config.repeat_single_channel && in_chans == REPEATED;
        let channels: &[i64] = if repeats { &[1, REPEATED] } else { &[in_chans] };
        check_input(x, channels, &self.divisor())?;
        let x = match x.size()[1] {
            1 if repeats => x.repeat([1, REPEATED, 1, 1]),
            _ => x.shallow_clone(),
        };
        Ok(vec![self.mamba_unet.forward(&x, train)?])
    }

    fn divisor(&self) -> Vec<i64> {
        vec![self.config.patch_size << (LEVELS - 1); 2]
    }

    fn deep_supervision(&self) -> bool {
        false
    }

    fn stages(&self) -> Vec<Stage> {
        let c = &self.config;
        let stage = |name: String, level: usize| Stage {
            name,
            channels: c.dim(level),
            reduction: vec![c.patch_size << level; 2],
        };
        // a level's features after its merging or expansion belong to the next
        let down =
            (0..LEVELS).map(|l| stage(format!("mamba_unet.layers.{l}"), (l + 1).min(LEVELS - 1)));
        let up = (0..LEVELS).map(|s| {
            stage(
                format!("mamba_unet.layers_up.{s}"),
                (LEVELS - 2).saturating_sub(s),
            )
        });
        let pixels = |name: &str, channels| Stage {
            name: name.into(),
            channels,
            reduction: vec![(c.patch_size / LAST_SCALE).max(1); 2],
        };
        std::iter::once(stage("mamba_unet.patch_embed".into(), 0))
            .chain(down)
            .chain(up)
            .chain([
                pixels("mamba_unet.up", c.embed_dim),
                pixels("mamba_unet.output", c.num_classes),
            ])
            .collect()
    }
}
