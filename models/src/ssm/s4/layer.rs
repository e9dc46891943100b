//! The layer around a kernel: convolution, skip, GELU and a gated linear unit.

use tch::{Kind, Tensor};
use vision_mamba_ops::autocast::in_float32;

use super::kernel::{S4Kernel, S4KernelConfig, S4Step};
use crate::init::Init;
use crate::layers::Linear;
use crate::ssm::lti::convolve;
use crate::{ModelError, Scope};

/// Configuration of [`S4Block`].
#[derive(Debug, Clone, PartialEq)]
pub struct S4BlockConfig {
    /// The kernel; of a bidirectional layer `channels` are those of one direction.
    pub kernel: S4KernelConfig,
    /// Longest kernel; none: as long as the sequence.
    pub l_max: Option<i64>,
    /// Whether a second kernel looks at what comes later.
    pub bidirectional: bool,
}

/// The layer, on (B, L, H).
pub struct S4Block {
    config: S4BlockConfig,
    d: Tensor,
    kernel: S4Kernel,
    output: Linear,
}

impl S4Block {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: S4BlockConfig) -> Result<Self, ModelError> {
        let (h, channels) = (config.kernel.d_model, config.kernel.channels);
        let layer = scope.sub("layer");
        let d = layer.parameter("D", &[channels, h], Init::Normal { std: 1.0 })?;
        let kernel = S4KernelConfig {
            channels: channels * if config.bidirectional { 2 } else { 1 },
            l_max: config.l_max,
            ..config.kernel.clone()
        };
        Ok(Self {
            d,
            kernel: S4Kernel::new(&layer.sub("kernel"), kernel)?,
            output: Linear::new(&scope.sub("output_linear.0"), channels * h, 2 * h, true)?,
            config,
        })
    }

    /// (B, L, H) -> (B, L, H)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.finish(&in_float32(x, |x| self.mix(x))?))
    }

    /// Before the output map: (B, L, H) -> (B, L, C H)
    fn mix(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = x.transpose(1, 2);
        let length = x.size()[2];
        let taps = self.config.l_max.map_or(length, |most| most.min(length));
        let kernel = self.kernel.kernel(taps, 1.0)?;
        let channels = self.config.kernel.channels;
        // (B, 1, H, L) with (C, H, taps) -> (B, C, H, L)
        let input = x.unsqueeze(1);
        let y = match self.config.bidirectional {
            false => convolve(&input, &kernel)?,
            true => {
                // y[t] += sum over s > t of k1[s - t - 1] x[s]: one step late, on purpose, as in the reference
                let forwards = kernel.narrow(0, 0, channels);
                let backwards = kernel.narrow(0, channels, channels);
                let late = convolve(&input.flip([-1]), &backwards)?
                    .narrow(-1, 0, length - 1)
                    .constant_pad_nd([1, 0]);
                convolve(&input, &forwards)? + late.flip([-1])
            }
        };
        let y = y + input * self.d.unsqueeze(-1);
        // (B, C, H, L) -> (B, L, C H)
        Ok(y.flatten(1, 2).transpose(1, 2))
    }

    fn finish(&self, y: &Tensor) -> Tensor {
        self.output.forward(&y.gelu("none")).glu(-1)
    }

    /// The discrete system behind [`step`](Self::step); only forwards in time.
    pub fn stepping(&self) -> Result<S4Step, ModelError> {
        if self.config.bidirectional {
            let message = "true, expected false: what comes later is not known step by step";
            return Err(ModelError::config("bidirectional", message));
        }
        self.kernel.stepping()
    }

    /// One token, (B, H) -> (B, H), and the next state; equals the same position of [`forward`](Self::forward) up to `l_max`.
    pub fn step(&self, x: &Tensor, system: &S4Step, state: &Tensor) -> (Tensor, Tensor) {
        let (y, next) = system.step(x, state);
        let y = (y + x.unsqueeze(1) * &self.d)
            .to_kind(Kind::Float)
            .flatten(1, 2);
        (self.finish(&y), next)
    }
}
