//! Convolution over any number of spatial axes.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};
use vision_mamba_ops::autocast;

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
        let ones = vec![1; axes];
        // A strided convolution of single values passes over the rest. It is left out first: oneDNN's gradient of such weights writes past its
        // buffer where a map lies channels last and its channels are no multiple of 16.
        let picked = self.skips_values().then(|| {
            (2..)
                .zip(&self.stride)
                .fold(x.shallow_clone(), |x, (axis, &step)| {
                    x.slice(axis, None, None, step)
                })
        });
        let stride = if picked.is_some() {
            &ones
        } else {
            &self.stride
        };
        let x = picked.as_ref().unwrap_or(x);
        if self.is_product(x) {
            let weight = self.weight.flatten(1, -1);
            let y = x.permute([0, 2, 3, 1]).linear(&weight, self.bias.as_ref());
            return y.permute([0, 3, 1, 2]);
        }
        if self.better_with_onednn(x) {
            let found = x.f_mkldnn_convolution(
                &self.weight,
                self.bias.as_ref(),
                &self.padding,
                stride,
                ones.as_slice(),
                self.groups,
            );
            // a libtorch without oneDNN has its own way
            if let Ok(found) = found {
                return found;
            }
        }
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        let (padding, groups) = (&self.padding, self.groups);
        // by their public names, which automatic mixed precision knows on every device
        match axes {
            1 => x.conv1d(weight, bias, stride, padding, &ones, groups),
            2 => x.conv2d(weight, bias, stride, padding, &ones, groups),
            _ => x.conv3d(weight, bias, stride, padding, &ones, groups),
        }
    }

    /// Whether the kernel is a single value and steps over others.
    fn skips_values(&self) -> bool {
        self.weight.size()[2..].iter().all(|&k| k == 1)
            && self.padding.iter().all(|&p| p == 0)
            && self.stride.iter().any(|&s| s > 1)
    }

    /// Whether the convolution is a matrix product as the map lies: single values, channels last. Libtorch would turn a small map round first.
    fn is_product(&self, x: &Tensor) -> bool {
        self.stride.len() == 2
            && self.groups == 1
            && x.device() == Device::Cpu
            && x.dim() == 4
            && self.weight.size()[2..] == [1, 1]
            && self.padding == [0, 0]
            && self.stride == [1, 1]
            && x.size()[1] > 1
            && !x.is_contiguous()
            && x.permute([0, 2, 3, 1]).is_contiguous()
            && !RECORDED.get()
            && !autocast::is_active()
    }

    /// Whether libtorch would leave a volume to its plain loops although oneDNN is up to ten times faster: it looks at the first four sizes
    /// (`use_mkldnn` in ATen's `Convolution.cpp`), so that a single volume of few channels seems small to it whatever its last side.
    fn better_with_onednn(&self, x: &Tensor) -> bool {
        let size = x.size();
        self.stride.len() == 3
            && size.len() == 5
            && size[0] == 1
            && (FEWEST_CHANNELS..=MOST_CHANNELS).contains(&size[1])
            && size[1..4].iter().product::<i64>() <= SEEMS_SMALL
            && size[2..].iter().product::<i64>() >= FEWEST_VOXELS
            && self.groups == 1
            && self.weight.size()[2..].iter().any(|&k| k > 1)
            && x.device() == Device::Cpu
            && x.kind() == Kind::Float
            && self.weight.kind() == Kind::Float
            && !RECORDED.get()
            && !autocast::is_active()
    }
}

/// Up to this product of batch, channels and two sides libtorch chooses its plain loops.
const SEEMS_SMALL: i64 = 20480;
/// With one channel, with more than these, or on fewer voxels, the plain loops are as fast.
const FEWEST_CHANNELS: i64 = 2;
const MOST_CHANNELS: i64 = 64;
const FEWEST_VOXELS: i64 = 512;

thread_local! {
    static RECORDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread records a forward pass.
pub(crate) fn is_recorded() -> bool {
    RECORDED.get()
}

/// Runs a forward pass that is being recorded: the record must not name kernels that only a CPU has.
pub(crate) fn recorded<R>(forward: impl FnOnce() -> R) -> R {
    let before = RECORDED.replace(true);
    let result = forward();
    RECORDED.set(before);
    result
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn strided_single_values_have_gradients_on_channels_last_maps() {
        let options = ConvOptions {
            kernel: vec![1; 2],
            stride: vec![2; 2],
            padding: vec![0; 2],
            groups: 1,
            weight: crate::init::TORCH_WEIGHT,
            bias: Some(Init::Constant(0.0)),
        };
        let (conv, _) = Scope::build(Device::Cpu, |scope| Conv::new(scope, 4, 8, options)).unwrap();
        let map = Tensor::randn([2, 64, 63, 4], (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
        let y = conv.forward(&map);
        assert_eq!(y.size(), [2, 8, 32, 32]);
        let grads = Tensor::run_backward(&[y.sum(Kind::Float)], &[&conv.weight], false, false);
        // every output sums the values its weight meets
        let met = map.slice(2, None, None, 2).slice(3, None, None, 2);
        let expected = met.sum_dim_intlist([0i64, 2, 3].as_slice(), false, Kind::Float);
        let error = (grads[0].view([8, 4]) - expected).abs().max();
        assert!(error.double_value(&[]) < 1e-3);
    }

    #[test]
    fn single_values_of_channels_last_maps_agree_with_libtorchs_own_way() {
        let options = ConvOptions {
            kernel: vec![1; 2],
            stride: vec![1; 2],
            padding: vec![0; 2],
            groups: 1,
            weight: crate::init::TORCH_WEIGHT,
            bias: Some(Init::Constant(0.5)),
        };
        let (conv, _) =
            Scope::build(Device::Cpu, |scope| Conv::new(scope, 24, 5, options)).unwrap();
        let map = Tensor::randn([2, 9, 7, 24], (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
        assert!(conv.is_product(&map) && !conv.is_product(&map.contiguous()));
        let pass = |x: &Tensor| {
            let y = conv.forward(x);
            let loss = (&y * y.detach().cos()).sum(Kind::Float);
            let grads = Tensor::run_backward(&[loss], &[&conv.weight], false, false);
            (y, grads[0].shallow_clone())
        };
        let (product, plain) = (pass(&map), pass(&map.contiguous()));
        // sums of 24 products in another order
        assert!(product.0.allclose(&plain.0, 1e-5, 1e-5, false));
        assert!(product.1.allclose(&plain.1, 1e-4, 1e-4, false));
    }

    #[test]
    fn small_volumes_agree_with_libtorchs_own_way() {
        for (inputs, outputs, stride, size) in [
            (2, 3, [1, 1, 1], [8, 8, 8]),
            (4, 8, [1, 2, 2], [9, 17, 13]),
            (16, 5, [2, 2, 2], [8, 11, 40]),
        ] {
            let options = ConvOptions {
                kernel: vec![3; 3],
                stride: stride.to_vec(),
                padding: vec![1; 3],
                groups: 1,
                weight: crate::init::TORCH_WEIGHT,
                bias: Some(Init::Constant(0.5)),
            };
            let (conv, _) = Scope::build(Device::Cpu, |scope| {
                Conv::new(scope, inputs, outputs, options)
            })
            .unwrap();
            let shape = [&[1, inputs], &size[..]].concat();
            let x = Tensor::randn(&shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
            assert!(conv.better_with_onednn(&x));
            let pass = || {
                let y = conv.forward(&x);
                let loss = (&y * y.detach().cos()).sum(Kind::Float);
                let grads = Tensor::run_backward(&[loss], &[&x, &conv.weight], false, false);
                (y, grads)
            };
            let (fast, plain) = (pass(), recorded(pass));
            // sums of up to 16 x 27 products in another order
            let close = |a: &Tensor, b: &Tensor| {
                let scale = b.abs().max().double_value(&[]);
                (a - b).abs().max().double_value(&[]) <= 1e-5 * scale
            };
            assert!(close(&fast.0, &plain.0));
            assert!(fast.1.iter().zip(&plain.1).all(|(a, b)| close(a, b)));
        }
    }
}
