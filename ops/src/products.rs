//! The matrix products and convolutions of a stretch of work, once more and alone.

use std::ffi::c_void;
use std::marker::PhantomData;

use crate::{library, OpsError};

/// The library's functions behind [`Products`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProductsFunctions {
    pub(crate) start: unsafe extern "C" fn() -> *mut c_void,
    pub(crate) end: unsafe extern "C" fn(*mut c_void) -> i64,
    pub(crate) run: unsafe extern "C" fn(*const c_void) -> bool,
    pub(crate) free: unsafe extern "C" fn(*mut c_void),
}

/// The products and convolutions that one thread computed, with their inputs, which it keeps alive. `causal_conv1d` counts as a convolution, with its
/// activation; products inside a scan do not count.
#[derive(Debug)]
pub struct Products {
    kept: Kept,
    count: i64,
}

#[derive(Debug)]
struct Kept {
    functions: ProductsFunctions,
    handle: *mut c_void,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Products {
    /// Those of `work`, on this thread. An error without the native library, or inside such work.
    pub fn of<R>(work: impl FnOnce() -> R) -> Result<(Self, R), OpsError> {
        let functions = library::loaded()?.functions.products;
        // SAFETY: the function takes nothing; null means that it refused.
        #[allow(unsafe_code)]
        let handle = unsafe { (functions.start)() };
        if handle.is_null() {
            let message = "the products of this thread are being kept already";
            return Err(OpsError::Torch(message.to_owned()));
        }
        let kept = Kept {
            functions,
            handle,
            not_send: PhantomData,
        };
        let mut under_way = UnderWay(Some(kept));
        let result = work();
        let (kept, count) = under_way.end().ok_or_else(|| {
            OpsError::Torch("the products of this thread are not kept".to_owned())
        })?;
        Ok((Self { kept, count }, result))
    }

    /// How many there are.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Runs them again with the same inputs and nothing between them, for the caller to time.
    pub fn run(&self) -> Result<(), OpsError> {
        // SAFETY: the handle is alive until drop, and the list is no longer written to.
        #[allow(unsafe_code)]
        let done = unsafe { (self.kept.functions.run)(self.kept.handle) };
        match done {
            true => Ok(()),
            false => Err(OpsError::Torch("a product cannot be run again".to_owned())),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and is not used again.
        #[allow(unsafe_code)]
        unsafe {
            (self.functions.free)(self.handle)
        };
    }
}

/// Keeping under way; a panic inside the work ends it too.
struct UnderWay(Option<Kept>);

impl UnderWay {
    fn end(&mut self) -> Option<(Kept, i64)> {
        let kept = self.0.take()?;
        // SAFETY: the handle is alive, and this is its one end, for it was taken.
        #[allow(unsafe_code)]
        let count = unsafe { (kept.functions.end)(kept.handle) };
        Some((kept, count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.end();
    }
}
