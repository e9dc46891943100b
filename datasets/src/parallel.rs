//! Work on many cases by a few threads, with results in order and no more cases in memory than threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

/// Runs `work` on every item on `threads` threads (at least one) and hands the results to `take` in the items' order, on the caller's thread.
/// A thread that is ahead waits until its result is wanted, so that at most about two results a thread wait.
pub fn for_each_in_order<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(&T, R),
) {
    let next = AtomicUsize::new(0);
    let threads = threads.clamp(1, items.len().max(1));
    let (sender, receiver) = sync_channel(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else {
                    return;
                };
                if sender.send((index, work(item))).is_err() {
                    return;
                }
            });
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut wanted = 0;
        for (index, result) in receiver {
            waiting.insert(index, result);
            while let Some(result) = waiting.remove(&wanted) {
                take(&items[wanted], result);
                wanted += 1;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_for_any_number_of_threads() {
        let items: Vec<usize> = (0..50).collect();
        for threads in [1, 3, 64] {
            let mut seen = Vec::new();
            for_each_in_order(&items, threads, |i| i * 2, |i, r| seen.push((*i, r)));
            assert_eq!(seen, items.iter().map(|i| (*i, i * 2)).collect::<Vec<_>>());
        }
    }
}
