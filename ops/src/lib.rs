//! The selective scan and the causal convolution behind every Mamba layer.
//!
//! Two implementations stand side by side. [`reference`] is written in plain tensor operations, is slow, and says what
//! the operators mean. The native library `libvision_mamba_ops.so` (sources in `csrc/`, built by `build.rs`) does the
//! same many times faster, forwards and backwards, and serves Python too. [`selective_scan`] and [`causal_conv1d`] use the native
//! library where it loads and the reference otherwise; [`status`] says which, and what to do about it. [`native`] and
//! [`reference`] choose explicitly.

mod archive;
mod check;
mod error;
mod library;
mod meter;
pub mod native;
pub mod reference;

pub use error::OpsError;
pub use library::{status, LibraryStatus, LIBRARY_ENV, LIBRARY_FILE, LIBTORCH_VERSION};
pub use meter::{Cost, Meter};

use tch::Tensor;

/// The arguments of [`selective_scan`], in the order and with the names of the literature.
///
/// For every batch entry and channel `d`, with `dt = delta + delta_bias` (through softplus if asked for):
///
/// ```text
/// h[t] = exp(dt[t] * A[d]) * h[t-1] + dt[t] * u[t] * B[t]        h: d_state numbers, h[-1] = 0
/// y[t] = sum(h[t] * C[t]) + D[d] * u[t]
/// out[t] = y[t] * silu(z[t])
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SelectiveScan<'a> {
    /// Input, (B, D, L).
    pub u: &'a Tensor,
    /// Step sizes before bias and softplus, (B, D, L).
    pub delta: &'a Tensor,
    /// State matrix, one diagonal a channel, (D, N).
    pub a: &'a Tensor,
    /// Input weights: (B, N, L), (B, G, N, L) with G groups of D / G channels, or constant (D, N).
    pub b: &'a Tensor,
    /// Output weights, in any of the forms of `b`.
    pub c: &'a Tensor,
    /// Skip, (D).
    pub d: Option<&'a Tensor>,
    /// Gate, (B, D, L).
    pub z: Option<&'a Tensor>,
    /// Added to `delta`, (D).
    pub delta_bias: Option<&'a Tensor>,
    /// Whether `delta + delta_bias` goes through softplus.
    pub delta_softplus: bool,
}

/// What [`selective_scan`] returns.
#[derive(Debug)]
pub struct ScanOutput {
    /// (B, D, L), in the element type of `u`.
    pub out: Tensor,
    /// The state after the last step, (B, D, N), float32 or wider. Gradients flow through it too.
    pub last_state: Tensor,
}

/// What [`causal_conv1d`] applies to its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
}

/// The selective scan, on the native library where it is loaded, else on the reference.
pub fn selective_scan(args: &SelectiveScan) -> Result<ScanOutput, OpsError> {
    if native::takes(args) {
        native::selective_scan(args)
    } else {
        reference::selective_scan(args)
    }
}

/// Depthwise convolution over the past: `out[t] = activation(bias + sum_k weight[k] * x[t - (W - 1) + k])`, `x` being zero before
/// its start. `x`: (B, D, L), `weight`: (D, W), `bias`: (D). On the native library where it is loaded, else on the reference.
pub fn causal_conv1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor, OpsError> {
    if native::serves(x) {
        native::causal_conv1d(x, weight, bias, activation)
    } else {
        reference::causal_conv1d(x, weight, bias, activation)
    }
}
