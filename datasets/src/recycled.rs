//! Memory that is used again. Asking the system for tens of megabytes for every batch costs a third of the time that making the batch takes.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Values whose memory goes back to where it came from when they are dropped.
#[derive(Debug)]
pub struct Recycled<T> {
    values: Vec<T>,
    pool: Pool<T>,
}

/// Memory that waits for use. Copies share it.
#[derive(Debug)]
pub(crate) struct Pool<T>(Arc<Mutex<Vec<Vec<T>>>>);

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Copy + Default> Pool<T> {
    /// So many values, which are any that were there before.
    pub fn take(&self, count: usize) -> Recycled<T> {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let values = waiting.filter(|values| values.len() == count);
        Recycled {
            values: values.unwrap_or_else(|| vec![T::default(); count]),
            pool: self.clone(),
        }
    }
}

impl<T> Drop for Recycled<T> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        let mut waiting = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        // without others to take it, the pool goes with the values
        waiting.push(values);
    }
}

impl<T> From<Vec<T>> for Recycled<T> {
    fn from(values: Vec<T>) -> Self {
        Self {
            values,
            pool: Pool::default(),
        }
    }
}

impl<T: Clone> Clone for Recycled<T> {
    fn clone(&self) -> Self {
        self.values.clone().into()
    }
}

impl<T: PartialEq> PartialEq for Recycled<T> {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl<T> Deref for Recycled<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T> DerefMut for Recycled<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_if_it_has_the_size_asked_for() {
        let pool = Pool::default();
        let mut first = pool.take(3);
        first.copy_from_slice(&[1, 2, 3]);
        let copy = first.clone();
        drop(first);
        assert_eq!(pool.take(3)[..], [1, 2, 3]);
        assert_eq!((copy[2], copy.len()), (3, 3));
        assert_eq!(pool.take(2)[..], [0, 0]);
        // two at a time are two, and both wait afterwards
        drop((pool.take(2), pool.take(2)));
        assert_eq!(pool.0.lock().map(|waiting| waiting.len()).ok(), Some(2));
    }
}
