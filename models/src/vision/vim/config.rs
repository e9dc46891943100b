//! Configuration of Vim.

use serde::{Deserialize, Serialize};

use super::mixer::{Bidirectional, VimMixerConfig};
use crate::ssm::MambaConfig;
use crate::ModelError;

/// Sizes beyond this are typing errors.
const LARGEST: i64 = 1 << 16;

/// Where the class token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassToken {
    /// There is none; tokens are pooled.
    None,
    /// Before the patches.
    Head,
    /// Between the two halves of the patches.
    Middle,
    /// One before and one behind them; their mean is classified.
    Double,
}

impl ClassToken {
    /// How many there are.
    pub fn count(self) -> i64 {
        match self {
            ClassToken::None => 0,
            ClassToken::Head | ClassToken::Middle => 1,
            ClassToken::Double => 2,
        }
    }
}

/// What is classified without a class token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The last token.
    Last,
    /// The mean of all tokens.
    Mean,
    /// Every token; the largest logits count.
    Max,
}

/// Kind of the norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VimNorm {
    /// Root mean square.
    Rms,
    /// Layer norm.
    Layer,
}

/// Configuration of [`Vim`](super::Vim) and [`VimBackbone`](super::VimBackbone).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VimConfig {
    /// Channels of the image.
    pub input_channels: i64,
    /// Classes told apart.
    pub num_classes: i64,
    /// Side of the image that positions are learned for.
    pub img_size: i64,
    /// Pixels a side of a patch.
    pub patch_size: i64,
    /// Pixels from patch to patch.
    pub stride: i64,
    /// Blocks.
    pub depth: i64,
    /// Channels of a token.
    pub embed_dim: i64,
    /// States per inner channel.
    pub d_state: i64,
    /// Directions of the scans.
    pub bidirectional: Bidirectional,
    /// Whether the sum of the two directions is halved (version 2).
    pub divide: bool,
    /// First value of a factor a channel behind each mixer; none, no factor.
    #[serde(default)]
    pub layer_scale: Option<f64>,
    /// Kind of the norms.
    pub norm: VimNorm,
    /// Where the class token stands.
    pub class_token: ClassToken,
    /// What is classified without one.
    pub pool: Pool,
    /// Whether positions are learned.
    pub pos_embed: bool,
    /// Rotations: side of the grid that positions are scaled to; none, no rotations.
    #[serde(default)]
    pub rope: Option<i64>,
    /// Whether the residual stream is rotated too.
    #[serde(default)]
    pub rope_residual: bool,
    /// Whether every other block reads the sequence backwards, its result added to that of the block before (the reference's
    /// `if_bidirectional`).
    #[serde(default)]
    pub paired: bool,
    /// Dropout behind the positions.
    pub drop_rate: f64,
    /// Largest probability that a block is skipped in training, reached at the end.
    pub drop_path_rate: f64,
}

impl VimConfig {
    /// `eps` of the norms.
    pub(super) const NORM_EPS: f64 = 1e-5;

    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        let fail = |field: &'static str, message: String| Err(ModelError::config(field, message));
        for (field, size) in [
            ("input_channels", self.input_channels),
            ("num_classes", self.num_classes),
            ("img_size", self.img_size),
            ("patch_size", self.patch_size),
            ("stride", self.stride),
            ("depth", self.depth),
            ("embed_dim", self.embed_dim),
            ("d_state", self.d_state),
            ("rope", self.rope.unwrap_or(1)),
        ] {
            if !(1..=LARGEST).contains(&size) {
                return fail(field, format!("{size}, expected 1 to {LARGEST}"));
            }
        }
        if self.img_size < self.patch_size {
            let message = format!(
                "{}, expected at least one patch of {}",
                self.img_size, self.patch_size
            );
            return fail("img_size", message);
        }
        for (field, rate) in [
            ("drop_rate", self.drop_rate),
            ("drop_path_rate", self.drop_path_rate),
        ] {
            if !(0.0..1.0).contains(&rate) {
                return fail(field, format!("{rate}, expected at least 0 and below 1"));
            }
        }
        if self.paired && self.depth % 2 != 0 {
            return fail(
                "depth",
                format!("{}, expected an even number of paired blocks", self.depth),
            );
        }
        self.mixer().mamba.validate()
    }

    /// Patches along a side of so many pixels.
    pub fn patches(&self, side: i64) -> i64 {
        (side - self.patch_size) / self.stride + 1
    }

    pub(super) fn mixer(&self) -> VimMixerConfig {
        VimMixerConfig {
            mamba: MambaConfig {
                d_state: self.d_state,
                ..MambaConfig::new(self.embed_dim)
            },
            directions: self.bidirectional,
            divide: self.divide,
            layer_scale: self.layer_scale,
            layers: self.depth,
        }
    }
}
