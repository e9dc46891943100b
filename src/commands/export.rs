//! `export`: a trained network as TorchScript.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tch::Device;
use vision_mamba_datasets::{DatasetJson, Plan};
use vision_mamba_models::export::export;
use vision_mamba_models::{build, weights, ModelError, NetworkSpec, Task};

use crate::cli::args::{ExportArgs, Global};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::engine::config::RunConfig;
use crate::engine::run_folder::RunFolder;
use crate::runtime;

/// Side of the images where neither the options nor the network name one.
const DEFAULT_SIDE: i64 = 224;

/// The network, its weights' file, and what is said of both in the exported file.
struct Source {
    spec: NetworkSpec,
    file: std::path::PathBuf,
    told: serde_json::Map<String, serde_json::Value>,
    patch: Option<Vec<i64>>,
}

/// Records, checks and writes.
pub fn run(args: &ExportArgs, global: &Global, printer: &Printer) -> Result<()> {
    runtime::prepare(global.threads, Device::Cpu, printer);
    if args.output.exists() && !args.force {
        return Err(Misuse::error(format!(
            "{} exists already; choose another name or add --force",
            args.output.display()
        )));
    }
    let mut source = match (&args.run, &args.weights) {
        (Some(run), None) => of_run(args, run)?,
        (None, Some(file)) => of_weights(file)?,
        _ => return Err(Misuse::error("give either --run RUN_DIR or --weights FILE")),
    };
    if source.spec.task() == Task::Classification {
        printer.message("a classifier: its output is (B, classes)");
    }
    // libtorch runs the trace where it is loaded; it is made on the CPU
    let built = build(&source.spec, Device::Cpu)?;
    weights::load_strict(&source.file, &built.params)?;
    let size: Vec<i64> = match (&args.input_size, source.patch) {
        (Some(given), _) => given.0.iter().map(|&n| n as i64).collect(),
        (None, Some(patch)) => patch,
        (None, None) => vec![DEFAULT_SIDE],
    };
    let size = vision_mamba_models::describe::takeable_size(&built, &size);
    source
        .told
        .insert("input_size".into(), serde_json::json!(size));
    source.told.insert(
        "input_channels".into(),
        serde_json::json!(source.spec.in_channels()),
    );
    source
        .told
        .insert("network".into(), serde_json::to_value(&source.spec)?);
    source
        .told
        .insert("task".into(), serde_json::to_value(source.spec.task())?);
    let texts = BTreeMap::from([(
        "vision_mamba.json".to_string(),
        serde_json::to_string_pretty(&source.told)?,
    )]);
    let done = export(&built, &size, &texts, &args.output)
        .with_context(|| format!("cannot export to {}", args.output.display()))?;
    let sides: Vec<String> = done.input_size.iter().map(i64::to_string).collect();
    printer.data(&format!(
        "{}: images (B, {}, {}), any B; differs by {:.1e} of the largest output from the network",
        args.output.display(),
        source.spec.in_channels(),
        sides.join(", "),
        done.error
    ));
    Ok(())
}

fn of_run(args: &ExportArgs, run: &std::path::Path) -> Result<Source> {
    let folder = RunFolder::open(run)?;
    let config: RunConfig = RunFolder::read_json(&folder.config())?;
    let plan = Plan::read(&folder.plans())?;
    let info = DatasetJson::read(&folder.dataset())?;
    let configuration = plan.configuration(&config.configuration)?;
    let told = serde_json::json!({
        "preset": config.preset,
        "labels": info.labels,
        "regions": info.regions,
        "channel_names": info.channel_names,
        "transpose_forward": plan.transpose_forward,
        "foreground_intensity_properties_per_channel": plan.foreground_intensity_properties_per_channel,
        "configuration": configuration,
        "mirror_axes": config.training.mirror_axes,
    });
    let patch = config.training.training_patch.iter().map(|n| *n as i64);
    Ok(Source {
        patch: Some(patch.collect()),
        file: folder.pick_checkpoint(args.checkpoint)?,
        spec: config.network,
        told: told.as_object().cloned().unwrap_or_default(),
    })
}

fn of_weights(file: &std::path::Path) -> Result<Source> {
    let mut metadata = weights::read_metadata(file)?;
    let network = metadata
        .remove("network")
        .ok_or_else(|| ModelError::BadFile {
            path: file.to_path_buf(),
            reason: "says of no network what it is; write it with `weights import`".to_string(),
        })?;
    let spec: NetworkSpec = serde_json::from_str(&network)
        .with_context(|| format!("{}: its network cannot be read", file.display()))?;
    spec.validate()?;
    let told = serde_json::json!({ "preset": metadata.get("preset") });
    Ok(Source {
        patch: spec.training_patch().map(<[i64]>::to_vec),
        spec,
        file: file.to_path_buf(),
        told: told.as_object().cloned().unwrap_or_default(),
    })
}
