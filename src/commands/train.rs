//! `train`: settings from options or from the run folder, data prepared, trained, validated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tch::Device;
use vision_mamba_datasets::{
    fold, probabilities, split, write_labels, Augmentation, Configuration, DataError, Dataset,
    Fold, FoldChoice, Folds, Plan, Planner, Split,
};
use vision_mamba_models::weights::{import, load_strict, Checkpoint};
use vision_mamba_models::{build, preset, Built, ModelError, NetworkSpec, Task};

use super::evaluate::overlay_of;
use super::models::parse_overrides;
use crate::cli::args::{
    AugmentChoice, CheckpointChoice, Global, OptimizerChoice, ScheduleChoice, TrainArgs,
};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::config::{RunConfig, TrainingConfig};
use crate::engine::optimizer::OptimizerConfig;
use crate::engine::run_folder::{write_json, RunFolder};
use crate::engine::schedule::{poly_power, Schedule};
use crate::engine::segmentation::Segmentation;
use crate::engine::task::Course;
use crate::engine::train::Trainer;
use crate::inference::input::label_ending;
use crate::inference::volume::{segment, Member, PredictOptions};
use crate::losses::DiceOver;
use crate::metrics::overlap::counts;
use crate::metrics::protocol::Convention;
use crate::metrics::summary::{summarise, voxel_ml, Scored};
use crate::precision::Precision;
use crate::runtime::{self, StopFlag};
use crate::speed::Speed;

/// A start from other weights takes at least one in so many of the network's tensors.
const LEAST_LOADED: usize = 5;

/// Trains a run and validates it on whole images.
pub fn run(args: &TrainArgs, global: &Global, printer: &Printer) -> Result<()> {
    match task(args)? {
        Task::Restoration => super::train_restoration::run(args, global, printer),
        _ => segmentation(args, global, printer),
    }
}

/// What the run is for: its preset or the run folder tells.
pub fn task(args: &TrainArgs) -> Result<Task> {
    if args.resume || args.validate_only {
        return Ok(RunFolder::open(&args.out)?.network()?.task());
    }
    let name = model(args)?;
    let spec = preset(name).map_err(|error| Misuse::error(error.to_string()))?;
    Ok(spec.task())
}

fn segmentation(args: &TrainArgs, global: &Global, printer: &Printer) -> Result<()> {
    let device = global.device.resolve()?;
    runtime::prepare(global.threads, device, printer);
    let dataset = super::datasets::open(&args.dataset, printer)?;
    let (folder, config, plan) = if args.resume || args.validate_only {
        reopen(args)?
    } else {
        start(args, global, &dataset, printer)?
    };

    // The one seed that initialisation depends on; a resumed run overwrites the weights it makes.
    tch::manual_seed(config.training.seed as i64);
    config.training.speed.prepare(device)?;
    let built = build(&config.network, device)?;
    config.training.speed.arrange(&built.params)?;
    if args.validate_only {
        let stop = StopFlag::listen("case", printer)?;
        let which = Some(args.val_with.unwrap_or(CheckpointChoice::Final));
        load_strict(&folder.pick_checkpoint(which)?, &built.params)?;
        return validate(
            &folder, config, plan, built, device, &dataset, args, &stop, printer,
        );
    }
    // once there is a state, it holds what became of them
    if let Some(file) = config
        .pretrained
        .as_ref()
        .filter(|_| !folder.state().exists())
    {
        start_from(Path::new(file), &built, printer)?;
    }
    printer.message(&format!(
        "{} with {} parameters on {device:?} in {}: {} training and {} validation case(s), patch {:?}, batch {}",
        config.preset,
        built.params.num_parameters(),
        config.training.precision.name_on(device),
        config.training_ids.len(),
        config.validation_ids.len(),
        config.training.training_patch,
        config.training.batch_size
    ));
    let configuration = plan.configuration(&config.configuration)?;
    let preprocessed = Path::new(&config.preprocessed).to_path_buf();
    let mut ids = config.training_ids.clone();
    ids.extend(config.validation_ids.iter().cloned());
    ids.sort();
    ids.dedup();
    let cache = super::plan::fill(
        &preprocessed,
        &dataset,
        &ids,
        &plan,
        (&config.configuration, configuration),
        super::plan::threads(global),
        printer,
    )?;
    let training = cache.open(&config.training_ids)?;
    let validation = cache.open(&config.validation_ids)?;
    let stop = StopFlag::listen("step", printer)?;
    Trainer {
        task: &Segmentation {
            config: &config.training,
            info: &dataset.info,
            training: Arc::new(training),
            validation: &validation,
            device,
        },
        course: &config.training.course(),
        folder: &folder,
        built: &built,
        preset: &config.preset,
        dataset: &config.dataset,
        workers: workers(args),
        device,
        profile: args.profile,
        stop: &stop,
        printer,
    }
    .run(args.resume)?;
    if !(args.no_validation || config.no_validation) {
        if let Some(which) = args.val_with {
            load_strict(&folder.pick_checkpoint(Some(which))?, &built.params)?;
        }
        validate(
            &folder, config, plan, built, device, &dataset, args, &stop, printer,
        )?;
    }
    if preprocessed == own_folder(&folder) {
        // made for this run alone, and it is over
        std::fs::remove_dir_all(&preprocessed)
            .with_context(|| format!("cannot remove {}", preprocessed.display()))?;
    }
    Ok(())
}

/// Where a run keeps its preprocessed cases when the data set has none.
fn own_folder(folder: &RunFolder) -> PathBuf {
    let root = folder.root();
    // as config.json has it, wherever the program was started
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    root.join("preprocessed")
}

/// The plan, and where its preprocessed cases are or are to be: those that `plan` made, or the run's own.
fn find_plan(
    args: &TrainArgs,
    global: &Global,
    dataset: &Dataset,
    folder: &RunFolder,
    printer: &Printer,
) -> Result<(Plan, PathBuf)> {
    let planned = args
        .preprocessed
        .clone()
        .or_else(|| Some(super::plan::default_folder(&args.dataset)))
        .filter(|f| super::plan::plans_file(f).is_file());
    if let Some(planned) = planned {
        let plan = Plan::read(&super::plan::plans_file(&planned))?;
        return Ok((plan, std::fs::canonicalize(&planned)?));
    }
    if let Some(folder) = &args.preprocessed {
        return Err(Misuse::error(format!(
            "--preprocessed {}: it holds no plans.json; make it with `vision-mamba plan {} --out {0}`",
            folder.display(),
            args.dataset.display()
        )));
    }
    let fingerprint = super::plan::fingerprint(dataset, super::plan::threads(global), printer)?;
    let plan = super::plan::from_fingerprint(dataset, &fingerprint, Planner::Default, None, None);
    Ok((plan, own_folder(folder)))
}

/// Takes over what fits of a checkpoint; one of which next to nothing fits is another network's.
pub(super) fn start_from(file: &Path, built: &Built, printer: &Printer) -> Result<()> {
    let outcome = import(&Checkpoint::open(file)?, built, true)?;
    let all = outcome.loaded.len() + outcome.missing.len() + outcome.misshaped.len();
    if outcome.loaded.len() * LEAST_LOADED < all {
        return Err(Misuse::error(format!(
            "--pretrained {}: only {} of the network's {all} tensors are in it; is it another network's? `vision-mamba weights inspect` \
             lists what it holds",
            file.display(),
            outcome.loaded.len()
        )));
    }
    printer.message(&format!(
        "starting from {}: {} of {all} tensors",
        file.display(),
        outcome.loaded.len()
    ));
    super::weights::tell(&outcome, printer);
    Ok(())
}

pub(super) fn workers(args: &TrainArgs) -> usize {
    args.workers.map_or_else(
        || (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 8),
        |n| n as usize,
    )
}

fn reopen(args: &TrainArgs) -> Result<(RunFolder, RunConfig, Plan)> {
    let folder = RunFolder::open(&args.out)?;
    folder.sweep()?;
    let config: RunConfig = RunFolder::read_json(&folder.config())?;
    if let Some(model) = args.model.as_ref().filter(|m| **m != config.preset) {
        return Err(Misuse::error(format!(
            "--resume goes on with '{}', not with --model {model}; choose another --out for a new run",
            config.preset
        )));
    }
    if args.resume && config.training_ids.is_empty() {
        return Err(Misuse::error(format!(
            "{} was imported: it knows neither its training cases nor the state of its optimizer, and cannot be resumed; begin a new run \
             with its weights by --pretrained {}",
            args.out.display(),
            folder.pick_checkpoint(None)?.display()
        )));
    }
    let plan = Plan::read(&folder.plans())?;
    Ok((folder, config, plan))
}

/// Checks the options, decides what is open, and writes the run folder's first files.
fn start(
    args: &TrainArgs,
    global: &Global,
    dataset: &Dataset,
    printer: &Printer,
) -> Result<(RunFolder, RunConfig, Plan)> {
    check(args)?;
    let (name, overrides, spec) = network(args)?;
    if spec.task() != Task::Segmentation {
        return Err(Misuse::error(format!(
            "--model {name} is for {}, which is not trained here, and {} is a segmentation data set; `vision-mamba models list` names the networks \
             for segmentation",
            spec.task(),
            dataset.root.display()
        )));
    }
    let pretrained = pretrained(args)?;
    // An existing run is refused before any work is done.
    let folder = RunFolder::create(&args.out)?;
    let (plan, preprocessed) = find_plan(args, global, dataset, &folder, printer)?;
    let configuration_name = configuration_name(args, &plan, &spec)?;
    let configuration = &plan.configurations[&configuration_name];
    let (network, training_patch) = fit_network(args, &spec, dataset, configuration)?;
    let choice: FoldChoice = args
        .fold
        .parse()
        .map_err(|e: DataError| Misuse::error(e.to_string()))?;
    let ids = choose_fold(dataset, choice, &preprocessed, &folder, printer)?;
    let mirror_axes = mirror_axes(args, configuration.spatial_dims())?;
    let config = RunConfig {
        versions: versions(),
        preset: name,
        overrides,
        network,
        pretrained,
        dataset: std::fs::canonicalize(&args.dataset)?.display().to_string(),
        preprocessed: preprocessed.display().to_string(),
        configuration: configuration_name,
        fold: args.fold.clone(),
        training_ids: ids.train,
        validation_ids: ids.validation,
        no_validation: args.no_validation,
        training: training_config(args, global, configuration, training_patch, mirror_axes)?,
    };
    plan.write(&folder.plans())?;
    write_json(&folder.dataset(), &dataset.info)?;
    write_json(&folder.config(), &config)?;
    Ok((folder, config, plan))
}

fn model(args: &TrainArgs) -> Result<&str> {
    let missing = || Misuse::error("--model is missing; see `vision-mamba models list`");
    args.model.as_deref().ok_or_else(missing)
}

/// The preset's name, its overrides, and the network that they make.
#[allow(clippy::type_complexity)]
pub(super) fn network(args: &TrainArgs) -> Result<(String, Vec<(String, String)>, NetworkSpec)> {
    let name = model(args)?.to_string();
    let overrides = parse_overrides(&args.set)?;
    let spec = preset(&name)
        .and_then(|spec| spec.with_overrides(&overrides))
        .map_err(|error| Misuse::error(error.to_string()))?;
    Ok((name, overrides, spec))
}

/// The file of `--pretrained`, made absolute, if it can be read.
pub(super) fn pretrained(args: &TrainArgs) -> Result<Option<String>> {
    let Some(file) = &args.pretrained else {
        return Ok(None);
    };
    Checkpoint::open(file)?;
    Ok(Some(std::fs::canonicalize(file)?.display().to_string()))
}

/// What the run is started with.
pub(super) fn versions() -> BTreeMap<String, String> {
    let ours = env!("CARGO_PKG_VERSION").to_string();
    let libtorch = vision_mamba_ops::LIBTORCH_VERSION.to_string();
    BTreeMap::from([
        ("vision-mamba".to_string(), ours),
        ("libtorch".to_string(), libtorch),
    ])
}

/// What the loop needs, out of the options and of what a task leaves open.
pub(super) fn course(
    args: &TrainArgs,
    global: &Global,
    batch_size: usize,
    usual: (OptimizerChoice, f64),
) -> Course {
    let (optimizer, grad_clip) = usual;
    let optimizer = args.optimizer.unwrap_or(optimizer);
    let sgd = optimizer == OptimizerChoice::Sgd;
    Course {
        seed: global.seed,
        batch_size: args.batch_size.map_or(batch_size, |n| n as usize),
        schedule: Schedule {
            kind: args.schedule.unwrap_or(if sgd {
                ScheduleChoice::Poly
            } else {
                ScheduleChoice::Cosine
            }),
            base_lr: args.lr.unwrap_or(if sgd { 0.01 } else { 0.001 }),
            warmup_epochs: args
                .warmup
                .unwrap_or(if sgd { 0.0 } else { args.epochs as f64 / 20.0 }),
            epochs: args.epochs,
            steps_per_epoch: args.steps_per_epoch,
            power: poly_power(),
        },
        optimizer: OptimizerConfig {
            kind: optimizer,
            weight_decay: args.weight_decay.unwrap_or(if sgd { 3e-5 } else { 0.01 }),
            momentum: 0.99,
            betas: (0.9, 0.999),
            eps: 1e-8,
            grad_clip: args.grad_clip.unwrap_or(grad_clip),
        },
        accumulate: args.accumulate,
        precision: args.precision,
        speed: args.speed,
        checkpoint_activations: args.checkpoint_activations,
        cuda_graph: args.cuda_graph,
        ema: args.ema,
        save_every: args.save_every,
    }
}

/// The cases of a fold. The folds are written into the run folder and beside the preprocessed cases, where they lack, so that other runs and
/// nnU-Net train on the same.
fn choose_fold(
    dataset: &Dataset,
    choice: FoldChoice,
    preprocessed: &Path,
    folder: &RunFolder,
    printer: &Printer,
) -> Result<Fold> {
    let misuse = |e: DataError| match e {
        DataError::Setting { .. } => Misuse::error(e.to_string()),
        e => e.into(),
    };
    if choice == FoldChoice::All {
        return fold(dataset, choice).map_err(misuse);
    }
    let folds = Folds::of(dataset, Some(preprocessed)).map_err(misuse)?;
    let chosen = folds
        .choose(choice, &dataset.training_ids())
        .map_err(misuse)?;
    if let Some(message) = folds.message() {
        printer.message(&message);
    }
    folds.write(&folder.root().join(split::FILE))?;
    let beside = preprocessed.join(split::FILE);
    if preprocessed != own_folder(folder) && !beside.exists() {
        if let Err(error) = folds.write(&beside) {
            printer.warning(&error.to_string());
        }
    }
    Ok(chosen)
}

pub(super) fn check(args: &TrainArgs) -> Result<()> {
    let positive = |option: &str, value: Option<f64>| match value {
        Some(v) if !(v.is_finite() && v > 0.0) => Err(Misuse::error(format!(
            "{option} {v}: must be a positive number"
        ))),
        _ => Ok(()),
    };
    positive("--lr", args.lr)?;
    positive("--grad-clip", args.grad_clip)?;
    if let Some(decay) = args.ema.filter(|v| !(0.0..1.0).contains(v)) {
        return Err(Misuse::error(format!(
            "--ema {decay}: must be zero or more and below 1, as 0.999"
        )));
    }
    for (option, value) in [
        ("--weight-decay", args.weight_decay),
        ("--warmup", args.warmup),
    ] {
        if value.is_some_and(|v| !(v.is_finite() && v >= 0.0)) {
            return Err(Misuse::error(format!("{option}: must be zero or more")));
        }
    }
    if !(0.0..=1.0).contains(&args.oversample_foreground) {
        return Err(Misuse::error(
            "--oversample-foreground: must lie between 0 and 1",
        ));
    }
    Ok(())
}

fn configuration_name(args: &TrainArgs, plan: &Plan, spec: &NetworkSpec) -> Result<String> {
    let wanted = match (&args.configuration, spec.spatial_dims()) {
        (Some(name), _) => name.clone(),
        (None, 3) => "3d_fullres".to_string(),
        (None, _) => "2d".to_string(),
    };
    match plan.configurations.get(&wanted) {
        None => Err(Misuse::error(format!(
            "this data set's plan has no configuration '{wanted}'; use one of: {}",
            plan.configurations.keys().cloned().collect::<Vec<_>>().join(", ")
        ))),
        Some(c) if spec.spatial_dims() != c.spatial_dims() => Err(Misuse::error(format!(
            "the network works in {}-D but configuration '{wanted}' is {}-D; choose another --model or --configuration",
            spec.spatial_dims(),
            c.spatial_dims()
        ))),
        Some(c) if c.previous_stage.is_some() => Err(Misuse::error(format!(
            "configuration '{wanted}' refines the predictions of '{}', which is not trained here; choose 3d_fullres or 3d_lowres",
            c.previous_stage.as_deref().unwrap_or_default()
        ))),
        Some(_) => Ok(wanted),
    }
}

/// Fills the network's data-dependent sizes. Its depth may follow from the patch and the patch must be divisible by its
/// strides, so the patch is rounded once the strides are known.
fn fit_network(
    args: &TrainArgs,
    spec: &NetworkSpec,
    dataset: &Dataset,
    configuration: &Configuration,
) -> Result<(NetworkSpec, Vec<usize>)> {
    let dims = configuration.spatial_dims();
    let asked = args.patch_size.as_ref().map(|s| s.0.clone());
    if let Some(size) = asked.as_ref().filter(|s| s.len() != dims) {
        return Err(Misuse::error(format!(
            "--patch-size has {} axes, the configuration {dims}",
            size.len()
        )));
    }
    let misuse = |e: ModelError| Misuse::error(e.to_string());
    let fill = |patch: &[usize]| -> Result<NetworkSpec> {
        let patch: Vec<i64> = patch.iter().map(|&n| n as i64).collect();
        let info = &dataset.info;
        let (channels, classes) = (info.channel_names.len() as i64, info.outputs() as i64);
        spec.for_spaced_data(channels, classes, &patch, Some(&configuration.spacing))
            .map_err(misuse)
    };
    let first = fill(asked.as_deref().unwrap_or(&configuration.patch_size))?;
    let divisor: Vec<usize> = build(&first, Device::Cpu)
        .map_err(misuse)?
        .net
        .divisor()
        .iter()
        .map(|&n| n as usize)
        .collect();
    let patch = match asked {
        Some(size) => {
            if let Some(axis) = (0..dims).find(|&i| size[i] % divisor[i] != 0) {
                return Err(Misuse::error(format!(
                    "--patch-size: {} along axis {axis} is not divisible by {}, which this network needs",
                    size[axis], divisor[axis]
                )));
            }
            size
        }
        None => configuration.training_patch_for(&divisor),
    };
    Ok((fill(&patch)?, patch))
}

fn mirror_axes(args: &TrainArgs, dims: usize) -> Result<Vec<usize>> {
    match args.mirror.as_deref() {
        None => Ok((0..dims).collect()),
        Some("none" | "") => Ok(Vec::new()),
        Some(text) => text
            .split(',')
            .map(|axis| match axis.trim().parse::<usize>() {
                Ok(axis) if axis < dims => Ok(axis),
                _ => Err(Misuse::error(format!(
                    "--mirror {text}: expected axes from 0 to {} joined by commas, or none",
                    dims - 1
                ))),
            })
            .collect(),
    }
}

fn training_config(
    args: &TrainArgs,
    global: &Global,
    configuration: &Configuration,
    training_patch: Vec<usize>,
    mirror_axes: Vec<usize>,
) -> Result<TrainingConfig> {
    let course = course(
        args,
        global,
        configuration.batch_size,
        (OptimizerChoice::Sgd, 12.0),
    );
    let mut augmentation = match args.augment {
        AugmentChoice::Default => Augmentation::default(),
        AugmentChoice::None => Augmentation::none(),
    };
    augmentation.mirroring.axes = match args.augment {
        AugmentChoice::Default => mirror_axes.clone(),
        AugmentChoice::None => Vec::new(),
    };
    Ok(TrainingConfig {
        seed: course.seed,
        training_patch,
        batch_size: course.batch_size,
        schedule: course.schedule,
        optimizer: course.optimizer,
        loss: args.loss,
        dice: match configuration.batch_dice {
            true => DiceOver::Batch,
            false => DiceOver::Sample,
        },
        accumulate: course.accumulate,
        precision: course.precision,
        speed: course.speed,
        checkpoint_activations: course.checkpoint_activations,
        cuda_graph: course.cuda_graph,
        oversample_foreground: args.oversample_foreground,
        augmentation,
        masked_channels: configuration.masked_channels(),
        mirror_axes,
        validation_steps: args.validation_steps,
        ema: course.ema,
        save_every: course.save_every,
    })
}

/// Predicts every validation case whole, writes label maps, overlays and `summary.json`, and prints the table.
#[allow(clippy::too_many_arguments)]
fn validate(
    folder: &RunFolder,
    config: RunConfig,
    plan: Plan,
    built: Built,
    device: Device,
    dataset: &Dataset,
    args: &TrainArgs,
    stop: &StopFlag,
    printer: &Printer,
) -> Result<()> {
    let ids = config.validation_ids.clone();
    let out = folder.validation();
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let classes = dataset.info.foreground();
    let labels: Vec<(String, i16)> = dataset
        .info
        .labels
        .iter()
        .filter(|(_, v)| *v != 0)
        .cloned()
        .collect();
    let values: Vec<Vec<i16>> = classes.iter().map(|c| c.1.clone()).collect();
    let ending = label_ending(&dataset.info.file_ending);
    let members = [Member::new(
        config,
        plan,
        dataset.info.clone(),
        built,
        device,
    )];
    let options = PredictOptions {
        tile_step: 0.5,
        mirroring: true,
        probabilities: args.save_probabilities,
        precision: Precision::Float32,
        speed: Speed::default(),
    };
    let mut bar = Progress::new(printer, "validating", ids.len() as u64);
    let mut cases = Vec::new();
    for id in &ids {
        if stop.is_set() {
            bar.finish();
            printer.message(
                "stopped during validation; the weights are complete, --resume validates again",
            );
            return Err(Interrupted.into());
        }
        let (image, mut reference) = dataset.load_case(id, Split::Training)?;
        if let Some(ignore) = dataset.info.ignore_label {
            reference
                .data
                .mapv_inplace(|v| if v == ignore { -1 } else { v });
        }
        let predicted = segment(&members, &image, &options, &mut || Ok(()))?;
        let prediction = predicted.labels;
        let target = out.join(format!("{id}{ending}"));
        if let Some(values) = &predicted.probabilities {
            probabilities::write(&probabilities::beside(&target), values)?;
        }
        write_labels(&target, &prediction)?;
        let picture = overlay_of(
            &image.data,
            Some(&reference.data),
            &prediction.data,
            &labels,
            id,
        )?;
        crate::report::save_png(&out.join(format!("{id}_overlay.png")), &picture)?;
        cases.push(Scored {
            prediction: target.display().to_string(),
            reference: dataset
                .label_path(id, Split::Training)?
                .display()
                .to_string(),
            counts: counts(&prediction.data, &reference.data, &values, None),
            distances: Vec::new(),
            voxel_ml: voxel_ml(&image.geometry.spacing),
        });
        bar.step(|| id.clone());
    }
    bar.finish();
    let summary = summarise(&cases, &classes, Convention::Nnunet, None);
    write_json(&out.join("summary.json"), &summary)?;
    printer.data(&summary.table());
    printer.message(&format!(
        "run folder: {} (see progress.png and validation/)",
        folder.root().display()
    ));
    Ok(())
}
