//! Between resolutions: pixels to tokens, tokens to fewer and to more tokens. All but the first take channels last.
//!
//! Reference: ziyangwang007/Mamba-UNet at dfe92ba37889, `code/networks/mamba_sys.py`.

use tch::Tensor;

use super::VSSM_LINEAR;
use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{Conv, ConvOptions, LayerNorm, Linear};
use crate::{ModelError, Scope};

/// Non-overlapping patches to tokens. Sides that are no multiple of the patch lose the rest.
pub struct PatchEmbed {
    proj: Conv,
    norm: Option<LayerNorm>,
}

impl PatchEmbed {
    /// `patch` pixels a side, with or without a norm after it.
    pub fn new(
        scope: &Scope,
        patch: i64,
        in_chans: i64,
        dim: i64,
        norm: bool,
    ) -> Result<Self, ModelError> {
        let conv = ConvOptions {
            kernel: vec![patch; 2],
            stride: vec![patch; 2],
            padding: vec![0; 2],
            groups: 1,
            weight: TORCH_WEIGHT,
            bias: Some(Init::torch_bias(in_chans * patch * patch)),
        };
        let proj = Conv::new(&scope.sub("proj"), in_chans, dim, conv)?;
        let norm = match norm {
            true => Some(LayerNorm::new(&scope.sub("norm"), dim, LayerNorm::EPS)?),
            false => None,
        };
        Ok(Self { proj, norm })
    }

    /// (B, in_chans, H, W) -> (B, H / patch, W / patch, dim)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.proj.forward(x).permute([0, 2, 3, 1]);
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => x,
        }
    }
}

/// What becomes of an odd side's last row or column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OddSide {
    /// It is lost: Mamba-UNet.
    Crop,
    /// Zeros are put beside it: VMamba.
    Pad,
}

/// Two by two tokens to one.
pub struct PatchMerging {
    reduction: Linear,
    norm: LayerNorm,
    odd: OddSide,
}

impl PatchMerging {
    /// From `dim` to `out_dim` channels.
    pub fn new(scope: &Scope, dim: i64, out_dim: i64, odd: OddSide) -> Result<Self, ModelError> {
        Ok(Self {
            reduction: Linear::with_init(
                &scope.sub("reduction"),
                4 * dim,
                out_dim,
                VSSM_LINEAR,
                None,
            )?,
            norm: LayerNorm::new(&scope.sub("norm"), 4 * dim, LayerNorm::EPS)?,
            odd,
        })
    }

    /// (B, H, W, C) -> (B, H / 2, W / 2, C'), sides rounded down or up
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let (odd_h, odd_w) = (size[1] % 2, size[2] % 2);
        let x = match self.odd {
            OddSide::Crop => x
                .narrow(1, 0, size[1] - odd_h)
                .narrow(2, 0, size[2] - odd_w),
            OddSide::Pad if odd_h + odd_w > 0 => x.constant_pad_nd([0, 0, 0, odd_w, 0, odd_h]),
            OddSide::Pad => x.shallow_clone(),
        };
        let (h, w, c) = (x.size()[1] / 2, x.size()[2] / 2, size[3]);
        let x = x.reshape([-1, h, 2, w, 2, c]);
        // (B, h, dy, w, dx, C) -> (B, h, w, dx, dy, C): the reference goes down before it goes right
        let x = x.permute([0, 1, 3, 4, 2, 5]).reshape([-1, h, w, 4 * c]);
        self.reduction.forward(&self.norm.forward(&x))
    }
}

/// One token to several, after a linear layer has made their channels.
pub struct PatchExpand {
    expand: Option<Linear>,
    norm: LayerNorm,
    scale: i64,
}

impl PatchExpand {
    /// A level of the decoder: two by two tokens for one. `dim_scale` 2 halves the channels; any other value leaves out
    /// the linear layer and divides the channels by itself, which the reference allows only to be 4.
    pub fn new(scope: &Scope, dim: i64, dim_scale: i64) -> Result<Self, ModelError> {
        if dim_scale != 2 && dim_scale != 4 {
            let message = format!(
                "{dim_scale}, expected 2 or 4, two by two tokens share the channels of one"
            );
            return Err(ModelError::config("dim_scale", message));
        }
        let expand = match dim_scale {
            2 => Some(Linear::with_init(
                &scope.sub("expand"),
                dim,
                2 * dim,
                VSSM_LINEAR,
                None,
            )?),
            _ => None,
        };
        let norm = LayerNorm::new(&scope.sub("norm"), dim / dim_scale, LayerNorm::EPS)?;
        Ok(Self {
            expand,
            norm,
            scale: 2,
        })
    }

    /// The last step up to pixels: `scale` by `scale` tokens for one, channels kept.
    pub fn last(scope: &Scope, dim: i64, scale: i64) -> Result<Self, ModelError> {
        Self::to(scope, dim, dim, scale)
    }

    /// `scale` by `scale` tokens of `out_dim` channels for one.
    pub fn to(scope: &Scope, dim: i64, out_dim: i64, scale: i64) -> Result<Self, ModelError> {
        let expand = Linear::with_init(
            &scope.sub("expand"),
            dim,
            scale * scale * out_dim,
            VSSM_LINEAR,
            None,
        )?;
        let norm = LayerNorm::new(&scope.sub("norm"), out_dim, LayerNorm::EPS)?;
        Ok(Self {
            expand: Some(expand),
            norm,
            scale,
        })
    }

    /// (B, H, W, C) -> (B, scale H, scale W, C')
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.lay_out(&self.tokens(x))
    }

    /// With a convolution of single values behind it, (B, H, W, C) -> (B, classes, scale H, scale W). It sees token after token, as the norm does,
    /// so it comes before the tokens find their places: then its few results move, and not all channels.
    pub fn forward_through(&self, x: &Tensor, output: &Conv) -> Tensor {
        let tokens = self.tokens(x);
        let size = tokens.size();
        let map = tokens.flatten(2, 3).permute([0, 3, 1, 2]);
        let y = output.forward(&map).permute([0, 2, 3, 1]);
        let y = y.reshape([size[0], size[1], size[2], size[3], -1]);
        self.lay_out(&y).permute([0, 3, 1, 2])
    }

    /// (B, H, W, C) -> (B, H, W, scale x scale, C')
    fn tokens(&self, x: &Tensor) -> Tensor {
        let x = match &self.expand {
            Some(expand) => expand.forward(x),
            None => x.shallow_clone(),
        };
        let size = x.size();
        let p = self.scale;
        let x = x.reshape([-1, size[1], size[2], p * p, size[3] / (p * p)]);
        self.norm.forward(&x)
    }

    /// (B, H, W, scale x scale, C) -> (B, scale H, scale W, C)
    fn lay_out(&self, x: &Tensor) -> Tensor {
        let (size, p) = (x.size(), self.scale);
        let (h, w, c) = (size[1], size[2], size[4]);
        // (B, H, W, p1, p2, C) -> (B, H, p1, W, p2, C)
        let x = x.view([-1, h, w, p, p, c]).permute([0, 1, 3, 2, 4, 5]);
        x.reshape([-1, h * p, w * p, c])
    }
}
