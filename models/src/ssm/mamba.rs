//! The Mamba block (S6): gated, causal convolution followed by the selective scan.
//!
//! Paper: Gu and Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023.
//! Reference: state-spaces/mamba at e9594ce1c732, `mamba_ssm/modules/mamba_simple.py`.
//!
//! *Differences from the reference*
//! - Sequences stay (B, L, D) in memory and go to convolution and scan as transposed views.
//! - The causal convolution takes any width, the reference's kernel 2 to 4.

use tch::{Device, Kind, Tensor};
use vision_mamba_ops::autocast::in_float32;
use vision_mamba_ops::{causal_conv1d, selective_scan, Activation, SelectiveScan};

use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::Linear;
use crate::{ModelError, Scope};

/// Sizes of a Mamba block.
#[derive(Debug, Clone, PartialEq)]
pub struct MambaConfig {
    /// Channels of input and output.
    pub d_model: i64,
    /// States per inner channel.
    pub d_state: i64,
    /// Width of the causal convolution.
    pub d_conv: i64,
    /// Inner channels per channel.
    pub expand: f64,
    /// Rank of the step-size projection; none: a sixteenth of `d_model`, rounded up.
    pub dt_rank: Option<i64>,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether `in_proj` and `out_proj` have a bias.
    pub bias: bool,
}

impl MambaConfig {
    /// The published sizes.
    pub fn new(d_model: i64) -> Self {
        Self {
            d_model,
            d_state: 16,
            d_conv: 4,
            expand: 2.0,
            dt_rank: None,
            conv_bias: true,
            bias: false,
        }
    }

    /// Inner channels.
    pub fn d_inner(&self) -> i64 {
        (self.expand * self.d_model as f64) as i64
    }

    /// Rank of the step-size projection.
    pub fn dt_rank(&self) -> i64 {
        self.dt_rank.unwrap_or((self.d_model + 15) / 16)
    }

    /// Every size at least one.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("d_model", self.d_model),
            ("d_state", self.d_state),
            ("d_conv", self.d_conv),
            ("dt_rank", self.dt_rank()),
            ("expand", self.d_inner()),
        ];
        match sizes.into_iter().find(|(_, size)| *size < 1) {
            Some((field, size)) => Err(ModelError::config(
                field,
                format!("gives {size}, expected at least 1"),
            )),
            None => Ok(()),
        }
    }
}

/// What one-token decoding carries from token to token.
pub struct MambaState {
    /// The last `d_conv` inputs of the convolution, newest last: (B, d_inner, d_conv).
    pub conv: Tensor,
    /// State of the scan: (B, d_inner, d_state).
    pub ssm: Tensor,
}

/// The block.
pub struct Mamba {
    config: MambaConfig,
    a_log: Tensor,
    d: Tensor,
    in_proj: Linear,
    conv_weight: Tensor,
    conv_bias: Option<Tensor>,
    x_proj: Linear,
    dt_weight: Tensor,
    dt_bias: Tensor,
    out_proj: Linear,
}

impl Mamba {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: MambaConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let (d_model, d_inner, rank, n) = (
            config.d_model,
            config.d_inner(),
            config.dt_rank(),
            config.d_state,
        );
        let a_log = scope.undecayed("A_log", &[d_inner, n], Init::LogArange)?;
        let d = scope.undecayed("D", &[d_inner], Init::Constant(1.0))?;
        let in_proj = Linear::new(&scope.sub("in_proj"), d_model, 2 * d_inner, config.bias)?;
        let conv = scope.sub("conv1d");
        let conv_weight = conv.parameter("weight", &[d_inner, 1, config.d_conv], TORCH_WEIGHT)?;
        let conv_bias = match config.conv_bias {
            true => Some(conv.parameter("bias", &[d_inner], Init::torch_bias(config.d_conv))?),
            false => None,
        };
        let x_proj = Linear::new(&scope.sub("x_proj"), d_inner, rank + 2 * n, false)?;
        let dt = scope.sub("dt_proj");
        // keeps the variance of the low-rank step size
        let bound = (rank as f64).powf(-0.5);
        let dt_weight = dt.parameter("weight", &[d_inner, rank], Init::Uniform { bound })?;
        let dt_bias = dt.parameter("bias", &[d_inner], Init::DT_BIAS)?;
        let out_proj = Linear::new(&scope.sub("out_proj"), d_inner, d_model, config.bias)?;
        Ok(Self {
            config,
            a_log,
            d,
            in_proj,
            conv_weight,
            conv_bias,
            x_proj,
            dt_weight,
            dt_bias,
            out_proj,
        })
    }

    /// (B, L, d_model) -> (B, L, d_model)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let y = in_float32(&self.in_proj.forward(x), |xz| self.mix(xz))?;
        Ok(self.out_proj.forward(&y))
    }

    /// Between the projections: (B, L, 2 d_inner) -> (B, L, d_inner)
    fn mix(&self, xz: &Tensor) -> Result<Tensor, ModelError> {
        let d_inner = self.config.d_inner();
        // two views (B, d_inner, L)
        let xz = xz.transpose(1, 2);
        let (x, z) = (xz.narrow(1, 0, d_inner), xz.narrow(1, d_inner, d_inner));
        let x = causal_conv1d(
            &x,
            &self.conv_weight.squeeze_dim(1),
            self.conv_bias.as_ref(),
            Activation::Silu,
        )?;
        // (B, d_inner, L) -> (B, L, rank + 2 N)
        let (dt, b, c) = self.project(&x.transpose(1, 2));
        // (B, L, rank) -> (B, L, d_inner); the bias of the step size belongs to the scan
        let delta = dt.linear(&self.dt_weight, None::<&Tensor>);
        let scan = selective_scan(&SelectiveScan {
            u: &x,
            delta: &delta.transpose(1, 2),
            a: &self.a_log.exp().neg(),
            b: &b.transpose(1, 2),
            c: &c.transpose(1, 2),
            d: Some(&self.d),
            z: Some(&z),
            delta_bias: Some(&self.dt_bias),
            delta_softplus: true,
        })?;
        Ok(scan.out.transpose(1, 2))
    }

    /// The token-dependent parts: (.., d_inner) -> step size (.., rank), B and C (.., N).
    fn project(&self, x: &Tensor) -> (Tensor, Tensor, Tensor) {
        let (rank, n) = (self.config.dt_rank(), self.config.d_state);
        let all = self.x_proj.forward(x);
        (
            all.narrow(-1, 0, rank),
            all.narrow(-1, rank, n),
            all.narrow(-1, rank + n, n),
        )
    }

    /// The state before the first token.
    pub fn start(&self, batch: i64, device: Device) -> MambaState {
        let zeros =
            |last| Tensor::zeros([batch, self.config.d_inner(), last], (Kind::Float, device));
        MambaState {
            conv: zeros(self.config.d_conv),
            ssm: zeros(self.config.d_state),
        }
    }

    /// One token, (B, d_model) -> (B, d_model); equals the same position of [`forward`](Self::forward).
    pub fn step(&self, x: &Tensor, state: &mut MambaState) -> Tensor {
        let d_inner = self.config.d_inner();
        let xz = self.in_proj.forward(x);
        let (x, z) = (xz.narrow(-1, 0, d_inner), xz.narrow(-1, d_inner, d_inner));
        state.conv = Tensor::cat(
            &[
                state.conv.narrow(2, 1, self.config.d_conv - 1),
                x.unsqueeze(-1),
            ],
            2,
        );
        let sum = [2i64];
        let mut x = (&state.conv * self.conv_weight.squeeze_dim(1)).sum_dim_intlist(
            sum.as_slice(),
            false,
            None::<Kind>,
        );
        if let Some(bias) = &self.conv_bias {
            x += bias;
        }
        let x = x.silu();
        let (dt, b, c) = self.project(&x);
        let dt = dt
            .linear(&self.dt_weight, Some(&self.dt_bias))
            .softplus()
            .unsqueeze(-1);
        let decay = (&dt * self.a_log.exp().neg()).exp();
        state.ssm = &state.ssm * decay + dt * b.unsqueeze(1) * x.unsqueeze(-1);
        let y = state.ssm.matmul(&c.unsqueeze(-1)).squeeze_dim(-1) + &self.d * x;
        self.out_proj.forward(&(y * z.silu()))
    }
}
