//! Configuration of U-Mamba.

use serde::{Deserialize, Serialize};

use crate::unet::layout::{check_axes, check_positive, Layout, Levels, PerStage};
use crate::unet::token_mixer::Tokens;
use crate::ModelError;

/// What mixes the tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// The selective state space model, S6: the published network.
    #[default]
    Mamba,
    /// S4: the same at every token, diagonal plus low-rank.
    S4,
    /// S4D: the same at every token, diagonal.
    S4d,
    /// Nothing: the same network without its Mamba layers, the twin that tells what they are worth.
    None,
}

/// Which encoder stages a mixer follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerStages {
    /// The last; its tokens are positions. The skip connections do not see it. U-Mamba Bot.
    #[default]
    Bottleneck,
    /// Every second one, the last among them. U-Mamba Enc, 2-D.
    EveryOther,
    /// All. U-Mamba Enc, 3-D.
    Every,
}

impl MixerStages {
    fn has(self, stage: usize, stages: usize) -> bool {
        match self {
            MixerStages::Bottleneck => stage + 1 == stages,
            MixerStages::EveryOther => (stages - 1 - stage).is_multiple_of(2),
            MixerStages::Every => true,
        }
    }
}

/// Configuration of [`UMamba`](super::UMamba). Lists left empty follow from the training patch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UMambaConfig {
    /// Channels of the image.
    pub input_channels: i64,
    /// Classes, background included.
    pub num_classes: i64,
    /// Size of the crops it is trained on; gives depth, strides and kernels where they are not stated, and the width of
    /// the mixers whose tokens are channels.
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
    /// What mixes the tokens.
    #[serde(default)]
    pub mixer: Mixer,
    /// Where it does.
    #[serde(default)]
    pub mixer_stages: MixerStages,
    /// States per channel of the Mamba, S4 or S4D layers.
    pub d_state: i64,
    /// Width of the Mamba layers' causal convolution.
    pub d_conv: i64,
    /// Inner channels per channel of the Mamba layers.
    pub expand: f64,
}

/// The lists of a [`UMambaConfig`], all of them stated and of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Features, kernels and strides.
    pub levels: Levels,
    /// Blocks per encoder stage.
    pub blocks: Vec<i64>,
    /// Blocks per decoder stage, coarsest first.
    pub blocks_decoder: Vec<i64>,
    /// Tokens of the mixer after each encoder stage, where there is one.
    pub mixers: Vec<Option<Tokens>>,
}

impl UMambaConfig {
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

    /// Fills the open lists and checks that all go together.
    pub fn resolve(&self) -> Result<Resolved, ModelError> {
        let levels = self.layout().resolve()?;
        let n = levels.count();
        check_positive([
            ("input_channels", self.input_channels),
            ("num_classes", self.num_classes),
        ])?;
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
        let mixers = self.mixers(&levels)?;
        Ok(Resolved {
            levels,
            blocks,
            blocks_decoder,
            mixers,
        })
    }

    fn mixers(&self, levels: &Levels) -> Result<Vec<Option<Tokens>>, ModelError> {
        let n = levels.count();
        if self.mixer == Mixer::None {
            return Ok(vec![None; n]);
        }
        let bottleneck = self.mixer_stages == MixerStages::Bottleneck;
        let dims = self.spatial_dims();
        if !bottleneck && self.training_patch.len() != dims {
            let message = format!(
                "{:?}, expected {dims} sizes: the mixers of the encoder are made for one size of input",
                self.training_patch
            );
            return Err(ModelError::config("training_patch", message));
        }
        let mut map = self.training_patch.clone();
        let mut mixers = Vec::with_capacity(n);
        for stage in 0..n {
            let features = levels.features[stage];
            // the reference rounds down, stage by stage
            map.iter_mut()
                .zip(&levels.strides[stage])
                .for_each(|(side, s)| *side /= s);
            mixers.push(match self.mixer_stages.has(stage, n) {
                false => None,
                true if bottleneck => Some(Tokens::Positions(features)),
                true if map.contains(&0) => {
                    let message = format!(
                        "{:?} is too small for the strides, nothing is left of it at stage {stage}",
                        self.training_patch
                    );
                    return Err(ModelError::config("training_patch", message));
                }
                true => Some(Tokens::for_map(features, &map)),
            });
        }
        Ok(mixers)
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
