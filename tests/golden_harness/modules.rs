//! Cases of layers and networks: built from the configuration, filled with the stored weights, run and differentiated.

use std::collections::BTreeMap;

use serde_json::Value;
use tch::{no_grad, Device, Tensor};
use vision_mamba_models::ssm::{Mamba, MambaConfig};
use vision_mamba_models::unet::mamba_unet::Vssm;
use vision_mamba_models::unet::{MambaUnet, MambaUnetConfig};
use vision_mamba_models::vision::patch::{OddSide, PatchEmbed, PatchExpand, PatchMerging};
use vision_mamba_models::vision::{Ss2d, Ss2dConfig, VssBlock, VssBlockConfig};
use vision_mamba_models::{EntryKind, ModelError, Network, ParamStore, Scope};

use crate::case::{Case, Fallible};
use crate::compare::Report;
use crate::config::Config;

pub type Named = BTreeMap<String, Tensor>;
/// From the input `x` to the outputs by name.
pub type Forward = Box<dyn Fn(&Tensor, bool) -> Fallible<Named>>;

/// `eps` of the LayerNorm of a VSSBlock on its own.
const BLOCK_EPS: f64 = 1e-6;

/// Builds, loads, runs, compares.
pub fn run(case: &Case, report: &mut Report) -> Fallible<()> {
    let config = Config::new(&case.config);
    let (forward, params) = build(case, &config)?;
    case.check_sections()?;
    check_size(&case.model, &config, case.input("x")?)?;
    config.finish()?;
    load(&params, case.section("param"), report);
    if let Some(name) = case.section("in").keys().find(|name| *name != "x") {
        return Err(format!("input `{name}` is not known to {}", case.model).into());
    }

    let x = case.input("x")?.copy().set_requires_grad(true);
    let outputs = forward(&x, case.train)?;
    let mut loss: Option<Tensor> = None;
    for (name, cot) in case.section("cot") {
        let y = outputs
            .get(name)
            .ok_or_else(|| format!("output `{name}` does not exist"))?;
        let term = (y * cot).sum(cot.kind());
        loss = Some(match loss {
            Some(sum) => sum + term,
            None => term,
        });
    }
    loss.ok_or("no output has a cotangent")?.backward();

    let spreads = &case.spreads;
    report.compare_all(
        "out",
        &outputs,
        case.section("out"),
        &spreads.out,
        spreads.out.tolerance(),
    );
    if let Some(name) = outputs
        .keys()
        .find(|name| !case.section("out").contains_key(*name))
    {
        report.fault(format!("out/{name} is not in the file"));
    }
    let gradients: Named = params
        .trainable()
        .into_iter()
        .map(|(name, t)| (name, t.grad()))
        .filter(|(_, grad)| grad.defined())
        .collect();
    report.compare_all(
        "grad",
        &gradients,
        case.section("grad"),
        &spreads.grad,
        spreads.grad.tolerance(),
    );
    for (name, _) in params.trainable() {
        let stored = case.section("grad").contains_key(&name);
        let unused = case.params_without_grad.contains(&name);
        if unused && gradients.contains_key(&name) {
            report.fault(format!(
                "grad/{name} exists, but the parameter should be unused"
            ));
        }
        if !stored && !unused && !case.grad_subset {
            report.fault(format!("grad/{name} is not in the file"));
        }
    }
    let inputs = Named::from([("x".to_string(), x.grad())]);
    report.compare_all(
        "grad_in",
        &inputs,
        case.section("grad_in"),
        &spreads.grad_in,
        spreads.grad_in.tolerance(),
    );
    compare_buffers(case, &params, report);
    Ok(())
}

/// After the forward pass: running statistics moved in training as stored, and not at all otherwise.
fn compare_buffers(case: &Case, params: &ParamStore, report: &mut Report) {
    let buffers: Named = params
        .entries()
        .filter(|(_, _, kind)| **kind == EntryKind::Buffer)
        .map(|(name, t, _)| (name.to_string(), t.shallow_clone()))
        .collect();
    let spread = &case.spreads.out;
    let after = case.section("after");
    report.compare_all("after", &buffers, after, spread, spread.tolerance());
    for (name, value) in buffers
        .iter()
        .filter(|(name, _)| !after.contains_key(*name))
    {
        let unmoved = case.section("param").get(name);
        if case.train || unmoved.is_some_and(|before| !before.equal(value)) {
            report.fault(format!("{name} after the run is not in the file"));
        }
    }
}

/// Every stored tensor must have its place and every place its tensor, second names included.
pub fn load(params: &ParamStore, stored: &Named, report: &mut Report) {
    for (name, tensor, kind) in params.entries() {
        match stored.get(name) {
            None => report.fault(format!("param/{name} is not in the file")),
            Some(value) if value.size() != tensor.size() => {
                report.fault(format!(
                    "param/{name} has shape {:?}, the file {:?}",
                    tensor.size(),
                    value.size()
                ));
            }
            Some(value) => match kind {
                EntryKind::Alias(of) if stored.get(of).is_some_and(|first| !first.equal(value)) => {
                    report.fault(format!("param/{name} should equal {of}"));
                }
                EntryKind::Alias(_) => {}
                _ => no_grad(|| tensor.shallow_clone().copy_(value)),
            },
        }
    }
    for name in stored.keys().filter(|name| params.get(name).is_none()) {
        report.fault(format!("param/{name} has no place in the network"));
    }
}

fn case_has_channels_last(model: &str, config: &Config) -> Fallible<bool> {
    let layer = ["SS2D (VMamba", "VSSBlock (VMamba", "PatchMerging2D (VMamba"]
        .iter()
        .any(|start| model.starts_with(start));
    Ok(layer && !config.or("channel_first", false)?)
}

/// The size of the input is part of the configuration.
fn check_size(model: &str, config: &Config, x: &Tensor) -> Fallible<()> {
    let size = x.size();
    config.expect("B", size[0])?;
    if config.has("L") && !model.starts_with("S4") {
        config.expect("L", size[1])?;
    }
    // VMamba's layers take channels last unless told otherwise
    let last = case_has_channels_last(model, config)?;
    for (key, from_end) in [("H", 2), ("W", 1)] {
        config.expect(key, size[size.len() - from_end - usize::from(last)])?;
    }
    for (key, found) in [("size", &size[2..]), ("input", &size[..])] {
        if let Some(stated) = config.optional::<Vec<i64>>(key)? {
            if stated != found {
                return Err(
                    format!("config `{key}` = {stated:?}, but the input has {found:?}").into(),
                );
            }
        }
    }
    Ok(())
}

pub fn single(y: Tensor) -> Named {
    Named::from([("y".to_string(), y)])
}

pub fn make<T>(new: impl FnOnce(&Scope) -> Result<T, ModelError>) -> Fallible<(T, ParamStore)> {
    Ok(Scope::build(Device::Cpu, new)?)
}

fn build(case: &Case, config: &Config) -> Fallible<(Forward, ParamStore)> {
    match case.model.as_str() {
        "Mamba (state-spaces mamba_simple)" => {
            let (net, params) = make(|scope| Mamba::new(scope, mamba(config).map_err(as_config)?))?;
            let steps = case
                .section("out")
                .keys()
                .any(|name| name.starts_with("step_"));
            Ok((Box::new(move |x, _| mamba_outputs(&net, x, steps)), params))
        }
        "PatchEmbed2D (Mamba-UNet)" => {
            let (patch, chans, dim) = (
                config.or("patch_size", 4)?,
                config.or("in_chans", 3)?,
                config.or("embed_dim", 96)?,
            );
            let norm = case
                .section("param")
                .keys()
                .any(|name| name.starts_with("norm."));
            config.without_effect(&["norm_layer"]);
            let (net, params) = make(|scope| PatchEmbed::new(scope, patch, chans, dim, norm))?;
            Ok((Box::new(move |x, _| Ok(single(net.forward(x)))), params))
        }
        "PatchMerging2D (Mamba-UNet)" => {
            let dim = config.required("dim")?;
            let (net, params) =
                make(|scope| PatchMerging::new(scope, dim, 2 * dim, OddSide::Crop))?;
            Ok((Box::new(move |x, _| Ok(single(net.forward(x)))), params))
        }
        "PatchExpand (Mamba-UNet)" => {
            let (dim, scale) = (config.required("dim")?, config.or("dim_scale", 2)?);
            let (net, params) = make(|scope| PatchExpand::new(scope, dim, scale))?;
            Ok((Box::new(move |x, _| Ok(single(net.forward(x)))), params))
        }
        "FinalPatchExpand_X4 (Mamba-UNet)" => {
            let (dim, scale) = (config.required("dim")?, config.or("dim_scale", 4)?);
            let (net, params) = make(|scope| PatchExpand::last(scope, dim, scale))?;
            Ok((Box::new(move |x, _| Ok(single(net.forward(x)))), params))
        }
        "SS2D (Mamba-UNet)" => {
            let sizes = ss2d(config, config.required("d_model")?, "dropout")?;
            let (net, params) = make(|scope| Ss2d::new(scope, sizes))?;
            Ok((
                Box::new(move |x, train| Ok(single(net.forward(x, train)?))),
                params,
            ))
        }
        "VSSBlock (Mamba-UNet)" => {
            let sizes = ss2d(config, config.required("hidden_dim")?, "attn_drop_rate")?;
            let drop_path = config.or("drop_path", 0.0)?;
            let (net, params) = make(|scope| {
                VssBlock::new(
                    scope,
                    VssBlockConfig::mamba_unet(sizes, BLOCK_EPS, drop_path),
                )
            })?;
            Ok((
                Box::new(move |x, train| Ok(single(net.forward(x, train)?))),
                params,
            ))
        }
        "VSSM (Mamba-UNet)" => {
            let sizes = mamba_unet(config)?;
            let (net, params) = make(|scope| Vssm::new(scope, &sizes))?;
            Ok((
                Box::new(move |x, train| Ok(single(net.forward(x, train)?))),
                params,
            ))
        }
        "MambaUnet wrapper" => {
            let sizes = mamba_unet(config)?;
            config.without_effect(&["embed_dim_argument", "img_size", "zero_head", "vis"]);
            let (net, params) = make(|scope| MambaUnet::new(scope, &sizes))?;
            Ok((
                Box::new(move |x, train| Ok(numbered(net.forward(x, train)?, false))),
                params,
            ))
        }
        other => {
            if let Some(built) = crate::uvmnet::build(case, config)? {
                return Ok(built);
            }
            if let Some(built) = crate::umamba::build(case, config)? {
                return Ok(built);
            }
            if let Some(built) = crate::s4::build(case, config)? {
                return Ok(built);
            }
            if let Some(built) = crate::vim::build(case, config)? {
                return Ok(built);
            }
            if let Some(built) = crate::vmamba::build(case, config)? {
                return Ok(built);
            }
            if let Some(built) = crate::nnunet::build(case, config)? {
                return Ok(built);
            }
            Err(format!("unknown model `{other}`").into())
        }
    }
}

fn as_config(e: Box<dyn std::error::Error>) -> ModelError {
    ModelError::config("config", e.to_string())
}

/// One output is `y`, a list is `y0`, `y1`, ...
pub fn numbered(outputs: Vec<Tensor>, list: bool) -> Named {
    let name = |i: usize| {
        if list {
            format!("y{i}")
        } else {
            "y".to_string()
        }
    };
    outputs
        .into_iter()
        .enumerate()
        .map(|(i, y)| (name(i), y))
        .collect()
}

/// The whole sequence, and the same token by token.
fn mamba_outputs(net: &Mamba, x: &Tensor, steps: bool) -> Fallible<Named> {
    let mut outputs = single(net.forward(x)?);
    if steps {
        no_grad(|| {
            let mut state = net.start(x.size()[0], x.device());
            let tokens: Vec<Tensor> = x
                .unbind(1)
                .iter()
                .map(|token| net.step(token, &mut state))
                .collect();
            outputs.insert("step_y".into(), Tensor::stack(&tokens, 1));
            outputs.insert("step_conv_state".into(), state.conv);
            outputs.insert("step_ssm_state".into(), state.ssm);
        });
    }
    Ok(outputs)
}

/// `"auto"` or nothing: by the rule.
pub fn dt_rank(config: &Config, key: &str) -> Fallible<Option<i64>> {
    match config.optional::<Value>(key)? {
        None => Ok(None),
        Some(Value::String(auto)) if auto == "auto" => Ok(None),
        Some(rank) => Ok(Some(
            rank.as_i64()
                .ok_or_else(|| format!("config `{key}` = {rank}"))?,
        )),
    }
}

/// Options of the initialisation; the weights are stored.
pub const DT_OPTIONS: &[&str] = &["dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"];

fn mamba(config: &Config) -> Fallible<MambaConfig> {
    config.without_effect(DT_OPTIONS);
    config.without_effect(&["use_fast_path", "layer_idx"]);
    let published = MambaConfig::new(config.required("d_model")?);
    Ok(MambaConfig {
        d_state: config.or("d_state", published.d_state)?,
        d_conv: config.or("d_conv", published.d_conv)?,
        expand: config.or("expand", published.expand)?,
        dt_rank: dt_rank(config, "dt_rank")?,
        conv_bias: config.or("conv_bias", published.conv_bias)?,
        bias: config.or("bias", published.bias)?,
        ..published
    })
}

fn ss2d(config: &Config, d_model: i64, dropout: &str) -> Fallible<Ss2dConfig> {
    config.without_effect(DT_OPTIONS);
    let published = Ss2dConfig::new(d_model);
    Ok(Ss2dConfig {
        d_state: config.or("d_state", published.d_state)?,
        d_conv: config.or("d_conv", published.d_conv)?,
        expand: config.or("expand", published.expand)?,
        dt_rank: dt_rank(config, "dt_rank")?,
        conv_bias: config.or("conv_bias", published.conv_bias)?,
        bias: config.or("bias", published.bias)?,
        dropout: config.or(dropout, published.dropout)?,
        ..published
    })
}

/// The defaults are those of the reference's constructor.
pub fn mamba_unet(config: &Config) -> Fallible<MambaUnetConfig> {
    let depths: Vec<i64> = config.or("depths", vec![2, 2, 9, 2])?;
    let dims: Vec<i64> = match config.or("dims", Value::from(vec![96, 192, 384, 768]))? {
        Value::Array(dims) => dims.iter().filter_map(Value::as_i64).collect(),
        first => vec![first
            .as_i64()
            .ok_or_else(|| format!("config `dims` = {first}"))?],
    };
    let first = *dims.first().ok_or("config `dims` is empty")?;
    if dims.len() > 1 && dims.iter().enumerate().any(|(i, dim)| *dim != first << i) {
        return Err(format!(
            "config `dims` = {dims:?}, but every level has twice the features of the one before"
        )
        .into());
    }
    // absent, 16; null, by the rule
    let d_state = if config.has("d_state") {
        config.optional("d_state")?
    } else {
        Some(16)
    };
    if config.or("final_upsample", "expand_first".to_string())? != "expand_first" {
        return Err("config `final_upsample` has only `expand_first`".into());
    }
    config.without_effect(&["drop_rate", "use_checkpoint", "embed_dim", "mlp_ratio"]);
    Ok(MambaUnetConfig {
        input_channels: config.or("in_chans", 1)?,
        // the wrapper's doing; the network inside takes what it is given
        repeat_single_channel: config.or("in_chans", 1)? == 3,
        num_classes: config.or("num_classes", 4)?,
        patch_size: config.or("patch_size", 4)?,
        depths,
        embed_dim: first,
        d_state,
        drop_path_rate: config.or("drop_path_rate", 0.1)?,
        dropout: config.or("attn_drop_rate", 0.0)?,
        patch_norm: config.or("patch_norm", true)?,
    })
}
