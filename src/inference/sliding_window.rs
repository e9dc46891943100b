//! Gaussian-weighted sliding window with mirroring (Isensee et al., Nature Methods 18, 2021; nnU-Net v2's rules).
//!
//! Positions, weights, accumulation and mirroring are separate; the network is any function from (1, C, …) to (1, K, …). Scores leave plane by
//! plane, so that a volume of any length is predicted with the sums of a band.

use anyhow::{bail, ensure, Context, Result};
use tch::{no_grad, Device, Kind, Tensor};

/// How windows are laid.
#[derive(Debug, Clone)]
pub struct WindowOptions {
    /// Size of the window, slowest axis first.
    pub tile: Vec<i64>,
    /// Distance of neighbouring windows as a part of the tile, in (0, 1].
    pub step: f64,
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

/// A function from (1, C, spatial…) to (1, K, spatial…).
pub type Network<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// A network and the axes its input is mirrored along.
pub struct Voice<'a> {
    /// Its scores are in memory of their own, for they are written to.
    pub network: Network<'a>,
    /// Spatial axes of the window that are averaged over; empty for none.
    pub mirror_axes: Vec<usize>,
}

/// Called after every pass of a network; an error ends the work.
pub type OnWindow<'a> = dyn FnMut() -> Result<()> + 'a;

/// Scores of a volume (C, Z, Y, X), plane by plane along Z, in float32 on the CPU: the sum over several networks that share the windows.
///
/// Windows are visited in lexicographic order, so a plane is final once the windows have moved past it. Only a band as deep as the window is
/// held, a ring of planes: (K + 1) * depth * Y * X floats. A window of two axes takes every slice by itself.
pub struct Planes<'a> {
    voices: Vec<Voice<'a>>,
    device: Device,
    padded: Tensor,
    /// Of the volume without padding.
    size: [i64; 3],
    before: [i64; 3],
    tile: [i64; 3],
    /// Whether the networks take slices.
    flat: bool,
    grids: [Vec<i64>; 3],
    weights: Tensor,
    band: Band,
    /// Next row of windows along the first axis.
    row: usize,
    /// Next plane to hand out, and the first that is not final, in the padded volume.
    next: i64,
    ready: i64,
}

enum Band {
    /// No windows yet.
    Empty,
    /// Windows do not overlap: one row of them is final as it is, (K, depth, Y, X) from this plane on.
    Direct(Tensor, i64),
    /// Weighted sums (K, depth, Y, X) and sums of weights (depth, Y, X); plane z is at z modulo depth.
    Sums(Tensor, Tensor),
}

impl<'a> Planes<'a> {
    /// For a volume (C, Z, Y, X) and networks that share the windows.
    pub fn new(volume: &Tensor, window: &WindowOptions, voices: Vec<Voice<'a>>) -> Result<Self> {
        let [_, z, y, x] = volume.size()[..] else {
            bail!(
                "the image is of shape {:?}, expected (C, Z, Y, X)",
                volume.size()
            );
        };
        let size = [z, y, x];
        ensure!(
            size.iter().all(|&n| n > 0),
            "the image has an axis of size 0"
        );
        let (tile, flat) = match window.tile[..] {
            [z, y, x] => ([z, y, x], false),
            [y, x] => ([1, y, x], true),
            _ => bail!(
                "the run's patch has {} axes, expected 2 or 3",
                window.tile.len()
            ),
        };
        let (padded, before) = pad(volume, &tile);
        let grid = |axis: usize| positions(size[axis].max(tile[axis]), tile[axis], window.step);
        Ok(Self {
            voices,
            device: window.device,
            padded,
            size,
            before,
            tile,
            flat,
            grids: [grid(0), grid(1), grid(2)],
            weights: importance(&tile),
            band: Band::Empty,
            row: 0,
            next: before[0],
            ready: 0,
        })
    }

    /// Number of windows, each seen by every network.
    pub fn windows(&self) -> usize {
        self.grids.iter().map(Vec::len).product()
    }

    /// Bytes that the sums of `classes` scores take.
    pub fn band_bytes(classes: usize, tile: &[usize], size: [usize; 3]) -> u64 {
        let depth = match tile {
            [depth, _, _] => *depth,
            _ => 1,
        };
        let within = |axis: usize| size[axis].max(tile[tile.len() + axis - 3]);
        4 * (classes as u64 + 1) * (depth * within(1) * within(2)) as u64
    }

    /// The next plane (K, Y, X), row by row in one list; `None` after the last.
    pub fn next(&mut self, on_window: &mut OnWindow) -> Result<Option<Vec<f32>>> {
        if self.next >= self.before[0] + self.size[0] {
            return Ok(None);
        }
        no_grad(|| {
            while self.next >= self.ready {
                self.visit_row(on_window)?;
            }
            let plane = self.finished(self.next)?;
            self.next += 1;
            let crop =
                |t: &Tensor, axis: usize| t.narrow(axis as i64, self.before[axis], self.size[axis]);
            let plane = crop(&crop(&plane, 1), 2).contiguous();
            let mut values = vec![0f32; plane.numel()];
            plane.f_copy_data(&mut values, plane.numel())?;
            self.clear(self.next - 1);
            Ok(Some(values))
        })
    }

    /// Runs the networks over the next row of windows.
    fn visit_row(&mut self, on_window: &mut OnWindow) -> Result<()> {
        let z = self.grids[0][self.row];
        let depth = self.tile[0];
        // Slices never overlap, nor do volumes of a single window.
        let direct = self.grids[1].len() == 1
            && self.grids[2].len() == 1
            && (self.flat || self.grids[0].len() == 1);
        let [_, rows, columns] = self.grids.clone();
        for &y in &rows {
            for &x in &columns {
                let input = self
                    .padded
                    .narrow(1, z, depth)
                    .narrow(2, y, self.tile[1])
                    .narrow(3, x, self.tile[2])
                    .to_device(self.device);
                let input = match self.flat {
                    true => input.squeeze_dim(1),
                    false => input,
                }
                .unsqueeze(0);
                let mut sum: Option<Tensor> = None;
                for voice in &self.voices {
                    let scores = mirrored(&input, &voice.mirror_axes, &voice.network)?;
                    on_window()?;
                    sum = Some(match sum {
                        Some(mut sum) => sum.g_add_(&scores),
                        None => scores,
                    });
                }
                let scores = sum.context("no network was given")?.squeeze_dim(0);
                let mut scores = match self.flat {
                    true => scores.unsqueeze(1),
                    false => scores,
                }
                .to_device(Device::Cpu);
                ensure!(
                    scores.size()[1..] == self.tile,
                    "the network made scores of shape {:?} from a window of {:?}",
                    scores.size(),
                    self.tile
                );
                if direct {
                    self.band = Band::Direct(scores, z);
                    continue;
                }
                let _ = scores.g_mul_(&self.weights);
                self.add(&scores, [z, y, x]);
            }
        }
        self.row += 1;
        let end = self.padded.size()[1];
        self.ready = self.grids[0].get(self.row).copied().unwrap_or(end);
        Ok(())
    }

    /// Adds a window's weighted scores (K, depth, y, x) to the ring.
    fn add(&mut self, scores: &Tensor, [z, y, x]: [i64; 3]) {
        let [depth, ny, nx] = self.tile;
        if !matches!(self.band, Band::Sums(..)) {
            let (height, width) = (self.padded.size()[2], self.padded.size()[3]);
            let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
            self.band = Band::Sums(
                zeros(&[scores.size()[0], depth, height, width]),
                zeros(&[depth, height, width]),
            );
        }
        let Band::Sums(sums, total) = &self.band else {
            return;
        };
        let start = z % depth;
        // The planes before the end of the ring, and those that come round to its beginning.
        for (slot, from, n) in [(start, 0, depth - start), (0, depth - start, start)] {
            if n == 0 {
                continue;
            }
            let within = |t: &Tensor, axis: i64| {
                t.narrow(axis, slot, n)
                    .narrow(axis + 1, y, ny)
                    .narrow(axis + 2, x, nx)
            };
            let _ = within(sums, 1).g_add_(&scores.narrow(1, from, n));
            let _ = within(total, 0).g_add_(&self.weights.narrow(0, from, n));
        }
    }

    /// A final plane (K, Y, X) of the padded volume.
    fn finished(&self, z: i64) -> Result<Tensor> {
        match &self.band {
            Band::Empty => bail!("no window was visited"),
            Band::Direct(scores, first) => Ok(scores.select(1, z - first)),
            Band::Sums(sums, total) => {
                let slot = z % self.tile[0];
                Ok(sums.select(1, slot).g_div_(&total.select(0, slot)))
            }
        }
    }

    /// Makes the place of a plane that was handed out ready for another.
    fn clear(&self, z: i64) {
        if let Band::Sums(sums, total) = &self.band {
            let slot = z % self.tile[0];
            let _ = sums.select(1, slot).zero_();
            let _ = total.select(0, slot).zero_();
        }
    }
}

/// Scores (K, Z, Y, X) of a volume (C, Z, Y, X) by one network, all at once.
pub fn scores<'a>(
    volume: &Tensor,
    window: &WindowOptions,
    voice: Voice<'a>,
    on_window: &mut OnWindow,
) -> Result<Tensor> {
    let mut planes = Planes::new(volume, window, vec![voice])?;
    let size = volume.size();
    let mut all = Vec::new();
    while let Some(plane) = planes.next(on_window)? {
        all.push(Tensor::from_slice(&plane).view([-1, size[2], size[3]]));
    }
    Ok(Tensor::stack(&all, 1))
}

/// Mean over all combinations of mirrored axes.
fn mirrored<'a>(
    input: &Tensor,
    axes: &[usize],
    network: &(dyn Fn(&Tensor) -> Result<Tensor> + 'a),
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
    Ok(match combinations {
        1 => sum,
        n => sum.g_div_scalar_(f64::from(n)),
    })
}

/// Zeros before and after an axis that bring it to the tile's size, the image in the middle.
pub fn padding(size: i64, tile: i64) -> (i64, i64) {
    let missing = (tile - size).max(0);
    (missing / 2, missing - missing / 2)
}

/// Pads a volume with zeros to at least the tile, centred; returns the size of the padding before each axis.
fn pad(volume: &Tensor, tile: &[i64; 3]) -> (Tensor, [i64; 3]) {
    let sides: [(i64, i64); 3] =
        std::array::from_fn(|axis| padding(volume.size()[axis + 1], tile[axis]));
    let before = sides.map(|s| s.0);
    if sides == [(0, 0); 3] {
        return (volume.shallow_clone(), before);
    }
    // libtorch lists the padding of the last axis first.
    let list: Vec<i64> = sides.iter().rev().flat_map(|&(b, a)| [b, a]).collect();
    (volume.constant_pad_nd(&list[..]), before)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(tile: &[i64]) -> WindowOptions {
        WindowOptions {
            tile: tile.to_vec(),
            step: 0.5,
            device: Device::Cpu,
        }
    }

    fn doubling(mirror_axes: &[usize]) -> Voice<'static> {
        Voice {
            network: Box::new(|x| Ok(x * 2.0)),
            mirror_axes: mirror_axes.to_vec(),
        }
    }

    fn ramp(size: &[i64]) -> Tensor {
        let n: i64 = size.iter().product();
        Tensor::arange(n, (Kind::Float, Device::Cpu)).view(size)
    }

    /// Scores of a volume by sums over the whole of it, written down plainly: what the band must agree with.
    fn whole(
        volume: &Tensor,
        tile: &[i64; 3],
        step: f64,
        networks: &[&dyn Fn(&Tensor) -> Tensor],
    ) -> Tensor {
        let (padded, before) = pad(volume, tile);
        let size = padded.size();
        let grids: Vec<Vec<i64>> = (0..3)
            .map(|a| positions(size[a + 1], tile[a], step))
            .collect();
        let weights = importance(tile);
        let sum = Tensor::zeros([2, size[1], size[2], size[3]], (Kind::Double, Device::Cpu));
        let total = Tensor::zeros(&size[1..], (Kind::Double, Device::Cpu));
        for &z in &grids[0] {
            for &y in &grids[1] {
                for &x in &grids[2] {
                    let cut = |t: &Tensor| {
                        let d = t.dim() as i64 - 3;
                        t.narrow(d, z, tile[0])
                            .narrow(d + 1, y, tile[1])
                            .narrow(d + 2, x, tile[2])
                    };
                    for network in networks {
                        let _ = cut(&sum).g_add_(&(network(&cut(&padded)) * &weights));
                    }
                    let _ = cut(&total).g_add_(&weights);
                }
            }
        }
        let mut out = sum / total;
        for (axis, &start) in before.iter().enumerate() {
            out = out.narrow(axis as i64 + 1, start, volume.size()[axis + 1]);
        }
        out
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
            (vec![2, 3, 7, 9], vec![8, 8]),
            (vec![2, 1, 8, 8], vec![8, 8]),
            (vec![2, 4, 23, 17], vec![8, 8]),
            (vec![1, 1, 40, 5], vec![8, 8]),
            (vec![1, 9, 17, 12], vec![4, 8, 8]),
            (vec![1, 3, 4, 5], vec![4, 8, 8]),
            (vec![1, 31, 3, 19], vec![5, 8, 7]),
            (vec![2, 4, 8, 8], vec![4, 8, 8]),
            (vec![1, 13, 8, 8], vec![4, 8, 8]),
            (vec![1, 3, 30, 30], vec![4, 8, 8]),
        ] {
            let image = ramp(&size);
            for mirror in [vec![], vec![0], (0..tile.len()).collect::<Vec<_>>()] {
                let out =
                    scores(&image, &options(&tile), doubling(&mirror), &mut || Ok(())).unwrap();
                assert_eq!(out.size(), image.size());
                let error =
                    (out - &image * 2.0).abs().max().double_value(&[]) / image.numel() as f64;
                assert!(error < 1e-6, "{size:?} {tile:?} {mirror:?}: {error}");
            }
        }
    }

    /// Networks whose answer depends on the place in the window: overlapping windows disagree, so that weights and order count.
    #[test]
    fn the_band_gives_what_sums_over_the_whole_volume_give() {
        let by_place = |x: &Tensor, factor: f64| {
            let place = Tensor::arange(x.numel() as i64, (Kind::Float, Device::Cpu)).view_as(x);
            let one = x * factor + (place * 0.37).sin();
            Tensor::cat(&[&one, &(&one * 0.5 - 1.0)], x.dim() as i64 - 4)
        };
        for (size, tile, step) in [
            ([1, 23, 17, 12], [8, 8, 8], 0.5),
            ([1, 40, 9, 8], [8, 8, 8], 0.3),
            ([1, 8, 21, 8], [8, 8, 8], 0.5),
            ([1, 5, 6, 7], [8, 8, 8], 0.5),
            ([1, 9, 9, 9], [8, 8, 8], 1.0),
            ([1, 33, 8, 8], [7, 8, 8], 0.11),
            ([1, 64, 10, 3], [16, 5, 5], 0.75),
        ] {
            let image = (ramp(&size) * 0.7).sin();
            let (one, two) = (
                |x: &Tensor| by_place(x, 1.0),
                |x: &Tensor| by_place(x, -2.0),
            );
            let window = WindowOptions {
                step,
                ..options(&tile)
            };
            for count in 1..=2 {
                let plain: [&dyn Fn(&Tensor) -> Tensor; 2] = [&one, &two];
                let expected = whole(&image, &tile, step, &plain[..count]);
                let voices = plain[..count]
                    .iter()
                    .map(|f| Voice {
                        network: Box::new(move |x: &Tensor| Ok(f(x))),
                        mirror_axes: Vec::new(),
                    })
                    .collect();
                let mut planes = Planes::new(&image, &window, voices).unwrap();
                for z in 0..size[1] {
                    let plane = planes.next(&mut || Ok(())).unwrap().unwrap();
                    let theirs = expected.select(1, z).contiguous().view([-1]);
                    let error = (Tensor::from_slice(&plane) - theirs)
                        .abs()
                        .max()
                        .double_value(&[]);
                    // float32 sums of a few dozen terms of about 1
                    assert!(
                        error < 3e-6,
                        "{size:?} {tile:?} {count}, plane {z}: {error}"
                    );
                }
                assert!(planes.next(&mut || Ok(())).unwrap().is_none());
            }
        }
    }

    #[test]
    fn every_window_is_seen_once_by_every_network() {
        let image = ramp(&[1, 20, 9, 9]);
        let voices = vec![doubling(&[]), doubling(&[0])];
        let mut planes = Planes::new(&image, &options(&[8, 8, 8]), voices).unwrap();
        assert_eq!(planes.windows(), 4 * 2 * 2);
        let mut seen = 0;
        while planes
            .next(&mut || {
                seen += 1;
                Ok(())
            })
            .unwrap()
            .is_some()
        {}
        assert_eq!(seen, 2 * 16);
    }

    #[test]
    fn a_failing_network_is_an_error() {
        let image = Tensor::zeros([1, 1, 4, 4], (Kind::Float, Device::Cpu));
        let voice = Voice {
            network: Box::new(|_| anyhow::bail!("no")),
            mirror_axes: Vec::new(),
        };
        assert!(scores(&image, &options(&[8, 8]), voice, &mut || Ok(())).is_err());
        let empty = Tensor::zeros([1, 0, 4, 4], (Kind::Float, Device::Cpu));
        assert!(Planes::new(&empty, &options(&[8, 8]), Vec::new()).is_err());
    }
}
