//! Steps of an optimiser and of a moving average over all tensors of a network at once, without waiting for the device.
//!
//! The rules are PyTorch's (`torch.optim.SGD` with Nesterov's momentum, `torch.optim.AdamW`: Loshchilov and Hutter, *Decoupled Weight Decay
//! Regularization*, 2019), in libtorch's fused kernels. A gradient that is not finite moves nothing; whether that was so is told by a tensor,
//! so that a GPU need not be waited for in every step.

use std::ffi::{c_char, CStr};

use tch::Tensor;

use crate::{library, OpsError};

/// The library's functions behind this module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpdateFunctions {
    pub(crate) step:
        unsafe extern "C" fn(*const RawUpdate, *mut RawTensor, *mut RawTensor) -> *const c_char,
    pub(crate) average:
        unsafe extern "C" fn(i64, *const RawTensor, *const RawTensor, f64) -> *const c_char,
    pub(crate) forget: unsafe extern "C" fn(i64, *const RawTensor) -> *const c_char,
}

/// A tensor as the library sees it: what `tch` wraps.
pub(crate) type RawTensor = *mut torch_sys::C_tensor;

/// As `update.cpp` has it.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct RawUpdate {
    adamw: i64,
    lr: f64,
    weight_decay: f64,
    momentum: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    clip: f64,
    count: i64,
    parameters: *const RawTensor,
    gradients: *const RawTensor,
    first: *const RawTensor,
    second: *const RawTensor,
    decays: *const u8,
    steps: RawTensor,
    loss: RawTensor,
}

/// Which way parameters move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent with Nesterov's momentum.
    Sgd {
        /// Decay of the momentum.
        momentum: f64,
    },
    /// Adam with decoupled weight decay.
    Adamw {
        /// Decay of the first and second moment.
        betas: (f64, f64),
        /// Added to the denominator.
        eps: f64,
    },
}

/// A parameter, its gradient and what the rule keeps of it, all of one shape.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The parameter; it moves.
    pub parameter: &'a Tensor,
    /// Its gradient, which clipping changes in place.
    pub gradient: Tensor,
    /// Momentum, or first moment; zeros before the first step.
    pub first: &'a Tensor,
    /// Second moment of AdamW.
    pub second: Option<&'a Tensor>,
    /// Whether weight decay acts on it.
    pub decays: bool,
}

/// What a step is to do.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// The rule.
    pub rule: Rule,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay: SGD adds it to the gradient, AdamW shortens the parameter by `lr` times it.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; longer ones are shortened to it.
    pub clip: f64,
    /// Number of steps taken before: a float32 scalar on the parameters' device, counted on.
    pub steps: &'a Tensor,
    /// A scalar that must be finite as well, such as the loss.
    pub loss: Option<&'a Tensor>,
}

/// What came of a step, still on the device.
#[derive(Debug)]
pub struct Taken {
    /// Whether gradient and loss were finite, and so the parameters moved: a boolean scalar.
    pub taken: Tensor,
    /// Norm of all gradients before clipping: a float64 scalar.
    pub norm: Tensor,
}

/// Moves the parameters by one step. An error without the native library.
pub fn step(update: &Update, entries: &[Entry]) -> Result<Taken, OpsError> {
    let functions = library::loaded()?.functions.update;
    let raw = |of: &dyn Fn(&Entry) -> RawTensor| entries.iter().map(of).collect::<Vec<_>>();
    let parameters = raw(&|e| pointer(e.parameter));
    let gradients = raw(&|e| pointer(&e.gradient));
    let first = raw(&|e| pointer(e.first));
    let second = raw(&|e| e.second.map_or(std::ptr::null_mut(), pointer));
    let decays: Vec<u8> = entries.iter().map(|e| u8::from(e.decays)).collect();
    let (adamw, momentum, (beta1, beta2), eps) = match update.rule {
        Rule::Sgd { momentum } => (0, momentum, (0.0, 0.0), 0.0),
        Rule::Adamw { betas, eps } => (1, 0.0, betas, eps),
    };
    if adamw == 1 && entries.iter().any(|e| e.second.is_none()) {
        return Err(OpsError::Argument {
            op: "update::step",
            message: "AdamW needs a second moment for every parameter".to_owned(),
        });
    }
    let raw = RawUpdate {
        adamw,
        lr: update.lr,
        weight_decay: update.weight_decay,
        momentum,
        beta1,
        beta2,
        eps,
        clip: update.clip,
        count: entries.len() as i64,
        parameters: parameters.as_ptr(),
        gradients: gradients.as_ptr(),
        first: first.as_ptr(),
        second: second.as_ptr(),
        decays: decays.as_ptr(),
        steps: pointer(update.steps),
        loss: update.loss.map_or(std::ptr::null_mut(), pointer),
    };
    let (mut taken, mut norm) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the lists have `count` entries of live tensors and outlive the call; the two results are new tensors, now ours.
    #[allow(unsafe_code)]
    unsafe {
        said((functions.step)(&raw, &mut taken, &mut norm))?;
        Ok(Taken {
            taken: Tensor::from_ptr(taken),
            norm: Tensor::from_ptr(norm),
        })
    }
}

/// `mean += weight * (value - mean)` for every pair. An error without the native library.
pub fn average(pairs: &[(&Tensor, &Tensor)], weight: f64) -> Result<(), OpsError> {
    let functions = library::loaded()?.functions.update;
    let means: Vec<_> = pairs.iter().map(|pair| pointer(pair.0)).collect();
    let values: Vec<_> = pairs.iter().map(|pair| pointer(pair.1)).collect();
    // SAFETY: both lists have as many entries as there are pairs, of live tensors.
    #[allow(unsafe_code)]
    unsafe {
        said((functions.average)(
            pairs.len() as i64,
            means.as_ptr(),
            values.as_ptr(),
            weight,
        ))
    }
}

/// Makes the gradients of these parameters undefined, which saves the next backward pass adding to zeros. An error without the native library.
pub fn forget_gradients<'a>(parameters: impl Iterator<Item = &'a Tensor>) -> Result<(), OpsError> {
    let functions = library::loaded()?.functions.update;
    let list: Vec<_> = parameters.map(pointer).collect();
    // SAFETY: the list has as many entries as is said, of live tensors.
    #[allow(unsafe_code)]
    unsafe {
        said((functions.forget)(list.len() as i64, list.as_ptr()))
    }
}

pub(crate) fn pointer(tensor: &Tensor) -> RawTensor {
    tensor.as_ptr().cast_mut()
}

/// What the library said: nothing, or what went wrong.
///
/// # Safety
/// `message` is null or a C string that lives until this thread's next call.
#[allow(unsafe_code)]
pub(crate) unsafe fn said(message: *const c_char) -> Result<(), OpsError> {
    if message.is_null() {
        return Ok(());
    }
    let text = unsafe { CStr::from_ptr(message) };
    Err(OpsError::Torch(text.to_string_lossy().into_owned()))
}
