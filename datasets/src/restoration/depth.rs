//! Depth where none was measured: varied and plausible, 0 near and 1 far. Hazed pictures are learned from, so what counts is the variety.

use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::Result;

/// How often each kind of depth is drawn, in proportion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DepthKinds {
    /// A plane below a horizon at a random height, inside the picture or outside, and everything far above it.
    pub ground: f64,
    /// A slope, mostly upwards, with smooth relief.
    pub ramp: f64,
    /// Pieces of equal depth that follow the edges of the picture.
    pub regions: f64,
    /// Farther or nearer around a point, as in a street.
    pub radial: f64,
    /// The same everywhere.
    pub constant: f64,
}

impl Default for DepthKinds {
    fn default() -> Self {
        Self {
            ground: 0.35,
            ramp: 0.3,
            regions: 0.15,
            radial: 0.1,
            constant: 0.1,
        }
    }
}

impl DepthKinds {
    fn all(&self) -> [(&'static str, f64); 5] {
        [
            ("ground", self.ground),
            ("ramp", self.ramp),
            ("regions", self.regions),
            ("radial", self.radial),
            ("constant", self.constant),
        ]
    }

    /// None below 0, not all 0.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in self.all() {
            super::check(
                (0.0..=1e6).contains(&value),
                &format!("haze.depth.{field}"),
                value,
                "it has to be a proportion of at least 0",
            )?;
        }
        super::check(
            self.all().iter().any(|(_, v)| *v > 0.0),
            "haze.depth",
            "0 for every kind",
            "one kind has to be above 0",
        )
    }
}

/// A map of `size` (rows, columns) for a picture with the grey values `guide` in [0, 1].
pub(super) fn draw(
    kinds: &DepthKinds,
    guide: &[f32],
    size: [usize; 2],
    random: &mut Random,
) -> Vec<f32> {
    let all = kinds.all();
    let mut at = random.unit() * all.iter().map(|(_, v)| v).sum::<f64>();
    let kind = all.iter().find(|(_, v)| {
        at -= v;
        at < 0.0
    });
    let kind = kind.map_or("constant", |(name, _)| name);
    let mut depth = match kind {
        "ground" => ground(size, random),
        "ramp" => ramp(size, random),
        "regions" => regions(size, random),
        "radial" => radial(size, random),
        _ => return vec![random.within([0.3, 1.0]) as f32; size[0] * size[1]],
    };
    if kind == "regions" || random.chance(0.75) {
        let shorter = size[0].min(size[1]) as f64;
        let radius = (shorter * random.within([0.04, 0.25])).round().max(1.0) as usize;
        let eps = 10f64.powf(random.within([-4.0, -2.0]));
        depth = guided(guide, &depth, size, radius, eps);
    }
    // nothing is at the camera, and the farthest need not be at the horizon
    let (near, far) = (random.within([0.0, 0.4]), random.within([0.7, 1.0]));
    let (low, high) = depth
        .iter()
        .fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    let scale = (far - near) as f32 / (high - low).max(1e-3);
    depth
        .iter()
        .map(|v| ((v - low) * scale + near as f32).clamp(0.0, 1.0))
        .collect()
}

fn fill([h, w]: [usize; 2], value: impl Fn(f64, f64) -> f64) -> Vec<f32> {
    let mut map = Vec::with_capacity(h * w);
    for y in 0..h {
        for x in 0..w {
            let (y, x) = ((y as f64 + 0.5) / h as f64, (x as f64 + 0.5) / w as f64);
            map.push(value(y, x) as f32);
        }
    }
    map
}

fn ground(size: [usize; 2], random: &mut Random) -> Vec<f32> {
    let horizon = random.within([-0.4, 0.75]);
    let tilt = random.within([-0.15, 0.15]);
    // the height of the camera: how fast the ground comes near below the horizon
    let height = 10f64.powf(random.within([-1.5, -0.3]));
    fill(size, |y, x| {
        let below = y - horizon - tilt * (x - 0.5);
        height / (below.max(0.0) + height)
    })
}

fn ramp(size: [usize; 2], random: &mut Random) -> Vec<f32> {
    // upwards within some tens of degrees, seldom any way
    let angle = match random.chance(0.8) {
        true => f64::from(random.normal()) * 0.3,
        false => random.within([-std::f64::consts::PI, std::f64::consts::PI]),
    };
    let power = 2f64.powf(random.within([-1.0, 1.0]));
    let relief = noise(size, 2 + random.below(4), random);
    let amount = random.within([0.0, 0.6]) as f32;
    let (sin, cos) = angle.sin_cos();
    let slope = fill(size, |y, x| {
        let along = 0.5 - (y - 0.5) * cos + (x - 0.5) * sin;
        along.clamp(0.0, 1.0).powf(power)
    });
    slope
        .iter()
        .zip(&relief)
        .map(|(s, r)| s + amount * (r - 0.5))
        .collect()
}

fn regions(size: [usize; 2], random: &mut Random) -> Vec<f32> {
    let levels = 2 + random.below(4);
    let cells = 2 + random.below(5);
    let map = noise(size, cells, random);
    map.iter()
        .map(|v| (v * levels as f32).floor().min(levels as f32 - 1.0) / (levels as f32 - 1.0))
        .collect()
}

fn radial(size: [usize; 2], random: &mut Random) -> Vec<f32> {
    let (cy, cx) = (random.within([0.1, 0.7]), random.within([0.0, 1.0]));
    let power = 2f64.powf(random.within([-1.0, 1.0]));
    let inwards = random.chance(0.75);
    fill(size, |y, x| {
        let r = (y - cy).hypot(x - cx).min(1.0).powf(power);
        if inwards {
            1.0 - r
        } else {
            r
        }
    })
}

/// Even random values on a grid of `cells` + 1 points a side, smoothly joined: in [0, 1].
pub(super) fn noise([h, w]: [usize; 2], cells: usize, random: &mut Random) -> Vec<f32> {
    let points = cells + 1;
    let grid: Vec<f64> = (0..points * points).map(|_| random.unit()).collect();
    let smooth = |t: f64| t * t * (3.0 - 2.0 * t);
    fill([h, w], |y, x| {
        let (y, x) = (y * cells as f64, x * cells as f64);
        let (iy, ix) = ((y as usize).min(cells - 1), (x as usize).min(cells - 1));
        let (ty, tx) = (smooth(y - iy as f64), smooth(x - ix as f64));
        let row = |iy: usize| {
            let at = iy * points + ix;
            grid[at] * (1.0 - tx) + grid[at + 1] * tx
        };
        row(iy) * (1.0 - ty) + row(iy + 1) * ty
    })
}

/// He et al., *Guided Image Filtering*, 2013: `map` made to follow the edges of `guide`.
pub(super) fn guided(
    guide: &[f32],
    map: &[f32],
    size: [usize; 2],
    radius: usize,
    eps: f64,
) -> Vec<f32> {
    let mean = |v: &[f64]| box_mean(v, size, radius);
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<f64>>();
    let (g, m) = (wide(guide), wide(map));
    let (mean_g, mean_m) = (mean(&g), mean(&m));
    let (gg, gm) = (mean(&product(&g, &g)), mean(&product(&g, &m)));
    let n = g.len();
    let a: Vec<f64> = (0..n)
        .map(|i| (gm[i] - mean_g[i] * mean_m[i]) / (gg[i] - mean_g[i] * mean_g[i] + eps))
        .collect();
    let b: Vec<f64> = (0..n).map(|i| mean_m[i] - a[i] * mean_g[i]).collect();
    let (a, b) = (mean(&a), mean(&b));
    (0..n).map(|i| (a[i] * g[i] + b[i]) as f32).collect()
}

/// Mean over a square window, of what of it lies inside.
fn box_mean(values: &[f64], [h, w]: [usize; 2], radius: usize) -> Vec<f64> {
    let line = |get: &dyn Fn(usize) -> f64, n: usize, put: &mut dyn FnMut(usize, f64)| {
        let mut sums = Vec::with_capacity(n + 1);
        sums.push(0.0);
        for i in 0..n {
            sums.push(sums[i] + get(i));
        }
        for i in 0..n {
            let (from, to) = (i.saturating_sub(radius), (i + radius + 1).min(n));
            put(i, (sums[to] - sums[from]) / (to - from) as f64);
        }
    };
    let mut rows = vec![0.0; h * w];
    for y in 0..h {
        line(&|x| values[y * w + x], w, &mut |x, v| rows[y * w + x] = v);
    }
    let mut out = vec![0.0; h * w];
    for x in 0..w {
        line(&|y| rows[y * w + x], h, &mut |y, v| out[y * w + x] = v);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_varies_and_stays_in_range() {
        let size = [24, 40];
        let guide = noise(size, 6, &mut Random::new(9, 0, 0));
        for number in 0..5 {
            let mut kinds = DepthKinds {
                ground: 0.0,
                ramp: 0.0,
                regions: 0.0,
                radial: 0.0,
                constant: 0.0,
            };
            assert!(kinds.validate().is_err());
            let fields = [
                &mut kinds.ground,
                &mut kinds.ramp,
                &mut kinds.regions,
                &mut kinds.radial,
                &mut kinds.constant,
            ];
            let field = fields.into_iter().nth(number);
            *field.expect("five kinds") = 1.0;
            let maps: Vec<_> = (0..20)
                .map(|i| draw(&kinds, &guide, size, &mut Random::new(1, i, 0)))
                .collect();
            for map in &maps {
                assert_eq!(map.len(), 24 * 40);
                assert!(map.iter().all(|v| (0.0..=1.0).contains(v)));
                let flat = map.iter().all(|v| v == &map[0]);
                assert_eq!(flat, number == 4, "kind {number}");
            }
            assert!(maps.windows(2).all(|m| m[0] != m[1]));
        }
    }

    #[test]
    fn the_guided_filter_leaves_a_constant_and_follows_an_edge() {
        let size = [16, 16];
        let guide = fill(size, |_, x| if x < 0.5 { 0.2 } else { 0.8 });
        let same = guided(&guide, &[0.4; 256], size, 3, 1e-4);
        assert!(same.iter().all(|v| (v - 0.4).abs() < 1e-6));
        // a step two columns beside the guide's is moved onto it
        let map = fill(size, |_, x| if x < 0.6 { 0.0 } else { 1.0 });
        let out = guided(&guide, &map, size, 4, 1e-6);
        let step = |v: &[f32]| v[8 * 16 + 8] - v[8 * 16 + 7];
        assert_eq!(step(&map), 0.0);
        assert!(step(&out) > 0.3, "{}", step(&out));
    }
}
