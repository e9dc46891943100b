//! Losses between pictures (B, C, H, W), as UVM-Net trains with.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

/// How pixels are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PixelLoss {
    /// Charbonnier: the absolute difference with a rounded tip
    #[default]
    Charbonnier,
    /// The absolute difference
    L1,
}

/// Sum of four terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageLoss {
    /// The one that always counts.
    pub pixel: PixelLoss,
    /// Weight of [`squared`].
    #[serde(default)]
    pub squared: f64,
    /// Weight of [`frequency`].
    pub frequency: f64,
    /// Weight of 1 - [`ssim`].
    pub ssim: f64,
}

impl ImageLoss {
    /// Loss of pictures (B, C, H, W): a scalar.
    pub fn forward(&self, image: &Tensor, target: &Tensor) -> Tensor {
        let pixels = match self.pixel {
            PixelLoss::Charbonnier => charbonnier(image, target),
            PixelLoss::L1 => l1(image, target),
        };
        let terms = [
            (self.squared > 0.0).then(|| squared(image, target) * self.squared),
            (self.frequency > 0.0).then(|| frequency(image, target) * self.frequency),
            (self.ssim > 0.0).then(|| (1.0 - ssim(image, target)) * self.ssim),
        ];
        let terms = terms.into_iter().flatten();
        terms.fold(pixels, |sum, term| sum + term)
    }
}

/// Mean absolute difference.
pub fn l1(image: &Tensor, target: &Tensor) -> Tensor {
    image.l1_loss(target, Reduction::Mean)
}

/// Mean squared difference, whose logarithm is PSNR: large differences weigh more than in [`l1`], so that a picture whose haze cannot be told from
/// what is pale itself is cleared halfway rather than wrongly.
pub fn squared(image: &Tensor, target: &Tensor) -> Tensor {
    image.mse_loss(target, Reduction::Mean)
}

const WINDOW: i64 = 11;
const SIGMA: f64 = 1.5;

/// Structural similarity of pictures with values in [0, 1]: 11x11 Gaussian window (sigma 1.5), zeros beyond the border, mean over all pixels
/// (Wang et al., IEEE TIP 13, 2004; border as UVM-Net's helper has it). 1 for equal pictures.
pub fn ssim(image: &Tensor, target: &Tensor) -> Tensor {
    let channels = image.size()[1];
    // made where it is needed: a copy would wait for the device
    let offset = Tensor::arange(WINDOW, (Kind::Double, image.device())) - WINDOW / 2;
    let line = (offset.square() * (-0.5 / (SIGMA * SIGMA))).exp();
    let line = &line / line.sum(Kind::Double);
    let window = line.outer(&line).to_kind(Kind::Float);
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

/// Charbonnier: mean of sqrt(d^2 + eps^2), which is the absolute difference but for a rounded tip that small differences settle in
/// (Lai et al., *Deep Laplacian Pyramid Networks*, 2017). At equal pictures it is eps = 0.001.
pub fn charbonnier(image: &Tensor, target: &Tensor) -> Tensor {
    const EPS: f64 = 1e-3;
    ((image - target).square() + EPS * EPS)
        .sqrt()
        .mean(Kind::Float)
}

/// Mean amplitude of the difference's spectrum, by the orthonormal Fourier transform of rows and columns: weighs the picture as a whole and its
/// finest detail alike, where pixels weigh what is common (after Cho et al., *Rethinking Coarse-to-Fine Approach in Single Image Deblurring*, 2021).
/// Of order the standard deviation of the difference; 0 for equal pictures.
pub fn frequency(image: &Tensor, target: &Tensor) -> Tensor {
    let spectrum = (image - target).fft_fft2(None::<&[i64]>, [-2i64, -1].as_slice(), "ortho");
    // the amplitude has no gradient at 0: a floor below what 8 bits show
    let power =
        spectrum
            .view_as_real()
            .square()
            .sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>);
    ((power + 1e-12).sqrt() - 1e-6).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn picture() -> Tensor {
        tch::manual_seed(5);
        Tensor::rand([2, 3, 12, 17], (Kind::Float, Device::Cpu))
    }

    fn value(t: &Tensor) -> f64 {
        t.double_value(&[])
    }

    #[test]
    fn equal_pictures_cost_nothing() {
        let a = picture();
        assert!((value(&charbonnier(&a, &a)) - 1e-3).abs() < 1e-8);
        assert!(value(&frequency(&a, &a)).abs() < 1e-9);
        assert!((value(&ssim(&a, &a)) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_sum_weighs_its_terms() {
        let (a, b) = (picture(), picture().flip([3]));
        let of = |pixel, squared, frequency, ssim| {
            value(
                &ImageLoss {
                    pixel,
                    squared,
                    frequency,
                    ssim,
                }
                .forward(&a, &b),
            )
        };
        assert_eq!(of(PixelLoss::L1, 0.0, 0.0, 0.0), value(&l1(&a, &b)));
        let sum = value(&charbonnier(&a, &b))
            + 2.0 * value(&squared(&a, &b))
            + 0.5 * value(&frequency(&a, &b))
            + 0.25 * (1.0 - value(&ssim(&a, &b)));
        assert!((of(PixelLoss::Charbonnier, 2.0, 0.5, 0.25) - sum).abs() < 1e-6);
    }

    #[test]
    fn known_differences() {
        let a = picture();
        let b = &a + 0.25;
        assert!((value(&charbonnier(&a, &b)) - (0.0625f64 + 1e-6).sqrt()).abs() < 1e-6);
        assert!((value(&squared(&a, &b)) - 0.0625).abs() < 1e-7);
        // a constant has its energy in one of the 12 x 17 frequencies: 0.25 sqrt(204) / 204
        let expected = 0.25 / 204f64.sqrt();
        assert!((value(&frequency(&a, &b)) - expected).abs() < 1e-6);
    }

    #[test]
    fn gradients_are_finite_where_pictures_agree() {
        for loss in [charbonnier, squared, frequency] {
            let a = picture().set_requires_grad(true);
            loss(&a, &picture()).backward();
            assert!(a.grad().isfinite().all().int64_value(&[]) == 1);
        }
    }
}
