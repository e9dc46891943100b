//! Scans in several orders against the reference, which copies, scans and merges.
//!
//! `cargo test --release -p vision-mamba-ops --test cross`
#![allow(clippy::unwrap_used)]

mod util;

use std::process::Command;
use tch::{Kind, Tensor};
use util::Rng;
use vision_mamba_ops::{native, reference, status, CrossScan, LibraryStatus, OpsError};

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: i64,
    directions: i64,
    length: i64,
    channels: i64,
    states: i64,
    rank: i64,
    shared: bool,
    optional: bool,
    softplus: bool,
    kind: Kind,
}

impl Case {
    fn random(rng: &mut Rng) -> Case {
        Case {
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

    /// As in the tests of the single scan; a sum of several directions is of their size.
    fn tolerance(&self) -> f64 {
        match self.kind {
            Kind::Double => 1e-12,
            Kind::BFloat16 => 4.1e-3,
            Kind::Half => 5.2e-4,
            _ => 1e-5,
        }
    }

    /// u, weights, dt_weight, A, D, delta_bias, with the values that the case's element type has.
    fn inputs(&self, rng: &mut Rng) -> (Vec<Tensor>, Tensor) {
        let Case {
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
        (inputs, Tensor::from_slice(&orders).view([k, l]))
    }
}

type Cross = fn(&CrossScan) -> Result<Tensor, OpsError>;

/// The output, then the gradient of every input.
fn results(
    scan: Cross,
    case: &Case,
    inputs: &[Tensor],
    orders: &Tensor,
    dy: &Tensor,
) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = inputs
        .iter()
        .map(|t| t.detach().set_requires_grad(true))
        .collect();
    let out = scan(&CrossScan {
        u: &leaves[0],
        weights: &leaves[1],
        dt_weight: &leaves[2],
        a: &leaves[3],
        d: case.optional.then_some(&leaves[4]),
        delta_bias: (case.optional || !case.softplus).then_some(&leaves[5]),
        orders,
        delta_softplus: case.softplus,
    })
    .unwrap();
    let used: Vec<&Tensor> = (leaves.iter().enumerate())
        .filter(|(i, _)| *i < 4 || case.optional || (*i == 5 && !case.softplus))
        .map(|(_, leaf)| leaf)
        .collect();
    let mut all = vec![out.detach()];
    let loss = (out * dy.to_kind(Kind::Double)).sum(Kind::Double);
    all.extend(Tensor::run_backward(&[loss], &used, false, false));
    all
}

fn check(case: &Case, rng: &mut Rng) {
    let (inputs, orders) = case.inputs(rng);
    // The operator receives it in its own element type: the reference must not know it better.
    let dy = rng
        .tensor(&[case.batch, case.length, case.channels], -1.0, 1.0)
        .to_kind(case.kind);
    let ours = results(native::cross_selective_scan, case, &inputs, &orders, &dy);
    let exact: Vec<Tensor> = inputs.iter().map(|t| t.to_kind(Kind::Double)).collect();
    let theirs = results(reference::cross_selective_scan, case, &exact, &orders, &dy);
    assert_eq!(ours[0].kind(), case.kind);
    for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours.size(), theirs.size(), "{case:?} result {i}");
        let error = util::error(ours, theirs);
        assert!(error <= case.tolerance(), "{case:?} result {i}: {error:e}");
    }
}

#[test]
fn random_shapes_orders_and_types() {
    let mut rng = Rng(11);
    for _ in 0..60 {
        check(&Case::random(&mut rng), &mut rng);
    }
}

/// The test above on the instruction sets that this processor would not choose.
#[test]
fn slower_instruction_sets_agree_too() {
    let LibraryStatus::Ready { isa: chosen, .. } = status() else {
        panic!("{}", status())
    };
    if std::env::var_os("VISION_MAMBA_OPS_ISA").is_some() {
        return;
    }
    let all = ["portable", "avx2", "avx512"];
    let best = all.iter().position(|isa| isa == chosen).unwrap();
    for isa in &all[..best] {
        let child = Command::new(std::env::current_exe().unwrap())
            .env("VISION_MAMBA_OPS_ISA", isa)
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{isa}: {}",
            String::from_utf8_lossy(&child.stdout)
        );
    }
}

/// Many states take a pass for each direction, few one for all.
#[test]
fn passes_of_one_direction_and_of_all() {
    let mut rng = Rng(12);
    for states in [1, 16] {
        let case = Case {
            batch: 2,
            directions: 4,
            length: 100,
            channels: 192,
            states,
            rank: 6,
            shared: true,
            optional: true,
            softplus: true,
            kind: Kind::Float,
        };
        check(&case, &mut rng);
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let mut rng = Rng(13);
    let case = Case {
        batch: 2,
        directions: 4,
        length: 333,
        channels: 96,
        states: 16,
        rank: 6,
        shared: true,
        optional: true,
        softplus: true,
        kind: Kind::Float,
    };
    let (inputs, orders) = case.inputs(&mut rng);
    let dy = rng.tensor(&[2, 333, 96], -1.0, 1.0);
    let before = tch::get_num_threads();
    let mut seen: Option<Vec<Tensor>> = None;
    for threads in [1, 2, 3, 2] {
        tch::set_num_threads(threads);
        let now = results(native::cross_selective_scan, &case, &inputs, &orders, &dy);
        if let Some(first) = &seen {
            assert!(first.iter().zip(&now).all(|(a, b)| a.equal(b)));
        }
        seen = Some(now);
    }
    tch::set_num_threads(before);
}

#[test]
fn what_does_not_fit_is_named() {
    let mut rng = Rng(14);
    let case = Case {
        batch: 1,
        directions: 2,
        length: 6,
        channels: 4,
        states: 2,
        rank: 1,
        shared: true,
        optional: true,
        softplus: true,
        kind: Kind::Float,
    };
    let (inputs, orders) = case.inputs(&mut rng);
    let complaint = |u: &Tensor, weights: &Tensor, orders: &Tensor| {
        native::cross_selective_scan(&CrossScan {
            u,
            weights,
            dt_weight: &inputs[2],
            a: &inputs[3],
            d: None,
            delta_bias: None,
            orders,
            delta_softplus: true,
        })
        .unwrap_err()
        .to_string()
    };
    let twice = Tensor::zeros_like(&orders);
    let text = complaint(&inputs[0], &inputs[1], &twice);
    assert!(text.contains("orders[0][1] is 0"), "{text}");
    let far = &orders + 1;
    let text = complaint(&inputs[0], &inputs[1], &far);
    assert!(text.contains("is 6, expected each of 0 to 5"), "{text}");
    let text = complaint(&inputs[0], &inputs[1].narrow(3, 0, 4), &orders);
    assert!(text.contains("weights has shape"), "{text}");
    let text = complaint(&inputs[0].transpose(1, 2), &inputs[1], &orders);
    assert!(text.contains("u has shape"), "{text}");
    let text = complaint(&inputs[0], &inputs[1], &orders.to_kind(Kind::Int64));
    assert!(text.contains("int32"), "{text}");
}
