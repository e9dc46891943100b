//! Initialisation by PyTorch's rules, stated explicitly because tch's defaults differ from them.
//!
//! Random values come from libtorch's global generator; whoever wants repeatable weights seeds it before building.

use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// How a parameter gets its first values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f64),
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
    /// Uniform in `[low, high]`.
    Between {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Kaiming uniform, fan-in, for a leaky ReLU of slope `a`: `bound = sqrt(6 / ((1 + a^2) fan_in))`.
    KaimingUniform {
        /// Negative slope.
        a: f64,
    },
    /// Kaiming normal, fan-in, for a leaky ReLU of slope `a`: `std = sqrt(2 / ((1 + a^2) fan_in))`.
    KaimingNormal {
        /// Negative slope.
        a: f64,
    },
    /// Normal with mean 0, cut at -2 and 2. (For the small deviations in use the cut is never reached, so values
    /// beyond are clamped, not drawn again.)
    TruncNormal {
        /// Standard deviation.
        std: f64,
    },
    /// Bias of Mamba's step size: the inverse softplus of a step drawn log-uniformly from `[min, max]`, not below `floor`.
    DtBias {
        /// Smallest step.
        min: f64,
        /// Largest step.
        max: f64,
        /// Lower clamp, acts when `min` is smaller.
        floor: f64,
    },
    /// `log(1), log(2) .. log(N)` in every row of a (D, N) matrix: the real S4D start of `A`.
    LogArange,
}

/// What `nn.Linear` and the convolutions of PyTorch do to their weight: uniform within `1 / sqrt(fan_in)`.
pub const TORCH_WEIGHT: Init = Init::KaimingUniform { a: SQRT_5 };
const SQRT_5: f64 = 2.236_067_977_499_79;

impl Init {
    /// What `nn.Linear` and the convolutions of PyTorch do to their bias.
    pub fn torch_bias(fan_in: i64) -> Init {
        Init::Uniform {
            bound: 1.0 / (fan_in as f64).sqrt(),
        }
    }

    /// Mamba's step-size bias with the published range.
    pub const DT_BIAS: Init = Init::DtBias {
        min: 1e-3,
        max: 1e-1,
        floor: 1e-4,
    };

    /// A new float32 tensor.
    pub fn make(self, shape: &[i64], device: Device) -> Result<Tensor, ModelError> {
        let mut t = Tensor::f_zeros(shape, (Kind::Float, device))?;
        let t = match self {
            Init::Constant(0.0) => t,
            Init::Constant(value) => t.f_fill_(value)?,
            Init::Uniform { bound } => t.f_uniform_(-bound, bound)?,
            Init::Between { low, high } => t.f_uniform_(low, high)?,
            Init::Normal { std } => t.f_normal_(0.0, std)?,
            Init::KaimingUniform { a } => {
                let bound = (6.0 / ((1.0 + a * a) * fan_in(shape))).sqrt();
                t.f_uniform_(-bound, bound)?
            }
            Init::KaimingNormal { a } => {
                t.f_normal_(0.0, (2.0 / ((1.0 + a * a) * fan_in(shape))).sqrt())?
            }
            Init::TruncNormal { std } => t.f_normal_(0.0, std)?.f_clamp_(-2.0, 2.0)?,
            Init::DtBias { min, max, floor } => {
                let dt = t
                    .f_uniform_(min.ln(), max.ln())?
                    .f_exp()?
                    .f_clamp_min(floor)?;
                // softplus^-1(dt) = dt + log(1 - exp(-dt)), written so that small dt keep their digits
                let tail = dt.f_neg()?.f_expm1()?.f_neg()?.f_log()?;
                dt.f_add(&tail)?
            }
            Init::LogArange => {
                let n = shape.last().copied().unwrap_or(0);
                let row = Tensor::f_arange_start(1, n + 1, (Kind::Float, device))?.f_log()?;
                t.f_copy_(&row.f_expand(shape, false)?)?;
                t
            }
        };
        Ok(t)
    }
}

/// Inputs that one output value sees: channels of the weight's second axis times the kernel's size.
fn fan_in(shape: &[i64]) -> f64 {
    shape.iter().skip(1).product::<i64>() as f64
}
