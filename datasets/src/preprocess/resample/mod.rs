//! From one grid to another, by nnU-Net's rules: splines within slices and nearest neighbours across them where slices are thick, splines in
//! all three axes elsewhere; label maps by the class of the largest share.
//!
//! Coordinates are those of pixel centres: output index `i` of `n_out` lies at `(i + 1/2) n_in / n_out - 1/2` of the input, edges are
//! repeated, and nothing is smoothed before sampling down. Reference: `nnunetv2/preprocessing/resampling/default_resampling.py` and
//! scikit-image's `resize`.

mod labels;
mod lines;

use ndarray::{Array4, ArrayView2, ArrayView3, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};

pub use labels::{resample_labels, LabelRule};
use lines::Resizer;
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
    match to.separate {
        None => {
            let mut volume = Volume::new(size, to.size, order);
            for (channel, target) in data.outer_iter().zip(out.outer_iter_mut()) {
                volume.resample(channel, target);
            }
        }
        Some(axis) => {
            let (rows, columns) = match axis {
                0 => (1, 2),
                1 => (0, 2),
                _ => (0, 1),
            };
            let mut plane = Plane::new(
                [size[rows], size[columns]],
                [to.size[rows], to.size[columns]],
                order,
            );
            let across = match order_z {
                _ if size[axis] == to.size[axis] => Sampler::picking(size[axis], size[axis]),
                Order::Nearest => Sampler::picking(size[axis], to.size[axis]),
                _ => Sampler::new(size[axis], to.size[axis]),
            };
            for (channel, mut target) in data.outer_iter().zip(out.outer_iter_mut()) {
                slice_by_slice(channel, target.view_mut(), axis, &mut plane, &across);
            }
        }
    }
    out
}

/// Slices along an axis, each resized by itself; only those that are picked, and none twice in a row.
fn slice_by_slice(
    channel: ArrayView3<f32>,
    mut target: ArrayViewMut3<f32>,
    axis: usize,
    plane: &mut Plane,
    across: &Sampler,
) {
    // the last two slices made, the latest first
    let mut made: [(usize, Vec<f64>); 2] = std::array::from_fn(|_| (usize::MAX, Vec::new()));
    for (k, mut out) in target.axis_iter_mut(Axis(axis)).enumerate() {
        let ((before, after), share) = (across.neighbours[k], across.share[k]);
        for wanted in [before, after] {
            if made.iter().all(|m| m.0 != wanted) {
                made.swap(0, 1);
                made[0].0 = wanted;
                let slice = channel.index_axis(Axis(axis), wanted);
                let limits = limits(slice.iter());
                let resized = plane.resize(slice, Some(limits));
                made[0].1.clear();
                made[0].1.extend_from_slice(resized);
            }
        }
        let of = |index: usize| match made[0].0 == index {
            true => &made[0].1,
            false => &made[1].1,
        };
        let (before, after) = (of(before), of(after));
        for ((out, &a), &b) in out.iter_mut().zip(before).zip(after) {
            *out = match share == 0.0 {
                true => a as f32,
                false => (a * (1.0 - share) + b * share) as f32,
            };
        }
    }
}

/// A slice resized along its two axes, with room for what lies between.
struct Plane {
    rows: Resizer,
    columns: Resizer,
    size: [usize; 2],
    /// The size after the first step, and at the end.
    sizes: [usize; 2],
    clips: bool,
    source: Vec<f64>,
    between: Vec<f64>,
    resized: Vec<f64>,
}

impl Plane {
    fn new(size: [usize; 2], to: [usize; 2], order: Order) -> Self {
        let sizes = [to[0] * size[1], to[0] * to[1]];
        Self {
            rows: Resizer::new(size[0], to[0], order),
            columns: Resizer::new(size[1], to[1], order),
            size,
            sizes,
            clips: order == Order::Cubic,
            source: Vec::new(),
            between: vec![0.0; sizes[0]],
            resized: vec![0.0; sizes[1]],
        }
    }

    /// The slice resized; a spline may overshoot, and with limits nothing leaves them.
    fn resize(&mut self, slice: ArrayView2<f32>, limits: Option<(f32, f32)>) -> &[f64] {
        self.source.clear();
        match slice.as_slice() {
            Some(values) => self.source.extend(values.iter().map(|v| f64::from(*v))),
            None => self.source.extend(slice.iter().map(|v| f64::from(*v))),
        }
        match self.rows.passes() {
            true => std::mem::swap(&mut self.source, &mut self.between),
            false => {
                self.between.resize(self.sizes[0], 0.0);
                let inner = self.size[1];
                self.rows.run(&self.source, &mut self.between, inner, |v| v);
            }
        }
        match self.columns.passes() {
            true => std::mem::swap(&mut self.between, &mut self.resized),
            false => {
                self.resized.resize(self.sizes[1], 0.0);
                self.columns.run(&self.between, &mut self.resized, 1, |v| v);
            }
        }
        if let Some((low, high)) = limits.filter(|_| self.clips) {
            let (low, high) = (f64::from(low), f64::from(high));
            for value in &mut self.resized {
                *value = value.max(low).min(high);
            }
        }
        &self.resized
    }
}

/// A volume resized along all three axes.
struct Volume {
    plane: Plane,
    across: Resizer,
    /// Every slice of the source at its new size.
    slices: Vec<f64>,
}

impl Volume {
    fn new(size: [usize; 3], to: [usize; 3], order: Order) -> Self {
        Self {
            plane: Plane::new([size[1], size[2]], [to[1], to[2]], order),
            across: Resizer::new(size[0], to[0], order),
            slices: Vec::new(),
        }
    }

    fn resample(&mut self, channel: ArrayView3<f32>, mut target: ArrayViewMut3<f32>) {
        let (low, high) = limits(channel.iter());
        let (low, high) = match self.plane.clips {
            true => (f64::from(low), f64::from(high)),
            false => (f64::MIN, f64::MAX),
        };
        let finish = |v: f64| v.max(low).min(high) as f32;
        if self.across.passes() {
            for (slice, mut out) in channel.outer_iter().zip(target.outer_iter_mut()) {
                let resized = self.plane.resize(slice, None);
                for (out, v) in out.iter_mut().zip(resized) {
                    *out = finish(*v);
                }
            }
            return;
        }
        self.slices.clear();
        for slice in channel.outer_iter() {
            self.slices
                .extend_from_slice(self.plane.resize(slice, None));
        }
        let inner = target.dim().1 * target.dim().2;
        // made in standard layout by the caller
        if let Some(target) = target.as_slice_mut() {
            self.across.run(&self.slices, target, inner, finish);
        }
    }
}

/// Smallest and largest of some values.
fn limits<'a>(values: impl Iterator<Item = &'a f32>) -> (f32, f32) {
    values.fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)))
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
