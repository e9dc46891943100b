//! Where time goes, by libtorch's operators.

use std::ffi::{c_char, c_void, CStr};

use tch::Device;

use crate::update::said;
use crate::{library, OpsError};

/// The library's functions behind [`Profiler`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProfilerFunctions {
    pub(crate) start: unsafe extern "C" fn(i64) -> *const c_char,
    pub(crate) stop: unsafe extern "C" fn(*mut c_void, Take) -> *const c_char,
}

pub(crate) type Take = unsafe extern "C" fn(*mut c_void, *const c_char, i64, f64);

/// What one operator took.
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorTime {
    /// Its name, as `aten::convolution_backward`.
    pub name: String,
    /// Times it was called.
    pub calls: i64,
    /// Seconds inside it and not inside an operator that it called, all threads together.
    pub seconds: f64,
}

/// Times every operator of the process from [`start`](Self::start) to [`stop`](Self::stop). On a GPU each operator is waited for, so that its
/// time is its own; that makes the whole slower.
#[derive(Debug)]
pub struct Profiler {
    functions: ProfilerFunctions,
    stopped: bool,
}

impl Profiler {
    /// Starts timing. An error without the native library, or when something is being timed already.
    pub fn start(device: Device) -> Result<Self, OpsError> {
        let functions = library::loaded()?.functions.profiler;
        let index = match device {
            Device::Cuda(index) => index as i64,
            _ => -1,
        };
        // SAFETY: the function takes a number.
        #[allow(unsafe_code)]
        unsafe {
            said((functions.start)(index))?
        };
        Ok(Self {
            functions,
            stopped: false,
        })
    }

    /// Stops, and tells of every operator, the one with most time first.
    pub fn stop(mut self) -> Result<Vec<OperatorTime>, OpsError> {
        let mut seen = self.end()?;
        seen.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(seen)
    }

    fn end(&mut self) -> Result<Vec<OperatorTime>, OpsError> {
        let mut seen: Vec<OperatorTime> = Vec::new();
        self.stopped = true;
        // SAFETY: `take` gets the pointer to `seen`, which outlives the call, and names that live through it.
        #[allow(unsafe_code)]
        unsafe {
            said((self.functions.stop)((&raw mut seen).cast(), take))?
        };
        Ok(seen)
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        if !self.stopped {
            // nobody wants to know any more
            let _ = self.end();
        }
    }
}

/// # Safety
/// `to` points to a list of [`OperatorTime`], `name` to a C string.
#[allow(unsafe_code)]
unsafe extern "C" fn take(to: *mut c_void, name: *const c_char, calls: i64, seconds: f64) {
    let (seen, name) = unsafe { (&mut *to.cast::<Vec<OperatorTime>>(), CStr::from_ptr(name)) };
    seen.push(OperatorTime {
        name: name.to_string_lossy().into_owned(),
        calls,
        seconds,
    });
}
