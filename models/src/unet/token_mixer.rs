//! A norm and a sequence mixer over the tokens of a feature map: U-Mamba's `MambaLayer`.
//!
//! Reference: bowang-lab/U-Mamba at 28459e33ca03, `umamba/nnunetv2/nets/UMambaEnc_{2d,3d}.py`.
//!
//! *Differences from the reference*
//! - A layer whose tokens are channels takes feature maps of its own size only; the reference also takes others with as
//!   many positions, whose places then mean something else.

use tch::Tensor;

use crate::layers::LayerNorm;
use crate::ssm::{Mamba, MambaConfig};
use crate::{ModelError, Scope};

/// What the sequence runs over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokens {
    /// Positions, each with this many channels: any size of feature map.
    Positions(i64),
    /// Channels, each with all positions of a feature map of this size: the layer's width is their product.
    Channels(Vec<i64>),
}

impl Tokens {
    /// The reference's rule: channels where there are at least as many as positions.
    pub fn for_map(channels: i64, map: &[i64]) -> Self {
        match map.iter().product::<i64>() <= channels {
            true => Tokens::Channels(map.to_vec()),
            false => Tokens::Positions(channels),
        }
    }

    /// Values a token has.
    pub fn width(&self) -> i64 {
        match self {
            Tokens::Positions(channels) => *channels,
            Tokens::Channels(map) => map.iter().product(),
        }
    }
}

/// The layer. It has no residual connection.
pub struct TokenMixer {
    tokens: Tokens,
    norm: LayerNorm,
    mamba: Mamba,
}

impl TokenMixer {
    /// Registers `norm` and `mamba`; `sizes` without `d_model`, which the tokens decide.
    pub fn new(scope: &Scope, tokens: Tokens, sizes: &MambaConfig) -> Result<Self, ModelError> {
        let width = tokens.width();
        let norm = LayerNorm::new(&scope.sub("norm"), width, LayerNorm::EPS)?;
        let sizes = MambaConfig {
            d_model: width,
            ..sizes.clone()
        };
        let mamba = Mamba::new(&scope.sub("mamba"), sizes)?;
        Ok(Self {
            tokens,
            norm,
            mamba,
        })
    }

    /// What the sequence runs over.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// (B, C, spatial..) -> (B, C, spatial..)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let size = x.size();
        // (B, C, spatial..) -> (B, C, positions)
        let x = x.flatten(2, -1);
        let mix = |tokens: &Tensor| self.mamba.forward(&self.norm.forward(tokens));
        let y = match &self.tokens {
            Tokens::Positions(_) => mix(&x.transpose(1, 2))?.transpose(1, 2),
            Tokens::Channels(map) if size[2..] == map[..] => mix(&x)?,
            Tokens::Channels(map) => {
                let message = format!(
                    "this layer's tokens are channels, so it takes feature maps of size {map:?} only"
                );
                return Err(ModelError::Input {
                    shape: size,
                    message,
                });
            }
        };
        // the batch is left open, for traces
        let open: Vec<i64> = std::iter::once(-1)
            .chain(size[1..].iter().copied())
            .collect();
        Ok(y.reshape(open))
    }
}
