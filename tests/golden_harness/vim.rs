//! Vim's mixer, classifier, backbone and position interpolation from the configurations of the cases.

use serde_json::Value;
use vision_mamba_models::ssm::MambaConfig;
use vision_mamba_models::vision::vim::mixer::{Bidirectional, VimMixer, VimMixerConfig};
use vision_mamba_models::vision::vim::position::interpolate_checkpoint;
use vision_mamba_models::vision::vim::{ClassToken, LastLayer, Pool, VimNorm};
use vision_mamba_models::vision::{Vim, VimBackbone, VimBackboneConfig, VimConfig};
use vision_mamba_models::{Backbone, Network, ParamStore};

use crate::case::{Case, Fallible};
use crate::compare::Report;
use crate::config::Config;
use crate::modules::{dt_rank, make, numbered, single, Forward, Named, DT_OPTIONS};

pub fn build(case: &Case, config: &Config) -> Fallible<Option<(Forward, ParamStore)>> {
    Ok(Some(match case.model.as_str() {
        "Mamba (Vim fork)" => {
            let sizes = mixer(config)?;
            let (net, params) = make(|scope| VimMixer::new(scope, sizes))?;
            (Box::new(move |x, _| Ok(single(net.forward(x)?))), params)
        }
        "VisionMamba (Vim)" => {
            let sizes = vim(config)?;
            let (net, params) = make(|scope| Vim::new(scope, &sizes))?;
            (
                Box::new(move |x, train| {
                    let mut outputs = numbered(net.forward(x, train)?, false);
                    outputs.insert("features".to_string(), net.features(x, train)?);
                    Ok(outputs)
                }),
                params,
            )
        }
        "VisionMambaSeg (Vim segmentation backbone)" => {
            let (sizes, features) = backbone(config)?;
            let (net, params) = make(|scope| VimBackbone::new(scope, &sizes, &features))?;
            (
                Box::new(move |x, train| Ok(numbered(net.features(x, train)?, true))),
                params,
            )
        }
        _ => return Ok(None),
    }))
}

fn directions(config: &Config, default: &str) -> Fallible<Bidirectional> {
    if config.or("if_bimamba", false)? {
        config.without_effect(&["bimamba_type"]);
        return Ok(Bidirectional::V1);
    }
    let name = config.or("bimamba_type", default.to_string())?;
    Ok(serde_json::from_value(Value::from(name))?)
}

fn mixer(config: &Config) -> Fallible<VimMixerConfig> {
    config.without_effect(DT_OPTIONS);
    config.without_effect(&["use_fast_path", "layer_idx"]);
    let published = MambaConfig::new(config.required("d_model")?);
    Ok(VimMixerConfig {
        mamba: MambaConfig {
            d_state: config.or("d_state", published.d_state)?,
            d_conv: config.or("d_conv", published.d_conv)?,
            expand: config.or("expand", published.expand)?,
            dt_rank: dt_rank(config, "dt_rank")?,
            conv_bias: config.or("conv_bias", published.conv_bias)?,
            bias: config.or("bias", published.bias)?,
            ..published
        },
        directions: directions(config, "none")?,
        divide: config.or("if_divide_out", false)?,
        layer_scale: config.optional("init_layer_scale")?,
        layers: 1,
    })
}

/// The defaults are those of the reference's constructor.
pub fn vim(config: &Config) -> Fallible<VimConfig> {
    // fused or not, and a residual stream in float32, are the same numbers in float32
    config.without_effect(&["fused_add_norm", "residual_in_fp32", "registered_name"]);
    config.without_effect(&["ft_seq_len", "ssm_cfg", "initializer_cfg", "norm_epsilon"]);
    let class_token = match (
        config.or("if_cls_token", true)?,
        config.or("use_double_cls_token", false)?,
        config.or("use_middle_cls_token", true)?,
    ) {
        (false, _, _) => ClassToken::None,
        (true, true, _) => ClassToken::Double,
        (true, false, true) => ClassToken::Middle,
        (true, false, false) => ClassToken::Head,
    };
    let pool = match config.or("final_pool_type", "none".to_string())?.as_str() {
        "none" => Pool::Last,
        "mean" | "all" => Pool::Mean,
        "max" => Pool::Max,
        other => return Err(format!("config `final_pool_type` = {other}").into()),
    };
    let pretrained = config.or("pt_hw_seq_len", 14)?;
    Ok(VimConfig {
        input_channels: config.or("channels", 3)?,
        num_classes: config.or("num_classes", 1000)?,
        img_size: config.or("img_size", 224)?,
        patch_size: config.or("patch_size", 16)?,
        stride: config.or("stride", 16)?,
        depth: config.or("depth", 24)?,
        embed_dim: config.or("embed_dim", 192)?,
        d_state: config.or("d_state", 16)?,
        bidirectional: directions(config, "v2")?,
        divide: config.or("if_divide_out", true)?,
        layer_scale: config.optional("init_layer_scale")?,
        norm: match config.or("rms_norm", true)? {
            true => VimNorm::Rms,
            false => VimNorm::Layer,
        },
        class_token,
        pool,
        pos_embed: config.or("if_abs_pos_embed", true)?,
        rope: config.or("if_rope", false)?.then_some(pretrained),
        rope_residual: config.or("if_rope_residual", false)?,
        paired: config.or("if_bidirectional", false)?,
        drop_rate: config.or("drop_rate", 0.0)?,
        drop_path_rate: config.or("drop_path_rate", 0.1)?,
    })
}

/// The reference hands its arguments on in the wrong order; `effective` says what they became.
pub fn backbone(config: &Config) -> Fallible<(VimConfig, VimBackboneConfig)> {
    config.without_effect(&["in_chans", "num_classes", "pretrained", "use_checkpoint"]);
    let effective: std::collections::BTreeMap<String, i64> = config.required("effective")?;
    let of = |key: &str| {
        (effective.get(key).copied()).ok_or_else(|| format!("config `effective` has no {key}"))
    };
    let sizes = VimConfig {
        input_channels: of("in_channels")?,
        d_state: of("d_state")?,
        num_classes: 1,
        ..vim(config)?
    };
    let last_layer = match config
        .or("last_layer_process", "none".to_string())?
        .as_str()
    {
        "none" => LastLayer::None,
        "add" => LastLayer::Add,
        "add & norm" => LastLayer::AddNorm,
        other => return Err(format!("config `last_layer_process` = {other}").into()),
    };
    let features = VimBackboneConfig {
        out_indices: config.or("out_indices", vec![3, 5, 7, 11])?,
        fpn: config.or("if_fpn", true)?,
        residual_features: config.or("use_residual_as_feature", false)?,
        last_layer,
    };
    Ok((sizes, features))
}

/// Every `in/NAME_pos_embed` with its `out/`: grid and class tokens follow from the sizes.
pub fn interpolate(case: &Case, report: &mut Report) -> Fallible<()> {
    case.check_sections()?;
    let mut outputs = Named::new();
    for (name, rows) in case.section("in") {
        let wanted = (case.section("out").get(name)).ok_or_else(|| format!("no out/{name}"))?;
        let sides = |rows: i64, extra: i64| {
            let side = ((rows - extra) as f64).sqrt().round() as i64;
            (side * side == rows - extra).then_some(side)
        };
        let (from, to) = (rows.size()[1], wanted.size()[1]);
        let (extra, side) = (0..3)
            .find_map(|extra| sides(from, extra).and(sides(to, extra)).map(|s| (extra, s)))
            .ok_or_else(|| format!("{from} to {to} rows are no square grids"))?;
        outputs.insert(name.clone(), interpolate_checkpoint(rows, extra, side)?);
    }
    let spread = &case.spreads.out;
    report.compare_all(
        "out",
        &outputs,
        case.section("out"),
        spread,
        spread.tolerance(),
    );
    Ok(())
}
