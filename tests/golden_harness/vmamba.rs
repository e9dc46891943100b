//! VMamba's layers and networks from the configurations of the cases.

use serde_json::Value;
use tch::Tensor;
use vision_mamba_models::layers::Activation;
use vision_mamba_models::vision::norm::NormKind;
use vision_mamba_models::vision::patch::{OddSide, PatchMerging};
use vision_mamba_models::vision::scan::ScanPattern;
use vision_mamba_models::vision::ss2d::{Layout, SsmInit};
use vision_mamba_models::vision::vmamba::{DownsampleVersion, PatchEmbedVersion};
use vision_mamba_models::vision::vss::{MlpConfig, VssBlockConfig};
use vision_mamba_models::vision::{
    Ss2d, Ss2dConfig, Vmamba, VmambaBackbone, VmambaConfig, VssBlock,
};
use vision_mamba_models::{Backbone, Network, ParamStore};

use crate::case::{Case, Fallible};
use crate::compare::Report;
use crate::config::Config;
use crate::modules::{dt_rank, make, numbered, single, Forward, Named, DT_OPTIONS};

pub fn build(case: &Case, config: &Config) -> Fallible<Option<(Forward, ParamStore)>> {
    Ok(Some(match case.model.as_str() {
        "PatchMerging2D (VMamba, downsample v1)" => {
            let dim: i64 = config.required("dim")?;
            let out = match config.or("out_dim", -1)? {
                out if out < 0 => 2 * dim,
                out => out,
            };
            let first = config.or("channel_first", false)?;
            let (net, params) = make(|scope| PatchMerging::new(scope, dim, out, OddSide::Pad))?;
            let run = move |x: &Tensor| Ok(net.forward(x));
            (
                Box::new(move |x, _| Ok(single(last(x, first, &run)?))),
                params,
            )
        }
        "SS2D (VMamba classification/models)" => {
            let sizes = ss2d(config, "", config.required("d_model")?)?;
            let first = config.or("channel_first", false)?;
            let (net, params) = make(|scope| Ss2d::new(scope, sizes))?;
            (
                Box::new(move |x, train| {
                    Ok(single(last(x, first, &|x| Ok(net.forward(x, train)?))?))
                }),
                params,
            )
        }
        "VSSBlock (VMamba)" => {
            let (sizes, first) = (block(config)?, config.or("channel_first", false)?);
            let (net, params) = make(|scope| VssBlock::new(scope, sizes))?;
            (
                Box::new(move |x, train| {
                    Ok(single(last(x, first, &|x| Ok(net.forward(x, train)?))?))
                }),
                params,
            )
        }
        "VSSM (VMamba classification/models)" => {
            let sizes = vmamba(config)?;
            let (net, params) = make(|scope| Vmamba::new(scope, &sizes))?;
            (
                Box::new(move |x, train| Ok(numbered(net.forward(x, train)?, false))),
                params,
            )
        }
        "Backbone_VSSM (VMamba classification/models)" => {
            let sizes = vmamba(config)?;
            let indices: Vec<usize> = config.or("out_indices", vec![0, 1, 2, 3])?;
            let (net, params) = make(|scope| VmambaBackbone::new(scope, &sizes, &indices))?;
            (
                Box::new(move |x, train| Ok(numbered(net.features(x, train)?, true))),
                params,
            )
        }
        _ => return Ok(None),
    }))
}

/// Runs on channels last, whatever the case has.
fn last(
    x: &Tensor,
    channel_first: bool,
    run: &dyn Fn(&Tensor) -> Fallible<Tensor>,
) -> Fallible<Tensor> {
    match channel_first {
        true => Ok(run(&x.permute([0, 2, 3, 1]))?.permute([0, 3, 1, 2])),
        false => run(x),
    }
}

fn activation(config: &Config, key: &str, default: &str) -> Fallible<Activation> {
    let name = config.or(key, default.to_string())?.to_lowercase();
    Ok(serde_json::from_value(Value::from(name))?)
}

/// Options of SS2D, whose keys begin with `ssm_` where a block or network passes them on.
fn ss2d(config: &Config, prefix: &str, d_model: i64) -> Fallible<Ss2dConfig> {
    config.without_effect(DT_OPTIONS);
    let nested = !prefix.is_empty();
    let key = |own: &'static str, passed: &'static str| if nested { passed } else { own };
    let published = Ss2dConfig::new(d_model);
    let default = if nested { "v2" } else { "v05" };
    Ok(Ss2dConfig {
        d_state: config.or(key("d_state", "ssm_d_state"), 16)?,
        d_conv: config.or(key("d_conv", "ssm_conv"), 3)?,
        expand: config.or("ssm_ratio", 2.0)?,
        dt_rank: dt_rank(config, key("dt_rank", "ssm_dt_rank"))?,
        conv_bias: config.or(key("conv_bias", "ssm_conv_bias"), true)?,
        bias: config.or("bias", false)?,
        dropout: config.or(key("dropout", "ssm_drop_rate"), 0.0)?,
        act: activation(config, key("act_layer", "ssm_act_layer"), "silu")?,
        init: init(config, key("initialize", "ssm_init"))?,
        form: config.or("forward_type", default.to_string())?.parse()?,
        layout: Layout::Vmamba,
        ..published
    })
}

fn init(config: &Config, key: &str) -> Fallible<SsmInit> {
    Ok(serde_json::from_value(Value::from(
        config.or(key, "v0".to_string())?,
    ))?)
}

/// `ln2d` is the layer norm of channel-first networks.
fn norm(config: &Config) -> Fallible<NormKind> {
    match config
        .or("norm_layer", "ln".to_string())?
        .to_lowercase()
        .as_str()
    {
        "ln" | "ln2d" | "layernorm" | "layernorm2d" => Ok(NormKind::Layer),
        "bn" | "batchnorm2d" => Ok(NormKind::Batch),
        other => Err(format!("config `norm_layer` = {other}").into()),
    }
}

fn block(config: &Config) -> Fallible<VssBlockConfig> {
    let dim = config.required("hidden_dim")?;
    let with_ssm = config.or("ssm_ratio", 2.0)? > 0.0;
    let ratio = config.or("mlp_ratio", 4.0)?;
    Ok(VssBlockConfig {
        dim,
        ssm: match with_ssm {
            true => Some(ss2d(config, "ssm_", dim)?),
            false => None,
        },
        mlp: (ratio > 0.0).then_some(MlpConfig {
            ratio,
            act: activation(config, "mlp_act_layer", "gelu")?,
            gated: config.or("gmlp", false)?,
            dropout: config.or("mlp_drop_rate", 0.0)?,
        }),
        norm: norm(config)?,
        norm_eps: 1e-5,
        post_norm: config.or("post_norm", false)?,
        drop_path: config.or("drop_path", 0.0)?,
        names: ["norm", "op"],
    })
}

/// The defaults are those of the reference's constructor.
pub fn vmamba(config: &Config) -> Fallible<VmambaConfig> {
    config.without_effect(&["use_checkpoint", "yaml_name", "pretrained"]);
    let depths: Vec<i64> = config.or("depths", vec![2, 2, 9, 2])?;
    let dims = match config.or("dims", Value::from(vec![96, 192, 384, 768]))? {
        Value::Array(dims) => dims.iter().filter_map(Value::as_i64).collect(),
        first => {
            let first = first
                .as_i64()
                .ok_or_else(|| format!("config `dims` = {first}"))?;
            (0..depths.len()).map(|i| first << i).collect()
        }
    };
    let side = config.or("imgsize", 224)?;
    let pos_embed = config.or("posembed", false)?.then_some(side);
    let enumerated = |key: &str, default: &str| -> Fallible<Value> {
        Ok(Value::from(config.or(key, default.to_string())?))
    };
    let downsample: DownsampleVersion =
        serde_json::from_value(enumerated("downsample_version", "v2")?)?;
    let patch_embed: PatchEmbedVersion =
        serde_json::from_value(enumerated("patchembed_version", "v1")?)?;
    Ok(VmambaConfig {
        input_channels: config.or("in_chans", 3)?,
        num_classes: config.or("num_classes", 1000)?,
        patch_size: config.or("patch_size", 4)?,
        depths,
        dims,
        d_state: config.or("ssm_d_state", 16)?,
        ssm_ratio: config.or("ssm_ratio", 2.0)?,
        dt_rank: dt_rank(config, "ssm_dt_rank")?,
        ssm_act: activation(config, "ssm_act_layer", "silu")?,
        d_conv: config.or("ssm_conv", 3)?,
        conv_bias: config.or("ssm_conv_bias", true)?,
        ssm_init: init(config, "ssm_init")?,
        ssm_drop: config.or("ssm_drop_rate", 0.0)?,
        forward_type: config.or("forward_type", "v2".to_string())?,
        mlp_ratio: config.or("mlp_ratio", 4.0)?,
        mlp_act: activation(config, "mlp_act_layer", "gelu")?,
        gmlp: config.or("gmlp", false)?,
        mlp_drop: config.or("mlp_drop_rate", 0.0)?,
        drop_path_rate: config.or("drop_path_rate", 0.1)?,
        patch_norm: config.or("patch_norm", true)?,
        norm: norm(config)?,
        downsample,
        patch_embed,
        pos_embed,
    })
}

/// The orders of a map and the way back, in every layout that the reference's functions have.
pub fn cross_scan(case: &Case, report: &mut Report) -> Fallible<()> {
    case.check_sections()?;
    let config = Config::new(&case.config);
    let pattern = match config.or("scans", 0)? {
        0 => ScanPattern::Cross2d,
        1 => ScanPattern::Unidi,
        2 => ScanPattern::Bidi,
        3 => ScanPattern::Rot90,
        other => return Err(format!("config `scans` = {other}").into()),
    };
    let leaf = |name: &str| {
        Ok::<_, Box<dyn std::error::Error>>(case.input(name)?.copy().set_requires_grad(true))
    };
    let (x, y, xl, yl, x4) = (
        leaf("x")?,
        leaf("y")?,
        leaf("xl")?,
        leaf("yl")?,
        leaf("x4")?,
    );
    let size = x.size();
    let (b, c, h, w) = (size[0], size[1], size[2], size[3]);
    for (key, found) in [("B", b), ("C", c), ("H", h), ("W", w)] {
        config.expect(key, found)?;
    }
    config.finish()?;
    // (B, L, 4, C) <-> (B, 4, C, L)
    let first = |t: Tensor| t.permute([0, 2, 3, 1]);
    let tokens = |t: &Tensor| t.flatten(-2, -1).permute([0, 3, 1, 2]);
    let merged = |t: &Tensor| pattern.merge(t, (h, w)).flatten(1, 2);
    // one direction of each: the others' values are not looked at, or are zero
    let alone: Vec<Tensor> = (0..4)
        .map(|k| {
            pattern
                .scan(&x4.select(1, k).permute([0, 2, 3, 1]))
                .select(2, k)
        })
        .collect();
    let merged_alone: Vec<Tensor> = (0..4)
        .map(|k| {
            let mut only = vec![0.0; 4];
            only[k] = 1.0;
            let mask = Tensor::from_slice(&only)
                .to_kind(y.kind())
                .view([1, 1, 4, 1]);
            merged(&(tokens(&y) * mask)).transpose(1, 2)
        })
        .collect();
    let outputs = Named::from([
        (
            "scan".to_string(),
            first(pattern.scan(&x.permute([0, 2, 3, 1]))),
        ),
        ("merge".to_string(), merged(&tokens(&y)).transpose(1, 2)),
        ("scan_cl_cl".to_string(), pattern.scan(&xl)),
        ("merge_cl_cl".to_string(), merged(&yl.flatten(1, 2))),
        ("scan_cl_cf".to_string(), first(pattern.scan(&xl))),
        // for `unidi` the reference flattens other axes together: the same values in the same order
        (
            "scan1b1".to_string(),
            first(Tensor::stack(&alone, 2)).reshape(case.section("out")["scan1b1"].size()),
        ),
        ("merge1b1".to_string(), Tensor::stack(&merged_alone, 1)),
    ]);
    let mut loss = Tensor::from(0.0);
    for (name, cot) in case.section("cot") {
        let out = (outputs.get(name)).ok_or_else(|| format!("output `{name}` does not exist"))?;
        loss += (out * cot).sum(cot.kind());
    }
    loss.backward();
    let spreads = &case.spreads;
    let stored = case.section("out");
    report.compare_all(
        "out",
        &outputs,
        stored,
        &spreads.out,
        spreads.out.tolerance(),
    );
    let gradients: Named = [("x", x), ("y", y), ("xl", xl), ("yl", yl), ("x4", x4)]
        .into_iter()
        .map(|(name, leaf)| (name.to_string(), leaf.grad()))
        .filter(|(_, grad)| grad.defined())
        .collect();
    let stored = case.section("grad_in");
    report.compare_all(
        "grad_in",
        &gradients,
        stored,
        &spreads.grad_in,
        spreads.grad_in.tolerance(),
    );
    Ok(())
}
