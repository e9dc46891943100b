//! `models list` and `models show`.

use std::collections::BTreeMap;

use anyhow::Result;
use tch::Device;
use vision_mamba_models::weights::shipped;
use vision_mamba_models::{build, cost, describe, outline, preset, presets, NetworkCost};

use crate::cli::args::{CostChoice, ModelsListArgs, ModelsShowArgs};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;

/// Side of the image that shapes are shown for.
const DEFAULT_SIDE: i64 = 224;

/// Networks with more parameters than this are run on request only: a gigabyte.
const MOST_PARAMETERS: i64 = 1 << 28;

/// Prints the table of presets.
pub fn list(args: &ModelsListArgs, printer: &Printer) -> Result<()> {
    let mut rows = vec![];
    for entry in presets() {
        let spec = entry.spec()?;
        rows.push((entry, spec.task(), outline(&spec)?.params.num_parameters()));
    }
    if args.json {
        let rows: Vec<_> = (rows.iter())
            .map(|(entry, task, parameters)| {
                serde_json::json!({
                    "name": entry.name, "task": task, "parameters": parameters, "summary": entry.summary
                })
            })
            .collect();
        printer.data(&serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let width = rows.iter().map(|row| row.0.name.len()).max().unwrap_or(0);
    printer.data(&format!(
        "{:width$}  {:14}  {:>9}  SUMMARY",
        "PRESET", "TASK", "PARAMS"
    ));
    for (entry, task, parameters) in rows {
        printer.data(&format!(
            "{:width$}  {:14}  {:>7.2} M  {}",
            entry.name,
            task.to_string(),
            parameters as f64 / 1e6,
            entry.summary
        ));
    }
    Ok(())
}

/// Prints one preset's parameters, stages and, on request, tensors.
pub fn show(args: &ModelsShowArgs, printer: &Printer) -> Result<()> {
    let spec = preset(&args.preset).map_err(|e| Misuse::error(e.to_string()))?;
    let spec = spec
        .with_overrides(&parse_overrides(&args.set)?)
        .map_err(|e| Misuse::error(e.to_string()))?;
    let size: Vec<i64> = match (&args.input_size, spec.training_patch()) {
        (Some(given), _) => given.0.iter().map(|&n| n as i64).collect(),
        (None, Some(patch)) => patch.to_vec(),
        (None, None) => vec![DEFAULT_SIDE],
    };
    let description = describe(&outline(&spec)?, &size);
    let cost = match args.cost {
        CostChoice::Never => None,
        CostChoice::Auto if description.parameters > MOST_PARAMETERS => None,
        choice => cost(
            &build(&spec, Device::Cpu)?,
            &size,
            choice == CostChoice::Always,
        )?,
    };
    // another network than the preset as it stands has none
    let weights: BTreeMap<&str, &str> = (shipped::ALL.iter())
        .filter(|it| it.preset == args.preset && args.set.is_empty())
        .map(|it| (it.name, it.command))
        .collect();
    if args.json {
        let mut value = serde_json::to_value(&description)?;
        if !args.state_dict {
            if let Some(map) = value.as_object_mut() {
                map.remove("state_dict");
            }
        }
        if let Some(map) = value.as_object_mut() {
            map.insert("cost".into(), serde_json::to_value(&cost)?);
            map.insert("weights".into(), serde_json::to_value(&weights)?);
        }
        printer.data(&serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    printer.data(&format!(
        "{}\nparameters  {}",
        args.preset, description.parameters
    ));
    for (name, command) in &weights {
        printer.data(&format!(
            "weights     {name} comes with the program; `{command}` takes it when no weights are named"
        ));
    }
    match (&cost, args.cost) {
        (Some(cost), _) => print_cost(cost, printer),
        (None, CostChoice::Never) => {}
        (None, _) => printer.data(
            "multiply-adds and memory are not shown: running this network on such an image takes long and much memory (`--cost always` \
             does it)",
        ),
    }
    let width = description
        .stages
        .iter()
        .map(|s| s.name.len())
        .max()
        .unwrap_or(0);
    for stage in &description.stages {
        printer.data(&format!("  {:width$}  {:?}", stage.name, stage.shape));
    }
    if args.state_dict {
        for tensor in &description.state_dict {
            let alias = tensor
                .alias_of
                .as_ref()
                .map(|of| format!("  = {of}"))
                .unwrap_or_default();
            printer.data(&format!(
                "{}  {:?}  {}{alias}",
                tensor.name, tensor.shape, tensor.dtype
            ));
        }
    }
    Ok(())
}

/// One image's cost, in units a person reads.
fn print_cost(cost: &NetworkCost, printer: &Printer) {
    let giga = |n: i64| n as f64 / 1e9;
    let mebibytes = |n: i64| n as f64 / (1 << 20) as f64;
    let size: Vec<String> = cost.input_size.iter().map(i64::to_string).collect();
    printer.data(&format!(
        "one image of {}{}\n  multiply-adds        {:.3} G, of them in scans {:.3} G\n  activations          {:.1} MiB held in \
         training\n  prediction           {:.1} MiB at the most",
        size.join("x"),
        if cost.extrapolated { " (extrapolated from smaller ones)" } else { "" },
        giga(cost.multiply_adds),
        giga(cost.scan_multiply_adds),
        mebibytes(cost.activation_bytes),
        mebibytes(cost.prediction_bytes),
    ));
}

/// `key=value` pairs as typed after `--set`.
pub fn parse_overrides(set: &[String]) -> Result<Vec<(String, String)>> {
    set.iter()
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok((key.trim().to_string(), value.trim().to_string()))
            }
            _ => Err(Misuse::error(format!(
                "--set {pair}: expected KEY=VALUE, as in --set d_state=8"
            ))),
        })
        .collect()
}
