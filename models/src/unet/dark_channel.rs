//! What the dark channel prior says of a picture, as planes for a network to see.
//!
//! He, Sun and Tang, *Single Image Haze Removal Using Dark Channel Prior*, 2011: near every pixel of a clear picture something is dark in some
//! channel, so what is left there is haze. The prior is wrong about pale and misty things; a network that sees it can tell where. Nothing here
//! is trained. Sizes of windows are pixels of the reduced picture that the network looks at.

use tch::{Kind, Tensor};

use crate::ModelError;

/// Radii of the windows, in pixels.
const RADII: [i64; 2] = [2, 5];
/// Share of the haze that is taken away (He et al., section 4.2).
const SHARE: f64 = 0.95;
/// How much more a pixel counts for the air light when its dark channel is brighter: 0.1 more is 55 times.
const STEEPNESS: f64 = 40.0;
/// The least air light of a channel.
const LEAST_AIR: f64 = 0.1;

/// Planes of a picture of so many channels: two dark channels, the transmission, the air light of each channel.
pub fn planes(channels: i64) -> i64 {
    RADII.len() as i64 + 1 + channels
}

/// The planes of pictures x (B, C, h, w) in [0, 1]: (B, [`planes`], h, w).
pub fn planes_of(x: &Tensor) -> Result<Tensor, ModelError> {
    let (_, _, h, w) = x.size4()?;
    let darkest = |t: &Tensor| t.f_amin([1i64].as_slice(), true);
    let mut all = Vec::with_capacity(RADII.len() + 2);
    for radius in RADII {
        all.push(erode(&darkest(x)?, radius)?);
    }
    let weight = (&all[RADII.len() - 1] * STEEPNESS)
        .f_flatten(2, 3)?
        .f_softmax(2, None::<Kind>)?;
    let air = (x.f_flatten(2, 3)? * weight)
        .f_sum_dim_intlist([2i64].as_slice(), true, None::<Kind>)?
        .f_clamp_min(LEAST_AIR)?
        .f_unsqueeze(-1)?;
    all.push(1.0 - SHARE * erode(&darkest(&(x / &air))?, RADII[0])?);
    all.push(air.f_expand([-1, -1, h, w], false)?);
    Ok(Tensor::f_cat(&all, 1)?)
}

/// The least value in a window around each pixel; beyond the border there is nothing.
fn erode(x: &Tensor, radius: i64) -> Result<Tensor, ModelError> {
    let side = 2 * radius + 1;
    Ok(-(-x).f_max_pool2d([side; 2], [1; 2], [radius; 2], [1; 2], false)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_made_haze_is_read_back() {
        // black dots on white under a haze of transmission 0.4 and air light (0.9, 0.8, 0.7), which the lowest rows are nothing but
        let (t, air) = (
            0.4,
            Tensor::from_slice(&[0.9f32, 0.8, 0.7]).reshape([1, 3, 1, 1]),
        );
        let dots = Tensor::arange(48 * 64, (Kind::Float, Device::Cpu))
            .remainder(3.0)
            .ne(0.0);
        let clear = dots
            .to_kind(Kind::Float)
            .reshape([1, 1, 48, 64])
            .expand([1, 3, 48, 64], false);
        let hazy = &clear * t + &air * (1.0 - t);
        let hazy = Tensor::cat(&[hazy, air.expand([1, 3, 12, 64], false)], 2);
        let planes_of = planes_of(&hazy).unwrap();
        assert_eq!(planes_of.size(), [1, planes(3), 60, 64]);
        let found = planes_of.narrow(1, 3, 3).narrow(2, 0, 1).narrow(3, 0, 1);
        let off = (found - &air).abs().max().double_value(&[]);
        assert!(off < 0.02, "air light {off}");
        let inside = planes_of.narrow(1, 2, 1).narrow(2, 8, 30).mean(Kind::Float);
        let expected = 1.0 - SHARE * (1.0 - t);
        assert!(
            (inside.double_value(&[]) - expected).abs() < 0.02,
            "{inside:?}"
        );
    }
}
