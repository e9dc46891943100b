//! Losses between pictures (B, C, H, W), as UVM-Net trains with.

use tch::{Device, Kind, Reduction, Tensor};

/// Mean absolute difference.
pub fn l1(image: &Tensor, target: &Tensor) -> Tensor {
    image.l1_loss(target, Reduction::Mean)
}

const WINDOW: i64 = 11;
const SIGMA: f64 = 1.5;

/// Structural similarity of pictures with values in [0, 1]: 11x11 Gaussian window (sigma 1.5), zeros beyond the border, mean over all pixels
/// (Wang et al., IEEE TIP 13, 2004; border as UVM-Net's helper has it). 1 for equal pictures.
pub fn ssim(image: &Tensor, target: &Tensor) -> Tensor {
    let channels = image.size()[1];
    let offset = Tensor::arange(WINDOW, (Kind::Double, Device::Cpu)) - WINDOW / 2;
    let line = (offset.square() * (-0.5 / (SIGMA * SIGMA))).exp();
    let line = &line / line.sum(Kind::Double);
    let window = line
        .outer(&line)
        .to_kind(Kind::Float)
        .to_device(image.device());
    let window = window.expand([channels, 1, WINDOW, WINDOW], false);
    let local = |t: &Tensor| {
        t.conv2d::<Tensor>(
            &window,
            None,
            [1i64, 1],
            [WINDOW / 2; 2],
            [1i64, 1],
            channels,
        )
    };
    let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
    let (a, b) = (local(image), local(target));
    let (aa, bb, ab) = (a.square(), b.square(), &a * &b);
    let variance_a = local(&image.square()) - &aa;
    let variance_b = local(&target.square()) - &bb;
    let covariance = local(&(image * target)) - &ab;
    let map = ((ab * 2.0 + c1) * (covariance * 2.0 + c2))
        / ((aa + bb + c1) * (variance_a + variance_b + c2));
    map.mean(Kind::Float)
}
