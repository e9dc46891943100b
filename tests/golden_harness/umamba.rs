//! U-Mamba, Bot and Enc, 2-D and 3-D.

use serde_json::{Map, Value};
use vision_mamba_models::unet::token_mixer::Tokens;
use vision_mamba_models::unet::umamba::{Mixer, MixerStages};
use vision_mamba_models::unet::{PerStage, UMamba, UMambaConfig};
use vision_mamba_models::{Network, ParamStore};

use crate::case::{Case, Fallible};
use crate::config::Config;
use crate::modules::{make, numbered, Forward};

/// PyTorch's default for `eps` of a norm.
const NORM_EPS: f64 = 1e-5;

/// None: not one of these.
pub fn build(case: &Case, config: &Config) -> Fallible<Option<(Forward, ParamStore)>> {
    let (kind, dims) = match case.model.as_str() {
        "UMambaBot_2d" => ("Bot", 2),
        "UMambaBot_3d" => ("Bot", 3),
        "UMambaEnc_2d" => ("Enc", 2),
        "UMambaEnc_3d" => ("Enc", 3),
        _ => return Ok(None),
    };
    let sizes = umamba(config, kind, dims)?;
    let many = sizes.deep_supervision;
    let (net, params) = make(|scope| UMamba::new(scope, &sizes))?;
    let forward: Forward = Box::new(move |x, train| Ok(numbered(net.forward(x, train)?, many)));
    Ok(Some((forward, params)))
}

/// One number for all axes, or one each; one row for all stages, or one each.
fn rows(config: &Config, key: &str, stages: usize, dims: usize) -> Fallible<Vec<Vec<i64>>> {
    let row = |value: &Value| match value {
        Value::Array(row) => row.iter().filter_map(Value::as_i64).collect(),
        all => vec![all.as_i64().unwrap_or_default(); dims],
    };
    Ok(match config.required::<Value>(key)? {
        Value::Array(each) => each.iter().map(row).collect(),
        all => vec![row(&all); stages],
    })
}

/// What the reference's convolutional networks have in common.
pub struct Common {
    pub features_per_stage: Vec<i64>,
    pub kernel_sizes: Vec<Vec<i64>>,
    pub strides: Vec<Vec<i64>>,
    pub norm_eps: f64,
    pub norm_affine: bool,
    pub negative_slope: f64,
}

/// An object's keys; none, no keys.
fn object(config: &Config, key: &str) -> Fallible<Map<String, Value>> {
    Ok(config.optional(key)?.unwrap_or_default())
}

/// Reads the common keys; the defaults are those of the reference's constructors.
pub fn common(config: &Config, dims: usize) -> Fallible<Common> {
    let n: usize = config.required("n_stages")?;
    let norm = object(config, "norm_op_kwargs")?;
    let norm = Config::new(&norm);
    let (norm_eps, norm_affine) = (norm.or("eps", NORM_EPS)?, norm.or("affine", false)?);
    norm.without_effect(&["track_running_stats", "momentum"]);
    norm.finish()?;
    let nonlin = object(config, "nonlin_kwargs")?;
    let nonlin = Config::new(&nonlin);
    nonlin.without_effect(&["inplace"]);
    let negative_slope = nonlin.or("negative_slope", 1e-2)?;
    nonlin.finish()?;
    let features_per_stage = match config.required::<PerStage>("features_per_stage")? {
        PerStage::Each(each) => each,
        PerStage::Same(all) => vec![all; n],
    };
    let strides = rows(config, "strides", n, dims)?;
    if strides.len() != n {
        let found = strides.len();
        return Err(format!("config `n_stages` = {n}, but there are {found} strides").into());
    }
    Ok(Common {
        features_per_stage,
        kernel_sizes: rows(config, "kernel_sizes", n, dims)?,
        strides,
        norm_eps,
        norm_affine,
        negative_slope,
    })
}

/// A U-Mamba as the reference's constructor describes it.
pub fn umamba(config: &Config, kind: &str, dims: usize) -> Fallible<UMambaConfig> {
    config.expect("dim", dims as i64)?;
    if let Some(stated) = config
        .optional::<String>("kind")?
        .filter(|stated| stated != kind)
    {
        return Err(format!("config `kind` = `{stated}`, expected `{kind}`").into());
    }
    // the reference takes them and passes them nowhere
    config.without_effect(&["dropout_op", "dropout_op_kwargs", "stem_channels"]);
    let common = common(config, dims)?;
    let (mixer_stages, training_patch) = match kind {
        "Enc" => {
            let stages = match dims {
                2 => MixerStages::EveryOther,
                _ => MixerStages::Every,
            };
            (stages, config.required("input_size")?)
        }
        _ => (MixerStages::Bottleneck, vec![]),
    };
    let sizes = UMambaConfig {
        input_channels: config.required("input_channels")?,
        num_classes: config.required("num_classes")?,
        training_patch,
        spacing: None,
        max_stages: None,
        base_features: 0,
        max_features: 0,
        features_per_stage: common.features_per_stage,
        kernel_sizes: common.kernel_sizes,
        strides: common.strides,
        n_conv_per_stage: config.required::<PerStage>("n_conv_per_stage")?,
        n_conv_per_stage_decoder: config.required::<PerStage>("n_conv_per_stage_decoder")?,
        conv_bias: config.or("conv_bias", false)?,
        norm_eps: common.norm_eps,
        norm_affine: common.norm_affine,
        negative_slope: common.negative_slope,
        deep_supervision: config.or("deep_supervision", false)?,
        full_resolution_skip: dims == 3,
        mixer: Mixer::Mamba,
        mixer_stages,
        d_state: 16,
        d_conv: 4,
        expand: 2.0,
    };
    // per stage: null without a layer, otherwise whether its tokens are channels
    if let Some(stated) = config.optional::<Vec<Option<bool>>>("channel_token")? {
        let ours: Vec<Option<bool>> = sizes
            .resolve()?
            .mixers
            .iter()
            .map(|mixer| mixer.as_ref().map(|t| matches!(t, Tokens::Channels(_))))
            .collect();
        if ours != stated {
            return Err(
                format!("config `channel_token` = {stated:?}, but ours is {ours:?}").into(),
            );
        }
    }
    Ok(sizes)
}
