//! Batches made ahead of time on worker threads, delivered in order.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::sampler::TrainingCase;
use crate::{Batch, DataError, PatchSettings, Result, Sampler};

/// Batches that may be ready or in the making, per worker.
const AHEAD: u64 = 2;

/// Iterator over the batches of a range of numbers. They come in order and are the same for any number of workers. Dropping it stops the
/// workers after the batch in hand. A worker's panic becomes the iterator's last item.
#[derive(Debug)]
pub struct Prefetch<T = Batch> {
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    end: u64,
    ahead: u64,
}

#[derive(Debug)]
struct State<T> {
    /// Next number that a worker takes.
    next_made: u64,
    /// Next number that the iterator gives.
    next_given: u64,
    ready: BTreeMap<u64, Result<T>>,
    stop: bool,
}

impl Prefetch {
    /// Starts the workers (at least one).
    pub fn new(
        cases: Arc<Vec<TrainingCase>>,
        settings: PatchSettings,
        batches: Range<u64>,
        workers: usize,
    ) -> Result<Self> {
        let sampler = Sampler::new(cases, settings)?;
        Self::with_maker(batches, workers, move |index| Ok(sampler.draw(index)))
    }
}

impl<T: Send + 'static> Prefetch<T> {
    /// Batches from any function of their number. Its error becomes the iterator's last item.
    pub(crate) fn with_maker(
        batches: Range<u64>,
        workers: usize,
        make: impl Fn(u64) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let workers = workers.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_made: batches.start,
                next_given: batches.start,
                ready: BTreeMap::new(),
                stop: false,
            }),
            changed: Condvar::new(),
            end: batches.end,
            ahead: AHEAD * workers as u64,
        });
        let make = Arc::new(make);
        let mut prefetch = Self {
            shared,
            workers: Vec::with_capacity(workers),
        };
        for number in 0..workers {
            let (shared, make) = (prefetch.shared.clone(), make.clone());
            let thread = std::thread::Builder::new()
                .name(format!("patches-{number}"))
                .spawn(move || shared.work(&*make));
            prefetch
                .workers
                .push(thread.map_err(|e| DataError::Setting {
                    field: "number of data loading threads".into(),
                    found: workers.to_string(),
                    expected: format!("the system refuses that many ({e}); use fewer"),
                })?);
        }
        Ok(prefetch)
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, make: &dyn Fn(u64) -> Result<T>) {
        loop {
            let mut state = self.lock();
            while !state.stop
                && state.next_made < self.end
                && state.next_made >= state.next_given + self.ahead
            {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop || state.next_made >= self.end {
                return;
            }
            let index = state.next_made;
            state.next_made += 1;
            drop(state);
            let batch = catch_unwind(AssertUnwindSafe(|| make(index))).unwrap_or_else(|panic| {
                Err(DataError::Worker {
                    batch: index,
                    message: message_of(panic.as_ref()),
                })
            });
            self.lock().ready.insert(index, batch);
            self.changed.notify_all();
        }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.shared.lock();
        if state.stop || state.next_given >= self.shared.end {
            return None;
        }
        let index = state.next_given;
        let batch = loop {
            if let Some(batch) = state.ready.remove(&index) {
                break batch;
            }
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        state.next_given += 1;
        state.stop = batch.is_err();
        drop(state);
        self.shared.changed.notify_all();
        Some(batch)
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its panics; there is nothing left to learn from it.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn numbered(index: u64) -> Result<Batch> {
        Ok(Batch {
            image: vec![index as f32].into(),
            label: vec![index as i16].into(),
            shape: vec![1, 1, 1, 1],
            ids: vec![],
        })
    }

    #[test]
    fn in_order_for_any_number_of_workers() {
        for workers in [1, 2, 5] {
            let batches = Prefetch::with_maker(3..40, workers, numbered).unwrap();
            let got: Vec<i16> = batches.map(|b| b.unwrap().label[0]).collect();
            assert_eq!(got, (3..40).collect::<Vec<i16>>());
        }
    }

    #[test]
    fn the_queue_is_bounded_and_dropping_stops() {
        let made = Arc::new(AtomicU64::new(0));
        let counter = made.clone();
        let mut batches = Prefetch::with_maker(0..u64::MAX, 2, move |index| {
            counter.fetch_add(1, Ordering::SeqCst);
            numbered(index)
        })
        .unwrap();
        for _ in 0..10 {
            batches.next().unwrap().unwrap();
        }
        drop(batches);
        // Given, waiting and in the making; joined threads make no more.
        assert!(made.load(Ordering::SeqCst) <= 10 + 2 * AHEAD);
    }

    #[test]
    fn a_panic_is_an_item_and_the_last() {
        let mut batches = Prefetch::with_maker(0..10, 2, |index| {
            assert!(index != 4, "four is bad");
            numbered(index)
        })
        .unwrap();
        for index in 0..4 {
            assert_eq!(batches.next().unwrap().unwrap().label[0], index);
        }
        let error = batches.next().unwrap().unwrap_err().to_string();
        assert!(
            error.contains("batch 4") && error.contains("four is bad"),
            "{error}"
        );
        assert!(batches.next().is_none());
    }
}
