//! Filters on planes whose time does not depend on the window: erosion by van Herk and Gil-Werman, means by running sums.
//!
//! Windows end at the border.

/// One channel, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// `height * width` of them.
    pub values: Vec<f32>,
}

impl Plane {
    /// A plane of equal size with values made from those of two.
    pub fn zip(&self, other: &Plane, f: impl Fn(f32, f32) -> f32) -> Plane {
        let pairs = self.values.iter().zip(&other.values);
        Plane {
            values: pairs.map(|(a, b)| f(*a, *b)).collect(),
            ..*self
        }
    }

    /// The value between pixel centres, at the place that lies at this part of the width and height.
    pub fn at(&self, x: Between, y: Between) -> f32 {
        let (top, bottom) = (y.first * self.width, y.second * self.width);
        let v = &self.values;
        let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
        mix(
            mix(v[top + x.first], v[top + x.second], x.part),
            mix(v[bottom + x.first], v[bottom + x.second], x.part),
            y.part,
        )
    }
}

/// A place between two pixels of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Between {
    first: usize,
    second: usize,
    part: f32,
}

impl Between {
    /// Where the coordinate (of a pixel's centre, the first pixel's being 0.5) lies on an axis of `n` pixels.
    pub fn of(coordinate: f64, n: usize) -> Self {
        let at = (coordinate - 0.5).clamp(0.0, (n - 1) as f64);
        let first = at as usize;
        Self {
            first,
            second: (first + 1).min(n - 1),
            part: (at - first as f64) as f32,
        }
    }

    /// For every pixel of an axis of `to`, where it lies on an axis of `from` that shows the same.
    pub fn resized(from: usize, to: usize) -> Vec<Self> {
        let scale = from as f64 / to as f64;
        let centre = |i: usize| (i as f64 + 0.5) * scale;
        (0..to).map(|i| Self::of(centre(i), from)).collect()
    }
}

/// The smallest value within `radius` pixels along both axes.
pub fn minimum(plane: &Plane, radius: usize) -> Plane {
    let (w, h) = (plane.width, plane.height);
    let r = radius.min(w.saturating_sub(1));
    let mut rows = plane.clone();
    let window = 2 * r + 1;
    // The row between infinities; smallest values from the start and from the end of every block of a window's length.
    let mut line = vec![f32::INFINITY; w + 2 * r];
    let (mut ahead, mut behind) = (line.clone(), line.clone());
    for row in rows.values.chunks_exact_mut(w) {
        line[r..r + w].copy_from_slice(row);
        for (i, v) in line.iter().enumerate() {
            ahead[i] = if i % window == 0 {
                *v
            } else {
                v.min(ahead[i - 1])
            };
        }
        for i in (0..line.len()).rev() {
            let ends = i % window == window - 1 || i + 1 == line.len();
            behind[i] = if ends {
                line[i]
            } else {
                line[i].min(behind[i + 1])
            };
        }
        for (x, v) in row.iter_mut().enumerate() {
            *v = behind[x].min(ahead[x + 2 * r]);
        }
    }
    let r = radius.min(h.saturating_sub(1));
    let window = 2 * r + 1;
    // The same downwards, whole rows at a time; rows outside the picture are infinite and need no memory.
    let least = |a: &mut [f32], b: &[f32]| a.iter_mut().zip(b).for_each(|(a, b)| *a = a.min(*b));
    let mut ahead = rows.values.clone();
    for y in 1..h {
        if (y + r) % window != 0 {
            let (before, rest) = ahead.split_at_mut(y * w);
            least(&mut rest[..w], &before[(y - 1) * w..]);
        }
    }
    let mut behind = rows.values;
    for y in (0..h.saturating_sub(1)).rev() {
        if (y + r) % window != window - 1 {
            let (before, rest) = behind.split_at_mut((y + 1) * w);
            least(&mut before[y * w..], &rest[..w]);
        }
    }
    let mut values = vec![f32::INFINITY; w * h];
    for (y, out) in values.chunks_exact_mut(w).enumerate() {
        // Rows y - r to y + r: the end of a block from its first row, and the start of the next up to its last. A first row above the
        // picture lies in the block of row 0. A last one below it may lie in a block of its own, which adds nothing.
        let top = y.saturating_sub(r);
        let bottom = (y + r).min(h - 1);
        out.copy_from_slice(&behind[top * w..(top + 1) * w]);
        if (bottom + r) / window == (y + 2 * r) / window {
            least(out, &ahead[bottom * w..(bottom + 1) * w]);
        }
    }
    Plane {
        width: w,
        height: h,
        values,
    }
}

/// The mean within `radius` pixels along both axes. Sums are float64, so that they do not drift along a line.
pub fn mean(plane: &Plane, radius: usize) -> Plane {
    let (w, h) = (plane.width, plane.height);
    let mut out = plane.clone();
    let r = radius.min(w.saturating_sub(1));
    for (row, source) in out
        .values
        .chunks_exact_mut(w)
        .zip(plane.values.chunks_exact(w))
    {
        let mut sum: f64 = source[..r].iter().map(|v| f64::from(*v)).sum();
        for (x, v) in row.iter_mut().enumerate() {
            if let Some(entering) = source.get(x + r) {
                sum += f64::from(*entering);
            }
            if x > r {
                sum -= f64::from(source[x - r - 1]);
            }
            let count = (x + r).min(w - 1) - x.saturating_sub(r) + 1;
            *v = (sum / count as f64) as f32;
        }
    }
    let rows = out.values;
    let r = radius.min(h.saturating_sub(1));
    let mut sums = vec![0.0f64; w];
    let line = |y: usize| &rows[y * w..(y + 1) * w];
    let add = |sums: &mut [f64], row: &[f32], sign: f64| {
        let pairs = sums.iter_mut().zip(row);
        pairs.for_each(|(s, v)| *s += sign * f64::from(*v));
    };
    (0..r).for_each(|y| add(&mut sums, line(y), 1.0));
    let mut values = Vec::with_capacity(w * h);
    for y in 0..h {
        if y + r < h {
            add(&mut sums, line(y + r), 1.0);
        }
        if y > r {
            add(&mut sums, line(y - r - 1), -1.0);
        }
        let count = ((y + r).min(h - 1) - y.saturating_sub(r) + 1) as f64;
        values.extend(sums.iter().map(|s| (s / count) as f32));
    }
    Plane {
        width: w,
        height: h,
        values,
    }
}

/// What the guided filter (He, Sun and Tang 2010) makes of `input` along the edges of `guide`, as the two planes of a line: the result is
/// `slope * guide + offset`, for the guide itself or for a larger picture of the same scene (the fast form of He and Sun 2015).
pub fn guided(guide: &Plane, input: &Plane, radius: usize, eps: f32) -> (Plane, Plane) {
    let mean_guide = mean(guide, radius);
    let mean_input = mean(input, radius);
    let squares = mean(&guide.zip(guide, |a, b| a * b), radius);
    let products = mean(&guide.zip(input, |a, b| a * b), radius);
    let variance = squares.zip(&mean_guide, |s, m| (s - m * m).max(0.0));
    let covariance = products.zip(&mean_guide.zip(&mean_input, |a, b| a * b), |p, m| p - m);
    let slope = covariance.zip(&variance, |c, v| c / (v + eps));
    let offset = mean_input.zip(&slope.zip(&mean_guide, |a, m| a * m), |m, am| m - am);
    (mean(&slope, radius), mean(&offset, radius))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Plane {
        let mut state = (width * 7919 + height) as u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        Plane {
            width,
            height,
            values: (0..width * height).map(|_| next()).collect(),
        }
    }

    /// The definition, pixel by pixel.
    fn slow(plane: &Plane, radius: usize, of: fn(&[f32]) -> f32) -> Plane {
        let around = |at: usize, n: usize| at.saturating_sub(radius)..(at + radius + 1).min(n);
        let mut values = Vec::new();
        for y in 0..plane.height {
            for x in 0..plane.width {
                let mut seen = Vec::new();
                for wy in around(y, plane.height) {
                    for wx in around(x, plane.width) {
                        seen.push(plane.values[wy * plane.width + wx]);
                    }
                }
                values.push(of(&seen));
            }
        }
        Plane { values, ..*plane }
    }

    const SIZES: [(usize, usize); 7] = [
        (1, 1),
        (1, 50),
        (50, 1),
        (17, 23),
        (30, 31),
        (3, 40),
        (64, 7),
    ];

    #[test]
    fn minimum_is_that_of_every_window() {
        for (w, h) in SIZES {
            for radius in [0, 1, 2, 3, 7, 15, 100] {
                let plane = noise(w, h);
                let expected = slow(&plane, radius, |v| v.iter().copied().fold(9.0, f32::min));
                assert_eq!(minimum(&plane, radius), expected, "{w}x{h} {radius}");
            }
        }
    }

    #[test]
    fn mean_is_that_of_every_window() {
        for (w, h) in SIZES {
            for radius in [0, 1, 4, 15, 100] {
                let plane = noise(w, h);
                let found = mean(&plane, radius);
                let expected = slow(&plane, radius, |v| v.iter().sum::<f32>() / v.len() as f32);
                // float32 sums of up to 1600 values on the slow side
                let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
                let mut pairs = found.values.iter().zip(&expected.values);
                assert!(pairs.all(close), "{w}x{h} {radius}");
            }
        }
    }

    #[test]
    fn a_guided_filter_without_eps_repeats_what_is_linear_in_the_guide() {
        let guide = noise(40, 30);
        let input = guide.zip(&guide, |g, _| 0.25 * g + 0.5);
        let (slope, offset) = guided(&guide, &input, 5, 1e-9);
        // the variance of noise is 1/12, float32 means err by 1e-7: the slope by 1e-5
        assert!(slope.values.iter().all(|v| (v - 0.25).abs() < 1e-4));
        assert!(offset.values.iter().all(|v| (v - 0.5).abs() < 1e-4));
    }

    #[test]
    fn enlarging_keeps_a_ramp_and_both_ends() {
        let ramp = Plane {
            width: 4,
            height: 1,
            values: vec![0.0, 1.0, 2.0, 3.0],
        };
        let y = Between::of(0.5, 1);
        let found: Vec<f32> = Between::resized(4, 8)
            .into_iter()
            .map(|x| ramp.at(x, y))
            .collect();
        assert_eq!(found, [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]);
    }
}
