//! Automatic mixed precision: matrix products and convolutions in bfloat16, what runs over a sequence in float32.
//!
//! Micikevicius et al., *Mixed Precision Training*, 2018, on libtorch's autocast. bfloat16 has float32's range, so no loss scaling is needed.
//! The state of a scan is a long product of `exp(dt A)` close to one, which eight bits of mantissa cannot hold: [`in_float32`] keeps such
//! parts out.

use std::cell::Cell;
use std::marker::PhantomData;

use tch::{Device, Kind, Tensor};

use crate::{library, OpsError};

/// The library's functions behind [`autocast`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct AutocastFunctions {
    pub(crate) swap: unsafe extern "C" fn(i32, i32) -> i32,
    pub(crate) clear: unsafe extern "C" fn(),
}

/// Modes as the library numbers them.
const OFF: i32 = 0;
const BFLOAT16: i32 = 1;

thread_local! {
    /// The kind of device that this thread casts on, as the library numbers it.
    static ACTIVE: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Whether this thread is inside [`autocast`], and not inside [`in_float32`].
pub fn is_active() -> bool {
    ACTIVE.get().is_some()
}

/// Runs a forward pass with its matrix products and convolutions in bfloat16. Weights stay float32, and so do their gradients; results are
/// bfloat16 or float32. An error without the native library.
pub fn autocast<R>(device: Device, body: impl FnOnce() -> R) -> Result<R, OpsError> {
    let on = i32::from(matches!(device, Device::Cuda(_)));
    let guard = Switched::to(on, Some(on), BFLOAT16)?;
    let result = body();
    drop(guard);
    // SAFETY: the function takes nothing and does not throw.
    #[allow(unsafe_code)]
    unsafe {
        (library::loaded()?.functions.autocast.clear)()
    };
    Ok(result)
}

/// Inside [`autocast`], runs `body` on `x` in float32 without casting; elsewhere just runs it on `x`.
pub fn in_float32<R>(x: &Tensor, body: impl FnOnce(&Tensor) -> R) -> R {
    let Some(on) = ACTIVE.get() else {
        return body(x);
    };
    let _guard = Switched::to(on, None, OFF);
    body(&x.to_kind(Kind::Float))
}

/// The switch as it was before, put back on drop.
struct Switched {
    functions: AutocastFunctions,
    on: i32,
    mode: i32,
    active: Option<i32>,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Switched {
    fn to(on: i32, active: Option<i32>, mode: i32) -> Result<Self, OpsError> {
        let functions = library::loaded()?.functions.autocast;
        // SAFETY: the function takes two numbers, sets two fields of this thread and does not throw.
        #[allow(unsafe_code)]
        let mode = unsafe { (functions.swap)(on, mode) };
        if mode < 0 {
            return Err(OpsError::Torch(
                "libtorch refuses mixed precision on this device".to_owned(),
            ));
        }
        Ok(Self {
            functions,
            on,
            mode,
            active: ACTIVE.replace(active),
            not_send: PhantomData,
        })
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        // SAFETY: as where it was switched.
        #[allow(unsafe_code)]
        unsafe {
            (self.functions.swap)(self.on, self.mode)
        };
        ACTIVE.set(self.active);
    }
}
