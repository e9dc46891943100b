//! The residual block around SS2D.

use tch::Tensor;

use super::mlp::Mlp;
use super::norm::{ChannelNorm, NormKind};
use super::ss2d::{Ss2d, Ss2dConfig};
use crate::layers::{drop_path, reuse, Activation, Part};
use crate::{ModelError, Scope};

/// The branch behind SS2D.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpConfig {
    /// Hidden values per channel.
    pub ratio: f64,
    /// Activation between the layers.
    pub act: Activation,
    /// Whether half of the hidden values gates the other.
    pub gated: bool,
    /// Probability that a value is dropped in training.
    pub dropout: f64,
}

/// What a block is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct VssBlockConfig {
    /// Channels.
    pub dim: i64,
    /// The branch of SS2D, when there is one.
    pub ssm: Option<Ss2dConfig>,
    /// The feed-forward branch, when there is one.
    pub mlp: Option<MlpConfig>,
    /// Kind of the norms.
    pub norm: NormKind,
    /// `eps` of the norms.
    pub norm_eps: f64,
    /// Whether a norm stands behind its branch instead of before.
    pub post_norm: bool,
    /// Probability that a branch is skipped in training.
    pub drop_path: f64,
    /// Names of the norm and of the branch of SS2D.
    pub names: [&'static str; 2],
}

impl VssBlockConfig {
    /// `x + drop_path(SS2D(norm(x)))` with Mamba-UNet's names, as in VMamba's first version.
    pub fn mamba_unet(ssm: Ss2dConfig, norm_eps: f64, drop_path: f64) -> Self {
        Self {
            dim: ssm.d_model,
            ssm: Some(ssm),
            mlp: None,
            norm: NormKind::Layer,
            norm_eps,
            post_norm: false,
            drop_path,
            names: ["ln_1", "self_attention"],
        }
    }
}

/// Blocks one after the other: (B, H, W, C) -> (B, H, W, C).
pub fn in_turn(blocks: &[Part<VssBlock>], x: Tensor, train: bool) -> Result<Tensor, ModelError> {
    blocks.iter().try_fold(x, |x, block| {
        block.run(&x, move |block, x| block.forward(x, train))
    })
}

/// `x + drop_path(SS2D(norm(x)))`, then `x + drop_path(MLP(norm2(x)))`; either may be missing.
pub struct VssBlock {
    ssm: Option<(ChannelNorm, Ss2d)>,
    mlp: Option<(ChannelNorm, Mlp)>,
    post_norm: bool,
    drop_path: f64,
}

impl VssBlock {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: VssBlockConfig) -> Result<Self, ModelError> {
        let norm =
            |name| ChannelNorm::new(&scope.sub(name), config.norm, config.dim, config.norm_eps);
        let ssm = match config.ssm {
            Some(ssm) => Some((
                norm(config.names[0])?,
                Ss2d::new(&scope.sub(config.names[1]), ssm)?,
            )),
            None => None,
        };
        let mlp = match config.mlp {
            Some(mlp) => {
                let hidden = (config.dim as f64 * mlp.ratio) as i64;
                let norm2 = norm("norm2")?;
                let scope = scope.sub("mlp");
                Some((
                    norm2,
                    Mlp::new(&scope, config.dim, hidden, mlp.act, mlp.gated, mlp.dropout)?,
                ))
            }
            None => None,
        };
        Ok(Self {
            ssm,
            mlp,
            post_norm: config.post_norm,
            drop_path: config.drop_path,
        })
    }

    /// (B, H, W, C) -> (B, H, W, C)
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let add = |x: &Tensor,
                   norm: &ChannelNorm,
                   branch: &dyn Fn(&Tensor) -> Result<Tensor, ModelError>| {
            let y = match self.post_norm {
                true => norm.forward(&branch(x)?, train)?,
                false => branch(&norm.forward(x, train)?)?,
            };
            Ok::<_, ModelError>(reuse::add(drop_path(&y, self.drop_path, train), x))
        };
        let mut x = x.shallow_clone();
        if let Some((norm, ssm)) = &self.ssm {
            x = add(&x, norm, &|x| ssm.forward(x, train))?;
        }
        if let Some((norm, mlp)) = &self.mlp {
            x = add(&x, norm, &|x| Ok(mlp.forward(x, train)))?;
        }
        Ok(x)
    }
}
