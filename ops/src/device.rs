//! What `tch` does not reach of libtorch: transfers beside the computation, channels-last memory, TF32, algorithms of the
//! same bits, waiting for a GPU.

use std::ffi::c_char;

use tch::{Device, Tensor};

use crate::update::{pointer, said, RawTensor};
use crate::{library, OpsError};

/// The library's functions behind this module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceFunctions {
    pub(crate) upload: unsafe extern "C" fn(RawTensor, i64, *mut RawTensor) -> *const c_char,
    pub(crate) synchronize: unsafe extern "C" fn(i64) -> *const c_char,
    pub(crate) channels_last: unsafe extern "C" fn(RawTensor, *mut RawTensor) -> *const c_char,
    pub(crate) tf32: unsafe extern "C" fn(i32) -> *const c_char,
    pub(crate) deterministic: unsafe extern "C" fn(i32) -> *const c_char,
}

/// A tensor of the host on `device`. To a GPU it goes through pinned memory on a stream of its own, beside what is being computed there, and
/// is waited for by what is started later; without the native library, and elsewhere, it is copied as usual.
pub fn upload(host: &Tensor, device: Device) -> Result<Tensor, OpsError> {
    let (Device::Cuda(index), Ok(native)) = (device, library::loaded()) else {
        return Ok(host.f_to_device(device)?);
    };
    let mut to = std::ptr::null_mut();
    // SAFETY: `host` is alive; the result is a new tensor, now ours.
    #[allow(unsafe_code)]
    unsafe {
        said((native.functions.device.upload)(
            pointer(host),
            index as i64,
            &mut to,
        ))?;
        Ok(Tensor::from_ptr(to))
    }
}

/// Waits until a GPU has done what it was told; a CPU is never ahead.
pub fn synchronize(device: Device) -> Result<(), OpsError> {
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    // SAFETY: the function takes a number.
    #[allow(unsafe_code)]
    unsafe {
        said((library::loaded()?.functions.device.synchronize)(
            index as i64,
        ))
    }
}

/// The values of a (B, C, H, W) or (B, C, D, H, W) tensor with channels last in memory; any other tensor is returned as it is. An error
/// without the native library.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, OpsError> {
    let mut to = std::ptr::null_mut();
    // SAFETY: `tensor` is alive; the result is a new tensor, now ours.
    #[allow(unsafe_code)]
    unsafe {
        said((library::loaded()?.functions.device.channels_last)(
            pointer(tensor),
            &mut to,
        ))?;
        Ok(Tensor::from_ptr(to))
    }
}

/// Whether float32 matrix products and convolutions on a GPU may use tensor cores, which round factors to TF32's ten bits of mantissa. An
/// error without the native library.
pub fn set_tf32(on: bool) -> Result<(), OpsError> {
    // SAFETY: the function takes a number and sets switches of the process.
    #[allow(unsafe_code)]
    unsafe {
        said((library::loaded()?.functions.device.tf32)(i32::from(on)))
    }
}

/// Whether libtorch and cuDNN take algorithms on a GPU that give the same bits in every run; libtorch warns where it has none. An error without the
/// native library.
pub fn set_deterministic(on: bool) -> Result<(), OpsError> {
    // SAFETY: the function takes a number and sets switches of the process.
    #[allow(unsafe_code)]
    unsafe {
        said((library::loaded()?.functions.device.deterministic)(
            i32::from(on),
        ))
    }
}
