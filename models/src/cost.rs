//! What one image costs a network: multiply-adds and memory, measured by running it.

use serde::Serialize;
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_ops::Meter;

use crate::describe::takeable_size;
use crate::{Built, ModelError};

/// Images with more pixels or voxels than this are not run but extrapolated.
const MOST_VOXELS: i64 = 1 << 19;

/// What one image costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkCost {
    /// Spatial size of the image, rounded up to one the network takes.
    pub input_size: Vec<i64>,
    /// Multiply-adds of the forward pass.
    pub multiply_adds: i64,
    /// Those of them in matrix products and convolutions.
    pub product_multiply_adds: i64,
    /// Those of them in selective scans, 9 for every state of every channel and step, as VMamba counts.
    pub scan_multiply_adds: i64,
    /// Bytes that training holds after the forward pass, for the backward pass and as output.
    pub activation_bytes: i64,
    /// The most bytes that prediction holds at a time, weights and image not counted.
    pub prediction_bytes: i64,
    /// Whether the numbers come from two smaller images, every cost taken as linear in the number of voxels.
    pub extrapolated: bool,
}

/// Measures the cost of one float32 image of the given spatial size on the CPU. The network must have been built, not outlined, on the
/// CPU; the native operators must be loaded.
///
/// `None` for a large image of a network that takes no smaller ones, unless `at_any_price`: such a run can take minutes and as much
/// memory as a training step.
pub fn cost(
    built: &Built,
    input_size: &[i64],
    at_any_price: bool,
) -> Result<Option<NetworkCost>, ModelError> {
    let size = takeable_size(built, input_size);
    if voxels(&size) > MOST_VOXELS {
        if let Some(line) = extrapolate(built, &size) {
            return Ok(Some(told(size, &line, true)));
        }
        if !at_any_price {
            return Ok(None);
        }
    }
    let numbers = run(built, &size)?;
    Ok(Some(told(size, &numbers, false)))
}

fn voxels(size: &[i64]) -> i64 {
    size.iter().product()
}

/// Two small images that differ along one axis fix a straight line. `None` if the network refuses them.
fn extrapolate(built: &Built, size: &[i64]) -> Option<[f64; 4]> {
    let divisor = built.net.divisor();
    let small: Vec<i64> = (size.iter().zip(&divisor))
        .map(|(side, by)| (2 * by).max(64 / by * by).min(*side))
        .collect();
    let mut larger = small.clone();
    larger[0] += divisor[0].max(small[0] / 2 / divisor[0] * divisor[0]);
    let (a, b) = (run(built, &small).ok()?, run(built, &larger).ok()?);
    let reach = (voxels(size) - voxels(&small)) as f64 / (voxels(&larger) - voxels(&small)) as f64;
    Some(std::array::from_fn(|i| a[i] + reach * (b[i] - a[i])))
}

fn told(input_size: Vec<i64>, numbers: &[f64; 4], extrapolated: bool) -> NetworkCost {
    let whole = |i: usize| numbers[i].round() as i64;
    NetworkCost {
        input_size,
        multiply_adds: whole(0) + whole(1),
        product_multiply_adds: whole(0),
        scan_multiply_adds: whole(1),
        activation_bytes: whole(2),
        prediction_bytes: whole(3),
        extrapolated,
    }
}

/// Multiply-adds of products and of scans, bytes held for training, most bytes held in prediction.
fn run(built: &Built, size: &[i64]) -> Result<[f64; 4], ModelError> {
    let shape: Vec<i64> = [1, built.spec.in_channels()]
        .iter()
        .chain(size)
        .copied()
        .collect();
    let image = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
    let trained = {
        let meter = Meter::start()?;
        let _held = built.net.forward(&image, true)?;
        meter.cost()
    };
    let predicted = {
        let meter = Meter::start()?;
        no_grad(|| built.net.forward(&image, false))?;
        meter.cost()
    };
    Ok([
        predicted.product_multiply_adds,
        predicted.scan_multiply_adds,
        trained.held_bytes,
        predicted.peak_bytes,
    ])
}
