//! The training loop: steps, validation, log, checkpoints; interrupted at any step and resumed to the same weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use tch::Device;
use vision_mamba_datasets::{DatasetJson, PatchSettings, Prefetch, TrainingCase};
use vision_mamba_models::{weights, Built};

use super::batch::TensorBatch;
use super::config::RunConfig;
use super::optimizer::{trained, Optimizer, Step};
use super::run_folder::{EpochLog, RunFolder};
use super::state::{self, Progress};
use super::tensorboard::Events;
use super::validation::on_patches;
use crate::cli::args::CheckpointChoice;
use crate::cli::exit::Interrupted;
use crate::cli::printer::Printer;
use crate::cli::progress::{duration, Progress as Bar};
use crate::report::plots::{progress_png, EpochRow};
use crate::runtime::StopFlag;

/// After so many skipped steps in a row the run has diverged, and going on would only waste time.
const MOST_SKIPPED_IN_A_ROW: u64 = 100;

/// What a run works with.
pub struct Trainer<'a> {
    /// Its settings.
    pub config: &'a RunConfig,
    /// Where it writes.
    pub folder: &'a RunFolder,
    /// The network.
    pub built: &'a Built,
    /// Where it computes.
    pub device: Device,
    /// The data set's labels.
    pub info: &'a DatasetJson,
    /// Threads that prepare patches.
    pub workers: usize,
    /// Asked between steps.
    pub stop: &'a StopFlag,
    /// Says what happens.
    pub printer: &'a Printer,
}

impl Trainer<'_> {
    /// Trains to the end, from the beginning or from the folder's state.
    pub fn run(
        &self,
        training: Arc<Vec<TrainingCase>>,
        validation: &[TrainingCase],
        resume: bool,
    ) -> Result<()> {
        let settings = &self.config.training;
        let schedule = &settings.schedule;
        let mut optimizer = Optimizer::new(settings.optimizer.clone(), trained(&self.built.params));
        let mut progress = Progress::default();
        let mut log = Vec::new();
        if resume && self.folder.state().is_file() {
            progress = state::load(&self.folder.state(), &self.built.params, &mut optimizer)?;
            log = self.folder.read_log()?;
            log.truncate((progress.step / schedule.steps_per_epoch) as usize);
            self.printer.message(&format!(
                "resuming at step {} of {}",
                progress.step,
                schedule.epochs * schedule.steps_per_epoch
            ));
        }
        let classes = self.info.foreground().into_iter().map(|f| f.0).collect();
        let mut events = Events::begin(&self.folder.tensorboard(), classes, &log)?;
        let total = schedule.epochs * schedule.steps_per_epoch;
        let patches = PatchSettings {
            training_patch: settings.training_patch.clone(),
            batch_size: settings.batch_size,
            oversample_foreground: settings.oversample_foreground,
            augment: settings.augmentation.clone(),
            masked_channels: settings.masked_channels.clone(),
            ignore_label: self.info.ignore_label,
            seed: settings.seed,
        };
        let pieces = settings.accumulate.max(1);
        let mut batches = Prefetch::new(
            training,
            patches,
            progress.step * pieces..total * pieces,
            self.workers,
        )?;
        let loss = settings.loss(self.info);
        let mut bar = Bar::new(self.printer, "training", total);
        bar.start_at(progress.step);
        let mut skipped_in_a_row = 0;
        let mut started = Instant::now();
        let mut last_dice: Option<f64> = log.last().and_then(|row: &EpochLog| row.dice);
        let session = (Instant::now(), progress.step);

        while progress.step < total {
            let lr = schedule.lr(progress.step);
            // Every step has its own random numbers (drop path, dropout), so that a resumed run needs no saved generator.
            tch::manual_seed(
                (settings.seed ^ progress.step.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as i64,
            );
            optimizer.zero_grad();
            let mut number = 0f64;
            for batch in batches.by_ref().take(pieces as usize) {
                let batch = batch?;
                // every piece is taken, so that the next step begins with its own
                if !number.is_finite() {
                    continue;
                }
                let batch = TensorBatch::new(&batch, self.device)?;
                let net = self.built.net.as_ref();
                let outputs = settings.precision.forward(net, &batch.image, true)?;
                let value = loss.forward(&outputs, &batch.label) / pieces as f64;
                number += value.double_value(&[]);
                if number.is_finite() {
                    value.backward();
                }
            }
            let taken = match number.is_finite() {
                true => optimizer.step(lr),
                false => Step::Skipped,
            };
            match taken {
                Step::Taken { .. } => {
                    skipped_in_a_row = 0;
                    progress.loss_sum += number;
                    progress.loss_count += 1;
                }
                Step::Skipped => {
                    skipped_in_a_row += 1;
                    progress.skipped += 1;
                    if skipped_in_a_row == 1 {
                        self.printer.detail(&format!(
                            "step {}: loss or gradient is not finite, skipped",
                            progress.step
                        ));
                    }
                    if skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW {
                        bail!(
                            "{MOST_SKIPPED_IN_A_ROW} steps in a row gave no finite gradient: the run has diverged; \
                             train again with a lower --lr (it was {lr:.2e}). The last checkpoint is kept"
                        );
                    }
                }
            }
            progress.step += 1;
            progress.updates = optimizer.updates();
            let epoch = (progress.step - 1) / schedule.steps_per_epoch;
            bar.prefix(format!("epoch {}/{}", epoch + 1, schedule.epochs));
            bar.step(|| {
                let seconds = session.0.elapsed().as_secs_f64();
                let rate = (progress.step - session.1) as f64 / seconds.max(1e-9);
                format!(
                    "loss {:.3} dice {} {:.0} img/s, {} left",
                    progress.loss_sum / progress.loss_count.max(1) as f64,
                    last_dice.map_or("-".into(), |d| format!("{d:.3}")),
                    rate * (pieces * settings.batch_size as u64) as f64,
                    duration((total - progress.step) as f64 / rate)
                )
            });

            let epoch_done = progress.step % schedule.steps_per_epoch == 0;
            if epoch_done {
                let row = self.end_epoch(&mut progress, &mut started, validation, lr)?;
                last_dice = row.dice;
                bar.line(&epoch_line(&row, schedule.epochs));
                events.add(&row)?;
                log.push(row);
                self.folder.write_log(&log)?;
                self.plot(&log)?;
                let ema = progress.dice_ema;
                if ema.is_some() && ema >= progress.best_ema {
                    progress.best_ema = ema;
                    self.save_weights(
                        &self.folder.checkpoint(CheckpointChoice::Best),
                        progress.step,
                    )?;
                }
            }
            let stopping = self.stop.is_set() && progress.step < total;
            let due = epoch_done && (epoch + 1).is_multiple_of(settings.save_every);
            if stopping || due || progress.step == total {
                progress.seconds += started.elapsed().as_secs_f64();
                started = Instant::now();
                self.save_weights(
                    &self.folder.checkpoint(CheckpointChoice::Latest),
                    progress.step,
                )?;
                state::save(
                    &self.folder.state(),
                    &progress,
                    &self.built.params,
                    &optimizer,
                )?;
            }
            if stopping {
                bar.finish();
                self.printer.message(&format!(
                    "stopped after step {} of {total}; go on with:\n  vision-mamba train {} --out {} --resume",
                    progress.step,
                    quoted(Path::new(&self.config.dataset)),
                    quoted(self.folder.root())
                ));
                return Err(Interrupted.into());
            }
        }
        bar.finish();
        if progress.skipped > 0 {
            self.printer.warning(&format!(
                "{} of {total} steps were skipped: loss or gradient was not finite",
                progress.skipped
            ));
        }
        self.save_weights(
            &self.folder.checkpoint(CheckpointChoice::Final),
            progress.step,
        )
    }

    fn end_epoch(
        &self,
        progress: &mut Progress,
        started: &mut Instant,
        validation: &[TrainingCase],
        lr: f64,
    ) -> Result<EpochLog> {
        let settings = &self.config.training;
        let steps = settings.schedule.steps_per_epoch;
        let training_seconds = progress.seconds + started.elapsed().as_secs_f64();
        let scores = on_patches(self.built, validation, settings, self.info, self.device)?;
        if let Some(dice) = scores.dice {
            progress.dice_ema = Some(progress.dice_ema.map_or(dice, |ema| 0.9 * ema + 0.1 * dice));
        }
        let row = EpochLog {
            epoch: progress.step / steps - 1,
            train_loss: (progress.loss_count > 0)
                .then(|| progress.loss_sum / progress.loss_count as f64),
            val_loss: scores.loss.filter(|v| v.is_finite()),
            dice: scores.dice,
            dice_ema: progress.dice_ema,
            dice_per_class: scores.per_class,
            lr,
            skipped_steps: progress.skipped,
            seconds: progress.seconds + started.elapsed().as_secs_f64(),
            images_per_second: (steps * settings.accumulate * settings.batch_size as u64) as f64
                / training_seconds.max(1e-9),
        };
        (progress.loss_sum, progress.loss_count, progress.seconds) = (0.0, 0, 0.0);
        *started = Instant::now();
        Ok(row)
    }

    fn save_weights(&self, path: &Path, step: u64) -> Result<()> {
        let metadata = BTreeMap::from([
            ("format".to_string(), "vision-mamba".to_string()),
            ("preset".to_string(), self.config.preset.clone()),
            ("step".to_string(), step.to_string()),
        ]);
        weights::save_safetensors(path, &self.built.params, &metadata)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn plot(&self, log: &[EpochLog]) -> Result<()> {
        let rows: Vec<EpochRow> = log
            .iter()
            .map(|row| EpochRow {
                epoch: row.epoch,
                train_loss: row.train_loss.unwrap_or(f64::NAN),
                val_loss: row.val_loss,
                dice: row.dice,
                dice_ema: row.dice_ema,
                lr: row.lr,
                seconds: row.seconds,
            })
            .collect();
        let title = format!(
            "{} on {}",
            self.config.preset,
            base_name(&self.config.dataset)
        );
        crate::report::save_png(&self.folder.progress(), &progress_png(&rows, &title)?)?;
        Ok(())
    }
}

fn epoch_line(row: &EpochLog, epochs: u64) -> String {
    let show = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.4}"));
    format!(
        "epoch {}/{epochs}: loss {} validation loss {} dice {} (smoothed {}) lr {:.2e} {:.1} img/s {}{}",
        row.epoch + 1,
        show(row.train_loss),
        show(row.val_loss),
        show(row.dice),
        show(row.dice_ema),
        row.lr,
        row.images_per_second,
        duration(row.seconds),
        if row.skipped_steps > 0 { format!(", {} steps skipped", row.skipped_steps) } else { String::new() }
    )
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A path as it can be pasted into a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-+=:@".contains(c))
    {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
