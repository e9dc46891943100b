//! `weights inspect` and `weights import`: checkpoints of Python's tools, read as data.

use std::collections::BTreeMap;

use anyhow::{bail, Context, Result};
use tch::Device;
use vision_mamba_models::weights::{import, read_metadata, save_safetensors, Checkpoint, Import};
use vision_mamba_models::{build, preset};

use super::models::parse_overrides;
use crate::cli::args::{WeightsImportArgs, WeightsInspectArgs};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;

/// How many names of a list are told.
const SHOWN: usize = 8;

/// Prints what a file holds.
pub fn inspect(args: &WeightsInspectArgs, printer: &Printer) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.file)?;
    let tensors = checkpoint.tensors();
    let values: i64 = (tensors.values())
        .map(|t| t.shape.iter().product::<i64>())
        .sum();
    let metadata = match checkpoint.format() {
        "safetensors" => read_metadata(&args.file)?,
        _ => BTreeMap::new(),
    };
    if args.json {
        let list: Vec<_> = (tensors.iter())
            .map(|(name, t)| {
                serde_json::json!({ "name": name, "shape": t.shape, "dtype": format!("{:?}", t.kind) })
            })
            .collect();
        let all = serde_json::json!({
            "format": checkpoint.format(), "values": values, "metadata": metadata, "tensors": list
        });
        printer.data(&serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    printer.data(&format!(
        "{}\nformat   {}\ntensors  {}\nvalues   {values}",
        args.file.display(),
        checkpoint.format(),
        tensors.len()
    ));
    for (key, value) in &metadata {
        printer.data(&format!("{key}  {value}"));
    }
    // the dictionaries that tensors lie in
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in tensors.keys() {
        *parts
            .entry(name.split('.').next().unwrap_or(""))
            .or_default() += 1;
    }
    for (part, count) in parts.iter().filter(|_| !args.tensors) {
        printer.data(&format!("  {part}  {count} tensor(s)"));
    }
    if args.tensors {
        let width = tensors.keys().map(String::len).max().unwrap_or(0);
        for (name, t) in tensors {
            printer.data(&format!("  {name:width$}  {:?}  {:?}", t.kind, t.shape));
        }
    } else {
        printer.message("--tensors lists every tensor");
    }
    Ok(())
}

/// Writes a file's weights as those of a preset, or a results folder as runs.
pub fn import_any(args: &WeightsImportArgs, printer: &Printer) -> Result<()> {
    if args.file.is_dir() {
        return super::import_results::run(args, printer);
    }
    let name = args.preset.as_deref().ok_or_else(|| {
        if !args.file.exists() {
            return Misuse::error(format!("{}: no such file or folder", args.file.display()));
        }
        Misuse::error(format!(
            "{} is a file, whose network --preset PRESET names (see `vision-mamba models list`); a folder of nnUNet_results needs none",
            args.file.display()
        ))
    })?;
    import_file(args, name, printer)
}

fn import_file(args: &WeightsImportArgs, name: &str, printer: &Printer) -> Result<()> {
    let spec = preset(name)
        .and_then(|spec| {
            let overrides = parse_overrides(&args.set).unwrap_or_default();
            spec.with_overrides(&overrides)
        })
        .map_err(|e| Misuse::error(e.to_string()))?;
    parse_overrides(&args.set)?;
    if args.out.exists() && !args.force {
        return Err(Misuse::error(format!(
            "{} exists already; choose another name or add --force",
            args.out.display()
        )));
    }
    let checkpoint = Checkpoint::open(&args.file)?;
    let built = build(&spec, Device::Cpu)?;
    let outcome = import(&checkpoint, &built, args.partial).with_context(|| {
        format!(
            "{} is no checkpoint of `{}`; other sizes are set by --set KEY=VALUE, --partial takes what fits",
            args.file.display(),
            name
        )
    })?;
    if outcome.loaded.is_empty() {
        bail!(
            "{}: no tensor of it belongs to `{}`; `weights inspect` lists what it holds",
            args.file.display(),
            name
        );
    }
    let metadata = BTreeMap::from([
        ("format".to_string(), "vision-mamba".to_string()),
        ("preset".to_string(), name.to_string()),
        ("network".to_string(), serde_json::to_string(&spec)?),
    ]);
    save_safetensors(&args.out, &built.params, &metadata)?;
    tell(&outcome, printer);
    printer.data(&format!(
        "{}: {} tensors, {} parameters",
        args.out.display(),
        outcome.loaded.len(),
        built.params.num_parameters()
    ));
    Ok(())
}

/// What was taken and what was not.
pub fn tell(outcome: &Import, printer: &Printer) {
    if !outcome.prefix.is_empty() {
        printer.message(&format!(
            "names begin with `{}` in the file",
            outcome.prefix
        ));
    }
    for (what, names) in [
        ("adapted", &outcome.adapted),
        ("missing, left as they start", &outcome.missing),
        ("misshaped, left as they start", &outcome.misshaped),
        ("unexpected, passed over", &outcome.unexpected),
    ] {
        if names.is_empty() {
            continue;
        }
        let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>();
        let more = match names.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        printer.message(&format!(
            "{} {what}: {}{more}",
            names.len(),
            shown.join(", ")
        ));
    }
}
