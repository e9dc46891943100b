//! Cases of the operators: native library and reference, float32 and, where stored, float64.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use vision_mamba_ops::{native, reference, Activation, OpsError, ScanOutput, SelectiveScan};

use crate::case::{Case, Fallible};
use crate::compare::Report;
use crate::config::Config;

type Named = BTreeMap<String, Tensor>;
type Scan = fn(&SelectiveScan) -> Result<ScanOutput, OpsError>;

/// In float64 both sides round at 1e-16 a step, over a few thousand steps and sums; float32 anywhere would show at 1e-8.
const TOLERANCE_64: f64 = 1e-11;

/// Runs `forward` on leaves of the case's inputs in `kind` and compares outputs and gradients with the stored ones.
fn compare(
    case: &Case,
    report: &mut Report,
    label: &str,
    kind: Kind,
    forward: impl FnOnce(&Named) -> Fallible<Named>,
) -> Fallible<()> {
    let leaf = |t: &Tensor| t.copy().to_kind(kind).set_requires_grad(true);
    let inputs: Named = case
        .section("in")
        .iter()
        .map(|(name, t)| (name.clone(), leaf(t)))
        .collect();
    let outputs = forward(&inputs)?;
    let terms: Vec<Tensor> = case
        .section("cot")
        .iter()
        .filter_map(|(name, cot)| Some((outputs.get(name)? * cot.to_kind(kind)).sum(kind)))
        .collect();
    if !terms.is_empty() {
        Tensor::stack(&terms, 0).sum(kind).backward();
    }
    let gradients: Named = inputs
        .iter()
        .map(|(name, t)| (name.clone(), t.grad()))
        .filter(|(_, g)| g.defined())
        .collect();
    let suffix = if kind == Kind::Double { "64" } else { "" };
    let sections = [
        ("out", &outputs, &case.spreads.out),
        ("grad_in", &gradients, &case.spreads.grad_in),
    ];
    for (section, ours, spread) in sections {
        let stored = case.section(&format!("{section}{suffix}"));
        let tolerance = if kind == Kind::Double {
            TOLERANCE_64
        } else {
            spread.tolerance()
        };
        report.compare_all(
            &format!("{label} {section}{suffix}"),
            ours,
            stored,
            spread,
            tolerance,
        );
    }
    Ok(())
}

/// Both precisions of an operator; float64 where the case has it.
fn both_kinds(
    case: &Case,
    report: &mut Report,
    label: &str,
    forward: impl Fn(&Named) -> Fallible<Named>,
) -> Fallible<()> {
    compare(case, report, label, Kind::Float, &forward)?;
    if !case.section("out64").is_empty() {
        compare(case, report, label, Kind::Double, &forward)?;
    }
    Ok(())
}

/// The selective scan in every form.
pub fn selective_scan(case: &Case, report: &mut Report) -> Fallible<()> {
    case.check_sections()?;
    let config = Config::new(&case.config);
    let (u, a) = (case.input("u")?.size(), case.input("A")?.size());
    // complex tensors have a last dimension of two
    let complex = a.len() == 3;
    for (key, found) in [("B", u[0]), ("D", u[1]), ("L", u[2]), ("N", a[1])] {
        config.expect(key, found)?;
    }
    let rank = |name| Ok::<i64, Box<dyn std::error::Error>>(case.input(name)?.dim() as i64);
    let weight_rank = |rank: i64| if complex && rank == 3 { 2 } else { rank };
    // with complex A constant weights are complex, varying ones real with pairs along time
    if !complex {
        config.expect("bv", rank("B")?)?;
        match config.has("cv") {
            true => config.expect("cv", rank("C")?)?,
            false => config.expect("bv", rank("C")?)?,
        }
    } else {
        config.without_effect(&["bv", "cv"]);
    }
    for name in ["B", "C"] {
        let t = case.input(name)?;
        if weight_rank(t.dim() as i64) == 4 {
            config.expect("G", t.size()[1])?;
        }
    }
    for (key, name) in [("hasD", "D"), ("hasz", "z"), ("hasbias", "delta_bias")] {
        let stated: bool = config.or(key, case.section("in").contains_key(name))?;
        if stated != case.section("in").contains_key(name) {
            return Err(format!("config `{key}` = {stated}, but the inputs say otherwise").into());
        }
    }
    let says_complex = |key: &&String| key.to_lowercase().contains("complex");
    for key in case.config.keys().filter(says_complex) {
        if config.required::<bool>(key)? != complex {
            return Err(format!("config `{key}` = {}, but A has shape {a:?}", !complex).into());
        }
    }
    let softplus: bool = config.required("delta_softplus")?;
    let with_state: bool = config.or("return_last_state", false)?;
    // how the inputs were scaled when they were drawn; and the group count where no weight is grouped
    config.without_effect(&["ascale", "dscale", "G"]);
    config.finish()?;

    let mut implementations: Vec<(&str, Scan)> = vec![("reference", reference::selective_scan)];
    // complex A is a form of the reference only
    if native::is_ready() && !complex {
        implementations.push(("native", native::selective_scan));
    }
    for (label, scan) in implementations {
        both_kinds(case, report, label, |inputs| {
            scan_case(inputs, scan, softplus, with_state)
        })?;
    }
    Ok(())
}

fn scan_case(inputs: &Named, scan: Scan, softplus: bool, with_state: bool) -> Fallible<Named> {
    let get = |name: &str| {
        inputs
            .get(name)
            .ok_or_else(|| format!("input `{name}` is missing"))
    };
    let complex = get("A")?.dim() == 3;
    // complex ones are stored as (re, im): A, and B and C when they are constant, that is of A's shape
    let shape = get("A")?.size();
    let joined = |name: &str| {
        let t = get(name)?;
        Ok::<_, String>(match complex && t.size() == shape {
            true => t.contiguous().view_as_complex(),
            false => t.shallow_clone(),
        })
    };
    let (a, b, c) = (joined("A")?, joined("B")?, joined("C")?);
    let output = scan(&SelectiveScan {
        u: get("u")?,
        delta: get("delta")?,
        a: &a,
        b: &b,
        c: &c,
        d: inputs.get("D"),
        z: inputs.get("z"),
        delta_bias: inputs.get("delta_bias"),
        delta_softplus: softplus,
    })?;
    let mut outputs = Named::from([("y".to_string(), output.out)]);
    if with_state {
        let state = output.last_state;
        let state = if state.is_complex() {
            state.view_as_real()
        } else {
            state
        };
        outputs.insert("last_state".into(), state);
    }
    Ok(outputs)
}

fn activation(config: &Config) -> Fallible<Activation> {
    match config.optional::<String>("activation")?.as_deref() {
        None => Ok(Activation::None),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some(other) => Err(format!("unknown activation `{other}`").into()),
    }
}

/// The causal convolution; with states it exists in the reference only.
pub fn causal_conv1d(case: &Case, report: &mut Report) -> Fallible<()> {
    case.check_sections()?;
    let config = Config::new(&case.config);
    config.expect("width", case.input("weight")?.size()[1])?;
    let activation = activation(&config)?;
    let has_bias = case.section("in").contains_key("bias");
    if config.or("bias", has_bias)? != has_bias {
        return Err("config `bias` and the inputs disagree".into());
    }
    let initial: bool = config.or("initial_states", false)?;
    let with_states: bool = config.or("return_final_states", false)?;
    config.finish()?;
    if initial != case.section("in").contains_key("initial_states") {
        return Err("config `initial_states` and the inputs disagree".into());
    }
    both_kinds(case, report, "reference", |inputs| {
        let states = inputs.get("initial_states");
        let (y, last) = reference::causal_conv1d_states(
            &inputs["x"],
            &inputs["weight"],
            inputs.get("bias"),
            states,
            activation,
        )?;
        let mut outputs = Named::from([("y".to_string(), y)]);
        if with_states {
            outputs.insert("final_states".into(), last);
        }
        Ok(outputs)
    })?;
    if native::is_ready() && !initial && !with_states {
        both_kinds(case, report, "native", |inputs| {
            let y = native::causal_conv1d(
                &inputs["x"],
                &inputs["weight"],
                inputs.get("bias"),
                activation,
            )?;
            Ok(Named::from([("y".to_string(), y)]))
        })?;
    }
    Ok(())
}

/// The causal convolution one token at a time.
pub fn causal_conv1d_update(case: &Case, report: &mut Report) -> Fallible<()> {
    case.check_sections()?;
    let config = Config::new(&case.config);
    config.expect("width", case.input("weight")?.size()[1])?;
    config.expect("state_len", case.input("conv_state")?.size()[2])?;
    let activation = activation(&config)?;
    let has_bias = case.section("in").contains_key("bias");
    if config.or("bias", has_bias)? != has_bias {
        return Err("config `bias` and the inputs disagree".into());
    }
    config.finish()?;
    both_kinds(case, report, "reference", |inputs| {
        let mut state = inputs["conv_state"].shallow_clone();
        let mut tokens = vec![];
        for x in inputs["x"].unbind(-1) {
            let (y, next) = reference::causal_conv1d_update(
                &x,
                &state,
                &inputs["weight"],
                inputs.get("bias"),
                activation,
            )?;
            state = next;
            tokens.push(y);
        }
        let y = Tensor::stack(&tokens, -1);
        Ok(Named::from([
            ("y".to_string(), y),
            ("conv_state".to_string(), state),
        ]))
    })
}
