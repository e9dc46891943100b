//! Resizing along one axis: the separable step that the rest is made of.

use ndarray::{Array3, Axis};

use super::Order;

/// Edge samples repeated before a spline is fitted; beyond them it is mirrored.
const EDGE: usize = 12;
/// Lines filtered side by side, so that the recursion's latency is shared.
const LANES: usize = 16;
/// sqrt(3) - 2: the pole of the cubic spline's inverse filter.
const POLE: f64 = -0.267_949_192_431_122_7;
/// The pole's powers vanish beside 1 after so many samples.
const HORIZON: usize = 30;

/// Where the output positions of an axis lie in its input.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    /// Index before each position, clamped to the axis, and the one after.
    pub neighbours: Vec<(usize, usize)>,
    /// Share of the one after.
    pub share: Vec<f64>,
    /// Index nearest to each position.
    pub nearest: Vec<usize>,
}

/// Position of an output index in the input.
pub(super) fn position(i: usize, n_in: usize, n_out: usize) -> f64 {
    (n_in as f64 / n_out as f64) * (i as f64 + 0.5) - 0.5
}

impl Sampler {
    /// For an axis of `n_in` samples resized to `n_out`.
    pub fn new(n_in: usize, n_out: usize) -> Self {
        let last = n_in.saturating_sub(1);
        let mut sampler = Self {
            neighbours: Vec::with_capacity(n_out),
            share: Vec::with_capacity(n_out),
            nearest: Vec::with_capacity(n_out),
        };
        for i in 0..n_out {
            let at = position(i, n_in, n_out);
            let clamped = at.clamp(0.0, last as f64);
            let before = clamped.floor();
            let index = before as usize;
            sampler.neighbours.push((index, (index + 1).min(last)));
            sampler.share.push(clamped - before);
            sampler
                .nearest
                .push((clamped + 0.5).floor().min(last as f64) as usize);
        }
        sampler
    }
}

/// Resizes one axis; the same size passes through.
pub(super) fn resize_axis(
    data: Array3<f64>,
    axis: usize,
    n_out: usize,
    order: Order,
) -> Array3<f64> {
    let n_in = data.shape()[axis];
    if n_in == n_out {
        return data;
    }
    match order {
        Order::Nearest => data.select(Axis(axis), &Sampler::new(n_in, n_out).nearest),
        Order::Linear => linear(&data, axis, n_out),
        Order::Cubic => cubic(data, axis, n_out),
    }
}

fn linear(data: &Array3<f64>, axis: usize, n_out: usize) -> Array3<f64> {
    let sampler = Sampler::new(data.shape()[axis], n_out);
    let mut size = data.raw_dim();
    size[axis] = n_out;
    let mut out = Array3::zeros(size);
    for (i, mut plane) in out.axis_iter_mut(Axis(axis)).enumerate() {
        let ((a, b), share) = (sampler.neighbours[i], sampler.share[i]);
        ndarray::Zip::from(&mut plane)
            .and(&data.index_axis(Axis(axis), a))
            .and(&data.index_axis(Axis(axis), b))
            .for_each(|out, &a, &b| *out = a * (1.0 - share) + b * share);
    }
    out
}

/// First coefficient and weights of each output position.
fn taps(n_in: usize, n_out: usize) -> Vec<(usize, [f64; 4])> {
    (0..n_out)
        .map(|i| {
            let at = position(i, n_in, n_out) + EDGE as f64;
            let before = at.floor();
            let (t, s) = (at - before, 1.0 - (at - before));
            let outer = s * s * s / 6.0;
            let inner = (t * t * (t - 2.0) * 3.0 + 4.0) / 6.0;
            let next = (s * s * (s - 2.0) * 3.0 + 4.0) / 6.0;
            let weights = [outer, inner, next, 1.0 - outer - inner - next];
            (before as usize - 1, weights)
        })
        .collect()
}

fn cubic(data: Array3<f64>, axis: usize, n_out: usize) -> Array3<f64> {
    let data = data.as_standard_layout().into_owned();
    let n_in = data.shape()[axis];
    let mut size = data.raw_dim();
    size[axis] = n_out;
    let mut out = Array3::<f64>::zeros(size);
    let inner: usize = data.shape()[axis + 1..].iter().product();
    let outer: usize = data.shape()[..axis].iter().product();
    let taps = taps(n_in, n_out);
    let (Some(source), Some(target)) = (data.as_slice(), out.as_slice_mut()) else {
        return out;
    };
    let lines = outer * inner;
    let mut buffer = vec![[0f64; LANES]; n_in + 2 * EDGE];
    let mut first = 0;
    while first < lines {
        let count = LANES.min(lines - first);
        // a line's first element, and the distance of its elements: `inner`
        let start = |line: usize, n: usize| (line / inner) * n * inner + line % inner;
        let from: [usize; LANES] = std::array::from_fn(|l| start((first + l).min(lines - 1), n_in));
        for p in 0..n_in {
            let row = &mut buffer[EDGE + p];
            for (value, from) in row.iter_mut().zip(&from) {
                *value = source[from + p * inner];
            }
        }
        let (head, tail) = (buffer[EDGE], buffer[EDGE + n_in - 1]);
        buffer[..EDGE].fill(head);
        buffer[EDGE + n_in..].fill(tail);
        coefficients(&mut buffer);
        let to: [usize; LANES] = std::array::from_fn(|l| start((first + l).min(lines - 1), n_out));
        for (i, (begin, weights)) in taps.iter().enumerate() {
            let mut sum = [0f64; LANES];
            for (row, weight) in buffer[*begin..begin + 4].iter().zip(weights) {
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum += weight * value;
                }
            }
            for (sum, to) in sum.iter().zip(&to).take(count) {
                target[to + i * inner] = *sum;
            }
        }
        first += count;
    }
    out
}

/// Samples to spline coefficients, in place, mirrored at both ends (Unser 1999, box 2).
fn coefficients(lines: &mut [[f64; LANES]]) {
    let n = lines.len();
    let gain = (1.0 - POLE) * (1.0 - 1.0 / POLE);
    let mut start = [0f64; LANES];
    let mut power = 1.0;
    for row in lines.iter().take(HORIZON) {
        for (sum, value) in start.iter_mut().zip(row) {
            *sum += power * value;
        }
        power *= POLE;
    }
    lines[0] = start;
    for i in 1..n {
        let before = lines[i - 1];
        for (value, before) in lines[i].iter_mut().zip(&before) {
            *value += POLE * before;
        }
    }
    let scale = POLE / (POLE * POLE - 1.0);
    let before = lines[n - 2];
    for (value, before) in lines[n - 1].iter_mut().zip(&before) {
        *value = scale * (POLE * before + *value);
    }
    for i in (0..n - 1).rev() {
        let after = lines[i + 1];
        for (value, after) in lines[i].iter_mut().zip(&after) {
            *value = POLE * (after - *value);
        }
    }
    for row in lines {
        for value in row {
            *value *= gain;
        }
    }
}
