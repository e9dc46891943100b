//! U-Mamba: a residual U-Net with Mamba layers in its encoder, 2-D and 3-D, Bot and Enc in one.
//!
//! Paper: Ma, Li and Wang, *U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation*, 2024.
//! Reference: bowang-lab/U-Mamba at 28459e33ca03, `umamba/nnunetv2/nets/UMamba{Bot,Enc}_{2d,3d}.py`, initialisation in
//! `umamba/nnunetv2/utilities/network_initialization.py`.
//!
//! *Differences from the reference*
//! - One implementation for all four; what differs between the reference's files are fields: the skip connection at full
//!   resolution (`full_resolution_skip`) and the stages with a Mamba layer (`mixer_stages`).
//! - Without a plan the strides and kernels follow from `training_patch` by the rule that makes the plan.
//! - An even kernel size is refused (the reference fails in its forward pass).
//! - Where Enc's tokens are channels, an input of another size than the training patch is refused before anything runs.
//! - `mixer = "none"` leaves the Mamba layers out, norm and all; `"s4"` and `"s4d"` put those layers in their place.
//! - Kept: the deeper half of the stages has one block whatever `n_conv_per_stage` says, the Mamba layers have no residual
//!   connection, every decoder stage has a segmentation layer even without deep supervision.

pub mod config;

pub use config::{Mixer, MixerStages, Resolved, UMambaConfig};

use tch::Tensor;

use super::layout::check_trainable;
use super::residual::{conv, Blocks, Style};
use super::token_mixer::{SequenceConfig, TokenMixer, Tokens};
use crate::layers::{Conv, Part};
use crate::network::check_input;
use crate::ssm::s4::Kernel;
use crate::ssm::MambaConfig;
use crate::{ModelError, Network, Scope, Stage};

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
    blocks: Part<Blocks>,
    seg: Conv,
}

/// The network.
pub struct UMamba {
    config: UMambaConfig,
    resolved: Resolved,
    stem: Part<Blocks>,
    stages: Vec<Part<Blocks>>,
    mixers: Vec<Option<Part<TokenMixer>>>,
    ups: Vec<Up>,
}

impl UMamba {
    /// Registers the parameters in the reference's order and under its names, shared ones under both.
    pub fn new(scope: &Scope, config: &UMambaConfig) -> Result<Self, ModelError> {
        let r = config.resolve()?;
        let levels = &r.levels;
        let n = levels.count();
        let ones = vec![1; config.spatial_dims()];
        let style = Style {
            norm_eps: config.norm_eps,
            norm_affine: config.norm_affine,
            negative_slope: config.negative_slope,
            conv_bias: config.conv_bias,
            zero_last_norm: false,
        };
        let sequence = match config.mixer {
            Mixer::S4 => SequenceConfig::S4(Kernel::Dplr, config.d_state),
            Mixer::S4d => SequenceConfig::S4(Kernel::Diag, config.d_state),
            // without a mixer there are no tokens
            Mixer::Mamba | Mixer::None => SequenceConfig::Mamba(MambaConfig {
                d_state: config.d_state,
                d_conv: config.d_conv,
                expand: config.expand,
                ..MambaConfig::new(1)
            }),
        };
        let mixers = || {
            let one = |(s, tokens): (usize, &Option<Tokens>)| {
                let at = scope.sub(mixer_name(config.mixer_stages, s));
                let made = tokens
                    .as_ref()
                    .map(|t| TokenMixer::new(&at, t.clone(), &sequence).map(Part::new));
                made.transpose()
            };
            r.mixers
                .iter()
                .enumerate()
                .map(one)
                .collect::<Result<Vec<_>, _>>()
        };
        let encoder = scope.sub("encoder");
        let first = levels.features[0];
        let stem = Part::new(Blocks::new(
            &encoder.sub("stem"),
            &style,
            (config.input_channels, first),
            &levels.kernels[0],
            &ones,
            r.blocks[0],
        )?);
        // Enc's belong to the encoder and stand before its stages, Bot's one stands after it
        let in_encoder = match config.mixer_stages {
            MixerStages::Bottleneck => None,
            _ => Some(mixers()?),
        };
        let mut stages = Vec::with_capacity(n);
        for s in 0..n {
            let channels = (levels.features[s.saturating_sub(1)], levels.features[s]);
            stages.push(Part::new(Blocks::new(
                &encoder.sub(format!("stages.{s}")),
                &style,
                channels,
                &levels.kernels[s],
                &levels.strides[s],
                r.blocks[s],
            )?));
        }
        let mixers = match in_encoder {
            Some(made) => made,
            None => mixers()?,
        };

        // the decoder keeps a reference to the encoder
        scope.alias("encoder", "decoder.encoder")?;
        let decoder = scope.sub("decoder");
        let with_skip = |step: usize| step + 2 < n || config.full_resolution_skip;
        let mut blocks = Vec::with_capacity(n - 1);
        for (step, level) in (0..n - 1).rev().enumerate() {
            let f = levels.features[level];
            let channels = (if with_skip(step) { 2 * f } else { f }, f);
            let at = decoder.sub(format!("stages.{step}"));
            blocks.push(Part::new(Blocks::new(
                &at,
                &style,
                channels,
                &levels.kernels[level],
                &ones,
                r.blocks_decoder[step],
            )?));
        }
        let mut upsamples = Vec::with_capacity(n - 1);
        for (step, level) in (0..n - 1).rev().enumerate() {
            let at = decoder.sub(format!("upsample_layers.{step}.conv"));
            let conv = conv(
                &at,
                levels.features[level + 1],
                levels.features[level],
                &ones,
                &ones,
                true,
            )?;
            upsamples.push(Upsample {
                conv,
                scale: levels.strides[level + 1].clone(),
            });
        }
        let mut ups = Vec::with_capacity(n - 1);
        for (step, (upsample, blocks)) in upsamples.into_iter().zip(blocks).enumerate() {
            let at = decoder.sub(format!("seg_layers.{step}"));
            let seg = conv(
                &at,
                levels.features[n - 2 - step],
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
            mixers,
            ups,
        })
    }

    /// Layers whose tokens are channels are as wide as the feature map of the training patch has positions.
    fn check_tokens(&self, x: &Tensor) -> Result<(), ModelError> {
        let shape = x.size();
        let stages = self.mixers.iter().zip(self.resolved.levels.reductions());
        for (s, (mixer, reduction)) in stages.enumerate() {
            let tokens = |mixer: &Part<TokenMixer>| mixer.look(|mixer| mixer.tokens().clone());
            let Some(Tokens::Channels(map)) = mixer.as_ref().map(tokens) else {
                continue;
            };
            let expected: Vec<i64> = map.iter().zip(reduction).map(|(m, r)| m * r).collect();
            if shape[2..] != expected[..] {
                let message = format!(
                    "at stage {s} this network's tokens are channels, so its weights belong to one size of input, \
                     {expected:?}, from its training patch {:?}; predict in windows of that size, or train with another \
                     training patch",
                    self.config.training_patch
                );
                return Err(ModelError::Input { shape, message });
            }
        }
        Ok(())
    }
}

/// Where the mixer of a stage is registered.
fn mixer_name(place: MixerStages, stage: usize) -> String {
    match place {
        MixerStages::Bottleneck => "mamba_layer".into(),
        _ => format!("encoder.mamba_layers.{stage}"),
    }
}

impl Network for UMamba {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let divisor = self.divisor();
        check_input(x, &[self.config.input_channels], &divisor)?;
        self.check_tokens(x)?;
        if train {
            check_trainable(&x.size(), &divisor)?;
        }
        let mut skips = Vec::with_capacity(self.stages.len());
        let convolve =
            |part: &Part<Blocks>, x: &Tensor| part.run(x, |blocks, x| Ok(blocks.forward(x)));
        let mut x = convolve(&self.stem, x)?;
        for (stage, mixer) in self.stages.iter().zip(&self.mixers) {
            x = convolve(stage, &x)?;
            if let Some(mixer) = mixer {
                x = mixer.run(&x, TokenMixer::forward)?;
            }
            skips.push(x.shallow_clone());
        }
        skips.pop();
        let mut logits = vec![];
        for (step, up) in self.ups.iter().enumerate() {
            x = up.upsample.forward(&x);
            let skip = skips.pop().filter(|_| up.with_skip);
            if let Some(skip) = skip {
                x = Tensor::cat(&[x, skip], 1);
            }
            x = convolve(&up.blocks, &x)?;
            if self.config.deep_supervision || step + 1 == self.ups.len() {
                logits.push(up.seg.forward(&x));
            }
        }
        logits.reverse();
        Ok(logits)
    }

    fn divisor(&self) -> Vec<i64> {
        self.resolved.levels.reductions().pop().unwrap_or_default()
    }

    fn deep_supervision(&self) -> bool {
        self.config.deep_supervision
    }

    fn stages(&self) -> Vec<Stage> {
        let levels = &self.resolved.levels;
        let (features, reductions) = (&levels.features, levels.reductions());
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
        let encoder = (0..n).flat_map(|s| {
            let mixer = self.mixers[s].as_ref();
            let mixer = mixer.map(|_| stage(mixer_name(self.config.mixer_stages, s), s));
            std::iter::once(stage(format!("encoder.stages.{s}"), s)).chain(mixer)
        });
        std::iter::once(stem)
            .chain(encoder)
            .chain((0..n - 1).map(|s| stage(format!("decoder.stages.{s}"), n - 2 - s)))
            .chain(std::iter::once(logits))
            .collect()
    }
}
