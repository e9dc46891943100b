//! SS2D, version 0: the selective scan of an image in four directions.
//!
//! Paper: Liu et al., *VMamba: Visual State Space Model*, 2024. Reference: ziyangwang007/Mamba-UNet at dfe92ba37889,
//! `code/networks/mamba_sys.py` (`SS2D`, `forward_corev0`), itself VMamba's first version.
//!
//! *Differences from the reference*
//! - The projection of a token does not depend on its place in a sequence, so one matrix product serves all four
//!   directions and its small results are reordered, not its large inputs.
//! - Each direction is scanned on its own, from reordered views, without concatenating the four.

use tch::Tensor;
use vision_mamba_ops::{selective_scan, SelectiveScan};

use super::scan::{cross_merge, cross_scan};
use super::VSSM_LINEAR;
use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{Conv, ConvOptions, LayerNorm, Linear};
use crate::{ModelError, Scope};

/// Number of scan directions.
const K: i64 = 4;

/// Sizes of an SS2D layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ss2dConfig {
    /// Channels of input and output.
    pub d_model: i64,
    /// States per inner channel.
    pub d_state: i64,
    /// Side of the depthwise convolution.
    pub d_conv: i64,
    /// Inner channels per channel.
    pub expand: f64,
    /// Rank of the step-size projection; none: a sixteenth of `d_model`, rounded up.
    pub dt_rank: Option<i64>,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether `in_proj` and `out_proj` have a bias.
    pub bias: bool,
    /// Probability that a value of the output is dropped in training.
    pub dropout: f64,
}

impl Ss2dConfig {
    /// The published sizes.
    pub fn new(d_model: i64) -> Self {
        Self {
            d_model,
            d_state: 16,
            d_conv: 3,
            expand: 2.0,
            dt_rank: None,
            conv_bias: true,
            bias: false,
            dropout: 0.0,
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

    /// Every size at least one, the kernel odd, the probability one.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("d_model", self.d_model),
            ("d_state", self.d_state),
            ("d_conv", self.d_conv),
            ("dt_rank", self.dt_rank()),
            ("expand", self.d_inner()),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| *size < 1) {
            return Err(ModelError::config(
                field,
                format!("gives {size}, expected at least 1"),
            ));
        }
        if self.d_conv % 2 == 0 {
            let message = format!(
                "{}, expected an odd size, an even one changes the size of the map",
                self.d_conv
            );
            return Err(ModelError::config("d_conv", message));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("{}, expected at least 0 and below 1", self.dropout);
            return Err(ModelError::config("dropout", message));
        }
        Ok(())
    }
}

/// The layer.
pub struct Ss2d {
    config: Ss2dConfig,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    a_logs: Tensor,
    ds: Tensor,
    in_proj: Linear,
    conv2d: Conv,
    out_norm: LayerNorm,
    out_proj: Linear,
}

impl Ss2d {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: Ss2dConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let (d_model, d_inner, rank, n) = (
            config.d_model,
            config.d_inner(),
            config.dt_rank(),
            config.d_state,
        );
        // four stacked linear layers, each with its own fan-in
        let bound = 1.0 / (d_inner as f64).sqrt();
        let x_proj_weight = scope.parameter(
            "x_proj_weight",
            &[K, rank + 2 * n, d_inner],
            Init::Uniform { bound },
        )?;
        let bound = (rank as f64).powf(-0.5);
        let dt_projs_weight = scope.parameter(
            "dt_projs_weight",
            &[K, d_inner, rank],
            Init::Uniform { bound },
        )?;
        let dt_projs_bias = scope.parameter("dt_projs_bias", &[K, d_inner], Init::DT_BIAS)?;
        let a_logs = scope.undecayed("A_logs", &[K * d_inner, n], Init::LogArange)?;
        let ds = scope.undecayed("Ds", &[K * d_inner], Init::Constant(1.0))?;
        let linear = |name, inputs, outputs| {
            let bias = config.bias.then_some(Init::Constant(0.0));
            Linear::with_init(&scope.sub(name), inputs, outputs, VSSM_LINEAR, bias)
        };
        let in_proj = linear("in_proj", d_model, 2 * d_inner)?;
        let conv = ConvOptions {
            kernel: vec![config.d_conv; 2],
            stride: vec![1; 2],
            padding: vec![config.d_conv / 2; 2],
            groups: d_inner,
            weight: TORCH_WEIGHT,
            bias: config
                .conv_bias
                .then(|| Init::torch_bias(config.d_conv * config.d_conv)),
        };
        let conv2d = Conv::new(&scope.sub("conv2d"), d_inner, d_inner, conv)?;
        let out_norm = LayerNorm::new(&scope.sub("out_norm"), d_inner, LayerNorm::EPS)?;
        let out_proj = linear("out_proj", d_inner, d_model)?;
        Ok(Self {
            config,
            x_proj_weight,
            dt_projs_weight,
            dt_projs_bias,
            a_logs,
            ds,
            in_proj,
            conv2d,
            out_norm,
            out_proj,
        })
    }

    /// (B, H, W, d_model) -> (B, H, W, d_model)
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let d_inner = self.config.d_inner();
        let xz = self.in_proj.forward(x);
        let (x, z) = (xz.narrow(-1, 0, d_inner), xz.narrow(-1, d_inner, d_inner));
        // (B, H, W, D) -> (B, D, H, W) -> (B, H, W, D)
        let x = self
            .conv2d
            .forward(&x.permute([0, 3, 1, 2]))
            .silu()
            .permute([0, 2, 3, 1]);
        let y = self.out_norm.forward(&self.scan(&x)?) * z.silu();
        Ok(self
            .out_proj
            .forward(&y)
            .dropout(self.config.dropout, train && self.config.dropout > 0.0))
    }

    /// (B, H, W, D) -> (B, H, W, D)
    fn scan(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (d_inner, rank, n) = (
            self.config.d_inner(),
            self.config.dt_rank(),
            self.config.d_state,
        );
        let size = x.size();
        let each = rank + 2 * n;
        // (B, H, W, D) -> (B, H, W, K (rank + 2 N)), direction by direction
        let projected = x.linear(&self.x_proj_weight.flatten(0, 1), None::<&Tensor>);
        let a = self.a_logs.exp().neg();
        let inputs = cross_scan(x);
        let mut outputs = Vec::with_capacity(4);
        for (k, u) in (0i64..).zip(&inputs) {
            // the k-th order of the k-th projection: (B, H, W, rank + 2 N) -> (B, L, rank + 2 N)
            let own = one_order(&projected.narrow(-1, k * each, each), k);
            let delta = own
                .narrow(-1, 0, rank)
                .linear(&self.dt_projs_weight.select(0, k), None::<&Tensor>);
            let scan = selective_scan(&SelectiveScan {
                u: &u.transpose(1, 2),
                delta: &delta.transpose(1, 2),
                a: &a.narrow(0, k * d_inner, d_inner),
                b: &own.narrow(-1, rank, n).transpose(1, 2),
                c: &own.narrow(-1, rank + n, n).transpose(1, 2),
                d: Some(&self.ds.narrow(0, k * d_inner, d_inner)),
                z: None,
                delta_bias: Some(&self.dt_projs_bias.select(0, k)),
                delta_softplus: true,
            })?;
            outputs.push(scan.out.transpose(1, 2));
        }
        let outputs = outputs
            .try_into()
            .map_err(|_| ModelError::config("scan", "expected four directions"))?;
        Ok(cross_merge(outputs, (size[1], size[2])))
    }
}

/// The k-th result of [`cross_scan`] without the others.
fn one_order(x: &Tensor, k: i64) -> Tensor {
    let turned = if k % 2 == 0 {
        x.shallow_clone()
    } else {
        x.transpose(1, 2)
    };
    let line = turned.flatten(1, 2);
    if k < 2 {
        line
    } else {
        line.flip([1])
    }
}
