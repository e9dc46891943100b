//! From one grid to another, by nnU-Net's rules: splines within slices and nearest neighbours across them where slices are thick, splines in
//! all three axes elsewhere; label maps by the class of the largest share.
//!
//! Coordinates are those of pixel centres: output index `i` of `n_out` lies at `(i + 1/2) n_in / n_out - 1/2` of the input, edges are
//! repeated, and nothing is smoothed before sampling down. Reference: `nnunetv2/preprocessing/resampling/default_resampling.py` and
//! scikit-image's `resize`.

mod labels;
mod lines;

use ndarray::{Array3, Array4, ArrayView3, Axis, Zip};
use serde::{Deserialize, Serialize};

pub use labels::{resample_labels, LabelRule};
use lines::resize_axis;
pub use lines::Sampler;

/// Spacings that differ by more than this factor make slices thick.
const ANISOTROPIC: f64 = 3.0;

/// How values between grid points are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The nearest grid point.
    Nearest,
    /// Between two neighbours.
    Linear,
    /// Interpolating cubic B-spline (Unser, IEEE Signal Processing Magazine 16, 1999).
    Cubic,
}

impl Order {
    /// 0, 1 or 3, as plans have it.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Nearest),
            1 => Some(Self::Linear),
            3 => Some(Self::Cubic),
            _ => None,
        }
    }
}

/// What `plans.json` says about one use of resampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resampling {
    /// Whether values are classes.
    pub is_seg: bool,
    /// Within slices, or in all axes: 0, 1 or 3.
    pub order: u8,
    /// Across thick slices: 0 or 1.
    #[serde(default)]
    pub order_z: u8,
    /// Whether slices are treated as thick; none: by their spacing.
    #[serde(default)]
    pub force_separate_z: Option<bool>,
}

impl Resampling {
    /// For images.
    pub const DATA: Self = Self::of(false, 3);
    /// For label maps.
    pub const SEG: Self = Self::of(true, 1);
    /// For class scores on their way back.
    pub const SCORES: Self = Self::of(false, 1);

    const fn of(is_seg: bool, order: u8) -> Self {
        Self {
            is_seg,
            order,
            order_z: 0,
            force_separate_z: None,
        }
    }

    /// Orders as numbers that this crate has.
    pub fn check(&self) -> Result<(), String> {
        if Order::from_number(self.order).is_none() {
            return Err(format!("order {}, expected 0, 1 or 3", self.order));
        }
        match self.order_z {
            0 | 1 => Ok(()),
            other => Err(format!("order_z {other}, expected 0 or 1")),
        }
    }

    pub(crate) fn orders(&self) -> (Order, Order) {
        // checked when the plan was read
        let order = |n| Order::from_number(n).unwrap_or(Order::Linear);
        (order(self.order), order(self.order_z))
    }
}

/// Size on a grid of another spacing: `round(old_spacing / new_spacing * size)` along each axis, halves to even.
pub fn new_size(size: [usize; 3], spacing: [f64; 3], new_spacing: [f64; 3]) -> [usize; 3] {
    std::array::from_fn(|axis| {
        let exact = spacing[axis] / new_spacing[axis] * size[axis] as f64;
        exact.round_ties_even() as usize
    })
}

/// The axis across thick slices, if there is one: by the present spacing if that is anisotropic (ratio above 3), else by the new one.
/// None too where two axes share the largest spacing.
pub fn separate_axis(current: [f64; 3], new: [f64; 3], force: Option<bool>) -> Option<usize> {
    let ratio = |s: [f64; 3]| {
        let (low, high) = s.iter().fold((f64::MAX, 0.0), |(l, h): (f64, f64), &v| {
            (l.min(v), h.max(v))
        });
        high / low
    };
    let deciding = match force {
        Some(false) => return None,
        Some(true) => current,
        None if ratio(current) > ANISOTROPIC => current,
        None if ratio(new) > ANISOTROPIC => new,
        None => return None,
    };
    let largest = deciding.iter().copied().fold(0.0, f64::max);
    let mut axes = (0..3).filter(|&a| largest / deciding[a] == 1.0);
    match (axes.next(), axes.next()) {
        (Some(axis), None) => Some(axis),
        _ => None,
    }
}

/// A way from one grid to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Regrid {
    /// Size to arrive at.
    pub size: [usize; 3],
    /// The axis across thick slices.
    pub separate: Option<usize>,
}

impl Regrid {
    /// To a given size, where the spacings decide about thick slices.
    pub fn new(size: [usize; 3], current: [f64; 3], new: [f64; 3], how: &Resampling) -> Self {
        Self {
            size,
            separate: separate_axis(current, new, how.force_separate_z),
        }
    }
}

/// Resamples every channel of an image (C, Z, Y, X). Computes in float64; an image that has the size already passes through.
pub fn resample_image(data: Array4<f32>, to: &Regrid, how: &Resampling) -> Array4<f32> {
    let size = [data.shape()[1], data.shape()[2], data.shape()[3]];
    if size == to.size {
        return data;
    }
    let (order, order_z) = how.orders();
    let mut out = Array4::zeros((data.shape()[0], to.size[0], to.size[1], to.size[2]));
    for (channel, mut target) in data.outer_iter().zip(out.outer_iter_mut()) {
        let resized = resample_channel(channel, to, order, order_z);
        Zip::from(&mut target)
            .and(&resized)
            .for_each(|t, &v| *t = v as f32);
    }
    out
}

/// One channel, in float64.
fn resample_channel(
    channel: ArrayView3<f32>,
    to: &Regrid,
    order: Order,
    order_z: Order,
) -> Array3<f64> {
    let mut data = channel.mapv(f64::from);
    let limits = limits(&data, to.separate);
    for axis in (0..3).filter(|&a| Some(a) != to.separate) {
        data = resize_axis(data, axis, to.size[axis], order);
    }
    if order == Order::Cubic {
        clip(&mut data, to.separate, &limits);
    }
    match to.separate {
        Some(axis) => resize_axis(data, axis, to.size[axis], order_z),
        None => data,
    }
}

/// Smallest and largest value: of each slice along an axis, or of all.
fn limits(data: &Array3<f64>, separate: Option<usize>) -> Vec<(f64, f64)> {
    let of = |values: ArrayView3<f64>| {
        values
            .iter()
            .fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)))
    };
    match separate {
        None => vec![of(data.view())],
        Some(axis) => data
            .axis_iter(Axis(axis))
            .map(|slice| of(slice.insert_axis(Axis(axis))))
            .collect(),
    }
}

/// A spline may overshoot: nothing leaves the range of what it was made from.
fn clip(data: &mut Array3<f64>, separate: Option<usize>, limits: &[(f64, f64)]) {
    match separate {
        None => {
            let (low, high) = limits[0];
            data.mapv_inplace(|v| v.clamp(low, high));
        }
        Some(axis) => {
            for (mut slice, &(low, high)) in data.axis_iter_mut(Axis(axis)).zip(limits) {
                slice.mapv_inplace(|v| v.clamp(low, high));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thick_slices_are_found_by_the_present_spacing_first() {
        let at = |c, n| separate_axis(c, n, None);
        assert_eq!(at([3.0, 1.0, 1.0], [3.0, 1.0, 1.0]), None);
        assert_eq!(at([3.0, 1.0, 1.0], [3.0001, 1.0, 1.0]), Some(0));
        assert_eq!(at([1.0, 5.0, 1.0], [9.0, 1.0, 1.0]), Some(1));
        assert_eq!(at([0.24, 1.25, 1.25], [1.0, 1.0, 1.0]), None);
        assert_eq!(separate_axis([1.0, 1.0, 9.0], [1.0; 3], Some(false)), None);
    }

    #[test]
    fn a_constant_stays_and_a_ramp_stays_a_ramp() {
        let data = Array4::from_elem((1, 4, 5, 6), 2.5f32);
        let to = Regrid {
            size: [7, 5, 9],
            separate: None,
        };
        let out = resample_image(data, &to, &Resampling::DATA);
        assert!(out.iter().all(|v| (v - 2.5).abs() < 1e-6));
        let ramp = Array4::from_shape_fn((1, 1, 1, 40), |(_, _, _, x)| x as f32);
        let to = Regrid {
            size: [1, 1, 80],
            separate: Some(0),
        };
        let out = resample_image(ramp, &to, &Resampling::SCORES);
        assert!((out[[0, 0, 0, 40]] - 19.75).abs() < 1e-6);
    }
}
