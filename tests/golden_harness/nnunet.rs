//! nnU-Net's networks, as dynamic-network-architectures builds them.

use vision_mamba_models::unet::nnunet::EncoderKind;
use vision_mamba_models::unet::{NnUnet, NnUnetConfig};
use vision_mamba_models::{Network, ParamStore};

use crate::case::{Case, Fallible};
use crate::config::Config;
use crate::modules::{make, numbered, Forward};
use crate::umamba::common;

/// None: not one of these.
pub fn build(case: &Case, config: &Config) -> Fallible<Option<(Forward, ParamStore)>> {
    let encoder = match case.model.as_str() {
        "PlainConvUNet" => EncoderKind::Plain,
        "ResidualEncoderUNet" => EncoderKind::Residual,
        _ => return Ok(None),
    };
    let sizes = nnunet(config, encoder, config.required("dim")?)?;
    let many = sizes.deep_supervision;
    let (net, params) = make(|scope| NnUnet::new(scope, &sizes))?;
    let forward: Forward = Box::new(move |x, train| Ok(numbered(net.forward(x, train)?, many)));
    Ok(Some((forward, params)))
}

/// A network as the reference's constructor describes it.
pub fn nnunet(config: &Config, encoder: EncoderKind, dims: usize) -> Fallible<NnUnetConfig> {
    let common = common(config, dims)?;
    let blocks = match encoder {
        EncoderKind::Plain => "n_conv_per_stage",
        EncoderKind::Residual => "n_blocks_per_stage",
    };
    Ok(NnUnetConfig {
        input_channels: config.required("input_channels")?,
        num_classes: config.required("num_classes")?,
        encoder,
        training_patch: vec![],
        spacing: None,
        max_stages: None,
        base_features: 0,
        max_features: 0,
        features_per_stage: common.features_per_stage,
        kernel_sizes: common.kernel_sizes,
        strides: common.strides,
        n_conv_per_stage: config.required(blocks)?,
        n_conv_per_stage_decoder: config.required("n_conv_per_stage_decoder")?,
        conv_bias: config.or("conv_bias", false)?,
        norm_eps: common.norm_eps,
        norm_affine: common.norm_affine,
        negative_slope: common.negative_slope,
        deep_supervision: config.or("deep_supervision", false)?,
    })
}
