//! Convolution blocks of U-Mamba and nnU-Net, for any number of spatial axes.
//!
//! [`ConvNorm`] and [`BlockD`] are `ConvDropoutNormReLU` (without dropout) and `BasicBlockD` of
//! MIC-DKFZ/dynamic-network-architectures 0.4.4, the latter after He et al., *Bag of Tricks for Image Classification with
//! Convolutional Neural Networks*, 2019. [`FirstBlock`] is U-Mamba's own `BasicResBlock`.

use tch::Tensor;

use crate::init::Init;
use crate::layers::{reuse, Conv, ConvOptions, InstanceNorm};
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
    /// Whether the convolutions of [`ConvNorm`] have a bias; those of [`FirstBlock`] always do, projections never.
    pub conv_bias: bool,
    /// Whether the last norm of a [`BlockD`] starts at zero, which makes the block start as its shortcut.
    pub zero_last_norm: bool,
}

/// The rule for every convolution with two or three axes, transposed ones included: Kaiming normal for a leaky ReLU of
/// slope 0.01, bias zero.
pub const HE: Init = Init::KaimingNormal { a: 1e-2 };

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

/// conv, norm and, with a slope, leaky ReLU.
pub struct ConvNorm {
    conv: Conv,
    norm: InstanceNorm,
    slope: Option<f64>,
}

/// What [`ConvNorm`]s of one network differ in besides size.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// conv, norm, act.
    Activated,
    /// The end of a residual path: no act, and the norm may start at zero.
    Last,
    /// A shortcut: no act and no bias.
    Projection,
}

impl ConvNorm {
    /// conv, norm, act.
    pub fn new(
        scope: &Scope,
        style: &Style,
        channels: (i64, i64),
        kernel: &[i64],
        stride: &[i64],
    ) -> Result<Self, ModelError> {
        Self::in_role(scope, style, channels, kernel, stride, Role::Activated)
    }

    fn in_role(
        scope: &Scope,
        style: &Style,
        (inputs, outputs): (i64, i64),
        kernel: &[i64],
        stride: &[i64],
        role: Role,
    ) -> Result<Self, ModelError> {
        let bias = style.conv_bias && role != Role::Projection;
        let conv = conv(&scope.sub("conv"), inputs, outputs, kernel, stride, bias)?;
        let start = match role {
            Role::Last if style.zero_last_norm => 0.0,
            _ => 1.0,
        };
        let affine = style.norm_affine.then_some(Init::Constant(start));
        let norm = InstanceNorm::with_init(&scope.sub("norm"), outputs, style.norm_eps, affine)?;
        // the reference holds both a second time in a sequential
        scope.alias("conv", "all_modules.0")?;
        if style.norm_affine {
            scope.alias("norm", "all_modules.1")?;
        }
        Ok(Self {
            conv,
            norm,
            slope: (role == Role::Activated).then_some(style.negative_slope),
        })
    }

    /// (B, inputs, spatial..) -> (B, outputs, spatial / stride..)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.norm.forward(&self.conv.forward(x));
        match self.slope {
            Some(slope) => reuse::leaky_relu(y, slope),
            None => y,
        }
    }
}

/// [`ConvNorm`]s one after the other, the first one with the stride: `StackedConvBlocks`.
pub struct ConvStack {
    convs: Vec<ConvNorm>,
}

impl ConvStack {
    /// `count` convolutions in all.
    pub fn new(
        scope: &Scope,
        style: &Style,
        (inputs, outputs): (i64, i64),
        kernel: &[i64],
        stride: &[i64],
        count: i64,
    ) -> Result<Self, ModelError> {
        let ones = vec![1; kernel.len()];
        let one = |i: i64| {
            let (from, stride) = match i {
                0 => (inputs, stride),
                _ => (outputs, ones.as_slice()),
            };
            let at = scope.sub(format!("convs.{i}"));
            ConvNorm::new(&at, style, (from, outputs), kernel, stride)
        };
        Ok(Self {
            convs: (0..count).map(one).collect::<Result<_, _>>()?,
        })
    }

    /// (B, inputs, spatial..) -> (B, outputs, spatial / stride..)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.convs
            .iter()
            .fold(x.shallow_clone(), |x, conv| conv.forward(&x))
    }
}

/// conv, norm, act, conv, norm; plus the shortcut; act. The shortcut averages over the stride, where there is one, and
/// changes the channels by a 1x1 convolution and a norm, where they change.
pub struct BlockD {
    first: ConvNorm,
    second: ConvNorm,
    pool: Option<Vec<i64>>,
    projection: Option<ConvNorm>,
    slope: f64,
}

impl BlockD {
    /// Registers `conv1`, `conv2` and, where the channels change, `skip`.
    pub fn new(
        scope: &Scope,
        style: &Style,
        (inputs, outputs): (i64, i64),
        kernel: &[i64],
        stride: &[i64],
    ) -> Result<Self, ModelError> {
        let ones = vec![1; kernel.len()];
        let part = |name: &str, channels, kernel: &[i64], stride: &[i64], role| {
            ConvNorm::in_role(&scope.sub(name), style, channels, kernel, stride, role)
        };
        let first = part("conv1", (inputs, outputs), kernel, stride, Role::Activated)?;
        let second = part("conv2", (outputs, outputs), kernel, &ones, Role::Last)?;
        let pool = stride.iter().any(|s| *s != 1).then(|| stride.to_vec());
        let projection = match inputs == outputs {
            true => None,
            false => {
                // the place in the shortcut's sequential, after the pooling if there is one
                let name = format!("skip.{}", i32::from(pool.is_some()));
                let role = Role::Projection;
                Some(part(&name, (inputs, outputs), &ones, &ones, role)?)
            }
        };
        Ok(Self {
            first,
            second,
            pool,
            projection,
            slope: style.negative_slope,
        })
    }

    /// (B, inputs, spatial..) -> (B, outputs, spatial / stride..)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.second.forward(&self.first.forward(x));
        let x = match &self.pool {
            Some(size) => average(x, size),
            None => x.shallow_clone(),
        };
        let x = match &self.projection {
            Some(projection) => projection.forward(&x),
            None => x,
        };
        reuse::leaky_relu(reuse::add(y, &x), self.slope)
    }
}

/// Means over boxes of that size.
fn average(x: &Tensor, size: &[i64]) -> Tensor {
    let zeros = vec![0; size.len()];
    match size.len() {
        2 => x.avg_pool2d(size, size, &zeros, false, true, None),
        _ => x.avg_pool3d(size, size, &zeros, false, true, None),
    }
}

/// conv, norm, act, conv, norm; plus the input through a strided 1x1 convolution; act.
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
        let y = self.norm1.forward(&self.conv1.forward(x));
        let y = reuse::leaky_relu(y, self.slope);
        let y = self.norm2.forward(&self.conv2.forward(&y));
        reuse::leaky_relu(reuse::add(y, &self.conv3.forward(x)), self.slope)
    }
}

/// One [`FirstBlock`] and any number of [`BlockD`]s: a stage of U-Mamba's encoder or decoder.
pub struct Blocks {
    first: FirstBlock,
    next: Vec<BlockD>,
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
        let ones = vec![1; kernel.len()];
        Ok(Self {
            first: FirstBlock::new(&scope.sub(0), style, inputs, outputs, kernel, stride)?,
            next: (1..count)
                .map(|i| BlockD::new(&scope.sub(i), style, (outputs, outputs), kernel, &ones))
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
