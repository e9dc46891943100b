//! The selective scan and the causal convolution behind every Mamba layer.
//!
//! Two implementations stand side by side. [`reference`] is written in plain tensor operations, is slow, and says what
//! the operators mean. The native library `libvision_mamba_ops.so` (sources in `csrc/`, built by `build.rs`) does the
//! same many times faster, forwards and backwards, and serves Python too; `libvision_mamba_ops_cuda.so` beside it
//! (built by `scripts/build-cuda-op`) adds the GPU. [`selective_scan`] and [`causal_conv1d`] use the native
//! library where it loads and the reference otherwise; [`status`] says which, and what to do about it. [`native`] and
//! [`reference`] choose explicitly.

mod archive;
pub mod autocast;
mod check;
mod cuda;
pub mod device;
mod error;
pub mod gemm;
mod graph;
mod library;
pub mod memory;
mod meter;
pub mod native;
mod products;
mod profiler;
pub mod recompute;
pub mod reference;
pub mod update;

pub use cuda::{cuda_status, open_libtorch_cuda, CudaLibraryStatus, NoCuda, CUDA_LIBRARY_FILE};
pub use error::OpsError;
pub use graph::Graph;
pub use library::{status, LibraryStatus, LIBRARY_ENV, LIBRARY_FILE, LIBTORCH_VERSION};
pub use meter::{Cost, Meter};
pub use products::Products;
pub use profiler::{OperatorTime, Profiler};

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

/// The arguments of [`cross_selective_scan`].
///
/// Direction `k` is a selective scan of the tokens in the order `orders[k]`. What a token says of its own step does not depend on its
/// place in a sequence, so the caller projects every token once, for all directions: `weights[.., k, ..]` holds the `R` numbers that the
/// step size of each channel is made of (`delta = dt_weight[k] * weights`), then `B`, then `C`.
#[derive(Debug, Clone, Copy)]
pub struct CrossScan<'a> {
    /// Tokens, (B, L, D), or (B, K, L, D) where each direction has its own.
    pub u: &'a Tensor,
    /// (B, L, K, R + 2 N)
    pub weights: &'a Tensor,
    /// (K, D, R)
    pub dt_weight: &'a Tensor,
    /// (K, D, N)
    pub a: &'a Tensor,
    /// (K, D)
    pub d: Option<&'a Tensor>,
    /// (K, D)
    pub delta_bias: Option<&'a Tensor>,
    /// (K, L) of int32: the token that each step comes to; every row a permutation.
    pub orders: &'a Tensor,
    /// Whether step sizes go through softplus.
    pub delta_softplus: bool,
}

/// Selective scans of the same tokens in several orders, each result put back in its token's place and added up: (B, L, D). This is the
/// core of SS2D (VMamba, section 4.2). On the native library no direction's copy of anything is made; else on the reference.
pub fn cross_selective_scan(args: &CrossScan) -> Result<Tensor, OpsError> {
    if native::serves(args.u, args.a.size().last().copied()) {
        native::cross_selective_scan(args)
    } else {
        reference::cross_selective_scan(args)
    }
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
    if native::serves(x, None) {
        native::causal_conv1d(x, weight, bias, activation)
    } else {
        reference::causal_conv1d(x, weight, bias, activation)
    }
}
