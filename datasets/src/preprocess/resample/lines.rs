//! Resizing along one axis: the separable step that the rest is made of.

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

impl Sampler {
    /// Samples that are picked, not mixed.
    pub(super) fn picking(n_in: usize, n_out: usize) -> Self {
        let nearest = Self::new(n_in, n_out).nearest;
        Self {
            neighbours: nearest.iter().map(|n| (*n, *n)).collect(),
            share: vec![0.0; n_out],
            nearest,
        }
    }
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

/// One axis resized, with what it takes to do so again and again.
pub(super) struct Resizer {
    n_in: usize,
    n_out: usize,
    how: How,
    /// Lines side by side, their ends repeated.
    buffer: Vec<[f64; LANES]>,
}

enum How {
    Nearest(Sampler),
    Linear(Sampler),
    Cubic(Vec<(usize, [f64; 4])>),
}

impl Resizer {
    pub(super) fn new(n_in: usize, n_out: usize, order: Order) -> Self {
        let (how, edges) = match order {
            Order::Nearest => (How::Nearest(Sampler::new(n_in, n_out)), 0),
            Order::Linear => (How::Linear(Sampler::new(n_in, n_out)), 0),
            Order::Cubic => (How::Cubic(taps(n_in, n_out)), 2 * EDGE),
        };
        Self {
            n_in,
            n_out,
            how,
            buffer: vec![[0.0; LANES]; n_in + edges],
        }
    }

    /// Whether nothing changes, so that there is nothing to run.
    pub(super) fn passes(&self) -> bool {
        self.n_in == self.n_out
    }

    /// Resizes an array in which `inner` elements lie between neighbours along the axis. `finish` makes the numbers that are stored.
    pub(super) fn run<T>(
        &mut self,
        source: &[f64],
        target: &mut [T],
        inner: usize,
        finish: impl Fn(f64) -> T,
    ) {
        match &self.how {
            How::Nearest(sampler) => {
                self.each_row(source, target, inner, |i, plane, out| {
                    let from = &plane[sampler.nearest[i] * inner..][..inner];
                    for (out, v) in out.iter_mut().zip(from) {
                        *out = finish(*v);
                    }
                });
            }
            How::Linear(sampler) => {
                self.each_row(source, target, inner, |i, plane, out| {
                    let ((a, b), share) = (sampler.neighbours[i], sampler.share[i]);
                    let (a, b) = (&plane[a * inner..][..inner], &plane[b * inner..][..inner]);
                    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                        *out = finish(a * (1.0 - share) + b * share);
                    }
                });
            }
            How::Cubic(_) => self.cubic(source, target, inner, finish),
        }
    }

    /// Runs over output index, the part of the source it is made from, and the run of elements it fills.
    fn each_row<T>(
        &self,
        source: &[f64],
        target: &mut [T],
        inner: usize,
        mut row: impl FnMut(usize, &[f64], &mut [T]),
    ) {
        let planes = source.chunks_exact((self.n_in * inner).max(1));
        for (plane, out) in planes.zip(target.chunks_exact_mut((self.n_out * inner).max(1))) {
            for (i, out) in out.chunks_exact_mut(inner).enumerate() {
                row(i, plane, out);
            }
        }
    }

    fn cubic<T>(
        &mut self,
        source: &[f64],
        target: &mut [T],
        inner: usize,
        finish: impl Fn(f64) -> T,
    ) {
        let (n_in, n_out) = (self.n_in, self.n_out);
        let How::Cubic(taps) = &self.how else {
            return;
        };
        let buffer = &mut self.buffer[..];
        let lines = source.len() / n_in.max(1);
        let mut first = 0;
        while first < lines {
            let count = LANES.min(lines - first);
            // a line's first element, and the distance of its elements: `inner`
            let start = |line: usize, n: usize| (line / inner) * n * inner + line % inner;
            let side_by_side = first % inner + count <= inner;
            if side_by_side && count == LANES {
                let from = start(first, n_in);
                for (p, row) in buffer[EDGE..EDGE + n_in].iter_mut().enumerate() {
                    row.copy_from_slice(&source[from + p * inner..][..LANES]);
                }
            } else {
                let from: [usize; LANES] =
                    std::array::from_fn(|l| start((first + l).min(lines - 1), n_in));
                for (p, row) in buffer[EDGE..EDGE + n_in].iter_mut().enumerate() {
                    for (value, from) in row.iter_mut().zip(&from) {
                        *value = source[from + p * inner];
                    }
                }
            }
            let (head, tail) = (buffer[EDGE], buffer[EDGE + n_in - 1]);
            buffer[..EDGE].fill(head);
            buffer[EDGE + n_in..].fill(tail);
            coefficients(buffer);
            let to: [usize; LANES] =
                std::array::from_fn(|l| start((first + l).min(lines - 1), n_out));
            for (i, (begin, weights)) in taps.iter().enumerate() {
                let mut sum = [0f64; LANES];
                for (row, weight) in buffer[*begin..begin + 4].iter().zip(weights) {
                    for (sum, value) in sum.iter_mut().zip(row) {
                        *sum += weight * value;
                    }
                }
                if side_by_side {
                    let out = &mut target[to[0] + i * inner..][..count];
                    for (out, sum) in out.iter_mut().zip(&sum) {
                        *out = finish(*sum);
                    }
                } else {
                    for (sum, to) in sum.iter().zip(&to).take(count) {
                        target[to + i * inner] = finish(*sum);
                    }
                }
            }
            first += count;
        }
    }
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
