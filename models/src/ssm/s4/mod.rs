//! S4 and S4D: state spaces whose kernel is computed whole, and the layer around it.
//!
//! Papers: Gu, Goel, Ré, *Efficiently Modeling Long Sequences with Structured State Spaces*, 2022 (S4); Gu, Gupta, Goel, Ré, *On the
//! Parameterization and Initialization of Diagonal State Space Models*, 2022 (S4D). Reference: state-spaces/s4 at e757cef57d89, `models/s4/s4.py` and
//! `models/s4/s4d.py`.
//!
//! *Differences from the reference*
//! - The transforms of its defaults alone: A = -exp(A_real) - i A_imag, dt = exp(inv_dt).
//! - S4's resolvent and the length set-up of C are computed in float64; parameters and kernels are float32.
//! - Layers without gate and bottleneck, with GELU and a gated linear unit behind.

mod kernel;
mod layer;
mod minimal;

pub use kernel::{Kernel, S4Discretisation, S4Init, S4Kernel, S4KernelConfig, S4Step};
pub use layer::{S4Block, S4BlockConfig};
pub use minimal::S4dMinimal;
