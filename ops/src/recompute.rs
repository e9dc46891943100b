//! Activation checkpointing: parts of a network whose inner values are computed again in the backward pass instead of being kept.
//!
//! Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016. The values are the same, random ones included; a step takes about one
//! forward pass longer.

use std::cell::Cell;
use std::ffi::{c_char, c_void};

use tch::{Device, Tensor};

use crate::autocast::{self, autocast};
use crate::update::{pointer, said, RawTensor};
use crate::{library, OpsError};

/// A part as the library takes it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawPart {
    state: *mut c_void,
    run: unsafe extern "C" fn(*mut c_void, *const RawTensor, i64, *mut RawTensor, i64) -> i32,
    drop: unsafe extern "C" fn(*mut c_void),
}

/// The library's function behind [`recompute`].
pub(crate) type RecomputeFunction =
    unsafe extern "C" fn(RawPart, *const RawTensor, i64, *mut RawTensor, i64) -> *const c_char;

thread_local! {
    /// Whether parts are to be computed again.
    static ENABLED: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread computes a part for the second time.
    static AGAIN: Cell<bool> = const { Cell::new(false) };
}

/// A switch as it was before, put back on drop.
struct Restore(&'static std::thread::LocalKey<Cell<bool>>, bool);

impl Restore {
    fn set(key: &'static std::thread::LocalKey<Cell<bool>>, on: bool) -> Self {
        Self(key, key.replace(on))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Runs a forward pass in which [`is_enabled`] says `on`.
pub fn with<R>(on: bool, body: impl FnOnce() -> R) -> R {
    let _before = Restore::set(&ENABLED, on);
    body()
}

/// Whether parts of a network should go through [`recompute`] on this thread.
pub fn is_enabled() -> bool {
    ENABLED.get()
}

/// Whether this is the second run of a part: what it changed beside its outputs, such as running statistics, has been changed already.
pub fn is_again() -> bool {
    AGAIN.get()
}

/// What a part does: its inputs to its outputs, or nothing when it fails.
type Body = Box<dyn Fn(&[Tensor]) -> Option<Vec<Tensor>>>;

struct State {
    body: Body,
    /// Where it computes in mixed precision.
    mixed: Option<Device>,
    runs: Cell<u32>,
}

/// Runs `body` on `inputs` without keeping what its backward pass needs, and again there. It gives `outputs` tensors, and must depend on
/// nothing that changes between the two runs. An error without the native library.
pub fn recompute(
    inputs: &[Tensor],
    outputs: usize,
    body: impl Fn(&[Tensor]) -> Option<Vec<Tensor>> + 'static,
) -> Result<Vec<Tensor>, OpsError> {
    let function = library::loaded()?.functions.recompute;
    let device = inputs.first().map_or(Device::Cpu, Tensor::device);
    let state = Box::new(State {
        body: Box::new(body),
        mixed: autocast::is_active().then_some(device),
        runs: Cell::new(0),
    });
    let part = RawPart {
        state: Box::into_raw(state).cast(),
        run,
        drop,
    };
    let list: Vec<_> = inputs.iter().map(pointer).collect();
    let mut made = vec![std::ptr::null_mut(); outputs];
    // SAFETY: the lists are as long as is said; the library takes `state` and gives it to `drop` once; the results are new tensors, now ours.
    #[allow(unsafe_code)]
    unsafe {
        said(function(
            part,
            list.as_ptr(),
            list.len() as i64,
            made.as_mut_ptr(),
            outputs as i64,
        ))?;
        Ok(made.into_iter().map(|t| Tensor::from_ptr(t)).collect())
    }
}

/// # Safety
/// `state` is a [`State`]; the lists are as long as is said, `inputs` of live tensors.
#[allow(unsafe_code)]
unsafe extern "C" fn run(
    state: *mut c_void,
    inputs: *const RawTensor,
    count: i64,
    outputs: *mut RawTensor,
    outputs_count: i64,
) -> i32 {
    let (state, inputs, outputs) = unsafe {
        (
            &*state.cast::<State>(),
            std::slice::from_raw_parts(inputs, count as usize),
            std::slice::from_raw_parts_mut(outputs, outputs_count as usize),
        )
    };
    let inputs: Vec<Tensor> = inputs
        .iter()
        .map(|&input| unsafe { Tensor::clone_from_ptr(input) })
        .collect();
    let again = state.runs.replace(state.runs.get() + 1) > 0;
    // nothing may unwind into C++
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _again = Restore::set(&AGAIN, again);
        let _inner = Restore::set(&ENABLED, false);
        let body = || (state.body)(&inputs);
        match state.mixed {
            // the second run's thread does not know of it
            Some(device) if again => autocast(device, body).ok().flatten(),
            _ => body(),
        }
    }));
    match made {
        Ok(Some(made)) if made.len() == outputs.len() => {
            for (slot, mut tensor) in outputs.iter_mut().zip(made) {
                *slot = tensor.as_mut_ptr();
                // the library owns it now
                std::mem::forget(tensor);
            }
            0
        }
        _ => 1,
    }
}

/// # Safety
/// `state` comes from [`recompute`] and is not used again.
#[allow(unsafe_code)]
unsafe extern "C" fn drop(state: *mut c_void) {
    std::mem::drop(unsafe { Box::from_raw(state.cast::<State>()) });
}
