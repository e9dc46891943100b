//! The Mamba block of Vim, whose scan runs in both directions.
//!
//! Paper: Zhu et al., *Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model*, 2024, algorithm 1.
//! Reference: hustvl/Vim at dd0358ad1e42, `mamba-1p1p1/mamba_ssm/modules/mamba_simple.py`.
//!
//! *Differences from the reference*: both directions are scanned in one call, in place; nothing but the input of the second convolution
//! is reversed.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use vision_mamba_ops::autocast::in_float32;
use vision_mamba_ops::{causal_conv1d, cross_selective_scan, Activation, CrossScan};

use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{reuse, Linear};
use crate::ssm::MambaConfig;
use crate::{ModelError, Scope};

/// Which directions there are and what they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bidirectional {
    /// Forwards only: the Mamba block.
    None,
    /// Everything but `A` is shared; the convolution looks back in both directions of the scan.
    V1,
    /// Each direction has its own convolution, projections, `A` and `D`.
    V2,
}

/// Configuration of [`VimMixer`].
#[derive(Debug, Clone, PartialEq)]
pub struct VimMixerConfig {
    /// Sizes.
    pub mamba: MambaConfig,
    /// Directions.
    pub directions: Bidirectional,
    /// Whether the sum of the two directions is halved; only version 2 can be.
    pub divide: bool,
    /// First value of a factor a channel behind the block; none, no factor.
    pub layer_scale: Option<f64>,
    /// `out_proj` starts smaller by the square root of this many layers.
    pub layers: i64,
}

/// The tensors of one direction.
struct Direction {
    a_log: Tensor,
    d: Tensor,
    conv_weight: Tensor,
    conv_bias: Option<Tensor>,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
}

/// The block.
pub struct VimMixer {
    config: VimMixerConfig,
    gamma: Option<Tensor>,
    in_proj: Linear,
    out_proj: Linear,
    directions: Vec<Direction>,
    /// The orders of the last length.
    orders: RefCell<Option<(i64, Device, Tensor)>>,
}

impl VimMixer {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: VimMixerConfig) -> Result<Self, ModelError> {
        let mamba = &config.mamba;
        mamba.validate()?;
        let (d_model, d, rank, n) = (
            mamba.d_model,
            mamba.d_inner(),
            mamba.dt_rank(),
            mamba.d_state,
        );
        let gamma = match config.layer_scale {
            Some(scale) => Some(scope.parameter("gamma", &[d_model], Init::Constant(scale))?),
            None => None,
        };
        let state = |a: &str, skip: Option<&str>| {
            let a_log = scope.undecayed(a, &[d, n], Init::LogArange)?;
            let skip = skip
                .map(|name| scope.undecayed(name, &[d], Init::Constant(1.0)))
                .transpose()?;
            Ok::<_, ModelError>((a_log, skip))
        };
        let (a_log, skip) = state("A_log", Some("D"))?;
        let skip = skip.ok_or_else(|| ModelError::config("D", "is missing"))?;
        let back = match config.directions {
            Bidirectional::None => None,
            Bidirectional::V1 => Some(state("A_b_log", None)?),
            Bidirectional::V2 => Some(state("A_b_log", Some("D_b"))?),
        };
        // the reference sets biases of linear layers to zero after their own rule
        let linear = |name: &str, inputs, outputs, weight| {
            let bias = mamba.bias.then_some(Init::Constant(0.0));
            Linear::with_init(&scope.sub(name), inputs, outputs, weight, bias)
        };
        let in_proj = linear("in_proj", d_model, 2 * d, TORCH_WEIGHT)?;
        let direction = |suffix: &str, a_log: Tensor, d_skip: Tensor| {
            let conv = scope.sub(format!("conv1d{suffix}"));
            let conv_weight = conv.parameter("weight", &[d, 1, mamba.d_conv], TORCH_WEIGHT)?;
            let conv_bias = match mamba.conv_bias {
                true => Some(conv.parameter("bias", &[d], Init::torch_bias(mamba.d_conv))?),
                false => None,
            };
            let x_proj = (scope.sub(format!("x_proj{suffix}"))).parameter(
                "weight",
                &[rank + 2 * n, d],
                TORCH_WEIGHT,
            )?;
            let dt = scope.sub(format!("dt_proj{suffix}"));
            let bound = (rank as f64).powf(-0.5);
            Ok::<_, ModelError>(Direction {
                a_log,
                d: d_skip,
                conv_weight,
                conv_bias,
                x_proj,
                dt_weight: dt.parameter("weight", &[d, rank], Init::Uniform { bound })?,
                dt_bias: dt.parameter("bias", &[d], Init::DT_BIAS)?,
            })
        };
        let first = direction("", a_log, skip)?;
        let mut directions = vec![];
        match back {
            Some((a_log, Some(skip))) => directions.push(direction("_b", a_log, skip)?),
            Some((a_log, None)) => directions.push(Direction {
                a_log,
                d: first.d.shallow_clone(),
                conv_weight: first.conv_weight.shallow_clone(),
                conv_bias: first.conv_bias.as_ref().map(Tensor::shallow_clone),
                x_proj: first.x_proj.shallow_clone(),
                dt_weight: first.dt_weight.shallow_clone(),
                dt_bias: first.dt_bias.shallow_clone(),
            }),
            None => {}
        }
        directions.insert(0, first);
        let shrunk = Init::Uniform {
            bound: 1.0 / ((d * config.layers) as f64).sqrt(),
        };
        let out_proj = linear("out_proj", d, d_model, shrunk)?;
        Ok(Self {
            config,
            gamma,
            in_proj,
            out_proj,
            directions,
            orders: RefCell::new(None),
        })
    }

    /// (B, L, d_model) -> (B, L, d_model)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let y = in_float32(&self.in_proj.forward(x), |xz| self.mix(xz))?;
        let halved = self.config.divide && self.config.directions == Bidirectional::V2;
        let out = match (halved, &self.out_proj.bias) {
            // halving is exact, so it may follow the product, which has fewer values
            (true, None) => self.out_proj.forward(&y) * 0.5,
            (true, Some(_)) => self.out_proj.forward(&(y * 0.5)),
            (false, _) => self.out_proj.forward(&y),
        };
        Ok(match &self.gamma {
            Some(gamma) => out * gamma,
            None => out,
        })
    }

    /// Between the projections: (B, L, 2 d_inner) -> (B, L, d_inner)
    fn mix(&self, xz: &Tensor) -> Result<Tensor, ModelError> {
        let (d, length) = (self.config.mamba.d_inner(), xz.size()[1]);
        let (x, z) = (xz.narrow(-1, 0, d), xz.narrow(-1, d, d));
        let convolve = |x: &Tensor, by: &Direction| {
            let out = causal_conv1d(
                &x.transpose(1, 2),
                &by.conv_weight.squeeze_dim(1),
                by.conv_bias.as_ref(),
                Activation::Silu,
            )?;
            Ok::<_, ModelError>(out.transpose(1, 2))
        };
        let project = |u: &Tensor, by: &Direction| u.linear(&by.x_proj, None::<&Tensor>);
        let first = &self.directions[0];
        let forwards = convolve(&x, first)?;
        // tokens (B, L, D) or (B, K, L, D), and what they say of each direction (B, L, K, rank + 2 N)
        let count = self.directions.len() as i64;
        let (u, weights) = match (self.config.directions, self.directions.get(1)) {
            (Bidirectional::V2, Some(second)) => {
                let backwards = convolve(&x.flip([1]), second)?.flip([1]);
                let weights = [project(&forwards, first), project(&backwards, second)];
                (
                    Tensor::stack(&[forwards, backwards], 1),
                    Tensor::stack(&weights, 2),
                )
            }
            _ => {
                let weights = project(&forwards, first).unsqueeze(2);
                let weights = weights.expand([-1, -1, count, -1], false);
                (forwards, weights)
            }
        };
        let stack = |of: &dyn Fn(&Direction) -> Tensor| {
            let each: Vec<Tensor> = self.directions.iter().map(of).collect();
            Tensor::stack(&each, 0)
        };
        let y = cross_selective_scan(&CrossScan {
            u: &u,
            weights: &weights,
            dt_weight: &stack(&|k| k.dt_weight.shallow_clone()),
            a: &stack(&|k| k.a_log.exp().neg()),
            d: Some(&stack(&|k| k.d.shallow_clone())),
            delta_bias: Some(&stack(&|k| k.dt_bias.shallow_clone())),
            orders: &self.orders(length, x.device()),
            delta_softplus: true,
        })?;
        // the gate belongs to the position, so it may follow the sum
        Ok(reuse::multiply(y, &z.silu()))
    }

    /// Forwards and, with two directions, backwards.
    fn orders(&self, length: i64, device: Device) -> Tensor {
        let mut kept = self.orders.borrow_mut();
        if let Some((of, on, orders)) = &*kept {
            if (*of, *on) == (length, device) {
                return orders.shallow_clone();
            }
        }
        let forwards = Tensor::arange(length, (Kind::Int, device));
        let orders = match self.directions.len() {
            1 => forwards.unsqueeze(0),
            _ => Tensor::stack(&[&forwards, &forwards.flip([0])], 0),
        };
        *kept = Some((length, device, orders.shallow_clone()));
        orders
    }
}
