//! Exact Euclidean distance transform with a spacing along each axis (Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012): one lower
//! envelope of parabolas a line, in time linear in the number of voxels.

use ndarray::Array3;

/// Squared distance of every voxel to the nearest set one, infinite where none is set.
pub fn squared_distances(set: &Array3<bool>, spacing: [f64; 3]) -> Array3<f64> {
    let mut distances = set.mapv(|s| if s { 0.0 } else { f64::INFINITY });
    let size = [set.dim().0, set.dim().1, set.dim().2];
    let Some(values) = distances.as_slice_mut() else {
        return distances;
    };
    for axis in [2, 1, 0] {
        let n = size[axis];
        let inner: usize = size[axis + 1..].iter().product();
        let mut envelope = Envelope::new(n, spacing[axis]);
        // lines side by side share cache lines: they are gathered in blocks
        for block in values.chunks_exact_mut((n * inner).max(1)) {
            for lane in 0..inner {
                envelope.line(block, lane, inner);
            }
        }
    }
    distances
}

struct Envelope {
    step: f64,
    source: Vec<f64>,
    /// Apex of each parabola of the envelope, and where it begins to be the lowest.
    apexes: Vec<usize>,
    begins: Vec<f64>,
}

impl Envelope {
    fn new(n: usize, step: f64) -> Self {
        Self {
            step,
            source: vec![0.0; n],
            apexes: Vec::with_capacity(n),
            begins: Vec::with_capacity(n),
        }
    }

    /// Replaces a line of squared distances by those that reach along it too.
    fn line(&mut self, values: &mut [f64], first: usize, stride: usize) {
        let n = self.source.len();
        let mut finite = false;
        for (i, source) in self.source.iter_mut().enumerate() {
            *source = values[first + i * stride];
            finite |= source.is_finite();
        }
        if !finite {
            return;
        }
        self.apexes.clear();
        self.begins.clear();
        let step = self.step;
        for i in (0..n).filter(|i| self.source[*i].is_finite()) {
            let x = i as f64 * step;
            let mut begin = f64::NEG_INFINITY;
            while let Some(&last) = self.apexes.last() {
                let y = last as f64 * step;
                // where the two parabolas meet
                begin = ((self.source[i] + x * x) - (self.source[last] + y * y)) / (2.0 * (x - y));
                if begin > self.begins[self.begins.len() - 1] {
                    break;
                }
                self.apexes.pop();
                self.begins.pop();
                begin = f64::NEG_INFINITY;
            }
            self.apexes.push(i);
            self.begins.push(begin);
        }
        let mut k = 0;
        for i in 0..n {
            let x = i as f64 * step;
            while k + 1 < self.apexes.len() && self.begins[k + 1] < x {
                k += 1;
            }
            let apex = self.apexes[k];
            // from whole steps, so that equal distances are equal to the bit
            let offset = (i.abs_diff(apex)) as f64 * step;
            values[first + i * stride] = self.source[apex] + offset * offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against every pair.
    #[test]
    fn nearest_of_all() {
        let spacing = [3.0, 0.8, 1.1];
        let mut state = 7u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        for sparse in [3, 60, 250, 256] {
            let set = Array3::from_shape_fn((5, 9, 7), |_| random() > sparse);
            let found = squared_distances(&set, spacing);
            for (at, &d) in found.indexed_iter() {
                let nearest = set
                    .indexed_iter()
                    .filter(|(_, s)| **s)
                    .map(|(p, _)| {
                        let [a, b, c] = [
                            (at.0 as f64 - p.0 as f64) * spacing[0],
                            (at.1 as f64 - p.1 as f64) * spacing[1],
                            (at.2 as f64 - p.2 as f64) * spacing[2],
                        ];
                        a * a + b * b + c * c
                    })
                    .fold(f64::INFINITY, f64::min);
                assert!(d == nearest || (d - nearest).abs() < 1e-12, "{d} {nearest}");
            }
        }
    }
}
