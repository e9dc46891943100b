//! The training loop: steps, validation, log, checkpoints; interrupted at any step and resumed to the same weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use tch::{Device, Tensor};
use vision_mamba_models::{weights, Built};
use vision_mamba_ops::memory::KeptBlocks;
use vision_mamba_ops::recompute;

use super::average::Average;
use super::optimizer::{trained, Optimizer};
use super::profile::{Phase, Profile, Watch};
use super::recorded::Recorder;
use super::run_folder::{write_json, EpochLog, RunFolder};
use super::state::{self, Progress};
use super::tally::Tally;
use super::task::{shown, Course, Scores, Task};
use super::tensorboard::Events;
use crate::cli::args::CheckpointChoice;
use crate::cli::exit::Interrupted;
use crate::cli::printer::Printer;
use crate::cli::progress::{duration, Progress as Bar};
use crate::report::plots::{progress_png, EpochRow};
use crate::runtime::StopFlag;

/// After so many skipped steps in a row the run has diverged, and going on would only waste time.
const MOST_SKIPPED_IN_A_ROW: u64 = 100;

/// What a run works with.
pub struct Trainer<'a, T: Task> {
    /// What is trained.
    pub task: &'a T,
    /// How.
    pub course: &'a Course,
    /// Where it writes.
    pub folder: &'a RunFolder,
    /// The network.
    pub built: &'a Built,
    /// The network's preset.
    pub preset: &'a str,
    /// The data set's folder.
    pub dataset: &'a str,
    /// Threads that prepare patches.
    pub workers: usize,
    /// Where the network computes.
    pub device: Device,
    /// Time so many steps and tell where their time goes.
    pub profile: Option<u64>,
    /// Asked between steps.
    pub stop: &'a StopFlag,
    /// Says what happens.
    pub printer: &'a Printer,
}

impl<T: Task> Trainer<'_, T> {
    /// Trains to the end, from the beginning or from the folder's state. The network is left as it is saved: with the averaged weights, where
    /// they are averaged.
    pub fn run(&self, resume: bool) -> Result<()> {
        let _every_step_takes_the_same = KeptBlocks::begin();
        let course = self.course;
        let schedule = &course.schedule;
        let params = &self.built.params;
        let mut optimizer = Optimizer::new(course.optimizer.clone(), trained(params));
        let mut average = course.ema.map(|decay| Average::new(decay, params));
        let mut progress = Progress::default();
        let mut log = Vec::new();
        if resume && self.folder.state().is_file() {
            progress = state::load(
                &self.folder.state(),
                params,
                &mut optimizer,
                average.as_mut(),
            )?;
            log = self.folder.read_log()?;
            log.truncate((progress.step / schedule.steps_per_epoch) as usize);
            self.printer.message(&format!(
                "resuming at step {} of {}",
                progress.step,
                schedule.epochs * schedule.steps_per_epoch
            ));
        }
        let mut events = Events::begin(&self.folder.tensorboard(), self.task.parts(), &log)?;
        let total = schedule.epochs * schedule.steps_per_epoch;
        let pieces = course.accumulate.max(1);
        let mut batches = self
            .task
            .batches(progress.step * pieces..total * pieces, self.workers)?;
        let mut bar = Bar::new(self.printer, "training", total);
        bar.start_at(progress.step);
        let watch = Watch::new(self.device, self.profile);
        let mut tally = Tally::new(&progress, self.device);
        let mut started = Instant::now();
        let mut last_score = log.last().and_then(main_score);
        let session = (Instant::now(), progress.step);
        let mut recorder = self.recorder();
        // The next batch is on its way while a step is computed.
        let mut next = || -> Result<Option<T::Loaded>> {
            match watch.phase(Phase::Data, || batches.next()) {
                Some(batch) => {
                    let batch = batch?;
                    let loaded = watch.phase(Phase::Transfer, || self.task.load(&batch))?;
                    Ok(Some(loaded))
                }
                None => Ok(None),
            }
        };
        let mut loaded = next()?;

        while progress.step < total {
            let lr = schedule.lr(progress.step);
            // Every step has its own random numbers (drop path, dropout), so that a resumed run needs no saved generator.
            tch::manual_seed(
                (course.seed ^ progress.step.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as i64,
            );
            let mut take = || loaded.take().context("the data ended before the run");
            let pass = |batch: &T::Loaded| -> Result<Tensor> {
                let value = recompute::with(course.checkpoint_activations, || {
                    self.task.loss(self.built, batch, &watch)
                })? / pieces as f64;
                watch.phase(Phase::Backward, || value.f_backward())?;
                Ok(value.detach())
            };
            let loss = match &mut recorder {
                Some(recorder) => recorder.step(&mut optimizer, take()?, pass)?,
                None => {
                    optimizer.zero_grad()?;
                    let mut loss = pass(&take()?)?;
                    for _ in 1..pieces {
                        loaded = next()?;
                        let batch = loaded.take().context("the data ended before the run")?;
                        loss += pass(&batch)?;
                    }
                    loss
                }
            };
            progress.step += 1;
            watch.phase(Phase::Update, || -> Result<()> {
                let step = optimizer.step(lr, Some(&loss))?;
                tally.add(&loss, &step.taken);
                match &mut average {
                    Some(average) => average.update(progress.step),
                    None => Ok(()),
                }
            })?;
            loaded = next()?;
            let epoch = (progress.step - 1) / schedule.steps_per_epoch;
            let epoch_done = progress.step % schedule.steps_per_epoch == 0;
            let stopping = self.stop.is_set() && progress.step < total;
            let due = epoch_done && (epoch + 1).is_multiple_of(course.save_every);
            let saving = stopping || due || progress.step == total;
            if epoch_done || saving || tally.is_due() {
                self.look(&mut tally, &mut progress, lr)?;
            }
            bar.prefix(format!("epoch {}/{}", epoch + 1, schedule.epochs));
            bar.step(|| {
                let seconds = session.0.elapsed().as_secs_f64();
                let rate = (progress.step - session.1) as f64 / seconds.max(1e-9);
                format!(
                    "loss {:.3} {} {} {:.0} img/s, {} left",
                    progress.loss_sum / progress.loss_count.max(1) as f64,
                    T::Scores::NAME,
                    shown(last_score, 3),
                    rate * (pieces * course.batch_size as u64) as f64,
                    duration((total - progress.step) as f64 / rate)
                )
            });
            if let Some(profile) = watch.step_done()? {
                bar.line(&self.keep(&profile)?);
            }

            if epoch_done || saving {
                exchange(&mut average);
            }
            if epoch_done {
                if let Some(recorder) = &mut recorder {
                    recorder.forget();
                }
                let row = self.end_epoch(&mut progress, &mut started, lr)?;
                tally.next_epoch();
                last_score = main_score(&row);
                bar.line(&epoch_line(&row, schedule.epochs));
                events.add(&row)?;
                log.push(row);
                self.folder.write_log(&log)?;
                self.plot(&log)?;
                let choice = progress.choice;
                if choice.is_some() && choice >= progress.best {
                    progress.best = choice;
                    self.save_weights(CheckpointChoice::Best, progress.step)?;
                }
            }
            if saving {
                self.save_weights(CheckpointChoice::Latest, progress.step)?;
            }
            if epoch_done || saving {
                exchange(&mut average);
            }
            if saving {
                progress.updates = optimizer.updates();
                progress.seconds += started.elapsed().as_secs_f64();
                started = Instant::now();
                state::save(
                    &self.folder.state(),
                    &progress,
                    params,
                    &optimizer,
                    average.as_ref(),
                )?;
            }
            if stopping {
                bar.finish();
                self.printer.message(&format!(
                    "stopped after step {} of {total}; go on with:\n  vision-mamba train {} --out {} --resume",
                    progress.step,
                    quoted(Path::new(self.dataset)),
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
        exchange(&mut average);
        self.save_weights(CheckpointChoice::Final, progress.step)
    }

    /// What records steps, where that is asked for and can be done.
    fn recorder(&self) -> Option<Recorder<T>> {
        let course = self.course;
        let plain = course.accumulate <= 1 && !course.checkpoint_activations;
        match (course.cuda_graph, self.device) {
            (true, Device::Cuda(_)) if plain => Some(Recorder::new(self.device)),
            (true, device) => {
                self.printer.warning(&format!(
                    "--cuda-graph is for steps of one batch on a GPU: on {device:?} they are computed as usual"
                ));
                None
            }
            (false, _) => None,
        }
    }

    /// Asks the device what the steps came to, and ends a run that has diverged.
    fn look(&self, tally: &mut Tally, progress: &mut Progress, lr: f64) -> Result<()> {
        let told = tally.tell()?;
        if told.skipped > progress.skipped {
            self.printer.detail(&format!(
                "step {}: {} step(s) skipped up to here, for a loss or gradient that is not finite",
                progress.step, told.skipped
            ));
        }
        progress.loss_sum = told.loss_sum;
        progress.loss_count = told.loss_count;
        progress.skipped = told.skipped;
        if told.in_a_row >= MOST_SKIPPED_IN_A_ROW {
            bail!(
                "{} steps in a row gave no finite gradient: the run has diverged; \
                 train again with a lower --lr (it was {lr:.2e}). The last checkpoint is kept",
                told.in_a_row
            );
        }
        Ok(())
    }

    /// Writes a profile into the run folder, and returns it to be read.
    fn keep(&self, profile: &Profile) -> Result<String> {
        let path = self.folder.profile();
        write_json(&path, profile)?;
        Ok(format!("{}\nin {}", profile.told(), path.display()))
    }

    fn end_epoch(
        &self,
        progress: &mut Progress,
        started: &mut Instant,
        lr: f64,
    ) -> Result<EpochLog<T::Scores>> {
        let course = self.course;
        let steps = course.schedule.steps_per_epoch;
        let training_seconds = progress.seconds + started.elapsed().as_secs_f64();
        let found = self.task.validate(self.built, progress.choice)?;
        progress.choice = found.choice;
        let row = EpochLog {
            epoch: progress.step / steps - 1,
            train_loss: (progress.loss_count > 0)
                .then(|| progress.loss_sum / progress.loss_count as f64),
            val_loss: found.loss.filter(|v| v.is_finite()),
            scores: found.scores,
            lr,
            skipped_steps: progress.skipped,
            seconds: progress.seconds + started.elapsed().as_secs_f64(),
            images_per_second: (steps * course.accumulate.max(1) * course.batch_size as u64) as f64
                / training_seconds.max(1e-9),
        };
        (progress.loss_sum, progress.loss_count, progress.seconds) = (0.0, 0, 0.0);
        *started = Instant::now();
        Ok(row)
    }

    fn save_weights(&self, which: CheckpointChoice, step: u64) -> Result<()> {
        let path = self.folder.checkpoint(which);
        let metadata = BTreeMap::from([
            ("format".to_string(), "vision-mamba".to_string()),
            ("preset".to_string(), self.preset.to_string()),
            ("step".to_string(), step.to_string()),
        ]);
        weights::save_safetensors(&path, &self.built.params, &metadata)
            .context("cannot write a checkpoint")
    }

    fn plot(&self, log: &[EpochLog<T::Scores>]) -> Result<()> {
        let rows: Vec<EpochRow> = log
            .iter()
            .map(|row| EpochRow {
                epoch: row.epoch,
                train_loss: row.train_loss.unwrap_or(f64::NAN),
                val_loss: row.val_loss,
                scores: row.scores.curves(),
                lr: row.lr,
                seconds: row.seconds,
            })
            .collect();
        let title = format!("{} on {}", self.preset, base_name(self.dataset));
        let picture = progress_png(&rows, &title, T::Scores::CHART, T::Scores::CURVES)?;
        crate::report::save_png(&self.folder.progress(), &picture)?;
        Ok(())
    }
}

/// Puts the averaged weights into the network, or takes them out again.
fn exchange(average: &mut Option<Average>) {
    if let Some(average) = average {
        average.swap();
    }
}

fn main_score<S: Scores>(row: &EpochLog<S>) -> Option<f64> {
    row.scores.curves().first().copied().flatten()
}

fn epoch_line<S: Scores>(row: &EpochLog<S>, epochs: u64) -> String {
    format!(
        "epoch {}/{epochs}: loss {} validation loss {} {} lr {:.2e} {:.1} img/s {}{}",
        row.epoch + 1,
        shown(row.train_loss, 4),
        shown(row.val_loss, 4),
        row.scores.told(),
        row.lr,
        row.images_per_second,
        duration(row.seconds),
        if row.skipped_steps > 0 {
            format!(", {} steps skipped", row.skipped_steps)
        } else {
            String::new()
        }
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
