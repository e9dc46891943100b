//! SS2D: the selective scan of an image in four directions, in every version that published weights use.
//!
//! Paper: Liu et al., *VMamba: Visual State Space Model*, 2024, section 4.2. References: MzeroMiko/VMamba at 2ed52ead062a,
//! `classification/models/vmamba.py` (`SS2D`); ziyangwang007/Mamba-UNet at dfe92ba37889, `code/networks/mamba_sys.py`, which has the
//! first version with its tensors in another order.
//!
//! *Differences from the reference*
//! - Channels last throughout. The reference's channel-first variant has the same tensors and the same numbers.
//! - The projection of a token does not depend on its place in a sequence, so one matrix product serves all four directions, and the
//!   four scans are one call that makes no copy of the map.
//! - The `xv` types, which fail in the reference, are not there. Mamba-2 (`m0`) is computed as a scan whose channels share step sizes and
//!   decays, and may have a gate, without which alone it runs in the reference.

mod form;

use std::cell::RefCell;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};
use vision_mamba_ops::autocast::in_float32;
use vision_mamba_ops::{cross_selective_scan, selective_scan, CrossScan, SelectiveScan};

pub use form::{ForwardType, Gate, OutNorm, Walk};

use super::scan::{ScanPattern, DIRECTIONS as K};
use super::VSSM_LINEAR;
use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{reuse, Activation, Conv, ConvOptions, LayerNorm, Linear};
use crate::{ModelError, Scope};

/// How the state-space parameters start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SsmInit {
    /// Mamba's rules.
    V0,
    /// Normal step-size parameters and `A_logs`.
    V1,
    /// Uniform step-size parameters, `A` of -1.
    V2,
}

/// In which order the reference registers the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// VMamba's.
    Vmamba,
    /// Mamba-UNet's.
    MambaUnet,
}

/// Sizes and options of an SS2D layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ss2dConfig {
    /// Channels of input and output.
    pub d_model: i64,
    /// States per inner channel.
    pub d_state: i64,
    /// Side of the depthwise convolution; below 2 there is none.
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
    /// Activation behind the convolution and of the gate.
    pub act: Activation,
    /// How the state-space parameters start.
    pub init: SsmInit,
    /// Which version.
    pub form: ForwardType,
    /// In which order the tensors stand.
    pub layout: Layout,
}

impl Ss2dConfig {
    /// VMamba's first version in the published sizes, as Mamba-UNet has it.
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
            act: Activation::Silu,
            init: SsmInit::V0,
            form: ForwardType::V0,
            layout: Layout::MambaUnet,
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
            ("dt_rank", self.dt_rank()),
            ("expand", self.d_inner()),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| *size < 1) {
            return Err(ModelError::config(
                field,
                format!("gives {size}, expected at least 1"),
            ));
        }
        if self.d_conv < 0 || (self.d_conv > 1 && self.d_conv % 2 == 0) {
            let message = format!(
                "{}, expected an odd size, an even one changes the size of the map",
                self.d_conv
            );
            return Err(ModelError::config("d_conv", message));
        }
        if self.form.heads && (self.init == SsmInit::V0 || self.d_inner() % self.dt_rank() != 0) {
            let message = format!(
                "m0, expected another initialisation than v0, which it has none of, and {} inner channels to be a multiple of dt_rank = {}",
                self.d_inner(),
                self.dt_rank()
            );
            return Err(ModelError::config("forward_type", message));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("{}, expected at least 0 and below 1", self.dropout);
            return Err(ModelError::config("dropout", message));
        }
        Ok(())
    }

    /// What the first version does whatever is configured.
    fn settled(mut self) -> Self {
        if self.form.first && self.layout == Layout::Vmamba {
            self.d_conv = 3;
            self.conv_bias = true;
            self.bias = false;
            self.act = Activation::Silu;
            self.init = SsmInit::V0;
        }
        self
    }
}

/// The tensors of the four scans.
struct Core {
    /// (K, rank + 2 N, D)
    x_proj_weight: Tensor,
    /// (K, D, rank); with heads there is none
    dt_projs_weight: Option<Tensor>,
    /// (K, D), with heads (K, rank)
    dt_projs_bias: Tensor,
    /// (K D, N), with heads (K, rank)
    a_logs: Tensor,
    /// (K D), with heads (K, rank, D / rank)
    ds: Tensor,
}

/// What the scan takes of them: dt_weight (K, D, rank), A (K, D, N), D and bias (K, D).
struct ScanParts {
    dt_weight: Tensor,
    a: Tensor,
    d: Tensor,
    bias: Tensor,
}

impl Core {
    fn new(scope: &Scope, config: &Ss2dConfig) -> Result<Self, ModelError> {
        let (d, rank, n) = (config.d_inner(), config.dt_rank(), config.d_state);
        // four stacked linear layers, each with its own fan-in
        let stacked = Init::Uniform {
            bound: 1.0 / (d as f64).sqrt(),
        };
        let within = (rank as f64).powf(-0.5);
        let (weight, bias, a) = match config.init {
            SsmInit::V0 => (
                Init::Uniform { bound: within },
                Init::DT_BIAS,
                Init::LogArange,
            ),
            SsmInit::V1 => (
                Init::Normal { std: 0.1 },
                Init::Normal { std: 0.1 },
                Init::Normal { std: 1.0 },
            ),
            SsmInit::V2 => (
                Init::Between {
                    low: 0.0,
                    high: 0.1,
                },
                Init::Between {
                    low: 0.0,
                    high: 0.1,
                },
                Init::Constant(0.0),
            ),
        };
        let x_proj = || scope.parameter("x_proj_weight", &[K, rank + 2 * n, d], stacked);
        let dt_weight = || scope.parameter("dt_projs_weight", &[K, d, rank], weight);
        let dt_bias = || scope.parameter("dt_projs_bias", &[K, d], bias);
        // only Mamba's rules exempt them from weight decay
        let state = |name: &str, shape: &[i64], rule| match config.init {
            SsmInit::V0 => scope.undecayed(name, shape, rule),
            _ => scope.parameter(name, shape, rule),
        };
        let a_logs = || state("A_logs", &[K * d, n], a);
        let ds = || state("Ds", &[K * d], Init::Constant(1.0));
        let x_proj_weight = x_proj()?;
        if config.form.heads {
            return Ok(Self {
                x_proj_weight,
                ds: state("Ds", &[K, rank, d / rank], Init::Constant(1.0))?,
                a_logs: state("A_logs", &[K, rank], a)?,
                dt_projs_bias: scope.parameter("dt_projs_bias", &[K, rank], bias)?,
                dt_projs_weight: None,
            });
        }
        Ok(match (config.layout, config.init) {
            (Layout::MambaUnet, _) => {
                let (dt_projs_weight, dt_projs_bias) = (Some(dt_weight()?), dt_bias()?);
                Self {
                    x_proj_weight,
                    dt_projs_weight,
                    dt_projs_bias,
                    a_logs: a_logs()?,
                    ds: ds()?,
                }
            }
            (Layout::Vmamba, SsmInit::V0) => {
                let (a_logs, ds) = (a_logs()?, ds()?);
                Self {
                    x_proj_weight,
                    a_logs,
                    ds,
                    dt_projs_weight: Some(dt_weight()?),
                    dt_projs_bias: dt_bias()?,
                }
            }
            (Layout::Vmamba, _) => {
                let (ds, a_logs) = (ds()?, a_logs()?);
                Self {
                    x_proj_weight,
                    a_logs,
                    ds,
                    dt_projs_weight: Some(dt_weight()?),
                    dt_projs_bias: dt_bias()?,
                }
            }
        })
    }

    fn parts(&self, config: &Ss2dConfig) -> ScanParts {
        let (d, n, rank) = (config.d_inner(), config.d_state, config.dt_rank());
        let a = self.a_logs.exp().neg();
        match &self.dt_projs_weight {
            Some(weight) => ScanParts {
                dt_weight: weight.shallow_clone(),
                a: a.view([K, d, n]),
                d: self.ds.view([K, d]),
                bias: self.dt_projs_bias.shallow_clone(),
            },
            None => {
                // every channel has the numbers of its head
                let of_head = |t: &Tensor| t.repeat_interleave_self_int(d / rank, 1, None);
                let one = Tensor::eye(rank, (a.kind(), a.device()));
                let one = one.repeat_interleave_self_int(d / rank, 0, None);
                ScanParts {
                    dt_weight: one.unsqueeze(0).expand([K, d, rank], false),
                    a: of_head(&a).unsqueeze(-1).expand([K, d, n], false),
                    d: self.ds.view([K, d]),
                    bias: of_head(&self.dt_projs_bias),
                }
            }
        }
    }
}

/// What [`OutNorm`] asks for.
struct OutNormLayers {
    norm: Option<LayerNorm>,
    conv: Option<Conv>,
    kind: OutNorm,
}

impl OutNormLayers {
    /// Names as in the reference's `nn.Sequential`s, whose places between hold permutations.
    fn new(scope: &Scope, kind: OutNorm, d_inner: i64) -> Result<Self, ModelError> {
        let norm = match kind {
            OutNorm::Layer => Some(LayerNorm::new(scope, d_inner, LayerNorm::EPS)?),
            OutNorm::LayerDwConv3 => Some(LayerNorm::new(&scope.sub(0), d_inner, LayerNorm::EPS)?),
            _ => None,
        };
        let place = match kind {
            OutNorm::DwConv3 => Some(1),
            OutNorm::LayerDwConv3 => Some(2),
            _ => None,
        };
        let conv = place
            .map(|at| depthwise(&scope.sub(at), d_inner, 3, false))
            .transpose()?;
        Ok(Self { norm, conv, kind })
    }

    /// (B, H, W, D) -> (B, H, W, D)
    fn forward(&self, x: Tensor) -> Tensor {
        let x = match &self.norm {
            Some(norm) => norm.forward(&x),
            None => x,
        };
        let x = match &self.conv {
            Some(conv) => convolve(conv, &x),
            None => x,
        };
        match self.kind {
            OutNorm::Softmax => {
                let size = x.size();
                x.flatten(1, 2)
                    .softmax(1, None)
                    .view([-1, size[1], size[2], size[3]])
            }
            OutNorm::Sigmoid => x.sigmoid(),
            _ => x,
        }
    }
}

fn depthwise(scope: &Scope, channels: i64, side: i64, bias: bool) -> Result<Conv, ModelError> {
    let options = ConvOptions {
        kernel: vec![side; 2],
        stride: vec![1; 2],
        padding: vec![side / 2; 2],
        groups: channels,
        weight: TORCH_WEIGHT,
        bias: bias.then(|| Init::torch_bias(side * side)),
    };
    Conv::new(scope, channels, channels, options)
}

/// A convolution of channels last: (B, H, W, D) -> (B, H, W, D')
fn convolve(conv: &Conv, x: &Tensor) -> Tensor {
    conv.forward(&x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1])
}

/// The layer.
pub struct Ss2d {
    config: Ss2dConfig,
    core: Core,
    in_proj: Linear,
    conv2d: Option<Conv>,
    out_norm: OutNormLayers,
    out_proj: Linear,
    /// The orders of the last map's size.
    orders: RefCell<Option<(i64, i64, Device, Tensor)>>,
}

impl Ss2d {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: Ss2dConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let config = config.settled();
        let (d_model, d_inner, form) = (config.d_model, config.d_inner(), config.form);
        let core = Core::new(scope, &config)?;
        let linear = |name, inputs, outputs| {
            let bias = config.bias.then_some(Init::Constant(0.0));
            Linear::with_init(&scope.sub(name), inputs, outputs, VSSM_LINEAR, bias)
        };
        let out_norm = || OutNormLayers::new(&scope.sub("out_norm"), form.out_norm, d_inner);
        // later versions make the norm when they read the forward type, before everything else
        let early = match form.first {
            true => None,
            false => Some(out_norm()?),
        };
        let wide = if form.gate == Gate::None { 1 } else { 2 };
        let in_proj = linear("in_proj", d_model, wide * d_inner)?;
        let conv2d = match config.d_conv > 1 {
            true => Some(depthwise(
                &scope.sub(if form.heads { "conv2d.1" } else { "conv2d" }),
                d_inner,
                config.d_conv,
                config.conv_bias,
            )?),
            false => None,
        };
        let out_norm = match early {
            Some(made) => made,
            None => out_norm()?,
        };
        let out_proj = linear("out_proj", d_inner, d_model)?;
        Ok(Self {
            config,
            core,
            in_proj,
            conv2d,
            out_norm,
            out_proj,
            orders: RefCell::new(None),
        })
    }

    /// (B, H, W, d_model) -> (B, H, W, d_model)
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let (config, d_inner) = (&self.config, self.config.d_inner());
        let (x, gate) = match config.form.gate {
            Gate::None => (self.in_proj.forward(x), None),
            kind => {
                let projected = self.in_proj.forward(x);
                let x = projected.narrow(-1, 0, d_inner);
                let z = projected.narrow(-1, d_inner, d_inner);
                let z = match kind {
                    Gate::Activated => reuse::activate(config.act, z),
                    _ => z,
                };
                (x, Some(z))
            }
        };
        let x = match &self.conv2d {
            Some(conv) => convolve(conv, &x),
            None => x,
        };
        let x = reuse::activate(config.act, x);
        let y = in_float32(&x, |x| match config.form.walk {
            Walk::Pattern(pattern) => self.scan(x, pattern),
            Walk::Cascade => self.cascade(x),
        })?;
        let y = self.out_norm.forward(y);
        let y = match config.form.out_act {
            true => reuse::activate(Activation::Gelu, y),
            false => y,
        };
        let y = match gate {
            Some(z) => reuse::multiply(y, &z),
            None => y,
        };
        Ok(self
            .out_proj
            .forward(&y)
            .dropout(config.dropout, train && config.dropout > 0.0))
    }

    /// All four directions in one call: (B, H, W, D) -> (B, H, W, D)
    fn scan(&self, x: &Tensor, pattern: ScanPattern) -> Result<Tensor, ModelError> {
        let (d, rank, n) = (
            self.config.d_inner(),
            self.config.dt_rank(),
            self.config.d_state,
        );
        let size = x.size();
        let tokens = x.flatten(1, 2);
        // (B, L, D) -> (B, L, K, rank + 2 N)
        let weights = tokens
            .linear(&self.core.x_proj_weight.flatten(0, 1), None::<&Tensor>)
            .view([-1, size[1] * size[2], K, rank + 2 * n]);
        let parts = self.core.parts(&self.config);
        let out = cross_selective_scan(&CrossScan {
            u: &tokens,
            weights: &weights,
            dt_weight: &parts.dt_weight,
            a: &parts.a,
            d: Some(&parts.d),
            delta_bias: Some(&parts.bias),
            orders: &self.orders(pattern, size[1], size[2], x.device()),
            delta_softplus: true,
        })?;
        Ok(out.view([-1, size[1], size[2], d]))
    }

    fn orders(&self, pattern: ScanPattern, h: i64, w: i64, device: Device) -> Tensor {
        let mut kept = self.orders.borrow_mut();
        match &*kept {
            Some((kept_h, kept_w, on, orders)) if (*kept_h, *kept_w, *on) == (h, w, device) => {
                orders.shallow_clone()
            }
            _ => {
                let orders = pattern.orders(h, w, device);
                *kept = Some((h, w, device, orders.shallow_clone()));
                orders
            }
        }
    }

    /// Rows, then columns: (B, H, W, D) -> (B, H, W, D)
    fn cascade(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let norm = |x: &Tensor| {
            x.layer_norm(
                [self.config.d_inner()],
                None::<&Tensor>,
                None::<&Tensor>,
                LayerNorm::EPS,
                false,
            )
        };
        let rows = self.lines(&norm(x), 0)?;
        Ok(self.lines(&norm(&rows).transpose(1, 2), 2)?.transpose(1, 2))
    }

    /// Directions `first` (forwards) and the next (backwards) along axis 2: (B, H, W, D) -> (B, H, W, D)
    fn lines(&self, x: &Tensor, first: i64) -> Result<Tensor, ModelError> {
        let (rank, n) = (self.config.dt_rank(), self.config.d_state);
        let lines = x.flatten(0, 1);
        let parts = self.core.parts(&self.config);
        let mut sum: Option<Tensor> = None;
        for k in [first, first + 1] {
            let own = match k > first {
                true => lines.flip([1]),
                false => lines.shallow_clone(),
            };
            let projected = own.linear(&self.core.x_proj_weight.select(0, k), None::<&Tensor>);
            let delta = (projected.narrow(-1, 0, rank))
                .linear(&parts.dt_weight.select(0, k), None::<&Tensor>);
            let out = selective_scan(&SelectiveScan {
                u: &own.transpose(1, 2),
                delta: &delta.transpose(1, 2),
                a: &parts.a.select(0, k),
                b: &projected.narrow(-1, rank, n).transpose(1, 2),
                c: &projected.narrow(-1, rank + n, n).transpose(1, 2),
                d: Some(&parts.d.select(0, k)),
                z: None,
                delta_bias: Some(&parts.bias.select(0, k)),
                delta_softplus: true,
            })?
            .out
            .transpose(1, 2);
            sum = Some(match sum {
                Some(sum) => sum + out,
                None => out,
            });
        }
        let sum = sum.ok_or_else(|| ModelError::config("scan", "no direction"))?;
        let size = x.size();
        Ok(sum.reshape([-1, size[1], size[2], size[3]]))
    }
}
