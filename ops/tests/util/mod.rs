//! Random inputs in every form, and the comparison of outputs and gradients with the float64 reference.

#![allow(dead_code)] // each test binary uses its part

pub mod cross;

use tch::{Kind, Tensor};
use vision_mamba_ops::{reference, OpsError, ScanOutput, SelectiveScan};

/// What an operator's results may be off, relative to the largest value of the tensor. float32: what sums over some hundred terms lose. bfloat16 and
/// float16: twice the rounding of the result itself (2^-9 and 2^-12), everything before it being float32. A sum of several directions is of their size.
pub fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::Double => 1e-12,
        Kind::BFloat16 => 4.1e-3,
        Kind::Half => 5.2e-4,
        _ => 1e-5,
    }
}

/// A small generator of our own: the tests of one binary run side by side, and libtorch's is shared.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xff51afd7ed558ccd) >> 20
    }

    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 44) as f64
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }

    /// Uniform in low..high, float64.
    pub fn tensor(&mut self, shape: &[i64], low: f64, high: f64) -> Tensor {
        let count: i64 = shape.iter().product();
        let values: Vec<f64> = (0..count)
            .map(|_| low + (high - low) * self.uniform())
            .collect();
        Tensor::from_slice(&values).reshape(shape)
    }

    /// The same values under other strides.
    pub fn restride(&mut self, t: &Tensor) -> Tensor {
        if t.dim() < 2 {
            return t.shallow_clone();
        }
        let last = t.dim() as i64 - 1;
        match self.next() % 4 {
            0 => t.movedim_int(1, -1).contiguous().movedim_int(-1, 1),
            1 => Tensor::stack(&[t, t], -1).select(last + 1, 0), // every second element
            2 => {
                let size = t.size()[last as usize];
                t.constant_pad_nd([3, 2]).narrow(last, 3, size) // a slice of something longer
            }
            _ => t.shallow_clone(),
        }
    }
}

/// How `B` or `C` comes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    Constant,
    Shared,
    Grouped(i64),
}

impl Form {
    pub fn shape(self, case: &Case) -> Vec<i64> {
        match self {
            Form::Constant => vec![case.channels, case.states],
            Form::Shared => vec![case.batch, case.states, case.length],
            Form::Grouped(groups) => vec![case.batch, groups, case.states, case.length],
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub batch: i64,
    pub channels: i64,
    pub length: i64,
    pub states: i64,
    pub b: Form,
    pub c: Form,
    pub d: bool,
    pub z: bool,
    pub bias: bool,
    pub softplus: bool,
    pub kind: Kind,
    /// Largest step size.
    pub step: f64,
}

impl Case {
    pub fn plain(batch: i64, channels: i64, length: i64, states: i64) -> Case {
        Case {
            batch,
            channels,
            length,
            states,
            b: Form::Shared,
            c: Form::Shared,
            d: true,
            z: true,
            bias: true,
            softplus: true,
            kind: Kind::Float,
            step: 0.5,
        }
    }

    pub fn random(rng: &mut Rng) -> Case {
        let groups = rng.pick(&[1, 1, 2, 3]);
        let mut form = || {
            rng.pick(&[
                Form::Shared,
                Form::Shared,
                Form::Grouped(groups),
                Form::Constant,
            ])
        };
        let (b, c) = (form(), form());
        Case {
            batch: rng.pick(&[1, 2, 3]),
            channels: groups * rng.pick(&[1, 2, 7, 16, 33]),
            length: rng.pick(&[1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129]),
            states: rng.pick(&[1, 2, 3, 4, 5, 8, 13, 16, 17, 24]),
            b,
            c,
            d: rng.next().is_multiple_of(2),
            z: rng.next().is_multiple_of(2),
            bias: rng.next().is_multiple_of(2),
            softplus: rng.next().is_multiple_of(2),
            kind: rng.pick(&[
                Kind::Float,
                Kind::Float,
                Kind::Double,
                Kind::BFloat16,
                Kind::Half,
            ]),
            step: rng.pick(&[0.5, 0.5, 30.0]),
        }
    }

    pub fn tolerance(&self) -> f64 {
        tolerance(self.kind)
    }

    /// Leaves named after the arguments, in their order.
    pub fn inputs(&self, rng: &mut Rng) -> Vec<(&'static str, Tensor)> {
        let full = if self.kind == Kind::Double {
            Kind::Double
        } else {
            Kind::Float
        };
        let sequence = [self.batch, self.channels, self.length];
        let low = if self.softplus { -self.step } else { 0.0 };
        let mut all = vec![
            ("u", rng.tensor(&sequence, -1.0, 1.0).to_kind(self.kind)),
            (
                "delta",
                rng.tensor(&sequence, low, self.step).to_kind(self.kind),
            ),
            (
                "A",
                rng.tensor(&[self.channels, self.states], -4.0, -0.1)
                    .to_kind(full),
            ),
            (
                "B",
                rng.tensor(&self.b.shape(self), -1.0, 1.0)
                    .to_kind(self.kind),
            ),
            (
                "C",
                rng.tensor(&self.c.shape(self), -1.0, 1.0)
                    .to_kind(self.kind),
            ),
        ];
        if self.d {
            all.push(("D", rng.tensor(&[self.channels], -1.0, 1.0).to_kind(full)));
        }
        if self.z {
            all.push(("z", rng.tensor(&sequence, -2.0, 2.0).to_kind(self.kind)));
        }
        if self.bias {
            all.push((
                "delta_bias",
                rng.tensor(&[self.channels], 0.0, 0.5).to_kind(full),
            ));
        }
        all.into_iter()
            .map(|(name, t)| (name, rng.restride(&t).set_requires_grad(true)))
            .collect()
    }
}

pub type Scan = fn(&SelectiveScan) -> Result<ScanOutput, OpsError>;

pub fn call(scan: Scan, inputs: &[(&str, Tensor)], softplus: bool) -> Result<ScanOutput, OpsError> {
    let find = |name: &str| inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| t);
    scan(&SelectiveScan {
        u: find("u").unwrap(),
        delta: find("delta").unwrap(),
        a: find("A").unwrap(),
        b: find("B").unwrap(),
        c: find("C").unwrap(),
        d: find("D"),
        z: find("z"),
        delta_bias: find("delta_bias"),
        delta_softplus: softplus,
    })
}

/// Outputs and the gradients of `sum(out * cot_out) + sum(last_state * cot_state)`, all by name.
pub fn results(
    scan: Scan,
    inputs: &[(&'static str, Tensor)],
    softplus: bool,
    cot: &[Tensor; 2],
) -> Vec<(String, Tensor)> {
    let ScanOutput { out, last_state } = call(scan, inputs, softplus).unwrap();
    let loss = (&out * &cot[0]).sum(Kind::Double) + (&last_state * &cot[1]).sum(Kind::Double);
    let leaves: Vec<_> = inputs.iter().map(|(_, t)| t).collect();
    let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
    let mut all = vec![
        ("out".to_owned(), out.detach()),
        ("last_state".to_owned(), last_state.detach()),
    ];
    for ((name, input), gradient) in inputs.iter().zip(gradients) {
        assert_eq!(
            gradient.kind(),
            input.kind(),
            "element type of the gradient of {name}"
        );
        assert_eq!(
            gradient.size(),
            input.size(),
            "shape of the gradient of {name}"
        );
        all.push((format!("gradient of {name}"), gradient));
    }
    all
}

pub fn cotangents(rng: &mut Rng, case: &Case) -> [Tensor; 2] {
    // The output's own type, so that both sides see the same numbers.
    let out = rng
        .tensor(&[case.batch, case.channels, case.length], -1.0, 1.0)
        .to_kind(case.kind);
    [
        rng.restride(&out),
        rng.tensor(&[case.batch, case.channels, case.states], -1.0, 1.0)
            .to_kind(Kind::Float),
    ]
}

pub fn widen(inputs: &[(&'static str, Tensor)]) -> Vec<(&'static str, Tensor)> {
    let widen = |t: &Tensor| t.detach().to_kind(Kind::Double).set_requires_grad(true);
    inputs.iter().map(|(name, t)| (*name, widen(t))).collect()
}

/// The largest error relative to the largest value.
pub fn error(ours: &Tensor, expected: &Tensor) -> f64 {
    if ours.numel() == 0 {
        return 0.0;
    }
    let largest = expected.abs().max().double_value(&[]);
    let error = (ours.to_kind(Kind::Double) - expected)
        .abs()
        .max()
        .double_value(&[]);
    // A NaN must not pass for small.
    if error.is_nan() {
        return f64::INFINITY;
    }
    error / if largest == 0.0 { 1.0 } else { largest }
}

/// Compares `scan` with the reference in float64, outputs and every gradient.
pub fn check(scan: Scan, case: &Case, rng: &mut Rng) {
    let inputs = case.inputs(rng);
    let cot = cotangents(rng, case);
    let ours = results(scan, &inputs, case.softplus, &cot);
    let wide = [cot[0].to_kind(Kind::Double), cot[1].to_kind(Kind::Double)];
    let expected = results(
        reference::selective_scan,
        &widen(&inputs),
        case.softplus,
        &wide,
    );
    for ((name, ours), (_, expected)) in ours.iter().zip(&expected) {
        let error = error(ours, expected);
        assert!(
            error <= case.tolerance(),
            "{name}: error {error:e} above {:e} in {case:?}",
            case.tolerance()
        );
    }
}
