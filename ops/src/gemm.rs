//! Which of libtorch's two libraries multiplies float32 matrices on the CPU.

use std::ffi::{c_char, c_int};

use crate::update::said;
use crate::{library, OpsError};

/// The library's function behind this module.
pub(crate) type GemmFunction = unsafe extern "C" fn(c_int, *mut c_int) -> *const c_char;

/// Environment variable that leaves all products to MKL where it is `mkl`.
pub const GEMM_ENV: &str = "VISION_MAMBA_GEMM";

/// Whether oneDNN makes large float32 products, `aten::mm` and `aten::addmm`, in this process: from when the native library is loaded, unless [`GEMM_ENV`] is
/// `mkl`, on processors that have AVX-512 and are not Intel's. MKL, which libtorch takes by itself, does not use it there. An error without
/// the native library.
pub fn is_onednn() -> Result<bool, OpsError> {
    call(library::loaded()?.functions.gemm, -1)
}

/// Whether oneDNN is to make them from now on. Returns whether it does.
pub fn set_onednn(on: bool) -> Result<bool, OpsError> {
    call(library::loaded()?.functions.gemm, c_int::from(on))
}

/// What the environment wants, while the library is being loaded.
pub(crate) fn begin(function: GemmFunction) -> Result<bool, OpsError> {
    let on = std::env::var_os(GEMM_ENV).is_none_or(|value| value != "mkl");
    call(function, c_int::from(on))
}

fn call(function: GemmFunction, on: c_int) -> Result<bool, OpsError> {
    let mut now = 0;
    // SAFETY: the function takes a number and writes one.
    #[allow(unsafe_code)]
    unsafe {
        said(function(on, &mut now))?;
    }
    Ok(now != 0)
}
