//! HiPPO, discretisation, the normal plus low-rank form, and the kernels and layers of S4 and S4D.

use std::collections::BTreeMap;

use serde_json::Value;
use tch::{no_grad, Kind, Tensor};
use vision_mamba_models::ssm::hippo::{nplr, Hippo};
use vision_mamba_models::ssm::lti::{convolve, discretise, kernel, recur, Discretisation};
use vision_mamba_models::ssm::s4::{
    Kernel, S4Block, S4BlockConfig, S4Discretisation, S4Init, S4Kernel, S4KernelConfig, S4dMinimal,
};
use vision_mamba_models::ParamStore;

use crate::case::{Case, Fallible};
use crate::compare::Report;
use crate::config::Config;
use crate::modules::{load, make, single, Forward, Named};

/// Both sides compute in float64; eigenvectors and matrix exponentials come from other libraries.
const DOUBLE: f64 = 1e-10;

/// Cases without parameters; `None` for others.
pub fn theory(case: &Case, report: &mut Report) -> Fallible<Option<()>> {
    let mut outputs = Named::new();
    match case.model.as_str() {
        "LTI discretisation" => {
            for (key, a) in case
                .section("in")
                .iter()
                .filter(|(key, _)| key.ends_with("_A"))
            {
                let system = key.trim_end_matches("_A");
                let (b, c) = (
                    case.input(&format!("{system}_B"))?,
                    case.input(&format!("{system}_C"))?,
                );
                let dt = case.input(&format!("{system}_dt"))?.double_value(&[0]);
                for (name, method) in [
                    ("bilinear", Discretisation::Bilinear),
                    ("zoh", Discretisation::ZeroOrderHold),
                    ("euler", Discretisation::Euler),
                    ("backward_diff", Discretisation::BackwardEuler),
                ] {
                    let (da, db) = discretise(a, b, dt, method)?;
                    let stored = (case.section("out").get(&format!("{system}_{name}_K")))
                        .ok_or_else(|| format!("no out/{system}_{name}_K"))?;
                    let taps = kernel(&da, &db, c, stored.size()[0])?;
                    // the recurrence and the convolution are the same system
                    let u = Tensor::randn(stored.size(), (Kind::Double, tch::Device::Cpu));
                    let difference = recur(&da, &db, c, &u)? - convolve(&u, &taps)?;
                    let scale = taps.abs().sum(Kind::Double).double_value(&[]);
                    if difference.abs().max().double_value(&[]) > 1e-12 * scale.max(1.0) {
                        report.fault(format!(
                            "{system}_{name}: recurrence and convolution differ"
                        ));
                    }
                    outputs.insert(format!("{system}_{name}_dA"), da);
                    outputs.insert(format!("{system}_{name}_dB"), db);
                    outputs.insert(format!("{system}_{name}_K"), taps);
                }
            }
        }
        "HiPPO transition matrices" => {
            for key in case.section("out").keys().filter(|key| key.ends_with("_A")) {
                let (name, n) = named(key.trim_end_matches("_A"))?;
                let (a, b) = Hippo::named(&name)?.transition(n);
                outputs.insert(format!("{name}_N{n}_A"), a);
                outputs.insert(format!("{name}_N{n}_B"), b);
            }
        }
        "nplr()" => {
            let ranks: BTreeMap<String, i64> =
                serde_json::from_value(case.config.get("ranks").cloned().unwrap_or_default())?;
            for key in case.section("out").keys().filter(|key| key.ends_with("_W")) {
                let (name, n) = named(key.trim_end_matches("_W"))?;
                let stored =
                    (case.section("out").get(&format!("{name}_N{n}_P_real"))).ok_or("no P_real")?;
                let rank = ranks.get(&name).copied().unwrap_or(stored.size()[0]);
                let form = nplr(Hippo::named(&name)?, n, rank, None)?;
                let p = Hippo::named(&name)?.rank_correction(n, rank)?;
                let again = |x: &Tensor| (form.v.matmul(x)).real() * 2.0;
                let pairs = |t: &Tensor| t.resolve_conj().view_as_real();
                let w = form.w.diag_embed(0, -2, -1);
                let recon = again(&w.matmul(&form.v.conj_physical().transpose(0, 1)));
                let mut put =
                    |what: &str, t: Tensor| outputs.insert(format!("{name}_N{n}_{what}"), t);
                put("W", pairs(&form.w));
                put("absB", form.b.abs());
                put("absP", form.p.abs());
                put("BconjP", pairs(&(&form.b * form.p.conj_physical())));
                put("P_real", p.shallow_clone());
                put("recon_A", recon - p.transpose(0, 1).matmul(&p));
                put("recon_B", again(&form.b.unsqueeze(1)).squeeze_dim(1));
            }
        }
        _ => return Ok(None),
    }
    // eigenvectors are known up to a phase a column: what does not depend on it is compared
    let phases = |key: &str| {
        case.model == "nplr()" && ["_V", "_B", "_P"].iter().any(|end| key.ends_with(end))
    };
    let stored: Named = (case.section("out").iter())
        .filter(|(key, _)| !phases(key))
        .map(|(key, t)| (key.clone(), t.shallow_clone()))
        .collect();
    report.compare_all("out", &outputs, &stored, &case.spreads.out, DOUBLE);
    Ok(Some(()))
}

/// `legs_N8` is LegS with eight states.
fn named(key: &str) -> Fallible<(String, i64)> {
    let (name, n) = key
        .rsplit_once("_N")
        .ok_or_else(|| format!("{key} names no size"))?;
    Ok((name.to_string(), n.parse()?))
}

/// Kernels have parameters and no input; `None` for other cases.
pub fn kernel_case(case: &Case, report: &mut Report) -> Fallible<Option<()>> {
    let which = match case.model.as_str() {
        "SSMKernelDiag (S4)" => Kernel::Diag,
        "SSMKernelDPLR (S4)" => Kernel::Dplr,
        _ => return Ok(None),
    };
    let config = Config::new(&case.config);
    let sizes = sizes(&config, which)?;
    let length: i64 = config.required("L")?;
    let rate = config.or("rate", 1.0)?;
    config.without_effect(&["kernel", "verbose"]);
    config.finish()?;
    let (net, params) = make(|scope| S4Kernel::new(scope, sizes))?;
    load(&params, case.section("param"), report);
    let taps = net.kernel(length, rate)?;
    let cot = case.section("cot").get("K").ok_or("no cot/K")?;
    (&taps * cot).sum(Kind::Double).backward();
    let outputs = Named::from([("K".to_string(), taps)]);
    let spreads = &case.spreads;
    report.compare_all(
        "out",
        &outputs,
        case.section("out"),
        &spreads.out,
        spreads.out.tolerance(),
    );
    compare_gradients(case, &params, report);
    if which == Kernel::Dplr {
        set_up(case, &net, &params, report)?;
    }
    Ok(Some(()))
}

/// The gradients are stored in float64 only for some kernels.
fn compare_gradients(case: &Case, params: &ParamStore, report: &mut Report) {
    let spread = &case.spreads.grad;
    for section in ["grad", "grad64"] {
        let stored = case.section(section);
        if stored.is_empty() {
            continue;
        }
        let ours: Named = (params.trainable().into_iter())
            .map(|(name, t)| (name, t.grad()))
            .filter(|(name, grad)| grad.defined() && stored.contains_key(name))
            .map(|(name, grad)| {
                (
                    name,
                    if section == "grad64" {
                        grad.to_kind(Kind::Double)
                    } else {
                        grad
                    },
                )
            })
            .collect();
        report.compare_all(section, &ours, stored, spread, spread.tolerance());
    }
}

/// What the reference makes of its parameters before the first kernel: dA, dB, and C for the length.
fn set_up(case: &Case, net: &S4Kernel, params: &ParamStore, report: &mut Report) -> Fallible<()> {
    let init = case.section("init");
    let (Some(c), Some(da), Some(db)) = (init.get("C"), init.get("dA"), init.get("dB")) else {
        return Ok(());
    };
    // float32 there, float64 here
    const SINGLE: f64 = 2e-5;
    let (our_da, our_db) = no_grad(|| net.dense())?;
    let pairs = |t: Tensor| t.resolve_conj().view_as_real().to_kind(Kind::Float);
    let mut outputs = Named::from([
        ("dA".to_string(), pairs(our_da)),
        ("dB".to_string(), pairs(our_db)),
    ]);
    let mut stored = Named::from([
        ("dA".to_string(), da.shallow_clone()),
        ("dB".to_string(), db.shallow_clone()),
    ]);
    // from the start again: the first kernel makes C what the file has
    let ours = params.get("C").ok_or("no C")?;
    let length = params.get("l_kernel").ok_or("no l_kernel")?;
    let wanted = length.int64_value(&[]);
    no_grad(|| {
        ours.shallow_clone().copy_(c);
        let _ = length.shallow_clone().fill_(0);
    });
    let _ = no_grad(|| net.kernel(wanted, 1.0))?;
    if length.int64_value(&[]) != wanted {
        report.fault(format!(
            "l_kernel is {length:?} after the set-up, expected {wanted}"
        ));
    }
    outputs.insert("C".to_string(), ours.detach());
    stored.insert("C".to_string(), case.section("param")["C"].shallow_clone());
    report.compare_all("init", &outputs, &stored, &case.spreads.out, SINGLE);
    Ok(())
}

/// Layers, for the common run of modules.
pub fn build(case: &Case, config: &Config) -> Fallible<Option<(Forward, ParamStore)>> {
    match case.model.as_str() {
        "S4Block (FFTConv + output linear)" => {
            let mode = config.or("mode", config.or("kernel", "dplr".to_string())?)?;
            let which = match mode.as_str() {
                "diag" | "s4d" => Kernel::Diag,
                "dplr" | "nplr" | "s4" => Kernel::Dplr,
                other => return Err(format!("config `mode` = {other}").into()),
            };
            let sizes = S4BlockConfig {
                kernel: sizes(config, which)?,
                l_max: config.optional("l_max")?,
                bidirectional: config.or("bidirectional", false)?,
            };
            config.expect_text("activation", "gelu")?;
            config.expect_text("final_act", "glu")?;
            config.without_effect(&["dropout", "tie_dropout", "drop_kernel"]);
            let transposed = config.or("transposed", true)?;
            let axis = if transposed { 2 } else { 1 };
            config.expect("L", case.input("x")?.size()[axis])?;
            let (net, params) = make(|scope| S4Block::new(scope, sizes))?;
            let steps = case.section("out").contains_key("step_y");
            Ok(Some((
                Box::new(move |x, _| {
                    let turn = |t: &Tensor| {
                        if transposed {
                            t.transpose(1, 2)
                        } else {
                            t.shallow_clone()
                        }
                    };
                    let x = turn(x);
                    let mut outputs = single(turn(&net.forward(&x)?));
                    if steps {
                        no_grad(|| {
                            let system = net.stepping()?;
                            let mut state = system.start(x.size()[0]);
                            let mut tokens = vec![];
                            for token in x.unbind(1) {
                                let (y, next) = net.step(&token, &system, &state);
                                tokens.push(y);
                                state = next;
                            }
                            outputs.insert("step_y".into(), turn(&Tensor::stack(&tokens, 1)));
                            outputs
                                .insert("step_state".into(), state.resolve_conj().view_as_real());
                            Ok::<_, Box<dyn std::error::Error>>(())
                        })?;
                    }
                    Ok(outputs)
                }),
                params,
            )))
        }
        "S4D (minimal models/s4/s4d.py)" => {
            let (h, n) = (config.required("d_model")?, config.or("d_state", 64)?);
            let dt = (config.or("dt_min", 0.001)?, config.or("dt_max", 0.1)?);
            config.expect("L", case.input("x")?.size()[2])?;
            config.without_effect(&["dropout", "transposed"]);
            let (net, params) = make(|scope| S4dMinimal::new(scope, h, n, dt))?;
            Ok(Some((
                Box::new(move |x, _| {
                    let mut outputs = single(net.forward(x)?);
                    outputs.insert("K".into(), net.kernel(x.size()[2]));
                    Ok(outputs)
                }),
                params,
            )))
        }
        _ => Ok(None),
    }
}

/// The defaults are those of the reference's constructors.
fn sizes(config: &Config, kernel: Kernel) -> Fallible<S4KernelConfig> {
    let published = S4KernelConfig::new(config.required("d_model")?, kernel);
    let disc: S4Discretisation =
        serde_json::from_value(Value::from(config.or("disc", "zoh".to_string())?))?;
    config.without_effect(&["lr", "wd", "deterministic"]);
    config.expect_text("dt_transform", "exp")?;
    config.expect_text("real_transform", "exp")?;
    config.expect_text("imag_transform", "none")?;
    Ok(S4KernelConfig {
        d_state: config.or("d_state", published.d_state)?,
        channels: config.or("channels", 1)?,
        disc,
        init: S4Init::named(&config.or("init", "legs".to_string())?)?,
        rank: config.or("rank", 1)?,
        n_ssm: config.optional("n_ssm")?,
        dt_min: config.or("dt_min", published.dt_min)?,
        dt_max: config.or("dt_max", published.dt_max)?,
        l_max: config.optional("l_max")?,
        ..published
    })
}
