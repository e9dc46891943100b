//! Calls of `cross_selective_scan` with random inputs, and the comparison of the output and all gradients with the float64 reference.

use tch::{Kind, Tensor};
use vision_mamba_ops::{reference, CrossScan, OpsError};

use super::Rng;

/// Sizes and options of a call.
#[derive(Debug, Clone, Copy)]
pub struct CrossCase {
    pub batch: i64,
    pub directions: i64,
    pub length: i64,
    pub channels: i64,
    pub states: i64,
    pub rank: i64,
    pub shared: bool,
    pub optional: bool,
    pub softplus: bool,
    pub kind: Kind,
}

impl CrossCase {
    /// Of one map in float32, with everything that may be left out.
    pub fn plain(
        batch: i64,
        directions: i64,
        length: i64,
        channels: i64,
        states: i64,
        rank: i64,
    ) -> CrossCase {
        CrossCase {
            batch,
            directions,
            length,
            channels,
            states,
            rank,
            shared: true,
            optional: true,
            softplus: true,
            kind: Kind::Float,
        }
    }

    pub fn random(rng: &mut Rng) -> CrossCase {
        CrossCase {
            batch: rng.pick(&[1, 2, 3]),
            directions: rng.pick(&[1, 2, 4]),
            length: rng.pick(&[1, 2, 7, 31, 32, 33, 49, 64, 130]),
            channels: rng.pick(&[1, 3, 8, 16, 17, 40, 150]),
            states: rng.pick(&[1, 2, 4, 5, 16, 18]),
            rank: rng.pick(&[1, 3, 4, 6, 8, 12, 17]),
            shared: !rng.next().is_multiple_of(3),
            optional: rng.next().is_multiple_of(2),
            softplus: !rng.next().is_multiple_of(4),
            kind: rng.pick(&[
                Kind::Float,
                Kind::Float,
                Kind::Double,
                Kind::BFloat16,
                Kind::Half,
            ]),
        }
    }

    /// Random arguments, with the values that the case's element type has.
    pub fn arguments(&self, rng: &mut Rng) -> Arguments {
        let CrossCase {
            batch: b,
            directions: k,
            length: l,
            channels: d,
            states: n,
            rank: r,
            ..
        } = *self;
        let own = |t: Tensor| t.to_kind(self.kind);
        let wide = |t: Tensor| match self.kind {
            Kind::Double => t,
            _ => t.to_kind(Kind::Float),
        };
        let u = match self.shared {
            true => rng.tensor(&[b, l, d], -1.0, 1.0),
            false => rng.tensor(&[b, k, l, d], -1.0, 1.0),
        };
        let weights = own(rng.tensor(&[b, l, k, r + 2 * n], -1.0, 1.0));
        let weights = rng.restride(&weights);
        // without softplus steps must be positive: bias above what the product can take away
        let reach = 0.5 / r as f64;
        let inputs = vec![
            own(u),
            weights,
            wide(rng.tensor(&[k, d, r], -reach, reach)),
            wide(rng.tensor(&[k, d, n], -3.0, -0.1)),
            wide(rng.tensor(&[k, d], -1.0, 1.0)),
            wide(rng.tensor(&[k, d], 0.5, 1.0)),
        ];
        let orders: Vec<i32> = (0..k)
            .flat_map(|_| {
                let mut order: Vec<i32> = (0..l as i32).collect();
                for i in (1..order.len()).rev() {
                    order.swap(i, rng.next() as usize % (i + 1));
                }
                order
            })
            .collect();
        Arguments {
            inputs,
            orders: Tensor::from_slice(&orders).view([k, l]),
            // The operator receives it in its own element type: the reference must not know it better.
            dy: own(rng.tensor(&[b, l, d], -1.0, 1.0)),
        }
    }
}

/// u, weights, dt_weight, A, D, delta_bias; the orders; the gradient of the output.
pub struct Arguments {
    pub inputs: Vec<Tensor>,
    pub orders: Tensor,
    pub dy: Tensor,
}

pub type Cross = fn(&CrossScan) -> Result<Tensor, OpsError>;

/// The output, then the gradient of every input.
pub fn results(scan: Cross, case: &CrossCase, call: &Arguments) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = (call.inputs.iter())
        .map(|t| t.detach().set_requires_grad(true))
        .collect();
    let out = scan(&CrossScan {
        u: &leaves[0],
        weights: &leaves[1],
        dt_weight: &leaves[2],
        a: &leaves[3],
        d: case.optional.then_some(&leaves[4]),
        delta_bias: (case.optional || !case.softplus).then_some(&leaves[5]),
        orders: &call.orders,
        delta_softplus: case.softplus,
    })
    .unwrap();
    let used: Vec<&Tensor> = (leaves.iter().enumerate())
        .filter(|(i, _)| *i < 4 || case.optional || (*i == 5 && !case.softplus))
        .map(|(_, leaf)| leaf)
        .collect();
    let mut all = vec![out.detach()];
    let loss = (out * call.dy.to_kind(Kind::Double)).sum(Kind::Double);
    all.extend(Tensor::run_backward(&[loss], &used, false, false));
    all
}

/// Compares `scan` with the reference; the error of result `i`, the output first, is at most `most(i)`.
pub fn check(scan: Cross, case: &CrossCase, call: &Arguments, most: impl Fn(usize) -> f64) {
    let ours = results(scan, case, call);
    let exact = Arguments {
        inputs: (call.inputs.iter())
            .map(|t| t.to_kind(Kind::Double))
            .collect(),
        orders: call.orders.shallow_clone(),
        dy: call.dy.shallow_clone(),
    };
    let theirs = results(reference::cross_selective_scan, case, &exact);
    assert_eq!(ours[0].kind(), case.kind);
    for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours.size(), theirs.size(), "{case:?} result {i}");
        let error = super::error(ours, theirs);
        assert!(error <= most(i), "{case:?} result {i}: {error:e}");
    }
}
