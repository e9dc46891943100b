//! Costs of a network: exact for a small image, on a straight line for a large one.

#![allow(clippy::unwrap_used)]

use tch::Device;
use vision_mamba_models::{build, cost, preset, NetworkCost};

fn of(name: &str, size: &[i64], at_any_price: bool) -> Option<NetworkCost> {
    let built = build(&preset(name).unwrap(), Device::Cpu).unwrap();
    cost(&built, size, at_any_price).unwrap()
}

#[test]
fn a_large_image_costs_what_its_small_ones_foretell() {
    let (small, large) = (
        of("unet_plain_tiny_2d", &[512, 512], false).unwrap(),
        of("unet_plain_tiny_2d", &[1024, 1024], false).unwrap(),
    );
    assert!(!small.extrapolated && large.extrapolated);
    assert_eq!(large.input_size, [1024, 1024]);
    // every layer of it is linear in the number of pixels
    assert_eq!(large.multiply_adds, 4 * small.multiply_adds);
    let ratio = large.activation_bytes as f64 / small.activation_bytes as f64;
    assert!((3.99..4.01).contains(&ratio), "{ratio}");
}

#[test]
fn scans_are_counted_apart() {
    let with = of("umamba_bot_tiny_2d", &[32, 32], true).unwrap();
    assert!(with.scan_multiply_adds > 0);
    assert_eq!(
        with.multiply_adds,
        with.product_multiply_adds + with.scan_multiply_adds
    );
    let without = of("unet_plain_tiny_2d", &[32, 32], true).unwrap();
    assert_eq!(without.scan_multiply_adds, 0);
}
