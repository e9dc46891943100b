//! The residual convolution blocks of U-Mamba, for any number of spatial axes.
//!
//! Two kinds, as in the reference: the first block of a stage ([`FirstBlock`], upstream `BasicResBlock`) changes channels
//! and resolution and has a 1x1 convolution on its shortcut; the following ones ([`NextBlock`], `BasicBlockD` of
//! dynamic-network-architectures 0.4.4) keep both and add their input.

use tch::Tensor;

use crate::init::Init;
use crate::layers::{leaky_relu, Conv, ConvOptions, InstanceNorm};
use crate::{ModelError, Scope};

/// What all convolutions of a network share.
#[derive(Debug, Clone)]
pub struct Style {
    /// Added to the variance of the instance norm.
    pub norm_eps: f64,
    /// Whether the instance norm has weight and bias.
    pub norm_affine: bool,
    /// Slope of the leaky ReLU for negative values.
    pub negative_slope: f64,
    /// Whether the convolutions of [`NextBlock`] have a bias; all others always do.
    pub conv_bias: bool,
}

/// The rule for every convolution with two or three axes: Kaiming normal for a leaky ReLU of slope 0.01, bias zero.
const HE: Init = Init::KaimingNormal { a: 1e-2 };

/// A convolution that keeps the size but for its stride, with the initialisation of the network.
pub fn conv(
    scope: &Scope,
    inputs: i64,
    outputs: i64,
    kernel: &[i64],
    stride: &[i64],
    bias: bool,
) -> Result<Conv, ModelError> {
    let options = ConvOptions {
        kernel: kernel.to_vec(),
        stride: stride.to_vec(),
        padding: kernel.iter().map(|k| k / 2).collect(),
        groups: 1,
        weight: HE,
        bias: bias.then_some(Init::Constant(0.0)),
    };
    Conv::new(scope, inputs, outputs, options)
}

/// conv, norm, act, conv, norm; plus the input through a 1x1 convolution; act.
struct FirstBlock {
    conv1: Conv,
    norm1: InstanceNorm,
    conv2: Conv,
    norm2: InstanceNorm,
    conv3: Conv,
    slope: f64,
}

impl FirstBlock {
    fn new(
        scope: &Scope,
        style: &Style,
        inputs: i64,
        outputs: i64,
        kernel: &[i64],
        stride: &[i64],
    ) -> Result<Self, ModelError> {
        let ones = vec![1; kernel.len()];
        let norm =
            |name| InstanceNorm::new(&scope.sub(name), outputs, style.norm_eps, style.norm_affine);
        Ok(Self {
            conv1: conv(&scope.sub("conv1"), inputs, outputs, kernel, stride, true)?,
            norm1: norm("norm1")?,
            conv2: conv(&scope.sub("conv2"), outputs, outputs, kernel, &ones, true)?,
            norm2: norm("norm2")?,
            conv3: conv(&scope.sub("conv3"), inputs, outputs, &ones, stride, true)?,
            slope: style.negative_slope,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let y = leaky_relu(&self.norm1.forward(&self.conv1.forward(x)), self.slope);
        let y = self.norm2.forward(&self.conv2.forward(&y)) + self.conv3.forward(x);
        leaky_relu(&y, self.slope)
    }
}

/// conv, norm, act, conv, norm; plus the input; act.
struct NextBlock {
    first: (Conv, InstanceNorm),
    second: (Conv, InstanceNorm),
    slope: f64,
}

impl NextBlock {
    fn new(
        scope: &Scope,
        style: &Style,
        channels: i64,
        kernel: &[i64],
    ) -> Result<Self, ModelError> {
        let ones = vec![1; kernel.len()];
        let pair = |name: &str| {
            let scope = scope.sub(name);
            let conv = conv(
                &scope.sub("conv"),
                channels,
                channels,
                kernel,
                &ones,
                style.conv_bias,
            )?;
            let norm = InstanceNorm::new(
                &scope.sub("norm"),
                channels,
                style.norm_eps,
                style.norm_affine,
            )?;
            // the reference holds both a second time in a sequential
            scope.alias("conv", "all_modules.0")?;
            if style.norm_affine {
                scope.alias("norm", "all_modules.1")?;
            }
            Ok::<_, ModelError>((conv, norm))
        };
        Ok(Self {
            first: pair("conv1")?,
            second: pair("conv2")?,
            slope: style.negative_slope,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let (conv, norm) = &self.first;
        let y = leaky_relu(&norm.forward(&conv.forward(x)), self.slope);
        let (conv, norm) = &self.second;
        leaky_relu(&(norm.forward(&conv.forward(&y)) + x), self.slope)
    }
}

/// One [`FirstBlock`] and any number of [`NextBlock`]s: a stage of encoder or decoder.
pub struct Blocks {
    first: FirstBlock,
    next: Vec<NextBlock>,
}

impl Blocks {
    /// `count` blocks in all, the first one with the stride.
    pub fn new(
        scope: &Scope,
        style: &Style,
        (inputs, outputs): (i64, i64),
        kernel: &[i64],
        stride: &[i64],
        count: i64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            first: FirstBlock::new(&scope.sub(0), style, inputs, outputs, kernel, stride)?,
            next: (1..count)
                .map(|i| NextBlock::new(&scope.sub(i), style, outputs, kernel))
                .collect::<Result<_, _>>()?,
        })
    }

    /// (B, inputs, spatial..) -> (B, outputs, spatial / stride..)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.next
            .iter()
            .fold(self.first.forward(x), |x, block| block.forward(&x))
    }
}
