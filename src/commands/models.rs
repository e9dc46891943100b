//! `models list` and `models show`.

use anyhow::Result;
use vision_mamba_models::{describe, outline, preset, presets};

use crate::cli::args::{ModelsListArgs, ModelsShowArgs};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;

/// Side of the image that shapes are shown for.
const DEFAULT_SIDE: i64 = 224;

/// Prints the table of presets.
pub fn list(args: &ModelsListArgs, printer: &Printer) -> Result<()> {
    if args.json {
        let rows = presets()
            .iter()
            .map(|p| {
                let task = p.spec()?.task();
                Ok(serde_json::json!({ "name": p.name, "task": task, "summary": p.summary }))
            })
            .collect::<Result<Vec<_>>>()?;
        printer.data(&serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let width = presets().iter().map(|p| p.name.len()).max().unwrap_or(0);
    for entry in presets() {
        let task = entry.spec()?.task().to_string();
        printer.data(&format!(
            "{:width$}  {task:14}  {}",
            entry.name, entry.summary
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
    let built = outline(&spec)?;
    let description = describe(
        &built,
        &args.input_size.as_ref().map_or_else(
            || vec![DEFAULT_SIDE],
            |s| s.0.iter().map(|&n| n as i64).collect(),
        ),
    );
    if args.json {
        let mut value = serde_json::to_value(&description)?;
        if !args.state_dict {
            if let Some(map) = value.as_object_mut() {
                map.remove("state_dict");
            }
        }
        printer.data(&serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    printer.data(&format!(
        "{}\nparameters  {}",
        args.preset, description.parameters
    ));
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
