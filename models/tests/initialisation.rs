//! Every parameter's first values against the reference's rule for it: range, spread and mean.
//!
//! The rules are stated here a second time, from the originals, by name and shape; a parameter without a rule fails.

#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, MutexGuard};

use tch::{Device, Kind, Tensor};
use vision_mamba_models::{build, preset, Built, EntryKind};

/// All draw from libtorch's one generator, so they take turns: what a seed gives is then the same in every run.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What a parameter must look like.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// This value everywhere.
    Constant(f64),
    /// Uniform within plus and minus this.
    Uniform(f64),
    /// Normal with this deviation.
    Normal(f64),
    /// log(1), log(2), ... along the last axis.
    LogArange,
    /// softplus of it lies log-uniformly in [0.001, 0.1].
    Step,
}

/// Product of all sizes but the first.
fn fan_in(shape: &[i64]) -> f64 {
    shape[1..].iter().product::<i64>() as f64
}

/// PyTorch's default for linear layers and convolutions, weight and bias: `1 / sqrt(fan_in)`.
fn torch_default(fan_in: f64) -> Rule {
    Rule::Uniform(1.0 / fan_in.sqrt())
}

/// U-Mamba: convolutions with two or three axes follow He's rule for a slope of 0.01 and have zero biases; all else,
/// the Mamba block's one-dimensional convolution included, keeps its own.
fn umamba_rule(name: &str, shape: &[i64]) -> Option<Rule> {
    if let Some((_, name)) = name.split_once(".mamba.") {
        let d_conv = 4.0;
        return Some(match name {
            "A_log" => Rule::LogArange,
            "D" => Rule::Constant(1.0),
            "in_proj.weight" | "x_proj.weight" | "out_proj.weight" | "conv1d.weight" => {
                torch_default(fan_in(shape))
            }
            "conv1d.bias" => torch_default(d_conv),
            "dt_proj.weight" => Rule::Uniform((shape[1] as f64).powf(-0.5)),
            "dt_proj.bias" => Rule::Step,
            _ => return None,
        });
    }
    let module = name.rsplit('.').nth(1)?;
    match (
        module.starts_with("norm"),
        name.ends_with("weight"),
        shape.len(),
    ) {
        (true, true, 1) => Some(Rule::Constant(1.0)),
        (_, false, 1) => Some(Rule::Constant(0.0)),
        (false, true, 4 | 5) => Some(Rule::Normal((2.0 / (1.0 + 1e-4) / fan_in(shape)).sqrt())),
        _ => None,
    }
}

/// nnU-Net: He's rule for transposed convolutions too; in a residual encoder the last norm of each block starts at zero.
fn nnunet_rule(name: &str, shape: &[i64]) -> Option<Rule> {
    let residual_end = name.contains(".blocks.") && name.contains(".conv2.norm.");
    match residual_end {
        true => Some(Rule::Constant(0.0)),
        false => umamba_rule(name, shape),
    }
}

/// Mamba-UNet: linear layers are drawn anew with deviation 0.02 and zero biases; convolutions keep PyTorch's rule, and
/// so do the stacked projections of SS2D, which are no linear layers any more.
fn mamba_unet_rule(name: &str, shape: &[i64]) -> Option<Rule> {
    let last = name.rsplit('.').next()?;
    let module = name.rsplit('.').nth(1)?;
    Some(match (module, last) {
        (_, "A_logs") => Rule::LogArange,
        (_, "Ds") => Rule::Constant(1.0),
        (_, "x_proj_weight") => torch_default(shape[2] as f64),
        (_, "dt_projs_weight") => Rule::Uniform((shape[2] as f64).powf(-0.5)),
        (_, "dt_projs_bias") => Rule::Step,
        ("conv2d" | "proj" | "output", "weight") => torch_default(fan_in(shape)),
        ("conv2d", "bias") => torch_default(9.0),
        ("proj", "bias") => torch_default(3.0 * 16.0),
        ("norm" | "ln_1" | "out_norm" | "norm_up", "weight") => Rule::Constant(1.0),
        (_, "bias") => Rule::Constant(0.0),
        (_, "weight") if shape.len() == 2 => Rule::Normal(0.02),
        _ => return None,
    })
}

/// UVM-Net: PyTorch's and Mamba's own rules throughout.
fn uvmnet_rule(name: &str, shape: &[i64]) -> Option<Rule> {
    if let Some((_, name)) = name.split_once(".model") {
        return umamba_rule(&format!("mamba_layer.mamba.{}", &name[2..]), shape);
    }
    let (module, last) = name.rsplit_once('.')?;
    let norm = module.ends_with("ln") || module.ends_with("conv.1") || module.ends_with("conv.4");
    Some(match (norm, last, shape.len()) {
        (true, "weight", 1) => Rule::Constant(1.0),
        (true, "bias", 1) => Rule::Constant(0.0),
        (false, "weight", 4) => torch_default(fan_in(shape)),
        (false, "bias", 1) if module.ends_with("convb.2") => torch_default(16.0 * 9.0),
        (false, "bias", 1) if module.ends_with(".up") => torch_default(shape[0] as f64 * 4.0),
        (false, "bias", 1) if module == "outc.conv" => torch_default(8.0),
        (false, "bias", 1) if module.ends_with("smooth") => torch_default(shape[0] as f64 * 9.0),
        (false, "bias", 1) if module.ends_with("convb.0") => {
            // inputs of the block, with eight features at the finest level
            let inputs = match (&name[..2], name.as_bytes().get(2), name.as_bytes().get(4)) {
                ("in", _, _) => 3,
                ("up", Some(step), _) => 16 << (b'4' - step),
                ("do", _, Some(level)) => 8 << (level - b'1'),
                _ => return None,
            };
            torch_default(f64::from(inputs) * 9.0)
        }
        _ => return None,
    })
}

/// VMamba: Mamba-UNet's rules, which come from it, for networks of 3 channels, and convolutions in other places.
fn vmamba_rule(name: &str, shape: &[i64]) -> Option<Rule> {
    let module = name.rsplit('.').nth(1)?;
    match (name.rsplit('.').next()?, shape.len()) {
        ("weight", 4) => Some(torch_default(fan_in(shape))),
        ("weight", 1) => Some(Rule::Constant(1.0)),
        ("bias", 1) if name == "patch_embed.0.bias" => Some(torch_default(3.0 * 9.0)),
        ("bias", 1) if name == "patch_embed.5.bias" => {
            Some(torch_default(shape[0] as f64 / 2.0 * 9.0))
        }
        // each stage has twice the channels of the one before
        ("bias", 1) if name.contains("downsample") && module == "1" => {
            Some(torch_default(shape[0] as f64 / 2.0 * 9.0))
        }
        _ => mamba_unet_rule(name, shape),
    }
}

/// Vim: Mamba's rules in two blocks, `out_proj` smaller by the square root of the depth; patches after LeCun.
fn vim_rule(name: &str, shape: &[i64]) -> Option<Rule> {
    let depth = 2.0f64;
    if let Some((_, name)) = name.split_once(".mixer.") {
        let plain = name
            .replace("_b.", ".")
            .replace("A_b_log", "A_log")
            .replace("D_b", "D");
        return match umamba_rule(&format!("x.mamba.{plain}"), shape)? {
            Rule::Uniform(bound) if name == "out_proj.weight" => {
                Some(Rule::Uniform(bound / depth.sqrt()))
            }
            rule => Some(rule),
        };
    }
    Some(match name {
        "patch_embed.proj.weight" => {
            Rule::Normal(1.0 / fan_in(shape).sqrt() / 0.879_625_661_034_239_8)
        }
        "head.weight" | "cls_token" | "pos_embed" => Rule::Normal(0.02),
        "head.bias" | "patch_embed.proj.bias" => Rule::Constant(0.0),
        name if name.ends_with("norm.weight") || name == "norm_f.weight" => Rule::Constant(1.0),
        _ => return None,
    })
}

fn number(t: Tensor) -> f64 {
    t.double_value(&[])
}

/// Five standard errors, which the few hundred checks would pass by chance alone at all but one seed in ten thousand.
const ERRORS: f64 = 5.0;

fn check(name: &str, tensor: &Tensor, rule: Rule) {
    let x = tensor.detach().to_kind(Kind::Double).flatten(0, -1);
    let n = x.numel() as f64;
    let (low, high) = (number(x.min()), number(x.max()));
    let spread = |x: &Tensor, std: f64, kurtosis: f64| {
        let (mean, found) = (
            number(x.mean(Kind::Double)),
            number(x.square().mean(Kind::Double)).sqrt(),
        );
        assert!(mean.abs() < ERRORS * std / n.sqrt(), "{name}: mean {mean}");
        let slack = ERRORS * std * ((kurtosis - 1.0) / (4.0 * n)).sqrt();
        assert!(
            (found - std).abs() < slack,
            "{name}: deviation {found}, expected {std} up to {slack}"
        );
    };
    match rule {
        Rule::Constant(value) => assert!(
            low == value && high == value,
            "{name}: {low} to {high}, expected {value}"
        ),
        Rule::Uniform(bound) => {
            assert!(
                low >= -bound && high <= bound,
                "{name}: {low} to {high}, expected within {bound}"
            );
            spread(&x, bound / 3f64.sqrt(), 1.8);
        }
        Rule::Normal(std) => spread(&x, std, 3.0),
        Rule::LogArange => {
            let last = tensor.size()[1];
            let row = Tensor::arange_start(1, last + 1, (Kind::Double, Device::Cpu)).log();
            let error = number((tensor.to_kind(Kind::Double) - row).abs().max());
            assert!(error < 1e-6, "{name}: off by {error}");
        }
        Rule::Step => {
            let dt = x.softplus().log();
            let (floor, ceiling) = (0.001f64.ln(), 0.1f64.ln());
            assert!(
                number(dt.min()) > floor - 1e-4 && number(dt.max()) < ceiling + 1e-4,
                "{name}: steps out of range"
            );
            spread(
                &(dt - (floor + ceiling) / 2.0),
                (ceiling - floor) / 12f64.sqrt(),
                1.8,
            );
        }
    }
}

fn check_all(built: &Built, rule: fn(&str, &[i64]) -> Option<Rule>) {
    for (name, tensor, _) in built
        .params
        .entries()
        .filter(|(_, _, kind)| **kind == EntryKind::Parameter)
    {
        let rule = rule(name, &tensor.size()).unwrap_or_else(|| panic!("no rule for {name}"));
        check(name, tensor, rule);
    }
}

#[test]
fn umamba_starts_as_the_reference() {
    let _turn = turn();
    for (name, overrides) in [
        (
            "umamba_bot_small_2d",
            &[("n_conv_per_stage", "2"), ("n_conv_per_stage_decoder", "2")][..],
        ),
        (
            "umamba_bot_small_3d",
            &[("training_patch", "[16,16,16]")][..],
        ),
        // the last stage has 8 x 8 = 64 positions and as many features
        (
            "umamba_enc_small_2d",
            &[("training_patch", "[32,32]"), ("max_stages", "3")][..],
        ),
    ] {
        tch::manual_seed(11);
        let spec = preset(name).unwrap().with_overrides(overrides).unwrap();
        check_all(&build(&spec, Device::Cpu).unwrap(), umamba_rule);
    }
}

#[test]
fn nnunet_starts_as_the_reference() {
    let _turn = turn();
    for name in [
        "unet_plain_tiny_2d",
        "unet_plain_tiny_3d",
        "unet_resenc_tiny_2d",
        "unet_resenc_tiny_3d",
    ] {
        tch::manual_seed(14);
        let wider = &[("base_features", "16"), ("max_features", "32")];
        let spec = preset(name).unwrap().with_overrides(wider).unwrap();
        check_all(&build(&spec, Device::Cpu).unwrap(), nnunet_rule);
    }
}

#[test]
fn mamba_unet_starts_as_the_reference() {
    let _turn = turn();
    tch::manual_seed(12);
    check_all(
        &build(&preset("mamba_unet_small").unwrap(), Device::Cpu).unwrap(),
        mamba_unet_rule,
    );
}

#[test]
fn vmamba_starts_as_the_reference() {
    let _turn = turn();
    tch::manual_seed(15);
    let spec = preset("vmamba_nano").unwrap();
    let spec = spec.with_overrides(&[("dims", "[16,32,64,128]")]).unwrap();
    check_all(&build(&spec, Device::Cpu).unwrap(), vmamba_rule);
}

#[test]
fn vim_starts_as_the_reference() {
    let _turn = turn();
    tch::manual_seed(16);
    let spec = preset("vim_nano").unwrap();
    let spec = spec.with_overrides(&[("embed_dim", "64")]).unwrap();
    check_all(&build(&spec, Device::Cpu).unwrap(), vim_rule);
}

#[test]
fn uvmnet_starts_as_the_reference() {
    let _turn = turn();
    for bilinear in ["true", "false"] {
        tch::manual_seed(13);
        let overrides = &[("base_channels", "8"), ("bilinear", bilinear)];
        let spec = preset("uvmnet_tiny").unwrap();
        let spec = spec.with_overrides(overrides).unwrap();
        check_all(&build(&spec, Device::Cpu).unwrap(), uvmnet_rule);
    }
}

#[test]
fn the_same_seed_gives_the_same_network() {
    let _turn = turn();
    let spec = preset("umamba_bot_tiny_2d").unwrap();
    let make = |seed| {
        tch::manual_seed(seed);
        build(&spec, Device::Cpu).unwrap().params.state_dict()
    };
    let equal = |a: i64, b: i64| {
        make(a)
            .iter()
            .zip(make(b))
            .all(|((_, x), (_, y))| x.equal(&y))
    };
    assert!(equal(5, 5));
    assert!(!equal(5, 6));
}

#[test]
fn state_matrices_are_exempt_from_weight_decay() {
    let _turn = turn();
    let built = build(&preset("mamba_unet_tiny").unwrap(), Device::Cpu).unwrap();
    for (name, _) in built.params.trainable() {
        let exempt = name.ends_with("A_logs") || name.ends_with(".Ds");
        assert_eq!(built.params.takes_weight_decay(&name), !exempt, "{name}");
    }
}
