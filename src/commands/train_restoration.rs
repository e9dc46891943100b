//! `train` with a network for restoration: pictures in pairs, or clear ones on which haze is drawn.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{bail, Context, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::Value;
use vision_mamba_datasets::restoration::pairs::{Pair, Pairing};
use vision_mamba_datasets::restoration::pictures::PairedPictures;
use vision_mamba_datasets::restoration::sampler::{draw_whole, CropSettings};
use vision_mamba_models::weights::load_strict;
use vision_mamba_models::{build, NetworkSpec};

use super::evaluate_restoration::{means, measures, summary, table};
use super::train::{check, course, network, pretrained, start_from, versions, workers};
use crate::cli::args::{CheckpointChoice, Global, OptimizerChoice, RestorationArgs, TrainArgs};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::dehaze::clearing::Clearing;
use crate::dehaze::network::Dehazer;
use crate::engine::restoration::{Restoration, RestorationConfig};
use crate::engine::run_folder::{write_json, RunFolder};
use crate::engine::train::Trainer;
use crate::losses::image::ImageLoss;
use crate::photo::Photo;
use crate::runtime::{self, StopFlag};

/// The part of the free memory that decoded pictures may fill; the others are read whenever they are drawn.
const PICTURES_PART: u64 = 4;
/// What a gradient may be as long as. Pictures in [0, 1] have shorter ones than labels.
const GRAD_CLIP: f64 = 1.0;

/// Trains a run and validates it on whole pictures.
pub fn run(args: &TrainArgs, global: &Global, printer: &Printer) -> Result<()> {
    let device = global.device.resolve()?;
    runtime::prepare(global.threads, device, printer);
    let found = Pairing::find(&args.dataset)?.complete()?;
    if !found.without_reference.is_empty() {
        printer.message(&format!(
            "{} hazy picture(s) without a clear one take no part, the first is {}",
            found.without_reference.len(),
            found.without_reference[0].display()
        ));
    }
    let (folder, config) = match args.resume || args.validate_only {
        true => reopen(args)?,
        false => start(args, global, &found)?,
    };
    let named: BTreeMap<&str, &Pair> = found.pairs.iter().map(|p| (&*p.id, p)).collect();
    let threads = super::plan::threads(global);
    let mut memory = (runtime::free_memory() / PICTURES_PART) as usize;
    let mut open = |ids: &[String]| -> Result<PairedPictures> {
        let pairs = ids.iter().map(|id| named.get(&**id).map(|p| (*p).clone()));
        let pairs: Option<Vec<Pair>> = pairs.collect();
        let pairs = pairs.with_context(|| {
            let lacks = ids.iter().find(|id| !named.contains_key(&***id));
            let lacks = lacks.map_or("", |id| id);
            format!(
                "{} no longer holds the pair '{lacks}', which the run was started with; put it back or start another run",
                args.dataset.display()
            )
        })?;
        let pictures = PairedPictures::open(pairs, memory, threads)?;
        memory = memory.saturating_sub(pictures.bytes());
        Ok(pictures)
    };

    // The one seed that initialisation depends on; a resumed run overwrites the weights it makes.
    tch::manual_seed(config.training.seed as i64);
    config.training.speed.prepare(device)?;
    let built = build(&config.network, device)?;
    config.training.speed.arrange(&built.params)?;
    let validation = match config.validation_ids.is_empty() {
        true => None,
        false => Some(open(&config.validation_ids)?),
    };
    if args.validate_only {
        let stop = StopFlag::listen("picture", printer)?;
        let which = args.val_with.unwrap_or(CheckpointChoice::Final);
        load_strict(&folder.pick_checkpoint(Some(which))?, &built.params)?;
        let dehazer = Dehazer::of_built(built, device);
        return validate(
            &folder,
            &config,
            validation.as_ref(),
            dehazer,
            &stop,
            printer,
        );
    }
    let training = Arc::new(open(&config.training_ids)?);
    // once there is a state, it holds what became of them
    if let Some(file) = config
        .pretrained
        .as_ref()
        .filter(|_| !folder.state().exists())
    {
        start_from(Path::new(file), &built, printer)?;
    }
    // not before everything could be read, so that the same command may be given again
    if !args.resume {
        write_json(&folder.config(), &config)?;
    }
    let drawn = training.pairs().iter().filter(|p| p.hazy.is_none()).count();
    printer.message(&format!(
        "{} with {} parameters on {device:?} in {}: {} training pair(s), {drawn} of them clear alone, and {} for validation; crops of {:?}, batch {}",
        config.preset,
        built.params.num_parameters(),
        config.training.precision.name_on(device),
        config.training_ids.len(),
        config.validation_ids.len(),
        config.crops.crop,
        config.training.batch_size
    ));
    let stop = StopFlag::listen("step", printer)?;
    Trainer {
        task: &Restoration {
            config: &config,
            training,
            validation: validation.as_ref(),
            device,
        },
        course: &config.training,
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
    if args.no_validation || config.no_validation {
        return Ok(());
    }
    if let Some(which) = args.val_with {
        load_strict(&folder.pick_checkpoint(Some(which))?, &built.params)?;
    }
    let dehazer = Dehazer::of_built(built, device);
    validate(
        &folder,
        &config,
        validation.as_ref(),
        dehazer,
        &stop,
        printer,
    )
}

fn reopen(args: &TrainArgs) -> Result<(RunFolder, RestorationConfig)> {
    let folder = RunFolder::open(&args.out)?;
    folder.sweep()?;
    let config: RestorationConfig = RunFolder::read_json(&folder.config())?;
    if let Some(model) = args.model.as_ref().filter(|m| **m != config.preset) {
        return Err(Misuse::error(format!(
            "--resume goes on with '{}', not with --model {model}; choose another --out for a new run",
            config.preset
        )));
    }
    Ok((folder, config))
}

/// Checks the options, decides what is open, and makes the run folder.
fn start(
    args: &TrainArgs,
    global: &Global,
    found: &Pairing,
) -> Result<(RunFolder, RestorationConfig)> {
    check(args)?;
    let (preset, overrides, spec) = network(args)?;
    let (inputs, outputs) = (spec.in_channels(), spec.num_classes());
    if (inputs, outputs) != (3, 3) {
        return Err(Misuse::error(format!(
            "--model {preset} makes {outputs} channels of {inputs}, but pictures are trained on in 3 of 3"
        )));
    }
    let training = course(args, global, 8, (OptimizerChoice::Adamw, GRAD_CLIP));
    let crops = crops(args, &spec)?;
    let mut config = RestorationConfig {
        versions: versions(),
        preset,
        overrides,
        network: spec,
        pretrained: pretrained(args)?,
        dataset: std::fs::canonicalize(&args.dataset)?.display().to_string(),
        no_validation: args.no_validation,
        training_ids: Vec::new(),
        validation_ids: Vec::new(),
        validation_pictures: args.validation_steps as usize * training.batch_size,
        crops,
        loss: loss(&args.restoration)?,
        training,
    };
    let checked = config.crops().validate();
    checked.map_err(|e| Misuse::error(e.to_string()))?;
    let ids = |pairs: &[Pair]| pairs.iter().map(|p| p.id.clone()).collect();
    match args.fold.as_str() {
        "all" => config.training_ids = ids(&found.pairs),
        "0" => {
            let share = args.restoration.validation_share;
            let split = found.split(share, global.seed);
            let split = split.map_err(|e| Misuse::error(e.to_string()))?;
            config.training_ids = ids(&split.train);
            config.validation_ids = ids(&split.validation);
        }
        other => {
            return Err(Misuse::error(format!(
                "--fold {other}: pictures have no folds; give `all` to train on everything, or --validation-share and --seed for another split"
            )))
        }
    }
    Ok((RunFolder::create(&args.out)?, config))
}

fn loss(args: &RestorationArgs) -> Result<ImageLoss> {
    for (option, weight) in [
        ("--squared-loss", args.squared_loss),
        ("--frequency-loss", args.frequency_loss),
        ("--ssim-loss", args.ssim_loss),
    ] {
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(Misuse::error(format!(
                "{option} {weight}: must be zero or more"
            )));
        }
    }
    Ok(ImageLoss {
        pixel: args.pixel_loss,
        squared: args.squared_loss,
        frequency: args.frequency_loss,
        ssim: args.ssim_loss,
    })
}

fn crops(args: &TrainArgs, spec: &NetworkSpec) -> Result<CropSettings> {
    let mut settings = CropSettings::default();
    if let Some(size) = &args.patch_size {
        settings.crop = size.0[..].try_into().map_err(|_| {
            Misuse::error(format!(
                "--patch-size has {} axes, pictures have 2",
                size.0.len()
            ))
        })?;
    }
    let divisor = build(spec, tch::Device::Cpu)
        .map_err(|e| Misuse::error(e.to_string()))?
        .net
        .divisor();
    for (axis, (side, by)) in settings.crop.iter().zip(divisor).enumerate() {
        if side % by as usize != 0 {
            return Err(Misuse::error(format!(
                "--patch-size: {side} along axis {axis} is not divisible by {by}, which this network needs"
            )));
        }
    }
    settings.haze = overridden("--haze", &settings.haze, &args.restoration.haze)?;
    // these have options of their own
    let own = |pair: &&String| ["crop=", "haze"].iter().any(|own| pair.starts_with(own));
    if let Some(pair) = args.restoration.crops.iter().find(own) {
        return Err(Misuse::error(format!(
            "--crops {pair}: is said by --patch-size or --haze"
        )));
    }
    overridden("--crops", &settings, &args.restoration.crops)
}

/// Settings with some keys replaced, as KEY=VALUE with dots between the names of keys within keys.
fn overridden<T: Serialize + DeserializeOwned>(
    option: &str,
    settings: &T,
    overrides: &[String],
) -> Result<T> {
    let mut tree = serde_json::to_value(settings)?;
    for pair in overrides {
        let wrong = |why: &str| Misuse::error(format!("{option} {pair}: {why}"));
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong("expected KEY=VALUE"))?;
        let value: Value = serde_json::from_str(value.trim())
            .map_err(|_| wrong("expected a number, or a range as [low,high]"))?;
        let mut at = &mut tree;
        for part in key.trim().split('.') {
            let known = match at.as_object() {
                Some(fields) => fields.keys().cloned().collect::<Vec<_>>().join(", "),
                None => String::new(),
            };
            at = at
                .get_mut(part)
                .ok_or_else(|| wrong(&format!("no such key; known are {known}")))?;
        }
        *at = value;
        serde_json::from_value::<T>(tree.clone()).map_err(|e| wrong(&e.to_string()))?;
    }
    Ok(serde_json::from_value(tree)?)
}

/// Restores every validation picture whole, writes the pictures and `summary.json`, and prints the table.
fn validate(
    folder: &RunFolder,
    config: &RestorationConfig,
    pictures: Option<&PairedPictures>,
    dehazer: Dehazer,
    stop: &StopFlag,
    printer: &Printer,
) -> Result<()> {
    let Some(pictures) = pictures else {
        printer.message(&format!(
            "run folder: {} (nothing held out to validate on)",
            folder.root().display()
        ));
        return Ok(());
    };
    let out = folder.validation();
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let crops = config.crops();
    let mut clearing = Clearing::new(dehazer)?;
    let count = pictures.pairs().len();
    let mut bar = Progress::new(printer, "validating", count as u64);
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for n in 0..count {
        if stop.is_set() {
            bar.finish();
            printer.message("stopped during validation; the weights are complete, --validate-only does it again");
            return Err(Interrupted.into());
        }
        let pair = draw_whole(pictures, &crops, n, u32::MAX)?;
        let name = pair.ids[0].replace('/', "_");
        let [_, _, height, width] = pair.shape;
        let photo = |planes: &[f32]| {
            let byte = |i: usize| (planes[i].clamp(0.0, 1.0) * 255.0).round() as u8;
            let size = width * height;
            image::RgbImage::from_fn(width as u32, height as u32, |x, y| {
                let at = y as usize * width + x as usize;
                image::Rgb([byte(at), byte(at + size), byte(at + 2 * size)])
            })
        };
        let memory = runtime::free_memory() / 2;
        let hazy = Photo::of_rgb8(photo(&pair.hazy));
        let restored = clearing
            .clear(&hazy, memory, None, stop, printer)?
            .thumbnail(usize::MAX);
        crate::report::save_png(&out.join(format!("{name}.png")), &restored)?;
        match measures(&restored, &photo(&pair.clear), 0) {
            Ok(values) => rows.push((name.clone(), values)),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
        bar.step(|| name);
    }
    bar.finish();
    if !rows.is_empty() {
        let means = means(&rows);
        write_json(&out.join("summary.json"), &summary(0, &rows, &means))?;
        printer.data(&table(0, &rows, &means));
    }
    printer.message(&format!(
        "run folder: {} (see progress.png and validation/)",
        folder.root().display()
    ));
    if let Some(first) = failures.first() {
        bail!("{} picture(s) not scored: {first}", failures.len());
    }
    Ok(())
}
