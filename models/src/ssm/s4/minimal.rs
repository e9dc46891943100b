//! The small S4D of the reference (`models/s4/s4d.py`): zero-order hold, B of ones, A with the other sign of its imaginary part.

use tch::{Kind, Tensor};
use vision_mamba_ops::autocast::in_float32;

use crate::init::{Init, TORCH_WEIGHT};
use crate::ssm::lti::{as_complex, convolve, DOUBLE};
use crate::{ModelError, Scope};

/// The layer, on (B, H, L).
pub struct S4dMinimal {
    d: Tensor,
    c: Tensor,
    log_dt: Tensor,
    log_a_real: Tensor,
    a_imag: Tensor,
    weight: Tensor,
    bias: Tensor,
}

impl S4dMinimal {
    /// `d_model` systems of `d_state` states, first steps log-uniform in `dt`.
    pub fn new(
        scope: &Scope,
        d_model: i64,
        d_state: i64,
        dt: (f64, f64),
    ) -> Result<Self, ModelError> {
        if d_state < 2 || d_state % 2 != 0 {
            let message =
                format!("{d_state}, expected an even number: states come in conjugate pairs");
            return Err(ModelError::config("d_state", message));
        }
        let (h, half) = (d_model, d_state / 2);
        let d = scope.parameter("D", &[h], Init::Normal { std: 1.0 })?;
        let kernel = scope.sub("kernel");
        let c = Init::Normal { std: 0.5f64.sqrt() };
        let c = kernel.parameter("C", &[h, half, 2], c)?;
        let (low, high) = (dt.0.ln(), dt.1.ln());
        let log_dt = Tensor::rand([h], DOUBLE) * (high - low) + low;
        let log_dt = kernel.given("log_dt", &log_dt, false)?;
        let log_a_real = Init::Constant(0.5f64.ln());
        let log_a_real = kernel.undecayed("log_A_real", &[h, half], log_a_real)?;
        let a_imag = (Tensor::arange(half, DOUBLE) * std::f64::consts::PI)
            .unsqueeze(0)
            .repeat([h, 1]);
        let a_imag = kernel.given("A_imag", &a_imag, false)?;
        let output = scope.sub("output_linear.0");
        Ok(Self {
            d,
            c,
            log_dt,
            log_a_real,
            a_imag,
            weight: output.parameter("weight", &[2 * h, h, 1], TORCH_WEIGHT)?,
            bias: output.parameter("bias", &[2 * h], Init::torch_bias(h))?,
        })
    }

    /// Taps, (H, length).
    pub fn kernel(&self, length: i64) -> Tensor {
        let a = Tensor::complex(&-self.log_a_real.exp(), &self.a_imag);
        let dta = &a * self.log_dt.exp().unsqueeze(-1);
        let c = as_complex(&self.c) * (dta.exp() - 1.0) / a;
        let steps = Tensor::arange(length, (Kind::Float, c.device()));
        let powers = (dta.unsqueeze(-1) * steps).exp();
        (c.unsqueeze(-1) * powers)
            .sum_dim_intlist([-2].as_slice(), false, None::<Kind>)
            .real()
            * 2.0
    }

    /// (B, H, L) -> (B, H, L)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let y = in_float32(x, |x| {
            let y = convolve(x, &self.kernel(x.size()[2]))?;
            Ok::<_, ModelError>(y + x * self.d.unsqueeze(-1))
        })?;
        let y = y.gelu("none").transpose(1, 2);
        let y = y.linear(&self.weight.squeeze_dim(2), Some(&self.bias));
        Ok(y.glu(-1).transpose(1, 2))
    }
}
