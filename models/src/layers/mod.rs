//! Layers with PyTorch's names and initialisation.

mod activation;
mod batch_norm;
pub(crate) mod conv;
mod conv_transpose;
mod drop_path;
mod linear;
mod norm;
mod part;
pub(crate) mod resize;
pub(crate) mod reuse;
mod rms_norm;

pub use activation::Activation;
pub use batch_norm::BatchNorm;
pub use conv::{Conv, ConvOptions};
pub use conv_transpose::ConvTranspose;
pub use drop_path::drop_path;
pub use linear::Linear;
pub use norm::{InstanceNorm, LayerNorm};
pub use part::Part;
pub use rms_norm::RmsNorm;

use tch::Tensor;

/// Leaky ReLU of any slope; libtorch's own, which knows only 0.01 through tch, when the slope is that.
pub fn leaky_relu(x: &Tensor, slope: f64) -> Tensor {
    if slope == 0.01 {
        x.leaky_relu()
    } else {
        x.clamp_min(0.0) + x.clamp_max(0.0) * slope
    }
}
