//! Convolution over any number of spatial axes.

use tch::Tensor;

use crate::init::Init;
use crate::{ModelError, Scope};

/// Everything about a convolution but its channels.
#[derive(Debug, Clone)]
pub struct ConvOptions {
    /// Kernel size per axis; its length is the number of spatial axes.
    pub kernel: Vec<i64>,
    /// Stride per axis.
    pub stride: Vec<i64>,
    /// Zeros added on both sides, per axis.
    pub padding: Vec<i64>,
    /// Groups of channels.
    pub groups: i64,
    /// Rule for the weight.
    pub weight: Init,
    /// Rule for the bias; none, no bias.
    pub bias: Option<Init>,
}

/// A convolution; `weight` is (out, in / groups, kernel..).
pub struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: Vec<i64>,
    padding: Vec<i64>,
    groups: i64,
}

impl Conv {
    /// Registers `weight` and `bias`.
    pub fn new(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        options: ConvOptions,
    ) -> Result<Self, ModelError> {
        let ConvOptions {
            kernel,
            stride,
            padding,
            groups,
            weight,
            bias,
        } = options;
        let shape = [&[outputs, inputs / groups], kernel.as_slice()].concat();
        let weight = scope.parameter("weight", &shape, weight)?;
        let bias = bias
            .map(|rule| scope.parameter("bias", &[outputs], rule))
            .transpose()?;
        Ok(Self {
            weight,
            bias,
            stride,
            padding,
            groups,
        })
    }

    /// (B, in, spatial..) -> (B, out, spatial..)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let axes = self.stride.len();
        let (none, ones) = (vec![0; axes], vec![1; axes]);
        x.convolution(
            &self.weight,
            self.bias.as_ref(),
            &self.stride,
            &self.padding,
            ones.as_slice(),
            false,
            none.as_slice(),
            self.groups,
        )
    }
}
