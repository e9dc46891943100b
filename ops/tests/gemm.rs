//! Products by oneDNN in place of MKL's: the same numbers for every way in which matrices lie in memory. On processors where MKL stays the tests
//! compare it with float64 too.

#![allow(clippy::unwrap_used)]

use std::sync::{RwLock, RwLockReadGuard};

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_ops::gemm::{is_onednn, set_onednn, GEMM_ENV};
use vision_mamba_ops::native;

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Held for writing by the test that turns the switch, for reading by those that compute.
static SWITCH: RwLock<()> = RwLock::new(());

fn as_it_is() -> RwLockReadGuard<'static, ()> {
    SWITCH
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// (rows, columns) of values that float32 holds.
fn matrix(rows: i64, columns: i64, seed: f64) -> Tensor {
    let count = Tensor::arange(rows * columns, (Kind::Double, Device::Cpu));
    ((count * 0.7391 + seed) * 1.37)
        .sin()
        .reshape([rows, columns])
        .to_kind(Kind::Float)
        .to_kind(Kind::Double)
}

/// The ways in which the same matrix may lie.
fn laid_out(m: &Tensor) -> Vec<(&'static str, Tensor)> {
    let m = m.to_kind(Kind::Float);
    let [rows, columns] = m.size()[..] else {
        panic!("a matrix")
    };
    let wide = Tensor::full([rows, columns + 5], 9.0, F32);
    let part = wide.narrow(1, 2, columns);
    part.shallow_clone().copy_(&m);
    let spread = Tensor::full([rows, columns, 2], 9.0, F32);
    let every_other = spread.select(2, 1);
    every_other.shallow_clone().copy_(&m);
    vec![
        ("rows", m.contiguous()),
        ("columns", m.tr().contiguous().tr()),
        ("part of longer rows", part),
        ("every other value", every_other),
    ]
}

fn assert_close(what: &str, got: &Tensor, want: &Tensor, depth: i64) {
    let largest = |t: &Tensor| t.abs().max().double_value(&[]);
    let off = largest(&(got.to_kind(Kind::Double) - want));
    // `depth` sums are rounded, which stay below the root of that many terms of at most one
    let bound = 2f64.powi(-24) * (depth as f64).powf(1.5);
    assert!(off <= bound, "{what}: off by {off}, at most {bound}");
}

#[test]
fn the_same_numbers_however_matrices_lie() {
    let _switch = as_it_is();
    assert!(native::is_ready());
    for (m, k, n) in [
        (128, 96, 112),
        (97, 1031, 33),
        (1031, 97, 33),
        (33, 97, 1031),
        (1, 1200, 1000),
        (1200, 1, 1000),
        (1200, 1000, 1),
        (8, 8, 8),
    ] {
        let (a, b) = (matrix(m, k, 0.1), matrix(k, n, 0.2));
        let row = matrix(1, n, 0.3).reshape([n]);
        let want = a.matmul(&b);
        for (way_a, x) in laid_out(&a) {
            for (way_b, y) in laid_out(&b) {
                let what = format!("{m} x {k} ({way_a}) times {k} x {n} ({way_b})");
                assert_close(&what, &x.mm(&y), &want, k);
                let bias = row.to_kind(Kind::Float);
                let linear = x.linear(&y.tr(), Some(&bias));
                assert_close(&what, &linear, &(&want + &row), k + 1);
            }
        }
    }
}

#[test]
fn values_repeated_by_strides_of_zero() {
    let _switch = as_it_is();
    assert!(native::is_ready());
    let (row, b) = (matrix(1, 300, 0.1), matrix(300, 90, 0.2));
    let all = row.to_kind(Kind::Float).expand([64, 300], false);
    let want = row.expand([64, 300], false).matmul(&b);
    assert_close("a", &all.mm(&b.to_kind(Kind::Float)), &want, 300);
    let turned = all.tr().mm(&matrix(64, 90, 0.3).to_kind(Kind::Float));
    let want = row
        .expand([64, 300], false)
        .tr()
        .matmul(&matrix(64, 90, 0.3));
    assert_close("a, turned", &turned, &want, 64);
    let column = matrix(300, 1, 0.4);
    let spread = column.to_kind(Kind::Float).expand([300, 90], false);
    let a = matrix(64, 300, 0.5);
    let want = a.matmul(&column.expand([300, 90], false));
    assert_close("b", &a.to_kind(Kind::Float).mm(&spread), &want, 300);
}

#[test]
fn other_forms_of_addmm_and_other_types() {
    let _switch = as_it_is();
    assert!(native::is_ready());
    let (a, b) = (matrix(128, 96, 0.1), matrix(96, 112, 0.2));
    let [x, y] = [&a, &b].map(|t| t.to_kind(Kind::Float));
    let whole = matrix(128, 112, 0.3);
    let want = a.matmul(&b) + &whole;
    let got = whole.to_kind(Kind::Float).addmm(&x, &y);
    assert_close("a whole matrix added", &got, &want, 97);
    let got = a.addmm(&a.narrow(1, 0, 96), &matrix(96, 96, 0.2));
    assert_eq!(got.kind(), Kind::Double);
    let half = x.to_kind(Kind::BFloat16).mm(&y.to_kind(Kind::BFloat16));
    assert_eq!(half.kind(), Kind::BFloat16);
    assert!(x.f_mm(&x).is_err());
    assert!(x.f_mm(&y.to_kind(Kind::Double)).is_err());
    let nothing = Tensor::zeros([0, 96], F32).mm(&y);
    assert_eq!(nothing.size(), [0, 112]);
}

#[test]
fn gradients_and_values_that_are_no_numbers() {
    let _switch = as_it_is();
    assert!(native::is_ready());
    let (a, b) = (matrix(256, 96, 0.1), matrix(96, 112, 0.2));
    let grads = |kind: Kind| {
        let leaves = [&a, &b].map(|t| t.to_kind(kind).copy().set_requires_grad(true));
        let out = leaves[0].mm(&leaves[1]);
        let square = (&out * &out).sum(kind) + out.sum(kind);
        square.backward();
        leaves.map(|t| t.grad())
    };
    let want = grads(Kind::Double);
    for (got, want) in grads(Kind::Float).iter().zip(&want) {
        let size = want.abs().max().double_value(&[]);
        assert_close("gradient", &(got / size), &(want / size), 256);
    }
    for bad in [f64::NAN, f64::INFINITY] {
        let x = a.to_kind(Kind::Float);
        let _ = x.get(3).get(5).fill_(bad);
        let out = no_grad(|| x.mm(&b.to_kind(Kind::Float)));
        assert_eq!(out.get(3).isfinite().any().int64_value(&[]), 0);
        assert_eq!(out.get(4).isfinite().all().int64_value(&[]), 1);
    }
}

#[test]
fn it_is_on_where_mkl_holds_back_and_can_be_switched() {
    let _switch = SWITCH
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = is_onednn().unwrap();
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let wide = ["avx512f", "avx512bw", "avx512dq", "avx512vl"];
    let faster =
        !processor.contains("GenuineIntel") && wide.iter().all(|it| processor.contains(it));
    assert_eq!(
        before,
        faster && std::env::var_os(GEMM_ENV).is_none_or(|it| it != "mkl")
    );

    let (a, b) = (matrix(300, 2000, 0.1), matrix(2000, 64, 0.2));
    let [x, y] = [&a, &b].map(|t| t.to_kind(Kind::Float));
    assert!(!set_onednn(false).unwrap() && !is_onednn().unwrap());
    assert_close("MKL", &x.mm(&y), &a.matmul(&b), 2000);
    assert_eq!(set_onednn(true).unwrap(), faster);
    assert_eq!(is_onednn().unwrap(), faster);
    assert_close("oneDNN", &x.mm(&y), &a.matmul(&b), 2000);
    set_onednn(before).unwrap();
}
