//! Gaussian-weighted sliding window with mirroring (Isensee et al., Nature Methods 18, 2021; nnU-Net v2's rules).
//!
//! Positions, weights, accumulation and mirroring are separate; the network is any function from (1, C, …) to (1, K, …).

use anyhow::{ensure, Result};
use tch::{no_grad, Device, Kind, Tensor};

/// How windows are laid.
#[derive(Debug, Clone)]
pub struct WindowOptions {
    /// Size of the window, slowest axis first.
    pub tile: Vec<i64>,
    /// Distance of neighbouring windows as a part of the tile, in (0, 1].
    pub step: f64,
    /// Spatial axes averaged over; empty for none.
    pub mirror_axes: Vec<usize>,
    /// Where the network computes; sums stay on the CPU.
    pub device: Device,
}

/// First voxels of the windows along one axis: evenly spread, at most `step * tile` apart, the last ending at the edge.
pub fn positions(size: i64, tile: i64, step: f64) -> Vec<i64> {
    let target = (tile as f64 * step).max(1.0);
    let span = (size - tile).max(0);
    let count = (span as f64 / target).ceil() as i64 + 1;
    if count == 1 {
        return vec![0];
    }
    (0..count)
        .map(|k| round_half_even(k as f64 * span as f64 / (count - 1) as f64))
        .collect()
}

fn round_half_even(x: f64) -> i64 {
    let floor = x.floor();
    if x - floor == 0.5 && (floor as i64) % 2 == 0 {
        floor as i64
    } else {
        x.round() as i64
    }
}

/// Weight of each voxel of a window: a Gaussian around the centre (sigma = tile / 8), peak 10, never zero.
pub fn importance(tile: &[i64]) -> Tensor {
    let mut map = Tensor::ones([], (Kind::Double, Device::Cpu));
    for &n in tile {
        let offset = Tensor::arange(n, (Kind::Double, Device::Cpu)) - (n / 2);
        let sigma = n as f64 / 8.0;
        let axis = (offset.square() * (-0.5 / (sigma * sigma))).exp();
        map = map.unsqueeze(-1) * axis;
    }
    let map = (&map / map.max() * 10.0).to_kind(Kind::Float);
    // Corners of large windows underflow: they get the smallest weight there is, so that no voxel is divided by zero.
    let smallest = map.masked_select(&map.gt(0.0)).min();
    map.maximum(&smallest)
}

/// Scores (K, …) of an image (C, …), in float32 on the CPU.
pub fn predict(
    image: &Tensor,
    options: &WindowOptions,
    network: &dyn Fn(&Tensor) -> Result<Tensor>,
    on_window: &mut dyn FnMut() -> Result<()>,
) -> Result<Tensor> {
    let size = image.size()[1..].to_vec();
    ensure!(
        size.len() == options.tile.len(),
        "the image has {} spatial axes, the window {}",
        size.len(),
        options.tile.len()
    );
    no_grad(|| {
        let (padded, before) = pad(image, &options.tile);
        let padded_size = padded.size()[1..].to_vec();
        let weights = importance(&options.tile);
        let grids: Vec<Vec<i64>> = padded_size
            .iter()
            .zip(&options.tile)
            .map(|(&n, &tile)| positions(n, tile, options.step))
            .collect();
        let single = grids.iter().all(|g| g.len() == 1);
        let mut sums: Option<(Tensor, Tensor)> = None;
        for origin in product(&grids) {
            let window = |t: &Tensor| {
                origin.iter().zip(&options.tile).enumerate().fold(
                    t.shallow_clone(),
                    |t, (axis, (&start, &len))| {
                        let axis = t.dim() as i64 - origin.len() as i64 + axis as i64;
                        t.narrow(axis, start, len)
                    },
                )
            };
            let input = window(&padded).unsqueeze(0).to_device(options.device);
            let scores = mirrored(&input, &options.mirror_axes, network)?
                .squeeze_dim(0)
                .to_device(Device::Cpu);
            on_window()?;
            if single {
                return Ok(crop(&scores, &before, &size));
            }
            let (sum, total) = sums.get_or_insert_with(|| {
                let full: Vec<i64> = scores
                    .size()
                    .iter()
                    .take(1)
                    .chain(&padded_size)
                    .copied()
                    .collect();
                let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
                (zeros(&full), zeros(&padded_size))
            });
            let _ = window(sum).g_add_(&(scores * &weights));
            let _ = window(total).g_add_(&weights);
        }
        let Some((sum, total)) = sums else {
            anyhow::bail!("the image has an axis of size 0")
        };
        Ok(crop(&(sum / total), &before, &size))
    })
}

/// Mean over all combinations of mirrored axes.
fn mirrored(
    input: &Tensor,
    axes: &[usize],
    network: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut sum = network(input)?.to_kind(Kind::Float);
    let combinations = 1u32 << axes.len();
    for bits in 1..combinations {
        let dims: Vec<i64> = axes
            .iter()
            .enumerate()
            .filter(|(i, _)| bits >> i & 1 == 1)
            .map(|(_, &a)| a as i64 + 2)
            .collect();
        sum += network(&input.flip(&dims[..]))?
            .to_kind(Kind::Float)
            .flip(&dims[..]);
    }
    Ok(sum / f64::from(combinations))
}

/// Zeros before and after an axis that bring it to the tile's size, the image in the middle.
pub fn padding(size: i64, tile: i64) -> (i64, i64) {
    let missing = (tile - size).max(0);
    (missing / 2, missing - missing / 2)
}

/// Pads with zeros to at least the tile, centred; returns the size of the padding before each axis.
fn pad(image: &Tensor, tile: &[i64]) -> (Tensor, Vec<i64>) {
    let size = &image.size()[1..];
    let missing: Vec<i64> = size
        .iter()
        .zip(tile)
        .map(|(&n, &t)| (t - n).max(0))
        .collect();
    let before: Vec<i64> = size
        .iter()
        .zip(tile)
        .map(|(&n, &t)| padding(n, t).0)
        .collect();
    // libtorch lists the padding of the last axis first.
    let list: Vec<i64> = missing
        .iter()
        .zip(&before)
        .rev()
        .flat_map(|(&m, &b)| [b, m - b])
        .collect();
    (image.constant_pad_nd(&list[..]), before)
}

fn crop(scores: &Tensor, before: &[i64], size: &[i64]) -> Tensor {
    before
        .iter()
        .zip(size)
        .enumerate()
        .fold(scores.shallow_clone(), |t, (axis, (&start, &len))| {
            t.narrow(axis as i64 + 1, start, len)
        })
}

fn product(grids: &[Vec<i64>]) -> Vec<Vec<i64>> {
    grids.iter().fold(vec![Vec::new()], |origins, grid| {
        origins
            .iter()
            .flat_map(|origin| {
                grid.iter()
                    .map(move |&p| origin.iter().copied().chain([p]).collect())
            })
            .collect()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(tile: &[i64], mirror_axes: &[usize]) -> WindowOptions {
        WindowOptions {
            tile: tile.to_vec(),
            step: 0.5,
            mirror_axes: mirror_axes.to_vec(),
            device: Device::Cpu,
        }
    }

    #[test]
    fn positions_follow_the_rule() {
        assert_eq!(positions(64, 64, 0.5), vec![0]);
        assert_eq!(positions(32, 64, 0.5), vec![0]);
        assert_eq!(positions(96, 64, 0.5), vec![0, 32]);
        assert_eq!(positions(110, 64, 0.5), vec![0, 23, 46]);
        assert_eq!(positions(65, 64, 0.5), vec![0, 1]);
    }

    #[test]
    fn importance_is_centred_positive_and_peaks_at_ten() {
        let map = importance(&[128, 5]);
        assert_eq!(map.double_value(&[64, 2]), 10.0);
        assert!(map.min().double_value(&[]) > 0.0);
        assert!(importance(&[128, 128, 128]).min().double_value(&[]) > 0.0);
    }

    /// A doubling "network" must come back doubled whatever the size, on position-dependent input.
    #[test]
    fn doubling_network_gives_twice_the_image() {
        for (size, tile) in [
            (vec![2, 7, 9], vec![8, 8]),
            (vec![2, 8, 8], vec![8, 8]),
            (vec![2, 23, 17], vec![8, 8]),
            (vec![1, 40, 5], vec![8, 8]),
            (vec![1, 9, 17, 12], vec![4, 8, 8]),
            (vec![1, 3, 4, 5], vec![4, 8, 8]),
        ] {
            let n: i64 = size.iter().product();
            let image = Tensor::arange(n, (Kind::Float, Device::Cpu)).view(&size[..]);
            for mirror in [vec![], vec![0], (0..tile.len()).collect::<Vec<_>>()] {
                let out = predict(
                    &image,
                    &options(&tile, &mirror),
                    &|x| Ok(x * 2.0),
                    &mut || Ok(()),
                )
                .unwrap();
                assert_eq!(out.size(), image.size());
                let error = (out - &image * 2.0).abs().max().double_value(&[]) / n as f64;
                assert!(error < 1e-6, "{size:?} {tile:?} {mirror:?}: {error}");
            }
        }
    }

    #[test]
    fn a_failing_network_is_an_error() {
        let image = Tensor::zeros([1, 4, 4], (Kind::Float, Device::Cpu));
        let result = predict(
            &image,
            &options(&[8, 8], &[]),
            &|_| anyhow::bail!("no"),
            &mut || Ok(()),
        );
        assert!(result.is_err());
    }
}
