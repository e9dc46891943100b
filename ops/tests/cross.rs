//! Scans in several orders against the reference, which copies, scans and merges.
//!
//! `cargo test --release -p vision-mamba-ops --test cross`
#![allow(clippy::unwrap_used)]

mod util;

use std::process::Command;
use tch::{Kind, Tensor};
use util::cross::{self, results, Arguments, CrossCase};
use util::{tolerance, Rng};
use vision_mamba_ops::{native, status, CrossScan, LibraryStatus};

fn check(case: &CrossCase, rng: &mut Rng) {
    let scan = native::cross_selective_scan;
    cross::check(scan, case, &case.arguments(rng), |_| tolerance(case.kind));
}

#[test]
fn random_shapes_orders_and_types() {
    let mut rng = Rng(11);
    for _ in 0..60 {
        check(&CrossCase::random(&mut rng), &mut rng);
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
        let case = CrossCase::plain(2, 4, 100, 192, states, 6);
        check(&case, &mut rng);
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let mut rng = Rng(13);
    let case = CrossCase::plain(2, 4, 333, 96, 16, 6);
    let call = case.arguments(&mut rng);
    let before = tch::get_num_threads();
    let mut seen: Option<Vec<Tensor>> = None;
    for threads in [1, 2, 3, 2] {
        tch::set_num_threads(threads);
        let now = results(native::cross_selective_scan, &case, &call);
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
    let case = CrossCase::plain(1, 2, 6, 4, 2, 1);
    let Arguments { inputs, orders, .. } = case.arguments(&mut rng);
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
