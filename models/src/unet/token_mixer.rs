//! A norm and a sequence mixer over the tokens of a feature map: U-Mamba's `MambaLayer`.
//!
//! Reference: bowang-lab/U-Mamba at 28459e33ca03, `umamba/nnunetv2/nets/UMambaEnc_{2d,3d}.py`.
//!
//! *Differences from the reference*
//! - A layer whose tokens are channels takes feature maps of its own size only; the reference also takes others with as
//!   many positions, whose places then mean something else.

use tch::Tensor;

use crate::layers::LayerNorm;
use crate::ssm::s4::{Kernel, S4Block, S4BlockConfig, S4KernelConfig};
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

/// What mixes the tokens of a sequence, first to last.
#[derive(Debug, Clone, PartialEq)]
pub enum SequenceConfig {
    /// A Mamba block; `d_model` is decided by the tokens.
    Mamba(MambaConfig),
    /// An S4 or S4D layer with so many states.
    S4(Kernel, i64),
}

enum Sequence {
    Mamba(Mamba),
    S4(S4Block),
}

impl Sequence {
    /// Registers `mamba`, or `s4`.
    fn new(scope: &Scope, config: &SequenceConfig, width: i64) -> Result<Self, ModelError> {
        Ok(match config {
            SequenceConfig::Mamba(sizes) => {
                let sizes = MambaConfig {
                    d_model: width,
                    ..sizes.clone()
                };
                Sequence::Mamba(Mamba::new(&scope.sub("mamba"), sizes)?)
            }
            SequenceConfig::S4(kernel, d_state) => {
                let kernel = S4KernelConfig {
                    d_state: *d_state,
                    ..S4KernelConfig::new(width, *kernel)
                };
                let config = S4BlockConfig {
                    kernel,
                    l_max: None,
                    bidirectional: false,
                };
                Sequence::S4(S4Block::new(&scope.sub("s4"), config)?)
            }
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            Sequence::Mamba(mamba) => mamba.forward(x),
            Sequence::S4(s4) => s4.forward(x),
        }
    }
}

/// The layer. It has no residual connection.
pub struct TokenMixer {
    tokens: Tokens,
    norm: LayerNorm,
    sequence: Sequence,
}

impl TokenMixer {
    /// Registers `norm` and the sequence mixer.
    pub fn new(scope: &Scope, tokens: Tokens, config: &SequenceConfig) -> Result<Self, ModelError> {
        let width = tokens.width();
        Ok(Self {
            norm: LayerNorm::new(&scope.sub("norm"), width, LayerNorm::EPS)?,
            sequence: Sequence::new(scope, config, width)?,
            tokens,
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
        let mix = |tokens: &Tensor| self.sequence.forward(&self.norm.forward(tokens));
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
