//! What a computation costs: multiply-adds, time of its matrix products, convolutions and scans, and memory.

use std::ffi::c_void;
use std::marker::PhantomData;

use crate::{library, OpsError};

/// The library's functions behind [`Meter`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeterFunctions {
    pub(crate) start: unsafe extern "C" fn() -> *mut c_void,
    pub(crate) read: unsafe extern "C" fn(*const c_void, *mut f64),
    pub(crate) stop: unsafe extern "C" fn(*mut c_void),
}

/// What a [`Meter`] has seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Multiply-adds of matrix products and convolutions.
    pub product_multiply_adds: f64,
    /// Seconds inside matrix products and convolutions.
    pub product_seconds: f64,
    /// Multiply-adds of selective scans, 9 for every state of every channel and step (the count that VMamba publishes).
    pub scan_multiply_adds: f64,
    /// Seconds inside selective scans.
    pub scan_seconds: f64,
    /// Bytes of the tensors on the CPU made since the start and still alive.
    pub held_bytes: f64,
    /// The most that [`held_bytes`](Self::held_bytes) ever was.
    pub peak_bytes: f64,
}

/// Counts what this thread computes from [`start`](Self::start) until it is dropped. It needs the native library, and counts scans only
/// there. CPU only: memory and time on a GPU are not seen.
#[derive(Debug)]
pub struct Meter {
    functions: MeterFunctions,
    handle: *mut c_void,
    /// It belongs to the thread that started it.
    not_send: PhantomData<*const ()>,
}

impl Meter {
    /// Starts counting. An error without the native library, or when this thread counts already.
    pub fn start() -> Result<Self, OpsError> {
        let functions = library::loaded()?.functions.meter;
        // SAFETY: the function takes nothing; null means that it refused.
        #[allow(unsafe_code)]
        let handle = unsafe { (functions.start)() };
        if handle.is_null() {
            return Err(OpsError::Torch(
                "the cost of this thread's work is being counted already".to_owned(),
            ));
        }
        Ok(Self {
            functions,
            handle,
            not_send: PhantomData,
        })
    }

    /// What was seen since the start.
    pub fn cost(&self) -> Cost {
        let mut seen = [0.0; 6];
        // SAFETY: the handle is alive until drop, and the function writes six numbers.
        #[allow(unsafe_code)]
        unsafe {
            (self.functions.read)(self.handle, seen.as_mut_ptr())
        };
        let [product_multiply_adds, product_seconds, scan_multiply_adds, scan_seconds, held_bytes, peak_bytes] =
            seen;
        Cost {
            product_multiply_adds,
            product_seconds,
            scan_multiply_adds,
            scan_seconds,
            held_bytes,
            peak_bytes,
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and is not used again.
        #[allow(unsafe_code)]
        unsafe {
            (self.functions.stop)(self.handle)
        };
    }
}
