//! The native library's operators, without falling back: for tests, benches and those who want to know.

use crate::{cuda, library, Activation, CrossScan, OpsError, ScanOutput, SelectiveScan};
use tch::{Device, Kind, Tensor};

/// Whether the native library is loaded.
pub fn is_ready() -> bool {
    library::loaded().is_ok()
}

/// Whether the native library is loaded and has the form asked for (all but complex `a`).
pub(crate) fn takes(args: &SelectiveScan) -> bool {
    !matches!(args.a.kind(), Kind::ComplexFloat | Kind::ComplexDouble)
        && serves(args.u, args.a.size().last().copied())
}

/// Whether the native library is loaded and computes where `first` lies, its argument that decides the element type. On a GPU the CUDA half is
/// needed, which has no float64 and a largest number of states.
pub(crate) fn serves(first: &Tensor, states: Option<i64>) -> bool {
    match first.device() {
        Device::Cpu => is_ready(),
        Device::Cuda(_) => {
            cuda::cuda_status().is_ready()
                && first.kind() != Kind::Double
                && states.is_none_or(|states| states <= cuda::MOST_STATES)
        }
        _ => false,
    }
}

/// The selective scan on the native library; see [`crate::selective_scan`].
pub fn selective_scan(args: &SelectiveScan) -> Result<ScanOutput, OpsError> {
    library::loaded()?.selective_scan(args)
}

/// Scans in several orders on the native library; see [`crate::cross_selective_scan`].
pub fn cross_selective_scan(args: &CrossScan) -> Result<Tensor, OpsError> {
    library::loaded()?.cross_selective_scan(args)
}

/// The causal convolution on the native library; see [`crate::causal_conv1d`].
pub fn causal_conv1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor, OpsError> {
    library::loaded()?.causal_conv1d(x, weight, bias, activation)
}
