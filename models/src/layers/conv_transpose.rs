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
        x.convolution(
            &self.weight,
            self.bias.as_ref(),
            &self.stride,
            &zeros,
            &ones,
            true,
            &zeros,
            1,
        )
    }
}
