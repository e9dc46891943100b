//! UVM-Net as it was published: block, double convolution, network.

use vision_mamba_models::unet::uvmb::{Attention, Positions, Tokens, Uvmb, UvmbConfig};
use vision_mamba_models::unet::uvmnet::{DoubleConv, Grid};
use vision_mamba_models::unet::{UvmNet, UvmNetConfig};
use vision_mamba_models::ParamStore;

use crate::case::{Case, Fallible};
use crate::config::Config;
use crate::modules::{make, numbered, single, Forward};

/// None: not one of these.
pub fn build(case: &Case, config: &Config) -> Fallible<Option<(Forward, ParamStore)>> {
    Ok(Some(match case.model.as_str() {
        "UVMB (UVM-Net)" => {
            let (w, h): (i64, i64) = (config.required("w")?, config.required("h")?);
            let sizes = UvmbConfig {
                channels: config.required("c")?,
                tokens: Tokens::Reinterpret,
                attention: Attention::Batch,
                positions: Positions::All(w * h),
            };
            let (net, params) = make(|scope| Uvmb::new(scope, sizes))?;
            (Box::new(move |x, _| Ok(single(net.forward(x)?))), params)
        }
        "DoubleConv (UVM-Net)" => {
            let sizes = uvmnet(config)?;
            let inputs = config.required("in_channels")?;
            let outputs = config.required("out_channels")?;
            let middle = config.or("mid_channels", outputs)?;
            let (net, params) =
                make(|scope| DoubleConv::new(scope, &sizes, inputs, outputs, middle))?;
            (
                Box::new(move |x, train| Ok(single(net.forward(x, train)?))),
                params,
            )
        }
        "UNet (UVM-Net)" => {
            let sizes = uvmnet(config)?;
            let (net, params) = make(|scope| UvmNet::new(scope, &sizes))?;
            (
                Box::new(move |x, train| {
                    use vision_mamba_models::Network;
                    Ok(numbered(net.forward(x, train)?, false))
                }),
                params,
            )
        }
        _ => return Ok(None),
    }))
}

/// The defaults are those of the reference, where only `n_channels` and `bilinear` can be chosen.
pub fn uvmnet(config: &Config) -> Fallible<UvmNetConfig> {
    Ok(UvmNetConfig {
        input_channels: config.or("n_channels", 3)?,
        output_channels: 3,
        base_channels: config.or("base_channels", 64)?,
        bilinear: config.or("bilinear", true)?,
        ub_size: config.or("ub_size", 64)?,
        grid: Grid::Square,
        tokens: Tokens::Reinterpret,
        attention: Attention::Batch,
        channel_grid: None,
    })
}
