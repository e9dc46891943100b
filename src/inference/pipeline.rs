//! Many cases, one after the other through stages that work at the same time: while the networks see one case, the next is read and
//! preprocessed, scores go back to the file's grid as they come, and the case before is written. At most one case waits before each stage.
//!
//! Whatever becomes of a case travels on to the last stage, so that cases are reported once and in their order.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};

use anyhow::{anyhow, Context, Result};
use vision_mamba_datasets::io::{sweep, try_to_write};
use vision_mamba_datasets::{
    load_channels, probabilities, write_labels, DataError, InputCase, Restored, Restoring,
};

use super::ensemble::{Address, Ensemble, Prepared, Recipe};
use super::postprocess::Postprocessing;
use super::volume::PredictOptions;
use crate::cli::exit::Interrupted;
use crate::runtime::StopFlag;

/// A case and where its label map goes.
#[derive(Debug, Clone)]
pub struct Work {
    /// Its files.
    pub case: InputCase,
    /// The label map to write.
    pub target: PathBuf,
}

/// What all cases share.
pub struct Pipeline<'a> {
    /// The networks.
    pub ensemble: &'a Ensemble<'a>,
    /// Names of the channels of an image.
    pub channels: Vec<String>,
    /// How to predict.
    pub options: &'a PredictOptions,
    /// What is done to label maps before they are written.
    pub post: &'a Postprocessing,
    /// Where arrays go that are too large for memory.
    pub folder: &'a Path,
    /// Set when the work should stop.
    pub stop: &'a StopFlag,
    /// Told of each case, before it is predicted, how many bytes that takes.
    pub on_case: &'a dyn Fn(&str, u64),
}

/// Bytes of scores that may wait for the way back.
const WAITING: usize = 256 << 20;

/// A case between the networks and the file.
struct Job {
    restoring: Restoring,
    planes: Receiver<Result<(Address, Vec<f32>)>>,
}

impl Pipeline<'_> {
    /// Does all cases. `report` hears of each when its file is there or it has failed; those that were not reached are not reported. Ends early
    /// when the work is stopped, or when a file cannot be written: no later one could be.
    pub fn run(
        &self,
        work: &[Work],
        report: &mut (dyn FnMut(&Work, &Result<()>) + Send),
    ) -> Result<()> {
        let prepared = read_ahead(
            work.iter().map(|w| w.case.clone()).collect(),
            self.channels.clone(),
            self.ensemble.recipe(),
            self.stop.clone(),
        );
        let (jobs, to_restore) = sync_channel::<Result<Job>>(1);
        let (done, to_write) = sync_channel::<Result<Restored>>(0);
        let broken = StopFlag::never();
        std::thread::scope(|scope| {
            let (stop, post) = (self.stop, self.post);
            scope.spawn(move || restore_all(&to_restore, &done, stop));
            let writer = scope.spawn(|| {
                let mut fatal = None;
                for (work, restored) in work.iter().zip(to_write) {
                    let outcome = restored.and_then(|r| write(work, r, post));
                    let interrupted = outcome.as_ref().is_err_and(|e| e.is::<Interrupted>());
                    if interrupted || outcome.as_ref().is_err_and(cannot_write) {
                        broken.stop();
                        fatal = outcome.err();
                        break;
                    }
                    report(work, &outcome);
                }
                fatal
            });
            // ends when every case is through, or when a later stage has gone
            for (work, case) in work.iter().zip(prepared) {
                if broken.is_set() || !self.predict(&work.case.id, case, &jobs, &broken) {
                    break;
                }
            }
            drop(jobs);
            let fatal = writer
                .join()
                .map_err(|_| anyhow!("writing failed; this is a fault of the program"))?;
            match fatal {
                Some(error) => Err(error),
                None if self.stop.is_set() => Err(Interrupted.into()),
                None => Ok(()),
            }
        })
    }

    /// Sends a case's planes on; false when nobody takes them any more.
    fn predict(
        &self,
        id: &str,
        case: Result<Prepared>,
        jobs: &SyncSender<Result<Job>>,
        broken: &StopFlag,
    ) -> bool {
        let started = case.and_then(|case| {
            (self.on_case)(id, self.ensemble.bytes(&case, self.options.probabilities));
            let (restoring, schedule) =
                self.ensemble
                    .restoring(&case, self.folder, self.options.probabilities)?;
            Ok((case, restoring, schedule))
        });
        let (case, restoring, schedule) = match started {
            Ok(started) => started,
            Err(error) => return jobs.send(Err(error)).is_ok(),
        };
        let (sender, planes) = sync_channel(waiting(&case, self.ensemble.classes()));
        if jobs.send(Ok(Job { restoring, planes })).is_err() {
            return false;
        }
        let mut on_window = || match self.stop.is_set() || broken.is_set() {
            true => Err(Interrupted.into()),
            false => Ok(()),
        };
        let outcome = self.ensemble.predict(
            case,
            &schedule,
            self.options,
            &mut on_window,
            &mut |address, plane| {
                sender
                    .send(Ok((address, plane)))
                    .map_err(|_| anyhow::Error::new(Interrupted))
            },
        );
        match outcome {
            Ok(()) => true,
            Err(error) => {
                let go_on = !error.is::<Interrupted>();
                // nobody to tell is no matter: the stage that has gone has told why
                let _ = sender.send(Err(error));
                go_on
            }
        }
    }
}

/// How many planes may wait for the way back.
fn waiting(case: &Prepared, classes: usize) -> usize {
    (WAITING / (classes * case.largest_plane()).max(1)).clamp(1, 64)
}

/// Reads and preprocesses cases on a thread of its own. It is not waited for when the work is stopped: it only reads.
fn read_ahead(
    cases: Vec<InputCase>,
    channels: Vec<String>,
    recipe: Recipe,
    stop: StopFlag,
) -> Receiver<Result<Prepared>> {
    let (sender, receiver) = sync_channel(0);
    std::thread::spawn(move || {
        for case in cases {
            if stop.is_set() {
                return;
            }
            let prepared = load_channels(&case, &channels)
                .map_err(anyhow::Error::from)
                .and_then(|image| recipe.prepare(&case.id, &image));
            if sender.send(prepared).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Brings scores back to the files' grids.
fn restore_all(jobs: &Receiver<Result<Job>>, done: &SyncSender<Result<Restored>>, stop: &StopFlag) {
    for job in jobs {
        let restored = job.and_then(
            |Job {
                 mut restoring,
                 planes,
             }| {
                for plane in planes {
                    let (address, plane) = plane?;
                    if stop.is_set() {
                        return Err(Interrupted.into());
                    }
                    restoring.push(address, plane);
                }
                Ok(restoring.finish()?)
            },
        );
        if done.send(restored).is_err() {
            return;
        }
    }
}

fn write(work: &Work, restored: Restored, post: &Postprocessing) -> Result<()> {
    let Restored {
        mut labels,
        probabilities: values,
    } = restored;
    post.apply(&mut labels.data);
    if let Some(values) = values {
        probabilities::write(&probabilities::beside(&work.target), &values)?;
    }
    write_labels(&work.target, &labels)?;
    Ok(())
}

/// Whether an error says that the disk is full or may not be written to.
fn cannot_write(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<DataError>()
        .is_some_and(DataError::cannot_write)
}

/// Fails where files cannot be written to a folder, before any work is done for them. What killed runs left half-written there goes.
pub fn check_writable(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the output folder {}", folder.display()))?;
    sweep(folder)?;
    try_to_write(folder).with_context(|| {
        format!(
            "cannot write to the output folder {}; check that you may write to it and that the disk has space left",
            folder.display()
        )
    })
}
