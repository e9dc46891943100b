//! Transposed convolution over any number of spatial axes, its kernel as large as its stride.

use tch::Tensor;

use crate::init::Init;
use crate::{ModelError, Scope};

/// Every value becomes a box; boxes touch and do not overlap. `weight` is (in, out, stride..).
pub struct ConvTranspose {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: Vec<i64>,
}

impl ConvTranspose {
    /// Registers `weight` and, with a rule for it, `bias`.
    pub fn new(
        scope: &Scope,
        (inputs, outputs): (i64, i64),
        stride: &[i64],
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self, ModelError> {
        let shape = [&[inputs, outputs], stride].concat();
        let weight = scope.parameter("weight", &shape, weight)?;
        let bias = bias
            .map(|rule| scope.parameter("bias", &[outputs], rule))
            .transpose()?;
        Ok(Self {
            weight,
            bias,
            stride: stride.to_vec(),
        })
    }

    /// (B, in, spatial..) -> (B, out, stride * spatial..)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let axes = self.stride.len();
        let (zeros, ones) = (vec![0; axes], vec![1; axes]);
        let (weight, bias, stride) = (&self.weight, self.bias.as_ref(), &self.stride);
        // by their public names, which automatic mixed precision knows on every device
        match axes {
            1 => x.conv_transpose1d(weight, bias, stride, &zeros, &zeros, 1, &ones),
            2 => x.conv_transpose2d(weight, bias, stride, &zeros, &zeros, 1, &ones),
            _ => x.conv_transpose3d(weight, bias, stride, &zeros, &zeros, 1, &ones),
        }
    }
}
