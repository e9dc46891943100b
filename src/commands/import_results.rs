//! `weights import RESULTS`: what nnU-Net or U-Mamba trained becomes run folders, one a fold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Device;
use vision_mamba_datasets::{Augmentation, Configuration, DatasetJson, Plan};
use vision_mamba_models::weights::{import, read_values, save_safetensors, Checkpoint};
use vision_mamba_models::{build, Built, NetworkSpec};

use crate::cli::args::{CheckpointChoice, OptimizerChoice, ScheduleChoice, WeightsImportArgs};
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::engine::config::{RunConfig, TrainingConfig};
use crate::engine::optimizer::OptimizerConfig;
use crate::engine::run_folder::{write_atomic, write_json, RunFolder};
use crate::engine::schedule::{poly_power, Schedule};
use crate::losses::{DiceOver, LossKind};
use crate::nnunet::architecture::{network, preset_of};
use crate::nnunet::results::{find, fold_name, Trained};
use crate::nnunet::trainer::{known, Family, Known};
use crate::precision::Precision;
use crate::speed::Speed;

/// nnU-Net's files of weights and what they become, the one that says most first.
const CHECKPOINTS: [(&str, CheckpointChoice); 3] = [
    ("checkpoint_final.pth", CheckpointChoice::Final),
    ("checkpoint_best.pth", CheckpointChoice::Best),
    ("checkpoint_latest.pth", CheckpointChoice::Latest),
];

/// Readers of nnU-Net that turn the images before the network sees them.
const TURNING: &str = "Reorient";

/// `imported.json`: where a run comes from, and whether that has changed since.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    /// The fold's folder.
    folder: PathBuf,
    /// Class that trained it.
    trainer: String,
    /// Version of this program.
    version: String,
    /// Files read: bytes, and nanoseconds since 1970 of their last change.
    files: BTreeMap<String, (u64, u128)>,
}

/// What the folds of a configuration share.
struct Shared<'t> {
    trained: &'t Trained,
    plan: Plan,
    plans_text: Vec<u8>,
    info: DatasetJson,
}

/// Imports every fold found; one that fails is named, the rest is done, and the command fails at the end.
pub fn run(args: &WeightsImportArgs, printer: &Printer) -> Result<()> {
    for (given, option) in [
        (args.preset.is_some(), "--preset"),
        (!args.set.is_empty(), "--set"),
        (args.partial, "--partial"),
    ] {
        if given {
            return Err(Misuse::error(format!(
                "{option} is for a file of weights; {} is a folder, whose plans tell the network",
                args.file.display()
            )));
        }
    }
    if args.out.is_file() {
        return Err(Misuse::error(format!(
            "-o {}: is a file; give a folder for the runs",
            args.out.display()
        )));
    }
    let found = find(&args.file)?;
    let mut failures = Vec::new();
    let mut ready = Vec::new();
    for trained in &found {
        let shared = Shared::read(trained);
        let mut runs = Vec::new();
        for fold in &trained.folds {
            let out = (args.out.join(&trained.name)).join(fold.file_name().unwrap_or_default());
            let outcome = match &shared {
                Ok(shared) => import_fold(shared, fold, &out, args.force, printer),
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            match outcome {
                Ok(told) => {
                    printer.data(&format!("{}: {told}", out.display()));
                    runs.push(out);
                }
                Err(error) => {
                    let text = format!("{}: {error:#}", fold.display());
                    printer.message(&format!("warning: {text}"));
                    failures.push(text);
                }
            }
        }
        if !runs.is_empty() {
            ready.push(runs);
        }
    }
    if !ready.is_empty() {
        printer.message("to predict with what is ready:");
    }
    for runs in &ready {
        let runs: Vec<_> = runs
            .iter()
            .map(|r| format!("--run {}", quoted(r)))
            .collect();
        printer.data(&format!(
            "vision-mamba predict {} -i IMAGES -o PREDICTIONS",
            runs.join(" ")
        ));
    }
    if let Some(first) = failures.first() {
        let folds: usize = found.iter().map(|t| t.folds.len()).sum();
        bail!("{} of {folds} fold(s) failed: {first}", failures.len());
    }
    Ok(())
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=,@".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

impl<'t> Shared<'t> {
    fn read(trained: &'t Trained) -> Result<Self> {
        let beside = |name: &str| {
            let path = trained.folder.join(name);
            ensure!(
                path.is_file(),
                "{} is missing; nnU-Net writes it beside the folds, and keeps a copy in nnUNet_preprocessed/DATASET (plans.json there has the plans' name)",
                path.display()
            );
            Ok(path)
        };
        let plans = beside("plans.json")?;
        let plan = Plan::read(&plans)?;
        let plans_text =
            std::fs::read(&plans).with_context(|| format!("cannot read {}", plans.display()))?;
        let info = DatasetJson::read(&beside("dataset.json")?)?;
        Ok(Self {
            trained,
            plan,
            plans_text,
            info,
        })
    }
}

/// Makes one run, or finds it made; tells which.
fn import_fold(
    shared: &Shared,
    fold: &Path,
    out: &Path,
    force: bool,
    printer: &Printer,
) -> Result<String> {
    let there: Vec<_> = (CHECKPOINTS.iter())
        .filter(|(name, _)| fold.join(name).is_file())
        .collect();
    let Some((main, _)) = there.first() else {
        let names: Vec<_> = CHECKPOINTS.iter().map(|c| c.0).collect();
        bail!(
            "it has none of {}; was its training broken off?",
            names.join(", ")
        );
    };
    let said = Said::read(&fold.join(main))?;
    let trainer = said.trainer(shared)?;
    let origin = origin(shared, fold, &trainer, there.iter().map(|c| c.0))?;
    let record = out.join("imported.json");
    if !force {
        match found_at(out, &record, &origin)? {
            Found::Nothing => {}
            Found::Same => return Ok("up to date".into()),
        }
    }
    let (name, configuration) = said.configuration(shared)?;
    said.check(shared, &name, printer)?;
    if shared.plan.image_reader_writer.contains(TURNING) {
        printer.message(&format!(
            "warning: {}: trained with {}, which turns images to the axes right, anterior, superior; here they are taken as they lie, so give \
             it images in that orientation",
            shared.trained.name.display(),
            shared.plan.image_reader_writer
        ));
    }
    let ends = (
        shared.info.channel_names.len() as i64,
        shared.info.outputs() as i64,
    );
    let first = Checkpoint::open(&fold.join(main))?;
    let built = matching(&trainer, configuration, ends, &first, printer)?;

    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    remove_if_there(&record)?;
    let folder = RunFolder::at(out);
    folder.sweep()?;
    let preset = preset_of(&built.spec);
    let metadata = BTreeMap::from([
        ("format".to_string(), "vision-mamba".to_string()),
        ("preset".to_string(), preset.clone()),
        ("network".to_string(), serde_json::to_string(&built.spec)?),
    ]);
    for (file, choice) in &CHECKPOINTS {
        let (from, to) = (fold.join(file), folder.checkpoint(*choice));
        if !from.is_file() {
            remove_if_there(&to)?;
            continue;
        }
        // the network holds the first one's values already
        if file != main {
            import(&Checkpoint::open(&from)?, &built, false)?;
        }
        save_safetensors(&to, &built.params, &metadata)?;
    }
    write_atomic(&folder.plans(), &shared.plans_text)?;
    write_json(&folder.dataset(), &shared.info)?;
    let config = run_config(
        shared,
        fold,
        &name,
        configuration,
        built.spec.clone(),
        preset,
        &said,
        &origin,
    );
    write_json(&folder.config(), &config)?;
    // last: a run without it is imported again
    write_json(&record, &origin)?;
    let files: Vec<_> = there
        .iter()
        .map(|c| {
            c.0.trim_start_matches("checkpoint_")
                .trim_end_matches(".pth")
        })
        .collect();
    Ok(format!(
        "{name} by {trainer}, {} parameters, mirroring over {:?}, weights: {}",
        built.params.num_parameters(),
        config.training.mirror_axes,
        files.join(", ")
    ))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

enum Found {
    Nothing,
    Same,
}

/// Whether a folder holds this import already; one that holds something else is an error.
fn found_at(out: &Path, record: &Path, origin: &Origin) -> Result<Found> {
    if !record.is_file() {
        ensure!(
            !out.join("config.json").is_file() || !out.join("log.jsonl").is_file(),
            "{} holds a run that was trained here; choose another -o",
            out.display()
        );
        return Ok(Found::Nothing);
    }
    let before: Origin = RunFolder::read_json(record)?;
    ensure!(
        before.folder == origin.folder,
        "{} holds the import of {}; choose another -o, or replace it by --force",
        out.display(),
        before.folder.display()
    );
    Ok(match before == *origin {
        true => Found::Same,
        false => Found::Nothing,
    })
}

fn origin<'f>(
    shared: &Shared,
    fold: &Path,
    trainer: &str,
    checkpoints: impl Iterator<Item = &'f str>,
) -> Result<Origin> {
    let beside = ["plans.json", "dataset.json"].map(|n| shared.trained.folder.join(n));
    let mut files = BTreeMap::new();
    for path in checkpoints.map(|n| fold.join(n)).chain(beside) {
        let at = || format!("cannot read {}", path.display());
        let about = path.metadata().with_context(at)?;
        let changed = about.modified().with_context(at)?;
        let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        files.insert(name.into_owned(), (about.len(), changed.as_nanos()));
    }
    Ok(Origin {
        folder: fold.to_path_buf(),
        trainer: trainer.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files,
    })
}

/// What a checkpoint says beside its weights.
struct Said {
    path: PathBuf,
    trainer: Option<String>,
    epoch: Option<u64>,
    mirror_axes: Option<Vec<usize>>,
    arguments: Value,
}

impl Said {
    fn read(path: &Path) -> Result<Self> {
        let mut values = read_values(path)?;
        ensure!(
            values.contains_key("network_weights"),
            "{}: no checkpoint of an nnU-Net trainer (it has no network_weights); `weights import FILE.pth --preset PRESET` takes other files",
            path.display()
        );
        let mut take = |key: &str| values.remove(key).unwrap_or(Value::Null);
        let axes = take("inference_allowed_mirroring_axes");
        let mirror_axes = match &axes {
            Value::Null => None,
            Value::Array(axes) => Some(
                axes.iter()
                    .map(|a| a.as_u64().map(|a| a as usize))
                    .collect::<Option<Vec<_>>>()
                    .with_context(|| {
                        format!(
                            "{}: inference_allowed_mirroring_axes is {axes:?}, expected axes",
                            path.display()
                        )
                    })?,
            ),
            other => bail!(
                "{}: inference_allowed_mirroring_axes is {other}, expected axes",
                path.display()
            ),
        };
        Ok(Self {
            trainer: take("trainer_name").as_str().map(str::to_owned),
            epoch: take("current_epoch").as_u64(),
            mirror_axes,
            arguments: take("init_args"),
            path: path.to_path_buf(),
        })
    }

    /// The trainer's class: the checkpoint's word, as in nnU-Net, before the folder's name.
    fn trainer(&self, shared: &Shared) -> Result<String> {
        let by_folder = || shared.trained.parts().map(|p| p.trainer);
        self.trainer.clone().or_else(by_folder).with_context(|| {
            format!(
                "{}: it names no trainer, nor does its folder (Trainer__Plans__configuration)",
                self.path.display()
            )
        })
    }

    /// The configuration that was trained.
    fn configuration<'s>(&self, shared: &'s Shared) -> Result<(String, &'s Configuration)> {
        let by_folder = shared.trained.parts().map(|p| p.configuration);
        let by_file = self.arguments["configuration"].as_str().map(str::to_owned);
        if let (Some(folder), Some(file)) = (&by_folder, &by_file) {
            ensure!(
                folder == file,
                "{}: it was trained as `{file}`, but lies in the folder of `{folder}`; put it where it belongs",
                self.path.display()
            );
        }
        let name = by_file.or(by_folder).with_context(|| {
            format!(
                "{}: neither it nor its folder names the configuration (Trainer__Plans__configuration)",
                self.path.display()
            )
        })?;
        let configuration = shared.plan.configuration(&name)?;
        if let Some(previous) = &configuration.previous_stage {
            bail!(
                "`{name}` takes the label maps of `{previous}` as further channels, which prediction here does not give it; import `{previous}` or 3d_fullres"
            );
        }
        let dims = configuration.spatial_dims();
        ensure!(
            self.mirror_axes().iter().all(|a| *a < dims),
            "{}: inference_allowed_mirroring_axes are {:?}, but `{name}` has {dims} axes",
            self.path.display(),
            self.mirror_axes()
        );
        Ok((name, configuration))
    }

    fn mirror_axes(&self) -> Vec<usize> {
        self.mirror_axes.clone().unwrap_or_default()
    }

    /// A checkpoint carries the plans it was trained with: those of another data set are an error, changed ones are told.
    fn check(&self, shared: &Shared, configuration: &str, printer: &Printer) -> Result<()> {
        let own = &self.arguments["plans"];
        for (key, expected) in [
            ("dataset_name", &shared.plan.dataset_name),
            ("plans_name", &shared.plan.plans_name),
        ] {
            if let Some(found) = own[key].as_str().filter(|found| found != expected) {
                bail!(
                    "{}: it was trained with plans whose {key} is `{found}`, but plans.json beside it says `{expected}`; put the plans.json of its training there",
                    self.path.display()
                );
            }
        }
        // older files carry less
        let Ok(own) = Plan::from_json(own.clone()) else {
            return Ok(());
        };
        if own.configurations.get(configuration) != shared.plan.configurations.get(configuration) {
            printer.message(&format!(
                "warning: {}: plans.json describes `{configuration}` otherwise than the plans it was trained with; plans.json counts, as in nnU-Net",
                self.path.display()
            ));
        }
        Ok(())
    }
}

/// The trainer's network with the checkpoint's values. Of a trainer that is not known, the first network that takes every tensor.
fn matching(
    trainer: &str,
    configuration: &Configuration,
    ends: (i64, i64),
    checkpoint: &Checkpoint,
    printer: &Printer,
) -> Result<Built> {
    let families = match known(trainer) {
        Known::Builds(family) => vec![family],
        Known::Foreign(network) => bail!(
            "{trainer} trains a network that does not exist here ({network}); plain and residual-encoder nnU-Net and U-Mamba can be imported"
        ),
        Known::Unknown => vec![Family::Plans, Family::UMambaBot, Family::UMambaEnc],
    };
    let mut first_error = None;
    for family in &families {
        match filled(*family, configuration, ends, checkpoint) {
            Ok(built) => {
                if families.len() > 1 {
                    printer.message(&format!(
                        "{trainer} is not known here; every tensor has its place in the network `{}`, which is taken",
                        preset_of(&built.spec)
                    ));
                }
                return Ok(built);
            }
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    let error = first_error.context("no network was tried")?;
    Err(match families.len() {
        1 => error.context(format!("the weights are not those of {trainer} and plans.json")),
        _ => error.context(format!(
            "{trainer} is not known here, and its weights fit neither the plans' network nor U-Mamba's"
        )),
    })
}

fn filled(
    family: Family,
    configuration: &Configuration,
    ends: (i64, i64),
    checkpoint: &Checkpoint,
) -> Result<Built> {
    let spec = network(family, configuration, ends)
        .map_err(|(field, problem)| anyhow::anyhow!("plans.json, {field}: {problem}"))?;
    let built = build(&spec, Device::Cpu)?;
    import(checkpoint, &built, false)?;
    Ok(built)
}

/// The run's settings: nnU-Net's recipe, and what its files say.
#[allow(clippy::too_many_arguments)]
fn run_config(
    shared: &Shared,
    fold: &Path,
    name: &str,
    configuration: &Configuration,
    network: NetworkSpec,
    preset: String,
    said: &Said,
    origin: &Origin,
) -> RunConfig {
    let mirror_axes = said.mirror_axes();
    let mut augmentation = Augmentation::default();
    augmentation.mirroring.axes = mirror_axes.clone();
    RunConfig {
        versions: BTreeMap::from([
            ("vision-mamba".to_string(), origin.version.clone()),
            (
                "libtorch".to_string(),
                vision_mamba_ops::LIBTORCH_VERSION.to_string(),
            ),
            ("trainer".to_string(), origin.trainer.clone()),
            (
                "imported from".to_string(),
                origin.folder.display().to_string(),
            ),
        ]),
        preset,
        overrides: Vec::new(),
        network,
        pretrained: None,
        dataset: shared.plan.dataset_name.clone(),
        preprocessed: String::new(),
        configuration: name.to_owned(),
        fold: fold_name(fold),
        training_ids: Vec::new(),
        validation_ids: validated(fold, &shared.info.file_ending),
        no_validation: false,
        training: TrainingConfig {
            seed: 0,
            training_patch: configuration.patch_size.clone(),
            batch_size: configuration.batch_size,
            schedule: Schedule {
                kind: ScheduleChoice::Poly,
                base_lr: 0.01,
                warmup_epochs: 0.0,
                epochs: said.epoch.unwrap_or(1000).max(1),
                steps_per_epoch: 250,
                power: poly_power(),
            },
            optimizer: OptimizerConfig {
                kind: OptimizerChoice::Sgd,
                weight_decay: 3e-5,
                momentum: 0.99,
                betas: (0.9, 0.999),
                eps: 1e-8,
                grad_clip: 12.0,
            },
            loss: LossKind::DiceCe,
            dice: match configuration.batch_dice {
                true => DiceOver::Batch,
                false => DiceOver::Sample,
            },
            accumulate: 1,
            precision: Precision::Float32,
            speed: Speed::default(),
            checkpoint_activations: false,
            cuda_graph: false,
            oversample_foreground: 0.33,
            augmentation,
            masked_channels: configuration.masked_channels(),
            mirror_axes,
            validation_steps: 50,
            ema: None,
            save_every: 50,
        },
    }
}

/// The cases that nnU-Net validated the fold on, where it has done so.
fn validated(fold: &Path, ending: &str) -> Vec<String> {
    // nnU-Net writes NaN into this file, which JSON does not have: the names are found by the label maps beside it
    let Ok(entries) = std::fs::read_dir(fold.join("validation")) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|e| e.file_name());
    let mut ids: Vec<String> = names
        .filter_map(|name| Some(name.to_str()?.strip_suffix(ending)?.to_owned()))
        .collect();
    ids.sort();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quoted(Path::new("/a/b__c/fold_0")), "/a/b__c/fold_0");
        assert_eq!(quoted(Path::new("/my runs/it's")), r"'/my runs/it'\''s'");
    }
}
